"""Weight files: .npz and .safetensors, and PyTorch's .pt and .pth where it is installed.

A file is not trusted: nothing in it is run, and no array is allocated before its size is checked against what the file
holds. A file that is cut off, damaged or made to mislead is a ValueError that names it.

Sources: the .npy format of NumPy Enhancement Proposal 1; https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from .._args import Array
from .module import Module, as_array

__all__ = ["load", "save"]

T = TypeVar("T")

# What deflate makes of a long run of one byte; a file that claims more does not tell the truth.
_MAX_RATIO = 1032
_MAX_HEADER = 10_000
_SUFFIXES = (".npz", ".safetensors", ".pt", ".pth")


def _suffix(path: str | os.PathLike[str], known: tuple[str, ...]) -> tuple[Path, str]:
    file = Path(path)
    if file.suffix not in known:
        raise ValueError(f"path (={os.fspath(path)!r}) must end in {', '.join(known)}")
    return file, file.suffix


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("files of the format safetensors need the package: pip install fastconv[nn]") from None
    return safetensors


def save(source: Module | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the arrays of a module, or of a mapping of names to arrays, to a .npz or .safetensors file.

    The file is written beside its place and moved there at the end: a reader sees the old one or the new one.

    Raises:
        ValueError: path has another suffix.
        TypeError: source is neither, a name is no string or a value no array of numbers.
        ImportError: the package safetensors is not installed and the suffix asks for it.
    """
    file, suffix = _suffix(path, _SUFFIXES[:2])
    entries = source.state_dict(copy=False) if isinstance(source, Module) else source
    if not isinstance(entries, Mapping):
        raise TypeError(f"source (of type {type(source).__name__}) must be a Module or a mapping of names to arrays")
    state = {}
    for name, value in entries.items():
        if not isinstance(name, str):
            raise TypeError(f"source (with the name {name!r}) must have strings as names")
        state[name] = np.asarray(as_array(value, f"source[{name!r}]"), order="C")
    write: Callable[[Path], None]
    if suffix == ".safetensors":
        package = _safetensors()

        def write(target: Path) -> None:
            package.numpy.save_file(state, target)
    else:

        def write(target: Path) -> None:
            _write_npz(state, target)

    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        write(beside)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _write_npz(state: Mapping[str, Array], path: Path) -> None:
    # Not numpy.savez: its arguments' names are taken from the weights', and it writes the time of day.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in state.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def load(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> dict[str, Array]:
    """Read a weights file: names to arrays, for `Module.load_state_dict`.

    Args:
        path: a .npz (as `save` and `numpy.savez` write them), .safetensors, .pt or .pth file. The latter two are read
            by PyTorch, and hold a state dict.
        allow_pickle: let PyTorch run what a .pt file's pickle asks for; without it only plain weights are read.
            Say so of files only whose maker you trust as you trust a program's.

    Raises:
        OSError: the file cannot be opened.
        ValueError: path has another suffix; the file is cut off, damaged, or holds what is no array of numbers.
        ImportError: safetensors or PyTorch is needed and not installed.
    """
    file, suffix = _suffix(path, _SUFFIXES)
    if suffix == ".npz":
        with file.open("rb") as stream:
            return _guarded(file, lambda: _read_npz(stream))
    if suffix == ".safetensors":
        package = _safetensors()
        file.open("rb").close()
        return _guarded(file, lambda: dict(package.numpy.load_file(file)))
    try:
        import torch
    except ImportError:
        raise ImportError(f"{file}: files of the format {suffix} are read by PyTorch, which is not installed") from None
    file.open("rb").close()
    state = _guarded(
        file,
        lambda: torch.load(file, map_location="cpu", weights_only=not allow_pickle),
        "; allow_pickle=True trusts it",
    )
    if not isinstance(state, Mapping):
        raise ValueError(f"{file}: must hold a state dict, not {type(state).__name__}")
    return _guarded(file, lambda: {str(name): as_array(value, repr(name)) for name, value in state.items()})


def _guarded(file: Path, read: Callable[[], T], hint: str = "") -> T:
    """Run a reader of a file, whose faults become a ValueError that names it."""
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # readers of three packages raise what they like on bytes that make no sense
        text = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(f"{file}: {text or type(error).__name__}{hint}") from None


def _read_npz(stream: IO[bytes]) -> dict[str, Array]:
    length = os.fstat(stream.fileno()).st_size
    state: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            # Entries that overlap could make much of little.
            if sum(entry.compress_size for entry in entries) > length:
                raise ValueError("its entries are longer than the file")
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename or name in state:
                    raise ValueError(f"the entry {entry.filename!r} must be the only .npy file of its name")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"the entry {entry.filename!r} must be stored or deflated")
                if entry.file_size > entry.compress_size * (_MAX_RATIO if entry.compress_type else 1):
                    raise ValueError(f"the entry {entry.filename!r} claims {entry.file_size} bytes")
                with archive.open(entry) as data:
                    state[name] = _read_npy(data, entry.filename, entry.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise ValueError(f"it is cut off or damaged: {error}") from None
    return state


def _read_npy(data: IO[bytes], name: str, size: int) -> Array:
    version = np.lib.format.read_magic(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"the entry {name!r} must have version 1.0 or 2.0 of the format, not {version}")
    shape, fortran, dtype = readers[version](data, max_header_size=_MAX_HEADER)
    if dtype.kind not in "fiub":
        raise ValueError(f"the entry {name!r} (dtype {dtype}) must be an array of numbers; objects are not read")
    wanted, there = math.prod(shape) * dtype.itemsize, size - data.tell()
    if min(shape, default=0) < 0 or wanted != there:
        raise ValueError(f"the entry {name!r} (shape {shape}, {dtype}) must have {wanted} bytes, not {there}")
    array = np.empty(math.prod(shape), dtype)
    target = array.view(np.uint8).data if wanted else memoryview(bytearray())
    done = 0
    while done < wanted:
        part = data.read(min(wanted - done, 1 << 20))
        if not part:
            raise ValueError(f"the entry {name!r} ends after {done} of {wanted} bytes")
        target[done : done + len(part)] = part
        done += len(part)
    array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="))).reshape(shape)
