// Arithmetic on indices that host and device share: everything here is constexpr and tested for itself.
#pragma once
#include <cstdint>

#include "fastconv/tensor.h"

#ifdef __CUDACC__
#define FASTCONV_BOTH __host__ __device__
#else
#define FASTCONV_BOTH
#endif

namespace fastconv::cuda {

FASTCONV_BOTH constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Quotient and remainder by a number that is known at the launch: for indices below 2^31 a multiplication, an addition
// and a shift (Granlund and Montgomery, PLDI 1994) in place of some twenty instructions.
struct Divider {
  uint32_t divisor = 1, factor = 1, shift = 0;

  Divider() = default;
  FASTCONV_BOTH constexpr explicit Divider(uint32_t d) : divisor(d) {
    while (shift < 31 && (uint32_t{1} << shift) < d) ++shift;
    factor = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d) / d + 1);
  }
  FASTCONV_BOTH constexpr uint32_t quotient(uint32_t n) const {
    const auto high = static_cast<uint32_t>(static_cast<uint64_t>(n) * factor >> 32);
    return (high + n) >> shift;
  }
};

// The same of indices below 2^63, by a product of 128 bits: a division of 64 bits is a call on a device.
struct Divider64 {
  uint64_t divisor = 1, factor = 1, shift = 0;

  Divider64() = default;
  FASTCONV_BOTH constexpr explicit Divider64(uint64_t d) : divisor(d) {
    using Wide = unsigned __int128;
    while (shift < 63 && (uint64_t{1} << shift) < d) ++shift;
    factor = static_cast<uint64_t>((static_cast<Wide>((uint64_t{1} << shift) - d) << 64) / d + 1);
  }
  FASTCONV_BOTH constexpr uint64_t quotient(uint64_t n) const {
    const auto high = static_cast<uint64_t>(static_cast<unsigned __int128>(n) * factor >> 64);
    return (high + n) >> shift;
  }
};

// Indices of 32 bits where all fits, of 64 bits elsewhere.
template <class Index>
struct Radix;
template <>
struct Radix<uint32_t> {
  Divider by;
  Radix() = default;
  FASTCONV_BOTH constexpr explicit Radix(int64_t n) : by(static_cast<uint32_t>(n)) {}
  // Leaves the quotient in n and returns the remainder.
  FASTCONV_BOTH constexpr uint32_t split(uint32_t& n) const {
    const uint32_t q = by.quotient(n), r = n - q * by.divisor;
    n = q;
    return r;
  }
};
template <>
struct Radix<uint64_t> {
  Divider64 by;
  Radix() = default;
  FASTCONV_BOTH constexpr explicit Radix(int64_t n) : by(static_cast<uint64_t>(n)) {}
  FASTCONV_BOTH constexpr uint64_t split(uint64_t& n) const {
    const uint64_t q = by.quotient(n), r = n - q * by.divisor;
    n = q;
    return r;
  }
};

// The largest index and offset of the 32-bit forms.
inline constexpr int64_t kMost32 = (int64_t{1} << 31) - 1;

// The axes of up to kOperands views of one shape, joined where they are one axis in memory on every side, from the
// innermost out: `count` axes of sizes and, for each operand, strides.
template <int kOperands>
struct Axes {
  int count = 0;
  int64_t size[kMaxDims] = {1, 1, 1, 1, 1};
  int64_t stride[kOperands][kMaxDims] = {};

  // Whether all of them are one dense run.
  constexpr bool dense() const {
    if (count == 0) return true;
    for (int k = 0; k < kOperands; ++k)
      if (count != 1 || stride[k][0] != 1) return false;
    return true;
  }
  constexpr int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < count; ++i) n *= size[i];
    return n;
  }
  // Whether indices and offsets all lie within +-2^31.
  constexpr bool small() const {
    if (elements() > kMost32) return false;
    for (int k = 0; k < kOperands; ++k) {
      int64_t reach = 0;
      for (int i = 0; i < count; ++i) {
        const int64_t s = stride[k][i] < 0 ? -stride[k][i] : stride[k][i];
        if (s > kMost32 || size[i] > kMost32) return false;
        reach += (size[i] - 1) * s;
      }
      if (reach > kMost32) return false;
    }
    return true;
  }
};

// Ordered by the strides of the first view; an empty shape gives no axes of more than one element.
template <int kOperands>
constexpr Axes<kOperands> join_axes(const TensorView* const (&views)[kOperands]) {
  Axes<kOperands> a;
  const TensorView& lead = *views[0];
  int order[kMaxDims] = {}, n = 0;
  auto magnitude = [](int64_t s) { return s < 0 ? -s : s; };
  for (int i = 0; i < lead.ndim; ++i) {
    if (lead.shape[i] == 1) continue;
    int at = n++;
    for (; at > 0 && magnitude(lead.strides[order[at - 1]]) > magnitude(lead.strides[i]); --at)
      order[at] = order[at - 1];
    order[at] = i;
  }
  for (int j = 0; j < n; ++j) {
    const int i = order[j];
    bool joins = a.count > 0;
    for (int k = 0; k < kOperands && joins; ++k)
      joins = views[k]->strides[i] == a.stride[k][a.count - 1] * a.size[a.count - 1];
    if (joins) {
      a.size[a.count - 1] *= lead.shape[i];
      continue;
    }
    a.size[a.count] = lead.shape[i];
    for (int k = 0; k < kOperands; ++k) a.stride[k][a.count] = views[k]->strides[i];
    ++a.count;
  }
  return a;
}

}  // namespace fastconv::cuda
