"""AlexNet: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997.

The one-tower form of torchvision, without local response norm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, made, scaled

__all__ = ["alexnet"]


def alexnet(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.5,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """AlexNet for images of 224x224, at least 63x63. `width` scales all channels."""
    a, b, c, d, hidden = (scaled(channels, width) for channels in (64, 192, 384, 256, 4096))

    def build() -> Row:
        features = nn.Sequential(
            nn.Conv2d(in_channels, a, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(d, d, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(d * 6 * 6, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )
        pool = nn.AdaptiveAvgPool2d((6, 6))
        return Row({"features": features, "avgpool": pool, "flatten": nn.Flatten(), "classifier": classifier})

    return made(build, dtype, rng)
