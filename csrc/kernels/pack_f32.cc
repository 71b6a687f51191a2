#include "kernels/pack.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void pack_weights<float>(const PackWeightsArgs<float>&);
template void pack_weight_rows<float>(const PackWeightsArgs<float>&);
template void pack_columns<float>(const PackColumnsArgs<float>&);
template void pack_transposed<float>(const PackTransposedArgs<float>&);
template void pack_rows<float>(const PackRowsArgs<float>&);
template void fill_pixel_slab<float>(const PixelSlabArgs<float>&);
template void fill_slab<float>(const SlabArgs<float>&);
template void gather_block<float>(const MoveBlockArgs<float>&);
template void turn_block<float>(const TurnArgs<float>&);
template void scatter_block<float>(const MoveBlockArgs<float>&);
}  // namespace fastconv::FASTCONV_ISA_NS
