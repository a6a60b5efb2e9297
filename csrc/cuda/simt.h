// What the kernels ask of the machine: wide loads and stores, groups of lanes, atomics.
//
// Nothing here or in the kernels reads a CUDA built-in that tests/ops/cuda_on_host/cuda_runtime.h does not have, so
// that the same source also runs on a CPU, thread by thread.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tuning.h"

#if MMDET_DDETR_NARROW_SUMS
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mmdet_ddetr::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Coordinates and sums: fp64 for fp64, else fp32.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kBytesPerLoad = 16;

// What the gradient of value is summed in.
template <typename T>
using Sum = std::conditional_t<MMDET_DDETR_NARROW_SUMS, T, Compute<T>>;

template <int Bytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = unsigned long long;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// N neighbouring channels, as they lie in memory: at most 16 bytes, at an address that is a multiple of their size.
template <typename T, int N>
struct Channels {
  static_assert(N * sizeof(T) <= kBytesPerLoad);
  typename WordOf<sizeof(T) * N>::type word;

  __device__ Compute<T> operator[](int i) const {
    if constexpr (std::is_same_v<T, c10::BFloat16> && N > 1) {  // one instruction a channel; through BFloat16 it is two
      unsigned int pairs[N / 2];
      memcpy(pairs, &word, sizeof(word));
      const unsigned int bits = i % 2 ? pairs[i / 2] & 0xffff0000u : pairs[i / 2] << 16;
      float x;
      memcpy(&x, &bits, sizeof(x));
      return x;
    } else {
      T channels[N];
      memcpy(channels, &word, sizeof(word));
      return static_cast<Compute<T>>(channels[i]);
    }
  }
};

template <typename T, int N>
__device__ __forceinline__ Channels<T, N> load(const T* source) {
  return {__ldg(reinterpret_cast<const typename WordOf<sizeof(T) * N>::type*>(source))};
}

template <typename T, int N>
__device__ __forceinline__ void store(T* target, const Compute<T> (&sums)[N]) {
  T channels[N];
#pragma unroll
  for (int i = 0; i < N; ++i) channels[i] = static_cast<T>(sums[i]);
  Channels<T, N> packed;
  memcpy(&packed.word, channels, sizeof(channels));
  *reinterpret_cast<typename WordOf<sizeof(T) * N>::type*>(target) = packed.word;
}

// x, as if read from memory: it stays in a register. Otherwise the compiler takes each use of it apart and computes it
// anew from the kernel's arguments, in a loop or for an address that takes one instruction this way and several that.
template <typename T>
__device__ __forceinline__ T settled(T x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 8) {
    asm("" : "+l"(x));
  } else {
    asm("" : "+r"(x));
  }
  if constexpr (std::is_pointer_v<T>) __builtin_assume(__isGlobal(x));
#endif
  return x;
}

#if MMDET_DDETR_NARROW_SUMS
template <typename T>
using Native = std::conditional_t<std::is_same_v<T, c10::Half>, __half, __nv_bfloat16>;

// Two channels of 16 bits as one register.
template <typename T>
__device__ __forceinline__ unsigned int pack(float low, float high) {
  const T pair[2] = {static_cast<T>(low), static_cast<T>(high)};
  unsigned int bits;
  memcpy(&bits, pair, sizeof(bits));
  return bits;
}

#endif

// Channels that one instruction of a lane can add to.
template <typename S, int N>
constexpr int kAddedAtOnce =
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && MMDET_DDETR_VECTOR_ATOMICS
    std::is_same_v<S, float> && N % 4 == 0 ? 4
    : sizeof(S) == 2 && N == 8             ? 8
                                           : 1;
#else
    1;
#endif

// target[i] += factor * x[i] in one atomic instruction.
template <int kCount, typename S, typename A>
__device__ __forceinline__ void atomic_axpy(S* target, A factor, const A* x) {
#if MMDET_DDETR_NARROW_SUMS
  if constexpr (sizeof(S) == 2 && kCount == 1) {
    atomicAdd(reinterpret_cast<Native<S>*>(target), static_cast<Native<S>>(factor * x[0]));
    return;
  } else if constexpr (sizeof(S) == 2) {
    unsigned int pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = pack<S>(factor * x[2 * i], factor * x[2 * i + 1]);
    if constexpr (std::is_same_v<S, c10::Half>) {
      asm volatile("red.relaxed.gpu.global.add.noftz.v4.f16x2 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(pairs[0]),
                   "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3]));
    } else {
      asm volatile("red.relaxed.gpu.global.add.noftz.v4.bf16x2 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(pairs[0]),
                   "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3]));
    }
    return;
  }
#endif
  if constexpr (kCount == 1) {
    atomicAdd(target, factor * x[0]);
  } else {
#if defined(__CUDA_ARCH__)
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target), "f"(factor * x[0]),
                 "f"(factor * x[1]), "f"(factor * x[2]), "f"(factor * x[3]));
#endif
  }
}

// A divisor known before the launch: for 32-bit numbers below 2^31, a multiplication and a shift instead of a division.
template <typename Index>
struct Divisor {
  Index divisor;

  Divisor() = default;
  explicit Divisor(int64_t d) : divisor(static_cast<Index>(d)) {}

  __device__ Index quotient(Index x) const { return x / divisor; }
};

template <>
struct Divisor<int32_t> {
  uint32_t multiplier;
  int shift;

  Divisor() = default;
  explicit Divisor(int64_t d) {  // Granlund and Montgomery, 1994: multiplier = ceil(2^(31 + s) / d) with 2^s >= d
    int s = 0;
    while ((int64_t{1} << s) < d) ++s;
    shift = 31 + s;
    multiplier = d == 0 ? 0 : static_cast<uint32_t>(((uint64_t{1} << shift) + d - 1) / d);
  }

  __device__ int32_t quotient(int32_t x) const {
    return static_cast<int32_t>(static_cast<uint64_t>(x) * multiplier >> shift);
  }
};

// Neighbouring lanes of a warp, four or a larger power of two of them, that work on the same head of the same query.
struct Group {
  int log2_lanes, lanes, rank;
  int first;  // thread of the block
  int mix;    // see slot

  __device__ explicit Group(int log2_lanes)
      : log2_lanes(log2_lanes),
        lanes(settled(1 << log2_lanes)),
        rank(settled(static_cast<int>(threadIdx.x) & (lanes - 1))),
        first(settled(static_cast<int>(threadIdx.x) - rank)),
        mix(settled((first & (kWarp - 1)) >> 3 & (lanes - 1))) {}

  // Where a block's shared memory has what the group's lane j has prepared. Mixed by the group's place in the warp: all
  // groups read their j-th number at once, and plain indexing would put these into the same memory banks.
  __device__ int slot(int j) const { return first + (j ^ mix); }

  // Among all groups of the launch.
  template <typename Index>
  __device__ Index index() const {
    return static_cast<Index>(blockIdx.x) * (kThreads >> log2_lanes) + static_cast<Index>(threadIdx.x >> log2_lanes);
  }

  // The order of the additions is fixed in both sums: bitwise the same in every run.
  template <typename A>
  __device__ A sum(A x) const {
    for (int distance = lanes >> 1; distance > 0; distance >>= 1) x += __shfl_xor_sync(kAllLanes, x, distance);
    return x;
  }

  // Of four numbers at once, in a group of four lanes or more: lane r gets the sum of number r % 4. At first a lane
  // gives away the numbers that the other keeps, so that there are log2(lanes) + 1 shuffles instead of four times
  // log2(lanes).
  template <typename A>
  __device__ A sum_of_four(const A (&x)[4]) const {
    const bool upper = rank & 2, odd = rank & 1;
    const A first = (upper ? x[2] : x[0]) + __shfl_xor_sync(kAllLanes, upper ? x[0] : x[2], 2);
    const A second = (upper ? x[3] : x[1]) + __shfl_xor_sync(kAllLanes, upper ? x[1] : x[3], 2);
    A sum = (odd ? second : first) + __shfl_xor_sync(kAllLanes, odd ? first : second, 1);
    for (int distance = 4; distance < lanes; distance <<= 1) sum += __shfl_xor_sync(kAllLanes, sum, distance);
    return sum;
  }

  // NaN wins, so that it is not lost.
  template <typename A>
  __device__ A max(A x) const {
    for (int distance = lanes >> 1; distance > 0; distance >>= 1) {
      x = larger(x, __shfl_xor_sync(kAllLanes, x, distance));
    }
    return x;
  }

  template <typename A>
  static __device__ A larger(A x, A y) {
    return y > x || y != y ? y : x;
  }
};

// A gradient's channels in the registers of a group, N a lane, for two uses: to be multiplied with the channels of
// value that the lane reads, and to be added to rows of the gradient of value. In an instruction that adds, the lanes
// have channels side by side, since L2 takes whole sectors of 32 bytes, and as long for a half of one: where a lane's
// own channels take several instructions, it adds other channels than those.
template <typename T, int N, typename S = Sum<T>>
struct Gradient {
  static constexpr int kPiece = kAddedAtOnce<S, N>, kPieces = N / kPiece;

  Compute<T> own[N] = {};
  Compute<T> others[kPieces > 1 ? N : 1];
  int pieces = 0;  // of the others

  // Channels `first` to first + lanes N, as far as there are D, of a row.
  template <typename Index>
  __device__ void load_from(const T* row, const Group& group, Index first, Index D) {
    const Index channel = first + group.rank * N;
    if (channel < D) {
      const Channels<T, N> channels = load<T, N>(row + channel);
#pragma unroll
      for (int i = 0; i < N; ++i) own[i] = channels[i];
    }
    if constexpr (kPieces == 1) return;
    pieces = 0;
#pragma unroll
    for (int q = 0; q < kPieces; ++q) {
      const Index other = first + (q * group.lanes + group.rank) * kPiece;
      if (other >= D) break;
      const Channels<T, kPiece> channels = load<T, kPiece>(row + other);
#pragma unroll
      for (int i = 0; i < kPiece; ++i) others[q * kPiece + i] = channels[i];
      ++pieces;
    }
  }

  // Where `add` wants a row to begin for this lane: so many channels behind `first`.
  static __device__ int offset(const Group& group) { return group.rank * kPiece; }

  __device__ __forceinline__ void add(S* row, Compute<T> factor, const Group& group, bool has_own) const {
    if constexpr (kPieces == 1) {
      if (has_own) atomic_axpy<kPiece>(row, factor, own);
    } else {
#pragma unroll
      for (int q = 0; q < kPieces; ++q) {
        if (q < pieces) atomic_axpy<kPiece>(row + q * group.lanes * kPiece, factor, others + q * kPiece);
      }
    }
  }
};

}  // namespace mmdet_ddetr::cuda
