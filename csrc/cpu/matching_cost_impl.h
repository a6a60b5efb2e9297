// The matching cost on the CPU, with a query in a lane. Included once per instruction set by isa_*.cpp; see simd.h.

#include "../box_cost.h"
#include "../focal_loss.h"

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"

// The boxes of N queries, of which n >= 1 exist.
MMDET_DDETR_INLINE Box<Vec<float>> load_boxes(const float* from, int64_t n) {
  constexpr int N = Simd<float>::N;
  Vec<float> part[4], cx_w[2], cy_h[2];
  for (int i = 0; i < 4; ++i) part[i] = load_part(from + i * N, 4 * n - i * N);
  deinterleave<float>(part[0], part[1], cx_w[0], cy_h[0]);
  deinterleave<float>(part[2], part[3], cx_w[1], cy_h[1]);
  Box<Vec<float>> box;
  deinterleave<float>(cx_w[0], cx_w[1], box.cx, box.w);
  deinterleave<float>(cy_h[0], cy_h[1], box.cy, box.h);
  return box;
}

// One number of each of N rows of `stride`, of which n >= 1 exist.
MMDET_DDETR_INLINE Vec<float> load_column(const float* from, int64_t stride, int64_t n) {
  constexpr int N = Simd<float>::N;
  float column[N];
  for (int i = 0; i < N; ++i) column[i] = from[(i < n ? i : 0) * stride];
  return load(column);
}

struct FocalDifference {
  template <typename Focal>
  static MMDET_DDETR_INLINE Vec<float> cost(const Focal& focal, Vec<float> logit) {
    return focal.difference(logit);
  }
};
struct Probability {
  template <typename Focal>
  static MMDET_DDETR_INLINE Vec<float> cost(const Focal&, Vec<float> probability) {
    return -probability;
  }
};

template <typename ClassCost, bool square>
void matching_cost(const MatchingInput& in, float* cost, int64_t begin, int64_t end) {
  const FocalLoss<float, VectorMath, square> focal = {in.alpha, in.gamma};
  const BoxCost box_cost = {in.l1_weight, in.giou_weight};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t t = row % in.T, first = (row / in.T * in.B + in.image[t]) * in.Q;
    const float *target = in.targets + 4 * t, *scores = in.scores + first * in.C + in.labels[t];
    const Box<Vec<float>> box = {broadcast(target[0]), broadcast(target[1]), broadcast(target[2]),
                                 broadcast(target[3])};
    for (int64_t q = 0; q < in.Q; q += Simd<float>::N) {
      const int64_t n = in.Q - q;
      const Vec<float> score = load_column(scores + q * in.C, in.C, n);
      const Vec<float> sum =
          in.cls_weight * ClassCost::cost(focal, score) + box_cost(load_boxes(in.boxes + 4 * (first + q), n), box);
      store_part(cost + row * in.Q + q, n, sum);
    }
  }
}

}  // namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA

namespace mmdet_ddetr::cpu {

MatchingKernel MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _matching_kernel)(const MatchingInput& in) {
  using namespace MMDET_DDETR_ISA;
  if (!in.focal) return matching_cost<Probability, true>;
  return in.gamma == 2 ? matching_cost<FocalDifference, true> : matching_cost<FocalDifference, false>;
}

}  // namespace mmdet_ddetr::cpu
