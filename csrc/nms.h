// Argument checks of non-maximum suppression.
//
//   boxes  [N, 4]  fp32 or fp64 (x1, y1, x2, y2) in pixels, the highest score first
//   keep   [N]     bool, false where a box overlaps an earlier kept one by an IoU of more than iou_threshold
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "check.h"
#include "compute_type.h"

namespace mmdet_ddetr {

using torch::stable::Tensor;

inline void check_nms(const Tensor& boxes, int64_t offset) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must be [N, 4], got ", Shape{boxes});
  check(boxes.scalar_type() == compute_type(boxes.scalar_type()), "boxes must be fp32 or fp64, got ",
        boxes.scalar_type());
  check(offset == 0 || offset == 1, "offset must be 0 or 1, got ", offset);
}

}  // namespace mmdet_ddetr
