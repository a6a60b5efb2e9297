// The matching cost on the CPU: checks, the split among threads, registration.
#include "../matching_cost.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "isa_choice.h"
#include "matching_cost_kernels.h"

namespace mmdet_ddetr::cpu {
namespace {

using torch::stable::contiguous;

void check_range(const char* name, const int64_t* numbers, int64_t T, int64_t limit) {
  for (int64_t t = 0; t < T; ++t) {
    check(numbers[t] >= 0 && numbers[t] < limit, name, " must be in 0 ... ", limit - 1, ", got ", numbers[t]);
  }
}

// The smallest share of a thread: 8192 pairs, some 10 us.
int64_t rows_per_grain(const MatchingSizes& n) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, n.Q)); }

Tensor matching_cost(const Tensor& scores_, const Tensor& boxes_, const Tensor& image_, const Tensor& labels_,
                     const Tensor& targets_, double cls_weight, double l1_weight, double giou_weight, double alpha,
                     double gamma, bool focal) {
  const MatchingSizes n = check_matching_cost(scores_, boxes_, image_, labels_, targets_, gamma);
  const Tensor scores = contiguous(scores_), boxes = contiguous(boxes_), image = contiguous(image_),
               labels = contiguous(labels_), targets = contiguous(targets_);
  const MatchingInput in = {n.B,
                            n.Q,
                            n.C,
                            n.T,
                            scores.const_data_ptr<float>(),
                            boxes.const_data_ptr<float>(),
                            image.const_data_ptr<int64_t>(),
                            labels.const_data_ptr<int64_t>(),
                            targets.const_data_ptr<float>(),
                            static_cast<float>(cls_weight),
                            static_cast<float>(l1_weight),
                            static_cast<float>(giou_weight),
                            static_cast<float>(alpha),
                            static_cast<float>(gamma),
                            focal};
  check_range("image", in.image, n.T, n.B);
  check_range("labels", in.labels, n.T, n.C);
  Tensor cost = torch::stable::new_empty(scores, {n.L, n.T, n.Q});
  if (n.empty()) return cost;
  float* to = cost.mutable_data_ptr<float>();
  const MatchingKernel kernel = MMDET_DDETR_CHOSEN(_matching_kernel)(in);
  torch::stable::parallel_for(0, n.L * n.T, rows_per_grain(n),
                              [&](int64_t begin, int64_t end) { kernel(in, to, begin, end); });
  return cost;
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) { m.impl("matching_cost", TORCH_BOX(&matching_cost)); }

}  // namespace
}  // namespace mmdet_ddetr::cpu
