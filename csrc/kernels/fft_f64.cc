#include "kernels/fft.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void fft_convolve<double>(const FftArgs<double>&);
template void fft_spectrum<double>(const FftArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
