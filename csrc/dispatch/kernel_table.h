// The kernels of each ISA as tables of function pointers, filled from kernels.inc.
#pragma once
#include "dispatch/kernel_args.h"
#include "fastconv/runtime.h"

namespace fastconv {

template <class T>
struct KernelTable {
  Isa isa;
  int32_t lanes;          // W
  int32_t max_vectors;    // widest panel
  int32_t tile_rows[5];   // rows of the tile for a panel of 1 .. max_vectors vectors
#define FASTCONV_KERNEL(name, result, parameters) result(*name) parameters;
#include "dispatch/kernels.inc"
#undef FASTCONV_KERNEL
};

// What a translation unit of an ISA exports: one function a type, which fills the table.
#define FASTCONV_DECLARE_ISA(ns)         \
  namespace ns {                         \
  void fill_table(KernelTable<float>&);  \
  void fill_table(KernelTable<double>&); \
  }
FASTCONV_DECLARE_ISA(portable)
FASTCONV_DECLARE_ISA(avx2)
FASTCONV_DECLARE_ISA(avx512)
#undef FASTCONV_DECLARE_ISA

// The table of an ISA that isa_supported() admits.
template <class T>
const KernelTable<T>& kernel_table(Isa isa);

}  // namespace fastconv
