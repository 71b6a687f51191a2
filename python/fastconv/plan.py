"""Plans, which prepare a layer once, and `explain`, which says how a call would be computed.

Both show the same decision that drives execution; neither decides anything itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from . import _args, _core, _verbose, functional
from ._args import Array, Shape
from ._args import inverted as _inverted
from ._args import separable as _separable

__all__ = ["Explanation", "InvertedResidualPlan", "Plan", "SeparablePlan", "explain", "plan"]

_FORWARD_OPS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
_SEPARABLE_OPS = ("separable_conv1d", "separable_conv2d")
_INVERTED_OP = "inverted_residual"
# What a plan is given when it is called.
_CALL_ARGUMENTS = ("residual", "out")
# The operands of which a shape will do for explain(), and those that are arrays or absent.
_IMAGES = ("x", "weight", "dy")
_VECTORS = ("bias", "scale", "shift", "residual", "input_scale", "input_shift", "input_gate")
_PASSES = {"": 0, "_backward_input": 1, "_backward_weight": 2}


def _bind(op: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of functional.<op> by name, defaults included; those of a rank's own options for all ranks."""
    function: Callable[..., Any] = getattr(functional, op)
    bound = inspect.signature(function).bind(*arguments, **options)
    bound.apply_defaults()
    return bound.arguments


def _spec(op: str, options: Mapping[str, Any]) -> _core.ConvSpec:
    if op.startswith("linear"):
        return _args.conv_spec(1, False, 1, 0, 0, 1, 1, "zeros", "NLC", "auto", options.get("activation"), None)
    transposed = op.startswith("conv_transpose")
    rank = int(op.removeprefix("conv_transpose" if transposed else "conv")[0])
    return _args.conv_spec(
        rank,
        transposed,
        options["stride"],
        options["padding"],
        options.get("output_padding", 0),
        options["dilation"],
        options["groups"],
        options.get("padding_mode", "zeros"),
        options["layout"],
        options.get("algorithm", "auto"),
        options.get("activation"),
        options.get("input_activation"),
    )


def _shape(operand: Array | Sequence[int]) -> Shape:
    return operand.shape if isinstance(operand, np.ndarray) else tuple(operand)


def _like(operand: object, name: str, dtype: np.dtype[Any]) -> object:
    """An array without memory of its own for a shape, so that the checks of `_args` can judge it; else the operand."""
    if not isinstance(operand, (tuple, list)):
        return operand
    shape = tuple(_args.integer(name, n, operand) for n in operand)
    if min(shape, default=0) < 0:
        raise ValueError(f"{name} (={shape}) must have no negative entry")
    return np.broadcast_to(np.zeros((), dtype), shape)


def _linear_view(operand: Array | Sequence[int], rows: int) -> Array | Shape:
    """Rows of features as an unbatched image, as `functional.linear` passes them on."""
    if isinstance(operand, np.ndarray):
        view: Array = _args.rows_of(operand, rows)
        return view
    return (rows, operand[-1]) if rows else (0, 1, operand[-1])


# ------------------------------------------------------------------------------------------------------- plans


class Plan:
    """A layer prepared for inputs of one shape: packed weights and a fixed decision. Made by `plan`.

    It is immutable and safe in several threads. It holds its own copy of the weight and the vectors: later changes of
    the arrays it was made from do not reach it. It takes any batch size, and computes the same bits as the plain call.

    Attributes:
        op: the function of `fastconv.functional` that it stands for.
        input_shape: the shape of x that it was made for.
        output_shape: the shape of the result for that.
        dtype: of all its arrays.
    """

    __slots__ = ("_plan", "_run", "_spec", "_vectors", "dtype", "input_shape", "op", "output_shape")

    op: str
    input_shape: Shape
    output_shape: Shape
    dtype: np.dtype[Any]
    _plan: _core.ConvPlan
    _run: Callable[[Array, Array | None, Array | None, Array | None], Array]
    _spec: _core.ConvSpec
    _vectors: dict[str, Array]

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a plan is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a plan is immutable: {name} cannot be deleted")

    def __call__(
        self,
        x: Array,
        residual: Array | None = None,
        input_gate: Array | None = None,
        out: Array | None = None,
    ) -> Array:
        """Run the layer; with `out` given it allocates nothing.

        Args:
            x: of input_shape, but for the batch, which may be of any size or absent.
            residual: of the result's shape.
            input_gate: (N, C), or (C,) without the batch, where the plan was made with a prologue or input_gate=True.
            out: where the result is written.

        Returns:
            The result, or out.

        Raises:
            ValueError: a shape does not fit.
            TypeError: an operand is no numpy.ndarray of the plan's dtype.
            MemoryError: there is no memory for the result.
        """
        try:
            return self._run(x, residual, input_gate, out)
        except _core.Refused as refusal:
            arrays = {"x": x, **self._vectors, "residual": residual, "input_gate": input_gate, "out": out}
            raise _args.plan_error(refusal, self._spec, arrays, self.input_shape) from None

    @property
    def decision(self) -> dict[str, Any]:
        """Algorithm, ISA, tile, blocking and the rest: see `Explanation`."""
        return self._plan.decision

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory that a call uses, a thread."""
        return int(self.decision["workspace_per_thread"])

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights that the plan holds."""
        return int(self.decision["packed_weight_bytes"])

    def __repr__(self) -> str:
        return (
            f"<fastconv plan of {self.op}: {self.input_shape} -> {self.output_shape}, {self.dtype}, "
            f"{_verbose.describe(self.decision)}>"
        )


class _LinearPlan(Plan):
    """A plan of the dense layer: the rows of x are the pixels of an image."""

    __slots__ = ()

    def __call__(
        self,
        x: Array,
        residual: Array | None = None,
        input_gate: Array | None = None,
        out: Array | None = None,
    ) -> Array:
        """Run the layer: see `fastconv.functional.linear`; input_gate must be None."""
        if input_gate is not None:
            raise TypeError("input_gate must be None: linear takes none")
        try:
            if _args.plain_rows(x, residual, out):
                return self._run(x, residual, None, out)
            return self._run_reshaped(x, residual, out)
        except _core.Refused as refusal:
            raise _args.linear_error(refusal, self._arrays(x, residual, out)) from None

    def _arrays(self, x: Array, residual: Array | None, out: Array | None) -> dict[str, Any]:
        return {"x": x, **self._vectors, "residual": residual, "out": out}

    def _run_reshaped(self, x: Array, residual: Array | None, out: Array | None) -> Array:
        weight = self._vectors["weight"]
        if not _args.linear_viewable(x, weight, 1, residual, out):
            raise _core.Refused("bad_shape")
        lead = x.shape[:-1]
        rows = math.prod(lead)
        target = None if out is None else _args.target_rows(out, rows)
        if out is not None and target is None:
            _args.check_linear(self._arrays(x, residual, out))
        residual_rows = None if residual is None else _args.rows_of(residual, rows)
        y = self._run(_args.rows_of(x, rows), residual_rows, None, target)
        if out is None:
            return y.reshape(*lead, weight.shape[0])
        if target is None:
            out[...] = y.reshape(out.shape)
        return out


class _LayersPlan(Plan):
    """A plan of several layers in one call: `_compute` runs them, `_error` has the words for what is refused."""

    __slots__ = ()

    def _compute(self, x: Array, residual: Array | None, out: Array | None) -> Array:
        raise NotImplementedError

    def _error(self, refusal: _core.Refused, arrays: dict[str, Any]) -> Exception:
        raise NotImplementedError

    def __call__(
        self,
        x: Array,
        residual: Array | None = None,
        input_gate: Array | None = None,
        out: Array | None = None,
    ) -> Array:
        """Run the layers: see the function of `fastconv.functional` with the name `op`; input_gate must be None."""
        if input_gate is not None:
            raise TypeError(f"input_gate must be None: {self.op} takes none")
        try:
            return self._compute(x, residual, out)
        except _core.Refused as refusal:
            raise self._error(refusal, {"x": x, **self._vectors, "residual": residual, "out": out}) from None

    def __repr__(self) -> str:
        return f"<fastconv plan of {self.op}: {self.input_shape} -> {self.output_shape}, {self.dtype}>"


class SeparablePlan(_LayersPlan):
    """A plan of a depthwise-separable layer."""

    __slots__ = ()

    def _compute(self, x: Array, residual: Array | None, out: Array | None) -> Array:
        run: Any = self._run
        y: Array = run(x, residual, out)
        return y

    def _error(self, refusal: _core.Refused, arrays: dict[str, Any]) -> Exception:
        x, shape = arrays["x"], self.input_shape
        if isinstance(x, np.ndarray) and x.ndim and x.shape[-len(shape) + 1 :] != shape[1:]:
            return ValueError(f"x (shape {x.shape}) must have the shape of the plan, {shape}, but for N")
        return _separable.error(refusal, self._spec, arrays)

    @property
    def decision(self) -> dict[str, Any]:
        """What the layer takes: "packed_weight_bytes" and "workspace_per_thread"."""
        core: Any = self._plan
        return {
            "algorithm": "separable",
            "packed_weight_bytes": core.packed_bytes,
            "workspace_per_thread": core.workspace_bytes,
        }


def _separable_plan(op: str, x: Array | Sequence[int], operands: tuple[Any, ...], options: dict[str, Any]) -> Plan:
    arguments = _bind(op, (x, *operands), options)
    dtype = operands[0].dtype if operands and isinstance(operands[0], np.ndarray) else np.dtype(np.float32)
    like: Any = _like(x, "x", dtype)
    spec = _separable.spec(
        int(op[len("separable_conv")]),
        like,
        arguments["stride"],
        arguments["padding"],
        arguments["dilation"],
        arguments["padding_mode"],
        arguments["layout"],
        arguments["depthwise_activation"],
        arguments["activation"],
    )
    names = ("depthwise_weight", "pointwise_weight", "depthwise_bias", "depthwise_scale", "depthwise_shift")
    vectors = {name: arguments[name] for name in (*names, "bias", "scale", "shift")}
    output_shape = _separable.check(spec, {"x": like, **vectors})
    try:
        core = _core.separable_plan(spec, x if isinstance(x, np.ndarray) else tuple(x), *vectors.values())
    except _core.Refused as refusal:
        if refusal.args[0] == "unsupported":
            raise ValueError(
                f"depthwise_weight (shape {vectors['depthwise_weight'].shape}) must have one filter a channel: a plan "
                "takes no channel multiplier"
            ) from None
        raise _separable.error(refusal, spec, {"x": like, **vectors}) from None
    return SeparablePlan(
        op=op,
        input_shape=_shape(x),
        output_shape=output_shape,
        dtype=dtype,
        _plan=core,
        _run=core.run,
        _spec=spec,
        _vectors={
            name: np.broadcast_to(np.zeros((), a.dtype), a.shape) for name, a in vectors.items() if a is not None
        },
    )


def _run_first(first: Any, x: Array, layout: str) -> tuple[Array, Array]:
    """The depthwise layer's result and its means, by the plan of both layers or of that alone."""
    if not isinstance(first, _core.ConvPlan):
        u, mean = first.run(x, None, None)
        return u, mean
    u = first.run(x, None, None, None)
    return u, functional.global_avg_pool2d(u, keepdims=False, layout=layout)


class InvertedResidualPlan(_LayersPlan):
    """A plan of an inverted residual: of the whole layer, or with squeeze-excite of its calls."""

    __slots__ = ("_layout", "_parts")

    _layout: str
    _parts: tuple[Any, ...]

    def _compute(self, x: Array, residual: Array | None, out: Array | None) -> Array:
        first, *squeeze = self._parts
        if not squeeze:
            y: Array = first.run(x, residual, out)
            return y
        reduce, widen, project = squeeze
        u, mean = _run_first(first, x, self._layout)
        gate = widen(reduce(_inverted.as_pixel(mean, self._layout)))
        y = project.run(u, residual, gate.reshape(mean.shape), out)
        return y

    def _error(self, refusal: _core.Refused, arrays: dict[str, Any]) -> Exception:
        return _inverted.error(refusal, self._spec, arrays, self.input_shape)

    @property
    def decision(self) -> dict[str, Any]:
        """What the layer takes, among them "packed_weight_bytes" and "workspace_per_thread".

        With an expansion "role" says whether some rows of it are kept ("rows of the expansion": "kept_rows", for
        "rows" and "columns" of the result at a time) or all of it ("the expansion of an image": "whole_bytes").
        """
        first, *others = self._parts
        if isinstance(first, _core.SeparablePlan):
            both = {"packed_weight_bytes": first.packed_bytes, "workspace_per_thread": first.workspace_bytes}
            return {"algorithm": "separable", **both}
        decision = dict(first.decision)
        for part in others:
            decision["packed_weight_bytes"] += part.decision["packed_weight_bytes"]
            most = max(decision["workspace_per_thread"], part.decision["workspace_per_thread"])
            decision["workspace_per_thread"] = most
        return decision


def _inverted_plan(x: Array | Sequence[int], operands: tuple[Any, ...], options: dict[str, Any]) -> Plan:
    a = _bind(_INVERTED_OP, (x, *operands), options)
    given = next((w for w in operands if isinstance(w, np.ndarray)), None)
    dtype = np.dtype(np.float32) if given is None else given.dtype
    like: Any = _like(x, "x", dtype)
    geometry = {name: a[name] for name in ("stride", "padding", "dilation", "padding_mode", "layout")}
    expand, inner, last = a["expand_weight"], a["depthwise_activation"], a["activation"]
    spec, project_spec = _inverted.specs(
        like,
        expand,
        **geometry,
        expand_activation=a["expand_activation"],
        depthwise_activation=inner,
        activation=last,
    )
    for name in ("se_activation", "se_gate"):
        _inverted.check_activation(name, a[name])
    weights = ("expand_weight", "depthwise_weight", "project_weight")
    vectors = {name: a[name] for name in (*weights, *_inverted.VECTORS, *_inverted.SQUEEZE)}
    output_shape = _inverted.check(spec, {"x": like, **vectors})
    source: Any = x if isinstance(x, np.ndarray) else tuple(x)
    core: Any = _core
    depthwise, project, squeezed = a["depthwise_weight"], a["project_weight"], a["se_reduce_weight"] is not None
    expands, filters, projects = ([a[name] for name in _inverted.VECTORS[i : i + 3]] for i in (0, 3, 6))
    try:
        if expand is None and squeezed:
            alone = _inverted.depthwise_spec(spec, geometry, inner)
            whole = core.conv_plan(alone, source, depthwise, *filters, None, None, False)
        elif expand is None:
            both = _inverted.separable_spec(spec, geometry, inner, last)
            whole = core.separable_plan(both, source, depthwise, project, *filters, *projects)
        else:
            ends = (
                (None, *expands, *filters, None, None, None) if squeezed else (project, *expands, *filters, *projects)
            )
            whole = core.inverted_plan(spec, project_spec, source, expand, depthwise, *ends)
        parts = [whole]
        if squeezed:
            # A result shows the memory order of what the projection is going to read.
            image = x[:1] if isinstance(x, np.ndarray) and x.ndim == 4 else np.zeros(like.shape[-3:], dtype)
            image = image if image.size else np.zeros(image.shape[-3:], dtype)
            u, mean = _run_first(whole, x if isinstance(x, np.ndarray) and x.ndim == 3 else image, a["layout"])
            pixel = _inverted.as_pixel(mean, a["layout"])
            dense = {"layout": a["layout"]}
            reduce = plan(
                "conv2d", pixel, a["se_reduce_weight"], a["se_reduce_bias"], activation=a["se_activation"], **dense
            )
            parts += [
                reduce,
                plan(
                    "conv2d",
                    reduce(pixel),
                    a["se_expand_weight"],
                    a["se_expand_bias"],
                    activation=a["se_gate"],
                    **dense,
                ),
                core.conv_plan(project_spec, u, project, *projects, None, None, True),
            ]
    except _core.Refused as refusal:
        raise _inverted.error(refusal, spec, {"x": like, **vectors}) from None
    return InvertedResidualPlan(
        op=_INVERTED_OP,
        input_shape=_shape(x),
        output_shape=output_shape,
        dtype=dtype,
        _parts=tuple(parts),
        _layout=a["layout"],
        _spec=spec,
        _vectors={
            name: np.broadcast_to(np.zeros((), v.dtype), v.shape) for name, v in vectors.items() if v is not None
        },
    )


def plan(op: str, x: Array | Sequence[int], weight: Array | None, *operands: Array | None, **options: Any) -> Plan:
    """Prepare a layer: pack its weights and choose its algorithm once.

    Args:
        op: "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
            "separable_conv1d", "separable_conv2d" or "inverted_residual".
        x: an array of the shape and memory order to come, or a shape (C-contiguous then, in the weight's dtype).
        weight: as the function takes it; copied, as are bias and the vectors among the options.
        *operands: the function's further positional operands: the bias; of a separable layer the pointwise weight
            before it; of an inverted residual the depthwise weight and that of the projection.
        **options: the keyword arguments of the function, but for residual and out, which are given to the plan when it
            is called. So is input_gate; here input_gate=True says that calls bring one.

    Returns:
        The plan, to be called with x.

    Raises:
        ValueError: a value or a shape does not fit, or op is not known.
        TypeError: an operand is no array of float32 or float64, or an option is not one of the function's.
        MemoryError: there is no memory for the packed weights.
    """
    known = (*_FORWARD_OPS, *_SEPARABLE_OPS, _INVERTED_OP)
    if op not in known:
        raise ValueError(f"op (={op!r}) must be one of {', '.join(map(repr, known))}")
    for name in _CALL_ARGUMENTS:
        if name in options:
            raise TypeError(f"{name} is given to the plan when it is called, not to plan()")
    if op in _SEPARABLE_OPS:
        return _separable_plan(op, x, (weight, *operands), options)
    if op == _INVERTED_OP:
        return _inverted_plan(x, (weight, *operands), options)
    arguments = _bind(op, (x, weight, *operands), options)
    gated = arguments.get("input_gate")
    if gated is not None and not isinstance(gated, bool):
        raise TypeError(
            "input_gate is given to the plan when it is called; plan() takes input_gate=True to announce it"
        )
    spec = _spec(op, arguments)
    dtype = weight.dtype if isinstance(weight, np.ndarray) else np.dtype(np.float32)
    names = ("weight", "bias", "scale", "shift", "input_scale", "input_shift")
    vectors: dict[str, Any] = {name: arguments.get(name) for name in names}
    like = {"x": _like(x, "x", dtype), **vectors}
    if op == "linear":
        output_shape = _args.check_linear(like)
        rows = math.prod(_shape(x)[:-1])
        x_like: Any = _linear_view(x, rows)
        packed: dict[str, Any] = {**vectors, "weight": vectors["weight"][:, :, None]}
    else:
        output_shape = _args.check_forward(spec, like)
        x_like, packed = x, vectors
    try:
        core = _core.conv_plan(
            spec,
            x_like,
            packed["weight"],
            packed["bias"],
            packed["scale"],
            packed["shift"],
            packed["input_scale"],
            packed["input_shift"],
            gated is True,
        )
    except _core.Refused as refusal:
        raise _args.forward_error(refusal, spec, like) from None
    kind = _LinearPlan if op == "linear" else Plan
    return kind(
        op=op,
        input_shape=_shape(x),
        output_shape=output_shape,
        dtype=dtype,
        _plan=core,
        _run=_verbose.LoggedPlan(op, core).run if _verbose.enabled else core.run,
        _spec=spec,
        # Only shapes and dtypes, for the checks after a refused call: the user's arrays are let go.
        _vectors={
            name: np.broadcast_to(np.zeros((), a.dtype), a.shape) for name, a in vectors.items() if a is not None
        },
    )


# ---------------------------------------------------------------------------------------------------- explain


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How a call is computed. Made by `explain`; str() gives a readable text, as_dict() plain values.

    Attributes:
        op: the function of `fastconv.functional`.
        shapes: of its operands and its result, by name.
        dtype: of all of them.
        threads: how many a call made now would use at most.
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
    """

    op: str
    shapes: Mapping[str, Shape]
    dtype: np.dtype[Any]
    threads: int
    flops: float
    bytes: float
    decision: Mapping[str, Any]

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
        return {
            "op": self.op,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "dtype": str(self.dtype),
            "threads": self.threads,
            "flops": self.flops,
            "bytes": self.bytes,
            "intensity": self.intensity if self.bytes else None,
            "decision": dict(self.decision),
        }

    def __str__(self) -> str:
        d = self.decision
        operands = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        scale = "conv(|x|, |weight|)"
        if d["algorithm"] == "fft":
            scale = "|tile of x| * |weight| (2-norms)"
        elif d["algorithm"].startswith("winograd"):
            scale = f"max {scale} about a tile"
        lines = [
            f"{self.op}: {operands}, {self.dtype}",
            f"  algorithm   {d['algorithm']} on {d['isa']}, {d['role']}, tile {d['tile_rows']} x {d['tile_columns']}",
            f"  blocks      {d['reduction_block']} terms, {d['channel_block']} channels, "
            f"{d['pixel_block']} pixels a task",
            f"  threads     at most {self.threads}",
            f"  memory      {d['workspace_per_thread']} bytes of scratch a thread, "
            f"{d['packed_weight_bytes']} bytes of packed weights",
            f"  work        {self.flops:.4g} flops, {self.bytes:.4g} bytes, {self.intensity:.3g} flops a byte",
            f"  error       at most {d['error_bound']:.4g} * eps * {scale}",
        ]
        passed_over = [line for line in str(d["passed_over"]).splitlines() if line]
        lines += [f"  {'passed over' if i == 0 else '           '} {line}" for i, line in enumerate(passed_over)]
        return "\n".join(lines)


def explain(op: str, *operands: Any, **options: Any) -> Explanation:
    """How `functional.<op>(*operands, **options)` would be computed; nothing is.

    Args:
        op: a forward function ("conv2d", "conv_transpose1d", "linear", ...) or one of its gradients, such as
            "conv2d_backward_input" and "conv2d_backward_weight".
        *operands: as the function takes them. x, weight and dy may be shapes, in float32 or the dtype of the arrays.
        **options: its keyword arguments; out and accumulate have no effect.

    Returns:
        The explanation, with the decision that the call would take.

    Raises:
        ValueError: a value or a shape does not fit, or op is not known.
        TypeError: an operand is no array of float32 or float64, or an option is not one of the function's.
    """
    ops = [base + suffix for base in _FORWARD_OPS for suffix in _PASSES]
    if op not in ops:
        raise ValueError(f"op (={op!r}) must be one of {', '.join(map(repr, ops))}")
    arguments = _bind(op, operands, options)
    spec = _spec(op, arguments)
    dtype = next((arguments[n].dtype for n in _IMAGES if isinstance(arguments.get(n), np.ndarray)), np.dtype("float32"))
    arrays = {name: _like(arguments[name], name, dtype) for name in (*_IMAGES, *_VECTORS) if name in arguments}
    call = _call(op, spec, arguments, arrays)
    try:
        decision = _core.conv_decide(spec, call.which, call.x, call.weight, call.y, *call.vectors)
    except _core.Refused as refusal:
        raise _args.decision_error(refusal, op, spec) from None
    shapes = {name: _shape(arguments[name]) for name in _IMAGES if name in arguments}
    shapes[("y", "dx", "dw")[call.which]] = call.result
    return Explanation(
        op=op,
        shapes=MappingProxyType(shapes),
        dtype=dtype,
        threads=_core.num_threads(),
        flops=decision.pop("flops"),
        bytes=decision.pop("bytes"),
        decision=MappingProxyType(decision),
    )


class _Call(NamedTuple):
    """The arguments of `_core.conv_decide`, and the shape of the result."""

    which: int
    x: Array | Shape
    weight: Array | Shape
    y: Array | Shape | None
    vectors: list[Array | None]
    result: Shape


def _call(op: str, spec: _core.ConvSpec, arguments: Mapping[str, Any], arrays: Mapping[str, Any]) -> _Call:
    """Check everything; `arguments` are the user's, `arrays` the same with arrays in place of shapes."""
    base, separator, rest = op.partition("_backward")
    which = _PASSES[separator + rest]
    vectors = {name: arrays.get(name) for name in _VECTORS}
    x: Any = arguments.get("x")
    weight: Any = arguments.get("weight")
    dy: Any = arguments.get("dy")
    if base != "linear":
        if which == 0:
            return _Call(which, x, weight, None, [*vectors.values()], _args.check_forward(spec, arrays))
        if which == 1:
            shape = _args.check_backward_input(spec, arrays, arguments["input_shape"], False)
            return _Call(which, shape, weight, dy, [*vectors.values()], shape)
        shape = _args.check_backward_weight(spec, arrays, arguments["weight_shape"], False)
        return _Call(which, x, shape, dy, [*vectors.values()], shape)
    shape = _args.check_linear(arrays) if which == 0 else _args.check_linear_backward(arrays, False)
    rows = math.prod((arrays["x"] if which == 0 else arrays["dy"]).shape[:-1])
    if vectors["residual"] is not None:
        vectors["residual"] = _linear_view(vectors["residual"], rows)
    return _Call(
        which,
        _linear_view(shape if which == 1 else x, rows),
        (*shape, 1) if which == 2 else weight[:, :, None] if isinstance(weight, np.ndarray) else (*weight, 1),
        None if which == 0 else _linear_view(dy, rows),
        [*vectors.values()],
        shape,
    )
