"""Plans, explain() and the log of FASTCONV_VERBOSE."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastconv

OPTIONS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv1d": ("conv1d", (3, 6, 41), (8, 3, 5), {"stride": 2, "padding": 3, "groups": 2}),
    "conv2d": ("conv2d", (2, 5, 17, 19), (7, 5, 3, 3), {"padding": 1, "activation": "relu"}),
    "conv2d 1x1": ("conv2d", (2, 37, 14, 14), (53, 37, 1, 1), {}),
    "conv2d NHWC": ("conv2d", (2, 17, 19, 16), (32, 16, 3, 3), {"layout": "NHWC", "padding": "same", "stride": 2}),
    "conv2d reflect": ("conv2d", (1, 4, 9, 9), (8, 4, 3, 5), {"padding": (1, 2), "padding_mode": "reflect"}),
    "conv2d unbatched": ("conv2d", (5, 17, 19), (7, 5, 3, 3), {"dilation": 2}),
    "conv3d": ("conv3d", (1, 3, 6, 7, 8), (4, 3, 2, 3, 3), {"padding": ((1, 0), (1, 1), 1)}),
    "conv_transpose2d": ("conv_transpose2d", (2, 6, 7, 9), (6, 4, 3, 3), {"stride": 2, "output_padding": 1}),
    "linear": ("linear", (4, 3, 37), (53, 37), {"activation": ("leaky_relu", 0.2)}),
}


def _layer(name: str, rng: np.random.Generator, dtype: Any = np.float32) -> tuple[str, Any, Any, Any, dict[str, Any]]:
    op, x_shape, w_shape, options = OPTIONS[name]
    x, weight = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(w_shape).astype(dtype)
    outputs = w_shape[1] if op.startswith("conv_transpose") else w_shape[0]
    vectors = {key: rng.standard_normal(outputs).astype(dtype) for key in ("scale", "shift")}
    return op, x, weight, rng.standard_normal(outputs).astype(dtype), {**options, **vectors}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_same_bits_as_the_plain_call(name: str, dtype: Any, isa: str, rng: np.random.Generator) -> None:
    op, x, weight, bias, options = _layer(name, rng, dtype)
    expected = getattr(fastconv, op)(x, weight, bias, **options)
    residual = rng.standard_normal(expected.shape).astype(dtype)
    added = getattr(fastconv, op)(x, weight, bias, residual=residual, **options)
    for like in (x, x.shape):
        plan = fastconv.plan(op, like, weight, bias, **options)
        np.testing.assert_array_equal(plan(x), expected)
        np.testing.assert_array_equal(plan(x, residual), added)
        out = np.full_like(expected, np.nan)
        assert plan(x, out=out) is out
        np.testing.assert_array_equal(out, expected)
        assert plan.decision["isa"] == isa
        assert (plan.op, plan.input_shape, plan.output_shape, plan.dtype) == (op, x.shape, expected.shape, x.dtype)


def test_prologue_and_gate(rng: np.random.Generator) -> None:
    _, x, weight, bias, _ = _layer("conv2d", rng)
    gate = rng.standard_normal(x.shape[:2]).astype(np.float32)
    scale = rng.standard_normal(x.shape[1]).astype(np.float32)
    for options in ({}, {"input_scale": scale, "input_shift": scale, "input_activation": "silu"}):
        plan = fastconv.plan("conv2d", x, weight, bias, input_gate=True, **options)
        expected = fastconv.conv2d(x, weight, bias, input_gate=gate, **options)
        np.testing.assert_array_equal(plan(x, input_gate=gate), expected)


def test_any_batch(rng: np.random.Generator) -> None:
    op, x, weight, bias, options = _layer("conv2d", rng)
    plan = fastconv.plan(op, x, weight, bias, **options)
    expected = plan(x)
    np.testing.assert_array_equal(plan(x[:1]), expected[:1])
    np.testing.assert_array_equal(plan(x[1]), expected[1])
    np.testing.assert_array_equal(plan(np.concatenate([x, x, x]))[4:], expected)
    assert plan(x[:0]).shape == (0, *expected.shape[1:])


def test_any_memory_order(rng: np.random.Generator) -> None:
    op, x, weight, bias, options = _layer("conv2d", rng)
    expected = fastconv.conv2d(
        x.astype(np.float64),
        *(a.astype(np.float64) for a in (weight, bias)),
        **{key: value.astype(np.float64) if isinstance(value, np.ndarray) else value for key, value in options.items()},
    )
    plan = fastconv.plan(op, x, weight, bias, **options)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for strided in (last, x[:, ::-1, :, ::-1][:, ::-1, :, ::-1], np.repeat(x, 2, axis=3)[..., ::2]):
        np.testing.assert_allclose(plan(strided), expected, rtol=1e-4, atol=1e-4)
    out = np.zeros((*expected.shape[:3], 2 * expected.shape[3]), np.float32)
    plan(x, out=out[..., ::2])
    np.testing.assert_allclose(out[..., ::2], expected, rtol=1e-4, atol=1e-4)
    assert not out[..., 1::2].any()


PITCHED = {
    "1x1": ((2, 24, 9, 11), (40, 24, 1, 1), {}),
    "3x3": ((1, 16, 8, 7), (24, 16, 3, 3), {"padding": 1}),
    "3x3, stride 2": ((2, 3, 17, 12), (20, 3, 3, 3), {"padding": 1, "stride": 2}),
    "winograd": ((1, 32, 12, 14), (32, 32, 3, 3), {"padding": 1, "algorithm": "winograd4"}),
    "depthwise": ((1, 40, 10, 10), (40, 1, 3, 3), {"padding": 1, "groups": 40}),
    "groups": ((1, 64, 10, 10), (64, 4, 3, 3), {"padding": 1, "groups": 16}),
}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", PITCHED)
def test_arrays_of_the_plan_s_order_are_read_at_any_pitch(name: str, last: bool, isa: str) -> None:
    """A part of the channels, or of the columns, of a larger array: the same bits, and no copy of it."""
    shape, weight, options = PITCHED[name]
    rng = np.random.default_rng(3)

    def pitched(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        n, c, h, w = shape
        if last:
            whole = np.full((n, h, w, c + 16), np.nan, np.float32)
            return whole, np.moveaxis(whole[..., :c], -1, 1)
        whole = np.full((n, c, h, w + 5), np.nan, np.float32)
        return whole, whole[..., :w]

    x = rng.standard_normal(shape).astype(np.float32)
    x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if last else x
    plan = fastconv.plan("conv2d", x, rng.standard_normal(weight).astype(np.float32), **options)
    expected = plan(x)
    residual = rng.standard_normal(expected.shape).astype(np.float32)
    summed = plan(x, residual)
    (_, within), (whole, out), (_, addend) = pitched(shape), pitched(expected.shape), pitched(expected.shape)
    within[...], addend[...] = x, residual
    for given, wanted in ((None, expected), (addend, summed)):
        plan(within, given, out=out)
        np.testing.assert_array_equal(out, wanted)
        assert np.isnan(whole).sum() == whole.size - out.size
        if last and name in ("1x1", "3x3", "winograd"):
            before = fastconv.cache_info()
            plan(within, given, out=out)
            assert fastconv.cache_info() == before


@pytest.mark.parametrize("name", ["conv2d", "conv2d 1x1", "linear"])
def test_immutable(name: str, rng: np.random.Generator) -> None:
    op, x, weight, bias, options = _layer(name, rng)
    plan = fastconv.plan(op, x, weight, bias, **options)
    expected = plan(x)
    for array in (weight, bias, options["scale"], options["shift"]):
        array[...] = np.nan
    np.testing.assert_array_equal(plan(x), expected)
    with pytest.raises(AttributeError, match="immutable"):
        plan.op = "conv1d"
    with pytest.raises(AttributeError, match="immutable"):
        del plan.dtype
    with pytest.raises(AttributeError):
        plan.anything = 1
    plan.decision["isa"] = "none"
    assert plan.decision["isa"] == fastconv.get_isa()


def test_several_threads(rng: np.random.Generator) -> None:
    op, x, weight, bias, options = _layer("conv2d NHWC", rng)
    plan = fastconv.plan(op, x, weight, bias, **options)
    inputs = [rng.standard_normal(x.shape).astype(np.float32) for _ in range(8)]
    expected = [plan(a) for a in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            for y, e in zip(pool.map(plan, inputs), expected, strict=True):
                np.testing.assert_array_equal(y, e)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_call_with_out_allocates_nothing(name: str, rng: np.random.Generator) -> None:
    op, x, weight, bias, options = _layer(name, rng)
    plan = fastconv.plan(op, x, weight, bias, **options)
    out = plan(x)
    before, held = fastconv.cache_info(), fastconv.workspace_info()["held_bytes"]
    for _ in range(10):
        plan(x, out=out)
    assert fastconv.cache_info() == before
    assert fastconv.workspace_info()["held_bytes"] == held


def test_sizes(rng: np.random.Generator) -> None:
    _, x, weight, bias, _ = _layer("conv2d", rng)
    plan = fastconv.plan("conv2d", x, weight, bias)
    assert plan.packed_bytes >= weight.nbytes
    assert plan.workspace_bytes == plan.decision["workspace_per_thread"]
    assert "conv2d" in repr(plan)
    assert str(plan.output_shape) in repr(plan)


# --- explain ----------------------------------------------------------------------------------------------------


def test_explain(isa: str) -> None:
    weight = np.ones((64, 32, 3, 3), np.float32)
    e = fastconv.explain("conv2d", (2, 32, 56, 56), weight, padding=1)
    assert e.shapes == {"x": (2, 32, 56, 56), "weight": (64, 32, 3, 3), "y": (2, 64, 56, 56)}
    assert e.flops == 2 * 2 * 64 * 56 * 56 * 32 * 9
    assert e.bytes == 4 * (2 * 32 * 56 * 56 + 64 * 32 * 9 + 2 * 64 * 56 * 56)
    assert e.intensity == pytest.approx(e.flops / e.bytes)
    assert e.roofline(1e12, 1e18) == 1
    assert e.roofline(e.intensity * 1e10, 1e9) == pytest.approx(0.1)
    assert e.decision["isa"] == isa
    assert e.decision["error_bound"] >= 1
    assert f"on {isa}" in str(e)
    assert json.loads(json.dumps(e.as_dict()))["shapes"]["y"] == [2, 64, 56, 56]
    # An array says the same as its shape, and a plan decides the same.
    x = np.zeros((2, 32, 56, 56), np.float32)
    assert fastconv.explain("conv2d", x, weight, padding=1) == e
    plan = fastconv.plan("conv2d", x, weight, padding=1)
    for key in ("algorithm", "role", "isa", "tile_rows", "tile_columns", "reduction_block", "error_bound"):
        assert plan.decision[key] == e.decision[key]


@pytest.mark.parametrize(
    ("op", "operands", "options", "result"),
    [
        ("conv1d", [(2, 3, 9), (4, 3, 3)], {}, ("y", (2, 4, 7))),
        ("conv2d_backward_input", [(1, 4, 5, 5), (4, 2, 3, 3), (1, 2, 5, 5)], {"padding": 1}, ("dx", (1, 2, 5, 5))),
        ("conv2d_backward_weight", [(1, 4, 5, 5), (1, 2, 5, 5), (4, 2, 3, 3)], {"padding": 1}, ("dw", (4, 2, 3, 3))),
        ("conv_transpose2d", [(1, 4, 5, 5), (4, 2, 2, 2)], {"stride": 2}, ("y", (1, 2, 10, 10))),
        ("conv_transpose2d_backward_input", [(2, 10, 10), (4, 2, 2, 2), (4, 5, 5)], {"stride": 2}, ("dx", (4, 5, 5))),
        ("linear", [(5, 6, 3), (4, 3)], {}, ("y", (5, 6, 4))),
        ("linear", [(3,), (4, 3)], {}, ("y", (4,))),
        ("linear_backward_input", [(5, 6, 4), (4, 3)], {}, ("dx", (5, 6, 3))),
        ("linear_backward_weight", [(5, 6, 4), (5, 6, 3)], {}, ("dw", (4, 3))),
    ],
)
def test_explain_takes_every_op(op: str, operands: Any, options: Any, result: tuple[str, Any]) -> None:
    """Shapes and arrays say the same, and the result is that of the call."""
    by_shape = fastconv.explain(op, *operands, **options)
    key, shape = result
    assert by_shape.shapes[key] == shape
    arrays = [np.ones(shape, np.float32) for shape in operands[:2]] + operands[2:]
    assert fastconv.explain(op, *arrays, **options) == by_shape
    assert getattr(fastconv, op)(*arrays, **options).shape == shape


def _by_runs(dy: Any, x: Any, terms: int) -> Any:
    """The 3x3 weight gradient of x, padded already: one chain in float32 for each run of pixels, joined in order."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))  # N, C, P, Q, R, S
    total: Any = None
    for images, rows in zip(windows, dy, strict=True):
        pixels = images.transpose(1, 2, 0, 3, 4).reshape(-1, 1, x.shape[1], 3, 3)
        weights = rows.reshape(len(rows), -1).T[:, :, None, None, None]
        for start in range(0, len(pixels), terms):
            chain = np.zeros((len(rows), x.shape[1], 3, 3), np.float32)
            for a, b in zip(weights[start : start + terms], pixels[start : start + terms], strict=True):
                chain = chain + a * b
            total = chain if total is None else total + chain
    return total


@pytest.mark.parametrize(
    ("layout", "channels", "role"),
    [
        ("NCHW", 20, "pixel terms by slab"),
        ("NHWC", 3, "pixel terms by slab"),  # too few channels to fill a vector
        ("NHWC", 20, "pixel terms by rows"),
    ],
)
def test_a_weight_gradient_is_explained_as_it_runs(
    layout: str, channels: int, role: str, isa: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((2, channels, 25, 43), dtype=np.float32)
    # Powers of two: the products are exact, fused or not.
    dy = rng.choice(np.float32([-1, 0.5, 2]), (2, 7, 23, 41))
    shape = (7, channels, 3, 3)
    turned = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) if layout == "NHWC" else a for a in (dy, x)]
    e = fastconv.explain("conv2d_backward_weight", *turned, shape, layout=layout, algorithm="direct")
    assert e.decision["role"] == role
    assert e.decision["pixel_block"] == 23 * 41
    assert e.decision["channel_block"] == channels
    terms, pieces = e.decision["reduction_block"], -(-23 * 41 // e.decision["reduction_block"])
    assert 1 < pieces < 23 * 41
    assert e.decision["error_bound"] == terms + 2 * pieces + (isa == "portable")
    assert f", {role}, " in str(e)
    assert len(str(e.decision["passed_over"]).splitlines()) == 1

    # The bits are those of such runs, and of no others.
    out = np.empty(shape, np.float32)
    fastconv.clear_cache()
    misses = fastconv.cache_info()["misses"]
    fastconv.workspace_info(reset=True)
    with fastconv.num_threads(1):
        fastconv.conv2d_backward_weight(*turned, shape, layout=layout, out=out, algorithm="direct")
    np.testing.assert_array_equal(out, _by_runs(dy, x, terms))
    assert not np.array_equal(out, _by_runs(dy, x, terms + 1))
    assert not np.array_equal(out, _by_runs(dy, x, 23 * 41))

    # The memory is what the call takes.
    assert e.decision["workspace_per_thread"] == fastconv.workspace_info()["peak_call_bytes_per_thread"]
    second = out.nbytes if role.endswith("rows") else 0
    assert e.decision["packed_weight_bytes"] == second
    assert fastconv.cache_info()["misses"] - misses == (second > 0)


@pytest.mark.parametrize("op", ["conv_transpose2d", "linear"])
def test_other_weight_gradients_are_explained(op: str, rng: np.random.Generator) -> None:
    """Of a transposed layer, dy is what the filter slides over; a dense layer's pixels are its rows."""
    shapes: dict[str, Any] = {
        "conv_transpose2d": ((1, 3, 14, 18), (1, 5, 7, 9), (5, 3, 2, 2), {"stride": 2}),
        "linear": ((63, 5), (63, 32), None, {}),
    }
    dy, x, weight, options = shapes[op]
    e = fastconv.explain(f"{op}_backward_weight", dy, x, *(() if weight is None else (weight,)), **options)
    assert e.decision["pixel_block"] == e.decision["reduction_block"] == 63
    assert e.decision["role"] == ("pixel terms by rows" if op == "linear" else "pixel terms by slab")
    assert e.decision["channel_block"] == (32 if op == "linear" else 3)


# --- the log ----------------------------------------------------------------------------------------------------


def _run(program: str, verbose: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env={"FASTCONV_VERBOSE": verbose, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_verbose() -> None:
    program = """
        import numpy as np
        import fastconv
        x, w = np.ones((1, 4, 5, 5), np.float32), np.ones((6, 4, 3, 3), np.float32)
        y = fastconv.conv2d(x, w)
        fastconv.conv2d_backward(y, x, w)
        fastconv.linear(np.ones((2, 3)), np.ones((4, 3)))
        fastconv.plan("conv2d", x, w)(x)
        fastconv.conv2d(x[:0], w)
        try:
            fastconv.conv2d(x, w, groups=3)
        except ValueError:
            pass
    """
    assert _run(program, "0") == []
    lines = _run(program, "1")
    starts = [
        "fastconv: conv2d forward float32 x=1x4x5x5 weight=6x4x3x3 y=1x6x3x3 | direct ",
        "fastconv: conv2d_backward input gradient float32 dy=1x6x3x3 weight=6x4x3x3 dx=1x4x5x5 | direct ",
        "fastconv: conv2d_backward weight gradient float32 dy=1x6x3x3 x=1x4x5x5 dw=6x4x3x3 | direct ",
        "fastconv: conv2d_backward bias gradient float32 dy=1x6x3x3 db=6 | ",
        "fastconv: linear forward float64 x=2x3 weight=4x3x1 y=2x4 | direct ",
        "fastconv: conv2d plan float32 x=1x4x5x5 y=1x6x3x3 | direct ",
        "fastconv: conv2d forward float32 x=0x4x5x5 weight=6x4x3x3 y=0x6x3x3 | ",
    ]
    assert len(lines) == len(starts), lines
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start), line
        assert line.endswith(" us"), line


def test_verbose_of_the_other_families() -> None:
    program = """
        import numpy as np
        import fastconv
        x = np.ones((1, 4, 6, 6), np.float32)
        y, i = fastconv.max_pool2d(x, 2, return_indices=True)
        fastconv.avg_pool2d_backward(y, x.shape, 2)
        fastconv.relu(x)
        fastconv.softmax(x, axis=1)
        fastconv.separable_conv2d(x, np.ones((4, 1, 3, 3), np.float32), np.ones((2, 4, 1, 1), np.float32))
        e, w, p = (np.ones(shape, np.float32) for shape in ((8, 4, 1, 1), (8, 1, 3, 3), (2, 8, 1, 1)))
        fastconv.inverted_residual(x, e, w, p)
        fastconv.batch_norm(x, np.ones(4, np.float32), np.ones(4, np.float32))
    """
    assert _run(program, "0") == []
    starts = [
        "fastconv: max_pool2d forward float32 in0=1x4x6x6 out0=1x4x3x3 out1=1x4x3x3 | ",
        "fastconv: avg_pool2d_backward gradient float32 in0=1x4x3x3 out0=1x4x6x6 | ",
        "fastconv: relu forward float32 in0=1x4x6x6 out0=1x4x6x6 | ",
        "fastconv: softmax forward float32 in0=1x4x6x6 out0=1x4x6x6 | ",
        "fastconv: separable_conv2d forward float32 in0=1x4x6x6 in1=4x1x3x3 in2=2x4x1x1 out0=1x2x4x4 | ",
        "fastconv: inverted_residual forward float32 in0=1x4x6x6 in1=8x4x1x1 in2=8x1x3x3 in3=2x8x1x1 out0=1x2x4x4 | ",
        "fastconv: batch_norm forward float32 in0=1x4x6x6 in1=4 in2=4 out0=1x4x6x6 | ",
    ]
    lines = _run(program, "1")
    assert len(lines) == len(starts), lines
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start), line
        assert line.endswith(" us"), line


def test_a_dense_plan_says_that_it_takes_other_rows(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((5, 7))
    plan = fastconv.plan("linear", (4, 7), weight)
    x = rng.standard_normal((2, 2, 7))
    np.testing.assert_array_equal(plan(x), fastconv.linear(x, weight))
    for shape, rows in (((3, 7), 3), ((7,), 1), ((5, 1, 7), 5)):
        with pytest.raises(ValueError, match=rf"x \(shape .*, {rows} rows\) must have the 4 rows"):
            plan(np.ones(shape))
