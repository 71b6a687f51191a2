// What the bindings of layers share: their options, and images with or without a batch axis.
#pragma once
#include "calls.h"

namespace fastconv::bindings {

// The options of a layer, checked and in canonical form (see _args): what the functions cache.
struct ConvSpec {
  ConvDesc desc;
  Activation activation, input_activation;
};

inline PyTypeObject* spec_type = nullptr;

// An image-like operand (x, y, residual): given its batch axis where it has none. `batched` is what x (or dy, the
// leading operand) was; the others must follow it.
inline void complete_image(TensorView& view, const ConvDesc& desc, bool batched) {
  if (view.ndim != desc.spatial + (batched ? 2 : 1)) throw Refusal{"bad_rank"};
  if (!batched) insert_batch_axis(view);
}

inline TensorView leading_image(TensorView view, const ConvDesc& desc, bool& batched) {
  batched = view.ndim == desc.spatial + 2;
  complete_image(view, desc, batched);
  return view;
}

inline TensorView following_image(PyObject* object, const ConvDesc& desc, bool batched) {
  TensorView view = optional_view(object);
  if (view.data) complete_image(view, desc, batched);
  return view;
}

// As make_output, for an image-like output of `shape` (with its batch axis); the returned view has the batch axis.
template <Mode kMode = Mode::run>
Result make_image(PyObject* out, const ConvDesc& desc, const TensorView& like, const int64_t* shape, bool batched,
                  std::initializer_list<Read> reads) {
  const int ndim = desc.spatial + (batched ? 2 : 1);
  TensorView expected;
  expected.dtype = like.dtype;
  expected.device = like.device;
  expected.ndim = ndim;
  for (int i = 0; i < ndim; ++i) expected.shape[i] = shape[batched ? i : i + 1];
  const int first = batched ? 1 : 0;  // the axes before the channels and the pixels
  const int channels = desc.channels_last ? ndim - 1 : first;
  const bool innermost = output_is_channels_last(desc, like);
  int order[kMaxDims];
  int n = 0;
  if (batched) order[n++] = 0;
  if (!innermost) order[n++] = channels;
  for (int i = first; i < ndim; ++i) {
    if (i != channels) order[n++] = i;
  }
  if (innermost) order[n++] = channels;
  Result result = make_result<kMode>(out, expected, order, reads);
  if (!batched) insert_batch_axis(result.view);
  return result;
}

// In an order that is made to be read.
inline py::dict decision_dict(const Decision& decision) {
  py::dict result;
  result["algorithm"] = decision.algorithm;
  result["role"] = decision.role;
  result["isa"] = decision.isa;
  result["tile_rows"] = decision.tile_rows;
  result["tile_columns"] = decision.tile_columns;
  result["reduction_block"] = decision.reduction_block;
  result["channel_block"] = decision.channel_block;
  result["pixel_block"] = decision.pixel_block;
  result["workspace_per_thread"] = decision.workspace_per_thread;
  result["packed_weight_bytes"] = decision.packed_weight_bytes;
  result["flops"] = decision.flops;
  result["bytes"] = decision.bytes;
  result["error_bound"] = decision.error_bound;
  result["passed_over"] = decision.passed_over;
  return result;
}

// Of one layer of several: what is told of all of them together is left out.
inline py::dict half_dict(const Decision& decision) {
  py::dict result = decision_dict(decision);
  for (const char* name : {"workspace_per_thread", "packed_weight_bytes", "flops", "bytes"}) result.attr("pop")(name);
  return result;
}

inline py::tuple result_shape(const TensorView& view, bool batched) {
  return batched ? shape_tuple(view.shape, view.ndim) : shape_tuple(view.shape + 1, view.ndim - 1);
}

}  // namespace fastconv::bindings
