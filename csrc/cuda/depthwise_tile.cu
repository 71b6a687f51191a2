// Depthwise layers by tiles in shared memory: forward, and all gradients in one pass over x and dy.
//
// Bytes: forward x and y once, backward x, dy and dx once (a tile's halo is read again, from L2), beside them the
// filter and, of its gradient, a sum a chunk of tiles. Flops: 2 a tap and element forward, 4 backward: 3x3 in 16 bits
// has 4.5 a byte forward and 6 backward, a third of what the CUDA cores can do in the time of the bytes; 7x7 is bound
// by them.
//
// A block has a tile of pixels of one image and, in shared memory, all that it reads of the other side (its box), zeros
// for padding, and the filter, widened. Two orders:
//
//   channels last   a row of shared memory is a pixel's 16-byte vectors of channels, up to 128 bytes; a warp's loads
//                   from global memory (LDGSTS.128) are whole rows. A thread has one vector of a strip of 4 pixels (2
//                   of the wide 16-bit forms) along W: it reads each vector of its columns once a row of the filter and
//                   uses it for every tap.
//   planar          strips of rows of one plane, or of several small planes. A thread has a strip of 4 pixels along W,
//                   and reads 4 elements at a time.
//
// forward: acc[strip][length] += x[column] * filter[tap], filter rows in their order.
// backward: a tile of pixels of x, the box is dy's.
//   1. dx: as forward, by the taps that divide the stride.
//   2. dw: a thread has a row of the filter (any tap in the form of any size), its vector of channels and some strips
//   of
//      the tile, and its sums stay in registers over all tiles of the block's chunk: dw[tap] += x * dy. Pairs are
//      counted by their pixel of x, so that each has one tile.
//   3. db: outputs are dealt to tiles by the pixel under the middle of their window.
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

// A box of pixels in shared memory: pixels x lanes (vectors) channels last, lanes x pixels planar, its rows of `pitch`
// elements (a pixel's; a row's of pixels).
struct Box {
  int size[3], pitch, pixels, lanes;
  Divider by[3], by_lanes;

  template <bool kPlanar, int kLength>
  __device__ int at(int d, int h, int w, int lane) const {
    return kPlanar ? ((lane * size[0] + d) * size[1] + h) * pitch + w
                   : ((d * size[1] + h) * size[2] + w) * pitch + lane * kLength;
  }
};

// Where a block is: its image, the lanes of its channels and the corner of its tile.
struct TilesOf {
  int tile[3], count[3], channels, groups;  // groups of lanes
  Divider by[3], by_group;
  int64_t total;  // tiles of all images
};

struct Corner { int n, at[3]; };

__device__ __forceinline__ Corner corner_of(const TilesOf& t, int64_t number) {
  auto rest = static_cast<uint32_t>(number);
  Corner c{};
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const uint32_t q = t.by[a].quotient(rest);
    c.at[a] = static_cast<int>(rest - q * t.by[a].divisor) * t.tile[a];
    rest = q;
  }
  c.n = static_cast<int>(rest);
  return c;
}

// Begins to bring a box of an image: pixels within [0, limit) of those at `origin`, zeros elsewhere.
template <bool kPlanar, class T>
__device__ __forceinline__ void bring(const T* from, const Strides& strides, const int (&origin)[3],
                                      const int (&least)[3], const int (&limit)[3], const Box& box, int lanes, T* to) {
  constexpr int kLength = kLengthOf<kPlanar, T>;
  const int items = box.pixels * box.lanes;
  for (int e = static_cast<int>(threadIdx.x); e < items; e += kThreads) {
    auto rest = static_cast<uint32_t>(e);
    int lane = 0, at[3];
    auto split = [&](const Divider& by) {
      const uint32_t q = by.quotient(rest), r = rest - q * by.divisor;
      rest = q;
      return static_cast<int>(r);
    };
    if constexpr (!kPlanar) lane = split(box.by_lanes);
    at[2] = split(box.by[2]), at[1] = split(box.by[1]);
    if constexpr (kPlanar) {
      at[0] = split(box.by[0]), lane = static_cast<int>(rest);
    } else {
      at[0] = static_cast<int>(rest);
    }
    bool inside = lane < lanes;
    int64_t offset = static_cast<int64_t>(lane) * (kPlanar ? strides.c : kLength);
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int p = origin[a] + at[a];
      inside = inside && p >= least[a] && p < limit[a];
      offset += p * strides.s[a];
    }
    T* place = to + box.template at<kPlanar, kLength>(at[0], at[1], at[2], lane);
    const T* source = inside ? from + offset : from;
    if constexpr (!kPlanar) {
      copy_async<16>(place, source, inside ? 16 : 0);
    } else if constexpr (sizeof(T) >= 4) {
      copy_async<sizeof(T)>(place, source, inside ? static_cast<int>(sizeof(T)) : 0);
    } else {
      T value{};
      if (inside) value = *source;
      *place = value;
    }
  }
}

// kCount columns of a row of a box from `from`, channels last one vector a column, planar kCount elements.
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
  constexpr int kEach = Vector<A>::kLength;
  static_assert(kLength % kEach == 0);
#pragma unroll
  for (int l = 0; l < kLength; l += kEach) {
    const Vector<A> v = load_vector(from + l);
#pragma unroll
    for (int i = 0; i < kEach; ++i) to[l + i] = v.at[i];
  }
}

// 4 elements of a planar row at a multiple of 4.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
  T at[4];
};

// The filter, widened: [row][tap][lane] channels last, [lane][row][tap] planar.
template <bool kPlanar, class T>
__device__ __forceinline__ void bring_filter(const ConvShape& s, const T* w, int channel, int channels, int width,
                                             Acc<T>* to) {
  const int count = s.tap_count * width;
  for (int e = static_cast<int>(threadIdx.x); e < count; e += kThreads) {
    const int lane = kPlanar ? e / s.tap_count : e % width, tap = kPlanar ? e % s.tap_count : e / width;
    to[e] = lane < channels ? widen(w[weight_offset(s, channel + lane, 0, 0, tap_of(s, tap))]) : Acc<T>(0);
  }
}

template <class T>
struct ForwardArgs {
  ConvShape s;
  After<T> after;
  TilesOf tiles;
  Box box;
  Divider by_strips, by_rows;  // of a tile
  bool wide;  // planar: a strip is stored as one
  const T *in, *w;
  T* out;
};

template <int kTaps, int kStride, bool kPlanar, class T>
__global__ void __launch_bounds__(kThreads, 2) depthwise_forward(ForwardArgs<T> a) {
  using A = Acc<T>;
  constexpr int kLength = kLengthOf<kPlanar, T>, kStrip = kStripOf<kTaps, kPlanar, T>;
  const ConvShape& s = a.s;
  T* box = shared_memory<T>();
  A* filter = reinterpret_cast<A*>(box + (kPlanar ? a.box.lanes * a.box.size[0] * a.box.size[1] : a.box.pixels) *
                                             static_cast<int64_t>(a.box.pitch));
  const auto block = static_cast<uint32_t>(blockIdx.x);
  const uint32_t number = a.tiles.by_group.quotient(block), group = block - number * a.tiles.by_group.divisor;
  const int channel = static_cast<int>(group) * a.box.lanes * kLength;
  const int left_lanes = (a.tiles.channels - channel) / kLength;
  const int lanes = left_lanes < a.box.lanes ? left_lanes : a.box.lanes;
  const Corner corner = corner_of(a.tiles, number);
  int origin[3];
  const int least[3] = {0, 0, 0};
#pragma unroll
  for (int i = 0; i < 3; ++i) origin[i] = corner.at[i] * static_cast<int>(s.stride[i].divisor) - s.pad[i];
  bring<kPlanar>(a.in + corner.n * s.is.n + channel * s.is.c, s.is, origin, least, s.in, a.box, lanes, box);
  commit_copies();
  const int width = a.box.lanes * kLength;
  bring_filter<kPlanar>(s, a.w, channel, lanes * kLength, width, filter);
  wait_for_copies<0>();
  __syncthreads();

  const int strips = static_cast<int>(a.by_strips.divisor), rows = static_cast<int>(a.by_rows.divisor);
  const int items = strips * rows * a.tiles.tile[0] * a.box.lanes;
  for (int e = static_cast<int>(threadIdx.x); e < items; e += kThreads) {
    auto rest = static_cast<uint32_t>(e);
    auto split = [&](const Divider& by) {
      const uint32_t q = by.quotient(rest), r = rest - q * by.divisor;
      rest = q;
      return static_cast<int>(r);
    };
    int lane = kPlanar ? 0 : split(a.box.by_lanes);
    const int w0 = split(a.by_strips) * kStrip, h = split(a.by_rows);
    int d = static_cast<int>(rest);
    if constexpr (kPlanar) lane = d / a.tiles.tile[0], d %= a.tiles.tile[0];
    if (lane >= lanes || corner.at[0] + d >= s.out[0] || corner.at[1] + h >= s.out[1] || corner.at[2] + w0 >= s.out[2])
      continue;
    A acc[kStrip][kLength] = {};
    for (int fd = 0; fd < s.filter[0]; ++fd)
      for (int fh = 0; fh < s.filter[1]; ++fh) {
        const int id = d * static_cast<int>(s.stride[0].divisor) + fd * s.dilation[0];
        const int ih = h * static_cast<int>(s.stride[1].divisor) + fh * s.dilation[1];
        const int iw = w0 * static_cast<int>(s.stride[2].divisor);
        const T* row = box + a.box.template at<kPlanar, kLength>(id, ih, iw, lane);
        const int first = (fd * s.filter[1] + fh) * s.filter[2];
        const A* own = kPlanar ? filter + lane * s.tap_count + first : filter + first * width + lane * kLength;
        if constexpr (kTaps > 0) {
          A weight[kTaps][kLength];
#pragma unroll
          for (int t = 0; t < kTaps; ++t) {
            if constexpr (kPlanar)
              weight[t][0] = own[t];
            else
              read_wide(own + t * width, weight[t]);
          }
          constexpr int kColumns = (kStrip - 1) * kStride + kTaps;
          Four<T> four;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            A x[kLength];
            if constexpr (kPlanar) {
              if (c % 4 == 0) four = *reinterpret_cast<const Four<T>*>(row + c);
              x[0] = widen(four.at[c % 4]);
            } else {
              read_vector(row + c * a.box.pitch, x);
            }
#pragma unroll
            for (int i = 0; i < kStrip; ++i) {
              const int t = c - i * kStride;
              if (t < 0 || t >= kTaps) continue;
#pragma unroll
              for (int l = 0; l < kLength; ++l) acc[i][l] += x[l] * weight[t][l];
            }
          }
        } else {
          const int step = kPlanar ? 1 : a.box.pitch;
          for (int t = 0; t < s.filter[2]; ++t) {
            A weight[kLength];
            if constexpr (kPlanar)
              weight[0] = own[t];
            else
              read_wide(own + t * width, weight);
#pragma unroll
            for (int i = 0; i < kStrip; ++i) {
              A x[kLength];
              read_vector(row + (i * static_cast<int>(s.stride[2].divisor) + t * s.dilation[2]) * step, x);
#pragma unroll
              for (int l = 0; l < kLength; ++l) acc[i][l] += x[l] * weight[l];
            }
          }
        }
      }
    Pixel at{corner.n, {corner.at[0] + d, corner.at[1] + h, corner.at[2] + w0}};
    const int c0 = channel + lane * kLength;
    if constexpr (kPlanar) {
      A v[kStrip];
      Four<T> result;
      T* to = a.out + offset_in(s.os, at, c0);
#pragma unroll
      for (int i = 0; i < kStrip; ++i) {
        v[i] = acc[i][0];
        if (at.at[2] < s.out[2]) v[i] = finished(a.after, at, c0, v[i]);
        ++at.at[2];
      }
      activate(a.after.act, v);
      const int left = s.out[2] - (at.at[2] - kStrip);
#pragma unroll
      for (int i = 0; i < kStrip; ++i) {
        if (a.after.accumulate && i < left) v[i] += widen(to[i * s.os.s[2]]);
        result.at[i] = narrow<T>(v[i]);
      }
      if (a.wide && left >= kStrip) {
        *reinterpret_cast<Four<T>*>(to) = result;
      } else {
#pragma unroll
        for (int i = 0; i < kStrip; ++i)
          if (i < left) to[i * s.os.s[2]] = result.at[i];
      }
    } else {
      // A pixel at a time: the activations' code stands here once, and the accumulators move up.
#pragma unroll 1
      for (int i = 0; i < kStrip && at.at[2] < s.out[2]; ++i, ++at.at[2]) {
        A v[kLength];
#pragma unroll
        for (int l = 0; l < kLength; ++l) v[l] = finished(a.after, at, c0 + l, acc[0][l]);
        activate(a.after.act, v);
        T* to = a.out + offset_in(s.os, at, c0);
        if (a.after.accumulate) {
          A before[kLength];
          read_vector(to, before);
#pragma unroll
          for (int l = 0; l < kLength; ++l) v[l] += before[l];
        }
        Vector<T> result;
#pragma unroll
        for (int l = 0; l < kLength; ++l) result.at[l] = narrow<T>(v[l]);
        store_vector(to, result);
#pragma unroll
        for (int j = 0; j + 1 < kStrip; ++j)
#pragma unroll
          for (int l = 0; l < kLength; ++l) acc[j][l] = acc[j + 1][l];
      }
    }
  }
}

template <class T>
struct BackwardArgs {
  ConvShape s;
  TilesOf tiles;  // of x
  Box x, dy;
  int middle[3];  // of a window, from its first pixel less the padding
  Divider by_strips, by_rows;
  int slots, parts;  // of the threads of a lane: rows of the filter (or taps), and parts of the tile
  int64_t chunk;  // tiles of a block
  bool wide, accumulate;
  const T *in, *out, *w;
  T* dx;  // null: not wanted, as the sums
  Strides at_dx;
  Acc<T>*sums, *bias;
};

// The first output of a tile that begins at `i`.
__device__ __forceinline__ int first_dealt(const ConvShape& s, const int (&middle)[3], int a, int i) {
  if (i <= 0) return 0;
  if (i >= s.in[a]) return s.out[a];
  const int ahead = i - middle[a] + static_cast<int>(s.stride[a].divisor) - 1;
  const int o = ahead <= 0 ? 0 : static_cast<int>(s.stride[a].quotient(static_cast<uint32_t>(ahead)));
  return o < s.out[a] ? o : s.out[a];
}

// The output that reads padded pixel `ahead` by its first tap; -1 where none does.
__device__ __forceinline__ int output_at(const ConvShape& s, int a, int ahead) {
  if (ahead < 0) return -1;
  const auto o = static_cast<int>(s.stride[a].quotient(static_cast<uint32_t>(ahead)));
  return o * static_cast<int>(s.stride[a].divisor) == ahead && o < s.out[a] ? o : -1;
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

template <int kTaps, bool kPlanar, class T>
__global__ void __launch_bounds__(kThreads, kBlocksOf<kTaps, kPlanar, T>) depthwise_backward(BackwardArgs<T> a) {
  using A = Acc<T>;
  constexpr int kLength = kLengthOf<kPlanar, T>, kStrip = kStripOf<kTaps, kPlanar, T>;
  constexpr int kSums = kTaps > 0 ? kTaps : kOwn;
  const ConvShape& s = a.s;
  const int tid = static_cast<int>(threadIdx.x), all_lanes = a.dy.lanes;
  auto elements = [](const Box& b) { return (kPlanar ? b.lanes * b.size[0] * b.size[1] : b.pixels) * b.pitch; };
  T* dy = shared_memory<T>();
  T* x = dy + elements(a.dy);
  A* filter = reinterpret_cast<A*>(x + (a.sums ? elements(a.x) : 0));
  const auto block = static_cast<uint32_t>(blockIdx.x);
  const uint32_t chunk = a.tiles.by_group.quotient(block), group = block - chunk * a.tiles.by_group.divisor;
  const int channel = static_cast<int>(group) * all_lanes * kLength;
  const int left_lanes = (a.tiles.channels - channel) / kLength, width = all_lanes * kLength;
  const int lanes = left_lanes < all_lanes ? left_lanes : all_lanes;
  if (a.dx) bring_filter<kPlanar>(s, a.w, channel, lanes * kLength, width, filter);

  // This thread's part of the sums.
  int own_lane, slot, part;
  if constexpr (kPlanar) {
    part = tid % a.parts, slot = tid / a.parts % a.slots, own_lane = tid / a.parts / a.slots;
  } else {
    own_lane = tid % all_lanes, slot = tid / all_lanes % a.slots, part = tid / all_lanes / a.slots;
  }
  const bool adds = own_lane < lanes && part < a.parts;
  A sum[kSums][kLength] = {}, bias[kLength] = {};

  const int strips = static_cast<int>(a.by_strips.divisor), rows = static_cast<int>(a.by_rows.divisor);
  const int64_t begin = chunk * a.chunk, end = begin + a.chunk < a.tiles.total ? begin + a.chunk : a.tiles.total;
  for (int64_t tile = begin; tile < end; ++tile) {
    const Corner corner = corner_of(a.tiles, tile);
    int low[3], limit[3];
    const int least[3] = {0, 0, 0};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      limit[i] = corner.at[i] + a.tiles.tile[i];
      if (limit[i] > s.in[i]) limit[i] = s.in[i];
      // Rounded up, where it is above zero: below, what is brought is zeros.
      const int ahead = corner.at[i] + s.pad[i] - (s.filter[i] - 1) * s.dilation[i];
      const int stride = static_cast<int>(s.stride[i].divisor);
      low[i] = ahead >= 0 ? static_cast<int>(s.stride[i].quotient(static_cast<uint32_t>(ahead + stride - 1)))
                          : -static_cast<int>(s.stride[i].quotient(static_cast<uint32_t>(-ahead)));
    }
    __syncthreads();  // the tile before has been read
    bring<kPlanar>(a.out + corner.n * s.os.n + channel * s.os.c, s.os, low, least, s.out, a.dy, lanes, dy);
    if (a.sums)
      bring<kPlanar>(a.in + corner.n * s.is.n + channel * s.is.c, s.is, corner.at, least, limit, a.x, lanes, x);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();

    if (a.dx) {
      const int items = strips * rows * a.tiles.tile[0] * all_lanes;
      for (int e = tid; e < items; e += kThreads) {
        auto rest = static_cast<uint32_t>(e);
        auto split = [&](const Divider& by) {
          const uint32_t q = by.quotient(rest), r = rest - q * by.divisor;
          rest = q;
          return static_cast<int>(r);
        };
        int lane = kPlanar ? 0 : split(a.dy.by_lanes);
        const int w0 = split(a.by_strips) * kStrip, h = split(a.by_rows);
        int d = static_cast<int>(rest);
        if constexpr (kPlanar) lane = d / a.tiles.tile[0], d %= a.tiles.tile[0];
        if (lane >= lanes || corner.at[0] + d >= limit[0] || corner.at[1] + h >= limit[1] ||
            corner.at[2] + w0 >= limit[2])
          continue;
        A acc[kStrip][kLength] = {};
        for (int fd = 0; fd < s.filter[0]; ++fd) {
          const int od = output_at(s, 0, corner.at[0] + d + s.pad[0] - fd * s.dilation[0]);
          if (od < 0) continue;
          for (int fh = 0; fh < s.filter[1]; ++fh) {
            const int oh = output_at(s, 1, corner.at[1] + h + s.pad[1] - fh * s.dilation[1]);
            if (oh < 0) continue;
            const T* row = dy + a.dy.template at<kPlanar, kLength>(od - low[0], oh - low[1], 0, lane);
            const int first = (fd * s.filter[1] + fh) * s.filter[2], step = kPlanar ? 1 : a.dy.pitch;
            const A* own = kPlanar ? filter + lane * s.tap_count + first : filter + first * width + lane * kLength;
            if constexpr (kTaps > 0) {
              A weight[kTaps][kLength];
#pragma unroll
              for (int t = 0; t < kTaps; ++t) {
                if constexpr (kPlanar)
                  weight[t][0] = own[t];
                else
                  read_wide(own + t * width, weight[t]);
              }
              Four<T> four;
#pragma unroll
              for (int c = 0; c < kStrip + kTaps - 1; ++c) {
                A g[kLength];
                if constexpr (kPlanar) {
                  if (c % 4 == 0) four = *reinterpret_cast<const Four<T>*>(row + w0 + c);
                  g[0] = widen(four.at[c % 4]);
                } else {
                  read_vector(row + (w0 + c) * step, g);
                }
#pragma unroll
                for (int i = 0; i < kStrip; ++i) {
                  const int t = i + kTaps - 1 - c;
                  if (t < 0 || t >= kTaps) continue;
#pragma unroll
                  for (int l = 0; l < kLength; ++l) acc[i][l] += g[l] * weight[t][l];
                }
              }
            } else {
              for (int t = 0; t < s.filter[2]; ++t) {
                A weight[kLength];
                if constexpr (kPlanar)
                  weight[0] = own[t];
                else
                  read_wide(own + t * width, weight);
#pragma unroll
                for (int i = 0; i < kStrip; ++i) {
                  const int ow = output_at(s, 2, corner.at[2] + w0 + i + s.pad[2] - t * s.dilation[2]);
                  if (ow < 0 || corner.at[2] + w0 + i >= limit[2]) continue;
                  A g[kLength];
                  read_vector(row + (ow - low[2]) * step, g);
#pragma unroll
                  for (int l = 0; l < kLength; ++l) acc[i][l] += g[l] * weight[l];
                }
              }
            }
          }
        }
        const Pixel at{corner.n, {corner.at[0] + d, corner.at[1] + h, corner.at[2] + w0}};
        T* to = a.dx + offset_in(a.at_dx, at, channel + lane * kLength);
        const int left = limit[2] - at.at[2];
        if constexpr (kPlanar) {
          Four<T> result;
#pragma unroll
          for (int i = 0; i < kStrip; ++i) {
            if (a.accumulate && i < left) acc[i][0] += widen(to[i * a.at_dx.s[2]]);
            result.at[i] = narrow<T>(acc[i][0]);
          }
          if (a.wide && left >= kStrip) {
            *reinterpret_cast<Four<T>*>(to) = result;
          } else {
#pragma unroll
            for (int i = 0; i < kStrip; ++i)
              if (i < left) to[i * a.at_dx.s[2]] = result.at[i];
          }
        } else {
#pragma unroll
          for (int i = 0; i < kStrip; ++i) {
            if (i >= left) continue;
            T* place = to + i * a.at_dx.s[2];
            if (a.accumulate) {
              A before[kLength];
              read_vector(place, before);
#pragma unroll
              for (int l = 0; l < kLength; ++l) acc[i][l] += before[l];
            }
            Vector<T> result;
#pragma unroll
            for (int l = 0; l < kLength; ++l) result.at[l] = narrow<T>(acc[i][l]);
            store_vector(place, result);
          }
        }
      }
    }

    if (a.sums && adds) {
      const int items = strips * rows * a.tiles.tile[0];
#pragma unroll
      for (int k = 0; k < (kTaps > 0 ? 1 : kOwn); ++k) {
        const int number = kTaps > 0 ? slot * s.filter[2] : slot + k * a.slots;
        if (number >= s.tap_count) continue;
        const Tap tap = tap_of(s, number);
        for (int e = part; e < items; e += a.parts) {
          auto rest = static_cast<uint32_t>(e);
          const uint32_t q = a.by_strips.quotient(rest);
          const int w0 = static_cast<int>(rest - q * a.by_strips.divisor) * kStrip;
          const auto d = static_cast<int>(a.by_rows.quotient(q));
          const int h = static_cast<int>(q) - d * rows;
          if (corner.at[0] + d >= limit[0] || corner.at[1] + h >= limit[1]) continue;
          const int od = output_at(s, 0, corner.at[0] + d + s.pad[0] - tap.at[0] * s.dilation[0]);
          const int oh = output_at(s, 1, corner.at[1] + h + s.pad[1] - tap.at[1] * s.dilation[1]);
          if (od < 0 || oh < 0) continue;
          const T* g_row = dy + a.dy.template at<kPlanar, kLength>(od - low[0], oh - low[1], 0, own_lane);
          const T* x_row = x + a.x.template at<kPlanar, kLength>(d, h, w0, own_lane);
          const int left = limit[2] - corner.at[2] - w0, g_step = kPlanar ? 1 : a.dy.pitch;
          const int x_step = kPlanar ? 1 : a.x.pitch;
          A value[kStrip][kLength];
          if constexpr (kPlanar) {
            const Four<T> four = *reinterpret_cast<const Four<T>*>(x_row);
#pragma unroll
            for (int i = 0; i < kStrip; ++i) value[i][0] = widen(four.at[i]);
          } else {
#pragma unroll
            for (int i = 0; i < kStrip; ++i) read_vector(x_row + i * x_step, value[i]);
          }
          if constexpr (kTaps > 0) {
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
              const int ow = output_at(s, 2, corner.at[2] + w0 + i + s.pad[2] - tap.at[2] * s.dilation[2]);
              if (ow < 0 || i >= left) continue;
              A g[kLength];
              read_vector(g_row + (ow - low[2]) * g_step, g);
#pragma unroll
              for (int l = 0; l < kLength; ++l) sum[k][l] += value[i][l] * g[l];
            }
          }
        }
      }
    }

    if (a.bias && adds) {
      int from[3], size[3];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        from[i] = first_dealt(s, a.middle, i, corner.at[i]);
        size[i] = first_dealt(s, a.middle, i, limit[i]) - from[i];
      }
      const int across = (size[2] + 3) / 4, count = size[0] * size[1] * across;
      for (int e = slot * a.parts + part; e < count; e += a.slots * a.parts) {
        const int w = e % across * 4, h = e / across % size[1], d = e / across / size[1];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (w + i >= size[2]) continue;
          A g[kLength];
          read_vector(dy + a.dy.template at<kPlanar, kLength>(from[0] + d - low[0], from[1] + h - low[1],
                                                              from[2] + w + i - low[2], own_lane),
                      g);
#pragma unroll
          for (int l = 0; l < kLength; ++l) bias[l] += g[l];
        }
      }
    }
  }

  // The parts of a sum lie `step` threads apart.
  A* shared = shared_memory<A>();
  const int step = kPlanar ? 1 : all_lanes * a.slots;
  auto join = [&](const A(&mine)[kLength], int of_slots, int number, A* to, int64_t pitch, int64_t offset) {
    __syncthreads();
#pragma unroll
    for (int l = 0; l < kLength; ++l) shared[tid * kLength + l] = mine[l];
    __syncthreads();
    if (part != 0 || !adds || slot >= of_slots) return;
#pragma unroll
    for (int l = 0; l < kLength; ++l) {
      A total = 0;
      for (int p = 0; p < number; ++p) total += shared[(tid + p * step) * kLength + l];
      to[(channel + own_lane * kLength + l) * pitch + offset] = total;
    }
  };
  if (a.sums) {
    A* to = a.sums + chunk * static_cast<int64_t>(a.tiles.channels) * s.tap_count;
#pragma unroll
    for (int t = 0; t < kSums; ++t) {
      const int tap = kTaps > 0 ? slot * kTaps + t : slot + t * a.slots;
      join(sum[t], tap < s.tap_count ? a.slots : 0, a.parts, to, s.tap_count, tap);
    }
  }
  if (a.bias) {
    // Of all slots: planar, those of a lane follow each other as its parts do; channels last, they are lanes apart.
    A* to = a.bias + chunk * static_cast<int64_t>(a.tiles.channels);
    __syncthreads();
#pragma unroll
    for (int l = 0; l < kLength; ++l) shared[tid * kLength + l] = bias[l];
    __syncthreads();
    if (part == 0 && slot == 0 && adds) {
#pragma unroll
      for (int l = 0; l < kLength; ++l) {
        A total = 0;
        for (int p = 0; p < a.parts * a.slots; ++p)
          total += shared[(tid + p * (kPlanar ? 1 : all_lanes)) * kLength + l];
        to[channel + own_lane * kLength + l] = total;
      }
    }
  }
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

template <class T>
bool vectors(const void* data, const Strides& s) {
  constexpr int64_t kLength = Vector<T>::kLength;
  return s.c == 1 && aligned(data) && s.n % kLength == 0 && s.s[0] % kLength == 0 && s.s[1] % kLength == 0 &&
         s.s[2] % kLength == 0;
}

// Whether rows of 4 elements can be stored as one.
template <class T>
bool fours(const void* data, const Strides& s) {
  return s.s[2] == 1 && aligned(data, alignof(Four<T>)) && s.n % 4 == 0 && s.c % 4 == 0 && s.s[0] % 4 == 0 &&
         s.s[1] % 4 == 0;
}

int round_up(int n, int to) { return (n + to - 1) / to * to; }

Divider divider(int n) { return Divider(static_cast<uint32_t>(n)); }

Box box_of(const int (&size)[3], int lanes, bool planar, int length) {
  Box b{};
  for (int a = 0; a < 3; ++a) b.size[a] = size[a];
  if (planar) b.size[2] = round_up(b.size[2], 4);
  b.lanes = lanes;
  b.pixels = b.size[0] * b.size[1] * b.size[2];
  b.pitch = planar ? b.size[2] : lanes * length;
  for (int a = 0; a < 3; ++a) b.by[a] = divider(b.size[a]);
  b.by_lanes = divider(lanes);
  return b;
}

int64_t elements_of(const Box& b, int length) { return static_cast<int64_t>(b.pixels) * b.lanes * length; }

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
  const int vectors = channels / length;
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

TilesOf tiles_of(const int (&extent)[3], const int (&tile)[3], int64_t images, int channels, int lanes, int length) {
  TilesOf t{};
  t.total = images;
  for (int a = 0; a < 3; ++a) {
    t.tile[a] = tile[a], t.count[a] = (extent[a] + tile[a] - 1) / tile[a];
    t.by[a] = divider(t.count[a]);
    t.total *= t.count[a];
  }
  t.channels = channels;
  t.groups = static_cast<int>(ceil_div(channels / length, lanes));
  t.by_group = divider(t.groups);
  return t;
}

int64_t images_of(const Pixels& p) {
  int64_t each = 1;
  for (const Divider& size : p.size) each *= size.divisor;
  return p.count / each;
}

// Depthwise layers of one output a channel, zeros for padding.
bool is_depthwise(const ConvShape& s) {
  return s.C == 1 && s.K == 1 && s.mode == PaddingMode::zeros && s.in_pixels.count > 0 && s.out_pixels.count > 0;
}

// Calls f with the taps along W as a constant, 0 for any: double has that form alone, which keeps the build short.
template <class T, class F>
auto for_taps(const ConvShape& s, bool any_stride, F f) {
  int taps = s.dilation[2] == 1 && (any_stride || s.stride[2].divisor == 1) ? s.filter[2] : 0;
  if (s.stride[2].divisor == 2 && taps == 7) taps = 0;
  if constexpr (sizeof(T) < 8) {
    if (taps == 3) return f(std::integral_constant<int, 3>{});
    if (taps == 5) return f(std::integral_constant<int, 5>{});
    if (taps == 7) return f(std::integral_constant<int, 7>{});
  }
  return f(std::integral_constant<int, 0>{});
}

template <int kTaps, int kStride, bool kPlanar, class T>
Status start_forward(const ConvShape& s, const After<T>& after, const T* in, const T* w, T* out, const Queue& queue) {
  constexpr int kLength = kLengthOf<kPlanar, T>, kStrip = kStripOf<kTaps, kPlanar, T>;
  int tile[3], lanes = 1;
  auto box = [&](const int (&of)[3], int l) {
    int size[3];
    for (int a = 0; a < 3; ++a)
      size[a] = (of[a] - 1) * static_cast<int>(s.stride[a].divisor) + (s.filter[a] - 1) * s.dilation[a] + 1;
    if (kPlanar) size[2] = round_up(size[2], 4) + 4;
    return box_of(size, l, kPlanar, kLength);
  };
  auto bytes = [&](const int (&of)[3], int l) {
    const int64_t item = sizeof(T), wide = sizeof(Acc<T>);
    return elements_of(box(of, l), kLength) * item + int64_t{s.tap_count} * l * kLength * wide;
  };
  if (!fit(s.out, s.G, kLength, kPlanar, kStrip, bytes, tile, &lanes)) return Status::unsupported;
  ForwardArgs<T> a{};
  a.s = s, a.after = after;
  a.tiles = tiles_of(s.out, tile, images_of(s.out_pixels), s.G, lanes, kLength);
  a.box = box(tile, lanes);
  a.by_strips = divider(tile[2] / kStrip), a.by_rows = divider(tile[1]);
  a.wide = kPlanar && fours<T>(out, s.os);
  a.in = in, a.w = w, a.out = out;
  const int64_t blocks = a.tiles.total * a.tiles.groups;
  if (blocks > kMost32) return Status::unsupported;
  return launch(&depthwise_forward<kTaps, kStride, kPlanar, T>, static_cast<unsigned>(blocks), kThreads,
                static_cast<size_t>(bytes(tile, lanes)), queue, a);
}

// Chunks of tiles of a pass that leaves sums: four blocks a multiprocessor of a large GPU.
constexpr int64_t kBlocks = 528;

template <int kTaps, bool kPlanar, class T>
struct BackwardPlan {
  static constexpr int kLength = kLengthOf<kPlanar, T>, kStrip = kStripOf<kTaps, kPlanar, T>;
  static constexpr auto kernel = &depthwise_backward<kTaps, kPlanar, T>;
  BackwardArgs<T> args{};
  int64_t chunks = 0, bytes = 0;

  Box box(const ConvShape& s, const int (&of)[3], int lanes) const {
    int size[3];
    for (int a = 0; a < 3; ++a) {
      const int stride = static_cast<int>(s.stride[a].divisor);
      size[a] = (of[a] - 1 + (s.filter[a] - 1) * s.dilation[a]) / stride + 2;
    }
    if (kPlanar) size[2] = round_up(size[2], 4) + 4;
    return box_of(size, lanes, kPlanar, kLength);
  }
  int64_t shared(const ConvShape& s, const int (&of)[3], int lanes, bool sums) const {
    const int64_t item = sizeof(T), wide = sizeof(Acc<T>);
    const int64_t all = elements_of(box(s, of, lanes), kLength) * item +
                        (sums ? elements_of(box_of(of, lanes, kPlanar, kLength), kLength) * item : 0) +
                        int64_t{s.tap_count} * lanes * kLength * wide;
    return std::max(all, kThreads * kLength * wide);
  }

  // `sums`: dw or db are wanted.
  bool make(const ConvShape& s, bool sums) {
    int tile[3], lanes = 1;
    for (int a = 0; a < 3; ++a) {
      // Every output is read by a pixel: their sum is dealt to the tiles.
      if (s.pad[a] > (s.filter[a] - 1) * s.dilation[a] ||
          (s.in[a] - 1 + s.pad[a]) < (s.out[a] - 1) * static_cast<int>(s.stride[a].divisor))
        return false;
      args.middle[a] = s.filter[a] / 2 * s.dilation[a] - s.pad[a];
    }
    const int rows = kTaps > 0 ? s.filter[0] * s.filter[1] : s.tap_count;
    const int each = kTaps > 0 ? rows : static_cast<int>(ceil_div(rows, kOwn));
    if (sums && each > kThreads) return false;
    auto bytes_of = [&](const int (&of)[3], int l) {
      // Too many lanes for the threads of the sums are as too many bytes.
      return sums && l * each > kThreads ? kMostShared + 1 : shared(s, of, l, sums);
    };
    if (!fit(s.in, s.G, kLength, kPlanar, kStrip, bytes_of, tile, &lanes)) return false;
    args.s = s;
    args.tiles = tiles_of(s.in, tile, images_of(s.in_pixels), s.G, lanes, kLength);
    args.dy = box(s, tile, lanes), args.x = box_of(tile, lanes, kPlanar, kLength);
    args.by_strips = divider(tile[2] / kStrip), args.by_rows = divider(tile[1]);
    args.slots = sums ? std::min(rows, kThreads / lanes) : 1;
    args.parts = kThreads / (lanes * args.slots);
    // A row of parts longer than the tile has strips does nothing.
    args.parts = std::max(1, std::min(args.parts, tile[0] * tile[1] * (tile[2] / kStrip)));
    chunks = sums ? std::max<int64_t>(1, std::min(args.tiles.total, ceil_div(kBlocks, args.tiles.groups)))
                  : args.tiles.total;
    args.chunk = ceil_div(args.tiles.total, chunks);
    chunks = ceil_div(args.tiles.total, args.chunk);
    bytes = shared(s, tile, lanes, sums);
    return chunks * args.tiles.groups <= kMost32;
  }
};

enum class Order { none, planar, inner };

// The memory order of the sides that are there, one for all.
template <class T>
Order order_of(const ConvShape& s, std::initializer_list<std::pair<const void*, const Strides*>> sides) {
  if (!is_depthwise(s)) return Order::none;
  bool inner = s.G % Vector<T>::kLength == 0, planar = true;
  for (const auto& [data, strides] : sides) {
    if (!data) continue;
    inner = inner && vectors<T>(data, *strides);
    planar = planar && (strides->s[2] == 1 || (s.in[2] == 1 && s.out[2] == 1)) && (strides->c != 1 || s.G == 1);
  }
  return inner ? Order::inner : planar ? Order::planar : Order::none;
}

int64_t rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

template <class T>
int64_t sums_bytes(const ConvShape& s, int64_t chunks, bool dw, bool db) {
  const int64_t wide = sizeof(Acc<T>);
  return (dw ? rounded(chunks * s.G * s.tap_count * wide) : 0) + (db ? rounded(chunks * s.G * wide) : 0);
}

// Calls f with a BackwardPlan that has been made; `unsupported` where there is none.
template <class T, class F>
Status with_plan(const ConvShape& s, const T* in, const T* out, const DepthwiseGradients<T>& to, F f) {
  const bool sums = to.dw || to.db;
  const Order order = order_of<T>(s, {{to.dw ? in : nullptr, &s.is}, {out, &s.os}, {to.dx, &to.dx_strides}});
  if (order == Order::none) return Status::unsupported;
  return for_taps<T>(s, false, [&](auto taps) {
    auto go = [&](auto planar) {
      BackwardPlan<decltype(taps)::value, decltype(planar)::value, T> plan;
      return plan.make(s, sums) ? f(plan) : Status::unsupported;
    };
    return order == Order::planar ? go(std::true_type{}) : go(std::false_type{});
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
Status run_depthwise(const ConvShape& s, const After<T>& after, const T* in, const T* w, T* out, const Queue& queue) {
  const Order order = order_of<T>(s, {{in, &s.is}, {out, &s.os}});
  if (order == Order::none) return Status::unsupported;
  const bool by_planes = order == Order::planar;
  return for_taps<T>(s, s.stride[2].divisor <= 2, [&](auto taps) {
    constexpr int kTaps = decltype(taps)::value;
    auto go = [&](auto planar) {
      constexpr bool kPlanar = decltype(planar)::value;
      if constexpr (kTaps == 3 || kTaps == 5)
        if (s.stride[2].divisor == 2) return start_forward<kTaps, 2, kPlanar, T>(s, after, in, w, out, queue);
      return start_forward<kTaps, 1, kPlanar, T>(s, after, in, w, out, queue);
    };
    return by_planes ? go(std::true_type{}) : go(std::false_type{});
  });
}

template <class T>
int64_t depthwise_backward_workspace(const ConvShape& s, const T* in, const T* out, const DepthwiseGradients<T>& to) {
  int64_t bytes = 0;
  with_plan<T>(s, in, out, to, [&](const auto& plan) {
    bytes = std::max<int64_t>(1, sums_bytes<T>(s, plan.chunks, to.dw != nullptr, to.db != nullptr));
    return Status::ok;
  });
  return bytes;
}

template <class T>
Status run_depthwise_backward(const ConvShape& s, const T* in, const T* out, const T* w,
                              const DepthwiseGradients<T>& to, const Queue& queue) {
  return with_plan<T>(s, in, out, to, [&](auto& plan) {
    using A = Acc<T>;
    if (queue.workspace_bytes < sums_bytes<T>(s, plan.chunks, to.dw != nullptr, to.db != nullptr))
      return Status::out_of_memory;
    auto& a = plan.args;
    a.in = in, a.out = out, a.w = w, a.dx = to.dx;
    a.accumulate = to.accumulate_dx;
    a.at_dx = to.dx_strides;
    a.wide = to.dx && fours<T>(to.dx, to.dx_strides);
    auto* memory = static_cast<char*>(queue.workspace);
    a.sums = to.dw ? reinterpret_cast<A*>(memory) : nullptr;
    a.bias = to.db ? reinterpret_cast<A*>(memory + sums_bytes<T>(s, plan.chunks, to.dw != nullptr, false)) : nullptr;
    using Plan = std::remove_reference_t<decltype(plan)>;
    Status done = launch(Plan::kernel, static_cast<unsigned>(plan.chunks * a.tiles.groups), kThreads,
                         static_cast<size_t>(plan.bytes), queue, a);
    if (done == Status::ok && to.dw)
      done = start_join<T>(a.sums, static_cast<int64_t>(s.G) * s.tap_count, plan.chunks, to.accumulate_dw, to.dw, 1,
                           queue);
    if (done == Status::ok && to.db)
      done = start_join<T>(a.bias, s.G, plan.chunks, to.accumulate_db, to.db, to.db_stride, queue);
    return done;
  });
}

#define FASTCONV_DEPTHWISE(T)                                                                                \
  template Status run_depthwise<T>(const ConvShape&, const After<T>&, const T*, const T*, T*, const Queue&); \
  template int64_t depthwise_backward_workspace<T>(const ConvShape&, const T*, const T*,                     \
                                                   const DepthwiseGradients<T>&);                            \
  template Status run_depthwise_backward<T>(const ConvShape&, const T*, const T*, const T*,                  \
                                            const DepthwiseGradients<T>&, const Queue&);
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(half)
FASTCONV_DEPTHWISE(bfloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cuda
