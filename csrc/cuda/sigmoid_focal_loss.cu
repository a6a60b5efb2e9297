// The sigmoid focal loss on CUDA: a group of lanes goes through the classes of a row side by side.
#include <torch/csrc/stable/library.h>

#include "../focal_loss.h"
#include "../sigmoid_focal_loss.h"
#include "launch.h"
#include "scalar_math.h"

namespace mmdet_ddetr::cuda {
namespace {

template <typename T, bool square>
struct FocalProblem {
  using A = Compute<T>;

  FocalLoss<A, ScalarMath, square> focal;
  int64_t N, C;
  bool sum_classes;
  int log2_lanes;  // of a group
  const T* logits;
  const int64_t* labels;
  const A* grad_output;  // null in the forward
  void* result;          // loss, or the gradient of logits
};

template <typename T, bool square>
__global__ void __launch_bounds__(kThreads) focal_forward_kernel(const __grid_constant__ FocalProblem<T, square> p) {
  using A = Compute<T>;
  const Group group(p.log2_lanes);
  const int64_t row = group.template index<int64_t>();
  const bool exists = row < p.N;  // lanes without a row still meet the others in the sum
  const int64_t label = exists ? p.labels[row] : -1;
  A* loss = static_cast<A*>(p.result);
  A sum = 0;
  for (int64_t c = group.rank; exists && c < p.C; c += group.lanes) {
    const A x = p.focal.loss(static_cast<A>(p.logits[row * p.C + c]), c == label);
    if (p.sum_classes) {
      sum += x;
    } else {
      loss[row * p.C + c] = x;
    }
  }
  if (!p.sum_classes) return;
  sum = group.sum(sum);
  if (exists && group.rank == 0) loss[row] = sum;
}

template <typename T, bool square>
__global__ void __launch_bounds__(kThreads) focal_backward_kernel(const __grid_constant__ FocalProblem<T, square> p) {
  using A = Compute<T>;
  const Group group(p.log2_lanes);
  const int64_t row = group.template index<int64_t>();
  if (row >= p.N) return;
  const int64_t label = p.labels[row];
  for (int64_t c = group.rank; c < p.C; c += group.lanes) {
    const int64_t at = row * p.C + c;
    const A grad = p.grad_output[p.sum_classes ? row : at];
    const A derivative = p.focal.derivative(static_cast<A>(p.logits[at]), c == label);
    static_cast<T*>(p.result)[at] = static_cast<T>(grad * derivative);
  }
}

// Launches one of the kernels; grad_output is null in the forward.
void run(const FocalSizes& n, const Tensor& logits, const Tensor& labels, const Tensor* grad_output,
         const Tensor& result, double alpha, double gamma, bool sum_classes) {
  const Launcher launch(logits);
  int log2_lanes = 2;
  while ((1 << log2_lanes) < kWarp && (1 << log2_lanes) < n.C) ++log2_lanes;
  dispatch_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    using A = Compute<T>;
    const auto run_with = [&](auto square) {
      constexpr bool kSquare = decltype(square)::value;
      const FocalProblem<T, kSquare> problem = {{static_cast<A>(alpha), static_cast<A>(gamma)},
                                                n.N,
                                                n.C,
                                                sum_classes,
                                                log2_lanes,
                                                static_cast<const T*>(logits.data_ptr()),
                                                static_cast<const int64_t*>(labels.data_ptr()),
                                                grad_output ? static_cast<const A*>(grad_output->data_ptr()) : nullptr,
                                                result.data_ptr()};
      launch(grad_output ? focal_backward_kernel<T, kSquare> : focal_forward_kernel<T, kSquare>, n.N << log2_lanes,
             problem);
    };
    gamma == 2 ? run_with(std::true_type()) : run_with(std::false_type());
  });
}

// --- operators ------------------------------------------------------------------------------------------------------

Tensor sigmoid_focal_loss(const Tensor& logits_, const Tensor& labels_, double alpha, double gamma, bool sum_classes) {
  const FocalSizes n = check_sigmoid_focal_loss(logits_, labels_, gamma);
  const Tensor logits = dense(logits_), labels = dense(labels_);
  const ScalarType dtype = compute_type(logits.scalar_type());
  const Tensor loss = sum_classes ? torch::stable::new_empty(logits, {n.N}, dtype)
                                  : torch::stable::new_empty(logits, {n.N, n.C}, dtype);
  run(n, logits, labels, nullptr, loss, alpha, gamma, sum_classes);
  return loss;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad_output_, const Tensor& logits_, const Tensor& labels_,
                                   double alpha, double gamma) {
  const FocalSizes n = check_sigmoid_focal_loss(logits_, labels_, gamma);
  check_focal_grad_output(grad_output_, logits_);
  const Tensor grad_output = dense(grad_output_), logits = dense(logits_), labels = dense(labels_);
  const Tensor grad_logits = torch::stable::new_empty(logits, {n.N, n.C});
  run(n, logits, labels, &grad_output, grad_logits, alpha, gamma, grad_output.dim() == 1);
  return grad_logits;
}

}  // namespace
}  // namespace mmdet_ddetr::cuda

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&mmdet_ddetr::cuda::sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&mmdet_ddetr::cuda::sigmoid_focal_loss_backward));
}
