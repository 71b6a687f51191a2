#include "ops/winograd.h"

#include <algorithm>
#include <atomic>

#include "ops/memory.h"
#include "ops/parallel.h"
#include "ops/patches.h"

namespace fastconv::ops {
namespace {

// Panels of the filters' points: as wide as the best tile where they are packed for all tasks; narrow where a task
// makes them, so that those of one piece of the reduction stay in L2 (F(4x4), float32, AVX-512: 576 KB).
constexpr int64_t kLateVectors = 2;
int64_t widest(const Machine& machine) { return preferred_vectors(machine); }

struct PointPanels {
  int64_t vectors, most, count;
  PointPanels(int64_t all, int64_t at_most)
      : vectors(all), most(at_most), count(std::max<int64_t>(1, ceil_div(all, most))) {}
  int64_t start(int64_t i) const { return i * vectors / count; }
  int64_t width(int64_t i) const { return start(i + 1) - start(i); }
};

// How a product is cut into tiles, and the tiles into tasks. Tiles are counted through all images: a task may have the
// last ones of one and the first ones of the next.
struct Form {
  int64_t m, n, points;          // outputs and elements of a patch along an axis, points of a tile
  int64_t down, across, each;    // tiles of an image
  int64_t all;                   // of all images
  int64_t block, blocks;         // tiles of a task
  int64_t padded_channels;       // of a tile's point
  int64_t strip;                 // neighbouring tiles whose patches are copied together
  int64_t k_parts, tasks;        // ranges of panels
  bool late;                     // tasks make the points of the filters that they use
  PointPanels panels;

  Form(const DenseJob& job, const Choice& choice, const Machine& machine, int64_t item_size, int64_t want,
       bool points_late)
      : late(points_late), panels(ceil_div(job.K, machine.lanes), points_late ? kLateVectors : widest(machine)) {
    m = choice.winograd, n = m + 2, points = n * n;
    down = ceil_div(job.out[1], m), across = ceil_div(job.out[2], m), each = down * across;
    all = job.N * each;
    // Pixels a multiple of 4 KB apart would fall into the same sets of the first-level cache.
    padded_channels = round_up(job.C, machine.lanes) + machine.lanes;
    const int64_t least = 2 * machine.tile_rows[preferred_vectors(machine)];
    block = choice.winograd_block;
    if (!late && job.G * ceil_div(all, block) < want) block = std::max(least, ceil_div(all * job.G, want));
    // The nearest count: every block reads all points of the filters, and a few tiles do so at the same cost. The least
    // block is large already.
    blocks = std::max<int64_t>(1, (all + (block > least ? block / 2 : block - 1)) / block);
    block = std::max<int64_t>(1, ceil_div(all, blocks));
    blocks = ceil_div(all, block);
    strip = std::min({strip_tiles(machine, m, n, job.C, item_size), across, block});
    // Every range of panels makes the points of its tiles again: no more of them than threads need (`want` is four
    // times their number).
    k_parts = std::clamp<int64_t>(ceil_div(ceil_div(want, 4), std::max<int64_t>(1, job.G * blocks)), 1, panels.count);
    tasks = job.G * blocks * k_parts;
  }

  int64_t first_panel(int64_t part) const { return part * panels.count / k_parts; }
  int64_t point_pitch(int64_t lanes) const { return block * padded_channels + lanes; }
};

double winograd_nanoseconds(const DenseJob& job, const Form& form) {
  return static_cast<double>(job.G * form.all * form.points) * static_cast<double>(job.C * job.K) * 0.04;
}

// The direct product of the same job, of one image, into a buffer of one tile with all channels.
template <class T>
Run<T> direct_run(const Run<T>& run) {
  Run<T> r = run;
  r.choice.winograd = 0, r.choice.move_output = false;
  r.choice.pixel_block = run.choice.winograd * run.choice.winograd;
  r.job.N = 1;  // its weights are packed late where they are not packed already
  r.job.os = {0, 1, {0, run.choice.winograd * run.job.G * run.job.K, run.job.G * run.job.K}};
  if (run.direct_size == 0) r.packed = nullptr;
  return r;
}

// Channels whose nine taps, for a panel, stay in half of the first-level cache.
template <class T>
int64_t filter_step(const Machine& machine) {
  return std::max<int64_t>(
      1, machine.l1 / 2 / (9 * machine.max_vectors * machine.lanes * static_cast<int64_t>(sizeof(T))));
}

// The points of the filters of group g, of channels [c0, c0 + channels) and of `columns` outputs from k on, which are
// whole vectors: channel c0 + i of point p goes to points[p * point_pitch + i * columns]. `taps` holds some filters.
template <class T>
void make_points(const DenseJob& job, const Machine& machine, const KernelTable<T>& kernels, int32_t outputs, int64_t g,
                 int64_t c0, int64_t channels, int64_t k, int64_t columns, T* taps, T* points, int64_t point_pitch) {
  int64_t tap_offset[9];
  tap_offsets(job, tap_offset);
  const int64_t step = filter_step<T>(machine);
  for (int64_t c = 0; c < channels; c += step) {
    PackWeightsArgs<T> w{};
    w.panel = taps;
    w.w = static_cast<const T*>(job.weight) + g * job.wg + (c0 + c) * job.wc + k * job.wk;
    w.column_stride = job.wk, w.channel_stride = job.wc;
    w.tap_offset = tap_offset;
    w.taps = 9, w.length = std::min(step, channels - c);
    w.columns = columns, w.valid = std::min(columns, job.K - k);
    kernels.pack_weights(w);
    WinogradFilterArgs<T> f{};
    f.panel = taps, f.channels = w.length, f.columns = columns;
    f.points = points + c * columns, f.point_pitch = point_pitch;
    f.outputs = outputs;
    kernels.winograd_filter(f);
  }
}

// What a task takes.
template <class T>
struct Memory {
  T* points;  // of the patches
  T* sums;    // of a panel
  T* late;      // the points of a panel's filters, of one piece of the reduction, where tasks make them
  T* taps;      // some of the filters they are made from
  const T** rows;
  T** c;
  T** out;
  const T** residual;
  int32_t* tile_rows;
  int32_t* tile_columns;
  uint64_t* bad;
  Moved<T> moved;
  Patches<T> patches;
  void* spare;         // for a direct product, while no filters' points are there
  int64_t sums_pitch;  // between points

  Memory(const DenseJob& job, const Choice& choice, const Machine& m, const Form& f, int64_t direct_bytes, Arena& arena)
      : points(arena.take<T>(f.points * f.point_pitch(m.lanes))),
        sums(nullptr),
        moved(job, choice, f.block * f.m * f.m, f.panels.most * m.lanes, m.lanes, arena),
        patches(f.m, f.n, job.C, f.strip, m.lanes, arena) {
    const int64_t width = f.panels.most * m.lanes, direct = ceil_div(direct_bytes, static_cast<int64_t>(sizeof(T)));
    sums_pitch = f.block * width + m.lanes;
    sums = arena.take<T>(f.points * sums_pitch);
    rows = arena.take<const T*>(f.block);
    c = arena.take<T*>(f.block);
    out = arena.take<T*>(f.block);
    residual = arena.take<const T*>(f.block);
    tile_rows = arena.take<int32_t>(f.block), tile_columns = arena.take<int32_t>(f.block);
    bad = arena.take<uint64_t>(f.block);
    late = arena.take<T>(std::max(f.late ? f.points * choice.winograd_chunks[0].channels * width : 0, direct));
    spare = late;
    taps = f.late ? arena.take<T>(9 * filter_step<T>(m) * m.max_vectors * m.lanes) : nullptr;
  }
};

// The tiles [t0, t1) of group g and the panels [p0, p1).
template <class T>
struct Task {
  const Run<T>& run;
  const Context<T>& ctx;
  const Form& form;
  const Memory<T>& s;
  int64_t g, t0, t1, p0, p1;

  struct Place { int64_t n, y, x; };  // image, first pixel
  Place place(int64_t t) const {
    const int64_t i = t % form.each;
    return {t / form.each, i / form.across * form.m, i % form.across * form.m};
  }

  // The points of the patches of tiles [t, t + count), neighbours in a row of tiles.
  void load(int64_t t, int64_t count) const {
    const DenseJob& job = run.job;
    const Place at = place(t);
    const PatchImage<T> image = PatchImage<T>::input(job, at.n, g);
    Patches<T> patches = s.patches;
    patches.place(image, at.y, at.x, count);
    for (int64_t c = 0; c < job.C; c += kStripChannels) {
      const int64_t channels = std::min(kStripChannels, job.C - c);
      WinogradInputArgs<T> w{};
      w.patch =
          patches.copy(ctx.kernels, image, c, channels, map_at(ctx.map, at.n, ctx.gate_batch_stride, g * job.C + c));
      w.tiles = count, w.channels = channels;
      w.points = s.points + (t - t0) * form.padded_channels + c;
      w.point_pitch = form.point_pitch(ctx.machine.lanes), w.tile_pitch = form.padded_channels;
      w.outputs = static_cast<int32_t>(form.m);
      ctx.kernels.winograd_input(w);
    }
  }

  void load_all() const {
    for (int64_t t = t0, count; t < t1; t += count) {
      count = std::min({t1 - t, tiles_beside(t), form.strip});
      load(t, count);
    }
  }

  // The sums of a panel at all points.
  void multiply(int64_t p) const {
    const DenseJob& job = run.job;
    const int64_t W = ctx.machine.lanes, padded_k = form.panels.vectors * W, k = form.panels.start(p) * W;
    const int64_t columns = form.panels.width(p) * W, tiles = t1 - t0;
    const T* panel = form.late ? s.late : run.packed + run.direct_size + (g * padded_k + k) * form.points * job.C;
    for (int64_t t = 0; t < tiles; ++t) {
      s.rows[t] = s.points + t * form.padded_channels;
      s.c[t] = s.sums + t * columns;
    }
    GemmArgs<T> a{};
    a.rows = s.rows, a.row_step = 1;
    a.taps = 1, a.m = tiles, a.panels = 1;
    a.c = s.c;
    a.vectors = static_cast<int32_t>(form.panels.width(p)), a.tail = static_cast<int32_t>(W);
    for (const Chunk& chunk : run.choice.winograd_chunks) {
      const int64_t pitch = (form.late ? chunk.channels : job.C) * columns;
      if (form.late)
        make_points(job, ctx.machine, ctx.kernels, run.choice.winograd, g, chunk.c0, chunk.channels, k, columns, s.taps,
                    s.late, pitch);
      a.length = chunk.channels;
      a.accumulate = chunk.c0 > 0;
      for (int64_t i = 0; i < form.points; ++i) {
        a.row_offset = i * form.point_pitch(W) + chunk.c0;
        a.c_offset = i * s.sums_pitch;
        a.panel = panel + i * pitch + (form.late ? 0 : chunk.c0 * columns);
        ctx.kernels.gemm(a);
      }
    }
  }

  // The pixels of a panel.
  void store(int64_t p) const {
    const DenseJob& job = run.job;
    const int64_t W = ctx.machine.lanes, k = form.panels.start(p) * W, tiles = t1 - t0, m = form.m;
    const int64_t columns = form.panels.width(p) * W, channels = std::min(columns, job.K - k);
    const Moved<T>& moved = s.moved;
    const T* residual = job.has_residual ? static_cast<const T*>(job.residual) : nullptr;
    if (moved.output)
      for (int64_t i = 0; i < channels; ++i) moved.column_offset[i] = i * job.os.c;
    if (moved.residual)
      for (int64_t i = 0; i < channels; ++i) moved.residual_column[i] = i * job.rs.c;
    WinogradOutputArgs<T> w{};
    w.point_pitch = s.sums_pitch, w.tile_pitch = columns;
    w.channels = channels;
    w.rows = s.tile_rows, w.columns = s.tile_columns;
    w.out = s.out;
    w.column_pitch = moved.output ? moved.pitch : job.os.s[2];
    w.residual = residual ? s.residual : nullptr;
    w.residual_column_pitch = moved.residual ? moved.pitch : job.rs.s[2];
    const Finish<T>& finish = ctx.finish;
    w.scale = finish.scale ? finish.scale + g * job.K + k : nullptr;
    w.shift = finish.shift ? finish.shift + g * job.K + k : nullptr;
    w.activation = finish.activation, w.a = finish.a, w.b = finish.b;
    w.accumulate = ctx.accumulate && !moved.output;
    w.bad = s.bad;
    w.outputs = static_cast<int32_t>(m);
    // Neighbours in a row of tiles together: where pixels are moved, those of a row are one run.
    for (int64_t t = 0; t < tiles; t += w.tiles) {
      w.tiles = std::min(tiles - t, tiles_beside(t0 + t));
      const Place at = place(t0 + t);
      const int64_t rows = std::min(m, job.out[1] - at.y), wide = std::min(w.tiles * m, job.out[2] - at.x);
      const int64_t buffer_row = w.tiles * m * moved.pitch, step = moved.output ? m * moved.pitch : m * job.os.s[2];
      T* const out = static_cast<T*>(job.output) + at.n * job.os.n + (g * job.K + k) * job.os.c + at.y * job.os.s[1] +
                     at.x * job.os.s[2];
      w.points = s.sums + t * columns;
      w.row_pitch = moved.output ? buffer_row : job.os.s[1];
      for (int64_t l = 0; l < w.tiles; ++l) {
        s.tile_rows[l] = static_cast<int32_t>(rows);
        s.tile_columns[l] = static_cast<int32_t>(std::min(m, wide - l * m));
        s.out[l] = (moved.output ? moved.output : out) + l * step;
      }
      if (residual) {
        const T* from =
            residual + at.n * job.rs.n + (g * job.K + k) * job.rs.c + at.y * job.rs.s[1] + at.x * job.rs.s[2];
        w.residual_row_pitch = moved.residual ? buffer_row : job.rs.s[1];
        for (int64_t l = 0; l < w.tiles; ++l)
          s.residual[l] = (moved.residual ? moved.residual : from) + l * m * w.residual_column_pitch;
        if (moved.residual) {
          for (int64_t x = 0; x < wide; ++x) moved.residual_row[x] = x * job.rs.s[2];
          for (int64_t i = 0; i < rows; ++i)
            move_in(ctx.kernels, const_cast<T*>(from) + i * job.rs.s[1], moved.residual + i * buffer_row, moved.pitch,
                    moved.residual_row, moved.residual_column, wide, channels);
        }
      }
      ctx.kernels.winograd_output(w);
      if (moved.output) move_pixels(out, buffer_row, rows, wide, channels);
      for (int64_t l = 0; l < w.tiles; ++l)
        for (int64_t v = 0, end; s.bad[l] >> v; v = end) {
          // A run of vectors that are, or are not.
          const uint64_t is = s.bad[l] >> v & 1;
          for (end = v + 1; end * W < channels && (s.bad[l] >> end & 1) == is;) ++end;
          if (is) recompute(t0 + t + l, k + v * W, std::min(k + end * W, job.K));
        }
    }
  }

  // How many tiles from t on are neighbours in a row of tiles.
  int64_t tiles_beside(int64_t t) const { return form.across - t % form.across; }

  void move_pixels(T* out, int64_t buffer_row, int64_t rows, int64_t wide, int64_t channels) const {
    const DenseJob& job = run.job;
    const Moved<T>& moved = s.moved;
    const bool turned = job.os.s[2] == 1 && !ctx.accumulate;
    for (int64_t x = 0; x < wide && !turned; ++x) moved.row_offset[x] = x * job.os.s[2];
    for (int64_t i = 0; i < rows; ++i, out += job.os.s[1]) {
      T* const from = moved.output + i * buffer_row;
      if (turned)
        ctx.kernels.turn_block({from, out, wide, channels, moved.pitch, job.os.c});
      else
        move_out(ctx.kernels, out, from, moved.pitch, moved.row_offset, moved.column_offset, wide, channels,
                 ctx.accumulate);
    }
  }

  // Channels [k0, k1) of a tile, by whole panels of the direct product.
  void recompute(int64_t t, int64_t k0, int64_t k1) const {
    const DenseJob& job = run.job;
    const Place at = place(t);
    const int64_t W = ctx.machine.lanes, channels = job.G * job.K;
    const int64_t from[3] = {0, at.y, at.x};
    const int64_t size[3] = {1, std::min(form.m, job.out[1] - at.y), std::min(form.m, job.out[2] - at.x)};
    const Panels all(ceil_div(job.K, W), ctx.machine);
    int64_t first = 0, end = all.count;
    while (first + 1 < all.count && all.start(first + 1) * W <= k0) ++first;
    while (end - 1 > first && all.start(end - 1) * W >= k1) --end;
    Arena arena(s.spare);
    T* const pixels = arena.take<T>(form.m * form.m * channels);
    Run<T> direct = direct_run(run);
    direct.job.output = pixels - at.y * direct.job.os.s[1] - at.x * direct.job.os.s[2];
    Context<T> alone = ctx;
    alone.accumulate = false;
    run_direct_box(direct, alone, at.n, g, all.start(first) * W, std::min(job.K, all.start(end) * W), from, size,
                   arena.take<char>(0));
    T* const out =
        static_cast<T*>(job.output) + at.n * job.os.n + g * job.K * job.os.c + at.y * job.os.s[1] + at.x * job.os.s[2];
    for (int64_t i = 0; i < size[1]; ++i)
      for (int64_t j = 0; j < size[2]; ++j)
        for (int64_t k = k0; k < k1; ++k) {
          const T v = pixels[i * direct.job.os.s[1] + j * direct.job.os.s[2] + g * job.K + k];
          T& to = out[i * job.os.s[1] + j * job.os.s[2] + k * job.os.c];
          to = ctx.accumulate ? to + v : v;
        }
  }
};

template <class T>
int64_t direct_bytes(const Run<T>& run, const Machine& machine, const Form& form) {
  const int64_t size[3] = {1, form.m, form.m};
  Arena count(nullptr);
  count.take<T>(form.m * form.m * run.job.G * run.job.K);
  return count.size() + direct_box_workspace(direct_run(run), machine, size);
}

template <class T>
int64_t scratch_bytes(const Run<T>& run, const Machine& machine, const Form& form) {
  Arena count(nullptr);
  Memory<T>(run.job, run.choice, machine, form, direct_bytes(run, machine, form), count);
  return count.size();
}

}  // namespace

bool suits_winograd(const Problem& p) {
  return p.filter[0] == 1 && p.filter[1] == 3 && p.filter[2] == 3 && p.out[0] == 1 && p.phases == 1 && !p.produced &&
         !p.part && !p.fanned && p.stride[0] * p.stride[1] * p.stride[2] == 1 && p.dilation[1] == 1 &&
         p.dilation[2] == 1 && p.C > 0 && p.K > 0 && p.out[1] * p.out[2] > 0;
}

bool points_late(const DenseJob& job, const Choice& choice) {
  const int64_t tiles = job.N * ceil_div(job.out[1], choice.winograd) * ceil_div(job.out[2], choice.winograd);
  return tiles <= 2 * choice.winograd_block;
}

int64_t winograd_size(const DenseJob& job, const Choice& choice, const Machine& machine) {
  const int64_t n = choice.winograd + 2;
  return job.G * n * n * job.C * round_up(job.K, machine.lanes);
}

template <class T>
Status pack_winograd(const DenseJob& job, const Choice& choice, const Machine& machine, const KernelTable<T>& kernels,
                     T* points) {
  const int64_t W = machine.lanes, n = choice.winograd + 2;
  const PointPanels panels(ceil_div(job.K, W), widest(machine));
  const int64_t padded_k = panels.vectors * W;
  const double work = static_cast<double>(job.G * job.K) * static_cast<double>(job.C * n * n) * 0.3;
  std::atomic<bool> failed{false};
  const Status status = parallel_for(job.G * panels.count, work, [&](int64_t i, int) {
    const int64_t p = i % panels.count, g = i / panels.count;
    const int64_t k = panels.start(p) * W, columns = panels.width(p) * W;
    Workspace scratch(static_cast<size_t>(9 * filter_step<T>(machine) * machine.max_vectors * W) * sizeof(T));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    make_points(job, machine, kernels, choice.winograd, g, 0, job.C, k, columns, static_cast<T*>(scratch.data()),
                points + (g * padded_k + k) * n * n * job.C, job.C * columns);
  });
  return failed ? Status::out_of_memory : status;
}

template <class T>
Status run_winograd(const Run<T>& run, const Machine& machine, const KernelTable<T>& kernels, const Finish<T>& finish,
                    const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate) {
  const Context<T> ctx{machine, kernels, finish, map, gate_batch_stride, accumulate};
  const DenseJob& job = run.job;
  const bool late = !run.packed;
  const double work = winograd_nanoseconds(job, Form(job, run.choice, machine, sizeof(T), 1, late));
  const Form form(job, run.choice, machine, sizeof(T), wanted_tasks(work), late);
  const int64_t bytes = scratch_bytes(run, machine, form), direct = direct_bytes(run, machine, form);
  std::atomic<bool> failed{false};
  const Status status = parallel_for(form.tasks, work, [&](int64_t i, int) {
    Workspace scratch(static_cast<size_t>(bytes));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    Arena arena(scratch.data(), bytes);
    const Memory<T> memory(job, run.choice, machine, form, direct, arena);
    const int64_t part = i % form.k_parts, block = i / form.k_parts % form.blocks;
    const Task<T> task{run,
                       ctx,
                       form,
                       memory,
                       i / form.k_parts / form.blocks,
                       block * form.block,
                       std::min((block + 1) * form.block, form.all),
                       form.first_panel(part),
                       form.first_panel(part + 1)};
    task.load_all();
    for (int64_t p = task.p0; p < task.p1; ++p) {
      task.multiply(p);
      task.store(p);
    }
  });
  return failed ? Status::out_of_memory : status;
}

template <class T>
int64_t winograd_workspace(const Run<T>& run, const Machine& machine) {
  const bool late = !run.packed && points_late(run.job, run.choice);
  return scratch_bytes(run, machine, Form(run.job, run.choice, machine, sizeof(T), 1, late));
}

#define FASTCONV_INSTANTIATE(T)                                                                                \
  template Status pack_winograd<T>(const DenseJob&, const Choice&, const Machine&, const KernelTable<T>&, T*); \
  template Status run_winograd<T>(const Run<T>&, const Machine&, const KernelTable<T>&, const Finish<T>&,      \
                                  const InputMap<T>&, int64_t, bool);                                          \
  template int64_t winograd_workspace<T>(const Run<T>&, const Machine&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)
#undef FASTCONV_INSTANTIATE

}  // namespace fastconv::ops
