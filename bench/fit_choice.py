"""Fits the constants of the model that chooses among algorithms (csrc/ops/choose.cc) to accounts of it.

    python -m fastconv tune --seeded 700 --seed 77 --max-gflop 0.2 --report train.json
    python bench/fit_choice.py train.json [--judge bench/results/choice-....json]

Residuals are the logarithms of (time of a way / time of rows) that the model gets wrong, over all layers and ways; the
time of a way is the geometric mean of a plan's and a plain call's. The formulas are those of `dense_cost` and
`winograd_cost`, in steps of a vector's multiply-add. Layers of several products, and depthwise ones, are left out: what
phases cost apart, and where depthwise images are turned, was set by hand.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from fastconv import tuning

_LANES = {("avx512", "float32"): 16, ("avx512", "float64"): 8, ("avx2", "float32"): 8, ("avx2", "float64"): 4}
_BYTES = {"float32": 4, "float64": 8}
# As in choose.cc: DenseCost without `apart`, then the two PointCosts; `turn` of 4 x 4 is twice that of 2 x 2.
_NAMES = (
    "weights",
    "missed",
    "pixel",
    "result",
    "turn_in",
    "turn_out",
    "pack",
    "pack_row",
    "slab",
    "slab_row",
    "in_place",
    "store",
)
_POINTS = ("patch", "tile", "filter", "fill", "missed")
_START = (10, 2, 10, 5, 3, 10, 5, 8, 3, 17, 0.2, 9, 300, 145, 200, 2.7, 2, 960, 376, 180, 2.2, 50)
_L2 = 1 << 20  # of the machine that was measured
_GAIN = 0.95


@dataclass(frozen=True)
class Layer:
    """A layer of one product: its sizes and the times of its ways."""

    product: tuning.Product
    lanes: int
    times: dict[str, float]
    taken: str
    name: str


def read(path: Path) -> list[Layer]:
    """The dense layers of one product that have a choice."""
    document = json.loads(path.read_text(encoding="utf-8"))
    layers = []
    for row in document["rows"]:
        if len(row["products"]) != 1 or not row["times"]:
            continue
        product = tuning._product(document["isa"], row["dtype"], row["products"][0])
        if product.c == product.k == 1 or "rows" not in row["times"]:
            continue
        times = {way: math.exp(sum(map(math.log, forms.values())) / len(forms)) for way, forms in row["times"].items()}
        lanes = _LANES[document["isa"], row["dtype"]]
        layers.append(Layer(product, lanes, times, row["taken"], f"{row['id']} {row['shape']} {row['layout']}"))
    return layers


def cost(x: np.ndarray[Any, Any], layer: Layer, way: str) -> float:
    """What the model says of a way."""
    weights, missed, pixel, result, turn_in, turn_out, pack, pack_row, slab, slab_row, in_place, store = x[:12]
    p, lanes = layer.product, layer.lanes
    taps, pixels, strides = math.prod(p.kernel), math.prod(p.size), math.prod(p.stride)
    c, k, v = -(-p.c // lanes), -(-p.k // lanes), -(-pixels // lanes)
    rows = p.size[0] * p.size[1]

    def beyond(vectors: int) -> float:
        return max(0.0, 1 - 2 * _L2 / (vectors * lanes * _BYTES[p.dtype]))

    if way == "rows":
        turned = 0 if p.channels_last else turn_in * c * pixels * strides + turn_out * k * pixels
        return float(
            taps * p.c * k * (pixels + weights + missed * beyond(taps * p.c * k))
            + pixels * ((taps > 1) * pixel * c + result * k)
            + turned
        )
    if way == "columns":
        whole = taps * p.c * p.k * (v + in_place) + store * p.k * v
        if taps == 1 and strides == 1:
            return float(whole)
        packed = taps * p.c * (pack * v + pack_row * rows)
        return float(whole + packed + p.c * (slab * pixels * strides / lanes + slab_row * rows))
    outputs = 2 if way == "winograd2" else 4
    patch, tile, points, fill = x[12:16] if outputs == 2 else x[17:21]
    tiles = -(-p.size[1] // outputs) * -(-p.size[2] // outputs)
    turn = 0 if p.channels_last else x[21] * outputs / 2
    of = (outputs + 2) ** 2
    return float(
        of * p.c * k * (tiles + fill + x[16] * beyond(of * p.c * k))
        + points * p.c * k
        + tiles * (patch * c + (tile + turn) * k)
    )


def fit(layers: list[Layer]) -> np.ndarray[Any, Any]:
    """The constants."""

    def residuals(logs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x = np.exp(logs)
        return np.array(
            [
                math.log(cost(x, v, way) / cost(x, v, "rows")) - math.log(t / v.times["rows"])
                for v in layers
                for way, t in v.times.items()
                if way in ("columns", "winograd2", "winograd4")
            ]
        )

    # Some times are disturbed: they count less than by their squares.
    found = least_squares(residuals, np.log(_START), loss="soft_l1", f_scale=0.06, bounds=(np.log(1e-2), np.log(3e3)))
    return np.exp(found.x)


def judge(x: np.ndarray[Any, Any], layers: list[Layer]) -> str:
    """How often the model would take a way within 5 % of the fastest, and how often the library did."""
    losses: dict[str, list[float]] = {"model": [], "library": []}
    for v in layers:
        costs = {way: cost(x, v, way) for way in v.times if way != "fft"}
        direct = min((way for way in costs if way in ("rows", "columns")), key=costs.__getitem__)
        costs = {
            way: c if way == direct else c / _GAIN for way, c in costs.items() if way == direct or "winograd" in way
        }
        best = min(v.times.values())
        losses["model"].append(v.times[min(costs, key=costs.__getitem__)] / best)
        losses["library"].append(v.times.get(v.taken, math.inf) / best)
    parts = [
        f"{name} near {np.mean(np.array(of) <= 1.05):.1%}, 95th percentile +{np.quantile(of, 0.95) - 1:.0%}"
        for name, of in losses.items()
    ]
    return f"{len(layers)} layers: {'; '.join(parts)}"


def main() -> None:
    """Print the constants of each account, and how they do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("accounts", nargs="+", type=Path, help="of one instruction set")
    parser.add_argument("--judge", nargs="*", default=[], type=Path, help="accounts of other layers")
    arguments = parser.parse_args()
    x = fit([layer for path in arguments.accounts for layer in read(path)])
    for name, value in zip(_NAMES, x[:12], strict=True):
        print(f"{name:10} {value:.3g}")
    for outputs, values in ((2, x[12:17]), (4, [*x[17:21], x[16]])):
        text = ", ".join(f"{name} {value:.3g}" for name, value in zip(_POINTS, values, strict=True))
        print(f"points{outputs}    {text}, turn {x[21] * outputs / 2:.3g}")
    for path in (*arguments.accounts, *arguments.judge):
        print(f"{path}: {judge(x, read(path))}")


if __name__ == "__main__":
    main()
