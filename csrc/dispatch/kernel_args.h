// The plain structs that cross the border between baseline code and the kernels of one ISA.
//
// They have no methods and no initialisers: a kernel's translation unit is compiled with -mavx512f, and any inline
// function it emits could be the copy that the linker keeps for everyone.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace fastconv {

// Rows that the kernel multiplies with weights as they lie, a vector of columns at a time.
inline constexpr int64_t kFewRows = 4;

// Panels of the product C[m][n] (+)= sum_k rows[m][k] * panel[k][n], every row of C reached through a pointer. Panel p
// starts at panel + p * panel_pitch and gives the columns from p * vectors * W on; only a single one may have a tail.
//
// The reduction runs over `taps` pieces of `length` terms. Row m of piece t starts at rows[t * row_pitch + m] +
// row_offset and advances by row_step elements a term. The panel holds taps * length rows of vectors * W elements.
template <class T>
struct GemmArgs {
  const T* const* rows;
  int64_t row_pitch, row_offset, row_step;
  int64_t taps, length;
  const T* zero_row;        // a piece whose rows all point here is passed over; null: none is
  int64_t m;                // rows of C
  const T* panel;
  int64_t panels, panel_pitch;
  // Where the panels are not packed yet (one tap): row k of the first lies at source + source_offset[k], those of the
  // others beside it, in whole vectors; they are copied to `pack` (== panel) on the way. Null: they are packed.
  const T* source;
  const int64_t* source_offset;
  T* pack;
  // At most kFewRows rows of one tap may do without a panel, for one vector: the weights of column j lie at weights + j
  // * weights_pitch.
  const T* weights;
  int64_t weights_pitch;
  int32_t vectors;          // width of each panel in vectors: 1 .. kMaxVectors of the ISA
  int32_t tail;             // lanes of the last vector that exist: 1 .. W
  T* const* c;              // row m of C is c[m] + c_offset
  int64_t c_offset;
  const T* const* residual; // like c, with residual_offset; null: none
  int64_t residual_offset;
  int32_t accumulate;       // add to what C holds
  int32_t far;              // C is larger than a cache near by: its lines are asked for before they are written
  int32_t finish;           // this is the last piece of the reduction: apply the epilogue
  int32_t channel_rows;     // scale and shift belong to the rows of C (else to its columns)
  const T* scale;           // y = scale * acc + shift; null: 1, 0
  const T* shift;
  int32_t activation;       // fastconv::ActivationKind
  T a, b;
  // What the next panel is going to be packed from, asked for between the tiles of this one: `next_rows` runs of
  // next_width elements, next_pitch apart; 0 rows: nothing.
  const T* next;
  int64_t next_rows, next_pitch, next_width;
};

// Packs the vector operand of the "pixel rows" role: panel[(t * length + c) * columns + j] from
// w[j * column_stride + c * channel_stride + tap_offset[t]], zero for j >= valid.
template <class T>
struct PackWeightsArgs {
  T* panel;
  const T* w;
  int64_t column_stride, channel_stride;
  const int64_t* tap_offset;
  int64_t taps, length;
  T* const* tap_panel;  // where the rows of each tap begin, if not one after the other in `panel`; null: they do
  int64_t columns, valid;
};

// A run of output pixels whose inputs are neighbours in the source: columns [column, column + length) of a panel read
// source elements offset, offset + 1, ...
struct Segment { int64_t column, offset, length; };

// Packs the vector operand of the "pixel columns" role: panel[(c * taps + t) * columns + j] from
// source[c * channel_stride + tap_offset[t] + (segment's offset)]. Unless `exact`, W - 1 elements past a segment may be
// read and up to W - 1 past the panel's end are written, and a single segment starts at column 0.
template <class T>
struct PackColumnsArgs {
  T* panel;
  const T* source;
  int64_t channel_stride;
  const int64_t* tap_offset;
  int64_t channels, taps;
  const Segment* segments;
  int64_t segment_count;
  int64_t columns;
  int32_t exact;
};

// Packs a panel whose rows are pixels and whose columns come from `columns` pointers: panel[i * columns + j] =
// source[j][segment's offset + i - segment's column]. Reads up to W - 1 elements past a segment; writes up to W - 1
// rows past the end. `columns` is a multiple of W.
template <class T>
struct PackTransposedArgs {
  T* panel;
  const T* const* source;
  const Segment* segments;
  int64_t segment_count;
  int64_t columns;
};

// Copies `length` elements from each of `count` pointers: panel[i * pitch ...] = rows[i][offset ...], zero up to pitch.
template <class T>
struct PackRowsArgs {
  T* panel;
  const T* const* rows;
  int64_t count, offset, length, pitch;
};

// What is applied to the input while it is read: gate * act(scale * x + shift).
template <class T>
struct InputMap {
  const T* scale;  // a channel each; null: absent
  const T* shift;
  const T* gate;   // a channel each (of this image), gate_stride elements apart
  int64_t gate_stride;
  int32_t activation;
  T a, b;
  int32_t active;  // any of the above
};

inline constexpr int64_t kZeroRow = INT64_MIN, kUnusedRow = INT64_MIN + 1;

// Fills a slab: the rows of the input that a block of output pixels needs, channel by channel, padded, with the columns
// split by their residue modulo the stride so that neighbours in a sub-row are neighbouring output pixels.
//   slab[c * channel_pitch + r * row_pitch + f * phase_pitch + i] = x(c, row r, column first + i * stride + phases[f])
template <class T>
struct SlabArgs {
  T* slab;
  int64_t channel_pitch, row_pitch, phase_pitch;
  const T* source;                // the image at channel 0 of the block
  int64_t channel_stride, column_stride;
  int64_t channels;
  const int64_t* row_offset;      // source offset of each slab row, or one of the two below
  int64_t rows;
  const int32_t* phases;          // residues that are needed
  int64_t phase_count;
  int64_t phase_length;           // elements of a sub-row
  int64_t first, stride;  // slab column i of residue f is image column first + i * stride + f; may be negative
  int64_t image_columns;
  const int64_t* column_map;  // padding other than zeros: source column of padded column first + j; null: zeros
  InputMap<T> map;
};

// Fills a slab for the "pixel rows" role: the same rows and columns of the input, with each pixel's channels together.
//   slab[(r * columns + i) * channels + c] = x(c, row r, column first + i)
template <class T>
struct PixelSlabArgs {
  T* slab;
  const T* source;  // the image at channel 0 of the block
  int64_t channel_stride, column_stride;
  int64_t channels;
  const int64_t* row_offset;  // as in SlabArgs
  int64_t rows, columns;
  int64_t first, image_columns;
  const int64_t* column_map;  // as in SlabArgs
  InputMap<T> map;  // gate_stride is 1
};

// Rows of output pixels of a depthwise convolution, channels innermost:
//   out[p * out_row_pitch + q * out_pitch + c] (+)= sum over r, s of weights[r][s * weight_pitch + c] *
//   row p * row_stride + r * row_dilation, column q * stride + s * dilation + first_column, channel c
// Column i of row j begins at rows[j] + i * row_pitch[j]; columns outside [0, columns) are zeros. A row of zeros has
// the pitch 0; where skip_zeros is set it may be passed over. Rows of weights hold whole vectors, `taps` of them
// weight_pitch apart.
//
// Of groups of `group` channels, as many out as in (grouped_channels; up to 3 taps, stride 1, or 3 and 2, dilation 1):
// output c sums over the channels k of its group, too, with weights[r][(s * group + k) * weight_pitch + c].
template <class T>
struct DepthwiseChannelsArgs {
  const T* const* rows;
  const int64_t* row_pitch;
  const T* const* weights;
  int64_t filter_rows, row_stride, row_dilation;
  int64_t weight_pitch, taps, stride, dilation;
  int64_t first_column, columns;
  int64_t channels, out_rows, pixels;
  int64_t group;
  int32_t skip_zeros;
  T* out;
  int64_t out_row_pitch, out_pitch;
  const T* residual;  // null: none
  int64_t residual_row_pitch, residual_pitch;
  const T* scale;     // an entry a channel; null: 1, 0
  const T* shift;
  int32_t activation;
  T a, b;
  int32_t accumulate;  // add to what `out` holds
  int32_t resume;      // the sums go on from what `out` holds, with the bits of one sum
};

// Rows of output pixels of a depthwise convolution, the pixels of a row neighbours:
//   out[c * out_channel_pitch + p * out_row_pitch + q] (+)= sum over r, s of weights[(c * filter_rows + r) * taps + s]
//   * row p * stride + r, column q * stride + s + first_column, of channel c
// Row j of channel c begins at rows[j] + offset + c * channel_pitch, or at zero_row in every channel; columns outside
// [0, columns) are zeros. Where skip_zeros is set, rows that are zero_row are passed over.
//
// Where `column_offset` is given the rows are those of a slab, which all columns lie in: tap s of a filter row reads
// column_offset[s] + q instead, and filter row r the row p * row_stride + row_offset[r]. Up to W - 1 elements past the
// last are read.
template <class T>
struct DepthwisePlanesArgs {
  const T* const* rows;
  const T* zero_row;
  int64_t offset, channel_pitch;
  int64_t filter_rows, taps, stride;
  int64_t first_column, columns;
  const int64_t* column_offset;
  const int64_t* row_offset;
  int64_t row_stride;
  const T* weights;
  int64_t channels, out_rows, pixels;
  int32_t skip_zeros;
  T* out;
  int64_t out_channel_pitch, out_row_pitch;
  const T* residual;  // null: none
  int64_t residual_channel_pitch, residual_row_pitch;
  const T* scale;     // an entry a channel; null: 1, 0
  const T* shift;
  int32_t activation;
  T a, b;
  int32_t accumulate;
  int32_t resume;      // in place: as above
};

// Winograd's products: tiles of m x m pixels under a 3 x 3 filter, each from a patch of n x n, n = m + 2 (m: 2 or 4). A
// patch and a filter become n * n points each, which are multiplied one by one. Point p of tile t begins at p *
// point_pitch + t * tile_pitch; its channels are neighbours.

// patch[(t * n + i) * n + j] points to the channels of a pixel (of m x m of them, where a tile is spread). Whole
// vectors are written, zeros beyond the channels.
template <class T>
struct WinogradInputArgs {
  const T* const* patch;
  int64_t tiles, channels;
  T* points;
  int64_t point_pitch, tile_pitch;
  int32_t outputs;  // m
};

// The panel is what pack_weights makes of nine taps; channel c of point p goes to points[p * point_pitch + c *
// columns]. The columns are whole vectors.
template <class T>
struct WinogradFilterArgs {
  const T* panel;
  int64_t channels, columns;
  T* points;
  int64_t point_pitch;
  int32_t outputs;
};

// y = act(scale * sums + shift + residual) for the pixels of each tile that exist. Where a sum of a vector of channels
// is not finite, it is not used: zeros are written (nothing, where y is added to), and bit v of the tile's `bad` is set
// for vector v, which is below 64.
template <class T>
struct WinogradOutputArgs {
  const T* points;
  int64_t point_pitch, tile_pitch;
  int64_t tiles, channels;
  const int32_t* rows;  // of each tile
  const int32_t* columns;
  T* const* out;  // a tile's first pixel
  int64_t row_pitch, column_pitch;
  const T* const* residual;  // null: none
  int64_t residual_row_pitch, residual_column_pitch;
  const T* scale;  // an entry a channel; null: 1, 0
  const T* shift;
  int32_t activation;
  T a, b;
  int32_t accumulate;
  uint64_t* bad;
  int32_t outputs;
};

// In place: points 0 to 8 of each row become taps. The channels are whole vectors; bad[row] is set to 0 where all of
// them are finite.
template <class T>
struct WinogradTapsArgs {
  T* points;
  int64_t point_pitch, row_pitch;
  int64_t rows, channels;
  int32_t* bad;
  int32_t outputs;
};

// The gradient of depthwise filters over some rows of output pixels, channels innermost:
//   sum[(r * taps + s) * sum_pitch + c] (+)= sum over p, q of dy[p * dy_row_pitch + q * dy_pitch + c] * (what the
//   forward pass multiplies by weights[r][s] there)
// The fields that are shared mean what they mean in DepthwiseChannelsArgs.
template <class T>
struct FilterChannelsArgs {
  const T* const* rows;
  const int64_t* row_pitch;
  int64_t filter_rows, row_stride, row_dilation;
  int64_t taps, stride, dilation;
  int64_t first_column, columns;
  int64_t channels, out_rows, pixels;
  const T* dy;
  int64_t dy_row_pitch, dy_pitch;
  T* sum;
  int64_t sum_pitch;
  int32_t accumulate;
};

// The same, the pixels of a row neighbours, for square filters of 3, 5 or 7 read in place as by DepthwisePlanesArgs:
//   sum[(c * taps + r) * taps + s]
template <class T>
struct FilterPlanesArgs {
  const T* const* rows;
  const T* zero_row;
  int64_t channel_pitch;
  int64_t taps, stride;
  int64_t first_column, columns;
  int64_t channels, out_rows, pixels;
  const T* dy;
  int64_t dy_channel_pitch, dy_row_pitch;
  T* sum;
  int32_t accumulate;
};

// Some rows of the gradient of a depthwise layer's input, the filter two columns apart:
//   dx[i][w] = sum over k < row[i].count, s with w + pad - s even of
//              weights[row[i].filter[k]][s] * dy[row[i].dy[k] ...][(w + pad - s) / 2]
// where that column of dy exists. `planar`: columns are neighbours, and channels dy_channel, dx_channel, weight_channel
// apart; else channels are, and columns dy_pitch and dx_pitch apart. taps is 3 or 5.
inline constexpr int kSpreadRows = 3;
struct SpreadRow {
  int64_t count;
  int64_t dy[kSpreadRows], filter[kSpreadRows];  // where the row of dy begins, and which of the filter's meets it
};
template <class T>
struct SpreadArgs {
  const SpreadRow* row;
  int64_t rows, taps, pad;
  int64_t columns, dy_columns, channels;
  bool planar;
  const T* dy;
  int64_t dy_channel, dy_pitch;
  T* dx;
  int64_t dx_row, dx_channel, dx_pitch;
  const T* weights;
  int64_t weight_row, weight_tap, weight_channel;
};

// A transform's length as a product of radices (2, 3, 4 or 8), in the order in which frequencies are decimated.
inline constexpr int64_t kFftRadices = 8, kFftLength = 128;
template <class T>
struct FftAxis {
  int64_t n;  // at most kFftLength
  int32_t radices;
  int32_t radix[kFftRadices];
  // Of one radix after the other, r that divides the remaining length m: for j < m / r, for 0 < q < r, the cosine and
  // the sine of 2 pi j q / m. The last one has none.
  const T* twiddles;
};

// W signals of rows.n * columns.n complex numbers, a lane each: element (r, c) of lane l at (r * columns.n + c) * W + l
// of `re` and `im`. The transform goes down the columns, then along the rows; its frequencies stay in the order that
// decimation leaves, which the way back undoes.
//
// twist: the signal is one-dimensional, rows after each other: element (c, p), at p * 2 + c * rows.n * 2, holds the
// cosine and the sine of the angle that joins column c with the frequency at row p. Null: it is two-dimensional.
//
//   fft_convolve  the circular product with the signal of `spectrum`, in place
//   fft_spectrum  spectrum = the conjugate of the transform, times `scale`; (re, im) is spent
//
// The spectrum of a point is W real parts and W imaginary parts or, where all lanes share one, a number each.
template <class T>
struct FftArgs {
  T* re;
  T* im;
  FftAxis<T> rows, columns;
  const T* twist;
  T* spectrum;
  int32_t shared;
  T scale;
  // Columns that hold anything but zeros, and those of the result that are wanted, from the first on; the others hold
  // anything afterwards.
  int64_t first_column, end_column, out_columns;
  T* line;    // scratch: a column, 2 * rows.n * W elements
  T* finite;  // fft_convolve: 0 or NaN for each lane, of re and of im: NaN where an element of the result is not finite
};

// Moves a block between a tensor of any strides and a dense buffer[m * pitch + n]; element (m, n) of the tensor is at
// row_offset[m] + column_offset[n]. Row offsets grow; the buffer's pitch is a multiple of W.
template <class T>
struct MoveBlockArgs {
  T* tensor;
  T* buffer;
  int64_t pitch;
  const int64_t* row_offset;
  const int64_t* column_offset;
  int64_t m, n;
  int32_t accumulate;  // scatter: add to the tensor
};

// to[j * to_pitch + i] = from[i * from_pitch + j] for i < rows, j < n.
template <class T>
struct TurnArgs {
  const T* from;
  T* to;
  int64_t rows, n, from_pitch, to_pitch;
};

// Pooling: what runs of elements become, run beside run. The values of `op` and `finish` below.
inline constexpr int32_t kPoolMax = 0, kPoolSum = 1, kPoolSquares = 2;
inline constexpr int32_t kPoolPlain = 0, kPoolDivide = 1, kPoolRoot = 2;  // acc, acc / divisor, sqrt(acc * divisor)
inline constexpr int64_t kPoolTaps = 64;  // pointers of one call

// Row i of a source begins i * src_pitch behind its pointer, that of the target at dst + i * dst_pitch.
//   combine  dst[j] = finish(op over k of src[k][j]), j < n; no source: zeros. accumulate: dst is one more operand, the
//            first
//   slide    dst[j] = finish(op over k < count of src[0][j * stride + k * step]), j < n
//   argmax   dst[j] = codes[k] of the first maximum (or the first NaN) over k of src[k][j]
//   route    dst[j] = sum over k, in order, of (marks[k][j] == codes[k] ? src[k][j] : 0); row i of the marks begins
//            i * phase_pitch behind its pointer
//   split    dst[j % stride * phase_pitch + j / stride] = src[0][j], j < n; the pitch may be negative
//   merge    dst[j] = src[0][j % stride * phase_pitch + j / stride], j < n
// slide and merge may read up to 2 W elements past what they use, slide by four 3 W.
template <class T>
struct PoolArgs {
  const T* const* src;
  const T* const* marks;
  const T* codes;
  int64_t count;
  int64_t n, rows;
  int64_t src_pitch, dst_pitch, phase_pitch;
  T* dst;
  int64_t stride, step;
  int32_t op, finish, accumulate;
  T divisor;
  const T* divisors;  // slide and combine: one an element in place of `divisor`; null: none
};

// Windows of taps x taps elements, `stride` apart both ways, of planes whose columns are neighbours: taps and stride
// are 3 and 1, 3 and 2, or 2 and 2. Window (p, q) begins at row first_row + p * stride, column first_column + q *
// stride; what lies outside the rows and columns of the image counts as nothing.
//   planes           y[p][q] = finish(op over the window of x), op kPoolMax or kPoolSum
//   planes_backward  2 and 2, first_row and first_column 0: y (rows x columns) is the gradient of x, dy that of each
//                    window, which its first maximum (the first NaN, where there is one) receives whole
//                    op kPoolSum: its mean's gradient, dy / divisor, goes to all of the window
//   pixels, pixels_backward  the same for images whose channels are neighbours and whose columns are x_column,
//   dy_column
//                    and y_column apart; backward only of maxima, by lines of scratch memory: out_columns x 10 W
//                    elements
template <class T>
struct PoolPlanesArgs {
  const T* x;
  const T* dy;
  T* y;
  int64_t channels, x_channel, dy_channel, y_channel;  // and the steps from one to the next
  int64_t x_pitch, dy_pitch, y_pitch;
  int64_t x_column, dy_column, y_column;  // pixels
  int64_t rows, columns, first_row, first_column;
  int64_t out_rows, out_columns;
  int32_t taps, stride, op, finish;
  T divisor;
  const T* row_counts;  // kPoolDivide by row_counts[p] * column_counts[q]; null: by divisor
  const T* column_counts;
  T* scratch;
};

// The norms' kernels work on a block of rows of neighbouring columns: element (r, c) of an operand lies at r * its
// pitch
// + c. In one memory order a row is a run of pixels and in the other a column is a channel, so that whatever there is
// one of a channel, group or row comes either by row or by column.

// A statistic of each column, or of each of `count` blocks `step` apart: a shift near enough to the mean that sums
// about it keep their digits, and the sums of (x - shift) and of its square.
template <class T>
struct NormStatsArgs {
  const T* x;
  int64_t rows, columns, pitch;
  int32_t by_column;
  int64_t count, step;  // by_column: one block
  T* shift;
  T* sum;
  T* square;
};

// What follows from such sums over `count` elements each, n of them: the mean rounded, 1 / sqrt(var + eps) and what is
// missing of the mean, as offset = (rounded - mean) * scale. Of the sums of g and of g * (x - shift) besides, those of
// dx = scale * g + b * (x - mean) + c.
template <class T>
struct NormFinishArgs {
  int64_t n;
  T count, eps;
  T* mean;  // in: shift
  T* scale;  // in: sum
  T* offset;  // in: square
  T* c;  // in: the sum of g; null: none of the three
  T* b;  // in: the sum of g * (x - shift)
  T* low;  // out: mean - rounded
};

// y = act(((x - mean) * scale + offset) * weight + bias + residual), where mean, scale and offset belong to the columns
// (by_column) or to the rows, and weight and bias to the others.
template <class T>
struct NormApplyArgs {
  T* y;
  const T* x;
  const T* residual;  // null: none
  int64_t y_pitch, x_pitch, residual_pitch;
  int64_t rows, columns;
  int32_t by_column;
  const T* mean;
  const T* scale;
  const T* offset;
  const T* weight;  // null: 1
  const T* bias;  // null: 0
  int32_t activation;
  T a, b;
  int32_t streaming;  // store past the caches
};

// Sums over the rows of each column (by_column) or over the columns of each row, of g, g * t and t, where g is dy, or 0
// where y is given and y <= lower or y >= upper, and t = x - mean. Without a mean they are about a shift of their own,
// as in NormStatsArgs, there is no y, g = dy * weight, and the sum of t^2 comes besides. A sum by row weighs the
// columns, one by column the rows.
template <class T>
struct NormSumsArgs {
  const T* dy;
  const T* x;
  const T* y;  // null: all of dy counts
  int64_t dy_pitch, x_pitch, y_pitch;
  int64_t rows, columns;
  int32_t by_column;
  int32_t merge;  // by row: one sum of all rows, about mean[0]
  const T* mean;  // null: about the shift
  const T* weight;  // null: 1
  T lower, upper;
  T* sum_g;
  T* sum_gt;
  T* sum_t;
  T* sum_tt;
  T* shift;
};

// dx = a * g + b * (x - mean) + c with g as above, not weighted; all four belong to the columns (by_column) or to the
// rows.
template <class T>
struct NormGradientArgs {
  T* dx;
  const T* dy;
  const T* x;  // null: dx = a * g
  const T* y;
  int64_t dx_pitch, dy_pitch, x_pitch, y_pitch;
  int64_t rows, columns;
  int32_t by_column;
  const T* mean;
  const T* a;
  const T* b;
  const T* c;
  T lower, upper;
  int32_t streaming;
};

// dx = scale * dy * weight + b * t + c with t = x - mean - low, where weight belongs to the columns and the others to
// the rows, or (by_column) the other way; and the sums of dy * scale * t and of dy of what the weight belongs to: added
// to dw and db where that are the columns, else put there.
template <class T>
struct LayerGradientArgs {
  T* dx;  // may be null, if dw is not
  const T* dy;
  const T* x;
  int64_t dx_pitch, dy_pitch, x_pitch;
  int64_t rows, columns;
  int32_t by_column;
  const T* mean;
  const T* low;
  const T* scale;
  const T* b;  // null without dx, as c
  const T* c;
  const T* weight;  // null: 1
  T* dw;  // null: neither
  T* db;
  int32_t streaming;
};

// y = x * d^-3/4 with d = k + factor * sum of x^2 over channels [c - before, c + after], or, where dy is given, its
// gradient dy * d^-3/4 - gradient * x * sum of dy * x * d^-7/4 over [c - after, c + before]. Rows are pixels and
// columns channels, or (by_column) the other way; then there are at most kResponseColumns columns.
constexpr int64_t kResponseColumns = 256;
template <class T>
struct ResponseArgs {
  T* y;
  const T* x;
  const T* dy;
  int64_t y_pitch, x_pitch, dy_pitch;
  int64_t rows, columns;
  int32_t by_column;
  int64_t before, after;  // below the channels
  T factor, k, gradient;
  T* scratch;  // response_scratch elements
};

// Elements that the kernel needs as scratch; vectors have at most 16.
constexpr int64_t response_scratch(int64_t channels, int64_t size, bool by_column) {
  return by_column ? 3 * size * kResponseColumns : 8 * (channels + size + 32);
}

// Over n elements: y = act(x), y = act(x + z), or y = z * act'(x), where sigmoid and tanh are told act(x) instead of x.
enum class MapOp : int32_t { forward = 0, add = 1, backward = 2 };
template <class T>
struct MapArgs {
  T* y;
  const T* x;
  const T* z;
  int64_t n;
  MapOp op;
  int32_t activation;
  T a, b;
  int32_t streaming;
};

// exp(x - maximum) / sum over the columns of each row, or over the rows of each column (by_column).
template <class T>
struct SoftmaxArgs {
  T* y;  // null: only the maximum and the sum of the exponentials are written
  const T* x;
  int64_t rows, columns, pitch;
  int32_t by_column;
  int32_t logarithm;  // y is the logarithm; for rows alone
  T* maximum;
  T* sum;
};

// dx = y * (dy - sum of dy * y), or, y being the logarithm, dx = dy - exp(y) * sum of dy.
template <class T>
struct SoftmaxGradientArgs {
  T* dx;
  const T* dy;
  const T* y;
  int64_t rows, columns, pitch;
  int32_t by_column;
  int32_t logarithm;
  T* sum;  // one a column
};

}  // namespace fastconv
