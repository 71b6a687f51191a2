"""The cache of output blocks and the scratch memory of threads."""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastconv

MB = 1 << 20


@pytest.fixture(autouse=True)
def empty_cache():
    gc.collect()
    cap = fastconv.cache_info()["cap_bytes"]
    fastconv.clear_cache()
    yield
    fastconv.set_cache_limit(cap / MB)


def result(elements, dtype=np.float32):
    """An output of this many elements."""
    return fastconv.conv1d(np.ones((1, 1, elements), dtype), np.ones((1, 1, 1), dtype))


def test_a_freed_block_is_used_again():
    before = fastconv.cache_info()
    y = result(100_000)
    address = y.ctypes.data
    assert fastconv.cache_info()["misses"] == before["misses"] + 1
    assert fastconv.cache_info()["live_bytes"] >= before["live_bytes"] + y.nbytes
    del y
    assert fastconv.cache_info()["live_bytes"] == before["live_bytes"]
    assert 400_000 <= fastconv.cache_info()["cached_bytes"] <= 450_000
    y = result(100_000)
    assert y.ctypes.data == address
    assert fastconv.cache_info()["hits"] == before["hits"] + 1
    assert fastconv.cache_info()["cached_bytes"] == 0


def test_a_view_keeps_its_block():
    y = result(100_000)
    view = y[0, 0, 500:600]
    del y
    others = [result(100_000) for _ in range(3)]
    assert (view == 1).all()
    low, high = view.ctypes.data, view.ctypes.data + view.nbytes
    assert all(high <= o.ctypes.data or o.ctypes.data + o.nbytes <= low for o in others)


@pytest.mark.parametrize("elements", [1, 15, 16, 17, 255, 256, 257, 1000, 4097, 100_003, 1_000_001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_alignment_and_disjointness(elements, dtype):
    arrays = [result(elements, dtype) for _ in range(4)]
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays)
    assert all(begin % 64 == 0 for begin, _ in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    for i, a in enumerate(arrays):
        a.fill(i)
    assert all((a == i).all() for i, a in enumerate(arrays))


def test_a_block_never_serves_a_larger_array():
    """Sizes on both sides of every size class, each freed before the next is asked for."""
    for octave in range(6, 22):
        for eighth in range(9):
            edge = (1 << octave) + (1 << octave) // 8 * eighth
            for size in (edge - 4, edge, edge + 4, edge + 60, edge + 68):
                y = result(max(size // 4, 1))
                live = fastconv.cache_info()["live_bytes"]
                assert live >= y.nbytes
                y.fill(3)
                del y


def test_the_cap_evicts_the_oldest():
    fastconv.set_cache_limit(4)
    info = fastconv.cache_info()
    assert info["cap_bytes"] == 4 * MB
    sizes = [200_000, 300_000, 400_000, 500_000]  # elements: 0.8, 1.2, 1.6 and 2 MB
    arrays = [result(n) for n in sizes]
    while arrays:
        arrays.pop(0)
    assert fastconv.cache_info()["cached_bytes"] <= 4 * MB
    misses = fastconv.cache_info()["misses"]
    newest = result(sizes[-1])
    assert fastconv.cache_info()["misses"] == misses
    oldest = result(sizes[0])
    assert fastconv.cache_info()["misses"] == misses + 1
    del newest, oldest
    fastconv.set_cache_limit(0)
    assert fastconv.cache_info()["cached_bytes"] == 0
    result(1000)
    assert fastconv.cache_info()["cached_bytes"] == 0


def test_clear():
    kept = result(50_000)
    result(60_000)
    assert fastconv.cache_info()["cached_bytes"] > 0
    fastconv.clear_cache()
    assert fastconv.cache_info()["cached_bytes"] == 0
    assert (kept == 1).all()


def test_out_takes_no_block():
    out = np.empty((1, 1, 1000), np.float32)
    before = fastconv.cache_info()
    assert fastconv.conv1d(np.ones_like(out), np.ones((1, 1, 1), np.float32), out=out) is out
    assert fastconv.cache_info() == before


def test_threads_share_the_cache():
    """Arrays made in one thread and freed in another; every array has its own values throughout."""
    failures = []
    handed_over = [[] for _ in range(4)]

    def work(seed):
        rng = np.random.default_rng(seed)
        for i in range(200):
            y = result(int(rng.integers(1, 30_000)))
            y.fill(seed)
            handed_over[(seed + 1) % 4].append((seed, y))
            if i % 3 == 0 and handed_over[seed]:
                owner, other = handed_over[seed].pop()
                if not (other == owner).all():
                    failures.append(seed)

    live = fastconv.cache_info()["live_bytes"]
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    handed_over.clear()
    assert fastconv.cache_info()["live_bytes"] == live


def child(code, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTCONV_")}
    ran = subprocess.run(
        [sys.executable, "-c", "import numpy as np, fastconv, resource, os\n" + code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize(("value", "megabytes"), [("7", 7), ("0", 0), ("", 256), ("-1", 256), ("x", 256), ("3.5", 256)])
def test_environment(value, megabytes):
    got = child("print(fastconv.cache_info()['cap_bytes'])", FASTCONV_CACHE_MB=value)
    assert int(got) == megabytes * MB


def test_a_request_that_cannot_be_had():
    """A 3 GB output under a limit of the address space: an error, and the library goes on."""
    child(
        """
x, w = np.ones((1, 1, 1 << 10), np.float32), np.ones((768 << 10, 1, 1), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
try:
    fastconv.conv1d(x, w)
except MemoryError as error:
    assert str(error), "no words"
else:
    raise SystemExit("3 GB where 1 GB was left")
assert (fastconv.conv1d(x, w[:5]) == 1).all()
"""
    )


def test_kept_blocks_make_way():
    """What the cache keeps is given back when the system has nothing else."""
    child(
        """
fastconv.set_num_threads(1)
w = np.ones((1, 1, 1), np.float32)
small, large = np.ones((1, 1, 50 << 18), np.float32), np.ones((1, 1, 110 << 18), np.float32)
kept = [fastconv.conv1d(small, w) for _ in range(2)]
del kept
assert fastconv.cache_info()["cached_bytes"] >= 100 << 20
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20),) * 2)
y = fastconv.conv1d(large, w)
assert fastconv.cache_info()["cached_bytes"] == 0
assert y.min() == y.max() == 1
"""
    )


def test_scratch_is_freed_with_its_thread():
    x, w = np.ones((1, 32, 40, 40), np.float32), np.ones((32, 32, 3, 3), np.float32)
    held = []

    def call():
        with fastconv.num_threads(1):
            fastconv.conv2d_backward_weight(fastconv.conv2d(x, w), x, w.shape)
        held.append(fastconv.workspace_info()["held_bytes"])

    before = fastconv.workspace_info()["held_bytes"]
    threads = [threading.Thread(target=call) for _ in range(4)]
    for t in threads:
        t.start()
        t.join()
    assert max(held) > before
    # join() returns when Python is done with a thread, a moment before its thread-local memory is freed.
    deadline = time.monotonic() + 10
    while fastconv.workspace_info()["held_bytes"] != before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert fastconv.workspace_info()["held_bytes"] == before


def test_peak_is_per_call_and_resets():
    x, w = np.ones((1, 32, 40, 40), np.float32), np.ones((32, 32, 3, 3), np.float32)
    fastconv.workspace_info(reset=True)
    assert fastconv.workspace_info()["peak_call_bytes_per_thread"] == 0
    fastconv.conv2d(x, w)
    once = fastconv.workspace_info()["peak_call_bytes_per_thread"]
    fastconv.conv2d(x, w)
    assert 0 < fastconv.workspace_info(reset=True)["peak_call_bytes_per_thread"] == once
