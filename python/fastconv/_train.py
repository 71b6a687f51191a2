"""`python -m fastconv train`: a small network learns handwritten digits, and a picture of what it learned."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._args import Array

_NEEDED = {"rich": "rich", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--mnist", type=Path, metavar="FOLDER", help="train on MNIST's four IDX files there (default: the digits)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="at most so many (default: 30, of MNIST 6)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest rate (default: %(default)s)")
    parser.add_argument("--patience", type=int, default=10, metavar="N", help="epochs without progress (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    parser.add_argument("--split-seed", type=int, default=0, help="of the split of the images (default: 0)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("fastconv-train.npz"),
        metavar="FILE",
        help=".npz or .safetensors, written after every epoch (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint; else it is written over")
    parser.add_argument("--output", type=Path, default=Path("fastconv-train.png"), metavar="PNG")


@dataclass(frozen=True)
class _Images:
    """What is learned, what decides when to stop, and what the result is judged by."""

    name: str
    train: tuple[Array, Array]
    held_out: tuple[Array, Array]
    test: tuple[Array, Array]


def split_digits(seed: int) -> _Images:
    """The digits: a fifth for the test, an eighth of the rest held out, both drawn class by class."""
    from . import data

    images, labels = data.digits()
    test, rest = data.stratified_split(labels, 0.2, seed)
    held_out, train = (rest[part] for part in data.stratified_split(labels[rest], 0.125, seed))
    pairs = [(images[part], labels[part]) for part in (train, held_out, test)]
    return _Images("scikit-learn's digits", *pairs)


def split_mnist(folder: Path, seed: int) -> _Images:
    """MNIST: its test files for the test, a tenth of the training files held out."""
    from . import data

    images, labels = data.mnist(folder)
    held_out, train = data.stratified_split(labels, 0.1, seed)
    test = data.mnist(folder, "test")
    if test[0].shape[1:] != images.shape[1:]:
        raise ValueError(
            f"{folder}: the test images {test[0].shape[1:]} must be like those to train on, {images.shape[1:]}"
        )
    return _Images(str(folder), (images[train], labels[train]), (images[held_out], labels[held_out]), test)


def network(side: int, seed: int) -> Any:
    """Blocks of two 3x3 convolutions with batch norms, halved between them; a global mean and a dense layer end it."""
    from . import nn

    rng = np.random.default_rng(seed)
    layers: list[Any] = []
    channels = 1
    # Larger images are halved once more, and need fewer filters where they are many pixels.
    for number, width in enumerate((32, 64) if side < 16 else (16, 32, 64)):
        if number:
            layers.append(nn.MaxPool2d(2))
        for _ in range(2):
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False, rng=rng)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.GlobalAvgPool2d(keepdims=False), nn.Linear(channels, 10, rng=rng))


def main(arguments: argparse.Namespace) -> int:
    """Run the command. 0: fine; 2: an argument, a file or a package is wrong; 130: interrupted."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print("interrupted", end="", file=sys.stderr)
        if arguments.checkpoint.exists():
            print(
                f"; the last whole epoch is in {arguments.checkpoint}, and --resume goes on from it",
                end="",
                file=sys.stderr,
            )
        print(file=sys.stderr)
        return 130
    except ImportError as error:
        name = (error.name or "").split(".")[0]
        if name in _NEEDED:
            print(f'the command needs {_NEEDED[name]}: pip install "fastconv[train]"', file=sys.stderr)
        elif error.name is None:
            print(f"fastconv train: {error}", file=sys.stderr)
        else:
            raise
        return 2
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"fastconv train: {error}", file=sys.stderr)
        return 2


def _main(arguments: argparse.Namespace) -> int:
    import matplotlib  # noqa: F401  before the work, not after it

    import fastconv

    from . import data, nn, training

    epochs = arguments.epochs
    if epochs is None:
        epochs = 30 if arguments.mnist is None else 6
    for name, value, least in (
        ("--epochs", epochs, 1),
        ("--batch-size", arguments.batch_size, 1),
        ("--patience", arguments.patience, 1),
        ("--seed", arguments.seed, 0),
        ("--split-seed", arguments.split_seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} (={value}) must be at least {least}")
    if arguments.mnist is None:
        images = split_digits(arguments.split_seed)
    else:
        images = split_mnist(arguments.mnist, arguments.split_seed)
    side = images.train[0].shape[-1]
    net = network(side, arguments.seed)
    optimizer = nn.AdamW(net.parameters(), lr=arguments.lr)
    steps = epochs * -(-len(images.train[0]) // arguments.batch_size)
    parts = (images.train, images.held_out, images.test)
    counts = ", ".join(
        f"{len(part[0])} {what}" for part, what in zip(parts, ("to train", "held out", "to test"), strict=True)
    )
    print(f"{images.name}: {counts}; {side}x{side} pixels")
    print(
        f"{net.num_parameters()} parameters; {fastconv.get_num_threads()} thread(s), {fastconv.get_isa()}; "
        f"seed {arguments.seed}, split {arguments.split_seed}",
        flush=True,
    )
    begin = time.perf_counter()
    with _progress(epochs) as callback:
        result = training.fit(
            net,
            optimizer,
            images.train,
            images.held_out,
            epochs=epochs,
            batch_size=arguments.batch_size,
            # Not flipped: mirrored digits are none. Distances grow with the image.
            augment=data.Augment(shift=side / 8, rotation=12, zoom=0.12, noise=0.05),
            schedule=nn.OneCycleLR(optimizer, arguments.lr, steps),
            seed=arguments.seed,
            patience=arguments.patience,
            checkpoint=arguments.checkpoint,
            resume=arguments.resume,
            notes={"images": images.name, "split_seed": arguments.split_seed, "epochs": epochs, "lr": arguments.lr},
            callbacks=[callback],
        )
    seconds = time.perf_counter() - begin
    logits = training.predict(net, images.test[0])
    right = int(np.sum(logits.argmax(1) == images.test[1]))
    count = len(logits)
    assert result.best is not None
    why = "" if result.stopped == "epochs" else f", stopped after {len(result.history)}"
    print(f"{seconds:.1f} s; weights of epoch {result.best.number}, which has the least held-out loss{why}")
    print(f"test: {right / count:.2%}, {count - right} of {count} wrong")
    draw(net, images, result, arguments.output)
    print(f"wrote {arguments.checkpoint} and {arguments.output}")
    return 0


# ------------------------------------------------------------------------------------------------------------ progress


def _progress(epochs: int) -> Any:
    """A bar over the batches of all epochs, and a line for each epoch; a context that gives the callback."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from . import training

    class Bar(training.Callback):
        """The callback."""

        def __init__(self) -> None:
            self.progress = Progress(
                TextColumn("epoch {task.fields[epoch]:>2}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self.task = self.progress.add_task("train", total=None, epoch=0, text="")
            self.start = 0

        def __enter__(self) -> Bar:
            self.progress.start()
            return self

        def __exit__(self, *_: object) -> None:
            self.progress.stop()

        def on_epoch_begin(self, number: int, batches: int) -> None:
            self.start = (number - 1) * batches
            self.progress.update(self.task, total=epochs * batches, completed=self.start, epoch=number)

        def on_batch_end(self, number: int, loss: float, accuracy: float) -> None:
            text = f"loss {loss:.4f}, accuracy {accuracy:.1%}"
            self.progress.update(self.task, completed=self.start + number, text=text)

        def on_epoch_end(self, epoch: training.Epoch) -> None:
            assert epoch.held_out_loss is not None
            assert epoch.held_out_accuracy is not None
            self.progress.console.print(
                f"epoch {epoch.number:>2}/{epochs}  rate {epoch.lr:.1e}  loss {epoch.loss:.4f}  "
                f"accuracy {epoch.accuracy:7.2%}  held out: loss {epoch.held_out_loss:.4f}  "
                f"accuracy {epoch.held_out_accuracy:7.2%}",
                highlight=False,
                soft_wrap=True,
            )

    return Bar()


# ------------------------------------------------------------------------------------------------------------- picture


def _tiles(planes: Array, columns: int) -> Array:
    """Planes (K, H, W) in a grid, NaN between them."""
    count, height, width = planes.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, plane in enumerate(planes):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = plane
    return sheet


def _panels(net: Any, images: Array) -> tuple[Array, Array, Array]:
    """The maps after the first activation, those that the global mean reads, and the logits."""
    from . import nn

    first = last = x = images
    net.eval()
    for layer in net:
        if isinstance(layer, nn.GlobalAvgPool2d):
            last = x
        x = layer(x)
        if first is images and isinstance(layer, nn.ReLU):
            first = x
    return first, last, x


def _chosen(logits: Array, labels: Array) -> Array:
    """Images to show: what is wrong, at most four, and a right one of every class."""
    found = logits.argmax(1)
    wrong = np.flatnonzero(found != labels)[:4]
    right = [np.flatnonzero((found == labels) & (labels == label))[:1] for label in range(logits.shape[1])]
    return np.concatenate([*right, wrong])


def draw(net: Any, images: _Images, result: Any, output: Path) -> None:
    """Write the picture: the curves, the first filters, the maps of a digit, and where the classes are seen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from . import training

    pixels, labels = images.test
    logits = training.predict(net, pixels)
    shown = _chosen(logits, labels)
    first, last, scores = _panels(net, pixels[shown])
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    found = scores.argmax(1)
    maps = training.class_activation_map(last, net[-1].weight.data, found)

    figure = Figure(figsize=(15, 13), layout="constrained")
    FigureCanvasAgg(figure)
    right = np.mean(logits.argmax(1) == labels)
    figure.suptitle(f"{images.name}: {right:.2%} of {len(labels)} test images right", fontsize=16)
    above, middle, below = figure.subfigures(3, 1, squeeze=False, height_ratios=[1.1, 0.9, 1])[:, 0]
    _draw_curves(above, result)

    filters, feature = middle.subplots(1, 2)
    weight = net[0].weight.data[:, 0]
    limit = float(np.abs(weight).max())
    columns = 8
    drawn = filters.imshow(_tiles(weight, columns), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    filters.set_title(f"the {len(weight)} filters of the first layer", fontsize=12)
    middle.colorbar(drawn, ax=filters, shrink=0.8)
    drawn = feature.imshow(_tiles(first[0], columns), cmap="magma", interpolation="nearest")
    feature.set_title(f"the {first.shape[1]} maps of a {labels[shown[0]]} after the first activation", fontsize=12)
    middle.colorbar(drawn, ax=feature, shrink=0.8)
    for axis in (filters, feature):
        axis.set_axis_off()

    below.suptitle(
        "What speaks for the class that is found, and against it (class-activation maps over the images)", fontsize=12
    )
    columns = -(-len(shown) // 2)
    axes = below.subplots(2, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    height, width = pixels.shape[-2:]
    limit = max(float(np.abs(maps).max()), 1e-6)
    for i, axis in enumerate(axes[: len(shown)]):
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axis.imshow(pixels[shown[i], 0], cmap="gray_r", vmin=0, vmax=1.4, extent=extent, interpolation="nearest")
        drawn = axis.imshow(
            maps[i], cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.55, extent=extent, interpolation="bilinear"
        )
        is_right = found[i] == labels[shown[i]]
        title = f"{found[i]}: {shares[i, found[i]]:.1%}" if is_right else f"{found[i]}, not {labels[shown[i]]}"
        axis.set_title(title, fontsize=11, color="black" if is_right else "firebrick")
    below.colorbar(drawn, ax=list(axes), shrink=0.8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=90, format="png")


def _draw_curves(figure: Any, result: Any) -> None:
    numbers = [epoch.number for epoch in result.history]
    loss, accuracy = figure.subplots(1, 2)
    for axis, name, unit in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for prefix, label in (("", "training, augmented"), ("held_out_", "held out")):
            values = [unit * getattr(epoch, prefix + name) for epoch in result.history]
            axis.plot(numbers, values, label=label, marker=".", linewidth=1.5)
        axis.axvline(result.best.number, color="grey", linestyle=":", label=f"best: epoch {result.best.number}")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    loss.set_ylabel("loss (logarithmic)")
    loss.set_yscale("log")
    accuracy.set_ylabel("accuracy, %")
