// Statistics of blocks, and what normalisation does with them, forward and backward.
//
// Memory bounds most of it, but not by much: with 512-bit vectors Zen 4 reads one from its third-level cache in about 2
// cycles, and has one addition, one multiplication (fused or not) and one load of them a cycle, and a store every
// second. So a pass counts its operations, and its loops keep whatever they use again in registers.
#pragma once
#include "dispatch/kernel_args.h"
#include "kernels/activation.inl.h"
#include "kernels/folded.inl.h"
#include "kernels/stream.inl.h"

namespace fastconv::FASTCONV_ISA_NS {

// The arguments' structs go by value into the loops, and the loops' bodies are always inlined: a store of a vector may
// alias anything that has an address, and what is only referred to would be loaded again after each.
namespace {

// Rows that a sum by column takes at a time: its sums lie in the first-level cache, and are loaded and stored once for
// all of them.
constexpr int kSumRows = 8;
// Short rows of narrow vectors end in one that overlaps the one before instead of in a masked one; up to so many
// vectors, as it is read before the others.
constexpr int kOverlapping = 64;

// A number that a generic function takes.
template <int kNumber>
struct Count {
  static constexpr int kValue = kNumber;
};

// How a vector of a row is read and written: whole, or its first n elements. `plain` reads what does not lie as the row
// does.
template <class V>
struct Whole {
  using T = typename V::T;
  static V get(const T* from) { return V::load(from); }
  static V get(const T* from, V) { return V::load(from); }
  static V plain(const T* from) { return V::load(from); }
  static void put(V v, T* to, bool past) { past ? v.stream(to) : v.store(to); }
};
template <class V>
struct First {
  using T = typename V::T;
  int64_t n;
  V get(const T* from) const { return V::load_n(from, n); }
  // The other lanes are those of `outside`.
  V get(const T* from, V outside) const { return V::load_range(from, V::range(0, n), outside); }
  V plain(const T* from) const { return V::load_n(from, n); }
  void put(V v, T* to, bool) const { v.store_n(to, n); }
};

// NumPy's large arrays begin 16 bytes after a line of memory, fastconv's own at one: vectors of 64 bytes that lie in
// two lines made passes take 1.25 to 1.6 times as long (Zen 4). So what is written, or else what is read, begins with
// the part of a vector that ends at a line. What then still lies across is read as lines, and each vector put together
// of two of them, as the rows of statistics are, whose sums need the same lanes at any address. (Neighbours share a
// line, which the compiler reads once. Nothing is read beyond the line of an element that is.)
template <class V>
concept Shifts = requires { typename V::Shift; };
template <class V>
struct Shifted {
  using T = typename V::T;
  int64_t past;  // elements between the line and the vector, not 0
  typename V::Shift shift;
  V get(const T* from) const { return V::shifted(V::load(from - past), V::load(from - past + V::kLanes), shift); }
  V get(const T* from, V) const { return get(from); }
  static V plain(const T* from) { return V::load(from); }
  static void put(V v, T* to, bool past_caches) { Whole<V>::put(v, to, past_caches); }
};

// Elements between the last line's beginning and p.
template <class V>
inline int64_t past_line(const typename V::T* p) {
  return (int64_t)((uintptr_t)p & (sizeof(V) - 1)) / (int64_t)sizeof(typename V::T);
}
// Elements up to the next line where all rows `pitch` apart begin alike, else 0.
template <class V>
inline int64_t to_line(const typename V::T* p, int64_t rows, int64_t pitch, int64_t n) {
  const int64_t past = past_line<V>(p), head = past ? V::kLanes - past : 0;
  return sizeof(V) < 64 || (rows > 1 && pitch % V::kLanes) || n < 2 * V::kLanes ? 0 : head;
}
// How far all rows of p, and of q where it is given, begin past a line; 0 where they differ.
template <class V>
inline int64_t common_past(int64_t rows, const typename V::T* p, int64_t p_pitch, const typename V::T* q,
                           int64_t q_pitch) {
  if (rows > 1 && (p_pitch % V::kLanes || (q && q_pitch % V::kLanes))) return 0;
  const int64_t past = past_line<V>(p);
  return q && past_line<V>(q) != past ? 0 : past;
}

// Calls body(how) with how whole vectors are read that begin `past` elements after a line.
template <class V, class Body>
inline __attribute__((always_inline)) void by_lines(int64_t past, Body body) {
  if constexpr (Shifts<V>) {
    if (past) return body(Shifted<V>{past, V::shift_by(past)});
  }
  body(Whole<V>{});
}

// Calls at(c, j, how) for the vectors of n columns, four after each other with j = 0, 1, 2, 3. All rows that it reads
// by how.get begin `past` elements after a line.
template <class V, class At>
inline __attribute__((always_inline)) void along(int64_t n, int64_t past, At at) {
  constexpr int W = V::kLanes;
  int64_t c = 0;
  by_lines<V>(past, [&](auto how) __attribute__((always_inline)) {
    for (; c + 4 * W <= n; c += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) at(c + j * W, j, how);
    for (; c + W <= n; c += W) at(c, 0, how);
  });
  if (c < n) at(c, 1, First<V>{n - c});
}

// Calls at(c, how) for the vectors of n columns, of which the first has `head`, and what it reads by how.get begins
// `past` elements after a line from there on: a body that has several rows of them.
template <class V, class At>
inline __attribute__((always_inline)) void across(int64_t n, int64_t head, int64_t past, At at) {
  constexpr int W = V::kLanes;
  int64_t c = 0;
  if (head) at(0, First<V>{head}), c = head;
  by_lines<V>(past, [&](auto how) __attribute__((always_inline)) {
    for (; c + W <= n; c += W) at(c, how);
  });
  if (c < n) at(c, First<V>{n - c});
}
template <class V, class At>
inline __attribute__((always_inline)) void across(int64_t n, int64_t head, At at) {
  constexpr int W = V::kLanes;
  int64_t c = 0;
  if (head) at(0, First<V>{head}), c = head;
  for (; c + W <= n; c += W) at(c, Whole<V>{});
  if (c < n) at(c, First<V>{n - c});
}

// Calls some(r, Count<n>) for all rows, kMost at a time while they last, and then one by one.
template <int kMost, class Some>
inline __attribute__((always_inline)) void by_rows(int64_t rows, Some some) {
  int64_t r = 0;
  for (; r + kMost <= rows; r += kMost) some(r, Count<kMost>{});
  for (; r < rows; ++r) some(r, Count<1>{});
}

// Writes a row of n elements: value(c, how) is its vector from column c on, which reads x and, where it is given, z by
// how.get. Past the caches in whole lines.
template <class V, class Value>
inline __attribute__((always_inline)) void write(typename V::T* y, int64_t n, bool streaming, const typename V::T* x,
                                                 const typename V::T* z, Value value) {
  constexpr int W = V::kLanes;
  int64_t c = 0;
  if (const int64_t past = past_line<V>(y); past && (streaming || (sizeof(V) == 64 && n >= 2 * W))) {
    c = W - past < n ? W - past : n;
    value(0, First<V>{c}).store_n(y, c);
  }
  if (streaming) {
    for (; c + W <= n; c += W) value(c, Whole<V>{}).stream(y + c);
  } else {
    const bool overlapping = sizeof(V) < 64 && n % W != 0 && n > W && n <= kOverlapping * W;
    // It is read first, as y may be x.
    const V last = overlapping ? value(n - W, Whole<V>{}) : V::zero();
    by_lines<V>(common_past<V>(1, x + c, 0, z ? z + c : z, 0), [&](auto how) __attribute__((always_inline)) {
      for (; c + 4 * W <= n; c += 4 * W)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) value(c + j * W, how).store(y + c + j * W);
      for (; c + W <= n; c += W) value(c, how).store(y + c);
    });
    if (overlapping) return last.store(y + n - W);
  }
  if (c < n) value(c, First<V>{n - c}).store_n(y + c, n - c);
}

// Whether all rows begin at a line, so that a tile of them can be written past the caches.
template <class V>
inline bool whole_lines(const typename V::T* y, int64_t pitch, bool streaming) {
  return streaming && (uintptr_t)y % sizeof(V) == 0 && pitch % V::kLanes == 0;
}

template <class T>
constexpr T kLargest = sizeof(T) == 4 ? (T)0x1.fffffep127 : (T)0x1.fffffffffffffp1023;

// The mean that a sum is taken about; 0 where it would turn the sums into NaN that are not.
template <class V>
inline V finite_or_zero(V x) {
  return V::select_less_equal(V::abs(x), V::set1(kLargest<typename V::T>), x, V::zero());
}
template <class T>
  requires(sizeof(T) <= 8)
inline T finite_or_zero(T x) {
  return (x < 0 ? -x : x) <= kLargest<T> ? x : (T)0;
}

// Sums about 0 are half the work of a mean and sums about it, and as good where the mean is at most 1.7 deviations:
// then mean^2 is at most three quarters of the mean square, and the difference has at most two bits less than either.
// Where it is not, or they overflow, a second pass takes the sums about the mean.
template <class T>
constexpr T kShare = (T)0.75;
template <class T>
inline bool keeps_digits(T sum, T mean, T square) {
  return !(sum * mean > kShare<T> * square || square > kLargest<T>);
}

template <class V>
inline typename V::Mask lost_digits(V sum, V mean, V square) {
  using T = typename V::T;
  return V::either(V::greater(sum * mean, V::set1(kShare<T>) * square), V::greater(square, V::set1(kLargest<T>)));
}

}  // namespace

// The vectors of sums of one block, its rows merged, about `mean` or, not kCentred, about 0.
template <class V, bool kCentred>
inline __attribute__((always_inline)) void block_sums(const typename V::T* x, int64_t rows, int64_t columns,
                                                      int64_t pitch, V mean, V* sum, V* square) {
  V s[4], q[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) s[j] = q[j] = V::zero();
  for (int64_t r = 0; r < rows; ++r) {
    const auto* row = x + r * pitch;
    along<V>(columns, past_line<V>(row), [&](int64_t c, int j, auto how) __attribute__((always_inline)) {
      const V v = kCentred ? how.get(row + c, mean) - mean : how.get(row + c);
      s[j] = s[j] + v;
      q[j] = fma(v, v, q[j]);
    });
  }
  *sum = (s[0] + s[1]) + (s[2] + s[3]);
  *square = (q[0] + q[1]) + (q[2] + q[3]);
}

// Where the sums about 0 have lost digits they are taken again.
template <class T>
inline void centre_block(const T* x, int64_t rows, int64_t columns, int64_t pitch, T* shift, T* sum, T* square) {
  using V = Vec<T>;
  const T mean = *sum * ((T)1 / (T)(rows * columns));
  *shift = 0;
  if (keeps_digits(*sum, mean, *square)) return;
  *shift = finite_or_zero(mean);
  V s, q;
  block_sums<V, true>(x, rows, columns, pitch, V::set1(*shift), &s, &q);
  *sum = s.sum(), *square = q.sum();
}

template <class T>
inline void row_stats(const NormStatsArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const T* x = p.x;
  int64_t i = 0;
  // Sums over the lanes would be most of a short row's work: they are taken of W rows together. (Half as many, sum and
  // square in one vector, took a third longer for rows of 96.)
  for (; p.rows == 1 && i + W <= p.count; i += W) {
    T of_s[W * W], of_q[W * W];
    for (int k = 0; k < W; ++k) {
      V s, q;
      block_sums<V, false>(x + (i + k) * p.step, 1, p.columns, p.pitch, V::zero(), &s, &q);
      s.store(of_s + k * W), q.store(of_q + k * W);
    }
    const V s = folded<V, W, 1>(of_s), q = folded<V, W, 1>(of_q), mean = s * V::set1((T)1 / (T)p.columns);
    s.store(p.sum + i), q.store(p.square + i), V::zero().store(p.shift + i);
    if (!V::any(lost_digits(s, mean, q))) continue;
    for (int64_t k = i; k < i + W; ++k)
      centre_block(x + k * p.step, 1, p.columns, p.pitch, p.shift + k, p.sum + k, p.square + k);
  }
  for (; i < p.count; ++i) {
    V s, q;
    block_sums<V, false>(x + i * p.step, p.rows, p.columns, p.pitch, V::zero(), &s, &q);
    p.sum[i] = s.sum(), p.square[i] = q.sum();
    centre_block(x + i * p.step, p.rows, p.columns, p.pitch, p.shift + i, p.sum + i, p.square + i);
  }
}

// The sums of each column about 0, or about what `shift` holds.
template <class T, bool kCentred>
inline void column_stats(const NormStatsArgs<T> p) {
  using V = Vec<T>;
  T *shift = p.shift, *sum = p.sum, *square = p.square;
  across<V>(p.columns, 0, [=](int64_t c, auto how) __attribute__((always_inline)) {
    how.put(V::zero(), sum + c, false), how.put(V::zero(), square + c, false);
  });
  const int64_t pitch = p.pitch, columns = p.columns, head = to_line<V>(p.x, p.rows, pitch, columns);
  by_rows<kSumRows>(p.rows, [=, x = p.x](int64_t r, auto count) __attribute__((always_inline)) {
    constexpr int kCount = decltype(count)::kValue;
    const T* rows = x + r * pitch;
    across<V>(columns, head, [=](int64_t c, auto how) __attribute__((always_inline)) {
      const V about = kCentred ? how.get(shift + c) : V::zero();
      V s[2] = {how.get(sum + c), V::zero()}, q[2] = {how.get(square + c), V::zero()};
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        const V v = kCentred ? how.get(rows + i * pitch + c) - about : how.get(rows + i * pitch + c);
        s[i % 2] = s[i % 2] + v;
        q[i % 2] = fma(v, v, q[i % 2]);
      }
      how.put(s[0] + s[1], sum + c, false), how.put(q[0] + q[1], square + c, false);
    });
  });
}

// Sets `shift` to what each column's sums have to be taken about; false where all are about 0 already. A column's bits
// are its own: about 0, a second pass repeats the first.
template <class T>
inline bool column_shifts(int64_t columns, int64_t rows, const T* sum, const T* square, T* shift) {
  using V = Vec<T>;
  const V share = V::set1((T)1 / (T)rows);
  bool found = false;
  across<V>(columns, 0, [&](int64_t c, auto how) __attribute__((always_inline)) {
    const V s = how.get(sum + c), q = how.get(square + c), mean = s * share;
    const auto lost = lost_digits(s, mean, q);
    how.put(V::select(lost, finite_or_zero(mean), V::zero()), shift + c, false);
    found = found || V::any(lost);
  });
  return found;
}

template <class T>
void norm_stats(const NormStatsArgs<T>& p) {
  if (p.by_column) {
    column_stats<T, false>(p);
    if (column_shifts(p.columns, p.rows, p.sum, p.square, p.shift)) column_stats<T, true>(p);
    return;
  }
  row_stats(p);
}

template <class T>
void norm_finish(const NormFinishArgs<T>& p) {
  using V = Vec<T>;
  const V count = V::set1(p.count), share = V::set1((T)1 / p.count), eps = V::set1(p.eps), one = V::set1((T)1);
  const V half = V::set1((T)0.5);
  T *mean = p.mean, *scale = p.scale, *offset = p.offset, *to_c = p.c, *to_b = p.b, *low = p.low;
  across<V>(p.n, 0, [=](int64_t i, auto how) __attribute__((always_inline)) {
    const V shift = how.get(mean + i), sum = how.get(scale + i), square = how.get(offset + i);
    // shift + sum / count in two numbers: what the quotient leaves, and what the addition does.
    const V e = sum * share, high = shift + e;
    const V rest = fma(fma(V::zero() - e, count, sum), share, (e - (high - shift)));
    const V variance = max(V::zero(), (square - sum * e) * share) + eps;
    // One step of Newton's iteration: the root's and the quotient's roundings go.
    V inv = one / V::sqrt(variance);
    if constexpr (kIntrinsics) {
      const V t = variance * inv;
      const V wrong = fma(V::zero() - t, inv, one) - fma(variance, inv, V::zero() - t) * inv;
      inv = V::select_less_equal(V::abs(wrong), one, fma(inv * half, wrong, inv), inv);
    }
    how.put(high, mean + i, false);
    how.put(inv, scale + i, false);
    how.put(V::zero() - rest * inv, offset + i, false);
    if (!to_c) return;
    const V of_g = how.get(to_c + i), of_gt = fma(V::zero() - e, of_g, how.get(to_b + i));
    how.put(rest, low + i, false);
    how.put((V::zero() - inv * share) * of_g, to_c + i, false);
    how.put((V::zero() - inv * share) * (inv * inv) * of_gt, to_b + i, false);
  });
}

enum class Finish { none, clamp, function };

// What comes after the sum: a clamp, or a function.
template <class V, Finish kFinish>
struct Ending {
  using T = typename V::T;
  V lower, upper;
  int32_t activation;
  T a, b;
  explicit Ending(const NormApplyArgs<T>& p) : activation(p.activation), a(p.a), b(p.b) {
    lower = V::set1(-(T)__builtin_inf()), upper = V::set1((T)__builtin_inf());
    if (activation == 1 || activation == 2) lower = V::zero();
    if (activation == 2) upper = V::set1((T)6);
    if (activation == 11) lower = V::set1(a), upper = V::set1(b);
  }
  V operator()(V v) const {
    if constexpr (kFinish == Finish::none) return v;
    return kFinish == Finish::clamp ? min(upper, max(lower, v)) : activate(activation, a, b, v);
  }
};

// What the norm belongs to, and the weight and bias that the others may have.
enum class Form { rows, columns, rows_weighted, columns_weighted };

// kCount rows side by side: what belongs to the columns is loaded once for them, what belongs to a row stays in
// registers (with four rows weighted by column 12 vectors, and 2 + 4 that pass through; with bounds of a clamp 20).
template <class T, Form kForm, Finish kFinish, bool kResidual, int kCount>
inline __attribute__((always_inline)) void apply_tile(const NormApplyArgs<T> p, int64_t first, bool lines) {
  using V = Vec<T>;
  const Ending<V, kFinish> ending(p);
  const T *x = p.x + first * p.x_pitch, *residual = kResidual ? p.residual + first * p.residual_pitch : nullptr;
  T* y = p.y + first * p.y_pitch;
  const int64_t x_pitch = p.x_pitch, y_pitch = p.y_pitch, residual_pitch = p.residual_pitch;
  const T *means = p.mean, *scales = p.scale, *offsets = p.offset, *weights = p.weight, *biases = p.bias;
  V mean[kCount], scale[kCount], offset[kCount];
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) {
    if constexpr (kForm == Form::rows_weighted) {
      mean[k] = V::set1(means[first + k]), scale[k] = V::set1(scales[first + k]);
      offset[k] = V::set1(offsets[first + k]);
      mean[k].pin(), scale[k].pin(), offset[k].pin();
    } else if constexpr (kForm == Form::columns_weighted) {
      scale[k] = V::set1(weights ? weights[first + k] : (T)1), offset[k] = V::set1(biases ? biases[first + k] : (T)0);
      scale[k].pin(), offset[k].pin();
    }
  }
  const int64_t head = to_line<V>(y, kCount, y_pitch, p.columns);
  // What the columns have of a norm is three loads already.
  const int64_t past = kForm == Form::columns ? 0
                                              : common_past<V>(kCount, x + head, x_pitch,
                                                               kResidual ? residual + head : nullptr, residual_pitch);
  across<V>(p.columns, head, past, [&](int64_t c, auto how) __attribute__((always_inline)) {
    V m = V::zero(), s = V::set1((T)1), o = V::zero(), v[kCount];
    if constexpr (kForm == Form::rows_weighted) {
      if (weights) s = how.plain(weights + c);
      if (biases) o = how.plain(biases + c);
    } else {
      m = how.plain(means + c), s = how.plain(scales + c), o = how.plain(offsets + c);
    }
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) {
      v[k] = how.get(x + k * x_pitch + c);
      if constexpr (kForm == Form::columns)
        v[k] = fma(v[k] - m, s, o);
      else if constexpr (kForm == Form::columns_weighted)
        v[k] = fma(fma(v[k] - m, s, o), scale[k], offset[k]);
      else
        v[k] = fma(fma(v[k] - mean[k], scale[k], offset[k]), s, o);
      if (kResidual) v[k] = v[k] + how.get(residual + k * residual_pitch + c);
      v[k] = ending(v[k]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) how.put(v[k], y + k * y_pitch + c, lines);
  });
}

// Vectors of columns whose norms stay in registers while all rows go past, of 32: 12, or 16 for a gradient, 2 bounds of
// a clamp, and 4 that pass through. In 16 registers some of them are read from the stack.
constexpr int kStrip = 4;
// Only where rows are as short: 1.1 to 1.3 times as fast for 64 channels in float32, but in several strips, each from
// one piece of a row to the next, 0.7 to 0.95 times for 128 to 512.
template <class V>
inline int64_t strip_columns(int64_t rows, int64_t columns) {
  constexpr int kWide = kStrip * V::kLanes;
  return rows < 8 || columns < kWide || columns >= 2 * kWide ? 0 : kWide;
}

template <class T, Finish kFinish, bool kResidual>
inline void apply_strip(const NormApplyArgs<T> p, bool lines) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const Ending<V, kFinish> ending(p);
  V mean[kStrip], scale[kStrip], offset[kStrip];
#pragma GCC unroll 4
  for (int k = 0; k < kStrip; ++k) {
    mean[k] = V::load(p.mean + k * W), scale[k] = V::load(p.scale + k * W);
    offset[k] = V::load(p.offset + k * W);
    if constexpr (sizeof(V) == 64) mean[k].pin(), scale[k].pin(), offset[k].pin();
  }
  const T *x = p.x, *residual = kResidual ? p.residual : nullptr;
  T* y = p.y;
  const int64_t rows = p.rows, x_pitch = p.x_pitch, y_pitch = p.y_pitch, residual_pitch = p.residual_pitch;
  by_lines<V>(common_past<V>(rows, x, x_pitch, residual, residual_pitch), [&](auto how) __attribute__((always_inline)) {
    for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < kStrip; ++k) {
        V v = fma(how.get(x + k * W) - mean[k], scale[k], offset[k]);
        if (kResidual) v = v + how.get(residual + k * W);
        how.put(ending(v), y + k * W, lines);
      }
      x += x_pitch, y += y_pitch;
      if (kResidual) residual += residual_pitch;
    }
  });
}

template <class T, Form kForm, Finish kFinish, bool kResidual>
inline void apply_rows(NormApplyArgs<T> p) {
  using V = Vec<T>;
  if constexpr (kForm == Form::rows) {
    const Ending<V, kFinish> ending(p);
    for (int64_t r = 0; r < p.rows; ++r) {
      const T *x = p.x + r * p.x_pitch, *residual = kResidual ? p.residual + r * p.residual_pitch : nullptr;
      V mean = V::set1(p.mean[r]), scale = V::set1(p.scale[r]), offset = V::set1(p.offset[r]);
      mean.pin(), scale.pin(), offset.pin();
      write<V>(p.y + r * p.y_pitch, p.columns, p.streaming, x, residual,
               [=](int64_t c, auto how) __attribute__((always_inline)) {
                 V v = fma(how.get(x + c) - mean, scale, offset);
                 if (kResidual) v = v + how.get(residual + c);
                 return ending(v);
               });
    }
  } else {
    // Twelve vectors of rows' norms are too many for 16 registers.
    constexpr int kTile = kForm == Form::rows_weighted && sizeof(V) < 64 ? 2 : 4;
    const bool lines = whole_lines<V>(p.y, p.y_pitch, p.streaming);
    if constexpr (kForm == Form::columns) {
      const int64_t wide = strip_columns<V>(p.rows, p.columns);
      if (wide) apply_strip<T, kFinish, kResidual>(p, lines);
      p.x += wide, p.y += wide, p.columns -= wide;
      if (kResidual) p.residual += wide;
      p.mean += wide, p.scale += wide, p.offset += wide;
    }
    by_rows<kTile>(p.rows, [=](int64_t r, auto count) __attribute__((always_inline)) {
      apply_tile<T, kForm, kFinish, kResidual, decltype(count)::kValue>(p, r, lines);
    });
  }
  if (p.streaming) stream_fence();
}

template <class T, Form kForm>
inline void apply_by(const NormApplyArgs<T>& p) {
  const bool clamp = p.activation == 1 || p.activation == 2 || p.activation == 11;
  if (p.residual) {
    if (p.activation == 0) return apply_rows<T, kForm, Finish::none, true>(p);
    clamp ? apply_rows<T, kForm, Finish::clamp, true>(p) : apply_rows<T, kForm, Finish::function, true>(p);
  } else {
    if (p.activation == 0) return apply_rows<T, kForm, Finish::none, false>(p);
    clamp ? apply_rows<T, kForm, Finish::clamp, false>(p) : apply_rows<T, kForm, Finish::function, false>(p);
  }
}

template <class T>
void norm_apply(const NormApplyArgs<T>& p) {
  if (p.weight || p.bias)
    p.by_column ? apply_by<T, Form::columns_weighted>(p) : apply_by<T, Form::rows_weighted>(p);
  else
    p.by_column ? apply_by<T, Form::columns>(p) : apply_by<T, Form::rows>(p);
}

// dy where the clamp that made y let it through, else 0. A NaN in y lets it through.
template <class V>
inline V through_clamp(V dy, V y, V lower, V upper) {
  dy = V::select_less_equal(y, lower, V::zero(), dy);
  return V::select_less_equal(upper, y, V::zero(), dy);
}

// The vectors of sums of a row: g, g * t, t and t^2. Two chains of each hide the latency, as each is added to once in
// two cycles. About a given mean there are 2 additions (x - mean, g) and 2 fused (g * t, t) a vector, about 0 as many
// (g, t and g * t, t^2), and the weight's multiplication.
template <class V>
struct RowSums {
  V g[2], gt[2], t[2], tt[2];
  void clear() {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) g[j] = gt[j] = t[j] = tt[j] = V::zero();
  }
};

template <class V, bool kMasked, bool kOwn, bool kCentred>
inline __attribute__((always_inline)) void add_row(const NormSumsArgs<typename V::T>& p, int64_t r, V mean,
                                                   RowSums<V>& s) {
  using T = typename V::T;
  const V lower = V::set1(p.lower), upper = V::set1(p.upper), one = V::set1((T)1);
  const T *dy = p.dy + r * p.dy_pitch, *x = p.x + r * p.x_pitch, *y = kMasked ? p.y + r * p.y_pitch : nullptr;
  const T* weight = p.weight;
  // Two operands put together of lines gain nothing: they have a multiplication more to share a port with.
  along<V>(p.columns, 0, [&](int64_t c, int j, auto how) __attribute__((always_inline)) {
    V d = how.get(dy + c);
    if (kMasked) d = through_clamp(d, how.get(y + c), lower, upper);
    if (kOwn && weight) d = d * how.get(weight + c);
    const V u = kCentred ? how.get(x + c, mean) - mean : how.get(x + c);
    j %= 2;
    s.g[j] = s.g[j] + d;
    s.gt[j] = fma(d, u, s.gt[j]);
    s.t[j] = kOwn ? s.t[j] + u : fma(u, one, s.t[j]);
    if (kOwn) s.tt[j] = fma(u, u, s.tt[j]);
  });
}

template <class T, bool kMasked>
inline void sums_by_row(const NormSumsArgs<T> p) {
  using V = Vec<T>;
  RowSums<V> s;
  for (int64_t r = 0; r < p.rows; ++r) {
    const int64_t own = p.merge ? 0 : r;
    if (r == 0 || !p.merge) s.clear();
    add_row<V, kMasked, false, true>(p, r, V::set1(p.mean[own]), s);
    if (p.merge && r < p.rows - 1) continue;
    p.sum_g[own] = (s.g[0] + s.g[1]).sum(), p.sum_gt[own] = (s.gt[0] + s.gt[1]).sum();
    p.sum_t[own] = (s.t[0] + s.t[1]).sum();
  }
}

// About a shift of each row's own.
template <class T>
inline void own_sums_by_row(const NormSumsArgs<T> p) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const T share = (T)1 / (T)p.columns;
  auto row = [&](int64_t r, auto centred, V mean) __attribute__((always_inline)) {
    RowSums<V> s;
    s.clear();
    add_row<V, false, true, decltype(centred)::kValue>(p, r, mean, s);
    p.sum_g[r] = (s.g[0] + s.g[1]).sum(), p.sum_gt[r] = (s.gt[0] + s.gt[1]).sum();
    p.sum_t[r] = (s.t[0] + s.t[1]).sum(), p.sum_tt[r] = (s.tt[0] + s.tt[1]).sum();
  };
  auto centre = [&](int64_t r) __attribute__((always_inline)) {
    const T mean = p.sum_t[r] * share;
    p.shift[r] = 0;
    if (keeps_digits(p.sum_t[r], mean, p.sum_tt[r])) return;
    p.shift[r] = finite_or_zero(mean);
    row(r, Count<1>{}, V::set1(p.shift[r]));
  };
  int64_t r = 0;
  // As in row_stats.
  for (; r + W <= p.rows; r += W) {
    T of[4 * W * W];
    for (int k = 0; k < W; ++k) {
      RowSums<V> s;
      s.clear();
      add_row<V, false, true, false>(p, r + k, V::zero(), s);
      (s.g[0] + s.g[1]).store(of + k * W), (s.gt[0] + s.gt[1]).store(of + (W + k) * W);
      (s.t[0] + s.t[1]).store(of + (2 * W + k) * W), (s.tt[0] + s.tt[1]).store(of + (3 * W + k) * W);
    }
    const V t = folded<V, W, 1>(of + 2 * W * W), tt = folded<V, W, 1>(of + 3 * W * W);
    folded<V, W, 1>(of).store(p.sum_g + r), folded<V, W, 1>(of + W * W).store(p.sum_gt + r);
    t.store(p.sum_t + r), tt.store(p.sum_tt + r), V::zero().store(p.shift + r);
    if (!V::any(lost_digits(t, t * V::set1(share), tt))) continue;
    for (int64_t k = r; k < r + W; ++k) centre(k);
  }
  for (; r < p.rows; ++r) row(r, Count<0>{}, V::zero()), centre(r);
}

template <class T, bool kMasked, bool kOwn, bool kCentred>
inline void sums_by_column(const NormSumsArgs<T> p) {
  using V = Vec<T>;
  const V lower = V::set1(p.lower), upper = V::set1(p.upper);
  const T *about = kOwn ? p.shift : p.mean, *weights = p.weight;
  T *sum_g = p.sum_g, *sum_gt = p.sum_gt, *sum_t = p.sum_t, *sum_tt = p.sum_tt;
  const int64_t head = to_line<V>(p.x, p.rows, p.x_pitch, p.columns);
  across<V>(p.columns, 0, [=](int64_t c, auto how) __attribute__((always_inline)) {
    how.put(V::zero(), sum_g + c, false), how.put(V::zero(), sum_gt + c, false), how.put(V::zero(), sum_t + c, false);
    if (kOwn) how.put(V::zero(), sum_tt + c, false);
  });
  by_rows<kSumRows>(p.rows, [=](int64_t r, auto count) __attribute__((always_inline)) {
    constexpr int kCount = decltype(count)::kValue;
    const int64_t dy_pitch = p.dy_pitch, x_pitch = p.x_pitch, y_pitch = p.y_pitch;
    const T *dy = p.dy + r * dy_pitch, *x = p.x + r * x_pitch, *y = kMasked ? p.y + r * y_pitch : nullptr;
    T weight[kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) weight[i] = kOwn && weights ? weights[r + i] : (T)1;
    across<V>(p.columns, head, [=](int64_t c, auto how) __attribute__((always_inline)) {
      const V mean = kCentred ? how.get(about + c) : V::zero();
      V g[2] = {how.get(sum_g + c), V::zero()}, gt[2] = {how.get(sum_gt + c), V::zero()};
      V t[2] = {how.get(sum_t + c), V::zero()}, tt[2] = {kOwn ? how.get(sum_tt + c) : V::zero(), V::zero()};
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        V d = how.get(dy + i * dy_pitch + c);
        if (kMasked) d = through_clamp(d, how.get(y + i * y_pitch + c), lower, upper);
        if (kOwn) d = d * V::set1(weight[i]);
        const V u = kCentred ? how.get(x + i * x_pitch + c) - mean : how.get(x + i * x_pitch + c);
        g[i % 2] = g[i % 2] + d;
        gt[i % 2] = fma(d, u, gt[i % 2]);
        t[i % 2] = t[i % 2] + u;
        if (kOwn) tt[i % 2] = fma(u, u, tt[i % 2]);
      }
      how.put(g[0] + g[1], sum_g + c, false), how.put(gt[0] + gt[1], sum_gt + c, false);
      how.put(t[0] + t[1], sum_t + c, false);
      if (kOwn) how.put(tt[0] + tt[1], sum_tt + c, false);
    });
  });
}

template <class T, bool kMasked>
inline void norm_sums_of(const NormSumsArgs<T>& p) {
  if (p.mean) return p.by_column ? sums_by_column<T, kMasked, false, true>(p) : sums_by_row<T, kMasked>(p);
  if constexpr (!kMasked) {
    if (!p.by_column) return own_sums_by_row(p);
    sums_by_column<T, kMasked, true, false>(p);
    if (column_shifts(p.columns, p.rows, p.sum_t, p.sum_tt, p.shift)) sums_by_column<T, kMasked, true, true>(p);
  }
}

template <class T>
void norm_sums(const NormSumsArgs<T>& p) {
  p.y ? norm_sums_of<T, true>(p) : norm_sums_of<T, false>(p);
}

// kCount rows side by side, by column.
template <class T, bool kMasked, bool kNeedsX, int kCount>
inline __attribute__((always_inline)) void gradient_tile(const NormGradientArgs<T> p, int64_t first, bool lines) {
  using V = Vec<T>;
  const V lower = V::set1(p.lower), upper = V::set1(p.upper);
  const int64_t dy_pitch = p.dy_pitch, x_pitch = p.x_pitch, y_pitch = p.y_pitch, dx_pitch = p.dx_pitch;
  const T *dy = p.dy + first * dy_pitch, *x = kNeedsX ? p.x + first * x_pitch : nullptr;
  const T *y = kMasked ? p.y + first * y_pitch : nullptr, *as = p.a, *bs = p.b, *ks = p.c, *means = p.mean;
  T* dx = p.dx + first * dx_pitch;
  const int64_t head = to_line<V>(dx, kCount, dx_pitch, p.columns);
  const int64_t past = common_past<V>(kCount, dy + head, dy_pitch, kNeedsX ? x + head : nullptr, x_pitch);
  across<V>(p.columns, head, past, [=](int64_t c, auto how) __attribute__((always_inline)) {
    V m = V::zero(), b = m, k = m, v[kCount];
    const V a = how.plain(as + c);
    if (kNeedsX) m = how.plain(means + c), b = how.plain(bs + c), k = how.plain(ks + c);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      V d = how.get(dy + i * dy_pitch + c);
      if (kMasked) d = through_clamp(d, how.plain(y + i * y_pitch + c), lower, upper);
      v[i] = kNeedsX ? fma(a, d, fma(b, how.get(x + i * x_pitch + c) - m, k)) : d * a;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) how.put(v[i], dx + i * dx_pitch + c, lines);
  });
}

template <class T, bool kMasked, bool kNeedsX>
inline void gradient_strip(const NormGradientArgs<T> p, bool lines) {
  using V = Vec<T>;
  constexpr int W = V::kLanes;
  const V lower = V::set1(p.lower), upper = V::set1(p.upper);
  V m[kStrip], a[kStrip], b[kStrip], c[kStrip];
#pragma GCC unroll 4
  for (int k = 0; k < kStrip; ++k) {
    a[k] = V::load(p.a + k * W);
    if constexpr (sizeof(V) == 64) a[k].pin();
    m[k] = b[k] = c[k] = V::zero();
    if constexpr (kNeedsX) {
      m[k] = V::load(p.mean + k * W), b[k] = V::load(p.b + k * W);
      c[k] = V::load(p.c + k * W);
      if constexpr (sizeof(V) == 64) m[k].pin(), b[k].pin(), c[k].pin();
    }
  }
  const int64_t rows = p.rows, dy_pitch = p.dy_pitch, x_pitch = p.x_pitch, y_pitch = p.y_pitch, dx_pitch = p.dx_pitch;
  const T *dy = p.dy, *x = kNeedsX ? p.x : nullptr, *y = kMasked ? p.y : nullptr;
  T* dx = p.dx;
  by_lines<V>(common_past<V>(rows, dy, dy_pitch, x, x_pitch), [&](auto how) __attribute__((always_inline)) {
    for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < kStrip; ++k) {
        V d = how.get(dy + k * W);
        if (kMasked) d = through_clamp(d, how.plain(y + k * W), lower, upper);
        how.put(kNeedsX ? fma(a[k], d, fma(b[k], how.get(x + k * W) - m[k], c[k])) : d * a[k], dx + k * W, lines);
      }
      dy += dy_pitch, dx += dx_pitch;
      if (kNeedsX) x += x_pitch;
      if (kMasked) y += y_pitch;
    }
  });
}

template <class T, bool kMasked, bool kNeedsX>
inline void gradient_rows(NormGradientArgs<T> p) {
  using V = Vec<T>;
  if (p.by_column) {
    const bool lines = whole_lines<V>(p.dx, p.dx_pitch, p.streaming);
    const int64_t wide = strip_columns<V>(p.rows, p.columns);
    if (wide) gradient_strip<T, kMasked, kNeedsX>(p, lines);
    p.dx += wide, p.dy += wide, p.columns -= wide, p.a += wide;
    if (kNeedsX) p.x += wide, p.mean += wide, p.b += wide, p.c += wide;
    if (kMasked) p.y += wide;
    by_rows<4>(p.rows, [=](int64_t r, auto count) __attribute__((always_inline)) {
      gradient_tile<T, kMasked, kNeedsX, decltype(count)::kValue>(p, r, lines);
    });
  } else {
    const V lower = V::set1(p.lower), upper = V::set1(p.upper);
    for (int64_t r = 0; r < p.rows; ++r) {
      const T *dy = p.dy + r * p.dy_pitch, *x = kNeedsX ? p.x + r * p.x_pitch : nullptr;
      const T* y = kMasked ? p.y + r * p.y_pitch : nullptr;
      V m = V::zero(), a = V::set1(p.a[r]), b = m, k = m;
      a.pin();
      if (kNeedsX) {
        m = V::set1(p.mean[r]), b = V::set1(p.b[r]), k = V::set1(p.c[r]);
        m.pin(), b.pin(), k.pin();
      }
      write<V>(p.dx + r * p.dx_pitch, p.columns, p.streaming, dy, x,
               [=](int64_t c, auto how) __attribute__((always_inline)) {
                 V d = how.get(dy + c);
                 if (kMasked) d = through_clamp(d, how.plain(y + c), lower, upper);
                 return kNeedsX ? fma(a, d, fma(b, how.get(x + c) - m, k)) : d * a;
               });
    }
  }
  if (p.streaming) stream_fence();
}

template <class T>
void norm_gradient(const NormGradientArgs<T>& p) {
  if (p.y)
    p.x ? gradient_rows<T, true, true>(p) : gradient_rows<T, true, false>(p);
  else
    p.x ? gradient_rows<T, false, true>(p) : gradient_rows<T, false, false>(p);
}

// kCount rows side by side. Norms by row, of 32 registers: 5 a row that stay (mean, low, scale, b, c), and weight, dw
// and db of the columns and u, e, dx that pass through. Norms by column: weight, dw and db of each row stay, and the
// five of the columns pass through.
//   u = (x - mean) - low;  e = dy * scale;  dx = e * weight + b * u + c;  dw += e * u;  db += dy
template <class T, bool kByColumn, bool kDx, bool kParams, int kCount>
inline __attribute__((always_inline)) void layer_tile(const LayerGradientArgs<T> p, int64_t first, bool lines) {
  using V = Vec<T>;
  const int64_t dy_pitch = p.dy_pitch, x_pitch = p.x_pitch, dx_pitch = p.dx_pitch;
  const T *dy = p.dy + first * dy_pitch, *x = p.x + first * x_pitch, *weights = p.weight;
  const T *means = p.mean, *lows = p.low, *scales = p.scale, *bs = p.b, *ks = p.c;
  T *dx = kDx ? p.dx + first * dx_pitch : nullptr, *dw = p.dw, *db = p.db;
  V mean[kCount], low[kCount], scale[kCount], b[kCount], k[kCount], weight[kCount], of_w[kCount], of_b[kCount];
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    of_w[i] = of_b[i] = V::zero();
    if constexpr (kByColumn) {
      weight[i] = V::set1(weights ? weights[first + i] : (T)1);
      weight[i].pin();
    } else {
      mean[i] = V::set1(means[first + i]), low[i] = V::set1(lows[first + i]), scale[i] = V::set1(scales[first + i]);
      mean[i].pin(), low[i].pin(), scale[i].pin();
      if (kDx) {
        b[i] = V::set1(bs[first + i]), k[i] = V::set1(ks[first + i]);
        b[i].pin(), k[i].pin();
      }
    }
  }
  // By column the sums have to have the same lanes at any address.
  const int64_t head = kByColumn && kParams ? 0 : to_line<V>(kDx ? dx : x, kCount, kDx ? dx_pitch : x_pitch, p.columns);
  const int64_t past = common_past<V>(kCount, x + head, x_pitch, dy + head, dy_pitch);
  across<V>(p.columns, head, past, [&](int64_t c, auto how) __attribute__((always_inline)) {
    V m = V::zero(), l = m, s = m, own_b = m, own_k = m, w = V::set1((T)1), to_w = m, to_b = m, v[kCount];
    if constexpr (kByColumn) {
      m = how.plain(means + c), l = how.plain(lows + c), s = how.plain(scales + c);
      if (kDx) own_b = how.plain(bs + c), own_k = how.plain(ks + c);
    } else {
      if (weights) w = how.plain(weights + c);
      if (kParams) to_w = how.plain(dw + c), to_b = how.plain(db + c);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const V d = how.get(dy + i * dy_pitch + c), from = how.get(x + i * x_pitch + c);
      const V u = kByColumn ? (from - m) - l : (from - mean[i]) - low[i], e = d * (kByColumn ? s : scale[i]);
      if constexpr (kDx) {
        if constexpr (kByColumn)
          v[i] = fma(e, weight[i], fma(own_b, u, own_k));
        else
          v[i] = fma(e, w, fma(b[i], u, k[i]));
      }
      if constexpr (kParams) {
        if constexpr (kByColumn)
          of_w[i] = fma(e, u, of_w[i]), of_b[i] = of_b[i] + d;
        else
          to_w = fma(e, u, to_w), to_b = to_b + d;
      }
    }
    if constexpr (kDx)
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) how.put(v[i], dx + i * dx_pitch + c, lines);
    if constexpr (kParams && !kByColumn) how.put(to_w, dw + c, false), how.put(to_b, db + c, false);
  });
  if constexpr (kParams && kByColumn)
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) dw[first + i] = of_w[i].sum(), db[first + i] = of_b[i].sum();
}

template <class T, bool kByColumn, bool kDx, bool kParams>
inline void layer_rows(const LayerGradientArgs<T> p) {
  using V = Vec<T>;
  // Twenty vectors of rows' norms are too many for 16 registers.
  constexpr int kTile = sizeof(V) < 64 ? 2 : 4;
  const bool lines = kDx && whole_lines<V>(p.dx, p.dx_pitch, p.streaming);
  by_rows<kTile>(p.rows, [=](int64_t r, auto count) __attribute__((always_inline)) {
    layer_tile<T, kByColumn, kDx, kParams, decltype(count)::kValue>(p, r, lines);
  });
  if (lines) stream_fence();
}

template <class T, bool kByColumn>
inline void layer_by(const LayerGradientArgs<T>& p) {
  if (!p.dw) return layer_rows<T, kByColumn, true, false>(p);
  p.dx ? layer_rows<T, kByColumn, true, true>(p) : layer_rows<T, kByColumn, false, true>(p);
}

template <class T>
void layer_gradient(const LayerGradientArgs<T>& p) {
  p.by_column ? layer_by<T, true>(p) : layer_by<T, false>(p);
}

}  // namespace fastconv::FASTCONV_ISA_NS
