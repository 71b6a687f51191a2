// Elementwise functions and softmax: canonicalise to runs of memory -> split over threads -> call the kernel table.
#include "ops/elementwise.h"

#include <algorithm>
#include <cmath>

#include "dispatch/kernel_table.h"
#include "ops/memory.h"
#include "ops/parallel.h"
#include "ops/path.h"
#include "ops/stream.h"

namespace fastconv {
namespace ops {
namespace {

// Elements of a task, and nanoseconds an element takes on one core, about.
constexpr int64_t kRun = 1 << 16;
constexpr double kElement = 0.4;

bool lie_alike(const TensorView& a, const TensorView& b) {
  for (int i = 0; i < a.ndim; ++i)
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  return true;
}

// The axes of more than one element from the innermost out; false unless they fill one run of memory.
bool dense_axes(const TensorView& x, int* axes, int* count) {
  int n = 0;
  for (int i = 0; i < x.ndim; ++i) {
    if (x.shape[i] == 1) continue;
    int at = n++;
    for (; at > 0 && x.strides[axes[at - 1]] > x.strides[i]; --at) axes[at] = axes[at - 1];
    axes[at] = i;
  }
  int64_t stride = 1;
  for (int k = 0; k < n; ++k) {
    if (x.strides[axes[k]] != stride) return false;
    stride *= x.shape[axes[k]];
  }
  *count = n;
  return true;
}

template <class T>
void decide_map(const TensorView& x, const TensorView& z, const TensorView& y, PathDecision* d) {
  const int64_t n = elements_of(x);
  d->path = "one pass", d->tasks = (n + kRun - 1) / kRun;
  // A result over an operand is in the caches already.
  d->streaming = y.data != x.data && y.data != z.data && streams(n * static_cast<int64_t>(sizeof(T)));
}

template <class T>
Status map(MapOp op, const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y,
           const PathDecision& d) {
  const int64_t n = elements_of(x);
  MapArgs<T> args{};
  args.op = op;
  args.activation = static_cast<int32_t>(act.kind);
  args.a = static_cast<T>(act.a), args.b = static_cast<T>(act.b);
  args.streaming = d.streaming;
  const KernelTable<T>& kernels = kernel_table<T>(current_isa());
  begin(d);
  return parallel_for(d.tasks, static_cast<double>(n) * kElement, [&](int64_t i, int) {
    MapArgs<T> a = args;
    a.x = static_cast<const T*>(x.data) + i * kRun;
    a.z = z.data ? static_cast<const T*>(z.data) + i * kRun : nullptr;
    a.y = static_cast<T*>(y.data) + i * kRun;
    a.n = std::min(kRun, n - i * kRun);
    kernels.map_run(a);
  });
}

Status check_map(const TensorView& x, const TensorView& z, const TensorView& y, PathDecision* d) {
  const Status s = z.data ? check_operands(Device::cpu, x, {&z}, y) : check_operands(Device::cpu, x, {}, y);
  if (s != Status::ok || elements_of(x) == 0) return s;
  int axes[kMaxDims], count;
  if (!dense_axes(x, axes, &count) || !lie_alike(x, y) || (z.data && !lie_alike(x, z))) return Status::unsupported;
  x.dtype == DType::f32 ? decide_map<float>(x, z, y, d) : decide_map<double>(x, z, y, d);
  return Status::ok;
}

Status run_map(MapOp op, const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y) {
  PathDecision d;
  const Status s = check_map(x, z, y, &d);
  if (s != Status::ok || d.tasks == 0) return s;
  return x.dtype == DType::f32 ? map<float>(op, act, x, z, y, d) : map<double>(op, act, x, z, y, d);
}

// Softmax along an axis of `length`: `inner` elements lie within it and `outer` around it.
struct Along { int64_t outer = 1, length = 1, inner = 1; };

bool along(const TensorView& x, int axis, Along* a) {
  int axes[kMaxDims], count;
  if (!dense_axes(x, axes, &count)) return false;
  a->length = x.shape[axis];
  bool inside = true;
  if (x.shape[axis] == 1) return a->inner = 1, a->outer = elements_of(x), true;
  for (int k = 0; k < count; ++k) {
    if (axes[k] == axis)
      inside = false;
    else
      (inside ? a->inner : a->outer) *= x.shape[axes[k]];
  }
  return true;
}

// Rows of a task, and columns: what is read several times stays close to the core.
constexpr int64_t kBlockBytes = 1 << 17;
constexpr int64_t kMostColumns = 1024, kMostRows = 512;

template <class T>
struct Split {
  Along a;
  int64_t rows, columns, tasks_across, tasks;
  explicit Split(const Along& of) : a(of) {
    const int64_t most = kBlockBytes / static_cast<int64_t>(sizeof(T)) / a.length;
    rows = a.inner == 1 ? std::clamp<int64_t>(most, 1, kMostRows) : 1;
    columns = std::min(a.inner, std::clamp<int64_t>(most / 64 * 64, 64, kMostColumns));
    tasks_across = a.inner == 1 ? 1 : (a.inner + columns - 1) / columns;
    tasks = a.inner == 1 ? (a.outer + rows - 1) / rows : a.outer * tasks_across;
  }
  // First element, rows and columns of a task, whose rows are `pitch` apart.
  void task(int64_t i, int64_t* first, int64_t* high, int64_t* wide, int64_t* pitch) const {
    if (a.inner == 1) {
      *first = i * rows * a.length;
      *high = std::min(rows, a.outer - i * rows);
      *wide = *pitch = a.length;
      return;
    }
    const int64_t c = i % tasks_across * columns;
    *first = i / tasks_across * a.length * a.inner + c;
    *high = a.length;
    *wide = std::min(columns, a.inner - c);
    *pitch = a.inner;
  }
};

template <class T>
void decide_softmax(const Along& a, PathDecision* d) {
  d->tasks = Split<T>(a).tasks;
  d->path = a.inner > 1 ? "along columns, lanes beside the axis" : "along rows, lanes on the axis";
  if (a.inner > 1) d->pass("along rows, lanes on the axis", "the axis is not innermost in memory");
  d->again = "the caches";
}

template <class T>
Status softmax(const Along& a, bool logarithm, const TensorView& x, const TensorView& y) {
  const KernelTable<T>& kernels = kernel_table<T>(current_isa());
  const Split<T> split(a);
  const double work = static_cast<double>(a.outer * a.length * a.inner) * kElement * 3;
  return parallel_for(split.tasks, work, [&](int64_t i, int) {
    T maximum[kMostColumns], sum[kMostColumns], scale[kMostColumns];
    int64_t first;
    SoftmaxArgs<T> s{};
    split.task(i, &first, &s.rows, &s.columns, &s.pitch);
    s.x = static_cast<const T*>(x.data) + first;
    s.by_column = a.inner > 1;
    s.maximum = maximum, s.sum = sum;
    T* to = static_cast<T*>(y.data) + first;
    s.logarithm = logarithm;
    s.y = logarithm && s.by_column ? nullptr : to;
    kernels.softmax(s);
    if (s.y) return;
    for (int64_t k = 0; k < s.columns; ++k)
      sum[k] = static_cast<T>(-std::log(static_cast<double>(sum[k]))), scale[k] = 1;
    NormApplyArgs<T> n{};
    n.y = to, n.x = s.x;
    n.y_pitch = n.x_pitch = s.pitch;
    n.rows = s.rows, n.columns = s.columns;
    n.by_column = 1;
    n.mean = maximum, n.scale = scale, n.offset = sum;
    kernels.norm_apply(n);
  });
}

template <class T>
Status gradient(const Along& a, bool logarithm, const TensorView& dy, const TensorView& y, const TensorView& dx) {
  const KernelTable<T>& kernels = kernel_table<T>(current_isa());
  const Split<T> split(a);
  const double work = static_cast<double>(a.outer * a.length * a.inner) * kElement * 2;
  return parallel_for(split.tasks, work, [&](int64_t i, int) {
    T sum[kMostColumns];
    int64_t first;
    SoftmaxGradientArgs<T> s{};
    split.task(i, &first, &s.rows, &s.columns, &s.pitch);
    s.dx = static_cast<T*>(dx.data) + first;
    s.dy = static_cast<const T*>(dy.data) + first, s.y = static_cast<const T*>(y.data) + first;
    s.by_column = a.inner > 1;
    s.logarithm = logarithm;
    s.sum = sum;
    kernels.softmax_gradient(s);
  });
}

}  // namespace
}  // namespace ops

using namespace ops;

Status map_forward(const Activation& act, const TensorView& x, const TensorView& y) {
  return run_map(MapOp::forward, act, x, {}, y);
}

Status map_add(const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y) {
  return run_map(MapOp::add, act, x, z, y);
}

Status map_backward(const Activation& act, const TensorView& dy, const TensorView& x, const TensorView& dx) {
  return run_map(MapOp::backward, act, x, dy, dx);
}

Status map_decide(const TensorView& x, const TensorView& z, const TensorView& y, PathDecision* decision) {
  return check_map(x, z, y, decision);
}

namespace {

// `second`: of a gradient. An empty call has no tasks.
Status check_softmax(int32_t axis, const TensorView& first, const TensorView& second, const TensorView& result,
                     Along* a, PathDecision* d) {
  const bool backward = second.data != nullptr;
  Status s =
      backward ? check_operands(Device::cpu, first, {&second}, result) : check_operands(Device::cpu, first, {}, result);
  if (s != Status::ok || (s = axis_of(first, &axis)) != Status::ok || elements_of(first) == 0) return s;
  if (!along(first, axis, a) || !lie_alike(first, result) || (backward && !lie_alike(first, second)))
    return Status::unsupported;
  first.dtype == DType::f32 ? decide_softmax<float>(*a, d) : decide_softmax<double>(*a, d);
  return Status::ok;
}

}  // namespace

Status softmax_run(int32_t axis, bool logarithm, const TensorView& x, const TensorView& y) {
  Along a;
  PathDecision d;
  const Status s = check_softmax(axis, x, {}, y, &a, &d);
  if (s != Status::ok || d.tasks == 0) return s;
  begin(d);
  return x.dtype == DType::f32 ? softmax<float>(a, logarithm, x, y) : softmax<double>(a, logarithm, x, y);
}

Status softmax_backward(int32_t axis, bool logarithm, const TensorView& dy, const TensorView& y, const TensorView& dx) {
  Along a;
  PathDecision d;
  const Status s = check_softmax(axis, dy, y, dx, &a, &d);
  if (s != Status::ok || d.tasks == 0) return s;
  begin(d);
  return dy.dtype == DType::f32 ? gradient<float>(a, logarithm, dy, y, dx) : gradient<double>(a, logarithm, dy, y, dx);
}

Status softmax_decide(int32_t axis, const TensorView& first, const TensorView& second, const TensorView& result,
                      PathDecision* decision) {
  Along a;
  return check_softmax(axis, first, second, result, &a, decision);
}

}  // namespace fastconv
