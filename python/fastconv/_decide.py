"""Calls of `fastconv.functional` that are decided and not computed, for `explain`.

The function runs as it stands, with its checks and messages, up to the point where it would enter `_core`: there the
binding of the same name and arguments tells the decision, and the function is left.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._args import Array, Shape

__all__ = ["Decided", "decide", "stand_in"]


class Decided(NamedTuple):
    """How a call would be computed."""

    name: str
    """The function of `_core`."""
    arguments: tuple[Any, ...]
    """Its arguments."""
    decision: dict[str, Any]
    copied: bool
    """Whether the operands are copied first, since their memory order is not served."""


class _Left(Exception):
    def __init__(self, decided: Decided) -> None:
        super().__init__()
        self.decided = decided


def _unpool(path: str, shape: Callable[[tuple[Any, ...]], Shape]) -> Callable[..., dict[str, Any]]:
    """What takes one path always."""

    def decided(*arguments: Any) -> dict[str, Any]:
        return {
            "algorithm": path,
            "isa": _core.current_isa(),
            "before": "",
            "again": "",
            "blocks": None,
            "workspace_per_thread": 0,
            "streaming": False,
            "passed_over": [],
            "shape": tuple(shape(arguments)),
        }

    return decided


_ONE_PATH = {
    "unpool_forward": _unpool("scattered by indices", lambda a: a[3]),
    "unpool_backward": _unpool("gathered by indices", lambda a: a[2].shape),
}


class _Deciding:
    """Stands for `_core` in a module of `functional`."""

    def __init__(self) -> None:
        self._refused = False

    def __getattr__(self, name: str) -> Any:
        function = _ONE_PATH.get(name) or getattr(_core, f"{name}_decide")

        def decided(*arguments: Any) -> Any:
            try:
                decision = function(*arguments)
            except _core.Refused:
                # Either the function finds out why, or it copies what lies in an order that is not served.
                self._refused = True
                raise
            raise _Left(Decided(name, arguments, decision, self._refused))

        return decided


def _rebound(module: ModuleType) -> dict[str, Any]:
    """The names of a module whose own functions enter a `_Deciding` in place of `_core`."""
    names = dict(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            copy = FunctionType(value.__code__, names, name, value.__defaults__, value.__closure__)
            copy.__kwdefaults__ = value.__kwdefaults__
            names[name] = copy
    names["_calls"] = _Deciding()
    return names


def decide(module: ModuleType, op: str, arguments: Mapping[str, Any]) -> Decided:
    """How module.<op>(**arguments) would be computed; what it raises for wrong arguments it raises here, too."""
    try:
        _rebound(module)[op](**arguments)
    except _Left as left:
        return left.decided
    raise AssertionError(f"{op} does not enter _core")


def stand_in(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Zeros in C order, of any size: large ones can only be looked at, and take no memory."""
    count = math.prod(shape)
    if count * dtype.itemsize < 1 << 20:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    zeros: Array = np.frombuffer(memory, dtype).reshape(shape)
    return zeros
