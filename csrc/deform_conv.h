// Deformable convolution: sizes, argument checks and the passes over the output, shared by the CPU and CUDA kernels.
//
//   input   [B, C, H, W]             fp64, fp32, fp16 or bf16
//   offset  [B, G T 2, Ho, Wo]       (y, x) of each tap in cells of the input; G offset groups, T = kh kw taps
//   weight  [C_out, C/groups, kh, kw]
//   mask    [B, G T, Ho, Wo]         factor of each tap; absent: 1
//   output  [B, C_out, Ho, Wo]
//
// weight has input's dtype, offset and mask that or the compute type (fp64 for fp64, else fp32), in which coordinates
// and samples are computed. Gradients have the dtype of what they are the gradient of.
//
// The samples of some output cells of an image, their *columns*, exist at a time: a device's kernels write them, and a
// matrix product of PyTorch's makes output of them. The backward pass goes through the same chunks and samples anew.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "compute_type.h"
#include "sizes.h"
#include "tensors.h"

namespace mmdet_ddetr {

using torch::stable::Tensor;

// Once checked, no product of the sizes that the op needs can overflow.
struct ConvSizes {
  int64_t B, C, H, W;
  int64_t C_out, groups;
  int64_t kh, kw, sy, sx, py, px, dy, dx;  // kernel, stride, padding, dilation
  int64_t Ho, Wo;
  int64_t G;

  int64_t T() const { return kh * kw; }
  int64_t P() const { return Ho * Wo; }  // output cells of an image
  int64_t group_channels() const { return C / groups; }
  bool empty() const { return B == 0 || C_out == 0 || P() == 0; }
};

struct ConvGeometry {
  const std::vector<int64_t>&stride, &padding, &dilation;
};

namespace detail {

inline void check_conv_tensor(const char* name, const Tensor& tensor, const Tensor& input, bool as_input) {
  check(tensor.dim() == 4, name, " must have 4 dimensions, got ", Shape{tensor});
  const ScalarType got = tensor.scalar_type(), dtype = input.scalar_type();
  if (as_input) {
    check(got == dtype, name, " must be ", dtype, " (input's dtype), got ", got);
  } else {
    check(got == dtype || got == compute_type(dtype), name, " must be ", dtype, " (input's dtype) or ",
          compute_type(dtype), ", got ", got);
  }
  check(tensor.device() == input.device(), name, " must be on input's device, but they are on different ones");
}

inline void check_pair(const char* name, const std::vector<int64_t>& pair, int64_t least) {
  check(pair.size() == 2, name, " must be two integers, got ", pair.size());
  for (const int64_t number : pair) {
    check(number >= least && number <= kMostCells, name, " must be at least ", least, " and at most ", kMostCells,
          ", got (", pair[0], ", ", pair[1], ")");
  }
}

inline int64_t conv_output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room >= 0 ? room / stride + 1 : -((stride - 1 - room) / stride) + 1;
}

}  // namespace detail

inline ConvSizes check_deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                                     const ConvGeometry& geometry, const std::optional<Tensor>& mask) {
  check(input.dim() == 4, "input must be [B, C, H, W], got ", Shape{input});
  const ScalarType dtype = input.scalar_type();
  check(is_computable(dtype), "input must be fp64, fp32, fp16 or bf16, got ", dtype);
  detail::check_conv_tensor("offset", offset, input, /*as_input=*/false);
  detail::check_conv_tensor("weight", weight, input, /*as_input=*/true);
  if (mask) detail::check_conv_tensor("mask", *mask, input, /*as_input=*/false);
  detail::check_pair("stride", geometry.stride, 1);
  detail::check_pair("padding", geometry.padding, 0);
  detail::check_pair("dilation", geometry.dilation, 1);

  ConvSizes n = {};
  n.B = input.size(0), n.C = input.size(1), n.H = input.size(2), n.W = input.size(3);
  n.C_out = weight.size(0), n.kh = weight.size(2), n.kw = weight.size(3);
  n.sy = geometry.stride[0], n.sx = geometry.stride[1];
  n.py = geometry.padding[0], n.px = geometry.padding[1];
  n.dy = geometry.dilation[0], n.dx = geometry.dilation[1];
  const int64_t most = most_rows(dtype);
  check(n.H <= most && n.W <= most, "input must have at most ", most, " rows and columns beside ", dtype, ", got ",
        Shape{input});
  check(n.H * n.W <= kMostCells, "input must have at most ", kMostCells, " cells, got ", Shape{input});
  const int64_t group_channels = weight.size(1);
  const bool divides = n.C > 0 && group_channels > 0 && n.C % group_channels == 0;
  n.groups = divides ? n.C / group_channels : 1;
  check(divides && n.C_out % n.groups == 0 && n.kh > 0 && n.kw > 0 && n.kh <= most && n.kw <= most,
        "weight must be [C_out, C/groups, kh, kw] for input ", Shape{input}, ", got ", Shape{weight});
  n.Ho = detail::conv_output_size(n.H, n.kh, n.sy, n.py, n.dy);
  n.Wo = detail::conv_output_size(n.W, n.kw, n.sx, n.px, n.dx);
  check_size("the taps of a cell", {n.C, 2, n.kh, n.kw});
  n.G = offset.size(1) / (2 * n.T());
  check(n.G > 0 && n.C % n.G == 0 && offset.size(0) == n.B && offset.size(1) == 2 * n.G * n.T() &&
            offset.size(2) == n.Ho && offset.size(3) == n.Wo,
        "offset must be [B, G*T*2, Ho, Wo] = [", n.B, ", G*", 2 * n.T(), ", ", n.Ho, ", ", n.Wo,
        "] with G dividing C = ", n.C, ", got ", Shape{offset});
  if (mask) {
    check(mask->size(0) == n.B && mask->size(1) == n.G * n.T() && mask->size(2) == n.Ho && mask->size(3) == n.Wo,
          "mask must be [B, G*T, Ho, Wo] = [", n.B, ", ", n.G * n.T(), ", ", n.Ho, ", ", n.Wo, "], got ", Shape{*mask});
  }
  check_size("input's cells", {n.B, n.H, n.W, n.C});
  check_size("the output", {n.B, n.C_out, n.Ho, n.Wo});
  check_size("a chunk of columns", {n.Ho, n.Wo, n.T(), n.C});
  return n;
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& input, const ConvSizes& n) {
  detail::check_conv_tensor("grad_output", grad_output, input, /*as_input=*/true);
  check(grad_output.size(0) == n.B && grad_output.size(1) == n.C_out && grad_output.size(2) == n.Ho &&
            grad_output.size(3) == n.Wo,
        "grad_output must be [B, C_out, Ho, Wo] = [", n.B, ", ", n.C_out, ", ", n.Ho, ", ", n.Wo, "], got ",
        Shape{grad_output});
}

namespace conv {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::reshape;
using torch::stable::select;
using torch::stable::to;
using torch::stable::transpose;

// out = a b, in batches.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack = {from(a), from(b), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // another handle of `out`
}

// sum += term, which may be narrower. The stable ABI has a difference and no sum.
inline void add(Tensor sum, const Tensor& term) { torch::stable::copy_(sum, torch::stable::subtract(sum, term, -1)); }

inline Tensor narrow(Tensor tensor, int64_t dim, int64_t begin, int64_t end) {
  return torch::stable::narrow(tensor, dim, begin, end - begin);
}

// [B, H W, C]: the channels of a cell are neighbours. No copy of an input in channels_last.
inline Tensor cells_of(const Tensor& input, const ConvSizes& n) {
  return contiguous(transpose(reshape(input, {n.B, n.C, n.H * n.W}), 1, 2));
}

// [groups, C_out/groups, T C/groups], as columns are ordered.
inline Tensor matrix_of(const Tensor& weight, const ConvSizes& n) {
  return reshape(transpose(reshape(weight, {n.C_out, n.group_channels(), n.T()}), 1, 2),
                 {n.groups, n.C_out / n.groups, n.T() * n.group_channels()});
}

// f(b, begin, end) for chunks of output cells whose columns take some `bytes`, and at most half of the image's.
template <typename F>
void for_chunks(const ConvSizes& n, const Tensor& input, int64_t bytes, const F& f) {
  const int64_t row = n.T() * n.C * static_cast<int64_t>(input.element_size());
  const int64_t step = std::max<int64_t>(1, std::min(bytes / row, (n.P() + 1) / 2));
  for (int64_t b = 0; b < n.B; ++b) {
    for (int64_t begin = 0; begin < n.P(); begin += step) f(b, begin, std::min(begin + step, n.P()));
  }
}

// sampler.columns(b, begin, end) -> [groups, cells, T C/groups] of the output cells from begin to end of an image.
template <typename Sampler>
Tensor forward(const ConvSizes& n, Sampler& sampler, const Tensor& input, const Tensor& weight) {
  Tensor output = new_empty(input, {n.B, n.groups, n.C_out / n.groups, n.P()});
  if (n.empty()) return reshape(output, {n.B, n.C_out, n.Ho, n.Wo});
  const Tensor matrix = matrix_of(weight, n);
  for_chunks(n, input, Sampler::kChunk, [&](int64_t b, int64_t begin, int64_t end) {
    const Tensor columns = sampler.columns(b, begin, end);
    multiply(narrow(select(output, 0, b), 2, begin, end), matrix, transpose(columns, 1, 2));
  });
  return reshape(output, {n.B, n.C_out, n.Ho, n.Wo});
}

struct Gradients {
  Tensor input, offset, mask;  // [B, H W, C], offset's and mask's shape; all in the compute type
};

// sampler.backward(grad_columns, b, begin, end, gradients) adds to the gradient of input and writes those of the
// points.
template <typename Sampler>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const ConvSizes& n, Sampler& sampler, const Tensor& grad_output_,
                                                    const Tensor& input, const Tensor& offset, const Tensor& weight,
                                                    const std::optional<Tensor>& mask, bool needs_grad_samples,
                                                    bool needs_grad_weight) {
  const ScalarType compute = compute_type(input.scalar_type());
  const auto none = [&] { return new_empty(input, {0}); };  // each a tensor of its own
  Gradients gradients = {none(), none(), none()};
  if (needs_grad_samples) {
    gradients.input = new_zeros(input, {n.B, n.H * n.W, n.C}, compute);
    gradients.offset = new_zeros(offset, offset.sizes(), compute);
    if (mask) gradients.mask = new_zeros(*mask, mask->sizes(), compute);
  }
  const Tensor matrix = matrix_of(weight, n);
  const Tensor sums = needs_grad_weight ? new_zeros(input, matrix.sizes(), compute) : none();
  if (!n.empty()) {
    const Tensor grad_output = reshape(grad_output_, {n.B, n.groups, n.C_out / n.groups, n.P()});
    for_chunks(n, input, Sampler::kChunk, [&](int64_t b, int64_t begin, int64_t end) {
      const Tensor grad = narrow(select(grad_output, 0, b), 2, begin, end);
      if (needs_grad_samples) {
        Tensor grad_columns = new_empty(input, {n.groups, end - begin, n.T() * n.group_channels()});
        multiply(grad_columns, transpose(grad, 1, 2), matrix);
        sampler.backward(grad_columns, b, begin, end, gradients);
      }
      if (needs_grad_weight) {
        const Tensor product = new_empty(input, matrix.sizes());
        multiply(product, grad, sampler.columns(b, begin, end));
        add(sums, product);
      }
    });
  }
  const auto finished = [](const Tensor& gradient, const Tensor& of) { return to(gradient, of.scalar_type()); };
  Tensor grad_input = none(), grad_weight = none();
  if (needs_grad_samples) {
    grad_input = reshape(contiguous(transpose(finished(gradients.input, input), 1, 2)), {n.B, n.C, n.H, n.W});
    gradients.offset = finished(gradients.offset, offset);
    if (mask) gradients.mask = finished(gradients.mask, *mask);
  }
  if (needs_grad_weight) {
    const Tensor taps_first = reshape(finished(sums, weight), {n.C_out, n.T(), n.group_channels()});
    grad_weight = reshape(contiguous(transpose(taps_first, 1, 2)), weight.sizes());
  }
  return {grad_input, gradients.offset, grad_weight, gradients.mask};
}

}  // namespace conv
}  // namespace mmdet_ddetr
