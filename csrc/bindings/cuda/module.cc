// The module of the GPU: its row of the table of devices, and memory. It is built twice: as _cuda, by nvcc, and as
// _cuda_host, whose kernels run on fibers (tests/cuda_host), for tests without a GPU.
//
// It computes nothing itself and knows no arrays: calls enter by _core, which takes the row.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "cuda/launch.h"
#include "cuda/runtime.h"

#ifdef FASTCONV_CUDA_HOST
#include <cuda_runtime.h>

#include "fibers.h"
#include "planted.h"
#endif

namespace py = pybind11;
namespace cuda = fastconv::cuda;

namespace {

void check(fastconv::Status status) {
  if (status == fastconv::Status::ok) return;
  const std::string words = cuda::last_error();
  if (status == fastconv::Status::out_of_memory) {
    PyErr_SetString(PyExc_MemoryError, words.c_str());
    throw py::error_already_set();
  }
  throw std::runtime_error(words);
}

template <class F>
fastconv::Status released(F f) {
  const py::gil_scoped_release gil;
  return f();
}

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

PYBIND11_MODULE(FASTCONV_CUDA_MODULE, m, py::mod_gil_not_used()) {
  m.def("backend", [] { return py::capsule(&cuda::backend, "fastconv.backend"); });
  m.def("build_info", [] {
    return py::dict(py::arg("version") = FASTCONV_VERSION, py::arg("architectures") = FASTCONV_CUDA_TARGETS,
                    py::arg("compiler") = FASTCONV_CUDA_COMPILER);
  });
  m.def("device_count", [] {
    const char* reason = "";
    const int count = cuda::device_count(&reason);
    return py::make_tuple(count, reason);
  });
  m.def(
      "device_info",
      [](int ordinal) {
        cuda::DeviceInfo info;
        check(cuda::device_info(ordinal, &info));
        return py::dict(py::arg("name") = info.name, py::arg("capability") = py::make_tuple(info.major, info.minor),
                        py::arg("multiprocessors") = info.multiprocessors, py::arg("memory") = info.memory);
      },
      py::arg("ordinal"));
  m.def(
      "allocate",
      [](int64_t bytes, int ordinal, uintptr_t stream) {
        void* memory = nullptr;
        check(cuda::allocate(bytes, ordinal, pointer(stream), &memory));
        return reinterpret_cast<uintptr_t>(memory);
      },
      py::arg("bytes"), py::arg("ordinal"), py::arg("stream"));
  m.def(
      "release",
      [](uintptr_t memory, int ordinal, uintptr_t stream) {
        check(cuda::release(pointer(memory), ordinal, pointer(stream)));
      },
      py::arg("memory"), py::arg("ordinal"), py::arg("stream"));
  m.def(
      "copy_to_device",
      [](uintptr_t to, uintptr_t from, int64_t bytes, int ordinal, uintptr_t stream) {
        check(released(
            [&] { return cuda::copy_to_device(pointer(to), pointer(from), bytes, ordinal, pointer(stream)); }));
      },
      py::arg("to"), py::arg("from_"), py::arg("bytes"), py::arg("ordinal"), py::arg("stream"));
  m.def(
      "copy_to_host",
      [](uintptr_t to, uintptr_t from, int64_t bytes, int ordinal, uintptr_t stream) {
        check(
            released([&] { return cuda::copy_to_host(pointer(to), pointer(from), bytes, ordinal, pointer(stream)); }));
      },
      py::arg("to"), py::arg("from_"), py::arg("bytes"), py::arg("ordinal"), py::arg("stream"));
  m.def(
      "synchronize",
      [](int ordinal, uintptr_t stream) {
        check(released([&] { return cuda::synchronize(ordinal, pointer(stream)); }));
      },
      py::arg("ordinal"), py::arg("stream"));
  m.def(
      "order_streams",
      [](int ordinal, uintptr_t first, uintptr_t second) {
        check(cuda::order_streams(ordinal, pointer(first), pointer(second)));
      },
      py::arg("ordinal"), py::arg("first"), py::arg("second"));
  m.def("device_of", [](uintptr_t address) { return cuda::device_of(pointer(address)); }, py::arg("pointer"));
#ifdef FASTCONV_CUDA_HOST
  m.def("set_seed", &fastconv::cuda_host::set_seed, py::arg("seed"));
  m.def("take_most_shared", &fastconv::cuda_host::take_most_shared);
  m.def("take_launches", [] {
    py::list launches;
    for (const char* launch : fastconv::cuda_host::take_launches()) launches.append(launch);
    return launches;
  });
  m.def(
      "fail_next_launch", [](int error) { cuda_host_fail_next_launch(static_cast<cudaError_t>(error)); },
      py::arg("error"));
  m.def("check_index", &fastconv::planted::check_index);
  m.def("planted", &fastconv::planted::run_planted, py::arg("name"), py::arg("corrected"),
        "Runs a kernel with a planted bug, or its corrected twin: '' or what was found.");
#endif
}
