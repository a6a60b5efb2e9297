// Sizes and argument checks of the sigmoid focal loss, shared by the CPU and CUDA kernels.
//
//   logits       [N, C]         fp64, fp32, fp16 or bf16
//   labels       [N]            int64; outside of 0 ... C - 1: background, no class is the target
//   loss         [N, C] or, if sum_classes, [N]    in the compute type of logits
//   grad_output  as loss
//   grad_logits  [N, C]         in logits' dtype
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "check.h"
#include "compute_type.h"

namespace mmdet_ddetr {

using torch::stable::Tensor;

struct FocalSizes {
  int64_t N, C;
};

inline FocalSizes check_sigmoid_focal_loss(const Tensor& logits, const Tensor& labels, double gamma) {
  check(logits.dim() == 2, "logits must be [N, C], got ", Shape{logits});
  check(is_computable(logits.scalar_type()), "logits must be fp64, fp32, fp16 or bf16, got ", logits.scalar_type());
  check(labels.dim() == 1 && labels.size(0) == logits.size(0), "labels must be [N] = [", logits.size(0), "], got ",
        Shape{labels});
  check(labels.scalar_type() == ScalarType::Long, "labels must be int64, got ", labels.scalar_type());
  check(labels.device() == logits.device(), "labels must be on logits' device, but they are on different ones");
  check(gamma >= 0, "gamma must not be negative, got ", gamma);
  return {logits.size(0), logits.size(1)};
}

inline void check_focal_grad_output(const Tensor& grad_output, const Tensor& logits) {
  const Tensor& g = grad_output;
  const int64_t N = logits.size(0), C = logits.size(1);
  check((g.dim() == 1 || (g.dim() == 2 && g.size(1) == C)) && g.size(0) == N, "grad_output must be [N, C] = [", N, ", ",
        C, "] or [N] = [", N, "], got ", Shape{g});
  check(g.scalar_type() == compute_type(logits.scalar_type()), "grad_output must be ",
        compute_type(logits.scalar_type()), " beside logits of ", logits.scalar_type(), ", got ", g.scalar_type());
  check(g.device() == logits.device(), "grad_output must be on logits' device, but they are on different ones");
}

}  // namespace mmdet_ddetr
