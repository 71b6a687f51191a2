// Convolution: canonicalise -> choose -> split over threads -> call the kernel table.
#include "fastconv/conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>

#include "ops/dense.h"
#include "ops/depthwise.h"
#include "ops/device.h"
#include "ops/layer.h"
#include "ops/memory.h"
#include "ops/parallel.h"
#include "ops/winograd.h"

namespace fastconv {
namespace ops {
namespace {

// How a product is computed, and the form of its job that this takes.
template <class T>
void decide_product(Run<T>* run, const Layer& l, const Machine& m, bool mapped, int64_t phases) {
  merge_axes(&run->job);
  run->choice = choose(describe(run->job, sizeof(T), l.channels_last, mapped, l.algorithm, phases), m);
  if (!run->choice.depthwise && run->choice.role == Role::pixel_rows) skip_pixels(&run->job);
  if (run->choice.group > 1) split_groups(&run->job);
}

// The products of a forward pass with their decisions; bind() gives them their data. `join`: phases may be one product.
template <class T>
std::vector<Run<T>> forward_runs(const ConvDesc& desc, const Layer& l, const Machine& m, bool mapped, bool has_residual,
                                 bool join = true) {
  std::vector<Run<T>> runs;
  auto add = [&](const PhaseJob& p, size_t phases) {
    Run<T>& run = runs.emplace_back();
    run.job = p.job;
    run.output_offset = p.output_offset, run.residual_offset = p.residual_offset, run.weight_offset = p.weight_offset;
    decide_product(&run, l, m, mapped, static_cast<int64_t>(phases));
  };
  const Strides* residual = has_residual ? &l.r : nullptr;
  if (desc.transposed && join && !mapped && joins_phases(l.geometry, m, l.channels_last, l.algorithm)) {
    add(joined_job(l.geometry, l.x, l.y, residual, l.w), 1);
  } else if (desc.transposed) {
    const int64_t origin[3] = {0, 0, 0};
    const auto jobs = dgrad_jobs(l.geometry, origin, l.geometry.in, l.x, l.y, residual, l.w);
    for (const PhaseJob& p : jobs) add(p, jobs.size());
  } else {
    add({fprop_job(l.geometry, l.x, l.y, residual, l.w), 0, 0, 0}, 1);
  }
  return runs;
}

// Whether all products that have a sum are computed by the algorithm that is asked for.
template <class T>
Status check_algorithm(Algorithm algorithm, const std::vector<Run<T>>& runs) {
  if (algorithm == Algorithm::automatic || algorithm == Algorithm::direct) return Status::ok;
  const int32_t outputs = algorithm == Algorithm::winograd2 ? 2 : algorithm == Algorithm::winograd4 ? 4 : 0;
  for (const Run<T>& run : runs)
    if (run.job.taps() > 0 && run.job.pixels() > 0 &&
        (outputs ? run.choice.winograd != outputs : run.choice.fft.rows == 0))
      return Status::bad_algorithm;
  return Status::ok;
}

// The weights as the products read them: the layer's own, or, where phases are joined, a copy of them in `block`.
template <class T>
Status arrange_weights(const std::vector<Run<T>>& runs, const Layer& l, const void* w, Block* block,
                       const void** weight) {
  *weight = w;
  const DenseJob& job = runs[0].job;
  if (!job.fan.copied) return Status::ok;
  *block = Block(job.K * job.wk * static_cast<int64_t>(sizeof(T)));
  if (block->failed()) return Status::out_of_memory;
  join_weights(l.geometry, l.w, static_cast<const T*>(w), job, static_cast<T*>(block->data()));
  *weight = block->data();
  return Status::ok;
}

// The vectors of an epilogue and their elements: the channels of an output of joined phases are all phases'.
template <class T>
int64_t finish_elements(const std::vector<Run<T>>& runs, const Layer& l) {
  return 2 * l.out_channels * (1 + runs[0].job.fan.count());
}
template <class T>
Finish<T> arrange_finish(const std::vector<Run<T>>& runs, const Layer& l, const Epilogue& e, T* buffer) {
  const int64_t K = l.out_channels, phases = runs[0].job.fan.count();
  Finish<T> f = join_epilogue<T>(e, K, buffer);
  T* to = buffer + 2 * K;
  for (const T** v : {&f.scale, &f.shift}) {
    if (!*v || phases == 0) continue;
    for (int64_t i = 0; i < phases; ++i) std::copy_n(*v, K, to + i * K);
    *v = to, to += phases * K;
  }
  return f;
}

// Whether no element of a run is infinite or NaN. An exponent of ones carries into the sign.
bool finite_run(const float* x, int64_t n) {
  constexpr int64_t kBlock = 64;
  uint32_t any = 0;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    uint32_t bits[kBlock];
    std::memcpy(bits, x + i, sizeof bits);
    for (uint32_t b : bits) any |= (b & 0x7f800000u) + 0x00800000u;
  }
  for (; i < n; ++i) any |= std::isfinite(x[i]) ? 0 : 0x80000000u;
  return !(any >> 31);
}
bool finite_run(const double* x, int64_t n) {
  bool all = true;
  for (int64_t i = 0; i < n; ++i) all = all && std::isfinite(x[i]);
  return all;
}

template <class T>
bool finite_image(const T* x, int64_t channels, const int64_t size[3], const Strides& s) {
  const int64_t pixels = size[0] * size[1] * size[2];
  for (const bool last : {false, true})
    if (same_image(channels, size, s, dense_strides(last, channels, size))) return finite_run(x, channels * pixels);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t d = 0; d < size[0]; ++d)
      for (int64_t h = 0; h < size[1]; ++h)
        for (int64_t w = 0; w < size[2]; ++w)
          if (!std::isfinite(x[c * s.c + d * s.s[0] + h * s.s[1] + w * s.s[2]])) return false;
  return true;
}

// Joined phases whose weights are padded would make NaN of an infinity and a zero that is not there: images that are
// not finite go by single phases. Calls compute(first image, images, joined).
template <class T, class F>
Status for_finite(const DenseJob& job, const void* input, F compute) {
  if (!job.fan.padded) return compute(0, job.N, true);
  std::vector<char> finite(static_cast<size_t>(job.N));
  const double work = 0.1 * static_cast<double>(job.N * job.C * job.in[0] * job.in[1] * job.in[2]);
  Status s = parallel_for(job.N, work, [&](int64_t n, int) {
    finite[static_cast<size_t>(n)] = finite_image(static_cast<const T*>(input) + n * job.is.n, job.C, job.in, job.is);
  });
  for (int64_t n = 0, end; n < job.N && s == Status::ok; n = end) {
    const char alike = finite[static_cast<size_t>(n)];
    for (end = n + 1; end < job.N && finite[static_cast<size_t>(end)] == alike;) ++end;
    s = compute(n, end - n, alike != 0);
  }
  return s;
}

// Image n of a tensor onwards.
template <class T>
void skip_images(TensorView* v, int64_t stride, int64_t n) {
  if (!absent(*v)) v->data = static_cast<T*>(v->data) + n * stride;
}

template <class T>
Status forward_images(const ConvDesc& desc, const ConvOperands& o, const Layer& l, std::vector<Run<T>> runs,
                      const Machine& m) {
  const KernelTable<T>& kernels = kernel_table<T>(m.isa);
  Status s;
  if ((s = check_algorithm(desc.algorithm, runs)) != Status::ok) return s;
  Block joined;
  const void* weight;
  if ((s = arrange_weights(runs, l, o.w.data, &joined, &weight)) != Status::ok) return s;
  bind_runs(runs, o.x.data, weight, o.y.data, o.epilogue.residual.data);
  if (absent(o.prologue.gate)) join_batch(&runs);
  const int64_t elements = finish_elements(runs, l);
  Workspace vectors(sizeof(T) * static_cast<size_t>(2 * l.in_channels + elements));
  if (!vectors) return Status::out_of_memory;
  T* buffer = static_cast<T*>(vectors.data());
  const Finish<T> finish = arrange_finish(runs, l, o.epilogue, buffer);
  const InputMap<T> map = join_prologue<T>(o.prologue, l.in_channels, buffer + elements);
  Block packed;
  if ((s = prepare_weights(runs, m, kernels, false, &packed)) != Status::ok) return s;
  return run_dense(runs, m, kernels, finish, map, absent(o.prologue.gate) ? 0 : o.prologue.gate.strides[0], false);
}

template <class T>
Status forward(const ConvDesc& desc, const ConvOperands& o) {
  Layer l;
  const Status s = check_forward(desc, o, &l);
  if (s != Status::ok) return s;
  if (l.geometry.N == 0) return Status::ok;
  const Machine m = current_machine(l.geometry.dtype);
  const bool mapped = has_prologue(o.prologue), residual = !absent(o.epilogue.residual);
  std::vector<Run<T>> runs = forward_runs<T>(desc, l, m, mapped, residual);
  if (!runs[0].job.fan.padded) return forward_images(desc, o, l, std::move(runs), m);
  return for_finite<T>(runs[0].job, o.x.data, [&](int64_t n, int64_t images, bool joined) {
    Layer part = l;
    ConvOperands operands = o;
    part.geometry.N = images;
    skip_images<T>(&operands.x, l.x.n, n), skip_images<T>(&operands.y, l.y.n, n);
    skip_images<T>(&operands.epilogue.residual, l.r.n, n);
    return forward_images(desc, operands, part, forward_runs<T>(desc, part, m, mapped, residual, joined), m);
  });
}

// The products of dx over the part [origin, origin + extent) of the padded input, written with strides `out`.
template <class T>
std::vector<Run<T>> gradient_runs(const Layer& l, const Machine& m, const int64_t origin[3], const int64_t extent[3],
                                  const Strides& out, bool join = true) {
  std::vector<Run<T>> runs;
  if (join && origin[0] == 0 && origin[1] == 0 && origin[2] == 0 && std::equal(extent, extent + 3, l.geometry.in) &&
      joins_phases(l.geometry, m, l.channels_last, l.algorithm)) {
    const PhaseJob p = joined_job(l.geometry, l.y, out, nullptr, l.w);
    runs.emplace_back().job = p.job;
    runs[0].weight_offset = p.weight_offset;
    decide_product(&runs[0], l, m, false, 1);
    return runs;
  }
  const auto jobs = dgrad_jobs(l.geometry, origin, extent, l.y, out, nullptr, l.w);
  for (const PhaseJob& p : jobs) {
    Run<T>& run = runs.emplace_back();
    run.job = p.job;
    run.output_offset = p.output_offset, run.weight_offset = p.weight_offset;
    decide_product(&run, l, m, false, static_cast<int64_t>(jobs.size()));
  }
  return runs;
}

// Residues of the stride that no tap meets have no gradient: all of dx is zeroed, in whole lines, in place of theirs,
// which lie between the others' (1x1x1 of stride 2 on 16 x 56 x 56, planar, Zen 4: 3.5 times as fast; 64 channels of
// 147 x 147 2.1).
template <class T>
Status drop_untouched(const Layer& l, const int64_t extent[3], T* dx, const Strides& out, bool accumulate,
                      std::vector<Run<T>>* runs) {
  const Geometry& g = l.geometry;
  const int64_t channels = g.G * g.C, image = channels * extent[0] * extent[1] * extent[2];
  const bool whole = same_image(channels, extent, out, dense_strides(l.channels_last, channels, extent)) &&
                     (g.N == 1 || out.n == image);
  auto untouched = [](const Run<T>& run) { return run.job.taps() == 0 && !run.choice.depthwise; };
  if (!(accumulate || whole) || std::none_of(runs->begin(), runs->end(), untouched)) return Status::ok;
  std::erase_if(*runs, untouched);
  if (accumulate) return Status::ok;
  constexpr int64_t kPiece = 1 << 16;
  const int64_t elements = g.N * image;
  return parallel_for(ceil_div(elements, kPiece), 0.05 * static_cast<double>(elements), [=](int64_t i, int) {
    std::fill_n(dx + i * kPiece, std::min(kPiece, elements - i * kPiece), T{0});
  });
}

// Computes that part, into `dx`, by these products.
template <class T>
Status gradient_images(const Layer& l, const Machine& m, const KernelTable<T>& kernels, const ConvOperands& o,
                       const int64_t extent[3], std::vector<Run<T>> runs, T* dx, const Strides& out, bool accumulate) {
  Status s = check_algorithm(l.algorithm, runs);
  if (s != Status::ok) return s;
  if ((s = drop_untouched(l, extent, dx, out, accumulate, &runs)) != Status::ok || runs.empty()) return s;
  Block joined;
  const void* weight;
  if ((s = arrange_weights(runs, l, o.w.data, &joined, &weight)) != Status::ok) return s;
  bind_runs(runs, o.y.data, weight, dx, nullptr);
  join_batch(&runs);
  Block packed;
  s = prepare_weights(runs, m, kernels, false, &packed);
  if (s != Status::ok) return s;
  return run_dense(runs, m, kernels, Finish<T>{}, InputMap<T>{}, 0, accumulate);
}

template <class T>
Status gradient_part(const Layer& l, const Machine& m, const KernelTable<T>& kernels, const ConvOperands& o,
                     const int64_t origin[3], const int64_t extent[3], T* dx, const Strides& out, bool accumulate) {
  std::vector<Run<T>> runs = gradient_runs<T>(l, m, origin, extent, out);
  if (!runs[0].job.fan.padded) return gradient_images(l, m, kernels, o, extent, std::move(runs), dx, out, accumulate);
  return for_finite<T>(runs[0].job, o.y.data, [&](int64_t n, int64_t images, bool joined) {
    Layer part = l;
    ConvOperands operands = o;
    part.geometry.N = images;
    skip_images<T>(&operands.y, l.y.n, n);
    return gradient_images(part, m, kernels, operands, extent, gradient_runs<T>(part, m, origin, extent, out, joined),
                           dx + n * out.n, out, accumulate);
  });
}

// The frame of the padded input around the image, as boxes: for each axis the two slabs before and after the image,
// over the image's range on earlier axes and the padded range on later ones.
struct Box { int64_t origin[3], extent[3]; };
std::vector<Box> frame_boxes(const Geometry& g) {
  std::vector<Box> boxes;
  for (int axis = 0; axis < 3; ++axis)
    for (int side = 0; side < 2; ++side) {
      Box b;
      for (int a = 0; a < 3; ++a) {
        b.origin[a] = a < axis ? 0 : -g.pad[a];
        b.extent[a] = a < axis ? g.in[a] : g.in[a] + g.pad[a] + g.pad_after[a];
      }
      b.origin[axis] = side == 0 ? -g.pad[axis] : g.in[axis];
      b.extent[axis] = side == 0 ? g.pad[axis] : g.pad_after[axis];
      if (b.extent[0] > 0 && b.extent[1] > 0 && b.extent[2] > 0) boxes.push_back(b);
    }
  return boxes;
}

// Calls do_piece(box) for the frame in pieces of at most so many elements, along the axes, innermost whole first.
template <class F>
Status for_frame_pieces(const Geometry& g, int64_t most, F do_piece) {
  for (const Box& whole : frame_boxes(g)) {
    int64_t piece[3] = {1, 1, std::min(whole.extent[2], most)};
    if (piece[2] == whole.extent[2]) piece[1] = std::min(whole.extent[1], std::max<int64_t>(1, most / piece[2]));
    if (piece[1] == whole.extent[1] && piece[2] == whole.extent[2])
      piece[0] = std::min(whole.extent[0], std::max<int64_t>(1, most / (piece[1] * piece[2])));
    for (int64_t i0 = 0; i0 < whole.extent[0]; i0 += piece[0])
      for (int64_t i1 = 0; i1 < whole.extent[1]; i1 += piece[1])
        for (int64_t i2 = 0; i2 < whole.extent[2]; i2 += piece[2]) {
          const int64_t at[3] = {i0, i1, i2};
          Box b;
          for (int a = 0; a < 3; ++a) {
            b.origin[a] = whole.origin[a] + at[a];
            b.extent[a] = std::min(piece[a], whole.extent[a] - at[a]);
          }
          const Status s = do_piece(b);
          if (s != Status::ok) return s;
        }
  }
  return Status::ok;
}

// The elements of a channel that a piece of the frame has: 256 KB of all channels, or the largest box.
int64_t frame_piece(const Geometry& g, int64_t item_size) {
  int64_t largest = 1;
  for (const Box& b : frame_boxes(g)) largest = std::max(largest, b.extent[0] * b.extent[1] * b.extent[2]);
  return std::clamp<int64_t>(262144 / (g.G * g.C * item_size), 1, largest);
}

// The most elements of the frame that are copies of one element of the image.
int64_t frame_copies(const Geometry& g) {
  int64_t elements = 1;
  for (int a = 0; a < 3; ++a) {
    const int64_t n = g.in[a], before = g.pad[a], after = g.pad_after[a];
    if (g.mode == PaddingMode::replicate) {
      elements *= 1 + (n == 1 ? before + after : std::max(before, after));
    } else {
      // Each side copies an element once at most; both copy the same one where they reach far enough.
      const bool both = g.mode == PaddingMode::reflect ? std::max<int64_t>(1, n - 1 - after) <= std::min(before, n - 2)
                                                       : before + after > n;
      elements *= both ? 3 : before > 0 || after > 0 ? 2 : 1;
    }
  }
  return elements - 1;
}

// The frame's products may be transformed where the image's are, or its error bound would not be theirs.
template <class T>
Algorithm frame_algorithm(const std::vector<Run<T>>& runs) {
  for (const Run<T>& run : runs)
    if (run.choice.fft.rows) return Algorithm::automatic;
  return Algorithm::direct;
}

// Padding other than zeros: an element of the frame is a copy of one of the image, so its gradient is added there. The
// pieces of the frame follow one another, which fixes the order of the sums.
template <class T>
Status fold_frame(const Layer& l, Algorithm algorithm, const Machine& m, const KernelTable<T>& kernels,
                  const ConvOperands& o) {
  const Geometry& g = l.geometry;
  const int64_t channels = g.G * g.C, most = frame_piece(g, sizeof(T));
  Workspace scratch(sizeof(T) * static_cast<size_t>(channels * most));
  if (!scratch) return Status::out_of_memory;
  T* part = static_cast<T*>(scratch.data());
  return for_frame_pieces(g, most, [&](const Box& b) {
    const Strides dense = dense_strides(l.channels_last, channels, b.extent);
    for (int64_t n = 0; n < g.N; ++n) {
      Layer one = l;
      one.geometry.N = 1;
      one.algorithm = algorithm;
      ConvOperands operands = o;
      operands.y.data = static_cast<T*>(o.y.data) + n * l.y.n;
      const Status s = gradient_part<T>(one, m, kernels, operands, b.origin, b.extent, part, dense, false);
      if (s != Status::ok) return s;
      T* image = static_cast<T*>(o.x.data) + n * l.x.n;
      for (int64_t d = 0; d < b.extent[0]; ++d)
        for (int64_t h = 0; h < b.extent[1]; ++h)
          for (int64_t w = 0; w < b.extent[2]; ++w) {
            T* to = image + map_index(g.mode, b.origin[0] + d, g.in[0]) * l.x.s[0] +
                    map_index(g.mode, b.origin[1] + h, g.in[1]) * l.x.s[1] +
                    map_index(g.mode, b.origin[2] + w, g.in[2]) * l.x.s[2];
            const T* from = part + d * dense.s[0] + h * dense.s[1] + w * dense.s[2];
            for (int64_t c = 0; c < channels; ++c) to[c * l.x.c] += from[c * dense.c];
          }
    }
    return Status::ok;
  });
}

// Whether all phases of the gradient of a strided depthwise layer are computed in one sweep.
template <class T>
bool spreads(const Layer& l, const DenseJob& job, const Machine& m) {
  return (l.algorithm == Algorithm::automatic || l.algorithm == Algorithm::direct) && has_spread<T>(job, m);
}

template <class T>
Status backward_input(const ConvDesc& desc, const ConvOperands& o) {
  Layer l;
  Status s = check_backward(desc, o, Pass::backward_input, &l);
  if (s != Status::ok) return s;
  const Geometry& g = l.geometry;
  if (g.N == 0) return Status::ok;
  const Machine m = current_machine(g.dtype);
  const KernelTable<T>& kernels = kernel_table<T>(m.isa);
  if (desc.transposed) {
    // The gradient of a transposed convolution's input is the plain convolution of dy.
    std::vector<Run<T>> runs(1);
    runs[0].job = fprop_job(g, l.y, l.x, nullptr, l.w);
    decide_product(&runs[0], l, m, false, 1);
    if ((s = check_algorithm(desc.algorithm, runs)) != Status::ok) return s;
    bind_runs(runs, o.y.data, o.w.data, o.x.data, nullptr);
    join_batch(&runs);
    Block packed;
    if ((s = prepare_weights(runs, m, kernels, false, &packed)) != Status::ok) return s;
    return run_dense(runs, m, kernels, Finish<T>{}, InputMap<T>{}, 0, o.accumulate);
  }
  if (const DenseJob job = fprop_job(g, l.x, l.y, nullptr, l.w); spreads<T>(l, job, m) && !o.accumulate)
    return run_spread(job, m, kernels, static_cast<const T*>(o.y.data), static_cast<const T*>(o.w.data),
                      static_cast<T*>(o.x.data));
  const int64_t origin[3] = {0, 0, 0};
  s = gradient_part<T>(l, m, kernels, o, origin, g.in, static_cast<T*>(o.x.data), l.x, o.accumulate);
  if (s != Status::ok || g.mode == PaddingMode::zeros) return s;
  return fold_frame<T>(l, frame_algorithm(gradient_runs<T>(l, m, origin, g.in, l.x)), m, kernels, o);
}

// The product whose weights the gradient is of. Of a transposed layer, dy is the side that the filter slides over.
DenseJob weight_job(const ConvDesc& desc, const Layer& l) {
  const bool t = desc.transposed;
  DenseJob job = fprop_job(l.geometry, t ? l.y : l.x, t ? l.x : l.y, nullptr, l.w);
  if (job.taps() == 1) merge_axes(&job);
  return job;
}

// Whether a gradient that has a sum is made by the algorithm that is asked for.
template <class T>
bool serves_weights(Algorithm algorithm, const DenseJob& job, const Machine& m) {
  if (algorithm == Algorithm::automatic || algorithm == Algorithm::direct) return true;
  if (job.G * job.C * job.K * job.taps() * job.N * job.pixels() == 0) return true;
  return !has_filter_gradient<T>(job, m) && choose_winograd_weight<T>(job, m, algorithm) > 0;
}

template <class T>
Status backward_weight(const ConvDesc& desc, const ConvOperands& o) {
  Layer l;
  const Status s = check_backward(desc, o, Pass::backward_weight, &l);
  if (s != Status::ok) return s;
  const Machine m = current_machine(l.geometry.dtype);
  DenseJob job = weight_job(desc, l);
  job.input = desc.transposed ? o.y.data : o.x.data;
  job.output = desc.transposed ? o.x.data : o.y.data;
  if (!serves_weights<T>(desc.algorithm, job, m)) return Status::bad_algorithm;
  return run_weight_gradient<T>(job, m, kernel_table<T>(m.isa), desc.algorithm, static_cast<T*>(o.w.data),
                                o.accumulate);
}

template <class T>
Status backward_bias(const ConvDesc& desc, const TensorView& dy, const TensorView& db, bool accumulate) {
  const int d = desc.spatial;
  const int channel = desc.channels_last ? d + 1 : 1, first = desc.channels_last ? 1 : 2;
  const int64_t K = dy.shape[channel], N = dy.shape[0];
  int64_t out[3] = {1, 1, 1};
  Strides s{};
  s.n = dy.strides[0], s.c = dy.strides[channel];
  for (int i = 0; i < d; ++i) out[3 - d + i] = dy.shape[first + i], s.s[3 - d + i] = dy.strides[first + i];
  const Machine m = current_machine(dy.dtype);
  const KernelTable<T>& kernels = kernel_table<T>(m.isa);
  const T* data = static_cast<const T*>(dy.data);
  const int64_t pixels = out[0] * out[1] * out[2];
  const double work = static_cast<double>(N) * K * pixels * 0.1;
  T* result = static_cast<T*>(db.data);
  // Partial sums of at most this many terms are joined in double, in order.
  constexpr int64_t kRun = 4096;
  auto put = [&](int64_t k, double sum) {
    T& to = result[k * db.strides[0]];
    to = accumulate ? static_cast<T>(to + sum) : static_cast<T>(sum);
  };
  const bool columns = s.c == 1 && s.s[2] != 1;
  const int64_t width = columns ? 64 : 1, tasks = (K + width - 1) / width;
  return parallel_for(tasks, work, [&](int64_t task, int) {
    const int64_t k0 = task * width, k1 = std::min(K, k0 + width);
    double total[64] = {};
    T part[64];
    for (int64_t n = 0; n < N; ++n)
      for (int64_t a = 0; a < out[0]; ++a)
        for (int64_t b = 0; b < out[1]; ++b)
          for (int64_t c = 0; c < out[2]; c += kRun) {
            const T* row = data + n * s.n + a * s.s[0] + b * s.s[1] + c * s.s[2];
            const int64_t count = std::min(kRun, out[2] - c);
            if (columns) {
              kernels.sum_columns(part, row + k0, count, s.s[2], k1 - k0);
              for (int64_t k = 0; k < k1 - k0; ++k) total[k] += part[k];
            } else {
              total[0] += kernels.sum_run(row + k0 * s.c, count, s.s[2]);
            }
          }
    for (int64_t k = k0; k < k1; ++k) put(k, total[k - k0]);
  });
}

// What all passes' decisions have in common.
Decision summary_of(const Machine& m, const Geometry& g, double bytes) {
  Decision d;
  d.algorithm = "direct";
  d.isa = isa_name(m.isa);
  d.tile_rows = m.tile_rows[preferred_vectors(m)];
  d.tile_columns = preferred_vectors(m) * m.lanes;
  d.flops = 2 * g.macs();
  d.bytes = bytes;
  // Without a fused multiply-add each product rounds too.
  d.error_bound = m.isa == Isa::portable ? 1 : 0;
  return d;
}

// Of a depthwise layer there is no tile: a vector of outputs for each of some rows or pixels.
void summarise_depthwise(const Machine& m, bool channels, Decision* d) {
  d->algorithm = "depthwise";
  d->role = channels ? "lanes of channels" : "lanes of pixels";
  d->tile_rows = 1;
  d->tile_columns = m.lanes;
}

// Of an FFT the tile is what one transform covers.
void summarise_fft(const FftTiles& t, Decision* d) {
  d->algorithm = "fft";
  d->role = t.shared ? "lanes of tiles" : "lanes of channels";
  d->tile_rows = static_cast<int32_t>(t.linear ? 1 : t.rows);
  d->tile_columns = static_cast<int32_t>(t.linear ? t.rows * t.columns : t.columns);
}

// The constant of eps * |x|_2 * |w|_2 over a pair of tiles, from the levels that an element passes through in three
// transforms (of x, of the filter, back), each 3.35 eps at most, the product of spectra and the epilogue.
double fft_error_bound(const FftTiles& t, int64_t folded) {
  int64_t levels = t.linear && t.rows > 1 ? 1 : 0;
  for (int64_t n : {t.rows, t.columns}) {
    if (n % 3 == 0) n /= 3, levels += 2;
    for (; n > 1; n /= 2) ++levels;
  }
  return static_cast<double>((10 * levels + 8) * (folded + 1));
}

// The constant of eps * (the largest conv(|x|, |w|) of a tile's pixels and of two around it), from the roundings that a
// term passes through: 2 x 4 of the patch (one of them of a constant), 2 x 5 of the filter, 2 x 5 of the tile, the
// chain of a piece, the pieces, the epilogue; times the most that |A^T| [(|G| |g| |G^T|) . (|B^T| |d| |B|)] |A| may be
// of it, 25 or 214 (docs/numerics.md).
double winograd_error_bound(const Choice& c, int64_t folded) {
  int64_t terms = 0;
  for (const Chunk& chunk : c.winograd_chunks) terms = std::max(terms, chunk.channels);
  const auto pieces = static_cast<int64_t>(c.winograd_chunks.size());
  return (c.winograd == 2 ? 25.0 : 214.0) * static_cast<double>(28 + terms + pieces + folded + 4);
}

// As above, of the gradient of the filters: the tiles are transformed as filters are, the sums of a run's points are
// the chain. The most that the transforms' magnitudes may be of the sum at the lags of a tile's filter and of those
// beyond it that a patch has room for is 16 or 255.
double winograd_weight_bound(const WeightForm& form) {
  return (form.winograd == 2 ? 16.0 : 255.0) * static_cast<double>(28 + form.terms + form.pieces + 4);
}

// What a term of a result passes through at most: the longest chain of fused additions, the chains that are added to
// one another, and the elements of the frame that are folded into it.
struct Sums {
  int64_t terms = 0, pieces = 0, folded = 0;
  template <class T>
  void cover(const std::vector<Run<T>>& runs) {
    for (const Run<T>& run : runs) {
      terms = std::max(terms, run.choice.reduction_block());
      pieces = std::max(pieces, static_cast<int64_t>(run.choice.chunks.size()));
    }
  }
};

template <class T>
int64_t most_workspace(const std::vector<Run<T>>& runs, const Machine& m) {
  int64_t most = 0;
  for (const Run<T>& run : runs) most = std::max(most, task_workspace<T>(run, m));
  return most;
}

template <class T>
Decision summarise(const std::vector<Run<T>>& runs, const Machine& m, const Geometry& g, double bytes, int64_t packed,
                   Sums sums = {}) {
  Decision d = summary_of(m, g, bytes);
  // Phases may differ: one that is transformed speaks for all.
  size_t first = 0;
  for (size_t r = runs.size(); r-- > 0;)
    if (runs[r].choice.fft.rows) first = r;
  const Choice& c = runs[first].choice;
  d.role = c.role == Role::pixel_rows ? "pixel rows" : "pixel columns";
  d.reduction_block = c.reduction_block();
  d.channel_block = c.chunks[0].channels;
  d.pixel_block = c.pixel_block;
  if (c.depthwise) {
    summarise_depthwise(m, c.role == Role::pixel_rows, &d);
    depthwise_block<T>(runs[first].job, c, m, &d.channel_block, &d.pixel_block);
    if (c.fft.rows) summarise_fft(c.fft, &d);
    if (c.group > 1) d.algorithm = "direct";
  }
  if (c.depthwise) {
    d.workspace_per_thread = depthwise_workspace(runs, m);
  } else {
    d.workspace_per_thread = most_workspace(runs, m);
  }
  if (c.winograd) {
    d.algorithm = c.winograd == 2 ? "winograd2" : "winograd4";
    d.reduction_block = d.channel_block = c.winograd_chunks[0].channels;
    d.pixel_block = c.winograd_block * c.winograd * c.winograd;
  }
  sums.cover(runs);
  d.packed_weight_bytes = packed * static_cast<int64_t>(sizeof(T));
  // A piece is one chain of fused additions, the pieces are another; the epilogue adds four roundings.
  d.error_bound += static_cast<double>(sums.terms + sums.pieces + sums.folded + 4);
  if (c.fft.rows) d.error_bound = fft_error_bound(c.fft, sums.folded);
  if (c.winograd) d.error_bound = winograd_error_bound(c, sums.folded);
  d.passed_over = c.passed_over;
  if (runs[0].job.fan.count())
    d.passed_over +=
        "\na product for each phase of the stride: they would read the input as often, and fill less of a tile";
  return d;
}

}  // namespace

template <class T>
Decision half_decision(const Run<T>& run, const Machine& m, const Geometry& g, double bytes) {
  return summarise<T>({run}, m, g, bytes, packed_size(run.job, run.choice, m, true));
}
template Decision half_decision<float>(const Run<float>&, const Machine&, const Geometry&, double);
template Decision half_decision<double>(const Run<double>&, const Machine&, const Geometry&, double);

namespace {

template <class T>
Decision summarise_spread(const DenseJob& job, const Machine& m, const Geometry& g, double bytes) {
  Decision d = summary_of(m, g, bytes);
  summarise_depthwise(m, spread_packed<T>(job, m) > 0, &d);
  d.reduction_block = ceil_div(job.filter[1], job.stride[1]) * ceil_div(job.filter[2], job.stride[2]);
  d.channel_block = job.G;
  d.pixel_block = job.in[1] * job.in[2];
  d.packed_weight_bytes = spread_packed<T>(job, m) * static_cast<int64_t>(sizeof(T));
  // That of the phases, which gradients that are added to something, or lie otherwise in memory, go by.
  d.error_bound += static_cast<double>(d.reduction_block + 1 + 4);
  d.passed_over = "a product for each phase of the stride: they would read dy as often, and write between each other";
  return d;
}

template <class T>
Decision summarise_weight_gradient(const DenseJob& job, const Machine& m, const Geometry& g, Algorithm algorithm,
                                   double bytes) {
  Decision d = summary_of(m, g, bytes);
  const WeightForm form = weight_gradient_form<T>(job, m, algorithm);
  d.role = form.by_rows ? "pixel terms by rows" : "pixel terms by slab";
  d.reduction_block = form.terms;
  d.channel_block = form.channels;
  d.pixel_block = job.pixels();
  if (has_filter_gradient<T>(job, m)) summarise_depthwise(m, form.by_rows, &d);
  d.workspace_per_thread = form.workspace;
  d.packed_weight_bytes = form.copied * static_cast<int64_t>(sizeof(T));
  // As forward, without an epilogue; what the gradient is added to joins the chain of the pieces.
  d.error_bound += static_cast<double>(form.terms + form.joins + form.pieces);
  d.passed_over = form.passed_over;
  if (form.winograd) {
    d.algorithm = form.winograd == 2 ? "winograd2" : "winograd4";
    d.role = "points of tiles";
    d.error_bound = winograd_weight_bound(form);
    if (algorithm == Algorithm::automatic)
      d.passed_over += form.winograd == 2 ? "\nwinograd4: more of the points' error, or more sums of points to keep"
                                          : "\nwinograd2: more multiplications";
  }
  return d;
}

}  // namespace
}  // namespace ops

using namespace ops;

namespace {

Status on_host(const ConvOperands& o) { return check_operands_device(Device::cpu, o); }

}  // namespace

Status conv_run(const ConvDesc& desc, Pass pass, const ConvOperands& o) {
  const Status s = on_host(o);
  if (s != Status::ok) return s;
  if (o.x.dtype != DType::f32 && o.x.dtype != DType::f64) return Status::bad_dtype;
  const bool single = o.x.dtype == DType::f32;
  switch (pass) {
    case Pass::forward: return single ? forward<float>(desc, o) : forward<double>(desc, o);
    case Pass::backward_input: return single ? backward_input<float>(desc, o) : backward_input<double>(desc, o);
    case Pass::backward_weight: return single ? backward_weight<float>(desc, o) : backward_weight<double>(desc, o);
  }
  return Status::unsupported;
}

Status conv_backward_bias(const ConvDesc& desc, const TensorView& dy, const TensorView& db, bool accumulate) {
  const Status s = check_backward_bias(Device::cpu, desc, dy, db);
  if (s != Status::ok) return s;
  return dy.dtype == DType::f32 ? backward_bias<float>(desc, dy, db, accumulate)
                                : backward_bias<double>(desc, dy, db, accumulate);
}

// A plan is made for one memory order of x and y. Tensors in another order are copied to it and back.
class ConvPlan {
 public:
  virtual ~ConvPlan() = default;
  virtual Status run(const TensorView& x, const TensorView& y, const TensorView& residual,
                     const TensorView& gate) const = 0;
  Decision decision;
};

namespace {

// Least traffic: every operand once.
double least_bytes(const Geometry& g, bool residual, int64_t item) {
  const double in = static_cast<double>(g.N) * g.G * g.C * g.in[0] * g.in[1] * g.in[2];
  const double out = static_cast<double>(g.N) * g.G * g.K * g.out[0] * g.out[1] * g.out[2];
  const double w = static_cast<double>(g.G) * g.K * g.C * g.taps();
  return static_cast<double>(item) * (in + out * (residual ? 2 : 1) + w);
}

template <class T>
class TypedPlan final : public ConvPlan {
 public:
  Status build(const ConvDesc& desc, const ConvOperands& o) {
    desc_ = desc;
    Status s = check_forward(desc, o, &layer_);
    if (s != Status::ok) return s;
    const Geometry& g = layer_.geometry;
    layer_.x = dense_strides(layer_.channels_last, layer_.in_channels, desc.transposed ? g.out : g.in);
    layer_.y = dense_strides(layer_.channels_last, layer_.out_channels, desc.transposed ? g.in : g.out);
    layer_.r = layer_.y;
    for (Strides* side : {&layer_.x, &layer_.y, &layer_.r}) {
      const int64_t* size = (side == &layer_.x) != desc.transposed ? g.in : g.out;
      for (int a = 2; a >= 0; --a)
        if (size[a] == 1)
          side->s[a] = a == 2 ? (size[1] > 1   ? side->s[1]
                                 : size[0] > 1 ? side->s[0]
                                               : side->c)
                              : side->s[a + 1] * size[a + 1];
    }
    machine_ = current_machine(g.dtype);
    mapped_ = has_prologue(o.prologue);
    const KernelTable<T>& kernels = kernel_table<T>(machine_.isa);
    // With and without a residual the decision is the same: its memory order is the output's.
    runs_ = forward_runs<T>(desc, layer_, machine_, mapped_, true);
    if ((s = check_algorithm(desc.algorithm, runs_)) != Status::ok) return s;
    Block joined;
    const void* weight;
    if ((s = arrange_weights(runs_, layer_, o.w.data, &joined, &weight)) != Status::ok) return s;
    bind_runs(runs_, nullptr, weight, nullptr, nullptr);
    const int64_t elements = finish_elements(runs_, layer_);
    vectors_ = Block(static_cast<int64_t>(sizeof(T)) * (2 * layer_.in_channels + elements));
    if (vectors_.failed()) return Status::out_of_memory;
    T* buffer = static_cast<T*>(vectors_.data());
    finish_ = arrange_finish(runs_, layer_, o.epilogue, buffer);
    map_ = join_prologue<T>(o.prologue, layer_.in_channels, buffer + elements);
    if ((s = prepare_weights(runs_, machine_, kernels, true, &packed_)) != Status::ok) return s;
    if (runs_[0].job.fan.padded) {
      single_ = forward_runs<T>(desc, layer_, machine_, mapped_, true, false);
      bind_runs(single_, nullptr, o.w.data, nullptr, nullptr);
      if ((s = prepare_weights(single_, machine_, kernels, true, &packed_single_)) != Status::ok) return s;
      single_finish_ = join_epilogue<T>(o.epilogue, layer_.out_channels, buffer);
    }
    int64_t packed = 0;
    for (const auto* runs : {&runs_, &single_})
      for (const Run<T>& run : *runs) packed += packed_size(run.job, run.choice, machine_, true);
    decision = summarise(runs_, machine_, g, least_bytes(g, !absent(o.epilogue.residual), sizeof(T)), packed);
    if (!runs_[0].choice.depthwise) {
      // Of any batch: a block of joined images holds at most so many.
      std::vector<Run<T>> many = runs_;
      for (Run<T>& run : many) run.job.N = run.choice.batch_block / std::max<int64_t>(1, run.job.pixels());
      join_batch(&many);
      decision.workspace_per_thread = std::max(decision.workspace_per_thread, most_workspace(many, machine_));
    }
    return Status::ok;
  }

  Status run(const TensorView& x, const TensorView& y, const TensorView& residual,
             const TensorView& gate) const override {
    Geometry g = layer_.geometry;
    // Any batch: nothing in the plan depends on it.
    g.N = x.ndim > 0 ? x.shape[0] : 0;
    Strides xs{}, ys{}, rs{};
    Status s = lift(desc_, g, !desc_.transposed, x, &xs);
    if (s != Status::ok) return s;
    if (lift(desc_, g, desc_.transposed, y, &ys) != Status::ok) return Status::bad_output;
    if (!absent(residual) && (s = lift(desc_, g, desc_.transposed, residual, &rs)) != Status::ok) return s;
    if (!absent(gate) && (!mapped_ || gate.dtype != g.dtype)) return mapped_ ? Status::bad_dtype : Status::unsupported;
    if (!absent(gate) && (gate.ndim != 2 || gate.shape[0] != g.N || gate.shape[1] != layer_.in_channels))
      return Status::bad_shape;
    if (g.N == 0) return Status::ok;

    // Tensors whose innermost axis is the plan's are taken as they lie, if the decision is the same for them; others,
    // or all that differ, are copied.
    const bool in = !desc_.transposed;
    const KernelTable<T>& kernels = kernel_table<T>(machine_.isa);
    std::shared_ptr<const std::vector<Run<T>>> other;
    const Strides* const rest = absent(residual) ? nullptr : &rs;
    const bool same = is_dense(in, xs) && is_dense(!in, ys) && (!rest || is_dense(!in, rs));
    if (!same && has_order(in, xs) && has_order(!in, ys) && (!rest || has_order(!in, rs)))
      other = runs_for(xs, ys, rest);
    const void *input = x.data, *addend = residual.data;
    void* output = y.data;
    Block copies[3];
    auto dense = [&](bool in_side, Block* block, Strides* strides) {
      const int64_t channels = g.G * (in_side ? g.C : g.K);
      const int64_t* size = in_side ? g.in : g.out;
      const int64_t elements = g.N * channels * size[0] * size[1] * size[2];
      *block = Block(elements * static_cast<int64_t>(sizeof(T)));
      *strides = in_side == in ? layer_.x : layer_.y;
      strides->n = elements / g.N;
      return static_cast<T*>(block->data());
    };
    Strides user = ys;
    if (!other && !is_dense(in, xs)) {
      Strides to;
      T* copy = dense(in, &copies[0], &to);
      if (!copy) return Status::out_of_memory;
      s = copy_tensor(kernels, g, in, static_cast<const T*>(x.data), xs, copy, to);
      if (s != Status::ok) return s;
      input = copy, xs = to;
    }
    if (!other && rest && !is_dense(!in, rs)) {
      Strides to;
      T* copy = dense(!in, &copies[1], &to);
      if (!copy) return Status::out_of_memory;
      s = copy_tensor(kernels, g, !in, static_cast<const T*>(residual.data), rs, copy, to);
      if (s != Status::ok) return s;
      addend = copy, rs = to;
    }
    const bool scattered = !other && !is_dense(!in, ys);
    if (scattered && !(output = dense(!in, &copies[2], &ys))) return Status::out_of_memory;

    InputMap<T> map = map_;
    if (!absent(gate)) map.gate = static_cast<const T*>(gate.data), map.gate_stride = gate.strides[1], map.active = 1;
    DenseJob batch = runs_[0].job;
    batch.N = g.N, batch.is.n = xs.n;
    s = for_finite<T>(batch, input, [&](int64_t n, int64_t images, bool joined) {
      std::vector<Run<T>> runs = other ? *other : joined ? runs_ : single_;
      for (Run<T>& r : runs) {
        r.job.N = images;
        r.job.is.n = xs.n, r.job.os.n = ys.n, r.job.rs.n = rs.n;
        r.job.has_residual = addend != nullptr;
      }
      bind_runs(runs, static_cast<const T*>(input) + n * xs.n, nullptr, static_cast<T*>(output) + n * ys.n,
                addend ? static_cast<const T*>(addend) + n * rs.n : nullptr);
      if (absent(gate)) join_batch(&runs);
      return run_dense(runs, machine_, kernels, joined ? finish_ : single_finish_, map,
                       absent(gate) ? 0 : gate.strides[0], false);
    });
    if (s == Status::ok && scattered)
      s = copy_tensor(kernels, g, !in, static_cast<const T*>(output), ys, static_cast<T*>(y.data), user);
    return s;
  }

 private:
  const int64_t* size(bool in_side) const { return in_side ? layer_.geometry.in : layer_.geometry.out; }
  int64_t channels(bool in_side) const { return layer_.geometry.G * (in_side ? layer_.geometry.C : layer_.geometry.K); }
  // Whether an image lies as the plan was made for, or its innermost axis does.
  bool is_dense(bool in_side, const Strides& s) const {
    return same_image(channels(in_side), size(in_side), s, in_side != desc_.transposed ? layer_.x : layer_.y);
  }
  bool has_order(bool in_side, const Strides& s) const {
    return layer_.channels_last ? s.c == 1 || channels(in_side) == 1 : s.s[2] == 1 || size(in_side)[2] == 1;
  }

  // The products for other strides, with the plan's packed weights; null where they are decided otherwise. The last few
  // are kept.
  std::shared_ptr<const std::vector<Run<T>>> runs_for(const Strides& x, const Strides& y,
                                                      const Strides* residual) const {
    if (runs_[0].job.fan.count()) return nullptr;
    auto equal = [](const Strides& a, const Strides& b) { return a.c == b.c && std::equal(a.s, a.s + 3, b.s); };
    const std::lock_guard lock(others_mutex_);
    for (const Other& o : others_)
      if (equal(o.x, x) && equal(o.y, y) && o.has_residual == (residual != nullptr) &&
          (!residual || equal(o.residual, *residual)))
        return o.runs;
    Layer l = layer_;
    l.x = x, l.y = y;
    if (residual) l.r = *residual;
    auto runs =
        std::make_shared<std::vector<Run<T>>>(forward_runs<T>(desc_, l, machine_, mapped_, residual != nullptr));
    bool usable = runs->size() == runs_.size();
    for (size_t i = 0; usable && i < runs_.size(); ++i) {
      Run<T>& to = (*runs)[i];
      const Run<T>& from = runs_[i];
      usable = packs_alike(to, from);
      to.packed = from.packed, to.direct_size = from.direct_size, to.skip_zeros = from.skip_zeros;
      to.job.weight = from.job.weight;
    }
    if (!usable) runs = nullptr;
    constexpr size_t kOthers = 4;
    if (others_.size() == kOthers) others_.erase(others_.begin());
    others_.push_back({x, y, residual ? *residual : Strides{}, residual != nullptr, runs});
    return runs;
  }

  // Whether the packed weights of one product serve the other, and the bits of its result are the same.
  bool packs_alike(const Run<T>& a, const Run<T>& b) const {
    const Choice &p = a.choice, &q = b.choice;
    auto alike = [](const std::vector<Chunk>& v, const std::vector<Chunk>& w) {
      return std::equal(v.begin(), v.end(), w.begin(), w.end(), [](const Chunk& c, const Chunk& d) {
        return c.c0 == d.c0 && c.channels == d.channels && c.t0 == d.t0 && c.taps == d.taps;
      });
    };
    return p.depthwise == q.depthwise && p.group == q.group && p.role == q.role && p.winograd == q.winograd &&
           p.turn == q.turn && p.fft.rows == 0 && q.fft.rows == 0 && alike(p.chunks, q.chunks) &&
           alike(p.winograd_chunks, q.winograd_chunks) &&
           packed_size(a.job, p, machine_, true) == packed_size(b.job, q, machine_, true);
  }

  struct Other {
    Strides x, y, residual;
    bool has_residual;
    std::shared_ptr<const std::vector<Run<T>>> runs;
  };
  mutable std::mutex others_mutex_;
  mutable std::vector<Other> others_;
  ConvDesc desc_;
  Layer layer_{};
  Machine machine_{};
  bool mapped_ = false;
  std::vector<Run<T>> runs_;
  std::vector<Run<T>> single_;  // phases that runs_ joins, for images that are not finite
  Block packed_, packed_single_, vectors_;
  Finish<T> finish_, single_finish_;
  InputMap<T> map_{};
};

template <class T>
std::shared_ptr<const ConvPlan> make_plan(const ConvDesc& desc, const ConvOperands& o, Status* status) {
  auto plan = std::make_shared<TypedPlan<T>>();
  *status = plan->build(desc, o);
  if (*status != Status::ok) return nullptr;
  return plan;
}

// The decision of any pass, for explain() and the log: pointers are never followed.
template <class T>
Status decide(const ConvDesc& desc, Pass pass, const ConvOperands& o, Decision* out) {
  Layer l;
  Status s;
  const Machine m = current_machine(o.x.dtype);
  std::vector<Run<T>> runs;
  Sums sums;
  bool keep = false;
  if (pass == Pass::forward) {
    if ((s = check_forward(desc, o, &l)) != Status::ok) return s;
    const Geometry& g = l.geometry;
    if (absent(o.y)) l.y = dense_strides(l.channels_last, l.out_channels, desc.transposed ? g.in : g.out);
    runs = forward_runs<T>(desc, l, m, has_prologue(o.prologue), !absent(o.epilogue.residual));
  } else {
    if ((s = check_backward(desc, o, pass, &l)) != Status::ok) return s;
    const Geometry& g = l.geometry;
    if (pass == Pass::backward_input && !desc.transposed) {
      if (const DenseJob job = fprop_job(g, l.x, l.y, nullptr, l.w); spreads<T>(l, job, m) && !o.accumulate) {
        *out = summarise_spread<T>(job, m, g, least_bytes(g, false, sizeof(T)));
        return Status::ok;
      }
      const int64_t origin[3] = {0, 0, 0};
      runs = gradient_runs<T>(l, m, origin, g.in, l.x);
      if (g.mode != PaddingMode::zeros) {
        l.algorithm = frame_algorithm(runs);
        // The frame's elements have chains of their own, which are added to the image's.
        for_frame_pieces(g, frame_piece(g, sizeof(T)), [&](const Box& b) {
          const Strides dense = dense_strides(l.channels_last, g.G * g.C, b.extent);
          sums.cover(gradient_runs<T>(l, m, b.origin, b.extent, dense));
          return Status::ok;
        });
        sums.folded = frame_copies(g);
      }
    } else if (pass == Pass::backward_input) {
      Run<T>& run = runs.emplace_back();
      run.job = fprop_job(g, l.y, l.x, nullptr, l.w);
      decide_product(&run, l, m, false, 1);
    } else {
      const DenseJob job = weight_job(desc, l);
      if (!serves_weights<T>(desc.algorithm, job, m)) return Status::bad_algorithm;
      *out = summarise_weight_gradient<T>(job, m, g, desc.algorithm, least_bytes(g, false, sizeof(T)));
      return Status::ok;
    }
  }
  if ((s = check_algorithm(desc.algorithm, runs)) != Status::ok) return s;
  int64_t packed = 0;
  for (const Run<T>& run : runs) {
    packed += packed_size(run.job, run.choice, m, keep);
    if (run.job.fan.copied) packed += run.job.K * run.job.wk;
  }
  *out = summarise(runs, m, l.geometry, least_bytes(l.geometry, !absent(o.epilogue.residual), sizeof(T)), packed, sums);
  if (!runs[0].choice.depthwise) {
    if (absent(o.prologue.gate)) join_batch(&runs);
    out->workspace_per_thread = most_workspace(runs, m);
  }
  return Status::ok;
}

}  // namespace

Status conv_decide(const ConvDesc& desc, Pass pass, const ConvOperands& o, Decision* out) {
  const Status s = on_host(o);
  if (s != Status::ok) return s;
  return o.x.dtype == DType::f32 ? decide<float>(desc, pass, o, out) : decide<double>(desc, pass, o, out);
}

std::shared_ptr<const ConvPlan> conv_plan(const ConvDesc& desc, const ConvOperands& o, Status* status) {
  if ((*status = on_host(o)) != Status::ok) return nullptr;
  return o.x.dtype == DType::f32 ? make_plan<float>(desc, o, status) : make_plan<double>(desc, o, status);
}

Status conv_plan_run(const ConvPlan& plan, const TensorView& x, const TensorView& y, const TensorView& residual,
                     const TensorView& gate) {
  const Status s = check_device(Device::cpu, {&x, &y, &residual, &gate});
  return s == Status::ok ? plan.run(x, y, residual, gate) : s;
}

const Decision& conv_plan_decision(const ConvPlan& plan) { return plan.decision; }

}  // namespace fastconv
