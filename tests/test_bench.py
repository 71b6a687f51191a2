"""The benchmark: its layers, its workers, its checks, its reports."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import reference
from fastconv.bench import cases, cli, networks, operations, peers, report, run, timing, worker
from fastconv.bench.worker import not_applicable

TINY = cases.square("test", "3x3", 3, 5, 6, 3)
QUICK = timing.Effort(rounds=2, seconds=0.001, least=2, most=5, cold=1)


def quiet(*_: Any) -> None:
    pass


# --------------------------------------------------------------------------------------------------------------- cases


def test_every_layer_has_its_own_name() -> None:
    for layers in (cases.quick(), cases.select(everything=True, max_gflop=math.inf)[0]):
        names = [layer.id for layer in layers]
        assert len(set(names)) == len(names)


def test_the_tables_hold_the_published_totals() -> None:
    # Multiply-accumulates of AlexNet's and VGG-16's convolutions, in millions.
    def total(net: str) -> float:
        return sum(v.flops for v in cases._listed() if v.net == net and v.op == "conv2d") / 2e6

    assert total("alexnet") == pytest.approx(666, rel=0.01)
    assert len([v for v in cases.tables() if v.op == "conv3d"]) > 50


@pytest.mark.parametrize("layer", [TINY, replace(TINY, stride=(2, 1), padding=(0, 2)), replace(TINY, dilation=(2, 2))])
def test_output_size_and_flops(layer: cases.Layer) -> None:
    arrays, _ = cases.data(layer)
    y = reference.conv2d(arrays["x"], arrays["w"], **layer.options())
    assert y.shape == layer.y_shape
    assert layer.flops == 2 * y.size * 3 * 3 * 3


def test_output_size_of_transposed_layers() -> None:
    for layer in (v for v in cases._listed() if v.transposed and v.flops < 2e8):
        arrays, _ = cases.data(layer)
        y = getattr(reference, layer.op)(arrays["x"], arrays["w"], **layer.options())
        assert y.shape == layer.y_shape


def test_data_is_repeatable_and_neither_zero_nor_denormal() -> None:
    for layer in (TINY, replace(TINY, direction="backward", dtype="float64")):
        arrays, source = cases.data(layer)
        again, _ = cases.data(layer)
        assert source == "seeded normal"
        for name, a in arrays.items():
            assert a.dtype == layer.dtype
            assert np.abs(a).min() > 1e-6
            np.testing.assert_array_equal(a, again[name])


def test_first_layers_see_a_photograph() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    layer = cases.square("test", "first", 3, 4, 96, 3, n=2)
    arrays, source = cases.data(layer)
    assert source == "photograph china.jpg, flower.jpg"
    assert arrays["x"].shape == (2, 3, 96, 96)
    assert np.abs(arrays["x"].mean()) < 1.5
    assert 0.2 < arrays["x"].std() < 3


def test_choices() -> None:
    assert {v.direction for v in cases.select(op="backward")[0]} == {"backward"}
    assert {v.op for v in cases.select(op="conv3d")[0]} == {"conv3d"}
    assert {v.dtype for v in cases.select(dtype="float64")[0]} == {"float64"}
    # Its pooling layers are the same in every version.
    assert {v.net for v in cases.select(net="resnet50")[0]} == {"resnet50_v1.5", "resnet50"}
    assert {v.op for v in cases.select(op="conv_transpose", everything=True)[0]} == {
        "conv_transpose1d",
        "conv_transpose2d",
    }
    small, large = cases.select(everything=True, max_gflop=1.0)
    assert all(v.flops <= 1e9 for v in small)
    assert all(v.flops > 1e9 for v in large)
    with pytest.raises(ValueError, match=r"--net \(='nonet'\) must be one of alexnet"):
        cases.select(net="nonet")


def test_families() -> None:
    assert TINY.family(False) == "tiny"
    assert cases.square("t", "", 64, 64, 56, 3).family(False) == "3x3 s1"
    assert cases.square("t", "", 64, 64, 56, 3, s=2).family(False) == "other dense"
    assert cases.square("t", "", 64, 64, 56, 1).family(False) == "1x1"
    assert cases.square("t", "", 64, 64, 56, 1).family(True) == "memory-bound"
    assert cases.square("t", "", 64, 64, 56, 3, g=64).family(True) == "depthwise"
    assert cases.square("t", "", 64, 64, 56, 3, dtype="float64").family(False) == "float64"
    assert cases.square("t", "", 64, 64, 56, 3, direction="backward").family(False) == "backward"


# ------------------------------------------------------------------------------------------------------ seeded layers

SEEDED = cases.seeded()
# The larger ones' references take the time.
SEEDED_QUICK_FLOP = 2e7


def test_seeded_layers_are_the_same_for_ever() -> None:
    # It changes where a table takes up one of these layers, and then by that layer alone: take over the new value.
    text = "".join(f"{v.id} {v.op} {v.describe()} {v.padding} {v.output_padding}\n" for v in SEEDED)
    assert zlib.crc32(text.encode()) == 1883962224
    assert cases.seeded() == SEEDED
    assert cases.seeded(31) == SEEDED[:31]
    assert not set(cases.seeded(seed=1)) & set(SEEDED)


def test_seeded_layers_are_new() -> None:
    assert len(SEEDED) == cases.SEEDED == 200
    assert len({v.id for v in SEEDED}) == 200

    def shape(layer: cases.Layer) -> Any:
        return layer.op, layer.c, layer.k, layer.groups, *(getattr(layer, name) for name in geometry)

    geometry = ("size", "kernel", "stride", "padding", "dilation", "output_padding")
    shapes = {shape(v) for v in SEEDED}
    assert len(shapes) == 200
    assert not shapes & {shape(v) for v in (*cases.tables(), *cases.quick())}


def test_seeded_layers_are_of_all_kinds() -> None:
    low, high = cases.SEEDED_FLOP
    for layer in SEEDED:
        assert low <= layer.flops < high
        assert min(layer.out_size, default=1) >= 1
        assert 1 <= layer.groups <= 8
        assert layer.groups == 1 or layer.c > layer.groups < layer.k
        assert not layer.photograph
    others = {"memory-bound", "depthwise", "depthwise backward"}
    others |= {v.family(True) for v in (*operations.everything(), *networks.everything())}
    assert {v.family(False) for v in SEEDED} == set(cases.FAMILIES) - others
    assert {v.op for v in SEEDED} >= {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "linear"}
    assert {v.kernel for v in SEEDED} >= {(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (3, 1)}
    assert {v.n for v in SEEDED if v.op != "linear"} == {1, 2, 3, 4}
    for some in (
        [v for v in SEEDED if v.size in ((7, 7), (14, 14))],
        [v for v in SEEDED if v.c % 8 and v.k % 8],
        [v for v in SEEDED if len(set(v.stride)) > 1],
        [v for v in SEEDED if set(v.dilation) - {1}],
        [v for v in SEEDED if v.dtype == "float64"],
        [v for v in SEEDED if v.direction == "backward"],
        [v for v in SEEDED if v.direction == "backward" and v.dtype == "float64"],
    ):
        assert len(some) >= 3


@pytest.mark.parametrize(
    "layer",
    [pytest.param(v, marks=() if v.flops < SEEDED_QUICK_FLOP else pytest.mark.slow, id=v.id) for v in SEEDED],
)
def test_seeded_layers_agree_with_the_reference(layer: cases.Layer) -> None:
    arrays, _ = cases.data(layer)
    expected = run.Expected(layer, arrays)
    for layout in ("NCHW", "NHWC") if layer.rank else ("",):

        def turn(a: Any, last: bool = layout == "NHWC") -> Any:
            return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if last else a

        def back(a: Any, last: bool = layout == "NHWC") -> Any:
            return np.moveaxis(a, -1, 1) if last else a

        options = layer.options() | ({"layout": layout} if layer.rank else {})
        x, w = turn(arrays["x"]), arrays["w"]
        if layer.direction == "backward":
            whole = getattr(fastconv, f"{layer.op}_backward")
            dx, dw, _ = whole(turn(arrays["dy"]), x, w, needs=("input", "weight"), **options)
            expected.check([back(dx), dw], ours=True)
        else:
            y = getattr(fastconv, layer.op)(x, w, **options)
            expected.check([back(y)], ours=True)
            np.testing.assert_array_equal(fastconv.plan(layer.op, x, w, **options)(x), y)


def test_seeded_layers_are_chosen_and_joined() -> None:
    assert cases.select(drawn=40)[0] == list(SEEDED[:40])
    joined = cases.select(net="alexnet", drawn=40)[0]
    assert joined == [*cases.select(net="alexnet")[0], *SEEDED[:40]]
    # Of the tables all convolutions, of these those that are backward already.
    backward = cases.select(net="alexnet", drawn=40, op="backward")[0]
    assert [v for v in backward if v.net == "seeded"] == [v for v in SEEDED[:40] if v.direction == "backward"]
    assert [v for v in backward if v.net == "alexnet"] == cases.select(net="alexnet", op="backward")[0]
    assert {v.dtype for v in cases.select(drawn=40, dtype="float64")[0]} == {"float64"}


def test_seeded_layers_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")

    def command(*words: str) -> int:
        parser = argparse.ArgumentParser()
        cli.add_arguments(parser)
        return cli.main(parser.parse_args(words))

    assert command("--seeded", "3", "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [v.id for v in SEEDED[:3]]
    assert command("--seeded", "--list") == 0
    assert len(capsys.readouterr().out.splitlines()) == cases.SEEDED
    assert command("--seeded", "0", "--list") == 2
    assert "--seeded (=0)" in capsys.readouterr().err


def test_seeded_layers_are_reported_by_families() -> None:
    some = [v for v in SEEDED if v.flops < 1e6][:3]
    document = run.run(some, run.Options(effort=QUICK, workers=("numpy",)), quiet)
    assert [(row["net"], row["id"]) for row in document["rows"]] == [("seeded", v.id) for v in some]
    for row, layer in zip(document["rows"], some, strict=True):
        assert row["family"] == layer.family(row["memory_bound"])
        assert not {name for name, state in row["contenders"].items() if state["status"] in ("wrong", "failed")}


# ---------------------------------------------------------------------------------------------------- checks of results


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_wrong_result_is_refused(direction: Any, ours: bool) -> None:
    layer = replace(TINY, direction=direction)
    arrays, _ = cases.data(layer)
    expected = run.Expected(layer, arrays)
    right = [value.astype(np.float32) for value, _ in expected.results]
    assert expected.check(right, ours) < 1

    def spoiled(change: Any) -> list[Any]:
        copies = [a.copy() for a in right]
        copies[-1] = change(copies[-1])
        return copies

    def one(a: Any, value: float) -> Any:
        a.flat[7] += value
        return a

    for change in (
        lambda a: one(a, 0.01),
        lambda a: one(a, math.nan),
        lambda a: one(a, math.inf),
        lambda a: a[..., :-1],
        lambda a: a.astype(np.float64),
        # What half precision would give.
        lambda a: a.astype(np.float16).astype(np.float32),
    ):
        with pytest.raises(run.WrongResult):
            expected.check(spoiled(change), ours)


def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Run the workers with something changed."""
    script = tmp_path / "planted_worker.py"
    script.write_text(
        "import sys\nfrom fastconv.bench import worker\n" + textwrap.dedent(body) + "\nsys.exit(worker.main())\n"
    )
    monkeypatch.setattr(peers, "_WORKER", script)


FAKE_TORCH = """
    class Fake(worker.Contender):
        modules = ("numpy",)

        def build(self, case, arrays, directory):
            from fastconv import reference

            def make():
                call = lambda: reference.conv2d(arrays["x"], arrays["w"], **worker._options(case))
                return worker.Variant(call, lambda: [call()])

            yield "torch", make

    worker.CONTENDERS["torch"] = Fake
"""


def measure(**options: Any) -> run.Document:
    return run.run([TINY], run.Options(effort=QUICK, **options), quiet)


def test_a_wrong_kernel_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(
        tmp_path,
        monkeypatch,
        """
        whole = worker.FastConv._layout

        def wrong(self, case, arrays, layout):
            for name, make in whole(self, case, arrays, layout):
                def broken(make=make):
                    variant = make()
                    return worker.Variant(variant.call, lambda: [variant.result()[0] + 1e-3])
                yield name, broken if name == "fastconv_plan" else make

        worker.FastConv._layout = wrong
        """,
    )
    document = measure(workers=("numpy",))
    states = document["rows"][0]["contenders"]
    assert states["fastconv_plan"]["status"] == "wrong"
    assert "warm" not in states["fastconv_plan"]
    assert "warm" in states["fastconv"]
    assert run.failures(document) == [
        ("test/3x3", "fastconv_plan", states["fastconv_plan"]["reason"].join(["wrong: ", ""]))
    ]


def test_a_missing_peer_voids_the_best_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(tmp_path, monkeypatch, FAKE_TORCH + "\n    sys.modules['jax'] = None\n")
    document = measure(workers=("numpy", "torch", "jax"))
    assert document["peers"]["jax"]["status"] == "missing"
    row = document["rows"][0]
    assert row["contenders"]["jax"]["status"] == "missing"
    assert row["contenders"]["openvino"]["status"] == "not run"
    best = row["results"]["NCHW"]["best_peer"]
    assert best["name"] == "torch"
    assert not best["complete"]
    assert "jax" in best["absent"]
    assert "openvino" in best["absent"]
    assert not report.summary(document)[0]["complete"]
    assert "jax" in " ".join(report.notes(document))
    assert "?**" in report.markdown([document])


def test_a_peer_that_crashes_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(tmp_path, monkeypatch, FAKE_TORCH + "\n    Fake.build = lambda *a: __import__('os')._exit(7)\n")
    document = measure(workers=("numpy", "torch"))
    state = document["rows"][0]["contenders"]["torch"]
    assert state["status"] == "failed"
    assert "(7)" in state["reason"]
    assert document["rows"][0]["contenders"]["fastconv"]["status"] == "ok"


def test_a_session(tmp_path: Path) -> None:
    backward = replace(TINY, direction="backward")
    linear = cases.Layer("linear", "test", "linear", 2, 7, 5)
    rows: list[Any] = []
    document = run.run(
        [TINY, backward, linear],
        run.Options(effort=QUICK, workers=("numpy",)),
        lambda what, done, total, row: rows.append(row) if row else None,
    )
    assert not document["interrupted"]
    assert [row["id"] for row in document["rows"]] == [TINY.id, backward.id, linear.id]
    assert len(rows) == 3
    json.dumps(document, allow_nan=False)
    forward, gradient, dense = document["rows"]
    assert {"fastconv", "fastconv_plan", "fastconv_nhwc", "fastconv_nhwc_plan", "numpy"} <= set(forward["contenders"])
    assert "fastconv_plan" not in gradient["contenders"]
    assert set(dense["results"]) == {"NCHW"}
    assert forward["results"]["NHWC"]["speedups"]["numpy"] > 0
    assert forward["results"]["NHWC"]["best_peer"] is None
    for state in forward["contenders"].values():
        if state["status"] == "ok":
            assert state["warm"]["best"] <= state["warm"]["median"] <= state["warm"]["worst"]
            assert state["cold"]["count"] >= 1
    path = tmp_path / "deep" / "results.json"
    report.write(document, path)
    assert report.read(path) == document
    text = path.read_text()
    assert str(Path.home()) not in text
    assert sys.prefix not in text


# ----------------------------------------------------------------------------------------------------------- worker


def test_messages_cross_a_pipe() -> None:
    reading, writing = os.pipe()
    arrays = {"a": np.arange(6.0).reshape(2, 3)[:, ::2], "empty": np.empty((0, 2), np.float32), "one": np.float32([3])}
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as target:
        worker.send(target, {"command": "x"}, arrays)
        header, received = worker.receive(source)
        assert header == {"command": "x"}
        for name, a in arrays.items():
            assert received[name].dtype == a.dtype
            np.testing.assert_array_equal(received[name], a)
        target.close()
        with pytest.raises(EOFError):
            worker.receive(source)


def test_what_peers_have_no_operation_for() -> None:
    case = TINY.as_dict(("NCHW",))
    assert not_applicable("torch", case) is None
    assert not_applicable("openvino", replace(TINY, dtype="float64").as_dict(())) == "float32 only"
    assert not_applicable("ncnn", replace(TINY, direction="backward").as_dict(())) == "inference only"
    assert not_applicable("ncnn", replace(TINY, n=2).as_dict(())) is not None
    for variant in peers.FORMS:
        assert not_applicable(variant, case) in (None, "same as with Winograd")
    for names in peers.WORKERS.values():
        assert set(names) <= set(peers.FORMS)


def test_the_worker_alone_imports_no_fastconv() -> None:
    # It runs in the interpreters of the peers, where there is none.
    code = f"import runpy, sys; runpy.run_path({worker.__file__!r}); assert 'fastconv' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_of_peers() -> None:
    assert peers.known(["torch_cl", "torch", "xnnpack"]) == ["torch", "tensorflow"]
    with pytest.raises(ValueError, match="'caffe'"):
        peers.known(["caffe"])


def test_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTCONV_BENCH_PYTHON", raising=False)
    monkeypatch.delenv("FASTCONV_BENCH_PYTHON_JAX", raising=False)
    settings = peers.Settings(1, (0,))
    assert peers.interpreter("jax", settings) == sys.executable
    monkeypatch.setenv("FASTCONV_BENCH_PYTHON", "/a")
    monkeypatch.setenv("FASTCONV_BENCH_PYTHON_JAX", "/b")
    assert peers.interpreter("jax", settings) == "/b"
    assert peers.interpreter("torch", settings) == "/a"
    assert peers.interpreter("fastconv", settings) == sys.executable
    assert peers.interpreter("jax", peers.Settings(1, (0,), pythons={"jax": "/c"})) == "/c"


# ----------------------------------------------------------------------------------------------------------- timing


def test_cores() -> None:
    mine = timing.allowed_cores()
    assert timing.choose_cores(1)[0] in mine
    assert timing.choose_cores(len(mine)) == mine
    with pytest.raises(ValueError, match="--threads"):
        timing.choose_cores(len(mine) + 1)
    assert timing.machine()["cores"] == len(mine)


def test_order_statistics() -> None:
    sampled = timing.Sampled.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (sampled.median, sampled.best, sampled.worst, sampled.count) == (3.0, 1.0, 5.0, 5)
    assert sampled.low < 3 < sampled.high
    assert timing.Sampled.of([2.0]).low == 2.0


# ----------------------------------------------------------------------------------------------------------- report


def document_of(**times: float) -> run.Document:
    """A document with one row, as if measured."""
    layer = cases.square("net", "layer", 64, 64, 56, 1, pad=0)
    case = layer.as_dict(("NCHW",))

    def state(name: str, seconds: float) -> dict[str, Any]:
        form = {"fastconv": "function", "fastconv_plan": "plan"} | peers.FORMS
        sampled = timing.Sampled.of([seconds]).as_dict()
        return {"status": "ok", "form": form[name], "warm": sampled, "cold": sampled}

    contenders = {
        name: {"status": "not run", "form": form} for name, form in peers.FORMS.items() if name != "ncnn_direct"
    }
    contenders |= {name: state(name, seconds) for name, seconds in times.items()}
    row = {
        "id": layer.id,
        "net": layer.net,
        "layer": layer.name,
        "shape": layer.describe(),
        **{k: v for k, v in case.items() if k not in ("layouts", "rank", "y_shape")},
        "threads": 1,
        "isa": "avx2",
        "data": "seeded normal",
        "flops": layer.flops,
        "bytes": layer.bytes,
        "tile_only": True,
        "empty_call": 1e-7,
        "peak_now": 1e11,
        "copy": 2e10,
        "contenders": contenders,
    }
    document = {
        "schema": run.SCHEMA,
        "fastconv": "1.2.3",
        "numpy": "2.0",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "bench",
        "machine": timing.machine() | {"cpu": "A processor"},
        "settings": {"threads": [1], "layouts": ["NCHW"], "isa": None},
        "peers": {"torch": {"status": "ok", "reason": None, "versions": {"torch": "2.0"}, "settings": {}}},
        "ceilings": [
            {"threads": 1, "isa": "avx2", "cores": [0], "fma_loop": {"float32": 1e11}, "copy": 2e10, "empty_call": 1e-7}
        ],
        "rows": [row],
        "interrupted": False,
    }
    run.derive(document)
    return document


def test_ratios_compare_like_with_like() -> None:
    document = document_of(fastconv=2e-3, fastconv_plan=1e-3, numpy=8e-3, torch=3e-3, onnxruntime=2.5e-3, jax=2.2e-3)
    row = document["rows"][0]
    result = row["results"]["NCHW"]
    assert result["time"] == 1e-3
    assert result["speedups"] == pytest.approx({"numpy": 4, "torch": 1.5, "onnxruntime": 2.5, "jax": 1.1})
    assert result["best_peer"]["name"] == "jax"
    assert not row["memory_bound"]
    assert row["family"] == "1x1"
    assert result["share_of_roofline"] == pytest.approx(row["flops"] / 1e-3 / 1e11)


def test_a_faster_tile_raises_the_peak() -> None:
    document = document_of(fastconv=2e-4, fastconv_plan=1e-4)
    row = document["rows"][0]
    assert document["ceilings"][0]["peak"]["float32"] == pytest.approx(row["flops"] / 1e-4)
    assert row["results"]["NCHW"]["share_of_peak"] == pytest.approx(1)


@pytest.mark.parametrize(("algorithm", "raises"), [("direct", True), ("winograd4", False), ("fft", False)])
def test_only_flops_that_are_done_raise_the_peak(algorithm: str, raises: bool) -> None:
    document = document_of(fastconv=2e-4, fastconv_plan=1e-4)
    document["rows"][0]["contenders"]["fastconv_plan"]["decision"] = {"algorithm": algorithm}
    run.derive(document)
    assert (document["ceilings"][0]["peak"]["float32"] > 1e11) is raises


def test_memory_bound_rows_are_found() -> None:
    document = document_of(fastconv=2e-3, fastconv_plan=1e-3)
    document["rows"][0]["copy"] = 1e8
    run.derive(document)
    assert document["rows"][0]["family"] == "memory-bound"


def test_the_readme_is_rewritten_once(tmp_path: Path) -> None:
    results = tmp_path / "results"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(document_of(fastconv=2e-3, fastconv_plan=1e-3, torch=3e-3), results / "one.json")
    assert report.rewrite_readme(readme, results)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "A processor" in text
    assert "PyTorch 2.0" in text
    assert "1.50?" in text
    assert not report.rewrite_readme(readme, results)
    assert readme.read_text() == text


def test_readme_and_files_that_do_not_fit(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="needs one"):
        report.rewrite_readme(readme, tmp_path)
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        report.read(bad)
    bad.write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema"):
        report.read(bad)


def _accounts(directory: Path, **summary: Any) -> None:
    directory.mkdir(exist_ok=True)
    figures = {"measured": 20, "near": 0.95, "of_all": 0.97, "p95": 1.07, "worst": 1.4}
    document = {
        "schema": report.CHOICE_SCHEMA,
        "command": "tune --isa avx2 --max-gflop 0.5 --seeded 200",
        "machine": {"cpu": "A <processor>"},
        "isa": "avx2",
        "threads": 1,
        "left_out": ["a/b"],
        "summary": {"layers": 40, "with_a_choice": 20, "layer": figures} | summary,
    }
    (directory / "choice-one.json").write_text(json.dumps(document))


def test_the_account_of_the_choice_goes_to_the_docs(tmp_path: Path) -> None:
    design = tmp_path / "design.md"
    design.write_text(f"a\n{report.CHOICE_BEGIN}\n{report.CHOICE_END}\nb\n")
    assert "Not measured yet" in report.choice_markdown(report.choices(tmp_path))
    _accounts(tmp_path)
    (tmp_path / "h200-depthwise.json").write_text("{}")  # of bench/gpu.py
    assert report.sessions(tmp_path) == []
    inner = report.choice_markdown(report.choices(tmp_path))
    assert report.rewrite(design, report.CHOICE_BEGIN, report.CHOICE_END, inner)
    line = "| seeded 200, up to 0.5 GFLOP | A <processor>, avx2, 1t | plan and plain call | 20 "
    line += "| 95.0% | 97.0% | +7% | +40% |"
    assert line in design.read_text().splitlines()
    assert not report.rewrite(design, report.CHOICE_BEGIN, report.CHOICE_END, inner)
    (tmp_path / "choice-two.json").write_text("{}")
    with pytest.raises(ValueError, match=r"choice-two\.json: not an account"):
        report.choices(tmp_path)


def _command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.main(parser.parse_args(words))


def test_the_report_is_a_page_that_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)
    image = pytest.importorskip("PIL.Image")
    results, page = tmp_path / "results", tmp_path / "page"
    document = document_of(fastconv=2e-3, fastconv_plan=1e-3, torch=3e-3)
    for state in document["rows"][0]["contenders"].values():
        state["error"] = 1.5
    document["command"] = "bench --filter <script>"
    report.write(document, results / "one.json")
    _accounts(results)
    places = ["--results", str(results), "--readme", str(tmp_path / "none.md")]
    assert _command("--report", str(page), *places) == 0
    assert "1 sessions, 6 pictures" in capsys.readouterr().out
    text = (page / "index.html").read_text(encoding="utf-8")
    assert "net/layer" in text
    assert "A &lt;processor&gt;" in text
    assert "<script>" not in text
    # Nothing is loaded from elsewhere.
    assert set(re.findall(r'(?:src|srcset|href)="(data:[a-z/]+|#|[^"]{1,20})', text)) <= {
        "data:image/png", "data:", "data:,", "#", "#one", "#choice"
    }  # fmt: skip
    assert text.count("data:image/png;base64,") == 6
    drawn = sorted(page.glob("*.png"))
    assert [path.name for path in drawn] == [
        f"one-1t-{kind}{dark}.png" for kind in ("errors", "roofline", "speedups") for dark in ("-dark", "")
    ]
    for path in drawn:
        with image.open(path) as picture:
            picture.verify()
            assert min(picture.size) >= 400
    # Light and dark differ, and a second run draws the same.
    before = {path.name: path.read_bytes() for path in drawn}
    assert len(set(before.values())) == 6
    assert _command("--report", str(page), *places) == 0
    assert {path.name: path.read_bytes() for path in drawn} == before


def test_a_report_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)
    places = ["--results", str(tmp_path), "--readme", str(tmp_path / "none.md")]
    assert _command("--report", str(tmp_path / "page"), *places) == 2
    assert "no results to draw" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_two_threads_over_one() -> None:
    one = document_of(fastconv=2e-2, fastconv_plan=1e-2)
    two = copy.deepcopy(one["rows"][0])
    two["threads"] = 2
    two["flops"] = one["rows"][0]["flops"] = int(1e8)
    for name in ("fastconv", "fastconv_plan"):
        two["contenders"][name]["warm"]["median"] /= 1.8
    one["rows"].append(two)
    one["ceilings"].append(one["ceilings"][0] | {"threads": 2})
    run.derive(one)
    assert report.scaling(one) == [(two["id"], "NCHW", 2, pytest.approx(1.8))]


def test_numbers_are_short() -> None:
    assert report.duration(1.234e-7) == "123 ns"
    assert report.duration(1.234e-5) == "12.3 us"
    assert report.duration(1.234) == "1.23 s"
    assert report.ratio(123.4) == "123"
    assert report.geometric_mean([]) is None
    assert report.geometric_mean([1, 4]) == pytest.approx(2)


def test_tables_are_printed() -> None:
    console = pytest.importorskip("rich.console")
    document = document_of(fastconv=2e-3, fastconv_plan=1e-3, torch=3e-3)
    out = console.Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    with out.file:
        report.show(document, out)
        text = out.export_text()
    assert "net/layer" in text
    assert "torch 1.50?" in text
    assert "not asked for" in text


# -------------------------------------------------------------------------------------------------------- interruption


def test_ctrl_c_ends_with_the_rows_so_far(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "fastconv", "bench", "--peers", "none", "--json", str(path), "--rounds", "2"]
    command += ["--filter", "tiny|odd|resnet50", "--seconds", "0.01"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has its children ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    # The second row is on its way.
    for line in process.stderr:
        if line.startswith("[1/"):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Interrupted" in out
    document = report.read(path)
    assert document["interrupted"]
    assert len(document["rows"]) >= 1
