// Pooling of every kind, forward and backward.
//
// Bytes: x once and y once (and indices, where they are wanted); of a maximum's gradient x, dy and dx once and the code
// of each window's winner twice. What windows share is read again from L1 and L2. Flops: one an element and tap.
//
// A thread has one output, or with channels innermost 16 bytes of channels of one: its loads are neighbours' in either
// order. Windows of many elements (global pooling) have a block each, whose threads' parts are joined in one order.
// Gradients are gathered: a thread has one element of dx, or 16 bytes of channels, and adds up the windows that cover
// it in their order. A maximum's winners are found first, by the forward kernel, as codes in the workspace: the number
// of the tap in its window, of one byte where that fits. So no sum depends on another, and no atomic is needed.
//
// Registers: kLength wide values and, for a maximum, as many taps (8 + 8 of the 16-bit types), three windows of three
// words, offsets: at most 64 in the 32-bit forms (80 in the others), so that 4 blocks of 256 share a multiprocessor.
//
// pool_tiles and pool_rows serve square windows of 2 and 3 at a stride of 1 or 2, where no index is wanted: a thread
// has 2 x 2 outputs of 16 bytes of channels, or 2 rows of 4 outputs of a plane, and reads each element that they share
// once: 25 vectors in place of 36 for 3x3 at a stride of 2, 16 at a stride of 1. Planar rows are read and written 4
// elements at a time where they are aligned. Registers: 4 x 8 totals of the 16-bit types and 8 of an element.
//
// gate: pool_windows registers 80
// gate: pool_large registers 64 shared 4096
// gate: pool_gather registers 80
// gate: pool_tiles registers 128
// gate: pool_rows registers 80
// gate: unpool_claim registers 40
// gate: fill_owner registers 16
// gate: unpool_gather registers 40
// gate: take_indices registers 40
// gate: pool_windows vectors
// gate: pool_gather vectors
// gate: pool_tiles vectors
// gate: pool_rows vectors
#include <algorithm>
#include <iterator>

#include "cuda/axis.h"
#include "cuda/index.h"
#include "cuda/launch.h"
#include "cuda/types.cuh"
#include "ops/pool.h"

namespace fastconv::cuda {
namespace {

using ops::Pool;
using ops::RangeOf;
using ops::Side;
using ops::Strides;
using ops::WindowOf;

constexpr int kThreads = 256;
// Windows of more elements than this have a block each.
constexpr int64_t kLargeWindow = 256;

template <class I>
using Unsigned = std::make_unsigned_t<I>;

template <class I>
struct Place {
  I n, c, s[3];
};

// A tensor's strides, and how the numbers of its elements (or vectors) are taken apart.
template <class I>
struct Grid {
  Place<I> stride;
  Radix<Unsigned<I>> channels, size[3];
  I images;
  int64_t count;  // elements or vectors

  __device__ I offset(const Place<I>& at) const {
    return at.n * stride.n + at.c * stride.c + at.s[0] * stride.s[0] + at.s[1] * stride.s[1] + at.s[2] * stride.s[2];
  }
  // The place of element i in the order that its threads take: channels or columns innermost.
  template <bool kInner, int kLength>
  __device__ Place<I> place(int64_t i) const {
    auto rest = static_cast<Unsigned<I>>(i);
    Place<I> at;
    if constexpr (kInner) at.c = static_cast<I>(channels.split(rest)) * kLength;
    at.s[2] = static_cast<I>(size[2].split(rest));
    at.s[1] = static_cast<I>(size[1].split(rest));
    at.s[0] = static_cast<I>(size[0].split(rest));
    if constexpr (!kInner) at.c = static_cast<I>(channels.split(rest));
    at.n = static_cast<I>(rest);
    return at;
  }
};

template <class I>
struct PoolArgs {
  DeviceAxis<I> axis[3];
  Grid<I> x, y;  // y: also dy; x: also dx, whose strides are `dx`
  Place<I> dx, indices, codes;
  bool count_include_pad;
  I divisor;
  double norm;
};

template <class I>
__device__ I offset_of(const Place<I>& at, const Place<I>& stride) {
  return at.n * stride.n + at.c * stride.c + at.s[0] * stride.s[0] + at.s[1] * stride.s[1] + at.s[2] * stride.s[2];
}

template <class I>
__device__ double divisor_of(const PoolArgs<I>& a, const I (&o)[3]) {
  if (a.divisor) return static_cast<double>(a.divisor);
  double product = 1;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const I n = a.axis[i].adaptive || !a.count_include_pad ? a.axis[i].window(o[i]).count : a.axis[i].pool_size(o[i]);
    product *= static_cast<double>(n < 1 ? 1 : n);
  }
  return product;
}

template <class A>
__device__ bool is_nan(A x) {
  if constexpr (std::is_floating_point_v<A>) return x != x;
  return false;
}

template <class A>
__device__ A power(A x, double p) {
  return p == 1 ? x : p == 2 ? x * x : static_cast<A>(pow(static_cast<double>(x), p));
}
template <class A>
__device__ A root(A x, double p) {
  if (p == 1) return x;
  if (p == 2) return sqrt(x);
  return static_cast<A>(pow(static_cast<double>(x), 1 / p));
}

// What a window comes to, of kLength channels.
template <PoolKind kKind, int kLength, class A, class I>
struct Total {
  A value[kLength];
  I tap[kKind == PoolKind::max ? kLength : 1];  // of the first maximum or NaN; -1: an empty window

  __device__ void clear() {
    using Limits = std::numeric_limits<A>;
#pragma unroll
    for (A& v : value)
      v = kKind != PoolKind::max ? A(0) : Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
#pragma unroll
    for (I& t : tap) t = -1;
  }
  // The taps of a window come in order; of two totals the one of the earlier tap stays, unless the other is greater.
  __device__ void take(int i, A v, I at, double norm) {
    if constexpr (kKind == PoolKind::max) {
      const bool better = tap[i] < 0 || (!is_nan(value[i]) && (v > value[i] || is_nan(v)));
      value[i] = better ? v : value[i];
      tap[i] = better ? at : tap[i];
    } else {
      value[i] += kKind == PoolKind::lp ? power(v, norm) : v;
    }
  }
  __device__ void join(int i, A v, I at) {
    if constexpr (kKind == PoolKind::max) {
      if (at < 0) return;
      const bool same = v == value[i] || (is_nan(v) && is_nan(value[i]));
      const bool better = tap[i] < 0 || (same ? at < tap[i] : !is_nan(value[i]) && (v > value[i] || is_nan(v)));
      value[i] = better ? v : value[i];
      tap[i] = better ? at : tap[i];
    } else {
      value[i] += v;
    }
  }
};

// Where in the image tap `tap` of the window at `o` lies, row by row; -1 for no tap.
template <class I>
__device__ int64_t position_of(const PoolArgs<I>& a, const I (&o)[3], I tap) {
  if (tap < 0) return -1;
  const I row = DeviceAxis<I>::over(tap, a.axis[2].by_kernel), plane = DeviceAxis<I>::over(row, a.axis[1].by_kernel);
  const I t[3] = {plane, row - plane * a.axis[1].kernel, tap - row * a.axis[2].kernel};
  int64_t position = 0;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const DeviceAxis<I>& axis = a.axis[i];
    const I begin = axis.adaptive ? axis.window(o[i]).first : o[i] * axis.stride - axis.pad;
    position = position * axis.in + begin + t[i] * axis.dilation;
  }
  return position;
}

// What the forward kernels leave of a window: its result, the code of its winner, or the factor of its Lp gradient.
enum class Leave { result, code, factor };

template <class T, class Code>
struct Results {
  T* y;
  int64_t* indices;
  Code* codes;
  const T* dy;
  Acc<T>* factors;
};

template <PoolKind kKind, Leave kLeave, int kLength, class T, class Code, class I>
__device__ void leave(const PoolArgs<I>& a, const Place<I>& at, const Total<kKind, kLength, Acc<T>, I>& total,
                      const Results<T, Code>& to) {
  using A = Acc<T>;
  A v[kLength];
#pragma unroll
  for (int i = 0; i < kLength; ++i) v[i] = total.value[i];
  if constexpr (kKind != PoolKind::max) {
    const double size = divisor_of(a, at.s);
    [[maybe_unused]] const double taps = static_cast<double>(a.axis[0].kernel) * static_cast<double>(a.axis[1].kernel) *
                                         static_cast<double>(a.axis[2].kernel);
#pragma unroll
    for (int i = 0; i < kLength; ++i) {
      if constexpr (kKind == PoolKind::average)
        v[i] = quotient(v[i], static_cast<A>(size), reciprocal(static_cast<A>(size)));
      if constexpr (kKind == PoolKind::lp) {
        const A sum = size == taps ? v[i] : v[i] * reciprocal(static_cast<A>(size)) * static_cast<A>(taps);
        if constexpr (kLeave == Leave::result) v[i] = root(sum, a.norm);
        if constexpr (kLeave == Leave::factor) {
          const double slope = a.norm == 1 ? 1 : pow(static_cast<double>(sum), 1 / a.norm - 1);
          // PyTorch's convention: no gradient where the sum is 0.
          v[i] = sum == A(0) ? A(0) : widen(to.dy[a.y.offset(at)]) * static_cast<A>(taps * reciprocal(size) * slope);
        }
      }
    }
  }
  if constexpr (kLeave == Leave::result) {
    T* y = to.y + a.y.offset(at);
    if constexpr (kLength > 1) {
      Vector<T> out;
#pragma unroll
      for (int i = 0; i < kLength; ++i) out.at[i] = narrow<T>(v[i]);
      store_vector(y, out);
    } else {
      *y = narrow<T>(v[0]);
    }
  }
  if constexpr (kLeave == Leave::factor) to.factors[offset_of(at, a.codes)] = v[0];
  if constexpr (kKind == PoolKind::max) {
    if (kLeave == Leave::result && !to.indices) return;
#pragma unroll
    for (int i = 0; i < kLength; ++i) {
      Place<I> one = at;
      one.c += i;
      if constexpr (kLeave == Leave::result)
        to.indices[offset_of(one, a.indices)] = position_of(a, at.s, total.tap[i]);
      else
        to.codes[offset_of(one, a.codes)] = static_cast<Code>(total.tap[i]);
    }
  }
}

// A thread an output.
template <PoolKind kKind, Leave kLeave, bool kInner, int kLength, class T, class Code, class I>
__global__ void __launch_bounds__(kThreads, 3) pool_windows(PoolArgs<I> a, const T* x, Results<T, Code> to) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= a.y.count) return;
  const Place<I> at = a.y.template place<kInner, kLength>(number);
  const WindowOf<I> d = a.axis[0].window(at.s[0]), h = a.axis[1].window(at.s[1]), w = a.axis[2].window(at.s[2]);
  Total<kKind, kLength, Acc<T>, I> total;
  total.clear();
  const T* image = x + at.n * a.x.stride.n + at.c * a.x.stride.c + d.first * a.x.stride.s[0] +
                   h.first * a.x.stride.s[1] + w.first * a.x.stride.s[2];
  const I step[3] = {a.axis[0].dilation * a.x.stride.s[0], a.axis[1].dilation * a.x.stride.s[1],
                     a.axis[2].dilation * a.x.stride.s[2]};
  for (I i = 0; i < d.count; ++i)
    for (I j = 0; j < h.count; ++j) {
      I tap = ((d.tap + i) * a.axis[1].kernel + h.tap + j) * a.axis[2].kernel + w.tap;
      const T* row = image + i * step[0] + j * step[1];
      for (I k = 0; k < w.count; ++k, ++tap, row += step[2]) {
        if constexpr (kLength > 1) {
          const Vector<T> v = load_vector(row);
#pragma unroll
          for (int l = 0; l < kLength; ++l) total.take(l, widen(v.at[l]), tap, a.norm);
        } else {
          total.take(0, widen(*row), tap, a.norm);
        }
      }
    }
  leave<kKind, kLeave>(a, at, total, to);
}

// --- square windows in register tiles ----------------------------------------------------------------------------

struct TileArgs {
  DeviceAxis<int32_t> axis[3];
  Place<int64_t> x, y;
  Divider by[4];  // tiles of a row, of a plane, planes, and channels (vectors)
  int64_t count;
  bool count_include_pad;
  bool wide;  // rows are read and written 4 elements at a time
  int32_t divisor;
};

// Where a thread's tile is.
struct TilePlace { int n, c, d, h, w; };

template <bool kInner>
__device__ __forceinline__ TilePlace tile_place(const TileArgs& a, uint32_t rest) {
  auto split = [&](const Divider& by) {
    const uint32_t q = by.quotient(rest), r = rest - q * by.divisor;
    rest = q;
    return static_cast<int>(r);
  };
  TilePlace at{};
  if constexpr (kInner) at.c = split(a.by[3]);
  at.w = split(a.by[0]), at.h = split(a.by[1]), at.d = split(a.by[2]);
  if constexpr (!kInner) at.c = split(a.by[3]);
  at.n = static_cast<int>(rest);
  return at;
}

// What an element outside the image counts for.
template <PoolKind kKind, class A>
__device__ __forceinline__ A neutral() {
  return kKind == PoolKind::max ? -std::numeric_limits<A>::infinity() : A(0);
}

template <PoolKind kKind, class A>
__device__ __forceinline__ void collect(A& total, A v) {
  if constexpr (kKind == PoolKind::max)
    total = !is_nan(total) && (v > total || is_nan(v)) ? v : total;
  else
    total += v;
}

// 1 / the divisor of an average, and the divisor.
template <class A>
__device__ __forceinline__ A tile_divisor(const TileArgs& a, int d, int h, int w) {
  if (a.divisor) return static_cast<A>(a.divisor);
  const int o[3] = {d, h, w};
  A product = 1;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const int n = a.count_include_pad ? a.axis[i].pool_size(o[i]) : a.axis[i].window(o[i]).count;
    product *= static_cast<A>(n < 1 ? 1 : n);
  }
  return product;
}

// Channels last: 2 x 2 outputs of a vector of channels.
template <PoolKind kKind, int kKernel, int kStride, class T>
__global__ void __launch_bounds__(kThreads, 2) pool_tiles(TileArgs a, const T* x, T* y) {
  using A = Acc<T>;
  constexpr int kLength = Vector<T>::kLength, kSpan = kStride + kKernel;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= a.count) return;
  const TilePlace at = tile_place<true>(a, static_cast<uint32_t>(number));
  const int oh = 2 * at.h, ow = 2 * at.w, h0 = oh * kStride - a.axis[1].pad, w0 = ow * kStride - a.axis[2].pad;
  const WindowOf<int> d = a.axis[0].window(at.d);
  A total[2][2][kLength];
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int l = 0; l < kLength; ++l) total[i / 2][i % 2][l] = neutral<kKind, A>();
  const T* image = x + at.n * a.x.n + at.c * kLength;
  for (int k = 0; k < d.count; ++k) {
    const T* plane = image + (d.first + k * a.axis[0].dilation) * a.x.s[0];
#pragma unroll
    for (int r = 0; r < kSpan; ++r) {
      const bool row_inside = h0 + r >= 0 && h0 + r < a.axis[1].in;
#pragma unroll
      for (int c = 0; c < kSpan; ++c) {
        if (!row_inside || w0 + c < 0 || w0 + c >= a.axis[2].in) continue;
        const Vector<T> v = load_vector(plane + (h0 + r) * a.x.s[1] + (w0 + c) * a.x.s[2]);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            if (r - i * kStride < 0 || r - i * kStride >= kKernel || c - j * kStride < 0 || c - j * kStride >= kKernel)
              continue;
#pragma unroll
            for (int l = 0; l < kLength; ++l) collect<kKind>(total[i][j][l], widen(v.at[l]));
          }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (oh + i >= a.axis[1].out || ow + j >= a.axis[2].out) continue;
      Vector<T> result;
      if constexpr (kKind == PoolKind::average) {
        const A size = tile_divisor<A>(a, at.d, oh + i, ow + j), inverse = reciprocal(size);
#pragma unroll
        for (int l = 0; l < kLength; ++l) total[i][j][l] = quotient(total[i][j][l], size, inverse);
      }
#pragma unroll
      for (int l = 0; l < kLength; ++l) result.at[l] = narrow<T>(total[i][j][l]);
      store_vector(y + at.n * a.y.n + at.c * kLength + at.d * a.y.s[0] + (oh + i) * a.y.s[1] + (ow + j) * a.y.s[2],
                   result);
    }
}

// 4 elements of a row.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
  T at[4];
};

// Planar, rows of neighbouring elements: 2 rows of 4 outputs. kPad: of W.
template <PoolKind kKind, int kKernel, int kStride, int kPad, class T>
__global__ void __launch_bounds__(kThreads, 3) pool_rows(TileArgs a, const T* x, T* y) {
  using A = Acc<T>;
  constexpr int kRows = kStride + kKernel, kColumns = 3 * kStride + kKernel;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= a.count) return;
  const TilePlace at = tile_place<false>(a, static_cast<uint32_t>(number));
  const int oh = 2 * at.h, ow = 4 * at.w, h0 = oh * kStride - a.axis[1].pad, w0 = ow * kStride;
  const WindowOf<int> d = a.axis[0].window(at.d);
  const int width = a.axis[2].in;
  const bool whole = a.wide && w0 + 4 * kStride <= width;
  A total[2][4];
#pragma unroll
  for (int i = 0; i < 8; ++i) total[i / 4][i % 4] = neutral<kKind, A>();
  const T* image = x + at.n * a.x.n + at.c * a.x.c;
  for (int k = 0; k < d.count; ++k)
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (h0 + r < 0 || h0 + r >= a.axis[1].in) continue;
      const T* row = image + (d.first + k * a.axis[0].dilation) * a.x.s[0] + (h0 + r) * a.x.s[1] + w0;
      // Column c is element c - kPad of the row from w0; those from 0 to 4 * kStride - 1 are whole vectors.
      A v[kColumns];
      Four<T> four[kStride] = {};
      if (whole) {
#pragma unroll
        for (int q = 0; q < kStride; ++q) four[q] = reinterpret_cast<const Four<T>*>(row)[q];
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int e = c - kPad;
        v[c] = neutral<kKind, A>();
        if (e >= 0 && e < 4 * kStride && whole) {
          v[c] = widen(four[(e < 0 ? 0 : e) / 4 % kStride].at[(e < 0 ? 0 : e) % 4]);
        } else if (w0 + e >= 0 && w0 + e < width) {
          v[c] = widen(row[e]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (r - i * kStride < 0 || r - i * kStride >= kKernel) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int t = 0; t < kKernel; ++t) collect<kKind>(total[i][j], v[j * kStride + t]);
      }
    }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (oh + i >= a.axis[1].out) continue;
    Four<T> result;
    T* to = y + at.n * a.y.n + at.c * a.y.c + at.d * a.y.s[0] + (oh + i) * a.y.s[1] + ow;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kKind == PoolKind::average) {
        const A size = tile_divisor<A>(a, at.d, oh + i, ow + j);
        total[i][j] = quotient(total[i][j], size, reciprocal(size));
      }
      result.at[j] = narrow<T>(total[i][j]);
    }
    const int left = a.axis[2].out - ow;
    if (a.wide && left >= 4) {
      *reinterpret_cast<Four<T>*>(to) = result;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (j < left) to[j] = result.at[j];
    }
  }
}

// A block an output of one channel, or of kLanes neighbouring ones: kThreads / kLanes rows of threads go through the
// taps, and their totals are joined by halves. Shared memory: kThreads totals.
template <PoolKind kKind, Leave kLeave, int kLanes, class T, class Code, class I>
__global__ void __launch_bounds__(kThreads)
    pool_large(PoolArgs<I> a, const T* x, Results<T, Code> to, I channels, Radix<Unsigned<I>> groups) {
  constexpr int kRows = kThreads / kLanes;
  using A = Acc<T>;
  auto* values = shared_memory<A>();
  I* taps = reinterpret_cast<I*>(values + kThreads);
  const int lane = static_cast<int>(threadIdx.x) % kLanes, row = static_cast<int>(threadIdx.x) / kLanes;
  auto rest = static_cast<Unsigned<I>>(blockIdx.x);
  Place<I> at;
  at.c = static_cast<I>(groups.split(rest)) * kLanes + lane;
  at.s[2] = static_cast<I>(a.y.size[2].split(rest));
  at.s[1] = static_cast<I>(a.y.size[1].split(rest));
  at.s[0] = static_cast<I>(a.y.size[0].split(rest));
  at.n = static_cast<I>(rest);
  const bool real = at.c < channels;
  const WindowOf<I> d = a.axis[0].window(at.s[0]), h = a.axis[1].window(at.s[1]), w = a.axis[2].window(at.s[2]);
  Total<kKind, 1, A, I> total;
  total.clear();
  const I count = real ? d.count * h.count * w.count : 0;
  const T* image = x + at.n * a.x.stride.n + at.c * a.x.stride.c;
  // Taps as numbers of mixed radix: kRows is added to them, so that only the first ones are divided.
  struct Digits { I i, j, k; };
  auto digits = [&](I n) -> Digits {
    const I across = n / w.count, down = across / h.count;
    return {down, across - down * h.count, n - across * w.count};
  };
  Digits tap_at{0, 0, 0}, step{0, 0, 0};
  if (row < count) tap_at = digits(row), step = digits(kRows);
  for (I n = row; n < count; n += kRows) {
    const I offset = (d.first + tap_at.i * a.axis[0].dilation) * a.x.stride.s[0] +
                     (h.first + tap_at.j * a.axis[1].dilation) * a.x.stride.s[1] +
                     (w.first + tap_at.k * a.axis[2].dilation) * a.x.stride.s[2];
    const I tap = ((d.tap + tap_at.i) * a.axis[1].kernel + h.tap + tap_at.j) * a.axis[2].kernel + w.tap + tap_at.k;
    total.take(0, widen(image[offset]), tap, a.norm);
    tap_at.k += step.k, tap_at.j += step.j, tap_at.i += step.i;
    if (tap_at.k >= w.count) tap_at.k -= w.count, ++tap_at.j;
    if (tap_at.j >= h.count) tap_at.j -= h.count, ++tap_at.i;
  }
  for (int half = kRows / 2; half > 0; half /= 2) {
    values[threadIdx.x] = total.value[0];
    taps[threadIdx.x] = total.tap[0];
    __syncthreads();
    if (row < half) total.join(0, values[threadIdx.x + half * kLanes], taps[threadIdx.x + half * kLanes]);
    __syncthreads();
  }
  if (row == 0 && real) leave<kKind, kLeave>(a, at, total, to);
}

// What the gradient reads of the windows, besides dy.
template <class T, class Code>
struct Sources {
  const T* dy;
  const T* x;  // lp
  const int64_t* indices;  // a maximum's positions
  const Code* codes;  // or its taps
  const Acc<T>* factors;  // lp
};

template <PoolKind kKind, bool kInner, int kLength, class T, class Code, class I>
__global__ void __launch_bounds__(kThreads, 3) pool_gather(PoolArgs<I> a, Sources<T, Code> from, T* dx) {
  using A = Acc<T>;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= a.x.count) return;
  const Place<I> at = a.x.template place<kInner, kLength>(number);
  RangeOf<I> range[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) range[i] = a.axis[i].touching(at.s[i]);
  // The tap by which the window at o covers this element, or -1.
  auto tap_of = [&](int i, I o) { return a.axis[i].tap_of(at.s[i], o); };
  const int64_t own = (static_cast<int64_t>(at.s[0]) * a.axis[1].in + at.s[1]) * a.axis[2].in + at.s[2];
  A sum[kLength] = {}, slope[kLength];
  if constexpr (kKind == PoolKind::lp) slope[0] = a.norm == 1 ? A(1) : power(widen(from.x[a.x.offset(at)]), a.norm - 1);
  Place<I> o = at;
  for (o.s[0] = range[0].begin; o.s[0] < range[0].end; ++o.s[0]) {
    const I td = tap_of(0, o.s[0]);
    if (td < 0) continue;
    for (o.s[1] = range[1].begin; o.s[1] < range[1].end; ++o.s[1]) {
      const I th = tap_of(1, o.s[1]);
      if (th < 0) continue;
      for (o.s[2] = range[2].begin; o.s[2] < range[2].end; ++o.s[2]) {
        const I tw = tap_of(2, o.s[2]);
        if (tw < 0) continue;
        const I tap = (td * a.axis[1].kernel + th) * a.axis[2].kernel + tw;
        const T* g = from.dy + a.y.offset(o);
        A share[kLength];
        if constexpr (kLength > 1) {
          const Vector<T> v = load_vector(g);
#pragma unroll
          for (int i = 0; i < kLength; ++i) share[i] = widen(v.at[i]);
        } else if constexpr (kKind != PoolKind::lp) {
          share[0] = widen(*g);
        }
        if constexpr (kKind == PoolKind::max) {
#pragma unroll
          for (int i = 0; i < kLength; ++i) {
            Place<I> one = o;
            one.c += i;
            const bool won = from.indices ? from.indices[offset_of(one, a.indices)] == own
                                          : from.codes[offset_of(one, a.codes)] == static_cast<Code>(tap);
            sum[i] += won ? share[i] : A(0);
          }
        }
        if constexpr (kKind == PoolKind::average) {
          const A size = static_cast<A>(divisor_of(a, o.s)), inverse = reciprocal(size);
#pragma unroll
          for (int i = 0; i < kLength; ++i) sum[i] += quotient(share[i], size, inverse);
        }
        if constexpr (kKind == PoolKind::lp) sum[0] += from.factors[offset_of(o, a.codes)] * slope[0];
      }
    }
  }
  T* to = dx + offset_of(at, a.dx);
  if constexpr (kLength > 1) {
    Vector<T> out;
#pragma unroll
    for (int i = 0; i < kLength; ++i) out.at[i] = narrow<T>(sum[i]);
    store_vector(to, out);
  } else {
    *to = narrow<T>(sum[0]);
  }
}

// --- on the host -------------------------------------------------------------------------------------------------

// The memory order that the threads follow, and the width of their loads.
enum class Path { planar, inner, vectors, wide };

bool vector_strides(const Strides& s, int64_t length) {
  return s.c == 1 && s.n % length == 0 && s.s[0] % length == 0 && s.s[1] % length == 0 && s.s[2] % length == 0;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int64_t reach_of(int64_t N, int64_t C, const int64_t size[3], const Strides& s) {
  auto far = [](int64_t n, int64_t stride) {
    int64_t r = 0;
    if (__builtin_mul_overflow(n - 1, stride < 0 ? -stride : stride, &r)) return kMost32 + 1;
    return r > kMost32 ? kMost32 + 1 : r;
  };
  return far(N, s.n) + far(C, s.c) + far(size[0], s.s[0]) + far(size[1], s.s[1]) + far(size[2], s.s[2]);
}

struct Sizes {
  int64_t in[3], out[3];
  explicit Sizes(const Pool& p) {
    for (int i = 0; i < 3; ++i) in[i] = p.axis[i].in, out[i] = p.axis[i].out;
  }
};

// Whether every index and offset of a call fits in 32 bits.
bool small(const Pool& p, const Strides& in, const Strides& out, const Strides& other) {
  const Sizes size(p);
  for (const auto& axis : p.axis)
    if (axis.in + axis.pad + axis.pad_after + axis.kernel * axis.dilation + axis.stride > kMost32 / 2 ||
        axis.out * axis.stride > kMost32 ||
        (axis.adaptive && std::max(axis.in, axis.out) > DeviceAxis<int32_t>::kMostAdaptive))
      return false;
  return p.N * p.C * p.in_pixels() <= kMost32 && p.N * p.C * p.out_pixels() <= kMost32 && p.taps() <= kMost32 &&
         p.divisor <= kMost32 && reach_of(p.N, p.C, size.in, in) <= kMost32 &&
         reach_of(p.N, p.C, size.out, out) <= kMost32 &&
         std::max(reach_of(p.N, p.C, size.in, other), reach_of(p.N, p.C, size.out, other)) <= kMost32;
}

// Adaptive axes beyond what their dividers take.
bool too_long(const Pool& p) {
  return std::any_of(std::begin(p.axis), std::end(p.axis), [](const ops::Axis& axis) {
    return axis.adaptive && std::max(axis.in, axis.out) > DeviceAxis<int64_t>::kMostAdaptive;
  });
}

template <class I>
Place<I> place_of(const Strides& s) {
  return {static_cast<I>(s.n),
          static_cast<I>(s.c),
          {static_cast<I>(s.s[0]), static_cast<I>(s.s[1]), static_cast<I>(s.s[2])}};
}

template <class I>
Grid<I> grid_of(const Pool& p, const int64_t size[3], const Strides& s, int64_t length) {
  Grid<I> g{};
  g.stride = place_of<I>(s);
  g.channels = Radix<Unsigned<I>>(p.C / length);
  for (int i = 0; i < 3; ++i) g.size[i] = Radix<Unsigned<I>>(size[i]);
  g.images = static_cast<I>(p.N);
  g.count = p.N * (p.C / length) * size[0] * size[1] * size[2];
  return g;
}

template <class I>
PoolArgs<I> args_of(const Pool& p, const Strides& xs, const Strides& ys, int64_t length) {
  PoolArgs<I> a{};
  for (int i = 0; i < 3; ++i) a.axis[i] = DeviceAxis<I>(p.axis[i]);
  const Sizes size(p);
  a.x = grid_of<I>(p, size.in, xs, length), a.y = grid_of<I>(p, size.out, ys, length);
  a.count_include_pad = p.count_include_pad;
  a.divisor = static_cast<I>(p.divisor);
  a.norm = p.norm;
  return a;
}

// Dense strides of the workspace's codes or factors, channels innermost or not.
Strides dense(const Pool& p, bool inner) {
  Strides s{};
  s.s[2] = inner ? p.C : 1;
  s.s[1] = s.s[2] * p.axis[2].out;
  s.s[0] = s.s[1] * p.axis[1].out;
  s.c = inner ? 1 : s.s[0] * p.axis[0].out;
  s.n = p.C * p.out_pixels();
  return s;
}

Status blocks_of(int64_t count, dim3* grid) {
  const int64_t blocks = ceil_div(count, kThreads);
  if (blocks > kMost32) return Status::overflow;
  *grid = dim3(static_cast<unsigned>(blocks));
  return Status::ok;
}

bool is_large(const Pool& p) {
  int64_t most = 1;
  for (const auto& axis : p.axis) most *= std::min(axis.kernel, axis.in);
  return most > kLargeWindow;
}

template <PoolKind kKind, Leave kLeave, class T, class Code>
Status run_windows(const Pool& p, Path path, const Strides& xs, const Strides& ys, const Strides& is, const Strides& cs,
                   const T* x, const Results<T, Code>& to, const Queue& queue) {
  constexpr int kVector = Vector<T>::kLength;
  const bool inner = path == Path::inner || path == Path::vectors;
  auto finish = [&](auto args) {
    using I = decltype(args.divisor);
    args.indices = place_of<I>(is), args.codes = place_of<I>(cs);
    return args;
  };
  dim3 grid;
  if (is_large(p)) {
    const int64_t outputs = p.N * p.out_pixels();
    auto run = [&](auto zero, auto lanes) {
      using I = decltype(zero);
      constexpr int kLanes = decltype(lanes)::value;
      const int64_t blocks = outputs * ceil_div(p.C, kLanes);
      if (blocks > kMost32) return Status::overflow;
      return launch(&pool_large<kKind, kLeave, kLanes, T, Code, I>, dim3(static_cast<unsigned>(blocks)), kThreads,
                    kThreads * (sizeof(Acc<T>) + sizeof(I)), queue, finish(args_of<I>(p, xs, ys, 1)), x, to,
                    static_cast<I>(p.C), Radix<Unsigned<I>>(ceil_div(p.C, kLanes)));
    };
    using One = std::integral_constant<int, 1>;
    using Many = std::integral_constant<int, 32>;
    if (path == Path::wide) return run(int64_t{}, One{});
    return inner ? run(int32_t{}, Many{}) : run(int32_t{}, One{});
  }
  auto run = [&](auto zero, auto in, auto length) {
    using I = decltype(zero);
    constexpr bool kInner = decltype(in)::value;
    constexpr int kLength = decltype(length)::value;
    const PoolArgs<I> args = finish(args_of<I>(p, xs, ys, kLength));
    const Status s = blocks_of(args.y.count, &grid);
    if (s != Status::ok) return s;
    return launch(&pool_windows<kKind, kLeave, kInner, kLength, T, Code, I>, grid, kThreads, 0, queue, args, x, to);
  };
  using One = std::integral_constant<int, 1>;
  if (path == Path::wide) return run(int64_t{}, std::false_type{}, One{});
  if constexpr (kKind != PoolKind::lp)
    if (path == Path::vectors) return run(int32_t{}, std::true_type{}, std::integral_constant<int, kVector>{});
  return inner ? run(int32_t{}, std::true_type{}, One{}) : run(int32_t{}, std::false_type{}, One{});
}

// Square windows in register tiles; `unsupported` where the layer has none.
template <PoolKind kKind, class T>
Status run_tiles(const Pool& p, Path path, const Strides& xs, const Strides& ys, const T* x, T* y, const Queue& queue) {
  const auto &h = p.axis[1], &w = p.axis[2];
  for (const auto& axis : p.axis)
    if (axis.adaptive) return Status::unsupported;
  if (h.kernel != w.kernel || h.stride != w.stride || h.dilation != 1 || w.dilation != 1) return Status::unsupported;
  const bool inner = path == Path::vectors;
  if (!inner && (path != Path::planar || xs.s[2] != 1 || ys.s[2] != 1)) return Status::unsupported;
  TileArgs a{};
  for (int i = 0; i < 3; ++i) a.axis[i] = DeviceAxis<int32_t>(p.axis[i]);
  a.x = place_of<int64_t>(xs), a.y = place_of<int64_t>(ys);
  const int64_t across = ceil_div(w.out, inner ? 2 : 4), down = ceil_div(h.out, 2);
  const int64_t channels = inner ? p.C / Vector<T>::kLength : p.C;
  const int64_t sizes[4] = {across, down, p.axis[0].out, channels};
  for (int i = 0; i < 4; ++i) a.by[i] = Divider(static_cast<uint32_t>(sizes[i]));
  a.count = p.N * channels * p.axis[0].out * down * across;
  a.count_include_pad = p.count_include_pad;
  a.divisor = static_cast<int32_t>(p.divisor);
  auto fours = [](const void* data, const Strides& s) {
    return reinterpret_cast<uintptr_t>(data) % alignof(Four<T>) == 0 && s.n % 4 == 0 && s.c % 4 == 0 &&
           s.s[0] % 4 == 0 && s.s[1] % 4 == 0;
  };
  a.wide = fours(x, xs) && fours(y, ys);
  dim3 grid;
  if (a.count > kMost32 || blocks_of(a.count, &grid) != Status::ok) return Status::unsupported;
  auto run = [&](auto* kernel) { return launch(kernel, grid, kThreads, 0, queue, a, x, y); };
  if (inner && h.kernel == 3 && h.stride == 1) return run(&pool_tiles<kKind, 3, 1, T>);
  if (inner && h.kernel == 3 && h.stride == 2) return run(&pool_tiles<kKind, 3, 2, T>);
  if (!inner && h.kernel == 2 && h.stride == 2 && w.pad == 0) return run(&pool_rows<kKind, 2, 2, 0, T>);
  if (!inner && h.kernel == 3 && h.stride == 1 && w.pad == 1) return run(&pool_rows<kKind, 3, 1, 1, T>);
  if (!inner && h.kernel == 3 && h.stride == 2 && w.pad == 0) return run(&pool_rows<kKind, 3, 2, 0, T>);
  if (!inner && h.kernel == 3 && h.stride == 2 && w.pad == 1) return run(&pool_rows<kKind, 3, 2, 1, T>);
  return Status::unsupported;
}

template <PoolKind kKind, class T, class Code>
Status run_gather(const Pool& p, Path path, const Strides& xs, const Strides& ys, const Strides& ds, const Strides& is,
                  const Strides& cs, const Sources<T, Code>& from, T* dx, const Queue& queue) {
  auto run = [&](auto zero, auto in, auto length) {
    using I = decltype(zero);
    constexpr bool kInner = decltype(in)::value;
    constexpr int kLength = decltype(length)::value;
    PoolArgs<I> args = args_of<I>(p, xs, ys, kLength);
    args.dx = place_of<I>(ds), args.indices = place_of<I>(is), args.codes = place_of<I>(cs);
    dim3 grid;
    const Status s = blocks_of(args.x.count, &grid);
    if (s != Status::ok) return s;
    return launch(&pool_gather<kKind, kInner, kLength, T, Code, I>, grid, kThreads, 0, queue, args, from, dx);
  };
  using One = std::integral_constant<int, 1>;
  if (path == Path::wide) return run(int64_t{}, std::false_type{}, One{});
  if constexpr (kKind != PoolKind::lp)
    if (path == Path::vectors)
      return run(int32_t{}, std::true_type{}, std::integral_constant<int, Vector<T>::kLength>{});
  return path == Path::planar ? run(int32_t{}, std::false_type{}, One{}) : run(int32_t{}, std::true_type{}, One{});
}

// Codes of one byte where no tap's number is that of "none".
bool narrow_codes(const Pool& p) { return p.taps() < 255; }

}  // namespace

Status pool_forward(const PoolDesc& desc, const TensorView& x, const TensorView& y, const TensorView& indices,
                    const Queue& queue) {
  Pool p;
  Strides xs, ys, is;
  const Status s = ops::check_pool_forward(Device::cuda, desc, x, y, indices, &p, &xs, &ys, &is);
  if (s != Status::ok || p.N == 0 || p.out_pixels() == 0) return s;
  if (too_long(p)) return Status::overflow;
  return for_any_dtype(p.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    constexpr int kVector = Vector<T>::kLength;
    Path path = xs.c == 1 && ys.c == 1 && p.C > 1 ? Path::inner : Path::planar;
    if (!small(p, xs, ys, is))
      path = Path::wide;
    else if (p.C % kVector == 0 && vector_strides(xs, kVector) && vector_strides(ys, kVector) && aligned(x.data) &&
             aligned(y.data))
      path = Path::vectors;
    const auto* from = static_cast<const T*>(x.data);
    const Results<T, uint8_t> to{static_cast<T*>(y.data), static_cast<int64_t*>(indices.data), nullptr, nullptr,
                                 nullptr};
    if constexpr (!std::is_integral_v<T>) {
      Status tiled = Status::unsupported;
      if (p.kind == PoolKind::max && !indices.data)
        tiled = run_tiles<PoolKind::max, T>(p, path, xs, ys, from, to.y, queue);
      else if (p.kind == PoolKind::average)
        tiled = run_tiles<PoolKind::average, T>(p, path, xs, ys, from, to.y, queue);
      if (tiled != Status::unsupported) return tiled;
    }
    if (p.kind == PoolKind::max)
      return run_windows<PoolKind::max, Leave::result>(p, path, xs, ys, is, Strides{}, from, to, queue);
    if constexpr (!std::is_integral_v<T>) {
      if (p.kind == PoolKind::average)
        return run_windows<PoolKind::average, Leave::result>(p, path, xs, ys, is, Strides{}, from, to, queue);
      return run_windows<PoolKind::lp, Leave::result>(p, path, xs, ys, is, Strides{}, from, to, queue);
    }
    return Status::bad_dtype;
  });
}

int64_t pool_backward_workspace(const PoolDesc& desc, const TensorView& x, bool indices) {
  Pool p;
  if (ops::make_pool(desc, x, &p) != Status::ok) return 0;
  const int64_t outputs = p.N * p.C * p.out_pixels();
  if (p.kind == PoolKind::max) return indices ? 0 : narrow_codes(p) ? outputs : 4 * outputs;
  return p.kind == PoolKind::lp ? outputs * (x.dtype == DType::f64 ? 8 : 4) : 0;
}

Status pool_backward(const PoolDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& indices,
                     const TensorView& dx, const Queue& queue) {
  Pool p;
  Strides xs, ys, ds, is;
  const Status s = ops::check_pool_backward(Device::cuda, desc, dy, x, indices, dx, &p, &ys, &xs, &is, &ds);
  if (s != Status::ok || p.N == 0) return s;
  if (too_long(p)) return Status::overflow;
  if (p.taps() > kMost32 && p.kind == PoolKind::max && !indices.data) return Status::unsupported;
  if (queue.workspace_bytes < pool_backward_workspace(desc, x, indices.data != nullptr)) return Status::out_of_memory;
  return for_dtype(p.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    constexpr int kVector = Vector<T>::kLength;
    Path path = ds.c == 1 && ys.c == 1 && p.C > 1 ? Path::inner : Path::planar;
    const Strides cs = dense(p, path == Path::inner);
    if (!small(p, xs, ys, is) || !small(p, ds, ys, cs))
      path = Path::wide;
    else if (p.C % kVector == 0 && vector_strides(ds, kVector) && vector_strides(ys, kVector) && aligned(dx.data) &&
             aligned(dy.data))
      path = Path::vectors;
    // The pass over the windows reads x, whose order may be another one.
    const bool vectors = path == Path::vectors && vector_strides(xs, kVector) && aligned(x.data);
    const Path first = path == Path::vectors && !vectors ? Path::inner : path;
    const auto* g = static_cast<const T*>(dy.data);
    const auto* from = static_cast<const T*>(x.data);
    auto* to = static_cast<T*>(dx.data);
    if (p.kind == PoolKind::average)
      return run_gather<PoolKind::average, T, uint8_t>(p, path, ds, ys, ds, is, cs,
                                                       {g, nullptr, nullptr, nullptr, nullptr}, to, queue);
    if (p.kind == PoolKind::lp) {
      auto* factors = static_cast<Acc<T>*>(queue.workspace);
      const Status windows = run_windows<PoolKind::lp, Leave::factor, T, uint8_t>(
          p, first, xs, ys, is, cs, from, {nullptr, nullptr, nullptr, g, factors}, queue);
      if (windows != Status::ok) return windows;
      return run_gather<PoolKind::lp, T, uint8_t>(p, path, xs, ys, ds, is, cs, {g, from, nullptr, nullptr, factors}, to,
                                                  queue);
    }
    auto by_codes = [&](auto* codes) {
      using Code = Pointee<decltype(codes)>;
      if (!indices.data) {
        const Status windows = run_windows<PoolKind::max, Leave::code, T, Code>(
            p, first, xs, ys, is, cs, from, {nullptr, nullptr, codes, nullptr, nullptr}, queue);
        if (windows != Status::ok) return windows;
      }
      return run_gather<PoolKind::max, T, Code>(p, path, ds, ys, ds, is, cs,
                                                {g, nullptr, static_cast<const int64_t*>(indices.data), codes, nullptr},
                                                to, queue);
    };
    return narrow_codes(p) ? by_codes(static_cast<uint8_t*>(queue.workspace))
                           : by_codes(static_cast<uint32_t*>(queue.workspace));
  });
}

// --- by indices --------------------------------------------------------------------------------------------------

namespace {

struct SideArgs {
  int64_t N, C, size[3];
  Place<int64_t> stride;
};

SideArgs side_of(const Side& s, int64_t N, int64_t C) {
  return {N, C, {s.size[0], s.size[1], s.size[2]}, place_of<int64_t>(s.s)};
}

__device__ int64_t pixels_of(const SideArgs& s) { return s.size[0] * s.size[1] * s.size[2]; }

// Element i in the order N, C, D, H, W: its image and channel, and its offset.
__device__ int64_t offset_at(const SideArgs& s, int64_t plane, int64_t pixel) {
  const int64_t row = pixel / s.size[2];
  return plane / s.C * s.stride.n + plane % s.C * s.stride.c + row / s.size[1] * s.stride.s[0] +
         row % s.size[1] * s.stride.s[1] + pixel % s.size[2] * s.stride.s[2];
}

// The greatest number of those elements of x that go to a pixel, so that the last one wins in any order of threads.
__global__ void __launch_bounds__(kThreads)
    unpool_claim(SideArgs indexed, const int64_t* indices, int64_t pixels, int32_t* owner) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, each = pixels_of(indexed);
  if (i >= indexed.N * indexed.C * each) return;
  const int64_t plane = i / each, at = indices[offset_at(indexed, plane, i % each)];
  if (at >= 0 && at < pixels) atomicMax(owner + plane * pixels + at, static_cast<int32_t>(i % each));
}

__global__ void __launch_bounds__(kThreads) fill_owner(int32_t* owner, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) owner[i] = -1;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    unpool_gather(SideArgs small_side, SideArgs large, const int32_t* owner, const T* x, T* y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, each = pixels_of(large);
  if (i >= large.N * large.C * each) return;
  const int64_t plane = i / each, from = owner[i];
  y[offset_at(large, plane, i % each)] = from < 0 ? narrow<T>(Acc<T>(0)) : x[offset_at(small_side, plane, from)];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    take_indices(SideArgs small_side, SideArgs indexed, SideArgs large, const int64_t* indices, const T* dy, T* dx) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, each = pixels_of(small_side);
  if (i >= small_side.N * small_side.C * each) return;
  const int64_t plane = i / each, at = indices[offset_at(indexed, plane, i % each)];
  const bool inside = at >= 0 && at < pixels_of(large);
  dx[offset_at(small_side, plane, i % each)] =
      inside ? dy[offset_at(large, plane, at)] : narrow<T>(std::numeric_limits<Acc<T>>::quiet_NaN());
}

}  // namespace

int64_t unpool_forward_workspace(const TensorView& y) {
  int64_t n = 4;
  for (int i = 0; i < y.ndim; ++i) n *= y.shape[i];
  return n;
}

Status unpool_forward(int32_t spatial, bool channels_last, const TensorView& x, const TensorView& indices,
                      const TensorView& y, const Queue& queue) {
  int64_t N, C;
  Side small_side, indexed, large;
  Status s =
      ops::unpool_sides(Device::cuda, spatial, channels_last, x, indices, y, &N, &C, &small_side, &indexed, &large);
  const int64_t pixels = s == Status::ok ? large.pixels() : 0, total = s == Status::ok ? N * C * pixels : 0;
  if (s != Status::ok || total == 0) return s;
  if (small_side.pixels() > kMost32) return Status::overflow;
  if (queue.workspace_bytes < 4 * total) return Status::out_of_memory;
  auto* owner = static_cast<int32_t*>(queue.workspace);
  dim3 all, claims;
  if ((s = blocks_of(total, &all)) != Status::ok) return s;
  if ((s = blocks_of(N * C * small_side.pixels(), &claims)) != Status::ok) return s;
  if ((s = launch(&fill_owner, all, kThreads, 0, queue, owner, total)) != Status::ok) return s;
  const SideArgs of = side_of(small_side, N, C), at = side_of(indexed, N, C), to = side_of(large, N, C);
  if (small_side.pixels() > 0 && (s = launch(&unpool_claim, claims, kThreads, 0, queue, at,
                                             static_cast<const int64_t*>(indices.data), pixels, owner)) != Status::ok)
    return s;
  return for_dtype(y.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    return launch(&unpool_gather<T>, all, kThreads, 0, queue, of, to, owner, static_cast<const T*>(x.data),
                  static_cast<T*>(y.data));
  });
}

Status unpool_backward(int32_t spatial, bool channels_last, const TensorView& dy, const TensorView& indices,
                       const TensorView& dx, const Queue& queue) {
  int64_t N, C;
  Side small_side, indexed, large;
  Status s =
      ops::unpool_sides(Device::cuda, spatial, channels_last, dx, indices, dy, &N, &C, &small_side, &indexed, &large);
  const int64_t total = s == Status::ok ? N * C * small_side.pixels() : 0;
  dim3 grid;
  if (s != Status::ok || total == 0 || (s = blocks_of(total, &grid)) != Status::ok) return s;
  return for_dtype(dy.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    return launch(&take_indices<T>, grid, kThreads, 0, queue, side_of(small_side, N, C), side_of(indexed, N, C),
                  side_of(large, N, C), static_cast<const int64_t*>(indices.data), static_cast<const T*>(dy.data),
                  static_cast<T*>(dx.data));
  });
}

}  // namespace fastconv::cuda
