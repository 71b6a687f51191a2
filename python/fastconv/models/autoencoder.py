"""A convolutional autoencoder: Masci et al., "Stacked convolutional auto-encoders" (ICANN 2011).

In the form of today: strides in place of pools, and transposed layers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, made

__all__ = ["conv_autoencoder"]


def conv_autoencoder(
    *, in_channels: int = 3, width: int = 32, dtype: npt.DTypeLike = np.float32, rng: Rng = None
) -> Row:
    """Images of values from 0 to 1, their sides multiples of 8, through a code of 4 * width channels and an eighth."""

    def build() -> Row:
        encoder = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1),
            nn.ReLU(),
        )
        decoder = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, in_channels, 3, 2, 1, 1),
            nn.Sigmoid(),
        )
        return Row({"encoder": encoder, "decoder": decoder})

    return made(build, dtype, rng)
