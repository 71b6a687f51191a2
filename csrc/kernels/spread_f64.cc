#include "kernels/spread.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void depthwise_spread<double>(const SpreadArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
