"""The benchmark's memory-bound operations: pooling, norms, elementwise functions; and separable layers.

A case is a call of `fastconv.functional` by name. Its arguments are JSON, in which "@x" stands for the array x, so that
the same case runs on the reference and in every contender's process.
"""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastconv import reference
from fastconv.bench import timing
from fastconv.bench.calls import arguments_of, results_of

Array = npt.NDArray[Any]
Ints = tuple[int, ...]
Kind = Literal["separable", "pool", "batch_norm", "norm", "elementwise"]
FILTERS = ("dw", "pw", "we")
KINDS: tuple[Kind, ...] = ("separable", "pool", "batch_norm", "norm", "elementwise")

# Errors in units of eps times the largest element of the reference's result. The tests hold the bounds element by
# element; here a wrong result or a lower precision (bfloat16: 60,000, TF32: 8,000 units) must not be timed.
_OURS, _PEERS = 256.0, 2000.0


@dataclass(frozen=True)
class Operation:
    """One call of `fastconv.functional` on arrays of a given shape."""

    kind: Kind
    op: str
    net: str
    name: str
    shape: Ints
    """Of x; channels first where it is an image."""
    arguments: tuple[Any, ...] = ("@x",)
    options: tuple[tuple[str, Any], ...] = ()
    direction: Literal["forward", "backward"] = "forward"
    dtype: str = "float32"
    filters: tuple[Ints, ...] = ()
    """Of a separable layer: the shapes of its depthwise and pointwise weights, and of the expansion before them."""
    quick: bool = False
    """Whether the default subset has it."""

    # What a Layer has too.
    photograph = False
    tile_only = False
    depthwise = False

    @property
    def image(self) -> bool:
        """Whether x has channels and pixels, and so two layouts."""
        return self.op not in ("layer_norm", "layer_norm_backward", "add") and (
            self.kind != "elementwise" or ("softmax" in self.op and len(self.shape) > 2)
        )

    @property
    def forward(self) -> str:
        """The name of the forward call."""
        return self.op.removesuffix("_backward").removesuffix("_train")

    @cached_property
    def y_shape(self) -> Ints:
        """The shape of the result, channels first where it is an image."""
        if self.kind == "separable":
            options = dict(self.options)
            return (
                self.shape[0],
                self.filters[1][0],
                *(
                    (h + 2 * p - r) // s + 1
                    for h, p, r, s in zip(
                        self.shape[2:], options["padding"], self.filters[0][2:], options["stride"], strict=True
                    )
                ),
            )
        if self.kind == "pool":
            if "global" in self.op:
                return (*self.shape[:2], *(1 for _ in self.shape[2:]))
            options, kernel = dict(self.options), self.arguments[-1]
            return (
                *self.shape[:2],
                *(
                    (h + 2 * p - r) // s + 1
                    for h, p, r, s in zip(self.shape[2:], options["padding"], kernel, options["stride"], strict=True)
                ),
            )
        return self.shape

    @property
    def flops(self) -> int:
        """Multiplications and additions of a separable layer. The others count none: memory bounds them."""
        if self.kind != "separable":
            return 0
        products = math.prod(self.y_shape[2:]) * sum(math.prod(f) for f in self.filters[:2])
        products += math.prod(self.shape[2:]) * sum(math.prod(f) for f in self.filters[2:])
        return 2 * self.shape[0] * products * (2 if self.direction == "backward" else 1)

    @property
    def bytes(self) -> int:
        """The fewest bytes that the operation moves.

        Batch statistics take a second read where a cache line's channels of the batch exceed the second-level cache.
        """
        x, y = math.prod(self.shape), math.prod(self.y_shape)
        size = np.dtype(self.dtype).itemsize
        if self.kind == "separable":
            weights = sum(math.prod(f) for f in self.filters)
            return size * (2 * x + y + 2 * weights if self.direction == "backward" else x + y + weights)
        if self.direction == "backward":
            if self.op == "max_pool2d_backward" or self.kind in ("norm", "batch_norm"):
                return size * (2 * x + y)
            # The gradient of a mean reads dy alone; softmax and the activations read x or y besides.
            return size * (x + y) if self.kind == "pool" else size * 3 * x
        if self.op == "batch_norm_train":
            block = 64 * x // self.shape[1]
            return size * (3 if block > timing.cache_bytes().get("L2", 0) else 2) * x
        return size * (2 * x + y if self.op == "add" else x + y)

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
        """The call in one short line, such as `max_pool2d 1x64x112x112 k3x3 s2`."""
        text = f"{self.op.removesuffix('_backward')} {_by(self.shape)}"
        options = dict(self.options)
        if self.kind == "separable":
            text += f" > {self.filters[1][0]} k{_by(self.filters[0][2:])}"
        elif self.kind == "pool" and "global" not in self.op:
            text += f" k{_by(self.arguments[-1])}"
        if set(options.get("stride", (1,))) != {1}:
            text += f" s{options['stride'][0]}"
        return text

    def family(self, memory_bound: bool) -> str:
        """The family that the operation is reported in."""
        name = self.kind.replace("_", " ")
        if self.op == "batch_norm_train":
            return f"{name} training"
        return f"{name} backward" if self.direction == "backward" else name

    def as_dict(self, layouts: Sequence[str]) -> dict[str, Any]:
        """What a worker is told."""
        return {
            "kind": self.kind,
            "op": self.op,
            "forward": self.forward,
            "rank": max(len(self.shape) - 2, 0),
            "n": self.shape[0],
            "c": self.shape[1],
            "x_shape": list(self.shape),
            "y_shape": list(self.y_shape),
            "arguments": [list(a) if isinstance(a, tuple) else a for a in self.arguments],
            "options": {k: list(v) if isinstance(v, tuple) else v for k, v in self.options},
            "direction": self.direction,
            "dtype": self.dtype,
            "image": self.image,
            "layouts": list(layouts if self.image else layouts[:1]),
        }


def _by(values: Sequence[int]) -> str:
    return "x".join(str(v) for v in values)


# --------------------------------------------------------------------------------------------------------------- data


def data(operation: Operation) -> tuple[dict[str, Array], str]:
    """The arrays of a case, channels first, seeded by its name; no value is zero or denormal."""
    rng = np.random.default_rng(zlib.crc32(operation.id.encode()))
    names = [a[1:] for a in operation.arguments if isinstance(a, str) and a.startswith("@")]
    channels = operation.shape[1] if operation.image else operation.shape[-1]

    def normal(shape: Ints, scale: float = 1.0) -> Array:
        a = rng.standard_normal(shape, dtype=np.float32).astype(operation.dtype, copy=False) * scale
        np.copyto(a, scale * 1e-4, where=np.abs(a) < scale * 1e-4)
        return a.astype(operation.dtype, copy=False)

    arrays: dict[str, Array] = {}
    for name in names:
        if name == "weight":
            arrays[name] = 1 + normal((channels,), 0.1)
        elif name in ("bias", "mean"):
            arrays[name] = normal((channels,), 0.1)
        elif name in ("var", "inv_std"):
            arrays[name] = 1 + np.abs(normal((channels,), 0.1))
        elif name in FILTERS:
            shape = operation.filters[FILTERS.index(name)]
            arrays[name] = normal(shape, math.sqrt(2 / math.prod(shape[1:])))
        elif name == "dy":
            arrays[name] = normal(operation.y_shape)
        elif name == "y":
            # Of softmax: positive, and of sum 1.
            arrays[name] = np.asarray(reference.softmax(normal(operation.shape), operation.arguments[-1]))
        else:
            arrays[name] = normal(operation.shape)
    if "inv_std" in arrays:
        # Those of x itself: JAX computes them again.
        axes = (0, *range(2, arrays["x"].ndim))
        arrays["mean"] = arrays["x"].mean(axes, dtype=np.float64).astype(operation.dtype)
        arrays["inv_std"] = ((arrays["x"].var(axes, dtype=np.float64) + 1e-5) ** -0.5).astype(operation.dtype)
    return arrays, "seeded normal"


class Expected:
    """The oracle's results for an operation, and the test that a contender must pass before it is timed."""

    constant = _OURS

    def __init__(self, operation: Operation, arrays: Mapping[str, Array]) -> None:
        double = {name: a.astype(np.float64) for name, a in arrays.items()}
        options = {k: v for k, v in operation.options if k != "algorithm"}
        call = getattr(reference, operation.op)
        arguments = arguments_of(list(operation.arguments), double)
        self.results: list[Array] = results_of(call(*arguments, **options))
        self.dtype = np.dtype(operation.dtype)

    def check(self, results: Sequence[Array], ours: bool) -> float:
        """The largest error in units of eps * the largest element; WrongResult where it is too large.

        A peer need not give every result: those of the first ones are compared.
        """
        if not results or (ours and len(results) != len(self.results)):
            raise WrongResult(f"{len(results)} results instead of {len(self.results)}")
        worst = 0.0
        for y, value in zip(results, self.results, strict=False):
            worst = max(worst, self.error(y, value, _OURS if ours else _PEERS))
        return worst

    def error(self, y: Array, value: Array, bound: float) -> float:
        """The error of one result; WrongResult where it is above the bound."""
        if y.shape != value.shape:
            raise WrongResult(f"shape {y.shape} instead of {value.shape}")
        if y.dtype != self.dtype:
            raise WrongResult(f"dtype {y.dtype} instead of {self.dtype}")
        error = float(np.max(np.abs(y - value), initial=0.0))
        unit = float(np.finfo(self.dtype).eps) * float(np.max(np.abs(value), initial=0.0))
        units = error / unit if np.isfinite(error) else float("inf")
        if not units <= bound:
            raise WrongResult(f"the error is {units:.3g} times eps * max |y|")
        return units


class WrongResult(Exception):
    """A contender's result is not what the reference says."""


# -------------------------------------------------------------------------------------------------------------- cases


def _windows(rank: int, kernel: int, stride: int, pad: int) -> tuple[Ints, tuple[tuple[str, Any], ...]]:
    return (kernel,) * rank, (("stride", (stride,) * rank), ("padding", (pad,) * rank))


def _pool(net: str, name: str, shape: Ints, kind: str, r: int, s: int, pad: int, **others: Any) -> Operation:
    rank = len(shape) - 2
    if kind == "avg" and set(shape[2:]) == {r}:
        return Operation("pool", f"global_avg_pool{rank}d", net, name, shape, **others)
    kernel, options = _windows(rank, r, s, pad)
    return Operation("pool", f"{kind}_pool{rank}d", net, name, shape, ("@x", kernel), options, **others)


def _backward(operation: Operation) -> Operation:
    """The gradient of a case, with respect to all that the call has gradients for."""
    op, arguments = f"{operation.op}_backward", operation.arguments
    if "global" in op:
        arguments = ("@dy", operation.shape)
    elif operation.kind == "pool" and "avg" in op:
        arguments = ("@dy", operation.shape, arguments[-1])
    elif "softmax" in op:
        arguments = ("@dy", "@y", *arguments[1:])
    elif operation.op == "batch_norm_train":
        op, arguments = "batch_norm_backward", ("@dy", "@x", "@weight", "@mean", "@inv_std")
    else:
        arguments = ("@dy", *(a for a in arguments if a != "@bias"))
    return replace(operation, op=op, arguments=arguments, direction="backward")


def _separable(net: str, name: str, c: int, k: int, h: int, s: int = 1, r: int = 3, **others: Any) -> Operation:
    _, options = _windows(2, r, s, r // 2)
    filters: tuple[Ints, ...] = ((c, 1, r, r), (k, c, 1, 1))
    call = ("@x", "@dw", "@pw")
    return Operation("separable", "separable_conv2d", net, name, (1, c, h, h), call, options, filters=filters, **others)


def _inverted(name: str, c: int, e: int, k: int, h: int, s: int = 1, r: int = 3, **others: Any) -> Operation:
    _, options = _windows(2, r, s, r // 2)
    filters: tuple[Ints, ...] = ((e, 1, r, r), (k, e, 1, 1), (e, c, 1, 1))
    call = ("@x", "@we", "@dw", "@pw")
    net = "mobilenet_v2" if r == 3 else "efficientnet_b0"
    return Operation(
        "separable", "inverted_residual", net, name, (1, c, h, h), call, options, filters=filters, **others
    )


@cache
def listed() -> tuple[Operation, ...]:
    """The pooling layers of the table, forward in float32."""
    source = resources.files("fastconv.bench") / "shapes" / "pool.csv"
    quick = {("resnet50", "maxpool"), ("resnet50", "gap"), ("inception_v3", "avg_c288"), ("vgg16", "pool2")}
    rows = []
    for row in csv.DictReader(source.read_text(encoding="utf-8").splitlines()):
        shape = tuple(int(row[key]) for key in ("n", "c", "h", "w"))
        r, s, pad = (int(row[key]) for key in ("r", "stride", "pad"))
        name = (row["net"], row["layer"])
        rows.append(_pool(*name, shape, row["kind"], r, s, pad, quick=name in quick))
    return tuple(rows)


@cache
def everything() -> tuple[Operation, ...]:
    """Every case: those of the table, and for each kind the shapes of networks that have it."""
    pools = list(listed())
    pools += [
        _pool("c3d", "pool2", (1, 128, 16, 56, 56), "max", 2, 2, 0),
        _pool("audio", "max k4", (1, 64, 16000), "max", 4, 4, 0),
        _pool("audio", "avg k3 s1", (1, 64, 16000), "avg", 3, 1, 1),
    ]
    with_gradient = {("resnet50", "maxpool"), ("vgg16", "pool2"), ("googlenet_v1", "inner_c192"), ("resnet50", "gap")}
    with_gradient |= {("inception_v3", "avg_c288"), ("densenet121", "trans_c128")}
    pools += [_backward(v) for v in pools if (v.net, v.name) in with_gradient]

    norms = []
    images: list[tuple[str, Ints]] = [
        ("64@112", (1, 64, 112, 112)),
        ("256@56", (1, 256, 56, 56)),
        ("128@28 n8", (8, 128, 28, 28)),
        ("512@14 n8", (8, 512, 14, 14)),
        ("64@56 n8", (8, 64, 56, 56)),
    ]
    statistics = ("@x", "@mean", "@var", "@weight", "@bias")
    for name, shape in images:
        quick = name in ("256@56", "64@56 n8")
        train = Operation("batch_norm", "batch_norm_train", "resnet50", f"train {name}", shape, statistics, quick=quick)
        norms.append(replace(train, op="batch_norm", name=f"infer {name}"))
        norms += [train, replace(_backward(train), name=f"bn {name}")]
    affine = ("@weight", "@bias")
    forward = [
        Operation("norm", "group_norm", "diffusion", "group 256@56", images[1][1], ("@x", 32, *affine), quick=True),
        Operation("norm", "group_norm", "diffusion", "group 512@14 n8", images[3][1], ("@x", 32, *affine)),
        Operation("norm", "instance_norm", "style", "instance 64@112", images[0][1], ("@x", *affine)),
        Operation("norm", "layer_norm", "vit_b16", "layer 8x197x768", (1576, 768), ("@x", 768, *affine), quick=True),
        Operation("norm", "layer_norm", "bert_base", "layer 128x768", (128, 768), ("@x", 768, *affine)),
        Operation("norm", "layer_norm_channels", "convnext_t", "channels 96@56 n4", (4, 96, 56, 56), ("@x", *affine)),
        Operation("norm", "layer_norm_channels", "convnext_t", "channels 384@14 n8", (8, 384, 14, 14), ("@x", *affine)),
        Operation("norm", "local_response_norm", "alexnet", "lrn 96@55", (1, 96, 55, 55), ("@x", 5)),
    ]
    norms += [*forward, *(_backward(v) for v in forward)]

    big = (1, 64, 112, 112)
    maps = [
        Operation("elementwise", name, "maps", f"{name} 64@112", big, quick=name in ("relu", "gelu"))
        for name in ("relu", "relu6", "silu", "hardswish", "sigmoid", "tanh", "gelu")
    ]
    maps += [
        Operation("elementwise", "add", "maps", "add 64@112", big, ("@x", "@other")),
        Operation("elementwise", "softmax", "attention", "softmax 12x197x197", (2364, 197), ("@x", -1), quick=True),
        Operation("elementwise", "softmax", "classes", "softmax 1024x1000", (1024, 1000), ("@x", -1)),
        Operation("elementwise", "log_softmax", "classes", "log_softmax 1024x1000", (1024, 1000), ("@x", -1)),
    ]
    maps += [_backward(v) for v in maps if v.op in ("relu", "silu", "gelu", "softmax")]

    separable = [
        _separable("mobilenet_v1", "block1", 32, 64, 112, quick=True),
        _separable("mobilenet_v1", "block2", 64, 128, 112, 2),
        _separable("mobilenet_v1", "block3", 128, 128, 56, quick=True),
        _separable("mobilenet_v1", "block5", 256, 256, 28),
        _separable("mobilenet_v1", "block7", 512, 512, 14, quick=True),
        _separable("mobilenet_v1", "block13", 1024, 1024, 7),
        _separable("xception", "entry 128@147", 128, 128, 147),
        _separable("xception", "middle 728@19", 728, 728, 19),
        _separable("deeplabv3plus", "decoder 304@56", 304, 256, 56),
        _separable("efficientdet", "bifpn 64@64", 64, 64, 64),
    ]
    separable += [_backward(separable[i]) for i in (0, 2, 4)]
    separable += [
        _inverted("block 16@112 s2", 16, 96, 24, 112, 2),
        _inverted("block 24@56", 24, 144, 24, 56, quick=True),
        _inverted("block 32@28", 32, 192, 32, 28),
        _inverted("block 64@14", 64, 384, 64, 14, quick=True),
        _inverted("block 96@14", 96, 576, 96, 14),
        _inverted("block 160@7", 160, 960, 160, 7),
        _inverted("block 40@28 k5", 40, 240, 40, 28, 1, 5),
    ]
    # Networks share shapes: one measurement serves them all.
    cases: dict[Operation, Operation] = {}
    for case in (*separable, *pools, *norms, *maps):
        cases.setdefault(replace(case, net="", name="", quick=False), case)
    return tuple(cases.values())


def networks() -> set[str]:
    """The networks of the pooling table."""
    return {v.net for v in listed()}
