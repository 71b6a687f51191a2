// Rows of results, written through the caches or past them.
#pragma once
#include "kernels/pair.h"

namespace fastconv::FASTCONV_ISA_NS {

// After the last of a kernel's stores past the caches: other threads may read what they wrote.
inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Writes n elements: value(i, get) is the vector from element i on, which reads its operands by get(pointer to theirs).
// The last vector, and in a row that is streamed also one up to the first whole line, is masked. An element's value
// must not depend on the lane that it falls into. Whole vectors may be read and written several at a time, as a Wide,
// which value(i, get) then is.
template <class V, class Wide = V, class Value>
inline void write_row(typename V::T* y, int64_t n, bool streaming, Value value) {
  using T = typename V::T;
  constexpr int W = V::kLanes;
  constexpr int kWide = Wide::kLanes;
  auto whole = [](const T* from) { return V::load(from); };
  auto wide = [](const T* from) { return Wide::load(from); };
  int64_t i = 0;
  if (streaming) {
    const int64_t past = (int64_t)((uintptr_t)y & (sizeof(V) - 1)) / (int64_t)sizeof(T);
    if (past) {
      const int64_t head = W - past < n ? W - past : n;
      value(0, [head](const T* from) { return V::load_n(from, head); }).store_n(y, head);
      i = head;
    }
    for (; i + kWide <= n; i += kWide) value(i, wide).stream(y + i);
    for (; i + W <= n; i += W) value(i, whole).stream(y + i);
  } else {
    for (; i + 4 * W <= n; i += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4 * W; j += kWide) value(i + j, wide).store(y + i + j);
    for (; i + W <= n; i += W) value(i, whole).store(y + i);
  }
  if (i < n) {
    const int64_t tail = n - i;
    value(i, [tail](const T* from) { return V::load_n(from, tail); }).store_n(y + i, tail);
  }
}

// The same for rows `pitch` apart, kTileRows at a time: column(i, get) loads what all rows share and gives a function
// of the row.
constexpr int kTileRows = 4;

template <class V, class Column>
inline void write_tile(typename V::T* y, int64_t pitch, int64_t rows, int64_t n, bool streaming, Column column) {
  using T = typename V::T;
  constexpr int W = V::kLanes;
  // Streamed are whole lines, where all rows begin at one.
  const bool lines = streaming && (uintptr_t)y % sizeof(V) == 0 && pitch % W == 0;
  auto whole = [](const T* from) { return V::load(from); };
  for (int64_t r = 0; r < rows; r += kTileRows) {
    const int64_t high = rows - r < kTileRows ? rows - r : kTileRows;
    T* to = y + r * pitch;
    int64_t i = 0;
    if (high == kTileRows) {
      for (; i + W <= n; i += W) {
        auto value = column(i, whole);
        V v[kTileRows];
#pragma GCC unroll 8
        for (int k = 0; k < kTileRows; ++k) v[k] = value(r + k);
        if (lines) {
#pragma GCC unroll 8
          for (int k = 0; k < kTileRows; ++k) v[k].stream(to + k * pitch + i);
        } else {
#pragma GCC unroll 8
          for (int k = 0; k < kTileRows; ++k) v[k].store(to + k * pitch + i);
        }
      }
    } else {
      for (; i + W <= n; i += W) {
        auto value = column(i, whole);
        for (int64_t k = 0; k < high; ++k) value(r + k).store(to + k * pitch + i);
      }
    }
    if (i < n) {
      const int64_t tail = n - i;
      auto value = column(i, [tail](const T* from) { return V::load_n(from, tail); });
      for (int64_t k = 0; k < high; ++k) value(r + k).store_n(to + k * pitch + i, tail);
    }
  }
}

}  // namespace fastconv::FASTCONV_ISA_NS
