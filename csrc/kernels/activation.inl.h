// The epilogue's functions on vectors.
//
// exp follows Cody and Waite's reduction with the Taylor polynomial of expm1 on |r| <= ln(2) / 2. In double erfc is
// t * exp(-z^2 + P(2t - 1)), t = 2 / (2 + z), with P fitted on Chebyshev nodes in 60-digit arithmetic: its error is
// below 1e-16 relative. In float erfc(y / sqrt 2) is t * exp(-y^2 / 2) * Q(t - 3/4), t = 1 / (1 + y / sqrt 8), where Q
// has 10 terms with a relative error below 3e-8 for y up to 15 (minimax, by reweighted least squares); P would take 13.
#pragma once
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

// Where vectors are intrinsics: fma rounds once, and the integer of a NaN is defined (and of no consequence, as the
// other factor is NaN).
#if defined(__FMA__) || defined(__AVX512F__)
constexpr bool kIntrinsics = true;
#else
constexpr bool kIntrinsics = false;
#endif

template <class T>
struct MathConstants;
template <>
struct MathConstants<float> {
  static constexpr float kLn2Hi = 0x1.62e4p-1f, kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kExpMin = -104.0f, kGeluBound = 15.0f, kSplit = 0x1p12f + 1;
  static constexpr int kExpTerms = 7;  // 0.3466^7 / 8! is below 2^-25
  static constexpr float kErfc[] = {0.719045877f,  0.981815577f,  0.593876123f,   -0.0573083051f, -0.201056555f,
                                    0.0508497283f, 0.0760189742f, -0.0628516972f, -0.0429085121f, 0.0105125876f};
};
template <>
struct MathConstants<double> {
  static constexpr double kLn2Hi = 0x1.62e42fee00000p-1, kLn2Lo = 0x1.a39ef35793c76p-33;
  static constexpr double kExpMin = -746.0, kGeluBound = 39.0, kSplit = 0x1p27 + 1;
  static constexpr int kExpTerms = 14;  // 0.3466^14 / 15! is below 2^-60
  static constexpr double kErfc[] = {
      -0.671794084056692266,    0.672643223977656795,     0.0473433068419044087,     -0.0468956102311847486,
      -0.00987268936638868381,  0.00882493855745383067,   0.00175893355776638208,    -0.00234581250812231329,
      -0.000146246862942106299, 0.000673678879614294265,  -0.0000937350346581582289, -0.000174303527802031423,
      0.0000714010321974850216, 0.0000317478594369229559, -0.0000301879480939514845, 1.29151641390877682e-7,
      8.56277909938652423e-6,   -2.92856702416178805e-6,  -1.27258052791477185e-6,   1.2186833373805657e-6,
      -1.68172831940441241e-7,  -2.13761191741784245e-7,  1.53073183663239289e-7,    -2.68729874998667929e-8,
      -3.9024931626661815e-8,   2.58976359819596293e-8,   4.01387770421450637e-9,    -6.42108712961318332e-9,
      6.71492039360197859e-12,  6.24945728099135126e-10};
};

// 1 / j!
template <class T>
struct InverseFactorials {
  T of[16];
  constexpr InverseFactorials() : of() {
    double factorial = 1;
    for (int j = 0; j < 16; ++j) {
      of[j] = (T)(1 / factorial);
      factorial *= j + 1;
    }
  }
};

// n and expm1(r) with hi + lo = n ln 2 + r, the sum of two so that an argument may carry more digits than a number. hi
// is clamped to where exp underflows; lo is small. NaN comes through in the result.
template <class V>
inline V exp_reduced(V hi, V lo, V& n) {
  using T = typename V::T;
  using M = MathConstants<T>;
  hi = max(V::set1(M::kExpMin), hi);
  n = V::round((hi + lo) * V::set1((T)1.44269504088896340736));
  // A NaN would make an undefined integer of n.
  if (!kIntrinsics) n = V::select_less(V::abs(n), V::set1((T)2048), n, V::zero());
  V r = fma(n, V::set1(-M::kLn2Hi), hi) + lo;
  r = fma(n, V::set1(-M::kLn2Lo), r);
  // 1 + r/2 + r^2/6 + ... by Horner. Unrolled, so that the reciprocal factorials are constants.
  constexpr InverseFactorials<T> c;
  V p = V::set1(c.of[M::kExpTerms]);
#pragma GCC unroll 16
  for (int j = M::kExpTerms - 1; j >= 1; --j) p = fma(r, p, V::set1(c.of[j]));
  return r * p;
}

// e^(hi + lo) for an argument that is not above 1. It fades into the denormals and to 0.
template <class V>
inline V exp(V hi, V lo) {
  using T = typename V::T;
  V n, m = exp_reduced(hi, lo, n);
  return V::scale(V::set1((T)1) + m, n);
}

// exp of a negative number alone, which keeps both tails exact in relative terms and gives 0 for -inf.
template <class V>
inline V sigmoid(V x) {
  using T = typename V::T;
  const V zero = V::zero(), one = V::set1((T)1);
  V e = exp(zero - V::abs(x), zero);
  return V::select_less(x, zero, e, one) / (one + e);
}

// sigmoid(x), and 1 - sigmoid(x) without the cancellation.
template <class V>
inline V sigmoid(V x, V& rest) {
  using T = typename V::T;
  const V zero = V::zero(), one = V::set1((T)1);
  V e = exp(zero - V::abs(x), zero), share = one / (one + e);
  rest = V::select_less(x, zero, share, e * share);
  return V::select_less(x, zero, e * share, share);
}

// tanh(x) = m / (m + 2) with m = expm1(2x), which keeps small x exact in relative terms.
template <class V>
inline V tanh(V x) {
  using T = typename V::T;
  const V one = V::set1((T)1), limit = V::set1((T)(sizeof(T) == 4 ? 10 : 20));
  V y = max(V::zero() - limit, min(limit, x));
  V n, r = exp_reduced(y + y, V::zero(), n), scale = V::exp2i(n);
  V m = fma(scale, r, scale - one);
  return m / (m + one + one);
}

// erfc(-x / sqrt 2), twice the normal distribution
template <class V>
inline V double_normal(V x) {
  using T = typename V::T;
  using M = MathConstants<T>;
  constexpr int kTerms = sizeof(M::kErfc) / sizeof(T);
  const V one = V::set1((T)1), two = one + one, half = V::set1((T)0.5);
  // Beyond the bound the tail is 0.
  V y = min(V::set1(M::kGeluBound), V::abs(x)), t, u;
  if constexpr (sizeof(T) == 4)
    t = one / fma(y, V::set1((T)0.35355339059327376220), one), u = t - V::set1((T)0.75);
  else
    t = two / (two + y * V::set1((T)0.70710678118654752440)), u = t + t - one;
  V p = V::set1(M::kErfc[kTerms - 1]);
#pragma GCC unroll 32
  for (int j = kTerms - 2; j >= 0; --j) p = fma(p, u, V::set1(M::kErfc[j]));
  // y^2 / 2 rounded would cost the tail up to 7 bits: it goes on in two numbers, by what fma leaves of the product, or
  // else by the upper half of y, which has an exact square.
  V hi, lo;
  if constexpr (kIntrinsics) {
    const V minus_half = V::zero() - half * y;
    hi = minus_half * y, lo = fma(minus_half, y, V::zero() - hi);
  } else {
    const V s = y * V::set1(M::kSplit), upper = s - (s - y);
    hi = V::zero() - half * upper * upper, lo = (upper - y) * half * (upper + y);
  }
  V tail;
  if constexpr (sizeof(T) == 4)
    tail = t * p * exp(hi, lo);
  else
    tail = t * exp(hi, lo + p);
  return V::select_less(x, V::zero(), tail, two - tail);
}

// 0.5 * x * erfc(-x / sqrt 2)
template <class V>
inline V gelu(V x) {
  return V::set1((typename V::T)0.5) * x * double_normal(x);
}

// The order is that of fastconv::ActivationKind.
template <class V>
inline V activate(int32_t kind, typename V::T a, typename V::T b, V x) {
  using T = typename V::T;
  const V zero = V::zero(), six = V::set1((T)6), three = V::set1((T)3);
  switch (kind) {
    case 1: return max(zero, x);
    case 2: return min(six, max(zero, x));
    case 3: return V::select_less(x, zero, V::set1(a) * x, x);
    case 4: return x * sigmoid(x);
    case 5: return x * (min(six, max(zero, x + three)) / six);
    case 6: return sigmoid(x);
    case 7: return min(six, max(zero, x + three)) / six;
    case 8: return tanh(x);
    case 9: return gelu(x);
    case 10: {
      // 0.5 * (1 + tanh(v)) is sigmoid(2 v), without the cancellation.
      V v = fma(V::set1((T)0.044715) * x * x, x, x);
      return x * sigmoid(V::set1((T)1.5957691216057307) * v);
    }
    case 11: return min(V::set1(b), max(V::set1(a), x));
    default: return x;
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
