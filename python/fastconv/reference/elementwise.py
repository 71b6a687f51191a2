"""Functions of single elements and softmax in plain NumPy: the names, signatures and defaults of `fastconv.functional`.

They work in the dtype they are given and return new arrays, or `out`. The mathematics is documented in
`fastconv.functional.elementwise`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .conv import Activation, _erfc, activate

__all__ = [
    "add",
    "clip",
    "clip_backward",
    "gelu",
    "gelu_backward",
    "hardsigmoid",
    "hardsigmoid_backward",
    "hardswish",
    "hardswish_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "log_softmax",
    "log_softmax_backward",
    "relu",
    "relu6",
    "relu6_backward",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "tanh",
    "tanh_backward",
]

Array = npt.NDArray[Any]


def _result(y: Array, like: Array, out: Array | None) -> Array:
    y = np.asarray(y, like.dtype)
    if out is None:
        return y
    out[...] = y
    return out


def _bound(value: float | None, otherwise: float, x: Array) -> Any:
    return x.dtype.type(otherwise if value is None else value)


def _silu_slope(x: Array) -> Array:
    s = activate(x, "sigmoid")
    slope: Array = s * (1 + x * (1 - s))
    return slope


def _gelu_slope(x: Array, approximate: str) -> Array:
    if approximate == "none":
        normal = 0.5 * _erfc(x.astype(np.float64) / -math.sqrt(2.0)) if x.size else np.ones(x.shape)
        slope: Array = normal + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return slope.astype(x.dtype)
    c = x.dtype.type(2 * math.sqrt(2 / math.pi))
    k = x.dtype.type(0.044715)
    s = activate(c * (x + k * x**3), "sigmoid")
    slope = s + x * s * (1 - s) * c * (1 + 3 * k * x * x)
    return slope


def _softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
    result: Array = e / e.sum(axis, keepdims=True)
    return result


def _log_softmax(x: Array, axis: int) -> Array:
    centred = x - x.max(axis, keepdims=True, initial=-np.inf)
    result: Array = centred - np.log(np.exp(centred).sum(axis, keepdims=True))
    return result


def relu(x: Array, *, out: Array | None = None) -> Array:
    """Give max(x, 0)."""
    return _result(activate(x, "relu"), x, out)


def relu_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy where x > 0, else 0; x may be relu's input or its result."""
    return _result(np.where(x <= 0, 0, dy), dy, out)


def relu6(x: Array, *, out: Array | None = None) -> Array:
    """Give min(max(x, 0), 6)."""
    return _result(activate(x, "relu6"), x, out)


def relu6_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy where 0 < x < 6, else 0; x may be relu6's input or its result."""
    return _result(np.where((x <= 0) | (x >= 6), 0, dy), dy, out)


def leaky_relu(x: Array, negative_slope: float = 0.01, *, out: Array | None = None) -> Array:
    """Give x where x >= 0, else negative_slope * x."""
    return _result(activate(x, ("leaky_relu", negative_slope)), x, out)


def leaky_relu_backward(dy: Array, x: Array, negative_slope: float = 0.01, *, out: Array | None = None) -> Array:
    """Give dy where x > 0, else negative_slope * dy."""
    return _result(np.where(x <= 0, x.dtype.type(negative_slope) * dy, dy), dy, out)


def silu(x: Array, *, out: Array | None = None) -> Array:
    """Give x * sigmoid(x)."""
    return _result(activate(x, "silu"), x, out)


def silu_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy * s * (1 + x * (1 - s)), s = sigmoid(x)."""
    return _result(dy * _silu_slope(x), dy, out)


def hardswish(x: Array, *, out: Array | None = None) -> Array:
    """Give x * clip(x / 6 + 1 / 2, 0, 1)."""
    return _result(activate(x, "hardswish"), x, out)


def hardswish_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy * (0 where x <= -3, 1 where x >= 3, else x / 3 + 1 / 2)."""
    return _result(dy * np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + x.dtype.type(0.5))), dy, out)


def sigmoid(x: Array, *, out: Array | None = None) -> Array:
    """1 / (1 + exp(-x))."""
    return _result(activate(x, "sigmoid"), x, out)


def sigmoid_backward(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """Give dy * y * (1 - y), y = sigmoid(x)."""
    return _result(dy * y * (1 - y), dy, out)


def hardsigmoid(x: Array, *, out: Array | None = None) -> Array:
    """Give clip(x / 6 + 1 / 2, 0, 1)."""
    return _result(activate(x, "hardsigmoid"), x, out)


def hardsigmoid_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy / 6 where -3 < x < 3, else 0."""
    return _result(np.where((x <= -3) | (x >= 3), 0, dy / 6), dy, out)


def tanh(x: Array, *, out: Array | None = None) -> Array:
    """The hyperbolic tangent."""
    return _result(activate(x, "tanh"), x, out)


def tanh_backward(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """Give dy * (1 - y * y), y = tanh(x)."""
    return _result(dy * (1 - y * y), dy, out)


def gelu(x: Array, approximate: str = "none", *, out: Array | None = None) -> Array:
    """Give x * Phi(x), Phi the normal distribution, or with approximate="tanh" its usual approximation by tanh."""
    return _result(activate(x, "gelu" if approximate == "none" else "gelu_tanh"), x, out)


def gelu_backward(dy: Array, x: Array, approximate: str = "none", *, out: Array | None = None) -> Array:
    """Give dy * (Phi(x) + x * Phi'(x)), or the derivative of the approximation."""
    return _result(dy * _gelu_slope(x, approximate), dy, out)


def clip(x: Array, min: float | None = None, max: float | None = None, *, out: Array | None = None) -> Array:
    """Give min(max(x, min), max) element by element; None is no bound."""
    return _result(
        np.clip(x, None if min is None else x.dtype.type(min), None if max is None else x.dtype.type(max)), x, out
    )


def clip_backward(
    dy: Array, x: Array, min: float | None = None, max: float | None = None, *, out: Array | None = None
) -> Array:
    """Give dy where min <= x <= max, else 0."""
    return _result(np.where((x < _bound(min, -math.inf, x)) | (x > _bound(max, math.inf, x)), 0, dy), dy, out)


def add(x: Array, y: Array, *, activation: Activation = None, out: Array | None = None) -> Array:
    """Give act(x + y) of two arrays of one shape; `activation` as for `conv2d`. Nothing is broadcast."""
    return _result(activate(x + y, activation), x, out)


def softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Give exp(x) / sum of exp(x) along the axis, computed about the largest x."""
    return _result(_softmax(x, axis), x, out)


def softmax_backward(dy: Array, y: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Give y * (dy - sum of dy * y along the axis), y = softmax(x)."""
    return _result(y * (dy - (dy * y).sum(axis, keepdims=True)), dy, out)


def log_softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Give x - log(sum of exp(x) along the axis), computed about the largest x."""
    return _result(_log_softmax(x, axis), x, out)


def log_softmax_backward(dy: Array, y: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Give dy - exp(y) * sum of dy along the axis, y = log_softmax(x)."""
    return _result(dy - np.exp(y) * dy.sum(axis, keepdims=True), dy, out)
