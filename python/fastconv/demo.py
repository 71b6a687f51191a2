"""`python -m fastconv demo`: a filter bank over a photograph, as one contact sheet.

Every filter runs three times: in fastconv, in NumPy (`fastconv.reference`) and in SciPy, on the same float32 picture.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import fastconv
from fastconv import reference, testing

Array = npt.NDArray[Any]

# A side longer than this is scaled down: the sheet shows no more, and NumPy's times stay below some seconds.
_LONGEST = 1600
_SMALLEST = 16


@dataclass(frozen=True)
class Filter:
    """A convolution of the picture, and how its outputs become a panel."""

    title: str
    source: Literal["colour", "grey"]
    weight: Array
    options: dict[str, Any] = field(default_factory=dict)
    show: Literal["colour", "signed", "magnitude", "strongest"] = "colour"

    def operands(self, colour: Array, grey: Array) -> tuple[Array, Array, dict[str, Any]]:
        """x, weight and options of the call."""
        x = colour if self.source == "colour" else grey
        groups = x.shape[0] if self.source == "colour" else 1
        reach = [self.options.get("dilation", 1) * (k - 1) + 1 for k in self.weight.shape[-2:]]
        padding = tuple(r // 2 for r in reach)
        return x, self.weight, {"padding": padding, "padding_mode": "reflect", "groups": groups} | self.options


def _three(kernel: Array) -> Array:
    """One filter for each of red, green and blue: a depthwise convolution."""
    return np.repeat(np.asarray(kernel, np.float32)[np.newaxis, np.newaxis], 3, axis=0)


def _one(*kernels: Any) -> Array:
    """Several filters of the same grey picture."""
    return np.stack([np.asarray(k, np.float32) for k in kernels])[:, np.newaxis]


def gaussian(size: int, sigma: float) -> Array:
    """A normalised Gaussian of size x size."""
    axis = np.arange(size) - (size - 1) / 2
    line = np.exp(-(axis**2) / (2 * sigma**2))
    line /= line.sum()
    square: Array = np.outer(line, line)
    return square


def gabor(size: int, angle: float) -> Array:
    """An odd wave under a Gaussian: an edge in the direction `angle`, without response to flat areas."""
    axis = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    wave: Array = np.exp(-(x**2 + y**2) / (2 * (size / 5) ** 2)) * np.sin(2 * math.pi * along / (size * 0.75))
    wave *= 4 / np.abs(wave).sum()
    return wave


def filters() -> list[Filter]:
    """The bank."""
    impulse = np.zeros((5, 5))
    impulse[2, 2] = 1
    sobel = np.outer([1, 2, 1], [-1, 0, 1])
    laplacian = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]) / 2
    angles = [math.pi * i / 8 for i in range(8)]
    return [
        Filter("blur 11x11", "colour", _three(gaussian(11, 2.5))),
        Filter("sharpen 5x5", "colour", _three(3 * impulse - 2 * gaussian(5, 1.5))),
        Filter("Sobel x", "grey", _one(sobel), show="signed"),
        Filter("Sobel y", "grey", _one(sobel.T), show="signed"),
        Filter("Sobel magnitude", "grey", _one(sobel, sobel.T), show="magnitude"),
        Filter("emboss 3x3", "colour", _three(np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))),
        Filter("8 oriented edges 11x11", "grey", _one(*(gabor(11, a) for a in angles)), show="strongest"),
        Filter("blur 9x9, stride 4", "colour", _three(gaussian(9, 2)), {"stride": 4}),
        Filter("Laplacian 3x3, dilation 6", "grey", _one(laplacian), {"dilation": 6}, "signed"),
    ]


def load(photo: Path | None) -> tuple[Array, str]:
    """The picture as float32 (3, H, W) in 0..1, and its name."""
    from PIL import Image

    if photo is None:
        from sklearn.datasets import load_sample_image

        image, name = Image.fromarray(load_sample_image("china.jpg")), "china.jpg"
    else:
        image, name = Image.open(photo), photo.name
    image = image.convert("RGB")
    longest = max(image.size)
    if longest > _LONGEST:
        size = [max(1, round(v * _LONGEST / longest)) for v in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    if min(image.size) < _SMALLEST:
        raise ValueError(f"photo (={name}, {image.width}x{image.height}) must be at least {_SMALLEST} pixels each way")
    pixels = np.asarray(image, np.float32) / np.float32(255)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), name


def scipy_call(x: Array, weight: Array, options: dict[str, Any]) -> Callable[[], Array]:
    """The same filter in SciPy, which has neither strides nor dilation: it computes all pixels with a sparse kernel."""
    from scipy import ndimage

    stride, dilation = options.get("stride", 1), options.get("dilation", 1)
    kernels = np.zeros((len(weight), *(dilation * (k - 1) + 1 for k in weight.shape[-2:])), np.float32)
    kernels[:, ::dilation, ::dilation] = weight[:, 0]
    planes = range(len(weight))

    def call() -> Array:
        found = [
            ndimage.correlate(x[i if options["groups"] > 1 else 0], kernels[i], mode="mirror")[::stride, ::stride]
            for i in planes
        ]
        return np.stack(found)

    return call


def seconds(call: Callable[[], Any]) -> float:
    """The median time of a call: some calls, or as many as fill a fifth of a second."""
    call()
    samples: list[float] = []
    stop = time.perf_counter() + 0.2
    while len(samples) < 3 or (time.perf_counter() < stop and len(samples) < 200):
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def panel(y: Array, show: str) -> Array:
    """What a filter found as (H, W, 3) in 0..1."""
    if show == "colour":
        colours: Array = np.clip(np.moveaxis(y, 0, -1), 0, 1)
        return colours
    if show == "strongest":
        strength = np.abs(y)
        best = strength.argmax(0)
        hue = best / len(y)
        value = _stretched(strength.max(0))
        # Colour is direction: three cosines, a third of a turn apart.
        waves = [0.5 + 0.5 * np.cos(2 * np.pi * (hue - i / 3)) for i in range(3)]
        wheel: Array = np.clip(np.stack(waves, -1) * value[..., np.newaxis], 0, 1)
        return wheel
    if show == "magnitude":
        flat = _stretched(np.hypot(*y))
    else:
        limit = max(float(np.quantile(np.abs(y[0]), 0.995)), 1e-6)
        flat = np.clip(0.5 + y[0] / (2 * limit), 0, 1)
    grey: Array = np.repeat(flat[..., np.newaxis], 3, -1)
    return grey


def _stretched(a: Array) -> Array:
    # A few extreme pixels must not leave the rest black.
    result: Array = np.clip(a / max(float(np.quantile(a, 0.995)), 1e-6), 0, 1)
    return result


def draw(panels: list[tuple[str, Array]], heading: str, output: Path) -> None:
    """Write the contact sheet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    aspect = panels[0][1].shape[0] / panels[0][1].shape[1]
    width = 4.4
    figure = Figure(figsize=(columns * width, rows * (min(aspect, 2.5) * width + 0.62) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=14)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes, panels, strict=False):
        axis.imshow(image, interpolation="antialiased", aspect="equal")
        axis.set_title(title, fontsize=12)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, format="png")


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def main(photo: Path | None, output: Path) -> int:
    """Run the demo. 0: fine; 1: a result differs from the reference; 2: no picture, or a package is missing."""
    try:
        return _main(photo, output)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("PIL", "sklearn", "scipy", "matplotlib"):
            name = error.name.split(".")[0]
            print(f'the demo needs {name}: pip install "fastconv[bench]"', file=sys.stderr)
            return 2
        raise
    except (OSError, ValueError) as error:
        # Pillow says "cannot identify image file" by an OSError too.
        print(f"fastconv demo: {error}", file=sys.stderr)
        return 2


def _main(photo: Path | None, output: Path) -> int:
    colour, name = load(photo)
    grey = np.ascontiguousarray(np.tensordot([0.299, 0.587, 0.114], colour, 1)[np.newaxis], np.float32)
    height, width = grey.shape[1:]
    print(f"{name}: {width}x{height}, float32, {fastconv.get_num_threads()} thread(s), {fastconv.get_isa()}")
    print(f"{'filter':28} {'fastconv':>10} {'NumPy':>10} {'SciPy':>10}   NumPy/fastconv  SciPy/fastconv")
    panels = [(f"{name}, {width}x{height}", np.moveaxis(colour, 0, -1))]
    for item in filters():
        x, weight, options = item.operands(colour, grey)
        y = fastconv.conv2d(x, weight, **options)
        try:
            # A wave under a picture, which is positive all over, adds up far before it cancels: more roundings than on
            # the seeded data of the tests.
            expected = testing.reference_with_bound("conv2d", x, weight, constant=16.0, **options)
            if fastconv.explain("conv2d", x, weight, **options).decision["algorithm"] == "fft":
                # All points of a tile share its mean, whose product with the filter's rounds as numbers of the result's
                # size do; the seeded data have none.
                shared = testing.direct_error_bound(np.abs(expected.value), y.dtype)
                expected = expected._replace(bound=expected.bound + shared)
            testing.assert_within(y, expected, "conv2d", stray=testing.stray_factor(y.size, 16.0))
        except AssertionError as error:
            print(f"{item.title}: WRONG: {error}", file=sys.stderr)
            return 1
        other = scipy_call(x, weight, options)
        if not np.allclose(other(), y, rtol=0, atol=1e-4):
            print(f"{item.title}: SciPy's result differs", file=sys.stderr)
            return 1
        ours = seconds(lambda x=x, w=weight, o=options: fastconv.conv2d(x, w, **o))  # type: ignore[misc]
        theirs = seconds(lambda x=x, w=weight, o=options: reference.conv2d(x, w, **o))  # type: ignore[misc]
        scipys = seconds(other)
        times = f"{_milliseconds(ours):>10} {_milliseconds(theirs):>10} {_milliseconds(scipys):>10}"
        print(f"{item.title:28} {times}   {theirs / ours:14.1f}  {scipys / ours:14.1f}", flush=True)
        title = f"{item.title}\n{_milliseconds(ours)} (NumPy {_milliseconds(theirs)}, SciPy {_milliseconds(scipys)})"
        panels.append((title, panel(y, item.show)))
    draw(panels, f"fastconv {fastconv.__version__}: a filter bank over {name}", output)
    print(f"wrote {output}")
    return 0
