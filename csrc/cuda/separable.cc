// Separable layers and inverted residuals, stage by stage: each stage is a convolution, and what lies between them is
// in the workspace. (One pass, as on the CPU, is to come: it saves writing and reading the intermediate.)
#include <algorithm>

#include "cuda/launch.h"

namespace fastconv::cuda {
namespace {

ConvDesc pointwise(const ConvDesc& desc) {
  ConvDesc d;
  d.spatial = desc.spatial;
  d.channels_last = desc.channels_last;
  return d;
}

int64_t rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// An image of this shape, dense, in the memory order of `like`; returns its bytes.
int64_t make_image(const ConvDesc& desc, const TensorView& like, const int64_t* shape, char* memory,
                   TensorView* image) {
  TensorView& v = *image;
  v = {};
  v.dtype = like.dtype, v.device = Device::cuda;
  v.ndim = desc.spatial + 2;
  const int channel = desc.channels_last ? v.ndim - 1 : 1;
  const bool innermost = output_is_channels_last(desc, like);
  int64_t step = 1;
  auto put = [&](int axis) { v.strides[axis] = step, step *= v.shape[axis] > 0 ? v.shape[axis] : 1; };
  for (int i = 0; i < v.ndim; ++i) v.shape[i] = shape[i];
  if (innermost) put(channel);
  for (int i = v.ndim - 1; i > 0; --i)
    if (i != channel) put(i);
  if (!innermost) put(channel);
  put(0);
  v.data = memory;
  return rounded(step * item_size(v.dtype));
}

// Stands for the data of images whose place is not known yet.
char nowhere[1];

struct Stages {
  ConvDesc desc[3];
  ConvOperands operands[3];
  int count = 0;
  int64_t bytes = 0;    // of the images between
  int64_t scratch = 0;  // behind them: the most that a stage takes

  // A stage on the result of the one before; the last one's y is the call's.
  Status add(const ConvDesc& d, const TensorView& x, const TensorView& w, const Epilogue& e, const TensorView* y,
             char* memory) {
    ConvOperands& o = operands[count];
    o.x = x, o.w = w, o.epilogue = e;
    int64_t shape[kMaxDims];
    const Status s = conv_output_shape(d, x, w, shape);
    if (s != Status::ok) return s;
    if (y)
      o.y = *y;
    else
      bytes += make_image(d, x, shape, memory ? memory + bytes : nowhere, &o.y);
    scratch = std::max(scratch, conv_workspace(d, Pass::forward, o));
    desc[count++] = d;
    return Status::ok;
  }
  Status run(Queue queue) const {
    queue.workspace = static_cast<char*>(queue.workspace) + bytes;
    queue.workspace_bytes -= bytes;
    for (int i = 0; i < count; ++i) {
      const Status s = conv_check(desc[i], Pass::forward, operands[i]);
      if (s != Status::ok) return s;
    }
    for (int i = 0; i < count; ++i) {
      const Status s = conv_run(desc[i], Pass::forward, operands[i], queue);
      if (s != Status::ok) return s;
    }
    return Status::ok;
  }
};

Status separable_stages(const ConvDesc& desc, const SeparableOperands& o, char* memory, Stages* stages) {
  const Status s = stages->add(desc, o.x, o.depthwise_weight, o.inner, nullptr, memory);
  if (s != Status::ok) return s;
  return stages->add(pointwise(desc), stages->operands[0].y, o.pointwise_weight, o.epilogue, &o.y, memory);
}

Status inverted_stages(const ConvDesc& desc, const InvertedOperands& o, char* memory, Stages* stages) {
  Status s = stages->add(pointwise(desc), o.x, o.expand_weight, o.expand, nullptr, memory);
  if (s != Status::ok) return s;
  const bool projects = o.project_weight.data != nullptr;
  s = stages->add(desc, stages->operands[0].y, o.depthwise_weight, o.inner, projects ? nullptr : &o.y, memory);
  if (s != Status::ok || !projects) return s;
  return stages->add(pointwise(desc), stages->operands[1].y, o.project_weight, o.epilogue, &o.y, memory);
}

}  // namespace

int64_t separable_workspace(const ConvDesc& desc, const SeparableOperands& operands) {
  Stages stages;
  return separable_stages(desc, operands, nullptr, &stages) == Status::ok ? stages.bytes + stages.scratch : 0;
}

Status separable_run(const ConvDesc& desc, const SeparableOperands& operands, const Queue& queue) {
  if (queue.workspace_bytes < separable_workspace(desc, operands)) return Status::out_of_memory;
  Stages stages;
  const Status s = separable_stages(desc, operands, static_cast<char*>(queue.workspace), &stages);
  return s == Status::ok ? stages.run(queue) : s;
}

int64_t inverted_workspace(const ConvDesc& desc, const InvertedOperands& operands) {
  Stages stages;
  return inverted_stages(desc, operands, nullptr, &stages) == Status::ok ? stages.bytes + stages.scratch : 0;
}

Status inverted_run(const ConvDesc& desc, const InvertedOperands& operands, const Queue& queue) {
  if (queue.workspace_bytes < inverted_workspace(desc, operands)) return Status::out_of_memory;
  Stages stages;
  Status s = inverted_stages(desc, operands, static_cast<char*>(queue.workspace), &stages);
  if (s != Status::ok || (s = stages.run(queue)) != Status::ok || !operands.mean.data) return s;
  // The mean over the pixels, as a pooling whose result has the axes of an image.
  PoolDesc pool;
  pool.spatial = desc.spatial, pool.channels_last = desc.channels_last;
  pool.kind = PoolKind::average, pool.adaptive = true;
  TensorView mean = operands.mean;
  mean.ndim = desc.spatial + 2;
  const int channel = desc.channels_last ? mean.ndim - 1 : 1;
  for (int i = 1; i < mean.ndim; ++i) mean.shape[i] = 1, mean.strides[i] = 1;
  mean.shape[channel] = operands.mean.shape[1], mean.strides[channel] = operands.mean.strides[1];
  return pool_forward(pool, operands.y, mean, {}, queue);
}

}  // namespace fastconv::cuda
