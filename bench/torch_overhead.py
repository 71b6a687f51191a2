"""What the operators of `fastconv.integrations.torch` add to a call, in microseconds.

    python bench/torch_overhead.py [--repeats 500]

The layers are so small that a call is nearly all of its time. Of each:

    bare      `fastconv`'s function of NumPy arrays
    operator  the function of `fastconv.integrations.torch`, in torch.inference_mode(), of parameters
    adds      operator - bare
    module    the module of that operator, likewise
    PyTorch   its own function, likewise
    recorded  the operator while gradients are recorded

A time is the fastest of so many runs of 20 calls, all taking turns, so that what else the machine does is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import fastconv
from fastconv.integrations.torch import modules, ops

CALLS = 20


class Layer(NamedTuple):
    """A function by its name, the shapes of its operands, its options, and the module that does the same."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict[str, Any]
    module: torch.nn.Module


X, Y = (1, 8, 6, 6), (1, 8, 36)
LAYERS = (
    Layer("conv1d", (Y, (8, 8, 3), (8,)), {"padding": 1}, modules.Conv1d(8, 8, 3, padding=1)),
    Layer("conv2d", (X, (8, 8, 3, 3), (8,)), {"padding": 1}, modules.Conv2d(8, 8, 3, padding=1)),
    Layer("conv2d", (X, (8, 1, 3, 3)), {"groups": 8}, modules.Conv2d(8, 8, 3, groups=8, bias=False)),
    Layer("conv_transpose2d", (X, (8, 8, 2, 2)), {"stride": 2}, modules.ConvTranspose2d(8, 8, 2, 2, bias=False)),
    Layer("separable_conv2d", (X, (8, 1, 3, 3), (8, 8, 1, 1)), {}, modules.SeparableConv2d(8, 8, 3, bias=False)),
    Layer("max_pool2d", (X,), {"kernel_size": 2}, modules.MaxPool2d(2)),
    Layer("avg_pool2d", (X,), {"kernel_size": 2}, modules.AvgPool2d(2)),
    Layer("adaptive_avg_pool2d", (X,), {"output_size": 1}, modules.AdaptiveAvgPool2d(1)),
    Layer("batch_norm", (X, (8,), (8,), (8,), (8,)), {}, modules.BatchNorm2d(8).eval()),
)


def measured(layer: Layer, repeats: int) -> dict[str, float]:
    """Microseconds of a call, in each of its ways."""
    rng = np.random.default_rng(0)
    arrays = [rng.random(shape, np.float32) + 0.5 for shape in layer.shapes]
    leaves = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays]
    if layer.name == "batch_norm":  # its running statistics are no parameters
        leaves[1:3] = [p.detach() for p in leaves[1:3]]

    def calling(function: Any, operands: Any) -> Callable[[], Any]:
        return lambda: function(*operands, **layer.options)

    operator = calling(getattr(ops, layer.name), leaves)
    inferred: dict[str, Callable[[], Any]] = {
        "bare": calling(getattr(fastconv, layer.name), arrays),
        "operator": operator,
        "module": lambda: layer.module(leaves[0]),
    }
    if theirs := getattr(torch.nn.functional, layer.name, None):
        inferred["PyTorch"] = calling(theirs, leaves)
    best = dict.fromkeys((*inferred, "recorded"), float("inf"))

    def run(name: str, call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best[name] = min(best[name], 1e6 * (time.perf_counter() - start) / CALLS)

    for _ in range(repeats):
        with torch.inference_mode():
            for name, call in inferred.items():
                run(name, call)
        run("recorded", operator)
    return best | {"adds": best["operator"] - best["bare"]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What the operators of fastconv.integrations.torch add to a call.")
    parser.add_argument("--repeats", type=int, default=500, help="runs of 20 calls")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    fastconv.set_num_threads(1)
    columns = ("bare", "operator", "adds", "module", "PyTorch", "recorded")
    print(f"{'us a call':26}" + "".join(f"{c:>10}" for c in columns))
    for layer in LAYERS:
        times = measured(layer, repeats)
        cells = (f"{times[c]:10.1f}" if c in times else f"{'-':>10}" for c in columns)
        note = " depthwise" if "groups" in layer.options else ""
        print(f"{layer.name + note:26}" + "".join(cells))


if __name__ == "__main__":
    main()
