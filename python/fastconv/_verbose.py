"""FASTCONV_VERBOSE=1: one line on stderr for each call: op, shapes, decision, microseconds.

`functional` and `plan` take their calls into `_core` from here when the log is on and from `_core` itself when it is
off, so that it costs nothing then. It is read once, at import.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from . import _core
from ._args import Array

enabled = os.environ.get("FASTCONV_VERBOSE", "") not in ("", "0")

_FORWARD, _BACKWARD_INPUT, _BACKWARD_WEIGHT = range(3)


def _public_name(default: str) -> str:
    """The function of `fastconv.functional` that the user called: the outermost of its frames."""
    name = default
    frame = sys._getframe(2)
    while (caller := frame.f_back) is not None:
        if str(frame.f_globals.get("__name__")).startswith("fastconv.functional."):
            name = frame.f_code.co_name
        elif name != default:
            break
        frame = caller
    return name


def _log(
    op: str,
    what: str,
    arrays: dict[str, Array | None],
    decision: dict[str, Any] | None,
    nanoseconds: int,
    path: str = "",
) -> None:
    present = {name: a for name, a in arrays.items() if a is not None}
    shapes = " ".join(f"{name}={'x'.join(map(str, a.shape))}" for name, a in present.items())
    dtype = next(iter(present.values())).dtype
    chosen = (f" | {path}" if path else "") if decision is None else f" | {describe(decision)}"
    # One write, so that the lines of several threads stay whole.
    sys.stderr.write(f"fastconv: {op} {what} {dtype} {shapes}{chosen} | {nanoseconds / 1000:.1f} us\n")


def describe(decision: dict[str, Any]) -> str:
    """A decision in a few words."""
    return (
        f"{decision['algorithm']} {decision['isa']}, {decision['role']}, "
        f"tile {decision['tile_rows']}x{decision['tile_columns']}, blocks {decision['reduction_block']}/"
        f"{decision['channel_block']}/{decision['pixel_block']}"
    )


def _decide(*arguments: Any) -> dict[str, Any] | None:
    """The decision behind a call that has been served; None where it had nothing to compute."""
    try:
        return _core.conv_decide(*arguments)
    except _core.Refused:
        return None


def conv_forward(
    spec: _core.ConvSpec,
    x: Array,
    weight: Array,
    bias: Array | None,
    scale: Array | None,
    shift: Array | None,
    residual: Array | None,
    input_scale: Array | None,
    input_shift: Array | None,
    input_gate: Array | None,
    out: Array | None,
    /,
) -> Array:
    """`_core.conv_forward`, logged."""
    operands = (bias, scale, shift, residual, input_scale, input_shift, input_gate)
    start = time.perf_counter_ns()
    y = _core.conv_forward(spec, x, weight, *operands, out)
    elapsed = time.perf_counter_ns() - start
    decision = _decide(spec, _FORWARD, x, weight, y, *operands)
    _log(_public_name("conv"), "forward", {"x": x, "weight": weight, "y": y}, decision, elapsed)
    return y


def conv_backward_input(
    spec: _core.ConvSpec, dy: Array, weight: Array, input_shape: Any, accumulate: bool, out: Array | None, /
) -> Array:
    """`_core.conv_backward_input`, logged."""
    start = time.perf_counter_ns()
    dx = _core.conv_backward_input(spec, dy, weight, input_shape, accumulate, out)
    elapsed = time.perf_counter_ns() - start
    decision = _decide(spec, _BACKWARD_INPUT, dx, weight, dy, None, None, None, None, None, None, None)
    _log(_public_name("conv"), "input gradient", {"dy": dy, "weight": weight, "dx": dx}, decision, elapsed)
    return dx


def conv_backward_weight(
    spec: _core.ConvSpec, dy: Array, x: Array, weight_shape: Any, accumulate: bool, out: Array | None, /
) -> Array:
    """`_core.conv_backward_weight`, logged."""
    start = time.perf_counter_ns()
    dw = _core.conv_backward_weight(spec, dy, x, weight_shape, accumulate, out)
    elapsed = time.perf_counter_ns() - start
    decision = _decide(spec, _BACKWARD_WEIGHT, x, dw, dy, None, None, None, None, None, None, None)
    _log(_public_name("conv"), "weight gradient", {"dy": dy, "x": x, "dw": dw}, decision, elapsed)
    return dw


def conv_backward_bias(spec: _core.ConvSpec, dy: Array, accumulate: bool, out: Array | None, /) -> Array:
    """`_core.conv_backward_bias`, logged."""
    start = time.perf_counter_ns()
    db = _core.conv_backward_bias(spec, dy, accumulate, out)
    elapsed = time.perf_counter_ns() - start
    _log(_public_name("conv"), "bias gradient", {"dy": dy, "db": db}, None, elapsed)
    return db


def conv_backward(
    spec: _core.ConvSpec,
    dy: Array,
    x: Array,
    weight: Array,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    into_input: Array | None,
    into_weight: Array | None,
    into_bias: Array | None,
    /,
) -> tuple[Array | None, Array | None, Array | None] | None:
    """`_core.conv_backward`, logged where it serves the call."""
    needs, into = (needs_input, needs_weight, needs_bias), (into_input, into_weight, into_bias)
    start = time.perf_counter_ns()
    gradients = _core.conv_backward(spec, dy, x, weight, *needs, *into)
    elapsed = time.perf_counter_ns() - start
    if gradients is not None:
        _log(_public_name("conv"), "all gradients", {"dy": dy, "x": x, "weight": weight}, None, elapsed)
    return gradients


class LoggedPlan:
    """A `_core.ConvPlan` whose `run` is logged."""

    def __init__(self, op: str, plan: _core.ConvPlan) -> None:
        self._op = op
        self._plan = plan

    def run(self, x: Array, residual: Array | None, input_gate: Array | None, out: Array | None, /) -> Array:
        """`_core.ConvPlan.run`, logged."""
        start = time.perf_counter_ns()
        y = self._plan.run(x, residual, input_gate, out)
        elapsed = time.perf_counter_ns() - start
        _log(self._op, "plan", {"x": x, "y": y}, self._plan.decision, elapsed)
        return y


class _Calls:
    """`_core` with every function that computes logged, with the path that ran."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(_core, name)
        if isinstance(function, type):
            return function

        def logged(*arguments: Any) -> Any:
            _core.take_path()  # that of a plan, which is not logged
            start = time.perf_counter_ns()
            result = function(*arguments)
            elapsed = time.perf_counter_ns() - start
            results = result if isinstance(result, tuple) else (result,)
            operands: dict[str, Array | None] = {}
            for side, values in (("in", arguments), ("out", results)):
                arrays = [a for a in values if isinstance(a, np.ndarray)]
                operands.update({f"{side}{i}": a for i, a in enumerate(arrays)})
            what = "gradient" if name.endswith("_backward") else "forward"
            _log(_public_name(name), what, operands, None, elapsed, _core.take_path())
            return result

        return logged


calls: Any = _Calls()
