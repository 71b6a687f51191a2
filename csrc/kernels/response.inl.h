// Local response normalisation for the exponent 3/4, forward and backward, in both memory orders.
//
// d^-3/4 bounds it: two square roots and a division are 27 cycles of a 512-bit vector (Zen 4), two estimates of the
// reciprocal root and a step of third order 11 operations.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/norm.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
namespace {

// d^-3/4, and 1 / d where a gradient wants it.
template <class V>
struct Powers {
  V power, inverse;
};

template <class V>
inline Powers<V> powers_by_roots(V d) {
  const V one = V::set1((typename V::T)1), root = V::sqrt(d);
  return {one / (root * V::sqrt(root)), one / d};
}

// From estimates r of d^-1/2 and s of r^-1/2 comes y = r^2 * s, off by less than 2^-9.8; with e = 1 - d^3 * y^4 the
// power is y * (1 - e)^-1/4 = y * (1 + e / 4 + 5 / 32 * e^2 + ...), and what is left out less than 2^-26.
template <class V>
inline __attribute__((always_inline)) Powers<V> powers(V d) {
  using T = typename V::T;
  if constexpr (kIntrinsics && sizeof(T) == 4) {
    const V one = V::set1(1), r = V::rsqrt_estimate(d), y = r * r * V::rsqrt_estimate(r);
    const V z = y * y * d, e = fma(V::zero() - z, z * d, one);
    const V p = fma(y * e, fma(e, V::set1((T)0.15625), V::set1((T)0.25)), y), root = p * p * d;
    // Where a product may leave the range of normal numbers.
    const auto far = V::either(V::greater(V::set1((T)0x1p-40), d), V::greater(d, V::set1((T)0x1p40)));
    if (__builtin_expect(!V::any(far), 1)) return {p, root * root};
    const Powers<V> exact = powers_by_roots(d);
    return {V::select(far, exact.power, p), V::select(far, exact.inverse, root * root)};
  } else {
    return powers_by_roots(d);
  }
}

// What a gradient needs of a channel: dy * d^-3/4, and of that times x / d, which its neighbours sum.
template <class V>
inline __attribute__((always_inline)) void response_share(V x, V dy, V d, V* own, V* share) {
  const Powers<V> p = powers(d);
  *own = dy * p.power;
  *share = *own * x * p.inverse;
}

}  // namespace

// Columns of a strip whose channels are walked together: of each ring, a row a channel of the window, they lie in the
// first-level cache.
// kSize: the window, or 0 for any; the usual one has no loop.
template <class T, int kSize>
inline void response_planes(const ResponseArgs<T> p) {
  using V = Vec<T>;
  constexpr int64_t kWide = kResponseColumns;
  const int64_t before = p.before, after = p.after, size = kSize ? kSize : before + after + 1, channels = p.rows,
                n = p.columns;
  const V factor = V::set1(p.factor), k = V::set1(p.k), minus = V::set1(-p.gradient);
  T *squares = p.scratch, *shares = squares + size * kWide, *owns = shares + size * kWide;
  const bool backward = p.dy != nullptr;
  for (int64_t i = 0; i < (backward ? 2 : 1) * size * kWide; i += V::kLanes) V::zero().store(squares + i);
  // Squares are `after` channels ahead of the powers, and these `before` ahead of a gradient.
  for (int64_t c = -after; c < channels + (backward ? before : 0); ++c) {
    const bool more = c + after < channels;
    const T* ahead = p.x + (more ? c + after : 0) * p.x_pitch;
    T* square = squares + (c + after) % size * kWide;
    if (c < 0) {
      across<V>(n, 0, [=](int64_t i, auto how) __attribute__((always_inline)) {
        const V v = more ? how.get(ahead + i) : V::zero();
        (v * v).store(square + i);
      });
      continue;
    }
    const T *other0 = squares + (c + after + 1) % 5 * kWide, *other1 = squares + (c + after + 2) % 5 * kWide;
    const T *other2 = squares + (c + after + 3) % 5 * kWide, *other3 = squares + (c + after + 4) % 5 * kWide;
    auto denominator = [=](int64_t i, auto how) __attribute__((always_inline)) {
      const V v = more ? how.get(ahead + i) : V::zero();
      V sum = v * v;
      sum.store(square + i);
      if constexpr (kSize == 5) {
        sum = (sum + (V::load(other0 + i) + V::load(other1 + i))) + (V::load(other2 + i) + V::load(other3 + i));
      } else {
        const T* end = squares + size * kWide + i;
        for (const T* from = squares + i; from < square; from += kWide) sum = sum + V::load(from);
        for (const T* from = square + kWide + i; from < end; from += kWide) sum = sum + V::load(from);
      }
      return fma(sum, factor, k);
    };
    if (!backward) {
      const T* x = p.x + c * p.x_pitch;
      T* y = p.y + c * p.y_pitch;
      across<V>(n, 0, [=](int64_t i, auto how) __attribute__((always_inline)) {
        how.put(how.get(x + i) * powers(denominator(i, how)).power, y + i, false);
      });
      continue;
    }
    T *share = shares + c % size * kWide, *own = owns + c % size * kWide;
    if (c < channels) {
      const T *x = p.x + c * p.x_pitch, *dy = p.dy + c * p.dy_pitch;
      across<V>(n, 0, [=](int64_t i, auto how) __attribute__((always_inline)) {
        V a, b;
        response_share(how.get(x + i), how.get(dy + i), denominator(i, how), &a, &b);
        a.store(own + i), b.store(share + i);
      });
    } else {
      for (int64_t i = 0; i < kWide; i += V::kLanes) V::zero().store(share + i);
    }
    // The windows that hold a channel are those of the channels that lie as far on its other side.
    const int64_t result = c - before;
    if (result < 0) continue;
    const T *x = p.x + result * p.x_pitch, *from_own = owns + result % size * kWide;
    T* y = p.y + result * p.y_pitch;
    across<V>(n, 0, [=](int64_t i, auto how) __attribute__((always_inline)) {
      V sum = V::load(shares + i);
      if constexpr (kSize == 5) {
        sum = (sum + V::load(shares + kWide + i)) +
              (V::load(shares + 2 * kWide + i) + V::load(shares + 3 * kWide + i)) + V::load(shares + 4 * kWide + i);
      } else {
        for (int64_t j = 1; j < size; ++j) sum = sum + V::load(shares + j * kWide + i);
      }
      how.put(fma(minus * how.get(x + i), sum, V::load(from_own + i)), y + i, false);
    });
  }
}

// Pixels that are walked together: by the time that a gradient reads what was stored, in pieces that no one store
// holds, it has reached the cache.
constexpr int kResponseRows = 4;

template <class T, int kSize>
inline void response_rows(const ResponseArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const int64_t before = p.before, after = p.after, size = kSize ? kSize : before + after + 1, channels = p.columns;
  const V factor = V::set1(p.factor), k = V::set1(p.k), minus = V::set1(-p.gradient);
  // Of each pixel: zeros on both sides of the shares, since sums reach beyond the channels, and own values.
  const int64_t room = channels + size + 2 * W;
  T *shares = p.scratch, *owns = shares + kResponseRows * room;
  auto denominator = [=](const T* x, int64_t c) __attribute__((always_inline)) {
    V sum = V::zero();
    const bool inside = c >= before && c + W + after <= channels;
    if (kSize == 5 && inside) {
      const T* from = x + c - before;
      const V a = V::load(from), b = V::load(from + 1), m = V::load(from + 2), d = V::load(from + 3),
              e = V::load(from + 4);
      sum = fma(a, a, b * b) + fma(e, e, fma(m, m, d * d));
    } else if (inside) {
      for (int64_t j = -before; j <= after; ++j) {
        const V v = V::load(x + c + j);
        sum = fma(v, v, sum);
      }
    } else {
      for (int64_t j = -before; j <= after; ++j) {
        const int64_t low = -(c + j), high = channels - (c + j);
        if (high <= 0 || low >= W) continue;
        const V v = V::load_range(x + c + j, V::range(low > 0 ? low : 0, high < W ? high : W));
        sum = fma(v, v, sum);
      }
    }
    return fma(sum, factor, k);
  };
  if (!p.dy) {
    for (int64_t r = 0; r < p.rows; ++r) {
      const T* x = p.x + r * p.x_pitch;
      T* y = p.y + r * p.y_pitch;
      across<V>(channels, 0, [=](int64_t c, auto how) __attribute__((always_inline)) {
        how.put(how.get(x + c) * powers(denominator(x, c)).power, y + c, false);
      });
    }
    return;
  }
  for (int64_t i = 0; i < kResponseRows * room; ++i) shares[i] = 0;
  for (int64_t r = 0; r < p.rows; r += kResponseRows) {
    const int64_t high = p.rows - r < kResponseRows ? p.rows - r : kResponseRows;
    for (int64_t q = 0; q < high; ++q) {
      const T *x = p.x + (r + q) * p.x_pitch, *dy = p.dy + (r + q) * p.dy_pitch;
      T *own = owns + q * room, *share = shares + q * room + after;
      across<V>(channels, 0, [=](int64_t c, auto how) __attribute__((always_inline)) {
        V a, b;
        response_share(how.get(x + c), how.get(dy + c), denominator(x, c), &a, &b);
        how.put(a, own + c, false), how.put(b, share + c, false);
      });
    }
    for (int64_t q = 0; q < high; ++q) {
      const T *x = p.x + (r + q) * p.x_pitch, *own = owns + q * room, *share = shares + q * room;
      T* y = p.y + (r + q) * p.y_pitch;
      across<V>(channels, 0, [=](int64_t c, auto how) __attribute__((always_inline)) {
        V sum = V::load(share + c);
        for (int64_t j = 1; j < size; ++j) sum = sum + V::load(share + c + j);
        how.put(fma(minus * how.get(x + c), sum, how.get(own + c)), y + c, false);
      });
    }
  }
}

template <class T>
void response(const ResponseArgs<T>& p) {
  if (p.before == 2 && p.after == 2)
    p.by_column ? response_planes<T, 5>(p) : response_rows<T, 5>(p);
  else
    p.by_column ? response_planes<T, 0>(p) : response_rows<T, 0>(p);
}

}  // namespace fastconv::FASTCONV_ISA_NS
