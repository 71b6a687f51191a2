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

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set1(T x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const T* p) { return {_mm512_loadu_ps(p)}; }
  void store(T* p) const { _mm512_storeu_ps(p, v); }
  void stream(T* p) const { _mm512_stream_ps(p, v); }
  static __mmask16 mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
  static Vec load_n(const T* p, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  void store_n(T* p, int64_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // A NaN in the second operand comes through.
  friend Vec max(Vec bound, Vec x) { return {_mm512_max_ps(bound.v, x.v)}; }
  friend Vec min(Vec bound, Vec x) { return {_mm512_min_ps(bound.v, x.v)}; }
  static Vec abs(Vec x) { return {_mm512_abs_ps(x.v)}; }
  static Vec select_less(Vec x, Vec y, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
  }
  // x <= y ? a : b
  static Vec select_less_equal(Vec x, Vec y, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LE_OQ), b.v, a.v)};
  }
  static Vec sqrt(Vec x) { return {_mm512_sqrt_ps(x.v)}; }
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
  static Vec even(Vec lo, Vec hi) {
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return {_mm512_permutex2var_ps(lo.v, index, hi.v)};
  }
  // Four elements of 16 runs: r[i] = elements i of row(0) .. row(15).
  template <class Row>
  static void load_columns(Row row, Vec (&r)[4]) {
    __m512 a[4], b[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      a[i] = _mm512_castps128_ps512(_mm_loadu_ps(row(i)));
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(row(i + 4)), 1);
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(row(i + 8)), 2);
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(row(i + 12)), 3);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    r[0].v = _mm512_shuffle_ps(b[0], b[2], 0x44);
    r[1].v = _mm512_shuffle_ps(b[0], b[2], 0xEE);
    r[2].v = _mm512_shuffle_ps(b[1], b[3], 0x44);
    r[3].v = _mm512_shuffle_ps(b[1], b[3], 0xEE);
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

  static Vec zero() { return {_mm512_setzero_pd()}; }
  static Vec set1(T x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const T* p) { return {_mm512_loadu_pd(p)}; }
  void store(T* p) const { _mm512_storeu_pd(p, v); }
  void stream(T* p) const { _mm512_stream_pd(p, v); }
  static __mmask8 mask(int64_t n) { return (__mmask8)((1u << n) - 1); }
  static Vec load_n(const T* p, int64_t n) { return {_mm512_maskz_loadu_pd(mask(n), p)}; }
  void store_n(T* p, int64_t n) const { _mm512_mask_storeu_pd(p, mask(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
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
  static Vec even(Vec lo, Vec hi) {
    const __m512i index = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    return {_mm512_permutex2var_pd(lo.v, index, hi.v)};
  }
  template <class Row>
  static void load_columns(Row row, Vec (&r)[2]) {
    __m512d a[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      a[i] = _mm512_castpd128_pd512(_mm_loadu_pd(row(i)));
      a[i] = _mm512_insertf64x2(a[i], _mm_loadu_pd(row(i + 2)), 1);
      a[i] = _mm512_insertf64x2(a[i], _mm_loadu_pd(row(i + 4)), 2);
      a[i] = _mm512_insertf64x2(a[i], _mm_loadu_pd(row(i + 6)), 3);
    }
    r[0].v = _mm512_unpacklo_pd(a[0], a[1]);
    r[1].v = _mm512_unpackhi_pd(a[0], a[1]);
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
