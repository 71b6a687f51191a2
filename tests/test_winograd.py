"""3x3 layers by Winograd's filtering: `algorithm="winograd2"` and `"winograd4"`, and what "auto" makes of it."""

import itertools

import numpy as np
import pytest

import fastconv
from fastconv import reference, testing, tuning

DTYPES = (np.float32, np.float64)
LAYOUTS = ("NCHW", "NHWC")
ALGORITHMS = ("winograd2", "winograd4")


def data(rng, shape, outputs, dtype, *, layout="NCHW", groups=1, post_relu=False):
    """An input (N, C, H, W) in the axes of the layout, and He-scaled filters."""
    x = rng.standard_normal(shape)
    x = np.maximum(x, 0) if post_relu else x
    if layout == "NHWC":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    channels = shape[1] // groups
    w = rng.standard_normal((outputs, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
    return x.astype(dtype), w.astype(dtype)


def by_rows(op, *arrays, **options):
    """A scope in which direct sums take the role of pixel rows."""
    return tuning.forced("rows", [choice.product for choice in tuning.products(op, *arrays, **options)])


def decision(op, *arrays, **options):
    return fastconv.explain(op, *arrays, **options).decision


# (shape of x, output channels, options): channels that fill vectors and that do not, more of them than a piece of the
# reduction, tiles that end at the image's edge and beyond, images smaller than a tile, several images in a task
FORWARD = [
    ((1, 16, 8, 8), 16, {"padding": 1}),
    ((2, 37, 9, 11), 53, {"padding": 1}),
    ((1, 3, 5, 6), 2, {}),
    ((1, 2, 3, 3), 1, {}),
    ((1, 5, 1, 2), 3, {"padding": 1}),
    ((5, 8, 6, 5), 20, {"padding": ((0, 1), (2, 1))}),
    ((1, 300, 6, 7), 18, {"padding": 1}),
    ((1, 20, 40, 45), 70, {"padding": 1}),
    ((2, 24, 13, 10), 36, {"padding": 1, "groups": 4}),
    ((1, 9, 70, 3), 5, {"padding": 2}),
    # Tiles that hang over the padding of an image that is smaller than they are.
    ((2, 9, 3, 6), 5, {"padding": 2, "padding_mode": "circular"}),
    ((2, 9, 2, 1), 5, {"padding": 1, "padding_mode": "circular"}),
    ((2, 9, 1, 4), 5, {"padding": 1, "padding_mode": "circular"}),
    ((2, 9, 4, 3), 5, {"padding": (3, 2), "padding_mode": "reflect"}),
    ((2, 9, 1, 2), 5, {"padding": 2, "padding_mode": "replicate"}),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "outputs", "options"), FORWARD, ids=str)
def test_forward_is_within_its_bound(rng, isa, algorithm, dtype, layout, shape, outputs, options):
    options = options | {"layout": layout, "algorithm": algorithm}
    x, w = data(rng, shape, outputs, dtype, layout=layout, groups=options.get("groups", 1))
    assert decision("conv2d", x, w, **options)["algorithm"] == algorithm
    y = fastconv.conv2d(x, w, **options)
    testing.assert_close_to_reference(y, "conv2d", x, w, **options)
    out = testing.guarded(y.shape, dtype)
    fastconv.conv2d(testing.guarded_copy(x).array, w, **options, out=out.array)
    out.check()
    np.testing.assert_array_equal(out.array, y)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_option(rng, algorithm, layout):
    """All pairs of what happens before and after the sum."""
    table = {
        "shape": (((2, 20, 9, 14), 36), ((1, 3, 10, 7), 5), ((3, 140, 7, 7), 17)),
        "dtype": DTYPES,
        "groups": (1, 1, 0),  # 0: as many as there can be, of more than one channel
        "padding": (0, 1, "same", (2, 0)),
        "padding_mode": ("zeros", "reflect", "replicate", "circular"),
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
        (shape, outputs), dtype = row.pop("shape"), row.pop("dtype")
        groups = row.pop("groups") or (2 if shape[1] % 2 == 0 and outputs % 2 == 0 else 1)
        x, w = data(rng, shape, outputs, dtype, layout=layout, groups=groups)
        swap = {"reordered": "reordered_last"} if layout == "NHWC" else {}
        lay = lambda a, kind, swap=swap: testing.as_memory(a, swap.get(kind, kind))  # noqa: E731
        x = lay(x, row.pop("x_memory"))
        vector = lambda n: rng.standard_normal(n).astype(dtype)  # noqa: E731, B023
        options = {name: row[name] for name in ("padding", "padding_mode", "activation", "input_activation")}
        options |= {"groups": groups, "layout": layout}
        for name in ("scale", "shift"):
            options[name] = vector(outputs) if row[name] else None
        for name in ("input_scale", "input_shift"):
            options[name] = vector(shape[1]) if row[name] else None
        options["input_gate"] = vector((shape[0], shape[1])) if row["input_gate"] else None
        arrays = (x, w, vector(outputs)) if row["bias"] else (x, w)
        y_shape = reference.conv2d(x, w, padding=options["padding"], groups=groups, layout=layout).shape
        if row["residual"]:
            options["residual"] = lay(vector(y_shape), row["residual"])
        out = lay(np.zeros(y_shape, dtype), row["out"]) if row["out"] else None
        y = fastconv.conv2d(*arrays, **options, algorithm=algorithm, out=out)
        testing.assert_close_to_reference(y, "conv2d", *arrays, **options, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("op", "shape", "outputs", "options"),
    [
        ("conv2d", (2, 18, 9, 10), 33, {"padding": 1}),
        ("conv2d", (1, 40, 12, 7), 20, {"padding": 1, "padding_mode": "reflect"}),
        ("conv2d", (1, 40, 12, 7), 20, {"padding": (0, 2), "padding_mode": "circular", "groups": 2}),
        ("conv_transpose2d", (2, 18, 9, 10), 33, {"padding": 1}),
    ],
)
def test_input_gradients(rng, algorithm, dtype, layout, op, shape, outputs, options):
    options = options | {"layout": layout}
    x, w = data(rng, shape, outputs, dtype, layout=layout, groups=options.get("groups", 1))
    if op == "conv_transpose2d":
        w = np.ascontiguousarray(w.swapaxes(0, 1))
        y = fastconv.conv_transpose2d(x, w, **options, algorithm=algorithm)
        testing.assert_close_to_reference(y, op, x, w, **options, algorithm=algorithm)
    dy = rng.standard_normal(getattr(reference, op)(x, w, **options).shape).astype(dtype)
    name = f"{op}_backward_input"
    assert decision(name, dy, w, x.shape, **options, algorithm=algorithm)["algorithm"] == algorithm
    gradient = getattr(fastconv, name)
    dx = gradient(dy, w, x.shape, **options, algorithm=algorithm)
    testing.assert_close_to_reference(dx, name, dy, w, x.shape, **options, algorithm=algorithm)
    start = rng.standard_normal(x.shape).astype(dtype)
    out = start.copy()
    gradient(dy, w, x.shape, **options, algorithm=algorithm, accumulate=True, out=out)
    testing.assert_close_to_reference(out, name, dy, w, x.shape, initial=start, **options, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "outputs"), [((3, 20, 30, 27), 40), ((3, 150, 7, 7), 70), ((7, 24, 8, 8), 24), ((2, 64, 41, 40), 130)]
)
def test_bits_depend_neither_on_threads_nor_on_batch_nor_on_plan(rng, algorithm, layout, shape, outputs):
    options = {"padding": 1, "layout": layout, "algorithm": algorithm, "activation": "silu"}
    x, w = data(rng, shape, outputs, np.float32, layout=layout)
    with fastconv.num_threads(1):
        y = fastconv.conv2d(x, w, **options)
    for threads in (2, 3, 7):
        with fastconv.num_threads(threads):
            np.testing.assert_array_equal(fastconv.conv2d(x, w, **options), y)
    for n in range(shape[0]):
        np.testing.assert_array_equal(fastconv.conv2d(x[n], w, **options), y[n])
    plan = fastconv.plan("conv2d", x.shape, w, **options)
    assert plan.decision["algorithm"] == algorithm
    np.testing.assert_array_equal(plan(x), y)
    np.testing.assert_array_equal(plan(x[:1]), y[:1])
    out = testing.as_memory(np.zeros_like(y), "strided")
    np.testing.assert_array_equal(fastconv.conv2d(x, w, **options, out=out), y)
    np.testing.assert_array_equal(plan(x, out=out), y)
    np.testing.assert_array_equal(plan(testing.as_memory(x, "strided")), y)
    # The other memory order: lanes are channels in both.
    other = np.moveaxis(x, 1, -1) if layout == "NCHW" else np.moveaxis(x, -1, 1)
    swapped = fastconv.conv2d(other, w, **options | {"layout": "NHWC" if layout == "NCHW" else "NCHW"})
    np.testing.assert_array_equal(np.moveaxis(swapped, -1, 1) if layout == "NCHW" else np.moveaxis(swapped, 1, -1), y)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("planned", [False, True])
def test_what_is_not_finite_spoils_no_neighbour(rng, algorithm, dtype, layout, planned):
    """Tiles with a NaN, an infinity or an overflow are made by direct sums; the others keep their bits."""
    x, w = data(rng, (2, 20, 17, 22), 40, dtype, layout=layout)
    options = {"layout": layout, "padding": 1}
    options["residual"] = rng.standard_normal(fastconv.conv2d(x, w, **options).shape).astype(dtype)

    def run(x, w, algorithm):
        if not planned:
            return fastconv.conv2d(x, w, **options, algorithm=algorithm)
        rest = {n: v for n, v in options.items() if n != "residual"}
        return fastconv.plan("conv2d", x, w, **rest, algorithm=algorithm)(x, residual=options["residual"])

    clean = run(x, w, algorithm)
    at = (1, 7, 9, 11) if layout == "NCHW" else (1, 9, 11, 7)
    for value in (np.nan, np.inf, -np.inf):
        dirty = x.copy()
        dirty[at] = value
        y = run(dirty, w, algorithm)
        # The tiles' direct sums are by rows.
        with by_rows("conv2d", x, w, **options):
            direct = run(dirty, w, "direct")
        same = y == clean
        np.testing.assert_array_equal(np.where(same, 0, y), np.where(same, 0, direct))
        np.testing.assert_array_equal(np.isfinite(y), np.isfinite(direct))
        np.testing.assert_array_equal(np.isnan(y), np.isnan(direct))
        assert same[0].all()
        assert not same[1].all()
    broken = w.copy()
    broken[3, 5, 1, 2] = np.inf
    y, direct = run(x, broken, algorithm), run(x, broken, "direct")
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(direct))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(direct))
    # What overflows on the way alone is not lost.
    large = np.full_like(x, np.finfo(dtype).max / 1000)
    y, direct = run(large, w, algorithm), run(large, w, "direct")
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(direct))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accumulated_gradients_add_a_direct_tile_once(rng, algorithm, layout):
    x, w = data(rng, (1, 20, 17, 22), 40, np.float32, layout=layout)
    options = {"layout": layout, "padding": 1}
    dy = fastconv.conv2d(x, w, **options)
    dy[(0, 3, 5, 6) if layout == "NCHW" else (0, 5, 6, 3)] = np.nan
    start = rng.standard_normal(x.shape).astype(np.float32)
    results = []
    for name in (algorithm, "direct"):
        out = start.copy()
        with by_rows("conv2d_backward_input", dy, w, x.shape, **options):
            fastconv.conv2d_backward_input(dy, w, x.shape, **options, algorithm=name, accumulate=True, out=out)
        results.append(out)
    np.testing.assert_array_equal(np.isnan(results[0]), np.isnan(results[1]))
    assert 0 < np.isnan(results[0]).sum() < x.size
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_no_output_reads_leaves_no_error(rng, algorithm, layout):
    """Of a tile that ends beyond the output: circular padding leads on to rows that are not next to it."""
    x, w = data(rng, (1, 9, 21, 21), 6, np.float32)
    x[:, :, 2:4] *= 1e6
    x[..., 2:4] *= 1e6
    if layout == "NHWC":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    options = {"padding": 1, "padding_mode": "circular", "layout": layout, "algorithm": algorithm}
    testing.assert_close_to_reference(fastconv.conv2d(x, w, **options), "conv2d", x, w, **options)
    # An input gradient that crops dy: what is cropped is not read.
    dy = rng.standard_normal((1, 6, 30, 30)).astype(np.float32)
    dy[:, :, :2] = dy[..., -2:] = np.nan
    shape = (1, 9, 22, 22)
    dx = fastconv.conv2d_backward_input(dy, w, shape, padding=5, algorithm=algorithm)
    exact = reference.conv2d_backward_input(dy, w, shape, padding=5)
    np.testing.assert_array_equal(np.isnan(dx), np.isnan(exact))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_plane_of_a_volume(rng, algorithm):
    """Kernel depth 1 and one plane of output: the plane that padding or cropping leaves."""
    x = rng.standard_normal((1, 20, 3, 9, 10)).astype(np.float32)
    w = (rng.standard_normal((20, 24, 1, 3, 3)) / 10).astype(np.float32)
    y = fastconv.conv_transpose3d(x, w, padding=1, algorithm=algorithm)
    testing.assert_close_to_reference(y, "conv_transpose3d", x, w, padding=1, algorithm=algorithm)
    w = np.ascontiguousarray(w.swapaxes(0, 1))
    arrays = (y[:, :, :1].repeat(3, 2), w, (1, 20, 1, 9, 10))
    dx = fastconv.conv3d_backward_input(*arrays, padding=1, algorithm=algorithm)
    testing.assert_close_to_reference(dx, "conv3d_backward_input", *arrays, padding=1, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_a_batch_of_none(algorithm):
    w = np.ones((64, 64, 3, 3), np.float32)
    assert decision("conv2d", (0, 64, 56, 56), w, padding=1, algorithm=algorithm)["workspace_per_thread"] > 0
    x = np.ones((0, 64, 56, 56), np.float32)
    plan = fastconv.plan("conv2d", x, w, padding=1, algorithm=algorithm)
    assert plan(x).shape == fastconv.conv2d(x, w, padding=1, algorithm=algorithm).shape == x.shape


@pytest.mark.parametrize("channels", [24, 32, 64, 128, 256, 512])
def test_rms_error_against_a_single_chain(rng, channels):
    """What "auto" may take: at most 2.5 times the root mean square of one chain of fused additions, behind a ReLU."""
    size = 28 if channels <= 128 else 14
    x, w = data(rng, (1, channels, size, size), 32, np.float32, post_relu=True)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))).astype(np.float64)
    chain = np.zeros((32, size, size), np.float32)
    exact = np.zeros((32, size, size))
    for r, s, c in itertools.product(range(3), range(3), range(channels)):
        term = w[:, c, r, s].astype(np.float64)[:, None, None] * padded[0, c, r : r + size, s : s + size]
        chain = (chain + term).astype(np.float32)  # one rounding, but for the rare double one
        exact += term
    limit = 2.5 * np.sqrt(np.mean((chain - exact) ** 2))
    for algorithm in ALGORITHMS:
        y = fastconv.conv2d(x, w, padding=1, algorithm=algorithm)[0]
        assert np.sqrt(np.mean((y - exact) ** 2)) <= limit


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_proven_bound_holds_where_roundings_agree(algorithm):
    """Constant data, and the constant that explain() gives, of the largest sum of absolute terms."""
    for channels in (16, 200):
        x = np.full((1, channels, 16, 16), np.float32(1.1))
        w = np.full((16, channels, 3, 3), np.float32(0.3))
        d = decision("conv2d", x, w, algorithm=algorithm)
        exact = 9 * channels * float(np.float32(1.1)) * float(np.float32(0.3))
        error = np.abs(fastconv.conv2d(x, w, algorithm=algorithm) - exact).max()
        assert error <= d["error_bound"] * np.finfo(np.float32).eps * exact


def test_auto_takes_it_where_it_does_clearly_less():
    def auto(c, size, k, **options):
        return decision("conv2d", (1, c, size, size), (k, c // options.get("groups", 1), 3, 3), padding=1, **options)

    for c, size, k in ((64, 56, 64), (128, 28, 128), (256, 14, 256), (64, 224, 64), (32, 56, 32)):
        d = auto(c, size, k)
        assert d["algorithm"] == "winograd4"
        assert "direct" in d["passed_over"]
        assert auto(c, size, k, algorithm="direct")["algorithm"] == "direct"
        assert auto(c, size, k, stride=2)["algorithm"] == "direct"
        assert auto(c, size, k, dilation=2)["algorithm"] == "direct"
    for c, size, k in ((3, 224, 64), (1, 28, 1), (64, 2, 64), (6, 30, 6)):
        assert not auto(c, size, k)["algorithm"].startswith("winograd")
    assert auto(64, 56, 64, groups=64)["algorithm"] == "depthwise"
    assert auto(64, 56, 64, groups=32)["algorithm"] == "direct"
    shape = (1, 64, 56, 56)
    gradient = decision("conv2d_backward_input", shape, (64, 64, 3, 3), shape, padding=1)
    assert gradient["algorithm"] == "winograd4"
    assert decision("conv1d", (1, 64, 56), (64, 64, 3))["algorithm"] == "direct"
    assert decision("conv3d", (1, 64, 4, 56, 56), (64, 64, 3, 3, 3))["algorithm"] == "direct"


@pytest.mark.parametrize("dtype", DTYPES)
def test_workspace_stays_below_two_megabytes(dtype):
    for c, size, k in ((24, 28, 24), (64, 1000, 64), (128, 28, 128), (512, 7, 512), (512, 28, 512), (750, 16, 750)):
        for layout in LAYOUTS:
            shape = (1, c, size, size) if layout == "NCHW" else (1, size, size, c)
            x, w = (np.broadcast_to(np.zeros(1, dtype), s) for s in (shape, (k, c, 3, 3)))
            d = decision("conv2d", x, w, padding=1, layout=layout)
            assert d["workspace_per_thread"] < 2 << 20
            assert d["packed_weight_bytes"] <= 36 * (c * (k + 64)) * np.dtype(dtype).itemsize


def test_what_it_does_not_serve_is_refused():
    x, w = np.zeros((1, 4, 9, 9), np.float32), np.zeros((4, 4, 3, 3), np.float32)
    for algorithm in ALGORITHMS:
        for wrong in ({"stride": 2}, {"dilation": 2}):
            with pytest.raises(ValueError, match=rf"algorithm \(='{algorithm}'\) takes .* 3 x 3"):
                fastconv.conv2d(x, w, **wrong, algorithm=algorithm)
        for weight, groups in (((4, 4, 3, 5), 1), ((4, 1, 3, 3), 4)):
            with pytest.raises(ValueError, match=rf"algorithm \(='{algorithm}'\)"):
                fastconv.conv2d(x, np.zeros(weight, np.float32), groups=groups, algorithm=algorithm)
        with pytest.raises(ValueError, match=rf"algorithm \(='{algorithm}'\)"):
            fastconv.conv3d(x[:, :, None], w[:, :, None].repeat(2, 2), padding=1, algorithm=algorithm)
    np.testing.assert_array_equal(
        fastconv.conv2d(x[:0], w, algorithm="winograd4"), fastconv.conv2d(x[:0], w, algorithm="direct")
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_integers_are_exact_in_tiles_of_two(isa, dtype):
    x = testing.integer_data((2, 37, 9, 11), dtype, seed=1)
    w = testing.integer_data((21, 37, 3, 3), dtype, seed=2)
    y = fastconv.conv2d(x, w, padding=1, algorithm="winograd2")
    np.testing.assert_array_equal(y, reference.conv2d(x, w, padding=1))


# --------------------------------------------------------------------------------------------- gradients of the weight

# (shape of x, output channels, options): channels that fill panels and that do not, tasks of several panels, runs of
# tiles that end within an image, tiles that end beyond it, images smaller than a tile
WEIGHTS = [
    ((2, 16, 8, 9), 16, {"padding": 1}),
    ((1, 37, 9, 11), 53, {}),
    ((3, 70, 6, 5), 20, {"padding": ((0, 1), (2, 1))}),
    ((1, 1, 3, 3), 2, {"padding": 1}),
    ((2, 5, 1, 2), 3, {"padding": 1}),
    ((2, 24, 13, 10), 36, {"padding": 1, "groups": 4}),
    ((1, 9, 70, 3), 5, {"padding": 2}),
    ((1, 130, 20, 24), 140, {"padding": 1}),
    ((2, 9, 3, 6), 5, {"padding": 2, "padding_mode": "circular"}),
    ((2, 9, 4, 3), 5, {"padding": (3, 2), "padding_mode": "reflect"}),
    ((2, 9, 1, 2), 5, {"padding": 2, "padding_mode": "replicate"}),
]


def weight_case(rng, shape, outputs, dtype, *, layout="NCHW", op="conv2d", **options):
    """dy, x and the weight's shape."""
    groups = options.get("groups", 1)
    x, w = data(rng, shape, outputs, dtype, layout=layout, groups=groups)
    if op == "conv_transpose2d":
        w = np.zeros((shape[1], outputs, 3, 3), dtype)
    y = getattr(reference, op)(x, w, layout=layout, **options)
    return rng.standard_normal(y.shape).astype(dtype), x, w.shape


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "outputs", "options"), WEIGHTS, ids=str)
def test_weight_gradients(rng, isa, algorithm, dtype, layout, shape, outputs, options):
    options = options | {"layout": layout}
    dy, x, weight = weight_case(rng, shape, outputs, dtype, **options)
    options["algorithm"] = algorithm
    name = "conv2d_backward_weight"
    assert decision(name, dy, x, weight, **options)["algorithm"] == algorithm
    dw = fastconv.conv2d_backward_weight(dy, x, weight, **options)
    testing.assert_close_to_reference(dw, name, dy, x, weight, **options)
    out = testing.guarded(weight, dtype)
    held = [testing.guarded_copy(a).array for a in (dy, x)]
    fastconv.conv2d_backward_weight(*held, weight, **options, out=out.array)
    out.check()
    np.testing.assert_array_equal(out.array, dw)
    start = rng.standard_normal(weight).astype(dtype)
    out.array[...] = start
    fastconv.conv2d_backward_weight(dy, x, weight, **options, accumulate=True, out=out.array)
    np.testing.assert_array_equal(out.array, start + dw)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_gradients_of_other_memory_and_of_transposed_layers(rng, algorithm, layout):
    options = {"padding": 1, "layout": layout}
    dy, x, weight = weight_case(rng, (2, 20, 9, 14), 36, np.float32, **options)
    dw = fastconv.conv2d_backward_weight(dy, x, weight, **options, algorithm=algorithm)
    swap = {"reordered": "reordered_last"} if layout == "NHWC" else {}
    for kind in ("reordered", "strided", "negative"):
        lay = [testing.as_memory(a, swap.get(kind, kind)) for a in (dy, x)]
        np.testing.assert_array_equal(
            fastconv.conv2d_backward_weight(*lay, weight, **options, algorithm=algorithm), dw, err_msg=kind
        )
    op = "conv_transpose2d_backward_weight"
    dy, x, weight = weight_case(rng, (2, 20, 9, 14), 36, np.float32, op="conv_transpose2d", **options)
    dw = fastconv.conv_transpose2d_backward_weight(dy, x, weight, **options, algorithm=algorithm)
    testing.assert_close_to_reference(dw, op, dy, x, weight, **options, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_gradients_do_not_depend_on_threads(rng, algorithm, layout):
    for shape, outputs in (((3, 20, 30, 27), 40), ((2, 150, 7, 7), 170)):
        dy, x, weight = weight_case(rng, shape, outputs, np.float32, padding=1, layout=layout)
        x[0, 3, 3, 3] = np.nan  # of filters that are left to direct sums, too
        options = {"padding": 1, "layout": layout, "algorithm": algorithm}
        with fastconv.num_threads(1):
            dw = fastconv.conv2d_backward_weight(dy, x, weight, **options)
        for threads in (2, 3, 7):
            with fastconv.num_threads(threads):
                np.testing.assert_array_equal(fastconv.conv2d_backward_weight(dy, x, weight, **options), dw)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_gradients_of_what_is_not_finite(rng, algorithm, dtype, layout):
    """Filters that it reaches are made by direct sums; of those of other output channels the bits stay."""
    dy, x, weight = weight_case(rng, (2, 80, 9, 14), 40, dtype, padding=1, layout=layout)
    gradient = fastconv.conv2d_backward_weight
    options = {"padding": 1, "layout": layout}
    clean = gradient(dy, x, weight, **options, algorithm=algorithm)
    for value in (np.nan, np.inf, -np.inf):
        dirty = dy.copy()
        dirty[(1, 7, 3, 5) if layout == "NCHW" else (1, 3, 5, 7)] = value
        dw = gradient(dirty, x, weight, **options, algorithm=algorithm)
        direct = gradient(dirty, x, weight, **options, algorithm="direct")
        np.testing.assert_array_equal(np.isnan(dw), np.isnan(direct))
        np.testing.assert_array_equal(np.isfinite(dw), np.isfinite(direct))
        assert not np.isfinite(dw[7]).any()
        np.testing.assert_array_equal(np.delete(dw, 7, 0), np.delete(clean, 7, 0))
        dirty = x.copy()
        dirty[(1, 70, 0, 0) if layout == "NCHW" else (1, 0, 0, 70)] = value
        start = rng.standard_normal(weight).astype(dtype)
        results = []
        for name in (algorithm, "direct"):
            out = start.copy()
            gradient(dy, dirty, weight, **options, algorithm=name, accumulate=True, out=out)
            results.append(out)
        # No pixel multiplies the image's corner with the taps beyond it.
        np.testing.assert_array_equal(np.isfinite(results[0]), np.isfinite(results[1]))
        finite = np.isfinite(results[0][:, 70])
        assert not finite[:, :2, :2].any()
        assert finite[:, 2].all()
        assert finite[:, :, 2].all()
        assert np.isfinite(np.delete(results[0], 70, 1)).all()
        np.testing.assert_array_equal(results[0][:, :64], (start + clean)[:, :64])
    # What overflows on the way alone is not lost.
    large = np.full_like(x, np.finfo(dtype).max / 1e5)
    dw, direct = (gradient(dy, large, weight, **options, algorithm=name) for name in (algorithm, "direct"))
    np.testing.assert_array_equal(np.isfinite(dw), np.isfinite(direct))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weight_gradients_of_a_plane_of_a_volume(rng, algorithm):
    x = rng.standard_normal((2, 9, 3, 8, 7)).astype(np.float32)
    dy = rng.standard_normal((2, 6, 1, 8, 7)).astype(np.float32)
    options = {"padding": (0, 1, 1), "algorithm": algorithm}
    arrays = (dy, x[:, :, 1:2], (6, 9, 1, 3, 3))
    dw = fastconv.conv3d_backward_weight(*arrays, **options)
    testing.assert_close_to_reference(dw, "conv3d_backward_weight", *arrays, **options)


# Images and their size: runs of tiles that are whole and that hang over, the least that "auto" takes 4 x 4 for.
@pytest.mark.parametrize(("images", "size"), [(12, 4), (4, 7), (1, 14), (1, 28), (8, 16)])
def test_rms_error_of_weight_gradients_against_a_single_chain(rng, images, size):
    dy, x, weight = weight_case(rng, (images, 16, size, size), 16, np.float32, padding=1)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    chain, exact = np.zeros(weight, np.float32), np.zeros(weight)
    for n, p, q in np.ndindex(images, size, size):
        term = dy[n, :, p, q].astype(np.float64)[:, None, None, None] * padded[n, None, :, p : p + 3, q : q + 3]
        chain = (chain + term).astype(np.float32)
        exact += term
    limit = 2.5 * np.sqrt(np.mean((chain - exact) ** 2))
    assert decision("conv2d_backward_weight", dy, x, weight, padding=1)["algorithm"] == "winograd4"
    for algorithm in ALGORITHMS:
        dw = fastconv.conv2d_backward_weight(dy, x, weight, padding=1, algorithm=algorithm)
        assert np.sqrt(np.mean((dw - exact) ** 2)) <= limit


def test_auto_takes_it_for_weights_where_it_does_clearly_less():
    def auto(n, c, size, k, **options):
        shape = (n, c, size, size)
        dy = (n, k, size, size)
        return decision("conv2d_backward_weight", dy, shape, (k, c, 3, 3), padding=1, **options)["algorithm"]

    for n, c, size, k in ((1, 64, 56, 64), (8, 128, 8, 128), (1, 256, 14, 256), (4, 32, 14, 64)):
        assert auto(n, c, size, k) == "winograd4"
        assert auto(n, c, size, k, algorithm="direct") == "direct"
    assert auto(8, 256, 4, 256) == "winograd2"  # too few terms for 4 x 4
    assert auto(1, 64, 2, 64) == "direct"  # and for 2 x 2
    assert auto(1, 3, 112, 64) == "direct"
    strided = decision("conv2d_backward_weight", (1, 64, 28, 28), (1, 64, 56, 56), (64, 64, 3, 3), padding=1, stride=2)
    assert strided["algorithm"] == "direct"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_proven_bound_holds_for_weights(algorithm, dtype):
    """Constant data: the roundings agree, and all lags within the image have the same sum."""
    for n, size in ((1, 16), (9, 30)):
        x, dy = (np.full((n, 20, size, size), dtype(v)) for v in (1.1, 0.3))
        d = decision("conv2d_backward_weight", dy, x, (20, 20, 3, 3), padding=1, algorithm=algorithm)
        dw = fastconv.conv2d_backward_weight(dy, x, (20, 20, 3, 3), padding=1, algorithm=algorithm)
        rows = np.array([size - 1, size, size - 1], dtype)
        exact = n * np.longdouble(dtype(1.1)) * np.longdouble(dtype(0.3)) * np.multiply.outer(rows, rows)
        most = float(exact.max())
        assert np.abs(dw - exact).max() <= d["error_bound"] * np.finfo(dtype).eps * most


def test_weight_gradients_by_limit_and_by_name():
    arrays = ((8, 64, 16, 16), (8, 64, 16, 16), (64, 64, 3, 3))
    op = "conv2d_backward_weight"
    bounds = {a: decision(op, *arrays, padding=1, algorithm=a)["error_bound"] for a in ("direct", *ALGORITHMS)}
    assert bounds["direct"] < bounds["winograd2"] < bounds["winograd4"]
    for limit, name in (
        (bounds["winograd4"], "winograd4"),
        (bounds["winograd4"] - 1, "winograd2"),
        (bounds["winograd2"] - 1, "direct"),
    ):
        assert decision(op, *arrays, padding=1, max_error=limit)["algorithm"] == name
    with pytest.raises(ValueError, match=r"max_error \(=10\) must be at least \d+.*'direct'.*'winograd2'.*'winograd4'"):
        decision(op, *arrays, padding=1, max_error=10)
    dy, x, w = (np.ones(s, np.float32) for s in ((1, 4, 7, 7), (1, 4, 9, 9), (4, 4, 3, 3)))
    with pytest.raises(ValueError, match=r"max_error \(=1\) must be at least"):
        fastconv.conv2d_backward_weight(dy, x, w.shape, max_error=1)
    with pytest.raises(ValueError, match=r"algorithm \(='fft'\) does not make the gradient of a weight"):
        fastconv.conv2d_backward_weight(dy, x, w.shape, algorithm="fft")
    for algorithm in ALGORITHMS:
        with pytest.raises(ValueError, match=rf"algorithm \(='{algorithm}'\) takes .* 3 x 3"):
            fastconv.conv2d_backward_weight(dy[..., :4, :4], x, w.shape, stride=2, algorithm=algorithm)
        with pytest.raises(ValueError, match=rf"algorithm \(='{algorithm}'\)"):
            fastconv.conv2d_backward_weight(dy, x, (4, 1, 3, 3), groups=4, algorithm=algorithm)
        empty = fastconv.conv2d_backward_weight(dy[:0], x[:0], w.shape, algorithm=algorithm)
        np.testing.assert_array_equal(empty, np.zeros_like(w))
        # Named in a call for all gradients it is asked of the input's alone.
        gradients = fastconv.conv2d_backward(dy, x, w, algorithm=algorithm)
        np.testing.assert_array_equal(gradients.weight, fastconv.conv2d_backward_weight(dy, x, w.shape))
    direct = fastconv.conv2d_backward(dy, x, w, algorithm="direct")
    np.testing.assert_array_equal(direct.weight, fastconv.conv2d_backward_weight(dy, x, w.shape, algorithm="direct"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_workspace_of_weight_gradients(dtype):
    for c, size, k in ((3, 28, 24), (64, 300, 64), (512, 7, 512), (512, 28, 512), (750, 16, 750)):
        for algorithm, layout in itertools.product(ALGORITHMS, LAYOUTS):
            shapes = [(2, n, size, size) if layout == "NCHW" else (2, size, size, n) for n in (k, c)]
            dy, x = (np.broadcast_to(np.zeros(1, dtype), s) for s in shapes)
            d = decision("conv2d_backward_weight", dy, x, (k, c, 3, 3), padding=1, layout=layout, algorithm=algorithm)
            assert d["workspace_per_thread"] < 2 << 20
            assert d["packed_weight_bytes"] == 0
