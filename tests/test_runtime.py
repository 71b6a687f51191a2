"""The choice of the instruction set, and what the module says of itself and of the machine."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import _core

ISAS = ("portable", "avx2", "avx512")


def child(code, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTCONV_")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=60
    )


def test_tests_run_on_the_installed_package():
    root = Path(__file__).parents[1]
    assert not Path.cwd().joinpath("fastconv").exists()
    assert str(root / "python") not in sys.path
    assert fastconv.__version__ == importlib.metadata.version("fastconv") == _core.build_info()["version"]


# ------------------------------------------------------------------------------------------------------------- ISA


def test_isas():
    available = fastconv.available_isas()
    assert available[0] == "portable"
    assert [isa for isa in ISAS if _core.isa_supported(isa)] == list(available)
    for name in available:
        with fastconv.isa(name):
            assert fastconv.get_isa() == name


def test_agrees_with_the_operating_system():
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    flags = set(lines[0].split()) if lines else set()
    assert _core.isa_supported("avx2") == ({"avx2", "fma"} <= flags)
    assert _core.isa_supported("avx512") == ({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags)


@pytest.mark.parametrize("name", ISAS)
def test_environment_chooses(name):
    ran = child("import fastconv; print(fastconv.get_isa())", FASTCONV_ISA=name)
    if name in fastconv.available_isas():
        assert ran.stdout.strip() == name
    else:
        assert ran.returncode != 0
        assert f"FASTCONV_ISA={name}" in ran.stderr
        assert "lacks" in ran.stderr or "does not contain" in ran.stderr


def test_unset_means_the_best():
    for environment in ({}, {"FASTCONV_ISA": ""}):
        ran = child("import fastconv; print(fastconv.get_isa())", **environment)
        assert ran.stdout.strip() == fastconv.available_isas()[-1]


@pytest.mark.parametrize("name", ["AVX2", "sse", "avx2 ", "0"])
def test_unknown_names_are_errors(name):
    ran = child("import fastconv", FASTCONV_ISA=name)
    assert ran.returncode != 0
    assert f"FASTCONV_ISA={name}: must be one of portable, avx2, avx512" in ran.stderr
    with pytest.raises(ValueError, match="isa"):
        fastconv.set_isa(name)
    with pytest.raises(ValueError, match="must be one of portable, avx2, avx512"):
        _core.set_isa(name)


# -------------------------------------------------------------------------------------------------------- machine


def test_cpu():
    assert _core.cpu_name().strip()
    sizes = _core.cache_sizes()
    assert 8 << 10 <= sizes["l1d"] <= 1 << 20
    assert sizes["l1d"] < sizes["l2"] <= 256 << 20
    assert sizes["l2"] <= sizes["l3"]


def test_build_info():
    info = _core.build_info()
    assert set(info) == {"version", "compiler", "flags", "platform", "python"}
    assert all(info.values())


def test_fma_loop(isa):
    flops = _core.run_fma_loop("float32", 1000)
    assert flops > 1000
    assert _core.run_fma_loop("float32", 2000) == 2 * flops
    assert 0 < _core.run_fma_loop("float64", 1000) <= flops
    with pytest.raises(TypeError, match="int8"):
        _core.run_fma_loop("int8", 1)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("elements", [0, 1, 7, 8, 63, 64, 65, 1001, 3_000_003])
def test_copy(isa, mode, elements):
    source = np.arange(elements, dtype=np.float32)
    # One element before and after, off the alignment of a vector.
    around = np.full(elements + 2, -1, np.float32)
    _core.run_copy(around[1:-1], source, mode)
    assert (around[1:-1] == source).all()
    assert around[0] == around[-1] == -1


def test_copy_refuses():
    a, b = np.zeros(8), np.zeros(8)
    with pytest.raises(ValueError, match="same number of bytes"):
        _core.run_copy(a, b[:4], 0)
    with pytest.raises(ValueError, match="C-contiguous"):
        _core.run_copy(a[::2], b[:4], 0)
    with pytest.raises(ValueError, match="mode"):
        _core.run_copy(a, b, 3)
    a.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        _core.run_copy(a, b, 0)


def test_show_config(capsys):
    fastconv.show_config()
    text = capsys.readouterr().out
    for fact in (fastconv.__version__, fastconv.get_isa(), _core.cpu_name(), _core.build_info()["compiler"]):
        assert fact in text
