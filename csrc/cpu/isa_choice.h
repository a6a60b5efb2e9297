// The instruction set of the CPU kernels: the best that this CPU has, or what MMDET_DDETR_CPU names.
#pragma once

#include <cstdlib>
#include <string>

#include "../check.h"

namespace mmdet_ddetr::cpu {

enum class Isa { kPortable, kAvx2, kAvx512 };

inline Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

// MMDET_DDETR_CPU = portable, avx2 or avx512 is for tests and measurements; it is read once.
inline Isa chosen_isa() {
  static const Isa isa = [] {
    const char* name = std::getenv("MMDET_DDETR_CPU");
    if (!name || !*name) return best_isa();
    const std::string wanted = name;
    const Isa isa = wanted == "avx512" ? Isa::kAvx512 : wanted == "avx2" ? Isa::kAvx2 : Isa::kPortable;
    check(isa != Isa::kPortable || wanted == "portable", "MMDET_DDETR_CPU must be portable, avx2 or avx512, got ",
          wanted);
    check(isa <= best_isa(), "MMDET_DDETR_CPU is ", wanted, ", which this CPU does not have");
    return isa;
  }();
  return isa;
}

}  // namespace mmdet_ddetr::cpu
