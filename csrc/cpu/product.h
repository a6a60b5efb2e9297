// What matrix products on the CPU are made of. Included like simd.h.
//
// A tile of kTileRows x 2 vectors of the result stays in registers while it is summed: each step takes a number of each
// row and broadcasts it over two vectors of the other factor.
#pragma once

constexpr int kTileRows = MMDET_DDETR_BYTES == 64 ? 12 : 6;  // with 2 vectors each: most of the registers
constexpr int kFewRows = kTileRows / 3;                      // where fewer are left

// What is read after a product comes from afar in the meantime: `pace` bytes a step.
struct Ahead {
  const char* next;
  int64_t pace;
};

// sums [R, W vectors] += a b over k steps. Number i of row r is a[i * step + r * row]; b [k, pitch].
template <typename C, int R, int W, int64_t pitch, int64_t step, typename Row>
MMDET_DDETR_INLINE void add_products(const C* a, Row row, const C* b, int64_t k, Vec<C> (&sums)[R][W], Ahead& ahead) {
  // A pointer to every third row: the addresses of three fit the processor's modes, and all of it its registers.
  const C* rows[(R + 2) / 3];
#pragma GCC unroll 4
  for (int i = 0; i < (R + 2) / 3; ++i) rows[i] = a + 3 * i * row;
  for (; k > 0; --k, b += pitch) {
    __builtin_prefetch(ahead.next, 0, 2);
    ahead.next += ahead.pace;
    Vec<C> other[W];
#pragma GCC unroll 2
    for (int w = 0; w < W; ++w) other[w] = load(b + w * Simd<C>::N);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vec<C> x = broadcast<C>(rows[r / 3][r % 3 * row]);
#pragma GCC unroll 2
      for (int w = 0; w < W; ++w) sums[r][w] = multiply_add(x, other[w], sums[r][w]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < (R + 2) / 3; ++i) rows[i] += step;
  }
}
