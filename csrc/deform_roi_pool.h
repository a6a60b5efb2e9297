// Deformable RoI pooling, plain and position-sensitive: sizes, argument checks and the order of the data, shared by the
// CPU and CUDA kernels. roi_bins.h has the maths.
//
//   input   [B, C_out g g, H, W]  fp64, fp32, fp16 or bf16; channel (o g + u) g + v belongs to row u and column v of a
//                             g x g grid that is laid over each RoI
//   rois    [R, 5]            image, x1, y1, x2, y2
//   offset  [R, K 2, h, w]    (x, y) of each bin for each of K sets of C_out/K channels, in RoIs; absent: 0
//   output  [R, C_out, h, w]
//
// rois and offset have input's dtype or the compute type (fp64 for fp64, else fp32), in which coordinates and samples
// are computed. Gradients have the dtype of what they are the gradient of; rois have none.
//
// The kernels see input as planes [B, g g K, H W, D] with D = C_out/K, and output as rows [R, h w, K, D].
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "compute_type.h"
#include "inline.h"
#include "roi_bins.h"
#include "sizes.h"
#include "tensors.h"

namespace mmdet_ddetr {

using torch::stable::Tensor;

// Once checked, no product of the sizes that the op needs can overflow.
struct PoolSizes {
  int64_t B, C, H, W;
  int64_t R;
  int64_t h, w;  // bins
  int64_t g;     // rows and columns of the grid
  int64_t K;     // sets of channels with an offset of their own

  MMDET_DDETR_INLINE int64_t P() const { return h * w; }
  MMDET_DDETR_INLINE int64_t C_out() const { return C / (g * g); }
  MMDET_DDETR_INLINE int64_t D() const { return C_out() / K; }
  MMDET_DDETR_INLINE int64_t planes() const { return g * g * K; }
  // of a set of channels in the grid's cell that has bin (row, column)
  MMDET_DDETR_INLINE int64_t plane_of(int64_t row, int64_t column, int64_t k) const {
    return (row * g / h * g + column * g / w) * K + k;
  }
};

// The op's arguments other than tensors.
struct PoolOptions {
  const std::vector<int64_t>& output_size;  // h, w
  double spatial_scale;
  int64_t sampling_ratio;
  double gamma;
  int64_t group_size;
  bool rounded;

  PoolRule<double> rule() const { return {spatial_scale, gamma, sampling_ratio > 0 ? sampling_ratio : 0, rounded}; }
};

namespace detail {

inline void check_pool_tensor(const char* name, const Tensor& tensor, const Tensor& input) {
  const ScalarType got = tensor.scalar_type(), dtype = input.scalar_type();
  check(got == dtype || got == compute_type(dtype), name, " must be ", dtype, " (input's dtype) or ",
        compute_type(dtype), ", got ", got);
  check(tensor.device() == input.device(), name, " must be on input's device, but they are on different ones");
}

}  // namespace detail

constexpr int64_t kMostSamplingRatio = 1024;

inline PoolSizes check_deform_roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                                       const PoolOptions& options) {
  check(input.dim() == 4, "input must be [B, C, H, W], got ", Shape{input});
  const ScalarType dtype = input.scalar_type();
  check(is_computable(dtype), "input must be fp64, fp32, fp16 or bf16, got ", dtype);
  check(rois.dim() == 2 && rois.size(1) == 5, "rois must be [R, 5], got ", Shape{rois});
  detail::check_pool_tensor("rois", rois, input);
  if (offset) detail::check_pool_tensor("offset", *offset, input);
  check(options.output_size.size() == 2, "output_size must be two integers, got ", options.output_size.size());
  for (const int64_t number : options.output_size) {
    check(number >= 1 && number <= kMostCells, "output_size must be at least 1 and at most ", kMostCells, ", got (",
          options.output_size[0], ", ", options.output_size[1], ")");
  }
  check(options.spatial_scale > 0 && std::isfinite(options.spatial_scale),
        "spatial_scale must be a positive number, got ", options.spatial_scale);
  check(std::isfinite(options.gamma), "gamma must be finite, got ", options.gamma);
  check(options.sampling_ratio <= kMostSamplingRatio, "sampling_ratio must be at most ", kMostSamplingRatio, ", got ",
        options.sampling_ratio);
  check(!options.rounded || options.sampling_ratio > 0, "sampling_ratio must be positive, got ",
        options.sampling_ratio);

  PoolSizes n = {};
  n.B = input.size(0), n.C = input.size(1), n.H = input.size(2), n.W = input.size(3);
  n.R = rois.size(0);
  n.h = options.output_size[0], n.w = options.output_size[1];
  n.g = options.group_size;
  check(n.g >= 1 && n.g <= n.C && n.C % (n.g * n.g) == 0, "group_size must be positive and its square divide the ", n.C,
        " channels of input, got ", n.g);
  const int64_t most = most_rows(dtype);
  check(n.H <= most && n.W <= most, "input must have at most ", most, " rows and columns beside ", dtype, ", got ",
        Shape{input});
  check(n.H * n.W <= kMostCells, "input must have at most ", kMostCells, " cells, got ", Shape{input});
  n.K = 1;
  if (offset) {
    const bool fits = offset->dim() == 4 && offset->size(0) == n.R && offset->size(2) == n.h && offset->size(3) == n.w;
    const int64_t twice = fits ? offset->size(1) : 0;
    check(fits && twice > 0 && twice % 2 == 0 && n.C_out() % (twice / 2) == 0, "offset must be [R, 2*K, h, w] = [", n.R,
          ", 2*K, ", n.h, ", ", n.w, "] with K dividing ", n.C_out(), " channels, got ", Shape{*offset});
    n.K = twice / 2;
  }
  check_size("input's cells", {n.B, n.H, n.W, n.C});
  check_size("the output", {n.R, n.C, n.h, n.w});
  check_size("the offsets", {n.R, 2, n.K, n.h, n.w});
  return n;
}

inline void check_pool_grad_output(const Tensor& grad_output, const Tensor& input, const PoolSizes& n) {
  check(grad_output.dim() == 4 && grad_output.size(0) == n.R && grad_output.size(1) == n.C_out() &&
            grad_output.size(2) == n.h && grad_output.size(3) == n.w,
        "grad_output must be [R, C_out, h, w] = [", n.R, ", ", n.C_out(), ", ", n.h, ", ", n.w, "], got ",
        Shape{grad_output});
  check(grad_output.scalar_type() == input.scalar_type(), "grad_output must be ", input.scalar_type(),
        " (input's dtype), got ", grad_output.scalar_type());
  check(grad_output.device() == input.device(),
        "grad_output must be on input's device, but they are on different ones");
}

namespace pool {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::reshape;
using torch::stable::to;
using torch::stable::transpose;

// No copy of an input in channels_last with g = K = 1.
inline Tensor planes_of(const Tensor& input, const PoolSizes& n) {
  const Tensor planes = reshape(input, {n.B, n.K, n.D(), n.g * n.g, n.H * n.W});
  return contiguous(transpose(transpose(transpose(planes, 2, 4), 2, 3), 1, 2));
}

inline Tensor from_planes(const Tensor& planes, const PoolSizes& n) {
  return reshape(contiguous(transpose(transpose(transpose(planes, 1, 2), 2, 3), 2, 4)), {n.B, n.C, n.H, n.W});
}

inline Tensor rows_of(const Tensor& output, const PoolSizes& n) {
  return contiguous(transpose(reshape(output, {n.R, n.C_out(), n.P()}), 1, 2));
}

inline Tensor from_rows(const Tensor& rows, const PoolSizes& n) {
  return reshape(contiguous(transpose(reshape(rows, {n.R, n.P(), n.C_out()}), 1, 2)), {n.R, n.C_out(), n.h, n.w});
}

// What the kernels read, all of it contiguous.
struct Arguments {
  PoolSizes n;
  PoolRule<double> rule;
  Tensor planes;                 // [B, g g, K, H W, D]
  Tensor rois;                   // [R, 5], compute type
  std::optional<Tensor> offset;  // [R, K 2, h, w], compute type

  Arguments(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset, const PoolOptions& options)
      : n(check_deform_roi_pool(input, rois, offset, options)),
        rule(options.rule()),
        planes(planes_of(input, n)),
        rois(exact(rois)) {
    if (offset) this->offset = exact(*offset);
  }

  ScalarType compute() const { return compute_type(planes.scalar_type()); }
};

using Integers = std::vector<int64_t>;

// The op, given a device's Kernels::forward(arguments, rows), which writes the rows.
template <typename Kernels>
Tensor forward(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
               const Integers& output_size, double spatial_scale, int64_t sampling_ratio, double gamma,
               int64_t group_size, bool rounded) {
  const Arguments arguments(input, rois, offset,
                            {output_size, spatial_scale, sampling_ratio, gamma, group_size, rounded});
  const PoolSizes& n = arguments.n;
  const Tensor rows = new_empty(arguments.planes, {n.R, n.P(), n.K, n.D()});
  Kernels::forward(arguments, rows);
  return from_rows(rows, n);
}

// Kernels::backward(arguments, grad_rows, grad_planes, grad_offset, deterministic) adds to the gradient of the planes
// and writes that of the offset, both in the compute type; null: not asked for.
template <typename Kernels>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& rois,
                                    const std::optional<Tensor>& offset, const Integers& output_size,
                                    double spatial_scale, int64_t sampling_ratio, double gamma, int64_t group_size,
                                    bool rounded, bool needs_grad_input, bool needs_grad_offset, bool deterministic) {
  const Arguments arguments(input, rois, offset,
                            {output_size, spatial_scale, sampling_ratio, gamma, group_size, rounded});
  const PoolSizes& n = arguments.n;
  check_pool_grad_output(grad_output, input, n);
  const bool with_offset = needs_grad_offset && offset;
  Tensor grad_input = new_empty(input, {0}), grad_offset = new_empty(input, {0});  // each a tensor of its own
  if (needs_grad_input) grad_input = new_zeros(input, arguments.planes.sizes(), arguments.compute());
  if (with_offset) grad_offset = new_empty(*offset, offset->sizes(), arguments.compute());
  Kernels::backward(arguments, rows_of(grad_output, n), needs_grad_input ? &grad_input : nullptr,
                    with_offset ? &grad_offset : nullptr, deterministic);
  if (needs_grad_input) grad_input = from_planes(to(grad_input, input.scalar_type()), n);
  if (with_offset) grad_offset = to(grad_offset, offset->scalar_type());
  return {grad_input, grad_offset};
}

}  // namespace pool
}  // namespace mmdet_ddetr
