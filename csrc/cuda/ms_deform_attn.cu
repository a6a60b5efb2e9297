// Multi-scale deformable attention on CUDA: the operators. Their kernels are in sampling.h.
#include <torch/csrc/stable/library.h>

#include "sampling.h"

namespace mmdet_ddetr::cuda {
namespace {

// Gradient of the reference points: sums over heads and points, a thread for each of x and y of a query in a level.
template <typename T>
struct ReferenceGradient {
  Problem<int64_t> n;
  FusedPoints points;
  Compute<T>* grad_references;  // [B, Q, L, R]
  int64_t queries;              // B Q
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T, int64_t>)
    reference_gradient_kernel(const __grid_constant__ ReferenceGradient<T> args) {
  using A = Compute<T>;
  const Problem<int64_t>& n = args.n;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t axis = thread % 2, l = thread / 2 % n.L, query = thread / 2 / n.L;
  if (query >= args.queries) return;
  const LevelOf<int64_t> level = n.levels[l];
  const A size = static_cast<A>(axis ? level.H : level.W);
  A centre = 0, extent = 0;
  for (int64_t m = 0; m < n.M; ++m) {
    for (int64_t k = 0; k < n.K; ++k) {
      const int64_t i = 2 * (((query * n.M + m) * n.L + l) * n.K + k) + axis;
      const A grad = size * get<A>(args.points.grad_cells, i);
      centre += grad;
      with_type_of_points<T>(args.points.as_value, [&](auto zero) {
        extent += grad * get<decltype(zero)>(args.points.offsets, i) * (A(0.5) / n.K);
      });
    }
  }
  A* grad_reference = args.grad_references + (query * n.L + l) * args.points.R + axis;
  grad_reference[0] = centre;
  if (args.points.R == 4) grad_reference[2] = extent;
}

Tensor grad_references(Call& call, const Tensor& value, const FusedPoints& points) {
  const Sizes& n = call.n;
  Tensor grad = call.scratch({n.B, n.Q, n.L, n.R}, compute_type(value.scalar_type()));
  dispatch_dtype(value, [&](auto zero) {
    using T = decltype(zero);
    call.launch(
        reference_gradient_kernel<T>, n.B * n.Q * n.L * 2,
        ReferenceGradient<T>{call.problem<int64_t>(1), points, static_cast<Compute<T>*>(grad.data_ptr()), n.B * n.Q});
  });
  return grad;
}

// --- operators ------------------------------------------------------------------------------------------------------

Tensor ms_deform_attn(const Tensor& value_, const std::vector<int64_t>& spatial_shapes, const Tensor& locations_,
                      const Tensor& weights_) {
  const Sizes n = check_ms_deform_attn(value_, spatial_shapes, locations_, weights_);
  const Tensor value = dense(value_), locations = dense(locations_), weights = dense(weights_);
  Call call(value, n, spatial_shapes);
  const PlainPoints points = {locations.scalar_type() == value.scalar_type(), locations.data_ptr(), weights.data_ptr()};
  return forward(call, value, points);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output_, const Tensor& value_,
                                                           const std::vector<int64_t>& spatial_shapes,
                                                           const Tensor& locations_, const Tensor& weights_,
                                                           bool deterministic) {
  const Sizes n = check_ms_deform_attn(value_, spatial_shapes, locations_, weights_);
  check_grad_output(grad_output_, value_, n);
  if (n.empty()) return {zeros_like(value_), zeros_like(locations_), zeros_like(weights_)};
  const Tensor grad_output = dense(grad_output_), value = dense(value_), locations = dense(locations_),
               weights = dense(weights_);
  Call call(value, n, spatial_shapes);
  const Tensor grad_locations = call.scratch({n.B, n.Q, n.M, n.L, n.K, 2}, locations.scalar_type());
  const Tensor grad_weights = call.scratch({n.B, n.Q, n.M, n.L, n.K}, weights.scalar_type());
  const PlainPoints points = {locations.scalar_type() == value.scalar_type(), locations.data_ptr(), weights.data_ptr(),
                              grad_locations.data_ptr(), grad_weights.data_ptr()};
  const Tensor grad_value = backward(call, grad_output, value, points, deterministic);
  return {grad_value, grad_locations, grad_weights};
}

Tensor ms_deform_attn_fused(const Tensor& value_, const std::vector<int64_t>& spatial_shapes, const Tensor& references_,
                            const Tensor& offsets_, const Tensor& logits_) {
  const Sizes n = check_ms_deform_attn_fused(value_, spatial_shapes, references_, offsets_, logits_);
  const Tensor value = dense(value_), references = dense(references_), offsets = dense(offsets_),
               logits = dense(logits_);
  Call call(value, n, spatial_shapes);
  const FusedPoints points = {offsets.scalar_type() == value.scalar_type(), static_cast<int>(n.R),
                              references.data_ptr(), offsets.data_ptr(), logits.data_ptr()};
  return forward(call, value, points);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& grad_output_, const Tensor& value_, const std::vector<int64_t>& spatial_shapes,
    const Tensor& references_, const Tensor& offsets_, const Tensor& logits_, bool needs_grad_reference,
    bool deterministic) {
  const Sizes n = check_ms_deform_attn_fused(value_, spatial_shapes, references_, offsets_, logits_);
  check_grad_output(grad_output_, value_, n);
  const ScalarType compute = compute_type(value_.scalar_type());
  if (n.empty()) {
    return {zeros_like(value_), needs_grad_reference ? zeros_like(references_) : new_empty(value_, {0}, compute),
            zeros_like(offsets_), zeros_like(logits_)};
  }
  const Tensor grad_output = dense(grad_output_), value = dense(value_), references = dense(references_),
               offsets = dense(offsets_), logits = dense(logits_);
  Call call(value, n, spatial_shapes);
  const Tensor grad_offsets = call.scratch({n.B, n.Q, n.M, n.L, n.K, 2}, offsets.scalar_type());
  const Tensor grad_logits = call.scratch({n.B, n.Q, n.M, n.L * n.K}, logits.scalar_type());
  const Tensor grad_weights =
      logits.scalar_type() == compute ? grad_logits : call.scratch({n.B, n.Q, n.M, n.L * n.K}, compute);
  Tensor grad_cells;
  if (needs_grad_reference) grad_cells = call.scratch({n.B, n.Q, n.M, n.L, n.K, 2}, compute);
  const FusedPoints points = {offsets.scalar_type() == value.scalar_type(),
                              static_cast<int>(n.R),
                              references.data_ptr(),
                              offsets.data_ptr(),
                              logits.data_ptr(),
                              grad_offsets.data_ptr(),
                              grad_logits.data_ptr(),
                              grad_weights.data_ptr(),
                              needs_grad_reference ? grad_cells.data_ptr() : nullptr};
  const Tensor grad_value = backward(call, grad_output, value, points, deterministic);
  const Tensor grad_reference =
      needs_grad_reference ? grad_references(call, value, points) : call.scratch({0}, compute);
  return {grad_value, grad_reference, grad_offsets, grad_logits};
}

}  // namespace
}  // namespace mmdet_ddetr::cuda

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&mmdet_ddetr::cuda::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&mmdet_ddetr::cuda::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&mmdet_ddetr::cuda::ms_deform_attn_fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&mmdet_ddetr::cuda::ms_deform_attn_fused_backward));
}
