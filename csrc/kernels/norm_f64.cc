#include "kernels/norm.inl.h"
#include "kernels/response.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void norm_stats<double>(const NormStatsArgs<double>&);
template void norm_finish<double>(const NormFinishArgs<double>&);
template void norm_apply<double>(const NormApplyArgs<double>&);
template void norm_sums<double>(const NormSumsArgs<double>&);
template void norm_gradient<double>(const NormGradientArgs<double>&);
template void layer_gradient<double>(const LayerGradientArgs<double>&);
template void response<double>(const ResponseArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
