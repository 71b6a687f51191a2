"""The programs in examples that train, shortened here and, slow, as they stand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def program(name: str) -> ModuleType:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_train_digits(capsys: pytest.CaptureFixture[str]) -> None:
    right = program("train_digits").main(epochs=5)
    out = capsys.readouterr().out
    assert right > 0.8
    assert out.count("held out: loss") == 5
    assert f"test: {right:.2%} of 359 right" in out


def test_transfer_learning(capsys: pytest.CaptureFixture[str]) -> None:
    """The program itself asserts that frozen layers keep their bits."""
    base, head, top = program("transfer_learning").main(4, 8, 6).values()
    assert base > 0.9
    assert head > 0.6
    assert top > head
    assert "18 of the base's 24 arrays have kept their bits" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_as_it_stands(path: Path, tmp_path: Path) -> None:
    """A minute on one core, of which the machine may be short."""
    for name in ("torch",) if path.stem == "convert_pytorch" else ("sklearn", "PIL", "matplotlib"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
        env={**os.environ, "FASTCONV_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if path.stem == "train_digits":
        assert float(done.stdout.split("test: ")[1].split("%")[0]) > 98
