// Depthwise layers by tiles in shared memory: forward, and all gradients in one pass over x and dy; transposed ones
// too.
//
// Bytes: forward x and y once, backward x, dy and dx once (a tile's halo is read again, from L2), beside them the
// filter and, of its gradient, a sum a chunk of tiles. Flops: 2 a tap and element forward, 4 backward: 3x3 in 16 bits
// has 4.5 a byte forward and 6 backward, a third of what the CUDA cores can do in the time of the bytes; 7x7 is bound
// by them.
//
// A block has a tile of pixels of one image, of y forward and of x backward, and in shared memory all that it reads of
// the other side (its box), and the filter, widened. A tile's pixels are found in the box as outputs find theirs in an
// image (fprop: a layer forward, a transposed one backward) or as pixels find the outputs that read them (dgrad: the
// other way round). Padding, of zeros or of pixels of the image, is brought into the box like all else. Two orders:
//
//   channels last   a row of shared memory is a pixel's vectors of channels, up to 128 bytes. Where their number is one
//                   of whole vectors a warp's loads from global memory (LDGSTS.128) are whole rows, else it takes
//                   element after element. A thread has one vector of a strip of 4 pixels (2 of the wide 16-bit forms)
//                   along W: it reads each vector of its columns once a row of the filter and uses it for every tap.
//   planar          strips of rows of one plane, or of several small planes. A thread has a strip of 4 pixels along W,
//                   and reads 4 elements at a time. It takes any strides; so it does channels last where they fill no
//                   half of a vector, or where a large filter leaves no room for one.
//
// Several channels of y to one of x (`multiples`): forward the tile's results are made one channel after the other;
// backward the box has all of them, a lane each.
//
// forward: acc[strip][length] += x[column] * filter[tap], filter rows in their order.
// backward: a tile of pixels of x, the box is dy's.
//   1. dx: as forward, by the taps that divide the stride, over the multiples in their order. Pixels that padding
//      repeats have the gradients of all their places, in the order of those, read from dy itself: they are few.
//   2. dw: a thread has a row of a filter (any tap in the form of any size), its vector of channels and some strips of
//      the tile, and its sums stay in registers over all tiles of the block's chunk: dw[tap] += x * dy. Pairs are
//      counted by their pixel of x, so that each has one tile; where outputs read padding alone, or padding that is
//      not zeros, tiles cover it too. What is more than a block's threads have registers for goes to further blocks.
//   3. db: outputs are dealt to tiles by the pixel under the middle of their window (fprop: the first of it).
//   The parts of a block are joined in their order, chunks by join_sums in theirs. Chunks follow from the shapes alone.
//
// Registers, 16-bit 3x3: 32 accumulators, 24 of a filter row, 8 of a column, addresses; backward 24 sums of dw and 8 of
// db beside them: at most 128, so that 2 blocks of 256 share a multiprocessor (184 for 7 taps of 16 bits, one block).
// Shared memory: the box, of x or of dy and x, the filter, at most kMostShared.
//
// gate: depthwise_forward registers 128 shared 98304
// gate: depthwise_backward registers 184 shared 98304
// gate: join_sums registers 40 shared 2048
// gate: depthwise_forward asynchronous
// gate: depthwise_forward vector stores
// gate: depthwise_backward asynchronous
// gate: depthwise_backward vector stores
#include <algorithm>
#include <initializer_list>
#include <utility>

#include "cuda/async.cuh"
#include "cuda/conv.cuh"
#include "cuda/launch.h"

namespace fastconv::cuda {

// With more channels of y to one of x the tiles of a product are half full.
constexpr int kMostMultiples = 32;

// A layer as its kernels see it: plain, or transposed, whose x is the side of outputs.
struct Depthwise {
  const ConvShape& s;
  bool transposed;
  int multiples;
  int64_t weight_step;

  Depthwise(const ConvShape& shape, bool is_transposed)
      : s(shape),
        transposed(is_transposed),
        multiples(transposed ? s.C : s.K),
        weight_step(transposed ? s.ws.c : s.ws.k) {}
  bool ok() const {
    return (transposed ? s.K : s.C) == 1 && multiples <= kMostMultiples && s.in_pixels.count > 0 &&
           s.out_pixels.count > 0;
  }
  const Strides& x() const { return transposed ? s.os : s.is; }
  const Strides& y() const { return transposed ? s.is : s.os; }
  // Channels last where they fill more than half of a vector: a side with these strides.
  bool inner(const Strides& strides, int length) const { return strides.c == 1 && 2 * s.G > length; }
};

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostShared = 96 << 10;
// What a tile is made to fit where it can: two or three blocks of a multiprocessor.
constexpr int64_t kGoodShared = 64 << 10;
constexpr int kMostLanes = 16;
// Taps of a thread in the weight gradient of filters of any size.
constexpr int kOwn = 4;

template <bool kPlanar, class T>
constexpr int kLengthOf = kPlanar ? 1 : Vector<T>::kLength;
// Pixels of a thread: fewer where a row of the filter takes the registers.
template <int kTaps, bool kPlanar, class T>
constexpr int kStripOf = kLengthOf<kPlanar, T> == 8 && kTaps > 3 ? 2 : 4;

// Takes the remainder by `by` off `rest`.
__device__ __forceinline__ int split(uint32_t& rest, const Divider& by) {
  const uint32_t q = by.quotient(rest), r = rest - q * by.divisor;
  rest = q;
  return static_cast<int>(r);
}

// A box of pixels in shared memory: pixels x lanes (vectors) channels last, lanes x pixels planar, its rows of `pitch`
// elements (a pixel's; a row's of pixels). Lanes of all channels by the first multiple come before those by the second.
struct Box {
  int size[3], pitch, pixels, lanes, multiples;
  Divider by[3], by_lanes, by_width, by_multiples;  // width: a pixel's elements

  template <bool kPlanar, int kLength>
  __device__ int at(int d, int h, int w, int lane) const {
    return kPlanar ? ((lane * size[0] + d) * size[1] + h) * pitch + w
                   : ((d * size[1] + h) * size[2] + w) * pitch + lane * kLength;
  }
  FASTCONV_BOTH int elements(int length) const { return pixels * lanes * multiples * length; }
};

// Where a block is: its image, the lanes of its channels and the corner of its tile.
struct TilesOf {
  int tile[3], count[3], origin[3], channels, groups;  // groups of lanes
  Divider by[3], by_group;
  int64_t total;  // tiles of all images
};

struct Corner { int n, at[3]; };

__device__ __forceinline__ Corner corner_of(const TilesOf& t, int64_t number) {
  auto rest = static_cast<uint32_t>(number);
  Corner c{};
#pragma unroll
  for (int a = 2; a >= 0; --a) c.at[a] = t.origin[a] + split(rest, t.by[a]) * t.tile[a];
  c.n = static_cast<int>(rest);
  return c;
}

// What both kernels take.
template <class T>
struct TileArgs {
  ConvShape s;
  int multiples;
  int64_t weight_step;  // from one multiple to the next
  TilesOf tiles;  // of the side that is written
  Box box;  // of the side that is read
  Divider by_strips, by_rows;
  bool whole_read, whole_written;  // vectors are loaded, vectors and strips are stored, as one
  Strides at_read, at_written;
  const T *read, *w;
  T* written;
};

template <class T>
struct DepthwiseForward : TileArgs<T> {
  After<T> after;
};

template <class T>
struct DepthwiseBackward : TileArgs<T> {
  Box x;
  bool whole_x, accumulate;
  int first[3], last[3];  // pixels whose pairs are counted
  int end[3];  // of the tiles
  int middle[3];  // of a window, from its first pixel less the padding
  int slots, parts;  // of the threads of a lane: rows of filters (or taps), and parts of the tile
  int64_t chunk;  // tiles of a block
  Divider by_pieces;  // blocks of a chunk
  const T* in;
  Strides at_x;
  Acc<T>*sums, *bias;  // null: not wanted, as `written`
};

// Where the box of a tile begins.
template <Product kProduct>
__device__ __forceinline__ void find_low(const ConvShape& s, const Corner& corner, int (&low)[3]) {
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int stride = static_cast<int>(s.stride[a].divisor);
    if constexpr (kProduct == Product::fprop) {
      low[a] = corner.at[a] * stride - s.pad[a];
    } else {
      // Rounded up, also below zero.
      const int ahead = corner.at[a] + s.pad[a] - (s.filter[a] - 1) * s.dilation[a];
      low[a] = ahead >= 0 ? static_cast<int>(s.stride[a].quotient(static_cast<uint32_t>(ahead + stride - 1)))
                          : -static_cast<int>(s.stride[a].quotient(static_cast<uint32_t>(-ahead)));
    }
  }
}

// The output that reads padded pixel `ahead` by its first tap; -1 where none does.
__device__ __forceinline__ int output_at(const ConvShape& s, int a, int ahead) {
  if (ahead < 0) return -1;
  const auto o = static_cast<int>(s.stride[a].quotient(static_cast<uint32_t>(ahead)));
  return o * static_cast<int>(s.stride[a].divisor) == ahead && o < s.out[a] ? o : -1;
}

// Where in its box a pixel of the tile has its partner by a tap; dgrad: -1 where it has none.
template <Product kProduct>
__device__ __forceinline__ int partner(const ConvShape& s, int a, int own, int tap, int low) {
  if constexpr (kProduct == Product::fprop)
    return own * static_cast<int>(s.stride[a].divisor) - s.pad[a] + tap * s.dilation[a] - low;
  const int o = output_at(s, a, own + s.pad[a] - tap * s.dilation[a]);
  return o < 0 ? -1 : o - low;
}

// Begins to bring a box of an image's side of `size` pixels, from its channel `from` on: what padding repeats in its
// place, zeros where there is nothing.
template <bool kFolds, bool kPlanar, class T>
__device__ __forceinline__ void bring(const ConvShape& s, const int (&size)[3], const T* from, const Strides& strides,
                                      const int (&low)[3], const Box& box, bool whole, int channels, T* to) {
  constexpr int kLength = kLengthOf<kPlanar, T>;
  auto bring_at = [&](int d, int h, int w, bool inside, int64_t offset, auto copy) {
    const int at[3] = {low[0] + d, low[1] + h, low[2] + w};
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      int p = at[a];
      if (kFolds && s.mode != PaddingMode::zeros && p >= -s.pad[a] && p < size[a] + s.pad_after[a])
        p = static_cast<int>(ops::map_index(s.mode, p, size[a]));
      inside = inside && static_cast<unsigned>(p) < static_cast<unsigned>(size[a]);
      offset += p * strides.s[a];
    }
    copy(inside ? from + offset : from, inside);
  };
  if constexpr (!kPlanar) {
    if (whole) {
#pragma unroll 1
      for (int e = static_cast<int>(threadIdx.x), items = box.pixels * box.lanes; e < items; e += kThreads) {
        auto rest = static_cast<uint32_t>(e);
        const int lane = split(rest, box.by_lanes), w = split(rest, box.by[2]), h = split(rest, box.by[1]);
        const int d = static_cast<int>(rest);
        T* place = to + box.template at<kPlanar, kLength>(d, h, w, lane);
        bring_at(d, h, w, lane * kLength < channels, lane * kLength,
                 [&](const T* source, bool inside) { copy_async<16>(place, source, inside ? 16 : 0); });
      }
      return;
    }
  }
#pragma unroll(sizeof(T) >= 4 ? 1 : 2)
  for (int e = static_cast<int>(threadIdx.x), items = box.elements(kLength); e < items; e += kThreads) {
    auto rest = static_cast<uint32_t>(e);
    // Channels last in the order of memory: a channel's multiples follow each other.
    uint32_t channel = 0;
    if constexpr (!kPlanar) channel = static_cast<uint32_t>(split(rest, box.by_width));
    const int w = split(rest, box.by[2]), h = split(rest, box.by[1]);
    if constexpr (kPlanar) channel = box.by[0].quotient(rest);
    const int d = static_cast<int>(kPlanar ? rest - channel * box.by[0].divisor : rest);
    const int m = split(channel, box.by_multiples), c = static_cast<int>(channel);
    T* place = kPlanar ? to + box.template at<kPlanar, kLength>(d, h, w, m * box.lanes + c)
                       : to + box.template at<kPlanar, kLength>(d, h, w, m * box.lanes) + c;
    bring_at(d, h, w, c < channels, (static_cast<int64_t>(c) * box.multiples + m) * strides.c,
             [&](const T* source, bool inside) {
               if constexpr (sizeof(T) >= 4) {
                 copy_async<sizeof(T)>(place, source, inside ? static_cast<int>(sizeof(T)) : 0);
               } else {
                 T value{};
                 if (inside) value = *source;
                 *place = value;
               }
             });
  }
}

// A vector, channels last; an element, planar.
template <int kLength, class T>
__device__ __forceinline__ void read_vector(const T* from, Acc<T> (&to)[kLength]) {
  if constexpr (kLength > 1) {
    const Vector<T> v = load_vector(from);
#pragma unroll
    for (int l = 0; l < kLength; ++l) to[l] = widen(v.at[l]);
  } else {
    to[0] = widen(*from);
  }
}

// A vector of the filter's, widened, of which kLength are a multiple of 16 bytes: 16 bytes a load.
template <int kLength, class A>
__device__ __forceinline__ void read_wide(const A* from, A (&to)[kLength]) {
  if constexpr (kLength == 1) {
    to[0] = *from;
  } else {
    constexpr int kEach = Vector<A>::kLength;
    static_assert(kLength % kEach == 0);
#pragma unroll
    for (int l = 0; l < kLength; l += kEach) {
      const Vector<A> v = load_vector(from + l);
#pragma unroll
      for (int i = 0; i < kEach; ++i) to[l + i] = v.at[i];
    }
  }
}

// 4 elements of a planar row at a multiple of 4.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
  T at[4];
};

// The filters, widened: [multiple][tap][channel] channels last, [multiple][channel][tap] planar.
template <bool kPlanar, class T>
__device__ __forceinline__ void bring_filter(const TileArgs<T>& a, int channel, int channels, Acc<T>* to) {
  const ConvShape& s = a.s;
  const int width = a.box.lanes * kLengthOf<kPlanar, T>, count = s.tap_count * width * a.multiples;
  for (int e = static_cast<int>(threadIdx.x); e < count; e += kThreads) {
    const int q = kPlanar ? e / s.tap_count : e / width, r = kPlanar ? e % s.tap_count : e % width;
    const int tap = kPlanar ? r : q % s.tap_count, c = kPlanar ? q % width : r;
    const int m = kPlanar ? q / width : q / s.tap_count;
    to[e] = c < channels ? widen(a.w[m * a.weight_step + weight_offset(s, channel + c, 0, 0, tap_of(s, tap))]) : 0;
  }
}

// The filter of a lane and multiple; its taps lie `filter_step` apart.
template <bool kPlanar, class T>
__device__ __forceinline__ const Acc<T>* filter_of(const TileArgs<T>& a, const Acc<T>* filter, int lane, int m) {
  constexpr int kLength = kLengthOf<kPlanar, T>;
  return kPlanar ? filter + (m * a.box.lanes + lane) * a.s.tap_count
                 : filter + m * a.s.tap_count * a.box.lanes * kLength + lane * kLength;
}
template <bool kPlanar, class T>
__device__ __forceinline__ int filter_step(const TileArgs<T>& a) {
  return kPlanar ? 1 : a.box.lanes * kLengthOf<kPlanar, T>;
}

// A thread's strip: where it begins in the tile, and its lane.
struct Strip { int at[3], lane; };

template <int kStrip, bool kPlanar, class T>
__device__ __forceinline__ Strip strip_of(const TileArgs<T>& a, int number) {
  auto rest = static_cast<uint32_t>(number);
  Strip strip{};
  if constexpr (!kPlanar) strip.lane = split(rest, a.box.by_lanes);
  strip.at[2] = split(rest, a.by_strips) * kStrip, strip.at[1] = split(rest, a.by_rows);
  strip.at[0] = static_cast<int>(rest);
  if constexpr (kPlanar) strip.lane = strip.at[0] / a.tiles.tile[0], strip.at[0] %= a.tiles.tile[0];
  return strip;
}

// Adds up a strip's products over the taps; `lane`: the box's. `filter`: the lane's.
template <Product kProduct, int kTaps, int kStride, bool kPlanar, class T, int kStrip, int kLength>
__device__ __forceinline__ void add_taps(const TileArgs<T>& a, const T* box, const Acc<T>* filter, const Corner& corner,
                                         const int (&low)[3], const Strip& strip, int lane,
                                         Acc<T> (&acc)[kStrip][kLength]) {
  using A = Acc<T>;
  const ConvShape& s = a.s;
  const int step = kPlanar ? 1 : a.box.pitch, to_next = filter_step<kPlanar>(a);
  for (int fd = 0; fd < s.filter[0]; ++fd) {
    const int d = partner<kProduct>(s, 0, corner.at[0] + strip.at[0], fd, low[0]);
    if (kProduct == Product::dgrad && d < 0) continue;
    for (int fh = 0; fh < s.filter[1]; ++fh) {
      const int h = partner<kProduct>(s, 1, corner.at[1] + strip.at[1], fh, low[1]);
      if (kProduct == Product::dgrad && h < 0) continue;
      const A* own = filter + (fd * s.filter[1] + fh) * s.filter[2] * to_next;
      if constexpr (kTaps > 0) {
        const T* row = box + a.box.template at<kPlanar, kLength>(d, h, strip.at[2] * kStride, lane);
        A weight[kTaps][kLength];
#pragma unroll
        for (int t = 0; t < kTaps; ++t) read_wide(own + t * to_next, weight[t]);
        Four<T> four;
#pragma unroll
        for (int c = 0; c < (kStrip - 1) * kStride + kTaps; ++c) {
          A value[kLength];
          if constexpr (kPlanar) {
            if (c % 4 == 0) four = *reinterpret_cast<const Four<T>*>(row + c);
            value[0] = widen(four.at[c % 4]);
          } else {
            read_vector(row + c * step, value);
          }
#pragma unroll
          for (int i = 0; i < kStrip; ++i) {
            const int t = kProduct == Product::fprop ? c - i * kStride : i + kTaps - 1 - c;
            if (t < 0 || t >= kTaps) continue;
#pragma unroll
            for (int l = 0; l < kLength; ++l) acc[i][l] += value[l] * weight[t][l];
          }
        }
      } else {
        const T* row = box + a.box.template at<kPlanar, kLength>(d, h, 0, lane);
        for (int t = 0; t < s.filter[2]; ++t) {
          A weight[kLength];
          read_wide(own + t * to_next, weight);
#pragma unroll
          for (int i = 0; i < kStrip; ++i) {
            const int w = partner<kProduct>(s, 2, corner.at[2] + strip.at[2] + i, t, low[2]);
            if (kProduct == Product::dgrad && w < 0) continue;
            A value[kLength];
            read_vector(row + w * step, value);
#pragma unroll
            for (int l = 0; l < kLength; ++l) acc[i][l] += value[l] * weight[l];
          }
        }
      }
    }
  }
}

// Elements of a vector in global memory, `step` apart, of which there are `count`.
template <int kLength, class T>
__device__ __forceinline__ void load_lanes(const T* from, int64_t step, int count, bool whole, Acc<T> (&to)[kLength]) {
  if (whole) return read_vector(from, to);
#pragma unroll
  for (int l = 0; l < kLength; ++l) to[l] = l < count ? widen(from[l * step]) : Acc<T>(0);
}
template <int kLength, class T>
__device__ __forceinline__ void store_lanes(T* to, int64_t step, int count, bool whole, const Acc<T> (&from)[kLength]) {
  if constexpr (kLength > 1) {
    if (whole) {
      Vector<T> result;
#pragma unroll
      for (int l = 0; l < kLength; ++l) result.at[l] = narrow<T>(from[l]);
      return store_vector(to, result);
    }
  }
#pragma unroll
  for (int l = 0; l < kLength; ++l)
    if (l < count) to[l * step] = narrow<T>(from[l]);
}

// Writes the pixels of a strip that `mask` names, from `at` on, of `count` channels from `channel` on of multiple m.
// `after`: null where the sums are added to what is there, or replace it.
template <bool kFinish, bool kPlanar, class T, int kStrip, int kLength>
__device__ __forceinline__ void store_strip(const TileArgs<T>& a, const After<T>* after, bool accumulate, Pixel at,
                                            int channel, int count, int m, unsigned mask,
                                            Acc<T> (&acc)[kStrip][kLength]) {
  using A = Acc<T>;
  const int multiples = kFinish ? a.multiples : 1, first = channel * multiples + m;
  const int64_t next = a.at_written.s[2], step = multiples * a.at_written.c;
  T* to = a.written + offset_in(a.at_written, at, first);
  if constexpr (kPlanar) {
    A v[kStrip];
    Four<T> result;
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
      v[i] = acc[i][0];
      if (mask >> i & 1) {
        if constexpr (kFinish)
          v[i] = finished(*after, at, first, v[i]);
        else if (accumulate)
          v[i] += widen(to[i * next]);
      }
      ++at.at[2];
    }
    if constexpr (kFinish) activate(after->act, v);
#pragma unroll
    for (int i = 0; i < kStrip; ++i) result.at[i] = narrow<T>(v[i]);
    if (kStrip == 4 && a.whole_written && mask == (1u << kStrip) - 1) {
      *reinterpret_cast<Four<T>*>(to) = result;
    } else {
#pragma unroll
      for (int i = 0; i < kStrip; ++i)
        if (mask >> i & 1) to[i * next] = result.at[i];
    }
  } else {
    // A pixel at a time: the activations' code stands here once, and the accumulators move up.
#pragma unroll 1
    for (int i = 0; i < kStrip; ++i, ++at.at[2], to += next) {
      A v[kLength];
#pragma unroll
      for (int l = 0; l < kLength; ++l) v[l] = acc[0][l];
#pragma unroll
      for (int j = 0; j + 1 < kStrip; ++j)
#pragma unroll
        for (int l = 0; l < kLength; ++l) acc[j][l] = acc[j + 1][l];
      if (!(mask >> i & 1)) continue;
      if constexpr (kFinish) {
#pragma unroll
        for (int l = 0; l < kLength; ++l)
          if (l < count) v[l] = finished(*after, at, first + l * multiples, v[l]);
        activate(after->act, v);
      } else if (accumulate) {
        A before[kLength];
        load_lanes(to, step, count, a.whole_written, before);
#pragma unroll
        for (int l = 0; l < kLength; ++l) v[l] += before[l];
      }
      store_lanes(to, step, count, a.whole_written, v);
    }
  }
}

// The first `left` pixels of a strip.
template <int kStrip>
__device__ __forceinline__ unsigned first_of(int left) {
  return left >= kStrip ? (1u << kStrip) - 1 : (1u << left) - 1;
}

template <Product kProduct, int kTaps, int kStride, bool kPlanar, class T>
__global__ void __launch_bounds__(kThreads, 2) depthwise_forward(DepthwiseForward<T> a) {
  using A = Acc<T>;
  constexpr int kLength = kLengthOf<kPlanar, T>, kStrip = kStripOf<kTaps, kPlanar, T>;
  constexpr bool kIn = kProduct == Product::fprop;  // the side that is read
  const ConvShape& s = a.s;
  const int (&size)[3] = kIn ? s.out : s.in;
  T* box = shared_memory<T>();
  A* filter = reinterpret_cast<A*>(box + a.box.elements(kLength));
  auto number = static_cast<uint32_t>(blockIdx.x);
  const int channel = split(number, a.tiles.by_group) * a.box.lanes * kLength;
  const int left_channels = a.tiles.channels - channel, width = a.box.lanes * kLength;
  const int channels = left_channels < width ? left_channels : width;
  const Corner corner = corner_of(a.tiles, number);
  int low[3];
  find_low<kProduct>(s, corner, low);
  bring<kIn, kPlanar>(s, kIn ? s.in : s.out, a.read + corner.n * a.at_read.n + channel * a.at_read.c, a.at_read, low,
                      a.box, a.whole_read, channels, box);
  commit_copies();
  bring_filter<kPlanar>(a, channel, channels, filter);
  wait_for_copies<0>();
  __syncthreads();

  const int items = static_cast<int>(a.by_strips.divisor * a.by_rows.divisor) * a.tiles.tile[0] * a.box.lanes;
  for (int m = 0; m < a.multiples; ++m)
    for (int e = static_cast<int>(threadIdx.x); e < items; e += kThreads) {
      const Strip strip = strip_of<kStrip, kPlanar>(a, e);
      const Pixel at{corner.n, {corner.at[0] + strip.at[0], corner.at[1] + strip.at[1], corner.at[2] + strip.at[2]}};
      const int own = strip.lane * kLength;
      if (own >= channels || at.at[0] >= size[0] || at.at[1] >= size[1] || at.at[2] >= size[2]) continue;
      A acc[kStrip][kLength] = {};
      add_taps<kProduct, kTaps, kStride, kPlanar>(a, box, filter_of<kPlanar>(a, filter, strip.lane, m), corner, low,
                                                  strip, strip.lane, acc);
      store_strip<true, kPlanar, T>(a, &a.after, false, at, channel + own, channels - own, m,
                                    first_of<kStrip>(size[2] - at.at[2]), acc);
    }
}

// The first of the box's pixels that are dealt to a tile which begins at `own`.
template <Product kProduct, class T>
__device__ __forceinline__ int first_dealt(const DepthwiseBackward<T>& a, int i, int own) {
  const ConvShape& s = a.s;
  const int end = kProduct == Product::dgrad ? s.out[i] : s.in[i], stride = static_cast<int>(s.stride[i].divisor);
  if (own <= a.tiles.origin[i]) return 0;
  if (own >= a.end[i]) return end;
  int o = own * stride - s.pad[i];
  if constexpr (kProduct == Product::dgrad) {
    const int ahead = own - a.middle[i] + stride - 1;
    o = ahead <= 0 ? 0 : static_cast<int>(s.stride[i].quotient(static_cast<uint32_t>(ahead)));
  }
  return o < 0 ? 0 : o < end ? o : end;
}

// The places of pixels along an axis of the padded image.
__device__ __forceinline__ Preimages places_of(const ConvShape& s, int a, int i) {
  return {s.in[a], i, s.pad[a], s.pad_after[a], s.mode};
}

// dx of the pixels of a tile that padding repeats: a thread a pixel's vector.
template <bool kPlanar, class T>
__device__ __forceinline__ void add_places(const DepthwiseBackward<T>& a, const Acc<T>* filter, const Corner& corner,
                                           int channel, int channels) {
  using A = Acc<T>;
  constexpr int kLength = kLengthOf<kPlanar, T>;
  const ConvShape& s = a.s;
  const int (&tile)[3] = a.tiles.tile;
  for (int e = static_cast<int>(threadIdx.x); e < tile[0] * tile[1] * tile[2] * a.box.lanes; e += kThreads) {
    const int pixel = kPlanar ? e % (tile[0] * tile[1] * tile[2]) : e / a.box.lanes;
    const int lane = kPlanar ? e / (tile[0] * tile[1] * tile[2]) : e % a.box.lanes, own = lane * kLength;
    const Pixel at{corner.n,
                   {corner.at[0] + pixel / tile[2] / tile[1], corner.at[1] + pixel / tile[2] % tile[1],
                    corner.at[2] + pixel % tile[2]}};
    bool inside = own < channels;
#pragma unroll
    for (int i = 0; i < 3; ++i) inside = inside && at.at[i] >= 0 && at.at[i] < s.in[i];
    if (!inside) continue;
    const Preimages along[3] = {places_of(s, 0, at.at[0]), places_of(s, 1, at.at[1]), places_of(s, 2, at.at[2])};
    if (!along[0].several() && !along[1].several() && !along[2].several()) continue;
    A acc[1][kLength] = {};
    const int64_t step = a.multiples * a.at_read.c;
    const T* from = a.read + corner.n * a.at_read.n + (channel + own) * step;
    auto add_place = [&](int d, int h, int w, const A* of) {
#pragma unroll 1
      for (int t = 0; t < s.tap_count; ++t) {
        const Tap tap = tap_of(s, t);
        const int od = output_at(s, 0, d + s.pad[0] - tap.at[0] * s.dilation[0]);
        const int oh = output_at(s, 1, h + s.pad[1] - tap.at[1] * s.dilation[1]);
        const int ow = output_at(s, 2, w + s.pad[2] - tap.at[2] * s.dilation[2]);
        if (od < 0 || oh < 0 || ow < 0) continue;
        A weight[kLength], g[kLength];
        read_wide(of + t * filter_step<kPlanar>(a), weight);
        load_lanes(from + od * a.at_read.s[0] + oh * a.at_read.s[1] + ow * a.at_read.s[2], step, channels - own,
                   a.whole_read, g);
#pragma unroll
        for (int l = 0; l < kLength; ++l) acc[0][l] += g[l] * weight[l];
      }
    };
#pragma unroll 1
    for (int m = 0; m < a.multiples; ++m, from += a.at_read.c)
#pragma unroll 1
      for (int d = Preimages::kNone; (d = along[0].next(d)) != Preimages::kNone;)
#pragma unroll 1
        for (int h = Preimages::kNone; (h = along[1].next(h)) != Preimages::kNone;)
#pragma unroll 1
          for (int w = Preimages::kNone; (w = along[2].next(w)) != Preimages::kNone;)
            add_place(d, h, w, filter_of<kPlanar>(a, filter, lane, m));
    store_strip<false, kPlanar, T>(a, nullptr, a.accumulate, at, channel + own, channels - own, 0, 1u, acc);
  }
}

// Seven taps of 8 channels are 56 sums: one block a multiprocessor has the registers for them. ptxas wants a few more
// than 128 for three taps, too, on what came before sm_90.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kEarlier = true;
#else
constexpr bool kEarlier = false;
#endif
template <int kTaps, bool kPlanar, class T>
constexpr int kBlocksOf = kLengthOf<kPlanar, T> == 8 && (kTaps == 7 || (kTaps == 3 && kEarlier)) ? 1 : 2;

template <Product kProduct, int kTaps, bool kPlanar, class T>
__global__ void __launch_bounds__(kThreads, kBlocksOf<kTaps, kPlanar, T>) depthwise_backward(DepthwiseBackward<T> a) {
  using A = Acc<T>;
  constexpr int kLength = kLengthOf<kPlanar, T>, kStrip = kStripOf<kTaps, kPlanar, T>;
  constexpr int kSums = kTaps > 0 ? kTaps : kOwn, kUnits = kTaps > 0 ? 1 : kOwn;
  constexpr bool kIn = kProduct == Product::fprop;  // dy's side
  constexpr bool kFolds = !kIn && kTaps == 0;  // has padding that is not zeros
  const ConvShape& s = a.s;
  const int (&size)[3] = kIn ? s.out : s.in;
  const int tid = static_cast<int>(threadIdx.x), all_lanes = a.box.lanes;
  T* dy = shared_memory<T>();
  T* x = dy + a.box.elements(kLength);
  A* filter = reinterpret_cast<A*>(x + (a.sums ? a.x.elements(kLength) : 0));
  auto number = static_cast<uint32_t>(blockIdx.x);
  const int channel = split(number, a.tiles.by_group) * all_lanes * kLength, piece = split(number, a.by_pieces);
  const auto chunk = static_cast<int64_t>(number);
  const int left_channels = a.tiles.channels - channel, width = all_lanes * kLength;
  const int channels = left_channels < width ? left_channels : width;
  const bool writes = a.written && piece == 0, adds_bias = a.bias && piece == 0;
  if (writes) bring_filter<kPlanar>(a, channel, channels, filter);

  // This thread's part of the sums.
  int own_lane, slot, part;
  if constexpr (kPlanar) {
    part = tid % a.parts, slot = tid / a.parts % a.slots, own_lane = tid / a.parts / a.slots;
  } else {
    own_lane = tid % all_lanes, slot = tid / all_lanes % a.slots, part = tid / all_lanes / a.slots;
  }
  const int own = own_lane * kLength;
  const bool adds = own_lane < all_lanes && own < channels && part < a.parts;
  // Of a lane's threads every `multiples`-th adds up one multiple's dy.
  auto rank = [&] { return kPlanar ? slot * a.parts + part : part * a.slots + slot; };
  const int team = a.slots * a.parts / a.multiples;
  A sum[kSums][kLength] = {}, bias[kLength] = {};

  const int strips = static_cast<int>(a.by_strips.divisor), rows = static_cast<int>(a.by_rows.divisor);
  const int64_t begin = chunk * a.chunk, end = begin + a.chunk < a.tiles.total ? begin + a.chunk : a.tiles.total;
  for (int64_t tile = begin; tile < end; ++tile) {
    const Corner corner = corner_of(a.tiles, tile);
    int low[3];
    find_low<kProduct>(s, corner, low);
    __syncthreads();  // the tile before has been read
    bring<false, kPlanar>(s, kIn ? s.in : s.out, a.read + corner.n * a.at_read.n + channel * a.multiples * a.at_read.c,
                          a.at_read, low, a.box, a.whole_read, channels, dy);
    if (a.sums)
      bring<kFolds, kPlanar>(s, size, a.in + corner.n * a.at_x.n + channel * a.at_x.c, a.at_x, corner.at, a.x,
                             a.whole_x, channels, x);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();

    if (writes) {
      const int items = strips * rows * a.tiles.tile[0] * all_lanes;
      for (int e = tid; e < items; e += kThreads) {
        const Strip strip = strip_of<kStrip, kPlanar>(a, e);
        const Pixel at{corner.n, {corner.at[0] + strip.at[0], corner.at[1] + strip.at[1], corner.at[2] + strip.at[2]}};
        bool inside = strip.lane * kLength < channels;
#pragma unroll
        for (int i = 0; i < 3; ++i) inside = inside && at.at[i] >= 0 && at.at[i] < size[i];
        if (!inside) continue;
        A acc[kStrip][kLength] = {};
#pragma unroll 1
        for (int m = 0; m < a.multiples; ++m)
          add_taps<kProduct, kTaps, 1, kPlanar>(a, dy, filter_of<kPlanar>(a, filter, strip.lane, m), corner, low, strip,
                                                m * all_lanes + strip.lane, acc);
        unsigned mask = first_of<kStrip>(size[2] - at.at[2]);
        if constexpr (kFolds) {
          if (places_of(s, 0, at.at[0]).several() || places_of(s, 1, at.at[1]).several()) mask = 0;
#pragma unroll
          for (int i = 0; i < kStrip; ++i)
            if (places_of(s, 2, at.at[2] + i).several()) mask &= ~(1u << i);
        }
        store_strip<false, kPlanar, T>(a, nullptr, a.accumulate, at, channel + strip.lane * kLength,
                                       channels - strip.lane * kLength, 0, mask, acc);
      }
      if constexpr (kFolds)
        if (s.mode != PaddingMode::zeros) add_places<kPlanar>(a, filter, corner, channel, channels);
    }

    if (a.sums && adds) {
      const int items = strips * rows * a.tiles.tile[0];
#pragma unroll
      for (int k = 0; k < kUnits; ++k) {
        // Of all multiples' rows or taps.
        const int unit = (piece * kUnits + k) * a.slots + slot;
        const int each = kTaps > 0 ? s.filter[0] * s.filter[1] : s.tap_count, m = unit / each;
        if (m >= a.multiples) continue;
        const Tap tap = tap_of(s, (unit - m * each) * (kTaps > 0 ? s.filter[2] : 1));
        for (int e = part; e < items; e += a.parts) {
          auto rest = static_cast<uint32_t>(e);
          const int w0 = split(rest, a.by_strips) * kStrip, h = split(rest, a.by_rows), d = static_cast<int>(rest);
          const int at[3] = {corner.at[0] + d, corner.at[1] + h, corner.at[2] + w0};
          bool inside = true;
#pragma unroll
          for (int i = 0; i < 3; ++i) inside = inside && at[i] >= a.first[i] && at[i] < a.last[i];
          if (!inside) continue;
          const int gd = partner<kProduct>(s, 0, at[0], tap.at[0], low[0]);
          const int gh = partner<kProduct>(s, 1, at[1], tap.at[1], low[1]);
          if (kProduct == Product::dgrad && (gd < 0 || gh < 0)) continue;
          const T* g_row = dy + a.box.template at<kPlanar, kLength>(gd, gh, 0, m * all_lanes + own_lane);
          const T* x_row = x + a.x.template at<kPlanar, kLength>(d, h, w0, own_lane);
          const int left = a.last[2] - at[2], g_step = kPlanar ? 1 : a.box.pitch, x_step = kPlanar ? 1 : a.x.pitch;
          if constexpr (kTaps > 0) {
            A value[kStrip][kLength];
            if constexpr (kPlanar) {
              const Four<T> four = *reinterpret_cast<const Four<T>*>(x_row);
#pragma unroll
              for (int i = 0; i < kStrip; ++i) value[i][0] = widen(four.at[i]);
            } else {
#pragma unroll
              for (int i = 0; i < kStrip; ++i) read_vector(x_row + i * x_step, value[i]);
            }
            Four<T> four;
#pragma unroll
            for (int c = 0; c < kStrip + kTaps - 1; ++c) {
              A g[kLength];
              if constexpr (kPlanar) {
                if (c % 4 == 0) four = *reinterpret_cast<const Four<T>*>(g_row + w0 + c);
                g[0] = widen(four.at[c % 4]);
              } else {
                read_vector(g_row + (w0 + c) * g_step, g);
              }
#pragma unroll
              for (int i = 0; i < kStrip; ++i) {
                const int t = i + kTaps - 1 - c;
                if (t < 0 || t >= kTaps || i >= left) continue;
#pragma unroll
                for (int l = 0; l < kLength; ++l) sum[t][l] += value[i][l] * g[l];
              }
            }
          } else {
#pragma unroll
            for (int i = 0; i < kStrip; ++i) {
              const int gw = partner<kProduct>(s, 2, at[2] + i, tap.at[2], low[2]);
              if ((kProduct == Product::dgrad && gw < 0) || i >= left) continue;
              A value[kLength], g[kLength];
              read_vector(x_row + i * x_step, value);
              read_vector(g_row + gw * g_step, g);
#pragma unroll
              for (int l = 0; l < kLength; ++l) sum[k][l] += value[l] * g[l];
            }
          }
        }
      }
    }

    if (adds_bias && adds && rank() < team * a.multiples) {
      int from[3], extent[3];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        from[i] = first_dealt<kProduct>(a, i, corner.at[i]);
        extent[i] = first_dealt<kProduct>(a, i, corner.at[i] + a.tiles.tile[i]) - from[i];
      }
      const int across = (extent[2] + 3) / 4, count = extent[0] * extent[1] * across;
      const int first_lane = rank() % a.multiples * all_lanes + own_lane;
      for (int e = rank() / a.multiples; e < count; e += team) {
        const int w = e % across * 4, h = e / across % extent[1], d = e / across / extent[1];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (w + i >= extent[2]) continue;
          A g[kLength];
          read_vector(dy + a.box.template at<kPlanar, kLength>(from[0] + d - low[0], from[1] + h - low[1],
                                                               from[2] + w + i - low[2], first_lane),
                      g);
#pragma unroll
          for (int l = 0; l < kLength; ++l) bias[l] += g[l];
        }
      }
    }
  }

  // Leaves the sum of the elements that `mine` is to `count` threads of a lane, `step` threads apart; the first writes
  // it where `first` is true.
  A* shared = shared_memory<A>();
  auto join = [&](const A(&mine)[kLength], bool first, int count, int step, A* to, int64_t pitch, int64_t offset) {
    __syncthreads();
#pragma unroll
    for (int l = 0; l < kLength; ++l) shared[tid * kLength + l] = mine[l];
    __syncthreads();
    if (!first || !adds) return;
    A total[kLength] = {};
#pragma unroll 1
    for (int p = 0; p < count; ++p) {
      A part_of[kLength];
      read_wide(shared + (tid + p * step) * kLength, part_of);
#pragma unroll
      for (int l = 0; l < kLength; ++l) total[l] += part_of[l];
    }
#pragma unroll
    for (int l = 0; l < kLength; ++l)
      if (own + l < channels) to[(channel + own + l) * pitch + offset] = total[l];
  };
  const int64_t all = static_cast<int64_t>(a.tiles.channels) * a.multiples;
  if (a.sums) {
    const int taps = s.tap_count * a.multiples;
#pragma unroll
    for (int t = 0; t < kSums; ++t) {
      const int tap = kTaps > 0 ? (piece * a.slots + slot) * kTaps + t : (piece * kOwn + t) * a.slots + slot;
      join(sum[t], part == 0 && tap < taps, a.parts, kPlanar ? 1 : all_lanes * a.slots,
           a.sums + chunk * all * s.tap_count, taps, tap);
    }
  }
  if (adds_bias)
    join(bias, rank() < a.multiples, team, (kPlanar ? 1 : all_lanes) * a.multiples, a.bias + chunk * all, a.multiples,
         rank());
}

// Joins the sums of chunks: 8 neighbouring results a block, 32 threads each, whose parts are joined by halves.
template <class T>
__global__ void __launch_bounds__(kThreads)
    join_sums(const Acc<T>* sums, int64_t count, int64_t number, bool accumulate, T* to, int64_t stride) {
  using A = Acc<T>;
  auto* shared = shared_memory<A>();
  const int tid = static_cast<int>(threadIdx.x), t = tid / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 8 + tid % 8;
  A sum = 0;
  if (i < count)
    for (int64_t k = t; k < number; k += kThreads / 8) sum += sums[k * count + i];
  for (int half = kThreads / 16; half > 0; half /= 2) {
    shared[tid] = sum;
    __syncthreads();
    if (t < half) sum += shared[tid + half * 8];
    __syncthreads();
  }
  if (t != 0 || i >= count) return;
  T* place = to + i * stride;
  *place = narrow<T>(accumulate ? sum + widen(*place) : sum);
}

// --- on the host -------------------------------------------------------------------------------------------------

bool aligned(const void* p, int64_t bytes = 16) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// Whether a side's channels are whole vectors of 16 bytes.
template <class T>
bool vectors(const void* data, const Strides& s, int channels, int multiples) {
  constexpr int64_t kLength = Vector<T>::kLength;
  return multiples == 1 && channels % kLength == 0 && s.c == 1 && aligned(data) && s.n % kLength == 0 &&
         s.s[0] % kLength == 0 && s.s[1] % kLength == 0 && s.s[2] % kLength == 0;
}

// Whether rows of 4 elements can be stored as one.
template <class T>
bool fours(const void* data, const Strides& s) {
  return s.s[2] == 1 && aligned(data, alignof(Four<T>)) && s.n % 4 == 0 && s.c % 4 == 0 && s.s[0] % 4 == 0 &&
         s.s[1] % 4 == 0;
}

int round_up(int n, int to) { return (n + to - 1) / to * to; }

Divider divider(int n) { return Divider(static_cast<uint32_t>(n)); }

int stride_of(const ConvShape& s, int a) { return static_cast<int>(s.stride[a].divisor); }
int reach_of(const ConvShape& s, int a) { return (s.filter[a] - 1) * s.dilation[a]; }

Box box_of(const int (&size)[3], int lanes, int multiples, bool planar, int length) {
  Box b{};
  for (int a = 0; a < 3; ++a) b.size[a] = size[a];
  if (planar) b.size[2] = round_up(b.size[2], 4);
  b.lanes = lanes, b.multiples = multiples;
  // What has more is far too large, and is refused for its bytes.
  const int64_t rows = static_cast<int64_t>(b.size[0]) * b.size[1];
  b.pixels = static_cast<int>(std::min<int64_t>(std::min<int64_t>(rows, 1 << 20) * b.size[2], 1 << 30));
  b.pitch = planar ? b.size[2] : lanes * multiples * length;
  for (int a = 0; a < 3; ++a) b.by[a] = divider(b.size[a]);
  b.by_lanes = divider(lanes), b.by_width = divider(lanes * multiples * length), b.by_multiples = divider(multiples);
  return b;
}

// The box of a tile, of the side that `product` reads; `all`: of pixels that no window has, too.
Box box_of(Product product, const ConvShape& s, const int (&tile)[3], bool all, int lanes, int multiples, bool planar,
           int length) {
  int size[3];
  for (int a = 0; a < 3; ++a) {
    const int stride = stride_of(s, a);
    if (product == Product::fprop) {
      const int behind = s.in[a] + s.pad[a] - (s.out[a] - 1) * stride;  // the last window's begin
      size[a] = (tile[a] - 1) * stride + (all ? std::max({reach_of(s, a) + 1, stride, behind}) : reach_of(s, a) + 1);
    } else {
      size[a] = (tile[a] - 1 + reach_of(s, a)) / stride + 1;
    }
  }
  if (planar) size[2] = round_up(size[2], 4) + 4;
  return box_of(size, lanes, multiples, planar, length);
}

int64_t elements_of(const Box& b, int length) {
  return static_cast<int64_t>(b.pixels) * b.lanes * b.multiples * length;
}

// The tiles of a side of `extent` pixels, whose shared memory `bytes(tile, lanes)` is within bounds; false where none
// is. By the shape of an image alone.
template <class F>
bool fit(const int (&extent)[3], int channels, int length, bool planar, int strip, F bytes, int (&tile)[3],
         int* lanes) {
  int most[3] = {4, planar ? 32 : 16, planar ? 64 : 16};
  if (extent[0] == 1 && extent[1] == 1) most[2] = planar ? 1024 : 128;
  if (extent[0] > 1) most[1] = planar ? 16 : 8, most[2] = planar ? 32 : 8;
  auto shape = [&](int a) {
    // Tiles of about one size.
    const int count = (extent[a] + most[a] - 1) / most[a];
    tile[a] = round_up((extent[a] + count - 1) / count, a == 2 ? strip : 1);
  };
  for (int a = 0; a < 3; ++a) shape(a);
  const int vectors = (channels + length - 1) / length;
  *lanes = 1;
  if (planar) {
    const int pixels = tile[0] * tile[1] * tile[2];
    *lanes = std::max(1, std::min({channels, kMostLanes, 1024 / pixels}));
  } else {
    // Of 4 to 8 lanes the number that wastes least.
    int best = 0;
    for (int l = std::min(8, vectors); l >= std::min(4, vectors); --l) {
      const int filled = 1000 * vectors / (round_up(vectors, l));
      if (filled > best) best = filled, *lanes = l;
    }
  }
  for (int64_t limit : {kGoodShared, kMostShared})
    for (;;) {
      if (bytes(tile, *lanes) <= limit) return true;
      // The longest axis first, then lanes.
      int a = 2;
      for (int b = 1; b >= 0; --b)
        if (tile[b] > tile[a]) a = b;
      if (tile[a] > (a == 2 ? 2 * strip : 4)) {
        most[a] = std::max(tile[a] / 2, a == 2 ? strip : 1);
        if (a == 2) most[a] = round_up(most[a], strip);
        const int before = tile[a];
        shape(a);
        if (tile[a] < before) continue;
      }
      if (*lanes > 1) {
        *lanes = (*lanes + 1) / 2;
        continue;
      }
      break;
    }
  return false;
}

// Sides of `extent` pixels from `origin` on.
TilesOf tiles_of(const int (&origin)[3], const int (&extent)[3], const int (&tile)[3], int64_t images, int channels,
                 int lanes, int length) {
  TilesOf t{};
  t.total = images;
  for (int a = 0; a < 3; ++a) {
    t.origin[a] = origin[a], t.tile[a] = tile[a], t.count[a] = (extent[a] + tile[a] - 1) / tile[a];
    t.by[a] = divider(t.count[a]);
    t.total *= t.count[a];
  }
  t.channels = channels;
  t.groups = static_cast<int>(ceil_div(ceil_div(channels, length), lanes));
  t.by_group = divider(t.groups);
  return t;
}

int64_t images_of(const Pixels& p) {
  int64_t each = 1;
  for (const Divider& size : p.size) each *= size.divisor;
  return p.count / each;
}

template <class T>
void describe(const Depthwise& layer, const Strides& read, const Strides& written, int strip, TileArgs<T>* a) {
  a->s = layer.s;
  a->multiples = layer.multiples, a->weight_step = layer.weight_step;
  a->by_strips = divider(a->tiles.tile[2] / strip), a->by_rows = divider(a->tiles.tile[1]);
  a->at_read = read, a->at_written = written;
}

// Calls f with the taps along W as a constant, 0 for any: double has that form alone, as gradients of padding that is
// not zeros, which keeps the build short.
template <class T, class F>
auto for_taps(const ConvShape& s, bool forward, F f) {
  const bool has = forward ? s.stride[2].divisor <= 2 : s.stride[2].divisor == 1 && s.mode == PaddingMode::zeros;
  int taps = has && s.dilation[2] == 1 ? s.filter[2] : 0;
  if (s.stride[2].divisor == 2 && taps == 7) taps = 0;
  if constexpr (sizeof(T) < 8) {
    if (taps == 3) return f(std::integral_constant<int, 3>{});
    if (taps == 5) return f(std::integral_constant<int, 5>{});
    if (taps == 7) return f(std::integral_constant<int, 7>{});
  }
  return f(std::integral_constant<int, 0>{});
}

// Calls f(true) or f(false), as constants: planar or not, by the strides of the side that is read; planar, too, where
// the other has no room.
template <class T, class F>
Status for_order(const Depthwise& layer, const Strides& read, F f) {
  if (layer.inner(read, Vector<T>::kLength)) {
    const Status done = f(std::false_type{});
    if (done != Status::unsupported) return done;
  }
  return f(std::true_type{});
}

template <Product kProduct, int kTaps, int kStride, bool kPlanar, class T>
Status start_forward(const Depthwise& layer, const After<T>& after, const T* x, const T* w, T* y, const Queue& queue) {
  constexpr int kLength = kLengthOf<kPlanar, T>, kStrip = kStripOf<kTaps, kPlanar, T>;
  constexpr int kOrigin[3] = {0, 0, 0};
  const ConvShape& s = layer.s;
  const int (&size)[3] = kProduct == Product::fprop ? s.out : s.in;
  int tile[3], lanes = 1;
  auto box = [&](const int (&of)[3], int l) { return box_of(kProduct, s, of, false, l, 1, kPlanar, kLength); };
  auto bytes = [&](const int (&of)[3], int l) {
    const int64_t item = sizeof(T), wide = sizeof(Acc<T>);
    return elements_of(box(of, l), kLength) * item + int64_t{s.tap_count} * layer.multiples * l * kLength * wide;
  };
  if (!fit(size, s.G, kLength, kPlanar, kStrip, bytes, tile, &lanes)) return Status::unsupported;
  DepthwiseForward<T> a{};
  a.tiles = tiles_of(kOrigin, size, tile, images_of(s.in_pixels), s.G, lanes, kLength);
  a.box = box(tile, lanes);
  describe(layer, layer.x(), layer.y(), kStrip, &a);
  a.after = after;
  a.whole_read = !kPlanar && vectors<T>(x, layer.x(), s.G, 1);
  a.whole_written = kPlanar ? fours<T>(y, layer.y()) : vectors<T>(y, layer.y(), s.G, layer.multiples);
  a.read = x, a.w = w, a.written = y;
  const int64_t blocks = a.tiles.total * a.tiles.groups;
  if (blocks > kMost32) return Status::unsupported;
  return launch(&depthwise_forward<kProduct, kTaps, kStride, kPlanar, T>, static_cast<unsigned>(blocks), kThreads,
                static_cast<size_t>(bytes(tile, lanes)), queue, a);
}

// Chunks of tiles of a pass that leaves sums: four blocks a multiprocessor of a large GPU.
constexpr int64_t kBlocks = 528;

template <Product kProduct, int kTaps, bool kPlanar, class T>
struct BackwardPlan {
  static constexpr int kLength = kLengthOf<kPlanar, T>, kStrip = kStripOf<kTaps, kPlanar, T>;
  static constexpr bool kIsPlanar = kPlanar;
  static constexpr auto kernel = &depthwise_backward<kProduct, kTaps, kPlanar, T>;
  DepthwiseBackward<T> args{};
  int64_t chunks = 0, blocks = 0, bytes = 0;

  Box box(const Depthwise& layer, const int (&of)[3], int lanes) const {
    return box_of(kProduct, layer.s, of, true, lanes, layer.multiples, kPlanar, kLength);
  }
  int64_t shared(const Depthwise& layer, const int (&of)[3], int lanes, bool sums) const {
    const int64_t item = sizeof(T), wide = sizeof(Acc<T>);
    const int64_t all = elements_of(box(layer, of, lanes), kLength) * item +
                        (sums ? elements_of(box_of(of, lanes, 1, kPlanar, kLength), kLength) * item : 0) +
                        int64_t{layer.s.tap_count} * layer.multiples * lanes * kLength * wide;
    return std::max(all, kThreads * kLength * wide);
  }

  // `sums`: dw or db are wanted.
  bool make(const Depthwise& layer, const Strides& dx, bool sums) {
    const ConvShape& s = layer.s;
    const int (&size)[3] = kProduct == Product::dgrad ? s.in : s.out;
    int tile[3], origin[3], extent[3], lanes = 1;
    for (int a = 0; a < 3; ++a) {
      origin[a] = args.first[a] = 0;
      args.end[a] = args.last[a] = size[a];
      if (kProduct == Product::dgrad && sums) {
        // The tiles cover the padding, too, where it is not zeros or where outputs read nothing else.
        const bool other = s.mode != PaddingMode::zeros;
        if (other || s.pad[a] > reach_of(s, a) || s.in[a] - 1 + s.pad[a] < (s.out[a] - 1) * stride_of(s, a)) {
          origin[a] = -round_up(s.pad[a], a == 2 ? kStrip : 1);
          args.end[a] = s.in[a] + s.pad_after[a];
          if (other) args.first[a] = origin[a], args.last[a] = args.end[a];
        }
      }
      extent[a] = args.end[a] - origin[a];
      args.middle[a] = s.filter[a] / 2 * s.dilation[a] - s.pad[a];
    }
    const int count = (kTaps > 0 ? s.filter[0] * s.filter[1] : s.tap_count) * layer.multiples;
    constexpr int kEach = kTaps > 0 ? 1 : kOwn;
    const int units = static_cast<int>(std::min<int64_t>(ceil_div(count, kEach), kThreads));
    auto bytes_of = [&](const int (&of)[3], int l) {
      // Too many lanes for the threads of the sums are as too many bytes.
      return sums && l * std::max(units, layer.multiples) > kThreads ? kMostShared + 1 : shared(layer, of, l, sums);
    };
    if (!fit(extent, s.G, kLength, kPlanar, kStrip, bytes_of, tile, &lanes)) return false;
    args.tiles = tiles_of(origin, extent, tile, images_of(s.in_pixels), s.G, lanes, kLength);
    args.box = box(layer, tile, lanes), args.x = box_of(tile, lanes, 1, kPlanar, kLength);
    describe(layer, layer.y(), dx, kStrip, static_cast<TileArgs<T>*>(&args));
    args.at_x = layer.x();
    args.slots = sums ? std::min(count, kThreads / lanes) : 1;
    args.parts = kThreads / (lanes * args.slots);
    // A row of parts longer than the tile has strips does nothing.
    args.parts = std::max(1, std::min(args.parts, tile[0] * tile[1] * (tile[2] / kStrip)));
    const int64_t pieces = sums ? ceil_div(count, args.slots * kEach) : 1;
    args.by_pieces = divider(static_cast<int>(pieces));
    chunks = sums ? std::max<int64_t>(1, std::min(args.tiles.total, ceil_div(kBlocks, args.tiles.groups * pieces)))
                  : args.tiles.total;
    args.chunk = ceil_div(args.tiles.total, chunks);
    chunks = ceil_div(args.tiles.total, args.chunk);
    blocks = chunks * pieces * args.tiles.groups;
    bytes = shared(layer, tile, lanes, sums);
    return args.tiles.total <= kMost32 && blocks <= kMost32;
  }
};

int64_t rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

template <class T>
int64_t sums_bytes(const Depthwise& layer, int64_t chunks, bool dw, bool db) {
  const int64_t wide = sizeof(Acc<T>) * layer.multiples * layer.s.G;
  return (dw ? rounded(chunks * layer.s.tap_count * wide) : 0) + (db ? rounded(chunks * wide) : 0);
}

// Calls f with a BackwardPlan that has been made; `unsupported` where there is none.
template <class T, class F>
Status with_plan(const Depthwise& layer, const DepthwiseGradients<T>& to, F f) {
  if (!layer.ok()) return Status::unsupported;
  return for_order<T>(layer, layer.y(), [&](auto planar) {
    constexpr bool kPlanar = decltype(planar)::value;
    auto go = [&](auto plan) {
      return plan.make(layer, to.dx_strides, to.dw || to.db) ? f(plan) : Status::unsupported;
    };
    if (layer.transposed) return go(BackwardPlan<Product::fprop, 0, kPlanar, T>{});
    return for_taps<T>(layer.s, false, [&](auto taps) {
      return go(BackwardPlan<Product::dgrad, decltype(taps)::value, kPlanar, T>{});
    });
  });
}

template <class T>
Status start_join(const Acc<T>* sums, int64_t count, int64_t number, bool accumulate, T* to, int64_t stride,
                  const Queue& queue) {
  return launch(&join_sums<T>, static_cast<unsigned>(ceil_div(count, 8)), kThreads, kThreads * sizeof(Acc<T>), queue,
                sums, count, number, accumulate, to, stride);
}

}  // namespace

template <class T>
Status run_depthwise(bool transposed, const ConvShape& s, const After<T>& after, const T* x, const T* w, T* y,
                     const Queue& queue) {
  const Depthwise layer(s, transposed);
  if (!layer.ok()) return Status::unsupported;
  return for_order<T>(layer, layer.x(), [&](auto planar) {
    constexpr bool kPlanar = decltype(planar)::value;
    if (transposed) return start_forward<Product::dgrad, 0, 1, kPlanar, T>(layer, after, x, w, y, queue);
    return for_taps<T>(s, true, [&](auto taps) {
      constexpr int kTaps = decltype(taps)::value;
      if constexpr (kTaps == 3 || kTaps == 5)
        if (s.stride[2].divisor == 2)
          return start_forward<Product::fprop, kTaps, 2, kPlanar, T>(layer, after, x, w, y, queue);
      return start_forward<Product::fprop, kTaps, 1, kPlanar, T>(layer, after, x, w, y, queue);
    });
  });
}

template <class T>
int64_t depthwise_backward_workspace(bool transposed, const ConvShape& s, const DepthwiseGradients<T>& to) {
  const Depthwise layer(s, transposed);
  int64_t bytes = 0;
  with_plan<T>(layer, to, [&](const auto& plan) {
    bytes = std::max<int64_t>(1, sums_bytes<T>(layer, plan.chunks, to.dw != nullptr, to.db != nullptr));
    return Status::ok;
  });
  return bytes;
}

template <class T>
Status run_depthwise_backward(bool transposed, const ConvShape& s, const T* x, const T* dy, const T* w,
                              const DepthwiseGradients<T>& to, const Queue& queue) {
  const Depthwise layer(s, transposed);
  return with_plan<T>(layer, to, [&](auto& plan) {
    using A = Acc<T>;
    using Plan = std::remove_reference_t<decltype(plan)>;
    if (queue.workspace_bytes < sums_bytes<T>(layer, plan.chunks, to.dw != nullptr, to.db != nullptr))
      return Status::out_of_memory;
    auto& a = plan.args;
    a.in = x, a.read = dy, a.w = w, a.written = to.dx;
    a.accumulate = to.accumulate_dx;
    a.whole_read = !Plan::kIsPlanar && vectors<T>(dy, layer.y(), s.G, layer.multiples);
    a.whole_x = !Plan::kIsPlanar && vectors<T>(x, layer.x(), s.G, 1);
    a.whole_written = Plan::kIsPlanar ? fours<T>(to.dx, to.dx_strides) : vectors<T>(to.dx, to.dx_strides, s.G, 1);
    auto* memory = static_cast<char*>(queue.workspace);
    a.sums = to.dw ? reinterpret_cast<A*>(memory) : nullptr;
    a.bias =
        to.db ? reinterpret_cast<A*>(memory + sums_bytes<T>(layer, plan.chunks, to.dw != nullptr, false)) : nullptr;
    Status done =
        launch(Plan::kernel, static_cast<unsigned>(plan.blocks), kThreads, static_cast<size_t>(plan.bytes), queue, a);
    const int64_t channels = static_cast<int64_t>(s.G) * layer.multiples;
    if (done == Status::ok && to.dw)
      done = start_join<T>(a.sums, channels * s.tap_count, plan.chunks, to.accumulate_dw, to.dw, 1, queue);
    if (done == Status::ok && to.db)
      done = start_join<T>(a.bias, channels, plan.chunks, to.accumulate_db, to.db, to.db_stride, queue);
    return done;
  });
}

#define FASTCONV_DEPTHWISE(T)                                                                                      \
  template Status run_depthwise<T>(bool, const ConvShape&, const After<T>&, const T*, const T*, T*, const Queue&); \
  template int64_t depthwise_backward_workspace<T>(bool, const ConvShape&, const DepthwiseGradients<T>&);          \
  template Status run_depthwise_backward<T>(bool, const ConvShape&, const T*, const T*, const T*,                  \
                                            const DepthwiseGradients<T>&, const Queue&);
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(half)
FASTCONV_DEPTHWISE(bfloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cuda
