// Bilinear sampling of a map and its gradients: the only copy of the maths, for host and device.
//
// T is the type of coordinates and sums: float, double, or a SIMD vector of them (csrc/cpu/vec.h), so that the CPU kernels
// treat several points at once with the same formulas.
//
// A map has H x W cells. Coordinates are in cells with cell centres at integers: 0 is the centre of the first cell and
// the map covers [-0.5, W - 0.5], as grid_sample with align_corners=False. Cells outside the map count as zero.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define MMDET_DDETR_INLINE __host__ __device__ __forceinline__
#else
#define MMDET_DDETR_INLINE inline __attribute__((always_inline))
#endif

namespace mmdet_ddetr {

// From a location, 0 = near edge of the map and 1 = far edge, to cells.
template <typename T>
MMDET_DDETR_INLINE T to_cells(T location, T size) {
  return location * size - 0.5f;
}

// True if a sample at (x, y) touches the map at all. Written so that a huge, infinite or NaN coordinate gives false: only
// then may x and y be converted to integers.
template <typename T>
MMDET_DDETR_INLINE auto touches(T x, T y, T W, T H) {
  return (x > -1.0f) & (y > -1.0f) & (x < W) & (y < H);
}

// What the four corners (y0, x0), (y0, x1), (y1, x0), (y1, x1) of a sample hold: their weights in the sample, or the
// products of their values with the incoming gradient.
template <typename T>
struct Corners {
  T c00, c01, c10, c11;
};

// Weights of the corners; fx = x - floor(x) and fy = y - floor(y) lie in [0, 1).
template <typename T>
MMDET_DDETR_INLINE Corners<T> corner_weights(T fx, T fy) {
  const T gx = 1.0f - fx, gy = 1.0f - fy;
  return {gy * gx, gy * fx, fy * gx, fy * fx};
}

// The sample itself, given the corners' values (or their products with a gradient: the maths is linear).
template <typename T>
MMDET_DDETR_INLINE T interpolate(T fx, T fy, Corners<T> v) {
  const T gx = 1.0f - fx, gy = 1.0f - fy;
  return gy * (gx * v.c00 + fx * v.c01) + fy * (gx * v.c10 + fx * v.c11);
}

// Derivative of the sample with respect to x and y, in cells: to the right of a knot where x or y is an integer.
template <typename T>
MMDET_DDETR_INLINE T interpolate_dx(T fy, Corners<T> v) {
  return (1.0f - fy) * (v.c01 - v.c00) + fy * (v.c11 - v.c10);
}

template <typename T>
MMDET_DDETR_INLINE T interpolate_dy(T fx, Corners<T> v) {
  return (1.0f - fx) * (v.c10 - v.c00) + fx * (v.c11 - v.c01);
}

// Location arithmetic of Deformable DETR along one axis (official ms_deform_attn.py). A point reference takes offsets in
// cells; a box reference (centre, extent) takes them in units of half the box over K points. d_* are the derivatives.
template <typename T>
MMDET_DDETR_INLINE T point_location(T centre, T offset, T size) {
  return centre + offset / size;
}

template <typename T>
MMDET_DDETR_INLINE T box_location(T centre, T extent, T offset, T half_over_K) {  // half_over_K = 0.5 / K
  return centre + offset * half_over_K * extent;
}

}  // namespace mmdet_ddetr
