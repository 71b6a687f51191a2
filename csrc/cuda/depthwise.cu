// Convolutions of thin groups in all three products, of any size, stride and dilation: what has no tiles
// (depthwise_tile.cu) among depthwise layers, and groups that write fewer than kThin channels.
//
// Bytes: in and out once, since what taps share is read from L1 and L2; flops: 2 a tap and element.
//
// fprop and dgrad: a thread a result, in the order of the memory that is written, which adds up its channels and taps
// in their order. wgrad: a block of 256 threads a weight and piece of pixels, whose parts are joined by halves; pieces
// have a fixed length and are joined in order. Registers: a sum, coordinates of a pixel and a tap, offsets of 64 bits:
// at most 64, so that 4 blocks share a multiprocessor (80 of double, 3 blocks). Shared memory: 256 sums, of wgrad
// alone.
//
// gate: thin_products registers 80
// gate: thin_weights registers 64 shared 2048
#include "cuda/conv.cuh"
#include "cuda/launch.h"

namespace fastconv::cuda {
namespace {

template <bool kForward, bool kInner, bool kPrepared, class T>
__global__ void __launch_bounds__(kConvThreads, sizeof(T) == 8 ? 3 : 4)
    thin_products(ConvShape s, Before<T> before, After<T> after, Divider64 by_inner, Divider by_channels,
                  Divider by_group, const T* read, const T* w, T* to) {
  const Pixels& pixels = kForward ? s.out_pixels : s.in_pixels;
  const int64_t channels = by_channels.divisor;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kConvThreads + threadIdx.x;
  if (number >= pixels.count * channels) return;
  // Channels innermost, or the pixels of a plane: both numbers stay below 2^31, their product need not.
  int64_t pixel = 0;
  int channel = 0;
  if constexpr (kInner) {
    pixel = static_cast<int64_t>(by_inner.quotient(static_cast<uint64_t>(number)));
    channel = static_cast<int>(number - pixel * channels);
  } else {
    const auto area = static_cast<int64_t>(by_inner.divisor);
    const auto p = static_cast<uint32_t>(by_inner.quotient(static_cast<uint64_t>(number)));
    const uint32_t n = by_channels.quotient(p);
    channel = static_cast<int>(p - n * by_channels.divisor);
    pixel = n * area + (number - p * area);
  }
  const auto g = static_cast<int>(by_group.quotient(static_cast<uint32_t>(channel)));
  const int own = channel - g * static_cast<int>(by_group.divisor);
  const Pixel at = pixel_of(pixels, pixel);
  Acc<T> sum = 0;
  const int others = kForward ? s.C : s.K;
  for (int other = 0; other < others; ++other) {
    Tap tap{};
    for (tap.at[0] = 0; tap.at[0] < s.filter[0]; ++tap.at[0])
      for (tap.at[1] = 0; tap.at[1] < s.filter[1]; ++tap.at[1])
        for (tap.at[2] = 0; tap.at[2] < s.filter[2]; ++tap.at[2]) {
          if constexpr (kForward)
            sum += in_value<kPrepared>(s, before, read, at, tap, g * s.C + other) *
                   widen(w[weight_offset(s, g, own, other, tap)]);
          else
            sum += out_value<kPrepared>(s, before, read, at, tap, g * s.K + other) *
                   widen(w[weight_offset(s, g, other, own, tap)]);
        }
  }
  Acc<T> result[1] = {finished(after, at, channel, sum)};
  // The place first: little is to be kept over the calls of an activation.
  T* place = to + offset_in(kForward ? s.os : s.is, at, channel);
  activate(after.act, result);
  *place = narrow<T>(after.accumulate ? result[0] + widen(*place) : result[0]);
}

template <class T>
__global__ void __launch_bounds__(kConvThreads)
    thin_weights(ConvShape s, Before<T> before, int64_t piece, const T* in, const T* out, Acc<T>* sums) {
  using A = Acc<T>;
  auto* shared = shared_memory<A>();
  const auto number = static_cast<int64_t>(blockIdx.x);
  const auto tap_number = static_cast<int>(number % s.tap_count);
  const int64_t row = number / s.tap_count;
  const auto c = static_cast<int>(row % s.C);
  const auto k = static_cast<int>(row / s.C);  // of all groups
  const int g = k / s.K;
  const Tap tap = tap_of(s, tap_number);
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * piece;
  const int64_t end = begin + piece < s.out_pixels.count ? begin + piece : s.out_pixels.count;
  A sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kConvThreads) {
    const Pixel p = pixel_of(s.out_pixels, i);
    const A dy =
        widen(out[p.n * s.os.n + k * s.os.c + p.at[0] * s.os.s[0] + p.at[1] * s.os.s[1] + p.at[2] * s.os.s[2]]);
    sum += dy * in_value<false>(s, before, in, p, tap, g * s.C + c);
  }
  for (int half = kConvThreads / 2; half > 0; half /= 2) {
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sum += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[static_cast<int64_t>(blockIdx.y) * gridDim.x + number] = sum;
}

}  // namespace

Cut thin_cut(int64_t pixels) { return Cut(pixels, 16384); }

template <class T>
Status run_thin(Product product, const ConvShape& s, const Before<T>& before, const After<T>& after, T* in, T* out,
                T* w, const Queue& queue) {
  using A = Acc<T>;
  if (product == Product::wgrad) {
    const int64_t weights = static_cast<int64_t>(s.G) * s.K * s.C * s.tap_count;
    const Cut cut = thin_cut(s.out_pixels.count);
    if (weights > kMost32) return Status::overflow;
    const dim3 grid(static_cast<unsigned>(weights), static_cast<unsigned>(cut.pieces));
    const Status done = launch(&thin_weights<T>, grid, kConvThreads, kConvThreads * sizeof(A), queue, s, before,
                               cut.length, in, out, static_cast<A*>(queue.workspace));
    if (done != Status::ok) return done;
    return join_pieces<T>(static_cast<const A*>(queue.workspace), weights, cut.pieces, after.accumulate, w, queue);
  }
  const bool forward = product == Product::fprop;
  const Pixels& pixels = forward ? s.out_pixels : s.in_pixels;
  const int group = forward ? s.K : s.C;
  const int64_t channels = static_cast<int64_t>(s.G) * group;
  int64_t plane = 1;
  for (int a = 0; a < 3; ++a) plane *= pixels.size[a].divisor;
  const bool inner = (forward ? s.os : s.is).c == 1 && channels > 1;
  const Divider by_channels(static_cast<uint32_t>(channels)), by_group(static_cast<uint32_t>(group));
  const Divider64 by_inner(static_cast<uint64_t>(inner ? channels : plane));
  const int64_t blocks = ceil_div(pixels.count * channels, kConvThreads);
  if (pixels.count / plane * channels > kMost32 || blocks > kMost32) return Status::overflow;
  auto run = [&](auto* kernel, const T* read, T* to) {
    return launch(kernel, static_cast<unsigned>(blocks), kConvThreads, 0, queue, s, before, after, by_inner,
                  by_channels, by_group, read, w, to);
  };
  auto choose = [&](auto prepared) {
    constexpr bool kPrepared = decltype(prepared)::value;
    if (forward)
      return inner ? run(&thin_products<true, true, kPrepared, T>, in, out)
                   : run(&thin_products<true, false, kPrepared, T>, in, out);
    return inner ? run(&thin_products<false, true, kPrepared, T>, out, in)
                 : run(&thin_products<false, false, kPrepared, T>, out, in);
  };
  return before.active ? choose(std::true_type{}) : choose(std::false_type{});
}

template Status run_thin<float>(Product, const ConvShape&, const Before<float>&, const After<float>&, float*, float*,
                                float*, const Queue&);
template Status run_thin<double>(Product, const ConvShape&, const Before<double>&, const After<double>&, double*,
                                 double*, double*, const Queue&);
template Status run_thin<half>(Product, const ConvShape&, const Before<half>&, const After<half>&, half*, half*, half*,
                               const Queue&);
template Status run_thin<bfloat16>(Product, const ConvShape&, const Before<bfloat16>&, const After<bfloat16>&,
                                   bfloat16*, bfloat16*, bfloat16*, const Queue&);

}  // namespace fastconv::cuda
