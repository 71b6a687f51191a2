// Fills this ISA's rows of the kernel table. The kernels are only declared here: their families' own translation units
// instantiate them.
#pragma once
#include "dispatch/kernel_table.h"
#include "kernels/traits.h"

namespace fastconv::FASTCONV_ISA_NS {

#define FASTCONV_KERNEL(name, result, parameters) \
  template <class T>                              \
  result name parameters;
#include "dispatch/kernels.inc"
#undef FASTCONV_KERNEL

template <class T>
inline void fill(KernelTable<T>& table) {
  table.lanes = Vec<T>::kLanes;
  table.max_vectors = kMaxVectors;
  for (int v = 0; v <= kMaxVectors; ++v) table.tile_rows[v] = kTileRows[v];
#define FASTCONV_KERNEL(name, result, parameters) table.name = &name<T>;
#include "dispatch/kernels.inc"
#undef FASTCONV_KERNEL
}

}  // namespace fastconv::FASTCONV_ISA_NS
