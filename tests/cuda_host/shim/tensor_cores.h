// mma.sync on the host: sums += A * B of a warp, A 16 rows and B 8 columns of 32 bytes of terms, where PTX keeps them.
//
// Products are exact and added up in double with what the sum was, which is rounded once: hardware truncates and aligns
// somewhere on the way, which no document tells. TF32 operands count by their first 19 bits, as there.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "fibers.h"

namespace fastconv::cuda_host {

// Term k of the 2 vectors of a row whose word l % 4 is in lane l: `words` are its 4 lanes' registers.
template <class T>
double term_of(const uint32_t* const (&words)[4], int first, int second, int k) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T)), kInWord = 4 / static_cast<int>(sizeof(T));
  const uint32_t word = words[k % kVector / kInWord][k < kVector ? first : second];
  if constexpr (sizeof(T) == 4) {
    const uint32_t taken = word & ~0x1FFFu;
    float x;
    std::memcpy(&x, &taken, 4);
    return x;
  } else {
    const T x{static_cast<uint16_t>(word >> k % 2 * 16)};
    if constexpr (std::is_same_v<T, __half>)
      return __half2float(x);
    else
      return __bfloat162float(x);
  }
}

template <class T>
void multiply(float* sums, const uint32_t* a, const uint32_t* b, const Site& site = Site::current()) {
  struct Brought {
    float* sums;
    const uint32_t *a, *b;
  } mine{sums, a, b};
  meet_warp(
      &mine,
      [](void* const(&brought)[32]) {
        constexpr int kTerms = 32 / static_cast<int>(sizeof(T));
        auto lane = [&](int l) -> Brought& { return *static_cast<Brought*>(brought[l]); };
        double left[16][kTerms], right[8][kTerms];
        for (int row = 0; row < 16; ++row) {
          const uint32_t* words[4];
          for (int i = 0; i < 4; ++i) words[i] = lane(row % 8 * 4 + i).a;
          for (int k = 0; k < kTerms; ++k) left[row][k] = term_of<T>(words, row / 8, row / 8 + 2, k);
        }
        for (int column = 0; column < 8; ++column) {
          const uint32_t* words[4];
          for (int i = 0; i < 4; ++i) words[i] = lane(column * 4 + i).b;
          for (int k = 0; k < kTerms; ++k) right[column][k] = term_of<T>(words, 0, 1, k);
        }
        for (int row = 0; row < 16; ++row)
          for (int column = 0; column < 8; ++column) {
            float& sum = lane(row % 8 * 4 + column / 2).sums[row / 8 * 2 + column % 2];
            double s = sum;
            for (int k = 0; k < kTerms; ++k) s += left[row][k] * right[column][k];
            sum = static_cast<float>(s);
          }
      },
      site);
}

}  // namespace fastconv::cuda_host
