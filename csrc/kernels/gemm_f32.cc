#include "kernels/gemm.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void gemm<float>(const GemmArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
