"""Gradients: every pair of options, the adjoint identity on integers (exact), finite differences."""

import itertools

import numpy as np
import pytest

from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = (np.float32, np.float64)
OPS = [f"conv{d}d" for d in (1, 2, 3)] + [f"conv_transpose{d}d" for d in (1, 2, 3)]
GRADIENTS = ("_backward_input", "_backward_weight", "_backward_bias", "_backward")


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("op", [*OPS, "linear"])
def test_all_pairs_of_options(op, gradient):
    failures, count = [], 0
    for i, choice in enumerate(testing.all_pairs(testing.option_table(op + gradient, functional))):
        count += 1
        case = testing.make_case(op + gradient, choice, seed=i)
        try:
            case.check(case.call(functional))
        except Exception as e:
            failures.append(f"{choice}\n    {type(e).__name__}: {e}")
    assert count > 10
    assert not failures, f"{len(failures)} of {count} cases fail:\n" + "\n".join(failures[:5])


def geometries(op):
    """Options of the geometry for the adjoint tests: each mode, with strides, dilation, groups and uneven padding."""
    rank = int(op[-2])
    uneven = ((2, 1), (0, 3), (1, 0))[:rank]
    if "transpose" in op:
        yield from (
            {"stride": 2, "padding": 1, "output_padding": 1},
            {"stride": (3, 1, 2)[:rank], "padding": uneven, "groups": 2},
            {"dilation": 2, "padding": "same"},
            {"stride": 2, "padding": "same_lower", "groups": 2},
        )
        return
    for mode in ("zeros", "reflect", "replicate", "circular"):
        yield {"padding": uneven, "padding_mode": mode}
        yield {"padding": 2, "padding_mode": mode, "stride": 2, "groups": 2}
        yield {"padding": "same", "padding_mode": mode, "dilation": 2, "stride": (1, 2, 3)[:rank]}


def operands(op, options, dtype, layout, seed=0):
    rank, groups = int(op[-2]), options.get("groups", 1)
    size, kernel = (13, 9, 7)[:rank], (3, 4, 2)[:rank]
    c, k = 6 * groups, 10 * groups
    x = testing.integer_data((2, *size, c) if layout == "NHWC" else (2, c, *size), dtype, seed=seed)
    first = (c, k // groups) if "transpose" in op else (k, c // groups)
    return x, testing.integer_data((*first, *kernel), dtype, seed=seed + 1)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_adjoint_identity_is_exact_on_integers(op, dtype, layout):
    for options in geometries(op):
        x, w = operands(op, options, dtype, layout)
        options = {**options, "layout": layout}
        y = getattr(functional, op)(x, w, **options)
        dy = testing.integer_data(y.shape, dtype, seed=9)
        dx = getattr(functional, f"{op}_backward_input")(dy, w, x.shape, **options)
        dw = getattr(functional, f"{op}_backward_weight")(dy, x, w.shape, **options)

        def inner(a, b):
            return int((a.astype(np.float64) * b).sum())

        assert inner(y, dy) == inner(dx, x) == inner(dw, w), options
        # The identity holds for any adjoint pair: the reference decides that it is this one.
        np.testing.assert_array_equal(y, getattr(reference, op)(x, w, **options))
        expected = getattr(reference, f"{op}_backward")(dy, x, w, **options)
        np.testing.assert_array_equal(dx, expected.input, err_msg=str(options))
        np.testing.assert_array_equal(dw, expected.weight, err_msg=str(options))


def slope(forward, operands, which, at, dy, options):
    """The derivative of <forward, dy> by one element of an operand, from a central difference."""
    step = np.zeros_like(operands[which])
    step[at] = 0.5
    up, down = list(operands), list(operands)
    up[which], down[which] = operands[which] + step, operands[which] - step
    return ((forward(*up, **options) - forward(*down, **options)) * dy).sum()


@pytest.mark.parametrize("op", OPS)
def test_finite_differences(op, rng):
    # The layer is linear in each operand, so that a central difference is exact but for rounding whatever its step.
    for options in geometries(op):
        pair = [a + rng.standard_normal(a.shape) for a in operands(op, options, np.float64, "NCHW")]
        forward = getattr(functional, op)
        dy = rng.standard_normal(forward(*pair, **options).shape)
        gradients = getattr(functional, f"{op}_backward")(dy, *pair, **options)
        for which, gradient in enumerate((gradients.input, gradients.weight)):
            for flat in rng.choice(gradient.size, 6, replace=False):
                at = np.unravel_index(flat, gradient.shape)
                expected = slope(forward, pair, which, at, dy, options)
                np.testing.assert_allclose(gradient[at], expected, rtol=1e-10, atol=1e-10, err_msg=f"{options} {at}")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (3, 30, 16, 7, 2, 3, 1, 1),
        (37, 15, 53, 3, 1, 1, 1, 1),
        (64, 14, 96, 1, 1, 0, 1, 1),
        (96, 14, 64, 1, 2, 0, 1, 1),
        (200, 7, 300, 3, 1, 1, 1, 1),
        (24, 20, 40, 3, 1, 2, 2, 2),
        (32, 9, 32, 3, 1, 1, 1, 32),
        (5, 60, 7, 3, 1, 1, 1, 1),
    ],
    ids=str,
)
def test_exact_on_integers(shape, dtype, layout):
    c, n, k, r, stride, padding, dilation, groups = shape
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "layout": layout}
    axes = (3, n, n + 1, c) if layout == "NHWC" else (3, c, n, n + 1)
    x = testing.integer_data(axes, dtype, seed=1, limit=3)
    for op, first in (("conv2d", (k, c // groups)), ("conv_transpose2d", (c, k // groups))):
        w = testing.integer_data((*first, r, r), dtype, seed=2, limit=3)
        dy = testing.integer_data(getattr(reference, op)(x, w, **options).shape, dtype, seed=3, limit=3)
        got = getattr(functional, f"{op}_backward")(dy, x, w, **options, algorithm="direct")
        expected = getattr(reference, f"{op}_backward")(dy, x, w, **options)
        for name in got._fields:
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=f"{op} {name}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradient_tails_are_exact(dtype):
    for k, c, pixels in itertools.product((1, 3, 7, 8, 9, 17, 33), (1, 2, 7, 8, 17), (1, 2, 5, 16, 31)):
        x, dy = testing.integer_data((2, c, pixels + 2), dtype, seed=k), testing.integer_data((2, k, pixels), dtype)
        dw = functional.conv1d_backward_weight(dy, x, (k, c, 3))
        expected = reference.conv1d_backward_weight(dy, x, (k, c, 3))
        np.testing.assert_array_equal(dw, expected, err_msg=f"k={k} c={c} pixels={pixels}")
        dx = functional.conv1d_backward_input(dy, dw, x.shape)
        expected = reference.conv1d_backward_input(dy, dw, x.shape)
        np.testing.assert_array_equal(dx, expected, err_msg=f"k={k} c={c} pixels={pixels}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_stride_zero_gradients_are_exact(dtype):
    # The gradient of a sum is one value, repeated through strides of zero.
    x, w = testing.integer_data((2, 6, 9, 8), dtype, seed=1), testing.integer_data((5, 6, 3, 3), dtype, seed=2)
    dy = np.broadcast_to(dtype(3), (2, 5, 9, 8))
    got = functional.conv2d_backward(dy, np.broadcast_to(x[:1], x.shape), w, padding=1)
    expected = reference.conv2d_backward(dy, np.broadcast_to(x[:1], x.shape), w, padding=1)
    for name in got._fields:
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


@pytest.mark.parametrize("op", [*OPS, "linear"])
def test_accumulate_adds_into_what_is_there(op):
    if op == "linear":
        options, x, w = {}, testing.integer_data((5, 6)), testing.integer_data((10, 6), seed=1)
    else:
        options = {"stride": 2, "padding": 1}
        x, w = operands(op, options, np.float32, "NCHW")
    dy = testing.integer_data(getattr(reference, op)(x, w, **options).shape, seed=3)
    backward = getattr(functional, f"{op}_backward")
    plain = backward(dy, x, w, **options)
    into = {name: testing.integer_data(getattr(plain, name).shape, seed=4) for name in plain._fields}
    before = {name: a.copy() for name, a in into.items()}
    summed = backward(dy, x, w, accumulate=into, **options)
    for name, a in into.items():
        assert getattr(summed, name) is a
        np.testing.assert_array_equal(a, before[name] + getattr(plain, name))
    # A tuple as an earlier call returned it serves too; what is None there comes back new.
    again = backward(dy, x, w, accumulate=plain._replace(bias=None), needs=("input", "bias"), **options)
    assert again.weight is None
    assert again.input is plain.input
    assert again.bias is not plain.bias
    np.testing.assert_array_equal(again.bias, plain.bias)


def test_empty_batch_gives_zero_weight_gradients():
    x, dy = np.empty((0, 3, 6, 6), np.float32), np.empty((0, 4, 4, 4), np.float32)
    w = np.ones((4, 3, 3, 3), np.float32)
    got = functional.conv2d_backward(dy, x, w)
    assert got.input.shape == x.shape
    assert got.weight.shape == w.shape
    assert not got.weight.any()
    assert not got.bias.any()
    into = np.ones_like(w)
    functional.conv2d_backward_weight(dy, x, w.shape, accumulate=True, out=into)
    assert (into == 1).all()


def test_pixels_that_no_output_reads_have_no_gradient():
    # Stride 3 with a kernel of 2 skips every third pixel, and the last ones are out of reach.
    dy = np.ones((1, 1, 2, 2), np.float32)
    dx = functional.conv2d_backward_input(dy, np.ones((1, 1, 2, 2), np.float32), (1, 1, 7, 6), stride=3)
    row = [1, 1, 0, 1, 1, 0]
    none = [0] * 6
    assert dx[0, 0].tolist() == [row, row, none, row, row, none, none]
