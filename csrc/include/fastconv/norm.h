// Normalisation: batch, group (and instance) and layer norm, forward and backward.
//
//   y = act((x - mean) / sqrt(var + eps) * weight + bias + residual)
//
// A kind says what shares a mean and a variance: a channel over the batch, a group of channels of an image, the
// trailing axes of a row, or the channels of a pixel.
#pragma once
#include "fastconv/conv.h"
#include "fastconv/path.h"

namespace fastconv {

enum class NormKind : int32_t { batch = 0, group = 1, layer = 2, channels = 3 };

struct NormDesc {
  NormKind kind = NormKind::batch;
  bool channels_last = false;  // the axes: N C ... or N ... C (not of kind layer)
  int64_t groups = 0;          // kind group; 0: every channel is one (instance norm)
  int32_t trailing = 0;        // kind layer: the number of axes that are normalised over
  bool training = false;       // kind batch: by the batch's own statistics
  double eps = 1e-5;
  double momentum = 0.1;       // kind batch: running = (1 - momentum) * running + momentum * batch
  bool unbiased = true;        // the batch's variance in it: over count - 1, else over count
};

struct NormOperands {
  TensorView x, y;
  TensorView weight, bias;  // (C), or the trailing shape of kind layer; may be absent
  TensorView residual;      // the shape of x; may be absent
  Activation act;
  // Kind batch, (C) each. running_*: read in inference; updated in training where they are there. mean and inv_std: the
  // statistics that training writes.
  TensorView running_mean, running_var, mean, inv_std;
};

// Whether y is going to be allocated with its channels innermost (it follows x's strides).
bool norm_is_channels_last(const NormDesc& desc, const TensorView& x);

// Checks everything first. `unsupported`: a memory order that has to be copied into another before.
Status norm_run(const NormDesc& desc, const NormOperands& operands);
// How it is computed; no data is read.
Status norm_decide(const NormDesc& desc, const NormOperands& operands, PathDecision* decision);

struct NormGradients {
  TensorView dy, x;
  TensorView weight;           // absent: all ones
  TensorView mean, inv_std;    // kind batch: those of the forward pass
  TensorView y;  // the result of a clamp, whose gradient is 0 where y <= lower or y >= upper; may be absent
  double lower = 0, upper = 0;
  TensorView dx, dw, db;  // each may be absent
};
Status norm_backward(const NormDesc& desc, const NormGradients& operands);
Status norm_backward_decide(const NormDesc& desc, const NormGradients& operands, PathDecision* decision);

// y = x / (k + alpha / size * sum of x^2 over the channels [c - size / 2, c + (size - 1) / 2])^beta
struct ResponseDesc {
  bool channels_last = false;
  int64_t size = 5;
  double alpha = 1e-4, beta = 0.75, k = 1;
};
Status response_run(const ResponseDesc& desc, const TensorView& x, const TensorView& y);
Status response_backward(const ResponseDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& dx);
// dy: of a gradient.
Status response_decide(const ResponseDesc& desc, const TensorView& x, const TensorView& result, const TensorView& dy,
                       PathDecision* decision);

}  // namespace fastconv
