"""Layers of PyTorch by fastconv's operators while gradients are recorded, where those are faster.

A layer's own forward is taken where the operators are no gain: for few multiply-adds or elements, for depthwise layers
with strides, pools and norms in channels-last tensors, and for kinds of layers that are not named here.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

from . import modules
from ._lower import _DTYPES, _last

torch: Any = importlib.import_module("torch")
_nn: Any = torch.nn

# A call with its gradient costs about 0.15 ms more than PyTorch's. Multiply-adds of dense and of depthwise layers, and
# elements of pools and norms, from which on that is little.
_DENSE = 25_000_000
_DEPTHWISE = 4_000_000
_ELEMENTS = 100_000


def _ordinary(x: Any) -> bool:
    return type(x) in (torch.Tensor, _nn.Parameter) and x.device.type == "cpu" and x.dtype in _DTYPES


def _conv(own: Any, module: Any, x: Any) -> Any:
    weight = module.weight
    if x.dim() != weight.dim() or x.shape[1] != weight.shape[1] * module.groups or weight.dtype is not x.dtype:
        return None
    step = math.prod(module.stride)
    least = _DEPTHWISE if module.groups == x.shape[1] > 1 else _DENSE
    # PyTorch's own are at their best in channels-last tensors.
    if x.numel() // max(x.shape[1], 1) * weight.numel() < least * step * (2 if _last(x) else 1):
        return None
    if step > 1 and module.groups == x.shape[1] > 1 and _last(x):
        return None
    return own._conv_forward(module, x, weight, module.bias)


def _pool(own: Any, module: Any, x: Any) -> Any:
    if x.dim() != 4 or x.numel() < _ELEMENTS or _last(x) or getattr(module, "return_indices", False):
        return None
    if any(map(_beyond, x.shape[2:], *(_pair(getattr(module, name, 1)) for name in _WINDOW))):
        return None
    return own.forward(module, x)


_WINDOW = ("kernel_size", "padding", "dilation")


def _pair(value: Any) -> tuple[int, ...]:
    return (value,) * 2 if isinstance(value, int) else tuple(value)


def _beyond(size: int, window: int, padding: int, dilation: int) -> bool:
    """Whether a window is larger than its image, which PyTorch takes in ceil mode."""
    return dilation * (window - 1) + 1 > size + 2 * padding


def _batch_norm(own: Any, module: Any, x: Any) -> Any:
    if not module.training or x.dim() != 4 or x.numel() < _ELEMENTS or _last(x):
        return None
    if module.weight is not None and module.weight.dtype is not x.dtype:
        return None
    return own.forward(module, x)


_LAYERS: dict[Any, tuple[Callable[[Any, Any, Any], Any], Any]] = {
    _nn.Conv1d: (_conv, modules.Conv1d),
    _nn.Conv2d: (_conv, modules.Conv2d),
    _nn.MaxPool2d: (_pool, modules.MaxPool2d),
    _nn.AvgPool2d: (_pool, modules.AvgPool2d),
    _nn.BatchNorm2d: (_batch_norm, modules.BatchNorm2d),
}


def layer(module: Any) -> Callable[[Any], Any] | None:
    """What computes the module of its input, or gives None where that is no gain; None if nothing does.

    A class that only derives from one of these has its own forward, or may have.
    """
    found = _LAYERS.get(type(module))
    if found is None:
        return None
    run, own = found

    def call(x: Any) -> Any:
        return run(own, module, x) if _ordinary(x) else None

    return call
