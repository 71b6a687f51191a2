// The ceilings that the benchmark compares with: a register-only FMA loop and copies by the current ISA's vectors.
#include <algorithm>
#include <cstring>

#include "dispatch/kernel_table.h"
#include "ops/parallel.h"

namespace fastconv {

double run_fma_loop(DType dtype, int64_t iterations) {
  const Isa isa = current_isa();
  return dtype == DType::f32 ? kernel_table<float>(isa).fma_loop(iterations)
                             : kernel_table<double>(isa).fma_loop(iterations);
}

void run_copy(void* dst, const void* src, size_t bytes, int mode) {
  constexpr size_t kPiece = size_t{1} << 18;
  const KernelTable<double>& kernels = kernel_table<double>(current_isa());
  const auto pieces = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
  ops::parallel_for(pieces, static_cast<double>(bytes) * 0.05, [&](int64_t i, int) {
    const size_t at = static_cast<size_t>(i) * kPiece, n = std::min(kPiece, bytes - at);
    char* to = static_cast<char*>(dst) + at;
    const char* from = static_cast<const char*>(src) + at;
    const size_t whole = mode == 0 ? 0 : n / sizeof(double) * sizeof(double);
    if (whole)
      kernels.copy_run(reinterpret_cast<double*>(to), reinterpret_cast<const double*>(from),
                       static_cast<int64_t>(whole / sizeof(double)), mode == 2);
    std::memcpy(to + whole, from + whole, n - whole);
  });
}

}  // namespace fastconv
