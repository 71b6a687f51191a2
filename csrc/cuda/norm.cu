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
// gate: reduce registers 64 spills 0
// gate: finish_moments registers 64 spills 0
// gate: given_moments registers 32 spills 0
// gate: finish_slopes registers 64 spills 0
// gate: apply registers 64 spills 0
// gate: apply_gradient registers 64 spills 0
// gate: clear registers 16 spills 0
// gate: response registers 64 spills 0
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

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_moments(Sets sets, const Partial* partials, Stat<Acc<T>>* stats, Outputs<T> out) {
  using A = Acc<T>;
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

// What the gradients of sets subtract, and the gradients of weight and bias; each may be absent. `given`: the mean is
// one that has been rounded, whose error is the mean of xhat.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_slopes(Sets sets, const Partial* partials, bool given, Slope<Acc<T>>* slopes, const T* weight,
                  int64_t weight_stride, T* dw, int64_t dw_stride, T* db, int64_t db_stride) {
  using A = Acc<T>;
  const int64_t set = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (set >= sets.count) return;
  Partial sum{0, 0, 0};
  for (int64_t k = 0; k < sets.pieces; ++k) {
    const Partial next = partials[set * sets.pieces + k];
    sum.a += next.a, sum.b += next.b, sum.c += next.c;
  }
  const auto n = static_cast<double>(sets.size);
  const double low = given ? sum.c / n : 0, product = sum.b - low * sum.a;
  if (dw) dw[set * dw_stride] = narrow<T>(static_cast<A>(product));
  if (db) db[set * db_stride] = narrow<T>(static_cast<A>(sum.a));
  if (!slopes) return;
  const double w = weight ? static_cast<double>(widen(weight[set * weight_stride])) : 1;
  slopes[set] = {static_cast<A>(sum.a * w / n), static_cast<A>(product * w / n), static_cast<A>(low)};
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
__device__ void read(const T* from, Acc<T> (&to)[kLength]) {
  if constexpr (kLength > 1) {
    const Vector<T> v = load_vector(from);
#pragma unroll
    for (int l = 0; l < kLength; ++l) to[l] = widen(v.at[l]);
  } else {
    to[0] = widen(*from);
  }
}

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
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= at.count) return;
  const auto place = at.template place<kLength>(i);
  A value[kLength], added[kLength];
  read(x + offset_of(at.x, place.n, place.c, place.p), value);
  if (residual) read(residual + offset_of(at.other, place.n, place.c, place.p), added);
#pragma unroll
  for (int l = 0; l < kLength; ++l) {
    const auto one = at.along(place, l);
    const Stat<A> s = stats[at.set(one)];
    value[l] = (value[l] - s.high - s.low) * (v.weight ? s.inv * widen(v.weight[one.c * v.weight_stride]) : s.inv);
    if (v.bias) value[l] += widen(v.bias[one.c * v.bias_stride]);
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
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
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
#pragma unroll
  for (int l = 0; l < kLength; ++l) {
    const auto one = at.along(place, l);
    const int64_t set = at.set(one);
    const Stat<A> s = stats[set];
    if (v.weight) g[l] *= widen(v.weight[one.c * v.weight_stride]);
    if (slopes) {
      const Slope<A> k = slopes[set];
      g[l] -= k.first + ((value[l] - s.high - s.low) * s.inv - k.low) * k.second;
    }
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

// The parts of the workspace.
struct Scratch {
  int64_t stats, slopes, partials, channel_partials, bytes;
  Scratch(const Layout& layout, DType dtype, bool gradient) {
    const int64_t item = dtype == DType::f64 ? 8 : 4, sets = layout.sets();
    const Sets own = layout.make(false), channels = layout.make(true);
    stats = 0;
    slopes = rounded(3 * item * sets);
    partials = slopes + (gradient ? rounded(3 * item * sets) : 0);
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
      const Sets sets = layout.make(false);
      Reads<T> reads{};
      reads.x = x, reads.at_x = layout.lies(lays[0], false);
      done = run_reduce<Reduce::moments, T>(sets, reads, Vectors<T>{}, nullptr, partials, queue);
      if (done != Status::ok) return done;
      Outputs<T> out{};
      if (desc.kind == NormKind::batch) {
        out.mean = static_cast<T*>(o.mean.data), out.mean_stride = stride_of(o.mean);
        out.inv_std = static_cast<T*>(o.inv_std.data), out.inv_stride = stride_of(o.inv_std);
        out.running_mean = static_cast<T*>(o.running_mean.data), out.running_mean_stride = stride_of(o.running_mean);
        out.running_var = static_cast<T*>(o.running_var.data), out.running_var_stride = stride_of(o.running_var);
      }
      out.eps = desc.eps, out.momentum = desc.momentum, out.unbiased = desc.unbiased;
      done = launch(&finish_moments<T>, blocks_of(sets.count), kThreads, 0, queue, sets, partials, stats, out);
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
    Status done;
    lie(false);
    if (batch) {
      done =
          launch(&given_moments<T>, blocks_of(shape.C), kThreads, 0, queue, shape.C, static_cast<const T*>(o.mean.data),
                 stride_of(o.mean), static_cast<const T*>(o.inv_std.data), stride_of(o.inv_std), false, 0.0, stats);
    } else {
      done = run_reduce<Reduce::moments, T>(sets, reads, Vectors<T>{}, nullptr, partials, queue);
      if (done != Status::ok) return done;
      Outputs<T> out{};
      out.eps = desc.eps;
      done = launch(&finish_moments<T>, blocks_of(sets.count), kThreads, 0, queue, sets, partials, stats, out);
    }
    if (done != Status::ok) return done;
    // Inference's statistics are constants: nothing is subtracted.
    const bool subtracts = !batch || desc.training;
    if (batch && (subtracts || dw || db)) {
      done = run_reduce<Reduce::slopes, T>(sets, reads, Vectors<T>{}, stats, partials, queue);
      if (done == Status::ok)
        done = launch(&finish_slopes<T>, blocks_of(sets.count), kThreads, 0, queue, sets, partials, subtracts, slopes,
                      weight.weight, weight.weight_stride, dw, stride_of(o.dw), db, stride_of(o.db));
    } else if (!batch) {
      if (o.dx.data) {
        done = run_reduce<Reduce::slopes, T>(sets, reads, weight, stats, partials, queue);
        if (done == Status::ok)
          done = launch(&finish_slopes<T>, blocks_of(sets.count), kThreads, 0, queue, sets, partials, false, slopes,
                        nullptr, 0, nullptr, 0, nullptr, 0);
      }
      if (done == Status::ok && (dw || db)) {
        lie(true);
        done = run_reduce<Reduce::slopes, T>(channels, reads, Vectors<T>{}, stats, channel_partials, queue);
        if (done == Status::ok)
          done = launch(&finish_slopes<T>, blocks_of(channels.count), kThreads, 0, queue, channels, channel_partials,
                        false, nullptr, nullptr, 0, dw, stride_of(o.dw), db, stride_of(o.db));
      }
    }
    if (done != Status::ok || !o.dx.data) return done;
    bool wide = true;
    for (int i = 0; i < 4; ++i)
      wide = wide && (!views[i]->data || (vector_lay(lays[i], columns, kVector) && aligned(views[i]->data)));
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
