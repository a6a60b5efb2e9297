// Bilinear sampling of a map and its gradients: the only copy of the maths, for host and device.
//
// T is the type of coordinates and sums: float, double, or a SIMD vector of them (cpu/simd.h), so that the CPU kernels
// treat several points at once with the same formulas.
//
// A map has H x W cells. Coordinates are in cells with cell centres at integers: 0 is the centre of the first cell and
// the map covers [-0.5, W - 0.5], as grid_sample with align_corners=False. Cells outside the map count as zero.
#pragma once

#include "inline.h"

namespace mmdet_ddetr {

// The ops take points in different forms, all affine in cells along an axis: coordinate = base + scale * input.
// Thus the derivative of the coordinate is `scale` with respect to the input, `size` with respect to the centre of the
// reference and `input * 0.5 / K * size` with respect to its extent.
template <typename T>
struct Affine {
  T base, scale;
};

// A location in the map: 0 = near edge, 1 = far edge. size is W for x, H for y.
template <typename T>
MMDET_DDETR_INLINE Affine<T> affine_of_location(T size) {
  return {T(-0.5), size};
}

// An offset, in cells, from a reference point (official ms_deform_attn.py): (centre + offset / size) * size - 0.5.
template <typename T>
MMDET_DDETR_INLINE Affine<T> affine_of_point(T centre, T size) {
  return {centre * size - T(0.5), T(1)};
}

// An offset in units of half a reference box over K points: (centre + offset / K * extent * 0.5) * size - 0.5.
template <typename T>
MMDET_DDETR_INLINE Affine<T> affine_of_box(T centre, T extent, T K, T size) {
  return {centre * size - T(0.5), T(0.5) / K * extent * size};
}

// True if a sample at (x, y) touches the map at all: it lies less than a cell away. At a distance of exactly one cell
// value and derivatives are zero. False for a huge, infinite or NaN coordinate, so that x and y may be converted to
// integers where it is true.
template <typename T>
MMDET_DDETR_INLINE auto touches(T x, T y, T W, T H) {
  return (x > -1) & (y > -1) & (x < W) & (y < H);
}

// The value of a sample that does not touch the map, and its derivatives: zero, but NaN if a coordinate is not finite,
// so that a diverged model shows.
template <typename T>
MMDET_DDETR_INLINE T outside_value(T x, T y) {
  return 0 * x + 0 * y;  // x + y could overflow
}

// What the four corners (y0, x0), (y0, x1), (y1, x0), (y1, x1) of a sample hold: their weights in the sample, their
// values, or the products of their values with the incoming gradient.
template <typename T>
struct Corners {
  T c00, c01, c10, c11;
};

// Weights of the corners; fx = x - floor(x) and fy = y - floor(y) lie in [0, 1).
template <typename T>
MMDET_DDETR_INLINE Corners<T> corner_weights(T fx, T fy) {
  const T gx = 1 - fx, gy = 1 - fy;
  return {gy * gx, gy * fx, fy * gx, fy * fx};
}

// The sample, given the corners' values. The maths is linear: given their products with the incoming gradient, it is
// the gradient of the attention weight.
template <typename T>
MMDET_DDETR_INLINE T interpolate(T fx, T fy, Corners<T> v) {
  const T gx = 1 - fx, gy = 1 - fy;
  return gy * (gx * v.c00 + fx * v.c01) + fy * (gx * v.c10 + fx * v.c11);
}

// Derivative of the sample with respect to x and y, in cells; the right-hand one on a knot, where x or y is an integer.
template <typename T>
MMDET_DDETR_INLINE T interpolate_dx(T fy, Corners<T> v) {
  return (1 - fy) * (v.c01 - v.c00) + fy * (v.c11 - v.c10);
}

template <typename T>
MMDET_DDETR_INLINE T interpolate_dy(T fx, Corners<T> v) {
  return (1 - fx) * (v.c10 - v.c00) + fx * (v.c11 - v.c01);
}

}  // namespace mmdet_ddetr
