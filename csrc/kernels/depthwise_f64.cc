#include "kernels/depthwise.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void depthwise_channels<double>(const DepthwiseChannelsArgs<double>&);
template void depthwise_planes<double>(const DepthwisePlanesArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
