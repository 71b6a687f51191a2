// Convolution by the fast Fourier transform: a lane is a signal of its own, so that every butterfly is plain vertical
// arithmetic and no element ever changes its lane.
//
// Frequencies are decimated on the way there and joined again, by the same steps backwards, on the way back: the order
// in between does not matter to a product element by element, and nothing is ever sorted. The way back is the way there
// with real and imaginary parts exchanged, which conjugates every root of unity.
//
// A transform down the columns reads a column from its rows and puts it back; in between it is a run of memory in the
// first-level cache. Along the rows, transform, product and way back are one visit. So a signal passes through the core
// three times, however long it is.
//
// Register map of radix 8, AVX-512: 8 complex numbers are 16 registers, and a twiddle and what it makes 6 more. AVX2
// has 16 in all: ops prefers radix 4 there, 8 registers.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/traits.h"

namespace fastconv::FASTCONV_ISA_NS {

// Complex numbers of W lanes, `step` elements apart.
template <class T>
struct FftLine {
  T* re;
  T* im;
  int64_t step;
};

template <class T>
struct Complex {
  Vec<T> re, im;
  friend Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
  friend Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
  // a + i b and a - i b
  static Complex plus_i(Complex a, Complex b) { return {a.re - b.im, a.im + b.re}; }
  static Complex minus_i(Complex a, Complex b) { return {a.re + b.im, a.im - b.re}; }
  // Times cos - i sin.
  Complex turned(const T* root) const {
    const Vec<T> c = Vec<T>::set1(root[0]), s = Vec<T>::set1(root[1]);
    return {fma(im, s, re * c), fnma(re, s, im * c)};
  }
};

// The transform of length R, in place: x[k] = sum over j of x[j] * exp(-2 pi i j k / R).
template <class T>
inline __attribute__((always_inline)) void butterfly(Complex<T> (&x)[2]) {
  const Complex<T> a = x[0];
  x[0] = a + x[1], x[1] = a - x[1];
}

template <class T>
inline __attribute__((always_inline)) void butterfly(Complex<T> (&x)[3]) {
  using V = Vec<T>;
  const V half = V::set1((T)0.5), root = V::set1((T)0.866025403784438646763723170752936183);
  const Complex<T> sum = x[1] + x[2], difference = x[1] - x[2];
  const Complex<T> middle = {fnma(half, sum.re, x[0].re), fnma(half, sum.im, x[0].im)};
  x[0] = x[0] + sum;
  x[1] = {fma(root, difference.im, middle.re), fnma(root, difference.re, middle.im)};
  x[2] = {fnma(root, difference.im, middle.re), fma(root, difference.re, middle.im)};
}

template <class T>
inline __attribute__((always_inline)) void butterfly(Complex<T> (&x)[4]) {
  const Complex<T> a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = x[1] - x[3];
  x[0] = a + c, x[2] = a - c;
  x[1] = Complex<T>::minus_i(b, d), x[3] = Complex<T>::plus_i(b, d);
}

template <class T>
inline __attribute__((always_inline)) void butterfly(Complex<T> (&x)[8]) {
  using V = Vec<T>;
  using C = Complex<T>;
  // Odd frequencies: the differences, turned by eighths. The factor sqrt(1/2) of two of them rides along with the sum
  // that they end in.
  const C d0 = x[0] - x[4], d1 = x[1] - x[5], d2 = x[2] - x[6], d3 = x[3] - x[7];
  C even[4] = {x[0] + x[4], x[1] + x[5], x[2] + x[6], x[3] + x[7]};
  butterfly(even);
  const V root = V::set1((T)0.707106781186547524400844362104849039);
  const C a = C::minus_i(d0, d2), b = C::plus_i(d0, d2);
  const C p = {d1.re + d1.im, d1.im - d1.re}, q = {d3.im - d3.re, V::zero() - d3.re - d3.im};
  const C sum = p + q, difference = p - q;
  x[0] = even[0], x[2] = even[1], x[4] = even[2], x[6] = even[3];
  x[1] = {fma(root, sum.re, a.re), fma(root, sum.im, a.im)};
  x[5] = {fnma(root, sum.re, a.re), fnma(root, sum.im, a.im)};
  x[3] = {fma(root, difference.im, b.re), fnma(root, difference.re, b.im)};
  x[7] = {fnma(root, difference.im, b.re), fma(root, difference.re, b.im)};
}

// One radix over a line of n elements: transforms of length R of the elements m / R apart in each m of them. There, the
// results are turned by their twiddles; on the way back (Back) the inputs are. `twist` turns each element once more, at
// the end or the beginning; null: not.
template <class T, int R, bool Back, bool Twiddles>
inline void fft_pass(const FftLine<T>& from, const FftLine<T>& to, int64_t n, int64_t m, const T* twiddles,
                     const T* twist) {
  using V = Vec<T>;
  const int64_t apart = m / R;
  for (int64_t block = 0; block < n; block += m) {
    const T* root = twiddles;
    for (int64_t j = 0; j < apart; ++j) {
      const int64_t first = block + j;
      Complex<T> x[R];
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) {
        const int64_t at = (first + q * apart) * from.step;
        x[q] = {V::load(from.re + at), V::load(from.im + at)};
      }
      if (Back && twist) {
#pragma GCC unroll 8
        for (int q = 0; q < R; ++q) x[q] = x[q].turned(twist + 2 * (first + q * apart));
      }
      if (Back && Twiddles) {
#pragma GCC unroll 8
        for (int q = 1; q < R; ++q) x[q] = x[q].turned(root + 2 * (q - 1));
      }
      butterfly(x);
      if (!Back && Twiddles) {
#pragma GCC unroll 8
        for (int q = 1; q < R; ++q) x[q] = x[q].turned(root + 2 * (q - 1));
      }
      if (!Back && twist) {
#pragma GCC unroll 8
        for (int q = 0; q < R; ++q) x[q] = x[q].turned(twist + 2 * (first + q * apart));
      }
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) {
        const int64_t at = (first + q * apart) * to.step;
        x[q].re.store(to.re + at);
        x[q].im.store(to.im + at);
      }
      if (Twiddles) root += 2 * (R - 1);
    }
  }
}

template <class T, int R, bool Back>
inline void fft_radix(const FftLine<T>& from, const FftLine<T>& to, int64_t n, int64_t m, const T* twiddles,
                      const T* twist) {
  if (m == R)
    fft_pass<T, R, Back, false>(from, to, n, m, twiddles, twist);
  else
    fft_pass<T, R, Back, true>(from, to, n, m, twiddles, twist);
}

// A transform of `line` by way of `middle`, which may be the line itself.
template <class T, bool Back>
inline void fft_line(const FftAxis<T>& axis, const FftLine<T>& line, const FftLine<T>& middle, const T* twist) {
  const T* twiddles[kFftRadices];
  int64_t length[kFftRadices];
  const T* next = axis.twiddles;
  int64_t m = axis.n;
  for (int32_t i = 0; i < axis.radices; ++i) {
    const int32_t r = axis.radix[i];
    twiddles[i] = next, length[i] = m;
    next += m / r * (r - 1) * 2;
    m /= r;
  }
  for (int32_t i = 0; i < axis.radices; ++i) {
    const int32_t k = Back ? axis.radices - 1 - i : i;
    const FftLine<T>& from = i == 0 ? line : middle;
    const FftLine<T>& to = i == axis.radices - 1 ? line : middle;
    // The twist comes between this axis and the other.
    const T* turn = k == axis.radices - 1 ? twist : nullptr;
    switch (axis.radix[k]) {
      case 2: fft_radix<T, 2, Back>(from, to, axis.n, length[k], twiddles[k], turn); break;
      case 3: fft_radix<T, 3, Back>(from, to, axis.n, length[k], twiddles[k], turn); break;
      case 4: fft_radix<T, 4, Back>(from, to, axis.n, length[k], twiddles[k], turn); break;
      default: fft_radix<T, 8, Back>(from, to, axis.n, length[k], twiddles[k], turn); break;
    }
  }
}

// Transforms columns [first, end), there or back.
template <class T, bool Back>
inline void fft_columns(const FftArgs<T>& g, int64_t first, int64_t end) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  if (g.rows.n == 1) return;
  const int64_t step = g.columns.n * W, half = g.rows.n * W;
  T* re = Back ? g.im : g.re;
  T* im = Back ? g.re : g.im;
  const FftLine<T> middle = {g.line, g.line + half, W};
  for (int64_t c = first; c < end; ++c) {
    const FftLine<T> column = {re + c * W, im + c * W, step};
    fft_line<T, Back>(g.rows, column, middle, g.twist ? g.twist + c * g.rows.n * 2 : nullptr);
  }
}

template <class T, bool Shared>
inline void fft_multiply(T* re, T* im, const T* spectrum, int64_t n) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t i = 0; i < n; ++i, re += W, im += W, spectrum += Shared ? 2 : 2 * W) {
    const V a = V::load(re), b = V::load(im);
    const V c = Shared ? V::set1(spectrum[0]) : V::load(spectrum);
    const V d = Shared ? V::set1(spectrum[1]) : V::load(spectrum + W);
    fnma(b, d, a * c).store(re);
    fma(b, c, a * d).store(im);
  }
}

template <class T>
void fft_convolve(const FftArgs<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t rows = g.rows.n, columns = g.columns.n;
  fft_columns<T, false>(g, g.first_column, g.end_column);
  for (int64_t r = 0; r < rows; ++r) {
    T* re = g.re + r * columns * W;
    T* im = g.im + r * columns * W;
    const FftLine<T> there = {re, im, W}, back = {im, re, W};
    fft_line<T, false>(g.columns, there, there, nullptr);
    if (g.shared)
      fft_multiply<T, true>(re, im, g.spectrum + r * columns * 2, columns);
    else
      fft_multiply<T, false>(re, im, g.spectrum + r * columns * 2 * W, columns);
    fft_line<T, true>(g.columns, back, back, nullptr);
  }
  V a = V::zero(), b = V::zero();
  for (int64_t c = 0; c < g.out_columns; ++c) {
    fft_columns<T, true>(g, c, c + 1);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (r * columns + c) * W;
      a = fma(V::load(g.re + at), V::zero(), a);
      b = fma(V::load(g.im + at), V::zero(), b);
    }
  }
  a.store(g.finite);
  b.store(g.finite + W);
}

template <class T>
void fft_spectrum(const FftArgs<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t columns = g.columns.n;
  const V scale = V::set1(g.scale);
  fft_columns<T, false>(g, g.first_column, g.end_column);
  T* to = g.spectrum;
  for (int64_t r = 0; r < g.rows.n; ++r) {
    T* re = g.re + r * columns * W;
    T* im = g.im + r * columns * W;
    const FftLine<T> row = {re, im, W};
    fft_line<T, false>(g.columns, row, row, nullptr);
    for (int64_t c = 0; c < columns; ++c, to += 2 * W) {
      (V::load(re + c * W) * scale).store(to);
      (V::zero() - V::load(im + c * W) * scale).store(to + W);
    }
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
