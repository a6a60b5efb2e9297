// Deformable convolution on the CPU with products of our own, and how it is split among threads.
//
// Forward, a thread takes some output cells through all slices of channels: it samples the columns of a slice into the
// second cache and multiplies them there. Backward, threads share out first the output cells of a slice, then, after
// all have come so far, its channels. A sum has the same order for any number of threads.
#pragma once

#include "deform_conv_split.h"

namespace mmdet_ddetr::cpu {

class TiledConv {
 public:
  TiledConv(const ConvSizes& n, const ConvKernels& kernels, const Tensor& input, const Tensor& offset,
            const Tensor& weight, const std::optional<Tensor>& mask);

  Tensor forward() const;
  std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, bool needs_grad_samples,
                                                      bool needs_grad_weight) const;

 private:
  struct Backward;
  struct Block;  // output cells

  Tensor cells_of(const Tensor& input) const;
  Tensor packed(void (*pack)(const ConvTiles&, const void*, void*, int64_t), int64_t size) const;
  Tensor space(int64_t rows, int64_t size) const;
  Block block(int64_t unit) const;
  int64_t first(int64_t slice) const { return slice * tiles_.together; }  // segment
  int64_t last(int64_t slice) const { return std::min(first(slice + 1), tiles_.segments()); }

  const ConvSizes n_;
  const ConvKernels& kernels_;
  const ConvTiles tiles_;
  const ScalarType compute_, offset_type_, mask_type_;
  const ConvTensors in_;
  const Tensor weight_;
  int64_t blocks_;                  // of an image
  std::vector<ConvPlaces> places_;  // by slice
};

}  // namespace mmdet_ddetr::cpu
