"""Convolution in plain NumPy: the same names, signatures and defaults as `fastconv.functional`.

In float64 it is the oracle of the tests, in float32 the baseline of the benchmark. The forward pass and the weight
gradient are `sliding_window_view` and one BLAS product; the input gradient is one BLAS product a kernel tap. It works
in the dtype it is given and returns new C-contiguous arrays. The mathematics is documented in `fastconv.functional`.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

__all__ = [
    "Activation",
    "ConvGradients",
    "activate",
    "conv1d",
    "conv1d_backward",
    "conv1d_backward_bias",
    "conv1d_backward_input",
    "conv1d_backward_weight",
    "conv2d",
    "conv2d_backward",
    "conv2d_backward_bias",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "conv3d",
    "conv3d_backward",
    "conv3d_backward_bias",
    "conv3d_backward_input",
    "conv3d_backward_weight",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose1d_backward_bias",
    "conv_transpose1d_backward_input",
    "conv_transpose1d_backward_weight",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose2d_backward_bias",
    "conv_transpose2d_backward_input",
    "conv_transpose2d_backward_weight",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "conv_transpose3d_backward_bias",
    "conv_transpose3d_backward_input",
    "conv_transpose3d_backward_weight",
    "linear",
    "linear_backward",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
]

Array = npt.NDArray[Any]
Activation = str | tuple[str, float] | tuple[str, float, float] | None
Ints = int | Sequence[int]
Padding = int | str | Sequence[int | tuple[int, int]]
Pairs = list[tuple[int, int]]

P = ParamSpec("P")
R = TypeVar("R")

# The windows are copied for the product; past this size they are copied and multiplied in blocks of output rows.
_COLUMN_BYTES = 1 << 26

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_CHANNELS_LAST = {"NCHW": False, "NCL": False, "NCDHW": False, "NHWC": True, "NLC": True, "NDHWC": True}

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


class ConvGradients(NamedTuple):
    """The gradients of a layer; None where one was not asked for."""

    input: Array | None
    weight: Array | None
    bias: Array | None


# ---------------------------------------------------------------------------------------------------- activations


def _sigmoid(x: Array) -> Array:
    # exp of a negative number alone: nothing overflows, and both tails keep their relative accuracy.
    e = np.exp(-np.abs(x))
    result: Array = np.where(x < 0, e, 1) / (1 + e)
    return result


def _hardsigmoid(x: Array) -> Array:
    result: Array = np.clip(x + 3, 0, 6) / 6
    return result


def _gelu(x: Array) -> Array:
    # erfc keeps the negative tail, where 1 + erf cancels; NumPy has neither.
    tail: Array = 0.5 * _erfc(x.astype(np.float64) / -math.sqrt(2.0)) if x.size else np.ones(x.shape)
    return (x * tail).astype(x.dtype)


def activate(x: Array, activation: Activation) -> Array:
    """The activation function of that name, element by element, in the dtype of x."""
    if activation is None:
        return x
    name, *parameters = (activation,) if isinstance(activation, str) else activation
    match name:
        case "relu":
            return np.maximum(x, 0)
        case "relu6":
            return np.clip(x, 0, 6)
        case "leaky_relu":
            slope = x.dtype.type(parameters[0] if parameters else 0.01)
            return np.where(x < 0, slope * x, x)
        case "silu":
            return x * _sigmoid(x)
        case "hardswish":
            return x * _hardsigmoid(x)
        case "sigmoid":
            return _sigmoid(x)
        case "hardsigmoid":
            return _hardsigmoid(x)
        case "tanh":
            return np.tanh(x)
        case "gelu":
            return _gelu(x)
        case "gelu_tanh":  # 0.5 * (1 + tanh(u)) is sigmoid(2 u)
            return x * _sigmoid(x.dtype.type(2 * math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x**3))
        case "clip":
            lower, upper = parameters
            return np.clip(x, x.dtype.type(lower), x.dtype.type(upper))
    raise ValueError(f"activation (={activation!r}) is not known")


# ------------------------------------------------------------------------------------------------------- arguments


def _each(name: str, value: Ints, rank: int) -> tuple[int, ...]:
    """One integer a spatial dimension."""
    values = tuple(operator.index(v) for v in value) if isinstance(value, Sequence) else (operator.index(value),) * rank
    if len(values) != rank:
        raise ValueError(f"{name} (={value}) must be one integer or one for each of the {rank} dimensions")
    return values


def _pairs(padding: Padding, rank: int) -> Pairs:
    """Explicit padding as (before, after), one pair a spatial dimension."""
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise ValueError(f'padding (={padding!r}) must be numbers, "valid", "same" or "same_lower"')
    each = (int(padding),) * rank if isinstance(padding, (int, np.integer)) else padding
    if len(each) != rank:
        raise ValueError(f"padding (={padding}) must have one entry for each of the {rank} dimensions")
    return [(int(p), int(p)) if isinstance(p, (int, np.integer)) else (p[0], p[1]) for p in each]


def _halves(padding: str, totals: Sequence[int]) -> Pairs:
    """Split "same" padding: the odd one after, or before for "same_lower"."""
    return [(t - t // 2, t // 2) if padding == "same_lower" else (t // 2, t - t // 2) for t in totals]


class _Geometry(NamedTuple):
    """A plain convolution: `full` is its padded input, `small` its output. A transposed one maps small to full."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pairs  # on the large side; negative where a transposed output is longer than what the kernel reaches
    large: tuple[int, ...]
    small: tuple[int, ...]

    @property
    def full(self) -> tuple[int, ...]:
        return tuple(n + before + after for n, (before, after) in zip(self.large, self.padding, strict=True))


def _geometry(
    size: Sequence[int], kernel: Sequence[int], stride: Ints, padding: Padding, dilation: Ints, padding_mode: str
) -> _Geometry:
    rank = len(size)
    s, d = _each("stride", stride, rank), _each("dilation", dilation, rank)
    reach = [b * (k - 1) + 1 for k, b in zip(kernel, d, strict=True)]
    if padding in ("same", "same_lower"):
        totals = [max((-(-n // a) - 1) * a + e - n, 0) for n, a, e in zip(size, s, reach, strict=True)]
        pads = _halves(str(padding), totals)
    else:
        pads = _pairs(padding, rank)
    for n, pad in zip(size, pads, strict=True):
        limit = {"reflect": n - 1, "circular": n}.get(padding_mode)
        if limit is not None and max(pad) > limit:
            raise ValueError(f"padding (={padding}) must be at most {limit} in mode {padding_mode!r} for a size of {n}")
    small = tuple((n + sum(p) - e) // a + 1 for n, p, e, a in zip(size, pads, reach, s, strict=True))
    if min(small) < 1:
        raise ValueError(f"the dilated kernel {tuple(reach)} must not exceed the padded input of {tuple(size)}")
    return _Geometry(s, d, pads, tuple(size), small)


def _geometry_transposed(
    size: Sequence[int], kernel: Sequence[int], stride: Ints, padding: Padding, output_padding: Ints, dilation: Ints
) -> _Geometry:
    rank = len(size)
    s, d = _each("stride", stride, rank), _each("dilation", dilation, rank)
    extra = _each("output_padding", output_padding, rank)
    if any(e and e >= max(a, b) for e, a, b in zip(extra, s, d, strict=True)):
        raise ValueError(f"output_padding (={output_padding}) must be smaller than stride or dilation")
    reach = [b * (k - 1) + 1 for k, b in zip(kernel, d, strict=True)]
    full = [(n - 1) * a + e + o for n, a, e, o in zip(size, s, reach, extra, strict=True)]
    if padding in ("same", "same_lower"):
        large = tuple(n * a for n, a in zip(size, s, strict=True))
        pads = _halves(str(padding), [max(f - n, 0) for f, n in zip(full, large, strict=True)])
        # A kernel shorter than its stride does not reach the last outputs: they hold the bias alone.
        pads = [(b, a + min(f - n, 0)) for (b, a), f, n in zip(pads, full, large, strict=True)]
    else:
        pads = _pairs(padding, rank)
        large = tuple(f - sum(p) for f, p in zip(full, pads, strict=True))
    if min(large) < 1:
        raise ValueError(f"padding (={padding}) must leave an output, not {large}")
    return _Geometry(s, d, pads, large, tuple(size))


def _last(layout: str) -> bool:
    if layout not in _CHANNELS_LAST:
        raise ValueError(f"layout (={layout!r}) must be one of {', '.join(_CHANNELS_LAST)}")
    return _CHANNELS_LAST[layout]


def _inward(name: str, a: Array, rank: int, last: bool) -> Array:
    """The array as a view with axes (N, C, ...)."""
    if a.ndim == rank + 1:
        a = a[np.newaxis]
    if a.ndim != rank + 2:
        raise ValueError(f"{name} (shape {a.shape}) must have {rank + 2} dimensions, or {rank + 1} without a batch")
    return np.moveaxis(a, -1, 1) if last else a


def _outward(a: Array, batched: bool, last: bool) -> Array:
    """Back from axes (N, C, ...) to those of the caller."""
    a = np.moveaxis(a, 1, -1) if last else a
    return a if batched else a[0]


def _deliver(result: Array, out: Array | None, accumulate: bool = False) -> Array:
    if out is None:
        if accumulate:
            raise ValueError("accumulate (=True) needs out, the array to add into")
        return np.ascontiguousarray(result)
    if out.shape != result.shape:
        raise ValueError(f"out (shape {out.shape}) must have shape {result.shape}")
    if out.dtype != result.dtype:
        raise TypeError(f"out (dtype {out.dtype}) must have dtype {result.dtype}")
    if accumulate:
        out += result
    else:
        out[...] = result
    return out


def _check(first: Array, /, **others: Array | None) -> None:
    if first.dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype (={first.dtype}) must be float32 or float64")
    for name, a in others.items():
        if a is not None and a.dtype != first.dtype:
            raise TypeError(f"{name} (dtype {a.dtype}) must have the dtype of the first operand, {first.dtype}")


def _check_channels(channels: int, others: int, groups: int, weight_shape: Sequence[int], rank: int) -> None:
    """`channels` of the operand that the weight's second axis counts a group at a time, `others` of its first axis."""
    if len(weight_shape) != rank + 2:
        raise ValueError(f"weight (shape {tuple(weight_shape)}) must have {rank + 2} dimensions")
    if groups < 1 or channels % groups or others % groups:
        raise ValueError(f"groups (={groups}) must divide the channels (={channels}, {others})")
    if tuple(weight_shape[:2]) != (others, channels // groups):
        raise ValueError(f"weight (shape {tuple(weight_shape)}) must begin with {(others, channels // groups)}")


# -------------------------------------------------------------- the three products, on arrays with axes (N, C, ...)


def _blocks(windows: Array, rank: int) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of rows of the windows, so that a copy of each stays below _COLUMN_BYTES."""
    images, rows = windows.shape[0], windows.shape[2]
    row_bytes = max(windows[:1, :, :1].size * windows.itemsize, 1)
    n = max(1, min(images, _COLUMN_BYTES // (row_bytes * rows)))
    p = max(1, min(rows, _COLUMN_BYTES // row_bytes)) if n == 1 else rows
    for i in range(0, images, n):
        for j in range(0, rows, p):
            yield slice(i, i + n), slice(j, j + p)


def _windows(x: Array, kernel: Sequence[int], g: _Geometry) -> Array:
    """A view (N, C, P, Q, ..., R, S, ...) of the padded input: what every output pixel sees."""
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, g.dilation, strict=True))
    view = sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    pixels = tuple(slice(0, (p - 1) * s + 1, s) for p, s in zip(g.small, g.stride, strict=True))
    taps = tuple(slice(None, None, d) for d in g.dilation)
    return view[(slice(None), slice(None), *pixels, *taps)]


def _columns(windows: Array, groups: int, rank: int, last: bool) -> Array:
    """The windows as matrices: (N, G, C/G * taps, pixels), or with channels last (N, G, pixels, taps * C/G)."""
    n, c = windows.shape[:2]
    pixels, taps = windows.shape[2 : 2 + rank], windows.shape[2 + rank :]
    split = windows.reshape(n, groups, c // groups, *pixels, *taps) if groups > 1 else windows[:, np.newaxis]
    p, t = tuple(range(3, 3 + rank)), tuple(range(3 + rank, 3 + 2 * rank))
    if last:
        return split.transpose(0, 1, *p, *t, 2).reshape(n, groups, math.prod(pixels), -1)
    return split.transpose(0, 1, 2, *t, *p).reshape(n, groups, -1, math.prod(pixels))


def _weight_matrix(weight: Array, groups: int, last: bool) -> Array:
    """The weight as (G, K/G, terms) in the order of the columns' terms."""
    if last:
        weight = np.moveaxis(weight, 1, -1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _fprop(x: Array, weight: Array, g: _Geometry, groups: int, last: bool) -> Array:
    """y[n, k, p] = sum over c, r of x[n, c, p * stride + r * dilation] * weight[k, c, r]."""
    rank, k = len(g.small), weight.shape[0]
    windows = _windows(x, weight.shape[2:], g)
    matrix = _weight_matrix(weight, groups, last)
    parts: list[tuple[slice, slice, Array]] = []
    for images, rows in _blocks(windows, rank):
        block = windows[images, :, rows]
        columns = _columns(block, groups, rank, last)
        shape = block.shape[2 : 2 + rank]
        if last:
            product = columns @ matrix.swapaxes(1, 2)  # (n, G, pixels, K/G)
            product = np.moveaxis(product.swapaxes(1, 2).reshape(-1, *shape, k), -1, 1)
        else:
            product = (matrix @ columns).reshape(-1, k, *shape)
        parts.append((images, rows, product))
    if len(parts) == 1:
        return parts[0][2]
    y: Array = np.empty((x.shape[0], k, *g.small), x.dtype)
    for images, rows, part in parts:
        y[images, :, rows] = part
    return y


def _dgrad(dy: Array, weight: Array, g: _Geometry, groups: int, last: bool) -> Array:
    """dx[n, c, p * stride + r * dilation] += dy[n, k, p] * weight[k, c, r], for the whole padded input."""
    n, k = dy.shape[:2]
    c = groups * weight.shape[1]
    by_group = weight.reshape(groups, k // groups, *weight.shape[1:])
    if last:
        # (n, G, pixels, K/G)
        flat = np.moveaxis(dy, 1, -1).reshape(n, math.prod(g.small), groups, k // groups).swapaxes(1, 2)
        dx: Array = np.moveaxis(np.zeros((n, *g.full, c), dy.dtype), -1, 1)
    else:
        flat = dy.reshape(n, groups, k // groups, math.prod(g.small))
        dx = np.zeros((n, c, *g.full), dy.dtype)
    for tap in np.ndindex(*weight.shape[2:]):
        w = by_group[(..., *tap)]  # (G, K/G, C/G)
        pixels = tuple(
            slice(t * d, t * d + (p - 1) * s + 1, s)
            for t, d, p, s in zip(tap, g.dilation, g.small, g.stride, strict=True)
        )
        if last:
            part = np.moveaxis((flat @ w).swapaxes(1, 2).reshape(n, *g.small, c), -1, 1)
        else:
            part = (w.swapaxes(1, 2) @ flat).reshape(n, c, *g.small)
        dx[(slice(None), slice(None), *pixels)] += part
    return dx


def _wgrad(dy: Array, x: Array, weight_shape: Sequence[int], g: _Geometry, groups: int, last: bool) -> Array:
    """dw[k, c, r] = sum over n, p of dy[n, k, p] * x[n, c, p * stride + r * dilation], x padded."""
    rank, k, per_group, kernel = len(g.small), weight_shape[0], weight_shape[1], tuple(weight_shape[2:])
    dw: Array = np.zeros((groups, k // groups, per_group * math.prod(kernel)), dy.dtype)
    windows = _windows(x, kernel, g)
    for images, rows in _blocks(windows, rank):
        columns = _columns(windows[images, :, rows], groups, rank, last)
        part = dy[images, :, rows]
        part = part.reshape(part.shape[0], groups, k // groups, math.prod(part.shape[2:]))
        dw += (part @ (columns if last else columns.swapaxes(2, 3))).sum(axis=0)
    if last:
        return np.moveaxis(dw.reshape(k, *kernel, per_group), -1, 1)
    return dw.reshape(k, per_group, *kernel)


def _pad(x: Array, padding: Pairs, mode: str) -> Array:
    if mode not in _PAD_MODES:
        raise ValueError(f"padding_mode (={mode!r}) must be one of {', '.join(_PAD_MODES)}")
    if not any(before or after for before, after in padding):
        return x
    return np.pad(x, [(0, 0), (0, 0), *padding], _PAD_MODES[mode])  # type: ignore[call-overload,no-any-return]


def _fold(dx: Array, padding: Pairs, mode: str) -> Array:
    """The adjoint of `_pad`: every border element is added to the element that it copied."""
    for axis, (before, after) in enumerate(padding, start=2):
        full = np.moveaxis(dx, axis, 0)
        inner = full[before : len(full) - after]
        if mode != "zeros" and (before or after):
            source = np.pad(np.arange(len(inner)), (before, after), _PAD_MODES[mode])  # type: ignore[call-overload]
            inner = inner.copy()
            for i in [*range(before), *range(len(full) - after, len(full))]:
                inner[source[i]] += full[i]
        dx = np.moveaxis(inner, 0, axis)
    return dx


def _crop(y: Array, padding: Pairs) -> Array:
    """Drop the padding of a transposed convolution's output; a negative one adds zeros."""
    y = np.pad(y, [(0, 0), (0, 0), *((0, max(-after, 0)) for _, after in padding)])
    ends = (slice(before, n - max(after, 0)) for n, (before, after) in zip(y.shape[2:], padding, strict=True))
    return y[(slice(None), slice(None), *ends)]


def _uncrop(dy: Array, padding: Pairs) -> Array:
    """The adjoint of `_crop`."""
    ends = (slice(None, min(after, 0) or None) for _, after in padding)
    return _pad(dy[(slice(None), slice(None), *ends)], [(b, max(a, 0)) for b, a in padding], "zeros")


# ------------------------------------------------------------------------------------------- prologue and epilogue


def _by_channel(name: str, vector: Array, channels: int, rank: int) -> Array:
    if vector.shape != (channels,):
        raise ValueError(f"{name} (shape {vector.shape}) must have shape ({channels},)")
    return vector.reshape(1, channels, *(1,) * rank)


def _prologue(x: Array, scale: Array | None, shift: Array | None, activation: Activation, gate: Array | None) -> Array:
    n, c, rank = *x.shape[:2], x.ndim - 2
    if scale is not None:
        x = x * _by_channel("input_scale", scale, c, rank)
    if shift is not None:
        x = x + _by_channel("input_shift", shift, c, rank)
    x = activate(x, activation)
    if gate is not None:
        if gate.size != n * c or gate.shape[-1:] != (c,):
            raise ValueError(f"input_gate (shape {gate.shape}) must have shape {(n, c)}")
        x = x * gate.reshape(n, c, *(1,) * rank)
    return x


def _epilogue(
    y: Array,
    bias: Array | None,
    scale: Array | None,
    shift: Array | None,
    residual: Array | None,
    activation: Activation,
) -> Array:
    k, rank = y.shape[1], y.ndim - 2
    if bias is not None:
        y = y + _by_channel("bias", bias, k, rank)
    if scale is not None:
        y = y * _by_channel("scale", scale, k, rank)
    if shift is not None:
        y = y + _by_channel("shift", shift, k, rank)
    if residual is not None:
        if residual.shape != y.shape:
            raise ValueError(f"residual (shape {residual.shape}) must have the shape of the output, {y.shape}")
        y = y + residual
    return activate(y, activation)


# --------------------------------------------------------------------------------------------- the public functions


def _ranked(function: Callable[Concatenate[int, P], R], rank: int) -> Callable[P, R]:
    """The public function for one number of spatial dimensions, with a signature of its own."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # Non-finite values go through silently, as they do in the kernels.
        with np.errstate(over="ignore", invalid="ignore"):
            return function(rank, *args, **kwargs)

    call.__name__ = call.__qualname__ = function.__name__.lstrip("_").replace("nd", f"{rank}d", 1)
    call.__doc__ = (function.__doc__ or "").replace("{name}", call.__name__)
    signature = inspect.signature(function)
    call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return call


def _convnd(
    rank: int,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    input_scale: Array | None = None,
    input_shift: Array | None = None,
    input_activation: Activation = None,
    input_gate: Array | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
    precision: str = "strict",
) -> Array:
    """See `fastconv.functional.{name}`; `algorithm`, `max_error` and `precision` have no effect."""
    _check(x, weight=weight, bias=bias, scale=scale, shift=shift, residual=residual)
    _check(x, input_scale=input_scale, input_shift=input_shift, input_gate=input_gate)
    last = _last(layout)
    a = _inward("x", x, rank, last)
    _check_channels(a.shape[1], weight.shape[0], groups, weight.shape, rank)
    g = _geometry(a.shape[2:], weight.shape[2:], stride, padding, dilation, padding_mode)
    a = _pad(_prologue(a, input_scale, input_shift, input_activation, input_gate), g.padding, padding_mode)
    y = _fprop(a, weight, g, groups, last)
    r = None if residual is None else _inward("residual", residual, rank, last)
    y = _epilogue(y, bias, scale, shift, r, activation)
    return _deliver(_outward(y, x.ndim == rank + 2, last), out)


def _convnd_backward_input(
    rank: int,
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
    precision: str = "strict",
) -> Array:
    """See `fastconv.functional.{name}`."""
    _check(dy, weight=weight)
    last = _last(layout)
    # A view without memory: it gives the axes of the input, batched and with channels first.
    like = _inward("input_shape", np.broadcast_to(dy.dtype.type(0), tuple(input_shape)), rank, last)
    a = _inward("dy", dy, rank, last)
    _check_channels(like.shape[1], weight.shape[0], groups, weight.shape, rank)
    g = _geometry(like.shape[2:], weight.shape[2:], stride, padding, dilation, padding_mode)
    _check_shape("dy", a, (like.shape[0], weight.shape[0], *g.small))
    dx = _fold(_dgrad(a, weight, g, groups, last), g.padding, padding_mode)
    return _deliver(_outward(dx, dy.ndim == rank + 2, last), out, accumulate)


def _convnd_backward_weight(
    rank: int,
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
    precision: str = "strict",
) -> Array:
    """See `fastconv.functional.{name}`."""
    _check(dy, x=x)
    last = _last(layout)
    a, b = _inward("dy", dy, rank, last), _inward("x", x, rank, last)
    _check_channels(b.shape[1], a.shape[1], groups, weight_shape, rank)
    g = _geometry(b.shape[2:], weight_shape[2:], stride, padding, dilation, padding_mode)
    _check_shape("dy", a, (b.shape[0], weight_shape[0], *g.small))
    dw = _wgrad(a, _pad(b, g.padding, padding_mode), weight_shape, g, groups, last)
    return _deliver(dw, out, accumulate)


def _convnd_backward_bias(
    rank: int, dy: Array, *, layout: str = "NCHW", accumulate: bool = False, out: Array | None = None
) -> Array:
    """See `fastconv.functional.{name}`."""
    _check(dy)
    a = _inward("dy", dy, rank, _last(layout))
    db: Array = a.sum(axis=(0, *range(2, a.ndim)))
    return _deliver(db, out, accumulate)


def _check_shape(name: str, a: Array, shape: tuple[int, ...]) -> None:
    if a.shape != shape:
        raise ValueError(f"{name} (axes N, C, ... of {a.shape}) must be of {shape}")


def _targets(needs: Sequence[str], accumulate: ConvGradients | Mapping[str, Array] | None) -> dict[str, dict[str, Any]]:
    """The `out` and `accumulate` of each gradient that is needed."""
    unknown = set(needs) - set(ConvGradients._fields)
    if unknown:
        raise ValueError(f"needs (={tuple(needs)}) must be among {ConvGradients._fields}")
    into = accumulate._asdict() if isinstance(accumulate, ConvGradients) else dict(accumulate or {})
    return {name: {"out": into.get(name), "accumulate": into.get(name) is not None} for name in needs}


def _convnd_backward(
    rank: int,
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    max_error: float | None = None,
    precision: str = "strict",
) -> ConvGradients:
    """See `fastconv.functional.{name}`."""
    to = _targets(needs, accumulate)
    o: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    o |= {"padding_mode": padding_mode, "layout": layout}
    return ConvGradients(
        _convnd_backward_input(rank, dy, weight, x.shape, **o, **to["input"]) if "input" in to else None,
        _convnd_backward_weight(rank, dy, x, weight.shape, **o, **to["weight"]) if "weight" in to else None,
        _convnd_backward_bias(rank, dy, layout=layout, **to["bias"]) if "bias" in to else None,
    )


def _conv_transposend(
    rank: int,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    input_scale: Array | None = None,
    input_shift: Array | None = None,
    input_activation: Activation = None,
    input_gate: Array | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
    precision: str = "strict",
) -> Array:
    """See `fastconv.functional.{name}`; `algorithm`, `max_error` and `precision` have no effect."""
    _check(x, weight=weight, bias=bias, scale=scale, shift=shift, residual=residual)
    _check(x, input_scale=input_scale, input_shift=input_shift, input_gate=input_gate)
    last = _last(layout)
    a = _inward("x", x, rank, last)
    _check_channels(weight.shape[1] * groups, a.shape[1], groups, weight.shape, rank)
    g = _geometry_transposed(a.shape[2:], weight.shape[2:], stride, padding, output_padding, dilation)
    a = _prologue(a, input_scale, input_shift, input_activation, input_gate)
    y = _crop(_dgrad(a, weight, g, groups, last), g.padding)
    r = None if residual is None else _inward("residual", residual, rank, last)
    y = _epilogue(y, bias, scale, shift, r, activation)
    return _deliver(_outward(y, x.ndim == rank + 2, last), out)


def _conv_transposend_backward_input(
    rank: int,
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
    precision: str = "strict",
) -> Array:
    """See `fastconv.functional.{name}`."""
    _check(dy, weight=weight)
    last = _last(layout)
    like = _inward("input_shape", np.broadcast_to(dy.dtype.type(0), tuple(input_shape)), rank, last)
    a = _inward("dy", dy, rank, last)
    _check_channels(a.shape[1], like.shape[1], groups, weight.shape, rank)
    g = _geometry_transposed(like.shape[2:], weight.shape[2:], stride, padding, output_padding, dilation)
    _check_shape("dy", a, (like.shape[0], a.shape[1], *g.large))
    dx = _fprop(_uncrop(a, g.padding), weight, g, groups, last)
    return _deliver(_outward(dx, dy.ndim == rank + 2, last), out, accumulate)


def _conv_transposend_backward_weight(
    rank: int,
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    accumulate: bool = False,
    out: Array | None = None,
    algorithm: str = "auto",
    max_error: float | None = None,
    precision: str = "strict",
) -> Array:
    """See `fastconv.functional.{name}`."""
    _check(dy, x=x)
    last = _last(layout)
    a, b = _inward("dy", dy, rank, last), _inward("x", x, rank, last)
    _check_channels(a.shape[1], b.shape[1], groups, weight_shape, rank)
    g = _geometry_transposed(b.shape[2:], weight_shape[2:], stride, padding, output_padding, dilation)
    _check_shape("dy", a, (b.shape[0], a.shape[1], *g.large))
    return _deliver(_wgrad(b, _uncrop(a, g.padding), weight_shape, g, groups, last), out, accumulate)


def _conv_transposend_backward_bias(
    rank: int, dy: Array, *, layout: str = "NCHW", accumulate: bool = False, out: Array | None = None
) -> Array:
    """See `fastconv.functional.{name}`."""
    return _convnd_backward_bias(rank, dy, layout=layout, accumulate=accumulate, out=out)


def _conv_transposend_backward(
    rank: int,
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
    max_error: float | None = None,
    precision: str = "strict",
) -> ConvGradients:
    """See `fastconv.functional.{name}`."""
    to = _targets(needs, accumulate)
    o: dict[str, Any] = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    o |= {"groups": groups, "layout": layout}
    return ConvGradients(
        _conv_transposend_backward_input(rank, dy, weight, x.shape, **o, **to["input"]) if "input" in to else None,
        _conv_transposend_backward_weight(rank, dy, x, weight.shape, **o, **to["weight"]) if "weight" in to else None,
        _conv_transposend_backward_bias(rank, dy, layout=layout, **to["bias"]) if "bias" in to else None,
    )


conv1d = _ranked(_convnd, 1)
conv2d = _ranked(_convnd, 2)
conv3d = _ranked(_convnd, 3)
conv1d_backward_input = _ranked(_convnd_backward_input, 1)
conv2d_backward_input = _ranked(_convnd_backward_input, 2)
conv3d_backward_input = _ranked(_convnd_backward_input, 3)
conv1d_backward_weight = _ranked(_convnd_backward_weight, 1)
conv2d_backward_weight = _ranked(_convnd_backward_weight, 2)
conv3d_backward_weight = _ranked(_convnd_backward_weight, 3)
conv1d_backward_bias = _ranked(_convnd_backward_bias, 1)
conv2d_backward_bias = _ranked(_convnd_backward_bias, 2)
conv3d_backward_bias = _ranked(_convnd_backward_bias, 3)
conv1d_backward = _ranked(_convnd_backward, 1)
conv2d_backward = _ranked(_convnd_backward, 2)
conv3d_backward = _ranked(_convnd_backward, 3)
conv_transpose1d = _ranked(_conv_transposend, 1)
conv_transpose2d = _ranked(_conv_transposend, 2)
conv_transpose3d = _ranked(_conv_transposend, 3)
conv_transpose1d_backward_input = _ranked(_conv_transposend_backward_input, 1)
conv_transpose2d_backward_input = _ranked(_conv_transposend_backward_input, 2)
conv_transpose3d_backward_input = _ranked(_conv_transposend_backward_input, 3)
conv_transpose1d_backward_weight = _ranked(_conv_transposend_backward_weight, 1)
conv_transpose2d_backward_weight = _ranked(_conv_transposend_backward_weight, 2)
conv_transpose3d_backward_weight = _ranked(_conv_transposend_backward_weight, 3)
conv_transpose1d_backward_bias = _ranked(_conv_transposend_backward_bias, 1)
conv_transpose2d_backward_bias = _ranked(_conv_transposend_backward_bias, 2)
conv_transpose3d_backward_bias = _ranked(_conv_transposend_backward_bias, 3)
conv_transpose1d_backward = _ranked(_conv_transposend_backward, 1)
conv_transpose2d_backward = _ranked(_conv_transposend_backward, 2)
conv_transpose3d_backward = _ranked(_conv_transposend_backward, 3)


@np.errstate(over="ignore", invalid="ignore")
def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.linear`."""
    _check(x, weight=weight, bias=bias, scale=scale, shift=shift, residual=residual)
    rows = x.reshape(-1, x.shape[-1]) if x.size else np.empty((math.prod(x.shape[:-1]), x.shape[-1]), x.dtype)
    r = None if residual is None else residual.reshape(len(rows), weight.shape[0])
    y = _epilogue(rows @ weight.T, bias, scale, shift, r, activation)
    return _deliver(y.reshape(*x.shape[:-1], weight.shape[0]), out)


@np.errstate(over="ignore", invalid="ignore")
def linear_backward_input(dy: Array, weight: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """See `fastconv.functional.linear_backward_input`."""
    _check(dy, weight=weight)
    return _deliver(dy @ weight, out, accumulate)


@np.errstate(over="ignore", invalid="ignore")
def linear_backward_weight(dy: Array, x: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """See `fastconv.functional.linear_backward_weight`."""
    _check(dy, x=x)
    rows = math.prod(x.shape[:-1])
    return _deliver(dy.reshape(rows, dy.shape[-1]).T @ x.reshape(rows, x.shape[-1]), out, accumulate)


@np.errstate(over="ignore", invalid="ignore")
def linear_backward_bias(dy: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """See `fastconv.functional.linear_backward_bias`."""
    _check(dy)
    db: Array = dy.sum(axis=tuple(range(dy.ndim - 1)))
    return _deliver(db, out, accumulate)


def linear_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    needs: Sequence[str] = ("input", "weight", "bias"),
    accumulate: ConvGradients | Mapping[str, Array] | None = None,
) -> ConvGradients:
    """See `fastconv.functional.linear_backward`."""
    to = _targets(needs, accumulate)
    return ConvGradients(
        linear_backward_input(dy, weight, **to["input"]) if "input" in to else None,
        linear_backward_weight(dy, x, **to["weight"]) if "weight" in to else None,
        linear_backward_bias(dy, **to["bias"]) if "bias" in to else None,
    )
