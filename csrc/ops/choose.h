// choose(): a pure function from a problem and a machine to a decision. Execution, plan, explain and the log all read
// the same decision; how the tasks are split over threads is no part of it.
//
// Nothing here depends on the batch or on the number of threads: the result's bits follow from the decision alone. Of
// the strides, only the memory order of the layer (channels or columns innermost) decides the role; the others decide
// what has to be copied, which leaves the bits as they are.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "fastconv/conv.h"
#include "fastconv/runtime.h"
#include "fastconv/tune.h"
#include "ops/shape.h"

namespace fastconv::ops {

// Which operand of the product the tile broadcasts.
enum class Role : int32_t {
  pixel_rows,     // rows are output pixels, columns are output channels: the panel holds packed weights
  pixel_columns,  // rows are output channels, columns are pixels: the panel holds packed pixels
};

struct TuneTable;  // ops/tune.h

struct Machine {
  Isa isa;
  int32_t lanes, max_vectors, tile_rows[5];
  int64_t l1, l2;
  const TuneTable* tuned;  // null: the model chooses
};

// The table that calls made now take; null, unless the user has named a file of measurements.
extern constinit std::atomic<const TuneTable*> used_table;

// What choose() may know of a product. Strides enter only as facts about neighbours in memory.
struct Problem {
  int64_t groups, C, K;  // C and K are per group
  int64_t filter[3], out[3], stride[3], dilation[3];
  int64_t in_columns;
  bool padded_zeros;  // padding, where there is any, is zeros
  int64_t rows_met;  // pairs of a row of output and a filter row that meets the image, in one plane
  int64_t item_size;
  bool channels_last;                        // the layer's memory order, which follows its input's
  bool in_channels_unit, in_columns_unit;    // neighbours in memory: channels, columns of the image
  bool out_channels_unit, out_columns_unit;  // for the output, columns: all flattened pixels
  bool out_row_unit, residual_row_unit;      // the pixels of one row
  bool has_residual, residual_channels_unit, residual_columns_unit;
  bool padded;                               // any padding or cropping
  bool mapped;                               // a prologue is applied to the input
  bool produced;                             // the input is computed block by block (Producer)
  bool part;                                 // the output is: another product's input
  int64_t phases;                            // products that write between each other's pixels, this one included
  int64_t most_taps;                         // as of a DenseJob, at least those of this one
  bool fanned;                               // output channels are phases, whose pixels lie between each other
  Algorithm algorithm;                       // what the caller asks for
};

// One piece of the reduction: channels [c0, c0 + channels) of taps [t0, t0 + taps).
struct Chunk { int64_t c0, channels, t0, taps; };

// Tiles of a depthwise product by the fast Fourier transform: what a tile reads is rows x columns elements, as one row
// of them where it is linear.
struct FftTiles {
  int64_t rows = 0, columns = 0;  // 0: direct
  bool linear = false;
  bool shared = false;  // lanes are tiles of one channel and share its spectrum; else lanes are channels
  int64_t out_rows = 0, out_columns = 0;  // outputs of a tile at most
  int64_t down = 0, across = 0;           // tiles of a plane
};

struct Choice {
  // A channel of input and output a group: not the tile's product, but a sum for each channel. pixel_rows then means
  // that lanes are channels, pixel_columns that they are pixels.
  bool depthwise;
  int64_t group = 1;  // of a depthwise product: channels of a group, each of which sums over all of them
  FftTiles fft;  // of a depthwise product
  Role role;
  bool copy_pixels;  // pixel_rows: the input is copied to a padded slab first (few channels, or a prologue)
  bool direct;       // pixel_columns: the panel is packed straight from the image (1x1, no padding, stride 1)
  bool move_output;  // the output is computed in a buffer and moved: its strides do not suit the role
  bool move_residual;
  bool turn;  // depthwise: a planar image is turned, some channels at a time, where its strides allow it
  std::vector<Chunk> chunks;
  int32_t winograd;  // outputs of a tile along an axis; 0: direct, as the rest says
  std::vector<Chunk> winograd_chunks;  // of the reduction, without taps
  int64_t winograd_block;  // tiles whose points, and sums of a panel, stay within half of L2 each; two tiles of the
                           // product at least
  int64_t pixel_block;
  int64_t batch_block;  // pixel_rows: where images are joined (join_batch)
  std::string passed_over;
  int64_t reduction_block() const;
};

Machine current_machine(DType dtype);
// Whether the phases of a gradient with respect to the input, or of a transposed layer, are one product.
bool joins_phases(const Geometry& geometry, const Machine& machine, bool channels_last, Algorithm algorithm);
Problem describe(const DenseJob& job, int64_t item_size, bool channels_last, bool mapped, Algorithm algorithm,
                 int64_t phases = 1);
Choice choose(const Problem& problem, const Machine& machine);
// What the machine's table says of a product, where that is admitted; Way::model elsewhere.
Way tuned_way(const Problem& problem, const Machine& machine);
// All ways with their estimated costs, for explain() and for those who measure.
std::vector<Candidate> candidates(const Problem& problem, const Machine& machine);

// Pieces of a reduction over C channels and T taps of about `terms` terms each. Channels are outermost; taps are split
// only where one channel's taps alone are too many (then channels_apart limits the channels a piece may join).
std::vector<Chunk> split_reduction(int64_t C, int64_t T, int64_t terms, int64_t line, int64_t channels_apart);

// Widths of the panels that cover `vectors` vectors: panel i starts at vector start(i) and has width(i).
struct Panels {
  int64_t vectors, count;
  Panels(int64_t vectors, const Machine& machine);
  int64_t start(int64_t i) const { return i * (vectors / count) + (i < vectors % count ? i : vectors % count); }
  int64_t width(int64_t i) const { return start(i + 1) - start(i); }
  // How many panels from i on are as wide as it, at most `limit`, without passing vector `end`; at least one.
  int64_t alike(int64_t i, int64_t limit, int64_t end) const;
};

// The panel width in vectors that an ISA's best tile has, and the terms of a reduction whose panel stays in L1.
int preferred_vectors(const Machine& machine);
int64_t reduction_terms(const Machine& machine, int64_t item_size);

}  // namespace fastconv::ops
