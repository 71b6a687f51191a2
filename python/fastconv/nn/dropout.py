"""Dropout: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (JMLR 15, 2014)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._args import Array
from . import init
from .module import Module

__all__ = ["Dropout", "Dropout2d"]


class Dropout(Module):
    """In training mode each element is 0 with probability p, and else divided by 1 - p.

    The layer draws from a generator of its own (Philox), in the order of x's axes whatever its strides: a seed decides
    all bits. `Module.random_state` has its state for a checkpoint.

    Args:
        p: from 0 to 1.
        seed: of the generator; None draws one from that of `nn.manual_seed`.

    Raises:
        ValueError: p is not from 0 to 1, or seed is negative.
    """

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, (int, float, np.floating)):
            raise TypeError(f"p (={p!r}) must be a number")
        if not 0 <= p <= 1:
            raise ValueError(f"p (={p}) must be from 0 to 1")
        self.p = float(p)
        self._rng = init.generator(int(init.default_generator().integers(1 << 63)) if seed is None else seed)

    def _mask_shape(self, x: Array) -> tuple[int, ...]:
        return x.shape

    def forward(self, x: Array) -> Array:
        """Drop elements of x, of any shape; in eval mode x itself comes back.

        Raises:
            TypeError: x is no numpy.ndarray of float32 or float64.
        """
        if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
            raise TypeError(f"x (of type {type(x).__name__}) must be a numpy.ndarray of float32 or float64")
        if not self.training or self.p == 0:
            self.save_for_backward(None)
            return x
        # Bytes are kept, not numbers of x's dtype.
        mask = self._rng.random(self._mask_shape(x), dtype=np.float32) >= self.p
        self.save_for_backward(mask)
        return self._masked(x, mask)

    def _masked(self, x: Array, mask: Array) -> Array:
        y = np.multiply(x, mask, out=np.empty_like(x))
        if self.p < 1:
            y *= y.dtype.type(1 / (1 - self.p))
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        mask = self.pop_saved()
        if not input_grad:
            return None
        return dy if mask is None else self._masked(dy, mask)

    def _random_state(self) -> dict[str, Any]:
        return copy.deepcopy(dict(self._rng.bit_generator.state))

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = copy.deepcopy(dict(state))

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class Dropout2d(Dropout):
    """`Dropout` of whole channels of x (N, C, ...)."""

    def _mask_shape(self, x: Array) -> tuple[int, ...]:
        if x.ndim < 3:
            raise ValueError(f"x (shape {x.shape}) must have at least 3 dimensions: (N, C, ...)")
        return (*x.shape[:2], *(1 for _ in x.shape[2:]))
