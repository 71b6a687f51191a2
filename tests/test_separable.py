"""Depthwise-separable layers: one pass gives the bits of two convolutions, in every option, and the gradients fit."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = (np.float32, np.float64)


def operands(seed, channels, outputs, size, kernel, dtype=np.float32, n=2, multiplier=1):
    rng = np.random.default_rng(seed)
    middle = channels * multiplier
    x = rng.standard_normal((n, channels, *size)).astype(dtype)
    depthwise = (rng.standard_normal((middle, 1, *kernel)) / np.sqrt(np.prod(kernel))).astype(dtype)
    pointwise = (rng.standard_normal((outputs, middle, *(1,) * len(size))) / np.sqrt(middle)).astype(dtype)
    return x, depthwise, pointwise


def in_layout(x, layout):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout.endswith("C") else x


def two_calls(rank, x, depthwise, pointwise, layout="NCHW", inner=None, outer=None, **options):
    function = getattr(functional, f"conv{rank}d")
    groups = x.shape[-1 if layout == "NHWC" else 1]
    u = function(x, depthwise, groups=groups, layout=layout, **(inner or {}), **options)
    return function(u, pointwise, layout=layout, **(outer or {}))


# Few and many channels, more than one piece of the reduction, images of less and more than a block of pixels.
SHAPES = [
    (3, 5, (9, 8), (3, 3), {"padding": 1}),
    (16, 24, (7, 7), (3, 3), {"padding": 1}),
    (33, 17, (14, 15), (5, 5), {"padding": 2}),
    (40, 64, (31, 30), (3, 3), {"padding": 1, "stride": 2}),
    (600, 40, (9, 9), (3, 3), {"padding": "same"}),
    (24, 130, (28, 28), (3, 3), {"padding": 2, "dilation": 2}),
    (32, 8, (40, 41), (7, 7), {"padding": 3}),
    (20, 12, (12, 12), (3, 5), {"padding": (0, 2), "stride": (2, 1), "padding_mode": "reflect"}),
    (16, 16, (11, 10), (4, 4), {"padding": "same_lower", "stride": 3}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_pass_gives_the_bits_of_two_calls(shape, layout, dtype):
    channels, outputs, size, kernel, options = shape
    x, depthwise, pointwise = operands(1, channels, outputs, size, kernel, dtype)
    rng = np.random.default_rng(2)
    inner = {name: rng.standard_normal(channels).astype(dtype) for name in ("bias", "scale", "shift")}
    outer = {name: rng.standard_normal(outputs).astype(dtype) for name in ("bias", "scale", "shift")}
    x = in_layout(x, layout)
    expected = two_calls(2, x, depthwise, pointwise, layout, inner, outer, **options)
    y = fastconv.separable_conv2d(
        x,
        depthwise,
        pointwise,
        layout=layout,
        **{f"depthwise_{name}": a for name, a in inner.items()},
        **outer,
        **options,
    )
    np.testing.assert_array_equal(y, expected)
    exact = two_calls_of_reference(x, depthwise, pointwise, layout, inner, outer, options)
    np.testing.assert_allclose(y, exact, rtol=0, atol=np.abs(exact).max() * np.finfo(dtype).eps * 32)


def two_calls_of_reference(x, depthwise, pointwise, layout, inner, outer, options):
    def wide(a):
        return a.astype(np.float64)

    return reference.separable_conv2d(
        wide(x),
        wide(depthwise),
        wide(pointwise),
        layout=layout,
        **{f"depthwise_{name}": wide(a) for name, a in inner.items()},
        **{name: wide(a) for name, a in outer.items()},
        **options,
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("activation", ["relu6", "silu", ("clip", -0.5, 0.5)])
def test_activations_and_residual(layout, activation):
    x, depthwise, pointwise = operands(3, 24, 40, (15, 13), (3, 3))
    x = in_layout(x, layout)
    options = {"padding": 1, "stride": 2, "layout": layout}
    residual = np.random.default_rng(4).standard_normal((2, 8, 7, 40)).astype(np.float32)
    residual = residual if layout == "NHWC" else np.ascontiguousarray(np.moveaxis(residual, -1, 1))
    y = fastconv.separable_conv2d(
        x, depthwise, pointwise, depthwise_activation=activation, activation="relu", residual=residual, **options
    )
    wide = [a.astype(np.float64) for a in (x, depthwise, pointwise)]
    exact = reference.separable_conv2d(
        *wide, depthwise_activation=activation, activation="relu", residual=residual.astype(np.float64), **options
    )
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-5)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_on_integers(layout, dtype):
    for channels, outputs, n, kernel, stride in itertools.product((1, 5, 32), (1, 33), (6, 19), (2, 3), (1, 2)):
        x = testing.integer_data((2, n, n + 1, channels) if layout == "NHWC" else (2, channels, n, n + 1), dtype)
        depthwise = testing.integer_data((channels, 1, kernel, kernel), dtype, seed=1)
        pointwise = testing.integer_data((outputs, channels, 1, 1), dtype, seed=2)
        options = {"stride": stride, "padding": 1, "layout": layout}
        y = fastconv.separable_conv2d(x, depthwise, pointwise, **options)
        np.testing.assert_array_equal(y, reference.separable_conv2d(x, depthwise, pointwise, **options))


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 3),
    st.sampled_from(["NCHW", "NHWC"]),
    st.integers(1, 2),
)
def test_any_shape(channels, outputs, size, kernel, stride, dilation, padding, layout, multiplier):
    if any(n + 2 * padding < dilation * (k - 1) + 1 for n, k in zip(size, kernel, strict=True)):
        return
    x, depthwise, pointwise = operands(5, channels, outputs, size, kernel, multiplier=multiplier)
    x = in_layout(x, layout)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "layout": layout}
    y = fastconv.separable_conv2d(x, depthwise, pointwise, **options)
    exact = reference.separable_conv2d(*(a.astype(np.float64) for a in (x, depthwise, pointwise)), **options)
    assert y.shape == exact.shape
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_one_dimension(layout):
    x, depthwise, pointwise = operands(6, 20, 12, (5000,), (9,))
    x = in_layout(x, layout)
    options = {"padding": "same", "stride": 2, "layout": layout}
    y = fastconv.separable_conv1d(x, depthwise, pointwise, **options)
    exact = reference.separable_conv1d(*(a.astype(np.float64) for a in (x, depthwise, pointwise)), **options)
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bits_depend_on_neither_threads_nor_batch(layout):
    x, depthwise, pointwise = operands(7, 48, 56, (30, 29), (3, 3), n=3)
    x = in_layout(x, layout)
    options = {"padding": 1, "layout": layout}
    with fastconv.num_threads(1):
        y = fastconv.separable_conv2d(x, depthwise, pointwise, **options)
    for threads in (2, 3, 7):
        with fastconv.num_threads(threads):
            np.testing.assert_array_equal(fastconv.separable_conv2d(x, depthwise, pointwise, **options), y)
    np.testing.assert_array_equal(fastconv.separable_conv2d(x[1], depthwise, pointwise, **options), y[1])
    prepared = fastconv.plan("separable_conv2d", x, depthwise, pointwise, **options)
    np.testing.assert_array_equal(prepared(x), y)
    np.testing.assert_array_equal(prepared(x[2:]), y[2:])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["reordered", "strided", "negative", "broadcast"])
def test_any_memory_order(layout, kind):
    shape = (2, 9, 11, 20) if layout == "NHWC" else (2, 20, 9, 11)
    x = testing.as_memory(testing.integer_data(shape, np.float32, seed=1), kind)
    depthwise = testing.as_memory(testing.integer_data((20, 1, 3, 3), np.float32, seed=2), kind)
    pointwise = testing.as_memory(testing.integer_data((24, 20, 1, 1), np.float32, seed=3), kind)
    expected = reference.separable_conv2d(x, depthwise, pointwise, padding=1, layout=layout)
    out = testing.as_memory(np.zeros_like(expected), "strided" if kind == "broadcast" else kind)
    options = {"padding": 1, "layout": layout}
    assert fastconv.separable_conv2d(x, depthwise, pointwise, out=out, **options) is out
    np.testing.assert_array_equal(out, expected)
    prepared = fastconv.plan("separable_conv2d", shape, depthwise, pointwise, **options)
    out[...] = 0
    assert prepared(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(prepared(x, residual=expected), 2 * expected)
    assert prepared.packed_bytes > 0
    assert prepared.workspace_bytes > 20 * 9 * 11 * 4  # the block of the intermediate is in it
    assert "separable_conv2d" in repr(prepared)


def test_empty_and_single():
    x, depthwise, pointwise = operands(8, 4, 6, (5, 5), (3, 3))
    assert fastconv.separable_conv2d(x[:0], depthwise, pointwise).shape == (0, 6, 3, 3)
    assert fastconv.separable_conv2d(x[0], depthwise, pointwise).shape == (6, 3, 3)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_gradients(layout, multiplier):
    x, depthwise, pointwise = operands(9, 18, 10, (9, 8), (3, 3), np.float64, multiplier=multiplier)
    x = in_layout(x, layout)
    options = {"padding": 1, "stride": 2, "layout": layout}
    y = fastconv.separable_conv2d(x, depthwise, pointwise, **options)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    got = fastconv.separable_conv2d_backward(dy, x, depthwise, pointwise, **options)
    expected = reference.separable_conv2d_backward(
        dy, x, depthwise, pointwise, needs=("input", "depthwise_weight", "pointwise_weight", "bias"), **options
    )
    for name in got._fields:
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=0, atol=1e-12, err_msg=name)
    # The adjoint identity, through each factor.
    for name, operand in (("input", x), ("depthwise_weight", depthwise), ("pointwise_weight", pointwise)):
        np.testing.assert_allclose(np.vdot(y, dy), np.vdot(getattr(got, name), operand), rtol=1e-10)
    some = fastconv.separable_conv2d_backward(dy, x, depthwise, pointwise, needs=("bias",), **options)
    assert some.input is None
    np.testing.assert_allclose(some.bias, expected.bias, rtol=0, atol=1e-12)


def test_errors_name_the_argument():
    x, depthwise, pointwise = operands(10, 8, 6, (5, 5), (3, 3))
    for arguments, options, kind, text in [
        ((x, depthwise[:7], pointwise), {}, ValueError, r"depthwise_weight \(shape \(7, 1, 3, 3\)\)"),
        ((x, depthwise, pointwise[:, :5]), {}, ValueError, r"pointwise_weight \(shape \(6, 5, 1, 1\)\)"),
        ((x[0, 0], depthwise, pointwise), {}, ValueError, r"x \(shape \(5, 5\)\)"),
        ((x, depthwise.astype(np.float64), pointwise), {}, TypeError, "depthwise_weight"),
        ((x, depthwise, pointwise), {"bias": np.zeros(5, np.float32)}, ValueError, "bias"),
        ((x, depthwise, pointwise), {"depthwise_bias": np.zeros(5, np.float32)}, ValueError, "depthwise_bias"),
        ((x, depthwise, pointwise), {"residual": x}, ValueError, "residual"),
        ((x, depthwise, pointwise), {"out": np.zeros((2, 6, 3, 4), np.float32)}, ValueError, "out"),
        ((x, depthwise, pointwise), {"stride": 0}, ValueError, "stride"),
        ((x, depthwise, pointwise), {"dilation": 3}, ValueError, "kernel"),
        ((x, depthwise, pointwise), {"depthwise_activation": "swish"}, ValueError, "input_activation|activation"),
        ((x.tolist(), depthwise, pointwise), {}, TypeError, "x"),
    ]:
        with pytest.raises(kind, match=text):
            fastconv.separable_conv2d(*arguments, **options)
    with pytest.raises(ValueError, match="needs"):
        fastconv.separable_conv2d_backward(x, x, depthwise, pointwise, needs=("weight",))
    with pytest.raises(ValueError, match="dy"):
        fastconv.separable_conv2d_backward(x, x, depthwise, pointwise)
    prepared = fastconv.plan("separable_conv2d", x, depthwise, pointwise)
    with pytest.raises(ValueError, match="x"):
        prepared(x[:, :7])
    with pytest.raises(TypeError, match="input_gate"):
        prepared(x, input_gate=x)
    with pytest.raises(ValueError, match="depthwise_weight"):
        fastconv.plan("separable_conv2d", x, np.concatenate([depthwise] * 2), np.concatenate([pointwise] * 2, 1))
