#include "ops/fft.h"

#include <atomic>
#include <cmath>
#include <new>

#include "ops/depthwise.h"
#include "ops/memory.h"
#include "ops/parallel.h"
#include "ops/slab.h"

namespace fastconv::ops {
namespace {

// --- Tables of roots of unity: of each length once in the life of a process

// The cosine and the sine of 2 pi i / n, from an angle of at most an eighth of a turn.
template <class T>
void unit_root(int64_t i, int64_t n, T* root) {
  i %= n;
  const int64_t eighth = 8 * i / n;             // 0 .. 7
  const int64_t quarter = (eighth + 1) / 2 % 4;  // the nearest quarter of a turn
  const double rest =
      (4.0 * static_cast<double>(i) / static_cast<double>(n) - ((eighth + 1) / 2)) * 1.57079632679489661923;
  const double c = std::cos(rest), s = std::sin(rest);
  const double cosine[] = {c, -s, -c, s}, sine[] = {s, c, -s, -c};
  root[0] = static_cast<T>(cosine[quarter]), root[1] = static_cast<T>(sine[quarter]);
}

// A table that is made once and stays: readers take no lock, and a table that two threads made at once is dropped.
template <class T>
class Table {
 public:
  template <class Make>
  const T* get(int64_t size, Make make) {
    const T* table = table_.load(std::memory_order_acquire);
    if (table) return table;
    T* made = new (std::nothrow) T[static_cast<size_t>(size)];
    if (!made) return nullptr;
    make(made);
    if (table_.compare_exchange_strong(table, made, std::memory_order_acq_rel)) return made;
    delete[] made;
    return table;
  }

 private:
  std::atomic<const T*> table_{nullptr};
};

// Radix 8 wants 16 registers for its operands alone.
bool wide_radix(const Machine& m) { return m.isa == Isa::avx512; }

template <class T>
bool make_axis(int64_t n, const Machine& m, FftAxis<T>* axis) {
  *axis = {};
  axis->n = n;
  int64_t rest = n;
  auto take = [&](int32_t radix) {
    axis->radix[axis->radices++] = radix;
    rest /= radix;
  };
  if (rest % 3 == 0) take(3);
  if (wide_radix(m)) {
    while (rest % 8 == 0 && rest != 16) take(8);
    if (rest == 16) take(4);
  }
  while (rest % 4 == 0) take(4);
  if (rest == 2) take(2);
  static Table<T> tables[2][std::size(kFftLengths)];
  const size_t slot =
      static_cast<size_t>(std::find(std::begin(kFftLengths), std::end(kFftLengths), n) - std::begin(kFftLengths));
  axis->twiddles = tables[wide_radix(m)][slot].get(2 * n, [&](T* to) {
    int64_t length = n;
    for (int32_t i = 0; i < axis->radices; length /= axis->radix[i++])
      for (int64_t j = 0; j < length / axis->radix[i]; ++j)
        for (int64_t q = 1; q < axis->radix[i]; ++q, to += 2) unit_root(j * q, length, to);
  });
  return axis->twiddles != nullptr;
}

// The frequency at position p of an axis.
template <class T>
int64_t frequency(const FftAxis<T>& axis, int64_t p) {
  int64_t f = 0, weight = 1, length = axis.n;
  for (int32_t i = 0; i < axis.radices; ++i) {
    length /= axis.radix[i];
    f += p / length % axis.radix[i] * weight;
    weight *= axis.radix[i];
  }
  return f;
}

template <class T>
bool make_tables(const FftTiles& tiles, const Machine& m, FftArgs<T>* args) {
  if (!make_axis(tiles.rows, m, &args->rows) || !make_axis(tiles.columns, m, &args->columns)) return false;
  args->twist = nullptr;
  if (!tiles.linear || tiles.rows == 1) return true;
  static Table<T> tables[2][std::size(kFftLinear)];
  size_t slot = 0;
  while (kFftLinear[slot].rows != tiles.rows || kFftLinear[slot].columns != tiles.columns) ++slot;
  const int64_t n = tiles.rows * tiles.columns;
  args->twist = tables[wide_radix(m)][slot].get(2 * n, [&](T* to) {
    for (int64_t c = 0; c < tiles.columns; ++c)
      for (int64_t p = 0; p < tiles.rows; ++p, to += 2) unit_root(c * frequency(args->rows, p), n, to);
  });
  return args->twist != nullptr;
}

// --- Geometry

int64_t reach(const DenseJob& job, int axis) { return (job.filter[axis] - 1) * job.dilation[axis] + 1; }

// Outputs are finished in pieces of so many columns at most, whatever the tile's.
constexpr int64_t kPieceColumns = 1024;

// A tile as it lies in the image: a linear one is a piece of one row.
struct Frame {
  int64_t rows, columns;        // of the tile
  int64_t band_rows, band_columns;  // moved at a time, where lanes have to be transposed: 64 KB of all lanes
  int64_t lane_pitch;           // of such a band

  Frame(const FftTiles& t, const Machine& m, int64_t item_size) {
    rows = t.linear ? 1 : t.rows, columns = t.linear ? t.rows * t.columns : t.columns;
    band_columns = std::min({columns, kPieceColumns, 65536 / (m.lanes * item_size)});
    band_rows = std::clamp<int64_t>(65536 / (m.lanes * item_size * band_columns), 1, rows);
    lane_pitch = round_up(band_rows * band_columns, 16) + 16;
  }
};

// The outputs of one tile: those of plane d from (y, x) on.
struct Tile { int64_t d, y, x, rows, columns; };

int64_t tile_count(const DenseJob& job, const FftTiles& t) { return job.out[0] * t.down * t.across; }

Tile tile_at(const DenseJob& job, const FftTiles& t, int64_t i) {
  const int64_t x = i % t.across * t.out_columns, y = i / t.across % t.down * t.out_rows;
  return {i / t.across / t.down, y, x, std::min(t.out_rows, job.out[1] - y), std::min(t.out_columns, job.out[2] - x)};
}

// What a task takes: two signals for each lane and what moves them.
template <class T>
struct Memory {
  T* re;
  T* im;
  T* line;
  T* finite;
  T* ones;
  T* gates;
  T* band;  // lanes one after the other
  const T** lanes;
  int64_t* row_offset;
  int64_t* column_map;
  int64_t* steps;  // 0, 1, 2, ...: pixels of a band
  int64_t* lane_offset;

  Memory(const DenseJob& job, const FftTiles& t, const Machine& m, Arena& arena) {
    const Frame frame(t, m, sizeof(T));
    const int64_t W = m.lanes, n = t.rows * t.columns;
    re = arena.take<T>((n + W) * W), im = arena.take<T>((n + W) * W);
    line = arena.take<T>(2 * t.rows * W);
    finite = arena.take<T>(2 * W);
    ones = arena.take<T>(W), gates = arena.take<T>(W);
    band = arena.take<T>(W * frame.lane_pitch + W);
    lanes = arena.take<const T*>(W);
    row_offset = arena.take<int64_t>(frame.rows);
    column_map = arena.take<int64_t>(job.mode == PaddingMode::zeros ? 0 : frame.columns);
    steps = arena.take<int64_t>(frame.band_columns);
    lane_offset = arena.take<int64_t>(W);
  }
};

// --- Filters

// The spectra of up to W channels from c0 on, as (points)(real, imaginary)(W).
template <class T>
void make_spectra(const DenseJob& job, const FftTiles& t, const Machine& m, const KernelTable<T>& kernels, FftArgs<T> g,
                  int64_t c0, const Memory<T>& s, T* to) {
  const int64_t W = m.lanes, n = t.rows * t.columns, channels = std::min(W, job.G - c0);
  const Frame frame(t, m, sizeof(T));
  std::fill_n(s.re, n * W, T{0});
  std::fill_n(s.im, n * W, T{0});
  for (int64_t h = 0; h < job.filter[1]; ++h)
    for (int64_t i = 0; i < job.filter[2]; ++i) {
      T* lanes = s.re + (h * job.dilation[1] * frame.columns + i * job.dilation[2]) * W;
      const T* from = static_cast<const T*>(job.weight) + c0 * job.wg + h * job.wf[1] + i * job.wf[2];
      for (int64_t c = 0; c < channels; ++c) lanes[c] = from[c * job.wg];
    }
  g.re = s.re, g.im = s.im, g.line = s.line;
  g.spectrum = to;
  g.scale = T{1} / static_cast<T>(n);
  g.first_column = 0, g.end_column = t.linear ? t.columns : reach(job, 2);
  kernels.fft_spectrum(g);
}

// --- Tasks: a batch of lanes, each of which is two tiles of a channel

// Tiles 2 u and 2 u + 1 are the real and the imaginary part of unit u. Lanes are channels from c0 on of one unit, or
// units from u0 on of one channel.
struct Batch { int64_t n, c0, u0, lanes; };

template <class T>
struct Task {
  const Run<T>& run;
  const Context<T>& ctx;
  const Context<T>& plain;  // without a prologue, for finished sums
  const FftTiles& tiles;
  const Batch& batch;
  Frame frame;
  const Memory<T>& s;

  int64_t channel(int64_t lane) const { return tiles.shared ? batch.c0 : batch.c0 + lane; }
  int64_t tile(int64_t lane, int part) const { return 2 * (tiles.shared ? batch.u0 + lane : batch.u0) + part; }

  // Source offsets of the tile's rows [r0, r0 + rows).
  void rows_of(const Tile& at, int64_t r0, int64_t rows) const {
    const DenseJob& job = run.job;
    const int64_t needed = at.rows + reach(job, 1) - 1;
    const int64_t plane = map_index(job.mode, at.d - job.pad[0], job.in[0]);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t line = r0 + r < needed ? map_index(job.mode, at.y - job.pad[1] + r0 + r, job.in[1]) : -1;
      s.row_offset[r] = plane < 0 || line < 0 ? kZeroRow : plane * job.is.s[0] + line * job.is.s[1];
    }
  }
  // The columns that the tile's outputs read; those beyond count as zeros.
  int64_t needed_columns(const Tile& at) const { return at.columns + reach(run.job, 2) - 1; }
  int64_t image_columns(const Tile& at) const {
    return std::min(run.job.in[2], at.x - run.job.pad[2] + needed_columns(at));
  }
  int64_t* columns_of(const Tile& at, int64_t c0, int64_t columns) const {
    const DenseJob& job = run.job;
    if (job.mode == PaddingMode::zeros) return nullptr;
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t column = std::min(c0 + i, needed_columns(at) - 1) + at.x - job.pad[2];
      s.column_map[i] = std::clamp<int64_t>(map_index(job.mode, column, job.in[2]), 0, job.in[2] - 1);
    }
    return s.column_map;
  }
  const T* image(int64_t c) const {
    return static_cast<const T*>(run.job.input) + batch.n * run.job.is.n + c * run.job.is.c;
  }

  int64_t most_columns() const { return std::min(run.job.out[2], kPieceColumns); }
  void zero(T* part) const { std::fill_n(part, tiles.rows * tiles.columns * ctx.machine.lanes, T{0}); }

  void load_channels(int64_t index, T* to) const {
    const DenseJob& job = run.job;
    const int64_t W = ctx.machine.lanes, channels = batch.lanes;
    if (index >= tile_count(job, tiles)) return zero(to);
    const Tile at = tile_at(job, tiles, index);
    rows_of(at, 0, frame.rows);
    PixelSlabArgs<T> p{};
    p.slab = to, p.source = image(batch.c0);
    p.channel_stride = job.is.c, p.column_stride = job.is.s[2], p.channels = channels;
    p.row_offset = s.row_offset, p.rows = frame.rows, p.columns = frame.columns;
    p.first = at.x - job.pad[2], p.image_columns = image_columns(at);
    p.column_map = columns_of(at, 0, frame.columns);
    p.map = map_at(ctx.map, batch.n, ctx.gate_batch_stride, batch.c0);
    if (p.map.gate) {
      for (int64_t c = 0; c < channels; ++c) s.gates[c] = p.map.gate[c * p.map.gate_stride];
      p.map.gate = s.gates, p.map.gate_stride = 1;
    }
    ctx.kernels.fill_pixel_slab(p);
    // Pixels of fewer channels are moved apart, the last first.
    for (int64_t i = frame.rows * frame.columns; channels < W && i-- > 0;) {
      T* pixel = to + i * W;
      for (int64_t c = W; c-- > channels;) pixel[c] = 0;
      for (int64_t c = channels; c-- > 0;) pixel[c] = to[i * channels + c];
    }
  }

  void load_tiles(int part, T* to) const {
    const DenseJob& job = run.job;
    const int64_t W = ctx.machine.lanes, count = tile_count(job, tiles);
    for (int64_t l = 0; l < W; ++l) s.lanes[l] = s.band + l * frame.lane_pitch;
    SlabArgs<T> p{};
    const int32_t phase = 0;
    p.source = image(batch.c0);
    p.channel_stride = job.is.c, p.column_stride = job.is.s[2], p.channels = 1;
    p.row_offset = s.row_offset;
    p.phases = &phase, p.phase_count = 1, p.stride = 1;
    p.map = map_at(ctx.map, batch.n, ctx.gate_batch_stride, batch.c0);
    for (int64_t r = 0; r < frame.rows; r += frame.band_rows)
      for (int64_t c = 0; c < frame.columns; c += frame.band_columns) {
        const int64_t rows = std::min(frame.band_rows, frame.rows - r);
        const int64_t columns = std::min(frame.band_columns, frame.columns - c);
        for (int64_t l = 0; l < W; ++l) {
          T* lane = s.band + l * frame.lane_pitch;
          const int64_t index = tile(l, part);
          if (l >= batch.lanes || index >= count) {
            std::fill_n(lane, rows * columns, T{0});
            continue;
          }
          const Tile at = tile_at(job, tiles, index);
          rows_of(at, r, rows);
          p.slab = lane;
          p.rows = rows, p.row_pitch = p.phase_pitch = p.phase_length = columns;
          p.first = at.x - job.pad[2] + c, p.image_columns = image_columns(at);
          p.column_map = columns_of(at, c, columns);
          ctx.kernels.fill_slab(p);
        }
        const Segment all{0, 0, rows * columns};
        PackTransposedArgs<T> q{};
        q.panel = to + (r * frame.columns + c) * W;
        q.source = s.lanes, q.segments = &all, q.segment_count = 1, q.columns = W;
        ctx.kernels.pack_transposed(q);
      }
  }

  // The columns of a tile that are not padding for certain.
  void columns_inside(int64_t index, int64_t* first, int64_t* end) const {
    const DenseJob& job = run.job;
    if (index >= tile_count(job, tiles)) return;
    const Tile at = tile_at(job, tiles, index);
    int64_t lo = 0, hi = frame.columns;
    if (job.mode == PaddingMode::zeros) {
      lo = std::clamp<int64_t>(job.pad[2] - at.x, 0, frame.columns);
      hi = std::clamp<int64_t>(image_columns(at) - at.x + job.pad[2], lo, frame.columns);
    }
    *first = std::min(*first, lo), *end = std::max(*end, hi);
  }

  // Epilogue and output by the direct product with a filter of one tap, a one, of channels [c0, c1) of a part of a
  // tile: rows [y, y + rows) and columns [x, x + columns) of the output. Element (row, column) of channel c0 is at
  // from + row * row_step + column * column_step.
  void finish(const Tile& at, int64_t c0, int64_t c1, int64_t y, int64_t rows, int64_t x, int64_t columns,
              const T* from, int64_t channel_step, int64_t row_step, int64_t column_step, Run<T>& one,
              Arena arena) const {
    DenseJob& job = one.job;
    job.pad[0] = at.d, job.pad[1] = y, job.pad[2] = x;
    job.in[0] = 1, job.in[1] = rows, job.in[2] = columns;
    job.is = {0, channel_step, {0, row_step, column_step}};
    job.input = from - c0 * channel_step;
    one.packed = s.ones - c0;
    const int64_t row = at.d * job.out[1] + y;
    run_depthwise_piece(
        one, plain, {batch.n, c0, c1, row, row + rows, x, x + columns, ctx.machine.lanes, most_columns()}, arena, true);
  }

  void store_channels(int64_t index, const T* from, int64_t lane0, int64_t lane1, Run<T>& one, Arena arena) const {
    const int64_t W = ctx.machine.lanes, c0 = batch.c0 + lane0, c1 = batch.c0 + lane1;
    const Tile at = tile_at(run.job, tiles, index);
    if (run.choice.role == Role::pixel_rows) {
      for (int64_t x = 0; x < at.columns; x += kPieceColumns)
        finish(at, c0, c1, at.y, at.rows, at.x + x, std::min(kPieceColumns, at.columns - x), from + x * W + lane0, 1,
               frame.columns * W, W, one, arena);
      return;
    }
    for (int64_t r = 0; r < at.rows; r += frame.band_rows)
      for (int64_t x = 0; x < at.columns; x += frame.band_columns) {
        const int64_t rows = std::min(frame.band_rows, at.rows - r);
        const int64_t columns = std::min(frame.band_columns, at.columns - x);
        unpack(from + (r * frame.columns + x) * W + lane0, lane1 - lane0, rows, columns);
        finish(at, c0, c1, at.y + r, rows, at.x + x, columns, s.band, frame.lane_pitch, columns, 1, one, arena);
      }
  }

  // A part of a tile, lanes one after the other.
  void unpack(const T* from, int64_t lanes, int64_t rows, int64_t columns) const {
    const int64_t W = ctx.machine.lanes;
    for (int64_t r = 0; r < rows; ++r)
      move_out(ctx.kernels, s.band + r * columns, const_cast<T*>(from) + r * frame.columns * W, W, s.steps,
               s.lane_offset, columns, lanes, false);
  }

  void store_tiles(int part, const T* from, const bool* bad, Run<T>& one, Arena arena) const {
    const int64_t W = ctx.machine.lanes, count = tile_count(run.job, tiles);
    for (int64_t r = 0; r < tiles.out_rows; r += frame.band_rows)
      for (int64_t x = 0; x < tiles.out_columns; x += frame.band_columns) {
        const int64_t most_rows = std::min(frame.band_rows, tiles.out_rows - r);
        const int64_t most_columns = std::min(frame.band_columns, tiles.out_columns - x);
        unpack(from + (r * frame.columns + x) * W, batch.lanes, most_rows, most_columns);
        for (int64_t l = 0; l < batch.lanes; ++l) {
          if (bad[l] || tile(l, part) >= count) continue;
          const Tile at = tile_at(run.job, tiles, tile(l, part));
          const int64_t rows = std::min(most_rows, at.rows - r), columns = std::min(most_columns, at.columns - x);
          if (rows > 0 && columns > 0)
            finish(at, batch.c0, batch.c0 + 1, at.y + r, rows, at.x + x, columns, s.band + l * frame.lane_pitch, 0,
                   most_columns, 1, one, arena);
        }
      }
  }

  // Both tiles of a lane, directly.
  void recompute(int64_t lane, const Run<T>& direct, Arena arena) const {
    const int64_t c = channel(lane);
    for (int part = 0; part < 2; ++part) {
      if (tile(lane, part) >= tile_count(run.job, tiles)) continue;
      const Tile at = tile_at(run.job, tiles, tile(lane, part));
      const int64_t row = at.d * run.job.out[1] + at.y;
      for (int64_t x = 0; x < at.columns; x += kPieceColumns) {
        Arena piece = arena;
        run_depthwise_piece(direct, ctx,
                            {batch.n, c, c + 1, row, row + at.rows, at.x + x,
                             at.x + std::min(x + kPieceColumns, at.columns), 1, most_columns()},
                            piece, false);
      }
    }
  }
};

// Without the spectra: what the direct product reads.
template <class T>
Choice direct_choice(const Choice& choice) {
  Choice c = choice;
  c.fft = {};
  return c;
}

template <class T>
Run<T> direct_run(const Run<T>& run) {
  Run<T> r = run;
  r.choice = direct_choice<T>(run.choice);
  r.skip_zeros = false;
  // Where filters were packed for it, they come before the spectra.
  if (run.direct_size == 0) r.packed = nullptr;
  return r;
}

template <class T>
Run<T> one_tap(const Run<T>& run) {
  Run<T> r = run;
  r.choice = direct_choice<T>(run.choice);
  r.choice.copy_pixels = false;
  r.skip_zeros = false;
  DenseJob& job = r.job;
  job.mode = PaddingMode::zeros;
  for (int a = 0; a < 3; ++a) {
    job.filter[a] = job.stride[a] = job.dilation[a] = 1;
    job.in[a] = job.out[a];
  }
  return r;
}

template <class T>
int64_t piece_scratch(const Run<T>& run, const Machine& m) {
  // The one tap of a finished piece reads rows of the tile.
  Run<T> one = one_tap(run);
  const Choice direct = direct_choice<T>(run.choice);
  return std::max(depthwise_piece_scratch<T>(one.job, one.choice, m, kPieceColumns, m.lanes),
                  depthwise_piece_scratch<T>(run.job, direct, m, kPieceColumns, 1));
}

template <class T>
int64_t scratch_bytes(const Run<T>& run, const Machine& m) {
  Arena count(nullptr);
  Memory<T>(run.job, run.choice.fft, m, count);
  return count.size() + piece_scratch(run, m);
}

template <class T>
void run_batch(const Run<T>& run, const Run<T>& direct, const Context<T>& ctx, FftArgs<T> g, const Batch& batch,
               void* memory, int64_t bytes) {
  const FftTiles& t = run.choice.fft;
  const Machine& m = ctx.machine;
  const int64_t W = m.lanes, n = t.rows * t.columns;
  Arena arena(memory, bytes);
  const Memory<T> s(run.job, t, m, arena);
  const InputMap<T> none{};
  const Context<T> plain{m, ctx.kernels, ctx.finish, none, 0, ctx.accumulate};
  const Task<T> task{run, ctx, plain, t, batch, Frame(t, m, sizeof(T)), s};
  std::fill_n(s.ones, W, T{1});
  for (int64_t i = 0; i < task.frame.band_columns; ++i) s.steps[i] = i;
  for (int64_t l = 0; l < W; ++l) s.lane_offset[l] = l * task.frame.lane_pitch;
  g.first_column = t.columns, g.end_column = 0;
  for (int part = 0; part < 2; ++part) {
    T* to = part ? s.im : s.re;
    if (t.shared)
      task.load_tiles(part, to);
    else
      task.load_channels(task.tile(0, part), to);
    for (int64_t l = 0; l < (t.shared ? batch.lanes : 1); ++l)
      if (!t.linear) task.columns_inside(task.tile(l, part), &g.first_column, &g.end_column);
  }
  if (t.linear) g.first_column = 0, g.end_column = t.columns;
  g.out_columns = t.linear ? t.columns : std::min(t.out_columns, run.job.out[2]);
  g.re = s.re, g.im = s.im, g.line = s.line, g.finite = s.finite;
  g.shared = t.shared;
  const T* spectra = run.packed + run.direct_size;
  g.spectrum = const_cast<T*>(spectra) + batch.c0 * 2 * n;
  ctx.kernels.fft_convolve(g);
  bool bad[64];
  bool any = false;
  for (int64_t l = 0; l < batch.lanes; ++l) any = (bad[l] = !(s.finite[l] + s.finite[W + l] == 0)) || any;
  Run<T> one = one_tap(run);
  for (int part = 0; part < 2; ++part) {
    const T* from = part ? s.im : s.re;
    if (t.shared) {
      task.store_tiles(part, from, bad, one, arena);
      continue;
    }
    if (task.tile(0, part) >= tile_count(run.job, t)) continue;
    for (int64_t l = 0, end; l < batch.lanes; l = end) {
      for (end = l + 1; end < batch.lanes && bad[end] == bad[l];) ++end;
      if (!bad[l]) task.store_channels(task.tile(0, part), from, l, end, one, arena);
    }
  }
  for (int64_t l = 0; any && l < batch.lanes; ++l)
    if (bad[l]) task.recompute(l, direct, arena);
}

int64_t batches_of_units(const DenseJob& job, const FftTiles& t, const Machine& m) {
  const int64_t units = ceil_div(tile_count(job, t), 2);
  return t.shared ? ceil_div(units, m.lanes) : units;
}

int64_t batches_of_channels(const DenseJob& job, const FftTiles& t, const Machine& m) {
  return t.shared ? job.G : ceil_div(job.G, m.lanes);
}

}  // namespace

int64_t spectra_size(const DenseJob& job, const Choice& choice, const Machine& m) {
  const FftTiles& t = choice.fft;
  return (t.shared ? job.G : round_up(job.G, m.lanes)) * t.rows * t.columns * 2;
}

template <class T>
Status pack_spectra(const DenseJob& job, const Choice& choice, const Machine& m, const KernelTable<T>& kernels,
                    T* spectra) {
  const FftTiles& t = choice.fft;
  const int64_t W = m.lanes, n = t.rows * t.columns, blocks = ceil_div(job.G, W);
  FftArgs<T> g{};
  if (!make_tables(t, m, &g)) return Status::out_of_memory;
  Arena count(nullptr);
  Memory<T>(job, t, m, count);
  if (t.shared) count.take<T>(2 * n * W);
  const int64_t bytes = count.size();
  std::atomic<bool> failed{false};
  const Status status = parallel_for(blocks, static_cast<double>(blocks * n * W) * 2, [&](int64_t block, int) {
    Workspace scratch(static_cast<size_t>(bytes));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    Arena arena(scratch.data(), bytes);
    const Memory<T> s(job, t, m, arena);
    T* to = t.shared ? arena.take<T>(2 * n * W) : spectra + block * 2 * n * W;
    make_spectra(job, t, m, kernels, g, block * W, s, to);
    for (int64_t c = block * W; t.shared && c < std::min(job.G, (block + 1) * W); ++c)
      for (int64_t i = 0; i < 2 * n; ++i) spectra[c * 2 * n + i] = to[i * W + c - block * W];
  });
  return failed ? Status::out_of_memory : status;
}

template <class T>
Status run_fft(const std::vector<Run<T>>& runs, const Machine& machine, const KernelTable<T>& kernels,
               const Finish<T>& finish, const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate) {
  const Context<T> ctx{machine, kernels, finish, map, gate_batch_stride, accumulate};
  for (const Run<T>& run : runs) {
    const DenseJob& job = run.job;
    const FftTiles& t = run.choice.fft;
    FftArgs<T> g{};
    if (!make_tables(t, machine, &g)) return Status::out_of_memory;
    const Run<T> direct = direct_run(run);
    const int64_t units = batches_of_units(job, t, machine), channels = batches_of_channels(job, t, machine);
    const int64_t bytes = scratch_bytes(run, machine);
    const double work = static_cast<double>(job.N * units * channels) * static_cast<double>(t.rows * t.columns) * 20;
    std::atomic<bool> failed{false};
    // The units of a block of channels follow one another: they share its spectra.
    const Status status = parallel_for(job.N * units * channels, work, [&](int64_t i, int) {
      Workspace scratch(static_cast<size_t>(bytes));
      if (!scratch) {
        failed.store(true, std::memory_order_relaxed);
        return;
      }
      const int64_t unit = i % units, block = i / units % channels, W = machine.lanes;
      Batch batch{i / units / channels, t.shared ? block : block * W, t.shared ? unit * W : unit, W};
      const int64_t all = ceil_div(tile_count(job, t), 2);
      batch.lanes = t.shared ? std::min(W, all - batch.u0) : std::min(W, job.G - batch.c0);
      run_batch(run, direct, ctx, g, batch, scratch.data(), bytes);
    });
    if (failed) return Status::out_of_memory;
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

template <class T>
int64_t fft_workspace(const DenseJob& job, const Choice& choice, const Machine& machine) {
  Run<T> run;
  run.job = job, run.choice = choice;
  return scratch_bytes(run, machine);
}

#define FASTCONV_INSTANTIATE(T)                                                                                   \
  template Status pack_spectra<T>(const DenseJob&, const Choice&, const Machine&, const KernelTable<T>&, T*);     \
  template Status run_fft<T>(const std::vector<Run<T>>&, const Machine&, const KernelTable<T>&, const Finish<T>&, \
                             const InputMap<T>&, int64_t, bool);                                                  \
  template int64_t fft_workspace<T>(const DenseJob&, const Choice&, const Machine&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)
#undef FASTCONV_INSTANTIATE

}  // namespace fastconv::ops
