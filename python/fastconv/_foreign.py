"""Host arrays of other libraries: a call runs on NumPy views of them, and gives arrays of their library.

`_core` asks `_device.serve` about operands that are no NumPy arrays, and that asks `serve` here first. So a call on
NumPy arrays never comes here, and no function of `functional` that is one call of `_core` knows of other libraries.
Those that are several calls, or that look at their operands, run again by `on_views` once they meet such an array.

The first array among the operands decides what a result is. Nothing is copied on the way in; on the way out only where
a library does not take memory as it is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from . import _core

P = ParamSpec("P")
T = TypeVar("T")

# NumPy has no bfloat16: a dtype of that name, of two bytes, which nothing computes with.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

REQUIRES_GRAD = "(a tensor that requires grad) must be detached: no gradient would flow; pass it by .detach()"

# Devices of DLPack whose memory the host reads: its own, and what CUDA and ROCm have pinned for it.
_DLPACK_HOST = (1, 3, 11)
# What operands mostly are, and what is no array; asked for before anything slower.
_OWN = frozenset((np.ndarray, type(None)))
_NO_ARRAYS = frozenset((type(None), bool, int, float, str, tuple, list, _core.ConvSpec, _core.PoolSpec, _core.NormSpec))


class Unreadable(TypeError):
    """An array of another library that cannot be viewed; the words go after the argument's name."""


class Library(NamedTuple):
    """How arrays of a library become NumPy views and the other way round.

    Attributes:
        name: what an error calls its arrays; None where they go with those of any other library.
        view: the NumPy view of an array; None where its memory is not the host's.
        wrap: an array of the library over a result.
        written: what is done after an array has been written to.
    """

    name: str | None
    view: Callable[[Any], npt.NDArray[Any] | None]
    wrap: Callable[[npt.NDArray[Any]], Any]
    written: Callable[[Any], None]


# ------------------------------------------------------------------------------------------------------ the libraries


def _view_torch(value: Any) -> npt.NDArray[Any] | None:
    torch: Any = sys.modules["torch"]
    if not value.is_cpu:
        if value.is_cuda:
            return None
        raise Unreadable(f"(on {value.device}) must be in the host's memory or on a CUDA device")
    if value.requires_grad:
        if torch.is_grad_enabled():
            raise Unreadable(REQUIRES_GRAD)
        value = value.detach()
    try:
        if value.dtype is torch.bfloat16:
            bits: npt.NDArray[Any] = value.view(torch.int16).numpy()
            return bits.view(BFLOAT16)
        view: npt.NDArray[Any] = value.numpy()
    except (TypeError, RuntimeError) as error:  # dtypes and layouts that NumPy has not; tensors without memory
        kind = f"dtype {str(value.dtype).removeprefix('torch.')}, layout {str(value.layout).removeprefix('torch.')}"
        raise Unreadable(f"({kind}) must be a dense tensor of float32 or float64: {error}") from None
    return view


def _wrap_torch(result: npt.NDArray[Any]) -> Any:
    return sys.modules["torch"].from_numpy(result)


def _written_torch(value: Any) -> None:
    # As its own functions do, so that autograd refuses a backward pass over what has been overwritten.
    if not value.is_inference():
        sys.modules["torch"].autograd.graph.increment_version(value)


def _view_jax(value: Any) -> npt.NDArray[Any] | None:
    jax: Any = sys.modules["jax"]
    if isinstance(value, jax.core.Tracer):
        raise Unreadable(f"(of type {type(value).__name__}) must be an array: traced by JAX it has no elements yet")
    try:
        if any(device.platform != "cpu" for device in value.devices()):
            return None
        # Read-only, and where the array lies.
        return np.asarray(value)
    except RuntimeError as error:  # deleted, or donated
        raise Unreadable(f"(of type {type(value).__name__}) cannot be read where it lies: {error}") from None


def _wrap_jax(result: npt.NDArray[Any]) -> Any:
    jax: Any = sys.modules["jax"]
    # Without jax_enable_x64 JAX has neither float64 nor the int64 of indices: such a result stays NumPy's.
    if result.dtype.itemsize == 8 and not jax.config.jax_enable_x64:
        return result
    try:
        return jax.dlpack.from_dlpack(result)
    except (BufferError, RuntimeError, ValueError):  # strides that XLA does not take
        return jax.numpy.asarray(result)


def _view_dlpack(value: Any) -> npt.NDArray[Any] | None:
    try:
        if int(value.__dlpack_device__()[0]) not in _DLPACK_HOST:
            return None
        return np.from_dlpack(value)
    except (AttributeError, TypeError, RuntimeError, BufferError, ValueError) as error:
        kind = type(value)
        raise Unreadable(
            f"(of type {kind.__module__}.{kind.__qualname__}) must be an array of float32 or float64 that gives its "
            f"memory by __dlpack__: {error}"
        ) from None


def _same(result: npt.NDArray[Any]) -> Any:
    return result


def _nothing(value: Any) -> None:
    pass


_TORCH = Library("a torch.Tensor", _view_torch, _wrap_torch, _written_torch)
_JAX = Library("a jax.Array", _view_jax, _wrap_jax, _nothing)
_DLPACK = Library(None, _view_dlpack, _same, _nothing)


def _library(value: object) -> Library | None:
    """The library of an array that is not NumPy's, on the host or on a device."""
    if type(value) in _NO_ARRAYS or isinstance(value, np.ndarray):
        return None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _TORCH
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return _JAX
    return _DLPACK if hasattr(value, "__dlpack__") else None


def view(value: object) -> npt.NDArray[Any] | None:
    """A NumPy view of an array of another library; None where the value is none, or is on a device.

    Raises Unreadable where there can be no view.
    """
    library = _library(value)
    return None if library is None else library.view(value)


def shape_of(value: object) -> tuple[int, ...] | None:
    """The shape of such an array; None where the value is none, or cannot be viewed."""
    try:
        a = view(value)
    except Unreadable:
        return None
    return None if a is None else tuple(a.shape)


def seen(value: Any) -> Any:
    """The view of such an array; what is none, or cannot be viewed, as it is: the checks that follow say so."""
    try:
        a = view(value)
    except Unreadable:
        return value
    return value if a is None else a


def written(*values: object) -> None:
    """What is done once a call has written to operands that it does not return; for NumPy's arrays nothing."""
    if _OWN.issuperset(map(type, values)):
        return
    for value in values:
        if (library := _library(value)) is not None:
            library.written(value)


def any_of(values: Collection[object]) -> bool:
    """Whether one of the values is an array of another library, on no device."""
    if _OWN.issuperset(map(type, values)):
        return False
    for value in values:
        if type(value) is not np.ndarray and value is not None:
            try:
                if view(value) is not None:
                    return True
            except Unreadable:  # which `on_views` says
                return True
    return False


def mixture(arrays: Mapping[str, object]) -> str | None:
    """What is wrong with arrays of several libraries in one call; None where they may go together."""
    first: tuple[str, Library] | None = None
    for name, value in arrays.items():
        library = _library(value)
        if library is None or library.name is None:
            continue
        if first is None:
            first = name, library
        elif library is not first[1]:
            return (
                f"{name} ({library.name}) must be of the library of {first[0]}, which is {first[1].name}, or a "
                "numpy.ndarray"
            )
    return None


# ---------------------------------------------------------------------------------------------------------- the calls


class _Views:
    """The operands of one call as NumPy arrays, and its results as arrays of the library of the first."""

    def __init__(self) -> None:
        self.decided = False
        self.library: Library | None = None
        self.named: Library | None = None
        self.pairs: list[tuple[npt.NDArray[Any], Any, Library]] = []
        self.own: list[npt.NDArray[Any]] = []
        self.mixed = self.on_device = False

    def of(self, value: Any) -> Any:
        if type(value) in _NO_ARRAYS:
            return value
        library = None if type(value) is np.ndarray else _library(value)
        if library is None:
            if isinstance(value, np.ndarray):
                self.decided = True
                self.own.append(value)
            return value
        seen = library.view(value)
        if seen is None:
            self.on_device = True
            return value
        if not self.decided:
            self.decided, self.library = True, library
        if library.name is not None:
            self.mixed = self.mixed or self.named not in (None, library)
            self.named = library
        self.pairs.append((seen, value, library))
        return seen

    def wrapped(self, result: Any) -> Any:
        if type(result) is np.ndarray:
            for seen, value, library in self.pairs:
                if result is seen:
                    library.written(value)
                    return value
            if any(result is value for value in self.own):
                return result
            return result if self.library is None else self.library.wrap(result)
        if isinstance(result, tuple):
            parts = map(self.wrapped, result)
            make: Any = getattr(result, "_make", tuple)
            return make(parts)
        return result


def serve(operands: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]] | None:
    """(operands with views, what makes the result), for `_core`; None where no operand is such an array.

    Raises `Refused("bad_type")` where one cannot be viewed, or several libraries are mixed: `_args` says so.
    """
    views = _Views()
    try:
        seen = tuple(map(views.of, operands))
    except Unreadable:
        raise _core.Refused("bad_type") from None
    if not views.pairs or views.on_device:
        return None
    if views.mixed:
        raise _core.Refused("bad_type")
    return seen, views.wrapped


def on_views(function: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> T:
    """`function` of NumPy views of its arrays, its results as `serve` gives them."""
    views = _Views()
    bound = inspect.signature(function).bind(*arguments, **options)

    def of(name: str, value: Any) -> Any:
        try:
            return views.of(value)
        except Unreadable as error:
            raise TypeError(f"{name} {error}") from None

    flat: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if hasattr(value, "_asdict"):  # accumulate
            entries = {f"{name}[{key!r}]": entry for key, entry in value._asdict().items()}
            bound.arguments[name] = value._make(of(key, entry) for key, entry in entries.items())
            flat.update(entries)
        elif isinstance(value, Mapping):
            bound.arguments[name] = {key: of(f"{name}[{key!r}]", entry) for key, entry in value.items()}
            flat.update({f"{name}[{key!r}]": entry for key, entry in value.items()})
        else:
            bound.arguments[name] = of(name, value)
            flat[name] = value
    if views.mixed and (words := mixture(flat)) is not None:
        raise TypeError(words)
    try:
        result: T = views.wrapped(function(*bound.args, **bound.kwargs))
    except (TypeError, ValueError, MemoryError, RuntimeError) as error:
        raise error from None  # not the refusal that led here
    return result
