// The matrix products of deformable convolution on the CPU. Included like simd.h, after product.h.
//
// A number of the result sums in the same order wherever its tile begins, so results do not depend on how cells are
// shared out among threads.
#pragma once

constexpr int64_t kDepth = 192;  // steps whose vectors stay in the first cache

static_assert(kTileCells % kTileRows == 0);

template <typename C>
constexpr int64_t kBlock = 2 * Simd<C>::N;  // lanes of a tile

// c [R, kBlock] (+)= a b over k steps, the first W vectors of each row. Number i of row r is
// a[i / run * jump + i % run * step + r * row]; b [k, kBlock].
template <typename C, int R, int W, int64_t row, int64_t step>
MMDET_DDETR_INLINE void multiply_tile(const C* a, int64_t run, int64_t jump, const C* b, C* c, int64_t k, bool add,
                                      Ahead& ahead) {
  constexpr int N = Simd<C>::N;
  Vec<C> sums[R][W];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int w = 0; w < W; ++w) sums[r][w] = add ? load(c + r * kBlock<C> + w * N) : Vec<C>{};
  }
  for (; k > 0; k -= run, a += jump, b += run * kBlock<C>) {
    add_products<C, R, W, kBlock<C>, step>(a, std::integral_constant<int64_t, row>(), b, std::min(run, k), sums, ahead);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int w = 0; w < W; ++w) store(c + r * kBlock<C> + w * N, sums[r][w]);
  }
}

// The same for `rows` rows, some of which may be there only to make up a tile.
template <typename C, int R, int W, int64_t row, int64_t step>
MMDET_DDETR_INLINE void multiply_rows(const C* a, int64_t run, int64_t jump, const C* b, C* c, int64_t k, bool add,
                                      int64_t rows) {
  if (rows == 0) return;
  Ahead ahead = {reinterpret_cast<const char*>(b + k * kBlock<C>),
                 kBlock<C> * static_cast<int64_t>(sizeof(C)) * R / rows};
  for (int64_t r = 0; r < rows; r += R) {
    multiply_tile<C, R, W, row, step>(a + r * row, run, jump, b, c + r * kBlock<C>, k, add, ahead);
  }
}

template <typename C, int R, int64_t row, int64_t step>
__attribute__((noinline)) void multiply(const C* a, int64_t run, int64_t jump, const C* b, C* c, int64_t k, bool add,
                                        int64_t rows, int64_t lanes) {
  if (lanes > Simd<C>::N) {
    multiply_rows<C, R, 2, row, step>(a, run, jump, b, c, k, add, rows);
  } else {
    multiply_rows<C, R, 1, row, step>(a, run, jump, b, c, k, add, rows);
  }
}

// sums [panels of outputs, kTileCells, kBlock] (+)= columns [blocks of numbers, kTileCells, kBlock] times
// packed [panels of outputs, numbers, kBlock]
template <typename C>
void conv_forward_product(const ConvTiles& tiles, int64_t segment, const void* columns, const void* packed, void* sums,
                          int64_t cells) {
  constexpr int64_t B = kBlock<C>, depth = kDepth / B * B;
  const int64_t outs = tiles.outs(), K = tiles.numbers(segment);
  const C* other = static_cast<const C*>(packed);
  for (int64_t o = 0; o < outs; o += B) {
    C* sum = static_cast<C*>(sums) + o * kTileCells;
    for (int64_t k = 0; k < K; k += depth) {
      multiply<C, kTileRows, B, 1>(static_cast<const C*>(columns) + k * kTileCells, B, kTileCells * B, other + k * B,
                                   sum, std::min(depth, K - k), k > 0 || !tiles.begins_group(segment), cells, outs - o);
    }
    other += tiles.most_numbers() * B;
  }
}

// columns [blocks of numbers, kTileCells, kBlock] = grad_output^T, of grad_output [outputs, kTileCells], times
// packed [blocks of numbers, outputs, kBlock]
template <typename C>
void conv_columns_product(const ConvTiles& tiles, int64_t segment, const void* grad_output, const void* packed,
                          void* columns, int64_t cells) {
  constexpr int64_t B = kBlock<C>;
  const int64_t outs = tiles.outs(), K = tiles.numbers(segment);
  const C* a = static_cast<const C*>(grad_output) + tiles.group(segment) * outs * kTileCells;
  for (int64_t k = 0; k < K; k += B) {
    const C* other = static_cast<const C*>(packed) + k * tiles.padded_outs();
    for (int64_t o = 0; o < outs; o += kDepth) {
      const int64_t depth = std::min(kDepth, outs - o);
      multiply<C, kTileRows, 1, kTileCells>(a + o * kTileCells, depth, 0, other + o * B,
                                            static_cast<C*>(columns) + k * kTileCells, depth, o > 0, cells, K - k);
    }
  }
}

// grad_weight [outputs, kBlock] += grad_output [outputs, kTileCells] times columns [kTileCells, kBlock], for one block
// of a segment's numbers
template <typename C>
void conv_weight_product(const ConvTiles& tiles, int64_t segment, int64_t block, const void* grad_output,
                         const void* columns, void* grad_weight, int64_t cells) {
  constexpr int64_t B = kBlock<C>;
  const int64_t outs = tiles.padded_outs(), whole = outs / kTileRows * kTileRows;
  const int64_t lanes = tiles.numbers(segment) - block * B;
  const C* a = static_cast<const C*>(grad_output) + tiles.group(segment) * tiles.outs() * kTileCells;
  const C* b = static_cast<const C*>(columns);
  C* c = static_cast<C*>(grad_weight);
  multiply<C, kTileRows, kTileCells, 1>(a, cells, 0, b, c, cells, true, whole, lanes);
  multiply<C, kFewRows, kTileCells, 1>(a + whole * kTileCells, cells, 0, b, c + whole * B, cells, true, outs - whole,
                                       lanes);
}

// ---- layouts -----------------------------------------------------------------------------------------------------

// N vectors: lane j of vector i becomes lane i of vector j.
template <typename C>
MMDET_DDETR_INLINE void transpose(Vec<C>* v) {
  constexpr int N = Simd<C>::N;
  for (int size = 1; size < N; size *= 2) {
    Vec<C> shuffled[N];
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i) interleave<C>(v[i], v[i + N / 2], shuffled[2 * i], shuffled[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = shuffled[i];
  }
}

// to [columns, rows] = from [rows, columns], of the columns from begin to end; pitches are those of both sides' rows.
template <typename From, typename To>
void transpose_matrix(const From* from, int64_t from_pitch, To* to, int64_t to_pitch, int64_t rows, int64_t begin,
                      int64_t end) {
  using C = Compute<From>;
  constexpr int64_t N = Simd<C>::N, kFew = 4 * N;  // columns at a time: whole lines of `from`
  for (int64_t first = begin; first < end; first += kFew) {
    for (int64_t r = 0; r < rows; r += N) {
      for (int64_t c = first; c < std::min(first + kFew, end); c += N) {
        Vec<C> v[N];
        for (int64_t i = 0; i < N; ++i) {
          v[i] = r + i < rows ? load_part(from + (r + i) * from_pitch + c, end - c) : Vec<C>{};
        }
        transpose<C>(v);
        for (int64_t i = 0; i < std::min(N, end - c); ++i) store_part(to + (c + i) * to_pitch + r, rows - r, v[i]);
      }
    }
  }
}

// The channels of a cell become neighbours: [H W, C] = [C, H W], for cells from begin to end.
template <typename T>
void conv_cells_of(const ConvSizes& n, const void* input, void* cells, int64_t begin, int64_t end) {
  transpose_matrix(static_cast<const T*>(input), n.H * n.W, static_cast<T*>(cells), n.C, n.C, begin, end);
}

// And back, for channels from begin to end; in the compute type before.
template <typename T>
void conv_channels_of(const ConvSizes& n, const void* cells, void* input, int64_t begin, int64_t end) {
  transpose_matrix(static_cast<const Compute<T>*>(cells), n.C, static_cast<T*>(input), n.H * n.W, n.H * n.W, begin,
                   end);
}

// The sums of conv_forward_product -> output [outs, P], from cell p on.
template <typename T>
void conv_write_output(const ConvTiles& tiles, const void* sums, void* output, int64_t p, int64_t cells) {
  using C = Compute<T>;
  const int64_t outs = tiles.outs(), P = tiles.n.P();
  for (int64_t o = 0; o < outs; o += kBlock<C>) {
    transpose_matrix(static_cast<const C*>(sums) + o * kTileCells, kBlock<C>, static_cast<T*>(output) + o * P + p, P,
                     cells, 0, std::min(kBlock<C>, outs - o));
  }
}

// grad_output [C_out, P] from cell p on -> [C_out, kTileCells], with zeros up to a whole tile.
template <typename T>
void conv_read_grad_output(const ConvTiles& tiles, const void* grad_output, void* copy, int64_t p, int64_t cells) {
  using C = Compute<T>;
  const int64_t padded = (cells + kTileRows - 1) / kTileRows * kTileRows;
  for (int64_t o = 0; o < tiles.n.C_out; ++o) {
    const T* from = static_cast<const T*>(grad_output) + o * tiles.n.P() + p;
    C* to = static_cast<C*>(copy) + o * kTileCells;
    for (int64_t i = 0; i < padded; i += Simd<C>::N) store_part(to + i, padded - i, load_part(from + i, cells - i));
  }
}

// weight [C_out, D, T] -> [panels of outputs, numbers, kBlock] of a segment; its numbers go tap by tap.
template <typename T>
void conv_pack_forward(const ConvTiles& tiles, const void* weight, void* packed, int64_t segment) {
  using C = Compute<T>;
  constexpr int64_t N = Simd<C>::N, B = kBlock<C>;
  const int64_t taps = tiles.n.T(), width = tiles.channels(segment), K = taps * width, outs = tiles.outs();
  const int64_t pitch = tiles.n.group_channels() * taps;
  const T* from = static_cast<const T*>(weight) + tiles.group(segment) * outs * pitch +
                  (tiles.first_channel(segment) % tiles.n.group_channels()) * taps;
  for (int64_t o = 0; o < (outs + B - 1) / B * B; o += N) {
    C* to = static_cast<C*>(packed) + o / B * tiles.most_numbers() * B + o % B;
    for (int64_t k = 0; k < K; k += N) {
      Vec<C> v[N];
      for (int64_t i = 0; i < N; ++i) v[i] = o + i < outs ? load_part(from + (o + i) * pitch + k, K - k) : Vec<C>{};
      transpose<C>(v);
      for (int64_t i = 0; i < std::min(N, K - k); ++i) {
        store(to + ((k + i) % taps * width + (k + i) / taps) * B, v[i]);
      }
    }
  }
}

// f(of weight, of packed) for the places of a segment's numbers in weight [C_out, D, T] and in
// [blocks of numbers, outputs, kBlock].
template <typename C, typename F>
MMDET_DDETR_INLINE void for_numbers(const ConvTiles& tiles, int64_t segment, const F& f) {
  constexpr int64_t B = kBlock<C>;
  const int64_t taps = tiles.n.T(), width = tiles.channels(segment), outs = tiles.outs();
  const int64_t D = tiles.n.group_channels(), first = tiles.first_channel(segment) % D;
  for (int64_t o = 0; o < outs; ++o) {
    const int64_t row = ((tiles.group(segment) * outs + o) * D + first) * taps;
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = 0; c < width; ++c) {
        const int64_t k = t * width + c;
        f(row + c * taps + t, (k / B * tiles.padded_outs() + o) * B + k % B);
      }
    }
  }
}

template <typename T>
void conv_pack_backward(const ConvTiles& tiles, const void* weight, void* packed, int64_t segment) {
  for_numbers<Compute<T>>(tiles, segment, [&](int64_t from, int64_t to) {
    static_cast<Compute<T>*>(packed)[to] = static_cast<Compute<T>>(static_cast<const T*>(weight)[from]);
  });
}

template <typename T>
void conv_unpack(const ConvTiles& tiles, const void* packed, void* weight, int64_t segment) {
  for_numbers<Compute<T>>(tiles, segment, [&](int64_t to, int64_t from) {
    static_cast<T*>(weight)[to] = static_cast<T>(static_cast<const Compute<T>*>(packed)[from]);
  });
}
