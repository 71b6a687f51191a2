// The runtime functions of cuda_runtime.h, over the host's memory.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "cuda_runtime.h"

namespace {

constexpr int kDevices = 2;
constexpr size_t kMemory = size_t{4} << 30;  // of a device; what does not fit is refused as a GPU would
#if !defined(__SANITIZE_ADDRESS__)
// Around every block: a write beyond either end shows when it is released, also without AddressSanitizer.
constexpr size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xA5;
#endif

thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;
std::mutex lock;
struct Block {
  size_t bytes;
  int device;
};
std::map<char*, Block> blocks;
size_t held = 0;

cudaError_t fail(cudaError_t error) { return last = error; }

#if !defined(__SANITIZE_ADDRESS__)
bool whole(const char* guard) {
  for (size_t i = 0; i < kGuard; ++i)
    if (static_cast<unsigned char>(guard[i]) != kGuardByte) return false;
  return true;
}
#endif

}  // namespace

void cuda_host_set_last_error(cudaError_t error) { last = error; }

namespace {
cudaError_t next_launch = cudaSuccess;
}  // namespace
void cuda_host_fail_next_launch(cudaError_t error) { next_launch = error; }
cudaError_t cuda_host_take_failure() { return std::exchange(next_launch, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) { return *count = kDevices, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return fail(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= kDevices) return fail(cudaErrorInvalidDevice);
  *properties = {"fibers on the host", 9, 0, 4, kMemory};
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  const std::lock_guard<std::mutex> guard(lock);
  if (bytes > kMemory - held) return fail(cudaErrorMemoryAllocation);
#if defined(__SANITIZE_ADDRESS__)
  // AddressSanitizer's own zones begin at the very ends.
  if (posix_memalign(pointer, 256, bytes)) return fail(cudaErrorMemoryAllocation);
  char* block = static_cast<char*>(*pointer);
  std::memset(block, 0xFF, bytes);
#else
  char* base = static_cast<char*>(std::aligned_alloc(256, (bytes + 2 * kGuard + 255) / 256 * 256));
  if (!base) return fail(cudaErrorMemoryAllocation);
  std::memset(base, kGuardByte, bytes + 2 * kGuard);
  std::memset(base + kGuard, 0xFF, bytes);
  char* block = base + kGuard;
  *pointer = block;
#endif
  blocks[block] = {bytes, current};
  held += bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) {
  const std::lock_guard<std::mutex> guard(lock);
  const auto at = blocks.find(static_cast<char*>(pointer));
  if (at == blocks.end()) return fail(cudaErrorInvalidValue);
  held -= at->second.bytes;
#if defined(__SANITIZE_ADDRESS__)
  std::free(at->first);
#else
  if (!whole(at->first - kGuard) || !whole(at->first + at->second.bytes)) {
    std::fprintf(stderr, "cuda_host: a block of %zu bytes was written beyond its ends\n", at->second.bytes);
    std::abort();
  }
  std::free(at->first - kGuard);
#endif
  blocks.erase(at);
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const std::lock_guard<std::mutex> guard(lock);
  *attributes = {cudaMemoryTypeUnregistered, -1};
  auto at = blocks.upper_bound(const_cast<char*>(static_cast<const char*>(pointer)));
  if (at == blocks.begin()) return cudaSuccess;
  --at;
  if (static_cast<const char*>(pointer) < at->first + at->second.bytes)
    *attributes = {cudaMemoryTypeDevice, at->second.device};
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (bytes) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  if (bytes) std::memset(pointer, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure: return fastconv::cuda_host::launch_error();
  }
  return "unknown error";
}
