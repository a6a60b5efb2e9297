// The bins of a region of interest and their samples: the only copy of the maths, for host and device.
//
// A RoI is cut into bins, a bin is the mean of bilinear samples on a grid in it. Along each axis the samples lie the
// same for all rows or columns of the grid, and a bilinear weight (bilinear.h) is a linear weight along y times one
// along x. So each axis is treated by itself.
//
// Coordinates are in cells with cell centres at integers. There are two definitions:
//
//   exact    mmcv's deform_roi_pool: corners are points; the samples lie in the middle of their shares of the bin; a
//            sample up to a cell outside the map counts as on its border, farther out as zero
//   rounded  DeformablePSROIPooling of the official code: corners are pixels, the last one belongs to the RoI; the
//            samples lie at the near corner of their shares; the mean is over those up to half a cell outside the map
#pragma once

#include <cstdint>

#include "inline.h"

namespace mmdet_ddetr {

// What a call fixes.
template <typename A>
struct PoolRule {
  A scale;          // cells per unit of a RoI
  A gamma;          // of the RoI's side, per unit of an offset
  int64_t samples;  // of a bin along an axis; 0: one a cell
  bool rounded;

  template <typename Other>
  PoolRule<Other> as() const {
    return {static_cast<Other>(scale), static_cast<Other>(gamma), samples, rounded};
  }
};

// Samples of a bin along an axis, where a RoI decides: all whole numbers up to here are fp32 numbers.
constexpr int64_t kMostSamples = int64_t{1} << 24;

// Up to here it takes longer to find out which samples lie beside the map than to visit them.
constexpr int64_t kFewSamples = 16;

namespace detail {

// The nearest integer, halves away from zero.
template <typename A>
MMDET_DDETR_INLINE A nearest(A x) {
  if (!(x > -9e18f && x < 9e18f)) return x;
  const A whole = static_cast<A>(static_cast<int64_t>(x)), rest = x - whole;
  return rest >= A(0.5) ? whole + 1 : rest <= A(-0.5) ? whole - 1 : whole;
}

// x rounded up, from 0 to `most`; 0 for NaN.
template <typename A>
MMDET_DDETR_INLINE int64_t ceil_within(A x, int64_t most) {
  if (!(x > 0)) return 0;
  if (!(x < static_cast<A>(most))) return most;
  const int64_t whole = static_cast<int64_t>(x);
  return whole + (static_cast<A>(whole) < x);
}

}  // namespace detail

// A RoI along an axis, in cells.
template <typename A>
struct Side {
  A start, size;
};

template <typename A>
MMDET_DDETR_INLINE Side<A> side_of(A low, A high, const PoolRule<A>& rule) {
  if (!rule.rounded) {
    const A start = low * rule.scale - A(0.5);
    return {start, high * rule.scale - A(0.5) - start};
  }
  const A start = detail::nearest(low) * rule.scale - A(0.5);
  const A size = (detail::nearest(high) + 1) * rule.scale - A(0.5) - start;
  return {start, size < A(0.1) ? A(0.1) : size};
}

// A sample along an axis: between `cell` and the next one, which is not there if fraction is zero.
template <typename A>
struct LinearSample {
  bool counts;
  int64_t cell;
  A fraction;
  A slope;  // of the fraction over the coordinate: 1, but 0 where the coordinate was moved to the border
};

// The samples of a bin along an axis: numbers begin to end, of which each has the same share in the mean.
template <typename A>
struct BinAxis {
  A first, step;  // coordinate of sample 0, distance
  A lowest, highest, last;
  int64_t begin, end;
  A share;
  A pull;       // cells that the bin moves per unit of its offset
  A undefined;  // 0, or NaN where a coordinate is not finite: it belongs into the bin and into its gradients

  MMDET_DDETR_INLINE LinearSample<A> sample(int64_t i) const {
    const A x = first + static_cast<A>(i) * step;
    const A inside = x < 0 ? A(0) : x > last ? last : x;
    const int64_t cell = static_cast<int64_t>(inside);
    return {x >= lowest && x <= highest, cell, inside - static_cast<A>(cell), A(x >= 0 && x < last)};
  }
};

// Bin number `bin` of `bins`, moved by `offset`, over a map of `cells`.
template <typename A>
MMDET_DDETR_INLINE BinAxis<A> axis_of(const Side<A>& side, int64_t bin, int64_t bins, A offset, int64_t cells,
                                      const PoolRule<A>& rule) {
  const A size = side.size / static_cast<A>(bins);
  const int64_t count = rule.samples > 0 ? rule.samples : detail::ceil_within(size, kMostSamples);
  BinAxis<A> axis;
  axis.pull = rule.gamma * side.size;
  axis.step = size / static_cast<A>(count > 0 ? count : 1);
  axis.first = side.start + axis.pull * offset + static_cast<A>(bin) * size + (rule.rounded ? A(0) : axis.step / 2);
  axis.undefined = 0 * axis.first + 0 * axis.step;
  axis.last = static_cast<A>(cells - 1);
  const A margin = rule.rounded ? A(0.5) : A(1);
  axis.lowest = -margin;
  axis.highest = axis.last + margin;
  axis.begin = 0;
  axis.end = cells > 0 && axis.undefined == 0 ? count : 0;
  axis.share = 1 / static_cast<A>(count > 0 ? count : 1);
  // Of a RoI much larger than the map, only the samples near the map: one to spare at each end.
  if (count > kFewSamples && axis.step > 0) {
    const A from = (axis.lowest - axis.first) / axis.step - 1, until = (axis.highest - axis.first) / axis.step + 2;
    if (from > 0) axis.begin = from < static_cast<A>(axis.end) ? static_cast<int64_t>(from) : axis.end;
    if (until < static_cast<A>(axis.end)) axis.end = until > 0 ? static_cast<int64_t>(until) : 0;
  }
  if (rule.rounded) {
    int64_t inside = 0;
    for (int64_t i = axis.begin; i < axis.end; ++i) inside += axis.sample(i).counts;
    axis.share = 1 / static_cast<A>(inside > 0 ? inside : 1);
  }
  return axis;
}

}  // namespace mmdet_ddetr
