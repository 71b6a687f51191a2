#include "ops/depthwise.h"

#include <atomic>
#include <new>

#include "ops/fft.h"
#include "ops/memory.h"
#include "ops/parallel.h"
#include "ops/slab.h"

namespace fastconv::ops {
namespace {

// About 15 G multiply-adds a second and core; only the order of magnitude matters.
double nanoseconds(const DenseJob& job) {
  return static_cast<double>(job.N) * job.G * job.pixels() * (2 + job.taps()) * 0.07;
}

// How a product is cut: tasks are an image, a range of channels, a range of rows and one of columns.
struct Cut {
  int64_t channels, rows, columns;  // of a task at most
  int64_t channel_parts, row_parts, column_parts, tasks;

  // `phases`: one of several products that write between each other's pixels: a task's output stays in a quarter of L2.
  Cut(const DenseJob& job, const Choice& choice, const Machine& m, int64_t item_size, int64_t want, bool phases) {
    const int64_t line = 64 / item_size, lines = job.out[0] * job.out[1];
    const bool lanes_are_channels = choice.role == Role::pixel_rows;
    channels = std::max<int64_t>(job.G, 1), rows = std::max<int64_t>(lines, 1),
    columns = std::max<int64_t>(job.out[2], 1);
    const bool copied = choice.copy_pixels || job.mode != PaddingMode::zeros;
    if (lanes_are_channels && lines == 1 && job.filter[0] * job.filter[1] == 1 && !copied) {
      // No row is read again: whole pixels, as they lie in memory, as many as fit a quarter of L2 (4 taps, 2048
      // channels of 4096 pixels, Zen 4: 2.8 times as fast as 48 channels at a time, which are 8 KB apart).
      const int64_t reach = (job.filter[2] - 1) * job.dilation[2] + 1;
      const int64_t fit = m.l2 / 4 / (item_size * channels * job.stride[2]);
      columns = std::min(columns, std::clamp<int64_t>(fit, std::clamp<int64_t>(8 * reach, 32, 1024), 1024));
    } else if (lanes_are_channels) {
      // The input rows that one output row reads, and the next one again, stay in half of L2 (a copy of them in a
      // quarter).
      const int64_t reach =
          (std::min<int64_t>(columns, 1024) - 1) * job.stride[2] + (job.filter[2] - 1) * job.dilation[2] + 1;
      const int64_t bytes = item_size * std::max<int64_t>(1, reach) * (job.filter[0] * job.filter[1] + 1);
      const int64_t fit = m.l2 / (choice.copy_pixels ? 4 : 2) / bytes / line * line;
      channels = std::min(channels, std::max(line, fit));
      columns = std::min<int64_t>(columns, 1024);
    } else {
      columns = std::min<int64_t>(columns, 4096);
      const int64_t plane = std::max<int64_t>(1, job.pixels() * item_size);
      if (phases) channels = std::clamp<int64_t>(m.l2 / 4 / plane, 1, channels);
    }
    auto count = [&] {
      channel_parts = ceil_div(job.G, channels), row_parts = ceil_div(lines, rows);
      column_parts = ceil_div(job.out[2], columns);
      tasks = job.N * channel_parts * row_parts * column_parts;
    };
    count();
    // More tasks: fewer channels first, which repeats no work; then fewer rows.
    const int64_t least = lanes_are_channels ? 4 * line : 1;
    if (tasks > 0 && tasks < want) {
      channels = std::max(std::min(channels, least), round_up(ceil_div(channels, ceil_div(want, tasks)), least));
      count();
    }
    if (tasks > 0 && tasks < want) {
      rows = std::max<int64_t>(std::min<int64_t>(rows, 4), ceil_div(rows, ceil_div(want, tasks)));
      count();
    }
    if (tasks > 0 && tasks < want) {
      columns = std::max<int64_t>(std::min<int64_t>(columns, 256), ceil_div(columns, ceil_div(want, tasks)));
      count();
    }
  }
};

using Piece = DepthwisePiece;

Piece piece_of(const DenseJob& job, const Cut& cut, int64_t i) {
  Piece p{};
  const int64_t column = i % cut.column_parts, row = i / cut.column_parts % cut.row_parts;
  const int64_t channel = i / cut.column_parts / cut.row_parts % cut.channel_parts;
  p.n = i / cut.column_parts / cut.row_parts / cut.channel_parts;
  p.c0 = channel * cut.channels, p.c1 = std::min(job.G, p.c0 + cut.channels);
  p.row0 = row * cut.rows, p.row1 = std::min(job.out[0] * job.out[1], p.row0 + cut.rows);
  p.q0 = column * cut.columns, p.q1 = std::min(job.out[2], p.q0 + cut.columns);
  p.most_channels = cut.channels, p.most_columns = cut.columns;
  return p;
}

template <class T>
T* pixel(const void* base, const Strides& s, int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) {
  return static_cast<T*>(const_cast<void*>(base)) + n * s.n + c * s.c + d * s.s[0] + h * s.s[1] + w * s.s[2];
}

// The planes [first, last] of the filter that meet the image at an output plane, or all: one at least is gone through,
// since it writes the output.
struct FilterPlanes {
  int64_t first = 0, last;
  FilterPlanes(const DenseJob& job, int64_t d, bool skip) : last(job.filter[0] - 1) {
    const int64_t d0 = d * job.stride[0] - job.pad[0], step = job.dilation[0];
    while (skip && first < last && d0 + first * step < 0) ++first;
    while (skip && first < last && d0 + last * step >= job.in[0]) --last;
  }
};

// --- Lanes are channels

// Elements between the taps of packed filters. Those of large filters keep off multiples of sixteen vectors, which fall
// into few sets of the first-level cache (13 x 13 on 7 x 7, 1024 channels, Zen 4 in lock step: 1.4 to 2.2 times as
// fast).
int64_t filter_pitch(const DenseJob& job, const Machine& m) {
  const int64_t pitch = round_up(job.G, m.lanes);
  return job.taps() > 49 && pitch % (16 * m.lanes) == 0 ? pitch + m.lanes : pitch;
}

// Output rows copied at a time, so that neighbouring ones share their input, within a quarter of L2.
int64_t rows_copied(const DenseJob& job, const Machine& m, int64_t channels, int64_t columns, int64_t item_size) {
  const int64_t width = (columns - 1) * job.stride[2] + (job.filter[2] - 1) * job.dilation[2] + 1;
  const int64_t height = (job.filter[1] - 1) * job.dilation[1] + 1;
  const int64_t fit = m.l2 / 4 / std::max<int64_t>(1, width * channels * job.filter[0] * item_size);
  return std::clamp<int64_t>((fit - height) / job.stride[1] + 1, 1, 8);
}

// Whether filters of several planes are gone through plane by plane, whose sums go on from the output: those that have
// a window of their own in two dimensions (3x3x3 on Zen 4 in lock step: 1 to 1.6 times as fast).
bool by_plane(const DenseJob& job, const Choice& choice, const Machine& m, bool accumulate) {
  return job.filter[0] > 1 && !accumulate && job.filter[1] == 3 && job.filter[2] == 3 &&
         job.stride[1] == job.stride[2] && job.stride[1] <= 2 && job.dilation[1] == 1 && job.dilation[2] == 1 &&
         job.out[1] > 7 && m.isa == Isa::avx512 && job.mode == PaddingMode::zeros && !choice.copy_pixels &&
         !choice.move_output && !choice.move_residual;
}

// Entries of the table of input rows for so many rows of output.
int64_t input_lines(const DenseJob& job, int64_t rows, bool planes = false) {
  if (job.filter[0] > 1 && !planes) return job.filter[0] * job.filter[1];
  return std::max<int64_t>(0, (rows - 1) * job.stride[1] + (job.filter[1] - 1) * job.dilation[1] + 1);
}

template <class T>
struct ChannelsTask {
  const T** rows;
  int64_t* row_pitch;
  const T** weights;
  T* zeros;

  ChannelsTask(int64_t lines, int64_t filter_lines, int64_t channels, Arena& arena)
      : rows(arena.take<const T*>(lines)),
        row_pitch(arena.take<int64_t>(lines)),
        weights(arena.take<const T*>(filter_lines)),
        zeros(arena.take<T>(channels)) {}
};

// Rows of output that one call of the kernel computes: those of one plane whose rows of input are a table of a few KB.
// What is added to several times stays in a quarter of L2, or is as tall as a window.
int64_t rows_at_once(const DenseJob& job, bool planes, const Machine& m, int64_t channels, int64_t columns,
                     int64_t item_size) {
  if (job.filter[0] <= 1) return std::clamp<int64_t>(job.out[1], 1, 64);
  if (!planes) return 1;
  return std::min(job.out[1], std::clamp<int64_t>(m.l2 / 4 / (channels * columns * item_size), 8, 64));
}

template <class T>
void run_channels(const Run<T>& run, const Context<T>& ctx, const Piece& task, Arena& arena) {
  const DenseJob& job = run.job;
  const Choice& choice = run.choice;
  const int64_t channels = task.c1 - task.c0, q = task.q1 - task.q0;
  // A residue of the stride that no tap meets has no rows: its sums are zero.
  const int64_t lines = job.taps() > 0 ? job.filter[0] * job.filter[1] : 0;
  const int64_t W = ctx.machine.lanes, pitch = filter_pitch(job, ctx.machine);
  const bool copied = choice.copy_pixels || job.mode != PaddingMode::zeros;
  Moved<T> moved(job, choice, q, channels, W, arena);
  if (moved.output || moved.residual)
    for (int64_t i = 0; i < std::max(q, channels); ++i) {
      if (moved.output && i < q) moved.row_offset[i] = i * job.os.s[2];
      if (moved.output && i < channels) moved.column_offset[i] = i * job.os.c;
      if (moved.residual && i < q) moved.residual_row[i] = i * job.rs.s[2];
      if (moved.residual && i < channels) moved.residual_column[i] = i * job.rs.c;
    }
  const bool planes = by_plane(job, choice, ctx.machine, ctx.accumulate);
  int64_t band = std::min(rows_at_once(job, planes, ctx.machine, task.most_channels, task.most_columns, sizeof(T)),
                          task.row1 - task.row0);
  // As many as in the largest piece: a smaller one might have room for more rows, but not the scratch.
  if (copied) band = std::min(band, rows_copied(job, ctx.machine, task.most_channels, task.most_columns, sizeof(T)));
  if (moved.output || moved.residual) band = 1;
  ChannelsTask<T> s(input_lines(job, band, planes), std::max<int64_t>(lines, 1), channels, arena);
  std::fill_n(s.zeros, channels, T{0});
  for (int64_t r = 0; r < lines; ++r) s.weights[r] = run.packed + r * job.filter[2] * choice.group * pitch + task.c0;

  DepthwiseChannelsArgs<T> g{};
  g.rows = s.rows, g.row_pitch = s.row_pitch, g.weights = s.weights;
  const bool one_row = job.filter[0] > 1 && !planes;
  g.filter_rows = planes ? job.filter[1] : lines;
  g.row_stride = one_row ? 0 : job.stride[1], g.row_dilation = one_row ? 1 : job.dilation[1];
  g.weight_pitch = pitch, g.taps = job.filter[2], g.stride = job.stride[2], g.dilation = job.dilation[2];
  g.channels = channels, g.pixels = q, g.group = choice.group;
  // A broadcast image has columns 0 elements apart, as rows of zeros have.
  g.skip_zeros = run.skip_zeros && (copied || job.is.s[2] != 0);
  g.a = ctx.finish.a, g.b = ctx.finish.b;
  g.accumulate = ctx.accumulate && !moved.output;

  DenseJob part = job;
  part.pad[2] -= task.q0 * job.stride[2];
  part.out[2] = q;
  const InputMap<T> map = map_at(ctx.map, task.n, ctx.gate_batch_stride, task.c0);
  const T* image = pixel<T>(job.input, job.is, task.n, task.c0, 0, 0, 0);
  for (int64_t row = task.row0, end; row < task.row1; row = end) {
    const int64_t d = row / job.out[1], h = row % job.out[1];
    end = std::min({task.row1, row + band, (d + 1) * job.out[1]});
    Arena inner = arena;
    // A copy of the input with its padding and prologue: the planes of the filter one after the other.
    const T* slab = nullptr;
    const SlabShape shape(part, row * q, end * q);
    if (copied && lines > 0) {
      T* to = inner.take<T>(shape.depth * shape.height * shape.padded_columns * channels);
      int64_t* offsets = inner.take<int64_t>(shape.depth * shape.height);
      int64_t* columns = job.mode == PaddingMode::zeros ? nullptr : inner.take<int64_t>(shape.padded_columns);
      T* gates = inner.take<T>(channels);
      shape.row_offsets(part, offsets);
      shape.column_map(part, columns);
      PixelSlabArgs<T> args{};
      args.slab = to, args.source = image;
      args.channel_stride = job.is.c, args.column_stride = job.is.s[2], args.channels = channels;
      args.row_offset = offsets, args.rows = shape.depth * shape.height;
      args.columns = shape.padded_columns, args.first = shape.first_column(part), args.image_columns = job.in[2];
      args.column_map = columns;
      args.map = map;
      if (map.gate) {
        for (int64_t c = 0; c < channels; ++c) gates[c] = map.gate[c * map.gate_stride];
        args.map.gate = gates, args.map.gate_stride = 1;
      }
      ctx.kernels.fill_pixel_slab(args);
      slab = to;
    }
    g.first_column = slab ? 0 : -part.pad[2];
    g.columns = slab ? shape.padded_columns : job.in[2];
    // The table of input rows: of one plane, from the first that is read; else those that the taps of one row read.
    auto set = [&](int64_t i, int64_t a, int64_t line, bool used) {
      const int64_t di = d * job.stride[0] - job.pad[0] + a * job.dilation[0];
      const int64_t hi = h * job.stride[1] - job.pad[1] + line;
      const bool zero = job.mode == PaddingMode::zeros && (di < 0 || di >= job.in[0] || hi < 0 || hi >= job.in[1]);
      if (!used || zero) {
        s.rows[i] = s.zeros, s.row_pitch[i] = 0;
      } else if (slab) {
        s.rows[i] = slab + (a * shape.height + line) * shape.padded_columns * channels, s.row_pitch[i] = channels;
      } else {
        s.rows[i] = image + di * job.is.s[0] + hi * job.is.s[1], s.row_pitch[i] = job.is.s[2];
      }
    };
    if (one_row) {
      for (int64_t a = 0; a < job.filter[0]; ++a)
        for (int64_t b = 0; b < job.filter[1]; ++b) set(a * job.filter[1] + b, a, b * job.dilation[1], true);
    } else if (lines > 0 && !planes) {
      for (int64_t i = 0; i < shape.height; ++i) set(i, 0, i, true);
    }
    g.out_rows = end - row;
    T* out = pixel<T>(job.output, job.os, task.n, task.c0, d, h, task.q0);
    g.out = moved.output ? moved.output : out;
    g.out_row_pitch = job.os.s[1];
    g.out_pitch = moved.output ? moved.pitch : job.os.s[2];
    if (job.has_residual) {
      T* residual = pixel<T>(job.residual, job.rs, task.n, task.c0, d, h, task.q0);
      if (moved.residual)
        move_in(ctx.kernels, residual, moved.residual, moved.pitch, moved.residual_row, moved.residual_column, q,
                channels);
      g.residual = moved.residual ? moved.residual : residual;
      g.residual_row_pitch = job.rs.s[1];
      g.residual_pitch = moved.residual ? moved.pitch : job.rs.s[2];
    }
    const T* const residual = g.residual;
    const FilterPlanes met(job, d, run.skip_zeros && planes);
    for (int64_t a = planes ? met.first : 0, last = planes ? met.last : 0; a <= last; ++a) {
      if (planes) {
        for (int64_t i = 0; i < shape.height; ++i) set(i, a, i, true);
        g.weights = s.weights + a * job.filter[1];
        g.resume = a > met.first;
      }
      g.scale = a == last && ctx.finish.scale ? ctx.finish.scale + task.c0 : nullptr;
      g.shift = a == last && ctx.finish.shift ? ctx.finish.shift + task.c0 : nullptr;
      g.residual = a == last ? residual : nullptr;
      g.activation = a == last ? ctx.finish.activation : 0;
      choice.group > 1 ? ctx.kernels.grouped_channels(g) : ctx.kernels.depthwise_channels(g);
    }
    if (moved.output)
      move_out(ctx.kernels, out, moved.output, moved.pitch, moved.row_offset, moved.column_offset, q, channels,
               ctx.accumulate);
  }
}

// --- Lanes are pixels

// Small square filters read the image in place; all others a copy, with its padding and prologue. Those of several
// planes do so plane by plane: the sums go on from the output, which stays near (3x3x3 on 56 x 56 and 112 x 112, Zen 4
// in lock step: 3.3 to 3.6 times as fast as a copy).
bool reads_in_place(const DenseJob& job, const Machine& m, bool mapped, bool accumulate = false) {
  const int64_t f = job.filter[2], s = job.stride[2];
  return (job.filter[0] == 1 || (job.filter[0] > 1 && !accumulate)) && job.filter[1] == f && job.stride[1] == s &&
         job.dilation[1] == 1 && job.dilation[2] == 1 && (((f == 3 || f == 5) && s <= 2) || (f == 7 && s == 1)) &&
         m.isa != Isa::portable && job.mode == PaddingMode::zeros && !mapped && (job.is.s[2] == 1 || job.in[2] == 1);
}

// Rows of output at a time of a slab, of one channel, that stays in half of L1; or eight, which the kernel takes
// together.
int64_t rows_of_slab(const DenseJob& job, const Machine& m, int64_t columns, int64_t item_size) {
  const int64_t width = (columns + (job.filter[2] - 1) * job.dilation[2] / job.stride[2]) *
                        std::min(job.stride[2], job.filter[2]) * job.filter[0];
  const int64_t fit = m.l1 / 2 / std::max<int64_t>(1, width * item_size) - (job.filter[1] - 1) * job.dilation[1];
  return std::min(job.out[1], std::max<int64_t>(8, fit / job.stride[1]));
}

// In place: as many as the table of rows has entries, since every beginning goes over rows that it has no sums for.
int64_t rows_in_place(const DenseJob& job) { return std::min<int64_t>(job.out[1], 512); }

template <class T>
struct PlanesTask {
  const T** rows;
  int64_t* row_offset;
  T* zeros;

  PlanesTask(const DenseJob& job, int64_t lines, int64_t columns, Arena& arena)
      : rows(arena.take<const T*>(lines)),
        row_offset(arena.take<int64_t>(job.filter[0] * job.filter[1])),
        zeros(arena.take<T>(columns)) {}
};

// Columns of the image that so many pixels of a row read at most in whole vectors, when it is read in place.
int64_t columns_read(const DenseJob& job, const Machine& m, int64_t pixels) {
  return std::min(job.in[2], (pixels + 2 * m.lanes) * job.stride[2] + job.filter[2]);
}

// Rows of the table: of the image, or of the slab.
int64_t plane_lines(const DenseJob& job, int64_t rows) {
  return std::max<int64_t>(1, job.filter[0] * ((rows - 1) * job.stride[1] + (job.filter[1] - 1) * job.dilation[1] + 1));
}

template <class T>
void run_planes(const Run<T>& run, const Context<T>& ctx, const Piece& task, Arena& arena, bool spare = false) {
  const DenseJob& job = run.job;
  const Choice& choice = run.choice;
  const int64_t q = task.q1 - task.q0, lines = job.filter[0] * job.filter[1], W = ctx.machine.lanes;
  const bool in_place = reads_in_place(job, ctx.machine, ctx.map.active, ctx.accumulate);
  // One tap out of rows that are long enough to be those of a slab.
  const bool rows_are_slab = spare && job.taps() == 1 && job.is.s[2] == 1 && !ctx.map.active;
  const bool moves = choice.move_output || (job.has_residual && choice.move_residual);
  const int64_t most =
      std::min(in_place && !moves ? rows_in_place(job) : rows_of_slab(job, ctx.machine, task.most_columns, sizeof(T)),
               task.row1 - task.row0);
  Moved<T> moved(job, choice, most, q, W, arena);
  if (moved.output || moved.residual)
    for (int64_t i = 0; i < std::max(q, most); ++i) {
      if (moved.output && i < most) moved.row_offset[i] = i * job.os.s[1];
      if (moved.output && i < q) moved.column_offset[i] = i * job.os.s[2];
      if (moved.residual && i < most) moved.residual_row[i] = i * job.rs.s[1];
      if (moved.residual && i < q) moved.residual_column[i] = i * job.rs.s[2];
    }
  PlanesTask<T> s(job, plane_lines(job, most), columns_read(job, ctx.machine, q), arena);
  if (in_place) std::fill_n(s.zeros, columns_read(job, ctx.machine, q), T{0});
  DenseJob part = job;
  part.pad[2] -= task.q0 * job.stride[2];
  part.out[2] = q;
  DepthwisePlanesArgs<T> g{};
  g.rows = s.rows, g.row_offset = s.row_offset, g.zero_row = s.zeros;
  g.filter_rows = in_place         ? job.filter[1]
                  : job.taps() > 0 ? lines
                                   : 0,
  g.taps = job.filter[2], g.stride = job.stride[2];
  g.row_stride = job.stride[1];
  // Columns are counted from the first that the task reads, so that its row of zeros need not be longer.
  const int64_t passed = std::clamp<int64_t>(-part.pad[2], 0, job.in[2]);
  g.first_column = -part.pad[2] - passed;
  g.columns = std::min(job.in[2] - passed, columns_read(job, ctx.machine, q));
  g.pixels = q;
  g.skip_zeros = run.skip_zeros;
  g.a = ctx.finish.a, g.b = ctx.finish.b;
  g.accumulate = ctx.accumulate && !moved.output;
  const int64_t no_offset = 0;
  // In place, all channels of the task are one call, unless their output has to be moved.
  const int64_t channels = (in_place || rows_are_slab) && !moves && job.filter[0] <= 1 ? task.c1 - task.c0 : 1;
  for (int64_t row = task.row0, end; row < task.row1; row = end) {
    const int64_t d = row / job.out[1], h = row % job.out[1];
    end = std::min({task.row1, row + most, (d + 1) * job.out[1]});
    Arena inner = arena;
    alignas(Slab<T>) unsigned char storage[sizeof(Slab<T>)];
    Slab<T>* slab = nullptr;
    g.out_rows = end - row;
    if (in_place) {
      g.channel_pitch = job.is.c;
    } else if (rows_are_slab) {
      g.column_offset = &no_offset;
      g.channel_pitch = job.is.c;
      s.row_offset[0] = 0;
    } else {
      g.column_offset = &no_offset;
      if (job.taps() > 0) {
        slab = new (storage) Slab<T>(part, row * q, end * q, 1, W, inner);
        slab->prepare(part, row * q, end * q);
        const SlabShape& shape = slab->shape();
        g.column_offset = slab->tap_offset();
        for (int64_t r = 0; r < lines; ++r)
          s.row_offset[r] = r / job.filter[1] * shape.height + r % job.filter[1] * job.dilation[1];
        for (int64_t i = 0; i < shape.depth * shape.height; ++i) s.rows[i] = slab->data() + i * shape.row_pitch;
      }
    }
    for (int64_t c = task.c0; c < task.c1; c += channels) {
      const T* image = pixel<T>(job.input, job.is, task.n, c, 0, 0, 0);
      if (rows_are_slab) {
        for (int64_t i = 0; i < g.out_rows; ++i) s.rows[i] = image + (h - job.pad[1] + i) * job.is.s[1];
      } else if (slab) {
        slab->fill(ctx.kernels, image, 1, map_at(ctx.map, task.n, ctx.gate_batch_stride, c));
      }
      g.channels = channels;
      g.weights = (run.packed ? run.packed : static_cast<const T*>(job.weight)) + c * job.taps();
      T* out = pixel<T>(job.output, job.os, task.n, c, d, h, task.q0);
      g.out = moved.output ? moved.output : out;
      g.out_channel_pitch = job.os.c;
      g.out_row_pitch = moved.output ? moved.pitch : job.os.s[1];
      if (job.has_residual) {
        T* residual = pixel<T>(job.residual, job.rs, task.n, c, d, h, task.q0);
        if (moved.residual)
          move_in(ctx.kernels, residual, moved.residual, moved.pitch, moved.residual_row, moved.residual_column,
                  g.out_rows, q);
        g.residual = moved.residual ? moved.residual : residual;
        g.residual_channel_pitch = job.rs.c;
        g.residual_row_pitch = moved.residual ? moved.pitch : job.rs.s[1];
      }
      auto finish = [&] {
        g.scale = ctx.finish.scale ? ctx.finish.scale + c : nullptr;
        g.shift = ctx.finish.shift ? ctx.finish.shift + c : nullptr;
        g.activation = ctx.finish.activation;
        ctx.kernels.depthwise_planes(g);
      };
      if (in_place) {
        const FilterPlanes met(job, d, run.skip_zeros);
        const T* const residual = g.residual;
        g.weights += met.first * job.filter[1] * job.filter[2];
        g.scale = g.shift = g.residual = nullptr, g.activation = 0, g.resume = false;
        for (int64_t a = met.first; a <= met.last; ++a) {
          const int64_t di = d * job.stride[0] - job.pad[0] + a * job.dilation[0];
          for (int64_t i = 0; i < (g.out_rows - 1) * job.stride[1] + job.filter[1]; ++i) {
            const int64_t hi = h * job.stride[1] - job.pad[1] + i;
            const bool zero = di < 0 || di >= job.in[0] || hi < 0 || hi >= job.in[1];
            s.rows[i] = zero ? s.zeros : image + di * job.is.s[0] + hi * job.is.s[1] + passed;
          }
          g.residual = a == met.last ? residual : nullptr;
          a == met.last ? finish() : ctx.kernels.depthwise_planes(g);
          g.resume = true;
          g.weights += job.filter[1] * job.filter[2];
        }
      } else {
        finish();
      }
      if (moved.output)
        move_out(ctx.kernels, out, moved.output, moved.pitch, moved.row_offset, moved.column_offset, g.out_rows, q,
                 ctx.accumulate);
    }
  }
}

// Scratch of the largest task, found by carving a block that is not there.
template <class T>
int64_t scratch_bytes(const DenseJob& job, const Choice& choice, const Machine& m, int64_t most_columns,
                      int64_t most_channels) {
  Arena count(nullptr);
  const int64_t lines = job.filter[0] * job.filter[1], q = std::min(most_columns, job.out[2]);
  const int64_t channels = std::min(most_channels, job.G);
  DenseJob part = job;
  part.out[2] = q;
  if (choice.role == Role::pixel_rows) {
    Moved<T>(job, choice, q, channels, m.lanes, count);
    const bool planes = by_plane(job, choice, m, false);
    const int64_t tall = rows_at_once(job, planes, m, channels, q, sizeof(T)), table = input_lines(job, tall, planes);
    ChannelsTask<T>(std::max(table, lines), lines + 1, channels, count);
    if (choice.copy_pixels || job.mode != PaddingMode::zeros) {
      const int64_t band = std::min(rows_copied(job, m, channels, q, sizeof(T)), job.out[1]);
      const SlabShape shape(part, 0, band * q);
      count.take<T>(shape.depth * shape.height * shape.padded_columns * channels);
      count.take<int64_t>(shape.depth * shape.height);
      count.take<int64_t>(shape.padded_columns);
      count.take<T>(channels);
    }
    return count.size();
  }
  const int64_t most = rows_of_slab(job, m, q, sizeof(T));
  Moved<T>(job, choice, most, q, m.lanes, count);
  const int64_t in_place = reads_in_place(job, m, false) ? rows_in_place(job) : 0;
  PlanesTask<T>(job, plane_lines(job, std::max(most, in_place)), columns_read(job, m, q), count);
  if (job.taps() > 0) Slab<T>(part, 0, most * q, 1, m.lanes, count);
  return count.size();
}

// Whether the filters lie as (channels)(taps).
bool filters_are_rows(const DenseJob& job) {
  int64_t expected = 1;
  for (int a = 2; a >= 0; --a) {
    if (job.filter[a] > 1 && job.wf[a] != expected) return false;
    expected *= job.filter[a];
  }
  return job.G == 1 || job.wg == expected;
}

template <class T>
void pack_filters(const Run<T>& run, const Machine& machine, const KernelTable<T>& kernels, T* packed) {
  const DenseJob& job = run.job;
  const int64_t taps = job.taps();
  Workspace scratch(sizeof(int64_t) * static_cast<size_t>(taps));
  int64_t* offset = static_cast<int64_t*>(scratch.data());
  tap_offsets(job, offset);
  PackWeightsArgs<T> p{};
  p.panel = packed, p.w = static_cast<const T*>(job.weight);
  p.column_stride = job.wg, p.channel_stride = 0;
  p.tap_offset = offset;
  p.taps = taps, p.length = 1;
  if (const int64_t group = run.choice.group; group > 1) {
    // As (taps)(channels of a group)(channels).
    const int64_t pitch = filter_pitch(job, machine);
    p.column_stride = job.wk, p.channel_stride = job.wc;
    p.length = group, p.columns = pitch, p.valid = job.G;
    if (job.wg == group * job.wk) return kernels.pack_weights(p);
    std::fill_n(packed, taps * group * pitch, T{0});
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t k = 0; k < group; ++k) {
        const T* from = p.w + offset[t] + k * job.wc;
        T* to = packed + (t * group + k) * pitch;
        for (int64_t c = 0; c < job.G; ++c) to[c] = from[c / group * job.wg + c % group * job.wk];
      }
    return;
  }
  if (run.choice.role == Role::pixel_rows) {
    p.columns = filter_pitch(job, machine), p.valid = job.G;
    kernels.pack_weights(p);
  } else {
    p.columns = taps, p.valid = job.G;
    kernels.pack_weight_rows(p);
  }
}

// Whether looking at the filters is worth it, and finds them finite. `always`: the look costs nothing (a plan).
template <class T>
bool may_skip_rows(const DenseJob& job, const T* packed, int64_t size, bool always) {
  if (job.mode != PaddingMode::zeros) return false;
  double inside = 1;
  for (int a = 0; a < 2; ++a) {
    int64_t in = 0;
    for (int64_t p = 0; p < job.out[a]; ++p)
      for (int64_t r = 0; r < job.filter[a]; ++r) {
        const int64_t i = p * job.stride[a] - job.pad[a] + r * job.dilation[a];
        in += i >= 0 && i < job.in[a];
      }
    inside *= static_cast<double>(in) / static_cast<double>(std::max<int64_t>(1, job.out[a] * job.filter[a]));
  }
  // A look at a weight takes about as long as sixteen multiplications.
  const double saved = (1 - inside) * static_cast<double>(job.N * job.pixels());
  if (saved <= (always ? 0 : 16)) return false;
  T sum[8] = {};  // of 0 * w: NaN where a weight is not finite
  int64_t i = 0;
  for (; i + 8 <= size; i += 8)
    for (int64_t k = 0; k < 8; ++k) sum[k] += 0 * packed[i + k];
  for (; i < size; ++i) sum[0] += 0 * packed[i];
  for (int k = 1; k < 8; ++k) sum[0] += sum[k];
  return sum[0] == 0;
}

// --- Planar images, turned
//
// Lanes are channels, and the arrays are planar: a task turns some channels of the rows that it reads, so that they are
// neighbours, computes its rows of all phases in scratch memory as if that were the output, and turns them back.

// Whether planes of `size` pixels lie in one run.
bool dense_plane(const int64_t size[3], const Strides& s) {
  return (size[2] == 1 || s.s[2] == 1) && (size[1] == 1 || s.s[1] == size[2]) &&
         (size[0] == 1 || s.s[0] == size[1] * size[2]);
}

// Elements from a plane's first to behind the last that a run writes, with strides s.
int64_t plane_end(const DenseJob& job, const Strides& s, int64_t offset) {
  int64_t last = offset;
  for (int a = 0; a < 3; ++a) last += (job.out[a] - 1) * s.s[a];
  return last + 1;
}

struct TurnedCut {
  bool possible = false;
  int64_t channels, rows, bands;        // of a task: channels, rows of each phase
  int64_t plane;                        // pixels of an output plane
  int64_t in_rows, out_pixels;          // of a task at most

  template <class T>
  TurnedCut(const std::vector<Run<T>>& runs, const Machine& m) {
    const DenseJob& first = runs[0].job;
    if (first.is.c == 1) return;
    int64_t pixels = 0, most = 0;
    plane = 0;
    for (const Run<T>& run : runs) {
      const DenseJob& job = run.job;
      if (!run.choice.turn || !dense_plane(job.in, job.is) || job.mode != PaddingMode::zeros || job.out[2] > 1024)
        return;
      if (job.os.s[2] < 1 || job.os.s[1] < 0 || job.os.s[0] < 0 || job.os.c == 1) return;
      if (job.has_residual && (job.rs.c == 1 || run.residual_offset != run.output_offset)) return;
      for (int a = 0; a < 3; ++a)
        if (job.has_residual && job.out[a] > 1 && job.rs.s[a] != job.os.s[a]) return;
      pixels += job.pixels();
      if (job.pixels() > 0) plane = std::max(plane, plane_end(job, job.os, run.output_offset));
      most = std::max(most, job.out[1]);
    }
    if (pixels != plane || pixels == 0) return;  // the phases leave pixels out
    channels = std::min<int64_t>(round_up(first.G, m.lanes), 2 * m.lanes);
    rows = most, in_rows = first.in[0] * first.in[1], out_pixels = plane;
    const int64_t limit = m.l2 / 2 / static_cast<int64_t>(sizeof(T));
    auto size = [&] { return (in_rows * first.in[2] + out_pixels) * channels; };
    if (size() > limit) channels = m.lanes;
    // Bands of rows, where there is one plane, all phases step alike, and what they write between two of their rows
    // lies between them in memory: an output whose columns are far apart has no bands.
    const bool bands_possible = std::all_of(runs.begin(), runs.end(), [&](const Run<T>& run) {
      return run.job.in[0] == 1 && run.job.out[0] == 1 && run.job.filter[0] <= 1 && run.job.in[2] == first.in[2] &&
             run.job.os.s[1] == first.os.s[1] &&
             run.output_offset + (run.job.out[2] - 1) * run.job.os.s[2] < first.os.s[1];
    });
    if (size() > limit && bands_possible) {
      while (rows > 4 && size() > limit) {
        rows = ceil_div(rows, 2);
        in_rows = 0;
        for (const Run<T>& run : runs) in_rows = std::max(in_rows, reach(run.job, rows));
        in_rows = std::min(in_rows + extra(runs), first.in[1]);
        out_pixels = std::min(plane, rows * first.os.s[1]);
      }
    }
    if (size() > 3 * limit) return;
    bands = ceil_div(std::max<int64_t>(most, 1), rows);
    possible = true;
  }

  static int64_t reach(const DenseJob& job, int64_t rows) {
    return (rows - 1) * job.stride[1] + (std::max<int64_t>(job.filter[1], 1) - 1) * job.dilation[1] + 1;
  }
  // By how much the phases' first rows differ.
  template <class T>
  static int64_t extra(const std::vector<Run<T>>& runs) {
    int64_t low = runs[0].job.pad[1], high = low;
    for (const Run<T>& run : runs) low = std::min(low, run.job.pad[1]), high = std::max(high, run.job.pad[1]);
    return high - low;
  }
};

template <class T>
struct TurnedScratch {
  T *x, *y, *residual;
  TurnedScratch(const TurnedCut& cut, int64_t columns, bool has_residual, Arena& arena)
      : x(arena.take<T>(cut.in_rows * columns * cut.channels)),
        y(arena.take<T>(cut.out_pixels * cut.channels)),
        residual(has_residual ? arena.take<T>(cut.out_pixels * cut.channels) : nullptr) {}
};

template <class T>
int64_t turned_bytes(const std::vector<Run<T>>& runs, const TurnedCut& cut, const Machine& m) {
  int64_t most = 0;
  for (const Run<T>& run : runs) {
    Choice choice = run.choice;
    choice.copy_pixels = choice.move_output = choice.move_residual = false;
    most = std::max(most, scratch_bytes<T>(run.job, choice, m, run.job.out[2], cut.channels));
  }
  Arena count(nullptr);
  TurnedScratch<T>(cut, runs[0].job.in[2], runs[0].job.has_residual, count);
  return count.size() + most;
}

template <class T>
void run_turned(const std::vector<Run<T>>& runs, const Context<T>& ctx, const TurnedCut& cut, int64_t task,
                Arena& arena) {
  const DenseJob& job = runs[0].job;
  const int64_t parts = ceil_div(job.G, cut.channels), B = cut.channels;
  const int64_t i0 = task % cut.bands * cut.rows, c0 = task / cut.bands % parts * B, n = task / cut.bands / parts;
  const int64_t channels = std::min(B, job.G - c0), columns = job.in[2];
  const TurnedScratch<T> s(cut, columns, job.has_residual, arena);
  // The rows of the image that the band's windows reach, and the pixels that it writes.
  int64_t a = job.in[0] * job.in[1], b = 0, begin = 0, end = cut.plane;
  if (cut.bands == 1) {
    a = 0, b = job.in[0] * job.in[1];
  } else {
    for (const Run<T>& run : runs) {
      const int64_t from = i0 * run.job.stride[1] - run.job.pad[1], rows = std::min(cut.rows, run.job.out[1] - i0);
      if (rows <= 0 || run.job.taps() == 0) continue;
      a = std::min(a, std::clamp<int64_t>(from, 0, job.in[1]));
      b = std::max(b, std::clamp<int64_t>(from + TurnedCut::reach(run.job, rows), 0, job.in[1]));
    }
    begin = i0 * job.os.s[1], end = std::min(cut.plane, (i0 + cut.rows) * job.os.s[1]);
  }
  const auto* x = pixel<T>(job.input, job.is, n, c0, 0, 0, 0) + a * columns;
  if (b > a) ctx.kernels.turn_block({x, s.x, channels, (b - a) * columns, job.is.c, B});
  // Where pixel 0 of channel c0 of the output lies: a run's own pointer is behind it by its offset.
  auto plane_of = [&](const void* data, const Strides& strides, int64_t offset) {
    return pixel<T>(data, strides, n, c0, 0, 0, 0) - offset + begin;
  };
  T* y = plane_of(job.output, job.os, runs[0].output_offset);
  if (ctx.accumulate) ctx.kernels.turn_block({y, s.y, channels, end - begin, job.os.c, B});
  if (job.has_residual) {
    const T* r = plane_of(job.residual, job.rs, runs[0].residual_offset);
    ctx.kernels.turn_block({r, s.residual, channels, end - begin, job.rs.c, B});
  }
  auto turned = [&](const Strides& from) { return Strides{0, 1, {from.s[0] * B, from.s[1] * B, from.s[2] * B}}; };
  for (const Run<T>& run : runs) {
    Run<T> part = run;
    part.choice.copy_pixels = part.choice.move_output = part.choice.move_residual = false;
    DenseJob& p = part.job;
    const int64_t rows = p.out[0] * p.out[1], row1 = cut.bands == 1 ? rows : std::min(i0 + cut.rows, rows);
    if (row1 <= i0 || p.out[2] == 0) continue;
    p.is = {0, 1, {p.in[1] * p.in[2] * B, p.in[2] * B, B}};
    p.input = s.x - a * columns * B - c0;
    p.os = turned(run.job.os);
    p.output = s.y + (run.output_offset - begin) * B - c0;
    if (p.has_residual) p.residual = s.residual + (run.residual_offset - begin) * B - c0, p.rs = turned(run.job.rs);
    Arena inner = arena;
    run_channels(part, ctx, DepthwisePiece{0, c0, c0 + channels, i0, row1, 0, p.out[2], B, p.out[2]}, inner);
  }
  ctx.kernels.turn_block({s.y, y, end - begin, channels, B, job.os.c});
}

}  // namespace

namespace {

int64_t direct_filters_size(const DenseJob& job, const Choice& choice, const Machine& machine, bool keep) {
  if (choice.role == Role::pixel_columns && !keep && filters_are_rows(job)) return 0;
  return job.taps() * choice.group * (choice.role == Role::pixel_rows ? filter_pitch(job, machine) : job.G);
}

}  // namespace

int64_t packed_filters_size(const DenseJob& job, const Choice& choice, const Machine& machine, bool keep) {
  return direct_filters_size(job, choice, machine, keep) + (choice.fft.rows ? spectra_size(job, choice, machine) : 0);
}

template <class T>
Status prepare_filters(Run<T>* run, const Machine& machine, const KernelTable<T>& kernels, bool keep) {
  const DenseJob& job = run->job;
  if (job.taps() == 0) return Status::ok;
  const int64_t packed_size = direct_filters_size(job, run->choice, machine, keep);
  T* packed = const_cast<T*>(run->packed);
  if (packed_size) pack_filters(*run, machine, kernels, packed);
  if (run->choice.fft.rows) {
    run->direct_size = packed_size;
    return pack_spectra(job, run->choice, machine, kernels, packed + packed_size);
  }
  const T* filters = run->packed ? run->packed : static_cast<const T*>(job.weight);
  const int64_t size = direct_filters_size(job, run->choice, machine, true);
  run->skip_zeros = may_skip_rows(job, filters, size, keep);
  return Status::ok;
}

template <class T>
void run_depthwise_piece(const Run<T>& run, const Context<T>& ctx, const DepthwisePiece& piece, Arena& arena,
                         bool spare) {
  if (run.choice.role == Role::pixel_rows)
    run_channels(run, ctx, piece, arena);
  else
    run_planes(run, ctx, piece, arena, spare);
}

template <class T>
int64_t depthwise_piece_scratch(const DenseJob& job, const Choice& choice, const Machine& machine, int64_t most_columns,
                                int64_t most_channels) {
  return scratch_bytes<T>(job, choice, machine, most_columns, most_channels);
}

template <class T>
Status run_depthwise(const std::vector<Run<T>>& runs, const Machine& machine, const KernelTable<T>& kernels,
                     const Finish<T>& finish, const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate) {
  if (std::any_of(runs.begin(), runs.end(), [](const Run<T>& run) { return run.choice.fft.rows > 0; })) {
    // Phases of a gradient choose for themselves.
    std::vector<Run<T>> direct, fft;
    for (const Run<T>& run : runs) (run.choice.fft.rows ? fft : direct).push_back(run);
    const Status s = run_fft(fft, machine, kernels, finish, map, gate_batch_stride, accumulate);
    if (s != Status::ok || direct.empty()) return s;
    return run_depthwise(direct, machine, kernels, finish, map, gate_batch_stride, accumulate);
  }
  const Context<T> ctx{machine, kernels, finish, map, gate_batch_stride, accumulate};
  double work = 0;
  for (const Run<T>& run : runs) work += nanoseconds(run.job) * static_cast<double>(run.choice.group);
  const int64_t want = wanted_tasks(work);
  std::atomic<bool> failed{false};
  const TurnedCut turned(runs, machine);
  if (turned.possible) {
    const int64_t size = turned_bytes(runs, turned, machine), parts = ceil_div(runs[0].job.G, turned.channels);
    const Status done = parallel_for(runs[0].job.N * parts * turned.bands, work, [&](int64_t i, int) {
      Workspace scratch(static_cast<size_t>(size));
      if (!scratch) return failed.store(true, std::memory_order_relaxed);
      Arena arena(scratch.data(), size);
      run_turned(runs, ctx, turned, i, arena);
    });
    return failed ? Status::out_of_memory : done;
  }
  std::vector<Cut> cuts;
  cuts.reserve(runs.size());
  int64_t tasks = 0, bytes = 0;
  for (const Run<T>& run : runs) {
    cuts.emplace_back(run.job, run.choice, machine, sizeof(T), want, runs.size() > 1);
    tasks += cuts.back().tasks;
    if (cuts.back().tasks)
      bytes =
          std::max(bytes, scratch_bytes<T>(run.job, run.choice, machine, cuts.back().columns, cuts.back().channels));
  }
  if (tasks == 0) return Status::ok;
  // Phases take turns: each cache line of the output is fetched once for all of them.
  const bool interleaved =
      std::all_of(cuts.begin(), cuts.end(), [&](const Cut& c) { return c.tasks == cuts[0].tasks; });
  const Status status = parallel_for(tasks, work, [&](int64_t i, int) {
    size_t r = 0;
    if (interleaved) {
      r = static_cast<size_t>(i) % runs.size();
      i /= static_cast<int64_t>(runs.size());
    } else {
      while (i >= cuts[r].tasks) i -= cuts[r++].tasks;
    }
    Workspace scratch(static_cast<size_t>(bytes));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    Arena arena(scratch.data(), bytes);
    run_depthwise_piece(runs[r], ctx, piece_of(runs[r].job, cuts[r], i), arena, false);
  });
  return failed ? Status::out_of_memory : status;
}

template <class T>
int64_t depthwise_workspace(const std::vector<Run<T>>& runs, const Machine& machine) {
  int64_t most = 0;
  std::vector<Run<T>> direct;
  for (const Run<T>& run : runs) {
    if (run.choice.fft.rows)
      most = std::max(most, fft_workspace<T>(run.job, run.choice, machine));
    else
      direct.push_back(run);
  }
  if (direct.empty()) return most;
  const TurnedCut turned(direct, machine);
  if (turned.possible) return std::max(most, turned_bytes(direct, turned, machine));
  for (const Run<T>& run : direct) {
    const Cut cut(run.job, run.choice, machine, sizeof(T), 1, direct.size() > 1);
    if (cut.tasks) most = std::max(most, scratch_bytes<T>(run.job, run.choice, machine, cut.columns, cut.channels));
  }
  return most;
}

// --- As what another product reads

namespace {

// What scratch is measured for: a narrow block at the image's edge takes more rows at a time than a wide one, and has
// to do with the same.
int64_t widest(const DenseJob& job, const int64_t size[3], int64_t most) {
  return std::max(size[2], std::min(job.out[2], most));
}

// The steps of the output suit the lanes, or it is moved.
Choice choice_for(const Choice& choice, int64_t pixel_step, int64_t channel_step) {
  Choice c = choice;
  c.move_output = (c.role == Role::pixel_rows ? channel_step : pixel_step) != 1;
  return c;
}

}  // namespace

template <class T>
int64_t DepthwiseProducer<T>::scratch(const int64_t size[3], int64_t channels) const {
  Choice c = run_.choice;
  c.move_output = true;
  return scratch_bytes<T>(run_.job, c, machine_, widest(run_.job, size, most_columns_), channels);
}

template <class T>
void DepthwiseProducer<T>::fill(int64_t n, const int64_t at[3], const int64_t size[3], int64_t c0, int64_t channels,
                                T* to, int64_t pixel_step, int64_t channel_step, void* scratch) const {
  const Context<T> ctx{machine_, kernels_, finish_, map_, gate_batch_stride_, false};
  Run<T> run = run_;
  run.choice = choice_for(run_.choice, pixel_step, channel_step);
  run.job.has_residual = false;
  run.job.os = {0, channel_step, {size[1] * size[2] * pixel_step, size[2] * pixel_step, pixel_step}};
  int64_t corner = c0 * channel_step;
  for (int a = 0; a < 3; ++a) corner += at[a] * run.job.os.s[a];
  run.job.output = to - corner;
  run.job.os.n = 0;
  for (int64_t d = at[0]; d < at[0] + size[0]; ++d) {
    Arena arena(scratch);
    const int64_t row = d * run.job.out[1] + at[1];
    const Piece piece{n,
                      c0,
                      c0 + channels,
                      row,
                      row + size[1],
                      at[2],
                      at[2] + size[2],
                      most_channels_,
                      widest(run.job, size, most_columns_)};
    if (run.choice.role == Role::pixel_rows)
      run_channels(run, ctx, piece, arena);
    else
      run_planes(run, ctx, piece, arena);
  }
}

template <class T>
void depthwise_block(const DenseJob& job, const Choice& choice, const Machine& machine, int64_t* channels,
                     int64_t* pixels) {
  if (choice.fft.rows) {
    *channels = choice.fft.shared ? 1 : std::min<int64_t>(job.G, machine.lanes);
    *pixels = choice.fft.out_rows * choice.fft.out_columns;
    return;
  }
  const Cut cut(job, choice, machine, sizeof(T), 1, false);
  *channels = cut.channels;
  *pixels = cut.rows * cut.columns;
}

// --- The gradient of the input of strided layers

namespace {

// Lanes are columns, or channels where those are neighbours and fill half a vector.
bool spreads_pixels(const DenseJob& job, const Machine& m) {
  return job.is.c == 1 && job.os.c == 1 && 2 * job.G > m.lanes;
}

// The rows of dy, and of the filter, that row h of dx meets: in the order of dy, as the products of single phases add.
SpreadRow spread_row(const DenseJob& job, int64_t h) {
  SpreadRow row{};
  for (int64_t r = job.filter[1] - 1; r >= 0; --r) {
    const int64_t at = h + job.pad[1] - r;
    if (at < 0 || at % job.stride[1] || at / job.stride[1] >= job.out[1]) continue;
    row.dy[row.count] = at / job.stride[1] * job.os.s[1];
    row.filter[row.count++] = r;
  }
  return row;
}

constexpr int64_t kSpreadBand = 32;  // rows of a task

}  // namespace

template <class T>
bool has_spread(const DenseJob& job, const Machine& m) {
  if (job.C != 1 || job.K != 1 || job.mode != PaddingMode::zeros || job.stride[2] != 2) return false;
  if (job.filter[2] != 3 && job.filter[2] != 5) return false;
  if (job.filter[0] != 1 || job.in[0] != 1 || job.out[0] != 1 || job.pad[0] != 0) return false;
  if (job.dilation[1] != 1 || job.dilation[2] != 1 || job.pad[2] < 0) return false;
  if (ceil_div(job.filter[1], job.stride[1]) > kSpreadRows || job.out[1] * job.out[2] == 0) return false;
  if (m.isa == Isa::portable) return false;
  const bool unit_columns = (job.is.s[2] == 1 || job.in[2] == 1) && (job.os.s[2] == 1 || job.out[2] == 1);
  return spreads_pixels(job, m) || unit_columns;
}

template <class T>
int64_t spread_packed(const DenseJob& job, const Machine& m) {
  return spreads_pixels(job, m) ? job.taps() * round_up(job.G, m.lanes) : 0;
}

template <class T>
Status run_spread(const DenseJob& job, const Machine& m, const KernelTable<T>& kernels, const T* dy, const T* weight,
                  T* dx) {
  SpreadArgs<T> all{};
  all.taps = job.filter[2], all.pad = job.pad[2];
  all.columns = job.in[2], all.dy_columns = job.out[2];
  all.planar = !spreads_pixels(job, m);
  all.dy_channel = job.os.c, all.dy_pitch = job.os.s[2];
  all.dx_row = job.is.s[1], all.dx_channel = job.is.c, all.dx_pitch = job.is.s[2];
  all.weights = weight;
  all.weight_row = job.wf[1], all.weight_tap = job.wf[2], all.weight_channel = job.wg;
  // Lanes of channels read the filters as (taps)(channels).
  const size_t bytes = static_cast<size_t>(spread_packed<T>(job, m)) * sizeof(T);
  T* const packed = bytes ? static_cast<T*>(output_allocate(bytes)) : nullptr;
  if (bytes) {
    if (!packed) return Status::out_of_memory;
    Run<T> run;
    run.job = job, run.job.weight = weight;
    run.choice.role = Role::pixel_rows;
    pack_filters(run, m, kernels, packed);
    all.weights = packed;
    all.weight_tap = round_up(job.G, m.lanes), all.weight_row = all.taps * all.weight_tap;
  }
  const int64_t band = std::min(job.in[1], kSpreadBand), bands = ceil_div(job.in[1], band);
  // Planes are taken some at a time; a task is some ten microseconds.
  const int64_t deep =
      all.planar ? std::clamp<int64_t>((int64_t{1} << 16) / std::max<int64_t>(1, band * job.in[2]), 1, job.G) : job.G;
  const int64_t parts = ceil_div(job.G, deep);
  const Status status = parallel_for(job.N * parts * bands, nanoseconds(job), [&](int64_t task, int) {
    const int64_t h0 = task % bands * band, h1 = std::min(job.in[1], h0 + band);
    const int64_t c0 = task / bands % parts * deep, n = task / bands / parts;
    SpreadRow rows[kSpreadBand];
    for (int64_t h = h0; h < h1; ++h) rows[h - h0] = spread_row(job, h);
    SpreadArgs<T> g = all;
    g.row = rows, g.rows = h1 - h0;
    g.channels = std::min(deep, job.G - c0);
    g.dy = dy + n * job.os.n + c0 * job.os.c;
    g.dx = dx + n * job.is.n + c0 * job.is.c + h0 * job.is.s[1];
    g.weights += c0 * all.weight_channel;
    kernels.depthwise_spread(g);
  });
  if (packed) output_release(packed, bytes);
  return status;
}

// --- The gradient of the filters

namespace {

// Planes that are turned, so that their channels are neighbours: all of an image, for a vector of channels at a time
// within half of L2. It pays where they are turned for many terms, or rows are short (Zen 4, AVX-512, one thread, in
// lock step, as the time of lanes of pixels over that of turning): 7 x 7 filters 4.5 on 7 x 7, 2.5 on 14 x 14 and 1.6
// on 28 x 28, 5 x 5 ones 2.0 on 14 x 14, 3 x 3 ones 2.9 on 7 x 7, 1.6 on 14 x 14 and 1.0 on 28 x 28, strided ones 1.5
// to 2.7 on 14 x 14.
//
// Where channels are neighbours already, but pixels a multiple of 2 KB apart, all those of a few channels fall into the
// same sets of the first-level cache: small planes are brought together likewise (512 channels of 14 x 14 1.3 times as
// fast, 1024 of 7 x 7 1.7 times; 256 on 28 x 28 and strided ones lost).
bool filter_turned(const DenseJob& job, const Machine& m, int64_t item_size) {
  if (2 * job.G <= m.lanes || job.mode != PaddingMode::zeros || job.taps() == 0 || m.isa == Isa::portable) return false;
  const int64_t pixels = job.in[0] * job.in[1] * job.in[2] + job.pixels();
  if (pixels * m.lanes * item_size > m.l2 / 2 || job.out[2] == 1) return false;
  if (job.is.c == 1 && job.os.c == 1) return job.G * item_size % 2048 == 0 && job.stride[2] == 1 && job.out[2] <= 16;
  if (job.is.c == 1 || job.os.c == 1) return false;
  return dense_plane(job.in, job.is) && dense_plane(job.out, job.os) &&
         (job.taps() >= 25 || (job.out[2] <= 28 && job.stride[2] == 1) || job.out[2] <= 8);
}

// Some channels of a plane of pixels, `pitch` elements a pixel.
template <class T>
void bring_together(const KernelTable<T>& kernels, const T* from, const Strides& s, const int64_t size[3],
                    int64_t channels, int64_t pitch, T* to) {
  if (s.c != 1) return kernels.turn_block({from, to, channels, size[0] * size[1] * size[2], s.c, pitch});
  for (int64_t d = 0; d < size[0]; ++d)
    for (int64_t h = 0; h < size[1]; ++h)
      for (int64_t w = 0; w < size[2]; ++w, to += pitch)
        std::copy_n(from + d * s.s[0] + h * s.s[1] + w * s.s[2], channels, to);
}

bool filter_by_channels(const DenseJob& job, const Machine& m, int64_t item_size) {
  if (filter_turned(job, m, item_size)) return true;
  return job.is.c == 1 && job.os.c == 1 && 2 * job.G > m.lanes && job.mode == PaddingMode::zeros && job.taps() > 0;
}

// The reduction over images and rows in pieces: sums of at most so many rows, or of a part of a long row, are made in
// registers and added up.
struct FilterSplit {
  bool by_channels, turned;
  int64_t rows, columns;  // of a piece
  int64_t row_parts;  // pieces of a long row
  int64_t parts;  // ranges of (image, row, piece of it) with sums of their own, joined at the end
  int64_t channels;  // of a task

  // Nothing here depends on the threads.
  FilterSplit(const DenseJob& job, const Machine& m, int64_t item_size)
      : by_channels(filter_by_channels(job, m, item_size)), turned(filter_turned(job, m, item_size)) {
    const int64_t line = 64 / item_size;
    // About 512 terms a lane: the input of a few channels stays close meanwhile. Only rows that are alone in a piece
    // are cut.
    columns = std::clamp<int64_t>(job.out[2], 1, 1024);
    row_parts = ceil_div(job.out[2], columns);
    const int64_t lines = job.N * job.out[0] * job.out[1] * row_parts;
    const int64_t a_lane = by_channels ? columns : ceil_div(columns, m.lanes);
    rows = std::clamp<int64_t>(512 / a_lane, 1, std::max<int64_t>(1, job.out[1]));
    channels = turned ? std::min<int64_t>(job.G, m.lanes) : std::min<int64_t>(job.G, by_channels ? 4 * line : 8);
    // Few channels leave threads without work: the rows are divided, too, or, where images are turned, the images.
    const int64_t blocks = ceil_div(job.G, channels);
    const int64_t most = turned ? job.N : lines / std::max<int64_t>(rows, 1);
    parts = blocks >= 16 ? 1 : std::clamp<int64_t>(most, 1, ceil_div(16, blocks));
  }
};

// Rows of input that a piece reads.
int64_t filter_lines(const DenseJob& job, const FilterSplit& split) {
  return std::max(input_lines(job, split.rows), plane_lines(job, split.rows));
}

// Scratch of a task: the table of rows, their pitches, and a row of zeros.
template <class T>
int64_t filter_scratch(const DenseJob& job, const Machine& m, const FilterSplit& split) {
  Arena count(nullptr);
  count.take<const T*>(filter_lines(job, split));
  count.take<int64_t>(filter_lines(job, split));
  count.take<T>(split.by_channels ? split.channels : columns_read(job, m, split.columns));
  if (split.turned) {
    count.take<T>(job.in[0] * job.in[1] * job.in[2] * m.lanes);
    count.take<T>(job.pixels() * m.lanes);
  }
  return count.size();
}

}  // namespace

template <class T>
bool has_filter_gradient(const DenseJob& job, const Machine& m) {
  if (job.C != 1 || job.K != 1 || job.taps() == 0) return false;
  return filter_by_channels(job, m, sizeof(T)) ||
         (job.filter[0] == 1 && reads_in_place(job, m, false) && (job.os.s[2] == 1 || job.out[2] == 1));
}

template <class T>
WeightForm filter_gradient_form(const DenseJob& job, const Machine& m) {
  const FilterSplit split(job, m, sizeof(T));
  WeightForm form{};
  form.by_rows = split.by_channels;
  const int64_t rows = job.filter[0] > 1 ? 1 : split.rows;
  form.terms = rows * (split.by_channels ? split.columns : ceil_div(split.columns, m.lanes));
  form.pieces = job.N * job.out[0] * ceil_div(job.out[1], rows) * split.row_parts + split.parts;
  for (int64_t lanes = m.lanes; !split.by_channels && lanes > 1; lanes /= 2) ++form.joins;
  form.channels = split.channels;
  form.workspace = filter_scratch<T>(job, m, split);
  form.copied = split.parts * (split.by_channels ? round_up(job.G, m.lanes) : job.G) * job.taps();
  form.passed_over = split.by_channels ? "lanes of pixels: the channels are neighbours in memory"
                                       : "lanes of channels: the columns are neighbours in memory";
  return form;
}

template <class T>
Status run_filter_gradient(const DenseJob& job, const Machine& m, const KernelTable<T>& kernels, T* dw,
                           bool accumulate) {
  const FilterSplit split(job, m, sizeof(T));
  const int64_t taps = job.taps(), lines = job.N * job.out[0] * job.out[1] * split.row_parts;
  const int64_t blocks = ceil_div(job.G, split.channels), W = m.lanes;
  const int64_t pitch = split.by_channels ? round_up(job.G, W) : job.G, size = pitch * taps;
  if (lines == 0 || job.out[2] == 0) {
    if (!accumulate) std::fill_n(dw, job.G * taps, T{0});
    return Status::ok;
  }
  // Sums of every part, as (taps)(channels) or (channels)(taps).
  const size_t bytes = static_cast<size_t>(split.parts * size) * sizeof(T);
  T* sums = static_cast<T*>(output_allocate(bytes));
  if (!sums) return Status::out_of_memory;
  const double work = nanoseconds(job);
  std::atomic<bool> failed{false};
  Status status = parallel_for(split.parts * blocks, work, [&](int64_t task, int) {
    const int64_t part = task % split.parts, c0 = task / split.parts * split.channels;
    const int64_t channels = std::min(split.channels, job.G - c0);
    const int64_t first = lines * part / split.parts, last = lines * (part + 1) / split.parts;
    const int64_t table_bytes = filter_scratch<T>(job, m, split);
    Workspace scratch(static_cast<size_t>(table_bytes));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    Arena arena(scratch.data(), table_bytes);
    const T** rows = arena.take<const T*>(filter_lines(job, split));
    int64_t* row_pitch = arena.take<int64_t>(filter_lines(job, split));
    const int64_t width = columns_read(job, m, split.columns), zero_count = split.by_channels ? split.channels : width;
    T* zeros = arena.take<T>(zero_count);
    std::fill_n(zeros, zero_count, T{0});
    const int64_t in_pixels = job.in[0] * job.in[1] * job.in[2];
    T* const turned_x = split.turned ? arena.take<T>(in_pixels * W) : nullptr;
    T* const turned_dy = split.turned ? arena.take<T>(job.pixels() * W) : nullptr;
    // The strides that the kernel sees, and which image the turned planes are of.
    auto steps = [&](const Strides& s, const int64_t in[3]) {
      return split.turned ? Strides{0, 1, {in[1] * in[2] * W, in[2] * W, W}} : s;
    };
    const Strides is = steps(job.is, job.in), os = steps(job.os, job.out);
    int64_t image_of = -1;
    T* sum = sums + part * size;
    FilterChannelsArgs<T> g{};
    g.rows = rows, g.row_pitch = row_pitch;
    g.filter_rows = job.filter[0] * job.filter[1];
    g.row_stride = job.stride[1], g.row_dilation = job.filter[0] > 1 ? 1 : job.dilation[1];
    g.taps = job.filter[2], g.stride = job.stride[2], g.dilation = job.dilation[2];
    g.columns = job.in[2];
    g.channels = channels;
    g.dy_row_pitch = os.s[1], g.dy_pitch = os.s[2];
    g.sum = sum + c0, g.sum_pitch = pitch;
    FilterPlanesArgs<T> f{};
    f.rows = rows, f.zero_row = zeros;
    f.channel_pitch = job.is.c;
    f.taps = job.filter[2], f.stride = job.stride[2];
    f.channels = channels;
    f.dy_channel_pitch = job.os.c, f.dy_row_pitch = job.os.s[1];
    f.sum = sum + c0 * taps;
    // Of a filter of several planes a row of output at a time, its rows of input in the order of the taps.
    const int64_t most = job.filter[0] > 1 ? 1 : split.rows;
    for (int64_t at = first, end; at < last; at = end) {
      const int64_t line = at / split.row_parts, q0 = at % split.row_parts * split.columns;
      const int64_t plane = line / job.out[1], n = plane / job.out[0], d = plane % job.out[0], h = line % job.out[1];
      // Pieces begin at multiples of their length in each plane, whatever the part.
      end = at + 1;
      if (split.row_parts == 1) end = std::min({last, (plane + 1) * job.out[1], line - h + (h / most + 1) * most});
      const int64_t out_rows = end - at, pixels = std::min(split.columns, job.out[2] - q0);
      const int64_t begin = q0 * job.stride[2] - job.pad[2];
      // Where columns are innermost they are counted from the first that the piece reads, as the row of zeros is.
      const int64_t passed = split.by_channels ? 0 : std::clamp<int64_t>(begin, 0, job.in[2]);
      const T* image = pixel<T>(job.input, job.is, n, c0, 0, 0, 0) + passed;
      const T* dy = pixel<T>(job.output, job.os, n, c0, d, h, q0);
      if (split.turned) {
        if (n != image_of) {
          const T* all = pixel<T>(job.output, job.os, n, c0, 0, 0, 0);
          bring_together(kernels, image, job.is, job.in, channels, W, turned_x);
          bring_together(kernels, all, job.os, job.out, channels, W, turned_dy);
          image_of = n;
        }
        image = turned_x, dy = pixel<T>(turned_dy, os, 0, 0, d, h, q0);
      }
      int64_t i = 0;
      for (int64_t a = 0; a < job.filter[0]; ++a) {
        const int64_t di = d * job.stride[0] - job.pad[0] + a * job.dilation[0];
        const int64_t count = job.filter[0] > 1 ? job.filter[1] : input_lines(job, out_rows);
        for (int64_t b = 0; b < count; ++b, ++i) {
          const int64_t hi = h * job.stride[1] - job.pad[1] + b * (job.filter[0] > 1 ? job.dilation[1] : 1);
          const bool zero = di < 0 || di >= job.in[0] || hi < 0 || hi >= job.in[1];
          rows[i] = zero ? zeros : image + di * is.s[0] + hi * is.s[1];
          row_pitch[i] = zero ? 0 : is.s[2];
        }
      }
      if (split.by_channels) {
        g.out_rows = out_rows, g.pixels = pixels, g.first_column = begin;
        g.dy = dy, g.accumulate = at > first;
        kernels.filter_channels(g);
      } else {
        f.out_rows = out_rows, f.pixels = pixels;
        f.first_column = begin - passed, f.columns = std::min(job.in[2] - passed, width);
        f.dy = dy, f.accumulate = at > first;
        kernels.filter_planes(f);
      }
    }
  });
  if (failed) status = Status::out_of_memory;
  if (status == Status::ok) {
    // The parts in their order.
    const int64_t step = 256;
    status = parallel_for(ceil_div(job.G, step), static_cast<double>(split.parts * size), [&](int64_t i, int) {
      for (int64_t c = i * step; c < std::min(job.G, (i + 1) * step); ++c)
        for (int64_t t = 0; t < taps; ++t) {
          const T* from = sums + (split.by_channels ? t * pitch + c : c * taps + t);
          T total = *from;
          for (int64_t part = 1; part < split.parts; ++part) total += from[part * size];
          T& to = dw[c * taps + t];
          to = accumulate ? to + total : total;
        }
    });
  }
  output_release(sums, bytes);
  return status;
}

#define FASTCONV_INSTANTIATE(T)                                                                                  \
  template class DepthwiseProducer<T>;                                                                           \
  template bool has_spread<T>(const DenseJob&, const Machine&);                                                  \
  template int64_t spread_packed<T>(const DenseJob&, const Machine&);                                            \
  template Status run_spread<T>(const DenseJob&, const Machine&, const KernelTable<T>&, const T*, const T*, T*); \
  template bool has_filter_gradient<T>(const DenseJob&, const Machine&);                                         \
  template WeightForm filter_gradient_form<T>(const DenseJob&, const Machine&);                                  \
  template Status run_filter_gradient<T>(const DenseJob&, const Machine&, const KernelTable<T>&, T*, bool);      \
  template Status prepare_filters<T>(Run<T>*, const Machine&, const KernelTable<T>&, bool);                      \
  template void run_depthwise_piece<T>(const Run<T>&, const Context<T>&, const DepthwisePiece&, Arena&, bool);   \
  template int64_t depthwise_piece_scratch<T>(const DenseJob&, const Choice&, const Machine&, int64_t, int64_t); \
  template Status run_depthwise<T>(const std::vector<Run<T>>&, const Machine&, const KernelTable<T>&,            \
                                   const Finish<T>&, const InputMap<T>&, int64_t, bool);                         \
  template int64_t depthwise_workspace<T>(const std::vector<Run<T>>&, const Machine&);                           \
  template void depthwise_block<T>(const DenseJob&, const Choice&, const Machine&, int64_t*, int64_t*);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)
#undef FASTCONV_INSTANTIATE

}  // namespace fastconv::ops
