// Stands for CUDA's header of this name where kernels are compiled for the host (see fibers.h): as much of it as the
// sources in csrc/cuda use. Device memory is host memory, streams do their work at once, and there are two devices, so
// that taking one for the other can be seen.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.h"
#include "tensor_cores.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
inline constexpr unsigned cudaEventDisableTiming = 2;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem;
};

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
// For the launch, which knows what its fibers did.
void cuda_host_set_last_error(cudaError_t error);
// The next launch fails with this error and runs nothing.
void cuda_host_fail_next_launch(cudaError_t error);
cudaError_t cuda_host_take_failure();

// --- device functions ------------------------------------------------------------------------------------------

inline void __syncthreads(fastconv::cuda_host::Site site = fastconv::cuda_host::Site::current()) {
  fastconv::cuda_host::wait_for_block(site);
}
inline void __threadfence() {}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu,
                       fastconv::cuda_host::Site site = fastconv::cuda_host::Site::current()) {
  fastconv::cuda_host::wait_for_warp(fastconv::cuda_host::Exchange::sync, mask, 0, 0, 32, site);
}

namespace fastconv::cuda_host {
template <class T>
T exchange(Exchange kind, unsigned mask, T value, int operand, int width, const Site& site) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = wait_for_warp(kind, mask, bits, operand, width, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace fastconv::cuda_host

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              fastconv::cuda_host::Site site = fastconv::cuda_host::Site::current()) {
  return fastconv::cuda_host::exchange(fastconv::cuda_host::Exchange::index, mask, value, lane, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 fastconv::cuda_host::Site site = fastconv::cuda_host::Site::current()) {
  return fastconv::cuda_host::exchange(fastconv::cuda_host::Exchange::up, mask, value, static_cast<int>(delta), width,
                                       site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   fastconv::cuda_host::Site site = fastconv::cuda_host::Site::current()) {
  return fastconv::cuda_host::exchange(fastconv::cuda_host::Exchange::down, mask, value, static_cast<int>(delta), width,
                                       site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  fastconv::cuda_host::Site site = fastconv::cuda_host::Site::current()) {
  return fastconv::cuda_host::exchange(fastconv::cuda_host::Exchange::across, mask, value, lanes, width, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              fastconv::cuda_host::Site site = fastconv::cuda_host::Site::current()) {
  return static_cast<unsigned>(
      fastconv::cuda_host::wait_for_warp(fastconv::cuda_host::Exchange::ballot, mask, predicate != 0, 0, 32, site));
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

// Threads take turns, so that these are atomic as they stand.
inline int atomicMax(int* at, int value) {
  const int before = *at;
  if (value > before) *at = value;
  return before;
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
}
