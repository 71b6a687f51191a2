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

  static constexpr bool kMayBeNan = false;
  void pin() {}
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

// A sum's quotient by a number that stays. Division, or what is as good, not a product with the reciprocal: a quotient
// of exact sums is then the correctly rounded one. So is the product once it is corrected by what it leaves of the sum,
// which an FMA gives exactly (Markstein), where the quotient is a normal number. Infinities leave a NaN, and need no
// correction.
template <class T>
struct PoolQuotient {
  using V = Vec<T>;
  V divisor, inverse, minus;
  explicit PoolQuotient(T d) : divisor(V::set1(d)), inverse(V::set1((T)1 / d)), minus(V::set1(-d)) {}
  V operator()(V sum) const {
#if defined(__FMA__)
    const V quotient = sum * inverse, rest = fma(quotient, minus, sum);
    return V::select(V::unordered(rest, rest), quotient, fma(rest, inverse, quotient));
#else
    return sum / divisor;
#endif
  }
};

// Whether it is a power of two, whose reciprocal is exact.
template <class T>
inline bool exact_inverse(T d) {
  return d >= 1 && d < 4294967296.0 && ((uint64_t)d & ((uint64_t)d - 1)) == 0;
}

// The last step of an average or a norm.
template <class T>
struct PoolFinish {
  using V = Vec<T>;
  PoolQuotient<T> by;
  const T* divisors;
  int32_t kind;
  int32_t exact;

  explicit PoolFinish(const PoolArgs<T>& p)
      : by(p.divisor), divisors(p.divisors), kind(p.finish), exact(kind == kPoolDivide && exact_inverse(p.divisor)) {}
  V operator()(V acc, int64_t at, int64_t lanes) const {
    if (kind == kPoolPlain) return acc;
    if (kind == kPoolRoot) return V::sqrt(acc * by.divisor);
    if (divisors) return acc / (lanes == V::kLanes ? V::load(divisors + at) : V::load_n(divisors + at, lanes));
    return exact ? acc * by.inverse : by(acc);
  }
};

template <class T>
struct NoFinish {
  template <class V>
  V operator()(V acc, int64_t, int64_t) const {
    return acc;
  }
};

// The loads of a block: whole vectors, or one masked.
template <class V, bool kMasked>
struct PoolLoad {
  int64_t lanes;
  template <class T>
  V operator()(const T* x, int i) const {
    return kMasked ? V::load_n(x, lanes) : V::load(x + i * V::kLanes);
  }
  template <class T>
  void put(V v, T* to, int i) const {
    if (kMasked) {
      v.store_n(to, lanes);
    } else {
      v.store(to + i * V::kLanes);
    }
  }
};

// Registers: 4 accumulators, an operand, the finish's 2. A maximum of floats is first taken without regard to NaN,
// which is looked for beside it, two vectors a comparison; where there is one the block is done again with care.
template <int kOp, class V, int kCount, int kVectors, bool kMasked, class T, class F>
__attribute__((always_inline)) inline void combine_block(const T* const* src, int64_t runtime_count, bool accumulate,
                                                         int64_t at, T* dst, int64_t j, int64_t lanes,
                                                         const F& finish) {
  const int64_t count = kCount > 0 ? kCount : runtime_count;
  const PoolLoad<V, kMasked> load{lanes};
  V acc[kVectors];
  int64_t k = 0;
  const T* first = accumulate ? dst : src[0] + at;
  if (!accumulate) k = 1;
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) acc[i] = load(first, i);
  if constexpr (kOp == kPoolMax && V::kMayBeNan) {
    typename V::Mask odd = V::unordered(acc[0], acc[kVectors - 1]);
    if constexpr (kVectors == 4) odd = V::either(odd, V::unordered(acc[1], acc[2]));
#pragma GCC unroll 4
    for (; k < count; ++k) {
      const T* x = src[k] + at;
      V v[kVectors];
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) v[i] = load(x, i), v[i].pin();
      odd = V::either(odd, V::unordered(v[0], v[kVectors - 1]));
      if constexpr (kVectors == 4) odd = V::either(odd, V::unordered(v[1], v[2]));
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[i] = max(acc[i], v[i]);
    }
    if (__builtin_expect(V::any(odd), 0)) {
      // Unrolled: an index that is not a constant would keep the accumulators in memory.
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        acc[i] = load(first, i);
        for (int64_t l = accumulate ? 0 : 1; l < count; ++l) acc[i] = V::max_nan(acc[i], load(src[l] + at, i));
      }
    }
  } else {
    if (!accumulate) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[i] = pool_first<kOp>(acc[i]);
    }
#pragma GCC unroll 4
    for (; k < count; ++k) {
      const T* x = src[k] + at;
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[i] = pool_step<kOp>(acc[i], load(x, i));
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) load.put(finish(acc[i], j + i * V::kLanes, lanes), dst, i);
}

// Four vectors at a time, so that each pointer is read once for all of them and their chains overlap; then one, and a
// masked one.
template <int kOp, class V, int kCount, class T, class F>
inline void combine_rows(const PoolArgs<T>& p, const F& finish) {
  constexpr int W = V::kLanes;
  const int64_t count = p.count, n = p.n, rows = p.rows, src_pitch = p.src_pitch, dst_pitch = p.dst_pitch;
  const bool accumulate = kCount == 0 && p.accumulate;
  // Few pointers are kept in registers: for all the compiler knows, a store may change those of the caller.
  const T* own[kCount > 0 ? kCount : 1];
  for (int64_t k = 0; k < kCount; ++k) own[k] = p.src[k];
  const T* const* src = kCount > 0 ? own : p.src;
  T* dst = p.dst;
  for (int64_t row = 0; row < rows; ++row, dst += dst_pitch) {
    const int64_t at = row * src_pitch;
    int64_t j = 0;
    for (; j + 4 * W <= n; j += 4 * W)
      combine_block<kOp, V, kCount, 4, false>(src, count, accumulate, at + j, dst + j, j, W, finish);
    for (; j + 2 * W <= n; j += 2 * W)
      combine_block<kOp, V, kCount, 2, false>(src, count, accumulate, at + j, dst + j, j, W, finish);
    for (; j + W <= n; j += W)
      combine_block<kOp, V, kCount, 1, false>(src, count, accumulate, at + j, dst + j, j, W, finish);
    if (j < n) combine_block<kOp, V, kCount, 1, true>(src, count, accumulate, at + j, dst + j, j, n - j, finish);
  }
}

template <int kOp, class V, class T, class F>
inline void combine_counts(const PoolArgs<T>& p, const F& finish) {
  // Counts of their own are for floats with AVX: each is compiled for every op, width and dtype.
#if defined(__AVX2__)
  if constexpr (V::kMayBeNan) {
    switch (p.accumulate ? 0 : p.count) {
      case 1: return combine_rows<kOp, V, 1>(p, finish);
      case 2: return combine_rows<kOp, V, 2>(p, finish);
      case 3: return combine_rows<kOp, V, 3>(p, finish);
      case 4: return combine_rows<kOp, V, 4>(p, finish);
      case 6: return combine_rows<kOp, V, 6>(p, finish);
      case 9: return combine_rows<kOp, V, 9>(p, finish);
    }
  }
#endif
  combine_rows<kOp, V, 0>(p, finish);
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
  const T* from = p.src[0];
  T* to = p.dst;
  const int64_t n = p.n, count = p.count, step = p.step, stride = p.stride;
  const int64_t rows = p.rows, src_pitch = p.src_pitch, dst_pitch = p.dst_pitch;
  for (int64_t row = 0; row < rows; ++row) {
    const T* src = from + row * src_pitch;
    T* dst = to + row * dst_pitch;
    if (stride == 2 && step == 1 && count == 3) {
      for (int64_t j = 0; j < n; j += W) {
        const T* x = src + 2 * j;
        const V low = V::load(x), high = V::load(x + W);
        const V pair = pool_step<kOp>(V::even(low, high), V::odd(low, high));
        const V sum = pool_step<kOp>(pair, V::even(V::load(x + 2), V::load(x + 2 + W)));
        const int64_t lanes = n - j < W ? n - j : W;
        const V result = finish(sum, j, lanes);
        if (lanes == W) {
          result.store(dst + j);
        } else {
          result.store_n(dst + j, lanes);
        }
      }
      continue;
    }
    for (int64_t j = 0; j < n; j += W) {
      const int64_t lanes = n - j < W ? n - j : W;
      V acc;
      if (stride == 1) {
        acc = V::load(src + j);
        for (int64_t k = 1; k < count; ++k) acc = pool_step<kOp>(acc, V::load(src + j + k * step));
      } else if (stride == 2) {
        const T* x = src + 2 * j;
        V low = V::load(x), high = V::load(x + W);
        acc = V::even(low, high);
        int64_t k = 1;
        if (step == 1) {
          for (; k + 1 < count; k += 2) {
            acc = pool_step<kOp>(acc, V::odd(low, high));
            low = V::load(x + k + 1), high = V::load(x + k + 1 + W);
            acc = pool_step<kOp>(acc, V::even(low, high));
          }
          if (k < count) acc = pool_step<kOp>(acc, V::odd(low, high)), ++k;
        }
        for (; k < count; ++k) acc = pool_step<kOp>(acc, V::even(V::load(x + k * step), V::load(x + k * step + W)));
      } else if (stride == 4 && step == 1 && count <= 4) {
        const T* x = src + 4 * j;
        const V a = V::load(x), b = V::load(x + W), c = V::load(x + 2 * W), d = V::load(x + 3 * W);
        const V even_low = V::even(a, b), even_high = V::even(c, d), odd_low = V::odd(a, b), odd_high = V::odd(c, d);
        acc = V::even(even_low, even_high);
        if (count > 1) acc = pool_step<kOp>(acc, V::even(odd_low, odd_high));
        if (count > 2) acc = pool_step<kOp>(acc, V::odd(even_low, even_high));
        if (count > 3) acc = pool_step<kOp>(acc, V::odd(odd_low, odd_high));
      } else {
        T part[W];
        auto tap = [&](int64_t k) {
          for (int64_t i = 0; i < W; ++i) part[i] = i < lanes ? src[(j + i) * stride + k * p.step] : (T)0;
          return V::load(part);
        };
        acc = tap(0);
        for (int64_t k = 1; k < count; ++k) acc = pool_step<kOp>(acc, tap(k));
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

// The codes are numbers of the dtype: small integers are exact, and one kind of register serves. A NaN is looked for as
// the taps are read; only where there is one are they read again, backwards, so that the first one is the last taken.
template <class V, int kVectors, bool kMasked, class T>
__attribute__((always_inline)) inline void argmax_block(const T* const* src, const T* codes, int64_t count, int64_t at,
                                                        T* dst, int64_t lanes) {
  const PoolLoad<V, kMasked> load{lanes};
  V best[kVectors], code[kVectors];
  typename V::Mask odd[kVectors];
  const V first = V::set1(codes[0]);
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    best[i] = load(src[0] + at, i);
    code[i] = first;
    odd[i] = V::unordered(best[i], best[i]);
  }
  for (int64_t k = 1; k < count; ++k) {
    const T* x = src[k] + at;
    const V name = V::set1(codes[k]);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      V v = load(x, i);
      v.pin();
      odd[i] = V::either(odd[i], V::unordered(v, v));
      code[i] = V::select(V::greater(v, best[i]), name, code[i]);
      best[i] = max(best[i], v);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    if (V::any(odd[i])) {
      code[i] = first;
      best[i] = load(src[0] + at, i);
      typename V::Mask found = V::unordered(best[i], best[i]);
      for (int64_t k = 1; k < count; ++k) {
        const V v = load(src[k] + at, i);
        code[i] = V::select(V::greater(v, best[i]), V::set1(codes[k]), code[i]);
        best[i] = V::select(V::greater(v, best[i]), v, best[i]);
        found = V::either(found, V::unordered(v, v));
      }
      for (int64_t k = count - 1; k >= 0; --k) {
        const V v = load(src[k] + at, i);
        code[i] = V::select(V::unordered(v, v), V::set1(codes[k]), code[i]);
      }
    }
    load.put(code[i], dst, i);
  }
}

template <class T>
void pool_argmax(const PoolArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const T* const* src = p.src;
  const T* codes = p.codes;
  const int64_t count = p.count, n = p.n, rows = p.rows, src_pitch = p.src_pitch, dst_pitch = p.dst_pitch;
  T* dst = p.dst;
  for (int64_t row = 0; row < rows; ++row, dst += dst_pitch) {
    const int64_t at = row * src_pitch;
    int64_t j = 0;
    for (; j + 4 * W <= n; j += 4 * W) argmax_block<V, 4, false>(src, codes, count, at + j, dst + j, W);
    for (; j + W <= n; j += W) argmax_block<V, 1, false>(src, codes, count, at + j, dst + j, W);
    if (j < n) argmax_block<V, 1, true>(src, codes, count, at + j, dst + j, n - j);
  }
}

template <class V, int kVectors, bool kMasked, class T>
__attribute__((always_inline)) inline void route_block(const T* const* src, const T* const* marks, const T* codes,
                                                       int64_t count, int64_t at, int64_t mark_at, T* dst,
                                                       int64_t lanes) {
  const PoolLoad<V, kMasked> load{lanes};
  V acc[kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) acc[i] = V::zero();
  for (int64_t k = 0; k < count; ++k) {
    const T *x = src[k] + at, *mark = marks[k] + mark_at;
    const V name = V::set1(codes[k]);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i)
      acc[i] = acc[i] + V::select(V::equal(load(mark, i), name), load(x, i), V::zero());
  }
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) load.put(acc[i], dst, i);
}

template <class T>
void pool_route(const PoolArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const T *const *src = p.src, *const *marks = p.marks;
  const T* codes = p.codes;
  const int64_t count = p.count, n = p.n, rows = p.rows, src_pitch = p.src_pitch, dst_pitch = p.dst_pitch,
                mark_pitch = p.phase_pitch;
  T* dst = p.dst;
  for (int64_t row = 0; row < rows; ++row, dst += dst_pitch) {
    const int64_t at = row * src_pitch, mark = row * mark_pitch;
    int64_t j = 0;
    for (; j + 4 * W <= n; j += 4 * W) route_block<V, 4, false>(src, marks, codes, count, at + j, mark + j, dst + j, W);
    for (; j + W <= n; j += W) route_block<V, 1, false>(src, marks, codes, count, at + j, mark + j, dst + j, W);
    if (j < n) route_block<V, 1, true>(src, marks, codes, count, at + j, mark + j, dst + j, n - j);
  }
}

template <class T>
void pool_split(const PoolArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t n = p.n, stride = p.stride, rows = p.rows, phase_pitch = p.phase_pitch;
  for (int64_t row = 0; row < rows; ++row) {
    const T* src = p.src[0] + row * p.src_pitch;
    T* dst = p.dst + row * p.dst_pitch;
    if (stride == 2) {
      int64_t j = 0;
      for (; j + 2 * W <= n; j += 2 * W) {
        const V low = V::load(src + j), high = V::load(src + j + W);
        V::even(low, high).store(dst + j / 2);
        V::odd(low, high).store(dst + phase_pitch + j / 2);
      }
      if (j < n) {
        const int64_t left = n - j, second = left > W ? left - W : 0;
        const V low = V::load_n(src + j, left < W ? left : W);
        const V high = second > 0 ? V::load_n(src + j + W, second) : V::zero();
        V::even(low, high).store_n(dst + j / 2, (left + 1) / 2);
        if (left > 1) V::odd(low, high).store_n(dst + phase_pitch + j / 2, left / 2);
      }
      continue;
    }
    for (int64_t f = 0; f < stride; ++f)
      for (int64_t j = f, i = 0; j < n; j += stride, ++i) dst[f * phase_pitch + i] = src[j];
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

// --- Whole planes
//
// Each row of the image is read once for all windows of a block of output rows: its taps are combined along the columns
// first, and the rows' results where they are needed.

// The places of a row that W windows load: S = 3 with stride 1: taps 0, 1, 2; S = 2: elements 0 .. 2 W; S = 3 with
// stride 2: those, and all from the second on, whose even ones are tap 2.
template <int S, int ST>
inline constexpr int kPoolLoads = ST == 1  ? S
                                  : S == 2 ? 2
                                           : 4;

template <int S, int ST>
inline int64_t pool_place(int k, int64_t lanes) {
  return ST == 1 ? k : k / 2 * 2 + k % 2 * lanes;
}

// Which of a vector's loads lie inside the image.
template <class V, int S, int ST>
struct PoolEdge {
  typename V::Range mask[kPoolLoads<S, ST>];
  PoolEdge() = default;
  PoolEdge(int64_t begin, int64_t columns) {
    constexpr int64_t W = V::kLanes;
#pragma GCC unroll 4
    for (int k = 0; k < kPoolLoads<S, ST>; ++k) {
      const int64_t at = begin + pool_place<S, ST>(k, W), left = columns - at;
      const int64_t lo = at >= 0 ? 0 : -at < W ? -at : W, hi = left < lo ? lo : left < W ? left : W;
      mask[k] = V::range(lo, hi);
    }
  }
};

// The taps of W windows in one row.
template <class V, int S, int ST, bool kInside, class T>
__attribute__((always_inline)) inline void pool_taps(const T* x, const PoolEdge<V, S, ST>& edge, V outside,
                                                     V (&tap)[3]) {
  constexpr int kLoads = kPoolLoads<S, ST>;
  V v[kLoads];
#pragma GCC unroll 4
  for (int k = 0; k < kLoads; ++k) {
    const T* at = x + pool_place<S, ST>(k, V::kLanes);
    v[k] = kInside ? V::load(at) : V::load_range(at, edge.mask[k], outside);
    v[k].pin();
  }
  if constexpr (ST == 1) {
    for (int k = 0; k < S; ++k) tap[k] = v[k];
  } else {
    tap[0] = V::even(v[0], v[1]), tap[1] = V::odd(v[0], v[1]);
    if constexpr (S == 3) tap[2] = V::even(v[2], v[3]);
  }
}

// Their combination; where there may be NaN among those of a maximum, `odd` says so.
template <int kOp, class V, int S, int ST, bool kInside, class T>
__attribute__((always_inline)) inline V pool_row(const T* x, const PoolEdge<V, S, ST>& edge, V outside,
                                                 typename V::Mask* odd, bool careful) {
  V tap[3];
  pool_taps<V, S, ST, kInside>(x, edge, outside, tap);
  if constexpr (kOp == kPoolMax) {
    if (careful) {
      V best = tap[0];
      for (int k = 1; k < S; ++k) best = V::max_nan(best, tap[k]);
      return best;
    }
    // A NaN in the last tap comes through a maximum by itself, but is lost to the next row.
    *odd = V::either(*odd, V::unordered(tap[0], tap[1]));
    if constexpr (S == 3) *odd = V::either(*odd, V::unordered(tap[2], tap[2]));
    V best = max(tap[0], tap[1]);
    if constexpr (S == 3) best = max(best, tap[2]);
    return best;
  }
  V sum = tap[0] + tap[1];
  if constexpr (S == 3) sum = sum + tap[2];
  return sum;
}

// Output rows p .. p + PR of W windows. Registers: PR accumulators, the loads and taps of one row, the outside and the
// finish's 2: 4 + 7 + 3 at most.
template <int kOp, class T, int S, int ST, int PR, bool kInside, class F>
__attribute__((always_inline)) inline void pool_planes_block(const PoolPlanesArgs<T>& g, const T* plane, T* y,
                                                             int64_t p, int64_t q, const PoolEdge<Vec<T>, S, ST>& edge,
                                                             const F& finish) {
  using V = Vec<T>;
  constexpr int kRows = (PR - 1) * ST + S;
  const V outside = kOp == kPoolMax ? V::set1((T)-__builtin_inf()) : V::zero();
  const int64_t first = g.first_row + p * ST;
  const T* x = plane + first * g.x_pitch + g.first_column + q * ST;
  const bool inside = first >= 0 && first + kRows <= g.rows;
  V acc[PR];
  typename V::Mask odd = V::unordered(outside, outside);
  auto all_rows = [&](bool careful) __attribute__((always_inline)) {
#pragma GCC unroll 9
    for (int i = 0; i < kRows; ++i) {
      V row = outside;
      if (inside || (first + i >= 0 && first + i < g.rows))
        row = pool_row<kOp, V, S, ST, kInside>(x + i * g.x_pitch, edge, outside, &odd, careful);
#pragma GCC unroll 4
      for (int r = 0; r < PR; ++r) {
        if (i == r * ST) acc[r] = row;
        if (i > r * ST && i < r * ST + S)
          acc[r] = kOp == kPoolMax ? (careful ? V::max_nan(acc[r], row) : max(acc[r], row)) : acc[r] + row;
      }
    }
  };
  all_rows(false);
  if (kOp == kPoolMax && __builtin_expect(V::any(odd), 0)) all_rows(true);
  const int64_t lanes = g.out_columns - q;
#pragma GCC unroll 4
  for (int r = 0; r < PR; ++r) {
    const V result = finish(acc[r], p + r, q, lanes);
    T* to = y + (p + r) * g.y_pitch + q;
    if (lanes >= V::kLanes) {
      result.store(to);
    } else {
      result.store_n(to, lanes);
    }
  }
}

template <int kOp, class T, int S, int ST, int PR, class F>
inline void pool_planes_rows(const PoolPlanesArgs<T>& g, const T* plane, T* y, int64_t p,
                             const PoolEdge<Vec<T>, S, ST> (&edges)[3], const F& finish) {
  constexpr int64_t W = Vec<T>::kLanes, kReach = (kPoolLoads<S, ST> == 4 ? 2 : 0) + (ST == 1 ? W + S - 1 : 2 * W);
  const int64_t vectors = (g.out_columns + W - 1) / W;
  for (int64_t i = 0; i < vectors; ++i) {
    const int64_t begin = g.first_column + i * W * ST;
    if (begin >= 0 && begin + kReach <= g.columns) {
      pool_planes_block<kOp, T, S, ST, PR, true>(g, plane, y, p, i * W, edges[0], finish);
    } else {
      // The last two vectors may reach past the end, the first one before the beginning.
      const int64_t edge = vectors - 1 - i < 2 ? vectors - 1 - i : 2;
      pool_planes_block<kOp, T, S, ST, PR, false>(g, plane, y, p, i * W, edges[edge], finish);
    }
  }
}

template <int kOp, class T, int S, int ST, class F>
inline void pool_planes_all(const PoolPlanesArgs<T>& g, const F& finish) {
  using V = Vec<T>;
  constexpr int64_t W = V::kLanes;
  constexpr int PR = ST == 1 ? 4 : 2;
  const int64_t last = (g.out_columns - 1) / W;
  const PoolEdge<V, S, ST> edges[3] = {{g.first_column + last * W * ST, g.columns},
                                       {g.first_column + (last - 1) * W * ST, g.columns},
                                       {g.first_column, g.columns}};
  for (int64_t c = 0; c < g.channels; ++c) {
    const T* plane = g.x + c * g.x_channel;
    T* y = g.y + c * g.y_channel;
    int64_t p = 0;
    for (; p + PR <= g.out_rows; p += PR) pool_planes_rows<kOp, T, S, ST, PR>(g, plane, y, p, edges, finish);
    for (; p < g.out_rows; ++p) pool_planes_rows<kOp, T, S, ST, 1>(g, plane, y, p, edges, finish);
  }
}

template <class T>
struct PlanesFinish {
  using V = Vec<T>;
  PoolFinish<T> one;
  const T *rows, *columns;
  V operator()(V acc, int64_t p, int64_t q, int64_t lanes) const {
    if (!rows) return one(acc, q, V::kLanes);
    const V count = lanes >= V::kLanes ? V::load(columns + q) : V::load_n(columns + q, lanes);
    return acc / (count * V::set1(rows[p]));
  }
};

struct PlanesPlain {
  template <class V>
  V operator()(V acc, int64_t, int64_t, int64_t) const {
    return acc;
  }
};

template <int kOp, class T, class F>
inline void pool_planes_sizes(const PoolPlanesArgs<T>& g, const F& finish) {
  if (g.taps == 2) return pool_planes_all<kOp, T, 2, 2>(g, finish);
  g.stride == 1 ? pool_planes_all<kOp, T, 3, 1>(g, finish) : pool_planes_all<kOp, T, 3, 2>(g, finish);
}

template <class T>
void pool_planes(const PoolPlanesArgs<T>& g) {
  if (g.op == kPoolMax) return pool_planes_sizes<kPoolMax>(g, PlanesPlain{});
  PoolArgs<T> a;
  a.finish = g.finish, a.divisor = g.divisor, a.divisors = nullptr;
  pool_planes_sizes<kPoolSum>(g, PlanesFinish<T>{PoolFinish<T>(a), g.row_counts, g.column_counts});
}

// --- Images whose channels are neighbours
//
// Some vectors of channels at a time go along PR rows of windows. Each column of the image is read once for all of
// them: its rows are combined first, for each row of windows, and the columns' results as the windows go on.

template <int kOp, bool kCareful, class V>
__attribute__((always_inline)) inline V pool_join(V acc, V x) {
  if constexpr (kOp != kPoolMax) return acc + x;
  if constexpr (kCareful) return V::max_nan(acc, x);
  return max(acc, x);
}

// VC vectors of channels from c on, PR rows of windows from p on. Registers: PR x VC for each of a column's results,
// those of the column before and, with stride 1, the pair before that; the rows of one vector (5 at most), the outside,
// the finish's 3. Whether a maximum has met a NaN, and is to be done again with care.
template <int kOp, class T, int S, int ST, int PR, int VC, bool kMasked, bool kInside, bool kCareful, class F>
__attribute__((always_inline)) inline bool pixels_along(const PoolPlanesArgs<T>& g, int64_t p, int64_t c, int64_t lanes,
                                                        const F& finish) {
  using V = Vec<T>;
  constexpr int kRows = (PR - 1) * ST + S;
  const PoolLoad<V, kMasked> load{lanes};
  const V outside = kOp == kPoolMax ? V::set1((T)-__builtin_inf()) : V::zero();
  const int64_t first = g.first_row + p * ST, x_pitch = g.x_pitch, x_column = g.x_column, columns = g.columns;
  const int64_t y_pitch = g.y_pitch, y_column = g.y_column, count = g.out_columns;
  const T* x = g.x + first * x_pitch + g.first_column * x_column + c;
  T* y = g.y + p * y_pitch + c;
  bool there[kRows];
  for (int i = 0; i < kRows; ++i) there[i] = kInside || (first + i >= 0 && first + i < g.rows);
  typename V::Mask odd = V::unordered(outside, outside);
  int64_t column = g.first_column;
  auto take = [&](V(&to)[PR][VC]) __attribute__((always_inline)) {
    if (column < 0 || column >= columns) {
#pragma GCC unroll 2
      for (int r = 0; r < PR; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < VC; ++i) to[r][i] = outside;
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < VC; ++i) {
        V v[kRows];
#pragma GCC unroll 5
        for (int k = 0; k < kRows; ++k) {
          v[k] = kInside || there[k] ? load(x + k * x_pitch, i) : outside;
          if (kOp == kPoolMax) v[k].pin();
        }
        if constexpr (kOp == kPoolMax && !kCareful) {
#pragma GCC unroll 5
          for (int k = 0; k < kRows; k += 2) odd = V::either(odd, V::unordered(v[k], v[k + 1 < kRows ? k + 1 : k]));
        }
#pragma GCC unroll 2
        for (int r = 0; r < PR; ++r) {
          V sum = pool_join<kOp, kCareful>(v[r * ST], v[r * ST + 1]);
          if constexpr (S == 3) sum = pool_join<kOp, kCareful>(sum, v[r * ST + 2]);
          to[r][i] = sum;
        }
      }
    }
    ++column, x += x_column;
  };
  V last[PR][VC], pair[PR][VC], next[PR][VC];
  if constexpr (S == 3) take(last);
  if constexpr (ST == 1) {
    take(next);
#pragma GCC unroll 2
    for (int r = 0; r < PR; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < VC; ++i) {
        pair[r][i] = pool_join<kOp, kCareful>(last[r][i], next[r][i]);
        last[r][i] = next[r][i];
      }
  }
  for (int64_t q = 0; q < count; ++q, y += y_column) {
    if constexpr (ST == 2) {
      take(pair);
      if constexpr (S == 3) {
#pragma GCC unroll 2
        for (int r = 0; r < PR; ++r)
#pragma GCC unroll 4
          for (int i = 0; i < VC; ++i) pair[r][i] = pool_join<kOp, kCareful>(last[r][i], pair[r][i]);
      }
    }
    take(next);
#pragma GCC unroll 2
    for (int r = 0; r < PR; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < VC; ++i) {
        load.put(finish(pool_join<kOp, kCareful>(pair[r][i], next[r][i]), p + r, q), y + r * y_pitch, i);
        if constexpr (ST == 1) pair[r][i] = pool_join<kOp, kCareful>(last[r][i], next[r][i]);
        last[r][i] = next[r][i];
      }
  }
  return kOp == kPoolMax && !kCareful && V::any(odd);
}

// Once more, where there is a NaN.
template <int kOp, class T, int S, int ST, class F>
__attribute__((noinline)) void pixels_careful(const PoolPlanesArgs<T>& g, int64_t p0, int64_t p1, int64_t c0,
                                              int64_t c1, const F& finish) {
  constexpr int64_t W = Vec<T>::kLanes;
  for (int64_t p = p0; p < p1; ++p)
    for (int64_t c = c0; c < c1; c += W)
      pixels_along<kOp, T, S, ST, 1, 1, true, false, true>(g, p, c, c1 - c < W ? c1 - c : W, finish);
}

// The vectors of channels that go along together: as many as the registers hold.
template <class T>
inline constexpr int kPixelVectors = sizeof(Vec<T>) == 64 ? 4 : 1;

template <int kOp, class T, int S, int ST, int PR, bool kInside, class F>
__attribute__((noinline)) void pixels_row(const PoolPlanesArgs<T>& g, int64_t p, const F& finish) {
  constexpr int64_t W = Vec<T>::kLanes, kVectors = kPixelVectors<T>;
  const int64_t channels = g.channels;
  int64_t c = 0;
  auto redo = [&](bool odd, int64_t n) __attribute__((always_inline)) {
    if (__builtin_expect(odd, 0)) pixels_careful<kOp, T, S, ST>(g, p, p + PR, c, c + n, finish);
    c += n;
  };
  if constexpr (kVectors > 1)
    while (c + kVectors * W <= channels)
      redo(pixels_along<kOp, T, S, ST, PR, kVectors, false, kInside, false>(g, p, c, W, finish), kVectors * W);
  while (c + W <= channels) redo(pixels_along<kOp, T, S, ST, PR, 1, false, kInside, false>(g, p, c, W, finish), W);
  if (c < channels)
    redo(pixels_along<kOp, T, S, ST, PR, 1, true, kInside, false>(g, p, c, channels - c, finish), channels - c);
}

template <int kOp, class T, int S, int ST, class F>
inline void pixels_all(const PoolPlanesArgs<T>& g, const F& finish) {
  constexpr int PR = S == 2 ? 1 : 2, kRows = (PR - 1) * ST + S;
  for (int64_t p = 0; p < g.out_rows;) {
    const int64_t first = g.first_row + p * ST;
    if (p + PR <= g.out_rows && first >= 0 && first + kRows <= g.rows) {
      pixels_row<kOp, T, S, ST, PR, true>(g, p, finish), p += PR;
    } else {
      pixels_row<kOp, T, S, ST, 1, false>(g, p, finish), p += 1;
    }
  }
}

// How a sum ends, without a look at its kind for each vector.
template <class T>
struct PixelsQuotient {
  PoolQuotient<T> by;
  Vec<T> operator()(Vec<T> sum, int64_t, int64_t) const { return by(sum); }
};
template <class T>
struct PixelsCounts {
  const T *rows, *columns;
  Vec<T> operator()(Vec<T> sum, int64_t p, int64_t q) const { return sum / Vec<T>::set1(rows[p] * columns[q]); }
};

struct PixelsPlain {
  template <class V>
  V operator()(V acc, int64_t, int64_t) const {
    return acc;
  }
};

template <int kOp, class T, class F>
inline void pixels_sizes(const PoolPlanesArgs<T>& g, const F& finish) {
  if (g.taps == 2) return pixels_all<kOp, T, 2, 2>(g, finish);
  g.stride == 1 ? pixels_all<kOp, T, 3, 1>(g, finish) : pixels_all<kOp, T, 3, 2>(g, finish);
}

template <class T>
void pool_pixels(const PoolPlanesArgs<T>& g) {
  if (g.op == kPoolMax) return pixels_sizes<kPoolMax>(g, PixelsPlain{});
  if (g.row_counts) return pixels_sizes<kPoolSum>(g, PixelsCounts<T>{g.row_counts, g.column_counts});
  pixels_sizes<kPoolSum>(g, PixelsQuotient<T>{PoolQuotient<T>(g.finish == kPoolPlain ? (T)1 : g.divisor)});
}

// The gradient of W windows of 2 x 2. A later tap takes over where it is larger; where there is a NaN among them, the
// first NaN wins.
template <bool kTail, class T>
__attribute__((always_inline)) inline void pool_pairs(const T* x, int64_t x_pitch, const T* dy, T* dx, int64_t dx_pitch,
                                                      int64_t columns, bool both) {
  using V = Vec<T>;
  constexpr int64_t W = V::kLanes;
  const V none = V::set1((T)-__builtin_inf()), zero = V::zero();
  const int64_t low = columns < W ? columns : W, high = columns - low;
  V tap[4];
#pragma GCC unroll 2
  for (int r = 0; r < 2; ++r) {
    V a = none, b = none;
    if (r == 0 || both) {
      const T* at = x + r * x_pitch;
      a = kTail ? V::load_range(at, V::range(0, low), none) : V::load(at);
      b = kTail ? V::load_range(at + low, V::range(0, high), none) : V::load(at + W);
    }
    tap[2 * r] = V::even(a, b), tap[2 * r + 1] = V::odd(a, b);
  }
  V share = kTail ? V::load_n(dy, (columns + 1) / 2) : V::load(dy);
  V part[4];
  const typename V::Mask odd = V::either(V::unordered(tap[0], tap[1]), V::unordered(tap[2], tap[3]));
  if (__builtin_expect(V::any(odd), 0)) {
    V code = zero, best = tap[0];
#pragma GCC unroll 3
    for (int k = 1; k < 4; ++k) {
      code = V::select(V::greater(tap[k], best), V::set1((T)k), code);
      best = max(best, tap[k]);
    }
#pragma GCC unroll 4
    for (int k = 3; k >= 0; --k) code = V::select(V::unordered(tap[k], tap[k]), V::set1((T)k), code);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) part[k] = V::select(V::equal(code, V::set1((T)k)), share, zero);
  } else {
    const V upper = max(tap[0], tap[1]);
    const typename V::Mask takes[4] = {V::greater(tap[1], tap[0]), V::greater(tap[1], tap[0]),
                                       V::greater(tap[2], upper), V::greater(tap[3], max(upper, tap[2]))};
#pragma GCC unroll 3
    for (int k = 3; k > 0; --k) {
      part[k] = V::select(takes[k], share, zero);
      share = V::select(takes[k], zero, share);
    }
    part[0] = share;
  }
#pragma GCC unroll 2
  for (int r = 0; r < 2; ++r) {
    if (r == 1 && !both) break;
    const V a = V::zip_low(part[2 * r], part[2 * r + 1]), b = V::zip_high(part[2 * r], part[2 * r + 1]);
    T* to = dx + r * dx_pitch;
    if (kTail) {
      a.store_n(to, low);
      if (high > 0) b.store_n(to + W, high);
    } else {
      a.store(to);
      b.store(to + W);
    }
  }
}

// --- The gradient of overlapping windows, 3 x 3
//
// A window's first maximum lies in the first row whose own maximum is that of the window, and there in the first column
// that has it. So each row's winners are found once for all windows (W at a time), the shares of the windows are summed
// by rows, and each row's sum is handed to the column that won there: three lines a row, one a tap, from which the
// elements of dx gather theirs.

inline constexpr int64_t kTripleLines = 8192;  // elements of the lines of a chunk of rows
inline constexpr int64_t kTripleMargin = 16;
template <class T>
inline constexpr int64_t kLineOf = 64 / sizeof(T);

// W windows' maximum in one row, and where it is tap 1 or tap 2 (which overrides) that has it.
template <class V>
struct PoolWon {
  V best;
  typename V::Mask second, third;
};

// Where v takes over from the best before it; a NaN does, unless there was one.
template <bool kCareful, class V>
__attribute__((always_inline)) inline typename V::Mask pool_takes(V v, V best) {
  if constexpr (!kCareful) return V::greater(v, best);
  const V zero = V::zero(), one = V::set1(1);
  const V wants = V::select(V::either(V::greater(v, best), V::unordered(v, v)), one, zero);
  return V::greater(wants, V::select(V::unordered(best, best), one, zero));
}

// What lies outside is minus infinity, which must not win for being the first: taps 1 and 2 take over from it.
template <class V, int ST>
struct TripleEdge {
  PoolEdge<V, 3, ST> loads;
  typename V::Mask after_first, after_second;
  TripleEdge(int64_t begin, int64_t columns) : loads(begin, columns) {
    typename V::T first[V::kLanes], second[V::kLanes];
    for (int l = 0; l < V::kLanes; ++l) first[l] = begin + l * ST < 0, second[l] = begin + l * ST + 1 < 0;
    after_first = V::greater(V::load(first), V::zero()), after_second = V::greater(V::load(second), V::zero());
  }
};

template <bool kCareful, bool kInside, class V, int ST, class T>
__attribute__((always_inline)) inline PoolWon<V> pool_row_winner(const T* x, const TripleEdge<V, ST>& edge, V outside,
                                                                 typename V::Mask* odd) {
  V tap[3];
  pool_taps<V, 3, ST, kInside>(x, edge.loads, outside, tap);
  if constexpr (!kCareful) {
    *odd = V::either(*odd, V::unordered(tap[0], tap[1]));
    *odd = V::either(*odd, V::unordered(tap[2], tap[2]));
  }
  PoolWon<V> won;
  won.second = pool_takes<kCareful>(tap[1], tap[0]);
  if constexpr (!kInside) won.second = V::either(won.second, edge.after_first);
  const V pair = V::select(won.second, tap[1], tap[0]);
  won.third = pool_takes<kCareful>(tap[2], pair);
  if constexpr (!kInside) won.third = V::either(won.third, edge.after_second);
  won.best = V::select(won.third, tap[2], pair);
  return won;
}

// Windows q .. q + W of rows [p0, p1): the lines of rows [i0, i1) of dx. Whether there may be NaN among the taps.
template <bool kCareful, bool kInside, int ST, class T>
__attribute__((noinline)) bool triple_strip(const PoolPlanesArgs<T>& g, const T* plane, const T* dy, int64_t q,
                                            int64_t p0, int64_t p1, int64_t i0, int64_t i1,
                                            const TripleEdge<Vec<T>, ST>& edge, T* lines, int64_t pitch) {
  using V = Vec<T>;
  const V outside = V::set1((T)-__builtin_inf()), zero = V::zero();
  const typename V::Mask never = V::greater(zero, zero), always = V::equal(zero, zero);
  typename V::Mask odd = never;
  const int64_t rows = g.rows, lanes = g.out_columns - q, x_pitch = g.x_pitch;
  const T* x = plane + g.first_column + q * ST;
  auto winner = [&](int64_t i) __attribute__((always_inline)) {
    if (i < 0 || i >= rows) return PoolWon<V>{outside, never, never};
    return pool_row_winner<kCareful, kInside, V, ST>(x + i * x_pitch, edge, outside, &odd);
  };
  auto emit = [&](int64_t i, const PoolWon<V>& won, V sum) __attribute__((always_inline)) {
    if (i < i0 || i >= i1) return;
    T* to = lines + (i - i0) * 3 * pitch + kTripleMargin + q;
    V::select(won.third, sum, zero).store(to + 2 * pitch);
    sum = V::select(won.third, zero, sum);
    V::select(won.second, sum, zero).store(to + pitch);
    V::select(won.second, zero, sum).store(to);
  };
  int64_t i = g.first_row + p0 * ST;
  PoolWon<V> won[3];
  V sum[3] = {zero, zero, zero};
  won[0] = winner(i), won[1] = winner(i + 1), won[2] = winner(i + 2);
  for (int64_t p = p0; p < p1; ++p) {
    const T* from = dy + p * g.dy_pitch + q;
    const V share = lanes >= V::kLanes ? V::load(from) : V::load_n(from, lanes);
    const typename V::Mask second = i < 0 ? always : pool_takes<kCareful>(won[1].best, won[0].best);
    const V pair = V::select(second, won[1].best, won[0].best);
    const typename V::Mask third = i + 1 < 0 ? always : pool_takes<kCareful>(won[2].best, pair);
    const V rest = V::select(third, zero, share);
    sum[2] = sum[2] + V::select(third, share, zero);
    sum[1] = sum[1] + V::select(second, rest, zero);
    sum[0] = sum[0] + V::select(second, zero, rest);
    emit(i, won[0], sum[0]);
    if (p + 1 == p1) break;
    if constexpr (ST == 1) {
      won[0] = won[1], won[1] = won[2], won[2] = winner(i + 3);
      sum[0] = sum[1], sum[1] = sum[2], sum[2] = zero;
    } else {
      emit(i + 1, won[1], sum[1]);
      won[0] = won[2], won[1] = winner(i + 3), won[2] = winner(i + 4);
      sum[0] = sum[2], sum[1] = sum[2] = zero;
    }
    i += ST;
  }
  emit(i + 1, won[1], sum[1]);
  emit(i + 2, won[2], sum[2]);
  return !kCareful && V::any(odd);
}

// A row of dx from its three lines, the windows in their order.
template <int ST, class T>
inline void triple_gather(const PoolPlanesArgs<T>& g, const T* line, int64_t pitch, T* dx) {
  using V = Vec<T>;
  constexpr int64_t W = V::kLanes;
  const int64_t columns = g.columns, pad = -g.first_column;
  if constexpr (ST == 1) {
    const T* from = line + kTripleMargin + pad;
    for (int64_t j = 0; j < columns; j += W) {
      const V sum = V::load(from + 2 * pitch + j - 2) + V::load(from + pitch + j - 1) + V::load(from + j);
      columns - j >= W ? sum.store(dx + j) : sum.store_n(dx + j, columns - j);
    }
  } else {
    // Tap 1 of a window has its column for itself, taps 2 and 0 of neighbours share one, which comes first where the
    // padding is even.
    const T* from = line + kTripleMargin + (pad + 1) / 2;
    for (int64_t j = 0; j < columns; j += 2 * W, from += W) {
      const V shared = V::load(from + 2 * pitch - 1) + V::load(from);
      const V own = V::load(from + pitch - pad % 2);
      const V a = pad % 2 ? own : shared, b = pad % 2 ? shared : own;
      const V low = V::zip_low(a, b), high = V::zip_high(a, b);
      const int64_t left = columns - j;
      left >= W ? low.store(dx + j) : low.store_n(dx + j, left);
      if (left > W) left >= 2 * W ? high.store(dx + j + W) : high.store_n(dx + j + W, left - W);
    }
  }
}

template <int ST, class T>
inline void triples(const PoolPlanesArgs<T>& g) {
  using V = Vec<T>;
  constexpr int64_t W = V::kLanes, kReach = ST == 1 ? W + 2 : 2 * W + 2;
  const int64_t across = g.out_columns > g.columns / ST + 2 ? g.out_columns : g.columns / ST + 2;
  const int64_t pitch = (across + W - 1) / W * W + 2 * kTripleMargin, chunk = kTripleLines / (3 * pitch);
  alignas(64) T lines[kTripleLines];
  // Outside the windows there are zeros for good.
  for (int64_t i = 0; i < chunk * 3 * pitch; ++i) lines[i] = 0;
  const int64_t last = (g.out_columns - 1) / W;
  const TripleEdge<V, ST> edges[3] = {{g.first_column + last * W * ST, g.columns},
                                      {g.first_column + (last - 1) * W * ST, g.columns},
                                      {g.first_column, g.columns}};
  const int64_t covered = g.first_row + (g.out_rows - 1) * ST + 3;
  for (int64_t c = 0; c < g.channels; ++c) {
    const T *plane = g.x + c * g.x_channel, *dy = g.dy + c * g.dy_channel;
    T* dx = g.y + c * g.y_channel;
    for (int64_t i0 = 0; i0 < g.rows; i0 += chunk) {
      const int64_t i1 = g.rows - i0 < chunk ? g.rows : i0 + chunk;
      const int64_t from = i0 - g.first_row - 2, to = (i1 - 1 - g.first_row) / ST + 1;
      const int64_t p0 = from <= 0 ? 0 : (from + ST - 1) / ST, p1 = to < g.out_rows ? to : g.out_rows;
      for (int64_t v = 0; v <= last && p0 < p1; ++v) {
        const int64_t begin = g.first_column + v * W * ST;
        const TripleEdge<V, ST>& edge = edges[last - v < 2 ? last - v : 2];
        const bool inside = begin >= 0 && begin + kReach <= g.columns;
        const bool odd = inside
                             ? triple_strip<false, true, ST>(g, plane, dy, v * W, p0, p1, i0, i1, edge, lines, pitch)
                             : triple_strip<false, false, ST>(g, plane, dy, v * W, p0, p1, i0, i1, edge, lines, pitch);
        if (odd)
          triple_strip<true, false, ST>(g, plane, dy, v * W, p0, p1, i0, i1,
                                        inside ? TripleEdge<V, ST>(begin, g.columns) : edge, lines, pitch);
      }
      for (int64_t i = i0; i < i1; ++i) {
        if (p0 < p1 && i < covered) {
          // The strips of the next rows would go down columns of memory that no prefetcher knows.
          for (int64_t j = 0; j < g.columns; j += kLineOf<T>)
            __builtin_prefetch(plane + (i + chunk + 2) * g.x_pitch + j);
          if (ST == 1 || (i - i0) % 2 == 0) {
            const T* next = dy + ((i + chunk + 2) / ST) * g.dy_pitch;
            for (int64_t j = 0; j < g.out_columns; j += kLineOf<T>) __builtin_prefetch(next + j);
          }
          triple_gather<ST>(g, lines + (i - i0) * 3 * pitch, pitch, dx + i * g.y_pitch);
        } else {
          for (int64_t j = 0; j < g.columns; ++j) dx[i * g.y_pitch + j] = 0;
        }
      }
    }
  }
}

// Windows of 2 x 2 side by side, the mean's gradient: each share four times.
template <class T>
inline void spread_pairs(const PoolPlanesArgs<T>& g) {
  using V = Vec<T>;
  constexpr int64_t W = V::kLanes;
  const PoolQuotient<T> by(g.divisor);
  const int64_t columns = 2 * g.out_columns < g.columns ? 2 * g.out_columns : g.columns;
  for (int64_t c = 0; c < g.channels; ++c) {
    const T* dy = g.dy + c * g.dy_channel;
    T* dx = g.y + c * g.y_channel;
    for (int64_t h = 0; h < g.rows; ++h) {
      T* to = dx + h * g.y_pitch;
      int64_t j = 0;
      if (h < 2 * g.out_rows) {
        const T* from = dy + h / 2 * g.dy_pitch;
        for (; j + 2 * W <= columns; j += 2 * W) {
          const V share = by(V::load(from + j / 2));
          V::zip_low(share, share).store(to + j);
          V::zip_high(share, share).store(to + j + W);
        }
        if (j < columns) {
          const V share = by(V::load_n(from + j / 2, (columns - j + 1) / 2));
          V::zip_low(share, share).store_n(to + j, columns - j < W ? columns - j : W);
          if (columns - j > W) V::zip_high(share, share).store_n(to + j + W, columns - j - W);
          j = columns;
        }
      }
      for (; j < g.columns; ++j) to[j] = 0;
    }
  }
}

template <class T>
void pool_planes_backward(const PoolPlanesArgs<T>& g) {
  if (g.op == kPoolSum) return spread_pairs(g);
  if (g.taps == 3) return g.stride == 1 ? triples<1>(g) : triples<2>(g);
  constexpr int64_t W = Vec<T>::kLanes;
  const int64_t columns = 2 * g.out_columns < g.columns ? 2 * g.out_columns : g.columns;
  for (int64_t c = 0; c < g.channels; ++c) {
    const T *x = g.x + c * g.x_channel, *dy = g.dy + c * g.dy_channel;
    T* dx = g.y + c * g.y_channel;
    for (int64_t p = 0; p < g.out_rows; ++p) {
      const T *from = x + 2 * p * g.x_pitch, *share = dy + p * g.dy_pitch;
      T* to = dx + 2 * p * g.y_pitch;
      const bool both = 2 * p + 1 < g.rows;
      int64_t j = 0;
      for (; j + 2 * W <= columns; j += 2 * W)
        pool_pairs<false>(from + j, g.x_pitch, share + j / 2, to + j, g.y_pitch, 2 * W, both);
      if (j < columns) pool_pairs<true>(from + j, g.x_pitch, share + j / 2, to + j, g.y_pitch, columns - j, both);
      for (int64_t i = columns; i < g.columns; ++i) {
        to[i] = 0;
        if (both) to[g.y_pitch + i] = 0;
      }
    }
    for (int64_t h = 2 * g.out_rows; h < g.rows; ++h)
      for (int64_t i = 0; i < g.columns; ++i) dx[h * g.y_pitch + i] = 0;
  }
}

// --- The same for images whose channels are neighbours
//
// A vector of channels goes down the windows' rows by itself. The lines hold, for each window of three rows in turn,
// the row's maximum, where it is, and the sum of the shares that its windows give it.

template <class V>
struct PixelLines {
  typename V::T *best[3], *sum[3];
  typename V::Mask *second[3], *third[3];
  PixelLines(typename V::T* scratch, int64_t windows) {
    constexpr int64_t W = V::kLanes;
    for (int r = 0; r < 3; ++r) {
      best[r] = scratch + r * windows * W;
      sum[r] = scratch + (3 + r) * windows * W;
      second[r] = (typename V::Mask*)(scratch + 6 * windows * W) + r * windows;
      third[r] = second[0] + (3 + r) * windows;
    }
  }
};

// Which windows win in row i of the image.
template <bool kCareful, bool kMasked, int ST, class V, class T>
__attribute__((always_inline)) inline typename V::Mask pixels_winners(const PoolPlanesArgs<T>& g, int64_t c, int64_t i,
                                                                      const PixelLines<V>& lines, int slot,
                                                                      int64_t lanes) {
  constexpr int64_t W = V::kLanes;
  const PoolLoad<V, kMasked> load{lanes};
  const V outside = V::set1((T)-__builtin_inf()), zero = V::zero();
  const typename V::Mask never = V::greater(zero, zero), always = V::equal(zero, zero);
  typename V::Mask odd = never;
  T *best = lines.best[slot], *sum = lines.sum[slot];
  typename V::Mask *second = lines.second[slot], *third = lines.third[slot];
  const int64_t count = g.out_columns, columns = g.columns, x_column = g.x_column;
  const bool there = i >= 0 && i < g.rows;
  const T* x = g.x + i * g.x_pitch + g.first_column * x_column + c;
  int64_t column = g.first_column;
  auto take = [&]() __attribute__((always_inline)) {
    V v = outside;
    if (there && column >= 0 && column < columns) {
      v = load(x, 0), v.pin();
      __builtin_prefetch(x + 2 * g.x_pitch);
    }
    ++column, x += x_column;
    return v;
  };
  V a = take(), b = ST == 1 ? take() : outside;
  for (int64_t q = 0; q < count; ++q) {
    if (ST == 2) b = take();
    const V d = take();
    if constexpr (!kCareful) {
      odd = V::either(odd, V::unordered(a, b));
      if (ST == 2 || q + 1 == count) odd = V::either(odd, V::unordered(d, d));
    }
    // What lies outside must not win for being the first: `column` is two after the second tap's.
    const typename V::Mask two = column < 3 ? always : pool_takes<kCareful>(b, a);
    const V pair = V::select(two, b, a);
    const typename V::Mask three = column < 2 ? always : pool_takes<kCareful>(d, pair);
    V::select(three, d, pair).store(best + q * W);
    zero.store(sum + q * W);
    second[q] = two, third[q] = three;
    if (ST == 1) a = b, b = d;
    if (ST == 2) a = d;
  }
  return odd;
}

// Row i of dx: each window's sum goes to the column that won in it.
template <bool kMasked, int ST, class V, class T>
__attribute__((always_inline)) inline void pixels_emit(const PoolPlanesArgs<T>& g, int64_t c, int64_t i,
                                                       const PixelLines<V>& lines, int slot, int64_t lanes) {
  if (i < 0 || i >= g.rows) return;
  constexpr int64_t W = V::kLanes;
  const PoolLoad<V, kMasked> load{lanes};
  const V zero = V::zero();
  const T* sum = lines.sum[slot];
  const typename V::Mask *second = lines.second[slot], *third = lines.third[slot];
  const int64_t count = g.out_columns, columns = g.columns, y_column = g.y_column;
  T* dx = g.y + i * g.y_pitch + g.first_column * y_column + c;
  int64_t column = g.first_column;
  auto put = [&](V v) __attribute__((always_inline)) {
    if (column >= 0 && column < columns) load.put(v, dx, 0);
    ++column, dx += y_column;
  };
  V first = zero, next = zero;  // of the columns that later windows still add to
  for (int64_t q = 0; q < count; ++q) {
    const V share = V::load(sum + q * W), rest = V::select(third[q], zero, share);
    first = first + V::select(second[q], zero, rest);
    next = next + V::select(second[q], rest, zero);
    const V last = V::select(third[q], share, zero);
    put(first);
    if (ST == 1) first = next, next = last;
    if (ST == 2) put(next), first = last, next = zero;
  }
  put(first);
  if (ST == 1) put(next);
  while (column < columns) put(zero);
}

// All rows of one vector of channels; whether it has met a NaN, and is to be done again with care.
template <bool kCareful, bool kMasked, int ST, class T>
__attribute__((noinline)) bool pixels_down(const PoolPlanesArgs<T>& g, int64_t c, int64_t lanes) {
  using V = Vec<T>;
  constexpr int64_t W = V::kLanes;
  const PoolLoad<V, kMasked> load{lanes};
  const PixelLines<V> lines(g.scratch, g.out_columns);
  const V zero = V::zero();
  const typename V::Mask always = V::equal(zero, zero);
  typename V::Mask odd = V::greater(zero, zero);
  const int64_t count = g.out_columns, dy_column = g.dy_column;
  int64_t i = g.first_row;
  int slot = 0;  // of row i; the others follow in turn
  auto winners = [&](int64_t row, int at) {
    odd = V::either(odd, pixels_winners<kCareful, kMasked, ST, V>(g, c, row, lines, at % 3, lanes));
  };
  winners(i, 0);
  if (ST == 1) winners(i + 1, 1);
  for (int64_t p = 0; p < g.out_rows; ++p) {
    if (ST == 2) winners(i + 1, slot + 1);
    winners(i + 2, slot + 2);
    const T* dy = g.dy + p * g.dy_pitch + c;
    T *sum0 = lines.sum[slot], *sum1 = lines.sum[(slot + 1) % 3], *sum2 = lines.sum[(slot + 2) % 3];
    const T *best0 = lines.best[slot], *best1 = lines.best[(slot + 1) % 3], *best2 = lines.best[(slot + 2) % 3];
    for (int64_t q = 0; q < count; ++q, dy += dy_column) {
      const V one = V::load(best1 + q * W);
      const typename V::Mask second = i < 0 ? always : pool_takes<kCareful>(one, V::load(best0 + q * W));
      const V pair = V::select(second, one, V::load(best0 + q * W));
      const typename V::Mask third = i + 1 < 0 ? always : pool_takes<kCareful>(V::load(best2 + q * W), pair);
      const V share = load(dy, 0), rest = V::select(third, zero, share);
      __builtin_prefetch(dy + g.dy_pitch);
      (V::load(sum0 + q * W) + V::select(second, zero, rest)).store(sum0 + q * W);
      (V::load(sum1 + q * W) + V::select(second, rest, zero)).store(sum1 + q * W);
      (V::load(sum2 + q * W) + V::select(third, share, zero)).store(sum2 + q * W);
    }
    if (p + 1 == g.out_rows) break;
    pixels_emit<kMasked, ST, V>(g, c, i, lines, slot, lanes);
    if (ST == 2) pixels_emit<kMasked, ST, V>(g, c, i + 1, lines, (slot + 1) % 3, lanes);
    i += ST, slot = (slot + ST) % 3;
  }
  for (int r = 0; r < 3; ++r) pixels_emit<kMasked, ST, V>(g, c, i + r, lines, (slot + r) % 3, lanes);
  for (int64_t row = i + 3; row < g.rows; ++row)
    for (int64_t w = 0; w < g.columns; ++w) load.put(zero, g.y + row * g.y_pitch + w * g.y_column + c, 0);
  return !kCareful && V::any(odd);
}

template <int ST, class T>
inline void pixels_triples(const PoolPlanesArgs<T>& g) {
  constexpr int64_t W = Vec<T>::kLanes;
  for (int64_t c = 0; c < g.channels; c += W) {
    const int64_t lanes = g.channels - c < W ? g.channels - c : W;
    const bool odd = lanes == W ? pixels_down<false, false, ST>(g, c, W) : pixels_down<false, true, ST>(g, c, lanes);
    if (odd) pixels_down<true, true, ST>(g, c, lanes);
  }
}

// The four taps of one window of 2 x 2, as pool_pairs, for a vector of channels.
template <bool kMasked, class T>
__attribute__((always_inline)) inline void pixels_pair(const PoolPlanesArgs<T>& g, const T* x, const T* dy, T* dx,
                                                       bool below, bool beside, int64_t lanes) {
  using V = Vec<T>;
  const PoolLoad<V, kMasked> load{lanes};
  const V none = V::set1((T)-__builtin_inf()), zero = V::zero();
  const bool there[4] = {true, beside, below, below && beside};
  V tap[4], part[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) tap[k] = there[k] ? load(x + k / 2 * g.x_pitch + k % 2 * g.x_column, 0) : none;
  V share = load(dy, 0);
  const typename V::Mask odd = V::either(V::unordered(tap[0], tap[1]), V::unordered(tap[2], tap[3]));
  typename V::Mask takes[4];
  V best = tap[0];
  if (__builtin_expect(V::any(odd), 0)) {
#pragma GCC unroll 3
    for (int k = 1; k < 4; ++k) {
      takes[k] = pool_takes<true>(tap[k], best);
      best = V::select(takes[k], tap[k], best);
    }
  } else {
#pragma GCC unroll 3
    for (int k = 1; k < 4; ++k) {
      takes[k] = V::greater(tap[k], best);
      best = max(best, tap[k]);
    }
  }
#pragma GCC unroll 3
  for (int k = 3; k > 0; --k) {
    part[k] = V::select(takes[k], share, zero);
    share = V::select(takes[k], zero, share);
  }
  part[0] = share;
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k)
    if (there[k]) load.put(part[k], dx + k / 2 * g.y_pitch + k % 2 * g.y_column, 0);
}

template <class T>
inline void pixels_pairs(const PoolPlanesArgs<T>& g) {
  using V = Vec<T>;
  constexpr int64_t W = V::kLanes;
  const int64_t channels = g.channels;
  auto clear = [&](int64_t row, int64_t w) {
    T* to = g.y + row * g.y_pitch + w * g.y_column;
    int64_t c = 0;
    for (; c + W <= channels; c += W) V::zero().store(to + c);
    if (c < channels) V::zero().store_n(to + c, channels - c);
  };
  for (int64_t p = 0; p < g.out_rows; ++p) {
    const bool below = 2 * p + 1 < g.rows;
    for (int64_t q = 0; q < g.out_columns; ++q) {
      const bool beside = 2 * q + 1 < g.columns;
      const T *x = g.x + 2 * p * g.x_pitch + 2 * q * g.x_column, *dy = g.dy + p * g.dy_pitch + q * g.dy_column;
      T* dx = g.y + 2 * p * g.y_pitch + 2 * q * g.y_column;
      int64_t c = 0;
      if (below && beside) {
        for (; c + W <= channels; c += W) pixels_pair<false>(g, x + c, dy + c, dx + c, true, true, W);
      }
      for (; c < channels; c += W)
        pixels_pair<true>(g, x + c, dy + c, dx + c, below, beside, channels - c < W ? channels - c : W);
    }
    for (int64_t w = 2 * g.out_columns; w < g.columns; ++w) {
      clear(2 * p, w);
      if (below) clear(2 * p + 1, w);
    }
  }
  for (int64_t row = 2 * g.out_rows; row < g.rows; ++row)
    for (int64_t w = 0; w < g.columns; ++w) clear(row, w);
}

template <class T>
void pool_pixels_backward(const PoolPlanesArgs<T>& g) {
  if (g.taps == 2) return pixels_pairs(g);
  g.stride == 1 ? pixels_triples<1>(g) : pixels_triples<2>(g);
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
