// The CPU kernels of depthwise convolution as raw-pointer functions, one table of them per instruction set.
#pragma once

#include <cstdint>

#include "../compute_type.h"

namespace mmdet_ddetr::cpu {

constexpr int64_t kDepthwiseLine = 32;  // channels that a thread takes at least of a gradient of weight

// What the kernels read; see depthwise_conv.h for the shapes. Everything is contiguous.
struct DepthwiseInput {
  int64_t B, H, W, C, kh, kw, sy, sx, top, left, Ho, Wo;
  const void *input, *weight, *bias;  // bias: null for zeros
  const void* grad_output;            // null in the forward
  bool flipped;                       // the kernel's last tap first
  double low, high;                   // bounds of the output of the forward
};

struct DepthwiseKernels {
  // For the rows from begin to end of all images of the output.
  void (*forward)(const DepthwiseInput&, void* output, int64_t begin, int64_t end);
  // For the rows from begin to end of all images of the input; any stride.
  void (*backward_input)(const DepthwiseInput&, void* grad_input, int64_t begin, int64_t end);
  // For the channels from begin to end; grad_bias: null where it is not wanted.
  void (*backward_weight)(const DepthwiseInput&, void* grad_weight, void* grad_bias, int64_t begin, int64_t end);
};

const DepthwiseKernels& portable_depthwise_kernels(ScalarType dtype, int64_t kw);
#if defined(__x86_64__)
const DepthwiseKernels& avx2_depthwise_kernels(ScalarType dtype, int64_t kw);
const DepthwiseKernels& avx512_depthwise_kernels(ScalarType dtype, int64_t kw);
#endif

}  // namespace mmdet_ddetr::cpu
