// Convolution in groups of a few channels, as many out as in, the channels innermost: lanes are channels, as of a
// depthwise layer, and a vector holds whole groups.
//
// A term of the sum is one channel of each group, spread over the group's lanes by a permutation, times the weights
// that its outputs have for it. No lane multiplies anything that its output does not need.
#pragma once
#include "kernels/depthwise.inl.h"

namespace fastconv::FASTCONV_ISA_NS {

#if defined(__AVX2__)

// The most channels of a group: a vector of floats with AVX-512.
inline constexpr int kGroup = 16;

// A strip of Q output pixels of one row, one vector of channels, S taps a filter row: three, or the one or two of a
// phase of a strided layer's gradient. For each filter row and channel of a group, with stride 1 and Q = 7:
//
//   column      0  1  2  3  4  5  6  7  8     each is loaded, spread, and multiplied by up to three weights
//   w0 w1 w2        \  |  /                   3 registers
//   acc      0  1  2  3  4  5  6              7 registers; one holds the column, one the permutation: 12 of 16
//
// That is 9 + 3 loads and 9 permutations for 21 FMAs. In a sum, filter rows are outermost, then channels, then taps.
template <class T, int S, int ST, int Q, bool Inside, bool Full>
inline __attribute__((always_inline)) void grouped_strip(const DepthwiseChannelsArgs<T>& g,
                                                         const typename Vec<T>::Lanes* spread, int64_t p, int64_t c,
                                                         int64_t q0, int64_t live, int64_t lanes) {
  using V = Vec<T>;
  V acc[Q];
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q) acc[q] = V::zero();
  const int64_t first = g.first_column + q0 * ST, group = g.group, weight_pitch = g.weight_pitch, columns = g.columns;
  const T* const* rows = g.rows + p * g.row_stride;
  const int64_t* pitches = g.row_pitch + p * g.row_stride;
  for (int64_t r = 0; r < g.filter_rows; ++r, rows += g.row_dilation, pitches += g.row_dilation) {
    const int64_t pitch = *pitches;
    if (pitch == 0 && g.skip_zeros) continue;
    const T *const row = *rows + c + first * pitch, *weights = g.weights[r] + c;
    for (int64_t k = 0; k < group; ++k, weights += weight_pitch) {
      const typename V::Lanes of = spread[k];
      V w[S];
#pragma GCC unroll 3
      for (int s = 0; s < S; ++s) w[s] = V::load(weights + s * group * weight_pitch);
      const T* from = row;
#pragma GCC unroll 64
      for (int j = 0; j < (Q - 1) * ST + S; ++j, from += pitch) {
        const T* at = Inside || (uint64_t)(first + j) < (uint64_t)columns ? from : (const T*)kNothing;
        const V x = V::permute(Full ? V::load(at) : V::load_n(at, lanes), of);
#pragma GCC unroll 3
        for (int s = 0; s < S; ++s)
          if (j >= s && (j - s) % ST == 0 && (j - s) / ST < Q) acc[(j - s) / ST] = fma(x, w[s], acc[(j - s) / ST]);
      }
    }
  }
  T* out = g.out + p * g.out_row_pitch + q0 * g.out_pitch + c;
  const T* residual = g.residual ? g.residual + p * g.residual_row_pitch + q0 * g.residual_pitch + c : nullptr;
  finish_strip<T, Q, Inside, Full>(g, acc, out, g.out_pitch, residual, g.residual_pitch, c, live, lanes);
}

template <class T, int S, int ST, int Q>
__attribute__((noinline)) void grouped_strips(const DepthwiseChannelsArgs<T>& g, const typename Vec<T>::Lanes* spread,
                                              int64_t p, int64_t c, int64_t q0, int64_t live) {
  constexpr int W = Vec<T>::kLanes;
  const int64_t lanes = g.channels - c < W ? g.channels - c : W, begin = g.first_column + q0 * ST;
  if (lanes < W) return grouped_strip<T, S, ST, Q, false, false>(g, spread, p, c, q0, live, lanes);
  if (live == Q && begin >= 0 && begin + (Q - 1) * ST + S <= g.columns)
    grouped_strip<T, S, ST, Q, true, true>(g, spread, p, c, q0, live, W);
  else
    grouped_strip<T, S, ST, Q, false, true>(g, spread, p, c, q0, live, W);
}

// Rows that a vector of channels stays with, while its weights are in the first-level cache.
inline constexpr int64_t kGroupedRows = 8;

template <class T, int S, int ST>
inline void grouped_rows(const DepthwiseChannelsArgs<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  typename V::Lanes spread[kGroup];
  for (int k = 0; k < g.group; ++k) {
    int32_t of[W];
    for (int i = 0; i < W; ++i) of[i] = (int32_t)(i / g.group * g.group + k);
    spread[k] = V::lanes(of);
  }
  for (int64_t p0 = 0; p0 < g.out_rows; p0 += kGroupedRows) {
    const int64_t p1 = p0 + kGroupedRows < g.out_rows ? p0 + kGroupedRows : g.out_rows;
    for (int64_t c = 0; c < g.channels; c += W)
      for (int64_t p = p0; p < p1; ++p)
        for (int64_t q = 0, width; q < g.pixels; q += width) {
          const int64_t left = g.pixels - q;
          width = left > 3 ? 7 : 3;
          const int64_t live = left < width ? left : width;
          if (width == 7)
            grouped_strips<T, S, ST, 7>(g, spread, p, c, q, live);
          else
            grouped_strips<T, S, ST, 3>(g, spread, p, c, q, live);
        }
  }
}

#endif

template <class T>
void grouped_channels([[maybe_unused]] const DepthwiseChannelsArgs<T>& g) {
#if defined(__AVX2__)
  switch (g.taps) {
    case 3: g.stride == 1 ? grouped_rows<T, 3, 1>(g) : grouped_rows<T, 3, 2>(g); break;
    case 2: grouped_rows<T, 2, 1>(g); break;
    default: grouped_rows<T, 1, 1>(g);  // or none, of no filter rows
  }
  for (int64_t p = 0; p < g.out_rows; ++p)
    activate_rows(g, g.out + p * g.out_row_pitch, g.pixels, g.out_pitch, g.channels);
#endif
}

}  // namespace fastconv::FASTCONV_ISA_NS
