// Sizes and argument checks of the matching cost, shared by the CPU and CUDA kernels.
//
//   scores   [L, B, Q, C]  fp32; logits if focal, else probabilities
//   boxes    [L, B, Q, 4]  fp32 (cx, cy, w, h)
//   image    [T]           int64; which of the B a target belongs to
//   labels   [T]           int64 in 0 ... C - 1
//   targets  [T, 4]        fp32 (cx, cy, w, h)
//   cost     [L, T, Q]     fp32, of each target with the queries of its own image:
//            cls_weight class_cost + l1_weight |box - target|_1 - giou_weight GIoU(box, target), where class_cost is,
//            if focal, the focal loss of the label's logit as the target's class minus that as any other, else minus
//            the label's probability
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "check.h"
#include "compute_type.h"
#include "sizes.h"

namespace mmdet_ddetr {

using torch::stable::Tensor;

struct MatchingSizes {
  int64_t L, B, Q, C, T;

  bool empty() const { return L == 0 || T == 0 || Q == 0; }
};

inline MatchingSizes check_matching_cost(const Tensor& scores, const Tensor& boxes, const Tensor& image,
                                         const Tensor& labels, const Tensor& targets, double gamma) {
  check(scores.dim() == 4, "scores must be [L, B, Q, C], got ", Shape{scores});
  const MatchingSizes n = {scores.size(0), scores.size(1), scores.size(2), scores.size(3), image.numel()};
  check(boxes.dim() == 4 && boxes.size(0) == n.L && boxes.size(1) == n.B && boxes.size(2) == n.Q && boxes.size(3) == 4,
        "boxes must be [L, B, Q, 4] = [", n.L, ", ", n.B, ", ", n.Q, ", 4], got ", Shape{boxes});
  check(image.dim() == 1, "image must be [T], got ", Shape{image});
  check(labels.dim() == 1 && labels.size(0) == n.T, "labels must be [T] = [", n.T, "], got ", Shape{labels});
  check(targets.dim() == 2 && targets.size(0) == n.T && targets.size(1) == 4, "targets must be [T, 4] = [", n.T,
        ", 4], got ", Shape{targets});
  for (const Tensor* tensor : {&scores, &boxes, &targets}) {
    check(tensor->scalar_type() == ScalarType::Float, "scores, boxes and targets must be fp32, got ",
          tensor->scalar_type());
  }
  for (const Tensor* tensor : {&image, &labels}) {
    check(tensor->scalar_type() == ScalarType::Long, "image and labels must be int64, got ", tensor->scalar_type());
  }
  for (const Tensor* tensor : {&boxes, &image, &labels, &targets}) {
    check(tensor->device() == scores.device(), "all arguments must be on scores' device, but one is on another");
  }
  check(gamma >= 0, "gamma must not be negative, got ", gamma);
  check_size("the cost", {n.L, n.T, n.Q});
  return n;
}

}  // namespace mmdet_ddetr
