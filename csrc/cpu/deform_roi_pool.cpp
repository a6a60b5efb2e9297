// Deformable RoI pooling on the CPU: the split among threads, registration.
#include "../deform_roi_pool.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "deform_roi_pool_kernels.h"
#include "isa_choice.h"

namespace mmdet_ddetr::cpu {
namespace {

using torch::stable::parallel_for;

template <typename C>
void check_images(const Tensor& rois, int64_t B) {
  const C* roi = static_cast<const C*>(rois.const_data_ptr());
  for (int64_t r = 0; r < rois.size(0); ++r, roi += 5) {
    check(*roi >= 0 && *roi < static_cast<C>(B), "rois[:, 0] must be the numbers of images, 0 to ", B - 1, ", got ",
          *roi, " for RoI ", r);
  }
}

struct Pooling {
  static constexpr int64_t kLine = 16;

  static PoolInput input(const pool::Arguments& arguments) {
    const auto& [n, rule, planes, rois, offset] = arguments;
    if (arguments.compute() == ScalarType::Double) {
      check_images<double>(rois, n.B);
    } else {
      check_images<float>(rois, n.B);
    }
    return {n, rule, planes.const_data_ptr(), rois.const_data_ptr(), offset ? offset->const_data_ptr() : nullptr};
  }

  static const PoolKernels& kernels(const pool::Arguments& arguments) {
    return MMDET_DDETR_CHOSEN(_pool_kernels)(arguments.planes.scalar_type());
  }

  // The smallest share of a thread, in RoIs: some 10 us.
  static int64_t grain(const PoolSizes& n) { return std::max<int64_t>(1, (1 << 14) / (n.P() * n.C_out())); }

  static void forward(const pool::Arguments& arguments, const Tensor& rows) {
    const PoolInput in = input(arguments);
    const PoolKernels& kernels = Pooling::kernels(arguments);
    void* to = rows.mutable_data_ptr();
    parallel_for(0, in.n.R, grain(in.n), [&](int64_t begin, int64_t end) { kernels.forward(in, to, begin, end); });
  }

  static void backward(const pool::Arguments& arguments, const Tensor& grad_rows, Tensor* grad_planes,
                       Tensor* grad_offset, bool /*deterministic*/) {
    const PoolInput in = input(arguments);
    const PoolKernels& kernels = Pooling::kernels(arguments);
    const void* grad = grad_rows.const_data_ptr();
    if (grad_offset) {
      void* to = grad_offset->mutable_data_ptr();
      parallel_for(0, in.n.R, grain(in.n),
                   [&](int64_t begin, int64_t end) { kernels.backward_offset(in, grad, to, begin, end); });
    }
    if (!grad_planes) return;
    // Threads share out the planes and, within a plane, cache lines of channels: a cell sums in the same order for any
    // number of threads.
    void* sums = grad_planes->mutable_data_ptr();
    const int64_t D = in.n.D(), lines = (D + kLine - 1) / kLine;
    parallel_for(0, in.n.planes() * lines, 1, [&](int64_t first, int64_t last) {
      for (int64_t plane = first / lines; plane * lines < last; ++plane) {
        const int64_t begin = std::max(first - plane * lines, int64_t{0}), end = std::min(last - plane * lines, lines);
        kernels.backward_plane(in, grad, sums, plane, begin * kLine, std::min(end * kLine, D));
      }
    });
  }
};

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&pool::forward<Pooling>));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&pool::backward<Pooling>));
}

}  // namespace
}  // namespace mmdet_ddetr::cpu
