"""The self-test of `python -m fastconv check`: every operation, dtype and instruction set against the reference.

It needs NumPy alone: the cases and bounds are those of the test suite.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

import fastconv
from fastconv import functional, reference, testing
from fastconv.testing import Case

Array = npt.NDArray[Any]

_FORWARD = (
    *(f"conv{d}d" for d in (1, 2, 3)),
    *(f"conv_transpose{d}d" for d in (1, 2, 3)),
    "linear",
)
_GRADIENTS = ("", "_backward_input", "_backward_weight", "_backward_bias", "_backward")


def _like(a: Array) -> Array:
    """Fixed values in an array's shape, for a gradient or a second operand."""
    values: Array = np.cos(1.7 * np.arange(a.size)).reshape(a.shape).astype(a.dtype)
    return values


# Of the other families: each function of `f` on an image x of 20 channels in the layout `axes`, with vectors v.
_OTHERS: dict[str, Callable[[Any, Array, str, Array], Any]] = {
    "separable_conv2d": lambda f, x, axes, v: f.separable_conv2d(
        x,
        _like(np.empty((20, 1, 3, 3), x.dtype)),
        _like(np.empty((24, 20, 1, 1), x.dtype)),
        stride=2,
        padding=1,
        depthwise_activation="relu",
        layout=axes,
    ),
    "inverted_residual_backward": lambda f, x, axes, v: f.inverted_residual_backward(
        _like(f.max_pool2d(x, 2, layout=axes)),
        x,
        _like(np.empty((30, 20, 1, 1), x.dtype)),
        _like(np.empty((30, 1, 2, 2), x.dtype)),
        _like(np.empty((20, 30, 1, 1), x.dtype)),
        stride=2,
        layout=axes,
    ),
    "max_pool2d": lambda f, x, axes, v: f.max_pool2d(x, 3, stride=2, padding=1, layout=axes, return_indices=True),
    "max_pool2d_backward": lambda f, x, axes, v: f.max_pool2d_backward(
        _like(f.max_pool2d(x, 2, layout=axes)), x, 2, layout=axes
    ),
    "avg_pool2d": lambda f, x, axes, v: f.avg_pool2d(x, 3, stride=1, padding=1, layout=axes),
    "avg_pool2d_backward": lambda f, x, axes, v: f.avg_pool2d_backward(
        _like(f.avg_pool2d(x, 2, layout=axes)), x.shape, 2, layout=axes
    ),
    "adaptive_avg_pool2d": lambda f, x, axes, v: f.adaptive_avg_pool2d(x, (3, 4), layout=axes),
    "global_avg_pool2d": lambda f, x, axes, v: f.global_avg_pool2d(x, layout=axes),
    "lp_pool2d": lambda f, x, axes, v: f.lp_pool2d(x, 2, 2, layout=axes),
    "batch_norm": lambda f, x, axes, v: f.batch_norm(x, v, v * v, v, v, activation="relu", layout=axes),
    "batch_norm_train": lambda f, x, axes, v: f.batch_norm_train(x, None, None, v, v, layout=axes),
    "group_norm": lambda f, x, axes, v: f.group_norm(x, 5, v, v, layout=axes),
    "group_norm_backward": lambda f, x, axes, v: f.group_norm_backward(_like(x), x, 5, v, layout=axes),
    "layer_norm_channels": lambda f, x, axes, v: f.layer_norm_channels(x, v, v, layout=axes),
    "local_response_norm": lambda f, x, axes, v: f.local_response_norm(x, 5, layout=axes),
    "softmax": lambda f, x, axes, v: f.softmax(x, axis=1),
    "log_softmax": lambda f, x, axes, v: f.log_softmax(x),
    "softmax_backward": lambda f, x, axes, v: f.softmax_backward(_like(x), f.softmax(x)),
    "relu": lambda f, x, axes, v: f.relu(x),
    "silu": lambda f, x, axes, v: f.silu(x),
    "gelu": lambda f, x, axes, v: f.gelu(x),
    "gelu_backward": lambda f, x, axes, v: f.gelu_backward(_like(x), x),
    "add": lambda f, x, axes, v: f.add(x, _like(x), activation="hardswish"),
}


def _results(module: ModuleType, name: str, x: Array, layout: str) -> Sequence[Array]:
    v = 1.5 + np.sin(np.arange(20)).astype(x.dtype)
    result = _OTHERS[name](module, x, layout, v)
    return [a for a in (result if isinstance(result, tuple) else (result,)) if a is not None]


def _other_failure(name: str, dtype: str, layout: str) -> str | None:
    """One call of a function of another family. Its sums are short: 64 roundings of the largest value are far off."""
    try:
        x = np.random.default_rng(1).standard_normal((2, 20, 13, 11)).astype(dtype)
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout == "NHWC" else x
        exact = _results(reference, name, x.astype(np.float64), layout)
        for got, expected in zip(_results(functional, name, x, layout), exact, strict=True):
            far = 64 * np.finfo(dtype).eps * float(np.abs(expected).max())
            if got.shape != expected.shape or not np.abs(got - expected).max() <= far:
                return f"a result of shape {got.shape} is not that of the reference"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _functions(op: str | None) -> Iterator[str]:
    for forward in _FORWARD:
        for gradient in _GRADIENTS:
            if op in (None, forward, forward + gradient):
                yield forward + gradient
    if op in (None, "inverted_residual"):
        yield "inverted_residual"


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
    others = [name for name in _OTHERS if op in (None, name)]
    if not functions and not others:
        print(f"fastconv check: --op (={op!r}) must be one of {', '.join([*_functions(None), *_OTHERS])}")
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
    for name in others:
        for dtype in ("float32", "float64"):
            for isa in isas:
                with fastconv.isa(isa):
                    texts = [t for layout in ("NCHW", "NHWC") if (t := _other_failure(name, dtype, layout)) is not None]
                calls, bad = calls + 2, bad + len(texts)
                state = "ok" if not texts else f"{len(texts)} WRONG"
                print(f"{isa:9} {dtype:8} {name:36} {2:4} calls  {state}", flush=True)
                for text in texts:
                    print(f"          {text}")
    seconds = time.perf_counter() - begin
    if bad:
        print(f"{bad} of {calls} calls are wrong on this machine ({seconds:.0f} s). Please report this output.")
        return 1
    print(f"all right: {calls} calls agree with the reference ({seconds:.0f} s)")
    return 0
