// Pooling: the plain loops that serve every dtype, stride and window; pool_fast.cc has the vector paths for the two
// usual memory orders, pool_shape.cc sizes and checks.
#include "fastconv/pool.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "ops/parallel.h"
#include "ops/path.h"
#include "ops/pool.h"

namespace fastconv {
namespace ops {

namespace {

constexpr int64_t kMaxSize = int64_t{1} << 60;

template <class T>
bool is_nan(T x) {
  if constexpr (std::is_floating_point_v<T>) return x != x;
  return false;
}

template <class T>
T lowest() {
  if constexpr (std::is_floating_point_v<T>) return -std::numeric_limits<T>::infinity();
  return std::numeric_limits<T>::lowest();
}

// The three windows under an output.
struct Box {
  Window d, h, w;
  bool empty() const { return d.count == 0 || h.count == 0 || w.count == 0; }
};

Box box_of(const Pool& p, int64_t od, int64_t oh, int64_t ow) {
  return {p.axis[0].window(od), p.axis[1].window(oh), p.axis[2].window(ow)};
}

// The first maximum of a window in scan order, the first NaN where there is one. `position` is flat in the image.
template <class T>
T window_max(const Pool& p, const Box& b, const T* image, const Strides& s, int64_t* position) {
  T best = lowest<T>();
  *position = -1;
  if (b.empty()) return best;
  bool first = true;
  for (int64_t i = 0; i < b.d.count; ++i)
    for (int64_t j = 0; j < b.h.count; ++j) {
      const int64_t d = b.d.first + i * p.axis[0].dilation, h = b.h.first + j * p.axis[1].dilation;
      for (int64_t k = 0; k < b.w.count; ++k) {
        const int64_t w = b.w.first + k * p.axis[2].dilation;
        const T v = image[d * s.s[0] + h * s.s[1] + w * s.s[2]];
        if (first || (!is_nan(best) && (v > best || is_nan(v)))) {
          best = v, *position = (d * p.axis[1].in + h) * p.axis[2].in + w;
          first = false;
        }
      }
    }
  return best;
}

// The sum of f(x) over a window.
template <class T, class F>
double window_sum(const Pool& p, const Box& b, const T* image, const Strides& s, F f) {
  Sum total;
  for (int64_t i = 0; i < b.d.count; ++i)
    for (int64_t j = 0; j < b.h.count; ++j) {
      const T* row = image + (b.d.first + i * p.axis[0].dilation) * s.s[0] +
                     (b.h.first + j * p.axis[1].dilation) * s.s[1] + b.w.first * s.s[2];
      for (int64_t k = 0; k < b.w.count; ++k) total.add(f(static_cast<double>(row[k * s.s[2]])));
    }
  return total.value();
}

double power(double x, double p) { return p == 1 ? x : p == 2 ? x * x : std::pow(x, p); }
double root(double x, double p) { return p == 1 ? x : p == 2 ? std::sqrt(x) : std::pow(x, 1 / p); }

// The sum of powers under an Lp output: as PyTorch's, the mean of what the window covers times the kernel's size.
template <class T>
double power_sum(const Pool& p, const Box& b, int64_t od, int64_t oh, int64_t ow, const T* image, const Strides& s) {
  const double sum = window_sum(p, b, image, s, [&](double x) { return power(x, p.norm); });
  const double size = static_cast<double>(p.divisor_of(od, oh, ow));
  const double taps = static_cast<double>(p.axis[0].kernel) * static_cast<double>(p.axis[1].kernel * p.axis[2].kernel);
  return size == taps ? sum : sum / size * taps;
}

// Calls f(n, c, od, oh, ow) for outputs [begin, end) of all images, in the order of planar memory.
template <class F>
void for_outputs(const Pool& p, int64_t begin, int64_t end, F f) {
  const int64_t W = p.axis[2].out, H = p.axis[1].out, D = p.axis[0].out;
  int64_t w = begin % W, row = begin / W;
  int64_t h = row % H, plane = row / H;
  int64_t d = plane % D, channel = plane / D;
  int64_t c = channel % p.C, n = channel / p.C;
  for (int64_t i = begin; i < end; ++i) {
    f(n, c, d, h, w);
    if (++w < W) continue;
    w = 0;
    if (++h < H) continue;
    h = 0;
    if (++d < D) continue;
    d = 0;
    if (++c < p.C) continue;
    c = 0, ++n;
  }
}

// Terms of a task of plain loops: some milliseconds.
constexpr int64_t kTaskTerms = 1 << 20;

constexpr const char* kPlainLoops = "plain loops";

template <class T>
Status forward(const Pool& p, const T* x, const Strides& xs, T* y, const Strides& ys, int64_t* indices,
               const Strides& is, bool run, PathDecision* decision) {
  const int64_t outputs = p.N * p.C * p.out_pixels();
  const int64_t step = std::max<int64_t>(1, kTaskTerms / p.taps());
  decision->path = kPlainLoops, decision->tasks = (outputs + step - 1) / step;
  if (!run) return Status::ok;
  begin(*decision);
  const double work = static_cast<double>(outputs) * static_cast<double>(p.taps());
  return parallel_for(decision->tasks, work, [&](int64_t task, int) {
    for_outputs(p, task * step, std::min(outputs, (task + 1) * step),
                [&](int64_t n, int64_t c, int64_t od, int64_t oh, int64_t ow) {
                  const Box b = box_of(p, od, oh, ow);
                  const T* image = x + n * xs.n + c * xs.c;
                  T& to = y[n * ys.n + c * ys.c + od * ys.s[0] + oh * ys.s[1] + ow * ys.s[2]];
                  if (p.kind == PoolKind::max) {
                    int64_t position;
                    to = window_max(p, b, image, xs, &position);
                    if (indices) indices[n * is.n + c * is.c + od * is.s[0] + oh * is.s[1] + ow * is.s[2]] = position;
                    return;
                  }
                  if constexpr (std::is_floating_point_v<T>) {
                    if (p.kind == PoolKind::average) {
                      const T sum = static_cast<T>(window_sum(p, b, image, xs, [](double v) { return v; }));
                      to = sum / static_cast<T>(p.divisor_of(od, oh, ow));
                    } else {
                      to = static_cast<T>(root(power_sum(p, b, od, oh, ow, image, xs), p.norm));
                    }
                  }
                });
  });
}

// A gradient by plain loops. Each task owns a band of one plane of dx along the longest axis: it goes through all
// windows that touch the band, in scan order, and adds to what it owns. So the order of an element's sum is that of
// the windows, whatever the bands are.
template <class T>
Status backward(const Pool& p, const T* dy, const Strides& ys, const T* x, const Strides& xs, T* dx, const Strides& ds,
                bool run, PathDecision* decision) {
  int along = 2;
  for (int i = 1; i >= 0; --i)
    if (p.axis[i].in > p.axis[along].in) along = i;
  const int64_t pixels = p.in_pixels(), length = p.axis[along].in;
  const int64_t terms = std::max(pixels, std::min(kMaxSize / p.taps(), p.out_pixels()) * p.taps());
  const int64_t wanted = std::min(length, (terms + kTaskTerms - 1) / kTaskTerms);
  const int64_t step = (length + wanted - 1) / wanted, bands = (length + step - 1) / step;
  const double work = static_cast<double>(p.N * p.C) * static_cast<double>(terms);
  decision->path = kPlainLoops, decision->tasks = p.N * p.C * bands;
  if (!run) return Status::ok;
  begin(*decision);
  return parallel_for(decision->tasks, work, [&](int64_t task, int) {
    const int64_t plane = task / bands, n = plane / p.C, c = plane % p.C;
    int64_t low[3] = {0, 0, 0}, high[3];
    for (int i = 0; i < 3; ++i) high[i] = p.axis[i].in;
    low[along] = task % bands * step, high[along] = std::min(length, low[along] + step);
    T* to = dx + n * ds.n + c * ds.c;
    for (int64_t d = low[0]; d < high[0]; ++d)
      for (int64_t h = low[1]; h < high[1]; ++h)
        for (int64_t w = low[2]; w < high[2]; ++w) to[d * ds.s[0] + h * ds.s[1] + w * ds.s[2]] = 0;
    const T* image = x ? x + n * xs.n + c * xs.c : nullptr;
    Range range[3];
    for (int i = 0; i < 3; ++i) range[i] = p.axis[i].touching(low[i], high[i]);
    for (int64_t od = range[0].begin; od < range[0].end; ++od)
      for (int64_t oh = range[1].begin; oh < range[1].end; ++oh)
        for (int64_t ow = range[2].begin; ow < range[2].end; ++ow) {
          const Box b = box_of(p, od, oh, ow);
          const T g = dy[n * ys.n + c * ys.c + od * ys.s[0] + oh * ys.s[1] + ow * ys.s[2]];
          if (p.kind == PoolKind::max) {
            int64_t position;
            window_max(p, b, image, xs, &position);
            if (position < 0) continue;
            const int64_t w = position % p.axis[2].in, row = position / p.axis[2].in;
            const int64_t at[3] = {row / p.axis[1].in, row % p.axis[1].in, w};
            if (at[along] >= low[along] && at[along] < high[along])
              to[at[0] * ds.s[0] + at[1] * ds.s[1] + at[2] * ds.s[2]] += g;
            continue;
          }
          double scale = 1;
          T share = g;
          if (p.kind == PoolKind::average) {
            share = g / static_cast<T>(p.divisor_of(od, oh, ow));
          } else {
            const double sum = power_sum(p, b, od, oh, ow, image, xs);
            if (sum == 0) continue;  // PyTorch's convention: no gradient there
            const double size = static_cast<double>(p.divisor_of(od, oh, ow));
            const double taps =
                static_cast<double>(p.axis[0].kernel) * static_cast<double>(p.axis[1].kernel * p.axis[2].kernel);
            scale = static_cast<double>(g) * taps / size * (p.norm == 1 ? 1 : std::pow(sum, 1 / p.norm - 1));
          }
          for (int64_t i = 0; i < b.d.count; ++i)
            for (int64_t j = 0; j < b.h.count; ++j)
              for (int64_t k = 0; k < b.w.count; ++k) {
                const int64_t at[3] = {b.d.first + i * p.axis[0].dilation, b.h.first + j * p.axis[1].dilation,
                                       b.w.first + k * p.axis[2].dilation};
                if (at[along] < low[along] || at[along] >= high[along]) continue;
                T& sum = to[at[0] * ds.s[0] + at[1] * ds.s[1] + at[2] * ds.s[2]];
                if (p.kind == PoolKind::average) {
                  sum += share;
                } else {
                  const double v = static_cast<double>(image[at[0] * xs.s[0] + at[1] * xs.s[1] + at[2] * xs.s[2]]);
                  sum += static_cast<T>(scale * (p.norm == 1 ? 1 : power(v, p.norm - 1)));
                }
              }
        }
  });
}

// --- by indices --------------------------------------------------------------------------------------------------

// Calls f with the offsets of pixels, as functions of their flat positions: products where the pixels of all sides are
// evenly spaced, for a division each would be most of the time.
template <class F, class... S>
void with_offsets(F f, const S&... sides) {
  if ((sides.step() && ...)) {
    f([step = sides.step()](int64_t position) { return position * step; }...);
  } else {
    f([&side = sides](int64_t position) { return side.offset(position); }...);
  }
}

// The planes of one task: a single one, or with channels innermost a cache line of them.
int64_t planes_a_task(int64_t channels, int64_t stride) { return stride == 1 ? std::min<int64_t>(channels, 16) : 1; }

constexpr const char* kScattered = "scattered by indices";
void decide_scatter(int64_t N, int64_t C, const Side& large, PathDecision* d) {
  const int64_t width = planes_a_task(C, large.s.c);
  d->path = kScattered, d->tasks = N * ((C + width - 1) / width);
}

// Whether all indices lie in [least, pixels).
Status check_indices(int64_t N, int64_t C, const Side& small, const int64_t* indices, int64_t least, int64_t pixels) {
  const int64_t count = small.pixels(), width = planes_a_task(C, small.s.c), blocks = (C + width - 1) / width;
  std::atomic<bool> inside{true};
  auto check = [&](int64_t task, int) {
    const int64_t c0 = task % blocks * width, planes = std::min(width, C - c0), step = small.s.c;
    const int64_t* image = indices + task / blocks * small.s.n + c0 * step;
    // The sign of one of the differences says that an index is outside; unsigned, since they may wrap.
    const auto first = static_cast<uint64_t>(least), last = static_cast<uint64_t>(pixels - 1);
    uint64_t outside = 0;
    with_offsets(
        [&](auto offset) {
          for (int64_t i = 0; i < count; ++i) {
            const int64_t* at = image + offset(i);
            for (int64_t c = 0; c < planes; ++c) {
              const auto index = static_cast<uint64_t>(at[c * step]);
              outside |= (index - first) | (last - index);
            }
          }
        },
        small);
    if (outside >> 63) inside.store(false, std::memory_order_relaxed);
  };
  const Status s = parallel_for(N * blocks, static_cast<double>(N * C) * static_cast<double>(count), check);
  if (s != Status::ok) return s;
  return inside.load(std::memory_order_relaxed) ? Status::ok : Status::bad_index;
}

// large = 0, then large[indices] = small (or += small), in scan order of the small side.
template <class T, bool kAdd>
Status scatter(int64_t N, int64_t C, const Side& small, const T* from, const Side& indexed, const int64_t* indices,
               const Side& large, T* to) {
  const int64_t width = planes_a_task(C, large.s.c), blocks = (C + width - 1) / width;
  const int64_t count = small.pixels(), pixels = large.pixels();
  const int64_t from_c = small.s.c, index_c = indexed.s.c, to_c = large.s.c;
  const bool dense = large.step() == 1;  // a plane is one run
  const double work = static_cast<double>(N * C) * static_cast<double>(pixels + 4 * count);
  return parallel_for(N * blocks, work, [&](int64_t task, int) {
    const int64_t n = task / blocks, c0 = task % blocks * width, planes = std::min(width, C - c0);
    const T* values = from + n * small.s.n + c0 * from_c;
    const int64_t* positions = indices + n * indexed.s.n + c0 * index_c;
    T* image = to + n * large.s.n + c0 * to_c;
    with_offsets(
        [=](auto from_at, auto index_at, auto to_at) {
          if (planes == 1 && dense) {
            std::fill_n(image, pixels, T{0});
          } else {
            for (int64_t i = 0; i < pixels; ++i)
              for (int64_t c = 0; c < planes; ++c) image[to_at(i) + c * to_c] = 0;
          }
          for (int64_t i = 0; i < count; ++i) {
            const T* value = values + from_at(i);
            const int64_t* position = positions + index_at(i);
            for (int64_t c = 0; c < planes; ++c, value += from_c, position += index_c) {
              if (*position < 0) continue;
              T& at = image[to_at(*position) + c * to_c];
              at = kAdd ? at + *value : *value;
            }
          }
        },
        small, indexed, large);
  });
}

template <class T>
Status gather(int64_t N, int64_t C, const Side& large, const T* from, const Side& indexed, const int64_t* indices,
              const Side& small, T* to) {
  const int64_t width = planes_a_task(C, small.s.c), blocks = (C + width - 1) / width, count = small.pixels();
  return parallel_for(N * blocks, 4 * static_cast<double>(N * C) * static_cast<double>(count), [&](int64_t task, int) {
    const int64_t n = task / blocks, c0 = task % blocks * width, c1 = std::min(C, c0 + width);
    with_offsets(
        [&](auto from_at, auto index_at, auto to_at) {
          for (int64_t i = 0; i < count; ++i)
            for (int64_t c = c0; c < c1; ++c)
              to[n * small.s.n + c * small.s.c + to_at(i)] =
                  from[n * large.s.n + c * large.s.c +
                       from_at(indices[n * indexed.s.n + c * indexed.s.c + index_at(i)])];
        },
        large, indexed, small);
  });
}

}  // namespace

}  // namespace ops

using namespace ops;

namespace {

constexpr bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f64; }

// Calls f with a null pointer of the dtype's type.
template <class F>
Status for_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: return f(static_cast<float*>(nullptr));
    case DType::f64: return f(static_cast<double*>(nullptr));
    case DType::i8: return f(static_cast<int8_t*>(nullptr));
    case DType::u8: return f(static_cast<uint8_t*>(nullptr));
    case DType::i16: return f(static_cast<int16_t*>(nullptr));
    case DType::i32: return f(static_cast<int32_t*>(nullptr));
    case DType::i64: return f(static_cast<int64_t*>(nullptr));
    case DType::f16:
    case DType::bf16: break;
  }
  return Status::bad_dtype;
}

template <class F>
Status for_float(DType dtype, F f) {
  if (dtype == DType::f32) return f(static_cast<float*>(nullptr));
  if (dtype == DType::f64) return f(static_cast<double*>(nullptr));
  return Status::bad_dtype;
}

}  // namespace

namespace {

Status run_forward(const PoolDesc& desc, const TensorView& x, const TensorView& y, const TensorView& indices, bool run,
                   PathDecision* d) {
  Pool p;
  Strides xs, ys, is;
  const Status s = check_pool_forward(Device::cpu, desc, x, y, indices, &p, &xs, &ys, &is);
  if (s != Status::ok || p.N == 0 || p.out_pixels() == 0) return s;
  return for_dtype(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto* from = static_cast<const T*>(x.data);
    T* to = static_cast<T*>(y.data);
    auto* positions = static_cast<int64_t*>(indices.data);
    const Status done = pool_forward_fast<T>(p, from, xs, to, ys, positions, is, run, d);
    return *d->path ? done : forward<T>(p, from, xs, to, ys, positions, is, run, d);
  });
}

Status run_backward(const PoolDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& indices,
                    const TensorView& dx, bool run, PathDecision* d) {
  Pool p;
  Strides xs, ys, ds, is;
  Status s = check_pool_backward(Device::cpu, desc, dy, x, indices, dx, &p, &ys, &xs, &is, &ds);
  if (s != Status::ok || p.N == 0) return s;
  const Side small{{p.axis[0].out, p.axis[1].out, p.axis[2].out}, ys},
      large{{p.axis[0].in, p.axis[1].in, p.axis[2].in}, ds};
  const Side indexed{{p.axis[0].out, p.axis[1].out, p.axis[2].out}, is};
  const auto* positions = static_cast<const int64_t*>(indices.data);
  if (positions) {
    decide_scatter(p.N, p.C, large, d);
    if (!run) return s;
    // An empty window has the index -1, and no gradient.
    s = check_indices(p.N, p.C, indexed, positions, -1, large.pixels());
    if (s != Status::ok) return s;
  }
  return for_float(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *from = static_cast<const T*>(dy.data), *image = static_cast<const T*>(x.data);
    T* to = static_cast<T*>(dx.data);
    if (positions) {
      begin(*d);
      return scatter<T, true>(p.N, p.C, small, from, indexed, positions, large, to);
    }
    const Status done = pool_backward_fast<T>(p, from, ys, image, xs, to, ds, run, d);
    return *d->path ? done : backward<T>(p, from, ys, image, xs, to, ds, run, d);
  });
}

}  // namespace

Status pool_forward(const PoolDesc& desc, const TensorView& x, const TensorView& y, const TensorView& indices) {
  PathDecision d;
  return run_forward(desc, x, y, indices, true, &d);
}

Status pool_decide(const PoolDesc& desc, const TensorView& x, const TensorView& y, const TensorView& indices,
                   PathDecision* decision) {
  return run_forward(desc, x, y, indices, false, decision);
}

Status pool_backward(const PoolDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& indices,
                     const TensorView& dx) {
  PathDecision d;
  return run_backward(desc, dy, x, indices, dx, true, &d);
}

Status pool_backward_decide(const PoolDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& indices,
                            const TensorView& dx, PathDecision* decision) {
  return run_backward(desc, dy, x, indices, dx, false, decision);
}

Status unpool_forward(int32_t spatial, bool channels_last, const TensorView& x, const TensorView& indices,
                      const TensorView& y) {
  int64_t N, C;
  Side small, indexed, large;
  Status s = unpool_sides(Device::cpu, spatial, channels_last, x, indices, y, &N, &C, &small, &indexed, &large);
  if (s != Status::ok || N == 0) return s;
  const auto* positions = static_cast<const int64_t*>(indices.data);
  if ((s = check_indices(N, C, indexed, positions, 0, large.pixels())) != Status::ok) return s;
  return for_float(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    begin_path(kScattered);
    return scatter<T, false>(N, C, small, static_cast<const T*>(x.data), indexed, positions, large,
                             static_cast<T*>(y.data));
  });
}

Status unpool_backward(int32_t spatial, bool channels_last, const TensorView& dy, const TensorView& indices,
                       const TensorView& dx) {
  int64_t N, C;
  Side small, indexed, large;
  Status s = unpool_sides(Device::cpu, spatial, channels_last, dx, indices, dy, &N, &C, &small, &indexed, &large);
  if (s != Status::ok || N == 0) return s;
  const auto* positions = static_cast<const int64_t*>(indices.data);
  if ((s = check_indices(N, C, indexed, positions, 0, large.pixels())) != Status::ok) return s;
  return for_float(dy.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    begin_path("gathered by indices");
    return gather<T>(N, C, large, static_cast<const T*>(dy.data), indexed, positions, small, static_cast<T*>(dx.data));
  });
}

}  // namespace fastconv
