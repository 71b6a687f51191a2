"""Settings of the process: threads, instruction set, memory and floating-point mode.

Threads, instruction set and denormals may each be set for good or for the length of a `with` block.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from . import _args, _core, cuda

__all__ = [
    "available_isas",
    "cache_info",
    "clear_cache",
    "flush_denormals",
    "get_isa",
    "get_num_threads",
    "isa",
    "num_threads",
    "set_cache_limit",
    "set_isa",
    "set_num_threads",
    "show_config",
    "workspace_info",
]

# Far beyond any machine, and small enough for the C side.
_MOST_THREADS = 1 << 16
_MB = 1 << 20


def _thread_count(n: int) -> int:
    count = _args.integer("n", n)
    if not 1 <= count <= _MOST_THREADS:
        raise ValueError(f"n (={n}) must be at least 1 and at most {_MOST_THREADS}")
    return count


# ------------------------------------------------------------------------------------------------------ threads


def get_num_threads() -> int:
    """How many threads a call made now from this thread may use, itself included."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, in the whole process.

    The default comes from FASTCONV_NUM_THREADS, OMP_NUM_THREADS, and the CPU affinity and cgroup limits, in that order.
    """
    _core.set_num_threads(_thread_count(n))


class num_threads:
    """A scope in which calls from this thread use at most n threads: `with fastconv.num_threads(1): ...`."""

    def __init__(self, n: int) -> None:
        self._limit = _thread_count(n)
        self._outer: list[int] = []

    def __enter__(self) -> Self:
        self._outer.append(_core.set_thread_limit(self._limit))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _core.set_thread_limit(self._outer.pop())


# -------------------------------------------------------------------------------------------------- instruction set


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this build and this CPU have, out of "portable", "avx2" and "avx512", slowest first."""
    return tuple(_core.available_isas())


def get_isa() -> str:
    """The instruction set that calls use: the best available one, unless FASTCONV_ISA or set_isa named another."""
    return _core.current_isa()


def _isa_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"isa (={name!r}) must be a string, not {type(name).__name__}")
    if name not in _core.available_isas():
        raise ValueError(
            f"isa (={name!r}) must be available in this build and on this CPU: {', '.join(_core.available_isas())}"
        )
    return name


def set_isa(name: str) -> None:
    """Set the instruction set of the calls that follow, in the whole process. Plans keep theirs."""
    _core.set_isa(_isa_name(name))


class isa:
    """A scope in which all threads' calls use one instruction set: `with fastconv.isa("avx2"): ...`."""

    def __init__(self, name: str) -> None:
        self._name = _isa_name(name)
        self._outer: list[str] = []

    def __enter__(self) -> Self:
        self._outer.append(_core.current_isa())
        _core.set_isa(self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _core.set_isa(self._outer.pop())


# --------------------------------------------------------------------------------------------------- floating point


class flush_denormals:
    """Flush denormal numbers to zero inside calls (True), or honour them as NumPy does (False, the default).

    `fastconv.flush_denormals(True)` is a setting of the whole process that stands from then on;
    `with fastconv.flush_denormals(True): ...` puts the previous one back at the end. The caller's own mode is left as
    it is in either case.
    """

    def __init__(self, on: bool) -> None:
        if not isinstance(on, bool):
            raise TypeError(f"on (={on!r}) must be True or False, not {type(on).__name__}")
        self._outer = _core.set_flush_denormals(on)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _core.set_flush_denormals(self._outer)


# ----------------------------------------------------------------------------------------------------------- memory


def cache_info() -> dict[str, int]:
    """The cache of output blocks: cached_bytes, live_bytes (in arrays that are in use), hits, misses, cap_bytes."""
    return _core.output_cache_stats()


def clear_cache() -> None:
    """Give the cached output blocks back to the system. Arrays that are in use are not touched."""
    _core.output_cache_clear()


def set_cache_limit(mb: float) -> None:
    """Keep at most this many MB (2**20 bytes) of freed output blocks; 0 keeps none.

    The default comes from FASTCONV_CACHE_MB.
    """
    if isinstance(mb, (bool, np.bool_)) or not isinstance(mb, (int, float, np.integer, np.floating)):
        raise TypeError(f"mb (={mb!r}) must be a number, not {type(mb).__name__}")
    if not 0 <= mb <= 1 << 40:
        raise ValueError(f"mb (={mb}) must be at least 0 and at most 2**40")
    _core.output_cache_set_cap(int(mb * _MB))


def workspace_info(*, reset: bool = False) -> dict[str, int]:
    """Scratch memory: held_bytes by all threads, and peak_call_bytes_per_thread since the last reset."""
    return _core.workspace_stats(reset)


# ---------------------------------------------------------------------------------------------------- configuration


def _configuration() -> dict[str, Any]:
    build = _core.build_info()
    sizes = ", ".join(f"{name} {size // 1024} KB" for name, size in _core.cache_sizes().items())
    threads = f"{_core.num_threads()} of {_core.available_cores()} cores"
    memory = _core.output_cache_stats()
    return {
        "fastconv": build["version"],
        "compiler": f"{build['compiler']}, {build['flags']}",
        "python": f"{sys.version.split()[0]} on {build['platform']}, NumPy {np.__version__}",
        "cpu": _core.cpu_name(),
        "caches": sizes,
        "isa": f"{_core.current_isa()} (available: {', '.join(_core.available_isas())})",
        "threads": threads,
        "denormals": "flushed" if _core.flush_denormals() else "honoured",
        "output cache": f"at most {memory['cap_bytes'] / _MB:g} MB, now {memory['cached_bytes'] / _MB:.1f} MB",
        "cuda": cuda._describe(),
    }


def show_config(file: TextIO | None = None) -> None:
    """Print the build, the CPU, the instruction set, the threads and the rest of the settings, to stdout or a file."""
    for name, value in _configuration().items():
        print(f"{name:<13} {value}", file=file)
