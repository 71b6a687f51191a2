// Scratch memory of a call. Output blocks, which outlive the call, are in fastconv/runtime.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "fastconv/runtime.h"

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

// A block from the output cache, for packed weights and other scratch that may be larger than a cache.
class Block {
 public:
  Block() = default;
  explicit Block(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)), data_(bytes ? output_allocate(bytes_) : nullptr) {}
  Block(Block&& other) noexcept : bytes_(other.bytes_), data_(other.data_) { other.data_ = nullptr; }
  Block& operator=(Block&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Block() {
    if (data_) output_release(data_, bytes_);
  }
  void* data() const { return data_; }
  bool failed() const { return bytes_ && !data_; }

 private:
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

}  // namespace fastconv::ops
