// Deformable convolution on the CPU. Included once per instruction set by isa_*.cpp; see simd.h.
//
// Arithmetic on samples (coordinates, corner weights) runs with an output cell in a lane, as the offsets lie in memory;
// sampling has a channel in a lane.

#include "../bilinear.h"

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"
// after simd.h
#include "placement.h"
#include "product.h"
// after product.h
#include "conv_product.h"

static_assert(kCells % Simd<float>::N == 0 && kCells % Simd<double>::N == 0);

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

// ConvColumns of element type E whose pieces are `piece` channels.
template <typename E, int piece>
class Columns {
 public:
  static constexpr int N = Simd<Compute<E>>::N;

  explicit Columns(const ConvColumns& c) : c_(c), data_(static_cast<E*>(c.data)) {}

  explicit operator bool() const { return data_; }

  // The columns of one tap and output cell.
  class Row {
   public:
    Row(const Columns& columns, int64_t t, int64_t p)
        : places_(columns.c_.places + t * columns.c_.pieces),
          data_(columns.data_ + (p - columns.c_.cell) * columns.c_.pitch),
          channel_(columns.c_.channel) {}

    MMDET_DDETR_INLINE void put(int64_t c, int64_t left, Vec<Compute<E>> v) const {
      const int64_t* places = places_ + (c - channel_) / piece;
      if constexpr (piece == N) return store(data_ + *places, v);
      E part[N];
      store(part, v);
      for (int i = 0; i < std::min<int64_t>(left, N); i += piece) {
        __builtin_memcpy(data_ + *places++, part + i, piece * sizeof(E));
      }
    }
    MMDET_DDETR_INLINE Vec<Compute<E>> get(int64_t c, int64_t left) const {
      const int64_t* places = places_ + (c - channel_) / piece;
      if constexpr (piece == N) return load(data_ + *places);
      if constexpr (2 * piece == N && std::is_same_v<E, Compute<E>>) {
        if (left >= N) return join(data_ + places[0], data_ + places[1]);
      }
      E part[N] = {};
      for (int i = 0; i < std::min<int64_t>(left, N); i += piece) {
        __builtin_memcpy(part + i, data_ + *places++, piece * sizeof(E));
      }
      return load(part);
    }

   private:
    const int64_t* const places_;
    E* const data_;
    const int64_t channel_;
  };

 private:
  const ConvColumns& c_;
  E* const data_;
};

// f(c, left) for vectors of channels from `from` to `to`; pieces of whole vectors leave no part of one.
template <typename C, int piece, typename F>
MMDET_DDETR_INLINE void for_vectors(int64_t from, int64_t to, const F& f) {
  constexpr int N = Simd<C>::N;
  for (int64_t c = from; c < to; c += N) f(c, piece == N ? N : to - c);
}

// f(taps, p, t, from, to) for all taps of the output cells from begin to end and the channels from c_begin to c_end, of
// an offset group at a time.
template <typename T, typename F>
MMDET_DDETR_INLINE void for_taps(const ConvInput& in, int64_t c_begin, int64_t c_end, int64_t begin, int64_t end,
                                 const F& f) {
  const int64_t D = in.n.C / in.n.G;
  Taps<T> taps(in);
  for (int64_t p = begin; p < end; p += Taps<T>::N) {
    taps.set_cells(p, end - p);
    for (int64_t g = c_begin / D; g * D < c_end; ++g) {
      for (int64_t t = 0; t < in.n.T(); ++t) {
        taps.set_tap(g, t);
        f(taps, p, g, t, std::max(c_begin, g * D), std::min(c_end, (g + 1) * D));
      }
    }
  }
}

template <typename T, typename E, int piece>
void conv_sample(const ConvInput& in, const ConvColumns& columns_, int64_t c_begin, int64_t c_end, int64_t begin,
                 int64_t end) {
  using C = Compute<T>;
  using Panel = Columns<E, piece>;
  const int64_t pitch = in.n.C;
  const Panel columns(columns_);
  const T* cells = static_cast<const T*>(in.cells);
  for_taps<T>(
      in, c_begin, c_end, begin, end,
      [&](const Taps<T>& taps, int64_t p, int64_t /*g*/, int64_t t, int64_t from, int64_t to) {
        for (int i = 0; i < taps.count(); ++i) {
          const typename Panel::Row row(columns, t, p + i);
          const C outside = taps.outside(i);
          if (__builtin_expect(taps.all_corners(i), 1)) {
            const T* upper = cells + taps.cell(i) * pitch;
            const T* lower = upper + in.n.W * pitch;
            const C w00 = taps.weight(0, i), w01 = taps.weight(1, i), w10 = taps.weight(2, i), w11 = taps.weight(3, i);
            for_vectors<C, piece>(from, to, [&](int64_t c, int64_t left) {
              Vec<C> sum = broadcast(outside);
              sum = multiply_add(broadcast(w00), load_part(upper + c, left), sum);
              sum = multiply_add(broadcast(w01), load_part(upper + pitch + c, left), sum);
              sum = multiply_add(broadcast(w10), load_part(lower + c, left), sum);
              sum = multiply_add(broadcast(w11), load_part(lower + pitch + c, left), sum);
              row.put(c, left, sum);
            });
          } else {
            for_vectors<C, piece>(from, to, [&](int64_t c, int64_t left) {
              Vec<C> sum = broadcast(outside);
              taps.for_corners(i, [&](int corner, int64_t cell) {
                sum = multiply_add(broadcast(taps.weight(corner, i)), load_part(cells + cell * pitch + c, left), sum);
              });
              row.put(c, left, sum);
            });
          }
        }
      });
}

template <typename T, typename E, int piece>
void conv_backward_points(const ConvInput& in, const ConvColumns& gradients_, const ConvColumns& columns_,
                          void* products_, int64_t c_begin, int64_t c_end, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vec<C>;
  using Panel = Columns<E, piece>;
  constexpr int N = Simd<C>::N;
  const int64_t pitch = in.n.C;
  const Panel gradients(gradients_), columns(columns_);
  const T* cells = static_cast<const T*>(in.cells);
  for_taps<T>(in, c_begin, c_end, begin, end,
              [&](const Taps<T>& taps, int64_t p, int64_t g, int64_t t, int64_t from, int64_t to) {
                C* products = static_cast<C*>(products_) + ((g * in.n.T() + t) * kTileCells + p - begin) * 4;
                for (int first = 0; first < taps.count(); first += N / 4) {
                  V parts[N / 4] = {};
                  for (int j = 0; j < N / 4 && first + j < taps.count(); ++j) {
                    const int i = first + j;
                    const typename Panel::Row grad(gradients, t, p + i), row(columns, t, p + i);
                    const C outside = taps.outside(i);
                    V sums[4] = {};
                    if (__builtin_expect(taps.all_corners(i), 1)) {
                      const T* upper = cells + taps.cell(i) * pitch;
                      const T* lower = upper + in.n.W * pitch;
                      const C w00 = taps.weight(0, i), w01 = taps.weight(1, i), w10 = taps.weight(2, i),
                              w11 = taps.weight(3, i);
                      const auto visit = [&](auto put) {
                        for_vectors<C, piece>(from, to, [&](int64_t c, int64_t left) {
                          const V v = grad.get(c, left);
                          const V v00 = load_part(upper + c, left), v01 = load_part(upper + pitch + c, left);
                          const V v10 = load_part(lower + c, left), v11 = load_part(lower + pitch + c, left);
                          sums[0] = multiply_add(v, v00, sums[0]);
                          sums[1] = multiply_add(v, v01, sums[1]);
                          sums[2] = multiply_add(v, v10, sums[2]);
                          sums[3] = multiply_add(v, v11, sums[3]);
                          if constexpr (put) {  // as in conv_sample, bit for bit
                            V sum = broadcast(outside);
                            sum = multiply_add(broadcast(w00), v00, sum);
                            sum = multiply_add(broadcast(w01), v01, sum);
                            sum = multiply_add(broadcast(w10), v10, sum);
                            sum = multiply_add(broadcast(w11), v11, sum);
                            row.put(c, left, sum);
                          }
                        });
                      };
                      columns ? visit(std::true_type()) : visit(std::false_type());
                    } else {
                      for_vectors<C, piece>(from, to, [&](int64_t c, int64_t left) {
                        V sum = broadcast(outside);
                        taps.for_corners(i, [&](int corner, int64_t cell) {
                          const V v = load_part(cells + cell * pitch + c, left);
                          sums[corner] = multiply_add(grad.get(c, left), v, sums[corner]);
                          sum = multiply_add(broadcast(taps.weight(corner, i)), v, sum);
                        });
                        if (columns) row.put(c, left, sum);
                      });
                    }
                    parts[j] = fold_four<C>(sums);
                  }
                  const int64_t numbers = 4 * std::min<int64_t>(taps.count() - first, N / 4);
                  store_part(products + 4 * first, numbers,
                             load_part(products + 4 * first, numbers) + fold_fours<C>(parts));
                }
              });
}

template <typename T>
void conv_finish_points(const ConvInput& in, const void* products_, const ConvGradients& gradients, int64_t begin,
                        int64_t end) {
  using C = Compute<T>;
  for_taps<T>(in, 0, in.n.C, begin, end, [&](const Taps<T>& taps, int64_t p, int64_t g, int64_t t, int64_t, int64_t) {
    const int64_t at = ((g * in.n.T() + t) * kTileCells + p - begin) * 4;
    C products[4 * Taps<T>::N] = {};
    __builtin_memcpy(products, static_cast<const C*>(products_) + at, 4 * taps.count() * sizeof(C));
    taps.put_gradients(products, gradients);
  });
}

// A cell of the input sums in the order of the output cells, however the channels are cut.
template <typename T, typename E, int piece>
void conv_backward_cells(const ConvInput& in, const ConvColumns& columns_, const ConvGradients& gradients,
                         int64_t c_begin, int64_t c_end, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using Panel = Columns<E, piece>;
  const int64_t pitch = in.n.C;
  const Panel columns(columns_);
  for_taps<T>(
      in, c_begin, c_end, begin, end,
      [&](const Taps<T>& taps, int64_t p, int64_t /*g*/, int64_t t, int64_t from, int64_t to) {
        for (int i = 0; i < taps.count(); ++i) {
          const typename Panel::Row grad(columns, t, p + i);
          C* sums = static_cast<C*>(gradients.cells);
          if (__builtin_expect(taps.all_corners(i), 1)) {
            C* upper = sums + taps.cell(i) * pitch;
            C* lower = upper + in.n.W * pitch;
            const C w00 = taps.weight(0, i), w01 = taps.weight(1, i), w10 = taps.weight(2, i), w11 = taps.weight(3, i);
            for_vectors<C, piece>(from, to, [&](int64_t c, int64_t left) {
              const Vec<C> v = grad.get(c, left);
              const Vec<C> v00 = multiply_add(broadcast(w00), v, load_part(upper + c, left));
              const Vec<C> v01 = multiply_add(broadcast(w01), v, load_part(upper + pitch + c, left));
              const Vec<C> v10 = multiply_add(broadcast(w10), v, load_part(lower + c, left));
              const Vec<C> v11 = multiply_add(broadcast(w11), v, load_part(lower + pitch + c, left));
              store_part(upper + c, left, v00);
              store_part(upper + pitch + c, left, v01);
              store_part(lower + c, left, v10);
              store_part(lower + pitch + c, left, v11);
            });
          } else {
            taps.for_corners(i, [&](int corner, int64_t cell) {
              for_vectors<C, piece>(from, to, [&](int64_t c, int64_t left) {
                C* sum = sums + cell * pitch + c;
                store_part(sum, left,
                           multiply_add(broadcast(taps.weight(corner, i)), grad.get(c, left), load_part(sum, left)));
              });
            });
          }
        }
      });
}

// f(piece) with the channels of a piece as a constant.
template <typename T, typename F>
MMDET_DDETR_INLINE void with_piece(int64_t piece, const F& f) {
  constexpr int N = Simd<Compute<T>>::N;
  if (piece == N) return f(std::integral_constant<int, N>());
  if (piece == N / 2) return f(std::integral_constant<int, N / 2>());
  f(std::integral_constant<int, 1>());
}

// The element type of columns, and their pieces, become constants.
template <typename T, typename F>
MMDET_DDETR_INLINE void with_columns(const ConvColumns& columns, const F& f) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    if (columns.narrow) return with_piece<T>(columns.piece, [&](auto piece) { f(T(), piece); });
  }
  with_piece<T>(columns.piece, [&](auto piece) { f(Compute<T>(), piece); });
}

template <typename T>
const ConvKernels& conv_kernels() {
  using C = Compute<T>;
  static const ConvKernels table = {
      Simd<C>::N,
      kFewRows,
      [](const ConvInput& in, const ConvColumns& columns, int64_t c_begin, int64_t c_end, int64_t begin, int64_t end) {
        with_columns<T>(columns, [&](auto e, auto piece) {
          conv_sample<T, decltype(e), piece>(in, columns, c_begin, c_end, begin, end);
        });
      },
      [](const ConvInput& in, const ConvColumns& gradients, const ConvColumns& columns, void* products, int64_t c_begin,
         int64_t c_end, int64_t begin, int64_t end) {
        with_columns<T>(gradients, [&](auto e, auto piece) {
          conv_backward_points<T, decltype(e), piece>(in, gradients, columns, products, c_begin, c_end, begin, end);
        });
      },
      conv_finish_points<T>,
      [](const ConvInput& in, const ConvColumns& columns, const ConvGradients& gradients, int64_t c_begin,
         int64_t c_end, int64_t begin, int64_t end) {
        with_columns<T>(columns, [&](auto e, auto piece) {
          conv_backward_cells<T, decltype(e), piece>(in, columns, gradients, c_begin, c_end, begin, end);
        });
      },
      conv_cells_of<T>,
      conv_channels_of<T>,
      conv_write_output<T>,
      conv_read_grad_output<T>,
      conv_pack_forward<T>,
      conv_pack_backward<T>,
      conv_unpack<T>,
      conv_forward_product<C>,
      conv_columns_product<C>,
      conv_weight_product<C>,
  };
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
