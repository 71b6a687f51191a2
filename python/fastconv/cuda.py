"""Arrays in the memory of NVIDIA GPUs, for those who bring none of their own.

The functions of `fastconv.functional` take a GPU's arrays as they take NumPy's: those of PyTorch, CuPy and JAX, and any
object with `__cuda_array_interface__` or `__dlpack__`. `DeviceArray` is the least of them:

    x = fastconv.cuda.to_device(numpy_array)
    y = fastconv.cuda.to_host(fastconv.relu(x))

Its memory comes from CUDA's stream-ordered pool. float32, float64, float16 and bfloat16 are computed with, integers
serve max pooling and its indices. Nothing here is needed where another library allocates: a call on PyTorch's or CuPy's
arrays gives arrays of that library.

A call goes to the current stream of its arrays' library, a call on DeviceArrays to PyTorch's or CuPy's where one of
them is loaded, else to the default stream. Only `to_device`, `to_host` and `synchronize` wait.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core

__all__ = ["DeviceArray", "device_count", "empty", "is_available", "synchronize", "to_device", "to_host"]

Shape = tuple[int, ...]

# The values of DType in fastconv/tensor.h.
_DTYPES = {
    "float32": 0,
    "float64": 1,
    "int8": 2,
    "uint8": 3,
    "int16": 4,
    "int32": 5,
    "int64": 6,
    "float16": 7,
    "bfloat16": 8,
}
_NAMES = {code: name for name, code in _DTYPES.items()}
_ITEM_SIZES = {"bfloat16": 2} | {name: np.dtype(name).itemsize for name in _DTYPES if name != "bfloat16"}
_DLPACK_CUDA = 2


# --------------------------------------------------------------------------------------------------------- the module


@functools.cache
def _load() -> ModuleType | str:
    """The module of the GPU, or why there is none."""
    # The tests' name for the same kernels on fibers of the host.
    name = os.environ.get("FASTCONV_CUDA_MODULE", "_cuda")
    try:
        module = importlib.import_module(f"fastconv.{name}")
    except ModuleNotFoundError:
        return "this fastconv was built without CUDA (FASTCONV_CUDA=ON builds it)"
    except ImportError as error:
        return f"the module for CUDA cannot be loaded: {error}"
    if module.build_info()["version"] != _core.build_info()["version"]:
        return f"the module for CUDA is of version {module.build_info()['version']}"
    _core.set_cuda_backend(module.backend())
    return module


def _module() -> ModuleType:
    """The module of the GPU; RuntimeError where there is none, or no GPU."""
    module = _load()
    if isinstance(module, str):
        raise RuntimeError(f"no CUDA device can be used: {module}")
    count, reason = module.device_count()
    if count == 0:
        raise RuntimeError(f"no CUDA device can be used: {reason}")
    return module


def _unavailable() -> str | None:
    """Why there is no GPU to use; None where there is one."""
    module = _load()
    if isinstance(module, str):
        return module
    count, reason = module.device_count()
    return None if count else str(reason)


def _describe() -> str:
    """What show_config says: the build and the devices, or why there are none."""
    if (reason := _unavailable()) is not None:
        return reason
    module = _module()
    devices = (module.device_info(i) for i in range(module.device_count()[0]))
    shown = (f"{d['name']} ({d['capability'][0]}.{d['capability'][1]})" for d in devices)
    build = module.build_info()
    return f"{', '.join(shown)}; built for {build['architectures']} by {build['compiler']}"


@functools.cache
def _check_capability(ordinal: int) -> None:
    info = _module().device_info(ordinal)
    if info["capability"] < (8, 0):
        major, minor = info["capability"]
        raise RuntimeError(
            f"cuda:{ordinal} ({info['name']}, compute capability {major}.{minor}) is not supported: it must have "
            "8.0 or a later one"
        )


def is_available() -> bool:
    """Whether calls on GPU arrays can run: the module is built and there is a device."""
    return _unavailable() is None


def device_count() -> int:
    """The number of CUDA devices; 0 where the module is not built or finds none."""
    module = _load()
    return 0 if isinstance(module, str) else int(module.device_count()[0])


def _check_device(device: object) -> int:
    if isinstance(device, bool) or not isinstance(device, int):
        raise TypeError(f"device (={device!r}) must be an integer, not {type(device).__name__}")
    count = _module().device_count()[0]
    if not 0 <= device < count:
        raise ValueError(f"device (={device}) must be from 0 to {count - 1}: there are {count} CUDA devices")
    _check_capability(device)
    return device


def _current_stream(ordinal: int) -> int:
    """The stream that a library which is loaded calls current; else the default one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.current_stream(ordinal).cuda_stream)
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        return int(cupy.cuda.get_current_stream().ptr)
    return 0


def synchronize(device: int = 0) -> None:
    """Wait until the work that was given to the device's current stream is done."""
    _check_device(device)
    _module().synchronize(device, _current_stream(device))


# ----------------------------------------------------------------------------------------------------------- arrays


class _Memory:
    """A block of the device's pool, given back in the order of the stream that it was taken on."""

    __slots__ = ("_module", "nbytes", "ordinal", "pointer", "stream")

    def __init__(self, nbytes: int, ordinal: int, stream: int) -> None:
        self._module = _module()
        self.nbytes, self.ordinal, self.stream = nbytes, ordinal, stream
        self.pointer: int = self._module.allocate(nbytes, ordinal, stream)

    def __del__(self) -> None:
        pointer = getattr(self, "pointer", 0)
        if pointer and not sys.is_finalizing():
            self._module.release(pointer, self.ordinal, self.stream)


def _packed(shape: Shape, itemsize: int) -> Shape:
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


class DeviceArray:
    """An array in a GPU's memory; made by `to_device`, `empty` and calls on such arrays.

    It exports `__dlpack__` and `__cuda_array_interface__` (which has no bfloat16), so that other libraries can use it
    where it lies. Slices are views.

    Attributes:
        shape: its lengths.
        strides: bytes from one element to the next along each axis, as NumPy's.
        dtype: the name of its dtype, "float32", "bfloat16" and so on.
        device: the ordinal of its device.
        stream: the handle of the stream that its memory was taken on.
    """

    __slots__ = ("__weakref__", "_memory", "device", "dtype", "pointer", "shape", "strides")

    def __init__(self, memory: _Memory, pointer: int, dtype: str, shape: Shape, strides: Shape) -> None:
        self._memory = memory
        self.pointer = pointer
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.device = memory.ordinal

    @property
    def stream(self) -> int:
        return self._memory.stream

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return _ITEM_SIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a DeviceArray without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device=cuda:{self.device})"

    def __getitem__(self, index: Any) -> DeviceArray:
        entries = index if isinstance(index, tuple) else (index,)
        for entry in entries:
            if entry is not None and entry is not Ellipsis and not isinstance(entry, (int, np.integer, slice)):
                raise TypeError(f"index (={index!r}) must be of integers, slices, None and ...: parts are views")
        # A NumPy array over the same addresses, of which only the place of its parts is looked at.
        whole = _addresses(self.pointer, self.itemsize, self.shape, self.strides)
        part = whole[entries if any(e is Ellipsis for e in entries) else (*entries, ...)]
        return DeviceArray(self._memory, part.__array_interface__["data"][0], self.dtype, part.shape, part.strides)

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same elements, which must lie in C order, in another shape."""
        new = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else tuple(shape)
        if -1 in new:
            rest = -math.prod(new)
            new = tuple(self.size // rest if n == -1 and rest else n for n in new)
        if math.prod(new) != self.size:
            raise ValueError(f"shape (={new}) must have the {self.size} elements of shape {self.shape}")
        packed = _packed(self.shape, self.itemsize)
        if any(n > 1 and s != p for n, s, p in zip(self.shape, self.strides, packed, strict=True)):
            raise ValueError(f"an array of shape {self.shape} and strides {self.strides} must lie in C order")
        return DeviceArray(self._memory, self.pointer, self.dtype, new, _packed(new, self.itemsize))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16; use __dlpack__")
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),
            "version": 3,
            "stream": self.stream or 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"dl_device (={dl_device}) must be {self.__dlpack_device__()}: nothing is moved silently")
        if copy:
            raise BufferError("copy (=True) must be None or False")
        # The consumer's stream has to come after the one that the elements were written on: the current one.
        if stream is not None and stream != -1:
            _module().order_streams(self.device, _current_stream(self.device), 0 if stream == 1 else stream)
        return _view(self, writable=True).dlpack()


def _addresses(pointer: int, itemsize: int, shape: Shape, strides: Shape, readonly: bool = False) -> npt.NDArray[Any]:
    """A NumPy array over a device's addresses, to compute with them: its elements may not be looked at."""
    interface = {
        "data": (pointer, readonly),
        "shape": shape,
        "strides": strides,
        "typestr": f"|V{itemsize}",
        "version": 3,
    }
    return np.asarray(type("Addresses", (), {"__array_interface__": interface})())


def _view(a: DeviceArray, *, writable: bool) -> _core.DeviceView:
    size = a.itemsize
    strides = tuple(s // size for s in a.strides)
    return _core.DeviceView(a.pointer, _DTYPES[a.dtype], a.shape, strides, a.device, writable, a)


def _check_dtype(dtype: object) -> str:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if name not in _DTYPES:
        raise TypeError(f"dtype (={dtype!r}) must be one of {', '.join(_DTYPES)}")
    return str(name)


def _new(shape: Shape, strides: Shape, dtype: str, device: int, stream: int) -> DeviceArray:
    memory = _Memory(math.prod(shape) * _ITEM_SIZES[dtype], device, stream)
    return DeviceArray(memory, memory.pointer, dtype, shape, strides)


def empty(shape: Sequence[int] | int, dtype: str = "float32", *, device: int = 0) -> DeviceArray:
    """An array in C order whose elements are not set.

    Raises:
        ValueError: a length is negative, or there is no such device.
        TypeError: there is no such dtype.
        MemoryError: the device has no memory for it.
        RuntimeError: CUDA cannot be used, and why.
    """
    lengths = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    name = _check_dtype(dtype)
    if any(n < 0 for n in lengths):
        raise ValueError(f"shape (={lengths}) must have no negative length")
    ordinal = _check_device(device)
    return _new(lengths, _packed(lengths, _ITEM_SIZES[name]), name, ordinal, _current_stream(ordinal))


def _to_bfloat16(a: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Rounded to nearest, ties to even; a NaN stays one."""
    bits = a.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(a), 0x7FC0, rounded).astype(np.uint16)


def to_device(array: npt.ArrayLike, *, dtype: str | None = None, device: int = 0) -> DeviceArray:
    """A copy of a host array in a device's memory, in the same order of axes; waits until it is there.

    Args:
        array: float32, float64, float16 or an integer of up to 64 bits.
        dtype: None for the array's own, or "float16", "bfloat16" and so on: it is rounded on the host.
        device: the ordinal of the device.

    Raises:
        as `empty`.
    """
    host = np.asarray(array)
    name = _check_dtype(host.dtype if dtype is None else dtype)
    ordinal = _check_device(device)
    # Dense in the array's own order; a transposed image stays channels-last.
    source = np.array(_to_bfloat16(host) if name == "bfloat16" else host.astype(name, order="K"), order="K", copy=True)
    result = _new(source.shape, source.strides, name, ordinal, _current_stream(ordinal))
    _module().copy_to_device(result.pointer, source.ctypes.data, source.nbytes, ordinal, result.stream)
    return result


def to_host(array: Any) -> npt.NDArray[Any]:
    """A copy of a device array (of any library) in host memory; waits for its stream. bfloat16 becomes float32."""
    from . import _device

    found = _device.find(array)
    if found is None:
        raise TypeError(f"array is of type {type(array).__qualname__} and must be an array in a CUDA device's memory")
    view = found.view
    name = _NAMES[view.dtype]
    size = _ITEM_SIZES[name]
    strides = tuple(s * size for s in view.strides)
    if 0 in view.shape:
        return np.empty(view.shape, np.float32 if name == "bfloat16" else name)
    # The bytes between the first and the last element, then the elements among them.
    low = sum((n - 1) * s for n, s in zip(view.shape, strides, strict=True) if s < 0)
    high = sum((n - 1) * s for n, s in zip(view.shape, strides, strict=True) if s > 0)
    raw = np.empty(high - low + size, np.uint8)
    _module().copy_to_host(raw.ctypes.data, view.pointer + low, raw.nbytes, view.ordinal, found.stream)
    elements = np.ndarray(view.shape, np.uint16 if name == "bfloat16" else name, raw, -low, strides)
    if name == "bfloat16":
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.copy(order="K")
