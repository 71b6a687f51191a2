"""Networks as graphs, for inference: fusion, memory order, plans, a plan of the buffers.

A `Graph` is a list of nodes in an order in which they can run. `nn.fuse` makes one of a module; other front ends lower
to the same nodes. `Network` fuses it, and for each shape of input that it meets prepares all layers and lays their
results out in one block of memory, in which a buffer serves again as soon as nobody reads it any more.

What is fused, in this order:

- padding into the convolution or the pool after it;
- a batch norm, and then an activation, into the epilogue of the convolution or dense layer before it;
- a sum, and an activation after it, into the epilogue of the later of its two sides;
- a norm with its activation, and a gate, into the prologue of the convolution after it;
- a depthwise and a pointwise layer into one pass; an expansion before them, and squeeze-excite between them, too;
- results that are joined are written where they are joined.

A value that is read twice is not fused away. Images lie channels-last in memory (their axes stay N, C, H, W), since
most kernels are faster there; what a user hands in or gets back has the order of their input.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import functional
from ._args import Array
from .plan import plan

Activation = Any  # as of an epilogue: None, a name, or a tuple of a name and parameters


class Unsupported(Exception):
    """What a front end meets that no node stands for."""


class _Unknown:
    """What a value has once there is an input: it can be passed on, and looked into, but not looked at."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getitem__(self, index: Any) -> _Unknown:
        return self

    def _refuse(self, *_: Any) -> Any:
        raise Unsupported(f"the {self._what} of an array")

    __bool__ = __iter__ = __len__ = __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse
    __hash__ = __index__ = __int__ = __float__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __truediv__ = __mod__ = _refuse


@dataclass(eq=False, slots=True)
class Value:
    """A result of a node, or the graph's input."""

    graph: Graph = field(repr=False)
    name: str

    def __add__(self, other: object) -> Value:
        return self.graph.add("add", self, self.graph.value(other, "+"))

    __radd__ = __add__

    def __mul__(self, other: object) -> Value:
        return self.graph.add("multiply", self, self.graph.value(other, "*"))

    __rmul__ = __mul__

    def _changed(self, other: object) -> Value:
        raise Unsupported("a change in place")

    __iadd__ = __imul__ = __isub__ = __itruediv__ = _changed

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Value:
        if function is np.concatenate and set(kwargs) <= {"axis"}:
            axis = kwargs.get("axis", args[1] if len(args) > 1 else 0)
            return self.graph.add("concat", *(self.graph.value(v, "concatenate") for v in args[0]), axis=axis)
        raise Unsupported(f"numpy.{function.__name__}")

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> Value:
        ops = {np.add: "add", np.multiply: "multiply"}
        if method == "__call__" and function in ops and not kwargs:
            return self.graph.add(ops[function], *(self.graph.value(v, function.__name__) for v in args))
        raise Unsupported(f"numpy.{function.__name__}")

    def __getattr__(self, name: str) -> Any:
        # A forward may keep a shape for its backward, but not go by it.
        if name in ("shape", "ndim", "dtype", "strides"):
            return _Unknown(name)
        raise Unsupported(f"the attribute {name} of an array")


@dataclass(eq=False, slots=True)
class Node:
    """An operation. `attributes` holds arrays and options, the entries of inputs are named by `roles`."""

    op: str
    inputs: list[Value]
    output: Value
    attributes: dict[str, Any]
    roles: list[str]

    def input(self, role: str) -> Value | None:
        """The input of that role, or None."""
        return self.inputs[self.roles.index(role)] if role in self.roles else None

    def set_input(self, role: str, value: Value) -> None:
        """Give or change the input of a role."""
        if role in self.roles:
            self.inputs[self.roles.index(role)] = value
        else:
            self.inputs.append(value)
            self.roles.append(role)

    def get(self, name: str) -> Any:
        """An attribute, or None."""
        return self.attributes.get(name)


class Graph:
    """Nodes in an order in which they can run, from `inputs` to `outputs`; one of each unless a front end has more.

    The nodes, by op, with their attributes; x is (N, C, ...):

    - conv: rank, transposed, weight, bias, options (stride, padding, dilation, groups, ...); after fusion also scale,
      shift, activation and the inputs residual and input_gate, input_scale, input_shift, input_activation
    - linear: weight, bias, scale, shift, activation
    - affine: scale, shift (of the channels)
    - activation: activation
    - add, multiply (of what NumPy broadcasts); add: activation
    - pool: function (a name in functional), arguments, options
    - concat: axis; flatten: begin; reshape: shape
    - view: function (of an array, to one that shares its memory where it can), what (for people)
    - pad: pads (before and after, of each axis), mode (of numpy.pad), value
    - constant: value, an array; it has no input
    - call: function (of arrays; with `writes` it takes out, too), what (for people)
    - after fusion: separable and inverted, whose attributes are the arguments of their functions
    """

    def __init__(self, inputs: int = 1) -> None:
        self.nodes: list[Node] = []
        self.inputs = [Value(self, f"x{i}" if i else "x") for i in range(inputs)]
        self.outputs = self.inputs[:1]
        self._count = 0

    @property
    def input(self) -> Value:
        """The first input."""
        return self.inputs[0]

    @property
    def output(self) -> Value:
        """The first output; set, the only one."""
        return self.outputs[0]

    @output.setter
    def output(self, value: Value) -> None:
        self.outputs = [value]

    def value(self, v: object, what: str) -> Value:
        """V, if it is a value of this graph."""
        if isinstance(v, Value) and v.graph is self:
            return v
        raise Unsupported(f"{what} with {type(v).__name__}")

    def add(self, op: str, *inputs: Value, roles: Sequence[str] | None = None, **attributes: Any) -> Value:
        """Append a node and return its result."""
        self._count += 1
        output = Value(self, f"v{self._count}")
        names = list(roles) if roles is not None else [f"x{i}" if i else "x" for i in range(len(inputs))]
        self.nodes.append(Node(op, list(inputs), output, attributes, names))
        return output

    # -- fusion

    def _uses(self) -> dict[Value, int]:
        uses: dict[Value, int] = {}
        for v in self.outputs:
            uses[v] = uses.get(v, 0) + 1
        for node in self.nodes:
            for v in node.inputs:
                uses[v] = uses.get(v, 0) + 1
        return uses

    def _makers(self) -> dict[Value, Node]:
        return {node.output: node for node in self.nodes}

    def _drop(self, node: Node, by: Value) -> None:
        """Take a node out whose result is that of another one."""
        self.nodes.remove(node)
        for other in self.nodes:
            other.inputs = [by if v is node.output else v for v in other.inputs]
        self.outputs = [by if v is node.output else v for v in self.outputs]

    def prune(self) -> None:
        """Drop the nodes whose results do not reach an output."""
        wanted = set(self.outputs)
        for node in reversed(self.nodes):
            if node.output in wanted:
                wanted.update(node.inputs)
        self.nodes = [node for node in self.nodes if node.output in wanted]

    def fuse(self) -> None:
        """Fuse what can be: see the module's text."""
        self.prune()
        rules = (_fuse_padding, _fuse_epilogue, _fuse_sum, _fuse_prologue, _fuse_layers)
        for rule in rules:
            changed = True
            while changed:
                uses, makers = self._uses(), self._makers()
                changed = any(rule(self, node, uses, makers) for node in list(self.nodes))


def _single(v: Value | None, uses: dict[Value, int], makers: dict[Value, Node], *ops: str) -> Node | None:
    """The node that makes v, if it is one of these and nobody else reads v."""
    if v is None or uses.get(v) != 1:
        return None
    node = makers.get(v)
    return node if node is not None and node.op in ops else None


def _fuse_padding(graph: Graph, node: Node, uses: dict[Value, int], makers: dict[Value, Node]) -> bool:
    """Padding into the convolution or the pool that reads it."""
    if node.op == "pool":
        return _fuse_pool_padding(graph, node, uses, makers)
    pad = _single(node.inputs[0], uses, makers, "pad") if node.op == "conv" and not node.get("transposed") else None
    if pad is None:
        return False
    rank, options = node.get("rank"), node.get("options")
    pads = [tuple(int(n) for n in pair) for pair in pad.get("pads")]
    mode = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}.get(pad.get("mode"))
    if mode is None or any(pair != (0, 0) for pair in pads[:-rank]) or min(min(pair) for pair in pads) < 0:
        return False
    if mode == "zeros" and (pad.get("value") or 0) != 0:
        return False
    own = options.get("padding", 0)
    own = 0 if own == "valid" else own
    if isinstance(own, str) or (mode != "zeros" and own not in (0, (0,) * rank)):
        return False
    if options.get("padding_mode", "zeros") != "zeros":
        return False
    sides = (own,) * rank if isinstance(own, int) else own
    pairs = [(p, p) if isinstance(p, int) else p for p in sides]
    whole = tuple((a + c, b + d) for (a, b), (c, d) in zip(pairs, pads[-rank:], strict=True))
    node.attributes["options"] = {**options, "padding": whole, "padding_mode": mode}
    graph._drop(pad, pad.inputs[0])
    return True


def _fuse_pool_padding(graph: Graph, node: Node, uses: dict[Value, int], makers: dict[Value, Node]) -> bool:
    """Padding into a pool: with what is below everything, or with zeros that a mean counts."""
    pad, kind = _single(node.inputs[0], uses, makers, "pad"), node.get("function")[:4]
    if pad is None or kind not in ("max_", "avg_") or pad.get("mode") != "constant" or not node.get("arguments"):
        return False
    options, kernel = node.get("options"), node.get("arguments")[0]
    value = pad.get("value") or 0
    pairs = [tuple(int(n) for n in pair) for pair in pad.get("pads")]
    if not isinstance(kernel, tuple) or options.get("ceil_mode") or any(pair != (0, 0) for pair in pairs[:2]):
        return False
    own = options.get("padding", 0)
    rank = len(kernel)
    if own not in (0, (0,) * rank, ((0, 0),) * rank) or value != (-math.inf if kind == "max_" else 0):
        return False
    # No window lies in the padding alone, nor is more of one there than a pool takes.
    if len(pairs) != rank + 2 or any(
        not 0 <= n <= r // 2 for pair, r in zip(pairs[2:], kernel, strict=True) for n in pair
    ):
        return False
    counted = {"count_include_pad": True} if kind == "avg_" else {}
    node.attributes["options"] = {**options, "padding": tuple(pairs[2:]), **counted}
    graph._drop(pad, pad.inputs[0])
    return True


def _fuse_epilogue(graph: Graph, node: Node, uses: dict[Value, int], makers: dict[Value, Node]) -> bool:
    """A norm or an activation into what makes its input."""
    if node.op not in ("affine", "activation"):
        return False
    before = _single(node.inputs[0], uses, makers, "conv", "linear", "add", "affine")
    if before is None or before.get("activation") is not None:
        return False
    if node.op == "activation":
        if before.op == "affine":
            return False
        before.attributes["activation"] = node.get("activation")
    else:
        scale, shift = node.get("scale"), node.get("shift")
        if before.op == "add" or (before.op == "linear" and before.get("scale") is not None):
            return False
        if before.get("scale") is not None:
            # In float64, so that either is one rounding.
            inner, dtype = scale.astype(np.float64), scale.dtype
            shift = (inner * before.get("shift") + shift).astype(dtype)
            scale = (inner * before.get("scale")).astype(dtype)
        before.attributes |= {"scale": scale, "shift": shift}
    graph._drop(node, before.output)
    return True


def _fuse_sum(graph: Graph, node: Node, uses: dict[Value, int], makers: dict[Value, Node]) -> bool:
    """A sum into the later of the convolutions that make its sides."""
    if node.op != "add":
        return False
    sides = []
    for i, v in enumerate(node.inputs):
        before = _single(v, uses, makers, "conv")
        if before is not None and before.get("activation") is None and before.input("residual") is None:
            sides.append((graph.nodes.index(before), i, before))
    if not sides:
        return False
    _, i, last = max(sides, key=lambda side: side[:2])
    last.set_input("residual", node.inputs[1 - i])
    last.attributes |= {"activation": node.get("activation"), "alike": node.get("alike")}
    # Where the sum was, both sides are there.
    graph.nodes.remove(last)
    graph.nodes.insert(graph.nodes.index(node), last)
    graph._drop(node, last.output)
    return True


def _depthwise(node: Node) -> bool:
    if node.op != "conv":
        return False
    weight, groups = node.get("weight"), node.get("options").get("groups", 1)
    return bool(groups > 1 and weight.shape[1] == 1 and weight.shape[0] == groups)


def _pointwise(node: Node) -> bool:
    if node.op != "conv" or node.get("transposed") or node.get("weight").shape[2:] != (1, 1):
        return False
    o = node.get("options")
    padding = o.get("padding", 0)
    none = padding in (0, "valid") or (isinstance(padding, tuple) and all(p in (0, (0, 0)) for p in padding))
    return none and all(o.get(name, 1) in (1, (1, 1)) for name in ("stride", "dilation", "groups"))


def _fuse_prologue(graph: Graph, node: Node, uses: dict[Value, int], makers: dict[Value, Node]) -> bool:
    """A norm with its activation, or a gate, into the convolution that reads it; depthwise layers take none."""
    if node.op != "conv" or _depthwise(node) or any(name.startswith("input_") for name in node.attributes):
        return False
    if node.input("input_gate") is not None:
        return False
    before = _single(node.inputs[0], uses, makers, "activation", "affine", "gate")
    if before is None:
        return False
    if before.op == "gate":
        node.set_input("input_gate", before.inputs[1])
        graph._drop(before, before.inputs[0])
        return True
    if not _pointwise(node):
        # A filter of several taps would compute them for each.
        return False
    activation = None
    if before.op == "activation":
        norm = _single(before.inputs[0], uses, makers, "affine")
        if norm is None:
            return False
        activation, before_norm = before.get("activation"), norm
        graph._drop(before, norm.output)
    else:
        before_norm = before
    node.attributes |= {
        "input_scale": before_norm.get("scale"),
        "input_shift": before_norm.get("shift"),
        "input_activation": activation,
    }
    graph._drop(before_norm, before_norm.inputs[0])
    return True


def _plain_input(node: Node) -> bool:
    return node.input("input_gate") is None and not any(name.startswith("input_") for name in node.attributes)


def _half(node: Node, prefix: str) -> dict[str, Any]:
    """Bias, scale, shift and activation under the names of the layer of a fused block."""
    return {f"{prefix}{name}": node.get(name) for name in ("bias", "scale", "shift", "activation")}


def _squeeze(
    gate: Value, u: Value, uses: dict[Value, int], makers: dict[Value, Node]
) -> tuple[list[Node], dict[str, Any]] | None:
    """The nodes of a squeeze-excite of u, and its arguments."""
    widen = _single(gate, uses, makers, "conv")
    reduce = _single(widen.inputs[0], uses, makers, "conv") if widen else None
    pool = _single(reduce.inputs[0], uses, makers, "pool") if reduce else None
    if widen is None or reduce is None or pool is None or pool.inputs[0] is not u:
        return None
    if pool.get("function") != "global_avg_pool2d" or not (_pointwise(widen) and _pointwise(reduce)):
        return None
    if any(n.get("scale") is not None or len(n.inputs) > 1 or not _plain_input(n) for n in (widen, reduce)):
        return None
    return [pool, reduce, widen], {
        "se_reduce_weight": reduce.get("weight"),
        "se_reduce_bias": reduce.get("bias"),
        "se_expand_weight": widen.get("weight"),
        "se_expand_bias": widen.get("bias"),
        "se_activation": reduce.get("activation"),
        "se_gate": widen.get("activation"),
    }


def _fuse_layers(graph: Graph, node: Node, uses: dict[Value, int], makers: dict[Value, Node]) -> bool:
    """A pointwise layer with the depthwise one before it, the expansion before that and squeeze-excite between."""
    if node.op != "conv" or not _pointwise(node) or node.get("input_scale") is not None:
        return False
    u, gate = node.inputs[0], node.input("input_gate")
    squeezed = makers.get(u) if uses.get(u) == 2 else None
    depthwise = _single(u, uses, makers, "conv") if gate is None else squeezed
    if depthwise is None or not _depthwise(depthwise) or depthwise.get("rank") != 2 or depthwise.get("transposed"):
        return False
    if depthwise.input("residual") is not None or not _plain_input(depthwise):
        return False
    squeeze = ([], {}) if gate is None else _squeeze(gate, u, uses, makers)
    if squeeze is None:
        return False
    between, arguments = squeeze
    expand = _single(depthwise.inputs[0], uses, makers, "conv")
    if expand is not None and not (_pointwise(expand) and expand.input("residual") is None and _plain_input(expand)):
        expand = None
    options = {k: v for k, v in depthwise.get("options").items() if k != "groups"}
    residual, alike = node.input("residual"), node.get("alike")
    x = depthwise.inputs[0] if expand is None else expand.inputs[0]
    own = {name: node.get(name) for name in ("bias", "scale", "shift", "activation")}
    if expand is None and gate is None:
        node.op = "separable"
        weights = {"depthwise_weight": depthwise.get("weight"), "pointwise_weight": node.get("weight")}
        node.attributes = weights | _half(depthwise, "depthwise_") | own | options
    else:
        node.op = "inverted"
        weights = {
            "expand_weight": None if expand is None else expand.get("weight"),
            "depthwise_weight": depthwise.get("weight"),
            "project_weight": node.get("weight"),
        }
        first = {} if expand is None else _half(expand, "expand_")
        node.attributes = weights | first | _half(depthwise, "depthwise_") | own | options | arguments
    node.inputs, node.roles = [x], ["x"]
    if residual is not None:
        node.set_input("residual", residual)
        node.attributes["alike"] = alike
    gone = [depthwise, *between, *([expand] if expand is not None else [])]
    graph.nodes = [n for n in graph.nodes if n not in gone]
    return True


# ------------------------------------------------------------------------------------------------------ preparation

# What runs a node: f(out, *inputs) -> the result, in out where that is given.
Runner = Callable[..., Array]


def _prepare_conv(node: Node, x: Array, *more: Array) -> Runner:
    a = node.attributes
    op = f"conv_transpose{a['rank']}d" if a.get("transposed") else f"conv{a['rank']}d"
    names = ("scale", "shift", "activation", "input_scale", "input_shift", "input_activation")
    given = {name: a[name] for name in names if a.get(name) is not None}
    gated = node.input("input_gate") is not None
    run = plan(op, x, a["weight"], a.get("bias"), **a["options"], **given, **({"input_gate": True} if gated else {}))
    places = [node.roles.index(role) if role in node.roles else None for role in ("residual", "input_gate")]
    if places == [None, None]:
        return lambda out, x: run(x, out=out)
    spread = None if places[0] is None else _spread(node, run, (x, *more)[places[0]])
    if places[0] is not None and spread is None:
        return _prepare_apart(node, x, *more)

    def call(out: Array | None, *inputs: Array) -> Array:
        residual, gate = (None if i is None else inputs[i] for i in places)
        if spread is not None:
            residual = spread(residual)
        # A gate is of the channels, with or without N.
        return run(inputs[0], residual, None if gate is None else gate.reshape(gate.shape[: -a["rank"]]), out)

    return call


def _spread(node: Node, run: Any, addend: Array) -> Callable[[Any], Array] | None:
    """What makes the residual of a layer from the other side of its sum; None where the sum is larger than its result.

    The layers read views with strides of 0.
    """
    shape = run.output_shape
    _check_alike(node, shape, addend.shape)
    if addend.shape == shape:
        return lambda residual: residual
    if np.broadcast_shapes(shape, addend.shape) != shape:
        return None
    return lambda residual: np.broadcast_to(residual, shape)


def _prepare_apart(node: Node, x: Array, *more: Array) -> Runner:
    """A layer whose sum is larger than its result: it, the sum and the activation one after the other."""
    apart = Node(node.op, list(node.inputs), node.output, {**node.attributes, "activation": None}, list(node.roles))
    index = node.roles.index("residual")
    del apart.inputs[index], apart.roles[index]
    operands = (x, *more)
    layer = _PREPARE[node.op](apart, *operands[:index], *operands[index + 1 :])
    activate = _activation(node.get("activation"))

    def call(out: Array | None, *inputs: Array) -> Array:
        y = np.add(layer(None, *inputs[:index], *inputs[index + 1 :]), inputs[index], out=out)
        return activate(y, y)

    return call


def _check_alike(node: Node, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    if node.get("alike") and x != y:
        raise ValueError(f"the sides of a sum (shapes {x} and {y}) must have one shape")


def _activation(act: Activation) -> Callable[..., Array]:
    """What computes the activation of x, in an array that may be x itself."""
    if act is None:
        return lambda x, out: x
    name, parameters = (act, ()) if isinstance(act, str) else (act[0], act[1:])
    if name == "gelu_tanh":
        name, parameters = "gelu", ("tanh",)
    function = getattr(functional, name)
    return lambda x, out: function(x, *parameters, out=out)


def _prepare_linear(node: Node, x: Array) -> Runner:
    a = node.attributes
    if a.get("scale") is not None and x.ndim != 2:
        # A norm is over axis 1, an epilogue over the last one.
        plain = plan("linear", x, a["weight"], a.get("bias"))
        normalise = _affine(a["scale"], a["shift"], a.get("activation"))
        return lambda out, x: normalise(out, plain(x))
    given = {name: a[name] for name in ("scale", "shift", "activation") if a.get(name) is not None}
    run = plan("linear", x, a["weight"], a.get("bias"), **given)
    return lambda out, x: run(x, out=out)


def _prepare_layers(node: Node, x: Array, residual: Array | None = None) -> Runner:
    a = {name: value for name, value in node.attributes.items() if name != "alike"}
    if node.op == "separable":
        weights = [a.pop("depthwise_weight"), a.pop("pointwise_weight"), a.pop("bias")]
        run = plan("separable_conv2d", x, *weights, **a)
    else:
        weights = [a.pop("expand_weight"), a.pop("depthwise_weight"), a.pop("project_weight"), a.pop("bias")]
        run = plan("inverted_residual", x, *weights, **a)
    if residual is None:
        return lambda out, x: run(x, out=out)
    spread = _spread(node, run, residual)
    if spread is None:
        return _prepare_apart(node, x, residual)
    return lambda out, x, residual: run(x, spread(residual), out=out)


def _affine(scale: Array, shift: Array, act: Activation) -> Runner:
    zero, one = np.zeros_like(scale), np.ones_like(scale)
    return lambda out, x: functional.batch_norm(x, zero, one, scale, shift, eps=0.0, activation=act, out=out)


def _prepare_affine(node: Node, x: Array) -> Runner:
    return _affine(node.get("scale"), node.get("shift"), node.get("activation"))


def _prepare_activation(node: Node, x: Array) -> Runner:
    function = _activation(node.get("activation"))
    return lambda out, x: function(x, out)


def _prepare_add(node: Node, x: Array, y: Array) -> Runner:
    act = node.get("activation")
    _check_alike(node, x.shape, y.shape)
    if x.shape == y.shape and x.ndim:
        return lambda out, x, y: functional.add(x, y, activation=act, out=out)
    activate = _activation(act)

    def call(out: Array | None, x: Array, y: Array) -> Array:
        z = np.asarray(np.add(x, y, out=out))
        return activate(z, z)

    return call


def _prepare_multiply(node: Node, x: Array, y: Array) -> Runner:
    return lambda out, x, y: np.asarray(np.multiply(x, y, out=out))


def _prepare_pool(node: Node, x: Array) -> Runner:
    function, arguments, options = getattr(functional, node.get("function")), node.get("arguments"), node.get("options")
    return lambda out, x: function(x, *arguments, **options, out=out)


def _prepare_concat(node: Node, *inputs: Array) -> Runner:
    axis = node.get("axis")

    def call(out: Array | None, *inputs: Array) -> Array:
        return np.concatenate(inputs, axis, out=out)

    return call


def _prepare_reshape(node: Node, x: Array) -> Runner:
    if node.op == "flatten":
        begin = node.get("begin")
        shape = (*x.shape[:begin], math.prod(x.shape[begin:]))
    else:
        shape = x.reshape(node.get("shape")).shape

    def call(out: Array | None, x: Array) -> Array:
        if out is None:
            return x.reshape(shape)
        # With x's axes, so that NumPy copies once.
        out.reshape(x.shape)[...] = x
        return out

    return call


def _prepare_view(node: Node, x: Array) -> Runner:
    function = node.get("function")

    def call(out: Array | None, x: Array) -> Array:
        y: Array = function(x)
        if out is None:
            return y
        out[...] = y
        return out

    return call


def _prepare_pad(node: Node, x: Array) -> Runner:
    pads, mode = node.get("pads"), node.get("mode")
    options = {"constant_values": node.get("value") or 0} if mode == "constant" else {}

    def call(out: Array | None, x: Array) -> Array:
        y = np.pad(x, pads, mode, **options)
        if out is None:
            return y
        out[...] = y
        return out

    return call


def _prepare_call(node: Node, *inputs: Array) -> Runner:
    function, what = node.get("function"), node.get("what")
    if node.get("writes"):
        return lambda out, *inputs: function(*inputs, out=out)

    def call(out: Array | None, *inputs: Array) -> Array:
        y = function(*inputs)
        if not isinstance(y, np.ndarray):
            raise TypeError(f"{what} (of a result of type {type(y).__name__}) must give one array to be fused")
        if out is None:
            # Views get memory of their own, without gaps.
            return y if y.base is None and not any(y is v for v in inputs) else y.copy(order="K")
        out[...] = y
        return out

    return call


_PREPARE: dict[str, Callable[..., Runner]] = {
    "conv": _prepare_conv,
    "linear": _prepare_linear,
    "separable": _prepare_layers,
    "inverted": _prepare_layers,
    "affine": _prepare_affine,
    "activation": _prepare_activation,
    "add": _prepare_add,
    "multiply": _prepare_multiply,
    "gate": _prepare_multiply,
    "pool": _prepare_pool,
    "concat": _prepare_concat,
    "flatten": _prepare_reshape,
    "reshape": _prepare_reshape,
    "view": _prepare_view,
    "pad": _prepare_pad,
    "call": _prepare_call,
}


def _channels_last(x: Array) -> Array:
    """A copy of an image (N, C, ...) with its channels innermost."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def _same_place(x: Array, y: Array) -> bool:
    return bool(x.__array_interface__["data"][0] == y.__array_interface__["data"][0])


def _steps(x: Array) -> tuple[int, ...]:
    """The strides of the axes along which there is something to step over."""
    return tuple(s for s, n in zip(x.strides, x.shape, strict=True) if n > 1)


@dataclass(slots=True)
class _Slot:
    """Where a value lies: so many bytes from the beginning of the block."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    bytes: int
    offset: int = 0


# Nodes that write their result wherever it is to be, in place where it is joined with others.
_ANYWHERE = ("conv", "pool", "add", "activation", "affine", "concat")
# Nodes whose result, where no place is given for it, is an array of its own.
_FRESH = ("conv", "linear", "separable", "inverted", "pool")
# Nodes whose result may be another look at their input.
_VIEWS = ("flatten", "reshape", "view")

_Cells = list[Any]  # the arrays of one run that lie outside the block
_Call = Callable[[_Cells], None]


class _Prepared:
    """A graph for one shape of each input: what runs its nodes, and where their results lie.

    A value lies in the block, or in a cell of the run: the inputs, the outputs, and what is a view of one of them.
    """

    def __init__(self, graph: Graph, xs: Sequence[Array], last: bool) -> None:
        self.graph = graph
        self.last = last and any(x.ndim >= 4 for x in xs)
        readers = {v: {node.op for node in graph.nodes if v in node.inputs} for v in graph.inputs}
        arrays: dict[Value, Array] = {}
        for v, x in zip(graph.inputs, xs, strict=True):
            image = x.ndim >= 4 and not readers[v] <= {"view", "reshape"}
            arrays[v] = _channels_last(x) if last and image else np.ascontiguousarray(x)
        self._constants: dict[Value, Array] = {}
        self.runners: list[tuple[Node, Runner]] = []
        for node in graph.nodes:
            if node.op == "constant":
                self._constants[node.output] = arrays[node.output] = node.get("value")
                continue
            inputs = [arrays[v] for v in node.inputs]
            runner = _PREPARE[node.op](node, *inputs)
            arrays[node.output] = runner(None, *inputs)
            self.runners.append((node, runner))
        # Plans of convolutions bring an input into their order themselves.
        self._fed = {v: arrays[v] for v in graph.inputs if readers[v] - {"conv"}}
        self._views = {
            node.output: node.inputs[0]
            for node, _ in self.runners
            if node.op in _VIEWS and np.may_share_memory(arrays[node.inputs[0]], arrays[node.output])
        }
        self._cells = self._find_cells()
        self._shapes = {v: a.shape for v, a in arrays.items()}
        held = {v: a for v, a in arrays.items() if v not in self._cells and v not in self._constants}
        held |= self._fed
        self.slots = {v: _Slot(a.shape, a.strides, a.dtype, a.size * a.itemsize) for v, a in held.items()}
        # Values within others: those that are joined, in what they are joined to.
        self._inside: dict[Value, tuple[Value, int]] = {}
        self._find_joined(arrays)
        self.bytes = self._place()
        # Calls that no run has now. (Taking one from a list, or giving it back, is one step of the interpreter.)
        self._free: list[list[_Call]] = []

    # -- where values lie

    def _find_cells(self) -> dict[Value, int]:
        """The places of what is not in the block: inputs first."""
        cells: dict[Value, None] = dict.fromkeys(self.graph.inputs)
        for v in self.graph.outputs:
            while v in self._views:
                v = self._views[v]
            if v not in self._constants:
                cells[v] = None
        for node, _ in self.runners:
            if node.output in self._views and self._views[node.output] in cells:
                cells[node.output] = None
        return {v: i for i, v in enumerate(cells)}

    def _find_joined(self, arrays: dict[Value, Array]) -> None:
        makers = self.graph._makers()
        for node in reversed(self.graph.nodes):
            if node.op != "concat" or node.output in self._cells:
                continue
            axis, begin = node.get("axis"), 0
            strides = self.slots[node.output].strides
            for v in node.inputs:
                shift, begin = begin * strides[axis], begin + arrays[v].shape[axis]
                maker = makers.get(v)
                if maker is None or maker.op not in _ANYWHERE or v in self._inside or node.inputs.count(v) > 1:
                    continue
                if v in self._cells:
                    continue
                whole, outer = self._inside.get(node.output, (node.output, 0))
                self._inside[v] = whole, outer + shift
                self.slots[v].strides = strides
        # Between joined pixels there are gaps, over which not every view reaches.
        for node in self.graph.nodes:
            if node.output in self._views and node.output not in self._cells:
                v = self._views[node.output]
                while v in self._views:
                    v = self._views[v]
                if v in self._inside:
                    del self._views[node.output]
                    # A copy then, which has no gaps of its own.
                    self.slots[node.output].strides = np.empty_like(arrays[node.output]).strides

    def _whole(self, v: Value) -> Value:
        """The value in whose memory v lies."""
        while v in self._views or v in self._inside:
            v = self._views[v] if v in self._views else self._inside[v][0]
        return v

    def _place(self) -> int:
        """Give each value its place, first fit in the order of time; the size of the block."""
        nodes = self.graph.nodes
        begins = {node.output: i for i, node in enumerate(nodes) if node.output in self.slots}
        begins |= dict.fromkeys(self._fed, -1)
        ends = dict(begins)
        for i, node in enumerate(nodes):
            for v in node.inputs:
                # A view of a fed input lies in a cell, and reads the input as long as it is read.
                if v in ends or self._whole(v) in ends:
                    ends[v] = i
        # So does one that is handed out, after the last node.
        ends |= {self._whole(v): len(nodes) for v in self.graph.outputs if self._whole(v) in ends}
        for v in list(ends):
            whole = self._whole(v)
            if whole is not v and whole in begins:
                begins[whole] = min(begins[whole], begins.get(v, begins[whole]))
                ends[whole] = max(ends[whole], ends[v])
        placed: list[tuple[int, int, int, int]] = []  # begin, end in time; begin, end in memory
        for v in sorted(begins, key=lambda v: begins[v]):
            if self._whole(v) is not v:
                continue
            slot, begin, end = self.slots[v], begins[v], ends[v]
            size = -(-slot.bytes // 64) * 64
            alive = sorted(p[2:] for p in placed if p[0] <= end and p[1] >= begin)
            for low, high in alive:
                if slot.offset + size <= low:
                    break
                slot.offset = max(slot.offset, high)
            placed.append((begin, end, slot.offset, slot.offset + size))
        for v, (whole, shift) in self._inside.items():
            self.slots[v].offset = self.slots[whole].offset + shift
        return max((p[3] for p in placed), default=0)

    # -- runs

    def _bind(self) -> list[_Call]:
        """The calls of one run, on a block of their own."""
        block = np.empty(self.bytes + 64, np.uint8)
        block = block[-block.ctypes.data % 64 :]
        views = dict(self._constants)
        for v, s in self.slots.items():
            if v not in self._views:
                views[v] = np.ndarray(s.shape, s.dtype, block, s.offset, s.strides)
        calls: list[_Call] = []

        def fed(i: int, entry: Array) -> _Call:
            steps = _steps(entry)

            def call(cells: _Cells) -> None:
                # What lies as it is to lie is read where it is.
                if _steps(cells[i]) != steps:
                    entry[...] = cells[i]
                    cells[i] = entry

            return call

        def bound(runner: Runner, out: Array | None, to: int | None, inputs: list[Array | int]) -> _Call:
            if to is not None:
                place = to

                def make(cells: _Cells) -> None:
                    cells[place] = runner(None, *(cells[v] if isinstance(v, int) else v for v in inputs))

                return make
            if not any(isinstance(v, int) for v in inputs):

                def call(cells: _Cells) -> None:
                    runner(out, *inputs)

                return call

            def read(cells: _Cells) -> None:
                runner(out, *(cells[v] if isinstance(v, int) else v for v in inputs))

            return read

        def joined(parts: list[tuple[Array, Array | int]]) -> _Call:
            def call(cells: _Cells) -> None:
                for to, part in parts:
                    to[...] = cells[part] if isinstance(part, int) else part

            return call

        calls += [fed(self._cells[v], views[v]) for v in self._fed]
        for node, runner in self.runners:
            v = node.output
            inputs = [self._cells[u] if u in self._cells else views[u] for u in node.inputs]
            if v in self._cells:
                calls.append(bound(runner, None, self._cells[v], inputs))
            elif v in self._views:
                views[v] = runner(None, *inputs)
            elif node.op == "concat":
                axis, begin, left = node.get("axis"), 0, []
                for u, part in zip(node.inputs, inputs, strict=True):
                    end = begin + self._shapes[u][axis]
                    to = np.moveaxis(np.moveaxis(views[v], axis, 0)[begin:end], 0, axis)
                    if isinstance(part, int) or not _same_place(to, part):
                        left.append((to, part))
                    begin = end
                if left:
                    calls.append(joined(left))
            else:
                calls.append(bound(runner, views[v], None, inputs))
        results = [self._cells[v] if v in self._cells else views[v] for v in self.graph.outputs]
        fresh = {node.output for node in self.graph.nodes if node.op in _FRESH}
        owned = [v in self._cells and v in fresh for v in self.graph.outputs]

        def handed(cells: _Cells) -> None:
            """The results come last; nothing in the block, nor an input, is among them."""
            inputs = cells[: len(self.graph.inputs)]
            for i, own in zip(results, owned, strict=True):
                y = cells[i] if isinstance(i, int) else i
                if not own and (not isinstance(i, int) or any(np.may_share_memory(y, x) for x in (block, *inputs))):
                    y = y.copy(order="K")
                cells.append(y)

        return [*calls, handed]

    def __call__(self, xs: Sequence[Array], contiguous: bool | None = None) -> list[Array]:
        try:
            calls = self._free.pop()
        except IndexError:
            calls = self._bind()
        cells: _Cells = [*xs, *[None] * (len(self._cells) - len(xs))]
        for call in calls:
            call(cells)
        self._free.append(calls)
        ys = cells[len(self._cells) :]
        if contiguous is None:
            contiguous = self.last and all(x.flags.c_contiguous for x in xs)
        return [np.ascontiguousarray(y) if y.ndim else y for y in ys] if contiguous else ys


class Network:
    """A fused graph that runs: calls with arrays of any batch and size, each prepared when it is first met."""

    def __init__(self, graph: Graph, *, channels_last: bool = True) -> None:
        graph.fuse()
        self.graph = graph
        self._last = channels_last
        self._prepared: dict[Any, _Prepared] = {}
        self._latest: tuple[Any, _Prepared] | None = None
        self._lock = threading.Lock()

    def prepare(self, *inputs: Array) -> _Prepared:
        """What runs inputs of these shapes and dtypes."""
        key = tuple([(x.shape, x.dtype) for x in inputs])
        last = self._latest
        if last is not None and last[0] == key:
            return last[1]
        with self._lock:
            found = self._prepared.pop(key, None)
            if found is None:
                found = _Prepared(self.graph, inputs, self._last)
                while len(self._prepared) >= 4:
                    del self._prepared[next(iter(self._prepared))]
            self._prepared[key] = found
            self._latest = key, found
        return found

    def __call__(self, *inputs: Array) -> Array:
        """The first output."""
        return self.run(*inputs)[0]

    def run(self, *inputs: Array, contiguous: bool | None = None) -> list[Array]:
        """All outputs; in C order if `contiguous`, in memory as the inputs are if that is None."""
        return self.prepare(*inputs)(inputs, contiguous)

    def describe(self) -> str:
        """A line for each step: its result, what it is, and what it reads."""
        lines = []
        for node in self.graph.nodes:
            parts = [name for name in ("scale", "input_scale") if node.get(name) is not None]
            named = (node.get(name) for name in ("function", "what", "activation"))
            parts += [name for name in named if isinstance(name, str)]
            inputs = zip(node.roles, node.inputs, strict=True)
            read = ", ".join(v.name if role == "x" else f"{role}={v.name}" for role, v in inputs)
            lines.append(f"{node.output.name:>6} = {node.op}({read})" + (f"  {', '.join(parts)}" if parts else ""))
        return "\n".join(lines)
