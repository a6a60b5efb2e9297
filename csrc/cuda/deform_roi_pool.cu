// Deformable RoI pooling on CUDA: a group of lanes has one bin of one RoI and one set of channels.
//
// Every lane computes where the samples lie, and has 16 bytes of the channels where the sizes allow.
#include <torch/csrc/stable/library.h>

#include "../bilinear.h"
#include "../deform_roi_pool.h"
#include "fixed_point.h"
#include "launch.h"

namespace mmdet_ddetr::cuda {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

template <typename T>
struct Pool {
  using A = Compute<T>;

  PoolSizes n;
  PoolRule<A> rule;
  int log2_lanes;   // of a group
  const T* planes;  // [B, g g, K, H W, D]
  const A* rois;    // [R, 5]
  const A* offset;  // [R, K, 2, h w]; null: 0
};

// A sample: the cell at its corner (y0, x0) as an offset among all cells, how far the others are from it, its weights.
template <typename A>
struct PoolSample {
  int64_t cell, right, below;  // in cells; 0: there is none, and its weight is zero
  A fx, fy, slope_x, slope_y;
  A share;

  __device__ Corners<A> weights() const {
    const Corners<A> w = corner_weights(fx, fy);
    return {share * w.c00, share * w.c01, share * w.c10, share * w.c11};
  }
};

// The bin of a group, row `index` of [R, h w, K]. One that does not exist has no samples.
template <typename T>
struct PoolBin {
  using A = Compute<T>;

  int64_t index, first_cell, offset_at;
  bool exists;
  BinAxis<A> x, y;
  A undefined;  // 0 or NaN

  __device__ PoolBin(const Pool<T>& pool, const Group& group) : index(group.index<int64_t>()) {
    const PoolSizes& n = pool.n;
    const int64_t k = index % n.K, p = index / n.K % n.P(), r = index / n.K / n.P();
    exists = r < n.R;
    x = y = {};
    undefined = 0;
    first_cell = offset_at = 0;
    if (!exists) return;
    const A* roi = pool.rois + 5 * r;
    const int64_t row = p / n.w, column = p % n.w;
    offset_at = (r * n.K + k) * 2 * n.P() + p;
    const A offset_x = pool.offset ? pool.offset[offset_at] : A(0);
    const A offset_y = pool.offset ? pool.offset[offset_at + n.P()] : A(0);
    x = axis_of(side_of(roi[1], roi[3], pool.rule), column, n.w, offset_x, n.W, pool.rule);
    y = axis_of(side_of(roi[2], roi[4], pool.rule), row, n.h, offset_y, n.H, pool.rule);
    undefined = x.undefined + y.undefined;
    if (!(roi[0] >= 0 && roi[0] < static_cast<A>(n.B))) {  // to tell so, the host would have to wait
      y.end = y.begin;
      undefined = NAN;
      return;
    }
    first_cell = (static_cast<int64_t>(roi[0]) * n.planes() + n.plane_of(row, column, k)) * n.H * n.W;
  }

  // f(sample) for those of the bin that count, from `first` on in steps.
  template <typename F>
  __device__ void for_samples(const PoolSizes& n, const F& f, int first = 0, int step = 1) const {
    for (int64_t i = y.begin; i < y.end; ++i) {
      const LinearSample<A> v = y.sample(i);
      if (!v.counts) continue;
      for (int64_t j = x.begin + first; j < x.end; j += step) {
        const LinearSample<A> u = x.sample(j);
        if (!u.counts) continue;
        f(PoolSample<A>{first_cell + v.cell * n.W + u.cell, u.cell + 1 < n.W ? 1 : 0, v.cell + 1 < n.H ? n.W : 0,
                        u.fraction, v.fraction, u.slope, v.slope, y.share * x.share});
      }
    }
  }
};

template <typename T>
struct PoolForward {
  Pool<T> pool;
  T* rows;  // [R, h w, K, D]
};

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kBlocks<T, int64_t>)
    pool_forward_kernel(const __grid_constant__ PoolForward<T> args) {
  using A = Compute<T>;
  const PoolSizes& n = args.pool.n;
  const Group group(args.pool.log2_lanes);
  const PoolBin<T> bin(args.pool, group);
  if (!bin.exists) return;
  const int64_t D = n.D();
  for (int64_t c = group.rank * N; c < D; c += group.lanes * N) {
    const T* planes = args.pool.planes + c;
    A sums[N] = {};
    bin.for_samples(n, [&](const PoolSample<A>& sample) {
      const Corners<A> w = sample.weights();
      const T* at = planes + sample.cell * D;
      const Channels<T, N> c00 = load<T, N>(at), c01 = load<T, N>(at + sample.right * D);
      at += sample.below * D;
      const Channels<T, N> c10 = load<T, N>(at), c11 = load<T, N>(at + sample.right * D);
#pragma unroll
      for (int i = 0; i < N; ++i) sums[i] += (w.c00 * c00[i] + w.c01 * c01[i]) + (w.c10 * c10[i] + w.c11 * c11[i]);
    });
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] += bin.undefined;
    store(args.rows + bin.index * D + c, sums);
  }
}

template <typename T>
struct PoolBackward {
  Pool<T> pool;
  const T* grad_rows;       // [R, h w, K, D]
  Compute<T>* grad_planes;  // as planes, zero before; null: not asked for, or left to the deterministic mode
  Compute<T>* grad_offset;  // as offset; null: not asked for
};

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kBlocks<T, int64_t>)
    pool_backward_kernel(const __grid_constant__ PoolBackward<T> args) {
  using A = Compute<T>;
  const PoolSizes& n = args.pool.n;
  const Group group(args.pool.log2_lanes);
  const PoolBin<T> bin(args.pool, group);
  const int64_t D = n.D();
  A sum_x = 0, sum_y = 0;
  const T* grad_row = args.grad_rows + bin.index * D;
  for (int64_t chunk = 0; bin.exists && chunk < D; chunk += group.lanes * N) {
    const int64_t c = chunk + group.rank * N;
    Gradient<T, N, A> grad;
    grad.load_from(grad_row, group, chunk, D);
    A* grad_planes = args.grad_planes + chunk + grad.offset(group);
    bin.for_samples(n, [&](const PoolSample<A>& sample) {
      const int64_t c00 = sample.cell * D, c01 = c00 + sample.right * D;
      const int64_t c10 = c00 + sample.below * D, c11 = c01 + sample.below * D;
      if (args.grad_offset && c < D) {
        const T* planes = args.pool.planes + c;
        const Channels<T, N> v00 = load<T, N>(planes + c00), v01 = load<T, N>(planes + c01);
        const Channels<T, N> v10 = load<T, N>(planes + c10), v11 = load<T, N>(planes + c11);
        Corners<A> products = {};
#pragma unroll
        for (int i = 0; i < N; ++i) {
          products.c00 += grad.own[i] * v00[i];
          products.c01 += grad.own[i] * v01[i];
          products.c10 += grad.own[i] * v10[i];
          products.c11 += grad.own[i] * v11[i];
        }
        sum_x += sample.share * sample.slope_x * interpolate_dx(sample.fy, products);
        sum_y += sample.share * sample.slope_y * interpolate_dy(sample.fx, products);
      }
      if (args.grad_planes) {
        const Corners<A> w = sample.weights();
        grad.add(grad_planes + c00, w.c00, group, c < D);
        if (sample.right) grad.add(grad_planes + c01, w.c01, group, c < D);
        if (sample.below) grad.add(grad_planes + c10, w.c10, group, c < D);
        if (sample.right && sample.below) grad.add(grad_planes + c11, w.c11, group, c < D);
      }
    });
  }
  if (!args.grad_offset) return;
  sum_x = group.sum(sum_x);
  sum_y = group.sum(sum_y);
  if (!bin.exists || group.rank != 0) return;
  args.grad_offset[bin.offset_at] = bin.x.pull * sum_x + bin.undefined;
  args.grad_offset[bin.offset_at + n.P()] = bin.y.pull * sum_y + bin.undefined;
}

// Deterministic gradient of the planes, as integers (fixed_point.h). A cell gets from each bin at most the bin's
// gradient, as the weights of its samples add up to 1. First pass: how large the gradients of a cell get.
template <typename T>
struct PoolExponents {
  Pool<T> pool;
  const T* grad_rows;
  int* exponents;  // [B, g g, K, H W], kNoTerm before
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T, int64_t>)
    pool_exponents_kernel(const __grid_constant__ PoolExponents<T> args) {
  using A = Compute<T>;
  const PoolSizes& n = args.pool.n;
  const Group group(args.pool.log2_lanes);
  const PoolBin<T> bin(args.pool, group);
  const int64_t D = n.D();
  A largest = 0;
  for (int64_t c = group.rank; bin.exists && c < D; c += group.lanes) {
    largest = Group::larger(largest, std::fabs(static_cast<A>(args.grad_rows[bin.index * D + c])));
  }
  const int exponent = exponent_above(group.max(largest));
  if (exponent == kNoTerm) return;
  bin.for_samples(
      n,
      [&](const PoolSample<A>& sample) {
        atomicMax(args.exponents + sample.cell, exponent);
        atomicMax(args.exponents + sample.cell + sample.right, exponent);
        atomicMax(args.exponents + sample.cell + sample.below, exponent);
        atomicMax(args.exponents + sample.cell + sample.right + sample.below, exponent);
      },
      group.rank, group.lanes);
}

// Second pass: the sums.
template <typename T>
struct PoolSums {
  Pool<T> pool;
  const T* grad_rows;
  const int* exponents;
  int64_t* sums;  // as planes, zero before
  int fraction_bits;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T, int64_t>)
    pool_sums_kernel(const __grid_constant__ PoolSums<T> args) {
  using A = Compute<T>;
  const PoolSizes& n = args.pool.n;
  const Group group(args.pool.log2_lanes);
  const PoolBin<T> bin(args.pool, group);
  const int64_t D = n.D();
  const auto add = [&](int64_t cell, A weight) {
    const int exponent = args.exponents[cell];
    if (exponent == kNoTerm || exponent == kNotFinite || weight == 0) return;
    for (int64_t c = group.rank; c < D; c += group.lanes) {
      const A term = weight * static_cast<A>(args.grad_rows[bin.index * D + c]);
      // Two's complement: unsigned addition is signed addition.
      atomicAdd(reinterpret_cast<unsigned long long*>(args.sums + cell * D + c),
                static_cast<unsigned long long>(to_fixed(term, exponent, args.fraction_bits)));
    }
  };
  bin.for_samples(n, [&](const PoolSample<A>& sample) {
    const Corners<A> w = sample.weights();
    add(sample.cell, w.c00);
    add(sample.cell + sample.right, w.c01);
    add(sample.cell + sample.below, w.c10);
    add(sample.cell + sample.right + sample.below, w.c11);
  });
}

// f(T(), width): the element type and the channels a lane takes at once, as types.
template <typename F>
void dispatch(const Tensor& planes, const Tensor& rows, int64_t D, F f) {
  dispatch_dtype(planes, [&](auto zero) {
    constexpr int kWide = kBytesPerLoad / sizeof(zero);
    const auto aligned = [](const Tensor& tensor) {
      return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % kBytesPerLoad == 0;
    };
    if (D % kWide == 0 && aligned(planes) && aligned(rows)) return f(zero, std::integral_constant<int, kWide>());
    f(zero, std::integral_constant<int, 1>());
  });
}

struct Pooling {
  // The problem for lanes of `width` channels.
  template <typename T>
  static Pool<T> problem(const pool::Arguments& arguments, int width) {
    using A = Compute<T>;
    const auto& [n, rule, planes, rois, offset] = arguments;
    Pool<T> pool = {
        n, rule.as<A>(), 0, static_cast<const T*>(planes.data_ptr()), static_cast<const A*>(rois.data_ptr()), nullptr};
    if (offset) pool.offset = static_cast<const A*>(offset->data_ptr());
    while ((1 << pool.log2_lanes) < kWarp && (width << pool.log2_lanes) < n.D()) ++pool.log2_lanes;
    return pool;
  }

  // A group of lanes a bin.
  template <typename T>
  static int64_t threads(const Pool<T>& pool) {
    return (pool.n.R * pool.n.P() * pool.n.K) << pool.log2_lanes;
  }

  static void forward(const pool::Arguments& arguments, const Tensor& rows) {
    const Launcher launch(rows);
    dispatch(arguments.planes, rows, arguments.n.D(), [&](auto zero, auto width) {
      using T = decltype(zero);
      const PoolForward<T> args = {problem<T>(arguments, width), static_cast<T*>(rows.data_ptr())};
      launch(pool_forward_kernel<T, width()>, threads(args.pool), args);
    });
  }

  static void backward(const pool::Arguments& arguments, const Tensor& grad_rows, Tensor* grad_planes,
                       Tensor* grad_offset, bool deterministic) {
    const Launcher launch(grad_rows);
    const bool by_atomics = grad_planes && !deterministic;
    dispatch(arguments.planes, grad_rows, arguments.n.D(), [&](auto zero, auto width) {
      using T = decltype(zero);
      using A = Compute<T>;
      const auto data = [](Tensor* tensor) { return tensor ? static_cast<A*>(tensor->data_ptr()) : nullptr; };
      const auto* grad = static_cast<const T*>(grad_rows.data_ptr());
      if (by_atomics || grad_offset) {
        const PoolBackward<T> args = {problem<T>(arguments, width), grad, by_atomics ? data(grad_planes) : nullptr,
                                      data(grad_offset)};
        launch(pool_backward_kernel<T, width()>, threads(args.pool), args);
      }
    });
    if (grad_planes && deterministic) reproducible_grad_planes(launch, arguments, grad_rows, *grad_planes);
  }

  // Bitwise the same in every run. Needs 8 B C H W + 4 B g g K H W bytes beside the result.
  static void reproducible_grad_planes(const Launcher& launch, const pool::Arguments& arguments,
                                       const Tensor& grad_rows, const Tensor& grad_planes) {
    const PoolSizes& n = arguments.n;
    const Tensor exponents = new_empty(grad_planes, {n.B, n.planes(), n.H * n.W}, ScalarType::Int);
    torch::stable::fill_(exponents, kNoTerm);
    const Tensor sums = new_zeros(grad_planes, grad_planes.sizes(), ScalarType::Long);
    int fraction_bits = 61;  // one to spare for what the terms are rounded by
    while (fraction_bits > 0 && int64_t{1} << (61 - fraction_bits) < n.R * n.P()) --fraction_bits;
    dispatch_dtype(arguments.planes, [&](auto zero) {
      using T = decltype(zero);
      using A = Compute<T>;
      const Pool<T> pool = problem<T>(arguments, 1);
      const T* grad = static_cast<const T*>(grad_rows.data_ptr());
      int* exponent = static_cast<int*>(exponents.data_ptr());
      int64_t* sum = static_cast<int64_t*>(sums.data_ptr());
      launch(pool_exponents_kernel<T>, threads(pool), PoolExponents<T>{pool, grad, exponent});
      launch(pool_sums_kernel<T>, threads(pool), PoolSums<T>{pool, grad, exponent, sum, fraction_bits});
      launch(from_fixed_point_kernel<A>, grad_planes.numel(),
             FromFixedPoint<A>{sum, exponent, static_cast<A*>(grad_planes.data_ptr()), grad_planes.numel(), n.D(),
                               fraction_bits});
    });
  }
};

}  // namespace
}  // namespace mmdet_ddetr::cuda

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&mmdet_ddetr::pool::forward<mmdet_ddetr::cuda::Pooling>));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&mmdet_ddetr::pool::backward<mmdet_ddetr::cuda::Pooling>));
}
