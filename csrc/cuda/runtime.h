// The CUDA runtime as the rest needs it: errors as Status, devices, memory in the order of a stream. Nothing here
// synchronises but what says so.
#pragma once
#include <cstddef>
#include <cstdint>

#include "fastconv/tensor.h"

namespace fastconv::cuda {

// Remembers the words of an error for last_error().
Status status_of(int cuda_error);
// Of the calling thread.
const char* last_error();

// 0 and the reason, in words, where there is none to use.
int device_count(const char** reason);

struct DeviceInfo {
  char name[256];
  int major, minor, multiprocessors;
  int64_t memory;  // bytes
};
Status device_info(int ordinal, DeviceInfo* info);

// Makes a device current and returns the one that was; -1 where there is no such device.
int enter_device(int ordinal);

// From the device's pool, in the order of the stream.
Status allocate(int64_t bytes, int ordinal, void* stream, void** memory);
Status release(void* memory, int ordinal, void* stream);
// Copies, and waits for the stream.
Status copy_to_device(void* to, const void* from, int64_t bytes, int ordinal, void* stream);
Status copy_to_host(void* to, const void* from, int64_t bytes, int ordinal, void* stream);
Status synchronize(int ordinal, void* stream);
// What is given to `second` from now on comes after what `first` has; the calling thread does not wait.
Status order_streams(int ordinal, void* first, void* second);
// The device whose memory a pointer points to; -1 where it is none's.
int device_of(const void* pointer);

}  // namespace fastconv::cuda
