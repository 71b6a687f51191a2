// Rows of results, written through the caches or past them.
#pragma once
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

// After the last of a kernel's stores past the caches: other threads may read what they wrote.
inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Writes n elements: value(i, get) is the vector from element i on, which reads its operands by get(pointer to theirs).
// The last vector, and in a row that is streamed also one up to the first whole line, is masked. An element's value must
// not depend on the lane that it falls into.
template <class V, class Value>
inline void write_row(typename V::T* y, int64_t n, bool streaming, Value value) {
  using T = typename V::T;
  constexpr int W = V::kLanes;
  auto whole = [](const T* from) { return V::load(from); };
  int64_t i = 0;
  if (streaming) {
    const int64_t past = (int64_t)((uintptr_t)y & (sizeof(V) - 1)) / (int64_t)sizeof(T);
    if (past) {
      const int64_t head = W - past < n ? W - past : n;
      value(0, [head](const T* from) { return V::load_n(from, head); }).store_n(y, head);
      i = head;
    }
    for (; i + W <= n; i += W) value(i, whole).stream(y + i);
  } else {
    for (; i + W <= n; i += W) value(i, whole).store(y + i);
  }
  if (i < n) {
    const int64_t tail = n - i;
    value(i, [tail](const T* from) { return V::load_n(from, tail); }).store_n(y + i, tail);
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
