// Which device a call's operands are on: the first check of every entry point, of the CPU's as of a GPU's.
#pragma once
#include <initializer_list>

#include "fastconv/tensor.h"

namespace fastconv::ops {

inline Status check_device(Device device, std::initializer_list<const TensorView*> views) {
  for (const TensorView* v : views)
    if (v->data && v->device != device) return Status::bad_device;
  return Status::ok;
}

}  // namespace fastconv::ops
