#include "kernels/norm.inl.h"
#include "kernels/response.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void norm_stats<float>(const NormStatsArgs<float>&);
template void norm_finish<float>(const NormFinishArgs<float>&);
template void norm_apply<float>(const NormApplyArgs<float>&);
template void norm_sums<float>(const NormSumsArgs<float>&);
template void norm_gradient<float>(const NormGradientArgs<float>&);
template void layer_gradient<float>(const LayerGradientArgs<float>&);
template void response<float>(const ResponseArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
