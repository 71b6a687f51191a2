"""Pooling: every option against the reference, gradients, exactness, invariance, guards and messages."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = (np.float32, np.float64)
INTEGERS = (np.int8, np.uint8, np.int16, np.int32, np.int64)
RANKS = (1, 2, 3)
LAYOUTS = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}
SIZES = {1: (23,), 2: (11, 14), 3: (5, 8, 9)}
MEMORY = ("contiguous", "reordered", "strided", "negative")
THREADS = (1, 2, 3, 7)


def put(array, kind, last=False, *, batched=True):
    """The array in another memory order; an unbatched one has its axes counted as if it had a batch."""
    kind = "reordered_last" if kind == "reordered" and last else kind
    return testing.as_memory(array, kind) if batched else testing.as_memory(array[np.newaxis], kind)[0]


def is_last(layout):
    return layout[-1] == "C"


def image_shape(rank, layout, channels, batch, size=None):
    size = SIZES[rank] if size is None else size
    axes = (*size, channels) if is_last(layout) else (channels, *size)
    return axes if batch is None else (batch, *axes)


def values(rng, shape, dtype, *, ties=False):
    """Normal numbers, or few different integers, of which many windows hold their maximum more than once."""
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(max(info.min, -5), 6, shape).astype(dtype)
    return rng.integers(-4, 5, shape).astype(dtype) if ties else rng.standard_normal(shape).astype(dtype)


def check_sum(op, result, *arrays, **options):
    """A result of sums against float64, with c = 4 on the sum of the terms' sizes."""
    doubles = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in arrays]
    sizes = [np.abs(a) if isinstance(a, np.ndarray) else a for a in doubles]
    expected, size = (getattr(reference, op)(*a, **options) for a in (doubles, sizes))
    dtype = result.dtype
    bound = testing.direct_error_bound(size, dtype, 4 * testing.oracle_factor(dtype))
    testing.assert_within(result, testing.Bounded(expected, bound), op)


def check_lp(result, x, norm_type, kernel_size, **options):
    """The sum's bound, through the root; the powers round, too."""
    name = f"lp_pool{x.ndim - 2}d"
    x = x.astype(np.float64)
    expected = getattr(reference, name)(x, norm_type, kernel_size, **options)
    total = getattr(reference, name)(np.abs(x), norm_type, kernel_size, **options)
    with np.errstate(invalid="ignore", divide="ignore"):
        eps = float(np.finfo(result.dtype).eps)
        bound = 8 * eps * (total / np.abs(expected)) ** norm_type * np.abs(expected) + 8 * eps * np.abs(expected)
        bound = np.nan_to_num(bound, nan=0.0) + float(np.finfo(result.dtype).tiny)
    testing.assert_within(result, testing.Bounded(expected, bound), name)


# -------------------------------------------------------------------------------------------- every pair of options


def window_table(rank, kind):
    table = {
        "kernel_size": (1, 2, 3, (3, 2, 4)[:rank], 5),
        "stride": (None, 1, 2, (2, 3, 1)[:rank]),
        "ceil_mode": (False, True, "unclipped"),
        "layout": LAYOUTS[rank],
        "dtype": (*DTYPES, *INTEGERS) if kind == "max" else DTYPES,
        "batch": (None, 1, 3),
        "channels": (1, 5, 16, 19),
        "memory": MEMORY,
        "out": (None, *MEMORY),
    }
    if kind != "lp":
        table["padding"] = (0, 1, ((0, 1), (1, 0), (1, 1))[:rank], "valid", "same", "same_lower")
    if kind == "max":
        table["dilation"] = (1, 2, (1, 3, 2)[:rank])
        table["return_indices"] = (False, True)
    elif kind == "average":
        table["count_include_pad"] = (True, False)
        table["divisor_override"] = (None, 7)
    else:
        table["norm_type"] = (1, 2.0, 3, 1.5)
    return table


def make(rng, rank, row, *, ties=False):
    row = dict(row)
    dtype, batch, memory, out = (row.pop(k) for k in ("dtype", "batch", "memory", "out"))
    last = is_last(row["layout"])
    shape = image_shape(rank, row["layout"], row.pop("channels"), batch)
    x = values(rng, shape, dtype, ties=ties)
    kernel = row.pop("kernel_size", None)
    return put(x, memory, last, batched=batch is not None), kernel, row, (out, last, batch is not None)


def target(place, shape, dtype):
    """The keyword `out` in the memory order that a row of the table asks for."""
    kind, last, batched = place
    return {} if kind is None else {"out": put(np.full(shape, 77, dtype), kind, last, batched=batched)}


def refused_alike(op, *arguments, **options):
    """Whether the reference refuses the call; then the compiled function does, with the value in its text."""
    try:
        return False, getattr(reference, op)(*arguments, **options)
    except ValueError:
        with pytest.raises(ValueError, match=r"\d"):
            getattr(functional, op)(*arguments, **options)
        return True, None


@pytest.mark.parametrize("rank", RANKS)
def test_max_all_pairs(rng, rank):
    served = 0
    for row in testing.all_pairs(window_table(rank, "max"), seed=1):
        x, kernel, options, place = make(rng, rank, row, ties=True)
        with_indices = options.pop("return_indices")
        refused, expected = refused_alike(f"max_pool{rank}d", x, kernel, return_indices=True, **options)
        if refused:
            continue
        served += 1
        call = {**options, **target(place, expected[0].shape, x.dtype), "return_indices": with_indices}
        got = getattr(functional, f"max_pool{rank}d")(x, kernel, **call)
        y, indices = got if with_indices else (got, None)
        assert "out" not in call or y is call["out"]
        np.testing.assert_array_equal(y, expected[0], strict=True, err_msg=str(row))
        if with_indices:
            np.testing.assert_array_equal(indices, expected[1], strict=True, err_msg=str(row))
        if x.dtype.kind != "f":
            continue
        dy = put(
            values(rng, y.shape, x.dtype, ties=True), row["memory"], is_last(row["layout"]), batched=x.ndim > rank + 1
        )
        want = getattr(reference, f"max_pool{rank}d_backward")(dy, x, kernel, **options)
        back = {**options, **target(place, x.shape, x.dtype)}
        for operand, extra in ((x, {}), (x, {"indices": expected[1]}), (x.shape, {"indices": expected[1]})):
            dx = getattr(functional, f"max_pool{rank}d_backward")(dy, operand, kernel, **back, **extra)
            np.testing.assert_array_equal(dx, want, strict=True, err_msg=f"{row} {list(extra)}")
    assert served > 20


@pytest.mark.parametrize("rank", RANKS)
def test_average_all_pairs(rng, rank):
    served = 0
    for row in testing.all_pairs(window_table(rank, "average"), seed=2):
        x, kernel, options, place = make(rng, rank, row)
        refused, expected = refused_alike(f"avg_pool{rank}d", x, kernel, **options)
        if refused:
            continue
        served += 1
        y = getattr(functional, f"avg_pool{rank}d")(x, kernel, **options, **target(place, expected.shape, x.dtype))
        check_sum(f"avg_pool{rank}d", y, x, kernel, **options)
        dy = put(values(rng, y.shape, x.dtype), row["memory"], is_last(row["layout"]), batched=x.ndim > rank + 1)
        back = {**options, **target(place, x.shape, x.dtype)}
        dx = getattr(functional, f"avg_pool{rank}d_backward")(dy, x.shape, kernel, **back)
        check_sum(f"avg_pool{rank}d_backward", dx, dy, x.shape, kernel, **options)
    assert served > 20


@pytest.mark.parametrize("rank", RANKS)
def test_lp_all_pairs(rng, rank):
    for row in testing.all_pairs(window_table(rank, "lp"), seed=3):
        x, kernel, options, place = make(rng, rank, {**row, "batch": row["batch"] or 1})
        norm = options.pop("norm_type")
        if norm in (1.5, 3):
            x = np.abs(x) + x.dtype.type(0.1)
        y = getattr(functional, f"lp_pool{rank}d")(x, norm, kernel, **options)
        check_lp(y, x, norm, kernel, **options)
        assert getattr(functional, f"lp_pool{rank}d")(x, norm, kernel, **options, out=y) is y
        dy = values(rng, y.shape, x.dtype)
        back = {**options, **target(place, x.shape, x.dtype)}
        dx = getattr(functional, f"lp_pool{rank}d_backward")(dy, x, norm, kernel, **back)
        double = (x.astype(float), norm, kernel)
        want = getattr(reference, f"lp_pool{rank}d_backward")(dy.astype(float), *double, **options)
        size = getattr(reference, f"lp_pool{rank}d_backward")(
            np.abs(dy).astype(float), np.abs(double[0]), *double[1:], **options
        )
        if norm == 1:  # the root of a sum of signed terms magnifies their roundings
            size = np.maximum(size, np.abs(want))
        bound = 40 * float(np.finfo(x.dtype).eps) * size + float(np.finfo(x.dtype).tiny)
        testing.assert_within(dx, testing.Bounded(want, bound), str(row))


@pytest.mark.parametrize("rank", RANKS)
def test_adaptive_and_global_all_pairs(rng, rank):
    table = {
        "output_size": (1, 2, 3, None, (3, None, 2)[:rank], (SIZES[rank][0] + 3, 4, 20)[:rank]),
        "layout": LAYOUTS[rank],
        "dtype": (*DTYPES, *INTEGERS),
        "batch": (None, 1, 3),
        "channels": (1, 5, 16, 19),
        "memory": MEMORY,
        "out": (None, *MEMORY),
        "keepdims": (False, True),
    }
    for row in testing.all_pairs(table, seed=4):
        x, _, options, place = make(rng, rank, row, ties=True)
        size, keep, layout = options["output_size"], options["keepdims"], {"layout": options["layout"]}
        want, want_indices = getattr(reference, f"adaptive_max_pool{rank}d")(x, size, return_indices=True, **layout)
        y, indices = getattr(functional, f"adaptive_max_pool{rank}d")(
            x, size, return_indices=True, **layout, **target(place, want.shape, x.dtype)
        )
        np.testing.assert_array_equal(y, want, strict=True, err_msg=str(row))
        np.testing.assert_array_equal(indices, want_indices, strict=True, err_msg=str(row))
        peak = getattr(reference, f"global_max_pool{rank}d")(x, keepdims=keep, **layout)
        out = {} if row["out"] is None else {"out": np.zeros_like(peak)}
        got = getattr(functional, f"global_max_pool{rank}d")(x, keepdims=keep, **layout, **out)
        assert not out or got is out["out"]
        np.testing.assert_array_equal(got, peak, strict=True)
        if x.dtype.kind != "f":
            continue
        x = put(values(rng, x.shape, x.dtype), row["memory"], is_last(row["layout"]), batched=x.ndim > rank + 1)
        mean = getattr(functional, f"adaptive_avg_pool{rank}d")(x, size, **layout, **target(place, want.shape, x.dtype))
        check_sum(f"adaptive_avg_pool{rank}d", mean, x, size, **layout)
        dy = values(rng, y.shape, x.dtype)
        into = target(place, x.shape, x.dtype)
        dx = getattr(functional, f"adaptive_avg_pool{rank}d_backward")(dy, x.shape, **layout, **into)
        check_sum(f"adaptive_avg_pool{rank}d_backward", dx, dy, x.shape, **layout)
        dy = values(rng, y.shape, x.dtype, ties=True)
        dx = getattr(functional, f"adaptive_max_pool{rank}d_backward")(dy, x, **layout, **into)
        want = getattr(reference, f"adaptive_max_pool{rank}d_backward")(dy, x, **layout)
        np.testing.assert_array_equal(dx, want, strict=True, err_msg=str(row))
        mean = getattr(functional, f"global_avg_pool{rank}d")(x, keepdims=keep, **layout)
        check_sum(f"global_avg_pool{rank}d", mean, x, keepdims=keep, **layout)
        dy = values(rng, mean.shape, x.dtype)
        for kind, operand in (("avg", x.shape), ("max", x)):
            name = f"global_{kind}_pool{rank}d_backward"
            dx = getattr(functional, name)(dy, operand, keepdims=keep, **layout, **into)
            want = getattr(reference, name)(dy, operand, keepdims=keep, **layout)
            np.testing.assert_allclose(dx, want, rtol=4 * np.finfo(x.dtype).eps)


@pytest.mark.parametrize("rank", RANKS)
def test_unpool(rng, rank):
    for layout, dtype, memory, batch in itertools.product(LAYOUTS[rank], DTYPES, MEMORY, (None, 2)):
        last = is_last(layout)
        x = values(rng, image_shape(rank, layout, 5, batch), dtype)
        y, indices = getattr(functional, f"max_pool{rank}d")(x, 2, return_indices=True, layout=layout)
        y, indices = (put(a, memory, last, batched=batch is not None) for a in (y, indices))
        pixels = x.shape[-rank - 1 : -1] if last else x.shape[-rank:]
        even = all(n % 2 == 0 for n in pixels)  # else the last elements of x are beyond the usual size
        for size in (None, pixels, x.shape) if even else (pixels, x.shape):
            got = getattr(functional, f"max_unpool{rank}d")(y, indices, 2, output_size=size, layout=layout)
            want = getattr(reference, f"max_unpool{rank}d")(y, indices, 2, output_size=size, layout=layout)
            np.testing.assert_array_equal(got, want, strict=True)
            dy = put(values(rng, got.shape, dtype), memory, last, batched=batch is not None)
            dx = getattr(functional, f"max_unpool{rank}d_backward")(dy, indices, layout=layout)
            want = getattr(reference, f"max_unpool{rank}d_backward")(dy, indices, layout=layout)
            np.testing.assert_array_equal(dx, want, strict=True)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("view", ["padded rows", "reversed rows", "every other column"])
def test_scatters_stay_within_a_view(view, layout):
    shape = image_shape(2, layout, 3, 2, (6, 8))
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    y, indices = functional.max_pool2d(x, 2, return_indices=True, layout=layout)
    h, w = (1, 2) if layout == "NHWC" else (2, 3)
    big = np.full([n + 4 if i == h else 2 * n + 4 if i == w else n for i, n in enumerate(shape)], 7, np.float32)
    inner = [slice(None)] * 4
    inner[h] = slice(2, 8) if view != "reversed rows" else slice(7, 1, -1)
    inner[w] = slice(2, 10) if view != "every other column" else slice(2, 18, 2)
    out = big[tuple(inner)]
    outside = np.ones(big.shape, bool)
    outside[tuple(inner)] = False
    dy = testing.integer_data(y.shape, np.float32, seed=3)
    for call, expected in (
        (functional.max_unpool2d, functional.max_unpool2d(dy, indices, 2, layout=layout)),
        (
            lambda dy, i, k, **o: functional.max_pool2d_backward(dy, x.shape, k, indices=i, **o),
            reference.max_pool2d_backward(dy, x, 2, layout=layout),
        ),
    ):
        big[...] = 7
        assert call(dy, indices, 2, layout=layout, out=out) is out
        np.testing.assert_array_equal(out, expected)
        assert (big[outside] == 7).all()


def test_unpool_of_equal_indices_keeps_the_last():
    x = np.array([[[1.0, 2.0, 3.0]]])
    indices = np.array([[[4, 4, 0]]])
    np.testing.assert_array_equal(functional.max_unpool1d(x, indices, 2), [[[3.0, 0, 0, 0, 2.0, 0]]])


# ----------------------------------------------------------------------------------- shapes that vectors meet badly

# (channels, height, width, kernel, stride, padding): the fast shapes with tails of every kind, and windows that are
# wider than the image's rest.
SHAPES = [
    *((c, 9, w, 2, 2, 0) for c, w in ((1, 2), (3, 33), (16, 64), (17, 7), (40, 35))),
    *((c, 9, w, 3, 2, 1) for c, w in ((1, 3), (3, 33), (16, 64), (17, 7), (40, 35), (5, 112), (64, 20))),
    *((c, 9, w, 3, 1, 1) for c, w in ((1, 1), (3, 33), (16, 64), (17, 7), (40, 35), (5, 17), (64, 20))),
    (3, 40, 131, 3, 2, 0),
    (21, 13, 13, 5, 1, 2),
    (7, 13, 13, 13, 1, 6),
    (3, 30, 41, 4, 3, 1),
    (130, 6, 6, 3, 1, 1),
    (2, 3, 700, 3, 1, 1),
    (2, 5, 701, 2, 2, 0),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_on_integers(shape, dtype, layout):
    c, h, w, kernel, stride, padding = shape
    x = testing.integer_data(image_shape(2, layout, c, 2, (h, w)), dtype, seed=1)
    options = {"stride": stride, "padding": padding, "layout": layout}
    y, indices = functional.max_pool2d(x, kernel, return_indices=True, **options)
    want, want_indices = reference.max_pool2d(x, kernel, return_indices=True, **options)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(indices, want_indices)
    np.testing.assert_array_equal(functional.max_pool2d(x, kernel, **options), want)
    # Sums are exact and each is divided once: the quotient is the correctly rounded one.
    for more in ({}, {"count_include_pad": False}, {"ceil_mode": True}, {"divisor_override": 4}):
        np.testing.assert_array_equal(
            functional.avg_pool2d(x, kernel, **options, **more), reference.avg_pool2d(x, kernel, **options, **more)
        )
    dy = testing.integer_data(y.shape, dtype, seed=2)
    np.testing.assert_array_equal(
        functional.max_pool2d_backward(dy, x, kernel, **options),
        reference.max_pool2d_backward(dy, x, kernel, **options),
    )
    np.testing.assert_array_equal(
        functional.avg_pool2d_backward(dy, x.shape, kernel, divisor_override=2, **options),
        reference.avg_pool2d_backward(dy, x.shape, kernel, divisor_override=2, **options),
    )
    check_sum(
        "avg_pool2d_backward",
        functional.avg_pool2d_backward(dy, x.shape, kernel, **options),
        dy,
        x.shape,
        kernel,
        **options,
    )
    norm = functional.lp_pool2d(x, 2, kernel, stride=stride, layout=layout) if h >= kernel <= w else None
    if norm is not None:
        check_lp(norm, x, 2, kernel, stride=stride, layout=layout)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_maxima(rng, shape, dtype, layout):
    c, h, w, kernel, stride, padding = shape
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, image_shape(2, layout, c, 2, (h, w)), dtype, endpoint=True)
    options = {"stride": stride, "padding": padding, "layout": layout}
    np.testing.assert_array_equal(
        functional.max_pool2d(x, kernel, **options), reference.max_pool2d(x, kernel, **options), strict=True
    )


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
def test_every_tail_is_exact(dtype, layout):
    for c, n in itertools.product((1, 2, 7, 15, 16, 17, 33), (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 34, 63, 65)):
        x = testing.integer_data((2, n, c) if layout == "NLC" else (2, c, n), dtype, seed=c)
        for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0), (4, 3, 2)):
            if kernel > n + 2 * padding:
                continue
            options = {"stride": stride, "padding": padding, "layout": layout}
            what = f"c={c} n={n} kernel={kernel} stride={stride}"
            y, want = functional.max_pool1d(x, kernel, **options), reference.max_pool1d(x, kernel, **options)
            np.testing.assert_array_equal(y, want, err_msg=what)
            if np.dtype(dtype).kind != "f":
                continue
            y = functional.avg_pool1d(x, kernel, **options)
            np.testing.assert_array_equal(y, reference.avg_pool1d(x, kernel, **options), err_msg=what)
            dy = testing.integer_data(y.shape, dtype, seed=n)
            dx = functional.max_pool1d_backward(dy, x, kernel, **options)
            np.testing.assert_array_equal(dx, reference.max_pool1d_backward(dy, x, kernel, **options), err_msg=what)
            dx = functional.avg_pool1d_backward(dy, x.shape, kernel, divisor_override=1, **options)
            want = reference.avg_pool1d_backward(dy, x.shape, kernel, divisor_override=1, **options)
            np.testing.assert_array_equal(dx, want, err_msg=what)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_windows_of_like_numbers(dtype, layout):
    # One number, many times over, would round to one side in a single long chain.
    x = np.full(image_shape(2, layout, 3, 1, (150, 170)), 0.1, dtype)
    for y in (functional.global_avg_pool2d(x, layout=layout), functional.avg_pool2d(x, (150, 85), layout=layout)):
        np.testing.assert_allclose(y, x.flat[0], rtol=4 * np.finfo(dtype).eps)


# ------------------------------------------------------------------------------------------- NaN, infinity, padding


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2)])
def test_nan_wins_and_infinity_stays(rng, kernel, stride, padding, dtype, layout):
    options = {"stride": stride, "padding": padding, "layout": layout}
    for share in (0.001, 0.02, 0.5):
        x = rng.standard_normal(image_shape(2, layout, 19, 2, (21, 37))).astype(dtype)
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            x[rng.random(x.shape) < share] = value
        y, indices = functional.max_pool2d(x, kernel, return_indices=True, **options)
        want, want_indices = reference.max_pool2d(x, kernel, return_indices=True, **options)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(functional.max_pool2d(x, kernel, **options), want)
        np.testing.assert_array_equal(indices, want_indices)
        dy = rng.integers(-4, 5, y.shape).astype(dtype)
        dx = functional.max_pool2d_backward(dy, x, kernel, **options)
        np.testing.assert_array_equal(dx, reference.max_pool2d_backward(dy, x, kernel, **options))
        for mode in (True, False):
            got = functional.avg_pool2d(x, kernel, count_include_pad=mode, **options)
            with np.errstate(invalid="ignore"):
                want = reference.avg_pool2d(x, kernel, count_include_pad=mode, **options)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
            np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
        for pool in ("global", "adaptive"):
            size = () if pool == "global" else ((3, 4),)
            got = getattr(functional, f"{pool}_max_pool2d")(x, *size, layout=layout)
            np.testing.assert_array_equal(got, getattr(reference, f"{pool}_max_pool2d")(x, *size, layout=layout))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_nan_of_a_gradient_stays_in_its_window(rng, layout):
    x = rng.standard_normal(image_shape(2, layout, 19, 1, (15, 40))).astype(np.float32)
    for kernel, stride, padding in ((3, 2, 1), (2, 2, 0), (3, 1, 1)):
        options = {"stride": stride, "padding": padding, "layout": layout}
        dy = rng.integers(-4, 5, reference.max_pool2d(x, kernel, **options).shape).astype(np.float32)
        dy[rng.random(dy.shape) < 0.05] = np.nan
        dy[rng.random(dy.shape) < 0.05] = np.inf
        with np.errstate(invalid="ignore"):
            want = reference.max_pool2d_backward(dy, x, kernel, **options)
            want_average = reference.avg_pool2d_backward(dy, x.shape, kernel, divisor_override=1, **options)
        np.testing.assert_array_equal(functional.max_pool2d_backward(dy, x, kernel, **options), want)
        got = functional.avg_pool2d_backward(dy, x.shape, kernel, divisor_override=1, **options)
        np.testing.assert_array_equal(got, want_average)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [*DTYPES, *INTEGERS])
def test_padding_never_wins(dtype, layout):
    lowest = -np.inf if np.dtype(dtype).kind == "f" else np.iinfo(dtype).min
    for value in (lowest, np.dtype(dtype).type(0) - (np.dtype(dtype).kind != "u")):
        x = np.full(image_shape(2, layout, 18, 1, (6, 7)), value, dtype)
        y, indices = functional.max_pool2d(x, 3, stride=2, padding=1, return_indices=True, layout=layout)
        assert (y == value).all()
        want = reference.max_pool2d(x, 3, stride=2, padding=1, return_indices=True, layout=layout)[1]
        np.testing.assert_array_equal(indices, want)
        assert (functional.max_pool2d(x, 3, stride=2, padding=1, layout=layout) == value).all()


def test_ceil_modes():
    x = np.arange(1.0, 5.0).reshape(1, 1, 4)
    for mode, want in ((False, [1, 3]), (True, [1, 3]), ("pytorch", [1, 3]), ("unclipped", [1, 3, -np.inf])):
        np.testing.assert_array_equal(functional.max_pool1d(x, 1, stride=2, ceil_mode=mode), [[want]])
    y, indices = functional.max_pool1d(x, 1, stride=2, ceil_mode="unclipped", return_indices=True)
    np.testing.assert_array_equal(indices, [[[0, 2, -1]]])
    dx = functional.max_pool1d_backward(np.ones_like(y), x, 1, stride=2, ceil_mode="unclipped")
    np.testing.assert_array_equal(dx, [[[1, 0, 1, 0]]])
    average = functional.avg_pool1d(x, 1, stride=2, ceil_mode="unclipped", count_include_pad=False)
    np.testing.assert_array_equal(average, [[[1, 3, 0]]])
    least = functional.max_pool1d(x.astype(np.int16), 1, stride=2, ceil_mode="unclipped")
    np.testing.assert_array_equal(least, [[[1, 3, -32768]]])
    np.testing.assert_array_equal(functional.max_pool1d(x, 3, stride=2, ceil_mode=True), [[[3, 4]]])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_whole_row_of_empty_windows(layout):
    """The last row lies beyond the image, in all its columns; `out` holds something else before."""
    x = np.arange(1.0, 1 + 3 * 4 * 9).reshape(image_shape(2, layout, 3, 1, (4, 9)))
    options = {"stride": 2, "ceil_mode": "unclipped", "layout": layout}
    want, want_indices = reference.max_pool2d(x, 1, return_indices=True, **options)
    assert np.isinf(want).any()
    out = np.full_like(want, 77)
    y, indices = functional.max_pool2d(x, 1, return_indices=True, out=out, **options)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(indices, want_indices)
    np.testing.assert_array_equal(functional.max_pool2d(x, 1, out=np.full_like(want, 77), **options), want)
    average = functional.avg_pool2d(x, 1, out=np.full_like(want, 77), **options)
    np.testing.assert_array_equal(average, reference.avg_pool2d(x, 1, **options))
    dy = np.ones_like(want)
    dx = functional.max_pool2d_backward(dy, x, 1, out=np.full_like(x, 77), **options)
    np.testing.assert_array_equal(dx, reference.max_pool2d_backward(dy, x, 1, **options))


# --------------------------------------------------------------------------------------------- gradients by definition


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients_are_adjoint(rng, layout):
    """<dy, pool'(x) v> = <dx, v>: the average is linear, and so is a maximum whose places are fixed."""
    x = rng.standard_normal(image_shape(2, layout, 18, 2, (11, 19)))
    v = rng.standard_normal(x.shape)
    options = {"stride": 2, "padding": 1, "layout": layout}
    y = functional.avg_pool2d(v, 3, count_include_pad=False, **options)
    dy = rng.standard_normal(y.shape)
    dx = functional.avg_pool2d_backward(dy, x.shape, 3, count_include_pad=False, **options)
    assert np.vdot(dy, y) == pytest.approx(np.vdot(dx, v))
    indices = functional.max_pool2d(x, 3, return_indices=True, **options)[1]
    taken = functional.max_unpool2d_backward(v, indices, layout=layout)
    dx = functional.max_pool2d_backward(dy, x, 3, **options)
    assert np.vdot(dy, taken) == pytest.approx(np.vdot(dx, v))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "name", ["max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"]
)
def test_gradients_are_finite_differences(rng, name, layout):
    x = rng.permutation(4 * 5 * 6).reshape(image_shape(2, layout, 4, None, (5, 6))) / 32.0 + 0.5
    arguments, options = {
        "max_pool2d": ((3,), {"stride": 2, "padding": 1}),
        "avg_pool2d": ((3,), {"stride": 2, "padding": 1, "count_include_pad": False}),
        "lp_pool2d": ((3.0, 2), {"stride": 1, "ceil_mode": True}),
        "adaptive_max_pool2d": (((2, 4),), {}),
        "adaptive_avg_pool2d": (((2, 4),), {}),
    }[name]
    options["layout"] = layout

    def loss(a):
        y = getattr(functional, name)(a, *arguments, **options)
        return float(np.vdot(y, np.cos(np.arange(y.size)).reshape(y.shape)))

    y = getattr(functional, name)(x, *arguments, **options)
    dy = np.cos(np.arange(y.size)).reshape(y.shape)
    operand = x.shape if "avg" in name else x
    rest = () if "adaptive" in name else arguments
    dx = getattr(functional, f"{name}_backward")(dy, operand, *rest, **options)
    step, numeric = 1e-6, np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        kept = x[i]
        x[i] = kept + step
        above = loss(x)
        x[i] = kept - step
        numeric[i] = (above - loss(x)) / (2 * step)
        x[i] = kept
    np.testing.assert_allclose(dx, numeric, atol=1e-7)


# -------------------------------------------------------------------------------------------------------- invariance

LAYERS = [
    ("max_pool2d", (3, 40, 61, 57), (3,), {"stride": 2, "padding": 1}),
    ("max_pool2d", (2, 70, 33, 34), (2,), {}),
    ("max_pool2d", (2, 19, 33, 34), (3,), {"stride": 1, "padding": 1}),
    ("avg_pool2d", (3, 40, 61, 57), (3,), {"stride": 1, "padding": 1}),
    ("avg_pool2d", (2, 24, 66, 64), (5,), {"stride": 3, "padding": 2, "count_include_pad": False}),
    ("avg_pool1d", (2, 3, 20011), (4,), {"stride": 2}),
    ("avg_pool3d", (2, 9, 12, 14, 15), (2,), {}),
    ("max_pool3d", (2, 9, 12, 14, 15), (3,), {"stride": 2, "padding": 1}),
    ("lp_pool2d", (2, 24, 41, 43), (2, 3), {"stride": 2}),
    ("adaptive_avg_pool2d", (2, 40, 61, 57), ((7, 6),), {}),
    ("global_avg_pool2d", (3, 130, 61, 57), (), {}),
    ("global_max_pool2d", (3, 130, 61, 57), (), {}),
]


def passes(name, x, arguments, options):
    y = getattr(functional, name)(x, *arguments, **options)
    dy = np.random.default_rng(5).standard_normal(y.shape).astype(x.dtype)
    operand = x.shape if "avg" in name else x
    rest = () if "adaptive" in name else arguments
    yield "forward", lambda: getattr(functional, name)(x, *arguments, **options)
    yield "backward", lambda: getattr(functional, f"{name}_backward")(dy, operand, *rest, **options)


def same_bits(a, b, what):
    assert a.shape == b.shape
    assert np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}")), f"{what}: bits differ"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "shape", "arguments", "options"), LAYERS, ids=lambda v: v if isinstance(v, str) else None
)
def test_same_bits(name, shape, arguments, options, dtype, last):
    rank = len(shape) - 2
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x
    options = {**options, "layout": LAYOUTS[rank][last]}
    for what, call in passes(name, x, arguments, options):
        whole = call()
        for threads in THREADS:
            with fastconv.num_threads(threads):
                same_bits(call(), whole, f"{what} with {threads} threads")
    y = getattr(functional, name)(x, *arguments, **options)
    dy = np.random.default_rng(5).standard_normal(y.shape).astype(dtype)
    rest = () if "adaptive" in name else arguments
    back = getattr(functional, f"{name}_backward")
    dx = back(dy, x.shape if "avg" in name else x, *rest, **options)
    for n in (0, len(x) - 1):
        same_bits(getattr(functional, name)(x[n], *arguments, **options), y[n], "unbatched")
        same_bits(getattr(functional, name)(x[n : n + 1], *arguments, **options)[0], y[n], "alone")
        operand = x[n].shape if "avg" in name else x[n]
        same_bits(back(dy[n], operand, *rest, **options), dx[n], "gradient unbatched")


def test_output_follows_the_memory_order_of_the_input(rng):
    x = rng.standard_normal((2, 8, 9, 11)).astype(np.float32)
    last = testing.as_memory(x, "reordered")
    for a, followed in ((x, False), (last, True)):
        y, indices = functional.max_pool2d(a, 2, return_indices=True)
        dx = functional.max_pool2d_backward(y, a, 2)
        for result in (y, indices, dx, functional.avg_pool2d(a, 3)):
            assert (np.moveaxis(result, 1, -1) if followed else result).flags.c_contiguous


def test_empty_batch_and_empty_operands():
    x = np.zeros((0, 3, 8, 9), np.float32)
    y, indices = functional.max_pool2d(x, 2, return_indices=True)
    assert y.shape == indices.shape == (0, 3, 4, 4)
    assert functional.max_pool2d_backward(y, x, 2).shape == x.shape
    assert functional.avg_pool2d_backward(y, x.shape, 2).shape == x.shape
    assert functional.max_unpool2d(y, indices, 2).shape == (0, 3, 8, 8)
    assert functional.global_avg_pool2d(x, keepdims=False).shape == (0, 3)


# ------------------------------------------------------------------------------------------------------------ guards

GUARDED = [
    ("max_pool2d", (2,), {}),
    ("max_pool2d", (3,), {"stride": 2, "padding": 1}),
    ("max_pool2d", (3,), {"stride": 1, "padding": 1}),
    ("max_pool2d", (4,), {"stride": 3, "dilation": 2}),
    ("avg_pool2d", (2,), {}),
    ("avg_pool2d", (3,), {"stride": 1, "padding": 1, "count_include_pad": False}),
    ("avg_pool2d", (3,), {"stride": 2, "ceil_mode": True}),
    ("lp_pool2d", (2, 3), {"stride": 2}),
    ("adaptive_avg_pool2d", ((3, 4),), {}),
    ("adaptive_max_pool2d", ((3, 4),), {}),
    ("global_avg_pool2d", (), {}),
    ("global_max_pool2d", (), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), GUARDED, ids=lambda v: v if isinstance(v, str) else None)
def test_guarded_buffers(rng, name, arguments, options):
    for layout, dtype, memory in itertools.product(LAYOUTS[2], DTYPES, ("contiguous", "strided", "reordered")):
        for c, h, w in ((1, 9, 9), (3, 10, 17), (16, 9, 35), (19, 11, 33)):
            o = {**options, "layout": layout}
            plain = rng.integers(-4, 5, image_shape(2, layout, c, 2, (h, w))).astype(dtype)  # sums are exact
            x = testing.guarded_copy(put(plain, memory, is_last(layout)))
            want = getattr(functional, name)(plain, *arguments, **o)
            like = put(want, memory, is_last(layout))
            out = testing.guarded(want.shape, dtype, strides=tuple(s // like.itemsize for s in like.strides))
            getattr(functional, name)(x.array, *arguments, **o, out=out.array)
            out.check()
            x.check(unchanged=True)
            np.testing.assert_array_equal(out.array, want)
            dy = testing.guarded_copy(like)
            into = testing.guarded(
                plain.shape,
                dtype,
                strides=tuple(s // plain.itemsize for s in put(plain, memory, is_last(layout)).strides),
            )
            rest = () if "adaptive" in name else arguments
            operand = plain.shape if "avg" in name else x.array
            getattr(functional, f"{name}_backward")(dy.array, operand, *rest, **o, out=into.array)
            for guard in (dy, x):
                guard.check(unchanged=True)
            into.check()
            operand = plain.shape if "avg" in name else plain
            expected = getattr(functional, f"{name}_backward")(want, operand, *rest, **o)
            np.testing.assert_allclose(into.array, expected, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- properties


@st.composite
def problems(draw):
    rank = draw(st.integers(1, 3))
    limit = {1: 40, 2: 12, 3: 6}[rank]
    layout = draw(st.sampled_from(LAYOUTS[rank]))
    size = draw(st.tuples(*[st.integers(1, limit)] * rank))

    def per_dimension(low, high):
        return draw(st.integers(low, high) | st.tuples(*[st.integers(low, high)] * rank))

    options = {
        "stride": draw(st.none() | st.integers(1, 3)),
        "padding": draw(
            st.integers(0, 3)
            | st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * rank)
            | st.sampled_from(["valid", "same", "same_lower"])
        ),
        "ceil_mode": draw(st.sampled_from([False, True, "unclipped"])),
        "layout": layout,
    }
    lead = draw(st.sampled_from([None, 1, 2, 0]))
    x = testing.integer_data(
        image_shape(rank, layout, draw(st.integers(1, 20)), lead, size),
        draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 1000)),
    )
    if lead:
        x = put(x, draw(st.sampled_from([*MEMORY, "broadcast"])), is_last(layout))
    return rank, x, per_dimension(1, 4), per_dimension(1, 3), options


@given(problem=problems())
def test_random_layers(problem):
    rank, x, kernel, dilation, options = problem
    name = f"max_pool{rank}d"
    refused, expected = refused_alike(name, x, kernel, dilation=dilation, return_indices=True, **options)
    if not refused:
        y, indices = getattr(functional, name)(x, kernel, dilation=dilation, return_indices=True, **options)
        np.testing.assert_array_equal(y, expected[0], strict=True)
        np.testing.assert_array_equal(indices, expected[1], strict=True)
        np.testing.assert_array_equal(
            getattr(functional, name)(x, kernel, dilation=dilation, **options), y, strict=True
        )
        dy = testing.integer_data(y.shape, x.dtype, seed=7)
        dx = getattr(functional, f"{name}_backward")(dy, x, kernel, dilation=dilation, **options)
        want = getattr(reference, f"{name}_backward")(dy, x, kernel, dilation=dilation, **options)
        np.testing.assert_array_equal(dx, want, strict=True)
    name = f"avg_pool{rank}d"
    refused, expected = refused_alike(name, x, kernel, **options)
    if not refused:
        np.testing.assert_array_equal(getattr(functional, name)(x, kernel, **options), expected, strict=True)
        dy = testing.integer_data(expected.shape, x.dtype, seed=7)
        dx = getattr(functional, f"{name}_backward")(dy, x.shape, kernel, divisor_override=2, **options)
        want = getattr(reference, f"{name}_backward")(dy, x.shape, kernel, divisor_override=2, **options)
        np.testing.assert_array_equal(dx, want, strict=True)


# ------------------------------------------------------------------------------------------------------------ PyTorch


@pytest.mark.parametrize("rank", RANKS)
def test_as_pytorch(rng, rank):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x = rng.standard_normal((2, 5, *(11, 14, 9)[:rank]))
    t = torch.from_numpy(x.copy()).requires_grad_()

    def gradient(y):
        dy = torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(y.shape)))
        t.grad = None
        y.backward(dy)
        return dy.numpy(), t.grad.numpy()

    for kernel, stride, padding, ceil in itertools.product((2, 3), (1, 2, 3), (0, 1), (False, True)):
        o = {"stride": stride, "padding": padding, "ceil_mode": ceil}
        want, places = getattr(f, f"max_pool{rank}d")(t, kernel, return_indices=True, **o)
        y, indices = getattr(functional, f"max_pool{rank}d")(x, kernel, return_indices=True, **o)
        np.testing.assert_array_equal(y, want.detach().numpy())
        np.testing.assert_array_equal(indices, places.numpy())
        dy, dx = gradient(want)
        np.testing.assert_allclose(getattr(functional, f"max_pool{rank}d_backward")(dy, x, kernel, **o), dx, atol=1e-12)
        for include in (True, False):
            p = {**o, "count_include_pad": include}
            want = getattr(f, f"avg_pool{rank}d")(t, kernel, **p)
            np.testing.assert_allclose(
                getattr(functional, f"avg_pool{rank}d")(x, kernel, **p), want.detach().numpy(), atol=1e-12
            )
            dy, dx = gradient(want)
            got = getattr(functional, f"avg_pool{rank}d_backward")(dy, x.shape, kernel, **p)
            np.testing.assert_allclose(got, dx, atol=1e-12)
        if padding == 0:
            for norm in (1, 2, 3):
                o = {"stride": stride, "ceil_mode": ceil}
                want = getattr(f, f"lp_pool{rank}d")(t, norm, kernel, **o)
                y = getattr(functional, f"lp_pool{rank}d")(x, norm, kernel, **o)
                want_y = want.detach().numpy()
                same = ~np.isnan(want_y)
                np.testing.assert_array_equal(np.isnan(y), ~same)
                np.testing.assert_allclose(y[same], want_y[same], atol=1e-12)
                if norm == 2:
                    dy, dx = gradient(want)
                    got = getattr(functional, f"lp_pool{rank}d_backward")(dy, x, norm, kernel, **o)
                    np.testing.assert_allclose(got, dx, atol=1e-12)
    for size in (1, 4, (3, None, 5)[:rank]):
        want, places = getattr(f, f"adaptive_max_pool{rank}d")(t, size, return_indices=True)
        y, indices = getattr(functional, f"adaptive_max_pool{rank}d")(x, size, return_indices=True)
        np.testing.assert_array_equal(y, want.detach().numpy())
        np.testing.assert_array_equal(indices, places.numpy())
        want = getattr(f, f"adaptive_avg_pool{rank}d")(t, size)
        y = getattr(functional, f"adaptive_avg_pool{rank}d")(x, size)
        np.testing.assert_allclose(y, want.detach().numpy(), atol=1e-12)
        dy, dx = gradient(want)
        np.testing.assert_allclose(
            getattr(functional, f"adaptive_avg_pool{rank}d_backward")(dy, x.shape), dx, atol=1e-12
        )


# ----------------------------------------------------------------------------------------------------------- messages

X = np.ones((2, 3, 8, 9), np.float32)
Y = np.ones((2, 3, 4, 4), np.float32)
I = np.zeros((2, 3, 4, 4), np.int64)  # noqa: E741
F = functional
BAD = [
    (lambda: F.max_pool2d(X, 0), ValueError, "kernel_size (=0) must be at least 1"),
    (lambda: F.max_pool2d(X, (2, 2, 2)), ValueError, "kernel_size (=(2, 2, 2)) must be one integer or have one entry"),
    (lambda: F.max_pool2d(X, 2.0), TypeError, "kernel_size (=2.0) must be an integer"),
    (lambda: F.max_pool2d(X, True), TypeError, "kernel_size (=True) must be an integer, not a bool"),
    (lambda: F.max_pool2d(X, 2, stride=0), ValueError, "stride (=0) must be at least 1"),
    (lambda: F.max_pool2d(X, 2, dilation=0), ValueError, "dilation (=0) must be at least 1"),
    (lambda: F.max_pool2d(X, 2, padding=-1), ValueError, "padding (=-1) must be at least 0"),
    (lambda: F.max_pool2d(X, 2, padding="full"), ValueError, "padding (='full')"),
    (lambda: F.max_pool2d(X, 2, ceil_mode=1), TypeError, "ceil_mode (=1) must be True, False or the name"),
    (lambda: F.max_pool2d(X, 2, ceil_mode="up"), ValueError, "ceil_mode (='up') must be one of"),
    (lambda: F.max_pool2d(X, 2, return_indices=1), TypeError, "return_indices (=1) must be True or False"),
    (lambda: F.max_pool2d(X, 2, layout="NCDHW"), ValueError, "layout (='NCDHW') must be one of"),
    (lambda: F.max_pool2d(X, 2, layout=["NCHW"]), TypeError, "layout (=['NCHW']) must be a string"),
    (
        lambda: F.max_pool2d(X, 10),
        ValueError,
        "kernel height (=10) must not exceed the padded input height (=8 + 0 + 0",
    ),
    (lambda: F.max_pool2d(X, 3, padding=3), ValueError, "padding (=3 and 3) must leave every window"),
    (lambda: F.avg_pool2d(X, 2, padding=((0, 2), (0, 0))), ValueError, "padding (=0 and 2) must leave every window"),
    (lambda: F.max_pool1d(X[:, :, 0, :1], 2, dilation=2, padding=1), ValueError, "the window at -1 has none"),
    (lambda: F.max_pool2d([1.0], 2), TypeError, "x is of type list and must be a numpy.ndarray"),
    (
        lambda: F.max_pool2d(X.astype(np.float16), 2),
        TypeError,
        "x (dtype float16) must have dtype float32, float64, int8",
    ),
    (lambda: F.max_pool2d(X.astype(np.uint16), 2), TypeError, "x (dtype uint16)"),
    (lambda: F.max_pool2d(X.astype(bool), 2), TypeError, "x (dtype bool)"),
    (lambda: F.max_pool2d(X.astype(">i4"), 2), TypeError, "x (dtype >i4) must have native byte order"),
    (lambda: F.avg_pool2d(X.astype(np.int32), 2), TypeError, "x (dtype int32) must have dtype float32 or float64"),
    (lambda: F.lp_pool2d(X.astype(np.int32), 2, 2), TypeError, "x (dtype int32) must have dtype float32 or float64"),
    (lambda: F.max_pool2d(X[0, 0], 2), ValueError, "x (shape (8, 9)) must have 4 dimensions (N, C, H, W), or 3"),
    (lambda: F.max_pool2d(X[:, :0], 2), ValueError, "must have at least one channel"),
    (lambda: F.max_pool2d(X[:, :, :0], 2), ValueError, "at least one element in every spatial dimension"),
    (lambda: F.max_pool2d(X, 2, out=Y[:1]), ValueError, "out (shape (1, 3, 4, 4)) must have shape (2, 3, 4, 4)"),
    (
        lambda: F.max_pool2d(X, 2, out=Y.astype(float)),
        TypeError,
        "out (dtype float64) must have the dtype of x, float32",
    ),
    (lambda: F.max_pool2d(X, 2, out=Y.astype(np.int32)), TypeError, "out (dtype int32) must have the dtype of x"),
    (lambda: F.max_pool2d(X, 2, out=X[:, :, ::2, :8:2]), ValueError, "out (shape (2, 3, 4, 4)) must not overlap x"),
    (lambda: F.avg_pool2d(X, 2, count_include_pad=0), TypeError, "count_include_pad (=0) must be True or False"),
    (lambda: F.avg_pool2d(X, 2, divisor_override=0), ValueError, "divisor_override (=0) must not be zero"),
    (lambda: F.avg_pool2d(X, 2, divisor_override=1.5), TypeError, "divisor_override (=1.5) must be an integer"),
    (lambda: F.lp_pool2d(X, 0, 2), ValueError, "norm_type (=0.0) must be a positive, finite number"),
    (lambda: F.lp_pool2d(X, math.inf, 2), ValueError, "norm_type (=inf) must be a positive, finite number"),
    (lambda: F.lp_pool2d(X, "2", 2), TypeError, "norm_type (='2') must be a number"),
    (lambda: F.adaptive_avg_pool2d(X, 0), ValueError, "output_size (=0) must be at least 1"),
    (
        lambda: F.adaptive_avg_pool2d(X, (1, 2, 3)),
        ValueError,
        "output_size (=(1, 2, 3)) must be one integer or have one",
    ),
    (lambda: F.adaptive_avg_pool2d(X, "big"), TypeError, "output_size (='big') must be an integer"),
    (lambda: F.global_avg_pool2d(X, keepdims=1), TypeError, "keepdims (=1) must be True or False"),
    (lambda: F.max_pool2d_backward(Y, X.shape, 2), TypeError, "x (=(2, 3, 8, 9)) must be a numpy.ndarray; its shape"),
    (lambda: F.max_pool2d_backward(Y[:1], X, 2), ValueError, "dy (shape (1, 3, 4, 4)) must have shape (2, 3, 4, 4)"),
    (lambda: F.max_pool2d_backward(Y, X.astype(float), 2), TypeError, "x (dtype float64) must have the dtype of dy"),
    (lambda: F.max_pool2d_backward(Y.astype(np.int32), X, 2), TypeError, "dy (dtype int32) must have dtype float32"),
    (
        lambda: F.max_pool2d_backward(Y, X, 2, indices=I + 72),
        ValueError,
        "indices (with the entry 72) must lie between",
    ),
    (lambda: F.max_pool2d_backward(Y, X, 2, indices=I - 2), ValueError, "indices (with the entry -2) must lie between"),
    (lambda: F.max_pool2d_backward(Y, X, 2, indices=I[:1]), ValueError, "indices (shape (1, 3, 4, 4)) must have shape"),
    (lambda: F.max_pool2d_backward(Y, X, 2, indices=Y), TypeError, "indices (dtype float32) must have dtype int64"),
    (lambda: F.avg_pool2d_backward(Y, (2, 3, 8), 2), ValueError, "input_shape (=(2, 3, 8)) must have 4 entries"),
    (lambda: F.avg_pool2d_backward(Y, 8, 2), TypeError, "input_shape (=8) must be a tuple of integers"),
    (
        lambda: F.avg_pool2d_backward(Y, (2, 3, 20, 9), 2),
        ValueError,
        "dy (shape (2, 3, 4, 4)) must have shape (2, 3, 10, 4)",
    ),
    (lambda: F.global_max_pool2d_backward(Y, X), ValueError, "dy (shape (2, 3, 4, 4)) must have shape (2, 3, 1, 1)"),
    (lambda: F.global_max_pool2d_backward(Y, X, keepdims=False), ValueError, "dy (shape (2, 3, 4, 4)) must have 2 dim"),
    (
        lambda: F.adaptive_avg_pool2d_backward(Y[..., :0], X.shape),
        ValueError,
        "must have at least one element a channel",
    ),
    (lambda: F.max_unpool2d(Y, I - 1, 2), ValueError, "indices (with the entry -1) must lie between 0 and 63"),
    (lambda: F.max_unpool2d(Y, I + 64, 2), ValueError, "indices (with the entry 64) must lie between 0 and 63"),
    (lambda: F.max_unpool2d(Y, I[:1], 2), ValueError, "indices (shape (1, 3, 4, 4)) must have shape (2, 3, 4, 4)"),
    (lambda: F.max_unpool2d(Y, I.astype(np.int32), 2), TypeError, "indices (dtype int32) must have dtype int64"),
    (lambda: F.max_unpool2d(Y, None, 2), TypeError, "indices is of type NoneType and must be a numpy.ndarray"),
    (
        lambda: F.max_unpool2d(Y, I, 2, output_size=(8, 12)),
        ValueError,
        "output_size (=(8, 12)) must be within a stride",
    ),
    (lambda: F.max_unpool2d(Y, I, 2, output_size=(8,)), ValueError, "output_size (=(8,)) must have one entry"),
    (lambda: F.max_unpool2d(Y, I, 2, padding=((0, 1), 0)), ValueError, "padding (=((0, 1), 0)) must be one integer"),
    (lambda: F.max_unpool2d_backward(X, I[:1]), ValueError, "indices (shape (1, 3, 4, 4)) must have the batch and the"),
    (lambda: F.max_unpool2d_backward(X, I + 72), ValueError, "indices (with the entry 72) must lie between 0 and 71"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[text[:40] for *_, text in BAD])
def test_errors_name_argument_value_and_rule(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
    assert type(caught.value) is error


def test_a_refused_call_writes_nothing():
    out = np.full(X.shape, 7, np.float32)
    for indices in (I + 72, I - 2):
        with pytest.raises(ValueError, match="indices"):
            F.max_pool2d_backward(Y, X.shape, 2, indices=indices, out=out)
    with pytest.raises(ValueError, match="indices"):
        F.max_unpool2d(Y, I - 1, 2, output_size=(8, 9), out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_still_refused_elsewhere(dtype):
    x, w = np.ones((1, 2, 5, 5), dtype), np.ones((3, 2, 3, 3), dtype)
    floats = x.astype(np.float32), w.astype(np.float32)
    for call in (
        lambda: F.conv2d(x, w),
        lambda: F.conv2d(x, floats[1]),
        lambda: F.conv2d(floats[0], w),
        lambda: F.conv2d(*floats, out=np.zeros((1, 3, 3, 3), dtype)),
        lambda: F.linear(x, np.ones((3, 5), dtype)),
        lambda: F.conv2d_backward_bias(x),
        lambda: F.conv2d_backward_input(x, w, (1, 2, 7, 7)),
        lambda: F.conv2d_backward_weight(x, x, w.shape),
        lambda: fastconv.plan("conv2d", x, w),
    ):
        with pytest.raises(TypeError, match=rf"\(dtype {np.dtype(dtype)}\) must have dtype float32 or float64"):
            call()
