// The geometry of a pooling layer, lifted to three axes, that its plain and its vector paths share.
#pragma once
#include <cmath>
#include <cstdint>

#include "fastconv/pool.h"
#include "ops/shape.h"
#include "ops/window.h"

namespace fastconv::ops {

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

// Checks the layer and lifts it.
Status make_pool(const PoolDesc& desc, const TensorView& x, Pool* pool);
// Checks that `view` has the images of the `out` (else the `in`) side and lifts its strides.
Status lift_side(const PoolDesc& desc, const Pool& p, bool out, const TensorView& view, Strides* strides);

// All that can be refused of a call on a device's arrays, but for the values of indices.
Status check_pool_forward(Device device, const PoolDesc& desc, const TensorView& x, const TensorView& y,
                          const TensorView& indices, Pool* p, Strides* xs, Strides* ys, Strides* is);
Status check_pool_backward(Device device, const PoolDesc& desc, const TensorView& dy, const TensorView& x,
                           const TensorView& indices, const TensorView& dx, Pool* p, Strides* ys, Strides* xs,
                           Strides* is, Strides* ds);

// Where the channels are, and the first of the spatial axes, in a batched tensor.
struct Axes { int channel, first; };
inline Axes axes_of(int32_t spatial, bool channels_last) { return channels_last ? Axes{spatial + 1, 1} : Axes{1, 2}; }

// A side of an operation that goes by flat positions: images of size[0] x size[1] x size[2].
struct Side {
  int64_t size[3];
  Strides s;
  int64_t pixels() const { return size[0] * size[1] * size[2]; }
  int64_t offset(int64_t position) const {
    const int64_t row = position / size[2];
    return row / size[1] * s.s[0] + row % size[1] * s.s[1] + position % size[2] * s.s[2];
  }
  // The distance of neighbours in scan order, where it is the same for all; 0 elsewhere.
  int64_t step() const {
    const int64_t w = size[2] > 1 ? s.s[2] : size[1] > 1 ? s.s[1] : s.s[0];
    const bool even = (size[1] == 1 || s.s[1] == size[2] * w) && (size[0] == 1 || s.s[0] == size[1] * size[2] * w);
    return even ? w : 0;
  }
};

// The two sides of an unpooling: small (x, indices) and large.
Status unpool_sides(Device device, int32_t spatial, bool channels_last, const TensorView& small,
                    const TensorView& indices, const TensorView& large, int64_t* N, int64_t* C, Side* s, Side* indexed,
                    Side* l);

// The vector paths (pool_fast.cc). They are gone through in order: the first that serves the call becomes the decision,
// which has the reasons against those before it, and runs it, where `run` says so. A decision without a path is left to
// the plain loops. Where nothing is run, data is not read.
template <class T>
Status pool_forward_fast(const Pool& p, const T* x, const Strides& xs, T* y, const Strides& ys, int64_t* indices,
                         const Strides& is, bool run, PathDecision* d);
template <class T>
Status pool_backward_fast(const Pool& p, const T* dy, const Strides& ys, const T* x, const Strides& xs, T* dx,
                          const Strides& ds, bool run, PathDecision* d);

}  // namespace fastconv::ops
