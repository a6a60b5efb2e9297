// The kernels with AVX2, FMA and F16C (Haswell and Zen on).
#if defined(__x86_64__)
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define MMDET_DDETR_ISA avx2
#define MMDET_DDETR_BYTES 32
#include "deform_conv_impl.h"
#include "deform_roi_pool_impl.h"
#include "depthwise_conv_impl.h"
#include "dropout_impl.h"
#include "linear_impl.h"
#include "matching_cost_impl.h"
#include "ms_deform_attn_impl.h"
#include "sigmoid_focal_loss_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
