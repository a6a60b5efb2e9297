// Depthwise convolution: sizes and argument checks.
//
//   input   [B, H, W, C]     fp64, fp32, fp16 or bf16; the channels of a cell are neighbours
//   weight  [kh, kw, C]      of input's dtype, as all that follows
//   bias    [C]              absent: 0
//   output  [B, Ho, Wo, C]
//
// padding is (top, left, bottom, right): TensorFlow's "SAME" is not the same on both sides.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"
#include "compute_type.h"
#include "sizes.h"

namespace mmdet_ddetr {

using torch::stable::Tensor;

struct DepthwiseSizes {
  int64_t B, H, W, C, kh, kw, sy, sx, top, left, Ho, Wo;
};

namespace detail {

inline void check_beside(const char* name, const Tensor& tensor, const Tensor& input) {
  check(tensor.scalar_type() == input.scalar_type(), name, " must be ", input.scalar_type(), " (input's dtype), got ",
        tensor.scalar_type());
  check(tensor.device() == input.device(), name, " must be on input's device, but they are on different ones");
}

inline void check_numbers(const char* name, const std::vector<int64_t>& numbers, size_t count, int64_t least) {
  check(numbers.size() == count, name, " must be ", count, " integers, got ", numbers.size());
  for (const int64_t number : numbers) {
    check(number >= least && number <= kMostCells, name, " must be at least ", least, " and at most ", kMostCells,
          ", got ", number);
  }
}

}  // namespace detail

inline DepthwiseSizes check_depthwise_conv2d(const Tensor& input, const Tensor& weight,
                                             const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                                             const std::vector<int64_t>& padding) {
  check(input.dim() == 4, "input must be [B, H, W, C], got ", Shape{input});
  check(is_computable(input.scalar_type()), "input must be fp64, fp32, fp16 or bf16, got ", input.scalar_type());
  detail::check_beside("weight", weight, input);
  detail::check_numbers("stride", stride, 2, 1);
  detail::check_numbers("padding", padding, 4, 0);
  DepthwiseSizes n = {};
  n.B = input.size(0), n.H = input.size(1), n.W = input.size(2), n.C = input.size(3);
  check(weight.dim() == 3 && weight.size(0) > 0 && weight.size(1) > 0 && weight.size(2) == n.C,
        "weight must be [kh, kw, C] with C = ", n.C, ", got ", Shape{weight});
  if (bias) {
    detail::check_beside("bias", *bias, input);
    check(bias->dim() == 1 && bias->size(0) == n.C, "bias must be [C] = [", n.C, "], got ", Shape{*bias});
  }
  n.kh = weight.size(0), n.kw = weight.size(1);
  n.sy = stride[0], n.sx = stride[1], n.top = padding[0], n.left = padding[1];
  check(n.H <= kMostCells && n.W <= kMostCells && n.kh <= kMostCells && n.kw <= kMostCells,
        "input and weight must have at most ", kMostCells, " rows and columns, got ", Shape{input}, " and ",
        Shape{weight});
  const int64_t rows = n.H + n.top + padding[2] - n.kh, columns = n.W + n.left + padding[3] - n.kw;
  check(rows >= 0 && columns >= 0, "weight must not be larger than the padded input, got ", Shape{weight},
        " for input ", Shape{input});
  n.Ho = rows / n.sy + 1, n.Wo = columns / n.sx + 1;
  check_size("input's cells", {n.B, n.H, n.W, n.C});
  check_size("the output", {n.B, n.Ho, n.Wo, n.C});
  return n;
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& input, const DepthwiseSizes& n) {
  detail::check_beside("grad_output", grad_output, input);
  check(grad_output.dim() == 4 && grad_output.size(0) == n.B && grad_output.size(1) == n.Ho &&
            grad_output.size(2) == n.Wo && grad_output.size(3) == n.C,
        "grad_output must be [B, Ho, Wo, C] = [", n.B, ", ", n.Ho, ", ", n.Wo, ", ", n.C, "], got ",
        Shape{grad_output});
}

}  // namespace mmdet_ddetr
