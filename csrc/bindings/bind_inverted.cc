// Inverted residuals for Python. A ConvSpec names the depthwise layer; its input_activation is that of the expansion,
// its activation that of the depthwise layer. A second one names the projection, of which the activation is read.
#include <utility>

#include "bindings.h"
#include "conv_calls.h"
#include "fastconv/inverted.h"

namespace fastconv::bindings {
namespace {

PyTypeObject* inverted_type = nullptr;

// (project_spec, x, expand_weight, depthwise_weight, project_weight, expand_bias, expand_scale, expand_shift,
//  depthwise_bias, depthwise_scale, depthwise_shift, bias, scale, shift), from args[1] on; x as an array or a shape.
InvertedOperands inverted_operands(PyObject* const* args, const ConvSpec& spec, bool& batched) {
  InvertedOperands op;
  const ConvSpec& project = value_of<ConvSpec>(args[1], spec_type);
  op.expand_weight = array_view(args[3]);
  op.depthwise_weight = array_view(args[4]);
  op.project_weight = optional_view(args[5]);
  const TensorView x = is_shape(args[2]) ? shape_view(args[2], op.expand_weight.dtype) : array_view(args[2]);
  op.x = leading_image(x, spec.desc, batched);
  op.expand = {optional_view(args[6]), optional_view(args[7]), optional_view(args[8]), {}, spec.input_activation};
  op.inner = {optional_view(args[9]), optional_view(args[10]), optional_view(args[11]), {}, spec.activation};
  op.epilogue = {optional_view(args[12]), optional_view(args[13]), optional_view(args[14]), {}, project.activation};
  return op;
}

// The means of a call without a projection: (N, E), or (E,) without the batch.
Result make_mean(const TensorView& like, int64_t channels, bool batched) {
  TensorView expected;
  expected.dtype = like.dtype;
  expected.device = like.device;
  expected.ndim = batched ? 2 : 1;
  expected.shape[0] = batched ? like.shape[0] : channels;
  expected.shape[1] = channels;
  const int order[] = {0, 1};
  Result result = make_output(Py_None, expected, order, {});
  if (!batched) insert_batch_axis(result.view);
  return result;
}

// What a plan and a call have in common; `in_rows`: of the one or the other.
py::dict decision_of(const InvertedDecision& d, bool in_rows) {
  py::dict dict;
  dict["algorithm"] = "inverted residual";
  dict["role"] = in_rows ? "rows of the expansion" : "the expansion of an image";
  dict["rows"] = d.rows;
  dict["columns"] = d.columns;
  dict["kept_rows"] = in_rows ? d.kept_rows : 0;
  dict["packed_weight_bytes"] = d.packed_bytes;
  dict["workspace_per_thread"] = d.workspace;
  dict["whole_bytes"] = d.whole_bytes;
  return dict;
}

py::dict call_dict(const InvertedDecision& d, const InvertedOperands& op, const py::tuple& shape) {
  py::dict dict = decision_of(d, d.call_in_rows);
  dict["workspace_per_thread"] = d.call_workspace;
  dict["whole_bytes"] = d.call_whole_bytes;
  dict["why"] = d.call_whole ? d.call_whole : "";
  dict["isa"] = d.expand.isa;
  dict["expand"] = half_dict(d.expand);
  dict["depthwise"] = half_dict(d.filter);
  if (op.project_weight.data) dict["project"] = half_dict(d.product);
  dict["blocks"] = d.tasks;
  dict["flops"] = d.flops;
  dict["bytes"] = d.bytes;
  dict["shape"] = shape;
  return dict;
}

// (spec, project_spec, x, expand_weight, depthwise_weight, project_weight, expand_bias, expand_scale, expand_shift,
//  depthwise_bias, depthwise_scale, depthwise_shift, bias, scale, shift, residual, out)
template <Mode kMode>
py::object inverted_forward(PyObject* const* args) {
  const ConvSpec& spec = value_of<ConvSpec>(args[0], spec_type);
  bool batched = false;
  if (is_shape(args[2])) throw Refusal{"bad_type"};
  InvertedOperands op = inverted_operands(args, spec, batched);
  op.epilogue.residual = following_image(args[15], spec.desc, batched);
  int64_t shape[kMaxDims];
  check(inverted_output_shape(spec.desc, op.x, op.expand_weight, op.depthwise_weight, op.project_weight, shape));
  Result y = make_image<kMode>(args[16], spec.desc, op.x, shape, batched,
                               {{args[2], op.x},
                                {args[3], op.expand_weight},
                                {args[4], op.depthwise_weight},
                                {args[5], op.project_weight},
                                {args[6], op.expand.bias},
                                {args[7], op.expand.scale},
                                {args[8], op.expand.shift},
                                {args[9], op.inner.bias},
                                {args[10], op.inner.scale},
                                {args[11], op.inner.shift},
                                {args[12], op.epilogue.bias},
                                {args[13], op.epilogue.scale},
                                {args[14], op.epilogue.shift},
                                {args[15], op.epilogue.residual}});
  op.y = y.view;
  if constexpr (kMode == Mode::decide) {
    InvertedDecision d;
    check(inverted_decide(spec.desc, op, &d));
    return call_dict(d, op, result_shape(y.view, batched));
  }
  Result mean;
  if (!op.project_weight.data) mean = make_mean(op.x, op.expand_weight.shape[0], batched);
  op.mean = mean.view;
  const Scratch scratch(op.x.device, &Backend::inverted_workspace, spec.desc, op);
  check(run_operation(op.x.device, &Backend::inverted_run, spec.desc, op));
  if (mean.array) return py::make_tuple(y.array, mean.array);
  return std::move(y.array);
}

struct InvertedHandle {
  std::shared_ptr<const InvertedPlan> plan;
  ConvDesc desc;
  TensorView expand_weight, depthwise_weight, project_weight;  // dtype and shape
};

// (spec, project_spec, x_like, expand_weight, depthwise_weight, project_weight, expand_bias, expand_scale,
//  expand_shift, depthwise_bias, depthwise_scale, depthwise_shift, bias, scale, shift)
py::object inverted_plan_entry(PyObject* const* args) {
  const ConvSpec& spec = value_of<ConvSpec>(args[0], spec_type);
  bool batched = false;
  const InvertedOperands op = inverted_operands(args, spec, batched);
  InvertedHandle handle{nullptr, spec.desc, op.expand_weight, op.depthwise_weight, op.project_weight};
  for (TensorView* weight : {&handle.expand_weight, &handle.depthwise_weight, &handle.project_weight})
    if (weight->data) weight->data = no_data;
  Status status = Status::ok;
  {
    ReleaseGil gil;
    handle.plan = inverted_plan(spec.desc, op, &status);
  }
  check(status);
  return py::cast(std::move(handle));
}

// InvertedPlan.run(x, residual, out)
PyObject* run_inverted_plan(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) {
    PyErr_Format(PyExc_TypeError, "expected 3 positional arguments, got %zd", count);
    return nullptr;
  }
  return guarded([&] {
    const InvertedHandle& handle = value_of<InvertedHandle>(self, inverted_type);
    bool batched = false;
    const TensorView x = leading_image(array_view(args[0]), handle.desc, batched);
    const TensorView residual = following_image(args[1], handle.desc, batched);
    int64_t shape[kMaxDims];
    check(inverted_output_shape(handle.desc, x, handle.expand_weight, handle.depthwise_weight, handle.project_weight,
                                shape));
    Result y = make_image(args[2], handle.desc, x, shape, batched, {{args[0], x}, {args[1], residual}});
    Result mean;
    if (!handle.project_weight.data) mean = make_mean(x, handle.expand_weight.shape[0], batched);
    Status status;
    {
      ReleaseGil gil;
      status = inverted_plan_run(*handle.plan, x, y.view, residual, mean.view);
    }
    check(status);
    if (mean.array) return py::make_tuple(y.array, mean.array).release().ptr();
    return y.array.release().ptr();
  });
}

py::dict plan_decision(const InvertedHandle& handle) {
  const InvertedDecision d = inverted_plan_decision(*handle.plan);
  return decision_of(d, d.in_rows);
}

PyMethodDef inverted_functions[] = {
    method<inverted_forward<Mode::run>, 17>("inverted_forward",
                                            "(spec, project_spec, x, expand_weight, depthwise_weight, project_weight, "
                                            "expand_bias, expand_scale, expand_shift, depthwise_bias, depthwise_scale, "
                                            "depthwise_shift, bias, scale, shift, residual, out) -> y, or (u, mean)"),
    method<inverted_forward<Mode::decide>, 17>(
        "inverted_forward_decide",
        "(spec, project_spec, x, expand_weight, depthwise_weight, project_weight, "
        "expand_bias, expand_scale, expand_shift, depthwise_bias, depthwise_scale, "
        "depthwise_shift, bias, scale, shift, residual, out) -> dict"),
    method<inverted_plan_entry, 15>("inverted_plan",
                                    "(spec, project_spec, x_like, expand_weight, depthwise_weight, project_weight, "
                                    "expand_bias, expand_scale, expand_shift, depthwise_bias, depthwise_scale, "
                                    "depthwise_shift, bias, scale, shift) -> InvertedPlan"),
};

PyMethodDef inverted_run_method = {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&run_inverted_plan)),
                                   METH_FASTCALL, "(x, residual, out) -> y, or (u, mean)"};

}  // namespace

void bind_inverted(py::module_& m) {
  py::class_<InvertedHandle> plan(m, "InvertedPlan", py::is_final(),
                                  "A prepared inverted residual; immutable, safe in several threads.");
  plan.def_property_readonly("decision", &plan_decision);
  inverted_type = reinterpret_cast<PyTypeObject*>(plan.ptr());
  plan.attr("run") = py::reinterpret_steal<py::object>(PyDescr_NewMethod(inverted_type, &inverted_run_method));
  add_functions(m, inverted_functions);
}

}  // namespace fastconv::bindings
