// What the kernels include. It comes before the target region of an isa_*.cpp: an inline function of a library that was
// compiled with AVX-512 could be the copy that the linker keeps for everybody.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "ms_deform_attn_kernels.h"
#include "sigmoid_focal_loss_kernels.h"
