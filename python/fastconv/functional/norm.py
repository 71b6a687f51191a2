"""Normalisation, forward and backward: batch, group, instance, layer and local response norm.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual)

    batch_norm            for each channel, over N and pixels (Ioffe and Szegedy, arXiv:1502.03167)
    group_norm            for each image and group of channels, over these and pixels (Wu and He, arXiv:1803.08494)
    instance_norm         for each image and channel, over pixels (Ulyanov, Vedaldi and Lempitsky, arXiv:1607.08022)
    layer_norm            for each row, over the trailing axes (Ba, Kiros and Hinton, arXiv:1607.06450)
    layer_norm_channels   for each pixel, over channels, as in ConvNeXt

and, after Krizhevsky, Sutskever and Hinton (NeurIPS 2012, section 3.3), over neighbouring channels,

    local_response_norm   x / (k + alpha / size * sum of x^2)^beta

var is the mean of (x - mean)^2. The mean is kept in two numbers of the dtype, so that a mean of 1e4 with a deviation of
1e-2 is no trouble in float32. Weight and bias have an entry a channel (`layer_norm`: the shape of the axes that it
normalises over); None stands for ones and zeros.

**Gradients**, with n the number of elements that share a mean, xhat = (x - mean) / sqrt(var + eps) and g = dy * weight:

    weight  sum of dy * xhat          bias  sum of dy
    input   (g - mean of g - xhat * mean of g * xhat) / sqrt(var + eps)       (the means are over the n elements)

Where the statistics were given (inference), the input's gradient is g / sqrt(var + eps).

**Arrays.** Images are (N, C, ...) or, with layout "NHWC", (N, ..., C), of 2 to 5 dimensions; "NCL" and "NLC" name the
axes of 3-D arrays and "NCDHW" and "NDHWC" those of 5-D ones. They are read in place where the pixels of a channel or
the channels of a pixel are neighbours in memory, and the pixels evenly apart; the same order for all operands of a
call. Others are copied to contiguous ones first, which is slow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _core, _foreign, _verbose
from .._args import Activation, Array
from .._args import norm as _args

if TYPE_CHECKING or not _verbose.enabled:
    from .. import _core as _calls
else:
    from .._verbose import calls as _calls

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


def _forward(
    op: str,
    spec: _core.NormSpec,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    out: Array | None,
    options: _args.Options,
) -> Any:
    try:
        return _calls.norm(spec, x, weight, bias, residual, running_mean, running_var, out)
    except _core.Refused as refusal:
        arrays = {
            "x": x,
            "weight": weight,
            "bias": bias,
            "residual": residual,
            "running_mean": running_mean,
            "running_var": running_var,
            "out": out,
        }
        if (error := _args.forward_error(refusal, op, arrays, options)) is not None:
            raise error from None
    if _foreign.any_of(arrays.values()):
        vectors = (weight, bias, residual, running_mean, running_var)
        return _foreign.on_views(_forward, op, spec, x, *vectors, out, options)
    w, b, r = map(_args.dense_or_none, (weight, bias, residual))
    result = _calls.norm(spec, _args.dense(x), w, b, r, running_mean, running_var, None)
    if out is None:
        return result
    if not isinstance(result, tuple):
        return _args.copy_into(out, result)
    return (_args.copy_into(out, result[0]), *result[1:])


def _backward(
    op: str,
    spec: _core.NormSpec,
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    inv_std: Array | None,
    y: Array | None,
    bounds: tuple[float, float],
    needs: Collection[str],
    out: Array | None,
    options: _args.Options,
) -> NormGradients:
    wanted = _args.needed(needs)
    try:
        return NormGradients(*_calls.norm_backward(spec, dy, x, weight, mean, inv_std, y, *bounds, *wanted, out))
    except _core.Refused as refusal:
        arrays = {"dy": dy, "x": x, "weight": weight, "mean": mean, "inv_std": inv_std, "y": y, "out": out}
        if (error := _args.backward_error(refusal, op, arrays, options, wanted)) is not None:
            raise error from None
    if _foreign.any_of(arrays.values()):
        return _foreign.on_views(_backward, op, spec, dy, x, weight, mean, inv_std, y, bounds, needs, out, options)
    g, u, w, r = _args.dense(dy), _args.dense(x), _args.dense_or_none(weight), _args.dense_or_none(y)
    result = _calls.norm_backward(spec, g, u, w, mean, inv_std, r, *bounds, *wanted, None)
    if out is not None:
        result = (_args.copy_into(out, result[0]), *result[1:])
    return NormGradients(*result)


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
    """Batch norm: by the running statistics, or, with training=True, by the batch's.

    In training the running arrays, where they are given, are updated in place; `batch_norm_train` does the same and
    also returns what the gradient wants. Nothing is written by a call that raises.

    Args:
        x: (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), or with C last.
        running_mean: (C,); may be None in training.
        running_var: as running_mean.
        weight: (C,), or None.
        bias: as weight.
        training: use the batch's statistics. It needs at least 2 values a channel.
        momentum: from 0 to 1.
        eps: is added to the variance; not negative.
        momentum_convention: "torch": running = (1 - momentum) * running + momentum * batch; "keras": running =
            momentum * running + (1 - momentum) * batch, whose usual momentum is 0.99.
        running_variance: the variance that goes into running_var: "unbiased" (over n - 1, as PyTorch) or "biased" (over
            n, as Keras). What x is normalised by is over n always.
        residual: of x's shape; is added before the activation.
        activation: as for `conv2d`.
        layout: the axes of x and residual.
        out: the result's array, of x's shape and dtype.

    Returns:
        y, of x's shape and dtype, channels-last in memory where x is.

    Raises:
        TypeError: an operand is no array of float32 or float64, dtypes differ, or an option has the wrong type.
        ValueError: shapes or values contradict each other, or there are no statistics to normalise by.
    """
    if training is not True:
        spec = _args.batch_spec(x, layout, training, momentum, eps, momentum_convention, running_variance, activation)
        options = _args.Options(layout, training=False)
        result: Array = _forward("batch_norm", spec, x, weight, bias, residual, running_mean, running_var, out, options)
        return result
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
    """`batch_norm` with training=True, returning (y, mean, inv_std): y and what `batch_norm_backward` wants."""
    spec = _args.batch_spec(x, layout, True, momentum, eps, momentum_convention, running_variance, activation)
    options = _args.Options(layout, training=True)
    result = BatchNormResult(
        *_forward("batch_norm", spec, x, weight, bias, residual, running_mean, running_var, out, options)
    )
    _foreign.written(running_mean, running_var)
    return result


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
    """The gradients of `batch_norm`.

    Args:
        dy: the gradient of the result, of x's shape.
        x: the input.
        weight: (C,), or None.
        mean: (C,): as `batch_norm_train` returned it, or in inference running_mean.
        inv_std: (C,): likewise, or 1 / sqrt(running_var + eps).
        training: whether the statistics were the batch's own, and so depend on x.
        needs: which gradients to compute; the others are None.
        y: the result of the forward pass, where it had an activation: its gradient is applied on the way. The gradient
            of a residual is then `relu_backward(dy, y)` or its like.
        activation: None, "relu", "relu6" or ("clip", lower, upper), whose gradient y tells.
        layout: the axes of dy, x, y and the input's gradient.
        out: the array of the input's gradient.

    Raises:
        TypeError, ValueError: as `batch_norm`.
    """
    spec = _args.batch_spec(x, layout, training, 0.1, 1e-5, "torch", "unbiased", None)
    bounds = _args.clamp_bounds(activation, y)
    options = _args.Options(layout, training=training)
    return _backward("batch_norm_backward", spec, dy, x, weight, mean, inv_std, y, bounds, needs, out, options)


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
    """Group norm of x (N, C, ...), or (N, ..., C): num_groups divides C. The module's text has the rest."""
    spec = _args.group_spec(x, layout, num_groups, eps, activation)
    options = _args.Options(layout, groups=num_groups)
    result: Array = _forward("group_norm", spec, x, weight, bias, None, None, None, out, options)
    return result


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
    """The gradients of `group_norm` without activation. The statistics are computed again from x.

    `needs` names the gradients; `out` is the array of the input's.
    """
    spec = _args.group_spec(x, layout, num_groups, eps, None)
    options = _args.Options(layout, groups=num_groups)
    return _backward("group_norm_backward", spec, dy, x, weight, None, None, None, (0.0, 0.0), needs, out, options)


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
    """Instance norm of x (N, C, ...), or (N, ..., C): `group_norm` with a group a channel.

    It takes no running statistics: with those it is `batch_norm` in inference.
    """
    spec = _args.group_spec(x, layout, None, eps, activation)
    result: Array = _forward("instance_norm", spec, x, weight, bias, None, None, None, out, _args.Options(layout))
    return result


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
    """The gradients of `instance_norm` without activation, as `group_norm_backward`."""
    spec = _args.group_spec(x, layout, None, eps, None)
    options = _args.Options(layout)
    return _backward("instance_norm_backward", spec, dy, x, weight, None, None, None, (0.0, 0.0), needs, out, options)


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
    """Layer norm over the trailing axes of x (up to 5 dimensions), whose shape is normalized_shape.

    weight and bias have that shape. The result is C-contiguous.
    """
    shape = _args.trailing_shape(normalized_shape)
    _args.check_trailing(x, shape)
    spec = _args.layer_spec(shape, eps, activation)
    options = _args.Options(None, trailing=shape)
    result: Array = _forward("layer_norm", spec, x, weight, bias, None, None, None, out, options)
    return result


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
    """The gradients of `layer_norm` without activation, as `group_norm_backward`."""
    shape = _args.trailing_shape(normalized_shape)
    _args.check_trailing(x, shape)
    spec = _args.layer_spec(shape, eps, None)
    options = _args.Options(None, trailing=shape)
    return _backward("layer_norm_backward", spec, dy, x, weight, None, None, None, (0.0, 0.0), needs, out, options)


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
    """Layer norm over the channels of each pixel of x (N, C, ...), or (N, ..., C), as in ConvNeXt."""
    spec = _args.channels_spec(x, layout, eps, activation)
    options = _args.Options(layout)
    result: Array = _forward("layer_norm_channels", spec, x, weight, bias, None, None, None, out, options)
    return result


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
    """The gradients of `layer_norm_channels` without activation, as `group_norm_backward`."""
    spec = _args.channels_spec(x, layout, eps, None)
    options = _args.Options(layout)
    return _backward(
        "layer_norm_channels_backward", spec, dy, x, weight, None, None, None, (0.0, 0.0), needs, out, options
    )


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
    """Local response normalisation of x (N, C, ...), or (N, ..., C), of 3 to 5 dimensions.

    The window of channel c is [c - size // 2, c + (size - 1) // 2]; what lies outside x counts as 0. Another beta
    than 0.75 takes a slow function.
    """
    last = _args.response_layout(x, size, alpha, beta, k, layout)
    return _response("local_response_norm", last, size, alpha, beta, k, x, None, layout, out)


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
    """The gradient of `local_response_norm` with respect to x: with d what x is divided by before the power beta,

    dy * d^-beta - 2 * alpha * beta / size * x * sum of dy * x * d^(-beta - 1) over the windows that hold c.
    """
    if (type(dy) is not np.ndarray or type(x) is not np.ndarray) and _foreign.any_of((dy, x)):
        return _foreign.on_views(local_response_norm_backward, dy, x, size, alpha, beta, k, layout=layout, out=out)
    last = _args.response_layout(x, size, alpha, beta, k, layout)
    _args.check_types({"dy": dy})
    return _response("local_response_norm_backward", last, size, alpha, beta, k, x, dy, layout, out)


def _response(
    op: str,
    last: bool,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    x: Array,
    dy: Array | None,
    layout: str,
    out: Array | None,
) -> Array:
    try:
        return _calls.local_response_norm(last, size, alpha, beta, k, x, dy, out)
    except _core.Refused as refusal:
        arrays = {"x": x, "dy": dy, "out": out}
        if (error := _args.response_error(refusal, op, arrays, layout)) is not None:
            raise error from None
    if _foreign.any_of(arrays.values()):
        return _foreign.on_views(_response, op, last, size, alpha, beta, k, x, dy, layout, out)
    y = _calls.local_response_norm(last, size, alpha, beta, k, _args.dense(x), _args.dense_or_none(dy), None)
    if out is None:
        return y
    result: Array = _args.copy_into(out, y)
    return result
