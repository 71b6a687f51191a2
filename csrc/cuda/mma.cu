// Dense convolution by an implicit product of matrices on the tensor cores (mma.sync, sums in float).
//
// Flops: 2 a multiply-add (6 of tf32x3), all HMMA; bytes: the side that is read once a tile of columns, the packed
// weights once a tile of rows, from L2 where the tiles of one row run together; the other side once. (Not measured.)
//
// Rows are the pixels that are written, columns the channels that are written, terms the taps and channels that are
// read, channels innermost: number tap * channels + channel. The order of a sum is that of its terms in steps of an
// instruction, whatever the layout, the way that operands are brought, or the size of tile. fprop and dgrad are one
// kernel: the input gradient is one plain product of stride 1 a residue of the stride (Walk), each with the taps that
// meet it.
//
// Weights are packed first, by a launch of their own, into the workspace: rows of terms, one a column, with zeros where
// tiles reach beyond either, rounded to TF32 where one product is made of them. So they are copied without conditions
// whatever their strides. The other operand
//   copied    comes by 16-byte asynchronous copies: channels are innermost, and whole vectors of one tap
//   gathered  is read element by element, a vector of terms a thread, neighbouring pixels by neighbouring threads,
//             while the tensor cores work, and stored after that: planar sides, odd channels, and
//   prepared  the layer's prologue, whose result is rounded to the dtype
//
// A block of 8 warps, 2 x 4, has a tile of 128 x 128 or 64 x 64 results and goes through the terms 64 bytes at a time,
// in kStages stages of shared memory. Registers of the larger tile, 64 x 32 results a warp:
//   64        sums: 4 x 4 fragments of 16 x 8
//   8         two vectors of terms of 32 columns
//   4         of 16 rows, one fragment at a time
//   8         gathered vectors on their way to shared memory
//   about 40  a tap's coordinates, addresses; those of rows are in shared memory
// and of the smaller one, 32 x 16 a warp: 16 sums, 4 and 4 of terms (8 and 8 where they are split), 4 gathered.
// Results go through shared memory to the threads that finish and store them, four channels of a pixel each, of
// neighbouring channels or, where the side is planar, pixels.
//
// Of the weight gradient rows are output channels, columns input channels and taps, terms are output pixels, in pieces
// whose sums are joined in order. Both operands are gathered, which turns them: pixels are innermost in no layout that
// has whole vectors of them.
//
// gate: mma_tiles registers 128 shared 69632
// gate: mma_tiles asynchronous
// gate: mma_tiles vector stores
// gate: mma_tiles tensor cores
// gate: pack_filters registers 40
// gate: mma_weights registers 128 shared 18432
// gate: mma_weights tensor cores
#include "cuda/mma.cuh"

#include <algorithm>
#include <limits>
#include <numeric>

#include "cuda/async.cuh"
#include "cuda/conv.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kStages = 4, kRun = 4;

enum class Load { copied, gathered, prepared };

// A product whose rows are pixels. The m-th tap of pixel j, along an axis, is read at j * step + origin + m * dilate
// and is tap first_tap + m * tap_step of the filter; the pixel is written at first + j * stride.
struct Walk {
  Pixels rows;
  int step[3], origin[3], dilate[3], size[3], first_tap[3], tap_step[3], first[3], stride[3];
  Divider taps[3], by_channels;
  PaddingMode mode;
  Strides read, write;
  int channels, columns;  // of a group: that are read, that are written
  int terms, chunks;  // chunks: of 64 bytes
  int64_t packed_row;  // elements
  int64_t packed_columns;
  bool store_vectors;  // four channels at a time
};

// A row as those know it who bring its terms.
struct Row {
  int64_t base;  // of its image and group
  int at[3], n;
};

// The stages and the rows; then, in their place, the results.
template <int kTile>
constexpr size_t kSharedBytes =
    std::max<size_t>(kStages * 2 * kTile * kRowBytes + kTile * sizeof(Row), kTile*(kTile + 8) * sizeof(float));

__device__ __forceinline__ Row row_of(const Walk& p, int64_t number, int g) {
  const Pixel pixel = pixel_of(p.rows, number < p.rows.count ? number : 0);
  Row row;
  row.n = pixel.n;
  row.base = pixel.n * p.read.n + static_cast<int64_t>(g) * p.channels * p.read.c;
#pragma unroll
  for (int a = 0; a < 3; ++a) row.at[a] = pixel.at[a] * p.step[a] + p.origin[a];
  return row;
}

__device__ __forceinline__ Tap walk_tap(const Walk& p, int number) {
  auto rest = static_cast<uint32_t>(number);
  Tap tap{};
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const uint32_t q = p.taps[a].quotient(rest);
    tap.at[a] = static_cast<int>(rest - q * p.taps[a].divisor);
    rest = q;
  }
  return tap;
}

// Where a tap reads a zero: strides may be negative, and so may offsets.
constexpr int64_t kNowhere = std::numeric_limits<int64_t>::min();

// The pixel that a tap reads, as an offset of its first channel.
__device__ __forceinline__ int64_t place_of(const Walk& p, const Row& row, const Tap& tap) {
  int64_t offset = row.base;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int at = row.at[a] + tap.at[a] * p.dilate[a];
    if (static_cast<unsigned>(at) < static_cast<unsigned>(p.size[a])) {
      offset += at * p.read.s[a];
      continue;
    }
    if (p.mode == PaddingMode::zeros) return kNowhere;
    offset += ops::map_index(p.mode, at, p.size[a]) * p.read.s[a];
  }
  return offset;
}

// The weights as the tiles read them: [group][column][term].
template <class T>
__global__ void __launch_bounds__(kConvThreads)
    pack_filters(Walk p, WeightStrides ws, bool by_input, bool rounded, Radix<uint32_t> by_row,
                 Radix<uint32_t> by_column, uint32_t count, const T* w, T* to) {
  const uint32_t number = blockIdx.x * kConvThreads + threadIdx.x;
  if (number >= count) return;
  uint32_t rest = number;
  const auto term = static_cast<int>(by_row.split(rest));
  const auto column = static_cast<int>(by_column.split(rest));
  const auto g = static_cast<int64_t>(rest);
  T value = narrow<T>(0);
  if (term < p.terms && column < p.columns) {
    const auto number_of = static_cast<int>(p.by_channels.quotient(static_cast<uint32_t>(term)));
    const int64_t channel = term - number_of * p.channels;
    const Tap tap = walk_tap(p, number_of);
    int64_t offset = g * ws.g + column * (by_input ? ws.c : ws.k) + channel * (by_input ? ws.k : ws.c);
#pragma unroll
    for (int a = 0; a < 3; ++a) offset += (p.first_tap[a] + tap.at[a] * p.tap_step[a]) * ws.f[a];
    value = w[offset];
    if constexpr (sizeof(T) == 4)
      if (rounded) {
        const uint32_t bits = to_tf32(value);
        memcpy(&value, &bits, 4);
      }
  }
  to[number] = value;
}

// Vectors of terms of one chunk, kTile rows, as a thread brings them.
template <int kTile, Load kLoad, class T>
struct Rows {
  // copied: a thread has one vector of several rows; gathered: several vectors of one row
  static constexpr bool kCopied = kLoad == Load::copied;
  static constexpr int kVector = Vector<T>::kLength, kDepth = kRowVectors * kVector;
  static constexpr int kEach = kTile * kRowVectors / kConvThreads;
  const Walk& p;
  const Before<T>& before;
  const T* from;
  int g;
  const Row* row;  // in shared memory, where they cost no registers
  Vector<T> taken[kCopied ? 1 : kEach];

  __device__ Rows(const Walk& walk, const Before<T>& prologue, const T* data, Row* place, int64_t first, int group)
      : p(walk), before(prologue), from(data), g(group), row(place) {
    const int tid = static_cast<int>(threadIdx.x);
    if (tid < kTile) place[tid] = row_of(p, first + tid, g);
    __syncthreads();
  }

  // copied
  __device__ void copy(int chunk, char* stage) const {
    const int tid = static_cast<int>(threadIdx.x), vector = tid % kRowVectors;
    const int term = chunk * kDepth + vector * kVector;
    const auto number = static_cast<int>(p.by_channels.quotient(static_cast<uint32_t>(term)));
    const Tap tap = walk_tap(p, number);
    const int channel = term - number * p.channels;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int mine = tid / kRowVectors + i * (kConvThreads / kRowVectors);
      const int64_t place = term < p.terms ? place_of(p, row[mine], tap) : kNowhere;
      copy_async<16>(stage + swizzled(mine, vector), place == kNowhere ? from : from + place + channel,
                     place == kNowhere ? 0 : 16);
    }
  }

  // gathered and prepared
  __device__ void gather(int chunk) {
    const Row& mine = row[static_cast<int>(threadIdx.x) % kTile];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      int term = chunk * kDepth + vector_of(i) * kVector;
      auto number = static_cast<int>(p.by_channels.quotient(static_cast<uint32_t>(term)));
      int channel = term - number * p.channels;
      int64_t place = term < p.terms ? place_of(p, mine, walk_tap(p, number)) : kNowhere;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        T value = narrow<T>(0);
        if (place != kNowhere) value = from[place + channel * p.read.c];
        if constexpr (kLoad == Load::prepared)
          if (place != kNowhere)
            value = narrow<T>(prepared<true>(before, widen(value), mine.n, g * p.channels + channel));
        taken[i].at[j] = value;
        ++term;
        if (++channel == p.channels) {
          channel = 0;
          place = term < p.terms ? place_of(p, mine, walk_tap(p, ++number)) : kNowhere;
        }
      }
    }
  }
  __device__ void store(char* stage) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      store_vector(reinterpret_cast<T*>(stage + swizzled(static_cast<int>(threadIdx.x) % kTile, vector_of(i))),
                   taken[i]);
  }

 private:
  __device__ static int vector_of(int i) { return static_cast<int>(threadIdx.x) / kTile + i * (kConvThreads / kTile); }
};

// The warp's share of a tile, 2 x 4 of which are the block's.
template <int kTile, bool kThrice, class T>
struct Share {
  static constexpr int kRows = kTile / 2, kColumns = kTile / 4, kDown = kRows / 16, kAcross = kColumns / 8;
  Sums sums[kDown][kAcross];
  int row0, column0, lane;

  __device__ Share() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    row0 = warp % 2 * kRows, column0 = warp / 2 * kColumns;
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[i][j].at[k] = 0;
  }

  // A stage's chunk: kTile rows, then kTile columns.
  __device__ void add(const char* stage) {
    const MatrixRow of_a = a_row(lane), of_b = b_row(lane);
#pragma unroll
    for (int step = 0; step < kRowVectors; step += 2) {
      Words b[kAcross / 2];
#pragma unroll
      for (int j = 0; j < kAcross / 2; ++j)
        load_matrices(b[j], stage + kTile * kRowBytes + swizzled(column0 + j * 16 + of_b.row, step + of_b.vector));
      if constexpr (!kThrice) {
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          Words a;
          load_matrices(a, stage + swizzled(row0 + i * 16 + of_a.row, step + of_a.vector));
          if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (uint32_t& word : a.at) {
              float x;
              memcpy(&x, &word, 4);
              word = to_tf32(x);
            }
          }
#pragma unroll
          for (int j = 0; j < kAcross; ++j)
            multiply<T>(sums[i][j], a.at, b[j / 2].at[j % 2 * 2], b[j / 2].at[j % 2 * 2 + 1]);
        }
      } else {
        Words rest_of_b[kAcross / 2];
#pragma unroll
        for (int j = 0; j < kAcross / 2; ++j)
#pragma unroll
          for (int k = 0; k < 4; ++k) split_tf32(b[j].at[k], &b[j].at[k], &rest_of_b[j].at[k]);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          Words a, rest;
          load_matrices(a, stage + swizzled(row0 + i * 16 + of_a.row, step + of_a.vector));
#pragma unroll
          for (int k = 0; k < 4; ++k) split_tf32(a.at[k], &a.at[k], &rest.at[k]);
          // The small ones first, and apart from the sum: the tensor cores' own additions truncate (Ootomo and Yokota,
          // arXiv:2203.03341), which would cost a long sum what the small parts have won.
          Sums parts[kAcross];
#pragma unroll
          for (Sums& part : parts)
#pragma unroll
            for (float& x : part.at) x = 0;
#pragma unroll
          for (int j = 0; j < kAcross; ++j)
            multiply<T>(parts[j], rest.at, b[j / 2].at[j % 2 * 2], b[j / 2].at[j % 2 * 2 + 1]);
#pragma unroll
          for (int j = 0; j < kAcross; ++j)
            multiply<T>(parts[j], a.at, rest_of_b[j / 2].at[j % 2 * 2], rest_of_b[j / 2].at[j % 2 * 2 + 1]);
#pragma unroll
          for (int j = 0; j < kAcross; ++j)
            multiply<T>(parts[j], a.at, b[j / 2].at[j % 2 * 2], b[j / 2].at[j % 2 * 2 + 1]);
#pragma unroll
          for (int j = 0; j < kAcross; ++j)
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[i][j].at[k] += parts[j].at[k];
        }
      }
    }
  }

  // Into rows of kTile + 8, of which the stores of half a warp meet all banks once.
  __device__ void leave(float* results) const {
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int row = row0 + i * 16 + k * 8 + lane / 4, column = column0 + j * 8 + lane % 4 * 2;
          results[row * (kTile + 8) + column] = sums[i][j].at[k * 2];
          results[row * (kTile + 8) + column + 1] = sums[i][j].at[k * 2 + 1];
        }
  }
};

template <class T>
struct alignas(kRun * sizeof(T)) Run {
  T at[kRun];
};

template <class T>
__device__ __forceinline__ void store_run(T* to, const float (&from)[kRun]) {
  Run<T> run;
#pragma unroll
  for (int i = 0; i < kRun; ++i) run.at[i] = narrow<T>(from[i]);
#ifndef __CUDACC__
  cuda_host::check_aligned(to, sizeof(run));
#endif
  *reinterpret_cast<Run<T>*>(to) = run;
}

template <int kTile, Load kLoad, bool kThrice, class T>
__global__ void __launch_bounds__(kConvThreads, 2)
    mma_tiles(Walk p, Before<T> before, After<T> after, Divider across, const T* from, const T* packed, T* to) {
  constexpr int kStage = 2 * kTile * kRowBytes, kVector = Vector<T>::kLength, kDepth = kRowVectors * kVector;
  char* stages = shared_memory<char>();
  const int tid = static_cast<int>(threadIdx.x), g = static_cast<int>(blockIdx.z);
  // Tiles that read the same rows run together.
  const uint32_t down = across.quotient(blockIdx.x);
  const int64_t row0 = static_cast<int64_t>(down) * kTile;
  const int column0 = static_cast<int>(blockIdx.x - down * across.divisor) * kTile;

  Rows<kTile, kLoad, T> rows(p, before, from, reinterpret_cast<Row*>(stages + kStages * kStage), row0, g);
  const T* columns =
      packed + (g * p.packed_columns + column0 + tid / kRowVectors) * p.packed_row + tid % kRowVectors * kVector;
  auto copy_columns = [&](int chunk, char* stage) {
#pragma unroll
    for (int i = 0; i < kTile * kRowVectors / kConvThreads; ++i) {
      const int column = i * (kConvThreads / kRowVectors);
      copy_async<16>(stage + kTile * kRowBytes + swizzled(tid / kRowVectors + column, tid % kRowVectors),
                     columns + column * p.packed_row + static_cast<int64_t>(chunk) * kDepth);
    }
  };
  Share<kTile, kThrice, T> share;
#pragma unroll 1
  for (int chunk = 0; chunk < kStages - 1; ++chunk) {
    if (chunk < p.chunks) {
      copy_columns(chunk, stages + chunk * kStage);
      if constexpr (kLoad == Load::copied) {
        rows.copy(chunk, stages + chunk * kStage);
      } else {
        rows.gather(chunk);
        rows.store(stages + chunk * kStage);
      }
    }
    commit_copies();
  }
#pragma unroll 1
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    wait_for_copies<kStages - 2>();
    // All have this chunk, and have done with the one whose stage is filled next.
    __syncthreads();
    const int ahead = chunk + kStages - 1;
    char* next = stages + ahead % kStages * kStage;
    if (ahead < p.chunks) {
      copy_columns(ahead, next);
      if constexpr (kLoad == Load::copied)
        rows.copy(ahead, next);
      else
        rows.gather(ahead);
    }
    commit_copies();
    share.add(stages + chunk % kStages * kStage);
    if constexpr (kLoad != Load::copied)
      if (ahead < p.chunks) rows.store(next);
  }
  wait_for_copies<0>();
  __syncthreads();
  auto* results = reinterpret_cast<float*>(stages);
  share.leave(results);
  __syncthreads();

  const bool planar = p.write.c != 1;
#pragma unroll 1
  for (int place = tid; place < kTile * kTile / kRun; place += kConvThreads) {
    const int row = planar ? place % kTile : place / (kTile / kRun);
    const int column = (planar ? place / kTile : place % (kTile / kRun)) * kRun;
    if (row0 + row >= p.rows.count || column0 + column >= p.columns) continue;
    Pixel at = pixel_of(p.rows, row0 + row);
#pragma unroll
    for (int a = 0; a < 3; ++a) at.at[a] = p.first[a] + at.at[a] * p.stride[a];
    const int channel = g * p.columns + column0 + column;
    float result[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      result[i] = results[row * (kTile + 8) + column + i];
      if (column0 + column + i < p.columns) result[i] = finished(after, at, channel + i, result[i]);
    }
    activate(after.act, result);
    if (p.store_vectors) {
      store_run(to + offset_in(p.write, at, channel), result);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      if (column0 + column + i < p.columns) store_result(after, to, p.write, at, channel + i, result[i]);
  }
}

// Sums of the pieces of a weight gradient, 64 x 64 a block.
template <bool kThrice, class T>
__global__ void __launch_bounds__(kConvThreads, 2)
    mma_weights(ConvShape s, Divider by_channels, Divider across, int piece, unsigned pieces, const T* in, const T* out,
                float* sums) {
  constexpr int kTile = 64, kStage = 2 * kTile * kRowBytes, kVector = Vector<T>::kLength;
  constexpr int kDepth = kRowVectors * kVector;
  char* stages = shared_memory<char>();
  const int tid = static_cast<int>(threadIdx.x);
  const unsigned group = blockIdx.z / pieces, number = blockIdx.z - group * pieces;
  const auto g = static_cast<int>(group);
  const uint32_t down = across.quotient(blockIdx.x);
  const int row0 = static_cast<int>(down) * kTile;
  const int column0 = static_cast<int>(blockIdx.x - down * across.divisor) * kTile;
  const int columns = s.C * s.tap_count;
  const int64_t begin = static_cast<int64_t>(number) * piece;
  const int64_t end = begin + piece < s.out_pixels.count ? begin + piece : s.out_pixels.count;

  // A thread brings one row and one column, and of both one vector of pixels.
  const int vector = tid / kTile, row = row0 + tid % kTile, column = column0 + tid % kTile;
  const auto tap_number = static_cast<int>(by_channels.quotient(static_cast<uint32_t>(column)));
  const Tap tap = tap_of(s, tap_number);
  int origin[3];
#pragma unroll
  for (int a = 0; a < 3; ++a) origin[a] = tap.at[a] * s.dilation[a] - s.pad[a];
  const T* from = in + (g * s.C + column - tap_number * s.C) * s.is.c;
  const T* of_row = out + (static_cast<int64_t>(g) * s.K + row) * s.os.c;
  // in at an output pixel and this thread's tap and channel; zero in zero padding.
  auto value_at = [&](const Pixel& pixel) {
    int64_t offset = pixel.n * s.is.n;
    bool there = true;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int at = pixel.at[a] * static_cast<int>(s.stride[a].divisor) + origin[a];
      if (static_cast<unsigned>(at) < static_cast<unsigned>(s.in[a])) {
        offset += at * s.is.s[a];
      } else if (s.mode == PaddingMode::zeros) {
        there = false;
      } else {
        offset += ops::map_index(s.mode, at, s.in[a]) * s.is.s[a];
      }
    }
    return there ? from[offset] : narrow<T>(0);
  };
  Vector<T> left, right;
  auto gather = [&](int chunk) {
    const int64_t first = begin + static_cast<int64_t>(chunk) * kDepth + vector * kVector;
    Pixel pixel = pixel_of(s.out_pixels, first < end ? first : 0);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      T a = narrow<T>(0), b = narrow<T>(0);
      if (first + j < end) {
        if (row < s.K) a = of_row[offset_in(s.os, pixel, 0)];
        if (column < columns) b = value_at(pixel);
      }
      if constexpr (sizeof(T) == 4 && !kThrice) {
        const uint32_t bits = to_tf32(b);
        memcpy(&b, &bits, 4);
      }
      left.at[j] = a, right.at[j] = b;
      if (++pixel.at[2] < s.out[2]) continue;
      pixel.at[2] = 0;
      if (++pixel.at[1] < s.out[1]) continue;
      pixel.at[1] = 0;
      if (++pixel.at[0] < s.out[0]) continue;
      pixel.at[0] = 0, ++pixel.n;
    }
  };
  auto store = [&](char* stage) {
    store_vector(reinterpret_cast<T*>(stage + swizzled(tid % kTile, vector)), left);
    store_vector(reinterpret_cast<T*>(stage + kTile * kRowBytes + swizzled(tid % kTile, vector)), right);
  };
  Share<kTile, kThrice, T> share;
  const auto chunks = static_cast<int>((end - begin + kDepth - 1) / kDepth);
  gather(0);
  store(stages);
  __syncthreads();
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk + 1 < chunks) gather(chunk + 1);
    share.add(stages + chunk % 2 * kStage);
    if (chunk + 1 < chunks) store(stages + (chunk + 1) % 2 * kStage);
    __syncthreads();
  }
  auto* results = reinterpret_cast<float*>(stages);
  share.leave(results);
  __syncthreads();
  const int64_t all = static_cast<int64_t>(s.G) * s.K * columns;
#pragma unroll 1
  for (int place = tid; place < kTile * kTile; place += kConvThreads) {
    const int k = row0 + place / kTile, of_column = column0 + place % kTile;
    if (k >= s.K || of_column >= columns) continue;
    const auto t = static_cast<int>(by_channels.quotient(static_cast<uint32_t>(of_column)));
    sums[number * all + ((static_cast<int64_t>(g) * s.K + k) * s.C + of_column - t * s.C) * s.tap_count + t] =
        results[place / kTile * (kTile + 8) + place % kTile];
  }
}

// --- on the host -------------------------------------------------------------------------------------------------

// Groups of fewer channels written, terms or weights go by the CUDA cores: tiles would be empty, and a launch that
// packs weights would take longer. How many pixels there are does not count: those of a dense layer are its batch. (Not
// measured.)
constexpr int64_t kLeastSide = 16, kLeastWeights = int64_t{1} << 11;
// From this many blocks on tiles are large: most of what a GPU has multiprocessors. (Not measured.)
constexpr int64_t kManyTiles = 96;
// Pixels of a piece of a weight gradient, at least.
constexpr int64_t kLeastPiece = 2048;

// Columns are padded to the tile that they fill.
int tile_of(int columns) { return columns > 64 ? 128 : 64; }
template <class T>
constexpr int kDepthOf = kRowBytes / static_cast<int>(sizeof(T));

// The product of one residue of the stride (fprop: of the only one); false where it has no rows.
bool walk_of(Product product, const ConvShape& s, const int residue[3], Walk* walk) {
  Walk& p = *walk;
  const bool back = product == Product::dgrad;
  p.mode = s.mode;
  p.read = back ? s.os : s.is, p.write = back ? s.is : s.os;
  p.channels = back ? s.K : s.C, p.columns = back ? s.C : s.K;
  int64_t taps = 1;
  p.rows = back ? s.in_pixels : s.out_pixels;
  int64_t images = p.rows.count;
  for (const Divider& n : p.rows.size) images /= n.divisor ? n.divisor : 1;
  p.rows.count = images;
  for (int a = 0; a < 3; ++a) {
    int64_t count = s.filter[a], pixels = s.out[a];
    const auto stride = static_cast<int>(s.stride[a].divisor);
    p.first[a] = residue[a], p.first_tap[a] = 0, p.tap_step[a] = 1, p.stride[a] = 1;
    if (!back) {
      p.step[a] = stride, p.origin[a] = -s.pad[a], p.dilate[a] = s.dilation[a], p.size[a] = s.in[a];
    } else {
      // Tap t of pixel r + stride * j reads (r + pad - t * dilation) / stride + j, where that is whole.
      const int common = std::gcd(stride, s.dilation[a]);
      const int64_t begin = static_cast<int64_t>(residue[a]) + s.pad[a];
      int64_t first = 0;
      while (first < stride / common && (begin - first * s.dilation[a]) % stride != 0) ++first;
      p.tap_step[a] = stride / common;
      p.first_tap[a] = static_cast<int>(first);
      count = first < stride / common && first < count ? (count - first + p.tap_step[a] - 1) / p.tap_step[a] : 0;
      p.step[a] = 1, p.size[a] = s.out[a], p.stride[a] = stride;
      p.origin[a] = count ? static_cast<int>((begin - first * s.dilation[a]) / stride) : 0;
      p.dilate[a] = -(s.dilation[a] / common);
      pixels = residue[a] < s.in[a] ? ceil_div(s.in[a] - residue[a], stride) : 0;
    }
    if (pixels == 0) return false;
    p.rows.size[a] = Divider(static_cast<uint32_t>(pixels));
    p.rows.count *= pixels;
    p.taps[a] = Divider(static_cast<uint32_t>(std::max<int64_t>(1, count)));
    taps *= count;
  }
  p.by_channels = Divider(static_cast<uint32_t>(std::max(1, p.channels)));
  p.terms = static_cast<int>(taps * p.channels);
  const int tile = tile_of(p.columns);
  p.packed_columns = ceil_div(p.columns, tile) * tile;
  return p.rows.count > 0;
}

// Residues of the stride; each is a launch, and packs its weights.
constexpr int64_t kMostResidues = 64;
int64_t residues_of(Product product, const ConvShape& s) {
  int64_t count = 1;
  for (const Divider& d : s.stride) count *= product == Product::dgrad ? d.divisor : 1;
  return count;
}

// Elements of the packed weights of all taps, which are no fewer than those of a residue's.
template <class T>
int64_t packed_elements(Product product, const ConvShape& s) {
  const int columns = product == Product::dgrad ? s.C : s.K;
  const int64_t channels = product == Product::dgrad ? s.K : s.C, tile = tile_of(columns);
  return s.G * ceil_div(columns, tile) * tile * ceil_div(channels * s.tap_count, kDepthOf<T>) * kDepthOf<T>;
}

// Whether a side's vectors of channels can be copied as they lie.
template <class T>
bool whole_vectors(const Strides& strides, int channels, const T* data) {
  constexpr int kVector = Vector<T>::kLength;
  bool whole = strides.c == 1 && channels % kVector == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
               strides.n % kVector == 0;
  for (const int64_t step : strides.s) whole = whole && step % kVector == 0;
  return whole;
}

template <int kTile, bool kThrice, class T>
Status run_walk(const Walk& p, int groups, Load load, const Before<T>& before, const After<T>& after, const T* from,
                const T* packed, T* to, const Queue& queue) {
  const int64_t down = ceil_div(p.rows.count, kTile), across = ceil_div(p.columns, kTile);
  if (down * across > kMost32) return Status::overflow;
  auto* kernel = load == Load::copied ? &mma_tiles<kTile, Load::copied, kThrice, T>
                                      : &mma_tiles<kTile, Load::gathered, kThrice, T>;
  if constexpr (kTile == 64)
    if (load == Load::prepared) kernel = &mma_tiles<kTile, Load::prepared, kThrice, T>;
  const dim3 grid(static_cast<unsigned>(down * across), 1, static_cast<unsigned>(groups));
  return launch(kernel, grid, kConvThreads, kSharedBytes<kTile>, queue, p, before, after,
                Divider(static_cast<uint32_t>(across)), from, packed, to);
}

template <bool kThrice, class T>
Status run_products(Product product, const ConvShape& s, const Before<T>& before, const After<T>& after, const T* from,
                    const T* w, T* to, const Queue& queue) {
  const bool back = product == Product::dgrad;
  auto* packed = static_cast<T*>(queue.workspace);
  const int steps[3] = {back ? static_cast<int>(s.stride[0].divisor) : 1,
                        back ? static_cast<int>(s.stride[1].divisor) : 1,
                        back ? static_cast<int>(s.stride[2].divisor) : 1};
  for (int number = 0; number < steps[0] * steps[1] * steps[2]; ++number) {
    const int residue[3] = {number / steps[2] / steps[1], number / steps[2] % steps[1], number % steps[2]};
    Walk p;
    if (!walk_of(product, s, residue, &p)) continue;
    p.packed_row = ceil_div(p.terms, kDepthOf<T>) * kDepthOf<T>;
    p.chunks = static_cast<int>(p.packed_row / kDepthOf<T>);
    p.store_vectors = !after.accumulate && p.write.c == 1 && p.columns % kRun == 0 && p.write.n % kRun == 0 &&
                      p.write.s[0] % kRun == 0 && p.write.s[1] % kRun == 0 && p.write.s[2] % kRun == 0 &&
                      reinterpret_cast<uintptr_t>(to) % (kRun * sizeof(T)) == 0;
    const int64_t count = s.G * p.packed_columns * p.packed_row;
    Status status = Status::ok;
    if (count)
      status = launch(&pack_filters<T>, static_cast<unsigned>(ceil_div(count, kConvThreads)), kConvThreads, 0, queue, p,
                      s.ws, back, !kThrice, Radix<uint32_t>(p.packed_row), Radix<uint32_t>(p.packed_columns),
                      static_cast<uint32_t>(count), w, packed);
    if (status != Status::ok) return status;
    const Load load = before.active                             ? Load::prepared
                      : whole_vectors(p.read, p.channels, from) ? Load::copied
                                                                : Load::gathered;
    // Few results leave multiprocessors without a large tile; the sums are the same. It has no registers for a
    // prologue, nor for the parts of tf32x3, whose three products are enough work for what a small one reads.
    bool large = false;
    if constexpr (!kThrice) {
      const int64_t tiles = s.G * ceil_div(p.rows.count, 128) * ceil_div(p.columns, 128);
      large = p.columns > 64 && tiles >= kManyTiles && load != Load::prepared;
      if (large) status = run_walk<128, false>(p, s.G, load, before, after, from, packed, to, queue);
    }
    if (!large) status = run_walk<64, kThrice>(p, s.G, load, before, after, from, packed, to, queue);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace

template <class T>
bool on_tensor_cores(Product product, const ConvShape& s, Precision precision) {
  if (sizeof(T) == 8 || (sizeof(T) == 4 && precision == Precision::strict)) return false;
  if (product == Product::dgrad && s.mode != PaddingMode::zeros) return false;
  const int columns = product == Product::dgrad ? s.C : s.K, channels = product == Product::dgrad ? s.K : s.C;
  const int64_t terms = static_cast<int64_t>(channels) * s.tap_count;
  if (columns < kLeastSide || terms < kLeastSide || terms * columns < kLeastWeights || s.G > 65535 / 64) return false;
  if (product == Product::wgrad) return true;
  return residues_of(product, s) <= kMostResidues && packed_elements<T>(product, s) <= kMost32 / 2;
}

template <class T>
int64_t tensor_core_workspace(Product product, const ConvShape& s) {
  if (product != Product::wgrad) return packed_elements<T>(product, s) * static_cast<int64_t>(sizeof(T));
  const Cut cut(s.out_pixels.count, kLeastPiece);
  return std::max<int64_t>(1, cut.pieces) * s.G * s.K * s.C * s.tap_count * static_cast<int64_t>(sizeof(float));
}

template <class T>
void describe_tensor_cores(Product product, const ConvShape& s, Precision precision, bool prepared, Decision* d) {
  const bool thrice = sizeof(T) == 4 && precision == Precision::tf32x3;
  d->role = sizeof(T) == 2 ? "tensor cores" : thrice ? "tensor cores, tf32x3" : "tensor cores, tf32";
  d->reduction_block = kDepthOf<T>;
  d->tile_rows = d->tile_columns = 64;
  if (product == Product::wgrad) return;
  d->packed_weight_bytes = tensor_core_workspace<T>(product, s);
  // As run_products() takes it for the whole side; a residue of the stride may have fewer pixels.
  const bool back = product == Product::dgrad;
  const int64_t rows = (back ? s.in_pixels : s.out_pixels).count / residues_of(product, s), columns = back ? s.C : s.K;
  if (!thrice && !prepared && columns > 64 && s.G * ceil_div(rows, 128) * ceil_div(columns, 128) >= kManyTiles)
    d->tile_rows = d->tile_columns = 128;
}

template <class T>
Status run_tensor_cores(Product product, const ConvShape& s, Precision precision, const Before<T>& before,
                        const After<T>& after, T* in, T* out, T* w, const Queue& queue) {
  if constexpr (sizeof(T) == 8) {
    return Status::unsupported;
  } else {
    const bool thrice = sizeof(T) == 4 && precision == Precision::tf32x3;
    if (product == Product::wgrad) {
      const Cut cut(s.out_pixels.count, kLeastPiece);
      const int64_t down = ceil_div(s.K, 64), across = ceil_div(static_cast<int64_t>(s.C) * s.tap_count, 64);
      if (down * across > kMost32) return Status::overflow;
      auto* kernel = &mma_weights<false, T>;
      if constexpr (sizeof(T) == 4)
        if (thrice) kernel = &mma_weights<true, T>;
      const dim3 grid(static_cast<unsigned>(down * across), 1, static_cast<unsigned>(s.G * cut.pieces));
      auto* sums = static_cast<float*>(queue.workspace);
      const Status status =
          launch(kernel, grid, kConvThreads, std::max<size_t>(4 * 64 * kRowBytes, size_t{64} * 72 * sizeof(float)),
                 queue, s, Divider(static_cast<uint32_t>(s.C)), Divider(static_cast<uint32_t>(across)),
                 static_cast<int>(cut.length), static_cast<unsigned>(cut.pieces), in, out, sums);
      if (status != Status::ok) return status;
      return join_pieces<T>(sums, static_cast<int64_t>(s.G) * s.K * s.C * s.tap_count, cut.pieces, after.accumulate, w,
                            queue);
    }
    const T* from = product == Product::fprop ? in : out;
    T* to = product == Product::fprop ? out : in;
    if constexpr (sizeof(T) == 4)
      if (thrice) return run_products<true>(product, s, before, after, from, w, to, queue);
    return run_products<false>(product, s, before, after, from, w, to, queue);
  }
}

#define FASTCONV_TENSOR_CORES(T)                                                                                       \
  template bool on_tensor_cores<T>(Product, const ConvShape&, Precision);                                              \
  template int64_t tensor_core_workspace<T>(Product, const ConvShape&);                                                \
  template void describe_tensor_cores<T>(Product, const ConvShape&, Precision, bool, Decision*);                       \
  template Status run_tensor_cores<T>(Product, const ConvShape&, Precision, const Before<T>&, const After<T>&, T*, T*, \
                                      T*, const Queue&);
FASTCONV_TENSOR_CORES(float)
FASTCONV_TENSOR_CORES(double)
FASTCONV_TENSOR_CORES(half)
FASTCONV_TENSOR_CORES(bfloat16)
#undef FASTCONV_TENSOR_CORES

}  // namespace fastconv::cuda
