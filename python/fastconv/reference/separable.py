"""Depthwise-separable convolution as two convolutions: see `fastconv.functional.separable`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from . import conv
from .conv import Activation, Array, Ints, Padding

__all__ = [
    "SeparableGradients",
    "separable_conv1d",
    "separable_conv1d_backward",
    "separable_conv2d",
    "separable_conv2d_backward",
]


class SeparableGradients(NamedTuple):
    """The gradients of a separable layer; None where one was not asked for."""

    input: Array | None
    depthwise_weight: Array | None
    pointwise_weight: Array | None
    bias: Array | None


def _channels(x: Array, rank: int, layout: str) -> int:
    return int(x.shape[-1 if layout.endswith("C") else x.ndim - rank - 1])


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
    half = {**options, "groups": _channels(x, rank, layout), "layout": layout}
    u = getattr(conv, f"conv{rank}d")(x, depthwise_weight, **half)
    d_input, d_weight = getattr(conv, f"conv{rank}d_backward_input"), getattr(conv, f"conv{rank}d_backward_weight")
    du = d_input(dy, pointwise_weight, u.shape, layout=layout)
    return SeparableGradients(
        d_input(du, depthwise_weight, x.shape, **half) if "input" in needs else None,
        d_weight(du, x, depthwise_weight.shape, **half) if "depthwise_weight" in needs else None,
        d_weight(dy, u, pointwise_weight.shape, layout=layout) if "pointwise_weight" in needs else None,
        getattr(conv, f"conv{rank}d_backward_bias")(dy, layout=layout) if "bias" in needs else None,
    )


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
    """Two 1-D convolutions: see `fastconv.functional`."""
    u = conv.conv1d(
        x,
        depthwise_weight,
        depthwise_bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=_channels(x, 1, layout),
        padding_mode=padding_mode,
        layout=layout,
        scale=depthwise_scale,
        shift=depthwise_shift,
        activation=depthwise_activation,
    )
    return conv.conv1d(
        u,
        pointwise_weight,
        bias,
        layout=layout,
        scale=scale,
        shift=shift,
        residual=residual,
        activation=activation,
        out=out,
    )


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
    """Their gradients, one after the other."""
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
    """Two 2-D convolutions: see `fastconv.functional`."""
    u = conv.conv2d(
        x,
        depthwise_weight,
        depthwise_bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=_channels(x, 2, layout),
        padding_mode=padding_mode,
        layout=layout,
        scale=depthwise_scale,
        shift=depthwise_shift,
        activation=depthwise_activation,
    )
    return conv.conv2d(
        u,
        pointwise_weight,
        bias,
        layout=layout,
        scale=scale,
        shift=shift,
        residual=residual,
        activation=activation,
        out=out,
    )


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
    """Their gradients, one after the other."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    return _backward(2, dy, x, depthwise_weight, pointwise_weight, needs, options, layout)
