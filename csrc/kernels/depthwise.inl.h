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

// Kernels for single sizes of filter; the portable ones do without them.
#if defined(__AVX2__)
inline constexpr int kOwnSizes = 1;
#else
inline constexpr int kOwnSizes = 0;
#endif

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
inline constexpr int kStrip = 7;
#else
inline constexpr int kStrip = 7;
#endif

namespace {
alignas(64) const char kNothing[64] = {};  // what a column outside the image holds
}  // namespace

// The epilogue of a strip: pixel i is at out + i * step. Inside: all Q pixels exist, otherwise `live` of them do. Full:
// all lanes exist, otherwise `lanes` of them.
template <class T, int Q, bool Inside, bool Full>
inline __attribute__((always_inline)) void finish_strip(const DepthwiseChannelsArgs<T>& g, Vec<T> (&acc)[Q], T* out,
                                                        int64_t step, const T* residual, int64_t residual_step,
                                                        int64_t c, int64_t live, int64_t lanes) {
  using V = Vec<T>;
  auto load = [lanes](const T* from) { return Full ? V::load(from) : V::load_n(from, lanes); };
  if (g.accumulate) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q)
      if (Inside || q < live) acc[q] = load(out + q * step) + acc[q];
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
  if (residual) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q)
      if (Inside || q < live) acc[q] = acc[q] + load(residual + q * residual_step);
  }
  if (clamps(g)) {
    const V lower = V::set1(g.a), upper = V::set1(g.b);
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) acc[q] = min(upper, max(lower, acc[q]));
  }
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q)
    if (Inside || q < live) {
      if constexpr (Full)
        acc[q].store(out + q * step);
      else
        acc[q].store_n(out + q * step, lanes);
    }
}

// S taps a filter row and their stride ST (0 taps: any number, any stride). Inside: all columns and pixels exist,
// otherwise columns are looked at one by one. Pixel i of the strip is pixel i * pixel_step of row p.
template <class T, int S, int ST, int Q, bool Inside, bool Full>
inline __attribute__((always_inline)) void channels_strip(const DepthwiseChannelsArgs<T>& g, int64_t p, int64_t c,
                                                          int64_t q0, int64_t pixel_step, int64_t live, int64_t lanes) {
  using V = Vec<T>;
  auto load = [lanes](const T* from) { return Full ? V::load(from) : V::load_n(from, lanes); };
  // A select instead of a branch: three instructions beside the column's FMAs.
  auto column_of = [&g](const T* from, int64_t column) {
    return Inside || (uint64_t)column < (uint64_t)g.columns ? from : (const T*)kNothing;
  };
  T* const out = g.out + p * g.out_row_pitch + q0 * g.out_pitch + c;
  V acc[Q];
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q) acc[q] = V::zero();
  if (g.resume) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q)
      if (Inside || q < live) acc[q] = load(out + q * pixel_step * g.out_pitch);
  }
  const int64_t first = g.first_column + q0 * g.stride;
  // Filters that reach over the whole row from each pixel of the strip: columns are gone through, not taps, half of
  // which would meet the padding (27 x 27 on 14 x 14, 512 channels, Zen 4 in lock step: 1.6 to 1.8 times as fast).
  const bool whole_rows = S == 0 && g.skip_zeros && g.stride == 1 && g.dilation == 1 && pixel_step == 1 &&
                          first + Q - 1 <= 0 && g.columns - first <= g.taps;
  const T* const* rows = g.rows + p * g.row_stride;
  const int64_t* pitches = g.row_pitch + p * g.row_stride;
  for (int64_t r = 0; r < g.filter_rows; ++r, rows += g.row_dilation, pitches += g.row_dilation) {
    const int64_t pitch = *pitches;
    if (pitch == 0 && g.skip_zeros) continue;
    const T* const row = *rows + c;
    const T* weights = g.weights[r] + c;
    if constexpr (S > 0) {
      V w[S];
#pragma GCC unroll 16
      for (int s = 0; s < S; ++s) w[s] = V::load(weights + s * g.weight_pitch);
      // With a dilation the strip's pixels are as far apart as the taps: its columns are neighbours again.
      const int64_t step = g.dilation * pitch;
      const T* from = row + first * pitch;
      int64_t column = first;
#pragma GCC unroll 64
      for (int j = 0; j < (Q - 1) * ST + S; ++j) {
        const V x = load(column_of(from, column));
        column += g.dilation;
        from += step;
#pragma GCC unroll 16
        for (int s = 0; s < S; ++s)
          if (j >= s && (j - s) % ST == 0 && (j - s) / ST < Q) acc[(j - s) / ST] = fma(x, w[s], acc[(j - s) / ST]);
      }
    } else if (whole_rows) {
      const T* tap = weights - first * g.weight_pitch;  // of the first column and pixel
      const T* from = row;
      for (int64_t j = 0; j < g.columns; ++j, from += pitch, tap += g.weight_pitch) {
        const V x = load(from);
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q) acc[q] = fma(x, V::load(tap - q * g.weight_pitch), acc[q]);
      }
    } else {
      const int64_t step = pixel_step * g.stride;
      for (int64_t s = 0; s < g.taps; ++s, weights += g.weight_pitch) {
        const V w = V::load(weights);
        int64_t column = first + s * g.dilation;
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q, column += step) {
          const V x = load(column_of(row + column * pitch, column));
          acc[q] = fma(x, w, acc[q]);
        }
      }
    }
  }
  const T* residual = g.residual ? g.residual + p * g.residual_row_pitch + q0 * g.residual_pitch + c : nullptr;
  finish_strip<T, Q, Inside, Full>(g, acc, out, pixel_step * g.out_pitch, residual, pixel_step * g.residual_pitch, c,
                                   live, lanes);
}

// All channels of a strip.
template <class T, int S, int ST, int Q>
__attribute__((noinline)) void channels_strips(const DepthwiseChannelsArgs<T>& g, int64_t p, int64_t q0,
                                               int64_t pixel_step, int64_t live, bool inside) {
  constexpr int W = Vec<T>::kLanes;
  int64_t c = 0;
  if (inside && live == Q)
    for (; c + W <= g.channels; c += W) channels_strip<T, S, ST, Q, true, true>(g, p, c, q0, pixel_step, live, W);
  else
    for (; c + W <= g.channels; c += W) channels_strip<T, S, ST, Q, false, true>(g, p, c, q0, pixel_step, live, W);
  if (c < g.channels) channels_strip<T, S, ST, Q, false, false>(g, p, c, q0, pixel_step, live, g.channels - c);
}

// Pixels first, first + step, ... of a row, `count` of them.
template <class T, int S, int ST>
inline void channels_pixels(const DepthwiseChannelsArgs<T>& g, int64_t p, int64_t first, int64_t step, int64_t count) {
  const int64_t reach = (g.taps - 1) * g.dilation;
  for (int64_t i = 0, width; i < count; i += width) {
    const int64_t left = count - i, q0 = first + i * step;
    width = left > 10 ? kStrip : left > 3 ? 7 : 3;
    const int64_t live = left < width ? left : width;
    const int64_t begin = g.first_column + q0 * g.stride;
    const bool inside = begin >= 0 && begin + (width - 1) * step * g.stride + reach < g.columns;
    if (width == kStrip)
      channels_strips<T, S, ST, kStrip>(g, p, q0, step, live, inside);
    else if (width == 7)
      channels_strips<T, S, ST, 7>(g, p, q0, step, live, inside);
    else
      channels_strips<T, S, ST, 3>(g, p, q0, step, live, inside);
  }
}

// Filters of 3x3 with stride 1 or 2 go down the rows of a strip with the sums of all output rows that an input row
// belongs to: each vector of the input is loaded once altogether, where a strip of one row loads it three times.
//
// Register map, AVX-512, stride 1: three output rows of Q = 6 are under way (18), an input row's Q + 2 columns (8), a
// weight (1): 27 of 32. An input row costs 8 + 9 loads for 54 FMAs. Stride 2: two output rows of 7 (14), 15 columns, a
// weight: 30. On AVX2, with 3 pixels of 16 registers, it ran 0.9 times as fast as strips of one row.
#if defined(__AVX512F__)
inline constexpr int kWindow[3] = {0, 6, 7};
// Fewer output rows are done a row at a time: the window's first and last two rows do less for the same loads.
// Interleaved on Zen 4, the time of strips over that of the window: 1.13 to 1.23 at 28 rows and more, 0.94 to 1.23 at
// 14, 0.68 at 7 (960 and 1152 channels; 1.33 at 1024, whose pixels lie 4 KB apart); with stride 2 0.94 to 1.15 at 14
// and more, 0.62 and 1.07 at 7. At 8, the height of what a separable layer's pointwise half asks for, 1.1 to 1.3 times
// on images of 56 x 56 and more, and 0.94 to 1 on smaller ones.
inline constexpr int64_t kStripRows = 7;

// Input row i of a strip. Phase: i modulo the output rows under way (stride 1) or half of it (stride 2, even rows).
template <class T, int ST, int Q, bool Inside, bool Full, int Phase, bool Odd>
inline __attribute__((always_inline)) void window_row(const DepthwiseChannelsArgs<T>& g, int64_t i, int64_t c,
                                                      int64_t q0, int64_t live, int64_t lanes,
                                                      Vec<T> (&acc)[4 - ST][Q]) {
  using V = Vec<T>;
  constexpr int N = (Q - 1) * ST + 3, U = 4 - ST;
  const int64_t pitch = g.row_pitch[i], first = g.first_column + q0 * ST;
  const T* from = g.rows[i] + c + first * pitch;
  V x[N];
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j, from += pitch) {
    const T* at = Inside || (uint64_t)(first + j) < (uint64_t)g.columns ? from : (const T*)kNothing;
    x[j] = Full ? V::load(at) : V::load_n(at, lanes);
    // What the next strip reads here: its lines lie a pixel apart, and its rows in other pages.
    if (j >= N - Q * ST) __builtin_prefetch(from + Q * ST * pitch, 0, 2);
  }
  auto add = [&](int r, V(&sum)[Q]) __attribute__((always_inline)) {
    const T* weights = g.weights[r] + c;
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
      const V w = V::load(weights + s * g.weight_pitch);
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q) sum[q] = fma(x[q * ST + s], w, sum[q]);
    }
  };
  auto begin = [&](int64_t p, V(&sum)[Q]) __attribute__((always_inline)) {
    const T* out = g.out + p * g.out_row_pitch + q0 * g.out_pitch + c;
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q, out += g.out_pitch) {
      const bool resumes = g.resume && (Inside || q < live);
      sum[q] = !resumes ? V::zero() : Full ? V::load(out) : V::load_n(out, lanes);
    }
  };
  auto end = [&](int64_t p, V(&sum)[Q]) __attribute__((always_inline)) {
    T* out = g.out + p * g.out_row_pitch + q0 * g.out_pitch + c;
    const T* residual = g.residual ? g.residual + p * g.residual_row_pitch + q0 * g.residual_pitch + c : nullptr;
    finish_strip<T, Q, Inside, Full>(g, sum, out, g.out_pitch, residual, g.residual_pitch, c, live, lanes);
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) __builtin_prefetch(out + (Q + q) * g.out_pitch, 1, 2);
  };
  if constexpr (ST == 1) {
    if (i >= 2) {
      add(2, acc[(Phase + 1) % U]);
      end(i - 2, acc[(Phase + 1) % U]);
    }
    if (i >= 1 && i <= g.out_rows) add(1, acc[(Phase + 2) % U]);
    if (i < g.out_rows) {
      begin(i, acc[Phase]);
      add(0, acc[Phase]);
    }
  } else if constexpr (Odd) {
    add(1, acc[Phase]);
  } else {
    if (i >= 2) {
      add(2, acc[(Phase + 1) % U]);
      end(i / 2 - 1, acc[(Phase + 1) % U]);
    }
    if (i / 2 < g.out_rows) {
      begin(i / 2, acc[Phase]);
      add(0, acc[Phase]);
    }
  }
}

template <class T, int ST, int Q, bool Inside, bool Full>
inline __attribute__((always_inline)) void window_strip(const DepthwiseChannelsArgs<T>& g, int64_t c, int64_t q0,
                                                        int64_t live, int64_t lanes) {
  const int64_t rows = (g.out_rows - 1) * ST + 3;
  Vec<T> acc[4 - ST][Q];
#pragma GCC unroll 3
  for (int u = 0; u < 4 - ST; ++u)
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) acc[u][q] = Vec<T>::zero();
  for (int64_t i = 0;;) {
    window_row<T, ST, Q, Inside, Full, 0, false>(g, i, c, q0, live, lanes, acc);
    if (++i == rows) return;
    if constexpr (ST == 2) window_row<T, ST, Q, Inside, Full, 0, true>(g, i++, c, q0, live, lanes, acc);
    window_row<T, ST, Q, Inside, Full, 1, false>(g, i, c, q0, live, lanes, acc);
    if (++i == rows) return;
    if constexpr (ST == 2) {
      window_row<T, ST, Q, Inside, Full, 1, true>(g, i++, c, q0, live, lanes, acc);
    } else {
      window_row<T, ST, Q, Inside, Full, 2, false>(g, i, c, q0, live, lanes, acc);
      if (++i == rows) return;
    }
  }
}

template <class T, int ST>
__attribute__((noinline)) void window(const DepthwiseChannelsArgs<T>& g) {
  constexpr int W = Vec<T>::kLanes, Q = kWindow[ST];
  for (int64_t q0 = 0; q0 < g.pixels; q0 += Q) {
    const int64_t live = g.pixels - q0 < Q ? g.pixels - q0 : Q, begin = g.first_column + q0 * ST;
    const bool inside = live == Q && begin >= 0 && begin + (Q - 1) * ST + 2 < g.columns;
    int64_t c = 0;
    if (inside)
      for (; c + W <= g.channels; c += W) window_strip<T, ST, Q, true, true>(g, c, q0, live, W);
    else
      for (; c + W <= g.channels; c += W) window_strip<T, ST, Q, false, true>(g, c, q0, live, W);
    if (c < g.channels) window_strip<T, ST, Q, false, false>(g, c, q0, live, g.channels - c);
  }
}

#endif

template <class T>
void depthwise_channels(const DepthwiseChannelsArgs<T>& g) {
  const int64_t d = g.dilation;
  [[maybe_unused]] const bool square =
      g.taps == 3 && g.filter_rows == 3 && d == 1 && g.row_dilation == 1 && g.row_stride == g.stride;
#if defined(__AVX512F__)
  if (square && g.stride == 1 && g.out_rows > kStripRows) {
    window<T, 1>(g);
  } else if (square && g.stride == 2 && g.out_rows > kStripRows) {
    window<T, 2>(g);
  } else
#endif
    for (int64_t p = 0; p < g.out_rows; ++p) {
      if (kOwnSizes && g.stride == 1 && (g.taps == 3 || g.taps == 5 || g.taps == 7)) {
        for (int64_t residue = 0; residue < d && residue < g.pixels; ++residue) {
          const int64_t count = (g.pixels - residue + d - 1) / d;
          if (g.taps == 3)
            channels_pixels<T, 3 * kOwnSizes, 1>(g, p, residue, d, count);
          else if (g.taps == 5)
            channels_pixels<T, 5 * kOwnSizes, 1>(g, p, residue, d, count);
          else
            channels_pixels<T, 7 * kOwnSizes, 1>(g, p, residue, d, count);
        }
      } else if (kOwnSizes && g.stride == 2 && d == 1 && g.taps == 3) {
        channels_pixels<T, 3 * kOwnSizes, 1 + kOwnSizes>(g, p, 0, 1, g.pixels);
      } else if (kOwnSizes && g.stride == 2 && d == 1 && g.taps == 5) {
        channels_pixels<T, 5 * kOwnSizes, 1 + kOwnSizes>(g, p, 0, 1, g.pixels);
      } else {
        channels_pixels<T, 0, 1>(g, p, 0, 1, g.pixels);
      }
    }
  for (int64_t p = 0; p < g.out_rows; ++p)
    activate_rows(g, g.out + p * g.out_row_pitch, g.pixels, g.out_pitch, g.channels);
}

// --- Pixels of a row innermost
//
// A block of V vectors of a row's pixels goes down the rows of the input, with the sums of the U output rows that an
// input row belongs to. What a tap of the filter row meets is loaded once, at its own offset, and multiplied by the
// weights of all filter rows that meet it; then every sum becomes that of the next filter row, in name alone. Register
// map, AVX-512, S x S taps, stride 1 (U = S):
//
//            S   sums U x V   x   weights
//   3 x 3        3 x 4 = 12   4   9, kept           25 of 32
//   5 x 5        5 x 4 = 20   4   1, broadcast      25
//   7 x 7        7 x 3 = 21   3   1                 25
//
// AVX2: 3 x 3, 5 x 2 and 7 x 1 sums, 13, 13 and 9 of 16. An input row of 3 x 3 and V = 4 costs 12 loads for 36 FMAs.
//
// With stride 2 a tap's pixels are every other column: two vectors are loaded and the even ones kept; the odd ones are
// the next tap's. Rows come in pairs; U = (S + 1) / 2.

template <class T, int V>
inline __attribute__((always_inline)) void store_block(T* out, int64_t tail, const Vec<T> (&y)[V]) {
  constexpr int W = Vec<T>::kLanes;
#pragma GCC unroll 16
  for (int v = 0; v + 1 < V; ++v) y[v].store(out + v * W);
  if (tail == W)
    y[V - 1].store(out + (V - 1) * W);
  else
    y[V - 1].store_n(out + (V - 1) * W, tail);
}

// The epilogue of V vectors of row p.
template <class T, int V>
inline __attribute__((always_inline)) void finish_block(const DepthwisePlanesArgs<T>& g, int64_t c, int64_t p,
                                                        int64_t q, int64_t tail, const Vec<T> (&sum)[V]) {
  using Vt = Vec<T>;
  constexpr int W = Vt::kLanes;
  auto load = [tail](const T* from, int v) __attribute__((always_inline)) {
    return v + 1 < V || tail == W ? Vt::load(from + v * W) : Vt::load_n(from + v * W, tail);
  };
  T* const out = g.out + c * g.out_channel_pitch + p * g.out_row_pitch + q;
  Vt y[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) y[v] = sum[v];
  if (g.accumulate) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] = load(out, v) + y[v];
  }
  if (g.scale) {
    const Vt scale = Vt::set1(g.scale[c]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] = y[v] * scale;
  }
  if (g.shift) {
    const Vt shift = Vt::set1(g.shift[c]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] = y[v] + shift;
  }
  if (g.residual) {
    const T* const residual = g.residual + c * g.residual_channel_pitch + p * g.residual_row_pitch + q;
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] = y[v] + load(residual, v);
  }
  if (clamps(g)) {
    const Vt lower = Vt::set1(g.a), upper = Vt::set1(g.b);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] = min(upper, max(lower, y[v]));
  }
  store_block<T, V>(out, tail, y);
}

// The vectors of an input row that a block of V vectors of output loads: one for each tap, or with stride 2 two for
// each pair of taps.
template <int S, int ST>
inline constexpr int kRowLoads = ST == 1 ? S : S + 1;

#if defined(__AVX512F__)
inline constexpr int kRegisters = 32, kDown[8] = {0, 0, 0, 4, 0, 4, 0, 3};
#else
inline constexpr int kRegisters = 16, kDown[8] = {0, 0, 0, 3, 0, 2, 0, 1};
#endif

// S x S taps, stride ST both ways. Inside: all columns that the block reads exist; otherwise masks has those that do,
// of each vector of a row.
template <class T, int S, int ST, int V, bool Inside>
inline __attribute__((always_inline)) void planes_down(const DepthwisePlanesArgs<T>& g, int64_t c, int64_t q,
                                                       int64_t tail,
                                                       const typename Vec<T>::Range (&masks)[kRowLoads<S, ST>][V]) {
  using Vt = Vec<T>;
  constexpr int W = Vt::kLanes, U = (S + ST - 1) / ST;
  constexpr bool kKept = S * S + U * V + V + 2 * (ST - 1) <= kRegisters - 2;
  const T* const weights = g.weights + c * (S * S);
  Vt kept[kKept ? S * S : 1];
  if constexpr (kKept) {
#pragma GCC unroll 16
    for (int i = 0; i < S * S; ++i) kept[i] = Vt::set1(weights[i]);
  }
  auto weight = [&](int i)
                    __attribute__((always_inline)) { return kKept ? kept[kKept ? i : 0] : Vt::set1(weights[i]); };
  Vt acc[U][V];
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[u][v] = Vt::zero();
  const int64_t first = g.first_column + q * ST, offset = g.offset + c * g.channel_pitch + first;
  const bool plain = !g.accumulate && !g.scale && !g.shift && !g.residual && !clamps(g);
  T* out = g.out + c * g.out_channel_pitch + q;
  const T* ahead = out;  // where the sums that are about to begin go
  auto begin = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v)
      acc[0][v] = v + 1 < V || tail == W ? Vt::load(ahead + v * W) : Vt::load_n(ahead + v * W, tail);
    ahead += g.out_row_pitch;
  };
  if (g.resume) begin();
  // Phase k of ST input rows is the filter's row k of the first sum, ST + k of the second and so on.
  auto add_row = [&]<int k>(const T* row) __attribute__((always_inline)) {
    // A row of zeros counts where a weight is not finite.
    if (row == g.zero_row && g.skip_zeros) return;
    row += row == g.zero_row ? first : offset;
    auto raw = [&](int at, int load, int v) __attribute__((always_inline)) {
      return Inside ? Vt::load(row + at) : Vt::load_range(row + at, masks[load][v]);
    };
    auto add = [&](int s, const Vt(&x)[V]) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int u = 0; u < U; ++u)
        if (u * ST + k < S) {
          const Vt w = weight((u * ST + k) * S + s);
#pragma GCC unroll 16
          for (int v = 0; v < V; ++v) acc[u][v] = fma(x[v], w, acc[u][v]);
        }
    };
    Vt x[V];
    if constexpr (ST == 1) {
#pragma GCC unroll 16
      for (int s = 0; s < S; ++s) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) x[v] = raw(s + v * W, s, v);
        add(s, x);
      }
    } else {
#pragma GCC unroll 16
      for (int s = 0; s < S; s += 2) {
        Vt next[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
          const Vt lo = raw(s + 2 * v * W, s, v), hi = raw(s + (2 * v + 1) * W, s + 1, v);
          x[v] = Vt::even(lo, hi);
          if (s + 1 < S) next[v] = Vt::odd(lo, hi);
        }
        add(s, x);
        if (s + 1 < S) add(s + 1, next);
      }
    }
  };
  for (int64_t j = 0;; ++j) {
    add_row.template operator()<0>(g.rows[j * ST]);
    if (j >= U - 1) {
      if (plain)
        store_block<T, V>(out, tail, acc[U - 1]);
      else
        finish_block<T, V>(g, c, j - (U - 1), q, tail, acc[U - 1]);
      if (j == g.out_rows + U - 2) return;
      out += g.out_row_pitch;
    }
    if constexpr (ST == 2) add_row.template operator()<1>(g.rows[j * ST + 1]);
#pragma GCC unroll 16
    for (int u = U - 1; u > 0; --u)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[u][v] = acc[u - 1][v];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[0][v] = Vt::zero();
    if (g.resume && j + 1 < g.out_rows) begin();
  }
}

// All channels of a block of columns.
template <class T, int S, int ST, int V, bool Inside>
__attribute__((noinline)) void planes_columns(const DepthwisePlanesArgs<T>& g, int64_t q, int64_t tail) {
  using Vt = Vec<T>;
  constexpr int64_t W = Vt::kLanes;
  typename Vt::Range masks[kRowLoads<S, ST>][V];
  if constexpr (!Inside) {
    for (int k = 0; k < kRowLoads<S, ST>; ++k)
      for (int v = 0; v < V; ++v) {
        // The vector's place in the row: tap k, or the second half of the pair before.
        const int64_t at = ST == 1 ? k + v * W : k / 2 * 2 + (2 * v + k % 2) * W;
        const int64_t begin = g.first_column + q * ST + at;
        const int64_t lo = begin >= 0 ? 0 : -begin < W ? -begin : W, left = g.columns - begin;
        const int64_t hi = left < lo ? lo : left < W ? left : W;
        masks[k][v] = Vt::range(lo, hi);
      }
  }
  for (int64_t c = 0; c < g.channels; ++c) planes_down<T, S, ST, V, Inside>(g, c, q, tail, masks);
}

template <class T, int S, int ST, int V>
inline void planes_block(const DepthwisePlanesArgs<T>& g, int64_t q, int64_t vectors) {
  constexpr int64_t W = Vec<T>::kLanes;
  if constexpr (V > 1)
    if (vectors < V) return planes_block<T, S, ST, V - 1>(g, q, vectors);
  const int64_t rest = g.pixels - q - (V - 1) * W, first = g.first_column + q * ST;
  const bool inside = first >= 0 && first + V * W * ST + S - 1 <= g.columns;
  inside ? planes_columns<T, S, ST, V, true>(g, q, rest < W ? rest : W)
         : planes_columns<T, S, ST, V, false>(g, q, rest < W ? rest : W);
}

template <class T, int S, int ST>
inline void planes(const DepthwisePlanesArgs<T>& all) {
  constexpr int64_t W = Vec<T>::kLanes;
  const int64_t vectors = (all.pixels + W - 1) / W, blocks = (vectors + kDown[S] - 1) / kDown[S];
  if (all.out_rows == 0) return;
  DepthwisePlanesArgs<T> g = all;
  // Rows of one block go through all channels with one set of masks; longer ones channel by channel, or the image would
  // be read in columns.
  if (blocks > 1) g.channels = 1;
  for (int64_t i = 0; i < all.channels; i += g.channels) {
    for (int64_t b = 0, done = 0; b < blocks; ++b) {
      const int64_t end = (b + 1) * vectors / blocks;
      planes_block<T, S, ST, kDown[S]>(g, done * W, end - done);
      done = end;
    }
    for (int64_t c = 0; c < g.channels; ++c)
      activate_rows(g, g.out + c * g.out_channel_pitch, g.out_rows, g.out_row_pitch, g.pixels);
    g.offset += g.channel_pitch;
    g.weights += S * S;
    g.out += g.out_channel_pitch;
    if (g.residual) g.residual += g.residual_channel_pitch;
    if (g.scale) ++g.scale;
    if (g.shift) ++g.shift;
  }
}

// Any filter, out of a slab: a load for every FMA. Eight sums are under way, of eight rows or of eight vectors of one
// row (a 1-D filter of 1025 taps over 65536 samples, Zen 4: 8.4 ms with one sum, 2.1 with eight).
template <class T, int PR, int V>
inline __attribute__((always_inline)) void slab_block(const DepthwisePlanesArgs<T>& g, int64_t c, int64_t p,
                                                      int64_t q) {
  using Vt = Vec<T>;
  constexpr int W = Vt::kLanes;
  const int64_t offset = g.offset + c * g.channel_pitch + q;
  Vt acc[PR][V];
#pragma GCC unroll 16
  for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[i][v] = Vt::zero();
  const T* weight = g.weights + c * g.filter_rows * g.taps;
  for (int64_t r = 0; r < g.filter_rows; ++r) {
    const T* row[PR];
#pragma GCC unroll 16
    for (int i = 0; i < PR; ++i) row[i] = g.rows[(p + i) * g.row_stride + g.row_offset[r]] + offset;
    for (int64_t s = 0; s < g.taps; ++s) {
      const Vt w = Vt::set1(*weight++);
#pragma GCC unroll 16
      for (int i = 0; i < PR; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[i][v] = fma(Vt::load(row[i] + g.column_offset[s] + v * W), w, acc[i][v]);
    }
  }
  const int64_t rest = g.pixels - q - (V - 1) * W;
#pragma GCC unroll 16
  for (int i = 0; i < PR; ++i) finish_block<T, V>(g, c, p + i, q, rest < W ? rest : W, acc[i]);
}

template <class T>
inline void slab_rows(const DepthwisePlanesArgs<T>& g, int64_t c) {
  constexpr int W = Vec<T>::kLanes;
  int64_t p = 0;
  for (; p + 8 <= g.out_rows; p += 8)
    for (int64_t q = 0; q < g.pixels; q += W) slab_block<T, 8, 1>(g, c, p, q);
  for (; p < g.out_rows; ++p) {
    int64_t q = 0;
    for (; q + 8 * W <= g.pixels; q += 8 * W) slab_block<T, 1, 8>(g, c, p, q);
    for (; q < g.pixels; q += W) slab_block<T, 1, 1>(g, c, p, q);
  }
}

template <class T>
void depthwise_planes(const DepthwisePlanesArgs<T>& g) {
  if (g.column_offset) {
    for (int64_t c = 0; c < g.channels; ++c) {
      slab_rows(g, c);
      activate_rows(g, g.out + c * g.out_channel_pitch, g.out_rows, g.out_row_pitch, g.pixels);
    }
  } else if constexpr (kOwnSizes) {
    if (g.taps == 3)
      g.stride == 1 ? planes<T, 3, 1>(g) : planes<T, 3, 2>(g);
    else if (g.taps == 5)
      g.stride == 1 ? planes<T, 5, 1>(g) : planes<T, 5, 2>(g);
    else
      planes<T, 7, 1>(g);
  }
}

// --- The gradient of the filters
//
// A block of RB filter rows and S taps is kept in registers, a sum for each, while all pixels pass. With stride 1 a run
// of B pixels of dy stays beside them, and each column of the input is loaded once for all taps of a filter row.
// Register map, AVX-512, 3 x 3: 9 sums, B = 8 pixels of dy, a column: 18 of 32; 3 x 5: 24; 3 x 7: 30. AVX2, B = 4: 3 x
// 3 14 of 16, 2 x 5 15, 1 x 7 12. Otherwise the input is an operand in memory.

#if defined(__AVX512F__)
inline constexpr int kFilterRows[8] = {0, 0, 0, 3, 0, 3, 0, 3}, kRun = 8;
#else
inline constexpr int kFilterRows[8] = {0, 0, 0, 3, 0, 2, 0, 1}, kRun = 4;
#endif

// Pixels [q0, q1) of all rows, with filter rows [r0, r0 + RB) and taps [s0, s0 + S).
template <class T, int RB, int S, bool Inside, bool Full>
inline __attribute__((always_inline)) void filter_block(const FilterChannelsArgs<T>& g, int64_t c, int64_t r0,
                                                        int64_t s0, int64_t q0, int64_t q1, int64_t lanes,
                                                        Vec<T> (&acc)[RB][S]) {
  using V = Vec<T>;
  auto load = [lanes](const T* from) { return Full ? V::load(from) : V::load_n(from, lanes); };
  for (int64_t p = 0; p < g.out_rows; ++p) {
    const T* dy = g.dy + p * g.dy_row_pitch + q0 * g.dy_pitch + c;
    const T* from[RB];
    int64_t pitch[RB];
    const int64_t first = g.first_column + q0 * g.stride + s0 * g.dilation;
#pragma GCC unroll 16
    for (int r = 0; r < RB; ++r) {
      const int64_t line = p * g.row_stride + (r0 + r) * g.row_dilation;
      pitch[r] = g.row_pitch[line];
      from[r] = g.rows[line] + c + first * pitch[r];
    }
    int64_t column = first, q = q0;
    if constexpr (Inside && S > 1) {
      for (; g.stride == 1 && g.dilation == 1 && q + kRun <= q1; q += kRun) {
        V d[kRun];
#pragma GCC unroll 16
        for (int i = 0; i < kRun; ++i, dy += g.dy_pitch) d[i] = load(dy);
#pragma GCC unroll 16
        for (int j = 0; j < kRun + S - 1; ++j) {
#pragma GCC unroll 16
          for (int r = 0; r < RB; ++r) {
            V x = load(from[r]);
            x.pin();
            from[r] += pitch[r];
            asm("" : "+r"(from[r]));  // or the compiler keeps every multiple of the pitches, on the stack
#pragma GCC unroll 16
            for (int s = 0; s < S; ++s)
              if (j >= s && j - s < kRun) acc[r][s] = fma(x, d[j - s], acc[r][s]);
          }
        }
        // The next run's first columns are this one's last.
#pragma GCC unroll 16
        for (int r = 0; r < RB; ++r) from[r] -= (S - 1) * pitch[r];
      }
    }
    for (; q < q1; ++q, dy += g.dy_pitch, column += g.stride) {
      const V d = load(dy);
#pragma GCC unroll 16
      for (int r = 0; r < RB; ++r) {
        const T* at = from[r];
        const int64_t step = g.dilation * pitch[r];
#pragma GCC unroll 16
        for (int s = 0; s < S; ++s, at += step) {
          const bool exists = Inside || (uint64_t)(column + s * g.dilation) < (uint64_t)g.columns;
          acc[r][s] = fma(load(exists ? at : (const T*)kNothing), d, acc[r][s]);
        }
        from[r] += g.stride * pitch[r];
      }
    }
  }
}

template <class T, int RB, int S>
__attribute__((noinline)) void filter_rows(const FilterChannelsArgs<T>& g, int64_t r0, int64_t s0) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  // The pixels that have all columns of these taps.
  const int64_t low = g.first_column + s0 * g.dilation, high = low + (S - 1) * g.dilation;
  int64_t left = low >= 0 ? 0 : (-low + g.stride - 1) / g.stride;
  if (left > g.pixels) left = g.pixels;
  int64_t right = high >= g.columns ? 0 : (g.columns - 1 - high) / g.stride + 1;
  if (right > g.pixels) right = g.pixels;
  if (right < left) right = left;
  for (int64_t c = 0; c < g.channels; c += W) {
    const int64_t lanes = g.channels - c < W ? g.channels - c : W;
    V acc[RB][S];
#pragma GCC unroll 16
    for (int r = 0; r < RB; ++r)
#pragma GCC unroll 16
      for (int s = 0; s < S; ++s) acc[r][s] = V::zero();
    if (lanes == W) {
      if (left > 0) filter_block<T, RB, S, false, true>(g, c, r0, s0, 0, left, lanes, acc);
      filter_block<T, RB, S, true, true>(g, c, r0, s0, left, right, lanes, acc);
      if (right < g.pixels) filter_block<T, RB, S, false, true>(g, c, r0, s0, right, g.pixels, lanes, acc);
    } else {
      // In the same order, so that a channel's bits do not depend on its place.
      filter_block<T, RB, S, false, false>(g, c, r0, s0, 0, left, lanes, acc);
      filter_block<T, RB, S, false, false>(g, c, r0, s0, left, right, lanes, acc);
      filter_block<T, RB, S, false, false>(g, c, r0, s0, right, g.pixels, lanes, acc);
    }
#pragma GCC unroll 16
    for (int r = 0; r < RB; ++r)
#pragma GCC unroll 16
      for (int s = 0; s < S; ++s) {
        T* to = g.sum + ((r0 + r) * g.taps + s0 + s) * g.sum_pitch + c;
        if (g.accumulate) acc[r][s] = V::load_n(to, lanes) + acc[r][s];
        acc[r][s].store_n(to, lanes);
      }
  }
}

template <class T, int S, int RB>
inline void filter_taps(const FilterChannelsArgs<T>& g, int64_t s0) {
  int64_t r = 0;
  for (; r + RB <= g.filter_rows; r += RB) filter_rows<T, RB, S>(g, r, s0);
  for (; r < g.filter_rows; ++r) filter_rows<T, 1, S>(g, r, s0);
}

template <class T>
void filter_channels(const FilterChannelsArgs<T>& g) {
  for (int64_t s = 0; s < g.taps;) {
    const int64_t left = g.taps - s;
    if (kOwnSizes && left == 5) {
      filter_taps<T, 5, kFilterRows[5]>(g, s), s += 5;
    } else if (kOwnSizes && left >= 7) {
      filter_taps<T, 7, kFilterRows[7]>(g, s), s += 7;
    } else if (left >= 3) {
      filter_taps<T, 3, kFilterRows[3]>(g, s), s += 3;
    } else {
      filter_taps<T, 1, 3>(g, s), s += 1;
    }
  }
}

// Pixels of a row innermost: a sum for each lane, and the lanes of each tap in a fixed order at the end. RB filter rows
// go down the input with the rows of dy that an input row is multiplied by, D of them: each vector of the input and of
// dy is loaded once for all RB. Register map, AVX-512, 3 x 3: 9 sums, 3 rows of dy, a column: 13 of 32; 5 x 5: 25, 5,
// 1; 3 of 7 rows: 21, 3, 1. AVX2: 13 of 16; 2 of 5 rows: 10, 2, 1; 1 of 7: 7, 1, 1.
template <class T, int S, int ST, int RB>
__attribute__((noinline)) void filter_plane(const FilterPlanesArgs<T>& g, int64_t c, int64_t r0) {
  using V = Vec<T>;
  constexpr int64_t W = V::kLanes;
  constexpr int D = (RB + ST - 1) / ST;
  V acc[RB][S];
#pragma GCC unroll 16
  for (int r = 0; r < RB; ++r)
#pragma GCC unroll 16
    for (int s = 0; s < S; ++s) acc[r][s] = V::zero();
  for (int64_t q = 0; q < g.pixels; q += W) {
    const int64_t first = g.first_column + q * ST, offset = c * g.channel_pitch + first;
    const int64_t live = g.pixels - q < W ? g.pixels - q : W;
    typename V::Range masks[kRowLoads<S, ST>];
    for (int k = 0; k < kRowLoads<S, ST>; ++k) {
      const int64_t half = ST == 1 ? 0 : k % 2 * W, begin = first + (ST == 1 ? k : k / 2 * 2) + half;
      // Beyond the last pixel dy is zero, but a column may be infinite.
      const int64_t existing = g.columns - begin, met = live * ST - half, left = existing < met ? existing : met;
      const int64_t lo = begin >= 0 ? 0 : -begin < W ? -begin : W;
      masks[k] = V::range(lo, left < lo ? lo : left < W ? left : W);
    }
    // Phase k of ST rows of the input meets rows k, ST + k, ... of the filter, in the rows d[0], d[1], ... of dy; those
    // before the first are not there, nor are those after the last.
    V d[D];
#pragma GCC unroll 16
    for (int u = 0; u < D; ++u) d[u] = V::zero();
    auto add_row = [&]<int k>(const T* row, int64_t from, int64_t to) __attribute__((always_inline)) {
      row += row == g.zero_row ? first : offset;
      auto add = [&](int s, V x) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int u = 0; u < D; ++u)
          if (u * ST + k < RB && u >= from && u <= to) acc[u * ST + k][s] = fma(x, d[u], acc[u * ST + k][s]);
      };
      if constexpr (ST == 1) {
#pragma GCC unroll 16
        for (int s = 0; s < S; ++s) add(s, V::load_range(row + s, masks[s]));
      } else {
#pragma GCC unroll 16
        for (int s = 0; s < S; s += 2) {
          const V lo = V::load_range(row + s, masks[s]), hi = V::load_range(row + s + W, masks[s + 1]);
          add(s, V::even(lo, hi));
          if (s + 1 < S) add(s + 1, V::odd(lo, hi));
        }
      }
    };
    const T* dy = g.dy + c * g.dy_channel_pitch + q;
    const T* const* rows = g.rows + r0;
    const int64_t steps = g.out_rows > 0 ? g.out_rows + D - 1 : 0;
    for (int64_t j = 0; j < steps; ++j, rows += ST) {
#pragma GCC unroll 16
      for (int u = D - 1; u > 0; --u) d[u] = d[u - 1];
      if (j < g.out_rows) {
        d[0] = live == W ? V::load(dy) : V::load_n(dy, live);
        dy += g.dy_row_pitch;
      }
      const int64_t from = j < g.out_rows ? 0 : j - g.out_rows + 1, to = j < D - 1 ? j : D - 1;
      if (from == 0 && to == D - 1) {
        add_row.template operator()<0>(rows[0], 0, D - 1);
        if constexpr (ST == 2 && RB > 1) add_row.template operator()<1>(rows[1], 0, D - 1);
      } else {
        add_row.template operator()<0>(rows[0], from, to);
        if constexpr (ST == 2 && RB > 1)
          if (from * ST + 1 < RB) add_row.template operator()<1>(rows[1], from, to);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < RB; ++r)
#pragma GCC unroll 16
    for (int s = 0; s < S; ++s) {
      T lanes[W];
      acc[r][s].store(lanes);
      for (int64_t half = W / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      T& to = g.sum[(c * S + r0 + r) * S + s];
      to = g.accumulate ? to + lanes[0] : lanes[0];
    }
}

template <class T, int S, int ST>
inline void filter_plane_rows(const FilterPlanesArgs<T>& g) {
#if defined(__AVX512F__)
  constexpr int RB = S == 7 ? 3 : S;
#else
  constexpr int RB = S == 3 ? 3 : S == 5 ? 2 : 1;
#endif
  for (int64_t c = 0; c < g.channels; ++c) {
    int64_t r = 0;
    for (; r + RB <= S; r += RB) filter_plane<T, S, ST, RB>(g, c, r);
    for (; r < S; ++r) filter_plane<T, S, ST, 1>(g, c, r);
  }
}

template <class T>
void filter_planes([[maybe_unused]] const FilterPlanesArgs<T>& g) {
  if constexpr (kOwnSizes) {
    if (g.taps == 3)
      g.stride == 1 ? filter_plane_rows<T, 3, 1>(g) : filter_plane_rows<T, 3, 2>(g);
    else if (g.taps == 5)
      g.stride == 1 ? filter_plane_rows<T, 5, 1>(g) : filter_plane_rows<T, 5, 2>(g);
    else
      filter_plane_rows<T, 7, 1>(g);
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
