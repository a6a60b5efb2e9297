// The CPU kernels of deformable RoI pooling as raw-pointer functions, one table of them per instruction set.
#pragma once

#include <cstdint>

#include "../deform_roi_pool.h"

namespace mmdet_ddetr::cpu {

// What the kernels read.
struct PoolInput {
  PoolSizes n;
  PoolRule<double> rule;
  const void* planes;  // [B, g g K, H W, D]
  const void* rois;    // [R, 5], compute type; images are in [0, B)
  const void* offset;  // [R, K, 2, h, w], compute type; null: 0
};

struct PoolKernels {
  // the rows [R, h w, K, D] of RoIs from begin to end
  void (*forward)(const PoolInput&, void* rows, int64_t begin, int64_t end);
  // the gradients of their offsets, compute type, from those of their rows
  void (*backward_offset)(const PoolInput&, const void* grad_rows, void* grad_offset, int64_t begin, int64_t end);
  // adds to the gradient of a plane, compute type, what all RoIs give to its channels from begin to end
  void (*backward_plane)(const PoolInput&, const void* grad_rows, void* grad_planes, int64_t plane, int64_t begin,
                         int64_t end);
};

const PoolKernels& portable_pool_kernels(ScalarType input);
#if defined(__x86_64__)
const PoolKernels& avx2_pool_kernels(ScalarType input);
const PoolKernels& avx512_pool_kernels(ScalarType input);
#endif

}  // namespace mmdet_ddetr::cpu
