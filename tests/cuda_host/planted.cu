#include "planted.h"

#include <functional>
#include <map>
#include <vector>

#include "cuda/async.cuh"
#include "cuda/index.h"
#include "cuda/mma.cuh"

namespace fastconv::planted {
namespace {

using namespace fastconv::cuda;

constexpr int kThreads = 64;
constexpr int kGuard = 8;  // elements behind x and y

// y = x backwards, a block at a time, through shared memory: without the barrier some are read before they are written.
template <bool kCorrected>
__global__ void barrier(const float* x, float* y, int n) {
  float* staged = shared_memory<float>();
  const int first = static_cast<int>(blockIdx.x) * kThreads, i = static_cast<int>(threadIdx.x);
  if (first + i < n) staged[i] = x[first + i];
  if constexpr (kCorrected) __syncthreads();
  const int count = n - first < kThreads ? n - first : kThreads;
  if (i < count) y[first + i] = staged[count - 1 - i];
}

// y = x by asynchronous copies: without the wait they have not landed.
template <bool kCorrected>
__global__ void wait(const float* x, float* y, int n) {
  float* staged = shared_memory<float>();
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), i = static_cast<int>(threadIdx.x);
  cuda::copy_async<4>(staged + i, x + (at < n ? at : 0), at < n ? 4 : 0);
  cuda::commit_copies();
  if constexpr (kCorrected) cuda::wait_for_copies<0>();
  __syncthreads();
  if (at < n) y[at] = staged[i ^ 1];
}

// Two stages of copies, of which the older is read: the bug leaves both under way.
template <bool kCorrected>
__global__ void stages(const float* x, float* y, int n) {
  float* staged = shared_memory<float>();
  const int i = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int k = 0; k <= n / kThreads; ++k) {
    if (k < n / kThreads) cuda::copy_async<4>(staged + k % 2 * kThreads + i, x + k * kThreads + i);
    cuda::commit_copies();
    if (k == 0) continue;
    cuda::wait_for_copies<kCorrected ? 1 : 2>();
    __syncthreads();
    sum += staged[(k - 1) % 2 * kThreads + (i ^ 1)];
    __syncthreads();
  }
  y[i] = sum;
}

// The last vector's tail: the bug's bound is a whole vector.
template <bool kCorrected>
__global__ void tail(const float* x, float* y, int n) {
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * 4;
  for (int i = 0; i < 4; ++i)
    if (kCorrected ? at + i < n : at < n) y[at + i] = x[at + i < n ? at + i : 0];
}

// The bug leaves out the element before the end.
template <bool kCorrected>
__global__ void short_tail(const float* x, float* y, int n) {
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (at < n - (kCorrected ? 0 : 1)) y[at] = x[at];
}

// Neighbours of a warp exchange through shared memory.
template <bool kCorrected>
__global__ void warp(const float* x, float* y, int n) {
  float* staged = shared_memory<float>();
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), i = static_cast<int>(threadIdx.x);
  staged[i] = at < n ? x[at] : 0;
  if constexpr (kCorrected) __syncwarp();
  if (at < n) y[at] = staged[i ^ 1];
}

// A sum over a warp, of which the bug's last lanes have returned.
template <bool kCorrected>
__global__ void lanes(const float* x, float* y, int n) {
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (!kCorrected && at >= n) return;
  float v = at < n ? x[at] : 0;
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
  if (at < n) y[at] = v;
}

// A barrier that only some threads reach.
template <bool kCorrected>
__global__ void divergent(const float* x, float* y, int n) {
  float* staged = shared_memory<float>();
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), i = static_cast<int>(threadIdx.x);
  if (at < n) staged[i] = x[at];
  if (kCorrected || at < n) __syncthreads();
  if (at < n) y[at] = staged[(i ^ 1) + (at ^ 1) / n * (i - (i ^ 1))];
}

// One float beyond the shared memory that was asked for.
template <bool kCorrected>
__global__ void beyond(const float* x, float* y, int n) {
  float* staged = shared_memory<float>();
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), i = static_cast<int>(threadIdx.x);
  staged[i + (kCorrected ? 0 : 1)] = at < n ? x[at] : 0;
  if (at < n) y[at] = staged[i + (kCorrected ? 0 : 1)];
}

// A vector at an address that is a multiple of 4 bytes only.
template <bool kCorrected>
__global__ void alignment(const float* x, float* y, int n) {
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * 4;
  if (at + 4 <= n) {
    if constexpr (kCorrected) {
      for (int i = 0; i < 4; ++i) y[at + i] = x[at + i];
    } else {
      store_vector(y + at, load_vector(x + at));
    }
  }
}

// A read beyond the end of x, whose value is not used: only AddressSanitizer can see it.
template <bool kCorrected>
__global__ void over_read(const float* x, float* y, int n) {
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const float* next = x + (kCorrected && at + 1 >= n ? 0 : at + 1);
  const float v = at < n + kGuard ? *static_cast<const volatile float*>(next) : 0;
  if (at < n) y[at] = at + 1 < n ? v : 0;
}

// y = A * B' of 16 and 8 rows of 8 terms from x, by one instruction: the bug adds to sums that nobody has written.
template <bool kCorrected>
__global__ void sums(const float* x, float* y, int) {
  float* staged = shared_memory<float>();
  const int i = static_cast<int>(threadIdx.x), lane = i % 32;
  for (int k = i; k < 16 * 8; k += kThreads) {
    staged[swizzled(k / 8, k % 8 / 4) / 4 + k % 4] = x[k];
    if (k < 8 * 8) staged[(16 * kRowBytes + swizzled(k / 8, k % 8 / 4)) / 4 + k % 4] = x[k];
  }
  // A matrix of B that no product takes is read, too.
  for (int k = i; k < 8 * 8; k += kThreads) staged[(16 * kRowBytes + swizzled(8 + k / 8, k % 8 / 4)) / 4 + k % 4] = 0;
  __syncthreads();
  const auto* stage = reinterpret_cast<const char*>(staged);
  Words a, b;
  load_matrices(a, stage + swizzled(a_row(lane).row, a_row(lane).vector));
  load_matrices(b, stage + 16 * kRowBytes + swizzled(b_row(lane).row, b_row(lane).vector));
  Sums c;
  if constexpr (kCorrected)
    for (float& sum : c.at) sum = 0;
  multiply<float>(c, a.at, b.at[0], b.at[1]);
  for (int k = 0; k < 4; ++k) y[(lane / 4 + k / 2 * 8) * 8 + lane % 4 * 2 + k % 2] = c.at[k];
}

// As `stages`, but a warp's matrices are taken: of copies that have not landed.
template <bool kCorrected>
__global__ void matrices(const float* x, float* y, int n) {
  float* staged = shared_memory<float>();
  const int i = static_cast<int>(threadIdx.x), at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  cuda::copy_async<4>(staged + i, x + (at < n ? at : 0));
  cuda::commit_copies();
  if constexpr (kCorrected) cuda::wait_for_copies<0>();
  __syncthreads();
  // Rows of four: of each warp the first half are the matrices' rows, of which lane l has word l % 4 of row l / 4.
  Words taken;
  load_matrices(taken, staged + i / 32 * 32 + i % 8 * 4);
  float value;
  std::memcpy(&value, &taken.at[0], 4);
  if (at < n) y[at] = value;
}

struct Case {
  void (*planted)(const float*, float*, int);
  void (*corrected)(const float*, float*, int);
  int n;
  std::function<float(const std::vector<float>&, int)> expected;
  int offset = 0;  // of x and y from a multiple of 16 bytes, in elements
};

float same(const std::vector<float>& x, int i) { return x[static_cast<size_t>(i)]; }
float neighbour(const std::vector<float>& x, int i) { return x[static_cast<size_t>(i ^ 1)]; }

const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> all = {
      {"barrier",
       {barrier<false>, barrier<true>, 128,
        [](const std::vector<float>& x, int i) {
          return same(x, i / kThreads * kThreads + kThreads - 1 - i % kThreads);
        }}},
      {"wait", {wait<false>, wait<true>, 128, neighbour}},
      {"stages",
       {stages<false>, stages<true>, 256,
        [](const std::vector<float>& x, int i) {
          if (i >= kThreads) return 0.0f;
          float sum = 0;
          for (int k = 0; k < 4; ++k) sum += neighbour(x, k * kThreads + i);
          return sum;
        }}},
      {"tail", {tail<false>, tail<true>, 127, same}},
      {"short_tail", {short_tail<false>, short_tail<true>, 127, same}},
      {"warp", {warp<false>, warp<true>, 128, neighbour}},
      {"lanes",
       {lanes<false>, lanes<true>, 120,
        [](const std::vector<float>& x, int i) {
          float sum = 0;
          for (int k = i / 32 * 32; k < i / 32 * 32 + 32 && k < 120; ++k) sum += same(x, k);
          return sum;
        }}},
      {"divergent",
       {divergent<false>, divergent<true>, 125,
        [](const std::vector<float>& x, int i) { return (i ^ 1) < 125 ? neighbour(x, i) : same(x, i); }}},
      {"beyond", {beyond<false>, beyond<true>, 128, same}},
      {"over_read",
       {over_read<false>, over_read<true>, 120,
        [](const std::vector<float>& x, int i) { return i + 1 < 120 ? same(x, i + 1) : 0.0f; }}},
      {"sums",
       {sums<false>, sums<true>, 128,
        [](const std::vector<float>& x, int i) {
          float sum = 0;
          for (int k = 0; k < 8; ++k) sum += same(x, i / 8 * 8 + k) * same(x, i % 8 * 8 + k);
          return sum;
        }}},
      {"matrices", {matrices<false>, matrices<true>, 128, same}},
      {"alignment", {alignment<false>, alignment<true>, 128, same, 1}},
  };
  return all;
}

}  // namespace

std::string run_planted(const std::string& name, bool corrected) {
  if (name.empty()) {
    std::string names;
    for (const auto& [key, value] : cases()) names += (names.empty() ? "" : " ") + key;
    return names;
  }
  const Case& c = cases().at(name);
  // Small whole numbers: their sums are exact in any order.
  std::vector<float> x(static_cast<size_t>(c.n));
  for (int i = 0; i < c.n; ++i) x[static_cast<size_t>(i)] = static_cast<float>((i * 37 + 11) % 101 - 50);
  const size_t bytes = static_cast<size_t>(c.n + c.offset + kGuard) * 4;
  void *from = nullptr, *to = nullptr;
  if (cudaMallocAsync(&from, bytes, nullptr) || cudaMallocAsync(&to, bytes, nullptr)) return "no memory";
  auto* source = static_cast<float*>(from) + c.offset;
  auto* result = static_cast<float*>(to) + c.offset;
  std::memcpy(source, x.data(), x.size() * 4);
  const size_t shared = name == "stages" ? 2 * kThreads * 4 : name == "sums" ? 32 * kRowBytes : kThreads * 4;
  const auto blocks = name == "stages" ? 1u : static_cast<unsigned>(ceil_div(c.n, kThreads));
  std::string found;
  if (launch(corrected ? c.corrected : c.planted, blocks, kThreads, shared, Queue{}, source, result, c.n) != Status::ok)
    found = cuda::last_error();
  const int written = name == "stages" ? kThreads : c.n;
  for (int i = 0; i < written && found.empty(); ++i)
    if (result[i] != c.expected(x, i)) found = "element " + std::to_string(i) + " is wrong";
  for (int i = written; i < c.n + kGuard && found.empty(); ++i)
    if (result[i] == result[i]) found = "element " + std::to_string(i) + " was written";
  cudaFreeAsync(from, nullptr);
  cudaFreeAsync(to, nullptr);
  return found;
}

}  // namespace fastconv::planted
