#include "kernels/elementwise.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void map_run<float>(const MapArgs<float>&);
template void softmax<float>(const SoftmaxArgs<float>&);
template void softmax_gradient<float>(const SoftmaxGradientArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
