// NumPy arrays in and out of the library's TensorViews: the only place where one becomes the other.
//
// Everything here is on the path of every call, so it reads the array struct directly (through pybind11's description
// of it) and refuses by a bare status: the words of an error are found in Python, by the package _args, once a call has
// failed.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cstdint>

#include "fastconv/runtime.h"
#include "fastconv/tensor.h"

namespace fastconv::bindings {

namespace py = pybind11;

// Thrown where a call cannot be served; becomes the Python exception Refused(status).
struct Refusal { const char* status; };

inline const char* status_name(Status status) {
  switch (status) {
    case Status::ok: return "ok";
    case Status::bad_rank: return "bad_rank";
    case Status::bad_dtype: return "bad_dtype";
    case Status::bad_shape: return "bad_shape";
    case Status::bad_groups: return "bad_groups";
    case Status::bad_stride: return "bad_stride";
    case Status::bad_padding: return "bad_padding";
    case Status::bad_output: return "bad_output";
    case Status::empty_output: return "empty_output";
    case Status::overflow: return "overflow";
    case Status::bad_index: return "bad_index";
    case Status::bad_device: return "bad_device";
    case Status::bad_algorithm: return "bad_algorithm";
    case Status::unsupported: return "unsupported";
    case Status::out_of_memory: return "out_of_memory";
    case Status::cancelled: return "cancelled";
    case Status::device_error: return "device_error";
  }
  return "unknown";
}

inline void check(Status status) {
  if (status == Status::ok) [[likely]]
    return;
  if (status == Status::cancelled) {
    // The poll hook leaves the exception of the signal handler set.
    if (!PyErr_Occurred()) PyErr_SetNone(PyExc_KeyboardInterrupt);
    throw py::error_already_set();
  }
  throw Refusal{status_name(status)};
}

// pybind11's gil_scoped_release also consults its own thread registry, which costs more than the release itself.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ~ReleaseGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      // Before Python 3.14 a daemon thread that asks for the GIL of a finalising interpreter is ended by pthread_exit,
      // which unwinds the stack as an exception does. The frames above hold Python objects and may not be unwound
      // without the GIL: the thread waits here for the end of the process, as it does in later versions.
      for (;;) pause();
    }
  }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  PyThreadState* state_;
};

// NumPy's type objects, fetched once by the module's import and never changed afterwards.
struct NumpyTypes {
  PyTypeObject* array = nullptr;
  PyObject* f32 = nullptr;  // the descriptors that native float32 and float64 arrays share
  PyObject* f64 = nullptr;
};
inline NumpyTypes numpy_types;

inline void load_numpy_types() {
  const auto& api = py::detail::npy_api::get();
  numpy_types.array = api.PyArray_Type_;
  numpy_types.f32 = api.PyArray_DescrFromType_(py::detail::npy_api::NPY_FLOAT_);
  numpy_types.f64 = api.PyArray_DescrFromType_(py::detail::npy_api::NPY_DOUBLE_);
}

// Stands for the data of operands that have a shape only, and of empty arrays: a null pointer means "absent".
alignas(64) inline unsigned char no_data[64];

inline DType dtype_of(PyObject* descr) {
  if (descr == numpy_types.f32) [[likely]]
    return DType::f32;
  if (descr == numpy_types.f64) [[likely]]
    return DType::f64;
  // A native float array may still carry a descriptor of its own (with metadata, or from a pickle).
  const auto* proxy = py::detail::array_descriptor_proxy(descr);
  const bool native = proxy->byteorder == '=' || proxy->byteorder == '|';
  if (native && proxy->type_num == py::detail::npy_api::NPY_FLOAT_) return DType::f32;
  if (native && proxy->type_num == py::detail::npy_api::NPY_DOUBLE_) return DType::f64;
  throw Refusal{"bad_dtype"};
}

// As dtype_of, for the operands that may also hold integers.
inline DType any_dtype_of(PyObject* descr) {
  using npy = py::detail::npy_api;
  const auto* proxy = py::detail::array_descriptor_proxy(descr);
  if (proxy->byteorder == '=' || proxy->byteorder == '|') {
    switch (proxy->type_num) {
      case npy::NPY_BYTE_: return DType::i8;
      case npy::NPY_UBYTE_: return DType::u8;
      case npy::NPY_SHORT_: return DType::i16;
      case npy::NPY_INT_: return DType::i32;
      case npy::NPY_LONG_: return sizeof(long) == 8 ? DType::i64 : DType::i32;
      case npy::NPY_LONGLONG_: return DType::i64;
      default: break;
    }
  }
  return dtype_of(descr);
}

// The type number of NumPy's own array of a dtype.
inline int type_number(DType dtype) {
  using npy = py::detail::npy_api;
  switch (dtype) {
    case DType::f32: return npy::NPY_FLOAT_;
    case DType::f64: return npy::NPY_DOUBLE_;
    case DType::i8: return npy::NPY_BYTE_;
    case DType::u8: return npy::NPY_UBYTE_;
    case DType::i16: return npy::NPY_SHORT_;
    case DType::i32: return npy::NPY_INT_;
    // NumPy has no bfloat16: both stand for two bytes, in views whose elements are never looked at.
    case DType::f16:
    case DType::bf16: return npy::NPY_USHORT_;
    case DType::i64: break;
  }
  return sizeof(long) == 8 ? npy::NPY_LONG_ : npy::NPY_LONGLONG_;
}

// The status of an operand that is no NumPy array: known by its address, since a device array may be behind it.
inline constexpr char kNoArray[] = "bad_type";

inline void check_array_type(PyObject* object) {
  if (Py_TYPE(object) == numpy_types.array) [[likely]]
    return;
  if (!PyObject_TypeCheck(object, numpy_types.array)) throw Refusal{kNoArray};
  // numpy.memmap and other subclasses are plain memory; a masked array is not, its mask would be lost.
  if (PyObject_HasAttrString(object, "mask")) throw Refusal{"bad_type"};
}

// An array in a device's memory, as the package _device describes it; `owner` keeps that memory.
struct DeviceView {
  TensorView view;
  int ordinal = 0;
  bool writable = false;
  py::object owner;
};
inline PyTypeObject* device_view_type = nullptr;

inline const DeviceView* device_view(PyObject* object) {
  if (Py_TYPE(object) != device_view_type) return nullptr;
  return static_cast<const DeviceView*>(reinterpret_cast<py::detail::instance*>(object)->simple_value_holder[0]);
}

// `any`: integers are taken too. Every other entry refuses them here.
inline TensorView array_view(PyObject* object, bool any = false) {
  TensorView view;  // the one result of every path, so that none is copied
  if (Py_TYPE(object) != numpy_types.array) [[unlikely]] {
    if (const DeviceView* device = device_view(object)) {
      if (!any && !computes(device->view)) throw Refusal{"bad_dtype"};
      view = device->view;
      return view;
    }
    check_array_type(object);
  }
  const auto* array = py::detail::array_proxy(object);
  if (array->nd > kMaxDims) throw Refusal{"bad_rank"};
  if (!(array->flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) throw Refusal{"bad_alignment"};
  view.dtype = any ? any_dtype_of(array->descr) : dtype_of(array->descr);
  view.data = array->data ? array->data : reinterpret_cast<char*>(no_data);
  view.ndim = array->nd;
  const int64_t size = item_size(view.dtype);
  for (int i = 0; i < array->nd; ++i) {
    view.shape[i] = array->dimensions[i];
    // The stride of an axis of one entry is never used and may be anything.
    if (array->strides[i] % size != 0 && array->dimensions[i] > 1) throw Refusal{"bad_alignment"};
    view.strides[i] = array->strides[i] / size;
  }
  return view;
}

inline TensorView optional_view(PyObject* object) { return object == Py_None ? TensorView{} : array_view(object); }

// Inserts the batch axis of an unbatched operand.
inline void insert_batch_axis(TensorView& view) {
  for (int i = view.ndim; i > 0; --i) {
    view.shape[i] = view.shape[i - 1];
    view.strides[i] = view.strides[i - 1];
  }
  view.shape[0] = 1;
  // Never used to step, so that it may wrap; this value is the one of a batch of contiguous images.
  view.strides[0] = static_cast<int64_t>(static_cast<uint64_t>(view.shape[1]) * static_cast<uint64_t>(view.strides[1]));
  ++view.ndim;
}

// Fills in the strides of an array packed in the order of the axes; refuses one whose bytes do not fit in 63 bits.
inline int64_t pack_strides(TensorView& view, const int* order) {
  int64_t stride = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    const int axis = order ? order[i] : i;
    view.strides[axis] = stride;
    if (__builtin_mul_overflow(stride, view.shape[axis] > 0 ? view.shape[axis] : 1, &stride)) {
      throw Refusal{"overflow"};
    }
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(stride, item_size(view.dtype), &bytes)) throw Refusal{"overflow"};
  return bytes;
}

// An operand that is only a shape: a tuple or list of integers, packed in the order of its axes.
inline TensorView shape_view(PyObject* object, DType dtype, Device device = Device::cpu) {
  if (!PyTuple_Check(object) && !PyList_Check(object)) throw Refusal{"bad_shape"};
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(object);
  if (n > kMaxDims) throw Refusal{"bad_rank"};
  TensorView view;
  view.data = no_data;
  view.dtype = dtype;
  view.device = device;
  view.ndim = static_cast<int32_t>(n);
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* entry = PySequence_Fast_GET_ITEM(object, i);
    if (PyBool_Check(entry) || !PyIndex_Check(entry)) throw Refusal{"bad_shape"};
    const Py_ssize_t value = PyNumber_AsSsize_t(entry, PyExc_OverflowError);
    if (value == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      throw Refusal{"overflow"};
    }
    if (value < 0) throw Refusal{"bad_shape"};
    view.shape[i] = value;
  }
  pack_strides(view, nullptr);
  return view;
}

inline py::tuple shape_tuple(const int64_t* shape, int ndim) {
  py::tuple result(ndim);
  for (int i = 0; i < ndim; ++i) result[i] = py::int_(shape[i]);
  return result;
}

// As new_array, from the allocator of the device call that is under way (bind_device.cc).
py::object new_device_array(TensorView& view, int64_t bytes);

// An array for the user over a block of the output cache, which goes back when the last reference to it dies.
// `view` holds dtype, shape and strides; its data is set here.
inline py::object new_array(TensorView& view, int64_t bytes) {
  if (view.device != Device::cpu) [[unlikely]]
    return new_device_array(view, bytes);
  // An empty array needs an address too.
  const auto size = static_cast<size_t>(bytes > 0 ? bytes : 1);
  void* block = output_allocate(size);
  if (!block) throw Refusal{"out_of_memory"};
  PyObject* owner = PyCapsule_New(block, nullptr, [](PyObject* capsule) {
    output_release(PyCapsule_GetPointer(capsule, nullptr), reinterpret_cast<size_t>(PyCapsule_GetContext(capsule)));
  });
  if (!owner) {
    output_release(block, size);
    throw py::error_already_set();
  }
  auto base = py::reinterpret_steal<py::object>(owner);
  PyCapsule_SetContext(owner, reinterpret_cast<void*>(size));

  Py_intptr_t shape[kMaxDims], strides[kMaxDims];
  for (int i = 0; i < view.ndim; ++i) {
    shape[i] = view.shape[i];
    strides[i] = view.strides[i] * item_size(view.dtype);
  }
  const auto& api = py::detail::npy_api::get();
  // NewFromDescr takes the reference over.
  PyObject* descr = view.dtype == DType::f32   ? numpy_types.f32
                    : view.dtype == DType::f64 ? numpy_types.f64
                                               : api.PyArray_DescrFromType_(type_number(view.dtype));
  if (view.dtype == DType::f32 || view.dtype == DType::f64) Py_INCREF(descr);
  auto array = py::reinterpret_steal<py::object>(api.PyArray_NewFromDescr_(
      numpy_types.array, descr, view.ndim, shape, strides, block, py::detail::npy_api::NPY_ARRAY_WRITEABLE_, nullptr));
  if (!array) throw py::error_already_set();
  if (api.PyArray_SetBaseObject_(array.ptr(), base.release().ptr()) != 0) throw py::error_already_set();
  view.data = block;
  return array;
}

inline bool same_shape(const TensorView& a, const TensorView& b) {
  if (a.ndim != b.ndim) return false;
  for (int i = 0; i < a.ndim; ++i) {
    if (a.shape[i] != b.shape[i]) return false;
  }
  return true;
}

// The bytes [begin, end) that a view can touch; both zero where it is empty.
struct Extent { uintptr_t begin = 0, end = 0; };

inline Extent extent(const TensorView& view) {
  int64_t low = 0, high = 0;
  for (int i = 0; i < view.ndim; ++i) {
    if (view.shape[i] == 0) return {};
    const int64_t reach = (view.shape[i] - 1) * view.strides[i];
    (reach < 0 ? low : high) += reach;
  }
  const auto origin = reinterpret_cast<uintptr_t>(view.data);
  const int64_t size = item_size(view.dtype);
  return {origin + static_cast<uintptr_t>(low * size), origin + static_cast<uintptr_t>((high + 1) * size)};
}

// Whether the array of a view may be written to.
inline bool is_writable(PyObject* object) {
  if (const DeviceView* device = device_view(object)) return device->writable;
  return (py::detail::array_proxy(object)->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0;
}

// Whether two elements of a view may share memory: exact for every layout that slicing and transposing produce.
inline bool overlaps_itself(const TensorView& view) {
  int64_t shape[kMaxDims], strides[kMaxDims];
  int n = 0;
  for (int i = 0; i < view.ndim; ++i) {
    if (view.shape[i] == 0) return false;
    if (view.shape[i] == 1) continue;
    const int64_t stride = view.strides[i] < 0 ? -view.strides[i] : view.strides[i];
    int at = n++;
    for (; at > 0 && strides[at - 1] > stride; --at) {
      strides[at] = strides[at - 1];
      shape[at] = shape[at - 1];
    }
    strides[at] = stride;
    shape[at] = view.shape[i];
  }
  int64_t reach = 0;  // the largest offset that the axes so far lead to
  for (int i = 0; i < n; ++i) {
    if (strides[i] <= reach) return true;
    reach += (shape[i] - 1) * strides[i];
  }
  return false;
}

// A NumPy array over the addresses of a view, to compare addresses by: nobody reads or writes its elements.
inline py::object shadow_of(const TensorView& view) {
  Py_intptr_t shape[kMaxDims], strides[kMaxDims];
  for (int i = 0; i < view.ndim; ++i) {
    shape[i] = view.shape[i];
    strides[i] = view.strides[i] * item_size(view.dtype);
  }
  const auto& api = py::detail::npy_api::get();
  auto array = py::reinterpret_steal<py::object>(
      api.PyArray_NewFromDescr_(numpy_types.array, api.PyArray_DescrFromType_(type_number(view.dtype)), view.ndim,
                                shape, strides, view.data, 0, nullptr));
  if (!array) throw py::error_already_set();
  return array;
}

// Refuses an `out` that shares memory with an operand that is read.
inline void check_no_overlap(PyObject* out, const TensorView& out_view, PyObject* operand,
                             const TensorView& operand_view) {
  if (!operand_view.data) return;
  const Extent a = extent(out_view), b = extent(operand_view);
  if (a.end <= b.begin || b.end <= a.begin || a.end == a.begin || b.end == b.begin) return;
  // Interleaved arrays (two halves of the channels of one buffer) need the exact answer; where it takes NumPy too
  // long it counts as an overlap.
  try {
    const bool host = out_view.device == Device::cpu;
    const py::object target = host ? py::reinterpret_borrow<py::object>(out) : shadow_of(out_view);
    const py::object read = host ? py::reinterpret_borrow<py::object>(operand) : shadow_of(operand_view);
    if (!py::module_::import("numpy").attr("shares_memory")(target, read, 100000).cast<bool>()) { return; }
  } catch (py::error_already_set& error) {
    if (!error.matches(py::module_::import("numpy.exceptions").attr("TooHardError"))) throw;
  }
  throw Refusal{"bad_output"};
}

}  // namespace fastconv::bindings
