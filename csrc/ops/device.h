// Which device a call's operands are on: the first check of every entry point, of the CPU's as of a GPU's.
#pragma once
#include <initializer_list>

#include "fastconv/tensor.h"

namespace fastconv::ops {

inline Status check_device(Device device, std::initializer_list<const TensorView*> views) {
  // The CPU's calls are short, and an operand that is absent has its device.
  if (device == Device::cpu) {
    int32_t other = 0;
    for (const TensorView* v : views) other |= static_cast<int32_t>(v->device);
    return other ? Status::bad_device : Status::ok;
  }
  for (const TensorView* v : views)
    if (v->data && v->device != device) return Status::bad_device;
  return Status::ok;
}

}  // namespace fastconv::ops
