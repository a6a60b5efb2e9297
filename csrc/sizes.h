// How large a tensor may be, and products of sizes that do not wrap around: one that does would pass for a small one.
//
// mmdet_ddetr/ops/_checks.py is the same in Python, for the shape functions and the reference.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "compute_type.h"

namespace mmdet_ddetr {

// Of all levels together: the kernels number the cells with 32 bits.
constexpr int64_t kMostCells = std::numeric_limits<int32_t>::max();

// Rows and columns of a level: the kernels keep them in the compute type as well, and beyond 2^24 fp32 skips numbers.
inline int64_t most_rows(ScalarType dtype) {
  return compute_type(dtype) == ScalarType::Double ? kMostCells : int64_t{1} << 24;
}

// A product of sizes, none of them negative, that is going to be computed.
inline void check_size(const char* name, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  bool fits = true;
  for (int64_t size : sizes) {
    if (size == 0) return;
    fits = fits && !__builtin_mul_overflow(product, size, &product);
  }
  check(fits, name, " must have less than 2^63 elements, got ", Numbers{sizes});
}

}  // namespace mmdet_ddetr
