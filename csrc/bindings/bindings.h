// What module.cc assembles: one bind_* function a family, each in its own bind_*.cc.
#pragma once
#include <pybind11/pybind11.h>

namespace fastconv::bindings {

void bind_runtime(pybind11::module_& m);
void bind_conv(pybind11::module_& m);
void bind_separable(pybind11::module_& m);
void bind_inverted(pybind11::module_& m);
void bind_pool(pybind11::module_& m);
void bind_norm(pybind11::module_& m);
void bind_device(pybind11::module_& m);

}  // namespace fastconv::bindings
