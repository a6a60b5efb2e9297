// The CPU kernels of deformable convolution as raw-pointer functions, one table of them per instruction set.
#pragma once

#include <cstdint>

#include "../deform_conv.h"

namespace mmdet_ddetr::cpu {

// What the kernels read, of one image.
struct ConvInput {
  ConvSizes n;
  const void* cells;   // [H W, C]
  const void* offset;  // [G, T, 2, P], compute type
  const void* mask;    // [G, T, P], compute type; null: 1
};

// The columns of the output cells from `first` on, [groups, cells, T, C/groups].
struct ConvColumns {
  void* data;
  int64_t first, cells;
};

// Compute type, as ConvInput.
struct ConvGradients {
  void *cells, *offset, *mask;
};

struct ConvKernels {
  // the columns of output cells from begin to end
  void (*columns)(const ConvInput&, const ConvColumns&, int64_t begin, int64_t end);
  // the gradients of their offsets and masks, from those of the columns
  void (*backward_points)(const ConvInput&, const ConvColumns&, const ConvGradients&, int64_t begin, int64_t end);
  // adds to the gradient of the cells what all columns give to their channels from begin to end
  void (*backward_cells)(const ConvInput&, const ConvColumns&, const ConvGradients&, int64_t begin, int64_t end);
};

const ConvKernels& portable_conv_kernels(ScalarType input);
#if defined(__x86_64__)
const ConvKernels& avx2_conv_kernels(ScalarType input);
const ConvKernels& avx512_conv_kernels(ScalarType input);
#endif

}  // namespace mmdet_ddetr::cpu
