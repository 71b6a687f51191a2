#include "kernels/winograd.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void winograd_input<double>(const WinogradInputArgs<double>&);
template void winograd_filter<double>(const WinogradFilterArgs<double>&);
template void winograd_output<double>(const WinogradOutputArgs<double>&);
template void winograd_spread<double>(const WinogradInputArgs<double>&);
template void winograd_taps<double>(const WinogradTapsArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
