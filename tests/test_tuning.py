"""Tune files, the products that they are keyed by, `max_error`, and what `explain` says of candidates."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import functional, reference, testing, tuning
from fastconv.__main__ import main

PRODUCT = tuning.Product("avx2", "float32", True, 1, 64, 64, (1, 3, 3), (1, 56, 56), (1, 1, 1), (1, 1, 1))
ENTRY = tuning.Entry("A CPU 1/2/3", PRODUCT, "winograd4", 1, {"rows": (1021.0, 1040.0), "winograd4": (34.2, 36.1)})
LINE = "A CPU 1/2/3 | avx2 float32 | 64>64 k3x3 @56x56 NHWC | winograd4 | t1 rows 1021/1040 winograd4 34.2/36.1"


@pytest.fixture(autouse=True)
def _no_table() -> Any:
    yield
    tuning.clear_tune_file()


def _layer(c: int = 40, k: int = 24, size: int = 12, layout: str = "NCHW") -> tuple[Any, Any, dict[str, Any]]:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, c, size, size)).astype(np.float32)
    if layout == "NHWC":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    w = rng.standard_normal((k, c, 3, 3)).astype(np.float32)
    return x, w, {"padding": 1, "layout": layout}


def _file_of(path: Path, op: str, operands: Any, options: Any, way: str) -> Path:
    choices = tuning.products(op, *operands, **options)
    times = {way: (1.0, 1.0)}
    tuning.write_tune_file(path, [tuning.Entry(tuning.cpu(), c.product, way, 1, times) for c in choices])
    return path


# --- the file ---------------------------------------------------------------------------------------------------


def test_a_line() -> None:
    assert str(ENTRY) == LINE


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tune"
    entries = []
    for seed in range(200):
        draw = random.Random(seed)

        def three(draw: random.Random = draw) -> tuple[int, int, int]:
            return tuple(draw.choice((1, 1, 2, 3, 31)) for _ in range(3))  # type: ignore[return-value]

        product = tuning.Product(
            draw.choice(("portable", "avx2", "avx512")),
            draw.choice(("float32", "float64")),
            draw.random() < 0.5,
            draw.choice((1, 4)),
            draw.choice((1, 64)),
            seed + 1,
            *(three() for _ in range(4)),
        )
        way = draw.choice(tuning.WAYS)
        entries.append(tuning.Entry("CPU", product, way, draw.randint(1, 64), {way: (draw.random() * 1e5, 2.0)}))
    tuning.write_tune_file(path, entries)
    read = {entry.key: entry for entry in tuning.read_tune_file(path)}
    assert read.keys() == {entry.key for entry in entries}
    for entry in entries:
        assert read[entry.key].way == entry.way
        assert read[entry.key].times[entry.way][0] == pytest.approx(entry.times[entry.way][0], rel=0.01)
    lines = path.read_text().splitlines()
    assert lines[1:] == sorted(lines[1:])
    again = tmp_path / "b.tune"
    tuning.write_tune_file(again, reversed(list(read.values())))
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("lines", "number", "rule"),
    [
        ([], 1, "must begin with the line"),
        (["# fastconv tune file 2", LINE], 1, "must begin with the line"),
        ([tuning.HEADER, "", LINE.rsplit(" | ", 1)[0]], 3, "5 fields"),
        ([tuning.HEADER, LINE, LINE], 3, "is on line 2 already"),
        ([tuning.HEADER, "<<<<<<< HEAD", LINE], 2, "conflict"),
        ([tuning.HEADER, LINE.replace("avx2 float32", "mmx float32")], 2, "(='mmx float32')"),
        ([tuning.HEADER, LINE.replace("winograd4 |", "magic |")], 2, "the way (='magic')"),
        ([tuning.HEADER, LINE.replace("winograd4 |", "fft |")], 2, "must be among those measured"),
        ([tuning.HEADER, LINE.replace("64>64", "064>64")], 2, "must be written as"),
        ([tuning.HEADER, LINE.replace("64>64", "0>64")], 2, "must be positive"),
        ([tuning.HEADER, LINE.replace("64>64", "9999999999999>64")], 2, "must be positive"),
        ([tuning.HEADER, LINE.replace("k3x3", "k3xx3")], 2, "must be 3 positive"),
        ([tuning.HEADER, LINE.replace("k3x3", "k3")], 2, "two or three sizes"),
        ([tuning.HEADER, LINE.replace("k3x3", "k3x3 s1x1")], 2, "must be written as"),
        ([tuning.HEADER, LINE.replace("@56x56", "@56x-56")], 2, "must read like"),
        ([tuning.HEADER, LINE.replace("t1 rows", "t1 rows nan/1 rows")], 2, "the times"),
        ([tuning.HEADER, LINE.replace("1021/1040", "1e9/1e9")], 2, "the times"),
        ([tuning.HEADER, LINE.replace("winograd4 34.2", "rows 1/1 winograd4 34.2")], 2, "must name a way once"),
        ([tuning.HEADER, "CPU\u00e9" + LINE], 2, "ASCII"),
        ([tuning.HEADER, LINE.replace("A CPU", "A\tCPU")], 2, "printable"),
        ([tuning.HEADER, "A" * 2000 + LINE], 2, "at most 1000 characters"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, lines: list[str], number: int, rule: str) -> None:
    path = tmp_path / "wrong.tune"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for refuse in (tuning.read_tune_file, fastconv.load_tune_file):
        with pytest.raises(fastconv.TuneFileError) as error:
            refuse(path)
        assert f"wrong.tune:{number}: " in str(error.value)
        assert rule in str(error.value)
        assert error.value.line == number
    assert tuning.tune_file() is None


def test_a_file_that_is_cut_off_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "cut.tune"
    tuning.write_tune_file(path, [ENTRY, tuning.Entry("B", PRODUCT, "rows", 1, {"rows": (1.0, 2.0)})])
    whole = path.read_bytes()
    for length in range(len(whole)):
        if length in (len(tuning.HEADER) + 1, whole.index(b"B |")):
            continue  # between two lines it is a shorter file
        path.write_bytes(whole[:length])
        with pytest.raises(fastconv.TuneFileError):
            tuning.read_tune_file(path)


def test_noise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.tune"
    for seed in range(300):
        draw = random.Random(seed)
        data = bytearray(f"{tuning.HEADER}\n{LINE}\n".encode())
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(bytes(data))
        # Either it is still a file, or it is refused by this error and no other.
        with contextlib.suppress(fastconv.TuneFileError):
            tuning.read_tune_file(path)


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_MAX_BYTES", 100)
    path = tmp_path / "huge.tune"
    tuning.write_tune_file(path, [ENTRY])
    with pytest.raises(fastconv.TuneFileError, match="at most"):
        tuning.read_tune_file(path)


# --- in use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_loaded_file_chooses(tmp_path: Path, layout: str, isa: str) -> None:
    x, w, options = _layer(layout=layout)
    plain = functional.conv2d(x, w, **options)
    before = fastconv.explain("conv2d", x, w, **options)
    for way, algorithm in (("rows", "direct"), ("winograd2", "winograd2"), ("winograd4", "winograd4")):
        path = _file_of(tmp_path / f"{way}.tune", "conv2d", (x, w), options, way)
        assert fastconv.load_tune_file(path) == 1
        assert tuning.tune_file() == str(path)
        e = fastconv.explain("conv2d", x, w, **options)
        assert e.decision["algorithm"] == algorithm
        taken = next(c for c in e.candidates if c["taken"])
        assert (taken["algorithm"], taken["reason"]) == (algorithm, "taken: measured")
        expected = functional.conv2d(x, w, algorithm=algorithm, **options)
        np.testing.assert_array_equal(functional.conv2d(x, w, **options), expected)
        plan = fastconv.plan("conv2d", x, w, **options)
        np.testing.assert_array_equal(plan(x), expected)
        # One image has the bits that it has in a batch, and any number of threads.
        np.testing.assert_array_equal(functional.conv2d(x[1], w, **options), expected[1])
        with fastconv.num_threads(2):
            np.testing.assert_array_equal(functional.conv2d(x, w, **options), expected)
        # What a call names goes before the file.
        direct = functional.conv2d(x, w, algorithm="direct", **options)
        assert fastconv.explain("conv2d", x, w, algorithm="direct", **options).decision["algorithm"] == "direct"
        assert np.array_equal(direct, expected) == (algorithm == "direct")
    fastconv.clear_tune_file()
    assert tuning.tune_file() is None
    assert fastconv.explain("conv2d", x, w, **options) == before
    np.testing.assert_array_equal(functional.conv2d(x, w, **options), plain)


def test_a_plan_keeps_its_choice(tmp_path: Path) -> None:
    x, w, options = _layer()
    fastconv.load_tune_file(_file_of(tmp_path / "a.tune", "conv2d", (x, w), options, "winograd2"))
    plan = fastconv.plan("conv2d", x, w, **options)
    expected = plan(x)
    fastconv.clear_tune_file()
    assert plan.decision["algorithm"] == "winograd2"
    np.testing.assert_array_equal(plan(x), expected)


def test_other_shapes_cpus_and_isas_are_left_to_the_model(tmp_path: Path) -> None:
    x, w, options = _layer()
    (choice,) = tuning.products("conv2d", x, w, **options)
    others = [isa for isa in ("portable", "avx2", "avx512") if isa != choice.product.isa]
    times = {"winograd2": (1.0, 1.0)}
    products = [choice.product._replace(isa=isa) for isa in others]
    products += [choice.product._replace(k=25), choice.product._replace(dtype="float64")]
    entries = [tuning.Entry(tuning.cpu(), product, "winograd2", 1, times) for product in products]
    entries.append(tuning.Entry("another CPU", choice.product, "winograd2", 1, times))
    tuning.write_tune_file(tmp_path / "a.tune", entries)
    assert fastconv.load_tune_file(tmp_path / "a.tune") == len(products)
    assert tuning.products("conv2d", x, w, **options) == [choice]


def test_a_file_cannot_ask_for_what_is_not_admitted(tmp_path: Path) -> None:
    """Neither for what a product cannot take, nor for a larger error than the model would allow."""
    rng = np.random.default_rng(0)
    for shape, weight, options, ways in (
        ((1, 16, 9, 9), (8, 16, 3, 3), {}, ("winograd4", "fft")),  # 16 channels: too few for 4 x 4
        ((1, 4, 9, 9), (8, 4, 3, 3), {}, ("winograd2", "winograd4", "fft")),
        ((1, 16, 9, 9), (8, 16, 3, 3), {"stride": 2}, ("winograd2", "fft")),
        ((1, 16, 19, 19), (16, 1, 7, 7), {"groups": 16}, ("winograd2", "fft")),
        ((1, 64, 1, 1), (8, 64, 1, 1), {}, ("columns",)),
    ):
        x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(weight).astype(np.float32)
        (choice,) = tuning.products("conv2d", x, w, **options)
        expected = functional.conv2d(x, w, **options)
        for way in ways:
            assert next(c for c in choice.candidates if c.way == way).obstacle
            path = _file_of(tmp_path / "a.tune", "conv2d", (x, w), options, way)
            fastconv.load_tune_file(path)
            assert [c.way for c in tuning.products("conv2d", x, w, **options)] == [choice.way]
            np.testing.assert_array_equal(functional.conv2d(x, w, **options), expected)


def _threads_in_step(*steps: tuple[Any, ...]) -> None:
    """Runs (thread, function) pairs one after the other, each in the thread of its number."""
    with contextlib.ExitStack() as stack:
        pools = {n: stack.enter_context(ThreadPoolExecutor(1)) for n in {thread for thread, _ in steps}}
        for thread, function in steps:
            pools[thread].submit(function).result()


@pytest.mark.parametrize("order", ["first in, first out", "first in, last out"])
def test_scopes_of_threads_do_not_undo_each_other(order: str) -> None:
    """Two threads' scopes overlap; each one's end leaves the other's in force, and nothing stays behind."""
    x, w, options = _layer()
    products = [choice.product for choice in tuning.products("conv2d", x, w, **options)]
    model = tuning.products("conv2d", x, w, **options)[0].way
    seen: list[str] = []

    def look() -> None:
        seen.append(tuning.products("conv2d", x, w, **options)[0].way)

    a, b = contextlib.ExitStack(), contextlib.ExitStack()
    steps = [
        (0, lambda: a.enter_context(tuning.forced("winograd2", products))),
        (0, look),
        (1, lambda: b.enter_context(tuning.forced("winograd4", products))),
        (0, look),
        *(
            [(0, a.close), (1, look), (1, b.close)]
            if order.endswith("first out")
            else [(1, b.close), (0, look), (0, a.close)]
        ),
        (0, look),
    ]
    _threads_in_step(*steps)
    left = "winograd4" if order.endswith("first out") else "winograd2"
    assert seen == ["winograd2", "winograd4", left, model]


def test_a_scope_does_not_undo_a_file(tmp_path: Path) -> None:
    """A file that another thread loads, or drops, while a scope is open is in use, or is not, when that ends."""
    x, w, options = _layer()
    products = [choice.product for choice in tuning.products("conv2d", x, w, **options)]
    model = tuning.products("conv2d", x, w, **options)[0].way
    path = _file_of(tmp_path / "a.tune", "conv2d", (x, w), options, "winograd2")
    seen: list[tuple[str, str | None]] = []

    def look() -> None:
        seen.append((tuning.products("conv2d", x, w, **options)[0].way, tuning.tune_file()))

    scope = contextlib.ExitStack()
    _threads_in_step(
        (0, lambda: scope.enter_context(tuning.forced("winograd4", products))),
        (1, lambda: fastconv.load_tune_file(path)),
        (0, look),
        (0, scope.close),
        (0, look),
        (0, lambda: scope.enter_context(tuning.model_alone())),
        (0, look),
        (1, fastconv.clear_tune_file),
        (0, scope.close),
        (0, look),
    )
    file = str(path)
    assert seen == [("winograd4", file), ("winograd2", file), (model, file), (model, None)]


def _environment(value: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FASTCONV_TUNE_FILE": value, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


def test_the_environment_names_a_file(tmp_path: Path) -> None:
    x, w, options = _layer()
    path = _file_of(tmp_path / "a.tune", "conv2d", (x, w), options, "winograd2")
    code = (
        "import fastconv; "
        f"print(fastconv.explain('conv2d', {x.shape}, {w.shape}, padding=1).decision['algorithm'], "
        "fastconv.tuning.tune_file())"
    )
    done = _environment(str(path), code)
    assert done.stdout.split() == ["winograd2", str(path)], done.stderr
    assert _environment("", "import fastconv; print(fastconv.tuning.tune_file())").stdout.strip() == "None"
    path.write_text("nonsense\n")
    for wrong in (str(path), str(tmp_path / "none")):
        done = _environment(wrong, "import fastconv")
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("ImportError: fastconv cannot run: FASTCONV_TUNE_FILE (=")
    assert "a.tune:1: " in _environment(str(path), "import fastconv").stderr


# --- every way is right -----------------------------------------------------------------------------------------

LAYERS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("conv2d", (2, 40, 13, 11), (24, 40, 3, 3), {"padding": 1}),
    ("conv2d", (2, 3, 21, 19), (10, 3, 5, 5), {"stride": 2, "padding": 2}),
    ("conv2d", (2, 20, 9, 33), (12, 20, 1, 1), {}),
    ("conv2d", (1, 20, 9, 33), (12, 20, 1, 1), {"stride": 2}),
    ("conv2d", (2, 24, 12, 12), (24, 6, 3, 3), {"groups": 4, "padding": 1}),
    ("conv2d", (2, 24, 12, 40), (24, 4, 3, 3), {"groups": 6, "padding": 2, "dilation": 2}),
    ("conv1d", (2, 5, 70), (9, 5, 4), {}),
    ("conv3d", (1, 6, 5, 9, 9), (7, 6, 3, 3, 3), {"padding": 1}),
    ("conv2d", (2, 40, 20, 20), (40, 1, 9, 9), {"groups": 40, "padding": 4}),
    ("conv2d", (2, 40, 7, 7), (40, 1, 5, 5), {"groups": 40, "padding": 2, "stride": 2}),
    ("conv2d", (2, 5, 17, 17), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    ("conv1d", (1, 3, 400), (3, 1, 65), {"groups": 3}),
    ("conv2d", (2, 40, 16, 16), (40, 1, 3, 3), {"groups": 40, "padding": 2, "dilation": 2, "padding_mode": "reflect"}),
    ("conv3d", (1, 40, 4, 9, 9), (40, 1, 3, 3, 3), {"groups": 40, "padding": 1}),
    ("conv_transpose2d", (2, 40, 9, 9), (40, 1, 4, 4), {"groups": 40, "stride": 2, "padding": 1}),
    ("conv_transpose2d", (2, 16, 9, 9), (16, 28, 4, 4), {"stride": 2, "padding": 1}),
    ("conv_transpose2d", (1, 24, 9, 9), (24, 12, 3, 3), {"padding": 1}),
    ("conv2d_backward_input", (2, 24, 12, 12), (24, 32, 3, 3), {"padding": 1}),
    ("conv2d_backward_input", (1, 9, 6, 6), (9, 33, 3, 3), {"padding": 1, "stride": 2}),
    ("conv2d_backward_input", (1, 24, 10, 10), (24, 32, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
]


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda v: f"{v[0]} {v[1]} {v[2]}")
def test_every_way_is_right(layer: Any, layout: str, isa: str) -> None:
    op, shape, weight, options = layer
    rank = len(weight) - 2
    options = options | {"layout": {1: "NCL", 2: "NCHW", 3: "NCDHW"}[rank]}
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(np.float32)
    w = rng.standard_normal(weight).astype(np.float32)
    more: tuple[Any, ...] = ()
    if op.endswith("_backward_input"):
        step = options.get("stride", 1)
        more = ((shape[0], weight[1], *(1 + step * (n - 1) for n in shape[2:])),)
    if layout == "last":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        more = tuple((v[0], *v[2:], v[1]) for v in more)
        options["layout"] = {1: "NLC", 2: "NHWC", 3: "NDHWC"}[rank]
    choices = tuning.products(op, x, w, *more, **options)
    taken = {choice.way for choice in choices}
    admitted = {c.way for choice in choices for c in choice.candidates if c.obstacle is None}
    assert taken <= admitted
    for way in admitted:
        with tuning.forced(way, [choice.product for choice in choices]):
            ways = [choice.way for choice in tuning.products(op, x, w, *more, **options)]
            assert way in ways
            y = getattr(functional, op)(x, w, *more, **options)
            testing.assert_close_to_reference(y, op, x, w, *more, **options)
            if "backward" not in op:
                np.testing.assert_array_equal(fastconv.plan(op, x, w, **options)(x), y)
    assert {choice.way for choice in tuning.products(op, x, w, *more, **options)} == taken


# --- max_error --------------------------------------------------------------------------------------------------


def test_max_error_admits_by_the_bound(isa: str) -> None:
    x, w, options = _layer(64, 64, 28)
    bounds = {
        name: fastconv.explain("conv2d", x, w, algorithm=name, **options).decision["error_bound"]
        for name in ("direct", "winograd2", "winograd4")
    }
    assert bounds["direct"] < bounds["winograd2"] < bounds["winograd4"]
    auto = fastconv.explain("conv2d", x, w, **options).decision["algorithm"]
    assert auto == "winograd4"
    for limit, algorithm in (
        (bounds["winograd4"], "winograd4"),
        (bounds["winograd4"] - 1, "winograd2"),
        (bounds["winograd2"] - 1, "direct"),
        (np.float32(1e9), "winograd4"),
    ):
        expected = functional.conv2d(x, w, algorithm=algorithm, **options)
        np.testing.assert_array_equal(functional.conv2d(x, w, max_error=limit, **options), expected)
        np.testing.assert_array_equal(fastconv.plan("conv2d", x, w, max_error=limit, **options)(x), expected)
        e = fastconv.explain("conv2d", x, w, max_error=limit, **options)
        assert e.decision["algorithm"] == algorithm
        assert e.decision["error_bound"] <= limit
    e = fastconv.explain("conv2d", x, w, max_error=bounds["winograd4"] - 1, **options)
    assert "above max_error" in next(c["reason"] for c in e.candidates if c["algorithm"] == "winograd4")


def test_max_error_of_gradients_and_fft() -> None:
    x, w, options = _layer(64, 64, 28)
    dy = functional.conv2d(x, w, **options)
    dx = functional.conv2d_backward_input(dy, w, x.shape, max_error=1000, **options)
    direct = functional.conv2d_backward_input(dy, w, x.shape, algorithm="direct", **options)
    np.testing.assert_array_equal(dx, direct)
    both = functional.conv2d_backward(dy, x, w, needs=("input", "weight"), max_error=1000, **options)
    np.testing.assert_array_equal(both.input, direct)
    signal, taps = np.ones((1, 32, 4096), np.float32), np.ones((32, 1, 257), np.float32)
    assert fastconv.explain("conv1d", signal, taps, groups=32).decision["algorithm"] == "fft"
    limit = fastconv.explain("conv1d", signal, taps, groups=32).decision["error_bound"] - 1
    with pytest.raises(ValueError, match=r"'fft'.*'direct'"):
        functional.conv1d(signal, taps, groups=32, max_error=limit)


def test_max_error_refuses() -> None:
    x, w, options = _layer(64, 64, 28)
    with pytest.raises(
        ValueError, match=r"max_error \(=10\) must be at least \d+, the least bound .*'direct'.*'winograd4'"
    ):
        functional.conv2d(x, w, max_error=10, **options)
    with pytest.raises(ValueError, match=r"max_error \(=1000\) must be at least \d+.*'winograd2'"):
        fastconv.plan("conv2d", x, w, max_error=1000, algorithm="winograd2", **options)
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"max_error .* must be positive"):
            functional.conv2d(x, w, max_error=wrong, **options)
    for wrong in ("1", True):
        with pytest.raises(TypeError, match="max_error"):
            functional.conv2d(x, w, max_error=wrong, **options)  # type: ignore[arg-type]
    # Another fault of the call is what is said.
    with pytest.raises(ValueError, match="groups"):
        functional.conv2d(x, w, max_error=10, groups=3, padding=1)
    with pytest.raises(TypeError, match="x is of type list"):
        functional.conv2d([1.0], w, max_error=10)  # type: ignore[arg-type]
    assert reference.conv2d(x, w, max_error=10, **options).shape == (2, 64, 28, 28)


# --- explain ----------------------------------------------------------------------------------------------------


def test_explain_says_what_is_passed_over_and_why() -> None:
    e = fastconv.explain("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    by = {(c["algorithm"], c["role"]): c for c in e.candidates}
    assert len(by) == len(e.candidates) == 5
    assert e.candidates[0]["taken"]
    assert [c["taken"] for c in e.candidates[1:]] == [False] * 4
    assert by["direct", "pixel rows"]["cost"] == 1
    assert 0 < e.candidates[0]["cost"] < 1
    assert by["fft", None]["cost"] is None
    assert by["fft", None]["reason"] == "serves layers of one channel in and out a group"
    assert by["winograd2", None]["error_bound"] < by["winograd4", None]["error_bound"]
    assert e.blocks is not None
    text = str(e)
    for c in e.candidates:
        assert c["reason"] in text
    asked = fastconv.explain("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), padding=1, algorithm="direct")
    assert asked.candidates[0]["reason"] == "taken: direct is asked for"
    assert json.loads(json.dumps(e.as_dict()))["candidates"][0]["taken"] is True


def test_explain_measures() -> None:
    e = fastconv.explain("conv2d", (1, 16, 14, 14), (16, 16, 3, 3), padding=1, measure="plain")
    assert e.measured is not None
    assert e.measured.seconds > 0
    assert e.as_dict()["measured"]["reached"] > 0
    assert "GFLOP/s" in str(e)
    with pytest.raises(ValueError, match="has no plan"):
        fastconv.explain("conv2d_backward_weight", (1, 4, 5, 5), (1, 2, 7, 7), (4, 2, 3, 3), measure="plan")
    with pytest.raises(ValueError, match="measure"):
        fastconv.explain("conv2d", (1, 4, 5, 5), (4, 4, 3, 3), measure="now")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--conv", "1x64x56x56", "--weight", "64x64x3x3", "--padding", "1"], "winograd4"),
        (["--conv", "1x56x56x64", "--weight", "64x64x3x3", "--padding", "1", "--layout", "NHWC"], "conv2d"),
        (["--op", "transposed", "--conv", "1x8x9x9", "--weight", "8x4x4x4", "--stride", "2"], "conv_transpose2d"),
        (["--op", "depthwise", "--conv", "1x32x9x9", "--weight", "32x1x3x3"], "depthwise on"),
        (["--op", "backward-input", "--conv", "1x8x9x9", "--weight", "8x8x3x3"], "conv2d_backward_input"),
        (["--op", "backward-weight", "--conv", "1x8x9x9", "--weight", "8x8x3x3"], "passed over"),
        (["--op", "transposed-backward-input", "--conv", "1x8x9", "--weight", "8x8x3"], "conv_transpose1d_backward"),
        (["linear", "--input", "3,8", "--weight", "8,8"], "linear"),
        (["linear_backward_input", "--input", "3,8", "--weight", "4,8"], "dx (3, 8)"),
        (["--conv", "1x8x9x9", "--weight", "8x8x3x3", "--dtype", "float64", "--isa", "portable"], "on portable"),
        (["--conv", "1x64x28x28", "--weight", "64x64x3x3", "--padding", "1", "--max-error", "999"], "above max_error"),
        (["--conv", "1x8x9x9", "--weight", "8x8x3x3", "--algorithm", "winograd2", "--threads", "1"], "is asked for"),
    ],
)
def test_the_command(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *arguments]) == 0
    assert text in capsys.readouterr().out
    assert main(["explain", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"]["isa"]


# --- tune -------------------------------------------------------------------------------------------------------

_QUICK = ["--rounds", "1", "--seconds", "0.0001"]
_CONV = ["--conv", "1x24x12x12", "--weight", "16x24x3x3", "--padding", "1"]


def test_tune_writes_what_load_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tune"
    assert main(["tune", *_CONV, *_QUICK, "--output", str(path)]) == 0
    assert "2 products" in capsys.readouterr().out
    entries = tuning.read_tune_file(path)
    assert {entry.product.channels_last for entry in entries} == {False, True}
    for entry in entries:
        assert entry.cpu == tuning.cpu()
        assert {"rows", "winograd2", "winograd4"} <= entry.times.keys()
    assert fastconv.load_tune_file(path) == 2
    w = np.ones((16, 24, 3, 3), np.float32)
    (choice,) = tuning.products("conv2d", (3, 24, 12, 12), w, padding=1)
    assert choice.tuned
    assert choice.way == next(e.way for e in entries if not e.product.channels_last)
    # A second run keeps what the file has, and a third one merges another.
    other = ["--op", "transposed", "--conv", "1x6x5x5", "--weight", "6x28x4x4", "--stride", "2", "--layout", "NCHW"]
    assert main(["tune", *other, *_QUICK, "--output", str(path)]) == 0
    both = tuning.read_tune_file(path)
    assert len(both) > 2
    assert main(["tune", "--merge", str(path), "--output", str(tmp_path / "b.tune")]) == 0
    assert (tmp_path / "b.tune").read_bytes() == path.read_bytes()
    assert tuning.tune_file() == str(path)


def test_tune_reports_on_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "choice.json"
    before = fastconv.get_isa()
    arguments = ["--isa", "portable", "--seeded", "12", "--seed", "5", "--max-gflop", "0.01", "--layout", "NCHW"]
    assert main(["tune", *arguments, *_QUICK, "--report", str(path)]) == 0
    assert "within 5 % of the best" in capsys.readouterr().out
    document = json.loads(path.read_text())
    assert document["schema"] == "choice 1"
    assert document["isa"] == "portable"
    assert fastconv.get_isa() == before
    assert str(tmp_path) not in path.read_text()
    summary = document["summary"]
    assert summary["layers"] == len(document["rows"])
    assert 0 < summary["with_a_choice"] <= summary["layers"]
    for row in document["rows"]:
        assert row["taken"] in (*row["costs"], "model")
        assert not row["times"] or row["taken"] in row["times"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure"),
        (["--conv", "1x2x3x3"], "go together"),
        ([*_CONV, "--all"], "--conv is one layer"),
        ([*_CONV, "--groups", "5"], "groups (=5)"),
        ([*_CONV, "--rounds", "0"], "must be positive"),
        ([*_CONV, "--threads", "100000"], "--threads (=100000)"),
        ([*_CONV, "--op", "backward-weight"], "no candidates"),
        (["--net", "nonet"], "--net (='nonet')"),
        (["--net", "resnet50", "--seed", "1"], "--seed belongs to --seeded"),
        (["--merge", "no such file"], "no such file"),
        ([*_CONV, "--isa", "mmx"], "isa (='mmx')"),
    ],
)
def test_tune_refuses(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments, "--output", str(tmp_path / "x.tune")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.tune").exists()


def test_tune_refuses_what_cannot_be_written_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = pytest.importorskip("fastconv.bench.choice")
    monkeypatch.setattr(choice, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for option in ("--output", "--report"):
        assert main(["tune", *_CONV, *_QUICK, option, str(tmp_path / "file" / "a")]) == 2
        assert "fastconv tune: " in capsys.readouterr().err


def test_summary_counts() -> None:
    choice = pytest.importorskip("fastconv.bench.choice")

    def row(taken: str, **times: float) -> dict[str, Any]:
        return {"taken": taken, "times": {way: {"plan": t, "plain": t} for way, t in times.items()}}

    rows = [row("rows", rows=1.0, columns=2.0), row("rows", rows=1.04, columns=1.0), row("rows", rows=3.0, fft=2.0)]
    rows.append({"taken": "rows", "times": {}})
    s = choice.summary(rows)
    assert (s["layers"], s["with_a_choice"]) == (4, 3)
    assert s["layer"]["near"] == s["plan"]["near"] == pytest.approx(2 / 3)
    assert s["layer"]["of_all"] == pytest.approx(3 / 4)
    assert s["plain"]["worst"] == pytest.approx(1.5)
    assert s["algorithms"]["near"] == 0
    assert choice.best_way(rows[1]) == "columns"
    assert choice.best_way(row("rows", rows=1.01, columns=1.0)) == "rows"
