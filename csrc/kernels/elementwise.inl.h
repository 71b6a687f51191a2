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

// Lanes past the end of a row count as minus infinity.
template <class V>
inline V load_or_lowest(const typename V::T* x, int64_t n) {
  using T = typename V::T;
  if (n == V::kLanes) return V::load(x);
  T all[V::kLanes];
  V::set1(-(T)__builtin_inf()).store(all);
  V::load_n(x, n).store_n(all, n);
  return V::load(all);
}

template <class T>
inline void softmax_rows(const SoftmaxArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const V lowest = V::set1(-(T)__builtin_inf());
  const int64_t n = p.columns;
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* x = p.x + r * p.pitch;
    V m[4] = {lowest, lowest, lowest, lowest};
    int64_t c = 0;
    for (; c + 4 * W <= n; c += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) m[j] = max(m[j], V::load(x + c + j * W));
    for (; c < n; c += W) m[0] = max(m[0], load_or_lowest<V>(x + c, n - c < W ? n - c : W));
    T lane[W];
    max(max(m[0], m[1]), max(m[2], m[3])).store(lane);
    T top = lane[0];
    for (int l = 1; l < W; ++l) top = lane[l] > top || top != top ? lane[l] : top;
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
    for (; c < n; c += W) {
      const int64_t lanes = n - c < W ? n - c : W;
      const V e = term(V::load_n(x + c, lanes));
      e.store_n(lane, W);
      const V used = V::load_n(lane, lanes);
      if (y) e.store_n(y + c, lanes);
      s[0] = s[0] + used;
    }
    const T total = (s[0] + s[1]).sum();
    if (!y) {
      p.maximum[r] = top, p.sum[r] = total;
      continue;
    }
    const V share = V::set1((T)1 / total);
    write_row<V>(y, n, false, [&](int64_t i, auto get) { return get(y + i) * share; });
  }
}

template <class T>
inline void softmax_columns(const SoftmaxArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const V lowest = V::set1(-(T)__builtin_inf()), one = V::set1((T)1);
  for (int64_t r = 0; r < p.rows; ++r)
    write_row<V>(p.maximum, p.columns, false,
                 [&](int64_t c, auto get) { return max(r ? get(p.maximum + c) : lowest, get(p.x + r * p.pitch + c)); });
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* x = p.x + r * p.pitch;
    T* y = p.y ? p.y + r * p.pitch : nullptr;
    for (int64_t c = 0; c < p.columns; c += W) {
      const int64_t lanes = p.columns - c < W ? p.columns - c : W;
      const V e = exp(V::load_n(x + c, lanes) - V::load_n(p.maximum + c, lanes), V::zero());
      if (y) e.store_n(y + c, lanes);
      (r ? V::load_n(p.sum + c, lanes) + e : e).store_n(p.sum + c, lanes);
    }
  }
  if (!p.y) return;
  write_row<V>(p.sum, p.columns, false, [&](int64_t c, auto get) { return one / get(p.sum + c); });
  for (int64_t r = 0; r < p.rows; ++r) {
    T* y = p.y + r * p.pitch;
    write_row<V>(y, p.columns, false, [&](int64_t c, auto get) { return get(y + c) * get(p.sum + c); });
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
