"""Squeeze and excitation: Hu, Shen and Sun, arXiv:1709.01507."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import functional
from .._args import Array
from .activation import ReLU, Sigmoid
from .conv import Conv2d, count
from .init import Rng, generator
from .module import Module

__all__ = ["SqueezeExcite"]


class SqueezeExcite(Module):
    """x * scale_activation(fc2(activation(fc1(mean of x over its pixels)))), fc1 and fc2 being 1x1 convolutions.

    Args:
        input_channels: C, channels of x (N, C, H, W).
        squeeze_channels: channels between fc1 and fc2.
        activation: a module; None is `ReLU`.
        scale_activation: a module; None is `Sigmoid`.
        dtype: float32 or float64.
        rng: where the initial values come from.

    The names of modules and weights are torchvision's.
    """

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: Module | None = None,
        scale_activation: Module | None = None,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__()
        source = generator(rng)
        channels, inner = count("input_channels", input_channels), count("squeeze_channels", squeeze_channels)
        self.fc1 = Conv2d(channels, inner, 1, dtype=dtype, rng=source)
        self.fc2 = Conv2d(inner, channels, 1, dtype=dtype, rng=source)
        self.activation: Module = ReLU() if activation is None else activation
        self.scale_activation: Module = Sigmoid() if scale_activation is None else scale_activation

    def forward(self, x: Array) -> Array:
        """Scale the channels of x (N, C, H, W).

        Raises:
            ValueError, TypeError: as `fastconv.functional.conv2d`.
        """
        mean = functional.global_avg_pool2d(x)
        gate = self.scale_activation(self.fc2(self.activation(self.fc1(mean))))
        self.save_for_backward((x, gate))
        y: Array = np.multiply(x, gate, out=np.empty_like(x))
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        x, gate = self.pop_saved()
        pixels = x.shape[-1] * x.shape[-2]
        # A sum over pixels, by the kernel that is accurate in every memory order.
        d_gate = functional.global_avg_pool2d(np.multiply(dy, x, out=np.empty_like(x))) * x.dtype.type(pixels)
        d_inner = self.activation.backward(self.fc2.backward(self.scale_activation.backward(d_gate)))
        d_mean = self.fc1.backward(d_inner, input_grad=input_grad)
        if not input_grad:
            return None
        dx: Array = np.multiply(dy, gate, out=np.empty_like(x))
        dx += d_mean * x.dtype.type(1.0 / pixels)
        return dx
