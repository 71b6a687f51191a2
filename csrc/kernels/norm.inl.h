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

template <class T>
void norm_stats(const NormStatsArgs<T>& p) {
  if (p.by_column) return column_stats(p);
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

// kClamp: the activation is a clamp or none. kPlain: there is neither weight nor bias.
template <class T, bool kByColumn, bool kClamp, bool kPlain>
inline void apply_rows(const NormApplyArgs<T> p) {
  using V = Vec<T>;
  V lower, upper;
  clamp_bounds(p.activation, p.a, p.b, lower, upper);
  auto finish = [&](V v, const T* residual, auto get) {
    if (residual) v = v + get(residual);
    return kClamp ? min(upper, max(lower, v)) : activate(p.activation, p.a, p.b, v);
  };
  if constexpr (!kByColumn && kPlain) {
    for (int64_t r = 0; r < p.rows; ++r) {
      const T* x = p.x + r * p.x_pitch;
      const T* residual = p.residual ? p.residual + r * p.residual_pitch : nullptr;
      const V mean = V::set1(p.mean[r]), scale = V::set1(p.scale[r]), offset = V::set1(p.offset[r]);
      write_row<V>(p.y + r * p.y_pitch, p.columns, p.streaming, [&](int64_t c, auto get) {
        return finish(fma(get(x + c) - mean, scale, offset), residual ? residual + c : nullptr, get);
      });
    }
  } else {
    write_tile<V>(p.y, p.y_pitch, p.rows, p.columns, p.streaming, [&](int64_t c, auto get) {
      // What belongs to the columns is loaded once for several rows.
      V first = V::zero(), second = first, third = first;
      if (kByColumn) {
        first = get(p.mean + c), second = get(p.scale + c), third = get(p.offset + c);
      } else {
        if (p.weight) first = get(p.weight + c);
        if (p.bias) second = get(p.bias + c);
      }
      return [&p, finish, get, c, first, second, third](int64_t r) {
        const V x = get(p.x + r * p.x_pitch + c);
        V v;
        if (kByColumn)
          v = fma(x - first, second, third);
        else
          v = fma(x - V::set1(p.mean[r]), V::set1(p.scale[r]), V::set1(p.offset[r]));
        if (!kPlain && p.weight) v = v * (kByColumn ? V::set1(p.weight[r]) : first);
        if (!kPlain && p.bias) v = v + (kByColumn ? V::set1(p.bias[r]) : second);
        return finish(v, p.residual ? p.residual + r * p.residual_pitch + c : nullptr, get);
      };
    });
  }
  if (p.streaming) stream_fence();
}

template <class T, bool kByColumn>
inline void apply_by(const NormApplyArgs<T>& p) {
  const bool clamp = p.activation <= 2 || p.activation == 11;
  if (!p.weight && !p.bias)
    clamp ? apply_rows<T, kByColumn, true, true>(p) : apply_rows<T, kByColumn, false, true>(p);
  else
    clamp ? apply_rows<T, kByColumn, true, false>(p) : apply_rows<T, kByColumn, false, false>(p);
}

template <class T>
void norm_apply(const NormApplyArgs<T>& p) {
  p.by_column ? apply_by<T, true>(p) : apply_by<T, false>(p);
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
