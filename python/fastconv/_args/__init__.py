"""Every normalisation of arguments and every error message.

Options become a `ConvSpec` once, by the cached `conv_spec`. Arrays go to `_core` as they are, which refuses what it
cannot serve by a bare status; only then do the functions below repeat all checks, slowly, to say what was wrong.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .. import _core, _device, _foreign

any_foreign, on_views = _foreign.any_of, _foreign.on_views

Array = npt.NDArray[Any]
Activation = str | tuple[str, float] | tuple[str, float, float] | None
Ints = int | Sequence[int]
Padding = int | str | Sequence[int | tuple[int, int]]
Shape = tuple[int, ...]
T = TypeVar("T")

# The largest number of elements of an array, and of every size on the way to it, that `_core` accepts.
_MAX_ELEMENTS = 1 << 60
_INT64_MAX = (1 << 63) - 1

_AXES = {1: "L", 2: "HW", 3: "DHW"}
_AXIS_NAMES = {"L": "length", "D": "depth", "H": "height", "W": "width"}
_CHANNELS_LAST = {
    1: {"NCHW": False, "NHWC": True, "NCL": False, "NLC": True},
    2: {"NCHW": False, "NHWC": True},
    3: {"NCHW": False, "NHWC": True, "NCDHW": False, "NDHWC": True},
}
# The values of the enumerations in fastconv/conv.h.
_PADDING_MODES = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}
_AUTO_PADDING = {"same": 1, "same_lower": 2}
_PRECISIONS = {"strict": 0, "tf32x3": 1, "tf32": 2}
_ALGORITHMS = {"auto": 0, "direct": 1, "fft": 2, "winograd2": 3, "winograd4": 4}
_ACTIVATIONS = {
    "relu": 1,
    "relu6": 2,
    "leaky_relu": 3,
    "silu": 4,
    "hardswish": 5,
    "sigmoid": 6,
    "hardsigmoid": 7,
    "tanh": 8,
    "gelu": 9,
    "gelu_tanh": 10,
    "clip": 11,
}
_ACTIVATION_PARAMETERS = {"leaky_relu": ("slope",), "clip": ("lower", "upper")}
_LEAKY_SLOPE = 0.01
# The operands that no pass takes as None.
_REQUIRED = ("x", "dy", "weight")


# ----------------------------------------------------------------------------------------------------- the options


def conv_spec(
    rank: int,
    transposed: bool,
    stride: Ints,
    padding: Padding,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    layout: str,
    algorithm: str,
    activation: Activation,
    input_activation: Activation,
    precision: str = "strict",
) -> _core.ConvSpec:
    """The options as a `ConvSpec`; ValueError or TypeError where one of them is wrong by itself."""
    # To a cache True, 1.0 and 1 are one key: what is not plainly an int is checked on every call.
    if type(stride) is not int:
        stride = _integers("stride", stride)
    if type(padding) is not int and type(padding) is not str:
        padding = _pairs(padding)
    if type(output_padding) is not int:
        output_padding = _integers("output_padding", output_padding)
    if type(dilation) is not int:
        dilation = _integers("dilation", dilation)
    if type(groups) is not int:
        groups = integer("groups", groups)
    if activation is not None and type(activation) is not str:
        activation = _activation_parts("activation", activation)
    if input_activation is not None and type(input_activation) is not str:
        input_activation = _activation_parts("input_activation", input_activation)
    options = (stride, padding, output_padding, dilation, groups, padding_mode, layout, algorithm)
    try:
        return _conv_spec(rank, transposed, *options, activation, input_activation, precision)
    except TypeError:
        pass  # an unhashable value where a string belongs, or a TypeError of our own: raised again without the cache
    return _conv_spec.__wrapped__(rank, transposed, *options, activation, input_activation, precision)


@functools.lru_cache(maxsize=4096)
def _conv_spec(
    rank: int,
    transposed: bool,
    stride: Ints,
    padding: Padding,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    layout: str,
    algorithm: str,
    activation: Activation,
    input_activation: Activation,
    precision: str,
) -> _core.ConvSpec:
    strides = _each("stride", stride, rank, 1)
    dilations = _each("dilation", dilation, rank, 1)
    extra = _each("output_padding", output_padding, rank, 0)
    before, after, auto = _padding(padding, rank)
    _bounded("groups", groups, groups, 1)
    for e, s, d in zip(extra, strides, dilations, strict=True):
        if e and e >= s and e >= d:
            raise ValueError(
                f"output_padding (={output_padding}) must be smaller than stride (={stride}) or dilation (={dilation})"
            )
    return _core.ConvSpec(
        rank,
        transposed,
        _choice("layout", layout, _CHANNELS_LAST[rank]),
        strides,
        dilations,
        before,
        after,
        extra,
        groups,
        _choice("padding_mode", padding_mode, _PADDING_MODES),
        auto,
        _choice("algorithm", algorithm, _ALGORITHMS),
        _choice("precision", precision, _PRECISIONS),
        _activation("activation", activation),
        _activation("input_activation", input_activation),
    )


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def integer(name: str, value: object, whole: object = None) -> int:
    """The value as an int; `whole` is the option that it is an entry of."""
    shown = value if whole is None else whole
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} (={shown!r}) must be an integer, not a bool")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} (={shown!r}) must be an integer, not {_type_name(value)}") from None


def _is_plain(value: object) -> bool:
    """Whether the value is a tuple of ints and nothing else: the usual case, worth a short path on every call."""
    if type(value) is not tuple:
        return False
    for entry in value:  # noqa: SIM110, all() over a generator takes three times as long
        if type(entry) is not int:
            return False
    return True


def _integers(name: str, value: object) -> int | Shape:
    if _is_plain(value):
        return value  # type: ignore[return-value]
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)):
        return integer(name, value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return integer(name, value[()])
    return tuple(integer(name, entry, value) for entry in value)


def _bounded(name: str, value: int, whole: object, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"{name} (={whole}) must be at least {minimum}")
    if value > _INT64_MAX:
        raise ValueError(f"{name} (={whole}) must fit in 64 bits")


def _each(name: str, value: Ints, rank: int, minimum: int) -> Shape:
    entries = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(entries) != rank:
        raise ValueError(
            f"{name} (={value}) must be one integer or have one entry for each of the {rank} spatial dimensions"
        )
    for entry in entries:
        _bounded(name, entry, value, minimum)
    return entries


def _pairs(padding: object) -> int | tuple[int | tuple[int, int], ...]:
    """Explicit padding with plain ints inside: a number, or one number or (before, after) pair a dimension."""
    if _is_plain(padding):
        return padding  # type: ignore[return-value]
    if not isinstance(padding, (Sequence, np.ndarray)) or (isinstance(padding, np.ndarray) and padding.ndim == 0):
        return integer("padding", padding)
    entries: list[int | tuple[int, int]] = []
    for entry in padding:
        if _is_plain(entry) and len(entry) == 2:
            entries.append(entry)
        elif isinstance(entry, str) or not isinstance(entry, (Sequence, np.ndarray)):
            entries.append(integer("padding", entry, padding))
        elif len(entry) == 2:
            entries.append((integer("padding", entry[0], padding), integer("padding", entry[1], padding)))
        else:
            raise ValueError(f"padding (={padding!r}) must hold numbers or (before, after) pairs")
    return tuple(entries)


def _padding(padding: Padding, rank: int) -> tuple[Shape, Shape, int]:
    """(before, after, automatic)."""
    if isinstance(padding, str):
        if padding in _AUTO_PADDING:
            return (0,) * rank, (0,) * rank, _AUTO_PADDING[padding]
        if padding != "valid":
            raise ValueError(f"padding (={padding!r}) must be numbers, 'valid', 'same' or 'same_lower'")
        padding = 0
    entries = (padding,) * rank if isinstance(padding, int) else tuple(padding)
    if len(entries) != rank:
        hint = "; write before and after as ((before, after),)" if rank == 1 and len(entries) == 2 else ""
        raise ValueError(
            f"padding (={padding}) must be one integer or have one entry for each of the {rank} spatial dimensions"
            f"{hint}"
        )
    pairs = [(entry, entry) if isinstance(entry, int) else entry for entry in entries]
    for pair in pairs:
        for side in pair:
            _bounded("padding", side, padding, 0)
    return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), 0


def _choice(name: str, value: object, choices: Mapping[str, T]) -> T:
    if not isinstance(value, str):
        raise TypeError(f"{name} (={value!r}) must be a string, not {_type_name(value)}")
    if value not in choices:
        raise ValueError(f"{name} (={value!r}) must be one of {', '.join(map(repr, choices))}")
    return choices[value]


def _activation_parts(name: str, activation: object) -> Activation:
    """A tuple of the name and plain floats, so that equal activations are one key of the cache."""
    if isinstance(activation, str):
        return str(activation)
    if type(activation) is tuple and activation and type(activation[0]) is str:
        for value in activation[1:]:
            if type(value) is not float or not math.isfinite(value):
                break
        else:
            return activation
    if not isinstance(activation, (tuple, list)) or not activation or not isinstance(activation[0], str):
        raise TypeError(f"{name} (={activation!r}) must be None, a name, or a tuple of a name and its numbers")
    numbers = []
    for value in activation[1:]:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{name} (={activation!r}) must hold numbers after the name, not {_type_name(value)}")
        if not math.isfinite(value):
            raise ValueError(f"{name} (={activation!r}) must have finite numbers")
        numbers.append(float(value))
    return (activation[0], *numbers)  # type: ignore[return-value]


def _activation(name: str, activation: Activation) -> tuple[int, float, float]:
    if activation is None:
        return 0, 0.0, 0.0
    kind, *numbers = (activation,) if isinstance(activation, str) else activation
    code = _choice(name, kind, _ACTIVATIONS)
    wanted = _ACTIVATION_PARAMETERS.get(kind, ())
    if kind == "leaky_relu" and not numbers:
        numbers = [_LEAKY_SLOPE]
    if len(numbers) != len(wanted):
        rule = f"({kind!r}, {', '.join(wanted)})" if wanted else f"{kind!r} alone"
        raise ValueError(f"{name} (={activation!r}) must be {rule}")
    if kind == "clip" and numbers[0] > numbers[1]:
        raise ValueError(f"{name} (={activation!r}) must have lower <= upper")
    a, b, *_ = (*numbers, 0.0, 0.0)
    return code, a, b


# ------------------------------------------------------------------------------------- single arrays and shapes


def _check_array(name: str, value: object) -> Array:
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored: pass {name}.filled(value)")
    if isinstance(value, np.ndarray):
        return value
    try:
        if (view := _foreign.view(value)) is not None:
            return view
        if (shadow := _device.shadow(value)) is not None:
            return shadow
    except _foreign.Unreadable as error:
        raise TypeError(f"{name} {error}") from None
    except _device.Unusable as error:
        raise ValueError(f"{name} {error}") from None
    except _core.Refused:
        raise TypeError(
            f"{name} (on a CUDA device) must be a dense array of float32, float64, float16, bfloat16 or an integer, "
            "without a mask, its elements aligned to the item size"
        ) from None
    what = _type_name(value)
    if isinstance(value, (list, tuple, int, float)):
        remedy = f"numpy.asarray({name}, dtype=numpy.float32)"
    elif hasattr(value, "__dlpack__"):
        remedy = "a copy in the host's memory or on a CUDA device"
    else:
        remedy = "an array of float32 or float64"
    raise TypeError(f"{name} is of type {what} and must be a numpy.ndarray or have __dlpack__: pass {remedy}")


def check_types(arrays: Mapping[str, object]) -> bool:
    """TypeError unless all are arrays; whether some are another library's, in the host's memory."""
    foreign = False
    for name, value in arrays.items():
        if type(value) is not np.ndarray:
            _check_array(name, value)
            foreign = foreign or _foreign.any_of((value,))
    return foreign


def check_libraries(arrays: Mapping[str, object]) -> None:
    """TypeError where arrays of several libraries are mixed."""
    if (words := _foreign.mixture(arrays)) is not None:
        raise TypeError(words)


def _check_device_dtype(name: str, a: Array) -> None:
    """TypeError unless the array's device computes with its dtype, which is not float32 or float64."""
    known, dtypes = _device.dtype_name(a), "float32 or float64"
    if isinstance(a, _device.Shadow):
        if known in ("float16", "bfloat16"):
            return
        dtypes = "float32, float64, float16 or bfloat16"
    raise TypeError(f"{name} (dtype {known}) must have dtype {dtypes}; nothing is converted silently")


def _check_arrays(arrays: Mapping[str, object]) -> dict[str, Array]:
    """Types, dtypes and alignment of those that are present; the first one sets the dtype."""
    present = {
        name: _check_array(name, value) for name, value in arrays.items() if value is not None or name in _REQUIRED
    }
    check_libraries(arrays)
    first, *others = present
    place = _device.device_name(present[first])
    for name in others:
        if (other := _device.device_name(present[name])) != place:
            raise TypeError(f"{name} (on {other}) must be on the device of {first}, {place}; nothing is moved silently")
    for name, a in present.items():
        if a.dtype.kind == "f" and not a.dtype.isnative:
            raise TypeError(
                f"{name} (dtype {a.dtype.str}) must have native byte order: "
                f"pass {name}.astype({name}.dtype.newbyteorder('='))"
            )
        if a.dtype not in (np.float32, np.float64):
            _check_device_dtype(name, a)
    for name in others:
        if present[name].dtype != present[first].dtype:
            raise TypeError(
                f"{name} (dtype {_device.dtype_name(present[name])}) must have the dtype of {first}, "
                f"{_device.dtype_name(present[first])}"
            )
    for name, a in present.items():
        steps = (s for s, n in zip(a.strides, a.shape, strict=True) if n > 1)
        if not a.flags.aligned or any(step % a.itemsize for step in steps):
            raise ValueError(
                f"{name} (strides {a.strides}, item size {a.itemsize}) must have its elements aligned to the item "
                f"size: pass {name}.copy()"
            )
    return present


def _check_shape_argument(name: str, value: object, ndim: int) -> Shape:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} (={value!r}) must be a tuple of integers, not {_type_name(value)}")
    shape = tuple(integer(name, entry, value) for entry in value)
    if len(shape) != ndim:
        raise ValueError(f"{name} (={shape}) must have {ndim} entries")
    for entry in shape:
        _bounded(name, entry, shape, 0)
    return shape


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} (={value!r}) must be True or False, not {_type_name(value)}")


def _axes(spec: _core.ConvSpec | _core.PoolSpec, batched: bool = True) -> str:
    pixels = _AXES[spec.spatial]
    axes = f"N{pixels}C" if spec.channels_last else f"NC{pixels}"
    return ", ".join(axes if batched else axes[1:])


def _check_image_rank(name: str, shape: Shape, spec: _core.ConvSpec | _core.PoolSpec) -> None:
    full = spec.spatial + 2
    if len(shape) not in (full - 1, full):
        raise ValueError(
            f"{name} (shape {shape}) must have {full} dimensions ({_axes(spec)}), or {full - 1} without the batch"
        )


def _check_shape(name: str, shape: Shape, expected: Shape, rule: str) -> None:
    if shape != expected:
        raise ValueError(f"{name} (shape {shape}) must have shape {expected}: {rule}")


def _check_elements(name: str, shape: Shape) -> None:
    # An empty batch does not make the size of an image of no account.
    if math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        raise ValueError(f"{name} (shape {shape}) must have at most 2**60 elements")


def _check_vector(name: str, arrays: Mapping[str, Array], length: int, channels: str) -> None:
    if name in arrays:
        _check_shape(name, arrays[name].shape, (length,), f"one entry an {channels} channel")


def _share_memory(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=100000)  # type: ignore[arg-type] # NumPy's stub knows -1 and 0 alone
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(a: Array) -> bool:
    """Whether elements may share memory: exact for every layout that slicing and transposing produce."""
    reach = 0
    for stride, n in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride <= reach:
            return a.size > 0
        reach += stride * (n - 1)
    return False


def _check_written(name: str, target: Array, reads: Mapping[str, Array]) -> None:
    if not target.flags.writeable:
        raise ValueError(f"{name} (read-only) must be writable")
    if _overlaps_itself(target):
        raise ValueError(f"{name} (strides {target.strides}) must not have elements that share memory with each other")
    for other, a in reads.items():
        if other != name and _share_memory(target, a):
            raise ValueError(f"{name} (shape {target.shape}) must not overlap {other} (shape {a.shape}) in memory")


def _check_out(out: Array, expected: Shape, reads: Mapping[str, Array]) -> None:
    _check_shape("out", out.shape, expected, "that of the result")
    _check_written("out", out, reads)


# ------------------------------------------------------------------------------------------------ the geometry


def _split(shape: Shape, spec: _core.ConvSpec | _core.PoolSpec) -> tuple[Shape, int, Shape]:
    """(batch, channels, pixels): the batch is empty for an unbatched shape."""
    batch, rest = (shape[:1], shape[1:]) if len(shape) == spec.spatial + 2 else ((), shape)
    return (batch, rest[-1], rest[:-1]) if spec.channels_last else (batch, rest[0], rest[1:])


def _join(batch: Shape, channels: int, pixels: Shape, spec: _core.ConvSpec | _core.PoolSpec) -> Shape:
    return (*batch, *pixels, channels) if spec.channels_last else (*batch, channels, *pixels)


def _check_channels(spec: _core.ConvSpec, channels: int, weight: Shape) -> int:
    """The number of output channels."""
    groups = spec.groups
    if channels < 1:
        raise ValueError(f"in_channels (={channels}) must be at least 1")
    rule = (
        "(in_channels, out_channels / groups, ...)" if spec.transposed else "(out_channels, in_channels / groups, ...)"
    )
    if len(weight) != spec.spatial + 2:
        raise ValueError(f"weight (shape {weight}) must have {spec.spatial + 2} dimensions {rule}")
    if min(weight) < 1:
        raise ValueError(f"weight (shape {weight}) must have at least one entry in every dimension")
    outputs = weight[1] * groups if spec.transposed else weight[0]
    for name, count in (("in_channels", channels), ("out_channels", outputs)):
        if count % groups:
            raise ValueError(f"groups (={groups}) must divide {name} (={count})")
    axis, count, formula = (
        (0, channels, "in_channels") if spec.transposed else (1, channels // groups, "in_channels / groups")
    )
    if weight[axis] != count:
        shown = f"{channels} / {groups} = {count}" if axis else f"{count}"
        raise ValueError(f"weight (shape {weight}) must have {formula} (={shown}) entries in dimension {axis}")
    return outputs


def _output_size(spec: _core.ConvSpec, i: int, size: int, taps: int) -> int:
    stride, dilation = spec.stride[i], spec.dilation[i]
    before, after = spec.pad_before[i], spec.pad_after[i]
    axis = _AXIS_NAMES[_AXES[spec.spatial][i]]
    reach = dilation * (taps - 1) + 1
    kernel = f"kernel {axis} (={taps})" if dilation == 1 else f"kernel {axis} (={taps}, dilated to {reach})"
    if spec.transposed:
        if spec.auto_padding:
            return size * stride
        output = (size - 1) * stride + reach + spec.output_padding[i] - before - after
        if output < 1:
            raise ValueError(
                f"padding (={before} and {after}) must leave an output {axis} of at least 1, not {output}, of an input "
                f"{axis} (={size}) and a {kernel}"
            )
        return output
    if spec.auto_padding:
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        half = total // 2
        before, after = (half, total - half) if spec.auto_padding == _AUTO_PADDING["same"] else (total - half, half)
    padded = size + before + after
    if padded < reach:
        raise ValueError(f"{kernel} must not exceed the padded input {axis} (={size} + {before} + {after} = {padded})")
    for mode, limit in (("reflect", size - 1), ("circular", size)):
        if spec.padding_mode == _PADDING_MODES[mode] and max(before, after) > limit:
            raise ValueError(
                f"padding (={max(before, after)}) must be at most {limit} in padding_mode {mode!r} for an input {axis} "
                f"of {size}"
            )
    return (padded - reach) // stride + 1


def _check_geometry(spec: _core.ConvSpec, name: str, shape: Shape, weight: Shape) -> Shape:
    """The shape of the layer's output for an input `name` of this shape."""
    _check_image_rank(name, shape, spec)
    batch, channels, pixels = _split(shape, spec)
    outputs = _check_channels(spec, channels, weight)
    if min(pixels) < 1:
        raise ValueError(f"{name} (shape {shape}) must have at least one element in every spatial dimension")
    sizes = tuple(_output_size(spec, i, n, taps) for i, (n, taps) in enumerate(zip(pixels, weight[2:], strict=True)))
    output = _join(batch, outputs, sizes, spec)
    padded = tuple(n + b + a for n, b, a in zip(pixels, spec.pad_before, spec.pad_after, strict=True))
    for label, size in ((name, shape), ("the output", output), ("weight", weight), ("the padded input", padded)):
        _check_elements(label, size)
    return output


# ------------------------------------------------------------------------------------------------ refused calls


def _algorithm_name(spec: _core.ConvSpec) -> str:
    return next(name for name, value in _ALGORITHMS.items() if value == spec.algorithm)


@functools.lru_cache(maxsize=4096)
def with_algorithm(spec: _core.ConvSpec, name: str) -> _core.ConvSpec:
    """The same options with another algorithm."""
    return _core.ConvSpec(
        spec.spatial,
        spec.transposed,
        spec.channels_last,
        spec.stride,
        spec.dilation,
        spec.pad_before,
        spec.pad_after,
        spec.output_padding,
        spec.groups,
        spec.padding_mode,
        spec.auto_padding,
        _ALGORITHMS[name],
        spec.precision,
        spec.activation,
        spec.input_activation,
    )


def weight_gradient_spec(spec: _core.ConvSpec) -> _core.ConvSpec:
    """Of a call for all gradients: an algorithm that is named for the input's is not asked of the weight's."""
    return spec if spec.algorithm <= _ALGORITHMS["direct"] else with_algorithm(spec, "auto")


def _served_algorithm_error(spec: _core.ConvSpec | None) -> ValueError:
    name = "" if spec is None else f" (={_algorithm_name(spec)!r})"
    return ValueError(f"algorithm{name} is not served on a CUDA device: it must be 'auto' or 'direct'")


def _algorithm_error(spec: _core.ConvSpec, op: str) -> ValueError:
    name = _algorithm_name(spec)
    if name == "fft" and op.endswith("_backward_weight"):
        return ValueError(
            f"algorithm (={name!r}) does not make the gradient of a weight: it must be 'auto', 'direct', 'winograd2' "
            "or 'winograd4'"
        )
    if name.startswith("winograd"):
        return ValueError(
            f"algorithm (={name!r}) takes two-dimensional layers of kernel size 3 x 3, stride 1 (it is {spec.stride}) "
            f"and dilation 1 (it is {spec.dilation}) that are not depthwise (groups is {spec.groups})"
        )
    return ValueError(
        f"algorithm (={name!r}) takes layers of one channel in and out a group (groups is {spec.groups}), of stride 1 "
        f"(it is {spec.stride}; a transposed convolution and the input gradient of a plain one take any), kernel depth "
        "1 and a kernel that fits a tile (dilated at most 96 x 96, or 12288 in a row)"
    )


def _first_error(
    refusal: _core.Refused,
    checks: Callable[[], Shape],
    dtype_of: object,
    what: str,
    spec: _core.ConvSpec | None = None,
) -> TypeError | ValueError | MemoryError | RuntimeError:
    """What the checks raise; where they find nothing, what is left of the refusal. They return the result's shape."""
    try:
        shape = checks()
    except (TypeError, ValueError) as error:
        return error.with_traceback(None)
    status = str(refusal.args[0])
    if status == "bad_algorithm" and _device.is_device_array(dtype_of):
        return _served_algorithm_error(spec)
    if status == "bad_algorithm" and spec is not None:
        return _algorithm_error(spec, what)
    if status in ("unserved", "bad_device") and _device.is_device_array(dtype_of):
        return RuntimeError(f"{what} does not serve arrays on a CUDA device")
    if status == "out_of_memory":
        a = dtype_of if isinstance(dtype_of, np.ndarray) else _foreign.view(dtype_of)
        dtype = np.dtype(np.float32) if a is None else a.dtype
        size = math.prod(shape) * dtype.itemsize
        return MemoryError(
            f"no memory for the result of {what}: shape {shape} of {dtype} takes {size} bytes, besides scratch memory"
        )
    return RuntimeError(f"{what} was refused: {status}")


def _order_alone(refusal: _core.Refused, found: Exception) -> bool:
    """Whether only the order in memory is what was refused."""
    return isinstance(found, RuntimeError) and refusal.args[0] == "unsupported"


def dense(a: Any) -> Any:
    """A C-contiguous copy, or the array itself where it is one."""
    return np.ascontiguousarray(a) if isinstance(a, np.ndarray) else _device.dense(a)


def copy_into(out: Any, result: Any) -> Any:
    """The result's elements in `out`."""
    if isinstance(out, np.ndarray):
        out[...] = result
    else:
        _device.copy_into(out, result)
    return out


def add_into(out: Any, x: Any) -> Any:
    """Out + x, in `out`."""
    if isinstance(out, np.ndarray):
        out += x
        return out
    return _core.add((0, 0.0, 0.0), out, x, out)


def _op(spec: _core.ConvSpec, suffix: str = "") -> str:
    return f"conv{'_transpose' if spec.transposed else ''}{spec.spatial}d{suffix}"


def check_forward(spec: _core.ConvSpec, arrays: Mapping[str, object]) -> Shape:
    """All checks of a forward pass; returns the shape of its result."""
    a = _check_arrays(arrays)
    x, weight = a["x"], a["weight"]
    shape = _check_geometry(spec, "x", x.shape, weight.shape)
    batch, channels, _ = _split(x.shape, spec)
    outputs = _split(shape, spec)[1]
    for name in ("bias", "scale", "shift"):
        _check_vector(name, a, outputs, "output")
    for name in ("input_scale", "input_shift"):
        _check_vector(name, a, channels, "input")
    if "input_gate" in a:
        _check_shape("input_gate", a["input_gate"].shape, (*batch, channels), "one entry an image and input channel")
    if "residual" in a:
        _check_shape("residual", a["residual"].shape, shape, "that of the output")
    if "out" in a:
        _check_out(a["out"], shape, a)
    return shape


def forward_error(refusal: _core.Refused, spec: _core.ConvSpec, arrays: Mapping[str, object]) -> Exception:
    """Why `_core` refused a forward pass. Here and below the arrays are given by the names that the user knows."""
    return _first_error(refusal, lambda: check_forward(spec, arrays), arrays["x"], _op(spec), spec)


def decision_error(refusal: _core.Refused, op: str, spec: _core.ConvSpec, device: bool = False) -> Exception:
    """What is left to say of a decision that `_core` refused after all checks; `device`: of arrays on one."""
    if refusal.args[0] == "bad_algorithm" and device:
        return _served_algorithm_error(spec)
    if refusal.args[0] == "bad_device":
        return RuntimeError(f"{op} does not serve arrays on a CUDA device here: decisions are the CPU's")
    if refusal.args[0] == "bad_algorithm":
        return _algorithm_error(spec, op)
    return RuntimeError(f"{op} was refused: {refusal.args[0]}")


def plan_error(refusal: _core.Refused, spec: _core.ConvSpec, arrays: Mapping[str, object], planned: Shape) -> Exception:
    """Why a plan refused a call."""

    def checks() -> Shape:
        shape = check_forward(spec, arrays)
        x = _check_array("x", arrays["x"])
        if x.shape[-spec.spatial - 1 :] != planned[-spec.spatial - 1 :]:
            raise ValueError(f"x (shape {x.shape}) must have the shape that the plan was made for, {planned}")
        if refusal.args[0] == "unsupported" and arrays["input_gate"] is not None:
            raise ValueError("input_gate must be announced when the plan is made: plan(..., input_gate=True)")
        return shape

    return _first_error(refusal, checks, arrays["x"], f"the plan of {_op(spec)}")


def check_backward_input(
    spec: _core.ConvSpec, arrays: Mapping[str, object], input_shape: object, accumulate: object
) -> Shape:
    """All checks of an input gradient; returns its shape."""
    _check_flag("accumulate", accumulate)
    a = _check_arrays(arrays)
    dy, weight = a["dy"], a["weight"]
    _check_image_rank("dy", dy.shape, spec)
    shape = _check_shape_argument("input_shape", input_shape, dy.ndim)
    expected = _check_geometry(spec, "input_shape", shape, weight.shape)
    _check_shape("dy", dy.shape, expected, "that of the layer's output")
    _check_target(a, shape, accumulate)
    return shape


def backward_input_error(
    refusal: _core.Refused,
    spec: _core.ConvSpec,
    arrays: Mapping[str, object],
    input_shape: object,
    accumulate: object,
) -> Exception:
    """Why `_core` refused an input gradient."""
    return _first_error(
        refusal,
        lambda: check_backward_input(spec, arrays, input_shape, accumulate),
        arrays["dy"],
        _op(spec, "_backward_input"),
        spec,
    )


def check_backward_weight(
    spec: _core.ConvSpec, arrays: Mapping[str, object], weight_shape: object, accumulate: object
) -> Shape:
    """All checks of a weight gradient; returns its shape."""
    _check_flag("accumulate", accumulate)
    a = _check_arrays(arrays)
    dy, x = a["dy"], a["x"]
    shape = _check_shape_argument("weight_shape", weight_shape, spec.spatial + 2)
    expected = _check_geometry(spec, "x", x.shape, shape)
    _check_shape("dy", dy.shape, expected, "that of the layer's output")
    _check_target(a, shape, accumulate)
    if "out" in a and not a["out"].flags.c_contiguous:
        raise ValueError(f"out (strides {a['out'].strides}) must be C-contiguous for a gradient of the weight")
    return shape


def backward_weight_error(
    refusal: _core.Refused,
    spec: _core.ConvSpec,
    arrays: Mapping[str, object],
    weight_shape: object,
    accumulate: object,
) -> Exception:
    """Why `_core` refused a weight gradient."""
    return _first_error(
        refusal,
        lambda: check_backward_weight(spec, arrays, weight_shape, accumulate),
        arrays["dy"],
        _op(spec, "_backward_weight"),
        spec,
    )


def backward_bias_error(
    refusal: _core.Refused, spec: _core.ConvSpec, arrays: Mapping[str, object], accumulate: object
) -> Exception:
    """Why `_core` refused a bias gradient."""

    def checks() -> Shape:
        _check_flag("accumulate", accumulate)
        a = _check_arrays(arrays)
        _check_image_rank("dy", a["dy"].shape, spec)
        shape = (_split(a["dy"].shape, spec)[1],)
        if shape[0] < 1:
            raise ValueError(f"dy (shape {a['dy'].shape}) must have at least one channel")
        _check_target(a, shape, accumulate)
        return shape

    return _first_error(refusal, checks, arrays["dy"], _op(spec, "_backward_bias"))


def _check_target(arrays: Mapping[str, Array], shape: Shape, accumulate: object) -> None:
    if "out" in arrays:
        _check_out(arrays["out"], shape, arrays)
    elif accumulate:
        raise ValueError("accumulate (=True) needs out, the array to add into")


# ---------------------------------------------------------------------------------------------- the dense layer


def check_linear(arrays: Mapping[str, object]) -> Shape:
    """All checks of a forward pass of the dense layer; returns the shape of its result."""
    a = _check_arrays(arrays)
    x = a["x"]
    features = _check_linear_weight(a["weight"].shape, "x", x.shape, 1)
    shape = (*x.shape[:-1], features)
    for name in ("bias", "scale", "shift"):
        _check_vector(name, a, features, "output")
    if "residual" in a:
        _check_shape("residual", a["residual"].shape, shape, "that of the output")
    if "out" in a:
        _check_out(a["out"], shape, a)
    return shape


def _check_linear_weight(weight: Shape, name: str, shape: Shape, axis: int) -> int:
    """`axis` of the weight faces the last axis of the operand; the length of the other one is returned."""
    if len(weight) != 2 or min(weight) < 1:
        raise ValueError(
            f"weight (shape {weight}) must have 2 dimensions (out_features, in_features), neither of size 0"
        )
    _check_linear_rows(name, shape)
    if shape[-1] != weight[axis]:
        features = ("out_features", "in_features")[axis]
        raise ValueError(
            f"{name} (shape {shape}) must have {features} (={weight[axis]}, of weight) entries in its last dimension"
        )
    return weight[1 - axis]


def _check_linear_rows(name: str, shape: Shape) -> None:
    if not shape or shape[-1] < 1:
        raise ValueError(f"{name} (shape {shape}) must have at least 1 dimension, and features in the last one")


def _is_array(value: object) -> bool:
    """Asked after the type: a call's price for each operand of a tiny layer."""
    return isinstance(value, np.ndarray) or _device.is_device_array(value)


def linear_viewable(x: Array, weight: Array, axis: int, residual: Array | None, out: Array | None) -> bool:
    """Whether the operands have the shapes that `functional` turns into views of rows; `_core` checks the rest."""
    if (
        (type(x) is not np.ndarray and not _is_array(x))
        or (type(weight) is not np.ndarray and not _is_array(weight))
        or x.ndim < 1
        or weight.ndim != 2
    ):
        return False
    shape = x.shape
    if shape[-1] != weight.shape[axis] or 0 in weight.shape:
        return False
    expected = (*shape[:-1], weight.shape[1 - axis])
    return (
        residual is None or ((type(residual) is np.ndarray or _is_array(residual)) and residual.shape == expected)
    ) and (out is None or ((type(out) is np.ndarray or _is_array(out)) and out.shape == expected))


def plain_rows(x: Any, residual: Any, out: Any) -> bool:
    """Whether the operands are rows of features already: `_core` takes them, and refuses them, as they are."""
    return (
        (type(x) is np.ndarray or _is_array(x))
        and x.ndim == 2
        and len(x) > 0
        and (residual is None or ((type(residual) is np.ndarray or _is_array(residual)) and residual.ndim == 2))
        and (out is None or ((type(out) is np.ndarray or _is_array(out)) and out.ndim == 2))
    )


def linear_rows_match(dy: Array, x: Array, out: Array | None) -> bool:
    """As `linear_viewable`, for the gradients that sum over rows."""
    if (
        (type(dy) is not np.ndarray and not _is_array(dy))
        or (type(x) is not np.ndarray and not _is_array(x))
        or dy.ndim < 1
        or dy.shape[:-1] != x.shape[:-1]
    ):
        return False
    if x.ndim != dy.ndim or dy.shape[-1] < 1 or x.shape[-1] < 1:
        return False
    return out is None or ((type(out) is np.ndarray or _is_array(out)) and out.ndim == 2)


def rows_of(a: Any, rows: int) -> Any:
    """The rows of features as an unbatched image in layout NLC, (L, C); without rows, as an empty batch of (1, C)."""
    if a.ndim == 2 and rows:
        return a
    if not isinstance(a, np.ndarray):
        a = dense(a)
    return a.reshape(rows, a.shape[-1]) if rows else a.reshape(0, 1, a.shape[-1])


def target_rows(out: Any, rows: int) -> Any:
    """The rows of `out` as a view; None where its strides do not allow one."""
    if not isinstance(out, np.ndarray):
        return out if out.ndim == 2 and rows else None
    view = rows_of(out, rows)
    return view if rows == 0 or np.may_share_memory(view, out) else None


def linear_error(refusal: _core.Refused, arrays: Mapping[str, object]) -> Exception:
    """Why a dense layer's forward pass was refused."""
    return _first_error(refusal, lambda: check_linear(arrays), arrays["x"], "linear")


def linear_plan_error(refusal: _core.Refused, arrays: Mapping[str, object], planned: Shape) -> Exception:
    """Why a plan of a dense layer refused a call."""

    def checks() -> Shape:
        shape = check_linear(arrays)
        x = _check_array("x", arrays["x"])
        rows, of = math.prod(planned[:-1]), math.prod(x.shape[:-1])
        if rows != of:
            raise ValueError(f"x (shape {x.shape}, {of} rows) must have the {rows} rows that the plan was made for")
        return shape

    return _first_error(refusal, checks, arrays["x"], "the plan of linear")


def check_linear_backward(arrays: Mapping[str, object], accumulate: object) -> Shape:
    """All checks of a gradient of the dense layer: that of the operand that `arrays` lacks, or of the bias."""
    _check_flag("accumulate", accumulate)
    a = _check_arrays(arrays)
    dy = a["dy"].shape
    _check_linear_rows("dy", dy)
    if "weight" in arrays:
        shape: Shape = (*dy[:-1], _check_linear_weight(a["weight"].shape, "dy", dy, 0))
    elif "x" in arrays:
        x = a["x"].shape
        _check_linear_rows("x", x)
        _check_shape("dy", dy, (*x[:-1], dy[-1]), "that of x but for the last dimension")
        shape = (dy[-1], x[-1])
    else:
        shape = dy[-1:]
    _check_target(a, shape, accumulate)
    return shape


def linear_backward_error(
    refusal: _core.Refused, arrays: Mapping[str, object], accumulate: object, suffix: str
) -> Exception:
    """Why a gradient of the dense layer was refused."""
    return _first_error(
        refusal, lambda: check_linear_backward(arrays, accumulate), arrays["dy"], f"linear_backward_{suffix}"
    )


# ------------------------------------------------------------------------------------------ combined gradients

_GRADIENTS = ("input", "weight", "bias")


def gradient_targets(
    needs: Collection[str], accumulate: object, reads: Mapping[str, object], outputs_of: Callable[[Shape], int]
) -> tuple[Array | None, Array | None, Array | None]:
    """The arrays that the gradients of input, weight and bias are added to, None where there is none.

    They are checked here, all of them, because several passes write one after the other and a refused call must not
    have written anything. `reads` are dy, x and weight; `outputs_of` gives the output channels of a weight's shape.
    """
    if isinstance(needs, str) or not isinstance(needs, Collection):
        raise TypeError(f"needs (={needs!r}) must be a collection of names, not {_type_name(needs)}")
    for name in needs:
        if name not in _GRADIENTS:
            raise ValueError(f"needs (={needs!r}) must hold names out of {_GRADIENTS}")
    if accumulate is None:
        return None, None, None
    if isinstance(accumulate, tuple) and hasattr(accumulate, "_asdict"):
        accumulate = accumulate._asdict()
    if not isinstance(accumulate, Mapping):
        raise TypeError(f"accumulate must be ConvGradients or a mapping of arrays, not {_type_name(accumulate)}")
    for name in accumulate:
        if name not in _GRADIENTS:
            raise ValueError(f"accumulate (with the key {name!r}) must have keys out of {_GRADIENTS}")
    targets = {name: accumulate[name] for name in _GRADIENTS if name in needs and accumulate.get(name) is not None}
    labels = {name: f"accumulate[{name!r}]" for name in targets}
    arrays = _check_arrays({**reads, **{labels[name]: a for name, a in targets.items()}})
    weight = arrays["weight"].shape
    shapes = {"input": arrays["x"].shape, "weight": weight, "bias": (outputs_of(weight),) if len(weight) > 1 else ()}
    for name, label in labels.items():
        _check_shape(label, arrays[label].shape, shapes[name], f"that of the {name}")
        _check_written(label, arrays[label], arrays)
    return targets.get("input"), targets.get("weight"), targets.get("bias")
