// Runs dense products: the split into tasks, the two roles of the tile, and the gradient of the weights.
#pragma once
#include <algorithm>
#include <vector>

#include "dispatch/kernel_table.h"
#include "ops/choose.h"

namespace fastconv::ops {

// The epilogue with its vectors joined: y = act(scale * acc + shift + residual); entries for all G * K channels.
template <class T>
struct Finish {
  const T* scale = nullptr;
  const T* shift = nullptr;
  int32_t activation = 0;
  T a = 0, b = 0;
};

// What computes the input of a product, a block at a time, where that is no array in memory: a separable layer's
// depthwise half.
template <class T>
class Producer {
 public:
  virtual ~Producer() = default;
  // Scratch bytes for a box of pixels of this size and so many channels.
  virtual int64_t scratch(const int64_t size[3], int64_t channels) const = 0;
  // Channels [c0, c0 + channels) of the box of image n that begins at `at`: pixel i, counted through the box, and
  // channel c0 + c go to to[i * pixel_step + c * channel_step].
  virtual void fill(int64_t n, const int64_t at[3], const int64_t size[3], int64_t c0, int64_t channels, T* to,
                    int64_t pixel_step, int64_t channel_step, void* scratch) const = 0;
};

// One product with its decision and, where there are any, its packed weights. The offsets place it within the layer's
// output and weight tensors.
template <class T>
struct Run {
  DenseJob job;
  Choice choice;
  const T* packed = nullptr;
  int64_t direct_size = 0;  // fft, winograd: packed elements that the direct product reads, before those of points
  int64_t output_offset = 0, residual_offset = 0, weight_offset = 0;
  bool skip_zeros = false;  // taps that meet only padding are passed over: the weights are finite
  const Producer<T>* producer = nullptr;  // of the input of a 1x1 product; null: the job's input is an array

  void bind(const void* input, const void* weight, void* output, const void* residual) {
    job.input = input;
    if (weight) job.weight = static_cast<const T*>(weight) + weight_offset;
    job.output = static_cast<T*>(output) + output_offset;
    if (residual) job.residual = static_cast<const T*>(residual) + residual_offset;
  }
};

// Makes small images of a batch one block of pixels, which share the weights that a task reads. No bits depend on it.
template <class T>
void join_batch(std::vector<Run<T>>* runs) {
  for (Run<T>& run : *runs) {
    const Choice& c = run.choice;
    // By columns the pixels of an output are one run.
    if (c.depthwise || c.winograd || c.role == Role::pixel_columns || run.producer) continue;
    if (2 * run.job.pixels() > c.batch_block) continue;
    if (join_images(&run.job)) run.choice.pixel_block = std::min(run.job.pixels(), c.batch_block);
  }
}

// The elements that pack_runs() fills for a product; 0 where the tasks read the weights as they lie or pack them
// themselves. `keep`: for a plan, which packs always.
int64_t packed_size(const DenseJob& job, const Choice& choice, const Machine& machine, bool keep);

// Packs the weights of all runs of a call into a block of the sum of their sizes, and points the runs to them.
template <class T>
Status pack_runs(std::vector<Run<T>>& runs, const Machine& machine, const KernelTable<T>& kernels, bool keep, T* block);

// Whether the product is worth a look at the weights, and they are finite, so that zeros of the padding can be passed
// over without changing a bit. `always`: the look costs nothing (a plan).
template <class T>
bool may_skip_zeros(const DenseJob& job, const Choice& choice, const Machine& machine, bool always);

// Computes all runs (disjoint outputs) in one parallel region. `map` holds vectors of all G * C channels.
template <class T>
Status run_dense(const std::vector<Run<T>>& runs, const Machine& machine, const KernelTable<T>& kernels,
                 const Finish<T>& finish, const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate);

// Scratch bytes that one task of this product takes.
template <class T>
int64_t task_workspace(const Run<T>& run, const Machine& machine);

// One box of pixels of one image, all output channels, on the calling thread: for calls that order the work of several
// products themselves. One group. `scratch` has the bytes that box_workspace() tells for a box
// that is no smaller in any direction.
template <class T>
int64_t box_workspace(const Run<T>& run, const Machine& machine, const int64_t size[3]);
template <class T>
void run_box(const Run<T>& run, const Machine& machine, const KernelTable<T>& kernels, const Finish<T>& finish,
             int64_t n, const int64_t at[3], const int64_t size[3], void* scratch);

// A part of dw: input channels [c0, c1) and output channels [k0, k1) of group g.
struct WeightTask { int64_t g, c0, c1, k0, k1; };

// dw[k][c][t] (+)= the sum over images and pixels of dy(k, p) * x(c, p * stride - pad + t * dilation). `job` is the
// forward product; its input is x, its output dy. dw is contiguous.
template <class T>
Status run_weight_gradient(const DenseJob& job, const Machine& machine, const KernelTable<T>& kernels,
                           Algorithm algorithm, T* dw, bool accumulate);

// How run_weight_gradient() goes about a product: what depends neither on the threads nor, the count of pieces apart,
// on the batch.
struct WeightForm {
  int32_t winograd;  // outputs of a tile along an axis, whose points are the terms; 0: direct
  bool by_rows;  // a row of the panel is a copy of one pixel's channels; otherwise a column is transposed out of a slab
  int64_t terms, pieces;  // pixels of a piece of the reduction, and the number of pieces
  int64_t joins;  // additions that make one sum of the lanes of a piece; 0: every lane is a result
  int64_t channels;  // input channels of a task at most
  int64_t workspace;  // scratch bytes of a task
  int64_t copied;  // elements of the second dw, which is transposed at the end, or of the sums that are joined then
  const char* passed_over;
};
template <class T>
WeightForm weight_gradient_form(const DenseJob& job, const Machine& machine, Algorithm algorithm);

}  // namespace fastconv::ops
