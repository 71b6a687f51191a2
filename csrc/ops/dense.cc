#include "ops/dense.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "ops/depthwise.h"
#include "ops/memory.h"
#include "ops/parallel.h"
#include "ops/slab.h"
#include "ops/winograd.h"

namespace fastconv::ops {
namespace {

// The part of a job that computes a box of its output pixels.
template <class T>
DenseJob box_of(const DenseJob& job, const int64_t at[3], const int64_t size[3]) {
  DenseJob p = job;
  for (int a = 0; a < 3; ++a) {
    p.out[a] = size[a];
    p.pad[a] -= at[a] * job.stride[a];
    if (job.fan.count()) {
      p.fan.first[a] -= at[a] * job.fan.phases[a];
      continue;
    }
    p.output = static_cast<T*>(p.output) + at[a] * job.os.s[a];
    if (p.has_residual) p.residual = static_cast<const T*>(p.residual) + at[a] * job.rs.s[a];
  }
  return p;
}

// The blocks of output pixels of a job: boxes of size[0] x size[1] x size[2].
//
// With the channels innermost, boxes are up to 8 rows tall, so that neighbouring blocks share little of the input's
// rows. Planar images are cut into runs of whole rows: a narrow box would touch a few bytes of many far-apart pages.
struct PixelBlocks {
  int64_t size[3], parts[3], count;

  // `unit`: a part of a row is a multiple of so many pixels, or every block ends in a vector that is partly empty.
  PixelBlocks(const DenseJob& job, const Choice& choice, int64_t block, int64_t unit) {
    const int64_t plane = job.out[1] * job.out[2];
    block = std::max<int64_t>(block, 1);
    size[0] = 1, size[1] = 1, size[2] = job.out[2];
    if (plane * 2 <= block || plane <= block) {
      size[1] = job.out[1];
      size[0] = std::min(job.out[0], std::max<int64_t>(1, block / plane));
    } else {
      const int64_t tall = choice.role == Role::pixel_rows && !choice.move_output ? 8 : 1;
      const int64_t wide = std::max<int64_t>(block / std::min(job.out[1], tall), 1);
      if (job.out[2] > wide) size[2] = wide;
      // A few columns too many are better than a second, narrow box.
      if (job.out[2] > wide && job.out[2] <= wide + wide / 4) size[2] = job.out[2];
      size[1] = std::min(job.out[1], std::max<int64_t>(1, block / size[2]));
    }
    count = 1;
    for (int a = 0; a < 3; ++a) {
      parts[a] = ceil_div(job.out[a], size[a]);
      size[a] = ceil_div(job.out[a], parts[a]);
      if (a == 2 && parts[a] > 1) size[a] = round_up(size[a], unit);
      parts[a] = ceil_div(job.out[a], size[a]);
      count *= parts[a];
    }
  }

  int64_t largest() const { return size[0] * size[1] * size[2]; }

  // The part of a job that computes block `b`.
  template <class T>
  DenseJob part(const DenseJob& job, int64_t b) const {
    const int64_t at[3] = {b / (parts[1] * parts[2]) * size[0], b / parts[2] % parts[1] * size[1],
                           b % parts[2] * size[2]};
    const int64_t most[3] = {std::min(size[0], job.out[0] - at[0]), std::min(size[1], job.out[1] - at[1]),
                             std::min(size[2], job.out[2] - at[2])};
    return box_of<T>(job, at, most);
  }
};

// Pixels [j0, j1) as runs of neighbours in the image itself (1x1, stride 1; pad is the block's place, negated).
int64_t image_segments(const DenseJob& job, int64_t j0, int64_t j1, Segment* segments) {
  const int64_t q = job.out[2];
  int64_t n = 0;
  for (int64_t row = j0 / q; row * q < j1; ++row) {
    const int64_t qs = std::max<int64_t>(0, j0 - row * q), qe = std::min(q, j1 - row * q);
    const int64_t offset =
        (row / job.out[1] - job.pad[0]) * job.is.s[0] + (row % job.out[1] - job.pad[1]) * job.is.s[1];
    segments[n++] = {row * q + qs - j0, offset + qs - job.pad[2], qe - qs};
  }
  return n;
}

// The part of `segments` that falls into columns [c0, c1), relative to c0.
int64_t clip_segments(const Segment* segments, int64_t count, int64_t c0, int64_t c1, Segment* out) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Segment& s = segments[i];
    const int64_t lo = std::max(s.column, c0), hi = std::min(s.column + s.length, c1);
    if (lo < hi) out[n++] = {lo - c0, s.offset + lo - s.column, hi - lo};
  }
  return n;
}

// The pixels in [0, n) whose tap lies in an axis of `in` elements: pixel i reads position first + i * stride.
void pixels_inside(int64_t first, int64_t stride, int64_t in, int64_t n, int64_t* lo, int64_t* hi) {
  *lo = first >= 0 ? 0 : std::min(n, (-first + stride - 1) / stride);
  *hi = first >= in ? 0 : std::min(n, (in - 1 - first) / stride + 1);
  *hi = std::max(*hi, *lo);
}

// Pointers to the input of every pixel in [j0, j1), tap by tap: table[t * (j1 - j0) + i]. A thin 1x1 layer spends but a
// few nanoseconds on a pixel: all that is done for a pixel is an addition.
template <class T>
void pixel_pointers(const DenseJob& job, const T* image, const T* zero_row, int64_t j0, int64_t j1, const T** table) {
  const int64_t n = j1 - j0, q = job.out[2], p = job.out[1], step = job.stride[2] * job.is.s[2];
  for (int64_t j = j0, w, length; j < j1; j += length, table += length) {
    const int64_t row = j / q;
    w = j - row * q, length = std::min(q - w, j1 - j);
    const int64_t d0 = row / p * job.stride[0] - job.pad[0], h0 = row % p * job.stride[1] - job.pad[1];
    const T** entry = table;
    for (int64_t a = 0; a < job.filter[0]; ++a) {
      const int64_t di = map_index(job.mode, d0 + a * job.dilation[0], job.in[0]);
      for (int64_t b = 0; b < job.filter[1]; ++b) {
        const int64_t hi = map_index(job.mode, h0 + b * job.dilation[1], job.in[1]);
        const T* line = di < 0 || hi < 0 ? nullptr : image + di * job.is.s[0] + hi * job.is.s[1];
        for (int64_t c = 0; c < job.filter[2]; ++c, entry += n) {
          if (!line) {
            std::fill_n(entry, length, zero_row);
            continue;
          }
          const int64_t first = w * job.stride[2] - job.pad[2] + c * job.dilation[2];
          int64_t begin, end;
          pixels_inside(first, job.stride[2], job.in[2], length, &begin, &end);
          auto outside = [&](int64_t i) {
            const int64_t wi = map_index(job.mode, first + i * job.stride[2], job.in[2]);
            entry[i] = wi < 0 ? zero_row : line + wi * job.is.s[2];
          };
          for (int64_t i = 0; i < begin; ++i) outside(i);
          const T* at = line + first * job.is.s[2];
          for (int64_t i = begin; i < end; ++i) entry[i] = at + i * step;
          for (int64_t i = end; i < length; ++i) outside(i);
        }
      }
    }
  }
}

template <class T>
void set_finish(const Finish<T>& finish, int64_t channel, GemmArgs<T>* g) {
  g->scale = finish.scale ? finish.scale + channel : nullptr;
  g->shift = finish.shift ? finish.shift + channel : nullptr;
  g->activation = finish.activation;
  g->a = finish.a;
  g->b = finish.b;
}

bool weights_are_rows(const DenseJob& job) {
  int64_t expect = 1;
  for (int a = 2; a >= 0; --a) {
    if (job.filter[a] > 1 && job.wf[a] != expect) return false;
    expect *= job.filter[a];
  }
  return job.C == 1 || job.wc == expect;
}

// A task: one image, one group, one block of pixels, output channels [k0, k1).
struct Task { int64_t n, g, block, k0, k1; };

// The runs of pixels whose phase has an output, for the output channels [k0, k1): calls move(pixel, pixels, channel,
// channels, phases, offset) with the first pixel and channel, as the product counts them, and where the tensor has
// their output. Phases of a row that have the same pixels come together.
template <class F>
void for_fan(const DenseJob& job, const Strides& s, int64_t k0, int64_t k1, F move) {
  const Fan& f = job.fan;
  const int64_t K = job.K / f.count();
  auto low = [&](int a, int64_t phase) {
    return std::clamp<int64_t>(ceil_div(std::max<int64_t>(0, f.first[a] - phase), f.phases[a]), 0, job.out[a]);
  };
  auto high = [&](int a, int64_t phase) {
    const int64_t end = f.extent[a] + f.first[a] - phase;
    return std::clamp<int64_t>(end <= 0 ? 0 : ceil_div(end, f.phases[a]), low(a, phase), job.out[a]);
  };
  for (int64_t k = k0, next; k < k1; k = next) {
    const int64_t phase = k / K, i = phase % f.phases[2];
    const int64_t at[3] = {phase / (f.phases[1] * f.phases[2]), phase / f.phases[2] % f.phases[1], i};
    const int64_t begin = low(2, i), end = high(2, i);
    int64_t phases = 1;
    next = std::min(k1, (phase + 1) * K);
    if (k == phase * K && next == (phase + 1) * K)
      while (i + phases < f.phases[2] && next + K <= k1 && low(2, i + phases) == begin && high(2, i + phases) == end)
        ++phases, next += K;
    if (begin == end) continue;
    for (int64_t d = low(0, at[0]); d < high(0, at[0]); ++d)
      for (int64_t h = low(1, at[1]); h < high(1, at[1]); ++h) {
        const int64_t pixel[3] = {d, h, begin};
        int64_t offset = (k - phase * K) * s.c;
        for (int a = 0; a < 3; ++a) offset += (pixel[a] * f.phases[a] + at[a] - f.first[a]) * s.s[a];
        move((d * job.out[1] + h) * job.out[2] + begin, end - begin, k, next - k, phases, offset);
      }
  }
}

// Moves the output of such a product between its tensor and its buffer, which begins at channel k0; a channel of the
// buffer has pixels `pixel_step` apart, or a pixel channels: one of the steps is the pitch.
template <class T, class Move>
void move_fan(const DenseJob& job, const Strides& s, const Task& task, T* tensor, T* buffer, int64_t pitch,
              bool pixel_rows, int64_t* row_offset, int64_t* column_offset, Move move) {
  const Fan& f = job.fan;
  const int64_t K = job.K / f.count();
  int64_t* pixel_offset = pixel_rows ? row_offset : column_offset;
  int64_t* channel_offset = pixel_rows ? column_offset : row_offset;
  for (int64_t i = 0; i < job.out[2]; ++i) pixel_offset[i] = i * f.phases[2] * s.s[2];
  for_fan(job, s, task.k0, task.k1,
          [&](int64_t pixel, int64_t pixels, int64_t k, int64_t channels, int64_t phases, int64_t offset) {
            for (int64_t i = 0; i < channels; ++i)
              channel_offset[i] = phases > 1 ? i / K * s.s[2] + i % K * s.c : i * s.c;
            if (pixel_rows)
              move(tensor + offset, buffer + pixel * pitch + k - task.k0, pixels, channels);
            else
              move(tensor + offset, buffer + (k - task.k0) * pitch + pixel, channels, pixels);
          });
}

int64_t terms_of(const Chunk& c) { return c.channels * c.taps; }

// Panels of pixels, of `elements` each, that a row of the output passes through together: it is written in longer runs,
// which counts where each lies in a page of its own. They share the first-level cache.
template <class T>
int64_t panels_together(const Machine& machine, int64_t elements) {
  return std::max<int64_t>(1, machine.l1 / std::max<int64_t>(1, elements * static_cast<int64_t>(sizeof(T))));
}

// The buffer for panels of pixels: as many as are used together.
template <class T>
int64_t panel_elements(const Choice& choice, const Machine& machine) {
  const int64_t widest = machine.max_vectors * machine.lanes;
  return std::max<int64_t>(choice.reduction_block() * widest, machine.l1 / static_cast<int64_t>(sizeof(T))) + widest;
}

// Whether the output of an image, or of those that are joined, is larger than the second-level cache.
template <class T>
bool exceeds_l2(const DenseJob& job, const Machine& machine) {
  return job.G * job.K * job.pixels() * static_cast<int64_t>(sizeof(T)) > machine.l2;
}

// --- Role: pixel rows

// The input of a block of pixels, copied with its padding: pixels' channels stay together, so that the taps of a row
// are one run where the filter is not dilated.
template <class T>
class PixelSlab {
 public:
  PixelSlab(const DenseJob& job, int64_t j0, int64_t j1, int64_t channels, int64_t tail, Arena& arena)
      : shape_(job, j0, j1),
        slab_(arena.take<T>(channels * shape_.padded_columns * shape_.depth * shape_.height + tail)),
        row_offset_(arena.take<int64_t>(shape_.depth * shape_.height)),
        column_map_(job.mode == PaddingMode::zeros ? nullptr : arena.take<int64_t>(shape_.padded_columns)),
        zeros_(arena.take<T>(channels * job.filter[2])),
        gate_(arena.take<T>(channels)),
        row_line_(arena.take<int64_t>(shape_.rows_out)),
        row_position_(arena.take<int64_t>(shape_.rows_out)),
        row_end_(arena.take<int64_t>(shape_.rows_out)),
        tap_position_(arena.take<int64_t>(job.taps())) {}

  void prepare(const DenseJob& job, int64_t j0, int64_t j1) {
    const SlabShape& s = shape_;
    s.row_offsets(job, row_offset_);
    s.column_map(job, column_map_);
    const int64_t q = job.out[2], p = job.out[1], depth_step = s.one_plane ? 1 : job.dilation[0];
    for (int64_t r = 0, j = j0; r < s.rows_out; ++r) {
      const int64_t row = s.first_row + r, plane = s.one_plane ? 0 : (row / p - s.d0) * job.stride[0];
      const int64_t line = plane * s.height + (row % p - s.h0) * job.stride[1];
      row_line_[r] = line;
      row_position_[r] = line * s.padded_columns + (j - row * q - s.q0) * job.stride[2];
      j = std::min(j1, (row + 1) * q);
      row_end_[r] = j - j0;
    }
    int64_t* tap = tap_position_;
    for (int64_t a = 0; a < job.filter[0]; ++a)
      for (int64_t b = 0; b < job.filter[1]; ++b)
        for (int64_t c = 0; c < job.filter[2]; ++c)
          *tap++ = (a * depth_step * s.height + b * job.dilation[1]) * s.padded_columns + c * job.dilation[2];
  }

  // Fills the slab with the chunk's channels and points `table` at its pixels: `pieces` runs of `length` elements each.
  // Runs that lie in the padding whole are returned as one run of zeros, which is nullptr unless `skip`. `apart`: a run
  // is a tap's, even where those of a filter's row are neighbours.
  const T* fill(const KernelTable<T>& kernels, const DenseJob& job, const Chunk& chunk, const T* source,
                InputMap<T> map, bool skip, bool apart, int64_t pixels, const T** table, int64_t* pieces,
                int64_t* length) {
    if (map.gate)
      for (int64_t c = 0; c < chunk.channels; ++c) gate_[c] = map.gate[c * map.gate_stride];
    if (map.gate) map.gate = gate_, map.gate_stride = 1;
    PixelSlabArgs<T> args{};
    args.slab = slab_, args.source = source;
    args.channel_stride = job.is.c, args.column_stride = job.is.s[2], args.channels = chunk.channels;
    args.row_offset = row_offset_, args.rows = shape_.depth * shape_.height;
    args.columns = shape_.padded_columns, args.first = shape_.first_column(job), args.image_columns = job.in[2];
    args.column_map = column_map_;
    args.map = map;
    kernels.fill_pixel_slab(args);
    const bool joined = job.dilation[2] == 1 && chunk.taps == job.taps() && !apart;
    const int64_t taps = joined ? job.filter[2] : 1;
    *pieces = chunk.taps / taps;
    *length = taps * chunk.channels;
    const T* zeros = skip ? zeros_ : nullptr;
    if (skip) std::fill_n(zeros_, *length, T{0});
    const int64_t q = job.out[2], step = job.stride[2] * chunk.channels;
    for (int64_t i = 0; i < *pieces; ++i) {
      const int64_t t = chunk.t0 + i * taps, tap = tap_position_[t];
      const T* base = slab_ + tap * chunk.channels;
      const int64_t* rows = row_offset_ + tap / shape_.padded_columns;
      const T** entry = table + i * pixels;
      for (int64_t r = 0, j = 0; r < shape_.rows_out; ++r) {
        const int64_t end = row_end_[r];
        if (skip && rows[row_line_[r]] == kZeroRow) {
          for (; j < end; ++j) entry[j] = zeros;
          continue;
        }
        int64_t begin = 0, stop = end - j;
        if (skip && !joined) {
          const int64_t w = j - (shape_.first_row + r) * q;
          const int64_t first = w * job.stride[2] - job.pad[2] + t % job.filter[2] * job.dilation[2];
          pixels_inside(first, job.stride[2], job.in[2], end - j, &begin, &stop);
        }
        const T* at = base + row_position_[r] * chunk.channels;
        const T** const line = entry + j;
        for (int64_t n = 0; n < begin; ++n) line[n] = zeros;
        for (int64_t n = begin; n < stop; ++n) line[n] = at + n * step;
        for (j += stop; j < end; ++j) entry[j] = zeros;
      }
    }
    return zeros;
  }

 private:
  SlabShape shape_;
  T* slab_;
  int64_t* row_offset_;
  int64_t* column_map_;
  T* zeros_;
  T* gate_;
  // Of each row of pixels: its line in the slab, where its first pixel lies, its end.
  int64_t* row_line_;
  int64_t* row_position_;
  int64_t* row_end_;
  int64_t* tap_position_;
};

bool packs_late(const DenseJob& job, const Choice& choice);

// The share of pairs of an output and a tap, along some axes, that lie inside the image.
double share_inside(const DenseJob& job, int first, int end) {
  double inside = 1;
  for (int a = first; a < end; ++a) {
    int64_t in = 0;
    for (int64_t f = 0; f < job.filter[a]; ++f) {
      // Output positions o with 0 <= o * stride + shift < in.
      const int64_t shift = f * job.dilation[a] - job.pad[a], s = job.stride[a];
      const int64_t lo = shift >= 0 ? 0 : (-shift + s - 1) / s,
                    hi = shift >= job.in[a] ? 0 : (job.in[a] - 1 - shift) / s + 1;
      in += std::max<int64_t>(0, std::min(hi, job.out[a]) - lo);
    }
    inside *= static_cast<double>(in) / static_cast<double>(job.out[a] * job.filter[a]);
  }
  return inside;
}

// Whether images, which are joined or planes of a volume, are so small that much of a filter lies outside of them.
// (Zen 4, AVX-512, direct, call | plan, times as fast as in the order of the image: 3 x 3 of 8 images of 2 x 2 1.3
// | 1.6, of 3 x 3 1.4 | 1.5, of 4 x 4 1.25 | 1.3, with stride 2 1.15 | 1.3; 5 x 5 of 16 of 4 x 4 1.3 | 1.4.)
bool skips_by_image(const DenseJob& job) {
  return job.out[0] >= 4 && job.in[0] == job.out[0] && job.filter[0] == 1 && job.stride[0] == 1 && job.pad[0] == 0 &&
         job.mode == PaddingMode::zeros && job.taps() > 1 && job.out[1] * job.out[2] <= 16 &&
         share_inside(job, 1, 3) <= 0.75;
}

// Pixels of a box in an order by which the tiles skip more of the padding: those whose columns meet the same taps of a
// filter's row come together, from the left edge to the right. A tile skips a tap only where all its pixels do, and
// with a dilation of 6 the first six pixels of each row do. Of small images of a batch, the same pixel of all of them
// comes together: a pixel of 2 x 2 meets four taps of 3 x 3. Null: the order of the image, which suits as well.
template <class T>
class PixelOrder {
 public:
  PixelOrder(const Run<T>& run, const DenseJob& job, const Machine& machine, Arena& arena) {
    const int64_t q = job.out[2], rows = job.out[0] * job.out[1], m = job.pixels();
    const bool batch = skips_by_image(run.job), late = !run.packed && packs_late(run.job, run.choice);
    // Whether zeros are passed over a plan knows only after it has told its scratch.
    if (!(run.skip_zeros || (batch && late) || arena.counts())) return;
    if (!batch && !gains(run.job, rows, machine)) return;
    place_ = arena.take<int32_t>(m);
    line_ = arena.take<const T*>(m);
    if (arena.counts()) return;
    if (batch) {
      by_image_ = true;
      const int64_t plane = job.out[1] * q;
      for (int64_t n = 0; n < job.out[0]; ++n)
        for (int64_t i = 0; i < plane; ++i) place_[n * plane + i] = static_cast<int32_t>(i * job.out[0] + n);
      return;
    }
    // Columns met by the taps [lo, hi) of the filter's row, for one column after the other.
    int64_t next = 0;
    for (int64_t w = 0, end; w < q; w = end) {
      for (end = w + 1; end < q && meets(job, end) == meets(job, w);) ++end;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = w; i < end; ++i) place_[r * q + i] = static_cast<int32_t>(next++);
    }
  }

  // Where pixel i of the image's order is.
  int64_t operator()(int64_t i) const { return place_ ? place_[i] : i; }
  bool by_image() const { return by_image_; }

  // Brings lines of pointers into this order.
  void arrange(const T** table, int64_t lines, int64_t m) const {
    if (!place_) return;
    for (int64_t t = 0; t < lines; ++t, table += m) {
      std::copy_n(table, m, line_);
      for (int64_t i = 0; i < m; ++i) table[place_[i]] = line_[i];
    }
  }

  // Whether an edge's columns fill two tiles. The same for all boxes of a job, so that one amount of scratch serves.
  static bool gains(const DenseJob& job, int64_t rows, const Machine& machine) {
    return job.dilation[2] > 1 && job.filter[2] > 1 &&
           std::min(job.pad[2], job.dilation[2]) / job.stride[2] * rows >=
               2 * machine.tile_rows[preferred_vectors(machine)];
  }

 private:
  static std::pair<int64_t, int64_t> meets(const DenseJob& job, int64_t w) {
    int64_t lo, hi;
    pixels_inside(w * job.stride[2] - job.pad[2], job.dilation[2], job.in[2], job.filter[2], &lo, &hi);
    return {lo, hi};
  }
  bool by_image_ = false;
  int32_t* place_ = nullptr;
  const T** line_ = nullptr;
};

// A few rows of a dense layer use each weight so seldom that packing it costs more than the product.
bool reads_weights_in_place(const DenseJob& job, const Choice& choice) {
  return choice.role == Role::pixel_rows && job.taps() == 1 && job.N * job.pixels() <= kFewRows &&
         !choice.copy_pixels && (job.wc == 1 || job.C == 1);
}

// Weights that few blocks of pixels share are packed by the tasks, panel by panel, into the first-level cache; packed
// beforehand they would be written to memory and read again. With three blocks and more packing again costs more than
// that (3x3 of 128 channels at 28x28, five blocks, Zen 4: 170 us late, 114 beforehand; with two, 1024 > 256 at 14x14,
// 62 and 117).
bool packs_late(const DenseJob& job, const Choice& choice) {
  if (reads_weights_in_place(job, choice)) return false;
  // Each phase would fetch all cache lines of the weights for a few taps; packed beforehand, they share one sweep.
  if (job.phase) return false;
  // Columns of a matrix lie a row apart, often a power of two: those are packed in wide strips beforehand.
  if (job.taps() == 1 && job.wk == 1 && job.K > 1) return false;
  return choice.role == Role::pixel_rows &&
         job.N * ceil_div(job.pixels(), std::max<int64_t>(choice.pixel_block, 1)) <= 2;
}

// Packs the panel of output channels [k, k + columns) for one piece of the reduction.
template <class T>
void pack_panel(const DenseJob& job, const KernelTable<T>& kernels, const Chunk& chunk, const int64_t* tap_offset,
                int64_t g, int64_t k, int64_t columns, T* panel) {
  PackWeightsArgs<T> p{};
  p.panel = panel;
  p.w = static_cast<const T*>(job.weight) + g * job.wg + chunk.c0 * job.wc + k * job.wk;
  p.column_stride = job.wk, p.channel_stride = job.wc;
  p.tap_offset = tap_offset + chunk.t0;
  p.taps = chunk.taps, p.length = chunk.channels;
  p.columns = columns, p.valid = std::min(columns, job.K - k);
  kernels.pack_weights(p);
}

template <class T>
struct RowsTask {
  const T** table;
  T* zero_row;
  T** c;
  const T** r;
  T* panel;
  int64_t* tap_offset;
  Moved<T> moved;

  RowsTask(const DenseJob& job, const Choice& choice, const Machine& machine, int64_t m, int64_t k, Arena& arena)
      : table(arena.take<const T*>(job.taps() * m)),
        zero_row(choice.copy_pixels ? nullptr : arena.take<T>(job.C)),
        c(arena.take<T*>(m)),
        r(job.has_residual ? arena.take<const T*>(m) : nullptr),
        panel(packs_late(job, choice) ? arena.take<T>(choice.reduction_block() * machine.max_vectors * machine.lanes)
                                      : nullptr),
        tap_offset(packs_late(job, choice) ? arena.take<int64_t>(job.taps()) : nullptr),
        moved(job, choice, m, k, machine.lanes, arena) {}
};

// The part of a produced input that a task needs: one block of pixels, one piece of the channels.
template <class T>
struct Produced {
  T* data = nullptr;
  void* scratch = nullptr;
  int64_t pitch = 0;  // between channels, where pixels are neighbours

  Produced(const Run<T>& run, const DenseJob& part, const Choice& choice, Arena& arena) {
    if (!run.producer) return;
    const int64_t n = part.pixels(), channels = choice.chunks[0].channels;
    // Off multiples of 4 KB, which fall into the same sets of the first-level cache.
    pitch = round_up(n, 16) + 16;
    data = arena.take<T>(channels * pitch + 64);
    scratch = arena.take<char>(run.producer->scratch(part.out, channels));
  }
  void fill(const Run<T>& run, const DenseJob& part, int64_t image, const Chunk& chunk, int64_t channel_step,
            int64_t pixel_step) const {
    const int64_t at[3] = {-part.pad[0], -part.pad[1], -part.pad[2]};
    run.producer->fill(image, at, part.out, chunk.c0, chunk.channels, data, pixel_step, channel_step, scratch);
  }
};

template <class T>
void run_rows(const Run<T>& run, const DenseJob& job, const Context<T>& ctx, const Task& task, Arena& arena) {
  const Choice& choice = run.choice;
  const int64_t m = job.pixels(), W = ctx.machine.lanes, T_all = job.taps();
  RowsTask<T> s(job, choice, ctx.machine, m, task.k1 - task.k0, arena);
  const T* image = static_cast<const T*>(job.input) + task.n * job.is.n + task.g * job.C * job.is.c;
  alignas(PixelSlab<T>) unsigned char storage[sizeof(PixelSlab<T>)];
  PixelSlab<T>* slab = nullptr;
  const Producer<T>* producer = run.producer;
  Produced<T> made(run, job, choice, arena);
  const PixelOrder<T> order(run, job, ctx.machine, arena);
  if (producer) {
    // Filled piece by piece below.
  } else if (choice.copy_pixels) {
    slab = new (storage) PixelSlab<T>(job, 0, m, choice.chunks[0].channels, 0, arena);
    slab->prepare(job, 0, m);
  } else {
    std::fill_n(s.zero_row, job.C, T{0});
    pixel_pointers<T>(job, image, s.zero_row, 0, m, s.table);
    order.arrange(s.table, T_all, m);
  }

  T* out = static_cast<T*>(job.output) + task.n * job.os.n + task.g * job.K * job.os.c;
  Moved<T>& moved = s.moved;
  const bool fanned = job.fan.count() > 0;
  if (moved.output) {
    for (int64_t i = 0; i < m; ++i) s.c[order(i)] = moved.output + i * moved.pitch - task.k0;
    if (!fanned) {
      pixel_offsets(job.out, job.os, [&](int64_t i, int64_t offset) { moved.row_offset[i] = offset; });
      for (int64_t k = task.k0; k < task.k1; ++k) moved.column_offset[k - task.k0] = k * job.os.c;
    }
  } else {
    pixel_offsets(job.out, job.os, [&](int64_t i, int64_t offset) { s.c[order(i)] = out + offset; });
  }
  if (job.has_residual) {
    T* residual = static_cast<T*>(const_cast<void*>(job.residual)) + task.n * job.rs.n + task.g * job.K * job.rs.c;
    if (!moved.residual) {
      pixel_offsets(job.out, job.rs, [&](int64_t i, int64_t offset) { s.r[order(i)] = residual + offset; });
    } else {
      for (int64_t i = 0; i < m; ++i) s.r[order(i)] = moved.residual + i * moved.pitch - task.k0;
      auto move = [&](T* tensor, T* buffer, int64_t rows, int64_t columns) {
        move_in(ctx.kernels, tensor, buffer, moved.pitch, moved.residual_row, moved.residual_column, rows, columns);
      };
      if (fanned) {
        // Pixels that some phases lack have no residual.
        std::fill_n(moved.residual, m * moved.pitch, T{0});
        move_fan(job, job.rs, task, residual, moved.residual, moved.pitch, true, moved.residual_row,
                 moved.residual_column, move);
      } else {
        pixel_offsets(job.out, job.rs, [&](int64_t i, int64_t offset) { moved.residual_row[i] = offset; });
        for (int64_t k = task.k0; k < task.k1; ++k) moved.residual_column[k - task.k0] = k * job.rs.c;
        move(residual, moved.residual, m, task.k1 - task.k0);
      }
    }
  }

  const Panels panels(ceil_div(job.K, W), ctx.machine);
  const int64_t padded_k = panels.vectors * W;
  GemmArgs<T> g{};
  g.m = m;
  g.panels = 1;
  g.c = s.c;
  g.far = !moved.output && exceeds_l2<T>(run.job, ctx.machine);
  g.residual = s.r;
  g.row_step = 1;
  const T* group = run.packed ? run.packed + task.g * padded_k * job.C * T_all : nullptr;
  const bool in_place = !group && reads_weights_in_place(run.job, choice);
  // Weights that are packed here are looked at here.
  const bool looks = order.by_image() && !run.skip_zeros;
  const T* zero_row = nullptr;
  if (!group && !in_place) tap_offsets(job, s.tap_offset);
  if (in_place) {
    // Every column's weights are read from end to end.
    for (int64_t k = task.k0; k < task.k1; k += g.vectors * W) {
      const int64_t columns = std::min(task.k1 - k, W);
      g.vectors = 1;
      g.tail = static_cast<int32_t>(columns);
      g.weights_pitch = job.wk;
      g.c_offset = g.residual_offset = k;
      set_finish(ctx.finish, task.g * job.K + k, &g);
      for (size_t i = 0; i < choice.chunks.size(); ++i) {
        const Chunk& chunk = choice.chunks[i];
        g.rows = s.table, g.row_offset = chunk.c0, g.length = chunk.channels;
        g.weights = static_cast<const T*>(job.weight) + task.g * job.wg + chunk.c0 + k * job.wk;
        g.accumulate = i > 0 || (ctx.accumulate && !moved.output);
        g.finish = i + 1 == choice.chunks.size();
        ctx.kernels.gemm(g);
      }
    }
  }
  int64_t terms_before = 0;
  for (size_t i = 0; i < choice.chunks.size() && !in_place; ++i) {
    const Chunk& chunk = choice.chunks[i];
    const int64_t terms = terms_of(chunk);
    if (producer) {
      made.fill(run, job, task.n, chunk, 1, chunk.channels);
      for (int64_t j = 0; j < m; ++j) s.table[j] = made.data + j * chunk.channels;
      g.rows = s.table, g.row_pitch = m, g.row_offset = 0;
      g.taps = 1, g.length = chunk.channels;
      g.zero_row = nullptr;
    } else if (slab) {
      g.zero_row = slab->fill(ctx.kernels, job, chunk, image + chunk.c0 * job.is.c,
                              map_at(ctx.map, task.n, ctx.gate_batch_stride, task.g * job.C + chunk.c0),
                              run.skip_zeros || looks, order.by_image(), m, s.table, &g.taps, &g.length);
      order.arrange(s.table, g.taps, m);
      g.rows = s.table, g.row_pitch = m;
    } else {
      g.rows = s.table + chunk.t0 * m, g.row_pitch = m, g.row_offset = chunk.c0;
      g.taps = chunk.taps, g.length = chunk.channels;
      g.zero_row = run.skip_zeros || looks ? s.zero_row : nullptr;
    }
    zero_row = g.zero_row;
    g.accumulate = i > 0 || (ctx.accumulate && !moved.output);
    g.finish = i + 1 == choice.chunks.size();
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t k = panels.start(p) * W;
      if (k < task.k0 || k >= task.k1) continue;
      g.vectors = static_cast<int32_t>(panels.width(p));
      g.tail = static_cast<int32_t>(std::min(W, job.K - k - (g.vectors - 1) * W));
      if (group) {
        g.panel = group + terms_before * padded_k + k * terms;
      } else {
        if (terms) pack_panel(job, ctx.kernels, chunk, s.tap_offset, task.g, k, g.vectors * W, s.panel);
        g.panel = s.panel;
        if (looks && zero_row)
          g.zero_row = std::isfinite(ctx.kernels.sum_run(s.panel, terms * g.vectors * W, 1)) ? zero_row : nullptr;
        // In a gradient the weights of a panel are short runs far apart: the next panel's are asked for now.
        g.next_rows = 0;
        if (job.wk < job.wc && k + g.vectors * W < task.k1) {
          g.next =
              static_cast<const T*>(job.weight) + task.g * job.wg + chunk.c0 * job.wc + (k + g.vectors * W) * job.wk;
          g.next_rows = chunk.channels, g.next_pitch = job.wc, g.next_width = g.vectors * W * job.wk;
        }
      }
      g.c_offset = g.residual_offset = k;
      set_finish(ctx.finish, task.g * job.K + k, &g);
      ctx.kernels.gemm(g);
    }
    terms_before += terms;
  }
  auto move = [&](T* tensor, T* buffer, int64_t rows, int64_t columns) {
    move_out(ctx.kernels, tensor, buffer, moved.pitch, moved.row_offset, moved.column_offset, rows, columns,
             ctx.accumulate);
  };
  if (fanned)
    move_fan(job, job.os, task, out, moved.output, moved.pitch, true, moved.row_offset, moved.column_offset, move);
  else if (moved.output)
    move(out, moved.output, m, task.k1 - task.k0);
}

// --- Role: pixel columns

template <class T>
void run_columns(const Run<T>& run, const DenseJob& job, const Context<T>& ctx, const Task& task, Arena& arena) {
  const Choice& choice = run.choice;
  const int64_t n = job.pixels(), rows = task.k1 - task.k0, W = ctx.machine.lanes, T_all = job.taps();
  const Panels panels(ceil_div(n, W), ctx.machine);
  T* panel = arena.take<T>(panel_elements<T>(choice, ctx.machine));
  int64_t* source_offset = arena.take<int64_t>(choice.reduction_block());
  const T** a = arena.take<const T*>(rows);
  T** c = arena.take<T*>(rows);
  const T** r = job.has_residual ? arena.take<const T*>(rows) : nullptr;
  Moved<T> moved(job, choice, rows, n, W, arena);
  const int64_t out_rows = job.out[0] * job.out[1];
  Segment* clipped = arena.take<Segment>(out_rows);
  Segment* direct = choice.direct ? arena.take<Segment>(out_rows) : nullptr;
  const int64_t channels = choice.chunks[0].channels;

  T* out = static_cast<T*>(job.output) + task.n * job.os.n + task.g * job.K * job.os.c;
  const bool fanned = job.fan.count() > 0;
  for (int64_t k = 0; k < rows; ++k) {
    if (moved.output) {
      if (!fanned) moved.row_offset[k] = (task.k0 + k) * job.os.c;
      c[k] = moved.output + k * moved.pitch;
    } else {
      c[k] = out + (task.k0 + k) * job.os.c;
    }
  }
  if (moved.output && !fanned)
    pixel_offsets(job.out, job.os, [&](int64_t j, int64_t offset) { moved.column_offset[j] = offset; });
  if (job.has_residual) {
    T* residual = static_cast<T*>(const_cast<void*>(job.residual)) + task.n * job.rs.n + task.g * job.K * job.rs.c;
    for (int64_t k = 0; k < rows; ++k) {
      if (moved.residual) {
        if (!fanned) moved.residual_row[k] = (task.k0 + k) * job.rs.c;
        r[k] = moved.residual + k * moved.pitch;
      } else {
        r[k] = residual + (task.k0 + k) * job.rs.c;
      }
    }
    if (moved.residual) {
      auto move = [&](T* tensor, T* buffer, int64_t m, int64_t columns) {
        move_in(ctx.kernels, tensor, buffer, moved.pitch, moved.residual_row, moved.residual_column, m, columns);
      };
      if (fanned) {
        std::fill_n(moved.residual, rows * moved.pitch, T{0});
        move_fan(job, job.rs, task, residual, moved.residual, moved.pitch, false, moved.residual_row,
                 moved.residual_column, move);
      } else {
        pixel_offsets(job.out, job.rs, [&](int64_t j, int64_t offset) { moved.residual_column[j] = offset; });
        move(residual, moved.residual, rows, n);
      }
    }
  }

  const T* image = static_cast<const T*>(job.input) + task.n * job.is.n + task.g * job.C * job.is.c;
  const T* weights =
      run.packed ? run.packed + task.g * job.K * job.C * T_all : static_cast<const T*>(job.weight) + task.g * job.wg;
  GemmArgs<T> g{};
  g.rows = a;
  g.row_step = 1;
  g.taps = 1;
  g.m = rows;
  g.panel = panel;
  g.c = c;
  g.far = !moved.output && exceeds_l2<T>(run.job, ctx.machine);
  g.residual = r;
  g.channel_rows = 1;
  set_finish(ctx.finish, task.g * job.K + task.k0, &g);
  const int64_t zero_offset = 0;

  // A product without taps (a residue of the stride that no tap meets) has nothing to pack.
  const bool reads = T_all > 0;
  const Segment* segments = direct;
  int64_t segment_count = 0;
  alignas(Slab<T>) unsigned char storage[sizeof(Slab<T>)];
  Slab<T>* slab = nullptr;
  Produced<T> made(run, job, choice, arena);
  Segment whole{0, 0, n};
  if (run.producer) {
    segments = &whole, segment_count = 1;
  } else if (reads && choice.direct) {
    segment_count = image_segments(job, 0, n, direct);
  } else if (reads) {
    slab = new (storage) Slab<T>(job, 0, n, channels, W, arena);
    slab->prepare(job, 0, n);
    segments = slab->segments();
    segment_count = slab->segment_count();
  }

  int64_t terms_before = 0, filled = -1;
  for (size_t i = 0; i < choice.chunks.size(); ++i) {
    const Chunk& chunk = choice.chunks[i];
    const int64_t terms = terms_of(chunk);
    const T* source = image + chunk.c0 * job.is.c;
    if (run.producer) made.fill(run, job, task.n, chunk, made.pitch, 1);
    if (slab && filled != chunk.c0) {
      slab->fill(ctx.kernels, source, chunk.channels,
                 map_at(ctx.map, task.n, ctx.gate_batch_stride, task.g * job.C + chunk.c0));
      filled = chunk.c0;
    }
    for (int64_t k = 0; k < rows; ++k)
      a[k] = run.packed ? weights + terms_before * job.K + (task.k0 + k) * terms
                        : weights + (task.k0 + k) * job.wk + chunk.c0 * T_all + chunk.t0;
    g.length = terms;
    g.accumulate = i > 0 || (ctx.accumulate && !moved.output);
    g.finish = i + 1 == choice.chunks.size();
    const int64_t channel_pitch = slab ? slab->channel_pitch() : run.producer ? made.pitch : job.is.c;
    const int64_t* tap_offset = slab ? slab->tap_offset() + chunk.t0 : &zero_offset;
    if (reads)
      for (int64_t c0 = 0, t = 0; c0 < chunk.channels; ++c0)
        for (int64_t tap = 0; tap < chunk.taps; ++tap) source_offset[t++] = c0 * channel_pitch + tap_offset[tap];
    const T* data = slab ? slab->data() : run.producer ? made.data : source;
    for (int64_t p = 0; p < panels.count; p += g.panels) {
      const int64_t j = panels.start(p) * W;
      g.vectors = static_cast<int32_t>(panels.width(p));
      g.panel_pitch = terms * g.vectors * W;
      // Panels whose pixels are one run are read where they lie by the first tile, which packs them for the others. An
      // image ends where its tail ends; a slab can be read beyond.
      g.source = nullptr;
      g.panels = reads ? panels.alike(p, panels_together<T>(ctx.machine, g.panel_pitch), n / W) : 1;
      int64_t columns, runs;
      for (;; g.panels = 1) {
        columns = std::min(g.panels * g.vectors * W, n - j);
        runs = clip_segments(segments, segment_count, j, j + columns, clipped);
        if (runs == 1 || g.panels == 1) break;
      }
      g.tail = static_cast<int32_t>(columns - (g.panels * g.vectors - 1) * W);
      if (reads) {
        if (runs == 1 && (slab || run.producer || g.tail == W)) {
          g.source = data + clipped[0].offset;
          g.source_offset = source_offset;
          g.pack = rows > ctx.machine.tile_rows[g.vectors] ? panel : nullptr;
        } else {
          PackColumnsArgs<T> pack{};
          pack.panel = panel;
          pack.source = data;
          pack.channel_stride = channel_pitch;
          pack.tap_offset = tap_offset;
          pack.channels = chunk.channels;
          pack.taps = chunk.taps;
          pack.segments = clipped;
          pack.segment_count = runs;
          pack.columns = g.vectors * W;
          pack.exact = choice.direct;
          ctx.kernels.pack_columns(pack);
        }
      }
      g.c_offset = g.residual_offset = j;
      ctx.kernels.gemm(g);
    }
    terms_before += terms;
  }
  auto move = [&](T* tensor, T* buffer, int64_t m, int64_t columns) {
    move_out(ctx.kernels, tensor, buffer, moved.pitch, moved.row_offset, moved.column_offset, m, columns,
             ctx.accumulate);
  };
  if (fanned)
    move_fan(job, job.os, task, out, moved.output, moved.pitch, false, moved.row_offset, moved.column_offset, move);
  else if (moved.output)
    move(out, moved.output, rows, n);
}

template <class T>
void run_part(const Run<T>& run, const DenseJob& part, const Context<T>& ctx, const Task& task, void* scratch) {
  Arena arena(scratch);
  if (run.choice.role == Role::pixel_rows)
    run_rows(run, part, ctx, task, arena);
  else
    run_columns(run, part, ctx, task, arena);
}

int64_t lanes_of_pixels(const Choice& choice, const Machine& m) {
  return choice.role == Role::pixel_columns ? m.lanes : 1;
}

// How a job is cut: pixel blocks times ranges of output channels.
struct Cut {
  PixelBlocks blocks;
  int64_t k_parts, k_size, tasks;

  // `late`: the tasks pack the weights that they use, so that a second block of pixels would pack them again.
  Cut(const DenseJob& job, const Choice& choice, const Machine& m, int64_t item_size, int64_t want, bool late)
      : blocks(job, choice, choice.pixel_block, lanes_of_pixels(choice, m)) {
    const int64_t unit = choice.role == Role::pixel_rows ? preferred_vectors(m) * m.lanes : 16;
    k_size = job.K;
    // A buffer for a moved output holds at most half a megabyte.
    if (choice.move_output || choice.move_residual)
      k_size = std::min(k_size,
                        std::max(unit, (512 << 10) / item_size / std::max<int64_t>(blocks.largest(), 1) / unit * unit));
    int64_t have = job.N * job.G * blocks.count;
    if (have < want && !late) {
      // Smaller blocks first: they repeat less work than a second pass over the same pixels.
      const int64_t least =
          choice.role == Role::pixel_rows ? 4 * m.tile_rows[preferred_vectors(m)] : 4 * preferred_vectors(m) * m.lanes;
      const int64_t pieces = ceil_div(want, std::max<int64_t>(have, 1));
      const int64_t smaller = std::max(least, ceil_div(blocks.largest(), pieces));
      if (smaller < choice.pixel_block) {
        blocks = PixelBlocks(job, choice, smaller, lanes_of_pixels(choice, m));
        have = job.N * job.G * blocks.count;
      }
    }
    if (have < want && have > 0) k_size = std::min(k_size, std::max(4 * unit, ceil_div(job.K, ceil_div(want, have))));
    if (choice.role == Role::pixel_columns || k_size >= job.K) {
      k_size = std::min(job.K, round_up(k_size, unit));
      k_parts = ceil_div(job.K, k_size);
    } else {
      // Ranges of whole panels.
      const Panels panels(ceil_div(job.K, m.lanes), m);
      k_parts = std::min(panels.count, ceil_div(job.K, k_size));
      k_size = 0;
    }
    tasks = job.N * job.G * blocks.count * k_parts;
  }

  Task task(const DenseJob& job, const Machine& m, int64_t i) const {
    Task t{};
    const int64_t k = i % k_parts;
    t.block = i / k_parts % blocks.count;
    t.g = i / k_parts / blocks.count % job.G;
    t.n = i / k_parts / blocks.count / job.G;
    if (k_size) {
      t.k0 = k * k_size, t.k1 = std::min(job.K, t.k0 + k_size);
    } else {
      const Panels panels(ceil_div(job.K, m.lanes), m);
      t.k0 = panels.start(k * panels.count / k_parts) * m.lanes;
      t.k1 = std::min(job.K, panels.start((k + 1) * panels.count / k_parts) * m.lanes);
    }
    return t;
  }
};

// Scratch for a box of pixels and so many output channels, found by carving a block that is not there.
template <class T>
int64_t part_bytes(const Run<T>& run, const Machine& machine, const int64_t size[3], int64_t rows) {
  const DenseJob& job = run.job;
  const Choice& choice = run.choice;
  DenseJob part = job;
  for (int a = 0; a < 3; ++a) part.out[a] = size[a];
  const int64_t n = part.pixels(), W = machine.lanes;
  Arena count(nullptr);
  Produced<T>(run, part, choice, count);
  if (choice.role == Role::pixel_rows) {
    if (choice.copy_pixels && !run.producer) PixelSlab<T>(part, 0, n, choice.chunks[0].channels, 0, count);
    PixelOrder<T>(run, part, machine, count);
    RowsTask<T>(part, choice, machine, n, rows, count);
    return count.size();
  }
  count.take<T>(panel_elements<T>(choice, machine));
  count.take<int64_t>(choice.reduction_block());
  count.take<T*>(3 * rows + 24);
  Moved<T>(part, choice, rows, n, W, count);
  count.take<Segment>(2 * part.out[0] * part.out[1] + 4);
  if (!choice.direct && job.taps() > 0 && !run.producer) Slab<T>(part, 0, n, choice.chunks[0].channels, W, count);
  return count.size();
}

// Scratch of the largest task.
template <class T>
int64_t scratch_bytes(const Run<T>& run, const Machine& machine, const Cut& cut) {
  int64_t rows = 0;
  for (int64_t k = 0; k < cut.k_parts; ++k) {
    const Task task = cut.task(run.job, machine, k);
    rows = std::max(rows, task.k1 - task.k0);
  }
  return part_bytes(run, machine, cut.blocks.size, rows);
}

double job_nanoseconds(const DenseJob& job) {
  // About 50 GFLOP/s a core: only the order of magnitude matters, for the cut-off below which one thread runs alone.
  const double macs =
      static_cast<double>(job.N) * job.G * job.K * job.pixels() * std::max<int64_t>(1, job.C * job.taps());
  return macs * 0.04;
}

}  // namespace

// Of a product by Winograd: what the direct one reads. Tasks pack the weights of tiles that are not finite, where the
// caller still has them.
static int64_t direct_size(const DenseJob& job, Choice choice, const Machine& m, bool keep) {
  choice.winograd = 0;
  return keep ? packed_size(job, choice, m, true) : 0;
}

int64_t packed_size(const DenseJob& job, const Choice& choice, const Machine& m, bool keep) {
  if (choice.depthwise) return packed_filters_size(job, choice, m, keep);
  if (choice.winograd)
    return !keep && points_late(job, choice) ? 0 : direct_size(job, choice, m, keep) + winograd_size(job, choice, m);
  const int64_t terms = job.C * job.taps();
  if (choice.role == Role::pixel_rows)
    return !keep && (reads_weights_in_place(job, choice) || packs_late(job, choice))
               ? 0
               : job.G * round_up(job.K, m.lanes) * terms;
  return keep || !weights_are_rows(job) ? job.G * job.K * terms : 0;
}

namespace {

// The weights of several phases in one sweep: each tap's cache lines are fetched once, and go where its phase has them.
template <class T>
Status pack_phases(const std::vector<Run<T>>& runs, const Machine& m, const KernelTable<T>& kernels) {
  const DenseJob& job = runs[0].job;
  const T* weight = static_cast<const T*>(job.weight);
  struct Tap {
    int64_t offset;  // from `weight`
    size_t run;
    int64_t index;   // within the run
  };
  std::vector<Tap> taps;
  for (size_t r = 0; r < runs.size(); ++r) {
    std::vector<int64_t> offset(static_cast<size_t>(runs[r].job.taps()));
    tap_offsets(runs[r].job, offset.data());
    const int64_t first = static_cast<const T*>(runs[r].job.weight) - weight;
    for (size_t t = 0; t < offset.size(); ++t) taps.push_back({first + offset[t], r, static_cast<int64_t>(t)});
  }
  std::sort(taps.begin(), taps.end(), [](const Tap& a, const Tap& b) { return a.offset < b.offset; });
  std::vector<int64_t> tap_offset;
  for (const Tap& tap : taps) tap_offset.push_back(tap.offset);
  const int64_t count = static_cast<int64_t>(taps.size());
  if (count == 0) return Status::ok;
  const Panels panels(ceil_div(job.K, m.lanes), m);
  const int64_t padded_k = panels.vectors * m.lanes;
  const double work = static_cast<double>(job.G) * job.K * job.C * count * 0.7;
  std::atomic<bool> failed{false};
  const Status status = parallel_for(job.G * panels.count, work, [&](int64_t i, int) {
    const int64_t panel = i % panels.count, g = i / panels.count;
    const int64_t k = panels.start(panel) * m.lanes, columns = panels.width(panel) * m.lanes;
    Workspace scratch(sizeof(T*) * static_cast<size_t>(count));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    T** rows = static_cast<T**>(scratch.data());
    for (int64_t c = 0, end; c < job.C; c = end) {
      // Channels up to the end of some phase's piece of the reduction.
      end = job.C;
      for (int64_t t = 0; t < count; ++t) {
        const Run<T>& run = runs[taps[t].run];
        const T* base = run.packed + g * padded_k * job.C * run.job.taps();
        for (const Chunk& chunk : run.choice.chunks) {
          const int64_t tap = taps[t].index - chunk.t0;
          if (c >= chunk.c0 && c < chunk.c0 + chunk.channels && tap >= 0 && tap < chunk.taps) {
            rows[t] = const_cast<T*>(base) + k * terms_of(chunk) + (tap * chunk.channels + c - chunk.c0) * columns;
            end = std::min(end, chunk.c0 + chunk.channels);
          }
          base += terms_of(chunk) * padded_k;
        }
      }
      PackWeightsArgs<T> p{};
      p.w = weight + g * job.wg + c * job.wc + k * job.wk;
      p.column_stride = job.wk, p.channel_stride = job.wc;
      p.tap_offset = tap_offset.data();
      p.taps = count, p.length = end - c;
      p.tap_panel = rows;
      p.columns = columns, p.valid = std::min(columns, job.K - k);
      kernels.pack_weights(p);
    }
  });
  return failed ? Status::out_of_memory : status;
}

template <class T>
Status pack_job(const DenseJob& job, const Choice& choice, const Machine& m, const KernelTable<T>& kernels, T* packed) {
  const int64_t T_all = job.taps(), W = m.lanes;
  if (T_all == 0) return Status::ok;
  Workspace scratch(sizeof(int64_t) * T_all);
  if (!scratch) return Status::out_of_memory;
  int64_t* tap_offset = static_cast<int64_t*>(scratch.data());
  tap_offsets(job, tap_offset);
  const bool rows = choice.role == Role::pixel_columns;
  const Panels panels(ceil_div(job.K, W), m);
  // Columns of a matrix (the input gradient of a 1x1): strips of many panels, a few rows at a time, so that a row is
  // read in one go; a panel's 64 bytes of each row would be a cache miss a row.
  const bool strips = T_all == 1 && job.wk == 1 && job.K > 1;
  const int64_t strip = strips ? 16 : 1, row_part = strips ? 256 : 32;
  const int64_t parts = rows ? ceil_div(job.K, row_part) : ceil_div(panels.count, strip);
  const int64_t padded_k = rows ? job.K : panels.vectors * W;
  const int64_t chunks = static_cast<int64_t>(choice.chunks.size());
  const double work = static_cast<double>(job.G) * job.K * job.C * T_all * 0.7;
  return parallel_for(job.G * chunks * parts, work, [&](int64_t i, int) {
    const int64_t part = i % parts, ci = i / parts % chunks, g = i / parts / chunks;
    int64_t terms_before = 0;
    for (int64_t c = 0; c < ci; ++c) terms_before += terms_of(choice.chunks[c]);
    const Chunk& chunk = choice.chunks[ci];
    T* base = packed + g * padded_k * job.C * T_all + terms_before * padded_k;
    if (!rows) {
      const int64_t step = strips ? 8 : chunk.channels, last = std::min(panels.count, (part + 1) * strip);
      for (int64_t c = 0; c < chunk.channels; c += step)
        for (int64_t panel = part * strip; panel < last; ++panel) {
          const int64_t k = panels.start(panel) * W, columns = panels.width(panel) * W;
          const Chunk piece{chunk.c0 + c, std::min(step, chunk.channels - c), chunk.t0, chunk.taps};
          pack_panel(job, kernels, piece, tap_offset, g, k, columns, base + k * terms_of(chunk) + c * columns);
        }
      return;
    }
    const int64_t k = part * row_part;
    PackWeightsArgs<T> p{};
    p.panel = base + k * terms_of(chunk);
    p.w = static_cast<const T*>(job.weight) + g * job.wg + chunk.c0 * job.wc + k * job.wk;
    p.column_stride = job.wk, p.channel_stride = job.wc;
    p.tap_offset = tap_offset + chunk.t0;
    p.taps = chunk.taps, p.length = chunk.channels;
    p.columns = terms_of(chunk), p.valid = std::min(row_part, job.K - k);
    kernels.pack_weight_rows(p);
  });
}

}  // namespace

template <class T>
Status pack_runs(std::vector<Run<T>>& runs, const Machine& m, const KernelTable<T>& kernels, bool keep, T* block) {
  bool phases = runs.size() > 1;
  for (Run<T>& run : runs) {
    const int64_t size = packed_size(run.job, run.choice, m, keep);
    run.packed = size > 0 ? block : nullptr;
    block += size;
    phases = phases && run.choice.role == Role::pixel_rows && (size > 0 || run.job.taps() == 0);
  }
  if (phases && !runs[0].choice.depthwise) return pack_phases(runs, m, kernels);
  for (Run<T>& run : runs) {
    if (run.choice.depthwise) {
      const Status s = prepare_filters(&run, m, kernels, keep);
      if (s != Status::ok) return s;
      continue;
    }
    if (!run.packed) continue;
    if (run.choice.winograd) {
      run.direct_size = direct_size(run.job, run.choice, m, keep);
      T* const points = const_cast<T*>(run.packed) + run.direct_size;
      const Status s = pack_winograd(run.job, run.choice, m, kernels, points);
      if (s != Status::ok) return s;
      if (run.direct_size == 0) continue;
    }
    const Status s = pack_job(run.job, run.choice, m, kernels, const_cast<T*>(run.packed));
    if (s != Status::ok) return s;
  }
  return Status::ok;
}

template <class T>
bool may_skip_zeros(const DenseJob& job, const Choice& choice, const Machine& machine, bool always) {
  // A sum for each channel looks at its filters when they are packed.
  if (choice.depthwise || choice.winograd || choice.role != Role::pixel_rows || job.mode != PaddingMode::zeros ||
      job.taps() < 2)
    return false;
  // The share of (row, tap) pairs that lie outside the image. Columns count only where a whole tile of pixels is
  // outside.
  const bool columns = job.pad[2] >= 6 || PixelOrder<T>::gains(job, 8, machine);
  const double inside = share_inside(job, 0, columns ? 3 : 2);
  if ((1 - inside) * static_cast<double>(job.pixels()) < (always ? 0.5 : 32)) return false;
  T sum = 0;  // of 0 * w: NaN where a weight is not finite
  for (int64_t g = 0; g < job.G; ++g)
    for (int64_t k = 0; k < job.K; ++k)
      for (int64_t c = 0; c < job.C; ++c) {
        const T* w = static_cast<const T*>(job.weight) + g * job.wg + k * job.wk + c * job.wc;
        for (int64_t d = 0; d < job.filter[0]; ++d)
          for (int64_t h = 0; h < job.filter[1]; ++h)
            for (int64_t i = 0; i < job.filter[2]; ++i) sum += 0 * w[d * job.wf[0] + h * job.wf[1] + i * job.wf[2]];
      }
  return sum == 0;
}

template <class T>
Status run_dense(const std::vector<Run<T>>& runs, const Machine& machine, const KernelTable<T>& kernels,
                 const Finish<T>& finish, const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate) {
  if (runs[0].choice.depthwise)
    return run_depthwise(runs, machine, kernels, finish, map, gate_batch_stride, accumulate);
  if (runs[0].choice.winograd)
    return run_winograd(runs[0], machine, kernels, finish, map, gate_batch_stride, accumulate);
  const Context<T> ctx{machine, kernels, finish, map, gate_batch_stride, accumulate};
  double work = 0;
  for (const Run<T>& run : runs) work += job_nanoseconds(run.job);
  const int64_t want = wanted_tasks(work);
  std::vector<Cut> cuts;
  cuts.reserve(runs.size());
  int64_t tasks = 0, bytes = 0;
  for (const Run<T>& run : runs) {
    cuts.emplace_back(run.job, run.choice, machine, sizeof(T), want, !run.packed && packs_late(run.job, run.choice));
    const Cut& cut = cuts.back();
    tasks += cut.tasks;
    if (cut.tasks) bytes = std::max(bytes, scratch_bytes<T>(run, machine, cut));
  }
  if (tasks == 0) return Status::ok;
  // Phases read the same input: one block of it after the other, in all of them.
  const bool interleaved =
      std::all_of(cuts.begin(), cuts.end(), [&](const Cut& c) { return c.tasks == cuts[0].tasks; });
  std::atomic<bool> failed{false};
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
    const Task task = cuts[r].task(runs[r].job, machine, i);
    run_part(runs[r], cuts[r].blocks.template part<T>(runs[r].job, task.block), ctx, task, scratch.data());
  });
  return failed ? Status::out_of_memory : status;
}

template <class T>
int64_t task_workspace(const Run<T>& run, const Machine& machine) {
  if (run.choice.depthwise) return depthwise_workspace<T>({run}, machine);
  if (run.choice.winograd) return winograd_workspace(run, machine);
  return scratch_bytes<T>(run, machine, Cut(run.job, run.choice, machine, sizeof(T), 1, false));
}

template <class T>
int64_t box_workspace(const Run<T>& run, const Machine& machine, const int64_t size[3]) {
  return part_bytes(run, machine, size, run.job.K);
}

template <class T>
void run_box(const Run<T>& run, const Machine& machine, const KernelTable<T>& kernels, const Finish<T>& finish,
             int64_t n, const int64_t at[3], const int64_t size[3], void* scratch) {
  const InputMap<T> no_map{};
  const Context<T> ctx{machine, kernels, finish, no_map, 0, false};
  run_part(run, box_of<T>(run.job, at, size), ctx, Task{n, 0, 0, 0, run.job.K}, scratch);
}

template <class T>
int64_t direct_box_workspace(const Run<T>& run, const Machine& machine, const int64_t size[3]) {
  return part_bytes(run, machine, size, run.job.K);
}

template <class T>
void run_direct_box(const Run<T>& run, const Context<T>& ctx, int64_t n, int64_t g, int64_t k0, int64_t k1,
                    const int64_t at[3], const int64_t size[3], void* scratch) {
  run_part(run, box_of<T>(run.job, at, size), ctx, Task{n, g, 0, k0, k1}, scratch);
}
template int64_t direct_box_workspace<float>(const Run<float>&, const Machine&, const int64_t[3]);
template int64_t direct_box_workspace<double>(const Run<double>&, const Machine&, const int64_t[3]);
template void run_direct_box<float>(const Run<float>&, const Context<float>&, int64_t, int64_t, int64_t, int64_t,
                                    const int64_t[3], const int64_t[3], void*);
template void run_direct_box<double>(const Run<double>&, const Context<double>&, int64_t, int64_t, int64_t, int64_t,
                                     const int64_t[3], const int64_t[3], void*);

// --- The gradient of the weights
//
// dw[k][(c, t)] sums over pixels: the rows are dy, read in place with the distance between pixels as the step; the
// panel holds a run of pixels' inputs, a column for each (c, t).
//
// Where the image's columns are neighbours, a slab of a few channels is filled as in the forward pass and the columns
// of the panel are transposed out of it. Where its channels are neighbours, a row of the panel is a copy of one pixel's
// channels for one tap; dw is then made as [k][t][c] and transposed at the end.

namespace {

// Runs of pixels of about `terms` each whose dy is a constant step apart.
struct PixelRuns {
  int64_t row, rows, per_row, size, count;
  PixelRuns(const DenseJob& job, int64_t terms) {
    int64_t step;
    const bool uniform = uniform_pixels(job.out, job.os, &step);
    const int64_t plane = job.out[1] * job.out[2];
    // Large planes are not joined: the input of a run that crosses into the next plane would be both of them.
    row = !uniform ? job.out[2] : job.out[0] > 1 && plane * 2 > terms ? plane : job.pixels();
    rows = job.pixels() / row;
    per_row = ceil_div(row, terms);
    size = ceil_div(row, per_row);
    per_row = ceil_div(row, size);
    count = rows * per_row;
  }
  void range(int64_t i, int64_t* j0, int64_t* j1) const {
    *j0 = i / per_row * row + i % per_row * size;
    *j1 = std::min(*j0 + size, (i / per_row + 1) * row);
  }
};

template <class T>
void weight_task_slab(const DenseJob& job, const Machine& m, const KernelTable<T>& kernels, const PixelRuns& pixels,
                      const WeightTask& task, T* dw, bool accumulate, Arena& arena) {
  const int64_t W = m.lanes, T_all = job.taps(), channels = task.c1 - task.c0, rows = task.k1 - task.k0;
  const int64_t columns = channels * T_all;
  const Panels panels(ceil_div(columns, W), m);
  const int64_t widest = m.max_vectors * W;
  T* panel = arena.take<T>((pixels.size + W) * widest);
  const T** source = arena.take<const T*>(panels.vectors * W);
  const T** a = arena.take<const T*>(rows);
  T** c = arena.take<T*>(rows);
  for (int64_t k = 0; k < rows; ++k) c[k] = dw + ((task.g * job.K + task.k0 + k) * job.C + task.c0) * T_all;
  const InputMap<T> no_map{};
  for (int64_t n = 0; n < job.N; ++n) {
    const T* x = static_cast<const T*>(job.input) + n * job.is.n + (task.g * job.C + task.c0) * job.is.c;
    const T* dy = static_cast<const T*>(job.output) + n * job.os.n + (task.g * job.K + task.k0) * job.os.c;
    for (int64_t i = 0; i < pixels.count; ++i) {
      int64_t j0, j1;
      pixels.range(i, &j0, &j1);
      Arena inner = arena;
      Slab<T> slab(job, j0, j1, channels, W, inner);
      slab.prepare(job, j0, j1);
      slab.fill(kernels, x, channels, no_map);
      for (int64_t j = 0; j < panels.vectors * W; ++j) {
        const int64_t column = std::min(j, columns - 1);
        source[j] = slab.data() + column / T_all * slab.channel_pitch() + slab.tap_offset()[column % T_all];
      }
      const int64_t offset = pixel_offset(job.out, job.os, j0);
      for (int64_t k = 0; k < rows; ++k) a[k] = dy + k * job.os.c + offset;
      GemmArgs<T> g{};
      g.rows = a;
      g.row_step = j1 - j0 > 1 ? pixel_offset(job.out, job.os, j0 + 1) - offset : 1;
      g.taps = 1, g.length = j1 - j0;
      g.panels = 1;
      g.m = rows;
      g.panel = panel;
      g.c = c;
      g.accumulate = accumulate || n > 0 || i > 0;
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t j = panels.start(p) * W;
        g.vectors = static_cast<int32_t>(panels.width(p));
        g.tail = static_cast<int32_t>(std::min(W, columns - j - (g.vectors - 1) * W));
        PackTransposedArgs<T> pack{};
        pack.panel = panel;
        pack.source = source + j;
        pack.segments = slab.segments();
        pack.segment_count = slab.segment_count();
        pack.columns = g.vectors * W;
        kernels.pack_transposed(pack);
        g.c_offset = j;
        kernels.gemm(g);
      }
    }
  }
}

template <class T>
int64_t weight_scratch_slab(const DenseJob& job, const Machine& m, const PixelRuns& pixels, int64_t channels,
                            int64_t rows) {
  Arena count(nullptr);
  count.take<T>((pixels.size + m.lanes) * m.max_vectors * m.lanes);
  count.take<T*>(round_up(channels * job.taps(), m.lanes) + 2 * rows + 24);
  int64_t slab = 0;
  for (int64_t i = 0; i < pixels.count; ++i) {
    int64_t j0, j1;
    pixels.range(i, &j0, &j1);
    Arena arena(nullptr);
    Slab<T>(job, j0, j1, channels, m.lanes, arena);
    slab = std::max(slab, arena.size());
  }
  return count.size() + slab;
}

// [g, c0, c1) here are vectors of channels; dw is [k][t][c].
template <class T>
void weight_task_rows(const DenseJob& job, const Machine& m, const KernelTable<T>& kernels, const PixelRuns& pixels,
                      const WeightTask& task, T* dw, bool accumulate, Arena& arena) {
  const int64_t W = m.lanes, T_all = job.taps(), rows = task.k1 - task.k0, channels = task.c1 - task.c0;
  const Panels panels(ceil_div(channels, W), m);
  T* panel = arena.take<T>(pixels.size * m.max_vectors * W);
  T* zero_row = arena.take<T>(job.C + W);
  const T** table = arena.take<const T*>(T_all * pixels.size);
  const T** a = arena.take<const T*>(rows);
  T** c = arena.take<T*>(rows);
  std::fill_n(zero_row, job.C, T{0});
  for (int64_t k = 0; k < rows; ++k) c[k] = dw + (task.g * job.K + task.k0 + k) * T_all * job.C;
  for (int64_t n = 0; n < job.N; ++n) {
    const T* x = static_cast<const T*>(job.input) + n * job.is.n + task.g * job.C * job.is.c;
    const T* dy = static_cast<const T*>(job.output) + n * job.os.n + (task.g * job.K + task.k0) * job.os.c;
    for (int64_t i = 0; i < pixels.count; ++i) {
      int64_t j0, j1;
      pixels.range(i, &j0, &j1);
      const int64_t count = j1 - j0, offset = pixel_offset(job.out, job.os, j0);
      pixel_pointers<T>(job, x, zero_row, j0, j1, table);
      for (int64_t k = 0; k < rows; ++k) a[k] = dy + k * job.os.c + offset;
      GemmArgs<T> g{};
      g.rows = a;
      g.row_step = count > 1 ? pixel_offset(job.out, job.os, j0 + 1) - offset : 1;
      g.taps = 1, g.length = count;
      g.panels = 1;
      g.m = rows;
      g.panel = panel;
      g.c = c;
      g.accumulate = accumulate || n > 0 || i > 0;
      for (int64_t t = 0; t < T_all; ++t)
        for (int64_t p = 0; p < panels.count; ++p) {
          const int64_t j = panels.start(p) * W;
          g.vectors = static_cast<int32_t>(panels.width(p));
          const int64_t columns = std::min(g.vectors * W, channels - j);
          g.tail = static_cast<int32_t>(columns - (g.vectors - 1) * W);
          PackRowsArgs<T> pack{};
          pack.panel = panel;
          pack.rows = table + t * count;
          pack.count = count;
          pack.offset = task.c0 + j;
          pack.length = columns;
          pack.pitch = g.vectors * W;
          kernels.pack_rows(pack);
          g.c_offset = t * job.C + task.c0 + j;
          kernels.gemm(g);
        }
    }
  }
}

// The form that a weight gradient takes. Nothing here depends on the threads, so that the bits do not.
template <class T>
struct WeightSplit {
  bool by_rows;
  PixelRuns pixels;
  int64_t channels;  // a task's at most; more threads may divide them further

  WeightSplit(const DenseJob& job, const Machine& m)
      : by_rows(job.is.c == 1 && job.is.s[2] != 1 && job.C >= m.lanes),
        pixels(job, by_rows ? std::min(reduction_terms(m, sizeof(T)), std::max<int64_t>(16, 16384 / job.taps()))
                            : reduction_terms(m, sizeof(T))),
        channels(job.C) {
    // A slab stays in half of L2.
    while (!by_rows && channels > 1 && weight_scratch_slab<T>(job, m, pixels, channels, 1) > m.l2 / 2)
      channels = ceil_div(channels, 2);
  }

  // Bytes of scratch of a task of so many input and output channels.
  int64_t scratch(const DenseJob& job, const Machine& m, int64_t c_size, int64_t k_size) const {
    if (!by_rows) return weight_scratch_slab<T>(job, m, pixels, c_size, k_size) + 256;
    Arena count(nullptr);
    count.take<T>(pixels.size * m.max_vectors * m.lanes);
    count.take<T>(job.C + m.lanes);
    count.take<T*>(job.taps() * pixels.size);
    count.take<T*>(k_size);
    count.take<T*>(k_size);
    return count.size();
  }

  // dw is made as [k][t][c], in memory of its own, and transposed at the end.
  bool transposed(const DenseJob& job) const { return by_rows && job.taps() > 1; }
};

// Parts of a gradient that another algorithm has left, by slabs, which write dw as it is.
template <class T>
struct DirectParts {
  PixelRuns pixels;
  int64_t channels;  // of a task at most

  DirectParts(const DenseJob& job, const Machine& m, int64_t most)
      : pixels(job, reduction_terms(m, sizeof(T))), channels(most) {
    while (channels > 1 && weight_scratch_slab<T>(job, m, pixels, channels, 1) > m.l2 / 2)
      channels = ceil_div(channels, 2);
  }
  int64_t workspace(const DenseJob& job, const Machine& m) const {
    return weight_scratch_slab<T>(job, m, pixels, channels, job.K) + 256;
  }
};

template <class T>
Status run_direct_parts(const DenseJob& job, const Machine& m, const KernelTable<T>& kernels,
                        const std::vector<WeightTask>& parts, T* dw, bool accumulate) {
  int64_t widest = 0;
  for (const WeightTask& part : parts) widest = std::max(widest, part.c1 - part.c0);
  const DirectParts<T> direct(job, m, widest);
  const int64_t bytes = direct.workspace(job, m);
  std::atomic<bool> failed{false};
  const Status s = parallel_for(static_cast<int64_t>(parts.size()), job_nanoseconds(job), [&](int64_t i, int) {
    Workspace scratch(static_cast<size_t>(bytes));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    WeightTask task = parts[static_cast<size_t>(i)];
    for (const int64_t end = task.c1; task.c0 < end; task.c0 = task.c1) {
      task.c1 = std::min(end, task.c0 + direct.channels);
      Arena arena(scratch.data());
      weight_task_slab(job, m, kernels, direct.pixels, task, dw, accumulate, arena);
    }
  });
  return failed ? Status::out_of_memory : s;
}

}  // namespace

// Small images of a batch are one run of the reduction: each piece of it reads and writes all of dw. The pixels of dy
// must then be equally far apart: those of planar images are copied, where dy is smaller than dw.
template <class T>
DenseJob joined_terms(const DenseJob& images, const Machine& m, int64_t* copied) {
  DenseJob job = images;
  *copied = 0;
  if (2 * job.pixels() > reduction_terms(m, sizeof(T)) || !join_images(&job)) return images;
  int64_t step;
  if (uniform_pixels(job.out, job.os, &step)) return job;
  if (job.pixels() > job.C * job.taps()) return images;
  const int64_t channels = job.G * job.K;
  *copied = job.pixels() * channels;
  job.os.c = 1, job.os.s[2] = channels;
  for (int a = 1; a >= 0; --a) job.os.s[a] = job.os.s[a + 1] * job.out[a + 1];
  return job;
}

template <class T>
WeightForm weight_gradient_form(const DenseJob& images, const Machine& m, Algorithm algorithm) {
  if (has_filter_gradient<T>(images, m)) return filter_gradient_form<T>(images, m);
  if (const int32_t outputs = choose_winograd_weight<T>(images, m, algorithm)) {
    WeightForm form = winograd_weight_form<T>(images, outputs, m);
    form.workspace = std::max(form.workspace, DirectParts<T>(images, m, form.channels).workspace(images, m));
    return form;
  }
  int64_t joined;
  const DenseJob job = joined_terms<T>(images, m, &joined);
  const WeightSplit<T> split(job, m);
  WeightForm form{};
  form.by_rows = split.by_rows;
  form.terms = split.pixels.size;
  form.pieces = job.N * split.pixels.count;
  form.channels = split.channels;
  form.workspace = split.scratch(job, m, split.channels, job.K);
  form.copied = joined + (split.transposed(job) ? job.G * job.K * job.C * job.taps() : 0);
  form.passed_over = split.by_rows      ? "slab: a pixel's channels are neighbours in memory and fill a vector"
                     : job.C < m.lanes  ? "rows: a group's channels do not fill a vector"
                     : job.is.s[2] == 1 ? "rows: the columns of the image are neighbours in memory"
                                        : "rows: the channels are not neighbours in memory";
  return form;
}
template WeightForm weight_gradient_form<float>(const DenseJob&, const Machine&, Algorithm);
template WeightForm weight_gradient_form<double>(const DenseJob&, const Machine&, Algorithm);

template <class T>
Status run_weight_gradient(const DenseJob& images, const Machine& m, const KernelTable<T>& kernels, Algorithm algorithm,
                           T* dw, bool accumulate) {
  if (has_filter_gradient<T>(images, m)) return run_filter_gradient<T>(images, m, kernels, dw, accumulate);
  if (const int32_t outputs = choose_winograd_weight<T>(images, m, algorithm)) {
    std::vector<WeightTask> bad;
    const Status s = run_winograd_weight<T>(images, outputs, m, kernels, dw, accumulate, &bad);
    return s != Status::ok || bad.empty() ? s : run_direct_parts<T>(images, m, kernels, bad, dw, accumulate);
  }
  int64_t joined;
  DenseJob job = joined_terms<T>(images, m, &joined);
  const Block copy(joined * static_cast<int64_t>(sizeof(T)));
  if (copy.failed()) return Status::out_of_memory;
  if (joined) {
    const int64_t pixels = images.pixels();
    const Status s = parallel_for(images.N, 0.5 * static_cast<double>(joined), [&](int64_t n, int) {
      const T* from = static_cast<const T*>(images.output) + n * images.os.n;
      T* to = static_cast<T*>(copy.data()) + n * pixels * job.os.s[2];
      pixel_offsets(images.out, images.os, [&](int64_t i, int64_t offset) {
        for (int64_t k = 0; k < images.G * images.K; ++k) to[i * job.os.s[2] + k] = from[offset + k * images.os.c];
      });
    });
    if (s != Status::ok) return s;
    job.output = copy.data();
  }
  const int64_t T_all = job.taps(), W = m.lanes, size = job.G * job.K * job.C * T_all;
  if (job.N == 0 || job.pixels() == 0) {
    if (!accumulate) std::fill_n(dw, size, T{0});
    return Status::ok;
  }
  const WeightSplit<T> split(job, m);
  const bool by_rows = split.by_rows;
  const PixelRuns& pixels = split.pixels;
  const double work = job_nanoseconds(job);
  const int64_t want = wanted_tasks(work);

  int64_t c_size = split.channels;
  int64_t c_parts = ceil_div(job.C, c_size);
  if (job.G * c_parts < want) {
    const int64_t unit =
        by_rows ? preferred_vectors(m) * W : std::max<int64_t>(1, 4 * preferred_vectors(m) * W / T_all);
    c_size = std::min(c_size, round_up(ceil_div(job.C, ceil_div(want, job.G)), unit));
    c_parts = ceil_div(job.C, c_size);
  }
  int64_t k_size = job.K;
  if (job.G * c_parts < want) k_size = round_up(ceil_div(job.K, ceil_div(want, job.G * c_parts)), 12);
  k_size = std::min(k_size, job.K);
  const int64_t k_parts = ceil_div(job.K, k_size);

  T* target = dw;
  const bool transposed = split.transposed(job);
  if (transposed) {
    target = static_cast<T*>(output_allocate(static_cast<size_t>(size) * sizeof(T)));
    if (!target) return Status::out_of_memory;
  }
  const int64_t bytes = split.scratch(job, m, c_size, k_size);
  std::atomic<bool> failed{false};
  Status status = parallel_for(job.G * c_parts * k_parts, work, [&](int64_t i, int) {
    Workspace scratch(static_cast<size_t>(bytes));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    Arena arena(scratch.data());
    const int64_t k = i % k_parts, c = i / k_parts % c_parts;
    const WeightTask task{i / k_parts / c_parts, c * c_size, std::min(job.C, (c + 1) * c_size), k * k_size,
                          std::min(job.K, (k + 1) * k_size)};
    if (by_rows)
      weight_task_rows(job, m, kernels, pixels, task, target, accumulate && !transposed, arena);
    else
      weight_task_slab(job, m, kernels, pixels, task, target, accumulate, arena);
  });
  if (failed) status = Status::out_of_memory;
  if (transposed) {
    if (status == Status::ok) {
      status = parallel_for(job.G * job.K, static_cast<double>(size), [&](int64_t k, int) {
        T* const from = target + k * T_all * job.C;
        T* const to = dw + k * T_all * job.C;
        if (!accumulate) return kernels.turn_block({from, to, T_all, job.C, job.C, T_all});
        for (int64_t c = 0; c < job.C; ++c)
          for (int64_t t = 0; t < T_all; ++t) to[c * T_all + t] += from[t * job.C + c];
      });
    }
    output_release(target, static_cast<size_t>(size) * sizeof(T));
  }
  return status;
}

#define FASTCONV_INSTANTIATE(T)                                                                                     \
  template Status pack_runs<T>(std::vector<Run<T>>&, const Machine&, const KernelTable<T>&, bool, T*);              \
  template Status run_dense<T>(const std::vector<Run<T>>&, const Machine&, const KernelTable<T>&, const Finish<T>&, \
                               const InputMap<T>&, int64_t, bool);                                                  \
  template bool may_skip_zeros<T>(const DenseJob&, const Choice&, const Machine&, bool);                            \
  template int64_t task_workspace<T>(const Run<T>&, const Machine&);                                                \
  template int64_t box_workspace<T>(const Run<T>&, const Machine&, const int64_t[3]);                               \
  template void run_box<T>(const Run<T>&, const Machine&, const KernelTable<T>&, const Finish<T>&, int64_t,         \
                           const int64_t[3], const int64_t[3], void*);                                              \
  template Status run_weight_gradient<T>(const DenseJob&, const Machine&, const KernelTable<T>&, Algorithm, T*, bool);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)
#undef FASTCONV_INSTANTIATE

}  // namespace fastconv::ops
