// What several ops do with tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "compute_type.h"

namespace mmdet_ddetr {

// Contiguous, in the compute type.
inline torch::stable::Tensor exact(const torch::stable::Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, compute_type(tensor.scalar_type())));
}

}  // namespace mmdet_ddetr
