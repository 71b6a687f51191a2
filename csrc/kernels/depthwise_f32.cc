#include "kernels/depthwise.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void depthwise_channels<float>(const DepthwiseChannelsArgs<float>&);
template void depthwise_planes<float>(const DepthwisePlanesArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
