// The sigmoid focal loss on the CPU, with a class in a lane. Included once per instruction set by isa_*.cpp; see
// simd.h.

#include "../focal_loss.h"

namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA {

#include "simd.h"

// N classes of a row from class c on; the row may end before.
template <typename T>
struct Classes {
  using C = Compute<T>;
  using Int = typename Simd<C>::Int;
  static constexpr int N = Simd<C>::N;

  MMDET_DDETR_INLINE Classes(const FocalInput& in, int64_t row, int64_t c)
      : logits(load_part(static_cast<const T*>(in.logits) + row * in.C + c, in.C - c)) {
    const int64_t label = in.labels[row], rest = in.C - c;
    IntVec<C> lanes;
    for (int i = 0; i < N; ++i) lanes[i] = i;
    target = lanes == static_cast<Int>(label >= c && label < c + N ? label - c : -1);
    inside = lanes < static_cast<Int>(rest < N ? rest : N);
  }

  Vec<C> logits;
  IntVec<C> target, inside;  // masks
};

template <typename T, bool square>
void focal_forward(const FocalInput& in, void* loss, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const FocalLoss<C, VectorMath, square> focal = {static_cast<C>(in.alpha), static_cast<C>(in.gamma)};
  C* to = static_cast<C*>(loss);
  for (int64_t row = begin; row < end; ++row) {
    Vec<C> sum = {};
    for (int64_t c = 0; c < in.C; c += Simd<C>::N) {
      const Classes<T> classes(in, row, c);
      const Vec<C> losses = focal.loss(classes.logits, classes.target);
      if (in.sum_classes) {
        sum += classes.inside ? losses : Vec<C>{};
      } else {
        store_part(to + row * in.C + c, in.C - c, losses);
      }
    }
    if (in.sum_classes) to[row] = sum_of_lanes<C>(sum);
  }
}

template <typename T, bool square>
void focal_backward(const FocalInput& in, void* grad_logits, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const FocalLoss<C, VectorMath, square> focal = {static_cast<C>(in.alpha), static_cast<C>(in.gamma)};
  const C* grad_output = static_cast<const C*>(in.grad_output);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t c = 0; c < in.C; c += Simd<C>::N) {
      const int64_t at = row * in.C + c;
      const Classes<T> classes(in, row, c);
      const Vec<C> grad = in.sum_classes ? broadcast(grad_output[row]) : load_part(grad_output + at, in.C - c);
      store_part(static_cast<T*>(grad_logits) + at, in.C - c, grad * focal.derivative(classes.logits, classes.target));
    }
  }
}

template <typename T>
const FocalKernels& focal_kernels(bool square) {
  static const FocalKernels squared = {focal_forward<T, true>, focal_backward<T, true>},
                            general = {focal_forward<T, false>, focal_backward<T, false>};
  return square ? squared : general;
}

}  // namespace mmdet_ddetr::cpu::MMDET_DDETR_ISA

namespace mmdet_ddetr::cpu {

const FocalKernels& MMDET_DDETR_JOIN(MMDET_DDETR_ISA, _focal_kernels)(ScalarType logits, bool square) {
  using namespace MMDET_DDETR_ISA;
  switch (logits) {
    case ScalarType::Double:
      return focal_kernels<double>(square);
    case ScalarType::Half:
      return focal_kernels<c10::Half>(square);
    case ScalarType::BFloat16:
      return focal_kernels<c10::BFloat16>(square);
    default:
      return focal_kernels<float>(square);
  }
}

}  // namespace mmdet_ddetr::cpu
