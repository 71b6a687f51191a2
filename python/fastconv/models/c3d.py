"""C3D: Tran et al., "Learning spatiotemporal features with 3D convolutional networks", arXiv:1412.0767, figure 3.

Names of weights are those of the usual ports to PyTorch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, made, scaled

__all__ = ["c3d"]

# 3x3x3 layers with their channels, and pools.
_LAYERS = (
    ("conv1", 64),
    ("pool1", 0),
    ("conv2", 128),
    ("pool2", 0),
    ("conv3a", 256),
    ("conv3b", 256),
    ("pool3", 0),
    ("conv4a", 512),
    ("conv4b", 512),
    ("pool4", 0),
    ("conv5a", 512),
    ("conv5b", 512),
    ("pool5", 0),
)


def c3d(
    num_classes: int = 487,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.5,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> Row:
    """C3D for clips (N, 3, 16, 112, 112) (no other size), 487 classes as in Sports-1M. `width` scales all channels."""
    hidden = scaled(4096, width)

    def build() -> Row:
        row: dict[str, nn.Module] = {}
        channels = in_channels
        for name, wide in _LAYERS:
            if wide:
                row[name] = nn.Conv3d(channels, scaled(wide, width), 3, padding=1)
                row[f"relu{name.removeprefix('conv')}"] = nn.ReLU()
                channels = scaled(wide, width)
            elif name == "pool1":  # time is kept as long as there is little of it
                row[name] = nn.MaxPool3d((1, 2, 2))
            else:
                row[name] = nn.MaxPool3d(2, padding=(0, 1, 1) if name == "pool5" else 0)
        row |= {
            "flatten": nn.Flatten(),
            "fc6": nn.Linear(channels * 1 * 4 * 4, hidden),
            "relu6": nn.ReLU(),
            "dropout6": nn.Dropout(dropout),
            "fc7": nn.Linear(hidden, hidden),
            "relu7": nn.ReLU(),
            "dropout7": nn.Dropout(dropout),
            "fc8": nn.Linear(hidden, num_classes),
        }
        return Row(row)

    return made(build, dtype, rng)
