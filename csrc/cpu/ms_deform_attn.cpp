// Multi-scale deformable attention on the CPU: checks, the split among threads, registration.
#include "../ms_deform_attn.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <optional>

#include "../tensors.h"
#include "isa_choice.h"
#include "ms_deform_attn_kernels.h"

namespace mmdet_ddetr::cpu {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::parallel_for;

using Shapes = std::vector<int64_t>;

// The smallest share of a thread, in samples: some 40 us, as long as it takes to wake one that sleeps.
constexpr int64_t kGrain = 8192;

int64_t queries_per_grain(const Sizes& n) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, n.M * n.L * n.K));
}

// Regions of grad_value: heads of images, cut finer only where the threads would not have a few each, because every cut
// repeats the arithmetic of the points. However they are cut, a cell sums in the same order.
std::vector<ValueRegion> cut(const Sizes& n, int64_t threads, int64_t channels) {
  const int64_t wanted = threads == 1 ? 1 : 4 * threads;
  const bool cut_levels = n.B * n.M < wanted, cut_channels = cut_levels && n.B * n.M * n.L < wanted;
  const int64_t level_step = cut_levels ? 1 : n.L, d_step = cut_channels ? channels : n.D;
  std::vector<ValueRegion> regions;
  for (int64_t b = 0; b < n.B; ++b) {
    for (int64_t m = 0; m < n.M; ++m) {
      for (int64_t l = 0; l < n.L; l += level_step) {
        for (int64_t d = 0; d < n.D; d += d_step) {
          regions.push_back({b, m, l, std::min(l + level_step, n.L), d, std::min(d + d_step, n.D)});
        }
      }
    }
  }
  return regions;
}

// The tensors of a call, contiguous, and their pointers for the kernels. An empty optional is what the op does not
// have.
class Call {
 public:
  Call(const Sizes& n, const Shapes& spatial_shapes, const Tensor& value, const std::optional<Tensor>& reference_points,
       const Tensor& points, const Tensor& weights, const std::optional<Tensor>& grad_output = std::nullopt)
      : n_(n),
        levels_(levels_of(spatial_shapes)),
        value_(compact(value)),
        points_(compact(points)),
        weights_(compact(weights)),
        kernels_(MMDET_DDETR_CHOSEN(_kernels)(value.scalar_type())) {
    if (reference_points) reference_points_ = compact(*reference_points);
    if (grad_output) grad_output_ = compact(*grad_output);
    in_ = {n_,
           levels_.data(),
           value_.const_data_ptr(),
           reference_points_ ? reference_points_->const_data_ptr() : nullptr,
           points_.const_data_ptr(),
           weights_.const_data_ptr(),
           grad_output_ ? grad_output_->const_data_ptr() : nullptr,
           points_.scalar_type() == value_.scalar_type()};
  }

  Tensor forward() const {
    if (n_.empty()) return new_zeros(value_, {n_.B, n_.Q, n_.M * n_.D});
    Tensor output = new_empty(value_, {n_.B, n_.Q, n_.M * n_.D});
    void* to = output.mutable_data_ptr();
    parallel_for(0, n_.B * n_.Q, queries_per_grain(n_),
                 [&](int64_t begin, int64_t end) { kernels_.forward(in_, to, begin, end); });
    return output;
  }

  // Gradients of value, points, weights and, if asked for, reference_points (else an empty tensor).
  std::array<Tensor, 4> backward(bool needs_grad_reference) const {
    if (n_.empty()) {
      return {zeros_like(value_), zeros_like(points_), zeros_like(weights_),
              needs_grad_reference ? zeros_like(*reference_points_) : no_reference()};
    }
    Tensor value = new_empty(value_, value_.sizes()), points = new_empty(points_, points_.sizes()),
           weights = new_empty(weights_, weights_.sizes()),
           reference =
               needs_grad_reference ? new_empty(*reference_points_, reference_points_->sizes()) : no_reference();
    const Gradients gradients = {value.mutable_data_ptr(), points.mutable_data_ptr(), weights.mutable_data_ptr(),
                                 needs_grad_reference ? reference.mutable_data_ptr() : nullptr};
    parallel_for(0, n_.B * n_.Q, queries_per_grain(n_),
                 [&](int64_t begin, int64_t end) { kernels_.backward_points(in_, gradients, begin, end); });
    const std::vector<ValueRegion> regions = cut(n_, torch::stable::get_num_threads(), kernels_.channels);
    parallel_for(0, regions.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels_.backward_value(in_, gradients.value, regions[i]);
    });
    return {value, points, weights, reference};
  }

 private:
  Tensor no_reference() const { return new_empty(value_, {0}, compute_type(value_.scalar_type())); }

  Sizes n_;
  std::vector<Level> levels_;
  Tensor value_, points_, weights_;
  std::optional<Tensor> reference_points_, grad_output_;
  const Kernels& kernels_;
  Input in_;
};

Tensor ms_deform_attn(const Tensor& value, const Shapes& spatial_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
  const Sizes n = check_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights);
  return Call(n, spatial_shapes, value, std::nullopt, sampling_locations, attention_weights).forward();
}

// The result is the same for any number of threads, deterministic or not.
std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                                           const Shapes& spatial_shapes,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights, bool /*deterministic*/) {
  const Sizes n = check_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, n);
  const Call call(n, spatial_shapes, value, std::nullopt, sampling_locations, attention_weights, grad_output);
  const auto [grad_value, grad_points, grad_weights, _] = call.backward(/*needs_grad_reference=*/false);
  return {grad_value, grad_points, grad_weights};
}

Tensor ms_deform_attn_fused(const Tensor& value, const Shapes& spatial_shapes, const Tensor& reference_points,
                            const Tensor& sampling_offsets, const Tensor& attention_logits) {
  const Sizes n =
      check_ms_deform_attn_fused(value, spatial_shapes, reference_points, sampling_offsets, attention_logits);
  return Call(n, spatial_shapes, value, reference_points, sampling_offsets, attention_logits).forward();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& grad_output, const Tensor& value, const Shapes& spatial_shapes, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, bool needs_grad_reference, bool /*deterministic*/) {
  const Sizes n =
      check_ms_deform_attn_fused(value, spatial_shapes, reference_points, sampling_offsets, attention_logits);
  check_grad_output(grad_output, value, n);
  const Call call(n, spatial_shapes, value, reference_points, sampling_offsets, attention_logits, grad_output);
  const auto [grad_value, grad_points, grad_weights, grad_reference] = call.backward(needs_grad_reference);
  return {grad_value, grad_reference, grad_points, grad_weights};
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&ms_deform_attn_fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ms_deform_attn_fused_backward));
}

}  // namespace
}  // namespace mmdet_ddetr::cpu
