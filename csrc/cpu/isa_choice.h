// The instruction set of the CPU kernels.
#pragma once

namespace mmdet_ddetr::cpu {

enum class Isa { kPortable, kAvx2, kAvx512 };  // each CPU that has one has those before it

// The best that this CPU has, or what MMDET_DDETR_CPU names (portable, avx2, avx512), for tests and measurements.
// Decided once.
Isa chosen_isa();

}  // namespace mmdet_ddetr::cpu
