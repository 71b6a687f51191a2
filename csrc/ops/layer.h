// What the layers of conv.cc, separable.cc and inverted.cc share: their operands in canonical form, weights and vectors
// made ready.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "fastconv/conv.h"
#include "ops/conv_checks.h"
#include "ops/dense.h"
#include "ops/memory.h"
#include "ops/parallel.h"

namespace fastconv::ops {

// Scratch of a task, beside packed weights, that blocks are made smaller for.
constexpr int64_t kMostScratch = 2 << 20;

// Wide layers: makes the blocks of a product whose input is computed smaller, until `workspace` is within the limit. No
// bits depend on blocks.
template <class F>
void limit_block(const DenseJob& job, Choice* c, const Machine& m, int64_t item_size, F workspace) {
  // What a block takes beside its input and a moved output is a few times the size of those.
  if (c->pixel_block * std::max(c->chunks[0].channels, job.K) * item_size < kMostScratch / 16) return;
  const int64_t wide = preferred_vectors(m);
  const int64_t unit = c->role == Role::pixel_rows ? 2 * m.tile_rows[wide] : wide * m.lanes;
  while (c->pixel_block > unit && workspace() > kMostScratch)
    c->pixel_block = std::max(unit, c->pixel_block * 3 / 4 / unit * unit);
}

// The columns of a block of a product at most: blocks are a little wider where that saves a narrow one.
inline int64_t most_columns(const Choice& c, const Machine& m) {
  return c.pixel_block + c.pixel_block / 4 + m.max_vectors * m.lanes;
}

// The 1x1 convolution that precedes or follows a depthwise one: its images have the same axes.
inline ConvDesc pointwise_desc(const ConvDesc& desc) {
  ConvDesc d;
  d.spatial = desc.spatial;
  d.channels_last = desc.channels_last;
  return d;
}

template <class T>
void clamp_bounds(const Activation& act, int32_t* kind, T* a, T* b) {
  *kind = static_cast<int32_t>(act.kind);
  *a = static_cast<T>(act.a);
  *b = static_cast<T>(act.b);
  // The tile applies every clamp as max and min against a and b.
  if (act.kind == ActivationKind::relu) *a = 0, *b = std::numeric_limits<T>::infinity();
  if (act.kind == ActivationKind::relu6) *a = 0, *b = 6;
}

// scale * (acc + bias) + shift as scale * acc + (scale * bias + shift), in vectors of `n` entries. `buffer` holds 2 n.
template <class T>
Finish<T> join_epilogue(const Epilogue& e, int64_t n, T* buffer) {
  Finish<T> f;
  clamp_bounds(e.act, &f.activation, &f.a, &f.b);
  auto at = [](const TensorView& v, int64_t i) { return static_cast<const T*>(v.data)[i * v.strides[0]]; };
  if (!absent(e.scale)) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = at(e.scale, i);
    f.scale = buffer;
  }
  if (!absent(e.bias) || !absent(e.shift)) {
    T* shift = buffer + n;
    for (int64_t i = 0; i < n; ++i) {
      T v = absent(e.bias) ? T{0} : at(e.bias, i);
      if (!absent(e.scale)) v *= at(e.scale, i);
      shift[i] = absent(e.shift) ? v : v + at(e.shift, i);
    }
    f.shift = shift;
  }
  return f;
}

template <class T>
InputMap<T> join_prologue(const Prologue& p, int64_t n, T* buffer) {
  InputMap<T> map{};
  map.activation = static_cast<int32_t>(p.act.kind);
  map.a = static_cast<T>(p.act.a), map.b = static_cast<T>(p.act.b);
  auto copy = [n](const TensorView& v, T* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<const T*>(v.data)[i * v.strides[0]];
    return to;
  };
  if (!absent(p.scale)) map.scale = copy(p.scale, buffer);
  if (!absent(p.shift)) map.shift = copy(p.shift, buffer + n);
  if (!absent(p.gate)) map.gate = static_cast<const T*>(p.gate.data), map.gate_stride = p.gate.strides[1];
  map.active = map.scale || map.shift || map.gate || map.activation;
  return map;
}

inline bool has_prologue(const Prologue& p) {
  return !absent(p.scale) || !absent(p.shift) || !absent(p.gate) || p.act.kind != ActivationKind::none;
}

// Strides of an output that does not exist yet: contiguous in the order that the caller is going to allocate.
inline Strides dense_strides(bool channels_last, int64_t channels, const int64_t size[3]) {
  Strides s{};
  if (channels_last) {
    s.c = 1;
    s.s[2] = channels;
    s.s[1] = s.s[2] * size[2];
    s.s[0] = s.s[1] * size[1];
    s.n = s.s[0] * size[0];
  } else {
    s.s[2] = 1;
    s.s[1] = size[2];
    s.s[0] = s.s[1] * size[1];
    s.c = s.s[0] * size[0];
    s.n = s.c * channels;
  }
  return s;
}

// What conv_decide() would say of a product that a layer of several has decided.
template <class T>
Decision half_decision(const Run<T>& run, const Machine& m, const Geometry& g, double bytes);

template <class T>
void bind_runs(std::vector<Run<T>>& runs, const void* input, const void* weight, void* output, const void* residual) {
  for (Run<T>& run : runs) run.bind(input, weight, output, residual);
}

// Looks at the weights of all runs and packs them into one block; runs that read the weights in place keep null.
template <class T>
Status prepare_weights(std::vector<Run<T>>& runs, const Machine& m, const KernelTable<T>& kernels, bool keep,
                       Block* block) {
  int64_t total = 0;
  for (Run<T>& run : runs) run.skip_zeros = may_skip_zeros<T>(run.job, run.choice, m, keep);
  for (const Run<T>& run : runs) total += packed_size(run.job, run.choice, m, keep);
  if (total == 0 && !runs[0].choice.depthwise) return Status::ok;
  *block = Block(total * static_cast<int64_t>(sizeof(T)));
  if (block->failed()) return Status::out_of_memory;
  return pack_runs(runs, m, kernels, keep, static_cast<T*>(block->data()));
}

// A copy between two tensors of one shape. Each task copies some rows of one image, all channels: either side's
// neighbours are then soon met again.
template <class T>
Status copy_tensor(const KernelTable<T>& kernels, const Geometry& g, bool in_side, const T* from, const Strides& f,
                   T* to, const Strides& t) {
  const int64_t channels = g.G * (in_side ? g.C : g.K);
  const int64_t* size = in_side ? g.in : g.out;
  const int64_t rows = size[0] * size[1];
  const int64_t step = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, channels * size[2]));
  const int64_t parts = (rows + step - 1) / step;
  const double work = static_cast<double>(g.N * channels) * static_cast<double>(rows * size[2]);
  return parallel_for(g.N * parts, work, [&](int64_t i, int) {
    const int64_t n = i / parts, first = i % parts * step, last = std::min(rows, first + step);
    for (int64_t row = first; row < last; ++row) {
      const int64_t d = row / size[1], h = row % size[1];
      const T* source = from + n * f.n + d * f.s[0] + h * f.s[1];
      T* target = to + n * t.n + d * t.s[0] + h * t.s[1];
      if (f.s[2] == 1 && t.c == 1) {
        kernels.turn_block(TurnArgs<T>{source, target, channels, size[2], f.c, t.s[2]});
        continue;
      }
      if (f.c == 1 && t.s[2] == 1) {
        kernels.turn_block(TurnArgs<T>{source, target, size[2], channels, f.s[2], t.c});
        continue;
      }
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t w = 0; w < size[2]; ++w) target[c * t.c + w * t.s[2]] = source[c * f.c + w * f.s[2]];
    }
  });
}

// Whether images of one shape lie alike. The stride of an axis of one element says nothing; NumPy keeps any.
inline bool same_image(int64_t channels, const int64_t size[3], const Strides& a, const Strides& b) {
  bool same = channels == 1 || a.c == b.c;
  for (int i = 0; i < 3; ++i) same = same && (size[i] == 1 || a.s[i] == b.s[i]);
  return same;
}

}  // namespace fastconv::ops
