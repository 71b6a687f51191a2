"""Layers of real networks, forward and backward, against the reference."""

import itertools

import numpy as np
import pytest

import fastconv
from fastconv import functional, testing

pytestmark = pytest.mark.usefixtures("isa")


def distinct(limit, step=1):
    """Every step-th of the distinct layers of all tables that take at most so many multiply-adds."""
    seen = {}
    for table in ("conv1d", "conv2d", "conv3d", "conv_transpose"):
        for layer in testing.layers(table):
            # The last ones' reference takes minutes for its many taps or its many groups.
            if layer.multiply_adds <= limit and max(layer.weight_shape[2:]) <= 1024:
                seen.setdefault((layer.op, layer.input_shape, layer.weight_shape, str(layer.options)), layer)
    return list(seen.values())[::step]


def odd():
    """Channel counts and sizes that no tile divides."""
    for c, k, n, r, stride in (
        (3, 37, 14, 3, 1),
        (37, 53, 7, 3, 1),
        (53, 3, 14, 1, 1),
        (37, 37, 7, 1, 1),
        (3, 53, 15, 7, 2),
        (53, 37, 14, 5, 2),
        (37, 53, 31, 3, 1),
        (512, 512, 7, 3, 1),
        (256, 37, 14, 3, 1),
    ):
        options = {"stride": (stride,) * 2, "padding": (r // 2,) * 2, "dilation": 1, "groups": 1}
        yield testing.Layer("odd", f"{c}_{k}_{n}_{r}", "conv2d", (1, c, n, n), (k, c, r, r), options)


def ident(value):
    return f"{value.net}-{value.name}" if isinstance(value, testing.Layer) else None


def check_forward(layer, dtype, layout):
    x, w = layer.data(dtype, layout=layout)
    y = getattr(functional, layer.op)(x, w, layout=layout, **layer.options)
    testing.assert_close_to_reference(y, layer.op, x, w, layout=layout, **layer.options)


def check_backward(layer, dtype, layout):
    x, w = layer.data(dtype, layout=layout)
    n, *rest = layer.output_shape
    shape = (n, *rest[1:], rest[0]) if layout == "NHWC" else (n, *rest)
    dy = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    options = {**layer.options, "layout": layout}
    got = getattr(functional, f"{layer.op}_backward")(dy, x, w, **options)
    testing.assert_close_to_reference(got.input, f"{layer.op}_backward_input", dy, w, x.shape, **options)
    testing.assert_close_to_reference(got.weight, f"{layer.op}_backward_weight", dy, x, w.shape, **options)
    testing.assert_close_to_reference(got.bias, f"{layer.op}_backward_bias", dy, layout=layout)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("layer", [*distinct(40e6, 6), *odd()], ids=ident)
def test_forward(layer, layout):
    check_forward(layer, np.float32, layout)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("layer", [*distinct(20e6, 15), *odd()], ids=ident)
def test_backward(layer, layout):
    check_backward(layer, np.float32, layout)


@pytest.mark.parametrize("layer", [*distinct(20e6, 15), *odd()], ids=ident)
def test_float64(layer):
    check_forward(layer, np.float64, "NCHW")
    check_backward(layer, np.float64, "NHWC")


@pytest.mark.slow
@pytest.mark.parametrize("layer", distinct(2e9), ids=ident)
def test_every_layer(layer):
    for layout, dtype in itertools.product(("NCHW", "NHWC"), (np.float32, np.float64)):
        check_forward(layer, dtype, layout)
        check_backward(layer, dtype, layout)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("table", ["conv1d", "conv2d", "conv3d", "conv_transpose"])
def test_scratch_of_every_layer(table, dtype):
    """Below 2 MB a thread whatever the image, besides packed weights; it grows with a filter of very many taps."""
    for layer, layout in itertools.product(testing.layers(table), ["NCHW", "NHWC"]):
        if max(layer.weight_shape[2:]) > 16384:
            continue
        n, c, *size = layer.input_shape
        x_shape = (n, *size, c) if layout == "NHWC" else layer.input_shape
        x, w = np.empty(x_shape, dtype), np.empty(layer.weight_shape, dtype)  # never touched
        scratch = fastconv.explain(layer.op, x, w, layout=layout, **layer.options).as_dict()["decision"][
            "workspace_per_thread"
        ]
        assert scratch < 2 << 20, f"{layer.net} {layer.name} {layout}: {scratch} bytes"
