// Dense, grouped and transposed convolution in one to three dimensions: forward and all gradients.
//
// Every pass is one of three products on the geometry of a plain convolution y = conv(x, w):
//   fprop  y from x and w      dgrad  x from y and w      wgrad  w from x and y
// A transposed convolution's forward is dgrad, its input gradient is fprop. ConvDesc names the layer as the
// user sees it; ops/shape.cc does the renaming once.
#pragma once
#include <memory>
#include <string>

#include "fastconv/tensor.h"

namespace fastconv {

enum class Pass : int32_t { forward = 0, backward_input = 1, backward_weight = 2 };
enum class PaddingMode : int32_t { zeros = 0, reflect = 1, replicate = 2, circular = 3 };
enum class AutoPadding : int32_t { none = 0, same = 1, same_lower = 2 };  // resolved from the input's size
enum class Algorithm : int32_t { automatic = 0, direct = 1, fft = 2, winograd2 = 3, winograd4 = 4 };
// The least precise products that a float32 layer may be made of. A device without tensor cores has strict ones alone,
// which keep any of these.
enum class Precision : int32_t {
  strict = 0,  // of float32
  tf32x3 = 1,  // each operand in two TF32 parts, three products
  tf32 = 2,    // operands rounded to TF32, 11 bits
};

enum class ActivationKind : int32_t {
  none = 0,
  relu,
  relu6,
  leaky_relu,   // a: negative slope
  silu,
  hardswish,
  sigmoid,
  hardsigmoid,
  tanh,
  gelu,         // x * Phi(x), by erf
  gelu_tanh,    // the tanh approximation
  clip,         // a: lower, b: upper bound
};

struct Activation {
  ActivationKind kind = ActivationKind::none;
  double a = 0, b = 0;
};

struct ConvDesc {
  int32_t spatial = 2;                // 1, 2 or 3
  bool transposed = false;
  bool channels_last = false;         // the axes of x, y and residual: false N C ..., true N ... C
  int64_t stride[3] = {1, 1, 1};      // one a spatial dimension, in the order of the axes
  int64_t dilation[3] = {1, 1, 1};
  int64_t pad_before[3] = {0, 0, 0};
  int64_t pad_after[3] = {0, 0, 0};
  int64_t output_padding[3] = {0, 0, 0};  // transposed only
  int64_t groups = 1;
  PaddingMode padding_mode = PaddingMode::zeros;
  AutoPadding auto_padding = AutoPadding::none;  // pad_before and pad_after are ignored unless `none`
  Algorithm algorithm = Algorithm::automatic;
  Precision precision = Precision::strict;
};

// y = act(scale * (conv + bias) + shift + residual); vectors have one entry an output channel.
struct Epilogue {
  TensorView bias, scale, shift;  // (K), any stride
  TensorView residual;            // the shape of y, any strides
  Activation act;
};

// The input is read as gate[n, c] * act(scale[c] * x + shift[c]); zero padding comes after it.
struct Prologue {
  TensorView scale, shift;  // (C)
  TensorView gate;          // (N, C)
  Activation act;
};

// The operands of a pass, named as in the layer: x is the layer's input, y its output, w its weight.
//   forward          reads x, w            writes y
//   backward_input   reads y (dy), w       writes x (dx)
//   backward_weight  reads x, y (dy)       writes w (dw)
// w is (K, C / groups, ...) and, transposed, (C, K / groups, ...), with any strides.
struct ConvOperands {
  TensorView x, w, y;
  Epilogue epilogue;        // forward only
  Prologue prologue;        // forward only
  bool accumulate = false;  // gradients: add to what the output holds
};

// The shape of y (in the axes of the descriptor) for x and w of these shapes; data pointers are not read.
Status conv_output_shape(const ConvDesc& desc, const TensorView& x, const TensorView& w, int64_t* shape);

// Whether an output allocated for this input has its channels innermost in memory (it follows x's strides).
bool output_is_channels_last(const ConvDesc& desc, const TensorView& x);

// Runs one pass. Checks everything first.
Status conv_run(const ConvDesc& desc, Pass pass, const ConvOperands& operands);

// db[k] (+)= the sum of dy over images and pixels; `db` is (K).
Status conv_backward_bias(const ConvDesc& desc, const TensorView& dy, const TensorView& db, bool accumulate);

// What a pass is going to do, for explain(), the log and the tests. The same object drives execution.
//
// A weight gradient's rows are output channels and its terms are pixels: its role says how their inputs are packed.
//
// Of a depthwise layer, in every pass, the role says what a vector holds, and the tile is one vector: 1 and its lanes.
// reduction_block counts the taps (of the gradient, a run of pixels), channel_block and pixel_block what a task of a
// single thread goes through, packed_weight_bytes the packed filters (of the gradient, the sums that are joined). Of an
// fft lanes are channels or tiles, the tile is what a transform covers, pixel_block its outputs, packed_weight_bytes
// are the spectra, and the scale of error_bound is |x|_2 * |w|_2 over two tiles and the filter.
struct Decision {
  const char* algorithm = "";     // "direct", "depthwise", "fft", "winograd2" or "winograd4"
  const char* role = "";          // "pixel rows" or "pixel columns": which operand the tile broadcasts;
                                  // "pixel terms by rows" or "pixel terms by slab";
                                  // "lanes of channels" or "lanes of pixels"
  const char* isa = "";
  int32_t tile_rows = 0, tile_columns = 0;  // the full register tile
  int64_t reduction_block = 0;    // terms of the reduction a block (KC)
  int64_t channel_block = 0;      // input channels a block; of a weight gradient a task
  int64_t pixel_block = 0;        // output pixels a task
  int64_t workspace_per_thread = 0;  // bytes
  int64_t packed_weight_bytes = 0;  // of a weight gradient: a second dw in another order, where one is made
  double flops = 0, bytes = 0;    // 2 * multiply-adds, and the least traffic
  double error_bound = 0;         // proven constant c of |y - y64| <= c * eps * conv(|x|, |w|)
  std::string passed_over;        // the other candidates and why, one a line
};
Status conv_decide(const ConvDesc& desc, Pass pass, const ConvOperands& operands, Decision* out);

// A prepared forward layer: immutable, safe in several threads; it keeps its own copy of the weights and vectors.
class ConvPlan;
// x needs shape, strides and dtype only. Null and a status where refused.
std::shared_ptr<const ConvPlan> conv_plan(const ConvDesc& desc, const ConvOperands& operands, Status* status);
Status conv_plan_run(const ConvPlan& plan, const TensorView& x, const TensorView& y, const TensorView& residual,
                     const TensorView& gate);
const Decision& conv_plan_decision(const ConvPlan& plan);

}  // namespace fastconv
