// What the bindings of all families share: functions of positional arguments, and the outputs of a call.
//
// The passes are plain METH_FASTCALL functions rather than pybind11 ones: with eleven arguments pybind11's dispatcher
// adds 0.15 us, a quarter of what a whole call on a tiny input costs here. All arguments are positional, None is an
// absent operand, and a Refusal thrown anywhere leaves as the Python exception Refused with nothing written.
#pragma once
#include <initializer_list>
#include <new>
#include <utility>

#include "casters.h"
#include "fastconv/backend.h"
#include "fastconv/conv.h"
#include "fastconv/path.h"

namespace fastconv::bindings {

inline PyObject* refused_type = nullptr;

inline void raise_refused(const char* status) {
  PyObject* name = PyUnicode_FromString(status);
  if (!name) return;
  PyErr_SetObject(refused_type, name);
  Py_DECREF(name);
}

template <typename Body>
PyObject* guarded(Body body) {
  try {
    return body();
  } catch (const Refusal& refusal) { raise_refused(refusal.status); } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) { raise_refused("out_of_memory"); } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// --- devices ---------------------------------------------------------------------------------------------------

// The call on a device that is under way on this thread: set around a binding whose operands are DeviceViews.
struct DeviceCall {
  const Backend* backend;
  Queue queue;
  PyObject* allocate;  // see new_device_array
};
// The call under way; refuses where there is none. Out of line, so that the CPU's calls look up no thread's variables.
DeviceCall& current_device_call();

using Binding = py::object (*)(PyObject* const*);

// Where a binding refuses an operand's type: runs it again on the DeviceViews of its operands, or on NumPy views of
// them, if the hook of the package _device finds arrays of a device or of another library among them; false if it does
// not. So NumPy arrays pay nothing for either.
bool run_on_device(Binding binding, PyObject* const* args, Py_ssize_t count, py::object* result);

// Runs an operation in the row of its operands' device, with the GIL released.
template <class... P, class... A>
Status run_operation(Device device, Status (*Backend::*operation)(P...), const A&... args) {
  if (device == Device::cpu) [[likely]] {
    ReleaseGil gil;
    return (cpu_backend.*operation)(args..., Queue{});
  }
  const DeviceCall& call = current_device_call();
  const auto function = call.backend->*operation;
  if (!function) throw Refusal{"unserved"};
  ReleaseGil gil;
  return function(args..., call.queue);
}

// Scratch memory for one operation on a device, from the caller's framework; none where the row has no query.
class Scratch {
 public:
  template <class... P, class... A>
  Scratch(Device device, int64_t (*Backend::*query)(P...), const A&... args) {
    if (device == Device::cpu) [[likely]]
      return;
    const auto function = current_device_call().backend->*query;
    if (function) lend(function(args...));
  }

 private:
  void lend(int64_t bytes);
  py::object memory_;
};

// --- functions -------------------------------------------------------------------------------------------------

// A module function of exactly kCount positional arguments.
template <py::object (*kFunction)(PyObject* const*), Py_ssize_t kCount>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != kCount) {
    PyErr_Format(PyExc_TypeError, "expected %zd positional arguments, got %zd", kCount, count);
    return nullptr;
  }
  return guarded([&] {
    try {
      return kFunction(args).release().ptr();
    } catch (const Refusal& refusal) {
      py::object result;
      if (refusal.status != kNoArray || !run_on_device(kFunction, args, count, &result)) throw;
      return result.release().ptr();
    }
  });
}

template <py::object (*kFunction)(PyObject* const*), Py_ssize_t kCount>
constexpr PyMethodDef method(const char* name, const char* doc) {
  // The cast is CPython's own convention for METH_FASTCALL.
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&entry<kFunction, kCount>)), METH_FASTCALL, doc};
}

// What every family needs before its own functions are added.
inline void bind_calls(py::module_& m) {
  load_numpy_types();
  // As everything a static PyMethodDef reaches, these live as long as the process.
  refused_type = PyErr_NewExceptionWithDoc("fastconv._core.Refused",
                                           "A call was refused; args[0] is the status. Nothing has been written.",
                                           nullptr, nullptr);
  if (!refused_type) throw py::error_already_set();
  m.attr("Refused") = py::handle(refused_type);
}

// Adds a table of such functions to the module.
template <size_t kCount>
void add_functions(py::module_& m, PyMethodDef (&functions)[kCount]) {
  const py::str module_name = m.attr("__name__");
  for (PyMethodDef& function : functions) {
    PyObject* object = PyCFunction_NewEx(&function, nullptr, module_name.ptr());
    if (!object) throw py::error_already_set();
    m.attr(function.ml_name) = py::reinterpret_steal<py::object>(object);
  }
}

// The C++ value inside an instance of a final class.
template <typename T>
const T& value_of(PyObject* object, const PyTypeObject* type) {
  if (Py_TYPE(object) != type) {
    PyErr_Format(PyExc_TypeError, "expected %s, got %s", type->tp_name, Py_TYPE(object)->tp_name);
    throw py::error_already_set();
  }
  const void* value = reinterpret_cast<py::detail::instance*>(object)->simple_value_holder[0];
  if (!value) {
    PyErr_Format(PyExc_TypeError, "%s was not initialised", type->tp_name);
    throw py::error_already_set();
  }
  return *static_cast<const T*>(value);
}

template <typename Enum>
Enum read_enum(int32_t value, Enum last) {
  if (value < 0 || value > static_cast<int32_t>(last)) throw py::value_error("enumerator out of range");
  return static_cast<Enum>(value);
}

inline Activation read_activation(const py::tuple& parts) {
  if (parts.size() != 3) throw py::value_error("an activation is (kind, a, b)");
  return {read_enum(parts[0].cast<int32_t>(), ActivationKind::clip), parts[1].cast<double>(), parts[2].cast<double>()};
}

inline bool read_flag(PyObject* object) {
  if (object == Py_False) return false;
  if (object == Py_True) return true;
  throw Refusal{"bad_type"};
}

inline bool is_shape(PyObject* object) { return PyTuple_Check(object) || PyList_Check(object); }

struct Result {
  py::object array;
  TensorView view;
};

// What a call reads, kept beside the arrays it came from for the overlap check.
struct Read {
  PyObject* array;
  const TensorView& view;
};

inline Result user_output(PyObject* out, const TensorView& expected, std::initializer_list<Read> reads) {
  Result result;
  result.view = array_view(out, !computes(expected));
  if (result.view.dtype != expected.dtype) throw Refusal{"bad_dtype"};
  if (result.view.device != expected.device) throw Refusal{"bad_device"};
  if (!is_writable(out)) throw Refusal{"bad_output"};
  if (!same_shape(result.view, expected) || overlaps_itself(result.view)) throw Refusal{"bad_output"};
  for (const Read& read : reads) check_no_overlap(out, result.view, read.array, read.view);
  const DeviceView* device = device_view(out);
  result.array = device ? device->owner : py::reinterpret_borrow<py::object>(out);
  return result;
}

// The output of a call: `out` where the user gave one, else a new array. `expected` holds dtype and shape in the
// user's rank; `order` lists the axes of a new array from the outermost to the innermost in memory.
inline Result make_output(PyObject* out, TensorView expected, const int* order, std::initializer_list<Read> reads) {
  const int64_t bytes = pack_strides(expected, order);
  if (out != Py_None) return user_output(out, expected, reads);
  Result result;
  result.view = expected;
  result.array = new_array(result.view, bytes);
  return result;
}

// --- decisions ---------------------------------------------------------------------------------------------------

// What a binding of a memory-bound operation does: the call, or telling how it would be made. Either takes the same
// arguments; for the latter no new result is allocated and no data is read.
enum class Mode { run, decide };

// A result that is not there: as make_output where nothing is computed.
inline Result describe_output(PyObject* out, TensorView expected, const int* order, std::initializer_list<Read> reads) {
  pack_strides(expected, order);
  if (out != Py_None) return user_output(out, expected, reads);
  expected.data = no_data;
  return {py::object(), expected};
}

template <Mode kMode>
Result make_result(PyObject* out, const TensorView& expected, const int* order, std::initializer_list<Read> reads) {
  return kMode == Mode::run ? make_output(out, expected, order, reads) : describe_output(out, expected, order, reads);
}

// `result` may have a batch axis that the user's array has not.
inline py::dict path_dict(const PathDecision& d, const TensorView& result, bool batched) {
  py::dict dict;
  py::list passed_over;
  for (int i = 0; i < d.passed; ++i) passed_over.append(py::make_tuple(d.passed_over[i].path, d.passed_over[i].why));
  dict["algorithm"] = d.path;
  dict["isa"] = isa_name(current_isa());
  dict["before"] = d.before;
  dict["again"] = d.again;
  dict["blocks"] = d.tasks;
  dict["workspace_per_thread"] = d.workspace;
  dict["streaming"] = d.streaming;
  dict["passed_over"] = passed_over;
  dict["shape"] = batched ? shape_tuple(result.shape, result.ndim) : shape_tuple(result.shape + 1, result.ndim - 1);
  return dict;
}

}  // namespace fastconv::bindings
