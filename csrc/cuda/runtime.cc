#include "cuda/runtime.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <string>

namespace fastconv::cuda {
namespace {

std::string& words() {
  thread_local std::string text;
  return text;
}

// Makes a device current for a scope.
class Current {
 public:
  explicit Current(int ordinal) : before_(enter_device(ordinal)) {}
  ~Current() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  explicit operator bool() const { return before_ >= 0; }

 private:
  int before_;
};

}  // namespace

Status status_of(int cuda_error) {
  if (cuda_error == cudaSuccess) return Status::ok;
  words() = cudaGetErrorString(static_cast<cudaError_t>(cuda_error));
  cudaGetLastError();  // the next call is not to find this one's
  return cuda_error == cudaErrorMemoryAllocation ? Status::out_of_memory : Status::device_error;
}

const char* last_error() { return words().c_str(); }

int device_count(const char** reason) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  *reason = "";
  if (error == cudaSuccess && count > 0) return count;
  if (error != cudaSuccess)
    status_of(error);
  else
    words() = "no CUDA device was found";
  *reason = last_error();
  return 0;
}

Status device_info(int ordinal, DeviceInfo* info) {
  cudaDeviceProp properties;
  const Status s = status_of(cudaGetDeviceProperties(&properties, ordinal));
  if (s != Status::ok) return s;
  std::snprintf(info->name, sizeof(info->name), "%s", properties.name);
  info->major = properties.major, info->minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->memory = static_cast<int64_t>(properties.totalGlobalMem);
  return Status::ok;
}

int enter_device(int ordinal) {
  int before = 0;
  if (status_of(cudaGetDevice(&before)) != Status::ok) return -1;
  if (before != ordinal && status_of(cudaSetDevice(ordinal)) != Status::ok) return -1;
  return before;
}

Status allocate(int64_t bytes, int ordinal, void* stream, void** memory) {
  const Current current(ordinal);
  *memory = nullptr;
  if (!current) return Status::device_error;
  const auto size = static_cast<size_t>(bytes > 0 ? bytes : 1);  // an empty array needs an address too
  return status_of(cudaMallocAsync(memory, size, static_cast<cudaStream_t>(stream)));
}

Status release(void* memory, int ordinal, void* stream) {
  const Current current(ordinal);
  return current ? status_of(cudaFreeAsync(memory, static_cast<cudaStream_t>(stream))) : Status::device_error;
}

namespace {

Status copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, int ordinal, void* stream) {
  const Current current(ordinal);
  if (!current) return Status::device_error;
  const auto queue = static_cast<cudaStream_t>(stream);
  const Status s = status_of(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, queue));
  return s == Status::ok ? status_of(cudaStreamSynchronize(queue)) : s;
}

}  // namespace

Status copy_to_device(void* to, const void* from, int64_t bytes, int ordinal, void* stream) {
  return copy(to, from, bytes, cudaMemcpyHostToDevice, ordinal, stream);
}

Status copy_to_host(void* to, const void* from, int64_t bytes, int ordinal, void* stream) {
  return copy(to, from, bytes, cudaMemcpyDeviceToHost, ordinal, stream);
}

Status synchronize(int ordinal, void* stream) {
  const Current current(ordinal);
  return current ? status_of(cudaStreamSynchronize(static_cast<cudaStream_t>(stream))) : Status::device_error;
}

Status order_streams(int ordinal, void* first, void* second) {
  if (first == second) return Status::ok;
  const Current current(ordinal);
  if (!current) return Status::device_error;
  cudaEvent_t event;
  Status s = status_of(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  if (s != Status::ok) return s;
  s = status_of(cudaEventRecord(event, static_cast<cudaStream_t>(first)));
  if (s == Status::ok) s = status_of(cudaStreamWaitEvent(static_cast<cudaStream_t>(second), event, 0));
  cudaEventDestroy(event);  // once it has been reached
  return s;
}

int device_of(const void* pointer) {
  cudaPointerAttributes attributes;
  if (status_of(cudaPointerGetAttributes(&attributes, pointer)) != Status::ok) return -1;
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged ? attributes.device : -1;
}

}  // namespace fastconv::cuda
