"""Models as graphs of fastconv: constants folded, shapes known, and for each node what stands for it there.

A graph is made for one shape of each input, so that what exporters write to compute shapes is constant and goes away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import functional
from ..._args import Array
from ..._graph import Activation, Graph, Node, Value
from . import operators
from .load import Source, Step
from .operators import OPERATORS

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
# An input of more elements is no shape.
_MOST_KNOWN = 1024


class UnsupportedModel(ValueError):
    """A model holds what is not supported; `nodes` says what, each node by its operator and name."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = list(nodes)
        super().__init__(f"model holds what is not supported: {'; '.join(nodes)}")


class NeedsValues(Exception):
    """Shapes depend on the values of these inputs."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of a value before it is computed."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Its number of axes."""
        return len(self.shape)


def unsupported(source: Source) -> list[str]:
    """The nodes that no operator stands for, and what else a model holds that is not supported."""
    found = list(source.unsupported)
    for step in source.steps:
        operator = OPERATORS.get(step.op)
        if operator is None:
            found.append(str(step))
        elif operator.refuse is not None and (what := operator.refuse(step)) is not None:
            found.append(f"{step} with {what}")
    return found


class Lowering:
    """The graph of a model for inputs of known shapes.

    Attributes:
        graph: its inputs are the model's.
        known: the constants by name: weights and what follows from them and from shapes.
        values: what else there is, by name.
    """

    def __init__(self, source: Source, forms: Mapping[str, Form], known: Mapping[str, Array]) -> None:
        self.graph = Graph(len(source.inputs))
        self.known = {**source.constants, **known}
        self.values: dict[str, Value] = {}
        self.forms: dict[str, Form] = dict(forms)
        self.makers: dict[str, Step] = {}
        # Elements that constants may still be folded to; a model of large weights may make several of each.
        self._budget = max(operators.MOST_FOLDED, 8 * sum(a.size for a in source.constants.values()))
        # The inputs that a value depends on.
        self._roots = {port.name: frozenset((port.name,)) for port in source.inputs}
        self._nodes: dict[Value, Node] = {}
        self._constants: dict[str, Value] = {}
        for port, value in zip(source.inputs, self.graph.inputs, strict=True):
            if port.name not in self.known:
                self.values[port.name] = value
        self._read: dict[str, int] = {}
        for name in (*(name for step in source.steps for name in step.inputs), *source.outputs):
            self._read[name] = self._read.get(name, 0) + 1
        for step in source.steps:
            self._step(step)
        self.graph.outputs = [self.value(name) for name in source.outputs]

    # -- what rules ask

    def form(self, name: str) -> Form:
        """Shape and dtype of a value."""
        if name in self.known:
            return Form(self.known[name].shape, self.known[name].dtype)
        return self.forms[name]

    def constant(self, step: Step, i: int) -> Array | None:
        """The i-th input of a node, if it is there and constant."""
        return self.known.get(step.inputs[i]) if self.given(step, i) else None

    @staticmethod
    def given(step: Step, i: int) -> bool:
        """Whether a node has an i-th input."""
        return i < len(step.inputs) and bool(step.inputs[i])

    def value(self, name: str) -> Value:
        """A value of the graph; constants get a node when they are first asked for."""
        if name in self.values:
            return self.values[name]
        if name not in self._constants:
            self._constants[name] = self.graph.add("constant", value=np.asarray(self.known[name]))
        return self._constants[name]

    def node(self, name: str, *ops: str) -> Node | None:
        """The node that makes a value, if it is one of these."""
        value = self.values.get(name)
        node = None if value is None else self._nodes.get(value)
        return node if node is not None and node.op in ops else None

    def maker(self, name: str, *ops: str) -> Step | None:
        """The model's node that makes a value, if it is one of these."""
        step = self.makers.get(name)
        return step if step is not None and step.op in ops else None

    def once(self, name: str) -> bool:
        """Whether one node alone reads a value."""
        return self._read.get(name) == 1

    def floats(self, *names: str) -> bool:
        """Whether all are of a dtype that fastconv's functions take."""
        return all(self.form(name).dtype in _FLOATS for name in names)

    # -- steps

    def _step(self, step: Step) -> None:
        operator = OPERATORS[step.op]
        names = [name for name in step.inputs if name]
        missing = [name for name in names if name not in self.known and name not in self.values]
        if missing:
            raise ValueError(f"{step} reads {missing[0]!r}, which nobody makes")
        if step.op in ("Shape", "Size", "EyeLike") or all(name in self.known for name in names):
            arrays = self._arrays(step, lambda form: np.broadcast_to(np.zeros((), form.dtype), form.shape))
            shapes = [a.shape for a in arrays if a is not None]
            for name, result in zip(step.outputs, self._fold(step, arrays, shapes), strict=False):
                self.known[name] = result
            return
        self._ask(step, frozenset(step.inputs[i] for i in operator.constants if self.given(step, i)))
        roots = frozenset[str]().union(*(self._roots.get(name, ()) for name in names))
        wanted = [(i, name) for i, name in enumerate(step.outputs) if name and name in self._read]
        forms = self._forms(step, operator.kind)
        for i, name in wanted:
            if i >= len(forms):
                raise ValueError(f"{step} has no output {i}")
            self.forms[name], self.makers[name], self._roots[name] = forms[i], step, roots
            before = len(self.graph.nodes)
            rule = _RULES.get(step.op) if len(wanted) == 1 and i == 0 else None
            value = _part(self, step, i) if step.op == "Split" else None if rule is None else rule(self, step)
            if value is None:
                value = self._call(step, i)
            self._nodes |= {node.output: node for node in self.graph.nodes[before:]}
            self.values[name] = value

    def _ask(self, step: Step, names: frozenset[str]) -> None:
        """See to it that these inputs are known."""
        unknown = [name for name in names if name not in self.known]
        if not unknown:
            return
        roots = frozenset[str]().union(*(self._roots[name] for name in unknown))
        if not roots or any(math.prod(self.forms[name].shape) > _MOST_KNOWN for name in roots):
            raise ValueError(f"{step} reads {unknown[0]!r}, on which shapes depend: it must not follow from images")
        raise NeedsValues(roots)

    def _arrays(self, step: Step, stand_in: Callable[[Form], Array]) -> list[Array | None]:
        """The inputs of a node: constants as they are, for the others a stand-in; None for absent ones."""
        arrays: list[Array | None] = []
        for name in step.inputs:
            known = self.known.get(name) if name else None
            arrays.append(known if known is not None or not name else stand_in(self.forms[name]))
        return arrays

    def _fold(self, step: Step, arrays: Sequence[Array | None], shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
        """A node of constants, within what is left of the budget."""
        token = operators.LIMIT.set(self._budget)
        try:
            operators.admit_fold(step, shapes)
            results = self._compute(step, arrays)
        except (ValueError, LookupError, TypeError) as error:
            words = str(error)
            raise ValueError(words if words.startswith(str(step)) else f"{step}: {words}") from None
        finally:
            operators.LIMIT.reset(token)
        self._budget -= sum(y.size for y in results)
        if self._budget < 0:
            raise ValueError(f"{step}: constants must not be folded to more than {operators.MOST_FOLDED} elements")
        return results

    def _compute(self, step: Step, arrays: Sequence[Array | None]) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            try:
                results = OPERATORS[step.op].compute(step, *arrays)
            except (ValueError, TypeError, IndexError, KeyError, ArithmeticError) as error:
                what = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{step}: {what}") from None
            except MemoryError as error:
                raise ValueError(f"{step} asks for more memory than there is: {error}") from None
        return tuple(np.asarray(y) for y in (results if isinstance(results, tuple) else (results,)))

    def _forms(self, step: Step, kind: str) -> list[Form]:
        """What a node gives, without computing it where that can be."""
        shapes = [self.form(name).shape for name in step.inputs if name]
        first = self.form(step.inputs[0])
        single = len(step.outputs) == 1
        if kind == "same" and single:
            return [first]
        if kind in ("broadcast", "cast") and single:
            small = [
                None if not name else np.ones((1,) * self.form(name).ndim, self.form(name).dtype)
                for name in step.inputs
            ]
            try:
                shape = shapes[0] if step.version < 7 or kind == "cast" else np.broadcast_shapes(*shapes)
            except ValueError as error:
                raise ValueError(f"{step}: {error}") from None
            return [Form(shape, self._compute(step, small)[0].dtype)]
        if kind == "images" and first.shape and first.shape[0]:
            arrays = self._arrays(step, lambda form: np.zeros(form.shape, form.dtype))
            arrays[0] = np.zeros((0, *first.shape[1:]), first.dtype)
            results = self._compute(step, arrays)
            return [Form((first.shape[0], *y.shape[1:]), y.dtype) for y in results]
        arrays = self._arrays(step, lambda form: np.zeros(form.shape, form.dtype))
        return [Form(y.shape, y.dtype) for y in self._compute(step, arrays)]

    def _call(self, step: Step, i: int) -> Value:
        """A node that runs as it is."""
        compute = OPERATORS[step.op].compute
        places = [k for k, name in enumerate(step.inputs) if name and name not in self.known]
        arrays = self._arrays(step, lambda form: np.zeros((), form.dtype))
        for k in places:
            arrays[k] = None

        def function(*inputs: Array) -> Array:
            operands = list(arrays)
            for k, x in zip(places, inputs, strict=True):
                operands[k] = x
            with np.errstate(all="ignore"):
                results = compute(step, *operands)
            return np.asarray(results[i] if isinstance(results, tuple) else results)

        return self.graph.add("call", *(self.value(step.inputs[k]) for k in places), function=function, what=step.op)


# ---------------------------------------------------------------------------------------------------------------- rules
#
# A rule gives the value of a node's first output, or None for what only a call of the operator can compute.

Rule = Callable[[Lowering, Step], Value | None]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


def lowered() -> frozenset[str]:
    """The operators for which nodes of the graph may stand, which are fused."""
    return frozenset(_RULES) | {"Split", "Shape", "Size", "Constant", "ConstantOfShape"}


@_rule("Identity", "Dropout")
def _same(low: Lowering, step: Step) -> Value | None:
    if step.op == "Dropout" and operators.drops(low.constant(step, 1), low.constant(step, 2)):
        raise UnsupportedModel([f"{step} with training_mode"])
    return low.value(step.inputs[0])


@_rule("Cast")
def _cast(low: Lowering, step: Step) -> Value | None:
    name = step.inputs[0]
    return low.value(name) if low.forms[step.outputs[0]].dtype == low.form(name).dtype else None


@_rule("Conv", "ConvTranspose")
def _convolve(low: Lowering, step: Step) -> Value | None:
    weight, bias = low.constant(step, 1), low.constant(step, 2)
    if weight is None or (low.given(step, 2) and bias is None) or not low.floats(step.inputs[0]):
        return None
    x = low.form(step.inputs[0])
    return low.graph.add(
        "conv",
        low.value(step.inputs[0]),
        rank=x.ndim - 2,
        transposed=step.op == "ConvTranspose",
        weight=weight,
        bias=bias,
        options=operators.convolution(step, x.shape, weight.shape),
    )


@_rule("BatchNormalization")
def _batch_norm(low: Lowering, step: Step) -> Value | None:
    arrays = [low.constant(step, i) for i in range(1, 5)]
    x = low.form(step.inputs[0])
    if operators.trains(step) or any(a is None for a in arrays) or not low.floats(step.inputs[0]) or x.ndim > 5:
        return None
    scale, shift, mean, var = (np.asarray(a, np.float64) for a in arrays)
    # In float64, so that a scale and a shift are each one rounding.
    factor = scale / np.sqrt(var + step.get("epsilon", 1e-5))
    return _affine(low, step.inputs[0], factor, shift - mean * factor)


def _affine(low: Lowering, name: str, scale: Array, shift: Array) -> Value:
    dtype = low.form(name).dtype
    return low.graph.add("affine", low.value(name), scale=scale.astype(dtype), shift=shift.astype(dtype))


# ---------------------------------------------------------------------------------------------------------- activations


def _clip(low: Lowering, step: Step) -> Activation:
    bounds = [step.get("min"), step.get("max")]
    for i in (1, 2):
        if low.given(step, i):
            bound = low.constant(step, i)
            if bound is None:
                return None
            bounds[i - 1] = bound.item()
    low_, high = (None if b is None or not math.isfinite(b) else float(b) for b in bounds)
    if low_ is None or high is None:
        return "relu" if (low_, high) == (0.0, None) else None
    # Where the bounds cross, ONNX gives the upper one.
    return "relu6" if (low_, high) == (0.0, 6.0) else ("clip", min(low_, high), high)


def _hard_sigmoid(low: Lowering, step: Step) -> Activation:
    sixth = math.isclose(step.get("alpha", 0.2), 1 / 6, rel_tol=1e-6)
    return "hardsigmoid" if sixth and step.get("beta", 0.5) == 0.5 else None


_ACTIVATIONS: dict[str, Callable[[Lowering, Step], Activation]] = {
    "Relu": lambda low, step: "relu",
    "LeakyRelu": lambda low, step: ("leaky_relu", step.get("alpha", 0.01)),
    "Clip": _clip,
    "Sigmoid": lambda low, step: "sigmoid",
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda low, step: "hardswish",
    "Tanh": lambda low, step: "tanh",
    "Gelu": lambda low, step: "gelu_tanh" if step.get("approximate", "none") == "tanh" else "gelu",
    "Swish": lambda low, step: "silu" if step.get("alpha", 1.0) == 1 else None,
}


@_rule(*_ACTIVATIONS)
def _activation(low: Lowering, step: Step) -> Value | None:
    name = step.inputs[0]
    if not low.floats(name) or low.form(name).ndim > 5:
        return None
    activation = _ACTIVATIONS[step.op](low, step)
    return None if activation is None else low.graph.add("activation", low.value(name), activation=activation)


@_rule("PRelu")
def _prelu(low: Lowering, step: Step) -> Value | None:
    slope, name = low.constant(step, 1), step.inputs[0]
    if slope is None or slope.size != 1 or not low.floats(name) or not max(slope.ndim, 1) <= low.form(name).ndim <= 5:
        return None
    return low.graph.add("activation", low.value(name), activation=("leaky_relu", float(slope.item())))


# ---------------------------------------------------------------------------------------------------- sums and products


def _number(low: Lowering, name: str) -> float | None:
    """The constant that is the same everywhere."""
    a = low.known.get(name)
    return float(a.item()) if a is not None and a.size == 1 else None


def _factors(low: Lowering, name: str, depth: int = 0) -> tuple[float, list[str]]:
    """A product as a number and what it is multiplied with."""
    step = low.maker(name, "Mul", "Div")
    if step is None or depth > 3:
        return 1.0, [name]
    a, b = step.inputs
    number = _number(low, b)
    if number is not None and (step.op == "Mul" or number):
        factor, rest = _factors(low, a, depth + 1)
        return (factor * number if step.op == "Mul" else factor / number), rest
    if step.op == "Div":
        return 1.0, [name]
    number = _number(low, a)
    if number is not None:
        factor, rest = _factors(low, b, depth + 1)
        return factor * number, rest
    (f, left), (g, right) = _factors(low, a, depth + 1), _factors(low, b, depth + 1)
    return f * g, left + right


def _plus(low: Lowering, name: str) -> tuple[float, str] | None:
    """A sum of a number and a value."""
    step = low.maker(name, "Add")
    if step is None:
        return None
    for a, b in (step.inputs, step.inputs[::-1]):
        number = _number(low, b)
        if number is not None and a not in low.known:
            return number, a
    return None


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5)


def _gated(low: Lowering, step: Step) -> tuple[str, Activation] | None:
    """X and an activation whose product with x, as exporters write it, is another one's definition."""
    number, leaves = _factors(low, step.outputs[0])
    if len(leaves) != 2:
        return None
    for x, gate in (leaves, leaves[::-1]):
        maker = low.makers.get(gate)
        # A number of more axes than x gives the product more of them.
        if maker is None or x in low.known or low.form(x).shape != low.forms[step.outputs[0]].shape:
            continue
        if maker.op in ("Sigmoid", "HardSigmoid") and maker.inputs[0] == x and number == 1:
            activation = _ACTIVATIONS[maker.op](low, maker)
            if activation is not None:
                return x, "silu" if maker.op == "Sigmoid" else "hardswish"
        if maker.op == "Clip" and _near(number, 1 / 6) and _plus(low, maker.inputs[0]) == (3.0, x):
            return (x, "hardswish") if _clip(low, maker) == "relu6" else None
        one = _plus(low, gate)
        erf = None if one is None or one[0] != 1 else low.maker(one[1], "Erf")
        if erf is not None and _near(number, 0.5):
            factor, inner = _factors(low, erf.inputs[0])
            if inner == [x] and _near(factor, math.sqrt(0.5)):
                return x, "gelu"
    return None


def _channel_constant(low: Lowering, x: str, c: str) -> Array | None:
    """A constant that is one number a channel of x, as a vector in float64."""
    form, constant = low.form(x), low.known.get(c)
    if constant is None or not 2 <= form.ndim <= 5 or constant.ndim > form.ndim:
        return None
    shape = (1,) * (form.ndim - constant.ndim) + constant.shape
    channels = form.shape[1]
    if any(n != 1 for i, n in enumerate(shape) if i != 1) or shape[1] not in (1, channels) or not channels:
        return None
    vector: Array = np.broadcast_to(constant.reshape(-1), (channels,)).astype(np.float64)
    return vector


def _scaled(low: Lowering, step: Step) -> Value | None:
    """Sums and products with a constant of the channels, where a layer or a norm may take it in."""
    if step.op in ("Mul", "Div") and (value := _folded(low, step)) is not None:
        return value
    sides = [tuple(step.inputs)] if step.op in ("Sub", "Div") else [tuple(step.inputs), tuple(step.inputs[::-1])]
    for x, c in sides:
        if x in low.known or low.form(x).shape != low.forms[step.outputs[0]].shape:
            continue
        vector = _channel_constant(low, x, c)
        if vector is None:
            continue
        if (low.form(x).ndim < 4 or low.known[c].size == 1) and low.node(x, "conv", "linear", "affine") is None:
            continue
        if low.form(x).ndim == 3 and low.node(x, "linear") is not None and low.known[c].size > 1:
            continue
        one, zero = np.ones_like(vector), np.zeros_like(vector)
        if step.op == "Div" and (vector == 0).any():
            continue
        scale = {"Mul": vector, "Div": 1 / np.where(vector == 0, 1, vector)}.get(step.op, one)
        shift = {"Add": vector, "Sum": vector, "Sub": -vector}.get(step.op, zero)
        return _affine(low, x, scale, shift)
    return None


def _folded(low: Lowering, step: Step) -> Value | None:
    """A number into the dense layer whose result it multiplies, however that is looked at in between."""
    for x, c in [tuple(step.inputs)] if step.op == "Div" else [tuple(step.inputs), tuple(step.inputs[::-1])]:
        number, name = _number(low, c), x
        if number is None or not number or low.known[c].ndim > low.form(x).ndim:
            continue
        while low.once(name) and (look := low.maker(name, "Reshape", "Transpose", "Squeeze", "Unsqueeze")) is not None:
            name = look.inputs[0]
        linear = low.node(name, "linear")
        if linear is None or not low.once(name) or name == x:
            continue
        for what in ("weight", "bias"):
            if (a := linear.get(what)) is not None:
                scaled = a.astype(np.float64) * number if step.op == "Mul" else a.astype(np.float64) / number
                linear.attributes[what] = scaled.astype(a.dtype)
        return low.value(x)
    return None


def _biased(low: Lowering, step: Step) -> Value | None:
    """A bias after a product of matrices."""
    for x, c in (step.inputs, step.inputs[::-1]):
        linear, bias = low.node(x, "linear"), low.known.get(c)
        if linear is None or bias is None or linear.get("bias") is not None:
            continue
        outputs = linear.get("weight").shape[0]
        if bias.size == outputs and bias.shape[-1:] == (outputs,) and bias.ndim <= low.form(x).ndim:
            whole = np.ascontiguousarray(bias.reshape(-1))
            return low.graph.add("linear", linear.inputs[0], weight=linear.get("weight"), bias=whole)
    return None


@_rule("Add", "Sub", "Mul", "Div", "Sum")
def _combine(low: Lowering, step: Step) -> Value | None:
    names = step.inputs
    if step.version < 7 or not low.floats(*names) or max(low.form(name).ndim for name in names) > 5:
        return None
    if step.op in ("Mul", "Div") and (gated := _gated(low, step)) is not None:
        return low.graph.add("activation", low.value(gated[0]), activation=gated[1])
    if len(names) == 2:
        value = _biased(low, step) if step.op in ("Add", "Sum") else None
        value = _scaled(low, step) if value is None else value
        if value is not None:
            return value
    if step.op in ("Sub", "Div"):
        return _elementwise(low, step)
    if step.op == "Mul":
        return _multiply(low, *names)
    total = low.value(names[0])
    for name in names[1:]:
        total = low.graph.add("add", total, low.value(name))
    return total


_UFUNCS: dict[str, np.ufunc] = {
    "Sub": np.subtract,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Neg": np.negative,
    "Abs": np.abs,
}


@_rule("Max", "Min", "Sqrt", "Exp", "Neg", "Abs")
def _elementwise(low: Lowering, step: Step) -> Value | None:
    """What NumPy writes where it is to be."""
    ufunc, names = _UFUNCS[step.op], step.inputs
    if step.version < 8 or ufunc.nin != len(names) or not low.floats(*names) or not low.forms[step.outputs[0]].ndim:
        return None

    def function(*inputs: Array, out: Array | None = None) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(ufunc(*inputs, out=out))

    return low.graph.add("call", *(low.value(name) for name in names), function=function, what=step.op, writes=True)


def _multiply(low: Lowering, a: str, b: str) -> Value:
    for x, gate in ((a, b), (b, a)):
        image, of = low.form(x), low.form(gate)
        if (
            image.ndim == of.ndim >= 4
            and of.shape[:2] == image.shape[:2]
            and set(of.shape[2:]) == {1}
            and math.prod(image.shape[2:]) > 1
            and gate not in low.known
            and x not in low.known
        ):
            return low.graph.add("gate", low.value(x), low.value(gate))
    return low.graph.add("multiply", low.value(a), low.value(b))


# --------------------------------------------------------------------------------------------------------- dense layers


def _dense(low: Lowering, name: str, weight: Array, bias: Array | None) -> Value | None:
    x = low.form(name)
    if x.dtype not in _FLOATS or not 2 <= x.ndim <= 5 or weight.ndim != 2 or 0 in weight.shape or 0 in x.shape:
        return None
    matrix = np.ascontiguousarray(weight, x.dtype)
    return low.graph.add("linear", low.value(name), weight=matrix, bias=bias)


@_rule("Gemm")
def _gemm(low: Lowering, step: Step) -> Value | None:
    b, c = low.constant(step, 1), low.constant(step, 2)
    if b is None or step.get("transA", 0) or (low.given(step, 2) and c is None) or b.ndim != 2:
        return None
    alpha, beta = step.get("alpha", 1.0), step.get("beta", 1.0)
    weight = b if step.get("transB", 0) else b.T
    if alpha != 1:
        weight = weight * weight.dtype.type(alpha)
    bias = None
    if c is not None:
        if c.ndim > 2 or (c.ndim == 2 and c.shape[0] != 1) or c.size not in (1, weight.shape[0]):
            return None
        bias = np.ascontiguousarray(np.broadcast_to(c.reshape(-1), weight.shape[:1]))
        if beta != 1:
            bias = bias * bias.dtype.type(beta)
    return _dense(low, step.inputs[0], weight, bias)


@_rule("MatMul")
def _matmul(low: Lowering, step: Step) -> Value | None:
    b, names = low.constant(step, 1), step.inputs
    dense = None if b is None or b.ndim != 2 else _dense(low, names[0], b.T, None)
    if dense is not None or not low.floats(*names) or low.forms[step.outputs[0]].ndim < 2:
        return dense

    def function(x: Array, y: Array, out: Array | None = None) -> Array:
        return np.matmul(x, y, out=out)

    return low.graph.add("call", *(low.value(name) for name in names), function=function, what=step.op, writes=True)


# ---------------------------------------------------------------------------------------------------------------- pools


def _global(low: Lowering, name: str, kind: str, keepdims: bool = True) -> Value | None:
    rank = low.form(name).ndim - 2
    if rank not in (1, 2, 3) or not low.floats(name):
        return None
    function = f"global_{kind}_pool{rank}d"
    return low.graph.add("pool", low.value(name), function=function, arguments=(), options={"keepdims": keepdims})


@_rule("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(low: Lowering, step: Step) -> Value | None:
    return _global(low, step.inputs[0], "avg" if step.op == "GlobalAveragePool" else "max")


@_rule("ReduceMean")
def _reduce_mean(low: Lowering, step: Step) -> Value | None:
    ndim = low.form(step.inputs[0]).ndim
    axes = operators.reduced_axes(step, ndim, low.constant(step, 1))
    if sorted(axes) != list(range(2, ndim)):
        return None
    return _global(low, step.inputs[0], "avg", bool(step.get("keepdims", 1)))


@_rule("MaxPool", "AveragePool")
def _pool(low: Lowering, step: Step) -> Value | None:
    x = low.form(step.inputs[0])
    if not low.floats(step.inputs[0]):
        return None
    kernel, options = operators.pool(step, x.shape)
    kind = "max" if step.op == "MaxPool" else "avg"
    if kind == "avg":
        if max(options.pop("dilation")) > 1:
            return None
        if kernel == x.shape[2:] and all(p == (0, 0) for p in options["padding"]):
            return _global(low, step.inputs[0], kind)
        options["count_include_pad"] = bool(step.get("count_include_pad", 0))
    return low.graph.add(
        "pool", low.value(step.inputs[0]), function=f"{kind}_pool{x.ndim - 2}d", arguments=(kernel,), options=options
    )


# ---------------------------------------------------------------------------------------------------- shapes and places


def _view(low: Lowering, step: Step, function: Callable[[Array], Array]) -> Value:
    return low.graph.add("view", low.value(step.inputs[0]), function=function, what=step.op)


@_rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshape(low: Lowering, step: Step) -> Value | None:
    old, new = low.form(step.inputs[0]).shape, low.forms[step.outputs[0]].shape
    if old == new:
        return low.value(step.inputs[0])
    shuffled = _shuffle(low, step, new)
    if shuffled is not None:
        return shuffled
    if len(new) == 2 and len(old) > 2 and new[0] == old[0]:
        return low.graph.add("flatten", low.value(step.inputs[0]), begin=1)
    return low.graph.add("reshape", low.value(step.inputs[0]), shape=new)


def _shuffle(low: Lowering, step: Step, shape: tuple[int, ...]) -> Value | None:
    """Channels that change places, as ShuffleNet's: split, transposed and joined."""
    turn = low.maker(step.inputs[0], "Transpose")
    split = None if turn is None else low.maker(turn.inputs[0], "Reshape")
    if turn is None or split is None or split.inputs[0] in low.known:
        return None
    parts, image = low.form(turn.inputs[0]).shape, low.form(split.inputs[0]).shape
    rank = len(shape)
    if image != shape or rank < 4 or len(parts) != rank + 1 or (parts[0], *parts[3:]) != (shape[0], *shape[2:]):
        return None
    if tuple(turn.get("perm", ())) != (0, 2, 1, *range(3, rank + 1)):
        return None
    groups, each = parts[1:3]

    def function(x: Array, out: Array | None = None) -> Array:
        y = np.empty_like(x) if out is None else out
        # A group at a time: half the time of taking channels one by one.
        for i in range(groups):
            y[:, i::groups] = x[:, i * each : (i + 1) * each]
        return y

    return low.graph.add("call", low.value(split.inputs[0]), function=function, what="shuffle", writes=True)


@_rule("Transpose")
def _transpose(low: Lowering, step: Step) -> Value | None:
    perm = step.get("perm")
    return _view(low, step, lambda x: x.transpose(perm))


@_rule("Slice")
def _slice(low: Lowering, step: Step) -> Value | None:
    given = [low.constant(step, i) for i in range(1, len(step.inputs))]
    index = operators.slices(step, low.form(step.inputs[0]).shape, *given)
    return _view(low, step, lambda x: x[index])


def _part(low: Lowering, step: Step, i: int) -> Value:
    """The i-th output of Split."""
    form = low.form(step.inputs[0])
    axis = operators.axis_of(step.get("axis", 0), form.ndim)
    sizes = operators.split_sizes(step, form.shape[axis], low.constant(step, 1))
    begin = sum(sizes[:i])
    index = (*[slice(None)] * axis, slice(begin, begin + sizes[i]))
    return _view(low, step, lambda x: x[index])


@_rule("Gather")
def _gather(low: Lowering, step: Step) -> Value | None:
    indices = low.constant(step, 1)
    if indices is None or indices.ndim:
        return None
    form = low.form(step.inputs[0])
    index: tuple[Any, ...] = (*[slice(None)] * operators.axis_of(step.get("axis", 0), form.ndim), int(indices))
    return _view(low, step, lambda x: x[index])


@_rule("Concat")
def _concat(low: Lowering, step: Step) -> Value | None:
    form = low.forms[step.outputs[0]]
    axis = operators.axis_of(step.get("axis", 1), form.ndim)
    parts = [low.value(name) for name in step.inputs if 0 not in low.form(name).shape]
    if len(parts) < 2 or len({low.form(name).dtype for name in step.inputs}) > 1:
        return None
    return low.graph.add("concat", *parts, axis=axis)


@_rule("Pad")
def _pad(low: Lowering, step: Step) -> Value | None:
    name = step.inputs[0]
    pairs, value, mode = operators.pad(step, low.form(name).ndim, *(low.constant(step, i) for i in range(1, 4)))
    if min(min(pair) for pair in pairs) < 0:
        return None
    if not any(any(pair) for pair in pairs):
        return low.value(name)
    return low.graph.add("pad", low.value(name), pads=pairs, mode=mode, value=value)


@_rule("Resize", "Upsample")
def _resize(low: Lowering, step: Step) -> Value | None:
    """Images of which each pixel is repeated, in the order of memory that they have."""
    form = low.form(step.inputs[0])
    given = [low.constant(step, i) for i in range(1, len(step.inputs))]
    shape, factors = operators.resized(step, form.shape, *given)
    if form.ndim != 4 or shape[:2] != form.shape[:2]:
        return None
    if step.get("mode", "nearest") != "nearest":
        return _interpolate(low, step, shape, factors)
    repeats = []
    for n, m, factor in zip(form.shape[2:], shape[2:], factors[2:], strict=True):
        places = operators._taps(step, n, operators._places(step, n, m, factor))[0][0]
        if not n or m % n or not np.array_equal(np.clip(places, 0, n - 1), np.arange(m) // (m // n)):
            return None
        repeats.append(m // n)
    r, s = repeats

    def function(x: Array) -> Array:
        n, c, h, w = x.shape
        y = np.empty((n, h, r, w, s, c), x.dtype)
        y[...] = x.transpose(0, 2, 3, 1)[:, :, None, :, None]
        return y.reshape(n, h * r, w * s, c).transpose(0, 3, 1, 2)

    return low.graph.add("call", low.value(step.inputs[0]), function=function, what=step.op)


# Above, products with matrices of mostly zeros cost more than sums of what is taken.
_MOST_INTERPOLATED = 48


def _interpolate(low: Lowering, step: Step, shape: Sequence[int], factors: Sequence[float]) -> Value | None:
    """Images that lie channels-last, interpolated by two products: of all rows, and of the pixels in each."""
    form = low.form(step.inputs[0])
    n, c, h, w = form.shape
    if form.dtype not in _FLOATS or not 0 < max(h, w) <= _MOST_INTERPOLATED or 0 in (n, c, *shape):
        return None
    matrices = []
    for size, m, factor in zip((h, w), shape[2:], factors[2:], strict=True):
        indices, weights = operators._taps(step, size, operators._places(step, size, m, factor))
        indices = np.clip(indices, 0, size - 1).astype(np.int64)
        matrix = np.zeros((m, size))
        for taps, counts in zip(indices, weights, strict=True):
            np.add.at(matrix, (np.arange(m), taps), counts)
        matrices.append(matrix.astype(form.dtype)[:, :, None])
    a, b = shape[2:]

    def product(x: Value, weight: Array) -> Value:
        return low.graph.add("conv", x, rank=1, transposed=False, weight=weight, bias=None, options={})

    rows = low.graph.add("view", low.value(step.inputs[0]), function=lambda x: _rows(x, h), what="rows")
    pixels = low.graph.add("view", product(rows, matrices[0]), function=lambda x: _pixels(x, w), what="pixels")
    y = product(pixels, matrices[1])
    return low.graph.add("view", y, function=lambda x: x.reshape(-1, a, b, c).transpose(0, 3, 1, 2), what=step.op)


def _rows(x: Array, h: int) -> Array:
    """An image (N, C, H, W) as (N, H, W * C)."""
    return x.transpose(0, 2, 3, 1).reshape(x.shape[0], h, -1)


def _pixels(x: Array, w: int) -> Array:
    """Rows (N, H, W * C) as (N * H, W, C)."""
    return x.reshape(x.shape[0] * x.shape[1], w, -1)


@_rule("LayerNormalization", "InstanceNormalization")
def _norm(low: Lowering, step: Step) -> Value | None:
    """What fastconv's functions write where it is to be."""
    name, scale, shift = step.inputs[0], low.constant(step, 1), low.constant(step, 2)
    form = low.form(name)
    if scale is None or (low.given(step, 2) and shift is None) or not low.floats(*(v for v in step.inputs if v)):
        return None
    eps = step.get("epsilon", 1e-5)
    if step.op == "InstanceNormalization":
        if not 3 <= form.ndim <= 5:
            return None

        def function(x: Array, out: Array | None = None) -> Array:
            return functional.instance_norm(x, weight=scale, bias=shift, eps=eps, out=out)
    else:
        sizes = form.shape[operators.axis_of(step.get("axis", -1), form.ndim) :]
        if scale.shape != sizes or (shift is not None and shift.shape != sizes) or form.ndim > 5:
            return None

        def function(x: Array, out: Array | None = None) -> Array:
            return functional.layer_norm(x, sizes, scale, shift, eps=eps, out=out)

    return low.graph.add("call", low.value(name), function=function, what=step.op, writes=True)


@_rule("LRN")
def _lrn(low: Lowering, step: Step) -> Value | None:
    size, alpha, beta, k = operators.response(step)
    form = low.form(step.inputs[0])
    if size % 2 == 0 or form.dtype not in _FLOATS or not 3 <= form.ndim <= 5:
        return None

    def function(x: Array, out: Array | None = None) -> Array:
        return functional.local_response_norm(x, size, alpha, beta, k, out=out)

    return low.graph.add("call", low.value(step.inputs[0]), function=function, what=step.op, writes=True)


@_rule("Softmax", "LogSoftmax")
def _softmax(low: Lowering, step: Step) -> Value | None:
    form = low.form(step.inputs[0])
    if form.dtype not in _FLOATS or not 1 <= form.ndim <= 5 or (step.version < 13 and form.ndim != 2):
        return None
    axis = operators.axis_of(step.get("axis", 1 if step.version < 13 else -1), form.ndim)
    if step.version < 13 and axis != 1:
        return None
    softmax = functional.softmax if step.op == "Softmax" else functional.log_softmax

    def function(x: Array, out: Array | None = None) -> Array:
        return softmax(x, axis, out=out)

    return low.graph.add("call", low.value(step.inputs[0]), function=function, what=step.op, writes=True)
