"""Functions of single elements and softmax: see `fastconv.functional.elementwise` for the formulas.

A backward pass needs the input or the result; the result is kept where it will do, as a relu's: the next layer keeps it
anyway.
"""

from __future__ import annotations

from typing import Any

from .. import functional
from .._args import Array
from .module import Module

__all__ = [
    "GELU",
    "Clip",
    "Hardsigmoid",
    "Hardswish",
    "Identity",
    "LeakyReLU",
    "LogSoftmax",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
]


class Identity(Module):
    """Gives x itself, and dy itself."""

    def forward(self, x: Array) -> Array:
        """Give x."""
        return x

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """Give dy."""
        return dy if input_grad else None


class _Elementwise(Module):
    _name: str
    _keeps_result = False

    def _options(self) -> dict[str, Any]:
        return {}

    def forward(self, x: Array) -> Array:
        """Apply the function to each element of x, of any shape.

        Raises:
            ValueError, TypeError: as the function of `fastconv.functional`.
        """
        y: Array = getattr(functional, self._name)(x, **self._options())
        self.save_for_backward(y if self._keeps_result else x)
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        saved = self.pop_saved()
        if not input_grad:
            return None
        dx: Array = getattr(functional, f"{self._name}_backward")(dy, saved, **self._options())
        return dx

    def extra_repr(self) -> str:
        """The options."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())


class ReLU(_Elementwise):
    """`relu`."""

    _name, _keeps_result = "relu", True


class ReLU6(_Elementwise):
    """`relu6`."""

    _name, _keeps_result = "relu6", True


class LeakyReLU(_Elementwise):
    """`leaky_relu` with its slope below 0."""

    _name = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def _options(self) -> dict[str, Any]:
        return {"negative_slope": self.negative_slope}


class SiLU(_Elementwise):
    """`silu`."""

    _name = "silu"


class Hardswish(_Elementwise):
    """`hardswish`."""

    _name = "hardswish"


class Sigmoid(_Elementwise):
    """`sigmoid`."""

    _name, _keeps_result = "sigmoid", True


class Hardsigmoid(_Elementwise):
    """`hardsigmoid`."""

    _name = "hardsigmoid"


class Tanh(_Elementwise):
    """`tanh`."""

    _name, _keeps_result = "tanh", True


class GELU(_Elementwise):
    """`gelu`, by erf, or with approximate="tanh" by its usual approximation."""

    _name = "gelu"

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate (={approximate!r}) must be 'none' or 'tanh'")
        self.approximate = approximate

    def _options(self) -> dict[str, Any]:
        return {"approximate": self.approximate}


class Clip(_Elementwise):
    """`clip` to [min, max]; None is no bound."""

    _name = "clip"

    def __init__(self, min: float | None = None, max: float | None = None) -> None:
        super().__init__()
        self.min, self.max = min, max

    def _options(self) -> dict[str, Any]:
        return {"min": self.min, "max": self.max}


class _Softmax(_Elementwise):
    _keeps_result = True

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def _options(self) -> dict[str, Any]:
        return {"axis": self.dim}

    def extra_repr(self) -> str:
        """The axis, by PyTorch's name."""
        return f"dim={self.dim}"


class Softmax(_Softmax):
    """`softmax` along the axis dim."""

    _name = "softmax"


class LogSoftmax(_Softmax):
    """`log_softmax` along the axis dim."""

    _name = "log_softmax"
