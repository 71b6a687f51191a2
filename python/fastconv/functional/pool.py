"""Pooling, forward and backward: max, average, Lp, adaptive, global, and the unpooling of a max.

For one dimension, H the size of x, R the kernel, window p over the elements h = p * stride + r * dilation - before,
0 <= r < R, that lie inside the image:

    max_pool           y[n, c, p] = max over r of x[n, c, h]
    avg_pool           y[n, c, p] = (sum over r of x[n, c, h]) / divisor
    lp_pool            y[n, c, p] = (R * mean over r of x[n, c, h] ** norm_type) ** (1 / norm_type)
    adaptive_*_pool    the same over floor(p * H / P) <= h < ceil((p + 1) * H / P)
    global_*_pool      the same over the whole image
                       P = floor((H + before + after - dilation * (R - 1) - 1) / stride) + 1

The gradients of a loss L, given dy = dL/dy, are gathered: each element of dx is the sum over the windows that cover it,
in an order that depends on the layer alone.

    max_pool_backward  dx[n, c, h] = sum of dy[n, c, p] over the windows whose first maximum, in the order of memory of
                       C-contiguous planes, is h
    avg_pool_backward  dx[n, c, h] = sum of dy[n, c, p] / divisor
    lp_pool_backward   dx[n, c, h] = sum of dy[n, c, p] * y[n, c, p] ** (1 - norm_type) * x[n, c, h] ** (norm_type - 1)
                       times R over the elements of the window; 0 where y is 0, as in PyTorch
    max_unpool         y[n, c, indices[n, c, p]] = x[n, c, p], the rest 0; of equal indices the last one counts

**NaN wins**: the maximum of a window with a NaN is NaN, and its gradient and its index belong to the first NaN.

**Options** that the functions share:

- `kernel_size`, `stride` (None: kernel_size), `dilation` (at least 1): an int or one a spatial dimension.
- `padding`: as in `fastconv.functional.conv` (ints, pairs, "valid", "same", "same_lower"). It stands for minus infinity
  in a maximum and for zeros in a sum. Every window must hold an element of the image; PyTorch asks for padding <=
  kernel_size / 2 instead, and takes the same padding on both sides.
- `ceil_mode`: the convention for what is left at the end. False: left out (P above). True or "pytorch": P is rounded
  up, but a window must begin inside the image or the padding before it. "unclipped": P is rounded up and that is all,
  as in ONNX before opset 22; a last window may then lie beyond the image: its maximum is minus infinity (the least
  integer), its index -1, its sum 0.
- `count_include_pad` (average): the divisor counts the padding that was asked for (PyTorch and Caffe), though never
  what ceil_mode adds beyond it; False: only elements of the image (TensorFlow).
- `divisor_override` (average): the divisor, not 0.
- `layout`: the axes: "NCHW" or "NHWC" (1-D also "NCL", "NLC", 3-D "NCDHW", "NDHWC"). An array without the batch axis N
  is taken and gives a result without it.
- `out`: where the result is written (not the indices), of the result's shape and dtype.

**Memory orders**: arrays whose channels are innermost, and those whose last spatial axis is, take vector paths where
operand and result lie alike; any other strides are read in place by plain loops, and nothing is copied.

Maxima take float32, float64, int8, uint8, int16, int32 and int64, everything else float32 and float64. Indices are
int64 and flat in the image of one channel, as PyTorch's.

Sources: PyTorch's `torch.nn.functional`; arXiv:1603.07285, section 3; the ONNX operators MaxPool, AveragePool and
LpPool; for unpooling Zeiler and Fergus, arXiv:1311.2901.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core, _foreign, _verbose
from .._args import Array, Ints, Padding
from .._args import pool as _args
from .._args.pool import CeilMode, OutputSize

if TYPE_CHECKING or not _verbose.enabled:
    from .. import _core as _calls
else:
    from .._verbose import calls as _calls

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool1d_backward",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d",
    "adaptive_avg_pool3d_backward",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_backward",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
    "global_avg_pool1d",
    "global_avg_pool1d_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "global_avg_pool3d",
    "global_avg_pool3d_backward",
    "global_max_pool1d",
    "global_max_pool1d_backward",
    "global_max_pool2d",
    "global_max_pool2d_backward",
    "global_max_pool3d",
    "global_max_pool3d_backward",
    "lp_pool1d",
    "lp_pool1d_backward",
    "lp_pool2d",
    "lp_pool2d_backward",
    "lp_pool3d",
    "lp_pool3d_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "max_unpool1d",
    "max_unpool1d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "max_unpool3d",
    "max_unpool3d_backward",
]


# ------------------------------------------------------------------------------- one implementation for every rank


def _forward(spec: _core.PoolSpec, x: Array, return_indices: bool, out: Array | None, what: str) -> Any:
    try:
        return _calls.pool_forward(spec, x, return_indices, out)
    except _core.Refused as refusal:
        raise _args.forward_error(refusal, spec, x, return_indices, out, what) from None


def _backward(
    spec: _core.PoolSpec, dy: Array, x: Any, name: str, indices: Array | None, out: Array | None, what: str
) -> Array:
    try:
        return _calls.pool_backward(spec, dy, x, indices, out)
    except _core.Refused as refusal:
        raise _args.backward_error(refusal, spec, dy, x, name, indices, out, what) from None


def _unpool(
    spec: _core.PoolSpec, x: Array, indices: Array, output_size: Sequence[int] | None, out: Array | None, what: str
) -> Array:
    shape = _args.unpool_shape(spec, x, output_size)
    try:
        return _calls.unpool_forward(spec, x, indices, shape, out)
    except _core.Refused as refusal:
        raise _args.unpool_error(refusal, spec, x, indices, shape, out, what) from None


def _unpool_backward(spec: _core.PoolSpec, dy: Array, indices: Array, out: Array | None, what: str) -> Array:
    try:
        return _calls.unpool_backward(spec, dy, indices, out)
    except _core.Refused as refusal:
        raise _args.unpool_backward_error(refusal, spec, dy, indices, out, what) from None


def _global(rank: int, kind: int, x: Array, keepdims: bool, layout: str, out: Array | None, what: str) -> Array:
    if not keepdims and (type(x) is not np.ndarray or out is not None) and _foreign.any_of((x, out)):
        return _foreign.on_views(_global, rank, kind, x, keepdims, layout, out, what)
    target = _args.with_ones(out, rank, keepdims, layout, "out")
    y: Array = _forward(_args.adaptive_spec(rank, kind, 1, layout), x, False, target, what)
    if out is not None:
        return out
    return y if keepdims else _args.without_ones(y, rank, layout)


def _global_backward(
    rank: int, kind: int, dy: Array, x: Any, name: str, keepdims: bool, layout: str, out: Array | None, what: str
) -> Array:
    if not keepdims and type(dy) is not np.ndarray and _foreign.any_of((dy,)):
        return _foreign.on_views(_global_backward, rank, kind, dy, x, name, keepdims, layout, out, what)
    dy = _args.with_ones(dy, rank, keepdims, layout, "dy")
    return _backward(_args.adaptive_spec(rank, kind, 1, layout), dy, x, name, None, out, what)


# ---------------------------------------------------------------------------------------------------- 1-D


def max_pool1d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """1-D max pooling: x (N, C, L), result (N, C, P).

    `max_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(1, _args.MAX, kernel_size, stride, padding, dilation, ceil_mode, True, None, 2.0, layout)
    return _forward(spec, x, return_indices, out, "max_pool1d")


def max_pool1d_backward(
    dy: Array,
    x: Any,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `max_pool1d` with respect to its input.

    `max_pool2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(1, _args.MAX, kernel_size, stride, padding, dilation, ceil_mode, True, None, 2.0, layout)
    return _backward(spec, dy, x, "x", indices, out, "max_pool1d_backward")


def max_unpool1d(
    x: Array,
    indices: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The partial inverse of `max_pool1d`: x (N, C, P), result (N, C, L).

    `max_unpool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.unpool_spec(1, kernel_size, stride, padding, layout)
    return _unpool(spec, x, indices, output_size, out, "max_unpool1d")


def max_unpool1d_backward(
    dy: Array,
    indices: Array,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `max_unpool1d` with respect to its input: dx = dy[indices].

    `max_unpool2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _args.unpool_spec(1, 1, None, 0, layout)
    return _unpool_backward(spec, dy, indices, out, "max_unpool1d_backward")


def avg_pool1d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """1-D average pooling: x (N, C, L), result (N, C, P).

    `avg_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(
        1,
        _args.AVERAGE,
        kernel_size,
        stride,
        padding,
        1,
        ceil_mode,
        count_include_pad,
        divisor_override,
        2.0,
        layout,
    )
    y: Array = _forward(spec, x, False, out, "avg_pool1d")
    return y


def avg_pool1d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `avg_pool1d` with respect to its input, of `input_shape`.

    `avg_pool2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(
        1,
        _args.AVERAGE,
        kernel_size,
        stride,
        padding,
        1,
        ceil_mode,
        count_include_pad,
        divisor_override,
        2.0,
        layout,
    )
    return _backward(spec, dy, input_shape, "input_shape", None, out, "avg_pool1d_backward")


def lp_pool1d(
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """1-D power-average pooling: x (N, C, L), result (N, C, P).

    `lp_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(1, _args.LP, kernel_size, stride, 0, 1, ceil_mode, True, None, norm_type, layout)
    y: Array = _forward(spec, x, False, out, "lp_pool1d")
    return y


def lp_pool1d_backward(
    dy: Array,
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `lp_pool1d` with respect to its input.

    `lp_pool2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(1, _args.LP, kernel_size, stride, 0, 1, ceil_mode, True, None, norm_type, layout)
    return _backward(spec, dy, x, "x", None, out, "lp_pool1d_backward")


def adaptive_avg_pool1d(
    x: Array,
    output_size: OutputSize,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """1-D average pooling to a given size: x (N, C, L), result (N, C, P), (P, ...) = output_size.

    `adaptive_max_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.adaptive_spec(1, _args.AVERAGE, output_size, layout)
    y: Array = _forward(spec, x, False, out, "adaptive_avg_pool1d")
    return y


def adaptive_avg_pool1d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `adaptive_avg_pool1d` with respect to its input, of `input_shape`.

    The output has the size of dy.
    """
    spec = _args.covering_spec(1, _args.AVERAGE, dy, layout)
    return _backward(spec, dy, input_shape, "input_shape", None, out, "adaptive_avg_pool1d_backward")


def adaptive_max_pool1d(
    x: Array,
    output_size: OutputSize,
    *,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """1-D max pooling to a given size: x (N, C, L), result (N, C, P), (P, ...) = output_size.

    `adaptive_max_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.adaptive_spec(1, _args.MAX, output_size, layout)
    return _forward(spec, x, return_indices, out, "adaptive_max_pool1d")


def adaptive_max_pool1d_backward(
    dy: Array,
    x: Any,
    *,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `adaptive_max_pool1d` with respect to its input.

    x may be a shape where indices are given.
    """
    spec = _args.covering_spec(1, _args.MAX, dy, layout)
    return _backward(spec, dy, x, "x", indices, out, "adaptive_max_pool1d_backward")


def global_avg_pool1d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The mean of each image and channel.

    x (N, C, L); the result has spatial axes of 1, or is (N, C) without keepdims.
    """
    return _global(1, _args.AVERAGE, x, keepdims, layout, out, "global_avg_pool1d")


def global_avg_pool1d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `global_avg_pool1d` with respect to its input, of `input_shape`.

    dy has the shape of the result.
    """
    return _global_backward(
        1, _args.AVERAGE, dy, input_shape, "input_shape", keepdims, layout, out, "global_avg_pool1d_backward"
    )


def global_max_pool1d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The maximum of each image and channel.

    x (N, C, L); the result has spatial axes of 1, or is (N, C) without keepdims.
    """
    return _global(1, _args.MAX, x, keepdims, layout, out, "global_max_pool1d")


def global_max_pool1d_backward(
    dy: Array,
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `global_max_pool1d` with respect to its input.

    dy has the shape of the result.
    """
    return _global_backward(1, _args.MAX, dy, x, "x", keepdims, layout, out, "global_max_pool1d_backward")


# ---------------------------------------------------------------------------------------------------- 2-D


def max_pool2d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """2-D max pooling.

    See the module's text for the formula, the options and the conventions.

    Args:
        x: (N, C, H, W), or without the batch; N may be 0. Floating point or integers.
        kernel_size: of the window.
        stride: from window to window; None: kernel_size.
        padding: minus infinity around the image.
        dilation: distance between the elements of a window.
        ceil_mode: whether a last, partial window counts; the name of a convention.
        return_indices: return (y, indices), the indices int64 and flat in the image of a channel.
        layout: the axes of x and of the results.
        out: where y is written.

    Returns:
        (N, C, P, Q), or the pair of it and its indices.

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.

    Source: PyTorch's `torch.nn.functional.max_pool2d`.
    """
    spec = _args.spec(2, _args.MAX, kernel_size, stride, padding, dilation, ceil_mode, True, None, 2.0, layout)
    return _forward(spec, x, return_indices, out, "max_pool2d")


def max_pool2d_backward(
    dy: Array,
    x: Any,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `max_pool2d` with respect to its input.

    It goes to the first maximum of each window, or to its first NaN. See the module's text.

    Args:
        dy: (N, C, P, Q), the gradient with respect to the output, float32 or float64.
        x: the forward call's input, of dy's dtype; its shape will do where indices are given.
        kernel_size: as in the forward call, and so the options below.
        stride: see the module's text.
        padding: see the module's text.
        dilation: see the module's text.
        ceil_mode: see the module's text.
        layout: the axes of all operands.
        indices: those that the forward call returned: x is then not read.
        out: where the result is written.

    Returns:
        The shape of x.

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.
    """
    spec = _args.spec(2, _args.MAX, kernel_size, stride, padding, dilation, ceil_mode, True, None, 2.0, layout)
    return _backward(spec, dy, x, "x", indices, out, "max_pool2d_backward")


def max_unpool2d(
    x: Array,
    indices: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The partial inverse of `max_pool2d`: every maximum goes back to where it came from, zeros elsewhere.

    Args:
        x: (N, C, P, Q), the maxima, float32 or float64.
        indices: their places, int64, of the shape of x. Where two agree, the last one in the order of the axes counts.
        kernel_size: as in the pooling, and so stride and padding.
        stride: None: kernel_size.
        padding: the same on both sides.
        output_size: the spatial size of the result, or its whole shape, where several sizes pool to that of x;
            None: (P - 1) * stride - 2 * padding + kernel_size.
        layout: the axes of all operands.
        out: where the result is written.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.

    Source: PyTorch's `torch.nn.functional.max_unpool2d`.
    """
    spec = _args.unpool_spec(2, kernel_size, stride, padding, layout)
    return _unpool(spec, x, indices, output_size, out, "max_unpool2d")


def max_unpool2d_backward(
    dy: Array,
    indices: Array,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `max_unpool2d` with respect to its input: dx = dy[indices].

    Of equal indices each one gets the gradient, as in PyTorch.

    Args:
        dy: (N, C, H, W), the gradient with respect to the output.
        indices: (N, C, P, Q), int64.
        layout: the axes of all operands.
        out: where the result is written.

    Returns:
        The shape of the indices.

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.
    """
    spec = _args.unpool_spec(2, 1, None, 0, layout)
    return _unpool_backward(spec, dy, indices, out, "max_unpool2d_backward")


def avg_pool2d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """2-D average pooling.

    See the module's text for the formula, the options and the conventions.

    Args:
        x: (N, C, H, W), or without the batch; N may be 0.
        kernel_size: of the window.
        stride: from window to window; None: kernel_size.
        padding: zeros around the image.
        ceil_mode: whether a last, partial window counts; the name of a convention.
        count_include_pad: whether the divisor counts the padding.
        divisor_override: the divisor.
        layout: the axes of x and of the result.
        out: where the result is written.

    Returns:
        (N, C, P, Q).

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.

    Source: PyTorch's `torch.nn.functional.avg_pool2d`.
    """
    spec = _args.spec(
        2,
        _args.AVERAGE,
        kernel_size,
        stride,
        padding,
        1,
        ceil_mode,
        count_include_pad,
        divisor_override,
        2.0,
        layout,
    )
    y: Array = _forward(spec, x, False, out, "avg_pool2d")
    return y


def avg_pool2d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `avg_pool2d` with respect to its input.

    Args:
        dy: (N, C, P, Q), the gradient with respect to the output.
        input_shape: the full shape of x, in the axes of layout, with as many entries as dy has dimensions.
        kernel_size: as in the forward call, and so the options below.
        stride: see the module's text.
        padding: see the module's text.
        ceil_mode: see the module's text.
        count_include_pad: see the module's text.
        divisor_override: see the module's text.
        layout: the axes of all operands.
        out: where the result is written.

    Returns:
        The array of input_shape.

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.
    """
    spec = _args.spec(
        2,
        _args.AVERAGE,
        kernel_size,
        stride,
        padding,
        1,
        ceil_mode,
        count_include_pad,
        divisor_override,
        2.0,
        layout,
    )
    return _backward(spec, dy, input_shape, "input_shape", None, out, "avg_pool2d_backward")


def lp_pool2d(
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """2-D power-average pooling.

    The powers are signed as PyTorch's: no absolute value is taken, so that a negative sum has the root NaN unless
    norm_type is 1. A window that ceil_mode cuts short counts as a full one of the same mean.

    Args:
        x: (N, C, H, W), or without the batch; N may be 0.
        norm_type: the exponent, positive and finite; 1 is a sum, 2 the Euclidean norm.
        kernel_size: of the window.
        stride: from window to window; None: kernel_size.
        ceil_mode: whether a last, partial window counts; the name of a convention.
        layout: the axes of x and of the result.
        out: where the result is written.

    Returns:
        (N, C, P, Q).

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.

    Source: PyTorch's `torch.nn.functional.lp_pool2d`.
    """
    spec = _args.spec(2, _args.LP, kernel_size, stride, 0, 1, ceil_mode, True, None, norm_type, layout)
    y: Array = _forward(spec, x, False, out, "lp_pool2d")
    return y


def lp_pool2d_backward(
    dy: Array,
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `lp_pool2d` with respect to its input.

    Args:
        dy: (N, C, P, Q), the gradient with respect to the output.
        x: the forward call's input.
        norm_type: as in the forward call, and so the options below.
        kernel_size: see the module's text.
        stride: see the module's text.
        ceil_mode: see the module's text.
        layout: the axes of all operands.
        out: where the result is written.

    Returns:
        The shape of x.

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.
    """
    spec = _args.spec(2, _args.LP, kernel_size, stride, 0, 1, ceil_mode, True, None, norm_type, layout)
    return _backward(spec, dy, x, "x", None, out, "lp_pool2d_backward")


def adaptive_avg_pool2d(
    x: Array,
    output_size: OutputSize,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """2-D average pooling to a given size; `adaptive_max_pool2d` says the same of the maximum, with every argument."""
    spec = _args.adaptive_spec(2, _args.AVERAGE, output_size, layout)
    y: Array = _forward(spec, x, False, out, "adaptive_avg_pool2d")
    return y


def adaptive_avg_pool2d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `adaptive_avg_pool2d` with respect to its input, of `input_shape`.

    The output has the size of dy.
    """
    spec = _args.covering_spec(2, _args.AVERAGE, dy, layout)
    return _backward(spec, dy, input_shape, "input_shape", None, out, "adaptive_avg_pool2d_backward")


def adaptive_max_pool2d(
    x: Array,
    output_size: OutputSize,
    *,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """2-D max pooling to a given size.

    Args:
        x: (N, C, H, W), or without the batch; N may be 0. Floating point or integers.
        output_size: (P, Q), or one number for both; None stands for the size of x.
        return_indices: return (y, indices), the indices int64 and flat in the image of a channel.
        layout: the axes of x and of the results.
        out: where y is written.

    Returns:
        (N, C, P, Q), or the pair of it and its indices.

    Raises:
        ValueError: a value or a shape does not fit; the text names the argument, its value and the rule.
        TypeError: an operand is no numpy.ndarray, or not of a dtype that is taken.
        MemoryError: there is no memory for the result.

    Source: PyTorch's `torch.nn.functional.adaptive_max_pool2d`.
    """
    spec = _args.adaptive_spec(2, _args.MAX, output_size, layout)
    return _forward(spec, x, return_indices, out, "adaptive_max_pool2d")


def adaptive_max_pool2d_backward(
    dy: Array,
    x: Any,
    *,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `adaptive_max_pool2d` with respect to its input.

    x may be a shape where indices are given.
    """
    spec = _args.covering_spec(2, _args.MAX, dy, layout)
    return _backward(spec, dy, x, "x", indices, out, "adaptive_max_pool2d_backward")


def global_avg_pool2d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The mean of each image and channel.

    x (N, C, H, W); the result has spatial axes of 1, or is (N, C) without keepdims.
    """
    return _global(2, _args.AVERAGE, x, keepdims, layout, out, "global_avg_pool2d")


def global_avg_pool2d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `global_avg_pool2d` with respect to its input, of `input_shape`.

    dy has the shape of the result.
    """
    return _global_backward(
        2, _args.AVERAGE, dy, input_shape, "input_shape", keepdims, layout, out, "global_avg_pool2d_backward"
    )


def global_max_pool2d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The maximum of each image and channel.

    x (N, C, H, W); the result has spatial axes of 1, or is (N, C) without keepdims.
    """
    return _global(2, _args.MAX, x, keepdims, layout, out, "global_max_pool2d")


def global_max_pool2d_backward(
    dy: Array,
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `global_max_pool2d` with respect to its input.

    dy has the shape of the result.
    """
    return _global_backward(2, _args.MAX, dy, x, "x", keepdims, layout, out, "global_max_pool2d_backward")


# ---------------------------------------------------------------------------------------------------- 3-D


def max_pool3d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """3-D max pooling: x (N, C, D, H, W), result (N, C, O, P, Q).

    `max_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(3, _args.MAX, kernel_size, stride, padding, dilation, ceil_mode, True, None, 2.0, layout)
    return _forward(spec, x, return_indices, out, "max_pool3d")


def max_pool3d_backward(
    dy: Array,
    x: Any,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `max_pool3d` with respect to its input.

    `max_pool2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(3, _args.MAX, kernel_size, stride, padding, dilation, ceil_mode, True, None, 2.0, layout)
    return _backward(spec, dy, x, "x", indices, out, "max_pool3d_backward")


def max_unpool3d(
    x: Array,
    indices: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The partial inverse of `max_pool3d`: x (N, C, O, P, Q), result (N, C, D, H, W).

    `max_unpool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.unpool_spec(3, kernel_size, stride, padding, layout)
    return _unpool(spec, x, indices, output_size, out, "max_unpool3d")


def max_unpool3d_backward(
    dy: Array,
    indices: Array,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `max_unpool3d` with respect to its input: dx = dy[indices].

    `max_unpool2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _args.unpool_spec(3, 1, None, 0, layout)
    return _unpool_backward(spec, dy, indices, out, "max_unpool3d_backward")


def avg_pool3d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """3-D average pooling: x (N, C, D, H, W), result (N, C, O, P, Q).

    `avg_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(
        3,
        _args.AVERAGE,
        kernel_size,
        stride,
        padding,
        1,
        ceil_mode,
        count_include_pad,
        divisor_override,
        2.0,
        layout,
    )
    y: Array = _forward(spec, x, False, out, "avg_pool3d")
    return y


def avg_pool3d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `avg_pool3d` with respect to its input, of `input_shape`.

    `avg_pool2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(
        3,
        _args.AVERAGE,
        kernel_size,
        stride,
        padding,
        1,
        ceil_mode,
        count_include_pad,
        divisor_override,
        2.0,
        layout,
    )
    return _backward(spec, dy, input_shape, "input_shape", None, out, "avg_pool3d_backward")


def lp_pool3d(
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """3-D power-average pooling: x (N, C, D, H, W), result (N, C, O, P, Q).

    `lp_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(3, _args.LP, kernel_size, stride, 0, 1, ceil_mode, True, None, norm_type, layout)
    y: Array = _forward(spec, x, False, out, "lp_pool3d")
    return y


def lp_pool3d_backward(
    dy: Array,
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `lp_pool3d` with respect to its input.

    `lp_pool2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(3, _args.LP, kernel_size, stride, 0, 1, ceil_mode, True, None, norm_type, layout)
    return _backward(spec, dy, x, "x", None, out, "lp_pool3d_backward")


def adaptive_avg_pool3d(
    x: Array,
    output_size: OutputSize,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """3-D average pooling to a given size: x (N, C, D, H, W), result (N, C, O, P, Q), (P, ...) = output_size.

    `adaptive_max_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.adaptive_spec(3, _args.AVERAGE, output_size, layout)
    y: Array = _forward(spec, x, False, out, "adaptive_avg_pool3d")
    return y


def adaptive_avg_pool3d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `adaptive_avg_pool3d` with respect to its input, of `input_shape`.

    The output has the size of dy.
    """
    spec = _args.covering_spec(3, _args.AVERAGE, dy, layout)
    return _backward(spec, dy, input_shape, "input_shape", None, out, "adaptive_avg_pool3d_backward")


def adaptive_max_pool3d(
    x: Array,
    output_size: OutputSize,
    *,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """3-D max pooling to a given size: x (N, C, D, H, W), result (N, C, O, P, Q), (P, ...) = output_size.

    `adaptive_max_pool2d` says the same of two dimensions, with every argument.
    """
    spec = _args.adaptive_spec(3, _args.MAX, output_size, layout)
    return _forward(spec, x, return_indices, out, "adaptive_max_pool3d")


def adaptive_max_pool3d_backward(
    dy: Array,
    x: Any,
    *,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `adaptive_max_pool3d` with respect to its input.

    x may be a shape where indices are given.
    """
    spec = _args.covering_spec(3, _args.MAX, dy, layout)
    return _backward(spec, dy, x, "x", indices, out, "adaptive_max_pool3d_backward")


def global_avg_pool3d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The mean of each image and channel.

    x (N, C, D, H, W); the result has spatial axes of 1, or is (N, C) without keepdims.
    """
    return _global(3, _args.AVERAGE, x, keepdims, layout, out, "global_avg_pool3d")


def global_avg_pool3d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `global_avg_pool3d` with respect to its input, of `input_shape`.

    dy has the shape of the result.
    """
    return _global_backward(
        3, _args.AVERAGE, dy, input_shape, "input_shape", keepdims, layout, out, "global_avg_pool3d_backward"
    )


def global_max_pool3d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The maximum of each image and channel.

    x (N, C, D, H, W); the result has spatial axes of 1, or is (N, C) without keepdims.
    """
    return _global(3, _args.MAX, x, keepdims, layout, out, "global_max_pool3d")


def global_max_pool3d_backward(
    dy: Array,
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `global_max_pool3d` with respect to its input.

    dy has the shape of the result.
    """
    return _global_backward(3, _args.MAX, dy, x, "x", keepdims, layout, out, "global_max_pool3d_backward")
