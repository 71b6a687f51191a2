"""The choice among algorithms, measured: what `tune` writes down, and how often the model is right."""

from __future__ import annotations

import contextlib
import datetime
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import fastconv
from fastconv import functional, tuning
from fastconv.bench import cases, timing
from fastconv.bench.cases import Layer

Array = npt.NDArray[Any]
Row = dict[str, Any]
Document = dict[str, Any]

SCHEMA = "choice 1"
MODEL = "model"
FORMS = ("plan", "plain")
# A choice is right if it is so near the best one: below that, a second run would choose otherwise.
NEAR = 1.05
# The model's choice stays where what is measured gains less: it is within the noise.
_GAIN = 1.02
# Ways that are so much slower in two rounds are not timed again.
_HOPELESS = 1.8


@dataclass(frozen=True)
class Effort:
    """How much time a measurement takes."""

    rounds: int = 7
    """Every way is driven in turn this many times, and the best turn counts."""
    seconds: float = 0.005
    """Of each way and form in each round; one call at least."""


def call_of(layer: Layer, layout: str) -> tuple[str, list[Any], dict[str, Any]]:
    """The function, operands and options that run a layer; backward is the gradient of its input."""
    arrays, _ = cases.data(layer)
    last = layout == "NHWC" and layer.op != "linear"

    def turn(a: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(a, 1, -1) if last else a)

    options = layer.options()
    if layer.op != "linear":
        options["layout"] = layout
    if layer.direction == "forward":
        return layer.op, [turn(arrays["x"]), arrays["w"]], options
    shape = turn(arrays["x"]).shape
    operands = [turn(arrays["dy"]), arrays["w"]] + ([] if layer.op == "linear" else [shape])
    return f"{layer.op}_backward_input", operands, options


def ways_of(choices: Sequence[tuning.ProductChoice]) -> list[str]:
    """The ways that all products of a call admit."""
    return [
        way
        for way in tuning.WAYS
        if choices and all(any(c.way == way and c.obstacle is None for c in choice.candidates) for choice in choices)
    ]


def measure(layer: Layer, layout: str, effort: Effort) -> Row:
    """Time every way that a layer may be computed, by a plan and by plain calls, in turn."""
    op, operands, options = call_of(layer, layout)
    choices = tuning.products(op, *operands, **options)
    products = [choice.product for choice in choices]
    row: Row = {
        "id": layer.id,
        "shape": layer.describe(),
        "direction": layer.direction,
        "dtype": layer.dtype,
        "layout": layout if layer.op != "linear" else "",
        "flops": layer.flops,
        "products": [str(product) for product in products],
        "taken": choices[0].way if choices else "",
        "costs": {},
        "times": {},
    }
    ways = ways_of(choices)
    for way in ways:
        row["costs"][way] = round(sum(c.cost for choice in choices for c in choice.candidates if c.way == way))
    if len(ways) < 2:
        return row
    function: Callable[..., Any] = getattr(functional, op)
    if len({choice.way for choice in choices}) > 1:
        # The model has chosen a way for each of several products: a contender of its own.
        ways = [*ways, MODEL]
        row["taken"] = MODEL
    runs: list[tuple[str, str, Callable[[], Any]]] = []
    for way in ways:
        with _forced(way, products):
            out = function(*operands, **options)
            if layer.direction == "forward":
                plan = fastconv.plan(op, *operands, **options)
                runs.append((way, "plan", partial(plan, operands[0], out=out)))
        runs.append((way, "plain", partial(function, *operands, **options, out=out)))
    samples: dict[tuple[str, str], list[float]] = {(way, form): [] for way, form, _ in runs}
    hopeless: set[tuple[str, str]] = set()
    for turn in range(effort.rounds):
        # Another neighbour each time.
        for way, form, run in runs[turn % len(runs) :] + runs[: turn % len(runs)]:
            if (way, form) not in hopeless:
                with _forced(way, products):
                    samples[way, form].append(_sample(run, effort.seconds))
        if turn == 1:
            for form in FORMS:
                best = min((min(v) for (_, f), v in samples.items() if f == form), default=0.0)
                hopeless |= {k for k, v in samples.items() if k[1] == form and min(v) > _HOPELESS * best}
    for (way, form), values in samples.items():
        # Whatever else the machine does makes a turn slower, never faster.
        row["times"].setdefault(way, {})[form] = float(f"{min(values):.4g}")
    return row


def _forced(way: str, products: Sequence[tuning.Product]) -> AbstractContextManager[None]:
    return contextlib.nullcontext() if way == MODEL else tuning.forced(way, products)


def _sample(run: Callable[[], Any], seconds: float) -> float:
    """The median time of calls that take so long together."""
    # A single thread's own time: that other processes take of its core is no part of it.
    clock = time.thread_time if fastconv.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    run()
    once = clock() - begin
    if once > seconds:
        return once
    inner = max(1, int(2e-5 / max(once, 1e-9)))
    values: list[float] = []
    stop = clock() + seconds
    while not values or clock() < stop:
        begin = clock()
        for _ in range(inner):
            run()
        values.append((clock() - begin) / inner)
    return statistics.median(values)


# -------------------------------------------------------------------------------------------------------------- tuning


def score(times: dict[str, float]) -> float:
    """The geometric mean of the forms' times: one choice serves both."""
    return math.exp(statistics.fmean(math.log(t) for t in times.values()))


def best_way(row: Row) -> str:
    """The fastest way; the model's, unless another gains more than noise."""
    best = min(row["times"], key=lambda way: score(row["times"][way]))
    taken: str = row["taken"]
    near = score(row["times"][taken]) <= _GAIN * score(row["times"][best])
    return taken if near else str(best)


def entries_of(row: Row, products: Iterable[tuning.Product], threads: int) -> list[tuning.Entry]:
    """The lines of a tune file that a measurement makes, one a product."""
    best = best_way(row) if row["times"] else MODEL
    if best == MODEL:
        return []
    times = {
        way: (1e6 * forms.get("plan", forms["plain"]), 1e6 * forms["plain"])
        for way, forms in row["times"].items()
        if way != MODEL
    }
    return [tuning.Entry(tuning.cpu(), product, best, threads, times) for product in products]


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """A scope with so many threads on cores of their own."""
    import os

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, timing.choose_cores(threads))
    try:
        with fastconv.num_threads(threads):
            yield
    finally:
        os.sched_setaffinity(0, before)


# ------------------------------------------------------------------------------------------------- the model's account


def document(
    rows: list[Row], isa: str, threads: int, command: str, left_out: Sequence[str], effort: Effort
) -> Document:
    """A measurement of the model, as it is written to a file."""
    result: Document = {
        "schema": SCHEMA,
        "fastconv": fastconv.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": timing.machine(),
        "isa": isa,
        "threads": threads,
        "rounds": effort.rounds,
        "seconds_a_round": effort.seconds,
        "left_out": list(left_out),
        "rows": rows,
    }
    return result | {"summary": summary(rows)}


def losses(rows: Iterable[Row]) -> Iterator[tuple[Row, str, float]]:
    """(row, form, time of the model's choice over the best one) where there is a choice."""
    for row in rows:
        for form in FORMS:
            times = {way: forms[form] for way, forms in row["times"].items() if form in forms}
            if row["taken"] in times:
                yield row, form, times[row["taken"]] / min(times.values())


def summary(rows: Sequence[Row]) -> Row:
    """How often the model's choice is within 5 % of the best, and what the others cost.

    "layer" goes by the geometric mean of plan and plain call, which one way has to serve; then each by itself, as if it
    had a choice of its own; "algorithms" are the layers that Winograd or FFT could take.
    """
    result: Row = {"layers": len(rows), "with_a_choice": sum(bool(row["times"]) for row in rows)}

    def account(values: Sequence[float], alone: int | None = None) -> Row:
        ordered, near = sorted(values), sum(v <= NEAR for v in values)
        found: Row = {
            "measured": len(ordered),
            "near": near / len(ordered),
            "p95": ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)],
            "worst": ordered[-1],
        }
        if alone is not None:
            found["of_all"] = (near + alone) / (len(ordered) + alone)
        return found

    alone = len(rows) - result["with_a_choice"]
    whole = [score(row["times"][row["taken"]]) / min(map(score, row["times"].values())) for row in rows if row["times"]]
    if whole:
        # Where there is one way alone, it is the right one.
        result["layer"] = account(whole, alone)
    for form in FORMS:
        if values := [loss for _, f, loss in losses(rows) if f == form]:
            result[form] = account(values)
    special = [row for row in rows if any(way in row["times"] for way in tuning.WAYS[2:])]
    if special:
        result["algorithms"] = account(
            [score(row["times"][row["taken"]]) / min(map(score, row["times"].values())) for row in special]
        )
    return result
