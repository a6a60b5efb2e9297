// A linear layer on the CPU: checks, the split among threads, registration.
#include "../linear.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../tensors.h"
#include "isa_choice.h"
#include "linear_kernels.h"

namespace mmdet_ddetr::cpu {
namespace {

constexpr int64_t kRowsCached = 1 << 16;  // numbers of x that stay in the second cache while all panels read them
constexpr int64_t kGrain = 1 << 22;       // products, the smallest share of a thread: to wake one takes 40 us

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Rows of a block: as many as in all others, in whole tiles of every instruction set.
int64_t rows_of_block(const LinearSizes& n) {
  constexpr int64_t kTile = 12;
  const int64_t most = std::max(kTile, kRowsCached / std::max<int64_t>(1, n.C_in) / kTile * kTile);
  const int64_t blocks = ceil_div(n.N, most);
  return ceil_div(ceil_div(n.N, blocks), kTile) * kTile;
}

Tensor packed_linear(const Tensor& x_, const Tensor& packed_, const Tensor& bias_, const std::optional<Tensor>& add_,
                     double low, double high) {
  const LinearSizes n = check_linear(x_, packed_, bias_, add_);
  const Tensor x = compact(x_), packed = compact(packed_), bias = compact(bias_);
  const std::optional<Tensor> add = compact(add_);
  Tensor output = torch::stable::new_empty(x, n.output);
  if (n.N == 0 || n.C_out == 0) return output;
  const LinearInput in = {n.N,
                          n.C_in,
                          n.C_out,
                          x.const_data_ptr<float>(),
                          packed.const_data_ptr<float>(),
                          bias.const_data_ptr<float>(),
                          add ? add->const_data_ptr<float>() : nullptr,
                          static_cast<float>(low),
                          static_cast<float>(high)};
  float* to = output.mutable_data_ptr<float>();
  const LinearKernel kernel = MMDET_DDETR_CHOSEN(_linear_kernel)();
  const int64_t rows = rows_of_block(n), panels = n.panels();
  const int64_t grain = std::max<int64_t>(1, kGrain / (std::min(rows, n.N) * kPanel * std::max<int64_t>(1, n.C_in)));
  torch::stable::parallel_for(0, ceil_div(n.N, rows) * panels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / panels * rows;
      kernel(in, to, first, std::min(first + rows, n.N), i % panels);
    }
  });
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(mmdet_ddetr, CPU, m) { m.impl("packed_linear", TORCH_BOX(&packed_linear)); }

}  // namespace
}  // namespace mmdet_ddetr::cpu
