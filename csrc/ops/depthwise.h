// Runs depthwise products: a filter for each channel.
#pragma once
#include "ops/dense.h"

namespace fastconv::ops {

// The filters in the order that the kernels read: (taps)(channels), padded to whole vectors, where lanes are channels;
// (channels)(taps) elsewhere.
int64_t packed_filters_size(const DenseJob& job, const Choice& choice, const Machine& machine);
template <class T>
void pack_filters(const Run<T>& run, const Machine& machine, const KernelTable<T>& kernels, T* packed);

// Whether rows of padding can be passed over without changing a bit: the filters are finite. A plain call looks only
// where that saves more than it costs; `always`: a plan.
template <class T>
bool may_skip_rows(const DenseJob& job, const T* packed, int64_t size, bool always);

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
