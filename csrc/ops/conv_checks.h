// The checks of convolutions, which the backends share.
#pragma once
#include "ops/device.h"
#include "ops/shape.h"

namespace fastconv::ops {

inline bool absent(const TensorView& t) { return t.data == nullptr; }

inline Status check_vector(const TensorView& v, DType dtype, int64_t n) {
  if (absent(v)) return Status::ok;
  if (v.dtype != dtype) return Status::bad_dtype;
  return v.ndim == 1 && v.shape[0] == n ? Status::ok : Status::bad_shape;
}

struct Layer {
  bool channels_last;  // memory order: that of the tensor the pass reads
  Geometry geometry;
  Algorithm algorithm;
  Strides x, y, r;
  WeightStrides w;
  int64_t in_channels, out_channels;
};

// Everything about a forward call that can be refused. y may be absent (for a decision or a plan).
inline Status check_forward(const ConvDesc& desc, const ConvOperands& o, Layer* layer) {
  Geometry& g = layer->geometry;
  Status s = make_geometry(desc, o.x, o.w, &g);
  layer->algorithm = desc.algorithm;
  if (s != Status::ok) return s;
  layer->channels_last = output_is_channels_last(desc, o.x);
  layer->in_channels = g.G * (desc.transposed ? g.K : g.C);
  layer->out_channels = g.G * (desc.transposed ? g.C : g.K);
  if ((s = lift(desc, g, !desc.transposed, o.x, &layer->x)) != Status::ok) return s;
  if ((s = lift_weight(desc, g, o.w, &layer->w)) != Status::ok) return s;
  if (!absent(o.y) && lift(desc, g, desc.transposed, o.y, &layer->y) != Status::ok) return Status::bad_output;
  if (!absent(o.epilogue.residual) &&
      (s = lift(desc, g, desc.transposed, o.epilogue.residual, &layer->r)) != Status::ok)
    return s;
  for (const TensorView* v : {&o.epilogue.bias, &o.epilogue.scale, &o.epilogue.shift})
    if ((s = check_vector(*v, g.dtype, layer->out_channels)) != Status::ok) return s;
  for (const TensorView* v : {&o.prologue.scale, &o.prologue.shift})
    if ((s = check_vector(*v, g.dtype, layer->in_channels)) != Status::ok) return s;
  const TensorView& gate = o.prologue.gate;
  if (!absent(gate)) {
    if (gate.dtype != g.dtype) return Status::bad_dtype;
    if (gate.ndim != 2 || gate.shape[0] != g.N || gate.shape[1] != layer->in_channels) return Status::bad_shape;
  }
  return Status::ok;
}

// The layer's operands for a gradient: x and y are both given, as data or as the output.
inline Status check_backward(const ConvDesc& desc, const ConvOperands& o, Pass pass, Layer* l) {
  Geometry& g = l->geometry;
  l->algorithm = desc.algorithm;
  Status s = make_geometry(desc, o.x, o.w, &g);
  if (s != Status::ok) return s;
  l->channels_last = output_is_channels_last(desc, o.y);
  // x is the side with C channels of a plain convolution and the side with K of a transposed one.
  const bool x_in = !desc.transposed;
  const Status sx = lift(desc, g, x_in, o.x, &l->x), sy = lift(desc, g, !x_in, o.y, &l->y),
               sw = lift_weight(desc, g, o.w, &l->w);
  if (sy != Status::ok) return sy;
  if (sx != Status::ok) return pass == Pass::backward_input ? Status::bad_output : sx;
  if (sw != Status::ok) return pass == Pass::backward_weight ? Status::bad_output : sw;
  if (pass == Pass::backward_weight) {
    // The gradient is written as one run of memory.
    int64_t expect = 1;
    for (int i = o.w.ndim - 1; i >= 0; --i) {
      if (o.w.shape[i] != 1 && o.w.strides[i] != expect) return Status::bad_output;
      expect *= o.w.shape[i];
    }
  }
  return Status::ok;
}

inline Status check_operands_device(Device device, const ConvOperands& o) {
  const Epilogue& e = o.epilogue;
  const Prologue& p = o.prologue;
  return check_device(device,
                      {&o.x, &o.w, &o.y, &e.bias, &e.scale, &e.shift, &e.residual, &p.scale, &p.shift, &p.gate});
}

inline Status check_backward_bias(Device device, const ConvDesc& desc, const TensorView& dy, const TensorView& db) {
  if (dy.ndim != desc.spatial + 2 || db.ndim != 1) return Status::bad_rank;
  const Status s = check_device(device, {&dy, &db});
  if (s != Status::ok) return s;
  if (dy.dtype != db.dtype || !computes(dy)) return Status::bad_dtype;
  return db.shape[0] == dy.shape[desc.channels_last ? desc.spatial + 1 : 1] ? Status::ok : Status::bad_output;
}

}  // namespace fastconv::ops
