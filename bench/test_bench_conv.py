"""Convolutions and dense layers: the quick subset of `python -m fastconv bench`, by plain calls and by plans."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastconv.bench import cases
from fastconv.bench.cases import Layer

FORWARD = [v for v in cases.select()[0] if isinstance(v, Layer) and v.direction == "forward"]
SPATIAL = [layer for layer in FORWARD if layer.op != "linear"]


@pytest.mark.parametrize("form", ["call", "plan"])
@pytest.mark.parametrize("layer", FORWARD, ids=lambda layer: layer.id)
def test_channels_first(layer: Layer, form: str, measured: Callable[..., None]) -> None:
    measured(layer, "NCHW", form)


@pytest.mark.parametrize("form", ["call", "plan"])
@pytest.mark.parametrize("layer", SPATIAL, ids=lambda layer: layer.id)
def test_channels_last(layer: Layer, form: str, measured: Callable[..., None]) -> None:
    measured(layer, "NHWC", form)
