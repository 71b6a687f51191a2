"""Normalisation of the arguments of `functional.elementwise`, and its error messages."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from .. import _core, _device
from . import (
    Activation,
    Array,
    Shape,
    _activation,
    _activation_parts,
    _check_arrays,
    _check_shape,
    _check_written,
    _choice,
    _first_error,
    _order_alone,
    _type_name,
    copy_into,
    dense,
    integer,
)

__all__ = ["activation", "check_axis", "clip", "copy_into", "dense", "error", "gelu", "integer", "leaky"]

Parts = tuple[int, float, float]


def _number(name: str, value: object) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} (={value!r}) must be a number, not {_type_name(value)}")
    if math.isnan(value):
        raise ValueError(f"{name} (={value!r}) must not be NaN")
    return float(value)


def leaky(negative_slope: object) -> Parts:
    """The activation of this slope."""
    slope = _number("negative_slope", negative_slope)
    if math.isinf(slope):
        raise ValueError(f"negative_slope (={negative_slope!r}) must be finite")
    return 3, slope, 0.0


def gelu(approximate: object) -> Parts:
    """Gelu, or its approximation."""
    return _choice("approximate", approximate, {"none": 9, "tanh": 10}), 0.0, 0.0


def clip(low: object, high: object) -> Parts:
    """The clamp between two bounds, of which at least one is there."""
    if low is None and high is None:
        raise ValueError("min (=None) or max (=None) must be a number")
    a = -math.inf if low is None else _number("min", low)
    b = math.inf if high is None else _number("max", high)
    if a > b:
        raise ValueError(f"min (={low!r}) must be at most max (={high!r})")
    return 11, a, b


@functools.lru_cache(maxsize=256)
def _cached(value: Activation) -> Parts:
    return _activation("activation", value)


def activation(value: Activation) -> Parts:
    """A fused activation."""
    if value is not None and type(value) is not str:
        value = _activation_parts("activation", value)
    return _cached(value)


def check_axis(x: object, axis: int) -> None:
    """ValueError unless x has that axis; what is no array is left to `_core`."""
    shape = _device.shape_of(x)
    if shape is not None and not -len(shape) <= axis < len(shape):
        ndim = len(shape)
        raise ValueError(f"axis (={axis}) must be from {-ndim} to {ndim - 1} for an array of shape {shape}")


def _same_place(a: Array, b: Array) -> bool:
    if a.__array_interface__["data"][0] != b.__array_interface__["data"][0] or a.shape != b.shape:
        return False
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True))


def _check(operands: Mapping[str, object], out: object) -> Shape:
    # The first operand's name is x or dy, which must be there; so must all others.
    for name, value in operands.items():
        if value is None:
            raise TypeError(f"{name} (=None) must be a numpy.ndarray")
    a = _check_arrays({**operands, **({} if out is None else {"out": out})})
    first = next(iter(operands))
    shape = a[first].shape
    if len(shape) > 5:
        raise ValueError(f"{first} (shape {shape}) must have at most 5 dimensions")
    for name in operands:
        _check_shape(name, a[name].shape, shape, f"that of {first}")
    if "out" in a:
        _check_shape("out", a["out"].shape, shape, "that of the result")
        _check_written("out", a["out"], {n: a[n] for n in operands if not _same_place(a[n], a["out"])})
    return shape


def error(refusal: _core.Refused, op: str, operands: Mapping[str, object], out: object) -> Exception | None:
    """Why `_core` refused a call; None where it is only the order in memory."""
    first = next(iter(operands.values()))
    found = _first_error(refusal, lambda: _check(operands, out), first, op)
    return None if _order_alone(refusal, found) else found
