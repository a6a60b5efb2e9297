// A linear layer, what is added to it and its bounds in one pass: sizes and argument checks.
//
//   x       [..., C_in]                fp32, as all that follows
//   packed  [panels, C_in, 32]         the weight, 32 outputs to a panel; the last one is filled with any numbers
//   bias    [C_out]
//   add     [..., C_out]               absent: 0
//   output  [..., C_out]               max(low, min(high, x weight^T + bias + add)); NaN stays NaN
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

constexpr int64_t kPanel = 32;

struct LinearSizes {
  std::vector<int64_t> output;
  int64_t N, C_in, C_out;  // N: product of x's other sizes

  int64_t panels() const { return C_out / kPanel + (C_out % kPanel != 0); }
};

inline LinearSizes check_linear(const Tensor& x, const Tensor& packed, const Tensor& bias,
                                const std::optional<Tensor>& add) {
  check(x.dim() > 0, "x must be [..., C_in], got ", Shape{x});
  check(bias.dim() == 1, "bias must be [C_out], got ", Shape{bias});
  LinearSizes n = {{}, 1, x.size(x.dim() - 1), bias.size(0)};
  for (int64_t i = 0; i + 1 < x.dim(); ++i) {
    n.output.push_back(x.size(i));
    check_size("x", {n.N, x.size(i)});
    n.N *= x.size(i);
  }
  n.output.push_back(n.C_out);
  check(packed.dim() == 3 && packed.size(0) == n.panels() && packed.size(1) == n.C_in && packed.size(2) == kPanel,
        "packed must be [panels, C_in, ", kPanel, "] = [", n.panels(), ", ", n.C_in, ", ", kPanel, "], got ",
        Shape{packed});
  if (add) {
    bool fits = add->dim() == x.dim();
    for (int64_t i = 0; fits && i < x.dim(); ++i) fits = add->size(i) == n.output[i];
    check(fits, "add must be [..., C_out] with C_out = ", n.C_out, " and the other sizes of x ", Shape{x}, ", got ",
          Shape{*add});
  }
  for (const Tensor* tensor : {&x, &packed, &bias, add ? &*add : &x}) {
    check(tensor->scalar_type() == ScalarType::Float, "all arguments must be fp32, got ", tensor->scalar_type());
    check(tensor->device() == x.device(), "all arguments must be on x's device, but one is on another");
  }
  check_size("packed", {n.panels(), n.C_in, kPanel});
  check_size("the output", {n.N, n.C_out});
  return n;
}

}  // namespace mmdet_ddetr
