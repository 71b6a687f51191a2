"""Networks made ready for inference: `fuse` lowers a module to the package's graph, which fuses and runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _graph
from .._args import Array
from .._graph import Graph, Network, Unsupported, Value
from . import activation, container, conv, dropout, linear, norm, pool, reshape, squeeze
from .module import Module, recording, tracing

__all__ = ["FusedModule", "fuse"]

_Lower = Callable[..., Value]  # of the graph, the module and its inputs


def _activation(module: Module) -> _graph.Activation:
    """The module as an epilogue names it."""
    if isinstance(module, activation.LeakyReLU):
        return ("leaky_relu", module.negative_slope)
    if isinstance(module, activation.Clip):
        if module.min is None or module.max is None:
            raise Unsupported("a clip with one bound")
        return ("clip", module.min, module.max)
    if isinstance(module, activation.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return getattr(module, "_name")  # noqa: B009 - of a subclass of a private class


def _convolution(graph: Graph, m: Any, x: Value) -> Value:
    options = dict(m._options())
    return graph.add(
        "conv",
        x,
        rank=m._rank,
        transposed=m._transposed,
        weight=m.weight.share(),
        bias=None if m.bias is None else m.bias.share(),
        options=options,
    )


def _separable(graph: Graph, m: conv.SeparableConv2d, x: Value) -> Value:
    return _convolution(graph, m.pointwise, _convolution(graph, m.depthwise, x))


def _linear(graph: Graph, m: linear.Linear, x: Value) -> Value:
    return graph.add("linear", x, weight=m.weight.share(), bias=None if m.bias is None else m.bias.share())


def _batch_norm(graph: Graph, m: Any, x: Value) -> Value:
    if m.running_mean is None or m.running_var is None:
        raise Unsupported("a batch norm without running statistics")
    # In float64, so that a scale and a shift are each one rounding.
    scale = 1 / np.sqrt(m.running_var.astype(np.float64) + m.eps)
    if m.weight is not None:
        scale = scale * m.weight.data
    shift = -m.running_mean * scale
    if m.bias is not None:
        shift = shift + m.bias.data
    dtype = m.running_mean.dtype
    return graph.add("affine", x, scale=scale.astype(dtype), shift=shift.astype(dtype))


def _pool(graph: Graph, m: Any, x: Value) -> Value:
    name, arguments, options = f"{m._name}{m._rank}d", m._arguments(), dict(m._options())
    if isinstance(m, pool._Adaptive) and arguments[0] in (1, (1,) * m._rank):
        name, arguments, options = name.replace("adaptive", "global"), (), {"keepdims": True}
    return graph.add("pool", x, function=name, arguments=arguments, options=options)


def _flatten(graph: Graph, m: reshape.Flatten, x: Value) -> Value:
    if m.start_dim < 1 or m.end_dim != -1:
        return _opaque(graph, m, x)
    return graph.add("flatten", x, begin=m.start_dim)


def _squeeze_excite(graph: Graph, m: squeeze.SqueezeExcite, x: Value) -> Value:
    mean = graph.add("pool", x, function="global_avg_pool2d", arguments=(), options={"keepdims": True})
    gate = m.scale_activation(m.fc2(m.activation(m.fc1(mean))))
    return graph.add("gate", x, gate)


def _residual(graph: Graph, m: container.Residual, x: Value) -> Value:
    return _add(graph, m, m.body(x), x if m.shortcut is None else m.shortcut(x))


def _add(graph: Graph, m: container.Add | container.Residual, x: Value, y: Value) -> Value:
    z = graph.add("add", x, y, alike=True)
    if m.activation is not None:
        z = m.activation(z)
    return z


def _concat(graph: Graph, m: container.Concat, x: Value) -> Value:
    return graph.add("concat", *(branch(x) for branch in m.branches), axis=m.axis)


def _opaque(graph: Graph, m: Module, *inputs: Value) -> Value:
    """A module that is run as it is."""

    def run(*arrays: Array) -> Array:
        with recording(False):
            y: Array = m(*arrays)
            return y

    return graph.add("call", *inputs, function=run, what=type(m).__name__)


_LOWER: dict[type[Module], _Lower] = {
    activation.Identity: lambda graph, m, x: x,
    activation.Softmax: _opaque,
    activation.LogSoftmax: _opaque,
    activation._Elementwise: lambda graph, m, x: graph.add("activation", x, activation=_activation(m)),
    conv._Conv: _convolution,
    conv.SeparableConv2d: _separable,
    linear.Linear: _linear,
    norm._BatchNorm: _batch_norm,
    pool._Pool: _pool,
    dropout.Dropout: lambda graph, m, x: x,
    reshape.Flatten: _flatten,
    squeeze.SqueezeExcite: _squeeze_excite,
    container.Add: _add,
    container.Residual: _residual,
    container.Concat: _concat,
}


def _trace(graph: Graph, module: Module, *inputs: Any, **options: Any) -> Value:
    """The value of a module's call: by a rule for its class, by its forward, or as a call of it."""
    if options or not all(isinstance(v, Value) for v in inputs):
        raise Unsupported(f"a {type(module).__name__} called with more than values")
    # A forward of one's own is not what the class below it computes.
    forward = type(module).forward
    rule = next((_LOWER[c] for c in type(module).__mro__ if c in _LOWER and forward is c.forward), None)
    nodes = list(graph.nodes)
    try:
        if rule is not None:
            return rule(graph, module, *inputs)
        return graph.value(module.forward(*inputs), "the result")
    except (Unsupported, TypeError, ValueError, AttributeError, IndexError):
        # What is not made of modules, sums, products and joins.
        graph.nodes[:] = nodes
        return _opaque(graph, module, *inputs)


def lower(module: Module, rule: Callable[..., Value | None] | None = None) -> Graph:
    """The graph of a module's call in eval mode, not fused.

    Args:
        module: any.
        rule: rule(graph, module, *inputs), asked first for each module that is called: its value, or None for what
            `fuse` does.
    """
    graph = Graph()

    def call(m: Module, *inputs: Any, **options: Any) -> Value:
        value = None if rule is None or options else rule(graph, m, *inputs)
        return _trace(graph, m, *inputs, **options) if value is None else value

    with tracing(call):
        graph.output = call(module, graph.input)
    return graph


class FusedModule:
    """What `fuse` makes: `fused(x)` computes what the module computed in eval mode when it was fused.

    Each shape and dtype of x is prepared at its first call, and the last four are kept: plans with packed weights, and
    one block of memory that all results in between share. Several threads may call it at once.
    """

    def __init__(self, network: Network, text: str) -> None:
        self._network = network
        self._text = text

    def __call__(self, x: Array) -> Array:
        """Run x, with the axes that the module takes; the result is a new array.

        Raises:
            TypeError, ValueError: as the module does.
        """
        return self._network(self._checked(x))

    @staticmethod
    def _checked(x: object) -> Array:
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x (of type {type(x).__name__}) must be a numpy.ndarray")
        return x

    def memory(self, x: Array) -> int:
        """Bytes of the block in which the results of a call with x lie; calls at the same time have one each."""
        return self._network.prepare(self._checked(x)).bytes

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._network.graph.nodes)

    def __str__(self) -> str:
        return self._network.describe()

    def __repr__(self) -> str:
        return f"<{self._text}, fused: {len(self)} steps>"


def fuse(module: Module, *, channels_last: bool = True) -> FusedModule:
    """Make a module ready for inference: batch norms, activations and sums become part of the layers before them.

    The parameters are those of now: later changes do not reach what is returned, but for modules that run as they are.
    Modules of one's own are followed through
    their `forward`, as far as it is made of modules, `+`, `*` and `numpy.concatenate`; what is not runs as it is.

    Args:
        module: in eval mode.
        channels_last: lay images out channels-last between the layers, whatever the order of x; False: as x's axes.

    Raises:
        ValueError: the module is in training mode.
    """
    if not isinstance(module, Module):
        raise TypeError(f"module (of type {type(module).__name__}) must be a Module")
    training = [name or type(module).__name__ for name, m in module.named_modules() if m.training]
    if training:
        raise ValueError(f"module must be in eval mode (module.eval()), but {training[0]} is in training mode")
    return FusedModule(Network(lower(module), channels_last=channels_last), type(module).__name__)
