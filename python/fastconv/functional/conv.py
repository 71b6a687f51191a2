"""Convolution and the dense layer, forward and backward.

The forward functions compute, in one pass over memory,

    y = act(scale * (conv(u, weight) + bias) + shift + residual)
    u = input_gate * input_act(input_scale * x + input_shift), zero padding after it

where every vector has one entry a channel and what is not given is left out. `conv` is the cross-correlation that deep
learning calls convolution (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning",
arXiv:1603.07285). Names, defaults and the order of axes of the weight are PyTorch's. For one dimension, H the size of
x, R that of the kernel, c over the channels of the group that k lies in:

    conv            y[n, k, p] = sum over c, r of weight[k, c, r] * x[n, c, p * stride + r * dilation - before]
                    P = floor((H + before + after - dilation * (R - 1) - 1) / stride) + 1
    conv_transpose  y[n, k, h * stride + r * dilation - before] += weight[c, k, r] * x[n, c, h]
                    P = (H - 1) * stride + dilation * (R - 1) + 1 + output_padding - before - after

A transposed convolution is the adjoint (the gradient with respect to the input) of the convolution of the same weight.
The gradients of a loss L are those of the plain layer, without prologue and epilogue, given dy = dL/dy:

    conv_backward_input    dx[n, c, p * stride + r * dilation - before] += weight[k, c, r] * dy[n, k, p]
    conv_backward_weight   dw[k, c, r] = sum over n, p of dy[n, k, p] * x[n, c, p * stride + r * dilation - before]
    conv_backward_bias     db[k] = sum over n, p of dy[n, k, p]

Where the padding copies elements (reflect, replicate, circular) their gradients are folded back into what was copied.

**Options** that all functions share:

- `stride`, `dilation` (at least 1): an int or one a spatial dimension, in elements of the input.
- `padding` (at least 0): an int; one or a (before, after) pair a dimension; "valid" (none); "same" (P = ceil(H /
  stride), the odd element after, as TensorFlow and ONNX SAME_UPPER) or "same_lower" (before). For a transposed
  convolution it crops the output, and "same" makes it H * stride long.
- `output_padding`: extra length of a transposed convolution's output, smaller than stride or dilation.
- `groups`: channels in that many independent groups; it divides both channel counts.
- `padding_mode`: "zeros", "reflect" (padding < H), "replicate" or "circular" (padding <= H).
- `layout`: the axes of x, y and residual: "NCHW" or "NHWC" (1-D also "NCL", "NLC", 3-D "NCDHW", "NDHWC"). The weight's
  axes do not depend on it. An array without the batch axis N is taken and gives a result without it.
- `activation`: "relu", "relu6", "leaky_relu" (slope 0.01) or ("leaky_relu", slope), "silu", "hardswish", "sigmoid",
  "hardsigmoid" (clip(x / 6 + 0.5, 0, 1)), "tanh", "gelu" (x * Phi(x), by erf), "gelu_tanh", ("clip", lower, upper).
- `algorithm`: "auto", "direct", "winograd2", "winograd4" or "fft". Direct sums have
  an error bound element by element and are exact on small integers. "winograd2" and "winograd4" (tiles of 2 x 2 and 4
  x 4 outputs; Lavin and Gray, arXiv:1509.09308) serve two-dimensional layers of kernel size 3 x 3, stride 1 and
  dilation 1; their error is relative to the largest sum of absolute terms about a tile, and tiles that come out with
  a NaN or an infinity are computed directly. "auto" takes them where a model of costs, or a tune file, says that they
  are faster. "fft" serves layers with one channel in and out a group, of stride 1 (a transposed convolution, and the
  input gradient of a plain one, of any stride), in one or two dimensions (in three, of kernel depth 1); its error is
  relative to the norm of the tile of x and of the filter, and tiles that hold a NaN or an infinity are computed
  directly. "auto" takes it for large filters, where it is faster by the same.
- `max_error`: admits an algorithm only if the proven constant of its error bound, the
  `error_bound` that `fastconv.explain` tells, is at most this number: in units of eps, relative to what that
  algorithm's bound is relative to (above). "auto" goes on to the cheapest that is admitted; an error names the bounds
  if none is.
- `accumulate` (gradients): add to what `out` holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .. import _args, _core, _foreign, _verbose
from .._args import Activation, Array, Ints, Padding
from .._args import admission as _admission

if _verbose.enabled:
    from .._verbose import conv_backward as _core_backward
    from .._verbose import conv_backward_bias as _core_backward_bias
    from .._verbose import conv_backward_input as _core_backward_input
    from .._verbose import conv_backward_weight as _core_backward_weight
    from .._verbose import conv_forward as _core_forward
else:
    from .._core import conv_backward as _core_backward
    from .._core import conv_backward_bias as _core_backward_bias
    from .._core import conv_backward_input as _core_backward_input
    from .._core import conv_backward_weight as _core_backward_weight
    from .._core import conv_forward as _core_forward

__all__ = [
    "ConvGradients",
    "conv1d",
    "conv1d_backward",
    "conv1d_backward_bias",
    "conv1d_backward_input",
    "conv1d_backward_weight",
    "conv2d",
    "conv2d_backward",
    "conv2d_backward_bias",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "conv3d",
    "conv3d_backward",
    "conv3d_backward_bias",
    "conv3d_backward_input",
    "conv3d_backward_weight",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose1d_backward_bias",
    "conv_transpose1d_backward_input",
    "conv_transpose1d_backward_weight",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose2d_backward_bias",
    "conv_transpose2d_backward_input",
    "conv_transpose2d_backward_weight",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "conv_transpose3d_backward_bias",
    "conv_transpose3d_backward_input",
    "conv_transpose3d_backward_weight",
    "linear",
    "linear_backward",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
]


class ConvGradients(NamedTuple):
    """The gradients of a layer; None where one was not asked for."""

    input: Array | None
    weight: Array | None
    bias: Array | None


# ------------------------------------------------------------------------------- one implementation for every rank


def _forward(
    spec: _core.ConvSpec,
    x: Array,
    weight: Array,
    bias: Array | None,
    scale: Array | None,
    shift: Array | None,
    residual: Array | None,
    input_scale: Array | None,
    input_shift: Array | None,
    input_gate: Array | None,
    out: Array | None,
    max_error: float | None,
) -> Array:
    if max_error is not None:
        vectors = (bias, scale, shift, residual, input_scale, input_shift, input_gate)
        spec = _admission.admitted(spec, 0, x, weight, None, vectors, max_error)
    try:
        return _core_forward(spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, out)
    except _core.Refused as refusal:
        arrays = {
            "x": x,
            "weight": weight,
            "bias": bias,
            "scale": scale,
            "shift": shift,
            "residual": residual,
            "input_scale": input_scale,
            "input_shift": input_shift,
            "input_gate": input_gate,
            "out": out,
        }
        raise _args.forward_error(refusal, spec, arrays) from None


def _backward_input(
    spec: _core.ConvSpec,
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    accumulate: bool,
    out: Array | None,
    max_error: float | None,
) -> Array:
    if max_error is not None:
        spec = _admission.admitted(spec, 1, input_shape, weight, dy, (None,) * 7, max_error)
    try:
        return _core_backward_input(spec, dy, weight, input_shape, accumulate, out)
    except _core.Refused as refusal:
        arrays = {"dy": dy, "weight": weight, "out": out}
        raise _args.backward_input_error(refusal, spec, arrays, input_shape, accumulate) from None


def _backward_weight(
    spec: _core.ConvSpec,
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    accumulate: bool,
    out: Array | None,
    max_error: float | None,
) -> Array:
    if max_error is not None:
        spec = _admission.admitted(spec, 2, x, weight_shape, dy, (None,) * 7, max_error)
    try:
        return _core_backward_weight(spec, dy, x, weight_shape, accumulate, out)
    except _core.Refused as refusal:
        arrays = {"dy": dy, "x": x, "out": out}
        raise _args.backward_weight_error(refusal, spec, arrays, weight_shape, accumulate) from None


def _backward_bias(spec: _core.ConvSpec, dy: Array, accumulate: bool, out: Array | None) -> Array:
    try:
        return _core_backward_bias(spec, dy, accumulate, out)
    except _core.Refused as refusal:
        raise _args.backward_bias_error(refusal, spec, {"dy": dy, "out": out}, accumulate) from None


def _backward(
    spec: _core.ConvSpec,
    dy: Array,
    x: Array,
    weight: Array,
    needs: Sequence[str],
    accumulate: ConvGradients | Mapping[str, Array] | None,
    max_error: float | None,
) -> ConvGradients:
    reads = {"dy": dy, "x": x, "weight": weight}
    if _args.check_types(reads):
        return _foreign.on_views(_backward, spec, dy, x, weight, needs, accumulate, max_error)
    channels = (lambda w: w[1] * spec.groups) if spec.transposed else (lambda w: w[0])
    into = _args.gradient_targets(needs, accumulate, reads, channels)
    shared = None
    try:
        if max_error is None:  # which the passes one by one look at
            shared = _core_backward(spec, dy, x, weight, "input" in needs, "weight" in needs, "bias" in needs, *into)
    except _core.Refused as refusal:
        if refusal.args[0] == "device_error":  # by then something may have been added to the targets
            arrays = {"dy": dy, "weight": weight, "out": into[0]}
            raise _args.backward_input_error(refusal, spec, arrays, x.shape, into[0] is not None) from None
        # Of everything else the passes one by one say what is wrong.
    if shared is not None:
        return ConvGradients(*shared)
    return ConvGradients(
        _backward_input(spec, dy, weight, x.shape, into[0] is not None, into[0], max_error)
        if "input" in needs
        else None,
        _backward_weight(_args.weight_gradient_spec(spec), dy, x, weight.shape, into[1] is not None, into[1], max_error)
        if "weight" in needs
        else None,
        _backward_bias(spec, dy, into[2] is not None, into[2]) if "bias" in needs else None,
    )


def _gradient_spec(
    rank: int,
    transposed: bool,
    stride: Ints,
    padding: Padding,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    layout: str,
    algorithm: str = "auto",
) -> _core.ConvSpec:
    return _args.conv_spec(
        rank,
        transposed,
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        padding_mode,
        layout,
        algorithm,
        None,
        None,
    )


def _bias_spec(rank: int, layout: str) -> _core.ConvSpec:
    return _gradient_spec(rank, False, 1, 0, 0, 1, 1, "zeros", layout)


# --------------------------------------------------------------------------------------------------------------- conv


def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    input_scale: Array | None = None,
    input_shift: Array | None = None,
    input_activation: Activation = None,
    input_gate: Array | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """1-D convolution: x (N, C, L), weight (K, C/groups, R), result (N, K, P).

    `conv2d` says the same of two dimensions, with every argument.
    """
    spec = _args.conv_spec(
        1, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm, activation, input_activation
    )
    return _forward(spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, out, max_error)


def conv1d_backward_input(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv1d` with respect to its input, of `input_shape`.

    `conv2d_backward_input` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(1, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward_input(spec, dy, weight, input_shape, accumulate, out, max_error)


def conv1d_backward_weight(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv1d` with respect to its weight, of `weight_shape`.

    `conv2d_backward_weight` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(1, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward_weight(spec, dy, x, weight_shape, accumulate, out, max_error)


def conv1d_backward_bias(
    dy: Array, *, layout: str = "NCHW", accumulate: bool = False, out: Array | None = None
) -> Array:
    """The gradient of `conv1d` with respect to its bias, (K,): the sum of dy over N and pixels."""
    return _backward_bias(_bias_spec(1, layout), dy, accumulate, out)


def conv1d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    max_error: float | None = None,
) -> ConvGradients:
    """Several gradients of `conv1d` in one call.

    `conv2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(1, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward(spec, dy, x, weight, needs, accumulate, max_error)


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    input_scale: Array | None = None,
    input_shift: Array | None = None,
    input_activation: Activation = None,
    input_gate: Array | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """2-D convolution with prologue and epilogue.

    See the module's text for the formula, the options and the errors.

    Args:
        x: (N, C, H, W), or (C, H, W) without the batch; with layout "NHWC" (N, H, W, C). N may be 0.
        weight: (K, C/groups, R, S), any strides.
        bias: (K,), added to the convolution.
        stride: distance in the input between the elements of the output.
        padding: what is put before and after the input.
        dilation: distance between the kernel's elements.
        groups: number of independent groups of channels; groups = C is a depthwise convolution.
        padding_mode: what the padding holds.
        layout: the axes of x, y and residual.
        scale: (K,), multiplies the convolution and its bias (a folded batch norm, with shift).
        shift: (K,), added after scale.
        residual: the shape of the result, any strides, added before the activation.
        activation: applied last.
        input_scale: (C,), multiplies x as it is read.
        input_shift: (C,), added to that.
        input_activation: applied to that; zero padding comes after it.
        input_gate: (N, C) ((C,) without the batch), multiplies that: squeeze and excitation.
        out: (N, K, P, Q) in the axes of layout, any strides: where the result is written.
        algorithm: "auto", "direct", "winograd2", "winograd4" or "fft"; see the module's text.
        max_error: admits only an algorithm whose `error_bound` (see `fastconv.explain`) is at most this; None: any.

    Returns:
        (N, K, P, Q) in the axes of layout, or (K, P, Q) for an x without the batch.

    Raises:
        ValueError: a value or a shape does not fit, e.g. `groups (=3) must divide in_channels (=32)`.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype, float32 or float64.
        MemoryError: there is no memory for the result.

    Source: arXiv:1603.07285; PyTorch's `torch.nn.functional.conv2d`.
    """
    spec = _args.conv_spec(
        2, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm, activation, input_activation
    )
    return _forward(spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, out, max_error)


def conv2d_backward_input(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv2d` with respect to its input.

    See the module's text for the formula, the options and the errors.

    Args:
        dy: (N, K, P, Q), the gradient with respect to the output; without the batch (K, P, Q).
        weight: (K, C/groups, R, S).
        input_shape: the full shape of x, in the axes of layout, with as many entries as dy has dimensions.
        stride: as in the forward call, and so the options below.
        padding: see the module's text.
        dilation: see the module's text.
        groups: see the module's text.
        padding_mode: what the padding held.
        layout: the axes of dy and of x.
        accumulate: add to what out holds; out is needed then.
        out: an array of input_shape, any strides: where the result is written.
        algorithm: "auto", "direct", "winograd2", "winograd4" or "fft".
        max_error: admits only an algorithm whose `error_bound` (see `fastconv.explain`) is at most this; None: any.

    Returns:
        dx, of input_shape.

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    spec = _gradient_spec(2, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward_input(spec, dy, weight, input_shape, accumulate, out, max_error)


def conv2d_backward_weight(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv2d` with respect to its weight.

    See the module's text for the formula, the options and the errors.

    Args:
        dy: (N, K, P, Q), the gradient with respect to the output; without the batch (K, P, Q).
        x: (N, C, H, W) in the axes of layout, the input of the forward call.
        weight_shape: (K, C/groups, R, S).
        stride: as in the forward call, and so the options below.
        padding: see the module's text.
        dilation: see the module's text.
        groups: see the module's text.
        padding_mode: what the padding held.
        layout: the axes of dy and of x.
        accumulate: add to what out holds; out is needed then.
        out: an array of weight_shape: where the result is written.
        algorithm: "auto", "direct", "winograd2" or "winograd4".
        max_error: admits only an algorithm whose `error_bound` (see `fastconv.explain`) is at most this; None: any.

    Returns:
        dw, of weight_shape, C-contiguous where out is not given.

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    spec = _gradient_spec(2, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward_weight(spec, dy, x, weight_shape, accumulate, out, max_error)


def conv2d_backward_bias(
    dy: Array, *, layout: str = "NCHW", accumulate: bool = False, out: Array | None = None
) -> Array:
    """The gradient of `conv2d` with respect to its bias, (K,): the sum of dy over N and pixels."""
    return _backward_bias(_bias_spec(2, layout), dy, accumulate, out)


def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    max_error: float | None = None,
) -> ConvGradients:
    """Several gradients of `conv2d` in one call.

    See the module's text for the formula, the options and the errors.

    Args:
        dy: (N, K, P, Q), the gradient with respect to the output; without the batch (K, P, Q).
        x: (N, C, H, W) in the axes of layout, the input of the forward call.
        weight: (K, C/groups, R, S).
        needs: which gradients are computed, out of "input", "weight" and "bias".
        accumulate: arrays to add the gradients into, by the same names; those that are needed are then what is
            returned, and all of them are checked before any is written.
        stride: as in the forward call, and so the options below.
        padding: see the module's text.
        dilation: see the module's text.
        groups: see the module's text.
        padding_mode: what the padding held.
        layout: the axes of dy and of x.
        algorithm: "auto" or "direct", of both gradients; "winograd2", "winograd4" or "fft" of the input's alone.
        max_error: of both gradients: as there.

    Returns:
        ConvGradients(input, weight, bias), None where one is not needed.

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    spec = _gradient_spec(2, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward(spec, dy, x, weight, needs, accumulate, max_error)


def conv3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    input_scale: Array | None = None,
    input_shift: Array | None = None,
    input_activation: Activation = None,
    input_gate: Array | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """3-D convolution: x (N, C, D, H, W), weight (K, C/groups, T, R, S), result (N, K, O, P, Q).

    `conv2d` says the same of two dimensions, with every argument.
    """
    spec = _args.conv_spec(
        3, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm, activation, input_activation
    )
    return _forward(spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, out, max_error)


def conv3d_backward_input(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv3d` with respect to its input, of `input_shape`.

    `conv2d_backward_input` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(3, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward_input(spec, dy, weight, input_shape, accumulate, out, max_error)


def conv3d_backward_weight(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv3d` with respect to its weight, of `weight_shape`.

    `conv2d_backward_weight` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(3, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward_weight(spec, dy, x, weight_shape, accumulate, out, max_error)


def conv3d_backward_bias(
    dy: Array, *, layout: str = "NCHW", accumulate: bool = False, out: Array | None = None
) -> Array:
    """The gradient of `conv3d` with respect to its bias, (K,): the sum of dy over N and pixels."""
    return _backward_bias(_bias_spec(3, layout), dy, accumulate, out)


def conv3d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    max_error: float | None = None,
) -> ConvGradients:
    """Several gradients of `conv3d` in one call.

    `conv2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(3, False, stride, padding, 0, dilation, groups, padding_mode, layout, algorithm)
    return _backward(spec, dy, x, weight, needs, accumulate, max_error)


# ----------------------------------------------------------------------------------------------------- conv_transpose


def conv_transpose1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    input_scale: Array | None = None,
    input_shift: Array | None = None,
    input_activation: Activation = None,
    input_gate: Array | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """1-D transposed convolution: x (N, C, L), weight (C, K/groups, R), result (N, K, P).

    `conv_transpose2d` says the same of two dimensions, with every argument.
    """
    spec = _args.conv_spec(
        1,
        True,
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        "zeros",
        layout,
        algorithm,
        activation,
        input_activation,
    )
    return _forward(spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, out, max_error)


def conv_transpose1d_backward_input(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv_transpose1d` with respect to its input, of `input_shape`.

    `conv_transpose2d_backward_input` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(1, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward_input(spec, dy, weight, input_shape, accumulate, out, max_error)


def conv_transpose1d_backward_weight(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv_transpose1d` with respect to its weight, of `weight_shape`.

    `conv_transpose2d_backward_weight` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(1, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward_weight(spec, dy, x, weight_shape, accumulate, out, max_error)


def conv_transpose1d_backward_bias(
    dy: Array, *, layout: str = "NCHW", accumulate: bool = False, out: Array | None = None
) -> Array:
    """The gradient of `conv_transpose1d` with respect to its bias, (K,): the sum of dy over N and pixels."""
    return _backward_bias(_bias_spec(1, layout), dy, accumulate, out)


def conv_transpose1d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
    max_error: float | None = None,
) -> ConvGradients:
    """Several gradients of `conv_transpose1d` in one call.

    `conv_transpose2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(1, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward(spec, dy, x, weight, needs, accumulate, max_error)


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    input_scale: Array | None = None,
    input_shift: Array | None = None,
    input_activation: Activation = None,
    input_gate: Array | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """2-D transposed convolution with prologue and epilogue.

    See the module's text for the formula, the options and the errors.

    Args:
        x: (N, C, H, W), or (C, H, W) without the batch; with layout "NHWC" (N, H, W, C). N may be 0.
        weight: (C, K/groups, R, S), any strides.
        bias: (K,), added to the transposed convolution.
        stride: distance in the output between the elements of the input.
        padding: what is cropped from the output before and after.
        output_padding: extra output after the last element.
        dilation: distance between the kernel's elements.
        groups: number of independent groups of channels.
        layout: the axes of x, y and residual.
        scale: (K,), multiplies the transposed convolution and its bias (a folded batch norm, with shift).
        shift: (K,), added after scale.
        residual: the shape of the result, any strides, added before the activation.
        activation: applied last.
        input_scale: (C,), multiplies x as it is read.
        input_shift: (C,), added to that.
        input_activation: applied to that; zero padding comes after it.
        input_gate: (N, C) ((C,) without the batch), multiplies that: squeeze and excitation.
        out: (N, K, P, Q) in the axes of layout, any strides: where the result is written.
        algorithm: "auto", "direct", "winograd2", "winograd4" or "fft"; see the module's text.
        max_error: admits only an algorithm whose `error_bound` (see `fastconv.explain`) is at most this; None: any.

    Returns:
        (N, K, P, Q) in the axes of layout, or (K, P, Q) for an x without the batch.

    Raises:
        ValueError: a value or a shape does not fit, e.g. `groups (=3) must divide in_channels (=32)`.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype, float32 or float64.
        MemoryError: there is no memory for the result.

    Source: arXiv:1603.07285 section 4; PyTorch's `torch.nn.functional.conv_transpose2d`.
    """
    spec = _args.conv_spec(
        2,
        True,
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        "zeros",
        layout,
        algorithm,
        activation,
        input_activation,
    )
    return _forward(spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, out, max_error)


def conv_transpose2d_backward_input(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv_transpose2d` with respect to its input.

    See the module's text for the formula, the options and the errors.

    Args:
        dy: (N, K, P, Q), the gradient with respect to the output; without the batch (K, P, Q).
        weight: (C, K/groups, R, S).
        input_shape: the full shape of x, in the axes of layout, with as many entries as dy has dimensions.
        stride: as in the forward call, and so the options below.
        padding: see the module's text.
        output_padding: see the module's text.
        dilation: see the module's text.
        groups: see the module's text.
        layout: the axes of dy and of x.
        accumulate: add to what out holds; out is needed then.
        out: an array of input_shape, any strides: where the result is written.
        algorithm: "auto", "direct", "winograd2", "winograd4" or "fft".
        max_error: admits only an algorithm whose `error_bound` (see `fastconv.explain`) is at most this; None: any.

    Returns:
        dx, of input_shape.

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    spec = _gradient_spec(2, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward_input(spec, dy, weight, input_shape, accumulate, out, max_error)


def conv_transpose2d_backward_weight(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv_transpose2d` with respect to its weight.

    See the module's text for the formula, the options and the errors.

    Args:
        dy: (N, K, P, Q), the gradient with respect to the output; without the batch (K, P, Q).
        x: (N, C, H, W) in the axes of layout, the input of the forward call.
        weight_shape: (C, K/groups, R, S).
        stride: as in the forward call, and so the options below.
        padding: see the module's text.
        output_padding: see the module's text.
        dilation: see the module's text.
        groups: see the module's text.
        layout: the axes of dy and of x.
        accumulate: add to what out holds; out is needed then.
        out: an array of weight_shape: where the result is written.
        algorithm: "auto", "direct", "winograd2" or "winograd4".
        max_error: admits only an algorithm whose `error_bound` (see `fastconv.explain`) is at most this; None: any.

    Returns:
        dw, of weight_shape, C-contiguous where out is not given.

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    spec = _gradient_spec(2, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward_weight(spec, dy, x, weight_shape, accumulate, out, max_error)


def conv_transpose2d_backward_bias(
    dy: Array, *, layout: str = "NCHW", accumulate: bool = False, out: Array | None = None
) -> Array:
    """The gradient of `conv_transpose2d` with respect to its bias, (K,): the sum of dy over N and pixels."""
    return _backward_bias(_bias_spec(2, layout), dy, accumulate, out)


def conv_transpose2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
    max_error: float | None = None,
) -> ConvGradients:
    """Several gradients of `conv_transpose2d` in one call.

    See the module's text for the formula, the options and the errors.

    Args:
        dy: (N, K, P, Q), the gradient with respect to the output; without the batch (K, P, Q).
        x: (N, C, H, W) in the axes of layout, the input of the forward call.
        weight: (C, K/groups, R, S).
        needs: which gradients are computed, out of "input", "weight" and "bias".
        accumulate: arrays to add the gradients into, by the same names; those that are needed are then what is
            returned, and all of them are checked before any is written.
        stride: as in the forward call, and so the options below.
        padding: see the module's text.
        output_padding: see the module's text.
        dilation: see the module's text.
        groups: see the module's text.
        layout: the axes of dy and of x.
        algorithm: "auto" or "direct", of both gradients; "winograd2", "winograd4" or "fft" of the input's alone.
        max_error: of both gradients: as there.

    Returns:
        ConvGradients(input, weight, bias), None where one is not needed.

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    spec = _gradient_spec(2, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward(spec, dy, x, weight, needs, accumulate, max_error)


def conv_transpose3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    input_scale: Array | None = None,
    input_shift: Array | None = None,
    input_activation: Activation = None,
    input_gate: Array | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """3-D transposed convolution: x (N, C, D, H, W), weight (C, K/groups, T, R, S), result (N, K, O, P, Q).

    `conv_transpose2d` says the same of two dimensions, with every argument.
    """
    spec = _args.conv_spec(
        3,
        True,
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        "zeros",
        layout,
        algorithm,
        activation,
        input_activation,
    )
    return _forward(spec, x, weight, bias, scale, shift, residual, input_scale, input_shift, input_gate, out, max_error)


def conv_transpose3d_backward_input(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv_transpose3d` with respect to its input, of `input_shape`.

    `conv_transpose2d_backward_input` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(3, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward_input(spec, dy, weight, input_shape, accumulate, out, max_error)


def conv_transpose3d_backward_weight(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
) -> Array:
    """The gradient of `conv_transpose3d` with respect to its weight, of `weight_shape`.

    `conv_transpose2d_backward_weight` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(3, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward_weight(spec, dy, x, weight_shape, accumulate, out, max_error)


def conv_transpose3d_backward_bias(
    dy: Array, *, layout: str = "NCHW", accumulate: bool = False, out: Array | None = None
) -> Array:
    """The gradient of `conv_transpose3d` with respect to its bias, (K,): the sum of dy over N and pixels."""
    return _backward_bias(_bias_spec(3, layout), dy, accumulate, out)


def conv_transpose3d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
    max_error: float | None = None,
) -> ConvGradients:
    """Several gradients of `conv_transpose3d` in one call.

    `conv_transpose2d_backward` says the same of two dimensions, with every argument.
    """
    spec = _gradient_spec(3, True, stride, padding, output_padding, dilation, groups, "zeros", layout, algorithm)
    return _backward(spec, dy, x, weight, needs, accumulate, max_error)


# -------------------------------------------------------------------------------------------------- the dense layer
#
# linear is a 1-D convolution with a kernel of one element over views: the rows of x are the pixels of one image without
# a batch axis in layout NLC, (L, C), and the weight is (K, C, 1). Without rows it is an empty batch of (1, C) images.


def _linear_spec(activation: Activation = None) -> _core.ConvSpec:
    return _args.conv_spec(1, False, 1, 0, 0, 1, 1, "zeros", "NLC", "auto", activation, None)


def _linear_arrays(
    x: Array,
    weight: Array,
    bias: Array | None,
    scale: Array | None,
    shift: Array | None,
    residual: Array | None,
    out: Array | None,
) -> dict[str, Array | None]:
    return {
        "x": x,
        "weight": weight,
        "bias": bias,
        "scale": scale,
        "shift": shift,
        "residual": residual,
        "out": out,
    }


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """The dense layer with its epilogue.

    y[..., k] = act(scale[k] * (bias[k] + sum over c of weight[k, c] * x[..., c]) + shift[k] + residual[..., k])

    Args:
        x: (..., C), with any number of leading dimensions; (C,) gives (K,). It is read in place where its leading
            dimensions can be viewed as one, as those of a contiguous array can, and copied where they cannot.
        weight: (K, C), any strides.
        bias: (K,).
        scale: (K,).
        shift: (K,).
        residual: (..., K); copied where x would be.
        activation: see the module's text.
        out: (..., K): where the result is written; through a temporary array where its leading dimensions cannot be
            viewed as one.

    Returns:
        (..., K), C-contiguous.

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype, float32 or float64.
        MemoryError: there is no memory for the result.

    Source: PyTorch's `torch.nn.functional.linear`.
    """
    spec = _linear_spec(activation)
    try:
        if not _args.linear_viewable(x, weight, 1, residual, out):
            raise _core.Refused("bad_shape")
        if _args.plain_rows(x, residual, out):
            filters = weight[:, :, None]
            return _core_forward(spec, x, filters, bias, scale, shift, residual, None, None, None, out)
        lead = x.shape[:-1]
        rows = math.prod(lead)
        target = None if out is None else _args.target_rows(out, rows)
        if out is not None and target is None:
            _args.check_linear(_linear_arrays(x, weight, bias, scale, shift, residual, out))
        y = _core_forward(
            spec,
            _args.rows_of(x, rows),
            weight[:, :, None],
            bias,
            scale,
            shift,
            None if residual is None else _args.rows_of(residual, rows),
            None,
            None,
            None,
            target,
        )
    except _core.Refused as refusal:
        arrays = _linear_arrays(x, weight, bias, scale, shift, residual, out)
        if not _foreign.any_of(arrays.values()):
            raise _args.linear_error(refusal, arrays) from None
        vectors = {"scale": scale, "shift": shift, "residual": residual, "out": out}
        return _foreign.on_views(linear, x, weight, bias, activation=activation, **vectors)
    if out is None:
        return y if y.ndim == len(lead) + 1 == 2 else y.reshape(*lead, weight.shape[0])
    if target is None:
        _args.copy_into(out, y.reshape(out.shape))
    return out


def linear_backward_input(dy: Array, weight: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """The gradient of `linear` with respect to x: dx[..., c] = sum over k of dy[..., k] * weight[k, c].

    Args:
        dy: (..., K), the gradient with respect to the output; copied where its leading dimensions are no single view.
        weight: (K, C).
        accumulate: add to what out holds; out is needed then.
        out: (..., C): where the result is written.

    Returns:
        dx, (..., C).

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    spec = _linear_spec()
    arrays = {"dy": dy, "weight": weight, "out": out}
    try:
        if not _args.linear_viewable(dy, weight, 0, None, out):
            raise _core.Refused("bad_shape")
        lead = dy.shape[:-1]
        rows = math.prod(lead)
        features = weight.shape[1]
        target = None if out is None else _args.target_rows(out, rows)
        direct = out is None or target is not None
        if not direct:
            _args.check_linear_backward(arrays, accumulate)
        shape = (rows, features) if rows else (0, 1, features)
        dx = _core_backward_input(
            spec, _args.rows_of(dy, rows), weight[:, :, None], shape, accumulate if direct else False, target
        )
    except _core.Refused as refusal:
        if not _foreign.any_of(arrays.values()):
            raise _args.linear_backward_error(refusal, arrays, accumulate, "input") from None
        return _foreign.on_views(linear_backward_input, dy, weight, accumulate=accumulate, out=out)
    if out is None:
        return dx.reshape(*lead, features)
    if not direct:
        if accumulate:
            _args.add_into(out, dx.reshape(out.shape))
        else:
            _args.copy_into(out, dx.reshape(out.shape))
    return out


def linear_backward_weight(dy: Array, x: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """The gradient of `linear` with respect to its weight: dw[k, c] = sum over the rows of dy[..., k] * x[..., c].

    Args:
        dy: (..., K), the gradient with respect to the output; copied where its leading dimensions are no single view.
        x: (..., C), the input of the forward call; likewise.
        accumulate: add to what out holds; out is needed then.
        out: (K, C): where the result is written.

    Returns:
        dw, (K, C).

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    spec = _linear_spec()
    arrays = {"dy": dy, "x": x, "out": out}
    try:
        if not _args.linear_rows_match(dy, x, out):
            raise _core.Refused("bad_shape")
        rows = math.prod(dy.shape[:-1])
        shape = (dy.shape[-1], x.shape[-1], 1)
        target = None if out is None else out[:, :, None]
        dw = _core_backward_weight(spec, _args.rows_of(dy, rows), _args.rows_of(x, rows), shape, accumulate, target)
    except _core.Refused as refusal:
        if not _foreign.any_of(arrays.values()):
            raise _args.linear_backward_error(refusal, arrays, accumulate, "weight") from None
        return _foreign.on_views(linear_backward_weight, dy, x, accumulate=accumulate, out=out)
    return dw[:, :, 0] if out is None else out


def linear_backward_bias(dy: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """The gradient of `linear` with respect to its bias, (K,): the sum of dy (..., K) over all rows."""
    spec = _linear_spec()
    arrays = {"dy": dy, "out": out}
    try:
        if not _args.linear_rows_match(dy, dy, None):
            raise _core.Refused("bad_shape")
        return _core_backward_bias(spec, _args.rows_of(dy, math.prod(dy.shape[:-1])), accumulate, out)
    except _core.Refused as refusal:
        if not _foreign.any_of(arrays.values()):
            raise _args.linear_backward_error(refusal, arrays, accumulate, "bias") from None
        return _foreign.on_views(linear_backward_bias, dy, accumulate=accumulate, out=out)


def linear_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
) -> ConvGradients:
    """Several gradients of `linear` in one call.

    Args:
        dy: (..., K), the gradient with respect to the output.
        x: (..., C), the input of the forward call.
        weight: (K, C).
        needs: which gradients are computed, out of "input", "weight" and "bias".
        accumulate: arrays to add the gradients into, by the same names; those that are needed are then what is
            returned, and all of them are checked before any is written.

    Returns:
        ConvGradients(input, weight, bias), None where one is not needed.

    Raises:
        ValueError: a value or a shape does not fit.
        TypeError: an operand is no numpy.ndarray, or not of the one dtype.
        MemoryError: there is no memory for the result.
    """
    reads = {"dy": dy, "x": x, "weight": weight}
    into = _args.gradient_targets(needs, accumulate, reads, lambda w: w[0])
    return ConvGradients(
        linear_backward_input(dy, weight, accumulate=into[0] is not None, out=into[0]) if "input" in needs else None,
        linear_backward_weight(dy, x, accumulate=into[1] is not None, out=into[1]) if "weight" in needs else None,
        linear_backward_bias(dy, accumulate=into[2] is not None, out=into[2]) if "bias" in needs else None,
    )
