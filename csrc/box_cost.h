// What it costs to match a predicted box with a target (DETR, arXiv:2005.12872, section 3.1): the only copy of the
// maths, for host and device.
#pragma once

#include <cfloat>

#include "inline.h"

namespace mmdet_ddetr {

// T is float, or a SIMD vector of floats (cpu/simd.h).
template <typename T>
struct Box {
  T cx, cy, w, h;
};

// l1_weight |a - b|_1 - giou_weight GIoU(a, b). A coordinate that is not finite gives a cost that is not finite.
struct BoxCost {
  float l1_weight, giou_weight;

  template <typename T>
  MMDET_DDETR_INLINE T operator()(const Box<T>& a, const Box<T>& b) const {
    const T l1 = abs_of(a.cx - b.cx) + abs_of(a.cy - b.cy) + abs_of(a.w - b.w) + abs_of(a.h - b.h);
    const Range<T> ax = range(a.cx, a.w), ay = range(a.cy, a.h), bx = range(b.cx, b.w), by = range(b.cy, b.h);
    const T zero = {}, tiny = zero + FLT_MIN;  // far below any area; a box without area has an IoU of 0
    const T width = smaller(ax.to, bx.to) - larger(ax.from, bx.from);
    const T height = smaller(ay.to, by.to) - larger(ay.from, by.from);
    const T both = larger(width, zero) * larger(height, zero);
    const T either = larger(length(ax) * length(ay) + length(bx) * length(by) - both, tiny);
    const T hull =
        (larger(ax.to, bx.to) - smaller(ax.from, bx.from)) * (larger(ay.to, by.to) - smaller(ay.from, by.from));
    return l1_weight * l1 - giou_weight * (both / either + either / larger(hull, tiny) - 1);
  }

 private:
  template <typename T>
  struct Range {
    T from, to;
  };

  template <typename T>
  static MMDET_DDETR_INLINE Range<T> range(T centre, T length) {
    return {centre - length / 2, centre + length / 2};
  }
  template <typename T>
  static MMDET_DDETR_INLINE T length(const Range<T>& range) {
    return range.to - range.from;
  }
  template <typename T>
  static MMDET_DDETR_INLINE T abs_of(T x) {
    return x < 0 ? -x : x;
  }
  template <typename T>
  static MMDET_DDETR_INLINE T smaller(T a, T b) {
    return a < b ? a : b;
  }
  template <typename T>
  static MMDET_DDETR_INLINE T larger(T a, T b) {
    return a > b ? a : b;
  }
};

}  // namespace mmdet_ddetr
