// The epilogue's functions on vectors.
//
// exp follows Cody and Waite's reduction with the Taylor polynomial of expm1 on |r| <= ln(2) / 2. erfc is
// t * exp(-z^2 + P(2t - 1)), t = 2 / (2 + z), with P fitted on Chebyshev nodes in 60-digit arithmetic: its error is
// below 1e-7 (float) and 1e-16 (double) relative.
#pragma once
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

template <class T>
struct MathConstants;
template <>
struct MathConstants<float> {
  static constexpr float kLn2Hi = 0x1.62e4p-1f, kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kExpMin = -87.0f, kExpMax = 88.0f;
  static constexpr int kExpTerms = 7;  // 0.3466^7 / 8! is below 2^-25
  static constexpr float kErfc[] = {-0.671794085f,    0.672643155f,     0.0473434175f,    -0.0468936406f, -0.00987453492f,
                                    0.00880882537f,   0.00177066612f,   -0.00228876524f,  -0.000182782142f,
                                    0.000573766372f,  -3.21137723e-5f,  -8.72838102e-5f,  1.33715035e-5f};
};
template <>
struct MathConstants<double> {
  static constexpr double kLn2Hi = 0x1.62e42fee00000p-1, kLn2Lo = 0x1.a39ef35793c76p-33;
  static constexpr double kExpMin = -708.0, kExpMax = 709.0;
  static constexpr int kExpTerms = 14;  // 0.3466^14 / 15! is below 2^-60
  static constexpr double kErfc[] = {
      -0.671794084056692266,   0.672643223977656795,    0.0473433068419044087,   -0.0468956102311847486,
      -0.00987268936638868381, 0.00882493855745383067,  0.00175893355776638208,  -0.00234581250812231329,
      -0.000146246862942106299, 0.000673678879614294265, -0.0000937350346581582289, -0.000174303527802031423,
      0.0000714010321974850216, 0.0000317478594369229559, -0.0000301879480939514845, 1.29151641390877682e-7,
      8.56277909938652423e-6,  -2.92856702416178805e-6, -1.27258052791477185e-6, 1.2186833373805657e-6,
      -1.68172831940441241e-7, -2.13761191741784245e-7, 1.53073183663239289e-7,  -2.68729874998667929e-8,
      -3.9024931626661815e-8,  2.58976359819596293e-8,  4.01387770421450637e-9,  -6.42108712961318332e-9,
      6.71492039360197859e-12, 6.24945728099135126e-10};
};

// expm1(r) and 2^n with x = n ln 2 + r; x is clamped to where 2^n is a normal number, NaN comes through in r.
template <class V>
inline V exp_reduced(V x, V& scale) {
  using T = typename V::T;
  using M = MathConstants<T>;
  x = max(V::set1(M::kExpMin), min(V::set1(M::kExpMax), x));
  // A NaN would make an undefined integer below; it keeps n = 0.
  V n = V::round(x * V::set1((T)1.44269504088896340736));
  n = V::select_less(V::abs(n), V::set1((T)2048), n, V::zero());
  V r = fma(n, V::set1(-M::kLn2Hi), x);
  r = fma(n, V::set1(-M::kLn2Lo), r);
  scale = V::exp2i(n);
  // 1 + r/2 + r^2/6 + ... by Horner: p = 1 + r / j * p
  V p = V::set1((T)1);
  for (int j = M::kExpTerms; j >= 2; --j) p = fma(r * V::set1((T)1 / (T)j), p, V::set1((T)1));
  return r * p;
}

template <class V>
inline V exp(V x) {
  V scale, m = exp_reduced(x, scale);
  return fma(scale, m, scale);
}

template <class V>
inline V sigmoid(V x) {
  using T = typename V::T;
  const V one = V::set1((T)1);
  return one / (one + exp(V::zero() - x));
}

// tanh(x) = m / (m + 2) with m = expm1(2x), which keeps small x exact in relative terms.
template <class V>
inline V tanh(V x) {
  using T = typename V::T;
  const V one = V::set1((T)1), limit = V::set1((T)(sizeof(T) == 4 ? 10 : 20));
  V y = max(V::zero() - limit, min(limit, x));
  V scale, r = exp_reduced(y + y, scale);
  V m = fma(scale, r, scale - one);
  return m / (m + one + one);
}

// 0.5 * x * erfc(-x / sqrt 2)
template <class V>
inline V gelu(V x) {
  using T = typename V::T;
  using M = MathConstants<T>;
  constexpr int kTerms = sizeof(M::kErfc) / sizeof(T);
  const V one = V::set1((T)1), two = one + one;
  V z = V::abs(x) * V::set1((T)0.70710678118654752440);
  V t = two / (two + z), u = t + t - one;
  V p = V::set1(M::kErfc[kTerms - 1]);
  for (int j = kTerms - 2; j >= 0; --j) p = fma(p, u, V::set1(M::kErfc[j]));
  V tail = t * exp(fma(V::zero() - z, z, p));
  V phi = V::select_less(x, V::zero(), tail, two - tail);
  // Beyond the clamp of exp the tail counts as zero, so that -inf gives -0 and not NaN.
  const V far = V::set1((T)(sizeof(T) == 4 ? -13 : -38));
  return V::select_less(x, far, V::zero(), V::set1((T)0.5) * x * phi);
}

// The order is that of fastconv::ActivationKind.
template <class V>
inline V activate(int32_t kind, typename V::T a, typename V::T b, V x) {
  using T = typename V::T;
  const V zero = V::zero(), one = V::set1((T)1), six = V::set1((T)6), three = V::set1((T)3);
  switch (kind) {
    case 1: return max(zero, x);
    case 2: return min(six, max(zero, x));
    case 3: return V::select_less(x, zero, V::set1(a) * x, x);
    case 4: return x * sigmoid(x);
    case 5: return x * min(six, max(zero, x + three)) / six;
    case 6: return sigmoid(x);
    case 7: return min(six, max(zero, x + three)) / six;
    case 8: return tanh(x);
    case 9: return gelu(x);
    case 10: {
      V inner = V::set1((T)0.79788456080286535588) * fma(V::set1((T)0.044715) * x * x, x, x);
      return V::set1((T)0.5) * x * (one + tanh(inner));
    }
    case 11: return min(V::set1(b), max(V::set1(a), x));
    default: return x;
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
