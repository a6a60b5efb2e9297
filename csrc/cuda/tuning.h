// The constants that benchmarks/gpu/variants.py tries on a GPU; -D sets each at build time.
#pragma once

#include <type_traits>

namespace mmdet_ddetr::cuda {

// Threads of a block. Few, so that a decoder's few heads still spread over all multiprocessors.
#ifndef MMDET_DDETR_THREADS
#define MMDET_DDETR_THREADS 128
#endif
constexpr int kThreads = MMDET_DDETR_THREADS;
static_assert(kThreads % 32 == 0, "whole warps");

// Samples whose loads a lane has under way at the same time in the forward pass. A decoder's few heads do not fill the
// machine with warps, so that the loads of a warp have to overlap. 1, 2 or 4: divides the lanes of every group.
#ifndef MMDET_DDETR_TOGETHER
#define MMDET_DDETR_TOGETHER 2
#endif
constexpr int kTogether = MMDET_DDETR_TOGETHER;
static_assert(4 % kTogether == 0, "divides the lanes of the smallest group");

// Threads that a multiprocessor must be able to hold, in blocks of 128: bounds the registers of a kernel. Without it
// ptxas picks a bound by itself, and spills registers to keep to it.
#ifndef MMDET_DDETR_BLOCKS
#define MMDET_DDETR_BLOCKS 5
#endif
template <typename T, typename Index>
constexpr int kBlocks = (std::is_same_v<T, double> || sizeof(Index) == 8 ? 4 : MMDET_DDETR_BLOCKS) * 128 / kThreads;

// Whether the gradient of value is added four fp32 channels at a time, which sm_90 and later can.
#ifndef MMDET_DDETR_VECTOR_ATOMICS
#define MMDET_DDETR_VECTOR_ATOMICS 1
#endif

// Whether the gradient of a 16-bit value is summed in 16 bits: half the bytes, and sums too coarse to train with (see
// README.md). There to be measured.
#ifndef MMDET_DDETR_NARROW_SUMS
#define MMDET_DDETR_NARROW_SUMS 0
#endif

}  // namespace mmdet_ddetr::cuda
