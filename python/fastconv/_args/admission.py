"""`max_error`: which algorithms a call may take, by the proven bounds of their errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core
from . import _ALGORITHMS, _algorithm_name

# What the ways of `_core.conv_products` are by the names that calls take.
ALGORITHM_OF_WAY = {"rows": "direct", "columns": "direct", "fft": "fft", "winograd2": "winograd2"}
ALGORITHM_OF_WAY["winograd4"] = "winograd4"


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


def costs(products: Sequence[Any]) -> dict[str, float]:
    """The model's cost of each algorithm that can compute all products of a call, the cheapest first."""
    total: dict[str, float] = {}
    if not products:
        return total
    for algorithm in dict.fromkeys(ALGORITHM_OF_WAY.values()):
        cost = 0.0
        for _, _, _, candidates in products:
            possible = [c for way, c, obstacle in candidates if ALGORITHM_OF_WAY[way] == algorithm and obstacle is None]
            cost += min(possible, default=math.inf)
        if cost < math.inf:
            total[algorithm] = cost
    return dict(sorted(total.items(), key=lambda item: item[1]))


def _limit(max_error: object) -> float:
    if isinstance(max_error, (bool, np.bool_)) or not isinstance(max_error, (int, float, np.integer, np.floating)):
        raise TypeError(f"max_error (={max_error!r}) must be None or a number, not {type(max_error).__name__}")
    if not max_error > 0:
        raise ValueError(f"max_error (={max_error}) must be positive: it is in units of eps")
    return float(max_error)


def admitted(
    spec: _core.ConvSpec, which: int, x: Any, weight: Any, y: Any, vectors: Sequence[Any], max_error: float | None
) -> _core.ConvSpec:
    """The options, if need be with another algorithm, so that the bound is kept; ValueError if none keeps it.

    The operands are those of `_core.conv_decide`. A call that is going to be refused keeps its options: what it is
    refused for is said there.
    """
    if max_error is None:
        return spec
    limit = _limit(max_error)
    operands = (which, x, weight, y, *vectors)
    bounds: dict[str, float] = {}

    def keeps(candidate: _core.ConvSpec) -> bool:
        decision = _core.conv_decide(candidate, *operands)
        name = "direct" if decision["algorithm"] == "depthwise" else decision["algorithm"]
        bounds[name] = decision["error_bound"]
        return bool(decision["error_bound"] <= limit)

    try:
        if keeps(spec):
            return spec
        others = costs(_core.conv_products(spec, *operands)) if _algorithm_name(spec) == "auto" else {}
        for name in others:
            if name not in bounds and keeps(other := with_algorithm(spec, name)):
                return other
    except _core.Refused as refusal:
        if refusal.args[0] == "bad_device":
            raise ValueError(
                f"max_error (={max_error}) must be None on a CUDA device, whose bounds are not stated"
            ) from None
        return spec
    except (TypeError, ValueError):
        return spec
    known = " and ".join(f"{bound:g} ({name!r})" for name, bound in sorted(bounds.items(), key=lambda item: item[1]))
    raise ValueError(
        f"max_error (={max_error}) must be at least {min(bounds.values()):g}, the least bound of this call, in "
        f"units of eps: {known}"
    )
