// Winograd's minimal filtering, F(2x2, 3x3) and F(4x4, 3x3): what goes before and after the product of points.
//
// A patch d of n x n pixels, a filter g of 3 x 3 and the m x m outputs y of a tile (n = m + 2):
//
//   y = A^T [ (G g G^T) . (B^T d B) ] A        . is element by element, and summed over the channels
//
// which are Toom and Cook's products of polynomials at the points 0, +-1 and infinity (m = 2), or 0, +-1/sqrt(2),
// +-sqrt(2) and infinity (m = 4). These four are reciprocal in pairs, so that no power of a point is large or small:
// the errors are about half of those of 0, +-1, +-2 (docs/numerics.md). With a = 1/sqrt(2), b = sqrt(2):
//
//   B^T = [ 1   0  -5/2   0   1  0 ]   G = [   1     0     0  ]   A^T = [ 1  1   1   1   1  0 ]
//         [ 0 -2a   -2    a   1  0 ]       [ -2/3 -2a/3 -1/3 ]         [ 0  a  -a   b  -b  0 ]
//         [ 0  2a   -2   -a   1  0 ]       [ -2/3  2a/3 -1/3 ]         [ 0 1/2 1/2  2   2  0 ]
//         [ 0 -b/2 -1/2   b   1  0 ]       [  1/6  b/6   1/3 ]         [ 0 a/2 -a/2 2b -2b 1 ]
//         [ 0  b/2 -1/2  -b   1  0 ]       [  1/6 -b/6   1/3 ]
//         [ 0   1    0 -5/2   0  1 ]       [   0    0     1  ]
//
// Lanes are channels throughout. A transform goes down the columns and then along the rows, for half of the rows of the
// result at a time, so that what is in between stays in registers: rows of +- points share an even and an odd part, and
// no half needs the other's. 12 additions and FMAs make 6 elements of a patch, 13 make 4 outputs. Register map,
// AVX-512, m = 4: half a patch 3 x 6 = 18, a column 6, parts 2, constants 4: 30 of 32; half a tile 2 x 6 = 12, a column
// 6, parts 2, constants 4: 24. AVX2 keeps what is in between on the stack.
//
// The gradient of the filter is the transposed product: tiles of dy become points by A, their products with the points
// of the patches are summed over the tiles, and the sums become taps by G^T:
//
//   dg = G^T [ sum over tiles of (A dy A^T) . (B^T d B) ] G
//
// Half a tile's points 3 x 4 = 12, a column 4, parts 2, constants 4: 22; the sums of a filter 3 x 6 = 18, a column 6,
// parts 2, constants 4: 30.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/activation.inl.h"
#include "kernels/traits.h"

namespace fastconv::FASTCONV_ISA_NS {

template <class T>
inline constexpr T kRootHalf = (T)0.70710678118654752440;
template <class T>
inline constexpr T kRootTwo = (T)1.41421356237309504880;

// The one-dimensional transforms of m outputs. points() and output() make half of their results, those that share sums:
// half 0 or 1 of n / 2 points of a patch of n elements, or of a tile of m, and of m / 2 outputs in the order of
// kOutput.
template <class T, int M>
struct Winograd;

template <class T>
struct Winograd<T, 2> {
  using V = Vec<T>;
  static constexpr int kOutput[2][1] = {{0}, {1}};
  template <int H>
  static inline __attribute__((always_inline)) void points(const V (&d)[4], V (&t)[2]) {
    t[0] = H == 0 ? d[0] - d[2] : d[2] - d[1];
    t[1] = H == 0 ? d[1] + d[2] : d[1] - d[3];
  }
  static inline __attribute__((always_inline)) void filter(const V (&g)[3], V (&u)[4]) {
    const V half = V::set1((T)0.5), sum = (g[0] + g[2]) * half, odd = g[1] * half;
    u[0] = g[0];
    u[1] = sum + odd;
    u[2] = sum - odd;
    u[3] = g[2];
  }
  template <int H>
  static inline __attribute__((always_inline)) void output(const V (&s)[4], V (&y)[1]) {
    y[0] = H == 0 ? s[0] + s[1] + s[2] : s[1] - s[2] - s[3];
  }
  template <int H>
  static inline __attribute__((always_inline)) void points(const V (&y)[2], V (&e)[2]) {
    e[0] = H == 0 ? y[0] : y[0] - y[1];
    e[1] = H == 0 ? y[0] + y[1] : V::zero() - y[1];
  }
  static inline __attribute__((always_inline)) void taps(const V (&s)[4], V (&g)[3]) {
    const V half = V::set1((T)0.5), sum = (s[1] + s[2]) * half;
    g[0] = s[0] + sum;
    g[1] = (s[1] - s[2]) * half;
    g[2] = s[3] + sum;
  }
};

template <class T>
struct Winograd<T, 4> {
  using V = Vec<T>;
  static constexpr int kOutput[2][2] = {{0, 2}, {1, 3}};
  template <int H>
  static inline __attribute__((always_inline)) void points(const V (&d)[6], V (&t)[3]) {
    const V mid = V::set1((T)2.5);
    if constexpr (H == 0) {
      const V a = V::set1(kRootHalf<T>), two = V::set1(2);
      const V even = fnma(two, d[2], d[4]), odd = fnma(two, d[1], d[3]);
      t[0] = fnma(mid, d[2], d[0] + d[4]);
      t[1] = fma(a, odd, even);
      t[2] = fnma(a, odd, even);
    } else {
      const V b = V::set1(kRootTwo<T>), half = V::set1((T)0.5);
      const V even = fnma(half, d[2], d[4]), odd = fnma(half, d[1], d[3]);
      t[0] = fma(b, odd, even);
      t[1] = fnma(b, odd, even);
      t[2] = fnma(mid, d[3], d[1] + d[5]);
    }
  }
  static inline __attribute__((always_inline)) void filter(const V (&g)[3], V (&u)[6]) {
    const V third = V::set1((T)(1.0 / 3)), two = V::set1(2);
    const V even_a = fma(two, g[0], g[2]) * third, odd_a = g[1] * V::set1((T)(2.0 / 3) * kRootHalf<T>);
    u[0] = g[0];
    u[1] = V::zero() - even_a - odd_a;
    u[2] = odd_a - even_a;
    const V even_b = fma(two, g[2], g[0]) * V::set1((T)(1.0 / 6)), odd_b = g[1] * V::set1((T)(1.0 / 6) * kRootTwo<T>);
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
  }
  template <int H>
  static inline __attribute__((always_inline)) void output(const V (&s)[6], V (&y)[2]) {
    const V two = V::set1(2), half = V::set1((T)0.5);
    if constexpr (H == 0) {
      const V a = s[1] + s[2], b = s[3] + s[4];
      y[0] = s[0] + a + b;
      y[1] = fma(two, b, half * a);
    } else {
      const V a = V::set1(kRootHalf<T>) * (s[1] - s[2]), b = V::set1(kRootTwo<T>) * (s[3] - s[4]);
      y[0] = a + b;
      y[1] = fma(two, b, fma(half, a, s[5]));
    }
  }
  template <int H>
  static inline __attribute__((always_inline)) void points(const V (&y)[4], V (&e)[3]) {
    const V ratio = V::set1(H == 0 ? (T)0.5 : (T)2), point = V::set1(H == 0 ? kRootHalf<T> : kRootTwo<T>);
    const V even = fma(ratio, y[2], y[0]), odd = fma(ratio, y[3], y[1]);
    e[0] = H == 0 ? y[0] : fma(point, odd, even);
    e[1] = H == 0 ? fma(point, odd, even) : fnma(point, odd, even);
    e[2] = H == 0 ? fnma(point, odd, even) : y[3];
  }
  static inline __attribute__((always_inline)) void taps(const V (&s)[6], V (&g)[3]) {
    const V third = V::set1((T)(1.0 / 3)), a = s[1] + s[2], b = s[3] + s[4];
    g[0] = fma(V::set1((T)(1.0 / 6)), b, fnma(V::set1((T)(2.0 / 3)), a, s[0]));
    g[1] = fma(V::set1((T)(1.0 / 6) * kRootTwo<T>), s[3] - s[4], V::set1((T)(2.0 / 3) * kRootHalf<T>) * (s[2] - s[1]));
    g[2] = fma(third, b - a, s[5]);
  }
};

// Rows H * n / 2 and so on of the points of a patch of S = n pixels along an axis, or of a tile of S = m; lanes of its
// channels from c on.
template <class T, int M, int S, int H, bool Full>
inline __attribute__((always_inline)) void winograd_half_points(const T* const* patch, int64_t c, int64_t lanes, T* to,
                                                                int64_t point_pitch) {
  using V = Vec<T>;
  constexpr int N = M + 2;
  V half[N / 2][S];
#pragma GCC unroll 16
  for (int j = 0; j < S; ++j) {
    V d[S], column[N / 2];
#pragma GCC unroll 16
    for (int i = 0; i < S; ++i) d[i] = Full ? V::load(patch[i * S + j] + c) : V::load_n(patch[i * S + j] + c, lanes);
    Winograd<T, M>::template points<H>(d, column);
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) half[i][j] = column[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < N / 2; ++i) {
    V row[N / 2];
    T* const from = to + (H * N / 2 + i) * N * point_pitch;
    Winograd<T, M>::template points<0>(half[i], row);
#pragma GCC unroll 16
    for (int j = 0; j < N / 2; ++j) row[j].store(from + j * point_pitch);
    Winograd<T, M>::template points<1>(half[i], row);
#pragma GCC unroll 16
    for (int j = 0; j < N / 2; ++j) row[j].store(from + (N / 2 + j) * point_pitch);
  }
}

template <class T, int M, int S>
inline void winograd_points(const WinogradInputArgs<T>& g) {
  constexpr int W = Vec<T>::kLanes;
  for (int64_t t = 0; t < g.tiles; ++t) {
    const T* const* patch = g.patch + t * S * S;
    T* const to = g.points + t * g.tile_pitch;
    int64_t c = 0;
    for (; c + W <= g.channels; c += W) {
      winograd_half_points<T, M, S, 0, true>(patch, c, W, to + c, g.point_pitch);
      winograd_half_points<T, M, S, 1, true>(patch, c, W, to + c, g.point_pitch);
    }
    if (c < g.channels) {
      winograd_half_points<T, M, S, 0, false>(patch, c, g.channels - c, to + c, g.point_pitch);
      winograd_half_points<T, M, S, 1, false>(patch, c, g.channels - c, to + c, g.point_pitch);
    }
  }
}

template <class T>
void winograd_input(const WinogradInputArgs<T>& g) {
  g.outputs == 2 ? winograd_points<T, 2, 4>(g) : winograd_points<T, 4, 6>(g);
}

template <class T>
void winograd_spread(const WinogradInputArgs<T>& g) {
  g.outputs == 2 ? winograd_points<T, 2, 2>(g) : winograd_points<T, 4, 4>(g);
}

template <class T, int M>
inline void winograd_filter_points(const WinogradFilterArgs<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::kLanes, N = M + 2;
  for (int64_t c = 0; c < g.channels; ++c)
    for (int64_t k = 0; k < g.columns; k += W) {
      V half[N][3];
#pragma GCC unroll 16
      for (int s = 0; s < 3; ++s) {
        V f[3], column[N];
#pragma GCC unroll 16
        for (int r = 0; r < 3; ++r) f[r] = V::load(g.panel + ((3 * r + s) * g.channels + c) * g.columns + k);
        Winograd<T, M>::filter(f, column);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) half[i][s] = column[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        V row[N];
        Winograd<T, M>::filter(half[i], row);
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) row[j].store(g.points + (i * N + j) * g.point_pitch + c * g.columns + k);
      }
    }
}

template <class T>
void winograd_filter(const WinogradFilterArgs<T>& g) {
  g.outputs == 2 ? winograd_filter_points<T, 2>(g) : winograd_filter_points<T, 4>(g);
}

// Half of a tile's rows; `finite` gains zeros, or NaN.
template <class T, int M, int H>
inline __attribute__((always_inline)) void winograd_half_tile(const T* from, int64_t point_pitch, Vec<T> (&y)[M][M],
                                                              Vec<T>& finite) {
  using V = Vec<T>;
  constexpr int N = M + 2;
  V half[M / 2][N];
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) {
    V s[N], column[M / 2];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) s[i] = V::load(from + (i * N + j) * point_pitch);
    Winograd<T, M>::template output<H>(s, column);
#pragma GCC unroll 16
    for (int i = 0; i < M / 2; ++i) half[i][j] = column[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < M / 2; ++i) {
    V(&row)[M] = y[Winograd<T, M>::kOutput[H][i]];
    V part[M / 2];
    Winograd<T, M>::template output<0>(half[i], part);
#pragma GCC unroll 16
    for (int j = 0; j < M / 2; ++j) row[Winograd<T, M>::kOutput[0][j]] = part[j];
    Winograd<T, M>::template output<1>(half[i], part);
#pragma GCC unroll 16
    for (int j = 0; j < M / 2; ++j) row[Winograd<T, M>::kOutput[1][j]] = part[j];
#pragma GCC unroll 16
    for (int j = 0; j < M; ++j) finite = fma(row[j], V::zero(), finite);
  }
}

template <class T, int M>
inline void winograd_output_tiles(const WinogradOutputArgs<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const bool clamp = g.activation == 1 || g.activation == 2 || g.activation == 11;
  const V lower = V::set1(g.a), upper = V::set1(g.b);
  for (int64_t t = 0; t < g.tiles; ++t) {
    const int64_t rows = g.rows[t], columns = g.columns[t];
    uint64_t bad = 0;
    for (int64_t c = 0; c < g.channels; c += W) {
      const int64_t lanes = g.channels - c < W ? g.channels - c : W;
      const T* const from = g.points + t * g.tile_pitch + c;
      V y[M][M], finite = V::zero();
      winograd_half_tile<T, M, 0>(from, g.point_pitch, y, finite);
      winograd_half_tile<T, M, 1>(from, g.point_pitch, y, finite);
      if (!(finite.sum() == 0)) {
        bad |= (uint64_t)1 << c / W;
        if (!g.accumulate)
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j)
              V::zero().store_n(g.out[t] + i * g.row_pitch + j * g.column_pitch + c, lanes);
        continue;
      }
      const V scale = g.scale ? V::load_n(g.scale + c, lanes) : V::zero();
      const V shift = g.shift ? V::load_n(g.shift + c, lanes) : V::zero();
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        if (i >= rows) break;
#pragma GCC unroll 16
        for (int j = 0; j < M; ++j) {
          if (j >= columns) break;
          T* const to = g.out[t] + i * g.row_pitch + j * g.column_pitch + c;
          V v = y[i][j];
          if (g.accumulate) v = V::load_n(to, lanes) + v;
          if (g.scale) v = v * scale;
          if (g.shift) v = v + shift;
          if (g.residual)
            v = v + V::load_n(g.residual[t] + i * g.residual_row_pitch + j * g.residual_column_pitch + c, lanes);
          if (clamp) v = min(upper, max(lower, v));
          if (lanes == W)
            v.store(to);
          else
            v.store_n(to, lanes);
        }
      }
    }
    g.bad[t] = bad;
    if (g.activation == 0 || clamp) continue;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t c = 0; c < g.channels; c += W) {
          if (bad >> c / W & 1) continue;
          const int64_t lanes = g.channels - c < W ? g.channels - c : W;
          T* const to = g.out[t] + i * g.row_pitch + j * g.column_pitch + c;
          activate(g.activation, g.a, g.b, V::load_n(to, lanes)).store_n(to, lanes);
        }
  }
}

template <class T>
void winograd_output(const WinogradOutputArgs<T>& g) {
  g.outputs == 2 ? winograd_output_tiles<T, 2>(g) : winograd_output_tiles<T, 4>(g);
}

template <class T, int M>
inline void winograd_taps_of(const WinogradTapsArgs<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::kLanes, N = M + 2;
  for (int64_t k = 0; k < g.rows; ++k) {
    V finite = V::zero();
    for (int64_t c = 0; c < g.channels; c += W) {
      T* const at = g.points + k * g.row_pitch + c;
      V half[3][N];
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        V s[N], column[3];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) s[i] = V::load(at + (i * N + j) * g.point_pitch);
        Winograd<T, M>::taps(s, column);
#pragma GCC unroll 16
        for (int r = 0; r < 3; ++r) half[r][j] = column[r];
      }
#pragma GCC unroll 16
      for (int r = 0; r < 3; ++r) {
        V row[3];
        Winograd<T, M>::taps(half[r], row);
#pragma GCC unroll 16
        for (int s = 0; s < 3; ++s) {
          finite = fma(row[s], V::zero(), finite);
          row[s].store(at + (3 * r + s) * g.point_pitch);
        }
      }
    }
    g.bad[k] = !(finite.sum() == 0);
  }
}

template <class T>
void winograd_taps(const WinogradTapsArgs<T>& g) {
  g.outputs == 2 ? winograd_taps_of<T, 2>(g) : winograd_taps_of<T, 4>(g);
}

}  // namespace fastconv::FASTCONV_ISA_NS
