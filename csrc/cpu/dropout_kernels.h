// The CPU kernels of dropout as raw-pointer functions, one for each instruction set and dtype.
#pragma once

#include <cstdint>

#include "../compute_type.h"

namespace mmdet_ddetr::cpu {

// A block of elements has a key of its own, so that 32-bit integers count the elements of tensors of any size. A
// multiple of the widest vector.
constexpr int64_t kDropoutBlock = 1 << 14;

// Input and output are contiguous.
struct DropoutInput {
  int64_t size;  // elements
  const void* input;
  uint64_t seed;
  int32_t last_dropped;  // of the 31-bit numbers of the elements, the greatest that means zero; -1: none does
  double scale;          // of what is kept
};

// For the blocks from begin to end.
using DropoutKernel = void (*)(const DropoutInput&, void* output, int64_t begin, int64_t end);

DropoutKernel portable_dropout_kernel(ScalarType dtype);
#if defined(__x86_64__)
DropoutKernel avx2_dropout_kernel(ScalarType dtype);
DropoutKernel avx512_dropout_kernel(ScalarType dtype);
#endif

}  // namespace mmdet_ddetr::cpu
