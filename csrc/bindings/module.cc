#include "bindings.h"
#include "calls.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  fastconv::bindings::bind_calls(m);
  fastconv::bindings::bind_runtime(m);
  fastconv::bindings::bind_conv(m);
  fastconv::bindings::bind_separable(m);
  fastconv::bindings::bind_inverted(m);
  fastconv::bindings::bind_pool(m);
  fastconv::bindings::bind_norm(m);
  fastconv::bindings::bind_device(m);
}
