#include "ops/tune.h"

#include <mutex>
#include <utility>

#include "ops/conv_checks.h"
#include "ops/depthwise.h"
#include "ops/layer.h"

namespace fastconv {
namespace ops {

constinit std::atomic<const TuneTable*> used_table{nullptr};

size_t ProductHash::operator()(const Product& p) const noexcept {
  uint64_t hash = 0xcbf29ce484222325;
  auto mix = [&hash](int64_t value) { hash = (hash ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15; };
  mix(static_cast<int64_t>(p.isa) * 8 + static_cast<int64_t>(p.dtype) * 2 + p.channels_last);
  mix(p.groups), mix(p.C), mix(p.K);
  for (int a = 0; a < 3; ++a) mix(p.filter[a]), mix(p.out[a]), mix(p.stride[a]), mix(p.dilation[a]);
  return static_cast<size_t>(hash ^ (hash >> 32));
}

Product product_of(const Problem& p, const Machine& m) {
  Product product{};
  product.isa = m.isa;
  product.dtype = p.item_size == sizeof(float) ? DType::f32 : DType::f64;
  product.channels_last = p.channels_last;
  product.groups = p.groups, product.C = p.C, product.K = p.K;
  for (int a = 0; a < 3; ++a) {
    product.filter[a] = p.filter[a], product.out[a] = p.out[a];
    product.stride[a] = p.stride[a], product.dilation[a] = p.dilation[a];
  }
  return product;
}

namespace {

struct Tables {
  std::mutex mutex;
  std::vector<std::unique_ptr<const TuneTable>> all;
  int32_t used = 0;
};
Tables& tables() {
  static Tables* const shared = new Tables;  // read until the process ends
  return *shared;
}

void add(const Layer& l, DenseJob job, int64_t phases, bool mapped, const Machine& m,
         std::vector<ProductChoice>* choices) {
  // A phase that no tap reaches is zeros.
  if (job.taps() == 0 || job.pixels() == 0) return;
  merge_axes(&job);
  const int64_t item = l.geometry.dtype == DType::f32 ? 4 : 8;
  const Problem p = describe(job, item, l.channels_last, mapped, l.algorithm, phases);
  ProductChoice choice;
  choice.product = product_of(p, m);
  choice.candidates = candidates(p, m);
  choice.tuned = tuned_way(p, m) != Way::model;
  const Choice c = choose(p, m);
  choice.taken = c.winograd == 2              ? Way::winograd2
                 : c.winograd == 4            ? Way::winograd4
                 : c.fft.rows                 ? Way::fft
                 : c.role == Role::pixel_rows ? Way::rows
                                              : Way::columns;
  choices->push_back(std::move(choice));
}

}  // namespace
}  // namespace ops

using namespace ops;

Status conv_products(const ConvDesc& desc, Pass pass, const ConvOperands& o, std::vector<ProductChoice>* out) {
  Status s = check_operands_device(Device::cpu, o);
  if (s != Status::ok) return s;
  if (o.x.dtype != DType::f32 && o.x.dtype != DType::f64) return Status::bad_dtype;
  Layer l;
  const bool forward = pass == Pass::forward;
  s = forward ? check_forward(desc, o, &l) : check_backward(desc, o, pass, &l);
  if (s != Status::ok) return s;
  const Geometry& g = l.geometry;
  const Machine m = current_machine(g.dtype);
  out->clear();
  // A weight gradient is chosen beside its code, between two forms.
  if (pass == Pass::backward_weight) return Status::ok;
  // Nor is there a choice where all phases of a gradient are one sweep.
  if (pass == Pass::backward_input && !desc.transposed && !o.accumulate &&
      (l.algorithm == Algorithm::automatic || l.algorithm == Algorithm::direct)) {
    const DenseJob job = fprop_job(g, l.x, l.y, nullptr, l.w);
    if (g.dtype == DType::f32 ? has_spread<float>(job, m) : has_spread<double>(job, m)) return Status::ok;
  }
  if (forward && absent(o.y)) l.y = dense_strides(l.channels_last, l.out_channels, desc.transposed ? g.in : g.out);
  const bool mapped = forward && has_prologue(o.prologue);
  const Strides& from = forward ? l.x : l.y;
  const Strides& to = forward ? l.y : l.x;
  if (desc.transposed == forward) {
    // Joined phases have two ways at most, between which the model chooses well enough.
    if (!mapped && joins_phases(g, m, l.channels_last, l.algorithm)) return Status::ok;
    const int64_t origin[3] = {0, 0, 0};
    const auto jobs = dgrad_jobs(g, origin, g.in, from, to, nullptr, l.w);
    for (const PhaseJob& p : jobs) add(l, p.job, static_cast<int64_t>(jobs.size()), mapped, m, out);
  } else {
    add(l, fprop_job(g, from, to, nullptr, l.w), 1, mapped, m, out);
  }
  return Status::ok;
}

int32_t make_tune_table(const std::vector<TunedProduct>& products) {
  auto table = std::make_unique<TuneTable>();
  for (const TunedProduct& p : products) table->ways[p.product] = p.way;
  Tables& t = tables();
  const std::lock_guard lock(t.mutex);
  t.all.push_back(std::move(table));
  return static_cast<int32_t>(t.all.size());
}

int32_t use_tune_table(int32_t table) {
  Tables& t = tables();
  const std::lock_guard lock(t.mutex);
  if (table < 0 || table > static_cast<int32_t>(t.all.size())) table = 0;
  used_table.store(table ? t.all[static_cast<size_t>(table - 1)].get() : nullptr, std::memory_order_release);
  return std::exchange(t.used, table);
}

}  // namespace fastconv
