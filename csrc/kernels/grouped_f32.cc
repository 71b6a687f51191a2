#include "kernels/grouped.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void grouped_channels<float>(const DepthwiseChannelsArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
