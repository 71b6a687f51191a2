#include "kernels/reduce.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template float sum_run<float>(const float*, int64_t, int64_t);
template void sum_columns<float>(float*, const float*, int64_t, int64_t, int64_t);
template void sum_rows<float>(float*, const float*, int64_t, int64_t, int64_t);
template void fill_rows<float>(float*, const float*, int64_t, int64_t, int64_t);
template double fma_loop<float>(int64_t);
template void copy_run<float>(float*, const float*, int64_t, int32_t);
template void activate_run<float>(float*, int64_t, int32_t, float, float);
}  // namespace fastconv::FASTCONV_ISA_NS
