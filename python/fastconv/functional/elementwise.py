"""Functions of single elements, the sum of two arrays, and softmax, forward and backward.

    relu         max(x, 0)                            relu6        min(max(x, 0), 6)
    leaky_relu   x where x >= 0, else slope * x       clip         min(max(x, min), max)
    sigmoid      1 / (1 + exp(-x))                    silu         x * sigmoid(x)                  (arXiv:1702.03118)
    hardsigmoid  clip(x / 6 + 1 / 2, 0, 1)            hardswish    x * hardsigmoid(x)              (arXiv:1905.02244)
    tanh         hyperbolic tangent                   gelu         x * Phi(x)                      (arXiv:1606.08415)
    softmax      exp(x) / sum of exp(x) along an axis; log_softmax is its logarithm, computed without it

A `*_backward` function gives dy times the derivative, at x, or, for sigmoid, tanh and the softmaxes, at their result y.
At a bend it takes the derivative that PyTorch does: relu's is 0 at 0. Where a clamp holds the gradient is 0, even of an
infinite dy. The gradient of `add` with respect to either operand is dy (with an activation, that of the activation at
x + y): there is no function for it.

**Arrays** have any number of dimensions up to 5. The result lies in memory as x does; `out` may be an operand itself,
and is written in place then. Arrays that are one dense block, in any order of axes, and operands that lie alike are
read in place; others are copied first. How exact the functions are is in docs/numerics.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _core, _foreign, _verbose
from .._args import Activation, Array
from .._args import elementwise as _args

if TYPE_CHECKING or not _verbose.enabled:
    from .. import _core as _calls
else:
    from .._verbose import calls as _calls

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

_RELU, _RELU6, _SILU, _HARDSWISH = (1, 0.0, 0.0), (2, 0.0, 0.0), (4, 0.0, 0.0), (5, 0.0, 0.0)
_SIGMOID, _HARDSIGMOID, _TANH = (6, 0.0, 0.0), (7, 0.0, 0.0), (8, 0.0, 0.0)


def _copied(result: Array, out: Array | None) -> Array:
    if out is None:
        return result
    copied: Array = _args.copy_into(out, result)
    return copied


def _forward(op: str, activation: tuple[int, float, float], x: Array, out: Array | None) -> Array:
    try:
        return _calls.activation(activation, x, out)
    except _core.Refused as refusal:
        if (error := _args.error(refusal, op, {"x": x}, out)) is not None:
            raise error from None
    if _foreign.any_of((x, out)):
        return _foreign.on_views(_forward, op, activation, x, out)
    return _copied(_calls.activation(activation, _args.dense(x), None), out)


def _backward(
    op: str, activation: tuple[int, float, float], dy: Array, x: Array, out: Array | None, name: str = "x"
) -> Array:
    try:
        return _calls.activation_backward(activation, dy, x, out)
    except _core.Refused as refusal:
        if (error := _args.error(refusal, op, {"dy": dy, name: x}, out)) is not None:
            raise error from None
    if _foreign.any_of((dy, x, out)):
        return _foreign.on_views(_backward, op, activation, dy, x, out, name)
    return _copied(_calls.activation_backward(activation, _args.dense(dy), _args.dense(x), None), out)


def relu(x: Array, *, out: Array | None = None) -> Array:
    """Give max(x, 0)."""
    return _forward("relu", _RELU, x, out)


def relu_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy where x > 0, else 0; x may be relu's input or its result."""
    return _backward("relu_backward", _RELU, dy, x, out)


def relu6(x: Array, *, out: Array | None = None) -> Array:
    """Give min(max(x, 0), 6)."""
    return _forward("relu6", _RELU6, x, out)


def relu6_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy where 0 < x < 6, else 0; x may be relu6's input or its result."""
    return _backward("relu6_backward", _RELU6, dy, x, out)


def leaky_relu(x: Array, negative_slope: float = 0.01, *, out: Array | None = None) -> Array:
    """Give x where x >= 0, else negative_slope * x."""
    return _forward("leaky_relu", _args.leaky(negative_slope), x, out)


def leaky_relu_backward(dy: Array, x: Array, negative_slope: float = 0.01, *, out: Array | None = None) -> Array:
    """Give dy where x > 0, else negative_slope * dy."""
    return _backward("leaky_relu_backward", _args.leaky(negative_slope), dy, x, out)


def silu(x: Array, *, out: Array | None = None) -> Array:
    """Give x * sigmoid(x)."""
    return _forward("silu", _SILU, x, out)


def silu_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy * s * (1 + x * (1 - s)), s = sigmoid(x)."""
    return _backward("silu_backward", _SILU, dy, x, out)


def hardswish(x: Array, *, out: Array | None = None) -> Array:
    """Give x * clip(x / 6 + 1 / 2, 0, 1)."""
    return _forward("hardswish", _HARDSWISH, x, out)


def hardswish_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy * (0 where x <= -3, 1 where x >= 3, else x / 3 + 1 / 2)."""
    return _backward("hardswish_backward", _HARDSWISH, dy, x, out)


def sigmoid(x: Array, *, out: Array | None = None) -> Array:
    """1 / (1 + exp(-x))."""
    return _forward("sigmoid", _SIGMOID, x, out)


def sigmoid_backward(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """Give dy * y * (1 - y), y = sigmoid(x)."""
    return _backward("sigmoid_backward", _SIGMOID, dy, y, out, "y")


def hardsigmoid(x: Array, *, out: Array | None = None) -> Array:
    """Give clip(x / 6 + 1 / 2, 0, 1)."""
    return _forward("hardsigmoid", _HARDSIGMOID, x, out)


def hardsigmoid_backward(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Give dy / 6 where -3 < x < 3, else 0."""
    return _backward("hardsigmoid_backward", _HARDSIGMOID, dy, x, out)


def tanh(x: Array, *, out: Array | None = None) -> Array:
    """The hyperbolic tangent."""
    return _forward("tanh", _TANH, x, out)


def tanh_backward(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """Give dy * (1 - y * y), y = tanh(x)."""
    return _backward("tanh_backward", _TANH, dy, y, out, "y")


def gelu(x: Array, approximate: str = "none", *, out: Array | None = None) -> Array:
    """Give x * Phi(x), Phi the normal distribution, or with approximate="tanh" its usual approximation by tanh."""
    return _forward("gelu", _args.gelu(approximate), x, out)


def gelu_backward(dy: Array, x: Array, approximate: str = "none", *, out: Array | None = None) -> Array:
    """Give dy * (Phi(x) + x * Phi'(x)), or the derivative of the approximation."""
    return _backward("gelu_backward", _args.gelu(approximate), dy, x, out)


def clip(x: Array, min: float | None = None, max: float | None = None, *, out: Array | None = None) -> Array:
    """Give min(max(x, min), max) element by element; None is no bound."""
    return _forward("clip", _args.clip(min, max), x, out)


def clip_backward(
    dy: Array, x: Array, min: float | None = None, max: float | None = None, *, out: Array | None = None
) -> Array:
    """Give dy where min <= x <= max, else 0."""
    return _backward("clip_backward", _args.clip(min, max), dy, x, out)


def add(x: Array, y: Array, *, activation: Activation = None, out: Array | None = None) -> Array:
    """Give act(x + y) of two arrays of one shape; `activation` as for `conv2d`. Nothing is broadcast."""
    act = _args.activation(activation)
    try:
        return _calls.add(act, x, y, out)
    except _core.Refused as refusal:
        if (error := _args.error(refusal, "add", {"x": x, "y": y}, out)) is not None:
            raise error from None
    if _foreign.any_of((x, y, out)):
        return _foreign.on_views(add, x, y, activation=activation, out=out)
    return _copied(_calls.add(act, _args.dense(x), _args.dense(y), None), out)


# ------------------------------------------------------------------------------------------------------------ softmax


def _softmax(op: str, x: Array, axis: int, logarithm: bool, out: Array | None) -> Array:
    if type(axis) is not int:
        axis = _args.integer("axis", axis)
    _args.check_axis(x, axis)
    try:
        return _calls.softmax(x, axis, logarithm, out)
    except _core.Refused as refusal:
        if (error := _args.error(refusal, op, {"x": x}, out)) is not None:
            raise error from None
    if _foreign.any_of((x, out)):
        return _foreign.on_views(_softmax, op, x, axis, logarithm, out)
    return _copied(_calls.softmax(_args.dense(x), axis, logarithm, None), out)


def _softmax_backward(op: str, dy: Array, y: Array, axis: int, logarithm: bool, out: Array | None) -> Array:
    if type(axis) is not int:
        axis = _args.integer("axis", axis)
    _args.check_axis(dy, axis)
    try:
        return _calls.softmax_backward(dy, y, axis, logarithm, out)
    except _core.Refused as refusal:
        if (error := _args.error(refusal, op, {"dy": dy, "y": y}, out)) is not None:
            raise error from None
    if _foreign.any_of((dy, y, out)):
        return _foreign.on_views(_softmax_backward, op, dy, y, axis, logarithm, out)
    return _copied(_calls.softmax_backward(_args.dense(dy), _args.dense(y), axis, logarithm, None), out)


def softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Give exp(x) / sum of exp(x) along the axis, computed about the largest x."""
    return _softmax("softmax", x, axis, False, out)


def softmax_backward(dy: Array, y: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Give y * (dy - sum of dy * y along the axis), y = softmax(x)."""
    return _softmax_backward("softmax_backward", dy, y, axis, False, out)


def log_softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Give x - log(sum of exp(x) along the axis), computed about the largest x."""
    return _softmax("log_softmax", x, axis, True, out)


def log_softmax_backward(dy: Array, y: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Give dy - exp(y) * sum of dy along the axis, y = log_softmax(x)."""
    return _softmax_backward("log_softmax_backward", dy, y, axis, True, out)
