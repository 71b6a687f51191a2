"""VGG: Simonyan and Zisserman, "Very deep convolutional networks", arXiv:1409.1556, table 1 (A, D and E)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, made, scaled

__all__ = ["vgg11", "vgg16", "vgg19"]

# 3x3 layers of 64, 128, 256, 512 and 512 channels before each pool.
_A, _D, _E = (1, 1, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)


def _vgg(
    stages: tuple[int, ...],
    num_classes: int,
    in_channels: int,
    width: float,
    dropout: float,
    dtype: npt.DTypeLike,
    rng: Rng,
) -> Row:
    hidden = scaled(4096, width)

    def build() -> Row:
        features: list[nn.Module] = []
        channels = in_channels
        for layers, wide in zip(stages, (64, 128, 256, 512, 512), strict=True):
            for _ in range(layers):
                features += [nn.Conv2d(channels, scaled(wide, width), 3, padding=1), nn.ReLU()]
                channels = scaled(wide, width)
            features.append(nn.MaxPool2d(2))
        classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        return Row(
            {
                "features": nn.Sequential(*features),
                "avgpool": nn.AdaptiveAvgPool2d((7, 7)),
                "flatten": nn.Flatten(),
                "classifier": classifier,
            }
        )

    return made(build, dtype, rng)


def vgg11(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.5,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """VGG-11 (configuration A) for images of 224x224, at least 32x32. `width` scales all channels."""
    return _vgg(_A, num_classes, in_channels, width, dropout, dtype, rng)


def vgg16(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.5,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """VGG-16 (configuration D) for images of 224x224, at least 32x32. `width` scales all channels."""
    return _vgg(_D, num_classes, in_channels, width, dropout, dtype, rng)


def vgg19(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.5,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """VGG-19 (configuration E) for images of 224x224, at least 32x32. `width` scales all channels."""
    return _vgg(_E, num_classes, in_channels, width, dropout, dtype, rng)
