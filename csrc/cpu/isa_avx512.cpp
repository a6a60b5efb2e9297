// The kernels with AVX-512 (F, BW, DQ, VL: Skylake-X and Zen 4 on).
#if defined(__x86_64__)
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define MMDET_DDETR_ISA avx512
#define MMDET_DDETR_BYTES 64
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
