// What both ways to compute a deformable convolution on the CPU share: its input, and where its columns lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../tensors.h"
#include "deform_conv_kernels.h"

namespace mmdet_ddetr::cpu {

// Channels of which a thread gets whole multiples: a cache line.
constexpr int64_t kLine = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct ConvTensors {
  const ConvSizes n;
  const Tensor cells, offset;
  const std::optional<Tensor> mask;

  ConvTensors(const ConvSizes& n, const Tensor& cells, const Tensor& offset, const std::optional<Tensor>& mask)
      : n(n),
        cells(cells),
        offset(mmdet_ddetr::exact(offset)),
        mask(mask ? std::optional(mmdet_ddetr::exact(*mask)) : mask) {}

  ConvInput image(int64_t b) const {
    const auto of_image = [&](const Tensor& tensor) {
      return static_cast<const char*>(tensor.const_data_ptr()) +
             b * (tensor.numel() / n.B) * static_cast<int64_t>(tensor.element_size());
    };
    return {n, of_image(cells), of_image(offset), mask ? of_image(*mask) : nullptr};
  }
};

inline ConvGradients gradients_of(const conv::Gradients& sums, int64_t b) {
  const auto of_image = [&](const Tensor& tensor) {
    return tensor.numel() ? conv::select(tensor, 0, b).mutable_data_ptr() : nullptr;
  };
  return {of_image(sums.input), of_image(sums.offset), of_image(sums.mask)};
}

// Where the columns of the segments from first to last are.
class ConvPlaces {
 public:
  // place(segment, number) -> element of a number; neighbours within a vector are neighbours there, too
  template <typename F>
  ConvPlaces(const ConvTiles& tiles, int64_t vector, int64_t first, int64_t last, const F& place)
      : begin_(tiles.first_channel(first)), end_(tiles.first_channel(last - 1) + tiles.channels(last - 1)) {
    const int64_t of_offsets = tiles.n.G == 1 ? 0 : tiles.n.C / tiles.n.G;
    const auto divides = [&](int64_t piece) {
      return begin_ % piece + end_ % piece + of_offsets % piece + tiles.channels(first) % piece == 0;
    };
    piece_ = divides(vector) ? vector : divides(vector / 2) ? vector / 2 : 1;
    for (int64_t t = 0; t < tiles.n.T(); ++t) {
      for (int64_t c = 0; c < end_ - begin_; c += piece_) {
        const int64_t segment = first + c / tiles.width;
        places_.push_back(place(segment, t * tiles.channels(segment) + c % tiles.width));
      }
    }
  }

  int64_t begin() const { return begin_; }  // channels
  int64_t end() const { return end_; }

  ConvColumns columns(void* data, bool narrow, int64_t cell, int64_t pitch) const {
    return {data, narrow, cell, pitch, begin_, piece_, (end_ - begin_) / piece_, places_.data()};
  }

 private:
  int64_t begin_, end_, piece_;
  std::vector<int64_t> places_;
};

}  // namespace mmdet_ddetr::cpu
