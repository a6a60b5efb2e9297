// Sampling on CUDA, for multi-scale deformable attention and deformable convolution.
//
// A group of lanes works on one head of one query; each lane has N neighbouring channels, 16 bytes of value where the
// sizes allow. In turns the lanes of the group prepare one sample each (coordinates, corner cells, weights: what one
// channel a thread would repeat D times), then all of them go through the samples prepared and gather their channels.
#pragma once

#include <algorithm>
#include <climits>
#include <initializer_list>
#include <vector>

#include "../ms_deform_attn.h"
#include "fixed_point.h"
#include "launch.h"
#include "samples.h"

namespace mmdet_ddetr::cuda {
namespace {

// --- kernels --------------------------------------------------------------------------------------------------------

// One number for each corner of a sample, in the order of Corners; aligned, so that it is read at once.
template <typename T>
struct alignas(16) Quad {
  T corner[4];
};

// Where a sample falls in its map, relative to the first cell of the image and head.
template <typename Index, typename A>
struct Footprint {
  Quad<Index> cells;  // offsets of the corners' cells, in the unit asked for; -1: outside the map
  Quad<A> weights;    // of the corners, times the attention weight
  A fx = 0, fy = 0;
  A outside = 0;  // NaN if a coordinate is not finite
};

template <typename Index, typename A>
__device__ Footprint<Index, A> footprint_of(const Sample<A>& sample, LevelOf<Index> level, Index cell_stride) {
  Footprint<Index, A> footprint = {{-1, -1, -1, -1}, {0, 0, 0, 0}};
  if (!touches(sample.x, sample.y, static_cast<A>(level.W), static_cast<A>(level.H))) {
    footprint.outside = outside_value(sample.x, sample.y);
    return footprint;
  }
  const A floor_x = std::floor(sample.x), floor_y = std::floor(sample.y);
  const Index x = static_cast<Index>(floor_x), y = static_cast<Index>(floor_y);
  const bool left = x >= 0, right = x + 1 < level.W, top = y >= 0, bottom = y + 1 < level.H;
  const Index first = (level.start + y * level.W + x) * cell_stride, below = first + level.W * cell_stride;
  footprint.cells = {top && left ? first : -1, top && right ? first + cell_stride : -1, bottom && left ? below : -1,
                     bottom && right ? below + cell_stride : -1};
  footprint.fx = sample.x - floor_x;
  footprint.fy = sample.y - floor_y;
  const Corners<A> w = corner_weights(footprint.fx, footprint.fy);
  footprint.weights = {w.c00 * sample.weight, w.c01 * sample.weight, w.c10 * sample.weight, w.c11 * sample.weight};
  return footprint;
}

// What the lanes of a warp have prepared for their groups.
template <typename Index, typename A>
struct Stage {
  Quad<Index> cells[kThreads];
  Quad<A> weights[kThreads];
};

template <typename Index, typename A>
struct Prepared {
  Sample<A> sample;
  Footprint<Index, A> footprint;
};

// Sample s by this lane, for the lane itself and, on the stage, for its group. All lanes of the warp come here
// together, those without a sample too, and have to meet at a __syncwarp before the next round.
template <typename T, typename Index, typename Points>
__device__ Prepared<Index, Compute<T>> prepare(Stage<Index, Compute<T>>& stage, const Problem<Index>& n,
                                               const Samples<T, Index, Points>& samples, Group group, Index s,
                                               Index count, Index cell_stride) {
  Prepared<Index, Compute<T>> lane = {{}, {{-1, -1, -1, -1}, {}}};
  if (s < count) {
    const Index l = n.by_K.quotient(s);
    const LevelOf<Index> level = n.levels[l];
    lane.sample = samples.read(s, l, level);
    lane.footprint = footprint_of(lane.sample, level, cell_stride);
  }
  const int slot = group.slot(group.rank);
  stage.cells[slot] = lane.footprint.cells;
  stage.weights[slot] = lane.footprint.weights;
  __syncwarp();
  return lane;
}

// Samples of a group in the round that begins at `first`; the rounds are the same for all groups of a launch.
template <typename Index>
__device__ int round_of(const Problem<Index>& n, Group group, Index first) {
  const Index left = n.L * n.K - first;
  return settled(left < group.lanes ? static_cast<int>(left) : group.lanes);
}

// The head, among those of all queries, that group `index` of a launch has; none behind the last. Neighbouring groups
// have neighbouring queries, which look at the same cells through the same head: a block finds most of them in its L1
// cache.
template <typename Index>
__device__ Index head_of(const Problem<Index>& n, Index index) {
  const Index image_head = n.by_Q.quotient(index), query = index - image_head * n.Q;  // of B M
  const Index image = n.by_M.quotient(image_head);
  return (image * n.Q + query) * n.M + (image_head - image * n.M);
}

// The row of D channels of a head in the first cell of its image.
template <typename Index>
__device__ int64_t first_row(const Problem<Index>& n, Index head) {
  const Index query = n.by_M.quotient(head);
  return n.by_Q.quotient(query) * n.image_rows + (head - query * n.M);
}

// The channels at the four corners of some samples, zero outside the map. All loads are under way before any is used.
template <typename T, int N, int kSamples>
struct Gathered {
  Channels<T, N> corners[kSamples][4];

  template <typename Index>
  __device__ Gathered(const T* value, const Quad<Index> (&cells)[kSamples]) {
    Index signs = 0;
#pragma unroll
    for (int j = 0; j < kSamples; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) signs |= cells[j].corner[i];
    }
    if (signs >= 0) {  // all inside: the rule, and worth a branch
#pragma unroll
      for (int j = 0; j < kSamples; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) corners[j][i] = load<T, N>(value + cells[j].corner[i]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kSamples; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          corners[j][i] = {};
          if (cells[j].corner[i] >= 0) corners[j][i] = load<T, N>(value + cells[j].corner[i]);
        }
      }
    }
  }
};

template <typename T, typename Index, typename Points>
struct Forward {
  Problem<Index> n;
  Points points;
  const T* value;  // [B, S, M, D]
  T* output;       // [B, Q, M D]
};

template <typename T, int N, typename Index, typename Points>
__global__ void __launch_bounds__(kThreads, kBlocks<T, Index>)
    forward_kernel(const __grid_constant__ Forward<T, Index, Points> args) {
  using A = Compute<T>;
  __shared__ Stage<Index, A> stage;
  const Problem<Index>& n = args.n;
  const Group group(n.log2_lanes);
  const Index head = head_of(n, group.index<Index>()), count = settled(head < n.heads ? n.L * n.K : 0);
  const Samples<T, Index, Points> samples(args.points, n, group, head, count);

  for (Index chunk = 0; chunk < n.D; chunk += group.lanes * N) {  // as a rule one turn: 32 lanes of 16 bytes
    const Index c = chunk + group.rank * N;
    const T* value = settled(args.value + first_row(n, head) * n.D + c);
    A sums[N] = {};
    A outside = 0;
    for (Index first = 0; first < n.L * n.K; first += group.lanes) {
      const auto lane = prepare(stage, n, samples, group, first + group.rank, count, n.M * n.D);
      outside += lane.footprint.outside;
      const int round = c < n.D ? round_of(n, group, first) : 0;
      for (int j = 0; j < round; j += kTogether) {
        Quad<Index> cells[kTogether];
        Quad<A> weights[kTogether];
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {  // behind the last sample of a round lies an empty one
          cells[t] = stage.cells[group.slot(j + t)];
          weights[t] = stage.weights[group.slot(j + t)];
        }
        const Gathered<T, N, kTogether> gathered(value, cells);
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int k = 0; k < N; ++k) sums[k] += weights[t].corner[i] * gathered.corners[t][i][k];
          }
        }
      }
      __syncwarp();
    }
    outside = group.sum(outside);
    if (head < n.heads && c < n.D) {
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += outside;
      store(args.output + static_cast<int64_t>(head) * n.D + c, sums);
    }
  }
}

template <typename T, typename Index, typename Points>
struct Backward {
  Problem<Index> n;
  Points points;
  const T* value;        // [B, S, M, D]
  const T* grad_output;  // [B, Q, M D]
  Sum<T>* grad_value;    // [B, S, M, D], zero before; null: left to fixed_point_sums_kernel
};

template <typename T, int N, typename Index, typename Points>
__global__ void __launch_bounds__(kThreads, kBlocks<T, Index>)
    backward_kernel(const __grid_constant__ Backward<T, Index, Points> args) {
  using A = Compute<T>;
  __shared__ Stage<Index, A> stage;
  __shared__ Quad<A> products[kThreads];  // of the corners of a sample with the gradient, over all channels
  const Problem<Index>& n = args.n;
  const Group group(n.log2_lanes);
  const Index head = head_of(n, group.index<Index>()), count = settled(head < n.heads ? n.L * n.K : 0);
  const Samples<T, Index, Points> samples(args.points, n, group, head, count);
  const Index channel = group.rank * N, stride = group.lanes * N;
  const int64_t first_cell = first_row(n, head) * n.D;
  const T* head_value = settled(args.value + first_cell + channel);
  Sum<T>* head_grad_value = settled(args.grad_value + first_cell + Gradient<T, N>::offset(group));
  const T* head_grad = settled(args.grad_output + static_cast<int64_t>(head) * n.D);

  Gradient<T, N> grad;
  if (count > 0) grad.load_from(head_grad, group, Index(0), n.D);
  const bool several = count > 0 && stride < n.D;  // turns of the group through the channels

  for (Index first = 0; first < n.L * n.K; first += group.lanes) {
    const auto lane = prepare(stage, n, samples, group, first + group.rank, count, n.M * n.D);
    const int round = round_of(n, group, first);
    for (int j = 0; j < round; ++j) {
      const Quad<Index> cells[1] = {stage.cells[group.slot(j)]};
      const Quad<A> weights = stage.weights[group.slot(j)];
      Quad<A> parts = {};
      for (Index chunk = 0; chunk < n.D; chunk += stride) {
        if (several) grad.load_from(head_grad, group, chunk, n.D);
        const bool has_own = chunk + channel < n.D;
        if (has_own) {
          const Gathered<T, N, 1> gathered(head_value + chunk, cells);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int k = 0; k < N; ++k) parts.corner[i] += grad.own[k] * gathered.corners[0][i][k];
          }
        }
        if (args.grad_value == nullptr) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Index cell = cells[0].corner[i];
          if (cell >= 0) grad.add(head_grad_value + chunk + cell, weights.corner[i], group, has_own);
        }
      }
      const A product = group.sum_of_four(parts.corner);
      if (group.rank < 4) products[group.slot(j)].corner[group.rank] = product;
    }
    __syncwarp();
    const Index s = first + group.rank;
    if (s < count) {
      const Footprint<Index, A>& footprint = lane.footprint;
      const Quad<A> product = products[group.slot(group.rank)];
      const Corners<A> corners = {product.corner[0], product.corner[1], product.corner[2], product.corner[3]};
      const A weight = lane.sample.weight;
      samples.write(s, lane.sample,
                    {weight * interpolate_dx(footprint.fy, corners) + footprint.outside,
                     weight * interpolate_dy(footprint.fx, corners) + footprint.outside,
                     interpolate(footprint.fx, footprint.fy, corners) + footprint.outside});
    }
  }
  samples.finish(group);
}

// Deterministic gradient of value, first pass: how large the terms of each row of D channels get.
template <typename T, typename Points>
struct RowExponents {
  Problem<int64_t> n;
  Points points;
  const T* grad_output;  // [B, Q, M D]
  int* exponents;        // [B, S, M], kNoTerm before
};

template <typename T, typename Points>
__global__ void __launch_bounds__(kThreads, kBlocks<T, int64_t>)
    row_exponents_kernel(const __grid_constant__ RowExponents<T, Points> args) {
  using A = Compute<T>;
  using Index = int64_t;
  const Problem<Index>& n = args.n;
  const Group group(n.log2_lanes);
  const Index head = head_of(n, group.index<Index>()), count = settled(head < n.heads ? n.L * n.K : 0);
  const Samples<T, Index, Points> samples(args.points, n, group, head, count);
  A largest = 0;
  if (count > 0) {
    for (Index c = group.rank; c < n.D; c += group.lanes) {
      largest =
          Group::larger(largest, std::fabs(static_cast<A>(args.grad_output[static_cast<int64_t>(head) * n.D + c])));
    }
  }
  largest = group.max(largest);
  for (Index s = group.rank; s < count; s += group.lanes) {
    const Index l = n.by_K.quotient(s);
    const LevelOf<Index> level = n.levels[l];
    const Footprint<Index, A> footprint = footprint_of(samples.read(s, l, level), level, n.M);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (footprint.cells.corner[i] < 0) continue;
      const int exponent = exponent_above(std::fabs(footprint.weights.corner[i]) * largest);
      if (exponent != kNoTerm) {
        atomicMax(args.exponents + first_row(n, head) + footprint.cells.corner[i], exponent);
      }
    }
  }
}

// Second pass: the sums, as integers.
template <typename T, typename Points>
struct FixedPointSums {
  Problem<int64_t> n;
  Points points;
  const T* grad_output;  // [B, Q, M D]
  const int* exponents;  // [B, S, M]
  int64_t* sums;         // [B, S, M, D], zero before
  int fraction_bits;
};

template <typename T, typename Points>
__global__ void __launch_bounds__(kThreads, kBlocks<T, int64_t>)
    fixed_point_sums_kernel(const __grid_constant__ FixedPointSums<T, Points> args) {
  using A = Compute<T>;
  using Index = int64_t;
  __shared__ Stage<Index, A> stage;
  const Problem<Index>& n = args.n;
  const Group group(n.log2_lanes);
  const Index head = head_of(n, group.index<Index>()), count = settled(head < n.heads ? n.L * n.K : 0);
  const Samples<T, Index, Points> samples(args.points, n, group, head, count);
  const T* grad_output = args.grad_output + static_cast<int64_t>(head) * n.D;
  for (Index first = 0; first < n.L * n.K; first += group.lanes) {
    prepare(stage, n, samples, group, first + group.rank, count, n.M);
    const int round = round_of(n, group, first);
    for (int j = 0; j < round; ++j) {
      const Quad<Index> cells = stage.cells[group.slot(j)];
      const Quad<A> weights = stage.weights[group.slot(j)];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (cells.corner[i] < 0) continue;
        const int64_t row = first_row(n, head) + cells.corner[i];
        const int exponent = args.exponents[row];
        if (exponent == kNoTerm || exponent == kNotFinite) continue;
        for (Index c = group.rank; c < n.D; c += group.lanes) {
          const int64_t term =
              to_fixed(weights.corner[i] * static_cast<A>(grad_output[c]), exponent, args.fraction_bits);
          // Two's complement: unsigned addition is signed addition.
          atomicAdd(reinterpret_cast<unsigned long long*>(args.sums + row * n.D + c),
                    static_cast<unsigned long long>(term));
        }
      }
    }
    __syncwarp();
  }
}

struct WriteLevels {
  LevelOf<int64_t> levels[kLevelsByValue];
  LevelOf<int64_t>* target;
  int count;
};

__global__ void write_levels_kernel(const __grid_constant__ WriteLevels args) {
  if (static_cast<int>(threadIdx.x) < args.count) args.target[threadIdx.x] = args.levels[threadIdx.x];
}

// --- launches -------------------------------------------------------------------------------------------------------

using torch::stable::new_empty;
using torch::stable::new_zeros;

// Up to here 32-bit offsets serve. Offsets beside a map, computed and not used, may be twice as large. A test lowers
// it.
#ifndef MMDET_DDETR_INT32_LIMIT
#define MMDET_DDETR_INT32_LIMIT (int64_t{1} << 30)
#endif

bool fits_int32(const Sizes& n) {
  return n.L <= kLevelsByValue &&
         std::max({n.S * n.M * n.D, n.S * n.M, n.M * n.D, n.B * n.Q * n.M, n.L * n.K}) <= MMDET_DDETR_INT32_LIMIT;
}

// f(T(), width, Index()): the element type, the channels a lane takes at once and the type of offsets, as types.
template <typename F>
void dispatch(const Tensor& value, const Sizes& n, std::initializer_list<const Tensor*> rows, F f) {
  const bool aligned = std::all_of(rows.begin(), rows.end(), [](const Tensor* tensor) {
    return reinterpret_cast<uintptr_t>(tensor->data_ptr()) % kBytesPerLoad == 0;
  });
  dispatch_dtype(value, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWide = kBytesPerLoad / sizeof(T);
    if (!fits_int32(n)) return f(zero, std::integral_constant<int, 1>(), int64_t());
    if (aligned && n.D % kWide == 0) return f(zero, std::integral_constant<int, kWide>(), int32_t());
    f(zero, std::integral_constant<int, 1>(), int32_t());
  });
}

// What the launches of one call have in common.
class Call {
 public:
  Call(const Tensor& value, const Sizes& n, const std::vector<int64_t>& spatial_shapes)
      : launch(value), n(n), value_(value), levels_(levels_of(spatial_shapes)) {}

  // The problem for lanes of `width` channels.
  template <typename Index>
  Problem<Index> problem(int width) {
    Problem<Index> p = {};
    p.heads = n.B * n.Q * n.M, p.Q = n.Q, p.M = n.M, p.D = n.D, p.L = n.L, p.K = n.K;
    p.by_Q = Divisor<Index>(n.Q), p.by_M = Divisor<Index>(n.M), p.by_K = Divisor<Index>(n.K);
    p.image_rows = n.S * n.M;
    p.log2_lanes = 2;
    while ((1 << p.log2_lanes) < kWarp && (width << p.log2_lanes) < n.D) ++p.log2_lanes;
    p.levels = levels<Index>();
    return p;
  }

  Tensor scratch(std::initializer_list<int64_t> size, ScalarType dtype) const { return new_empty(value_, size, dtype); }
  Tensor zeros(std::initializer_list<int64_t> size, ScalarType dtype) const { return new_zeros(value_, size, dtype); }

  const Launcher launch;
  const Sizes n;

 private:
  template <typename Index>
  Levels<Index> levels() {
    const auto level = [&](int64_t l) {
      return LevelOf<Index>{static_cast<Index>(levels_[l].H), static_cast<Index>(levels_[l].W),
                            static_cast<Index>(levels_[l].start)};
    };
    Levels<Index> levels = {};
    for (int64_t l = 0; l < std::min<int64_t>(n.L, kLevelsByValue); ++l) levels.first[l] = level(l);
    if constexpr (std::is_same_v<Index, int64_t>) write_rest(levels, level);
    return levels;
  }

  template <typename LevelAt>
  void write_rest(Levels<int64_t>& levels, LevelAt level) {
    if (n.L <= kLevelsByValue) return;
    const int64_t bytes = (n.L - kLevelsByValue) * sizeof(LevelOf<int64_t>);
    // Freed with this object, after the launches: the allocator hands it out again in stream order only.
    rest_.push_back(scratch({bytes}, ScalarType::Byte));
    auto* target = static_cast<LevelOf<int64_t>*>(rest_.back().data_ptr());
    levels.rest = target;
    for (int64_t l = kLevelsByValue; l < n.L; l += kLevelsByValue) {
      WriteLevels args = {};
      args.target = target + (l - kLevelsByValue);
      args.count = static_cast<int>(std::min<int64_t>(n.L - l, kLevelsByValue));
      for (int i = 0; i < args.count; ++i) args.levels[i] = level(l + i);
      launch(write_levels_kernel, 1, args);
    }
  }

  const Tensor& value_;
  const std::vector<Level> levels_;
  std::vector<Tensor> rest_;  // levels in device memory
};

template <typename Points>
Tensor forward(Call& call, const Tensor& value, const Points& points) {
  const Sizes& n = call.n;
  if (n.empty()) return call.zeros({n.B, n.Q, n.M * n.D}, value.scalar_type());
  Tensor output = call.scratch({n.B, n.Q, n.M * n.D}, value.scalar_type());
  dispatch(value, n, {&value}, [&](auto zero, auto width, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    const Forward<T, Index, Points> args = {call.problem<Index>(width), points, static_cast<const T*>(value.data_ptr()),
                                            static_cast<T*>(output.data_ptr())};
    call.launch(forward_kernel<T, width(), Index, Points>, (n.B * n.Q * n.M) << args.n.log2_lanes, args);
  });
  return output;
}

// The gradients of points, and into grad_value (Sum, zero before) that of value unless it is null.
template <typename Points>
void backward_by_atomics(Call& call, const Tensor& grad_output, const Tensor& value, const Points& points,
                         void* grad_value) {
  const Sizes& n = call.n;
  dispatch(value, n, {&value, &grad_output}, [&](auto zero, auto width, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    const Backward<T, Index, Points> args = {
        call.problem<Index>(width), points, static_cast<const T*>(value.data_ptr()),
        static_cast<const T*>(grad_output.data_ptr()), static_cast<Sum<T>*>(grad_value)};
    call.launch(backward_kernel<T, width(), Index, Points>, (n.B * n.Q * n.M) << args.n.log2_lanes, args);
  });
}

// The gradient of value, bitwise the same in every run. Needs 8 B S M D + 4 B S M bytes beside the result.
template <typename Points>
Tensor reproducible_grad_value(Call& call, const Tensor& grad_output, const Tensor& value, const Points& points) {
  const Sizes& n = call.n;
  Tensor grad_value = call.scratch({n.B, n.S, n.M, n.D}, value.scalar_type());
  Tensor exponents = call.scratch({n.B, n.S, n.M}, ScalarType::Int);
  torch::stable::fill_(exponents, kNoTerm);
  const Tensor sums = call.zeros({n.B, n.S, n.M, n.D}, ScalarType::Long);
  // A cell gets at most one term from each point of each query: no sample has two corners in one cell.
  int fraction_bits = 62;
  while (fraction_bits > 0 && int64_t{1} << (62 - fraction_bits) < n.Q * n.K) --fraction_bits;

  dispatch_dtype(value, [&](auto zero) {
    using T = decltype(zero);
    const auto problem = call.problem<int64_t>(1);  // a lane a channel: neighbouring lanes add to neighbouring words
    const int64_t threads = (n.B * n.Q * n.M) << problem.log2_lanes;
    const T* grad = static_cast<const T*>(grad_output.data_ptr());
    int* exponent = static_cast<int*>(exponents.data_ptr());
    int64_t* sum = static_cast<int64_t*>(sums.data_ptr());
    call.launch(row_exponents_kernel<T, Points>, threads, RowExponents<T, Points>{problem, points, grad, exponent});
    call.launch(fixed_point_sums_kernel<T, Points>, threads,
                FixedPointSums<T, Points>{problem, points, grad, exponent, sum, fraction_bits});
    call.launch(from_fixed_point_kernel<T>, grad_value.numel(),
                FromFixedPoint<T>{sum, exponent, static_cast<T*>(grad_value.data_ptr()), grad_value.numel(), n.D,
                                  fraction_bits});
  });
  return grad_value;
}

template <typename Points>
Tensor backward(Call& call, const Tensor& grad_output, const Tensor& value, const Points& points, bool deterministic) {
  const Sizes& n = call.n;
  if (deterministic) {
    backward_by_atomics(call, grad_output, value, points, nullptr);
    return reproducible_grad_value(call, grad_output, value, points);
  }
  // In the compute type also for 16-bit values: a row of a coarse level sums up thousands of terms, and a 16-bit sum
  // stands still as soon as it is a few hundred times larger than what is added.
  const ScalarType sum_type = MMDET_DDETR_NARROW_SUMS ? value.scalar_type() : compute_type(value.scalar_type());
  const Tensor sums = call.zeros({n.B, n.S, n.M, n.D}, sum_type);
  backward_by_atomics(call, grad_output, value, points, sums.data_ptr());
  return sums.scalar_type() == value.scalar_type() ? sums : torch::stable::to(sums, value.scalar_type());
}

}  // namespace
}  // namespace mmdet_ddetr::cuda
