"""EfficientNet: Tan and Le, "EfficientNet: rethinking model scaling", arXiv:1905.11946, table 1 (B0)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from .._args import Array
from ..nn.init import Rng
from ._network import Row, Shortcut, conv_norm, made

__all__ = ["efficientnet_b0"]

# Expansion, kernel, stride, channels, layers.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class StochasticDepth(nn.Dropout):
    """`Dropout` of whole images of x (N, ...): Huang et al., arXiv:1603.09382."""

    def _mask_shape(self, x: Array) -> tuple[int, ...]:
        return (x.shape[0], *(1 for _ in x.shape[1:]))


def _block(channels: int, out_channels: int, kernel: int, stride: int, expansion: int, drop: float) -> nn.Module:
    """MBConv: expansion, depthwise layer, squeeze and excitation, linear projection."""
    hidden = channels * expansion
    row: list[nn.Module] = [conv_norm(channels, hidden, 1, activation=nn.SiLU())] if expansion > 1 else []
    row += [
        conv_norm(hidden, hidden, kernel, stride, hidden, nn.SiLU()),
        nn.SqueezeExcite(hidden, max(1, channels // 4), nn.SiLU()),
        conv_norm(hidden, out_channels, 1),
    ]
    block = {"block": nn.Sequential(*row)}
    if stride == 1 and channels == out_channels:
        return Shortcut({**block, "stochastic_depth": StochasticDepth(drop)})
    return nn.Sequential(block)


def efficientnet_b0(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    dropout: float = 0.2,
    stochastic_depth: float = 0.2,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """EfficientNet-B0 for images of 224x224 or any size. `stochastic_depth` rises with depth from 0 to its value."""

    def build() -> Row:
        features: list[nn.Module] = [conv_norm(in_channels, 32, 3, 2, activation=nn.SiLU())]
        channels, done, blocks = 32, 0, sum(layers for *_, layers in _STAGES)
        for expansion, kernel, stride, out_channels, layers in _STAGES:
            stage = []
            for number in range(layers):
                drop = stochastic_depth * done / blocks
                stage.append(_block(channels, out_channels, kernel, 1 if number else stride, expansion, drop))
                channels, done = out_channels, done + 1
            features.append(nn.Sequential(*stage))
        features.append(conv_norm(channels, 1280, 1, activation=nn.SiLU()))
        return Row(
            {
                "features": nn.Sequential(*features),
                "avgpool": nn.GlobalAvgPool2d(),
                "flatten": nn.Flatten(),
                "classifier": nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes)),
            }
        )

    return made(build, dtype, rng)
