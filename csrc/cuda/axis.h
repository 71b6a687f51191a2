// The windows of ops/window.h along one axis, with their divisions prepared at the launch.
#pragma once
#include <type_traits>

#include "cuda/index.h"
#include "ops/window.h"

namespace fastconv::cuda {

// Adaptive windows: sizes up to kMostAdaptive, so that what is divided fits the dividers.
template <class I>
struct DeviceAxis {
  using Unsigned = std::make_unsigned_t<I>;
  using By = Radix<Unsigned>;
  static constexpr int64_t kMostAdaptive = sizeof(I) == 8 ? int64_t{1} << 31 : 46339;

  I in = 1, out = 1, kernel = 1, stride = 1, dilation = 1, pad = 0, pad_after = 0;
  bool adaptive = false;
  I in_share = 1, in_rest = 0, out_share = 1, out_rest = 0;  // in / out and in % out; out / in and out % in
  By by_in, by_out, by_kernel, by_stride, by_dilation;

  DeviceAxis() = default;
  FASTCONV_BOTH constexpr explicit DeviceAxis(const ops::Axis& a)
      : in(static_cast<I>(a.in)),
        out(static_cast<I>(a.out)),
        kernel(static_cast<I>(a.kernel)),
        stride(static_cast<I>(a.stride)),
        dilation(static_cast<I>(a.dilation)),
        pad(static_cast<I>(a.pad)),
        pad_after(static_cast<I>(a.pad_after)),
        adaptive(a.adaptive),
        in_share(static_cast<I>(a.out ? a.in / a.out : 0)),
        in_rest(static_cast<I>(a.out ? a.in % a.out : 0)),
        out_share(static_cast<I>(a.in ? a.out / a.in : 0)),
        out_rest(static_cast<I>(a.in ? a.out % a.in : 0)),
        by_in(a.in ? a.in : 1),
        by_out(a.out ? a.out : 1),
        by_kernel(a.kernel),
        by_stride(a.stride),
        by_dilation(a.dilation) {}

  // n / d of 0 <= n.
  FASTCONV_BOTH static constexpr I over(I n, const By& d) {
    return static_cast<I>(d.by.quotient(static_cast<Unsigned>(n)));
  }

  FASTCONV_BOTH constexpr ops::WindowOf<I> window(I o) const {
    if (adaptive) {
      const I from = o * in_share + over(o * in_rest, by_out);
      return {from, (o + 1) * in_share + over((o + 1) * in_rest + out - 1, by_out) - from, 0};
    }
    const I begin = o * stride - pad;
    const I tap = begin < 0 ? over(-begin + dilation - 1, by_dilation) : 0;
    const I from = begin + tap * dilation;
    const I inside = from < in ? over(in - from + dilation - 1, by_dilation) : 0;
    const I count = kernel - tap < inside ? kernel - tap : inside;
    return {from, count < 0 ? 0 : count, tap};
  }

  FASTCONV_BOTH constexpr ops::RangeOf<I> touching(I i) const {
    if (adaptive)
      return {i * out_share + over(i * out_rest, by_in),
              (i + 1) * out_share + over((i + 1) * out_rest + in - 1, by_in)};
    const I below = i + pad - (kernel - 1) * dilation;
    const I from = below <= 0 ? 0 : over(below + stride - 1, by_stride);
    const I end = over(i + pad, by_stride) + 1;
    return {from < out ? from : out, end < out ? end : out};
  }

  // The tap by which the window at o covers element i; -1 for none.
  FASTCONV_BOTH constexpr I tap_of(I i, I o) const {
    if (adaptive) {
      const ops::WindowOf<I> w = window(o);
      const I t = i - w.first;
      return t >= 0 && t < w.count ? t : -1;
    }
    const I ahead = i + pad - o * stride;
    if (ahead < 0) return -1;
    const I t = over(ahead, by_dilation);
    return t * dilation == ahead && t < kernel ? t : -1;
  }

  FASTCONV_BOTH constexpr I pool_size(I o) const {
    const I begin = o * stride - pad, end = begin + kernel < in + pad_after ? begin + kernel : in + pad_after;
    return end - begin < 1 ? 1 : end - begin;
  }
};

}  // namespace fastconv::cuda
