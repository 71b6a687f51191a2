"""The benchmark's whole networks: inference of one image after `nn.fuse`, and a training step.

A case is an architecture of `fastconv.models` and the shape of its input. Its weights, and the list of its layers for
the peers (see `twin`), are made once and sent to every contender; x is a planar array, and the result one, for all.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastconv import models, nn
from fastconv.bench import operations
from fastconv.bench.twin import CHECKED_RATE, KINDS, MOMENTUM
from fastconv.nn.fusion import lower
from fastconv.nn.module import tracing

__all__ = ["KINDS", "Expected", "Network", "data", "everything"]

Array = npt.NDArray[Any]
Ints = tuple[int, ...]

# Errors in units of eps times the largest element of each result, against the same network in float64: up to 30 were
# seen. Rounding moves a value or two of a million across the kink of a rectifier, which changes gradients by whole
# terms of their sums: 200 were seen without, and 8,000 with one. Operands of TF32 give 2,500 and more, and hundreds of
# thousands in gradients.
_BOUND, _GRADIENT_BOUND = 300.0, 40_000.0


@dataclass(frozen=True)
class Network:
    """An architecture of `fastconv.models` with an input of a given shape."""

    kind: Literal["network", "training"]
    net: str
    name: str
    shape: Ints
    """Of x, channels first."""
    macs: int
    """Multiply-adds of a forward call, as `nn.summary` counts them."""
    parameters: int
    options: tuple[tuple[str, Any], ...] = ()
    """Of the architecture."""
    dtype: str = "float32"
    quick: bool = False
    """Whether the default subset has it."""
    usual: bool = True
    """Whether it comes with its kind: those that are much like others are asked for by name."""

    # What a Layer has too.
    direction = "forward"
    photograph = False
    tile_only = False
    depthwise = False

    @property
    def op(self) -> str:
        """The kind."""
        return self.kind

    @property
    def flops(self) -> int:
        """Multiplications and additions; a training step has the products of a forward call three times."""
        return 2 * self.macs * (3 if self.kind == "training" else 1)

    @property
    def bytes(self) -> int:
        """The fewest bytes that are moved where caches hold all that is between the layers.

        A training step reads parameters and momenta, and writes both and the gradients, which it reads again.
        """
        elements = self.parameters * (6 if self.kind == "training" else 1) + int(np.prod(self.shape))
        return elements * np.dtype(self.dtype).itemsize

    @property
    def id(self) -> str:
        """A name that no other case of the run bears."""
        parts = [self.net, self.name]
        if self.dtype != "float32":
            parts.append(self.dtype)
        return "/".join(parts)

    def describe(self) -> str:
        """Input, multiply-adds and parameters in one short line."""
        text = "x".join(str(v) for v in self.shape)
        return f"{text}, {self.macs / 1e6:,.1f} M MACs, {self.parameters / 1e6:.1f} M weights"

    def family(self, memory_bound: bool) -> str:
        """The family that the network is reported in."""
        return self.kind

    def as_dict(self, layouts: Sequence[str]) -> dict[str, Any]:
        """What a worker is told."""
        made = _made(self)
        return {
            "kind": self.kind,
            "op": self.op,
            "net": self.net,
            "create": dict(self.options),
            "rank": len(self.shape) - 2,
            "n": self.shape[0],
            "c": self.shape[1],
            "x_shape": list(self.shape),
            "y_shape": list(made.y_shape),
            "macs": self.macs,
            "parameters": self.parameters,
            "direction": self.direction,
            "dtype": self.dtype,
            "layouts": ["NCHW"],
            "nodes": made.nodes,
            "result": made.result,
            "gradients": made.gradients,
            "values": made.values,
        }


# ----------------------------------------------------------------------------------------------------- what is told

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}


@dataclass(frozen=True)
class _Made:
    arrays: dict[str, Array]
    nodes: list[dict[str, Any]]
    result: str
    y_shape: Ints
    gradients: list[str]
    """Parameters whose gradients a training step gives back."""
    values: list[str]
    """Parameters and running statistics whose values after a training step it gives back."""
    results: list[Array]
    """In float64."""


def nodes_of(network: nn.Module, x: Array) -> tuple[list[dict[str, Any]], str, Array]:
    """The network's layers as nodes for `twin`, the name of the result among them, and the result itself.

    Raises:
        ValueError: a module is none of those that the peers are told of.
    """
    names = {id(module): name for name, module in network.named_modules()}
    sizes: dict[int, list[int]] = {}

    def run(module: nn.Module, *inputs: Array) -> Any:
        sizes[id(module)] = list(inputs[0].shape[2:])
        return module.forward(*inputs)

    with tracing(run):
        y: Array = run(network, x)

    told: set[str] = set()

    def rule(graph: Any, m: nn.Module, *inputs: Any) -> Any:
        if isinstance(m, nn.SeparableConv2d):
            return m.pointwise(m.depthwise(*inputs))
        node = _told(m, names.get(id(m), ""), sizes.get(id(m), []))
        if not node:
            return None if node is None else inputs[0]
        value = graph.add(node.pop("op"), *inputs, **node)
        told.add(value.name)
        return value

    graph = lower(network, rule)
    nodes = []
    for node in graph.nodes:
        op, attributes = node.op, dict(node.attributes)
        if op == "pool" and attributes["function"].startswith("global_avg_pool"):
            # That of a squeeze-excite, which calls the function.
            op, attributes = "adaptive_avg_pool", {"output_size": [1, 1], "input_size": []}
        elif op == "gate":
            op = "multiply"
        elif node.output.name not in told and op not in ("add", "multiply", "concat"):
            what = next((attributes[a] for a in ("what", "function", "activation") if a in attributes), op)
            raise ValueError(f"module (with {what}) must be of layers that the peers are told of")
        nodes.append({"op": op, "inputs": [v.name for v in node.inputs], "output": node.output.name, **attributes})
    return nodes, graph.output.name, y


def _told(m: nn.Module, name: str, size: list[int]) -> dict[str, Any] | None:
    """A layer as a node's op and attributes, {} for one that passes x on, None for what is made of others."""
    prefix = f"{name}." if name else ""

    def weights(*attributes: str) -> dict[str, str]:
        return {a: prefix + a for a in attributes if getattr(m, a) is not None}

    def plain(*attributes: str) -> dict[str, Any]:
        values = {a: getattr(m, a) for a in attributes}
        if not all(isinstance(p, int) for p in values.get("padding", ())):
            raise ValueError(f"{name} must be padded alike on both sides")
        return {a: list(v) if isinstance(v, tuple) else v for a, v in values.items()}

    if isinstance(m, (*_CONVOLUTIONS, *_TRANSPOSED)):
        if m.padding_mode != "zeros":
            raise ValueError(f"{name} must be padded with zeros")
        told = plain("stride", "padding", "dilation", "groups", "output_padding")
        told |= {"transposed": isinstance(m, _TRANSPOSED), "weight_shape": list(m.weight.shape)}
        return {"op": "conv", "weights": weights("weight", "bias"), **told}
    if isinstance(m, nn.Linear):
        return {"op": "linear", "weights": weights("weight", "bias"), "weight_shape": list(m.weight.shape)}
    if isinstance(m, _BATCH_NORMS):
        told = {"channels": m.num_features, "eps": m.eps, "momentum": m.momentum, "rank": len(size)}
        return {"op": "batch_norm", "weights": weights("weight", "bias", "running_mean", "running_var"), **told}
    if type(m) in _ACTIVATIONS:
        return {"op": "activation", "name": _ACTIVATIONS[type(m)]}
    if isinstance(m, (nn.MaxPool2d, nn.MaxPool3d)):
        told = plain("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return {"op": "max_pool", "rank": len(size), "options": told}
    if isinstance(m, (nn.AvgPool2d, nn.AvgPool3d)) and m.divisor_override is None:
        told = plain("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
        return {"op": "avg_pool", "rank": len(size), "options": told}
    if isinstance(m, (nn.AdaptiveAvgPool2d, nn.GlobalAvgPool2d)):
        wanted = m.output_size if isinstance(m, nn.AdaptiveAvgPool2d) else 1
        if isinstance(m, nn.GlobalAvgPool2d) and not m.keepdims:
            raise ValueError(f"{name} must keep its dimensions")
        each = list(wanted) if isinstance(wanted, tuple) else [wanted, wanted]
        return {"op": "adaptive_avg_pool", "output_size": each, "input_size": size}
    if isinstance(m, nn.Flatten) and m.end_dim == -1:
        return {"op": "flatten", "begin": m.start_dim}
    return {} if isinstance(m, (nn.Dropout, nn.Identity)) else None


def _created(network: Network) -> models.Network:
    """The architecture with seeded weights, and statistics as a trained network has them: none is neutral."""
    seed = zlib.crc32(f"{network.net}/{network.kind}".encode())
    made = models.create(network.net, rng=seed, **dict(network.options)).eval()
    rng = np.random.default_rng(seed)
    for m in made.modules():
        if isinstance(m, nn.norm._BatchNorm) and m.weight is not None and m.bias is not None:
            c = m.num_features
            m.weight.assign((1 + 0.1 * rng.standard_normal(c)).astype(np.float32))
            m.bias.assign((0.1 * rng.standard_normal(c)).astype(np.float32))
            m.running_mean = (0.1 * rng.standard_normal(c)).astype(np.float32)
            m.running_var = (1 + rng.random(c)).astype(np.float32)
    return made.astype(network.dtype)


@lru_cache(maxsize=1)
def _made_of(network: Network) -> _Made:
    made = _created(network)
    rng = np.random.default_rng(zlib.crc32(network.id.encode()))
    x = rng.standard_normal(network.shape, dtype=np.float32).astype(network.dtype)
    nodes, result, y = nodes_of(made, x)
    state = {name: p.data.copy() for name, p in made.named_parameters()}
    # What counts batches is no operand.
    state |= {name: b for name, b in made.named_buffers() if b.dtype.kind == "f"}
    arrays = {"x": x, **state}
    double = made.astype(np.float64)
    if network.kind == "training" and any(isinstance(m, nn.Dropout) and m.p > 0 for m in made.modules()):
        raise ValueError(f"{network.net} must have no dropout: no two libraries draw alike")
    if network.kind == "network":
        return _Made(arrays, nodes, result, y.shape, [], [], [np.asarray(double(x.astype(np.float64)))])
    arrays["target"] = np.asarray(rng.integers(y.shape[1], size=y.shape[0]))
    parameters = [name for name, p in made.named_parameters() if p.data.ndim > 1]
    gradients = [parameters[0], parameters[len(parameters) // 2], parameters[-1]]
    values = gradients + [name for name in state if "running" in name][:2]
    results = training_step(double, CHECKED_RATE)(x.astype(np.float64), arrays["target"])
    return _Made(arrays, nodes, result, y.shape, gradients, values, watched(double, results, gradients, values))


def _made(network: Network) -> _Made:
    # Its name is no part of what it is.
    return _made_of(replace(network, name="", quick=False, usual=True))


def training_step(network: Any, rate: float) -> Any:
    """A function of x and the classes that makes one step of training, and gives the loss."""
    criterion = nn.CrossEntropyLoss()
    optimizer = nn.SGD(network.train().parameters(), lr=rate, momentum=MOMENTUM)

    def step(x: Array, target: Array) -> float:
        optimizer.zero_grad()
        loss = float(criterion(network(x), target))
        network.backward(criterion.backward(), input_grad=False)
        optimizer.step()
        return loss

    return step


def watched(network: Any, loss: float, gradients: Sequence[str], values: Sequence[str]) -> list[Array]:
    """What is compared after a training step: the loss, gradients, and what the step has changed."""
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    found = [parameters[name].grad for name in gradients]
    found += [parameters[name].data if name in parameters else buffers[name] for name in values]
    return [np.array([loss], found[0].dtype), *found]


def data(network: Network) -> tuple[dict[str, Array], str]:
    """x, the weights by their names and, of a training step, the classes."""
    return _made(network).arrays, "seeded normal"


class Expected(operations.Expected):
    """The same network in float64, and the test that a contender must pass before it is timed."""

    def __init__(self, network: Network, arrays: Mapping[str, Array]) -> None:
        made = _made(network)
        self.results = made.results
        self.dtype = np.dtype(network.dtype)
        # Of the result or the loss; of gradients; of weights that they have changed, and of statistics.
        self.bounds = [_BOUND] + [_GRADIENT_BOUND] * len(made.gradients)
        self.bounds += [_BOUND if "running" in name else _GRADIENT_BOUND for name in made.values]

    def check(self, results: Sequence[Array], ours: bool) -> float:
        """The largest error in units of eps * the largest element; WrongResult where one is too large."""
        if len(results) != len(self.results):
            raise operations.WrongResult(f"{len(results)} results instead of {len(self.results)}")
        return max(map(self.error, results, self.results, self.bounds))


# -------------------------------------------------------------------------------------------------------------- cases


@cache
def everything() -> tuple[Network, ...]:
    """Every architecture of `fastconv.models` with one image of its size, and a training step."""

    def one(net: str, macs: int, parameters: int, *size: int, c: int = 3, **others: Any) -> Network:
        return Network("network", net, "network", (1, c, *(size or (224, 224))), macs, parameters, **others)

    return (
        one("resnet18", 1_814_073_344, 11_689_512, quick=True),
        one("resnet50", 4_089_184_256, 25_557_032),
        one("mobilenet_v2", 300_774_272, 3_504_872, quick=True),
        one("efficientnet_b0", 385_814_752, 5_288_548),
        one("densenet121", 2_834_161_664, 7_978_856),
        one("googlenet", 1_498_376_192, 6_624_904),
        one("xception", 8_357_403_496, 22_855_952, 299, 299),
        one("alexnet", 714_188_480, 61_100_840),
        one("vgg16", 15_470_264_320, 138_357_544),
        one("vgg11", 7_609_090_048, 132_863_336, usual=False),
        one("vgg19", 19_632_062_464, 143_667_240, usual=False),
        one("unet", 12_024_020_992, 31_030_658, 128, 128, c=1, options=(("padding", "same"),)),
        one("c3d", 38_548_959_232, 79_991_015, 16, 112, 112),
        one("conv_autoencoder", 252_887_040, 186_371),
        one("lenet5", 416_520, 61_706, 32, 32, c=1),
        Network("training", "resnet18", "training", (8, 3, 64, 64), 1_188_462_592, 11_689_512, quick=True),
    )
