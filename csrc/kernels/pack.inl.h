// Everything that brings an operand into the order in which the GEMM tile reads it.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/activation.inl.h"
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

// Weights that lie as (column)(channel)(tap) with nothing between: W columns of W terms of the reduction are transposed
// at a time. Cache lines are read whole (columns a power of two apart share their place in the first-level cache) and,
// since all columns of the panel come before the next terms, written whole. Two lines further on are asked for: of as
// many streams as there are columns no hardware prefetcher follows all (the packing of a 3x3 takes 0.5 to 0.7 times as
// long, Zen 4).
template <class T>
inline void pack_weights_plain(const PackWeightsArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  constexpr int64_t kLine = 64 / sizeof(T) > W ? 64 / sizeof(T) : W;
  constexpr int64_t kAhead = 128 / sizeof(T);
  const int64_t taps = p.taps, columns = p.columns, terms = taps * p.length;
  const int64_t tap_pitch = p.length * columns, next_channel = columns - taps * tap_pitch;
  int64_t t0 = 0;
  T* to0 = p.panel;  // the row of term k, which is tap t0 of a channel
  for (int64_t k = 0; k < terms; k += kLine) {
    const int64_t end = k + kLine < terms ? k + kLine : terms;
    int64_t t = t0;
    T* to = to0;
    for (int64_t j = 0; j < columns; j += W) {
      const int64_t lanes = p.valid - j < W ? p.valid - j : W;
      t = t0, to = to0;
      for (int64_t at = k; at < end; at += W) {
        const int64_t n = end - at < W ? end - at : W;
        const T* w = p.w + j * p.column_stride + at;
        V r[W];
        if (lanes == W && n == W) {
#pragma GCC unroll 16
          for (int i = 0; i < W; ++i) {
            const T* from = w + i * p.column_stride;
            __builtin_prefetch(from + kAhead, 0, 3);
            r[i] = V::load(from);
          }
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < W; ++i) r[i] = i < lanes ? V::load_n(w + i * p.column_stride, n) : V::zero();
        }
        V::transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          if (i >= n) break;
          r[i].store(to + j);
          to += tap_pitch;
          if (++t == taps) t = 0, to += next_channel;
        }
      }
    }
    t0 = t, to0 = to;
  }
}

// Taps that are neighbours, forwards or (in a gradient) backwards, and fewer than fill a vector: those of W columns are
// transposed at a time. A channel's columns are read from end to end, and those of the next channel, which may be pages
// away, are asked for. (Input gradients of 3 x 3, AVX-512, Zen 4: 512 channels on 8 images of 2 x 2 1.45 times as fast
// as with elements copied one by one, 256 on 14 x 14 1.12.)
template <class T>
inline void pack_weight_runs(const PackWeightsArgs<T>& p, int64_t direction) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t n = p.taps, width = W * p.column_stride;
  for (int64_t c = 0; c < p.length; ++c) {
    const T* const row = p.w + c * p.channel_stride + p.tap_offset[direction == 1 ? 0 : n - 1];
    for (int64_t j = 0; j < p.columns; j += W) {
      const int64_t lanes = p.valid - j < W ? p.valid - j : W;
      const T* const w = row + j * p.column_stride;
      if (lanes > 0 && c + 1 < p.length)
        for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(w + p.channel_stride + i, 0, 3);
      V r[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) r[i] = i < lanes ? V::load_n(w + i * p.column_stride, n) : V::zero();
      V::transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        if (i >= n) break;
        const int64_t t = direction == 1 ? i : n - 1 - i;
        r[i].store((p.tap_panel ? p.tap_panel[t] : p.panel + t * p.length * p.columns) + c * p.columns + j);
      }
    }
  }
}

template <class T>
void pack_weights(const PackWeightsArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  bool plain = p.channel_stride == p.taps && !p.tap_panel;
  for (int64_t t = 0; t < p.taps; ++t) plain = plain && p.tap_offset[t] == t;
  if (plain) return pack_weights_plain(p);
  // Of runs of taps, the direction; 0 of others.
  int64_t direction = p.taps > 1 && p.column_stride != 1 ? p.tap_offset[1] - p.tap_offset[0] : 0;
  if (direction != 1 && direction != -1) direction = 0;
  for (int64_t t = 1; t < p.taps; ++t)
    if (p.tap_offset[t] - p.tap_offset[t - 1] != direction) direction = 0;
  if (direction && p.taps < W && 4 * p.taps >= W) return pack_weight_runs(p, direction);
  for (int64_t j0 = 0; j0 < p.columns; j0 += W) {
    const int64_t lanes = p.valid - j0 < W ? p.valid - j0 : W;
    auto rows_of = [&p, j0](int64_t t) {
      return (p.tap_panel ? p.tap_panel[t] : p.panel + t * p.length * p.columns) + j0;
    };
    if (lanes <= 0) {
      for (int64_t t = 0; t < p.taps; ++t)
        for (int64_t c = 0; c < p.length; ++c) V::zero().store(rows_of(t) + c * p.columns);
      continue;
    }
    const T* w = p.w + j0 * p.column_stride;
    // W columns of W taps at a time.
    int64_t t0 = 0;
    if (direction) {
      for (; t0 + W <= p.taps; t0 += W) {
        const T* first = w + p.tap_offset[direction == 1 ? t0 : t0 + W - 1];
        for (int64_t c = 0; c < p.length; ++c, first += p.channel_stride) {
          V r[W];
#pragma GCC unroll 16
          for (int i = 0; i < W; ++i) r[i] = i < lanes ? V::load(first + i * p.column_stride) : V::zero();
          V::transpose(r);
#pragma GCC unroll 16
          for (int i = 0; i < W; ++i) {
            const int64_t t = direction == 1 ? t0 + i : t0 + W - 1 - i;
            r[i].store(rows_of(t) + c * p.columns);
          }
        }
      }
    }
    for (int64_t t = t0; t < p.taps; ++t) {
      const T* wt = w + p.tap_offset[t];
      T* o = rows_of(t);
      if (p.column_stride == 1) {
        for (int64_t c = 0; c < p.length; ++c) {
          const T* s = wt + c * p.channel_stride;
          (lanes == W ? V::load(s) : V::load_n(s, lanes)).store(o + c * p.columns);
        }
        continue;
      }
      for (int64_t c = 0; c < p.length; ++c) {
        const T* s = wt + c * p.channel_stride;
        T* d = o + c * p.columns;
        for (int64_t i = 0; i < lanes; ++i) d[i] = s[i * p.column_stride];
        for (int64_t i = lanes; i < W; ++i) d[i] = 0;
      }
    }
  }
}

// Rows of the "pixel columns" role when the weights are not already (column)(channel)(tap): the arguments are those of
// pack_weights, `columns` is the pitch between output rows of taps * length terms in (channel)(tap) order.
template <class T>
void pack_weight_rows(const PackWeightsArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  if (p.taps == 1 && p.column_stride == 1) {
    // A transposed matrix: W x W at a time.
    const T* w = p.w + p.tap_offset[0];
    for (int64_t c = 0; c < p.length; c += W) {
      const int64_t terms = p.length - c < W ? p.length - c : W;
      for (int64_t j = 0; j < p.valid; j += W) {
        const int64_t rows = p.valid - j < W ? p.valid - j : W;
        V r[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) r[i] = i < terms ? V::load_n(w + (c + i) * p.channel_stride + j, rows) : V::zero();
        V::transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
          if (i < rows) r[i].store_n(p.panel + (j + i) * p.columns + c, terms);
      }
    }
    return;
  }
  // A channel's weights of neighbouring rows lie together in the usual orders: read them in that order.
  for (int64_t c = 0; c < p.length; ++c)
    for (int64_t j = 0; j < p.valid; ++j) {
      const T* w = p.w + j * p.column_stride + c * p.channel_stride;
      T* out = p.panel + j * p.columns + c * p.taps;
      for (int64_t t = 0; t < p.taps; ++t) out[t] = w[p.tap_offset[t]];
    }
}

template <class T>
void pack_columns(const PackColumnsArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  T* out = p.panel;
  if (p.segment_count == 1 && !p.exact) {
    // One run: whole vectors, the last of which may spill into the next row and is overwritten with it.
    const int64_t length = p.segments[0].length;
    const T* source = p.source + p.segments[0].offset;
    for (int64_t c = 0; c < p.channels; ++c, source += p.channel_stride)
      for (int64_t t = 0; t < p.taps; ++t, out += p.columns) {
        const T* s = source + p.tap_offset[t];
        for (int64_t i = 0; i < length; i += W) V::load(s + i).store(out + i);
      }
    return;
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* source = p.source + c * p.channel_stride;
    for (int64_t t = 0; t < p.taps; ++t, out += p.columns) {
      const T* s = source + p.tap_offset[t];
      for (int64_t g = 0; g < p.segment_count; ++g) {
        const Segment& seg = p.segments[g];
        const T* from = s + seg.offset;
        T* to = out + seg.column;
        int64_t i = 0;
        for (; i + W <= seg.length; i += W) V::load(from + i).store(to + i);
        if (i >= seg.length) continue;
        if (p.exact)
          V::load_n(from + i, seg.length - i).store_n(to + i, seg.length - i);
        else
          V::load(from + i).store(to + i);
      }
    }
  }
}

template <class T>
void pack_transposed(const PackTransposedArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t j = 0; j < p.columns; j += W) {
    for (int64_t g = 0; g < p.segment_count; ++g) {
      const Segment& seg = p.segments[g];
      T* out = p.panel + seg.column * p.columns + j;
      for (int64_t i = 0; i < seg.length; i += W) {
        V r[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) r[l] = V::load(p.source[j + l] + seg.offset + i);
        V::transpose(r);
        T* o = out + i * p.columns;
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) r[l].store(o + l * p.columns);
      }
    }
  }
}

template <class T>
void pack_rows(const PackRowsArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  for (int64_t i = 0; i < p.count; ++i) {
    const T* s = p.rows[i] + p.offset;
    T* d = p.panel + i * p.pitch;
    int64_t j = 0;
    for (; j + W <= p.length; j += W) V::load(s + j).store(d + j);
    if (j < p.length) {
      V::load_n(s + j, p.length - j).store(d + j);
      j += W;
    }
    for (; j < p.pitch; j += W) V::zero().store(d + j);
  }
}

template <class T>
inline Vec<T> map_channel(const InputMap<T>& map, int64_t c, Vec<T> x) {
  using V = Vec<T>;
  if (map.scale) x = x * V::set1(map.scale[c]);
  if (map.shift) x = x + V::set1(map.shift[c]);
  if (map.activation) x = activate(map.activation, map.a, map.b, x);
  if (map.gate) x = x * V::set1(map.gate[c * map.gate_stride]);
  return x;
}

template <class T>
void fill_pixel_slab(const PixelSlabArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t channels = p.channels;
  auto zeros = [](T* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = 0;
  };
  auto copy = [](T* to, const T* from, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) V::load(from + i).store(to + i);
    if (i < n) V::load_n(from + i, n - i).store_n(to + i, n - i);
  };
  auto mapped = [&p, channels](T* to, const T* from) {
    const InputMap<T>& map = p.map;
    for (int64_t c = 0; c < channels; c += W) {
      const int64_t lanes = channels - c < W ? channels - c : W;
      V x = V::load_n(from + c, lanes);
      if (map.scale) x = x * V::load_n(map.scale + c, lanes);
      if (map.shift) x = x + V::load_n(map.shift + c, lanes);
      if (map.activation) x = activate(map.activation, map.a, map.b, x);
      if (map.gate) x = x * V::load_n(map.gate + c, lanes);
      x.store_n(to + c, lanes);
    }
  };
  // Columns [lo, hi) of the slab lie in the image.
  int64_t lo = 0, hi = p.columns;
  if (!p.column_map) {
    lo = p.first < 0 ? (-p.first < hi ? -p.first : hi) : 0;
    const int64_t end = p.image_columns - p.first;
    hi = end < hi ? end : hi;
    hi = hi > lo ? hi : lo;
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    if (p.row_offset[r] == kUnusedRow) continue;
    T* out = p.slab + r * p.columns * channels;
    if (p.row_offset[r] == kZeroRow) {
      zeros(out, p.columns * channels);
      continue;
    }
    const T* row = p.source + p.row_offset[r];
    zeros(out, lo * channels);
    if (p.channel_stride == 1 && !p.column_map && !p.map.active && p.column_stride == channels) {
      copy(out + lo * channels, row + (p.first + lo) * channels, (hi - lo) * channels);
    } else if (p.channel_stride == 1) {
      for (int64_t i = lo; i < hi; ++i) {
        const T* from = row + (p.column_map ? p.column_map[i] : p.first + i) * p.column_stride;
        if (p.map.active)
          mapped(out + i * channels, from);
        else
          copy(out + i * channels, from, channels);
      }
    } else if ((p.column_stride == 1 || p.column_stride == 2) && !p.column_map) {
      // A planar image, or every other column of one: W channels of W columns at a time.
      auto columns = [&p](const T* from, int64_t wide) __attribute__((always_inline)) {
        if (p.column_stride == 1) return wide == W ? V::load(from) : V::load_n(from, wide);
        const int64_t n = 2 * wide - 1;
        if (n < W) return V::even(V::load_n(from, n), V::zero());
        return V::even(V::load(from), V::load_n(from + W, n - W));
      };
      for (int64_t c = 0; c < channels; c += W) {
        const int64_t high = channels - c < W ? channels - c : W;
        const T* plane = row + c * p.channel_stride + p.first * p.column_stride;
        for (int64_t i = lo; i < hi; i += W) {
          const int64_t wide = hi - i < W ? hi - i : W;
          V x[W];
#pragma GCC unroll 16
          for (int l = 0; l < W; ++l) {
            if (l >= high) {
              x[l] = V::zero();
              continue;
            }
            const T* from = plane + l * p.channel_stride + i * p.column_stride;
            // The next channels' planes lie in other pages, which no hardware prefetcher enters.
            __builtin_prefetch(from + W * p.channel_stride);
            if (p.column_stride == 2) __builtin_prefetch(from + W * p.channel_stride + W);
            x[l] = columns(from, wide);
          }
          if (p.map.active)
            for (int l = 0; l < high; ++l) x[l] = map_channel(p.map, c + l, x[l]);
          V::transpose(x);
          T* to = out + i * channels + c;
#pragma GCC unroll 16
          for (int l = 0; l < W; ++l) {
            if (l >= wide) break;
            if (high == W)
              x[l].store(to + l * channels);
            else
              x[l].store_n(to + l * channels, high);
          }
        }
      }
    } else {
      for (int64_t i = lo; i < hi; ++i) {
        const T* from = row + (p.column_map ? p.column_map[i] : p.first + i) * p.column_stride;
        T* to = out + i * channels;
        for (int64_t c = 0; c < channels; ++c) to[c] = from[c * p.channel_stride];
        if (p.map.active) mapped(to, to);
      }
    }
    zeros(out + hi * channels, (p.columns - hi) * channels);
  }
}

// The columns [lo, hi) of a sub-row that lie in the image.
template <class T>
inline void columns_inside(const SlabArgs<T>& p, int64_t phase, int64_t* lo, int64_t* hi) {
  const int64_t n = p.phase_length, s = p.stride, column = p.first + phase;  // of the image, for i = 0
  *lo = column >= 0 ? 0 : (-column + s - 1) / s;
  *hi = column >= p.image_columns ? 0 : (p.image_columns - 1 - column) / s + 1;
  *lo = *lo < n ? *lo : n;
  *hi = *hi < n ? *hi : n;
  *hi = *hi > *lo ? *hi : *lo;
}

// One sub-row of a slab: columns first + i * stride of a row of the image, zero outside it.
template <class T>
inline void fill_sub_row(const SlabArgs<T>& p, T* out, const T* row, int64_t first, int64_t c) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t n = p.phase_length, s = p.stride;
  if (p.column_map) {
    for (int64_t i = 0; i < n; ++i) out[i] = row[p.column_map[first + i * s] * p.column_stride];
    if (p.map.active)
      for (int64_t i = 0; i < n; i += W) {
        const int64_t lanes = n - i < W ? n - i : W;
        map_channel(p.map, c, V::load_n(out + i, lanes)).store_n(out + i, lanes);
      }
    return;
  }
  const int64_t column = p.first + first;  // of the image, for i = 0
  int64_t lo, hi;
  columns_inside(p, first, &lo, &hi);
  for (int64_t i = 0; i < lo; ++i) out[i] = 0;
  const T* from = row + (column + lo * s) * p.column_stride;
  const int64_t step = s * p.column_stride, count = hi - lo;
  T* to = out + lo;
  int64_t i = 0;
  if (step == 1) {
    for (; i + W <= count; i += W) V::load(from + i).store(to + i);
    if (i < count) V::load_n(from + i, count - i).store_n(to + i, count - i);
  } else {
    if (step == 2)  // the odd element after the last even one need not exist
      for (; i + W < count; i += W) V::even(V::load(from + 2 * i), V::load(from + 2 * i + W)).store(to + i);
    for (; i < count; ++i) to[i] = from[i * step];
  }
  if (p.map.active)
    for (i = 0; i < count; i += W) {
      const int64_t lanes = count - i < W ? count - i : W;
      map_channel(p.map, c, V::load_n(to + i, lanes)).store_n(to + i, lanes);
    }
  for (i = hi; i < n; ++i) out[i] = 0;
}

// A slab from an image whose channels are neighbours: W columns of up to W channels at a time.
template <class T>
inline void fill_slab_from_pixels(const SlabArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t step = p.stride * p.column_stride;
  for (int64_t c = 0; c < p.channels; c += W) {
    const int64_t high = p.channels - c < W ? p.channels - c : W;
    for (int64_t r = 0; r < p.rows; ++r) {
      if (p.row_offset[r] == kUnusedRow) continue;
      for (int64_t f = 0; f < p.phase_count; ++f) {
        T* out = p.slab + c * p.channel_pitch + r * p.row_pitch + f * p.phase_pitch;
        int64_t lo = 0, hi = 0;
        if (p.row_offset[r] != kZeroRow) columns_inside(p, p.phases[f], &lo, &hi);
        for (int64_t l = 0; l < high; ++l) {
          for (int64_t i = 0; i < lo; ++i) out[l * p.channel_pitch + i] = 0;
          for (int64_t i = hi; i < p.phase_length; ++i) out[l * p.channel_pitch + i] = 0;
        }
        if (lo == hi) continue;
        const T* from = p.source + p.row_offset[r] + (p.first + p.phases[f]) * p.column_stride + c;
        for (int64_t i = lo; i < hi; i += W) {
          const int64_t wide = hi - i < W ? hi - i : W;
          V x[W];
#pragma GCC unroll 16
          for (int l = 0; l < W; ++l) x[l] = l < wide ? V::load_n(from + (i + l) * step, high) : V::zero();
          V::transpose(x);
#pragma GCC unroll 16
          for (int l = 0; l < W; ++l) {
            if (l >= high) break;
            if (p.map.active) x[l] = map_channel(p.map, c + l, x[l]);
            if (wide == W)
              x[l].store(out + l * p.channel_pitch + i);
            else
              x[l].store_n(out + l * p.channel_pitch + i, wide);
          }
        }
      }
    }
  }
}

template <class T>
void fill_slab(const SlabArgs<T>& p) {
  if (p.channel_stride == 1 && p.channels > 1 && !p.column_map) return fill_slab_from_pixels(p);
  for (int64_t c = 0; c < p.channels; ++c)
    for (int64_t r = 0; r < p.rows; ++r) {
      if (p.row_offset[r] == kUnusedRow) continue;
      T* row = p.slab + c * p.channel_pitch + r * p.row_pitch;
      for (int64_t f = 0; f < p.phase_count; ++f) {
        T* out = row + f * p.phase_pitch;
        if (p.row_offset[r] == kZeroRow) {
          for (int64_t i = 0; i < p.phase_length; ++i) out[i] = 0;
          continue;
        }
        fill_sub_row(p, out, p.source + c * p.channel_stride + p.row_offset[r], p.phases[f], c);
      }
    }
}

template <class T>
void gather_block(const MoveBlockArgs<T>& p) {
  for (int64_t m = 0; m < p.m; ++m)
    for (int64_t n = 0; n < p.n; ++n) p.buffer[m * p.pitch + n] = p.tensor[p.row_offset[m] + p.column_offset[n]];
}

// The constant difference between offsets, 0 where there is none.
inline int64_t uniform_step(const int64_t* offset, int64_t count) {
  const int64_t step = count > 1 ? offset[1] - offset[0] : 1;
  for (int64_t i = 2; i < count; ++i)
    if (offset[i] - offset[i - 1] != step) return 0;
  return step;
}

template <class T>
void scatter_block(const MoveBlockArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t column_step = uniform_step(p.column_offset, p.n);
  int64_t m = 0;
  // Rows that are closer to each other than columns (offsets only grow): up to W x W elements at a time are transposed
  // on the way, so that those which share cache lines are written together.
  for (int64_t tall; m < p.m; m += tall) {
    tall = p.m - m < W ? p.m - m : W;
    const int64_t step = uniform_step(p.row_offset + m, tall);
    if (step == 0 || tall == 1 || (column_step != 0 && column_step <= step)) break;
    for (int64_t n = 0; n < p.n; n += W) {
      const int64_t wide = p.n - n < W ? p.n - n : W;
      V x[W];
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) x[l] = l < tall ? V::load(p.buffer + (m + l) * p.pitch + n) : V::zero();
      V::transpose(x);
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) {
        if (l >= wide) break;
        T* to = p.tensor + p.row_offset[m] + p.column_offset[n + l];
        if (step != 1) {
          // The phases of a strided gradient or transposed layer.
          T lanes[W];
          x[l].store(lanes);
          if (p.accumulate)
            for (int64_t i = 0; i < tall; ++i) to[i * step] += lanes[i];
          else
            for (int64_t i = 0; i < tall; ++i) to[i * step] = lanes[i];
        } else if (tall == W) {
          (p.accumulate ? V::load(to) + x[l] : x[l]).store(to);
        } else {
          (p.accumulate ? V::load_n(to, tall) + x[l] : x[l]).store_n(to, tall);
        }
      }
    }
  }
  for (; m < p.m; ++m) {
    T* row = p.tensor + p.row_offset[m];
    const T* from = p.buffer + m * p.pitch;
    if (column_step != 0) {
      row += p.n > 0 ? p.column_offset[0] : 0;
      if (p.accumulate)
        for (int64_t n = 0; n < p.n; ++n) row[n * column_step] += from[n];
      else
        for (int64_t n = 0; n < p.n; ++n) row[n * column_step] = from[n];
    } else if (p.accumulate) {
      for (int64_t n = 0; n < p.n; ++n) row[p.column_offset[n]] += from[n];
    } else {
      for (int64_t n = 0; n < p.n; ++n) row[p.column_offset[n]] = from[n];
    }
  }
}

// W x W elements at a time. Rows of the result that are shorter than a vector and follow one another are written as
// whole vectors, in order: each puts right what the one before wrote too much. (Nine rows, Zen 4: 1.6 times as fast.)
template <class T>
void turn_block(const TurnArgs<T>& p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t from_pitch = p.from_pitch, to_pitch = p.to_pitch;
  const bool run = p.rows < W && to_pitch == p.rows;
  for (int64_t i = 0; i < p.rows; i += W) {
    const int64_t tall = p.rows - i < W ? p.rows - i : W;
    for (int64_t j = 0; j < p.n; j += W) {
      const int64_t wide = p.n - j < W ? p.n - j : W;
      const T* from = p.from + i * from_pitch + j;
      T* to = p.to + j * to_pitch + i;
      V x[W];
      if (wide == W && tall == W) {
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) x[l] = V::load(from + l * from_pitch);
        V::transpose(x);
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) x[l].store(to + l * to_pitch);
        continue;
      }
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) x[l] = l < tall ? V::load_n(from + l * from_pitch, wide) : V::zero();
      V::transpose(x);
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l)
        if (l < wide) {
          if (run && (p.n - j - l) * tall >= W)
            x[l].store(to + l * to_pitch);
          else
            x[l].store_n(to + l * to_pitch, tall);
        }
    }
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
