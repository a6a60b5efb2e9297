// Non-maximum suppression on the CPU: each kept box is compared with all that follow, in a loop that vectorises.
#include "../nms.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace mmdet_ddetr::cpu {
namespace {

// Sets `dropped` for the boxes after the i-th that overlap it. A function of its own for __restrict: bytes alias all.
template <typename T>
void drop(const T* __restrict columns, int64_t N, int64_t i, T threshold, T offset, uint8_t* __restrict dropped) {
  const T *x1 = columns, *y1 = x1 + N, *x2 = y1 + N, *y2 = x2 + N, *area = y2 + N;
  const T left = x1[i], top = y1[i], right = x2[i], bottom = y2[i], own = area[i];
  for (int64_t j = i + 1; j < N; ++j) {
    const T width = std::min(right, x2[j]) - std::max(left, x1[j]) + offset;
    const T height = std::min(bottom, y2[j]) - std::max(top, y1[j]) + offset;
    const T overlap = std::max(width, T(0)) * std::max(height, T(0));
    const T both = own + area[j] - overlap;
    // The union is 0 only where the overlap is; one that is not a number compares false.
    dropped[j] |= overlap / std::max(both, std::numeric_limits<T>::denorm_min()) > threshold;
  }
}

template <typename T>
void nms_kernel(const T* boxes, int64_t N, T threshold, T offset, bool* keep) {
  std::vector<T> columns(5 * N);  // x1, y1, x2, y2, area
  T *x1 = columns.data(), *y1 = x1 + N, *x2 = y1 + N, *y2 = x2 + N, *area = y2 + N;
  for (int64_t i = 0; i < N; ++i) {
    x1[i] = boxes[4 * i], y1[i] = boxes[4 * i + 1], x2[i] = boxes[4 * i + 2], y2[i] = boxes[4 * i + 3];
    area[i] = (x2[i] - x1[i] + offset) * (y2[i] - y1[i] + offset);
  }
  std::vector<uint8_t> dropped(N, 0);  // bytes: bool's vector is bits
  for (int64_t i = 0; i < N; ++i) {
    keep[i] = !dropped[i];
    if (dropped[i]) continue;
    drop(columns.data(), N, i, threshold, offset, dropped.data());
  }
}

Tensor nms_keep(const Tensor& boxes_, double iou_threshold, int64_t offset) {
  check_nms(boxes_, offset);
  const Tensor boxes = torch::stable::contiguous(boxes_);
  const int64_t N = boxes.size(0);
  Tensor keep = torch::stable::new_empty(boxes, {N}, ScalarType::Bool);
  bool* to = keep.mutable_data_ptr<bool>();
  if (boxes.scalar_type() == ScalarType::Double) {
    nms_kernel<double>(boxes.const_data_ptr<double>(), N, iou_threshold, offset, to);
  } else {
    nms_kernel<float>(boxes.const_data_ptr<float>(), N, iou_threshold, offset, to);
  }
  return keep;
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) { m.impl("nms_keep", TORCH_BOX(&nms_keep)); }

}  // namespace
}  // namespace mmdet_ddetr::cpu
