#include "kernels/pack.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
template void pack_weights<double>(const PackWeightsArgs<double>&);
template void pack_weight_rows<double>(const PackWeightsArgs<double>&);
template void pack_columns<double>(const PackColumnsArgs<double>&);
template void pack_transposed<double>(const PackTransposedArgs<double>&);
template void pack_rows<double>(const PackRowsArgs<double>&);
template void fill_pixel_slab<double>(const PixelSlabArgs<double>&);
template void fill_slab<double>(const SlabArgs<double>&);
template void gather_block<double>(const MoveBlockArgs<double>&);
template void turn_block<double>(const TurnArgs<double>&);
template void scatter_block<double>(const MoveBlockArgs<double>&);
}  // namespace fastconv::FASTCONV_ISA_NS
