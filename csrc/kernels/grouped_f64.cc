#include "kernels/grouped.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void grouped_channels<double>(const DepthwiseChannelsArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
