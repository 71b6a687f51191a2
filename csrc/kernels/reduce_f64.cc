#include "kernels/reduce.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template double sum_run<double>(const double*, int64_t, int64_t);
template void sum_columns<double>(double*, const double*, int64_t, int64_t, int64_t);
template void sum_rows<double>(double*, const double*, int64_t, int64_t, int64_t);
template void fill_rows<double>(double*, const double*, int64_t, int64_t, int64_t);
template double fma_loop<double>(int64_t);
template void copy_run<double>(double*, const double*, int64_t, int32_t);
template void activate_run<double>(double*, int64_t, int32_t, double, double);
}  // namespace fastconv::FASTCONV_ISA_NS
