// The focal loss of a logit and its derivative (RetinaNet, arXiv:1708.02002, eq. 5): the only copy of the maths, for
// host and device.
//
// T is float, double or a SIMD vector of them (cpu/simd.h), Scalar its element. Math gives, for numbers of type T,
// Math::exp(x) of x <= 0 and Math::log1p(x) of 0 <= x <= 1.
#pragma once

#include <cfloat>

#include "inline.h"

namespace mmdet_ddetr {

// With y = -x for the logit x of the target's class and y = x for those of all other classes, sigmoid(y) is the
// probability of the wrong answer, and
//   loss = a sigmoid(y)^gamma softplus(y)
//   d loss / dy = a sigmoid(y)^gamma (gamma sigmoid(-y) softplus(y) + sigmoid(y)),   a = alpha or 1 - alpha.
// All of it comes from exp(-|y|), so that nothing overflows or cancels: both are finite for every finite logit. An
// infinite logit of the wrong sign gives an infinite loss and a NaN derivative, NaN gives NaN.
template <typename Scalar, typename Math, bool square>  // square: gamma == 2, known to the compiler
struct FocalLoss {
  Scalar alpha, gamma;

  // positive: of the target's class; a bool, or the mask that a comparison of T gives.
  template <typename T, typename Mask>
  MMDET_DDETR_INLINE T loss(T x, Mask positive) const {
    const Logistic<T> y = logistic(positive ? -x : x);
    return weight<T>(positive) * power(y.p, y.log_p) * -y.log_q;
  }

  template <typename T, typename Mask>
  MMDET_DDETR_INLINE T derivative(T x, Mask positive) const {
    const Logistic<T> y = logistic(positive ? -x : x);
    const T dy = weight<T>(positive) * power(y.p, y.log_p) * (y.p - gamma * y.q * y.log_q);
    return positive ? -dy : dy;
  }

  // The loss as the target's class minus that as any other: the matching cost of Deformable DETR.
  template <typename T>
  MMDET_DDETR_INLINE T difference(T x) const {
    const Logistic<T> y = logistic(x);
    return (1 - alpha) * power(y.p, y.log_p) * y.log_q - alpha * power(y.q, y.log_q) * y.log_p;
  }

 private:
  template <typename T>
  struct Logistic {
    T p, q;          // sigmoid(y), sigmoid(-y)
    T log_p, log_q;  // -softplus(-y), -softplus(y)
  };

  template <typename T>
  static MMDET_DDETR_INLINE Logistic<T> logistic(T y) {
    const T zero = {}, below = y < 0 ? y : zero, above = y < 0 ? zero : y;
    const T small = Math::exp(y < 0 ? y : -y), log = Math::log1p(small);
    const T larger = 1 / (1 + small), smaller = small * larger;
    return {y < 0 ? smaller : larger, y < 0 ? larger : smaller, below - log, -above - log};
  }

  template <typename T, typename Mask>
  MMDET_DDETR_INLINE T weight(Mask positive) const {
    const T zero = {};
    return positive ? zero + alpha : zero + (1 - alpha);
  }

  template <typename T>
  MMDET_DDETR_INLINE T power(T p, T log_p) const {  // p^gamma
    if constexpr (square) {
      return p * p;
    } else {
      constexpr Scalar kLowest = sizeof(Scalar) == sizeof(float) ? -FLT_MAX : -DBL_MAX;
      const T zero = {};
      return Math::exp(gamma * (log_p < kLowest ? zero + kLowest : log_p));  // gamma = 0 gives 1, whatever p is
    }
  }
};

}  // namespace mmdet_ddetr
