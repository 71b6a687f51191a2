"""Plans, which prepare a layer once. They show the decision that drives execution, and decide nothing themselves."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _args, _core, _foreign, _verbose, functional
from ._args import Array, Shape
from ._args import admission as _admission
from ._args import inverted as _inverted
from ._args import separable as _separable

__all__ = ["InvertedResidualPlan", "Plan", "SeparablePlan", "plan"]

_FORWARD_OPS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
_SEPARABLE_OPS = ("separable_conv1d", "separable_conv2d")
_INVERTED_OP = "inverted_residual"
# What a plan is given when it is called.
_CALL_ARGUMENTS = ("residual", "out")


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
        options.get("precision", "strict"),
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
    the arrays it was made from do not reach it. It takes any batch size (of a dense layer, as many rows as it was made
    for), and computes the same bits as the plain call.

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
            if _foreign.any_of((x, residual, input_gate, out)):
                return _foreign.on_views(self.__call__, x, residual, input_gate, out)
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
            if _foreign.any_of((x, residual, out)):
                return _foreign.on_views(self.__call__, x, residual, None, out)
            raise _args.linear_plan_error(refusal, self._arrays(x, residual, out), self.input_shape) from None

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
            if _foreign.any_of((x, residual, out)):
                return _foreign.on_views(self.__call__, x, residual, None, out)
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
    x, weight, *operands = map(_foreign.seen, (x, weight, *operands))  # type: ignore[assignment]
    options = {name: _foreign.seen(value) for name, value in options.items()}
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
        # The decision of any call: a plan takes the same one with a residual and without.
        operands_like = [packed[name] for name in ("bias", "scale", "shift")]
        operands_like += [None, *(packed[name] for name in ("input_scale", "input_shift")), None]
        spec = _admission.admitted(spec, 0, x_like, weight, None, operands_like, arguments.get("max_error"))
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
