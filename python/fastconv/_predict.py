"""`python -m fastconv predict`: what a network trained on ImageNet sees in a photograph."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ._args import Array


@dataclass(frozen=True)
class Preparation:
    """How a network's published weights want a photograph.

    Attributes:
        resize: what its shorter side is scaled to.
        crop: the side of the square that is cut from its middle.
        mean: what is subtracted from red, green and blue between 0 and 1.
        deviation: what the differences are divided by.
        filter: of Pillow's resampling.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)
    filter: str = "BILINEAR"


_HALF = (0.5, 0.5, 0.5)
_PREPARATIONS = {
    "alexnet": Preparation(),
    "vgg11": Preparation(),
    "vgg16": Preparation(),
    "vgg19": Preparation(),
    "googlenet": Preparation(mean=_HALF, deviation=_HALF),
    "resnet18": Preparation(),
    "resnet50": Preparation(),
    "densenet121": Preparation(),
    "xception": Preparation(333, 299, _HALF, _HALF),
    "mobilenet_v2": Preparation(),
    "efficientnet_b0": Preparation(filter="BICUBIC"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("photo", type=Path, help="a picture that Pillow reads")
    parser.add_argument(
        "--model", required=True, choices=list(_PREPARATIONS), metavar="NAME", help=", ".join(_PREPARATIONS)
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="its state dict: .npz, .safetensors, .pt or .pth")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="a text file with the name of a class a line")
    parser.add_argument("--num-classes", type=int, default=1000, metavar="N", help="what the weights tell apart")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many classes are printed (default: 5)")


def prepare(photo: Path, how: Preparation) -> Array:
    """The photograph as the network wants it: float32 (1, 3, crop, crop).

    Raises:
        ImportError: Pillow is not installed.
        OSError: the file cannot be opened, or is no picture.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("photographs are read by Pillow, which is not installed: pip install Pillow") from None
    with Image.open(photo) as file:
        image = file.convert("RGB")
    short = min(image.size)
    # The sides as torchvision rounds them.
    width, height = (how.resize if side == short else int(how.resize * side / short) for side in image.size)
    image = image.resize((width, height), getattr(Image.Resampling, how.filter))
    left, top = round((width - how.crop) / 2), round((height - how.crop) / 2)
    square = np.asarray(image.crop((left, top, left + how.crop, top + how.crop)), np.float32) / np.float32(255)
    pixels: Array = (square - np.array(how.mean, np.float32)) / np.array(how.deviation, np.float32)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)[None])


def main(arguments: argparse.Namespace) -> int:
    """Run the command. 0: fine; 2: bad arguments or files."""
    try:
        lines = _lines(arguments)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"fastconv predict: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def _lines(arguments: argparse.Namespace) -> list[str]:
    from fastconv import models, nn

    name, classes, top = arguments.model, arguments.num_classes, arguments.top
    if arguments.weights is None:
        raise ValueError(
            f"--weights FILE is missing: fastconv ships none. The file is a state dict of {name} with the names of "
            f"{'pretrainedmodels' if name == 'xception' else 'torchvision'}, as published there or saved by nn.save"
        )
    if top < 1:
        raise ValueError(f"--top (={top}) must be at least 1")
    if classes < 1:
        raise ValueError(f"--num-classes (={classes}) must be at least 1")
    labels = None
    if arguments.labels is not None:
        labels = arguments.labels.read_text(encoding="utf-8").splitlines()
        if len(labels) != classes:
            raise ValueError(
                f"--labels (={arguments.labels}, {len(labels)} lines) must have a line a class ({classes})"
            )
    x = prepare(arguments.photo, _PREPARATIONS[name])
    state = nn.load(arguments.weights)
    with nn.init.undrawn():
        network = models.create(name, num_classes=classes).eval()
    try:
        network.load_state_dict(state)
    except ValueError as error:
        text = str(error)
        raise ValueError(f"{arguments.weights}: {text if len(text) < 500 else text[:500] + ' ...'}") from None
    shares = nn.Softmax()(network(x))[0]
    best = np.argsort(-shares, kind="stable")[:top]
    return [f"{i:5d}  {shares[i]:7.2%}{'' if labels is None else '  ' + labels[i]}" for i in best]
