// The geometry of a pooling layer, lifted to three axes, that its plain and its vector paths share.
#pragma once
#include <cmath>
#include <cstdint>

#include "fastconv/pool.h"
#include "ops/shape.h"

namespace fastconv::ops {

// The elements of an axis that a window covers: first, first + dilation, ...; the first of them is tap `tap`.
struct Window { int64_t first, count, tap; };
struct Range { int64_t begin, end; };

// A sum that carries what its roundings lose (Neumaier), for windows of any size.
struct Sum {
  double total = 0, lost = 0;
  void add(double x) {
    const double next = total + x;
    lost += std::abs(total) >= std::abs(x) ? (total - next) + x : (x - next) + total;
    total = next;
  }
  // An infinity leaves a NaN among the losses.
  double value() const { return std::isfinite(lost) ? total + lost : total; }
};

struct Axis {
  int64_t in = 1, out = 1, kernel = 1, stride = 1, dilation = 1, pad = 0, pad_after = 0;
  bool adaptive = false;  // kernel: an upper bound

  Window window(int64_t o) const;
  // The windows that reach into [i0, i1), and maybe some between them that do not.
  Range touching(int64_t i0, int64_t i1) const;
  // The length of window o with its padding, as far as the padding goes.
  int64_t pool_size(int64_t o) const;
};

struct Pool {
  DType dtype;
  PoolKind kind;
  int64_t N, C;
  Axis axis[3];
  bool count_include_pad;
  int64_t divisor;
  double norm;

  int64_t taps() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }
  int64_t in_pixels() const { return axis[0].in * axis[1].in * axis[2].in; }
  int64_t out_pixels() const { return axis[0].out * axis[1].out * axis[2].out; }
  // What the sum of a window is divided by.
  int64_t divisor_of(int64_t od, int64_t oh, int64_t ow) const;
};

// The vector paths (pool_fast.cc); `served` says whether the call had one. What it refuses goes to the plain loops.
template <class T>
Status pool_forward_fast(const Pool& p, const T* x, const Strides& xs, T* y, const Strides& ys, int64_t* indices,
                         const Strides& is, bool* served);
template <class T>
Status pool_backward_fast(const Pool& p, const T* dy, const Strides& ys, const T* x, const Strides& xs, T* dx,
                          const Strides& ds, bool* served);

}  // namespace fastconv::ops
