// Pooling for Python: PoolSpec and the passes.
#include <utility>

#include "bindings.h"
#include "calls.h"
#include "fastconv/pool.h"

namespace fastconv::bindings {
namespace {

PyTypeObject* pool_spec_type = nullptr;

// The options of a layer, checked and in canonical form (see _args.pool): what the functions cache.
struct PoolSpec { PoolDesc desc; };

void read_entries(const py::tuple& entries, int spatial, int64_t* values) {
  if (static_cast<int>(entries.size()) != spatial) throw py::value_error("expected one entry a spatial dimension");
  for (int i = 0; i < spatial; ++i) values[i] = entries[i].cast<int64_t>();
}

PoolSpec make_pool_spec(int32_t spatial, bool channels_last, int32_t kind, bool adaptive, const py::tuple& kernel,
                        const py::tuple& stride, const py::tuple& dilation, const py::tuple& pad_before,
                        const py::tuple& pad_after, int32_t auto_padding, int32_t ceil_mode, bool count_include_pad,
                        int64_t divisor, double norm) {
  if (spatial < 1 || spatial > 3) throw py::value_error("spatial must be 1, 2 or 3");
  PoolSpec spec;
  PoolDesc& desc = spec.desc;
  desc.spatial = spatial;
  desc.channels_last = channels_last;
  desc.kind = read_enum(kind, PoolKind::lp);
  desc.adaptive = adaptive;
  read_entries(kernel, spatial, desc.kernel);
  read_entries(stride, spatial, desc.stride);
  read_entries(dilation, spatial, desc.dilation);
  read_entries(pad_before, spatial, desc.pad_before);
  read_entries(pad_after, spatial, desc.pad_after);
  desc.auto_padding = read_enum(auto_padding, AutoPadding::same_lower);
  desc.ceil_mode = read_enum(ceil_mode, CeilMode::unclipped);
  desc.count_include_pad = count_include_pad;
  desc.divisor = divisor;
  desc.norm = norm;
  return spec;
}

template <int64_t (PoolDesc::*kMember)[3]>
py::tuple entries_of(const PoolSpec& spec) {
  return shape_tuple(spec.desc.*kMember, spec.desc.spatial);
}

// Given its batch axis where it has none. `batched` is what the leading operand was; the others must follow it.
void complete_image(TensorView& view, const PoolDesc& desc, bool batched) {
  if (view.ndim != desc.spatial + (batched ? 2 : 1)) throw Refusal{"bad_rank"};
  if (!batched) insert_batch_axis(view);
}

TensorView leading_image(TensorView view, const PoolDesc& desc, bool& batched) {
  batched = view.ndim == desc.spatial + 2;
  complete_image(view, desc, batched);
  return view;
}

TensorView index_view(PyObject* object, const PoolDesc& desc, bool batched) {
  if (object == Py_None) return {};
  TensorView view = array_view(object, true);
  complete_image(view, desc, batched);
  if (view.dtype != DType::i64) throw Refusal{"bad_dtype"};
  return view;
}

// A new output, or the user's, of `shape` (with its batch axis) in the memory order of `like`; the view that is
// returned has the batch axis.
template <Mode kMode>
Result make_image(PyObject* out, const PoolDesc& desc, const TensorView& like, DType dtype, const int64_t* shape,
                  bool batched, std::initializer_list<Read> reads) {
  const int ndim = desc.spatial + (batched ? 2 : 1);
  TensorView expected;
  expected.dtype = dtype;
  expected.device = like.device;
  expected.ndim = ndim;
  for (int i = 0; i < ndim; ++i) expected.shape[i] = shape[batched ? i : i + 1];
  const int first = batched ? 1 : 0;  // the axes before the channels and the pixels
  const int channels = desc.channels_last ? ndim - 1 : first;
  ConvDesc axes;
  axes.spatial = desc.spatial, axes.channels_last = desc.channels_last;
  const bool innermost = output_is_channels_last(axes, like);
  int order[kMaxDims];
  int n = 0;
  if (batched) order[n++] = 0;
  if (!innermost) order[n++] = channels;
  for (int i = first; i < ndim; ++i) {
    if (i != channels) order[n++] = i;
  }
  if (innermost) order[n++] = channels;
  Result result = make_result<kMode>(out, expected, order, reads);
  if (!batched) insert_batch_axis(result.view);
  return result;
}

// (spec, x, return_indices, out) -> y, or (y, indices)
template <Mode kMode>
py::object pool_forward_entry(PyObject* const* args) {
  const PoolDesc& desc = value_of<PoolSpec>(args[0], pool_spec_type).desc;
  bool batched = false;
  const TensorView x = leading_image(array_view(args[1], desc.kind == PoolKind::max), desc, batched);
  const bool with_indices = read_flag(args[2]);
  int64_t shape[kMaxDims];
  check(pool_output_shape(desc, x, shape));
  Result y = make_image<kMode>(args[3], desc, x, x.dtype, shape, batched, {{args[1], x}});
  Result indices;
  if (with_indices) indices = make_image<kMode>(Py_None, desc, x, DType::i64, shape, batched, {});
  if constexpr (kMode == Mode::decide) {
    PathDecision decision;
    check(pool_decide(desc, x, y.view, indices.view, &decision));
    return path_dict(decision, y.view, batched);
  }
  check(run_operation(x.device, &Backend::pool_forward, desc, x, y.view, indices.view));
  if (!with_indices) return std::move(y.array);
  return py::make_tuple(std::move(y.array), std::move(indices.array));
}

// (spec, dy, x, indices, out) -> dx; x is an array or a shape
template <Mode kMode>
py::object pool_backward_entry(PyObject* const* args) {
  const PoolDesc& desc = value_of<PoolSpec>(args[0], pool_spec_type).desc;
  bool batched = false;
  const TensorView dy = leading_image(array_view(args[1]), desc, batched);
  TensorView x = is_shape(args[2]) ? shape_view(args[2], dy.dtype, dy.device) : array_view(args[2]);
  complete_image(x, desc, batched);
  const TensorView indices = index_view(args[3], desc, batched);
  const bool reads_x = desc.kind == PoolKind::lp || (desc.kind == PoolKind::max && !indices.data);
  if (reads_x && is_shape(args[2])) throw Refusal{"bad_type"};
  Result dx = make_image<kMode>(args[4], desc, dy, dy.dtype, x.shape, batched,
                                {{args[1], dy}, {args[2], reads_x ? x : TensorView{}}, {args[3], indices}});
  if constexpr (kMode == Mode::decide) {
    PathDecision decision;
    check(pool_backward_decide(desc, dy, x, indices, dx.view, &decision));
    return path_dict(decision, dx.view, batched);
  }
  const Scratch scratch(dy.device, &Backend::pool_backward_workspace, desc, x, indices.data != nullptr);
  check(run_operation(dy.device, &Backend::pool_backward, desc, dy, x, indices, dx.view));
  return std::move(dx.array);
}

// (spec, x, indices, output_shape, out) -> y
py::object unpool_forward_entry(PyObject* const* args) {
  const PoolDesc& desc = value_of<PoolSpec>(args[0], pool_spec_type).desc;
  bool batched = false;
  const TensorView x = leading_image(array_view(args[1]), desc, batched);
  const TensorView indices = index_view(args[2], desc, batched);
  if (!indices.data) throw Refusal{"bad_type"};
  TensorView shape = shape_view(args[3], x.dtype, x.device);
  complete_image(shape, desc, batched);
  Result y = make_image<Mode::run>(args[4], desc, x, x.dtype, shape.shape, batched, {{args[1], x}, {args[2], indices}});
  const Scratch scratch(x.device, &Backend::unpool_forward_workspace, y.view);
  check(run_operation(x.device, &Backend::unpool_forward, desc.spatial, desc.channels_last, x, indices, y.view));
  return std::move(y.array);
}

// (spec, dy, indices, out) -> dx
py::object unpool_backward_entry(PyObject* const* args) {
  const PoolDesc& desc = value_of<PoolSpec>(args[0], pool_spec_type).desc;
  bool batched = false;
  const TensorView dy = leading_image(array_view(args[1]), desc, batched);
  const TensorView indices = index_view(args[2], desc, batched);
  if (!indices.data) throw Refusal{"bad_type"};
  Result dx =
      make_image<Mode::run>(args[3], desc, dy, dy.dtype, indices.shape, batched, {{args[1], dy}, {args[2], indices}});
  check(run_operation(dy.device, &Backend::unpool_backward, desc.spatial, desc.channels_last, dy, indices, dx.view));
  return std::move(dx.array);
}

PyMethodDef pool_functions[] = {
    method<pool_forward_entry<Mode::run>, 4>("pool_forward", "(spec, x, return_indices, out) -> y, or (y, indices)"),
    method<pool_forward_entry<Mode::decide>, 4>("pool_forward_decide", "(spec, x, return_indices, out) -> dict"),
    method<pool_backward_entry<Mode::run>, 5>("pool_backward", "(spec, dy, x or its shape, indices, out) -> dx"),
    method<pool_backward_entry<Mode::decide>, 5>("pool_backward_decide",
                                                 "(spec, dy, x or its shape, indices, out) -> dict"),
    method<unpool_forward_entry, 5>("unpool_forward", "(spec, x, indices, output_shape, out) -> y"),
    method<unpool_backward_entry, 4>("unpool_backward", "(spec, dy, indices, out) -> dx"),
};

}  // namespace

void bind_pool(py::module_& m) {
  py::class_<PoolSpec> spec(m, "PoolSpec", py::is_final(), "The options of a pooling layer, checked; immutable.");
  spec.def(py::init(&make_pool_spec), py::arg("spatial"), py::arg("channels_last"), py::arg("kind"),
           py::arg("adaptive"), py::arg("kernel"), py::arg("stride"), py::arg("dilation"), py::arg("pad_before"),
           py::arg("pad_after"), py::arg("auto_padding"), py::arg("ceil_mode"), py::arg("count_include_pad"),
           py::arg("divisor"), py::arg("norm"))
      .def_property_readonly("spatial", [](const PoolSpec& s) { return s.desc.spatial; })
      .def_property_readonly("channels_last", [](const PoolSpec& s) { return s.desc.channels_last; })
      .def_property_readonly("kind", [](const PoolSpec& s) { return static_cast<int32_t>(s.desc.kind); })
      .def_property_readonly("adaptive", [](const PoolSpec& s) { return s.desc.adaptive; })
      .def_property_readonly("kernel", &entries_of<&PoolDesc::kernel>)
      .def_property_readonly("stride", &entries_of<&PoolDesc::stride>)
      .def_property_readonly("dilation", &entries_of<&PoolDesc::dilation>)
      .def_property_readonly("pad_before", &entries_of<&PoolDesc::pad_before>)
      .def_property_readonly("pad_after", &entries_of<&PoolDesc::pad_after>)
      .def_property_readonly("auto_padding",
                             [](const PoolSpec& s) { return static_cast<int32_t>(s.desc.auto_padding); })
      .def_property_readonly("ceil_mode", [](const PoolSpec& s) { return static_cast<int32_t>(s.desc.ceil_mode); })
      .def_property_readonly("count_include_pad", [](const PoolSpec& s) { return s.desc.count_include_pad; })
      .def_property_readonly("divisor", [](const PoolSpec& s) { return s.desc.divisor; })
      .def_property_readonly("norm", [](const PoolSpec& s) { return s.desc.norm; });
  pool_spec_type = reinterpret_cast<PyTypeObject*>(spec.ptr());
  add_functions(m, pool_functions);
}

}  // namespace fastconv::bindings
