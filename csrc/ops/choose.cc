#include "ops/choose.h"

#include <algorithm>
#include <cmath>

#include "dispatch/kernel_table.h"
#include "ops/fft.h"
#include "ops/winograd.h"

namespace fastconv::ops {

Machine current_machine(DType dtype) {
  const Isa isa = current_isa();
  const CacheSizes caches = cache_sizes();
  Machine m{};
  m.isa = isa;
  m.l1 = caches.l1d;
  m.l2 = caches.l2;
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
  return p;
}

// Where the image is transposed for the rows role (measured on 30 planar layers, Zen 3, one thread; most of them ran
// 0.2 to 0.9 times as fast by columns). Short rows of pixels fill the panels of the columns role badly; long ones win
// where there are few channels on either side: an image of 8 ran 0.83 times as fast transposed, one of 3 0.94 times,
// and of 4 output channels, which leave half the lanes empty, 0.87 times. Rows of 10 pixels and fewer won with 3
// channels too (1.05 to 1.8 times), of 20 to 32 they lost. A reduction of 72 terms won, shorter ones were not compared.
// With one tap transposing won at 49 pixels or a stride, drew at 196, lost at 3136; the limit between is a guess. So is
// that of a group whose channels fill no vector.
constexpr int64_t kTransposeTerms = 64, kTinyRow = 16, kShortRow = 48, kLongRowImage = 16, kLongRowOutputs = 8,
                  kThinGroup = 8, kFewPixels = 128;

// Channels whose slab, for a block of one row of pixels, stays within L2: a dilated filter spans many rows.
int64_t slab_channels(const Problem& p, const Machine& m) {
  const int64_t width = (std::min<int64_t>(p.out[2], 192) - 1) * p.stride[2] + (p.filter[2] - 1) * p.dilation[2] + 1;
  const int64_t height = (p.filter[1] - 1) * p.dilation[1] + 1;
  return std::max<int64_t>(1, m.l2 / (std::max<int64_t>(1, width * height * p.filter[0]) * p.item_size));
}

// Where planar images are turned, some channels at a time, so that lanes are channels (Zen 4, AVX-512, one thread, in
// lock step, as the time of lanes of pixels over that of turning): phases that write between each other's pixels, as
// the gradients of strided layers, 7.1 on 14 x 14, 3.7 on 56 x 56, 3.3 on 112 x 112; 7 x 7 filters 2.1 to 2.5 on rows
// of 7, 5 x 5 ones about 1. On rows of 14 both lost (0.93, 0.63 to 0.75), on AVX2, which has no registers for more than
// one vector of 7 x 7, only those of 5 x 5 (0.7; 7 x 7 1.2). Filters of 3 x 3 gained nothing on rows of 7. A task's
// planes must fit its scratch.
bool turning_pays(const Problem& p, const Machine& m) {
  if (p.mapped || p.part || 2 * p.groups <= m.lanes || m.isa == Isa::portable || p.out[2] > 1024) return false;
  const int64_t taps = p.filter[0] * p.filter[1] * p.filter[2];
  if (p.out[0] > 1 && (p.phases + 1) * p.out[0] * p.out[1] * p.out[2] * m.lanes * p.item_size > m.l2) return false;
  if (p.phases > 1) return true;
  return p.filter[2] > 1 && taps >= 25 && (p.out[2] <= 8 || (m.isa == Isa::avx2 && taps >= 49 && p.out[2] <= 16));
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
constexpr int64_t kFftTaps = 64;   // 7x7 has a register tile of its own, and is not looked at
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

// A filter for each channel: there is no product to tile. Lanes are channels where those are neighbours and fill half a
// vector, or are worth being made neighbours; and pixels of a row elsewhere.
Choice choose_depthwise(const Problem& p, const Machine& m) {
  Choice c{};
  c.depthwise = true;
  const int64_t T = p.filter[0] * p.filter[1] * p.filter[2];
  auto take_role = [&](bool channels) {
    c.role = channels ? Role::pixel_rows : Role::pixel_columns;
    c.copy_pixels = channels && (p.mapped || !p.in_channels_unit);
    c.move_output = channels ? !p.out_channels_unit : !p.out_row_unit;
    c.move_residual = p.has_residual && !(channels ? p.residual_channels_unit : p.residual_row_unit);
  };
  const bool channels = p.channels_last && 2 * p.groups > m.lanes;
  take_role(channels);
  c.chunks = {Chunk{0, 1, 0, T}};
  c.passed_over = channels ? "lanes of pixels: the channels are neighbours in memory"
                           : "lanes of channels: the columns are neighbours in memory, or the channels few";
  const bool transforms = p.algorithm != Algorithm::direct && T > 0 && p.filter[0] == 1 &&
                          p.out[0] * p.out[1] * p.out[2] > 0 && p.stride[0] * p.stride[1] * p.stride[2] == 1;
  const double direct = transforms ? direct_cost(p, m, c.role) : 0;
  const bool asked = p.algorithm == Algorithm::fft;
  if (transforms && (asked || (T >= kFftTaps && direct >= kFftWork))) {
    double cost = 0;
    const FftTiles tiles = choose_fft(p, m, c.role, &cost);
    if (tiles.rows > 0 && (asked || cost < kFftGain * direct)) {
      c.fft = tiles;
      c.passed_over = asked ? "direct: fft is asked for" : "direct: the transforms of the tiles cost less";
      return c;
    }
    if (tiles.rows > 0) c.passed_over += "\nfft: the transforms of the tiles cost as much";
  }
  if (!p.channels_last && turning_pays(p, m)) {
    take_role(true);
    c.turn = true;
    c.passed_over = "lanes of pixels: rows are short or written in turns, and the image is turned instead";
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

// In steps of a vector's multiply-add, a vector of channels: the points of a patch and the pixels of a tile with their
// copies, the points of a filter. The product of few tiles waits for the filters' points, which come from memory. The
// patch and the tile of 4 x 4 are from a profile (64 channels of 56 x 56, one Zen 4 core, AVX-512: 360 and 320 cycles);
// all the others are estimates from counts of instructions, and how often the choice is the best one is not measured.
struct PointCost { double patch, tile, filter; };
constexpr PointCost kPoints2{180, 130, 90}, kPoints4{400, 300, 200};
constexpr double kTilesAtLeast = 10;
constexpr double kWinogradGain = 0.85;  // by the model, at least: the results are not as good
// Sums of fewer terms leave more of the error of the points in the result (docs/numerics.md).
constexpr int64_t kWinogradTerms2 = 8, kWinogradTerms4 = 24;

// Tiles that a task has at least: two tiles of the product high.
int64_t least_tiles(const Machine& m) { return 2 * m.tile_rows[preferred_vectors(m)]; }

double winograd_cost(const Problem& p, const Machine& m, int64_t outputs) {
  const auto up = [](int64_t a, int64_t b) { return static_cast<double>((a + b - 1) / b); };
  const PointCost& cost = outputs == 2 ? kPoints2 : kPoints4;
  const double tiles = up(p.out[1], outputs) * up(p.out[2], outputs),
               points = static_cast<double>((outputs + 2) * (outputs + 2));
  const double C = static_cast<double>(p.C), k = up(p.K, m.lanes), c = up(p.C, m.lanes);
  return points * C * k * std::max(tiles, kTilesAtLeast) + tiles * (cost.patch * c + cost.tile * k) +
         cost.filter * C * k;
}

// The outputs of a tile along an axis, or 0.
int32_t choose_winograd(const Problem& p, const Machine& m) {
  if (!suits_winograd(p)) return 0;
  if (p.algorithm == Algorithm::winograd2) return 2;
  if (p.algorithm == Algorithm::winograd4) return 4;
  if (p.algorithm != Algorithm::automatic || p.C < kWinogradTerms2) return 0;
  const double vectors = static_cast<double>((p.K + m.lanes - 1) / m.lanes);
  double best = kWinogradGain * 9 * static_cast<double>(p.out[1] * p.out[2] * p.C) * vectors;
  int32_t outputs = 0;
  for (const int32_t o : {2, 4}) {
    if (o == 4 && p.C < kWinogradTerms4) continue;
    // What a task takes stays below two megabytes.
    if (least_tiles(m) * (o + 2) * (o + 2) * p.C * p.item_size > m.l2 * 9 / 8) continue;
    const double cost = winograd_cost(p, m, o);
    if (cost < best) best = cost, outputs = o;
  }
  return outputs;
}

Choice choose(const Problem& p, const Machine& m) {
  if (p.C == 1 && p.K == 1 && !p.produced) return choose_depthwise(p, m);
  if (suits_groups(p, m)) return choose_groups(p);
  Choice c{};
  const int64_t T = p.filter[0] * p.filter[1] * p.filter[2];
  const int64_t pixels = p.out[0] * p.out[1] * p.out[2];
  // Planar images: a long reduction pays for transposing the input and the output, once each, on the way; packing
  // columns costs a copy for every tap. A single pixel has no columns.
  // Without taps to pay for, it still wins where the columns are few or a stride would take the image apart.
  const bool strided = p.stride[0] * p.stride[1] * p.stride[2] > 1;
  const bool short_rows = p.out[2] < kShortRow;
  const bool enough = p.out[2] < kTinyRow ? true
                      : short_rows        ? p.C >= kLongRowImage / 2
                                          : p.C >= kLongRowImage && p.K >= kLongRowOutputs;
  const bool transpose =
      pixels == 1 || (enough && p.C * T >= kTransposeTerms && (T > 1 || strided || pixels < kFewPixels));
  // A group of few channels fills neither the vectors of a panel of weights nor a run of the reduction: pixels do.
  const bool thin = (p.groups > 1 || (!p.channels_last && p.out[2] >= kTinyRow)) && T > 1 && p.C <= kThinGroup &&
                    p.K <= kThinGroup && pixels >= 64;
  const int32_t winograd = choose_winograd(p, m);
  c.role = winograd || (!thin && (p.channels_last || transpose)) ? Role::pixel_rows : Role::pixel_columns;
  c.passed_over = thin              ? "pixel rows: a group has too few channels to fill a vector"
                  : p.channels_last ? "pixel columns: the channels are neighbours in memory, the columns are not"
                  : transpose       ? "pixel columns: the reduction is long enough to pay for transposing the image"
                                    : "pixel rows: the columns are neighbours in memory, and the reduction is short";

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
    if (c.move_output) block = std::clamp<int64_t>(m.l2 / 4 / (p.K * p.item_size), 8 * tile, block);
    block = std::min(block,
                     std::max<int64_t>(
                         tile, 8192 / std::max<int64_t>(c.copy_pixels ? T / std::max<int64_t>(p.filter[2], 1) : T, 1)));
    c.pixel_block = std::min(pixels, block / tile * tile);
  } else {
    c.move_output = !p.out_columns_unit;
    c.direct = T == 1 && !p.padded && !p.mapped && p.in_columns_unit && p.stride[0] * p.stride[1] * p.stride[2] == 1;
    c.chunks = split_reduction(
        p.C, T, c.direct ? terms : std::min(terms, slab_channels(p, m) * std::max<int64_t>(T, 1)), line, 1);
    // The slab of a block stays in a quarter of L2.
    const int64_t channels = std::max<int64_t>(1, c.chunks[0].channels);
    const int64_t panel = preferred_vectors(m) * m.lanes;
    int64_t block = 256;
    // Rows that a depthwise half makes read their neighbours: at least four at a time, where they fit.
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
