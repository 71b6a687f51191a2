// Sums over the lanes of many vectors.
#pragma once
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

// The sums over the lanes of kCount vectors, `step` vectors apart, in neighbouring lanes, over and over. Halves are
// joined with halves, as in Vec::sum, whose bits these have; a sum takes 3 operations instead of 8.
template <class V, int kCount, int kStep>
inline __attribute__((always_inline)) V folded(const typename V::T* from) {
  if constexpr (kCount == 1) {
    return V::load(from);
  } else {
    const V a = folded<V, kCount / 2, 2 * kStep>(from), b = folded<V, kCount / 2, 2 * kStep>(from + kStep * V::kLanes);
    return V::zip_low(a, b) + V::zip_high(a, b);
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
