// Inverted residuals in two dimensions: a 1x1 expansion, a filter for each channel, a 1x1 projection, in one pass.
#pragma once
#include <memory>

#include "fastconv/conv.h"

namespace fastconv {

//   e = expand.act(expand.scale * (conv(x, expand_weight) + expand.bias) + expand.shift)
//   u = inner.act(inner.scale * (depthwise(e, depthwise_weight) + inner.bias) + inner.shift)
//   y = epilogue of the 1x1 convolution of u with project_weight; without a project_weight y is u, and mean its mean
//       over the pixels
// expand_weight is (E, C, 1, 1), depthwise_weight (E, 1, R, S), project_weight (K, E, 1, 1). The descriptor is that of
// the depthwise layer; its groups are E.
struct InvertedOperands {
  TensorView x, expand_weight, depthwise_weight, project_weight, y;
  TensorView mean;         // (N, E); without a project_weight
  Epilogue expand, inner;  // without a residual
  Epilogue epilogue;       // its vectors and residual belong to a projection
};

// The shape of y, in the axes of the descriptor.
Status inverted_output_shape(const ConvDesc& desc, const TensorView& x, const TensorView& expand_weight,
                             const TensorView& depthwise_weight, const TensorView& project_weight, int64_t* shape);

Status inverted_run(const ConvDesc& desc, const InvertedOperands& operands);

// A prepared layer: immutable, safe in several threads; it keeps its own copy of the weights and vectors.
class InvertedPlan;
std::shared_ptr<const InvertedPlan> inverted_plan(const ConvDesc& desc, const InvertedOperands& operands,
                                                  Status* status);
Status inverted_plan_run(const InvertedPlan& plan, const TensorView& x, const TensorView& y, const TensorView& residual,
                         const TensorView& mean);

// How a layer is computed by one thread.
struct InvertedDecision {
  bool in_rows = false;  // the expansion exists some rows at a time; otherwise an image's is made as a whole
  int64_t rows = 0, columns = 0;  // of y, a block
  int64_t kept_rows = 0;          // of the expansion
  int64_t packed_bytes = 0;       // weights
  int64_t workspace = 0;          // bytes of a thread
  int64_t whole_bytes = 0;        // of the expansion, where it is made as a whole
  const char* whole = nullptr;    // why it is made as a whole
  // Of a call with all its threads, which may make it as a whole where there are fewer blocks than threads.
  bool call_in_rows = false;
  const char* call_whole = nullptr;
  int64_t tasks = 0, call_workspace = 0, call_whole_bytes = 0;
  Decision expand, filter, product;  // of the layers; no product without a projection
  double flops = 0, bytes = 0;       // of all layers; x, the weights and the residual read once, y written
};
InvertedDecision inverted_plan_decision(const InvertedPlan& plan);
Status inverted_decide(const ConvDesc& desc, const InvertedOperands& operands, InvertedDecision* decision);

}  // namespace fastconv
