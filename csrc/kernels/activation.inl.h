// The epilogue's functions on vectors.
//
// exp follows Cody and Waite's reduction with the Taylor polynomial of expm1 on |r| <= ln(2) / 2. In double erfc is
// t * exp(-z^2 + P(2t - 1)), t = 2 / (2 + z), with P fitted on Chebyshev nodes in 60-digit arithmetic: its error is
// below 1e-16 relative. In float erfc(y / sqrt 2) is t * exp(-y^2 / 2) * Q(t - 3/4), t = 1 / (1 + y / sqrt 8), where Q
// has 10 terms with a relative error below 3e-8 for y up to 15 (minimax, by reweighted least squares); P would take 13.
//
// In float, where tables lie in registers, e^x = 2^i * 2^(j / n) * (1 + r p(r)) with a table of the 2^(j / n)
// (exp_by_table). Where tables may have 16 entries (kPiecewise), tanh, the normal tail and the slopes of silu and gelu
// are polynomials of degree 5 or 6, one a piece, whose coefficients are looked up (activation_tables.h).
//
// Against the formulas alone, float32, 800000 elements, one Zen 4 core: with AVX-512 gelu has 2.7 times the speed,
// sigmoid 1.8, silu 1.7, tanh 1.6, gelu_tanh 1.6; with AVX2 sigmoid 2.5, silu and gelu_tanh 2.3, gelu 1.4. Such a core
// begins two instructions of 512 bits a cycle, one of them a multiplication. What a vector takes, load and store apart:
//
//               multiply, fma, divide   add, max, shift   lookup   bits   cycles at best   measured
//   exp_by_table<2>       7                    2             1       1          7             6.9
//   sigmoid               8                    5             1       1          8             9.9
//   tanh                  5                    4             7       2          9            11.4
//   gelu                  7.5                  5.5           7       1         10.5          12.5
//
// gelu needs the most registers: 7 coefficients, 5 constants, 2 * 5 for a pair of vectors.
#pragma once
#include "kernels/activation_tables.h"
#include "kernels/pair.h"

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

template <class V>
constexpr bool kPiecewise = V::kTable == 16;

// The sum of c[j][i] * d^j by Horner, i in the low bits of a number.
template <int kTerms, class V>
inline V piece(const float (&c)[kTerms][16], V i, V d) {
  V p = V::lookup(c[kTerms - 1], i);
#pragma GCC unroll 8
  for (int j = kTerms - 2; j >= 0; --j) p = fma(p, d, V::lookup(c[j], i));
  return p;
}

// The same for the nearest multiple of 1 / kSteps: x + 1.5 * 2^23 / kSteps has its number in the low bits.
template <int kSteps, int kTerms, class V>
inline V nearest_piece(const float (&c)[kTerms][16], V x) {
  const V magic = V::set1(0x1.8p23f / kSteps), i = x + magic;
  return piece(c, i, x - (i - magic));
}

// e^(x + rest) * 2^64 for x from -130 to 40, within 0.95 eps: with that factor nothing is denormal. The rest is 0 for
// kParts of 2. With 1 the logarithm of 2 has one part and the result another 0.02 eps * abs(x).
template <int kParts, class V>
inline V exp_by_table(V x, V rest) {
  const V magic = V::set1(0x1.8p23f / V::kTable), i = fma(x, V::set1(1.44269504088896340736f), magic), n = i - magic;
  V r = fma(n, V::set1(-0x1.62e43p-1f), x);
  if constexpr (kParts > 1) r = fma(n, V::set1(0x1.05c61p-29f), r);
  if constexpr (kParts > 2) r = r + rest;
  const auto evaluate = [&](const auto& table, const auto& terms) {
    const V power = V::power(table, i), p = fma(r, V::set1(terms[3]), V::set1(terms[2]));
    return fma(power * r, fma(r, p, V::set1(terms[1])), power);
  };
  if constexpr (V::kTable == 16)
    return evaluate(kPower16, kPower16Terms);
  else
    return evaluate(kPower8, kPower8Terms);
}

// e^(hi + lo) for an argument that is not above 1. It fades into the denormals and to 0.
template <class V>
inline V exp(V hi, V lo) {
  using T = typename V::T;
  if constexpr (V::kTable == 8) {
    return exp_by_table<3>(max(V::set1(MathConstants<T>::kExpMin), hi), lo) * V::set1(0x1p-64f);
  } else {
    V n, m = exp_reduced(hi, lo, n);
    return V::scale(V::set1((T)1) + m, n);
  }
}

template <class V>
inline V exp(V x) {
  using T = typename V::T;
  if constexpr (V::kTable == 8)
    return exp_by_table<2>(max(V::set1(MathConstants<T>::kExpMin), x), x) * V::set1(0x1p-64f);
  else
    return exp(x, V::zero());
}

// Where e^x is cheap, e^x / (1 + e^x), which is 1 from 18 on. Else by exp of a negative number alone. Both keep both
// tails exact in relative terms and give 0 for -inf.
template <class V>
inline V sigmoid(V x) {
  using T = typename V::T;
  if constexpr (V::kTable) {
    const V unit = V::set1(0x1p64f);  // of which e is a multiple that is not denormal
    const V e = exp_by_table<2>(min(V::set1(18), max(V::set1(MathConstants<T>::kExpMin), x)), x);
    return e / (unit + e);
  } else {
    const V zero = V::zero(), one = V::set1((T)1), e = exp(zero - V::abs(x));
    return V::select_less(x, zero, e, one) / (one + e);
  }
}

// sigmoid(x), and 1 - sigmoid(x) without the cancellation.
template <class V>
inline V sigmoid(V x, V& rest) {
  using T = typename V::T;
  const V zero = V::zero(), one = V::set1((T)1);
  V e = exp(zero - V::abs(x)), share = one / (one + e);
  rest = V::select_less(x, zero, share, e * share);
  return V::select_less(x, zero, e * share, share);
}

// tanh(x) = m / (m + 2) with m = expm1(2x), which keeps small x exact in relative terms.
template <class V>
inline V tanh(V x) {
  using T = typename V::T;
  if constexpr (kPiecewise<V>) {
    const V y = min(V::set1(9.3f), V::abs(x)), i = V::shift_right(y + V::set1(0.625f), 21);
    return V::signed_as(x, piece(kTanh, i, y - V::lookup(kTanhCenters, i)));
  }
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

// x * erfc(-x / sqrt 2) / 2 where abs(x) is 3.75 or more. Apart, so that its constants take no registers of those who
// seldom call it.
template <class T>
[[gnu::noinline, gnu::cold]] Vec<T> gelu_far(Vec<T> x) {
  using V = Vec<T>;
  const V y = min(V::set1(MathConstants<T>::kGeluBound), max(V::set1(3.75f), V::abs(x)));
  const V minus_half = V::set1(-0.5f) * y, hi = minus_half * y, lo = fma(minus_half, y, V::zero() - hi);
  const V mills = piece(kMills, V::shift_right(y, 21), y - V::without_low(y, 21));
  const V tail = exp_by_table<3>(hi, lo) * mills * V::set1(0x1p-64f);
  return V::select_less(x, V::zero(), x * tail, x - y * tail);
}
template <class V>
inline Pair<V> gelu_far(Pair<V> x) {
  return {gelu_far(x.a), gelu_far(x.b)};
}

// x * erfc(-x / sqrt 2) / 2
template <class V>
inline V gelu(V x) {
  using T = typename V::T;
  if constexpr (kPiecewise<V>) {
    // The tail of abs(x) is taken from both 0 and x. A NaN is as good here as far.
    constexpr float kNear = 0x1.efffffp1f;
    const V y = V::abs(x);
    V result = max(V::zero(), x) - y * nearest_piece<4>(kNormalTail, y);
    if (V::any_above(y, kNear)) [[unlikely]]
      result = V::select(V::greater(y, V::set1(kNear)), gelu_far(x), result);
    return result;
  } else {
    return V::set1((T)0.5) * x * double_normal(x);
  }
}

// min(6, max(0, x + 3)) / 6. The quotient that one step of Newton's makes of the product with the rounded reciprocal is
// the correctly rounded one (Markstein).
template <class V>
inline V hardsigmoid(V x) {
  using T = typename V::T;
  const V six = V::set1((T)6), share = min(six, max(V::zero(), x + V::set1((T)3)));
  if constexpr (!kIntrinsics) return share / six;
  const V sixth = V::set1((T)1 / (T)6), q = share * sixth;
  return fma(fma(V::zero() - six, q, share), sixth, q);
}

// The order is that of fastconv::ActivationKind.
template <class V>
inline V activate(int32_t kind, typename V::T a, typename V::T b, V x) {
  using T = typename V::T;
  const V zero = V::zero(), six = V::set1((T)6);
  switch (kind) {
    case 1: return max(zero, x);
    case 2: return min(six, max(zero, x));
    case 3: return V::select_less(x, zero, V::set1(a) * x, x);
    case 4: return x * sigmoid(x);
    case 5: return x * hardsigmoid(x);
    case 6: return sigmoid(x);
    case 7: return hardsigmoid(x);
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
