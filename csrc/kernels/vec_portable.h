// Vectors of 128 bits in the compiler's own vector extension: correct on any CPU.
#pragma once
#include <stdint.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastconv::FASTCONV_ISA_NS {

inline constexpr int kPortableBytes = 16;

template <class T>
struct PortableTypes;
template <>
struct PortableTypes<float> {
  typedef float V __attribute__((vector_size(kPortableBytes)));
  typedef int32_t I __attribute__((vector_size(kPortableBytes)));
  static constexpr int kBias = 127, kMantissa = 23;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to nearest
};
template <>
struct PortableTypes<double> {
  typedef double V __attribute__((vector_size(kPortableBytes)));
  typedef int64_t I __attribute__((vector_size(kPortableBytes)));
  static constexpr int kBias = 1023, kMantissa = 52;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
};

template <class E>
struct Vec {
  using T = E;
  using V = typename PortableTypes<T>::V;
  using I = typename PortableTypes<T>::I;
  static constexpr int kLanes = kPortableBytes / sizeof(T);
  V v;

  void pin() {}
  static Vec zero() { return {V{}}; }
  static Vec set1(T x) { return {x - V{}}; }  // not V{} + x, which would lose the sign of -0
  static Vec load(const T* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof(V));
    return r;
  }
  void store(T* p) const { __builtin_memcpy(p, &v, sizeof(V)); }
  void stream(T* p) const { store(p); }
  static Vec load_n(const T* p, int64_t n) {
    V r{};
    for (int64_t i = 0; i < n; ++i) r[i] = p[i];
    return {r};
  }
  // Lanes [lo, hi), 0 <= lo <= hi <= W; the others are zeros.
  struct Range { int64_t lo, hi; };
  static Range range(int64_t lo, int64_t hi) { return {lo, hi}; }
  static Vec load_range(const T* p, Range m) {
    V r{};
    for (int64_t i = m.lo; i < m.hi; ++i) r[i] = p[i];
    return {r};
  }
  // The others are those of `outside`.
  static Vec load_range(const T* p, Range m, Vec outside) {
    V r = outside.v;
    for (int64_t i = m.lo; i < m.hi; ++i) r[i] = p[i];
    return {r};
  }
  void store_n(T* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  // Two roundings: a baseline CPU need not have a fused multiply-add.
  friend Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  // c - a * b
  friend Vec fnma(Vec a, Vec b, Vec c) { return {c.v - a.v * b.v}; }
  // A NaN in the second operand comes through.
  friend Vec max(Vec bound, Vec x) { return {bound.v > x.v ? bound.v : x.v}; }
  friend Vec min(Vec bound, Vec x) { return {bound.v < x.v ? bound.v : x.v}; }
  static Vec abs(Vec x) { return {(V)((I)x.v & ~(I)set1((T)-0.0).v)}; }
  static Vec select_less(Vec x, Vec y, Vec a, Vec b) { return {x.v < y.v ? a.v : b.v}; }
  // x <= y ? a : b
  static Vec select_less_equal(Vec x, Vec y, Vec a, Vec b) { return {x.v <= y.v ? a.v : b.v}; }
  // The builtin alone would call the library for the errno of a negative number.
  static Vec sqrt(Vec x) {
#if defined(__SSE2__)
    if constexpr (sizeof(T) == 4)
      return {(V)_mm_sqrt_ps((__m128)x.v)};
    else
      return {(V)_mm_sqrt_pd((__m128d)x.v)};
#else
    for (int i = 0; i < kLanes; ++i) x.v[i] = sizeof(T) == 4 ? __builtin_sqrtf(x.v[i]) : __builtin_sqrt(x.v[i]);
    return x;
#endif
  }
  // Over the lanes, halves joined with halves.
  T sum() const {
    if constexpr (kLanes == 4)
      return (v[0] + v[2]) + (v[1] + v[3]);
    else
      return v[0] + v[1];
  }
  // To the nearest integer, for |x| below 2^22.
  static Vec round(Vec x) {
    const Vec magic = set1(PortableTypes<T>::kRound);
    return (x + magic) - magic;
  }
  static Vec exp2i(Vec n) {
    I e = __builtin_convertvector(n.v, I) + PortableTypes<T>::kBias;
    return {(V)(e << PortableTypes<T>::kMantissa)};
  }
  // x * 2^n for an integral n, in two factors: the product may be denormal where neither is.
  static Vec scale(Vec x, Vec n) {
    const Vec half = round(n * set1((T)0.5));
    return x * exp2i(half) * exp2i(n - half);
  }
  static constexpr int kTable = 0;
  // The largest lane; a NaN may be lost.
  T largest() const {
    T most = v[0];
    for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
    return most;
  }
  static Vec even(Vec lo, Vec hi) {
    V r;
    for (int i = 0; i < kLanes / 2; ++i) r[i] = lo.v[2 * i], r[i + kLanes / 2] = hi.v[2 * i];
    return {r};
  }
  // Comparisons, lane by lane.
  static constexpr bool kMayBeNan = true;
  using Mask = I;
  static Mask greater(Vec a, Vec b) { return (I)(a.v > b.v); }
  static Mask equal(Vec a, Vec b) { return (I)(a.v == b.v); }
  static Mask unordered(Vec a, Vec b) { return (I)(a.v != a.v) | (I)(b.v != b.v); }
  static bool any(Mask m) {
    bool found = false;
    for (int i = 0; i < kLanes; ++i) found = found || m[i] != 0;
    return found;
  }
  static Mask either(Mask a, Mask b) { return a | b; }
  // m ? a : b
  static Vec select(Mask m, Vec a, Vec b) { return {m ? a.v : b.v}; }
  // The larger one; a NaN in either comes through.
  static Vec max_nan(Vec a, Vec x) { return select(unordered(a, a), a, max(a, x)); }
  // Elements 1, 3, 5, ... of the 2 W in lo, hi.
  static Vec odd(Vec lo, Vec hi) {
    V r;
    for (int i = 0; i < kLanes / 2; ++i) r[i] = lo.v[2 * i + 1], r[i + kLanes / 2] = hi.v[2 * i + 1];
    return {r};
  }
  // The first and the last W of a[0], b[0], a[1], b[1], ...
  static Vec zip_low(Vec a, Vec b) {
    V r;
    for (int i = 0; i < kLanes / 2; ++i) r[2 * i] = a.v[i], r[2 * i + 1] = b.v[i];
    return {r};
  }
  static Vec zip_high(Vec a, Vec b) {
    V r;
    for (int i = 0; i < kLanes / 2; ++i) r[2 * i] = a.v[i + kLanes / 2], r[2 * i + 1] = b.v[i + kLanes / 2];
    return {r};
  }
  // W elements of W runs: r[i] = elements i of row(0) .. row(W - 1).
  static constexpr int kColumnBlock = kLanes;
  template <class Row>
  static void load_columns(Row row, Vec (&r)[kLanes]) {
    for (int i = 0; i < kLanes; ++i) r[i] = load(row(i));
    transpose(r);
  }
  static void transpose(Vec (&r)[kLanes]) {
    for (int i = 0; i < kLanes; ++i)
      for (int j = i + 1; j < kLanes; ++j) {
        T t = r[i].v[j];
        r[i].v[j] = r[j].v[i];
        r[j].v[i] = t;
      }
  }
};

}  // namespace fastconv::FASTCONV_ISA_NS
