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
    const Terms<T> t = terms(x, positive);
    return t.weight * t.softplus;
  }

  template <typename T, typename Mask>
  MMDET_DDETR_INLINE T derivative(T x, Mask positive) const {
    const Terms<T> t = terms(x, positive);
    const T dy = t.weight * (gamma * t.right * t.softplus + t.wrong);
    return positive ? -dy : dy;
  }

 private:
  template <typename T>
  struct Terms {
    T weight;        // a wrong^gamma
    T wrong, right;  // sigmoid(y), sigmoid(-y)
    T softplus;      // log(1 + exp(y))
  };

  template <typename T, typename Mask>
  MMDET_DDETR_INLINE Terms<T> terms(T x, Mask positive) const {
    const T y = positive ? -x : x, zero = {};
    const T below = y < 0 ? y : zero, above = y < 0 ? zero : y;
    const T small = Math::exp(y < 0 ? y : -y), log = Math::log1p(small);
    const T larger = 1 / (1 + small), smaller = small * larger;
    const T wrong = y < 0 ? smaller : larger, right = y < 0 ? larger : smaller;
    const T a = positive ? zero + alpha : zero + (1 - alpha);
    if constexpr (square) {
      return {a * wrong * wrong, wrong, right, above + log};
    } else {
      constexpr Scalar kLowest = sizeof(Scalar) == sizeof(float) ? -FLT_MAX : -DBL_MAX;
      const T exponent = below - log;  // log(wrong); not -inf, so that gamma = 0 gives 1 whatever the logit
      return {a * Math::exp(gamma * (exponent < kLowest ? zero + kLowest : exponent)), wrong, right, above + log};
    }
  }
};

}  // namespace mmdet_ddetr
