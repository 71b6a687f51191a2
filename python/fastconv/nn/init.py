"""Initial values: the generator that they are drawn from, and the usual distributions.

Sources: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010); He et
al., "Delving deep into rectifiers", arXiv:1502.01852. Conventions and defaults are PyTorch's; the numbers drawn are
NumPy's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._args import Array, integer
from .module import Parameter

__all__ = [
    "constant_",
    "default_generator",
    "kaiming_normal_",
    "kaiming_uniform_",
    "manual_seed",
    "normal_",
    "undrawn",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
]

Rng = int | np.random.Generator | None

_default = np.random.Generator(np.random.Philox(0))


def manual_seed(seed: int) -> None:
    """Begin anew the generator that layers without `rng` draw from. It begins with seed 0 in every process."""
    global _default
    _default = np.random.Generator(np.random.Philox(_seed(seed)))


def default_generator() -> np.random.Generator:
    """The generator that layers without `rng` draw from."""
    return _default


def _seed(seed: int) -> int:
    value = integer("seed", seed)
    if value < 0:
        raise ValueError(f"seed (={seed}) must not be negative")
    return value


def generator(rng: Rng) -> np.random.Generator:
    """The generator itself, one of that seed, or for None the default one."""
    if rng is None:
        return _default
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, (bool, np.bool_)) or not isinstance(rng, (int, np.integer)):
        raise TypeError(f"rng (={rng!r}) must be None, an integer or a numpy.random.Generator")
    return np.random.Generator(np.random.Philox(_seed(int(rng))))


class _Drawing(threading.local):
    skipped = False


_drawing = _Drawing()


@contextmanager
def undrawn() -> Iterator[None]:
    """Layers made inside the block (by this thread) begin with zeros: for weights that come from elsewhere afterwards.

    A hundred million numbers take a second to draw.
    """
    before, _drawing.skipped = _drawing.skipped, True
    try:
        yield
    finally:
        _drawing.skipped = before


def skips_drawing() -> bool:
    """Whether the block of an `undrawn` runs."""
    return _drawing.skipped


def uniform(rng: np.random.Generator, bound: float, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Numbers between -bound and bound. The same generator gives float32 and float64 the same ones, rounded."""
    if _drawing.skipped:
        return np.broadcast_to(dtype.type(0), tuple(shape))
    return rng.uniform(-bound, bound, tuple(shape)).astype(dtype)


def fan(shape: Sequence[int], mode: str = "fan_in") -> int:
    """The inputs (shape[1:]) or outputs (shape[0] times the kernel) of an element, as PyTorch counts them."""
    if len(shape) < 2:
        raise ValueError(f"parameter (shape {tuple(shape)}) must have at least 2 dimensions")
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode (={mode!r}) must be 'fan_in' or 'fan_out'")
    return math.prod(shape[2:]) * (shape[1] if mode == "fan_in" else shape[0])


def _gain(nonlinearity: str, a: float) -> float:
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5.0 / 3.0,
        "relu": math.sqrt(2.0),
        "leaky_relu": math.sqrt(2.0 / (1.0 + a * a)),
    }
    if nonlinearity not in gains:
        raise ValueError(f"nonlinearity (={nonlinearity!r}) must be one of {', '.join(map(repr, gains))}")
    return gains[nonlinearity]


def constant_(parameter: Parameter, value: float) -> None:
    """Fill a parameter."""
    parameter.assign(np.full(parameter.shape, value, parameter.dtype))


def uniform_(parameter: Parameter, low: float = 0.0, high: float = 1.0, *, rng: Rng = None) -> None:
    """Draw a parameter from [low, high)."""
    parameter.assign(generator(rng).uniform(low, high, parameter.shape).astype(parameter.dtype))


def normal_(parameter: Parameter, mean: float = 0.0, std: float = 1.0, *, rng: Rng = None) -> None:
    """Draw a parameter from a normal distribution."""
    parameter.assign(generator(rng).normal(mean, std, parameter.shape).astype(parameter.dtype))


def kaiming_uniform_(
    parameter: Parameter, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", *, rng: Rng = None
) -> None:
    """Draw a weight from +-gain * sqrt(3 / fan)."""
    bound = _gain(nonlinearity, a) * math.sqrt(3.0 / max(fan(parameter.shape, mode), 1))
    uniform_(parameter, -bound, bound, rng=rng)


def kaiming_normal_(
    parameter: Parameter, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", *, rng: Rng = None
) -> None:
    """Draw a weight from a normal distribution of deviation gain / sqrt(fan)."""
    normal_(parameter, 0.0, _gain(nonlinearity, a) / math.sqrt(max(fan(parameter.shape, mode), 1)), rng=rng)


def _xavier(parameter: Parameter, gain: float) -> float:
    both = fan(parameter.shape, "fan_in") + fan(parameter.shape, "fan_out")
    return gain * math.sqrt(2.0 / max(both, 1))


def xavier_uniform_(parameter: Parameter, gain: float = 1.0, *, rng: Rng = None) -> None:
    """Draw a weight from +-gain * sqrt(6 / (fan_in + fan_out))."""
    bound = math.sqrt(3.0) * _xavier(parameter, gain)
    uniform_(parameter, -bound, bound, rng=rng)


def xavier_normal_(parameter: Parameter, gain: float = 1.0, *, rng: Rng = None) -> None:
    """Draw a weight from a normal distribution of deviation gain * sqrt(2 / (fan_in + fan_out))."""
    normal_(parameter, 0.0, _xavier(parameter, gain), rng=rng)
