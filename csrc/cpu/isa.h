// What the kernels include. It comes before the target region of an isa_*.cpp: an inline function of a library that was
// compiled with AVX-512 could be the copy that the linker keeps for everybody.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "deform_conv_kernels.h"
#include "deform_roi_pool_kernels.h"
#include "depthwise_conv_kernels.h"
#include "dropout_kernels.h"
#include "linear_kernels.h"
#include "matching_cost_kernels.h"
#include "ms_deform_attn_kernels.h"
#include "sigmoid_focal_loss_kernels.h"

// A name that begins with the instruction set's: MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _kernels) is avx2_kernels.
#define MMDET_DDETR_JOIN(a, b) MMDET_DDETR_PASTE(a, b)
#define MMDET_DDETR_PASTE(a, b) a##b
