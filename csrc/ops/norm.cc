// Normalisation: canonicalise -> statistics in pieces of fixed size, joined in order -> apply.
//
// x becomes (N, C, P) in one of two memory orders: planes, whose rows are the pixels of a channel, or columns, whose
// rows are the channels of a pixel. No sum is ever divided by threads: pieces follow from the shape, each is summed by
// one task, and they are joined in order, in double.
#include "fastconv/norm.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "dispatch/kernel_table.h"
#include "ops/memory.h"
#include "ops/norm.h"
#include "ops/parallel.h"
#include "ops/path.h"
#include "ops/stream.h"

namespace fastconv {
namespace ops {

using namespace norms;

namespace {

// Nanoseconds a byte that a pass over memory takes on one core, about.
constexpr double kByte = 0.05;
// Bytes of a task, about.
constexpr int64_t kTaskBytes = 1 << 18;
// Bytes of a row's piece, which is read twice and stays in the first-level cache between.
constexpr int64_t kPieceBytes = 16384;
// Rows of a piece by columns.
constexpr int64_t kPieceRows = 256;
// Sets of pixels up to this size are summed and normalised in one task.
constexpr int64_t kLargeBytes = 1 << 22;
// Operands of a set that stay in the first-level cache between its sums and its result.
constexpr int64_t kFirstLevel = 28672;
// Sets that a task takes together.
constexpr int64_t kSetBytes = 1 << 18;
constexpr int64_t kPiecesATask = 16;
// Planes below so many bytes are asked for ahead of their statistics.
constexpr int64_t kSmallPlane = 1024;
// Columns whose sums are kept in the first-level cache at a time.
constexpr int64_t kPieceColumns = 512;
// Channels of a pixel in planes that are summed without being joined in double.
constexpr int64_t kPixelChannels = 1024;
// Bytes of the rows that are summed, and then normalised from the first-level cache.
constexpr int64_t kTileBytes = 12288;

enum class Order { planes, columns };

// How a call goes over the sets of elements that share a norm.
enum class Way {
  given,   // the statistics are there: one pass
  rows,    // sets are rows of neighbours: some are summed, and normalised from the first-level cache
  pixels,  // sets are the channels of a pixel, in planes: blocks of pixels
  first,   // a set is summed, and normalised from the first-level cache
  second,  // a task takes as many sets as stay in the second-level cache, or one
  image,   // columns: a task takes the sets of an image
  large,   // all threads sum a set, then all normalise it
};

// The cache that holds so many bytes of operands when they are read again.
const char* found_in(int64_t bytes) {
  const CacheSizes caches = cache_sizes();
  if (bytes <= kFirstLevel) return "the first-level cache";
  if (bytes <= caches.l2) return "the second-level cache";
  return bytes <= caches.l3 ? "the last-level cache" : "memory";
}

// One operand of a call in its memory order.
template <class T>
struct Image {
  T* data = nullptr;
  Lay s;
  T* at(int64_t n, int64_t c, int64_t p) const { return data ? data + n * s.n + c * s.c + p * s.p : nullptr; }
};

// The memory order that suits all operands that are present.
Status common_order(const NormDesc& desc, const Shape& shape, const TensorView* const* views, Lay* lays, int count,
                    Order* order) {
  bool planes = shape.P > 1 || shape.C == 1, columns = true;
  for (int i = 0; i < count; ++i) {
    if (absent(*views[i])) continue;
    if (!lay_of(desc, *views[i], &lays[i])) return Status::unsupported;
    if (shape.P == 1) lays[i].p = 1;
    if (shape.C == 1) lays[i].c = 1;
    planes = planes && lays[i].p == 1;
    columns = columns && lays[i].c == 1;
  }
  if (!planes && !columns) return Status::unsupported;
  // A single channel is one long row.
  *order = planes && (shape.C == 1 || !columns) ? Order::planes : Order::columns;
  return Status::ok;
}

// An entry a channel, of any stride.
template <class T>
struct Channels {
  const T* data;
  int64_t stride;
  explicit Channels(const TensorView& v) : data(static_cast<const T*>(v.data)), stride(1) {
    if (data) merged_stride(v, 0, v.ndim, &stride);
  }
  double at(int64_t c, double otherwise) const { return data ? static_cast<double>(data[c * stride]) : otherwise; }
};

// A result a channel, which may be absent.
template <class T>
struct Kept {
  T* data;
  int64_t stride = 1;
  explicit Kept(const TensorView& v) : data(static_cast<T*>(v.data)) {
    if (data) merged_stride(v, 0, v.ndim, &stride);
  }
  void put(int64_t c, double value) const {
    if (data) data[c * stride] = static_cast<T>(value);
  }
};

// A mean in two numbers of T and the reciprocal of the deviation.
template <class T>
struct Norm {
  T high;
  double low, inv;
  Norm() = default;
  Norm(double mean, double variance, double eps)
      : high(static_cast<T>(mean)),
        low(std::isfinite(mean) ? mean - static_cast<double>(high) : 0),
        inv(1 / std::sqrt(variance + eps)) {}
  Norm(const Moments& m, double eps) : Norm(m.mean(), m.deviation() / m.count, eps) {}
};

template <class T>
class NormCall {
 public:
  NormCall(const NormDesc& desc, const Shape& shape, Order order)
      : desc_(desc), shape_(shape), order_(order), kernels_(kernel_table<T>(current_isa())) {}

  Status forward(const NormOperands& o, const Lay* lays, bool run, PathDecision* d) {
    x_ = {static_cast<T*>(o.x.data), lays[0]};
    y_ = {static_cast<T*>(o.y.data), lays[1]};
    residual_ = {static_cast<T*>(o.residual.data), lays[2]};
    act_ = o.act;
    streaming_ = streams(bytes());
    choose_forward(d);
    if (!run) return Status::ok;
    begin(*d);
    if (way_ == Way::given) return inference(o);
    if (way_ == Way::rows) return layer_rows(o);
    return way_ == Way::pixels ? layer_planes(o) : sets(o);
  }

  Status backward(const NormGradients& o, const Lay* lays, bool run, PathDecision* d) {
    dy_ = {static_cast<T*>(o.dy.data), lays[0]};
    x_ = {static_cast<T*>(o.x.data), lays[1]};
    y_ = {static_cast<T*>(o.y.data), lays[2]};
    dx_ = {static_cast<T*>(o.dx.data), lays[3]};
    lower_ = static_cast<T>(o.lower), upper_ = static_cast<T>(o.upper);
    streaming_ = streams(bytes());
    choose_backward(o, d);
    if (!run) return Status::ok;
    begin(*d);
    if (desc_.kind == NormKind::batch) return batch_backward(o);
    if (desc_.kind == NormKind::group) return group_backward(o);
    return way_ == Way::pixels ? layer_planes_backward(o) : layer_rows_backward(o);
  }

 private:
  int64_t bytes() const { return shape_.elements() * static_cast<int64_t>(sizeof(T)); }

  // --- the choice: what the rest goes by -----------------------------------------------------------------------------

  // Elements of a set in planes, and the sets of an image, or of the batch.
  int64_t set_elements() const { return (desc_.kind == NormKind::batch ? shape_.N : shape_.C / groups()) * shape_.P; }
  int64_t images_of_sets() const { return desc_.kind == NormKind::batch ? 1 : shape_.N; }

  void take(Way way, const char* path, int64_t tasks, const char* again, PathDecision* d) {
    way_ = way;
    d->path = path, d->tasks = tasks, d->again = again, d->streaming = streaming_;
  }

  // Sets of norms in planes whose `operands` are read twice.
  void choose_planes(int64_t operands, bool may_be_first, bool may_be_large, PathDecision* d) {
    constexpr const char* kFirst = "a set, from the first-level cache";
    const int64_t set = operands * set_elements() * static_cast<int64_t>(sizeof(T));
    // Several sets in a task, which together stay in the second-level cache between the statistics and the result.
    together_ = std::clamp<int64_t>(kSetBytes / set, 1, groups());
    const int64_t tasks = images_of_sets() * ((groups() + together_ - 1) / together_);
    if (may_be_large && is_large(set_elements())) {
      d->pass(kFirst, "a set has more than 28 KB"), d->pass("sets of a task", "a set has more than 4 MB");
      return take(Way::large, "statistics, then the result; planes", Cut(*this, images_a_set()).tasks, found_in(set),
                  d);
    }
    if (set <= kFirstLevel && may_be_first)
      return take(Way::first, "a set, from the first-level cache; planes", tasks, found_in(set), d);
    d->pass(kFirst, set <= kFirstLevel ? "there is no result" : "a set has more than 28 KB");
    take(Way::second, "sets of a task; planes", tasks, found_in(together_ * set), d);
  }
  int64_t images_a_set() const { return desc_.kind == NormKind::batch ? shape_.N : 1; }

  void choose_columns(int64_t operands, PathDecision* d) {
    d->pass("a set, from the first-level cache",
            "a set is columns of an image, whose rows are the channels of a pixel");
    const int64_t image = operands * shape_.C * shape_.P * static_cast<int64_t>(sizeof(T));
    if (desc_.kind == NormKind::batch || is_large(shape_.C * shape_.P)) {
      d->pass("an image of sets",
              desc_.kind == NormKind::batch ? "a set lies across all images" : "an image has more than 4 MB");
      return take(Way::large, "statistics, then the result; columns", Cut(*this, images_a_set()).tasks,
                  found_in(image * images_a_set()), d);
    }
    take(Way::image, "an image of sets; columns", shape_.N, found_in(image), d);
  }

  void choose_rows(int64_t tasks, PathDecision* d) {
    take(Way::rows, "rows", tasks, found_in(rows_a_tile() * shape_.C * static_cast<int64_t>(sizeof(T))), d);
  }
  void choose_pixels(int64_t operands, PathDecision* d) {
    const int64_t wide = pixels_a_task();
    d->pass("rows", "the channels of a pixel are not neighbours");
    take(Way::pixels, "blocks of pixels; planes", shape_.N * ((shape_.P + wide - 1) / wide),
         found_in(operands * std::min(wide, shape_.P) * shape_.C * static_cast<int64_t>(sizeof(T))), d);
  }

  void choose_forward(PathDecision* d) {
    if (desc_.kind == NormKind::batch && !desc_.training)
      return take(Way::given, order_ == Order::planes ? "one pass; planes" : "one pass; columns",
                  Cut(*this, shape_.N).tasks, "", d);
    if (desc_.kind == NormKind::layer || (desc_.kind == NormKind::channels && order_ == Order::columns)) {
      const int64_t high = rows_a_task(kTaskBytes);
      return choose_rows(row_images() * ((row_count() + high - 1) / high), d);
    }
    if (desc_.kind == NormKind::channels) return choose_pixels(1, d);
    order_ == Order::columns ? choose_columns(1, d) : choose_planes(1, true, true, d);
  }

  void choose_backward(const NormGradients& o, PathDecision* d) {
    const bool sums = desc_.training || desc_.kind != NormKind::batch || !absent(o.dw) || !absent(o.db);
    if (desc_.kind == NormKind::layer || (desc_.kind == NormKind::channels && order_ == Order::columns))
      choose_rows(row_tasks(), d);
    else if (desc_.kind == NormKind::channels)
      choose_pixels(2, d);
    else if (order_ == Order::columns)
      choose_columns(2, d);
    else
      choose_planes(2, !absent(o.dx) || desc_.kind == NormKind::group, desc_.kind == NormKind::batch, d);
    if (!sums || absent(o.dx)) d->again = "";
    if (absent(o.dx)) d->streaming = false;
  }
  double work(double streams_of_x) const { return static_cast<double>(bytes()) * kByte * streams_of_x; }

  // --- apply -----------------------------------------------------------------------------------------------------

  NormApplyArgs<T> apply_args(bool by_column, const T* mean, const T* scale, const T* offset) const {
    NormApplyArgs<T> a{};
    a.by_column = by_column;
    a.mean = mean, a.scale = scale, a.offset = offset;
    a.activation = static_cast<int32_t>(act_.kind);
    a.a = static_cast<T>(act_.a), a.b = static_cast<T>(act_.b);
    a.streaming = streaming_;
    return a;
  }

  // Channels [c0, c1) and pixels [p0, p1) of image n, whose mean, scale and offset begin at channel c0.
  void apply(NormApplyArgs<T> a, int64_t n, int64_t c0, int64_t c1, int64_t p0, int64_t p1) const {
    a.x = x_.at(n, c0, p0), a.y = y_.at(n, c0, p0), a.residual = residual_.at(n, c0, p0);
    const bool planes = order_ == Order::planes;
    a.x_pitch = planes ? x_.s.c : x_.s.p, a.y_pitch = planes ? y_.s.c : y_.s.p;
    a.residual_pitch = planes ? residual_.s.c : residual_.s.p;
    a.rows = planes ? c1 - c0 : p1 - p0, a.columns = planes ? p1 - p0 : c1 - c0;
    kernels_.norm_apply(a);
  }

  // The tasks of a pass over n images: rows, of which long ones are cut as well.
  struct Cut {
    int64_t high, wide, down, across, tasks;
    Cut(const NormCall& call, int64_t n) {
      const bool planes = call.order_ == Order::planes;
      const int64_t outer = planes ? call.shape_.C : call.shape_.P, inner = planes ? call.shape_.P : call.shape_.C;
      high = std::clamp<int64_t>(kTaskBytes / (inner * static_cast<int64_t>(sizeof(T))), 1, outer);
      wide = high == 1 ? std::clamp<int64_t>(kTaskBytes / static_cast<int64_t>(sizeof(T)), 1, inner) : inner;
      down = (outer + high - 1) / high, across = (inner + wide - 1) / wide;
      tasks = n * down * across;
    }
  };

  // All of images [n0, n1), mean, scale and offset by channel, in tasks; the last first, since what has just been read
  // for the statistics is still in the caches.
  Status apply_channels(int64_t n0, int64_t n1, const T* mean, const T* scale, const T* offset) const {
    const bool planes = order_ == Order::planes;
    const int64_t outer = planes ? shape_.C : shape_.P, inner = planes ? shape_.P : shape_.C;
    const Cut cut(*this, n1 - n0);
    const double all = static_cast<double>((n1 - n0) * outer * inner) * sizeof(T) * kByte * 2;
    const NormApplyArgs<T> args = apply_args(!planes, nullptr, nullptr, nullptr);
    return parallel_for(cut.tasks, all, [&](int64_t i, int) {
      i = cut.tasks - 1 - i;
      const int64_t n = n0 + i / (cut.down * cut.across), r0 = i / cut.across % cut.down * cut.high,
                    k0 = i % cut.across * cut.wide;
      const int64_t r1 = std::min(outer, r0 + cut.high), k1 = std::min(inner, k0 + cut.wide);
      const int64_t c0 = planes ? r0 : k0;
      NormApplyArgs<T> a = args;
      a.mean = mean + c0, a.scale = scale + c0, a.offset = offset + c0;
      if (planes)
        apply(a, n, r0, r1, k0, k1);
      else
        apply(a, n, k0, k1, r0, r1);
    });
  }

  // mean, scale and offset of channels [c0, c1) that share a norm: y = (x - high) * (inv * w) + (b - low * inv * w).
  void fold(const Norm<T>& norm, const Channels<T>& weight, const Channels<T>& bias, int64_t c0, int64_t c1, T* mean,
            T* scale, T* offset) const {
    for (int64_t c = c0; c < c1; ++c) {
      const double s = norm.inv * weight.at(c, 1);
      mean[c] = norm.high;
      scale[c] = static_cast<T>(s);
      offset[c] = static_cast<T>(bias.at(c, 0) - norm.low * s);
    }
  }

  Status inference(const NormOperands& o) {
    Workspace vectors(sizeof(T) * static_cast<size_t>(3 * shape_.C));
    if (!vectors) return Status::out_of_memory;
    T* mean = static_cast<T*>(vectors.data());
    const Channels<T> running_mean(o.running_mean), running_var(o.running_var), weight(o.weight), bias(o.bias);
    for (int64_t c = 0; c < shape_.C; ++c)
      fold({running_mean.at(c, 0), running_var.at(c, 1), desc_.eps}, weight, bias, c, c + 1, mean, mean + shape_.C,
           mean + 2 * shape_.C);
    return apply_channels(0, shape_.N, mean, mean + shape_.C, mean + 2 * shape_.C);
  }

  // A channel of small planes is a few lines of each image, which no prefetcher follows: the lines of channels [c0, c1)
  // are asked for in the order of memory.
  void prefetch(const Image<T>& image, int64_t c0, int64_t c1) const {
    if (c1 - c0 < 2 || shape_.P * static_cast<int64_t>(sizeof(T)) >= kSmallPlane) return;
    for (int64_t n = 0; n < shape_.N; ++n)
      for (const T *at = image.at(n, c0, 0), *end = image.at(n, c1 - 1, 0) + shape_.P; at < end; at += 64 / sizeof(T))
        __builtin_prefetch(at, 0, 2);
  }

  // --- statistics of a set: images [n0, n1) x channels [c0, c1)
  // --------------------------------------------------------

  // The pieces of one row of planes of `length`, or of rows that are merged.
  struct RowPieces {
    int64_t rows, length, high, wide;  // a piece is high x wide
    RowPieces(int64_t r, int64_t l) : rows(r), length(l) {
      const int64_t most = kPieceBytes / static_cast<int64_t>(sizeof(T));
      wide = std::min(l, most);
      high = l >= most ? 1 : std::clamp<int64_t>(most / l, 1, r);
    }
    int64_t down() const { return (rows + high - 1) / high; }
    int64_t across() const { return (length + wide - 1) / wide; }
    int64_t count() const { return down() * across(); }
  };

  struct Partial { T shift, sum, square; };

  // The moments of rows `pitch` apart of `length` elements, merged. Large ones are summed by all threads.
  Status row_moments(const T* data, int64_t rows, int64_t length, int64_t pitch, Moments* m) const {
    const RowPieces pieces(rows, length);
    auto piece = [&](int64_t k) {
      const int64_t i = k / pieces.across(), j = k % pieces.across();
      Partial s;
      NormStatsArgs<T> a{};
      a.x = data + i * pieces.high * pitch + j * pieces.wide;
      a.rows = std::min(pieces.high, rows - i * pieces.high);
      a.columns = std::min(pieces.wide, length - j * pieces.wide);
      a.pitch = pitch;
      a.count = 1;
      a.shift = &s.shift, a.sum = &s.sum, a.square = &s.square;
      kernels_.norm_stats(a);
      return s;
    };
    auto join = [&](int64_t k, const Partial& s) {
      const int64_t i = k / pieces.across(), j = k % pieces.across();
      const double n = static_cast<double>(std::min(pieces.high, rows - i * pieces.high)) *
                       static_cast<double>(std::min(pieces.wide, length - j * pieces.wide));
      m->add(n, static_cast<double>(s.shift), static_cast<double>(s.sum), static_cast<double>(s.square));
    };
    *m = {};
    const int64_t count = pieces.count();
    if (!is_large(rows * length)) {
      for (int64_t k = 0; k < count; ++k) join(k, piece(k));
      return Status::ok;
    }
    Scratch partials(count * static_cast<int64_t>(sizeof(Partial)));
    if (partials.failed()) return Status::out_of_memory;
    Partial* all = static_cast<Partial*>(partials.data());
    const int64_t tasks = (count + kPiecesATask - 1) / kPiecesATask;
    const Status s = parallel_for(tasks, work(1), [&](int64_t i, int) {
      for (int64_t k = i * kPiecesATask; k < std::min(count, (i + 1) * kPiecesATask); ++k) all[k] = piece(k);
    });
    if (s != Status::ok) return s;
    for (int64_t k = 0; k < count; ++k) join(k, all[k]);
    return Status::ok;
  }

  // Sets of so many elements are divided among threads; smaller ones are a task each.
  static bool is_large(int64_t elements) { return elements * static_cast<int64_t>(sizeof(T)) > kLargeBytes; }

  // The sums of each channel, one array after the other.
  struct Columns {
    double *about, *sum, *square;
    Columns(double* data, int64_t C) : about(data), sum(data + C), square(data + 2 * C) {}
    Moments at(int64_t c, double count) const {
      Moments m;
      m.count = count, m.about = about[c], m.sum = sum[c], m.square = square[c];
      return m;
    }
  };

  // Chunks of kPieceRows rows; those of one image follow those of another.
  int64_t chunks_an_image() const { return (shape_.P + kPieceRows - 1) / kPieceRows; }

  // Calls do_chunk(k, part) for each chunk of images [n0, n1), which leaves so many arrays of C in `part`, and then
  // join(k, part, c0, c1), in the order of the chunks. Large sets in several tasks.
  template <class Chunk, class Join>
  Status by_chunks(int64_t n0, int64_t n1, bool large, int64_t arrays, Chunk do_chunk, Join join) const {
    const int64_t C = shape_.C, count = (n1 - n0) * chunks_an_image(), size = arrays * C;
    if (!large) {
      Workspace buffer(sizeof(T) * static_cast<size_t>(size));
      if (!buffer) return Status::out_of_memory;
      T* part = static_cast<T*>(buffer.data());
      for (int64_t k = 0; k < count; ++k) do_chunk(k, part), join(k, part, 0, C);
      return Status::ok;
    }
    Scratch partials(count * size * static_cast<int64_t>(sizeof(T)));
    if (partials.failed()) return Status::out_of_memory;
    T* all = static_cast<T*>(partials.data());
    const int64_t step = std::max<int64_t>(1, kTaskBytes / (kPieceRows * C * static_cast<int64_t>(sizeof(T))));
    Status s = parallel_for((count + step - 1) / step, work(1), [&](int64_t i, int) {
      for (int64_t k = i * step; k < std::min(count, (i + 1) * step); ++k) do_chunk(k, all + k * size);
    });
    if (s != Status::ok) return s;
    constexpr int64_t kWide = 64;
    return parallel_for((C + kWide - 1) / kWide, static_cast<double>(count * C) * 2, [&](int64_t i, int) {
      for (int64_t k = 0; k < count; ++k) join(k, all + k * size, i * kWide, std::min(C, (i + 1) * kWide));
    });
  }

  int64_t chunk_rows(int64_t k) const { return std::min(kPieceRows, shape_.P - k % chunks_an_image() * kPieceRows); }

  // The moments of the channels of images [n0, n1), in columns.
  Status column_moments(int64_t n0, int64_t n1, bool large, Columns to) const {
    const int64_t C = shape_.C;
    return by_chunks(
        n0, n1, large, 3,
        [&](int64_t k, T* part) {
          const int64_t n = n0 + k / chunks_an_image(), p = k % chunks_an_image() * kPieceRows;
          for (int64_t c = 0; c < C; c += kPieceColumns) {
            NormStatsArgs<T> a{};
            a.x = x_.at(n, c, p);
            a.rows = chunk_rows(k), a.columns = std::min(kPieceColumns, C - c), a.pitch = x_.s.p;
            a.by_column = 1;
            a.shift = part + c, a.sum = part + C + c, a.square = part + 2 * C + c;
            kernels_.norm_stats(a);
          }
        },
        [&](int64_t k, const T* part, int64_t c0, int64_t c1) {
          const double n = static_cast<double>(chunk_rows(k));
          if (k == 0)
            for (int64_t c = c0; c < c1; ++c)
              to.about[c] = part[c], to.sum[c] = part[C + c], to.square[c] = part[2 * C + c];
          else
            for (int64_t c = c0; c < c1; ++c) {
              const double d = part[c] - to.about[c], s = part[C + c];
              to.sum[c] += s + n * d;
              to.square[c] += part[2 * C + c] + d * (2 * s + n * d);
            }
        });
  }

  // --- batch and group norm ----------------------------------------------------------------------------------------

  int64_t groups() const { return desc_.kind == NormKind::batch || desc_.groups == 0 ? shape_.C : desc_.groups; }

  // Columns: mean, scale and offset of all channels of images [n0, n1), which share their statistics.
  template <class Use>
  Status column_norms(int64_t n0, int64_t n1, bool large, Use use) const {
    const int64_t C = shape_.C, width = C / groups();
    Workspace buffer(sizeof(double) * static_cast<size_t>(3 * C));
    if (!buffer) return Status::out_of_memory;
    const Columns sums(static_cast<double*>(buffer.data()), C);
    const Status s = column_moments(n0, n1, large, sums);
    if (s != Status::ok) return s;
    const double count = static_cast<double>((n1 - n0) * shape_.P);
    for (int64_t c = 0; c < C; c += width) {
      Moments m = sums.at(c, count);
      if (width > 1) {
        Moments all;
        for (int64_t i = c; i < c + width; ++i) {
          const Moments one = sums.at(i, count);
          all.add(count, one.mean(), 0, one.deviation());
        }
        m = all;
      }
      use(c, c + width, m);
    }
    return Status::ok;
  }

  // The moments of group g of image n, or of channel g of all images, in planes.
  Status plane_moments(int64_t n, int64_t g, Moments* m) const {
    const int64_t width = shape_.C / groups();
    if (desc_.kind == NormKind::batch) return row_moments(x_.at(0, g, 0), shape_.N, shape_.P, x_.s.n, m);
    if (x_.s.c == shape_.P) return row_moments(x_.at(n, g * width, 0), 1, width * shape_.P, 0, m);
    return row_moments(x_.at(n, g * width, 0), width, shape_.P, x_.s.c, m);
  }

  Status sets(const NormOperands& o) {
    const int64_t C = shape_.C, N = shape_.N, P = shape_.P, width = C / groups();
    const bool batch = desc_.kind == NormKind::batch;
    const Channels<T> weight(o.weight), bias(o.bias);
    const int64_t set_images = batch ? N : 1, images = batch ? 1 : N;  // sets of images
    const int64_t vectors = order_ == Order::planes && !batch ? N * C : C;
    Scratch scratch(3 * vectors * static_cast<int64_t>(sizeof(T)));
    if (scratch.failed()) return Status::out_of_memory;
    T* mean = static_cast<T*>(scratch.data());
    T *scale = mean + vectors, *offset = scale + vectors;
    const Kept<T> kept_mean(o.mean), kept_inv(o.inv_std), running_mean(o.running_mean), running_var(o.running_var);
    const Channels<T> old_mean(o.running_mean), old_var(o.running_var);
    // What the call leaves behind, written when nothing can go wrong any more.
    auto keep = [&](int64_t c, const Moments& m, const Norm<T>& norm) {
      if (!batch) return;
      kept_mean.put(c, static_cast<double>(norm.high));
      kept_inv.put(c, norm.inv);
      if (!running_mean.data && !running_var.data) return;
      const double k = desc_.momentum, variance = m.deviation() / (desc_.unbiased ? m.count - 1 : m.count);
      running_mean.put(c, (1 - k) * old_mean.at(c, 0) + k * m.mean());
      running_var.put(c, (1 - k) * old_var.at(c, 0) + k * variance);
    };
    if (order_ == Order::columns) {
      const bool large = way_ == Way::large;
      auto image_set = [&](int64_t i, T* m) {
        Status s = column_norms(i * set_images, (i + 1) * set_images, large,
                                [&](int64_t c0, int64_t c1, const Moments& moments) {
                                  const Norm<T> norm(moments, desc_.eps);
                                  fold(norm, weight, bias, c0, c1, m, m + C, m + 2 * C);
                                  keep(c0, moments, norm);
                                });
        if (s != Status::ok) return s;
        return apply_channels(i * set_images, (i + 1) * set_images, m, m + C, m + 2 * C);
      };
      if (large) {
        for (int64_t i = 0; i < images; ++i) {
          const Status s = image_set(i, mean);
          if (s != Status::ok) return s;
        }
        return Status::ok;
      }
      return each(images, work(2), [&](int64_t i) {
        Workspace own(sizeof(T) * static_cast<size_t>(3 * C));
        if (!own) return Status::out_of_memory;
        return image_set(i, static_cast<T*>(own.data()));
      });
    }

    auto statistics = [&](int64_t n, int64_t g) {
      Moments m;
      const Status s = plane_moments(n, g, &m);
      if (s != Status::ok) return s;
      const Norm<T> norm(m, desc_.eps);
      const int64_t from = batch ? 0 : n * C;
      fold(norm, weight, bias, g * width, (g + 1) * width, mean + from, scale + from, offset + from);
      keep(g, m, norm);
      return Status::ok;
    };
    if (way_ == Way::large) {
      for (int64_t n = 0; n < images; ++n) {
        for (int64_t g = 0; g < groups(); ++g) {
          const Status s = statistics(n, g);
          if (s != Status::ok) return s;
        }
        const int64_t from = n * C;
        const Status s = apply_channels(n * set_images, (n + 1) * set_images, mean + from, scale + from, offset + from);
        if (s != Status::ok) return s;
      }
      return Status::ok;
    }
    const int64_t tasks_an_image = (groups() + together_ - 1) / together_;
    return each(images * tasks_an_image, work(2), [&](int64_t i) {
      const int64_t n = i / tasks_an_image, g0 = i % tasks_an_image * together_;
      const int64_t g1 = std::min(groups(), g0 + together_);
      if (batch) prefetch(x_, g0, g1);
      const int64_t from = batch ? 0 : n * C, c0 = g0 * width;
      if (way_ == Way::first) {
        // A channel of the batch is a row an image, all of one norm.
        const bool rows = batch && N > 1;
        Workspace same(rows ? sizeof(T) * static_cast<size_t>(3 * N) : 0);
        if (rows && !same) return Status::out_of_memory;
        T* v = static_cast<T*>(same.data());
        for (int64_t g = g0; g < g1; ++g) {
          const Status s = statistics(n, g);
          if (s != Status::ok) return s;
          const int64_t c = from + g * width;
          if (!rows) {
            apply(apply_args(false, mean + c, scale + c, offset + c), n, g * width, (g + 1) * width, 0, P);
            continue;
          }
          std::fill_n(v, N, mean[c]), std::fill_n(v + N, N, scale[c]), std::fill_n(v + 2 * N, N, offset[c]);
          NormApplyArgs<T> a = apply_args(false, v, v + N, v + 2 * N);
          a.x = x_.at(0, g, 0), a.y = y_.at(0, g, 0), a.residual = residual_.at(0, g, 0);
          a.x_pitch = x_.s.n, a.y_pitch = y_.s.n, a.residual_pitch = residual_.s.n;
          a.rows = N, a.columns = P;
          kernels_.norm_apply(a);
        }
        return Status::ok;
      }
      for (int64_t g = g0; g < g1; ++g) {
        const Status s = statistics(n, g);
        if (s != Status::ok) return s;
      }
      const NormApplyArgs<T> a = apply_args(false, mean + from + c0, scale + from + c0, offset + from + c0);
      for (int64_t m = (n + 1) * set_images - 1; m >= n * set_images; --m) apply(a, m, c0, g1 * width, 0, P);
      return Status::ok;
    });
  }

  // parallel_for whose tasks may fail.
  template <class Body>
  Status each(int64_t tasks, double total, Body body) const {
    std::atomic<int32_t> failed{0};
    const Status s = parallel_for(tasks, total, [&](int64_t i, int) {
      const Status own = body(i);
      if (own != Status::ok) failed.store(static_cast<int32_t>(own), std::memory_order_relaxed);
    });
    return s != Status::ok ? s : static_cast<Status>(failed.load());
  }

  // --- layer norm: rows of neighbouring channels -------------------------------------------------------------------

  // Rows are those of the tensor (kind layer) or the pixels of an image.
  int64_t row_count() const { return desc_.kind == NormKind::layer ? shape_.N : shape_.P; }
  int64_t row_images() const { return desc_.kind == NormKind::layer ? 1 : shape_.N; }
  int64_t row_pitch(const Lay& s) const { return desc_.kind == NormKind::layer ? s.n : s.p; }

  // n sets of `count` elements each: from shift, sum and square, `room` apart, to mean, scale and offset.
  void finish(T* mean, int64_t room, int64_t n, int64_t count) const {
    NormFinishArgs<T> a{};
    a.n = n, a.count = static_cast<T>(count), a.eps = static_cast<T>(desc_.eps);
    a.mean = mean, a.scale = mean + room, a.offset = mean + 2 * room;
    kernels_.norm_finish(a);
  }

  // Elements of a row that are summed without being joined in double.
  static constexpr int64_t kPiece = kPieceBytes / static_cast<int64_t>(sizeof(T));

  // The norms of so many rows from x on, and what a kernel wants of them: mean, scale and offset, `room` apart.
  void row_norms(const T* x, int64_t rows, int64_t pitch, T* mean, int64_t room) const {
    const int64_t C = shape_.C;
    NormStatsArgs<T> a{};
    a.rows = 1;
    if (C <= kPiece) {
      a.x = x, a.columns = C, a.count = rows, a.step = pitch;
      a.shift = mean, a.sum = mean + room, a.square = mean + 2 * room;
      kernels_.norm_stats(a);
      return finish(mean, room, rows, C);
    }
    for (int64_t r = 0; r < rows; ++r) {
      Moments m;
      for (int64_t c = 0; c < C; c += kPiece) {
        Partial s;
        a.x = x + r * pitch + c, a.columns = std::min(kPiece, C - c), a.count = 1;
        a.shift = &s.shift, a.sum = &s.sum, a.square = &s.square;
        kernels_.norm_stats(a);
        m.add(static_cast<double>(a.columns), static_cast<double>(s.shift), static_cast<double>(s.sum),
              static_cast<double>(s.square));
      }
      const Norm<T> norm(m, desc_.eps);
      mean[r] = norm.high;
      mean[room + r] = static_cast<T>(norm.inv);
      mean[2 * room + r] = static_cast<T>(-norm.low * norm.inv);
    }
  }

  // weight and bias as dense arrays; null where absent.
  struct Dense {
    Workspace memory;
    const T *weight = nullptr, *bias = nullptr;
    Dense(const TensorView& w, const TensorView& b, int64_t C) : memory(sizeof(T) * static_cast<size_t>(2 * C)) {
      if (!memory) return;
      T* to = static_cast<T*>(memory.data());
      const Channels<T> from_w(w), from_b(b);
      if (!absent(w)) {
        for (int64_t c = 0; c < C; ++c) to[c] = from_w.data[c * from_w.stride];
        weight = to;
      }
      if (!absent(b)) {
        for (int64_t c = 0; c < C; ++c) to[C + c] = from_b.data[c * from_b.stride];
        bias = to + C;
      }
    }
  };

  // Rows of a task, whose sums stay on its stack.
  static constexpr int64_t kMostRows = 256;
  int64_t rows_a_task(int64_t of_bytes) const {
    return std::clamp<int64_t>(of_bytes / (shape_.C * static_cast<int64_t>(sizeof(T))), 1, kMostRows);
  }

  // Rows that are summed and then normalised while they are in the first-level cache; it changes no bits.
  int64_t rows_a_tile() const {
    return std::clamp<int64_t>(kTileBytes / (shape_.C * static_cast<int64_t>(sizeof(T))) / 4 * 4, 4, 64);
  }

  Status layer_rows(const NormOperands& o) {
    const Dense params(o.weight, o.bias, shape_.C);
    if (!params.memory) return Status::out_of_memory;
    const int64_t rows = row_count(), high = rows_a_task(kTaskBytes), down = (rows + high - 1) / high;
    const int64_t tile = rows_a_tile();
    const bool layer = desc_.kind == NormKind::layer;
    return parallel_for(row_images() * down, work(2), [&](int64_t i, int) {
      const int64_t n = i / down, r0 = i % down * high, r1 = std::min(rows, r0 + high);
      NormApplyArgs<T> a = apply_args(false, nullptr, nullptr, nullptr);
      a.weight = params.weight, a.bias = params.bias;
      a.x_pitch = row_pitch(x_.s), a.y_pitch = row_pitch(y_.s), a.residual_pitch = row_pitch(residual_.s);
      a.columns = shape_.C;
      T vectors[3 * kMostRows];
      a.mean = vectors, a.scale = vectors + kMostRows, a.offset = vectors + 2 * kMostRows;
      for (int64_t r = r0; r < r1; r += tile) {
        auto at = [&](const auto& image) { return layer ? image.at(r, 0, 0) : image.at(n, 0, r); };
        a.rows = std::min(tile, r1 - r);
        a.x = at(x_), a.y = at(y_), a.residual = at(residual_);
        row_norms(a.x, a.rows, a.x_pitch, vectors, kMostRows);
        kernels_.norm_apply(a);
      }
    });
  }

  // --- layer norm over channels in planes: a norm a pixel ------------------------------------------------------------

  // Pixels of a task: their channels together stay in the second-level cache. Follows from the shape alone.
  static constexpr int64_t kMostPixels = 1024;
  int64_t pixels_a_task() const {
    const int64_t pixels = kTaskBytes / static_cast<int64_t>(sizeof(T)) / shape_.C;
    return std::clamp<int64_t>(pixels / 64 * 64, 64, kMostPixels);
  }

  // The norms of pixels [p0, p1) of image n: mean, scale and offset, kMostPixels apart.
  void pixel_norms(int64_t n, int64_t p0, int64_t p1, T* mean) const {
    const int64_t C = shape_.C, wide = p1 - p0;
    NormStatsArgs<T> a{};
    a.columns = wide, a.pitch = x_.s.c;
    a.by_column = 1;
    if (C <= kPixelChannels) {
      a.x = x_.at(n, 0, p0), a.rows = C;
      a.shift = mean, a.sum = mean + kMostPixels, a.square = mean + 2 * kMostPixels;
      kernels_.norm_stats(a);
      return finish(mean, kMostPixels, wide, C);
    }
    T part[3 * kMostPixels];
    Moments sums[kMostPixels];
    a.shift = part, a.sum = part + kMostPixels, a.square = part + 2 * kMostPixels;
    for (int64_t c = 0; c < C; c += kPixelChannels) {
      a.x = x_.at(n, c, p0), a.rows = std::min(kPixelChannels, C - c);
      kernels_.norm_stats(a);
      for (int64_t p = 0; p < wide; ++p)
        sums[p].add(static_cast<double>(a.rows), static_cast<double>(a.shift[p]), static_cast<double>(a.sum[p]),
                    static_cast<double>(a.square[p]));
    }
    for (int64_t p = 0; p < wide; ++p) {
      const Norm<T> norm(sums[p], desc_.eps);
      mean[p] = norm.high;
      mean[kMostPixels + p] = static_cast<T>(norm.inv);
      mean[2 * kMostPixels + p] = static_cast<T>(-norm.low * norm.inv);
    }
  }

  Status layer_planes(const NormOperands& o) {
    const Dense params(o.weight, o.bias, shape_.C);
    if (!params.memory) return Status::out_of_memory;
    const int64_t P = shape_.P, wide = pixels_a_task(), across = (P + wide - 1) / wide;
    return parallel_for(shape_.N * across, work(2), [&](int64_t i, int) {
      const int64_t n = i / across, p0 = i % across * wide, p1 = std::min(P, p0 + wide);
      T vectors[3 * kMostPixels];
      pixel_norms(n, p0, p1, vectors);
      NormApplyArgs<T> a = apply_args(true, vectors, vectors + kMostPixels, vectors + 2 * kMostPixels);
      a.weight = params.weight, a.bias = params.bias;
      apply(a, n, 0, shape_.C, p0, p1);
    });
  }

  // --- gradients -----------------------------------------------------------------------------------------------------

  NormSumsArgs<T> sums_args(int64_t n, int64_t c, int64_t p) const {
    NormSumsArgs<T> a{};
    const bool planes = order_ == Order::planes;
    a.dy = dy_.at(n, c, p), a.x = x_.at(n, c, p), a.y = y_.at(n, c, p);
    a.dy_pitch = planes ? dy_.s.c : dy_.s.p, a.x_pitch = planes ? x_.s.c : x_.s.p;
    a.y_pitch = planes ? y_.s.c : y_.s.p;
    a.lower = lower_, a.upper = upper_;
    return a;
  }

  NormGradientArgs<T> gradient_args(int64_t n, int64_t c, int64_t p, bool needs_x) const {
    NormGradientArgs<T> a{};
    const NormSumsArgs<T> s = sums_args(n, c, p);
    a.dx = dx_.at(n, c, p), a.dy = s.dy, a.x = needs_x ? s.x : nullptr, a.y = s.y;
    a.dx_pitch = order_ == Order::planes ? dx_.s.c : dx_.s.p;
    a.dy_pitch = s.dy_pitch, a.x_pitch = s.x_pitch, a.y_pitch = s.y_pitch;
    a.lower = lower_, a.upper = upper_;
    a.streaming = streaming_;
    return a;
  }

  // A channel's sums of dy, dy * (x - mean) and x - mean.
  struct Sums {
    double g = 0, gt = 0, t = 0;
    void add(T of_g, T of_gt, T of_t) {
      g += static_cast<double>(of_g), gt += static_cast<double>(of_gt), t += static_cast<double>(of_t);
    }
  };

  // The moments of a channel, row or pixel, and its sums of g and of g * (x - moments.about), from pieces.
  struct OwnSums {
    Moments moments;
    double g = 0, gt = 0;
    void add(double n, T shift, T of_t, T of_tt, T of_g, T of_gt) {
      if (moments.count == 0) {
        moments = {n, static_cast<double>(shift), static_cast<double>(of_t), static_cast<double>(of_tt)};
        g = static_cast<double>(of_g), gt = static_cast<double>(of_gt);
        return;
      }
      moments.add(n, static_cast<double>(shift), static_cast<double>(of_t), static_cast<double>(of_tt));
      g += static_cast<double>(of_g);
      gt += static_cast<double>(of_gt) + (static_cast<double>(shift) - moments.about) * static_cast<double>(of_g);
    }
    // The sum of g * (x - mean).
    double about(double mean) const { return gt + (moments.about - mean) * g; }
  };

  // dx = a * dy * weight + b * (x - high) + c over `count` elements, whose sums of dy * weight and of that times x
  // minus the true mean are g and gt.
  struct Coefficients {
    double a, b, c;
    Coefficients(double inv, double low, double g, double gt, double count)
        : a(inv), b(-inv * inv * inv * gt / count), c(-inv * g / count - b * low) {}
  };

  // The vectors of NormGradientArgs, one behind the other.
  struct Vectors {
    T *mean, *a, *b, *c;
    Vectors(T* data, int64_t room) : mean(data), a(data + room), b(data + 2 * room), c(data + 3 * room) {}
    void set(int64_t i, T high, const Coefficients& k, double weight) const {
      mean[i] = high, a[i] = static_cast<T>(k.a * weight), b[i] = static_cast<T>(k.b), c[i] = static_cast<T>(k.c);
    }
  };

  // As apply: channels [c0, c1) and pixels [p0, p1), vectors by channel.
  void gradient(const Vectors& v, int64_t n, int64_t c0, int64_t c1, int64_t p0, int64_t p1, bool needs_x) const {
    NormGradientArgs<T> a = gradient_args(n, c0, p0, needs_x);
    const bool planes = order_ == Order::planes;
    a.by_column = !planes;
    a.mean = v.mean + c0, a.a = v.a + c0, a.b = v.b + c0, a.c = v.c + c0;
    a.rows = planes ? c1 - c0 : p1 - p0, a.columns = planes ? p1 - p0 : c1 - c0;
    kernels_.norm_gradient(a);
  }

  // As apply_channels.
  Status gradient_channels(int64_t n0, int64_t n1, const Vectors& v, bool needs_x) const {
    const bool planes = order_ == Order::planes;
    const int64_t outer = planes ? shape_.C : shape_.P, inner = planes ? shape_.P : shape_.C;
    const Cut cut(*this, n1 - n0);
    const double all = static_cast<double>((n1 - n0) * outer * inner) * sizeof(T) * kByte * 3;
    return parallel_for(cut.tasks, all, [&](int64_t i, int) {
      i = cut.tasks - 1 - i;
      const int64_t n = n0 + i / (cut.down * cut.across), r0 = i / cut.across % cut.down * cut.high,
                    k0 = i % cut.across * cut.wide;
      const int64_t r1 = std::min(outer, r0 + cut.high), k1 = std::min(inner, k0 + cut.wide);
      planes ? gradient(v, n, r0, r1, k0, k1, needs_x) : gradient(v, n, k0, k1, r0, r1, needs_x);
    });
  }

  // Rows `pitches` apart of `length` elements at channel c of image n, in planes, merged, about `mean`.
  Sums row_sums(int64_t n, int64_t c, int64_t rows, bool by_image, const T* mean) const {
    const RowPieces pieces(rows, shape_.P);
    Sums result;
    for (int64_t i = 0; i < pieces.down(); ++i)
      for (int64_t j = 0; j < pieces.across(); ++j) {
        T g, gt, t;
        NormSumsArgs<T> a = sums_args(n + (by_image ? i * pieces.high : 0), c, j * pieces.wide);
        if (by_image) a.dy_pitch = dy_.s.n, a.x_pitch = x_.s.n, a.y_pitch = y_.s.n;
        a.rows = std::min(pieces.high, rows - i * pieces.high);
        a.columns = std::min(pieces.wide, shape_.P - j * pieces.wide);
        a.merge = 1;
        a.mean = mean;
        a.sum_g = &g, a.sum_gt = &gt, a.sum_t = &t;
        kernels_.norm_sums(a);
        result.add(g, gt, t);
      }
    return result;
  }

  // The sums of all channels of images [n0, n1) in columns, about a mean a channel.
  Status column_sums(int64_t n0, int64_t n1, bool large, const T* mean, Sums* to) const {
    const int64_t C = shape_.C;
    return by_chunks(
        n0, n1, large, 3, [&](int64_t k, T* part) { chunk_sums(n0, k, mean, part); },
        [&](int64_t k, const T* part, int64_t c0, int64_t c1) {
          for (int64_t c = c0; c < c1; ++c) {
            if (k == 0) to[c] = {};
            to[c].add(part[c], part[C + c], part[2 * C + c]);
          }
        });
  }

  // Those of chunk k, each an array of C. Without a mean they are about their own shift, and t^2 and the shift follow.
  void chunk_sums(int64_t n0, int64_t k, const T* mean, T* part) const {
    const int64_t C = shape_.C, n = n0 + k / chunks_an_image(), p = k % chunks_an_image() * kPieceRows;
    for (int64_t c = 0; c < C; c += kPieceColumns) {
      NormSumsArgs<T> a = sums_args(n, c, p);
      a.rows = chunk_rows(k), a.columns = std::min(kPieceColumns, C - c);
      a.by_column = 1;
      a.mean = mean ? mean + c : nullptr;
      a.sum_g = part + c, a.sum_gt = part + C + c, a.sum_t = part + 2 * C + c;
      if (!mean) a.sum_tt = part + 3 * C + c, a.shift = part + 4 * C + c;
      kernels_.norm_sums(a);
    }
  }

  Status own_column_sums(int64_t n, bool large, OwnSums* to) const {
    const int64_t C = shape_.C;
    return by_chunks(
        n, n + 1, large, 5, [&](int64_t k, T* part) { chunk_sums(n, k, nullptr, part); },
        [&](int64_t k, const T* part, int64_t c0, int64_t c1) {
          const double rows = static_cast<double>(chunk_rows(k));
          for (int64_t c = c0; c < c1; ++c) {
            if (k == 0) to[c].moments.count = 0;
            to[c].add(rows, part[4 * C + c], part[2 * C + c], part[3 * C + c], part[c], part[C + c]);
          }
        });
  }

  // Those of channels [c0, c1) of image n in planes.
  void own_plane_sums(int64_t n, int64_t c0, int64_t c1, OwnSums* to) const {
    constexpr int64_t kMost = 32;
    T part[5 * kMost];
    NormSumsArgs<T> a{};
    for (int64_t c = c0; c < c1; ++c) to[c - c0].moments.count = 0;
    for (int64_t c = c0; c < c1; c += kMost)
      for (int64_t p = 0; p < shape_.P; p += kPiece) {
        a = sums_args(n, c, p);
        a.rows = std::min(kMost, c1 - c), a.columns = std::min(kPiece, shape_.P - p);
        a.sum_g = part, a.sum_gt = part + kMost, a.sum_t = part + 2 * kMost, a.sum_tt = part + 3 * kMost;
        a.shift = part + 4 * kMost;
        kernels_.norm_sums(a);
        for (int64_t r = 0; r < a.rows; ++r)
          to[c - c0 + r].add(static_cast<double>(a.columns), a.shift[r], a.sum_t[r], a.sum_tt[r], a.sum_g[r],
                             a.sum_gt[r]);
      }
  }

  Status batch_backward(const NormGradients& o) {
    const int64_t C = shape_.C, N = shape_.N, P = shape_.P;
    const bool planes = order_ == Order::planes, training = desc_.training;
    const bool needs_x = training, needs_sums = training || !absent(o.dw) || !absent(o.db);
    const double count = static_cast<double>(N * P);
    const Channels<T> weight(o.weight), mean(o.mean), inv(o.inv_std);
    Workspace vectors(sizeof(T) * static_cast<size_t>(4 * C));
    Scratch scratch(C * static_cast<int64_t>(sizeof(Sums)));
    if (!vectors || scratch.failed()) return Status::out_of_memory;
    const Vectors v(static_cast<T*>(vectors.data()), C);
    Sums* sums = static_cast<Sums*>(scratch.data());
    for (int64_t c = 0; c < C; ++c) v.mean[c] = mean.data[c * mean.stride];
    const Kept<T> dw(o.dw), db(o.db);
    auto finish = [&](int64_t c) {
      const Sums s = needs_sums ? sums[c] : Sums{};
      // The mean that was given has been rounded; what is missing is the mean of the differences from it.
      const double low = training ? s.t / count : 0, gt = s.gt - low * s.g, r = inv.at(c, 1), w = weight.at(c, 1);
      dw.put(c, gt * r);
      db.put(c, s.g);
      Coefficients k(r, low, training ? s.g * w : 0, training ? gt * w : 0, count);
      v.set(c, v.mean[c], k, w);
    };
    if (!planes) {
      Status s = Status::ok;
      if (needs_sums && (s = column_sums(0, N, true, v.mean, sums)) != Status::ok) return s;
      for (int64_t c = 0; c < C; ++c) finish(c);
      return absent(o.dx) ? s : gradient_channels(0, N, v, needs_x);
    }
    const bool large = way_ == Way::large;
    std::atomic<bool> failed{false};
    const Status s = parallel_for((C + together_ - 1) / together_, work(3), [&](int64_t i, int) {
      const int64_t c0 = i * together_, c1 = std::min(C, c0 + together_);
      // As in the forward pass.
      const bool rows = way_ == Way::first;
      Workspace same(rows ? sizeof(T) * static_cast<size_t>(4 * N) : 0);
      if (rows && !same) failed.store(true);
      const Vectors w(static_cast<T*>(same.data()), N);
      prefetch(x_, c0, c1), prefetch(dy_, c0, c1);
      for (int64_t c = c0; c < c1; ++c) {
        if (needs_sums) sums[c] = row_sums(0, c, N, true, v.mean + c);
        finish(c);
        if (!rows || !same) continue;
        std::fill_n(w.mean, N, v.mean[c]), std::fill_n(w.a, N, v.a[c]);
        std::fill_n(w.b, N, v.b[c]), std::fill_n(w.c, N, v.c[c]);
        NormGradientArgs<T> a = gradient_args(0, c, 0, needs_x);
        a.dx_pitch = dx_.s.n, a.dy_pitch = dy_.s.n, a.x_pitch = x_.s.n, a.y_pitch = y_.s.n;
        a.mean = w.mean, a.a = w.a, a.b = w.b, a.c = w.c;
        a.rows = N, a.columns = P;
        kernels_.norm_gradient(a);
      }
      if (!rows && !large && !absent(o.dx))
        for (int64_t n = N - 1; n >= 0; --n) gradient(v, n, c0, c1, 0, P, needs_x);
    });
    if (s == Status::ok && failed.load()) return Status::out_of_memory;
    return s != Status::ok || absent(o.dx) || !large ? s : gradient_channels(0, N, v, needs_x);
  }

  // The sums of dw and db of each image or part of one, joined in order.
  Status join_parts(const NormGradients& o, const double* parts, int64_t count) const {
    const int64_t C = shape_.C;
    const Kept<T> dw(o.dw), db(o.db);
    constexpr int64_t kWide = 64;
    return parallel_for((C + kWide - 1) / kWide, static_cast<double>(count * C) * 2, [&](int64_t i, int) {
      const int64_t c0 = i * kWide, n = std::min(kWide, C - c0);
      double of_w[kWide] = {}, of_b[kWide] = {};
      for (int64_t k = 0; k < count; ++k) {
        const double *w = parts + 2 * C * k + c0, *b = w + C;
        for (int64_t c = 0; c < n; ++c) of_w[c] += w[c], of_b[c] += b[c];
      }
      for (int64_t c = 0; c < n; ++c) dw.put(c0 + c, of_w[c]), db.put(c0 + c, of_b[c]);
    });
  }

  Status group_backward(const NormGradients& o) {
    const int64_t C = shape_.C, N = shape_.N, P = shape_.P, width = C / groups();
    const double count = static_cast<double>(width * P);
    const Channels<T> weight(o.weight);
    Scratch parts(N * 2 * C * static_cast<int64_t>(sizeof(double)));
    if (parts.failed()) return Status::out_of_memory;
    double* all = static_cast<double*>(parts.data());
    // From the sums of a group's channels to its coefficients and its image's share of dw and db.
    auto finish_group = [&](int64_t n, int64_t c0, int64_t c1, const OwnSums* sums, const Vectors& v) {
      Moments m;
      for (int64_t c = c0; c < c1; ++c) {
        const Moments& own = sums[c - c0].moments;
        m.add(own.count, own.about, own.sum, own.square);
      }
      const Norm<T> norm(m, desc_.eps);
      const double mean = m.mean();
      double g = 0, gt = 0;
      for (int64_t c = c0; c < c1; ++c) {
        const OwnSums& s = sums[c - c0];
        const double own = s.about(mean), w = weight.at(c, 1);
        all[2 * C * n + c] = own * norm.inv, all[2 * C * n + C + c] = s.g;
        g += w * s.g, gt += w * own;
      }
      const Coefficients k(norm.inv, norm.low, g, gt, count);
      for (int64_t c = c0; c < c1; ++c) v.set(c, norm.high, k, weight.at(c, 1));
    };
    Status s;
    if (order_ == Order::columns) {
      const bool large = way_ == Way::large;
      auto image = [&](int64_t n) {
        Workspace memory(static_cast<size_t>(C) * (sizeof(OwnSums) + 4 * sizeof(T)));
        if (!memory) return Status::out_of_memory;
        OwnSums* sums = static_cast<OwnSums*>(memory.data());
        const Vectors v(reinterpret_cast<T*>(sums + C), C);
        const Status own = own_column_sums(n, large, sums);
        if (own != Status::ok) return own;
        for (int64_t c = 0; c < C; c += width) finish_group(n, c, c + width, sums + c, v);
        return absent(o.dx) ? own : gradient_channels(n, n + 1, v, true);
      };
      s = Status::ok;
      if (large)
        for (int64_t n = 0; n < N && s == Status::ok; ++n) s = image(n);
      else
        s = each(N, work(3), image);
    } else {
      const int64_t tasks_an_image = (groups() + together_ - 1) / together_;
      s = each(N * tasks_an_image, work(3), [&](int64_t i) {
        const int64_t n = i / tasks_an_image, g0 = i % tasks_an_image * together_;
        const int64_t g1 = std::min(groups(), g0 + together_), c0 = g0 * width, room = (g1 - g0) * width;
        Workspace memory(static_cast<size_t>(room) * (sizeof(OwnSums) + 4 * sizeof(T)));
        if (!memory) return Status::out_of_memory;
        OwnSums* sums = static_cast<OwnSums*>(memory.data());
        Vectors v(reinterpret_cast<T*>(sums + room), room);
        v.mean -= c0, v.a -= c0, v.b -= c0, v.c -= c0;  // by channel of the image
        // One group after the other where the first-level cache holds it, else as many as the second level does.
        const int64_t step = way_ == Way::first ? width : room;
        for (int64_t c = c0; c < c0 + room; c += step) {
          own_plane_sums(n, c, c + step, sums);
          for (int64_t k = 0; k < step; k += width) finish_group(n, c + k, c + k + width, sums + k, v);
          if (!absent(o.dx)) gradient(v, n, c, c + step, 0, P, true);
        }
        return Status::ok;
      });
    }
    return s != Status::ok || (absent(o.dw) && absent(o.db)) ? s : join_parts(o, all, N);
  }

  // --- gradients of layer norms -------------------------------------------------------------------------------------

  // What layer_gradient wants to know of rows or pixels, `room` apart.
  struct LayerVectors {
    T *mean, *scale, *low, *b, *c;
    LayerVectors(T* data, int64_t room)
        : mean(data), scale(data + room), low(data + 3 * room), b(data + 4 * room), c(data + 5 * room) {}
    void set(int64_t i, const OwnSums& s, double count, double eps) const {
      const Norm<T> norm(s.moments, eps);
      const Coefficients k(norm.inv, 0, s.g, s.about(s.moments.mean()), count);
      mean[i] = norm.high, low[i] = static_cast<T>(norm.low), scale[i] = static_cast<T>(norm.inv);
      b[i] = static_cast<T>(k.b), c[i] = static_cast<T>(k.c);
    }
  };

  // Those of a's rows or columns, of which `sums` has `pieces` along what is summed over, `at_most` of them each; a's
  // operands are moved on by their steps. `v` has room for 6 vectors.
  void layer_norms(NormSumsArgs<T> a, int64_t room, T* v) const {
    const int64_t C = shape_.C, n = a.by_column ? a.columns : a.rows;
    const int64_t most = a.by_column ? kPixelChannels : kPiece;
    int64_t& length = a.by_column ? a.rows : a.columns;
    const LayerVectors to(v, room);
    if (C <= most) {
      length = C;
      a.shift = v, a.sum_t = v + room, a.sum_tt = v + 2 * room, a.sum_gt = to.b, a.sum_g = to.c;
      kernels_.norm_sums(a);
      NormFinishArgs<T> f{};
      f.n = n, f.count = static_cast<T>(C), f.eps = static_cast<T>(desc_.eps);
      f.mean = v, f.scale = v + room, f.offset = v + 2 * room;
      f.low = to.low, f.b = to.b, f.c = to.c;
      return kernels_.norm_finish(f);
    }
    OwnSums sums[kMostPixels];
    a.shift = v, a.sum_t = v + room, a.sum_tt = v + 2 * room, a.sum_gt = to.b, a.sum_g = to.c;
    const int64_t dy_step = a.by_column ? a.dy_pitch : 1, x_step = a.by_column ? a.x_pitch : 1;
    for (int64_t c = 0; c < C; c += most) {
      length = std::min(most, C - c);
      kernels_.norm_sums(a);
      for (int64_t i = 0; i < n; ++i)
        sums[i].add(static_cast<double>(length), a.shift[i], a.sum_t[i], a.sum_tt[i], a.sum_g[i], a.sum_gt[i]);
      a.dy += length * dy_step, a.x += length * x_step;
      if (a.weight) a.weight += length;
    }
    for (int64_t i = 0; i < n; ++i) to.set(i, sums[i], static_cast<double>(C), desc_.eps);
  }

  LayerGradientArgs<T> layer_args(const NormSumsArgs<T>& a, int64_t room, T* v) const {
    const LayerVectors from(v, room);
    LayerGradientArgs<T> d{};
    d.dy = a.dy, d.x = a.x, d.dy_pitch = a.dy_pitch, d.x_pitch = a.x_pitch;
    d.rows = a.rows, d.columns = a.columns, d.by_column = a.by_column;
    d.mean = from.mean, d.low = from.low, d.scale = from.scale, d.b = from.b, d.c = from.c;
    d.weight = a.weight;
    d.streaming = streaming_;
    return d;
  }

  // Chunks of kPieceRows rows, and so many that a task takes: they follow from the shape, as they fix the order of the
  // sums of dw and db.
  int64_t row_chunks() const { return row_images() * ((row_count() + kPieceRows - 1) / kPieceRows); }
  int64_t chunks_a_task() const { return std::clamp<int64_t>(row_chunks() / 16, 1, 16); }
  int64_t row_tasks() const { return (row_chunks() + chunks_a_task() - 1) / chunks_a_task(); }

  Status layer_rows_backward(const NormGradients& o) {
    const Dense params(o.weight, {}, shape_.C);
    if (!params.memory) return Status::out_of_memory;
    const bool layer = desc_.kind == NormKind::layer, vectors_needed = !absent(o.dw) || !absent(o.db);
    // The shares of a chunk's rows in dw and db are added up in T, those of a task's chunks in double.
    const int64_t C = shape_.C, rows = row_count(), down = (rows + kPieceRows - 1) / kPieceRows;
    const int64_t chunks = row_chunks(), tile = rows_a_tile(), together = chunks_a_task(), tasks = row_tasks();
    Scratch parts(vectors_needed ? tasks * 2 * C * static_cast<int64_t>(sizeof(double)) : 0);
    if (parts.failed()) return Status::out_of_memory;
    double* all = static_cast<double*>(parts.data());
    const Status s = each(tasks, work(3), [&](int64_t task) {
      Workspace memory(sizeof(T) * static_cast<size_t>(2 * C));
      if (!memory) return Status::out_of_memory;
      T* columns = static_cast<T*>(memory.data());
      double* share = all + 2 * C * task;
      if (vectors_needed) std::fill(share, share + 2 * C, 0.0);
      for (int64_t chunk = task * together; chunk < std::min(chunks, (task + 1) * together); ++chunk) {
        const int64_t i = chunk / down, r0 = chunk % down * kPieceRows, r1 = std::min(rows, r0 + kPieceRows);
        if (vectors_needed) std::fill(columns, columns + 2 * C, T{0});
        for (int64_t r = r0; r < r1; r += tile) {
          const int64_t n = layer ? r : i, p = layer ? 0 : r;
          T vectors[6 * kMostRows];
          NormSumsArgs<T> a = sums_args(n, 0, p);
          a.dy_pitch = row_pitch(dy_.s), a.x_pitch = row_pitch(x_.s);
          a.rows = std::min(tile, r1 - r), a.columns = C;
          a.weight = params.weight;
          layer_norms(a, kMostRows, vectors);
          LayerGradientArgs<T> d = layer_args(a, kMostRows, vectors);
          d.dx = dx_.at(n, 0, p), d.dx_pitch = row_pitch(dx_.s);
          if (vectors_needed) d.dw = columns, d.db = columns + C;
          if (d.dx || d.dw) kernels_.layer_gradient(d);
        }
        for (int64_t c = 0; vectors_needed && c < 2 * C; ++c) share[c] += static_cast<double>(columns[c]);
      }
      return Status::ok;
    });
    return s != Status::ok || !vectors_needed ? s : join_parts(o, all, tasks);
  }

  Status layer_planes_backward(const NormGradients& o) {
    const Dense params(o.weight, {}, shape_.C);
    if (!params.memory) return Status::out_of_memory;
    const int64_t C = shape_.C, P = shape_.P, wide = pixels_a_task(), across = (P + wide - 1) / wide;
    const bool vectors_needed = !absent(o.dw) || !absent(o.db);
    Scratch parts(vectors_needed ? shape_.N * across * 2 * C * static_cast<int64_t>(sizeof(double)) : 0);
    if (parts.failed()) return Status::out_of_memory;
    double* all = static_cast<double*>(parts.data());
    const Status s = each(shape_.N * across, work(3), [&](int64_t i) {
      const int64_t n = i / across, p0 = i % across * wide;
      Workspace memory(sizeof(T) * static_cast<size_t>(2 * C));
      if (!memory) return Status::out_of_memory;
      T* rows = static_cast<T*>(memory.data());
      T vectors[6 * kMostPixels];
      NormSumsArgs<T> a = sums_args(n, 0, p0);
      a.rows = C, a.columns = std::min(P - p0, wide);
      a.by_column = 1;
      a.weight = params.weight;
      layer_norms(a, kMostPixels, vectors);
      LayerGradientArgs<T> d = layer_args(a, kMostPixels, vectors);
      d.dx = dx_.at(n, 0, p0), d.dx_pitch = dx_.s.c;
      if (vectors_needed) d.dw = rows, d.db = rows + C;
      if (d.dx || d.dw) kernels_.layer_gradient(d);
      for (int64_t c = 0; vectors_needed && c < 2 * C; ++c) all[2 * C * i + c] = static_cast<double>(rows[c]);
      return Status::ok;
    });
    return s != Status::ok || !vectors_needed ? s : join_parts(o, all, shape_.N * across);
  }

  const NormDesc& desc_;
  Shape shape_;
  const Order order_;
  const KernelTable<T>& kernels_;
  Image<T> x_, y_, residual_, dy_, dx_;
  Activation act_;
  T lower_ = 0, upper_ = 0;
  bool streaming_ = false;
  Way way_ = Way::given;
  int64_t together_ = 1;  // sets of a task, in planes
};

// Images that follow each other are one long image where only their pixels count.
template <int kCount>
void merge_images(const TensorView* const (&views)[kCount], Lay (&lays)[kCount], Shape* shape) {
  for (int i = 0; i < kCount; ++i) {
    if (shape->P == 1) lays[i].p = lays[i].n;
    if (!absent(*views[i]) && shape->N > 1 && lays[i].n != shape->P * lays[i].p) return;
  }
  shape->P *= shape->N;
  shape->N = 1;
}

// The gradient of nothing.
template <class T>
void clear(const TensorView& v, int64_t C) {
  const Kept<T> to(v);
  for (int64_t c = 0; c < C; ++c) to.put(c, 0);
}

// --- local response normalisation ----------------------------------------------------------------------------------

// Pixels that are computed together, all their channels: a constant, so that the loops over them are vectors.
constexpr int64_t kPixels = 64;

template <class T>
struct Response {
  const ResponseDesc& desc;
  int64_t C;
  T *x, *power, *share, *denominator;  // C x kPixels each

  static int64_t bytes(int64_t C) { return 4 * C * kPixels * static_cast<int64_t>(sizeof(T)); }
  Response(const ResponseDesc& d, int64_t channels, void* memory)
      : desc(d),
        C(channels),
        x(static_cast<T*>(memory)),
        power(x + C * kPixels),
        share(power + C * kPixels),
        denominator(share + C * kPixels) {}

  // sum[q] = the sum of v over channels [c - before, c + after] that exist, in their order.
  void window(const T* v, int64_t c, int64_t before, int64_t after, T* sum) const {
    for (int64_t q = 0; q < kPixels; ++q) sum[q] = 0;
    for (int64_t i = std::max<int64_t>(0, c - before); i <= std::min(C - 1, c + after); ++i)
      for (int64_t q = 0; q < kPixels; ++q) sum[q] += v[i * kPixels + q];
  }

  // denominator and its power -beta, from x.
  void powers() {
    for (int64_t i = 0; i < C * kPixels; ++i) share[i] = x[i] * x[i];
    const T factor = static_cast<T>(desc.alpha / static_cast<double>(desc.size)), k = static_cast<T>(desc.k);
    for (int64_t c = 0; c < C; ++c) {
      T sum[kPixels];
      window(share, c, desc.size / 2, (desc.size - 1) / 2, sum);
      T *d = denominator + c * kPixels, *p = power + c * kPixels;
      for (int64_t q = 0; q < kPixels; ++q) d[q] = k + factor * sum[q];
      for (int64_t q = 0; q < kPixels; ++q) p[q] = std::pow(d[q], static_cast<T>(-desc.beta));
    }
  }
};

// Calls task(n, p0, pixels, response) for blocks of pixels, x gathered; pixels beyond the image are 0.
template <class T, class Task>
Status response_blocks(const ResponseDesc& desc, const Shape& shape, const TensorView& x, const Lay& s, bool run,
                       PathDecision* d, Task task) {
  const int64_t C = shape.C, across = (shape.P + kPixels - 1) / kPixels;
  d->pass("the response kernel", "beta is not 0.75");
  d->path = "blocks of 64 pixels", d->tasks = shape.N * across, d->workspace = Response<T>::bytes(C);
  if (!run) return Status::ok;
  begin(*d);
  std::atomic<bool> failed{false};
  const double work = static_cast<double>(shape.elements()) * 4;
  const Status status = parallel_for(shape.N * across, work, [&](int64_t i, int) {
    Workspace memory(static_cast<size_t>(Response<T>::bytes(C)));
    if (!memory) return failed.store(true);
    Response<T> r(desc, C, memory.data());
    const int64_t n = i / across, p0 = i % across * kPixels, pixels = std::min(kPixels, shape.P - p0);
    const T* from = static_cast<const T*>(x.data) + n * s.n + p0 * s.p;
    for (int64_t c = 0; c < C; ++c)
      for (int64_t q = 0; q < kPixels; ++q) r.x[c * kPixels + q] = q < pixels ? from[c * s.c + q * s.p] : 0;
    r.powers();
    task(n, p0, pixels, r);
  });
  return status == Status::ok && failed.load() ? Status::out_of_memory : status;
}

// Pixels of a task whose channels are neighbours.
constexpr int64_t kResponsePixels = 64;

// The exponent that everyone uses, where pixels or channels are neighbours in all operands.
template <class T>
Status response_rows(const ResponseDesc& desc, const Shape& shape, const TensorView* const* views, const Lay* lays,
                     bool by_column, bool run, PathDecision* d) {
  const KernelTable<T>& kernels = kernel_table<T>(current_isa());
  const int64_t C = shape.C, wide = by_column ? kResponseColumns : kResponsePixels;
  const int64_t across = (shape.P + wide - 1) / wide;
  const double size = static_cast<double>(desc.size);
  ResponseArgs<T> args{};
  args.by_column = by_column;
  args.before = std::min(desc.size / 2, C - 1), args.after = std::min((desc.size - 1) / 2, C - 1);
  args.factor = static_cast<T>(desc.alpha / size), args.k = static_cast<T>(desc.k);
  args.gradient = static_cast<T>(2 * desc.alpha * desc.beta / size);
  const int64_t room = response_scratch(C, args.before + args.after + 1, by_column);
  d->path = by_column ? "one pass; lanes of pixels" : "one pass; lanes of channels";
  d->tasks = shape.N * across, d->workspace = room * static_cast<int64_t>(sizeof(T));
  if (!run) return Status::ok;
  begin(*d);
  std::atomic<bool> failed{false};
  const double work = static_cast<double>(shape.elements()) * (absent(*views[2]) ? 0.3 : 0.5);
  const Status status = parallel_for(shape.N * across, work, [&](int64_t i, int) {
    Workspace memory(sizeof(T) * static_cast<size_t>(room));
    if (!memory) return failed.store(true);
    const int64_t n = i / across, p = i % across * wide, count = std::min(wide, shape.P - p);
    auto at = [&](int k) {
      return absent(*views[k]) ? nullptr : static_cast<T*>(views[k]->data) + n * lays[k].n + p * lays[k].p;
    };
    auto pitch = [&](int k) { return by_column ? lays[k].c : lays[k].p; };
    ResponseArgs<T> a = args;
    a.x = at(0), a.y = at(1), a.dy = at(2);
    a.x_pitch = pitch(0), a.y_pitch = pitch(1), a.dy_pitch = pitch(2);
    a.rows = by_column ? C : count, a.columns = by_column ? count : C;
    a.scratch = static_cast<T*>(memory.data());
    kernels.response(a);
  });
  return status == Status::ok && failed.load() ? Status::out_of_memory : status;
}

template <class T>
Status response(const ResponseDesc& desc, const Shape& shape, const TensorView* const* views, const Lay* lays, bool run,
                PathDecision* d) {
  const bool backward = !absent(*views[2]);
  bool planes = true, columns = true;
  for (int i = 0; i < (backward ? 3 : 2); ++i) {
    planes = planes && (lays[i].p == 1 || shape.P == 1);
    columns = columns && (lays[i].c == 1 || shape.C == 1);
  }
  if (desc.beta == 0.75) {
    if (!planes && !columns) return Status::unsupported;
    return response_rows<T>(desc, shape, views, lays, planes && (shape.P > 1 || !columns), run, d);
  }
  return response_blocks<T>(
      desc, shape, *views[0], lays[0], run, d, [&](int64_t n, int64_t p0, int64_t pixels, Response<T>& r) {
        T* to = static_cast<T*>(views[1]->data) + n * lays[1].n + p0 * lays[1].p;
        const Lay& s = lays[1];
        if (!backward) {
          for (int64_t c = 0; c < r.C; ++c)
            for (int64_t q = 0; q < pixels; ++q) {
              const int64_t i = c * kPixels + q;
              to[c * s.c + q * s.p] = r.x[i] * r.power[i];
            }
          return;
        }
        const T* dy = static_cast<const T*>(views[2]->data) + n * lays[2].n + p0 * lays[2].p;
        const Lay& g = lays[2];
        for (int64_t c = 0; c < r.C; ++c)
          for (int64_t q = 0; q < kPixels; ++q) {
            const int64_t i = c * kPixels + q;
            r.share[i] = q < pixels ? dy[c * g.c + q * g.p] * r.x[i] * r.power[i] / r.denominator[i] : 0;
          }
        const T factor = static_cast<T>(2 * desc.alpha * desc.beta / static_cast<double>(desc.size));
        for (int64_t c = 0; c < r.C; ++c) {
          // The windows that hold c are those of the channels that lie as far on its other side.
          T sum[kPixels];
          r.window(r.share, c, (desc.size - 1) / 2, desc.size / 2, sum);
          for (int64_t q = 0; q < pixels; ++q) {
            const int64_t i = c * kPixels + q;
            to[c * s.c + q * s.p] = dy[c * g.c + q * g.p] * r.power[i] - factor * r.x[i] * sum[q];
          }
        }
      });
}

// x, the result and, for a gradient, dy.
Status run_response(const ResponseDesc& desc, const TensorView& x, const TensorView& result, const TensorView& dy,
                    bool run, PathDecision* d) {
  const NormDesc axes = response_axes(desc);
  Shape shape;
  const Status s = check_response(Device::cpu, desc, x, result, dy, &shape);
  if (s != Status::ok || shape.elements() == 0) return s;
  const TensorView* const views[] = {&x, &result, &dy};
  Lay lays[3];
  for (int i = 0; i < 3; ++i)
    if (!absent(*views[i]) && !lay_of(axes, *views[i], &lays[i])) return Status::unsupported;
  return x.dtype == DType::f32 ? response<float>(desc, shape, views, lays, run, d)
                               : response<double>(desc, shape, views, lays, run, d);
}

}  // namespace
}  // namespace ops

using namespace ops;
using namespace ops::norms;

bool norm_is_channels_last(const NormDesc& desc, const TensorView& x) {
  if (desc.kind == NormKind::layer) return true;
  const int channel = channel_axis(desc, x);
  if (x.ndim < 3) return desc.channels_last;
  bool last = true, first = true;  // how x reads
  const int64_t own = std::abs(x.strides[channel]);
  if (x.shape[channel] == 1) return desc.channels_last;
  for (int i = 1; i < x.ndim; ++i) {
    if (i == channel || x.shape[i] == 1) continue;
    last = last && own < std::abs(x.strides[i]);
    first = first && own > std::abs(x.strides[i]);
  }
  return last == first ? desc.channels_last : last;
}

namespace {

Status forward(const NormDesc& desc, const NormOperands& o, bool run, PathDecision* d) {
  Shape shape;
  Status s = check_norm(Device::cpu, desc, o, &shape);
  if (s != Status::ok) return s;
  const bool batch = desc.kind == NormKind::batch;
  if (shape.elements() == 0) return Status::ok;
  const TensorView* const views[] = {&o.x, &o.y, &o.residual};
  Lay lays[3];
  Order order;
  if ((s = common_order(desc, shape, views, lays, 3, &order)) != Status::ok) return s;
  // A row of the trailing axes is a pixel's channels; a single one is a plane of one pixel in no order that is served.
  if (desc.kind == NormKind::layer) order = Order::columns;
  if (batch && order == Order::columns) merge_images(views, lays, &shape);
  return o.x.dtype == DType::f32 ? NormCall<float>(desc, shape, order).forward(o, lays, run, d)
                                 : NormCall<double>(desc, shape, order).forward(o, lays, run, d);
}

Status backward(const NormDesc& desc, const NormGradients& o, bool run, PathDecision* d) {
  Shape shape;
  Status s = check_norm_backward(Device::cpu, desc, o, &shape);
  if (s != Status::ok) return s;
  const bool batch = desc.kind == NormKind::batch;
  if (shape.elements() == 0) {
    if (!run) return Status::ok;
    for (const TensorView* v : {&o.dw, &o.db})
      o.dy.dtype == DType::f32 ? clear<float>(*v, shape.C) : clear<double>(*v, shape.C);
    return Status::ok;
  }
  const TensorView* const views[] = {&o.dy, &o.x, &o.y, &o.dx};
  Lay lays[4];
  Order order;
  if ((s = common_order(desc, shape, views, lays, 4, &order)) != Status::ok) return s;
  if (desc.kind == NormKind::layer) order = Order::columns;
  if (batch && order == Order::columns) merge_images(views, lays, &shape);
  return o.dy.dtype == DType::f32 ? NormCall<float>(desc, shape, order).backward(o, lays, run, d)
                                  : NormCall<double>(desc, shape, order).backward(o, lays, run, d);
}

}  // namespace

Status norm_run(const NormDesc& desc, const NormOperands& o) {
  PathDecision d;
  return forward(desc, o, true, &d);
}
Status norm_decide(const NormDesc& desc, const NormOperands& o, PathDecision* decision) {
  return forward(desc, o, false, decision);
}

Status norm_backward(const NormDesc& desc, const NormGradients& o) {
  PathDecision d;
  return backward(desc, o, true, &d);
}
Status norm_backward_decide(const NormDesc& desc, const NormGradients& o, PathDecision* decision) {
  return backward(desc, o, false, decision);
}

Status response_run(const ResponseDesc& desc, const TensorView& x, const TensorView& y) {
  PathDecision d;
  return run_response(desc, x, y, {}, true, &d);
}

Status response_backward(const ResponseDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& dx) {
  PathDecision d;
  return absent(dy) ? Status::bad_shape : run_response(desc, x, dx, dy, true, &d);
}

Status response_decide(const ResponseDesc& desc, const TensorView& x, const TensorView& result, const TensorView& dy,
                       PathDecision* decision) {
  return run_response(desc, x, result, dy, false, decision);
}

}  // namespace fastconv
