// Deformable convolution on the CPU. Included once per instruction set by isa_*.cpp; see simd.h.
//
// Arithmetic on samples (coordinates, corner weights) runs with an output cell in a lane, as the offsets lie in memory;
// sampling has a channel in a lane.

#include "../bilinear.h"

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"
// after simd.h
#include "placement.h"

// f(c, n) for n channels from c on: whole vectors, then what is left.
template <typename C, typename F>
MMDET_DDETR_INLINE void for_vectors(int64_t channels, const F& f) {
  constexpr int N = Simd<C>::N;
  int64_t c = 0;
  for (; c + N <= channels; c += N) f(c, static_cast<int64_t>(N));
  if (c < channels) f(c, channels - c);
}

// The samples of a tap and an offset group for N output cells.
template <typename T>
class Taps {
 public:
  using C = Compute<T>;
  using V = Vec<C>;
  using I = IntVec<C>;
  static constexpr int N = Simd<C>::N;

  explicit Taps(const ConvInput& in) : in_(in), n_(in.n) {}

  // The output cells from p on, of which there are `count`. Not inlined, where GCC 12 crashes on it.
  __attribute__((noinline)) void set_cells(int64_t p, int64_t count) {
    p_ = p;
    count_ = std::min<int64_t>(count, N);
    for (int i = 0; i < N; ++i) {
      base_y_[i] = static_cast<C>((p + i) / n_.Wo * n_.sy - n_.py);
      base_x_[i] = static_cast<C>((p + i) % n_.Wo * n_.sx - n_.px);
    }
  }

  int64_t count() const { return count_; }

  MMDET_DDETR_INLINE void set_tap(int64_t g, int64_t t) {
    const int64_t P = n_.P();
    at_ = (g * n_.T() + t) * P + p_;
    const C* offset = static_cast<const C*>(in_.offset) + (g * n_.T() + t) * 2 * P + p_;
    const V y = load(base_y_) + static_cast<C>(t / n_.kw * n_.dy) + load_part(offset, count_);
    const V x = load(base_x_) + static_cast<C>(t % n_.kw * n_.dx) + load_part(offset + P, count_);
    mask_ = in_.mask ? load_part(static_cast<const C*>(in_.mask) + at_, count_) : broadcast<C>(1);
    placed_ = place<C>(x, y, broadcast(static_cast<C>(n_.W)), broadcast(static_cast<C>(n_.H)),
                       I{} + static_cast<typename Simd<C>::Int>(n_.W));
    const Corners<V>& w = placed_.weights;
    store(weights_[0], w.c00 * mask_);
    store(weights_[1], w.c01 * mask_);
    store(weights_[2], w.c10 * mask_);
    store(weights_[3], w.c11 * mask_);
    store(outside_, placed_.outside);
    store_bits(inside_, placed_.inside);
    store_bits(cell_, placed_.cell);
  }

  // f(corner, cell) for the corners of lane i that exist.
  template <typename F>
  MMDET_DDETR_INLINE void for_corners(int i, const F& f) const {
    const int64_t cell = cell_[i], inside = inside_[i];
    if (inside & kC00) f(0, cell);
    if (inside & kC01) f(1, cell + 1);
    if (inside & kC10) f(2, cell + n_.W);
    if (inside & kC11) f(3, cell + n_.W + 1);
  }
  MMDET_DDETR_INLINE bool all_corners(int i) const { return inside_[i] == kAllCorners; }
  MMDET_DDETR_INLINE int64_t cell(int i) const { return cell_[i]; }
  MMDET_DDETR_INLINE C weight(int corner, int i) const { return weights_[corner][i]; }
  MMDET_DDETR_INLINE C outside(int i) const { return outside_[i]; }

  // products [N, 4]: of the corners with the gradient of their sample.
  MMDET_DDETR_INLINE void put_gradients(const C* products, const ConvGradients& gradients) const {
    const Corners<V> v = by_corner(products);
    const int64_t P = n_.P();
    C* offset = static_cast<C*>(gradients.offset) + 2 * (at_ - p_) + p_;
    store_part(offset, count_, mask_ * interpolate_dy(placed_.fx, v));
    store_part(offset + P, count_, mask_ * interpolate_dx(placed_.fy, v));
    if (gradients.mask) {
      store_part(static_cast<C*>(gradients.mask) + at_, count_, interpolate(placed_.fx, placed_.fy, v));
    }
  }

 private:
  const ConvInput& in_;
  const ConvSizes& n_;
  int64_t p_ = 0, count_ = 0, at_ = 0;
  V mask_;
  Placement<C> placed_;
  C base_x_[N], base_y_[N], weights_[4][N], outside_[N];
  typename Simd<C>::Int cell_[N], inside_[N];
};

// The channels of an offset group in the columns of one tap, which groups of the convolution may scatter.
template <typename T>
class ColumnRows {
 public:
  ColumnRows(const ConvSizes& n, const ConvColumns& columns)
      : n_(n), data_(static_cast<T*>(columns.data)), first_(columns.first), cells_(columns.cells), row_(new T[n.C]) {}

  // Room for channels from c on of an output cell and tap; put() afterwards.
  MMDET_DDETR_INLINE T* room(int64_t p, int64_t t, int64_t c) const {
    return n_.groups == 1 ? data_ + at(p, t, c) : row_.get() + c;
  }
  MMDET_DDETR_INLINE void put(int64_t p, int64_t t, int64_t c, int64_t count) const {
    if (n_.groups == 1) return;
    for_pieces(p, t, c, count, [&](T* piece, int64_t begin, int64_t size) {
      __builtin_memcpy(piece, row_.get() + begin, size * sizeof(T));
    });
  }
  MMDET_DDETR_INLINE const T* get(int64_t p, int64_t t, int64_t c, int64_t count) const {
    if (n_.groups == 1) return data_ + at(p, t, c);
    for_pieces(p, t, c, count, [&](const T* piece, int64_t begin, int64_t size) {
      __builtin_memcpy(row_.get() + begin, piece, size * sizeof(T));
    });
    return row_.get() + c;
  }

 private:
  MMDET_DDETR_INLINE int64_t at(int64_t p, int64_t t, int64_t c) const {
    const int64_t D = n_.group_channels();
    return ((c / D * cells_ + p - first_) * n_.T() + t) * D + c % D;
  }
  template <typename F>
  MMDET_DDETR_INLINE void for_pieces(int64_t p, int64_t t, int64_t c, int64_t count, const F& f) const {
    const int64_t D = n_.group_channels();
    for (const int64_t end = c + count; c < end;) {
      const int64_t size = std::min(end - c, D - c % D);
      f(data_ + at(p, t, c), c, size);
      c += size;
    }
  }

  const ConvSizes& n_;
  T* const data_;
  const int64_t first_, cells_;
  const std::unique_ptr<T[]> row_;
};

// f(taps, g, t) for all taps and offset groups of all output cells from begin to end.
template <typename T, typename F>
MMDET_DDETR_INLINE void for_taps(const ConvInput& in, int64_t begin, int64_t end, int64_t g_begin, int64_t g_end,
                                 const F& f) {
  Taps<T> taps(in);
  for (int64_t p = begin; p < end; p += Taps<T>::N) {
    taps.set_cells(p, end - p);
    for (int64_t g = g_begin; g < g_end; ++g) {
      for (int64_t t = 0; t < in.n.T(); ++t) {
        taps.set_tap(g, t);
        f(taps, p, g, t);
      }
    }
  }
}

template <typename T>
void conv_columns(const ConvInput& in, const ConvColumns& columns, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const ConvSizes& n = in.n;
  const int64_t D = n.C / n.G;
  const ColumnRows<T> rows(n, columns);
  for_taps<T>(in, begin, end, 0, n.G, [&](const Taps<T>& taps, int64_t p, int64_t g, int64_t t) {
    const T* cells = static_cast<const T*>(in.cells) + g * D;
    for (int i = 0; i < taps.count(); ++i) {
      T* to = rows.room(p + i, t, g * D);
      if (__builtin_expect(taps.all_corners(i), 1)) {
        const T* upper = cells + taps.cell(i) * n.C;
        const T* lower = upper + n.W * n.C;
        const C w00 = taps.weight(0, i), w01 = taps.weight(1, i), w10 = taps.weight(2, i), w11 = taps.weight(3, i);
        for_vectors<C>(D, [&](int64_t c, int64_t left) {
          store_part(to + c, left,
                     (w00 * load_part(upper + c, left) + w01 * load_part(upper + n.C + c, left)) +
                         (w10 * load_part(lower + c, left) + w11 * load_part(lower + n.C + c, left)));
        });
      } else {
        const C outside = taps.outside(i);
        for_vectors<C>(D, [&](int64_t c, int64_t left) {
          Vec<C> sum = broadcast(outside);
          taps.for_corners(i, [&](int corner, int64_t cell) {
            sum += taps.weight(corner, i) * load_part(cells + cell * n.C + c, left);
          });
          store_part(to + c, left, sum);
        });
      }
      rows.put(p + i, t, g * D, D);
    }
  });
}

template <typename T>
void conv_backward_points(const ConvInput& in, const ConvColumns& columns, const ConvGradients& gradients,
                          int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vec<C>;
  constexpr int N = Simd<C>::N;
  const ConvSizes& n = in.n;
  const int64_t D = n.C / n.G;
  const ColumnRows<T> rows(n, columns);
  for_taps<T>(in, begin, end, 0, n.G, [&](const Taps<T>& taps, int64_t p, int64_t g, int64_t t) {
    const T* cells = static_cast<const T*>(in.cells) + g * D;
    C products[4 * N] = {};
    for (int first = 0; first < taps.count(); first += N / 4) {
      V parts[N / 4] = {};
      for (int j = 0; j < N / 4 && first + j < taps.count(); ++j) {
        const int i = first + j;
        const T* grad = rows.get(p + i, t, g * D, D);
        V sums[4] = {};
        if (__builtin_expect(taps.all_corners(i), 1)) {
          const T* upper = cells + taps.cell(i) * n.C;
          const T* lower = upper + n.W * n.C;
          for_vectors<C>(D, [&](int64_t c, int64_t left) {
            const V v = load_part(grad + c, left);
            sums[0] += v * load_part(upper + c, left);
            sums[1] += v * load_part(upper + n.C + c, left);
            sums[2] += v * load_part(lower + c, left);
            sums[3] += v * load_part(lower + n.C + c, left);
          });
        } else {
          taps.for_corners(i, [&](int corner, int64_t cell) {
            for_vectors<C>(D, [&](int64_t c, int64_t left) {
              sums[corner] += load_part(grad + c, left) * load_part(cells + cell * n.C + c, left);
            });
          });
        }
        parts[j] = fold_four<C>(sums);
      }
      store(products + 4 * first, fold_fours<C>(parts));
    }
    taps.put_gradients(products, gradients);
  });
}

// A cell of the input sums in the order of the output cells, however the channels are cut.
template <typename T>
void conv_backward_cells(const ConvInput& in, const ConvColumns& columns, const ConvGradients& gradients, int64_t begin,
                         int64_t end) {
  using C = Compute<T>;
  const ConvSizes& n = in.n;
  const int64_t D = n.C / n.G;
  const ColumnRows<T> rows(n, columns);
  const int64_t first = columns.first, last = first + columns.cells;
  for_taps<T>(in, first, last, begin / D, (end - 1) / D + 1, [&](const Taps<T>& taps, int64_t p, int64_t g, int64_t t) {
    const int64_t from = std::max(begin, g * D), count = std::min(end, (g + 1) * D) - from;
    for (int i = 0; i < taps.count(); ++i) {
      const T* grad = rows.get(p + i, t, from, count);
      taps.for_corners(i, [&](int corner, int64_t cell) {
        C* sums = static_cast<C*>(gradients.cells) + cell * n.C + from;
        const C weight = taps.weight(corner, i);
        for_vectors<C>(count, [&](int64_t c, int64_t left) {
          store_part(sums + c, left, load_part(sums + c, left) + weight * load_part(grad + c, left));
        });
      });
    }
  });
}

template <typename T>
const ConvKernels& conv_kernels() {
  static const ConvKernels table = {conv_columns<T>, conv_backward_points<T>, conv_backward_cells<T>};
  return table;
}

}  // namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA

namespace mmdet_ddetr::cpu {

const ConvKernels& MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _conv_kernels)(ScalarType input) {
  using namespace MMDET_DDETR_ISA;
  switch (input) {
    case ScalarType::Double:
      return conv_kernels<double>();
    case ScalarType::Half:
      return conv_kernels<c10::Half>();
    case ScalarType::BFloat16:
      return conv_kernels<c10::BFloat16>();
    default:
      return conv_kernels<float>();
  }
}

}  // namespace mmdet_ddetr::cpu
