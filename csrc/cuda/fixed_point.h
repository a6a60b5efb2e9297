// Sums that do not depend on the order of their terms: the terms are rounded to multiples of one power of two and added
// as 64-bit integers (as molecular dynamics codes do: Le Grand et al., 2013, doi:10.1016/j.cpc.2012.09.022).
//
// The D numbers of a row share that power. With |term| < 2^exponent and at most 2^t terms a row it is
// 2^(exponent + t - 62): no sum can overflow, and the result is off by at most 2^(2 t - 62) times the largest term,
// which up to t = 19 is less than the rounding of an fp32 sum.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../inline.h"
#include "simt.h"

namespace mmdet_ddetr::cuda {

constexpr int kNoTerm = INT_MIN;     // exponent of a row without terms other than zero
constexpr int kNotFinite = INT_MAX;  // of a row with an infinite or NaN term: its sums become NaN

// The least e with x < 2^e, for x >= 0.
template <typename A>
MMDET_DDETR_INLINE int exponent_above(A x) {
  if (!(x < INFINITY)) return kNotFinite;
  if (x == 0) return kNoTerm;
  int e;
  std::frexp(x, &e);
  return e;
}

// 2^k, where that is a normal number.
template <typename A>
MMDET_DDETR_INLINE A power_of_two(int k) {
  A x;
  if constexpr (std::is_same_v<A, double>) {
    const int64_t bits = static_cast<int64_t>(k + 1023) << 52;
    memcpy(&x, &bits, sizeof(x));
  } else {
    const int32_t bits = (k + 127) << 23;
    memcpy(&x, &bits, sizeof(x));
  }
  return x;
}

// x 2^k. In two steps: 2^k itself may lie outside the range of A.
template <typename A>
MMDET_DDETR_INLINE A scale_by(A x, int k) {
  const int half = k / 2;
  return x * power_of_two<A>(half) * power_of_two<A>(k - half);
}

// fraction_bits = 62 - t.
template <typename A>
MMDET_DDETR_INLINE int64_t to_fixed(A term, int exponent, int fraction_bits) {
  return std::llrint(scale_by(term, fraction_bits - exponent));
}

MMDET_DDETR_INLINE double from_fixed(int64_t sum, int exponent, int fraction_bits) {
  if (exponent == kNotFinite) return NAN;
  if (exponent == kNoTerm) return 0;
  return scale_by(static_cast<double>(sum), exponent - fraction_bits);
}

namespace {

// All sums of a tensor, back to floating point.
template <typename T>
struct FromFixedPoint {
  const int64_t* sums;   // [rows, D]
  const int* exponents;  // [rows]
  T* grad_value;         // [rows, D]
  int64_t numel, D;
  int fraction_bits;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T, int64_t>)
    from_fixed_point_kernel(const __grid_constant__ FromFixedPoint<T> args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= args.numel) return;
  const double sum = from_fixed(args.sums[i], args.exponents[i / args.D], args.fraction_bits);
  args.grad_value[i] = static_cast<T>(static_cast<Compute<T>>(sum));
}

}  // namespace

}  // namespace mmdet_ddetr::cuda
