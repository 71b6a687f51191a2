"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import functional
from fastconv.__main__ import main


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastconv {fastconv.__version__}\n"


def test_numpy_alone_serves_version_info_and_check() -> None:
    code = """
import sys
for name in ("rich", "sklearn", "scipy", "matplotlib", "PIL", "pytest", "torch"):
    sys.modules[name] = None
from fastconv.__main__ import main
assert main(["info"]) == 0
assert main(["check", "--op", "linear_backward_bias"]) == 0
try:
    main(["--version"])
except SystemExit as stop:
    assert stop.code == 0
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert fastconv.__version__ in done.stdout
    assert "all right" in done.stdout


def test_without_a_command() -> None:
    done = run_python("-m", "fastconv")
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert str(fastconv.get_isa()) in capsys.readouterr().out


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", "conv2d", "--input", "1,8,9,9", "--weight", "8,8,3,3", "--padding", "same", "--stride", "2"]
    assert main(arguments) == 0
    assert "conv2d" in capsys.readouterr().out
    assert main([*arguments, "--groups", "3"]) == 2
    assert "groups (=3)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["explain", "conv2d", "--input", "eight", "--weight", "8,8,3,3"])


# ------------------------------------------------------------------------------------------------------------- check


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--op", "linear_backward_weight"]) == 0
    out = capsys.readouterr().out
    assert "all right" in out
    for isa in fastconv.available_isas():
        assert f"{isa} " in out


def test_check_finds_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = functional.linear_backward_weight

    def wrong(*arguments: Any, **options: Any) -> Any:
        dw = right(*arguments, **options)
        dw.flat[0] += 1e-3
        return dw

    wrong.__signature__ = __import__("inspect").signature(right)  # type: ignore[attr-defined]
    monkeypatch.setattr(functional, "linear_backward_weight", wrong)
    assert main(["check", "--op", "linear_backward_weight"]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "Please report" in out


def test_check_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--op", "pool9d"]) == 2
    assert main(["check", "--isa", "mmx"]) == 2
    assert "must be one of" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- bench


def test_bench_lists_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert main(["bench", "--list", "--net", "vgg16"]) == 0
    assert "vgg16/conv1_1" in capsys.readouterr().out


def test_bench_writes_json_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    path = tmp_path / "results.json"
    arguments = ["bench", "--peers", "none", "--filter", "tiny/3x3|tiny/linear", "--rounds", "2", "--seconds", "0.002"]
    assert main([*arguments, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "tiny: worst first" in out
    assert "Geometric means" in out
    document = json.loads(path.read_text())
    assert {"schema", "fastconv", "numpy", "created", "machine", "settings", "peers", "ceilings", "rows"} <= set(
        document
    )
    assert [row["id"] for row in document["rows"]] == ["tiny/3x3 1>1 @8", "tiny/linear 16>10"]
    assert document["machine"]["cpu"]
    assert document["ceilings"][0]["peak"]["float32"] > 0
    row = document["rows"][0]
    assert {"flops", "bytes", "family", "memory_bound", "contenders", "results", "data", "isa", "threads"} <= set(row)
    assert {"median", "low", "high", "best", "worst", "count"} == set(row["contenders"]["fastconv"]["warm"])
    assert str(tmp_path) not in path.read_text()
    assert main(["bench", "--show", str(path)]) == 0
    assert "tiny/linear" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--net", "nonet"], "--net (='nonet') must be one of"),
        (["--threads", "0"], "--threads (='0') must be"),
        (["--threads", "1,x"], "--threads (='1,x') must be"),
        (["--threads", "100000"], "--threads (=100000) must be at most"),
        (["--filter", "("], "--filter (='(') must be a regular expression"),
        (["--filter", "nothing at all"], "no layer is left"),
        (["--family", "9x9"], "--family (='9x9') must be one of"),
        (["--peers", "caffe"], "--peers (='caffe') must be among"),
        (["--peer-python", "caffe=/x"], "--peer-python (='caffe=/x') must name one of"),
        (["--rounds", "0"], "--rounds and --seconds must be positive"),
        (["--show", "no such file"], "no such file"),
        (["--report", "--readme", "no such file"], "no such file"),
    ],
)
def test_bench_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert main(["bench", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_bench_without_rich_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["bench", "--list"]) == 2
    assert 'pip install "fastconv[bench]"' in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- train


def train(folder: Path, *arguments: str) -> list[str]:
    return ["train", "--checkpoint", str(folder / "run.npz"), "--output", str(folder / "out" / "run.png"), *arguments]


def mnist(folder: Path, count: int = 40) -> Path:
    """Two kinds of images in MNIST's files."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for stem in ("train", "t10k"):
        labels = rng.permutation(np.arange(count, dtype=np.uint8) % 2)
        images = (rng.integers(0, 80, (count, 16, 16)) + 150 * (np.arange(16) < 8) * labels[:, None, None]).astype("u1")
        for kind, array in (("images", images), ("labels", labels)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{stem}-{kind}-idx{array.ndim}-ubyte").write_bytes(head + array.tobytes())
    return folder


def needs_train() -> None:
    for name in ("rich", "matplotlib", "sklearn"):
        pytest.importorskip(name)


def test_train_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--mnist", "--epochs", "--patience", "--seed", "--checkpoint", "--resume", "--output"):
        assert option in out


@pytest.mark.parametrize("source", ["digits", "mnist"])
def test_train_draws_and_goes_on(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_train()
    image = pytest.importorskip("PIL.Image")
    files = ["--mnist", str(mnist(tmp_path / "files"))] if source == "mnist" else ["--batch-size", "128"]
    arguments = train(tmp_path, "--epochs", "2", *files)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    counts = (
        "36 to train, 4 held out, 40 to test; 16x16" if files[0] == "--mnist" else "1259 to train, 179 held out, 35"
    )
    assert counts in out
    assert "epoch  1/2" in out
    assert "epoch  2/2" in out
    test = next(line for line in out.splitlines() if line.startswith("test: "))
    with image.open(tmp_path / "out" / "run.png") as drawn:
        drawn.verify()
        assert drawn.format == "PNG"
        assert min(drawn.size) > 600
    # It is at its end: nothing is trained, and the result is the same.
    before = (tmp_path / "run.npz").read_bytes()
    assert main([*arguments, "--resume"]) == 0
    out = capsys.readouterr().out
    assert test in out.splitlines()
    assert "epoch  1/2" not in out
    assert (tmp_path / "run.npz").read_bytes() == before
    # The rate falls over all epochs: with another number of them it is another training.
    assert main([*train(tmp_path, "--epochs", "3", *files), "--resume"]) == 2
    assert "run.npz: to go on, notes" in capsys.readouterr().err


def test_train_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    needs_train()
    from fastconv import training

    arguments = train(tmp_path, "--epochs", "3", "--mnist", str(mnist(tmp_path / "files")))
    assert main(arguments) == 0
    whole = (tmp_path / "run.npz").read_bytes()
    (tmp_path / "run.npz").unlink()
    capsys.readouterr()
    calls = []
    evaluate = training.evaluate

    def interrupted(*a: Any, **o: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*a, **o)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", interrupted)
        assert main(arguments) == 130
    error = capsys.readouterr().err
    assert error == f"interrupted; the last whole epoch is in {tmp_path / 'run.npz'}, and --resume goes on from it\n"
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run.npz").read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs (=0) must be at least 1"),
        (["--epochs", "-1"], "--epochs (=-1) must be at least 1"),
        (["--batch-size", "0"], "--batch-size (=0) must be at least 1"),
        (["--patience", "0"], "--patience (=0) must be at least 1"),
        (["--seed", "-1"], "--seed (=-1) must be at least 0"),
        (["--split-seed", "-1"], "--split-seed (=-1) must be at least 0"),
        (["--lr", "-1"], "lr (=-1.0) must"),
        (["--mnist", "no such folder"], "must hold one of train-images-idx3-ubyte"),
        (["--checkpoint", "run.pt"], "checkpoint (='run.pt') must end in .npz or .safetensors"),
    ],
)
def test_train_refuses(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_train()
    assert main(train(tmp_path, *arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastconv train: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_train_refuses_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_train()
    folder = mnist(tmp_path / "files")
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    assert main(train(tmp_path, "--mnist", str(folder))) == 2
    assert f"fastconv train: {images}: " in capsys.readouterr().err
    (tmp_path / "run.npz").write_text("no checkpoint")
    assert main(train(tmp_path, "--resume")) == 2
    assert "run.npz: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rich", "matplotlib", "sklearn"])
def test_train_without_a_package_names_the_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_train()
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    assert main(train(tmp_path)) == 2
    assert 'pip install "fastconv[train]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------------- demo


def test_demo_draws_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("matplotlib", "scipy"):
        pytest.importorskip(name)
    rng = np.random.default_rng(0)
    photo, sheet = tmp_path / "photo.jpg", tmp_path / "out" / "sheet.png"
    image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(photo)
    assert main(["demo", str(photo), "--output", str(sheet)]) == 0
    out = capsys.readouterr().out
    for title in ("blur", "sharpen", "Sobel x", "Sobel magnitude", "emboss", "oriented", "stride", "dilation"):
        assert title in out
    with image.open(sheet) as drawn:
        drawn.verify()
        assert drawn.format == "PNG"
        assert min(drawn.size) > 300


def test_demo_holds_a_bright_picture_to_a_bound_that_it_can_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean of a tile of an FFT is shared by all of its points; the seeded data of other tests have none."""
    image = pytest.importorskip("PIL.Image")
    for name in ("matplotlib", "scipy"):
        pytest.importorskip(name)
    from fastconv import demo

    blur = next(item for item in demo.filters() if item.title == "blur 11x11")
    monkeypatch.setattr(demo, "filters", lambda: [blur])
    rng = np.random.default_rng(0)
    photo, sheet = tmp_path / "photo.png", tmp_path / "sheet.png"
    sky = np.linspace(200, 255, 427)[:, np.newaxis, np.newaxis] + rng.integers(-20, 1, (427, 640, 3))
    image.fromarray(sky.astype(np.uint8)).save(photo)
    x, weight, options = blur.operands(np.ones((3, 427, 640), np.float32), np.ones((1, 427, 640), np.float32))
    assert fastconv.explain("conv2d", x, weight, algorithm="fft", **options).decision["algorithm"] == "fft"
    right = fastconv.conv2d
    monkeypatch.setattr(demo.fastconv, "conv2d", lambda *a, **o: right(*a, **{**o, "algorithm": "fft"}))
    explain = fastconv.explain
    monkeypatch.setattr(demo.fastconv, "explain", lambda *a, **o: explain(*a, **{**o, "algorithm": "fft"}))
    assert main(["demo", str(photo), "--output", str(sheet)]) == 0, capsys.readouterr().err
    assert sheet.exists()


def test_demo_refuses_what_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    small = tmp_path / "small.png"
    image.new("RGB", (3, 3)).save(small)
    for path in (tmp_path / "none.jpg", text, small):
        assert main(["demo", str(path)]) == 2
        assert path.name in capsys.readouterr().err


def test_a_wrong_filter_is_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("matplotlib", "scipy"):
        pytest.importorskip(name)
    photo, sheet = tmp_path / "photo.png", tmp_path / "sheet.png"
    image.new("RGB", (40, 30), (90, 60, 30)).save(photo)
    right = fastconv.conv2d
    monkeypatch.setattr(fastconv, "conv2d", lambda *a, **o: right(*a, **o) * 1.01)
    assert main(["demo", str(photo), "--output", str(sheet)]) == 1
    assert "WRONG" in capsys.readouterr().err
    assert not sheet.exists()
