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

// The row of the table of devices.
extern const Backend backend;

}  // namespace fastconv::cuda
