"""NaN, infinities and denormals go through as in the reference."""

import numpy as np
import pytest

import fastconv
from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = (np.float32, np.float64)
SPECIAL = (np.nan, np.inf, -np.inf)


def layout_of(a, layout):
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if layout == "NHWC" else a


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize(
    ("c", "k", "r", "options"),
    [
        (19, 21, 3, {"padding": 1}),
        (5, 40, 1, {}),
        (3, 16, 5, {"stride": 2, "padding": 2, "padding_mode": "reflect"}),
        (8, 8, 3, {"groups": 8, "padding": "same"}),
    ],
)
def test_one_value_reaches_what_the_reference_says(rng, c, k, r, options, value, dtype, layout):
    groups = options.get("groups", 1)
    options = {**options, "layout": layout}
    x = layout_of(rng.standard_normal((2, c, 9, 11)).astype(dtype), layout)
    w = rng.standard_normal((k, c // groups, r, r)).astype(dtype)
    dy = rng.standard_normal(reference.conv2d(x, w, **options).shape).astype(dtype)
    for target in (x, w, dy):
        at = tuple(rng.integers(n) for n in target.shape)
        kept, target[at] = target[at], value
        testing.assert_close_to_reference(functional.conv2d(x, w, **options), "conv2d", x, w, **options)
        got = functional.conv2d_backward(dy, x, w, **options)
        testing.assert_close_to_reference(got.weight, "conv2d_backward_weight", dy, x, w.shape, **options)
        testing.assert_close_to_reference(got.bias, "conv2d_backward_bias", dy, layout=layout)
        if target is w:
            check_input_gradient_of_nonfinite_weight(got.input, dy, x, w, at, options)
        else:
            testing.assert_close_to_reference(got.input, "conv2d_backward_input", dy, w, x.shape, **options)
        target[at] = kept


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("value", SPECIAL)
def test_a_weight_that_meets_mostly_padding(rng, value, layout):
    # Zero times infinity is a NaN: the tiles may pass over the padding only where every weight is finite.
    options = {"padding": 7, "dilation": 7, "layout": layout}
    x = layout_of(rng.standard_normal((1, 16, 12, 13)).astype(np.float32), layout)
    w = rng.standard_normal((17, 16, 3, 3)).astype(np.float32)
    w[3, 5, 0, 2] = value
    testing.assert_close_to_reference(functional.conv2d(x, w, **options), "conv2d", x, w, **options)
    testing.assert_close_to_reference(fastconv.plan("conv2d", x, w, **options)(x), "conv2d", x, w, **options)


def check_input_gradient_of_nonfinite_weight(dx, dy, x, w, at, options):
    """The weight reaches all that the reference says, and only the input channel that it belongs to.

    Within that channel the border may hold more: the kernels read zeros beyond dy's border, and 0 * infinity is a NaN,
    as with the padding of the forward pass; the reference adds no such terms.
    """
    expected, bound = testing.reference_with_bound("conv2d_backward_input", dy, w, x.shape, **options)
    per_group, per_output = w.shape[1], w.shape[0] // options.get("groups", 1)
    channel = at[0] // per_output * per_group + at[1]
    axis = -1 if options["layout"] == "NHWC" else 1
    finite = np.isfinite(dx)
    assert not (finite & ~np.isfinite(expected)).any()
    assert (np.abs(dx[finite] - expected[finite]) <= bound[finite]).all()
    extra = np.moveaxis(~finite & np.isfinite(expected), axis, 0)
    assert not np.delete(extra, channel, 0).any()
    # The inside of the image is out of reach of the border.
    inside = (slice(None), slice(4, -4), slice(4, -4))
    assert not extra[channel][inside].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", testing.ACTIVATIONS, ids=str)
def test_activations_of_nonfinite_values(activation, dtype):
    x = np.array([[np.nan, np.inf, -np.inf, 1.0] * 5], dtype)
    one = np.ones((1, 1, 1), dtype)
    x = x.reshape(1, 1, -1)
    for options in ({"activation": activation}, {"input_activation": activation}):
        y = functional.conv1d(x, one, **options)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(reference.conv1d(x, one, **options)))
        testing.assert_close_to_reference(y, "conv1d", x, one, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_gives_infinity(dtype):
    big = np.finfo(dtype).max
    x = np.full((1, 4, 3, 3), big, dtype)
    y = functional.conv2d(x, np.ones((2, 4, 1, 1), dtype))
    assert (y == np.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_are_honoured_and_flushed_on_request(dtype):
    tiny = float(np.finfo(dtype).tiny)
    x = np.full((1, 8, 6, 6), tiny / 64, dtype)  # denormal
    w = np.full((16, 8, 1, 1), 0.5, dtype)
    expected = dtype(8 * 0.5 * tiny / 64)
    assert 0 < expected < tiny
    assert (functional.conv2d(x, w) == expected).all()
    for threads in (1, 2):
        with fastconv.num_threads(threads), fastconv.flush_denormals(True):
            assert (functional.conv2d(x, w) == 0).all()
        # The caller's own arithmetic and the next call keep their denormals.
        assert (x * dtype(0.5) != 0).all()
        assert (functional.conv2d(x, w) == expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_that_underflows_is_rounded_not_dropped(dtype):
    tiny = float(np.finfo(dtype).tiny)
    x, w = np.full((1, 3, 4, 4), tiny, dtype), np.full((2, 3, 3, 3), 2.0**-8, dtype)
    testing.assert_close_to_reference(functional.conv2d(x, w), "conv2d", x, w)
    assert (functional.conv2d(x, w) == dtype(27 * tiny / 256)).all()
