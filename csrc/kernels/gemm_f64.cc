#include "kernels/gemm.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void gemm<double>(const GemmArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
