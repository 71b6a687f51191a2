#include "ops/shape.h"

#include <numeric>

namespace fastconv::ops {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 60;

// Axis numbers of batch, channel and first spatial axis in the user's order.
struct AxisOrder { int channel, spatial; };
AxisOrder axis_order(const ConvDesc& desc) {
  return desc.channels_last ? AxisOrder{desc.spatial + 1, 1} : AxisOrder{1, 2};
}

int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }

bool multiply(int64_t a, int64_t b, int64_t* out) { return !__builtin_mul_overflow(a, b, out) && *out <= kMaxElements; }

// Sizes of one axis: resolves automatic padding and computes the output.
Status resolve_axis(const ConvDesc& desc, int axis, int64_t input, int64_t filter, int64_t* before, int64_t* after,
                    int64_t* output) {
  const int64_t stride = desc.stride[axis], dilation = desc.dilation[axis];
  if (stride < 1 || dilation < 1 || filter < 1) return Status::bad_stride;
  int64_t reach;  // elements the dilated filter spans
  if (!multiply(dilation, filter - 1, &reach)) return Status::overflow;
  reach += 1;
  *before = desc.pad_before[axis];
  *after = desc.pad_after[axis];
  if (*before < 0 || *after < 0) return Status::bad_padding;
  if (*before > kMaxElements || *after > kMaxElements || input > kMaxElements) return Status::overflow;
  if (!desc.transposed) {
    if (desc.auto_padding != AutoPadding::none) {
      const int64_t target = (input + stride - 1) / stride;
      int64_t total = (target - 1) * stride + reach - input;
      if (total < 0) total = 0;
      *before = desc.auto_padding == AutoPadding::same ? total / 2 : total - total / 2;
      *after = total - *before;
    }
    const int64_t padded = input + *before + *after;
    if (padded < reach) return Status::empty_output;
    *output = (padded - reach) / stride + 1;
    return Status::ok;
  }
  int64_t extra = desc.output_padding[axis], full;
  if (extra < 0 || (extra > 0 && extra >= stride && extra >= dilation)) return Status::bad_padding;
  if (!multiply(input - 1, stride, &full)) return Status::overflow;
  full += reach + extra;
  if (desc.auto_padding != AutoPadding::none) {
    if (!multiply(input, stride, output)) return Status::overflow;
    int64_t total = full - *output;
    if (total < 0) total = 0;
    *before = desc.auto_padding == AutoPadding::same ? total / 2 : total - total / 2;
    *after = total - *before;
    return Status::ok;
  }
  *output = full - *before - *after;
  return *output < 1 ? Status::empty_output : Status::ok;
}

bool padding_fits(PaddingMode mode, int64_t pad, int64_t n) {
  switch (mode) {
    case PaddingMode::reflect: return pad < n || pad == 0;
    case PaddingMode::circular: return pad <= n;
    default: return true;
  }
}

}  // namespace

Status make_geometry(const ConvDesc& desc, const TensorView& x, const TensorView& w, Geometry* out) {
  const int d = desc.spatial;
  if (d < 1 || d > 3 || x.ndim != d + 2 || w.ndim != d + 2) return Status::bad_rank;
  if (x.device != w.device) return Status::bad_device;
  if (x.dtype != w.dtype || !computes(x)) return Status::bad_dtype;
  Geometry& g = *out;
  g = Geometry{};
  g.dtype = x.dtype;
  const AxisOrder order = axis_order(desc);
  g.N = x.shape[0];
  const int64_t channels = x.shape[order.channel];
  if (desc.groups < 1 || channels < 1 || w.shape[0] < 1 || w.shape[1] < 1)
    return desc.groups < 1 ? Status::bad_groups : Status::bad_shape;
  g.G = desc.groups;
  if (channels % g.G != 0 || w.shape[0] % g.G != 0) return Status::bad_groups;
  if (desc.transposed) {
    if (w.shape[0] != channels) return Status::bad_shape;
    g.K = channels / g.G;
    g.C = w.shape[1];
    if (desc.padding_mode != PaddingMode::zeros) return Status::bad_padding;
  } else {
    if (w.shape[1] != channels / g.G) return Status::bad_shape;
    g.C = channels / g.G;
    g.K = w.shape[0] / g.G;
  }
  g.mode = desc.padding_mode;
  for (int a = 0; a < 3; ++a) {
    g.in[a] = g.out[a] = g.filter[a] = g.stride[a] = g.dilation[a] = 1;
    g.pad[a] = g.pad_after[a] = 0;
  }
  for (int i = 0; i < d; ++i) {
    const int a = 3 - d + i;
    const int64_t input = x.shape[order.spatial + i], filter = w.shape[2 + i];
    if (input < 1) return Status::bad_shape;
    g.filter[a] = filter;
    g.stride[a] = desc.stride[i];
    g.dilation[a] = desc.dilation[i];
    int64_t output;
    const Status status = resolve_axis(desc, i, input, filter, &g.pad[a], &g.pad_after[a], &output);
    if (status != Status::ok) return status;
    if (!padding_fits(g.mode, g.pad[a], input) || !padding_fits(g.mode, g.pad_after[a], input))
      return Status::bad_padding;
    g.in[a] = desc.transposed ? output : input;
    g.out[a] = desc.transposed ? input : output;
  }
  // Every tensor's size must be representable with room to spare for offsets.
  int64_t in_size = g.N > 0 ? g.N : 1, out_size = in_size, w_size = g.taps();
  bool fits = multiply(in_size, g.G * g.C, &in_size) && multiply(out_size, g.G * g.K, &out_size);
  for (int a = 0; a < 3 && fits; ++a)
    fits = multiply(in_size, g.in[a], &in_size) && multiply(out_size, g.out[a], &out_size);
  fits = fits && multiply(w_size, g.G * g.C, &w_size) && multiply(w_size, g.K, &w_size);
  return fits ? Status::ok : Status::overflow;
}

Status lift(const ConvDesc& desc, const Geometry& g, bool in_side, const TensorView& view, Strides* strides) {
  const int d = desc.spatial;
  if (view.ndim != d + 2) return Status::bad_rank;
  if (view.dtype != g.dtype) return Status::bad_dtype;
  const AxisOrder order = axis_order(desc);
  const int64_t channels = g.G * (in_side ? g.C : g.K);
  const int64_t* size = in_side ? g.in : g.out;
  if (view.shape[0] != g.N || view.shape[order.channel] != channels) return Status::bad_shape;
  for (int i = 0; i < d; ++i)
    if (view.shape[order.spatial + i] != size[3 - d + i]) return Status::bad_shape;
  strides->n = view.strides[0];
  strides->c = view.strides[order.channel];
  for (int a = 0; a < 3; ++a) strides->s[a] = a >= 3 - d ? view.strides[order.spatial + a - (3 - d)] : 0;
  // Axes of one element get a stride that does not stand in the way of merging.
  for (int a = 2; a >= 0; --a)
    if (size[a] == 1)
      strides->s[a] = a == 2 ? (size[1] > 1    ? strides->s[1]
                                : size[0] > 1  ? strides->s[0]
                                : channels > 1 ? strides->c
                                               : 1)
                             : strides->s[a + 1] * size[a + 1];
  return Status::ok;
}

Status lift_weight(const ConvDesc& desc, const Geometry& g, const TensorView& w, WeightStrides* s) {
  const int d = desc.spatial;
  if (w.ndim != d + 2) return Status::bad_rank;
  if (w.dtype != g.dtype) return Status::bad_dtype;
  if (w.shape[0] != g.G * g.K || w.shape[1] != g.C) return Status::bad_shape;
  for (int i = 0; i < d; ++i)
    if (w.shape[2 + i] != g.filter[3 - d + i]) return Status::bad_shape;
  s->k = w.strides[0];
  s->c = w.strides[1];
  s->g = g.K * s->k;
  for (int a = 2; a >= 0; --a) {
    s->f[a] = a >= 3 - d ? w.strides[2 + a - (3 - d)] : 0;
    if (g.filter[a] == 1) s->f[a] = a == 2 ? 1 : s->f[a + 1] * g.filter[a + 1];
  }
  if (g.C == 1) s->c = s->f[0] * g.filter[0];
  return Status::ok;
}

DenseJob fprop_job(const Geometry& g, const Strides& x, const Strides& y, const Strides* residual,
                   const WeightStrides& w) {
  DenseJob job{};
  job.N = g.N, job.G = g.G, job.C = g.C, job.K = g.K;
  for (int a = 0; a < 3; ++a) {
    job.in[a] = g.in[a], job.out[a] = g.out[a], job.filter[a] = g.filter[a];
    job.stride[a] = g.stride[a], job.dilation[a] = g.dilation[a], job.pad[a] = g.pad[a];
    job.wf[a] = w.f[a];
  }
  job.mode = g.mode;
  job.is = x, job.os = y;
  job.has_residual = residual != nullptr;
  if (residual) job.rs = *residual;
  job.wg = w.g, job.wk = w.k, job.wc = w.c;
  return job;
}

namespace {

// One axis of the gradient with respect to the input at coordinates congruent to `first` modulo the stride.
//
// dx[h] is the sum of w[r] * dy[p] over p * stride - pad + r * dilation = h. With g = gcd(stride, dilation), the taps
// that reach h are r = r0 + j * stride / g, and p falls by dilation / g from one to the next: a dense product with a
// flipped sub-filter.
struct AxisPhase {
  int64_t first;           // offset of the first element in the part
  int64_t count;           // elements
  int64_t taps, dilation;  // of the sub-filter
  int64_t pad;
  int64_t tap0, tap_step;  // sub-filter tap j reads w[tap0 + j * tap_step]
};

AxisPhase axis_phase(int64_t origin, int64_t extent, int64_t f, int64_t stride, int64_t dilation, int64_t pad,
                     int64_t filter) {
  AxisPhase p{};
  p.first = f;
  p.count = (extent - f + stride - 1) / stride;
  const int64_t u = origin + pad + f;
  const int64_t m0 = floor_div(u, stride), phi = u - m0 * stride;
  const int64_t g = std::gcd(stride, dilation), period = stride / g;
  int64_t r0 = -1;
  for (int64_t r = 0; r < period && r < filter; ++r)
    if ((r * dilation - phi) % stride == 0) {
      r0 = r;
      break;
    }
  p.dilation = dilation / g;
  if (r0 < 0) return p;  // no tap meets this residue
  p.taps = (filter - r0 + period - 1) / period;
  p.pad = (r0 * dilation - phi) / stride + (p.taps - 1) * p.dilation - m0;
  p.tap0 = r0 + (p.taps - 1) * period;
  p.tap_step = -period;
  return p;
}

}  // namespace

std::vector<PhaseJob> dgrad_jobs(const Geometry& g, const int64_t origin[3], const int64_t extent[3], const Strides& dy,
                                 const Strides& dx, const Strides* residual, const WeightStrides& w) {
  std::vector<PhaseJob> jobs;
  int64_t f[3];
  for (f[0] = 0; f[0] < g.stride[0] && f[0] < extent[0]; ++f[0])
    for (f[1] = 0; f[1] < g.stride[1] && f[1] < extent[1]; ++f[1])
      for (f[2] = 0; f[2] < g.stride[2] && f[2] < extent[2]; ++f[2]) {
        PhaseJob p{};
        DenseJob& job = p.job;
        job.N = g.N, job.G = g.G, job.C = g.K, job.K = g.C;
        job.mode = PaddingMode::zeros;
        job.is = dy, job.os = dx;
        job.has_residual = residual != nullptr;
        if (residual) job.rs = *residual;
        job.wg = w.g, job.wk = w.c, job.wc = w.k;
        for (int a = 0; a < 3; ++a) {
          const AxisPhase q = axis_phase(origin[a], extent[a], f[a], g.stride[a], g.dilation[a], g.pad[a], g.filter[a]);
          job.in[a] = g.out[a], job.out[a] = q.count, job.filter[a] = q.taps;
          job.stride[a] = 1, job.dilation[a] = q.dilation, job.pad[a] = q.pad;
          job.os.s[a] = dx.s[a] * g.stride[a];
          job.wf[a] = w.f[a] * q.tap_step;
          p.output_offset += q.first * dx.s[a];
          if (residual) job.rs.s[a] = residual->s[a] * g.stride[a], p.residual_offset += q.first * residual->s[a];
          p.weight_offset += q.tap0 * w.f[a];
        }
        // An axis that a phase visits once has no step to speak of.
        for (Strides* s : {&job.os, &job.rs})
          for (int a = 2; a >= 0; --a)
            if (job.out[a] == 1) s->s[a] = a == 2 ? 1 : s->s[a + 1] * job.out[a + 1];
        jobs.push_back(p);
      }
  int64_t most = extent[0] > 1 || g.filter[0] > 1 ? g.filter[0] * g.filter[2] * extent[0] + 3 : 0;
  for (const PhaseJob& p : jobs) most = std::max(most, p.job.filter[2]);
  for (PhaseJob& p : jobs) p.job.phase = jobs.size() > 1, p.job.most_taps = most;
  return jobs;
}

PhaseJob joined_job(const Geometry& g, const Strides& dy, const Strides& dx, const Strides* residual,
                    const WeightStrides& w) {
  PhaseJob joined{};
  DenseJob& job = joined.job;
  job.N = g.N, job.G = g.G, job.C = g.K, job.K = g.C;
  job.mode = PaddingMode::zeros;
  job.is = dy, job.os = dx;
  job.has_residual = residual != nullptr;
  if (residual) job.rs = *residual;
  int strided = 0;
  for (int a = 0; a < 3; ++a) {
    // Output h = q * stride + f - first sums over p * stride - pad + r * dilation = h. Where the stride is not 1 the
    // dilation is, so that r = f + j * stride and p = q + low - j.
    const int64_t s = g.stride[a], low = g.pad[a] / s, taps = (g.filter[a] + s - 1) / s;
    const int64_t high = (g.in[a] - 1 + g.pad[a]) / s;
    job.fan.phases[a] = s, job.fan.extent[a] = g.in[a], job.fan.first[a] = g.pad[a] % s;
    job.in[a] = g.out[a], job.out[a] = high - low + 1, job.filter[a] = taps;
    job.stride[a] = 1, job.dilation[a] = g.dilation[a], job.pad[a] = (taps - 1) * g.dilation[a] - low;
    job.K *= s;
    job.fan.padded = job.fan.padded || g.filter[a] % s != 0;
    // Taps run backwards.
    job.wf[a] = -s * w.f[a];
    joined.weight_offset += (taps - 1) * s * w.f[a];
    if (s > 1) job.wk = w.f[a], ++strided;
  }
  job.wc = w.k;
  job.most_taps = job.filter[2];
  job.fan.copied = job.fan.padded || strided > 1 || g.C > 1;
  if (!job.fan.copied) return joined;
  job.wf[2] = 1, job.wf[1] = job.filter[2], job.wf[0] = job.filter[1] * job.filter[2];
  job.wc = job.taps(), job.wk = job.C * job.wc;
  joined.weight_offset = 0;
  return joined;
}

template <class T>
void join_weights(const Geometry& g, const WeightStrides& from, const T* w, const DenseJob& job, T* to) {
  const int64_t* s = job.fan.phases;
  constexpr int64_t kNone = INT64_MIN;  // a phase lacks the tap
  // Where a filter's taps come from and go to.
  std::vector<int64_t> source, target;
  for (int64_t d = 0; d < job.filter[0] * s[0]; ++d)
    for (int64_t h = 0; h < job.filter[1] * s[1]; ++h)
      for (int64_t i = 0; i < job.filter[2] * s[2]; ++i) {
        const bool met = d < g.filter[0] && h < g.filter[1] && i < g.filter[2];
        source.push_back(met ? d * from.f[0] + h * from.f[1] + i * from.f[2] : kNone);
        const int64_t td = job.filter[0] - 1 - d / s[0], th = job.filter[1] - 1 - h / s[1];
        const int64_t tap = (td * job.filter[1] + th) * job.filter[2] + job.filter[2] - 1 - i / s[2];
        target.push_back(((d % s[0] * s[1] + h % s[1]) * s[2] + i % s[2]) * g.C * job.wk + tap);
      }
  for (int64_t c = 0; c < g.K; ++c)
    for (int64_t k = 0; k < g.C; ++k) {
      const T* filter = w + c * from.k + k * from.c;
      T* out = to + k * job.wk + c * job.wc;
      for (size_t t = 0; t < source.size(); ++t) out[target[t]] = source[t] == kNone ? T{0} : filter[source[t]];
    }
}
template void join_weights<float>(const Geometry&, const WeightStrides&, const float*, const DenseJob&, float*);
template void join_weights<double>(const Geometry&, const WeightStrides&, const double*, const DenseJob&, double*);

void merge_axes(DenseJob* job) {
  if (job->fan.count()) return;
  auto plain = [job](int a) {
    return job->filter[a] == 1 && job->stride[a] == 1 && job->pad[a] == 0 && job->in[a] == job->out[a];
  };
  // (D, H) into W: the outer axis becomes 1 and the inner one takes its elements.
  for (int outer = 1; outer >= 0; --outer) {
    const int64_t n = job->in[outer], inner = job->in[2];
    if (!plain(2) || !plain(outer)) return;
    auto joins = [&](const Strides& s) { return n == 1 || inner == 1 || s.s[outer] == inner * s.s[2]; };
    if (!joins(job->is) || !joins(job->os) || (job->has_residual && !joins(job->rs))) return;
    if (inner == 1 && n > 1)
      for (Strides* s : {&job->is, &job->os, &job->rs}) s->s[2] = s->s[outer];
    job->in[2] = job->out[2] = n * inner;
    job->in[outer] = job->out[outer] = 1;
    for (Strides* s : {&job->is, &job->os, &job->rs}) s->s[outer] = job->in[2] * s->s[2];
  }
}

bool join_images(DenseJob* job) {
  if (job->N <= 1 || job->fan.count() || job->in[0] != 1 || job->out[0] != 1 || job->filter[0] != 1) return false;
  if (job->stride[0] != 1 || job->pad[0] != 0) return false;
  job->in[0] = job->out[0] = job->N;
  job->is.s[0] = job->is.n, job->os.s[0] = job->os.n, job->rs.s[0] = job->rs.n;
  // Axes of one element go along with the next.
  for (Strides* s : {&job->os, &job->rs})
    for (int a = 1; a <= 2; ++a)
      if (job->out[2] == 1 && (a == 2 || job->out[1] == 1)) s->s[a] = s->s[a - 1];
  job->N = 1;
  return true;
}

void skip_pixels(DenseJob* job) {
  for (int a = 0; a < 3; ++a) {
    if (job->filter[a] != 1 || job->stride[a] == 1 || job->pad[a] != 0) continue;
    if ((job->out[a] - 1) * job->stride[a] >= job->in[a]) continue;
    job->in[a] = job->out[a];
    job->is.s[a] *= job->stride[a];
    job->stride[a] = 1;
  }
}

void split_groups(DenseJob* job) {
  job->G *= job->C;
  job->C = job->K = 1;
}

bool uniform_pixels(const int64_t out[3], const Strides& s, int64_t* step) {
  *step = s.s[2];
  int64_t next = s.s[2] * out[2];
  for (int a = 1; a >= 0; --a) {
    if (out[a] > 1 && s.s[a] != next) return false;
    next *= out[a];
  }
  return true;
}

}  // namespace fastconv::ops

namespace fastconv {

Status conv_output_shape(const ConvDesc& desc, const TensorView& x, const TensorView& w, int64_t* shape) {
  ops::Geometry g;
  const Status status = ops::make_geometry(desc, x, w, &g);
  if (status != Status::ok) return status;
  const int d = desc.spatial;
  const int64_t* size = desc.transposed ? g.in : g.out;
  const int channel = desc.channels_last ? d + 1 : 1, first = desc.channels_last ? 1 : 2;
  shape[0] = g.N;
  shape[channel] = g.G * (desc.transposed ? g.C : g.K);
  for (int i = 0; i < d; ++i) shape[first + i] = size[3 - d + i];
  return Status::ok;
}

bool output_is_channels_last(const ConvDesc& desc, const TensorView& x) {
  const int d = desc.spatial, channel = desc.channels_last ? d + 1 : 1, first = desc.channels_last ? 1 : 2;
  // Contiguous in an order of axes, axes of one element aside.
  auto contiguous = [&](bool last) {
    int64_t expect = 1;
    auto matches = [&](int axis) {
      if (x.shape[axis] != 1 && x.strides[axis] != expect) return false;
      expect *= x.shape[axis];
      return true;
    };
    if (last && !matches(channel)) return false;
    for (int i = d - 1; i >= 0; --i)
      if (!matches(first + i)) return false;
    return last || matches(channel);
  };
  const bool as_last = contiguous(true), as_first = contiguous(false);
  if (as_last != as_first) return as_last;
  return desc.channels_last;  // both or neither: C-contiguous in the user's axes
}

}  // namespace fastconv
