// The Math of focal_loss.h for one number.
#pragma once

#include <cmath>

#include "../inline.h"

namespace mmdet_ddetr::cuda {

struct ScalarMath {
  template <typename A>
  static MMDET_DDETR_INLINE A exp(A x) {
    return std::exp(x);
  }
  template <typename A>
  static MMDET_DDETR_INLINE A log1p(A x) {
    return std::log1p(x);
  }
};

}  // namespace mmdet_ddetr::cuda
