// What the kernels ask of the machine: wide loads and stores, groups of lanes, atomics.
//
// Nothing here or in the kernels reads a CUDA built-in that tests/ops/cuda_on_host/cuda_runtime.h does not have, so that
// the same source also runs on a CPU, thread by thread.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace mmdet_ddetr::cuda {

constexpr int kThreads = 128;  // of a block; small, so that a decoder's few heads still spread over all multiprocessors
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Coordinates and sums: fp64 for fp64, else fp32.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kBytesPerLoad = 16;

// N neighbouring channels: 16 bytes at once from an aligned address, or a single one.
template <typename T, int N>
struct alignas(sizeof(T) * N) Channels {
  static_assert(N == 1 || N * sizeof(T) == kBytesPerLoad);
  T channel[N];
};

template <typename T, int N>
__device__ __forceinline__ Channels<T, N> load(const T* source) {
  Channels<T, N> channels;
  if constexpr (N == 1) {
    channels.channel[0] = *source;
  } else {
    // One integer vector: member-wise, the compiler splits 16-bit types into several loads.
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(source));
    memcpy(&channels, &bits, kBytesPerLoad);
  }
  return channels;
}

template <typename T, int N>
__device__ __forceinline__ void store(T* target, const Compute<T> (&sums)[N]) {
  Channels<T, N> channels;
#pragma unroll
  for (int i = 0; i < N; ++i) channels.channel[i] = static_cast<T>(sums[i]);
  if constexpr (N == 1) {
    *target = channels.channel[0];
  } else {
    uint4 bits;
    memcpy(&bits, &channels, kBytesPerLoad);
    *reinterpret_cast<uint4*>(target) = bits;
  }
}

// target[i] += factor * grad[i], atomically. From sm_90 on, four fp32 channels are one instruction.
template <int N, typename A>
__device__ __forceinline__ void atomic_axpy(A* target, A factor, const A (&grad)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (N % 4 == 0 && std::is_same_v<A, float>) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target + i),
                   "f"(factor * grad[i]), "f"(factor * grad[i + 1]), "f"(factor * grad[i + 2]),
                   "f"(factor * grad[i + 3]));
    }
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < N; ++i) atomicAdd(target + i, factor * grad[i]);
}

// Neighbouring lanes of a warp, a power of two of them, that work on the same head of the same query.
struct Group {
  int lanes, rank;

  __device__ explicit Group(int lanes) : lanes(lanes), rank(threadIdx.x & (lanes - 1)) {}

  template <typename Index>
  __device__ Index index() const {
    return static_cast<Index>(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes;
  }

  // Every lane gets the result. The order of the additions is fixed: bitwise the same in every run.
  template <typename A>
  __device__ A sum(A x) const {
    for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
    return x;
  }

  // NaN wins, so that it is not lost.
  template <typename A>
  __device__ A max(A x) const {
    for (int distance = lanes / 2; distance > 0; distance /= 2) x = larger(x, __shfl_xor_sync(kAllLanes, x, distance));
    return x;
  }

  template <typename A>
  static __device__ A larger(A x, A y) {
    return y > x || y != y ? y : x;
  }
};

}  // namespace mmdet_ddetr::cuda
