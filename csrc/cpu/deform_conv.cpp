// Deformable convolution on the CPU: the choice between two products, registration.
#include "../deform_conv.h"

#include <torch/csrc/stable/library.h>

#include "deform_conv_split.h"
#include "deform_conv_tiled.h"
#include "isa_choice.h"

namespace mmdet_ddetr::cpu {
namespace {

using torch::stable::new_empty;
using torch::stable::parallel_for;

// For products of PyTorch's: columns of one group in input's dtype, [1, cells, T C].
class Sampler {
 public:
  static constexpr int64_t kChunk = 1 << 22;  // bytes of columns: they stay in the caches until they are multiplied

  Sampler(const ConvSizes& n, const ConvKernels& kernels, const Tensor& input, const Tensor& offset,
          const std::optional<Tensor>& mask)
      : n_(n),
        kernels_(kernels),
        in_(n, conv::cells_of(input, n), offset, mask),
        places_(ConvTiles::whole(n), kernels.vector, 0, 1, [](int64_t, int64_t number) { return number; }) {}

  Tensor columns(int64_t b, int64_t begin, int64_t end) const {
    Tensor columns = new_empty(in_.cells, {1, end - begin, n_.T() * n_.C});
    const ConvColumns to = place(columns.mutable_data_ptr(), begin);
    parallel_for(begin, end, grain(),
                 [&](int64_t from, int64_t until) { kernels_.sample(in_.image(b), to, 0, n_.C, from, until); });
    return columns;
  }

  void backward(const Tensor& grad_columns, int64_t b, int64_t begin, int64_t end, conv::Gradients& sums) const {
    const ConvInput in = in_.image(b);
    const ConvColumns from = place(grad_columns.mutable_data_ptr(), begin), no_columns = place(nullptr, begin);
    const ConvGradients gradients = gradients_of(sums, b);
    parallel_for(begin, end, grain(), [&](int64_t first, int64_t last) {
      for (; first < last; first += kTileCells) {
        const int64_t until = std::min(first + kTileCells, last);
        std::vector<float> products(n_.G * n_.T() * kTileCells * 4);
        kernels_.backward_points(in, from, no_columns, products.data(), 0, n_.C, first, until);
        kernels_.finish_points(in, products.data(), gradients, first, until);
      }
    });
    // Threads share out the channels, a cache line of them at least.
    parallel_for(0, ceil_div(n_.C, kLine), 1, [&](int64_t first, int64_t last) {
      kernels_.backward_cells(in, from, gradients, first * kLine, std::min(last * kLine, n_.C), begin, end);
    });
  }

 private:
  ConvColumns place(void* columns, int64_t cell) const { return places_.columns(columns, true, cell, n_.T() * n_.C); }

  // The smallest share of a thread, in output cells: some 10 us.
  int64_t grain() const { return std::max<int64_t>(1, (1 << 15) / (n_.T() * n_.C)); }

  const ConvSizes n_;
  const ConvKernels& kernels_;
  const ConvTensors in_;
  const ConvPlaces places_;
};

// PyTorch's products are the faster ones where the CPU multiplies bf16.
bool multiplies_narrow(const Tensor& input, const ConvSizes& n) {
#if defined(__x86_64__)
  return input.scalar_type() == ScalarType::BFloat16 && n.groups == 1 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

using Integers = std::vector<int64_t>;

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight, const Integers& stride,
                     const Integers& padding, const Integers& dilation, const std::optional<Tensor>& mask) {
  const ConvSizes n = check_deform_conv2d(input, offset, weight, {stride, padding, dilation}, mask);
  const ConvKernels& kernels = MMDET_DDETR_CHOSEN(_conv_kernels)(input.scalar_type());
  if (!multiplies_narrow(input, n)) return TiledConv(n, kernels, input, offset, weight, mask).forward();
  Sampler sampler(n, kernels, input, offset, mask);
  return conv::forward(n, sampler, input, weight);
}

// The same for any number of threads, but for what PyTorch's matrix products promise.
std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight, const Integers& stride,
    const Integers& padding, const Integers& dilation, const std::optional<Tensor>& mask, bool needs_grad_samples,
    bool needs_grad_weight, bool /*deterministic*/) {
  const ConvSizes n = check_deform_conv2d(input, offset, weight, {stride, padding, dilation}, mask);
  check_grad_output(grad_output, input, n);
  const ConvKernels& kernels = MMDET_DDETR_CHOSEN(_conv_kernels)(input.scalar_type());
  if (!multiplies_narrow(input, n)) {
    return TiledConv(n, kernels, input, offset, weight, mask)
        .backward(grad_output, needs_grad_samples, needs_grad_weight);
  }
  Sampler sampler(n, kernels, input, offset, mask);
  return conv::backward(n, sampler, grad_output, input, offset, weight, mask, needs_grad_samples, needs_grad_weight);
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace
}  // namespace mmdet_ddetr::cpu
