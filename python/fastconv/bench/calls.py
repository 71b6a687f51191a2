"""Calls by name, as `operations` describes them. A worker loads this file by its path: it imports NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = Any


def arguments_of(arguments: Sequence[Any], arrays: Mapping[str, Array]) -> list[Any]:
    """The arguments, arrays in the place of "@name" and tuples in that of lists."""

    def value(a: Any) -> Any:
        if isinstance(a, str) and a.startswith("@"):
            return arrays[a[1:]]
        return tuple(a) if isinstance(a, list) else a

    return [value(a) for a in arguments]


def results_of(value: Any) -> list[Array]:
    """The arrays of a result: one, or those of a tuple that are not None."""
    values = value if isinstance(value, tuple) else (value,)
    return [np.asarray(v) for v in values if v is not None]
