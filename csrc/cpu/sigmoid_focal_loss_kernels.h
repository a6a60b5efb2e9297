// The CPU kernels of the sigmoid focal loss as raw-pointer functions, one table of them per instruction set.
#pragma once

#include <cstdint>

#include "../compute_type.h"

namespace mmdet_ddetr::cpu {

// What the kernels read; see sigmoid_focal_loss.h for the shapes. Everything is contiguous.
struct FocalInput {
  int64_t C;
  const void* logits;
  const int64_t* labels;
  const void* grad_output;  // null in the forward
  double alpha, gamma;
  bool sum_classes;  // loss and grad_output are [N]
};

// Both for the rows from begin to end.
struct FocalKernels {
  void (*forward)(const FocalInput&, void* loss, int64_t begin, int64_t end);
  void (*backward)(const FocalInput&, void* grad_logits, int64_t begin, int64_t end);
};

// Kernels for logits of one type; square: for gamma == 2 only.
const FocalKernels& portable_focal_kernels(ScalarType logits, bool square);
#if defined(__x86_64__)
const FocalKernels& avx2_focal_kernels(ScalarType logits, bool square);
const FocalKernels& avx512_focal_kernels(ScalarType logits, bool square);
#endif

}  // namespace mmdet_ddetr::cpu
