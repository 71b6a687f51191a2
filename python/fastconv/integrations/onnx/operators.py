"""ONNX's operators on arrays: convolutions, pools and norms by fastconv's functions, the rest by NumPy.

`OPERATORS` is the list of what is supported. An entry computes a node from arrays; that is how constants are folded,
and how a node runs which has no node of fastconv's graphs to stand for it (see `lower`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx.helper

from ... import functional
from ..._args import Array
from .load import Step

# No result has more elements than that, nor what constants are folded to in all: hostile models ask for it by a line.
_MOST_ELEMENTS = 2**31
MOST_FOLDED = 2**28
# How many a result may have here and now.
LIMIT: ContextVar[int] = ContextVar("LIMIT", default=_MOST_ELEMENTS)

Results = Array | tuple[Array, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """How a node is computed.

    Attributes:
        compute: compute(step, *inputs), an absent input being None; one array, or one an output.
        kind: how the shape of the result is found without computing it: "broadcast" (elementwise), "images" (axis 0 is
            a batch, which may be empty), "same" (as the first input), "cast" (its shape) or "any" (from zeros).
        constants: the inputs that must be known when a graph is prepared, since shapes depend on them.
        refuse: refuse(step), what of a node's attributes is not supported, or None.
        note: what of the operator is left out, for the documentation.
    """

    compute: Callable[..., Results]
    kind: str = "any"
    constants: tuple[int, ...] = ()
    refuse: Callable[[Step], str | None] | None = None
    note: str = ""


OPERATORS: dict[str, Operator] = {}


def _operator(*names: str, **options: Any) -> Callable[[Callable[..., Results]], Callable[..., Results]]:
    def add(compute: Callable[..., Results]) -> Callable[..., Results]:
        for name in names:
            OPERATORS[name] = Operator(compute, **options)
        return compute

    return add


def _ints(a: Any) -> tuple[int, ...]:
    """A vector of numbers as Python's."""
    return tuple(int(n) for n in np.asarray(a).reshape(-1))


def axis_of(axis: int, rank: int, *, end: bool = False) -> int:
    """An axis counted from the front; with `end` the one after the last is one, too."""
    if not -rank <= axis < rank + end:
        raise ValueError(f"axis (={axis}) must be one of an array of {rank} dimensions")
    return axis + rank if axis < 0 else axis


def _axes(axes: Any, rank: int) -> tuple[int, ...]:
    found = tuple(axis_of(a, rank) for a in _ints(axes))
    if len(set(found)) != len(found):
        raise ValueError(f"axes (={found}) must be different ones")
    return found


def _admit(shape: Sequence[int]) -> tuple[int, ...]:
    # What is on the way to an empty result may be large.
    if min(shape, default=0) < 0 or math.prod(n for n in shape if n) > LIMIT.get():
        raise ValueError(f"the result's shape {tuple(shape)} must have from 0 to {LIMIT.get()} elements")
    return tuple(shape)


def admit_fold(step: Step, shapes: Sequence[tuple[int, ...]]) -> None:
    """See to it that a node of constants of these shapes makes no more than is admitted, before it is computed."""
    if OPERATORS[step.op].kind == "broadcast" and step.version >= 7:
        _admit(np.broadcast_shapes(*shapes))
    elif step.op == "Concat":
        _admit((sum(map(math.prod, shapes)),))
    elif step.op in ("Gather", "MatMul", "Gemm", "Einsum"):
        # An upper bound: the products of all axes that are not summed over, or not taken from.
        if step.op == "Gather":
            x, indices = shapes
            axis = axis_of(step.get("axis", 0), len(x))
            _admit((*x[:axis], *indices, *x[axis + 1 :]))
        elif step.op == "Einsum":
            _admit_einsum(step, shapes)
        elif min(len(s) for s in shapes[:2]) >= 2:
            a, b = shapes[0], shapes[1]
            turned = step.op == "Gemm"
            rows = a[-1] if turned and step.get("transA", 0) else a[-2]
            columns = b[-2] if turned and step.get("transB", 0) else b[-1]
            _admit((*np.broadcast_shapes(a[:-2], b[:-2]), rows, columns))


def _admit_einsum(step: Step, shapes: Sequence[tuple[int, ...]]) -> None:
    terms, arrow, result = step.attributes["equation"].replace(" ", "").partition("->")
    if "." in terms or not arrow:
        return
    sizes = {c: n for term, s in zip(terms.split(","), shapes, strict=True) for c, n in zip(term, s, strict=True)}
    _admit([sizes[c] for c in result])


# ------------------------------------------------------------------------------------------------ windows of an image


def padding(
    step: Step, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Pairs:
    """What is put before and after each spatial axis, by `pads` or `auto_pad`."""
    auto, rank = step.get("auto_pad", "NOTSET"), len(sizes)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pairs = []
        for n, r, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            total = max((-(-n // s) - 1) * s + (r - 1) * d + 1 - n, 0)
            less, more = total // 2, total - total // 2
            pairs.append((less, more) if auto == "SAME_UPPER" else (more, less))
        return tuple(pairs)
    pads = _given(step, "pads", 2 * rank, 0) if auto == "NOTSET" else (0,) * (2 * rank)
    return tuple(zip(pads[:rank], pads[rank:], strict=True))


def _given(step: Step, name: str, count: int, default: int) -> tuple[int, ...]:
    """An attribute of so many numbers."""
    values: tuple[int, ...] = step.get(name) or (default,) * count
    if len(values) != count:
        raise ValueError(f"{name} (={values}) must have {count} entries")
    return values


def convolution(step: Step, x: Sequence[int], weight: Sequence[int]) -> dict[str, Any]:
    """The options of functional.conv<d>d or conv_transpose<d>d for arrays of these shapes."""
    rank = len(x) - 2
    if rank not in (1, 2, 3) or len(weight) != rank + 2:
        raise ValueError(
            f"x (shape {tuple(x)}) and the weight (shape {tuple(weight)}) must have 3 to 5 dimensions each"
        )
    kernel = tuple(weight[2:])
    if step.get("kernel_shape", kernel) != kernel:
        raise ValueError(f"kernel_shape (={step.get('kernel_shape')}) must be that of the weight, {kernel}")
    stride, dilation = _given(step, "strides", rank, 1), _given(step, "dilations", rank, 1)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": step.get("group", 1)}
    if step.op == "Conv":
        options["padding"] = padding(step, x[2:], kernel, stride, dilation)
        return options
    more = _given(step, "output_padding", rank, 0)
    wanted, auto = step.get("output_shape"), step.get("auto_pad", "NOTSET")
    if wanted is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        if wanted is None:
            wanted = [n * s for n, s in zip(x[2:], stride, strict=True)]
        pairs, extra = [], []
        sizes = zip(x[2:], kernel, stride, dilation, more, wanted[-rank:], strict=True)
        for n, r, s, d, e, p in sizes:
            total = s * (n - 1) + e + (r - 1) * d + 1 - p
            extra.append(e + max(-total, 0))
            total = max(total, 0)
            less, rest = total // 2, total - total // 2
            pairs.append((less, rest) if auto == "SAME_UPPER" else (rest, less))
        options |= {"padding": tuple(pairs), "output_padding": tuple(extra)}
    else:
        options |= {"padding": padding(step, x[2:], kernel, stride, dilation), "output_padding": more}
    return options


@_operator("Conv", "ConvTranspose", kind="images", note="1 to 3 spatial axes")
def _convolve(step: Step, x: Array, weight: Array, bias: Array | None = None) -> Array:
    name = "conv" if step.op == "Conv" else "conv_transpose"
    options = convolution(step, x.shape, weight.shape)
    y: Array = getattr(functional, f"{name}{x.ndim - 2}d")(x, weight, bias, **options)
    return y


def pool(step: Step, x: Sequence[int]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The kernel of a pool, and its options: stride, padding, dilation, ceil_mode."""
    rank = len(x) - 2
    if rank not in (1, 2, 3):
        raise ValueError(f"x (shape {tuple(x)}) must have 3 to 5 dimensions")
    kernel = _given(step, "kernel_shape", rank, 1)
    stride, dilation = _given(step, "strides", rank, 1), _given(step, "dilations", rank, 1)
    options = {"stride": stride, "dilation": dilation, "padding": padding(step, x[2:], kernel, stride, dilation)}
    # As PyTorch and ONNX from operators 22 on; before, a last window in the padding was counted by the letter alone.
    return kernel, options | {
        "ceil_mode": bool(step.get("ceil_mode", 0)) and step.get("auto_pad", "NOTSET") == "NOTSET"
    }


@_operator("MaxPool", kind="images", note="1 to 3 spatial axes; indices")
def _max_pool(step: Step, x: Array) -> Results:
    kernel, options = pool(step, x.shape)
    function = getattr(functional, f"max_pool{x.ndim - 2}d")
    if len(step.outputs) < 2 or not step.outputs[1]:
        y: Array = function(x, kernel, **options)
        return y
    y, indices = function(x, kernel, return_indices=True, **options)
    sizes = x.shape[2:]
    if step.get("storage_order", 0):
        places = np.unravel_index(indices, sizes)
        indices = np.ravel_multi_index(places[::-1], sizes[::-1])
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * len(sizes))
    return y, np.asarray(indices + planes * math.prod(sizes), np.int64)


def windows(x: Array, kernel: Sequence[int], options: dict[str, Any], fill: float) -> Array:
    """The windows of a pool as a view (N, C, P, ..., R, ...) of the padded image."""
    pairs, ends = [], []
    counts = []
    sizes = zip(x.shape[2:], kernel, options["stride"], options["dilation"], options["padding"], strict=True)
    for n, r, s, d, (before, after) in sizes:
        room = n + before + after - (r - 1) * d - 1
        count = room // s + 1
        if options["ceil_mode"] and room % s and count * s < n + before:
            count += 1
        last = (count - 1) * s + (r - 1) * d + 1
        counts.append(count)
        pairs.append((before, max(after, last - n - before)))
        ends.append((r - 1) * d + 1)
    image = np.pad(x, [(0, 0), (0, 0), *pairs], constant_values=fill)
    axes = tuple(range(2, x.ndim))
    all_windows = np.lib.stride_tricks.sliding_window_view(image, ends, axis=axes)
    steps = [slice(None, (c - 1) * s + 1, s) for c, s in zip(counts, options["stride"], strict=True)]
    taps = [slice(None, None, d) for d in options["dilation"]]
    view: Array = all_windows[(slice(None), slice(None), *steps, *taps)]
    return view


@_operator("AveragePool", kind="images", note="1 to 3 spatial axes")
def _average_pool(step: Step, x: Array) -> Array:
    kernel, options = pool(step, x.shape)
    counted = bool(step.get("count_include_pad", 0))
    if max(options["dilation"]) == 1:
        del options["dilation"]
        y: Array = getattr(functional, f"avg_pool{x.ndim - 2}d")(x, kernel, count_include_pad=counted, **options)
        return y
    axes = tuple(range(-len(kernel), 0))
    # What a window adds beyond the padding that was asked for is never counted.
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    inside = options
    if counted:
        ones = np.pad(ones, [(0, 0), (0, 0), *options["padding"]], constant_values=1)
        inside = options | {"padding": ((0, 0),) * len(kernel)}
    sums, divisor = windows(x, kernel, options, 0).sum(axes), windows(ones, kernel, inside, 0).sum(axes)
    return np.asarray(sums / divisor[(..., *[slice(n) for n in sums.shape[2:]])], x.dtype)


@_operator("LpPool", kind="images", note="1 to 3 spatial axes")
def _lp_pool(step: Step, x: Array) -> Array:
    kernel, options = pool(step, x.shape)
    p = step.get("p", 2)
    taps = np.abs(windows(x, kernel, options, 0)) ** x.dtype.type(p)
    return np.asarray(taps.sum(tuple(range(-len(kernel), 0))) ** x.dtype.type(1 / p), x.dtype)


@_operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", kind="images")
def _global_pool(step: Step, x: Array) -> Array:
    axes = tuple(range(2, x.ndim))
    if step.op == "GlobalLpPool":
        p = step.get("p", 2)
        return np.asarray((np.abs(x) ** x.dtype.type(p)).sum(axes, keepdims=True) ** x.dtype.type(1 / p), x.dtype)
    if 3 <= x.ndim <= 5 and x.dtype in (np.float32, np.float64):
        name = "avg" if step.op == "GlobalAveragePool" else "max"
        y: Array = getattr(functional, f"global_{name}_pool{x.ndim - 2}d")(x, keepdims=True)
        return y
    return np.asarray((np.mean if step.op == "GlobalAveragePool" else np.max)(x, axes, keepdims=True), x.dtype)


@_operator("MaxUnpool", constants=(2,))
def _max_unpool(step: Step, x: Array, indices: Array, shape: Array | None = None) -> Array:
    rank = x.ndim - 2
    kernel, stride = _given(step, "kernel_shape", rank, 1), _given(step, "strides", rank, 1)
    pads = _given(step, "pads", 2 * rank, 0)
    sizes = [
        (n - 1) * s + r - pads[i] - pads[i + rank]
        for i, (n, r, s) in enumerate(zip(x.shape[2:], kernel, stride, strict=True))
    ]
    natural = (*x.shape[:2], *sizes)
    y = np.zeros(_admit(natural if shape is None else _ints(shape)), x.dtype)
    # Indices are those of the smallest image that the windows came from.
    y[tuple(np.unravel_index(indices, natural))] = x
    return y


# --------------------------------------------------------------------------------------------------------------- norms


def _channels(v: Array, rank: int) -> Array:
    return v.reshape(-1, *[1] * (rank - 2))


def trains(step: Step) -> bool:
    """Whether a batch norm goes by the statistics of its batch."""
    if step.version < 7:
        return not step.get("is_test", 0)
    if step.version < 14:
        return len([name for name in step.outputs if name]) > 1
    return bool(step.get("training_mode", 0))


def _refuse_batch_norm(step: Step) -> str | None:
    return None if step.get("spatial", 1) else "spatial=0"


@_operator("BatchNormalization", kind="same", refuse=_refuse_batch_norm, note="training, too; not spatial=0")
def _batch_norm(step: Step, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Results:
    eps = step.get("epsilon", 1e-5)
    if not trains(step):
        # In float64, so that each factor is one rounding.
        factor = scale / np.sqrt(var.astype(np.float64) + eps)
        offset = bias - mean * factor
        return np.asarray(x * _channels(factor, x.ndim) + _channels(offset, x.ndim), x.dtype)
    momentum = step.get("momentum", 0.9)
    running = np.array(mean, x.dtype), np.array(var, x.dtype)
    options = {"momentum": momentum, "momentum_convention": "keras", "running_variance": "biased", "eps": eps}
    y = functional.batch_norm(
        x, *running, np.asarray(scale, x.dtype), np.asarray(bias, x.dtype), training=True, **options
    )
    return (y, running[0].astype(mean.dtype), running[1].astype(var.dtype))


@_operator("InstanceNormalization", kind="same")
def _instance_norm(step: Step, x: Array, scale: Array, bias: Array) -> Array:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=step.get("epsilon", 1e-5))


@_operator("GroupNormalization", kind="same")
def _group_norm(step: Step, x: Array, scale: Array, bias: Array) -> Array:
    groups, channels = step.get("num_groups", 1), x.shape[1]
    if scale.size == groups != channels:
        # Before operators 21 they were the groups'.
        scale, bias = np.repeat(scale, channels // groups), np.repeat(bias, channels // groups)
    return functional.group_norm(x, groups, weight=scale, bias=bias, eps=step.get("epsilon", 1e-5))


@_operator("LayerNormalization")
def _layer_norm(step: Step, x: Array, scale: Array, bias: Array | None = None) -> Results:
    axis = axis_of(step.get("axis", -1), x.ndim)
    eps, shape = step.get("epsilon", 1e-5), x.shape[axis:]
    weight = np.ascontiguousarray(np.broadcast_to(scale, shape))
    shift = None if bias is None else np.ascontiguousarray(np.broadcast_to(bias, shape))
    y = functional.layer_norm(x, shape, weight, shift, eps=eps)
    if not any(step.outputs[1:]):
        return y
    axes = tuple(range(axis, x.ndim))
    mean = x.mean(axes, keepdims=True)
    inverse = 1 / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + x.dtype.type(eps))
    return y, np.asarray(mean, x.dtype), np.asarray(inverse, x.dtype)


def response(step: Step) -> tuple[int, float, float, float]:
    """The arguments of functional.local_response_norm."""
    return step.attributes["size"], step.get("alpha", 1e-4), step.get("beta", 0.75), step.get("bias", 1.0)


@_operator("LRN", kind="same")
def _local_response_norm(step: Step, x: Array) -> Array:
    size, alpha, beta, k = response(step)
    if size % 2:
        return functional.local_response_norm(x, size, alpha, beta, k)
    # A window of an even size reaches further after the channel than before it, fastconv's further before.
    return functional.local_response_norm(x[:, ::-1].copy(), size, alpha, beta, k)[:, ::-1]


@_operator("LpNormalization", kind="same")
def _lp_norm(step: Step, x: Array) -> Array:
    axis, p = step.get("axis", -1), step.get("p", 2)
    length = np.abs(x).sum(axis, keepdims=True) if p == 1 else np.sqrt((x * x).sum(axis, keepdims=True))
    return np.asarray(np.where(length == 0, 0, x / np.where(length == 0, 1, length)), x.dtype)


@_operator("MeanVarianceNormalization", kind="same")
def _mean_variance_norm(step: Step, x: Array) -> Array:
    axes = step.get("axes", (0, 2, 3))
    centred = x - x.mean(axes, keepdims=True)
    return np.asarray(
        centred / (np.sqrt((x * x).mean(axes, keepdims=True) - x.mean(axes, keepdims=True) ** 2) + 1e-9), x.dtype
    )


# -------------------------------------------------------------------------------------------------- dense, reductions


@_operator("Gemm")
def _gemm(step: Step, a: Array, b: Array, c: Array | None = None) -> Array:
    product = (a.T if step.get("transA", 0) else a) @ (b.T if step.get("transB", 0) else b)
    alpha, beta = step.get("alpha", 1.0), step.get("beta", 1.0)
    if alpha != 1:
        product = product * a.dtype.type(alpha)
    return product if c is None else np.asarray(product + (c if beta == 1 else c * a.dtype.type(beta)), a.dtype)


@_operator("MatMul")
def _matmul(step: Step, a: Array, b: Array) -> Array:
    return np.asarray(a @ b)


def _rows(step: Step, x: Array) -> tuple[Array, int]:
    """What a softmax sees: before operators 13 the axes from `axis` on are one."""
    if step.version >= 13:
        return x, step.get("axis", -1)
    axis = axis_of(step.get("axis", 1), x.ndim, end=True)
    return x.reshape(math.prod(x.shape[:axis]), -1), 1


@_operator("Softmax", "LogSoftmax", "Hardmax", kind="same")
def _softmax(step: Step, x: Array) -> Array:
    rows, axis = _rows(step, x)
    if step.op == "Hardmax":
        first = np.argmax(rows, axis)
        y = np.zeros_like(rows)
        np.put_along_axis(y, np.expand_dims(first, axis), 1, axis)
    elif rows.dtype in (np.float32, np.float64):
        y = (functional.softmax if step.op == "Softmax" else functional.log_softmax)(rows, axis)
    else:
        shifted = rows - rows.max(axis, keepdims=True)
        total = np.exp(shifted).sum(axis, keepdims=True)
        y = np.exp(shifted) / total if step.op == "Softmax" else shifted - np.log(total)
    return y.reshape(x.shape)


_REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceMean": np.mean,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceL1": lambda x, axes, keepdims: np.abs(x).sum(axes, keepdims=keepdims),
    "ReduceL2": lambda x, axes, keepdims: np.sqrt((x * x).sum(axes, keepdims=keepdims)),
    "ReduceSumSquare": lambda x, axes, keepdims: (x * x).sum(axes, keepdims=keepdims),
    "ReduceLogSum": lambda x, axes, keepdims: np.log(x.sum(axes, keepdims=keepdims)),
    "ReduceLogSumExp": lambda x, axes, keepdims: _log_sum_exp(x, axes, keepdims),
}


def _log_sum_exp(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    most = x.max(axes, keepdims=True, initial=-np.inf)
    most = np.where(np.isfinite(most), most, 0)
    y = np.log(np.exp(x - most).sum(axes, keepdims=True)) + most
    return np.asarray(y if keepdims else y.squeeze(axes))


def reduced_axes(step: Step, rank: int, axes: Any) -> tuple[int, ...]:
    """The axes of a reduction; none are all, or with noop_with_empty_axes none."""
    axes = step.get("axes") if axes is None else _ints(axes)
    if not axes:
        return () if step.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return _axes(axes, rank)


def _extreme(dtype: np.dtype[Any], least: bool) -> Any:
    """What the maximum or minimum of nothing is."""
    if dtype.kind == "b":
        return not least
    if dtype.kind == "f":
        return -np.inf if least else np.inf
    return np.iinfo(dtype).min if least else np.iinfo(dtype).max


@_operator(*_REDUCE, constants=(1,))
def _reduce(step: Step, x: Array, axes: Array | None = None) -> Array:
    found = reduced_axes(step, x.ndim, axes)
    if not found and x.ndim and step.op in ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd"):
        return x
    options = {}
    if step.op in ("ReduceMax", "ReduceMin"):
        options = {"initial": _extreme(x.dtype, least=step.op == "ReduceMax")}
    return np.asarray(_REDUCE[step.op](x, found, keepdims=bool(step.get("keepdims", 1)), **options), x.dtype)


@_operator("ArgMax", "ArgMin")
def _arg(step: Step, x: Array) -> Array:
    axis = axis_of(step.get("axis", 0), x.ndim)
    function = np.argmax if step.op == "ArgMax" else np.argmin
    if step.get("select_last_index", 0):
        found = x.shape[axis] - 1 - function(np.flip(x, axis), axis)
    else:
        found = function(x, axis)
    return np.asarray(np.expand_dims(found, axis) if step.get("keepdims", 1) else found, np.int64)


@_operator("TopK", constants=(1,))
def _top(step: Step, x: Array, k: Array | None = None) -> Results:
    axis, count = axis_of(step.get("axis", -1), x.ndim), step.get("k") if k is None else _ints(k)[0]
    if not 0 <= count <= x.shape[axis]:
        raise ValueError(f"k (={count}) must be from 0 to the size of axis {axis}, which is {x.shape[axis]}")
    largest = bool(step.get("largest", 1))
    # Of equal ones the first comes first.
    if largest:
        order = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    order = np.take(order, np.arange(count), axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


@_operator("CumSum", kind="same", constants=(1,))
def _cumulative_sum(step: Step, x: Array, axis: Array) -> Array:
    a = axis_of(_ints(axis)[0], x.ndim)
    y = np.flip(x, a) if step.get("reverse", 0) else x
    sums = np.cumsum(y, a, dtype=x.dtype)
    if step.get("exclusive", 0):
        sums = sums - y
    return np.flip(sums, a) if step.get("reverse", 0) else sums


# --------------------------------------------------------------------------------------------------------- elementwise


def _aligned(step: Step, x: Array, y: Array) -> Array:
    """Y as it broadcasts against x: before operators 7 from an axis on."""
    axis = step.get("axis")
    if step.op == "PRelu" and step.version < 7 and y.ndim == 1 < x.ndim:
        return y.reshape(-1, *[1] * (x.ndim - 2))
    if step.version >= 7 or axis is None or not step.get("broadcast", 0):
        return y
    return y.reshape(*y.shape, *[1] * (x.ndim - axis_of(axis, x.ndim) - y.ndim))


def _quotient(x: Array, y: Array) -> Array:
    """Of integers towards 0, as in C."""
    if not np.issubdtype(x.dtype, np.integer):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(x / y, x.dtype)
    q = np.floor_divide(x, y)
    return np.asarray(q + ((q < 0) & (q * y != x)), x.dtype)


def _power(x: Array, y: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(np.power(x, y), x.dtype)


_BINARY: dict[str, Callable[[Array, Array], Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _quotient,
    "Pow": _power,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "PRelu": lambda x, slope: np.where(x < 0, x * slope, x).astype(x.dtype),
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}


@_operator(*_BINARY, kind="broadcast")
def _binary(step: Step, x: Array, y: Array) -> Array:
    return np.asarray(_BINARY[step.op](x, _aligned(step, x, y)))


@_operator("Mod", kind="broadcast")
def _modulo(step: Step, x: Array, y: Array) -> Array:
    return np.asarray((np.fmod if step.get("fmod", 0) else np.mod)(x, y))


_MANY: dict[str, Callable[[Array, Array], Any]] = {
    "Sum": np.add,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mean": np.add,
}


@_operator(*_MANY, kind="broadcast")
def _many(step: Step, *inputs: Array) -> Array:
    total = inputs[0]
    for x in inputs[1:]:
        total = _MANY[step.op](total, x)
    return np.asarray(total / total.dtype.type(len(inputs)) if step.op == "Mean" else total)


def _erf(x: Array) -> Array:
    flat = np.fromiter((math.erf(v) for v in x.reshape(-1).tolist()), np.float64, x.size)
    return flat.reshape(x.shape).astype(x.dtype)


def _round_trip(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """In float64 and back, for functions of several roundings."""
    return lambda x: np.asarray(function(x.astype(np.float64)), x.dtype)


_UNARY: dict[str, Callable[[Array], Any]] = {
    "Neg": np.negative,
    "Abs": np.abs,
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Reciprocal": lambda x: np.asarray(1 / x, x.dtype),
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sign": np.sign,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tan": np.tan,
    "Asin": np.arcsin,
    "Acos": np.arccos,
    "Atan": np.arctan,
    "Sinh": np.sinh,
    "Cosh": np.cosh,
    "Asinh": np.arcsinh,
    "Acosh": np.arccosh,
    "Atanh": np.arctanh,
    "Not": np.logical_not,
    "BitwiseNot": np.bitwise_not,
    "IsNaN": np.isnan,
    "Erf": _erf,
    "Softplus": _round_trip(lambda x: np.logaddexp(x, 0)),
    "Softsign": lambda x: np.asarray(x / (1 + np.abs(x)), x.dtype),
    "Mish": _round_trip(lambda x: x * np.tanh(np.logaddexp(x, 0))),
}


@_operator(*_UNARY, kind="broadcast")
def _unary(step: Step, x: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(_UNARY[step.op](x))


@_operator("IsInf", kind="broadcast")
def _is_infinite(step: Step, x: Array) -> Array:
    y = np.zeros(x.shape, np.bool_)
    if step.get("detect_positive", 1):
        y |= np.isposinf(x)
    if step.get("detect_negative", 1):
        y |= np.isneginf(x)
    return y


def _elu(step: Step, x: Array) -> Array:
    return np.where(x > 0, x, step.get("alpha", 1.0) * np.expm1(np.minimum(x, 0)))


def _selu(step: Step, x: Array) -> Array:
    alpha, gamma = step.get("alpha", 1.67326319217681884765625), step.get("gamma", 1.05070102214813232421875)
    return np.asarray(np.where(x > 0, gamma * x, gamma * alpha * np.expm1(np.minimum(x, 0))))


def _celu(step: Step, x: Array) -> Array:
    alpha = step.get("alpha", 1.0)
    return np.asarray(np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha)))


def _shrink(step: Step, x: Array) -> Array:
    edge, bias = step.get("lambd", 0.5), step.get("bias", 0.0)
    return np.where(x < -edge, x + bias, np.where(x > edge, x - bias, 0))


def _gelu(step: Step, x: Array) -> Array:
    if step.get("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e))


_WITH_ATTRIBUTES: dict[str, Callable[[Step, Array], Array]] = {
    "Relu": lambda step, x: np.maximum(x, 0),
    "LeakyRelu": lambda step, x: np.where(x < 0, x * step.get("alpha", 0.01), x),
    "ThresholdedRelu": lambda step, x: np.where(x > step.get("alpha", 1.0), x, 0),
    "Sigmoid": lambda step, x: _sigmoid(x),
    "HardSigmoid": lambda step, x: np.clip(step.get("alpha", 0.2) * x + step.get("beta", 0.5), 0, 1),
    "HardSwish": lambda step, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Tanh": lambda step, x: np.tanh(x),
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Shrink": _shrink,
    "Gelu": _gelu,
    "Swish": lambda step, x: x * _sigmoid(step.get("alpha", 1.0) * x),
}


@_operator(*_WITH_ATTRIBUTES, kind="broadcast")
def _with_attributes(step: Step, x: Array) -> Array:
    # Integers as they are (Relu); the others in float64, rounded once.
    y = _WITH_ATTRIBUTES[step.op](step, x if np.issubdtype(x.dtype, np.integer) else x.astype(np.float64))
    return np.asarray(y, x.dtype)


@_operator("Clip", kind="same")
def _clip(step: Step, x: Array, least: Array | None = None, most: Array | None = None) -> Array:
    low, high = step.get("min", least), step.get("max", most)
    y = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return np.asarray(y if high is None else np.minimum(y, np.asarray(high, x.dtype)), x.dtype)


@_operator("Where", kind="broadcast")
def _where(step: Step, condition: Array, x: Array, y: Array) -> Array:
    return np.where(condition, x, y)


def _cast(x: Array, code: int) -> Array:
    with np.errstate(all="ignore"):
        return x.astype(onnx.helper.tensor_dtype_to_np_dtype(code))


def _refuse_cast(step: Step) -> str | None:
    code = step.get("to")
    names = (
        "FLOAT",
        "DOUBLE",
        "FLOAT16",
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
    )
    known = {getattr(onnx.TensorProto, name) for name in names}
    return None if code in known else f"to (={code})"


@_operator("Cast", kind="cast", refuse=_refuse_cast, note="between the numbers of NumPy")
def _cast_to(step: Step, x: Array) -> Array:
    return _cast(x, step.get("to"))


@_operator("CastLike", kind="cast")
def _cast_like(step: Step, x: Array, y: Array) -> Array:
    with np.errstate(all="ignore"):
        return x.astype(y.dtype)


@_operator("Identity", kind="same")
def _identity(step: Step, x: Array) -> Array:
    return x


def _refuse_dropout(step: Step) -> str | None:
    return "training" if step.version < 7 and step.get("is_test", 0) == 0 else None


def drops(ratio: Array | None, training: Array | None) -> bool:
    """Whether a Dropout drops anything."""
    return training is not None and bool(training.item()) and (ratio is None or ratio.item() > 0)


@_operator("Dropout", constants=(1, 2), refuse=_refuse_dropout, note="as in inference")
def _dropout(step: Step, x: Array, ratio: Array | None = None, training: Array | None = None) -> Results:
    if drops(ratio, training):
        raise ValueError("training_mode (=True) must be False")
    if len(step.outputs) < 2:
        return x
    return x, np.ones(x.shape, np.bool_ if step.version >= 10 else x.dtype)


# -------------------------------------------------------------------------------------------------- shapes and places


@_operator("Shape")
def _shape(step: Step, x: Array) -> Array:
    return np.array(x.shape[slice(step.get("start", 0), step.get("end"))], np.int64)


@_operator("Size")
def _size(step: Step, x: Array) -> Array:
    return np.array(x.size, np.int64)


@_operator("Constant")
def _constant(step: Step) -> Array:
    kinds = {"value_float": np.float32, "value_int": np.int64, "value_floats": np.float32, "value_ints": np.int64}
    for name, kind in kinds.items():
        if name in step.attributes:
            return np.array(step.attributes[name], kind)
    return np.asarray(step.attributes["value"])


def _refuse_constant(step: Step) -> str | None:
    known = ("value", "value_float", "value_int", "value_floats", "value_ints")
    return None if any(name in step.attributes for name in known) else f"a {', '.join(step.attributes)}"


OPERATORS["Constant"] = Operator(_constant, refuse=_refuse_constant, note="of numbers")


@_operator("ConstantOfShape", constants=(0,))
def _constant_of_shape(step: Step, shape: Array) -> Array:
    value = np.asarray(step.get("value", np.zeros(1, np.float32)))
    return np.full(_admit(_ints(shape)), value.reshape(-1)[0], value.dtype)


@_operator("Range", constants=(0, 1, 2))
def _range(step: Step, start: Array, limit: Array, delta: Array) -> Array:
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0) if delta.item() else 0
    _admit((count,))
    return np.asarray(start + np.arange(count) * delta, start.dtype)


@_operator("EyeLike")
def _eye_like(step: Step, x: Array) -> Array:
    code = step.get("dtype")
    kind = x.dtype if code is None else onnx.helper.tensor_dtype_to_np_dtype(code)
    rows, columns = _admit(x.shape)
    return np.asarray(np.eye(rows, columns, step.get("k", 0), kind))


def reshaped(step: Step, old: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """The shape that Reshape gives: 0 keeps an entry, -1 is what is left."""
    shape = [old[i] if n == 0 and not step.get("allowzero", 0) else n for i, n in enumerate(wanted)]
    if shape.count(-1) > 1 or min(shape, default=0) < -1:
        raise ValueError(f"shape (={tuple(wanted)}) must have at most one -1, and nothing below")
    if -1 in shape:
        rest = math.prod(n for n in shape if n != -1)
        shape[shape.index(-1)] = math.prod(old) // rest if rest else 0
    if math.prod(shape) != math.prod(old):
        raise ValueError(f"shape (={tuple(wanted)}) must have as many elements as x (shape {tuple(old)})")
    return tuple(shape)


@_operator("Reshape", constants=(1,))
def _reshape(step: Step, x: Array, shape: Array | None = None) -> Array:
    return x.reshape(reshaped(step, x.shape, step.get("shape") if shape is None else _ints(shape)))


def flattened(step: Step, shape: Sequence[int]) -> tuple[int, int]:
    """The shape that Flatten gives."""
    axis = axis_of(step.get("axis", 1), len(shape), end=True)
    return math.prod(shape[:axis]), math.prod(shape[axis:])


@_operator("Flatten")
def _flatten(step: Step, x: Array) -> Array:
    return x.reshape(flattened(step, x.shape))


@_operator("Squeeze", constants=(1,))
def _squeeze(step: Step, x: Array, axes: Array | None = None) -> Array:
    given = step.get("axes") if axes is None else _ints(axes)
    return np.squeeze(x) if given is None else np.squeeze(x, _axes(given, x.ndim))


@_operator("Unsqueeze", constants=(1,))
def _unsqueeze(step: Step, x: Array, axes: Array | None = None) -> Array:
    given = step.get("axes") if axes is None else _ints(axes)
    return np.expand_dims(x, _axes(given, x.ndim + len(given)))


@_operator("Transpose")
def _transpose(step: Step, x: Array) -> Array:
    return x.transpose(step.get("perm"))


@_operator("Expand", constants=(1,))
def _expand(step: Step, x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, _admit(np.broadcast_shapes(x.shape, _ints(shape))))


@_operator("Tile", constants=(1,))
def _tile(step: Step, x: Array, repeats: Array) -> Array:
    counts = _ints(repeats)
    _admit([n * r for n, r in zip(x.shape, counts, strict=True)])
    return np.tile(x, counts)


@_operator("Concat")
def _concat(step: Step, *inputs: Array) -> Array:
    return np.concatenate(inputs, step.get("axis", 1 if step.version < 4 else 0))


def split_sizes(step: Step, size: int, given: Array | None) -> tuple[int, ...]:
    """The sizes that Split gives."""
    sizes = step.get("split") if given is None else _ints(given)
    if sizes is None:
        count = step.get("num_outputs", len(step.outputs))
        part = -(-size // count)
        sizes = tuple(max(min(part, size - i * part), 0) for i in range(count))
    if sum(sizes) != size or min(sizes) < 0:
        raise ValueError(f"split (={tuple(sizes)}) must have the sum {size}")
    return tuple(sizes)


@_operator("Split", constants=(1,))
def _split(step: Step, x: Array, given: Array | None = None) -> Results:
    axis = axis_of(step.get("axis", 0), x.ndim)
    ends = list(itertools.accumulate(split_sizes(step, x.shape[axis], given)))
    return tuple(np.split(x, ends[:-1], axis))


def slices(step: Step, shape: Sequence[int], *given: Any) -> tuple[slice, ...]:
    """The index that Slice stands for."""
    if step.version < 10:
        starts, ends, axes, steps = step.get("starts"), step.get("ends"), step.get("axes"), None
    else:
        starts, ends, axes, steps = [*given, None, None][:4]
    starts, ends = _ints(starts), _ints(ends)
    axes = range(len(starts)) if axes is None else _axes(axes, len(shape))
    steps = (1,) * len(starts) if steps is None else _ints(steps)
    index = [slice(None)] * len(shape)
    for axis, start, end, step_ in zip(axes, starts, ends, steps, strict=True):
        if step_ == 0:
            raise ValueError("steps must not be 0")
        n = shape[axis]
        # The ends are clamped; with a negative step the one before the first is none at all.
        start = min(max(start + n if start < 0 else start, 0), n - (step_ < 0))
        end = min(max(end + n if end < 0 else end, -1 if step_ < 0 else 0), n)
        index[axis] = slice(start, None if end < 0 else end, step_)
    return tuple(index)


@_operator("Slice", constants=(1, 2, 3, 4))
def _slice(step: Step, x: Array, *given: Array | None) -> Array:
    return x[slices(step, x.shape, *given)]


@_operator("Gather")
def _gather(step: Step, x: Array, indices: Array) -> Array:
    return np.take(x, indices, axis_of(step.get("axis", 0), x.ndim))


@_operator("GatherElements")
def _gather_elements(step: Step, x: Array, indices: Array) -> Array:
    axis = axis_of(step.get("axis", 0), x.ndim)
    grids: list[Array] = list(np.indices(indices.shape, sparse=True))
    grids[axis] = indices
    return np.asarray(x[tuple(grids)])


@_operator("GatherND")
def _gather_nd(step: Step, x: Array, indices: Array) -> Array:
    batch = step.get("batch_dims", 0)
    grids: list[Array] = list(np.indices(x.shape[:batch], sparse=True))
    behind = indices.ndim - 1 - batch
    places = [g.reshape(*g.shape, *[1] * behind) for g in grids]
    return np.asarray(x[(*places, *np.moveaxis(indices, -1, 0))])


_SCATTERED: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(step: Step, x: Array, places: tuple[Array, ...], updates: Array) -> Array:
    y, reduction = x.copy(), step.get("reduction", "none")
    if reduction == "none":
        y[places] = updates
    else:
        _SCATTERED[reduction].at(y, places, updates)
    return y


@_operator("ScatterND", kind="same")
def _scatter_nd(step: Step, x: Array, indices: Array, updates: Array) -> Array:
    return _scatter(step, x, tuple(np.moveaxis(indices, -1, 0)), updates)


@_operator("ScatterElements", "Scatter", kind="same")
def _scatter_elements(step: Step, x: Array, indices: Array, updates: Array) -> Array:
    grids: list[Array] = list(np.indices(indices.shape, sparse=True))
    grids[axis_of(step.get("axis", 0), x.ndim)] = indices
    return _scatter(step, x, tuple(grids), updates)


@_operator("OneHot", constants=(1,))
def _one_hot(step: Step, indices: Array, depth: Array, values: Array) -> Array:
    count = int(depth.item())
    _admit((*indices.shape, count))
    axis = axis_of(step.get("axis", -1), indices.ndim + 1)
    whole = indices.astype(np.int64)
    hot = np.expand_dims(np.where(whole < 0, whole + count, whole), axis) == np.arange(count).reshape(
        [-1 if i == axis else 1 for i in range(indices.ndim + 1)]
    )
    return np.asarray(np.where(hot, values[1], values[0]), values.dtype)


@_operator("Trilu", kind="same", constants=(1,))
def _triangle(step: Step, x: Array, k: Array | None = None) -> Array:
    function = np.triu if step.get("upper", 1) else np.tril
    return np.asarray(function(x, 0 if k is None else int(k.item())), x.dtype)


@_operator("Einsum")
def _einsum(step: Step, *inputs: Array) -> Array:
    equation = step.attributes["equation"].replace(" ", "")
    return inputs[0] if equation == "->" else np.asarray(np.einsum(equation, *inputs, optimize=True))


@_operator("NonZero", constants=(0,), note="of constants")
def _nonzero(step: Step, x: Array) -> Array:
    return np.array(np.nonzero(x), np.int64)


_PAD_MODES = ("constant", "reflect", "edge", "wrap")


def pad(step: Step, rank: int, pads: Any, value: Any = None, axes: Any = None) -> tuple[Pairs, Any, str]:
    """The pairs of each axis, what they hold and the mode of Pad."""
    mode = step.get("mode", "constant")
    if mode not in _PAD_MODES:
        raise ValueError(f"mode (={mode!r}) must be one of {', '.join(_PAD_MODES)}")
    if step.version < 11:
        pads, value = step.get("pads", step.get("paddings")), step.get("value", 0.0)
    sides, over = _ints(pads), range(rank) if axes is None else _axes(axes, rank)
    if len(sides) != 2 * len(over):
        raise ValueError(f"pads (={sides}) must have two entries an axis")
    pairs = [(0, 0)] * rank
    for i, axis in enumerate(over):
        pairs[axis] = sides[i], sides[i + len(over)]
    return tuple(pairs), 0 if value is None else np.asarray(value).item(), mode


@_operator("Pad", constants=(1, 2, 3))
def _pad(
    step: Step, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> Array:
    pairs, fill, mode = pad(step, x.ndim, pads, value, axes)
    _admit([max(n + a + b, 0) for n, (a, b) in zip(x.shape, pairs, strict=True)])
    cut = x[tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape, pairs, strict=True))]
    more = [(max(a, 0), max(b, 0)) for a, b in pairs]
    options = {"constant_values": fill} if mode == "constant" else {}
    padded: Array = np.pad(cut, more, mode, **options)  # type: ignore[call-overload]
    return padded


@_operator("DepthToSpace", "SpaceToDepth")
def _depth_to_space(step: Step, x: Array) -> Array:
    n, c, h, w = x.shape
    b = step.attributes["blocksize"]
    if step.op == "SpaceToDepth" and step.get("mode", "DCR") == "CRD":
        return x.reshape(n, c, h // b, b, w // b, b).transpose(0, 1, 3, 5, 2, 4).reshape(n, c * b * b, h // b, w // b)
    if step.op == "SpaceToDepth":
        return x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)
    if step.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (b * b), h * b, w * b)


# ------------------------------------------------------------------------------------------------------------- resizing


def _refuse_resize(step: Step) -> str | None:
    if step.get("antialias", 0):
        return "antialias"
    if step.get("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "coordinate_transformation_mode tf_crop_and_resize"
    mode = step.get("mode", "nearest")
    return None if mode in ("nearest", "linear", "cubic") else f"mode {mode}"


def _places(step: Step, n: int, m: int, scale: float) -> Array:
    """Where the m elements of a resized axis lie among its n."""
    mode = "asymmetric" if step.op == "Upsample" else step.get("coordinate_transformation_mode", "half_pixel")
    if step.op == "Resize" and step.version < 11:
        mode = "asymmetric"
    i = np.arange(m, dtype=np.float64)
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * (n - 1) / (m - 1) if m > 1 else i
    if mode == "pytorch_half_pixel" and m == 1:
        return i
    if mode == "half_pixel_symmetric":
        # A length of its own may be no whole number.
        return (1 - m / (n * scale)) * n / 2 + (i + 0.5) / scale - 0.5
    if mode == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    return (i + 0.5) / scale - 0.5


def _nearest(step: Step, at: Array) -> Array:
    how = step.get("nearest_mode", "round_prefer_floor") if step.op == "Resize" and step.version >= 11 else "floor"
    functions: dict[str, Callable[[Array], Array]] = {
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return functions[how](at)


def _taps(step: Step, n: int, at: Array) -> tuple[Array, Array]:
    """Indices (taps, m) into an axis, not clamped, and what each counts."""
    mode = step.get("mode", "nearest")
    if mode == "nearest":
        return _nearest(step, at)[None], np.ones((1, at.size))
    first = np.floor(at)
    t = at - first
    if mode == "linear":
        return first + np.array([[0.0], [1.0]]), np.stack([1 - t, t])
    a = step.get("cubic_coeff_a", -0.75)
    weights = np.stack(
        [
            ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
            ((a + 2) * t - (a + 3)) * t * t + 1,
            ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
            ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
        ]
    )
    indices = first + np.array([[-1.0], [0.0], [1.0], [2.0]])
    if step.get("exclude_outside", 0):
        weights = np.where((indices < 0) | (indices >= n), 0, weights)
        weights = weights / weights.sum(0)
    return indices, weights


def resized(step: Step, shape: Sequence[int], *given: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The shape that Resize or Upsample gives, and the scales it goes by."""
    rank = len(shape)
    sizes: Any = None
    if step.op == "Upsample":
        scales = step.get("scales") if not given else given[0]
    elif step.version < 11:
        scales = given[0]
    else:
        _, scales, sizes = [*given, None, None][:3]
    axes = _axes(step.get("axes"), rank) if step.get("axes") else tuple(range(rank))
    factors, result = [1.0] * rank, list(shape)
    if sizes is not None and np.size(sizes):
        wanted = _ints(sizes)
        ratios = [wanted[i] / shape[a] for i, a in enumerate(axes)]
        policy = step.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [one] * len(axes)
            wanted = tuple(math.floor(one * shape[a] + 0.5) for a in axes)
        for i, a in enumerate(axes):
            factors[a], result[a] = ratios[i], wanted[i]
    else:
        if scales is None or not np.size(scales):
            raise ValueError("scales or sizes must be given")
        for a, f in zip(axes, np.asarray(scales, np.float64).reshape(-1).tolist(), strict=True):
            factors[a], result[a] = f, math.floor(shape[a] * f)
    return _admit(result), tuple(factors)


@_operator(
    "Resize", "Upsample", constants=(1, 2, 3), refuse=_refuse_resize, note="nearest, linear, cubic; no antialias"
)
def _resize(step: Step, x: Array, *given: Array | None) -> Array:
    shape, factors = resized(step, x.shape, *given)
    y = x
    for axis, (n, m, factor) in enumerate(zip(x.shape, shape, factors, strict=True)):
        if n == m and factor == 1:
            continue
        indices, weights = _taps(step, n, _places(step, n, m, factor))
        indices = np.clip(indices, 0, n - 1).astype(np.int64)
        if len(indices) == 1:
            y = np.take(y, indices[0], axis)
            continue
        along = [1] * x.ndim
        along[axis] = m
        total: Any = 0
        for i, w in zip(indices, weights.astype(x.dtype), strict=True):
            total = total + np.take(y, i, axis) * w.reshape(along)
        y = total
    return np.asarray(y, x.dtype)
