// Deformable convolution on the CPU: the split among threads, registration.
#include "../deform_conv.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "deform_conv_kernels.h"
#include "isa_choice.h"

namespace mmdet_ddetr::cpu {
namespace {

using torch::stable::new_empty;
using torch::stable::parallel_for;

// Samples columns, and what follows from them backward, with PyTorch's threads.
class Sampler {
 public:
  static constexpr int64_t kChunk = 1 << 22;  // bytes of columns: they stay in the caches until they are multiplied

  Sampler(const ConvSizes& n, const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask)
      : n_(n),
        cells_(conv::cells_of(input, n)),
        offset_(exact(offset)),
        kernels_(MMDET_DDETR_CHOSEN(_conv_kernels)(input.scalar_type())) {
    if (mask) mask_ = exact(*mask);
  }

  Tensor columns(int64_t b, int64_t begin, int64_t end) const {
    Tensor columns = new_empty(cells_, {n_.groups, end - begin, n_.T() * n_.group_channels()});
    const ConvInput in = image(b);
    const ConvColumns to = {columns.mutable_data_ptr(), begin, end - begin};
    parallel_for(begin, end, grain(), [&](int64_t from, int64_t until) { kernels_.columns(in, to, from, until); });
    return columns;
  }

  void backward(const Tensor& grad_columns, int64_t b, int64_t begin, int64_t end, conv::Gradients& sums) const {
    const ConvInput in = image(b);
    const ConvColumns from = {grad_columns.data_ptr(), begin, end - begin};
    const auto of_image = [&](const Tensor& tensor) { return torch::stable::select(tensor, 0, b).mutable_data_ptr(); };
    const ConvGradients gradients = {of_image(sums.input), of_image(sums.offset),
                                     mask_ ? of_image(sums.mask) : nullptr};
    parallel_for(begin, end, grain(),
                 [&](int64_t first, int64_t last) { kernels_.backward_points(in, from, gradients, first, last); });
    // Threads share out the channels, a cache line of them at least.
    const int64_t lines = (n_.C + kLine - 1) / kLine;
    parallel_for(0, lines, 1, [&](int64_t first, int64_t last) {
      kernels_.backward_cells(in, from, gradients, first * kLine, std::min(last * kLine, n_.C));
    });
  }

 private:
  static constexpr int64_t kLine = 16;

  // The smallest share of a thread, in output cells: some 10 us.
  int64_t grain() const { return std::max<int64_t>(1, (1 << 15) / (n_.T() * n_.C)); }

  ConvInput image(int64_t b) const {
    const auto of_image = [&](const Tensor& tensor) {
      return static_cast<const char*>(tensor.const_data_ptr()) +
             b * (tensor.numel() / n_.B) * static_cast<int64_t>(tensor.element_size());
    };
    return {n_, of_image(cells_), of_image(offset_), mask_ ? of_image(*mask_) : nullptr};
  }

  const ConvSizes n_;
  const Tensor cells_, offset_;
  std::optional<Tensor> mask_;
  const ConvKernels& kernels_;
};

using Integers = std::vector<int64_t>;

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight, const Integers& stride,
                     const Integers& padding, const Integers& dilation, const std::optional<Tensor>& mask) {
  const ConvSizes n = check_deform_conv2d(input, offset, weight, {stride, padding, dilation}, mask);
  Sampler sampler(n, input, offset, mask);
  return conv::forward(n, sampler, input, weight);
}

// The same for any number of threads, but for what PyTorch's matrix products promise.
std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight, const Integers& stride,
    const Integers& padding, const Integers& dilation, const std::optional<Tensor>& mask, bool needs_grad_samples,
    bool needs_grad_weight, bool /*deterministic*/) {
  const ConvSizes n = check_deform_conv2d(input, offset, weight, {stride, padding, dilation}, mask);
  check_grad_output(grad_output, input, n);
  Sampler sampler(n, input, offset, mask);
  return conv::backward(n, sampler, grad_output, input, offset, weight, mask, needs_grad_samples, needs_grad_weight);
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace
}  // namespace mmdet_ddetr::cpu
