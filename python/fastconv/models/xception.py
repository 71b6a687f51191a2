"""Xception: Chollet, "Xception: deep learning with depthwise separable convolutions", arXiv:1610.02357, figure 5.

Names of weights are those of R. Cadene's pretrainedmodels, whose file wants images with mean 0.5 and deviation 0.5.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, Shortcut, made

__all__ = ["xception"]


class _Xception(Row):
    _renamed = ((r"^last_linear\.", "fc."),)


def _separable(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            "pointwise": nn.Conv2d(in_channels, out_channels, 1, bias=False),
        }
    )


def _block(channels: list[int], stride: int = 1, start_with_relu: bool = True) -> Shortcut:
    """ReLU, separable layer and norm from each channel count to the next, a pool of that stride, and the shortcut."""
    row: list[nn.Module] = []
    for before, after in pairwise(channels):
        row += [nn.ReLU(), _separable(before, after), nn.BatchNorm2d(after)]
    if not start_with_relu:
        del row[0]
    if stride == 1:
        return Shortcut({"rep": nn.Sequential(*row)})
    row.append(nn.MaxPool2d(3, stride, 1))
    skip = {
        "skip": nn.Conv2d(channels[0], channels[-1], 1, stride, bias=False),
        "skipbn": nn.BatchNorm2d(channels[-1]),
    }
    return Shortcut({"rep": nn.Sequential(*row)}, skip)


def xception(
    num_classes: int = 1000, *, in_channels: int = 3, dtype: npt.DTypeLike = np.float32, rng: Rng = None
) -> Row:
    """Xception for images of 299x299, at least 7x7."""

    def build() -> Row:
        return _Xception(
            {
                # Entry flow.
                "conv1": nn.Conv2d(in_channels, 32, 3, 2, bias=False),
                "bn1": nn.BatchNorm2d(32),
                "relu1": nn.ReLU(),
                "conv2": nn.Conv2d(32, 64, 3, bias=False),
                "bn2": nn.BatchNorm2d(64),
                "relu2": nn.ReLU(),
                "block1": _block([64, 128, 128], 2, start_with_relu=False),
                "block2": _block([128, 256, 256], 2),
                "block3": _block([256, 728, 728], 2),
                # Middle flow.
                **{f"block{number}": _block([728, 728, 728, 728]) for number in range(4, 12)},
                # Exit flow.
                "block12": _block([728, 728, 1024], 2),
                "conv3": _separable(1024, 1536),
                "bn3": nn.BatchNorm2d(1536),
                "relu3": nn.ReLU(),
                "conv4": _separable(1536, 2048),
                "bn4": nn.BatchNorm2d(2048),
                "relu4": nn.ReLU(),
                "avgpool": nn.GlobalAvgPool2d(),
                "flatten": nn.Flatten(),
                "fc": nn.Linear(2048, num_classes),
            }
        )

    return made(build, dtype, rng)
