"""U-Net: Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation",
arXiv:1505.04597, figure 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import nn
from .._args import Array
from ..nn.init import Rng
from ..nn.module import is_recording
from ._network import Network, made

__all__ = ["unet"]


class _Join(nn.Module):
    """The middle of skip, cropped to x's size, and x behind its channels ("copy and crop")."""

    def __init__(self, crops: bool) -> None:
        super().__init__()
        self._crops = crops

    def forward(self, x: Array, skip: Array) -> Array:
        if not self._crops and not is_recording():
            # What `nn.fuse` can follow: the sizes are the same.
            return np.concatenate((skip, x), axis=1)
        top, left = ((skip.shape[axis] - x.shape[axis]) // 2 for axis in (2, 3))
        if top < 0 or left < 0:
            raise ValueError(f"x (shape {x.shape}) must not be larger than the skipped image (shape {skip.shape})")
        self.save_for_backward((skip.shape, top, left))
        middle = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        return np.concatenate((middle, x), axis=1)

    def backward(self, dy: Array, *, input_grad: bool = True) -> tuple[Array, Array]:
        """The gradients with respect to x and to skip."""
        shape, top, left = self.pop_saved()
        # In dy's order of axes in memory.
        skip = np.zeros_like(dy, shape=shape)
        skip[:, :, top : top + dy.shape[2], left : left + dy.shape[3]] = dy[:, : shape[1]]
        return dy[:, shape[1] :].copy(order="K"), skip


def _double(in_channels: int, out_channels: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(in_channels, out_channels, 3, padding=padding),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(out_channels, out_channels, 3, padding=padding),
            "relu2": nn.ReLU(),
        }
    )


class UNet(Network):
    """The network of figure 1: four levels down, the bottom, four levels up, and a 1x1 layer."""

    def __init__(self, num_classes: int, in_channels: int, width: int, padding: int, dropout: float) -> None:
        super().__init__()
        self.padding = padding
        widths = [width << level for level in range(5)]
        self.down = nn.ModuleList(
            _double(before, after, padding) for before, after in zip([in_channels, *widths], widths[:4], strict=False)
        )
        self.pool = nn.ModuleList(nn.MaxPool2d(2) for _ in range(4))
        self.bottom = _double(widths[3], widths[4], padding)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * wide, wide, 2, 2) for wide in widths[3::-1])
        self.join = nn.ModuleList(_Join(crops=not padding) for _ in range(4))
        self.merge = nn.ModuleList(_double(2 * wide, wide, padding) for wide in widths[3::-1])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Array) -> Array:
        """The classes' scores for each pixel of x (N, C, H, W), or without padding for those in the middle."""
        if self.padding and isinstance(x, np.ndarray) and any(size % 16 for size in x.shape[2:]):
            raise ValueError(f"x (shape {x.shape}) must have sides that are multiples of 16 with padding='same'")
        skipped = []
        for down, pool in zip(self.down, self.pool, strict=True):
            skipped.append(down(x))
            x = pool(skipped[-1])
        x = self.dropout(self.bottom(x))
        for up, join, merge in zip(self.up, self.join, self.merge, strict=True):
            x = merge(join(up(x), skipped.pop()))
        y: Array = self.head(x)
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        dx = self.head.backward(dy)
        assert dx is not None
        skipped = []
        for up, join, merge in zip(*map(reversed, map(list, (self.up, self.join, self.merge))), strict=True):
            dx, skip = join.backward(merge.backward(dx))
            skipped.append(skip)
            dx = up.backward(dx)
        dx = self.bottom.backward(self.dropout.backward(dx))
        for level in (3, 2, 1, 0):
            dx = self.pool[level].backward(dx) + skipped[level]
            dx = self.down[level].backward(dx, input_grad=input_grad or level > 0)
        return dx if input_grad else None


def unet(
    num_classes: int = 2,
    *,
    in_channels: int = 1,
    width: int = 64,
    padding: str = "valid",
    dropout: float = 0.5,
    dtype: npt.DTypeLike = np.float32,
    rng: Rng = None,
) -> UNet:
    """U-Net for images of 572x572, of which 388x388 come out, or other sizes.

    Args:
        num_classes: channels of the result.
        in_channels: channels of the image.
        width: channels of the first level; each level has twice those of the one above.
        padding: "valid", the paper's, or "same": the result has the image's size, whose sides are multiples of 16.
        dropout: the probability at the end of the contracting path.
        dtype: float32 or float64.
        rng: where the initial values come from.

    Raises:
        ValueError: padding is neither.
    """
    if padding not in ("valid", "same"):
        raise ValueError(f"padding (={padding!r}) must be 'valid' or 'same'")
    return made(lambda: UNet(num_classes, in_channels, width, int(padding == "same"), dropout), dtype, rng)
