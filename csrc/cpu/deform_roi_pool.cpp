// Deformable RoI pooling on the CPU: the split among threads, registration.
#include "../deform_roi_pool.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "deform_roi_pool_kernels.h"
#include "isa_choice.h"

namespace mmdet_ddetr::cpu {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::parallel_for;

template <typename C>
void check_images(const Tensor& rois, int64_t B) {
  const C* roi = static_cast<const C*>(rois.const_data_ptr());
  for (int64_t r = 0; r < rois.size(0); ++r, roi += 5) {
    check(*roi >= 0 && *roi < static_cast<C>(B), "rois[:, 0] must be the numbers of images, 0 to ", B - 1, ", got ",
          *roi, " for RoI ", r);
  }
}

class Pooling {
 public:
  Pooling(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset, const PoolOptions& options)
      : n_(check_deform_roi_pool(input, rois, offset, options)),
        rule_(options.rule()),
        planes_(pool::planes_of(input, n_)),
        rois_(exact(rois)),
        kernels_(MMDET_DDETR_CHOSEN(_pool_kernels)(input.scalar_type())) {
    if (offset) offset_ = exact(*offset);
    if (compute_type(input.scalar_type()) == ScalarType::Double) {
      check_images<double>(rois_, n_.B);
    } else {
      check_images<float>(rois_, n_.B);
    }
  }

  const PoolSizes& sizes() const { return n_; }

  Tensor forward() const {
    Tensor rows = new_empty(planes_, {n_.R, n_.P(), n_.K, n_.D()});
    const PoolInput in = this->input();
    void* to = rows.mutable_data_ptr();
    parallel_for(0, n_.R, grain(), [&](int64_t begin, int64_t end) { kernels_.forward(in, to, begin, end); });
    return pool::from_rows(rows, n_);
  }

  // In the compute type.
  Tensor backward_offset(const Tensor& grad_rows) const {
    Tensor grad_offset = new_empty(*offset_, offset_->sizes());
    const PoolInput in = this->input();
    const void* grad = grad_rows.const_data_ptr();
    void* to = grad_offset.mutable_data_ptr();
    parallel_for(0, n_.R, grain(),
                 [&](int64_t begin, int64_t end) { kernels_.backward_offset(in, grad, to, begin, end); });
    return grad_offset;
  }

  // In the compute type. Threads share out the planes and, within a plane, cache lines of channels: a cell sums in the
  // same order for any number of threads.
  Tensor backward_input(const Tensor& grad_rows) const {
    Tensor sums = new_zeros(planes_, planes_.sizes(), compute_type(planes_.scalar_type()));
    const PoolInput in = this->input();
    const void* grad = grad_rows.const_data_ptr();
    void* to = sums.mutable_data_ptr();
    const int64_t D = n_.D(), lines = (D + kLine - 1) / kLine;
    parallel_for(0, n_.planes() * lines, 1, [&](int64_t first, int64_t last) {
      for (int64_t plane = first / lines; plane * lines < last; ++plane) {
        const int64_t begin = std::max(first - plane * lines, int64_t{0}), end = std::min(last - plane * lines, lines);
        kernels_.backward_plane(in, grad, to, plane, begin * kLine, std::min(end * kLine, D));
      }
    });
    return sums;
  }

 private:
  static constexpr int64_t kLine = 16;

  // The smallest share of a thread, in RoIs: some 10 us.
  int64_t grain() const { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, n_.P() * n_.C_out())); }

  PoolInput input() const {
    return {n_, rule_, planes_.const_data_ptr(), rois_.const_data_ptr(), offset_ ? offset_->const_data_ptr() : nullptr};
  }

  const PoolSizes n_;
  const PoolRule<double> rule_;
  const Tensor planes_, rois_;
  std::optional<Tensor> offset_;
  const PoolKernels& kernels_;
};

using Integers = std::vector<int64_t>;

Tensor deform_roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                       const Integers& output_size, double spatial_scale, int64_t sampling_ratio, double gamma,
                       int64_t group_size, bool rounded) {
  return Pooling(input, rois, offset, {output_size, spatial_scale, sampling_ratio, gamma, group_size, rounded})
      .forward();
}

std::tuple<Tensor, Tensor> deform_roi_pool_backward(const Tensor& grad_output, const Tensor& input, const Tensor& rois,
                                                    const std::optional<Tensor>& offset, const Integers& output_size,
                                                    double spatial_scale, int64_t sampling_ratio, double gamma,
                                                    int64_t group_size, bool rounded, bool needs_grad_input,
                                                    bool needs_grad_offset, bool /*deterministic*/) {
  const Pooling pooling(input, rois, offset, {output_size, spatial_scale, sampling_ratio, gamma, group_size, rounded});
  const PoolSizes& n = pooling.sizes();
  check_pool_grad_output(grad_output, input, n);
  const Tensor grad_rows = pool::rows_of(grad_output, n);
  Tensor grad_input = new_empty(input, {0}), grad_offset = new_empty(input, {0});
  if (needs_grad_input) {
    grad_input = pool::from_planes(torch::stable::to(pooling.backward_input(grad_rows), input.scalar_type()), n);
  }
  if (needs_grad_offset && offset) {
    grad_offset = torch::stable::to(pooling.backward_offset(grad_rows), offset->scalar_type());
  }
  return {grad_input, grad_offset};
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&deform_roi_pool));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&deform_roi_pool_backward));
}

}  // namespace
}  // namespace mmdet_ddetr::cpu
