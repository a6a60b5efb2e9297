// Deformable convolution on CUDA: columns by the sampling kernels of attention, products by PyTorch.
#include <torch/csrc/stable/library.h>

#include "../deform_conv.h"
#include "sampling.h"

namespace mmdet_ddetr::cuda {
namespace {

static_assert(!MMDET_DDETR_NARROW_SUMS, "the gradient of input is summed in the compute type");

class Sampler {
 public:
  static constexpr int64_t kChunk = 1 << 26;  // bytes of columns: enough to fill a GPU

  Sampler(const ConvSizes& n, const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask,
          bool deterministic = false)
      : n_(n), deterministic_(deterministic), cells_(conv::cells_of(input, n)), offset_(exact(offset)) {
    if (mask) mask_ = exact(*mask);
  }

  Tensor columns(int64_t b, int64_t begin, int64_t end) const {
    const Tensor value = conv::select(cells_, 0, b);
    Call call(value, sizes(begin, end), {n_.H, n_.W});
    const Tensor columns = forward(call, value, points(b, begin));  // [1, cells T, C]
    const Tensor by_group = conv::reshape(columns, {end - begin, n_.T(), n_.groups, n_.group_channels()});
    return conv::reshape(conv::transpose(conv::transpose(by_group, 1, 2), 0, 1),
                         {n_.groups, end - begin, n_.T() * n_.group_channels()});
  }

  void backward(const Tensor& grad_columns, int64_t b, int64_t begin, int64_t end, conv::Gradients& sums) const {
    const Tensor by_group = conv::reshape(grad_columns, {n_.groups, end - begin, n_.T(), n_.group_channels()});
    const Tensor grad = dense(conv::transpose(conv::transpose(by_group, 0, 1), 1, 2));
    const Tensor value = conv::select(cells_, 0, b), sum = conv::select(sums.input, 0, b);
    Call call(value, sizes(begin, end), {n_.H, n_.W});
    ConvPoints points = this->points(b, begin);
    points.grad_offsets = conv::select(sums.offset, 0, b).data_ptr();
    if (mask_) points.grad_mask = conv::select(sums.mask, 0, b).data_ptr();
    backward_by_atomics(call, grad, value, points, deterministic_ ? nullptr : sum.data_ptr());
    if (deterministic_) {
      conv::add(sum, conv::reshape(reproducible_grad_value(call, grad, value, points), {n_.H * n_.W, n_.C}));
    }
  }

 private:
  Sizes sizes(int64_t begin, int64_t end) const {
    return {/*B=*/1, n_.H * n_.W, n_.G, n_.C / n_.G, (end - begin) * n_.T(), /*L=*/1, /*K=*/1};
  }

  ConvPoints points(int64_t b, int64_t first) const {
    ConvPoints p = {n_.T(), n_.P(), n_.Wo, n_.kw, n_.sy, n_.sx, n_.py, n_.px, n_.dy, n_.dx, first};
    p.offsets = conv::select(offset_, 0, b).data_ptr();
    p.mask = mask_ ? conv::select(*mask_, 0, b).data_ptr() : nullptr;
    return p;
  }

  const ConvSizes n_;
  const bool deterministic_;
  const Tensor cells_, offset_;
  std::optional<Tensor> mask_;
};

using Integers = std::vector<int64_t>;

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight, const Integers& stride,
                     const Integers& padding, const Integers& dilation, const std::optional<Tensor>& mask) {
  const ConvSizes n = check_deform_conv2d(input, offset, weight, {stride, padding, dilation}, mask);
  Sampler sampler(n, input, offset, mask);
  return conv::forward(n, sampler, input, weight);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight, const Integers& stride,
    const Integers& padding, const Integers& dilation, const std::optional<Tensor>& mask, bool needs_grad_samples,
    bool needs_grad_weight, bool deterministic) {
  const ConvSizes n = check_deform_conv2d(input, offset, weight, {stride, padding, dilation}, mask);
  check_grad_output(grad_output, input, n);
  Sampler sampler(n, input, offset, mask, deterministic);
  return conv::backward(n, sampler, grad_output, input, offset, weight, mask, needs_grad_samples, needs_grad_weight);
}

}  // namespace
}  // namespace mmdet_ddetr::cuda

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CUDA, m) {
  m.impl("deform_conv2d", TORCH_BOX(&mmdet_ddetr::cuda::deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&mmdet_ddetr::cuda::deform_conv2d_backward));
}
