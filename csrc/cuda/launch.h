// The GPU's side of the public C++ API: one entry point an operation, with the CPU's descriptors and operands, whose
// data lie in the memory of the current device, and a queue. Nothing here allocates or synchronises; a status other
// than `ok` means that nothing was launched, but for device_error.
#pragma once
#include "fastconv/backend.h"

namespace fastconv::cuda {

Status map_forward(const Activation& act, const TensorView& x, const TensorView& y, const Queue& queue);
Status map_add(const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y,
               const Queue& queue);
Status map_backward(const Activation& act, const TensorView& dy, const TensorView& x, const TensorView& dx,
                    const Queue& queue);

// Indices that point outside their image, which the CPU refuses, cannot be refused here without waiting for the device:
// a gradient passes them over and an unpooling's too; where they are read from the result is NaN. Indices of a gradient
// count where they lie in their window, as those of the forward pass do.
Status pool_forward(const PoolDesc& desc, const TensorView& x, const TensorView& y, const TensorView& indices,
                    const Queue& queue);
int64_t pool_backward_workspace(const PoolDesc& desc, const TensorView& x, bool indices);
Status pool_backward(const PoolDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& indices,
                     const TensorView& dx, const Queue& queue);
int64_t unpool_forward_workspace(const TensorView& y);
Status unpool_forward(int32_t spatial, bool channels_last, const TensorView& x, const TensorView& indices,
                      const TensorView& y, const Queue& queue);
Status unpool_backward(int32_t spatial, bool channels_last, const TensorView& dy, const TensorView& indices,
                       const TensorView& dx, const Queue& queue);

// Arrays that are one dense run, alike; `unsupported` is left to the caller, who copies.
Status softmax_run(int32_t axis, bool logarithm, const TensorView& x, const TensorView& y, const Queue& queue);
Status softmax_backward(int32_t axis, bool logarithm, const TensorView& dy, const TensorView& y, const TensorView& dx,
                        const Queue& queue);

// Arrays whose pixels are one axis in memory; `unsupported` likewise.
int64_t norm_workspace(const NormDesc& desc, const NormOperands& operands);
Status norm_run(const NormDesc& desc, const NormOperands& operands, const Queue& queue);
int64_t norm_backward_workspace(const NormDesc& desc, const NormGradients& operands);
Status norm_backward(const NormDesc& desc, const NormGradients& operands, const Queue& queue);
Status response_run(const ResponseDesc& desc, const TensorView& x, const TensorView& y, const Queue& queue);
Status response_backward(const ResponseDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& dx,
                         const Queue& queue);

// Layers of less than 2^31 pixels on either side (`overflow`); algorithms other than the direct one are refused.
// All checks of a call, without one.
Status conv_check(const ConvDesc& desc, Pass pass, const ConvOperands& operands);
int64_t conv_workspace(const ConvDesc& desc, Pass pass, const ConvOperands& operands);
Status conv_run(const ConvDesc& desc, Pass pass, const ConvOperands& operands, const Queue& queue);
Status conv_decide(const ConvDesc& desc, Pass pass, const ConvOperands& operands, Decision* out, const Queue& queue);
Status conv_backward_bias(const ConvDesc& desc, const TensorView& dy, const TensorView& db, bool accumulate,
                          const Queue& queue);

// Depthwise layers: dx, dw and db in one pass. 0 and `unsupported` for others.
int64_t conv_backward_workspace(const ConvDesc& desc, const ConvGradients& operands);
Status conv_backward(const ConvDesc& desc, const ConvGradients& operands, const Queue& queue);

// Stage by stage.
int64_t separable_workspace(const ConvDesc& desc, const SeparableOperands& operands);
Status separable_run(const ConvDesc& desc, const SeparableOperands& operands, const Queue& queue);
int64_t inverted_workspace(const ConvDesc& desc, const InvertedOperands& operands);
Status inverted_run(const ConvDesc& desc, const InvertedOperands& operands, const Queue& queue);

// The row of the table of devices.
extern const Backend backend;

}  // namespace fastconv::cuda
