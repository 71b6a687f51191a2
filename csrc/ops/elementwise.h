// The checks of elementwise functions and softmax, which the backends share.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "fastconv/elementwise.h"

namespace fastconv::ops {

inline int64_t elements_of(const TensorView& x) {
  int64_t n = 1;
  for (int i = 0; i < x.ndim; ++i) n *= x.shape[i];
  return n;
}

// `unsupported` is left to the backend: which memory orders it reads.
inline Status check_operands(Device device, const TensorView& x, std::initializer_list<const TensorView*> others,
                             const TensorView& y) {
  if (x.device != device || y.device != device) return Status::bad_device;
  if (!computes(x)) return Status::bad_dtype;
  int64_t elements = 1;
  for (int i = 0; i < x.ndim; ++i)
    if (__builtin_mul_overflow(elements, std::max<int64_t>(1, x.shape[i]), &elements)) return Status::overflow;
  auto alike = [&x](const TensorView& v) { return v.ndim == x.ndim && std::equal(x.shape, x.shape + x.ndim, v.shape); };
  for (const TensorView* v : others) {
    if (v->device != device) return Status::bad_device;
    if (v->dtype != x.dtype) return Status::bad_dtype;
    if (!alike(*v)) return Status::bad_shape;
  }
  if (y.dtype != x.dtype) return Status::bad_dtype;
  return alike(y) ? Status::ok : Status::bad_output;
}

// An axis as the user counts it, from 0.
inline Status axis_of(const TensorView& x, int32_t* axis) {
  if (*axis < -x.ndim || *axis >= x.ndim) return Status::bad_rank;
  if (*axis < 0) *axis += x.ndim;
  return Status::ok;
}

}  // namespace fastconv::ops
