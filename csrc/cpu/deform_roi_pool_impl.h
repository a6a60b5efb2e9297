// Deformable RoI pooling on the CPU. Included once per instruction set by isa_*.cpp; see simd.h.
//
// The samples of a bin share cells, so that a bin is a weighted sum over the cells that they touch, each read once. A
// weight is one along y times one along x. A channel is in a lane.

#include "../roi_bins.h"

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"

// What a row or column of cells weighs in a bin, and the derivative of that over the bin's coordinate.
template <typename C>
struct Touched {
  int64_t cell;
  C weight, slope;
};

// The rows or the columns that a bin touches, in rising order.
template <typename C>
class TouchedCells {
 public:
  explicit TouchedCells(int64_t cells) : cells_(cells), list_(new Touched<C>[cells + 1]) {}

  // Not inlined: the loop is scalar, and there are two of it for every bin.
  __attribute__((noinline)) void set(const BinAxis<C>& axis) {
    size_ = 0;
    const bool rising = axis.step >= 0;
    for (int64_t number = axis.begin; number < axis.end; ++number) {
      const auto sample = axis.sample(rising ? number : axis.begin + axis.end - 1 - number);
      if (!sample.counts) continue;
      add(sample.cell, axis.share * (1 - sample.fraction), -axis.share * sample.slope);
      if (sample.cell + 1 < cells_) add(sample.cell + 1, axis.share * sample.fraction, axis.share * sample.slope);
    }
  }

  const Touched<C>* begin() const { return list_.get(); }
  const Touched<C>* end() const { return list_.get() + size_; }

 private:
  void add(int64_t cell, C weight, C slope) {
    for (int64_t i = size_ - 1; i >= 0 && i >= size_ - 2; --i) {
      if (list_[i].cell == cell) {
        list_[i].weight += weight;
        list_[i].slope += slope;
        return;
      }
    }
    list_[size_++] = {cell, weight, slope};
  }

  const int64_t cells_;
  const std::unique_ptr<Touched<C>[]> list_;
  int64_t size_ = 0;
};

// The bins of a RoI, one at a time.
template <typename T>
class Bins {
 public:
  using C = Compute<T>;

  explicit Bins(const PoolInput& in) : in_(in), n_(in.n), rule_(in.rule.as<C>()), rows(in.n.H), columns(in.n.W) {}

  void set_roi(int64_t r) {
    r_ = r;
    const C* roi = static_cast<const C*>(in_.rois) + 5 * r;
    image_ = static_cast<int64_t>(roi[0]);
    x_ = side_of(roi[1], roi[3], rule_);
    y_ = side_of(roi[2], roi[4], rule_);
  }

  void set_bin(int64_t k, int64_t row, int64_t column) {
    at_ = offset_at(k) + row * n_.w + column;
    const C* offset = static_cast<const C*>(in_.offset);
    const BinAxis<C> x = axis_of(x_, column, n_.w, offset ? offset[at_] : C(0), n_.W, rule_);
    const BinAxis<C> y = axis_of(y_, row, n_.h, offset ? offset[at_ + n_.P()] : C(0), n_.H, rule_);
    columns.set(x);
    rows.set(y);
    pull_x_ = x.pull, pull_y_ = y.pull;
    undefined_ = x.undefined + y.undefined;
  }

  // Where a plane of the RoI's image begins.
  int64_t plane(int64_t plane) const { return (image_ * n_.planes() + plane) * n_.H * n_.W * n_.D(); }

  // From the derivatives over the bin's coordinates.
  void put_gradient(C dx, C dy, C* grad_offset) const {
    grad_offset[at_] = pull_x_ * dx + undefined_;
    grad_offset[at_ + n_.P()] = pull_y_ * dy + undefined_;
  }

  C undefined() const { return undefined_; }

 private:
  int64_t offset_at(int64_t k) const { return (r_ * n_.K + k) * 2 * n_.P(); }

  const PoolInput& in_;
  const PoolSizes& n_;
  const PoolRule<C> rule_;
  int64_t r_ = 0, image_ = 0, at_ = 0;
  Side<C> x_, y_;
  C pull_x_ = 0, pull_y_ = 0, undefined_ = 0;

 public:
  TouchedCells<C> rows, columns;
};

// V vectors of channels, or a single channel where V is 0.
template <typename T, int V>
struct Chunk {
  using C = Compute<T>;
  using E = std::conditional_t<V == 0, C, Vec<C>>;
  static constexpr int kElements = V == 0 ? 1 : V, kStep = V == 0 ? 1 : Simd<C>::N;

  E e[kElements] = {};

  template <typename From>
  static MMDET_DDETR_INLINE E load_one(const From* from) {
    if constexpr (V > 0) {
      return load(from);
    } else if constexpr (std::is_same_v<From, C>) {
      return *from;
    } else {
      return load_part(from, 1)[0];
    }
  }

  // this += factor * from
  template <typename From>
  MMDET_DDETR_INLINE void add(C factor, const From* from) {
    for (int i = 0; i < kElements; ++i) e[i] += factor * load_one(from + i * kStep);
  }

  MMDET_DDETR_INLINE void put(T* to, C plus) const {
    for (int i = 0; i < kElements; ++i) {
      if constexpr (V > 0) {
        store(to + i * kStep, e[i] + plus);
      } else {
        store_part(to, 1, broadcast<C>(e[i] + plus));
      }
    }
  }

  // to += factor * this
  MMDET_DDETR_INLINE void add_to(C* to, C factor) const {
    for (int i = 0; i < kElements; ++i) {
      if constexpr (V > 0) {
        store(to + i * kStep, load(to + i * kStep) + factor * e[i]);
      } else {
        *to += factor * e[i];
      }
    }
  }

  MMDET_DDETR_INLINE C dot(const Chunk& other) const {
    E sum = e[0] * other.e[0];
    for (int i = 1; i < kElements; ++i) sum += e[i] * other.e[i];
    if constexpr (V > 0) {
      return sum_of_lanes<C>(sum);
    } else {
      return sum;
    }
  }
};

// f(c, Chunk()) for all channels from begin to end.
template <typename T, typename F>
MMDET_DDETR_INLINE void for_chunks(int64_t begin, int64_t end, const F& f) {
  constexpr int64_t N = Simd<Compute<T>>::N;
  int64_t c = begin;
  for (; c + 4 * N <= end; c += 4 * N) f(c, Chunk<T, 4>());
  for (; c + N <= end; c += N) f(c, Chunk<T, 1>());
  for (; c < end; ++c) f(c, Chunk<T, 0>());
}

// f(bins, at, plane) for all bins and sets of channels of RoIs from begin to end: the place of the row [R, h w, K, D]
// and the plane.
template <typename T, typename F>
MMDET_DDETR_INLINE void for_bins(const PoolInput& in, int64_t begin, int64_t end, const F& f) {
  const PoolSizes& n = in.n;
  Bins<T> bins(in);
  int64_t at = begin * n.P() * n.C_out();
  for (int64_t r = begin; r < end; ++r) {
    bins.set_roi(r);
    for (int64_t row = 0; row < n.h; ++row) {
      for (int64_t column = 0; column < n.w; ++column) {
        const int64_t plane = n.plane_of(row, column, 0);
        for (int64_t k = 0; k < n.K; ++k, at += n.D()) {
          bins.set_bin(k, row, column);
          f(bins, at, static_cast<const T*>(in.planes) + bins.plane(plane + k));
        }
      }
    }
  }
}

template <typename T>
void pool_forward(const PoolInput& in, void* rows, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const int64_t D = in.n.D(), pitch = in.n.W * D;
  for_bins<T>(in, begin, end, [&](const Bins<T>& bins, int64_t at, const T* plane) {
    T* to = static_cast<T*>(rows) + at;
    for_chunks<T>(0, D, [&](int64_t c, auto sum) {
      for (const Touched<C>& row : bins.rows) {
        const T* cells = plane + row.cell * pitch + c;
        for (const Touched<C>& column : bins.columns) sum.add(row.weight * column.weight, cells + column.cell * D);
      }
      sum.put(to + c, bins.undefined());
    });
  });
}

template <typename T>
void pool_backward_offset(const PoolInput& in, const void* grad_rows, void* grad_offset, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const int64_t D = in.n.D(), pitch = in.n.W * D;
  for_bins<T>(in, begin, end, [&](const Bins<T>& bins, int64_t at, const T* plane) {
    const T* grad = static_cast<const T*>(grad_rows) + at;
    C sum_x = 0, sum_y = 0;
    for_chunks<T>(0, D, [&](int64_t c, auto zero) {
      auto g = zero, dx = zero, dy = zero;
      g.add(1, grad + c);
      for (const Touched<C>& row : bins.rows) {
        const T* cells = plane + row.cell * pitch + c;
        for (const Touched<C>& column : bins.columns) {
          dx.add(row.weight * column.slope, cells + column.cell * D);
          dy.add(row.slope * column.weight, cells + column.cell * D);
        }
      }
      sum_x += g.dot(dx);
      sum_y += g.dot(dy);
    });
    bins.put_gradient(sum_x, sum_y, static_cast<C*>(grad_offset));
  });
}

// A cell sums in the order of the RoIs and bins, however planes and channels are cut.
template <typename T>
void pool_backward_plane(const PoolInput& in, const void* grad_rows, void* grad_planes, int64_t plane, int64_t begin,
                         int64_t end) {
  using C = Compute<T>;
  const PoolSizes& n = in.n;
  const int64_t D = n.D(), pitch = n.W * D, k = plane % n.K, u = plane / n.K / n.g, v = plane / n.K % n.g;
  // the first bin of a row or column of the grid
  const auto first = [&n](int64_t cell, int64_t bins) { return (cell * bins + n.g - 1) / n.g; };
  Bins<T> bins(in);
  for (int64_t r = 0; r < n.R; ++r) {
    bins.set_roi(r);
    C* sums = static_cast<C*>(grad_planes) + bins.plane(plane);
    for (int64_t row = first(u, n.h); row < first(u + 1, n.h); ++row) {
      for (int64_t column = first(v, n.w); column < first(v + 1, n.w); ++column) {
        bins.set_bin(k, row, column);
        const T* grad = static_cast<const T*>(grad_rows) + ((r * n.P() + row * n.w + column) * n.K + k) * D;
        for_chunks<T>(begin, end, [&](int64_t c, auto g) {
          g.add(1, grad + c);
          for (const Touched<C>& touched : bins.rows) {
            C* cells = sums + touched.cell * pitch + c;
            for (const Touched<C>& other : bins.columns)
              g.add_to(cells + other.cell * D, touched.weight * other.weight);
          }
        });
      }
    }
  }
}

template <typename T>
const PoolKernels& pool_kernels() {
  static const PoolKernels table = {pool_forward<T>, pool_backward_offset<T>, pool_backward_plane<T>};
  return table;
}

}  // namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA

namespace mmdet_ddetr::cpu {

const PoolKernels& MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _pool_kernels)(ScalarType input) {
  using namespace MMDET_DDETR_ISA;
  switch (input) {
    case ScalarType::Double:
      return pool_kernels<double>();
    case ScalarType::Half:
      return pool_kernels<c10::Half>();
    case ScalarType::BFloat16:
      return pool_kernels<c10::BFloat16>();
    default:
      return pool_kernels<float>();
  }
}

}  // namespace mmdet_ddetr::cpu
