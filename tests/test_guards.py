"""Nothing outside an operand is read into a result, written, or touched at all."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from fastconv import functional, testing

CHILD = pathlib.Path(__file__).parent / "children" / "page_guards.py"
OPS = [f"{family}{d}d" for family in ("conv", "conv_transpose") for d in (1, 2, 3)]
GRADIENTS = ("", "_backward_input", "_backward_weight", "_backward_bias")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("op", [*OPS, "linear"])
def test_guarded_buffers_around_every_operand(op, gradient):
    op += gradient
    for i, choice in enumerate(testing.all_pairs(testing.option_table(op, functional), seed=1)):
        case = testing.make_case(op, choice, seed=i)
        guards = []

        def guard(value, guards=guards):
            if not isinstance(value, np.ndarray):
                return value
            guards.append(testing.guarded_copy(value))
            return guards[-1].array

        inside = dataclasses.replace(
            case,
            arrays=tuple(guard(a) for a in case.arrays),
            options={k: guard(v) for k, v in case.options.items() if k != "out"},
            out_memory=None,
        )
        memory = testing.as_memory(case.initial["out"], case.out_memory or "contiguous")
        strides = tuple(s // memory.itemsize for s in memory.strides)
        # An output that is not added into begins as NaN: an element that is never written shows.
        values = memory if case.options.get("accumulate") else None
        out = testing.guarded(memory.shape, memory.dtype, strides=strides, values=values)
        result = getattr(functional, op)(*inside.arrays, **{**inside.options, "out": out.array})
        try:
            assert result is out.array
            out.check()
            for g in guards:
                g.check(unchanged=True)
            case.check(result)
        except AssertionError as e:
            raise AssertionError(f"{choice}: {e}") from e


@pytest.mark.parametrize("where", ["after", "before"])
def test_no_access_beyond_a_page(isa, where):
    # Every operand ends at (or begins behind) a page that may not be touched: a read past the end is a SIGSEGV.
    process = subprocess.run(
        [sys.executable, str(CHILD), where],
        env={**os.environ, "FASTCONV_ISA": isa},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    lines = process.stdout.splitlines()
    last = lines[-1] if lines else "nothing"
    assert process.returncode != -signal.SIGSEGV, f"access beyond an operand in {last}"
    assert process.returncode == 0, process.stderr
    assert last == "done"


def test_page_guard_catches_a_read_one_element_past_the_end():
    code = """
import numpy as np
from fastconv.testing import page_guarded
a = page_guarded(np.ones(5, np.float32), "after")
print(a.sum(), flush=True)
print(np.lib.stride_tricks.as_strided(a, (6,)).sum(), flush=True)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout.strip() == "5.0"
    assert process.returncode == -signal.SIGSEGV
