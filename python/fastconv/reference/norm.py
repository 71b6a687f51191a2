"""Normalisation in plain NumPy: the same names, signatures and defaults as `fastconv.functional`.

It works in the dtype it is given and returns new C-contiguous arrays, or `out`. The mathematics is documented in
`fastconv.functional.norm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .conv import Activation, activate

__all__ = [
    "BatchNormResult",
    "NormGradients",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_train",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_channels",
    "layer_norm_channels_backward",
    "local_response_norm",
    "local_response_norm_backward",
]

Array = npt.NDArray[Any]


class BatchNormResult(NamedTuple):
    """What training leaves: the result, and the batch's mean and 1 / sqrt(var + eps), which the gradient wants."""

    y: Array
    mean: Array
    inv_std: Array


class NormGradients(NamedTuple):
    """The gradients of a norm; None where one was not asked for."""

    input: Array | None
    weight: Array | None
    bias: Array | None


def _channel_axis(layout: str, ndim: int) -> int:
    return ndim - 1 if layout[-1] == "C" else 1


def _spread(vector: Array | None, ndim: int, axis: int) -> Array | None:
    """(C,) so that it broadcasts along this axis."""
    return None if vector is None else vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _finish(y: Array, activation: Activation, out: Array | None) -> Array:
    y = np.ascontiguousarray(activate(y, activation))
    if out is None:
        return y
    out[...] = y
    return out


def _affine(y: Array, weight: Array | None, bias: Array | None) -> Array:
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def _grouped(x: Array, groups: int, layout: str) -> tuple[Array, tuple[int, ...]]:
    """Lay x out with its channels first and taken apart in groups, and the axes that share statistics."""
    first = np.moveaxis(x, _channel_axis(layout, x.ndim), 1)
    parts = first.reshape(len(x), groups, first.shape[1] // groups, *first.shape[2:])
    return parts, tuple(range(2, parts.ndim))


def _ungrouped(parts: Array, x: Array, layout: str) -> Array:
    axis = _channel_axis(layout, x.ndim)
    first = parts.reshape(np.moveaxis(x, axis, 1).shape)
    return np.ascontiguousarray(np.moveaxis(first, 1, axis))


def _normalised(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    """Give xhat and 1 / sqrt(var + eps)."""
    centred = x - x.mean(axes, keepdims=True)
    inv = 1 / np.sqrt((centred * centred).mean(axes, keepdims=True) + x.dtype.type(eps))
    return centred * inv, inv


def _gradients(
    dy: Array,
    xhat: Array,
    inv: Array,
    weight: Array | None,
    axes: tuple[int, ...],
    sums: tuple[int, ...],
    needs: Sequence[str],
) -> tuple[Array | None, Array | None, Array | None]:
    """Of input, weight and bias; weight broadcasts, and its gradient is summed over the axes `sums`."""
    dx = None
    if "input" in needs:
        g = dy if weight is None else dy * weight
        dx = inv * (g - g.mean(axes, keepdims=True) - xhat * (g * xhat).mean(axes, keepdims=True))
    dw = (dy * xhat).sum(sums) if "weight" in needs else None
    return dx, dw, dy.sum(sums) if "bias" in needs else None


def _into(dx: Array | None, out: Array | None) -> Array | None:
    return dx if dx is None or out is None else _finish(dx, None, out)


# --------------------------------------------------------------------------------------------------------- batch norm


def batch_norm(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    momentum_convention: str = "torch",
    running_variance: str = "unbiased",
    residual: Array | None = None,
    activation: Activation = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """Batch norm: by the running statistics, or, with training=True, by the batch's."""
    if training:
        return batch_norm_train(
            x,
            running_mean,
            running_var,
            weight,
            bias,
            momentum=momentum,
            eps=eps,
            momentum_convention=momentum_convention,
            running_variance=running_variance,
            residual=residual,
            activation=activation,
            layout=layout,
            out=out,
        ).y
    axis = _channel_axis(layout, x.ndim)
    mean, var, w, b = (_spread(v, x.ndim, axis) for v in (running_mean, running_var, weight, bias))
    assert mean is not None
    assert var is not None
    y = _affine((x - mean) / np.sqrt(var + x.dtype.type(eps)), w, b)
    return _finish(y if residual is None else y + residual, activation, out)


def batch_norm_train(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    momentum_convention: str = "torch",
    running_variance: str = "unbiased",
    residual: Array | None = None,
    activation: Activation = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> BatchNormResult:
    """`batch_norm` with training=True, returning (y, mean, inv_std)."""
    axis = _channel_axis(layout, x.ndim)
    axes = tuple(i for i in range(x.ndim) if i != axis)
    count = x.size // x.shape[axis]
    xhat, inv = _normalised(x, axes, eps)
    mean = x.mean(axes)
    var = ((x - x.mean(axes, keepdims=True)) ** 2).mean(axes)
    if running_variance == "unbiased":
        var = var * (count / (count - 1))
    share = momentum if momentum_convention == "torch" else 1 - momentum
    for running, batch in ((running_mean, mean), (running_var, var)):
        if running is not None:
            running[...] = (1 - share) * running + share * batch
    y = _affine(xhat, _spread(weight, x.ndim, axis), _spread(bias, x.ndim, axis))
    y = _finish(y if residual is None else y + residual, activation, out)
    return BatchNormResult(y, mean, inv.reshape(-1))


def batch_norm_backward(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    inv_std: Array,
    *,
    training: bool = True,
    needs: Sequence[str] = ("input", "weight", "bias"),
    y: Array | None = None,
    activation: Activation = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> NormGradients:
    """The gradients of `batch_norm`."""
    axis = _channel_axis(layout, x.ndim)
    axes = tuple(i for i in range(x.ndim) if i != axis)
    if y is not None:
        name, *bounds = activation if isinstance(activation, tuple) else (activation,)
        lower, upper = {"relu": (0, math.inf), "relu6": (0, 6)}.get(str(name), bounds)
        dy = np.where((y <= lower) | (y >= upper), x.dtype.type(0), dy)
    m, inv, w = (_spread(v, x.ndim, axis) for v in (mean, inv_std, weight))
    assert inv is not None
    xhat = (x - m) * inv
    if training and x.size:  # the mean that was given has been rounded to the dtype
        xhat = xhat - xhat.mean(axes, keepdims=True)
    dx, dw, db = _gradients(dy, xhat, inv, w, axes, axes, needs)
    if dx is not None and not training:
        dx = dy * inv if w is None else dy * w * inv
    return NormGradients(_into(dx, out), dw, db)


# --------------------------------------------------------------------------------------------------- group, instance


def group_norm(
    x: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """Group norm."""
    parts, axes = _grouped(x, num_groups, layout)
    axis = _channel_axis(layout, x.ndim)
    y = _ungrouped(_normalised(parts, axes, eps)[0], x, layout)
    return _finish(_affine(y, _spread(weight, x.ndim, axis), _spread(bias, x.ndim, axis)), activation, out)


def group_norm_backward(
    dy: Array,
    x: Array,
    num_groups: int,
    weight: Array | None = None,
    eps: float = 1e-5,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    layout: str = "NCHW",
    out: Array | None = None,
) -> NormGradients:
    """The gradients of `group_norm` without activation."""
    parts, axes = _grouped(x, num_groups, layout)
    xhat, inv = _normalised(parts, axes, eps)
    w = None if weight is None else weight.reshape(num_groups, -1, *(1,) * (x.ndim - 2))
    sums = (0, *range(3, parts.ndim))
    dx, dw, db = _gradients(_grouped(dy, num_groups, layout)[0], xhat, inv, w, axes, sums, needs)
    dx = None if dx is None else _ungrouped(dx, x, layout)
    dw, db = (None if d is None else d.reshape(-1) for d in (dw, db))
    return NormGradients(_into(dx, out), dw, db)


def instance_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """Instance norm."""
    channels = x.shape[_channel_axis(layout, x.ndim)]
    return group_norm(x, channels, weight, bias, eps, activation=activation, layout=layout, out=out)


def instance_norm_backward(
    dy: Array,
    x: Array,
    weight: Array | None = None,
    eps: float = 1e-5,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    layout: str = "NCHW",
    out: Array | None = None,
) -> NormGradients:
    """The gradients of `instance_norm` without activation."""
    channels = x.shape[_channel_axis(layout, x.ndim)]
    return group_norm_backward(dy, x, channels, weight, eps, needs=needs, layout=layout, out=out)


# -------------------------------------------------------------------------------------------------------- layer norm


def layer_norm(
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Layer norm over the trailing axes."""
    axes = tuple(range(x.ndim - np.size(normalized_shape), x.ndim))
    return _finish(_affine(_normalised(x, axes, eps)[0], weight, bias), activation, out)


def layer_norm_backward(
    dy: Array,
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    eps: float = 1e-5,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    out: Array | None = None,
) -> NormGradients:
    """The gradients of `layer_norm` without activation."""
    split = x.ndim - np.size(normalized_shape)
    axes = tuple(range(split, x.ndim))
    xhat, inv = _normalised(x, axes, eps)
    dx, dw, db = _gradients(dy, xhat, inv, weight, axes, tuple(range(split)), needs)
    return NormGradients(_into(dx, out), dw, db)


def layer_norm_channels(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """Layer norm over the channels of each pixel."""
    axis = _channel_axis(layout, x.ndim)
    y = _affine(_normalised(x, (axis,), eps)[0], _spread(weight, x.ndim, axis), _spread(bias, x.ndim, axis))
    return _finish(y, activation, out)


def layer_norm_channels_backward(
    dy: Array,
    x: Array,
    weight: Array | None = None,
    eps: float = 1e-5,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    layout: str = "NCHW",
    out: Array | None = None,
) -> NormGradients:
    """The gradients of `layer_norm_channels` without activation."""
    axis = _channel_axis(layout, x.ndim)
    xhat, inv = _normalised(x, (axis,), eps)
    sums = tuple(i for i in range(x.ndim) if i != axis)
    dx, dw, db = _gradients(dy, xhat, inv, _spread(weight, x.ndim, axis), (axis,), sums, needs)
    return NormGradients(_into(dx, out), dw, db)


# --------------------------------------------------------------------------------------- local response normalisation


def local_response_norm(
    x: Array,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """Local response normalisation."""
    return _finish(x * _denominator(x, size, alpha, k, layout) ** x.dtype.type(-beta), None, out)


def local_response_norm_backward(
    dy: Array,
    x: Array,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `local_response_norm`."""
    d = _denominator(x, size, alpha, k, layout)
    share = _window_sum(dy * x * d ** x.dtype.type(-beta - 1), size, layout, mirrored=True)
    dx = dy * d ** x.dtype.type(-beta) - x.dtype.type(2 * alpha * beta / size) * x * share
    return _finish(dx, None, out)


def _window_sum(v: Array, size: int, layout: str, *, mirrored: bool = False) -> Array:
    axis = _channel_axis(layout, v.ndim)
    sides = (size // 2, (size - 1) // 2)
    pad = [(0, 0)] * v.ndim
    pad[axis] = sides[::-1] if mirrored else sides
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(v, pad), size, axis)
    total: Array = windows.sum(-1)
    return total


def _denominator(x: Array, size: int, alpha: float, k: float, layout: str) -> Array:
    d: Array = x.dtype.type(k) + x.dtype.type(alpha / size) * _window_sum(x * x, size, layout)
    return d
