"""ResNet: He et al., "Deep residual learning for image recognition", arXiv:1512.03385, table 1.

The stride of a bottleneck is at its 3x3 layer, as in torchvision ("v1.5").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, Shortcut, conv_norm, made

__all__ = ["resnet18", "resnet50"]


def _basic(channels: int, width: int, stride: int) -> Shortcut:
    """Two 3x3 layers."""
    row = {
        "conv1": nn.Conv2d(channels, width, 3, stride, 1, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
        "conv2": nn.Conv2d(width, width, 3, padding=1, bias=False),
        "bn2": nn.BatchNorm2d(width),
    }
    return Shortcut(row, _shortcut(channels, width, stride), nn.ReLU())


def _bottleneck(channels: int, width: int, stride: int) -> Shortcut:
    """1x1, 3x3 and 1x1 layers; the last one has four times as many channels."""
    row = {
        "conv1": nn.Conv2d(channels, width, 1, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(width, width, 3, stride, 1, bias=False),
        "bn2": nn.BatchNorm2d(width),
        "relu2": nn.ReLU(),
        "conv3": nn.Conv2d(width, 4 * width, 1, bias=False),
        "bn3": nn.BatchNorm2d(4 * width),
    }
    return Shortcut(row, _shortcut(channels, 4 * width, stride), nn.ReLU())


def _shortcut(channels: int, out_channels: int, stride: int) -> dict[str, nn.Module] | None:
    if stride == 1 and channels == out_channels:
        return None
    return {"downsample": conv_norm(channels, out_channels, 1, stride)}


def _resnet(
    block: Callable[[int, int, int], Shortcut],
    expansion: int,
    stages: tuple[int, ...],
    num_classes: int,
    in_channels: int,
    width: int,
    dtype: npt.DTypeLike,
    rng: Rng,
) -> Row:
    def build() -> Row:
        rows: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(in_channels, width, 7, 2, 3, bias=False),
            "bn1": nn.BatchNorm2d(width),
            "relu": nn.ReLU(),
            "maxpool": nn.MaxPool2d(3, 2, 1),
        }
        channels = width
        for stage, blocks in enumerate(stages):
            row = []
            for number in range(blocks):
                row.append(block(channels, width << stage, 2 if stage and not number else 1))
                channels = expansion * width << stage
            rows[f"layer{stage + 1}"] = nn.Sequential(*row)
        head = {"avgpool": nn.GlobalAvgPool2d(), "flatten": nn.Flatten(), "fc": nn.Linear(channels, num_classes)}
        return Row({**rows, **head})

    return made(build, dtype, rng)


def resnet18(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width: int = 64,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """ResNet-18 for images of 224x224 or any size. `width` is that of the first stage."""
    return _resnet(_basic, 1, (2, 2, 2, 2), num_classes, in_channels, width, dtype, rng)


def resnet50(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width: int = 64,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """ResNet-50 for images of 224x224 or any size. `width` is that of the first stage's 3x3 layers."""
    return _resnet(_bottleneck, 4, (3, 4, 6, 3), num_classes, in_channels, width, dtype, rng)
