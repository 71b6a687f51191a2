#include "kernels/norm.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void norm_stats<float>(const NormStatsArgs<float>&);
template void norm_apply<float>(const NormApplyArgs<float>&);
template void norm_sums<float>(const NormSumsArgs<float>&);
template void norm_gradient<float>(const NormGradientArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
