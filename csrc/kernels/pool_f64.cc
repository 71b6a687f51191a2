#include "kernels/pool.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void pool_combine<double>(const PoolArgs<double>&);
template void pool_slide<double>(const PoolArgs<double>&);
template void pool_argmax<double>(const PoolArgs<double>&);
template void pool_route<double>(const PoolArgs<double>&);
template void pool_split<double>(const PoolArgs<double>&);
template void pool_merge<double>(const PoolArgs<double>&);
template void pool_planes<double>(const PoolPlanesArgs<double>&);
template void pool_pixels<double>(const PoolPlanesArgs<double>&);
template void pool_planes_backward<double>(const PoolPlanesArgs<double>&);
template void pool_pixels_backward<double>(const PoolPlanesArgs<double>&);
template void pool_integers<double>(const void*, int32_t);
template double max_run<double>(const double*, int64_t);
}  // namespace fastconv::FASTCONV_ISA_NS
