// Normalisation: x as (N, C, P), and the checks of a call, which the backends share.
#pragma once
#include <algorithm>

#include "fastconv/norm.h"
#include "ops/device.h"

namespace fastconv::ops::norms {

inline bool absent(const TensorView& t) { return t.data == nullptr; }

struct Lay { int64_t n = 0, c = 0, p = 0; };

struct Shape {
  int64_t N = 1, C = 1, P = 1;
  int64_t elements() const { return N * C * P; }
};

inline int channel_axis(const NormDesc& desc, const TensorView& x) { return desc.channels_last ? x.ndim - 1 : 1; }

inline Shape shape_of(const NormDesc& desc, const TensorView& x) {
  Shape s;
  if (desc.kind == NormKind::layer) {
    for (int i = 0; i < x.ndim; ++i) (i < x.ndim - desc.trailing ? s.N : s.C) *= x.shape[i];
    return s;
  }
  const int channel = channel_axis(desc, x);
  s.N = x.shape[0], s.C = x.shape[channel];
  for (int i = 1; i < x.ndim; ++i)
    if (i != channel) s.P *= x.shape[i];
  return s;
}

// The stride of axes [first, last) as one; false where they are not one in memory. 0 for a single element.
inline bool merged_stride(const TensorView& t, int first, int last, int64_t* stride) {
  *stride = 0;
  bool found = false;
  int64_t next = 0;  // what the next axis has to have, once there has been one
  for (int i = last - 1; i >= first; --i) {
    if (t.shape[i] == 1) continue;
    if (!found)
      *stride = t.strides[i];
    else if (t.strides[i] != next)
      return false;
    found = true;
    next = t.strides[i] * t.shape[i];
  }
  return true;
}

inline bool lay_of(const NormDesc& desc, const TensorView& t, Lay* lay) {
  if (desc.kind == NormKind::layer)
    return merged_stride(t, 0, t.ndim - desc.trailing, &lay->n) &&
           merged_stride(t, t.ndim - desc.trailing, t.ndim, &lay->c);
  const int channel = channel_axis(desc, t);
  lay->n = t.strides[0], lay->c = t.strides[channel];
  return desc.channels_last ? merged_stride(t, 1, t.ndim - 1, &lay->p) : merged_stride(t, 2, t.ndim, &lay->p);
}

inline bool same_shape(const TensorView& a, const TensorView& b) {
  if (a.ndim != b.ndim) return false;
  return std::equal(a.shape, a.shape + a.ndim, b.shape);
}

inline Status check_vector(const NormDesc& desc, const TensorView& x, const TensorView& v, int64_t channels) {
  if (absent(v)) return Status::ok;
  if (v.dtype != x.dtype) return Status::bad_dtype;
  if (desc.kind != NormKind::layer) return v.ndim == 1 && v.shape[0] == channels ? Status::ok : Status::bad_shape;
  if (v.ndim != desc.trailing) return Status::bad_shape;
  for (int i = 0; i < v.ndim; ++i)
    if (v.shape[i] != x.shape[x.ndim - desc.trailing + i]) return Status::bad_shape;
  int64_t stride = 0;
  return merged_stride(v, 0, v.ndim, &stride) ? Status::ok : Status::unsupported;
}

inline Status check_shape(const NormDesc& desc, const TensorView& x, Shape* shape) {
  if (!computes(x)) return Status::bad_dtype;
  if (desc.kind == NormKind::layer ? desc.trailing < 1 || x.ndim < desc.trailing : x.ndim < 2) return Status::bad_rank;
  int64_t elements = 1;
  for (int i = 0; i < x.ndim; ++i)
    if (__builtin_mul_overflow(elements, std::max<int64_t>(1, x.shape[i]), &elements)) return Status::overflow;
  *shape = shape_of(desc, x);
  if (shape->C < 1) return Status::bad_shape;
  if (desc.kind == NormKind::group && desc.groups > 0 && shape->C % desc.groups) return Status::bad_groups;
  return Status::ok;
}

// All that can be refused of a call on a device's arrays but their order in memory.
inline Status check_norm(Device device, const NormDesc& desc, const NormOperands& o, Shape* shape) {
  Status s = check_device(
      device, {&o.x, &o.y, &o.weight, &o.bias, &o.residual, &o.running_mean, &o.running_var, &o.mean, &o.inv_std});
  if (s != Status::ok) return s;
  s = check_shape(desc, o.x, shape);
  if (s != Status::ok) return s;
  if (o.y.dtype != o.x.dtype || (!absent(o.residual) && o.residual.dtype != o.x.dtype)) return Status::bad_dtype;
  if (!same_shape(o.x, o.y)) return Status::bad_output;
  if (!absent(o.residual) && !same_shape(o.x, o.residual)) return Status::bad_shape;
  for (const TensorView* v : {&o.weight, &o.bias})
    if ((s = check_vector(desc, o.x, *v, shape->C)) != Status::ok) return s;
  const bool batch = desc.kind == NormKind::batch;
  for (const TensorView* v : {&o.running_mean, &o.running_var, &o.mean, &o.inv_std})
    if (batch && (s = check_vector(desc, o.x, *v, shape->C)) != Status::ok) return s;
  if (batch && !desc.training && (absent(o.running_mean) || absent(o.running_var))) return Status::unsupported;
  if (batch && desc.training && shape->N * shape->P < 2) return Status::empty_output;
  return Status::ok;
}

inline Status check_norm_backward(Device device, const NormDesc& desc, const NormGradients& o, Shape* shape) {
  Status s = check_device(device, {&o.dy, &o.x, &o.weight, &o.mean, &o.inv_std, &o.y, &o.dx, &o.dw, &o.db});
  if (s != Status::ok) return s;
  s = check_shape(desc, o.dy, shape);
  if (s != Status::ok) return s;
  for (const TensorView* v : {&o.x, &o.y, &o.dx}) {
    if (absent(*v)) continue;
    if (v->dtype != o.dy.dtype) return Status::bad_dtype;
    if (!same_shape(o.dy, *v)) return v == &o.dx ? Status::bad_output : Status::bad_shape;
  }
  if (absent(o.x)) return Status::bad_shape;
  for (const TensorView* v : {&o.weight, &o.mean, &o.inv_std})
    if ((s = check_vector(desc, o.dy, *v, shape->C)) != Status::ok) return s;
  for (const TensorView* v : {&o.dw, &o.db})
    if ((s = check_vector(desc, o.dy, *v, shape->C)) != Status::ok) return s;
  const bool batch = desc.kind == NormKind::batch;
  if (batch && (absent(o.mean) || absent(o.inv_std))) return Status::bad_shape;
  if (!batch && !absent(o.y)) return Status::unsupported;
  return Status::ok;
}

inline NormDesc response_axes(const ResponseDesc& desc) {
  NormDesc axes;
  axes.kind = NormKind::channels;
  axes.channels_last = desc.channels_last;
  return axes;
}

// x, the result and, for a gradient, dy.
inline Status check_response(Device device, const ResponseDesc& desc, const TensorView& x, const TensorView& result,
                             const TensorView& dy, Shape* shape) {
  Status s = check_device(device, {&x, &result, &dy});
  if (s != Status::ok) return s;
  s = check_shape(response_axes(desc), x, shape);
  if (s != Status::ok) return s;
  if (desc.size < 1) return Status::bad_stride;
  if (result.dtype != x.dtype || (!absent(dy) && dy.dtype != x.dtype)) return Status::bad_dtype;
  if (!absent(dy) && !same_shape(x, dy)) return Status::bad_shape;
  if (!same_shape(x, result)) return Status::bad_output;
  return Status::ok;
}

}  // namespace fastconv::ops::norms
