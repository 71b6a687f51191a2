// What the convolution kernels share: the geometry, and the elements of each side as a product reads them.
//
// As on the CPU, a layer is the plain convolution y = conv(in, w), of which a pass is one of three products:
//   fprop   out from in and w      dgrad   in from out and w      wgrad   w from in and out
// A transposed layer's forward pass is dgrad, its input gradient fprop.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/index.h"
#include "ops/conv_checks.h"

namespace fastconv::cuda {

using ops::Geometry;
using ops::Strides;
using ops::WeightStrides;

enum class Product { fprop, dgrad, wgrad };

constexpr int kConvThreads = 256;

// The pixels of one side, numbered image by image.
struct Pixels {
  Divider size[3];
  int64_t count = 0;
};

struct Pixel { int n, at[3]; };

__device__ __forceinline__ Pixel pixel_of(const Pixels& p, int64_t number) {
  auto rest = static_cast<uint32_t>(number);
  Pixel pixel{};
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const uint32_t q = p.size[a].quotient(rest);
    pixel.at[a] = static_cast<int>(rest - q * p.size[a].divisor);
    rest = q;
  }
  pixel.n = static_cast<int>(rest);
  return pixel;
}

// The activation of an input as it is read: gate * act(scale * x + shift), by channel of the whole tensor.
template <class T>
struct Before {
  const T *scale, *shift, *gate;
  int64_t scale_stride, shift_stride, gate_n, gate_c;
  Act<Acc<T>> act;
  bool active;
};

// act(scale * (sum + bias) + shift + residual), or an addition to what is there.
template <class T>
struct After {
  const T *bias, *scale, *shift, *residual;
  int64_t bias_stride, scale_stride, shift_stride;
  Strides residual_strides;
  Act<Acc<T>> act;
  bool accumulate;
};

struct ConvShape {
  int G, C, K;  // channels of a group
  int in[3], out[3], filter[3], dilation[3], pad[3], pad_after[3];
  Divider stride[3], taps[3];  // taps: the filter's sizes
  PaddingMode mode;
  Pixels in_pixels, out_pixels;
  Strides is, os;
  WeightStrides ws;
  int tap_count;
};

// kPrepared: the layer has a prologue; kernels without one hold none of its code.
template <bool kPrepared, class T>
__device__ __forceinline__ Acc<T> prepared(const Before<T>& b, Acc<T> x, int n, int channel) {
  if constexpr (!kPrepared) return x;
  if (b.scale) x *= widen(b.scale[channel * b.scale_stride]);
  if (b.shift) x += widen(b.shift[channel * b.shift_stride]);
  Acc<T> v[1] = {x};
  activate(b.act, v);
  if (b.gate) v[0] *= widen(b.gate[n * b.gate_n + channel * b.gate_c]);
  return v[0];
}

struct Tap { int at[3]; };

__device__ __forceinline__ Tap tap_of(const ConvShape& s, int number) {
  auto rest = static_cast<uint32_t>(number);
  Tap tap{};
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const uint32_t q = s.taps[a].quotient(rest);
    tap.at[a] = static_cast<int>(rest - q * s.taps[a].divisor);
    rest = q;
  }
  return tap;
}

// in at an output pixel and a tap: 0 in zero padding.
template <bool kPrepared, class T>
__device__ __forceinline__ Acc<T> in_value(const ConvShape& s, const Before<T>& before, const T* in, const Pixel& out,
                                           const Tap& tap, int channel) {
  int64_t offset = out.n * s.is.n + channel * s.is.c;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int64_t at = static_cast<int64_t>(out.at[a]) * s.stride[a].divisor - s.pad[a] +
                       static_cast<int64_t>(tap.at[a]) * s.dilation[a];
    const int64_t mapped = ops::map_index(s.mode, at, s.in[a]);
    if (mapped < 0) return Acc<T>(0);
    offset += mapped * s.is.s[a];
  }
  return prepared<kPrepared>(before, widen(in[offset]), out.n, channel);
}

// The padded coordinates of an axis that are read from element i of n, in their order: i itself, and those of its
// border.
struct Preimages {
  int n, i, before, after;
  PaddingMode mode;
  static constexpr int kNone = -0x7FFFFFFF - 1;
  // The next one after `u` (kNone before the first); kNone where there is none.
  FASTCONV_BOTH constexpr int next(int u) const {
    int from = u == kNone ? -before : u + 1;
    if (mode == PaddingMode::zeros) return from <= i ? i : kNone;
    for (; from < n + after; ++from) {
      // Inside there is i alone.
      if (from >= 0 && from < n) from = from <= i ? i : n;
      if (from < n + after && ops::map_index(mode, from, n) == i) return from;
    }
    return kNone;
  }
  FASTCONV_BOTH constexpr bool several() const { return next(kNone) != i || next(i) != kNone; }
};

// The sum of out over the pixels that read input pixel `in` by a tap: one at most where the padding is zeros.
template <bool kPrepared, class T>
__device__ __forceinline__ Acc<T> out_value(const ConvShape& s, const Before<T>& before, const T* out, const Pixel& in,
                                            const Tap& tap, int channel) {
  const int64_t base = in.n * s.os.n + channel * s.os.c;
  auto offset_along = [&](int a, int u, int64_t* offset) {
    const int ahead = u + s.pad[a] - tap.at[a] * s.dilation[a];
    if (ahead < 0) return false;
    const auto o = static_cast<int>(s.stride[a].quotient(static_cast<uint32_t>(ahead)));
    if (o * static_cast<int>(s.stride[a].divisor) != ahead || o >= s.out[a]) return false;
    *offset = o * s.os.s[a];
    return true;
  };
  if (s.mode == PaddingMode::zeros) {
    int64_t offset = base;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      int64_t step = 0;
      if (!offset_along(a, in.at[a], &step)) return Acc<T>(0);
      offset += step;
    }
    return prepared<kPrepared>(before, widen(out[offset]), in.n, channel);
  }
  Preimages p[3];
#pragma unroll
  for (int a = 0; a < 3; ++a) p[a] = {s.in[a], in.at[a], s.pad[a], s.pad_after[a], s.mode};
  Acc<T> sum = 0;
  for (int d = p[0].next(Preimages::kNone); d != Preimages::kNone; d = p[0].next(d)) {
    int64_t od = 0, oh = 0, ow = 0;
    if (!offset_along(0, d, &od)) continue;
    for (int h = p[1].next(Preimages::kNone); h != Preimages::kNone; h = p[1].next(h)) {
      if (!offset_along(1, h, &oh)) continue;
      for (int w = p[2].next(Preimages::kNone); w != Preimages::kNone; w = p[2].next(w))
        if (offset_along(2, w, &ow)) sum += widen(out[base + od + oh + ow]);
    }
  }
  return sum;
}

__device__ __forceinline__ int64_t weight_offset(const ConvShape& s, int g, int k, int c, const Tap& tap) {
  return g * s.ws.g + k * s.ws.k + c * s.ws.c + tap.at[0] * s.ws.f[0] + tap.at[1] * s.ws.f[1] + tap.at[2] * s.ws.f[2];
}

__device__ __forceinline__ int64_t offset_in(const Strides& s, const Pixel& at, int channel) {
  return at.n * s.n + channel * s.c + at.at[0] * s.s[0] + at.at[1] * s.s[1] + at.at[2] * s.s[2];
}

// A result as its activation takes it.
template <class T>
__device__ __forceinline__ Acc<T> finished(const After<T>& after, const Pixel& at, int channel, Acc<T> sum) {
  if (after.bias) sum += widen(after.bias[channel * after.bias_stride]);
  if (after.scale) sum *= widen(after.scale[channel * after.scale_stride]);
  if (after.shift) sum += widen(after.shift[channel * after.shift_stride]);
  if (after.residual) sum += widen(after.residual[offset_in(after.residual_strides, at, channel)]);
  return sum;
}

// Writes one element of a result, of the side with these strides.
template <class T>
__device__ __forceinline__ void store_result(const After<T>& after, T* to, const Strides& strides, const Pixel& at,
                                             int channel, Acc<T> value) {
  T* place = to + offset_in(strides, at, channel);
  *place = narrow<T>(after.accumulate ? value + widen(*place) : value);
}

// --- for the host's side -----------------------------------------------------------------------------------------

// Groups of so few channels written leave a tile of the product empty: they go by the kernels of depthwise.cu.
constexpr int64_t kThin = 8;

// The pieces that a weight gradient's sum over pixels is cut into: by its length alone.
struct Cut {
  int64_t length, pieces;
  explicit Cut(int64_t pixels, int64_t least) : length(least) {
    while (ceil_div(pixels, length) > 64) length *= 2;
    pieces = ceil_div(pixels, length);
  }
};

// Of `product`, the pieces; each holds sums of the size of the weight in the accumulator's type.
Cut thin_cut(int64_t pixels);

template <class T>
Status run_thin(Product product, const ConvShape& s, const Before<T>& before, const After<T>& after, T* in, T* out,
                T* w, const Queue& queue);

// Depthwise layers by tiles in shared memory (depthwise_tile.cu), forward and the gradients that are wanted, which
// share one pass; `unsupported`, before anything is launched, where the layer has none. x, y and dy are the layer's: a
// transposed one's x is the side of outputs.
template <class T>
struct DepthwiseGradients {
  T *dx, *dw, *db;  // null: not wanted; dw is one run
  Strides dx_strides;
  int64_t db_stride;
  bool accumulate_dx, accumulate_dw, accumulate_db;
};
template <class T>
Status run_depthwise(bool transposed, const ConvShape& s, const After<T>& after, const T* x, const T* w, T* y,
                     const Queue& queue);
// At least 1 where the pass is served; 0 where it is not.
template <class T>
int64_t depthwise_backward_workspace(bool transposed, const ConvShape& s, const DepthwiseGradients<T>& to);
template <class T>
Status run_depthwise_backward(bool transposed, const ConvShape& s, const T* x, const T* dy, const T* w,
                              const DepthwiseGradients<T>& to, const Queue& queue);

// Dense layers on the tensor cores (mma.cu). Whether a product goes there depends on the layer and its options, never
// on the batch or on addresses: the bits of a result do.
template <class T>
bool on_tensor_cores(Product product, const ConvShape& s, Precision precision);
template <class T>
int64_t tensor_core_workspace(Product product, const ConvShape& s);
// The tile and the terms of a step, for explain(); `prepared`: the layer has a prologue.
template <class T>
void describe_tensor_cores(Product product, const ConvShape& s, Precision precision, bool prepared, Decision* d);
// Where on_tensor_cores().
template <class T>
Status run_tensor_cores(Product product, const ConvShape& s, Precision precision, const Before<T>& before,
                        const After<T>& after, T* in, T* out, T* w, const Queue& queue);

// Joins the pieces of a weight gradient in their order; dw is one run of `count` elements.
template <class T>
Status join_pieces(const Acc<T>* pieces, int64_t count, int64_t number, bool accumulate, T* dw, const Queue& queue);

}  // namespace fastconv::cuda
