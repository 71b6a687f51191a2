// The gradient of the input of a depthwise layer whose filter moves two columns at a time: all four phases in one
// sweep, so that dy is read once and whole lines of dx are written. SpreadArgs in kernel_args.h says what is computed.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

// Column w of dx lies at u = w + pad = 2 j + b: taps b, b + 2, ... meet columns j, j - 1, ... of dy, D of them at most.
template <int S>
inline constexpr int kMeeting = (S + 1) / 2;

// The sum of an output of parity B, in the order of dy: `at(r, i)` is column j - i of row r.
template <class V, int S, int RB, int B, class At>
inline __attribute__((always_inline)) V spread_sum(const V (&w)[RB][S], At at) {
  constexpr int last = (S - 1 - B) / 2;
  V sum = V::zero();  // as the strips of phases begin: a zero has the same sign
#pragma GCC unroll 3
  for (int r = 0; r < RB; ++r)
#pragma GCC unroll 3
    for (int i = last; i >= 0; --i) sum = fma(w[r][B + 2 * i], at(r, i), sum);
  return sum;
}

// A row of dx, the channels neighbours. Registers, AVX-512, of 32: RB * S weights, RB * D columns of dy, two sums: 3 of
// 5 x 5 taps take 15 + 9 + 2. With 16, two rows of 3 take 6 + 4 + 2; more are read from memory.
template <class T, int S, int RB>
__attribute__((noinline)) void spread_pixels_row(const SpreadArgs<T> g, const SpreadRow row, T* dx) {
  using V = Vec<T>;
  constexpr int W = V::kLanes, D = kMeeting<S>;
  const int64_t first = g.pad / 2, last = (g.pad + g.columns - 1) / 2;
  for (int64_t c = 0; c < g.channels; c += W) {
    const int64_t lanes = g.channels - c < W ? g.channels - c : W;
    auto load = [lanes](const T* from) { return lanes == W ? V::load(from) : V::load_n(from, lanes); };
    V w[RB][S], d[RB][D];
    const T* from[RB];
#pragma GCC unroll 3
    for (int r = 0; r < RB; ++r) {
      from[r] = g.dy + row.dy[r] + c;
#pragma GCC unroll 5
      for (int s = 0; s < S; ++s) w[r][s] = load(g.weights + row.filter[r] * g.weight_row + s * g.weight_tap + c);
#pragma GCC unroll 3
      for (int i = 1; i < D; ++i) {
        const int64_t q = first - i;
        d[r][i - 1] = q >= 0 && q < g.dy_columns ? load(from[r] + q * g.dy_pitch) : V::zero();
      }
      from[r] += first * g.dy_pitch;
    }
    T* to = dx + c + (2 * first - g.pad) * g.dx_pitch;
    auto put = [&](V v, int64_t u) __attribute__((always_inline)) {
      if (u >= g.pad && u - g.pad < g.columns) lanes == W ? v.store(to) : v.store_n(to, lanes);
      to += g.dx_pitch;
    };
    for (int64_t j = first; j <= last; ++j) {
#pragma GCC unroll 3
      for (int r = 0; r < RB; ++r) {
#pragma GCC unroll 3
        for (int i = D - 1; i > 0; --i) d[r][i] = d[r][i - 1];
        d[r][0] = j < g.dy_columns ? load(from[r]) : V::zero();
        from[r] += g.dy_pitch;
      }
      auto at = [&](int r, int i) __attribute__((always_inline)) { return d[r][i]; };
      put(spread_sum<V, S, RB, 0>(w, at), 2 * j);
      put(spread_sum<V, S, RB, 1>(w, at), 2 * j + 1);
    }
  }
}

// Two vectors of a row of dx, its columns neighbours: lanes are columns of dy, and outputs that lie between each other
// leave zipped. The first of a pair has the parity of pad, B; where that is odd, the second one's j is one more. Column
// `at` - k of dy has the lanes live[k]; those that do not exist are zeros.
template <class T, int S, int RB, int B>
inline __attribute__((always_inline)) void spread_pair(const SpreadRow& row, const T* dy, int64_t at,
                                                       const typename Vec<T>::Range (&live)[kMeeting<S>],
                                                       const T* weights, int64_t weight_row, int64_t weight_tap, T* to,
                                                       int64_t left) {
  using V = Vec<T>;
  constexpr int W = V::kLanes, D = kMeeting<S>;
  V w[RB][S], d[RB][D];
#pragma GCC unroll 3
  for (int r = 0; r < RB; ++r) {
    const T *from = dy + row.dy[r] + at, *taps = weights + row.filter[r] * weight_row;
#pragma GCC unroll 3
    for (int k = 0; k < D; ++k) d[r][k] = V::load_range(from - k, live[k]);
#pragma GCC unroll 5
    for (int s = 0; s < S; ++s) w[r][s] = V::set1(taps[s * weight_tap]);
  }
  const V one = spread_sum<V, S, RB, B>(w, [&](int r, int i) __attribute__((always_inline)) { return d[r][i + B]; });
  const V two = spread_sum<V, S, RB, 1 - B>(w, [&](int r, int i) __attribute__((always_inline)) { return d[r][i]; });
  const V low = V::zip_low(one, two), high = V::zip_high(one, two);
  if (left >= 2 * W) {
    low.store(to), high.store(to + W);
  } else {
    low.store_n(to, left < W ? left : W);
    if (left > W) high.store_n(to + W, left - W);
  }
}

// Strips of columns go down the rows.
template <class T, int S, int B>
__attribute__((noinline)) void spread_plane(const SpreadArgs<T> g, const T* dy, const T* weights, T* dx) {
  using V = Vec<T>;
  constexpr int W = V::kLanes, D = kMeeting<S>;
  for (int64_t t = 0; 2 * t < g.columns; t += W) {
    const int64_t at = g.pad / 2 + B + t, left = g.columns - 2 * t;
    typename V::Range live[D];
    for (int k = 0; k < D; ++k) {
      const int64_t begin = at - k, end = g.dy_columns - begin, lo = begin >= 0 ? 0 : -begin < W ? -begin : W;
      live[k] = V::range(lo, end < lo ? lo : end < W ? end : W);
    }
    T* to = dx + 2 * t;
    const SpreadRow* row = g.row;
    for (int64_t i = 0; i < g.rows; ++i, ++row, to += g.dx_row) {
      switch (row->count) {
        case 0: {
          for (int64_t k = 0; k < left && k < 2 * W; k += W) V::zero().store_n(to + k, left - k < W ? left - k : W);
          break;
        }
        case 1: spread_pair<T, S, 1, B>(*row, dy, at, live, weights, g.weight_row, g.weight_tap, to, left); break;
        case 2: spread_pair<T, S, 2, B>(*row, dy, at, live, weights, g.weight_row, g.weight_tap, to, left); break;
        case 3: spread_pair<T, S, 3, B>(*row, dy, at, live, weights, g.weight_row, g.weight_tap, to, left); break;
      }
    }
  }
}

template <class T, int S>
inline void spread_taps(const SpreadArgs<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t c = 0; g.planar && c < g.channels; ++c) {
    const T *dy = g.dy + c * g.dy_channel, *weights = g.weights + c * g.weight_channel;
    T* dx = g.dx + c * g.dx_channel;
    g.pad % 2 ? spread_plane<T, S, 1>(g, dy, weights, dx) : spread_plane<T, S, 0>(g, dy, weights, dx);
  }
  for (int64_t i = 0; !g.planar && i < g.rows; ++i) {
    T* dx = g.dx + i * g.dx_row;
    switch (g.row[i].count) {
      case 0:
        for (int64_t w = 0; w < g.columns; ++w)
          for (int64_t c = 0; c < g.channels; c += W)
            V::zero().store_n(dx + w * g.dx_pitch + c, g.channels - c < W ? g.channels - c : W);
        break;
      case 1: spread_pixels_row<T, S, 1>(g, g.row[i], dx); break;
      case 2: spread_pixels_row<T, S, 2>(g, g.row[i], dx); break;
      case 3: spread_pixels_row<T, S, 3>(g, g.row[i], dx); break;
    }
  }
}

template <class T>
void depthwise_spread(const SpreadArgs<T>& g) {
  g.taps == 3 ? spread_taps<T, 3>(g) : spread_taps<T, 5>(g);
}

}  // namespace fastconv::FASTCONV_ISA_NS
