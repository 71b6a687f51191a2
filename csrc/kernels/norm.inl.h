// Statistics of blocks, and what normalisation does with them, forward and backward.
//
// None of it is bound by arithmetic, so that a register tile would gain nothing: by row a handful of accumulators hide
// the latency of the sums, by column the sums lie in first-level cache and take kRows rows at a time, so that rows are
// read along their length and each sum is loaded and stored once for all of them.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/activation.inl.h"
#include "kernels/stream.inl.h"

namespace fastconv::FASTCONV_ISA_NS {

// The arguments' structs go by value into the loops: a store of a vector may alias anything that has an address, and
// what is only referred to would be loaded again after each.
namespace {

// Rows that a sum by column takes at a time.
constexpr int kRows = 4;

// A number that a generic function takes.
template <int kNumber>
struct Count {
  static constexpr int kValue = kNumber;
};

// The mean that a sum is taken about; 0 where it would turn the sums into NaN that are not.
template <class V>
inline V finite_or_zero(V x) {
  using T = typename V::T;
  return V::select_less_equal(V::abs(x), V::set1(sizeof(T) == 4 ? (T)0x1.fffffep127 : (T)0x1.fffffffffffffp1023), x,
                              V::zero());
}

}  // namespace

// The sums of one block, its rows merged.
template <class T>
inline void block_stats(const T* x, int64_t rows, int64_t columns, int64_t pitch, T* shift, T* sum, T* square) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  V s[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  V q[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = x + r * pitch;
    int64_t c = 0;
    for (; c + 4 * W <= columns; c += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) s[j] = s[j] + V::load(row + c + j * W);
    for (; c + W <= columns; c += W) s[0] = s[0] + V::load(row + c);
    if (c < columns) s[1] = s[1] + V::load_n(row + c, columns - c);
  }
  const T total = ((s[0] + s[1]) + (s[2] + s[3])).sum();
  T lanes[W];
  const V mean = finite_or_zero(V::set1(total / (T)(rows * columns)));
  mean.store(lanes);
  const int64_t tail = columns % W;
  const V mean_of_tail = V::load_n(lanes, tail);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) s[j] = V::zero();
  auto add = [&](V v, int j) {
    s[j] = s[j] + v;
    q[j] = fma(v, v, q[j]);
  };
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = x + r * pitch;
    int64_t c = 0;
    for (; c + 4 * W <= columns; c += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) add(V::load(row + c + j * W) - mean, j);
    for (; c + W <= columns; c += W) add(V::load(row + c) - mean, 0);
    if (tail) add(V::load_n(row + c, tail) - mean_of_tail, 1);
  }
  *shift = lanes[0];
  *sum = ((s[0] + s[1]) + (s[2] + s[3])).sum();
  *square = ((q[0] + q[1]) + (q[2] + q[3])).sum();
}

template <class T>
inline void column_stats(const NormStatsArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const V share = V::set1((T)1 / (T)p.rows);
  for (int64_t r = 0; r < p.rows; r += kRows) {
    const int64_t high = p.rows - r < kRows ? p.rows - r : kRows;
    const T* x = p.x + r * p.pitch;
    for (int64_t c = 0; c < p.columns; c += W) {
      const int64_t lanes = p.columns - c < W ? p.columns - c : W;
      V s = r ? V::load_n(p.shift + c, lanes) : V::zero();
      if (high == kRows && lanes == W) {
        V v[kRows];
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) v[i] = V::load(x + i * p.pitch + c);
        s = s + ((v[0] + v[1]) + (v[2] + v[3]));
      } else {
        for (int64_t i = 0; i < high; ++i) s = s + V::load_n(x + i * p.pitch + c, lanes);
      }
      if (r + high == p.rows) s = finite_or_zero(s * share);
      s.store_n(p.shift + c, lanes);
    }
  }
  for (int64_t r = 0; r < p.rows; r += kRows) {
    const int64_t high = p.rows - r < kRows ? p.rows - r : kRows;
    const T* x = p.x + r * p.pitch;
    for (int64_t c = 0; c < p.columns; c += W) {
      const int64_t lanes = p.columns - c < W ? p.columns - c : W;
      const V mean = V::load_n(p.shift + c, lanes);
      V s = r ? V::load_n(p.sum + c, lanes) : V::zero(), q = r ? V::load_n(p.square + c, lanes) : V::zero();
      if (high == kRows && lanes == W) {
        V t = V::zero(), u = V::zero();
#pragma GCC unroll 2
        for (int i = 0; i < kRows; i += 2) {
          const V v = V::load(x + i * p.pitch + c) - mean, w = V::load(x + (i + 1) * p.pitch + c) - mean;
          s = s + v, t = t + w;
          q = fma(v, v, q), u = fma(w, w, u);
        }
        s = s + t, q = q + u;
      } else {
        for (int64_t i = 0; i < high; ++i) {
          const V v = V::load_n(x + i * p.pitch + c, lanes) - mean;
          s = s + v, q = fma(v, v, q);
        }
      }
      s.store_n(p.sum + c, lanes);
      q.store_n(p.square + c, lanes);
    }
  }
}

// Rows of one piece each, kTogether at a time: a short row alone would mostly wait for its own sums, of which the next
// step needs the result. Each row's order is the same in any company: one vector of sums, then its lanes.
template <class T, int kTogether>
inline void short_rows(const NormStatsArgs<T>& p, int64_t first) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const T* x = p.x + first * p.step;
  const int64_t step = p.step, columns = p.columns, whole = columns / W * W, tail = columns - whole;
  const T most = sizeof(T) == 4 ? (T)0x1.fffffep127 : (T)0x1.fffffffffffffp1023;
  V s[kTogether], q[kTogether], mean[kTogether];
#pragma GCC unroll 4
  for (int k = 0; k < kTogether; ++k) s[k] = q[k] = V::zero();
  // In the order of memory, which the prefetchers follow: four rows at a time were slower where x came from there.
#pragma GCC unroll 4
  for (int k = 0; k < kTogether; ++k)
    for (int64_t c = 0; c < whole; c += W) s[k] = s[k] + V::load(x + k * step + c);
  if (tail)
#pragma GCC unroll 4
    for (int k = 0; k < kTogether; ++k) s[k] = s[k] + V::load_n(x + k * step + whole, tail);
#pragma GCC unroll 4
  for (int k = 0; k < kTogether; ++k) {
    // As finite_or_zero.
    const T m = s[k].sum() / (T)columns, about = (m < 0 ? -m : m) <= most ? m : (T)0;
    p.shift[first + k] = about;
    mean[k] = V::set1(about);
    s[k] = V::zero();
  }
  auto add = [&](V v, int k) {
    s[k] = s[k] + v;
    q[k] = fma(v, v, q[k]);
  };
  for (int64_t c = 0; c < whole; c += W)
#pragma GCC unroll 4
    for (int k = 0; k < kTogether; ++k) add(V::load(x + k * step + c) - mean[k], k);
  if (tail) {
    T lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = (T)i;
    const auto inside = V::greater(V::set1((T)tail), V::load(lanes));
#pragma GCC unroll 4
    for (int k = 0; k < kTogether; ++k)
      add(V::select(inside, V::load_n(x + k * step + whole, tail) - mean[k], V::zero()), k);
  }
#pragma GCC unroll 4
  for (int k = 0; k < kTogether; ++k) {
    p.sum[first + k] = s[k].sum();
    p.square[first + k] = q[k].sum();
  }
}

template <class T>
void norm_stats(const NormStatsArgs<T>& p) {
  if (p.by_column) return column_stats(p);
  // Longer rows have more sums at a time, which rounds less.
  if (p.rows == 1 && p.columns <= 64 * Vec<T>::kLanes) {
    constexpr int kTogether = 4;
    int64_t i = 0;
    for (; i + kTogether <= p.count; i += kTogether) short_rows<T, kTogether>(p, i);
    for (; i < p.count; ++i) short_rows<T, 1>(p, i);
    return;
  }
  for (int64_t i = 0; i < p.count; ++i)
    block_stats(p.x + i * p.step, p.rows, p.columns, p.pitch, p.shift + i, p.sum + i, p.square + i);
}

// What an activation that is a clamp, or none, clamps to.
template <class V>
inline void clamp_bounds(int32_t activation, typename V::T a, typename V::T b, V& lower, V& upper) {
  using T = typename V::T;
  lower = V::set1(-(T)__builtin_inf()), upper = V::set1((T)__builtin_inf());
  if (activation == 1 || activation == 2) lower = V::zero();
  if (activation == 2) upper = V::set1((T)6);
  if (activation == 11) lower = V::set1(a), upper = V::set1(b);
}

enum class Finish { none, clamp, function };

// kPlain: there is neither weight nor bias.
template <class T, bool kByColumn, Finish kFinish, bool kPlain>
inline void apply_rows(const NormApplyArgs<T> p) {
  using V = Vec<T>;
  V lower, upper;
  clamp_bounds(p.activation, p.a, p.b, lower, upper);
  auto finish = [&](V v, const T* residual, auto get) {
    if (residual) v = v + get(residual);
    if constexpr (kFinish == Finish::none) return v;
    return kFinish == Finish::clamp ? min(upper, max(lower, v)) : activate(p.activation, p.a, p.b, v);
  };
  if constexpr (!kByColumn && kPlain) {
    for (int64_t r = 0; r < p.rows; ++r) {
      const T* x = p.x + r * p.x_pitch;
      const T* residual = p.residual ? p.residual + r * p.residual_pitch : nullptr;
      const V mean = V::set1(p.mean[r]), scale = V::set1(p.scale[r]), offset = V::set1(p.offset[r]);
      auto value = [&](int64_t c, auto get) {
        return finish(fma(get(x + c) - mean, scale, offset), residual ? residual + c : nullptr, get);
      };
      T* y = p.y + r * p.y_pitch;
      if (p.columns < V::kLanes || p.columns > 8 * V::kLanes || p.streaming) {
        write_row<V>(y, p.columns, p.streaming, value);
        continue;
      }
      // Small planes: the last vector overlaps the one before instead of being masked. It is read first, as y may be x.
      auto whole = [](const T* from) { return V::load(from); };
      const V last = value(p.columns - V::kLanes, whole);
      for (int64_t c = 0; c + V::kLanes <= p.columns; c += V::kLanes) value(c, whole).store(y + c);
      last.store(y + p.columns - V::kLanes);
    }
  } else if (kByColumn && kPlain && p.rows < kTileRows) {
    // Too few for a tile: row by row, in the order of memory.
    for (int64_t r = 0; r < p.rows; ++r) {
      const T* x = p.x + r * p.x_pitch;
      const T* residual = p.residual ? p.residual + r * p.residual_pitch : nullptr;
      write_row<V>(p.y + r * p.y_pitch, p.columns, p.streaming, [&](int64_t c, auto get) {
        return finish(fma(get(x + c) - get(p.mean + c), get(p.scale + c), get(p.offset + c)),
                      residual ? residual + c : nullptr, get);
      });
    }
  } else if constexpr (!kByColumn) {
    // Weight and bias are loaded once for a tile of rows, whose norms stay in registers.
    const bool lines = p.streaming && (uintptr_t)p.y % sizeof(V) == 0 && p.y_pitch % V::kLanes == 0;
    auto rows = [&p, lines, finish](int64_t first, auto count) {
      constexpr int kCount = decltype(count)::kValue;
      V mean[kCount], scale[kCount], offset[kCount];
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) {
        mean[k] = V::set1(p.mean[first + k]), scale[k] = V::set1(p.scale[first + k]);
        offset[k] = V::set1(p.offset[first + k]);
        mean[k].pin(), scale[k].pin(), offset[k].pin();
      }
      const T* x = p.x + first * p.x_pitch;
      const T* residual = p.residual ? p.residual + first * p.residual_pitch : nullptr;
      T* y = p.y + first * p.y_pitch;
      const int64_t x_pitch = p.x_pitch, y_pitch = p.y_pitch, residual_pitch = p.residual_pitch;
      auto at = [&](int64_t c, auto get, auto put) {
        const V weight = p.weight ? get(p.weight + c) : V::set1((T)1), bias = p.bias ? get(p.bias + c) : V::zero();
        V v[kCount];
#pragma GCC unroll 4
        for (int k = 0; k < kCount; ++k) {
          v[k] = fma(fma(get(x + k * x_pitch + c) - mean[k], scale[k], offset[k]), weight, bias);
          v[k] = finish(v[k], residual ? residual + k * residual_pitch + c : nullptr, get);
        }
#pragma GCC unroll 4
        for (int k = 0; k < kCount; ++k) put(v[k], y + k * y_pitch + c);
      };
      auto whole = [](const T* from) { return V::load(from); };
      int64_t c = 0;
      if (lines)
        for (; c + V::kLanes <= p.columns; c += V::kLanes) at(c, whole, [](V v, T* to) { v.stream(to); });
      else
        for (; c + V::kLanes <= p.columns; c += V::kLanes) at(c, whole, [](V v, T* to) { v.store(to); });
      const int64_t tail = p.columns - c;
      if (tail)
        at(c, [tail](const T* from) { return V::load_n(from, tail); }, [tail](V v, T* to) { v.store_n(to, tail); });
    };
    int64_t r = 0;
    for (; r + kTileRows <= p.rows; r += kTileRows) rows(r, Count<kTileRows>{});
    for (; r < p.rows; ++r) rows(r, Count<1>{});
  } else {
    write_tile<V>(p.y, p.y_pitch, p.rows, p.columns, p.streaming, [&](int64_t c, auto get) {
      // What belongs to the columns is loaded once for several rows.
      const V first = get(p.mean + c), second = get(p.scale + c), third = get(p.offset + c);
      return [&p, finish, get, c, first, second, third](int64_t r) {
        V v = fma(get(p.x + r * p.x_pitch + c) - first, second, third);
        if (!kPlain && p.weight) v = v * V::set1(p.weight[r]);
        if (!kPlain && p.bias) v = v + V::set1(p.bias[r]);
        return finish(v, p.residual ? p.residual + r * p.residual_pitch + c : nullptr, get);
      };
    });
  }
  if (p.streaming) stream_fence();
}

template <class T, bool kByColumn, bool kPlain>
inline void apply_by(const NormApplyArgs<T>& p) {
  if (p.activation == 0) return apply_rows<T, kByColumn, Finish::none, kPlain>(p);
  const bool clamp = p.activation <= 2 || p.activation == 11;
  clamp ? apply_rows<T, kByColumn, Finish::clamp, kPlain>(p) : apply_rows<T, kByColumn, Finish::function, kPlain>(p);
}

template <class T>
void norm_apply(const NormApplyArgs<T>& p) {
  if (p.weight || p.bias)
    p.by_column ? apply_by<T, true, false>(p) : apply_by<T, false, false>(p);
  else
    p.by_column ? apply_by<T, true, true>(p) : apply_by<T, false, true>(p);
}

// dy where the clamp that made y let it through, else 0. A NaN in y lets it through.
template <class V>
inline V through_clamp(V dy, V y, V lower, V upper) {
  dy = V::select_less_equal(y, lower, V::zero(), dy);
  return V::select_less_equal(upper, y, V::zero(), dy);
}

// Zero in the lanes from n on.
template <class V>
inline V first_lanes(V x, int64_t n) {
  typename V::T all[V::kLanes];
  x.store(all);
  return V::load_n(all, n);
}

template <class T, bool kNormByColumn>
inline void sums_by_row(const NormSumsArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const V lower = V::set1(p.lower), upper = V::set1(p.upper);
  V g[2], gt[2], t[2];
  for (int64_t r = 0; r < p.rows; ++r) {
    if (r == 0 || !p.merge)
      for (int j = 0; j < 2; ++j) g[j] = gt[j] = t[j] = V::zero();
    const T* dy = p.dy + r * p.dy_pitch;
    const T* x = p.x + r * p.x_pitch;
    const T* y = p.y ? p.y + r * p.y_pitch : nullptr;
    const int64_t own = p.merge ? 0 : r;
    const V mean = kNormByColumn ? V::zero() : V::set1(p.mean[own]);
    auto add = [&](int64_t c, int j, auto get) {
      V d = get(dy + c);
      if (y) d = through_clamp(d, get(y + c), lower, upper);
      if (p.weight) d = d * get(p.weight + c);
      V u = get(x + c) - (kNormByColumn ? get(p.mean + c) : mean);
      if (p.scale)
        u = kNormByColumn ? fma(u, get(p.scale + c), get(p.offset + c))
                          : fma(u, V::set1(p.scale[own]), V::set1(p.offset[own]));
      g[j] = g[j] + d;
      gt[j] = fma(d, u, gt[j]);
      return u;
    };
    auto whole = [](const T* from) { return V::load(from); };
    int64_t c = 0;
    for (; c + 2 * W <= p.columns; c += 2 * W)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) t[j] = t[j] + add(c + j * W, j, whole);
    for (; c + W <= p.columns; c += W) t[0] = t[0] + add(c, 0, whole);
    if (c < p.columns) {
      const int64_t lanes = p.columns - c;
      t[1] = t[1] + first_lanes(add(c, 1, [lanes](const T* from) { return V::load_n(from, lanes); }), lanes);
    }
    if (!p.merge || r == p.rows - 1) {
      p.sum_g[own] = (g[0] + g[1]).sum();
      p.sum_gt[own] = (gt[0] + gt[1]).sum();
      p.sum_t[own] = (t[0] + t[1]).sum();
    }
  }
}

template <class T, bool kNormByColumn>
inline void sums_by_column(const NormSumsArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const V lower = V::set1(p.lower), upper = V::set1(p.upper);
  for (int64_t r = 0; r < p.rows; r += kRows) {
    const int64_t high = p.rows - r < kRows ? p.rows - r : kRows;
    for (int64_t c = 0; c < p.columns; c += W) {
      const int64_t lanes = p.columns - c < W ? p.columns - c : W;
      V g = V::zero(), gt = V::zero(), t = V::zero();
      if (r) g = V::load_n(p.sum_g + c, lanes), gt = V::load_n(p.sum_gt + c, lanes), t = V::load_n(p.sum_t + c, lanes);
      V mean = V::zero(), scale = V::zero(), offset = V::zero();
      if (kNormByColumn) mean = V::load_n(p.mean + c, lanes);
      if (kNormByColumn && p.scale) scale = V::load_n(p.scale + c, lanes), offset = V::load_n(p.offset + c, lanes);
      auto add = [&](int64_t i, auto get) {
        V d = get(p.dy + i * p.dy_pitch + c);
        if (p.y) d = through_clamp(d, get(p.y + i * p.y_pitch + c), lower, upper);
        if (p.weight) d = d * V::set1(p.weight[i]);
        V u = get(p.x + i * p.x_pitch + c) - (kNormByColumn ? mean : V::set1(p.mean[i]));
        if (p.scale) u = kNormByColumn ? fma(u, scale, offset) : fma(u, V::set1(p.scale[i]), V::set1(p.offset[i]));
        g = g + d;
        gt = fma(d, u, gt);
        t = t + u;
      };
      auto whole = [](const T* from) { return V::load(from); };
      if (lanes == W && high == kRows)
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) add(r + i, whole);
      else
        for (int64_t i = r; i < r + high; ++i) add(i, [lanes](const T* from) { return V::load_n(from, lanes); });
      g.store_n(p.sum_g + c, lanes);
      gt.store_n(p.sum_gt + c, lanes);
      t.store_n(p.sum_t + c, lanes);
    }
  }
}

template <class T>
void norm_sums(const NormSumsArgs<T>& p) {
  if (p.by_column)
    p.norm_by_column ? sums_by_column<T, true>(p) : sums_by_column<T, false>(p);
  else
    p.norm_by_column ? sums_by_row<T, true>(p) : sums_by_row<T, false>(p);
}

template <class T, bool kByColumn, bool kNeedsX>
inline void gradient_rows(const NormGradientArgs<T> p) {
  using V = Vec<T>;
  const V lower = V::set1(p.lower), upper = V::set1(p.upper);
  if (!kByColumn && !p.weight) {
    for (int64_t r = 0; r < p.rows; ++r) {
      const T* dy = p.dy + r * p.dy_pitch;
      const T* x = kNeedsX ? p.x + r * p.x_pitch : nullptr;
      const T* y = p.y ? p.y + r * p.y_pitch : nullptr;
      V m = V::zero(), a = V::set1(p.a[r]), b = m, k = m;
      if (kNeedsX) m = V::set1(p.mean[r]), b = V::set1(p.b[r]), k = V::set1(p.c[r]);
      write_row<V>(p.dx + r * p.dx_pitch, p.columns, p.streaming, [&](int64_t c, auto get) {
        V d = get(dy + c);
        if (y) d = through_clamp(d, get(y + c), lower, upper);
        return kNeedsX ? fma(a, d, fma(b, get(x + c) - m, k)) : d * a;
      });
    }
  } else {
    write_tile<V>(p.dx, p.dx_pitch, p.rows, p.columns, p.streaming, [&](int64_t c, auto get) {
      V m = V::zero(), a = m, b = m, k = m;
      if (kByColumn) {
        a = get(p.a + c);
        if (kNeedsX) m = get(p.mean + c), b = get(p.b + c), k = get(p.c + c);
      } else {
        a = get(p.weight + c);
      }
      return [&p, lower, upper, get, c, m, a, b, k](int64_t r) {
        V d = get(p.dy + r * p.dy_pitch + c);
        if (p.y) d = through_clamp(d, get(p.y + r * p.y_pitch + c), lower, upper);
        if (kByColumn) {
          if (p.weight) d = d * V::set1(p.weight[r]);
          return kNeedsX ? fma(a, d, fma(b, get(p.x + r * p.x_pitch + c) - m, k)) : d * a;
        }
        d = d * a;
        if (!kNeedsX) return d * V::set1(p.a[r]);
        const V u = get(p.x + r * p.x_pitch + c) - V::set1(p.mean[r]);
        return fma(V::set1(p.a[r]), d, fma(V::set1(p.b[r]), u, V::set1(p.c[r])));
      };
    });
  }
  if (p.streaming) stream_fence();
}

template <class T>
void norm_gradient(const NormGradientArgs<T>& p) {
  if (p.by_column)
    p.x ? gradient_rows<T, true, true>(p) : gradient_rows<T, true, false>(p);
  else
    p.x ? gradient_rows<T, false, true>(p) : gradient_rows<T, false, false>(p);
}

}  // namespace fastconv::FASTCONV_ISA_NS
