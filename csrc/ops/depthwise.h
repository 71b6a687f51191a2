// Runs depthwise products: a filter for each channel.
#pragma once
#include "ops/dense.h"

namespace fastconv::ops {

// The filters in the order that the kernels read: (taps)(channels), padded to whole vectors, where lanes are channels;
// (channels)(taps) elsewhere, where a plain call reads them as they lie if they lie so (0 elements are packed). `keep`:
// a plan, which packs always.
int64_t packed_filters_size(const DenseJob& job, const Choice& choice, const Machine& machine, bool keep);
// Packs to run->packed, where that is not null, and looks whether rows of padding can be passed over
// without changing a bit: the filters are finite. A plain call looks only where that saves more than it costs.
template <class T>
void prepare_filters(Run<T>* run, const Machine& machine, const KernelTable<T>& kernels, bool keep);

// As run_dense(), for runs whose choice is depthwise.
template <class T>
Status run_depthwise(const std::vector<Run<T>>& runs, const Machine& machine, const KernelTable<T>& kernels,
                     const Finish<T>& finish, const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate);
template <class T>
int64_t depthwise_workspace(const DenseJob& job, const Choice& choice, const Machine& machine);
// The channels and pixels of an image that a task goes through at most.
template <class T>
void depthwise_block(const DenseJob& job, const Choice& choice, const Machine& machine, int64_t* channels,
                     int64_t* pixels);

// The gradient of the filters, for the layers that has_filter_gradient() names; as run_weight_gradient().
template <class T>
bool has_filter_gradient(const DenseJob& job, const Machine& machine);
template <class T>
Status run_filter_gradient(const DenseJob& job, const Machine& machine, const KernelTable<T>& kernels, T* dw,
                           bool accumulate);
template <class T>
WeightForm filter_gradient_form(const DenseJob& job, const Machine& machine);

}  // namespace fastconv::ops
