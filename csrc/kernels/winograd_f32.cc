#include "kernels/winograd.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void winograd_input<float>(const WinogradInputArgs<float>&);
template void winograd_filter<float>(const WinogradFilterArgs<float>&);
template void winograd_output<float>(const WinogradOutputArgs<float>&);
template void winograd_spread<float>(const WinogradInputArgs<float>&);
template void winograd_taps<float>(const WinogradTapsArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
