// Copies of the patches that Winograd's transforms read: n x n pixels each, `step` apart, those of neighbouring tiles
// together, some channels at a time. Rows are read in long runs, which the hardware prefetches, whatever the memory
// order.
#pragma once
#include "ops/slab.h"

namespace fastconv::ops {

// Channels that a strip holds at a time.
constexpr int64_t kStripChannels = 64;

// Tiles whose strip stays in a quarter of L2.
inline int64_t strip_tiles(const Machine& machine, int64_t step, int64_t n, int64_t channels, int64_t item_size) {
  return std::max<int64_t>(1, (machine.l2 / 4 / (n * std::min(channels, kStripChannels) * item_size) - 2) / step);
}

// A plane of an image that is cut into patches. Rows and columns from seen[] on, counted from the first of the first
// patch, count as zero, or as the last column that is read: no output needs them.
template <class T>
struct PatchImage {
  const T* data;  // its first channel; null: all zeros
  int64_t channel_stride, stride[2];
  int64_t size[2], pad[2], seen[2];
  PaddingMode mode;

  // The input of a product, of image n and group g, or (below) its output.
  static PatchImage input(const DenseJob& job, int64_t n, int64_t g) {
    const int64_t plane = map_index(job.mode, -job.pad[0], job.in[0]);
    const T* const x = static_cast<const T*>(job.input) + n * job.is.n + g * job.C * job.is.c + plane * job.is.s[0];
    return {plane < 0 ? nullptr : x,
            job.is.c,
            {job.is.s[1], job.is.s[2]},
            {job.in[1], job.in[2]},
            {job.pad[1], job.pad[2]},
            {job.out[1] + 2, job.out[2] + 2},
            job.mode};
  }
  static PatchImage output(const DenseJob& job, int64_t n, int64_t g) {
    return {static_cast<const T*>(job.output) + n * job.os.n + g * job.K * job.os.c,
            job.os.c,
            {job.os.s[1], job.os.s[2]},
            {job.out[1], job.out[2]},
            {0, 0},
            {job.out[1], job.out[2]},
            PaddingMode::zeros};
  }
};

template <class T>
class Patches {
 public:
  // Of `count` tiles at most.
  Patches(int64_t step, int64_t n, int64_t channels, int64_t count, int64_t lanes, Arena& arena) : step_(step), n_(n) {
    const int64_t most = std::min(channels, kStripChannels), columns = (count - 1) * step + n;
    strip_ = arena.take<T>(n * columns * most + lanes);
    gates_ = arena.take<T>(most);
    patch_ = arena.take<const T*>(count * n * n);
    row_offset_ = arena.take<int64_t>(n), column_map_ = arena.take<int64_t>(columns);
  }

  // Goes to the patches of `count` neighbours of which the first begins at (y, x).
  void place(const PatchImage<T>& image, int64_t y, int64_t x, int64_t count) {
    count_ = count, columns_ = (count - 1) * step_ + n_, first_ = x - image.pad[1];
    const int64_t last = image.seen[1] - 1 - image.pad[1];
    for (int64_t i = 0; i < n_; ++i) {
      const bool read = image.data && y + i < image.seen[0];
      const int64_t h = read ? map_index(image.mode, y - image.pad[0] + i, image.size[0]) : -1;
      row_offset_[i] = h < 0 ? kZeroRow : h * image.stride[0];
    }
    image_columns_ = std::min(image.size[1], last + 1);
    mapped_ = image.mode != PaddingMode::zeros;
    for (int64_t i = 0; mapped_ && i < columns_; ++i)
      column_map_[i] = map_index(image.mode, std::min(first_ + i, last), image.size[1]);
  }

  // Their channels [c, c + channels), at most kStripChannels: n * n pointers for each patch.
  const T* const* copy(const KernelTable<T>& kernels, const PatchImage<T>& image, int64_t c, int64_t channels,
                       const InputMap<T>& map) {
    PixelSlabArgs<T> p{};
    p.slab = strip_;
    p.source = image.data ? image.data + c * image.channel_stride : nullptr;
    p.channel_stride = image.channel_stride, p.column_stride = image.stride[1], p.channels = channels;
    p.row_offset = row_offset_, p.rows = n_, p.columns = columns_;
    p.first = first_, p.image_columns = image_columns_;
    p.column_map = mapped_ ? column_map_ : nullptr;
    p.map = map;
    if (p.map.gate) {
      for (int64_t i = 0; i < channels; ++i) gates_[i] = p.map.gate[i * p.map.gate_stride];
      p.map.gate = gates_, p.map.gate_stride = 1;
    }
    kernels.fill_pixel_slab(p);
    for (int64_t l = 0; l < count_; ++l)
      for (int64_t i = 0; i < n_; ++i)
        for (int64_t j = 0; j < n_; ++j)
          patch_[(l * n_ + i) * n_ + j] = strip_ + (i * columns_ + l * step_ + j) * channels;
    return patch_;
  }

 private:
  int64_t step_, n_, count_ = 0, columns_ = 0, first_ = 0, image_columns_ = 0;
  bool mapped_ = false;
  T* strip_;
  T* gates_;
  const T** patch_;
  int64_t* row_offset_;
  int64_t* column_map_;
};

}  // namespace fastconv::ops
