// The CUDA kernels, their launches and their operators for CPU tensors, as torch.ops.mmdet_ddetr_cuda_on_host.
#include <cuda_runtime.h>  // the one beside this file
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>

#define MMDET_DDETR_INT32_LIMIT on_host::int32_limit
#define mmdet_ddetr mmdet_ddetr_cuda_on_host  // the namespace of the operators
#define CUDA CPU                              // the key they are registered for
#include "../../../csrc/cuda/deform_conv.cu"
#include "../../../csrc/cuda/deform_roi_pool.cu"
#include "../../../csrc/cuda/matching_cost.cu"
#include "../../../csrc/cuda/ms_deform_attn.cu"
#include "../../../csrc/cuda/sigmoid_focal_loss.cu"
#include "../../../csrc/library.cpp"

// What libtorch_cuda would supply; linked with -Bsymbolic, so that these come before libtorch's own.
extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError torch_c10_cuda_check_msg(int32_t code, const char*, const char*, uint32_t, bool, char** message) {
  *message = code == cudaSuccess ? nullptr : strdup(on_host::error.c_str());
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) { free(message); }

// For the tests.
#pragma GCC visibility push(default)
void set_seed(unsigned seed) { on_host::seed = seed; }
void set_int32_limit(int64_t limit) { on_host::int32_limit = limit; }
int launches() { return on_host::launches; }
int32_t quotient(int32_t x, int64_t divisor) { return mmdet_ddetr::cuda::Divisor<int32_t>(divisor).quotient(x); }
#pragma GCC visibility pop
}
