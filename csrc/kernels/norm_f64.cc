#include "kernels/norm.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void norm_stats<double>(const NormStatsArgs<double>&);
template void norm_apply<double>(const NormApplyArgs<double>&);
template void norm_sums<double>(const NormSumsArgs<double>&);
template void norm_gradient<double>(const NormGradientArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
