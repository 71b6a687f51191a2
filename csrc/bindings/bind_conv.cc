// Convolution for Python: ConvSpec, the passes, plans and decisions.
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "conv_calls.h"
#include "fastconv/conv.h"
#include "fastconv/tune.h"

namespace fastconv::bindings {
namespace {

PyTypeObject* plan_type = nullptr;

// --- ConvSpec --------------------------------------------------------------------------------------------------

void read_entries(const py::tuple& entries, int spatial, int64_t* values) {
  if (static_cast<int>(entries.size()) != spatial) throw py::value_error("expected one entry a spatial dimension");
  for (int i = 0; i < spatial; ++i) values[i] = entries[i].cast<int64_t>();
}

ConvSpec make_spec(int32_t spatial, bool transposed, bool channels_last, const py::tuple& stride,
                   const py::tuple& dilation, const py::tuple& pad_before, const py::tuple& pad_after,
                   const py::tuple& output_padding, int64_t groups, int32_t padding_mode, int32_t auto_padding,
                   int32_t algorithm, int32_t precision, const py::tuple& activation,
                   const py::tuple& input_activation) {
  if (spatial < 1 || spatial > 3) throw py::value_error("spatial must be 1, 2 or 3");
  ConvSpec spec;
  ConvDesc& desc = spec.desc;
  desc.spatial = spatial;
  desc.transposed = transposed;
  desc.channels_last = channels_last;
  read_entries(stride, spatial, desc.stride);
  read_entries(dilation, spatial, desc.dilation);
  read_entries(pad_before, spatial, desc.pad_before);
  read_entries(pad_after, spatial, desc.pad_after);
  read_entries(output_padding, spatial, desc.output_padding);
  desc.groups = groups;
  desc.padding_mode = read_enum(padding_mode, PaddingMode::circular);
  desc.auto_padding = read_enum(auto_padding, AutoPadding::same_lower);
  desc.algorithm = read_enum(algorithm, Algorithm::winograd4);
  desc.precision = read_enum(precision, Precision::tf32);
  spec.activation = read_activation(activation);
  spec.input_activation = read_activation(input_activation);
  return spec;
}

template <int64_t (ConvDesc::*kMember)[3]>
py::tuple entries_of(const ConvSpec& spec) {
  return shape_tuple(spec.desc.*kMember, spec.desc.spatial);
}

py::tuple activation_tuple(const Activation& activation) {
  return py::make_tuple(static_cast<int32_t>(activation.kind), activation.a, activation.b);
}

// --- operands --------------------------------------------------------------------------------------------------

TensorView gate_view(PyObject* object, bool batched) {
  TensorView view = optional_view(object);
  if (!view.data) return view;
  if (view.ndim != (batched ? 2 : 1)) throw Refusal{"bad_rank"};
  if (!batched) insert_batch_axis(view);
  return view;
}

// --- the passes ------------------------------------------------------------------------------------------------

// (spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, out)
py::object conv_forward(PyObject* const* args) {
  const ConvSpec& spec = value_of<ConvSpec>(args[0], spec_type);
  const ConvDesc& desc = spec.desc;
  ConvOperands op;
  bool batched = false;
  op.x = leading_image(array_view(args[1]), desc, batched);
  op.w = array_view(args[2]);
  op.epilogue = {optional_view(args[3]), optional_view(args[4]), optional_view(args[5]),
                 following_image(args[6], desc, batched), spec.activation};
  op.prologue = {optional_view(args[7]), optional_view(args[8]), gate_view(args[9], batched), spec.input_activation};
  int64_t shape[kMaxDims];
  check(conv_output_shape(desc, op.x, op.w, shape));
  Result y = make_image(args[10], desc, op.x, shape, batched,
                        {{args[1], op.x},
                         {args[2], op.w},
                         {args[3], op.epilogue.bias},
                         {args[4], op.epilogue.scale},
                         {args[5], op.epilogue.shift},
                         {args[6], op.epilogue.residual},
                         {args[7], op.prologue.scale},
                         {args[8], op.prologue.shift},
                         {args[9], op.prologue.gate}});
  op.y = y.view;
  const Scratch scratch(op.x.device, &Backend::conv_workspace, desc, Pass::forward, op);
  check(run_operation(op.x.device, &Backend::conv_run, desc, Pass::forward, op));
  return std::move(y.array);
}

// (spec, dy, weight, input_shape, accumulate, out)
py::object conv_backward_input(PyObject* const* args) {
  const ConvDesc& desc = value_of<ConvSpec>(args[0], spec_type).desc;
  ConvOperands op;
  bool batched = false;
  op.y = leading_image(array_view(args[1]), desc, batched);
  op.w = array_view(args[2]);
  TensorView shape = shape_view(args[3], op.y.dtype, op.y.device);
  complete_image(shape, desc, batched);
  op.accumulate = read_flag(args[4]);
  if (op.accumulate && args[5] == Py_None) throw Refusal{"bad_output"};
  Result dx = make_image(args[5], desc, op.y, shape.shape, batched, {{args[1], op.y}, {args[2], op.w}});
  op.x = dx.view;
  const Scratch scratch(op.y.device, &Backend::conv_workspace, desc, Pass::backward_input, op);
  check(run_operation(op.y.device, &Backend::conv_run, desc, Pass::backward_input, op));
  return std::move(dx.array);
}

// (spec, dy, x, weight_shape, accumulate, out)
py::object conv_backward_weight(PyObject* const* args) {
  const ConvDesc& desc = value_of<ConvSpec>(args[0], spec_type).desc;
  ConvOperands op;
  bool batched = false;
  op.y = leading_image(array_view(args[1]), desc, batched);
  op.x = array_view(args[2]);
  complete_image(op.x, desc, batched);
  const TensorView shape = shape_view(args[3], op.y.dtype, op.y.device);
  op.accumulate = read_flag(args[4]);
  if (op.accumulate && args[5] == Py_None) throw Refusal{"bad_output"};
  Result dw = make_output(args[5], shape, nullptr, {{args[1], op.y}, {args[2], op.x}});
  op.w = dw.view;
  const Scratch scratch(op.y.device, &Backend::conv_workspace, desc, Pass::backward_weight, op);
  check(run_operation(op.y.device, &Backend::conv_run, desc, Pass::backward_weight, op));
  return std::move(dw.array);
}

// (spec, dy, accumulate, out)
py::object conv_backward_bias_entry(PyObject* const* args) {
  const ConvDesc& desc = value_of<ConvSpec>(args[0], spec_type).desc;
  bool batched = false;
  const TensorView dy = leading_image(array_view(args[1]), desc, batched);
  const bool accumulate = read_flag(args[2]);
  if (accumulate && args[3] == Py_None) throw Refusal{"bad_output"};
  TensorView expected;
  expected.dtype = dy.dtype;
  expected.device = dy.device;
  expected.ndim = 1;
  expected.shape[0] = dy.shape[desc.channels_last ? dy.ndim - 1 : 1];
  Result db = make_output(args[3], expected, nullptr, {{args[1], dy}});
  check(run_operation(dy.device, &Backend::conv_backward_bias, desc, dy, db.view, accumulate));
  return std::move(db.array);
}

// (spec, dy, x, weight, needs_input, needs_weight, needs_bias, into_input, into_weight, into_bias) -> (dx, dw, db)
// None, with nothing written, where the gradients share no pass over their operands; on the CPU they never do.
py::object conv_backward_entry(PyObject* const* args) {
  const ConvDesc& desc = value_of<ConvSpec>(args[0], spec_type).desc;
  const TensorView leading = array_view(args[1]);
  if (leading.device == Device::cpu) return py::none();
  const auto query = current_device_call().backend->conv_backward_workspace;
  ConvGradients op;
  bool batched = false;
  op.dy = leading_image(leading, desc, batched);
  op.x = array_view(args[2]);
  complete_image(op.x, desc, batched);
  op.w = array_view(args[3]);
  // Without outputs: whether the layer has such a pass.
  if (!query || query(desc, op) == 0) return py::none();
  const Read dy{args[1], op.dy}, x{args[2], op.x}, w{args[3], op.w};
  Result dx{py::none(), {}}, dw{py::none(), {}}, db{py::none(), {}};
  if (read_flag(args[4])) dx = make_image(args[7], desc, op.dy, op.x.shape, batched, {dy, x, w});
  if (read_flag(args[5])) dw = make_output(args[8], op.w, nullptr, {dy, x, w});
  if (read_flag(args[6])) {
    TensorView expected;
    expected.dtype = op.dy.dtype;
    expected.device = op.dy.device;
    expected.ndim = 1;
    expected.shape[0] = op.w.shape[0];
    db = make_output(args[9], expected, nullptr, {dy, x, w});
  }
  op.dx = dx.view, op.dw = dw.view, op.db = db.view;
  op.accumulate_dx = args[7] != Py_None, op.accumulate_dw = args[8] != Py_None, op.accumulate_db = args[9] != Py_None;
  if (query(desc, op) == 0) return py::none();
  const Scratch scratch(op.dy.device, &Backend::conv_backward_workspace, desc, op);
  check(run_operation(op.dy.device, &Backend::conv_backward, desc, op));
  return py::make_tuple(std::move(dx.array), std::move(dw.array), std::move(db.array));
}

// (spec, x_shape, w_shape)
py::object output_shape(PyObject* const* args) {
  const ConvDesc& desc = value_of<ConvSpec>(args[0], spec_type).desc;
  bool batched = false;
  const TensorView x = leading_image(shape_view(args[1], DType::f32), desc, batched);
  int64_t shape[kMaxDims];
  check(conv_output_shape(desc, x, shape_view(args[2], DType::f32), shape));
  return batched ? shape_tuple(shape, desc.spatial + 2) : shape_tuple(shape + 1, desc.spatial + 1);
}

// --- plans and decisions ---------------------------------------------------------------------------------------

// An operand that may be given as an array or, for its shape alone, as a tuple.
TensorView array_or_shape(PyObject* object, DType dtype, Device device) {
  return is_shape(object) ? shape_view(object, dtype, device) : array_view(object);
}

struct DecisionCall {
  const ConvDesc& desc;
  Pass pass;
  ConvOperands operands;
};

// (spec, pass, x, weight, y, bias, scale, shift, residual, input_scale, input_shift, input_gate)
// The pass's result (y, x or weight) is a shape or, for y of a forward pass, None; x may always be a shape.
DecisionCall read_decision_call(PyObject* const* args) {
  const ConvSpec& spec = value_of<ConvSpec>(args[0], spec_type);
  const ConvDesc& desc = spec.desc;
  DecisionCall call{desc, read_enum(py::handle(args[1]).cast<int32_t>(), Pass::backward_weight), {}};
  // The dtype of the shapes among the operands is that of the arrays, and so is their device.
  DType dtype = DType::f32;
  Device device = Device::cpu;
  for (PyObject* operand : {args[2], args[3], args[4]}) {
    if (operand == Py_None || is_shape(operand)) continue;
    const TensorView view = array_view(operand);
    dtype = view.dtype, device = view.device;
  }
  ConvOperands& op = call.operands;
  bool batched = false;
  op.x = leading_image(array_or_shape(args[2], dtype, device), desc, batched);
  op.w = array_or_shape(args[3], dtype, device);
  if (args[4] == Py_None) {
    op.y.data = no_data;
    op.y.dtype = dtype;
    op.y.device = device;
    op.y.ndim = desc.spatial + 2;
    check(conv_output_shape(desc, op.x, op.w, op.y.shape));
    pack_strides(op.y, nullptr);
  } else {
    op.y = array_or_shape(args[4], dtype, device);
    complete_image(op.y, desc, batched);
  }
  op.epilogue = {optional_view(args[5]), optional_view(args[6]), optional_view(args[7]),
                 following_image(args[8], desc, batched), spec.activation};
  op.prologue = {optional_view(args[9]), optional_view(args[10]), gate_view(args[11], batched), spec.input_activation};
  return call;
}

py::object conv_decide_entry(PyObject* const* args) {
  const DecisionCall call = read_decision_call(args);
  Decision decision;
  check(run_operation(call.operands.x.device, &Backend::conv_decide, call.desc, call.pass, call.operands, &decision));
  return decision_dict(decision);
}

constexpr const char* kWays[] = {"model", "rows", "columns", "fft", "winograd2", "winograd4"};

py::tuple three(const int64_t (&values)[3]) { return py::make_tuple(values[0], values[1], values[2]); }

// As conv_decide's. A list of (product, the way taken, whether a table says so, candidates); see fastconv.tuning.
py::object conv_products_entry(PyObject* const* args) {
  const DecisionCall call = read_decision_call(args);
  std::vector<ProductChoice> choices;
  check(conv_products(call.desc, call.pass, call.operands, &choices));
  py::list result;
  for (const ProductChoice& choice : choices) {
    const Product& p = choice.product;
    py::list candidates;
    for (const Candidate& c : choice.candidates) {
      candidates.append(
          py::make_tuple(kWays[static_cast<int>(c.way)], c.cost, c.obstacle ? py::cast(c.obstacle) : py::none()));
    }
    const py::tuple product =
        py::make_tuple(isa_name(p.isa), p.dtype == DType::f32 ? "float32" : "float64", p.channels_last, p.groups, p.C,
                       p.K, three(p.filter), three(p.out), three(p.stride), three(p.dilation));
    result.append(py::make_tuple(product, kWays[static_cast<int>(choice.taken)], choice.tuned, candidates));
  }
  return result;
}

template <size_t kCount>
int name_index(const py::handle& name, const char* const (&names)[kCount]) {
  const auto text = name.cast<std::string>();
  for (size_t i = 0; i < kCount; ++i) {
    if (text == names[i]) return static_cast<int>(i);
  }
  throw py::value_error("not known: " + text);
}

// [(product, way)] -> number
int32_t make_tune_table_entry(const py::list& entries) {
  constexpr const char* kIsas[] = {"portable", "avx2", "avx512"};
  constexpr const char* kDTypes[] = {"float32", "float64"};
  std::vector<TunedProduct> products;
  for (const py::handle& entry : entries) {
    const auto pair = entry.cast<py::tuple>();
    const auto parts = pair[0].cast<py::tuple>();
    TunedProduct& tuned = products.emplace_back();
    Product& p = tuned.product;
    tuned.way = static_cast<Way>(name_index(pair[1], kWays));
    p.isa = static_cast<Isa>(name_index(parts[0], kIsas));
    p.dtype = static_cast<DType>(name_index(parts[1], kDTypes));
    p.channels_last = parts[2].cast<bool>();
    p.groups = parts[3].cast<int64_t>(), p.C = parts[4].cast<int64_t>(), p.K = parts[5].cast<int64_t>();
    read_entries(parts[6].cast<py::tuple>(), 3, p.filter);
    read_entries(parts[7].cast<py::tuple>(), 3, p.out);
    read_entries(parts[8].cast<py::tuple>(), 3, p.stride);
    read_entries(parts[9].cast<py::tuple>(), 3, p.dilation);
  }
  return make_tune_table(products);
}

// A ConvPlan with what its binding needs to allocate the output.
struct PlanHandle {
  std::shared_ptr<const ConvPlan> plan;
  ConvDesc desc;
  TensorView weight;  // dtype and shape
};

// (spec, x_like, weight, bias, scale, shift, input_scale, input_shift, gated): `gated` says that calls bring a gate.
py::object conv_plan_entry(PyObject* const* args) {
  const ConvSpec& spec = value_of<ConvSpec>(args[0], spec_type);
  ConvOperands op;
  bool batched = false;
  op.w = array_view(args[2]);
  op.x = leading_image(array_or_shape(args[1], op.w.dtype, op.w.device), spec.desc, batched);
  op.epilogue = {optional_view(args[3]), optional_view(args[4]), optional_view(args[5]), {}, spec.activation};
  op.prologue = {optional_view(args[6]), optional_view(args[7]), {}, spec.input_activation};
  if (read_flag(args[8])) {
    TensorView& gate = op.prologue.gate;
    gate.data = no_data;
    gate.dtype = op.x.dtype;
    gate.ndim = 2;
    gate.shape[0] = op.x.shape[0];
    gate.shape[1] = op.x.shape[spec.desc.channels_last ? op.x.ndim - 1 : 1];
    pack_strides(gate, nullptr);
  }
  PlanHandle handle{nullptr, spec.desc, op.w};
  handle.weight.data = no_data;
  Status status = Status::ok;
  {
    ReleaseGil gil;
    handle.plan = conv_plan(spec.desc, op, &status);
  }
  check(status);
  return py::cast(std::move(handle));
}

// ConvPlan.run(x, residual, input_gate, out)
PyObject* plan_run(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 4) {
    PyErr_Format(PyExc_TypeError, "expected 4 positional arguments, got %zd", count);
    return nullptr;
  }
  return guarded([&] {
    const PlanHandle& handle = value_of<PlanHandle>(self, plan_type);
    const ConvDesc& desc = handle.desc;
    bool batched = false;
    const TensorView x = leading_image(array_view(args[0]), desc, batched);
    const TensorView residual = following_image(args[1], desc, batched);
    const TensorView gate = gate_view(args[2], batched);
    int64_t shape[kMaxDims];
    check(conv_output_shape(desc, x, handle.weight, shape));
    Result y = make_image(args[3], desc, x, shape, batched, {{args[0], x}, {args[1], residual}, {args[2], gate}});
    Status status;
    {
      ReleaseGil gil;
      status = conv_plan_run(*handle.plan, x, y.view, residual, gate);
    }
    check(status);
    return y.array.release().ptr();
  });
}

// --- the tables ------------------------------------------------------------------------------------------------

PyMethodDef functions[] = {
    method<conv_forward, 11>("conv_forward",
                             "(spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, "
                             "out) -> y"),
    method<conv_backward_input, 6>("conv_backward_input", "(spec, dy, weight, input_shape, accumulate, out) -> dx"),
    method<conv_backward_weight, 6>("conv_backward_weight", "(spec, dy, x, weight_shape, accumulate, out) -> dw"),
    method<conv_backward_bias_entry, 4>("conv_backward_bias", "(spec, dy, accumulate, out) -> db"),
    method<conv_backward_entry, 10>("conv_backward",
                                    "(spec, dy, x, weight, needs_input, needs_weight, needs_bias, into_input, "
                                    "into_weight, into_bias) -> (dx, dw, db) or None"),
    method<conv_plan_entry, 9>("conv_plan",
                               "(spec, x_like, weight, bias, scale, shift, input_scale, input_shift, gated) -> "
                               "ConvPlan"),
    method<conv_decide_entry, 12>("conv_decide",
                                  "(spec, pass, x, weight, y, bias, scale, shift, residual, input_scale, input_shift, "
                                  "input_gate) -> dict"),
    method<conv_products_entry, 12>("conv_products",
                                    "(spec, pass, x, weight, y, bias, scale, shift, residual, input_scale, "
                                    "input_shift, input_gate) -> list"),
    method<output_shape, 3>("output_shape", "(spec, x_shape, weight_shape) -> shape of y"),
};

PyMethodDef plan_run_method = {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&plan_run)), METH_FASTCALL,
                               "(x, residual, input_gate, out) -> y"};

}  // namespace

void bind_conv(py::module_& m) {
  py::class_<ConvSpec> spec(m, "ConvSpec", py::is_final(), "The options of a layer, checked; immutable.");
  spec.def(py::init(&make_spec), py::arg("spatial"), py::arg("transposed"), py::arg("channels_last"), py::arg("stride"),
           py::arg("dilation"), py::arg("pad_before"), py::arg("pad_after"), py::arg("output_padding"),
           py::arg("groups"), py::arg("padding_mode"), py::arg("auto_padding"), py::arg("algorithm"),
           py::arg("precision"), py::arg("activation"), py::arg("input_activation"))
      .def_property_readonly("spatial", [](const ConvSpec& s) { return s.desc.spatial; })
      .def_property_readonly("transposed", [](const ConvSpec& s) { return s.desc.transposed; })
      .def_property_readonly("channels_last", [](const ConvSpec& s) { return s.desc.channels_last; })
      .def_property_readonly("stride", &entries_of<&ConvDesc::stride>)
      .def_property_readonly("dilation", &entries_of<&ConvDesc::dilation>)
      .def_property_readonly("pad_before", &entries_of<&ConvDesc::pad_before>)
      .def_property_readonly("pad_after", &entries_of<&ConvDesc::pad_after>)
      .def_property_readonly("output_padding", &entries_of<&ConvDesc::output_padding>)
      .def_property_readonly("groups", [](const ConvSpec& s) { return s.desc.groups; })
      .def_property_readonly("padding_mode",
                             [](const ConvSpec& s) { return static_cast<int32_t>(s.desc.padding_mode); })
      .def_property_readonly("auto_padding",
                             [](const ConvSpec& s) { return static_cast<int32_t>(s.desc.auto_padding); })
      .def_property_readonly("algorithm", [](const ConvSpec& s) { return static_cast<int32_t>(s.desc.algorithm); })
      .def_property_readonly("precision", [](const ConvSpec& s) { return static_cast<int32_t>(s.desc.precision); })
      .def_property_readonly("activation", [](const ConvSpec& s) { return activation_tuple(s.activation); })
      .def_property_readonly("input_activation",
                             [](const ConvSpec& s) { return activation_tuple(s.input_activation); });
  spec_type = reinterpret_cast<PyTypeObject*>(spec.ptr());

  py::class_<PlanHandle> plan(m, "ConvPlan", py::is_final(), "A prepared layer; immutable, safe in several threads.");
  plan.def_property_readonly("decision",
                             [](const PlanHandle& handle) { return decision_dict(conv_plan_decision(*handle.plan)); });
  plan_type = reinterpret_cast<PyTypeObject*>(plan.ptr());
  plan.attr("run") = py::reinterpret_steal<py::object>(PyDescr_NewMethod(plan_type, &plan_run_method));

  m.def("make_tune_table", &make_tune_table_entry, py::arg("products"));
  m.def("use_tune_table", &use_tune_table, py::arg("table"));

  add_functions(m, functions);
}

}  // namespace fastconv::bindings
