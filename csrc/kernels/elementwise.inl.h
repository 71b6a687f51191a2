// Functions of single elements with their derivatives, and the softmax of rows and columns.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/activation.inl.h"
#include "kernels/stream.inl.h"

namespace fastconv::FASTCONV_ISA_NS {

// act'(x). For sigmoid and tanh x is their result, as autodiff keeps it. At a bend the derivative is the one of the
// side that PyTorch takes.
template <int32_t kKind, class V>
inline V slope(typename V::T a, typename V::T b, V x) {
  using T = typename V::T;
  const V zero = V::zero(), one = V::set1((T)1), half = V::set1((T)0.5);
  if constexpr (kKind == 1) return V::select_less_equal(x, zero, zero, one);
  if constexpr (kKind == 2)
    return V::select_less_equal(x, zero, zero, V::select_less_equal(V::set1((T)6), x, zero, one));
  if constexpr (kKind == 3) return V::select_less_equal(x, zero, V::set1(a), one);
  if constexpr (kKind == 4) {
    V rest, s = sigmoid(x, rest);
    return fma(x * s, rest, s);
  }
  if constexpr (kKind == 5) {
    const V three = V::set1((T)3), inner = fma(x, V::set1((T)1 / (T)3), half);
    return V::select_less_equal(x, zero - three, zero, V::select_less_equal(three, x, one, inner));
  }
  if constexpr (kKind == 6) return x * (one - x);
  if constexpr (kKind == 7) {
    const V three = V::set1((T)3), inner = V::set1((T)1 / (T)6);
    return V::select_less_equal(x, zero - three, zero, V::select_less_equal(three, x, zero, inner));
  }
  if constexpr (kKind == 8) return fma(zero - x, x, one);
  if constexpr (kKind == 9) {
    // Phi(x) + x * phi(x)
    const V density = exp(zero - half * x * x, zero) * V::set1((T)0.39894228040143267794);
    return fma(x, density, half * double_normal(x));
  }
  if constexpr (kKind == 10) {
    const V c = V::set1((T)1.5957691216057307), k = V::set1((T)0.044715);
    V rest, s = sigmoid(c * fma(k * x * x, x, x), rest);
    const V inner = c * fma(V::set1((T)3) * k * x, x, one);
    return fma(x * s * rest, inner, s);
  }
  if constexpr (kKind == 11) {
    const V inside = V::select_less(x, V::set1(a), zero, one);
    return V::select_less(V::set1(b), x, zero, inside);
  }
  return one;
}

template <class T, int32_t kKind>
inline void map_of(const MapArgs<T> p) {
  using V = Vec<T>;
  switch (p.op) {
    case MapOp::forward:
      return write_row<V>(p.y, p.n, p.streaming,
                          [&](int64_t i, auto get) { return activate(kKind, p.a, p.b, get(p.x + i)); });
    case MapOp::add:
      return write_row<V>(p.y, p.n, p.streaming,
                          [&](int64_t i, auto get) { return activate(kKind, p.a, p.b, get(p.x + i) + get(p.z + i)); });
    case MapOp::backward:
      // A derivative of 0 gives 0, whatever comes: an infinite dy is no NaN where a clamp holds.
      return write_row<V>(p.y, p.n, p.streaming, [&](int64_t i, auto get) {
        const V d = get(p.z + i), x = get(p.x + i), zero = V::zero();
        if constexpr (kKind == 1) return V::select_less_equal(x, zero, zero, d);
        if constexpr (kKind == 2 || kKind == 7 || kKind == 11) {
          const V s = slope<kKind>(p.a, p.b, x);
          return V::select_less_equal(s, zero, zero, kKind == 7 ? d * s : d);
        }
        return d * slope<kKind>(p.a, p.b, x);
      });
  }
}

template <class T>
void map_run(const MapArgs<T>& p) {
  switch (p.activation) {
    case 1: map_of<T, 1>(p); break;
    case 2: map_of<T, 2>(p); break;
    case 3: map_of<T, 3>(p); break;
    case 4: map_of<T, 4>(p); break;
    case 5: map_of<T, 5>(p); break;
    case 6: map_of<T, 6>(p); break;
    case 7: map_of<T, 7>(p); break;
    case 8: map_of<T, 8>(p); break;
    case 9: map_of<T, 9>(p); break;
    case 10: map_of<T, 10>(p); break;
    case 11: map_of<T, 11>(p); break;
    default: map_of<T, 0>(p); break;
  }
  if (p.streaming) stream_fence();
}

// The largest lane. A NaN may be lost: the sum of the exponentials has it again.
template <class V>
inline typename V::T largest(V x) {
  using T = typename V::T;
  T lane[V::kLanes];
  x.store(lane);
#pragma GCC unroll 4
  for (int half = V::kLanes / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) lane[l] = lane[l] > lane[l + half] ? lane[l] : lane[l + half];
  return lane[0];
}

template <class T>
inline void softmax_rows(const SoftmaxArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const V lowest = V::set1(-(T)__builtin_inf());
  const int64_t n = p.columns, whole = n / W * W, tail = n - whole;
  T lanes[W];
  for (int l = 0; l < W; ++l) lanes[l] = (T)l;
  const auto inside = V::greater(V::set1((T)tail), V::load(lanes));
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* x = p.x + r * p.pitch;
    V m[4] = {lowest, lowest, lowest, lowest};
    int64_t c = 0;
    for (; c + 4 * W <= n; c += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) m[j] = max(m[j], V::load(x + c + j * W));
    for (; c < whole; c += W) m[0] = max(m[0], V::load(x + c));
    if (tail) m[1] = max(m[1], V::select(inside, V::load_n(x + whole, tail), lowest));
    const T top = largest(max(max(m[0], m[1]), max(m[2], m[3])));
    const V highest = V::set1(top);
    V s[2] = {V::zero(), V::zero()};
    auto term = [&](V v) { return exp(v - highest, V::zero()); };
    T* y = p.y ? p.y + r * p.pitch : nullptr;
    c = 0;
    for (; c + 2 * W <= n; c += 2 * W)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const V e = term(V::load(x + c + j * W));
        if (y) e.store(y + c + j * W);
        s[j] = s[j] + e;
      }
    if (c < whole) {
      const V e = term(V::load(x + c));
      if (y) e.store(y + c);
      s[0] = s[0] + e;
    }
    V last = V::zero();
    if (tail) {
      last = V::select(inside, term(V::load_n(x + whole, tail)), last);
      s[1] = s[1] + last;
    }
    const T total = (s[0] + s[1]).sum();
    if (!y) {
      p.maximum[r] = top, p.sum[r] = total;
      continue;
    }
    const V share = V::set1((T)1 / total);
    for (c = 0; c < whole; c += W) (V::load(y + c) * share).store(y + c);
    if (tail) (last * share).store_n(y + whole, tail);
  }
}

// Calls use(c, get, put) for each vector of n columns, whose operands come by get and whose results go by put.
template <class V, class Use>
inline void each_vector(int64_t n, Use use) {
  using T = typename V::T;
  int64_t c = 0;
  for (; c + V::kLanes <= n; c += V::kLanes)
    use(c, [](const T* from) { return V::load(from); }, [](V v, T* to) { v.store(to); });
  const int64_t tail = n - c;
  if (tail)
    use(c, [tail](const T* from) { return V::load_n(from, tail); }, [tail](V v, T* to) { v.store_n(to, tail); });
}

template <class T>
inline void softmax_columns(const SoftmaxArgs<T> p) {
  using V = Vec<T>;
  // The maximum and the sum are loaded and stored once for kHigh rows.
  constexpr int64_t kHigh = 4;
  for (int64_t r = 0; r < p.rows; r += kHigh) {
    const int64_t high = p.rows - r < kHigh ? p.rows - r : kHigh;
    const T* x = p.x + r * p.pitch;
    each_vector<V>(p.columns, [=](int64_t c, auto get, auto put) {
      V m = r ? get(p.maximum + c) : V::set1(-(T)__builtin_inf());
      if (high == kHigh) {
        const V a = max(get(x + c), get(x + p.pitch + c));
        m = max(m, max(a, max(get(x + 2 * p.pitch + c), get(x + 3 * p.pitch + c))));
      } else {
        for (int64_t i = 0; i < high; ++i) m = max(m, get(x + i * p.pitch + c));
      }
      put(m, p.maximum + c);
    });
  }
  for (int64_t r = 0; r < p.rows; r += kHigh) {
    const int64_t high = p.rows - r < kHigh ? p.rows - r : kHigh;
    const T* x = p.x + r * p.pitch;
    T* y = p.y ? p.y + r * p.pitch : nullptr;
    each_vector<V>(p.columns, [=](int64_t c, auto get, auto put) {
      const V m = get(p.maximum + c);
      V s = r ? get(p.sum + c) : V::zero();
      auto add = [&](int64_t i) {
        const V e = exp(get(x + i * p.pitch + c) - m, V::zero());
        if (y) put(e, y + i * p.pitch + c);
        s = s + e;
      };
      if (high == kHigh) {
#pragma GCC unroll 4
        for (int i = 0; i < kHigh; ++i) add(i);
      } else {
        for (int64_t i = 0; i < high; ++i) add(i);
      }
      put(s, p.sum + c);
    });
  }
  if (!p.y) return;
  each_vector<V>(p.columns, [=](int64_t c, auto get, auto put) { put(V::set1((T)1) / get(p.sum + c), p.sum + c); });
  for (int64_t r = 0; r < p.rows; ++r) {
    T* y = p.y + r * p.pitch;
    each_vector<V>(p.columns, [=](int64_t c, auto get, auto put) { put(get(y + c) * get(p.sum + c), y + c); });
  }
}

template <class T>
void softmax(const SoftmaxArgs<T>& p) {
  p.by_column ? softmax_columns(p) : softmax_rows(p);
}

template <class T, bool kLogarithm>
inline void softmax_gradient_of(const SoftmaxGradientArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  auto result = [&](V d, V y, V s) { return kLogarithm ? d - exp(y, V::zero()) * s : y * (d - s); };
  if (p.by_column) {
    for (int64_t r = 0; r < p.rows; ++r)
      write_row<V>(p.sum, p.columns, false, [&](int64_t c, auto get) {
        const V s = r ? get(p.sum + c) : V::zero(), d = get(p.dy + r * p.pitch + c);
        return kLogarithm ? s + d : fma(d, get(p.y + r * p.pitch + c), s);
      });
    for (int64_t r = 0; r < p.rows; ++r)
      write_row<V>(p.dx + r * p.pitch, p.columns, false, [&](int64_t c, auto get) {
        return result(get(p.dy + r * p.pitch + c), get(p.y + r * p.pitch + c), get(p.sum + c));
      });
    return;
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* dy = p.dy + r * p.pitch;
    const T* y = p.y + r * p.pitch;
    V s[2] = {V::zero(), V::zero()};
    auto add = [&](int64_t c, int64_t lanes, int j) {
      const V d = V::load_n(dy + c, lanes);
      s[j] = kLogarithm ? s[j] + d : fma(d, V::load_n(y + c, lanes), s[j]);
    };
    int64_t c = 0;
    for (; c + 2 * W <= p.columns; c += 2 * W) add(c, W, 0), add(c + W, W, 1);
    for (; c < p.columns; c += W) add(c, p.columns - c < W ? p.columns - c : W, 0);
    const V total = V::set1((s[0] + s[1]).sum());
    write_row<V>(p.dx + r * p.pitch, p.columns, false,
                 [&](int64_t i, auto get) { return result(get(dy + i), get(y + i), total); });
  }
}

template <class T>
void softmax_gradient(const SoftmaxGradientArgs<T>& p) {
  p.logarithm ? softmax_gradient_of<T, true>(p) : softmax_gradient_of<T, false>(p);
}

}  // namespace fastconv::FASTCONV_ISA_NS
