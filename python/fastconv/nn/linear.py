"""The dense layer."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .. import functional, runtime
from .._args import Array
from ..plan import plan
from . import init
from .conv import Planned, count
from .init import Rng
from .module import Parameter, float_dtype, gradients, is_recording, stale

__all__ = ["Linear"]


class Linear(Planned):
    """The dense layer: `linear`, x (..., C) to (..., K).

    Args:
        in_features: C.
        out_features: K.
        bias: whether there is one.
        dtype: float32 or float64.
        rng: where the initial values come from: a seed, a numpy.random.Generator, or None for `nn.manual_seed`'s.

    Attributes:
        weight: (K, C).
        bias: (K,), or None.

    Raises:
        ValueError, TypeError: an argument breaks a rule, which the message names.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = count("in_features", in_features), count("out_features", out_features)
        source, wanted = init.generator(rng), float_dtype(dtype)
        bound = 1.0 / math.sqrt(self.in_features)
        self.weight = Parameter(init.uniform(source, bound, (self.out_features, self.in_features), wanted))
        self.bias: Parameter | None
        self.register_parameter(
            "bias", Parameter(init.uniform(source, bound, (self.out_features,), wanted)) if bias else None
        )

    def forward(self, x: Array) -> Array:
        """Multiply x (..., C).

        Raises:
            ValueError, TypeError: as `fastconv.functional.linear`.
        """
        weight, bias = self.weight, self.bias
        b = None if bias is None else bias.data
        if is_recording() or self.training or not isinstance(x, np.ndarray) or not x.ndim or not x.size:
            y = functional.linear(x, weight.data, b)
            self.save_for_backward((x, weight.version))
            return y
        # Rows are the pixels of the plan's image: their number belongs to its shape.
        key = (x.shape, x.strides, x.dtype, runtime.get_isa())
        versions = (weight.version, -1 if bias is None else bias.version)
        return self._plan(versions, key, lambda: plan("linear", x, weight.data, b))(x)

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        x, version = self.pop_saved()
        if input_grad:
            stale(self, (version,), (self.weight,))
        return gradients(functional.linear_backward, dy, x, self.weight, self.bias, input_grad)

    def extra_repr(self) -> str:
        """As in PyTorch."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
