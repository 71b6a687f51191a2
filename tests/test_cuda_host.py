"""The host build of the GPU's kernels: that it finds what it is there to find."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv

PLANTED = "alignment barrier beyond divergent lanes short_tail stages tail wait warp".split()  # noqa: SIM905


@pytest.fixture
def host(device):
    if not hasattr(device, "planted"):
        pytest.skip("needs the module _cuda_host")
    return device


def test_the_list_of_planted_bugs_is_whole(host):
    assert set(host.planted("", True).split()) == {*PLANTED, "over_read"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(host, name, seed):
    host.set_seed(seed)
    assert host.planted(name, False)
    assert host.planted(name, True) == ""


def test_what_is_found_is_named(host):
    assert "waits at planted.cu:" in host.planted("divergent", False)
    assert "which has ended" in host.planted("lanes", False)
    assert "no multiple of 16" in host.planted("alignment", False)
    assert "beyond the 256 bytes of shared memory" in host.planted("beyond", False)


def test_index_arithmetic(host):
    assert host.check_index() == ""


def test_orders_follow_the_seed(host):
    # A race has one outcome a seed, and several over seeds.
    found = {}
    for seed in range(8):
        host.set_seed(seed)
        found[seed] = host.planted("barrier", False)
        host.set_seed(seed)
        assert host.planted("barrier", False) == found[seed]
    assert len(set(found.values())) > 1


def runtime_of(compiler, name):
    try:
        path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = Path(path.stdout.strip())
    return found if found.is_absolute() and found.exists() else None


@pytest.fixture
def sanitized():
    """Runs a Python command in a process that has AddressSanitizer's runtime and takes the sanitized module."""
    if "FASTCONV_CUDA_HOST_MODULE" in os.environ:
        pytest.skip("runs in it")
    package = Path(fastconv.__file__).parent
    # The interceptor of exceptions wants the C++ library to be there when it starts.
    runtimes = [runtime_of("g++", name) for name in ("libasan.so", "libstdc++.so")]
    if None in runtimes or not list(package.glob("_cuda_host_sanitized*.so")):
        pytest.skip("needs g++'s libasan and the module _cuda_host_sanitized (FASTCONV_CUDA_HOST=ON)")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(map(str, runtimes)),
        # Python's own blocks are not returned at its end.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "FASTCONV_CUDA_HOST_MODULE": "_cuda_host_sanitized",
        "FASTCONV_NUM_THREADS": "1",
        # As this process found it, installed or not.
        "PYTHONPATH": str(package.parent),
    }
    root = Path(__file__).parents[1]
    return lambda *command: subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, cwd=root
    )


def test_reads_beyond_an_array_are_found(sanitized):
    program = "from fastconv import _cuda_host_sanitized as m; print(repr(m.planted('over_read', {})))"
    done = sanitized("-c", program.format(True))
    assert (done.returncode, done.stdout) == (0, "''\n"), done.stderr
    done = sanitized("-c", program.format(False))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_kernels_under_the_sanitizers(sanitized):
    """The tests of all kernels once more, with AddressSanitizer and UBSan."""
    others = ("test_cuda_host.py", "test_cuda_codegen.py")
    tests = sorted(str(p) for p in Path(__file__).parent.glob("test_cuda_*.py") if p.name not in others)
    done = sanitized("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu and not slow", *tests)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert " failed" not in done.stdout
