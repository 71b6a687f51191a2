// Normalisation, elementwise functions and softmax for Python.
#include <utility>

#include "bindings.h"
#include "calls.h"
#include "fastconv/elementwise.h"
#include "fastconv/norm.h"

namespace fastconv::bindings {
namespace {

PyTypeObject* norm_type = nullptr;

// The options of a norm, checked (see _args): what the functions cache.
struct NormSpec {
  NormDesc desc;
  Activation activation;
};

NormSpec make_norm_spec(int32_t kind, bool channels_last, int64_t groups, int32_t trailing, bool training, double eps,
                        double momentum, bool unbiased, const py::tuple& activation) {
  NormSpec spec;
  spec.desc.kind = read_enum(kind, NormKind::channels);
  spec.desc.channels_last = channels_last;
  spec.desc.groups = groups;
  spec.desc.trailing = trailing;
  spec.desc.training = training;
  spec.desc.eps = eps;
  spec.desc.momentum = momentum;
  spec.desc.unbiased = unbiased;
  spec.activation = read_activation(activation);
  return spec;
}

TensorView like(const TensorView& x) {
  TensorView expected;
  expected.dtype = x.dtype;
  expected.device = x.device;
  expected.ndim = x.ndim;
  for (int i = 0; i < x.ndim; ++i) expected.shape[i] = x.shape[i];
  return expected;
}

// The axes of a result from the outermost in memory: channels last or not, as x.
void image_order(const NormDesc& desc, const TensorView& x, int* order) {
  const bool innermost = norm_is_channels_last(desc, x);
  const int channels = desc.kind == NormKind::layer ? -1 : desc.channels_last ? x.ndim - 1 : 1;
  int n = 0;
  order[n++] = 0;
  if (channels >= 0 && !innermost) order[n++] = channels;
  for (int i = 1; i < x.ndim; ++i)
    if (i != channels) order[n++] = i;
  if (channels >= 0 && innermost) order[n++] = channels;
}

template <Mode kMode>
Result make_like(PyObject* out, const NormDesc& desc, const TensorView& x, std::initializer_list<Read> reads) {
  if (x.ndim < 1 || (desc.kind != NormKind::layer && x.ndim < 2)) throw Refusal{"bad_rank"};
  int order[kMaxDims];
  image_order(desc, x, order);
  return make_result<kMode>(out, like(x), order, reads);
}

// A vector of an entry a channel, or of the trailing shape.
TensorView channel_shape(const NormDesc& desc, const TensorView& x) {
  TensorView v;
  v.dtype = x.dtype;
  v.device = x.device;
  if (desc.kind == NormKind::layer) {
    v.ndim = desc.trailing;
    if (v.ndim > x.ndim) throw Refusal{"bad_rank"};
    for (int i = 0; i < v.ndim; ++i) v.shape[i] = x.shape[x.ndim - v.ndim + i];
  } else {
    v.ndim = 1;
    v.shape[0] = x.shape[desc.channels_last ? x.ndim - 1 : 1];
  }
  return v;
}

// (spec, x, weight, bias, residual, running_mean, running_var, out) -> y, or (y, mean, inv_std) in training
template <Mode kMode>
py::object norm(PyObject* const* args) {
  const NormSpec& spec = value_of<NormSpec>(args[0], norm_type);
  const NormDesc& desc = spec.desc;
  NormOperands op;
  op.x = array_view(args[1]);
  op.weight = optional_view(args[2]), op.bias = optional_view(args[3]), op.residual = optional_view(args[4]);
  op.act = spec.activation;
  op.running_mean = optional_view(args[5]), op.running_var = optional_view(args[6]);
  Result y = make_like<kMode>(args[7], desc, op.x,
                              {{args[1], op.x},
                               {args[2], op.weight},
                               {args[3], op.bias},
                               {args[4], op.residual},
                               {args[5], op.running_mean},
                               {args[6], op.running_var}});
  op.y = y.view;
  Result mean, inv_std;
  if (desc.training) {
    const TensorView vector = channel_shape(desc, op.x);
    mean = make_result<kMode>(Py_None, vector, nullptr, {});
    inv_std = make_result<kMode>(Py_None, vector, nullptr, {});
    op.mean = mean.view, op.inv_std = inv_std.view;
    for (int i : {5, 6}) {
      const TensorView& running = i == 5 ? op.running_mean : op.running_var;
      if (!running.data) continue;
      if (!is_writable(args[i]) || overlaps_itself(running)) throw Refusal{"bad_output"};
      for (const Read& read :
           {Read{args[1], op.x}, Read{args[2], op.weight}, Read{args[3], op.bias}, Read{args[4], op.residual},
            Read{args[11 - i], i == 5 ? op.running_var : op.running_mean}})
        check_no_overlap(args[i], running, read.array, read.view);
    }
  }
  if constexpr (kMode == Mode::decide) {
    PathDecision decision;
    check(norm_decide(desc, op, &decision));
    return path_dict(decision, op.y, true);
  }
  const Scratch scratch(op.x.device, &Backend::norm_workspace, desc, op);
  check(run_operation(op.x.device, &Backend::norm_run, desc, op));
  if (!desc.training) return std::move(y.array);
  return py::make_tuple(std::move(y.array), std::move(mean.array), std::move(inv_std.array));
}

// (spec, dy, x, weight, mean, inv_std, y, lower, upper, needs_input, needs_weight, needs_bias, out) -> (dx, dw, db)
template <Mode kMode>
py::object norm_backward_entry(PyObject* const* args) {
  const NormDesc& desc = value_of<NormSpec>(args[0], norm_type).desc;
  NormGradients op;
  op.dy = array_view(args[1]), op.x = array_view(args[2]);
  op.weight = optional_view(args[3]), op.mean = optional_view(args[4]), op.inv_std = optional_view(args[5]);
  op.y = optional_view(args[6]);
  op.lower = PyFloat_AsDouble(args[7]), op.upper = PyFloat_AsDouble(args[8]);
  if (PyErr_Occurred()) throw py::error_already_set();
  Result dx, dw, db;
  const std::initializer_list<Read> reads = {{args[1], op.dy},   {args[2], op.x},       {args[3], op.weight},
                                             {args[4], op.mean}, {args[5], op.inv_std}, {args[6], op.y}};
  const bool needs_input = read_flag(args[9]), needs_weight = read_flag(args[10]), needs_bias = read_flag(args[11]);
  if (!needs_input && args[12] != Py_None) throw Refusal{"bad_output"};
  if (needs_input) dx = make_like<kMode>(args[12], desc, op.x, reads), op.dx = dx.view;
  if (op.x.ndim < (desc.kind == NormKind::layer ? 1 : 2)) throw Refusal{"bad_rank"};
  const TensorView vector = channel_shape(desc, op.x);
  if (needs_weight) dw = make_result<kMode>(Py_None, vector, nullptr, {}), op.dw = dw.view;
  if (needs_bias) db = make_result<kMode>(Py_None, vector, nullptr, {}), op.db = db.view;
  if constexpr (kMode == Mode::decide) {
    PathDecision decision;
    check(norm_backward_decide(desc, op, &decision));
    return path_dict(decision, op.x, true);
  }
  const Scratch scratch(op.dy.device, &Backend::norm_backward_workspace, desc, op);
  check(run_operation(op.dy.device, &Backend::norm_backward, desc, op));
  auto or_none = [](Result& r, bool there) { return there ? std::move(r.array) : py::object(py::none()); };
  return py::make_tuple(or_none(dx, needs_input), or_none(dw, needs_weight), or_none(db, needs_bias));
}

// (channels_last, size, alpha, beta, k, x, dy, out) -> y, or, with dy, dx
template <Mode kMode>
py::object local_response_norm(PyObject* const* args) {
  ResponseDesc desc;
  desc.channels_last = read_flag(args[0]);
  desc.size = PyLong_AsLongLong(args[1]);
  desc.alpha = PyFloat_AsDouble(args[2]), desc.beta = PyFloat_AsDouble(args[3]), desc.k = PyFloat_AsDouble(args[4]);
  if (PyErr_Occurred()) throw py::error_already_set();
  const TensorView x = array_view(args[5]), dy = optional_view(args[6]);
  NormDesc axes;
  axes.kind = NormKind::channels;
  axes.channels_last = desc.channels_last;
  Result result = make_like<kMode>(args[7], axes, x, {{args[5], x}, {args[6], dy}});
  if constexpr (kMode == Mode::decide) {
    PathDecision decision;
    check(response_decide(desc, x, result.view, dy, &decision));
    return path_dict(decision, x, true);
  }
  check(dy.data ? run_operation(x.device, &Backend::response_backward, desc, dy, x, result.view)
                : run_operation(x.device, &Backend::response_run, desc, x, result.view));
  return std::move(result.array);
}

// --- elementwise -----------------------------------------------------------------------------------------------

// As make_output for a result that lies as x does, which may be `out` itself or another operand of the same place.
template <Mode kMode>
Result make_alike(PyObject* out, const TensorView& x, std::initializer_list<Read> reads) {
  if (out != Py_None) {
    const TensorView target = array_view(out);
    bool in_place = false;
    for (const Read& read : reads) {
      if (!read.view.data || read.view.data != target.data || !same_shape(read.view, target)) continue;
      bool alike = true;
      for (int i = 0; i < target.ndim; ++i)
        alike = alike && (target.shape[i] == 1 || target.strides[i] == read.view.strides[i]);
      in_place = in_place || alike;
    }
    if (!in_place) return user_output(out, like(x), reads);
    // What lies elsewhere must not overlap it.
    for (const Read& read : reads)
      if (read.view.data != target.data) check_no_overlap(out, target, read.array, read.view);
    return user_output(out, like(x), {});
  }
  // The axes by their strides in x; a stride of 0 says nothing and comes in C order.
  int order[kMaxDims];
  bool steps = true;
  for (int i = 0; i < x.ndim; ++i) steps = steps && (x.shape[i] == 1 || x.strides[i] > 0);
  for (int i = 0; i < x.ndim; ++i) {
    int at = i;
    if (steps && x.shape[i] != 1)
      for (; at > 0 && (x.shape[order[at - 1]] == 1 || x.strides[order[at - 1]] < x.strides[i]); --at)
        order[at] = order[at - 1];
    order[at] = i;
  }
  return make_result<kMode>(Py_None, like(x), order, {});
}

// How a function of elements is computed; z may be absent.
py::object element_path(const TensorView& x, const TensorView& z, const TensorView& y) {
  PathDecision decision;
  check(map_decide(x, z, y, &decision));
  return path_dict(decision, x, true);
}

// (activation, x, out)
template <Mode kMode>
py::object activation_forward(PyObject* const* args) {
  const Activation act = read_activation(py::reinterpret_borrow<py::tuple>(args[0]));
  const TensorView x = array_view(args[1]);
  Result y = make_alike<kMode>(args[2], x, {{args[1], x}});
  if constexpr (kMode == Mode::decide) return element_path(x, {}, y.view);
  check(run_operation(x.device, &Backend::map_forward, act, x, y.view));
  return std::move(y.array);
}

// (activation, dy, x, out): x is the result where the activation is sigmoid or tanh.
template <Mode kMode>
py::object activation_backward(PyObject* const* args) {
  const Activation act = read_activation(py::reinterpret_borrow<py::tuple>(args[0]));
  const TensorView dy = array_view(args[1]), x = array_view(args[2]);
  Result dx = make_alike<kMode>(args[3], dy, {{args[1], dy}, {args[2], x}});
  if constexpr (kMode == Mode::decide) return element_path(x, dy, dx.view);
  check(run_operation(dy.device, &Backend::map_backward, act, dy, x, dx.view));
  return std::move(dx.array);
}

// (activation, x, y, out)
template <Mode kMode>
py::object add(PyObject* const* args) {
  const Activation act = read_activation(py::reinterpret_borrow<py::tuple>(args[0]));
  const TensorView x = array_view(args[1]), y = array_view(args[2]);
  Result sum = make_alike<kMode>(args[3], x, {{args[1], x}, {args[2], y}});
  if constexpr (kMode == Mode::decide) return element_path(x, y, sum.view);
  check(run_operation(x.device, &Backend::map_add, act, x, y, sum.view));
  return std::move(sum.array);
}

int32_t read_axis(PyObject* object) {
  const long value = PyLong_AsLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  if (value < -kMaxDims || value >= kMaxDims) throw Refusal{"bad_rank"};
  return static_cast<int32_t>(value);
}

// How a softmax is computed; y, of a gradient, may be absent.
py::object softmax_path(int32_t axis, const TensorView& first, const TensorView& y, const TensorView& result) {
  PathDecision decision;
  check(softmax_decide(axis, first, y, result, &decision));
  return path_dict(decision, first, true);
}

// (x, axis, logarithm, out)
template <Mode kMode>
py::object softmax(PyObject* const* args) {
  const TensorView x = array_view(args[0]);
  const int32_t axis = read_axis(args[1]);
  const bool logarithm = read_flag(args[2]);
  Result y = make_alike<kMode>(args[3], x, {{args[0], x}});
  if constexpr (kMode == Mode::decide) return softmax_path(axis, x, {}, y.view);
  check(run_operation(x.device, &Backend::softmax_run, axis, logarithm, x, y.view));
  return std::move(y.array);
}

// (dy, y, axis, logarithm, out)
template <Mode kMode>
py::object softmax_backward_entry(PyObject* const* args) {
  const TensorView dy = array_view(args[0]), y = array_view(args[1]);
  const int32_t axis = read_axis(args[2]);
  const bool logarithm = read_flag(args[3]);
  Result dx = make_alike<kMode>(args[4], dy, {{args[0], dy}, {args[1], y}});
  if constexpr (kMode == Mode::decide) return softmax_path(axis, dy, y, dx.view);
  check(run_operation(dy.device, &Backend::softmax_backward, axis, logarithm, dy, y, dx.view));
  return std::move(dx.array);
}

// A row for each mode of a binding.
#define FASTCONV_BOTH(function, count, name, arguments, result)           \
  method<function<Mode::run>, count>(name, "(" arguments ") -> " result), \
      method<function<Mode::decide>, count>(name "_decide", "(" arguments ") -> dict")

PyMethodDef norm_functions[] = {
    FASTCONV_BOTH(norm, 8, "norm", "spec, x, weight, bias, residual, running_mean, running_var, out", "y"),
    FASTCONV_BOTH(norm_backward_entry, 13, "norm_backward",
                  "spec, dy, x, weight, mean, inv_std, y, lower, upper, needs_input, needs_weight, needs_bias, out",
                  "(dx, dw, db)"),
    FASTCONV_BOTH(local_response_norm, 8, "local_response_norm", "channels_last, size, alpha, beta, k, x, dy, out",
                  "y, or, with dy, dx"),
    FASTCONV_BOTH(activation_forward, 3, "activation", "activation, x, out", "y"),
    FASTCONV_BOTH(activation_backward, 4, "activation_backward", "activation, dy, x, out", "dx"),
    FASTCONV_BOTH(add, 4, "add", "activation, x, y, out", "sum"),
    FASTCONV_BOTH(softmax, 4, "softmax", "x, axis, logarithm, out", "y"),
    FASTCONV_BOTH(softmax_backward_entry, 5, "softmax_backward", "dy, y, axis, logarithm, out", "dx"),
};

}  // namespace

void bind_norm(py::module_& m) {
  py::class_<NormSpec> spec(m, "NormSpec", py::is_final(), "The options of a norm, checked; immutable.");
  spec.def(py::init(&make_norm_spec), py::arg("kind"), py::arg("channels_last"), py::arg("groups"), py::arg("trailing"),
           py::arg("training"), py::arg("eps"), py::arg("momentum"), py::arg("unbiased"), py::arg("activation"));
  norm_type = reinterpret_cast<PyTypeObject*>(spec.ptr());
  add_functions(m, norm_functions);
}

}  // namespace fastconv::bindings
