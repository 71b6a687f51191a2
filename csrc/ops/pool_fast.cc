// The vector paths of pooling, for images whose channels are innermost in memory and for planar ones.
//
// Both come down to lists of runs that are combined element by element (PoolArgs). With channels innermost a run is the
// channels of a pixel, and the pixels of a row are the kernel's rows. In planar images a run is a row: the rows of a
// window are combined first, into lines of a buffer in the first-level cache with the padding around them, and the
// columns after that. What a stride takes apart is split by its residue, so that neighbours stay neighbours.
//
// Gradients are gathered. The windows around a tile of dx are first written down ("staged") in scratch memory: of a
// maximum the code of the tap that won, of an average the share of each tap, where shares differ. Each element then
// adds up, over the few windows that cover it, in their order. Tiles recompute the windows at their edges.
#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>

#include "dispatch/kernel_table.h"
#include "ops/memory.h"
#include "ops/parallel.h"
#include "ops/path.h"
#include "ops/pool.h"

namespace fastconv::ops {
namespace {

// parallel_for for tasks with scratch memory, which may be missing.
template <class F>
Status for_tasks(int64_t tasks, double work, int64_t scratch_bytes, F f) {
  std::atomic<bool> failed{false};
  const Status s = parallel_for(tasks, work, [&](int64_t task, int) {
    Workspace scratch(static_cast<size_t>(scratch_bytes));
    if (scratch) {
      f(task, scratch.data());
    } else {
      failed.store(true, std::memory_order_relaxed);
    }
  });
  if (s != Status::ok) return s;
  return failed.load(std::memory_order_relaxed) ? Status::out_of_memory : Status::ok;
}

constexpr int64_t kTaskTerms = 1 << 20;  // of a task: about a millisecond
constexpr int64_t kLine = 2048;  // elements of the planar buffer, in the first-level cache
constexpr int64_t kStage = 1 << 15;  // elements of a staged tile
constexpr int64_t kSlack = 64;  // what kernels may read past a line
constexpr int64_t kChain = 256;  // terms of a sum in the dtype; longer ones are joined in double
constexpr int64_t kMostStaged = 1 << 20;  // bytes of a staged tile: windows that a tile of one row needs may be more
constexpr const char* kStagedTooLarge = "the windows around a tile of dx take more than 1 MB";

template <class T>
constexpr bool kFloat = std::is_floating_point_v<T>;

template <class T>
constexpr int32_t dtype_code() {
  if constexpr (std::is_same_v<T, int8_t>) return static_cast<int32_t>(DType::i8);
  if constexpr (std::is_same_v<T, uint8_t>) return static_cast<int32_t>(DType::u8);
  if constexpr (std::is_same_v<T, int16_t>) return static_cast<int32_t>(DType::i16);
  if constexpr (std::is_same_v<T, int32_t>) return static_cast<int32_t>(DType::i32);
  return static_cast<int32_t>(DType::i64);
}

template <class T>
void combine(Isa isa, const PoolArgs<T>& a) {
  if constexpr (kFloat<T>) {
    kernel_table<T>(isa).pool_combine(a);
  } else {
    kernel_table<float>(isa).pool_integers(&a, dtype_code<T>());
  }
}

template <class T>
void slide(Isa isa, const PoolArgs<T>& a) {
  if constexpr (kFloat<T>) {
    kernel_table<T>(isa).pool_slide(a);
  } else {
    kernel_table<float>(isa).pool_integers(&a, dtype_code<T>());
  }
}

template <class T>
T identity(const Pool& p) {
  if (p.kind != PoolKind::max) return T{0};
  if constexpr (kFloat<T>) return -std::numeric_limits<T>::infinity();
  return std::numeric_limits<T>::lowest();
}

// The windows [begin, end) of an axis that lie inside the image with all their taps.
Range inner(const Axis& a) {
  const int64_t begin = (a.pad + a.stride - 1) / a.stride;
  const int64_t last = a.in - 1 - (a.kernel - 1) * a.dilation + a.pad;  // the last beginning, padded
  const int64_t end = last < 0 ? 0 : last / a.stride + 1;
  return {std::min(begin, a.out), std::max(std::min(begin, a.out), std::min(end, a.out))};
}

bool same_divisor(const Pool& p) {
  if (p.divisor) return true;
  for (const Axis& a : p.axis) {
    const bool whole = (a.out - 1) * a.stride + a.kernel <= a.in + (p.count_include_pad ? a.pad_after + a.pad : 0);
    if (a.adaptive || !whole || (!p.count_include_pad && a.pad > 0)) return false;
  }
  return true;
}

// How a sum ends: an average divides, a norm takes the root of the mean times the kernel's size.
template <class T>
void set_finish(const Pool& p, int64_t divisor, PoolArgs<T>* a) {
  a->finish = kPoolPlain, a->divisor = T{1};
  if constexpr (kFloat<T>) {
    if (p.kind == PoolKind::max) return;
    if (p.kind == PoolKind::average) {
      a->finish = kPoolDivide, a->divisor = static_cast<T>(divisor);
    } else if (p.norm == 2) {
      a->finish = kPoolRoot, a->divisor = static_cast<T>(p.taps()) / static_cast<T>(divisor);
    } else if (divisor != p.taps()) {
      a->finish = kPoolDivide, a->divisor = static_cast<T>(divisor) / static_cast<T>(p.taps());
    }
  }
}

int32_t op_of(const Pool& p) {
  return p.kind == PoolKind::max ? kPoolMax : p.kind == PoolKind::lp && p.norm == 2 ? kPoolSquares : kPoolSum;
}

// The rows of windows (od, oh): pointers and, as codes, the number of the first tap of each.
template <class T>
struct RowList {
  const T* row[kPoolTaps];
  int64_t code[kPoolTaps], flat[kPoolTaps];  // flat: position of the row's first column in the image
  int64_t count;
};

template <class T>
void list_rows(const Pool& p, const T* image, const Strides& s, int64_t od, int64_t oh, RowList<T>* list) {
  const Window d = p.axis[0].window(od), h = p.axis[1].window(oh);
  list->count = 0;
  for (int64_t i = 0; i < d.count; ++i)
    for (int64_t j = 0; j < h.count; ++j) {
      const int64_t z = d.first + i * p.axis[0].dilation, r = h.first + j * p.axis[1].dilation;
      list->row[list->count] = image + z * s.s[0] + r * s.s[1];
      list->flat[list->count] = (z * p.axis[1].in + r) * p.axis[2].in;
      list->code[list->count++] = ((d.tap + i) * p.axis[1].kernel + h.tap + j) * p.axis[2].kernel;
    }
}

// Calls f(q, count) for runs of columns in [q0, q1) that one call may serve: those with all their taps, and each other.
template <class F>
void for_columns(const Axis& a, int64_t q0, int64_t q1, F f) {
  Range whole = a.adaptive ? Range{q1, q1} : inner(a);
  whole.begin = std::clamp(whole.begin, q0, q1), whole.end = std::clamp(whole.end, whole.begin, q1);
  for (int64_t q = q0; q < whole.begin; ++q) f(q, int64_t{1});
  if (whole.end > whole.begin) f(whole.begin, whole.end - whole.begin);
  for (int64_t q = whole.end; q < q1; ++q) f(q, int64_t{1});
}

// --- channels innermost ----------------------------------------------------------------------------------------

// The pointers to the taps of window (rows, q), and their codes.
template <class T>
int64_t list_taps(const Axis& w, const RowList<T>& rows, int64_t q, int64_t pixel, const T** taps, T* codes,
                  int64_t* flat) {
  const Window x = w.window(q);
  int64_t n = 0;
  for (int64_t i = 0; i < rows.count; ++i)
    for (int64_t k = 0; k < x.count; ++k) {
      const int64_t column = x.first + k * w.dilation;
      taps[n] = rows.row[i] + column * pixel;
      if (codes) codes[n] = static_cast<T>(rows.code[i] + x.tap + k);
      if (flat) flat[n] = rows.flat[i] + column;
      ++n;
    }
  return n;
}

// A window too large for one list of taps: sums of columns joined in double, or maxima in several calls.
template <class T>
void large_window(const Pool& p, Isa isa, const T* image, const Strides& s, const Window& d, const Window& h,
                  const Window& w, int64_t divisor, T* y) {
  if (p.kind == PoolKind::max) {
    const T* taps[kPoolTaps];
    PoolArgs<T> a{};
    a.src = taps, a.n = p.C, a.rows = 1, a.dst = y, a.op = kPoolMax, a.divisor = T{1};
    auto flush = [&] {
      if (a.count) combine(isa, a), a.accumulate = 1;
      a.count = 0;
    };
    for (int64_t i = 0; i < d.count; ++i)
      for (int64_t j = 0; j < h.count; ++j)
        for (int64_t k = 0; k < w.count; ++k) {
          taps[a.count++] = image + (d.first + i * p.axis[0].dilation) * s.s[0] +
                            (h.first + j * p.axis[1].dilation) * s.s[1] + (w.first + k * p.axis[2].dilation) * s.s[2];
          if (a.count == kPoolTaps) flush();
        }
    return flush();
  }
  if constexpr (kFloat<T>) {
    constexpr int64_t kBlock = 64;
    constexpr int64_t kRun = 16;  // terms of a chain: like numbers round to one side, and more would show
    const KernelTable<T>& kernels = kernel_table<T>(isa);
    for (int64_t c = 0; c < p.C; c += kBlock) {
      const int64_t channels = std::min(kBlock, p.C - c);
      Sum total[kBlock];
      T part[kBlock];
      for (int64_t i = 0; i < d.count; ++i)
        for (int64_t j = 0; j < h.count; ++j)
          for (int64_t k = 0; k < w.count; k += kRun) {
            const T* row = image + (d.first + i) * s.s[0] + (h.first + j) * s.s[1] + (w.first + k) * s.s[2] + c;
            kernels.sum_columns(part, row, std::min(kRun, w.count - k), s.s[2], channels);
            for (int64_t l = 0; l < channels; ++l) total[l].add(static_cast<double>(part[l]));
          }
      for (int64_t l = 0; l < channels; ++l) y[c + l] = static_cast<T>(total[l].value()) / static_cast<T>(divisor);
    }
  }
}

template <class T>
class ChannelsForward {
 public:
  ChannelsForward(const Pool& p, const T* x, const Strides& xs, T* y, const Strides& ys, int64_t* indices,
                  const Strides& is)
      : p_(p), x_(x), y_(y), indices_(indices), xs_(xs), ys_(ys), is_(is), isa_(current_isa()) {}

  const char* path() const { return split_ ? "rows, then columns; lanes of channels" : "windows; lanes of channels"; }

  // Why it does not serve the layer; the rest may be called only where it does.
  const char* prepare() {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const int64_t rows = p_.axis[0].kernel * h.kernel, taps = p_.taps();
    const bool long_sum = p_.kind != PoolKind::max && taps > kChain;
    const bool sliding = !p_.axis[0].adaptive && !h.adaptive && !w.adaptive;
    if (indices_ && !kFloat<T>) return "indices of integers are wanted";
    if (indices_ && taps > kPoolTaps) return "indices are wanted, and windows have more taps than a list";
    if (long_sum && p_.kind == PoolKind::lp) return "the sums of a norm are too long for the dtype";
    // Rows first, then columns: an input column costs rows loads and a store, an output column w.kernel loads more.
    const bool split_pays = w.stride * (rows + 1) + w.kernel < rows * w.kernel || taps > kPoolTaps;
    split_ = sliding && !indices_ && !long_sum && rows <= kPoolTaps && w.kernel <= kPoolTaps && split_pays;
    if (p_.kind == PoolKind::lp && taps > kPoolTaps && !split_) return "windows have more taps than a list";
    columns_ = std::max<int64_t>(1, std::min(w.out, kTaskTerms / std::max<int64_t>(1, p_.C * taps)));
    int64_t reach = 0;
    if (split_) {
      reach = (w.kernel - 1) * w.dilation + 1;
      columns_ = std::min(columns_, std::max<int64_t>(4, (2 * kLine / p_.C - reach) / w.stride + 1));
      if (((columns_ - 1) * w.stride + reach) * p_.C > 16 * kLine) return "a window's columns overflow the buffer";
    }
    step_ = std::clamp<int64_t>(kTaskTerms / (columns_ * p_.C * taps), 1, h.out);
    across_ = (w.out + columns_ - 1) / columns_, down_ = (h.out + step_ - 1) / step_;
    scratch_ = split_ ? ((columns_ - 1) * w.stride + reach) * p_.C : indices_ ? columns_ * p_.C : 1;
    return nullptr;
  }
  int64_t tasks() const { return p_.N * p_.axis[0].out * down_ * across_; }
  int64_t scratch() const { return scratch_; }  // elements that one task takes
  int64_t bytes() const { return scratch_ * static_cast<int64_t>(sizeof(T)); }

  void task(int64_t task, T* buffer) {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const int64_t q0 = task % across_ * columns_, q1 = std::min(w.out, q0 + columns_);
    const int64_t h0 = task / across_ % down_ * step_, h1 = std::min(h.out, h0 + step_);
    const int64_t plane = task / across_ / down_, n = plane / p_.axis[0].out, od = plane % p_.axis[0].out;
    for (int64_t oh = h0; oh < h1; ++oh) {
      if (split_) {
        split_row(n, od, oh, q0, q1, buffer);
      } else {
        row(n, od, oh, q0, q1, buffer);
      }
    }
  }

  Status run() {
    const int64_t rows = p_.axis[0].kernel * p_.axis[1].kernel;
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.out_pixels()) *
                        static_cast<double>(std::min(p_.taps(), rows + p_.axis[2].kernel)) * 0.1;
    return for_tasks(tasks(), work, bytes(), [&](int64_t i, void* memory) { task(i, static_cast<T*>(memory)); });
  }

 private:
  T* target(int64_t n, int64_t od, int64_t oh, int64_t q) const {
    return y_ + n * ys_.n + od * ys_.s[0] + oh * ys_.s[1] + q * ys_.s[2];
  }

  void fill(T* to, T value) const { std::fill_n(to, p_.C, value); }

  void row(int64_t n, int64_t od, int64_t oh, int64_t q0, int64_t q1, T* codes) {
    const Axis& w = p_.axis[2];
    const T* image = x_ + n * xs_.n;
    const Window wd = p_.axis[0].window(od), wh = p_.axis[1].window(oh);
    RowList<T> rows;
    const bool listed = wd.count * wh.count <= kPoolTaps;
    if (listed) list_rows(p_, image, xs_, od, oh, &rows);
    for_columns(w, q0, q1, [&](int64_t q, int64_t count) {
      const Window ww = w.window(q);
      const int64_t taps = wd.count * wh.count * ww.count, divisor = p_.divisor_of(od, oh, q);
      T* to = target(n, od, oh, q);
      if (taps == 0) {  // all columns of the run, where it is the rows that are missing
        for (int64_t l = 0; l < count; ++l) {
          fill(to + l * ys_.s[2], identity<T>(p_));
          if (!indices_) continue;
          int64_t* at = indices_ + n * is_.n + od * is_.s[0] + oh * is_.s[1] + (q + l) * is_.s[2];
          for (int64_t c = 0; c < p_.C; ++c) at[c * is_.c] = -1;
        }
        return;
      }
      if (!listed || taps > kPoolTaps || (p_.kind != PoolKind::max && taps > kChain)) {
        for (int64_t i = 0; i < count; ++i)
          large_window(p_, isa_, image, xs_, wd, wh, w.window(q + i), divisor, to + i * ys_.s[2]);
        return;
      }
      const T* pointers[kPoolTaps];
      T names[kPoolTaps];
      int64_t flat[kPoolTaps];
      PoolArgs<T> a{};
      a.src = pointers;
      a.count = list_taps(w, rows, q, xs_.s[2], pointers, static_cast<T*>(nullptr), indices_ ? flat : nullptr);
      a.n = p_.C, a.rows = count, a.src_pitch = w.stride * xs_.s[2], a.dst_pitch = ys_.s[2], a.dst = to;
      a.op = op_of(p_);
      set_finish(p_, divisor, &a);
      combine(isa_, a);
      if constexpr (kFloat<T>) {
        if (!indices_) return;
        for (int64_t k = 0; k < a.count; ++k) names[k] = static_cast<T>(k);
        a.codes = names, a.dst = codes, a.dst_pitch = p_.C;
        kernel_table<T>(isa_).pool_argmax(a);
        for (int64_t i = 0; i < count; ++i) {
          int64_t* at = indices_ + n * is_.n + od * is_.s[0] + oh * is_.s[1] + (q + i) * is_.s[2];
          for (int64_t c = 0; c < p_.C; ++c)
            at[c * is_.c] = flat[static_cast<int32_t>(codes[i * p_.C + c])] + i * w.stride;
        }
      }
    });
  }

  void split_row(int64_t n, int64_t od, int64_t oh, int64_t q0, int64_t q1, T* buffer) {
    const Axis& w = p_.axis[2];
    RowList<T> rows;
    list_rows(p_, x_ + n * xs_.n, xs_, od, oh, &rows);
    const int64_t begin = std::max<int64_t>(0, q0 * w.stride - w.pad);
    const int64_t end = std::min(w.in, (q1 - 1) * w.stride - w.pad + (w.kernel - 1) * w.dilation + 1);
    if (rows.count == 0 || end <= begin) return row(n, od, oh, q0, q1, buffer);
    for (int64_t i = 0; i < rows.count; ++i) rows.row[i] += begin * xs_.s[2];
    PoolArgs<T> a{};
    a.src = rows.row, a.count = rows.count, a.dst = buffer, a.dst_pitch = p_.C, a.op = op_of(p_), a.divisor = T{1};
    const bool dense = xs_.s[2] == p_.C;
    a.n = dense ? (end - begin) * p_.C : p_.C, a.rows = dense ? 1 : end - begin, a.src_pitch = xs_.s[2];
    combine(isa_, a);
    for_columns(w, q0, q1, [&](int64_t q, int64_t count) {
      const Window ww = w.window(q);
      T* to = target(n, od, oh, q);
      if (ww.count == 0) return fill(to, identity<T>(p_));
      const T* pointers[kPoolTaps];
      for (int64_t k = 0; k < ww.count; ++k) pointers[k] = buffer + (ww.first + k * w.dilation - begin) * p_.C;
      PoolArgs<T> b{};
      b.src = pointers, b.count = ww.count, b.n = p_.C, b.rows = count, b.dst = to;
      b.src_pitch = w.stride * p_.C, b.dst_pitch = ys_.s[2];
      b.op = p_.kind == PoolKind::max ? kPoolMax : kPoolSum;
      set_finish(p_, p_.divisor_of(od, oh, q), &b);
      if (w.stride == 1 && ys_.s[2] == p_.C) b.n *= b.rows, b.rows = 1;
      combine(isa_, b);
    });
  }

  const Pool& p_;
  const T* x_;
  T* y_;
  int64_t* indices_;
  Strides xs_, ys_, is_;
  Isa isa_;
  bool split_ = false;
  int64_t columns_ = 1, step_ = 1, across_ = 1, down_ = 1, scratch_ = 1;
};

// The windows that cover coordinate i of an axis, in their order, with the tap that i is.
struct Cover { int64_t window, tap; };
int64_t list_covers(const Axis& a, int64_t i, Cover* covers) {
  int64_t n = 0;
  for (int64_t t = a.kernel - 1; t >= 0; --t) {
    const int64_t begin = i + a.pad - t * a.dilation;
    if (begin % a.stride != 0) continue;
    const int64_t o = begin / a.stride;
    if (o >= 0 && o < a.out) covers[n++] = {o, t};
  }
  return n;
}

// Calls f(i, count) for runs of coordinates i, i + stride, ... in [i0, i1) whose windows step on with them: each
// residue of the stride has one, and coordinates near the edges, which lack windows, come one by one.
template <class F>
void for_phases(const Axis& a, int64_t i0, int64_t i1, F f) {
  for (int64_t phase = 0; phase < std::min(a.stride, i1 - i0); ++phase) {
    const int64_t first = i0 + phase;
    // The greatest and the least tap of this residue: its windows all exist between the two bounds.
    int64_t most = -1, least = -1;
    for (int64_t t = 0; t < a.kernel; ++t)
      if ((first + a.pad - t * a.dilation) % a.stride == 0) most = t, least = least < 0 ? t : least;
    const int64_t low = most < 0 ? first : most * a.dilation - a.pad;
    const int64_t high = most < 0 ? i1 : (a.out - 1) * a.stride + least * a.dilation - a.pad + 1;
    int64_t i = first;
    for (; i < i1 && i < low; i += a.stride) f(i, int64_t{1});
    if (i < std::min(i1, high)) {
      const int64_t count = (std::min(i1, high) - i + a.stride - 1) / a.stride;
      f(i, count);
      i += count * a.stride;
    }
    for (; i < i1; i += a.stride) f(i, int64_t{1});
  }
}

// What a gradient's tiles are: [h0, h1) x [w0, w1) of plane d, and the windows that touch them.
struct Tile {
  int64_t d, h0, h1, w0, w1;
  Range pd, ph, pw;
};

Tile make_tile(const Pool& p, int64_t d, int64_t h0, int64_t h1, int64_t w0, int64_t w1) {
  return {d, h0, h1, w0, w1, p.axis[0].touching(d, d + 1), p.axis[1].touching(h0, h1), p.axis[2].touching(w0, w1)};
}

template <class T>
class ChannelsBackward {
 public:
  ChannelsBackward(const Pool& p, const T* dy, const Strides& ys, const T* x, const Strides& xs, T* dx,
                   const Strides& ds)
      : p_(p), dy_(dy), x_(x), dx_(dx), ys_(ys), xs_(xs), ds_(ds), kernels_(kernel_table<T>(current_isa())) {
    maximum_ = p.kind == PoolKind::max;
    staged_ = maximum_ || !same_divisor(p);
  }

  const char* path() const { return "gathered; lanes of channels"; }

  const char* prepare() {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    if (p_.taps() > kPoolTaps) return "windows have more taps than a list";
    // Channels are cut where even one row's windows would not fit.
    channels_ = std::min<int64_t>(p_.C, 256);
    const int64_t per_plane = (d.kernel - 1) * d.dilation / d.stride + 1;
    const int64_t elements = kStage / (channels_ * per_plane);
    // Input columns and rows whose windows, with those at the edges, stay within the stage.
    auto fitting = [](const Axis& a, int64_t windows) {
      return std::max<int64_t>(1, (windows - ((a.kernel - 1) * a.dilation / a.stride + 1)) * a.stride);
    };
    columns_ = std::min(w.in, fitting(w, std::max<int64_t>(1, elements / 6)));
    const int64_t wide = w.touching(0, columns_).end + (w.kernel - 1) * w.dilation / w.stride + 2;
    step_ = std::min(
        {h.in, fitting(h, elements / wide), std::max<int64_t>(1, kTaskTerms / (columns_ * channels_ * p_.taps()))});
    const int64_t tall = step_ / h.stride + (h.kernel - 1) * h.dilation / h.stride + 2;
    size_ = staged_ ? per_plane * tall * wide * channels_ : 1;
    if (bytes() > kMostStaged) return kStagedTooLarge;
    across_ = (w.in + columns_ - 1) / columns_, down_ = (h.in + step_ - 1) / step_;
    deep_ = (p_.C + channels_ - 1) / channels_;
    return nullptr;
  }
  int64_t tasks() const { return p_.N * p_.axis[0].in * down_ * across_ * deep_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  Status run() {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.in_pixels()) * 0.5;
    return for_tasks(tasks(), work, bytes(), [&](int64_t task, void* memory) {
      const int64_t c0 = task % deep_ * channels_, c1 = std::min(p_.C, c0 + channels_);
      int64_t rest = task / deep_;
      const int64_t w0 = rest % across_ * columns_, w1 = std::min(w.in, w0 + columns_);
      rest /= across_;
      const int64_t h0 = rest % down_ * step_, h1 = std::min(h.in, h0 + step_);
      rest /= down_;
      run_tile(make_tile(p_, rest % d.in, h0, h1, w0, w1), rest / d.in, c0, c1 - c0, static_cast<T*>(memory));
    });
  }

 private:
  void run_tile(const Tile& t, int64_t n, int64_t c0, int64_t channels, T* stage) {
    const T* dy = dy_ + n * ys_.n + c0;
    const int64_t wide = t.pw.end - t.pw.begin, tall = t.ph.end - t.ph.begin;
    auto staged_at = [&](int64_t od, int64_t oh, int64_t q) {
      return stage + (((od - t.pd.begin) * tall + oh - t.ph.begin) * wide + q - t.pw.begin) * channels;
    };
    auto dy_at = [&](int64_t od, int64_t oh, int64_t q) { return dy + od * ys_.s[0] + oh * ys_.s[1] + q * ys_.s[2]; };
    const T* pointers[kPoolTaps];
    const T* marks[kPoolTaps];
    T codes[kPoolTaps];
    if (staged_) {
      for (int64_t od = t.pd.begin; od < t.pd.end; ++od)
        for (int64_t oh = t.ph.begin; oh < t.ph.end; ++oh) {
          RowList<T> rows;
          list_rows(p_, maximum_ ? x_ + n * xs_.n + c0 : nullptr, xs_, od, oh, &rows);
          for_columns(p_.axis[2], t.pw.begin, t.pw.end, [&](int64_t q, int64_t count) {
            PoolArgs<T> a{};
            a.src = pointers, a.codes = codes, a.n = channels, a.rows = count;
            a.dst = staged_at(od, oh, q), a.dst_pitch = channels;
            if (maximum_) {
              a.count = list_taps(p_.axis[2], rows, q, xs_.s[2], pointers, codes, nullptr);
              a.src_pitch = p_.axis[2].stride * xs_.s[2];
              if (a.count == 0) {
                std::fill_n(a.dst, count * channels, T{-1});  // empty windows: no tap has this code
              } else {
                kernels_.pool_argmax(a);
              }
            } else {
              pointers[0] = dy_at(od, oh, q);
              a.count = 1, a.src_pitch = ys_.s[2], a.op = kPoolSum;
              a.finish = kPoolDivide, a.divisor = static_cast<T>(p_.divisor_of(od, oh, q));
              kernels_.pool_combine(a);
            }
          });
        }
    }
    Cover cd[kPoolTaps], ch[kPoolTaps], cw[kPoolTaps];
    const int64_t nd = list_covers(p_.axis[0], t.d, cd);
    const bool from_stage = staged_ && !maximum_;
    for (int64_t h = t.h0; h < t.h1; ++h) {
      const int64_t nh = list_covers(p_.axis[1], h, ch);
      for_phases(p_.axis[2], t.w0, t.w1, [&](int64_t w, int64_t count) {
        const int64_t nw = list_covers(p_.axis[2], w, cw);
        PoolArgs<T> a{};
        for (int64_t i = 0; i < nd; ++i)
          for (int64_t j = 0; j < nh; ++j)
            for (int64_t k = 0; k < nw; ++k) {
              const int64_t od = cd[i].window, oh = ch[j].window, q = cw[k].window;
              pointers[a.count] = from_stage ? staged_at(od, oh, q) : dy_at(od, oh, q);
              marks[a.count] = maximum_ ? staged_at(od, oh, q) : nullptr;
              codes[a.count++] =
                  static_cast<T>((cd[i].tap * p_.axis[1].kernel + ch[j].tap) * p_.axis[2].kernel + cw[k].tap);
            }
        a.src = pointers, a.marks = marks, a.codes = codes, a.n = channels, a.rows = count;
        a.src_pitch = from_stage ? channels : ys_.s[2], a.phase_pitch = channels;
        a.dst = dx_ + n * ds_.n + c0 + t.d * ds_.s[0] + h * ds_.s[1] + w * ds_.s[2];
        a.dst_pitch = p_.axis[2].stride * ds_.s[2];
        if (maximum_) return kernels_.pool_route(a);
        a.op = kPoolSum, a.finish = staged_ ? kPoolPlain : kPoolDivide;
        a.divisor = staged_ ? T{1} : static_cast<T>(p_.divisor_of(0, 0, 0));
        kernels_.pool_combine(a);
      });
    }
  }

  const Pool& p_;
  const T *dy_, *x_;
  T* dx_;
  Strides ys_, xs_, ds_;
  const KernelTable<T>& kernels_;
  bool maximum_, staged_;
  int64_t channels_ = 1, columns_ = 1, step_ = 1, across_ = 1, down_ = 1, deep_ = 1, size_ = 1;
};

bool channels_innermost(const Pool& p, const Strides& s) { return s.c == 1 && p.C > 1; }

// --- planar --------------------------------------------------------------------------------------------------------

int64_t up_to_multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// Calls f(oh, count) for runs of windows in [h0, h1) whose rows one call may serve, at most `most` of them.
template <class F>
void for_rows(const Axis& a, int64_t h0, int64_t h1, int64_t most, F f) {
  for_columns(a, h0, h1, [&](int64_t h, int64_t count) {
    for (int64_t i = 0; i < count; i += most) f(h + i, std::min(most, count - i));
  });
}

template <class T>
class PlanarForward {
 public:
  PlanarForward(const Pool& p, const T* x, const Strides& xs, T* y, const Strides& ys)
      : p_(p), x_(x), y_(y), xs_(xs), ys_(ys), isa_(current_isa()) {}

  const char* path() const { return "rows, then columns; lanes of columns"; }

  const char* prepare() {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const int64_t rows = p_.axis[0].kernel * h.kernel;
    if (rows > kPoolTaps) return "windows have more rows than a list";
    if (p_.kind != PoolKind::max && p_.taps() > kChain) return "the sums are too long for the dtype";
    if (p_.kind == PoolKind::lp && !same_divisor(p_)) return "windows of a norm are not all of one size";
    const int64_t reach = (w.kernel - 1) * w.dilation + 1;
    if (w.adaptive && w.in > kLine) return "adaptive windows, and a row overflows the buffer";
    // Columns of a task: all of them unless their inputs overflow the buffer.
    columns_ = w.adaptive ? w.out : std::min(w.out, std::max<int64_t>(64, (kLine - reach) / w.stride));
    width_ = w.adaptive ? w.in : (columns_ - 1) * w.stride + reach;
    pitch_ = up_to_multiple(width_ + kSlack, 16);
    if (pitch_ > 8 * kLine) return "a window's columns overflow the buffer";
    batch_ = std::clamp<int64_t>(kLine / pitch_, 1, h.out);
    const int64_t terms = width_ * rows * h.out;  // of a plane's part
    planes_ = std::clamp<int64_t>(kTaskTerms / (4 * terms), 1, p_.C);
    step_ = std::clamp<int64_t>(kTaskTerms / (width_ * rows), 1, h.out);
    across_ = (w.out + columns_ - 1) / columns_, down_ = (h.out + step_ - 1) / step_;
    deep_ = (p_.C + planes_ - 1) / planes_;
    return nullptr;
  }
  int64_t tasks() const { return p_.N * deep_ * p_.axis[0].out * down_ * across_; }
  int64_t bytes() const { return (batch_ * pitch_ + kSlack + 2 * columns_) * static_cast<int64_t>(sizeof(T)); }

  Status run() {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const int64_t rows = p_.axis[0].kernel * h.kernel;
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.out_pixels()) *
                        static_cast<double>(std::min(p_.taps(), rows * w.stride + w.kernel)) * 0.1;
    return for_tasks(tasks(), work, bytes(), [&](int64_t task, void* memory) {
      const int64_t q0 = task % across_ * columns_, q1 = std::min(w.out, q0 + columns_);
      int64_t rest = task / across_;
      const int64_t h0 = rest % down_ * step_, h1 = std::min(h.out, h0 + step_);
      rest /= down_;
      const int64_t od = rest % p_.axis[0].out;
      rest /= p_.axis[0].out;
      const int64_t c0 = rest % deep_ * planes_, c1 = std::min(p_.C, c0 + planes_);
      Part part{static_cast<T*>(memory), rest / deep_, od, q0, q1, 0, 0, 0, nullptr, 0};
      prepare(&part);
      for (int64_t c = c0; c < c1; ++c)
        for_rows(h, h0, h1, batch_, [&](int64_t oh, int64_t count) { rows_of(part, c, oh, count); });
    });
  }

 private:
  struct Part {
    T* buffer;
    int64_t n, od, q0, q1;
    int64_t first, begin, end;  // column of the buffer's first element; columns of the image in it
    T* divisors;  // one a column where they differ
    int64_t divisors_of;  // the rows' length that they were made for
  };

  // The padding around the lines, once: the columns between are written over and over.
  void prepare(Part* part) const {
    const Axis& w = p_.axis[2];
    part->first = w.adaptive ? 0 : part->q0 * w.stride - w.pad;
    const int64_t last = w.adaptive ? w.in : (part->q1 - 1) * w.stride - w.pad + (w.kernel - 1) * w.dilation + 1;
    part->begin = std::max<int64_t>(0, part->first), part->end = std::max(part->begin, std::min(w.in, last));
    std::fill_n(part->buffer, batch_ * pitch_ + kSlack, identity<T>(p_));
    part->divisors = nullptr, part->divisors_of = -1;
    if (p_.kind == PoolKind::average && !p_.divisor) {
      for (int64_t q = part->q0; q < part->q1 && !part->divisors; ++q)
        if (length(w, q) != length(w, part->q0)) part->divisors = part->buffer + batch_ * pitch_ + kSlack;
    }
  }

  int64_t length(const Axis& a, int64_t o) const {
    return a.adaptive || !p_.count_include_pad ? std::max<int64_t>(1, a.window(o).count) : a.pool_size(o);
  }

  void rows_of(Part& part, int64_t c, int64_t oh, int64_t count) {
    const Axis& w = p_.axis[2];
    T* y = y_ + part.n * ys_.n + c * ys_.c + part.od * ys_.s[0] + oh * ys_.s[1] + part.q0 * ys_.s[2];
    RowList<T> rows;
    list_rows(p_, x_ + part.n * xs_.n + c * xs_.c + part.begin, xs_, part.od, oh, &rows);
    if (rows.count == 0 || part.end == part.begin) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t q = 0; q < part.q1 - part.q0; ++q) y[i * ys_.s[1] + q * ys_.s[2]] = identity<T>(p_);
      return;
    }
    PoolArgs<T> a{};
    a.src = rows.row, a.count = rows.count, a.n = part.end - part.begin, a.rows = count;
    a.src_pitch = p_.axis[1].stride * xs_.s[1];
    a.dst = part.buffer + part.begin - part.first, a.dst_pitch = pitch_;
    a.op = op_of(p_), a.divisor = T{1};
    combine(isa_, a);
    PoolArgs<T> b{};
    const T* lines = part.buffer;
    b.src = &lines, b.count = w.kernel, b.n = part.q1 - part.q0, b.rows = count;
    b.src_pitch = pitch_, b.dst = y, b.dst_pitch = ys_.s[1];
    b.stride = w.stride, b.step = w.dilation;
    b.op = p_.kind == PoolKind::max ? kPoolMax : kPoolSum;
    set_finish(p_, p_.divisor_of(part.od, oh, part.q0), &b);
    if constexpr (kFloat<T>) {
      if (part.divisors) {
        const int64_t across = length(p_.axis[0], part.od) * length(p_.axis[1], oh);
        if (across != part.divisors_of) {
          for (int64_t q = part.q0; q < part.q1; ++q)
            part.divisors[q - part.q0] = static_cast<T>(across * length(w, q));
          part.divisors_of = across;
        }
        b.divisors = part.divisors;
      }
    }
    if (w.adaptive) return irregular(b, count);
    if (w.stride != 1) return slide(isa_, b);
    const T* taps[kPoolTaps];
    if (w.kernel > kPoolTaps) return slide(isa_, b);
    for (int64_t k = 0; k < w.kernel; ++k) taps[k] = lines + k * w.dilation;
    b.src = taps;
    b.step = 0;
    combine(isa_, b);
  }

  // Adaptive windows, one after the other.
  void irregular(const PoolArgs<T>& b, int64_t count) const {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t q = 0; q < b.n; ++q) {
        const Window window = p_.axis[2].window(q);
        const T* from = b.src[0] + i * b.src_pitch + window.first;
        T value = from[0];
        if constexpr (kFloat<T>) {
          const KernelTable<T>& kernels = kernel_table<T>(isa_);
          if (p_.kind == PoolKind::max) {
            value = kernels.max_run(from, window.count);
          } else {
            value = kernels.sum_run(from, window.count, 1) / (b.divisors ? b.divisors[q] : b.divisor);
          }
        } else {
          for (int64_t k = 1; k < window.count; ++k) value = std::max(value, from[k]);
        }
        b.dst[i * b.dst_pitch + q] = value;
      }
  }

  const Pool& p_;
  const T* x_;
  T* y_;
  Strides xs_, ys_;
  Isa isa_;
  int64_t columns_ = 0, width_ = 0, pitch_ = 0, batch_ = 0;
  int64_t planes_ = 1, step_ = 1, across_ = 1, down_ = 1, deep_ = 1;
};

// Square windows of the usual sizes on planes: what pool_planes serves.
bool usual_windows(const Pool& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  if (d.in != 1 || d.out != 1 || h.adaptive || w.adaptive || h.kernel != w.kernel || h.stride != w.stride) return false;
  for (const Axis* a : {&h, &w}) {
    if (a->dilation != 1 || a->pad >= a->kernel || (a->out - 1) * a->stride - a->pad >= a->in) return false;
  }
  return (w.kernel == 3 && (w.stride == 1 || w.stride == 2)) || (w.kernel == 2 && w.stride == 2);
}

// Channels and rows of windows of a task of pool_planes or, with all channels, of pool_pixels.
struct Bands {
  int64_t planes, step, deep, down;
  explicit Bands(const Pool& p, bool pixels = false) {
    const Axis &h = p.axis[1], &w = p.axis[2];
    planes = pixels ? p.C : std::clamp<int64_t>(kTaskTerms / 4 / (h.in * w.in), 1, p.C);
    const int64_t row = w.in * h.stride * (pixels ? p.C : 1);
    step = std::min(h.out, up_to_multiple(std::clamp<int64_t>(kTaskTerms / 4 / row, 1, kLine), 4));
    deep = (p.C + planes - 1) / planes, down = (h.out + step - 1) / step;
  }
};

// The factors of the windows' divisors, of rows or of columns.
template <class T>
void list_counts(const Pool& p, const Axis& a, int64_t begin, int64_t end, T* counts) {
  for (int64_t o = begin; o < end; ++o) {
    const int64_t n = p.count_include_pad ? a.pool_size(o) : std::max<int64_t>(1, a.window(o).count);
    counts[o - begin] = static_cast<T>(n);
  }
}

// Rows of windows [h0, h1) of an image that is x. `counts`: room for the factors of the windows' divisors; null where
// all are the same.
template <class T>
void usual_band(const Pool& p, const KernelTable<T>& kernels, bool pixels, const T* x, const Strides& xs, T* y,
                const Strides& ys, int64_t channels, int64_t h0, int64_t h1, T* counts) {
  const Axis &h = p.axis[1], &w = p.axis[2];
  PoolPlanesArgs<T> a{};
  a.x = x, a.x_channel = xs.c, a.x_pitch = xs.s[1], a.x_column = xs.s[2];
  a.y = y + h0 * ys.s[1], a.y_channel = ys.c, a.y_pitch = ys.s[1], a.y_column = ys.s[2];
  a.channels = channels, a.rows = h.in, a.columns = w.in;
  a.first_row = h0 * h.stride - h.pad, a.first_column = -w.pad;
  a.out_rows = h1 - h0, a.out_columns = w.out;
  a.taps = static_cast<int32_t>(w.kernel), a.stride = static_cast<int32_t>(w.stride);
  a.op = p.kind == PoolKind::max ? kPoolMax : kPoolSum;
  a.finish = kPoolDivide, a.divisor = counts ? T{1} : static_cast<T>(p.divisor_of(0, 0, 0));
  if (counts) {
    list_counts(p, h, h0, h1, counts);
    list_counts(p, w, 0, w.out, counts + (h1 - h0));
    a.row_counts = counts, a.column_counts = counts + (h1 - h0);
  }
  pixels ? kernels.pool_pixels(a) : kernels.pool_planes(a);
}

constexpr const char* kUnusual = "windows are not square ones of 3 at a distance of 1 or 2, or of 2 at one of 2";

// `pixels`: the channels are neighbours.
template <class T>
class UsualForward {
 public:
  UsualForward(const Pool& p, bool pixels, const T* x, const Strides& xs, T* y, const Strides& ys)
      : p_(p),
        pixels_(pixels),
        x_(x),
        y_(y),
        xs_(xs),
        ys_(ys),
        counted_(p.kind == PoolKind::average && !same_divisor(p)),
        bands_(p, pixels) {}

  const char* path() const {
    return pixels_ ? "windows in registers; lanes of channels" : "windows in registers; lanes of columns";
  }

  const char* prepare() const {
    if (p_.kind == PoolKind::lp) return "a norm";
    if (!usual_windows(p_)) return kUnusual;
    // Windows of 2 x 2 share no columns, and pixels one after the other are read faster (1.1 to 1.2 times, beyond the
    // second-level cache).
    if (pixels_ && p_.axis[2].kernel != 3) return "windows of 2 x 2 share no columns";
    if (counted_ && p_.axis[2].out > 8 * kLine) return "rows are too long for their divisors";
    return nullptr;
  }
  int64_t tasks() const { return p_.N * bands_.deep * bands_.down; }
  int64_t bytes() const {
    return (counted_ ? bands_.step + p_.axis[2].out + kSlack : 1) * static_cast<int64_t>(sizeof(T));
  }

  Status run() const {
    const Axis& h = p_.axis[1];
    const Bands& b = bands_;
    const KernelTable<T>& kernels = kernel_table<T>(current_isa());
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.in_pixels()) * 0.1;
    return for_tasks(tasks(), work, bytes(), [&](int64_t task, void* memory) {
      const int64_t h0 = task % b.down * b.step, h1 = std::min(h.out, h0 + b.step);
      const int64_t c0 = task / b.down % b.deep * b.planes, n = task / b.down / b.deep;
      usual_band(p_, kernels, pixels_, x_ + n * xs_.n + c0 * xs_.c, xs_, y_ + n * ys_.n + c0 * ys_.c, ys_,
                 std::min(p_.C - c0, b.planes), h0, h1, counted_ ? static_cast<T*>(memory) : nullptr);
    });
  }

 private:
  const Pool& p_;
  const bool pixels_;
  const T* x_;
  T* y_;
  const Strides xs_, ys_;
  const bool counted_;
  const Bands bands_;
};

// Whether one window is the whole image.
bool is_global(const Pool& p) {
  for (const Axis& a : p.axis)
    if (a.out != 1 || a.adaptive || a.pad || a.kernel != a.in || a.dilation != 1) return false;
  return true;
}

bool dense_planes(const Pool& p, const Strides& s, bool out = false) {
  int64_t expect = 1;
  for (int i = 2; i >= 0; --i) {
    const int64_t n = out ? p.axis[i].out : p.axis[i].in;
    if (n > 1 && s.s[i] != expect) return false;
    expect *= n;
  }
  return true;
}

// Measured on Zen 4 in AVX-512, one thread, against the planar kernels, as the time they take over that of turning:
// 3 x 3 windows side by side 2.4 at 7 columns, 2.1 at 17, 1.3 at 14, 1.4 at 35, 1.1 at 28; two apart 1.8 at 14, 1.3 at
// 17, 0.9 at 28; 2 x 2 windows 1.1 to 1.3 at 14, 0.6 to 0.8 at 28; windows of 5, 9 and 13 at 13 columns 2.6 to 3.3.
// Beyond 40 columns it was not tried.
// Why turning does not pay; null where it does.
const char* turning_costs(const Pool& p) {
  const Axis& w = p.axis[2];
  constexpr const char* kLong = "rows are long enough for lanes of columns";
  if (p.C < 4) return "fewer than 4 channels fill no lanes";
  if (is_global(p)) {
    if (p.kind == PoolKind::average) return "the mean of a plane is one run of memory";
    return p.in_pixels() <= kChain ? nullptr : "planes are long runs of memory";
  }
  if (w.adaptive) return w.in <= 40 ? nullptr : kLong;
  if (w.stride == 4 && w.kernel <= 4 && w.dilation == 1 && w.in > 20) return "a stride of 4 has vectors of its own";
  return w.in <= (w.stride == 1 ? 40 : 20) || w.stride > 2 ? nullptr : kLong;
}

// Planar images whose rows are too short for vectors of columns, or whose columns a stride takes far apart: some
// channels at a time are turned, so that channels are neighbours, pooled so, and turned back.
constexpr int64_t kTurned =
    1 << 15;  // elements of a task's turned images, about half of a second-level cache of 256 KB

template <class T>
class Turned {
 public:
  Turned(const Pool& p, const T* x, const Strides& xs, T* y, const Strides& ys)
      : p_(p), x_(x), y_(y), xs_(xs), ys_(ys), kernels_(kernel_table<T>(current_isa())) {}

  const char* path() const { return "turned; lanes of channels"; }

  const char* prepare() {
    if (const char* why = turning_costs(p_)) return why;
    if (!dense_planes(p_, xs_) || !dense_planes(p_, ys_, true)) return "planes are not dense";
    // Bands of output rows, or of columns where there is one row: what they read is one run of each plane.
    axis_ = p_.axis[1].in > 1 || p_.axis[1].out > 1 ? 1 : 2;
    const Axis& a = p_.axis[axis_];
    whole_ = p_.axis[0].in > 1 || p_.axis[0].out > 1 || a.adaptive;
    channels_ = std::min(up_to_multiple(p_.C, kernels_.lanes), int64_t{2} * kernels_.lanes);
    const int64_t across = axis_ == 1 ? p_.axis[2].in : 1;
    auto size_of = [&](int64_t n) {
      const int64_t rows = std::min(a.in, (n - 1) * a.stride + (a.kernel - 1) * a.dilation + 1);
      return whole_ ? (p_.in_pixels() + p_.out_pixels()) * channels_
                    : (rows * across + n * (axis_ == 1 ? p_.axis[2].out : 1)) * channels_;
    };
    step_ = a.out;
    if (size_of(whole_ ? step_ : 1) > kTurned) return "turned images would overflow the second-level cache";
    while (size_of(step_) > kTurned) step_ = (step_ + 1) / 2;
    const Pool some = band(axis_, 0, step_);
    usual_ = usual_windows(some) && p_.kind != PoolKind::lp;
    counted_ = p_.kind == PoolKind::average && !same_divisor(p_);
    ChannelsForward<T> sample(some, nullptr, xs_, nullptr, ys_, nullptr, ys_);
    if (!usual_) {
      if (const char* why = sample.prepare()) return why;
    }
    rest_ = usual_ ? p_.axis[1].out + p_.axis[2].out : sample.scratch();
    size_ = size_of(step_);
    parts_ = (p_.C + channels_ - 1) / channels_, bands_ = (a.out + step_ - 1) / step_;
    return nullptr;
  }
  int64_t tasks() const { return p_.N * parts_ * bands_; }
  int64_t bytes() const { return (size_ + rest_) * static_cast<int64_t>(sizeof(T)); }

  Status run() {
    const Axis& a = p_.axis[axis_];
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.in_pixels()) * 0.2;
    return for_tasks(tasks(), work, bytes(), [&](int64_t task, void* memory) {
      const int64_t o0 = task % bands_ * step_, o1 = std::min(a.out, o0 + step_);
      const int64_t c0 = task / bands_ % parts_ * channels_, n = task / bands_ / parts_;
      one(axis_, o0, o1, n, c0, std::min(channels_, p_.C - c0), static_cast<T*>(memory), size_);
    });
  }

 private:
  // The layer of windows [o0, o1) of an axis, on the part of the image that they reach.
  Pool band(int axis, int64_t o0, int64_t o1) const {
    Pool p = p_;
    p.N = 1, p.C = channels_;
    if (whole_) return p;
    Axis& a = p.axis[axis];
    const int64_t begin = first(a, o0);
    const int64_t end = std::clamp((o1 - 1) * a.stride - a.pad + (a.kernel - 1) * a.dilation + 1, begin + 1, a.in);
    a.pad = begin - (o0 * a.stride - a.pad);
    if (end < a.in) a.pad_after = 0;
    a.in = end - begin, a.out = o1 - o0;
    return p;
  }
  static int64_t first(const Axis& a, int64_t o0) { return std::clamp<int64_t>(o0 * a.stride - a.pad, 0, a.in - 1); }
  static Strides turned(const Axis* a, bool out, int64_t channels) {
    Strides s{};
    s.c = 1, s.s[2] = channels;
    s.s[1] = s.s[2] * (out ? a[2].out : a[2].in);
    s.s[0] = s.s[1] * (out ? a[1].out : a[1].in);
    s.n = 0;
    return s;
  }
  void turn(const T* from, int64_t rows, int64_t n, int64_t from_pitch, T* to, int64_t to_pitch) const {
    kernels_.turn_block({from, to, rows, n, from_pitch, to_pitch});
  }

  void one(int axis, int64_t o0, int64_t o1, int64_t n, int64_t c0, int64_t channels, T* memory, int64_t size) const {
    const Pool p = band(axis, o0, o1);
    const int64_t across = axis == 1 ? p.axis[2].in : 1, out_across = axis == 1 ? p.axis[2].out : 1;
    T *x = memory, *y = x + p.in_pixels() * channels_, *rest = memory + size;
    const int64_t begin = whole_ ? 0 : first(p_.axis[axis], o0);
    turn(x_ + n * xs_.n + c0 * xs_.c + begin * across, channels, p.in_pixels(), xs_.c, x, channels_);
    // The channels that are not there: any numbers that raise no exceptions.
    if (channels < channels_)
      for (int64_t i = 0; i < p.in_pixels(); ++i) std::fill_n(x + i * channels_ + channels, channels_ - channels, T{0});
    const Strides xs = turned(p.axis, false, channels_), ys = turned(p.axis, true, channels_);
    if (usual_) {
      usual_band(p, kernels_, true, x, xs, y, ys, channels_, 0, p.axis[1].out, counted_ ? rest : nullptr);
    } else {
      ChannelsForward<T> forward(p, x, xs, y, ys, nullptr, ys);
      forward.prepare();
      for (int64_t i = 0; i < forward.tasks(); ++i) forward.task(i, rest);
    }
    turn(y, p.out_pixels(), channels, channels_, y_ + n * ys_.n + c0 * ys_.c + o0 * out_across, ys_.c);
  }

  const Pool& p_;
  const T* x_;
  T* y_;
  Strides xs_, ys_;
  const KernelTable<T>& kernels_;
  int axis_ = 1;
  int64_t channels_ = 0, step_ = 1, size_ = 0, rest_ = 0, parts_ = 1, bands_ = 1;
  bool whole_ = false, usual_ = false, counted_ = false;
};

// Maxima: of 2 x 2 windows side by side the winner is found and served in one go; overlapping ones pass through lines,
// in planar images of the kernel's own, which take rows of some length and whole planes. Means: of 2 x 2 windows in
// planar images.
template <class T>
class UsualBackward {
 public:
  UsualBackward(const Pool& p, bool pixels, const T* dy, const Strides& ys, const T* x, const Strides& xs, T* dx,
                const Strides& ds)
      : p_(p),
        pixels_(pixels),
        maximum_(p.kind == PoolKind::max),
        apart_(p.axis[2].kernel == p.axis[2].stride),
        dy_(dy),
        x_(x),
        dx_(dx),
        ys_(ys),
        xs_(xs),
        ds_(ds),
        kernels_(kernel_table<T>(current_isa())),
        bands_(p, pixels) {}

  const char* path() const {
    return pixels_ ? "windows in registers; lanes of channels" : "windows in registers; lanes of columns";
  }

  const char* prepare() {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    if (!usual_windows(p_)) return kUnusual;
    if (apart_ && (h.pad > 0 || w.pad > 0)) return "windows side by side have padding";
    if (!apart_ && (w.in > 512 || h.in > kTaskTerms / 512)) return "images are too large for the kernel's lines";
    if (!maximum_ && (pixels_ || !apart_)) return "means of windows that overlap, or in lanes of channels";
    if (!maximum_ && !same_divisor(p_)) return "divisors differ";
    if (!apart_) {
      bands_.step = h.out, bands_.down = 1;
      // Some vectors of channels a task; each goes down the image by itself.
      if (pixels_) {
        const int64_t vectors = std::clamp<int64_t>(kTaskTerms / 16 / (h.in * w.in * kernels_.lanes), 1, p_.C);
        bands_.planes = vectors * kernels_.lanes, bands_.deep = (p_.C + bands_.planes - 1) / bands_.planes;
      }
    }
    return nullptr;
  }
  int64_t tasks() const { return p_.N * bands_.deep * bands_.down; }
  int64_t bytes() const {
    return (pixels_ && !apart_ ? 12 * kernels_.lanes * p_.axis[2].out : 1) * static_cast<int64_t>(sizeof(T));
  }

  Status run() const {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.in_pixels()) * 0.2;
    return for_tasks(tasks(), work, bytes(), [&](int64_t task, void* memory) {
      const int64_t h0 = task % bands_.down * bands_.step, h1 = std::min(h.out, h0 + bands_.step);
      const int64_t c0 = task / bands_.down % bands_.deep * bands_.planes, n = task / bands_.down / bands_.deep;
      const int64_t row = h0 * h.stride;
      PoolPlanesArgs<T> a{};
      if (maximum_) a.x = x_ + n * xs_.n + c0 * xs_.c + row * xs_.s[1];
      a.x_channel = xs_.c, a.x_pitch = xs_.s[1], a.x_column = xs_.s[2];
      a.dy = dy_ + n * ys_.n + c0 * ys_.c + h0 * ys_.s[1];
      a.dy_channel = ys_.c, a.dy_pitch = ys_.s[1], a.dy_column = ys_.s[2];
      a.y = dx_ + n * ds_.n + c0 * ds_.c + row * ds_.s[1];
      a.y_channel = ds_.c, a.y_pitch = ds_.s[1], a.y_column = ds_.s[2];
      a.channels = std::min(p_.C - c0, bands_.planes), a.columns = w.in;
      a.rows = (h1 == h.out ? h.in : h1 * h.stride) - row;  // the last band has the rows that no window covers
      a.first_row = -h.pad, a.first_column = -w.pad;
      a.out_rows = h1 - h0, a.out_columns = w.out;
      a.taps = static_cast<int32_t>(w.kernel), a.stride = static_cast<int32_t>(w.stride);
      a.op = maximum_ ? kPoolMax : kPoolSum, a.divisor = maximum_ ? T{1} : static_cast<T>(p_.divisor_of(0, 0, 0));
      a.scratch = static_cast<T*>(memory);
      pixels_ ? kernels_.pool_pixels_backward(a) : kernels_.pool_planes_backward(a);
    });
  }

 private:
  const Pool& p_;
  const bool pixels_, maximum_, apart_;
  const T *dy_, *x_;
  T* dx_;
  const Strides ys_, xs_, ds_;
  const KernelTable<T>& kernels_;
  Bands bands_;
};

// The gradient of means of 3 x 3 windows side by side is the mean of such windows of dy.
bool turned_around(const Pool& p, Pool* q) {
  if (p.kind != PoolKind::average || p.axis[2].kernel != 3 || p.axis[2].stride != 1) return false;
  if (!usual_windows(p) || !same_divisor(p)) return false;
  *q = p;
  q->divisor = p.divisor_of(0, 0, 0);
  for (int i = 1; i < 3; ++i) {
    Axis& a = q->axis[i];
    a.in = p.axis[i].out, a.out = p.axis[i].in, a.pad = 2 - p.axis[i].pad;
    a.pad_after = a.out + 2 - a.pad - a.in;
  }
  return usual_windows(*q);
}

// A maximum or a mean of whole planes that are one run of memory each.
template <class T>
class WholePlanes {
 public:
  WholePlanes(const Pool& p, const T* x, const Strides& xs, T* y, const Strides& ys)
      : p_(p), x_(x), y_(y), xs_(xs), ys_(ys) {}

  const char* path() const { return "whole planes; lanes of pixels"; }

  const char* prepare() {
    if (!is_global(p_)) return "windows are not the whole image";
    if (p_.kind == PoolKind::lp) return "a norm";
    if (!dense_planes(p_, xs_)) return "planes are not dense";
    step_ = std::max<int64_t>(1, kTaskTerms / p_.in_pixels()), parts_ = (p_.C + step_ - 1) / step_;
    return nullptr;
  }
  int64_t tasks() const { return p_.N * parts_; }
  int64_t bytes() const { return 0; }

  Status run() const {
    const int64_t pixels = p_.in_pixels();
    const KernelTable<T>& kernels = kernel_table<T>(current_isa());
    constexpr int64_t kRun = 256;  // terms of a sum by vectors, few to a lane; runs are joined in double
    constexpr int64_t kPlanes = 64;
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(pixels) * 0.1;
    return parallel_for(tasks(), work, [&](int64_t task, int) {
      const int64_t n = task / parts_, c0 = task % parts_ * step_, c1 = std::min(p_.C, c0 + step_);
      if (p_.kind == PoolKind::average && pixels <= kRun) {
        T sums[kPlanes];
        const T* from = sums;
        PoolArgs<T> mean{};
        mean.src = &from, mean.count = 1, mean.rows = 1, mean.dst = sums, mean.op = kPoolSum;
        set_finish(p_, p_.divisor_of(0, 0, 0), &mean);
        for (int64_t c = c0; c < c1; c += kPlanes) {
          mean.n = std::min(kPlanes, c1 - c);
          kernels.sum_rows(sums, x_ + n * xs_.n + c * xs_.c, mean.n, xs_.c, pixels);
          kernels.pool_combine(mean);
          for (int64_t k = 0; k < mean.n; ++k) y_[n * ys_.n + (c + k) * ys_.c] = sums[k];
        }
        return;
      }
      for (int64_t c = c0; c < c1; ++c) {
        const T* plane = x_ + n * xs_.n + c * xs_.c;
        T& to = y_[n * ys_.n + c * ys_.c];
        if (p_.kind == PoolKind::max) {
          to = kernels.max_run(plane, pixels);
          continue;
        }
        Sum total;
        for (int64_t i = 0; i < pixels; i += kRun)
          total.add(static_cast<double>(kernels.sum_run(plane + i, std::min(kRun, pixels - i), 1)));
        to = static_cast<T>(total.value()) / static_cast<T>(p_.divisor_of(0, 0, 0));
      }
    });
  }

 private:
  const Pool& p_;
  const T* x_;
  T* y_;
  const Strides xs_, ys_;
  int64_t step_ = 1, parts_ = 1;
};

// The windows of a maximum around a tile, as the code of the tap that won each.
template <class T>
class PlanarMarks {
 public:
  PlanarMarks(const Pool& p, const T* x, const Strides& xs, const KernelTable<T>& kernels)
      : p_(p), x_(x), xs_(xs), kernels_(kernels) {}

  // Lines of `windows` at most, `frame` more on either side.
  void set_windows(int64_t windows, int64_t frame) {
    const Axis& w = p_.axis[2];
    frame_ = frame;
    pitch_ = up_to_multiple(windows + 2 * frame_ + kSlack, 16);
    phase_ = up_to_multiple(windows + ((w.kernel - 1) * w.dilation) / w.stride + 1 + kSlack, 16);
  }
  int64_t frame() const { return frame_; }
  int64_t pitch() const { return pitch_; }  // elements between lines
  int64_t phase() const { return phase_; }  // elements between the residues of a row of x
  int64_t row() const { return p_.axis[2].stride * phase_; }

  // The codes of the winners; returns the elements that x takes up in `source`.
  int64_t stage(const Tile& t, int64_t n, int64_t c, T* marks, T* source) const {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    const int64_t wide = t.pw.end - t.pw.begin, tall = t.ph.end - t.ph.begin, lines = (t.pd.end - t.pd.begin) * tall;
    if (wide == 0 || lines == 0) return 0;
    const T* x = x_ + n * xs_.n + c * xs_.c;
    for (int64_t i = 0; i < lines; ++i) {  // no tap has the code of a window that does not exist
      std::fill_n(marks + i * pitch_, frame_, T{-1});
      std::fill_n(marks + i * pitch_ + frame_ + wide, frame_ + 2, T{-1});
    }
    // The rows of x in the image that the windows need, split by the residue of their columns, padding included.
    auto rows_of = [](const Axis& a, const Range& o) {
      const int64_t begin = std::max<int64_t>(0, o.begin * a.stride - a.pad);
      const int64_t end = std::min(a.in, (o.end - 1) * a.stride - a.pad + (a.kernel - 1) * a.dilation + 1);
      return Range{begin, std::max(begin, end)};
    };
    const Range zr = rows_of(d, t.pd), hr = rows_of(h, t.ph);
    const int64_t rows = hr.end - hr.begin, x_row = row();
    const int64_t first = t.pw.begin * w.stride - w.pad;
    const int64_t last = first + (wide - 1) * w.stride + (w.kernel - 1) * w.dilation + 1;
    const int64_t begin = std::max<int64_t>(0, first), end = std::max(begin, std::min(w.in, last));
    // Padded column `lead` is the image's first one here; the padding before and after it is written by itself.
    const int64_t lead = begin - first, total = last - first, inside = end - begin;
    for (int64_t z = zr.begin; z < zr.end; ++z) {
      T* to = source + (z - zr.begin) * rows * x_row;
      const T* from = x + z * xs_.s[0] + hr.begin * xs_.s[1] + begin;
      PoolArgs<T> s{};
      s.src = &from, s.rows = rows, s.src_pitch = xs_.s[1], s.dst_pitch = x_row;
      auto place = [&](int64_t column) { return to + column % w.stride * phase_ + column / w.stride; };
      if (w.stride == 1) {
        s.dst = place(lead), s.n = inside, s.count = 1, s.op = kPoolSum, s.divisor = T{1};
        kernels_.pool_combine(s);
      } else if (w.stride == 2) {
        s.dst = place(lead), s.phase_pitch = place(lead + 1) - place(lead), s.n = inside, s.stride = 2;
        kernels_.pool_split(s);
      } else {
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t i = 0; i < inside; ++i) place(lead + i)[r * x_row] = from[r * xs_.s[1] + i];
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < lead; ++i) place(i)[r * x_row] = identity<T>(p_);
        for (int64_t i = lead + inside; i < total; ++i) place(i)[r * x_row] = identity<T>(p_);
      }
    }
    const T* pointers[kPoolTaps];
    T codes[kPoolTaps];
    for (int64_t od = t.pd.begin; od < t.pd.end; ++od)
      for_columns(h, t.ph.begin, t.ph.end, [&](int64_t oh, int64_t count) {
        const Window wd = d.window(od), wh = h.window(oh);
        PoolArgs<T> a{};
        for (int64_t i = 0; i < wd.count; ++i)
          for (int64_t j = 0; j < wh.count; ++j)
            for (int64_t k = 0; k < w.kernel; ++k) {
              const int64_t z = wd.first + i * d.dilation - zr.begin, r = wh.first + j * h.dilation - hr.begin;
              const int64_t column = k * w.dilation;
              pointers[a.count] = source + (z * rows + r) * x_row + column % w.stride * phase_ + column / w.stride;
              codes[a.count++] = static_cast<T>(((wd.tap + i) * h.kernel + wh.tap + j) * w.kernel + k);
            }
        T* to = marks + ((od - t.pd.begin) * tall + oh - t.ph.begin) * pitch_ + frame_;
        if (a.count == 0) {
          for (int64_t i = 0; i < count; ++i) std::fill_n(to + i * pitch_, wide, T{-1});
          return;
        }
        a.src = pointers, a.codes = codes, a.n = wide, a.rows = count;
        a.src_pitch = h.stride * x_row, a.dst = to, a.dst_pitch = pitch_;
        kernels_.pool_argmax(a);
        // A window of minus infinities that begins in the padding: its first element of the image is the maximum.
        for (int64_t q = t.pw.begin; q < t.pw.end && q * w.stride < w.pad; ++q) {
          const Window ww = w.window(q);
          for (int64_t i = 0; i < count; ++i) {
            T& code = to[i * pitch_ + q - t.pw.begin];
            if (static_cast<int64_t>(code) % w.kernel < ww.tap) code += static_cast<T>(ww.tap);
          }
        }
      });
    return (zr.end - zr.begin) * rows * x_row;
  }

 private:
  const Pool& p_;
  const T* x_;
  Strides xs_;
  const KernelTable<T>& kernels_;
  int64_t frame_ = 0, pitch_ = 0, phase_ = 0;
};

// The flat positions of maxima.
template <class T>
class PlanarIndices {
 public:
  PlanarIndices(const Pool& p, const T* x, const Strides& xs, int64_t* indices, const Strides& is)
      : p_(p), indices_(indices), is_(is), marks_(p, x, xs, kernel_table<T>(current_isa())) {}

  const char* path() const { return "maxima, then positions; lanes of columns"; }

  const char* prepare() {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    if (p_.taps() > kPoolTaps) return "windows have more taps than a list";
    if (d.adaptive || h.adaptive || w.adaptive) return "windows are adaptive";
    columns_ = std::min(w.out, std::max<int64_t>(1, kLine / w.stride));
    marks_.set_windows(columns_, 0);
    const int64_t deep_rows = (d.kernel - 1) * d.dilation + 1;
    auto size_of = [&](int64_t rows) {
      return rows * marks_.pitch() +
             (deep_rows * ((rows - 1) * h.stride + (h.kernel - 1) * h.dilation + 1) + 1) * marks_.row() + kSlack;
    };
    step_ = h.out;
    while (step_ > 1 && size_of(step_) > kStage) step_ = (step_ + 1) / 2;
    size_ = size_of(step_);
    if (bytes() > kMostStaged) return "the windows of a row of tiles take more than 1 MB";
    across_ = (w.out + columns_ - 1) / columns_, down_ = (h.out + step_ - 1) / step_;
    return nullptr;
  }
  int64_t tasks() const { return p_.N * p_.C * p_.axis[0].out * down_ * across_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  Status run() const {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.out_pixels() * p_.taps()) * 0.2;
    return for_tasks(tasks(), work, bytes(), [&](int64_t task, void* memory) {
      const int64_t q0 = task % across_ * columns_, q1 = std::min(w.out, q0 + columns_);
      int64_t rest = task / across_;
      const int64_t h0 = rest % down_ * step_, h1 = std::min(h.out, h0 + step_);
      rest /= down_;
      const int64_t od = rest % d.out;
      rest /= d.out;
      T* marks = static_cast<T*>(memory);
      std::fill_n(marks, size_, T{0});  // so that nothing is read before it is written
      Tile t{};
      t.pd = {od, od + 1}, t.ph = {h0, h1}, t.pw = {q0, q1};
      marks_.stage(t, rest / p_.C, rest % p_.C, marks, marks + (h1 - h0) * marks_.pitch());
      write(t, indices_ + rest / p_.C * is_.n + rest % p_.C * is_.c, marks);
    });
  }

 private:
  void write(const Tile& t, int64_t* to, const T* marks) const {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    int64_t offset[kPoolTaps];  // of each tap, from the window's first
    int64_t* next = offset;
    for (int64_t i = 0; i < d.kernel; ++i)
      for (int64_t j = 0; j < h.kernel; ++j)
        for (int64_t k = 0; k < w.kernel; ++k)
          *next++ = (i * d.dilation * h.in + j * h.dilation) * w.in + k * w.dilation;
    for (int64_t oh = t.ph.begin; oh < t.ph.end; ++oh, marks += marks_.pitch()) {
      const int64_t plane = t.pd.begin * d.stride - d.pad, row = oh * h.stride - h.pad;
      const int64_t first = (plane * h.in + row) * w.in - w.pad;
      int64_t* line = to + t.pd.begin * is_.s[0] + oh * is_.s[1];
      // Windows beyond the image, which ceil_mode may leave, hold nothing.
      const int64_t end = std::clamp((w.in + w.pad + w.stride - 1) / w.stride, t.pw.begin, t.pw.end);
      for (int64_t q = t.pw.begin; q < end; ++q) {
        const auto code = static_cast<int32_t>(marks[q - t.pw.begin]);
        line[q * is_.s[2]] = code < 0 ? -1 : first + q * w.stride + offset[code];
      }
      for (int64_t q = end; q < t.pw.end; ++q) line[q * is_.s[2]] = -1;
    }
  }

  const Pool& p_;
  int64_t* indices_;
  Strides is_;
  PlanarMarks<T> marks_;
  int64_t columns_ = 1, step_ = 1, across_ = 1, down_ = 1, size_ = 0;
};

template <class T>
class PlanarBackward {
 public:
  PlanarBackward(const Pool& p, const T* dy, const Strides& ys, const T* x, const Strides& xs, T* dx, const Strides& ds)
      : p_(p),
        dy_(dy),
        dx_(dx),
        ys_(ys),
        ds_(ds),
        kernels_(kernel_table<T>(current_isa())),
        marks_(p, x, xs, kernels_) {
    maximum_ = p.kind == PoolKind::max;
    same_ = maximum_ || same_divisor(p);
  }

  const char* path() const { return "gathered; lanes of columns"; }

  const char* prepare() {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    if (p_.taps() > kPoolTaps) return "windows have more taps than a list";
    const int64_t deep_windows = (d.kernel - 1) * d.dilation / d.stride + 1;
    const int64_t deep_rows = (deep_windows - 1) * d.stride + (d.kernel - 1) * d.dilation + 1;
    // A tile's columns: all of them unless they are very many.
    columns_ = std::min(w.in, std::max<int64_t>(w.stride, kLine / w.stride * w.stride));
    frame_ = (w.kernel - 1) * w.dilation / w.stride + 1;  // windows beside those that touch the columns
    const int64_t windows = columns_ / w.stride + frame_ + 2;
    marks_.set_windows(windows, frame_);
    pitch_ = marks_.pitch(), phase_ = marks_.phase();
    const int64_t x_row = marks_.row();
    // Rows of windows: as many as fit, with the rows of x that they need.
    auto size_of = [&](int64_t rows) {
      const int64_t tall = rows / h.stride + (h.kernel - 1) * h.dilation / h.stride + 2;
      const int64_t x_rows = maximum_ ? deep_rows * ((tall - 1) * h.stride + (h.kernel - 1) * h.dilation + 1) : 0;
      const int64_t lines = deep_windows * tall * (maximum_ ? 2 : 1);
      return lines * pitch_ + x_rows * x_row + (w.stride > 1 ? rows * x_row : 0) + x_row + kSlack;
    };
    step_ = h.in;
    while (step_ > 1 && size_of(step_) > kStage) step_ = (step_ + 1) / 2;
    size_ = size_of(step_);
    if (bytes() > kMostStaged) return kStagedTooLarge;
    planes_ = std::clamp<int64_t>(kTaskTerms / 16 / (step_ * columns_), 1, p_.C);
    across_ = (w.in + columns_ - 1) / columns_, down_ = (h.in + step_ - 1) / step_;
    deep_ = (p_.C + planes_ - 1) / planes_;
    return nullptr;
  }
  int64_t tasks() const { return p_.N * deep_ * p_.axis[0].in * down_ * across_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  Status run() {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.in_pixels()) * 0.5;
    return for_tasks(tasks(), work, bytes(), [&](int64_t task, void* memory) {
      const int64_t w0 = task % across_ * columns_, w1 = std::min(w.in, w0 + columns_);
      int64_t rest = task / across_;
      const int64_t h0 = rest % down_ * step_, h1 = std::min(h.in, h0 + step_);
      rest /= down_;
      const Tile t = make_tile(p_, rest % d.in, h0, h1, w0, w1);
      rest /= d.in;
      const int64_t c0 = rest % deep_ * planes_, c1 = std::min(p_.C, c0 + planes_);
      T* scratch = static_cast<T*>(memory);
      std::fill_n(scratch, size_, T{0});  // so that nothing is read before it is written
      for (int64_t c = c0; c < c1; ++c) run_tile(t, rest / deep_, c, scratch);
    });
  }

 private:
  void run_tile(const Tile& t, int64_t n, int64_t c, T* scratch) {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const int64_t wide = t.pw.end - t.pw.begin, tall = t.ph.end - t.ph.begin, lines = (t.pd.end - t.pd.begin) * tall;
    T* values = scratch;  // dy, with room on both sides for windows that do not exist
    T* marks = values + lines * pitch_;
    T* source = marks + (maximum_ ? lines * pitch_ : 0);
    auto line = [&](int64_t od, int64_t oh) { return ((od - t.pd.begin) * tall + oh - t.ph.begin) * pitch_ + frame_; };
    const T* dy = dy_ + n * ys_.n + c * ys_.c;
    for (int64_t od = t.pd.begin; od < t.pd.end; ++od)
      stage_values(t, dy, od, values + line(od, t.ph.begin), wide, tall);
    int64_t used = 0;
    if (maximum_) used = marks_.stage(t, n, c, marks, source);
    T* spread = source + used;
    T* dx = dx_ + n * ds_.n + c * ds_.c + t.d * ds_.s[0];
    Cover cd[kPoolTaps], ch[kPoolTaps];
    const int64_t nd = list_covers(p_.axis[0], t.d, cd);
    const T* pointers[kPoolTaps];
    const T* names[kPoolTaps];
    T codes[kPoolTaps];
    for_phases(h, t.h0, t.h1, [&](int64_t row, int64_t count) {
      const int64_t nh = list_covers(h, row, ch);
      for (int64_t phase = 0; phase < std::min(w.stride, t.w1 - t.w0); ++phase) {
        const int64_t first = t.w0 + phase;
        PoolArgs<T> a{};
        for (int64_t i = 0; i < nd; ++i)
          for (int64_t j = 0; j < nh; ++j)
            for (int64_t k = w.kernel - 1; k >= 0; --k) {
              const int64_t begin = first + w.pad - k * w.dilation;
              if (begin % w.stride != 0) continue;
              // Windows that do not exist fall into the lines' frames.
              const int64_t at = line(cd[i].window, ch[j].window) + begin / w.stride - t.pw.begin;
              pointers[a.count] = values + at;
              names[a.count] = marks + at;
              codes[a.count++] = static_cast<T>((cd[i].tap * h.kernel + ch[j].tap) * w.kernel + k);
            }
        a.src = pointers, a.marks = names, a.codes = codes;
        a.n = (t.w1 - first + w.stride - 1) / w.stride, a.rows = count;
        a.src_pitch = a.phase_pitch = pitch_;
        if (w.stride == 1) {
          a.dst = dx + row * ds_.s[1] + first, a.dst_pitch = h.stride * ds_.s[1];
        } else {
          a.dst = spread + phase * phase_, a.dst_pitch = w.stride * phase_;
        }
        if (maximum_) {
          kernels_.pool_route(a);
        } else {
          a.op = kPoolSum, a.finish = same_ ? kPoolDivide : kPoolPlain;
          a.divisor = same_ ? static_cast<T>(p_.divisor_of(0, 0, 0)) : T{1};
          kernels_.pool_combine(a);
        }
      }
      if (w.stride == 1) return;
      PoolArgs<T> m{};
      const T* from = spread;
      m.src = &from, m.n = t.w1 - t.w0, m.rows = count, m.stride = w.stride;
      m.src_pitch = w.stride * phase_, m.phase_pitch = phase_;
      m.dst = dx + row * ds_.s[1] + t.w0, m.dst_pitch = h.stride * ds_.s[1];
      kernels_.pool_merge(m);
    });
  }

  // The gradients, each divided where the divisors differ.
  void stage_values(const Tile& t, const T* dy, int64_t od, T* to, int64_t wide, int64_t tall) {
    if (wide == 0 || tall == 0) return;
    PoolArgs<T> a{};
    const T* from = dy + od * ys_.s[0] + t.ph.begin * ys_.s[1] + t.pw.begin;
    a.src = &from, a.count = 1, a.n = wide, a.rows = tall, a.src_pitch = ys_.s[1];
    a.dst = to, a.dst_pitch = pitch_, a.op = kPoolSum, a.divisor = T{1};
    kernels_.pool_combine(a);
    if (same_) return;
    for (int64_t i = 0; i < tall; ++i)
      for (int64_t q = 0; q < wide; ++q)
        to[i * pitch_ + q] /= static_cast<T>(p_.divisor_of(od, t.ph.begin + i, t.pw.begin + q));
  }

  const Pool& p_;
  const T* dy_;
  T* dx_;
  Strides ys_, ds_;
  const KernelTable<T>& kernels_;
  PlanarMarks<T> marks_;
  bool maximum_, same_;
  int64_t columns_ = 0, frame_ = 0, pitch_ = 0, phase_ = 0;
  int64_t planes_ = 1, step_ = 1, across_ = 1, down_ = 1, deep_ = 1, size_ = 0;
};

// The mean of a whole image back to its elements: one number a channel.
template <class T>
class SpreadMean {
 public:
  SpreadMean(const Pool& p, const T* dy, const Strides& ys, T* dx, const Strides& ds)
      : p_(p), dy_(dy), dx_(dx), ys_(ys), ds_(ds) {}

  const char* path() const { return innermost_ ? "spread; lanes of channels" : "spread; lanes of columns"; }

  const char* prepare() {
    if (p_.kind != PoolKind::average || !is_global(p_)) return "it is not the mean of a whole image";
    innermost_ = channels_innermost(p_, ds_);
    if (!innermost_ && ds_.s[2] != 1) return "neither channels nor columns of dx are neighbours";
    const bool dense = !innermost_ && dense_planes(p_, ds_);
    rows_ = dense ? 1 : p_.axis[0].in * p_.axis[1].in, columns_ = dense ? p_.in_pixels() : p_.axis[2].in;
    step_ = std::max<int64_t>(1, kTaskTerms / 4 / (columns_ * p_.C)), parts_ = (rows_ + step_ - 1) / step_;
    return nullptr;
  }
  int64_t tasks() const { return p_.N * parts_; }
  int64_t bytes() const { return p_.C * static_cast<int64_t>(sizeof(T)); }

  Status run() const {
    const T divisor = static_cast<T>(p_.divisor_of(0, 0, 0));
    const KernelTable<T>& kernels = kernel_table<T>(current_isa());
    const double work = static_cast<double>(p_.N * p_.C) * static_cast<double>(p_.in_pixels()) * 0.1;
    return for_tasks(tasks(), work, bytes(), [&](int64_t task, void* memory) {
      T* share = static_cast<T*>(memory);
      const int64_t n = task / parts_, r0 = task % parts_ * step_, r1 = std::min(rows_, r0 + step_);
      for (int64_t c = 0; c < p_.C; ++c) share[c] = dy_[n * ys_.n + c * ys_.c] / divisor;
      auto row_at = [&](int64_t row) {
        return dx_ + n * ds_.n + row / p_.axis[1].in * ds_.s[0] + row % p_.axis[1].in * ds_.s[1];
      };
      if (!innermost_) {
        for (int64_t row = r0; row < r1; ++row) kernels.fill_rows(row_at(row), share, p_.C, ds_.c, columns_);
        return;
      }
      PoolArgs<T> a{};
      const T* from = share;
      a.src = &from, a.count = 1, a.n = p_.C, a.rows = columns_, a.dst_pitch = ds_.s[2];
      a.op = kPoolSum, a.divisor = T{1};
      for (int64_t row = r0; row < r1; ++row) {
        a.dst = row_at(row);
        kernels.pool_combine(a);
      }
    });
  }

 private:
  const Pool& p_;
  const T* dy_;
  T* dx_;
  const Strides ys_, ds_;
  bool innermost_ = false;
  int64_t rows_ = 1, columns_ = 1, step_ = 1, parts_ = 1;
};

// Whether a path serves the layer: then the decision is its, and it is run where `run` says so. Else the decision has
// the reason.
template <class Path>
bool takes(Path&& path, bool run, PathDecision* d, Status* s) {
  if (const char* why = path.prepare()) {
    d->pass(path.path(), why);
    return false;
  }
  d->path = path.path(), d->tasks = path.tasks(), d->workspace = path.bytes();
  if (run) begin(*d), *s = path.run();
  return true;
}

}  // namespace

template <class T>
Status pool_forward_fast(const Pool& p, const T* x, const Strides& xs, T* y, const Strides& ys, int64_t* indices,
                         const Strides& is, bool run, PathDecision* d) {
  Status s = Status::ok;
  auto take = [&](auto&& path) { return takes(path, run, d, &s); };
  if (p.kind == PoolKind::lp && p.norm != 1 && p.norm != 2) {
    d->pass("vectors", "the exponent is neither 1 nor 2");
    return s;
  }
  if (channels_innermost(p, xs) && ys.c == 1) {
    if constexpr (kFloat<T>) {
      if (indices)
        d->pass("windows in registers; lanes of channels", "indices are wanted");
      else if (take(UsualForward<T>(p, true, x, xs, y, ys)))
        return s;
    }
    take(ChannelsForward<T>(p, x, xs, y, ys, indices, is));
    return s;
  }
  if constexpr (kFloat<T>) {
    if (indices && xs.s[2] == 1) {
      PlanarIndices<T> positions(p, x, xs, indices, is);
      if (const char* why = positions.prepare()) {
        d->pass(positions.path(), why);
        return s;
      }
      PathDecision maxima;
      s = pool_forward_fast<T>(p, x, xs, y, ys, nullptr, is, run, &maxima);
      if (s != Status::ok) return s;
      if (!*maxima.path) {
        d->pass(positions.path(), "the maxima have no path by vectors");
        return s;
      }
      take(positions);
      d->before = maxima.path, d->again = "the caches or memory";
      d->workspace = std::max(d->workspace, maxima.workspace);
      return s;
    }
  }
  if (indices) {
    d->pass("lanes of columns", kFloat<T> ? "columns of x are not neighbours" : "indices of integers are wanted");
    return s;
  }
  const bool rows = xs.s[2] == 1 && ys.s[2] == 1;
  constexpr const char* kApart = "columns of x and y are not both neighbours, nor are their channels";
  if constexpr (kFloat<T>) {
    if (take(Turned<T>(p, x, xs, y, ys)) || take(WholePlanes<T>(p, x, xs, y, ys))) return s;
    if (rows && take(UsualForward<T>(p, false, x, xs, y, ys))) return s;
  }
  if (rows)
    take(PlanarForward<T>(p, x, xs, y, ys));
  else
    d->pass("lanes of columns", kApart);
  return s;
}

template <class T>
Status pool_backward_fast(const Pool& p, const T* dy, const Strides& ys, const T* x, const Strides& xs, T* dx,
                          const Strides& ds, bool run, PathDecision* d) {
  Status s = Status::ok;
  auto take = [&](auto&& path) { return takes(path, run, d, &s); };
  if (p.kind == PoolKind::lp) {
    d->pass("vectors", "a norm");
    return s;
  }
  for (const Axis& a : p.axis)
    if (a.adaptive) {
      d->pass("vectors", "windows are adaptive");
      return s;
    }
  if (take(SpreadMean<T>(p, dy, ys, dx, ds))) return s;
  const bool maximum = p.kind == PoolKind::max;
  const bool pixels = channels_innermost(p, ds) && ys.c == 1 && (!maximum || xs.c == 1);
  const bool planar = ys.s[2] == 1 && ds.s[2] == 1 && (!maximum || xs.s[2] == 1);
  if (!pixels && !planar) {
    d->pass("vectors", "neither channels nor columns are neighbours in all operands");
    return s;
  }
  Pool q;
  if (turned_around(p, &q)) {
    if (!pixels && take(Turned<T>(q, dy, ys, dx, ds))) return s;
    take(UsualForward<T>(q, pixels, dy, ys, dx, ds));
    return s;
  }
  if (take(UsualBackward<T>(p, pixels, dy, ys, x, xs, dx, ds))) return s;
  if (pixels)
    take(ChannelsBackward<T>(p, dy, ys, x, xs, dx, ds));
  else
    take(PlanarBackward<T>(p, dy, ys, x, xs, dx, ds));
  return s;
}

#define FASTCONV_INSTANTIATE(T)                                                                             \
  template Status pool_forward_fast<T>(const Pool&, const T*, const Strides&, T*, const Strides&, int64_t*, \
                                       const Strides&, bool, PathDecision*);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)
FASTCONV_INSTANTIATE(int8_t)
FASTCONV_INSTANTIATE(uint8_t)
FASTCONV_INSTANTIATE(int16_t)
FASTCONV_INSTANTIATE(int32_t)
FASTCONV_INSTANTIATE(int64_t)
#undef FASTCONV_INSTANTIATE
template Status pool_backward_fast<float>(const Pool&, const float*, const Strides&, const float*, const Strides&,
                                          float*, const Strides&, bool, PathDecision*);
template Status pool_backward_fast<double>(const Pool&, const double*, const Strides&, const double*, const Strides&,
                                           double*, const Strides&, bool, PathDecision*);

}  // namespace fastconv::ops
