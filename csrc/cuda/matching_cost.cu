// The matching cost on CUDA: a thread computes a pair of target and query.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../box_cost.h"
#include "../focal_loss.h"
#include "../matching_cost.h"
#include "launch.h"
#include "scalar_math.h"

namespace mmdet_ddetr::cuda {
namespace {

template <bool square>
struct MatchingProblem {
  FocalLoss<float, ScalarMath, square> focal_loss;
  BoxCost box_cost;
  float cls_weight;
  bool focal;
  MatchingSizes n;
  const float* scores;
  const Box<float>* boxes;
  const int64_t* image;
  const int64_t* labels;
  const Box<float>* targets;
  float* cost;
};

template <bool square>
__global__ void __launch_bounds__(kThreads) matching_cost_kernel(const __grid_constant__ MatchingProblem<square> p) {
  const MatchingSizes& n = p.n;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pair >= n.L * n.T * n.Q) return;
  const int64_t row = pair / n.Q, q = pair % n.Q, l = row / n.T, t = row % n.T;
  const int64_t image = p.image[t], label = p.labels[t];
  if (image < 0 || image >= n.B || label < 0 || label >= n.C) {
    p.cost[pair] = NAN;  // the CPU raises; here that would need a wait for the device
    return;
  }
  const int64_t query = (l * n.B + image) * n.Q + q;
  const float score = p.scores[query * n.C + label];
  const float cls = p.focal ? p.focal_loss.difference(score) : -score;
  p.cost[pair] = p.cls_weight * cls + p.box_cost(p.boxes[query], p.targets[t]);
}

Tensor matching_cost(const Tensor& scores_, const Tensor& boxes_, const Tensor& image_, const Tensor& labels_,
                     const Tensor& targets_, double cls_weight, double l1_weight, double giou_weight, double alpha,
                     double gamma, bool focal) {
  const MatchingSizes n = check_matching_cost(scores_, boxes_, image_, labels_, targets_, gamma);
  const Tensor scores = dense(scores_), boxes = dense(boxes_), image = dense(image_), labels = dense(labels_),
               targets = dense(targets_);
  const Tensor cost = torch::stable::new_empty(scores, {n.L, n.T, n.Q});
  if (n.empty()) return cost;
  const Launcher launch(scores);
  const auto run_with = [&](auto square) {
    constexpr bool kSquare = decltype(square)::value;
    const MatchingProblem<kSquare> problem = {{static_cast<float>(alpha), static_cast<float>(gamma)},
                                              {static_cast<float>(l1_weight), static_cast<float>(giou_weight)},
                                              static_cast<float>(cls_weight),
                                              focal,
                                              n,
                                              static_cast<const float*>(scores.data_ptr()),
                                              static_cast<const Box<float>*>(boxes.data_ptr()),
                                              static_cast<const int64_t*>(image.data_ptr()),
                                              static_cast<const int64_t*>(labels.data_ptr()),
                                              static_cast<const Box<float>*>(targets.data_ptr()),
                                              static_cast<float*>(cost.data_ptr())};
    launch(matching_cost_kernel<kSquare>, n.L * n.T * n.Q, problem);
  };
  gamma == 2 ? run_with(std::true_type()) : run_with(std::false_type());
  return cost;
}

}  // namespace
}  // namespace mmdet_ddetr::cuda

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CUDA, m) {
  m.impl("matching_cost", TORCH_BOX(&mmdet_ddetr::cuda::matching_cost));
}
