// The instruction set of the CPU kernels.
#pragma once

namespace mmdet_ddetr::cpu {

enum class Isa { kPortable, kAvx2, kAvx512 };  // each CPU that has one has those before it

// The best that this CPU has, or what MMDET_DDETR_CPU names (portable, avx2, avx512), for tests and measurements.
// Decided once.
Isa chosen_isa();

// What has this name for the chosen instruction set: MMDET_DDETR_CHOSEN(_kernels) is avx2_kernels, say.
#if defined(__x86_64__)
#define MMDET_DDETR_CHOSEN(name) \
  (chosen_isa() == Isa::kAvx512 ? avx512##name : chosen_isa() == Isa::kAvx2 ? avx2##name : portable##name)
#else
#define MMDET_DDETR_CHOSEN(name) portable##name
#endif

}  // namespace mmdet_ddetr::cpu
