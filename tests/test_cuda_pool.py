"""Pooling on devices, against the reference in float64."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv import cuda, functional, reference

from .cuda_layers import DTYPES, EPS, LAYOUTS, on_device


def assert_close(y, expected, dtype, scale, terms):
    """Rounded once to the dtype; `terms` roundings of the accumulator before."""
    y = cuda.to_host(y).astype(np.float64)
    wide = EPS["float64" if dtype == "float64" else "float32"]
    bound = EPS[dtype] / 2 * np.abs(expected) + 2.0**-24 * (dtype == "float16") + terms * wide * scale + 1e-300
    assert y.shape == expected.shape
    wrong = ~((np.abs(y - expected) <= bound) | (np.isnan(y) & np.isnan(expected)) | (y == expected))
    assert not wrong.any(), (y[wrong][:4], expected[wrong][:4])


def image(rng, rank, batch, channels, size, last, ties=False):
    shape = (batch, *size, channels) if last else (batch, channels, *size)
    x = rng.standard_normal(shape)
    return np.round(x) if ties else x


# kernel, options: what the axes of a window have to offer.
WINDOWS = [
    (2, {}),
    (3, {"stride": 1, "padding": 1}),
    (3, {"stride": 2, "padding": 1, "ceil_mode": True}),
    (2, {"stride": 3}),
    (1, {"stride": 2}),
    (3, {"stride": 2, "padding": "same"}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max(device, rank, dtype, rng):
    cases = [*WINDOWS, (2, {"dilation": 2, "stride": 1}), (3, {"dilation": 2, "padding": 2})]
    for (kernel, options), last in itertools.product(cases, (False, True)):
        for channels in (3, 8, 16):
            layout = LAYOUTS[rank][last]
            # Ties, and NaN.
            x = image(rng, rank, 2, channels, (7, 9, 6)[:rank], last, ties=True)
            x.flat[5] = np.nan
            d, wide = on_device(x, dtype)
            f, r = (getattr(m, f"max_pool{rank}d") for m in (functional, reference))
            y, indices = f(d, kernel, return_indices=True, layout=layout, **options)
            expected, places = r(wide, kernel, return_indices=True, layout=layout, **options)
            np.testing.assert_array_equal(cuda.to_host(y), expected)
            np.testing.assert_array_equal(cuda.to_host(indices), places)
            np.testing.assert_array_equal(cuda.to_host(f(d, kernel, layout=layout, **options)), expected)
            dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
            f, r = (getattr(m, f"max_pool{rank}d_backward") for m in (functional, reference))
            dx = f(dy, d, kernel, layout=layout, **options)
            expected = r(wide_dy, wide, kernel, layout=layout, **options)
            assert_close(dx, expected, dtype, 4 * np.abs(wide_dy).max(), 8)
            by_indices = f(dy, d.shape, kernel, indices=indices, layout=layout, **options)
            np.testing.assert_array_equal(cuda.to_host(by_indices), cuda.to_host(dx))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_max_of_integers(device, dtype, rng):
    for last, channels in itertools.product((False, True), (3, 16)):
        x = (image(rng, 2, 2, channels, (7, 9), last) * 40).astype(dtype)
        layout = LAYOUTS[2][last]
        y, indices = functional.max_pool2d(cuda.to_device(x), 3, padding=1, return_indices=True, layout=layout)
        expected, places = reference.max_pool2d(x, 3, padding=1, return_indices=True, layout=layout)
        np.testing.assert_array_equal(cuda.to_host(y), expected)
        np.testing.assert_array_equal(cuda.to_host(indices), places)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_average(device, rank, dtype, rng):
    cases = [*WINDOWS, (3, {"padding": 1, "count_include_pad": False}), (2, {"divisor_override": 3})]
    for (kernel, options), last in itertools.product(cases, (False, True)):
        if rank == 1 and "divisor_override" in options:
            continue
        for channels in (3, 8):
            layout = LAYOUTS[rank][last]
            d, wide = on_device(image(rng, rank, 2, channels, (7, 9, 6)[:rank], last), dtype)
            f, r = (getattr(m, f"avg_pool{rank}d") for m in (functional, reference))
            y, expected = f(d, kernel, layout=layout, **options), r(wide, kernel, layout=layout, **options)
            assert_close(y, expected, dtype, np.abs(wide).max(), 30)
            dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
            f, r = (getattr(m, f"avg_pool{rank}d_backward") for m in (functional, reference))
            dx = f(dy, d.shape, kernel, layout=layout, **options)
            expected = r(wide_dy, wide.shape, kernel, layout=layout, **options)
            assert_close(dx, expected, dtype, np.abs(wide_dy).max(), 30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0, 1.5])
def test_lp(device, norm, dtype, rng):
    for rank, last, (kernel, options) in itertools.product((1, 2), (False, True), ((2, {}), (3, {"stride": 2}))):
        layout = LAYOUTS[rank][last]
        x = np.abs(image(rng, rank, 2, 3, (7, 9)[:rank], last)) + 0.1
        x[0] = 0  # no gradient there
        d, wide = on_device(x, dtype)
        f, r = (getattr(m, f"lp_pool{rank}d") for m in (functional, reference))
        y, expected = f(d, norm, kernel, layout=layout, **options), r(wide, norm, kernel, layout=layout, **options)
        assert_close(y, expected, dtype, np.abs(expected), 40)
        dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
        f, r = (getattr(m, f"lp_pool{rank}d_backward") for m in (functional, reference))
        dx = f(dy, d, norm, kernel, layout=layout, **options)
        expected = r(wide_dy, wide, norm, kernel, layout=layout, **options)
        assert_close(dx, expected, dtype, 10 * np.abs(wide_dy).max(), 40)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_adaptive_and_global(device, rank, kind, rng):
    for last, channels in itertools.product((False, True), (3, 8)):
        layout = LAYOUTS[rank][last]
        size = (7, 9, 5)[:rank]
        d, wide = on_device(image(rng, rank, 2, channels, size, last), "float32")
        for output in ((3, 4, 2)[:rank], (7, 3, 5)[:rank], 1):
            f, r = (getattr(m, f"adaptive_{kind}_pool{rank}d") for m in (functional, reference))
            y, expected = f(d, output, layout=layout), r(wide, output, layout=layout)
            assert_close(y, expected, "float32", np.abs(wide).max(), 30)
            dy, wide_dy = on_device(rng.standard_normal(expected.shape), "float32")
            f, r = (getattr(m, f"adaptive_{kind}_pool{rank}d_backward") for m in (functional, reference))
            dx = f(dy, d, layout=layout) if kind == "max" else f(dy, d.shape, layout=layout)
            expected = r(wide_dy, wide if kind == "max" else wide.shape, layout=layout)
            assert_close(dx, expected, "float32", 4 * np.abs(wide_dy).max(), 30)
        for keepdims in (False, True):
            f, r = (getattr(m, f"global_{kind}_pool{rank}d") for m in (functional, reference))
            y, expected = f(d, keepdims=keepdims, layout=layout), r(wide, keepdims=keepdims, layout=layout)
            assert_close(y, expected, "float32", np.abs(wide).max(), 30)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_windows(device, dtype, rng):
    # A block of threads a window: fewer taps than threads' rows, many more, and a number that they do not divide.
    for last, channels, size in itertools.product((False, True), (1, 3, 40), ((17, 19), (33, 25))):
        layout = LAYOUTS[2][last]
        x = image(rng, 2, 2, channels, size, last, ties=True)
        d, wide = on_device(x, dtype)
        for name, arguments, options in (
            ("global_avg_pool2d", (), {}),
            ("avg_pool2d", (17,), {"stride": 7}),
            ("lp_pool2d", (2.0, 17), {"stride": 8}),
        ):
            y, expected = (
                getattr(m, name)(a, *arguments, layout=layout, **options)
                for m, a in ((functional, d), (reference, wide))
            )
            assert_close(y, expected, dtype, max(np.abs(wide).max(), np.abs(expected).max()), 64)
        y, indices = functional.max_pool2d(d, 17, stride=8, return_indices=True, layout=layout)
        expected, places = reference.max_pool2d(wide, 17, stride=8, return_indices=True, layout=layout)
        np.testing.assert_array_equal(cuda.to_host(y), expected)
        np.testing.assert_array_equal(cuda.to_host(indices), places)
        # Codes of four bytes.
        dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
        dx = functional.max_pool2d_backward(dy, d, 17, stride=8, layout=layout)
        expected = reference.max_pool2d_backward(wide_dy, wide, 17, stride=8, layout=layout)
        assert_close(dx, expected, dtype, 40 * np.abs(wide_dy).max(), 40)


def test_first_maximum_and_first_nan_of_a_large_window(device):
    x = np.zeros((1, 1, 24, 24), np.float32)
    for values, place in (({}, 0), ({300: 1, 500: 1}, 300), ({300: 1, 511: np.nan, 400: np.nan}, 400)):
        image_of = x.copy()
        for at, value in values.items():
            image_of.flat[at] = value
        _, indices = functional.max_pool2d(cuda.to_device(image_of), 24, return_indices=True)
        assert cuda.to_host(indices).item() == place


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling(device, rank, rng):
    for last, dtype in itertools.product((False, True), DTYPES):
        layout = LAYOUTS[rank][last]
        d, wide = on_device(image(rng, rank, 2, 3, (6, 8, 4)[:rank], last), dtype)
        for kernel, stride in ((2, 2), (3, 1)):
            options = {"stride": stride, "layout": layout}
            y, indices = getattr(functional, f"max_pool{rank}d")(d, kernel, return_indices=True, **options)
            places = cuda.to_host(indices)
            wide_y = cuda.to_host(y).astype(np.float64)
            f, r = (getattr(m, f"max_unpool{rank}d") for m in (functional, reference))
            x, expected = f(y, indices, kernel, **options), r(wide_y, places, kernel, **options)
            np.testing.assert_array_equal(cuda.to_host(x), expected)
            dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
            f, r = (getattr(m, f"max_unpool{rank}d_backward") for m in (functional, reference))
            dx, expected = f(dy, indices, layout=layout), r(wide_dy, places, layout=layout)
            np.testing.assert_array_equal(cuda.to_host(dx), expected)
    del wide


def test_indices_that_point_outside_are_passed_over(device):
    x = cuda.to_device(np.ones((1, 1, 2, 2), np.float32))
    indices = cuda.to_device(np.array([[[[0, -5], [1 << 40, 3]]]]))
    y = cuda.to_host(functional.max_unpool2d(x, indices, 2))
    assert y.ravel().tolist() == [1, 0, 0, 1] + [0] * 12
    dx = cuda.to_host(functional.max_unpool2d_backward(cuda.to_device(np.ones((1, 1, 4, 4), np.float32)), indices))
    np.testing.assert_array_equal(dx.ravel(), [1, np.nan, np.nan, 1])


@given(
    rank=st.integers(1, 3),
    kind=st.sampled_from(["max", "avg"]),
    last=st.booleans(),
    channels=st.integers(1, 9),
    size=st.lists(st.integers(1, 11), min_size=3, max_size=3),
    kernel=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    stride=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    padding=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    ceil_mode=st.booleans(),
    batch=st.integers(0, 3),
    step=st.sampled_from([1, 2, -1]),
)
def test_any_layer(device, rank, kind, last, channels, size, kernel, stride, padding, ceil_mode, batch, step):
    size, kernel, stride = size[:rank], kernel[:rank], stride[:rank]
    padding = [min(p, k // 2) for p, k in zip(padding[:rank], kernel, strict=True)]
    if any(n + 2 * p < k for n, p, k in zip(size, padding, kernel, strict=True)):
        return
    rng = np.random.default_rng(channels)
    layout = LAYOUTS[rank][last]
    whole = cuda.to_device(image(rng, rank, batch, channels, [n * abs(step) for n in size], last).astype(np.float32))
    taken = (slice(None, None, step),) * rank
    d = whole[(slice(None), *taken)] if last else whole[(slice(None), slice(None), *taken)]
    wide = cuda.to_host(d).astype(np.float64)
    options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode, "layout": layout}
    try:
        expected = getattr(reference, f"{kind}_pool{rank}d")(wide, kernel, **options)
    except ValueError:
        with pytest.raises(ValueError, match=r"padding|stride"):
            getattr(functional, f"{kind}_pool{rank}d")(d, kernel, **options)
        return
    assert_close(getattr(functional, f"{kind}_pool{rank}d")(d, kernel, **options), expected, "float32", 4, 70)
    dy, wide_dy = on_device(rng.standard_normal(expected.shape), "float32")
    of, wide_of = (d, wide) if kind == "max" else (d.shape, wide.shape)
    dx = getattr(functional, f"{kind}_pool{rank}d_backward")(dy, of, kernel, **options)
    expected = getattr(reference, f"{kind}_pool{rank}d_backward")(wide_dy, wide_of, kernel, **options)
    assert_close(dx, expected, "float32", 40, 70)


def test_the_batch_changes_no_bit(device, rng):
    for channels, last in ((8, True), (3, False)):
        x = image(rng, 2, 3, channels, (21, 23), last).astype(np.float32)
        layout = LAYOUTS[2][last]
        for f in (
            lambda a, layout=layout: functional.avg_pool2d(a, 3, stride=2, layout=layout),
            lambda a, layout=layout: functional.global_avg_pool2d(a, layout=layout),
        ):
            whole = cuda.to_host(f(cuda.to_device(x)))
            for i in range(3):
                np.testing.assert_array_equal(cuda.to_host(f(cuda.to_device(x[i : i + 1])))[0], whole[i])


def test_refusals(device, rng):
    x = rng.standard_normal((1, 2, 6, 6)).astype(np.float32)
    d = cuda.to_device(x)
    _, indices = functional.max_pool2d(d, 2, return_indices=True)
    with pytest.raises(TypeError, match=r"indices \(on the host\) must be on the device of x, cuda:0"):
        functional.max_unpool2d(functional.max_pool2d(d, 2), cuda.to_host(indices), 2)
    with pytest.raises(TypeError, match=r"x \(dtype float16\) must have dtype"):
        functional.max_pool2d(x.astype(np.float16), 2)
    with pytest.raises(TypeError, match=r"x \(dtype int32\) must have dtype float32, float64, float16 or bfloat16"):
        functional.avg_pool2d(cuda.to_device(x.astype(np.int32)), 2)
    with pytest.raises(ValueError, match="kernel"):
        functional.max_pool2d(d, 9)
    with pytest.raises(ValueError, match=r"out \(shape \(1, 2, 6, 6\)\) must have shape \(1, 2, 3, 3\)"):
        functional.max_pool2d(d, 2, out=d)
