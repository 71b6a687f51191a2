"""Measured choices: files that name the fastest algorithm of a shape, and what they are made from.

`algorithm="auto"` chooses by a model of costs, which knows the machine's caches and instruction set and is the same on
every machine that has these. `python -m fastconv tune` measures instead, and writes a file. It is used where it is
named and nowhere else: by `load_tune_file`, or by FASTCONV_TUNE_FILE when fastconv is imported. An algorithm that is
named in a call goes before the file, the file before the model.

A line is a product: what a layer comes down to, for one image. A strided gradient has several. Neither batch nor
threads nor plan or plain call are part of it, so that results stay the same to the bit for any of these while a file is
loaded; the line says what it was measured with. Products that the file does not hold, and lines of other CPUs, leave
the choice to the model, and so do lines that name what the product cannot take or, for the sake of its error, may not:

    # fastconv tune file 1
    AMD EPYC 25/17/1 | avx512 float32 | 64>64 k3x3 @56x56 NHWC | winograd4 | t1 rows 1021/1040 winograd4 342/361

are CPU (name, family/model/stepping), instruction set and dtype; channels in and out of a group, kernel, then, where
they are not 1, s stride, d dilation and g groups, the output's size and the memory order; the way; the threads and
microseconds of a plan and of a plain call by each way. "rows" and "columns" are direct sums by pixel rows or columns,
of a depthwise layer by lanes of channels or of pixels. Lines are sorted, so that git can merge them; where `tune`
measures a product again, its line replaces the old one.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import _core

__all__ = [
    "Candidate",
    "Entry",
    "Product",
    "ProductChoice",
    "TuneFileError",
    "clear_tune_file",
    "cpu",
    "forced",
    "load_tune_file",
    "model_alone",
    "products",
    "read_tune_file",
    "tune_file",
    "write_tune_file",
]

HEADER = "# fastconv tune file 1"
WAYS = ("rows", "columns", "fft", "winograd2", "winograd4")
_MAX_BYTES = 16 << 20
_MAX_LINE = 1000
_MAX_SIZE = 1 << 40

Three = tuple[int, int, int]


class TuneFileError(ValueError):
    """A tune file that is refused as a whole; the message names the file, the line and the rule."""

    def __init__(self, path: object, line: int, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}")
        self.line = line


class Product(NamedTuple):
    """What a choice is keyed by, besides the CPU. Sizes have three axes; missing ones are 1."""

    isa: str
    dtype: str
    channels_last: bool
    groups: int
    c: int
    k: int
    kernel: Three
    size: Three
    stride: Three
    dilation: Three

    def __str__(self) -> str:
        flat = all(v[0] == 1 for v in (self.kernel, self.size, self.stride, self.dilation))
        parts = [f"{self.c}>{self.k}", f"k{_by(self.kernel, flat)}"]
        parts += [
            f"{letter}{_by(v, flat)}" for letter, v in (("s", self.stride), ("d", self.dilation)) if set(v) != {1}
        ]
        parts += [f"g{self.groups}"] if self.groups != 1 else []
        return " ".join([*parts, f"@{_by(self.size, flat)}", "NHWC" if self.channels_last else "NCHW"])


class Candidate(NamedTuple):
    """A way to compute a product: what the model says it costs, or why it is not admitted."""

    way: str
    cost: float
    """In steps of a vector's multiply-add."""
    obstacle: str | None


class ProductChoice(NamedTuple):
    """A product of a call, the way that the call takes, and all candidates."""

    product: Product
    way: str
    tuned: bool
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Entry:
    """A line of a tune file."""

    cpu: str
    product: Product
    way: str
    threads: int
    times: Mapping[str, tuple[float, float]]
    """Microseconds of a plan and of a plain call, by way."""

    @property
    def key(self) -> tuple[str, Product]:
        """What a file holds once."""
        return self.cpu, self.product

    def __str__(self) -> str:
        times = " ".join(f"{way} {_digits(plan)}/{_digits(plain)}" for way, (plan, plain) in sorted(self.times.items()))
        what = f"{self.product.isa} {self.product.dtype}"
        return f"{self.cpu} | {what} | {self.product} | {self.way} | t{self.threads} {times}"


def _by(values: Three, flat: bool) -> str:
    return "x".join(str(v) for v in values[1 if flat else 0 :])


def _digits(microseconds: float) -> str:
    return f"{microseconds:.3g}" if microseconds < 100 else f"{microseconds:.0f}"


# ------------------------------------------------------------------------------------------------------------- files

_PRODUCT = re.compile(
    r"(\d{1,13})>(\d{1,13}) k([\dx]+)(?: s([\dx]+))?(?: d([\dx]+))?(?: g(\d{1,13}))? @([\dx]+) (NCHW|NHWC)"
)
_TIMES = re.compile(rf"t(\d{{1,5}})((?: (?:{'|'.join(WAYS)}) \d{{1,12}}(?:\.\d{{1,6}})?/\d{{1,12}}(?:\.\d{{1,6}})?)+)")


def _axes(text: str | None, count: int) -> Three:
    """Sizes with `count` axes as three."""
    values = [1] * count if text is None else [int(part) if part.isdigit() else 0 for part in text.split("x")]
    if len(values) != count or not all(1 <= v <= _MAX_SIZE for v in values):
        raise ValueError(f"the sizes {text!r} must be {count} positive numbers with x between")
    d, h, w = ([1] * (3 - count) + values)[-3:]
    return d, h, w


def _product(isa: str, dtype: str, text: str) -> Product:
    found = _PRODUCT.fullmatch(text)
    if not found:
        raise ValueError(f"the product {text!r} must read like '64>64 k3x3 s1x1 @56x56 NCHW'")
    c, k, kernel, stride, dilation, groups, size, order = found.groups()
    count = kernel.count("x") + 1
    if count not in (2, 3):
        raise ValueError(f"the kernel {kernel!r} must have two or three sizes")
    product = Product(
        isa,
        dtype,
        order == "NHWC",
        int(groups or 1),
        int(c),
        int(k),
        _axes(kernel, count),
        _axes(size, count),
        _axes(stride, count),
        _axes(dilation, count),
    )
    if not all(1 <= v <= _MAX_SIZE for v in (product.groups, product.c, product.k)):
        raise ValueError(f"the channels and groups of {text!r} must be positive")
    if str(product) != text:
        # One product has one name, or a file could hold it twice.
        raise ValueError(f"the product {text!r} must be written as {str(product)!r}")
    return product


def _entry(line: str) -> Entry:
    parts = line.split(" | ")
    if len(parts) != 5:
        raise ValueError(f"must have 5 fields with ' | ' between, and has {len(parts)}")
    cpu_name, what, text, way, measured = parts
    if not cpu_name.strip():
        raise ValueError("must begin with the CPU")
    isa, _, dtype = what.partition(" ")
    if isa not in ("portable", "avx2", "avx512") or dtype not in ("float32", "float64"):
        raise ValueError(f"the second field (={what!r}) must be an instruction set and a dtype")
    product = _product(isa, dtype, text)
    if way not in WAYS:
        raise ValueError(f"the way (={way!r}) must be one of {', '.join(WAYS)}")
    found = _TIMES.fullmatch(measured)
    if not found:
        raise ValueError(f"the times (={measured!r}) must read like 't1 rows 102/104 winograd4 34/36'")
    words = found[2].split()
    times: dict[str, tuple[float, float]] = {}
    for name, pair in zip(words[::2], words[1::2], strict=True):
        plan, plain = pair.split("/")
        if name in times:
            raise ValueError(f"the times (={measured!r}) must name a way once")
        times[name] = float(plan), float(plain)
    if way not in times:
        raise ValueError(f"the way (={way!r}) must be among those measured: {', '.join(times)}")
    return Entry(cpu_name, product, way, int(found[1]), times)


def read_tune_file(path: str | os.PathLike[str]) -> list[Entry]:
    """The lines of a tune file, in its order.

    Raises:
        TuneFileError: it is no tune file, or a line is wrong, cut off, there twice, or left from a merge.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise TuneFileError(path, 1, f"the file must be at most {_MAX_BYTES >> 20} MB")
    lines = data.split(b"\n")
    if lines[0] != HEADER.encode():
        raise TuneFileError(path, 1, f"the file must begin with the line {HEADER!r}")
    if lines[-1]:
        raise TuneFileError(path, len(lines), "the last line must end in a newline: the file is cut off")
    entries: dict[tuple[str, Product], tuple[Entry, int]] = {}
    for number, raw in enumerate(lines[1:-1], 2):
        if raw.startswith(b"#") or not raw:
            continue
        if raw.startswith((b"<<<<<<<", b"=======", b">>>>>>>", b"|||||||")):
            raise TuneFileError(path, number, "a merge has left a conflict here: keep one of the lines")
        try:
            if len(raw) > _MAX_LINE:
                raise ValueError(f"must have at most {_MAX_LINE} characters, and has {len(raw)}")
            line = raw.decode("ascii")
            if not line.isprintable():
                raise ValueError("must hold printable characters alone")
            entry = _entry(line)
        except UnicodeDecodeError:
            raise TuneFileError(path, number, "must hold ASCII characters alone") from None
        except ValueError as error:
            raise TuneFileError(path, number, str(error)) from None
        if entry.key in entries:
            raise TuneFileError(path, number, f"{entry.product} is on line {entries[entry.key][1]} already")
        entries[entry.key] = entry, number
    return [entry for entry, _ in entries.values()]


def write_tune_file(path: str | os.PathLike[str], entries: Iterable[Entry]) -> None:
    """Write entries, sorted; of those with one key the last one. A reader finds the old file or the new one."""
    unique = {entry.key: entry for entry in entries}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("\n".join([HEADER, *sorted(map(str, unique.values()))]) + "\n", encoding="ascii")
    temporary.replace(path)


# ------------------------------------------------------------------------------------------------------------ in use


class _InUse:
    """Which table calls take: that of the scope entered last that is still open, of any thread, else the file's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded = 0
        self._scopes: list[tuple[object, int]] = []
        self.path: str | None = None
        # A thread that holds the lock while another one forks is not there in the child.
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def _apply(self) -> None:
        _core.use_tune_table(self._scopes[-1][1] if self._scopes else self._loaded)

    def load(self, table: int, path: str | None) -> None:
        with self._lock:
            self._loaded, self.path = table, path
            self._apply()

    @contextmanager
    def scope(self, table: int) -> Iterator[None]:
        token = object()
        with self._lock:
            self._scopes.append((token, table))
            self._apply()
        try:
            yield
        finally:
            with self._lock:
                self._scopes = [scope for scope in self._scopes if scope[0] is not token]
                self._apply()


_in_use = _InUse()


@functools.cache
def cpu() -> str:
    """The CPU as files name it: its name and, where the system tells, family/model/stepping."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = [re.search(rf"^{name}\s*:\s*(\d+)\s*$", text, re.MULTILINE) for name in ("cpu family", "model", "stepping")]
    numbers = "/".join(match[1] for match in found if match)
    name = "".join(ch for ch in _core.cpu_name() if ch.isascii() and ch.isprintable()).replace("|", "/").strip()
    return f"{name or 'unknown'} {numbers}".strip()


def load_tune_file(path: str | os.PathLike[str]) -> int:
    """Let a tune file choose, in place of the model, for the calls and plans to come, in the whole process.

    Plans keep what they were made with. A second file takes the place of the first. While a scope (`forced`,
    `model_alone`) is open, in any thread, that goes before the file.

    Returns:
        How many of its lines belong to this CPU.

    Raises:
        TuneFileError: the file is refused; nothing has changed.
        OSError: it cannot be read.
    """
    mine = [(entry.product, entry.way) for entry in read_tune_file(path) if entry.cpu == cpu()]
    _in_use.load(_core.make_tune_table(mine), os.fspath(path))
    return len(mine)


def clear_tune_file() -> None:
    """Let the model choose again."""
    _in_use.load(0, None)


def tune_file() -> str | None:
    """The path of the file that is in use, as it was named; None where there is none."""
    return _in_use.path


def _load_named() -> None:
    """Load the file that FASTCONV_TUNE_FILE names; ImportError where it is refused."""
    path = os.environ.get("FASTCONV_TUNE_FILE", "")
    if not path:
        return
    try:
        load_tune_file(path)
    except (OSError, TuneFileError) as error:
        raise ImportError(f"fastconv cannot run: FASTCONV_TUNE_FILE (={path!r}): {error}") from error


# --------------------------------------------------------------------------------------------------------- measuring


def products(op: str, *operands: Any, **options: Any) -> list[ProductChoice]:
    """The products that functional.<op>(*operands, **options) comes down to, as `fastconv.explain` takes them.

    Weight gradients have none: their two forms are chosen by a rule of their own.
    """
    from .explanation import call_of

    call = call_of(op, operands, options)
    try:
        found = _core.conv_products(call.spec, call.which, call.x, call.weight, call.y, *call.vectors)
    except _core.Refused as refusal:
        raise call.error(refusal) from None
    return [
        ProductChoice(Product(*product), way, tuned, tuple(Candidate(*candidate) for candidate in candidates))
        for product, way, tuned, candidates in found
    ]


@contextmanager
def forced(way: str, products: Iterable[Product]) -> Iterator[None]:
    """A scope in which calls and new plans, of all threads, take one way for these products where it is admitted.

    Of scopes that are open in several threads the one entered last counts.
    """
    if way not in WAYS:
        raise ValueError(f"way (={way!r}) must be one of {', '.join(WAYS)}")
    with _in_use.scope(_table(way, tuple(products))):
        yield


@contextmanager
def model_alone() -> Iterator[None]:
    """A scope in which no tune file is in use, whatever has been loaded."""
    with _in_use.scope(0):
        yield


@functools.lru_cache(maxsize=256)
def _table(way: str, products: tuple[Product, ...]) -> int:
    # Tables live as long as the process: one that is asked for again is the same one.
    return _core.make_tune_table([(product, way) for product in products])
