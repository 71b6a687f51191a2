#include "kernels/depthwise.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void depthwise_channels<float>(const DepthwiseChannelsArgs<float>&);
template void depthwise_plane<float>(const DepthwisePlaneArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
