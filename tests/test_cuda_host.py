"""The host build of the GPU's kernels: that it finds what it is there to find."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv
from fastconv import cuda, functional

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


def test_launches_stay_within_their_shared_memory(host, rng):
    """The `shared` of the gates, at calls that take the most of each family; the kernels say how much is theirs."""
    budgets = {}
    for source in (Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"):
        for kernel, most in re.findall(r"^// gate: (\w+) registers \d+(?: shared (\d+))?$", source.read_text(), re.M):
            budgets[kernel] = int(most or 0)

    def on(*shape, dtype="float64"):
        return cuda.to_device(rng.standard_normal(shape), dtype=dtype)

    d, depthwise = functional, {"groups": 16, "padding": 15, "dilation": 15}
    x, w, half = on(1, 16, 40, 40), on(16, 1, 3, 3), on(1, 40, 40, 16, dtype="float16")
    weights = on(16, 1, 3, 3, dtype="float16")
    for kernel, call, least in (
        ("depthwise_forward", lambda: d.conv2d(x, w, **depthwise), 1),
        ("depthwise_forward", lambda: d.conv2d(half, weights, layout="NHWC", **depthwise), 1),
        ("depthwise_backward", lambda: d.conv2d_backward(x, x, w, **depthwise), 1),
        ("depthwise_backward", lambda: d.conv2d_backward(half, half, weights, layout="NHWC", **depthwise), 1),
        ("depthwise_forward", lambda: d.conv_transpose2d(x, w, **depthwise), 1),
        ("depthwise_backward", lambda: d.conv_transpose2d_backward(x, x, w, **depthwise), 1),
        ("depthwise_backward", lambda: d.conv2d_backward(x, x, w, padding_mode="reflect", **depthwise), 1),
        ("depthwise_backward", lambda: d.conv2d_backward(on(1, 48, 40, 40), x, on(48, 1, 3, 3), **depthwise), 1),
        ("product_tiles", lambda: d.conv2d(x, on(16, 16, 3, 3)), 1),
        ("thin_weights", lambda: d.conv2d_backward_weight(on(1, 2, 9, 9), on(1, 2, 9, 9), (2, 2, 1, 1)), 1),
        ("bias_sums", lambda: d.conv2d_backward_bias(x), 1),
        ("channel_sums", lambda: d.batch_norm_train(x), 1),
        ("reduce", lambda: d.group_norm(x, 2), 1),
        ("softmax_rows", lambda: d.softmax(x, -1), 1),
        ("pool_large", lambda: d.global_max_pool2d(x), 1),
        ("map_dense", lambda: d.relu(x), 0),
        ("softmax_columns", lambda: d.softmax(x, 1), 0),
    ):
        host.take_most_shared()
        call()
        assert least <= host.take_most_shared() <= budgets[kernel], kernel


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


@pytest.mark.timeout(600)
def test_kernels_under_the_sanitizers(sanitized):
    """The tests of all kernels once more, with AddressSanitizer and UBSan; test_cuda_gpu has no kernel of its own."""
    others = ("test_cuda_host.py", "test_cuda_codegen.py", "test_cuda_bench.py", "test_cuda_gpu.py")
    tests = sorted(str(p) for p in Path(__file__).parent.glob("test_cuda_*.py") if p.name not in others)
    done = sanitized("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu and not slow", *tests)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert " failed" not in done.stdout
