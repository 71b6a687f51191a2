"""PyTorch calls as nodes of the package's graph.

`trace` calls a forward with tensors that have a shape but no numbers, and notes what is done with them. So control flow
of one's own, shape checks and layers called as functions are followed, for these shapes; what would look at a number
cannot be. A parameter becomes part of the graph as it is now.

A tensor that is traced stands for a value of the graph seen through an order of its axes, since networks written for
channels-last tensors permute (N, C, H, W) to (N, H, W, C) and back around layers that act on the last axis.
"""

from __future__ import annotations

import gc
import importlib
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import numpy as np

from ..._args import Array
from ..._graph import Graph, Unsupported, Value

# Typed as Any: the package is checked with and without PyTorch at hand.
torch: Any = importlib.import_module("torch")
functional: Any = importlib.import_module("torch.nn.functional")

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
_state = threading.local()

Handler = Callable[..., Any]
_HANDLERS: dict[Any, Handler] = {}
# Of those, what costs nothing, and what multiplies by a weight.
_FREE: set[Any] = set()
_PRODUCTS = {functional.linear, *(getattr(torch, f"conv{rank}d") for rank in (1, 2, 3))}
# What may be asked of a traced tensor: it depends on shape and type alone.
_QUERIES: set[Any] = set()


def _register(handler: Handler, names: Sequence[str]) -> None:
    for name in names:
        for place in (torch, torch.Tensor, functional, torch._C._nn):
            if hasattr(place, name):
                _HANDLERS[getattr(place, name)] = handler


def _op(*names: str) -> Callable[[Handler], Handler]:
    """Register what lowers the functions and methods of these names: handler(trace, result, *args, **kwargs).

    `result` is what PyTorch computes of the shapes, without numbers.
    """

    def register(handler: Handler) -> Handler:
        _register(handler, names)
        return handler

    return register


def _query(*names: str) -> None:
    for name in names:
        found = getattr(torch.Tensor, name)
        _QUERIES.add(found if callable(found) else found.__get__)


class _Storage:
    """The memory that a traced tensor shares with its views."""

    __slots__ = ("given", "shared")

    def __init__(self, given: bool = False) -> None:
        self.given = given  # it is the caller's
        self.shared = False


class Traced(torch.Tensor):
    """A tensor without numbers (of the device meta) that stands for a value of a graph."""

    _value: Value
    _order: tuple[int, ...] | None
    _memory: _Storage

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        trace: Trace | None = getattr(_state, "trace", None)
        if trace is None:
            raise Unsupported("a traced tensor outside its trace")
        with torch._C.DisableTorchFunctionSubclass():
            return trace.call(function, args, kwargs or {})


def _flat(value: Any, found: list[Any]) -> Any:
    """The tensors in nested tuples, lists and dicts, appended to `found`; what is left, which can be compared.

    Raises Unsupported for what is no plain value.
    """
    if isinstance(value, torch.Tensor):
        found.append(value)
        return len(found) - 1, "tensor"
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return type(value), value
    if type(value) in (tuple, list):
        return type(value), tuple([_flat(v, found) for v in value])
    if type(value) is dict:
        return dict, tuple([(k, _flat(v, found)) for k, v in value.items()])
    raise Unsupported(f"an argument of type {type(value).__name__}")


def _filled(value: Any, tensors: Sequence[Any]) -> Any:
    """The value with other tensors."""
    if isinstance(value, torch.Tensor):
        raise AssertionError
    kind, content = value
    if content == "tensor" and isinstance(kind, int):
        return tensors[kind]
    if kind in (tuple, list):
        return kind(_filled(v, tensors) for v in content)
    if kind is dict:
        return {k: _filled(v, tensors) for k, v in content}
    return content


class Trace:
    """A graph in the making."""

    def __init__(self, dtype: Any, made: list[weakref.ref[Traced]]) -> None:
        self.graph = Graph(0)
        self.dtype = dtype
        self.constants: list[Any] = []  # tensors that the graph holds the numbers of
        self.nanoseconds = 0.0  # that PyTorch takes, by a rough count
        self._made = made
        self._metas: dict[int, tuple[Any, Any]] = {}

    # -- tensors and values

    def enter(self, tensor: Any) -> Traced:
        """A traced tensor for an input."""
        index = len(self.graph.inputs)
        self.graph.inputs.append(Value(self.graph, f"x{index}" if index else "x"))
        meta = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")
        return self.tensor(self.graph.inputs[-1], meta, memory=_Storage(given=True))

    def tensor(
        self, value: Value, meta: Any, order: tuple[int, ...] | None = None, memory: _Storage | None = None
    ) -> Traced:
        """A traced tensor whose axis i is the axis order[i] of the value."""
        if meta.dtype is not self.dtype:
            raise Unsupported(f"a result of {meta.dtype}")
        t: Traced = meta.as_subclass(torch.Tensor).as_subclass(Traced)
        t._value, t._memory = value, memory or _Storage()
        t._order = None if order is None or order == tuple(range(len(order))) else order
        self._made.append(weakref.ref(t))
        return t

    def view(self, x: Traced, value: Value, meta: Any, order: tuple[int, ...] | None = None) -> Traced:
        """A traced tensor that shares its memory with x, or is a copy where x lies otherwise than is asked for."""
        x._memory.shared = True
        memory = x._memory
        if meta.untyped_storage()._cdata != x.as_subclass(torch.Tensor).untyped_storage()._cdata:
            # How x lies in PyTorch may not be known: neither is changed in place.
            memory = _Storage()
            memory.shared = True
        return self.tensor(value, meta, order, memory)

    def changed(self, x: Traced, value: Value) -> Traced:
        """X after a change in place."""
        if x._memory.given:
            raise Unsupported("a change of an input in place")
        if x._memory.shared:
            raise Unsupported("a change in place of what has views")
        x._value = value
        return x

    def finish(self, x: Traced, value: Value, meta: Any, inplace: bool) -> Traced:
        """What an elementwise function of x gives."""
        return self.changed(x, value) if inplace else self.tensor(value, meta, x._order)

    def plain(self, x: Any) -> Value:
        """The value with the axes of the tensor."""
        if not isinstance(x, Traced):
            return self.graph.add("constant", roles=(), value=self.array(x))
        if x._order is None:
            return x._value
        order = x._order
        return self.graph.add("view", x._value, function=lambda a: a.transpose(order), what="permute")

    def number(self, n: float) -> Value:
        """A number as a value."""
        return self.graph.add("constant", roles=(), value=np.asarray(n, _DTYPES[self.dtype]))

    def array(self, tensor: Any) -> Array:
        """The numbers of a tensor that is not traced, in memory of their own."""
        if isinstance(tensor, Traced):
            raise Unsupported("a weight that depends on the input")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
            raise Unsupported(f"a constant of type {type(tensor).__name__} on {tensor.device}")
        if tensor.dtype is not self.dtype:
            raise Unsupported(f"a constant of {tensor.dtype}")
        self.constants.append(tensor)
        return np.array(tensor.detach().resolve_neg().numpy(), order="C")

    def vector(self, tensor: Any) -> Array | None:
        """As `array`; None stays None."""
        return None if tensor is None else self.array(tensor)

    # -- calls

    def _meta(self, value: Any) -> Any:
        if isinstance(value, Traced):
            return value.as_subclass(torch.Tensor)
        if isinstance(value, torch.Tensor):
            kept = self._metas.get(id(value))
            if kept is None:
                # The tensor is kept, so that its id stays its own.
                meta = torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype, device="meta")
                kept = self._metas[id(value)] = value, meta
            return kept[1]
        if type(value) in (tuple, list):
            return type(value)([self._meta(v) for v in value])
        if isinstance(value, torch.device):
            return torch.device("meta")
        return value

    def call(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function in _QUERIES:
            found = function(*(self._meta(a) for a in args), **kwargs)
            return torch.device("cpu") if isinstance(found, torch.device) else found
        handler = _HANDLERS.get(function)
        if handler is None:
            name = getattr(function, "__name__", str(function))
            if name == "__get__":
                name = getattr(function.__self__, "__name__", name)
            raise Unsupported(f"the function {name}")
        result = function(*(self._meta(a) for a in args), **{k: self._meta(v) for k, v in kwargs.items()})
        self._count(function, result, args)
        return handler(self, result, *args, **kwargs)

    def _count(self, function: Any, result: Any, args: Any) -> None:
        if not isinstance(result, torch.Tensor) or function in _FREE:
            return
        # A call, a pass over the larger of its sides, and 50 multiply-adds a nanosecond.
        first = args[0] if args and isinstance(args[0], Traced) else result
        self.nanoseconds += 4000 + 0.3 * max(result.numel(), first.numel())
        if function in _PRODUCTS:
            weight = args[1]
            self.nanoseconds += result.numel() * (weight.numel() // max(weight.shape[0], 1)) / 50


_query("shape", "size", "dim", "ndim", "numel", "nelement", "dtype", "device", "requires_grad", "is_contiguous")
_query("stride", "layout", "is_floating_point", "__len__", "is_cuda", "is_complex", "element_size", "is_leaf")
_query("is_nested", "is_sparse", "is_quantized", "is_mkldnn", "itemsize", "get_device", "is_meta", "is_conj", "is_neg")


# ------------------------------------------------------------------------------------------------- convolutions


def _ints(value: Any, rank: int) -> tuple[int, ...]:
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * rank if len(given) == 1 else given


def _last(t: Any) -> bool:
    """Whether a tensor lies channels-last."""
    return t.dim() in _CHANNELS_LAST and t.stride(1) == 1 and t.stride(-1) == t.shape[1] > 1


def _laid(result: Any, x: Traced, last: bool = False) -> Any:
    """A result that on the CPU, unlike without numbers, lies channels-last where x does, or where told."""
    if last or _last(x.as_subclass(torch.Tensor)):
        return result.contiguous(memory_format=_CHANNELS_LAST[result.dim()])
    return result


def _convolution(rank: int, transposed: bool) -> Handler:
    def lower(
        t: Trace,
        result: Any,
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Traced:
        if not isinstance(x, Traced) or x.dim() != rank + 2:
            raise Unsupported("a convolution of an image without a batch")
        w = t.array(weight)
        steps = _ints(dilation, rank)
        if padding == "same":
            # PyTorch's, the odd one behind; the stride is 1.
            sums = [d * (k - 1) for d, k in zip(steps, w.shape[2:], strict=True)]
            pads: Any = tuple((n // 2, n - n // 2) for n in sums)
        else:
            pads = 0 if padding == "valid" else _ints(padding, rank)
        options = {"stride": _ints(stride, rank), "padding": pads, "dilation": steps, "groups": groups}
        value = t.graph.add(
            "conv", t.plain(x), rank=rank, transposed=transposed, weight=w, bias=t.vector(bias), options=options
        )
        return t.tensor(value, _laid(result, x, rank > 1 and _last(weight)))

    def lower_transposed(
        t: Trace,
        result: Any,
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Traced:
        y = lower(t, result, x, weight, bias, stride, padding, dilation, groups)
        t.graph.nodes[-1].get("options")["output_padding"] = _ints(output_padding, rank)
        return y

    return lower_transposed if transposed else lower


for _rank in (1, 2, 3):
    _register(_convolution(_rank, False), [f"conv{_rank}d"])
    _register(_convolution(_rank, True), [f"conv_transpose{_rank}d"])


def _channels_last(x: Traced) -> bool:
    """Whether x is an image (N, C, ...) seen as (N, ..., C)."""
    n = x.dim()
    return n >= 3 and x._order == (0, *range(2, n), 1)


@_op("linear")
def _linear(t: Trace, result: Any, x: Any, weight: Any, bias: Any = None) -> Traced:
    if not isinstance(x, Traced):
        raise Unsupported("a weight that depends on the input")
    w, b = t.array(weight), t.vector(bias)
    if w.ndim != 2:
        raise Unsupported("a dense layer with one output")
    rank = x.dim() - 2
    if _channels_last(x) and rank in (1, 2, 3):
        # On the pixels of an image: a convolution of 1x1, which takes part in fusion.
        options = {"stride": (1,) * rank, "padding": 0, "dilation": (1,) * rank, "groups": 1}
        w = w.reshape(*w.shape, *(1,) * rank)
        value = t.graph.add("conv", x._value, rank=rank, transposed=False, weight=w, bias=b, options=options)
        return t.tensor(value, result, x._order)
    return t.tensor(t.graph.add("linear", t.plain(x), weight=w, bias=b), result)


# -------------------------------------------------------------------------------------------------------- norms


def _batch_norm(
    t: Trace,
    result: Any,
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Traced:
    if training or running_mean is None or running_var is None or not isinstance(x, Traced) or x.dim() < 2:
        raise Unsupported("a batch norm with the statistics of the batch")
    # In float64, so that a scale and a shift are each one rounding.
    scale = 1 / np.sqrt(t.array(running_var).astype(np.float64) + eps)
    if weight is not None:
        scale = scale * t.array(weight)
    shift = -t.array(running_mean) * scale
    if bias is not None:
        shift = shift + t.array(bias)
    dtype = _DTYPES[t.dtype]
    value = t.graph.add("affine", t.plain(x), scale=scale.astype(dtype), shift=shift.astype(dtype))
    return t.tensor(value, result)


def _apply(t: Trace, value: Value, function: str, *arguments: Any, **options: Any) -> Value:
    """A function of `fastconv.functional` of one array."""
    return t.graph.add("pool", value, function=function, arguments=arguments, options=options)


@_op("layer_norm")
def _layer_norm(
    t: Trace,
    result: Any,
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Traced:
    w, b = t.vector(weight), t.vector(bias)
    if _channels_last(x) and len(normalized_shape) == 1:
        return t.tensor(_apply(t, x._value, "layer_norm_channels", w, b, eps), result, x._order)
    if x.dim() > 5:
        raise Unsupported("a layer norm of more than 5 axes")
    return t.tensor(_apply(t, t.plain(x), "layer_norm", tuple(normalized_shape), w, b, eps), result)


@_op("group_norm")
def _group_norm(
    t: Trace, result: Any, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Traced:
    value = _apply(t, t.plain(x), "group_norm", num_groups, t.vector(weight), t.vector(bias), eps)
    return t.tensor(value, _laid(result, x))


def _instance_norm(
    t: Trace,
    result: Any,
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Traced:
    if not use_input_stats:
        return _batch_norm(t, result, x, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        raise Unsupported("an instance norm that keeps statistics")
    return t.tensor(_apply(t, t.plain(x), "instance_norm", t.vector(weight), t.vector(bias), eps), result)


# Those of the module `torch` have their arguments in another order.
_HANDLERS[functional.batch_norm] = _batch_norm
_HANDLERS[functional.instance_norm] = _instance_norm


# --------------------------------------------------------------------------------------------------- activations


def _activation(name: Any) -> Callable[..., Traced]:
    def lower(t: Trace, result: Any, x: Any, inplace: bool = False) -> Traced:
        return t.finish(x, t.graph.add("activation", x._value, activation=name), result, inplace)

    return lower


def _inplace(handler: Handler) -> Handler:
    return lambda t, result, *args, **kwargs: handler(t, result, *args, **kwargs, inplace=True)


def _register_activation(name: str, handler: Handler) -> None:
    _register(handler, [name])
    _register(_inplace(handler), [f"{name}_"])


for _name in ("relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid", "tanh"):
    _register_activation(_name, _activation(_name))


def _clip(t: Trace, result: Any, x: Any, lower: float, upper: float, inplace: bool) -> Traced:
    if (lower, upper) == (0, 6):
        name: Any = "relu6"
    elif (lower, upper) == (0, math.inf):
        name = "relu"
    else:
        name = ("clip", float(lower), float(upper))
    return _activation(name)(t, result, x, inplace)


def _hardtanh(
    t: Trace, result: Any, x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Traced:
    return _clip(t, result, x, min_val, max_val, inplace)


def _clamp(t: Trace, result: Any, x: Any, min: Any = None, max: Any = None, inplace: bool = False) -> Traced:
    lower, upper = -math.inf if min is None else min, math.inf if max is None else max
    if not all(isinstance(v, (int, float)) for v in (lower, upper)):
        raise Unsupported("clamp to a tensor")
    return _clip(t, result, x, lower, upper, inplace)


def _leaky_relu(t: Trace, result: Any, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Traced:
    return _activation(("leaky_relu", negative_slope))(t, result, x, inplace)


_register_activation("hardtanh", _hardtanh)
_register_activation("clamp", _clamp)
_register_activation("clip", _clamp)
_register_activation("leaky_relu", _leaky_relu)


@_op("gelu")
def _gelu(t: Trace, result: Any, x: Any, approximate: str = "none") -> Traced:
    return _activation("gelu_tanh" if approximate == "tanh" else "gelu")(t, result, x)


def _softmax(name: str) -> Handler:
    def lower(t: Trace, result: Any, x: Any, dim: Any = None, *_: Any, dtype: Any = None, **__: Any) -> Traced:
        if dim is None or dtype not in (None, t.dtype):
            raise Unsupported(f"a {name} of another axis or dtype")
        return t.tensor(_apply(t, t.plain(x), name, dim % x.dim()), result)

    return lower


for _name in ("softmax", "log_softmax"):
    _register(_softmax(_name), [_name])


def _dropout(
    t: Trace, result: Any, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False, **_: Any
) -> Traced:
    if training and p:
        raise Unsupported("dropout in training mode")
    return x  # type: ignore[no-any-return]


_register(_dropout, ["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"])


# --------------------------------------------------------------------------------------- sums, products and joins


def _number(v: Any) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool)


def _channels(t: Trace, x: Traced, v: Any) -> Array | None:
    """A number or a tensor that is not traced, as a vector over the channels of x's value; None where it is more."""
    axes = list(range(x.dim())) if x._order is None else list(x._order)
    if x.dim() < 2:
        return None
    channels, dtype = int(x.shape[axes.index(1)]), _DTYPES[t.dtype]
    if _number(v):
        return np.full(channels, v, dtype)
    if v.dim() > x.dim() or (v.dtype is not t.dtype and v.numel() != 1):
        return None
    if v.numel() == 1:
        if v.dim():
            return np.full(channels, t.array(v).reshape(()), dtype)
        t.constants.append(v)
        return np.full(channels, v.item(), dtype)
    a = t.array(v)
    a = a.reshape((1,) * (x.dim() - a.ndim) + a.shape)
    if a.shape[axes.index(1)] != channels or a.size != channels:
        return None
    return a.reshape(channels)


def _affine(t: Trace, x: Traced, scale: Array | None, shift: Array | None) -> Value:
    one = scale if scale is not None else shift
    assert one is not None
    scale = np.ones_like(one) if scale is None else scale
    shift = np.zeros_like(one) if shift is None else shift
    return t.graph.add("affine", x._value, scale=scale, shift=shift)


def _negated(t: Trace, v: Any) -> Any:
    """V times -1."""
    if isinstance(v, Traced):
        minus = _channels(t, v, -1)
        value = t.graph.add("multiply", v._value, t.number(-1)) if minus is None else _affine(t, v, minus, None)
        return t.tensor(value, v.as_subclass(torch.Tensor), v._order)
    return -v


def _both(t: Trace, x: Any, y: Any) -> tuple[Value, Value, tuple[int, ...] | None]:
    """Two operands as values with the same axes, and the order of those."""
    if isinstance(x, Traced) and isinstance(y, Traced) and x._order == y._order and x.dim() == y.dim():
        return x._value, y._value, x._order
    if _number(y):
        return x._value, t.number(y), x._order
    return t.plain(x), t.plain(y), None


def _sum(t: Trace, result: Any, x: Any, y: Any, alpha: float = 1, inplace: bool = False) -> Traced:
    if alpha != 1:
        raise Unsupported("a sum with a factor")
    if not isinstance(x, Traced):
        x, y = y, x
    if inplace and result.shape != x.shape:
        raise Unsupported("a change of an operand in place")
    if not isinstance(y, Traced):
        shift = _channels(t, x, y)
        if shift is not None and result.shape == x.shape:
            return t.finish(x, _affine(t, x, None, shift), result, inplace)
    a, b, order = _both(t, x, y)
    value = t.graph.add("add", a, b)
    if inplace:
        if order != x._order:
            raise Unsupported("a sum in place of permuted tensors")
        return t.changed(x, value)
    return t.tensor(value, result, order)


def _difference(t: Trace, result: Any, x: Any, y: Any, alpha: float = 1, inplace: bool = False) -> Traced:
    if inplace and not isinstance(x, Traced):
        raise Unsupported("a change of a constant in place")
    return _sum(t, result, x, _negated(t, y), alpha, inplace)


@_op("rsub", "__rsub__")
def _reverse_difference(t: Trace, result: Any, x: Any, y: Any, alpha: float = 1) -> Traced:
    return _sum(t, result, _negated(t, x), y, alpha)


def _product(t: Trace, result: Any, x: Any, y: Any, inplace: bool = False) -> Traced:
    if not isinstance(x, Traced):
        x, y = y, x
    if inplace and result.shape != x.shape:
        raise Unsupported("a change of an operand in place")
    if not isinstance(y, Traced):
        scale = _channels(t, x, y)
        if scale is not None and result.shape == x.shape:
            return t.finish(x, _affine(t, x, scale, None), result, inplace)
    a, b, order = _both(t, x, y)
    if inplace and order != x._order:
        raise Unsupported("a product in place of permuted tensors")
    value = _gated(t, x, y, a, b)
    return t.changed(x, value) if inplace else t.tensor(value, result, order)


# x times these of x
_SELF_GATED = {"sigmoid": "silu", "hardsigmoid": "hardswish"}


def _gated(t: Trace, x: Any, y: Any, a: Value, b: Value) -> Value:
    """A product, as what it means: an activation, a gate of the channels, or neither."""
    makers = {node.output: node for node in t.graph.nodes}
    for u, v in ((a, b), (b, a)):
        node = makers.get(v)
        if node is not None and node.op == "activation" and node.inputs[0] is u:
            name = node.get("activation")
            if isinstance(name, str) and name in _SELF_GATED:
                return t.graph.add("activation", u, activation=_SELF_GATED[name])
    if isinstance(x, Traced) and isinstance(y, Traced) and x._order is None and y._order is None and x.dim() == 4:
        for p, q, u, v in ((x, y, a, b), (y, x, b, a)):
            if y.dim() == x.dim() and q.shape == (*p.shape[:2], 1, 1) and p.shape[2:] != (1, 1):
                return t.graph.add("gate", u, v)
    return t.graph.add("multiply", a, b)


@_op("div", "divide", "true_divide")
def _quotient(t: Trace, result: Any, x: Any, y: Any, rounding_mode: Any = None, inplace: bool = False) -> Traced:
    if rounding_mode is not None or isinstance(y, Traced):
        raise Unsupported("a quotient of traced tensors")
    return _product(t, result, x, 1 / y, inplace)


for _name, _handler in (("add", _sum), ("sub", _difference), ("mul", _product), ("div", _quotient)):
    _register_activation(_name, _handler)
_register(_product, ["multiply"])
_register(_difference, ["subtract"])


@_op("neg", "__neg__")
def _negative(t: Trace, result: Any, x: Any) -> Any:
    return _negated(t, x)


@_op("cat", "concat", "concatenate")
def _concat(t: Trace, result: Any, tensors: Any, dim: int = 0) -> Traced:
    orders = {v._order if isinstance(v, Traced) else () for v in tensors}
    axis = dim % result.dim()
    if len(orders) == 1 and () not in orders and len({v.dim() for v in tensors}) == 1:
        order = orders.pop()
        values = [v._value for v in tensors]
        return t.tensor(t.graph.add("concat", *values, axis=axis if order is None else order[axis]), result, order)
    return t.tensor(t.graph.add("concat", *(t.plain(v) for v in tensors), axis=axis), result)


# --------------------------------------------------------------------------------------------------------- pools


def _pool_input(t: Trace, x: Any, rank: int) -> Value:
    if not isinstance(x, Traced) or x.dim() != rank + 2:
        raise Unsupported("pooling of an image without a batch")
    return t.plain(x)


def _whole(x: Any, size: tuple[int, ...], padding: Any, ceil_mode: bool, result: Any) -> bool:
    """Whether the one window of a pool reaches beyond the image, where a rounded-up size cuts it to the image."""
    inner = tuple(int(n) for n in x.shape[2:])
    beyond = ceil_mode and any(k > n for k, n in zip(size, inner, strict=True))
    none = all(p == 0 for p in _ints(padding, len(size)))
    return beyond and none and all(k >= n for k, n in zip(size, inner, strict=True)) and result[0, 0].numel() == 1


def _max_pool(rank: int) -> Handler:
    def lower(
        t: Trace,
        result: Any,
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Traced:
        if return_indices:
            raise Unsupported("max pooling that returns indices")
        value = _pool_input(t, x, rank)
        size = _ints(kernel_size, rank)
        if _ints(dilation, rank) == (1,) * rank and _whole(x, size, padding, ceil_mode, result):
            return t.tensor(_apply(t, value, f"global_max_pool{rank}d", keepdims=True), result)
        options = {"padding": _ints(padding, rank), "dilation": _ints(dilation, rank), "ceil_mode": ceil_mode}
        options["stride"] = None if stride in (None, [], ()) else _ints(stride, rank)
        return t.tensor(_apply(t, value, f"max_pool{rank}d", size, **options), result)

    return lower


def _avg_pool(rank: int) -> Handler:
    def lower(
        t: Trace,
        result: Any,
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Traced:
        value = _pool_input(t, x, rank)
        size = _ints(kernel_size, rank)
        if divisor_override is None and _whole(x, size, padding, ceil_mode, result):
            return t.tensor(_apply(t, value, f"global_avg_pool{rank}d", keepdims=True), result)
        options = {"padding": _ints(padding, rank), "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
        options["stride"] = None if stride in (None, [], ()) else _ints(stride, rank)
        if rank > 1:
            options["divisor_override"] = divisor_override
        return t.tensor(_apply(t, value, f"avg_pool{rank}d", size, **options), result)

    return lower


def _adaptive(rank: int, kind: str) -> Handler:
    def lower(t: Trace, result: Any, x: Any, output_size: Any, return_indices: bool = False) -> Traced:
        if return_indices:
            raise Unsupported("max pooling that returns indices")
        size = tuple(int(n) for n in result.shape[2:])
        value = _pool_input(t, x, rank)
        if size == (1,) * rank:
            return t.tensor(_apply(t, value, f"global_{kind}_pool{rank}d", keepdims=True), result)
        return t.tensor(_apply(t, value, f"adaptive_{kind}_pool{rank}d", size), result)

    return lower


for _rank in (1, 2, 3):
    _register(_max_pool(_rank), [f"max_pool{_rank}d"])
    _register(_avg_pool(_rank), [f"avg_pool{_rank}d"])
    for _kind in ("avg", "max"):
        _register(_adaptive(_rank, _kind), [f"adaptive_{_kind}_pool{_rank}d"])


def _reduced(x: Traced, dim: Any) -> int:
    """The rank of the image whose spatial axes a mean is over, or 0."""
    axes = (dim,) if isinstance(dim, int) else tuple(range(x.dim()) if dim is None else dim)
    axes = tuple(a % x.dim() for a in axes)
    inner = sorted(axes if x._order is None else (x._order[a] for a in axes))
    rank = int(x.dim()) - 2
    return rank if rank in (1, 2, 3) and inner == list(range(2, x.dim())) else 0


@_op("mean")
def _mean(t: Trace, result: Any, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Traced:
    rank = _reduced(x, dim)
    if dtype not in (None, t.dtype) or not rank:
        y: Traced = _own(torch.mean, "mean")(t, result, x, dim, keepdim, dtype=dtype)
        return y
    value = _apply(t, x._value, f"global_avg_pool{rank}d", keepdims=keepdim)
    # (N, C) reads as it is; with the axes kept, in x's order.
    return t.tensor(value, result, x._order if keepdim else None)


# ------------------------------------------------------------------------------------------------ shapes and views


@_op("permute")
def _permute(t: Trace, result: Any, x: Any, *dims: Any) -> Traced:
    dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    order = tuple(range(x.dim())) if x._order is None else x._order
    return t.view(x, x._value, result, tuple(order[d % x.dim()] for d in dims))


@_op("transpose", "swapaxes", "swapdims")
def _transpose(t: Trace, result: Any, x: Any, dim0: int, dim1: int) -> Traced:
    dims = list(range(x.dim()))
    dims[dim0 % x.dim()], dims[dim1 % x.dim()] = dims[dim1 % x.dim()], dims[dim0 % x.dim()]
    y: Traced = _permute(t, result, x, *dims)
    return y


@_op("reshape", "view", "unsqueeze", "squeeze", "flatten", "unflatten")
def _reshape(t: Trace, result: Any, x: Any, *_: Any, **__: Any) -> Traced:
    if result.dtype is not x.dtype:
        raise Unsupported("a view of another dtype")
    if result.shape == x.shape:
        return t.view(x, x._value, result, x._order)
    shape = tuple(int(n) for n in result.shape)
    value = t.plain(x)
    if len(shape) == 2 and shape[0] == x.shape[0]:
        return t.view(x, t.graph.add("flatten", value, begin=1), result)
    return t.view(x, t.graph.add("reshape", value, shape=shape), result)


def _same(t: Trace, result: Any, x: Any, *_: Any, **__: Any) -> Traced:
    """What changes at most the order in memory."""
    return t.view(x, x._value, result, x._order)


_register(_same, ["contiguous", "detach"])


@_op("clone")
def _clone(t: Trace, result: Any, x: Any, **_: Any) -> Traced:
    return t.tensor(x._value, result, x._order)


@_op("to", "float", "double", "cpu", "type")
def _to(t: Trace, result: Any, x: Any, *args: Any, **kwargs: Any) -> Traced:
    if not isinstance(result, torch.Tensor) or not isinstance(x, Traced):
        raise Unsupported("a change of the type")
    for device in (*args, *kwargs.values()):
        if isinstance(device, (str, torch.device)) and torch.device(device).type != "cpu":
            raise Unsupported(f"a copy to {device}")
    return t.view(x, x._value, result, x._order)


@_op("__getitem__")
def _index(t: Trace, result: Any, x: Any, index: Any) -> Traced:
    parts = index if isinstance(index, tuple) else (index,)
    if not all(v is None or v is Ellipsis or _number(v) or isinstance(v, slice) for v in parts):
        raise Unsupported("an index that is a tensor")
    bounds = [w for v in parts if isinstance(v, slice) for w in (v.start, v.stop, v.step)]
    if any(isinstance(w, torch.Tensor) for w in bounds):
        raise Unsupported("an index that is a tensor")
    return t.view(x, t.graph.add("view", t.plain(x), function=lambda a: a[parts], what="slice"), result)


@_op("unbind")
def _unbind(t: Trace, result: Any, x: Any, dim: int = 0) -> tuple[Traced, ...]:
    before = (slice(None),) * (dim % x.dim())
    return tuple(_index(t, part, x, (*before, i)) for i, part in enumerate(result))


def _filled_with(value: float | None) -> Handler:
    """A new tensor, which is a constant: of this number, or of the last argument."""

    def lower(t: Trace, result: Any, x: Any, *args: Any, fill_value: Any = None, **_: Any) -> Any:
        number = value if value is not None else args[-1] if fill_value is None else fill_value
        if not _number(number) or result.dtype is not t.dtype:
            raise Unsupported("a new tensor of another kind")
        return torch.full(tuple(result.shape), number, dtype=result.dtype)

    return lower


for _kind, _fill in (("zeros", 0.0), ("ones", 1.0), ("full", None)):
    _register(_filled_with(_fill), [f"{_kind}_like", f"new_{_kind}"])


@_op("narrow")
def _narrow(t: Trace, result: Any, x: Any, dim: int, start: int, length: int) -> Traced:
    y: Traced = _index(t, result, x, (slice(None),) * (dim % x.dim()) + (slice(start, start + length),))
    return y


@_op("chunk", "split", "tensor_split", "split_with_sizes")
def _split(t: Trace, result: Any, x: Any, *args: Any, dim: Any = None, **kwargs: Any) -> tuple[Traced, ...]:
    axis = (args[1] if len(args) > 1 else 0) if dim is None else dim
    found, begin = [], 0
    for part in result:
        size = int(part.shape[axis])
        found.append(_narrow(t, part, x, axis, begin, size))
        begin += size
    return tuple(found)


@_op("pad")
def _pad(t: Trace, result: Any, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Traced:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if not all(_number(n) for n in pad):
        raise Unsupported("a pad that is a tensor")
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)][::-1]
    pairs = [(0, 0)] * (x.dim() - len(pairs)) + pairs
    v = t.plain(x)
    if min(min(pair) for pair in pairs) < 0:
        # A negative pad cuts off.
        index = tuple(
            slice(max(-low, 0), int(n) - max(-high, 0)) for (low, high), n in zip(pairs, x.shape, strict=True)
        )
        v = t.graph.add("view", v, function=lambda a: a[index], what="slice")
        pairs = [(max(low, 0), max(high, 0)) for low, high in pairs]
    if any(pair != (0, 0) for pair in pairs):
        v = t.graph.add("pad", v, pads=tuple(pairs), mode=modes[mode], value=value)
    return t.tensor(v, _laid(result, x) if mode == "constant" else result)


_FREE |= {
    f for f, handler in _HANDLERS.items() if handler in (_permute, _transpose, _reshape, _same, _to, _index, _split)
}


# ------------------------------------------------------------------------------------------------- PyTorch's own


def _own(function: Any, name: str) -> Handler:
    """A function that PyTorch computes within the network, and that gives one tensor, no view and nothing random."""

    def lower(t: Trace, result: Any, *args: Any, **kwargs: Any) -> Traced:
        if kwargs.pop("inplace", False) or kwargs.get("out") is not None:
            raise Unsupported(f"{name} in place")
        if any(kwargs.get(v) for v in ("dropout_p", "return_indices", "return_inverse")):
            raise Unsupported(f"{name} with these options")
        if not isinstance(result, torch.Tensor):
            raise Unsupported(f"{name} with several results")
        values: list[Value] = []
        if name in ("pixel_shuffle", "pixel_unshuffle"):
            result = _laid(result, args[0] if args else kwargs["input"])
        args, kwargs = _kept(t, (args, kwargs), values)

        def run(*arrays: Array) -> Array:
            tensors = [torch.from_numpy(a) for a in arrays]
            y: Array = function(*_given(args, tensors), **_given(kwargs, tensors)).numpy()
            return y

        return t.tensor(t.graph.add("call", *values, function=run, what=name), result)

    return lower


class _Operand(int):
    """The place of an operand among the arrays of a call."""


def _kept(t: Trace, value: Any, values: list[Value]) -> Any:
    """Arguments with the traced tensors, appended to `values`, replaced by their places."""
    if isinstance(value, Traced):
        values.append(t.plain(value))
        return _Operand(len(values) - 1)
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.device.type != "cpu":
            raise Unsupported(f"a constant of type {type(value).__name__} on {value.device}")
        t.constants.append(value)
        return value.detach()
    if type(value) in (tuple, list):
        return type(value)(_kept(t, v, values) for v in value)
    if type(value) is dict:
        return {k: _kept(t, v, values) for k, v in value.items()}
    return value


def _given(value: Any, tensors: list[Any]) -> Any:
    """The arguments of `_kept` with these tensors."""
    if isinstance(value, _Operand):
        return tensors[value]
    if type(value) in (tuple, list):
        return type(value)(_given(v, tensors) for v in value)
    if type(value) is dict:
        return {k: _given(v, tensors) for k, v in value.items()}
    return value


for _name in (
    *("interpolate", "elu", "selu", "celu", "mish", "softplus", "softsign", "logsigmoid", "hardshrink", "softshrink"),
    *("exp", "log", "sqrt", "rsqrt", "abs", "square", "pow", "pixel_shuffle", "pixel_unshuffle", "erf", "sin", "cos"),
    *("local_response_norm", "lp_pool1d", "lp_pool2d", "channel_shuffle", "flip", "roll", "prelu", "normalize"),
    *("scaled_dot_product_attention", "matmul", "__matmul__", "bmm", "baddbmm", "addmm", "einsum", "glu", "unfold"),
    *("masked_fill", "where", "maximum", "minimum", "amax", "amin", "sum", "repeat", "repeat_interleave", "stack"),
    *("expand", "expand_as", "broadcast_to", "tile", "movedim", "moveaxis", "rot90", "cumsum", "logsumexp", "softmin"),
    *("grid_sample", "fold", "upsample", "index_select", "cosine_similarity", "norm", "cdist", "var", "std"),
):
    for _place in (torch, torch.Tensor, functional, torch._C._nn):
        if hasattr(_place, _name):
            _HANDLERS[getattr(_place, _name)] = _own(getattr(_place, _name), _name)


# --------------------------------------------------------------------------------------------------------- traces


_VIEWS = ("expand", "expand_as", "broadcast_to", "movedim", "moveaxis")  # of what PyTorch computes in a network


def _root(graph: Graph, value: Value) -> Value:
    """What a value may be a view of."""
    for node in reversed(graph.nodes):
        if node.output is value and (
            node.op in ("view", "flatten", "reshape") or (node.op == "call" and node.get("what") in _VIEWS)
        ):
            value = node.inputs[0]
    return value


class Lowered:
    """A graph, and how PyTorch's arguments and results fit it.

    Attributes:
        graph: not fused.
        contiguous: whether the results are in C order, or None: as the inputs.
        constants: the tensors whose numbers are in the graph.
        nanoseconds: that PyTorch takes for it, by a rough count.
    """

    def __init__(self, trace: Trace, leaves: list[Any], spec: Any, single: bool) -> None:
        self.graph = trace.graph
        self.constants = trace.constants
        self.nanoseconds = trace.nanoseconds
        self._spec, self._single = spec, single
        results = [v for v in leaves if isinstance(v, Traced)]
        index: dict[tuple[Value, Any, _Storage], int] = {}
        self._places: list[int] = []
        values: list[Value] = []
        owners: dict[Value, _Storage] = {}
        for t in results:
            key = t._value, t._order, t._memory
            if key not in index:
                index[key] = len(values)
                value = trace.plain(t)
                if owners.setdefault(_root(self.graph, t._value), t._memory) is not t._memory:
                    # A clone, of which the graph knows nothing.
                    value = self.graph.add("call", value, function=lambda a: a.copy(order="K"), what="clone")
                values.append(value)
            self._places.append(index[key])
        self._leaves = [None if isinstance(v, Traced) else v for v in leaves]
        self._at = [i for i, v in enumerate(leaves) if isinstance(v, Traced)]
        self.graph.outputs = values
        # Those that lie channels-last, by their places; the network may give another order.
        self._last: dict[int, Any] = {}
        for t, place in zip(results, self._places, strict=True):
            m, order = t.as_subclass(torch.Tensor), _CHANNELS_LAST.get(t.dim())
            if order is not None and not m.is_contiguous() and m.is_contiguous(memory_format=order):
                self._last[place] = order
        self.contiguous = not self._last

    def results(self, tensors: list[Any]) -> Any:
        """What the forward gives, of these tensors."""
        for place, order in self._last.items():
            tensors[place] = tensors[place].contiguous(memory_format=order)
        if self._single:
            return tensors[0]
        leaves = list(self._leaves)
        for i, place in zip(self._at, self._places, strict=True):
            leaves[i] = tensors[place]
        return _pytree.tree_unflatten(leaves, self._spec)


_pytree: Any = importlib.import_module("torch.utils._pytree")


def release(made: list[weakref.ref[Traced]]) -> bool:
    """Whether traced tensors outlive their trace somewhere; lists, dicts and attributes lose them."""
    if not any(t() is not None for t in made):
        return False
    gc.collect()  # what only is part of a cycle
    left = [t for t in [t() for t in made] if t is not None]
    own = set(map(id, left))
    for holder in gc.get_referrers(*left) if left else ():
        if type(holder) is list and holder is not left:
            holder[:] = [v for v in holder if id(v) not in own]
        table = holder if type(holder) is dict else getattr(holder, "__dict__", None)
        if type(table) is dict:
            for key in [k for k, v in table.items() if id(v) in own]:
                del table[key]
    return bool(left)


def trace(forward: Callable[..., Any], args: Any, kwargs: Any, made: list[weakref.ref[Traced]]) -> Lowered:
    """Lower a call. The arguments hold tensors of one dtype, float32 or float64, on the CPU.

    The traced tensors are appended to `made`.

    Raises:
        Unsupported: something in it has no node; anything that the forward raises.
    """
    found: list[Any] = []
    shape = _flat((args, kwargs), found)
    if not found:
        raise Unsupported("a call without a tensor")
    if len({t.dtype for t in found}) > 1:
        raise Unsupported("inputs of several dtypes")
    if found[0].dtype not in _DTYPES:
        raise Unsupported(f"inputs of {found[0].dtype}")
    t = Trace(found[0].dtype, made)
    entries = [t.enter(x) for x in found]
    given_args, given_kwargs = _filled(shape, entries)
    before, _state.trace = getattr(_state, "trace", None), t
    try:
        with torch.no_grad():
            result = forward(*given_args, **given_kwargs)
        leaves, spec = _pytree.tree_flatten(result)
    finally:
        _state.trace = before
    now: list[Any] = []
    if _flat((given_args, given_kwargs), now) != shape or not all(map(is_, now, entries)):
        raise Unsupported("a forward that changes its arguments")
    for leaf in leaves:
        if not (isinstance(leaf, (Traced, bool, int, float, str)) or leaf is None):
            raise Unsupported(f"a result of type {type(leaf).__name__}")
        if isinstance(leaf, Traced) and leaf._memory.given:
            raise Unsupported("a result that is a view of an input")
    if not any(isinstance(leaf, Traced) for leaf in leaves):
        raise Unsupported("a call without a result")
    _state.trace = t
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return Lowered(t, leaves, spec, isinstance(result, Traced))
    finally:
        _state.trace = before
