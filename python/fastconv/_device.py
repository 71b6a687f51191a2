"""Device arrays of any library: what `_core` asks when an operand is no NumPy array.

`_core` calls `serve` with the operands of a call that it would otherwise refuse. Arrays in the host's memory are left
to `_foreign`. Where they are arrays in a device's memory they become `_core.DeviceView`s, with a stream and an
allocator, and `_core` runs the same binding again on the device's row of its table. So a call on NumPy arrays never
comes here, and no function of `functional` knows of devices.

To find the words of an error, `_args` takes a device array as its shadow: a NumPy array of the same addresses, shape,
strides and dtype, of which no check looks at an element.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _core, _foreign, cuda

Allocate = Callable[[int, tuple[int, ...], tuple[int, ...], int], tuple[Any, int]]


class Found(NamedTuple):
    """A device array: where it lies, the stream of its library, and how that makes arrays like it."""

    view: _core.DeviceView
    stream: int
    allocate: Allocate


class Unusable(ValueError):
    """A device array whose elements cannot be reached; the words go after the argument's name."""


class Shadow(np.ndarray[Any, np.dtype[Any]]):
    """A NumPy array over a device's addresses: its elements may not be looked at."""

    ordinal: int


# ------------------------------------------------------------------------------------------------------ the libraries


def _allocate_own(ordinal: int, stream: int) -> Allocate:
    def allocate(dtype: int, shape: tuple[int, ...], strides: tuple[int, ...], nbytes: int) -> tuple[Any, int]:
        name = cuda._NAMES[dtype]
        size = cuda._ITEM_SIZES[name]
        array = cuda._new(shape, tuple(s * size for s in strides), name, ordinal, stream)
        return array, array.pointer

    return allocate


def _check_pointer(pointer: int, shape: Sequence[int]) -> None:
    """Refuse what has elements and no memory: a kernel would end the context by reading it."""
    if not pointer and 0 not in shape:
        raise Unusable(f"(shape {tuple(shape)}) must have memory: its storage has been freed")


def _find_own(value: cuda.DeviceArray) -> Found:
    stream = cuda._current_stream(value.device)
    return Found(cuda._view(value, writable=True), stream, _allocate_own(value.device, stream))


def _find_torch(torch: Any, value: Any) -> Found | None:
    if not value.is_cuda:
        return None
    name = str(value.dtype).removeprefix("torch.")
    if name not in cuda._DTYPES:
        raise _core.Refused("bad_dtype")
    if value.layout is not torch.strided:
        raise _core.Refused("bad_dtype")
    if value.requires_grad and torch.is_grad_enabled():
        raise _foreign.Unreadable(_foreign.REQUIRES_GRAD)
    device = value.device
    ordinal = device.index or 0
    _check_pointer(value.data_ptr(), value.shape)

    def allocate(dtype: int, shape: tuple[int, ...], strides: tuple[int, ...], nbytes: int) -> tuple[Any, int]:
        made = torch.empty_strided(shape, strides, dtype=getattr(torch, cuda._NAMES[dtype]), device=device)
        return made, made.data_ptr()

    view = _core.DeviceView(
        value.data_ptr(), cuda._DTYPES[name], tuple(value.shape), tuple(value.stride()), ordinal, True, value
    )
    return Found(view, int(torch.cuda.current_stream(ordinal).cuda_stream), allocate)


def _allocate_cupy(cupy: Any) -> Allocate:
    def allocate(dtype: int, shape: tuple[int, ...], strides: tuple[int, ...], nbytes: int) -> tuple[Any, int]:
        name = np.dtype(cuda._NAMES[dtype])
        memory = cupy.cuda.alloc(max(nbytes, 1))
        made = cupy.ndarray(shape, name, memory, tuple(s * name.itemsize for s in strides))
        return made, made.data.ptr

    return allocate


def _find_interface(value: Any) -> Found:
    """By `__cuda_array_interface__`, version 2 or 3."""
    interface = value.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise _core.Refused("bad_dtype")
    dtype = np.dtype(interface["typestr"])
    if not dtype.isnative or dtype.name not in cuda._DTYPES:
        raise _core.Refused("bad_dtype")
    pointer, readonly = interface["data"]
    shape = tuple(interface["shape"])
    strides = interface.get("strides") or cuda._packed(shape, dtype.itemsize)
    if any(s % dtype.itemsize for s, n in zip(strides, shape, strict=True) if n > 1):
        raise _core.Refused("bad_alignment")
    _check_pointer(pointer, shape)
    ordinal = cuda._module().device_of(pointer) if pointer else 0
    if ordinal < 0:
        raise Unusable(f"(at address {pointer:#x}) must lie in a CUDA device's memory, and that address does not")
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        ordinal = int(value.device.id)
        allocate, stream = _allocate_cupy(cupy), int(cupy.cuda.get_current_stream().ptr)
    else:
        stream = cuda._current_stream(ordinal)
        allocate = _allocate_own(ordinal, stream)
        theirs = interface.get("stream")
        if theirs is not None and (0 if theirs == 1 else theirs) != stream:
            cuda._module().order_streams(ordinal, 0 if theirs == 1 else theirs, stream)
    steps = tuple(s // dtype.itemsize for s in strides)
    # What JAX holds is immutable, whatever its interface says.
    writable = not readonly and type(value).__module__.partition(".")[0] not in ("jax", "jaxlib")
    view = _core.DeviceView(pointer, cuda._DTYPES[dtype.name], shape, steps, ordinal, writable, value)
    return Found(view, stream, allocate)


def _find_dlpack(value: Any) -> Found:
    ordinal = int(value.__dlpack_device__()[1])
    stream = cuda._current_stream(ordinal)
    # 1 is the default stream there; the producer makes it wait for its own.
    view = _core.DeviceView.from_dlpack(value.__dlpack__(stream=stream or 1))
    return Found(view, stream, _allocate_own(ordinal, stream))


def is_device_array(value: object) -> bool:
    """Whether the value is an array in a CUDA device's memory."""
    if isinstance(value, (np.ndarray, tuple, list, int, float, str, type(None))):
        return False
    if isinstance(value, cuda.DeviceArray):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.is_cuda)
    if hasattr(value, "__dlpack_device__"):
        try:
            return int(value.__dlpack_device__()[0]) == cuda._DLPACK_CUDA
        except BufferError:
            return False
        except RuntimeError:  # JAX's, of an array that was deleted: `find` says so
            return True
    try:
        return hasattr(value, "__cuda_array_interface__")
    except RuntimeError:
        return True


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of an array of the host or of a device; None where the value is none."""
    if isinstance(value, np.ndarray):
        return tuple(value.shape)
    if not is_device_array(value):
        return _foreign.shape_of(value)
    if hasattr(value, "shape"):
        return tuple(value.shape)
    found = find(value)
    return None if found is None else tuple(found.view.shape)


def find(value: object) -> Found | None:
    """The value as a device array; None where it is none.

    Raises Unusable where its library says that it has been deleted, or it has no memory.
    """
    if not is_device_array(value):
        return None
    cuda._module()
    try:
        found = _find(value)
    except Unusable:
        raise
    except _core.Refused as refusal:
        if refusal.args[0] != "bad_device":
            raise
        raise Unusable(f"(of type {type(value).__qualname__}) must have memory: its storage has been freed") from None
    # JAX's arrays that were deleted or donated raise RuntimeError, DLPack's producers BufferError.
    except (RuntimeError, BufferError, ReferenceError) as error:
        raise Unusable(f"(of type {type(value).__qualname__}) cannot be read where it lies: {error}") from None
    _check_pointer(found.view.pointer if found else 1, found.view.shape if found else ())
    return found


def _find(value: Any) -> Found | None:
    if isinstance(value, cuda.DeviceArray):
        return _find_own(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _find_torch(torch, value)
    # bfloat16 has no name in __cuda_array_interface__, and so DLPack comes where that fails.
    if not hasattr(value, "__dlpack__"):
        return _find_interface(value)
    try:
        return _find_interface(value) if hasattr(value, "__cuda_array_interface__") else _find_dlpack(value)
    except (TypeError, _core.Refused):
        return _find_dlpack(value)


# ---------------------------------------------------------------------------------------------------------- the calls


def serve(operands: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """(operands with views, ordinal, stream, allocate), for `_core`; None where no operand is a device array.

    Of arrays of other libraries in the host's memory, (operands with views, what makes the result).

    Raises `Refused("bad_device")` where operands are on several devices, or some in the host's memory.
    """
    if (hosted := _foreign.serve(operands)) is not None:
        return hosted
    if not any(map(is_device_array, operands)):
        return None
    cuda._module()
    try:
        found = [find(value) for value in operands]
    except (Unusable, _foreign.Unreadable):
        raise _core.Refused("bad_device") from None  # _args says which one
    arrays = [f for f in found if f is not None]
    ordinal = arrays[0].view.ordinal
    if any(f.view.ordinal != ordinal for f in arrays) or any(isinstance(value, np.ndarray) for value in operands):
        raise _core.Refused("bad_device")
    cuda._check_device(ordinal)
    views = tuple(value if f is None else f.view for value, f in zip(operands, found, strict=True))
    return views, ordinal, arrays[0].stream, arrays[0].allocate


_core.set_device_hook(serve)


_IDENTITY = (0, 0.0, 0.0)


def dense(value: Any) -> Any:
    """A copy of a device array in C order, made by its library's allocator on its stream."""
    found = find(value)
    if found is None:
        raise TypeError(f"{type(value).__qualname__} is no array of a device")
    view = found.view
    size = cuda._ITEM_SIZES[cuda._NAMES[view.dtype]]
    strides = tuple(s // size for s in cuda._packed(view.shape, size))
    made, _ = found.allocate(view.dtype, view.shape, strides, size * math.prod(view.shape))
    return _core.activation(_IDENTITY, value, made)


def copy_into(out: Any, result: Any) -> None:
    """Copy between device arrays of one shape."""
    _core.activation(_IDENTITY, result, out)


# --------------------------------------------------------------------------------------------------------- the errors


def shadow(value: object) -> Shadow | None:
    """A device array as a NumPy array over the same addresses; None where the value is none."""
    found = find(value)
    if found is None:
        return None
    view = found.view
    name = cuda._NAMES[view.dtype]
    size = cuda._ITEM_SIZES[name]
    raw = cuda._addresses(
        view.pointer, size, view.shape, tuple(s * size for s in view.strides), readonly=not view.writable
    )
    result = raw.view(_foreign.BFLOAT16 if name == "bfloat16" else np.dtype(name)).view(Shadow)
    result.ordinal = view.ordinal
    return result


def device_name(a: object) -> str:
    """The device of an array or a shadow."""
    return f"cuda:{a.ordinal}" if isinstance(a, Shadow) else "the host"


def dtype_name(a: np.ndarray[Any, Any] | np.dtype[Any]) -> str:
    """The dtype of an array or a shadow, or that dtype, in a word."""
    dtype = a if isinstance(a, np.dtype) else a.dtype
    return "bfloat16" if dtype == _foreign.BFLOAT16 else str(dtype)
