// Softmax along an axis, its logarithm, and their gradients.
//
// Bytes: x once and y once from memory, as long as what a block goes through stays in L1 and L2 between its three
// passes (maximum, sum, result; of a gradient two); flops: an exponential an element and pass.
//
// Rows (the axis innermost): 32 threads a row of up to 1024 elements, else 256, whose parts are joined by halves.
// Columns: a thread a column, neighbours in memory. Registers: two sums and offsets, at most 40. Shared memory: 256
// values.
//
// What a result wants of the sum, its reciprocal or its logarithm, is made once.
//
// gate: softmax_rows registers 64 shared 2048
// gate: softmax_columns registers 64
#include "cuda/index.h"
#include "cuda/launch.h"
#include "cuda/types.cuh"
#include "ops/elementwise.h"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSmallRow = 1024;

struct Along {
  int64_t outer = 1, length = 1, inner = 1;
  Divider64 by_inner;
};

__device__ float natural(float x) { return expf(x); }
__device__ double natural(double x) { return exp(x); }
__device__ float logarithm_of(float x) { return logf(x); }
__device__ double logarithm_of(double x) { return log(x); }

// The greater; a NaN is.
template <class A>
__device__ A greater(A a, A b) {
  return a > b || a != a ? a : b;
}

// Joins the values of a row's kPer threads, t of them this one; all threads of the block take part.
template <int kPer, class A, class F>
__device__ A join(A value, int t, F f) {
  A* shared = shared_memory<A>();
  for (int half = kPer / 2; half > 0; half /= 2) {
    shared[threadIdx.x] = value;
    __syncthreads();
    if (t < half) value = f(value, shared[threadIdx.x + half]);
    __syncthreads();
  }
  if (t == 0) shared[threadIdx.x] = value;
  __syncthreads();
  value = shared[threadIdx.x - t];
  __syncthreads();
  return value;
}

// `made`: of the sum, its logarithm or its reciprocal.
template <class A>
__device__ A made_of(A sum, bool logarithm) {
  return logarithm ? logarithm_of(sum) : reciprocal(sum);
}
template <class A>
__device__ A result_of(A x, A most, A made, bool logarithm) {
  return logarithm ? x - most - made : natural(x - most) * made;
}

// The sum over the axis that a gradient wants, and what it gives.
template <class A>
__device__ A term_of(A dy, A y, bool logarithm) {
  return logarithm ? dy : dy * y;
}
template <class A>
__device__ A gradient_of(A dy, A y, A sum, bool logarithm) {
  return logarithm ? dy - natural(y) * sum : y * (dy - sum);
}

template <bool kGradient, int kPer, class T>
__global__ void __launch_bounds__(kThreads) softmax_rows(Along a, bool logarithm, const T* x, const T* dy, T* to) {
  using A = Acc<T>;
  const int t = static_cast<int>(threadIdx.x) % kPer;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kPer) + threadIdx.x / kPer;
  const int64_t length = row < a.outer ? a.length : 0;
  const T* from = x + row * a.length;
  A sum = 0;
  if constexpr (kGradient) {
    const T* g = dy + row * a.length;
    for (int64_t i = t; i < length; i += kPer) sum += term_of(widen(g[i]), widen(from[i]), logarithm);
    sum = join<kPer>(sum, t, [](A p, A q) { return p + q; });
    for (int64_t i = t; i < length; i += kPer)
      to[row * a.length + i] = narrow<T>(gradient_of(widen(g[i]), widen(from[i]), sum, logarithm));
  } else {
    A most = -std::numeric_limits<A>::infinity();
    for (int64_t i = t; i < length; i += kPer) most = greater(widen(from[i]), most);
    most = join<kPer>(most, t, [](A p, A q) { return greater(p, q); });
    for (int64_t i = t; i < length; i += kPer) sum += natural(widen(from[i]) - most);
    sum = made_of(join<kPer>(sum, t, [](A p, A q) { return p + q; }), logarithm);
    for (int64_t i = t; i < length; i += kPer)
      to[row * a.length + i] = narrow<T>(result_of(widen(from[i]), most, sum, logarithm));
  }
}

template <bool kGradient, class T>
__global__ void __launch_bounds__(kThreads, 4)
    softmax_columns(Along a, bool logarithm, const T* x, const T* dy, T* to) {
  using A = Acc<T>;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= a.outer * a.inner) return;
  const auto outer = static_cast<int64_t>(a.by_inner.quotient(static_cast<uint64_t>(column)));
  const int64_t first = column + outer * (a.length - 1) * a.inner, end = first + a.length * a.inner;
  A sum = 0;
  if constexpr (kGradient) {
    for (int64_t i = first; i < end; i += a.inner) sum += term_of(widen(dy[i]), widen(x[i]), logarithm);
    for (int64_t i = first; i < end; i += a.inner)
      to[i] = narrow<T>(gradient_of(widen(dy[i]), widen(x[i]), sum, logarithm));
  } else {
    A most = -std::numeric_limits<A>::infinity();
    for (int64_t i = first; i < end; i += a.inner) most = greater(widen(x[i]), most);
    for (int64_t i = first; i < end; i += a.inner) sum += natural(widen(x[i]) - most);
    sum = made_of(sum, logarithm);
    for (int64_t i = first; i < end; i += a.inner) to[i] = narrow<T>(result_of(widen(x[i]), most, sum, logarithm));
  }
}

// The arrays as (outer, length, inner); unsupported where they are not one run of memory, alike.
Status along(const TensorView* const (&views)[3], int32_t axis, Along* a) {
  if (!join_axes(views).dense()) return Status::unsupported;
  const TensorView& x = *views[0];
  a->length = x.shape[axis];
  for (int i = 0; i < x.ndim; ++i) {
    if (i == axis) continue;
    const bool inside = x.shape[axis] > 1 && x.strides[i] < x.strides[axis];
    (inside || x.shape[i] == 1 ? a->inner : a->outer) *= x.shape[i];
  }
  a->by_inner = Divider64(static_cast<uint64_t>(a->inner));
  return Status::ok;
}

template <bool kGradient>
Status run(int32_t axis, bool logarithm, const TensorView& x, const TensorView& dy, const TensorView& to,
           const Queue& queue) {
  Status s = kGradient ? ops::check_operands(Device::cuda, dy, {&x}, to) : ops::check_operands(Device::cuda, x, {}, to);
  if (s != Status::ok || (s = ops::axis_of(x, &axis)) != Status::ok || ops::elements_of(x) == 0) return s;
  const TensorView* const views[3] = {&x, &to, kGradient ? &dy : &x};
  Along a;
  if ((s = along(views, axis, &a)) != Status::ok) return s;
  return for_dtype(x.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    auto start = [&](auto* kernel, int64_t of, int64_t count, size_t shared) {
      const int64_t blocks = ceil_div(count, of);
      if (blocks > kMost32) return Status::overflow;
      return launch(kernel, static_cast<unsigned>(blocks), kThreads, shared, queue, a, logarithm,
                    static_cast<const T*>(x.data), static_cast<const T*>(dy.data), static_cast<T*>(to.data));
    };
    const size_t shared = kThreads * sizeof(Acc<T>);
    if (a.inner > 1) return start(&softmax_columns<kGradient, T>, kThreads, a.outer * a.inner, 0);
    if (a.length <= kSmallRow) return start(&softmax_rows<kGradient, 32, T>, kThreads / 32, a.outer, shared);
    return start(&softmax_rows<kGradient, kThreads, T>, 1, a.outer, shared);
  });
}

}  // namespace

Status softmax_run(int32_t axis, bool logarithm, const TensorView& x, const TensorView& y, const Queue& queue) {
  return run<false>(axis, logarithm, x, {}, y, queue);
}

Status softmax_backward(int32_t axis, bool logarithm, const TensorView& dy, const TensorView& y, const TensorView& dx,
                        const Queue& queue) {
  return run<true>(axis, logarithm, y, dy, dx, queue);
}

}  // namespace fastconv::cuda
