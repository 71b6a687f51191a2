"""Phases of a stride that are one product: transposed layers, and input gradients, of few outputs."""

from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import reference, testing

LAYERS: dict[str, dict[str, Any]] = {
    # Every phase has as many taps; padding leaves pixels out at either end.
    "4x4 s2": {"shape": (2, 20, 9, 11), "outputs": 3, "kernel": (4, 4), "stride": 2, "padding": 1},
    "2x2 s2": {"shape": (1, 5, 6, 7), "outputs": 1, "kernel": (2, 2), "stride": 2},
    "6x3 s3x1": {"shape": (2, 7, 5, 8), "outputs": 4, "kernel": (6, 3), "stride": (3, 1), "padding": (2, 1)},
    # Some lack a tap, which is a zero.
    "9x9 s2": {"shape": (2, 12, 8, 9), "outputs": 1, "kernel": (9, 9), "stride": 2, "padding": 4, "output_padding": 1},
    "3x3 s2": {"shape": (1, 9, 7, 6), "outputs": 2, "kernel": (3, 3), "stride": 2, "padding": 1},
    # A stride of many phases: the weights are read in place.
    "64 s16": {"shape": (2, 33, 40), "outputs": 1, "kernel": (64,), "stride": 16, "padding": 24},
    "2x2x2 s2": {"shape": (1, 6, 3, 4, 5), "outputs": 2, "kernel": (2, 2, 2), "stride": 2},
}


def operands(name: str, dtype: type, channels_last: bool) -> tuple[str, np.ndarray, np.ndarray, dict[str, Any]]:
    layer = dict(LAYERS[name])
    shape, kernel = layer.pop("shape"), layer.pop("kernel")
    rng = np.random.default_rng(len(name))
    w = rng.standard_normal((shape[1], layer.pop("outputs"), *kernel)).astype(dtype)
    x = rng.standard_normal(shape).astype(dtype)
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return f"conv_transpose{len(kernel)}d", x, w, layer


@pytest.mark.parametrize("isa", fastconv.available_isas())
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_forward(name: str, dtype: type, channels_last: bool, isa: str) -> None:
    op, x, w, options = operands(name, dtype, channels_last)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(w.shape[1]).astype(dtype)
    shape = getattr(reference, op)(x, w, **options).shape
    epilogue = {"residual": rng.standard_normal(shape).astype(dtype), "activation": "relu"}
    with fastconv.isa(isa):
        got = getattr(fastconv, op)(x, w, bias, **options, **epilogue)
        testing.assert_close_to_reference(got, op, x, w, bias, **options, **epilogue)
        plan = fastconv.plan(op, x, w, bias, activation="relu", **options)
        np.testing.assert_array_equal(plan(x, residual=epilogue["residual"]), got)
        epilogue["residual"] = epilogue["residual"][-1:]
        np.testing.assert_array_equal(getattr(fastconv, op)(x[-1:], w, bias, **options, **epilogue)[0], got[-1])
        joined = "each phase" in fastconv.explain(op, x, w, **options).decision["passed_over"]
    # How few outputs are few depends on the lanes of a vector.
    assert joined or isa == "portable" or (isa == "avx2" and dtype == np.float64)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_of_the_input(name: str, accumulate: bool) -> None:
    op, dy, w, options = operands(name, np.float32, False)
    op = op.replace("_transpose", "") + "_backward_input"
    shape = getattr(reference, op.replace("conv", "conv_transpose").removesuffix("_backward_input"))(
        dy, w, **options
    ).shape
    options.pop("output_padding", None)
    start = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    out = start.copy() if accumulate else None
    got = getattr(fastconv, op)(dy, w, shape, accumulate=accumulate, out=out, **options)
    testing.assert_close_to_reference(got, op, dy, w, shape, initial=start if accumulate else None, **options)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_zeros_in_place_of_taps_meet_no_infinity(bad: float) -> None:
    """An image that is not finite goes by single phases; the others keep their bits."""
    op, x, w, options = operands("9x9 s2", np.float32, False)
    clean = getattr(fastconv, op)(x, w, **options)
    plan = fastconv.plan(op, x, w, **options)
    x[1, 3, 4, 5] = bad
    expected = getattr(reference, op)(x, w, **options)
    for got in (getattr(fastconv, op)(x, w, **options), plan(x)):
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
        np.testing.assert_array_equal(got[0], clean[0])
    assert not np.isfinite(expected).all()
    assert np.isfinite(expected[1]).any()


def test_threads_and_weights_in_any_order() -> None:
    for name in LAYERS:
        op, x, w, options = operands(name, np.float32, False)
        expected = getattr(fastconv, op)(x, w, **options)
        flipped = np.ascontiguousarray(w[..., ::-1])[..., ::-1]
        for threads in (2, 3):
            with fastconv.num_threads(threads):
                np.testing.assert_array_equal(getattr(fastconv, op)(x, flipped, **options), expected)
