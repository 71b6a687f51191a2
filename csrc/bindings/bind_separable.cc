// Depthwise-separable layers for Python. A ConvSpec names the depthwise half; its input_activation is the one between
// the halves, its activation the last one.
#include <utility>

#include "bindings.h"
#include "conv_calls.h"
#include "fastconv/separable.h"

namespace fastconv::bindings {
namespace {

PyTypeObject* separable_type = nullptr;

// (x, depthwise_weight, pointwise_weight, depthwise_bias, depthwise_scale, depthwise_shift, bias, scale, shift), from
// args[1] on; x as an array or a shape.
SeparableOperands separable_operands(PyObject* const* args, const ConvSpec& spec, bool& batched) {
  SeparableOperands op;
  op.depthwise_weight = array_view(args[2]);
  op.pointwise_weight = array_view(args[3]);
  const TensorView x = is_shape(args[1]) ? shape_view(args[1], op.depthwise_weight.dtype) : array_view(args[1]);
  op.x = leading_image(x, spec.desc, batched);
  op.inner = {optional_view(args[4]), optional_view(args[5]), optional_view(args[6]), {}, spec.input_activation};
  op.epilogue = {optional_view(args[7]), optional_view(args[8]), optional_view(args[9]), {}, spec.activation};
  return op;
}

// (spec, x, depthwise_weight, pointwise_weight, depthwise_bias, depthwise_scale, depthwise_shift, bias, scale, shift,
//  residual, out)
template <Mode kMode>
py::object separable_forward(PyObject* const* args) {
  const ConvSpec& spec = value_of<ConvSpec>(args[0], spec_type);
  bool batched = false;
  if (is_shape(args[1])) throw Refusal{"bad_type"};
  SeparableOperands op = separable_operands(args, spec, batched);
  op.epilogue.residual = following_image(args[10], spec.desc, batched);
  int64_t shape[kMaxDims];
  check(separable_output_shape(spec.desc, op.x, op.depthwise_weight, op.pointwise_weight, shape));
  Result y = make_image<kMode>(args[11], spec.desc, op.x, shape, batched,
                               {{args[1], op.x},
                                {args[2], op.depthwise_weight},
                                {args[3], op.pointwise_weight},
                                {args[4], op.inner.bias},
                                {args[5], op.inner.scale},
                                {args[6], op.inner.shift},
                                {args[7], op.epilogue.bias},
                                {args[8], op.epilogue.scale},
                                {args[9], op.epilogue.shift},
                                {args[10], op.epilogue.residual}});
  op.y = y.view;
  if constexpr (kMode == Mode::decide) {
    SeparableDecision d;
    check(separable_decide(spec.desc, op, &d));
    py::dict dict;
    dict["algorithm"] = d.unfused ? "two calls" : "one pass";
    dict["why"] = d.unfused ? d.unfused : "";
    dict["isa"] = d.filter.isa;
    dict["depthwise"] = half_dict(d.filter);
    dict["pointwise"] = half_dict(d.product);
    dict["block_pixels"] = d.pixels;
    dict["block_channels"] = d.channels;
    dict["whole_bytes"] = d.whole_bytes;
    dict["blocks"] = d.tasks;
    dict["workspace_per_thread"] = d.workspace;
    dict["packed_weight_bytes"] = d.packed_bytes;
    dict["flops"] = d.flops;
    dict["bytes"] = d.bytes;
    dict["shape"] = result_shape(y.view, batched);
    return dict;
  }
  const Scratch scratch(op.x.device, &Backend::separable_workspace, spec.desc, op);
  check(run_operation(op.x.device, &Backend::separable_run, spec.desc, op));
  return std::move(y.array);
}

struct SeparableHandle {
  std::shared_ptr<const SeparablePlan> plan;
  ConvDesc desc;
  TensorView depthwise_weight, pointwise_weight;  // dtype and shape
};

// (spec, x_like, depthwise_weight, pointwise_weight, depthwise_bias, depthwise_scale, depthwise_shift, bias, scale,
//  shift)
py::object separable_plan_entry(PyObject* const* args) {
  const ConvSpec& spec = value_of<ConvSpec>(args[0], spec_type);
  bool batched = false;
  const SeparableOperands op = separable_operands(args, spec, batched);
  SeparableHandle handle{nullptr, spec.desc, op.depthwise_weight, op.pointwise_weight};
  handle.depthwise_weight.data = handle.pointwise_weight.data = no_data;
  Status status = Status::ok;
  {
    ReleaseGil gil;
    handle.plan = separable_plan(spec.desc, op, &status);
  }
  check(status);
  return py::cast(std::move(handle));
}

// SeparablePlan.run(x, residual, out)
PyObject* run_separable_plan(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) {
    PyErr_Format(PyExc_TypeError, "expected 3 positional arguments, got %zd", count);
    return nullptr;
  }
  return guarded([&] {
    const SeparableHandle& handle = value_of<SeparableHandle>(self, separable_type);
    bool batched = false;
    const TensorView x = leading_image(array_view(args[0]), handle.desc, batched);
    const TensorView residual = following_image(args[1], handle.desc, batched);
    int64_t shape[kMaxDims];
    check(separable_output_shape(handle.desc, x, handle.depthwise_weight, handle.pointwise_weight, shape));
    Result y = make_image(args[2], handle.desc, x, shape, batched, {{args[0], x}, {args[1], residual}});
    Status status;
    {
      ReleaseGil gil;
      status = separable_plan_run(*handle.plan, x, y.view, residual);
    }
    check(status);
    return y.array.release().ptr();
  });
}

PyMethodDef separable_functions[] = {
    method<separable_forward<Mode::run>, 12>(
        "separable_forward",
        "(spec, x, depthwise_weight, pointwise_weight, depthwise_bias, depthwise_scale, "
        "depthwise_shift, bias, scale, shift, residual, out) -> y"),
    method<separable_forward<Mode::decide>, 12>(
        "separable_forward_decide",
        "(spec, x, depthwise_weight, pointwise_weight, depthwise_bias, depthwise_scale, "
        "depthwise_shift, bias, scale, shift, residual, out) -> dict"),
    method<separable_plan_entry, 10>("separable_plan",
                                     "(spec, x_like, depthwise_weight, pointwise_weight, depthwise_bias, "
                                     "depthwise_scale, depthwise_shift, bias, scale, shift) -> SeparablePlan"),
};

PyMethodDef separable_run_method = {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&run_separable_plan)),
                                    METH_FASTCALL, "(x, residual, out) -> y"};

}  // namespace

void bind_separable(py::module_& m) {
  py::class_<SeparableHandle> plan(m, "SeparablePlan", py::is_final(),
                                   "A prepared separable layer; immutable, safe in several threads.");
  plan.def_property_readonly("packed_bytes", [](const SeparableHandle& h) { return separable_plan_bytes(*h.plan); })
      .def_property_readonly("workspace_bytes",
                             [](const SeparableHandle& h) { return separable_plan_workspace(*h.plan); });
  separable_type = reinterpret_cast<PyTypeObject*>(plan.ptr());
  plan.attr("run") = py::reinterpret_steal<py::object>(PyDescr_NewMethod(separable_type, &separable_run_method));
  add_functions(m, separable_functions);
}

}  // namespace fastconv::bindings
