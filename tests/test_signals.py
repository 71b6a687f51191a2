"""Ctrl-C ends a long call within 100 ms and leaves the library working."""

import signal
import subprocess
import sys
import time

import pytest

CHILD = """
import signal, sys, threading, time
import numpy as np
from fastconv import functional, reference, num_threads

# Tests that run in the background of a shell ignore Ctrl-C, and a child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
threads, what = int(sys.argv[1]), sys.argv[2]
n = 32
x, w = np.ones((n, 64, 112, 112), np.float32), np.ones((256, 64, 5, 5), np.float32)
dy = np.ones((n, 256, 108, 108), np.float32)  # also the output of the forward call
rng = np.random.default_rng(0)
small_x, small_w = rng.standard_normal((2, 8, 20, 20)), rng.standard_normal((9, 8, 5, 5))
expected = functional.conv2d(small_x, small_w)
with num_threads(threads):
    try:
        print("ready", flush=True)
        # Once is about a second of work; the loop ends the test where the signal never arrives.
        for _ in range(20):
            if what == "forward":
                functional.conv2d(x, w, out=dy)
            elif what == "input":
                functional.conv2d_backward_input(dy, w, x.shape)
            else:
                functional.conv2d_backward_weight(dy, x, w.shape)
            print("a call ended", flush=True)
    except KeyboardInterrupt:
        print("interrupted", time.monotonic(), flush=True)
    assert np.array_equal(functional.conv2d(small_x, small_w), expected)
    np.testing.assert_allclose(expected, reference.conv2d(small_x, small_w), rtol=1e-10, atol=1e-10)
    print("right afterwards", flush=True)
"""


def interrupt(threads, what):
    """Seconds from the signal to the handler, and how many calls ended before it."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(threads), what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.2)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    *calls, line, after = rest.splitlines()
    assert process.returncode == 0, errors
    assert after == "right afterwards"
    assert line.startswith("interrupted")
    return float(line.split()[1]) - sent, len(calls)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", ["forward", "input", "weight"])
def test_interrupt_within_100_ms(threads, what):
    # The best of ten: other processes may hold the cores for longer than the limit.
    trials = []
    for _ in range(10):
        trials.append(interrupt(threads, what))
        if trials[-1][0] < 0.1:
            break
    delay, calls = min(trials)
    assert delay < 0.1
    assert calls == 0, "the call was too short to be interrupted within"
