// Scratch memory of a call. Output blocks, which outlive the call, are in fastconv/runtime.h.
#pragma once
#include <cstddef>

namespace fastconv::ops {

// A 64-byte aligned scratch block for the lifetime of the object, from the calling thread's own cache. It holds
// whatever the last user left there. False where there is no memory. It is released on the thread that made it.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  size_t requested_;     // by the caller, for the statistics
  size_t capacity_ = 0;  // of the block
  void* data_;
};

}  // namespace fastconv::ops
