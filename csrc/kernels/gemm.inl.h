// The one micro-kernel: C[m][n] (+)= sum_k rows[m][k] * panel[k][n].
//
// Rows are broadcast, an element at a time, through a pointer each; the panel is read in whole vectors. In NHWC the
// rows are output pixels (one pointer a tap, nothing is copied) and the panel holds packed weights; in NCHW the rows
// are the weights of an output channel as they lie in memory and the panel holds packed pixels.
//
// Register map, shown for AVX2 6x2 (traits.h has the other shapes):
//
//              b0     b1        <- panel[k][0..7], panel[k][8..15]
//   a0 (bcast) ymm0   ymm1      The accumulators take 12 of 16 registers, b0 and b1 two more, the broadcast of one
//   a1         ymm2   ymm3      row's element a fifteenth; one is left. A step of the reduction is 2 + 6 loads for
//   ...                         12 FMAs: the FMA units are the bound. The general registers hold six row pointers,
//   a5         ymm10  ymm11     the panel, the step's index and its end.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/activation.inl.h"
#include "kernels/traits.h"

namespace fastconv::FASTCONV_ISA_NS {

template <class T>
inline bool is_clamp(const GemmArgs<T>& g) {
  return g.activation == 1 || g.activation == 2 || g.activation == 11;
}

// Brings a tile's sums to C: what C holds, the epilogue, the stores. `column` counts from the first panel of g.
template <class T, int MR, int NV>
inline __attribute__((always_inline)) void finish_tile(const GemmArgs<T>& g, int64_t m0, int64_t column,
                                                       Vec<T> (&acc)[MR][NV], T* const (&c)[MR]) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t tail = g.tail;
  // Lanes that a full vector would touch beyond the last column are neither read nor written.
  auto load = [tail](const T* from, int v) {
    return v + 1 < NV || tail == W ? V::load(from + v * W) : V::load_n(from + v * W, tail);
  };
  // A vector of the epilogue: of one entry for the row, or of an entry for each column.
  auto entry = [&](const T* vector, int i, int v) {
    return g.channel_rows ? V::set1(vector[m0 + i]) : load(vector + column, v);
  };
  if (g.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[i][v] = load(c[i], v) + acc[i][v];
  }
  if (g.finish) {
    if (g.scale) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[i][v] = acc[i][v] * entry(g.scale, i, v);
    }
    if (g.shift) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[i][v] = acc[i][v] + entry(g.shift, i, v);
    }
    if (g.residual) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const T* residual = g.residual[m0 + i] + g.residual_offset + column;
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[i][v] = acc[i][v] + load(residual, v);
      }
    }
    if (is_clamp(g)) {
      const V lower = V::set1(g.a), upper = V::set1(g.b);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[i][v] = min(upper, max(lower, acc[i][v]));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      if (v + 1 < NV || tail == W)
        acc[i][v].store(c[i] + v * W);
      else
        acc[i][v].store_n(c[i] + v * W, tail);
    }
}

// Tiles of MR rows from row m0 on, `count` of them, times the panels of g. The reduction of a thin layer takes a
// hundred cycles, so that what surrounds it counts: the loops over the tiles are in here, and a plain result leaves
// without a look at the epilogue. Panels are the inner loop: a row of C is written in long runs.
//
// Pack: the tile reads the panel where it lies, at source + source_offset[k] for row k, and leaves a copy in g.pack for
// the tiles after it, where there are any. The copy rides along with the FMAs, and the misses hide behind them.
template <class T, int MR, int NV, bool Pack = false>
__attribute__((noinline)) void gemm_tiles(const GemmArgs<T>& g, int64_t m0, int64_t count) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t step = g.row_step;  // may be zero or negative
  const int64_t taps = g.taps, length = g.length, offset = g.row_offset, row_pitch = g.row_pitch;
  const T* const zero_row = g.zero_row;
  [[maybe_unused]] const int64_t* const source_offset = g.source_offset;
  const bool clamp = g.finish && is_clamp(g), ask_residual = g.finish && g.residual;
  const bool ask_output = g.far && !ask_residual;
  const int64_t tail = g.tail;
  const bool plain = tail == W && !g.accumulate && !(g.finish && (g.scale || g.shift || g.residual || clamp));
  const int64_t columns = g.panels * NV * W;

  const T* const* rows = g.rows + m0;
  T* const* c_rows = g.c + m0;
  const T* const first = g.panel;
  const int64_t c_offset = g.c_offset, panel_pitch = g.panel_pitch;
  const T* start = first;
  int64_t column = 0;
  auto advance = [&] {
    column += NV * W;
    start += panel_pitch;
    if (column != columns) return;
    column = 0;
    start = first;
    m0 += MR, rows += MR, c_rows += MR;
    --count;
  };
  // One loop over both: two would reload their invariants for every tile.
  for (; count > 0; advance()) {
    V acc[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[i][v] = V::zero();
    // What the tile reads and writes at its end all at once arrives in the shadow of its FMAs: of a residual or, where
    // there is none (both are too many), of a large output. Zen 4, in lock step, buffers in rotation: 64 > 256 of 56 x
    // 56 1.23 (residual) and 1.11 times as fast, planar 1.11; 128 > 512 of 28 x 28 1.13 and 1.05, planar 1.1; 3 x 3 of
    // 3 > 64 of 224 x 224 1.12, planar 1.2. Small outputs would lose 1 to 3 %.
    if (ask_residual) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) __builtin_prefetch(g.residual[m0 + i] + g.residual_offset + column + v * W, 0, 3);
    } else if (ask_output) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) __builtin_prefetch(c_rows[i] + (c_offset + column) + v * W, 1, 3);
    }

    const T* panel = start;
    [[maybe_unused]] T* pack = g.pack ? g.pack + (start - g.panel) : nullptr;
    [[maybe_unused]] const T* const source = g.source + column;
    const T* const* row = rows;
    for (int64_t t = 0; t < taps; ++t, row += row_pitch) {
      if (zero_row) {
        // Pixels near the border have taps that meet nothing but padding: whole tiles of them with large dilations.
        bool zeros = true;
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) zeros &= row[i] == zero_row;
        if (zeros) {
          panel += length * NV * W;
          continue;
        }
      }
      const T* a[MR];
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) a[i] = row[i] + offset;
      int64_t k = 0;
      for (int64_t n = length; n > 0; --n, k += step) {
        V b[NV];
        if constexpr (Pack) {
          const T* from = source + source_offset[length - n];
          __builtin_prefetch(from + 2 * NV * W - 1, 0, 3);  // the end of the next panel
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) b[v] = V::load(from + v * W);
          if (pack) {
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) b[v].store(pack + v * W);
            pack += NV * W;
          }
        } else {
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) b[v] = V::load(panel + v * W);
          panel += NV * W;
        }
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          V x = V::set1(a[i][k]);
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) acc[i][v] = fma(x, b[v], acc[i][v]);
        }
      }
    }

    // Read before the stores, which might alias the table for all that the compiler knows.
    T* c[MR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) c[i] = c_rows[i] + (c_offset + column);
    if (plain) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[i][v].store(c[i] + v * W);
      continue;
    }
    finish_tile<T, MR, NV>(g, m0, column, acc, c);
  }
}

// A few rows against weights that lie as (column)(term): used so seldom, they are not worth the packing. Blocks of W
// columns are transposed in registers, 16 bytes of each (AVX-512: 64), so that every sum is added up in the order of a
// packed panel. A vector of columns at a time: what counts are the streams from memory, one a column (1 row of 9216 >
// 4096, Zen 4: 1.2 and 1.5 times as fast as with four vectors, whose additions would wait less for each other).
//
// Registers: MR accumulators, the vectors of a block and as many to transpose it: 12 of 16 and 36 of 32 for four rows.
template <class T, int MR, bool Full>
__attribute__((noinline)) void gemm_few(const GemmArgs<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::kLanes, kBlock = V::kColumnBlock, kLine = 64 / sizeof(T);
  constexpr int64_t kAhead = 512 / sizeof(T);  // of as many streams, no hardware prefetcher follows all
  const int64_t pitch = g.weights_pitch;
  V acc[MR][1];
  const T* a[MR];
  T* c[MR];
#pragma GCC unroll 4
  for (int i = 0; i < MR; ++i) {
    acc[i][0] = V::zero();
    a[i] = g.rows[i] + g.row_offset;
    c[i] = g.c[i] + g.c_offset;
  }
  // Lanes past the last column read it again; they are not stored.
  const int64_t last = g.tail - 1;
  int64_t k = 0;
  for (; k + kLine <= g.length; k += kLine) {
    const T* line = g.weights + k;
    asm("" : "+r"(line));  // or the compiler keeps a pointer for every column, all of them on the stack
    auto at = [=](int l) { return line + (Full || l < last ? l : last) * pitch; };
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) __builtin_prefetch(at(l) + kAhead, 0, 2);
#pragma GCC unroll 4
    for (int h = 0; h < kLine; h += kBlock) {
      V r[kBlock];
      V::load_columns([=](int l) { return at(l) + h; }, r);
#pragma GCC unroll 16
      for (int t = 0; t < kBlock; ++t)
#pragma GCC unroll 4
        for (int i = 0; i < MR; ++i) acc[i][0] = fma(V::set1(a[i][k + h + t]), r[t], acc[i][0]);
    }
  }
  for (; k < g.length; ++k) {
    alignas(64) T column[W] = {};
    for (int64_t l = 0; l < g.tail; ++l) column[l] = g.weights[l * pitch + k];
#pragma GCC unroll 4
    for (int i = 0; i < MR; ++i) acc[i][0] = fma(V::set1(a[i][k]), V::load(column), acc[i][0]);
  }
  finish_tile<T, MR, 1>(g, 0, 0, acc, c);
}

// Functions that need more than a clamp run over the panels' part of C while it is in the first-level cache: inlined
// into the tile they would cost it its registers.
template <class T>
inline void finish_activation(const GemmArgs<T>& g, int64_t vectors) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  if (g.finish && g.activation != 0 && !is_clamp(g)) {
    for (int64_t m = 0; m < g.m; ++m) {
      T* c = g.c[m] + g.c_offset;
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t lanes = v + 1 < vectors ? W : g.tail;
        V x = lanes == W ? V::load(c + v * W) : V::load_n(c + v * W, lanes);
        x = activate(g.activation, g.a, g.b, x);
        if (lanes == W)
          x.store(c + v * W);
        else
          x.store_n(c + v * W, lanes);
      }
    }
  }
}

template <class T, int NV, bool Pack = false>
inline void gemm_rows(const GemmArgs<T>& g, int64_t m0, int64_t rows, int64_t count) {
  // Only the heights that traits.h allows for this width are instantiated.
  constexpr int M = kTileRows[NV];
#define FASTCONV_ROWS(R)                                            \
  case R:                                                           \
    if constexpr (R <= M) gemm_tiles<T, R, NV, Pack>(g, m0, count); \
    break;
  switch (rows) {
    FASTCONV_ROWS(1)
    FASTCONV_ROWS(2)
    FASTCONV_ROWS(3)
    FASTCONV_ROWS(4)
    FASTCONV_ROWS(5)
    FASTCONV_ROWS(6)
    FASTCONV_ROWS(7)
    FASTCONV_ROWS(8)
  }
#undef FASTCONV_ROWS
}

template <class T, int NV>
inline void gemm_panel(const GemmArgs<T>& g) {
  // Tiles of nearly equal height: a lone short one would wait for its own latency.
  const int64_t tiles = (g.m + kTileRows[NV] - 1) / kTileRows[NV];
  if (tiles == 0) return;
  const int64_t height = g.m / tiles, taller = g.m % tiles;
  if (g.source) {
    // Any tile but the last may pack; the first is a tall one.
    const int64_t first = height + (taller > 0), rest = tiles - taller - (taller == 0);
    gemm_rows<T, NV, true>(g, 0, first, 1);
    if (taller > 1) gemm_rows<T, NV>(g, first, first, taller - 1);
    if (rest > 0) gemm_rows<T, NV>(g, g.m - rest * height, height, rest);
  } else if (g.next_rows == 0) {
    if (taller) gemm_rows<T, NV>(g, 0, height + 1, taller);
    if (height) gemm_rows<T, NV>(g, taller * (height + 1), height, tiles - taller);
  } else {
    int64_t m0 = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t rows = height + (i < taller);
      // What lies far apart no hardware prefetcher follows; a few lines a tile arrive in its shadow.
      for (int64_t r = i * g.next_rows / tiles; r < (i + 1) * g.next_rows / tiles; ++r)
        for (int64_t b = 0; b < g.next_width; b += 64 / (int64_t)sizeof(T))
          __builtin_prefetch(g.next + r * g.next_pitch + b, 0, 2);
      gemm_rows<T, NV>(g, m0, rows, 1);
      m0 += rows;
    }
  }
  finish_activation(g, g.panels * NV);
}

template <class T>
inline void gemm_few_rows(const GemmArgs<T>& g) {
  const bool full = g.tail == Vec<T>::kLanes;
  switch (g.m) {
    case 1: return full ? gemm_few<T, 1, true>(g) : gemm_few<T, 1, false>(g);
    case 2: return full ? gemm_few<T, 2, true>(g) : gemm_few<T, 2, false>(g);
    case 3: return full ? gemm_few<T, 3, true>(g) : gemm_few<T, 3, false>(g);
    case 4: return full ? gemm_few<T, 4, true>(g) : gemm_few<T, 4, false>(g);
  }
}

template <class T>
void gemm(const GemmArgs<T>& g) {
  if (g.weights) {
    gemm_few_rows(g);
    return finish_activation(g, g.vectors);
  }
  switch (g.vectors) {
    case 1: return gemm_panel<T, 1>(g);
    case 2: return gemm_panel<T, 2>(g);
    case 3:
      if constexpr (kMaxVectors >= 3) return gemm_panel<T, 3>(g);
      return;
    case 4:
      if constexpr (kMaxVectors >= 4) return gemm_panel<T, 4>(g);
      return;
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
