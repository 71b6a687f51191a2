// Runs dense 3 x 3 products of stride 1 by Winograd's minimal filtering: patches and filters become points, the points
// are multiplied by the tile of all dense products, and the sums become pixels. Kernels: winograd.inl.h.
#pragma once
#include "ops/dense.h"
#include "ops/slab.h"

namespace fastconv::ops {

// Whether a product has the form.
bool suits_winograd(const Problem& problem);

// Whether so few blocks of tiles share the filters' points that tasks make those that they use, in their cache; made
// beforehand they would be written to memory and read again.
bool points_late(const DenseJob& job, const Choice& choice);

// Elements of the filters' points: for each group (panels)(points)(channels)(columns of the panel).
int64_t winograd_size(const DenseJob& job, const Choice& choice, const Machine& machine);
template <class T>
Status pack_winograd(const DenseJob& job, const Choice& choice, const Machine& machine, const KernelTable<T>& kernels,
                     T* points);

// As run_dense(), for one run whose choice is winograd. Its packed weights end in the points, and begin with what the
// direct product reads (nothing, where tasks pack late), which computes the vectors of a tile that are not finite.
template <class T>
Status run_winograd(const Run<T>& run, const Machine& machine, const KernelTable<T>& kernels, const Finish<T>& finish,
                    const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate);
template <class T>
int64_t winograd_workspace(const Run<T>& run, const Machine& machine);

// The outputs of a tile along an axis by which the gradient of a product's filters is made, or 0: directly. It depends
// on the batch, over which the gradient sums.
template <class T>
int32_t choose_winograd_weight(const DenseJob& job, const Machine& machine, Algorithm algorithm);

// As run_weight_gradient(), with such tiles. Filters that are not finite are not written: they are added to `bad`, by
// parts that do not depend on the threads.
template <class T>
Status run_winograd_weight(const DenseJob& job, int64_t outputs, const Machine& machine, const KernelTable<T>& kernels,
                           T* dw, bool accumulate, std::vector<WeightTask>* bad);
template <class T>
WeightForm winograd_weight_form(const DenseJob& job, int64_t outputs, const Machine& machine);

}  // namespace fastconv::ops
