#include "kernels/depthwise.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void depthwise_channels<double>(const DepthwiseChannelsArgs<double>&);
template void depthwise_planes<double>(const DepthwisePlanesArgs<double>&);
template void filter_channels<double>(const FilterChannelsArgs<double>&);
template void filter_planes<double>(const FilterPlanesArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
