// Arrays in the memory of devices, and of other libraries: their description, DLPack in and out, the calls on them.
//
// A binding is written once, for TensorViews. One whose operands are no NumPy arrays is asked about by the package
// _device. Where those are device arrays it runs again on their DeviceViews, inside a DeviceCall that says in which row
// of the table of devices it runs, on which stream, and where outputs come from; where they are another library's in
// the host's memory it runs again on NumPy views of them, and the result becomes an array of that library.
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "bindings.h"
#include "calls.h"
#include "dlpack.h"

namespace fastconv::bindings {
namespace {

PyObject* device_hook = nullptr;
thread_local DeviceCall* device_call = nullptr;
const Backend* cuda_backend = nullptr;

constexpr char kBackendCapsule[] = "fastconv.backend";

class DeviceScope {
 public:
  DeviceScope(DeviceCall* call, int ordinal) : before_(device_call), call_(call) {
    previous_ = call->backend->enter(ordinal);
    if (previous_ < 0) throw Refusal{"bad_device"};
    device_call = call;
  }
  ~DeviceScope() {
    device_call = before_;
    call_->backend->enter(previous_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  DeviceCall* before_;
  DeviceCall* call_;
  int previous_;
};

DType read_dtype(int value) {
  if (value < 0 || value > static_cast<int>(DType::bf16)) throw py::value_error("dtype out of range");
  return static_cast<DType>(value);
}

void read_shape(TensorView& view, const py::tuple& shape, const py::object& strides) {
  if (shape.size() > kMaxDims) throw Refusal{"bad_rank"};
  view.ndim = static_cast<int32_t>(shape.size());
  for (int i = 0; i < view.ndim; ++i) view.shape[i] = shape[i].cast<int64_t>();
  if (strides.is_none()) {
    pack_strides(view, nullptr);
    return;
  }
  const auto steps = strides.cast<py::tuple>();
  if (steps.size() != shape.size()) throw py::value_error("shape and strides differ in length");
  for (int i = 0; i < view.ndim; ++i) view.strides[i] = steps[i].cast<int64_t>();
}

// The strides are in elements; None: packed.
DeviceView make_view(uintptr_t pointer, int dtype, const py::tuple& shape, const py::object& strides, int ordinal,
                     bool writable, py::object owner) {
  DeviceView result;
  TensorView& view = result.view;
  view.dtype = read_dtype(dtype);
  view.device = Device::cuda;
  read_shape(view, shape, strides);
  view.data = pointer ? reinterpret_cast<void*>(pointer) : static_cast<void*>(no_data);
  result.ordinal = ordinal;
  result.writable = writable;
  result.owner = std::move(owner);
  return result;
}

// --- DLPack ----------------------------------------------------------------------------------------------------

bool dlpack_dtype(const DLDataType& type, DType* dtype) {
  if (type.lanes != 1) return false;
  struct Row {
    uint8_t code, bits;
    DType dtype;
  };
  constexpr Row rows[] = {{kDLFloat, 32, DType::f32},   {kDLFloat, 64, DType::f64}, {kDLFloat, 16, DType::f16},
                          {kDLBfloat, 16, DType::bf16}, {kDLInt, 8, DType::i8},     {kDLUInt, 8, DType::u8},
                          {kDLInt, 16, DType::i16},     {kDLInt, 32, DType::i32},   {kDLInt, 64, DType::i64}};
  for (const Row& row : rows)
    if (row.code == type.code && row.bits == type.bits) return *dtype = row.dtype, true;
  return false;
}

DLDataType dlpack_type_of(DType dtype) {
  const auto bits = static_cast<uint8_t>(8 * item_size(dtype));
  switch (dtype) {
    case DType::f32:
    case DType::f64:
    case DType::f16: return {kDLFloat, bits, 1};
    case DType::bf16: return {kDLBfloat, bits, 1};
    case DType::u8: return {kDLUInt, bits, 1};
    default: return {kDLInt, bits, 1};
  }
}

// Takes the tensor out of a capsule of __dlpack__; the view's owner gives it back.
DeviceView view_from_dlpack(const py::capsule& capsule) {
  if (std::strcmp(capsule.name(), "dltensor") != 0) throw py::value_error("expected a capsule of the name dltensor");
  auto* managed = capsule.get_pointer<DLManagedTensor>();
  const DLTensor& tensor = managed->dl_tensor;
  DeviceView result;
  TensorView& view = result.view;
  if (tensor.ndim > kMaxDims) throw Refusal{"bad_rank"};
  if (tensor.device.device_type != kDLCUDA) throw Refusal{"bad_device"};
  if (!dlpack_dtype(tensor.dtype, &view.dtype)) throw Refusal{"bad_dtype"};
  view.device = Device::cuda;
  view.ndim = tensor.ndim;
  for (int i = 0; i < tensor.ndim; ++i) view.shape[i] = tensor.shape[i];
  if (tensor.strides) {
    for (int i = 0; i < tensor.ndim; ++i) view.strides[i] = tensor.strides[i];
  } else {
    pack_strides(view, nullptr);
  }
  bool empty = false;
  for (int i = 0; i < tensor.ndim; ++i) empty = empty || tensor.shape[i] == 0;
  if (!tensor.data && !empty) throw Refusal{"bad_device"};
  view.data = tensor.data ? static_cast<char*>(tensor.data) + tensor.byte_offset : reinterpret_cast<char*>(no_data);
  result.ordinal = tensor.device.device_id;
  result.owner = py::capsule(managed, [](void* pointer) {
    auto* tensor_of = static_cast<DLManagedTensor*>(pointer);
    if (tensor_of->deleter) tensor_of->deleter(tensor_of);
  });
  // Ours now: the capsule's destructor is not to give it back as well.
  if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
  return result;
}

struct Export {
  DLManagedTensor managed{};
  int64_t shape[kMaxDims], strides[kMaxDims];
  PyObject* owner;
};

py::object dlpack_capsule(const DeviceView& view) {
  auto holder = std::make_unique<Export>();
  DLTensor& tensor = holder->managed.dl_tensor;
  for (int i = 0; i < view.view.ndim; ++i) {
    holder->shape[i] = view.view.shape[i];
    holder->strides[i] = view.view.strides[i];
  }
  tensor.data = view.view.data;
  tensor.device = {kDLCUDA, view.ordinal};
  tensor.ndim = view.view.ndim;
  tensor.dtype = dlpack_type_of(view.view.dtype);
  tensor.shape = holder->shape, tensor.strides = holder->strides;
  holder->managed.manager_ctx = holder.get();
  holder->managed.deleter = [](DLManagedTensor* managed) {
    auto* all = static_cast<Export*>(managed->manager_ctx);
    // A consumer may call this on any thread, and after the interpreter has ended, when there is nothing to release.
    if (Py_IsInitialized()) {
      const PyGILState_STATE gil = PyGILState_Ensure();
      Py_DECREF(all->owner);
      PyGILState_Release(gil);
    }
    delete all;
  };
  PyObject* capsule = PyCapsule_New(&holder->managed, "dltensor", [](PyObject* self) {
    if (!PyCapsule_IsValid(self, "dltensor")) return;  // taken
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(self, "dltensor"));
    managed->deleter(managed);
  });
  if (!capsule) throw py::error_already_set();
  holder->owner = view.owner.inc_ref().ptr();
  holder.release();
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

// --- calls -----------------------------------------------------------------------------------------------------

DeviceCall& current_device_call() {
  if (!device_call) throw Refusal{"bad_device"};
  return *device_call;
}

bool run_on_device(Binding binding, PyObject* const* args, Py_ssize_t count, py::object* result) {
  if (!device_hook) return false;
  py::tuple operands(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) operands[static_cast<size_t>(i)] = py::handle(args[i]);
  const py::object answer = py::handle(device_hook)(operands);
  if (answer.is_none()) return false;
  // (operands with views for arrays, then ordinal, stream, allocate, or for arrays of the host: what makes the result)
  const auto parts = answer.cast<py::tuple>();
  const auto views = parts[0].cast<py::tuple>();
  if (views.size() != static_cast<size_t>(count)) throw Refusal{"bad_device"};
  PyObject* pointers[32];
  if (count > 32) throw Refusal{"unsupported"};
  for (Py_ssize_t i = 0; i < count; ++i) pointers[i] = PyTuple_GET_ITEM(views.ptr(), i);
  if (parts.size() == 2) {
    *result = parts[1](binding(pointers));
    return true;
  }
  if (!cuda_backend) throw Refusal{"bad_device"};
  const py::object allocate = parts[3];
  DeviceCall call{cuda_backend, {}, allocate.ptr()};
  call.queue.stream = reinterpret_cast<void*>(parts[2].cast<uintptr_t>());
  try {
    const DeviceScope scope(&call, parts[1].cast<int>());
    *result = binding(pointers);
  } catch (const Refusal& refusal) {
    if (std::strcmp(refusal.status, "device_error") != 0) throw;
    PyErr_Format(PyExc_RuntimeError, "the device refused the call: %s", cuda_backend->last_error());
    throw py::error_already_set();
  }
  return true;
}

py::object new_device_array(TensorView& view, int64_t bytes) {
  const DeviceCall& call = current_device_call();
  // allocate(dtype, shape, strides in elements, bytes) -> (array, address)
  const py::tuple made = py::handle(call.allocate)(static_cast<int>(view.dtype), shape_tuple(view.shape, view.ndim),
                                                   shape_tuple(view.strides, view.ndim), bytes);
  view.data = reinterpret_cast<void*>(made[1].cast<uintptr_t>());
  return made[0];
}

void Scratch::lend(int64_t bytes) {
  if (bytes <= 0) return;
  TensorView view;
  view.dtype = DType::u8;
  view.device = Device::cuda;
  view.ndim = 1;
  view.shape[0] = bytes, view.strides[0] = 1;
  memory_ = new_device_array(view, bytes);
  device_call->queue.workspace = view.data;
  device_call->queue.workspace_bytes = bytes;
}

void bind_device(py::module_& m) {
  py::class_<DeviceView> view(m, "DeviceView", py::is_final(), "An array in a device's memory; immutable.");
  view.def(py::init(&make_view), py::arg("pointer"), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
           py::arg("ordinal"), py::arg("writable"), py::arg("owner"))
      .def_static("from_dlpack", &view_from_dlpack, py::arg("capsule"))
      .def("dlpack", &dlpack_capsule)
      .def_property_readonly("pointer", [](const DeviceView& v) { return reinterpret_cast<uintptr_t>(v.view.data); })
      .def_property_readonly("dtype", [](const DeviceView& v) { return static_cast<int>(v.view.dtype); })
      .def_property_readonly("shape", [](const DeviceView& v) { return shape_tuple(v.view.shape, v.view.ndim); })
      .def_property_readonly("strides", [](const DeviceView& v) { return shape_tuple(v.view.strides, v.view.ndim); })
      .def_property_readonly("ordinal", [](const DeviceView& v) { return v.ordinal; })
      .def_property_readonly("writable", [](const DeviceView& v) { return v.writable; })
      .def_property_readonly("owner", [](const DeviceView& v) { return v.owner; });
  device_view_type = reinterpret_cast<PyTypeObject*>(view.ptr());

  m.def(
      "set_device_hook",
      [](py::object hook) {
        Py_XDECREF(device_hook);
        device_hook = hook.is_none() ? nullptr : hook.release().ptr();
      },
      py::arg("hook"));
  // Takes the row of a module that has one; `owner` keeps the module.
  m.def(
      "set_cuda_backend",
      [](const py::capsule& capsule) {
        if (std::strcmp(capsule.name(), kBackendCapsule) != 0) throw py::value_error("expected a backend");
        const auto* row = capsule.get_pointer<const Backend>();
        if (row->size != static_cast<int64_t>(sizeof(Backend)))
          throw py::import_error("the module is of another version");
        cuda_backend = row;
      },
      py::arg("backend"));
}

}  // namespace fastconv::bindings
