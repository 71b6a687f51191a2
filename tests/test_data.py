"""Files of images, splits, batches and augmentation."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import data

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx(array: np.ndarray, dtype: str = "u1") -> bytes:
    """The bytes of an IDX file."""
    head = struct.pack(">BBBB", 0, 0, CODES[dtype], array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(dtype).tobytes()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


class Fixed(np.random.Generator):
    """Draws what it is told to: `uniform` gives share times the upper limit."""

    def __init__(self, share: float | np.ndarray = 1.0) -> None:
        super().__init__(np.random.PCG64(0))
        self.share = share

    def uniform(self, low: Any, high: Any, size: Any) -> np.ndarray:  # type: ignore[override]
        return np.broadcast_to(np.asarray(high * self.share), (size,)).astype(np.float64)


# ----------------------------------------------------------------------------------------------------------- IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dtype", CODES)
def test_idx_reads_every_type(dtype: str, suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.integers(0, 100, (3, 4, 5)).astype(dtype)
    found = data.read_idx(written(tmp_path / f"file{suffix}", idx(array, dtype)))
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)
    found[:] = 0  # the caller's own


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (0,), (4, 0, 2), (1,) * 8])
def test_idx_reads_every_rank(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(data.read_idx(written(tmp_path / f"file{suffix}", idx(array))), array)


HUGE = struct.pack(">BBBB3I", 0, 0, 0x0E, 3, *[2**32 - 1] * 3)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "the header ends after 0 of 4 bytes"),
        (b"\0\0\x08", "the header ends after 3 of 4 bytes"),
        (b"\0\1\x08\1\0\0\0\1\7", "the magic number (=00010801) must be 0000, one of 08, 09, 0b"),
        (b"\0\0\x0a\1\0\0\0\1\7", "the magic number (=00000a01) must be 0000, one of 08, 09, 0b"),
        (b"\x89PNG\r\n\x1a\n", "the magic number (=89504e47) must be"),
        (b"\0\0\x08\0\7", "the number of dimensions (=0) must be from 1 to 8"),
        (b"\0\0\x08\x09" + bytes(40), "the number of dimensions (=9) must be from 1 to 8"),
        (b"\0\0\x08\2\0\0\0\1\0\0\0", "the header ends after 11 of 12 bytes"),
        (idx(np.ones((2, 3))) + b"\0", "there are bytes after the array (shape (2, 3))"),
        (HUGE, f"asks for {8 * (2**32 - 1) ** 3} bytes, more than the file can hold"),
        (HUGE + bytes(1000), "more than the file can hold"),
    ],
)
def test_idx_refuses(content: bytes, rule: str, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"file{suffix}", content)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        data.read_idx(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert rule in str(refused.value)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_cut_off_anywhere(packed: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    whole = idx(rng.integers(0, 256, (3, 5, 4)))
    content = gzip.compress(whole, mtime=0) if packed else whole
    path = tmp_path / "images"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="images: ") as refused:
            data.read_idx(path)
        assert any(word in str(refused.value) for word in ("ends after", "cut off", "can hold")), refused.value
    path.write_bytes(content)
    assert data.read_idx(path).shape == (3, 5, 4)


def test_idx_with_a_wrong_byte(tmp_path: Path, rng: np.random.Generator) -> None:
    """The checksum of gzip finds it, or it is one of the header's that says nothing about the array."""
    array = rng.integers(0, 256, (3, 5, 4)).astype(np.uint8)
    content = gzip.compress(idx(array), mtime=0)
    path = tmp_path / "images.gz"
    refused = 0
    for place in range(2, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            found = data.read_idx(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            np.testing.assert_array_equal(found, array)
    assert refused >= len(content) - 10


def test_idx_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        data.read_idx(tmp_path / "none")


def mnist_folder(folder: Path, **changes: bytes) -> Path:
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4) * 3
    files = {
        "train-images-idx3-ubyte": idx(images),
        "train-labels-idx1-ubyte": idx(np.array([0, 9, 4, 4, 1])),
        "t10k-images.idx3-ubyte.gz": idx(images[:2]),
        "t10k-labels-idx1-ubyte.gz": idx(np.array([3, 2])),
    }
    for name, content in (files | changes).items():
        if content:
            written(folder / name, content)
    return folder


def test_mnist(tmp_path: Path) -> None:
    folder = mnist_folder(tmp_path)
    images, labels = data.mnist(folder)
    assert (images.shape, images.dtype, labels.dtype) == ((5, 1, 4, 4), np.float32, np.int64)
    np.testing.assert_array_equal(images.ravel(), (np.arange(80) * 3).astype(np.float32) * np.float32(1 / 255))
    assert labels.tolist() == [0, 9, 4, 4, 1]
    images, labels = data.mnist(str(folder), "test")
    assert (images.shape, labels.tolist()) == ((2, 1, 4, 4), [3, 2])


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("train-images-idx3-ubyte", b"", FileNotFoundError, "must hold one of train-images-idx3-ubyte, train-images."),
        ("train-images-idx3-ubyte", idx(np.zeros((5, 4))), ValueError, "must be images: (N, H, W), uint8"),
        ("train-images-idx3-ubyte", idx(np.zeros((5, 4, 4)), "i1"), ValueError, "must be images: (N, H, W), uint8"),
        ("train-images-idx3-ubyte", idx(np.zeros((0, 4, 4))), ValueError, "must be images: (N, H, W), uint8"),
        ("train-labels-idx1-ubyte", idx(np.zeros(4)), ValueError, "(shape (4,), uint8) must be (5,), uint8"),
        ("train-labels-idx1-ubyte", idx(np.zeros(5), ">i4"), ValueError, "(shape (5,), int32) must be (5,), uint8"),
        ("train-labels-idx1-ubyte", idx(np.full(5, 10)), ValueError, "the labels (up to 10) must be from 0 to 9"),
    ],
)
def test_mnist_refuses(name: str, content: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    folder = mnist_folder(tmp_path, **{name: content})
    with pytest.raises(error) as refused:
        data.mnist(folder)
    assert message in str(refused.value)
    assert str(folder) in str(refused.value)


def test_mnist_has_two_subsets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"subset \(='valid'\) must be 'train' or 'test'"):
        data.mnist(tmp_path, "valid")


def test_digits() -> None:
    pytest.importorskip("sklearn")
    images, labels = data.digits()
    assert (images.shape, images.dtype) == ((1797, 1, 8, 8), np.float32)
    assert (labels.shape, labels.dtype) == ((1797,), np.int64)
    assert np.unique(images).tolist() == [level / 16 for level in range(17)]
    assert set(labels.tolist()) == set(range(10))
    assert images.flags.c_contiguous


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "fastconv\[train\]"'):
        data.digits()


# -------------------------------------------------------------------------------------------------- splits and batches


@pytest.mark.parametrize("fraction", [0.2, 0.125, 0.5])
def test_split_is_stratified(fraction: float, rng: np.random.Generator) -> None:
    labels = rng.choice([0, 1, 5, 9], 203, p=[0.5, 0.3, 0.15, 0.05])
    one, other = data.stratified_split(labels, fraction, 3)
    np.testing.assert_array_equal(np.sort(np.concatenate([one, other])), np.arange(203))
    for part in (one, other):
        assert np.all(np.diff(part) > 0)
    for label in np.unique(labels):
        assert np.sum(labels[one] == label) == round(fraction * np.sum(labels == label))


def test_split_of_the_digits() -> None:
    pytest.importorskip("sklearn")
    _, labels = data.digits()
    one, _ = data.stratified_split(labels, 0.2, 0)
    assert np.abs(np.bincount(labels[one]) - 0.2 * np.bincount(labels)).max() <= 0.5


def test_split_is_seeded(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 60)
    splits = [data.stratified_split(labels, 0.3, seed)[0].tolist() for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert len({tuple(split) for split in splits}) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.5, 1.5], 0.2, 0), TypeError, r"labels \(dtype float64\) must be integers"),
        (([[0, 1]], 0.2, 0), ValueError, r"labels \(shape \(1, 2\)\) must have one dimension"),
        (([0, 1], 0, 0), ValueError, r"fraction \(=0\) must be above 0 and below 1"),
        (([0, 1], 1.0, 0), ValueError, r"fraction \(=1.0\) must be above 0 and below 1"),
        (([0, 1], float("nan"), 0), ValueError, r"fraction \(=nan\) must be"),
        (([0, 1], 0.5, -1), ValueError, r"seed \(=-1\) must not be negative"),
    ],
)
def test_split_refuses(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.stratified_split(*arguments)


def numbered(count: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Images whose pixels are their own number."""
    labels = np.arange(count)
    images = np.broadcast_to(labels.reshape(-1, 1, 1, 1), (count, *(shape or (1, 2, 2)))).astype(np.float32)
    return images, labels


def test_batches_in_order() -> None:
    images, labels = numbered(10)
    pairs = list(data.batches(images, labels, 4))
    assert [y.tolist() for _, y in pairs] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in pairs]), images)
    assert [len(y) for _, y in data.batches(images, labels, 4, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in data.batches(images, labels, 5, drop_last=True)] == [5, 5]
    assert list(data.batches(images, labels, 11, drop_last=True)) == []


def test_batches_in_a_drawn_order() -> None:
    images, labels = numbered(23)

    def order(seed: int) -> list[int]:
        found = []
        for x, y in data.batches(images, labels, 5, rng=np.random.default_rng(seed)):
            np.testing.assert_array_equal(x[:, 0, 0, 0], y)
            found += y.tolist()
        return found

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)) == list(range(23)) != order(0)


def test_batches_are_augmented() -> None:
    """The order is drawn first, and then what each batch needs: one generator serves all of it."""
    images, labels = numbered(9, 2, 6, 6)
    augment = data.Augment(shift=2, rotation=20, noise=0.1)
    rng = np.random.default_rng(5)
    order = rng.permutation(9)
    for start, (x, y) in zip(
        (0, 4, 8), data.batches(images, labels, 4, rng=np.random.default_rng(5), augment=augment), strict=True
    ):
        part = order[start : start + 4]
        np.testing.assert_array_equal(y, part)
        np.testing.assert_array_equal(x, augment(images[part], rng))


def test_batches_refuse_at_once() -> None:
    images, labels = numbered(4)
    with pytest.raises(ValueError, match=r"labels \(length 3\) must have the length of images, 4"):
        data.batches(images, labels[:3], 2)
    with pytest.raises(ValueError, match=r"size \(=0\) must be at least 1"):
        data.batches(images, labels, 0)
    with pytest.raises(ValueError, match="augment needs rng"):
        data.batches(images, labels, 2, augment=data.Augment())


# ------------------------------------------------------------------------------------------------------- augmentation

ALL = data.Augment(horizontal_flip=0.5, vertical_flip=0.3, shift=2, rotation=30, zoom=0.3, noise=0.1, fill=0.25)


def photos(rng: np.random.Generator, dtype: Any = np.float32, shape: tuple[int, ...] = (6, 2, 7, 10)) -> np.ndarray:
    return rng.random(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_done_by_default(dtype: Any, rng: np.random.Generator) -> None:
    images = photos(rng, dtype)
    drawn = np.random.default_rng(0)
    before = drawn.bit_generator.state
    y = data.Augment(fill=3)(images, drawn)
    assert y.dtype == dtype
    assert not np.shares_memory(y, images)
    np.testing.assert_array_equal(y.view(np.uint8), images.view(np.uint8))
    assert drawn.bit_generator.state == before


@pytest.mark.parametrize("name", ["shift", "rotation", "zoom"])
@pytest.mark.parametrize("size", [(7, 10), (8, 8), (1, 5)])
def test_the_identity_gives_the_bits(name: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    """By the interpolation: a draw of 0 is no short cut."""
    images = photos(rng, shape=(3, 2, *size))
    np.testing.assert_array_equal(data.Augment(**{name: 0.5}, fill=9)(images, Fixed(0.0)), images)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "axis"), [("horizontal_flip", 3), ("vertical_flip", 2)])
@pytest.mark.parametrize("size", [(7, 10), (8, 9)])
def test_flips_are_exact(name: str, axis: int, size: tuple[int, int], dtype: Any, rng: np.random.Generator) -> None:
    images = photos(rng, dtype, (4, 3, *size))
    flip = data.Augment(**{name: 1.0})
    once = flip(images, rng)
    np.testing.assert_array_equal(once, np.flip(images, axis))
    np.testing.assert_array_equal(flip(once, rng), images)


def test_flips_have_their_probability(rng: np.random.Generator) -> None:
    images = np.broadcast_to(photos(rng, shape=(1, 1, 2, 4)), (4000, 1, 2, 4))
    flipped = np.any(data.Augment(horizontal_flip=0.3)(images, rng) != images, axis=(1, 2, 3))
    assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


@pytest.mark.parametrize("pixels", [-9, -2, -1, 1, 3, 20])
def test_whole_shifts_are_exact(pixels: int, rng: np.random.Generator) -> None:
    images = photos(rng, shape=(3, 2, 7, 10))
    wanted = np.full_like(images, 0.5)
    for y in range(7):
        for x in range(10):
            if 0 <= y - pixels < 7 and 0 <= x - pixels < 10:
                wanted[:, :, y, x] = images[:, :, y - pixels, x - pixels]
    augment = data.Augment(shift=abs(pixels), fill=0.5)
    np.testing.assert_array_equal(augment(images, Fixed(np.sign(pixels))), wanted)


@pytest.mark.parametrize(("degrees", "turns"), [(90, -1), (180, 2), (-90, 1)])
def test_quarter_turns(degrees: int, turns: int, rng: np.random.Generator) -> None:
    """A positive draw turns clockwise, as rows are counted downwards; either way is as likely."""
    images = photos(rng, np.float64, (2, 2, 6, 6))
    y = data.Augment(rotation=abs(degrees))(images, Fixed(np.sign(degrees)))
    np.testing.assert_allclose(y, np.rot90(images, turns, (2, 3)), atol=1e-14)


def per_pixel(images: np.ndarray, augment: data.Augment, rng: np.random.Generator) -> np.ndarray:
    """The definition, in loops: flip, zoom, turn and shift of a place, and what four pixels say of it."""
    n, _, height, width = images.shape

    def between(limit: float) -> np.ndarray:
        return rng.uniform(-limit, limit, n)

    flip_x = np.where(rng.random(n) < augment.horizontal_flip, -1, 1)
    flip_y = np.where(rng.random(n) < augment.vertical_flip, -1, 1)
    shift_y, shift_x = between(augment.shift), between(augment.shift)
    angle, zoom = np.deg2rad(between(augment.rotation)), 1 + between(augment.zoom)
    y = np.empty_like(images)
    for i in range(n):
        back = np.array([[np.cos(angle[i]), -np.sin(angle[i])], [np.sin(angle[i]), np.cos(angle[i])]])
        for row in range(height):
            for column in range(width):
                place = np.array([row - (height - 1) / 2 - shift_y[i], column - (width - 1) / 2 - shift_x[i]])
                v, u = [flip_y[i], flip_x[i]] * (back @ place) / zoom[i] + [(height - 1) / 2, (width - 1) / 2]
                total = 0.0
                for a in (int(np.floor(v)), int(np.floor(v)) + 1):
                    for b in (int(np.floor(u)), int(np.floor(u)) + 1):
                        inside = 0 <= a < height and 0 <= b < width
                        value = images[i, :, a, b] if inside else augment.fill
                        total = total + max(0, 1 - abs(v - a)) * max(0, 1 - abs(u - b)) * value
                y[i, :, row, column] = total
    return y + rng.standard_normal(y.shape, np.float32) * np.float32(augment.noise)


def test_against_loops(rng: np.random.Generator) -> None:
    images = photos(rng, np.float64)
    seeds = [np.random.default_rng(7) for _ in range(2)]
    np.testing.assert_allclose(ALL(images, seeds[0]), per_pixel(images, ALL, seeds[1]), atol=1e-12)
    assert seeds[0].bit_generator.state == seeds[1].bit_generator.state


def test_augmentation_is_seeded(rng: np.random.Generator) -> None:
    images = np.broadcast_to(photos(rng, shape=(1, 2, 7, 10)), (6, 2, 7, 10))
    before = images.copy()
    results = [ALL(images, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(results[0], results[1])
    assert np.all(np.any(results[0] != results[2], axis=(1, 2, 3)))
    np.testing.assert_array_equal(images, before)
    # Each image of the batch has draws of its own.
    for i in range(6):
        for j in range(i):
            assert not np.array_equal(results[0][i], results[0][j])


def test_augmentation_reads_any_strides(rng: np.random.Generator) -> None:
    images = photos(rng, shape=(4, 3, 6, 5))
    last = images.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    results = [ALL(x, np.random.default_rng(0)) for x in (images, last)]
    np.testing.assert_array_equal(*results)


def blobs(count: int, row: float, column: float, size: int = 41) -> np.ndarray:
    """A spot (row, column) from the centre of each image."""
    place = np.arange(size) - (size - 1) / 2
    spot = np.exp(-((place[:, np.newaxis] - row) ** 2 + (place - column) ** 2) / 4)
    return np.broadcast_to(spot, (count, 1, size, size))


def centres(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    mass = images.sum(axis=(1, 2, 3))
    return (images.sum(axis=(1, 3)) @ place) / mass, (images.sum(axis=(1, 2)) @ place) / mass


def check_range(values: np.ndarray, limit: float, slack: float) -> None:
    """All of it, both ends, and no more."""
    assert np.abs(values).max() <= limit + slack
    assert values.min() < -0.9 * limit
    assert values.max() > 0.9 * limit
    assert abs(values.mean()) < 0.3 * limit


def test_range_of_rotation(rng: np.random.Generator) -> None:
    row, column = centres(data.Augment(rotation=25)(blobs(200, 0.0, 12.0), rng))
    check_range(np.rad2deg(np.arctan2(-row, column)), 25, 0.3)
    np.testing.assert_allclose(np.hypot(row, column), 12, atol=0.1)


def test_range_of_shift(rng: np.random.Generator) -> None:
    row, column = centres(data.Augment(shift=6)(blobs(200, 0.0, 0.0), rng))
    check_range(row, 6, 0.1)
    check_range(column, 6, 0.1)
    assert abs(np.corrcoef(row, column)[0, 1]) < 0.3


def test_range_of_zoom(rng: np.random.Generator) -> None:
    row, column = centres(data.Augment(zoom=0.3)(blobs(200, 0.0, 10.0), rng))
    check_range(column / 10 - 1, 0.3, 0.02)
    np.testing.assert_allclose(row, 0, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_outside_is_fill(value: float, rng: np.random.Generator) -> None:
    """An image of fill alone stays so to the bit; with another fill its edge does not."""
    images = np.full((20, 1, 8, 8), value, np.float32)
    changes = {"horizontal_flip": 0.5, "shift": 3, "rotation": 90, "zoom": 0.5}
    np.testing.assert_array_equal(data.Augment(**changes, fill=float(images[0, 0, 0, 0]))(images, rng), images)
    other = data.Augment(**changes, fill=5)(images, rng)
    assert other.max() == 5
    assert np.all(other >= np.float32(value))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise(dtype: Any, rng: np.random.Generator) -> None:
    images = photos(rng, dtype, (50, 1, 20, 20))
    noise = data.Augment(noise=0.2)(images, rng).astype(np.float64) - images
    assert abs(noise.std() - 0.2) < 0.2 * 4 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 0.2 * 4 / np.sqrt(noise.size)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"horizontal_flip": 1.5}, ValueError, r"horizontal_flip \(=1.5\) must be from 0 to 1"),
        ({"vertical_flip": -0.1}, ValueError, r"vertical_flip \(=-0.1\) must be from 0 to 1"),
        ({"shift": -1}, ValueError, r"shift \(=-1\) must not be negative"),
        ({"rotation": 181}, ValueError, r"rotation \(=181\) must be from 0 to 180"),
        ({"zoom": 1.0}, ValueError, r"zoom \(=1.0\) must be from 0 to below 1"),
        ({"noise": float("nan")}, ValueError, r"noise \(=nan\) must be finite"),
        ({"fill": float("inf")}, ValueError, r"fill \(=inf\) must be finite"),
        ({"shift": "2"}, TypeError, r"shift \(='2'\) must be a number"),
        ({"horizontal_flip": True}, TypeError, r"horizontal_flip \(=True\) must be a number"),
    ],
)
def test_augment_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.Augment(**options)


def test_augment_refuses_images(rng: np.random.Generator) -> None:
    augment = data.Augment(shift=1)
    with pytest.raises(TypeError, match=r"images \(dtype uint8\) must be"):
        augment(np.zeros((1, 1, 2, 2), np.uint8), rng)
    with pytest.raises(TypeError, match=r"images \(of type list\) must be"):
        augment([[[[0.0]]]], rng)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"rng \(of type int\) must be"):
        augment(np.zeros((1, 1, 2, 2)), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images \(shape \(2, 2\)\) must have 4 dimensions"):
        augment(np.zeros((2, 2)), rng)
