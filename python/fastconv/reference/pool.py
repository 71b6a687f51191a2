"""Pooling in plain NumPy: the same names, signatures and defaults as `fastconv.functional.pool`.

A window is a list of index arrays, one a spatial axis; one loop runs over the outputs' places, and NumPy over batch and
channels. It works in the dtype it is given and returns new arrays. The mathematics is documented in
`fastconv.functional.pool`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool1d_backward",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d",
    "adaptive_avg_pool3d_backward",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_backward",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
    "global_avg_pool1d",
    "global_avg_pool1d_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "global_avg_pool3d",
    "global_avg_pool3d_backward",
    "global_max_pool1d",
    "global_max_pool1d_backward",
    "global_max_pool2d",
    "global_max_pool2d_backward",
    "global_max_pool3d",
    "global_max_pool3d_backward",
    "lp_pool1d",
    "lp_pool1d_backward",
    "lp_pool2d",
    "lp_pool2d_backward",
    "lp_pool3d",
    "lp_pool3d_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "max_unpool1d",
    "max_unpool1d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "max_unpool3d",
    "max_unpool3d_backward",
]

Array = npt.NDArray[Any]
Ints = int | Sequence[int]
Padding = int | str | Sequence[int | tuple[int, int]]
CeilMode = bool | str
OutputSize = int | Sequence[int | None] | None

_CHANNELS_LAST = {"NCHW": False, "NCL": False, "NCDHW": False, "NHWC": True, "NLC": True, "NDHWC": True}


class _Windows(NamedTuple):
    """For each spatial axis and each window along it: the indices that it covers, and its length with the padding."""

    covered: list[list[Array]]
    lengths: list[list[int]]
    kernel: int

    def places(self) -> Iterator[tuple[tuple[int, ...], tuple[Array, ...]]]:
        """(output index, covered indices an axis) of every window, in the order of memory."""
        for at in itertools.product(*(range(len(axis)) for axis in self.covered)):
            yield at, tuple(axis[o] for axis, o in zip(self.covered, at, strict=True))


def _last(layout: str) -> bool:
    return _CHANNELS_LAST[layout]


def _shape_of(x: Any) -> tuple[int, ...]:
    return tuple(x.shape) if isinstance(x, np.ndarray) else tuple(x)


def _pixels(rank: int, x: Any, layout: str) -> tuple[int, ...]:
    shape = _shape_of(x)
    return shape[-rank - 1 : -1] if _last(layout) else shape[-rank:]


def _pixel_axes(rank: int, x: Any, layout: str) -> tuple[int, ...]:
    end = len(_shape_of(x)) - _last(layout)
    return tuple(range(end - rank, end))


def _each(value: Ints, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _sliding(
    rank: int,
    x: Any,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: CeilMode,
    layout: str,
) -> _Windows:
    sizes, kernels = _pixels(rank, x, layout), _each(kernel_size, rank)
    strides, dilations = _each(kernel_size if stride is None else stride, rank), _each(dilation, rank)
    sides: list[Any] = [padding] * rank if isinstance(padding, (int, str)) else list(padding)
    covered, lengths = [], []
    for n, r, s, d, side in zip(sizes, kernels, strides, dilations, sides, strict=True):
        reach = d * (r - 1) + 1
        if side in ("same", "same_lower"):
            total = max((-(-n // s) - 1) * s + reach - n, 0)
            before = total // 2 if side == "same" else total - total // 2
            after = total - before
        elif side == "valid":
            before = after = 0
        else:
            before, after = (side, side) if isinstance(side, int) else side
        free = n + before + after - reach
        if free < 0:
            raise ValueError(f"kernel_size (={r}) does not fit into {n} elements")
        count = (-(-free // s) if ceil_mode else free // s) + 1
        if ceil_mode in (True, "pytorch") and (count - 1) * s >= n + before:
            count -= 1
        axis, length = [], []
        for o in range(count):
            begin = o * s - before
            i = begin + d * np.arange(r)
            axis.append(i[(i >= 0) & (i < n)])
            length.append(max(1, min(begin + r, n + after) - begin))
            if not axis[-1].size and (begin < 0 or ceil_mode != "unclipped"):
                raise ValueError(f"padding (={padding}) leaves a window without an element")
        covered.append(axis)
        lengths.append(length)
    return _Windows(covered, lengths, math.prod(kernels))


def _adaptive(rank: int, x: Any, output_size: OutputSize, layout: str) -> _Windows:
    wanted = (output_size,) * rank if output_size is None or isinstance(output_size, int) else tuple(output_size)
    covered = []
    for n, p in zip(_pixels(rank, x, layout), wanted, strict=True):
        count = n if p is None else p
        covered.append([np.arange(o * n // count, -(-(o + 1) * n // count)) for o in range(count)])
    return _Windows(covered, [[i.size for i in axis] for axis in covered], 1)


def _into(out: Array | None, y: Array) -> Array:
    if out is None:
        return y
    out[...] = y
    return out


def _first(rank: int, x: Array, layout: str) -> Array:
    """A view with the spatial axes first: what a window takes is then x[np.ix_(*indices)]."""
    axes = _pixel_axes(rank, x, layout)
    return np.moveaxis(x, axes, range(rank))


def _empty_result(rank: int, x: Array, windows: _Windows, layout: str, dtype: Any) -> Array:
    shape = list(x.shape)
    for axis, places in zip(_pixel_axes(rank, x, layout), windows.covered, strict=True):
        shape[axis] = len(places)
    return np.zeros(shape, dtype)


def _max(rank: int, x: Array, windows: _Windows, layout: str) -> tuple[Array, Array]:
    y = _empty_result(rank, x, windows, layout, x.dtype)
    indices = _empty_result(rank, x, windows, layout, np.int64)
    source, to, places = _first(rank, x, layout), _first(rank, y, layout), _first(rank, indices, layout)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    flat = np.arange(math.prod(source.shape[:rank])).reshape(source.shape[:rank])
    for at, covered in windows.places():
        if any(i.size == 0 for i in covered):
            to[at], places[at] = lowest, -1
            continue
        values = source[np.ix_(*covered)].reshape(math.prod(map(len, covered)), *source.shape[rank:])
        # argmax gives the first maximum, and the first NaN where there is one.
        best = np.argmax(values, axis=0)
        to[at] = np.take_along_axis(values, best[np.newaxis], 0)[0]
        places[at] = flat[np.ix_(*covered)].reshape(-1)[best]
    return y, indices


def _scatter(rank: int, dy: Array, indices: Array, target: Array, layout: str, add: bool) -> None:
    """target[indices] (+)= dy, image by image, in the order of memory of the places."""
    flat = np.moveaxis(_first(rank, target, layout), range(rank), range(-rank, 0))
    result = flat.reshape(-1, math.prod(flat.shape[-rank:])).copy()
    source, where = _first(rank, dy, layout), _first(rank, indices, layout)
    planes = np.arange(len(result))
    for at in np.ndindex(*source.shape[:rank]):
        i, values = where[at].reshape(-1), source[at].reshape(-1)
        inside = i >= 0
        old = result[planes[inside], i[inside]] if add else 0
        result[planes[inside], i[inside]] = old + values[inside]
    flat[...] = result.reshape(flat.shape)


def _max_backward(rank: int, dy: Array, x: Any, windows: _Windows, indices: Array | None, layout: str) -> Array:
    if indices is None:
        indices = _max(rank, x, windows, layout)[1]
    dx = np.zeros(_shape_of(x), dy.dtype)
    _scatter(rank, dy, indices, dx, layout, True)
    return dx


def _unpool(
    rank: int,
    x: Array,
    indices: Array,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    output_size: Sequence[int] | None,
    layout: str,
) -> Array:
    kernels, pads = _each(kernel_size, rank), _each(padding, rank)
    strides = _each(kernel_size if stride is None else stride, rank)
    size = tuple(
        (n - 1) * s - 2 * p + r for n, s, p, r in zip(_pixels(rank, x, layout), strides, pads, kernels, strict=True)
    )
    if output_size is not None:
        size = tuple(output_size) if len(output_size) == rank else _pixels(rank, output_size, layout)
    shape = list(x.shape)
    for axis, n in zip(_pixel_axes(rank, x, layout), size, strict=True):
        shape[axis] = n
    y = np.zeros(shape, x.dtype)
    _scatter(rank, x, indices, y, layout, False)
    return y


def _unpool_backward(rank: int, dy: Array, indices: Array, layout: str) -> Array:
    source = np.moveaxis(_first(rank, dy, layout), range(rank), range(-rank, 0))
    where = np.moveaxis(_first(rank, indices, layout), range(rank), range(-rank, 0))
    flat = source.reshape(*source.shape[:-rank], -1)
    dx = np.take_along_axis(flat, where.reshape(*where.shape[:-rank], -1), -1).reshape(where.shape)
    result = np.empty(indices.shape, dy.dtype)
    np.moveaxis(_first(rank, result, layout), range(rank), range(-rank, 0))[...] = dx
    return result


def _divisor(windows: _Windows, count_include_pad: bool, override: int | None) -> Array:
    """What each window's sum is divided by."""
    shape = tuple(len(axis) for axis in windows.covered)
    if override is not None:
        return np.full(shape, override)
    counted = windows.lengths if count_include_pad else [[max(1, i.size) for i in axis] for axis in windows.covered]
    result = np.ones(shape, np.int64)
    for axis, counts in enumerate(counted):
        result *= np.array(counts).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return result


def _average(rank: int, x: Array, windows: _Windows, divisor: Array, layout: str) -> Array:
    y = _empty_result(rank, x, windows, layout, x.dtype)
    source, to = _first(rank, x, layout), _first(rank, y, layout)
    for at, covered in windows.places():
        to[at] = source[np.ix_(*covered)].sum(axis=tuple(range(rank))) / x.dtype.type(divisor[at])
    return y


def _average_backward(
    rank: int, dy: Array, input_shape: Sequence[int], windows: _Windows, divisor: Array, layout: str
) -> Array:
    dx = np.zeros(tuple(input_shape), dy.dtype)
    source, to = _first(rank, dy, layout), _first(rank, dx, layout)
    for at, covered in windows.places():
        to[np.ix_(*covered)] += source[at] / dy.dtype.type(divisor[at])
    return dx


def _lp(rank: int, x: Array, norm_type: float, windows: _Windows, layout: str) -> Array:
    with np.errstate(invalid="ignore"):
        mean = _average(rank, x ** x.dtype.type(norm_type), windows, _divisor(windows, True, None), layout)
        y: Array = (mean * x.dtype.type(windows.kernel)) ** x.dtype.type(1 / norm_type)
    return y


def _lp_backward(rank: int, dy: Array, x: Array, norm_type: float, windows: _Windows, layout: str) -> Array:
    divisor = _divisor(windows, True, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _average(rank, x ** x.dtype.type(norm_type), windows, divisor, layout)
        total = mean * x.dtype.type(windows.kernel)
        share = np.where(total == 0, 0, dy * total ** x.dtype.type(1 / norm_type - 1)) * x.dtype.type(windows.kernel)
        share = share.astype(dy.dtype)
        dx = np.zeros(x.shape, dy.dtype)
        power = _first(rank, x ** x.dtype.type(norm_type - 1), layout)
        source, to, sums = _first(rank, share, layout), _first(rank, dx, layout), _first(rank, total, layout)
        for at, covered in windows.places():
            inside = np.ix_(*covered)
            # A window of sum 0 passes nothing on, not even 0 times an infinity.
            to[inside] += np.where(sums[at] == 0, 0, source[at] / dy.dtype.type(divisor[at]) * power[inside])
        return dx


def _with_ones(rank: int, dy: Array, x: Any, layout: str) -> Array:
    if dy.ndim == len(_shape_of(x)):
        return dy
    return np.expand_dims(dy, _pixel_axes(rank, x, layout))


# ---------------------------------------------------------------------------------------------------- 1-D


def max_pool1d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """See `fastconv.functional.max_pool1d`."""
    y, indices = _max(1, x, _sliding(1, x, kernel_size, stride, padding, dilation, ceil_mode, layout), layout)
    y = _into(out, y)
    return (y, indices) if return_indices else y


def max_pool1d_backward(
    dy: Array,
    x: Any,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_pool1d_backward`."""
    shape = _shape_of(x)
    windows = _sliding(1, shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _into(out, _max_backward(1, dy, x, windows, indices, layout))


def max_unpool1d(
    x: Array,
    indices: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_unpool1d`."""
    return _into(out, _unpool(1, x, indices, kernel_size, stride, padding, output_size, layout))


def max_unpool1d_backward(
    dy: Array,
    indices: Array,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_unpool1d_backward`."""
    return _into(out, _unpool_backward(1, dy, indices, layout))


def avg_pool1d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.avg_pool1d`."""
    windows = _sliding(1, x, kernel_size, stride, padding, 1, ceil_mode, layout)
    divisor = _divisor(windows, count_include_pad, divisor_override)
    return _into(out, _average(1, x, windows, divisor, layout))


def avg_pool1d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.avg_pool1d_backward`."""
    windows = _sliding(1, input_shape, kernel_size, stride, padding, 1, ceil_mode, layout)
    divisor = _divisor(windows, count_include_pad, divisor_override)
    return _into(out, _average_backward(1, dy, input_shape, windows, divisor, layout))


def lp_pool1d(
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.lp_pool1d`."""
    windows = _sliding(1, x, kernel_size, stride, 0, 1, ceil_mode, layout)
    return _into(out, _lp(1, x, norm_type, windows, layout))


def lp_pool1d_backward(
    dy: Array,
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.lp_pool1d_backward`."""
    windows = _sliding(1, x, kernel_size, stride, 0, 1, ceil_mode, layout)
    return _into(out, _lp_backward(1, dy, x, norm_type, windows, layout))


def adaptive_avg_pool1d(
    x: Array,
    output_size: OutputSize,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_avg_pool1d`."""
    windows = _adaptive(1, x, output_size, layout)
    return _into(out, _average(1, x, windows, _divisor(windows, False, None), layout))


def adaptive_avg_pool1d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_avg_pool1d_backward`."""
    windows = _adaptive(1, input_shape, _pixels(1, dy, layout), layout)
    return _into(out, _average_backward(1, dy, input_shape, windows, _divisor(windows, False, None), layout))


def adaptive_max_pool1d(
    x: Array,
    output_size: OutputSize,
    *,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """See `fastconv.functional.adaptive_max_pool1d`."""
    y, indices = _max(1, x, _adaptive(1, x, output_size, layout), layout)
    y = _into(out, y)
    return (y, indices) if return_indices else y


def adaptive_max_pool1d_backward(
    dy: Array,
    x: Any,
    *,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_max_pool1d_backward`."""
    windows = _adaptive(1, _shape_of(x), _pixels(1, dy, layout), layout)
    return _into(out, _max_backward(1, dy, x, windows, indices, layout))


def global_avg_pool1d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_avg_pool1d`."""
    y = adaptive_avg_pool1d(x, 1, layout=layout)
    return _into(out, y if keepdims else y.squeeze(_pixel_axes(1, x, layout)))


def global_avg_pool1d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_avg_pool1d_backward`."""
    return adaptive_avg_pool1d_backward(_with_ones(1, dy, input_shape, layout), input_shape, layout=layout, out=out)


def global_max_pool1d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_max_pool1d`."""
    y = adaptive_max_pool1d(x, 1, layout=layout)
    return _into(out, y if keepdims else y.squeeze(_pixel_axes(1, x, layout)))


def global_max_pool1d_backward(
    dy: Array,
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_max_pool1d_backward`."""
    return adaptive_max_pool1d_backward(_with_ones(1, dy, x, layout), x, layout=layout, out=out)


# ---------------------------------------------------------------------------------------------------- 2-D


def max_pool2d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """See `fastconv.functional.max_pool2d`."""
    y, indices = _max(2, x, _sliding(2, x, kernel_size, stride, padding, dilation, ceil_mode, layout), layout)
    y = _into(out, y)
    return (y, indices) if return_indices else y


def max_pool2d_backward(
    dy: Array,
    x: Any,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_pool2d_backward`."""
    shape = _shape_of(x)
    windows = _sliding(2, shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _into(out, _max_backward(2, dy, x, windows, indices, layout))


def max_unpool2d(
    x: Array,
    indices: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_unpool2d`."""
    return _into(out, _unpool(2, x, indices, kernel_size, stride, padding, output_size, layout))


def max_unpool2d_backward(
    dy: Array,
    indices: Array,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_unpool2d_backward`."""
    return _into(out, _unpool_backward(2, dy, indices, layout))


def avg_pool2d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.avg_pool2d`."""
    windows = _sliding(2, x, kernel_size, stride, padding, 1, ceil_mode, layout)
    divisor = _divisor(windows, count_include_pad, divisor_override)
    return _into(out, _average(2, x, windows, divisor, layout))


def avg_pool2d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.avg_pool2d_backward`."""
    windows = _sliding(2, input_shape, kernel_size, stride, padding, 1, ceil_mode, layout)
    divisor = _divisor(windows, count_include_pad, divisor_override)
    return _into(out, _average_backward(2, dy, input_shape, windows, divisor, layout))


def lp_pool2d(
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.lp_pool2d`."""
    windows = _sliding(2, x, kernel_size, stride, 0, 1, ceil_mode, layout)
    return _into(out, _lp(2, x, norm_type, windows, layout))


def lp_pool2d_backward(
    dy: Array,
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.lp_pool2d_backward`."""
    windows = _sliding(2, x, kernel_size, stride, 0, 1, ceil_mode, layout)
    return _into(out, _lp_backward(2, dy, x, norm_type, windows, layout))


def adaptive_avg_pool2d(
    x: Array,
    output_size: OutputSize,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_avg_pool2d`."""
    windows = _adaptive(2, x, output_size, layout)
    return _into(out, _average(2, x, windows, _divisor(windows, False, None), layout))


def adaptive_avg_pool2d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_avg_pool2d_backward`."""
    windows = _adaptive(2, input_shape, _pixels(2, dy, layout), layout)
    return _into(out, _average_backward(2, dy, input_shape, windows, _divisor(windows, False, None), layout))


def adaptive_max_pool2d(
    x: Array,
    output_size: OutputSize,
    *,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """See `fastconv.functional.adaptive_max_pool2d`."""
    y, indices = _max(2, x, _adaptive(2, x, output_size, layout), layout)
    y = _into(out, y)
    return (y, indices) if return_indices else y


def adaptive_max_pool2d_backward(
    dy: Array,
    x: Any,
    *,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_max_pool2d_backward`."""
    windows = _adaptive(2, _shape_of(x), _pixels(2, dy, layout), layout)
    return _into(out, _max_backward(2, dy, x, windows, indices, layout))


def global_avg_pool2d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_avg_pool2d`."""
    y = adaptive_avg_pool2d(x, 1, layout=layout)
    return _into(out, y if keepdims else y.squeeze(_pixel_axes(2, x, layout)))


def global_avg_pool2d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_avg_pool2d_backward`."""
    return adaptive_avg_pool2d_backward(_with_ones(2, dy, input_shape, layout), input_shape, layout=layout, out=out)


def global_max_pool2d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_max_pool2d`."""
    y = adaptive_max_pool2d(x, 1, layout=layout)
    return _into(out, y if keepdims else y.squeeze(_pixel_axes(2, x, layout)))


def global_max_pool2d_backward(
    dy: Array,
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_max_pool2d_backward`."""
    return adaptive_max_pool2d_backward(_with_ones(2, dy, x, layout), x, layout=layout, out=out)


# ---------------------------------------------------------------------------------------------------- 3-D


def max_pool3d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """See `fastconv.functional.max_pool3d`."""
    y, indices = _max(3, x, _sliding(3, x, kernel_size, stride, padding, dilation, ceil_mode, layout), layout)
    y = _into(out, y)
    return (y, indices) if return_indices else y


def max_pool3d_backward(
    dy: Array,
    x: Any,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_pool3d_backward`."""
    shape = _shape_of(x)
    windows = _sliding(3, shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _into(out, _max_backward(3, dy, x, windows, indices, layout))


def max_unpool3d(
    x: Array,
    indices: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_unpool3d`."""
    return _into(out, _unpool(3, x, indices, kernel_size, stride, padding, output_size, layout))


def max_unpool3d_backward(
    dy: Array,
    indices: Array,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.max_unpool3d_backward`."""
    return _into(out, _unpool_backward(3, dy, indices, layout))


def avg_pool3d(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.avg_pool3d`."""
    windows = _sliding(3, x, kernel_size, stride, padding, 1, ceil_mode, layout)
    divisor = _divisor(windows, count_include_pad, divisor_override)
    return _into(out, _average(3, x, windows, divisor, layout))


def avg_pool3d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: CeilMode = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.avg_pool3d_backward`."""
    windows = _sliding(3, input_shape, kernel_size, stride, padding, 1, ceil_mode, layout)
    divisor = _divisor(windows, count_include_pad, divisor_override)
    return _into(out, _average_backward(3, dy, input_shape, windows, divisor, layout))


def lp_pool3d(
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.lp_pool3d`."""
    windows = _sliding(3, x, kernel_size, stride, 0, 1, ceil_mode, layout)
    return _into(out, _lp(3, x, norm_type, windows, layout))


def lp_pool3d_backward(
    dy: Array,
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    ceil_mode: CeilMode = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.lp_pool3d_backward`."""
    windows = _sliding(3, x, kernel_size, stride, 0, 1, ceil_mode, layout)
    return _into(out, _lp_backward(3, dy, x, norm_type, windows, layout))


def adaptive_avg_pool3d(
    x: Array,
    output_size: OutputSize,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_avg_pool3d`."""
    windows = _adaptive(3, x, output_size, layout)
    return _into(out, _average(3, x, windows, _divisor(windows, False, None), layout))


def adaptive_avg_pool3d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_avg_pool3d_backward`."""
    windows = _adaptive(3, input_shape, _pixels(3, dy, layout), layout)
    return _into(out, _average_backward(3, dy, input_shape, windows, _divisor(windows, False, None), layout))


def adaptive_max_pool3d(
    x: Array,
    output_size: OutputSize,
    *,
    return_indices: bool = False,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Any:
    """See `fastconv.functional.adaptive_max_pool3d`."""
    y, indices = _max(3, x, _adaptive(3, x, output_size, layout), layout)
    y = _into(out, y)
    return (y, indices) if return_indices else y


def adaptive_max_pool3d_backward(
    dy: Array,
    x: Any,
    *,
    layout: str = "NCHW",
    indices: Array | None = None,
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.adaptive_max_pool3d_backward`."""
    windows = _adaptive(3, _shape_of(x), _pixels(3, dy, layout), layout)
    return _into(out, _max_backward(3, dy, x, windows, indices, layout))


def global_avg_pool3d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_avg_pool3d`."""
    y = adaptive_avg_pool3d(x, 1, layout=layout)
    return _into(out, y if keepdims else y.squeeze(_pixel_axes(3, x, layout)))


def global_avg_pool3d_backward(
    dy: Array,
    input_shape: Sequence[int],
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_avg_pool3d_backward`."""
    return adaptive_avg_pool3d_backward(_with_ones(3, dy, input_shape, layout), input_shape, layout=layout, out=out)


def global_max_pool3d(
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_max_pool3d`."""
    y = adaptive_max_pool3d(x, 1, layout=layout)
    return _into(out, y if keepdims else y.squeeze(_pixel_axes(3, x, layout)))


def global_max_pool3d_backward(
    dy: Array,
    x: Array,
    *,
    keepdims: bool = True,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """See `fastconv.functional.global_max_pool3d_backward`."""
    return adaptive_max_pool3d_backward(_with_ones(3, dy, x, layout), x, layout=layout, out=out)
