// Launches on PyTorch's current stream, errors are raised; dispatch on the element type.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <limits>

#include "../check.h"
#include "../compute_type.h"
#include "simt.h"

// A CPU PyTorch has none of these. Weak, they do not keep it from loading the extension for its CPU kernels.
#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg

namespace mmdet_ddetr::cuda {

inline torch::stable::Tensor dense(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// f(T()): the element type as a type.
template <typename F>
void dispatch_dtype(const torch::stable::Tensor& tensor, F f) {
#ifdef MMDET_DDETR_DTYPE  // a build for one type alone takes a quarter of the time: benchmarks/gpu/variants.py
  return f(MMDET_DDETR_DTYPE());
#else
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return f(double());
    case ScalarType::Float:
      return f(float());
    case ScalarType::Half:
      return f(c10::Half());
    default:
      return f(c10::BFloat16());
  }
#endif
}

// Makes the tensor's device current and finds its current stream, for the lifetime of the object.
class Launcher {
 public:
  explicit Launcher(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // kernel(args) in enough blocks of kThreads for this many threads; nothing for none.
  template <typename Args>
  void operator()(void (*kernel)(Args), int64_t threads, const Args& args) const {
    if (threads == 0) return;
    const int64_t blocks = (threads - 1) / kThreads + 1;
    check(blocks <= std::numeric_limits<int32_t>::max(), "the tensors are too large for CUDA: ", blocks,
          " blocks of threads, where a grid has less than 2^31");
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.stream = stream_;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace mmdet_ddetr::cuda
