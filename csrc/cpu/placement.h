// Where samples fall in their map, for the CPU kernels: a sample in a lane. Included like simd.h.
#pragma once

// Which corners of a sample lie in the map.
constexpr int kC00 = 1, kC01 = 2, kC10 = 4, kC11 = 8, kAllCorners = 15;

template <typename C>
struct Placement {
  using V = Vec<C>;
  V fx, fy;            // from corner (y0, x0), in cells; NaN if a coordinate is not finite: so are the gradients
  V outside;           // what the sample is worth where it does not touch the map: 0, or NaN
  Corners<V> weights;  // of the corners
  IntVec<C> cell;      // of corner (y0, x0), which need not exist, from the first cell of the map
  IntVec<C> inside;    // which corners exist
};

// Samples at (x, y) in maps of H x W cells; pitch is W as an integer.
template <typename C>
MMDET_DDETR_INLINE Placement<C> place(Vec<C> x, Vec<C> y, Vec<C> W, Vec<C> H, IntVec<C> pitch) {
  using V = Vec<C>;
  using I = IntVec<C>;
  Placement<C> p;
  const I touching = touches(x, y, W, H);
  p.outside = touching ? V{} : outside_value(x, y);
  x = touching ? x : V{};
  y = touching ? y : V{};
  const I x0 = floor_to_int(x), y0 = floor_to_int(y);
  const V x0f = __builtin_convertvector(x0, V), y0f = __builtin_convertvector(y0, V);
  p.weights = corner_weights(x - x0f, y - y0f);
  p.fx = x - x0f + p.outside;
  p.fy = y - y0f + p.outside;
  const I left = x0 >= 0, right = x0f < W - 1, above = y0 >= 0, below = y0f < H - 1;
  p.inside =
      touching & ((left & above & kC00) | (right & above & kC01) | (left & below & kC10) | (right & below & kC11));
  p.cell = y0 * pitch + x0;
  return p;
}

// From [N, 4], the products of each sample's corners with its gradient, to a corner a vector.
template <typename C>
MMDET_DDETR_INLINE Corners<Vec<C>> by_corner(const C* products) {
  constexpr int N = Simd<C>::N;
  Vec<C> even[2], odd[2];
  Corners<Vec<C>> v;
  deinterleave<C>(load(products), load(products + N), even[0], odd[0]);
  deinterleave<C>(load(products + 2 * N), load(products + 3 * N), even[1], odd[1]);
  deinterleave<C>(even[0], even[1], v.c00, v.c10);
  deinterleave<C>(odd[0], odd[1], v.c01, v.c11);
  return v;
}
