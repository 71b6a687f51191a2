"""The self-test of `python -m fastconv check`: every operation, dtype and instruction set against the reference.

It needs NumPy alone: the cases and bounds are those of the test suite.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import time
from collections.abc import Iterator

import numpy as np

import fastconv
from fastconv import functional, testing
from fastconv.testing import Case

_FORWARD = (
    *(f"conv{d}d" for d in (1, 2, 3)),
    *(f"conv_transpose{d}d" for d in (1, 2, 3)),
    "linear",
)
_GRADIENTS = ("", "_backward_input", "_backward_weight", "_backward_bias", "_backward")


def _functions(op: str | None) -> Iterator[str]:
    for forward in _FORWARD:
        for gradient in _GRADIENTS:
            if op in (None, forward, forward + gradient):
                yield forward + gradient


def _groups(op: str) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in testing.cases(op, functional):
        groups.setdefault(str(case.arrays[0].dtype), []).append(case)
    return dict(sorted(groups.items()))


def _failure(case: Case) -> str | None:
    try:
        # What overflows or becomes NaN must do so in the reference too: the check compares, NumPy need not warn.
        with np.errstate(all="ignore"):
            case.check(case.call(functional))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _same_bits(case: Case) -> str | None:
    """The plan and any thread count must give the bits of the plain call."""
    x, w, *rest = case.arrays
    options = {k: v for k, v in case.options.items() if k not in ("out", "residual", "input_gate", "accumulate")}
    try:
        with fastconv.num_threads(1):
            y = getattr(functional, case.op)(x, w, *rest, **options)
        for threads in (2, 3):
            with fastconv.num_threads(threads):
                if not np.array_equal(getattr(functional, case.op)(x, w, *rest, **options), y, equal_nan=True):
                    return f"{threads} threads give other bits than one"
        if not np.array_equal(fastconv.plan(case.op, x, w, *rest, **options)(x), y, equal_nan=True):
            return "the plan gives other bits than the plain call"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _describe(case: Case) -> str:
    """The call without the arrays' values."""

    def short(value: object) -> str:
        return "x".join(map(str, value.shape)) if isinstance(value, np.ndarray) else repr(value)

    parts = [short(a) for a in case.arrays] + [f"{k}={short(v)}" for k, v in case.options.items()]
    return f"{case.op}({', '.join(parts)})"


def main(op: str | None = None, only: str | None = None) -> int:
    """Print a line for each function and instruction set, and a verdict. 0: all right; 1: not; 2: bad arguments."""
    isas = [str(name) for name in fastconv.available_isas()]
    if only is not None:
        if only not in isas:
            print(f"fastconv check: --isa (={only!r}) must be one of {', '.join(isas)}")
            return 2
        isas = [only]
    functions = list(_functions(op))
    if not functions:
        print(f"fastconv check: --op (={op!r}) must be one of {', '.join(_functions(None))}")
        return 2
    # A crash, such as an instruction that this CPU lacks, then says in which call. Without a real stderr it cannot.
    with contextlib.suppress(io.UnsupportedOperation, AttributeError):
        faulthandler.enable()
    begin = time.perf_counter()
    print(f"fastconv {fastconv.__version__}, NumPy {np.__version__}, instruction sets: {', '.join(isas)}", flush=True)
    calls = bad = 0
    for name in functions:
        tests = [("", _failure, 1)]
        if "_backward" not in name:
            # Bits are compared on fewer calls: each of these is several.
            tests.append((" plan, threads", _same_bits, 3))
        for dtype, cases in _groups(name).items():
            for isa in isas:
                with fastconv.isa(isa):
                    for title, test, step in tests:
                        chosen = cases[::step]
                        failures = [(case, text) for case in chosen if (text := test(case)) is not None]
                        calls, bad = calls + len(chosen), bad + len(failures)
                        state = "ok" if not failures else f"{len(failures)} WRONG"
                        print(f"{isa:9} {dtype:8} {name + title:36} {len(chosen):4} calls  {state}", flush=True)
                        for case, text in failures[:3]:
                            print(f"          {_describe(case)}: {text}")
    seconds = time.perf_counter() - begin
    if bad:
        print(f"{bad} of {calls} calls are wrong on this machine ({seconds:.0f} s). Please report this output.")
        return 1
    print(f"all right: {calls} calls agree with the reference ({seconds:.0f} s)")
    return 0
