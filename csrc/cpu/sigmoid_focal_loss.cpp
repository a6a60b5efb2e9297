// The sigmoid focal loss on the CPU: checks, the split among threads, registration.
#include "../sigmoid_focal_loss.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "isa_choice.h"
#include "sigmoid_focal_loss_kernels.h"

namespace mmdet_ddetr::cpu {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::parallel_for;

// The smallest share of a thread: 8192 logits, some 10 us.
int64_t rows_per_grain(const FocalSizes& n) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, n.C)); }

Tensor sigmoid_focal_loss(const Tensor& logits_, const Tensor& labels_, double alpha, double gamma, bool sum_classes) {
  const FocalSizes n = check_sigmoid_focal_loss(logits_, labels_, gamma);
  const Tensor logits = contiguous(logits_), labels = contiguous(labels_);
  const ScalarType dtype = compute_type(logits.scalar_type());
  Tensor loss = sum_classes ? new_empty(logits, {n.N}, dtype) : new_empty(logits, {n.N, n.C}, dtype);
  const FocalInput in = {n.C,        logits.const_data_ptr(), labels.const_data_ptr<int64_t>(), nullptr, alpha, gamma,
                         sum_classes};
  void* to = loss.mutable_data_ptr();
  const FocalKernels& kernels = MMDET_DDETR_CHOSEN(_focal_kernels)(logits.scalar_type(), gamma == 2);
  parallel_for(0, n.N, rows_per_grain(n), [&](int64_t begin, int64_t end) { kernels.forward(in, to, begin, end); });
  return loss;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad_output_, const Tensor& logits_, const Tensor& labels_,
                                   double alpha, double gamma) {
  const FocalSizes n = check_sigmoid_focal_loss(logits_, labels_, gamma);
  check_focal_grad_output(grad_output_, logits_);
  const Tensor grad_output = contiguous(grad_output_), logits = contiguous(logits_), labels = contiguous(labels_);
  Tensor grad_logits = new_empty(logits, {n.N, n.C});
  const FocalInput in = {
      n.C,   logits.const_data_ptr(), labels.const_data_ptr<int64_t>(), grad_output.const_data_ptr(), alpha,
      gamma, grad_output.dim() == 1};
  void* to = grad_logits.mutable_data_ptr();
  const FocalKernels& kernels = MMDET_DDETR_CHOSEN(_focal_kernels)(logits.scalar_type(), gamma == 2);
  parallel_for(0, n.N, rows_per_grain(n), [&](int64_t begin, int64_t end) { kernels.backward(in, to, begin, end); });
  return grad_logits;
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace
}  // namespace mmdet_ddetr::cpu
