"""Depthwise layers by the fast Fourier transform: `algorithm="fft"`, and what "auto" makes of it."""

import itertools

import numpy as np
import pytest

import fastconv
from fastconv import reference, testing

DTYPES = (np.float32, np.float64)
LAYOUTS = ("NCHW", "NHWC")


def data(rng, shape, weight_shape, dtype, *, layout="NCHW", post_relu=False):
    """An input (N, C, ...) in the axes of the layout, and a filter a channel."""
    x = rng.standard_normal(shape)
    x = np.maximum(x, 0) if post_relu else x
    if layout == "NHWC":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    w = rng.standard_normal(weight_shape) / np.sqrt(np.prod(weight_shape[1:]))
    return x.astype(dtype), w.astype(dtype)


def decision(op, *arrays, **options):
    return fastconv.explain(op, *arrays, **options).decision


# (shape of x, shape of the weight, options): short and long filters, one channel and many, more and fewer of them than
# lanes, one tile and several, both forms of a one-dimensional tile
FORWARD = [
    ((2, 1, 3000), (1, 1, 100), {"padding": 50}),
    ((1, 1, 9000), (1, 1, 1025), {"padding": ((512, 0),)}),
    ((2, 3, 700), (3, 1, 65), {}),
    ((3, 21, 300), (21, 1, 65), {"padding": 32}),
    ((1, 2, 40), (2, 1, 40), {}),
    ((1, 18, 40), (18, 1, 41), {"padding": 3, "dilation": 1}),
    ((2, 17, 150), (17, 1, 30), {"padding": 9, "dilation": 3}),
    ((2, 5, 56, 60), (5, 1, 13, 11), {"padding": 6}),
    ((1, 20, 30, 31), (20, 1, 21, 13), {"padding": (10, 3)}),
    ((1, 17, 19, 90), (17, 1, 1, 31), {"padding": (0, 15)}),
    ((1, 3, 90, 19), (3, 1, 31, 1), {"padding": (15, 0)}),
    ((1, 2, 3, 40, 41), (2, 1, 1, 9, 9), {"padding": (0, 4, 4)}),
    ((2, 4, 9, 8), (4, 1, 3, 3), {"padding": 1}),
    ((1, 4, 9, 8), (4, 1, 1, 1), {}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "weight", "options"), FORWARD, ids=lambda v: "x".join(map(str, v)) if v else "-")
def test_forward_is_within_its_bound(rng, dtype, layout, shape, weight, options):
    op = f"conv{len(shape) - 2}d"
    options = options | {"groups": weight[0], "layout": layout, "algorithm": "fft"}
    x, w = data(rng, shape, weight, dtype, layout=layout)
    assert decision(op, x, w, **options)["algorithm"] == "fft"
    y = getattr(fastconv, op)(x, w, **options)
    testing.assert_close_to_reference(y, op, x, w, **options)
    out = testing.guarded(y.shape, dtype)
    getattr(fastconv, op)(testing.guarded_copy(x).array, w, **options, out=out.array)
    out.check()
    np.testing.assert_array_equal(out.array, y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_option(rng, layout):
    """All pairs of what happens before and after the sum."""
    table = {
        "shape": (
            ((2, 20, 60), (20, 1, 33)),
            ((1, 3, 30, 34), (3, 1, 9, 11)),
            ((2, 18, 23, 30), (18, 1, 9, 9)),
            ((1, 3, 5000), (3, 1, 921)),
        ),
        "dtype": DTYPES,
        "padding": (0, 4, "same"),
        "padding_mode": ("zeros", "reflect", "replicate", "circular"),
        "dilation": (1, 2),
        "bias": (False, True),
        "scale": (False, True),
        "shift": (False, True),
        "residual": (None, "contiguous", "reordered", "strided"),
        "activation": (None, "relu", "silu", ("clip", -0.5, 0.5)),
        "input_scale": (False, True),
        "input_shift": (False, True),
        "input_activation": (None, "relu", "gelu"),
        "input_gate": (False, True),
        "out": (None, "contiguous", "reordered", "strided"),
        "x_memory": ("contiguous", "reordered", "strided", "negative", "broadcast"),
    }
    for row in testing.all_pairs(table):
        (shape, weight), dtype = row.pop("shape"), row.pop("dtype")
        op, channels = f"conv{len(shape) - 2}d", weight[0]
        x, w = data(rng, shape, weight, dtype, layout=layout)
        swap = {"reordered": "reordered_last"} if layout == "NHWC" else {}
        lay = lambda a, kind, swap=swap: testing.as_memory(a, swap.get(kind, kind))  # noqa: E731
        x = lay(x, row.pop("x_memory"))
        vector = lambda n: rng.standard_normal(n).astype(dtype)  # noqa: E731, B023
        options = {name: row[name] for name in ("padding", "padding_mode", "dilation", "activation")}
        options |= {"input_activation": row["input_activation"], "groups": channels, "layout": layout}
        for name in ("scale", "shift", "input_scale", "input_shift"):
            options[name] = vector(channels) if row[name] else None
        options["input_gate"] = vector((shape[0], channels)) if row["input_gate"] else None
        arrays = (x, w, vector(channels)) if row["bias"] else (x, w)
        y_shape = getattr(reference, op)(
            x, w, **{n: options[n] for n in ("padding", "dilation", "groups", "layout")}
        ).shape
        if row["residual"]:
            options["residual"] = lay(vector(y_shape), row["residual"])
        out = lay(np.zeros(y_shape, dtype), row["out"]) if row["out"] else None
        y = getattr(fastconv, op)(*arrays, **options, algorithm="fft", out=out)
        testing.assert_close_to_reference(y, op, *arrays, **options, algorithm="fft")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("op", "shape", "weight", "options"),
    [
        ("conv1d", (2, 18, 200), (18, 1, 65), {"padding": 32}),
        ("conv1d", (1, 1, 3000), (1, 1, 129), {"padding": 64, "padding_mode": "reflect"}),
        ("conv1d", (1, 2, 500), (2, 1, 65), {"padding": 10, "stride": 2}),
        ("conv2d", (1, 5, 40, 44), (5, 1, 13, 11), {"padding": 6}),
        ("conv2d", (1, 17, 40, 44), (17, 1, 21, 21), {"padding": 10, "padding_mode": "circular"}),
        ("conv2d", (2, 3, 41, 44), (3, 1, 13, 12), {"padding": 3, "stride": (2, 3)}),
        ("conv_transpose1d", (1, 2, 500), (2, 1, 65), {"padding": 10, "stride": 2}),
        ("conv_transpose2d", (1, 17, 20, 24), (17, 1, 13, 11), {"padding": 3, "stride": 2}),
    ],
)
def test_input_gradients(rng, dtype, layout, op, shape, weight, options):
    transposed = op.startswith("conv_transpose")
    options = options | {"groups": weight[0], "layout": layout}
    x, w = data(rng, shape, weight, dtype, layout=layout)
    if transposed:
        y = getattr(fastconv, op)(x, w, **options, algorithm="fft")
        testing.assert_close_to_reference(y, op, x, w, **options, algorithm="fft")
        if options["stride"] != 1:
            return
    dy = rng.standard_normal(getattr(reference, op)(x, w, **options).shape).astype(dtype)
    name = f"{op}_backward_input"
    assert decision(name, dy, w, x.shape, **options, algorithm="fft")["algorithm"] == "fft"
    dx = getattr(fastconv, name)(dy, w, x.shape, **options, algorithm="fft")
    testing.assert_close_to_reference(dx, name, dy, w, x.shape, **options, algorithm="fft")
    start = rng.standard_normal(x.shape).astype(dtype)
    out = start.copy()
    getattr(fastconv, name)(dy, w, x.shape, **options, algorithm="fft", accumulate=True, out=out)
    testing.assert_close_to_reference(out, name, dy, w, x.shape, initial=start, **options, algorithm="fft")
    all_of_them = getattr(fastconv, f"{op}_backward")(dy, x, w, needs=("input",), **options, algorithm="fft")
    np.testing.assert_array_equal(all_of_them.input, dx)


SAME_BITS = [
    ((3, 1, 5000), (1, 1, 129), {"padding": 64}),
    ((3, 40, 300), (40, 1, 65), {"padding": 32}),
    ((3, 3, 50, 60), (3, 1, 13, 13), {"padding": 6}),
    ((3, 36, 50, 60), (36, 1, 13, 13), {"padding": 6}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "weight", "options"), SAME_BITS)
def test_bits_depend_neither_on_threads_nor_on_batch_nor_on_plan(rng, layout, shape, weight, options):
    op = f"conv{len(shape) - 2}d"
    options = options | {"groups": weight[0], "layout": layout, "algorithm": "fft", "activation": "silu"}
    x, w = data(rng, shape, weight, np.float32, layout=layout)
    function = getattr(fastconv, op)
    with fastconv.num_threads(1):
        y = function(x, w, **options)
    for threads in (2, 5):
        with fastconv.num_threads(threads):
            np.testing.assert_array_equal(function(x, w, **options), y)
    for n in range(shape[0]):
        np.testing.assert_array_equal(function(x[n], w, **options), y[n])
        np.testing.assert_array_equal(function(x[n : n + 1], w, **options), y[n : n + 1])
    plan = fastconv.plan(op, x.shape, w, **options)
    assert plan.decision["algorithm"] == "fft"
    np.testing.assert_array_equal(plan(x), y)
    np.testing.assert_array_equal(plan(x[:1]), y[:1])
    # Strides that keep the memory order, and an output that has to be moved.
    out = testing.as_memory(np.zeros_like(y), "strided")
    np.testing.assert_array_equal(function(x, w, **options, out=out), y)
    np.testing.assert_array_equal(plan(x, out=out), y)
    x_apart = testing.as_memory(x, "strided")
    np.testing.assert_array_equal(plan(x_apart), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "weight"), [((1, 1, 4000), (1, 1, 100)), ((1, 20, 900), (20, 1, 100)), ((1, 20, 60, 70), (20, 1, 11, 11))]
)
def test_what_is_not_finite_spoils_no_neighbour(rng, dtype, layout, shape, weight):
    """Tiles with a NaN, an infinity or an overflow are those of the direct algorithm; the others keep their bits."""
    op = f"conv{len(shape) - 2}d"
    function = getattr(fastconv, op)
    x, w = data(rng, shape, weight, dtype, layout=layout)
    options = {"groups": weight[0], "layout": layout, "padding": 5}
    residual = rng.standard_normal(function(x, w, **options).shape).astype(dtype)
    options |= {"residual": residual}
    clean = function(x, w, **options, algorithm="fft")
    at = (0, *(n // 2 for n in x.shape[1:]))
    beside = tuple(slice(i, i + 4) if axis == (2 if layout == "NCHW" else 1) else i for axis, i in enumerate(at))
    for value in (np.nan, np.inf, -np.inf, np.finfo(dtype).max):
        dirty = x.copy()
        # The transform's sums of several of the largest numbers overflow, whether those of the filter do or not.
        dirty[beside if np.isfinite(value) else at] = value
        y, direct = function(dirty, w, **options, algorithm="fft"), function(dirty, w, **options, algorithm="direct")
        same = y == clean
        # What a tile with it has is the direct algorithm's, to the bit; the rest of the image is as before.
        np.testing.assert_array_equal(np.where(same, 0, y), np.where(same, 0, direct))
        np.testing.assert_array_equal(np.isfinite(y), np.isfinite(direct))
        np.testing.assert_array_equal(np.isnan(y), np.isnan(direct))
        assert same.any()
        assert not same.all()
    broken = w.copy()
    broken[0, 0, ..., 3] = np.inf
    np.testing.assert_array_equal(
        np.isnan(function(x, broken, **options, algorithm="fft")),
        np.isnan(function(x, broken, **options, algorithm="direct")),
    )
    # Accumulated gradients add the direct sums once.
    dy = function(x, w, **options, algorithm="direct")
    dy[at] = np.nan
    start = rng.standard_normal(x.shape).astype(dtype)
    gradient = getattr(fastconv, f"{op}_backward_input")
    del options["residual"]
    for n, algorithm in enumerate(("fft", "direct")):
        out = start.copy()
        gradient(dy, w, x.shape, **options, algorithm=algorithm, accumulate=True, out=out)
        if n == 0:
            first = out
    np.testing.assert_array_equal(np.isnan(first), np.isnan(out))
    close = np.abs(first - out) <= 100 * np.finfo(dtype).eps * (1 + np.abs(out))
    assert (close | np.isnan(out)).all()


@pytest.mark.parametrize("post_relu", [False, True])
@pytest.mark.parametrize(
    ("shape", "weight"),
    [
        ((1, 1, 65536), (1, 1, 129)),
        ((1, 1, 65536), (1, 1, 1025)),
        ((1, 4, 100, 100), (4, 1, 13, 13)),
        ((1, 2, 224, 224), (2, 1, 31, 31)),
    ],
)
def test_rms_error_against_the_direct_one(rng, shape, weight, post_relu):
    """What "auto" may take: at most 2.5 times the direct algorithm's root mean square, on stated data."""
    op = f"conv{len(shape) - 2}d"
    x, w = data(rng, shape, weight, np.float32, post_relu=post_relu)
    options = {"groups": weight[0], "padding": weight[-1] // 2}
    exact = getattr(fastconv, op)(x.astype(np.float64), w.astype(np.float64), **options, algorithm="direct")
    rms = {
        algorithm: np.sqrt(np.mean((getattr(fastconv, op)(x, w, **options, algorithm=algorithm) - exact) ** 2))
        for algorithm in ("fft", "direct")
    }
    assert rms["fft"] <= 2.5 * rms["direct"]


def test_the_proven_bound_holds_where_roundings_agree(rng):
    """Constant data, and the constant that explain() gives: eps * |x|_2 * |w|_2 over a pair of tiles."""
    for weight in ((1, 1, 129), (1, 1, 13, 13)):
        shape = (1, 1, 4096) if len(weight) == 3 else (1, 1, 100, 100)
        op = f"conv{len(shape) - 2}d"
        x, w = np.full(shape, np.float32(1.1)), np.full(weight, np.float32(0.3))
        d = decision(op, x, w, algorithm="fft")
        error = np.abs(
            getattr(fastconv, op)(x, w, algorithm="fft") - getattr(reference, op)(x.astype(float), w.astype(float))
        )
        tile = 1.1 * np.sqrt(2 * d["tile_rows"] * d["tile_columns"])
        assert error.max() <= d["error_bound"] * np.finfo(np.float32).eps * tile * 0.3 * np.sqrt(w.size)


def test_auto_takes_it_for_large_filters_alone():
    def auto(op, x, w, **options):
        return decision(op, x, w, groups=w[0], **options)["algorithm"]

    for op, x, w in (
        ("conv1d", (1, 1, 65536), (1, 1, 1025)),
        ("conv1d", (1, 64, 4096), (64, 1, 257)),
        ("conv2d", (1, 64, 56, 56), (64, 1, 31, 31)),
        ("conv2d", (1, 16, 224, 224), (16, 1, 21, 21)),
    ):
        assert auto(op, x, w, padding=w[-1] // 2) == "fft"
        assert auto(op, x, w, padding=w[-1] // 2, algorithm="direct") == "depthwise"
        assert auto(op, x, w, padding=w[-1] // 2, stride=2) == "depthwise"
    for op, x, w in (
        ("conv2d", (1, 64, 56, 56), (64, 1, 3, 3)),
        ("conv2d", (1, 64, 56, 56), (64, 1, 7, 7)),
        ("conv1d", (1, 64, 4096), (64, 1, 5)),
        ("conv1d", (1, 1, 200), (1, 1, 100)),
    ):
        assert auto(op, x, w, padding=w[-1] // 2) == "depthwise"
    assert decision("conv2d", (1, 64, 56, 56), (64, 64, 5, 5))["algorithm"] == "direct"
    gradient = decision(
        "conv2d_backward_input", (1, 64, 56, 56), (64, 1, 31, 31), (1, 64, 56, 56), groups=64, padding=15
    )
    assert gradient["algorithm"] == "fft"


def test_the_decision_is_that_of_the_call(rng):
    x, w = data(rng, (2, 3, 50, 60), (3, 1, 13, 13), np.float32)
    e = fastconv.explain("conv2d", x, w, groups=3, algorithm="fft")
    assert e.decision["role"] in ("lanes of channels", "lanes of tiles")
    assert 0 < e.decision["workspace_per_thread"] < 2 << 20
    assert e.decision["tile_rows"] >= 13 <= e.decision["tile_columns"]
    assert e.decision["packed_weight_bytes"] >= 3 * 4 * 2 * e.decision["tile_rows"] * e.decision["tile_columns"]
    assert "2-norms" in str(e)
    assert "conv(|x|, |weight|)" in str(fastconv.explain("conv2d", x, w, groups=3, algorithm="direct"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_workspace_stays_below_two_megabytes(dtype):
    like = np.zeros(1, dtype)
    for k, groups, layout in itertools.product((65, 1025, 4097, 9000), (1, 64), LAYOUTS):
        x = np.broadcast_to(like, (1, groups, 65536) if layout == "NCHW" else (1, 65536, groups))
        w = np.broadcast_to(like, (groups, 1, k))
        d = decision("conv1d", x, w, groups=groups, layout=layout, algorithm="fft")
        assert d["workspace_per_thread"] < 2 << 20
    for k, groups, layout in itertools.product((13, 51, 96), (3, 64), LAYOUTS):
        x = np.broadcast_to(like, (1, groups, 224, 224) if layout == "NCHW" else (1, 224, 224, groups))
        d = decision(
            "conv2d", x, np.broadcast_to(like, (groups, 1, k, k)), groups=groups, layout=layout, algorithm="fft"
        )
        assert d["workspace_per_thread"] < 2 << 20


def test_what_it_does_not_serve_is_refused():
    x, w = np.zeros((1, 4, 40, 40), np.float32), np.zeros((4, 1, 9, 9), np.float32)
    volume = np.zeros((1, 4, 10, 10, 10), np.float32)
    wrong = [
        lambda: fastconv.conv2d(x, np.zeros((4, 4, 3, 3), np.float32), algorithm="fft"),
        lambda: fastconv.conv2d(x, np.zeros((8, 1, 9, 9), np.float32), groups=4, algorithm="fft"),
        lambda: fastconv.conv2d(x, w, groups=4, stride=2, algorithm="fft"),
        lambda: fastconv.conv3d(volume, np.zeros((4, 1, 3, 3, 3), np.float32), groups=4, algorithm="fft"),
        lambda: fastconv.conv2d(np.zeros((1, 4, 300, 300), np.float32), w, groups=4, dilation=30, algorithm="fft"),
        lambda: fastconv.plan("conv2d", x.shape, w, groups=4, stride=2, algorithm="fft"),
        lambda: fastconv.explain("conv2d", x, w, groups=4, stride=2, algorithm="fft"),
        lambda: fastconv.conv_transpose2d_backward_input(
            np.zeros((1, 4, 88, 88), np.float32),
            w,
            (1, 4, 40, 40),
            stride=2,
            padding=0,
            output_padding=1,
            groups=4,
            algorithm="fft",
        ),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match=r"algorithm \(='fft'\) takes layers of one channel in and out a group"):
            call()
    # Nothing to compute is served by anything.
    assert fastconv.conv2d(x[:0], w, groups=4, algorithm="fft").shape == (0, 4, 32, 32)
