// A linear layer on the CPU, with an output in a lane. Included once per instruction set by isa_*.cpp; see simd.h.

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"
// after simd.h
#include "product.h"

static_assert(kPanel % (2 * Simd<float>::N) == 0);

// R rows from `row` on of W vectors of outputs from `o` on.
template <int R, int W>
MMDET_DDETR_INLINE void linear_tile(const LinearInput& in, float* output, int64_t row, int64_t o, Ahead& ahead) {
  constexpr int N = Simd<float>::N;
  const int64_t C_in = in.C_in, C_out = in.C_out, rest = C_out - o;
  Vec<float> sums[R][W];
#pragma GCC unroll 2
  for (int w = 0; w < W; ++w) {
    const Vec<float> bias = load_part(in.bias + o + w * N, rest - w * N);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sums[r][w] = bias;
  }
  add_products<float, R, W, kPanel, 1>(in.x + row * C_in, C_in, in.packed + o / kPanel * C_in * kPanel + o % kPanel,
                                       C_in, sums, ahead);
  const Vec<float> low = broadcast(in.low), high = broadcast(in.high);
  const float* add = in.add ? in.add + row * C_out + o : nullptr;
  float* to = output + row * C_out + o;
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int w = 0; w < W; ++w) {
      if (add) sums[r][w] += load_part(add + r * C_out + w * N, rest - w * N);
      store_part(to + r * C_out + w * N, rest - w * N, clamp(sums[r][w], low, high));
    }
  }
}

// Of rows that do not fill their last tile, some are computed twice, with the same result.
template <int R, int W>
__attribute__((noinline)) void linear_rows(const LinearInput& in, float* output, int64_t begin, int64_t end,
                                           int64_t o) {
  Ahead ahead = {reinterpret_cast<const char*>(in.packed + (o / kPanel + 1) * in.C_in * kPanel),
                 kPanel * 4 * R / (end - begin)};
  for (int64_t row = begin; row < end; row += R) linear_tile<R, W>(in, output, std::min(row, end - R), o, ahead);
}

template <int R>
void linear_panel(const LinearInput& in, float* output, int64_t begin, int64_t end, int64_t panel) {
  constexpr int N = Simd<float>::N;
  const int64_t last = std::min((panel + 1) * kPanel, in.C_out);
  for (int64_t o = panel * kPanel; o < last; o += 2 * N) {
    last - o > N ? linear_rows<R, 2>(in, output, begin, end, o) : linear_rows<R, 1>(in, output, begin, end, o);
  }
}

inline void linear(const LinearInput& in, float* output, int64_t begin, int64_t end, int64_t panel) {
  const int64_t rows = end - begin;
  const auto kernel = rows >= kTileRows  ? linear_panel<kTileRows>
                      : rows >= kFewRows ? linear_panel<kFewRows>
                                         : linear_panel<1>;
  kernel(in, output, begin, end, panel);
}

}  // namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA

namespace mmdet_ddetr::cpu {

LinearKernel MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _linear_kernel)() { return MMDET_DDETR_ISA::linear; }

}  // namespace mmdet_ddetr::cpu
