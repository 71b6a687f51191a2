"""A table of what a network does with an input of some shape: `summary`.

The pass is one of shapes. A copy of the network's tree, which shares its parameters, runs on arrays that have a shape
and no memory (strides of 0), and layers whose rule is known give such an array back without computing. Modules of
one's own run as they are.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import functional
from .._args import Array
from .activation import _Elementwise
from .conv import SeparableConv2d, _Conv
from .linear import Linear
from .module import Module, Parameter, float_dtype, recording
from .norm import LayerNorm, LocalResponseNorm, _Affine
from .pool import _Adaptive, _Global, _Pool, _Window
from .reshape import Flatten, Upsample

__all__ = ["Summary", "SummaryRow", "summary"]

# Of each spatial axis: how many pixels of the network's input an element sees, and its distance to the next one there.
Field = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SummaryRow:
    """One call of a layer.

    Attributes:
        name: the module's.
        type: its class's name.
        output_shape: of its result.
        parameters: how many of its parameters no row before counts.
        macs: multiply-adds.
        receptive_field: pixels of the network's input that an element of the result sees, for each spatial axis.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """What `summary` found; as text a table.

    Attributes:
        name: the network's class.
        input_shape: the input's.
        output_shape: the result's, or () where that is no array.
        rows: one a call of a layer.
        parameters: elements of all parameters of the network, each once.
        trainable: those of parameters that require a gradient.
        macs: multiply-adds.
        peak_bytes: memory of activations.
        parameter_bytes: memory of parameters.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    rows: tuple[SummaryRow, ...]
    parameters: int
    trainable: int
    macs: int
    peak_bytes: int
    parameter_bytes: int

    _TITLES = ("layer", "type", "output", "parameters", "MACs", "field")

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.name,
                row.type,
                _by(row.output_shape),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.macs:,}" if row.macs else "",
                str(row.receptive_field[0]) if len(set(row.receptive_field)) == 1 else _by(row.receptive_field),
            )
            for row in self.rows
        ]

    def _totals(self) -> list[str]:
        return [
            f"{self.name}: {_by(self.input_shape)} to {_by(self.output_shape)}",
            f"parameters  {self.parameters:,} ({self.trainable:,} trainable), {self.parameter_bytes / 1e6:,.1f} MB",
            f"MACs        {self.macs:,}",
            f"peak memory {self.peak_bytes / 1e6:,.1f} MB of activations",
        ]

    def __str__(self) -> str:
        table = [self._TITLES, *self._cells()]
        widths = [max(len(row[column]) for row in table) for column in range(len(self._TITLES))]
        left = (str.ljust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
        lines = [
            "  ".join(put(cell, width) for put, cell, width in zip(left, row, widths, strict=True)).rstrip()
            for row in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *self._totals()])

    def print(self) -> None:
        """Print the table, by the package rich where it is installed."""
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            print(self)
            return
        table = Table(box=None, pad_edge=False)
        for number, title in enumerate(self._TITLES):
            table.add_column(title, justify="left" if number < 3 else "right", no_wrap=number > 2)
        for cells in self._cells():
            table.add_row(*cells)
        console = Console(markup=False, highlight=False)
        console.print(table)
        console.print("\n".join(["", *self._totals()]))


def _by(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def summary(
    model: Module,
    input: npt.ArrayLike | Sequence[int],
    *,
    dtype: npt.DTypeLike | None = None,
    show: bool = True,
) -> Summary:
    """Shapes, parameters, multiply-adds, receptive fields and memory of an inference pass of a network.

    Multiply-adds are those of convolutions and dense layers by their definition, padding included; biases, norms,
    activations, pooling and sums are not counted, nor is what Winograd's filtering saves.

    A receptive field is that of a window's chain, (field, distance) to (field + (kernel - 1) * dilation * distance,
    distance * stride), and may be larger than the image. A transposed layer divides the distance by its stride, pooling
    to a size has the window that this takes, and flattening sees all pixels. Where paths join (a sum, a concatenation)
    it is the largest of those that meet; what a squeeze-excitation's gate sees is left out.

    The memory is the largest sum of arrays that are alive at once in eval mode: the input, what modules hold of their
    inputs while they run, and the results, each layer's in an array of its own. Scratch of kernels and packed weights
    are not in it.

    The network is left as it is, and nothing of its size is computed or allocated.

    Args:
        model: a network of one input.
        input: an array, or a shape such as (1, 3, 224, 224).
        dtype: of the input, float32 or float64; None is that of the network's first parameter.
        show: whether to print the table.

    Raises:
        TypeError: model is no Module, or input neither an array nor a shape.
        ValueError: a layer refuses its input's shape.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model (of type {type(model).__name__}) must be a Module")
    shape = input.shape if isinstance(input, np.ndarray) else _shape(input)
    if dtype is None:
        first = next(model.parameters(), None)
        dtype = np.float32 if first is None else first.dtype
    trace = _Trace(float_dtype(dtype))
    twin = trace.twin(model)
    with recording(False):
        x = trace.stand_in(shape, tuple((1.0, 1.0) for _ in shape[2:]))
        y = twin(x)
    parameters = list(model.parameters())
    result = Summary(
        name=type(model).__name__,
        input_shape=shape,
        output_shape=y.shape if isinstance(y, np.ndarray) else (),
        rows=tuple(trace.rows),
        parameters=model.num_parameters(),
        trainable=model.num_parameters(trainable=True),
        macs=sum(row.macs for row in trace.rows),
        peak_bytes=trace.peak,
        parameter_bytes=sum(p.size * p.dtype.itemsize for p in parameters),
    )
    if show:
        result.print()
    return result


def _shape(value: object) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise TypeError(f"input (={value!r}) must be an array or a shape") from None
    if not shape or min(shape) < 1:
        raise ValueError(f"input (={shape}) must be a shape of positive sizes")
    return shape


class _Trace:
    """One pass."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.rows: list[SummaryRow] = []
        self.peak = 0
        self._alive = 0
        self._fields: dict[int, Field] = {}
        self._references: dict[int, weakref.ref[Array]] = {}
        self._counted: set[int] = set()
        # Of the modules that run, from the outermost: how many calls they made, and the largest field so far.
        self._running: list[list[Any]] = []
        self._last_alive = 0

    # -- arrays

    def stand_in(self, shape: tuple[int, ...], field: Field) -> Array:
        """An array of that shape without memory, which counts as alive while it or a view of it is."""
        token = np.zeros(1, self.dtype)
        key, size = id(token), math.prod(shape) * self.dtype.itemsize

        def gone(_: object) -> None:
            self._alive -= size
            del self._fields[key], self._references[key]

        self._references[key] = weakref.ref(token, gone)
        self._fields[key] = field
        self._alive += size
        self.peak = max(self.peak, self._alive)
        array: Array = np.ndarray(shape, self.dtype, token, strides=(0,) * len(shape))
        array.flags.writeable = False
        return array

    def _field(self, x: object) -> Field | None:
        """The field of an array that the pass knows, or a view of one."""
        return self._fields.get(id(_root(x)))

    # -- modules

    def twin(self, module: Module, name: str = "", made: dict[int, Module] | None = None) -> Module:
        """A module of the same class, parameters and options whose calls are traced, and so all below."""
        made = {} if made is None else made
        if id(module) in made:
            return made[id(module)]
        other: Module = object.__new__(type(module))
        made[id(module)] = other
        state = other.__dict__
        state.update(module.__dict__)
        state.update(_saved=[], training=False, _modules={})
        for below, child in module._modules.items():
            grown = None if child is None else self.twin(child, f"{name}.{below}" if name else below, made)
            other._modules[below] = grown
            if below in state:
                state[below] = grown
        state["forward"] = self._traced(other, name)
        return other

    def _traced(self, module: Module, name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = [f for f in map(self._field, args) if f is not None]
            if not given and self._running:
                # An array that the module above has made itself: it comes from what that one has seen.
                given = [self._running[-1][1]]
            seen = _largest(given)
            if self._running:
                self._running[-1][0] += 1
            self._running.append([0, seen])
            try:
                found = _rule(module, *args, **kwargs)
                if found is None:
                    shape, macs, field = None, 0, None
                    y = _run(module, *args, **kwargs)
                else:
                    shape, macs, field = found
                    y = None
                calls, largest = self._running[-1]
            finally:
                self._running.pop()
            if shape is not None and field is not None:
                largest = _step(seen, field)
                y = self.stand_in(shape, largest)
            elif isinstance(y, np.ndarray):
                known = self._field(y)
                if known is not None:
                    largest = known
                else:
                    # The module itself has made it while all was alive that was after its last call.
                    size = math.prod(y.shape) * self.dtype.itemsize
                    self.peak = max(self.peak, (self._last_alive if calls else self._alive) + size)
                    y = self.stand_in(y.shape, largest)
            if isinstance(module, Flatten) and y.shape[2:] != args[0].shape[2:]:
                largest = _step(seen, [(size, 1.0) for size in args[0].shape[2:]])
                self._fields[id(_root(y))] = largest
            if self._running:
                self._running[-1][1] = _largest([self._running[-1][1], largest])
            own = [p for p in module.parameters() if id(p) not in self._counted]
            if not calls or own:
                self._add_row(module, name, y, own, macs, largest)
            self._last_alive = self._alive
            return y

        return forward

    def _add_row(
        self, module: Module, name: str, y: object, parameters: list[Parameter], macs: int, field: Field
    ) -> None:
        self._counted.update(map(id, parameters))
        self.rows.append(
            SummaryRow(
                name=name or type(module).__name__,
                type=type(module).__name__,
                output_shape=y.shape if isinstance(y, np.ndarray) else (),
                parameters=sum(p.size for p in parameters),
                macs=macs,
                receptive_field=tuple(math.ceil(size) for size, _ in field),
            )
        )


def _root(x: Any) -> Any:
    """What a view's memory belongs to."""
    while isinstance(x, np.ndarray) and isinstance(x.base, np.ndarray):
        x = x.base
    return x


def _largest(fields: list[Field]) -> Field:
    if not fields:
        return ()
    axes = max(map(len, fields))
    whole = [f for f in fields if len(f) == axes]
    return tuple(max(f[axis] for f in whole) for axis in range(axes))


def _step(field: Field, windows: Sequence[tuple[float, float]]) -> Field:
    """The field behind windows of that many pixels with that stride."""
    if len(windows) != len(field):
        return field
    return tuple(
        (size + (window - 1) * jump, jump * stride)
        for (size, jump), (window, stride) in zip(field, windows, strict=True)
    )


# ----------------------------------------------------------------------------------------------------------- the rules

Found = tuple[tuple[int, ...], int, list[tuple[float, float]]]


def _rule(module: Module, *args: Any, **kwargs: Any) -> Found | None:
    """The shape of a layer's result, its multiply-adds and its windows; None for a module that has to run."""
    if len(args) != 1 or kwargs or not isinstance(args[0], np.ndarray):
        return None
    if type(module).forward.__module__.rpartition(".")[0] != __package__:
        return None  # a class of the user's that computes something else
    x: Array = args[0]
    if isinstance(module, SeparableConv2d):
        shape, first, windows = _conv(module.depthwise, x)
        shape, second, _ = _conv(module.pointwise, np.broadcast_to(x.dtype.type(0), shape))
        return shape, first + second, windows
    if isinstance(module, _Conv):
        return _conv(module, x)
    if isinstance(module, Linear):
        if not x.ndim or x.shape[-1] != module.in_features:
            raise ValueError(f"x (shape {x.shape}) must have in_features (={module.in_features}) columns")
        return (*x.shape[:-1], module.out_features), x.size * module.out_features, []
    if isinstance(module, (_Pool, Upsample)):
        return _windows(module, x)
    if isinstance(module, (_Affine, LocalResponseNorm)):
        # One pixel says whether the channels are right.
        probe = x[:1] if isinstance(module, LayerNorm) else np.zeros(_pixel(x), x.dtype)
        _run(module, probe)
        return x.shape, 0, []
    if isinstance(module, _Elementwise):
        return x.shape, 0, []
    return None  # also where x itself comes back, as of a dropout


def _run(module: Module, *args: Any, **kwargs: Any) -> Any:
    """What the class of a twin computes."""
    forward: Callable[..., Any] = type(module).forward
    return forward(module, *args, **kwargs)


def _pixel(x: Array) -> tuple[int, ...]:
    return (1, *x.shape[1:2], *(1 for _ in x.shape[2:]))


def _conv(module: _Conv, x: Array) -> Found:
    rank = module._rank
    if x.ndim != rank + 2 or x.shape[1] != module.in_channels:
        raise ValueError(f"x (shape {x.shape}) must have {rank + 2} dimensions and {module.in_channels} channels")
    # One channel has the pixels of all, by the arithmetic of the call itself.
    probe = np.zeros((1, 1, *x.shape[2:]), x.dtype)
    weight = np.zeros((1, 1, *module.kernel_size), x.dtype)
    pixels = getattr(functional, module._op)(probe, weight, **{**module._options(), "groups": 1}).shape[2:]
    shape = (x.shape[0], module.out_channels, *pixels)
    # Each element of the image meets all of the filter in a transposed layer, each of the result in another.
    outer = x.shape if module._transposed else shape
    macs = math.prod(outer) * math.prod(module.weight.shape[1:])
    extents = [(k - 1) * d + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    if module._transposed:
        return shape, macs, [(math.ceil(e / s), 1 / s) for e, s in zip(extents, module.stride, strict=True)]
    return shape, macs, [(e, s) for e, s in zip(extents, module.stride, strict=True)]


def _windows(module: Module, x: Array) -> Found:
    rank = x.ndim - 2
    y: Array = _run(module, np.zeros((1, 1, *x.shape[2:]), x.dtype))
    shape = (*x.shape[:2], *y.shape[2:])
    windows: list[tuple[float, float]] = []
    if isinstance(module, _Window):
        dilation = getattr(module, "dilation", (1,) * rank)
        extents = [(k - 1) * d + 1 for k, d in zip(module.kernel_size, dilation, strict=True)]
        windows = [(e, s) for e, s in zip(extents, module.stride, strict=True)]
    elif isinstance(module, _Global):
        windows = [(size, size) for size in x.shape[2:]]
    elif isinstance(module, _Adaptive):
        for size, out in zip(x.shape[2:], y.shape[2:], strict=True):
            # A window begins and ends within pixels where the sizes do not divide.
            windows.append((math.ceil(size / out) + bool(size % out) if out < size else 1, size / out))
    elif isinstance(module, Upsample):
        taps = 2 if module.mode == "bilinear" else 1
        windows = [(taps, size / out) for size, out in zip(x.shape[2:], y.shape[2:], strict=True)]
    return shape, 0, windows
