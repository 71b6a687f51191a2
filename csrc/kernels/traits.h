// The register tiles of an ISA.
#pragma once
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

// Rows of the GEMM tile for a panel of NV vectors. A tile needs rows * NV accumulators, NV registers for the panel's
// vectors and one for the broadcast; two FMA units of latency 4 want at least 8 accumulators.
#if defined(__AVX512F__)
// 32 registers: 6x4 = 24 + 4 + 1, 8x3 = 24 + 3 + 1, 8x2 = 16 + 2 + 1, 8x1 = 8 + 1 + 1
inline constexpr int kMaxVectors = 4;
inline constexpr int kTileRows[kMaxVectors + 1] = {0, 8, 8, 8, 6};
#elif defined(__AVX2__)
// 16 registers: 4x3 = 12 + 3 + 1, 6x2 = 12 + 2 + 1, 8x1 = 8 + 1 + 1
inline constexpr int kMaxVectors = 3;
inline constexpr int kTileRows[kMaxVectors + 1] = {0, 8, 6, 4};
#else
// 16 registers of 128 bits and no FMA: the product needs one more. 4x2 = 8 + 2 + 1 + 1, 6x1 = 6 + 1 + 1 + 1
inline constexpr int kMaxVectors = 2;
inline constexpr int kTileRows[kMaxVectors + 1] = {0, 6, 4};
#endif

}  // namespace fastconv::FASTCONV_ISA_NS
