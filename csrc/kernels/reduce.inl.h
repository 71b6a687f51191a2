// Sums for the bias gradient, the register-only FMA loop and the copies that the benchmark takes as its ceilings.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/activation.inl.h"
#include "kernels/folded.inl.h"

namespace fastconv::FASTCONV_ISA_NS {

// The sum of n elements `step` apart. Four chains of vectors, joined in a fixed order.
template <class T>
T sum_run(const T* x, int64_t n, int64_t step) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  T total = 0;
  int64_t i = 0;
  if (step == 1) {
    V s[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    for (; i + 4 * W <= n; i += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) s[j] = s[j] + V::load(x + i + j * W);
    for (; i + W <= n; i += W) s[0] = s[0] + V::load(x + i);
    T lane[W];
    ((s[0] + s[1]) + (s[2] + s[3])).store(lane);
    for (int l = 0; l < W; ++l) total += lane[l];
  }
  for (; i < n; ++i) total += x[i * step];
  return total;
}

// sum[c] = the sum over `rows` rows, `pitch` elements apart, of their c-th element.
template <class T>
void sum_columns(T* sum, const T* x, int64_t rows, int64_t pitch, int64_t columns) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t c = 0; c < columns; c += W) {
    const int64_t lanes = columns - c < W ? columns - c : W;
    V s = V::zero();
    for (int64_t r = 0; r < rows; ++r)
      s = s + (lanes == W ? V::load(x + r * pitch + c) : V::load_n(x + r * pitch + c, lanes));
    s.store_n(sum + c, lanes);
  }
}

// sum[r] = the sum of n neighbours from x + r * pitch on. Sums over the lanes would be most of a short row's work: they
// are taken of W rows together, the last ones with themselves again, so that a sum's bits do not depend on its place.
template <class T>
void sum_rows(T* sum, const T* x, int64_t rows, int64_t pitch, int64_t n) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t tail = n % W, whole = n - tail;
  for (int64_t r = 0; r < rows; r += W) {
    const int64_t live = rows - r < W ? rows - r : W;
    T of[W * W];
    for (int k = 0; k < W; ++k) {
      const T* row = x + (r + (k < live ? k : live - 1)) * pitch;
      V s[2] = {tail ? V::load_n(row + whole, tail) : V::zero(), V::zero()};
      int64_t i = 0;
      for (; i + 2 * W <= whole; i += 2 * W) {
        s[0] = s[0] + V::load(row + i);
        s[1] = s[1] + V::load(row + i + W);
      }
      if (i < whole) s[0] = s[0] + V::load(row + i);
      (s[0] + s[1]).store(of + k * W);
    }
    folded<V, W, 1>(of).store_n(sum + r, live);
  }
}

// y[r * pitch + i] = value[r] for i < n.
template <class T>
void fill_rows(T* y, const T* value, int64_t rows, int64_t pitch, int64_t n) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t tail = n % W;
  for (int64_t r = 0; r < rows; ++r, y += pitch) {
    const V v = V::set1(value[r]);
    int64_t i = 0;
    for (; i + W <= n; i += W) v.store(y + i);
    if (tail) v.store_n(y + i, tail);
  }
}

template <class T>
double fma_loop(int64_t rounds) {
  using V = Vec<T>;
  V acc[12];
  // Values that neither overflow nor become denormal, and that the compiler cannot know.
  volatile T seed = (T)0.5;
  const V x = V::set1(seed), y = V::set1(seed);
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) acc[i] = V::set1(seed + (T)i);
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = fma(acc[i], x, y);
  V sum = acc[0];
#pragma GCC unroll 11
  for (int i = 1; i < 12; ++i) sum = sum + acc[i];
  T lane[V::kLanes];
  sum.store(lane);
  volatile T sink = lane[0];
  (void)sink;
  return 2.0 * 12 * V::kLanes * (double)rounds;
}

template <class T>
void copy_run(T* dst, const T* src, int64_t n, int32_t streaming) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  int64_t i = 0;
  if (streaming) {
    for (; i < n && ((uintptr_t)(dst + i) & (sizeof(V) - 1)) != 0; ++i) dst[i] = src[i];
    for (; i + 4 * W <= n; i += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) V::load(src + i + j * W).stream(dst + i + j * W);
#if defined(__AVX2__)
    _mm_sfence();
#endif
  } else {
    for (; i + 4 * W <= n; i += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) V::load(src + i + j * W).store(dst + i + j * W);
  }
  for (; i < n; ++i) dst[i] = src[i];
}

template <class T>
void activate_run(T* x, int64_t n, int32_t kind, T a, T b) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t i = 0; i < n; i += W) {
    const int64_t lanes = n - i < W ? n - i : W;
    activate(kind, a, b, V::load_n(x + i, lanes)).store_n(x + i, lanes);
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
