// The gradient of 3 x 3 filters by Winograd's minimal filtering, transposed: points of patches of x and of tiles of dy
// are multiplied and summed over all tiles of all images, by the tile of all dense products; what remains, n x n sums
// for each pair of channels, becomes nine taps once, at the end.
//
// A task has some output channels (rows) and a panel of input channels, whose sums stay in L2 (64 x 64 channels of
// 36 points: 576 KB), and goes through the tiles in runs whose points are there beside them.
#include <algorithm>
#include <atomic>

#include "ops/memory.h"
#include "ops/parallel.h"
#include "ops/patches.h"
#include "ops/winograd.h"

namespace fastconv::ops {
namespace {

// What depends neither on the threads nor on the memory order.
struct Form {
  int64_t m, n, points;
  int64_t down, across, all;  // tiles of an image, of all images
  int64_t width;              // channels of a panel at most
  int64_t rows;               // output channels of a task at most
  int64_t run;                // tiles whose points are summed together
  int64_t strip_x, strip_dy;

  Form(const DenseJob& job, int64_t outputs, const Machine& machine, int64_t item_size) : m(outputs) {
    n = m + 2, points = n * n;
    down = ceil_div(job.out[1], m), across = ceil_div(job.out[2], m), all = job.N * down * across;
    width = std::min<int64_t>(preferred_vectors(machine), ceil_div(job.C, machine.lanes)) * machine.lanes;
    const int64_t most = std::max<int64_t>(8, machine.l2 * 9 / 16 / (points * width * item_size));
    rows = ceil_div(job.K, ceil_div(job.K, most));
    // Fewer tiles would have a panel's sums read and written for too little.
    const int64_t least = 16, fit = machine.l2 * 3 / 8 / (points * (width + rows) * item_size);
    run = ceil_div(all, std::max<int64_t>(1, ceil_div(all, std::max(least, fit))));
    strip_x = std::min({strip_tiles(machine, m, n, width, item_size), across, run});
    strip_dy = std::min({strip_tiles(machine, m, m, rows, item_size), across, run});
  }
  int64_t padded_rows(int64_t lanes) const { return round_up(rows, lanes) + lanes; }
  // Between points; of x, of dy, of the sums.
  int64_t pitch_x(int64_t lanes) const { return run * width + lanes; }
  int64_t pitch_dy(int64_t lanes) const { return run * padded_rows(lanes) + lanes; }
  int64_t pitch_sums(int64_t lanes) const { return rows * width + lanes; }
};

template <class T>
struct Memory {
  T* x;
  T* dy;
  T* sums;
  const T** a;
  T** c;
  Patches<T> patches_x, patches_dy;

  Memory(const Form& f, int64_t lanes, Arena& arena)
      : x(arena.take<T>(f.points * f.pitch_x(lanes))),
        dy(arena.take<T>(f.points * f.pitch_dy(lanes))),
        sums(arena.take<T>(f.points * f.pitch_sums(lanes))),
        a(arena.take<const T*>(f.rows)),
        c(arena.take<T*>(f.rows)),
        patches_x(f.m, f.n, f.width, f.strip_x, lanes, arena),
        patches_dy(f.m, f.m, f.rows, f.strip_dy, lanes, arena) {}
};

// The points of channels [c0, c1) of the tiles [t0, t1): of the patches of x, or of the tiles of dy.
template <class T, bool Input>
void make_points(const DenseJob& job, const Form& f, const KernelTable<T>& kernels, Patches<T> patches, int64_t g,
                 int64_t t0, int64_t t1, int64_t c0, int64_t c1, T* points, int64_t point_pitch, int64_t tile_pitch) {
  const int64_t each = f.down * f.across, strip = Input ? f.strip_x : f.strip_dy;
  for (int64_t t = t0, count; t < t1; t += count) {
    const int64_t i = t % each, y = i / f.across * f.m, x = i % f.across * f.m;
    count = std::min({t1 - t, f.across - i % f.across, strip});
    const PatchImage<T> image =
        Input ? PatchImage<T>::input(job, t / each, g) : PatchImage<T>::output(job, t / each, g);
    patches.place(image, y, x, count);
    for (int64_t c = c0; c < c1; c += kStripChannels) {
      WinogradInputArgs<T> w{};
      w.channels = std::min(kStripChannels, c1 - c), w.tiles = count;
      w.patch = patches.copy(kernels, image, c, w.channels, InputMap<T>{});
      w.points = points + (t - t0) * tile_pitch + (c - c0);
      w.point_pitch = point_pitch, w.tile_pitch = tile_pitch;
      w.outputs = static_cast<int32_t>(f.m);
      Input ? kernels.winograd_input(w) : kernels.winograd_spread(w);
    }
  }
}

// Output channels [k0, k1) of input channels [c0, c1); false where a tap is not finite, and nothing has been written.
template <class T>
bool run_task(const DenseJob& job, const Form& f, const Machine& m, const KernelTable<T>& kernels, const Memory<T>& s,
              int64_t g, int64_t c0, int64_t c1, int64_t k0, int64_t k1, T* dw, bool accumulate) {
  const int64_t W = m.lanes, channels = c1 - c0, rows = k1 - k0, columns = round_up(channels, W);
  const int64_t pitch_x = f.pitch_x(W), pitch_dy = f.pitch_dy(W), pitch_sums = f.pitch_sums(W);
  const int64_t step = f.padded_rows(W);
  for (int64_t k = 0; k < rows; ++k) s.a[k] = s.dy + k, s.c[k] = s.sums + k * columns;
  GemmArgs<T> a{};
  a.rows = s.a, a.row_step = step;
  a.taps = 1, a.m = rows, a.panels = 1;
  a.c = s.c;
  a.vectors = static_cast<int32_t>(columns / W), a.tail = static_cast<int32_t>(W);
  for (int64_t t = 0; t < f.all; t += f.run) {
    const int64_t end = std::min(t + f.run, f.all);
    make_points<T, true>(job, f, kernels, s.patches_x, g, t, end, c0, c1, s.x, pitch_x, columns);
    make_points<T, false>(job, f, kernels, s.patches_dy, g, t, end, k0, k1, s.dy, pitch_dy, step);
    a.length = end - t;
    a.accumulate = t > 0;
    for (int64_t i = 0; i < f.points; ++i) {
      a.row_offset = i * pitch_dy, a.c_offset = i * pitch_sums;
      a.panel = s.x + i * pitch_x;
      kernels.gemm(a);
    }
  }
  int32_t bad = 0;
  kernels.winograd_taps({s.sums, pitch_sums, columns, rows, columns, &bad, static_cast<int32_t>(f.m)});
  if (bad) return false;
  for (int64_t k = 0; k < rows; ++k) {
    T* const to = dw + ((g * job.K + k0 + k) * job.C + c0) * 9;
    if (!accumulate) {
      kernels.turn_block({s.sums + k * columns, to, 9, channels, pitch_sums, 9});
      continue;
    }
    T* const part = s.x;
    kernels.turn_block({s.sums + k * columns, part, 9, channels, pitch_sums, 9});
    for (int64_t i = 0; i < channels * 9; ++i) to[i] += part[i];
  }
  return true;
}

}  // namespace

template <class T>
int64_t winograd_weight_workspace(const DenseJob& job, int64_t outputs, const Machine& machine) {
  Arena count(nullptr);
  Memory<T>(Form(job, outputs, machine, sizeof(T)), machine.lanes, count);
  return count.size();
}

template <class T>
Status run_winograd_weight(const DenseJob& job, int64_t outputs, const Machine& machine, const KernelTable<T>& kernels,
                           T* dw, bool accumulate, std::vector<WeightTask>* bad) {
  const Form form(job, outputs, machine, sizeof(T));
  const double work = static_cast<double>(job.G * form.all * form.points) * static_cast<double>(job.C * job.K) * 0.04;
  const int64_t c_parts = ceil_div(job.C, form.width), want = wanted_tasks(work);
  int64_t rows = form.rows;
  if (job.G * c_parts * ceil_div(job.K, rows) < want)
    rows = std::min(rows, std::max<int64_t>(2 * machine.tile_rows[preferred_vectors(machine)],
                                            ceil_div(job.K, ceil_div(want, job.G * c_parts))));
  const int64_t k_parts = ceil_div(job.K, rows), tasks = job.G * c_parts * k_parts;
  const int64_t bytes = winograd_weight_workspace<T>(job, outputs, machine);
  std::vector<char> left(static_cast<size_t>(tasks));
  auto task_of = [&](int64_t i) {
    const int64_t k = i % k_parts * rows, c = i / k_parts % c_parts * form.width;
    return WeightTask{i / k_parts / c_parts, c, std::min(job.C, c + form.width), k, std::min(job.K, k + rows)};
  };
  std::atomic<bool> failed{false};
  const Status status = parallel_for(tasks, work, [&](int64_t i, int) {
    Workspace scratch(static_cast<size_t>(bytes));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    Arena arena(scratch.data(), bytes);
    const Memory<T> memory(form, machine.lanes, arena);
    const WeightTask t = task_of(i);
    left[static_cast<size_t>(i)] =
        !run_task(job, form, machine, kernels, memory, t.g, t.c0, t.c1, t.k0, t.k1, dw, accumulate);
  });
  for (int64_t i = 0; i < tasks; ++i)
    if (left[static_cast<size_t>(i)]) bad->push_back(task_of(i));
  return failed ? Status::out_of_memory : status;
}

#define FASTCONV_INSTANTIATE(T)                                                                                     \
  template int64_t winograd_weight_workspace<T>(const DenseJob&, int64_t, const Machine&);                          \
  template Status run_winograd_weight<T>(const DenseJob&, int64_t, const Machine&, const KernelTable<T>&, T*, bool, \
                                         std::vector<WeightTask>*);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)
#undef FASTCONV_INSTANTIATE

}  // namespace fastconv::ops
