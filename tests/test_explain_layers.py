"""`explain` of functions other than convolutions: what it tells is what runs, and it is told for all of them."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import _core, functional, testing
from fastconv.__main__ import main
from fastconv.explanation import _LAYER_OPS


def _told(e: fastconv.Explanation) -> str:
    """The path, in the words of what runs."""
    return str(e.decision["role"] if e.op == "inverted_residual" else e.decision["algorithm"])


def _agree(op: str, *operands: Any, **options: Any) -> str:
    """Runs a call and holds what it ran to what was told before; returns that."""
    e = fastconv.explain(op, *operands, **options)
    _core.take_path()
    result = getattr(functional, op)(*operands, **options)
    assert _core.take_path() == _told(e), (op, [getattr(a, "shape", a) for a in operands], options, str(e))
    first = result[0] if isinstance(result, tuple) else result
    # The result is told last.
    name, shape = [*e.shapes.items()][-1]
    if first is not None:
        assert (name, shape) == ("dx" if op.endswith("_backward") else "sum" if op == "add" else "y", first.shape)
    else:
        assert "dx" not in e.shapes
    return _told(e)


def _image(rng: np.random.Generator, shape: tuple[int, ...], memory: str, dtype: Any = np.float32) -> Any:
    """N, C, ... in some memory order; "apart": neither channels nor columns are neighbours."""
    x = rng.standard_normal(shape).astype(dtype)
    if memory == "channels":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    if memory == "apart":
        wide = np.zeros((*shape[:-1], 2 * shape[-1]), dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x


# --- every function -------------------------------------------------------------------------------------------------


def test_every_function_is_explained_or_is_several_calls() -> None:
    convolutions = {op for op in functional.conv.__all__ if op.islower()}
    every = {op for op in functional.__all__ if op.islower()} - convolutions
    several = {"separable_conv1d_backward", "separable_conv2d_backward", "inverted_residual_backward"}
    assert every - set(_LAYER_OPS) == several
    with pytest.raises(ValueError, match=r"op \(='separable_conv2d_backward'\) must be one of .*'softmax'"):
        fastconv.explain("separable_conv2d_backward", (1, 2, 3, 3))


@pytest.mark.parametrize(
    ("op", "operands", "options", "result"),
    [
        ("max_pool1d", ((2, 3, 9), 3), {"stride": 2}, ("y", (2, 3, 4))),
        ("max_pool2d", ((3, 9, 9), 2), {"return_indices": True}, ("y", (3, 4, 4))),
        ("avg_pool3d", ((1, 2, 4, 6, 8), 2), {}, ("y", (1, 2, 2, 3, 4))),
        ("lp_pool2d", ((1, 2, 6, 6), 3, 2), {}, ("y", (1, 2, 3, 3))),
        ("adaptive_max_pool2d", ((1, 2, 6, 6), (3, 2)), {}, ("y", (1, 2, 3, 2))),
        ("global_avg_pool2d", ((1, 6, 6, 2),), {"layout": "NHWC", "keepdims": False}, ("y", (1, 1, 1, 2))),
        ("max_pool2d_backward", ((1, 2, 3, 3), (1, 2, 6, 6), 2), {}, ("dx", (1, 2, 6, 6))),
        ("avg_pool2d_backward", ((1, 2, 3, 3), (1, 2, 6, 6), 2), {}, ("dx", (1, 2, 6, 6))),
        ("max_pool2d_backward", ((1, 2, 3, 3), (1, 2, 6, 6), 2), {"indices": (1, 2, 3, 3)}, ("dx", (1, 2, 6, 6))),
        ("max_unpool2d", ((1, 2, 3, 3), (1, 2, 3, 3), 2), {}, ("y", (1, 2, 6, 6))),
        ("max_unpool2d_backward", ((1, 2, 6, 6), (1, 2, 3, 3)), {}, ("dx", (1, 2, 3, 3))),
        ("batch_norm", ((2, 3, 4, 4), (3,), (3,)), {}, ("y", (2, 3, 4, 4))),
        ("batch_norm_train", ((2, 3, 4, 4),), {}, ("y", (2, 3, 4, 4))),
        ("batch_norm_backward", ((2, 3, 4), (2, 3, 4), None, (3,), (3,)), {}, ("dx", (2, 3, 4))),
        ("group_norm", ((2, 6, 4, 4), 3), {}, ("y", (2, 6, 4, 4))),
        ("instance_norm_backward", ((2, 6, 4), (2, 6, 4)), {}, ("dx", (2, 6, 4))),
        ("layer_norm", ((5, 7), 7), {}, ("y", (5, 7))),
        ("layer_norm_channels", ((2, 6, 4, 4),), {}, ("y", (2, 6, 4, 4))),
        ("local_response_norm", ((2, 6, 4, 4), 5), {"beta": 0.5}, ("y", (2, 6, 4, 4))),
        ("local_response_norm_backward", ((2, 6, 4), (2, 6, 4), 5), {}, ("dx", (2, 6, 4))),
        ("relu", ((3, 4),), {}, ("y", (3, 4))),
        ("clip_backward", ((3, 4), (3, 4), -1), {}, ("dx", (3, 4))),
        ("sigmoid_backward", ((3, 4), (3, 4)), {}, ("dx", (3, 4))),
        ("add", ((3, 4), (3, 4)), {"activation": "relu"}, ("sum", (3, 4))),
        ("softmax", ((3, 4), 0), {}, ("y", (3, 4))),
        ("log_softmax_backward", ((3, 4), (3, 4)), {}, ("dx", (3, 4))),
        ("separable_conv1d", ((2, 3, 9), (3, 1, 3), (5, 3, 1)), {}, ("y", (2, 5, 7))),
        ("separable_conv2d", ((3, 9, 9), (6, 1, 3, 3), (5, 6, 1, 1)), {"stride": 2}, ("y", (5, 4, 4))),
        (
            "inverted_residual",
            ((2, 3, 9, 9), (12, 3, 1, 1), (12, 1, 3, 3), (5, 12, 1, 1)),
            {"residual": (2, 5, 9, 9), "padding": 1},
            ("y", (2, 5, 9, 9)),
        ),
    ],
)
def test_shapes_will_do(op: str, operands: Any, options: Any, result: tuple[str, Any]) -> None:
    e = fastconv.explain(op, *operands, **options)
    assert e.shapes[result[0]] == result[1]
    assert json.loads(json.dumps(e.as_dict()))["op"] == op
    assert op in str(e)
    assert e.bytes >= 4 * math.prod(result[1])
    # An image of a terabyte is not there, and is not looked at.
    if op == "relu":
        assert fastconv.explain(op, (1 << 20, 1 << 18)).bytes == 2.0**41


def test_wrong_calls_are_refused_as_they_are_by_the_function() -> None:
    x = np.zeros((1, 2, 6, 6), np.float32)
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("max_pool2d", (x, 9), {}),
        ("max_pool2d", (x, 2), {"stride": 0}),
        ("avg_pool2d", (x.astype(np.int32), 2), {}),
        ("batch_norm", (x, None, None), {}),
        ("group_norm", (x, 5), {}),
        ("softmax", (x, 7), {}),
        ("add", (x, x[:, :1]), {}),
        ("separable_conv2d", (x, np.zeros((2, 1, 9, 9), np.float32), np.zeros((3, 2, 1, 1), np.float32)), {}),
        ("inverted_residual", (x, None, np.zeros((3, 1, 3, 3), np.float32), np.zeros((3, 2, 1, 1), np.float32)), {}),
        ("relu", (x.tolist(),), {}),
    ]
    for op, operands, options in wrong:
        with pytest.raises((TypeError, ValueError)) as by_call:
            getattr(functional, op)(*operands, **options)
        if op != "relu":  # a list is a shape here
            with pytest.raises(type(by_call.value)) as by_explain:
                fastconv.explain(op, *operands, **options)
            assert str(by_explain.value) == str(by_call.value)
    for op, measure in (("relu", "plan"), ("relu", "quick"), ("max_pool2d", "plan")):
        with pytest.raises(ValueError, match=f"measure \\(='{measure}'\\) must be"):
            fastconv.explain(op, x, *([2] if "pool" in op else []), measure=measure)


# --- pooling --------------------------------------------------------------------------------------------------------

_POOLS = testing.all_pairs(
    {
        "shape": [(2, 3, 9, 9), (1, 40, 13, 13), (2, 16, 30, 45), (1, 1, 64, 64), (2, 5, 7, 1), (1, 8, 70, 600)],
        "memory": ["planes", "channels", "apart"],
        "kernel": [1, 2, 3, (1, 5), 7],
        "stride": [1, 2, 3, None],
        "padding": [0, 0, "half"],
        "kind": ["max", "average", "average without padding", "lp 1", "lp 2", "lp 3"],
        "ceil_mode": [False, True],
        "dilation": [1, 2],
        "indices": [False, False, True],
        "dtype": [np.float32, np.float64],
    }
)


def _pool_call(rng: np.random.Generator, choice: dict[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    kernel, kind = choice["kernel"], choice["kind"]
    x = _image(rng, choice["shape"], choice["memory"], choice["dtype"])
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    dilation = choice["dilation"] if kind == "max" else 1
    if any(dilation * (k - 1) + 1 > n for k, n in zip(sides, x.shape[2:], strict=True)):
        return None
    options: dict[str, Any] = {"stride": choice["stride"], "ceil_mode": choice["ceil_mode"]}
    padding = tuple(k // 2 for k in sides) if choice["padding"] == "half" and dilation == 1 else 0
    if kind.startswith("lp"):
        return "lp_pool2d", (x, int(kind[-1]), kernel), options
    if kind == "max":
        return "max_pool2d", (x, kernel), {**options, "padding": padding, "dilation": dilation}
    return "avg_pool2d", (x, kernel), {**options, "padding": padding, "count_include_pad": kind == "average"}


def test_pooling_runs_as_told(rng: np.random.Generator, isa: str) -> None:
    """All pairs of options, forward and backward."""
    seen: set[str] = set()
    for choice in _POOLS:
        call = _pool_call(rng, choice)
        if call is None:
            continue
        op, operands, options = call
        indices = choice["indices"] and op == "max_pool2d"
        with np.errstate(all="ignore"):
            seen.add(_agree(op, *operands, **options, **({"return_indices": True} if indices else {})))
            y = getattr(functional, op)(*operands, **options)
            dy = _image(rng, y.shape, choice["memory"], y.dtype)
            x, *rest = operands
            image = x.shape if op == "avg_pool2d" else x
            if indices:
                options = {**options, "indices": getattr(functional, op)(*operands, **options, return_indices=True)[1]}
            seen.add(_agree(f"{op}_backward", dy, image, *rest, **options))
    for size, memory in itertools.product((14, 60), ("planes", "channels")):
        x = _image(rng, (2, 24, size, size), memory)
        for kernel, stride, padding in ((3, 1, 1), (3, 2, 1), (2, 2, 0), (3, 2, 0), (5, 1, 2)):
            options = {"stride": stride, "padding": padding}
            seen.add(_agree("max_pool2d", x, kernel, **options))
            seen.add(_agree("avg_pool2d", x, kernel, **options, count_include_pad=size == 14))
            dy = _image(rng, functional.max_pool2d(x, kernel, **options).shape, memory)
            seen.add(_agree("max_pool2d_backward", dy, x, kernel, **options))
            seen.add(_agree("avg_pool2d_backward", dy, x.shape, kernel, **options))
    assert seen >= {
        "windows in registers; lanes of channels",
        "windows in registers; lanes of columns",
        "windows; lanes of channels",
        "rows, then columns; lanes of channels",
        "rows, then columns; lanes of columns",
        "turned; lanes of channels",
        "gathered; lanes of channels",
        "gathered; lanes of columns",
        "scattered by indices",
        "plain loops",
    }


def test_other_pools_run_as_told(rng: np.random.Generator) -> None:
    for memory in ("planes", "channels", "apart"):
        for size in (5, 50):
            x = _image(rng, (2, 12, size, size), memory)
            for kind in ("avg", "max"):
                for op, arguments in ((f"global_{kind}_pool2d", ()), (f"adaptive_{kind}_pool2d", ((3, 4),))):
                    _agree(op, x, *arguments)
                    y = getattr(functional, op)(x, *arguments)
                    _agree(f"{op}_backward", y, x.shape if kind == "avg" else x)
            y, indices = functional.max_pool2d(x, 2, return_indices=True)
            assert _agree("max_unpool2d", y, indices, 2, output_size=x.shape[2:]) == "scattered by indices"
            assert _agree("max_unpool2d_backward", x, indices) == "gathered by indices"
        for dtype in (np.int8, np.uint8, np.int16, np.int32, np.int64):
            x = (10 * _image(rng, (2, 12, 9, 9), memory)).astype(dtype, order="K")
            _agree("max_pool2d", x, 3, stride=2)
            _agree("max_pool2d", x, 3, stride=2, return_indices=True)


def test_a_pool_says_why_it_takes_no_faster_path() -> None:
    e = fastconv.explain("max_pool2d", (1, 64, 112, 112), 5, stride=2)
    assert {c["algorithm"]: c["reason"] for c in e.candidates if not c["taken"]} == {
        "turned; lanes of channels": "rows are long enough for lanes of columns",
        "whole planes; lanes of pixels": "windows are not the whole image",
        "windows in registers; lanes of columns": (
            "windows are not square ones of 3 at a distance of 1 or 2, or of 2 at one of 2"
        ),
    }
    assert e.candidates[0]["taken"]
    assert "why" not in e.decision
    assert e.bytes == 4 * 64 * (112 * 112 + 54 * 54)
    assert e.decision["passes"] == 1
    # Half of the windows' positions are written beside the maxima.
    both = fastconv.explain("max_pool2d", (1, 64, 112, 112), 5, stride=2, return_indices=True)
    assert both.bytes == e.bytes + 8 * 64 * 54 * 54
    assert both.decision["algorithm"] == "maxima, then positions; lanes of columns"
    assert both.decision["before"] == e.decision["algorithm"]
    assert both.decision["passes"] == 2
    assert "before it rows, then columns" in str(both)
    adaptive = fastconv.explain("adaptive_max_pool2d", (1, 64, 112, 112), 30, return_indices=True)
    assert adaptive.candidates[1]["reason"] == "windows are adaptive"
    assert adaptive.decision["algorithm"] == "plain loops"


# --- norms ----------------------------------------------------------------------------------------------------------

_SHAPES = [(2, 6), (2, 6, 7), (3, 12, 5, 5), (1, 4, 40, 40), (2, 12, 120, 90), (1, 6, 700, 700)]


@pytest.mark.parametrize("memory", ["planes", "channels", "apart"])
@pytest.mark.parametrize("shape", _SHAPES)
def test_norms_run_as_told(rng: np.random.Generator, shape: Any, memory: str) -> None:
    x = _image(rng, shape, memory)
    dy = _image(rng, shape, memory)
    v = np.ones(shape[1], np.float32)
    seen = {
        _agree("batch_norm", x, v, v, v, v, activation="relu"),
        _agree("batch_norm_train", x, None, None, v, v),
        _agree("group_norm", x, 3 if shape[1] % 3 == 0 else 2, v, v),
        _agree("instance_norm", x),
        _agree("layer_norm_channels", x, v, v),
        _agree("layer_norm", x, shape[-1:]),
        _agree("layer_norm", x, shape[1:]),
        _agree("batch_norm_backward", dy, x, v, v, v),
        _agree("batch_norm_backward", dy, x, v, v, v, training=False, needs=("input",)),
        _agree("batch_norm_backward", dy, x, v, v, v, needs=("weight", "bias")),
        _agree("group_norm_backward", dy, x, 2, v),
        _agree("instance_norm_backward", dy, x),
        _agree("layer_norm_channels_backward", dy, x, v),
        _agree("layer_norm_backward", dy, x, shape[-1:]),
    }
    assert "" not in seen
    if len(shape) >= 3:
        seen |= {_agree("local_response_norm", x, 5), _agree("local_response_norm", x, 5, beta=0.5)}
        _agree("local_response_norm_backward", dy, x, 3)
    if shape == _SHAPES[-1] and memory == "planes":
        # A set has 1.9 MB here, or, in groups of two, 3.9 MB: those of three are beyond 4 MB.
        assert _agree("group_norm", x, 2) == "statistics, then the result; planes"
    copied = fastconv.explain("instance_norm", x).decision["copied"]
    assert copied == (memory == "apart")


def test_a_norm_tells_its_passes() -> None:
    small = fastconv.explain("instance_norm", (2, 8, 14, 14)).decision
    assert (small["passes"], small["again"]) == (2, "the first-level cache")
    given = fastconv.explain("batch_norm", (2, 8, 14, 14), (8,), (8,))
    assert (given.decision["passes"], given.decision["again"]) == (1, "")
    assert given.bytes == 4 * (2 * 2 * 8 * 14 * 14 + 16)
    large = fastconv.explain("batch_norm_train", (32, 8, 224, 224))
    assert large.decision["algorithm"] == "statistics, then the result; planes"
    assert [c["reason"] for c in large.candidates[1:]] == ["a set has more than 28 KB", "a set has more than 4 MB"]
    # A result beyond the last-level cache is written past it.
    sizes = _core.cache_sizes()
    beyond = max(sizes["l2"], sizes["l3"]) // 4 + 1
    assert fastconv.explain("relu", (beyond,)).decision["streaming"]
    assert not fastconv.explain("relu", (beyond - 1,)).decision["streaming"]
    assert "written past the caches" in str(fastconv.explain("relu", (beyond,)))


# --- elementwise ----------------------------------------------------------------------------------------------------


def test_elementwise_runs_as_told(rng: np.random.Generator) -> None:
    for memory in ("planes", "channels", "apart"):
        x = _image(rng, (2, 5, 6, 7), memory)
        assert _agree("gelu", x) == "one pass"
        _agree("hardswish_backward", x, x)
        _agree("add", x, x, activation="relu")
        along = {axis: _agree("softmax", x, axis) for axis in range(4)}
        assert along[1 if memory == "channels" else 3] == "along rows, lanes on the axis"
        assert along[0] == "along columns, lanes beside the axis"
        _agree("log_softmax", x, 1)
        _agree("softmax_backward", x, functional.softmax(x, 1), 1)
        assert fastconv.explain("relu", x).decision["copied"] == (memory == "apart")


# --- separable layers and inverted residuals ------------------------------------------------------------------------


_SEPARABLE = testing.all_pairs(
    {
        "rank": [1, 2],
        "batch": [None, 1, 3],
        "channels": [1, 5, 32, 200],
        "multiplier": [1, 1, 2],
        "size": [1, 9, 40],
        "kernel": [1, 3, 5],
        "stride": [1, 2],
        "dilation": [1, 2],
        "padding_mode": ["zeros", "reflect", "circular"],
        "layout": ["NCHW", "NHWC"],
        "memory": ["planes", "channels", "apart"],
        "dtype": [np.float32, np.float64],
        "outputs": [1, 24],
        "residual": [False, True],
        "threads": [1, 3],
    }
)


def test_separable_layers_run_as_told(isa: str, rng: np.random.Generator) -> None:
    seen = set()
    for choice in _SEPARABLE:
        rank, channels, kernel, dtype = choice["rank"], choice["channels"], choice["kernel"], choice["dtype"]
        reach = choice["dilation"] * (kernel - 1)
        if choice["size"] <= reach:
            continue
        x = _image(rng, (choice["batch"] or 1, channels, *(choice["size"],) * rank), choice["memory"], dtype)
        x = x[0] if choice["batch"] is None else x
        last = choice["layout"] == "NHWC"
        x = np.moveaxis(x, -rank - 1, -1) if last else x
        middle = channels * choice["multiplier"]
        weights = (
            rng.standard_normal((middle, 1, *(kernel,) * rank)).astype(dtype),
            rng.standard_normal((choice["outputs"], middle, *(1,) * rank)).astype(dtype),
        )
        options: dict[str, Any] = {name: choice[name] for name in ("stride", "dilation", "padding_mode", "layout")}
        options["padding"] = reach // 2
        op = f"separable_conv{rank}d"
        if choice["residual"]:
            options["residual"] = np.ones(fastconv.explain(op, x, *weights, **options).shapes["y"], dtype)
        with fastconv.num_threads(choice["threads"]):
            told = _agree(op, x, *weights, **options)
        assert told == ("one pass" if choice["multiplier"] == 1 else "two calls")
        seen.add(told)
    assert len(seen) == 2


def test_inverted_residuals_run_as_told(isa: str) -> None:
    seen = set()
    for case in testing.cases("inverted_residual", functional):
        if any(0 in a.shape for a in case.arrays if a is not None):
            continue
        options = {name: value for name, value in case.options.items() if name != "out"}
        if case.arrays[1] is None or options.get("se_reduce_weight") is not None:
            e = fastconv.explain("inverted_residual", *case.arrays, **options)
            assert len(e.parts) in (1, 2, 3)
            assert e.shapes["y"] == functional.inverted_residual(*case.arrays, **options).shape
            continue
        for threads in (1, 4):
            with np.errstate(all="ignore"), fastconv.num_threads(threads):
                seen.add(_agree("inverted_residual", *case.arrays, **options))
    assert len(seen) == 2, seen


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_separable_layer_tells_its_halves(layout: str, isa: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 64, 28, 28)).astype(np.float32)
    x = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    w = np.ones((64, 1, 3, 3), np.float32), np.ones((96, 64, 1, 1), np.float32)
    e = fastconv.explain("separable_conv2d", x, *w, padding=1, layout=layout)
    d = e.decision
    assert (d["algorithm"], d["why"], d["whole_bytes"]) == ("one pass", "", 0)
    assert d["depthwise"]["algorithm"] == "depthwise"
    assert d["depthwise"]["isa"] == d["pointwise"]["isa"] == isa
    assert d["pointwise"]["role"] == ("pixel rows" if layout == "NHWC" else "pixel columns")
    assert d["depthwise"]["pixel_block"] == d["block_pixels"] == d["pointwise"]["pixel_block"]
    assert e.blocks == -(-28 * 28 // d["block_pixels"])
    assert e.flops == 2 * 28 * 28 * 64 * (9 + 96)
    assert e.bytes == 4 * (28 * 28 * (64 + 96) + 64 * 9 + 64 * 96)
    # The workspace is what a task takes.
    with fastconv.num_threads(1):
        fastconv.workspace_info(reset=True)
        functional.separable_conv2d(x, *w, padding=1, layout=layout)
        assert fastconv.workspace_info()["peak_call_bytes_per_thread"] == d["workspace_per_thread"]
    # A plan is ready for a residual.
    ready = fastconv.explain("separable_conv2d", x, *w, padding=1, layout=layout, residual=e.shapes["y"]).decision
    plan = fastconv.plan("separable_conv2d", x, *w, padding=1, layout=layout)
    assert plan.workspace_bytes == ready["workspace_per_thread"] >= d["workspace_per_thread"]
    assert plan.packed_bytes == d["packed_weight_bytes"]
    text = str(e)
    assert "depthwise   depthwise" in text
    assert "pointwise   direct" in text

    twice = np.ones((128, 1, 3, 3), np.float32), np.ones((96, 128, 1, 1), np.float32)
    two = fastconv.explain("separable_conv2d", x, *twice, padding=1, layout=layout)
    assert two.decision["algorithm"] == "two calls"
    assert two.decision["why"] == "a channel of x has several filters"
    assert two.decision["whole_bytes"] == 4 * 128 * 28 * 28
    u = functional.conv2d(x, twice[0], groups=64, padding=1, layout=layout)
    second = fastconv.explain("conv2d", u, twice[1], layout=layout).decision
    assert {name: second[name] for name in two.decision["pointwise"]} == two.decision["pointwise"]


def test_an_inverted_residual_tells_how_its_expansion_is_kept(isa: str) -> None:
    shape, weights = (1, 24, 56, 56), ((144, 24, 1, 1), (144, 1, 3, 3), (24, 144, 1, 1))
    with fastconv.num_threads(1):
        e = fastconv.explain("inverted_residual", shape, *weights, padding=1)
        d = e.decision
        plan = fastconv.plan("inverted_residual", shape, *(np.ones(w, np.float32) for w in weights), padding=1)
        told = plan.decision
        assert {n: d[n] for n in told if not n.startswith("workspace")} == {
            n: told[n] for n in told if not n.startswith("workspace")
        }
        assert told["workspace_per_thread"] > d["workspace_per_thread"]  # a plan has room for a residual
    assert (d["role"], d["why"]) == ("rows of the expansion", "")
    assert e.flops == 2 * 56 * 56 * 144 * (24 + 9 + 24)
    assert e.bytes == 4 * (2 * 24 * 56 * 56 + 144 * (24 + 9 + 24))
    whole = fastconv.explain("inverted_residual", shape, *weights, padding=1, padding_mode="reflect").decision
    assert (whole["role"], whole["why"]) == ("the expansion of an image", "padding is not of zeros")
    assert whole["whole_bytes"] == 4 * 144 * 56 * 56
    with fastconv.num_threads(8):
        thin = fastconv.explain(
            "inverted_residual", (1, 96, 7, 7), (576, 96, 1, 1), (576, 1, 5, 5), (96, 576, 1, 1), padding=2
        )
    assert thin.decision["role"] == "the expansion of an image"
    assert "than threads" in thin.decision["why"] or "cache" in thin.decision["why"]


def test_squeeze_excite_is_told_as_its_calls() -> None:
    squeeze = {"se_reduce_weight": (6, 144, 1, 1), "se_expand_weight": (144, 6, 1, 1)}
    weights = ((144, 24, 1, 1), (144, 1, 3, 3), (24, 144, 1, 1))
    e = fastconv.explain("inverted_residual", (2, 24, 28, 28), *weights, padding=1, **squeeze)
    assert [part.op for part in e.parts] == ["inverted_residual", "conv2d"]
    assert e.shapes["y"] == (2, 24, 28, 28)
    assert "project" not in e.parts[0].decision
    bare = fastconv.explain("inverted_residual", (2, 24, 28, 28), None, (24, 1, 3, 3), (24, 24, 1, 1), padding=1)
    assert [part.op for part in bare.parts] == ["separable_conv2d"]
    squeeze = {"se_reduce_weight": (6, 24, 1, 1), "se_expand_weight": (24, 6, 1, 1)}
    e = fastconv.explain(
        "inverted_residual", (2, 24, 28, 28), None, (24, 1, 3, 3), (24, 24, 1, 1), padding=1, **squeeze
    )
    assert [part.op for part in e.parts] == ["conv2d", "global_avg_pool2d", "conv2d"]
    assert e.flops == sum(part.flops for part in e.parts)
    with pytest.raises(ValueError, match="se_expand_weight"):
        fastconv.explain("inverted_residual", (2, 24, 28, 28), *weights, se_reduce_weight=(6, 144, 1, 1))


# --- scratch ----------------------------------------------------------------------------------------------------------

_WIDTHS = (16, 64, 96, 144, 160, 240, 320, 384, 480, 512, 672, 728, 768, 960, 1024, 1280, 1536, 2048)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scratch_stays_below_two_megabytes(dtype: Any, layout: str, isa: str) -> None:
    """Beside packed weights, whatever the width and the image, for calls and (ready for a residual) plans."""

    def image(channels: int, size: tuple[int, int]) -> tuple[int, ...]:
        return (1, channels, *size) if layout == "NCHW" else (1, *size, channels)

    sizes = ((7, 7), (14, 14), (19, 19), (56, 56), (112, 112), (1, 4000), (4000, 1))
    for channels, size, kernel in itertools.product(_WIDTHS, sizes, (3, 7)):
        depthwise = np.zeros((channels, 1, kernel, kernel), dtype)
        for stride, mode in ((1, "zeros"), (2, "zeros"), (1, "circular")):
            if mode == "circular" and min(size) < kernel // 2:
                continue
            options = {"padding": kernel // 2, "stride": stride, "padding_mode": mode, "layout": layout}
            for outputs in (16, channels):
                call = (image(channels, size), depthwise, (outputs, channels, 1, 1))
                y = fastconv.explain("separable_conv2d", *call, **options).shapes["y"]
                e = fastconv.explain("separable_conv2d", *call, residual=y, **options)
                assert e.decision["workspace_per_thread"] <= 2 << 20, (channels, size, outputs, options)
            if channels >= 64:
                narrow = channels // 4
                ends = (channels, narrow, 1, 1), (narrow, channels, 1, 1)
                with fastconv.num_threads(1):
                    e = fastconv.explain(
                        "inverted_residual", image(narrow, size), ends[0], depthwise, ends[1], **options
                    )
                assert e.decision["workspace_per_thread"] <= 2 << 20, (channels, size, options)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [512, 960])
def test_wide_plans_keep_their_word(channels: int, layout: str, isa: str, rng: np.random.Generator) -> None:
    shape = (1, channels, 2, 600) if layout == "NCHW" else (1, 2, 600, channels)
    x = rng.standard_normal(shape)
    weights = rng.standard_normal((channels, 1, 3, 3)), rng.standard_normal((64, channels, 1, 1))
    plan = fastconv.plan("separable_conv2d", x, *weights, padding=1, layout=layout)
    assert plan.workspace_bytes <= 2 << 20
    with fastconv.num_threads(1):
        fastconv.workspace_info(reset=True)
        y = plan(x)
        assert fastconv.workspace_info()["peak_call_bytes_per_thread"] <= plan.workspace_bytes
    u = functional.conv2d(x, weights[0], groups=channels, padding=1, layout=layout)
    expected = functional.conv2d(u, weights[1], layout=layout)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(y, functional.separable_conv2d(x, *weights, padding=1, layout=layout))


# --- measuring, the log, the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "operands", "form"),
    [
        ("max_pool2d", ((1, 8, 16, 16), 2), "plain"),
        ("batch_norm", ((1, 8, 16, 16), (8,), (8,)), "plain"),
        ("softmax_backward", ((4, 9), (4, 9)), "plain"),
        ("separable_conv2d", ((1, 8, 16, 16), (8, 1, 3, 3), (4, 8, 1, 1)), "plan"),
        ("separable_conv2d", ((1, 8, 16, 16), (8, 1, 3, 3), (4, 8, 1, 1)), "plain"),
        ("inverted_residual", ((1, 4, 9, 9), (8, 4, 1, 1), (8, 1, 3, 3), (4, 8, 1, 1)), "plan"),
    ],
)
def test_it_measures(op: str, operands: Any, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastconv import _measure

    monkeypatch.setattr(_measure, "measure_fma_peak", lambda *a, **o: 1e11)
    monkeypatch.setattr(_measure, "measure_copy_bandwidth", lambda *a, **o: 1e10)
    e = fastconv.explain(op, *operands, measure=form)
    assert e.measured is not None
    assert e.measured.form == form
    assert e.measured.seconds > 0
    measured = e.as_dict()["measured"]
    assert measured["copy"] == pytest.approx(e.bytes / e.measured.seconds / 1e10)
    assert measured["floor"] == pytest.approx(max(e.flops / 1e11, e.bytes / 1e10))
    assert ("reached" in measured) == (e.flops > 0)
    assert ("% of the FMA peak" in str(e)) == (e.flops > 0)
    assert ("of a copy of as many bytes" in str(e)) == (e.flops == 0)


def test_the_log_names_the_path() -> None:
    code = (
        "import numpy as np, fastconv\n"
        "x = np.zeros((1, 8, 20, 20), np.float32)\n"
        "fastconv.max_pool2d(x, 2)\n"
        "fastconv.instance_norm(x)\n"
        "fastconv.separable_conv2d(x, np.zeros((16, 1, 3, 3), 'f4'), np.zeros((4, 16, 1, 1), 'f4'))\n"
        "w = np.zeros((8, 1, 3, 3), 'f4'), np.zeros((4, 8, 1, 1), 'f4')\n"
        "fastconv.plan('separable_conv2d', x, *w)(x)\n"
        "fastconv.relu(x[:0])\n"
    )
    environment = os.environ | {"FASTCONV_VERBOSE": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    pool, norm, separable, nothing = done.stderr.splitlines()
    told = fastconv.explain("max_pool2d", (1, 8, 20, 20), 2).decision["algorithm"]
    assert f" | {told} | " in pool
    assert " | a set, from the first-level cache; planes | " in norm
    assert " | two calls | " in separable
    assert nothing.count("|") == 1


def _command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["explain", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_command_explains_them(capsys: pytest.CaptureFixture[str]) -> None:
    check: list[tuple[str, Callable[[], fastconv.Explanation]]] = [
        (
            "max_pool2d --input 1x64x56x56 --kernel-size 3 --stride 2 --padding 1",
            lambda: fastconv.explain("max_pool2d", (1, 64, 56, 56), 3, stride=2, padding=1),
        ),
        (
            "max_pool2d_backward --input 1x56x56x64 --kernel-size 2 --layout NHWC",
            lambda: fastconv.explain("max_pool2d_backward", (1, 28, 28, 64), (1, 56, 56, 64), 2, layout="NHWC"),
        ),
        ("avg_pool2d_backward --input 1x4x8x8 --kernel-size 2", None),
        ("adaptive_avg_pool2d --input 1x4x8x8 --output-size 3", None),
        ("global_avg_pool2d_backward --input 1x4x8x8", None),
        ("lp_pool2d --input 1x4x8x8 --kernel-size 2 --norm-type 2", None),
        ("max_unpool2d --input 1x4x8x8 --kernel-size 2", None),
        ("batch_norm --input 8x64x28x28", lambda: fastconv.explain("batch_norm", (8, 64, 28, 28), (64,), (64,))),
        (
            "batch_norm --input 8x64x28x28 --training",
            lambda: fastconv.explain("batch_norm", (8, 64, 28, 28), None, None, training=True),
        ),
        ("batch_norm_backward --input 8x64x28x28", None),
        ("group_norm --input 8x64x28x28 --groups 8", lambda: fastconv.explain("group_norm", (8, 64, 28, 28), 8)),
        ("layer_norm --input 8x64 --normalized-shape 64", lambda: fastconv.explain("layer_norm", (8, 64), 64)),
        ("local_response_norm_backward --input 8x64x7x7 --size 5", None),
        ("softmax --input 8x64 --axis 0", lambda: fastconv.explain("softmax", (8, 64), 0)),
        ("softmax_backward --input 8x64", None),
        ("silu_backward --input 8x64 --dtype float64", None),
        ("add --input 8x64 --activation relu", lambda: fastconv.explain("add", (8, 64), (8, 64), activation="relu")),
        (
            "separable_conv2d --input 1x32x28x28 --depthwise 32x1x3x3 --pointwise 64x32x1x1 --padding 1",
            lambda: fastconv.explain("separable_conv2d", (1, 32, 28, 28), (32, 1, 3, 3), (64, 32, 1, 1), padding=1),
        ),
        (
            "inverted_residual --conv 1x24x28x28 --expand 96x24x1x1 --depthwise 96x1x3x3 --project 24x96x1x1"
            " --padding 1",
            lambda: fastconv.explain(
                "inverted_residual", (1, 24, 28, 28), (96, 24, 1, 1), (96, 1, 3, 3), (24, 96, 1, 1), padding=1
            ),
        ),
        ("linear --input 8x64 --weight 32x64", lambda: fastconv.explain("linear", (8, 64), (32, 64))),
    ]
    for line, same in check:
        out = _command(capsys, *line.split())
        assert line.split()[0] in out
        if same is not None:
            assert out.strip() == str(same()).strip()
    document = json.loads(_command(capsys, *check[0][0].split(), "--json"))
    assert document["decision"]["passes"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_pool2d --input 1x4x8x8", "max_pool2d needs --kernel-size"),
        ("separable_conv2d --input 1x4x8x8 --depthwise 4x1x3x3", "separable_conv2d needs --pointwise"),
        ("max_pool2d --input 1x4x8x8 --kernel-size 2 --axis 1", "max_pool2d takes no --axis"),
        ("group_norm --input 1x4x8x8 --groups 3", "num_groups (=3) must divide"),
        ("conv2d --input 1x4x8x8", "conv2d needs --weight"),
        ("nothing --input 1x4x8x8 --weight 1x4x1x1", "op (='nothing') must be one of"),
    ],
)
def test_the_command_refuses(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *line.split()]) == 2
    assert message in capsys.readouterr().err
