// Windows along one axis of a pooling layer: which elements an output covers, and which outputs an element is covered
// by.
//
// I is int64_t, or int32_t where padded sizes stay below 2^30 (the GPU's usual case).
#pragma once
#include <algorithm>
#include <cstdint>

namespace fastconv::ops {

// The elements of an axis that a window covers: first, first + dilation, ...; the first of them is tap `tap`.
template <class I>
struct WindowOf {
  I first, count, tap;
};
template <class I>
struct RangeOf {
  I begin, end;
};

template <class I>
struct AxisOf {
  I in = 1, out = 1, kernel = 1, stride = 1, dilation = 1, pad = 0, pad_after = 0;
  bool adaptive = false;  // kernel: an upper bound

  // a * n / d, rounded down or up, of 0 <= a <= d: in 64 bits by a wider product; in 32, where d stays below 2^16, by
  // unsigned ones, since a device divides 64 bits by a call.
  static constexpr I share(I a, I n, I d, bool up) {
    if constexpr (sizeof(I) == 8) {
      return static_cast<I>((static_cast<__int128>(a) * n + (up ? d - 1 : 0)) / d);
    } else {
      const auto ua = static_cast<uint32_t>(a), un = static_cast<uint32_t>(n), ud = static_cast<uint32_t>(d);
      return static_cast<I>(ua * (un / ud) + (ua * (un % ud) + (up ? ud - 1 : 0)) / ud);
    }
  }

  constexpr WindowOf<I> window(I o) const {
    if (adaptive) {
      const I from = share(o, in, out, false);
      return {from, share(o + 1, in, out, true) - from, 0};
    }
    const I begin = o * stride - pad;
    const I tap = begin < 0 ? (-begin + dilation - 1) / dilation : 0;
    const I from = begin + tap * dilation;
    const I inside = from < in ? (in - from + dilation - 1) / dilation : 0;
    const I count = kernel - tap < inside ? kernel - tap : inside;
    return {from, count < 0 ? 0 : count, tap};
  }

  // The windows that reach into [i0, i1), and maybe some between them that do not.
  constexpr RangeOf<I> touching(I i0, I i1) const {
    if (i0 >= i1) return {0, 0};
    if (adaptive) return {share(i0, out, in, false), share(i1, out, in, true)};
    const I below = i0 + pad - (kernel - 1) * dilation;  // the least beginning (padded) of a window that reaches i0
    const I from = below <= 0 ? 0 : (below + stride - 1) / stride;
    const I end = (i1 - 1 + pad) / stride + 1;
    return {from < out ? from : out, end < out ? end : out};
  }

  // The length of window o with its padding, as far as the padding goes.
  constexpr I pool_size(I o) const {
    const I begin = o * stride - pad, end = begin + kernel < in + pad_after ? begin + kernel : in + pad_after;
    return end - begin < 1 ? 1 : end - begin;
  }
};

using Window = WindowOf<int64_t>;
using Range = RangeOf<int64_t>;
using Axis = AxisOf<int64_t>;

}  // namespace fastconv::ops
