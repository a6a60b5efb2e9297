// Sizes and argument checks of multi-scale deformable attention, shared by the CPU and CUDA kernels.
//
//   value               [B, S, M, D]        fp64, fp32, fp16 or bf16
//   spatial_shapes      [2 L]               H0, W0, H1, W1, ... ; sum of H W = S
//   sampling_locations  [B, Q, M, L, K, 2]  (x, y), 1.0 = far edge of the map
//   attention_weights   [B, Q, M, L, K]
//   reference_points    [B, Q, L, 2 or 4]   (cx, cy) or (cx, cy, w, h)
//   sampling_offsets    [B, Q, M, L, K, 2]
//   attention_logits    [B, Q, M, L K]
//   output              [B, Q, M D]         in value's dtype
//
// Sums and coordinates are computed in the *compute type* of value: fp64 for fp64, else fp32. The other tensors have
// value's dtype or the compute type; the two [B, Q, M, ...] tensors of an op share one dtype. Gradients have the dtype
// of what they are the gradient of. Any size may be 0; sizes.h says how large it may be.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "check.h"
#include "compute_type.h"
#include "sizes.h"

namespace mmdet_ddetr {

using torch::stable::Tensor;

// Once checked, no product of the sizes that an op needs can overflow.
struct Sizes {
  int64_t B;      // images
  int64_t S;      // cells of all levels together
  int64_t M;      // heads
  int64_t D;      // channels of a head
  int64_t Q;      // queries
  int64_t L;      // levels
  int64_t K;      // points of a head in a level
  int64_t R = 0;  // coordinates of a reference: 2 (point) or 4 (box); 0 where the op takes locations

  // Is nothing sampled, or nothing kept of it? Then output and gradients are zero.
  bool empty() const { return B == 0 || Q == 0 || M == 0 || D == 0 || L == 0 || K == 0; }
};

// Where a level's map lies in S: row y, column x is cell start + y W + x. A map without cells has neither rows nor
// columns, so that no offset beside it is large.
struct Level {
  int64_t H, W, start;
};

inline std::vector<Level> levels_of(const std::vector<int64_t>& spatial_shapes) {
  std::vector<Level> levels;
  int64_t start = 0;
  for (size_t i = 0; i + 1 < spatial_shapes.size(); i += 2) {
    const int64_t H = spatial_shapes[i], W = spatial_shapes[i + 1], cells = H * W;
    levels.push_back({cells ? H : 0, cells ? W : 0, start});
    start += cells;
  }
  return levels;
}

// Contiguous.
inline Tensor zeros_like(const Tensor& tensor) { return torch::stable::new_zeros(tensor, tensor.sizes()); }

namespace detail {

inline void check_dtype(const char* name, const Tensor& tensor, const Tensor& value) {
  const ScalarType got = tensor.scalar_type(), dtype = value.scalar_type();
  check(got == dtype || got == compute_type(dtype), name, " must be ", dtype, " (value's dtype) or ",
        compute_type(dtype), ", got ", got);
}

inline void check_device(const char* name, const Tensor& tensor, const Tensor& value) {
  check(tensor.device() == value.device(), name, " must be on value's device, but they are on different ones");
}

// value and spatial_shapes; Q and K are left to the caller.
inline Sizes check_value(const Tensor& value, const std::vector<int64_t>& spatial_shapes) {
  check(value.dim() == 4, "value must be [B, S, M, D], got ", Shape{value});
  const ScalarType dtype = value.scalar_type();
  check(is_computable(dtype), "value must be fp64, fp32, fp16 or bf16, got ", dtype);
  check(spatial_shapes.size() % 2 == 0, "spatial_shapes must hold (H, W) of each level, got ", spatial_shapes.size(),
        " numbers");
  int64_t cells = 0;
  for (size_t i = 0; i < spatial_shapes.size(); i += 2) {
    const int64_t H = spatial_shapes[i], W = spatial_shapes[i + 1], most = most_rows(dtype);
    check(H >= 0 && W >= 0, "spatial_shapes must not be negative, got (", H, ", ", W, ")");
    check(H <= most && W <= most, "spatial_shapes must be at most ", most, " in height and width beside a value of ",
          dtype, ", got (", H, ", ", W, ")");
    cells += H * W;
    check(cells <= kMostCells, "spatial_shapes must give at most ", kMostCells, " cells, got ", cells, " up to (", H,
          ", ", W, ")");
  }
  check(cells == value.size(1), "spatial_shapes give ", cells, " cells, but value ", Shape{value}, " has ",
        value.size(1));
  return {value.size(0), value.size(1), value.size(2), value.size(3), 0, (int64_t)spatial_shapes.size() / 2, 0};
}

// points [B, Q, M, L, K, 2] fixes Q and K; weights is [B, Q, M, L, K], or [B, Q, M, L K] if flat.
inline void check_points(Sizes& n, const Tensor& value, const char* points_name, const Tensor& points,
                         const char* weights_name, const Tensor& weights, bool flat) {
  check(points.dim() == 6 && points.size(0) == n.B && points.size(2) == n.M && points.size(3) == n.L &&
            points.size(5) == 2,
        points_name, " must be [B, Q, M, L, K, 2] = [", n.B, ", Q, ", n.M, ", ", n.L, ", K, 2], got ", Shape{points});
  n.Q = points.size(1);
  n.K = points.size(4);
  check_size("the output", {n.B, n.Q, n.M, n.D});
  check_size("a cell of value", {n.M, n.D});
  check_size("a row of attention weights", {n.L, n.K});
  const bool common =
      weights.dim() == (flat ? 4 : 5) && weights.size(0) == n.B && weights.size(1) == n.Q && weights.size(2) == n.M;
  if (flat) {
    check(common && weights.size(3) == n.L * n.K, weights_name, " must be [B, Q, M, L*K] = [", n.B, ", ", n.Q, ", ",
          n.M, ", ", n.L * n.K, "], got ", Shape{weights});
  } else {
    check(common && weights.size(3) == n.L && weights.size(4) == n.K, weights_name, " must be [B, Q, M, L, K] = [", n.B,
          ", ", n.Q, ", ", n.M, ", ", n.L, ", ", n.K, "], got ", Shape{weights});
  }
  check_dtype(points_name, points, value);
  check_dtype(weights_name, weights, value);
  check(points.scalar_type() == weights.scalar_type(), points_name, " and ", weights_name,
        " must have the same dtype, got ", points.scalar_type(), " and ", weights.scalar_type());
  check_device(points_name, points, value);
  check_device(weights_name, weights, value);
}

}  // namespace detail

inline Sizes check_ms_deform_attn(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                                  const Tensor& sampling_locations, const Tensor& attention_weights) {
  Sizes n = detail::check_value(value, spatial_shapes);
  detail::check_points(n, value, "sampling_locations", sampling_locations, "attention_weights", attention_weights,
                       /*flat=*/false);
  return n;
}

inline Sizes check_ms_deform_attn_fused(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                                        const Tensor& reference_points, const Tensor& sampling_offsets,
                                        const Tensor& attention_logits) {
  Sizes n = detail::check_value(value, spatial_shapes);
  detail::check_points(n, value, "sampling_offsets", sampling_offsets, "attention_logits", attention_logits,
                       /*flat=*/true);
  const Tensor& r = reference_points;
  check(r.dim() == 4 && r.size(0) == n.B && r.size(1) == n.Q && r.size(2) == n.L && (r.size(3) == 2 || r.size(3) == 4),
        "reference_points must be [B, Q, L, 2 or 4] = [", n.B, ", ", n.Q, ", ", n.L, ", 2 or 4], got ", Shape{r});
  check(r.scalar_type() == compute_type(value.scalar_type()), "reference_points must be ",
        compute_type(value.scalar_type()), " beside a value of ", value.scalar_type(), ", got ", r.scalar_type());
  detail::check_device("reference_points", r, value);
  n.R = r.size(3);
  return n;
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& value, const Sizes& n) {
  check(grad_output.dim() == 3 && grad_output.size(0) == n.B && grad_output.size(1) == n.Q &&
            grad_output.size(2) == n.M * n.D,
        "grad_output must be [B, Q, M*D] = [", n.B, ", ", n.Q, ", ", n.M * n.D, "], got ", Shape{grad_output});
  check(grad_output.scalar_type() == value.scalar_type(), "grad_output must be ", value.scalar_type(),
        " (value's dtype), got ", grad_output.scalar_type());
  detail::check_device("grad_output", grad_output, value);
}

}  // namespace mmdet_ddetr
