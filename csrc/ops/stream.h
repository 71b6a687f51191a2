// What the memory-bound families share: when stores go past the caches, blocks of memory, moments of sums.
#pragma once
#include <algorithm>
#include <cstdint>

#include "fastconv/runtime.h"

namespace fastconv::ops {

// A block from the output cache, for partial results of a call.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)), data_(bytes ? output_allocate(bytes_) : nullptr) {}
  ~Scratch() {
    if (data_) output_release(data_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }
  bool failed() const { return bytes_ && !data_; }

 private:
  size_t bytes_;
  void* data_;
};

// Whether a result of so many bytes is written past the caches: by the time that it is read it would have left them.
inline bool streams(int64_t bytes) {
  const CacheSizes caches = cache_sizes();
  return bytes > std::max(caches.l3, caches.l2);
}

// Sums about a fixed point, in double: of values that came as sums about their own mean. In what order they come
// decides the bits.
struct Moments {
  double count = 0, about = 0, sum = 0, square = 0;

  void add(double n, double shift, double s, double q) {
    if (count == 0) about = shift;
    const double d = shift - about;
    count += n;
    sum += s + n * d;
    square += q + d * (2 * s + n * d);
  }
  double mean() const { return about + sum / count; }
  // The sum of (x - mean)^2; not below 0, and NaN where it is.
  double deviation() const {
    const double m = square - sum * sum / count;
    return m < 0 ? 0 : m;
  }
};

}  // namespace fastconv::ops
