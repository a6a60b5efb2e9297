// The CPU kernels of deformable convolution as raw-pointer functions, one table of them per instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../deform_conv.h"

namespace mmdet_ddetr::cpu {

// What the kernels read, of one image.
struct ConvInput {
  ConvSizes n;
  const void* cells;   // [H W, C]
  const void* offset;  // [G, T, 2, P], compute type
  const void* mask;    // [G, T, P], compute type; null: 1
};

// Compute type, as ConvInput.
struct ConvGradients {
  void *cells, *offset, *mask;
};

// Columns, or their gradients, of channels from `channel` and output cells from `cell` on, in pieces of channels that
// lie together: tap t of channel c and output cell p is
// data[places[t * pieces + (c - channel) / piece] + (c - channel) % piece + (p - cell) * pitch].
struct ConvColumns {
  void* data;
  bool narrow;  // in input's dtype, not in the compute type
  int64_t cell, pitch;
  int64_t channel, piece, pieces;
  const int64_t* places;
};

// Output cells whose columns exist at a time, for a thread: multiples of kCells, of which the kernels take as many at
// once at most. So the order of sums does not depend on where threads begin.
constexpr int64_t kCells = 16, kTileCells = 9 * kCells;

// How the kernels cut the channels. A segment is some channels of a group; the weights of an output for it are
// `numbers` from 0 on, tap by tap, in blocks of two vectors. A slice is some segments: columns of a slice and of
// kTileCells output cells exist at a time, in the second cache.
struct ConvTiles {
  ConvTiles(const ConvSizes& n, int64_t vector, int64_t few_rows) : n(n), block(2 * vector), few_rows(few_rows) {
    const int64_t room = std::max<int64_t>(1, kNumbers / n.T() / block) * block;  // channels of a slice
    const int64_t D = n.group_channels();
    parts = (D + room - 1) / room;
    width = parts == 1 ? D : (((D + parts - 1) / parts) + block - 1) / block * block;
    parts = (D + width - 1) / width;
    together = parts == 1 ? std::min(std::max<int64_t>(1, room / D), n.groups) : 1;
  }

  static constexpr int64_t kNumbers = 1152;

  // All channels of the only group in one segment.
  static ConvTiles whole(const ConvSizes& n) {
    ConvTiles tiles(n, 1, 1);
    tiles.parts = 1, tiles.width = n.C;
    return tiles;
  }

  int64_t outs() const { return n.C_out / n.groups; }
  int64_t padded_outs() const { return (outs() + few_rows - 1) / few_rows * few_rows; }
  int64_t segments() const { return n.groups * parts; }
  int64_t slices() const { return (segments() + together - 1) / together; }
  int64_t group(int64_t segment) const { return segment / parts; }
  bool begins_group(int64_t segment) const { return segment % parts == 0; }
  bool ends_group(int64_t segment) const { return segment % parts == parts - 1; }
  int64_t first_channel(int64_t segment) const { return group(segment) * n.group_channels() + segment % parts * width; }
  int64_t channels(int64_t segment) const {
    return ends_group(segment) ? n.group_channels() - (parts - 1) * width : width;
  }
  int64_t numbers(int64_t segment) const { return n.T() * channels(segment); }
  int64_t most_numbers() const { return n.T() * width; }
  int64_t blocks() const { return (most_numbers() + block - 1) / block; }
  int64_t panels() const { return (outs() + block - 1) / block; }

  // Elements of the compute type.
  int64_t columns_of_segment() const { return blocks() * kTileCells * block; }
  int64_t packed_forward() const { return panels() * most_numbers() * block; }  // a segment's
  int64_t packed_backward() const { return blocks() * padded_outs() * block; }  // a segment's
  int64_t sums() const { return panels() * kTileCells * block; }                // a group's

  const ConvSizes n;
  const int64_t block, few_rows;
  int64_t parts, width, together;
};

struct ConvKernels {
  int64_t vector, few_rows;  // lanes of a vector; rows that a product is rounded up to

  // columns of channels from c_begin to c_end and output cells from begin to end
  void (*sample)(const ConvInput&, const ConvColumns&, int64_t c_begin, int64_t c_end, int64_t begin, int64_t end);
  // Of these, from the gradients of the columns, what their channels give to the gradients of offset and mask: adds it
  // to products [G, T, kTileCells, 4], of output cells from gradients.cell on. Writes the columns, too, if they have
  // data.
  void (*backward_points)(const ConvInput&, const ConvColumns& gradients, const ConvColumns& columns, void* products,
                          int64_t c_begin, int64_t c_end, int64_t begin, int64_t end);
  // the gradients of offset and mask, from the products of all channels
  void (*finish_points)(const ConvInput&, const void* products, const ConvGradients&, int64_t begin, int64_t end);
  // adds to the gradient of the cells what these columns give
  void (*backward_cells)(const ConvInput&, const ConvColumns&, const ConvGradients&, int64_t c_begin, int64_t c_end,
                         int64_t begin, int64_t end);

  // conv_product.h has the others
  void (*cells_of)(const ConvSizes&, const void* input, void* cells, int64_t begin, int64_t end);
  void (*channels_of)(const ConvSizes&, const void* cells, void* input, int64_t begin, int64_t end);
  void (*write_output)(const ConvTiles&, const void* sums, void* output, int64_t p, int64_t cells);
  void (*read_grad_output)(const ConvTiles&, const void* grad_output, void* copy, int64_t p, int64_t cells);
  void (*pack_forward)(const ConvTiles&, const void* weight, void* packed, int64_t segment);
  void (*pack_backward)(const ConvTiles&, const void* weight, void* packed, int64_t segment);
  void (*unpack)(const ConvTiles&, const void* packed, void* weight, int64_t segment);
  void (*forward_product)(const ConvTiles&, int64_t segment, const void* columns, const void* packed, void* sums,
                          int64_t cells);
  void (*columns_product)(const ConvTiles&, int64_t segment, const void* grad_output, const void* packed, void* columns,
                          int64_t cells);
  void (*weight_product)(const ConvTiles&, int64_t segment, int64_t block, const void* grad_output, const void* columns,
                         void* grad_weight, int64_t cells);
};

const ConvKernels& portable_conv_kernels(ScalarType input);
#if defined(__x86_64__)
const ConvKernels& avx2_conv_kernels(ScalarType input);
const ConvKernels& avx512_conv_kernels(ScalarType input);
#endif

}  // namespace mmdet_ddetr::cpu
