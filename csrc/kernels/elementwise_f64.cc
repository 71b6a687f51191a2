#include "kernels/elementwise.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void map_run<double>(const MapArgs<double>&);
template void softmax<double>(const SoftmaxArgs<double>&);
template void softmax_gradient<double>(const SoftmaxGradientArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
