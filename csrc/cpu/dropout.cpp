// Dropout on the CPU: checks, the split among threads, registration.
#include "../dropout.h"

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "dropout_kernels.h"
#include "isa_choice.h"

namespace mmdet_ddetr::cpu {
namespace {

Tensor dropout(const Tensor& input_, double p, const Tensor& seed) {
  check_dropout(input_, p, seed);
  const Tensor input = torch::stable::contiguous(input_);
  Tensor output = torch::stable::empty_like(input);
  const DropoutInput in = {input.numel(), input.const_data_ptr(),
                           static_cast<uint64_t>(seed.const_data_ptr<int64_t>()[0]),
                           static_cast<int32_t>(std::llround(std::ldexp(p, 31)) - 1), 1 / (1 - p)};
  void* to = output.mutable_data_ptr();
  const DropoutKernel kernel = MMDET_DDETR_CHOSEN(_dropout_kernel)(input.scalar_type());
  const int64_t blocks = (in.size + kDropoutBlock - 1) / kDropoutBlock;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) { kernel(in, to, begin, end); });
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) { m.impl("dropout", TORCH_BOX(&dropout)); }

}  // namespace
}  // namespace mmdet_ddetr::cpu
