#include "kernels/spread.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void depthwise_spread<float>(const SpreadArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
