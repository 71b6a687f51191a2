"""Layers that move elements: Flatten and Upsample. They are NumPy: what they cost is copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .. import _args
from .._args import Array
from .module import Module, empty_in_order, memory_order

__all__ = ["Flatten", "Upsample"]


class Flatten(Module):
    """Makes one axis of the axes from start_dim to end_dim, by default of all but N: a view where the strides allow it.

    The gradient has x's order in memory.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = _args.integer("start_dim", start_dim), _args.integer("end_dim", end_dim)

    def forward(self, x: Array) -> Array:
        """Reshape x.

        Raises:
            ValueError: x has no such axes, or start_dim comes after end_dim.
        """
        begin, end = (axis + x.ndim if axis < 0 else axis for axis in (self.start_dim, self.end_dim))
        if not 0 <= begin <= end < x.ndim:
            raise ValueError(
                f"start_dim (={self.start_dim}) and end_dim (={self.end_dim}) must be axes of x (shape {x.shape}), "
                "the first not after the last"
            )
        self.save_for_backward((x.shape, None if x.flags.c_contiguous else memory_order(x)))
        return x.reshape(*x.shape[:begin], math.prod(x.shape[begin : end + 1]), *x.shape[end + 1 :])

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        shape, order = self.pop_saved()
        if not input_grad:
            return None
        dx = dy.reshape(shape)
        if order is None:
            return dx
        out = empty_in_order(shape, order, dy.dtype)
        out[...] = dx
        return out

    def extra_repr(self) -> str:
        """As in PyTorch."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


# --------------------------------------------------------------------------------------------------------- upsample


@lru_cache(maxsize=256)
def _weights(size: int, out: int, scale: float, align_corners: bool) -> tuple[Array, Array, Array]:
    """For each element of an axis of the result its two neighbours in the input and the share of the second.

    scale is the step in the input for one in the result, as PyTorch computes it.
    """
    p = np.arange(out, dtype=np.float64)
    place = p * scale if align_corners else np.maximum((p + 0.5) * scale - 0.5, 0.0)
    low = np.minimum(place.astype(np.intp), size - 1)
    high = np.minimum(low + 1, size - 1)
    return low, high, place - low


@lru_cache(maxsize=256)
def _nearest(size: int, out: int, scale: float) -> Array:
    place = np.floor(np.arange(out, dtype=np.float64) * scale)
    return np.minimum(place.astype(np.intp), size - 1)


def _along(share: Array, axis: int, ndim: int, dtype: np.dtype[Any]) -> Array:
    return share.astype(dtype).reshape([-1 if a == axis else 1 for a in range(ndim)])


def _gather(x: Array, axis: int, index: Array, order: Sequence[int]) -> Array:
    """Elements along an axis, in that order of axes in memory."""
    shape = list(x.shape)
    shape[axis] = len(index)
    out = empty_in_order(shape, order, x.dtype)
    out[...] = x[(slice(None),) * axis + (index,)]
    return out


def _scatter(dy: Array, axis: int, index: Array, size: int, order: Sequence[int]) -> Array:
    """The adjoint of `_gather`: sums over runs of an index that does not fall."""
    shape = list(dy.shape)
    shape[axis] = size
    dx = empty_in_order(shape, order, dy.dtype)
    dx[...] = 0
    present, starts = np.unique(index, return_index=True)
    sums = np.add.reduceat(dy, starts, axis=axis)
    dx[(slice(None),) * axis + (present,)] = sums
    return dx


class Upsample(Module):
    """Resizes the spatial axes of x (N, C, ...) to `size`, or by `scale_factor`; computed by NumPy, an axis at a time.

    Args:
        size: an int or one a spatial axis, of the result.
        scale_factor: a number or one a spatial axis; the result has floor(size * scale_factor) elements.
        mode: "nearest" (of one to three axes) or "bilinear" (of two).
        align_corners: in "bilinear", whether the corner elements' centres coincide, rather than the images' corners.

    Raises:
        ValueError: not exactly one of size and scale_factor is given, or a value is not positive or not known.

    Source: PyTorch's `torch.nn.Upsample`, whose results these are, coordinates and all.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if (size is None) == (scale_factor is None):
            raise ValueError(f"exactly one of size (={size}) and scale_factor (={scale_factor}) must be given")
        if mode not in ("nearest", "bilinear"):
            raise ValueError(f"mode (={mode!r}) must be 'nearest' or 'bilinear'")
        if align_corners and mode == "nearest":
            raise ValueError("align_corners (=True) must be False where mode is 'nearest'")
        for name, value in (("size", size), ("scale_factor", scale_factor)):
            entries = () if value is None else value if isinstance(value, Sequence) else (value,)
            for entry in entries:
                number = _args.integer(name, entry, value) if name == "size" else entry
                if not 0 < number < math.inf:
                    raise ValueError(f"{name} (={value}) must be positive")
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners

    def _target(self, x: Array) -> list[tuple[int, int, int, float]]:
        """Of each spatial axis: its number, its size, the result's, and the step in x for one in the result."""
        rank = x.ndim - 2
        allowed = (2,) if self.mode == "bilinear" else (1, 2, 3)
        if rank not in allowed:
            raise ValueError(f"x (shape {x.shape}) must have {' or '.join(str(r + 2) for r in allowed)} dimensions")
        given: Any = self.scale_factor if self.size is None else self.size
        name = "scale_factor" if self.size is None else "size"
        each = tuple(given) if isinstance(given, Sequence) else (given,) * rank
        if len(each) != rank:
            raise ValueError(f"{name} (={given}) must be one number or one for each of the {rank} spatial axes")
        axes = []
        for axis, (size, entry) in enumerate(zip(x.shape[2:], each, strict=True), 2):
            out = int(entry) if self.size is not None else math.floor(size * float(entry))
            if not size or not out:
                raise ValueError(f"{name} (={given}) must leave elements of x (shape {x.shape})")
            step = size / out if self.size is not None else 1.0 / float(entry)
            if self.align_corners:
                step = (size - 1) / (out - 1) if out > 1 else 0.0
            axes.append((axis, size, out, step))
        return axes

    def forward(self, x: Array) -> Array:
        """Resize x (N, C, ...).

        Raises:
            TypeError: x is no numpy.ndarray of float32 or float64.
            ValueError: the number of dimensions is not the mode's, or an axis would be empty.
        """
        if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
            raise TypeError(f"x (of type {type(x).__name__}) must be a numpy.ndarray of float32 or float64")
        axes, order = self._target(x), memory_order(x)
        self.save_for_backward((axes, order))
        for axis, size, out, step in axes:
            if self.mode == "nearest":
                x = _gather(x, axis, _nearest(size, out, step), order)
                continue
            low, high, share = _weights(size, out, step, self.align_corners)
            second = _along(share, axis, x.ndim, x.dtype)
            y = _gather(x, axis, low, order)
            y *= 1 - second
            z = _gather(x, axis, high, order)
            z *= second
            y += z
            x = y
        return x

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        axes, order = self.pop_saved()
        if not input_grad:
            return None
        for axis, size, out, step in reversed(axes):
            if self.mode == "nearest":
                dy = _scatter(dy, axis, _nearest(size, out, step), size, order)
                continue
            low, high, share = _weights(size, out, step, self.align_corners)
            second = _along(share, axis, dy.ndim, dy.dtype)
            dx = _scatter(dy * (1 - second), axis, low, size, order)
            dx += _scatter(dy * second, axis, high, size, order)
            dy = dx
        return dy

    def extra_repr(self) -> str:
        """As in PyTorch."""
        size = f"scale_factor={self.scale_factor}" if self.size is None else f"size={self.size}"
        corners = ", align_corners=True" if self.align_corners else ""
        return f"{size}, mode={self.mode!r}{corners}"
