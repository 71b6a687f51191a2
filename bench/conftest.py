"""The suites for pytest-benchmark: `pytest bench`, with --benchmark-json and its other options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv.bench import cases
from fastconv.bench.cases import Layer
from fastconv.bench.run import Expected


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Figures are one thread's, as those of the command line are by default."""
    with fastconv.num_threads(1):
        yield


@pytest.fixture
def measured(benchmark: Any) -> Callable[..., None]:
    """Check the result of a layer's call against the reference, then time the call."""

    def measure(layer: Layer, layout: str, form: str) -> None:
        arrays, _ = cases.data(layer)
        last = layout == "NHWC"

        def turn(a: Any) -> Any:
            return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if last else a

        def back(a: Any) -> Any:
            return np.moveaxis(a, -1, 1) if last else a

        options = layer.options() | ({} if layer.op == "linear" else {"layout": layout})
        x, w = turn(arrays["x"]), arrays["w"]
        if layer.direction == "backward":
            dy, whole = turn(arrays["dy"]), getattr(fastconv, f"{layer.op}_backward")

            def call() -> Any:
                return whole(dy, x, w, needs=("input", "weight"), **options)

            gradients = call()
            results = [back(gradients.input), gradients.weight]
        elif form == "plan":
            prepared = fastconv.plan(layer.op, x, w, **options)
            y = prepared(x)

            def call() -> Any:
                return prepared(x, out=y)

            results = [back(call())]
        else:
            function = getattr(fastconv, layer.op)

            def call() -> Any:
                return function(x, w, **options)

            results = [back(call())]
        Expected(layer, arrays).check(results, ours=True)
        benchmark.extra_info.update(flops=layer.flops, bytes=layer.bytes, shape=layer.describe())
        benchmark(call)

    return measure
