// Devices are rows of one table: the same operations, with the same descriptors and operands, for each of them.
//
// What a row lacks is a null pointer, and a call of it is `unsupported`. The CPU's row is filled by the library;
// another one comes from a module of its own, which is loaded when the first array of its device arrives.
#pragma once
#include <cstdint>

#include "fastconv/conv.h"
#include "fastconv/elementwise.h"
#include "fastconv/inverted.h"
#include "fastconv/norm.h"
#include "fastconv/pool.h"
#include "fastconv/separable.h"

namespace fastconv {

// Where a device's work goes, and the scratch memory that the caller lends it. The CPU's calls read none of it.
struct Queue {
  void* stream = nullptr;
  void* workspace = nullptr;  // at least what the operation's workspace query returns, 256-byte aligned
  int64_t workspace_bytes = 0;
};

// The gradients of a convolution that are wanted of one call: dx, dw and db, absent where they are not.
struct ConvGradients {
  TensorView dy, x, w;
  TensorView dx, dw, db;
  bool accumulate_dx = false, accumulate_dw = false, accumulate_db = false;
};

struct Backend {
  // sizeof(Backend) where the row was compiled: a module of another version is not taken.
  int64_t size;
  const char* name;
  // Makes a device of several current and returns the one that was, or -1 where there is no such device; null where
  // there is one only.
  int (*enter)(int ordinal);
  // The last error of the calling thread, in words.
  const char* (*last_error)();

  Status (*map_forward)(const Activation& act, const TensorView& x, const TensorView& y, const Queue& queue);
  Status (*map_add)(const Activation& act, const TensorView& x, const TensorView& z, const TensorView& y,
                    const Queue& queue);
  Status (*map_backward)(const Activation& act, const TensorView& dy, const TensorView& x, const TensorView& dx,
                         const Queue& queue);
  Status (*softmax_run)(int32_t axis, bool logarithm, const TensorView& x, const TensorView& y, const Queue& queue);
  Status (*softmax_backward)(int32_t axis, bool logarithm, const TensorView& dy, const TensorView& y,
                             const TensorView& dx, const Queue& queue);

  Status (*pool_forward)(const PoolDesc& desc, const TensorView& x, const TensorView& y, const TensorView& indices,
                         const Queue& queue);
  // The bytes of workspace that a call with these operands takes; their data is not read. A null query: none.
  int64_t (*pool_backward_workspace)(const PoolDesc& desc, const TensorView& x, bool indices);
  Status (*pool_backward)(const PoolDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& indices,
                          const TensorView& dx, const Queue& queue);
  int64_t (*unpool_forward_workspace)(const TensorView& y);
  Status (*unpool_forward)(int32_t spatial, bool channels_last, const TensorView& x, const TensorView& indices,
                           const TensorView& y, const Queue& queue);
  Status (*unpool_backward)(int32_t spatial, bool channels_last, const TensorView& dy, const TensorView& indices,
                            const TensorView& dx, const Queue& queue);

  int64_t (*norm_workspace)(const NormDesc& desc, const NormOperands& operands);
  Status (*norm_run)(const NormDesc& desc, const NormOperands& operands, const Queue& queue);
  int64_t (*norm_backward_workspace)(const NormDesc& desc, const NormGradients& operands);
  Status (*norm_backward)(const NormDesc& desc, const NormGradients& operands, const Queue& queue);
  Status (*response_run)(const ResponseDesc& desc, const TensorView& x, const TensorView& y, const Queue& queue);
  Status (*response_backward)(const ResponseDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& dx,
                              const Queue& queue);

  int64_t (*conv_workspace)(const ConvDesc& desc, Pass pass, const ConvOperands& operands);
  Status (*conv_run)(const ConvDesc& desc, Pass pass, const ConvOperands& operands, const Queue& queue);
  // How conv_run would go; data is not read.
  Status (*conv_decide)(const ConvDesc& desc, Pass pass, const ConvOperands& operands, Decision* out,
                        const Queue& queue);
  Status (*conv_backward_bias)(const ConvDesc& desc, const TensorView& dy, const TensorView& db, bool accumulate,
                               const Queue& queue);

  // Several gradients of a layer in one pass over its operands; a query that returns 0 has none for these.
  int64_t (*conv_backward_workspace)(const ConvDesc& desc, const ConvGradients& operands);
  Status (*conv_backward)(const ConvDesc& desc, const ConvGradients& operands, const Queue& queue);

  int64_t (*separable_workspace)(const ConvDesc& desc, const SeparableOperands& operands);
  Status (*separable_run)(const ConvDesc& desc, const SeparableOperands& operands, const Queue& queue);
  int64_t (*inverted_workspace)(const ConvDesc& desc, const InvertedOperands& operands);
  Status (*inverted_run)(const ConvDesc& desc, const InvertedOperands& operands, const Queue& queue);
};

extern const Backend cpu_backend;

}  // namespace fastconv
