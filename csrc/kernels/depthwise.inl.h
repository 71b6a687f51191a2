// Depthwise convolution: every channel has a filter of its own, so that lanes are channels (NHWC) or pixels (NCHW).
//
// Nothing is reused between channels, and there is one multiplication for every term of the sum: what counts are loads.
// Both kernels keep a strip of outputs in registers and load each vector of the input once for all taps of a filter row
// (NHWC), or once for all filter rows (NCHW). In both, an output's terms are added up row by row and tap by tap.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/activation.inl.h"
#include "kernels/traits.h"

namespace fastconv::FASTCONV_ISA_NS {

template <class Args>
inline bool clamps(const Args& g) {
  return g.activation == 1 || g.activation == 2 || g.activation == 11;
}

// The functions that are more than a clamp run over the finished rows while they are in the first-level cache.
template <class T, class Args>
inline void activate_rows(const Args& g, T* out, int64_t rows, int64_t pitch, int64_t columns) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  if (g.activation == 0 || clamps(g)) return;
  for (int64_t i = 0; i < rows; ++i, out += pitch)
    for (int64_t j = 0; j < columns; j += W) {
      const int64_t lanes = columns - j < W ? columns - j : W;
      activate(g.activation, g.a, g.b, V::load_n(out + j, lanes)).store_n(out + j, lanes);
    }
}

// --- Channels innermost
//
// A strip of Q output pixels of one row, one vector of channels. Register map for a filter row of S taps, shown for
// AVX2, Q = 7, S = 3, stride 1:
//
//            column 0  1  2  3  4  5  6  7  8    each is loaded once, and multiplied by up to three weights
//   w0 w1 w2        \  |  /                      3 registers, loaded once for each filter row
//   acc     0  1  2  3  4  5  6                  7 registers; one more holds the column: 11 of 16
//
// A row costs Q + S - 1 + S loads for Q * S FMAs: 12 for 21.

// Strips are as wide as the registers allow: 14 + 7 + 1 of 32 with seven taps, 7 + 7 + 1 of 16. Rows of pixels are
// often multiples of seven.
#if defined(__AVX512F__)
inline constexpr int kStrip = 14;
#else
inline constexpr int kStrip = 7;
#endif

// S taps a filter row and their stride ST (0 taps: any number, any stride). `Whole`: all columns and all lanes exist;
// otherwise `live` of the Q pixels and `lanes` lanes do. Pixel i of the strip is pixel i * pixel_step of the row.
template <class T, int S, int ST, int Q, bool Whole>
inline __attribute__((always_inline)) void channels_strip(const DepthwiseChannelsArgs<T>& g, int64_t c, int64_t q0,
                                                          int64_t pixel_step, int64_t live, int64_t lanes) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  auto load = [lanes](const T* from) { return Whole || lanes == W ? V::load(from) : V::load_n(from, lanes); };
  V acc[Q];
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q) acc[q] = V::zero();
  const int64_t first = g.first_column + q0 * g.stride;
  for (int64_t r = 0; r < g.row_count; ++r) {
    const int64_t pitch = g.row_pitch[r];
    const T* const row = g.rows[r] + c;
    const T* weights = g.weights[r] + c;
    if constexpr (S > 0) {
      V w[S];
#pragma GCC unroll 16
      for (int s = 0; s < S; ++s) w[s] = V::load(weights + s * g.weight_pitch);
      // With a dilation the strip's pixels are as far apart as the taps: its columns are neighbours again.
      const int64_t step = g.dilation * pitch;
      const T* from = row + first * pitch;
      [[maybe_unused]] int64_t column = first;
#pragma GCC unroll 64
      for (int j = 0; j < (Q - 1) * ST + S; ++j) {
        V x;
        if constexpr (Whole) {
          x = V::load(from);
        } else {
          x = (uint64_t)column < (uint64_t)g.columns ? load(from) : V::zero();
          column += g.dilation;
        }
        from += step;
#pragma GCC unroll 16
        for (int s = 0; s < S; ++s)
          if (j >= s && (j - s) % ST == 0 && (j - s) / ST < Q) acc[(j - s) / ST] = fma(x, w[s], acc[(j - s) / ST]);
      }
    } else {
      const int64_t step = pixel_step * g.stride;
      for (int64_t s = 0; s < g.taps; ++s, weights += g.weight_pitch) {
        const V w = V::load(weights);
        int64_t column = first + s * g.dilation;
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q, column += step) {
          V x;
          if constexpr (Whole)
            x = V::load(row + column * pitch);
          else
            x = (uint64_t)column < (uint64_t)g.columns ? load(row + column * pitch) : V::zero();
          acc[q] = fma(x, w, acc[q]);
        }
      }
    }
  }
  T* out = g.out + q0 * g.out_pitch + c;
  const int64_t out_step = pixel_step * g.out_pitch;
  if (g.accumulate) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q)
      if (Whole || q < live) acc[q] = load(out + q * out_step) + acc[q];
  }
  if (g.scale) {
    const V scale = load(g.scale + c);
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) acc[q] = acc[q] * scale;
  }
  if (g.shift) {
    const V shift = load(g.shift + c);
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) acc[q] = acc[q] + shift;
  }
  if (g.residual) {
    const T* residual = g.residual + q0 * g.residual_pitch + c;
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q)
      if (Whole || q < live) acc[q] = acc[q] + load(residual + q * pixel_step * g.residual_pitch);
  }
  if (clamps(g)) {
    const V lower = V::set1(g.a), upper = V::set1(g.b);
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) acc[q] = min(upper, max(lower, acc[q]));
  }
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q)
    if (Whole)
      acc[q].store(out + q * out_step);
    else if (q < live)
      lanes == W ? acc[q].store(out + q * out_step) : acc[q].store_n(out + q * out_step, lanes);
}

// All channels of a strip.
template <class T, int S, int ST, int Q>
__attribute__((noinline)) void channels_strips(const DepthwiseChannelsArgs<T>& g, int64_t q0, int64_t pixel_step,
                                               int64_t live, bool inside) {
  constexpr int W = Vec<T>::kLanes;
  int64_t c = 0;
  if (inside && live == Q)
    for (; c + W <= g.channels; c += W) channels_strip<T, S, ST, Q, true>(g, c, q0, pixel_step, live, W);
  for (; c < g.channels; c += W)
    channels_strip<T, S, ST, Q, false>(g, c, q0, pixel_step, live, g.channels - c < W ? g.channels - c : W);
}

// Pixels first, first + step, ... of the row, `count` of them.
template <class T, int S, int ST>
inline void channels_pixels(const DepthwiseChannelsArgs<T>& g, int64_t first, int64_t step, int64_t count) {
  const int64_t reach = (g.taps - 1) * g.dilation;
  for (int64_t i = 0, width; i < count; i += width) {
    const int64_t left = count - i, q0 = first + i * step;
    width = left > 10 ? kStrip : left > 3 ? 7 : 3;
    const int64_t live = left < width ? left : width;
    const int64_t begin = g.first_column + q0 * g.stride;
    const bool inside = begin >= 0 && begin + (width - 1) * step * g.stride + reach < g.columns;
    if (width == kStrip)
      channels_strips<T, S, ST, kStrip>(g, q0, step, live, inside);
    else if (width == 7)
      channels_strips<T, S, ST, 7>(g, q0, step, live, inside);
    else
      channels_strips<T, S, ST, 3>(g, q0, step, live, inside);
  }
}

template <class T>
void depthwise_channels(const DepthwiseChannelsArgs<T>& g) {
  const int64_t d = g.dilation;
  if (g.stride == 1 && (g.taps == 3 || g.taps == 5 || g.taps == 7)) {
    for (int64_t residue = 0; residue < d && residue < g.pixels; ++residue) {
      const int64_t count = (g.pixels - residue + d - 1) / d;
      if (g.taps == 3)
        channels_pixels<T, 3, 1>(g, residue, d, count);
      else if (g.taps == 5)
        channels_pixels<T, 5, 1>(g, residue, d, count);
      else
        channels_pixels<T, 7, 1>(g, residue, d, count);
    }
  } else if (g.stride == 2 && d == 1 && g.taps == 3) {
    channels_pixels<T, 3, 2>(g, 0, 1, g.pixels);
  } else if (g.stride == 2 && d == 1 && g.taps == 5) {
    channels_pixels<T, 5, 2>(g, 0, 1, g.pixels);
  } else {
    channels_pixels<T, 0, 1>(g, 0, 1, g.pixels);
  }
  activate_rows(g, g.out, g.pixels, g.out_pitch, g.channels);
}

// --- Pixels of a row innermost
//
// A block of PR output rows and V vectors of a row's pixels. A vector of the input is loaded once for each tap of a
// filter row, at its own offset, and multiplied by the weights of all R filter rows that meet it. Register map for
// AVX-512, PR = 4, V = 4, R = 3:
//
//   acc 4 x 4 = 16, x 4, a broadcast weight 1: 21 of 32. AVX2: 4 x 2 = 8, x 2, weight 1: 11 of 16.
//   Input row i, tap s: 4 loads of x, up to 3 broadcasts, up to 12 FMAs.
#if defined(__AVX512F__)
inline constexpr int kPlaneVectors = 4;
#else
inline constexpr int kPlaneVectors = 2;
#endif

template <class T, int PR, int V>
inline __attribute__((always_inline)) void finish_block(const DepthwisePlaneArgs<T>& g, int64_t p, int64_t q,
                                                        int64_t tail, Vec<T> (&acc)[PR][V]) {
  using Vt = Vec<T>;
  constexpr int W = Vt::kLanes;
  auto load = [tail](const T* from, int v) {
    return v + 1 < V || tail == W ? Vt::load(from + v * W) : Vt::load_n(from + v * W, tail);
  };
  T* const out = g.out + p * g.out_pitch + q;
  if (g.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[i][v] = load(out + i * g.out_pitch, v) + acc[i][v];
  }
  if (g.has_scale) {
    const Vt scale = Vt::set1(g.scale);
#pragma GCC unroll 16
    for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[i][v] = acc[i][v] * scale;
  }
  if (g.has_shift) {
    const Vt shift = Vt::set1(g.shift);
#pragma GCC unroll 16
    for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[i][v] = acc[i][v] + shift;
  }
  if (g.residual) {
    const T* const residual = g.residual + p * g.residual_pitch + q;
#pragma GCC unroll 16
    for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[i][v] = acc[i][v] + load(residual + i * g.residual_pitch, v);
  }
  if (clamps(g)) {
    const Vt lower = Vt::set1(g.a), upper = Vt::set1(g.b);
#pragma GCC unroll 16
    for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[i][v] = min(upper, max(lower, acc[i][v]));
  }
#pragma GCC unroll 16
  for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      T* to = out + i * g.out_pitch + v * W;
      if (v + 1 < V || tail == W)
        acc[i][v].store(to);
      else
        acc[i][v].store_n(to, tail);
    }
}

// R filter rows one below the other, output rows ST input rows apart (R = 0: any).
template <class T, int R, int ST, int PR, int V>
__attribute__((noinline)) void plane_block(const DepthwisePlaneArgs<T>& g, int64_t p, int64_t q, int64_t tail) {
  using Vt = Vec<T>;
  constexpr int W = Vt::kLanes;
  Vt acc[PR][V];
#pragma GCC unroll 16
  for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[i][v] = Vt::zero();
  const T* const origin = g.slab + p * g.step + q;
  if constexpr (R > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < (PR - 1) * ST + R; ++i) {
      const T* const row = origin + i * g.row_pitch;
      for (int64_t s = 0; s < g.taps; ++s) {
        Vt x[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) x[v] = Vt::load(row + g.column_offset[s] + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
          if (i >= r && (i - r) % ST == 0 && (i - r) / ST < PR) {
            const Vt w = Vt::set1(g.weights[r * g.taps + s]);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) acc[(i - r) / ST][v] = fma(x[v], w, acc[(i - r) / ST][v]);
          }
      }
    }
  } else {
    const T* weight = g.weights;
    for (int64_t r = 0; r < g.filter_rows; ++r)
      for (int64_t s = 0; s < g.taps; ++s) {
        const T* const from = origin + g.row_offset[r] + g.column_offset[s];
        const Vt w = Vt::set1(*weight++);
#pragma GCC unroll 16
        for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
          for (int v = 0; v < V; ++v) acc[i][v] = fma(Vt::load(from + i * g.step + v * W), w, acc[i][v]);
      }
  }
  finish_block<T, PR, V>(g, p, q, tail, acc);
}

template <class T, int R, int ST, int V>
inline void plane_columns(const DepthwisePlaneArgs<T>& g, int64_t q, int64_t tail) {
  int64_t p = 0;
  for (; p + 4 <= g.rows; p += 4) plane_block<T, R, ST, 4, V>(g, p, q, tail);
  for (; p < g.rows; ++p) plane_block<T, R, ST, 1, V>(g, p, q, tail);
}

template <class T, int R, int ST>
inline void plane_rows(const DepthwisePlaneArgs<T>& g) {
  constexpr int W = Vec<T>::kLanes;
  for (int64_t q = 0, vectors; q < g.columns; q += vectors * W) {
    const int64_t left = (g.columns - q + W - 1) / W;
    vectors = left >= kPlaneVectors ? kPlaneVectors : left >= 2 ? 2 : 1;
    const int64_t rest = g.columns - q - (vectors - 1) * W, tail = rest < W ? rest : W;
    if (vectors == kPlaneVectors)
      plane_columns<T, R, ST, kPlaneVectors>(g, q, tail);
    else if (vectors == 2)
      plane_columns<T, R, ST, 2>(g, q, tail);
    else
      plane_columns<T, R, ST, 1>(g, q, tail);
  }
}

template <class T>
void depthwise_plane(const DepthwisePlaneArgs<T>& g) {
  const int64_t rows = g.row_pitch ? g.filter_rows : 0;
  if (rows == 3 && g.stride == 1)
    plane_rows<T, 3, 1>(g);
  else if (rows == 3 && g.stride == 2)
    plane_rows<T, 3, 2>(g);
  else if (rows == 5 && g.stride == 1)
    plane_rows<T, 5, 1>(g);
  else if (rows == 5 && g.stride == 2)
    plane_rows<T, 5, 2>(g);
  else if (rows == 7 && g.stride == 1)
    plane_rows<T, 7, 1>(g);
  else
    plane_rows<T, 0, 1>(g);
  activate_rows(g, g.out, g.rows, g.out_pitch, g.columns);
}

}  // namespace fastconv::FASTCONV_ISA_NS
