// The CPU kernel of the linear layer as a raw-pointer function, one for each instruction set.
#pragma once

#include <cstdint>

#include "../linear.h"

namespace mmdet_ddetr::cpu {

// What the kernel reads; see linear.h for the shapes. Everything is contiguous.
struct LinearInput {
  int64_t N, C_in, C_out;
  const float *x, *packed, *bias, *add;  // add: null for zeros
  float low, high;
};

// For the rows from begin to end and the outputs of one panel.
using LinearKernel = void (*)(const LinearInput&, float* output, int64_t begin, int64_t end, int64_t panel);

LinearKernel portable_linear_kernel();
#if defined(__x86_64__)
LinearKernel avx2_linear_kernel();
LinearKernel avx512_linear_kernel();
#endif

}  // namespace mmdet_ddetr::cpu
