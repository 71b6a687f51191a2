// Vectors of 256 bits for AVX2 and FMA.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace fastconv::FASTCONV_ISA_NS {

template <class T>
struct Vec;

namespace {
// Lanes [0, n) of a masked load or store: a window that slides over 8 ones and 8 zeros.
alignas(32) const int32_t kLaneWindow[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
}  // namespace

template <>
struct Vec<float> {
  using T = float;
  static constexpr int kLanes = 8;
  __m256 v;

  // Keeps a vector in its register: the compiler would rather load it again for every use.
  void pin() { asm("" : "+x"(v)); }
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set1(T x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const T* p) { return {_mm256_loadu_ps(p)}; }
  void store(T* p) const { _mm256_storeu_ps(p, v); }
  void stream(T* p) const { _mm256_stream_ps(p, v); }
  static __m256i mask(int64_t n) { return _mm256_loadu_si256((const __m256i*)(kLaneWindow + 8 - n)); }
  static Vec load_n(const T* p, int64_t n) { return {_mm256_maskload_ps(p, mask(n))}; }
  // Lanes [lo, hi), 0 <= lo <= hi <= W; the others are zeros.
  using Range = __m256i;
  static Range range(int64_t lo, int64_t hi) { return _mm256_andnot_si256(mask(lo), mask(hi)); }
  static Vec load_range(const T* p, Range m) { return {_mm256_maskload_ps(p, m)}; }
  // The others are those of `outside`.
  static Vec load_range(const T* p, Range m, Vec outside) {
    return {_mm256_blendv_ps(outside.v, _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m))};
  }
  void store_n(T* p, int64_t n) const { _mm256_maskstore_ps(p, mask(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  // a * b + c in one rounding
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  // c - a * b
  friend Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
  // A NaN in the second operand comes through.
  friend Vec max(Vec bound, Vec x) { return {_mm256_max_ps(bound.v, x.v)}; }
  friend Vec min(Vec bound, Vec x) { return {_mm256_min_ps(bound.v, x.v)}; }
  static Vec abs(Vec x) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v)}; }
  // x < y ? a : b
  static Vec select_less(Vec x, Vec y, Vec a, Vec b) {
    return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, y.v, _CMP_LT_OQ))};
  }
  // x <= y ? a : b
  static Vec select_less_equal(Vec x, Vec y, Vec a, Vec b) {
    return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, y.v, _CMP_LE_OQ))};
  }
  static Vec sqrt(Vec x) { return {_mm256_sqrt_ps(x.v)}; }
  // x^-1/2 to 12 bits or more, which differ between CPUs.
  static Vec rsqrt_estimate(Vec x) { return {_mm256_rsqrt_ps(x.v)}; }
  // Over the lanes, halves joined with halves.
  T sum() const {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static Vec round(Vec x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  // 2^n for an integral n within the exponent's range
  static Vec exp2i(Vec n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(e, 23))};
  }
  // x * 2^n for an integral n, in two factors: the product may be denormal where neither is.
  static Vec scale(Vec x, Vec n) {
    const Vec half = round(n * set1((T)0.5));
    return x * exp2i(half) * exp2i(n - half);
  }
  // 2^(i / 8) from an integral i in the low bits of a number: the table makes up for the fraction that is added here.
  static constexpr int kTable = 8;
  static Vec power(const uint32_t (&table)[8], Vec i) {
    const __m256i k = _mm256_castps_si256(i.v), entries = _mm256_load_si256((const __m256i*)table);
    const __m256i fraction = _mm256_permutevar8x32_epi32(entries, k);
    return {_mm256_castsi256_ps(_mm256_add_epi32(fraction, _mm256_slli_epi32(k, 20)))};
  }
  // The largest lane; a NaN may be lost.
  T largest() const {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // Lane i of the result is lane lanes[i].
  using Lanes = __m256i;
  static Lanes lanes(const int32_t* of) { return _mm256_loadu_si256((const __m256i*)of); }
  static Vec permute(Vec x, Lanes lanes) { return {_mm256_permutevar8x32_ps(x.v, lanes)}; }
  // Elements 0, 2, 4, ... of the 16 in lo, hi.
  static Vec even(Vec lo, Vec hi) {
    __m256 s = _mm256_shuffle_ps(lo.v, hi.v, 0x88);
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(s), 0xD8))};
  }
  // Comparisons, lane by lane.
  static constexpr bool kMayBeNan = true;
  using Mask = __m256;
  static Mask greater(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ); }
  static Mask equal(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ); }
  static Mask unordered(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_UNORD_Q); }
  static bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
  static Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
  // m ? a : b
  static Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, m)}; }
  // The larger one; a NaN in either comes through.
  static Vec max_nan(Vec a, Vec x) {
    return {_mm256_blendv_ps(_mm256_max_ps(a.v, x.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
  }
  // Elements 1, 3, 5, ... of the 2 W in lo, hi.
  static Vec odd(Vec lo, Vec hi) {
    __m256 s = _mm256_shuffle_ps(lo.v, hi.v, 0xDD);
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(s), 0xD8))};
  }
  // The first and the last W of a[0], b[0], a[1], b[1], ...
  static Vec zip_low(Vec a, Vec b) {
    return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20)};
  }
  static Vec zip_high(Vec a, Vec b) {
    return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31)};
  }
  // Four elements of 8 runs: r[i] = elements i of row(0) .. row(7).
  static constexpr int kColumnBlock = 4;
  template <class Row>
  static void load_columns(Row row, Vec (&r)[4]) {
    __m256 a[4], b[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(i))), _mm_loadu_ps(row(i + 4)), 1);
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    r[0].v = _mm256_shuffle_ps(b[0], b[2], 0x44);
    r[1].v = _mm256_shuffle_ps(b[0], b[2], 0xEE);
    r[2].v = _mm256_shuffle_ps(b[1], b[3], 0x44);
    r[3].v = _mm256_shuffle_ps(b[1], b[3], 0xEE);
  }
  static void transpose(Vec (&r)[8]) {
    __m256 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      a[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
      a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
      b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xEE);
      b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
      b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
      r[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
  }
};

template <>
struct Vec<double> {
  using T = double;
  static constexpr int kLanes = 4;
  __m256d v;

  // Keeps a vector in its register: the compiler would rather load it again for every use.
  void pin() { asm("" : "+x"(v)); }
  static Vec zero() { return {_mm256_setzero_pd()}; }
  static Vec set1(T x) { return {_mm256_set1_pd(x)}; }
  static Vec load(const T* p) { return {_mm256_loadu_pd(p)}; }
  void store(T* p) const { _mm256_storeu_pd(p, v); }
  void stream(T* p) const { _mm256_stream_pd(p, v); }
  static __m256i mask(int64_t n) { return _mm256_loadu_si256((const __m256i*)(kLaneWindow + 8 - 2 * n)); }
  static Vec load_n(const T* p, int64_t n) { return {_mm256_maskload_pd(p, mask(n))}; }
  using Range = __m256i;
  static Range range(int64_t lo, int64_t hi) { return _mm256_andnot_si256(mask(lo), mask(hi)); }
  static Vec load_range(const T* p, Range m) { return {_mm256_maskload_pd(p, m)}; }
  static Vec load_range(const T* p, Range m, Vec outside) {
    return {_mm256_blendv_pd(outside.v, _mm256_maskload_pd(p, m), _mm256_castsi256_pd(m))};
  }
  void store_n(T* p, int64_t n) const { _mm256_maskstore_pd(p, mask(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_pd(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  friend Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
  friend Vec max(Vec bound, Vec x) { return {_mm256_max_pd(bound.v, x.v)}; }
  friend Vec min(Vec bound, Vec x) { return {_mm256_min_pd(bound.v, x.v)}; }
  static Vec abs(Vec x) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), x.v)}; }
  static Vec select_less(Vec x, Vec y, Vec a, Vec b) {
    return {_mm256_blendv_pd(b.v, a.v, _mm256_cmp_pd(x.v, y.v, _CMP_LT_OQ))};
  }
  static Vec select_less_equal(Vec x, Vec y, Vec a, Vec b) {
    return {_mm256_blendv_pd(b.v, a.v, _mm256_cmp_pd(x.v, y.v, _CMP_LE_OQ))};
  }
  static Vec sqrt(Vec x) { return {_mm256_sqrt_pd(x.v)}; }
  T sum() const {
    __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
  static Vec round(Vec x) { return {_mm256_round_pd(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static Vec exp2i(Vec n) {
    __m256i e = _mm256_cvtepi32_epi64(_mm_add_epi32(_mm256_cvtpd_epi32(n.v), _mm_set1_epi32(1023)));
    return {_mm256_castsi256_pd(_mm256_slli_epi64(e, 52))};
  }
  static Vec scale(Vec x, Vec n) {
    const Vec half = round(n * set1((T)0.5));
    return x * exp2i(half) * exp2i(n - half);
  }
  static constexpr int kTable = 0;
  T largest() const {
    const __m128d s = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_max_sd(s, _mm_unpackhi_pd(s, s)));
  }
  using Lanes = __m256i;  // of halves
  static Lanes lanes(const int32_t* of) {
    return _mm256_setr_epi32(2 * of[0], 2 * of[0] + 1, 2 * of[1], 2 * of[1] + 1, 2 * of[2], 2 * of[2] + 1, 2 * of[3],
                             2 * of[3] + 1);
  }
  static Vec permute(Vec x, Lanes lanes) {
    return {_mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(x.v), lanes))};
  }
  static Vec even(Vec lo, Vec hi) { return {_mm256_permute4x64_pd(_mm256_shuffle_pd(lo.v, hi.v, 0x0), 0xD8)}; }
  // Comparisons, lane by lane.
  static constexpr bool kMayBeNan = true;
  using Mask = __m256d;
  static Mask greater(Vec a, Vec b) { return _mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ); }
  static Mask equal(Vec a, Vec b) { return _mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ); }
  static Mask unordered(Vec a, Vec b) { return _mm256_cmp_pd(a.v, b.v, _CMP_UNORD_Q); }
  static bool any(Mask m) { return _mm256_movemask_pd(m) != 0; }
  static Mask either(Mask a, Mask b) { return _mm256_or_pd(a, b); }
  // m ? a : b
  static Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_pd(b.v, a.v, m)}; }
  // The larger one; a NaN in either comes through.
  static Vec max_nan(Vec a, Vec x) {
    return {_mm256_blendv_pd(_mm256_max_pd(a.v, x.v), a.v, _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q))};
  }
  static Vec odd(Vec lo, Vec hi) { return {_mm256_permute4x64_pd(_mm256_shuffle_pd(lo.v, hi.v, 0xF), 0xD8)}; }
  static Vec zip_low(Vec a, Vec b) {
    return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x20)};
  }
  static Vec zip_high(Vec a, Vec b) {
    return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x31)};
  }
  static constexpr int kColumnBlock = 2;
  template <class Row>
  static void load_columns(Row row, Vec (&r)[2]) {
    __m256d a[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      a[i] = _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(row(i))), _mm_loadu_pd(row(i + 2)), 1);
    r[0].v = _mm256_unpacklo_pd(a[0], a[1]);
    r[1].v = _mm256_unpackhi_pd(a[0], a[1]);
  }
  static void transpose(Vec (&r)[4]) {
    __m256d a = _mm256_unpacklo_pd(r[0].v, r[1].v), b = _mm256_unpackhi_pd(r[0].v, r[1].v);
    __m256d c = _mm256_unpacklo_pd(r[2].v, r[3].v), d = _mm256_unpackhi_pd(r[2].v, r[3].v);
    r[0].v = _mm256_permute2f128_pd(a, c, 0x20);
    r[1].v = _mm256_permute2f128_pd(b, d, 0x20);
    r[2].v = _mm256_permute2f128_pd(a, c, 0x31);
    r[3].v = _mm256_permute2f128_pd(b, d, 0x31);
  }
};

}  // namespace fastconv::FASTCONV_ISA_NS
