#include "isa_choice.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdlib>
#include <string>

#include "../check.h"

namespace mmdet_ddetr::cpu {
namespace {

const std::array<std::string, 3> kNames = {"portable", "avx2", "avx512"};  // by Isa

Isa best_isa() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // F16C is older than AVX2
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) return avx512 ? Isa::kAvx512 : Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("MMDET_DDETR_CPU");
  if (!wanted || !*wanted) return best;
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] != wanted) continue;
    check(i <= static_cast<size_t>(best), "MMDET_DDETR_CPU is ", wanted, ", which this CPU does not have");
    return static_cast<Isa>(i);
  }
  check(false, "MMDET_DDETR_CPU must be portable, avx2 or avx512, got ", wanted);
  return best;
}

std::string cpu_instruction_set() { return kNames[static_cast<size_t>(chosen_isa())]; }

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
}

}  // namespace

Isa chosen_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace mmdet_ddetr::cpu
