#include "kernels/pool.inl.h"

namespace fastconv::FASTCONV_ISA_NS {

void pool_integers_any(const void* args, int32_t dtype) {
  switch (dtype) {
    case 2: return integers(*(const PoolArgs<int8_t>*)args);
    case 3: return integers(*(const PoolArgs<uint8_t>*)args);
    case 4: return integers(*(const PoolArgs<int16_t>*)args);
    case 5: return integers(*(const PoolArgs<int32_t>*)args);
    case 6: return integers(*(const PoolArgs<int64_t>*)args);
    default: return;
  }
}

template void pool_combine<float>(const PoolArgs<float>&);
template void pool_slide<float>(const PoolArgs<float>&);
template void pool_argmax<float>(const PoolArgs<float>&);
template void pool_route<float>(const PoolArgs<float>&);
template void pool_split<float>(const PoolArgs<float>&);
template void pool_merge<float>(const PoolArgs<float>&);
template void pool_planes<float>(const PoolPlanesArgs<float>&);
template void pool_pixels<float>(const PoolPlanesArgs<float>&);
template void pool_planes_backward<float>(const PoolPlanesArgs<float>&);
template void pool_pixels_backward<float>(const PoolPlanesArgs<float>&);
template void pool_integers<float>(const void*, int32_t);
template float max_run<float>(const float*, int64_t);
}  // namespace fastconv::FASTCONV_ISA_NS
