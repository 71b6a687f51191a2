// Pooling: sizes and checks, which the backends share.
#include <algorithm>

#include "ops/device.h"
#include "ops/pool.h"

namespace fastconv {
namespace ops {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 60;

// One axis of the descriptor over n elements.
Status make_axis(const PoolDesc& desc, int i, int64_t n, Axis* axis) {
  Axis& a = *axis;
  a = {};
  a.in = n;
  if (n < 1) return Status::bad_shape;
  if (n > kMaxSize) return Status::overflow;
  if (desc.adaptive) {
    a.adaptive = true;
    a.out = desc.kernel[i] == 0 ? n : desc.kernel[i];
    if (a.out > 0 && a.out <= n && n % a.out == 0) {  // windows of one size, side by side
      a.adaptive = false;
      a.kernel = a.stride = n / a.out;
      return Status::ok;
    }
    a.kernel = a.out > 0 ? n / a.out + 2 : 1;  // an upper bound of the elements of a window
    return desc.kernel[i] < 0 ? Status::bad_shape : a.out > kMaxSize ? Status::overflow : Status::ok;
  }
  a.kernel = desc.kernel[i], a.stride = desc.stride[i], a.dilation = desc.dilation[i];
  a.pad = desc.pad_before[i], a.pad_after = desc.pad_after[i];
  if (a.kernel < 1 || a.stride < 1 || a.dilation < 1) return Status::bad_stride;
  if (a.pad < 0 || a.pad_after < 0) return Status::bad_padding;
  int64_t reach = 0;
  if (__builtin_mul_overflow(a.kernel - 1, a.dilation, &reach) || reach >= kMaxSize || a.stride > kMaxSize ||
      a.pad > kMaxSize || a.pad_after > kMaxSize)
    return Status::overflow;
  ++reach;
  if (desc.auto_padding != AutoPadding::none) {
    const int64_t total = std::max<int64_t>(0, ((n + a.stride - 1) / a.stride - 1) * a.stride + reach - n);
    a.pad = desc.auto_padding == AutoPadding::same ? total / 2 : total - total / 2;
    a.pad_after = total - a.pad;
  }
  const int64_t free = n + a.pad + a.pad_after - reach;
  if (free < 0) return Status::empty_output;
  const bool up = desc.ceil_mode != CeilMode::floor;
  a.out = (up ? (free + a.stride - 1) / a.stride : free / a.stride) + 1;
  if (desc.ceil_mode == CeilMode::clipped && (a.out - 1) * a.stride >= n + a.pad) --a.out;
  // Every window needs an element of the image, but for those that `unclipped` asks for beyond its end. Windows that
  // begin inside have one; those before the image are looked at one by one, as few as fit into the padding.
  if (a.pad > reach - 1) return Status::bad_padding;
  for (int64_t o = 0; o < a.out && o * a.stride < a.pad; ++o)
    if (a.window(o).count == 0) return Status::bad_padding;
  if (desc.ceil_mode != CeilMode::unclipped && (a.out - 1) * a.stride - a.pad >= n) return Status::bad_padding;
  return Status::ok;
}

// The number of elements, counting empty axes as one; false where it is too large.
bool countable(const int64_t* sizes, int n) {
  int64_t total = 1;
  for (int i = 0; i < n; ++i)
    if (__builtin_mul_overflow(total, std::max<int64_t>(1, sizes[i]), &total) || total > kMaxSize) return false;
  return true;
}

}  // namespace

Status make_pool(const PoolDesc& desc, const TensorView& x, Pool* pool) {
  Pool& p = *pool;
  if (x.ndim != desc.spatial + 2) return Status::bad_rank;
  if (!computes(x) && (desc.kind != PoolKind::max || x.dtype == DType::f16 || x.dtype == DType::bf16))
    return Status::bad_dtype;
  const Axes axes = axes_of(desc.spatial, desc.channels_last);
  p = {};
  p.dtype = x.dtype, p.kind = desc.kind;
  p.N = x.shape[0], p.C = x.shape[axes.channel];
  if (p.C < 1 || p.N < 0) return Status::bad_shape;
  const int lift = 3 - desc.spatial;
  for (int i = 0; i < lift; ++i) p.axis[i] = Axis{};
  for (int i = 0; i < desc.spatial; ++i) {
    const Status s = make_axis(desc, i, x.shape[axes.first + i], &p.axis[lift + i]);
    if (s != Status::ok) return s;
  }
  const int64_t in[] = {p.N, p.C, p.axis[0].in, p.axis[1].in, p.axis[2].in};
  const int64_t out[] = {p.N, p.C, p.axis[0].out, p.axis[1].out, p.axis[2].out};
  const int64_t taps[] = {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel};
  if (!countable(in, 5) || !countable(out, 5) || !countable(taps, 3)) return Status::overflow;
  p.count_include_pad = desc.count_include_pad, p.divisor = desc.divisor, p.norm = desc.norm;
  return Status::ok;
}

// Checks that `view` has the images of the `out` (else the `in`) side and lifts its strides.
Status lift_view(int32_t spatial, bool channels_last, const TensorView& view, int64_t N, int64_t C,
                 const int64_t size[3], Strides* strides) {
  if (view.ndim != spatial + 2) return Status::bad_rank;
  const Axes axes = axes_of(spatial, channels_last);
  if (view.shape[0] != N || view.shape[axes.channel] != C) return Status::bad_shape;
  *strides = {};
  strides->n = view.strides[0], strides->c = view.strides[axes.channel];
  for (int i = 0; i < spatial; ++i) {
    const int at = 3 - spatial + i;
    if (view.shape[axes.first + i] != size[at]) return Status::bad_shape;
    strides->s[at] = view.strides[axes.first + i];
  }
  return Status::ok;
}

Status lift_side(const PoolDesc& desc, const Pool& p, bool out, const TensorView& view, Strides* strides) {
  int64_t size[3];
  for (int i = 0; i < 3; ++i) size[i] = out ? p.axis[i].out : p.axis[i].in;
  return lift_view(desc.spatial, desc.channels_last, view, p.N, p.C, size, strides);
}

Status check_pool_forward(Device device, const PoolDesc& desc, const TensorView& x, const TensorView& y,
                          const TensorView& indices, Pool* p, Strides* xs, Strides* ys, Strides* is) {
  Status s = check_device(device, {&x, &y, &indices});
  if (s != Status::ok || (s = make_pool(desc, x, p)) != Status::ok) return s;
  if (y.dtype != x.dtype) return Status::bad_dtype;
  if ((s = lift_side(desc, *p, false, x, xs)) != Status::ok) return s;
  if (lift_side(desc, *p, true, y, ys) != Status::ok) return Status::bad_output;
  *is = {};
  if (!indices.data) return Status::ok;
  if (p->kind != PoolKind::max) return Status::unsupported;
  if (indices.dtype != DType::i64) return Status::bad_dtype;
  return lift_side(desc, *p, true, indices, is) == Status::ok ? Status::ok : Status::bad_output;
}

Status check_pool_backward(Device device, const PoolDesc& desc, const TensorView& dy, const TensorView& x,
                           const TensorView& indices, const TensorView& dx, Pool* p, Strides* ys, Strides* xs,
                           Strides* is, Strides* ds) {
  Status s = check_device(device, {&dy, &x, &indices, &dx});
  if (s != Status::ok || (s = make_pool(desc, x, p)) != Status::ok) return s;
  if (!computes(dy) || dx.dtype != dy.dtype || x.dtype != dy.dtype) return Status::bad_dtype;
  if ((s = lift_side(desc, *p, true, dy, ys)) != Status::ok) return s;
  if ((s = lift_side(desc, *p, false, x, xs)) != Status::ok) return s;
  if (lift_side(desc, *p, false, dx, ds) != Status::ok) return Status::bad_output;
  *is = {};
  if (!indices.data) return Status::ok;
  if (p->kind != PoolKind::max) return Status::unsupported;
  if (indices.dtype != DType::i64) return Status::bad_dtype;
  return lift_side(desc, *p, true, indices, is);
}

int64_t Pool::divisor_of(int64_t od, int64_t oh, int64_t ow) const {
  if (divisor) return divisor;
  int64_t product = 1;
  const int64_t o[3] = {od, oh, ow};
  for (int i = 0; i < 3; ++i)
    product *= axis[i].adaptive || !count_include_pad ? std::max<int64_t>(1, axis[i].window(o[i]).count)
                                                      : axis[i].pool_size(o[i]);
  return product;
}

// The two sides of an unpooling: small (x, indices) and large.
Status unpool_sides(Device device, int32_t spatial, bool channels_last, const TensorView& small,
                    const TensorView& indices, const TensorView& large, int64_t* N, int64_t* C, Side* s, Side* indexed,
                    Side* l) {
  const Axes axes = axes_of(spatial, channels_last);
  if (check_device(device, {&small, &indices, &large}) != Status::ok) return Status::bad_device;
  for (const TensorView* view : {&indices, &large})
    if (view->ndim != spatial + 2) return Status::bad_rank;
  if (!computes(large) || small.dtype != large.dtype || indices.dtype != DType::i64) return Status::bad_dtype;
  *N = indices.shape[0], *C = indices.shape[axes.channel];
  if (*C < 1 || large.shape[0] != *N || large.shape[axes.channel] != *C) return Status::bad_shape;
  for (int i = 0; i < 3; ++i) s->size[i] = l->size[i] = 1;
  for (int i = 0; i < spatial; ++i) {
    s->size[3 - spatial + i] = indices.shape[axes.first + i];
    l->size[3 - spatial + i] = large.shape[axes.first + i];
  }
  if (!countable(large.shape, large.ndim)) return Status::overflow;
  for (int i = 0; i < 3; ++i) indexed->size[i] = s->size[i];
  Status status = lift_view(spatial, channels_last, indices, *N, *C, s->size, &indexed->s);
  if (status != Status::ok) return status;
  if ((status = lift_view(spatial, channels_last, small, *N, *C, s->size, &s->s)) != Status::ok) return status;
  return lift_view(spatial, channels_last, large, *N, *C, l->size, &l->s);
}

}  // namespace ops

using namespace ops;

Status pool_output_shape(const PoolDesc& desc, const TensorView& x, int64_t* shape) {
  Pool p;
  const Status s = make_pool(desc, x, &p);
  if (s != Status::ok) return s;
  const Axes axes = axes_of(desc.spatial, desc.channels_last);
  shape[0] = p.N, shape[axes.channel] = p.C;
  for (int i = 0; i < desc.spatial; ++i) shape[axes.first + i] = p.axis[3 - desc.spatial + i].out;
  return Status::ok;
}

}  // namespace fastconv
