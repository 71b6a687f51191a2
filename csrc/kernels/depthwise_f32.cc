#include "kernels/depthwise.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void depthwise_channels<float>(const DepthwiseChannelsArgs<float>&);
template void depthwise_planes<float>(const DepthwisePlanesArgs<float>&);
template void filter_channels<float>(const FilterChannelsArgs<float>&);
template void filter_planes<float>(const FilterPlanesArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
