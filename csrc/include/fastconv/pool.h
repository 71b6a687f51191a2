// Pooling in one to three dimensions: max, average and Lp over windows that slide or (adaptive, global) share the image
// out, with their gradients, and the unpooling that undoes a max.
#pragma once
#include "fastconv/conv.h"
#include "fastconv/path.h"
#include "fastconv/tensor.h"

namespace fastconv {

enum class PoolKind : int32_t { max = 0, average = 1, lp = 2 };

// What happens to the last elements where the stride does not reach them.
enum class CeilMode : int32_t {
  floor = 0,
  clipped = 1,  // one more window, if it begins inside the image or the padding before it
  unclipped = 2,  // one more window in any case; it may be empty
};

struct PoolDesc {
  int32_t spatial = 2;  // 1, 2 or 3
  bool channels_last = false;  // the axes of all operands: false N C ..., true N ... C
  PoolKind kind = PoolKind::max;
  // Window o of P covers [floor(o * H / P), ceil((o + 1) * H / P)); `kernel` holds P, 0 for P = H. Stride, dilation,
  // padding and ceil mode are not used.
  bool adaptive = false;
  int64_t kernel[3] = {1, 1, 1};  // one a spatial dimension, in the order of the axes
  int64_t stride[3] = {1, 1, 1};
  int64_t dilation[3] = {1, 1, 1};  // max only
  int64_t pad_before[3] = {0, 0, 0};
  int64_t pad_after[3] = {0, 0, 0};
  AutoPadding auto_padding = AutoPadding::none;
  CeilMode ceil_mode = CeilMode::floor;
  bool count_include_pad = true;  // average: the padding counts in the divisor
  int64_t divisor = 0;  // average: the divisor, 0: the elements of the window
  double norm = 2;  // lp: the exponent
};

// The shape of y in the axes of the descriptor, from that of x.
Status pool_output_shape(const PoolDesc& desc, const TensorView& x, int64_t* shape);

// y = pool(x). `indices` (int64, the shape of y; absent: not wanted) takes the flat position of each maximum in its
// image, row by row; -1 for an empty window. Max takes integers as well, the others float32 and float64.
Status pool_forward(const PoolDesc& desc, const TensorView& x, const TensorView& y, const TensorView& indices);

// dx from dy. Max reads either `indices` or the data of x, lp reads x; for the rest x may be a shape.
Status pool_backward(const PoolDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& indices,
                     const TensorView& dx);

// How these calls are computed; of their operands only the data of indices is not looked at.
Status pool_decide(const PoolDesc& desc, const TensorView& x, const TensorView& y, const TensorView& indices,
                   PathDecision* decision);
Status pool_backward_decide(const PoolDesc& desc, const TensorView& dy, const TensorView& x, const TensorView& indices,
                            const TensorView& dx, PathDecision* decision);

// y = 0, then y[indices] = x image by image, the last one in memory order of the indices' axes winning.
Status unpool_forward(int32_t spatial, bool channels_last, const TensorView& x, const TensorView& indices,
                      const TensorView& y);
// dx = dy[indices]
Status unpool_backward(int32_t spatial, bool channels_last, const TensorView& dy, const TensorView& indices,
                       const TensorView& dx);

}  // namespace fastconv
