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
  // Both slopes less 1/2 are odd. At an infinity they are a product of it and 0.
  if constexpr (kKind == 4 && kPiecewise<V>) {
    const V w = min(V::set1(22), V::abs(x)) + V::set1(1.5f), i = V::shift_right(w, 21);
    return fma(x, zero, half) + V::turned_as(x, piece(kSiluSlope, i, w - V::without_low(w, 21)));
  }
  if constexpr (kKind == 9 && kPiecewise<V>)
    return fma(x, zero, half) + V::turned_as(x, nearest_piece<2>(kGeluSlope, min(V::set1(7.5f), V::abs(x))));
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
    const V density = exp(zero - half * x * x) * V::set1((T)0.39894228040143267794);
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

// One vector at a time, or two.
template <class V, bool kTwo>
struct Together {
  using Type = V;
};
template <class V>
struct Together<V, true> {
  using Type = Pair<V>;
};

template <class T, int32_t kKind>
inline void map_of(const MapArgs<T> p) {
  using V = Vec<T>;
  // Functions of many instructions are taken of two vectors at a time, unless they are so many that registers run out.
  constexpr bool kMany = kKind == 4 || kKind == 6 || kKind == 10 || ((kKind == 8 || kKind == 9) && kPiecewise<V>);
  using Wide = typename Together<V, V::kTable && kMany>::Type;
  switch (p.op) {
    case MapOp::forward:
      return write_row<V, Wide>(p.y, p.n, p.streaming,
                                [&](int64_t i, auto get) { return activate(kKind, p.a, p.b, get(p.x + i)); });
    case MapOp::add:
      return write_row<V>(p.y, p.n, p.streaming,
                          [&](int64_t i, auto get) { return activate(kKind, p.a, p.b, get(p.x + i) + get(p.z + i)); });
    case MapOp::backward:
      // A derivative of 0 gives 0, whatever comes: an infinite dy is no NaN where a clamp holds.
      return write_row<V, Wide>(p.y, p.n, p.streaming, [&](int64_t i, auto get) {
        const auto d = get(p.z + i), x = get(p.x + i), zero = d.zero();
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

// e^x for x <= 0, times a power of two that keeps it from being denormal where exp_by_table serves.
template <class V>
inline V scaled_exp(V x) {
  if constexpr (V::kTable)
    return exp_by_table<1>(max(V::set1(-130), x), x);
  else
    return exp(x);
}
template <class V>
constexpr float kExpUnit = V::kTable ? 0x1p-64f : 1;

// The logarithm of s >= 1 by 2 atanh((m - 1) / (m + 1)), s = 2^e * m; what is not finite comes through.
inline double logarithm(double s) {
  if (!(s < __builtin_inf())) return s;
  uint64_t bits;
  __builtin_memcpy(&bits, &s, sizeof bits);
  double e = (double)(int64_t)(bits >> 52) - 1023, m;
  bits = (bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000;
  __builtin_memcpy(&m, &bits, sizeof m);
  if (m > 1.4142135623730951) m *= 0.5, e += 1;
  const double t = (m - 1) / (m + 1), u = t * t;  // u < 0.0295: the first term that is left out is below 2^-60
  double p = 1.0 / 21;
#pragma GCC unroll 10
  for (int k = 9; k >= 0; --k) p = p * u + 1.0 / (2 * k + 1);
  return e * 0.69314718055994530942 + 2 * t * p;
}

// What softmax_rows writes: the sums alone, the shares, their logarithms.
enum class Rows { sums, shares, logarithms };

// One loop takes the exponentials of a row, the results of the row before and the maximum of the row after the next, so
// that no row waits for a sum over lanes, and misses are hidden by arithmetic: 1.3 times the speed of three loops one
// after another on rows of 197, 1.15 times on rows of 1000.
template <class T, Rows kRows>
inline void softmax_rows(const SoftmaxArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  constexpr bool kWrite = kRows != Rows::sums, kLogarithm = kRows == Rows::logarithms;
  const V lowest = V::set1(-(T)__builtin_inf());
  const int64_t n = p.columns, whole = n / W * W, tail = n - whole;
  const auto inside = V::range(0, tail);
  auto ends = [&](const T* x) { return tail ? V::load_range(x + whole, inside, lowest) : lowest; };
  // A NaN may be lost: the sum of the exponentials has it again.
  auto maximum = [&](const T* x) {
    V m = lowest;
    for (int64_t c = 0; c < whole; c += W) m = max(m, V::load(x + c));
    return max(m, ends(x)).largest();
  };
  T top = maximum(p.x), next = p.rows > 1 ? maximum(p.x + p.pitch) : top;
  // Of the row before: 1 / sum, or its maximum and -log(sum); its last elements, from which the results are made.
  V share = V::zero(), peak = V::zero(), last = V::zero();
  auto result = [](auto v, auto peaks, auto shares) {
    if constexpr (kLogarithm)
      return v - peaks + shares;
    else
      return v * shares;
  };
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* x = p.x + r * p.pitch;
    const T* ahead = r + 2 < p.rows ? x + 2 * p.pitch : x;
    T* y = kWrite ? p.y + r * p.pitch : nullptr;
    T* before = kWrite && r ? y - p.pitch : nullptr;
    const T* from = kLogarithm && r ? x - p.pitch : before;
    const V highest = V::set1(top);
    Pair<V> m = {lowest, lowest}, s = {V::zero(), V::zero()};
    auto each = [&](int64_t c, auto high, auto peaks, auto shares, auto& most, auto& sum) {
      using U = decltype(high);
      const U e = scaled_exp(U::load(x + c) - high);
      most = max(most, U::load(ahead + c));
      sum = sum + e;
      if (kRows == Rows::shares) e.store(y + c);
      if (kWrite && before) result(U::load(from + c), peaks, shares).store(before + c);
    };
    int64_t c = 0;
    for (; c + 2 * W <= n; c += 2 * W) {
      if constexpr (V::kTable) {
        each(c, Pair<V>{highest, highest}, Pair<V>{peak, peak}, Pair<V>{share, share}, m, s);
      } else {  // a pair of the longer polynomials spills
        each(c, highest, peak, share, m.a, s.a);
        each(c + W, highest, peak, share, m.b, s.b);
      }
    }
    if (c < whole) each(c, highest, peak, share, m.a, s.a);
    if (tail) {
      if (before) result(last, peak, share).store_n(before + whole, tail);
      last = ends(x);
      const V e = scaled_exp(last - highest);
      if (!kLogarithm) last = e;
      s.b = s.b + e;
    }
    const T total = (s.a + s.b).sum();
    if (!kWrite) p.maximum[r] = top, p.sum[r] = total * (T)kExpUnit<V>;
    share = V::set1(kLogarithm ? (T)-logarithm((double)(total * (T)kExpUnit<V>)) : (T)1 / total);
    peak = highest;
    top = next;
    next = max(ends(ahead), max(m.a, m.b)).largest();
  }
  if (!kWrite) return;
  T* y = p.y + (p.rows - 1) * p.pitch;
  const T* from = kLogarithm ? p.x + (p.rows - 1) * p.pitch : y;
  for (int64_t c = 0; c < whole; c += W) result(V::load(from + c), peak, share).store(y + c);
  if (tail) result(last, peak, share).store_n(y + whole, tail);
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
        const V e = scaled_exp(get(x + i * p.pitch + c) - m);
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
  each_vector<V>(p.columns, [=](int64_t c, auto get, auto put) {
    const V s = get(p.sum + c);
    put(p.y ? V::set1((T)1) / s : s * V::set1((T)kExpUnit<V>), p.sum + c);
  });
  if (!p.y) return;
  for (int64_t r = 0; r < p.rows; ++r) {
    T* y = p.y + r * p.pitch;
    each_vector<V>(p.columns, [=](int64_t c, auto get, auto put) { put(get(y + c) * get(p.sum + c), y + c); });
  }
}

template <class T>
void softmax(const SoftmaxArgs<T>& p) {
  if (p.by_column)
    softmax_columns(p);
  else if (!p.y)
    softmax_rows<T, Rows::sums>(p);
  else if (p.logarithm)
    softmax_rows<T, Rows::logarithms>(p);
  else
    softmax_rows<T, Rows::shares>(p);
}

template <class T, bool kLogarithm>
inline void softmax_gradient_of(const SoftmaxGradientArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  // For log_softmax s is in the units of scaled_exp. (e^40 is no share.)
  auto result = [&](auto d, auto y, auto s) {
    using U = decltype(d);
    if constexpr (kLogarithm)
      return d - scaled_exp(U::kTable ? min(U::set1(40), y) : y) * s;
    else
      return y * (d - s);
  };
  const T unit = kLogarithm ? (T)kExpUnit<V> : 1;
  if (p.by_column) {
    for (int64_t r = 0; r < p.rows; ++r)
      write_row<V>(p.sum, p.columns, false, [&](int64_t c, auto get) {
        const V s = r ? get(p.sum + c) : V::zero(), d = get(p.dy + r * p.pitch + c);
        return kLogarithm ? s + d : fma(d, get(p.y + r * p.pitch + c), s);
      });
    for (int64_t r = 0; r < p.rows; ++r)
      write_row<V>(p.dx + r * p.pitch, p.columns, false, [&](int64_t c, auto get) {
        return result(get(p.dy + r * p.pitch + c), get(p.y + r * p.pitch + c), get(p.sum + c) * V::set1(unit));
      });
    return;
  }
  const int64_t n = p.columns, whole = n / W * W, tail = n - whole;
  auto term = [](auto d, auto y, auto s) {
    if constexpr (kLogarithm)
      return s + d;
    else
      return fma(d, y, s);
  };
  // Tails come last: to jump ahead within a row puts hardware prefetchers off their track.
  auto finish = [&](const T* dy, const T* y, Pair<V> s) {
    if (tail) s.b = term(V::load_n(dy + whole, tail), V::load_n(y + whole, tail), s.b);
    return (s.a + s.b).sum() * unit;
  };
  auto total = [&](const T* dy, const T* y) {
    Pair<V> s = Pair<V>::zero();
    int64_t c = 0;
    for (; c + 2 * W <= n; c += 2 * W) s = term(Pair<V>::load(dy + c), Pair<V>::load(y + c), s);
    if (c < whole) s.a = term(V::load(dy + c), V::load(y + c), s.a);
    return finish(dy, y, s);
  };
  // Of short rows one loop takes the results of a row and the sum of the row after the next, so that no row waits for a
  // sum over lanes: 1.3 times the speed on rows of 197 floats. Rows of 197 doubles and of 1000 floats lost by it: more
  // of what misses the caches is in flight in a loop that does nothing else.
  constexpr int64_t kLong = 1024 / sizeof(T);
  if (n >= kLong) {
    for (int64_t r = 0; r < p.rows; ++r) {
      const T *dy = p.dy + r * p.pitch, *y = p.y + r * p.pitch;
      const V own = V::set1(total(dy, y));
      write_row<V>(p.dx + r * p.pitch, n, false,
                   [&](int64_t c, auto get) { return result(get(dy + c), get(y + c), own); });
    }
    return;
  }
  T sum = total(p.dy, p.y), next = p.rows > 1 ? total(p.dy + p.pitch, p.y + p.pitch) : sum;
  for (int64_t r = 0; r < p.rows; ++r) {
    const T *dy = p.dy + r * p.pitch, *y = p.y + r * p.pitch;
    const int64_t step = r + 2 < p.rows ? 2 * p.pitch : 0;
    T* dx = p.dx + r * p.pitch;
    Pair<V> s = Pair<V>::zero();
    auto each = [&](int64_t c, auto whose, auto& ahead) {
      using U = decltype(whose);
      ahead = term(U::load(dy + step + c), U::load(y + step + c), ahead);
      result(U::load(dy + c), U::load(y + c), whose).store(dx + c);
    };
    const V own = V::set1(sum);
    int64_t c = 0;
    for (; c + 2 * W <= n; c += 2 * W) {
      if constexpr (V::kTable)
        each(c, Pair<V>{own, own}, s);
      else
        each(c, own, s.a), each(c + W, own, s.b);
    }
    if (c < whole) each(c, own, s.a);
    if (tail) result(V::load_n(dy + whole, tail), V::load_n(y + whole, tail), own).store_n(dx + whole, tail);
    sum = next, next = finish(dy + step, y + step, s);
  }
}

template <class T>
void softmax_gradient(const SoftmaxGradientArgs<T>& p) {
  p.logarithm ? softmax_gradient_of<T, true>(p) : softmax_gradient_of<T, false>(p);
}

}  // namespace fastconv::FASTCONV_ISA_NS
