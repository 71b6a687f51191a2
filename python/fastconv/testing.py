"""Cases, error bounds and guarded memory for tests, the benchmark and users.

A direct algorithm must satisfy, element by element,

    |y - y64| <= c * eps * conv(|x|, |w|) + tiny,     c <= 4

with y64 from `fastconv.reference` in float64, eps the spacing of the dtype at 1 and tiny its smallest normal number.
One element in a million may go beyond c = 4, as far as `largest_constant` of the array's size. In float64 the oracle
rounds too, see `oracle_factor`. What the prologue and the epilogue round on top of that is accounted for term by term
in `reference_with_bound`. Where the decision is an FFT, the scale is that of `fft_error_bound` in place of conv; where
it is Winograd's filtering, that of `winograd_error_bound` or, of a weight gradient, of `winograd_weight_magnitude`.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import importlib.resources
import inspect
import itertools
import math
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastconv import reference
from fastconv.reference import conv as _conv

Array = npt.NDArray[Any]
Rng = np.random.Generator

ACTIVATIONS: tuple[reference.Activation, ...] = (
    None,
    "relu",
    "relu6",
    "leaky_relu",
    ("leaky_relu", 0.25),
    "silu",
    "hardswish",
    "sigmoid",
    "hardsigmoid",
    "tanh",
    "gelu",
    "gelu_tanh",
    ("clip", -0.5, 0.75),
)

# ------------------------------------------------------------------------------------------------------------ data


def he_data(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    dtype: npt.DTypeLike = np.float32,
    *,
    seed: int = 0,
    post_relu: bool = False,
    fan_in: int | None = None,
) -> tuple[Array, Array]:
    """(x, weight): He-scaled normal weights, and inputs that are normal or, as after a ReLU, half of them zero.

    fan_in defaults to the product of weight_shape[1:], which fits convolutions and dense layers.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(tuple(x_shape))
    if post_relu:
        x = np.maximum(x, 0)
    weight = rng.standard_normal(tuple(weight_shape)) * math.sqrt(2 / (fan_in or math.prod(weight_shape[1:])))
    return x.astype(dtype), weight.astype(dtype)


def integer_data(shape: Sequence[int], dtype: npt.DTypeLike = np.float32, *, seed: int = 0, limit: int = 4) -> Array:
    """Integers from -limit to limit: in float32 every sum of up to 2**24 / limit**2 products is exact in any order."""
    return np.random.default_rng(seed).integers(-limit, limit + 1, tuple(shape)).astype(dtype)


def as_memory(array: Array, kind: str) -> Array:
    """A copy of the array with the same shape that lies otherwise in memory.

    "contiguous"; "reordered" (axis 1 innermost, or axis -1 second for channels-last axes: the other family's order);
    "strided" (every second element along the last axis, with gaps between rows); "negative" (all strides negative);
    "broadcast" (stride 0 along axis -2, or -1 where there are two axes: the values are those of the first index).
    """
    if kind == "contiguous" or array.ndim < 2:
        return array.copy()
    if kind == "reordered":
        return np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1)
    if kind == "reordered_last":
        return np.moveaxis(np.moveaxis(array, -1, 1).copy(), 1, -1)
    if kind == "strided":
        wide: Array = np.zeros((*array.shape[:-2], array.shape[-2] + 1, 2 * array.shape[-1] + 1), array.dtype)
        view = wide[..., : array.shape[-2], 1::2]
        view[...] = array
        return view
    if kind == "negative":
        flip = (slice(None, None, -1),) * array.ndim
        return array[flip].copy()[flip]
    if kind == "broadcast":
        axis = -2 if array.ndim > 2 else -1
        return np.broadcast_to(np.take(array, [0], axis), array.shape)
    raise ValueError(f"kind (={kind!r}) is not known")


# ---------------------------------------------------------------------------------------------------- error bounds


class Bounded(NamedTuple):
    """The reference in float64, and by how much each element may differ from it."""

    value: Array
    bound: Array


class Op(NamedTuple):
    """A function's name taken apart."""

    family: str  # "conv", "conv_transpose", "linear" or "inverted_residual"
    rank: int  # spatial dimensions; 0 for linear
    gradient: str  # "" (forward), "input", "weight", "bias" or "all"

    @classmethod
    def parse(cls, name: str) -> Op:
        if name == "inverted_residual":
            return cls(name, 2, "")
        match = re.fullmatch(r"(conv|conv_transpose|linear)(?:([123])d)?(_backward(?:_(input|weight|bias))?)?", name)
        if match is None:
            raise ValueError(f"op (={name!r}) is not the name of a function of fastconv")
        return cls(match[1], int(match[2] or 0), (match[4] or "all") if match[3] else "")


_LIPSCHITZ = {"silu": 1.1, "hardswish": 1.5, "sigmoid": 0.25, "hardsigmoid": 1 / 6, "gelu": 1.13, "gelu_tanh": 1.13}
# These select or clamp and round nothing.
_EXACT = {"relu", "relu6", "clip"}
# The share of elements beyond a c falls as exp(-c / _DECAY): the root mean square of a relative rounding error, in eps.
# docs/numerics.md derives it.
_TESTED_CONSTANT = 4.0
_DECAY = 0.5 / math.sqrt(8 * math.log(2))
# Of so many arrays of right results, fewer than one exceed their largest_constant; of so many elements, one may stray.
_ARRAYS, _ELEMENTS_A_STRAY = 100_000, 1_000_000
# Rounding errors of an activation's own evaluation, in units of eps * |y|.
_ACTIVATION_CONSTANT = 4.0


def _lipschitz(activation: reference.Activation) -> float:
    name, *parameters = (activation,) if not isinstance(activation, tuple) else activation
    if name == "leaky_relu" and parameters:
        return max(1.0, abs(float(parameters[0])))
    return _LIPSCHITZ.get(str(name), 1.0)


def _activation_error(activation: reference.Activation, z: Array, y: Array, eps: float, tiny: float) -> Array:
    """The error of act(z) itself: relative, but for the negative tail of the gelus, where 1 + erf (tanh) cancels.

    x * sigmoid(x) multiplies an underflowing factor by x: there tiny counts |z| times.
    """
    name = activation[0] if isinstance(activation, tuple) else activation
    if name is None or name in _EXACT:
        return np.zeros_like(z)
    size = np.where(np.isfinite(z), np.abs(z), 0)
    error = _ACTIVATION_CONSTANT * eps * np.abs(y) + tiny * (1 + size)
    return error + eps * size if name in ("gelu", "gelu_tanh") else error


def _through(activation: reference.Activation, z: Array, error: Array) -> Array:
    """The error that act passes on from z; none from an infinity, which is exact and often saturates."""
    passed: Array = np.where(np.isfinite(z), _lipschitz(activation) * error, 0)
    return passed


def largest_constant(elements: int) -> float:
    """The c that no element of so many may exceed: 4, and beyond 1500 elements more, by their logarithm.

    A million may reach 5.4. docs/numerics.md derives it, for data whose products have random signs.
    """
    return max(_TESTED_CONSTANT, _DECAY * math.log(_ARRAYS * max(elements, 1)))


def stray_factor(elements: int, constant: float = 4.0) -> float:
    """By what factor an element may exceed the bound of this constant in an array of so many; 1: by none."""
    return max(1.0, largest_constant(elements) / max(constant, _TESTED_CONSTANT))


def oracle_factor(dtype: npt.DTypeLike) -> float:
    """What a constant is multiplied with for the oracle's own errors, which are seen in float64 alone.

    They are as large as the result's and independent of them: the root of 2.
    """
    return math.sqrt(2) if np.dtype(dtype) == np.float64 else 1.0


def too_far(excess: Array, stray: float = 1.0) -> bool:
    """Whether errors, in units of their bounds, are too large; NaN is.

    One element in a million, rounded up, may exceed its bound, and it by the factor `stray` at most.
    """
    beyond = excess[~(excess <= 1)]
    return beyond.size > -(-excess.size // _ELEMENTS_A_STRAY) or not bool(np.all(beyond <= stray))


def direct_error_bound(magnitude: Array, dtype: npt.DTypeLike, constant: float = 4.0) -> Array:
    """The bound constant * eps * magnitude + tiny, where magnitude is conv(|x|, |w|) in float64."""
    info = np.finfo(np.dtype(dtype))
    return constant * float(info.eps) * magnitude + float(info.tiny)


def fft_error_bound(x: Array, weight: Array, rank: int, last: bool, eps: float, constant: float = 4.0) -> Array:
    """The bound constant * eps * max |x| * |weight|_2 of an FFT: for each image and channel, on finite elements of x.

    x is what the product reads, weight has one filter a channel. The result broadcasts against the output.
    """
    size = np.where(np.isfinite(x), np.abs(x), 0)
    axes = tuple(range(-rank - 1, -1)) if last else tuple(range(-rank, 0))
    norm = np.sqrt(np.sum(np.where(np.isfinite(weight), weight, 0) ** 2, axis=tuple(range(1, weight.ndim))))
    bound: Array = constant * eps * size.max(axis=axes, keepdims=True) * _spread(norm, rank, last)
    return bound


# Of the bound's constant: what a tile's roundings may be more than a direct sum's.
_WINOGRAD = {"winograd2": (2, 1.0), "winograd4": (4, 3.0)}


def winograd_error_bound(
    magnitude: Array, dtype: npt.DTypeLike, algorithm: str, last: bool, constant: float = 4.0
) -> Array:
    """The bound of Winograd's filtering, from magnitude = conv(|x|, |w|) in float64, of finite elements.

    constant * eps * the largest magnitude among the pixels of a tile and two around it, three times that of 4 x 4
    outputs. An element counts as one of any tile that might hold it.
    """
    outputs, factor = _WINOGRAD[algorithm]
    most = np.where(np.isfinite(magnitude), magnitude, 0)
    for axis in (-3, -2) if last else (-2, -1):
        width = [(0, 0)] * most.ndim
        width[axis] = (outputs + 1, outputs + 1)
        padded = np.pad(most, width)
        most = np.lib.stride_tricks.sliding_window_view(padded, 2 * outputs + 3, axis=axis).max(axis=-1)
    return direct_error_bound(most, dtype, factor * constant)


def winograd_weight_magnitude(
    family: str, arrays: Sequence[Array], weight_shape: Sequence[int], options: Mapping[str, Any], algorithm: str
) -> Array:
    """What the error of a weight gradient by Winograd's filtering is relative to: one number for each of its filters.

    That is the largest sum of |dy| * |x| among the taps of the filter and those around it, one or three further off,
    that a tile of 2 x 2 or 4 x 4 outputs has room for in its patch of x, of finite elements. The arrays are dy and x.
    """
    rank, last = len(weight_shape) - 2, options.get("layout", "NCHW")[-1] == "C"
    sizes = (np.abs(np.where(np.isfinite(a), a, 0)) for a in arrays)
    dy, x = (_conv._inward("array", a, rank, last) for a in sizes)
    kernel = tuple(weight_shape[2:])
    stride, padding, dilation = (options.get(n, d) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    if family == "conv_transpose":  # dy is the side that the filter slides over
        extra = options.get("output_padding", 0)
        g = _conv._geometry_transposed(x.shape[2:], kernel, stride, padding, extra, dilation)
        small, full = x, _conv._uncrop(dy, g.padding)
    else:
        mode = options.get("padding_mode", "zeros")
        g = _conv._geometry(x.shape[2:], kernel, stride, padding, dilation, mode)
        small, full = dy, _conv._pad(x, g.padding, mode)
    beyond = _WINOGRAD[algorithm][0] - 1
    around = (*(0,) * (rank - 2), beyond, beyond)
    wide = (*weight_shape[:2], *(k + 2 * e for k, e in zip(kernel, around, strict=True)))
    function = getattr(reference, f"conv{rank}d_backward_weight")
    sums: Array = function(small, full, wide, padding=around, groups=options.get("groups", 1))
    most: Array = sums.max(axis=tuple(range(2, sums.ndim)), keepdims=True)
    return most


def _algorithm_of(op: Op, name: str, arrays: Sequence[Any], options: Mapping[str, Any]) -> str:
    """The algorithm of the call's decision: "fft", "winograd2" or "winograd4"; "direct" stands for the others."""
    groups = options.get("groups", 1)
    if op.rank == 0 or op.gradient not in ("", "input", "weight") or options.get("algorithm") == "direct":
        return "direct"
    shape = tuple(arrays[2]) if op.gradient == "weight" else arrays[1].shape
    square = op.family in ("conv", "conv_transpose") and shape[2:] in ((3, 3), (1, 3, 3))
    if (shape[:2] != (groups, 1) or op.gradient == "weight") and not square:
        return "direct"
    import fastconv  # the decision is no part of what the oracle needs otherwise

    decided = {k: v for k, v in options.items() if k not in ("out", "accumulate")}
    algorithm = str(fastconv.explain(name, *arrays, **decided).decision["algorithm"])
    return algorithm if algorithm in ("fft", *_WINOGRAD) else "direct"


def _spread(vector: Array, rank: int, last: bool) -> Array:
    """(C,) or (N, C) so that it broadcasts against an array with these axes."""
    ones = (1,) * rank
    return vector.reshape(*vector.shape[:-1], *ones, vector.shape[-1]) if last else vector.reshape(*vector.shape, *ones)


def _double(value: Any) -> Any:
    return value.astype(np.float64) if isinstance(value, np.ndarray) else value


_EPILOGUE = ("scale", "shift", "residual", "activation")
_PROLOGUE = ("input_scale", "input_shift", "input_activation", "input_gate")


def reference_with_bound(
    op: str, *arrays: Any, constant: float = 4.0, initial: Array | None = None, **options: Any
) -> Bounded:
    """The oracle's value of a call and the error that a direct algorithm may have in the dtype of the arrays.

    `initial` is what `out` held before a call with accumulate=True. In a forward call each of bias, scale, shift,
    residual, gate and their like on the input rounds once: half an eps of |scale| * (|conv| + |bias|) + |shift| +
    |residual|, and of the same on the input. For float64 the oracle rounds as often: each counts twice. An activation
    passes errors on by its Lipschitz constant and adds `_activation_error`.
    """
    parsed = Op.parse(op)
    function: Callable[..., Array] = getattr(reference, op)
    dtype = arrays[0].dtype
    taken = "direct" if parsed.family == "inverted_residual" else _algorithm_of(parsed, op, arrays, options)
    options = {k: _double(v) for k, v in options.items() if k not in ("out", "accumulate", "algorithm", "max_error")}
    doubles = [_double(a) for a in arrays]
    magnitudes = [np.abs(a) if isinstance(a, np.ndarray) else a for a in doubles]
    if parsed.gradient:
        # What is added into counts as one more term of the sum.
        start = 0.0 if initial is None else _double(initial)
        with np.errstate(invalid="ignore", over="ignore"):
            value = function(*doubles, **options) + start
            if taken in _WINOGRAD:
                last = options.get("layout", "NCHW")[-1] == "C"
                magnitude = function(*magnitudes, **options) + np.abs(start)
                if parsed.gradient == "weight":
                    most = winograd_weight_magnitude(parsed.family, doubles[:2], arrays[2], options, taken)
                    bound = direct_error_bound(np.abs(start) + most, dtype, _WINOGRAD[taken][1] * constant)
                else:
                    bound = winograd_error_bound(magnitude, dtype, taken, last, constant)
                if dtype == np.float64:  # the oracle's sums are direct ones
                    bound = bound + direct_error_bound(magnitude, dtype, constant)
                return Bounded(value, bound)
            if taken == "fft":
                last = options.get("layout", "NCHW")[-1] == "C"
                eps = float(np.finfo(dtype).eps)
                bound = fft_error_bound(doubles[0], doubles[1], parsed.rank, last, eps, constant)
                # The frame of another padding is folded into the image: three parts an axis at most.
                parts = 1 if options.get("padding_mode", "zeros") == "zeros" else 3**parsed.rank
                bound = parts * bound + direct_error_bound(np.abs(start) + np.abs(value), dtype, constant)
                if dtype == np.float64:  # the oracle's sums are direct ones
                    bound = bound + direct_error_bound(function(*magnitudes, **options), dtype, constant)
                return Bounded(value, bound)
            magnitude = function(*magnitudes, **options) + np.abs(start)
        return Bounded(value, direct_error_bound(magnitude, dtype, constant))

    if parsed.family == "inverted_residual":
        return _inverted_with_bound(doubles, dtype, constant, options)
    return _forward_with_bound(
        op, Bounded(doubles[0], np.zeros_like(doubles[0])), doubles[1:], dtype, constant, options, taken=taken
    )


def _forward_with_bound(
    op: str,
    given: Bounded,
    rest: Sequence[Any],
    dtype: npt.DTypeLike,
    constant: float,
    options: dict[str, Any],
    gate_error: Array | None = None,
    *,
    taken: str = "direct",
) -> Bounded:
    """Of a forward pass whose input (and gate) may have errors of their own."""
    parsed = Op.parse(op)
    function: Callable[..., Array] = getattr(reference, op)
    info = np.finfo(np.dtype(dtype))
    eps, tiny = float(info.eps), float(info.tiny)
    half = eps if np.dtype(dtype) == np.float64 else eps / 2
    epilogue = {k: options.pop(k, None) for k in _EPILOGUE}
    prologue = {k: options.pop(k, None) for k in _PROLOGUE}
    rank, last = parsed.rank, parsed.rank == 0 or options.get("layout", "NCHW")[-1] == "C"
    with np.errstate(invalid="ignore", over="ignore"):
        # The input as the product reads it, and its error.
        x, error = given
        size = np.abs(x)
        if (scale := prologue["input_scale"]) is not None:
            x, size = x * _spread(scale, rank, last), size * np.abs(_spread(scale, rank, last))
            error = error + half * size
        if (shift := prologue["input_shift"]) is not None:
            x, size = x + _spread(shift, rank, last), size + np.abs(_spread(shift, rank, last))
            error = error + half * size
        if (act := prologue["input_activation"]) is not None:
            y = reference.activate(x, act)
            error = _through(act, x, error) + _activation_error(act, x, y, eps, tiny)
            x = y
        if (gate := prologue["input_gate"]) is not None:
            own = 0.0 if gate_error is None else (np.abs(x) + error) * _spread(gate_error, rank, last)
            x, error = x * _spread(gate, rank, last), error * np.abs(_spread(gate, rank, last))
            error = error + half * np.abs(x) + own

        weight = rest[0]
        y = function(x, weight, **options)
        passed = function(error, np.abs(weight), **options) if error.any() else 0.0
        sums = np.zeros_like(y)
        if taken == "fft":
            sums += fft_error_bound(x, weight, rank, last, eps, constant)
        if taken != "fft" or dtype == np.float64:
            magnitude = function(np.abs(x), np.abs(weight), **options)
            if taken in _WINOGRAD:
                sums += winograd_error_bound(magnitude, dtype, taken, last, constant)
            if taken == "direct" or dtype == np.float64:  # the oracle's sums are direct ones
                sums += direct_error_bound(magnitude, dtype, constant)
        error = passed + sums
        # bias, scale and shift may be folded into one another beforehand: what counts is the size of the terms.
        size, roundings = np.abs(y), 0
        for name, vector in {"bias": rest[1] if len(rest) > 1 else None, **epilogue}.items():
            if vector is None or name == "activation":
                continue
            term = vector if name == "residual" else _spread(vector, rank, last)
            roundings += 1
            if name == "scale":
                y, size, error = y * term, size * np.abs(term), error * np.abs(term)
            else:
                y, size = y + term, size + np.abs(term)
        error = error + half * roundings * size
        if (act := epilogue["activation"]) is not None:
            z, y = y, reference.activate(y, act)
            error = _through(act, z, error) + _activation_error(act, z, y, eps, tiny)
    return Bounded(y, error + tiny)


def _inverted_with_bound(
    arrays: Sequence[Any], dtype: npt.DTypeLike, constant: float, options: Mapping[str, Any]
) -> Bounded:
    """Of an inverted residual: each stage passes on the errors of the one before."""
    x, expand, depthwise, project, *bias = arrays
    layout = options.get("layout", "NCHW")
    axes = (-3, -2) if layout[-1] == "C" else (-2, -1)

    def stage(u: Bounded, weight: Array, prefix: str, **more: Any) -> Bounded:
        given = {name: options.get(f"{prefix}{name}") for name in ("scale", "shift", "activation")}
        own = options.get(f"{prefix}bias") if prefix else (bias[0] if bias else None)
        return _forward_with_bound("conv2d", u, [weight, own], dtype, constant, {"layout": layout, **given, **more})

    u = Bounded(x, np.zeros_like(x))
    if expand is not None:
        u = stage(u, expand, "expand_")
    geometry = {n: options[n] for n in ("stride", "padding", "dilation", "padding_mode") if n in options}
    u = stage(u, depthwise, "depthwise_", groups=depthwise.shape[0], **geometry)
    last = {"residual": options.get("residual")}
    reduce = options.get("se_reduce_weight")
    if reduce is None:
        return stage(u, project, "", **last)
    size = np.abs(u.value).mean(axes, keepdims=True)
    gate = Bounded(
        u.value.mean(axes, keepdims=True), u.bound.mean(axes, keepdims=True) + direct_error_bound(size, dtype, constant)
    )
    for weight, name, own, default in (
        (reduce, "se_activation", "se_reduce_bias", "relu"),
        (options["se_expand_weight"], "se_gate", "se_expand_bias", "sigmoid"),
    ):
        activation = {"layout": layout, "activation": options.get(name, default)}
        gate = _forward_with_bound("conv2d", gate, [weight, options.get(own)], dtype, constant, activation)
    scale, error = (a.reshape(*u.value.shape[: u.value.ndim - 3], -1) for a in gate)
    final = {name: options.get(name) for name in ("scale", "shift", "activation")}
    final |= {"layout": layout, "input_gate": scale, **last}
    return _forward_with_bound("conv2d", u, [project, *bias], dtype, constant, final, error)


def assert_within(y: Array, expected: Bounded, what: str = "result", *, stray: float = 1.0) -> None:
    """Fail unless every element is within its bound, and NaN and infinite where the reference is.

    One element in a million, rounded up, may reach `stray` times its bound.
    """
    value, bound = expected
    assert y.shape == value.shape, f"{what}: shape {y.shape} instead of {value.shape}"
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = value.astype(y.dtype)
        same = (y == rounded) | (np.isnan(y) & np.isnan(rounded))
        # A NaN in the comparison is a failure: hence "not less or equal". Beside an infinity nothing is close.
        wrong = ~same & ~(np.isfinite(value) & (np.abs(y - value) <= bound))
    if wrong.any():
        with np.errstate(invalid="ignore", divide="ignore"):
            excess = np.nan_to_num(np.where(wrong, np.abs(y - value) / bound, 0), nan=np.inf)
        if not too_far(excess, stray):
            return
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} elements exceed their bound; at {tuple(map(int, worst))} "
            f"{y[worst]!r} instead of {value[worst]!r}, {excess[worst]:.3g} times the bound of {bound[worst]:.3g}"
        )


def assert_close_to_reference(
    y: Array, op: str, *arrays: Any, constant: float = 4.0, initial: Array | None = None, **options: Any
) -> None:
    """Fail unless y, the result of op(*arrays, **options), is within the bound of a direct algorithm."""
    assert y.dtype == arrays[0].dtype, f"{op}: dtype {y.dtype} instead of {arrays[0].dtype}"
    total = constant * oracle_factor(y.dtype)
    expected = reference_with_bound(op, *arrays, constant=total, initial=initial, **options)
    assert_within(y, expected, op, stray=stray_factor(y.size, constant))


def observed_constant(y: Array, op: str, *arrays: Any, **options: Any) -> float:
    """The largest |y - y64| / (eps * conv(|x|, |w|)) of a plain call, without prologue and epilogue."""
    expected = reference_with_bound(op, *arrays, constant=1.0, **options)
    return float(np.max(np.abs(y - expected.value) / expected.bound, initial=0.0))


# -------------------------------------------------------------------------------------------------- guarded memory


class Guarded:
    """An array inside a larger buffer of NaN. `check()` fails if a byte changed that the array does not own."""

    def __init__(self, shape: Sequence[int], dtype: npt.DTypeLike, strides: Sequence[int] | None, margin: int) -> None:
        dt = np.dtype(dtype)
        if strides is None:
            strides = np.empty(tuple(shape), np.int8).strides
        spans = [(n - 1) * s if n else 0 for n, s in zip(shape, strides, strict=True)]
        below, above = -sum(s for s in spans if s < 0), sum(s for s in spans if s > 0)
        poison: Array = np.full(below + above + 1 + 2 * margin, np.nan, dt)
        self._bytes = poison.view(np.uint8)
        self.array: Array = np.ndarray(
            tuple(shape), dt, poison, (margin + below) * dt.itemsize, tuple(s * dt.itemsize for s in strides)
        )
        owned: Array = np.ones(poison.size, np.bool_)
        np.ndarray(tuple(shape), np.bool_, owned, margin + below, tuple(strides))[...] = False
        self._foreign = np.repeat(owned, dt.itemsize)
        self._before = self._bytes.copy()

    def check(self, *, unchanged: bool = False) -> None:
        """Fail if a foreign byte changed; with unchanged=True, if any byte changed since `freeze`."""
        changed = self._bytes != self._before
        foreign = changed & self._foreign
        assert not foreign.any(), f"{int(foreign.sum())} bytes outside the array were written"
        if unchanged:
            assert not changed.any(), f"{int(changed.sum())} bytes of an operand that is only read were written"

    def freeze(self) -> None:
        """Take the present contents as what `check(unchanged=True)` compares with."""
        self._before = self._bytes.copy()


def guarded(
    shape: Sequence[int],
    dtype: npt.DTypeLike = np.float32,
    *,
    strides: Sequence[int] | None = None,
    values: Array | None = None,
    margin: int = 64,
) -> Guarded:
    """An uninitialised (NaN) array of this shape, with strides in elements, inside a poisoned buffer.

    A read outside the array brings a NaN into the result; a write is found by `check()`. `margin` elements lie before
    and after. With `values` the array holds a copy of them.
    """
    result = Guarded(shape, dtype, strides, margin)
    if values is not None:
        result.array[...] = values
        result.freeze()
    return result


def guarded_copy(array: Array, *, margin: int = 64) -> Guarded:
    """A guarded array with the values and the strides of this one."""
    strides = tuple(s // array.itemsize for s in array.strides)
    if 0 in strides:  # several indices share an element: the values are taken through a contiguous copy instead
        return guarded(array.shape, array.dtype, values=array, margin=margin)
    return guarded(array.shape, array.dtype, strides=strides, values=array, margin=margin)


def page_guarded(array: Array, where: str = "after") -> Array:
    """A copy with the same order of axes in memory that ends ("after") or begins ("before") at a forbidden page.

    Any access beyond that end, a read too, ends the process with SIGSEGV: run it in a process of its own. The memory
    lives as long as the process.
    """
    page = mmap.PAGESIZE
    inner = max(1, -(-array.nbytes // page)) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    _keep.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for start in (base, base + page + inner):
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (inner - array.nbytes if where == "after" else 0)
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flat: Array = np.frombuffer(memory, array.dtype, array.size, offset)
    result = flat.reshape([array.shape[axis] for axis in order]).transpose(np.argsort(order))
    result[...] = array
    return result


_keep: list[mmap.mmap] = []


# ---------------------------------------------------------------------------------------------- pairs of options


def all_pairs(table: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """A small list of choices in which every two values of every two options meet at least once (greedy, seeded)."""
    names = sorted(table, key=lambda n: -len(table[n]))
    rng = np.random.default_rng(seed)
    missing: dict[tuple[int, int], Array] = {
        (a, b): np.ones((len(table[names[a]]), len(table[names[b]])), np.bool_)
        for a, b in itertools.combinations(range(len(names)), 2)
    }
    rows: list[dict[str, Any]] = []
    if len(names) == 1:
        return [{names[0]: v} for v in table[names[0]]]
    while missing:
        # Start from a pair that is not yet covered, then give each other option the value that covers most.
        (a, b), grid = max(missing.items(), key=lambda item: int(item[1].sum()))
        i, j = np.argwhere(grid)[rng.integers(int(grid.sum()))]
        chosen = {a: int(i), b: int(j)}
        for n in range(len(names)):
            if n in chosen:
                continue
            gain: Array = rng.random(len(table[names[n]]))  # below 1: decides ties alone
            for m, v in chosen.items():
                if m < n and (m, n) in missing:
                    gain = gain + missing[m, n][v]
                elif m > n and (n, m) in missing:
                    gain = gain + missing[n, m][:, v]
            chosen[n] = int(np.argmax(gain))
        for (a, b), grid in list(missing.items()):
            grid[chosen[a], chosen[b]] = False
            if not grid.any():
                del missing[a, b]
        rows.append({names[n]: table[names[n]][v] for n, v in sorted(chosen.items())})
    return rows


def _option_values(rank: int, family: str, gradient: str) -> dict[str, Sequence[Any]]:
    """The values to try of every parameter that a function of this family may have."""
    names = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}.get(rank, ("NCHW", "NHWC"))
    yes_no = (False, True)
    return {
        "stride": (1, 2, (2, 3, 1)[:rank]),
        "padding": (0, 1, (1, 2, 0)[:rank], ((0, 1), (2, 0), (1, 1))[:rank], "valid", "same", "same_lower"),
        "output_padding": ("none", "largest"),
        "dilation": (1, 2, (1, 3, 2)[:rank]),
        "groups": (1, 2, "depthwise"),
        "padding_mode": ("zeros", "reflect", "replicate", "circular"),
        "layout": tuple(dict.fromkeys(("NCHW", "NHWC", *names))),
        "bias": yes_no,
        "scale": yes_no,
        "shift": yes_no,
        "residual": yes_no,
        "activation": ACTIVATIONS,
        "input_scale": yes_no,
        "input_shift": yes_no,
        "input_activation": ACTIVATIONS,
        "input_gate": yes_no,
        # A weight gradient goes to a contiguous array, the others anywhere.
        "out": (None, "contiguous") if gradient in ("weight", "bias") else (None, "contiguous", "reordered", "strided"),
        # "fft" serves few of the cases: tests/test_fft.py has its own.
        "algorithm": ("auto", "direct"),
        # Far above all direct sums here, and below most of Winograd's bounds.
        "max_error": (None, 3000.0),
        "precision": ("strict", "tf32x3", "tf32"),
        "accumulate": (None, "all") if gradient == "all" else yes_no,
        "needs": (("input", "weight", "bias"), ("input",), ("weight", "bias"), ("bias", "input")),
    }


# Parameters that hold the operands themselves.
_OPERANDS = {"x", "weight", "dy", "input_shape", "weight_shape"}
_OPERANDS |= {"expand_weight", "depthwise_weight", "project_weight"}
# Of an inverted residual: the channels of its input, expansion (None: there is none) and output, and the kernels.
_INVERTED_CHANNELS = ((1, 1, 1), (3, 7, 5), (8, 48, 16), (5, 20, 5), (6, None, 9), (32, None, 32))
_INVERTED_KERNELS = ((1, 1), (3, 3), (5, 5), (2, 3), (4, 5))


def option_table(op: str, functional: ModuleType) -> dict[str, Sequence[Any]]:
    """The values to try of each option in the signature of functional.<op>, and of what the operands can be.

    A parameter that is not known here is an error: a new option needs values before the tests can cover it.
    """
    parsed = Op.parse(op)
    values = _option_values(parsed.rank, parsed.family, parsed.gradient)
    inverted = parsed.family == "inverted_residual"
    if inverted:
        for prefix in ("expand", "depthwise"):
            values |= {f"{prefix}_{name}": values[name] for name in ("bias", "scale", "shift", "activation")}
        values |= dict.fromkeys(("se_reduce_weight", "se_reduce_bias", "se_expand_bias"), (False, True))
        values |= {"se_expand_weight": ("as se_reduce_weight",), "se_activation": ACTIVATIONS, "se_gate": ACTIVATIONS}
    table: dict[str, Sequence[Any]] = {}
    for name in inspect.signature(getattr(functional, op)).parameters:
        if name not in _OPERANDS:
            table[name] = values[name]
    table["dtype"] = (np.float32, np.float64)
    table["batch"] = (None, 1, 3)
    table["x_memory"] = ("contiguous", "reordered", "strided", "negative", "broadcast")
    table["channels"] = ((1, 1), (3, 5), (8, 16), (5, 19))  # of the input and of the output, a group
    if inverted:
        table["channels"] = _INVERTED_CHANNELS
    if parsed.gradient != "bias":
        table["weight_memory"] = ("contiguous", "reordered", "negative")
    if parsed.rank and parsed.gradient != "bias":
        table["kernel"] = (
            _INVERTED_KERNELS
            if inverted
            else ((1, 1, 1), (3, 3, 3), (2, 3, 1), (4, 5) if parsed.rank < 3 else (2, 3, 4))
        )
    return table


_SIZES = {1: (23,), 2: (11, 13), 3: (5, 8, 9)}


@dataclass(frozen=True)
class Case:
    """One call: the operands and options, resolved from a row of `all_pairs`."""

    op: str
    arrays: tuple[Any, ...]
    options: dict[str, Any]
    out_memory: str | None = None
    initial: dict[str, Array] = field(default_factory=dict)
    """What `out` (under "out"), or each gradient that is added into, holds before the call."""

    def call(self, module: ModuleType) -> Any:
        """The result of the module's function, with a fresh `out` each time."""
        options = dict(self.options)
        if self.out_memory is not None:
            options["out"] = as_memory(self.initial["out"], self.out_memory)
        if options.get("accumulate") == "all":
            options["accumulate"] = {name: a.copy() for name, a in self.initial.items()}
        result = getattr(module, self.op)(*self.arrays, **options)
        if self.out_memory is not None:
            assert result is options["out"], f"{self.op} must return out"
        if isinstance(options.get("accumulate"), dict):
            for name, a in options["accumulate"].items():
                assert getattr(result, name) is a, f"{self.op} must return the {name} that it adds into"
        return result

    def check(self, result: Any, constant: float = 4.0) -> None:
        """Fail unless the result is within its bound."""
        parsed = Op.parse(self.op)
        if parsed.gradient != "all":
            initial = self.initial["out"] if self.options.get("accumulate") else None
            assert_close_to_reference(result, self.op, *self.arrays, constant=constant, initial=initial, **self.options)
            return
        dy, x, weight = self.arrays
        options = {k: v for k, v in self.options.items() if k not in ("needs", "accumulate")}
        layout = {k: v for k, v in options.items() if k == "layout"}
        shapes = () if parsed.family == "linear" else (x.shape,), () if parsed.family == "linear" else (weight.shape,)
        operands = {"input": (dy, weight, *shapes[0]), "weight": (dy, x, *shapes[1]), "bias": (dy,)}
        for name, args in operands.items():
            gradient = getattr(result, name)
            if name not in self.options["needs"]:
                assert gradient is None, f"{self.op} must leave {name} None"
                continue
            initial = self.initial.get(name) if self.options.get("accumulate") else None
            o = layout if name == "bias" else options
            assert_close_to_reference(gradient, f"{self.op}_{name}", *args, constant=constant, initial=initial, **o)

    def with_options(self, **options: Any) -> Case:
        """The same case with other options."""
        return replace(self, options={**self.options, **options})


def _largest_output_padding(stride: Any, dilation: Any, rank: int) -> tuple[int, ...]:
    def each(v: Any) -> tuple[int, ...]:
        return tuple(v) if isinstance(v, tuple) else (v,) * rank

    return tuple(max(s, d) - 1 for s, d in zip(each(stride), each(dilation), strict=True))


def make_case(op: str, choice: Mapping[str, Any], seed: int = 0) -> Case:
    """The call that a row of `all_pairs(option_table(op, functional))` describes, with seeded He-scaled data."""
    parsed = Op.parse(op)
    if parsed.family == "inverted_residual":
        return _make_inverted_case(op, choice, seed)
    rng = np.random.default_rng(seed)
    choice = dict(choice)
    dtype = choice.pop("dtype")
    c, k = choice.pop("channels")
    batch = choice.pop("batch")
    x_memory, w_memory = choice.pop("x_memory"), choice.pop("weight_memory", "contiguous")
    kernel = choice.pop("kernel", (3, 3, 3))[: parsed.rank]
    out_memory = choice.pop("out", None)
    has_bias = choice.pop("bias", False)
    last = choice.get("layout", "NCHW")[-1] == "C"
    groups = choice.get("groups", 1)
    if groups == "depthwise":
        groups, c, k = (4 if c < 8 else 12), 1, (1 if k < 8 else 2)
    c, k = c * groups, k * groups
    if "groups" in choice:
        choice["groups"] = groups
    if choice.get("output_padding") == "largest":
        choice["output_padding"] = _largest_output_padding(choice["stride"], choice["dilation"], parsed.rank)
    elif "output_padding" in choice:
        choice["output_padding"] = 0

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    def spatial(channels: int, size: Sequence[int]) -> tuple[int, ...]:
        axes = (*size, channels) if last else (channels, *size)
        return axes if batch is None else (batch, *axes)

    def lay(array: Array, kind: str) -> Array:
        if parsed.rank == 0:
            return as_memory(array, kind)
        if kind == "reordered" and last:
            kind = "reordered_last"
        # Memory orders are described with a batch axis; without one they act behind an axis of length 1.
        return as_memory(array[np.newaxis], kind)[0] if batch is None else as_memory(array, kind)

    if parsed.family == "linear":
        lead = {None: (), 1: (1,), 3: (2, 3)}[batch]
        x, w = normal(*lead, c), normal(k, c)
    else:
        x = normal(*spatial(c, _SIZES[parsed.rank]))
        w = normal(*((c, k // groups) if parsed.family == "conv_transpose" else (k, c // groups)), *kernel)
    w *= dtype(math.sqrt(2 * groups / (c * math.prod(kernel))))
    # A weight gradient of two operands that repeat themselves adds one product many times over: its roundings all point
    # one way, and the bound's constant is for errors that do not. There dy alone repeats.
    dy_repeats = x_memory == "broadcast" and parsed.gradient in ("weight", "all")
    x, w = lay(x, "contiguous" if dy_repeats else x_memory), as_memory(w, w_memory)

    # The output's shape comes from the reference: its options are those of the forward call.
    forward = op.split("_backward")[0]
    geometry = {
        n: choice[n]
        for n in ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding", "layout")
        if n in choice
    }
    y_shape = getattr(reference, forward)(x, w, **geometry).shape
    initial: dict[str, Array] = {}
    if not parsed.gradient:
        for name in ("scale", "shift"):
            if name in choice:
                choice[name] = normal(k) if choice[name] else None
        for name in ("input_scale", "input_shift"):
            if name in choice:
                choice[name] = normal(c) if choice[name] else None
        if "input_gate" in choice:
            gate = rng.random((c,) if batch is None else (batch, c)).astype(dtype)
            choice["input_gate"] = gate if choice["input_gate"] else None
        if choice.pop("residual"):
            choice["residual"] = lay(normal(*y_shape), "contiguous" if x_memory == "broadcast" else x_memory)
        arrays: tuple[Any, ...] = (x, w, normal(k)) if has_bias else (x, w)
        initial = {"out": normal(*y_shape)}
    else:
        dy = normal(*y_shape)
        if x_memory == "broadcast" and parsed.gradient in ("bias", "all"):
            dy = np.rint(4 * dy) / 4  # the bias gradient adds one value many times over: it is to be exact
        dy = lay(dy, x_memory)
        shaped = parsed.family != "linear"
        arrays = {
            "input": (dy, w, x.shape) if shaped else (dy, w),
            "weight": (dy, x, w.shape) if shaped else (dy, x),
            "bias": (dy,),
            "all": (dy, x, w),
        }[parsed.gradient]
        results = {"input": normal(*x.shape), "weight": normal(*w.shape), "bias": normal(k)}
        if parsed.gradient != "all":
            initial = {"out": results[parsed.gradient]}
            if choice["accumulate"] and out_memory is None:
                out_memory = "contiguous"
        elif choice["accumulate"] == "all":
            initial = {name: results[name] for name in choice["needs"]}
    if out_memory == "reordered" and last:
        out_memory = "reordered_last"
    if out_memory is not None and (batch is None or parsed.rank == 0) and out_memory != "contiguous":
        out_memory = "strided" if initial["out"].ndim > 1 else "contiguous"
    return Case(op, arrays, choice, out_memory, initial)


def _make_inverted_case(op: str, choice: Mapping[str, Any], seed: int) -> Case:
    rng = np.random.default_rng(seed)
    choice = dict(choice)
    dtype, batch, kernel = choice.pop("dtype"), choice.pop("batch"), choice.pop("kernel")
    x_memory, w_memory, out_memory = choice.pop("x_memory"), choice.pop("weight_memory"), choice.pop("out")
    c, wide, k = choice.pop("channels")
    expanded = c if wide is None else wide
    last = choice["layout"][-1] == "C"

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    def weight(*shape: int) -> Array:
        return as_memory(normal(*shape) * dtype(math.sqrt(2 / math.prod(shape[1:]))), w_memory)

    def lay(array: Array, kind: str) -> Array:
        kind = "reordered_last" if kind == "reordered" and last else kind
        return as_memory(array[np.newaxis], kind)[0] if batch is None else as_memory(array, kind)

    axes = (*_SIZES[2], c) if last else (c, *_SIZES[2])
    x = lay(normal(*axes if batch is None else (batch, *axes)), x_memory)
    weights = (None if wide is None else weight(wide, c, 1, 1), weight(expanded, 1, *kernel), weight(k, expanded, 1, 1))
    lengths = {"expand": expanded, "depthwise": expanded, "": k}
    for prefix, length in lengths.items():
        for name in ("scale", "shift", "bias"):
            full = f"{prefix}_{name}" if prefix else name
            absent = (prefix == "expand" and wide is None) or not choice[full]
            choice[full] = None if absent else normal(length)
    squeezed = choice["se_reduce_weight"]
    reduced = max(1, expanded // 4)
    choice["se_reduce_weight"] = weight(reduced, expanded, 1, 1) if squeezed else None
    choice["se_expand_weight"] = weight(expanded, reduced, 1, 1) if squeezed else None
    for name, length in (("se_reduce_bias", reduced), ("se_expand_bias", expanded)):
        choice[name] = normal(length) if squeezed and choice[name] else None
    geometry = {n: choice[n] for n in ("stride", "padding", "dilation", "padding_mode", "layout")}
    shape = reference.inverted_residual(x, *weights, **geometry).shape
    residual = choice.pop("residual")
    if residual:
        choice["residual"] = lay(normal(*shape), "contiguous" if x_memory == "broadcast" else x_memory)
    own = choice.pop("bias")
    arrays = (x, *weights) if own is None else (x, *weights, own)
    if out_memory == "reordered" and last:
        out_memory = "reordered_last"
    if out_memory not in (None, "contiguous") and batch is None:
        out_memory = "strided"
    return Case(op, arrays, choice, out_memory, {"out": normal(*shape)})


def cases(op: str, functional: ModuleType, seed: int = 0) -> Iterator[Case]:
    """Every case of the all-pairs table of an operation."""
    for i, choice in enumerate(all_pairs(option_table(op, functional), seed)):
        yield make_case(op, choice, seed=i)


# ---------------------------------------------------------------------------------------------------- layer tables


@dataclass(frozen=True)
class Layer:
    """A layer of a published network. Shapes are (N, C, ...) and as the function's weight."""

    net: str
    name: str
    op: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    options: dict[str, Any]
    count: int = 1

    @property
    def multiply_adds(self) -> int:
        """Of one call; for a transposed convolution before its output is cropped."""
        if self.op.startswith("conv_transpose"):
            return math.prod(self.input_shape) * math.prod(self.weight_shape[1:])
        return math.prod(self.output_shape) * math.prod(self.weight_shape[1:])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the result, with axes (N, C, ...)."""
        size, kernel, o = self.input_shape[2:], self.weight_shape[2:], self.options
        steps = zip(size, kernel, o["stride"], o["padding"], strict=True)
        d, extra = o["dilation"], o.get("output_padding", 0)
        if self.op.startswith("conv_transpose"):
            spatial = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + extra for n, k, s, p in steps]
            return (self.input_shape[0], self.weight_shape[1] * o["groups"], *spatial)
        return (
            self.input_shape[0],
            self.weight_shape[0],
            *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p in steps),
        )

    def data(self, dtype: npt.DTypeLike = np.float32, *, layout: str = "NCHW", seed: int = 0) -> tuple[Array, Array]:
        """He-scaled (x, weight), x in the axes of the layout and C-contiguous."""
        fan_in = self.input_shape[1] // self.options["groups"] * math.prod(self.weight_shape[2:])
        x, w = he_data(self.input_shape, self.weight_shape, dtype, seed=seed, post_relu=True, fan_in=fan_in)
        return (np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout[-1] == "C" else x), w


def _numbers(row: Mapping[str, str], *names: str) -> tuple[int, ...]:
    return tuple(int(row[name]) for name in names)


def _layer(table: str, row: Mapping[str, str]) -> Layer:
    name, _, count = row["layer"].partition("*")
    n, dil, groups = _numbers(row, "n", "dil", "groups")
    options: dict[str, Any] = {"dilation": dil, "groups": groups}
    if table == "conv3d":
        c, k, *size = _numbers(row, "c", "k", "d", "h", "w")
        kernel = _numbers(row, "kd", "r", "s")
        options |= {"stride": _numbers(row, "stride_d", "stride_h", "stride_w")}
        options |= {"padding": _numbers(row, "pad_d", "pad_h", "pad_w")}
    elif table == "conv1d":
        c, k, *size = _numbers(row, "c", "k", "w")
        kernel = _numbers(row, "s")
        options |= {"stride": _numbers(row, "stride"), "padding": _numbers(row, "pad")}
    else:
        transposed = table == "conv_transpose"
        c, k = _numbers(row, *(("c_in", "c_out") if transposed else ("c", "k")))
        size, kernel = list(_numbers(row, "h", "w")), _numbers(row, "r", "s")
        # "PHxPW" where the padding differs by axis.
        pads = [int(p) for p in row["pad"].split("x")]
        options |= {"stride": _numbers(row, "stride", "stride"), "padding": tuple(pads * 2)[:2]}
        if transposed:
            options |= {"output_padding": int(row["output_padding"])}
        if row["net"].endswith("(1d)"):
            size, kernel = size[1:], kernel[1:]
            options |= {"stride": options["stride"][1:], "padding": options["padding"][1:]}
    op = f"{'conv_transpose' if table == 'conv_transpose' else 'conv'}{len(size)}d"
    channels = (c, k // groups) if table == "conv_transpose" else (k, c // groups)
    net = row["net"].removesuffix("(1d)")
    return Layer(net, name, op, (n, c, *size), (*channels, *kernel), options, int(count or 1))


def layers(table: str) -> list[Layer]:
    """The layers of a table: "conv1d", "conv2d", "conv3d" or "conv_transpose"."""
    source = importlib.resources.files("fastconv") / "bench" / "shapes" / f"{table}.csv"
    with contextlib.closing(source.open(encoding="utf-8")) as file:
        return [_layer(table, row) for row in csv.DictReader(file)]
