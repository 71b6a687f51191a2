// Products on the tensor cores by mma.sync (HMMA of sm_80): the layout of shared memory, and the instructions.
//
// An operand is staged as rows of 64 bytes, which are kDepth terms: 32 of 16 bits or 16 of TF32. Rows of A are results'
// rows, rows of B their columns, so that both lie along the terms and every dtype has the same bytes:
//
//   matrix    8 rows x 16 bytes (8 terms of 16 bits, 4 of TF32); ldmatrix leaves word l % 4 of row l / 4 in lane l
//   A, 16 rows x 2 vectors of terms, in 4 registers: rows 0-7 and 8-15 of the first vector, then of the second
//   B, 8 columns x 2 vectors of terms, in 2 registers: the first and the second vector
//   C, 16 x 8 results, in 4 registers: lane l has columns 2 (l % 4) and the next, of rows l / 4 and l / 4 + 8
//
// Swizzle: vector v of row r is the r * 4 + (v ^ (r / 2 % 4))-th 16 bytes. Two rows fill the 32 banks. The eight rows
// of a matrix have one v: r / 2 % 4 takes four values, each in an even and an odd row, and so the eight meet eight
// different groups of four banks. Eight neighbouring threads that write the four vectors of two rows do so too.
#pragma once
#include "cuda/index.h"
#include "cuda/types.cuh"

namespace fastconv::cuda {

constexpr int kRowBytes = 64, kRowVectors = 4;

// Where a vector lies, in bytes from the stage's first.
FASTCONV_BOTH constexpr int swizzled(int row, int vector) {
  return (row * kRowVectors + (vector ^ (row / 2 % kRowVectors))) * 16;
}

// The vector that a lane names to ldmatrix for a row (A) or column (B) of `first` and vectors `vector` and the next.
struct MatrixRow { int row, vector; };
FASTCONV_BOTH constexpr MatrixRow a_row(int lane) { return {lane % 8 + lane / 8 % 2 * 8, lane / 16}; }
FASTCONV_BOTH constexpr MatrixRow b_row(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2}; }

// Registers that an instruction fills; on the host they hold NaN until it has.
template <class E, int kCount>
struct Registers {
  E at[kCount];
#ifndef __CUDACC__
  Registers() { std::memset(at, 0xFF, sizeof at); }
#endif
};
using Words = Registers<uint32_t, 4>;
using Sums = Registers<float, 4>;

// Four matrices: lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(Words& to, const void* row) {
#ifdef __CUDACC__
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.at[0]), "=r"(to.at[1]), "=r"(to.at[2]), "=r"(to.at[3])
               : "r"(address)
               : "memory");
#else
  cuda_host::load_matrices(to.at, row);
#endif
}

// sums += A * B
template <class T>
__device__ __forceinline__ void multiply(Sums& sums, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
#define FASTCONV_MMA(form)                                                                                 \
  asm volatile("mma.sync.aligned." form " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sums.at[0]), "+f"(sums.at[1]), "+f"(sums.at[2]), "+f"(sums.at[3])                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (std::is_same_v<T, half>)
    FASTCONV_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else if constexpr (std::is_same_v<T, bfloat16>)
    FASTCONV_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else
    FASTCONV_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#undef FASTCONV_MMA
#else
  const uint32_t b[2] = {b0, b1};
  cuda_host::multiply<T>(sums.at, a, b);
#endif
}

// x rounded to TF32's 11 bits, ties away from zero, in the bits of a float: what mma takes without looking at the rest.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
#ifdef __CUDACC__
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#else
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7F800000u) != 0x7F800000u) bits = (bits + 0x1000u) & ~0x1FFFu;
#endif
  return bits;
}

// x = big + small to 22 bits. Of infinity, small is NaN.
__device__ __forceinline__ void split_tf32(uint32_t x, uint32_t* big, uint32_t* small) {
  float whole, first;
  std::memcpy(&whole, &x, 4);
  *big = to_tf32(whole);
  std::memcpy(&first, big, 4);
  *small = to_tf32(whole - first);
}

}  // namespace fastconv::cuda
