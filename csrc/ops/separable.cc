// Depthwise-separable layers: the dense product of the 1x1 half, whose input its tasks compute block by block.
#include "fastconv/separable.h"

#include "ops/depthwise.h"
#include "ops/device.h"
#include "ops/layer.h"
#include "ops/path.h"

namespace fastconv {
namespace ops {
namespace {

TensorView intermediate(const ConvDesc& desc, const TensorView& x, const int64_t* shape) {
  static char nowhere;
  TensorView u;
  u.data = &nowhere;
  u.dtype = x.dtype, u.device = x.device;
  u.ndim = desc.spatial + 2;
  std::copy_n(shape, u.ndim, u.shape);
  // Dense, in the memory order of x.
  const int channels = desc.channels_last ? u.ndim - 1 : 1;
  int64_t step = 1;
  auto take = [&](int axis) { u.strides[axis] = step, step *= std::max<int64_t>(1, u.shape[axis]); };
  const bool last = output_is_channels_last(desc, x);
  if (last) take(channels);
  for (int axis = u.ndim - 1; axis >= 1; --axis)
    if (axis != channels) take(axis);
  if (!last) take(channels);
  take(0);
  return u;
}

constexpr const char *kOnePass = "one pass", *kTwoCalls = "two calls";

// A layer with all that does not depend on where its arrays lie.
template <class T>
struct Separable {
  ConvDesc desc;
  Layer filter, product;  // the depthwise half and the 1x1 half
  Machine machine;
  std::vector<Run<T>> filters, products;  // one each
  Block packed_filters, packed_product, vectors;
  Finish<T> inner, finish;
  InputMap<T> map{};

  // All but the weights and vectors, whose data is not read.
  Status decide(const ConvDesc& d, const SeparableOperands& o, bool has_residual) {
    desc = d;
    int64_t shape[kMaxDims];
    Status s = conv_output_shape(d, o.x, o.depthwise_weight, shape);
    if (s != Status::ok) return s;
    const TensorView u = intermediate(d, o.x, shape);
    ConvOperands f;
    f.x = o.x, f.w = o.depthwise_weight, f.epilogue = o.inner;
    if ((s = check_forward(d, f, &filter)) != Status::ok) return s;
    if (!absent(o.inner.residual) || d.transposed) return Status::unsupported;
    ConvOperands p;
    p.x = u, p.w = o.pointwise_weight, p.y = o.y, p.epilogue = o.epilogue;
    for (int i = 2; i < p.w.ndim; ++i)
      if (p.w.shape[i] != 1) return Status::bad_shape;
    if ((s = check_forward(pointwise_desc(d), p, &product)) != Status::ok) return s;
    const Geometry& g = filter.geometry;
    if (absent(o.y)) product.y = dense_strides(product.channels_last, product.out_channels, g.out);
    // A plan brings a residual that it is given into the order of y.
    if (!has_residual || absent(o.epilogue.residual)) product.r = product.y;
    machine = current_machine(g.dtype);

    filters.resize(1), products.resize(1);
    const Strides none = dense_strides(filter.channels_last, filter.out_channels, g.out);
    filters[0].job = fprop_job(g, filter.x, none, nullptr, filter.w);
    Problem half = describe(filters[0].job, sizeof(T), filter.channels_last, false, Algorithm::direct);
    half.part = true;
    filters[0].choice = choose(half, machine);
    products[0].job = fprop_job(product.geometry, none, product.y, has_residual ? &product.r : nullptr, product.w);
    Problem problem = describe(products[0].job, sizeof(T), product.channels_last, true, Algorithm::automatic);
    problem.produced = true;
    products[0].choice = choose(problem, machine);
    if (!unfused()) limit_block(products[0].job, &products[0].choice, machine, sizeof(T), [&] { return workspace(); });
    return Status::ok;
  }

  // `keep`: for a plan.
  Status build(const ConvDesc& d, const SeparableOperands& o, bool has_residual, bool keep) {
    Status s = decide(d, o, has_residual);
    if (s != Status::ok) return s;
    const KernelTable<T>& kernels = kernel_table<T>(machine.isa);
    filters[0].bind(nullptr, o.depthwise_weight.data, nullptr, nullptr);
    products[0].bind(nullptr, o.pointwise_weight.data, nullptr, nullptr);
    vectors = Block(static_cast<int64_t>(sizeof(T)) * 2 * (filter.out_channels + product.out_channels));
    if (vectors.failed()) return Status::out_of_memory;
    T* buffer = static_cast<T*>(vectors.data());
    inner = join_epilogue<T>(o.inner, filter.out_channels, buffer);
    finish = join_epilogue<T>(o.epilogue, product.out_channels, buffer + 2 * filter.out_channels);
    // What cannot be fused is done by two calls, which pack for themselves.
    if (unfused()) return Status::ok;
    if ((s = prepare_weights(filters, machine, kernels, true, &packed_filters)) != Status::ok) return s;
    // Every task reads all weights: panels of them are packed beforehand, rows are read as they lie.
    const bool panels = products[0].choice.role == Role::pixel_rows && product.geometry.N > 0;
    return prepare_weights(products, machine, kernels, keep || panels, &packed_product);
  }

  // Why the intermediate cannot be made block by block; null where it can.
  const char* unfused() const {
    return filter.geometry.C == 1 && filter.geometry.K == 1 ? nullptr : "a channel of x has several filters";
  }

  DepthwiseProducer<T> producer(const Run<T>& f) const {
    const Choice& c = products[0].choice;
    return {f, machine, kernel_table<T>(machine.isa), inner, map, 0, c.chunks[0].channels, most_columns(c, machine)};
  }

  // Scratch of a task, the block of the intermediate included.
  int64_t workspace() const {
    const DepthwiseProducer<T> made = producer(filters[0]);
    Run<T> p = products[0];
    p.producer = &made;
    return task_workspace(p, machine);
  }

  // The rest of what explain() tells, where the halves are one pass.
  void tell(SeparableDecision* d) const {
    const Geometry &f = filter.geometry, &p = product.geometry;
    d->filter = half_decision(filters[0], machine, f, 0), d->product = half_decision(products[0], machine, p, 0);
    const Choice& c = products[0].choice;
    d->pixels = c.pixel_block, d->channels = c.chunks[0].channels;
    d->filter.pixel_block = d->pixels, d->filter.channel_block = d->channels;
    d->workspace = workspace();
    d->tasks = p.N * ceil_div(p.out[0] * p.out[1] * p.out[2], std::max<int64_t>(1, c.pixel_block));
    d->packed_bytes = d->filter.packed_weight_bytes + d->product.packed_weight_bytes;
  }

  Status run(int64_t N, const void* x, const Strides& xs, void* y, const Strides& ys, const void* residual,
             const Strides& rs) const {
    begin_path(kOnePass);
    const KernelTable<T>& kernels = kernel_table<T>(machine.isa);
    Run<T> f = filters[0];
    std::vector<Run<T>> p = products;
    f.job.N = p[0].job.N = N;
    f.job.is = xs, p[0].job.os = ys, p[0].job.rs = rs;
    p[0].job.has_residual = residual != nullptr;
    f.bind(x, nullptr, nullptr, nullptr);
    p[0].bind(nullptr, nullptr, y, residual);
    const DepthwiseProducer<T> made = producer(f);
    p[0].producer = &made;
    return run_dense(p, machine, kernels, finish, map, 0, false);
  }
};

// The two calls of a layer whose halves are not one pass, and the intermediate between them.
struct Calls {
  TensorView u;
  ConvOperands filter, product;
  ConvDesc filter_desc, product_desc;
  int64_t bytes = 0;  // of u

  Calls(const ConvDesc& desc, const SeparableOperands& o) : filter_desc(desc), product_desc(pointwise_desc(desc)) {
    int64_t shape[kMaxDims];
    conv_output_shape(desc, o.x, o.depthwise_weight, shape);
    u = intermediate(desc, o.x, shape);
    bytes = o.x.dtype == DType::f32 ? sizeof(float) : sizeof(double);
    for (int i = 0; i < u.ndim; ++i) bytes *= u.shape[i];
    filter.x = o.x, filter.w = o.depthwise_weight, filter.y = u, filter.epilogue = o.inner;
    product.x = u, product.w = o.pointwise_weight, product.y = o.y, product.epilogue = o.epilogue;
  }
};

template <class T>
Status run_separable(const ConvDesc& desc, const SeparableOperands& o) {
  Separable<T> layer;
  const Status s = layer.build(desc, o, !absent(o.epilogue.residual), false);
  if (s != Status::ok) return s;
  const Geometry& g = layer.filter.geometry;
  if (g.N == 0) return Status::ok;
  if (!layer.unfused())
    return layer.run(g.N, o.x.data, layer.filter.x, o.y.data, layer.product.y, o.epilogue.residual.data,
                     layer.product.r);
  begin_path(kTwoCalls);
  Calls calls(desc, o);
  const Block block(calls.bytes);
  if (block.failed()) return Status::out_of_memory;
  calls.filter.y.data = calls.product.x.data = block.data();
  const Status first = conv_run(calls.filter_desc, Pass::forward, calls.filter);
  return first == Status::ok ? conv_run(calls.product_desc, Pass::forward, calls.product) : first;
}

template <class T>
Status decide_separable(const ConvDesc& desc, const SeparableOperands& o, SeparableDecision* d) {
  Separable<T> layer;
  const bool residual = !absent(o.epilogue.residual);
  Status s = layer.decide(desc, o, residual);
  if (s != Status::ok) return s;
  const Geometry &f = layer.filter.geometry, &p = layer.product.geometry;
  auto pixels = [](const int64_t* size) { return size[0] * size[1] * size[2]; };
  const int64_t in = layer.filter.in_channels * pixels(f.in);
  const int64_t out = layer.product.out_channels * pixels(p.out) * (residual ? 2 : 1);
  const int64_t weights = layer.filter.out_channels * f.filter[0] * f.filter[1] * f.filter[2] +
                          layer.product.in_channels * layer.product.out_channels;
  d->flops = 2 * (f.macs() + p.macs());
  d->bytes = static_cast<double>(sizeof(T)) * static_cast<double>(f.N * (in + out) + weights);
  if (!(d->unfused = layer.unfused())) return layer.tell(d), Status::ok;
  const Calls calls(desc, o);
  if ((s = conv_decide(calls.filter_desc, Pass::forward, calls.filter, &d->filter)) != Status::ok) return s;
  if ((s = conv_decide(calls.product_desc, Pass::forward, calls.product, &d->product)) != Status::ok) return s;
  d->whole_bytes = calls.bytes;
  d->workspace = std::max(d->filter.workspace_per_thread, d->product.workspace_per_thread);
  return s;
}

}  // namespace
}  // namespace ops

using namespace ops;

Status separable_output_shape(const ConvDesc& desc, const TensorView& x, const TensorView& depthwise_weight,
                              const TensorView& pointwise_weight, int64_t* shape) {
  int64_t middle[kMaxDims];
  const Status s = conv_output_shape(desc, x, depthwise_weight, middle);
  if (s != Status::ok) return s;
  return conv_output_shape(pointwise_desc(desc), intermediate(desc, x, middle), pointwise_weight, shape);
}

namespace {

Status on_host(const SeparableOperands& o) {
  return check_device(Device::cpu, {&o.x, &o.depthwise_weight, &o.pointwise_weight, &o.y, &o.epilogue.residual});
}

}  // namespace

Status separable_decide(const ConvDesc& desc, const SeparableOperands& o, SeparableDecision* decision) {
  const Status s = on_host(o);
  if (s != Status::ok) return s;
  if (o.x.dtype != DType::f32 && o.x.dtype != DType::f64) return Status::bad_dtype;
  return o.x.dtype == DType::f32 ? decide_separable<float>(desc, o, decision)
                                 : decide_separable<double>(desc, o, decision);
}

Status separable_run(const ConvDesc& desc, const SeparableOperands& o) {
  const Status s = on_host(o);
  if (s != Status::ok) return s;
  if (o.x.dtype != DType::f32 && o.x.dtype != DType::f64) return Status::bad_dtype;
  return o.x.dtype == DType::f32 ? run_separable<float>(desc, o) : run_separable<double>(desc, o);
}

// A plan is made for one memory order of x and y. Tensors in another order are copied to it and back.
class SeparablePlan {
 public:
  virtual ~SeparablePlan() = default;
  virtual Status run(const TensorView& x, const TensorView& y, const TensorView& residual) const = 0;
  int64_t bytes = 0, workspace = 0;
};

namespace {

template <class T>
class TypedSeparablePlan final : public SeparablePlan {
 public:
  Status build(const ConvDesc& desc, const SeparableOperands& o) {
    Status s = layer_.build(desc, o, true, true);
    if (s != Status::ok) return s;
    if (layer_.unfused()) return Status::unsupported;
    const Geometry& g = layer_.filter.geometry;
    x_ = dense_strides(layer_.filter.channels_last, layer_.filter.in_channels, g.in);
    y_ = dense_strides(layer_.product.channels_last, layer_.product.out_channels, g.out);
    const Run<T>& product = layer_.products[0];
    bytes = static_cast<int64_t>(sizeof(T)) *
            (packed_size(product.job, product.choice, layer_.machine, true) +
             packed_size(layer_.filters[0].job, layer_.filters[0].choice, layer_.machine, true));
    workspace = layer_.workspace();
    return Status::ok;
  }

  Status run(const TensorView& x, const TensorView& y, const TensorView& residual) const override {
    Geometry f = layer_.filter.geometry, p = layer_.product.geometry;
    f.N = p.N = x.ndim > 0 ? x.shape[0] : 0;
    const ConvDesc point = pointwise_desc(layer_.desc);
    Strides xs{}, ys{}, rs{};
    Status s = lift(layer_.desc, f, true, x, &xs);
    if (s != Status::ok) return s;
    if (lift(point, p, false, y, &ys) != Status::ok) return Status::bad_output;
    if (!absent(residual) && (s = lift(point, p, false, residual, &rs)) != Status::ok) return s;
    if (f.N == 0) return Status::ok;
    const void *input = x.data, *addend = residual.data;
    void* output = y.data;
    Block copies[3];
    const Strides user = ys;
    const KernelTable<T>& kernels = kernel_table<T>(layer_.machine.isa);
    // Brings a tensor into the plan's order.
    auto dense = [&](const Geometry& g, bool in_side, const Strides& wanted, const void* data, bool copy,
                     Strides* strides, Block* block) -> void* {
      const int64_t channels = g.G * (in_side ? g.C : g.K);
      const int64_t* size = in_side ? g.in : g.out;
      if (same_image(channels, size, *strides, wanted)) return const_cast<void*>(data);
      const int64_t elements = channels * size[0] * size[1] * size[2];
      *block = Block(g.N * elements * static_cast<int64_t>(sizeof(T)));
      if (block->failed()) return nullptr;
      Strides to = wanted;
      to.n = elements;
      if (copy) {
        s = copy_tensor(kernels, g, in_side, static_cast<const T*>(data), *strides, static_cast<T*>(block->data()), to);
        if (s != Status::ok) return nullptr;
      }
      *strides = to;
      return block->data();
    };
    input = dense(f, true, x_, x.data, true, &xs, &copies[0]);
    if (!input) return s != Status::ok ? s : Status::out_of_memory;
    if (!absent(residual)) addend = dense(p, false, y_, residual.data, true, &rs, &copies[1]);
    if (!absent(residual) && !addend) return s != Status::ok ? s : Status::out_of_memory;
    output = dense(p, false, y_, y.data, false, &ys, &copies[2]);
    if (!output) return Status::out_of_memory;
    if (absent(residual)) rs = ys;
    s = layer_.run(f.N, input, xs, output, ys, addend, rs);
    if (s == Status::ok && output != y.data)
      s = copy_tensor(kernels, p, false, static_cast<const T*>(output), ys, static_cast<T*>(y.data), user);
    return s;
  }

 private:
  Separable<T> layer_;
  Strides x_{}, y_{};
};

template <class T>
std::shared_ptr<const SeparablePlan> make_plan(const ConvDesc& desc, const SeparableOperands& o, Status* status) {
  auto plan = std::make_shared<TypedSeparablePlan<T>>();
  *status = plan->build(desc, o);
  if (*status != Status::ok) return nullptr;
  return plan;
}

}  // namespace

std::shared_ptr<const SeparablePlan> separable_plan(const ConvDesc& desc, const SeparableOperands& o, Status* status) {
  if ((*status = on_host(o)) != Status::ok) return nullptr;
  return o.x.dtype == DType::f32 ? make_plan<float>(desc, o, status) : make_plan<double>(desc, o, status);
}
Status separable_plan_run(const SeparablePlan& plan, const TensorView& x, const TensorView& y,
                          const TensorView& residual) {
  const Status s = check_device(Device::cpu, {&x, &y, &residual});
  return s == Status::ok ? plan.run(x, y, residual) : s;
}
int64_t separable_plan_bytes(const SeparablePlan& plan) { return plan.bytes; }
int64_t separable_plan_workspace(const SeparablePlan& plan) { return plan.workspace; }

}  // namespace fastconv
