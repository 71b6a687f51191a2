"""Architectures, built from `fastconv.nn` alone: each file reads like its paper's table.

    with nn.init.undrawn():
        net = models.resnet50().eval()
    net.load_state_dict(nn.load("resnet50-0676ba61.pth"))
    scores = net(images)

Names of weights are torchvision's, where torchvision has the network, so that its published files load as they are.
`rng` is a seed, a numpy.random.Generator or None for that of `nn.manual_seed`; `dtype` is float32 or float64.
`nn.summary(net, images.shape)` prints shapes, parameters and multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..nn import summary
from ._network import Network
from .alexnet import alexnet
from .autoencoder import conv_autoencoder
from .c3d import c3d
from .densenet import densenet121
from .efficientnet import efficientnet_b0
from .googlenet import googlenet
from .lenet import lenet5
from .mobilenet import mobilenet_v2
from .resnet import resnet18, resnet50
from .unet import unet
from .vgg import vgg11, vgg16, vgg19
from .xception import xception

__all__ = [
    "Network",
    "alexnet",
    "c3d",
    "conv_autoencoder",
    "create",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "lenet5",
    "mobilenet_v2",
    "names",
    "resnet18",
    "resnet50",
    "summary",
    "unet",
    "vgg11",
    "vgg16",
    "vgg19",
    "xception",
]

_CONSTRUCTORS: dict[str, Callable[..., Network]] = {
    "lenet5": lenet5,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "googlenet": googlenet,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "xception": xception,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
    "unet": unet,
    "c3d": c3d,
    "conv_autoencoder": conv_autoencoder,
}


def names() -> list[str]:
    """The names that `create` takes."""
    return list(_CONSTRUCTORS)


def create(name: str, **options: Any) -> Network:
    """The network of that name: `create("resnet50", num_classes=10)` is `resnet50(num_classes=10)`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _CONSTRUCTORS:
        raise ValueError(f"name (={name!r}) must be one of {', '.join(_CONSTRUCTORS)}")
    return _CONSTRUCTORS[name](**options)
