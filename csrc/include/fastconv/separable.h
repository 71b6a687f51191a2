// Depthwise-separable convolution: a filter for each channel, then a product over the channels, in one pass.
#pragma once
#include <memory>

#include "fastconv/conv.h"

namespace fastconv {

//   u = inner.act(inner.scale * (depthwise(x, depthwise_weight) + inner.bias) + inner.shift)
//   y = epilogue of the 1x1 convolution of u with pointwise_weight
// depthwise_weight is (C * multiplier, 1, ...), pointwise_weight (K, C * multiplier, 1, ...). The descriptor is that of
// the depthwise half; its groups are C.
struct SeparableOperands {
  TensorView x, depthwise_weight, pointwise_weight, y;
  Epilogue inner;     // without a residual
  Epilogue epilogue;
};

// The shape of y, in the axes of the descriptor.
Status separable_output_shape(const ConvDesc& desc, const TensorView& x, const TensorView& depthwise_weight,
                              const TensorView& pointwise_weight, int64_t* shape);

// Where the channel multiplier is 1, u exists a block of pixels at a time; otherwise it is made as a whole.
Status separable_run(const ConvDesc& desc, const SeparableOperands& operands);

// How a layer is computed, for explain() and the tests. The run goes by the same object.
struct SeparableDecision {
  const char* unfused = nullptr;  // why the halves are two calls; null: u exists a block at a time
  Decision filter, product;       // of the halves; where they are one pass, of a task's block
  int64_t pixels = 0, channels = 0;  // of a block of u
  int64_t whole_bytes = 0;        // of u, where it is made as a whole
  int64_t packed_bytes = 0;       // weights, in a plan
  int64_t workspace = 0;          // scratch of a thread
  int64_t tasks = 0;              // of a single thread: blocks of y
  double flops = 0, bytes = 0;    // of both halves; x, the weights and the residual read once, y written
};
Status separable_decide(const ConvDesc& desc, const SeparableOperands& operands, SeparableDecision* decision);

// A prepared layer: immutable, safe in several threads; it keeps its own copy of the weights and vectors.
class SeparablePlan;
std::shared_ptr<const SeparablePlan> separable_plan(const ConvDesc& desc, const SeparableOperands& operands,
                                                    Status* status);
Status separable_plan_run(const SeparablePlan& plan, const TensorView& x, const TensorView& y,
                          const TensorView& residual);
int64_t separable_plan_bytes(const SeparablePlan& plan);      // packed weights and vectors
int64_t separable_plan_workspace(const SeparablePlan& plan);  // scratch of a thread

}  // namespace fastconv
