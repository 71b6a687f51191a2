// The arithmetic on indices of csrc/cuda, exhaustively where that is possible.
#include "cuda/index.h"

#include <string>

#include "cuda/axis.h"
#include "cuda/conv.cuh"
#include "cuda/mma.cuh"

#include "planted.h"

namespace fastconv::planted {
namespace {

using namespace fastconv::cuda;

// Every divisor up to 4096 and those around powers of two, at the multiples where a quotient changes and at the ends.
std::string check_divider(uint32_t d) {
  const Divider by(d);
  auto wrong = [&](uint64_t n) { return n < (uint64_t{1} << 31) && by.quotient(static_cast<uint32_t>(n)) != n / d; };
  const uint64_t last = ((uint64_t{1} << 31) - 1) / d;
  for (uint64_t q = 0; q <= last; q += q < 64 || q + 64 > last ? 1 : 1 + last / 97)
    for (uint64_t n : {q * d, q * d + 1, q * d + d - 1})
      if (wrong(n)) return std::to_string(n) + " / " + std::to_string(d);
  return wrong((uint64_t{1} << 31) - 1) ? "2^31 - 1 over " + std::to_string(d) : "";
}

// All shapes of three axes of one to three elements, in every order of memory and with gaps: the joined axes lead to
// the elements that the view's own do.
std::string check_axes() {
  constexpr int kOrders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (int shape = 0; shape < 27; ++shape)
    for (const auto& order : kOrders)
      for (int gap = 0; gap < 4; ++gap)
        for (const int sign : {1, -1}) {
          TensorView a, b;
          a.ndim = b.ndim = 3;
          const int64_t size[3] = {shape % 3 + 1, shape / 3 % 3 + 1, shape / 9 + 1};
          int64_t step_a = 1, step_b = 1;
          for (int k = 2; k >= 0; --k) {
            const int i = order[k];
            a.shape[i] = b.shape[i] = size[i];
            a.strides[i] = step_a;
            b.strides[i] = sign * step_b;
            step_a *= size[i];
            step_b *= size[i] + (gap == k ? 2 : 0);
          }
          const TensorView* const views[2] = {&a, &b};
          const Axes<2> axes = join_axes(views);
          if (axes.elements() != size[0] * size[1] * size[2]) return "elements";
          // The sum over elements of (offset in a) * (offset in b) is the same by either walk.
          int64_t by_view = 0, by_axes = 0;
          for (int64_t i = 0; i < size[0]; ++i)
            for (int64_t j = 0; j < size[1]; ++j)
              for (int64_t k = 0; k < size[2]; ++k)
                by_view += (i * a.strides[0] + j * a.strides[1] + k * a.strides[2] + 1) *
                           (i * b.strides[0] + j * b.strides[1] + k * b.strides[2] + 1);
          for (int64_t n = 0; n < axes.elements(); ++n) {
            auto rest = static_cast<uint32_t>(n);
            int64_t oa = 1, ob = 1;
            for (int k = 0; k < axes.count; ++k) {
              const int64_t at = Radix<uint32_t>(axes.size[k]).split(rest);
              oa += at * axes.stride[0][k], ob += at * axes.stride[1][k];
            }
            by_axes += oa * ob;
          }
          if (by_view != by_axes) return "axes of shape " + std::to_string(shape);
          if (gap == 3 && sign > 0 && !axes.dense()) return "a dense run was not seen";
          if (sign < 0 && a.shape[0] * a.shape[1] * a.shape[2] > 1 && axes.dense()) return "a mirrored one is no run";
        }
  return "";
}

// Divisors around powers of two and others, at the multiples where a quotient changes and at the ends.
std::string check_divider64(uint64_t d) {
  const Divider64 by(d);
  const uint64_t most = (uint64_t{1} << 63) - 1, last = most / d;
  auto wrong = [&](uint64_t n) { return n <= most && by.quotient(n) != n / d; };
  for (uint64_t i = 0; i < 300; ++i)
    for (const uint64_t q : {i, last - (i < last ? i : last), last / 301 * i})
      for (const uint64_t n : {q * d, q * d + 1, q * d + (d - 1)})
        if (wrong(n)) return std::to_string(n) + " / " + std::to_string(d) + " of 64 bits";
  return wrong(most) ? "2^63 - 1 over " + std::to_string(d) : "";
}

// Every axis of small sizes: the windows of the CPU's, which divides.
template <class I>
std::string check_axis() {
  auto same = [](const ops::Axis& of) {
    const DeviceAxis<I> axis(of);
    for (int64_t o = 0; o < of.out; ++o) {
      const auto a = of.window(o);
      const auto b = axis.window(static_cast<I>(o));
      if (a.first != b.first || a.count != b.count || a.tap != b.tap) return false;
      if (!of.adaptive && of.pool_size(o) != axis.pool_size(static_cast<I>(o))) return false;
      for (int64_t k = 0, i = a.first; k < a.count; ++k, i += of.dilation)
        if (axis.tap_of(static_cast<I>(i), static_cast<I>(o)) != a.tap + k) return false;
    }
    for (int64_t i = 0; i < of.in; ++i) {
      const auto a = of.touching(i, i + 1);
      const auto b = axis.touching(static_cast<I>(i));
      if (a.begin != b.begin || a.end != b.end) return false;
    }
    return true;
  };
  for (int64_t in = 1; in <= 9; ++in)
    for (int64_t out = 1; out <= 9; ++out) {
      if (!same({in, out, in, 1, 1, 0, 0, true})) return "an adaptive axis of " + std::to_string(in);
      for (int64_t kernel = 1; kernel <= 4; ++kernel)
        for (int64_t stride = 1; stride <= 4; ++stride)
          for (int64_t dilation = 1; dilation <= 3; ++dilation)
            for (int64_t pad = 0; pad <= 2; ++pad)
              if (!same({in, out, kernel, stride, dilation, pad, 2 - pad})) return "an axis of " + std::to_string(in);
    }
  return "";
}

// Every element's places in a padded axis are those that map to it, in their order.
std::string check_preimages() {
  using ops::map_index;
  for (const PaddingMode mode :
       {PaddingMode::zeros, PaddingMode::reflect, PaddingMode::replicate, PaddingMode::circular})
    for (int n = 1; n <= 6; ++n)
      for (int before = 0; before <= n + 2; ++before)
        for (int after = 0; after <= n + 2; ++after) {
          const int most = mode == PaddingMode::reflect ? n - 1 : mode == PaddingMode::circular ? n : n + 2;
          if (before > most || after > most) continue;
          for (int i = 0; i < n; ++i) {
            const Preimages places{n, i, before, after, mode};
            int found = 0, place = Preimages::kNone;
            for (int u = -before; u < n + after; ++u)
              if (map_index(mode, u, n) == i && (++found, place = places.next(place)) != u)
                return "the places of " + std::to_string(i) + " of " + std::to_string(n);
            if (places.next(place) != Preimages::kNone || places.several() != (found > 1))
              return "more places of " + std::to_string(i) + " of " + std::to_string(n);
          }
        }
  return "";
}

// Whether `count` accesses of `bytes` meet each of the 32 banks at most once. Lane l's begins at at(l).
template <class F>
bool one_pass(int count, int bytes, F at) {
  uint32_t seen = 0;
  for (int lane = 0; lane < count; ++lane)
    for (int byte = 0; byte < bytes; byte += 4) {
      const uint32_t bank = uint32_t{1} << (at(lane) + byte) / 4 % 32;
      if (seen & bank) return false;
      seen |= bank;
    }
  return true;
}

// Shared memory of mma.cu: the swizzle's places are all places, once; matrices, copies and results meet each bank once.
std::string check_swizzle() {
  constexpr int kRows = 256;
  std::string places(kRows * kRowBytes / 16, ' ');
  for (int row = 0; row < kRows; ++row)
    for (int vector = 0; vector < kRowVectors; ++vector) {
      const int at = swizzled(row, vector);
      if (at % 16 || at / kRowBytes != row) return "the swizzle leaves its row";
      char& place = places[static_cast<size_t>(at / 16)];
      if (place != ' ') return "the swizzle takes a place twice";
      place = 'x';
    }
  // A phase of ldmatrix, and of 16-byte stores, is eight lanes.
  for (int row = 0; row < kRows; row += 16)
    for (int step = 0; step < kRowVectors; step += 2)
      for (int matrix = 0; matrix < 4; ++matrix) {
        auto a = [&](int l) {
          const MatrixRow r = a_row(matrix * 8 + l);
          return swizzled(row + r.row, step + r.vector);
        };
        auto b = [&](int l) {
          const MatrixRow r = b_row(matrix * 8 + l);
          return swizzled(row + r.row, step + r.vector);
        };
        if (!one_pass(8, 16, a) || !one_pass(8, 16, b)) return "matrices meet a bank twice";
      }
  for (int first = 0; first < 4 * kRows; first += 8) {
    if (!one_pass(8, 16, [&](int l) { return swizzled((first + l) / kRowVectors, (first + l) % kRowVectors); }))
      return "copies meet a bank twice";
    for (int vector = 0; vector < kRowVectors && first < kRows; ++vector)
      if (!one_pass(8, 16, [&](int l) { return swizzled(first + l, vector); }))
        return "gathered vectors meet a bank twice";
  }
  // Pairs of sums, of 8 bytes: half a warp at a time.
  for (const int tile : {64, 128})
    for (int half = 0; half < 32; half += 16)
      if (!one_pass(16, 8, [&](int l) { return 4 * ((half + l) / 4 * (tile + 8) + (half + l) % 4 * 2); }))
        return "sums meet a bank twice";
  // Which row of which vector each lane names: rows 0-7 and 8-15 of one vector, then of the next; of B the vectors
  // first.
  for (int lane = 0; lane < 32; ++lane) {
    const MatrixRow a = a_row(lane), b = b_row(lane);
    if (a.row != lane % 16 || a.vector != lane / 16) return "a row of A";
    if (b.row != lane % 8 + lane / 16 * 8 || b.vector != lane / 8 % 2) return "a row of B";
  }
  return "";
}

}  // namespace

std::string check_index() {
  if (std::string found = check_swizzle(); !found.empty()) return found;
  if (std::string found = check_preimages(); !found.empty()) return found;
  for (uint64_t d = 1; d <= 2048; ++d)
    if (std::string found = check_divider64(d); !found.empty()) return found;
  for (int shift = 11; shift < 63; ++shift)
    for (uint64_t d = (uint64_t{1} << shift) - 2; d <= (uint64_t{1} << shift) + 2; ++d)
      if (std::string found = check_divider64(d); !found.empty()) return found;
  for (const auto& found : {check_axis<int32_t>(), check_axis<int64_t>()})
    if (!found.empty()) return found;
  for (uint32_t d = 1; d <= 4096; ++d)
    if (std::string found = check_divider(d); !found.empty()) return found;
  for (uint32_t shift = 12; shift < 31; ++shift)
    for (int64_t d = (int64_t{1} << shift) - 2; d <= (int64_t{1} << shift) + 2; ++d)
      if (std::string found = check_divider(static_cast<uint32_t>(d)); !found.empty()) return found;
  for (const uint32_t d : {715827883u, 1431655765u, 2147483646u, 2147483647u})
    if (std::string found = check_divider(d); !found.empty()) return found;
  return check_axes();
}

}  // namespace fastconv::planted
