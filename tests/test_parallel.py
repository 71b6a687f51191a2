"""Threads: how many, whose, and what survives forks, concurrent callers and the end of the interpreter."""

import ctypes
import os
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastconv
from fastconv import _core

# In children: the library's worker threads of this process, and a convolution with enough tasks for many of them.
PRELUDE = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
import fastconv
def workers():
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:  # ended meanwhile
            pass
    return names.count("fastconv")
def settled(count):
    # On a busy machine it takes a while until all have named themselves.
    for _ in range(1000):
        if workers() == count:
            return True
        time.sleep(0.005)
    return False
x = np.random.default_rng(0).standard_normal((1, 64, 112, 112), dtype=np.float32)
w = np.random.default_rng(1).standard_normal((64, 64, 3, 3), dtype=np.float32)
"""


def child(code, *, timeout=60, **environment):
    """Runs the code in a fresh interpreter, whose threads are set by nothing else, and returns what it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCONV_", "OMP_"))}
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, f"{result.returncode}: {result.stderr}"
    return result.stdout.strip()


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 56, 56), dtype=np.float32)
    w = rng.standard_normal((48, 32, 3, 3), dtype=np.float32)
    with fastconv.num_threads(1):
        return x, w, fastconv.conv2d(x, w, padding=1)


# ------------------------------------------------------------------------------------------------------ how many


def test_scope_is_above_setting():
    before = fastconv.get_num_threads()
    try:
        fastconv.set_num_threads(5)
        assert fastconv.get_num_threads() == 5
        with fastconv.num_threads(3):
            assert fastconv.get_num_threads() == 3
            with fastconv.num_threads(2):
                assert fastconv.get_num_threads() == 2
            fastconv.set_num_threads(6)
            assert fastconv.get_num_threads() == 3
        assert fastconv.get_num_threads() == 6
    finally:
        fastconv.set_num_threads(before)


def test_scope_belongs_to_its_thread():
    seen = []
    with fastconv.num_threads(3):
        other = threading.Thread(target=lambda: seen.append(fastconv.get_num_threads()))
        other.start()
        other.join()
        assert fastconv.get_num_threads() == 3
    assert seen == [fastconv.get_num_threads()]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FASTCONV_NUM_THREADS": "3"}, 3),
        ({"FASTCONV_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"FASTCONV_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        *[({"FASTCONV_NUM_THREADS": bad}, None) for bad in ("0", "-2", "many", "3x", "99999999999999999999")],
    ],
)
def test_environment(environment, expected):
    got = child("print(fastconv.get_num_threads())", **environment)
    assert int(got) == (expected or _core.available_cores())


def test_affinity_limits_the_default():
    code = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nprint(fastconv.get_num_threads())"
    assert child(code) == "1"
    assert child(code, FASTCONV_NUM_THREADS="2") == "2"


@pytest.mark.parametrize("n", [1, 2, 7])
def test_as_many_threads_as_asked_for(n):
    """Also more than there are cores."""
    code = f"fastconv.set_num_threads({n})\nfastconv.conv2d(x, w, padding=1)\nprint(settled({n - 1}), workers())"
    assert child(code) == f"True {n - 1}"


def test_threads_start_lazily():
    code = "a = workers()\nfastconv.conv2d(x[:, :1, :4, :4], w[:1, :1])\nprint(a, workers())"
    assert child(code, FASTCONV_NUM_THREADS="4") == "0 0"


# --------------------------------------------------------------------------------------------- concurrent callers


def test_concurrent_callers(problem):
    x, w, expected = problem
    wrong = []

    def call(limit):
        with fastconv.num_threads(limit):
            same = [np.array_equal(fastconv.conv2d(x, w, padding=1), expected) for _ in range(20)]
        if not all(same):
            wrong.append(limit)

    threads = [threading.Thread(target=call, args=(1 + i % 4,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
        assert not t.is_alive(), "deadlock"
    assert not wrong


def test_settings_change_during_calls(problem):
    x, w, expected = problem
    before = fastconv.get_num_threads()
    stop = threading.Event()

    def change():
        n = 0
        while not stop.wait(0.0005):
            n += 1
            fastconv.set_num_threads(1 + n % 5)
            fastconv.clear_cache()

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(40):
            assert np.array_equal(fastconv.conv2d(x, w, padding=1), expected)
    finally:
        stop.set()
        changer.join()
        fastconv.set_num_threads(before)


# ----------------------------------------------------------------------------------------------------------- fork

FORK = """
fastconv.set_num_threads(3)
expected = fastconv.conv2d(x, w, padding=1)
assert settled(2)
{others}
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        inherited = workers()
        ok = all(np.array_equal(fastconv.conv2d(x, w, padding=1), expected) for _ in range(3))
        os._exit(0 if ok and inherited == 0 and settled(2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(fastconv.conv2d(x, w, padding=1), expected)
os._exit(0)
"""
BUSY = """
def busy():
    while True:
        fastconv.conv2d(x, w, padding=1)
for _ in range(2):
    threading.Thread(target=busy, daemon=True).start()
"""


@pytest.mark.parametrize("others", ["", BUSY], ids=["quiet", "other threads calling"])
def test_fork(others):
    child("import warnings\nwarnings.simplefilter('ignore')\n" + FORK.format(others=others), timeout=120)


def test_multiprocessing_fork():
    child(
        """
import multiprocessing, warnings
warnings.simplefilter("ignore")
fastconv.set_num_threads(2)
expected = fastconv.conv2d(x, w, padding=1)
def call(i):
    return np.array_equal(fastconv.conv2d(x, w, padding=1), expected)
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert all(pool.map(call, range(12)))
""",
        timeout=120,
    )


def test_fork_in_a_signal_handler():
    """The handler runs inside the call. The child cannot finish it, and says so; the parent can."""
    code = """
import signal, warnings
warnings.simplefilter("ignore")
fastconv.set_num_threads(3)
small = fastconv.conv2d(x, w, padding=1)
child = None
def fork(*_):
    global child
    child = os.fork()
signal.signal(signal.SIGALRM, fork)
big, out = np.repeat(x, 64, axis=0), np.empty((64, 64, 112, 112), np.float32)
fastconv.conv2d(big, w, padding=1, out=out)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    while child is None:
        fastconv.conv2d(big, w, padding=1, out=out)
    refused = False
except RuntimeError as error:
    refused = "forked" in str(error)
right = np.array_equal(fastconv.conv2d(x, w, padding=1), small)
if child == 0:
    os._exit(0 if refused and right else 1)
assert not refused and right
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    child(code, timeout=120)


# ------------------------------------------------------------------------------------------------------------ exit


@pytest.mark.parametrize("callers", [1, 4])
def test_exit_while_daemon_threads_call(callers):
    for _ in range(3):
        child(BUSY.replace("range(2)", f"range({callers})") + "time.sleep(0.1)", FASTCONV_NUM_THREADS="2")


# ------------------------------------------------------------------------------------------------------- denormals


def denormal_problem():
    """Products of normal numbers with a denormal sum, in every output and in many tasks."""
    x = np.full((1, 4, 128, 128), 1e-20, np.float32)
    w = np.full((32, 4, 1, 1), 1e-20, np.float32)
    return x, w


@pytest.mark.parametrize("threads", [1, 3])
def test_denormals(isa, threads):
    x, w = denormal_problem()
    with fastconv.num_threads(threads):
        honoured = fastconv.conv2d(x, w)
        with fastconv.flush_denormals(True):
            flushed = fastconv.conv2d(x, w)
        again = fastconv.conv2d(x, w)
    assert (honoured > 0).all()
    assert (flushed == 0).all()
    assert (again == honoured).all()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads MXCSR out of x86-64's fenv_t")
@pytest.mark.parametrize("threads", [1, 3])
def test_callers_floating_point_mode(isa, threads):
    """A caller that flushes, or rounds down, gets the same bits and keeps its mode."""
    libm = ctypes.CDLL("libm.so.6")
    saved, mode = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    mxcsr = 7
    rng = np.random.default_rng(0)
    x, w = denormal_problem()
    x2, w2 = rng.standard_normal((1, 8, 64, 64)).astype("f4"), rng.standard_normal((32, 8, 3, 3)).astype("f4")
    expected, expected2 = fastconv.conv2d(x, w), fastconv.conv2d(x2, w2)
    libm.fegetenv(saved)
    with fastconv.num_threads(threads):
        libm.fegetenv(mode)
        mode[mxcsr] |= 0x8040 | 0x2000
        libm.fesetenv(mode)
        try:
            got, got2 = fastconv.conv2d(x, w), fastconv.conv2d(x2, w2)
            libm.fegetenv(mode)
        finally:
            libm.fesetenv(saved)
    assert mode[mxcsr] & 0xFFC0 == saved[mxcsr] & 0xFFC0 | 0x8040 | 0x2000
    assert (got == expected).all()
    assert (got2 == expected2).all()
