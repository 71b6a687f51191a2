"""What this machine can do at most: its FMA peak and its copy bandwidth, both measured."""

from __future__ import annotations

import statistics
import threading
import time

import numpy as np

from fastconv import _core

_COPY_MODES = (0, 1, 2)  # memcpy, plain vector stores, non-temporal vector stores


def measure_fma_peak(dtype: str = "float32", *, threads: int = 1, seconds: float = 0.2) -> float:
    """The highest rate of a register-only FMA loop on the current ISA, in flops per second.

    `threads` threads run it side by side, since cores may clock lower together; the rate is that of all of them.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype (={dtype!r}) must be float32 or float64")
    if threads < 1:
        raise ValueError(f"threads (={threads}) must be at least 1")
    iterations = 1 << 10
    while True:
        begin = time.perf_counter()
        _core.run_fma_loop(dtype, iterations)
        if time.perf_counter() - begin > 1e-3:
            break
        iterations *= 2
    best = 0.0
    stop = time.perf_counter() + seconds
    while True:
        best = max(best, _together(dtype, iterations, threads))
        if time.perf_counter() >= stop:
            return best


def _together(dtype: str, iterations: int, threads: int) -> float:
    if threads == 1:
        begin = time.perf_counter()
        flops: float = _core.run_fma_loop(dtype, iterations)
        return flops / (time.perf_counter() - begin)
    barrier = threading.Barrier(threads)
    spans: list[tuple[float, float, float]] = []

    def one() -> None:
        barrier.wait()
        begin = time.perf_counter()
        # Long enough that threads which start a little late still overlap almost all of the time.
        done = sum(_core.run_fma_loop(dtype, iterations) for _ in range(8))
        spans.append((begin, time.perf_counter(), done))

    workers = [threading.Thread(target=one) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done for *_, done in spans) / (max(end for _, end, _ in spans) - min(begin for begin, *_ in spans))


def measure_copy_bandwidth(nbytes: int = 1 << 28, *, seconds: float = 0.2) -> float:
    """The rate of the fastest copy into a ready destination, in bytes read and written per second.

    `nbytes` is what moves in all: half of it is read, half written. The copy takes as many threads as a call would;
    the fastest of memcpy, plain and non-temporal vector stores counts.
    """
    if nbytes < 2:
        raise ValueError(f"nbytes (={nbytes}) must be at least 2")
    source = np.ones(max(nbytes // 2, 1), np.uint8)
    destination = np.zeros_like(source)
    best = float("inf")
    for mode in _COPY_MODES:
        _core.run_copy(destination, source, mode)
        begin = time.perf_counter()
        _core.run_copy(destination, source, mode)
        once = time.perf_counter() - begin
        # Short copies are timed many at once, so that reading the clock does not count.
        inner = max(1, int(2e-5 / max(once, 1e-9)))
        samples: list[float] = []
        stop = time.perf_counter() + seconds / len(_COPY_MODES)
        while len(samples) < 3 or (time.perf_counter() < stop and len(samples) < 1000):
            begin = time.perf_counter()
            for _ in range(inner):
                _core.run_copy(destination, source, mode)
            samples.append((time.perf_counter() - begin) / inner)
        best = min(best, statistics.median(samples))
    return 2 * source.nbytes / best
