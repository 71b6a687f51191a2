// Vectors of 512 bits for AVX-512 F, BW, DQ and VL.
#pragma once
// GCC 12 takes the deliberately undefined operand inside its own AVX-512 header for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <stdint.h>

namespace fastconv::FASTCONV_ISA_NS {

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using T = float;
  static constexpr int kLanes = 16;
  __m512 v;

  // Keeps a vector in its register: the compiler would rather load it again for every use.
  void pin() { asm("" : "+v"(v)); }
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set1(T x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const T* p) { return {_mm512_loadu_ps(p)}; }
  void store(T* p) const { _mm512_storeu_ps(p, v); }
  void stream(T* p) const { _mm512_stream_ps(p, v); }
  static __mmask16 mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
  static Vec load_n(const T* p, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  // Lanes [lo, hi), 0 <= lo <= hi <= W; the others are zeros.
  using Range = __mmask16;
  static Range range(int64_t lo, int64_t hi) { return (Range)(mask(hi) & ~mask(lo)); }
  static Vec load_range(const T* p, Range m) { return {_mm512_maskz_loadu_ps(m, p)}; }
  // The others are those of `outside`.
  static Vec load_range(const T* p, Range m, Vec outside) { return {_mm512_mask_loadu_ps(outside.v, m, p)}; }
  void store_n(T* p, int64_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // c - a * b
  friend Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
  // A NaN in the second operand comes through.
  friend Vec max(Vec bound, Vec x) { return {_mm512_max_ps(bound.v, x.v)}; }
  friend Vec min(Vec bound, Vec x) { return {_mm512_min_ps(bound.v, x.v)}; }
  static Vec abs(Vec x) { return {_mm512_abs_ps(x.v)}; }
  // size with the sign of x
  static Vec signed_as(Vec x, Vec size) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return {_mm512_castsi512_ps(  // sign ? x : size, bit by bit
        _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(x.v), _mm512_castps_si512(size.v), 0xCA))};
  }
  // size, or -size where x is negative
  static Vec turned_as(Vec x, Vec size) { return {_mm512_xor_ps(size.v, _mm512_and_ps(x.v, _mm512_set1_ps(-0.0f)))}; }
  // The bits of a number but for the n lowest, and those moved down by n.
  static Vec without_low(Vec x, int n) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(-1 << n)))};
  }
  static Vec shift_right(Vec x, int n) { return {_mm512_castsi512_ps(_mm512_srli_epi32(_mm512_castps_si512(x.v), n))}; }
  static Vec select_less(Vec x, Vec y, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
  }
  // x <= y ? a : b
  static Vec select_less_equal(Vec x, Vec y, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LE_OQ), b.v, a.v)};
  }
  static Vec sqrt(Vec x) { return {_mm512_sqrt_ps(x.v)}; }
  // x^-1/2 to 12 bits or more, which differ between CPUs.
  static Vec rsqrt_estimate(Vec x) { return {_mm512_rsqrt14_ps(x.v)}; }
  // Over the lanes, halves joined with halves.
  T sum() const {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static Vec round(Vec x) { return {_mm512_roundscale_ps(x.v, 0)}; }
  static Vec exp2i(Vec n) {
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
  }
  // x * 2^n for an integral n, rounded once where it is denormal
  static Vec scale(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
  // Entries by the four low bits of the numbers i. (The lookup of 32 entries, as the fused multiply-add, reads three
  // registers: on Zen 4 the two together are one a cycle.)
  static Vec lookup(const T (&table)[16], Vec i) {
    return {_mm512_permutexvar_ps(_mm512_castps_si512(i.v), _mm512_load_ps(table))};
  }
  static constexpr int kTable = 16;
  // 2^(i / 16) from an integral i in the low bits of a number: the table makes up for the fraction that is added here.
  static Vec power(const uint32_t (&table)[16], Vec i) {
    const __m512i k = _mm512_castps_si512(i.v), fraction = _mm512_permutexvar_epi32(k, _mm512_load_si512(table));
    return {_mm512_castsi512_ps(_mm512_add_epi32(fraction, _mm512_slli_epi32(k, 19)))};
  }
  // The largest lane; a NaN may be lost.
  T largest() const {
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // Lane i of the result is lane lanes[i].
  using Lanes = __m512i;
  static Lanes lanes(const int32_t* of) { return _mm512_loadu_si512(of); }
  static Vec permute(Vec x, Lanes lanes) { return {_mm512_permutexvar_ps(lanes, x.v)}; }
  static Vec even(Vec lo, Vec hi) {
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return {_mm512_permutex2var_ps(lo.v, index, hi.v)};
  }
  // Comparisons, lane by lane.
  static constexpr bool kMayBeNan = true;
  using Mask = __mmask16;
  static Mask greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
  static Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
  static Mask unordered(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q); }
  static bool any(Mask m) { return m != 0; }
  static bool any_above(Vec x, T bound) { return any(greater(x, set1(bound))); }
  static Mask either(Mask a, Mask b) { return _kor_mask16(a, b); }
  // m ? a : b
  static Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }
  // The larger one; a NaN in either comes through.
  static Vec max_nan(Vec a, Vec x) {
    return {_mm512_mask_max_ps(a.v, _mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q), a.v, x.v)};
  }
  // Elements 1, 3, 5, ... of the 2 W in lo, hi.
  static Vec odd(Vec lo, Vec hi) {
    const __m512i index = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {_mm512_permutex2var_ps(lo.v, index, hi.v)};
  }
  // The first and the last W of a[0], b[0], a[1], b[1], ...
  static Vec zip_low(Vec a, Vec b) {
    const __m512i index = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return {_mm512_permutex2var_ps(a.v, index, b.v)};
  }
  static Vec zip_high(Vec a, Vec b) {
    const __m512i index = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return {_mm512_permutex2var_ps(a.v, index, b.v)};
  }
  // The W elements from the n-th of lo, hi on.
  using Shift = __m512i;
  static Shift shift_by(int64_t n) {
    return _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                            _mm512_set1_epi32((int)n));
  }
  static Vec shifted(Vec lo, Vec hi, Shift s) { return {_mm512_permutex2var_ps(lo.v, s, hi.v)}; }
  // 16 elements of 16 runs: r[i] = elements i of row(0) .. row(15). (Four elements at a time, put together of pieces of
  // 128 bits, take four times as many loads.)
  static constexpr int kColumnBlock = 16;
  template <class Row>
  static void load_columns(Row row, Vec (&r)[16]) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = load(row(i));
    transpose(r);
  }
  static void transpose(Vec (&r)[16]) {
    __m512 a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
      a[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      b[4 * i] = _mm512_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
      b[4 * i + 1] = _mm512_shuffle_ps(a[4 * i], a[4 * i + 2], 0xEE);
      b[4 * i + 2] = _mm512_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
      b[4 * i + 3] = _mm512_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xEE);
    }
    // b[4 * i + j] holds, in 128-bit lane l, column 4 * l + j of rows 4 * i ..: transpose the lanes.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __m512 lo = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), hi = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
      r[j].v = _mm512_shuffle_f32x4(lo, hi, 0x88);
      r[8 + j].v = _mm512_shuffle_f32x4(lo, hi, 0xDD);
      lo = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xDD);
      hi = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xDD);
      r[4 + j].v = _mm512_shuffle_f32x4(lo, hi, 0x88);
      r[12 + j].v = _mm512_shuffle_f32x4(lo, hi, 0xDD);
    }
  }
};

template <>
struct Vec<double> {
  using T = double;
  static constexpr int kLanes = 8;
  __m512d v;

  // Keeps a vector in its register: the compiler would rather load it again for every use.
  void pin() { asm("" : "+v"(v)); }
  static Vec zero() { return {_mm512_setzero_pd()}; }
  static Vec set1(T x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const T* p) { return {_mm512_loadu_pd(p)}; }
  void store(T* p) const { _mm512_storeu_pd(p, v); }
  void stream(T* p) const { _mm512_stream_pd(p, v); }
  static __mmask8 mask(int64_t n) { return (__mmask8)((1u << n) - 1); }
  static Vec load_n(const T* p, int64_t n) { return {_mm512_maskz_loadu_pd(mask(n), p)}; }
  // Lanes [lo, hi), 0 <= lo <= hi <= W; the others are zeros.
  using Range = __mmask8;
  static Range range(int64_t lo, int64_t hi) { return (Range)(mask(hi) & ~mask(lo)); }
  static Vec load_range(const T* p, Range m) { return {_mm512_maskz_loadu_pd(m, p)}; }
  static Vec load_range(const T* p, Range m, Vec outside) { return {_mm512_mask_loadu_pd(outside.v, m, p)}; }
  void store_n(T* p, int64_t n) const { _mm512_mask_storeu_pd(p, mask(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  friend Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
  friend Vec max(Vec bound, Vec x) { return {_mm512_max_pd(bound.v, x.v)}; }
  friend Vec min(Vec bound, Vec x) { return {_mm512_min_pd(bound.v, x.v)}; }
  static Vec abs(Vec x) { return {_mm512_abs_pd(x.v)}; }
  static Vec select_less(Vec x, Vec y, Vec a, Vec b) {
    return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
  }
  static Vec select_less_equal(Vec x, Vec y, Vec a, Vec b) {
    return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(x.v, y.v, _CMP_LE_OQ), b.v, a.v)};
  }
  static Vec sqrt(Vec x) { return {_mm512_sqrt_pd(x.v)}; }
  T sum() const {
    __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    __m128d s = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
  static Vec round(Vec x) { return {_mm512_roundscale_pd(x.v, 0)}; }
  static Vec exp2i(Vec n) {
    __m512i e = _mm512_add_epi64(_mm512_cvtpd_epi64(n.v), _mm512_set1_epi64(1023));
    return {_mm512_castsi512_pd(_mm512_slli_epi64(e, 52))};
  }
  static Vec scale(Vec x, Vec n) { return {_mm512_scalef_pd(x.v, n.v)}; }
  static constexpr int kTable = 0;
  T largest() const {
    const __m256d h = _mm256_max_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    const __m128d s = _mm_max_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_max_sd(s, _mm_unpackhi_pd(s, s)));
  }
  using Lanes = __m512i;
  static Lanes lanes(const int32_t* of) { return _mm512_cvtepi32_epi64(_mm256_loadu_si256((const __m256i*)of)); }
  static Vec permute(Vec x, Lanes lanes) { return {_mm512_permutexvar_pd(lanes, x.v)}; }
  static Vec even(Vec lo, Vec hi) {
    const __m512i index = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    return {_mm512_permutex2var_pd(lo.v, index, hi.v)};
  }
  // Comparisons, lane by lane.
  static constexpr bool kMayBeNan = true;
  using Mask = __mmask8;
  static Mask greater(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ); }
  static Mask equal(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ); }
  static Mask unordered(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_UNORD_Q); }
  static bool any(Mask m) { return m != 0; }
  static Mask either(Mask a, Mask b) { return _kor_mask8(a, b); }
  // m ? a : b
  static Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_pd(m, b.v, a.v)}; }
  // The larger one; a NaN in either comes through.
  static Vec max_nan(Vec a, Vec x) {
    return {_mm512_mask_max_pd(a.v, _mm512_cmp_pd_mask(a.v, a.v, _CMP_ORD_Q), a.v, x.v)};
  }
  static Vec odd(Vec lo, Vec hi) {
    const __m512i index = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    return {_mm512_permutex2var_pd(lo.v, index, hi.v)};
  }
  static Vec zip_low(Vec a, Vec b) {
    const __m512i index = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    return {_mm512_permutex2var_pd(a.v, index, b.v)};
  }
  static Vec zip_high(Vec a, Vec b) {
    const __m512i index = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    return {_mm512_permutex2var_pd(a.v, index, b.v)};
  }
  using Shift = __m512i;
  static Shift shift_by(int64_t n) {
    return _mm512_add_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi64(n));
  }
  static Vec shifted(Vec lo, Vec hi, Shift s) { return {_mm512_permutex2var_pd(lo.v, s, hi.v)}; }
  static constexpr int kColumnBlock = 8;
  template <class Row>
  static void load_columns(Row row, Vec (&r)[8]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = load(row(i));
    transpose(r);
  }
  static void transpose(Vec (&r)[8]) {
    __m512d a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      a[2 * i] = _mm512_unpacklo_pd(r[2 * i].v, r[2 * i + 1].v);
      a[2 * i + 1] = _mm512_unpackhi_pd(r[2 * i].v, r[2 * i + 1].v);
    }
    // a[2 * i + j] holds, in 128-bit lane l, column 2 * l + j of rows 2 * i, 2 * i + 1: transpose the lanes.
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      b[0] = _mm512_shuffle_f64x2(a[j], a[2 + j], 0x88);
      b[1] = _mm512_shuffle_f64x2(a[4 + j], a[6 + j], 0x88);
      b[2] = _mm512_shuffle_f64x2(a[j], a[2 + j], 0xDD);
      b[3] = _mm512_shuffle_f64x2(a[4 + j], a[6 + j], 0xDD);
      r[j].v = _mm512_shuffle_f64x2(b[0], b[1], 0x88);
      r[4 + j].v = _mm512_shuffle_f64x2(b[0], b[1], 0xDD);
      r[2 + j].v = _mm512_shuffle_f64x2(b[2], b[3], 0x88);
      r[6 + j].v = _mm512_shuffle_f64x2(b[2], b[3], 0xDD);
    }
  }
};

}  // namespace fastconv::FASTCONV_ISA_NS
