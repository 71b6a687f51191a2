// Convolution of every kind by an implicit product of matrices on the CUDA cores: the path that is right for
// everything.
//
// Flops: 2 a multiply-add, all FFMA (67 TFLOP/s on an H200; DFMA for double); bytes: operands once, as long as the
// tiles that share them run together. A block has a tile of 64 x 64 results and goes through the reduction 16 terms at
// a time: 256 threads bring 64 x 16 terms of either operand, widened, into shared memory (rows of 68, so that a
// column's stores meet different banks), each computing the addresses of its 4 + 4; then each adds up 4 x 4 results.
//
//   fprop   rows: output pixels; columns: output channels; terms: input channels x taps
//   dgrad   rows: input pixels; columns: input channels; terms: output channels x taps
//   wgrad   rows: output channels; columns: input channels x taps; terms: output pixels, in pieces of fixed length
//           whose sums go to the workspace and are joined in order
//
// Registers: 16 accumulators, 8 operands, 8 loaded terms, coordinates: at most 128, so that 2 blocks
// share a multiprocessor (168 of double, one block). Shared memory: 2 x 16 x 68 accumulators, and 64 pixels.
//
// gate: product_tiles registers 168 shared 18432
// gate: add_pieces registers 40
// gate: bias_sums registers 40 shared 2048
#include "cuda/conv.cuh"

#include "cuda/launch.h"

namespace fastconv::cuda {
namespace {

constexpr int kTile = 64, kDepth = 16, kPitch = kTile + 4, kSide = 4;

// A term's channel and tap: channels are innermost in its number where they are in memory.
struct Terms {
  Divider by;
  bool channels_inner;
  __device__ void split(int number, int* channel, int* tap) const {
    const auto n = static_cast<uint32_t>(number);
    const uint32_t q = by.quotient(n), r = n - q * by.divisor;
    *channel = static_cast<int>(channels_inner ? r : q);
    *tap = static_cast<int>(channels_inner ? q : r);
  }
};

// The operands as matrices: rows x terms and terms x columns.
template <Product kProduct, bool kPrepared, class T>
struct Matrices {
  const ConvShape& s;
  const Before<T>& before;
  const T *in, *out, *w;
  int g;
  Terms terms;
  int64_t rows, columns, length;

  // `pixel`: that of the row (of the term, for wgrad).
  __device__ Acc<T> row_term(const Pixel& pixel, int64_t row, int64_t term) const {
    int channel = 0, tap = 0;
    if constexpr (kProduct != Product::wgrad) terms.split(static_cast<int>(term), &channel, &tap);
    if constexpr (kProduct == Product::fprop)
      return in_value<kPrepared>(s, before, in, pixel, tap_of(s, tap), g * s.C + channel);
    else if constexpr (kProduct == Product::dgrad)
      return out_value<kPrepared>(s, before, out, pixel, tap_of(s, tap), g * s.K + channel);
    else
      return widen(out[pixel.n * s.os.n + (g * s.K + row) * s.os.c + pixel.at[0] * s.os.s[0] + pixel.at[1] * s.os.s[1] +
                       pixel.at[2] * s.os.s[2]]);
  }
  __device__ Acc<T> column_term(const Pixel& pixel, int64_t column, int64_t term) const {
    int channel = 0, tap = 0;
    terms.split(static_cast<int>(kProduct == Product::wgrad ? column : term), &channel, &tap);
    if constexpr (kProduct == Product::fprop)
      return widen(w[weight_offset(s, g, static_cast<int>(column), channel, tap_of(s, tap))]);
    else if constexpr (kProduct == Product::dgrad)
      return widen(w[weight_offset(s, g, channel, static_cast<int>(column), tap_of(s, tap))]);
    else
      return in_value<kPrepared>(s, before, in, pixel, tap_of(s, tap), g * s.C + channel);
  }
};

template <Product kProduct, bool kPrepared, class T>
__global__ void __launch_bounds__(kConvThreads, sizeof(T) == 8 ? 1 : 2)
    product_tiles(ConvShape s, Before<T> before, After<T> after, Terms terms, int64_t piece, unsigned pieces,
                  const T* in, const T* out, const T* w, T* to, Acc<T>* sums) {
  using A = Acc<T>;
  auto* left = shared_memory<A>();
  A* right = left + kDepth * kPitch;
  auto* pixels = reinterpret_cast<Pixel*>(right + kDepth * kPitch);
  constexpr bool kWeight = kProduct == Product::wgrad;
  const unsigned z = blockIdx.z, g_of = kWeight ? z / pieces : z;
  const int g = static_cast<int>(g_of);
  Matrices<kProduct, kPrepared, T> m{s, before, in, out, w, g, terms, 0, 0, 0};
  const Pixels& of_rows = kProduct == Product::dgrad ? s.in_pixels : s.out_pixels;
  m.rows = kWeight ? s.K : of_rows.count;
  m.columns = kProduct == Product::fprop ? s.K : kWeight ? static_cast<int64_t>(s.C) * s.tap_count : s.C;
  m.length = kWeight ? s.out_pixels.count : static_cast<int64_t>(kProduct == Product::fprop ? s.C : s.K) * s.tap_count;
  const int64_t begin = kWeight ? static_cast<int64_t>(z - g_of * pieces) * piece : 0;
  const int64_t end = kWeight && begin + piece < m.length ? begin + piece : m.length;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile, column0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int tid = static_cast<int>(threadIdx.x);

  if constexpr (!kWeight) {
    if (tid < kTile) pixels[tid] = pixel_of(of_rows, row0 + tid < m.rows ? row0 + tid : 0);
    __syncthreads();
  }
  // Who brings what: neighbours in memory to neighbouring threads.
  const bool deep = terms.channels_inner != kWeight;
  A sum[kSide][kSide] = {};
  const int my_row = tid % (kTile / kSide) * kSide, my_column = tid / (kTile / kSide) * kSide;
  for (int64_t first = begin; first < end; first += kDepth) {
    if constexpr (kWeight) {
      if (tid < kDepth) pixels[tid] = pixel_of(s.out_pixels, first + tid < end ? first + tid : 0);
      __syncthreads();
    }
    A from_left[kSide], from_right[kSide];
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int place = tid + i * kConvThreads;
      const int d = deep ? place % kDepth : place / kTile, r = deep ? place / kDepth : place % kTile;
      const int64_t term = first + d;
      const Pixel& pixel = pixels[kWeight ? d : r];
      from_left[i] = term < end && row0 + r < m.rows ? m.row_term(pixel, row0 + r, term) : A(0);
      from_right[i] = term < end && column0 + r < m.columns ? m.column_term(pixel, column0 + r, term) : A(0);
    }
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int place = tid + i * kConvThreads;
      const int d = deep ? place % kDepth : place / kTile, r = deep ? place / kDepth : place % kTile;
      left[d * kPitch + r] = from_left[i];
      right[d * kPitch + r] = from_right[i];
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      A a[kSide], b[kSide];
#pragma unroll
      for (int i = 0; i < kSide; ++i) a[i] = left[d * kPitch + my_row + i], b[i] = right[d * kPitch + my_column + i];
#pragma unroll
      for (int i = 0; i < kSide; ++i)
#pragma unroll
        for (int j = 0; j < kSide; ++j) sum[i][j] += a[i] * b[j];
    }
    __syncthreads();
  }
  if constexpr (kWeight) {
#pragma unroll
    for (int i = 0; i < kSide; ++i)
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const int64_t row = row0 + my_row + i, column = column0 + my_column + j;
        if (row >= m.rows || column >= m.columns) continue;
        int channel = 0, tap = 0;
        terms.split(static_cast<int>(column), &channel, &tap);
        const int64_t all = static_cast<int64_t>(s.G) * s.K * s.C * s.tap_count;
        sums[z % pieces * all + ((g * s.K + row) * s.C + channel) * s.tap_count + tap] = sum[i][j];
      }
  } else {
    const int channels = kProduct == Product::fprop ? s.K : s.C;
    const Strides& strides = kProduct == Product::fprop ? s.os : s.is;
    A result[kSide * kSide];
#pragma unroll
    for (int i = 0; i < kSide; ++i)
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const int64_t column = column0 + my_column + j;
        const bool there = row0 + my_row + i < m.rows && column < m.columns;
        const int channel = static_cast<int>(g * channels + column);
        result[i * kSide + j] = there ? finished(after, pixels[my_row + i], channel, sum[i][j]) : A(0);
      }
    activate(after.act, result);
#pragma unroll
    for (int i = 0; i < kSide; ++i)
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const int64_t column = column0 + my_column + j;
        if (row0 + my_row + i >= m.rows || column >= m.columns) continue;
        store_result(after, to, strides, pixels[my_row + i], static_cast<int>(g * channels + column),
                     result[i * kSide + j]);
      }
  }
}

template <class T>
__global__ void __launch_bounds__(kConvThreads)
    add_pieces(const Acc<T>* pieces, int64_t count, int64_t number, bool accumulate, T* dw) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kConvThreads + threadIdx.x;
  if (i >= count) return;
  Acc<T> sum = 0;
  for (int64_t k = 0; k < number; ++k) sum += pieces[k * count + i];
  if (accumulate) sum += widen(dw[i]);
  dw[i] = narrow<T>(sum);
}

// The sum of dy over images and pixels: a block a channel, whose parts are joined by halves.
template <class T>
__global__ void __launch_bounds__(kConvThreads)
    bias_sums(Pixels pixels, Strides dy_strides, const T* dy, T* db, int64_t db_stride, bool accumulate) {
  using A = Acc<T>;
  auto* shared = shared_memory<A>();
  const auto channel = static_cast<int64_t>(blockIdx.x);
  A sum = 0;
  for (int64_t i = threadIdx.x; i < pixels.count; i += kConvThreads) {
    const Pixel p = pixel_of(pixels, i);
    sum += widen(dy[p.n * dy_strides.n + channel * dy_strides.c + p.at[0] * dy_strides.s[0] +
                    p.at[1] * dy_strides.s[1] + p.at[2] * dy_strides.s[2]]);
  }
  for (int half = kConvThreads / 2; half > 0; half /= 2) {
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sum += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  T* to = db + channel * db_stride;
  *to = narrow<T>(accumulate ? sum + widen(*to) : sum);
}

// --- on the host -------------------------------------------------------------------------------------------------

Pixels pixels_of(int64_t N, const int64_t size[3]) {
  Pixels p;
  p.count = N;
  for (int a = 0; a < 3; ++a) p.size[a] = Divider(static_cast<uint32_t>(size[a])), p.count *= size[a];
  return p;
}

// Coordinates of 32 bits; offsets have 64.
bool fits(const Geometry& g) {
  int64_t in = g.N, out = g.N;
  for (int a = 0; a < 3; ++a) {
    const int64_t reach = g.dilation[a] * (g.filter[a] - 1) + 1;
    if (g.in[a] + std::max<int64_t>(0, g.pad[a]) + std::max<int64_t>(0, g.pad_after[a]) + reach + g.stride[a] >
            kMost32 / 2 ||
        g.out[a] * g.stride[a] > kMost32)
      return false;
    in *= g.in[a], out *= g.out[a];
    if (in > kMost32 || out > kMost32) return false;
  }
  return g.G * g.C <= kMost32 && g.G * g.K <= kMost32 && std::max(g.C, g.K) * g.taps() <= kMost32;
}

ConvShape shape_of(const Geometry& g, const Strides& is, const Strides& os, const WeightStrides& ws) {
  ConvShape s{};
  s.G = static_cast<int>(g.G), s.C = static_cast<int>(g.C), s.K = static_cast<int>(g.K);
  for (int a = 0; a < 3; ++a) {
    s.in[a] = static_cast<int>(g.in[a]), s.out[a] = static_cast<int>(g.out[a]);
    s.filter[a] = static_cast<int>(g.filter[a]), s.dilation[a] = static_cast<int>(g.dilation[a]);
    s.pad[a] = static_cast<int>(g.pad[a]), s.pad_after[a] = static_cast<int>(g.pad_after[a]);
    s.stride[a] = Divider(static_cast<uint32_t>(g.stride[a])), s.taps[a] = Divider(static_cast<uint32_t>(g.filter[a]));
  }
  s.mode = g.mode;
  s.in_pixels = pixels_of(g.N, g.in), s.out_pixels = pixels_of(g.N, g.out);
  s.is = is, s.os = os, s.ws = ws;
  s.tap_count = static_cast<int>(g.taps());
  return s;
}

Product product_of(const ConvDesc& desc, Pass pass) {
  if (pass == Pass::backward_weight) return Product::wgrad;
  return desc.transposed == (pass == Pass::forward) ? Product::dgrad : Product::fprop;
}

// Elements of the reduction of a weight gradient, in pieces.
constexpr int64_t kLeastPiece = 2048;

bool is_thin(const Geometry& g, Product product) { return (product == Product::dgrad ? g.C : g.K) < kThin; }

Cut cut_of(const Geometry& g, Product product, int64_t pixels) {
  return is_thin(g, product) ? thin_cut(pixels) : Cut(pixels, kLeastPiece);
}

template <class T>
const T* data_of(const TensorView& v) {
  return static_cast<const T*>(v.data);
}
int64_t step_of(const TensorView& v, int axis = 0) { return v.data ? v.strides[axis] : 0; }

template <class T>
Before<T> before_of(const Prologue& p) {
  Before<T> b{data_of<T>(p.scale), data_of<T>(p.shift), data_of<T>(p.gate),
              step_of(p.scale),    step_of(p.shift),    step_of(p.gate),
              step_of(p.gate, 1),  act_of<T>(p.act),    false};
  b.active = b.scale || b.shift || b.gate || p.act.kind != ActivationKind::none;
  return b;
}

template <class T>
After<T> after_of(const Epilogue& e, const Strides& residual, bool accumulate) {
  return {data_of<T>(e.bias), data_of<T>(e.scale), data_of<T>(e.shift), data_of<T>(e.residual),
          step_of(e.bias),    step_of(e.scale),    step_of(e.shift),    residual,
          act_of<T>(e.act),   accumulate};
}

template <Product kProduct, class T>
Status run_tiles(const ConvShape& s, const Before<T>& before, const After<T>& after, T* in, T* out, T* w,
                 const Queue& queue) {
  constexpr bool kWeight = kProduct == Product::wgrad;
  const int64_t rows = kWeight ? s.K : kProduct == Product::dgrad ? s.in_pixels.count : s.out_pixels.count;
  const int64_t columns = kProduct == Product::fprop ? s.K : kWeight ? static_cast<int64_t>(s.C) * s.tap_count : s.C;
  const Cut cut(s.out_pixels.count, kLeastPiece);
  const int64_t depth = kWeight ? s.G * cut.pieces : s.G;
  const int64_t across = ceil_div(columns, kTile);
  if (depth > 65535 || across > 65535) return Status::overflow;
  const Strides& read = kProduct == Product::dgrad ? s.os : s.is;
  const int channels = kProduct == Product::dgrad ? s.K : s.C;
  Terms terms;
  terms.channels_inner = read.c == 1 && channels > 1;
  terms.by = Divider(static_cast<uint32_t>(terms.channels_inner ? channels : s.tap_count));
  using A = Acc<T>;
  const size_t shared = 2 * kDepth * kPitch * sizeof(A) + kTile * sizeof(Pixel);
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, kTile)), static_cast<unsigned>(across),
                  static_cast<unsigned>(depth));
  auto* kernel = &product_tiles<kProduct, false, T>;
  if constexpr (!kWeight)
    if (before.active) kernel = &product_tiles<kProduct, true, T>;
  const Status done = launch(kernel, grid, kConvThreads, shared, queue, s, before, after, terms, cut.length, cut.pieces,
                             in, out, w, kProduct == Product::fprop ? out : in, static_cast<A*>(queue.workspace));
  if (!kWeight || done != Status::ok) return done;
  return join_pieces<T>(static_cast<const A*>(queue.workspace), static_cast<int64_t>(s.G) * s.K * s.C * s.tap_count,
                        cut.pieces, after.accumulate, w, queue);
}

struct Call {
  ops::Layer layer{};
  Product product = Product::fprop;
};

Status check(const ConvDesc& desc, Pass pass, const ConvOperands& o, Call* call) {
  Status s = ops::check_operands_device(Device::cuda, o);
  if (s != Status::ok) return s;
  // The CPU's transform has no counterpart here.
  if (desc.algorithm != Algorithm::automatic && desc.algorithm != Algorithm::direct) return Status::bad_algorithm;
  s = pass == Pass::forward ? ops::check_forward(desc, o, &call->layer)
                            : ops::check_backward(desc, o, pass, &call->layer);
  if (s != Status::ok) return s;
  call->product = product_of(desc, pass);
  return fits(call->layer.geometry) ? Status::ok : Status::overflow;
}

// The geometry of a layer, whose x is the side of inputs or, transposed, of outputs.
ConvShape shape_of(const ConvDesc& desc, const ops::Layer& l) {
  return shape_of(l.geometry, desc.transposed ? l.y : l.x, desc.transposed ? l.x : l.y, l.w);
}

// The weight gradient of a depthwise layer by tiles: its workspace, 0 where it goes another way.
int64_t tiled_workspace(const ConvDesc& desc, const ConvOperands& o, const ops::Layer& l) {
  int64_t bytes = 0;
  for_dtype(l.geometry.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    DepthwiseGradients<T> to{};
    to.dw = static_cast<T*>(o.w.data);
    bytes = depthwise_backward_workspace<T>(desc.transposed, shape_of(desc, l), to);
    return Status::ok;
  });
  return bytes;
}

// The workspace of a pass on the tensor cores; 0 where it goes another way.
int64_t tensor_workspace(const ConvDesc& desc, Product product, const ops::Layer& l) {
  int64_t bytes = 0;
  for_dtype(l.geometry.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    const ConvShape s = shape_of(desc, l);
    if (on_tensor_cores<T>(product, s, desc.precision)) bytes = tensor_core_workspace<T>(product, s);
    return Status::ok;
  });
  return bytes;
}

// A pass of a depthwise layer by tiles; `unsupported` where it has none.
template <class T>
Status run_tiled(Pass pass, bool transposed, const ConvShape& s, const Before<T>& before, const After<T>& after, T* x,
                 T* y, T* w, const Queue& queue) {
  if (before.active) return Status::unsupported;
  if (pass == Pass::forward) return run_depthwise<T>(transposed, s, after, x, w, y, queue);
  DepthwiseGradients<T> to{};
  if (pass == Pass::backward_input)
    to.dx = x, to.dx_strides = transposed ? s.os : s.is, to.accumulate_dx = after.accumulate;
  else
    to.dw = w, to.accumulate_dw = after.accumulate;
  return run_depthwise_backward<T>(transposed, s, x, y, w, to, queue);
}

// The layer of a call for several gradients; `unsupported` where they share no pass.
Status check_gradients(const ConvDesc& desc, const ConvGradients& o, Call* call, Strides* dx) {
  ConvOperands of;
  of.x = o.x, of.y = o.dy, of.w = o.dw.data ? o.dw : o.w;
  Status s = ops::check_operands_device(Device::cuda, of);
  if (s == Status::ok) s = check(desc, o.dw.data ? Pass::backward_weight : Pass::backward_input, of, call);
  if (s != Status::ok) return s;
  if (o.dx.data) {
    Call other;
    of.x = o.dx, of.w = o.w;
    if ((s = check(desc, Pass::backward_input, of, &other)) != Status::ok) return s;
    *dx = other.layer.x;
    call->layer.w = other.layer.w;
  }
  if (o.db.data && (s = ops::check_backward_bias(Device::cuda, desc, o.dy, o.db)) != Status::ok) return s;
  // The binding makes db as long as the first axis of w, which transposed is that of x's channels.
  return desc.transposed && call->layer.geometry.C > 1 ? Status::unsupported : Status::ok;
}

template <class T>
DepthwiseGradients<T> gradients_of(const ConvGradients& o, const Strides& dx) {
  return {static_cast<T*>(o.dx.data),
          static_cast<T*>(o.dw.data),
          static_cast<T*>(o.db.data),
          dx,
          step_of(o.db),
          o.accumulate_dx,
          o.accumulate_dw,
          o.accumulate_db};
}

}  // namespace

template <class T>
Status join_pieces(const Acc<T>* pieces, int64_t count, int64_t number, bool accumulate, T* dw, const Queue& queue) {
  const int64_t blocks = ceil_div(count, kConvThreads);
  if (blocks > kMost32) return Status::overflow;
  return launch(&add_pieces<T>, static_cast<unsigned>(blocks), kConvThreads, 0, queue, pieces, count, number,
                accumulate, dw);
}
template Status join_pieces<float>(const float*, int64_t, int64_t, bool, float*, const Queue&);
template Status join_pieces<double>(const double*, int64_t, int64_t, bool, double*, const Queue&);
template Status join_pieces<half>(const float*, int64_t, int64_t, bool, half*, const Queue&);
template Status join_pieces<bfloat16>(const float*, int64_t, int64_t, bool, bfloat16*, const Queue&);

Status conv_check(const ConvDesc& desc, Pass pass, const ConvOperands& o) {
  Call call;
  return check(desc, pass, o, &call);
}

int64_t conv_workspace(const ConvDesc& desc, Pass pass, const ConvOperands& o) {
  Call call;
  if (check(desc, pass, o, &call) != Status::ok) return 0;
  const Geometry& g = call.layer.geometry;
  const bool weight = pass == Pass::backward_weight;
  // In the order in which conv_run tries them.
  if (const int64_t bytes = weight ? tiled_workspace(desc, o, call.layer) : 0) return bytes;
  if (const int64_t bytes = tensor_workspace(desc, call.product, call.layer)) return bytes;
  if (!weight) return 0;
  const int64_t pixels = g.N * g.out[0] * g.out[1] * g.out[2];
  const int64_t item = g.dtype == DType::f64 ? 8 : 4;
  return std::max<int64_t>(1, cut_of(g, call.product, pixels).pieces) * g.G * g.K * g.C * g.taps() * item;
}

Status conv_run(const ConvDesc& desc, Pass pass, const ConvOperands& o, const Queue& queue) {
  Call call;
  const Status s = check(desc, pass, o, &call);
  if (s != Status::ok) return s;
  const ops::Layer& l = call.layer;
  const Geometry& g = l.geometry;
  if (queue.workspace_bytes < conv_workspace(desc, pass, o)) return Status::out_of_memory;
  if (g.N == 0 && pass != Pass::backward_weight) return Status::ok;
  const bool t = desc.transposed;
  const ConvShape shape = shape_of(desc, l);
  return for_dtype(g.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    const Before<T> before = pass == Pass::forward ? before_of<T>(o.prologue) : before_of<T>(Prologue{});
    const After<T> after =
        pass == Pass::forward ? after_of<T>(o.epilogue, l.r, false) : after_of<T>(Epilogue{}, Strides{}, o.accumulate);
    T* in = static_cast<T*>(t ? o.y.data : o.x.data);
    T* out = static_cast<T*>(t ? o.x.data : o.y.data);
    T* w = static_cast<T*>(o.w.data);
    // Without pixels there are no pieces: the sums are zero.
    if (pass == Pass::backward_weight && shape.out_pixels.count == 0)
      return join_pieces<T>(nullptr, g.G * g.K * g.C * g.taps(), 0, o.accumulate, w, queue);
    const Status tiled = run_tiled<T>(pass, t, shape, before, after, t ? out : in, t ? in : out, w, queue);
    if (tiled != Status::unsupported) return tiled;
    if (on_tensor_cores<T>(call.product, shape, desc.precision))
      return run_tensor_cores<T>(call.product, shape, desc.precision, before, after, in, out, w, queue);
    if (is_thin(g, call.product)) return run_thin<T>(call.product, shape, before, after, in, out, w, queue);
    switch (call.product) {
      case Product::fprop: return run_tiles<Product::fprop, T>(shape, before, after, in, out, w, queue);
      case Product::dgrad: return run_tiles<Product::dgrad, T>(shape, before, after, in, out, w, queue);
      case Product::wgrad: return run_tiles<Product::wgrad, T>(shape, before, after, in, out, w, queue);
    }
    return Status::unsupported;
  });
}

Status conv_decide(const ConvDesc& desc, Pass pass, const ConvOperands& o, Decision* out, const Queue&) {
  Call call;
  const Status status = check(desc, pass, o, &call);
  if (status != Status::ok) return status;
  const Geometry& g = call.layer.geometry;
  const ConvShape s = shape_of(desc, call.layer);
  const Product product = call.product;
  Decision& d = *out;
  d = {};
  d.algorithm = "direct", d.isa = "cuda";
  const int64_t item = item_size(g.dtype);
  const int64_t in = g.N * g.G * g.C * g.in[0] * g.in[1] * g.in[2];
  const int64_t outputs = g.N * g.G * g.K * g.out[0] * g.out[1] * g.out[2];
  d.flops = 2 * g.macs();
  d.bytes = static_cast<double>(item *
                                (in + outputs + g.G * g.K * g.C * g.taps() + (o.epilogue.residual.data ? outputs : 0)));
  const int64_t terms = product == Product::wgrad   ? s.out_pixels.count
                        : product == Product::dgrad ? g.K * g.taps()
                                                    : g.C * g.taps();
  // Every addition of a sum rounded, or truncated by half as much again; of 16 bits in units of their own.
  d.error_bound = static_cast<double>(terms) + 2;
  if (g.dtype == DType::f16) d.error_bound = 0.5 + d.error_bound / 8192;
  if (g.dtype == DType::bf16) d.error_bound = 0.5 + d.error_bound / 65536;
  return for_dtype(g.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    const Prologue& p = o.prologue;
    const bool prepared =
        pass == Pass::forward && (p.scale.data || p.shift.data || p.gate.data || p.act.kind != ActivationKind::none);
    if (!prepared && (desc.transposed ? g.K : g.C) == 1 && (desc.transposed ? g.C : g.K) <= 32) {
      d.algorithm = "depthwise";
      d.role = "tiles in shared memory where they fit";
      d.tile_rows = d.tile_columns = 1;
      d.passed_over = "tensor cores: one channel a group is no product of matrices";
      return Status::ok;
    }
    if (on_tensor_cores<T>(product, s, desc.precision)) {
      describe_tensor_cores<T>(product, s, desc.precision, prepared, &d);
      // Operands of 11 bits, and of two parts, in units of float32's eps.
      if (sizeof(T) == 4) d.error_bound += desc.precision == Precision::tf32 ? 8192 : 6;
      d.passed_over = "CUDA cores: the layer is one for tensor cores";
    } else {
      const bool thin = is_thin(g, product);
      d.role = thin ? "CUDA cores, a thread a result" : "CUDA cores";
      d.tile_rows = d.tile_columns = thin ? 1 : kTile;
      d.reduction_block = thin ? 1 : kDepth;
      d.passed_over = sizeof(T) == 8                                          ? "tensor cores: not of float64"
                      : sizeof(T) == 4 && desc.precision == Precision::strict ? "tensor cores: precision is strict"
                      : product == Product::dgrad && g.mode != PaddingMode::zeros
                          ? "tensor cores: padding repeats pixels, whose gradients have several sums"
                          : "tensor cores: the product is small, or its groups thin";
    }
    d.pixel_block = d.tile_rows, d.channel_block = d.tile_columns;
    return Status::ok;
  });
}

int64_t conv_backward_workspace(const ConvDesc& desc, const ConvGradients& o) {
  Call call;
  Strides dx{};
  int64_t bytes = 0;
  if (check_gradients(desc, o, &call, &dx) != Status::ok) return 0;
  const ops::Layer& l = call.layer;
  for_dtype(l.geometry.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    bytes = depthwise_backward_workspace<T>(desc.transposed, shape_of(desc, l), gradients_of<T>(o, dx));
    return Status::ok;
  });
  return bytes;
}

Status conv_backward(const ConvDesc& desc, const ConvGradients& o, const Queue& queue) {
  Call call;
  Strides dx{};
  const Status s = check_gradients(desc, o, &call, &dx);
  if (s != Status::ok) return s;
  const ops::Layer& l = call.layer;
  return for_dtype(l.geometry.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    return run_depthwise_backward<T>(desc.transposed, shape_of(desc, l), data_of<T>(o.x), data_of<T>(o.dy),
                                     data_of<T>(o.w), gradients_of<T>(o, dx), queue);
  });
}

Status conv_backward_bias(const ConvDesc& desc, const TensorView& dy, const TensorView& db, bool accumulate,
                          const Queue& queue) {
  const Status s = ops::check_backward_bias(Device::cuda, desc, dy, db);
  if (s != Status::ok) return s;
  const int d = desc.spatial, channel = desc.channels_last ? d + 1 : 1, first = desc.channels_last ? 1 : 2;
  int64_t size[3] = {1, 1, 1};
  Strides strides{};
  strides.n = dy.strides[0], strides.c = dy.strides[channel];
  int64_t count = dy.shape[0];
  for (int i = 0; i < d; ++i) {
    size[3 - d + i] = dy.shape[first + i], strides.s[3 - d + i] = dy.strides[first + i];
    if (__builtin_mul_overflow(count, size[3 - d + i], &count) || count > kMost32) return Status::overflow;
  }
  if (db.shape[0] > kMost32) return Status::overflow;
  if (db.shape[0] == 0) return Status::ok;
  for (int64_t& n : size) n = std::max<int64_t>(1, n);
  Pixels pixels = pixels_of(dy.shape[0], size);
  pixels.count = count;
  return for_dtype(dy.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    return launch(&bias_sums<T>, static_cast<unsigned>(db.shape[0]), kConvThreads, kConvThreads * sizeof(Acc<T>), queue,
                  pixels, strides, data_of<T>(dy), static_cast<T*>(db.data), db.strides[0], accumulate);
  });
}

}  // namespace fastconv::cuda
