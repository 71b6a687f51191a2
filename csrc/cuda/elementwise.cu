// Functions of single elements and sums of two arrays, forward and backward.
//
// Bytes: each operand once, so a copy's time (two or three streams); flops: a handful an element, 15 to 30 for those
// with an exponential, below the arithmetic floor of the memory in every dtype but double.
//
// Dense operands that lie alike: a thread has 4 vectors of 16 bytes of one operand or 2 of each of two, 256 vectors
// apart so that a warp's load is 512 bytes in a row, and its 4 loads are under way before the first is used. Registers:
// 16 words of operands in their dtype, the wide elements of the vectors that are being computed (8 each), addresses: at
// most 64, so that 4 blocks share a multiprocessor and 64 KB are under way in it. Anything else: an element a thread,
// its offsets by dividers.
//
// gate: map_dense registers 64
// gate: map_strided registers 40
// gate: map_dense vectors
#include "cuda/activation.cuh"
#include "cuda/index.h"
#include "cuda/launch.h"
#include "ops/elementwise.h"

namespace fastconv::cuda {
namespace {

enum class Map { forward, add, backward };

constexpr int kThreads = 256;
// Vectors of each operand that a thread loads before it computes.
template <Map kMap>
constexpr int kVectorsOf = kMap == Map::forward ? 4 : 2;

template <Map kMap, int kCount, class A>
__device__ __forceinline__ void apply(const Act<A>& act, A (&x)[kCount], A (&z)[kCount]) {
  if constexpr (kMap == Map::forward) activate(act, x);
  if constexpr (kMap == Map::add) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] += z[i];
    activate(act, x);
  }
  if constexpr (kMap == Map::backward) {  // x holds dy
    activate_gradient(act, x, z);
  }
}

// y may be x or z: every element is read by the thread that writes it, before it does.
template <Map kMap, class T>
__global__ void __launch_bounds__(kThreads) map_dense(Act<Acc<T>> act, const T* x, const T* z, T* y, int64_t n) {
  constexpr int kLength = Vector<T>::kLength, kVectors = kVectorsOf<kMap>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads * kVectors + threadIdx.x) * kLength;
  Vector<T> vx[kVectors] = {}, vz[kVectors] = {};
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t at = first + static_cast<int64_t>(k) * kThreads * kLength;
    if (at + kLength <= n) {
      vx[k] = load_vector(x + at);
      if constexpr (kMap != Map::forward) vz[k] = load_vector(z + at);
    } else {
      // The last elements, fewer than a vector, one by one.
#pragma unroll
      for (int i = 0; i < kLength; ++i) {
        if (at + i >= n) continue;
        vx[k].at[i] = x[at + i];
        if constexpr (kMap != Map::forward) vz[k].at[i] = z[at + i];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t at = first + static_cast<int64_t>(k) * kThreads * kLength;
    Acc<T> wx[kLength], wz[kLength];
#pragma unroll
    for (int i = 0; i < kLength; ++i) wx[i] = widen(vx[k].at[i]), wz[i] = widen(vz[k].at[i]);
    apply<kMap>(act, wx, wz);
#pragma unroll
    for (int i = 0; i < kLength; ++i) vx[k].at[i] = narrow<T>(wx[i]);
    if (at + kLength <= n) {
      store_vector(y + at, vx[k]);
    } else {
#pragma unroll
      for (int i = 0; i < kLength; ++i)
        if (at + i < n) y[at + i] = vx[k].at[i];
    }
  }
}

template <class Index>
struct Strided {
  int count;
  Radix<Index> size[kMaxDims];
  int64_t x[kMaxDims], z[kMaxDims], y[kMaxDims];
};

template <Map kMap, class T, class Index>
__global__ void __launch_bounds__(kThreads)
    map_strided(Act<Acc<T>> act, const T* x, const T* z, T* y, Strided<Index> s, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  auto rest = static_cast<Index>(i);
  int64_t ox = 0, oz = 0, oy = 0;
#pragma unroll
  for (int k = 0; k < kMaxDims; ++k) {
    if (k >= s.count) break;
    const auto at = static_cast<int64_t>(s.size[k].split(rest));
    ox += at * s.x[k], oz += at * s.z[k], oy += at * s.y[k];
  }
  Acc<T> wx[1] = {widen(x[ox])}, wz[1] = {};
  if constexpr (kMap != Map::forward) wz[0] = widen(z[oz]);
  apply<kMap>(act, wx, wz);
  y[oy] = narrow<T>(wx[0]);
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <Map kMap, class T, class Index>
Status run_strided(const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y,
                   const Axes<3>& axes, const Queue& queue) {
  Strided<Index> s{};
  s.count = axes.count;
  for (int i = 0; i < axes.count; ++i) {
    s.size[i] = Radix<Index>(axes.size[i]);
    s.y[i] = axes.stride[0][i], s.x[i] = axes.stride[1][i], s.z[i] = axes.stride[2][i];
  }
  const int64_t n = axes.elements(), blocks = ceil_div(n, kThreads);
  if (blocks > kMost32) return Status::overflow;
  return launch(&map_strided<kMap, T, Index>, static_cast<unsigned>(blocks), kThreads, 0, queue, act_of<T>(act),
                static_cast<const T*>(x.data), static_cast<const T*>(z.data), static_cast<T*>(y.data), s, n);
}

template <Map kMap>
Status run_map(const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y,
               const Queue& queue) {
  const bool two = kMap != Map::forward;
  const Status s = two ? ops::check_operands(Device::cuda, x, {&z}, y) : ops::check_operands(Device::cuda, x, {}, y);
  if (s != Status::ok || ops::elements_of(x) == 0) return s;
  const TensorView* const views[3] = {&y, &x, two ? &z : &x};
  const Axes<3> axes = join_axes(views);
  return for_dtype(x.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    if (axes.dense() && aligned(x.data) && aligned(y.data) && (!two || aligned(z.data))) {
      const int64_t n = axes.elements(),
                    blocks = ceil_div(n, int64_t{kThreads} * kVectorsOf<kMap> * Vector<T>::kLength);
      if (blocks > kMost32) return Status::overflow;
      return launch(&map_dense<kMap, T>, static_cast<unsigned>(blocks), kThreads, 0, queue, act_of<T>(act),
                    static_cast<const T*>(x.data), static_cast<const T*>(z.data), static_cast<T*>(y.data), n);
    }
    return axes.small() ? run_strided<kMap, T, uint32_t>(act, x, z, y, axes, queue)
                        : run_strided<kMap, T, uint64_t>(act, x, z, y, axes, queue);
  });
}

}  // namespace

Status map_forward(const Activation& act, const TensorView& x, const TensorView& y, const Queue& queue) {
  return run_map<Map::forward>(act, x, {}, y, queue);
}

Status map_add(const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y,
               const Queue& queue) {
  return run_map<Map::add>(act, x, z, y, queue);
}

Status map_backward(const Activation& act, const TensorView& dy, const TensorView& x, const TensorView& dx,
                    const Queue& queue) {
  return run_map<Map::backward>(act, dy, x, dx, queue);
}

}  // namespace fastconv::cuda
