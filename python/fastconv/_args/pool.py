"""Options and error messages of the pooling functions; see the package's text."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _core, _device
from . import (
    _AUTO_PADDING,
    _AXES,
    _AXIS_NAMES,
    _CHANNELS_LAST,
    Array,
    Ints,
    Padding,
    Shape,
    _axes,
    _bounded,
    _check_array,
    _check_elements,
    _check_flag,
    _check_image_rank,
    _check_out,
    _check_shape,
    _check_shape_argument,
    _choice,
    _each,
    _first_error,
    _integers,
    _join,
    _pairs,
    _split,
    _type_name,
    check_libraries,
    integer,
)
from . import _padding as _sides

OutputSize = int | Sequence[int | None] | None
CeilMode = bool | str

# The values of the enumerations in fastconv/pool.h.
MAX, AVERAGE, LP = 0, 1, 2
_CEIL_MODES: dict[object, int] = {False: 0, True: 1, "pytorch": 1, "unclipped": 2}

_FLOATS = ("float32", "float64")
_INTEGERS = ("int8", "uint8", "int16", "int32", "int64")


# ----------------------------------------------------------------------------------------------------- the options


def spec(
    rank: int,
    kind: int,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: CeilMode,
    count_include_pad: bool,
    divisor_override: int | None,
    norm_type: float,
    layout: str,
) -> _core.PoolSpec:
    """The options of a sliding window as a `PoolSpec`; ValueError or TypeError where one of them is wrong by itself."""
    # To a cache True, 1.0 and 1 are one key: what is not plainly an int is checked on every call.
    if type(kernel_size) is not int:
        kernel_size = _integers("kernel_size", kernel_size)
    if stride is None:
        stride = kernel_size
    elif type(stride) is not int:
        stride = _integers("stride", stride)
    if type(padding) is not int and type(padding) is not str:
        padding = _pairs(padding)
    if type(dilation) is not int:
        dilation = _integers("dilation", dilation)
    if type(ceil_mode) is not bool and type(ceil_mode) is not str:
        _check_ceil_mode(ceil_mode)
    _check_flag("count_include_pad", count_include_pad)
    if divisor_override is not None and type(divisor_override) is not int:
        divisor_override = integer("divisor_override", divisor_override)
    if type(norm_type) is not float:
        norm_type = _norm(norm_type)
    _check_layout(layout)
    return _spec(
        rank,
        kind,
        kernel_size,
        stride,
        padding,
        dilation,
        str(ceil_mode) if type(ceil_mode) is str else ceil_mode,
        count_include_pad,
        divisor_override,
        norm_type,
        layout,
    )


def _check_ceil_mode(ceil_mode: object) -> None:
    if not isinstance(ceil_mode, (bool, str)):
        raise TypeError(
            f"ceil_mode (={ceil_mode!r}) must be True, False or the name of a convention, not {_type_name(ceil_mode)}"
        )


def _check_layout(layout: object) -> None:
    if not isinstance(layout, str):
        raise TypeError(f"layout (={layout!r}) must be a string, not {_type_name(layout)}")


def _norm(value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"norm_type (={value!r}) must be a number, not {_type_name(value)}")
    return float(value)


@functools.lru_cache(maxsize=4096)
def _spec(
    rank: int,
    kind: int,
    kernel_size: Ints,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    ceil_mode: CeilMode,
    count_include_pad: bool,
    divisor_override: int | None,
    norm_type: float,
    layout: str,
) -> _core.PoolSpec:
    kernel = _each("kernel_size", kernel_size, rank, 1)
    before, after, auto = _sides(padding, rank)
    if ceil_mode not in _CEIL_MODES:
        raise ValueError(f"ceil_mode (={ceil_mode!r}) must be one of {', '.join(map(repr, _CEIL_MODES))}")
    if divisor_override is not None:
        if divisor_override == 0:
            raise ValueError("divisor_override (=0) must not be zero")
        _bounded("divisor_override", abs(divisor_override), divisor_override, 1)
    if not (math.isfinite(norm_type) and norm_type > 0):
        raise ValueError(f"norm_type (={norm_type}) must be a positive, finite number")
    return _core.PoolSpec(
        rank,
        _choice("layout", layout, _CHANNELS_LAST[rank]),
        kind,
        False,
        kernel,
        _each("stride", stride, rank, 1),
        _each("dilation", dilation, rank, 1),
        before,
        after,
        auto,
        _CEIL_MODES[ceil_mode],
        count_include_pad,
        divisor_override or 0,
        norm_type,
    )


def adaptive_spec(rank: int, kind: int, output_size: OutputSize, layout: str) -> _core.PoolSpec:
    """The spec of windows that share the image out; None stands for the image's own size."""
    if output_size is not None and type(output_size) is not int:
        output_size = _sizes(output_size)
    _check_layout(layout)
    return _adaptive_spec(rank, kind, output_size, layout)


def _sizes(value: object) -> OutputSize:
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)):
        return integer("output_size", value)
    return tuple(None if n is None else integer("output_size", n, value) for n in value)


@functools.lru_cache(maxsize=1024)
def _adaptive_spec(rank: int, kind: int, output_size: OutputSize, layout: str) -> _core.PoolSpec:
    entries = (output_size,) * rank if output_size is None or isinstance(output_size, int) else tuple(output_size)
    if len(entries) != rank:
        raise ValueError(
            f"output_size (={output_size}) must be one integer or have one entry for each of the {rank} spatial "
            "dimensions"
        )
    for entry in entries:
        if entry is not None:
            _bounded("output_size", entry, output_size, 1)
    ones, none = (1,) * rank, (0,) * rank
    return _core.PoolSpec(
        rank,
        _choice("layout", layout, _CHANNELS_LAST[rank]),
        kind,
        True,
        tuple(entry or 0 for entry in entries),
        ones,
        ones,
        none,
        none,
        0,
        0,
        True,
        0,
        2.0,
    )


def covering_spec(rank: int, kind: int, dy: Array, layout: str) -> _core.PoolSpec:
    """The adaptive spec whose output is dy's."""
    _check_layout(layout)
    last = _choice("layout", layout, _CHANNELS_LAST[rank])
    shape = _device.shape_of(dy)
    if shape is None or len(shape) not in (rank + 1, rank + 2) or 0 in shape[-rank - 1 :]:
        return _adaptive_spec(rank, kind, 1, layout)  # is refused for that reason, in the words of `backward_error`
    return _adaptive_spec(rank, kind, shape[-rank - 1 : -1] if last else shape[-rank:], layout)


# -------------------------------------------------------------------------------------------------- refused calls


def _check_operand(name: str, value: object, dtypes: Sequence[str]) -> Array:
    a = _check_array(name, value)
    if a.dtype.kind in "fiu" and not a.dtype.isnative:
        raise TypeError(
            f"{name} (dtype {a.dtype.str}) must have native byte order: "
            f"pass {name}.astype({name}.dtype.newbyteorder('='))"
        )
    known = _device.dtype_name(a)
    if isinstance(a, _device.Shadow) and "float32" in dtypes:
        dtypes = (*dtypes, "float16", "bfloat16")
    if known not in dtypes:
        allowed = dtypes[0] if len(dtypes) == 1 else f"{', '.join(dtypes[:-1])} or {dtypes[-1]}"
        raise TypeError(f"{name} (dtype {known}) must have dtype {allowed}; nothing is converted silently")
    steps = (s for s, n in zip(a.strides, a.shape, strict=True) if n > 1)
    if not a.flags.aligned or any(step % a.itemsize for step in steps):
        raise ValueError(
            f"{name} (strides {a.strides}, item size {a.itemsize}) must have its elements aligned to the item size: "
            f"pass {name}.copy()"
        )
    return a


def _check_same_device(name: str, a: Array, other: str, b: Array) -> None:
    own, place = _device.device_name(a), _device.device_name(b)
    if own != place:
        raise TypeError(f"{name} (on {own}) must be on the device of {other}, {place}; nothing is moved silently")


def _check_same_dtype(name: str, a: Array, other: str, b: Array) -> None:
    _check_same_device(name, a, other, b)
    if a.dtype != b.dtype:
        raise TypeError(
            f"{name} (dtype {_device.dtype_name(a)}) must have the dtype of {other}, {_device.dtype_name(b)}"
        )


def _output_length(s: _core.PoolSpec, i: int, size: int) -> int:
    kernel, stride, dilation = s.kernel[i], s.stride[i], s.dilation[i]
    if s.adaptive:
        return kernel or size
    axis = _AXIS_NAMES[_AXES[s.spatial][i]]
    reach = dilation * (kernel - 1) + 1
    before, after = s.pad_before[i], s.pad_after[i]
    if s.auto_padding:
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        half = total // 2
        before, after = (half, total - half) if s.auto_padding == _AUTO_PADDING["same"] else (total - half, half)
    padded = size + before + after
    shown = f"kernel {axis} (={kernel})" if dilation == 1 else f"kernel {axis} (={kernel}, dilated to {reach})"
    if padded < reach:
        raise ValueError(f"{shown} must not exceed the padded input {axis} (={size} + {before} + {after} = {padded})")
    free = padded - reach
    output = (-(-free // stride) if s.ceil_mode else free // stride) + 1
    if s.ceil_mode == _CEIL_MODES[True] and (output - 1) * stride >= size + before:
        output -= 1
    rule = (
        f"padding (={before} and {after}) must leave every window of {shown} an element of the input {axis} (={size})"
    )
    if before >= reach:
        raise ValueError(rule)
    for begin in range(-before, min(0, output * stride - before), stride):
        if begin % dilation >= size or -(begin // dilation) >= kernel:
            raise ValueError(f"{rule}: the window at {begin} has none")
    if s.ceil_mode != _CEIL_MODES["unclipped"] and (output - 1) * stride - before >= size:
        raise ValueError(f"{rule}: the window at {(output - 1) * stride - before} has none")
    return output


def _output_shape(s: _core.PoolSpec, name: str, shape: Shape) -> Shape:
    _check_image_rank(name, shape, s)
    batch, channels, pixels = _split(shape, s)
    if channels < 1:
        raise ValueError(f"{name} (shape {shape}) must have at least one channel")
    if min(pixels) < 1:
        raise ValueError(f"{name} (shape {shape}) must have at least one element in every spatial dimension")
    output = _join(batch, channels, tuple(_output_length(s, i, n) for i, n in enumerate(pixels)), s)
    for label, size in ((name, shape), ("the output", output), ("kernel_size", s.kernel)):
        _check_elements(label, size)
    return output


def forward_error(
    refusal: _core.Refused, s: _core.PoolSpec, x: object, return_indices: object, out: object, what: str
) -> Exception:
    """Why `_core` refused a forward pass."""

    def checks() -> Shape:
        _check_flag("return_indices", return_indices)
        check_libraries({"x": x, "out": out})
        a = _check_operand("x", x, (*_FLOATS, *_INTEGERS) if s.kind == MAX else _FLOATS)
        shape = _output_shape(s, "x", a.shape)
        if out is not None:
            to = _check_operand("out", out, (*_FLOATS, *_INTEGERS) if s.kind == MAX else _FLOATS)
            _check_same_dtype("out", to, "x", a)
            _check_out(to, shape, {"x": a})
        return shape

    return _first_error(refusal, checks, x, what)


def backward_error(
    refusal: _core.Refused, s: _core.PoolSpec, dy: object, x: object, name: str, indices: object, out: object, what: str
) -> Exception:
    """Why `_core` refused a gradient; `name` is what the user calls x, which may be a shape."""

    def checks() -> Shape:
        check_libraries({"dy": dy, name: x, "indices": indices, "out": out})
        reads: dict[str, Array] = {"dy": _check_operand("dy", dy, _FLOATS)}
        _check_image_rank("dy", reads["dy"].shape, s)
        needs_x = s.kind == LP or (s.kind == MAX and indices is None)
        if needs_x or _device.shape_of(x) is not None:
            reason = "; its shape alone will do only where indices are given" if s.kind == MAX else ""
            if isinstance(x, (tuple, list)):
                raise TypeError(f"{name} (={x!r}) must be a numpy.ndarray{reason}")
            a = _check_operand(name, x, _FLOATS)
            _check_same_dtype(name, a, "dy", reads["dy"])
            shape = a.shape
            if len(shape) != reads["dy"].ndim:
                raise ValueError(
                    f"{name} (shape {shape}) must have as many dimensions as dy (shape {reads['dy'].shape})"
                )
            if needs_x:
                reads[name] = a
        else:
            shape = _check_shape_argument(name, x, reads["dy"].ndim)
        if s.adaptive and 0 in reads["dy"].shape[1:]:
            raise ValueError(f"dy (shape {reads['dy'].shape}) must have at least one element a channel")
        expected = _output_shape(s, name, shape)
        _check_shape("dy", reads["dy"].shape, expected, "that of the layer's output")
        if indices is not None:
            reads["indices"] = _check_indices(indices, expected, -1, math.prod(_split(shape, s)[2]))
            _check_same_device("indices", reads["indices"], "dy", reads["dy"])
        _check_result(out, shape, reads, "dy")
        return shape

    return _first_error(refusal, checks, dy, what)


def _check_result(out: object, shape: Shape, reads: Mapping[str, Array], like: str) -> None:
    if out is not None:
        to = _check_operand("out", out, _FLOATS)
        _check_same_dtype("out", to, like, reads[like])
        _check_out(to, shape, reads)


def _check_indices(indices: object, shape: Shape | None, least: int, pixels: int | None) -> Array:
    a = _check_operand("indices", indices, ("int64",))
    if shape is not None:
        _check_shape("indices", a.shape, shape, "that of the pooled image")
    # What lies on a device is not looked at: its kernels pass over what points outside.
    if isinstance(a, _device.Shadow):
        return a
    if pixels is not None and a.size and not (a.min() >= least and a.max() < pixels):
        wrong = a.min() if a.min() < least else a.max()
        raise ValueError(
            f"indices (with the entry {wrong}) must lie between {least} and {pixels - 1}, the elements of an image"
        )
    return a


def unpool_shape(s: _core.PoolSpec, x: Array, output_size: Sequence[int] | None) -> Shape:
    """The shape that an unpooling gives; where x is no image, any shape: the call is going to be refused."""
    if output_size is not None:
        size = tuple(integer("output_size", n, output_size) for n in output_size)
        if len(size) > s.spatial:  # PyTorch takes the whole shape, too
            size = size[len(size) - s.spatial :] if not s.channels_last else size[-s.spatial - 1 : -1]
        if len(size) != s.spatial:
            raise ValueError(
                f"output_size (={output_size}) must have one entry for each of the {s.spatial} spatial dimensions"
            )
        for n in size:
            _bounded("output_size", n, output_size, 1)
    own = _device.shape_of(x)
    if own is None or len(own) not in (s.spatial + 1, s.spatial + 2):
        return (1,) * (s.spatial + 2)
    batch, channels, pixels = _split(own, s)
    default = tuple(
        (n - 1) * stride - 2 * pad + kernel
        for n, stride, pad, kernel in zip(pixels, s.stride, s.pad_before, s.kernel, strict=True)
    )
    if output_size is None:
        size = default
    for given, usual, stride in zip(size, default, s.stride, strict=True):
        if given < 1 or (output_size is not None and not usual - stride < given < usual + stride):
            if output_size is None:
                raise ValueError(
                    f"padding (={s.pad_before}) must leave an output of at least 1 in every dimension, not {default}"
                )
            raise ValueError(
                f"output_size (={output_size}) must be within a stride (={s.stride}) of the usual size, {default}"
            )
    return _join(batch, channels, size, s)


def unpool_spec(rank: int, kernel_size: Ints, stride: Ints | None, padding: Ints, layout: str) -> _core.PoolSpec:
    """The spec of an unpooling: its padding is the same on both sides."""
    if type(padding) is not int:
        _check_one_padding(padding)
    return spec(rank, MAX, kernel_size, stride, padding, 1, False, True, None, 2.0, layout)


def _check_one_padding(padding: object) -> None:
    if isinstance(padding, str) or (isinstance(padding, Sequence) and any(isinstance(p, Sequence) for p in padding)):
        raise ValueError(f"padding (={padding!r}) must be one integer or have one a dimension")


def unpool_error(
    refusal: _core.Refused, s: _core.PoolSpec, x: object, indices: object, shape: Shape, out: object, what: str
) -> Exception:
    """Why `_core` refused an unpooling."""

    def checks() -> Shape:
        check_libraries({"x": x, "indices": indices, "out": out})
        a = _check_operand("x", x, _FLOATS)
        _check_image_rank("x", a.shape, s)
        if _split(a.shape, s)[1] < 1:
            raise ValueError(f"x (shape {a.shape}) must have at least one channel")
        i = _check_indices(indices, a.shape, 0, math.prod(_split(shape, s)[2]))
        _check_same_device("indices", i, "x", a)
        _check_elements("the output", shape)
        _check_result(out, shape, {"x": a, "indices": i}, "x")
        return shape

    return _first_error(refusal, checks, x, what)


def unpool_backward_error(
    refusal: _core.Refused, s: _core.PoolSpec, dy: object, indices: object, out: object, what: str
) -> Exception:
    """Why `_core` refused the gradient of an unpooling."""

    def checks() -> Shape:
        check_libraries({"dy": dy, "indices": indices, "out": out})
        a = _check_operand("dy", dy, _FLOATS)
        _check_image_rank("dy", a.shape, s)
        i = _check_indices(indices, None, 0, math.prod(_split(a.shape, s)[2]))
        _check_same_device("indices", i, "dy", a)
        if i.ndim != a.ndim or _split(i.shape, s)[:2] != _split(a.shape, s)[:2] or _split(a.shape, s)[1] < 1:
            raise ValueError(
                f"indices (shape {i.shape}) must have the batch and the channels of dy (shape {a.shape}), axes "
                f"{_axes(s, a.ndim == s.spatial + 2)}"
            )
        _check_result(out, i.shape, {"dy": a, "indices": i}, "dy")
        return i.shape

    return _first_error(refusal, checks, dy, what)


# ------------------------------------------------------------------------------------------------ global pooling


def with_ones(a: Any, rank: int, keepdims: bool, layout: str, name: str) -> Any:
    """An array of global results with its spatial axes of one element put back, as a view."""
    _check_flag("keepdims", keepdims)
    _check_layout(layout)
    last = _choice("layout", layout, _CHANNELS_LAST[rank])
    if keepdims or a is None or _device.shape_of(a) is None:
        return a
    if a.ndim not in (1, 2):
        raise ValueError(f"{name} (shape {a.shape}) must have 2 dimensions (N, C), or 1 without the batch")
    at = (slice(None),) * (a.ndim - 1)
    ones = (None,) * rank
    return a[(*at, *ones, slice(None))] if last else a[(*at, slice(None), *ones)]


def without_ones(a: Array, rank: int, layout: str) -> Array:
    """A global result as (N, C), or (C,): a view."""
    last = _CHANNELS_LAST[rank][layout]
    at: Any = (..., *(0,) * rank, slice(None)) if last else (..., *(0,) * rank)
    result: Array = a[at]
    return result
