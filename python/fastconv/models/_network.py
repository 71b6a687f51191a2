"""What the architectures share: networks that name the layer of an error, their initial values, and common blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .. import nn
from .._args import Array
from ..nn.init import Rng
from ..nn.module import float_dtype

N = TypeVar("N", bound="Network")


class Network(nn.Module):
    """A whole network.

    A ValueError of a layer, such as that of an image that is too small for it, names the layer. Names of weights are
    torchvision's, where torchvision has the network.
    """

    # What names in files are, where they are not those of the modules: patterns and what takes their place.
    _renamed: tuple[tuple[str, str], ...] = ()
    # Names in files of what the network does without.
    _left_out: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`; see `Module.__call__`."""
        try:
            return super().__call__(*args, **kwargs)
        except ValueError as error:
            name = self._layer_of(error)
            if name is None:
                raise
            raise ValueError(f"{name}: {error}") from error

    def _layer_of(self, error: ValueError) -> str | None:
        """The name of the innermost layer that the error came through."""
        names = {id(module): name for name, module in self.named_modules() if name}
        found, trace = None, error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            if id(owner) in names:
                found = f"{names[id(owner)]} ({type(owner).__name__})"
            trace = trace.tb_next
        return found

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take parameters and buffers from arrays by name: see `Module.load_state_dict`.

        Older names of the published files are understood. Files from before PyTorch 0.4.1 have no
        `num_batches_tracked`: the network keeps its own.
        """
        if isinstance(state, Mapping):
            taken = {}
            for name, value in state.items():
                if self._left_out is not None and re.match(self._left_out, str(name)):
                    continue
                for pattern, new in self._renamed:
                    name = re.sub(pattern, new, str(name))
                taken[name] = value
            if not any(str(name).endswith("num_batches_tracked") for name in taken):
                taken |= {n: b for n, b in self.named_buffers() if n.endswith("num_batches_tracked")}
            state = taken
        super().load_state_dict(state, strict)


class Row(Network, nn.Sequential):
    """A network whose modules run one after the other."""


class Shortcut(nn.Module):
    """activation(row(x) + shortcut(x)), where the row is the block itself (He et al., arXiv:1512.03385).

    `nn.Residual` says the same with names for the row and the shortcut, which published weights do not have.

    Args:
        row: the modules of the row by name.
        shortcut: those of the shortcut by name; without any it is x itself.
        activation: a module, or None.
    """

    def __init__(
        self,
        row: Mapping[str, nn.Module],
        shortcut: Mapping[str, nn.Module] | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._row, self._shortcut = list(row), list(shortcut or {})
        for name, module in {**row, **(shortcut or {})}.items():
            self.register_module(name, module)
        self.add = nn.Add(activation)

    def forward(self, x: Array) -> Array:
        """Run the row and the shortcut on x.

        Raises:
            ValueError: the shapes of their results differ.
        """
        y, r = x, x
        for name in self._row:
            y = getattr(self, name)(y)
        for name in self._shortcut:
            r = getattr(self, name)(r)
        z: Array = self.add(y, r)
        return z

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        sum_grad = self.add.backward(dy)
        assert sum_grad is not None
        sides: list[Array] = []
        for names in (self._shortcut, self._row):
            side = sum_grad
            for name in reversed(names):
                side = getattr(self, name).backward(side, input_grad=input_grad or name != names[0])
            sides.append(side)
        return sides[0] + sides[1] if input_grad else None


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution with padding that keeps the size, batch norm, and an activation where one is given."""
    row: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*row, *(() if activation is None else (activation,)))


def scaled(channels: int, width: float) -> int:
    """A share of the channels of a paper's table, at least 1."""
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise TypeError(f"width (={width!r}) must be a number")
    if not width > 0 or not math.isfinite(width):
        raise ValueError(f"width (={width}) must be positive")
    return max(1, round(channels * width))


def made(build: Callable[[], N], dtype: npt.DTypeLike, rng: Rng, gain: float = math.sqrt(2.0)) -> N:
    """The network that build gives, with initial values by He et al., arXiv:1502.01852.

    Weights are drawn from normal distributions of deviation gain / sqrt(fan_in), those of the last layer of one of
    1 / sqrt(fan_in); biases are 0. Without a rectifier gain is 1. Inside `nn.init.undrawn` all of it is 0.
    """
    wanted, source = float_dtype(dtype), nn.init.generator(rng)
    with nn.init.undrawn():
        network = build().astype(wanted)
    if nn.init.skips_drawing():
        return network
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear))]
    for layer in layers:
        shape = layer.weight.shape
        fan = math.prod(shape[1:])
        if isinstance(layer, nn.ConvTranspose2d):
            # Each pixel of the result sums all input channels over the taps that meet it.
            fan = max(1, shape[0] * math.prod(shape[2:]) // math.prod(layer.stride))
        deviation = (1.0 if layer is layers[-1] else gain) / math.sqrt(fan)
        layer.weight.assign(_normal(source, shape, deviation, wanted))
    states = network.random_state()
    for name in states:
        states[name] = dict(nn.init.generator(int(source.integers(1 << 63))).bit_generator.state)
    network.set_random_state(states)
    return network


def _normal(source: np.random.Generator, shape: tuple[int, ...], deviation: float, dtype: np.dtype[Any]) -> Array:
    # In float32 whatever the dtype: half the time and memory for the hundred millions of VGG, and the same numbers.
    values = source.standard_normal(shape, dtype=np.float32)
    values *= np.float32(deviation)
    return values.astype(dtype, copy=False)
