#include "deform_conv_tiled.h"

namespace mmdet_ddetr::cpu {

using torch::stable::get_num_threads;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::parallel_for;

namespace {

// Element i of a contiguous tensor; null in an empty one.
void* at(const Tensor& tensor, int64_t i) {
  return tensor.numel()
             ? static_cast<char*>(tensor.mutable_data_ptr()) + i * static_cast<int64_t>(tensor.element_size())
             : nullptr;
}

}  // namespace

struct TiledConv::Block {
  int64_t b, begin, end;  // of the output cells of image b

  int64_t cells() const { return end - begin; }
};

TiledConv::TiledConv(const ConvSizes& n, const ConvKernels& kernels, const Tensor& input, const Tensor& offset,
                     const Tensor& weight, const std::optional<Tensor>& mask)
    : n_(n),
      kernels_(kernels),
      tiles_(n, kernels.vector, kernels.few_rows),
      compute_(compute_type(input.scalar_type())),
      offset_type_(offset.scalar_type()),
      mask_type_(mask ? mask->scalar_type() : compute_),
      in_(n, cells_of(input), offset, mask),
      weight_(conv::contiguous(weight)) {
  const int64_t lanes = tiles_.block;
  check_size("the weights by segment",
             {tiles_.segments(), tiles_.blocks() * lanes, tiles_.panels() * lanes + kernels.few_rows});
  check_size("the columns of a slice", {tiles_.together, tiles_.blocks() * lanes, kTileCells});
  for (int64_t slice = 0; slice < tiles_.slices(); ++slice) {
    places_.emplace_back(tiles_, kernels.vector, first(slice), last(slice), [&](int64_t segment, int64_t number) {
      return (segment - first(slice)) * tiles_.columns_of_segment() + number / lanes * kTileCells * lanes +
             number % lanes;
    });
  }
  // as many as can be shared out evenly
  const int64_t threads = get_num_threads(), least = ceil_div(n.P(), kTileCells);
  blocks_ = n.B * least % threads ? std::min(ceil_div(least, threads) * threads, ceil_div(n.P(), kCells)) : least;
}

// [B, H W, C]: no copy of an input in channels_last.
Tensor TiledConv::cells_of(const Tensor& input) const {
  const int64_t HW = n_.H * n_.W;
  const Tensor by_cell = conv::transpose(conv::reshape(input, {n_.B, n_.C, HW}), 1, 2);
  if (by_cell.is_contiguous() || !input.is_contiguous()) return conv::contiguous(by_cell);
  const Tensor cells = new_empty(input, {n_.B, HW, n_.C});
  const int64_t piece = ceil_div(HW, 64);
  parallel_for(0, n_.B * 64, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / 64 * HW * n_.C, first = std::min(i % 64 * piece, HW);
      kernels_.cells_of(n_, at(input, image), at(cells, image), first, std::min(first + piece, HW));
    }
  });
  return cells;
}

// Of each segment, the weight in the order in which a product reads it.
Tensor TiledConv::packed(void (*pack)(const ConvTiles&, const void*, void*, int64_t), int64_t size) const {
  const Tensor packed = space(tiles_.segments(), size);
  parallel_for(0, tiles_.segments(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) pack(tiles_, weight_.const_data_ptr(), at(packed, s * size), s);
  });
  return packed;
}

Tensor TiledConv::space(int64_t rows, int64_t size) const { return new_empty(in_.cells, {rows, size}, compute_); }

TiledConv::Block TiledConv::block(int64_t unit) const {
  const int64_t b = unit / blocks_, i = unit % blocks_;
  const auto cell = [&](int64_t i) { return std::min(i * ceil_div(n_.P(), kCells) / blocks_ * kCells, n_.P()); };
  return {b, cell(i), cell(i + 1)};
}

Tensor TiledConv::forward() const {
  const Tensor output = new_empty(in_.cells, {n_.B, n_.C_out, n_.Ho, n_.Wo});
  if (n_.empty()) return output;
  const Tensor packed = this->packed(kernels_.pack_forward, tiles_.packed_forward());
  const int64_t units = n_.B * blocks_, threads = std::min<int64_t>(get_num_threads(), units);
  const int64_t size = tiles_.columns_of_segment();
  const Tensor columns = space(threads, tiles_.together * size), sums = space(threads, tiles_.sums());
  const auto run = [&](const Block& block, void* columns, void* sums) {
    for (int64_t slice = 0; slice < tiles_.slices(); ++slice) {
      const ConvPlaces& places = places_[slice];
      kernels_.sample(in_.image(block.b), places.columns(columns, false, block.begin, tiles_.block), places.begin(),
                      places.end(), block.begin, block.end);
      for (int64_t s = first(slice); s < last(slice); ++s) {
        const char* own = static_cast<const char*>(columns) + (s - first(slice)) * size * in_.offset.element_size();
        kernels_.forward_product(tiles_, s, own, at(packed, s * tiles_.packed_forward()), sums, block.cells());
        if (!tiles_.ends_group(s)) continue;
        const int64_t row = block.b * n_.C_out + tiles_.group(s) * tiles_.outs();
        kernels_.write_output(tiles_, sums, at(output, row * n_.P()), block.begin, block.cells());
      }
    }
  };
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t unit = thread * units / threads; unit < (thread + 1) * units / threads; ++unit) {
        run(block(unit), at(columns, thread * tiles_.together * size), at(sums, thread * tiles_.sums()));
      }
    }
  });
  return output;
}

// Some blocks at a time, one for each thread.
struct TiledConv::Backward {
  Backward(const TiledConv& op, const Tensor& grad_output, bool needs_grad_samples, bool needs_grad_weight)
      : op(op),
        n(op.n_),
        tiles(op.tiles_),
        kernels(op.kernels_),
        samples(needs_grad_samples),
        weight(needs_grad_weight),
        grad_output(conv::contiguous(grad_output)),
        slots(std::min<int64_t>(get_num_threads(), op.blocks_)),
        none(new_empty(grad_output, {0})),
        grads(new_zeros(op.in_.cells, {slots, grad_size()}, op.compute_)),
        products(samples ? op.space(slots, products_size()) : none),
        grad_columns(samples ? op.space(slots, columns_size()) : none),
        columns(weight ? op.space(slots, columns_size()) : none),
        packed(samples ? op.packed(op.kernels_.pack_backward, tiles.packed_backward()) : none),
        grad_packed(weight ? new_zeros(grads, {tiles.segments(), tiles.packed_backward()}) : none) {
    sums = {none, none, none};
    if (!samples) return;
    const auto like = [&](const Tensor& tensor) { return new_zeros(tensor, tensor.sizes(), op.compute_); };
    sums = {new_zeros(op.in_.cells, op.in_.cells.sizes(), op.compute_), like(op.in_.offset),
            op.in_.mask ? like(*op.in_.mask) : none};
  }

  int64_t grad_size() const { return (n.C_out + tiles.few_rows) * kTileCells; }  // a product may read further rows
  int64_t columns_size() const { return tiles.together * tiles.columns_of_segment(); }
  int64_t products_size() const { return n.G * n.T() * kTileCells * 4; }

  ConvColumns columns_of(const Tensor& tensor, int64_t slot, int64_t slice, const Block& block) const {
    return op.places_[slice].columns(at(tensor, slot * columns_size()), false, block.begin, tiles.block);
  }

  void run() const {
    for (int64_t b = 0; b < n.B; ++b) {
      for (int64_t first = 0; first < op.blocks_; first += slots)
        run(b * op.blocks_ + first, std::min(slots, op.blocks_ - first));
    }
  }

  // Units from first on.
  void run(int64_t first, int64_t count) const {
    each(count, [&](int64_t slot) {
      const Block block = op.block(first + slot);
      kernels.read_grad_output(tiles, at(grad_output, block.b * n.C_out * n.P()), at(grads, slot * grad_size()),
                               block.begin, block.cells());
      if (samples)
        std::fill_n(static_cast<char*>(at(products, slot * products_size())), products_size() * products.element_size(),
                    0);
    });
    for (int64_t slice = 0; slice < tiles.slices(); ++slice) {
      each(count, [&](int64_t slot) { take_cells(slot, slice, op.block(first + slot)); });
      take_channels(first, count, slice);
    }
    if (!samples) return;
    each(count, [&](int64_t slot) {
      const Block block = op.block(first + slot);
      kernels.finish_points(op.in_.image(block.b), at(products, slot * products_size()), gradients_of(sums, block.b),
                            block.begin, block.end);
    });
  }

  template <typename F>
  void each(int64_t count, const F& f) const {
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i);
    });
  }

  void take_cells(int64_t slot, int64_t slice, const Block& block) const {
    const ConvPlaces& places = op.places_[slice];
    const ConvColumns sampled = columns_of(columns, slot, slice, block);
    if (!samples)
      return kernels.sample(op.in_.image(block.b), sampled, places.begin(), places.end(), block.begin, block.end);
    const ConvColumns gradients = columns_of(grad_columns, slot, slice, block);
    for (int64_t s = op.first(slice); s < op.last(slice); ++s) {
      kernels.columns_product(
          tiles, s, at(grads, slot * grad_size()), at(packed, s * tiles.packed_backward()),
          at(grad_columns, slot * columns_size() + (s - op.first(slice)) * tiles.columns_of_segment()), block.cells());
    }
    kernels.backward_points(op.in_.image(block.b), gradients, sampled, at(products, slot * products_size()),
                            places.begin(), places.end(), block.begin, block.end);
  }

  void take_channels(int64_t first, int64_t count, int64_t slice) const {
    const ConvPlaces& places = op.places_[slice];
    const int64_t lines = samples ? ceil_div(places.end() - places.begin(), kLine) : 0;
    parallel_for(0, lines, 1, [&](int64_t from, int64_t until) {
      const int64_t begin = places.begin() + from * kLine, end = std::min(places.begin() + until * kLine, places.end());
      for (int64_t slot = 0; slot < count; ++slot) {
        const Block block = op.block(first + slot);
        kernels.backward_cells(op.in_.image(block.b), columns_of(grad_columns, slot, slice, block),
                               gradients_of(sums, block.b), begin, end, block.begin, block.end);
      }
    });
    if (!weight) return;
    each((op.last(slice) - op.first(slice)) * tiles.blocks(), [&](int64_t i) {
      const int64_t s = op.first(slice) + i / tiles.blocks(), block_of_numbers = i % tiles.blocks();
      if (block_of_numbers * tiles.block >= tiles.numbers(s)) return;
      for (int64_t slot = 0; slot < count; ++slot) {
        kernels.weight_product(
            tiles, s, block_of_numbers, at(grads, slot * grad_size()),
            at(columns, slot * columns_size() + i * kTileCells * tiles.block),
            at(grad_packed, s * tiles.packed_backward() + block_of_numbers * tiles.padded_outs() * tiles.block),
            op.block(first + slot).cells());
      }
    });
  }

  const TiledConv& op;
  const ConvSizes& n;
  const ConvTiles& tiles;
  const ConvKernels& kernels;
  const bool samples, weight;
  const Tensor grad_output;
  const int64_t slots;
  const Tensor none;
  const Tensor grads, products, grad_columns, columns;  // [slots, ...]
  const Tensor packed, grad_packed;                     // [segments, ...]
  conv::Gradients sums;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> TiledConv::backward(const Tensor& grad_output, bool needs_grad_samples,
                                                               bool needs_grad_weight) const {
  Backward pass(*this, grad_output, needs_grad_samples, needs_grad_weight);
  if (!n_.empty() && (needs_grad_samples || needs_grad_weight)) pass.run();
  const auto none = [&] { return new_empty(grad_output, {0}); };  // each a tensor of its own
  Tensor grad_input = none(), grad_weight = none(), grad_offset = none(), grad_mask = none();
  if (needs_grad_samples) {
    grad_input = new_empty(in_.cells, {n_.B, n_.C, n_.H, n_.W});
    const int64_t lines = ceil_div(n_.C, kLine), size = n_.C * n_.H * n_.W;
    parallel_for(0, n_.B * lines, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / lines * size, first = i % lines * kLine;
        kernels_.channels_of(n_, at(pass.sums.input, image), at(grad_input, image), first,
                             std::min(first + kLine, n_.C));
      }
    });
    grad_offset = conv::to(pass.sums.offset, offset_type_);
    if (in_.mask) grad_mask = conv::to(pass.sums.mask, mask_type_);
  }
  if (needs_grad_weight) {
    grad_weight = new_empty(weight_, weight_.sizes());
    parallel_for(0, tiles_.segments(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        kernels_.unpack(tiles_, at(pass.grad_packed, s * tiles_.packed_backward()), grad_weight.mutable_data_ptr(), s);
      }
    });
  }
  return {grad_input, grad_offset, grad_weight, grad_mask};
}

}  // namespace mmdet_ddetr::cpu
