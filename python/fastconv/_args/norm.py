"""Normalisation of the arguments of `functional.norm`, and its error messages."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import _core, _device
from . import (
    _GRADIENTS,
    Activation,
    Array,
    Shape,
    _activation,
    _activation_parts,
    _check_arrays,
    _check_out,
    _check_shape,
    _check_written,
    _choice,
    _first_error,
    _is_plain,
    _order_alone,
    _type_name,
    check_types,
    copy_into,
    dense,
    integer,
)

_BATCH, _GROUP, _LAYER, _CHANNELS = range(4)
_INF = math.inf

__all__ = ["check_types", "copy_into", "dense"]


@dataclass(frozen=True)
class Options:
    """What the checks want to know of a call's options, which are right by themselves."""

    layout: str | None
    groups: int | None = None
    trailing: Shape = ()
    training: bool | None = None
    """None where there is no batch norm."""


# ----------------------------------------------------------------------------------------------------- the options


def layouts(ndim: int) -> dict[str, bool]:
    """The names of the axes of an array of so many dimensions, and whether the channels come last."""
    names = {"NCHW": False, "NHWC": True}
    if ndim == 3:
        names |= {"NCL": False, "NLC": True}
    if ndim == 5:
        names |= {"NCDHW": False, "NDHWC": True}
    return names


def _number(name: str, value: object) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} (={value!r}) must be a number, not {_type_name(value)}")
    return float(value)


def _eps(value: object) -> float:
    if type(value) is float and 0 <= value < _INF:
        return value
    number = _number("eps", value)
    if not 0 <= number < _INF:
        raise ValueError(f"eps (={value!r}) must be at least 0 and finite")
    return number


def _hashable_activation(activation: Activation) -> Activation:
    return activation if activation is None or type(activation) is str else _activation_parts("activation", activation)


def _layout(layout: str, ndim: int) -> bool:
    if layout == "NCHW":
        return False
    return _choice("layout", layout, layouts(ndim))


def _ndim(x: object) -> int:
    if isinstance(x, np.ndarray):
        return x.ndim
    shape = _device.shape_of(x)
    return 4 if shape is None else len(shape)


@functools.lru_cache(maxsize=1024)
def _spec(
    kind: int,
    channels_last: bool,
    groups: int,
    trailing: int,
    training: bool,
    eps: float,
    momentum: float,
    unbiased: bool,
    activation: Activation,
) -> _core.NormSpec:
    parts = _activation("activation", activation)
    return _core.NormSpec(kind, channels_last, groups, trailing, training, eps, momentum, unbiased, parts)


def batch_spec(
    x: object,
    layout: str,
    training: object,
    momentum: float,
    eps: float,
    momentum_convention: str,
    running_variance: str,
    activation: Activation,
) -> _core.NormSpec:
    """The options of a batch norm, with the momentum as the share of the batch."""
    if not isinstance(training, bool):
        raise TypeError(f"training (={training!r}) must be True or False, not {_type_name(training)}")
    share = _number("momentum", momentum)
    if not 0 <= share <= 1:
        raise ValueError(f"momentum (={momentum!r}) must be from 0 to 1")
    if _choice("momentum_convention", momentum_convention, {"torch": False, "keras": True}):
        share = 1 - share
    unbiased = _choice("running_variance", running_variance, {"unbiased": True, "biased": False})
    last, act = _layout(layout, _ndim(x)), _hashable_activation(activation)
    return _spec(_BATCH, last, 0, 0, training, _eps(eps), share, unbiased, act)


def group_spec(x: object, layout: str, num_groups: int | None, eps: float, activation: Activation) -> _core.NormSpec:
    """The options of a group norm; None groups: a group a channel."""
    groups = 0
    if num_groups is not None:
        groups = num_groups if type(num_groups) is int else integer("num_groups", num_groups)
        if not 1 <= groups < 1 << 62:
            raise ValueError(f"num_groups (={num_groups}) must be at least 1 and divide the channels")
    last, act = _layout(layout, _ndim(x)), _hashable_activation(activation)
    return _spec(_GROUP, last, groups, 0, False, _eps(eps), 0.0, True, act)


def trailing_shape(normalized_shape: object) -> Shape:
    """normalized_shape as a tuple."""
    if _is_plain(normalized_shape):
        shape: Shape = normalized_shape  # type: ignore[assignment]
    elif isinstance(normalized_shape, (Sequence, np.ndarray)) and not isinstance(normalized_shape, str):
        shape = tuple(integer("normalized_shape", n, normalized_shape) for n in normalized_shape)
    else:
        shape = (integer("normalized_shape", normalized_shape),)
    if not shape or min(shape) < 1:
        raise ValueError(f"normalized_shape (={normalized_shape}) must have at least one entry, and none below 1")
    return shape


def check_trailing(x: object, shape: Shape) -> None:
    """ValueError unless x ends in this shape; what is no array is left to `_core`."""
    own = _device.shape_of(x)
    if own is not None and own[-len(shape) :] != shape:
        raise ValueError(f"x (shape {own}) must end in normalized_shape (={shape})")


def layer_spec(shape: Shape, eps: float, activation: Activation) -> _core.NormSpec:
    """The options of a layer norm over the trailing axes."""
    return _spec(_LAYER, True, 0, len(shape), False, _eps(eps), 0.0, True, _hashable_activation(activation))


def channels_spec(x: object, layout: str, eps: float, activation: Activation) -> _core.NormSpec:
    """The options of a layer norm over channels."""
    last, act = _layout(layout, _ndim(x)), _hashable_activation(activation)
    return _spec(_CHANNELS, last, 0, 0, False, _eps(eps), 0.0, True, act)


def needed(needs: object) -> tuple[bool, bool, bool]:
    """Which of input, weight and bias are asked for."""
    if isinstance(needs, str) or not isinstance(needs, Collection):
        raise TypeError(f"needs (={needs!r}) must be a collection of names, not {_type_name(needs)}")
    for name in needs:
        if name not in _GRADIENTS:
            raise ValueError(f"needs (={needs!r}) must hold names out of {_GRADIENTS}")
    return "input" in needs, "weight" in needs, "bias" in needs


def clamp_bounds(activation: Activation, y: object) -> tuple[float, float]:
    """Where the gradient of an activation ends that is a clamp."""
    if activation is None:
        if y is not None:
            raise ValueError("y is of use with an activation only: pass activation='relu', 'relu6' or ('clip', a, b)")
        return 0.0, 0.0
    kind, a, b = _activation("activation", _hashable_activation(activation))
    bounds = {1: (0.0, _INF), 2: (0.0, 6.0), 11: (a, b)}
    if kind not in bounds:
        raise ValueError(f"activation (={activation!r}) must be None, 'relu', 'relu6' or ('clip', lower, upper)")
    if y is None:
        raise ValueError(f"activation (={activation!r}) needs y, the result of the forward pass")
    return bounds[kind]


# ------------------------------------------------------------------------------------------------ refused calls


def dense_or_none(a: Array | None) -> Array | None:
    """The same of what may be absent."""
    return None if a is None else dense(a)


def _present(arrays: Mapping[str, object], optional: Collection[str]) -> dict[str, object]:
    return {name: a for name, a in arrays.items() if a is not None or name not in optional}


def _check_image(name: str, a: Array, options: Options) -> Shape:
    """The shape of weight and bias for an input of this shape."""
    shape = a.shape
    if a.ndim > 5:
        raise ValueError(f"{name} (shape {shape}) must have at most 5 dimensions")
    if options.layout is None:
        return options.trailing
    last = layouts(a.ndim)[options.layout]
    if a.ndim < 2:
        raise ValueError(f"{name} (shape {shape}) must have 2 to 5 dimensions, {'N, ..., C' if last else 'N, C, ...'}")
    channels = shape[-1 if last else 1]
    if channels < 1:
        raise ValueError(f"{name} (shape {shape}) must have at least 1 channel")
    if options.groups is not None and channels % options.groups:
        raise ValueError(f"num_groups (={options.groups}) must divide the channels (={channels}) of {name}")
    return (channels,)


def _check_vectors(arrays: Mapping[str, Array], names: Sequence[str], shape: Shape, options: Options) -> None:
    rule = "normalized_shape" if options.layout is None else "one entry a channel"
    for name in names:
        if name in arrays:
            _check_shape(name, arrays[name].shape, shape, rule)


def _check_forward(arrays: Mapping[str, object], options: Options) -> Shape:
    present = _present(arrays, ("weight", "bias", "residual", "running_mean", "running_var", "out"))
    if options.training is False:
        for name in ("running_mean", "running_var"):
            if name not in present:
                raise ValueError(f"{name} (=None) must be given, or training=True: there is nothing to normalise by")
    a = _check_arrays(present)
    x = a["x"]
    vector = _check_image("x", x, options)
    _check_vectors(a, ("weight", "bias", "running_mean", "running_var"), vector, options)
    if "residual" in a:
        _check_shape("residual", a["residual"].shape, x.shape, "that of x")
    values = x.size // vector[0]
    if options.training and values < 2:
        raise ValueError(f"x (shape {x.shape}) must have at least 2 values a channel in training, not {values}")
    if "out" in a:
        _check_out(a["out"], x.shape, a)
    if options.training:
        for name in ("running_mean", "running_var"):
            if name in a:
                _check_written(name, a[name], a)
    return x.shape


def forward_error(refusal: _core.Refused, op: str, arrays: Mapping[str, object], options: Options) -> Exception | None:
    """Why `_core` refused a forward pass; None where it is only the order in memory."""
    error = _first_error(refusal, lambda: _check_forward(arrays, options), arrays["x"], op)
    return None if _order_alone(refusal, error) else error


def _check_backward(arrays: Mapping[str, object], options: Options, needs: tuple[bool, bool, bool]) -> Shape:
    optional = ("weight", "y", "out") if options.training is not None else ("weight", "y", "out", "mean", "inv_std")
    present = _present(arrays, optional)
    for name in ("mean", "inv_std"):
        if name in present and present[name] is None:
            raise TypeError(f"{name} (=None) must be a numpy.ndarray: what batch_norm_train returned")
    a = _check_arrays(present)
    x, dy = a["x"], a["dy"]
    vector = _check_image("x", x, options)
    _check_shape("dy", dy.shape, x.shape, "that of x")
    if "y" in a:
        _check_shape("y", a["y"].shape, x.shape, "that of x")
    _check_vectors(a, ("weight", "mean", "inv_std"), vector, options)
    if "out" in a:
        if not needs[0]:
            raise ValueError("out (the array of the input's gradient) needs 'input' in needs")
        _check_out(a["out"], x.shape, a)
    return x.shape


def backward_error(
    refusal: _core.Refused,
    op: str,
    arrays: Mapping[str, object],
    options: Options,
    needs: tuple[bool, bool, bool],
) -> Exception | None:
    """Why `_core` refused a gradient; None where it is only the order in memory."""
    error = _first_error(refusal, lambda: _check_backward(arrays, options, needs), arrays["dy"], op)
    return None if _order_alone(refusal, error) else error


# --------------------------------------------------------------------------------------- local response normalisation


def response_layout(x: object, size: int, alpha: float, beta: float, k: float, layout: str) -> bool:
    """Whether the channels come last; ValueError or TypeError where an option is wrong by itself."""
    if not 1 <= integer("size", size) < 1 << 31:
        raise ValueError(f"size (={size}) must be at least 1")
    for name, value in (("alpha", alpha), ("beta", beta), ("k", k)):
        if not math.isfinite(_number(name, value)):
            raise ValueError(f"{name} (={value!r}) must be finite")
    shape = _device.shape_of(x)
    if shape is not None and not 3 <= len(shape) <= 5:
        raise ValueError(f"x (shape {shape}) must have 3 to 5 dimensions")
    return _layout(layout, _ndim(x))


def response_error(refusal: _core.Refused, op: str, arrays: Mapping[str, object], layout: str) -> Exception | None:
    """Why `_core` refused a call; None where it is only the order in memory."""

    def checks() -> Shape:
        a = _check_arrays(_present(arrays, ("dy", "out")))
        x = a["x"]
        _check_image("x", x, Options(layout))
        if "dy" in a:
            _check_shape("dy", a["dy"].shape, x.shape, "that of x")
        if "out" in a:
            _check_out(a["out"], x.shape, a)
        return x.shape

    error = _first_error(refusal, checks, arrays["x"], op)
    return None if _order_alone(refusal, error) else error
