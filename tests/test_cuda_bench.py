"""bench/gpu.py, which has to work the first time that it meets a GPU: every row on the host build, and its tables."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import fastconv

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "bench" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_runs_on_the_host_build(device, gpu, capsys, monkeypatch):
    if "host" not in device.build_info()["architectures"]:
        pytest.skip("bench/gpu.py itself runs there")
    results = gpu.measure(gpu.Rehearsal(), tuple(gpu.FAMILIES))
    gpu.show(results)
    shown = capsys.readouterr().out
    failed = [r for r in results["rows"] if not r["right"]]
    assert not failed, shown
    assert {r["family"] for r in results["rows"]} == set(gpu.FAMILIES)
    for row in results["rows"]:
        assert row["us"] > 0
        assert "ratio" in row or "PyTorch" in row["note"]
    # Every row in three dtypes and both layouts; convolutions of float32 by coarser products, too.
    coarse = [r for r in results["rows"] if "tf32" in r["dtype"]]
    rows = [r for r in results["rows"] if "tf32" not in r["dtype"]]
    assert len(rows) == 6 * len({(r["family"], r["name"]) for r in rows})
    assert {r["family"] for r in coarse} == {"dense", "other"}
    assert len(coarse) == 4 * len({(r["family"], r["name"]) for r in coarse})


def test_the_rehearsal_goes_to_the_tensor_cores(device, gpu):
    if not hasattr(device, "take_launches"):
        pytest.skip("bench/gpu.py itself runs there")
    machine = gpu.Rehearsal()
    row = next(gpu.rows(machine, "dense"))
    for dtype, precision in (("float16", "strict"), ("float32", "tf32"), ("float32", "tf32x3"), ("float32", "strict")):
        device.take_launches()
        result = gpu.measure_row(machine, row, dtype, True, precision, 1e9)
        assert result["right"]
        assert any("Walk" in launch for launch in device.take_launches()) == (
            (dtype, precision) != ("float32", "strict")
        )


def test_the_command_rehearses_and_writes_nothing(gpu):
    package = Path(fastconv.__file__).parent
    if not list(package.glob("_cuda_host*.so")) or "FASTCONV_CUDA_HOST_MODULE" in os.environ:
        pytest.skip("needs the module _cuda_host (FASTCONV_CUDA_HOST=ON)")
    before = sorted(p.name for p in gpu.RESULTS.glob("*"))
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--rehearse", "--family", "elementwise"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "elementwise" in done.stdout
    assert sorted(p.name for p in gpu.RESULTS.glob("*")) == before


def test_the_measuring_of_a_gpu(gpu, monkeypatch):
    """What the class Gpu asks of PyTorch, with its CPU in place of the device."""
    torch = pytest.importorskip("torch")

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = time.perf_counter()

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return (end.at - self.at) * 1000

    def on_cpu(function):
        return lambda *args, device=None, **options: function(*args, **options)

    empty, generator = torch.empty, torch.Generator
    small = on_cpu(lambda n: empty(min(n, 1024)))
    for name, value in (
        ("randn", on_cpu(torch.randn)),
        ("empty", small),
        ("Generator", lambda _: generator("cpu")),
    ):
        monkeypatch.setattr(torch, name, value)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    machine = gpu.Gpu()
    assert machine.describe()["gpu"] == "NVIDIA H200"
    assert machine.copy_bandwidth() > 0
    x = machine.operand((2, 3, 4, 5), "bfloat16", True)
    assert (x.shape, x.stride(), x.dtype) == ((2, 3, 4, 5), (60, 1, 15, 3), torch.bfloat16)
    assert machine.operand((2, 3, 4, 5), "float32", False).is_contiguous()
    assert machine.error(x, x) == 0
    assert machine.error(x, x * 2) == pytest.approx(0.5, rel=1e-2)
    # A row, both sides of it PyTorch's; one that PyTorch lacks; one that is wrong; one that fails.
    machine.copies = 1 << 12

    def broken(*_):
        raise NotImplementedError("no such kernel\nand more")

    right = gpu.Row("right", ((2, 3, 4, 5),), (), torch.relu, torch.relu, 240)
    for row, expected in (
        (right, {"right": True}),
        (right._replace(theirs=broken), {"right": True, "note": "PyTorch: no such kernel"}),
        (right._replace(theirs=torch.abs), {"right": False}),
        (right._replace(ours=broken), {"right": False}),
    ):
        monkeypatch.setattr(gpu, "rows", lambda *_, row=row: iter([row]))
        results = gpu.measure(machine, ["pool"])["rows"]
        assert len(results) == 6
        for result in results:
            assert {k: result[k] for k in expected} == expected
            assert ("us" in result) == result["right"]
            assert ("ratio" in result) == (result["right"] and "note" not in result)
    monkeypatch.setitem(gpu.FAMILIES, "pool", -1)
    assert {r["note"] for r in gpu.measure(machine, ["pool"])["rows"]} == {"not reached in -1 s"}


def test_the_whole_command(gpu, monkeypatch, tmp_path, capsys):
    """Build, tests, sanitizer, measuring and the file, in their order, with each of them replaced."""
    commands = []

    def done(command, **options):
        commands.append([str(part) for part in command])
        return subprocess.CompletedProcess(command, 3 if "compute-sanitizer" in str(command[0]) else 0)

    class Machine(gpu.Rehearsal):
        def describe(self):
            return {"gpu": "NVIDIA H200", "torch": "2.11", "cuda": "13.0", "cudnn": 1}

    monkeypatch.setattr(gpu.subprocess, "run", done)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(gpu, "Gpu", Machine)
    monkeypatch.setattr(gpu, "rows", lambda *_: iter([]))
    monkeypatch.setattr(gpu, "build", lambda folder: tmp_path)
    with pytest.raises(SystemExit):
        gpu.main(["--output", str(tmp_path), "--family", "depthwise backward"])
    pytest_command, sanitizer = commands
    assert pytest_command[1:3] == ["-m", "pytest"]
    assert str(ROOT / "tests" / "test_cuda_gpu.py") in pytest_command
    assert sanitizer[0] == "/usr/bin/compute-sanitizer"
    assert sanitizer[3:6] == pytest_command[:3]
    written = json.loads((tmp_path / "h200-depthwise-backward.json").read_text())
    assert written["tests"] == {"pytest -m gpu": "passed", "compute-sanitizer": "ended with 3"}
    assert "compute-sanitizer: ended with 3" in capsys.readouterr().out
    sys.path.remove(str(tmp_path))


def test_the_build_takes_what_is_there(gpu, monkeypatch, tmp_path):
    torch, pybind11 = types.ModuleType("torch"), types.ModuleType("pybind11")
    torch.cuda = types.SimpleNamespace(get_device_capability=lambda: (9, 0))
    pybind11.get_cmake_dir = lambda: "/pybind11"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "pybind11", pybind11)
    commands = []
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, check: commands.append(command))
    for name in ("_core.so", "_cuda.so", "_testing.so"):
        (tmp_path / name).touch()
    site = gpu.build(tmp_path)
    configure, build = commands
    assert "-DFASTCONV_CUDA_ARCHITECTURES=90a-real" in configure
    assert "-Dpybind11_DIR=/pybind11" in configure
    assert build[:2] == ["cmake", "--build"]
    assert {p.name for p in (site / "fastconv").glob("*.so")} == {"_core.so", "_cuda.so", "_testing.so"}
    assert (site / "fastconv" / "functional" / "conv.py").exists()


def test_the_worst_come_first(gpu, capsys):
    row = {"family": "pool", "dtype": "float32", "layout": "NCHW", "right": True}
    rows = [
        {**row, "name": "quick", "us": 1.0, "ratio": 3.0, "share": 0.9, "torch_us": 3.0},
        {**row, "name": "alone", "us": 1.0, "share": 0.9, "note": "PyTorch: no kernel"},
        {**row, "name": "slow", "us": 1.0, "ratio": 0.5, "share": 0.2, "torch_us": 0.5},
        {**row, "name": "broken", "right": False, "note": "RuntimeError: no"},
        {**row, "name": "wrong", "right": False, "error": float("nan")},
        {**row, "name": "late", "note": "not reached in 35 s"},
    ]
    gpu.show({"rows": rows})
    names = [line[19:].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["broken", "wrong", "slow", "quick", "alone", "late"]


def results_file(rows):
    return {
        "schema": "fastconv-gpu-1",
        "gpu": "NVIDIA H200",
        "torch": "2.11",
        "cuda": "13.0",
        "cudnn": 91200,
        "fastconv": "0.1.0",
        "copy_bandwidth": 4.1e12,
        "rows": rows,
    }


def test_tables(gpu, tmp_path):
    for name in ("docs/gpu.md", "README.md"):
        (tmp_path / Path(name).name).write_text((ROOT / name).read_text())
    pages = [tmp_path / "gpu.md", tmp_path / "README.md"]
    assert not gpu.report(tmp_path, *pages)
    assert all("Not yet measured" in page.read_text() for page in pages)
    row = {"family": "pool", "dtype": "float32", "layout": "NCHW", "right": True, "us": 2.0}
    rows = [
        {**row, "name": "a", "ratio": 2.0, "torch_us": 4.0, "share": 0.9},
        {**row, "name": "b", "ratio": 8.0, "torch_us": 16.0, "share": 0.4},
        {**row, "name": "c", "dtype": "float16", "share": 0.5, "note": "PyTorch: no kernel"},
        {**row, "name": "d", "us": None, "right": False, "error": 1.0},
    ]
    del rows[3]["us"]
    (tmp_path / "h200-all.json").write_text(json.dumps(results_file(rows)))
    (tmp_path / "h200-other.json").write_text("{}")
    assert gpu.report(tmp_path, *pages)
    detailed, short = (page.read_text() for page in pages)
    assert "Not yet measured" not in detailed + short
    assert "| pool | float32 | NCHW | 2 | 4.00 (2.00) | 60% (40%) |" in detailed
    assert "| pool | float16 | NCHW | 1 | - | 50% (50%) |" in detailed
    assert "| pool | all | both | 3 | 4.00 (2.00) | 56% (40%) |" in short
    assert "4.10 TB/s" in short
    assert "Wrong: pool d." in detailed
    assert not gpu.report(tmp_path, *pages)  # the same again
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(ValueError, match="needs one"):
        gpu.report(tmp_path, *pages)


def test_the_pages_are_what_the_results_make(gpu, tmp_path):
    for name in ("docs/gpu.md", "README.md"):
        shutil.copy(ROOT / name, tmp_path / Path(name).name)
    assert not gpu.report(gpu.RESULTS, tmp_path / "gpu.md", tmp_path / "README.md")
