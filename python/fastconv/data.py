"""Pictures to learn from: the handwritten digits of scikit-learn, files in MNIST's format, batches, augmentation.

    images, labels = data.digits()
    held_out, rest = data.stratified_split(labels, 0.2, seed=0)
    for x, y in data.batches(images[rest], labels[rest], 64, rng=rng, augment=data.Augment(rotation=10)):
        ...

Images are (N, C, H, W), float32 in 0..1; labels are (N,), int64. What is random is drawn from the generator that the
caller hands over, in a fixed order: a seed decides every bit.

This file needs NumPy alone, but for `digits`, which reads scikit-learn's data set.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ._args import Array, integer

__all__ = ["Augment", "batches", "digits", "mnist", "read_idx", "stratified_split"]


# ------------------------------------------------------------------------------------------------------------ sources


def digits() -> tuple[Array, Array]:
    """The handwritten digits that ship in scikit-learn: images (1797, 1, 8, 8), float32 in 0..1, and labels (1797,).

    They are scanned forms of 43 people, counted down to 8 x 8 pixels of 17 levels.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository (1998).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('the digits need scikit-learn: pip install "fastconv[train]"') from None
    found = load_digits()
    images = (found.images / 16).astype(np.float32)[:, np.newaxis]
    return np.ascontiguousarray(images), found.target.astype(np.int64)


# The third byte of an IDX file. Numbers of several bytes have the highest one first.
_IDX_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_IDX_RANKS = 8
# What deflate makes of a long run of one byte; a file that claims more does not tell the truth.
_MAX_RATIO = 1032


def read_idx(path: str | os.PathLike[str]) -> Array:
    """Read an array from a file in the IDX format, which MNIST's files have; compressed by gzip or not.

    Nothing is allocated before the size that the header claims is checked against the file's.

    Returns:
        an array of the file's shape and dtype (uint8, int8, int16, int32, float32 or float64), in native byte order.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no IDX file, is cut off or damaged, goes on after its array, or claims more than it can hold.

    Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
    """
    file = Path(path)
    length = file.stat().st_size
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        try:
            if packed:
                with gzip.open(stream) as unpacked:
                    return _read_idx(unpacked, length * _MAX_RATIO)
            return _read_idx(stream, length)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{file}: is cut off or damaged: {error}") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None


def _read_idx(stream: IO[bytes] | gzip.GzipFile, at_most: int) -> Array:
    head = stream.read(4)
    if len(head) < 4:
        raise ValueError(f"the header ends after {len(head)} of 4 bytes")
    if head[:2] != b"\0\0" or head[2] not in _IDX_DTYPES:
        codes = ", ".join(f"{code:02x}" for code in _IDX_DTYPES)
        raise ValueError(f"the magic number (={head.hex()}) must be 0000, one of {codes}, and the number of dimensions")
    dtype, rank = _IDX_DTYPES[head[2]], head[3]
    if not 1 <= rank <= _IDX_RANKS:
        raise ValueError(f"the number of dimensions (={rank}) must be from 1 to {_IDX_RANKS}")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(f"the header ends after {4 + len(sizes)} of {4 + 4 * rank} bytes")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * rank, 4))
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > at_most:
        raise ValueError(f"the shape (={shape}) asks for {wanted} bytes, more than the file can hold")
    array = np.empty(math.prod(shape), dtype)
    target = array.view(np.uint8).data if wanted else memoryview(bytearray())
    done = 0
    while done < wanted:
        part = stream.read(min(wanted - done, 1 << 20))
        if not part:
            raise ValueError(f"the array (shape {shape}) ends after {done} of {wanted} bytes")
        target[done : done + len(part)] = part
        done += len(part)
    if stream.read(1):  # the end, where gzip looks at its checksum
        raise ValueError(f"there are bytes after the array (shape {shape})")
    native: Array = array.reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    return native


def _mnist_file(folder: Path, stem: str, rank: int) -> Path:
    names = [f"{stem}{dot}idx{rank}-ubyte{packed}" for packed in ("", ".gz") for dot in ("-", ".")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"folder (={os.fspath(folder)!r}) must hold one of {', '.join(names)}")


def mnist(folder: str | os.PathLike[str], subset: str = "train") -> tuple[Array, Array]:
    """MNIST, or a set in its form (Fashion-MNIST, KMNIST), from the four IDX files in a folder.

    The files keep their names, train-images-idx3-ubyte and so on, with ".gz" or without.

    Args:
        folder: where they are.
        subset: "train" or "test".

    Returns:
        images (N, 1, H, W), float32 in 0..1, and labels (N,), int64 in 0..9.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: subset is another; a file is damaged, or no set of images and their labels.
    """
    stems = {"train": "train", "test": "t10k"}
    if subset not in stems:
        raise ValueError(f"subset (={subset!r}) must be 'train' or 'test'")
    image_file = _mnist_file(Path(folder), f"{stems[subset]}-images", 3)
    label_file = _mnist_file(Path(folder), f"{stems[subset]}-labels", 1)
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.dtype != np.uint8 or images.ndim != 3 or not images.size:
        raise ValueError(
            f"{image_file}: the array (shape {images.shape}, {images.dtype}) must be images: (N, H, W), uint8"
        )
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{label_file}: the array (shape {labels.shape}, {labels.dtype}) must be ({len(images)},), uint8"
        )
    if labels.max() > 9:
        raise ValueError(f"{label_file}: the labels (up to {labels.max()}) must be from 0 to 9")
    return images[:, np.newaxis] * np.float32(1 / 255), labels.astype(np.int64)


# ------------------------------------------------------------------------------------------------- splits and batches


def stratified_split(labels: npt.ArrayLike, fraction: float, seed: int) -> tuple[Array, Array]:
    """Indices of a random share of every class, and of the rest; both in ascending order.

    Args:
        labels: (N,), integers.
        fraction: above 0 and below 1, of each class, rounded to whole images.
        seed: not negative; the split depends on labels, fraction and seed alone.

    Raises:
        TypeError: labels are no integers.
        ValueError: labels are not one-dimensional, or fraction or seed is out of its range.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels (dtype {array.dtype}) must be integers")
    if array.ndim != 1:
        raise ValueError(f"labels (shape {array.shape}) must have one dimension")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction (={fraction}) must be above 0 and below 1")
    rng = np.random.default_rng(_not_negative("seed", seed))
    chosen = np.zeros(len(array), bool)
    for label in np.unique(array):
        members = np.flatnonzero(array == label)
        chosen[rng.permutation(members)[: round(fraction * len(members))]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def batches(
    images: Array,
    labels: Array,
    size: int,
    *,
    rng: np.random.Generator | None = None,
    augment: Augment | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """Pairs of images and labels, batch by batch.

    Args:
        images: (N, ...), float32 or float64.
        labels: (N, ...).
        size: of a batch; the last one is smaller where size does not divide N.
        rng: draws the order and then, a batch at a time, what augment needs; None keeps the order of the arrays.
        augment: how images are changed; needs rng.
        drop_last: leave out a last batch that is smaller.

    Raises:
        ValueError: the lengths differ, size is below 1, or augment is given without rng.
    """
    if len(images) != len(labels):
        raise ValueError(f"labels (length {len(labels)}) must have the length of images, {len(images)}")
    if integer("size", size) < 1:
        raise ValueError(f"size (={size}) must be at least 1")
    if augment is not None and rng is None:
        raise ValueError("augment needs rng: without it nothing is drawn")
    return _batches(images, labels, size, rng, augment, drop_last)


def _batches(
    images: Array,
    labels: Array,
    size: int,
    rng: np.random.Generator | None,
    augment: Augment | None,
    drop_last: bool,
) -> Iterator[tuple[Array, Array]]:
    count = len(images)
    order = None if rng is None else rng.permutation(count)
    for start in range(0, count - size + 1 if drop_last else count, size):
        index = slice(start, start + size) if order is None else order[start : start + size]
        x = images[index]
        if augment is not None:
            assert rng is not None
            x = augment(x, rng)
        yield x, labels[index]


# ------------------------------------------------------------------------------------------------------- augmentation


def _not_negative(name: str, value: int) -> int:
    number = integer(name, value)
    if number < 0:
        raise ValueError(f"{name} (={value}) must not be negative")
    return number


@dataclass(frozen=True)
class Augment:
    """Random changes of a batch of images, each image's its own: `augment(images, rng)`.

    Flip, rotation, zoom and shift are one affine map of the pixels, read by bilinear interpolation; what comes from
    outside of the image is `fill`. Noise is added afterwards. What is 0 draws nothing. By default nothing is done.

    Args:
        horizontal_flip, vertical_flip: the probability of each, from 0 to 1.
        shift: up to so many pixels in both directions.
        rotation: up to so many degrees, either way, about the centre.
        zoom: by a factor between 1 - zoom and 1 + zoom, below 1.
        noise: the standard deviation of normal noise in each pixel.
        fill: the value outside of the image.

    Raises:
        TypeError: an argument is no number.
        ValueError: it is out of its range.
    """

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    noise: float = 0.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        limits = {"horizontal_flip": 1.0, "vertical_flip": 1.0, "shift": math.inf, "rotation": 180.0, "noise": math.inf}
        for name in ("horizontal_flip", "vertical_flip", "shift", "rotation", "zoom", "noise", "fill"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
                raise TypeError(f"{name} (={value!r}) must be a number")
            if not math.isfinite(value):
                raise ValueError(f"{name} (={value}) must be finite")
            if name == "zoom" and not 0 <= value < 1:
                raise ValueError(f"zoom (={value}) must be from 0 to below 1")
            if name in limits and not 0 <= value <= limits[name]:
                bound = "must not be negative" if limits[name] == math.inf else f"must be from 0 to {limits[name]:g}"
                raise ValueError(f"{name} (={value}) {bound}")

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Changed copies of images (N, C, H, W), float32 or float64, of the same shape and dtype.

        Raises:
            TypeError: images are of another dtype, or rng is no generator.
            ValueError: they have another number of dimensions.
        """
        if not isinstance(images, np.ndarray) or images.dtype not in (np.float32, np.float64):
            kind = f"dtype {images.dtype}" if isinstance(images, np.ndarray) else f"of type {type(images).__name__}"
            raise TypeError(f"images ({kind}) must be a numpy.ndarray of float32 or float64")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng (of type {type(rng).__name__}) must be a numpy.random.Generator")
        if images.ndim != 4:
            raise ValueError(f"images (shape {images.shape}) must have 4 dimensions: (N, C, H, W)")
        count = len(images)

        def between(limit: float) -> Array:
            return rng.uniform(-limit, limit, count) if limit else np.zeros(count)

        def sign(probability: float) -> Array:
            return np.where(rng.random(count) < probability, -1.0, 1.0) if probability else np.ones(count)

        mirror_x, mirror_y = sign(self.horizontal_flip), sign(self.vertical_flip)
        shift_y, shift_x = between(self.shift), between(self.shift)
        angle, scale = np.deg2rad(between(self.rotation)), 1 / (1 + between(self.zoom))
        if any((self.horizontal_flip, self.vertical_flip, self.shift, self.rotation, self.zoom)):
            cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
            # From a pixel's place to that where its value is read: shifted back, turned, scaled, mirrored.
            matrix = ((cosine * mirror_y, -sine * mirror_y), (sine * mirror_x, cosine * mirror_x))
            y = _affine(images, matrix, (shift_y, shift_x), self.fill)
        else:
            y = images.copy()
        if self.noise:
            y += rng.standard_normal(y.shape, np.float32) * np.float32(self.noise)
        return y


def _affine(images: Array, matrix: Sequence[Sequence[Array]], shift: tuple[Array, Array], fill: float) -> Array:
    """Read images at matrix * (place - shift), places being counted from the centre, by bilinear interpolation."""
    count, channels, height, width = images.shape
    # A frame of fill: every neighbour of a place that is clipped to it exists.
    framed = np.full((count, channels, height + 2, width + 2), fill, images.dtype)
    framed[:, :, 1:-1, 1:-1] = images
    place_y = np.arange(height).reshape(1, -1, 1) - (height - 1) / 2 - shift[0].reshape(-1, 1, 1)
    place_x = np.arange(width).reshape(1, 1, -1) - (width - 1) / 2 - shift[1].reshape(-1, 1, 1)
    index, share = [], []
    for row, size in zip(matrix, (height, width), strict=True):
        read = row[0].reshape(-1, 1, 1) * place_y + row[1].reshape(-1, 1, 1) * place_x
        read = np.clip(read + (size - 1) / 2 + 1, 0, size + 1)  # in the frame
        low = np.minimum(read.astype(np.intp), size)
        index.append(low)
        share.append((read - low).astype(images.dtype))
    corner = index[0] * (width + 2) + index[1]
    steps = np.array([0, 1, width + 2, width + 3])
    four = (corner[:, np.newaxis, np.newaxis] + steps.reshape(1, 1, -1, 1, 1)).reshape(count, 1, -1)
    value = np.take_along_axis(framed.reshape(count, channels, -1), four, 2).reshape(count, channels, 4, height, width)
    down, right = share[0][:, np.newaxis], share[1][:, np.newaxis]
    above = value[:, :, 0] + right * (value[:, :, 1] - value[:, :, 0])
    below = value[:, :, 2] + right * (value[:, :, 3] - value[:, :, 2])
    y: Array = above + down * (below - above)
    return y
