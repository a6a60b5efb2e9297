// The CPU kernel of the matching cost as raw-pointer functions, one set of them per instruction set.
#pragma once

#include <cstdint>

namespace mmdet_ddetr::cpu {

// What the kernel reads; see matching_cost.h for the shapes. Everything is contiguous.
struct MatchingInput {
  int64_t B, Q, C, T;
  const float* scores;
  const float* boxes;
  const int64_t* image;
  const int64_t* labels;
  const float* targets;
  float cls_weight, l1_weight, giou_weight, alpha, gamma;
  bool focal;
};

// The cost of rows begin ... end of [L*T, Q].
using MatchingKernel = void (*)(const MatchingInput&, float* cost, int64_t begin, int64_t end);

MatchingKernel portable_matching_kernel(const MatchingInput&);
#if defined(__x86_64__)
MatchingKernel avx2_matching_kernel(const MatchingInput&);
MatchingKernel avx512_matching_kernel(const MatchingInput&);
#endif

}  // namespace mmdet_ddetr::cpu
