"""The layers of the benchmark, with their sizes, costs, families and data; other cases: `operations`, `networks`.

They are read from the tables in shapes/; `seeded` draws others, which no table holds.
"""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastconv import testing
from fastconv.bench import networks as whole
from fastconv.bench import operations
from fastconv.bench.networks import Network
from fastconv.bench.operations import Operation

Array = npt.NDArray[Any]
Direction = Literal["forward", "backward"]
Ints = tuple[int, ...]

# Of one call, multiplications and additions together: anything larger takes minutes in NumPy.
MAX_GFLOP = 40.0
# Below this a call is mostly overhead: the family "tiny".
TINY_FLOP = 400_000

FAMILIES: tuple[str, ...] = (
    "1x1",
    "3x3 s1",
    "other dense",
    "memory-bound",
    "grouped",
    "depthwise",
    "linear",
    "backward",
    "depthwise backward",
    "float64",
    "tiny",
    "separable",
    "separable backward",
    "pool",
    "pool backward",
    "batch norm",
    "batch norm training",
    "batch norm backward",
    "norm",
    "norm backward",
    "elementwise",
    "elementwise backward",
    *whole.KINDS,
)
OPS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose",
    "depthwise",
    "linear",
    "backward",
    *operations.KINDS,
    *whole.KINDS,
    "all",
)


@dataclass(frozen=True)
class Layer:
    """One layer, in the terms of `fastconv.functional`, for one dtype and direction."""

    op: str
    net: str
    name: str
    n: int
    c: int
    k: int
    size: Ints = ()
    kernel: Ints = ()
    stride: Ints = ()
    padding: Ints = ()
    dilation: Ints = ()
    output_padding: Ints = ()
    groups: int = 1
    direction: Direction = "forward"
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        """The number of spatial dimensions; 0 for a dense layer on vectors."""
        return len(self.size)

    @property
    def transposed(self) -> bool:
        """Whether the layer is a transposed convolution."""
        return self.op.startswith("conv_transpose")

    @property
    def out_size(self) -> Ints:
        """The spatial size of the output."""
        sizes = []
        for i in range(self.rank):
            reach = self.dilation[i] * (self.kernel[i] - 1) + 1
            if self.transposed:
                extra = self.output_padding[i]
                sizes.append((self.size[i] - 1) * self.stride[i] - 2 * self.padding[i] + reach + extra)
            else:
                sizes.append((self.size[i] + 2 * self.padding[i] - reach) // self.stride[i] + 1)
        return tuple(sizes)

    @property
    def x_shape(self) -> Ints:
        """The shape of x, channels first."""
        return (self.n, self.c, *self.size)

    @property
    def y_shape(self) -> Ints:
        """The shape of y, channels first."""
        return (self.n, self.k, *self.out_size)

    @property
    def w_shape(self) -> Ints:
        """The shape of the weight."""
        if self.transposed:
            return (self.c, self.k // self.groups, *self.kernel)
        return (self.k, self.c // self.groups, *self.kernel)

    @property
    def flops(self) -> int:
        """Multiplications and additions, taps in the padding counted, as the literature counts them."""
        pixels = self.size if self.transposed else self.out_size
        # One product an output pixel and weight; backward there are two such products.
        return 2 * self.n * math.prod(pixels) * math.prod(self.w_shape) * (2 if self.direction == "backward" else 1)

    @property
    def bytes(self) -> int:
        """The fewest bytes that the operation moves: every operand read once, every result written once."""
        x, y, w = math.prod(self.x_shape), math.prod(self.y_shape), math.prod(self.w_shape)
        elements = 2 * x + y + 2 * w if self.direction == "backward" else x + y + w
        return elements * np.dtype(self.dtype).itemsize

    @property
    def photograph(self) -> bool:
        """Whether x is a picture: the first layer of an image network."""
        return self.op == "conv2d" and self.c == 3 and min(self.size) >= 64

    @property
    def tile_only(self) -> bool:
        """Whether every counted flop is done: no tap meets the padding."""
        return not any(self.padding)

    @property
    def id(self) -> str:
        """A name that no other case of the run bears."""
        parts = [self.net, self.name]
        if self.direction == "backward":
            parts.append("backward")
        if self.dtype != "float32":
            parts.append(self.dtype)
        return "/".join(parts)

    def describe(self) -> str:
        """The shape in one short line, such as `64>128 k3x3 s2 @56x56`."""
        if self.op == "linear":
            return f"{self.n}x{self.c}>{self.k}"
        text = f"{self.c}>{self.k} k{_by(self.kernel)}"
        for letter, values in (("s", self.stride), ("d", self.dilation)):
            if set(values) != {1}:
                text += f" {letter}{values[0] if len(set(values)) == 1 else _by(values)}"
        if self.groups > 1:
            text += f" g{self.groups}"
        text += f" @{_by(self.size)}"
        return text + (f" n{self.n}" if self.n > 1 else "") + (" T" if self.transposed else "")

    @property
    def depthwise(self) -> bool:
        """Whether every channel has a filter of its own."""
        return self.groups == self.c > 1

    def family(self, memory_bound: bool) -> str:
        """The family that the layer is reported in."""
        if self.flops < TINY_FLOP:
            return "tiny"
        if self.direction == "backward":
            return "depthwise backward" if self.depthwise else "backward"
        if self.dtype == "float64":
            return "float64"
        if self.groups > 1:
            return "depthwise" if self.depthwise else "grouped"
        if memory_bound:
            return "memory-bound"
        if self.op == "linear":
            return "linear"
        if set(self.kernel) == {1} and set(self.stride) == {1} and not self.transposed:
            return "1x1"
        if self.op == "conv2d" and self.kernel == (3, 3) and self.stride == (1, 1) and self.dilation == (1, 1):
            return "3x3 s1"
        return "other dense"

    def as_dict(self, layouts: Sequence[str]) -> dict[str, Any]:
        """What a worker is told."""
        return {
            "op": self.op,
            "rank": self.rank,
            "n": self.n,
            "c": self.c,
            "k": self.k,
            "size": list(self.size),
            "out_size": list(self.out_size),
            "y_shape": list(self.y_shape),
            "kernel": list(self.kernel),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "output_padding": list(self.output_padding),
            "groups": self.groups,
            "direction": self.direction,
            "dtype": self.dtype,
            # A dense layer has no layout.
            "layouts": list(layouts[:1] if self.op == "linear" else layouts),
        }

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the functional call, layout apart."""
        if self.op == "linear":
            return {}
        options: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        options["groups"] = self.groups
        if self.transposed:
            options["output_padding"] = self.output_padding
        return options


def _by(values: Sequence[int]) -> str:
    return "x".join(str(v) for v in values)


# ------------------------------------------------------------------------------------------------------------- tables

_TABLES = ("conv1d", "conv2d", "conv3d", "conv_transpose")


@cache
def _listed() -> tuple[Layer, ...]:
    """Every row of every table, forward in float32."""
    rows = [_convolution(row) for table in _TABLES for row in testing.layers(table)]
    source = resources.files("fastconv.bench") / "shapes" / "linear.csv"
    return (*rows, *(_linear(row) for row in csv.DictReader(source.read_text(encoding="utf-8").splitlines())))


def _linear(row: dict[str, str]) -> Layer:
    return Layer("linear", row["net"], row["layer"], int(row["n"]), int(row["c"]), int(row["k"]))


def _convolution(row: testing.Layer) -> Layer:
    options, (n, c, *size) = row.options, row.input_shape

    def each(name: str) -> Ints:
        value = options.get(name, 0)
        return tuple(value) if isinstance(value, tuple) else (value,) * len(size)

    return Layer(
        row.op,
        row.net,
        row.name,
        n,
        c,
        row.output_shape[1],
        tuple(size),
        row.weight_shape[2:],
        each("stride"),
        each("padding"),
        each("dilation"),
        each("output_padding"),
        options["groups"],
    )


def square(net: str, name: str, c: int, k: int, h: int, r: int, **others: Any) -> Layer:
    """A 2-D layer on a square image with a square kernel, "same" padding unless `pad` is given."""
    stride, dil, pad = others.pop("s", 1), others.pop("d", 1), others.pop("pad", None)
    pad = dil * (r - 1) // 2 if pad is None else pad
    n, groups = others.pop("n", 1), others.pop("g", 1)
    two = [(v, v) for v in (h, r, stride, pad, dil, 0)]
    return Layer("conv2d", net, name, n, c, k, two[0], two[1], two[2], two[3], two[4], two[5], groups, **others)


def extra() -> list[Layer]:
    """Layers that no table holds: odd channel counts, small calls, whole batches."""
    return [
        replace(square("odd", "3x3 37>53", 37, 53, 31, 3, n=2), size=(31, 29)),
        square("odd", "1x1 37>53", 37, 53, 29, 1),
        square("odd", "3x3 53>37 s2", 53, 37, 27, 3, s=2),
        square("odd", "5x5 37>53 @14", 37, 53, 14, 5),
        square("tiny", "lenet conv1", 1, 6, 28, 5, pad=2),
        square("tiny", "3x3 1>1 @8", 1, 1, 8, 3),
        square("tiny", "1x1 8>8 @4", 8, 8, 4, 1),
        Layer("linear", "tiny", "linear 16>10", 1, 16, 10),
        Layer("conv1d", "tiny", "k3 4>4 @32", 1, 4, 4, (32,), (3,), (1,), (1,), (1,), (0,)),
    ]


@cache
def tables() -> tuple[Layer, ...]:
    """Every layer of the tables and of `extra`, forward in float32, each shape once."""
    return _distinct([*_listed(), *extra()])


def _distinct(rows: Sequence[Layer]) -> tuple[Layer, ...]:
    """Networks share shapes: one measurement serves them all."""
    layers: dict[Layer, Layer] = {}
    for layer in rows:
        layers.setdefault(replace(layer, net="", name=""), layer)
    return tuple(layers.values())


def _unique(layers: Sequence[Layer | Operation | Network]) -> list[Layer | Operation | Network]:
    """Number the cases whose names are taken."""
    seen: dict[str, int] = {}
    result: list[Layer | Operation | Network] = []
    for layer in layers:
        count = seen[layer.id] = seen.get(layer.id, 0) + 1
        result.append(layer if count == 1 else replace(layer, name=f"{layer.name} #{count}"))
    return result


def _find(net: str, **wanted: Any) -> Layer:
    for layer in _listed():
        if layer.net.startswith(net) and all(getattr(layer, key) == value for key, value in wanted.items()):
            return layer
    raise LookupError(f"no layer of {net} has {wanted}")


@cache
def quick() -> tuple[Layer, ...]:
    """The default: some forty layers that between them show every family, both small and large."""
    r50 = "resnet50_v1.5"
    forward = [
        _find(r50, name="conv1"),
        _find(r50, c=64, k=256, kernel=(1, 1)),
        _find(r50, c=256, k=64, kernel=(1, 1)),
        _find(r50, c=512, k=128, kernel=(1, 1)),
        _find(r50, c=1024, k=256, kernel=(1, 1)),
        _find(r50, c=2048, k=512, kernel=(1, 1)),
        _find(r50, c=64, kernel=(3, 3)),
        _find(r50, c=128, kernel=(3, 3), stride=(1, 1)),
        _find(r50, c=256, kernel=(3, 3), stride=(1, 1)),
        _find(r50, c=512, kernel=(3, 3), stride=(1, 1)),
        _find(r50, c=128, kernel=(3, 3), stride=(2, 2)),
        _find(r50, kernel=(1, 1), stride=(2, 2)),
        _find("vgg16", size=(56, 56), c=256),
        _find("alexnet", name="conv1"),
        _find("googlenet", name="3a/5x5"),
        _find("mobilenet_v2", kernel=(1, 1), c=16),
        _find("mobilenet_v2", kernel=(1, 1), c=32),
        _find("densenet121", kernel=(3, 3), size=(14, 14)),
        square("deeplabv3", "aspp d6 @33", 512, 256, 33, 3, d=6),
        _find("unet", op="conv_transpose2d", c=256),
        _find("dcgan", name="convt3"),
        _find("hifigan_v1_res", name="c64_k7_d3"),
        _find("whisper_base", name="conv1"),
        _find("c3d", name="conv5a"),
        _find("bert_base", name="ffn1"),
        _find("alexnet", name="fc6"),
        *extra(),
    ]
    f64 = [
        replace(v, dtype="float64") for v in (_find(r50, c=64, kernel=(3, 3)), _find(r50, c=1024, k=256, kernel=(1, 1)))
    ]
    backward: list[Layer] = [
        replace(v, direction="backward")
        for v in (
            _find(r50, c=64, kernel=(3, 3)),
            _find(r50, c=256, kernel=(3, 3), stride=(1, 1)),
            _find(r50, c=64, k=256, kernel=(1, 1)),
            _find(r50, c=128, kernel=(3, 3), stride=(2, 2)),
        )
    ]
    depthwise = [
        _find("mobilenet_v1", groups=32, size=(112, 112)),
        _find("mobilenet_v2", groups=96, stride=(2, 2)),
        _find("mobilenet_v2", groups=144, stride=(1, 1)),
        _find("mobilenet_v2", groups=192, stride=(1, 1)),
        _find("mobilenet_v1", groups=512, stride=(1, 1)),
        _find("mobilenet_v2", groups=576, stride=(2, 2)),
        _find("mobilenet_v2", groups=960),
        _find("efficientnet_b0", groups=240, kernel=(5, 5)),
        _find("efficientnet_b0", groups=672, kernel=(5, 5), stride=(2, 2)),
        _find("convnext_t", groups=96),
        _find("convnext_t", groups=384),
        _find("convnext_t", groups=768),
    ]
    depthwise_backward = [replace(depthwise[i], direction="backward") for i in (0, 1, 3, 5, 7, 9)]
    layers = _unique([*forward, *depthwise, *f64, *backward, *depthwise_backward])
    return tuple(v for v in layers if isinstance(v, Layer))


# ------------------------------------------------------------------------------------------------------ seeded layers

SEEDED = 200
# Large enough for a call to be more than its overhead, small enough for all of them to be measured in minutes.
SEEDED_FLOP = (100_000, 300_000_000)
_SEED = 20_260_101

# Their cost is drawn first, as one of these ranges: products of sizes would gather at the upper end.
_BANDS: tuple[Ints, ...] = (
    (SEEDED_FLOP[0], 1_000_000),
    *3 * ((1_000_000, 10_000_000),),
    *4 * ((10_000_000, 100_000_000),),
    *2 * ((100_000_000, SEEDED_FLOP[1]),),
)
# The kinds take turns, so that any twenty layers in a row have all of them.
_KINDS = (
    *("3x3", "1x1", "3x3 strided", "1-D", "asymmetric", "3x3", "1x1", "linear", "5x5", "dilated"),
    *("3x3", "grouped", "3x3 strided", "1-D", "7x7", "3x3", "1x1", "transposed", "asymmetric", "3-D"),
)
_KERNELS: dict[str, tuple[Ints, ...]] = {
    "1x1": ((1, 1),),
    "3x3": ((3, 3),),
    "3x3 strided": ((3, 3),),
    "5x5": ((5, 5),),
    "7x7": ((7, 7),),
    "asymmetric": ((1, 3), (3, 1), (1, 5), (5, 1), (1, 7), (7, 1), (3, 5), (2, 3), (4, 2)),
    "dilated": ((3, 3), (3, 3), (5, 5), (2, 3)),
    "grouped": ((1, 1), (3, 3), (3, 3), (5, 5)),
    "transposed": ((2,), (4,), (8,), (2, 2), (3, 3), (4, 4), (5, 5), (3, 4)),
    "1-D": ((1,), (2,), (3,), (5,), (7,), (9,), (15,), (31,)),
    "3-D": ((1, 1, 1), (3, 3, 3), (1, 3, 3), (3, 1, 1), (2, 2, 2), (3, 5, 5)),
}
_STRIDES: dict[str, tuple[Ints, ...]] = {
    "1x1": ((1, 1), (1, 1), (1, 1), (2, 2)),
    "3x3 strided": ((2, 2), (2, 2), (3, 3), (2, 1), (1, 2)),
    "5x5": ((1, 1), (2, 2)),
    "7x7": ((1, 1), (2, 2)),
    "asymmetric": ((1, 1), (1, 1), (2, 1), (2, 2)),
    "grouped": ((1, 1), (1, 1), (2, 2)),
    "1-D": ((1,), (1,), (2,), (4,)),
    "3-D": ((1, 1, 1), (1, 1, 1), (2, 2, 2), (1, 2, 2)),
}
_SIDES = (7, 7, 7, 8, 10, 12, 13, 14, 14, 14, 15, 17, 19, 20, 24, 26, 28, 32, 35, 38, 40, 48, 52, 56, 64, 80, 96, 112)
_LENGTHS = (49, 64, 100, 128, 199, 250, 300, 400, 512, 777, 1000, 1500, 2048, 4000)
_DEPTHS = (4, 5, 7, 8, 10, 12, 14, 16)
_ROUND = (8, 16, 16, 24, 32, 32, 40, 48, 64, 64, 80, 96, 112, 128, 128, 160, 192, 256, 256, 320, 384, 512, 768, 1024)


class _Dice:
    """Draws that are the same for ever: NumPy keeps the words of PCG64, but not what a Generator makes of them."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        return int(self._bits.random_raw()) * n >> 64

    def pick(self, values: Sequence[Any]) -> Any:
        """One of them; one that is there twice comes twice as often."""
        return values[self.below(len(values))]

    def channels(self, most: int) -> int:
        """A count as networks have them or, as often, any: a pruned network's."""
        if self.below(2):
            return int(self.pick([v for v in _ROUND if v <= most]))
        return 3 + self.below(min(most, self.pick((32, 128, 384, most))) - 2)


def _shape_of(layer: Layer) -> Layer:
    """What makes a layer another one; batch, dtype and direction do not."""
    return replace(layer, net="", name="", n=0, direction="forward", dtype="float32")


def seeded(count: int = SEEDED, seed: int = _SEED) -> tuple[Layer, ...]:
    """Layers that networks could have and no table holds: shapes that nothing here was tuned on.

    Each is drawn from words of its own, so that a longer list begins with the shorter one, and a new row in a table
    changes the layer that it equals and no other.
    """
    taken = {_shape_of(layer) for layer in (*tables(), *quick())}
    layers = []
    for i in range(count):
        dice = _Dice(seed, i)
        low, high = dice.pick(_BANDS)
        while True:
            layer = _drawn(dice, _KINDS[i % len(_KINDS)], f"{i:03d}")
            # A photograph would be data that depends on what is installed.
            possible = min(layer.out_size, default=1) >= 1 and not layer.photograph
            if possible and low <= layer.flops < high and _shape_of(layer) not in taken:
                break
        taken.add(_shape_of(layer))
        layers.append(layer)
    return tuple(layers)


def _drawn(dice: _Dice, kind: str, name: str) -> Layer:
    dtype = dice.pick(("float64",) + 7 * ("float32",))
    if kind == "linear":
        rows = dice.pick((1, 1, 2, 3, 4, 16, 49, 64, 128))
        return Layer("linear", "seeded", name, rows, dice.channels(2048), dice.channels(2048), dtype=dtype)
    direction = dice.pick(("backward",) + 5 * ("forward",))
    kernel: Ints = dice.pick(_KERNELS[kind])
    rank = len(kernel)
    stride: Ints = dice.pick(_STRIDES.get(kind, ((1,) * rank,)))
    dilation = (1,) * rank
    if kind == "dilated":
        dilation = (dice.pick((2, 2, 3, 4, 6)),) * rank
    elif kind == "1-D":
        dilation = (dice.pick((1, 1, 1, 2, 4, 8)),)
    if rank == 1:
        size: Ints = (dice.pick(_LENGTHS),)
    else:
        height = dice.pick(_SIDES)
        width = dice.pick(_SIDES) if dice.below(4) == 0 else height
        size = (*(dice.pick(_DEPTHS) for _ in range(rank - 2)), height, width)
    # "Same" for odd kernels, one less for even ones.
    padded = dice.below(6) > 0
    padding = tuple(d * (r - 1) // 2 if padded else 0 for d, r in zip(dilation, kernel, strict=True))
    output_padding = (0,) * rank
    if kind == "transposed":
        step = dice.pick((1, 2, 2, 2, 3))
        stride = (step,) * rank
        padding = tuple(max(0, r - step + 1) // 2 for r in kernel)
        output_padding = (dice.below(step) if dice.below(4) == 0 else 0,) * rank
    groups = 2 + dice.below(7) if kind == "grouped" else 1
    c, k = (groups * dice.channels(1024 // groups) for _ in range(2))
    transposed = "_transpose" if kind == "transposed" else ""
    return Layer(
        f"conv{transposed}{rank}d",
        "seeded",
        name,
        dice.pick((1, 1, 1, 1, 2, 3, 4)),
        c,
        k,
        size,
        kernel,
        stride,
        padding,
        dilation,
        output_padding,
        groups,
        direction,
        dtype,
    )


# ------------------------------------------------------------------------------------------------------------- choice


Case = Layer | Operation | Network


def networks() -> list[str]:
    """The names that --net takes."""
    return sorted({layer.net for layer in _listed()} | operations.networks() | {v.net for v in whole.everything()})


def _network(net: str) -> tuple[Case, ...]:
    # Without its version a name means the current one: ResNet-50 as it is trained today strides in its 3x3 layers.
    full = "resnet50_v1.5" if net == "resnet50" else net
    rows: tuple[Case, ...] = (*_listed(), *operations.listed(), *whole.everything())
    exact = [v for v in rows if v.net in (full, net)]
    chosen = exact or [v for v in rows if v.net.split("_")[0] == full or v.net.startswith(f"{full}_")]
    if not chosen:
        raise ValueError(f"--net (={net!r}) must be one of {', '.join(networks())}")
    layers = _distinct([v for v in chosen if isinstance(v, Layer)])
    return (*layers, *(v for v in chosen if not isinstance(v, Layer)))


def select(
    *,
    net: str | None = None,
    everything: bool = False,
    drawn: int | None = None,
    op: str | None = None,
    dtype: str | None = None,
    max_gflop: float = MAX_GFLOP,
) -> tuple[list[Case], list[Case]]:
    """The cases of a run, and those left out because they are too large.

    Without arguments the quick subset; with `net` every shape of that network, and itself; with `everything` all; with
    `drawn` so many of `seeded`, besides those where both are asked for. `op`, one of OPS or some with commas between,
    and `dtype` narrow any of them: "backward" takes the convolutions of the choice, backward.
    """
    sources: list[tuple[Case, ...]] = []
    if net is not None:
        sources.append(_network(net))
    elif everything:
        sources.append((*tables(), *operations.everything(), *whole.everything()))
    if drawn is not None:
        sources.append(seeded(drawn))
    explicit = bool(sources)
    names = [None] if op is None else op.split(",")
    for name in names:
        if name is not None and name not in OPS:
            raise ValueError(f"--op (={name!r}) must be of {', '.join(OPS)}, commas between")
    others: tuple[Case, ...] = (*operations.everything(), *whole.everything())
    quickly: tuple[Case, ...] = (*quick(), *(v for v in others if not isinstance(v, Layer) and v.quick))
    chosen = [
        v for name in names for source in sources or [quickly] for v in _narrowed(list(source), name, dtype, explicit)
    ]
    small = [v for v in chosen if v.flops <= max_gflop * 1e9]
    return _unique(small), [v for v in chosen if v.flops > max_gflop * 1e9]


def _narrowed(chosen: list[Case], op: str | None, dtype: str | None, explicit: bool) -> list[Case]:
    if op == "backward":
        layers = [v for v in chosen if isinstance(v, Layer)]
        narrowed = [v for v in layers if v.direction == "backward"]
        # The tables hold forward layers alone.
        chosen = list(narrowed or [replace(v, direction="backward") for v in layers if v.op != "linear"])
    elif op == "depthwise":
        chosen = [v for v in chosen if v.depthwise]
    elif op in operations.KINDS:
        # The quick subset has a few of each kind: asked for by name, the kind comes whole.
        rows = chosen if explicit else operations.everything()
        chosen = [v for v in rows if isinstance(v, Operation) and v.kind == op]
    elif op in whole.KINDS:
        networks = chosen if explicit else [v for v in whole.everything() if v.usual]
        chosen = [v for v in networks if isinstance(v, Network) and v.kind == op]
    elif op not in (None, "all"):
        # "conv_transpose" is 1-D and 2-D.
        kept = [v for v in chosen if isinstance(v, Layer) and v.op.startswith(str(op))]
        if not kept and not explicit:
            # The quick subset has few of the rarer operations: take their table instead.
            kept = [v for v in tables() if v.op.startswith(str(op))]
        chosen = list(kept)
    if dtype is not None:
        same = [v for v in chosen if v.dtype == dtype]
        other = [replace(v, dtype=dtype) for v in chosen if v.dtype != dtype]
        chosen = same + [v for v in other if v not in same]
    return chosen


# --------------------------------------------------------------------------------------------------------------- data


@cache
def photographs() -> tuple[tuple[str, Array], ...]:
    """The photographs that ship in scikit-learn, (H, W, 3) of uint8; empty where it is not installed."""
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        return ()
    return tuple((name, np.asarray(load_sample_image(name))) for name in ("china.jpg", "flower.jpg"))


def picture(size: Ints, n: int, dtype: str) -> tuple[Array, str] | None:
    """Photographs as the network would see them: scaled, cropped at the middle, normalised, (N, 3, H, W)."""
    pictures = photographs()
    try:
        from PIL import Image
    except ImportError:
        return None
    if not pictures:
        return None
    height, width = size
    planes, names = [], []
    for i in range(n):
        name, pixels = pictures[i % len(pictures)]
        image = Image.fromarray(pixels)
        factor = max(height / image.height, width / image.width)
        size_now = (math.ceil(image.width * factor), math.ceil(image.height * factor))
        scaled = image.resize(size_now, Image.Resampling.BILINEAR)
        left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
        planes.append(np.asarray(scaled.crop((left, top, left + width, top + height)), np.float64) / 255)
        names.append(name)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normal = (np.stack(planes) - mean) / deviation
    source = "photograph " + ", ".join(dict.fromkeys(names))
    return np.ascontiguousarray(np.moveaxis(normal, -1, 1), dtype=dtype), source


def data(layer: Case) -> tuple[dict[str, Array], str]:
    """The operands of a case, channels first (of a layer x, w and, backward, dy), and where x comes from.

    Everything else is seeded by the layer's name, so that a run can be repeated. Weights have He's scale, so that
    outputs have the scale of inputs; no value is zero or denormal.
    """
    if isinstance(layer, Operation):
        return operations.data(layer)
    if isinstance(layer, Network):
        return whole.data(layer)
    rng = np.random.default_rng(zlib.crc32(f"{layer.net}/{layer.name}".encode()))

    def normal(shape: Ints, scale: float) -> Array:
        a = rng.standard_normal(shape, dtype=np.float32).astype(layer.dtype, copy=False)
        a *= a.dtype.type(scale)
        # A normal deviate can be arbitrarily near zero; its square times a weight must stay a normal number.
        np.copyto(a, a.dtype.type(scale * 1e-4), where=np.abs(a) < scale * 1e-4)
        return a

    fan_in = math.prod(layer.w_shape[1:])
    if layer.transposed:
        fan_in = layer.c // layer.groups * max(1, math.prod(layer.kernel) // math.prod(layer.stride))
    pixels = picture((layer.size[0], layer.size[1]), layer.n, layer.dtype) if layer.photograph else None
    x, source = pixels if pixels is not None else (normal(layer.x_shape, 1.0), "seeded normal")
    arrays = {"x": x, "w": normal(layer.w_shape, math.sqrt(2 / fan_in))}
    if layer.direction == "backward":
        arrays["dy"] = normal(layer.y_shape, 1.0)
    return arrays, source
