// Depthwise convolution on the CPU, with a channel in a lane. Included once per instruction set by isa_*.cpp; see
// simd.h.

#include "../inline.h"

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"

// Channels that are treated at once: a pair of vectors, one, or the first n lanes of one.
template <typename T, int vectors, bool part>
struct ChannelBlock {
  using V = Vec<Compute<T>>;
  static constexpr int kVectors = vectors;
  int n;

  MMDET_DDETR_INLINE void load(const T* from, V* v) const {
    if constexpr (vectors == 2) {
      const Pair<Compute<T>> pair = load_pair(from);
      v[0] = pair.a;
      v[1] = pair.b;
    } else {
      v[0] = part ? load_part(from, n) : MMDET_DDETR_ISA::load(from);
    }
  }
  MMDET_DDETR_INLINE void store(T* to, const V* v) const {
    if constexpr (vectors == 2) {
      store_pair(to, {v[0], v[1]});
    } else {
      part ? store_part(to, n, v[0]) : MMDET_DDETR_ISA::store(to, v[0]);
    }
  }
  MMDET_DDETR_INLINE void add_product(V* sum, const V* weight, const T* from) const {
    V v[vectors];
    load(from, v);
    for (int i = 0; i < vectors; ++i) sum[i] += weight[i] * v[i];
  }
};

// f(block, c) for all channels from begin to end; c is the first of each block.
template <typename T, typename F>
MMDET_DDETR_INLINE void for_channel_blocks(int64_t begin, int64_t end, const F& f) {
  constexpr int N = Simd<Compute<T>>::N;
  int64_t c = begin;
  for (; c + 2 * N <= end; c += 2 * N) f(ChannelBlock<T, 2, false>{2 * N}, c);
  if (c + N <= end) {
    f(ChannelBlock<T, 1, false>{N}, c);
    c += N;
  }
  if (c < end) f(ChannelBlock<T, 1, true>{static_cast<int>(end - c)}, c);
}

// The taps of output cells in one direction: tap k of cell o reads cell o stride - before + k.
struct AxisTaps {
  int64_t size, stride, before, kernel;

  MMDET_DDETR_INLINE int64_t first(int64_t o) const { return std::max<int64_t>(0, before - o * stride); }
  MMDET_DDETR_INLINE int64_t last(int64_t o) const { return std::min(kernel, size + before - o * stride); }

  // The cells [begin, end) of `count` whose taps all lie inside.
  MMDET_DDETR_INLINE int64_t inner_begin(int64_t count) const {
    return before <= 0 ? 0 : std::min(count, (before + stride - 1) / stride);
  }
  MMDET_DDETR_INLINE int64_t inner_end(int64_t count) const {
    const int64_t room = size + before - kernel;
    return room < 0 ? 0 : std::min(count, room / stride + 1);
  }
};

MMDET_DDETR_INLINE AxisTaps taps_of_rows(const DepthwiseInput& in) { return {in.H, in.sy, in.top, in.kh}; }
MMDET_DDETR_INLINE AxisTaps taps_of_columns(const DepthwiseInput& in) { return {in.W, in.sx, in.left, in.kw}; }

// Sums of `cells` neighbours in a row of the output, over the taps [u0, u1) x [v0, v1). `from` is where tap (0, 0) of
// the first reads, which need not exist. kw: what v1 - v0 is, or 0.
template <typename T, int cells, int kw, typename Block>
MMDET_DDETR_INLINE void convolve(const DepthwiseInput& in, const T* image, int64_t from, int64_t c, int64_t u0,
                                 int64_t u1, int64_t v0, int64_t v1, T* to, Block block) {
  using V = typename Block::V;
  const T* weight = static_cast<const T*>(in.weight) + c;
  const int64_t step = in.sx * in.C, last_tap = in.kh * in.kw - 1;
  V sum[cells][Block::kVectors] = {};
  if (in.bias) {
    for (int cell = 0; cell < cells; ++cell) block.load(static_cast<const T*>(in.bias) + c, sum[cell]);
  }
  for (int64_t u = u0; u < u1; ++u) {
    const int64_t row = from + u * in.W * in.C;
    const auto tap = [&](int64_t v) __attribute__((always_inline)) {
      const int64_t number = u * in.kw + v;
      V w[Block::kVectors];
      block.load(weight + (in.flipped ? last_tap - number : number) * in.C, w);
#pragma GCC unroll 8
      for (int cell = 0; cell < cells; ++cell) {
        block.add_product(sum[cell], w, image + (row + v * in.C + cell * step));
      }
    };
    if constexpr (kw != 0) {
#pragma GCC unroll 8
      for (int v = 0; v < kw; ++v) tap(v);
    } else {
      for (int64_t v = v0; v < v1; ++v) tap(v);
    }
  }
  const V low = broadcast(static_cast<Compute<T>>(in.low)), high = broadcast(static_cast<Compute<T>>(in.high));
  for (int cell = 0; cell < cells; ++cell) {
    for (int i = 0; i < Block::kVectors; ++i) sum[cell][i] = clamp(sum[cell][i], low, high);
    block.store(to + cell * in.C, sum[cell]);
  }
}

template <typename T, int kw>
void depthwise_forward(const DepthwiseInput& in, void* output, int64_t begin, int64_t end) {
  constexpr int kCells = 4;  // share a load of each weight
  const AxisTaps rows = taps_of_rows(in), columns = taps_of_columns(in);
  const int64_t inner = columns.inner_begin(in.Wo), outer = columns.inner_end(in.Wo);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t y = row % in.Ho, u0 = rows.first(y), u1 = rows.last(y);
    const T* image = static_cast<const T*>(in.input) + row / in.Ho * in.H * in.W * in.C;
    T* to = static_cast<T*>(output) + row * in.Wo * in.C;
    for_channel_blocks<T>(0, in.C, [&](auto block, int64_t c) __attribute__((always_inline)) {
      const auto from = [&](int64_t x) { return ((y * in.sy - in.top) * in.W + x * in.sx - in.left) * in.C + c; };
      int64_t x = 0;
      const auto outside = [&](int64_t until) {
        for (; x < until; ++x) {
          convolve<T, 1, 0>(in, image, from(x), c, u0, u1, columns.first(x), columns.last(x), to + x * in.C + c, block);
        }
      };
      outside(std::min(inner, in.Wo));
      for (; x + kCells <= outer; x += kCells) {
        convolve<T, kCells, kw>(in, image, from(x), c, u0, u1, 0, in.kw, to + x * in.C + c, block);
      }
      outside(in.Wo);
    });
  }
}

template <typename T>
void depthwise_backward_input(const DepthwiseInput& in, void* grad_input, int64_t begin, int64_t end) {
  const T* weight = static_cast<const T*>(in.weight);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t y = row % in.H + in.top;
    const T* grad = static_cast<const T*>(in.grad_output) + row / in.H * in.Ho * in.Wo * in.C;
    T* to = static_cast<T*>(grad_input) + row * in.W * in.C;
    for_channel_blocks<T>(0, in.C, [&](auto block, int64_t c) __attribute__((always_inline)) {
      using Block = decltype(block);
      int64_t v0 = in.left % in.sx, ox0 = in.left / in.sx;
      for (int64_t x = 0; x < in.W; ++x) {
        typename Block::V sum[Block::kVectors] = {};
        // Every stride-th tap has read this cell, each for the output cell before.
        for (int64_t u = y % in.sy, oy = y / in.sy; u < in.kh && oy >= 0; u += in.sy, --oy) {
          if (oy >= in.Ho) continue;
          for (int64_t v = v0, ox = ox0; v < in.kw && ox >= 0; v += in.sx, --ox) {
            if (ox >= in.Wo) continue;
            typename Block::V w[Block::kVectors];
            block.load(weight + (u * in.kw + v) * in.C + c, w);
            block.add_product(sum, w, grad + (oy * in.Wo + ox) * in.C + c);
          }
        }
        block.store(to + x * in.C + c, sum);
        if (++v0 == in.sx) {
          v0 = 0;
          ++ox0;
        }
      }
    });
  }
}

// Adds what row `row` of all images' outputs gives to the gradients of a row u of taps: kw of them or, where kw is 0,
// the one tap v0.
template <typename T, int kw, typename Block>
MMDET_DDETR_INLINE void add_taps(const DepthwiseInput& in, AxisTaps columns, int64_t row, int64_t c, int64_t u,
                                 int64_t v0, Compute<T>* sums, Block block) {
  using V = typename Block::V;
  constexpr int kTaps = kw ? kw : 1, kVectors = Block::kVectors, N = Simd<Compute<T>>::N;
  const int64_t inner = columns.inner_begin(in.Wo), outer = columns.inner_end(in.Wo);
  const int64_t b = row / in.Ho, y = row % in.Ho;
  const T* grad = static_cast<const T*>(in.grad_output) + row * in.Wo * in.C + c;
  const T* input = static_cast<const T*>(in.input) + c;
  const int64_t first = (b * in.H + y * in.sy - in.top + u) * in.W - in.left + v0;
  V sum[kTaps][kVectors];
  for (int v = 0; v < kTaps; ++v) {
    for (int i = 0; i < kVectors; ++i) sum[v][i] = load(sums + (v * kVectors + i) * N);
  }
  const auto cell = [&](int64_t x, auto inside) __attribute__((always_inline)) {
    const int64_t v_first = columns.first(x) - v0, v_last = columns.last(x) - v0;
    V g[kVectors];
    block.load(grad + x * in.C, g);
#pragma GCC unroll 8
    for (int v = 0; v < kTaps; ++v) {
      if (inside || (v >= v_first && v < v_last)) {
        block.add_product(sum[v], g, input + (first + x * in.sx + v) * in.C);
      }
    }
  };
  int64_t x = 0;
  for (; x < inner; ++x) cell(x, std::false_type());
  for (; x < outer; ++x) cell(x, std::true_type());
  for (; x < in.Wo; ++x) cell(x, std::false_type());
  for (int v = 0; v < kTaps; ++v) {
    for (int i = 0; i < kVectors; ++i) store(sums + (v * kVectors + i) * N, sum[v][i]);
  }
}

template <typename T, int kw>
void depthwise_backward_weight(const DepthwiseInput& in, void* grad_weight, void* grad_bias, int64_t begin,
                               int64_t end) {
  const AxisTaps rows = taps_of_rows(in), columns = taps_of_columns(in);
  for_channel_blocks<T>(begin, end, [&](auto block, int64_t c) __attribute__((always_inline)) {
    using Block = decltype(block);
    using V = typename Block::V;
    constexpr int kVectors = Block::kVectors, N = Simd<Compute<T>>::N;
    Buffer<Compute<T>> sums(in.kh * in.kw * kVectors * N);
    V bias[kVectors] = {}, one[kVectors];
    for (int i = 0; i < kVectors; ++i) one[i] = broadcast<Compute<T>>(1);
    for (int64_t row = 0; row < in.B * in.Ho; ++row) {
      const int64_t u1 = rows.last(row % in.Ho);
      for (int64_t u = rows.first(row % in.Ho); u < u1; ++u) {
        for (int64_t v = 0; v < in.kw; v += kw ? kw : 1) {
          add_taps<T, kw>(in, columns, row, c, u, v, sums + (u * in.kw + v) * kVectors * N, block);
        }
      }
      if (grad_bias == nullptr) continue;
      const T* grad = static_cast<const T*>(in.grad_output) + row * in.Wo * in.C + c;
      for (int64_t x = 0; x < in.Wo; ++x) block.add_product(bias, one, grad + x * in.C);
    }
    for (int64_t tap = 0; tap < in.kh * in.kw; ++tap) {
      V sum[kVectors];
      for (int i = 0; i < kVectors; ++i) sum[i] = load(sums + (tap * kVectors + i) * N);
      block.store(static_cast<T*>(grad_weight) + tap * in.C + c, sum);
    }
    if (grad_bias != nullptr) block.store(static_cast<T*>(grad_bias) + c, bias);
  });
}

template <typename T, int kw>
const DepthwiseKernels& depthwise_kernels() {
  static const DepthwiseKernels kernels = {depthwise_forward<T, kw>, depthwise_backward_input<T>,
                                           depthwise_backward_weight<T, kw>};
  return kernels;
}

// What networks are trained in has the usual kernels unrolled.
template <typename T>
const DepthwiseKernels& unrolled_depthwise_kernels(int64_t kw) {
  return kw == 3 ? depthwise_kernels<T, 3>() : kw == 5 ? depthwise_kernels<T, 5>() : depthwise_kernels<T, 0>();
}

}  // namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA

namespace mmdet_ddetr::cpu {

const DepthwiseKernels& MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _depthwise_kernels)(ScalarType dtype, int64_t kw) {
  using namespace MMDET_DDETR_ISA;
  switch (dtype) {
    case ScalarType::Double:
      return depthwise_kernels<double, 0>();
    case ScalarType::Half:
      return depthwise_kernels<c10::Half, 0>();
    case ScalarType::BFloat16:
      return unrolled_depthwise_kernels<c10::BFloat16>(kw);
    default:
      return unrolled_depthwise_kernels<float>(kw);
  }
}

}  // namespace mmdet_ddetr::cpu
