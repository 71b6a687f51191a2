// The activations of fastconv/conv.h and their derivatives.
//
// A kernel holds several elements in registers and applies one activation to all of them: the switch stands outside the
// loop over elements, is uniform in the grid and costs one comparison or two a thread.
#pragma once
#include "cuda/types.cuh"

namespace fastconv::cuda {

// An activation as a kernel takes it.
template <class A>
struct Act {
  ActivationKind kind;
  A a, b;
};

template <class T>
Act<Acc<T>> act_of(const Activation& act) {
  return {act.kind, static_cast<Acc<T>>(act.a), static_cast<Acc<T>>(act.b)};
}

// A NaN goes through every clamp.
template <class A>
__device__ __forceinline__ A clamp(A x, A low, A high) {
  return x < low ? low : x > high ? high : x;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }
__device__ __forceinline__ float erf_complement(float x) { return erfcf(x); }
__device__ __forceinline__ double erf_complement(double x) { return erfc(x); }

template <class A>
__device__ __forceinline__ A sigmoid(A x) {
  return reciprocal(A(1) + exponential(-x));
}

// Twice the argument of gelu_tanh's tanh: 0.5 * (1 + tanh(u)) is sigmoid(2 u).
template <class A>
__device__ __forceinline__ A gelu_argument(A x) {
  return A(1.5957691216057308) * (x + A(0.044715) * x * x * x);
}

template <ActivationKind kKind, class A>
__device__ __forceinline__ A act_value(A x, A a, A b) {
  using K = ActivationKind;
  if constexpr (kKind == K::relu) return x < A(0) ? A(0) : x;
  if constexpr (kKind == K::relu6) return clamp(x, A(0), A(6));
  if constexpr (kKind == K::leaky_relu) return x < A(0) ? a * x : x;
  // Where exp(-x) overflows the quotient is 0 and so is the product, but for x = -inf, as in the formula.
  if constexpr (kKind == K::silu) return x * sigmoid(x);
  if constexpr (kKind == K::hardswish) return x * clamp(x * A(1.0 / 6) + A(0.5), A(0), A(1));
  if constexpr (kKind == K::sigmoid) return sigmoid(x);
  if constexpr (kKind == K::hardsigmoid) return clamp(x * A(1.0 / 6) + A(0.5), A(0), A(1));
  if constexpr (kKind == K::tanh) return hyperbolic_tangent(x);
  if constexpr (kKind == K::gelu) return A(0.5) * x * erf_complement(x * A(-0.70710678118654752));
  if constexpr (kKind == K::gelu_tanh) return x * sigmoid(gelu_argument(x));
  if constexpr (kKind == K::clip) return clamp(x, a, b);
  return x;
}

// dy times the derivative at x; sigmoid and tanh are given their result.
template <ActivationKind kKind, class A>
__device__ __forceinline__ A act_gradient(A dy, A x, A a, A b) {
  using K = ActivationKind;
  if constexpr (kKind == K::relu) return x <= A(0) ? A(0) : dy;
  if constexpr (kKind == K::relu6) return x <= A(0) || x >= A(6) ? A(0) : dy;
  if constexpr (kKind == K::leaky_relu) return x <= A(0) ? a * dy : dy;
  if constexpr (kKind == K::silu) {
    const A s = sigmoid(x);
    return dy * (s * (A(1) + x * (A(1) - s)));
  }
  if constexpr (kKind == K::hardswish) return dy * (x <= A(-3) ? A(0) : x >= A(3) ? A(1) : x * A(1.0 / 3) + A(0.5));
  if constexpr (kKind == K::sigmoid) return dy * x * (A(1) - x);
  if constexpr (kKind == K::hardsigmoid) return x <= A(-3) || x >= A(3) ? A(0) : dy * A(1.0 / 6);
  if constexpr (kKind == K::tanh) return dy * (A(1) - x * x);
  if constexpr (kKind == K::gelu)
    return dy * (A(0.5) * erf_complement(x * A(-0.70710678118654752)) +
                 x * exponential(A(-0.5) * x * x) * A(0.39894228040143268));
  if constexpr (kKind == K::gelu_tanh) {
    const A s = sigmoid(gelu_argument(x));
    return dy * (s + x * s * (A(1) - s) * A(1.5957691216057308) * (A(1) + A(0.134145) * x * x));
  }
  if constexpr (kKind == K::clip) return x < a || x > b ? A(0) : dy;
  return dy;
}

// Calls f with the kind as a constant.
template <class F>
__device__ __forceinline__ void for_activation(ActivationKind kind, F f) {
  using K = ActivationKind;
  switch (kind) {
#define FASTCONV_ACTIVATION(k) \
  case K::k: f(std::integral_constant<K, K::k>{}); break;
    FASTCONV_ACTIVATION(none)
    FASTCONV_ACTIVATION(relu)
    FASTCONV_ACTIVATION(relu6)
    FASTCONV_ACTIVATION(leaky_relu)
    FASTCONV_ACTIVATION(silu)
    FASTCONV_ACTIVATION(hardswish)
    FASTCONV_ACTIVATION(sigmoid)
    FASTCONV_ACTIVATION(hardsigmoid)
    FASTCONV_ACTIVATION(tanh)
    FASTCONV_ACTIVATION(gelu)
    FASTCONV_ACTIVATION(gelu_tanh)
    FASTCONV_ACTIVATION(clip)
#undef FASTCONV_ACTIVATION
  }
}

// v = act(v) for kCount elements in registers.
template <int kCount, class A>
__device__ __forceinline__ void activate(const Act<A>& act, A (&v)[kCount]) {
  if (act.kind == ActivationKind::none) return;
  for_activation(act.kind, [&](auto kind) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = act_value<decltype(kind)::value>(v[i], act.a, act.b);
  });
}

// g = g * act'(v)
template <int kCount, class A>
__device__ __forceinline__ void activate_gradient(const Act<A>& act, A (&g)[kCount], const A (&v)[kCount]) {
  for_activation(act.kind, [&](auto kind) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) g[i] = act_gradient<decltype(kind)::value>(g[i], v[i], act.a, act.b);
  });
}

}  // namespace fastconv::cuda
