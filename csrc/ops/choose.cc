#include "ops/choose.h"

#include <algorithm>
#include <cmath>

#include "dispatch/kernel_table.h"
#include "ops/fft.h"
#include "ops/tune.h"
#include "ops/winograd.h"

namespace fastconv::ops {

Machine current_machine(DType dtype) {
  const Isa isa = current_isa();
  const CacheSizes caches = cache_sizes();
  Machine m{};
  m.isa = isa;
  m.l1 = caches.l1d;
  m.l2 = caches.l2;
  m.tuned = used_table.load(std::memory_order_acquire);
  auto take = [&m](const auto& table) {
    m.lanes = table.lanes;
    m.max_vectors = table.max_vectors;
    std::copy(std::begin(table.tile_rows), std::end(table.tile_rows), m.tile_rows);
  };
  if (dtype == DType::f32)
    take(kernel_table<float>(isa));
  else
    take(kernel_table<double>(isa));
  return m;
}

int preferred_vectors(const Machine& m) { return m.max_vectors == 3 ? 2 : m.max_vectors; }

int64_t reduction_terms(const Machine& m, int64_t item_size) {
  // A panel may overflow L1: it streams from L2 without loss, and fewer passes over C gain 3 % on 3x3 layers (Zen 3,
  // against five eighths of L1; Zen 4 with panels of 256 bytes a term: 1 to 3 % on all dense layers at 5/2 of L1
  // against 5/4, and a quarter where a first layer's reduction stays whole; 7/2 gains nothing more).
  const int64_t row_bytes = preferred_vectors(m) * m.lanes * item_size;
  return std::clamp<int64_t>(m.l1 * 5 / 2 / row_bytes, 128, 512);
}

Panels::Panels(int64_t n, const Machine& m) : vectors(n) {
  // One panel may be wider than the preferred width where that saves a narrow one.
  const int64_t preferred = preferred_vectors(m), spare = m.max_vectors - preferred;
  count = std::max<int64_t>(1, (n - spare + preferred - 1) / preferred);
}

int64_t Panels::alike(int64_t i, int64_t limit, int64_t end) const {
  const int64_t wide = width(i), last = i < vectors % count ? vectors % count : count;
  return std::max<int64_t>(1, std::min({limit, last - i, (end - start(i)) / wide}));
}

std::vector<Chunk> split_reduction(int64_t C, int64_t T, int64_t terms, int64_t line, int64_t channels_apart) {
  std::vector<Chunk> chunks;
  if (T == 0) return {Chunk{0, 0, 0, 0}};
  if (C * T <= terms + terms / 4) return {Chunk{0, C, 0, T}};
  int64_t channels = std::max<int64_t>(1, terms / T), taps = T;
  if (channels > line) {
    // Whole cache lines, and pieces of nearly equal size.
    const int64_t pieces = (C + channels - 1) / channels;
    channels = (C + pieces - 1) / pieces;
    channels = std::max(line, (channels + line / 2) / line * line);
  } else {
    channels = std::min(C, std::max(channels, std::min(line, channels_apart)));
  }
  if (channels * T > terms * 2) {
    channels = std::min(C, channels_apart);
    const int64_t fit = std::max<int64_t>(1, terms / channels), pieces = (T + fit - 1) / fit;
    taps = (T + pieces - 1) / pieces;
  }
  for (int64_t c = 0; c < C; c += channels)
    for (int64_t t = 0; t < T; t += taps) chunks.push_back({c, std::min(channels, C - c), t, std::min(taps, T - t)});
  return chunks;
}

Problem describe(const DenseJob& job, int64_t item_size, bool channels_last, bool mapped, Algorithm algorithm,
                 int64_t phases) {
  Problem p{};
  p.algorithm = algorithm;
  p.phases = phases;
  p.most_taps = std::max(job.filter[2], job.most_taps);
  p.channels_last = channels_last;
  p.groups = job.G, p.C = job.C, p.K = job.K;
  bool padded = false;
  for (int a = 0; a < 3; ++a) {
    p.filter[a] = job.filter[a], p.out[a] = job.out[a], p.stride[a] = job.stride[a], p.dilation[a] = job.dilation[a];
    const int64_t last = (job.out[a] - 1) * job.stride[a] - job.pad[a] + (job.filter[a] - 1) * job.dilation[a];
    padded = padded || job.pad[a] != 0 || last >= job.in[a];
  }
  p.item_size = item_size;
  p.in_columns = job.in[2], p.padded_zeros = job.mode == PaddingMode::zeros;
  // Pairs of a row of output and a filter row that meets the image, for those who pass over the others.
  for (int64_t r = 0; r < job.filter[1]; ++r) {
    const int64_t shift = r * job.dilation[1] - job.pad[1], s = job.stride[1];
    const int64_t low = shift >= 0 ? 0 : (s - 1 - shift) / s;
    const int64_t high = shift >= job.in[1] ? 0 : (job.in[1] - 1 - shift) / s + 1;
    p.rows_met += job.mode == PaddingMode::zeros ? std::max<int64_t>(0, std::min(high, job.out[1]) - low) : job.out[1];
  }
  const bool one_pixel = job.pixels() == 1;
  int64_t step;
  p.in_channels_unit = job.is.c == 1 || job.G * job.C == 1;
  p.in_columns_unit = job.is.s[2] == 1 || job.in[2] == 1;
  p.out_channels_unit = job.os.c == 1 || job.G * job.K == 1;
  p.out_columns_unit = one_pixel || (uniform_pixels(job.out, job.os, &step) && step == 1);
  p.out_row_unit = job.os.s[2] == 1 || job.out[2] == 1;
  p.residual_row_unit = job.rs.s[2] == 1 || job.out[2] == 1;
  p.has_residual = job.has_residual;
  p.residual_channels_unit = job.rs.c == 1 || job.G * job.K == 1;
  p.residual_columns_unit = one_pixel || (uniform_pixels(job.out, job.rs, &step) && step == 1);
  p.padded = padded;
  p.mapped = mapped;
  if (job.fan.count()) {
    p.fanned = true;
    p.out_channels_unit = p.out_columns_unit = p.out_row_unit = false;
    p.residual_channels_unit = p.residual_columns_unit = p.residual_row_unit = false;
  }
  return p;
}

// --- What dense products cost

// In steps of one vector's multiply-add. Fitted by bench/fit_choice.py to the logarithms of measured ratios of the ways
// (docs/design.md, "How good the choice is"): 700 layers drawn with another seed than the benchmark's and those of the
// tables, plans and plain calls, float32 and float64, both memory orders, one thread of Zen 4. A vector is one of
// channels (of the input c, of the output k), or one of pixels.
struct DenseCost {
  double weights;            // rows: a weight vector is packed or fetched,
  double missed;             // and comes from beyond L2
  double pixel, result;      // a pixel's c where there are taps, and its k
  double turn_in, turn_out;  // planar images: an element of the input that is reached, in c, and a pixel's k
  double pack, pack_row;     // columns: a vector of pixels for every tap and channel, and the beginning of a row
  double slab, slab_row;     // the same for every channel
  double in_place;           // a weight
  double store;              // a vector of the result
  double apart;              // a row of the result, where phases write between each other's pixels
};
// The points of a patch, in c, the pixels of a tile, in k, and the points of a filter; what a product of few tiles
// waits for them, and more where they come from beyond L2; and a tile's pixels in planar images, in k.
struct PointCost { double patch, tile, filter, fill, missed, turn; };
struct ModelCost {
  DenseCost dense;
  PointCost points2, points4;
};
constexpr ModelCost kCost512{{7.5, 3.4, 4.1, 0, 3.5, 17, 3.3, 9.4, 6, 9, 0.33, 6.3, 60},
                             {159, 103, 73, 2.4, 2.7, 85},
                             {506, 292, 81, 1.8, 2.7, 170}};
constexpr ModelCost kCost256{{3.4, 2.8, 15, 2.8, 4.1, 25, 3.5, 22, 4.1, 54, 0.6, 11, 60},
                             {194, 142, 78, 1.8, 11, 135},
                             {655, 584, 114, 1.8, 11, 270}};
const ModelCost& cost_of(const Machine& m) { return m.isa == Isa::avx512 ? kCost512 : kCost256; }

// The part of some vectors of weights that twice L2 does not hold.
double missed(const Problem& p, const Machine& m, double vectors) {
  const double bytes = vectors * static_cast<double>(m.lanes * p.item_size);
  return std::max(0.0, 1 - 2 * static_cast<double>(m.l2) / bytes);
}

// A direct sum of a dense product, of one group.
double dense_cost(const Problem& p, const Machine& m, Role role) {
  const auto up = [&m](int64_t n) { return static_cast<double>((n + m.lanes - 1) / m.lanes); };
  const DenseCost& cost = cost_of(m).dense;
  const int64_t taps = p.filter[0] * p.filter[1] * p.filter[2], strides = p.stride[0] * p.stride[1] * p.stride[2];
  const double T = static_cast<double>(taps), C = static_cast<double>(p.C), K = static_cast<double>(p.K);
  const double P = static_cast<double>(p.out[0] * p.out[1] * p.out[2]), reached = P * static_cast<double>(strides);
  if (role == Role::pixel_rows) {
    const double c = up(p.C), k = up(p.K);
    const double turned = p.channels_last ? 0 : cost.turn_in * c * reached + cost.turn_out * k * P;
    return T * C * k * (P + cost.weights + cost.missed * missed(p, m, T * C * k)) +
           P * ((taps > 1 ? cost.pixel * c : 0) + cost.result * k) + turned;
  }
  const double v = up(p.out[0] * p.out[1] * p.out[2]), rows = static_cast<double>(p.out[0] * p.out[1]);
  const double all = T * C * K * (v + cost.in_place) + cost.store * K * v + (p.phases > 1 ? cost.apart * K * rows : 0);
  if (taps == 1 && strides == 1 && !p.padded && !p.mapped) return all;  // packed straight from the image
  return all + T * C * (cost.pack * v + cost.pack_row * rows) +
         C * (cost.slab * reached / static_cast<double>(m.lanes) + cost.slab_row * rows);
}

// Channels, on either side, that fill neither a panel of weights nor a run of the reduction: pixels do. Of one group
// where rows of pixels are not as short as kTinyRow, planar images alone; of several groups at most half a vector, and
// half of that many with strides. 8 channels of 28 x 28, 32 groups, by pixel rows and columns: 479 and 704 us on AVX2,
// 688 and 769 on AVX-512; with stride 2 on 56 x 56 732 and 1158, 1001 and 1222; 4 channels 1534 and 1005, 712 and 664
// (channels last, Zen 4).
constexpr int64_t kThinGroup = 8, kTinyRow = 16;

// Outputs so few that lanes of channels would be mostly empty: those of a pixel with several taps are computed in lanes
// of pixels in any layout (Zen 4, AVX-512, one thread, channels last: 9 x 9 to 1 output 6 times as fast, 7 taps to 1
// output 5, transposed 4 x 4 to 3 outputs 1.3, 3 x 3 to 3 outputs 1.5; to 4 outputs nothing is gained, and 1 x 1
// loses). Without weights to share, blocks are long runs of pixels. (Planar 1 x 1 layers of large planes ran 1.3 to 2
// times as fast by sixteen channels of 1024 pixels at a time, whose sums have other bits than those of one pass, which
// a fused block makes.)
constexpr int64_t kFewOutputs = 3, kFewUnpacked = 4, kFewBlock = 2048;
bool few_outputs(const Problem& p) {
  return p.K <= kFewOutputs && p.groups == 1 && p.filter[0] * p.filter[1] * p.filter[2] > 1 &&
         p.out[0] * p.out[1] * p.out[2] >= 64;
}

// Phases share what they read, and outputs that leave much of a vector or a tile empty fill it together (Zen 4,
// AVX-512, in lock step, plans, channels last and planar: 1026 > 1 of 224 with 1024 taps and stride 256 5.7 and 4.1
// times as fast; 9 x 9, stride 2, 56 > 1 2.2; 4 x 4, stride 2, of 64 x 32 x 32 to 1 to 8 outputs 1.7 to 3.3; 16 x 16,
// stride 8, 21 > 21 1.3 and 1.5; 2 x 2, stride 2, to 16 outputs 0.8 and 1.7; to 32 0.84 and 1.1). Taps that some phases
// lack are zeros: 3 x 3, stride 2, to 1, 3, 8 and 16 outputs 1.8, 1.5, 1 and 0.6.
bool joins_phases(const Geometry& g, const Machine& m, bool channels_last, Algorithm algorithm) {
  if (algorithm != Algorithm::automatic && algorithm != Algorithm::direct) return false;
  if (g.G > 1 || g.stride[0] * g.stride[1] * g.stride[2] == 1) return false;
  int64_t taps = 1;
  for (int a = 0; a < 3; ++a) {
    if (g.stride[a] > 1 && g.dilation[a] > 1) return false;
    taps *= ceil_div(g.filter[a], g.stride[a]) * g.stride[a];
  }
  if (taps > g.taps()) return taps <= 2 * g.taps() && 4 * g.C <= m.lanes;
  return g.C <= (channels_last ? m.lanes / 2 : m.lanes) || 3 * g.C <= 2 * round_up(g.C, m.lanes);
}

// Planar images are transposed once each on the way in and out, or every tap is packed. A single pixel has no columns.
// What is produced block by block comes in either order: 64 channels fill the rows' lanes, fewer than 128 pixels leave
// those of the columns empty. `cost` becomes that of the role that is taken, where it is counted.
bool transposing_pays(const Problem& p, const Machine& m, double* cost) {
  const int64_t taps = p.filter[0] * p.filter[1] * p.filter[2], pixels = p.out[0] * p.out[1] * p.out[2];
  // Of 4 x 4 pixels many taps meet nothing but padding, which rows pass over (up to 5 times as fast, never 1.2 as
  // slow).
  if (pixels <= 1 || taps == 0 || (pixels <= 16 && taps > 1)) return true;
  if (p.produced) return p.C >= 64 && pixels < 128;
  const double rows = dense_cost(p, m, Role::pixel_rows), columns = dense_cost(p, m, Role::pixel_columns);
  *cost = std::min(rows, columns);
  return rows <= columns;
}

// Why the others are passed over where a table has the choice.
constexpr const char* kMeasured = "the others: measured, and slower, says the tune file that is in use";

// Channels whose slab, for a block of one row of pixels, stays within L2: a dilated filter spans many rows.
int64_t slab_channels(const Problem& p, const Machine& m) {
  const int64_t width = (std::min<int64_t>(p.out[2], 192) - 1) * p.stride[2] + (p.filter[2] - 1) * p.dilation[2] + 1;
  const int64_t height = (p.filter[1] - 1) * p.dilation[1] + 1;
  return std::max<int64_t>(1, m.l2 / (std::max<int64_t>(1, width * height * p.filter[0]) * p.item_size));
}

// Whether planar images can be turned: a task's planes must fit its scratch.
bool may_turn(const Problem& p, const Machine& m) {
  if (p.mapped || p.part || 2 * p.groups <= m.lanes || m.isa == Isa::portable || p.out[2] > 1024) return false;
  return p.out[0] == 1 || (p.phases + 1) * p.out[0] * p.out[1] * p.out[2] * m.lanes * p.item_size <= m.l2;
}

// Square filters of stride 1 and 2 that lanes of pixels take from the image in place: 3, 5 and, of stride 1, 7.
bool in_place(const Problem& p) {
  const int64_t r = p.filter[1], s = p.stride[1];
  if (p.filter[2] != r || p.stride[2] != s) return false;
  if (p.dilation[1] != 1 || p.dilation[2] != 1) return false;
  return s == 1 ? r == 3 || r == 5 || r == 7 : s == 2 && (r == 3 || r == 5);
}

// Where planar images are turned, some channels at a time, so that lanes are channels (Zen 4, one thread, as the time
// of lanes of pixels over that of turning). Phases that write between each other's pixels, as the gradients of strided
// layers: 7.1 on 14 x 14, 3.7 on 56 x 56, 3.3 on 112 x 112 (AVX-512). Filters that lanes of pixels take from a slab:
// of 131 layers of one to three dimensions 128 were faster turned with AVX-512, 123 with AVX2, 2.3 and 2.5 times in the
// median, strides of 3 and three-dimensional filters most (15). Those taken in place: 7 x 7 filters 2.2 on rows of 7, 5
// x 5 ones 1.5; on AVX2, which has no registers for more than one vector of 7 x 7, these 1.2 up to rows of 16; any on
// rows of 4 1.1 to 1.7; 0.5 to 0.96 else.
bool turning_pays(const Problem& p, const Machine& m) {
  if (!may_turn(p, m)) return false;
  const int64_t taps = p.filter[0] * p.filter[1] * p.filter[2];
  if (p.phases > 1) return true;
  // With other padding than zeros the image is copied instead, and lanes of pixels are 1.5 to 3 times as fast.
  if (taps <= 1 || !p.padded_zeros) return false;
  if (!in_place(p) || p.out[2] <= 4) return true;
  // Three-dimensional ones go plane by plane (80 channels of 8 x 28 x 28: 1.3; stride 2 on 8 x 56 x 56: 0.3).
  if (p.filter[0] > 1 && p.stride[1] == 1 && p.out[2] <= 28) return true;
  return taps >= 25 && (p.out[2] <= 8 || (m.isa == Isa::avx2 && taps >= 49 && p.out[2] <= 16));
}

// --- Depthwise products by the fast Fourier transform

// What a direct product costs, a vector and tap, is the unit (16 lanes 0.5 ns on Zen 4, 8 lanes 0.25 ns; by filter and
// memory order 0.7 to 1.2 of that). In these, a vector of complex numbers costs `level` for each halving of its
// transform's length and `point` for what is done to it once. The trials that they are from are in docs/design.md.
struct FftCost { double level, point; };
FftCost fft_cost_of(const Machine& m, bool linear) {
  if (m.isa == Isa::avx512) return {3, linear ? 32.0 : 12.0};
  return {4.8, 25};  // radix 4
}
// The transform has to be this much faster by the model: its results are not as good element by element.
constexpr double kFftGain = 0.85;
constexpr int64_t kFftTaps = 64;  // 7x7 has a register tile of its own, and is not looked at
constexpr double kFftWork = 20000;  // nor is what takes 10 us directly: the look takes 1 to 3
constexpr int64_t kFftBytes = int64_t{1600} << 10;  // of a tile in all lanes at most

double direct_cost(const Problem& p, const Machine& m, Role role) {
  const bool channels = role == Role::pixel_rows;
  const int64_t vectors =
      channels ? (p.groups + m.lanes - 1) / m.lanes * p.out[2] : (p.out[2] + m.lanes - 1) / m.lanes * p.groups;
  return static_cast<double>(vectors * p.out[0]) * static_cast<double>(p.rows_met) * static_cast<double>(p.filter[2]);
}

// Fills in how a tile of this size covers the output, and returns what all of them cost.
double fft_cost(const Problem& p, const Machine& m, bool shared, FftTiles* t) {
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t reach_rows = (p.filter[1] - 1) * p.dilation[1] + 1, reach = (p.filter[2] - 1) * p.dilation[2] + 1;
  const int64_t n = t->rows * t->columns;
  t->shared = shared;
  t->out_rows = std::min(p.out[1], t->linear ? 1 : t->rows - reach_rows + 1);
  t->out_columns = std::min(p.out[2], (t->linear ? n : t->columns) - reach + 1);
  t->down = up(p.out[1], t->out_rows), t->across = up(p.out[2], t->out_columns);
  const int64_t units = up(p.out[0] * t->down * t->across, 2);
  const double batches = static_cast<double>(shared ? p.groups * up(units, m.lanes) : up(p.groups, m.lanes) * units);
  const double rows = static_cast<double>(t->rows), columns = static_cast<double>(t->columns);
  const double back = t->linear ? columns : static_cast<double>(t->out_columns);
  const FftCost cost = fft_cost_of(m, t->linear);
  const double point = cost.point * rows * columns;
  // Columns of padding alone, and those of the result that nobody wants, are not transformed.
  const int64_t read = p.padded_zeros ? up(p.in_columns + (t->across - 1) * (reach - 1), t->across) : t->columns;
  const double front = t->linear ? columns : static_cast<double>(std::min(t->columns, read));
  const double there = cost.level * rows * (columns * std::log2(columns) + front * std::log2(rows));
  const double again = cost.level * rows * (columns * std::log2(columns) + back * std::log2(rows));
  // The spectra of the filters take a transform, and as much for each point again.
  return batches * (there + again + point) + static_cast<double>(up(p.groups, m.lanes)) * (there + point);
}

FftTiles choose_fft(const Problem& p, const Machine& m, Role role, double* cost) {
  const int64_t reach_rows = (p.filter[1] - 1) * p.dilation[1] + 1, reach = (p.filter[2] - 1) * p.dilation[2] + 1;
  FftTiles best{};
  auto consider = [&](int64_t rows, int64_t columns, bool linear) {
    if (2 * rows * columns * m.lanes * p.item_size > kFftBytes) return;
    for (const bool shared : {false, true}) {
      // Where channels are neighbours, tiles of one channel would be gathered and scattered one element at a time.
      if (shared && role == Role::pixel_rows) continue;
      FftTiles t{};
      t.rows = rows, t.columns = columns, t.linear = linear;
      const double all = fft_cost(p, m, shared, &t);
      if (best.rows == 0 || all < *cost) best = t, *cost = all;
    }
  };
  if (reach_rows == 1) {
    for (const FftLinear& l : kFftLinear)
      if (l.rows * l.columns >= reach) consider(l.rows, l.columns, true);
  } else {
    for (const int64_t rows : kFftLengths)
      for (const int64_t columns : kFftLengths)
        if (rows >= reach_rows && columns >= reach) consider(rows, columns, false);
  }
  return best;
}

// What a transform can compute: tiles along two axes, every output of them.
bool transforms(const Problem& p) {
  return p.filter[0] == 1 && p.filter[1] * p.filter[2] > 0 && p.out[0] * p.out[1] * p.out[2] > 0 &&
         p.stride[0] * p.stride[1] * p.stride[2] == 1;
}

// A filter for each channel: there is no product to tile. Lanes are channels where those are neighbours and fill half a
// vector, or are worth being made neighbours; and pixels of a row elsewhere.
Choice choose_depthwise(const Problem& p, const Machine& m, Way way) {
  Choice c{};
  c.depthwise = true;
  const int64_t T = p.filter[0] * p.filter[1] * p.filter[2];
  auto take_role = [&](bool channels) {
    c.role = channels ? Role::pixel_rows : Role::pixel_columns;
    c.copy_pixels = channels && (p.mapped || !p.in_channels_unit);
    c.move_output = channels ? !p.out_channels_unit : !p.out_row_unit;
    c.move_residual = p.has_residual && !(channels ? p.residual_channels_unit : p.residual_row_unit);
  };
  const bool channels = way == Way::rows || (way != Way::columns && p.channels_last && 2 * p.groups > m.lanes);
  take_role(channels);
  c.chunks = {Chunk{0, 1, 0, T}};
  c.passed_over = channels ? "lanes of pixels: the channels are neighbours in memory"
                           : "lanes of channels: the columns are neighbours in memory, or the channels few";
  if (way == Way::rows || way == Way::columns) {
    c.turn = way == Way::rows && !p.channels_last;
    c.passed_over = kMeasured;
    return c;
  }
  const bool possible = p.algorithm != Algorithm::direct && transforms(p);
  const bool turned = !p.channels_last && turning_pays(p, m);
  const double direct = possible ? direct_cost(p, m, turned ? Role::pixel_rows : c.role) : 0;
  const bool asked = p.algorithm == Algorithm::fft, measured = way == Way::fft;
  if (possible && (asked || measured || (T >= kFftTaps && direct >= kFftWork))) {
    double cost = 0;
    const FftTiles tiles = choose_fft(p, m, c.role, &cost);
    if (tiles.rows > 0 && (asked || measured || cost < kFftGain * direct)) {
      c.fft = tiles;
      c.passed_over = asked      ? "direct: fft is asked for"
                      : measured ? kMeasured
                                 : "direct: the transforms of the tiles cost less";
      return c;
    }
    if (tiles.rows > 0) c.passed_over += "\nfft: the transforms of the tiles cost as much";
  }
  if (turned) {
    take_role(true);
    c.turn = true;
    c.passed_over = "lanes of pixels: no kernel takes the filter in place, or rows are short: the image is turned";
  }
  return c;
}

// Groups of a few channels, whole ones in a vector, are run as a depthwise layer whose channels see their neighbours
// (Zen 4, AVX-512, one thread; the time of a product for each group over this one's stands in docs/design.md).
bool suits_groups(const Problem& p, const Machine& m) {
  if (p.groups < 2 || p.C != p.K || p.C < 2 || m.lanes % (2 * p.C) || 2 * p.groups * p.C <= m.lanes) return false;
  if (p.produced || p.part || m.isa == Isa::portable) return false;
  if (p.algorithm != Algorithm::automatic && p.algorithm != Algorithm::direct) return false;
  // All phases or none: of those of a stride, some may have no taps, but one row of them at least.
  if (p.filter[0] > 1 || p.out[0] != 1 || p.stride[0] != 1 || p.dilation[2] != 1) return false;
  return p.phases > 1 ? p.most_taps <= 3 : p.filter[2] == 3 && p.filter[0] * p.filter[1] > 0 && p.stride[2] <= 2;
}

Choice choose_groups(const Problem& p) {
  Choice c{};
  c.depthwise = true;
  c.group = p.C;
  c.role = Role::pixel_rows;
  // Pixels a multiple of 1 KB apart fall into few sets of the first-level cache: they are copied first (256 channels of
  // 28 x 28 and strided ones of 56 x 56, Zen 4 in lock step: 1.05 to 1.12 times as fast).
  c.copy_pixels = p.mapped || !p.in_channels_unit || p.groups * p.C * p.item_size % 1024 == 0;
  c.move_output = !p.out_channels_unit;
  c.move_residual = p.has_residual && !p.residual_channels_unit;
  c.turn = !p.channels_last && !p.mapped;
  c.chunks = {Chunk{0, p.C, 0, p.filter[1] * p.filter[2]}};
  c.passed_over = "a product for each group: its channels do not fill a vector";
  return c;
}

// --- Dense products by Winograd's minimal filtering

// Channels of one piece of the reduction of a point. Sums of points are larger than what the outputs make of them, and
// their roundings are most of the error. Pieces of 32 channels halve it and cost a tenth of the time, since the tile
// adds each to memory; whole ones of 256 gain 3 % (docs/numerics.md).
constexpr int64_t kPointTerms = 128;

constexpr double kWinogradGain = 0.95;  // by the model, at least: the results are not as good
// Sums of fewer terms leave more of the error of the points in the result (docs/numerics.md).
constexpr int64_t kWinogradTerms2 = 8, kWinogradTerms4 = 24;

// Tiles that a task has at least: two tiles of the product high.
int64_t least_tiles(const Machine& m) { return 2 * m.tile_rows[preferred_vectors(m)]; }

double winograd_cost(const Problem& p, const Machine& m, int64_t outputs) {
  const auto up = [](int64_t a, int64_t b) { return static_cast<double>((a + b - 1) / b); };
  const PointCost& cost = outputs == 2 ? cost_of(m).points2 : cost_of(m).points4;
  const double tiles = up(p.out[1], outputs) * up(p.out[2], outputs),
               points = static_cast<double>((outputs + 2) * (outputs + 2));
  const double C = static_cast<double>(p.C), k = up(p.K, m.lanes), c = up(p.C, m.lanes);
  return points * C * k * (tiles + cost.fill + cost.missed * missed(p, m, points * C * k)) + cost.filter * C * k +
         tiles * (cost.patch * c + (cost.tile + (p.channels_last ? 0 : cost.turn)) * k);
}

// What keeps a tile of so many outputs from a call that does not ask for it, or null.
const char* winograd_obstacle(const Problem& p, const Machine& m, int64_t outputs) {
  if (!suits_winograd(p)) return "serves filters of 3 x 3, stride 1 and dilation 1, in two dimensions";
  if (outputs == 2 && p.C < kWinogradTerms2) return "sums of fewer than 8 channels leave too much of the points' error";
  if (outputs == 4 && p.C < kWinogradTerms4)
    return "sums of fewer than 24 channels leave too much of the points' error";
  // What a task takes stays below two megabytes.
  if (least_tiles(m) * (outputs + 2) * (outputs + 2) * p.C * p.item_size > m.l2 * 9 / 8)
    return "the points of a task's tiles would not fit the cache";
  return nullptr;
}

// The outputs of a tile along an axis, or 0.
int32_t choose_winograd(const Problem& p, const Machine& m, Role role, double direct) {
  if (!suits_winograd(p)) return 0;
  if (p.algorithm == Algorithm::winograd2) return 2;
  if (p.algorithm == Algorithm::winograd4) return 4;
  if (p.algorithm != Algorithm::automatic) return 0;
  // The model does not know that a panel that one tile reads is not packed (planar 64 > 4 of 128 x 128: 1.8 times).
  if (role == Role::pixel_columns && p.K <= kFewUnpacked) return 0;
  double best = kWinogradGain * (direct > 0 ? direct : dense_cost(p, m, role));
  int32_t outputs = 0;
  for (const int32_t o : {2, 4}) {
    if (winograd_obstacle(p, m, o)) continue;
    const double cost = winograd_cost(p, m, o);
    if (cost < best) best = cost, outputs = o;
  }
  return outputs;
}

// What keeps a way from a product, or null.
const char* obstacle(const Problem& p, const Machine& m, Way way) {
  const bool depthwise = p.C == 1 && p.K == 1;
  const int64_t T = p.filter[0] * p.filter[1] * p.filter[2], pixels = p.out[0] * p.out[1] * p.out[2];
  if (T == 0 || pixels == 0) return "there is nothing to add up";
  if (way != Way::model && suits_groups(p, m)) return "groups of a few channels have a kernel of their own";
  switch (way) {
    case Way::model: return nullptr;
    case Way::rows:
      if (!depthwise || p.channels_last) return nullptr;
      if (p.phases == 1 && !p.padded_zeros) return "padding other than zeros is not turned";
      return may_turn(p, m) ? nullptr : "the columns are neighbours in memory";
    case Way::columns:
      if (depthwise && !p.channels_last && p.phases > 1 && may_turn(p, m))
        return "the products write between each other's pixels";
      if (!p.channels_last) return depthwise || pixels > 1 ? nullptr : "a single pixel has no columns";
      if (depthwise) return p.groups <= m.lanes ? nullptr : "the channels are neighbours in memory";
      return few_outputs(p) || (p.groups > 1 && p.C <= 2 * kThinGroup && p.K <= 2 * kThinGroup)
                 ? nullptr
                 : "the channels are neighbours in memory";
    case Way::fft:
      if (!depthwise) return "serves layers of one channel in and out a group";
      if (!transforms(p)) return "serves stride 1, in one or two dimensions";
      return T >= kFftTaps ? nullptr : "the filter has fewer than 64 taps";
    case Way::winograd2:
    case Way::winograd4:
      return depthwise ? "serves more than one channel a group"
                       : winograd_obstacle(p, m, way == Way::winograd2 ? 2 : 4);
  }
  return "not known";
}

Way tuned_way(const Problem& p, const Machine& m) {
  const bool any = p.algorithm == Algorithm::automatic;
  if (!m.tuned || !(any || p.algorithm == Algorithm::direct) || p.produced || p.part || p.fanned) return Way::model;
  const auto found = m.tuned->ways.find(product_of(p, m));
  if (found == m.tuned->ways.end()) return Way::model;
  // Which of the direct sums it is to be, a call that asks for them does not say.
  const Way way = found->second;
  return (any || way == Way::rows || way == Way::columns) && !obstacle(p, m, way) ? way : Way::model;
}

std::vector<Candidate> candidates(const Problem& p, const Machine& m) {
  const bool depthwise = p.C == 1 && p.K == 1;
  std::vector<Candidate> all;
  for (const Way way : {Way::rows, Way::columns, Way::fft, Way::winograd2, Way::winograd4}) {
    Candidate& c = all.emplace_back();
    c.way = way, c.obstacle = obstacle(p, m, way);
    if (c.obstacle) continue;
    const Role role = way == Way::columns || (way == Way::fft && !(p.channels_last && 2 * p.groups > m.lanes))
                          ? Role::pixel_columns
                          : Role::pixel_rows;
    if (way == Way::fft)
      choose_fft(p, m, role, &c.cost);
    else if (way == Way::winograd2 || way == Way::winograd4)
      c.cost = winograd_cost(p, m, way == Way::winograd2 ? 2 : 4);
    else
      c.cost = depthwise ? direct_cost(p, m, role) : dense_cost(p, m, role);
    // A group's, so far; those of a depthwise product are counted together.
    if (!depthwise) c.cost *= static_cast<double>(p.groups);
  }
  return all;
}

Choice choose(const Problem& p, const Machine& m) {
  const Way way = m.tuned ? tuned_way(p, m) : Way::model;
  if (p.C == 1 && p.K == 1 && !p.produced) return choose_depthwise(p, m, way);
  if (suits_groups(p, m)) return choose_groups(p);
  Choice c{};
  const int64_t T = p.filter[0] * p.filter[1] * p.filter[2];
  const int64_t pixels = p.out[0] * p.out[1] * p.out[2];
  const bool strided = p.stride[0] * p.stride[1] * p.stride[2] > 1;
  const int64_t few = p.groups == 1 ? kThinGroup
                      : strided     ? kThinGroup / 2
                                    : std::min<int64_t>(kThinGroup, m.lanes / 2);
  const bool thin =
      (p.groups > 1 || (!p.channels_last && p.out[2] >= kTinyRow)) && T > 1 && p.C <= few && p.K <= few && pixels >= 64;
  double cost = 0;
  const bool few_last = p.channels_last && (p.fanned ? 2 * p.K <= m.lanes : few_outputs(p));
  const bool rows = way == Way::rows ||
                    (way == Way::model && !thin && !few_last && (p.channels_last || transposing_pays(p, m, &cost)));
  const int32_t winograd = way == Way::model
                               ? choose_winograd(p, m, rows ? Role::pixel_rows : Role::pixel_columns, cost)
                           : way == Way::winograd2 ? 2
                           : way == Way::winograd4 ? 4
                                                   : 0;
  c.role = winograd || rows ? Role::pixel_rows : Role::pixel_columns;
  c.passed_over = thin                ? "pixel rows: a group has too few channels to fill a vector"
                  : few_last && !rows ? "pixel rows: a pixel has too few outputs to fill a vector"
                  : p.channels_last   ? "pixel columns: the channels are neighbours in memory, the columns are not"
                  : rows              ? "pixel columns: packing every tap costs more than transposing the image"
                                      : "pixel rows: transposing the image costs more than packing the columns";

  const int64_t terms = reduction_terms(m, p.item_size), line = 64 / p.item_size;
  if (c.role == Role::pixel_rows) {
    c.move_output = !p.out_channels_unit;
    // A pixel's taps are short runs when it has few channels: copied together they are one long run.
    c.copy_pixels = T > 0 && (p.mapped || !p.in_channels_unit || (T > 1 && p.C < line));
    // Whether strides alone call for a copy does not enter here, or the bits would depend on them.
    const bool slab = !p.channels_last || p.mapped || (T > 1 && p.C < line);
    c.chunks = slab ? split_reduction(p.C, T, std::min(terms, slab_channels(p, m) * T), line, 1)
                    : split_reduction(p.C, T, terms, line, line);
    // The block's input stays in a third of L2 (neighbouring pixels share most of their taps), its table of pointers
    // within 64 KB.
    const int64_t bytes =
        std::max<int64_t>(1, c.chunks[0].channels * std::min<int64_t>(c.chunks[0].taps, 3)) * p.item_size;
    const int64_t tile = m.tile_rows[preferred_vectors(m)];
    int64_t block = std::clamp<int64_t>(m.l2 / 3 / bytes, 2 * tile, 192);
    // An output that is moved shares L2 with the slab and the weights (with what skip_pixels saves, planar strided 1x1
    // layers on Zen 4 in lock step: 1.03 to 1.13 times as fast).
    if (c.move_output) block = std::clamp<int64_t>(m.l2 / 4 / (p.K * p.item_size), 8 * tile, block);
    block = std::min(block,
                     std::max<int64_t>(
                         tile, 8192 / std::max<int64_t>(c.copy_pixels ? T / std::max<int64_t>(p.filter[2], 1) : T, 1)));
    c.batch_block = block / tile * tile;
    c.pixel_block = std::min(pixels, c.batch_block);
  } else {
    c.move_output = !p.out_columns_unit;
    c.direct = T == 1 && !p.padded && !p.mapped && p.in_columns_unit && p.stride[0] * p.stride[1] * p.stride[2] == 1;
    c.chunks = split_reduction(
        p.C, T, c.direct ? terms : std::min(terms, slab_channels(p, m) * std::max<int64_t>(T, 1)), line, 1);
    // The slab of a block stays in a quarter of L2.
    const int64_t channels = std::max<int64_t>(1, c.chunks[0].channels);
    const int64_t panel = preferred_vectors(m) * m.lanes;
    int64_t block = few_outputs(p) && p.phases == 1 && !p.produced ? kFewBlock : 256;
    // Rows that a depthwise half makes read their neighbours: three or four at a time at least, where they fit
    // (planar, Zen 4 in lock step: 1.06 to 1.27 times as fast on rows of 56 and more pixels, 1 on shorter ones).
    if (p.produced) block = std::max(block, std::min(4 * p.out[2], m.l2 / 3 / (channels * p.item_size)));
    auto slab_bytes = [&](int64_t n) {
      const int64_t w = std::min(n, p.out[2]), h = std::min((n + w - 1) / w + 1, p.out[1]);
      const int64_t d = std::min((n + w * p.out[1] - 1) / (w * p.out[1]), p.out[0]);
      const int64_t width = (w - 1) * p.stride[2] + (p.filter[2] - 1) * p.dilation[2] + 1;
      const int64_t height = (h - 1) * p.stride[1] + (p.filter[1] - 1) * p.dilation[1] + 1;
      const int64_t depth = d == 1 ? p.filter[0] : (d - 1) * p.stride[0] + (p.filter[0] - 1) * p.dilation[0] + 1;
      return channels * width * height * depth * p.item_size;
    };
    while (!c.direct && !p.produced && block > panel && slab_bytes(block) > m.l2 / 4) block /= 2;
    c.pixel_block = std::min(pixels, std::max(block / panel * panel, panel));
  }
  if (winograd) {
    const bool asked = p.algorithm != Algorithm::automatic;
    const int64_t n = winograd + 2, channels = (p.C + m.lanes - 1) / m.lanes * m.lanes + m.lanes;
    c.winograd = winograd;
    c.copy_pixels = true;
    c.winograd_chunks = split_reduction(p.C, 1, kPointTerms, line, 1);
    const int64_t columns = m.max_vectors * m.lanes;
    c.winograd_block = std::max(least_tiles(m), m.l2 / 2 / (n * n * std::max(channels, columns) * p.item_size));
    c.passed_over = asked ? "direct: winograd is asked for" : "direct: has more multiplications to do";
    if (!asked)
      c.passed_over += winograd == 2 ? "\nwinograd4: more points to make and to read than outputs"
                                     : "\nwinograd2: more multiplications";
  }
  if (way != Way::model) c.passed_over = kMeasured;
  c.move_residual =
      p.has_residual && !(c.role == Role::pixel_rows ? p.residual_channels_unit : p.residual_columns_unit);
  return c;
}

int64_t Choice::reduction_block() const {
  int64_t most = 0;
  for (const Chunk& chunk : chunks) most = std::max(most, chunk.channels * chunk.taps);
  return most;
}

}  // namespace fastconv::ops
