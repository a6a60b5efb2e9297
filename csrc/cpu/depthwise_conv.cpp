// Depthwise convolution on the CPU: checks, the split among threads, registration.
#include "../depthwise_conv.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../tensors.h"
#include "depthwise_conv_kernels.h"
#include "isa_choice.h"

namespace mmdet_ddetr::cpu {
namespace {

using torch::stable::new_empty;
using torch::stable::parallel_for;

using Integers = std::vector<int64_t>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The smallest share of a thread, in rows: some 40 us, as long as it takes to wake one that sleeps.
int64_t rows_per_grain(int64_t products) { return std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(1, products)); }

DepthwiseInput input_of(const DepthwiseSizes& n, const Tensor& input, const Tensor& weight, const void* bias) {
  return {n.B,
          n.H,
          n.W,
          n.C,
          n.kh,
          n.kw,
          n.sy,
          n.sx,
          n.top,
          n.left,
          n.Ho,
          n.Wo,
          input.const_data_ptr(),
          weight.const_data_ptr(),
          bias,
          nullptr,
          false,
          -kInfinity,
          kInfinity};
}

Tensor depthwise_conv2d_clamped(const Tensor& input_, const Tensor& weight_, const std::optional<Tensor>& bias_,
                                const Integers& stride, const Integers& padding, double low, double high) {
  const DepthwiseSizes n = check_depthwise_conv2d(input_, weight_, bias_, stride, padding);
  const Tensor input = compact(input_), weight = compact(weight_);
  const std::optional<Tensor> bias = compact(bias_);
  Tensor output = new_empty(input, {n.B, n.Ho, n.Wo, n.C});
  DepthwiseInput in = input_of(n, input, weight, bias ? bias->const_data_ptr() : nullptr);
  in.low = low, in.high = high;
  void* to = output.mutable_data_ptr();
  const DepthwiseKernels& kernels = MMDET_DDETR_CHOSEN(_depthwise_kernels)(input.scalar_type(), n.kw);
  parallel_for(0, n.B * n.Ho, rows_per_grain(n.Wo * n.C * n.kh * n.kw),
               [&](int64_t begin, int64_t end) { kernels.forward(in, to, begin, end); });
  return output;
}

Tensor depthwise_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Integers& stride, const Integers& padding) {
  return depthwise_conv2d_clamped(input, weight, bias, stride, padding, -kInfinity, kInfinity);
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward(const Tensor& grad_output_, const Tensor& input_,
                                                             const Tensor& weight_, const std::optional<Tensor>& bias_,
                                                             const Integers& stride, const Integers& padding,
                                                             bool needs_grad_input, bool needs_grad_weight,
                                                             bool /*deterministic*/) {
  const DepthwiseSizes n = check_depthwise_conv2d(input_, weight_, bias_, stride, padding);
  check_grad_output(grad_output_, input_, n);
  const Tensor grad_output = compact(grad_output_), input = compact(input_), weight = compact(weight_);
  const DepthwiseKernels& kernels = MMDET_DDETR_CHOSEN(_depthwise_kernels)(input.scalar_type(), n.kw);
  DepthwiseInput in = input_of(n, input, weight, nullptr);
  in.grad_output = grad_output.const_data_ptr();
  Tensor grad_input = new_empty(input, {0}), grad_weight = new_empty(input, {0}), grad_bias = new_empty(input, {0});
  if (needs_grad_input) {
    grad_input = new_empty(input, {n.B, n.H, n.W, n.C});
    void* to = grad_input.mutable_data_ptr();
    const int64_t grain = rows_per_grain(n.W * n.C * n.kh * n.kw / (n.sy * n.sx));
    if (n.sy == 1 && n.sx == 1) {  // a convolution of the output's gradient, with the taps in reverse
      DepthwiseInput back = {
          n.B, n.Ho, n.Wo,           n.C,       n.kh,    n.kw,    1,    1,          n.kh - 1 - n.top, n.kw - 1 - n.left,
          n.H, n.W,  in.grad_output, in.weight, nullptr, nullptr, true, -kInfinity, kInfinity};
      parallel_for(0, n.B * n.H, grain, [&](int64_t begin, int64_t end) { kernels.forward(back, to, begin, end); });
    } else {
      parallel_for(0, n.B * n.H, grain,
                   [&](int64_t begin, int64_t end) { kernels.backward_input(in, to, begin, end); });
    }
  }
  if (needs_grad_weight) {
    grad_weight = new_empty(weight, weight.sizes());
    if (bias_) grad_bias = new_empty(input, {n.C});
    void *to = grad_weight.mutable_data_ptr(), *to_bias = bias_ ? grad_bias.mutable_data_ptr() : nullptr;
    // Threads share out the channels, so that sums are the same for any number of threads.
    const int64_t lines = (n.C + kDepthwiseLine - 1) / kDepthwiseLine;
    parallel_for(0, lines, 1, [&](int64_t begin, int64_t end) {
      kernels.backward_weight(in, to, to_bias, begin * kDepthwiseLine, std::min(end * kDepthwiseLine, n.C));
    });
  }
  return {grad_input, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d));
  m.impl("depthwise_conv2d_clamped", TORCH_BOX(&depthwise_conv2d_clamped));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&depthwise_conv2d_backward));
}

}  // namespace
}  // namespace mmdet_ddetr::cpu
