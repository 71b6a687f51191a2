"""`explain`, which says how a call would be computed: the decision that drives execution, and what it passed over."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from . import _args, _core, functional
from ._args import Array, Shape
from ._args import admission as _admission
from .plan import _FORWARD_OPS, _bind, _like, _linear_view, _shape, _spec, plan

__all__ = ["Explanation", "Measured", "explain"]

# The operands of which a shape will do for explain(), and those that are arrays or absent.
_IMAGES = ("x", "weight", "dy")
_VECTORS = ("bias", "scale", "shift", "residual", "input_scale", "input_shift", "input_gate")
_PASSES = {"": 0, "_backward_input": 1, "_backward_weight": 2}
_ROLES = {"rows": ("pixel rows", "lanes of channels"), "columns": ("pixel columns", "lanes of pixels")}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a call took, beside what the machine can do at most."""

    form: str
    """"plan" or "plain"."""
    seconds: float
    """The median of the calls."""
    threads: int
    peak: float
    """The FMA peak of the instruction set and dtype, flops a second, of so many threads."""
    bandwidth: float
    """Bytes read and written a second by a copy of as many bytes as the call must move."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How a call is computed. Made by `explain`; str() gives a readable text, as_dict() plain values.

    Attributes:
        op: the function of `fastconv.functional`.
        shapes: of its operands and its result, by name.
        dtype: of all of them.
        threads: how many a call made now would use at most.
        blocks: at least so many tasks share out the work; where there are more threads than that, blocks are made
            smaller. None of a weight gradient, whose tasks are ranges of its own output.
        flops: multiplications and additions, two a multiply-add.
        bytes: the least traffic: every operand read and the result written once.
        decision: algorithm, role (which operand of the tile is broadcast), isa, tile_rows, tile_columns,
            reduction_block, channel_block, pixel_block, workspace_per_thread and packed_weight_bytes (bytes),
            error_bound (the proven c of |y - y64| <= c * eps * conv(|x|, |weight|)), and passed_over, the other
            candidates with the reason. A weight gradient sums over pixels: role says how their inputs are packed ("by
            rows" or "by slab"), reduction_block is a run of pixels, channel_block the input channels and pixel_block
            the pixels of an image that a task goes through, and packed_weight_bytes are those of a second gradient in
            another order, where one is made. Of a depthwise layer role says what a vector holds ("lanes of channels"
            or "lanes of pixels"), the tile is one vector, reduction_block the taps (of a weight gradient a run of
            pixels), channel_block and pixel_block are what a task of a single thread goes through. Where algorithm is
            "fft", lanes are channels or tiles, the tile is what one transform covers, pixel_block the outputs of it,
            packed_weight_bytes are the spectra, and error_bound is that of |y - y64| <= c * eps * |x| * |weight|,
            2-norms over two tiles and the filter. Where it is "winograd2" or "winograd4", reduction_block and
            channel_block are the channels of a piece of the sum, pixel_block the outputs of a task's tiles, and
            error_bound belongs to the largest conv(|x|, |weight|) of a tile's pixels and of two around it.
        candidates: every algorithm, and of direct sums both roles: "algorithm", "role" (of direct sums), "cost" (the
            model's, as a part of the cost of the direct sum that would be taken; None where the algorithm cannot take
            the layer), "error_bound" (None likewise), "taken", and "reason", why it was taken or passed over.
        measured: what the call took, where `explain` was asked to measure; else None.
    """

    op: str
    shapes: Mapping[str, Shape]
    dtype: np.dtype[Any]
    threads: int
    blocks: int | None
    flops: float
    bytes: float
    decision: Mapping[str, Any]
    candidates: tuple[Mapping[str, Any], ...]
    measured: Measured | None = None

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, flops a byte."""
        return self.flops / self.bytes if self.bytes else math.inf

    def roofline(self, peak_flops: float, bandwidth: float) -> float:
        """The share of the peak (in flop/s) that the memory bandwidth (in bytes/s) lets the call reach, at most 1.

        Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52 (4), 2009.
        """
        return min(1.0, self.intensity * bandwidth / peak_flops)

    def as_dict(self) -> dict[str, Any]:
        """Plain Python values, fit for JSON."""
        result: dict[str, Any] = {
            "op": self.op,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "dtype": str(self.dtype),
            "threads": self.threads,
            "blocks": self.blocks,
            "flops": self.flops,
            "bytes": self.bytes,
            "intensity": self.intensity if self.bytes else None,
            "decision": dict(self.decision),
            "candidates": [dict(candidate) for candidate in self.candidates],
            "measured": None,
        }
        if self.measured is not None:
            m = self.measured
            reached = {"reachable": self.roofline(m.peak, m.bandwidth), "reached": self.flops / m.seconds / m.peak}
            result["measured"] = dataclasses.asdict(m) | reached
        return result

    def __str__(self) -> str:
        d = self.decision
        operands = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        scale = "conv(|x|, |weight|)"
        if d["algorithm"] == "fft":
            scale = "|tile of x| * |weight| (2-norms)"
        elif d["algorithm"].startswith("winograd"):
            scale = f"max {scale} about a tile"
        split = "" if self.blocks is None else f" over {self.blocks} block{'' if self.blocks == 1 else 's'} or more"
        lines = [
            f"{self.op}: {operands}, {self.dtype}",
            f"  algorithm   {d['algorithm']} on {d['isa']}, {d['role']}, tile {d['tile_rows']} x {d['tile_columns']}",
            f"  blocks      {d['reduction_block']} terms, {d['channel_block']} channels, "
            f"{d['pixel_block']} pixels a task",
            f"  threads     at most {self.threads}{split}",
            f"  memory      {d['workspace_per_thread']} bytes of scratch a thread, "
            f"{d['packed_weight_bytes']} bytes of packed weights",
            f"  work        {self.flops:.4g} flops, {self.bytes:.4g} bytes, {self.intensity:.3g} flops a byte",
        ]
        if self.measured is not None:
            m = self.measured
            reachable = self.roofline(m.peak, m.bandwidth)
            lines += [
                f"  measured    {m.seconds * 1e6:.4g} us by a {m.form}{' call' if m.form == 'plain' else ''}, "
                f"{self.flops / m.seconds / 1e9:.4g} GFLOP/s, {m.threads} thread{'' if m.threads == 1 else 's'}",
                f"  roofline    {reachable:.0%} of the FMA peak of {m.peak / 1e9:.4g} GFLOP/s can be reached at "
                f"{m.bandwidth / 1e9:.3g} GB/s; {self.flops / m.seconds / m.peak:.0%} is",
            ]
        lines.append(f"  error       at most {d['error_bound']:.4g} * eps * {scale}")
        if self.candidates:
            lines += [
                f"  {'candidates' if i == 0 else '':<11} {line}" for i, line in enumerate(self._candidate_lines())
            ]
        else:
            passed_over = [line for line in str(d["passed_over"]).splitlines() if line]
            lines += [f"  {'passed over' if i == 0 else '           '} {line}" for i, line in enumerate(passed_over)]
        return "\n".join(lines)

    def _candidate_lines(self) -> list[str]:
        lines = []
        for c in self.candidates:
            name = c["algorithm"] if c["role"] is None else f"{c['algorithm']}, {c['role']}"
            mark = "*" if c["taken"] else " "
            cost = "" if c["cost"] is None else f"cost {_share(c['cost'])}, "
            bound = "" if c["error_bound"] is None or c["taken"] else f"; error at most {c['error_bound']:.4g} * eps"
            lines.append(f"{mark} {name}: {cost}{c['reason']}{bound}")
        return lines


def _share(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


# ------------------------------------------------------------------------------------------------------------ the call


class Call(NamedTuple):
    """A call for `_core.conv_decide` and `_core.conv_products`, checked, and the shape of its result."""

    op: str
    spec: _core.ConvSpec
    which: int
    x: Array | Shape
    weight: Array | Shape
    y: Array | Shape | None
    vectors: list[Array | None]
    result: Shape
    shapes: dict[str, Shape]
    dtype: np.dtype[Any]
    asked: str  # the algorithm, before max_error
    max_error: float | None

    def error(self, refusal: _core.Refused) -> Exception:
        """Why `_core` refused it after all checks."""
        return _args.decision_error(refusal, self.op, self.spec)


def call_of(op: str, operands: tuple[Any, ...], options: Mapping[str, Any]) -> Call:
    """functional.<op>(*operands, **options), of which shapes will do for the images; see `explain` for the errors."""
    ops = [base + suffix for base in _FORWARD_OPS for suffix in _PASSES]
    if op not in ops:
        raise ValueError(f"op (={op!r}) must be one of {', '.join(map(repr, ops))}")
    arguments = _bind(op, operands, options)
    spec = _spec(op, arguments)
    dtype = next((arguments[n].dtype for n in _IMAGES if isinstance(arguments.get(n), np.ndarray)), np.dtype("float32"))
    arrays = {name: _like(arguments[name], name, dtype) for name in (*_IMAGES, *_VECTORS) if name in arguments}
    which, x, weight, y, vectors, result = _operands(op, spec, arguments, arrays)
    shapes = {name: _shape(arguments[name]) for name in _IMAGES if name in arguments}
    shapes[("y", "dx", "dw")[which]] = result
    asked, limit = _args._algorithm_name(spec), arguments.get("max_error")
    spec = _admission.admitted(spec, which, x, weight, y, vectors, limit)
    return Call(op, spec, which, x, weight, y, vectors, result, shapes, dtype, asked, limit)


def _operands(op: str, spec: _core.ConvSpec, arguments: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    """Check everything; `arguments` are the user's, `arrays` the same with arrays in place of shapes."""
    base, separator, rest = op.partition("_backward")
    which = _PASSES[separator + rest]
    vectors = {name: arrays.get(name) for name in _VECTORS}
    x: Any = arguments.get("x")
    weight: Any = arguments.get("weight")
    dy: Any = arguments.get("dy")
    if base != "linear":
        if which == 0:
            return which, x, weight, None, [*vectors.values()], _args.check_forward(spec, arrays)
        if which == 1:
            shape = _args.check_backward_input(spec, arrays, arguments["input_shape"], False)
            return which, shape, weight, dy, [*vectors.values()], shape
        shape = _args.check_backward_weight(spec, arrays, arguments["weight_shape"], False)
        return which, x, shape, dy, [*vectors.values()], shape
    shape = _args.check_linear(arrays) if which == 0 else _args.check_linear_backward(arrays, False)
    rows = math.prod((arrays["x"] if which == 0 else arrays["dy"]).shape[:-1])
    if vectors["residual"] is not None:
        vectors["residual"] = _linear_view(vectors["residual"], rows)
    return (
        which,
        _linear_view(shape if which == 1 else x, rows),
        (*shape, 1) if which == 2 else weight[:, :, None] if isinstance(weight, np.ndarray) else (*weight, 1),
        None if which == 0 else _linear_view(dy, rows),
        [*vectors.values()],
        shape,
    )


# ------------------------------------------------------------------------------------------------------------- explain


def explain(op: str, *operands: Any, measure: str | None = None, **options: Any) -> Explanation:
    """How `functional.<op>(*operands, **options)` would be computed; nothing is, unless it is to be measured.

    Args:
        op: a forward function ("conv2d", "conv_transpose1d", "linear", ...) or one of its gradients, such as
            "conv2d_backward_input" and "conv2d_backward_weight".
        *operands: as the function takes them. x, weight and dy may be shapes, in float32 or the dtype of the arrays.
        measure: "plan" or "plain": runs the layer so, on the operands (on seeded data for shapes), and measures the
            machine's FMA peak and copy bandwidth beside it, about a second. Gradients have no plans.
        **options: its keyword arguments; out and accumulate have no effect.

    Returns:
        The explanation, with the decision that the call would take and the candidates that it passed over.

    Raises:
        ValueError: a value or a shape does not fit, or op is not known.
        TypeError: an operand is no array of float32 or float64, or an option is not one of the function's.
    """
    if measure not in (None, "plan", "plain"):
        raise ValueError(f"measure (={measure!r}) must be None, 'plan' or 'plain'")
    call = call_of(op, operands, options)
    if measure == "plan" and call.which:
        raise ValueError(f"measure (={measure!r}) must be 'plain': {op} has no plan")
    decide: tuple[Any, ...] = (call.which, call.x, call.weight, call.y, *call.vectors)
    try:
        decision = _core.conv_decide(call.spec, *decide)
        products = _core.conv_products(call.spec, *decide)
    except _core.Refused as refusal:
        raise call.error(refusal) from None
    flops, least = decision.pop("flops"), decision.pop("bytes")
    return Explanation(
        op=op,
        shapes=MappingProxyType(call.shapes),
        dtype=call.dtype,
        threads=_core.num_threads(),
        blocks=_blocks(call, decision),
        flops=flops,
        bytes=least,
        decision=MappingProxyType(decision),
        candidates=_candidates(call, decision, products),
        measured=None if measure is None else _measure_call(call, operands, options, measure, least),
    )


def _blocks(call: Call, decision: Mapping[str, Any]) -> int | None:
    """The blocks of the result that are tasks of a single thread."""
    if call.which == 2 or not math.prod(call.result):
        return None
    spec, shape = call.spec, call.result
    if call.op.startswith("linear"):
        shape = (1, shape[-1], math.prod(shape[:-1]))
        images, channels, pixels = shape
    else:
        batched = len(shape) == spec.spatial + 2
        images = shape[0] if batched else 1
        image = shape[1:] if batched else shape
        channels = image[-1] if spec.channels_last else image[0]
        pixels = math.prod(image) // channels
    each = -(-pixels // max(1, decision["pixel_block"]))
    if decision["algorithm"].startswith("winograd"):
        # Tiles are counted through all images.
        return int(spec.groups * max(1, -(-images * pixels // max(1, decision["pixel_block"]))))
    if decision["algorithm"] in ("depthwise", "fft"):
        return int(images * each * -(-channels // max(1, decision["channel_block"])))
    return int(images * spec.groups * each)


def _candidates(call: Call, decision: Mapping[str, Any], products: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    """All ways of all products together; a strided gradient's products are taken as one."""
    if not products:
        return ()
    ways: dict[str, tuple[float, str | None]] = {}
    for _, _, _, candidates in products:
        for way, cost, obstacle in candidates:
            before, blocked = ways.get(way, (0.0, None))
            ways[way] = before + cost, blocked or obstacle
    taken, tuned = products[0][1], products[0][2]
    asked = call.asked
    direct = [cost for way, (cost, obstacle) in ways.items() if way in _ROLES and obstacle is None]
    # Where every tap meets the padding there is nothing to do, and nothing to compare.
    whole = (ways[taken][0] if taken in _ROLES else min(direct, default=0.0)) or 1.0
    of = {way: cost / whole for way, (cost, _) in ways.items()}
    bounds = {_admission.ALGORITHM_OF_WAY[taken]: decision["error_bound"]}
    result = []
    for way, (_, obstacle) in ways.items():
        algorithm = _admission.ALGORITHM_OF_WAY[way]
        if obstacle is None and algorithm not in bounds:
            other = _admission.with_algorithm(call.spec, algorithm)
            bounds[algorithm] = _core.conv_decide(other, call.which, call.x, call.weight, call.y, *call.vectors)[
                "error_bound"
            ]
        role = None
        if way in _ROLES:
            role = _ROLES[way]["lanes" in decision["role"] or decision["algorithm"] == "fft"]
        if way == taken:
            reason = "taken" + (f": {asked} is asked for" if asked == algorithm else ": measured" if tuned else "")
        elif obstacle is not None:
            reason = obstacle
        elif call.max_error is not None and bounds[algorithm] > call.max_error:
            reason = f"its bound is above max_error (={call.max_error:g})"
        else:
            reason = _why_not(way, taken, asked, tuned, of, decision)
        result.append(
            MappingProxyType(
                {
                    "algorithm": algorithm,
                    "role": role,
                    "cost": None if obstacle is not None else of[way],
                    "error_bound": None if obstacle is not None else bounds[algorithm],
                    "taken": way == taken,
                    "reason": reason,
                }
            )
        )
    return tuple(sorted(result, key=lambda c: (not c["taken"], c["cost"] is None, c["cost"] or 0.0)))


def _why_not(
    way: str, taken: str, asked: str, tuned: bool, of: Mapping[str, float], decision: Mapping[str, Any]
) -> str:
    if asked != "auto" and not (way in _ROLES and taken in _ROLES):
        return f"{asked} is asked for"
    if tuned:
        return "measured, and slower, says the tune file"
    if way in _ROLES and taken in _ROLES:
        # Roles go by rules on memory order and length, not by costs.
        for line in str(decision["passed_over"]).splitlines():
            name, _, why = line.partition(": ")
            if name in _ROLES[way]:
                return why
        return "the rule on memory order and length says so"
    if of[way] >= of[taken] > 0:
        return f"{of[way] / of[taken]:.2f} times the cost of the one taken"
    return "not enough cheaper, by the model, to be worth its error"


# --------------------------------------------------------------------------------------------------------- measuring


def _data(shape: Sequence[int], dtype: np.dtype[Any], scale: float, seed: int) -> Array:
    a: Array = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    a *= dtype.type(scale)
    return a


def _measure_call(
    call: Call, operands: tuple[Any, ...], options: Mapping[str, Any], form: str, least: float
) -> Measured:
    from ._measure import measure_copy_bandwidth, measure_fma_peak

    # A gradient's third operand is the shape that it has, not an image.
    arrays = [
        _data(a, call.dtype, 0.1, i) if i < 2 and isinstance(a, (tuple, list)) else a for i, a in enumerate(operands)
    ]
    options = {name: value for name, value in options.items() if name not in ("out", "accumulate")}
    if form == "plan":
        later = {name: options.pop(name) for name in ("residual", "input_gate") if options.get(name) is not None}
        prepare: Any = plan
        announced = {"input_gate": True} if "input_gate" in later else {}
        prepared = prepare(call.op, *arrays, **options, **announced)
        run: Callable[[], Any] = lambda: prepared(arrays[0], **later)  # noqa: E731
    else:
        function: Callable[..., Any] = getattr(functional, call.op)
        run = lambda: function(*arrays, **options)  # noqa: E731
    threads = _core.num_threads()
    seconds = time_call(run, 0.3)
    return Measured(
        form,
        seconds,
        threads,
        measure_fma_peak(str(call.dtype), threads=threads),
        measure_copy_bandwidth(max(1 << 16, int(least))),
    )


def time_call(run: Callable[[], Any], seconds: float) -> float:
    """The median time of a call, from samples that take so long together, three at least."""
    run()
    begin = time.perf_counter()
    run()
    once = time.perf_counter() - begin
    # Short calls are timed many at once, so that reading the clock does not count.
    inner = max(1, int(2e-5 / max(once, 1e-9)))
    samples: list[float] = []
    stop = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < stop:
        begin = time.perf_counter()
        for _ in range(inner):
            run()
        samples.append((time.perf_counter() - begin) / inner)
    return statistics.median(samples)
