// Normalisation, forward and backward, and local response normalisation.
//
// x is (N, C, P) in memory order planes (pixels innermost) or columns (channels innermost). What shares a mean is a
// set: a channel of the batch, a group of channels of an image, a row, the channels of a pixel. A call is
//
//   reduce    a block goes through a piece of a set (or, where neighbouring sets are neighbours in memory, of 32 sets):
//             its threads sum about a shift of their own, the first element that each of them reads, in the
//             accumulator's type; their moments are merged in double, by halves
//   finish    a thread a set merges the pieces in their order
//   apply     elementwise
//
// Pieces follow from the size of a set alone, and no sum depends on how many sets there are: but for batch norm's own
// statistics, no bit depends on the batch.
//
// Bytes: x twice and y once (training, group, layer); x and y once in inference; of a gradient x and dy twice, dx once,
// and once more for dw and db where those are sums over other sets than the mean is. Flops: some ten an element.
// Registers: reduce holds a shift, two or three sums and offsets, apply 16 bytes of each operand and their wide
// elements: at most 64, so that 4 blocks of 256 share a multiprocessor. Shared memory: 256 partial sums of 24 bytes.
//
// Batch norm is two kernels a direction (a memset of tickets before them): channel_sums reads x (and dy) by 16 bytes, 4
// vectors of a thread under way (2 of each operand in the backward pass), and the last block of a channel, or of a row
// of 8 vectors of channels, to end merges its pieces in their order: which block that is leaves no trace in the bits.
// apply then goes through the blocks from the end: what channel_sums read last is still in L2. Registers: 8 channels of
// a thread with a shift and two sums, or three sums, a mean and a factor: at most 128, 2 blocks a multiprocessor.
//
// gate: reduce registers 64 shared 7168
// gate: finish_moments registers 64
// gate: given_moments registers 32
// gate: finish_slopes registers 64
// gate: channel_sums registers 128 shared 7424
// gate: apply registers 64
// gate: apply_gradient registers 64
// gate: clear registers 16
// gate: response registers 64
// gate: channel_sums vector loads
// gate: apply vectors
// gate: apply_gradient vectors
#include "cuda/activation.cuh"
#include "cuda/index.h"
#include "cuda/launch.h"
#include "ops/norm.h"

namespace fastconv::cuda {
namespace {

using namespace ops::norms;

constexpr int kThreads = 256, kLanes = 32;
// Elements of a piece, by rows and (a set) by lanes; fewer pieces than kMostPieces.
constexpr int64_t kRowPiece = 8192, kLanePiece = 512, kMostPieces = 2048;
// Sets of at most so many elements have 32 threads each.
constexpr int64_t kSmallSet = 1024;

struct Partial { double a, b, c; };

// A mean in two numbers and the reciprocal of the deviation, of a set.
template <class A>
struct Stat {
  A high, low, inv;
};
// What the gradient of a set subtracts: dx = inv * (g * w - first - (xhat - low) * second).
template <class A>
struct Slope {
  A first, second, low;
};

// Sets and their elements, each of two axes; and, of an element, the number of the statistics that belong to it.
struct Sets {
  int64_t count = 0, size = 0;
  Divider inner_sets, inner_elements;
  int64_t piece = 0, pieces = 1;
  bool lanes = false;
  // stat = s1 * stat_s1 + s2 / stat_by * stat_s2 + e1 * stat_e1 + e2 * stat_e2; weight likewise, without a division.
  int64_t stat_s1 = 0, stat_s2 = 0, stat_e1 = 0, stat_e2 = 0;
  Divider stat_by;
  int64_t weight_s2 = 0, weight_e1 = 0, weight_e2 = 0;
};
// Strides of one tensor along the axes of sets and elements.
struct Lies { int64_t s1, s2, e1, e2; };

template <class T>
struct Vectors {
  const T* weight;
  int64_t weight_stride;
  const T* bias;
  int64_t bias_stride;
};

template <class T>
struct Reads {
  const T *x, *dy, *y;
  Lies at_x, at_dy, at_y;
  bool clamped;
  Acc<T> lower, upper;  // a clamp's result y: no gradient at its bounds
};

enum class Reduce { moments, slopes };

// One moments or slopes of a thread, merged into another's.
template <Reduce kReduce>
__device__ void merge(Partial& to, int& n, const Partial& from, int m) {
  if constexpr (kReduce == Reduce::slopes) {
    to.a += from.a, to.b += from.b, to.c += from.c;
  } else if (m > 0) {
    // Chan, Golub and LeVeque: means and sums of squares about them.
    const double delta = from.a - to.a, all = static_cast<double>(n) + m;
    to.b += from.b + delta * delta * (static_cast<double>(n) * m / all);
    to.a = n ? to.a + delta * (m / all) : from.a;
    if (!n) to.b = from.b;
    n += m;
  }
}

// kPer: threads of a set.
template <Reduce kReduce, bool kByLanes, int kPer, class T>
__global__ void __launch_bounds__(kThreads)
    reduce(Sets sets, Reads<T> r, Vectors<T> v, const Stat<Acc<T>>* stats, Partial* partials) {
  using A = Acc<T>;
  auto* shared = shared_memory<Partial>();
  int* counts = reinterpret_cast<int*>(shared + kThreads);
  const int tid = static_cast<int>(threadIdx.x);
  const int own = kByLanes ? tid % kLanes : tid / kPer, t = kByLanes ? tid / kLanes : tid % kPer;
  constexpr int kOf = kByLanes ? kLanes : kThreads / kPer, kStep = kByLanes ? kThreads / kLanes : kPer;
  const int64_t set = static_cast<int64_t>(blockIdx.x) * kOf + own;
  const bool real = set < sets.count;
  const auto s = static_cast<uint32_t>(real ? set : 0);
  const uint32_t s1 = sets.inner_sets.quotient(s), s2 = s - s1 * sets.inner_sets.divisor;
  const T* x = r.x + s1 * r.at_x.s1 + s2 * r.at_x.s2;
  const T* dy = kReduce == Reduce::slopes ? r.dy + s1 * r.at_dy.s1 + s2 * r.at_dy.s2 : nullptr;
  const T* y = r.clamped ? r.y + s1 * r.at_y.s1 + s2 * r.at_y.s2 : nullptr;
  const int64_t stat = s1 * sets.stat_s1 + sets.stat_by.quotient(s2) * sets.stat_s2;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * sets.piece;
  const int64_t end = begin + sets.piece < sets.size ? begin + sets.piece : sets.size;
  A shift = 0, first = 0, second = 0, third = 0;
  int n = 0;
  for (int64_t e = begin + t; real && e < end; e += kStep) {
    const uint32_t e1 = sets.inner_elements.quotient(static_cast<uint32_t>(e));
    const uint32_t e2 = static_cast<uint32_t>(e) - e1 * sets.inner_elements.divisor;
    const A value = widen(x[e1 * r.at_x.e1 + e2 * r.at_x.e2]);
    if constexpr (kReduce == Reduce::moments) {
      if (n == 0) shift = value;
      const A d = value - shift;
      first += d;
      second += d * d;
    } else {
      A g = widen(dy[e1 * r.at_dy.e1 + e2 * r.at_dy.e2]);
      if (r.clamped) {
        const A result = widen(y[e1 * r.at_y.e1 + e2 * r.at_y.e2]);
        if (result <= r.lower || result >= r.upper) g = 0;
      }
      if (v.weight)
        g *= widen(v.weight[(s2 * sets.weight_s2 + e1 * sets.weight_e1 + e2 * sets.weight_e2) * v.weight_stride]);
      const Stat<A> at = stats[stat + e1 * sets.stat_e1 + e2 * sets.stat_e2];
      const A hat = (value - at.high - at.low) * at.inv;
      first += g;
      second += g * hat;
      third += hat;
    }
    ++n;
  }
  Partial sum{static_cast<double>(first), static_cast<double>(second), static_cast<double>(third)};
  if constexpr (kReduce == Reduce::moments) {
    if (n > 0) {
      sum.a = static_cast<double>(first) / n;
      sum.b = static_cast<double>(second) - sum.a * static_cast<double>(first);
      if (sum.b < 0) sum.b = 0;
      sum.a += static_cast<double>(shift);
    }
  }
  for (int half = kStep / 2; half > 0; half /= 2) {
    shared[tid] = sum, counts[tid] = n;
    __syncthreads();
    const int other = tid + half * (kByLanes ? kLanes : 1);
    if (t < half) merge<kReduce>(sum, n, shared[other], counts[other]);
    __syncthreads();
  }
  if (t == 0 && real) partials[set * sets.pieces + blockIdx.y] = sum;
}

template <class T>
struct Outputs {
  T *mean, *inv_std, *running_mean, *running_var;
  int64_t mean_stride, inv_stride, running_mean_stride, running_var_stride;
  double eps, momentum;
  bool unbiased;
};

// In double: the running statistics, of whichever dtype.
template <class T>
__device__ void blend(T* to, double momentum, double value) {
  *to = narrow<T>(static_cast<Acc<T>>((1 - momentum) * static_cast<double>(widen(*to)) + momentum * value));
}

// What a set's moments come to.
template <class T>
__device__ void leave_moments(int64_t set, const Partial& sum, double n, Stat<Acc<T>>* stats, const Outputs<T>& out) {
  using A = Acc<T>;
  const double inv = 1 / sqrt(sum.b / n + out.eps);
  const A high = static_cast<A>(sum.a);
  const double low = sum.a - static_cast<double>(high);
  stats[set] = {high, low == low ? static_cast<A>(low) : A(0), static_cast<A>(inv)};
  if (out.mean) out.mean[set * out.mean_stride] = narrow<T>(high);
  if (out.inv_std) out.inv_std[set * out.inv_stride] = narrow<T>(static_cast<A>(inv));
  if (out.running_mean) blend(out.running_mean + set * out.running_mean_stride, out.momentum, sum.a);
  if (out.running_var)
    blend(out.running_var + set * out.running_var_stride, out.momentum, sum.b / (out.unbiased ? n - 1 : n));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_moments(Sets sets, const Partial* partials, Stat<Acc<T>>* stats, Outputs<T> out) {
  const int64_t set = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (set >= sets.count) return;
  Partial sum{0, 0, 0};
  double n = 0;
  for (int64_t k = 0; k < sets.pieces; ++k) {
    const Partial next = partials[set * sets.pieces + k];
    const int64_t left = sets.size - k * sets.piece;
    const double m = static_cast<double>(left < sets.piece ? left : sets.piece), delta = next.a - sum.a;
    sum.b = k ? sum.b + next.b + delta * delta * (n * m / (n + m)) : next.b;
    sum.a = k ? sum.a + delta * (m / (n + m)) : next.a;
    n += m;
  }
  leave_moments(set, sum, n, stats, out);
}

// The statistics of inference, or those that the forward pass of a gradient left: a variance, or the reciprocal itself.
template <class T>
__global__ void __launch_bounds__(kThreads)
    given_moments(int64_t count, const T* mean, int64_t mean_stride, const T* other, int64_t other_stride,
                  bool variance, double eps, Stat<Acc<T>>* stats) {
  using A = Acc<T>;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= count) return;
  const auto value = static_cast<double>(widen(other[c * other_stride]));
  stats[c] = {widen(mean[c * mean_stride]), A(0), static_cast<A>(variance ? 1 / sqrt(value + eps) : value)};
}

// What the gradient of a channel subtracts and leaves.
template <class T>
struct Weights {
  const T* weight;
  T *dw, *db;
  int64_t weight_stride, dw_stride, db_stride;
};

// What the gradient of a set subtracts, and the gradients of weight and bias; each may be absent. `given`: the mean is
// one that has been rounded, whose error is the mean of xhat.
template <class T>
__device__ void leave_slopes(int64_t set, const Partial& sum, double n, bool given, Slope<Acc<T>>* slopes,
                             const Weights<T>& own) {
  using A = Acc<T>;
  const double low = given ? sum.c / n : 0, product = sum.b - low * sum.a;
  if (own.dw) own.dw[set * own.dw_stride] = narrow<T>(static_cast<A>(product));
  if (own.db) own.db[set * own.db_stride] = narrow<T>(static_cast<A>(sum.a));
  if (!slopes) return;
  const double w = own.weight ? static_cast<double>(widen(own.weight[set * own.weight_stride])) : 1;
  slopes[set] = {static_cast<A>(sum.a * w / n), static_cast<A>(product * w / n), static_cast<A>(low)};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_slopes(Sets sets, const Partial* partials, Slope<Acc<T>>* slopes, Weights<T> own) {
  const int64_t set = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (set >= sets.count) return;
  Partial sum{0, 0, 0};
  for (int64_t k = 0; k < sets.pieces; ++k) {
    const Partial next = partials[set * sets.pieces + k];
    sum.a += next.a, sum.b += next.b, sum.c += next.c;
  }
  leave_slopes(set, sum, static_cast<double>(sets.size), false, slopes, own);
}

template <int kLength, class T>
__device__ void read(const T* from, Acc<T> (&to)[kLength]) {
  if constexpr (kLength > 1) {
    const Vector<T> v = load_vector(from);
#pragma unroll
    for (int l = 0; l < kLength; ++l) to[l] = widen(v.at[l]);
  } else {
    to[0] = widen(*from);
  }
}

// --- batch norm --------------------------------------------------------------------------------------------------

template <class T>
struct ChannelSums {
  int64_t C;
  Lay at_x, at_dy, at_y;
  Divider by_row;  // vectors of a plane; pixels of an image
  int64_t count;  // vectors of a channel; pixels
  int64_t piece, pieces;
  int lanes;  // a power of two
  double n;
  const T *x, *dy, *y;
  bool clamped;
  Acc<T> lower, upper;
  const T *mean, *inv;  // slopes: of the forward pass
  int64_t mean_stride, inv_stride;
  Partial* partials;  // [piece][channel]
  unsigned* tickets;  // zero before the launch
  Stat<Acc<T>>* stats;
  Slope<Acc<T>>* slopes;
  Outputs<T> out;
  Weights<T> own;
};

// The numbers of elements of a piece, of [begin, end), that the thread at `first` with a step of `step` takes.
__device__ __forceinline__ int taken(int64_t begin, int64_t end, int first, int step) {
  const int64_t left = end - begin - first;
  return left <= 0 ? 0 : static_cast<int>((static_cast<unsigned>(left) + step - 1) / static_cast<unsigned>(step));
}

// kByLanes: a block has `lanes` vectors of channels and a piece of the pixels, 256 / lanes rows of threads; else a
// piece of one channel, whose vectors are of pixels.
template <Reduce kReduce, bool kByLanes, int kLength, class T>
__global__ void __launch_bounds__(kThreads, 2) channel_sums(ChannelSums<T> a) {
  using A = Acc<T>;
  constexpr bool kMoments = kReduce == Reduce::moments;
  // Sums of a thread: by channels, or one for all of its elements.
  constexpr int kSums = kByLanes ? kLength : 1, kUnder = kMoments ? 4 : 2;
  auto* shared = shared_memory<Partial>();
  int* counts = reinterpret_cast<int*>(shared + kThreads);
  int* last = counts + kThreads;
  const int tid = static_cast<int>(threadIdx.x);
  const int lanes = kByLanes ? a.lanes : 1, lane = tid & (lanes - 1), t = tid / lanes, rows = kThreads / lanes;
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x) * (kByLanes ? lanes * kLength : 1);
  const int64_t channel = first_channel + (kByLanes ? lane * kLength : 0);
  const bool real = channel < a.C;
  const int64_t begin = blockIdx.y * a.piece, end = begin + a.piece < a.count ? begin + a.piece : a.count;
  const int mine = real ? taken(begin, end, t, rows) : 0;
  A shift[kSums] = {}, first[kSums] = {}, second[kSums] = {}, third[kSums] = {};
  A mean[kSums] = {}, inv[kSums] = {};
  if constexpr (!kMoments) {
    if (real) {
#pragma unroll
      for (int l = 0; l < kSums; ++l) {
        mean[l] = widen(a.mean[(channel + l) * a.mean_stride]);
        inv[l] = widen(a.inv[(channel + l) * a.inv_stride]);
      }
    }
  }
  // The offset of the i-th element (vector) of this thread.
  auto offset = [&](const Lay& at, int64_t i) {
    const auto e = static_cast<uint32_t>(begin + t + i * rows);
    const uint32_t n = a.by_row.quotient(e), p = e - n * a.by_row.divisor;
    return n * at.n + channel * at.c + p * (kByLanes ? at.p : int64_t{kLength});
  };
  if (mine > 0 && kMoments) {
    A start[kLength];
    read(a.x + offset(a.at_x, 0), start);
#pragma unroll
    for (int l = 0; l < kSums; ++l) shift[l] = start[l];
  }
  auto add = [&](const A(&v)[kLength], const A(&g)[kLength]) {
#pragma unroll
    for (int l = 0; l < kLength; ++l) {
      const int k = kByLanes ? l : 0;
      if constexpr (kMoments) {
        const A d = v[l] - shift[k];
        first[k] += d;
        second[k] += d * d;
      } else {
        const A hat = (v[l] - mean[k]) * inv[k];
        first[k] += g[l];
        second[k] += g[l] * hat;
        third[k] += hat;
      }
    }
  };
  using Loaded = std::conditional_t<kLength == 1, T, Vector<T>>;
  auto load = [&](const T* from) { return *reinterpret_cast<const Loaded*>(from); };
  auto wide = [&](const Loaded& v, A(&to)[kLength]) {
    if constexpr (kLength == 1) {
      to[0] = widen(v);
    } else {
#pragma unroll
      for (int l = 0; l < kLength; ++l) to[l] = widen(v.at[l]);
    }
  };
  for (int i = 0; i < mine; i += kUnder) {
    Loaded x[kUnder], dy[kMoments ? 1 : kUnder], y[kMoments ? 1 : kUnder];
#pragma unroll
    for (int u = 0; u < kUnder; ++u) {
      if (i + u >= mine) continue;
      x[u] = load(a.x + offset(a.at_x, i + u));
      if constexpr (!kMoments) {
        dy[u] = load(a.dy + offset(a.at_dy, i + u));
        if (a.clamped) y[u] = load(a.y + offset(a.at_y, i + u));
      }
    }
#pragma unroll
    for (int u = 0; u < kUnder; ++u) {
      if (i + u >= mine) continue;
      A v[kLength], g[kLength] = {};
      wide(x[u], v);
      if constexpr (!kMoments) {
        wide(dy[u], g);
        if (a.clamped) {
          A result[kLength];
          wide(y[u], result);
#pragma unroll
          for (int l = 0; l < kLength; ++l)
            if (result[l] <= a.lower || result[l] >= a.upper) g[l] = 0;
        }
      }
      add(v, g);
    }
  }

  // The threads of a channel are joined by halves, one of a thread's channels after the other.
  const int64_t of_piece = static_cast<int64_t>(blockIdx.y) * a.C;
#pragma unroll
  for (int l = 0; l < kSums; ++l) {
    int n = mine * (kByLanes ? 1 : kLength);
    Partial sum{static_cast<double>(first[l]), static_cast<double>(second[l]), static_cast<double>(third[l])};
    if constexpr (kMoments) {
      if (n > 0) {
        sum.a = static_cast<double>(first[l]) / n;
        sum.b = static_cast<double>(second[l]) - sum.a * static_cast<double>(first[l]);
        if (sum.b < 0) sum.b = 0;
        sum.a += static_cast<double>(shift[l]);
      }
    }
    for (int half = rows / 2; half > 0; half /= 2) {
      shared[tid] = sum, counts[tid] = n;
      __syncthreads();
      if (t < half) merge<kReduce>(sum, n, shared[tid + half * lanes], counts[tid + half * lanes]);
      __syncthreads();
    }
    if (t == 0 && real) a.partials[of_piece + channel + l] = sum;
  }

  // The last block to come here has all pieces.
  __threadfence();
  __syncthreads();
  if (tid == 0) *last = atomicAdd(a.tickets + blockIdx.x, 1u) == static_cast<unsigned>(a.pieces) - 1;
  __syncthreads();
  if (!*last) return;
  __threadfence();
  const int channels = kByLanes ? lanes * kLength : 1, own = tid & (channels - 1), part = tid / channels;
  const int parts = kThreads / channels;
  const int64_t c = first_channel + own;
  const int64_t run = (a.pieces + parts - 1) / parts, from = part * run;
  Partial sum{0, 0, 0};
  int n = 0;
  for (int64_t k = from; k < from + run && k < a.pieces && c < a.C; ++k) {
    const int64_t left = a.count - k * a.piece;
    const auto m = static_cast<int>((left < a.piece ? left : a.piece) * (kByLanes ? 1 : kLength));
    merge<kReduce>(sum, n, a.partials[k * a.C + c], m);
  }
  for (int half = parts / 2; half > 0; half /= 2) {
    shared[tid] = sum, counts[tid] = n;
    __syncthreads();
    if (part < half) merge<kReduce>(sum, n, shared[tid + half * channels], counts[tid + half * channels]);
    __syncthreads();
  }
  if (part != 0 || c >= a.C) return;
  if constexpr (kMoments) {
    leave_moments(c, sum, a.n, a.stats, a.out);
  } else {
    a.stats[c] = {widen(a.mean[c * a.mean_stride]), A(0), widen(a.inv[c * a.inv_stride])};
    leave_slopes(c, sum, a.n, a.slopes != nullptr, a.slopes, a.own);
  }
}

// Where the elements of apply lie, and to which sets they belong.
template <class Index>
struct Elements {
  Radix<Index> inner, middle;
  int64_t count;  // elements or vectors
  bool columns;  // channels innermost
  NormKind kind;
  int64_t groups, P;
  Divider by_group;  // channels of a group
  Lay x, y, other;  // other: the residual, or dy

  struct Place { int64_t n, c, p; };
  template <int kLength>
  __device__ Place place(int64_t i) const {
    auto rest = static_cast<Index>(i);
    const auto in = static_cast<int64_t>(inner.split(rest)) * kLength;
    const auto mid = static_cast<int64_t>(middle.split(rest));
    const auto n = static_cast<int64_t>(rest);
    return columns ? Place{n, in, mid} : Place{n, mid, in};
  }
  __device__ Place along(Place at, int l) const {
    (columns ? at.c : at.p) += l;
    return at;
  }
  __device__ int64_t set(const Place& at) const {
    switch (kind) {
      case NormKind::batch: return at.c;
      case NormKind::group: return at.n * groups + by_group.quotient(static_cast<uint32_t>(at.c));
      case NormKind::layer: return at.n;
      case NormKind::channels: return at.n * P + at.p;
    }
    return 0;
  }
};

__device__ int64_t offset_of(const Lay& s, int64_t n, int64_t c, int64_t p) { return n * s.n + c * s.c + p * s.p; }

template <int kLength, class T>
__device__ void write(T* to, const Acc<T> (&from)[kLength]) {
  if constexpr (kLength > 1) {
    Vector<T> v;
#pragma unroll
    for (int l = 0; l < kLength; ++l) v.at[l] = narrow<T>(from[l]);
    store_vector(to, v);
  } else {
    *to = narrow<T>(from[0]);
  }
}

template <int kLength, class T, class Index>
__global__ void __launch_bounds__(kThreads) apply(Elements<Index> at, Act<Acc<T>> act, const T* x, const T* residual,
                                                  Vectors<T> v, const Stat<Acc<T>>* stats, T* y) {
  using A = Acc<T>;
  const int64_t i = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kThreads + threadIdx.x;
  if (i >= at.count) return;
  const auto place = at.template place<kLength>(i);
  A value[kLength], added[kLength];
  read(x + offset_of(at.x, place.n, place.c, place.p), value);
  if (residual) read(residual + offset_of(at.other, place.n, place.c, place.p), added);
  // A vector of pixels of one plane has one mean and one weight, but where pixels have their own.
  const bool alike = !at.columns && at.kind != NormKind::channels;
  Stat<A> s{};
  A factor = 1, bias = 0;
#pragma unroll
  for (int l = 0; l < kLength; ++l) {
    if (l == 0 || !alike) {
      const auto one = at.along(place, l);
      s = stats[at.set(one)];
      factor = v.weight ? s.inv * widen(v.weight[one.c * v.weight_stride]) : s.inv;
      if (v.bias) bias = widen(v.bias[one.c * v.bias_stride]);
    }
    value[l] = (value[l] - s.high - s.low) * factor;
    if (v.bias) value[l] += bias;
    if (residual) value[l] += added[l];
  }
  activate(act, value);
  write(y + offset_of(at.y, place.n, place.c, place.p), value);
}

template <int kLength, class T, class Index>
__global__ void __launch_bounds__(kThreads)
    apply_gradient(Elements<Index> at, const T* x, const T* dy, const T* clamp_result, Lay at_result, Acc<T> lower,
                   Acc<T> upper, Vectors<T> v, const Stat<Acc<T>>* stats, const Slope<Acc<T>>* slopes, T* dx) {
  using A = Acc<T>;
  const int64_t i = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kThreads + threadIdx.x;
  if (i >= at.count) return;
  const auto place = at.template place<kLength>(i);
  A value[kLength], g[kLength];
  read(x + offset_of(at.x, place.n, place.c, place.p), value);
  read(dy + offset_of(at.other, place.n, place.c, place.p), g);
  if (clamp_result) {
    A result[kLength];
    read(clamp_result + offset_of(at_result, place.n, place.c, place.p), result);
#pragma unroll
    for (int l = 0; l < kLength; ++l)
      if (result[l] <= lower || result[l] >= upper) g[l] = 0;
  }
  const bool alike = !at.columns && at.kind != NormKind::channels;
  Stat<A> s{};
  Slope<A> k{};
  A weight = 1;
#pragma unroll
  for (int l = 0; l < kLength; ++l) {
    if (l == 0 || !alike) {
      const auto one = at.along(place, l);
      const int64_t set = at.set(one);
      s = stats[set];
      if (v.weight) weight = widen(v.weight[one.c * v.weight_stride]);
      if (slopes) k = slopes[set];
    }
    if (v.weight) g[l] *= weight;
    if (slopes) g[l] -= k.first + ((value[l] - s.high - s.low) * s.inv - k.low) * k.second;
    value[l] = g[l] * s.inv;
  }
  write(dx + offset_of(at.y, place.n, place.c, place.p), value);
}

template <class T>
__global__ void __launch_bounds__(kThreads) clear(T* to, int64_t n, int64_t stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) to[i * stride] = narrow<T>(Acc<T>(0));
}

// --- on the host -------------------------------------------------------------------------------------------------

unsigned blocks_of(int64_t n) { return static_cast<unsigned>(ceil_div(n, kThreads)); }
bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int64_t stride_of(const TensorView& v) {
  int64_t stride = 1;
  if (v.data) merged_stride(v, 0, v.ndim, &stride);
  return stride;
}

template <class T>
Vectors<T> vectors_of(const TensorView& weight, const TensorView& bias) {
  return {static_cast<const T*>(weight.data), stride_of(weight), static_cast<const T*>(bias.data), stride_of(bias)};
}

// How the sets of a kind lie, in an order; or, `of_channels`, the channels whose sums are dw and db.
struct Layout {
  NormKind kind;
  Shape shape;
  bool columns;
  int64_t groups, each;  // channels of a group

  Layout(const NormDesc& desc, const Shape& s, bool by_columns)
      : kind(desc.kind), shape(s), columns(by_columns), groups(desc.groups ? desc.groups : s.C), each(s.C / groups) {}

  int64_t sets() const {
    switch (kind) {
      case NormKind::batch: return shape.C;
      case NormKind::group: return shape.N * groups;
      case NormKind::layer: return shape.N;
      case NormKind::channels: return shape.N * shape.P;
    }
    return 0;
  }

  Sets make(bool of_channels) const {
    Sets s;
    const int64_t N = shape.N, C = shape.C, P = shape.P;
    int64_t inner_sets = 1, inner_elements = 1;
    s.stat_s1 = s.stat_s2 = 1;
    if (of_channels || kind == NormKind::batch) {
      s.count = inner_sets = C, s.size = N * P, inner_elements = P;
      s.lanes = columns;
      s.stat_s1 = 0;
      if (kind == NormKind::group) s.stat_by = Divider(static_cast<uint32_t>(each)), s.stat_e1 = groups;
      if (kind == NormKind::layer) s.stat_s2 = 0, s.stat_e1 = 1;
      if (kind == NormKind::channels) s.stat_s2 = 0, s.stat_e1 = P, s.stat_e2 = 1;
      s.weight_s2 = 1;
    } else if (kind == NormKind::group) {
      s.count = N * groups, inner_sets = groups, s.size = each * P;
      inner_elements = columns ? each : P;
      s.stat_s1 = groups;
      s.weight_s2 = each;
      (columns ? s.weight_e2 : s.weight_e1) = 1;
    } else if (kind == NormKind::layer) {
      s.count = N, s.size = inner_elements = C;
      s.weight_e2 = 1;
    } else {
      s.count = N * P, inner_sets = P, s.size = inner_elements = C;
      s.lanes = !columns;
      s.stat_s1 = P;
      s.weight_e2 = 1;
    }
    s.inner_sets = Divider(static_cast<uint32_t>(inner_sets));
    s.inner_elements = Divider(static_cast<uint32_t>(inner_elements));
    s.piece = s.lanes ? kLanePiece : kRowPiece;
    while (ceil_div(s.size, s.piece) > kMostPieces) s.piece *= 2;
    s.pieces = ceil_div(s.size, s.piece);
    return s;
  }

  Lies lies(const Lay& t, bool of_channels) const {
    if (of_channels || kind == NormKind::batch) return {0, t.c, t.n, t.p};
    if (kind == NormKind::group) return columns ? Lies{t.n, t.c * each, t.p, t.c} : Lies{t.n, t.c * each, t.c, t.p};
    if (kind == NormKind::layer) return {t.n, 0, 0, t.c};
    return {t.n, t.p, 0, t.c};
  }
};

int64_t rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// How batch norm's channels are summed: by lanes or by planes, and in which pieces, by the shape alone.
struct ChannelPlan {
  bool lanes_inner = false, wide = false;
  int64_t length = 1, count = 0, piece = 0, pieces = 1, groups = 0;
  int lanes = 1;

  ChannelPlan(const Shape& s, bool columns, bool vectors, int64_t vector) : lanes_inner(columns) {
    wide = vectors && (columns ? s.C : s.P) % vector == 0;
    length = wide ? vector : 1;
    count = columns ? s.N * s.P : s.N * s.P / length;
    if (columns)
      while (lanes < (wide ? 8 : 32) && lanes * length < s.C) lanes *= 2;
    groups = columns ? ceil_div(s.C, lanes * length) : s.C;
    // Blocks for every multiprocessor, and at least four loads a thread.
    const int64_t least = int64_t{kThreads} / lanes * 4, most = std::max<int64_t>(1, count / least);
    pieces = std::min({most, kMostPieces, std::max<int64_t>(1, ceil_div(792, groups))});
    piece = ceil_div(count, pieces);
    pieces = ceil_div(count, piece);
  }
  int64_t ticket_bytes() const { return 4 * groups; }
};

// The parts of the workspace.
struct Scratch {
  int64_t stats, slopes, partials, channel_partials, tickets, bytes;
  Scratch(const Layout& layout, DType dtype, bool gradient) {
    const int64_t item = dtype == DType::f64 ? 8 : 4, sets = layout.sets();
    const Sets own = layout.make(false), channels = layout.make(true);
    stats = 0;
    slopes = rounded(3 * item * sets);
    partials = slopes + (gradient ? rounded(3 * item * sets) : 0);
    if (layout.kind == NormKind::batch) {
      // Whatever the width of the loads will be.
      int64_t pieces = 1;
      for (const bool wide : {false, true})
        pieces = std::max(pieces, ChannelPlan(layout.shape, layout.columns, wide, 16 / item_size(dtype)).pieces);
      channel_partials = partials;
      tickets = partials + rounded(24 * layout.shape.C * pieces);
      bytes = tickets + rounded(4 * layout.shape.C);
      return;
    }
    tickets = 0;
    channel_partials = partials + rounded(24 * own.count * own.pieces);
    bytes = channel_partials + (gradient ? rounded(24 * channels.count * channels.pieces) : 0);
  }
};

template <Reduce kReduce, class T>
Status run_reduce(const Sets& sets, const Reads<T>& reads, const Vectors<T>& v, const Stat<Acc<T>>* stats,
                  Partial* partials, const Queue& queue) {
  const size_t shared = kThreads * (sizeof(Partial) + sizeof(int));
  auto run = [&](auto* kernel, int64_t of) {
    const dim3 grid(static_cast<unsigned>(ceil_div(sets.count, of)), static_cast<unsigned>(sets.pieces));
    return launch(kernel, grid, kThreads, shared, queue, sets, reads, v, stats, partials);
  };
  if (sets.lanes) return run(&reduce<kReduce, true, kThreads / kLanes, T>, kLanes);
  if (sets.size <= kSmallSet) return run(&reduce<kReduce, false, 32, T>, kThreads / 32);
  return run(&reduce<kReduce, false, kThreads, T>, 1);
}

bool vector_lay(const Lay& s, bool columns, int64_t length) {
  return columns ? s.c == 1 && s.n % length == 0 && s.p % length == 0
                 : s.p == 1 && s.n % length == 0 && s.c % length == 0;
}

template <class Index>
Elements<Index> elements_of(const Layout& layout, const Lay* lays, int64_t length) {
  Elements<Index> e{};
  const Shape& s = layout.shape;
  e.columns = layout.columns;
  e.inner = Radix<Index>((layout.columns ? s.C : s.P) / length);
  e.middle = Radix<Index>(layout.columns ? s.P : s.C);
  e.count = s.elements() / length;
  e.kind = layout.kind;
  e.groups = layout.groups, e.P = s.P;
  e.by_group = Divider(static_cast<uint32_t>(layout.each));
  e.x = lays[0], e.y = lays[1], e.other = lays[2];
  return e;
}

template <Reduce kReduce, class T>
Status run_channels(const ChannelPlan& plan, const Shape& shape, ChannelSums<T> a, unsigned* tickets,
                    const Queue& queue) {
  constexpr int kVector = Vector<T>::kLength;
  a.C = shape.C;
  a.by_row = Divider(static_cast<uint32_t>(plan.lanes_inner ? shape.P : shape.P / plan.length));
  a.count = plan.count, a.piece = plan.piece, a.pieces = plan.pieces, a.lanes = plan.lanes;
  a.n = static_cast<double>(shape.N) * static_cast<double>(shape.P);
  a.tickets = tickets;
  const Status cleared = status_of(
      cudaMemsetAsync(tickets, 0, static_cast<size_t>(plan.ticket_bytes()), static_cast<cudaStream_t>(queue.stream)));
  if (cleared != Status::ok) return cleared;
  const dim3 grid(static_cast<unsigned>(plan.groups), static_cast<unsigned>(plan.pieces));
  const size_t shared = kThreads * (sizeof(Partial) + sizeof(int)) + 16;
  auto run = [&](auto* kernel) { return launch(kernel, grid, kThreads, shared, queue, a); };
  if (plan.wide)
    return plan.lanes_inner ? run(&channel_sums<kReduce, true, kVector, T>)
                            : run(&channel_sums<kReduce, false, kVector, T>);
  return plan.lanes_inner ? run(&channel_sums<kReduce, true, 1, T>) : run(&channel_sums<kReduce, false, 1, T>);
}

// Calls f with Elements and the number of elements of a thread, as a constant.
template <class T, class F>
Status for_elements(const Layout& layout, const Lay* lays, bool vectors, F f) {
  constexpr int kVector = Vector<T>::kLength;
  const int64_t n = layout.shape.elements();
  if (ceil_div(n, kThreads) > kMost32) return Status::overflow;
  if (n > kMost32) return f(elements_of<uint64_t>(layout, lays, 1), std::integral_constant<int, 1>{});
  if (vectors && (layout.columns ? layout.shape.C : layout.shape.P) % kVector == 0)
    return f(elements_of<uint32_t>(layout, lays, kVector), std::integral_constant<int, kVector>{});
  return f(elements_of<uint32_t>(layout, lays, 1), std::integral_constant<int, 1>{});
}

// The memory orders of the operands that are there, one for all; what has none is copied by the caller.
Status order_of(const NormDesc& desc, const Shape& shape, const TensorView* const* views, int count, Lay* lays,
                bool* columns) {
  bool planes = shape.P > 1 || shape.C == 1, by_columns = true;
  for (int i = 0; i < count; ++i) {
    lays[i] = {};
    if (!views[i]->data) continue;
    if (!lay_of(desc, *views[i], &lays[i])) return Status::unsupported;
    planes = planes && (lays[i].p == 1 || shape.P == 1);
    by_columns = by_columns && (lays[i].c == 1 || shape.C == 1);
  }
  // Neither: threads take steps, as over planes.
  *columns = by_columns && !(planes && shape.C == 1);
  return Status::ok;
}

bool fits(const Layout& layout) {
  const Shape& s = layout.shape;
  return layout.sets() <= kMost32 && s.C <= kMost32 && s.N * s.P <= kMost32 && s.C * s.P <= kMost32;
}

}  // namespace

int64_t norm_workspace(const NormDesc& desc, const NormOperands& o) {
  Shape shape;
  Lay lays[3];
  bool columns = false;
  const TensorView* const views[] = {&o.x, &o.y, &o.residual};
  if (check_norm(Device::cuda, desc, o, &shape) != Status::ok || shape.elements() == 0 ||
      order_of(desc, shape, views, 3, lays, &columns) != Status::ok)
    return 0;
  const Layout layout(desc, shape, columns);
  return fits(layout) ? Scratch(layout, o.x.dtype, false).bytes : 0;
}

Status norm_run(const NormDesc& desc, const NormOperands& o, const Queue& queue) {
  Shape shape;
  Lay lays[3];
  bool columns = false;
  Status s = check_norm(Device::cuda, desc, o, &shape);
  if (s != Status::ok || shape.elements() == 0) return s;
  const TensorView* const views[] = {&o.x, &o.y, &o.residual};
  if ((s = order_of(desc, shape, views, 3, lays, &columns)) != Status::ok) return s;
  const Layout layout(desc, shape, columns);
  if (!fits(layout)) return Status::overflow;
  const Scratch scratch(layout, o.x.dtype, false);
  if (queue.workspace_bytes < scratch.bytes) return Status::out_of_memory;
  return for_dtype(o.x.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    constexpr int kVector = Vector<T>::kLength;
    auto* memory = static_cast<char*>(queue.workspace);
    auto* stats = reinterpret_cast<Stat<Acc<T>>*>(memory + scratch.stats);
    auto* partials = reinterpret_cast<Partial*>(memory + scratch.partials);
    const Vectors<T> vectors = vectors_of<T>(o.weight, o.bias);
    const auto* x = static_cast<const T*>(o.x.data);
    Status done;
    if (desc.kind == NormKind::batch && !desc.training) {
      done = launch(&given_moments<T>, blocks_of(shape.C), kThreads, 0, queue, shape.C,
                    static_cast<const T*>(o.running_mean.data), stride_of(o.running_mean),
                    static_cast<const T*>(o.running_var.data), stride_of(o.running_var), true, desc.eps, stats);
    } else {
      Outputs<T> out{};
      if (desc.kind == NormKind::batch) {
        out.mean = static_cast<T*>(o.mean.data), out.mean_stride = stride_of(o.mean);
        out.inv_std = static_cast<T*>(o.inv_std.data), out.inv_stride = stride_of(o.inv_std);
        out.running_mean = static_cast<T*>(o.running_mean.data), out.running_mean_stride = stride_of(o.running_mean);
        out.running_var = static_cast<T*>(o.running_var.data), out.running_var_stride = stride_of(o.running_var);
      }
      out.eps = desc.eps, out.momentum = desc.momentum, out.unbiased = desc.unbiased;
      if (desc.kind == NormKind::batch) {
        ChannelSums<T> sums{};
        sums.x = x, sums.at_x = lays[0], sums.partials = partials, sums.stats = stats, sums.out = out;
        const bool vectors_of_x = vector_lay(lays[0], columns, kVector) && aligned(x);
        done = run_channels<Reduce::moments, T>(ChannelPlan(shape, columns, vectors_of_x, kVector), shape, sums,
                                                reinterpret_cast<unsigned*>(memory + scratch.tickets), queue);
      } else {
        const Sets sets = layout.make(false);
        Reads<T> reads{};
        reads.x = x, reads.at_x = layout.lies(lays[0], false);
        done = run_reduce<Reduce::moments, T>(sets, reads, Vectors<T>{}, nullptr, partials, queue);
        if (done != Status::ok) return done;
        done = launch(&finish_moments<T>, blocks_of(sets.count), kThreads, 0, queue, sets, partials, stats, out);
      }
    }
    if (done != Status::ok) return done;
    const bool wide = vector_lay(lays[0], columns, kVector) && vector_lay(lays[1], columns, kVector) &&
                      aligned(o.x.data) && aligned(o.y.data) &&
                      (!o.residual.data || (vector_lay(lays[2], columns, kVector) && aligned(o.residual.data)));
    return for_elements<T>(layout, lays, wide, [&](auto elements, auto length) {
      using Index = std::conditional_t<std::is_same_v<decltype(elements), Elements<uint32_t>>, uint32_t, uint64_t>;
      return launch(&apply<decltype(length)::value, T, Index>, blocks_of(elements.count), kThreads, 0, queue, elements,
                    act_of<T>(o.act), x, static_cast<const T*>(o.residual.data), vectors, stats,
                    static_cast<T*>(o.y.data));
    });
  });
}

int64_t norm_backward_workspace(const NormDesc& desc, const NormGradients& o) {
  Shape shape;
  Lay lays[4];
  bool columns = false;
  const TensorView* const views[] = {&o.x, &o.dx, &o.dy, &o.y};
  if (check_norm_backward(Device::cuda, desc, o, &shape) != Status::ok || shape.elements() == 0 ||
      order_of(desc, shape, views, 4, lays, &columns) != Status::ok)
    return 0;
  const Layout layout(desc, shape, columns);
  return fits(layout) ? Scratch(layout, o.x.dtype, true).bytes : 0;
}

Status norm_backward(const NormDesc& desc, const NormGradients& o, const Queue& queue) {
  Shape shape;
  Lay lays[4];
  bool columns = false;
  Status s = check_norm_backward(Device::cuda, desc, o, &shape);
  if (s != Status::ok) return s;
  if (shape.elements() == 0)
    return for_dtype(o.dy.dtype, [&](auto* type) {
      using T = Pointee<decltype(type)>;
      for (const TensorView* v : {&o.dw, &o.db})
        if (v->data && (s = launch(&clear<T>, blocks_of(shape.C), kThreads, 0, queue, static_cast<T*>(v->data), shape.C,
                                   stride_of(*v))) != Status::ok)
          return s;
      return Status::ok;
    });
  const TensorView* const views[] = {&o.x, &o.dx, &o.dy, &o.y};
  if ((s = order_of(desc, shape, views, 4, lays, &columns)) != Status::ok) return s;
  const Layout layout(desc, shape, columns);
  if (!fits(layout)) return Status::overflow;
  const Scratch scratch(layout, o.x.dtype, true);
  if (queue.workspace_bytes < scratch.bytes) return Status::out_of_memory;
  return for_dtype(o.dy.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    constexpr int kVector = Vector<T>::kLength;
    auto* memory = static_cast<char*>(queue.workspace);
    auto* stats = reinterpret_cast<Stat<Acc<T>>*>(memory + scratch.stats);
    auto* slopes = reinterpret_cast<Slope<Acc<T>>*>(memory + scratch.slopes);
    auto* partials = reinterpret_cast<Partial*>(memory + scratch.partials);
    auto* channel_partials = reinterpret_cast<Partial*>(memory + scratch.channel_partials);
    const Vectors<T> weight = vectors_of<T>(o.weight, {});
    const bool batch = desc.kind == NormKind::batch;
    Reads<T> reads{};
    reads.x = static_cast<const T*>(o.x.data), reads.dy = static_cast<const T*>(o.dy.data);
    reads.y = static_cast<const T*>(o.y.data);
    reads.clamped = o.y.data != nullptr;
    reads.lower = static_cast<Acc<T>>(o.lower), reads.upper = static_cast<Acc<T>>(o.upper);
    auto lie = [&](bool of_channels) {
      reads.at_x = layout.lies(lays[0], of_channels), reads.at_dy = layout.lies(lays[2], of_channels);
      reads.at_y = layout.lies(lays[3], of_channels);
    };
    const Sets sets = layout.make(false), channels = layout.make(true);
    auto *dw = static_cast<T*>(o.dw.data), *db = static_cast<T*>(o.db.data);
    // Inference's statistics are constants: nothing is subtracted.
    const bool subtracts = !batch || desc.training;
    bool wide = true;
    for (int i = 0; i < 4; ++i)
      wide = wide && (!views[i]->data || (vector_lay(lays[i], columns, kVector) && aligned(views[i]->data)));
    Status done = Status::ok;
    lie(false);
    const Weights<T> own{weight.weight, dw, db, weight.weight_stride, stride_of(o.dw), stride_of(o.db)};
    if (batch && !subtracts && !dw && !db) {
      done =
          launch(&given_moments<T>, blocks_of(shape.C), kThreads, 0, queue, shape.C, static_cast<const T*>(o.mean.data),
                 stride_of(o.mean), static_cast<const T*>(o.inv_std.data), stride_of(o.inv_std), false, 0.0, stats);
    } else if (batch) {
      ChannelSums<T> sums{};
      sums.x = reads.x, sums.dy = reads.dy, sums.y = reads.y, sums.clamped = reads.clamped;
      sums.lower = reads.lower, sums.upper = reads.upper;
      sums.at_x = lays[0], sums.at_dy = lays[2], sums.at_y = lays[3];
      sums.mean = static_cast<const T*>(o.mean.data), sums.mean_stride = stride_of(o.mean);
      sums.inv = static_cast<const T*>(o.inv_std.data), sums.inv_stride = stride_of(o.inv_std);
      sums.partials = partials, sums.stats = stats, sums.slopes = subtracts ? slopes : nullptr, sums.own = own;
      done = run_channels<Reduce::slopes, T>(ChannelPlan(shape, columns, wide, kVector), shape, sums,
                                             reinterpret_cast<unsigned*>(memory + scratch.tickets), queue);
    } else {
      done = run_reduce<Reduce::moments, T>(sets, reads, Vectors<T>{}, nullptr, partials, queue);
      if (done != Status::ok) return done;
      Outputs<T> out{};
      out.eps = desc.eps;
      done = launch(&finish_moments<T>, blocks_of(sets.count), kThreads, 0, queue, sets, partials, stats, out);
      if (done == Status::ok && o.dx.data) {
        done = run_reduce<Reduce::slopes, T>(sets, reads, weight, stats, partials, queue);
        if (done == Status::ok)
          done = launch(&finish_slopes<T>, blocks_of(sets.count), kThreads, 0, queue, sets, partials, slopes,
                        Weights<T>{});
      }
      if (done == Status::ok && (dw || db)) {
        lie(true);
        done = run_reduce<Reduce::slopes, T>(channels, reads, Vectors<T>{}, stats, channel_partials, queue);
        Weights<T> sums = own;
        sums.weight = nullptr;
        if (done == Status::ok)
          done = launch(&finish_slopes<T>, blocks_of(channels.count), kThreads, 0, queue, channels, channel_partials,
                        static_cast<Slope<Acc<T>>*>(nullptr), sums);
      }
    }
    if (done != Status::ok || !o.dx.data) return done;
    return for_elements<T>(layout, lays, wide, [&](auto elements, auto length) {
      using Index = std::conditional_t<std::is_same_v<decltype(elements), Elements<uint32_t>>, uint32_t, uint64_t>;
      return launch(&apply_gradient<decltype(length)::value, T, Index>, blocks_of(elements.count), kThreads, 0, queue,
                    elements, reads.x, reads.dy, reads.y, lays[3], reads.lower, reads.upper, weight, stats,
                    subtracts ? slopes : nullptr, static_cast<T*>(o.dx.data));
    });
  });
}

// --- local response normalisation --------------------------------------------------------------------------------
//
// A thread an element, which goes through the channels of its window (of a gradient, through those of each window that
// it lies in): L1 has them, since neighbouring threads read the same ones.

namespace {

template <class A>
struct Response {
  int64_t C, P, count;
  int64_t size;
  A alpha, beta, k;  // alpha is over size
  Lay x, dy, to;
  bool columns;
};

template <class T>
__device__ Acc<T> response_base(const Response<Acc<T>>& r, const T* x, int64_t c) {
  Acc<T> sum = 0;
  const int64_t from = c - r.size / 2, end = c + (r.size - 1) / 2 + 1;
  for (int64_t i = from < 0 ? 0 : from; i < end && i < r.C; ++i) {
    const Acc<T> v = widen(x[i * r.x.c]);
    sum += v * v;
  }
  return r.k + r.alpha * sum;
}

template <bool kGradient, class T>
__global__ void __launch_bounds__(kThreads) response(Response<Acc<T>> r, const T* x, const T* dy, T* to) {
  using A = Acc<T>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= r.count) return;
  const int64_t image = i / (r.C * r.P), at = i % (r.C * r.P);
  const int64_t c = r.columns ? at % r.C : at / r.P, p = r.columns ? at / r.C : at % r.P;
  const T* own = x + image * r.x.n + p * r.x.p;
  A value;
  if constexpr (!kGradient) {
    value = widen(own[c * r.x.c]) * pow(response_base(r, own, c), -r.beta);
  } else {
    const T* g = dy + image * r.dy.n + p * r.dy.p;
    value = widen(g[c * r.dy.c]) * pow(response_base(r, own, c), -r.beta);
    A sum = 0;
    // The windows [j - size / 2, j + (size - 1) / 2] that c lies in.
    const int64_t from = c - (r.size - 1) / 2, end = c + r.size / 2 + 1;
    for (int64_t j = from < 0 ? 0 : from; j < end && j < r.C; ++j)
      sum += widen(g[j * r.dy.c]) * widen(own[j * r.x.c]) * pow(response_base(r, own, j), -r.beta - A(1));
    value -= A(2) * r.alpha * r.beta * widen(own[c * r.x.c]) * sum;
  }
  to[offset_of(r.to, image, c, p)] = narrow<T>(value);
}

Status run_response(const ResponseDesc& desc, const TensorView& x, const TensorView& dy, const TensorView& to,
                    const Queue& queue) {
  Shape shape;
  Status s = check_response(Device::cuda, desc, x, to, dy, &shape);
  if (s != Status::ok || shape.elements() == 0) return s;
  const NormDesc axes = response_axes(desc);
  const TensorView* const views[] = {&x, &to, &dy};
  Lay lays[3];
  bool columns = false;
  if ((s = order_of(axes, shape, views, 3, lays, &columns)) != Status::ok) return s;
  if (ceil_div(shape.elements(), kThreads) > kMost32) return Status::overflow;
  return for_dtype(x.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    using A = Acc<T>;
    const Response<A> r{shape.C,
                        shape.P,
                        shape.elements(),
                        desc.size,
                        static_cast<A>(desc.alpha / static_cast<double>(desc.size)),
                        static_cast<A>(desc.beta),
                        static_cast<A>(desc.k),
                        lays[0],
                        lays[2],
                        lays[1],
                        columns};
    return launch(dy.data ? &response<true, T> : &response<false, T>, blocks_of(r.count), kThreads, 0, queue, r,
                  static_cast<const T*>(x.data), static_cast<const T*>(dy.data), static_cast<T*>(to.data));
  });
}

}  // namespace

Status response_run(const ResponseDesc& desc, const TensorView& x, const TensorView& y, const Queue& queue) {
  return run_response(desc, x, {}, y, queue);
}

Status response_backward(const ResponseDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& dx,
                         const Queue& queue) {
  return dy.data ? run_response(desc, x, dy, dx, queue) : Status::bad_shape;
}

}  // namespace fastconv::cuda
