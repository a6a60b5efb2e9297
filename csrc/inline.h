// Small functions that host and device, or all instruction sets, compile from one source: they must never be shared.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define MMDET_DDETR_INLINE __host__ __device__ __forceinline__
#else
#define MMDET_DDETR_INLINE inline __attribute__((always_inline))
#endif
