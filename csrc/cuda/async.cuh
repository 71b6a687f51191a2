// Copies from global to shared memory that go on while their thread computes (LDGSTS of sm_80).
//
// A copy has landed for its own thread after wait_for_copies(), for the others after a barrier that follows it.
#pragma once
#include "cuda/types.cuh"

namespace fastconv::cuda {

// kBytes (4, 8 or 16) from `from`, of which the last ones are zero where only `read_bytes` are read. Both addresses are
// multiples of kBytes.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, int read_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef __CUDACC__
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(read_bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes), "r"(read_bytes)
                 : "memory");
#else
  cuda_host::copy_async(to, from, kBytes, static_cast<size_t>(read_bytes));
#endif
}

__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_host::commit_copies();
#endif
}

// Until at most kLeft of this thread's committed groups are still under way.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#else
  cuda_host::wait_for_copies(kLeft);
#endif
}

}  // namespace fastconv::cuda
