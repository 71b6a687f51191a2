// Runs depthwise products: a filter for each channel.
#pragma once
#include "ops/dense.h"
#include "ops/slab.h"

namespace fastconv::ops {

// The filters in the order that the kernels read: (taps)(channels), padded to whole vectors, where lanes are channels;
// (channels)(taps) elsewhere, where a plain call reads them as they lie if they lie so (0 elements are packed). `keep`:
// a plan, which packs always.
int64_t packed_filters_size(const DenseJob& job, const Choice& choice, const Machine& machine, bool keep);
// Packs to run->packed, where that is not null, and looks whether rows of padding can be passed over
// without changing a bit: the filters are finite. A plain call looks only where that saves more than it costs.
template <class T>
Status prepare_filters(Run<T>* run, const Machine& machine, const KernelTable<T>& kernels, bool keep);

// As run_dense(), for runs whose choice is depthwise.
template <class T>
Status run_depthwise(const std::vector<Run<T>>& runs, const Machine& machine, const KernelTable<T>& kernels,
                     const Finish<T>& finish, const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate);
// Scratch bytes of one task of those runs.
template <class T>
int64_t depthwise_workspace(const std::vector<Run<T>>& runs, const Machine& machine);
// The channels and pixels of an image that a task goes through at most.
template <class T>
void depthwise_block(const DenseJob& job, const Choice& choice, const Machine& machine, int64_t* channels,
                     int64_t* pixels);

// The part of a product that a task computes: of image n, channels, rows (flattened (d, h)) and columns of the output.
struct DepthwisePiece {
  int64_t n, c0, c1, row0, row1, q0, q1;
  int64_t most_channels, most_columns;  // of the largest piece, which the scratch is measured for
};
// Computes it directly, whatever the choice says of fft. `spare`: the input may be read by whole vectors, W - 1
// elements past its rows.
template <class T>
void run_depthwise_piece(const Run<T>& run, const Context<T>& ctx, const DepthwisePiece& piece, Arena& arena,
                         bool spare);
template <class T>
int64_t depthwise_piece_scratch(const DenseJob& job, const Choice& choice, const Machine& machine, int64_t most_columns,
                                int64_t most_channels);

// A depthwise product as what another one reads. The run's output is ignored; its packed filters, machine and vectors
// are borrowed.
template <class T>
class DepthwiseProducer final : public Producer<T> {
 public:
  DepthwiseProducer(const Run<T>& run, const Machine& machine, const KernelTable<T>& kernels, const Finish<T>& finish,
                    const InputMap<T>& map, int64_t gate_batch_stride, int64_t most_channels, int64_t most_columns)
      : run_(run),
        machine_(machine),
        kernels_(kernels),
        finish_(finish),
        map_(map),
        gate_batch_stride_(gate_batch_stride),
        most_channels_(most_channels),
        most_columns_(most_columns) {}
  int64_t scratch(const int64_t size[3], int64_t channels) const override;
  void fill(int64_t n, const int64_t at[3], const int64_t size[3], int64_t c0, int64_t channels, T* to,
            int64_t pixel_step, int64_t channel_step, void* scratch) const override;

 private:
  const Run<T>& run_;
  const Machine& machine_;
  const KernelTable<T>& kernels_;
  const Finish<T>& finish_;
  const InputMap<T>& map_;
  int64_t gate_batch_stride_;
  int64_t most_channels_, most_columns_;  // of a call
};

// The gradient of the input of strided layers, all phases at once, for those that has_spread() names: dx, which is the
// job's input, from dy, its output.
template <class T>
bool has_spread(const DenseJob& job, const Machine& machine);
// Elements of the filters that it packs.
template <class T>
int64_t spread_packed(const DenseJob& job, const Machine& machine);
template <class T>
Status run_spread(const DenseJob& job, const Machine& machine, const KernelTable<T>& kernels, const T* dy,
                  const T* weight, T* dx);

// The gradient of the filters, for the layers that has_filter_gradient() names; as run_weight_gradient().
template <class T>
bool has_filter_gradient(const DenseJob& job, const Machine& machine);
template <class T>
Status run_filter_gradient(const DenseJob& job, const Machine& machine, const KernelTable<T>& kernels, T* dw,
                           bool accumulate);
template <class T>
WeightForm filter_gradient_form(const DenseJob& job, const Machine& machine);

}  // namespace fastconv::ops
