// What several ops do with tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "compute_type.h"

namespace mmdet_ddetr {

// Contiguous, in the compute type.
inline torch::stable::Tensor exact(const torch::stable::Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, compute_type(tensor.scalar_type())));
}

// Contiguous. Asked only of what is not: to call an operator of PyTorch takes half a microsecond.
inline torch::stable::Tensor compact(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<torch::stable::Tensor> compact(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? std::optional(compact(*tensor)) : std::nullopt;
}

}  // namespace mmdet_ddetr
