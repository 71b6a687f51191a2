"""GoogLeNet: Szegedy et al., "Going deeper with convolutions", arXiv:1409.4842, table 1.

As in torchvision: with batch norm, with 3x3 layers where the paper has 5x5 ones, and without the auxiliary classifiers,
whose weights in the published file are passed over. That file wants images with mean 0.5 and deviation 0.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, made

__all__ = ["googlenet"]


class _GoogLeNet(Row):
    _left_out = r"aux[12]\."


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        {
            "conv": nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
            "bn": nn.BatchNorm2d(out_channels, eps=0.001),
            "relu": nn.ReLU(),
        }
    )


def _inception(channels: int, c1: int, r3: int, c3: int, r5: int, c5: int, pool: int) -> nn.Concat:
    """Columns of the paper's table: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj."""
    return nn.Concat(
        {
            "branch1": _conv(channels, c1, 1),
            "branch2": nn.Sequential(_conv(channels, r3, 1), _conv(r3, c3, 3)),
            "branch3": nn.Sequential(_conv(channels, r5, 1), _conv(r5, c5, 3)),
            "branch4": nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), _conv(channels, pool, 1)),
        }
    )


def googlenet(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    dropout: float = 0.2,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """GoogLeNet for images of 224x224, at least 31x31."""

    def build() -> Row:
        return _GoogLeNet(
            {
                "conv1": _conv(in_channels, 64, 7, 2),
                "maxpool1": nn.MaxPool2d(3, 2, ceil_mode=True),
                "conv2": _conv(64, 64, 1),
                "conv3": _conv(64, 192, 3),
                "maxpool2": nn.MaxPool2d(3, 2, ceil_mode=True),
                "inception3a": _inception(192, 64, 96, 128, 16, 32, 32),
                "inception3b": _inception(256, 128, 128, 192, 32, 96, 64),
                "maxpool3": nn.MaxPool2d(3, 2, ceil_mode=True),
                "inception4a": _inception(480, 192, 96, 208, 16, 48, 64),
                "inception4b": _inception(512, 160, 112, 224, 24, 64, 64),
                "inception4c": _inception(512, 128, 128, 256, 24, 64, 64),
                "inception4d": _inception(512, 112, 144, 288, 32, 64, 64),
                "inception4e": _inception(528, 256, 160, 320, 32, 128, 128),
                "maxpool4": nn.MaxPool2d(2, 2, ceil_mode=True),
                "inception5a": _inception(832, 256, 160, 320, 32, 128, 128),
                "inception5b": _inception(832, 384, 192, 384, 48, 128, 128),
                "avgpool": nn.GlobalAvgPool2d(),
                "flatten": nn.Flatten(),
                "dropout": nn.Dropout(dropout),
                "fc": nn.Linear(1024, num_classes),
            }
        )

    return made(build, dtype, rng)
