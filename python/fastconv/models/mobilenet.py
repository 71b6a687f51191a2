"""MobileNetV2: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", arXiv:1801.04381, table 2."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, Shortcut, conv_norm, made

__all__ = ["mobilenet_v2"]

# Expansion t, channels c, repetitions n, stride s.
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _block(channels: int, out_channels: int, stride: int, expansion: int) -> nn.Module:
    """Expansion, depthwise layer, linear projection; around a shortcut where the shape stays."""
    hidden = channels * expansion
    row: list[nn.Module] = [conv_norm(channels, hidden, 1, activation=nn.ReLU6())] if expansion > 1 else []
    row += [
        conv_norm(hidden, hidden, 3, stride, hidden, nn.ReLU6()),
        nn.Conv2d(hidden, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    conv = {"conv": nn.Sequential(*row)}
    return Shortcut(conv) if stride == 1 and channels == out_channels else nn.Sequential(conv)


def mobilenet_v2(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    dropout: float = 0.2,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """MobileNetV2 for images of 224x224 or any size."""

    def build() -> Row:
        features: list[nn.Module] = [conv_norm(in_channels, 32, 3, 2, activation=nn.ReLU6())]
        channels = 32
        for expansion, out_channels, blocks, stride in _BLOCKS:
            for number in range(blocks):
                features.append(_block(channels, out_channels, 1 if number else stride, expansion))
                channels = out_channels
        features.append(conv_norm(channels, 1280, 1, activation=nn.ReLU6()))
        return Row(
            {
                "features": nn.Sequential(*features),
                "avgpool": nn.GlobalAvgPool2d(),
                "flatten": nn.Flatten(),
                "classifier": nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes)),
            }
        )

    return made(build, dtype, rng)
