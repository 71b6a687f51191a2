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
  int32_t* bad;
  Patches<T> patches_x, patches_dy;

  Memory(const Form& f, int64_t lanes, Arena& arena)
      : x(arena.take<T>(f.points * f.pitch_x(lanes))),
        dy(arena.take<T>(f.points * f.pitch_dy(lanes))),
        sums(arena.take<T>(f.points * f.pitch_sums(lanes))),
        a(arena.take<const T*>(f.rows)),
        c(arena.take<T*>(f.rows)),
        bad(arena.take<int32_t>(f.rows)),
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

// Output channels that are not finite in these input channels are not written: they are marked in bad[].
template <class T>
void run_task(const DenseJob& job, const Form& f, const Machine& m, const KernelTable<T>& kernels, const Memory<T>& s,
              const WeightTask& task, T* dw, bool accumulate, char* bad) {
  const auto [g, c0, c1, k0, k1] = task;
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
  kernels.winograd_taps({s.sums, pitch_sums, columns, rows, columns, s.bad, static_cast<int32_t>(f.m)});
  for (int64_t k = 0; k < rows; ++k) {
    if (s.bad[k]) {
      bad[k] = 1;
      continue;
    }
    T* const to = dw + ((g * job.K + k0 + k) * job.C + c0) * 9;
    if (!accumulate) {
      kernels.turn_block({s.sums + k * columns, to, 9, channels, pitch_sums, 9});
      continue;
    }
    T* const part = s.x;
    kernels.turn_block({s.sums + k * columns, part, 9, channels, pitch_sums, 9});
    for (int64_t i = 0; i < channels * 9; ++i) to[i] += part[i];
  }
}

// Pixels that a tap sums over, in the mean.
double mean_terms(const DenseJob& job) {
  double terms = static_cast<double>(job.N);
  for (int a = 1; a < 3; ++a) {
    int64_t met = 0;
    for (int64_t t = -job.pad[a]; t < 3 - job.pad[a]; ++t)
      met += job.mode == PaddingMode::zeros
                 ? std::max<int64_t>(0, std::min(job.out[a], job.in[a] - t) - std::max<int64_t>(0, -t))
                 : job.out[a];
    terms *= static_cast<double>(met) / 3;
  }
  return terms;
}

// Sums of fewer terms leave more of the error of the points in the result (docs/numerics.md).
constexpr double kTerms2 = 8, kTerms4 = 128;
constexpr double kGain = 0.9;  // at least: the results are not as good

// Costs in units of a multiply-add of the tile, by the time of 30 layers on one thread (Zen 4, AVX-512; of both memory
// orders; the deviation is 0.12). The product of the points, whose sums are read and written for every run and become
// taps at the end; the patches of x and the tiles of dy, each as often as tasks need them.
double winograd_units(const DenseJob& job, const Form& f, const Machine& m) {
  struct Cost { double sums, patch, tile, place; };
  constexpr Cost kCosts[2][2] = {{{18, 250, 75, 1600}, {9, 850, 320, 2000}},  // planar: 2 x 2 outputs, 4 x 4
                                 {{18, 80, 60, 1600}, {9, 250, 230, 2000}}};  // channels last
  const auto real = [](int64_t n) { return static_cast<double>(n); };
  const Cost& cost = kCosts[job.is.c == 1][f.m == 4];
  const double C = real(job.C), K = real(job.K), tiles = real(f.all);
  const double k_parts = real(ceil_div(job.K, f.rows)), c_parts = real(ceil_div(job.C, f.width));
  return real(f.points * round_up(job.C, m.lanes)) * K * (1.07 * tiles + cost.sums) +
         tiles * (cost.patch * C * k_parts + cost.tile * K * c_parts + cost.place * k_parts * c_parts);
}

// The product; the panels of x; the rows of dy.
double direct_units(const DenseJob& job) {
  struct Cost { double sums, panel, row; };
  constexpr Cost kCosts[2] = {{10, 9, 5}, {33, 4, 19}};
  const Cost& cost = kCosts[job.is.c == 1];
  const double C = static_cast<double>(9 * job.C), K = static_cast<double>(job.K);
  const double pixels = static_cast<double>(job.N * job.pixels());
  return C * K * (pixels + cost.sums) + pixels * (cost.panel * C + cost.row * K);
}

}  // namespace

template <class T>
int32_t choose_winograd_weight(const DenseJob& job, const Machine& m, Algorithm algorithm) {
  if (job.filter[0] != 1 || job.filter[1] != 3 || job.filter[2] != 3 || job.out[0] != 1 || job.C * job.K < 2) return 0;
  for (int a = 1; a < 3; ++a)
    if (job.stride[a] != 1 || job.dilation[a] != 1) return 0;
  if (job.N * job.pixels() == 0) return 0;
  if (algorithm == Algorithm::winograd2) return 2;
  if (algorithm == Algorithm::winograd4) return 4;
  if (algorithm != Algorithm::automatic) return 0;
  const double terms = mean_terms(job);
  double best = kGain * direct_units(job);
  int32_t outputs = 0;
  for (const int32_t o : {2, 4}) {
    if (terms < (o == 2 ? kTerms2 : kTerms4)) continue;
    const double cost = winograd_units(job, Form(job, o, m, sizeof(T)), m);
    if (cost < best) best = cost, outputs = o;
  }
  return outputs;
}

template <class T>
WeightForm winograd_weight_form(const DenseJob& job, int64_t outputs, const Machine& machine) {
  const Form f(job, outputs, machine, sizeof(T));
  Arena count(nullptr);
  Memory<T>(f, machine.lanes, count);
  WeightForm form{};
  form.winograd = static_cast<int32_t>(outputs);
  form.terms = f.run, form.pieces = ceil_div(f.all, f.run);
  form.channels = std::min(f.width, job.C);
  form.workspace = count.size();
  form.passed_over = "direct: has more multiplications to do";
  return form;
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
  const int64_t k_parts = ceil_div(job.K, rows);
  const int64_t bytes = winograd_weight_form<T>(job, outputs, machine).workspace;
  // Of every output channel, in every panel of input channels.
  std::vector<char> left(static_cast<size_t>(job.G * c_parts * job.K));
  std::atomic<bool> failed{false};
  const Status status = parallel_for(job.G * c_parts * k_parts, work, [&](int64_t i, int) {
    Workspace scratch(static_cast<size_t>(bytes));
    if (!scratch) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    Arena arena(scratch.data(), bytes);
    const Memory<T> memory(form, machine.lanes, arena);
    const int64_t k = i % k_parts * rows, part = i / k_parts, c = part % c_parts * form.width;
    const WeightTask task{part / c_parts, c, std::min(job.C, c + form.width), k, std::min(job.K, k + rows)};
    run_task(job, form, machine, kernels, memory, task, dw, accumulate, left.data() + part * job.K + k);
  });
  for (int64_t part = 0; part < job.G * c_parts; ++part)
    for (int64_t k = 0, end; k < job.K; k = end + 1) {
      const char* const of = left.data() + part * job.K;
      for (end = k; end < job.K && of[end]; ++end) {}
      const int64_t c = part % c_parts * form.width;
      if (end > k) bad->push_back({part / c_parts, c, std::min(job.C, c + form.width), k, end});
    }
  return failed ? Status::out_of_memory : status;
}

#define FASTCONV_INSTANTIATE(T)                                                                                     \
  template int32_t choose_winograd_weight<T>(const DenseJob&, const Machine&, Algorithm);                           \
  template WeightForm winograd_weight_form<T>(const DenseJob&, int64_t, const Machine&);                            \
  template Status run_winograd_weight<T>(const DenseJob&, int64_t, const Machine&, const KernelTable<T>&, T*, bool, \
                                         std::vector<WeightTask>*);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)
#undef FASTCONV_INSTANTIATE

}  // namespace fastconv::ops
