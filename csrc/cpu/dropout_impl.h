// Dropout on the CPU, with an element in a lane. Included once per instruction set by isa_*.cpp; see simd.h.

#include "../inline.h"

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"

// 32-bit integers, as many as a vector of C has lanes.
template <typename C>
struct Counters {
  typedef uint32_t U __attribute__((vector_size(Simd<float>::N * 4)));
  typedef int32_t I __attribute__((vector_size(Simd<float>::N * 4)));
};
template <>
struct Counters<double> {
  typedef uint32_t U __attribute__((vector_size(Simd<double>::N * 4)));
  typedef int32_t I __attribute__((vector_size(Simd<double>::N * 4)));
};

// lowbias32 (C. Wellons, https://github.com/skeeto/hash-prospector): a changed bit changes every other with a
// probability close to 1/2.
template <typename U>
MMDET_DDETR_INLINE U lowbias32(U x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Number `block` of the SplitMix64 sequence (Steele et al., Fast splittable pseudorandom number generators, 2014).
MMDET_DDETR_INLINE uint64_t key_of_block(uint64_t seed, int64_t block) {
  uint64_t z = seed + (static_cast<uint64_t>(block) + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

template <typename T>
void dropout(const DropoutInput& in, void* output, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using U = typename Counters<C>::U;
  using I = typename Counters<C>::I;
  constexpr int N = Simd<C>::N;
  U lanes;
  for (int i = 0; i < N; ++i) lanes[i] = i;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kDropoutBlock, rest = in.size - first;
    const T* from = static_cast<const T*>(in.input) + first;
    T* to = static_cast<T*>(output) + first;
    const uint64_t key = key_of_block(in.seed, block);
    const uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    for (int64_t i = 0; i < rest && i < kDropoutBlock; i += N) {
      const U bits = lowbias32(lowbias32((lanes + static_cast<uint32_t>(i)) ^ low) ^ high);
      const IntVec<C> kept = __builtin_convertvector((I)(bits >> 1) > in.last_dropped, IntVec<C>);
      const Vec<C> values = load_part(from + i, rest - i) * static_cast<C>(in.scale);
      store_part(to + i, rest - i, kept ? values : Vec<C>{});
    }
  }
}

}  // namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA

namespace mmdet_ddetr::cpu {

DropoutKernel MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _dropout_kernel)(ScalarType dtype) {
  using namespace MMDET_DDETR_ISA;
  switch (dtype) {
    case ScalarType::Double:
      return dropout<double>;
    case ScalarType::Half:
      return dropout<c10::Half>;
    case ScalarType::BFloat16:
      return dropout<c10::BFloat16>;
    default:
      return dropout<float>;
  }
}

}  // namespace mmdet_ddetr::cpu
