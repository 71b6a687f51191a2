// Pooling: windows as lists of runs that are combined element by element. PoolArgs in kernel_args.h says what each
// kernel computes.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

// Maxima of integers need no more than the compiler's own vectors.
#if defined(__AVX512F__)
inline constexpr int kIntegerBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kIntegerBytes = 32;
#else
inline constexpr int kIntegerBytes = 16;
#endif

template <class E>
struct IntegerVec {
  using T = E;
  typedef E V __attribute__((vector_size(kIntegerBytes)));
  static constexpr int kLanes = kIntegerBytes / sizeof(E);
  V v;

  static IntegerVec load(const T* p) {
    IntegerVec r;
    __builtin_memcpy(&r.v, p, sizeof(V));
    return r;
  }
  void store(T* p) const { __builtin_memcpy(p, &v, sizeof(V)); }
  static IntegerVec load_n(const T* p, int64_t n) {
    V r{};
    for (int64_t i = 0; i < n; ++i) r[i] = p[i];
    return {r};
  }
  void store_n(T* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
  static IntegerVec max_nan(IntegerVec a, IntegerVec x) { return {a.v > x.v ? a.v : x.v}; }
};

template <int kOp, class V>
inline V pool_first(V x) {
  if constexpr (kOp == kPoolSquares) return x * x;
  return x;
}

template <int kOp, class V>
inline V pool_step(V acc, V x) {
  if constexpr (kOp == kPoolMax) return V::max_nan(acc, x);
  if constexpr (kOp == kPoolSum) return acc + x;
  if constexpr (kOp == kPoolSquares) return fma(x, x, acc);
}

// The last step of an average or a norm. Division, not a product with the reciprocal: a quotient of exact sums is then
// the correctly rounded one.
template <class T>
struct PoolFinish {
  using V = Vec<T>;
  V divisor, inverse;
  const T* divisors;
  int32_t kind;
  int32_t exact;  // the divisor is a power of two: its reciprocal is exact

  explicit PoolFinish(const PoolArgs<T>& p)
      : divisor(V::set1(p.divisor)),
        inverse(V::set1((T)1 / p.divisor)),
        divisors(p.divisors),
        kind(p.finish),
        exact(0) {
    T d = p.divisor;
    if (kind == kPoolDivide && d >= 1 && d < 4294967296.0) exact = ((uint64_t)d & ((uint64_t)d - 1)) == 0;
  }
  V operator()(V acc, int64_t at, int64_t lanes) const {
    if (kind == kPoolPlain) return acc;
    if (kind == kPoolRoot) return V::sqrt(acc * divisor);
    if (divisors) return acc / (lanes == V::kLanes ? V::load(divisors + at) : V::load_n(divisors + at, lanes));
    return exact ? acc * inverse : acc / divisor;
  }
};

template <class T>
struct NoFinish {
  template <class V>
  V operator()(V acc, int64_t, int64_t) const {
    return acc;
  }
};

// Four vectors at a time, so that each pointer is read once for all of them and their chains overlap; then one, and a
// masked one. Registers: 4 accumulators, an operand, the finish's 2.
template <int kOp, class V, int kCount, class T, class F>
inline void combine_rows(const PoolArgs<T>& p, const F& finish) {
  constexpr int W = V::kLanes;
  const int64_t count = kCount > 0 ? kCount : p.count;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t at = row * p.src_pitch;
    T* dst = p.dst + row * p.dst_pitch;
    int64_t j = 0;
    for (; j + 4 * W <= p.n; j += 4 * W) {
      V acc[4];
      int64_t k = 0;
      if (p.accumulate) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) acc[i] = V::load(dst + j + i * W);
      } else {
        const T* x = p.src[0] + at + j;
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) acc[i] = pool_first<kOp>(V::load(x + i * W));
        k = 1;
      }
#pragma GCC unroll 4
      for (; k < count; ++k) {
        const T* x = p.src[k] + at + j;
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) acc[i] = pool_step<kOp>(acc[i], V::load(x + i * W));
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) finish(acc[i], j + i * W, W).store(dst + j + i * W);
    }
    for (; j + W <= p.n; j += W) {
      V acc;
      int64_t k = 0;
      if (p.accumulate) {
        acc = V::load(dst + j);
      } else {
        acc = pool_first<kOp>(V::load(p.src[0] + at + j));
        k = 1;
      }
      for (; k < count; ++k) acc = pool_step<kOp>(acc, V::load(p.src[k] + at + j));
      finish(acc, j, W).store(dst + j);
    }
    if (j < p.n) {
      const int64_t lanes = p.n - j;
      V acc;
      int64_t k = 0;
      if (p.accumulate) {
        acc = V::load_n(dst + j, lanes);
      } else {
        acc = pool_first<kOp>(V::load_n(p.src[0] + at + j, lanes));
        k = 1;
      }
      for (; k < count; ++k) acc = pool_step<kOp>(acc, V::load_n(p.src[k] + at + j, lanes));
      finish(acc, j, lanes).store_n(dst + j, lanes);
    }
  }
}

template <int kOp, class V, class T, class F>
inline void combine_counts(const PoolArgs<T>& p, const F& finish) {
  switch (p.accumulate ? 0 : p.count) {
    case 1: return combine_rows<kOp, V, 1>(p, finish);
    case 2: return combine_rows<kOp, V, 2>(p, finish);
    case 3: return combine_rows<kOp, V, 3>(p, finish);
    case 4: return combine_rows<kOp, V, 4>(p, finish);
    default: return combine_rows<kOp, V, 0>(p, finish);
  }
}

template <class T>
void pool_combine(const PoolArgs<T>& p) {
  using V = Vec<T>;
  if (p.count == 0 && !p.accumulate) {
    for (int64_t row = 0; row < p.rows; ++row)
      for (int64_t j = 0; j < p.n; j += V::kLanes)
        V::zero().store_n(p.dst + row * p.dst_pitch + j, p.n - j < V::kLanes ? p.n - j : V::kLanes);
    return;
  }
  if (p.op == kPoolMax) return combine_counts<kPoolMax, V>(p, NoFinish<T>{});
  if (p.op == kPoolSquares) return combine_counts<kPoolSquares, V>(p, PoolFinish<T>(p));
  if (p.finish == kPoolPlain) return combine_counts<kPoolSum, V>(p, NoFinish<T>{});
  combine_counts<kPoolSum, V>(p, PoolFinish<T>(p));
}

// Windows along the columns. With a stride of two, two loads give the even and the odd elements: taps that are
// neighbours share them.
template <int kOp, class T, class F>
inline void slide_rows(const PoolArgs<T>& p, const F& finish) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* src = p.src[0] + row * p.src_pitch;
    T* dst = p.dst + row * p.dst_pitch;
    for (int64_t j = 0; j < p.n; j += W) {
      const int64_t lanes = p.n - j < W ? p.n - j : W;
      V acc;
      if (p.stride == 1) {
        acc = V::load(src + j);
        for (int64_t k = 1; k < p.count; ++k) acc = pool_step<kOp>(acc, V::load(src + j + k * p.step));
      } else if (p.stride == 2) {
        const T* x = src + 2 * j;
        V low = V::load(x), high = V::load(x + W);
        acc = V::even(low, high);
        int64_t k = 1;
        if (p.step == 1) {
          for (; k + 1 < p.count; k += 2) {
            acc = pool_step<kOp>(acc, V::odd(low, high));
            low = V::load(x + k + 1), high = V::load(x + k + 1 + W);
            acc = pool_step<kOp>(acc, V::even(low, high));
          }
          if (k < p.count) acc = pool_step<kOp>(acc, V::odd(low, high)), ++k;
        }
        for (; k < p.count; ++k)
          acc = pool_step<kOp>(acc, V::even(V::load(x + k * p.step), V::load(x + k * p.step + W)));
      } else {
        T part[W];
        auto tap = [&](int64_t k) {
          for (int64_t i = 0; i < W; ++i) part[i] = i < lanes ? src[(j + i) * p.stride + k * p.step] : (T)0;
          return V::load(part);
        };
        acc = tap(0);
        for (int64_t k = 1; k < p.count; ++k) acc = pool_step<kOp>(acc, tap(k));
      }
      acc = finish(acc, j, lanes);
      if (lanes == W) {
        acc.store(dst + j);
      } else {
        acc.store_n(dst + j, lanes);
      }
    }
  }
}

template <class T>
void pool_slide(const PoolArgs<T>& p) {
  if (p.op == kPoolMax) return slide_rows<kPoolMax>(p, NoFinish<T>{});
  slide_rows<kPoolSum>(p, PoolFinish<T>(p));
}

// The codes are numbers of the dtype: small integers are exact, and one kind of register serves.
template <class T>
void pool_argmax(const PoolArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t at = row * p.src_pitch;
    for (int64_t j = 0; j < p.n; j += W) {
      const int64_t lanes = p.n - j < W ? p.n - j : W;
      auto load = [&](int64_t k) {
        const T* x = p.src[k] + at + j;
        return lanes == W ? V::load(x) : V::load_n(x, lanes);
      };
      V best = load(0), code = V::set1(p.codes[0]);
      typename V::Mask odd = V::unordered(best, best);
      for (int64_t k = 1; k < p.count; ++k) {
        const V x = load(k);
        odd = V::either(odd, V::unordered(x, x));
        const typename V::Mask m = V::greater(x, best);
        code = V::select(m, V::set1(p.codes[k]), code);
        best = V::select(m, x, best);
      }
      if (V::any(odd)) {  // the first NaN wins: backwards, so that the first one is the last to be taken
        for (int64_t k = p.count - 1; k >= 0; --k) {
          const V x = load(k);
          code = V::select(V::unordered(x, x), V::set1(p.codes[k]), code);
        }
      }
      code.store_n(p.dst + row * p.dst_pitch + j, lanes);
    }
  }
}

template <class T>
void pool_route(const PoolArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t at = row * p.src_pitch;
    for (int64_t j = 0; j < p.n; j += W) {
      const int64_t lanes = p.n - j < W ? p.n - j : W;
      V acc = V::zero();
      for (int64_t k = 0; k < p.count; ++k) {
        const T *x = p.src[k] + at + j, *mark = p.marks[k] + row * p.phase_pitch + j;
        const V value = lanes == W ? V::load(x) : V::load_n(x, lanes);
        const V code = lanes == W ? V::load(mark) : V::load_n(mark, lanes);
        acc = acc + V::select(V::equal(code, V::set1(p.codes[k])), value, V::zero());
      }
      T* dst = p.dst + row * p.dst_pitch + j;
      if (lanes == W) {
        acc.store(dst);
      } else {
        acc.store_n(dst, lanes);
      }
    }
  }
}

template <class T>
void pool_split(const PoolArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* src = p.src[0] + row * p.src_pitch;
    T* dst = p.dst + row * p.dst_pitch;
    if (p.stride == 2) {
      for (int64_t j = 0; j < p.n; j += W) {
        const V low = V::load(src + 2 * j), high = V::load(src + 2 * j + W);
        V::even(low, high).store(dst + j);
        V::odd(low, high).store(dst + p.phase_pitch + j);
      }
      continue;
    }
    for (int64_t f = 0; f < p.stride; ++f)
      for (int64_t j = 0; j < p.n; ++j) dst[f * p.phase_pitch + j] = src[j * p.stride + f];
  }
}

template <class T>
void pool_merge(const PoolArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* src = p.src[0] + row * p.src_pitch;
    T* dst = p.dst + row * p.dst_pitch;
    if (p.stride == 2) {
      for (int64_t j = 0; j < p.n; j += 2 * W) {
        const V a = V::load(src + j / 2), b = V::load(src + p.phase_pitch + j / 2);
        const V low = V::zip_low(a, b), high = V::zip_high(a, b);
        if (j + 2 * W <= p.n) {
          low.store(dst + j);
          high.store(dst + j + W);
        } else {
          low.store_n(dst + j, p.n - j < W ? p.n - j : W);
          if (p.n - j > W) high.store_n(dst + j + W, p.n - j - W);
        }
      }
      continue;
    }
    for (int64_t f = 0; f < p.stride; ++f)
      for (int64_t j = f, i = 0; j < p.n; j += p.stride, ++i) dst[j] = src[f * p.phase_pitch + i];
  }
}

// combine and (`step` is not 0) slide of maxima. `dtype` is fastconv::DType.
template <class E>
inline void integers(const PoolArgs<E>& p) {
  if (p.step == 0) return combine_counts<kPoolMax, IntegerVec<E>>(p, NoFinish<E>{});
  for (int64_t row = 0; row < p.rows; ++row) {
    const E* src = p.src[0] + row * p.src_pitch;
    E* dst = p.dst + row * p.dst_pitch;
    for (int64_t j = 0; j < p.n; ++j) dst[j] = src[j * p.stride];
    for (int64_t k = 1; k < p.count; ++k)
      for (int64_t j = 0; j < p.n; ++j) {
        const E x = src[j * p.stride + k * p.step];
        dst[j] = x > dst[j] ? x : dst[j];
      }
  }
}

// One translation unit instantiates the work; both tables have the row.
void pool_integers_any(const void* args, int32_t dtype);

template <class T>
void pool_integers(const void* args, int32_t dtype) {
  pool_integers_any(args, dtype);
}

// The maximum of n elements, at least one; a NaN wins.
template <class T>
T max_run(const T* x, int64_t n) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  T best = x[0];
  int64_t i = 0;
  if (n >= W) {
    V acc[4];
    acc[0] = acc[1] = acc[2] = acc[3] = V::load(x);
    for (; i + 4 * W <= n; i += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[j] = V::max_nan(acc[j], V::load(x + i + j * W));
    for (; i + W <= n; i += W) acc[0] = V::max_nan(acc[0], V::load(x + i));
    T lane[W];
    V::max_nan(V::max_nan(acc[0], acc[1]), V::max_nan(acc[2], acc[3])).store(lane);
    best = lane[0];
    for (int l = 1; l < W; ++l) best = best != best ? best : lane[l] <= best ? best : lane[l];
  }
  for (; i < n; ++i) best = best != best ? best : x[i] <= best ? best : x[i];
  return best;
}

}  // namespace fastconv::FASTCONV_ISA_NS
