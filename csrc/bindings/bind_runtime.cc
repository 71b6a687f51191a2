// Threads, ISA choice, memory and floating-point mode. The argument checks that have words are in Python.
#include <pthread.h>
#include <pybind11/numpy.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "bindings.h"
#include "casters.h"
#include "fastconv/path.h"
#include "fastconv/runtime.h"

namespace fastconv::bindings {
namespace {

// --- Ctrl-C --------------------------------------------------------------------------------------------------

// Python runs signal handlers on its main thread alone; the others need not ask for the GIL.
std::atomic<unsigned long> main_thread{0};

// Leaves the exception of the handler set for check() to throw.
bool python_asks_to_stop() {
  if (PyThread_get_thread_ident() != main_thread.load(std::memory_order_relaxed)) return false;
  const PyGILState_STATE gil = PyGILState_Ensure();
  const pid_t process = getpid();
  bool stop = PyErr_CheckSignals() != 0;
  if (!stop && getpid() != process) {
    // A handler has forked and this is the child, without the threads that share the call.
    PyErr_SetString(PyExc_RuntimeError, "fastconv: a signal handler forked inside a call; the child cannot finish it");
    stop = true;
  }
  PyGILState_Release(gil);
  return stop;
}

void install_poll_hook() {
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  // The thread that forks is the main one of the child.
  pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
  set_poll_hook(python_asks_to_stop);
}

// --- names ---------------------------------------------------------------------------------------------------

constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512};

Isa isa_of(const std::string& name) {
  std::string names;
  for (const Isa isa : kIsas) {
    if (name == isa_name(isa)) return isa;
    names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw py::value_error("isa (='" + name + "') must be one of " + names);
}

DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "float64") return DType::f64;
  throw py::type_error("dtype (='" + name + "') must be float32 or float64");
}

const char* platform() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "other";
#endif
}

// --- arrays --------------------------------------------------------------------------------------------------

void copy(py::array dst, const py::array& src, int mode) {
  if (!(dst.flags() & py::array::c_style) || !(src.flags() & py::array::c_style)) {
    throw py::value_error("dst and src must be C-contiguous");
  }
  if (dst.nbytes() != src.nbytes()) throw py::value_error("dst and src must have the same number of bytes");
  if (mode < 0 || mode > 2) throw py::value_error("mode (=" + std::to_string(mode) + ") must be 0, 1 or 2");
  void* const to = dst.mutable_data();  // throws where dst is read-only
  const void* const from = src.data();
  const auto bytes = static_cast<size_t>(src.nbytes());
  const ReleaseGil gil;
  run_copy(to, from, bytes, mode);
}

}  // namespace

void bind_runtime(py::module_& m) {
  install_poll_hook();

  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  m.def("available_cores", &available_cores);
  m.def("set_thread_limit", &set_thread_limit, py::arg("n"));

  m.def("available_isas", [] {
    py::list names;
    for (const Isa isa : kIsas) {
      if (isa_supported(isa)) names.append(isa_name(isa));
    }
    return names;
  });
  m.def("isa_supported", [](const std::string& name) { return isa_supported(isa_of(name)); }, py::arg("isa"));
  m.def("current_isa", [] { return isa_name(current_isa()); });
  m.def("set_isa", [](const std::string& name) { return set_isa(isa_of(name)); }, py::arg("isa"));
  m.def("isa_environment_error", &isa_environment_error);
  m.def("cpu_name", &cpu_name);
  m.def("cache_sizes", [] {
    const CacheSizes sizes = cache_sizes();
    return py::dict(py::arg("l1d") = sizes.l1d, py::arg("l2") = sizes.l2, py::arg("l3") = sizes.l3);
  });

  m.def("output_cache_stats", [] {
    const CacheStats stats = output_cache_stats();
    return py::dict(py::arg("cached_bytes") = stats.cached_bytes, py::arg("live_bytes") = stats.live_bytes,
                    py::arg("hits") = stats.hits, py::arg("misses") = stats.misses,
                    py::arg("cap_bytes") = stats.cap_bytes);
  });
  m.def("output_cache_clear", &output_cache_clear);
  m.def("output_cache_set_cap", &output_cache_set_cap, py::arg("cap_bytes"));
  m.def(
      "workspace_stats",
      [](bool reset) {
        const WorkspaceStats stats = workspace_stats(reset);
        return py::dict(py::arg("held_bytes") = stats.held_bytes,
                        py::arg("peak_call_bytes_per_thread") = stats.peak_call_bytes_per_thread);
      },
      py::arg("reset") = false);

  m.def("take_path", &take_path);  // for the log and the tests

  m.def("flush_denormals", &flush_denormals);
  m.def("set_flush_denormals", &set_flush_denormals, py::arg("on"));

  m.def(
      "run_fma_loop",
      [](const std::string& dtype, int64_t iterations) {
        const DType type = dtype_of(dtype);
        const ReleaseGil gil;
        return run_fma_loop(type, iterations);
      },
      py::arg("dtype"), py::arg("iterations"));
  m.def("run_copy", &copy, py::arg("dst"), py::arg("src"), py::arg("mode"));

  m.def("build_info", [] {
    return py::dict(py::arg("version") = FASTCONV_VERSION, py::arg("compiler") = FASTCONV_COMPILER,
                    py::arg("flags") = FASTCONV_CXX_FLAGS, py::arg("platform") = platform(),
                    py::arg("python") = PY_VERSION);
  });
}

}  // namespace fastconv::bindings
