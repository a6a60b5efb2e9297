// The samples of one head of one query, seen from the kernels: where each lies, what it weighs, where its gradient
// goes.
#pragma once

#include "../bilinear.h"
#include "simt.h"

namespace mmdet_ddetr::cuda {

template <typename Index>
struct LevelOf {
  Index H, W, start;
};

constexpr int kLevelsByValue = 16;

// The levels travel as a kernel argument: no copy from host memory that a CUDA graph could not hold. With 32-bit
// offsets there are no more than these; with 64-bit ones, the others lie in device memory (write_levels_kernel).
template <typename Index>
struct Levels {
  LevelOf<Index> first[kLevelsByValue];
  const LevelOf<Index>* rest;

  __device__ LevelOf<Index> operator[](Index l) const {
    return l < kLevelsByValue ? first[l] : rest[l - kLevelsByValue];
  }
};

template <>
struct Levels<int32_t> {
  LevelOf<int32_t> first[kLevelsByValue];

  __device__ LevelOf<int32_t> operator[](int32_t l) const { return first[l]; }
};

// Sizes of a launch. Index is the type of every offset within one image and of the number of heads.
template <typename Index>
struct Problem {
  Levels<Index> levels;
  Index heads;  // B Q M: the heads of all queries
  Index Q, M, D, L, K;
  Divisor<Index> by_Q, by_M, by_K;
  int64_t image_rows;  // S M: rows of D channels in an image of value
  int log2_lanes;      // of a group
};

template <typename A>
struct Sample {
  A x, y;              // in cells
  A scale_x, scale_y;  // d x, d y / d input (location or offset)
  A weight;
};

// Derivatives of the loss with respect to x, y and the weight of a sample.
template <typename A>
struct SampleGradient {
  A x, y, weight;
};

// Beside a value of T, points and weights are of T or of its compute type, the same for both and for their gradients.
// That is told at run time: a lane reads three numbers for its whole group, so that kernels of their own would not pay.

// As given: ms_deform_attn.
struct PlainPoints {
  bool as_value;              // of value's dtype
  const void* locations;      // [B, Q, M, L, K, 2]
  const void* weights;        // [B, Q, M, L, K]
  void* grad_locations = {};  // backward only
  void* grad_weights = {};
};

// As a layer predicts them: ms_deform_attn_fused.
struct FusedPoints {
  bool as_value;
  int R;                    // coordinates of a reference
  const void* references;   // [B, Q, L, R], compute type
  const void* offsets;      // [B, Q, M, L, K, 2]
  const void* logits;       // [B, Q, M, L K]
  void* grad_offsets = {};  // backward only
  void* grad_logits = {};
  void* grad_weights = {};  // [B, Q, M, L K], compute type: before the softmax. May be grad_logits itself
  void* grad_cells = {};    // [B, Q, M, L, K, 2], compute type: d x, d y; null unless references need them
};

// The taps of a deformable convolution, which are queries of their own: query p T + t is tap t of output cell
// first + p, a head is an offset group.
struct ConvPoints {
  int64_t T, P, Wo;                // taps; output cells of the image and of a row of it
  int64_t kw;                      // taps of a row
  int64_t sy, sx, py, px, dy, dx;  // stride, padding, dilation
  int64_t first;
  const void* offsets;      // [G, T, 2, P], compute type
  const void* mask;         // [G, T, P], compute type; null: 1
  void* grad_offsets = {};  // backward only
  void* grad_mask = {};
};

// f(P()) with the type of the points.
template <typename T, typename F>
__device__ __forceinline__ void with_type_of_points(bool as_value, F f) {
  if (as_value || std::is_same_v<T, Compute<T>>) {
    f(T());
  } else {
    f(Compute<T>());
  }
}

template <typename P>
__device__ __forceinline__ Compute<P> get(const void* data, int64_t i) {
  return static_cast<Compute<P>>(static_cast<const P*>(data)[i]);
}

template <typename P>
__device__ __forceinline__ void put(void* data, int64_t i, Compute<P> x) {
  static_cast<P*>(data)[i] = static_cast<P>(x);
}

template <typename T, typename Index, typename Points>
class Samples;

// Every member function is called by all lanes of a group. `count` is the number of samples, 0 for a group without a
// head; a sample is read and its gradient written by one lane only.
template <typename T, typename Index>
class Samples<T, Index, PlainPoints> {
  using A = Compute<T>;

 public:
  __device__ Samples(const PlainPoints& points, const Problem<Index>& n, Group, Index head, Index /*count*/)
      : points_(points), first_(settled(static_cast<int64_t>(head) * n.L * n.K)) {}

  __device__ Sample<A> read(Index s, Index /*l*/, LevelOf<Index> level) const {
    const Affine<A> x = affine_of_location(static_cast<A>(level.W)), y = affine_of_location(static_cast<A>(level.H));
    const int64_t i = first_ + s;
    Sample<A> sample;
    with_type_of_points<T>(points_.as_value, [&](auto zero) {
      using P = decltype(zero);
      const A location_x = get<P>(points_.locations, 2 * i), location_y = get<P>(points_.locations, 2 * i + 1);
      sample = {x.base + x.scale * location_x, y.base + y.scale * location_y, x.scale, y.scale,
                get<P>(points_.weights, i)};
    });
    return sample;
  }

  __device__ void write(Index s, const Sample<A>& sample, SampleGradient<A> grad) const {
    const int64_t i = first_ + s;
    with_type_of_points<T>(points_.as_value, [&](auto zero) {
      using P = decltype(zero);
      put<P>(points_.grad_locations, 2 * i, grad.x * sample.scale_x);
      put<P>(points_.grad_locations, 2 * i + 1, grad.y * sample.scale_y);
      put<P>(points_.grad_weights, i, grad.weight);
    });
  }

  __device__ void finish(Group) const {}

 private:
  const PlainPoints& points_;
  int64_t first_;
};

template <typename T, typename Index>
class Samples<T, Index, FusedPoints> {
  using A = Compute<T>;

 public:
  __device__ Samples(const FusedPoints& points, const Problem<Index>& n, Group group, Index head, Index count)
      : points_(points),
        K_(n.K),
        count_(count),
        first_(settled(static_cast<int64_t>(head) * n.L * n.K)),
        reference_(settled(static_cast<int64_t>(n.by_M.quotient(head)) * n.L * points.R)) {
    A top = -INFINITY;
    for (Index s = group.rank; s < count; s += group.lanes) top = Group::larger(top, logit(s));
    top_ = group.max(top);
    A total = 0;
    for (Index s = group.rank; s < count; s += group.lanes) total += std::exp(logit(s) - top_);
    inverse_total_ = 1 / group.sum(total);
  }

  __device__ Sample<A> read(Index s, Index l, LevelOf<Index> level) const {
    const A W = static_cast<A>(level.W), H = static_cast<A>(level.H);
    const int64_t r = reference_ + l * points_.R;
    const A cx = get<A>(points_.references, r), cy = get<A>(points_.references, r + 1);
    Affine<A> x, y;
    if (points_.R == 2) {
      x = affine_of_point(cx, W);
      y = affine_of_point(cy, H);
    } else {
      const A K = static_cast<A>(K_);
      x = affine_of_box(cx, get<A>(points_.references, r + 2), K, W);
      y = affine_of_box(cy, get<A>(points_.references, r + 3), K, H);
    }
    const int64_t i = 2 * (first_ + s);
    Sample<A> sample;
    with_type_of_points<T>(points_.as_value, [&](auto zero) {
      using P = decltype(zero);
      const A offset_x = get<P>(points_.offsets, i), offset_y = get<P>(points_.offsets, i + 1);
      sample = {x.base + x.scale * offset_x, y.base + y.scale * offset_y, x.scale, y.scale, weight(s)};
    });
    return sample;
  }

  __device__ void write(Index s, const Sample<A>& sample, SampleGradient<A> grad) const {
    const int64_t i = first_ + s;
    with_type_of_points<T>(points_.as_value, [&](auto zero) {
      using P = decltype(zero);
      put<P>(points_.grad_offsets, 2 * i, grad.x * sample.scale_x);
      put<P>(points_.grad_offsets, 2 * i + 1, grad.y * sample.scale_y);
    });
    put<A>(points_.grad_weights, i, grad.weight);
    if (points_.grad_cells == nullptr) return;
    put<A>(points_.grad_cells, 2 * i, grad.x);
    put<A>(points_.grad_cells, 2 * i + 1, grad.y);
  }

  // Gradient of the softmax, from the gradients of all weights. A lane reads back what itself has written.
  __device__ void finish(Group group) const {
    A mean = 0;
    for (Index s = group.rank; s < count_; s += group.lanes) {
      mean += weight(s) * get<A>(points_.grad_weights, first_ + s);
    }
    mean = group.sum(mean);
    for (Index s = group.rank; s < count_; s += group.lanes) {
      const A grad = weight(s) * (get<A>(points_.grad_weights, first_ + s) - mean);
      with_type_of_points<T>(points_.as_value,
                             [&](auto zero) { put<decltype(zero)>(points_.grad_logits, first_ + s, grad); });
    }
  }

 private:
  __device__ A logit(Index s) const {
    A x;
    with_type_of_points<T>(points_.as_value, [&](auto zero) { x = get<decltype(zero)>(points_.logits, first_ + s); });
    return x;
  }

  __device__ A weight(Index s) const { return std::exp(logit(s) - top_) * inverse_total_; }

  const FusedPoints& points_;
  Index K_, count_;
  int64_t first_, reference_;
  A top_, inverse_total_;
};

template <typename T, typename Index>
class Samples<T, Index, ConvPoints> {
  using A = Compute<T>;

 public:
  __device__ Samples(const ConvPoints& points, const Problem<Index>& n, Group, Index head, Index /*count*/)
      : points_(points) {
    const Index query = n.by_M.quotient(head), taps = static_cast<Index>(points.T);
    tap_ = query % taps;
    cell_ = points.first + query / taps;
    plane_ = static_cast<int64_t>(head - query * n.M) * points.T + tap_;
  }

  __device__ Sample<A> read(Index, Index, LevelOf<Index>) const {
    const ConvPoints& p = points_;
    const A y = static_cast<A>(cell_ / p.Wo * p.sy - p.py) + static_cast<A>(tap_ / p.kw * p.dy);
    const A x = static_cast<A>(cell_ % p.Wo * p.sx - p.px) + static_cast<A>(tap_ % p.kw * p.dx);
    const int64_t i = 2 * plane_ * p.P + cell_;
    return {x + get<A>(p.offsets, i + p.P), y + get<A>(p.offsets, i), A(1), A(1),
            p.mask ? get<A>(p.mask, plane_ * p.P + cell_) : A(1)};
  }

  __device__ void write(Index, const Sample<A>&, SampleGradient<A> grad) const {
    const ConvPoints& p = points_;
    const int64_t i = 2 * plane_ * p.P + cell_;
    put<A>(p.grad_offsets, i, grad.y);
    put<A>(p.grad_offsets, i + p.P, grad.x);
    if (p.grad_mask) put<A>(p.grad_mask, plane_ * p.P + cell_, grad.weight);
  }

  __device__ void finish(Group) const {}

 private:
  const ConvPoints& points_;
  int64_t tap_, cell_, plane_;  // of the output and of the offsets: group, tap
};

}  // namespace mmdet_ddetr::cuda
