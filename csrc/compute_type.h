// Ops take fp64, fp32, fp16 and bf16, and compute in the *compute type*: fp64 for fp64, else fp32.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

namespace mmdet_ddetr {

using torch::headeronly::ScalarType;

inline ScalarType compute_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool is_computable(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Double;
}

}  // namespace mmdet_ddetr
