// Multi-scale deformable attention on the CPU. Included once per instruction set by isa_*.cpp; see simd.h.
//
// A row is what one head has in one query: P = L K points. Arithmetic on points (locations, corner weights, softmax)
// runs with a point in a lane, sampling with a channel in a lane.

#include "../bilinear.h"

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"
// after simd.h
#include "placement.h"

// Rows of a tensor that is stored as T or as its compute type C, read and written as C.
template <typename T>
class Rows {
 public:
  using C = Compute<T>;

  Rows(const void* data, bool narrow) : data_(const_cast<void*>(data)), narrow_(narrow) {}

  // The numbers from `at` on, of which the row has n; `fill` stands for what a vector reads beyond.
  MMDET_DDETR_INLINE Vec<C> get(int64_t at, int64_t n, C fill = 0) const {
    return narrow_ ? load_part(static_cast<const T*>(data_) + at, n, fill)
                   : load_part(static_cast<const C*>(data_) + at, n, fill);
  }
  MMDET_DDETR_INLINE void put(int64_t at, int64_t n, Vec<C> v) const {
    narrow_ ? store_part(static_cast<T*>(data_) + at, n, v) : store_part(static_cast<C*>(data_) + at, n, v);
  }

 private:
  void* const data_;
  const bool narrow_;
};

// The points of a row, ready for sampling. Arrays are [P], padded with zeros to whole vectors.
template <typename T>
struct Points {
  using C = Compute<T>;
  using V = Vec<C>;
  using I = IntVec<C>;
  using Int = typename Simd<C>::Int;
  static constexpr int N = Simd<C>::N;

  explicit Points(const Input& in)
      : in(in),
        P(in.n.L * in.n.K),
        padded((P + N - 1) / N * N),
        points(in.points, in.narrow),
        weights(in.weights, in.narrow) {
    for (int64_t p = 0; p < P; ++p) {
      const Level& level = in.levels[p / in.n.K];
      width[p] = static_cast<C>(level.W);
      height[p] = static_cast<C>(level.H);
      start[p] = static_cast<Int>(level.start);
      pitch[p] = static_cast<Int>(level.W);
      set_affine(p, affine_of_location(width[p]), affine_of_location(height[p]));
    }
  }

  bool fused() const { return in.reference_points != nullptr; }

  // The references of a query, for all its heads.
  void set_query(int64_t bq) {
    if (!fused()) return;
    const int64_t R = in.n.R;
    const C K = static_cast<C>(in.n.K);
    for (int64_t p = 0; p < P; ++p) {
      const C* r = static_cast<const C*>(in.reference_points) + (bq * in.n.L + p / in.n.K) * R;
      if (R == 2) {
        set_affine(p, affine_of_point(r[0], width[p]), affine_of_point(r[1], height[p]));
      } else {
        set_affine(p, affine_of_box(r[0], r[2], K, width[p]), affine_of_box(r[1], r[3], K, height[p]));
      }
    }
  }

  // Points p_begin to p_end of row (b Q + q) M + m; p_begin at a whole vector.
  MMDET_DDETR_INLINE void set_row(int64_t row) {
    fused() ? set_softmax(row) : set_weights(row);
    V outside = {};
    for (int64_t p = 0; p < P; p += N) {
      const int64_t at = 2 * (row * P + p), n = 2 * (P - p);
      V x, y;
      deinterleave<C>(points.get(at, n), points.get(at + N, n - N), x, y);
      store(input_x + p, x);
      store(input_y + p, y);
      x = load(base_x + p) + load(scale_x + p) * x;
      y = load(base_y + p) + load(scale_y + p) * y;

      const Placement<C> placed = place<C>(x, y, load(width + p), load(height + p), load_bits<I>(pitch + p));
      outside += placed.outside;
      store(fx + p, placed.fx);
      store(fy + p, placed.fy);
      const V a = load(weight + p);
      store(w00 + p, a * placed.weights.c00);
      store(w01 + p, a * placed.weights.c01);
      store(w10 + p, a * placed.weights.c10);
      store(w11 + p, a * placed.weights.c11);
      store_bits(inside + p, placed.inside);
      store_bits(cell + p, load_bits<I>(start + p) + placed.cell);
    }
    outside_sum = sum_of_lanes<C>(outside);
  }

  const Input& in;
  const int64_t P, padded;
  const Rows<T> points, weights;

  Buffer<C> width{padded}, height{padded}, base_x{padded}, base_y{padded}, scale_x{padded}, scale_y{padded};
  Buffer<Int> start{padded}, pitch{padded};  // of the level: first cell, cells a map row

  Buffer<C> input_x{padded}, input_y{padded}, weight{padded}, fx{padded}, fy{padded};
  Buffer<C> w00{padded}, w01{padded}, w10{padded}, w11{padded};  // corner weights times attention weight
  Buffer<Int> cell{padded}, inside{padded};  // cell of corner (y0, x0), which need not exist; which corners do
  C outside_sum = 0;                         // the samples outside the map: 0, or NaN

 private:
  void set_affine(int64_t p, Affine<C> x, Affine<C> y) {
    base_x[p] = x.base;
    base_y[p] = y.base;
    scale_x[p] = x.scale;
    scale_y[p] = y.scale;
  }

  MMDET_DDETR_INLINE void set_weights(int64_t row) {
    for (int64_t p = 0; p < P; p += N) store(weight + p, weights.get(row * P + p, P - p));
  }

  MMDET_DDETR_INLINE void set_softmax(int64_t row) {
    constexpr C kLowest = -std::numeric_limits<C>::infinity();
    V top = broadcast<C>(kLowest), sum = {};
    for (int64_t p = 0; p < P; p += N) {
      const V logits = weights.get(row * P + p, P - p, kLowest);
      store(weight + p, logits);
      top = logits > top ? logits : top;
    }
    const C peak = max_of_lanes<C>(top);
    for (int64_t p = 0; p < P; p += N) {
      const V e = exp_of_nonpositive(load(weight + p) - peak);
      store(weight + p, e);
      sum += e;
    }
    const C normaliser = 1 / sum_of_lanes<C>(sum);
    for (int64_t p = 0; p < P; p += N) store(weight + p, load(weight + p) * normaliser);
  }
};

// Channels that are treated at once: kPairs pairs of vectors; or one vector, half a pair; or the last n < a vector.
enum class Width { kPairs, kVector, kPart };

template <typename T, int pairs, Width width>
struct Channels {
  using C = Compute<T>;
  static constexpr int kPairs = pairs;
  int n;

  MMDET_DDETR_INLINE Pair<C> load(const T* from, int i) const {
    if constexpr (width == Width::kPairs) return load_pair(from + i * kPair<T>);
    if constexpr (width == Width::kVector) return {MMDET_DDETR_ISA::load(from), Vec<C>{}};
    return load_pair(from, n);
  }
  MMDET_DDETR_INLINE void store(T* to, int i, Pair<C> v) const {
    if constexpr (width == Width::kPairs) return store_pair(to + i * kPair<T>, v);
    if constexpr (width == Width::kVector) return MMDET_DDETR_ISA::store(to, v.a);
    store_pair(to, v, n);
  }
  // May the channels of cells `stride` apart be written past the caches? Only aligned pairs may.
  bool streams(const T* to, int64_t stride) const {
    return width == Width::kPairs && reinterpret_cast<uintptr_t>(to) % MMDET_DDETR_BYTES == 0 &&
           stride * sizeof(T) % MMDET_DDETR_BYTES == 0;
  }
  MMDET_DDETR_INLINE void stream(T* to, int i, Pair<C> v) const { stream_pair(to + i * kPair<T>, v); }
};

// f(channels, d) for all channels from begin to end; d is the first of each.
template <typename T, typename F>
MMDET_DDETR_INLINE void for_channels(int64_t begin, int64_t end, const F& f) {
  constexpr int64_t kVector = kPair<T> / 2;
  int64_t d = begin;
  for (; d + 2 * kPair<T> <= end; d += 2 * kPair<T>) f(Channels<T, 2, Width::kPairs>{2 * kPair<T>}, d);
  if (d + kPair<T> <= end) {
    f(Channels<T, 1, Width::kPairs>{kPair<T>}, d);
    d += kPair<T>;
  }
  if (d + kVector <= end) {
    f(Channels<T, 1, Width::kVector>{kVector}, d);
    d += kVector;
  }
  if (d < end) f(Channels<T, 1, Width::kPart>{static_cast<int>(end - d)}, d);
}

template <typename C>
MMDET_DDETR_INLINE void add(Pair<C>& sum, C weight, Pair<C> v) {
  sum.a += weight * v.a;
  sum.b += weight * v.b;
}

// Where cells lie in memory, in numbers from the start of a tensor: the channels of a head in cell 0, and the way from
// cell to cell. A pointer is made of it only for a cell that exists.
struct Cells {
  int64_t first, stride;
};

// Weighted sum of all samples of a row.
template <typename T, typename Ch>
MMDET_DDETR_INLINE void sample(const Points<T>& points, const T* value, Cells cells, T* output, Ch channels) {
  using C = Compute<T>;
  Pair<C> upper[Ch::kPairs], lower[Ch::kPairs] = {};  // two sums, to hide the latency of an addition
  for (int i = 0; i < Ch::kPairs; ++i) upper[i].a = upper[i].b = broadcast<C>(points.outside_sum);
  for (int64_t p = 0; p < points.P; ++p) {
    const auto inside = points.inside[p];
    const int64_t at = cells.first + points.cell[p] * cells.stride, below = at + points.pitch[p] * cells.stride;
    if (__builtin_expect(inside == kAllCorners, 1)) {
      for (int i = 0; i < Ch::kPairs; ++i) {
        add(upper[i], points.w00[p], channels.load(value + at, i));
        add(lower[i], points.w10[p], channels.load(value + below, i));
        add(upper[i], points.w01[p], channels.load(value + at + cells.stride, i));
        add(lower[i], points.w11[p], channels.load(value + below + cells.stride, i));
      }
    } else if (inside) {
      for (int i = 0; i < Ch::kPairs; ++i) {
        if (inside & kC00) add(upper[i], points.w00[p], channels.load(value + at, i));
        if (inside & kC10) add(lower[i], points.w10[p], channels.load(value + below, i));
        if (inside & kC01) add(upper[i], points.w01[p], channels.load(value + (at + cells.stride), i));
        if (inside & kC11) add(lower[i], points.w11[p], channels.load(value + (below + cells.stride), i));
      }
    }
  }
  for (int i = 0; i < Ch::kPairs; ++i) channels.store(output, i, {upper[i].a + lower[i].a, upper[i].b + lower[i].b});
}

template <typename T>
void forward(const Input& in, void* output, int64_t begin, int64_t end) {
  const Sizes& n = in.n;
  Points<T> points(in);
  for (int64_t bq = begin; bq < end; ++bq) {
    points.set_query(bq);
    const int64_t image = bq / n.Q * n.S * n.M * n.D;
    T* to = static_cast<T*>(output) + bq * n.M * n.D;
    for (int64_t m = 0; m < n.M; ++m) {
      points.set_row(bq * n.M + m);
      for_channels<T>(0, n.D, [&](auto channels, int64_t d) {
        sample(points, static_cast<const T*>(in.value), {image + m * n.D + d, n.M * n.D}, to + m * n.D + d, channels);
      });
    }
  }
}

// products [P, 4] += for each corner of each point, the product of its value with the gradient of the row's output.
template <typename T, typename Ch>
MMDET_DDETR_INLINE void add_products(const Points<T>& points, const T* value, Cells cells, const T* grad_output,
                                     Compute<T>* products, Ch channels) {
  using C = Compute<T>;
  constexpr int N = Simd<C>::N;
  Pair<C> g[Ch::kPairs];
  for (int i = 0; i < Ch::kPairs; ++i) g[i] = channels.load(grad_output, i);
  const auto product = [&](int64_t at) {
    Vec<C> sum = {};
    for (int i = 0; i < Ch::kPairs; ++i) {
      const Pair<C> v = channels.load(value + at, i);
      sum += v.a * g[i].a + v.b * g[i].b;
    }
    return sum;
  };
  for (int64_t first = 0; first < points.P; first += N / 4) {
    Vec<C> parts[N / 4];  // of the products of N / 4 points
    for (int j = 0; j < N / 4; ++j) {
      const int64_t p = first + j;  // inside[p] is 0 in the padding
      const auto inside = points.inside[p];
      const int64_t at = cells.first + points.cell[p] * cells.stride, below = at + points.pitch[p] * cells.stride;
      if (__builtin_expect(inside == kAllCorners, 1)) {
        const Vec<C> corners[4] = {product(at), product(at + cells.stride), product(below),
                                   product(below + cells.stride)};
        parts[j] = fold_four<C>(corners);
      } else {
        Vec<C> corners[4] = {};
        if (inside & kC00) corners[0] = product(at);
        if (inside & kC01) corners[1] = product(at + cells.stride);
        if (inside & kC10) corners[2] = product(below);
        if (inside & kC11) corners[3] = product(below + cells.stride);
        parts[j] = fold_four<C>(corners);
      }
    }
    store(products + 4 * first, load(products + 4 * first) + fold_fours<C>(parts));
  }
}

// Gradients of what is given per point, and of the references, which collect those of all heads and points.
template <typename T>
class PointGradients {
 public:
  using C = Compute<T>;
  using V = Vec<C>;
  static constexpr int N = Simd<C>::N;

  PointGradients(const Points<T>& points, const Gradients& gradients)
      : points_(points),
        gradients_(gradients),
        points_out_(gradients.points, points.in.narrow),
        weights_out_(gradients.weights, points.in.narrow) {}

  // [P, 4], to be filled by add_products for each row
  C* clear_products() {
    __builtin_memset(products_, 0, 4 * points_.padded * sizeof(C));
    return products_;
  }

  MMDET_DDETR_INLINE void put_row(int64_t row) {
    const int64_t P = points_.P;
    V weighted = {};  // for the softmax: sum of weight times its gradient
    for (int64_t p = 0; p < P; p += N) {
      const Corners<V> v = by_corner(products_ + 4 * p);
      const V fx = load(points_.fx + p), fy = load(points_.fy + p), a = load(points_.weight + p);
      const V grad_a = interpolate(fx, fy, v), dx = a * interpolate_dx(fy, v), dy = a * interpolate_dy(fx, v);
      weighted += a * grad_a;
      store(grad_weight_ + p, grad_a);

      V low, high;
      interleave<C>(dx * load(points_.scale_x + p), dy * load(points_.scale_y + p), low, high);
      const int64_t at = 2 * (row * P + p), n = 2 * (P - p);
      points_out_.put(at, n, low);
      points_out_.put(at + N, n - N, high);

      if (gradients_.reference_points) {
        accumulate(centre_x_ + p, dx);
        accumulate(centre_y_ + p, dy);
        accumulate(extent_x_ + p, dx * load(points_.input_x + p));
        accumulate(extent_y_ + p, dy * load(points_.input_y + p));
      }
    }
    const C mean = points_.fused() ? sum_of_lanes<C>(weighted) : 0;
    for (int64_t p = 0; p < P; p += N) {
      const V grad = load(grad_weight_ + p);
      weights_out_.put(row * P + p, P - p, points_.fused() ? load(points_.weight + p) * (grad - mean) : grad);
    }
  }

  // After all heads of a query.
  void put_query(int64_t bq) {
    if (!gradients_.reference_points) return;
    const Sizes& n = points_.in.n;
    C* to = static_cast<C*>(gradients_.reference_points) + bq * n.L * n.R;
    for (int64_t l = 0; l < n.L; ++l, to += n.R) {
      C sums[4] = {};
      for (int64_t p = l * n.K; p < (l + 1) * n.K; ++p) {
        sums[0] += centre_x_[p] * points_.width[p];
        sums[1] += centre_y_[p] * points_.height[p];
        sums[2] += extent_x_[p] * points_.width[p] * (C(0.5) / n.K);
        sums[3] += extent_y_[p] * points_.height[p] * (C(0.5) / n.K);
      }
      for (int64_t r = 0; r < n.R; ++r) to[r] = sums[r];
    }
    for (C* sums : {+centre_x_, +centre_y_, +extent_x_, +extent_y_}) {
      __builtin_memset(sums, 0, points_.padded * sizeof(C));
    }
  }

 private:
  static MMDET_DDETR_INLINE void accumulate(C* sum, V v) { store(sum, load(sum) + v); }

  const Points<T>& points_;
  const Gradients& gradients_;
  const Rows<T> points_out_, weights_out_;
  Buffer<C> products_{4 * points_.padded}, grad_weight_{points_.padded};
  // sums over heads of the derivatives by the coordinates, and of these times the inputs
  Buffer<C> centre_x_{points_.padded}, centre_y_{points_.padded}, extent_x_{points_.padded}, extent_y_{points_.padded};
};

template <typename T>
void backward_points(const Input& in, const Gradients& gradients, int64_t begin, int64_t end) {
  const Sizes& n = in.n;
  Points<T> points(in);
  PointGradients<T> point_gradients(points, gradients);
  for (int64_t bq = begin; bq < end; ++bq) {
    points.set_query(bq);
    const int64_t image = bq / n.Q * n.S * n.M * n.D;
    const T* grad_output = static_cast<const T*>(in.grad_output) + bq * n.M * n.D;
    for (int64_t m = 0; m < n.M; ++m) {
      points.set_row(bq * n.M + m);
      Compute<T>* products = point_gradients.clear_products();
      for_channels<T>(0, n.D, [&](auto channels, int64_t d) {
        add_products(points, static_cast<const T*>(in.value), {image + m * n.D + d, n.M * n.D},
                     grad_output + m * n.D + d, products, channels);
      });
      point_gradients.put_row(bq * n.M + m);
    }
    point_gradients.put_query(bq);
  }
}

// sums [cells, pairs]: what one row adds to the gradient of the cells from first_cell on, in the compute type and in
// Pair's order.
template <typename T, typename Ch>
MMDET_DDETR_INLINE void scatter(const Points<T>& points, int64_t p_begin, int64_t p_end, const T* grad_output,
                                Compute<T>* sums, int64_t first_cell, Ch channels) {
  using C = Compute<T>;
  constexpr int64_t kStride = Ch::kPairs * kPair<T>;
  Pair<C> g[Ch::kPairs];
  for (int i = 0; i < Ch::kPairs; ++i) g[i] = channels.load(grad_output, i);
  const auto add_to = [&](int64_t at, C weight) {
    for (int i = 0; i < Ch::kPairs; ++i, at += kPair<T>) {
      Pair<C> sum = {load(sums + at), load(sums + at + kPair<T> / 2)};
      add(sum, weight, g[i]);
      store(sums + at, sum.a);
      store(sums + at + kPair<T> / 2, sum.b);
    }
  };
  for (int64_t p = p_begin; p < p_end; ++p) {
    const auto inside = points.inside[p];
    const int64_t at = (points.cell[p] - first_cell) * kStride, below = at + points.pitch[p] * kStride;
    if (__builtin_expect(inside == kAllCorners, 1)) {
      add_to(at, points.w00[p]);
      add_to(at + kStride, points.w01[p]);
      add_to(below, points.w10[p]);
      add_to(below + kStride, points.w11[p]);
    } else if (inside) {
      if (inside & kC00) add_to(at, points.w00[p]);
      if (inside & kC01) add_to(at + kStride, points.w01[p]);
      if (inside & kC10) add_to(below, points.w10[p]);
      if (inside & kC11) add_to(below + kStride, points.w11[p]);
    }
  }
}

// sums [cells, pairs] as T into the cells at `to`, `stride` apart.
template <typename T, typename Ch>
MMDET_DDETR_INLINE void write_cells(const Compute<T>* sums, int64_t cells, T* to, int64_t stride, Ch channels) {
  const auto write = [&](const auto& put) {
    for (int64_t cell = 0; cell < cells; ++cell, to += stride) {
      for (int i = 0; i < Ch::kPairs; ++i, sums += kPair<T>)
        put(to, i, Pair<Compute<T>>{load(sums), load(sums + kPair<T> / 2)});
    }
  };
  // A map that outgrows the caches is evicted before it is read again; then every line written would be fetched in
  // vain.
  if (cells * stride * sizeof(T) > (1 << 22) && channels.streams(to, stride)) {
    write([&](T* at, int i, Pair<Compute<T>> v) { channels.stream(at, i, v); });
    stream_fence();
  } else {
    write([&](T* at, int i, Pair<Compute<T>> v) { channels.store(at, i, v); });
  }
}

// Each cell of the region collects its terms in the order of the queries and points, however the regions are cut.
template <typename T>
void backward_value(const Input& in, void* grad_value, const ValueRegion& region) {
  using C = Compute<T>;
  const Sizes& n = in.n;
  const Level& last = in.levels[region.level_end - 1];
  const int64_t first_cell = in.levels[region.level_begin].start;
  const int64_t cells = last.start + last.H * last.W - first_cell;
  Points<T> points(in);
  for_channels<T>(region.d_begin, region.d_end, [&](auto channels, int64_t d) {
    constexpr int64_t kStride = decltype(channels)::kPairs * kPair<T>;
    Buffer<C> sums(cells * kStride);
    for (int64_t bq = region.b * n.Q; bq < (region.b + 1) * n.Q; ++bq) {
      const int64_t row = bq * n.M + region.m;
      points.set_query(bq);
      points.set_row(row);
      scatter(points, region.level_begin * n.K, region.level_end * n.K,
              static_cast<const T*>(in.grad_output) + row * n.D + d, sums, first_cell, channels);
    }
    write_cells(sums, cells, static_cast<T*>(grad_value) + ((region.b * n.S + first_cell) * n.M + region.m) * n.D + d,
                n.M * n.D, channels);
  });
}

template <typename T>
const Kernels& kernels() {
  static const Kernels table = {2 * kPair<T>, forward<T>, backward_points<T>, backward_value<T>};
  return table;
}

}  // namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA

namespace mmdet_ddetr::cpu {

const Kernels& MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _kernels)(ScalarType value) {
  using namespace MMDET_DDETR_ISA;
  switch (value) {
    case ScalarType::Double:
      return kernels<double>();
    case ScalarType::Half:
      return kernels<c10::Half>();
    case ScalarType::BFloat16:
      return kernels<c10::BFloat16>();
    default:
      return kernels<float>();
  }
}

}  // namespace mmdet_ddetr::cpu
