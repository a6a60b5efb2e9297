// The CPU kernels of multi-scale deformable attention as raw-pointer functions, one table of them per instruction set.
#pragma once

#include <cstdint>

#include "../ms_deform_attn.h"

namespace mmdet_ddetr::cpu {

// What the kernels read; see ms_deform_attn.h for the shapes. Everything is contiguous.
struct Input {
  Sizes n;
  const Level* levels;
  const void* value;
  const void* reference_points;  // null: `points` are locations and `weights` are weights; else offsets and logits
  const void* points;
  const void* weights;
  const void* grad_output;  // null in the forward
  bool narrow;              // points and weights are stored in value's type, else in its compute type
};

struct Gradients {
  void* value;
  void* points;
  void* weights;
  void* reference_points;  // null if not asked for
};

// A region of grad_value that one thread owns: the cells of some levels and some channels, of one head and image.
struct ValueRegion {
  int64_t b, m;
  int64_t level_begin, level_end;
  int64_t d_begin, d_end;
};

struct Kernels {
  int64_t channels;  // that backward_value handles at once: regions should be cut at multiples of it
  // queries b Q + q from begin to end
  void (*forward)(const Input&, void* output, int64_t begin, int64_t end);
  // gradients of all but value, of the same queries
  void (*backward_points)(const Input&, const Gradients&, int64_t begin, int64_t end);
  // gradient of value in one region, which is overwritten
  void (*backward_value)(const Input&, void* grad_value, const ValueRegion&);
};

// Kernels for values of one type.
using KernelsOf = const Kernels& (*)(ScalarType value);

const Kernels& portable_kernels(ScalarType value);
#if defined(__x86_64__)
const Kernels& avx2_kernels(ScalarType value);
const Kernels& avx512_kernels(ScalarType value);
#endif

}  // namespace mmdet_ddetr::cpu
