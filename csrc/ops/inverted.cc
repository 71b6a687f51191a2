// Inverted residuals: the expansion of a few rows, which stays in the second-level cache until the depthwise filters
// have passed over it, and the projection, whose tasks compute their input block by block.
#include "fastconv/inverted.h"

#include <atomic>
#include <cstring>

#include "ops/depthwise.h"
#include "ops/device.h"
#include "ops/layer.h"
#include "ops/path.h"
#include "ops/slab.h"

namespace fastconv {
namespace ops {
namespace {

// A tensor between two stages. Its channels are innermost in memory, whatever the order of x: x and y have a few times
// fewer elements, and every stage is fastest so.
TensorView stand_in(const ConvDesc& desc, const TensorView& x, const int64_t* shape) {
  static char nowhere;
  TensorView t;
  t.data = &nowhere;
  t.dtype = x.dtype, t.device = x.device;
  t.ndim = desc.spatial + 2;
  std::copy_n(shape, t.ndim, t.shape);
  const int channels = desc.channels_last ? t.ndim - 1 : 1;
  int64_t step = 1;
  auto take = [&](int axis) { t.strides[axis] = step, step *= std::max<int64_t>(1, t.shape[axis]); };
  take(channels);
  for (int axis = t.ndim - 1; axis >= 0; --axis)
    if (axis != channels) take(axis);
  return t;
}

// How the rows and columns of y are cut, by the sizes of the layer alone. A task goes down a strip of rows, block by
// block, and keeps the rows of the expansion that the next block reads again.
struct Tiling {
  int64_t reach_h, reach_w;      // rows and columns that a filter spans
  int64_t rows, columns;         // of a block
  int64_t lines, width;          // rows and columns of the expansion that are kept
  int64_t column_parts;
  int64_t least;                 // rows of a strip, so that the rows that strips share are a sixth of it
  const char* misfit;  // why the expansion is made as a whole; null: at most a quarter of it is computed twice

  Tiling(const DenseJob& filter, const Machine& m, int64_t pixel_block, int64_t item_size) {
    const int64_t s = filter.stride[1], sw = filter.stride[2], H = filter.in[1], W = filter.in[2];
    reach_h = (filter.filter[1] - 1) * filter.dilation[1] + 1,
    reach_w = (filter.filter[2] - 1) * filter.dilation[2] + 1;
    const int64_t P = std::max<int64_t>(1, filter.out[1]), Q = std::max<int64_t>(1, filter.out[2]);
    auto line_bytes = [&] { return width * filter.G * item_size; };
    auto lines_for = [&](int64_t n) { return std::min(H, (n - 1) * s + reach_h); };
    for (column_parts = 1;; column_parts *= 2) {
      columns = ceil_div(Q, column_parts);
      width = std::min(W, (columns - 1) * sw + reach_w + sw - 1);
      if (columns == 1 || lines_for(1) * line_bytes() <= m.l2 / 2) break;
    }
    column_parts = ceil_div(Q, columns);
    rows = std::clamp<int64_t>(pixel_block / columns, 1, P);
    while (rows > 1 && lines_for(rows) * line_bytes() > m.l2 / 2) --rows;
    rows = ceil_div(P, ceil_div(P, rows));
    // Rows to spare make it rarer that the kept ones are moved to the front.
    lines = std::clamp<int64_t>(m.l2 / 2 / std::max<int64_t>(1, line_bytes()), lines_for(rows), H);
    least = std::max<int64_t>(rows, ceil_div(6 * std::max<int64_t>(0, reach_h - s), s));
    misfit = filter.mode != PaddingMode::zeros       ? "padding is not of zeros"
             : lines_for(rows) * line_bytes() > m.l2 ? "the rows that a filter spans overflow the second-level cache"
             : 4 * (column_parts * width - W) > W    ? "more than a quarter of it would be computed twice"
                                                     : nullptr;
  }
};

constexpr const char *kInRows = "rows of the expansion", *kWhole = "the expansion of an image";

// A layer with all that does not depend on where its arrays lie.
template <class T>
struct Inverted {
  ConvDesc desc;
  bool projects = false, addend = false;  // whether a residual may be added
  Layer expand{}, filter{}, product{};
  Machine machine{};
  std::vector<Run<T>> expands, filters, products;  // one each
  Block packed[3], vectors;
  Finish<T> first, inner, last;
  InputMap<T> map{};

  // All but the weights and vectors, whose data is not read.
  Status decide(const ConvDesc& d, const InvertedOperands& o, bool plan) {
    desc = d;
    projects = !absent(o.project_weight);
    if (d.spatial != 2 || d.transposed) return Status::unsupported;
    for (const TensorView* w : {&o.expand_weight, &o.project_weight})
      for (int i = 2; i < w->ndim; ++i)
        if (w->shape[i] != 1) return Status::bad_shape;
    const ConvDesc point = pointwise_desc(d);
    ConvOperands e, f, p;
    int64_t shape[kMaxDims];
    e.x = o.x, e.w = o.expand_weight, e.epilogue = o.expand;
    Status s = check_forward(point, e, &expand);
    if (s != Status::ok) return s;
    if ((s = conv_output_shape(point, o.x, o.expand_weight, shape)) != Status::ok) return s;
    f.x = stand_in(d, o.x, shape), f.w = o.depthwise_weight, f.epilogue = o.inner;
    if ((s = check_forward(d, f, &filter)) != Status::ok) return s;
    const Geometry& g = filter.geometry;
    if (g.C != 1 || g.K != 1) return Status::bad_shape;
    if (!absent(o.expand.residual) || !absent(o.inner.residual)) return Status::unsupported;
    if ((s = conv_output_shape(d, f.x, f.w, shape)) != Status::ok) return s;
    p.x = stand_in(d, o.x, shape), p.w = o.project_weight, p.y = o.y, p.epilogue = o.epilogue;
    if (projects && (s = check_forward(point, p, &product)) != Status::ok) return s;
    if (!projects && !absent(o.y) && lift(d, g, false, o.y, &filter.y) != Status::ok) return Status::bad_output;
    if (absent(o.y)) {
      product.y = dense_strides(expand.channels_last, product.out_channels, g.out);
      filter.y = dense_strides(expand.channels_last, filter.out_channels, g.out);
    }
    machine = current_machine(g.dtype);

    const Strides wide = dense_strides(true, filter.in_channels, g.in);
    const Strides narrow = dense_strides(true, filter.out_channels, g.out);
    auto decide_one = [&](const DenseJob& job, bool produced) {
      Problem problem = describe(job, sizeof(T), true, false, Algorithm::direct);
      problem.produced = produced;
      return choose(problem, machine);
    };
    expands.resize(1), filters.resize(1);
    expands[0].job = fprop_job(expand.geometry, expand.x, wide, nullptr, expand.w);
    expands[0].choice = decide_one(expands[0].job, true);
    filters[0].job = fprop_job(g, wide, narrow, nullptr, filter.w);
    filters[0].choice = decide_one(filters[0].job, false);
    if (projects) {
      products.resize(1);
      products[0].job = fprop_job(product.geometry, narrow, product.y, nullptr, product.w);
      products[0].choice = decide_one(products[0].job, true);
    }
    // What is computed block by block is in order already; to packing it looks like a copy.
    expands[0].choice.copy_pixels = apart(expand.geometry.C, expand.x.c);
    if (!projects) return Status::ok;
    products[0].choice.copy_pixels = true;
    // A plan's residual, which is not known yet, lies as y does.
    addend = plan || !absent(o.epilogue.residual);
    if (absent(o.epilogue.residual)) product.r = product.y;
    limit_block(products[0].job, &products[0].choice, machine, sizeof(T), [&] {
      const Bound b = bound();
      const Tiling t = tiling();
      return std::max(stage_workspace(b), t.misfit ? 0 : workspace(t, b));
    });
    return Status::ok;
  }

  // `keep`: for a plan.
  Status build(const ConvDesc& d, const InvertedOperands& o, bool keep) {
    Status s = decide(d, o, keep);
    if (s != Status::ok) return s;
    const KernelTable<T>& kernels = kernel_table<T>(machine.isa);
    expands[0].bind(nullptr, o.expand_weight.data, nullptr, nullptr);
    filters[0].bind(nullptr, o.depthwise_weight.data, nullptr, nullptr);
    if (projects) products[0].bind(nullptr, o.project_weight.data, nullptr, nullptr);
    const int64_t outputs = projects ? product.out_channels : 0;
    vectors = Block(static_cast<int64_t>(sizeof(T)) * 2 * (2 * filter.in_channels + outputs));
    if (vectors.failed()) return Status::out_of_memory;
    T* buffer = static_cast<T*>(vectors.data());
    first = join_epilogue<T>(o.expand, filter.in_channels, buffer);
    inner = join_epilogue<T>(o.inner, filter.in_channels, buffer + 2 * filter.in_channels);
    if (projects) last = join_epilogue<T>(o.epilogue, outputs, buffer + 4 * filter.in_channels);
    if (!keep && filter.geometry.N == 0) return Status::ok;
    if ((s = prepare_weights(expands, machine, kernels, keep, &packed[0])) != Status::ok) return s;
    if ((s = prepare_weights(filters, machine, kernels, keep, &packed[1])) != Status::ok) return s;
    return projects ? prepare_weights(products, machine, kernels, keep, &packed[2]) : Status::ok;
  }

  // Whether channels are not neighbours in memory.
  static bool apart(int64_t channels, int64_t step) { return channels > 1 && step != 1; }

  int64_t most_channels() const { return projects ? products[0].choice.chunks[0].channels : filter.in_channels; }

  Tiling tiling() const {
    return Tiling(filters[0].job, machine, (projects ? products[0] : expands[0]).choice.pixel_block, sizeof(T));
  }

  // Of a block of the projection, where the stages are products of their own.
  int64_t stage_columns() const { return projects ? ops::most_columns(products[0].choice, machine) : 0; }

  DepthwiseProducer<T> producer(const Run<T>& f, int64_t columns) const {
    return {f, machine, kernel_table<T>(machine.isa), inner, map, 0, most_channels(), columns};
  }

  // The products with the strides of a call. What they decide on by these is what is copied: the bits stay the same.
  struct Bound {
    Run<T> expand, filter, product;
    T* sums = nullptr;  // of the rows of u, by ranges of columns: (n, row, range, channel)
  };
  Bound bind(int64_t N, const void* x, const Strides& xs, void* y, const Strides& ys, const void* residual,
             const Strides& rs) const {
    Bound b{expands[0], filters[0], projects ? products[0] : Run<T>{}, nullptr};
    b.expand.job.N = b.filter.job.N = N;
    b.expand.job.is = xs, b.expand.job.input = x;
    b.expand.choice.copy_pixels = apart(b.expand.job.C, xs.c);
    b.expand.choice.move_output = false;
    if (!projects) {
      b.filter.job.os = ys, b.filter.job.output = y;
      return b;
    }
    DenseJob& job = b.product.job;
    job.N = N;
    job.os = ys, job.output = y;
    job.rs = rs, job.residual = residual, job.has_residual = residual != nullptr;
    b.product.choice.move_output = apart(job.K, ys.c);
    b.product.choice.move_residual = residual && apart(job.K, rs.c);
    return b;
  }

  // With the strides that the layer was made for; no data is read.
  Bound bound() const {
    return bind(1, nullptr, expand.x, nullptr, projects ? product.y : filter.y, addend ? this : nullptr, product.r);
  }

  // Elements of the rows of the expansion that a task keeps; lanes of pixels read whole vectors beyond their end.
  int64_t window_elements(const Tiling& t) const {
    return (t.lines * t.width + 2 * machine.lanes * filters[0].job.stride[2] + t.reach_w) * filter.in_channels;
  }

  // Rows of the expansion that are computed at a time: its input stays in the cache for all of its channels.
  int64_t expanded_rows(const Tiling& t) const {
    return std::clamp<int64_t>(expands[0].choice.pixel_block / std::max<int64_t>(1, t.width), 1, t.lines);
  }

  // Scratch of a task.
  int64_t workspace(const Tiling& t, const Bound& b) const {
    const int64_t expanded[3] = {1, expanded_rows(t), t.width}, block[3] = {1, t.rows, t.columns};
    const DepthwiseProducer<T> made = producer(b.filter, t.columns);
    int64_t bytes = box_workspace(b.expand, machine, expanded);
    if (projects) {
      Run<T> p = b.product;
      p.producer = &made;
      bytes = std::max(bytes, box_workspace(p, machine, block));
    } else {
      bytes = std::max(bytes, made.scratch(block, filter.in_channels));
    }
    return round_up(window_elements(t) * static_cast<int64_t>(sizeof(T)), 64) + bytes;
  }

  // That of a task of any stage.
  int64_t stage_workspace(const Bound& b) const {
    const DepthwiseProducer<T> made = producer(b.filter, stage_columns());
    Run<T> p = b.product;
    p.producer = &made;
    return std::max(task_workspace(b.expand, machine), task_workspace(projects ? p : b.filter, machine));
  }

  // Rows [p0, p1) and columns [q0, q1) of y of image n.
  void run_strip(const Tiling& t, const Bound& b, int64_t n, int64_t p0, int64_t p1, int64_t q0, int64_t q1,
                 void* memory) const {
    const KernelTable<T>& kernels = kernel_table<T>(machine.isa);
    Arena arena(memory);
    T* window = arena.take<T>(window_elements(t));
    void* scratch = arena.take<char>(0);
    Run<T> e = b.expand, f = b.filter, p = b.product;
    const DenseJob& job = b.filter.job;
    const int64_t H = job.in[1], W = job.in[2], channels = filter.in_channels;
    const int64_t w0 = std::clamp<int64_t>(q0 * job.stride[2] - job.pad[2], 0, W);
    const int64_t w1 = std::clamp<int64_t>(q1 * job.stride[2] - 1 - job.pad[2] + t.reach_w, w0, W);
    const int64_t pitch = (w1 - w0) * channels;
    e.job.os = f.job.is = {0, 1, {0, pitch, channels}};
    const DepthwiseProducer<T> made = producer(f, t.columns);
    p.producer = &made;
    // The window holds rows [base, end) of the expansion.
    int64_t base = std::clamp<int64_t>(p0 * job.stride[1] - job.pad[1], 0, H), end = base;
    const int64_t step = expanded_rows(t);
    for (int64_t row = p0, next; row < p1; row = next) {
      next = std::min(p1, row + t.rows);
      const int64_t lo = std::clamp<int64_t>(row * job.stride[1] - job.pad[1], base, H);
      const int64_t hi = std::clamp<int64_t>((next - 1) * job.stride[1] - job.pad[1] + t.reach_h, lo, H);
      if (hi - base > t.lines) {
        const int64_t kept = std::max<int64_t>(0, end - lo) * pitch;
        std::memmove(window, window + (lo - base) * pitch, static_cast<size_t>(kept) * sizeof(T));
        base = lo;
      }
      T* corner = window - base * pitch - w0 * channels;
      e.job.output = corner, f.job.input = corner;
      for (int64_t h = std::max(end, lo); h < hi; h += step) {
        const int64_t at[3] = {0, h, w0}, size[3] = {1, std::min(step, hi - h), w1 - w0};
        run_box(e, machine, kernels, first, n, at, size, scratch);
      }
      end = std::max(end, hi);
      const int64_t at[3] = {0, row, q0}, size[3] = {1, next - row, q1 - q0};
      if (projects) {
        run_box(p, machine, kernels, last, n, at, size, scratch);
        continue;
      }
      const Strides& to = job.os;
      T* out = static_cast<T*>(job.output) + n * to.n + q0 * to.s[2];
      // Where the rows of y do not follow one another, a row at a time.
      const int64_t together = to.s[1] == (q1 - q0) * to.s[2] ? next - row : 1;
      for (int64_t i = row; i < next; i += together) {
        const int64_t line[3] = {0, i, q0}, rows[3] = {1, together, q1 - q0};
        made.fill(n, line, rows, 0, channels, out + i * to.s[1], to.s[2], to.c, scratch);
      }
      for (int64_t i = row; i < next; ++i) sum_row(t, b, n, i, q0 / t.columns);
    }
  }

  // The sums of a range of columns of one row of u: while the row is in the cache, and the same for any split.
  void sum_row(const Tiling& t, const Bound& b, int64_t n, int64_t row, int64_t range) const {
    const KernelTable<T>& kernels = kernel_table<T>(machine.isa);
    const DenseJob& job = b.filter.job;
    const int64_t channels = filter.in_channels, q0 = range * t.columns, count = std::min(t.columns, job.out[2] - q0);
    const T* from = static_cast<const T*>(job.output) + n * job.os.n + row * job.os.s[1] + q0 * job.os.s[2];
    T* sums = b.sums + ((n * job.out[1] + row) * t.column_parts + range) * channels;
    if (job.os.c == 1) {
      kernels.sum_columns(sums, from, count, job.os.s[2], channels);
      return;
    }
    for (int64_t c = 0; c < channels; ++c) sums[c] = kernels.sum_run(from + c * job.os.c, count, job.os.s[2]);
  }

  // Joins the sums in order, in double.
  Status join_means(const Tiling& t, const Bound& b, int64_t N, const TensorView& mean) const {
    const DenseJob& job = b.filter.job;
    const int64_t channels = filter.in_channels, ranges = job.out[1] * t.column_parts;
    const double pixels = static_cast<double>(job.out[1]) * static_cast<double>(job.out[2]);
    return parallel_for(N, static_cast<double>(N * ranges * channels), [&](int64_t n, int) {
      for (int64_t c0 = 0; c0 < channels; c0 += 64) {
        double total[64] = {};
        const int64_t most = std::min<int64_t>(64, channels - c0);
        for (int64_t i = 0; i < ranges; ++i)
          for (int64_t c = 0; c < most; ++c) total[c] += b.sums[(n * ranges + i) * channels + c0 + c];
        T* to = static_cast<T*>(mean.data) + n * mean.strides[0] + c0 * mean.strides[1];
        for (int64_t c = 0; c < most; ++c) to[c * mean.strides[1]] = static_cast<T>(total[c] / pixels);
      }
    });
  }

  // The expansion of one image after the other as a whole, all threads on each stage.
  Status run_stages(const Tiling& t, const Bound& b, int64_t N) const {
    const KernelTable<T>& kernels = kernel_table<T>(machine.isa);
    const Geometry& g = filter.geometry;
    const int64_t elements = filter.in_channels * g.in[1] * g.in[2];
    const Block whole(elements * static_cast<int64_t>(sizeof(T)));
    if (whole.failed()) return Status::out_of_memory;
    std::vector<Run<T>> e{b.expand}, f{b.filter}, p{b.product};
    e[0].job.N = f[0].job.N = p[0].job.N = 1;
    e[0].job.output = whole.data(), f[0].job.input = whole.data();
    const DepthwiseProducer<T> made = producer(f[0], stage_columns());
    p[0].producer = &made;
    auto move = [](const void* data, int64_t offset) {
      return data ? static_cast<T*>(const_cast<void*>(data)) + offset : nullptr;
    };
    Run<T>& out = projects ? p[0] : f[0];
    for (int64_t n = 0; n < N; ++n) {
      e[0].job.input = move(b.expand.job.input, n * e[0].job.is.n);
      Status s = run_dense(e, machine, kernels, first, map, 0, false);
      if (s != Status::ok) return s;
      out.job.output = move((projects ? b.product : b.filter).job.output, n * out.job.os.n);
      out.job.residual = move(b.product.job.residual, n * out.job.rs.n);
      if (projects) {
        s = run_dense(p, machine, kernels, last, map, 0, false);
      } else {
        f[0].choice.move_output = f[0].choice.role == Role::pixel_rows ? f[0].job.os.c != 1 : f[0].job.os.s[2] != 1;
        s = run_dense(f, machine, kernels, inner, map, 0, false);
        if (s != Status::ok) return s;
        s = parallel_for(g.out[1] * t.column_parts, static_cast<double>(elements),
                         [&](int64_t i, int) { sum_row(t, b, n, i / t.column_parts, i % t.column_parts); });
      }
      if (s != Status::ok) return s;
    }
    return Status::ok;
  }

  Status run(int64_t N, const void* x, const Strides& xs, void* y, const Strides& ys, const void* residual,
             const Strides& rs, const TensorView& mean) const {
    if (N == 0) return Status::ok;
    Bound b = bind(N, x, xs, y, ys, residual, rs);
    const Tiling t = tiling();
    if (projects) return run_bound(t, b, N);
    const int64_t sums = N * filter.geometry.out[1] * t.column_parts * filter.in_channels;
    const Block block(sums * static_cast<int64_t>(sizeof(T)));
    if (block.failed()) return Status::out_of_memory;
    b.sums = static_cast<T*>(block.data());
    const Status s = run_bound(t, b, N);
    return s == Status::ok ? join_means(t, b, N, mean) : s;
  }

  // How a call of N images is shared out now.
  struct Split {
    double work;  // nanoseconds of one thread, about
    int64_t row_parts, tasks;
    const char* whole;  // why the expansion is made as a whole; null: a task goes down a strip
  };
  Split split(const Tiling& t, int64_t N) const {
    Split s{};
    auto nanoseconds = [](const Geometry& g, double each) { return g.macs() / std::max<int64_t>(1, g.N) * each; };
    s.work = nanoseconds(expand.geometry, 0.04) + nanoseconds(filter.geometry, 0.07);
    if (projects) s.work += nanoseconds(product.geometry, 0.04);
    s.work *= static_cast<double>(N);
    s.row_parts = std::clamp<int64_t>(ceil_div(wanted_tasks(s.work), std::max<int64_t>(1, N) * t.column_parts), 1,
                                      std::max<int64_t>(1, filter.geometry.out[1] / t.least));
    s.tasks = N * t.column_parts * s.row_parts;
    s.whole = t.misfit                                              ? t.misfit
              : s.tasks < planned_threads(int64_t{1} << 30, s.work) ? "there are fewer strips of rows than threads"
                                                                    : nullptr;
    return s;
  }

  Status run_bound(const Tiling& t, const Bound& b, int64_t N) const {
    const int64_t P = filter.geometry.out[1], Q = filter.geometry.out[2];
    const Split cut = split(t, N);
    begin_path(cut.whole ? kWhole : kInRows);
    if (cut.whole) return run_stages(t, b, N);
    const int64_t bytes = workspace(t, b), row_parts = cut.row_parts;
    std::atomic<bool> failed{false};
    const Status status = parallel_for(cut.tasks, cut.work, [&](int64_t i, int) {
      Workspace scratch(static_cast<size_t>(bytes));
      if (!scratch) {
        failed.store(true, std::memory_order_relaxed);
        return;
      }
      const int64_t row = i % row_parts, column = i / row_parts % t.column_parts, n = i / row_parts / t.column_parts;
      run_strip(t, b, n, P * row / row_parts, P * (row + 1) / row_parts, column * t.columns,
                std::min(Q, (column + 1) * t.columns), scratch.data());
    });
    return failed ? Status::out_of_memory : status;
  }

  InvertedDecision decision(int64_t N) const {
    const Tiling t = tiling();
    const Bound b = bound();
    InvertedDecision d;
    d.in_rows = !t.misfit, d.whole = t.misfit;
    const Split cut = split(t, N);
    d.call_in_rows = !cut.whole, d.call_whole = cut.whole, d.tasks = cut.tasks;
    d.expand = half_decision(expands[0], machine, expand.geometry, 0);
    d.filter = half_decision(filters[0], machine, filter.geometry, 0);
    d.filter.pixel_block = t.rows * t.columns, d.filter.channel_block = most_channels();
    d.flops = d.expand.flops + d.filter.flops;
    if (projects) {
      d.product = half_decision(products[0], machine, product.geometry, 0);
      d.flops += d.product.flops;
    }
    d.rows = t.rows, d.columns = t.columns, d.kept_rows = t.lines;
    for (const auto* runs : {&expands, &filters, &products})
      for (const Run<T>& run : *runs)
        d.packed_bytes += packed_size(run.job, run.choice, machine, true) * static_cast<int64_t>(sizeof(T));
    auto workspace_of = [&](bool in_rows) { return in_rows ? workspace(t, b) : stage_workspace(b); };
    const int64_t whole =
        filter.in_channels * filter.geometry.in[1] * filter.geometry.in[2] * static_cast<int64_t>(sizeof(T));
    d.workspace = workspace_of(d.in_rows), d.call_workspace = workspace_of(d.call_in_rows);
    d.whole_bytes = d.in_rows ? 0 : whole, d.call_whole_bytes = d.call_in_rows ? 0 : whole;
    return d;
  }
};

template <class T>
Status decide_inverted(const ConvDesc& desc, const InvertedOperands& o, InvertedDecision* d) {
  Inverted<T> layer;
  const Status s = layer.decide(desc, o, false);
  if (s != Status::ok) return s;
  const Geometry &e = layer.expand.geometry, &f = layer.filter.geometry;
  *d = layer.decision(f.N);
  const int64_t E = layer.filter.in_channels, K = layer.projects ? layer.product.out_channels : 0;
  const int64_t in = layer.expand.in_channels * e.in[1] * e.in[2], out = f.out[1] * f.out[2];
  const int64_t results = layer.projects ? K * out * (absent(o.epilogue.residual) ? 1 : 2) : E * (out + 1);
  const int64_t weights = E * (layer.expand.in_channels + f.filter[1] * f.filter[2] + K);
  d->bytes = static_cast<double>(sizeof(T)) * static_cast<double>(f.N * (in + results) + weights);
  return s;
}

template <class T>
Status run_inverted(const ConvDesc& desc, const InvertedOperands& o) {
  Inverted<T> layer;
  const Status s = layer.build(desc, o, false);
  if (s != Status::ok) return s;
  return layer.run(layer.filter.geometry.N, o.x.data, layer.expand.x, o.y.data,
                   layer.projects ? layer.product.y : layer.filter.y, o.epilogue.residual.data, layer.product.r,
                   o.mean);
}

}  // namespace
}  // namespace ops

using namespace ops;

Status inverted_output_shape(const ConvDesc& desc, const TensorView& x, const TensorView& expand_weight,
                             const TensorView& depthwise_weight, const TensorView& project_weight, int64_t* shape) {
  const ConvDesc point = pointwise_desc(desc);
  Status s = conv_output_shape(point, x, expand_weight, shape);
  if (s != Status::ok) return s;
  s = conv_output_shape(desc, stand_in(desc, x, shape), depthwise_weight, shape);
  if (s != Status::ok || absent(project_weight)) return s;
  return conv_output_shape(point, stand_in(desc, x, shape), project_weight, shape);
}

namespace {

Status on_host(const InvertedOperands& o) {
  return check_device(Device::cpu, {&o.x, &o.expand_weight, &o.depthwise_weight, &o.project_weight, &o.y, &o.mean,
                                    &o.epilogue.residual});
}

}  // namespace

Status inverted_decide(const ConvDesc& desc, const InvertedOperands& o, InvertedDecision* decision) {
  const Status s = on_host(o);
  if (s != Status::ok) return s;
  if (o.x.dtype != DType::f32 && o.x.dtype != DType::f64) return Status::bad_dtype;
  return o.x.dtype == DType::f32 ? decide_inverted<float>(desc, o, decision)
                                 : decide_inverted<double>(desc, o, decision);
}

Status inverted_run(const ConvDesc& desc, const InvertedOperands& o) {
  const Status s = on_host(o);
  if (s != Status::ok) return s;
  if (o.x.dtype != DType::f32 && o.x.dtype != DType::f64) return Status::bad_dtype;
  return o.x.dtype == DType::f32 ? run_inverted<float>(desc, o) : run_inverted<double>(desc, o);
}

class InvertedPlan {
 public:
  virtual ~InvertedPlan() = default;
  virtual Status run(const TensorView& x, const TensorView& y, const TensorView& residual,
                     const TensorView& mean) const = 0;
  InvertedDecision decision;
};

namespace {

template <class T>
class TypedInvertedPlan final : public InvertedPlan {
 public:
  Status build(const ConvDesc& desc, const InvertedOperands& o) {
    const Status s = layer_.build(desc, o, true);
    if (s == Status::ok) decision = layer_.decision(layer_.filter.geometry.N);
    return s;
  }

  Status run(const TensorView& x, const TensorView& y, const TensorView& residual,
             const TensorView& mean) const override {
    const ConvDesc point = pointwise_desc(layer_.desc);
    Geometry e = layer_.expand.geometry, f = layer_.filter.geometry, p = layer_.product.geometry;
    e.N = f.N = p.N = x.ndim > 0 ? x.shape[0] : 0;
    Strides xs{}, ys{}, rs{};
    Status s = lift(point, e, true, x, &xs);
    if (s != Status::ok) return s;
    s = layer_.projects ? lift(point, p, false, y, &ys) : lift(layer_.desc, f, false, y, &ys);
    if (s != Status::ok) return Status::bad_output;
    if (!absent(residual)) {
      if (!layer_.projects) return Status::unsupported;
      if ((s = lift(point, p, false, residual, &rs)) != Status::ok) return s;
    }
    return layer_.run(e.N, x.data, xs, y.data, ys, residual.data, rs, mean);
  }

 private:
  Inverted<T> layer_;
};

template <class T>
std::shared_ptr<const InvertedPlan> make_plan(const ConvDesc& desc, const InvertedOperands& o, Status* status) {
  auto plan = std::make_shared<TypedInvertedPlan<T>>();
  *status = plan->build(desc, o);
  if (*status != Status::ok) return nullptr;
  return plan;
}

}  // namespace

std::shared_ptr<const InvertedPlan> inverted_plan(const ConvDesc& desc, const InvertedOperands& o, Status* status) {
  if ((*status = on_host(o)) != Status::ok) return nullptr;
  return o.x.dtype == DType::f32 ? make_plan<float>(desc, o, status) : make_plan<double>(desc, o, status);
}
Status inverted_plan_run(const InvertedPlan& plan, const TensorView& x, const TensorView& y, const TensorView& residual,
                         const TensorView& mean) {
  const Status s = check_device(Device::cpu, {&x, &y, &residual, &mean});
  return s == Status::ok ? plan.run(x, y, residual, mean) : s;
}
InvertedDecision inverted_plan_decision(const InvertedPlan& plan) { return plan.decision; }

}  // namespace fastconv
