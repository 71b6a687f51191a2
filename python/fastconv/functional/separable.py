"""Depthwise-separable convolution, forward and backward: a filter for each channel, then a product over the channels.

    u = depthwise_activation(depthwise_scale * (conv(x, depthwise_weight) + depthwise_bias) + depthwise_shift)
    y = activation(scale * (conv(u, pointwise_weight) + bias) + shift + residual)

The forward pass is one: u exists a block of pixels at a time, in the cache, and gives the bits that two calls give.
The gradients are those of the plain layer, without vectors and activations; they compute u again.

Source: Chollet, "Xception: deep learning with depthwise separable convolutions", arXiv:1610.02357; Howard et al.,
"MobileNets", arXiv:1704.04861. The options are those of `conv2d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _core, _foreign, _verbose
from .._args import Activation, Array, Ints, Padding
from .._args import separable as _args
from . import conv

if TYPE_CHECKING or not _verbose.enabled:
    from .. import _core as _calls
else:
    from .._verbose import calls as _calls

__all__ = [
    "SeparableGradients",
    "separable_conv1d",
    "separable_conv1d_backward",
    "separable_conv2d",
    "separable_conv2d_backward",
]


_Vector = Array | None
_Vectors = tuple[_Vector, _Vector, _Vector, _Vector, _Vector, _Vector]


class SeparableGradients(NamedTuple):
    """The gradients of a separable layer; None where one was not asked for."""

    input: Array | None
    depthwise_weight: Array | None
    pointwise_weight: Array | None
    bias: Array | None


def _forward(
    spec: _core.ConvSpec,
    x: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    vectors: _Vectors,
    residual: Array | None,
    out: Array | None,
) -> Array:
    try:
        return _calls.separable_forward(spec, x, depthwise_weight, pointwise_weight, *vectors, residual, out)
    except _core.Refused as refusal:
        names = ("depthwise_bias", "depthwise_scale", "depthwise_shift", "bias", "scale", "shift")
        arrays = {
            "x": x,
            "depthwise_weight": depthwise_weight,
            "pointwise_weight": pointwise_weight,
            **dict(zip(names, vectors, strict=True)),
            "residual": residual,
            "out": out,
        }
        raise _args.error(refusal, spec, arrays) from None


def _backward(
    rank: int,
    dy: Array,
    x: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    needs: Sequence[str],
    options: dict[str, Any],
    layout: str,
) -> SeparableGradients:
    if isinstance(needs, str) or not set(needs) <= set(SeparableGradients._fields):
        raise ValueError(f"needs (={needs!r}) must name some of {', '.join(SeparableGradients._fields)}")
    same = type(dy) is type(x) is type(depthwise_weight) is type(pointwise_weight) is np.ndarray
    if not same and _foreign.any_of((dy, x, depthwise_weight, pointwise_weight)):
        return _foreign.on_views(_backward, rank, dy, x, depthwise_weight, pointwise_weight, needs, options, layout)
    forward = getattr(conv, f"conv{rank}d")
    d_input, d_weight = getattr(conv, f"conv{rank}d_backward_input"), getattr(conv, f"conv{rank}d_backward_weight")
    # What is wrong with the operands the forward rules say.
    spec = _args.spec(rank, x, layout=layout, depthwise_activation=None, activation=None, **options)
    _args.check_backward(spec, dy, x, depthwise_weight, pointwise_weight)
    half = {**options, "groups": spec.groups, "layout": layout}
    du = dw = dp = db = dx = None
    if "pointwise_weight" in needs:
        u = forward(x, depthwise_weight, **half)
        dp = d_weight(dy, u, pointwise_weight.shape, layout=layout)
    if "input" in needs or "depthwise_weight" in needs:
        shape = list(dy.shape)
        shape[-1 if spec.channels_last else dy.ndim - rank - 1] = pointwise_weight.shape[1]
        du = d_input(dy, pointwise_weight, tuple(shape), layout=layout)
    if "input" in needs:
        dx = d_input(du, depthwise_weight, x.shape, **half)
    if "depthwise_weight" in needs:
        dw = d_weight(du, x, depthwise_weight.shape, **half)
    if "bias" in needs:
        db = getattr(conv, f"conv{rank}d_backward_bias")(dy, layout=layout)
    return SeparableGradients(dx, dw, dp, db)


def separable_conv1d(
    x: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    depthwise_bias: Array | None = None,
    depthwise_scale: Array | None = None,
    depthwise_shift: Array | None = None,
    depthwise_activation: Activation = None,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """1-D depthwise-separable convolution: x (N, C, L), depthwise_weight (C * multiplier, 1, R), pointwise_weight
    (K, C * multiplier, 1), result (N, K, P).

    `separable_conv2d` says the same of two dimensions, with every argument.
    """
    spec = _args.spec(1, x, stride, padding, dilation, padding_mode, layout, depthwise_activation, activation)
    vectors = (depthwise_bias, depthwise_scale, depthwise_shift, bias, scale, shift)
    return _forward(spec, x, depthwise_weight, pointwise_weight, vectors, residual, out)


def separable_conv1d_backward(
    dy: Array,
    x: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    *,
    needs: Sequence[str] = ("input", "depthwise_weight", "pointwise_weight", "bias"),
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> SeparableGradients:
    """The gradients of the plain 1-D layer: see `separable_conv2d_backward`."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    return _backward(1, dy, x, depthwise_weight, pointwise_weight, needs, options, layout)


def separable_conv2d(
    x: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    depthwise_bias: Array | None = None,
    depthwise_scale: Array | None = None,
    depthwise_shift: Array | None = None,
    depthwise_activation: Activation = None,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """2-D depthwise-separable convolution in one pass over memory.

    See the module's text for the formula.

    Args:
        x: (N, C, H, W), or (C, H, W) without the batch; with layout "NHWC" (N, H, W, C).
        depthwise_weight: (C * multiplier, 1, R, S): channel k of the intermediate comes from channel k // multiplier
            of x. With a multiplier above 1 the intermediate is made as a whole.
        pointwise_weight: (K, C * multiplier, 1, 1).
        bias: (K,).
        stride: of the depthwise half.
        padding: of the depthwise half.
        dilation: of the depthwise half.
        padding_mode: of the depthwise half.
        layout: the axes of x, the result and residual.
        depthwise_bias: (C * multiplier,), added to the depthwise half.
        depthwise_scale: (C * multiplier,), multiplies that.
        depthwise_shift: (C * multiplier,), added to that.
        depthwise_activation: applied to the intermediate.
        scale: (K,), multiplies the pointwise half and its bias.
        shift: (K,), added to that.
        residual: the shape of the result, added before the activation.
        activation: applied last.
        out: where the result is written.

    Returns:
        (N, K, P, Q) in the axes of layout, or without the batch.

    Raises:
        ValueError, TypeError, MemoryError: as `conv2d`.
    """
    spec = _args.spec(2, x, stride, padding, dilation, padding_mode, layout, depthwise_activation, activation)
    vectors = (depthwise_bias, depthwise_scale, depthwise_shift, bias, scale, shift)
    return _forward(spec, x, depthwise_weight, pointwise_weight, vectors, residual, out)


def separable_conv2d_backward(
    dy: Array,
    x: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    *,
    needs: Sequence[str] = ("input", "depthwise_weight", "pointwise_weight", "bias"),
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> SeparableGradients:
    """The gradients of the plain 2-D layer, given dy = dL/dy.

    Args:
        dy: (N, K, P, Q) in the axes of layout.
        x: as in `separable_conv2d`.
        depthwise_weight: (C * multiplier, 1, R, S).
        pointwise_weight: (K, C * multiplier, 1, 1).
        needs: which gradients to compute.
        stride: as in the forward pass.
        padding: as in the forward pass.
        dilation: as in the forward pass.
        padding_mode: as in the forward pass.
        layout: the axes of dy and x.

    Returns:
        SeparableGradients, None for each that was not asked for.

    Raises:
        ValueError, TypeError, MemoryError: as the gradients of `conv2d`.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    return _backward(2, dy, x, depthwise_weight, pointwise_weight, needs, options, layout)
