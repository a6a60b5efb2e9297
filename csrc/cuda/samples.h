// The samples of one head of one query, seen from the kernels: where each lies, what it weighs, where its gradient
// goes.
#pragma once

#include "../bilinear.h"
#include "simt.h"

namespace mmdet_ddetr::cuda {

// Numbers stored as T or in T's compute type, told apart at run time: what accompanies a 16-bit value may be fp32, and
// each is read once for a whole group of lanes, so that a kernel of its own would not pay.
struct Numbers {
  void* data = nullptr;
  bool as_compute_type = false;

  template <typename T>
  __device__ Compute<T> get(int64_t i) const {
    if (as_compute_type) return static_cast<const Compute<T>*>(data)[i];
    return static_cast<Compute<T>>(static_cast<const T*>(data)[i]);
  }

  template <typename T>
  __device__ void set(int64_t i, Compute<T> x) const {
    if (as_compute_type) {
      static_cast<Compute<T>*>(data)[i] = x;
    } else {
      static_cast<T*>(data)[i] = static_cast<T>(x);
    }
  }
};

template <typename Index>
struct LevelOf {
  Index H, W, start;
};

// The levels travel as a kernel argument: no copy from host memory that a CUDA graph could not hold. Those that do not
// fit lie in device memory, written by a kernel (write_levels).
constexpr int kLevelsByValue = 16;

template <typename Index>
struct Levels {
  LevelOf<Index> first[kLevelsByValue];
  const LevelOf<Index>* rest;

  __device__ LevelOf<Index> operator[](Index l) const {
    return l < kLevelsByValue ? first[l] : rest[l - kLevelsByValue];
  }
};

// Sizes of a launch. Index is the type of every offset within one image and of the number of heads.
template <typename Index>
struct Problem {
  Levels<Index> levels;
  Index heads;  // B Q M: the heads of all queries
  Index M, D, L, K;
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

// As given: ms_deform_attn.
struct PlainPoints {
  Numbers locations, weights;            // [B, Q, M, L, K, 2], [B, Q, M, L, K]
  Numbers grad_locations, grad_weights;  // backward only
};

// As a layer predicts them: ms_deform_attn_fused.
struct FusedPoints {
  Numbers references, offsets, logits;  // [B, Q, L, R], [B, Q, M, L, K, 2], [B, Q, M, L K]
  int R;
  Numbers grad_offsets, grad_logits;  // backward only
  Numbers grad_weights;               // [B, Q, M, L K], compute type: before the softmax. May be grad_logits itself
  Numbers grad_cells;                 // [B, Q, M, L, K, 2], compute type: d x, d y; null unless references need them
};

template <typename T, typename Index, typename Points>
class Samples;

// Every member function is called by all lanes of a group. `count` is the number of samples, 0 for a group without a
// head; a sample is got and put by one lane only.
template <typename T, typename Index>
class Samples<T, Index, PlainPoints> {
  using A = Compute<T>;

 public:
  __device__ Samples(const PlainPoints& points, const Problem<Index>& n, Group, Index head, Index /*count*/)
      : points_(points), first_(static_cast<int64_t>(head) * n.L * n.K) {}

  __device__ Sample<A> get(Index s, Index /*l*/, LevelOf<Index> level) const {
    const Affine<A> x = affine_of_location(static_cast<A>(level.W)), y = affine_of_location(static_cast<A>(level.H));
    const int64_t i = first_ + s;
    return {x.base + x.scale * points_.locations.get<T>(2 * i), y.base + y.scale * points_.locations.get<T>(2 * i + 1),
            x.scale, y.scale, points_.weights.get<T>(i)};
  }

  __device__ void put(Index s, const Sample<A>& sample, SampleGradient<A> grad) const {
    const int64_t i = first_ + s;
    points_.grad_locations.set<T>(2 * i, grad.x * sample.scale_x);
    points_.grad_locations.set<T>(2 * i + 1, grad.y * sample.scale_y);
    points_.grad_weights.set<T>(i, grad.weight);
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
        first_(static_cast<int64_t>(head) * n.L * n.K),
        reference_(static_cast<int64_t>(n.by_M.quotient(head)) * n.L * points.R) {
    A top = -INFINITY;
    for (Index s = group.rank; s < count; s += group.lanes) top = Group::larger(top, logit(s));
    top_ = group.max(top);
    A total = 0;
    for (Index s = group.rank; s < count; s += group.lanes) total += std::exp(logit(s) - top_);
    inverse_total_ = 1 / group.sum(total);
  }

  __device__ Sample<A> get(Index s, Index l, LevelOf<Index> level) const {
    const A W = static_cast<A>(level.W), H = static_cast<A>(level.H);
    const int64_t r = reference_ + l * points_.R;
    const A cx = points_.references.get<A>(r), cy = points_.references.get<A>(r + 1);
    Affine<A> x, y;
    if (points_.R == 2) {
      x = affine_of_point(cx, W);
      y = affine_of_point(cy, H);
    } else {
      const A K = static_cast<A>(K_);
      x = affine_of_box(cx, points_.references.get<A>(r + 2), K, W);
      y = affine_of_box(cy, points_.references.get<A>(r + 3), K, H);
    }
    const int64_t i = 2 * (first_ + s);
    return {x.base + x.scale * points_.offsets.get<T>(i), y.base + y.scale * points_.offsets.get<T>(i + 1), x.scale,
            y.scale, weight(s)};
  }

  __device__ void put(Index s, const Sample<A>& sample, SampleGradient<A> grad) const {
    const int64_t i = first_ + s;
    points_.grad_offsets.set<T>(2 * i, grad.x * sample.scale_x);
    points_.grad_offsets.set<T>(2 * i + 1, grad.y * sample.scale_y);
    points_.grad_weights.set<T>(i, grad.weight);
    if (points_.grad_cells.data) {
      points_.grad_cells.set<T>(2 * i, grad.x);
      points_.grad_cells.set<T>(2 * i + 1, grad.y);
    }
  }

  // Gradient of the softmax, from the gradients of all weights. A lane reads back what itself has put.
  __device__ void finish(Group group) const {
    A mean = 0;
    for (Index s = group.rank; s < count_; s += group.lanes) {
      mean += weight(s) * points_.grad_weights.get<T>(first_ + s);
    }
    mean = group.sum(mean);
    for (Index s = group.rank; s < count_; s += group.lanes) {
      points_.grad_logits.set<T>(first_ + s, weight(s) * (points_.grad_weights.get<T>(first_ + s) - mean));
    }
  }

 private:
  __device__ A logit(Index s) const { return points_.logits.get<T>(first_ + s); }
  __device__ A weight(Index s) const { return std::exp(logit(s) - top_) * inverse_total_; }

  const FusedPoints& points_;
  Index K_, count_;
  int64_t first_, reference_;
  A top_, inverse_total_;
};

}  // namespace mmdet_ddetr::cuda
