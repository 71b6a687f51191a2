"""The host build of the GPU's kernels: that it finds what it is there to find."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv import cuda, functional

from . import sanitizers

PLANTED = "alignment barrier beyond divergent lanes matrices short_tail stages sums tail wait warp".split()  # noqa: SIM905


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
    weights, wide = on(16, 1, 3, 3, dtype="float16"), on(136, 16, 1, 1, dtype="float16")
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
        ("mma_tiles", lambda: d.conv2d(on(9, 40, 40, 16, dtype="float16"), wide, layout="NHWC"), 65536),
        ("mma_weights", lambda: d.conv2d_backward_weight(half, half, (16, 16, 3, 3), padding=1, layout="NHWC"), 1),
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


def test_reads_beyond_an_array_are_found():
    """In a Python process that has AddressSanitizer's runtime and takes the sanitized module."""
    environment = sanitizers.environment()
    if isinstance(environment, str):
        pytest.skip(environment)

    def run(guarded):
        program = f"from fastconv import _cuda_host_sanitized as m; print(repr(m.planted('over_read', {guarded})))"
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)

    done = run(True)
    assert (done.returncode, done.stdout) == (0, "''\n"), done.stderr
    done = run(False)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.timeout(900)
def test_kernels_under_the_sanitizers(background):
    """The tests of all kernels once more, with AddressSanitizer and UBSan, in a process that ran beside the others."""
    code, output = background.finish()
    assert code == 0, output[-8000:]
    assert " passed" in output
    assert " failed" not in output
