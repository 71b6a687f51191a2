"""`explain`, which says how a call would be computed: the decision that drives execution, and what it passed over."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from . import _args, _core, _decide, _device, _foreign, functional
from ._args import Array, Shape
from ._args import admission as _admission
from ._args import inverted as _inverted
from .plan import _FORWARD_OPS, _INVERTED_OP, _SEPARABLE_OPS, _bind, _like, _linear_view, _shape, _spec, plan

__all__ = ["Explanation", "Measured", "explain"]

# The operands of which a shape will do for explain(), and those that are arrays or absent.
_IMAGES = ("x", "weight", "dy")
_VECTORS = ("bias", "scale", "shift", "residual", "input_scale", "input_shift", "input_gate")
_PASSES = {"": 0, "_backward_input": 1, "_backward_weight": 2}
_CONVOLUTIONS = [base + suffix for base in _FORWARD_OPS for suffix in _PASSES]
_ROLES = {"rows": ("pixel rows", "lanes of channels"), "columns": ("pixel columns", "lanes of pixels")}

# The functions that are one call of `_core`, by module; their gradients that are several calls have no decision.
_LAYER_OPS = {
    name: module
    for module in (
        functional.separable,
        functional.inverted,
        functional.pool,
        functional.norm,
        functional.elementwise,
    )
    for name in module.__all__
    if (name.islower() and not name.startswith(("separable_", "inverted_"))) or name in (*_SEPARABLE_OPS, _INVERTED_OP)
}
# What these take as arrays. A shape will do for each that is given by position, and for the residual.
_ARRAYS = (
    *("x", "y", "dy", "weight", "depthwise_weight", "pointwise_weight", "expand_weight", "project_weight", "bias"),
    *("running_mean", "running_var", "mean", "inv_std", "residual", "indices"),
    *("depthwise_bias", "depthwise_scale", "depthwise_shift", "expand_bias", "expand_scale", "expand_shift"),
    *("scale", "shift", "se_reduce_weight", "se_reduce_bias", "se_expand_weight", "se_expand_bias"),
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a call took, beside what the machine can do at most."""

    form: str
    """"plan" or "plain"."""
    seconds: float
    """The median of the calls."""
    threads: int
    peak: float
    """The FMA peak of the instruction set and dtype, flops a second, of so many threads; 0 where flops do not count."""
    bandwidth: float
    """Bytes read and written a second by a copy of as many bytes as the call must move."""

    def floor(self, flops: float, least: float) -> float:
        """Seconds that so many flops, or so many bytes, take at least."""
        return max(flops / self.peak if flops else 0.0, least / self.bandwidth)


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
        flops: multiplications and additions, two a multiply-add; 0 where moving memory is all that counts (pooling,
            norms, elementwise functions).
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
            Of a separable layer algorithm is "one pass" or "two calls" ("why" says why), and "depthwise" and
            "pointwise" are decisions of the halves, without what is told of both; the intermediate exists in blocks of
            "block_pixels" and "block_channels", or takes "whole_bytes". Of an inverted residual role is "rows of the
            expansion" ("kept_rows" of them, for a block of "rows" and "columns" of the result) or "the expansion of an
            image" ("whole_bytes", and "why"), and "expand", "depthwise" and "project" are decisions. Of pooling, norms
            and elementwise functions: algorithm is the path, "before" that of maxima whose positions come after them;
            "passes" how often the operands are read, "again" where they are found the second time; "streaming",
            whether the result is written past the caches; "copied", whether operands are copied to another memory
            order first; "workspace_per_thread" that of pooling and of local response norm.
        candidates: every algorithm, and of direct sums both roles: "algorithm", "role" (of direct sums), "cost" (the
            model's, as a part of the cost of the direct sum that would be taken; None where the algorithm cannot take
            the layer), "error_bound" (None likewise), "taken", and "reason", why it was taken or passed over.
            Of functions other than convolutions: the paths that were tried before the one that is taken, and why not.
        parts: the explanations of the calls that the function makes, where it makes several.
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
    parts: tuple[Explanation, ...] = ()

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
            "dtype": _device.dtype_name(self.dtype),
            "threads": self.threads,
            "blocks": self.blocks,
            "flops": self.flops,
            "bytes": self.bytes,
            "intensity": self.intensity if self.bytes else None,
            "decision": {
                name: dict(value) if isinstance(value, Mapping) else value for name, value in self.decision.items()
            },
            "candidates": [dict(candidate) for candidate in self.candidates],
            "parts": [part.as_dict() for part in self.parts],
            "measured": None,
        }
        if self.measured is not None:
            m = self.measured
            reached = {"floor": m.floor(self.flops, self.bytes), "copy": self.bytes / m.seconds / m.bandwidth}
            if self.flops:
                reached["reachable"] = self.roofline(m.peak, m.bandwidth)
                reached["reached"] = self.flops / m.seconds / m.peak
            result["measured"] = dataclasses.asdict(m) | reached
        return result

    def __str__(self) -> str:
        d = self.decision
        operands = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        lines = [f"{self.op}: {operands}, {_device.dtype_name(self.dtype)}"]
        if "tile_rows" in d:
            lines += self._convolution_lines()
        elif "passes" in d:
            lines += self._path_lines()
        else:
            lines += self._layers_lines()
        lines += self._work_lines()
        if "error_bound" in d:
            lines.append(f"  error       at most {d['error_bound']:.4g} * eps * {_scale(d['algorithm'], self.op)}")
        if self.candidates:
            lines += [
                f"  {'candidates' if i == 0 else '':<11} {line}" for i, line in enumerate(self._candidate_lines())
            ]
        elif "passed_over" in d:
            passed_over = [line for line in str(d["passed_over"]).splitlines() if line]
            lines += [f"  {'passed over' if i == 0 else '           '} {line}" for i, line in enumerate(passed_over)]
        for part in self.parts:
            lines += [f"  {line}" for line in str(part).splitlines()]
        return "\n".join(lines)

    def _convolution_lines(self) -> list[str]:
        d = self.decision
        if d["isa"] == "cuda":
            return [
                f"  algorithm   {d['algorithm']} on a CUDA device, {d['role']}, "
                f"tile {d['tile_rows']} x {d['tile_columns']}, {d['reduction_block']} terms a step",
                f"  memory      {d['packed_weight_bytes']} bytes of packed weights",
            ]
        return [
            f"  algorithm   {d['algorithm']} on {d['isa']}, {d['role']}, tile {d['tile_rows']} x {d['tile_columns']}",
            f"  blocks      {d['reduction_block']} terms, {d['channel_block']} channels, "
            f"{d['pixel_block']} pixels a task",
            f"  threads     {self._split()}",
            f"  memory      {d['workspace_per_thread']} bytes of scratch a thread, "
            f"{d['packed_weight_bytes']} bytes of packed weights",
        ]

    def _layers_lines(self) -> list[str]:
        d = self.decision
        how = "" if not d.get("isa") else f" on {d['isa']}"
        role = f", {d['role']}" if "role" in d else ""
        lines = [f"  algorithm   {d['algorithm']}{how}{role}" + (f": {d['why']}" if d.get("why") else "")]
        lines += [
            f"  {name:<11} {half['algorithm']}, {half['role']}, tile {half['tile_rows']} x "
            f"{half['tile_columns']}, blocks of {half['reduction_block']} terms, {half['channel_block']} "
            f"channels, {half['pixel_block']} pixels; error at most {half['error_bound']:.4g} * eps * "
            f"{_scale(half['algorithm'])}"
            for name in ("expand", "depthwise", "pointwise", "project")
            if (half := d.get(name)) is not None
        ]
        if d.get("whole_bytes"):
            lines.append(f"  between     {d['whole_bytes']} bytes, made as a whole")
        elif "block_pixels" in d:
            lines.append(f"  between     blocks of {d['block_pixels']} pixels, {d['block_channels']} channels")
        elif "kept_rows" in d:
            lines.append(
                f"  between     {d['kept_rows']} rows of the expansion are kept, for blocks of {d['rows']} x "
                f"{d['columns']} of the result"
            )
        lines.append(f"  threads     {self._split()}")
        if "workspace_per_thread" in d:
            packed = f", {d['packed_weight_bytes']} bytes of packed weights" if d.get("packed_weight_bytes") else ""
            lines.append(f"  memory      {d['workspace_per_thread']} bytes of scratch a thread{packed}")
        return lines

    def _path_lines(self) -> list[str]:
        d = self.decision
        reads = f"operands are read again, from {d['again']}" if d["again"] else "operands are read once"
        past = ", the result is written past the caches" if d["streaming"] else ""
        copied = "; operands are copied to another memory order first" if d["copied"] else ""
        lines = [
            f"  path        {d['algorithm']}, on {d['isa']}" + (f"; before it {d['before']}" if d["before"] else ""),
            f"  memory      {reads}{past}{copied}",
            f"  threads     {self._split()}",
        ]
        if d["workspace_per_thread"]:
            lines.append(f"  scratch     {d['workspace_per_thread']} bytes a thread")
        return lines

    def _split(self) -> str:
        if self.blocks is None:
            return f"at most {self.threads}"
        return f"at most {self.threads} over {self.blocks} block{'' if self.blocks == 1 else 's'} or more"

    def _work_lines(self) -> list[str]:
        m = self.measured
        if self.flops:
            lines = [f"  work        {self.flops:.4g} flops, {self.bytes:.4g} bytes, {self.intensity:.3g} flops a byte"]
        else:
            lines = [f"  work        {self.bytes:.4g} bytes at least"]
        if m is None:
            return lines
        rate = (
            f"{self.flops / m.seconds / 1e9:.4g} GFLOP/s" if self.flops else f"{self.bytes / m.seconds / 1e9:.3g} GB/s"
        )
        lines.append(
            f"  measured    {m.seconds * 1e6:.4g} us by a {m.form}{' call' if m.form == 'plain' else ''}, {rate}, "
            f"{m.threads} thread{'' if m.threads == 1 else 's'}; {m.floor(self.flops, self.bytes) * 1e6:.4g} us or more"
        )
        if self.flops:
            lines.append(
                f"  roofline    {self.roofline(m.peak, m.bandwidth):.0%} of the FMA peak of {m.peak / 1e9:.4g} GFLOP/s "
                f"can be reached at {m.bandwidth / 1e9:.3g} GB/s; {self.flops / m.seconds / m.peak:.0%} is"
            )
        else:
            lines.append(
                f"  copy        {self.bytes / m.seconds / m.bandwidth:.0%} of the {m.bandwidth / 1e9:.3g} GB/s of a "
                "copy of as many bytes"
            )
        return lines

    def _candidate_lines(self) -> list[str]:
        lines = []
        for c in self.candidates:
            name = c["algorithm"] if c["role"] is None else f"{c['algorithm']}, {c['role']}"
            mark = "*" if c["taken"] else " "
            cost = "" if c["cost"] is None else f"cost {_share(c['cost'])}, "
            bound = "" if c["error_bound"] is None or c["taken"] else f"; error at most {c['error_bound']:.4g} * eps"
            lines.append(f"{mark} {name}: {cost}{c['reason']}{bound}")
        return lines


def _scale(algorithm: str, op: str = "") -> str:
    """What an error bound is a multiple of."""
    if op.endswith("_backward_weight"):
        return "max sum |dy| * |x| about a filter" if algorithm.startswith("winograd") else "sum |dy| * |x|"
    if algorithm == "fft":
        return "|tile of x| * |weight| (2-norms)"
    scale = "conv(|x|, |weight|)"
    return f"max {scale} about a tile" if algorithm.startswith("winograd") else scale


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
    if op not in _CONVOLUTIONS:
        raise ValueError(f"op (={op!r}) must be one of {', '.join(map(repr, _CONVOLUTIONS))}")
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

    Convolutions of arrays on a CUDA device (not "linear") are explained, too: there role is "tensor cores" or "CUDA
    cores", isa is "cuda", tile_rows and tile_columns are results of a block, reduction_block the terms of a step.

    Args:
        op: a convolution ("conv2d", "conv_transpose1d", "linear", ...) or one of its gradients, such as
            "conv2d_backward_input" and "conv2d_backward_weight"; "separable_conv1d", "separable_conv2d",
            "inverted_residual"; any function of pooling, a norm, an elementwise function or a softmax, and its
            gradient.
        *operands: as the function takes them. x, weight and dy may be shapes, in float32 or the dtype of the arrays;
            of functions other than convolutions so may all arrays.
        measure: "plan" or "plain": runs the layer so, on the operands (on seeded data for shapes), and measures the
            machine's FMA peak and copy bandwidth beside it, about a second. Gradients, pooling, norms and elementwise
            functions have no plans.
        **options: its keyword arguments; out and accumulate have no effect.

    Returns:
        The explanation, with the decision that the call would take and the candidates that it passed over.

    Raises:
        ValueError: a value or a shape does not fit, or op is not known.
        TypeError: an operand is no array of float32 or float64, or an option is not one of the function's.
    """
    if measure not in (None, "plan", "plain"):
        raise ValueError(f"measure (={measure!r}) must be None, 'plan' or 'plain'")
    operands = tuple(map(_foreign.seen, operands))
    options = {name: _foreign.seen(value) for name, value in options.items()}
    if op in _LAYER_OPS:
        return _explain_layer(op, operands, options, measure)
    if op not in _CONVOLUTIONS:
        raise ValueError(f"op (={op!r}) must be one of {', '.join(map(repr, (*_CONVOLUTIONS, *_LAYER_OPS)))}")
    if any(_device.is_device_array(value) for value in (*operands, *options.values())):
        return _explain_on_device(op, operands, options, measure)
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
        measured=None
        if measure is None
        else _measure(op, _with_data(call, operands), options, measure, call.dtype, least),
    )


def _explain_on_device(
    op: str, operands: tuple[Any, ...], options: Mapping[str, Any], measure: str | None
) -> Explanation:
    """A convolution of arrays that lie on a CUDA device."""
    if op.startswith("linear") or measure is not None:
        what = f"explain({op!r})" if measure is None else "explain(measure=...)"
        raise RuntimeError(f"{what} does not serve arrays on a CUDA device: decisions of convolutions alone are told")
    arguments = _bind(op, operands, options)
    spec = _spec(op, arguments)
    arrays = {name: arguments[name] for name in (*_IMAGES, *_VECTORS) if name in arguments}
    which, x, weight, y, vectors, result = _operands(op, spec, arguments, arrays)
    try:
        decision = _core.conv_decide(spec, which, x, weight, y, *vectors)
    except _core.Refused as refusal:
        raise _args.decision_error(refusal, op, spec, device=True) from None
    shapes = {name: _device.shape_of(arguments[name]) or () for name in _IMAGES if name in arguments}
    shapes[("y", "dx", "dw")[which]] = result
    shadow = next(s for name in _IMAGES if (s := _device.shadow(arguments.get(name))) is not None)
    name = _device.dtype_name(shadow)
    flops, least = decision.pop("flops"), decision.pop("bytes")
    return Explanation(
        op=op,
        shapes=MappingProxyType(shapes),
        # NumPy knows the name of every other.
        dtype=np.dtype(name) if name != "bfloat16" else shadow.dtype,
        threads=0,
        blocks=None,
        flops=flops,
        bytes=least,
        decision=MappingProxyType(decision),
        candidates=(),
    )


# ---------------------------------------------------------------------------------------------------- other functions


def _explain_layer(op: str, operands: tuple[Any, ...], options: Mapping[str, Any], measure: str | None) -> Explanation:
    arguments = _bind(op, operands, options)
    given = {name: arguments[name] for name in _ARRAYS if arguments.get(name) is not None}
    dtype = next((a.dtype for n, a in given.items() if isinstance(a, np.ndarray) and n != "indices"), np.dtype("f4"))
    for name, operand in given.items():
        if isinstance(operand, (tuple, list)):
            kind = np.dtype(np.int64) if name == "indices" else dtype
            like: Any = _like(operand, name, kind)
            arguments[name] = _decide.stand_in(like.shape, kind)
    arguments = {name: value for name, value in arguments.items() if name != "out"}
    planned = op in (*_SEPARABLE_OPS, _INVERTED_OP)
    if measure == "plan" and not planned:
        raise ValueError(f"measure (={measure!r}) must be 'plain': {op} has no plan")
    shapes = {name: _shape(arguments[name]) for name in given}
    if op == _INVERTED_OP and (arguments["se_reduce_weight"] is not None or arguments["expand_weight"] is None):
        e = _explain_several(op, arguments, shapes, dtype)
    else:
        e = _explain_one(op, arguments, shapes, dtype)
    if measure is None:
        return e
    data = [
        _layer_data(name, value, dtype, i) if isinstance(given.get(name), (tuple, list)) else value
        for i, (name, value) in enumerate(arguments.items())
    ]
    named = dict(zip(arguments, data, strict=True))
    first = [n for n in ("x", "expand_weight", "depthwise_weight", "pointwise_weight", "project_weight") if n in named]
    positional = tuple(named.pop(name) for name in first) if planned else ()
    return dataclasses.replace(e, measured=_measure(op, positional, named, measure, dtype, e.bytes, e.flops > 0))


def _explain_one(op: str, arguments: dict[str, Any], shapes: dict[str, Shape], dtype: np.dtype[Any]) -> Explanation:
    """What is one call of `_core`."""
    decided = _decide.decide(_LAYER_OPS[op], op, arguments)
    decision = decided.decision
    result = decision.pop("shape")
    passed_over = decision.pop("passed_over", ())
    blocks = decision.pop("blocks")
    if _writes_image(decided):
        shapes["dx" if op.endswith("_backward") else "sum" if op == "add" else "y"] = result
    candidates: tuple[Mapping[str, Any], ...] = ()
    if "again" in decision:
        decision["passes"] = 2 if decision["again"] else 1
        decision["copied"] = decided.copied
        flops, least = 0.0, float(_least_bytes(decided, result, dtype))
        candidates = (
            _path(decision["algorithm"], True, "taken"),
            *(_path(name, False, reason) for name, reason in passed_over),
        )
    else:
        flops, least = decision.pop("flops"), decision.pop("bytes")
        blocks = blocks or None
    return Explanation(
        op=op,
        shapes=MappingProxyType(shapes),
        dtype=dtype,
        threads=_core.num_threads(),
        blocks=blocks,
        flops=flops,
        bytes=least,
        decision=MappingProxyType(decision),
        candidates=candidates,
    )


def _path(name: str, taken: bool, reason: str) -> Mapping[str, Any]:
    return MappingProxyType(
        {"algorithm": name, "role": None, "cost": None, "error_bound": None, "taken": taken, "reason": reason}
    )


def _writes_image(decided: _decide.Decided) -> bool:
    """Whether there is a result of the size of an operand: not of a gradient of weights and bias alone."""
    return decided.name != "norm_backward" or bool(decided.arguments[9])


def _least_bytes(decided: _decide.Decided, result: Shape, dtype: np.dtype[Any]) -> int:
    """Every operand read once, the results written."""
    total = sum(a.nbytes for a in decided.arguments if isinstance(a, np.ndarray))
    item = dtype.itemsize
    if decided.name == "pool_forward":
        item = decided.arguments[1].itemsize
        total += 8 * math.prod(result) if decided.arguments[2] else 0
    return total + (math.prod(result) * item if _writes_image(decided) else 0)


def _explain_several(op: str, a: dict[str, Any], shapes: dict[str, Shape], dtype: np.dtype[Any]) -> Explanation:
    """An inverted residual that is several calls, or that is a separable layer."""
    geometry = {name: a[name] for name in ("stride", "padding", "dilation", "padding_mode", "layout")}
    activations = {f"{name}activation": a[f"{name}activation"] for name in ("expand_", "depthwise_", "")}
    _inverted.check(
        _inverted.specs(a["x"], a["expand_weight"], **geometry, **activations)[0],
        {name: a[name] for name in _ARRAYS if name in a},
    )
    filters = {f"depthwise_{name}": a[f"depthwise_{name}"] for name in ("bias", "scale", "shift", "activation")}
    ends = {name: a[name] for name in ("scale", "shift", "residual", "activation")}
    parts: tuple[Explanation, ...]
    if a["se_reduce_weight"] is None:
        operands = (a["x"], a["depthwise_weight"], a["project_weight"], a["bias"])
        part = _explain_layer("separable_conv2d", operands, {**geometry, **filters, **ends}, None)
        parts = (part,)
        result = part.shapes["y"]
        algorithm = "separable: there is no expansion"
    else:
        if a["expand_weight"] is None:
            bare = {name.removeprefix("depthwise_"): value for name, value in filters.items()}
            groups = a["depthwise_weight"].shape[0]
            first = explain("conv2d", a["x"], a["depthwise_weight"], groups=groups, **geometry, **bare)
            u = _lying_as(a["x"], first.shapes["y"])
            parts = (first, explain("global_avg_pool2d", u, layout=a["layout"]))
        else:
            without = {**a, "project_weight": None, **dict.fromkeys(("bias", "scale", "shift", "residual"))}
            without |= {name: None for name in a if name.startswith("se_") and name not in ("se_activation", "se_gate")}
            parts = (_explain_one(op, {**without, "activation": None}, {"x": shapes["x"]}, dtype),)
            u = _lying_as(a["x"], parts[0].shapes["y"])
        gate = np.zeros(_gate_shape(u.shape, a["layout"]), dtype)
        last = explain("conv2d", u, a["project_weight"], a["bias"], layout=a["layout"], input_gate=gate, **ends)
        parts = (*parts, last)
        result = last.shapes["y"]
        algorithm = "squeeze-excite: the depthwise layer's result is kept, and read again with its gate"
    return Explanation(
        op=op,
        shapes=MappingProxyType({**shapes, "y": result}),
        dtype=dtype,
        threads=_core.num_threads(),
        blocks=None,
        flops=sum(part.flops for part in parts),
        bytes=sum(part.bytes for part in parts),
        decision=MappingProxyType({"algorithm": algorithm}),
        candidates=(),
        parts=parts,
    )


def _lying_as(x: Array, shape: Shape) -> Array:
    """A stand-in of this shape with its axes in the memory order of x."""
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    back = sorted(range(x.ndim), key=order.__getitem__)
    return _decide.stand_in(tuple(shape[axis] for axis in order), x.dtype).transpose(back)


def _gate_shape(shape: Shape, layout: str) -> Shape:
    channels = shape[-1] if layout == "NHWC" else shape[-3]
    return (shape[0], channels) if len(shape) == 4 else (channels,)


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
            other = _args.with_algorithm(call.spec, algorithm)
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


def _with_data(call: Call, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operands of a convolution with seeded data for shapes; a gradient's third one is the shape that it has."""
    return tuple(
        _data(a, call.dtype, 0.1, i) if i < 2 and isinstance(a, (tuple, list)) else a for i, a in enumerate(operands)
    )


def _layer_data(name: str, operand: Array, dtype: np.dtype[Any], seed: int) -> Array:
    """Seeded data for a stand-in; the first element of every image for indices, and positive variances."""
    if name == "indices":
        return np.zeros(operand.shape, np.int64)
    a = _data(operand.shape, dtype, 0.1, seed)
    result: Array = np.abs(a) + dtype.type(0.5) if name in ("running_var", "inv_std") else a
    return result


def _measure(
    op: str,
    operands: tuple[Any, ...],
    options: Mapping[str, Any],
    form: str,
    dtype: np.dtype[Any],
    least: float,
    computes: bool = True,
) -> Measured:
    from ._measure import measure_copy_bandwidth, measure_fma_peak

    options = {name: value for name, value in options.items() if name not in ("out", "accumulate")}
    if form == "plan":
        later = {name: options.pop(name) for name in ("residual", "input_gate") if options.get(name) is not None}
        options = {name: value for name, value in options.items() if name not in ("residual", "input_gate")}
        prepare: Any = plan
        announced = {"input_gate": True} if "input_gate" in later else {}
        prepared = prepare(op, *operands, **options, **announced)
        run = functools.partial(prepared, operands[0], **later)
    else:
        function: Callable[..., Any] = getattr(functional, op)
        run = functools.partial(function, *operands, **options)
    threads = _core.num_threads()
    seconds = time_call(run, 0.3)
    return Measured(
        form,
        seconds,
        threads,
        measure_fma_peak(str(dtype), threads=threads) if computes else 0.0,
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
