// Functions of single elements, and the softmax along an axis.
#pragma once
#include "fastconv/conv.h"
#include "fastconv/path.h"

namespace fastconv {

// All operands have one shape and lie alike in memory, dense in some order of the axes (else `unsupported`). y may be
// an operand itself.
Status map_forward(const Activation& act, const TensorView& x, const TensorView& y);                  // act(x)
Status map_add(const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y);  // act(x + z)
// dy * act'(x), where sigmoid and tanh are given act(x) as x.
Status map_backward(const Activation& act, const TensorView& dy, const TensorView& x, const TensorView& dx);

// How any of these is computed, z and dy being a second operand; no data is read.
Status map_decide(const TensorView& x, const TensorView& z, const TensorView& y, PathDecision* decision);

Status softmax_run(int32_t axis, bool logarithm, const TensorView& x, const TensorView& y);
Status softmax_backward(int32_t axis, bool logarithm, const TensorView& dy, const TensorView& y, const TensorView& dx);
// `second`: y of a gradient, absent else.
Status softmax_decide(int32_t axis, const TensorView& first, const TensorView& second, const TensorView& result,
                      PathDecision* decision);

}  // namespace fastconv
