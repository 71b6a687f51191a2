"""Gradients of input and weight: the backward layers of the quick subset, and its dense layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fastconv.bench import cases
from fastconv.bench.cases import Layer

QUICK = [v for v in cases.select()[0] if isinstance(v, Layer)]
BACKWARD = [layer for layer in QUICK if layer.direction == "backward"]
BACKWARD += [replace(layer, direction="backward") for layer in QUICK if layer.op == "linear"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("layer", BACKWARD, ids=lambda layer: layer.id)
def test_backward(layer: Layer, layout: str, measured: Callable[..., None]) -> None:
    if layer.op == "linear" and layout == "NHWC":
        pytest.skip("a dense layer has no layout")
    measured(layer, layout, "call")
