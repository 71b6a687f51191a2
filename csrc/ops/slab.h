// What the products of dense.cc and depthwise.cc share: scratch memory, copies of the input that a block of output
// pixels needs, and the moving of an output whose strides do not suit.
#pragma once
#include <algorithm>
#include <cassert>
#include <cstdint>

#include "dispatch/kernel_table.h"
#include "ops/choose.h"
#include "ops/dense.h"
#include "ops/parallel.h"

namespace fastconv::ops {

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out aligned pieces of a block of `limit` bytes; without a block it only counts.
class Arena {
 public:
  explicit Arena(void* base, int64_t limit = INT64_MAX) : base_(static_cast<char*>(base)), limit_(limit) {}
  template <class U>
  U* take(int64_t n) {
    U* piece = reinterpret_cast<U*>(base_ + size_);
    size_ += round_up(n * static_cast<int64_t>(sizeof(U)), 64);
    assert(size_ <= limit_);
    return piece;
  }
  int64_t size() const { return size_; }
  bool counts() const { return !base_; }

 private:
  char* base_;
  [[maybe_unused]] int64_t limit_;
  int64_t size_ = 0;
};

// Sizes of the slab of output pixels [j0, j1): which padded rows and columns of the input it covers.
struct SlabShape {
  int64_t first_row, rows_out;  // flattened (d, h) rows of the output
  int64_t d0, h0;
  bool one_plane;
  int64_t depth, height;        // rows of the slab: depth * height
  int64_t q0, columns;          // output columns
  int64_t phases, phase_length, row_pitch, channel_pitch;
  int64_t padded_columns;       // of the input, from the first that is read

  SlabShape(const DenseJob& job, int64_t j0, int64_t j1) {
    const int64_t q = job.out[2], p = job.out[1];
    first_row = j0 / q;
    const int64_t last_row = (j1 - 1) / q;
    rows_out = last_row - first_row + 1;
    d0 = first_row / p;
    const int64_t d1 = last_row / p;
    one_plane = d0 == d1;
    h0 = one_plane ? first_row % p : 0;
    const int64_t h1 = one_plane ? last_row % p : p - 1;
    height = (h1 - h0) * job.stride[1] + (job.filter[1] - 1) * job.dilation[1] + 1;
    depth = one_plane ? job.filter[0] : (d1 - d0) * job.stride[0] + (job.filter[0] - 1) * job.dilation[0] + 1;
    q0 = rows_out == 1 ? j0 % q : 0;
    columns = rows_out == 1 ? j1 - j0 : q;
    phases = std::min(job.stride[2], job.filter[2]);
    phase_length = columns + (job.filter[2] - 1) * job.dilation[2] / job.stride[2];
    padded_columns =
        (phase_length - 1) * job.stride[2] + std::min(job.stride[2] - 1, (job.filter[2] - 1) * job.dilation[2]) + 1;
    row_pitch = phases * phase_length;
    // Channels a multiple of 4 KB apart would fall into the same sets of the first-level cache.
    channel_pitch = round_up(depth * height * row_pitch, 16) + 16;
  }

  // The image's column at which the slab begins.
  int64_t first_column(const DenseJob& job) const { return q0 * job.stride[2] - job.pad[2]; }

  // The source offset of each row of the slab.
  void row_offsets(const DenseJob& job, int64_t* offsets) const {
    const int64_t p = job.out[1], depth_step = one_plane ? 1 : job.dilation[0];
    std::fill_n(offsets, depth * height, kUnusedRow);
    for (int64_t r = 0; r < rows_out; ++r) {
      const int64_t d = (first_row + r) / p, h = (first_row + r) % p;
      const int64_t plane = one_plane ? 0 : (d - d0) * job.stride[0], line = (h - h0) * job.stride[1];
      for (int64_t a = 0; a < job.filter[0]; ++a)
        for (int64_t b = 0; b < job.filter[1]; ++b) {
          const int64_t di = map_index(job.mode, d * job.stride[0] - job.pad[0] + a * job.dilation[0], job.in[0]);
          const int64_t hi = map_index(job.mode, h * job.stride[1] - job.pad[1] + b * job.dilation[1], job.in[1]);
          offsets[(plane + a * depth_step) * height + line + b * job.dilation[1]] =
              di < 0 || hi < 0 ? kZeroRow : di * job.is.s[0] + hi * job.is.s[1];
        }
    }
  }

  void column_map(const DenseJob& job, int64_t* map) const {
    if (!map) return;
    for (int64_t i = 0; i < padded_columns; ++i)
      map[i] = std::clamp<int64_t>(map_index(job.mode, first_column(job) + i, job.in[2]), 0, job.in[2] - 1);
  }
};

template <class T>
class Slab {
 public:
  // `tail` elements beyond the last row are read by whole-vector loads.
  Slab(const DenseJob& job, int64_t j0, int64_t j1, int64_t channels, int64_t tail, Arena& arena)
      : shape_(job, j0, j1),
        slab_(arena.take<T>(channels * shape_.channel_pitch + tail)),
        row_offset_(arena.take<int64_t>(shape_.depth * shape_.height)),
        phases_(arena.take<int32_t>(shape_.phases)),
        column_map_(job.mode == PaddingMode::zeros ? nullptr : arena.take<int64_t>(shape_.padded_columns)),
        tap_offset_(arena.take<int64_t>(job.taps())),
        segments_(arena.take<Segment>(shape_.rows_out)) {}

  void prepare(const DenseJob& job, int64_t j0, int64_t j1) {
    const SlabShape& s = shape_;
    const int64_t q = job.out[2], p = job.out[1];
    // Residues of the stride that the taps of a row fall on, and where each tap reads.
    int64_t phase_count = 0;
    const int64_t depth_step = s.one_plane ? 1 : job.dilation[0];
    for (int64_t c = 0; c < job.filter[2]; ++c) {
      const int32_t residue = static_cast<int32_t>(c * job.dilation[2] % job.stride[2]);
      int64_t f = 0;
      while (f < phase_count && phases_[f] != residue) ++f;
      if (f == phase_count) phases_[phase_count++] = residue;
      const int64_t column = f * s.phase_length + c * job.dilation[2] / job.stride[2];
      for (int64_t a = 0; a < job.filter[0]; ++a)
        for (int64_t b = 0; b < job.filter[1]; ++b)
          tap_offset_[(a * job.filter[1] + b) * job.filter[2] + c] =
              (a * depth_step * s.height + b * job.dilation[1]) * s.row_pitch + column;
    }
    for (int64_t r = 0; r < s.rows_out; ++r) {
      const int64_t row = s.first_row + r, d = row / p, h = row % p;
      const int64_t qs = row * q < j0 ? j0 - row * q : 0, qe = std::min(q, j1 - row * q);
      const int64_t plane = s.one_plane ? 0 : (d - s.d0) * job.stride[0], line = (h - s.h0) * job.stride[1];
      segments_[r] = {row * q + qs - j0, (plane * s.height + line) * s.row_pitch + qs - s.q0, qe - qs};
    }
    s.row_offsets(job, row_offset_);
    s.column_map(job, column_map_);
    args_.slab = slab_;
    args_.channel_pitch = s.channel_pitch;
    args_.row_pitch = s.row_pitch;
    args_.phase_pitch = args_.phase_length = s.phase_length;
    args_.channel_stride = job.is.c;
    args_.column_stride = job.is.s[2];
    args_.row_offset = row_offset_;
    args_.rows = s.depth * s.height;
    args_.phases = phases_;
    args_.phase_count = phase_count;
    args_.first = s.first_column(job);
    args_.stride = job.stride[2];
    args_.image_columns = job.in[2];
    args_.column_map = column_map_;
  }

  void fill(const KernelTable<T>& kernels, const T* source, int64_t channels, const InputMap<T>& map) {
    args_.source = source;
    args_.channels = channels;
    args_.map = map;
    kernels.fill_slab(args_);
  }

  const SlabShape& shape() const { return shape_; }
  const T* data() const { return slab_; }
  int64_t channel_pitch() const { return shape_.channel_pitch; }
  const int64_t* tap_offset() const { return tap_offset_; }
  const Segment* segments() const { return segments_; }
  int64_t segment_count() const { return shape_.rows_out; }

 private:
  SlabShape shape_;
  T* slab_;
  int64_t* row_offset_;
  int32_t* phases_;
  int64_t* column_map_;
  int64_t* tap_offset_;
  Segment* segments_;
  SlabArgs<T> args_{};
};

inline int64_t pixel_offset(const int64_t out[3], const Strides& s, int64_t j) {
  return j / (out[1] * out[2]) * s.s[0] + j / out[2] % out[1] * s.s[1] + j % out[2] * s.s[2];
}

// Calls set(pixel, offset) for all pixels in order.
template <class Set>
void pixel_offsets(const int64_t out[3], const Strides& s, Set set) {
  for (int64_t d = 0, i = 0; d < out[0]; ++d)
    for (int64_t h = 0; h < out[1]; ++h) {
      const int64_t row = d * s.s[0] + h * s.s[1];
      for (int64_t w = 0; w < out[2]; ++w, ++i) set(i, row + w * s.s[2]);
    }
}

template <class T>
InputMap<T> map_at(const InputMap<T>& map, int64_t image, int64_t gate_batch_stride, int64_t channel) {
  InputMap<T> m = map;
  if (m.scale) m.scale += channel;
  if (m.shift) m.shift += channel;
  if (m.gate) m.gate += image * gate_batch_stride + channel * m.gate_stride;
  return m;
}

inline void tap_offsets(const DenseJob& job, int64_t* offset) {
  for (int64_t a = 0; a < job.filter[0]; ++a)
    for (int64_t b = 0; b < job.filter[1]; ++b)
      for (int64_t c = 0; c < job.filter[2]; ++c) *offset++ = a * job.wf[0] + b * job.wf[1] + c * job.wf[2];
}

// The buffers that stand in for an output (and a residual) whose strides do not suit the role.
template <class T>
struct Moved {
  T* output = nullptr;
  T* residual = nullptr;
  int64_t* row_offset = nullptr;
  int64_t* column_offset = nullptr;
  int64_t* residual_column = nullptr;
  int64_t* residual_row = nullptr;
  int64_t pitch = 0;

  Moved(const DenseJob& job, const Choice& choice, int64_t rows, int64_t columns, int64_t lanes, Arena& arena) {
    pitch = round_up(columns, lanes);
    if (choice.move_output) {
      output = arena.take<T>(rows * pitch);
      row_offset = arena.take<int64_t>(rows);
      column_offset = arena.take<int64_t>(columns);
    }
    if (job.has_residual && choice.move_residual) {
      residual = arena.take<T>(rows * pitch);
      residual_row = arena.take<int64_t>(rows);
      residual_column = arena.take<int64_t>(columns);
    }
  }
};

template <class T>
void move_in(const KernelTable<T>& kernels, T* tensor, T* buffer, int64_t pitch, const int64_t* rows,
             const int64_t* columns, int64_t m, int64_t n) {
  MoveBlockArgs<T> args{};
  args.tensor = tensor, args.buffer = buffer, args.pitch = pitch;
  args.row_offset = rows, args.column_offset = columns, args.m = m, args.n = n;
  kernels.gather_block(args);
}

template <class T>
void move_out(const KernelTable<T>& kernels, T* tensor, T* buffer, int64_t pitch, const int64_t* rows,
              const int64_t* columns, int64_t m, int64_t n, bool accumulate) {
  MoveBlockArgs<T> args{};
  args.tensor = tensor, args.buffer = buffer, args.pitch = pitch;
  args.row_offset = rows, args.column_offset = columns, args.m = m, args.n = n;
  args.accumulate = accumulate;
  kernels.scatter_block(args);
}

// Everything that the tasks of one call share.
template <class T>
struct Context {
  const Machine& machine;
  const KernelTable<T>& kernels;
  const Finish<T>& finish;
  const InputMap<T>& map;
  int64_t gate_batch_stride;
  bool accumulate;
};

// A box of pixels of image n, output channels [k0, k1) of group g, on the calling thread, by a direct product. The
// choice needs no scratch but what direct_box_workspace() tells.
template <class T>
int64_t direct_box_workspace(const Run<T>& run, const Machine& machine, const int64_t size[3]);
template <class T>
void run_direct_box(const Run<T>& run, const Context<T>& ctx, int64_t n, int64_t g, int64_t k0, int64_t k1,
                    const int64_t at[3], const int64_t size[3], void* scratch);

// Tasks to aim for: a few a thread, so that they end together, and none so long that a cancelled call would be waited
// for.
inline int64_t wanted_tasks(double nanoseconds) {
  const int threads = planned_threads(int64_t{1} << 30, nanoseconds);
  return std::max<int64_t>(threads == 1 ? 1 : 4 * threads, static_cast<int64_t>(nanoseconds / 20e6));
}

}  // namespace fastconv::ops
