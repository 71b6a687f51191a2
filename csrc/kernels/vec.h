// Vec<float> and Vec<double> of the ISA that this translation unit is compiled for.
#pragma once

#if defined(__AVX512F__)
#include "kernels/vec_avx512.h"
#elif defined(__AVX2__)
#include "kernels/vec_avx2.h"
#else
#include "kernels/vec_portable.h"
#endif
