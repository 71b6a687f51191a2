"""LeNet-5: LeCun et al., "Gradient-based learning applied to document recognition" (Proc. IEEE 86, 1998), figure 2.

As it is taught today: C3 sees all maps of S2 (the paper's table 1 leaves some out), subsampling has no coefficients,
the nonlinearity is a plain tanh and the output layer a dense one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from ..nn.init import Rng
from ._network import Row, made

__all__ = ["lenet5"]


def lenet5(num_classes: int = 10, *, in_channels: int = 1, dtype: npt.DTypeLike = np.float32, rng: Rng = None) -> Row:
    """LeNet-5 for images of 32x32 (28x28 digits with a border of 2)."""

    def build() -> Row:
        return Row(
            {
                "c1": nn.Conv2d(in_channels, 6, 5),
                "c1_tanh": nn.Tanh(),
                "s2": nn.AvgPool2d(2),
                "c3": nn.Conv2d(6, 16, 5),
                "c3_tanh": nn.Tanh(),
                "s4": nn.AvgPool2d(2),
                "c5": nn.Conv2d(16, 120, 5),
                "c5_tanh": nn.Tanh(),
                "flatten": nn.Flatten(),
                "f6": nn.Linear(120, 84),
                "f6_tanh": nn.Tanh(),
                "output": nn.Linear(84, num_classes),
            }
        )

    return made(build, dtype, rng, gain=1.0)
