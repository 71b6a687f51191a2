"""DenseNet: Huang et al., "Densely connected convolutional networks", arXiv:1608.06993, table 1 (121, k = 32)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from .._args import Array
from ..nn.init import Rng
from ._network import Row, made

__all__ = ["densenet121"]


class _DenseNet(Row):
    # The published files' denselayer1.norm.1.weight.
    _renamed = ((r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),)


class _DenseLayer(nn.Sequential):
    """x, and behind its channels those that the row makes of it."""

    def forward(self, x: Array) -> Array:
        y: Array = super().forward(x)
        self.save_for_backward(x.shape[1])
        return np.concatenate((x, y), axis=1)

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        channels = self.pop_saved()
        dx: Array | None = super().backward(dy[:, channels:].copy(order="K"), input_grad=input_grad)
        return None if dx is None else dx + dy[:, :channels]


def _layer(channels: int, growth: int) -> _DenseLayer:
    return _DenseLayer(
        {
            "norm1": nn.BatchNorm2d(channels),
            "relu1": nn.ReLU(),
            "conv1": nn.Conv2d(channels, 4 * growth, 1, bias=False),
            "norm2": nn.BatchNorm2d(4 * growth),
            "relu2": nn.ReLU(),
            "conv2": nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        }
    )


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        {
            "norm": nn.BatchNorm2d(channels),
            "relu": nn.ReLU(),
            "conv": nn.Conv2d(channels, channels // 2, 1, bias=False),
            "pool": nn.AvgPool2d(2),
        }
    )


def densenet121(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    growth: int = 32,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """DenseNet-121 for images of 224x224, at least 29x29. `growth` is the paper's k."""

    def build() -> Row:
        channels = 2 * growth
        features: dict[str, nn.Module] = {
            "conv0": nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False),
            "norm0": nn.BatchNorm2d(channels),
            "relu0": nn.ReLU(),
            "pool0": nn.MaxPool2d(3, 2, 1),
        }
        for block, layers in enumerate((6, 12, 24, 16), 1):
            row = {}
            for number in range(1, layers + 1):
                row[f"denselayer{number}"] = _layer(channels, growth)
                channels += growth
            features[f"denseblock{block}"] = nn.Sequential(row)
            if block < 4:
                features[f"transition{block}"] = _transition(channels)
                channels //= 2
        features["norm5"] = nn.BatchNorm2d(channels)
        return _DenseNet(
            {
                "features": nn.Sequential(features),
                "relu": nn.ReLU(),
                "avgpool": nn.GlobalAvgPool2d(),
                "flatten": nn.Flatten(),
                "classifier": nn.Linear(channels, num_classes),
            }
        )

    return made(build, dtype, rng)
