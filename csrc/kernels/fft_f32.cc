#include "kernels/fft.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void fft_convolve<float>(const FftArgs<float>&);
template void fft_spectrum<float>(const FftArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
