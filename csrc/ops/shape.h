// All arithmetic on sizes: a layer as the user names it becomes a Geometry, and a pass becomes DenseJobs.
#pragma once
#include <cstdint>
#include <vector>

#include "fastconv/conv.h"

namespace fastconv::ops {

// Strides in elements of a tensor lifted to (N, C, D, H, W). Axes of size 1 carry the stride that makes them
// contiguous.
struct Strides { int64_t n, c, s[3]; };

// The plain convolution under a layer, lifted to three spatial axes. `in` is the side with C channels a group, `out`
// the side with K; a transposed layer's input is `out`.
struct Geometry {
  DType dtype;
  int64_t N, G, C, K;  // C and K are per group
  int64_t in[3], out[3], filter[3], stride[3], dilation[3], pad[3], pad_after[3];
  PaddingMode mode;
  int64_t taps() const { return filter[0] * filter[1] * filter[2]; }
  double macs() const { return static_cast<double>(N) * G * C * K * taps() * out[0] * out[1] * out[2]; }
};

// The phases of a stride as output channels of one product: channel f * K + k of pixel q is output k at q * phases + f
// - first, along each axis, where that is in [0, extent).
struct Fan {
  int64_t phases[3], first[3], extent[3];
  bool copied;  // the weights are what join_weights() makes of the layer's
  bool padded;  // some of them are zeros that stand for taps that a phase lacks
  int64_t count() const { return phases[0] * phases[1] * phases[2]; }  // 0: none
};

// One dense product, whatever pass it came from: out(k, o) = sum over c, f of w(k, c, f) * in(c, o * stride - pad + f *
// dilation). pad may be negative (cropping); filter may be empty along an axis (the sum is then zero).
struct DenseJob {
  int64_t N, G, C, K;
  int64_t in[3], out[3], filter[3], stride[3], dilation[3], pad[3];
  PaddingMode mode;
  const void* input;
  Strides is;
  void* output;
  Strides os;
  const void* residual;
  bool has_residual;
  Strides rs;
  const void* weight;
  int64_t wg, wk, wc, wf[3];  // strides of group, output channel, input channel, tap
  bool phase;                 // one of several products whose weights lie between each other's
  int64_t most_taps;          // along the columns, of any of them; more than 3 where there is more than one plane
  Fan fan;  // K counts its phases, `output` and `residual` are those of pixel 0, and strides of theirs
  int64_t taps() const { return filter[0] * filter[1] * filter[2]; }
  int64_t pixels() const { return out[0] * out[1] * out[2]; }
};

// The geometry of a layer from the shapes of its input and weight.
Status make_geometry(const ConvDesc& desc, const TensorView& x, const TensorView& w, Geometry* geometry);

// Checks that `view` has the shape of the geometry's `in` (or `out`) side in the axes of `desc` and lifts its strides.
Status lift(const ConvDesc& desc, const Geometry& geometry, bool in_side, const TensorView& view, Strides* strides);
// Likewise for the weight: strides of output channel, input channel and taps, with the group's.
struct WeightStrides { int64_t g, k, c, f[3]; };
Status lift_weight(const ConvDesc& desc, const Geometry& geometry, const TensorView& w, WeightStrides* strides);

// Where padded coordinate i of an axis of n elements is read; -1: a zero.
constexpr int64_t map_index(PaddingMode mode, int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  switch (mode) {
    case PaddingMode::zeros: return -1;
    case PaddingMode::reflect: return i < 0 ? -i : 2 * (n - 1) - i;
    case PaddingMode::replicate: return i < 0 ? 0 : n - 1;
    case PaddingMode::circular: return i < 0 ? i + n : i - n;
  }
  return -1;
}

// The product that computes y from x.
DenseJob fprop_job(const Geometry& geometry, const Strides& x, const Strides& y, const Strides* residual,
                   const WeightStrides& w);
// The products that compute the part [origin, origin + extent) of the gradient of the padded input, one for each
// residue of the stride; `dx` strides are those of the destination, whose first element is the part's corner. The
// offsets of output, residual (may be null) and weight from their tensors' first elements are returned in elements.
struct PhaseJob {
  DenseJob job;
  int64_t output_offset, residual_offset, weight_offset;
};
std::vector<PhaseJob> dgrad_jobs(const Geometry& geometry, const int64_t origin[3], const int64_t extent[3],
                                 const Strides& dy, const Strides& dx, const Strides* residual, const WeightStrides& w);

// All phases of the gradient of the whole input as one product, of one group; its weights, K * C * taps elements.
PhaseJob joined_job(const Geometry& geometry, const Strides& dy, const Strides& dx, const Strides* residual,
                    const WeightStrides& w);
template <class T>
void join_weights(const Geometry& geometry, const WeightStrides& from, const T* w, const DenseJob& job, T* to);

// Joins axes that are one axis in memory on every side (a 1x1 convolution runs over one row of pixels).
void merge_axes(DenseJob* job);
// The images of a batch as the planes of one image, where it has one plane; false, and nothing is changed, elsewhere.
bool join_images(DenseJob* job);
// Along axes where a single tap moves by more than a pixel, the input becomes what is read of it: nobody copies the
// rest.
void skip_pixels(DenseJob* job);
// Groups of as many channels out as in, as if each channel were a group. The strides of the weights stay.
void split_groups(DenseJob* job);

// Whether the flattened pixels of a tensor are `step` elements apart throughout.
bool uniform_pixels(const int64_t out[3], const Strides& s, int64_t* step);

}  // namespace fastconv::ops
