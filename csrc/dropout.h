// Argument checks of dropout.
//
//   input   any shape     fp64, fp32, fp16 or bf16
//   p       in [0, 1]     probability of a zero
//   seed    one number    int64, on the CPU: all that is kept of the mask
//   output  as input
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "check.h"
#include "compute_type.h"

namespace mmdet_ddetr {

using torch::stable::Tensor;

inline void check_dropout(const Tensor& input, double p, const Tensor& seed) {
  check(is_computable(input.scalar_type()), "input must be fp64, fp32, fp16 or bf16, got ", input.scalar_type());
  check(p >= 0 && p <= 1, "p must be in [0, 1], got ", p);
  check(seed.scalar_type() == ScalarType::Long, "seed must be int64, got ", seed.scalar_type());
  check(seed.numel() == 1, "seed must be one number, got ", Shape{seed});
  check(seed.is_cpu(), "seed must be on the CPU, but it is on another device");
}

}  // namespace mmdet_ddetr
