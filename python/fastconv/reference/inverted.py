"""Inverted residuals as convolutions: see `fastconv.functional.inverted`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from . import conv, pool
from .conv import Activation, Array, Ints, Padding

__all__ = [
    "InvertedResidualGradients",
    "inverted_residual",
    "inverted_residual_backward",
]


class InvertedResidualGradients(NamedTuple):
    """The gradients of an inverted residual; None where one was not asked for."""

    input: Array | None
    expand_weight: Array | None
    depthwise_weight: Array | None
    project_weight: Array | None
    bias: Array | None


def inverted_residual(
    x: Array,
    expand_weight: Array | None,
    depthwise_weight: Array,
    project_weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    expand_bias: Array | None = None,
    expand_scale: Array | None = None,
    expand_shift: Array | None = None,
    expand_activation: Activation = None,
    depthwise_bias: Array | None = None,
    depthwise_scale: Array | None = None,
    depthwise_shift: Array | None = None,
    depthwise_activation: Activation = None,
    se_reduce_weight: Array | None = None,
    se_reduce_bias: Array | None = None,
    se_expand_weight: Array | None = None,
    se_expand_bias: Array | None = None,
    se_activation: Activation = "relu",
    se_gate: Activation = "sigmoid",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Three 2-D convolutions: see `fastconv.functional`."""
    e = x
    if expand_weight is not None:
        e = conv.conv2d(
            x,
            expand_weight,
            expand_bias,
            layout=layout,
            scale=expand_scale,
            shift=expand_shift,
            activation=expand_activation,
        )
    u = conv.conv2d(
        e,
        depthwise_weight,
        depthwise_bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=depthwise_weight.shape[0],
        padding_mode=padding_mode,
        layout=layout,
        scale=depthwise_scale,
        shift=depthwise_shift,
        activation=depthwise_activation,
    )
    gate = None
    if se_reduce_weight is not None and se_expand_weight is not None:
        mean = pool.global_avg_pool2d(u, keepdims=False, layout=layout)
        hidden = conv.linear(mean, se_reduce_weight[:, :, 0, 0], se_reduce_bias, activation=se_activation)
        gate = conv.linear(hidden, se_expand_weight[:, :, 0, 0], se_expand_bias, activation=se_gate)
    return conv.conv2d(
        u,
        project_weight,
        bias,
        layout=layout,
        scale=scale,
        shift=shift,
        residual=residual,
        activation=activation,
        input_gate=gate,
        out=out,
    )


def inverted_residual_backward(
    dy: Array,
    x: Array,
    expand_weight: Array | None,
    depthwise_weight: Array,
    project_weight: Array,
    *,
    needs: Sequence[str] = ("input", "expand_weight", "depthwise_weight", "project_weight", "bias"),
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> InvertedResidualGradients:
    """Their gradients, one after the other."""
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    options |= {"groups": depthwise_weight.shape[0], "layout": layout}
    e = x if expand_weight is None else conv.conv2d(x, expand_weight, layout=layout)
    u = conv.conv2d(e, depthwise_weight, **options)
    du = conv.conv2d_backward_input(dy, project_weight, u.shape, layout=layout)
    de = conv.conv2d_backward_input(du, depthwise_weight, e.shape, **options)
    dx, dw = de, None
    if expand_weight is not None:
        dx = conv.conv2d_backward_input(de, expand_weight, x.shape, layout=layout)
        dw = conv.conv2d_backward_weight(de, x, expand_weight.shape, layout=layout)
    gradients = InvertedResidualGradients(
        dx,
        dw,
        conv.conv2d_backward_weight(du, e, depthwise_weight.shape, **options),
        conv.conv2d_backward_weight(dy, u, project_weight.shape, layout=layout),
        conv.conv2d_backward_bias(dy, layout=layout),
    )
    wanted = {name: a if name in needs else None for name, a in gradients._asdict().items()}
    return InvertedResidualGradients(**wanted)
