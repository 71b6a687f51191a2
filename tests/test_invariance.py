"""The same bits for any number of threads, any batch, plan or plain call, and every run."""

import numpy as np
import pytest

import fastconv
from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

THREADS = (1, 2, 3, 7)
# op, input (N, C, ...), weight, options. Several tasks for every thread, uneven ones, and single long rows.
LAYERS = [
    ("conv1d", (2, 16, 3001), (24, 16, 9), {"padding": 4}),
    ("conv1d", (1, 1, 20000), (1, 1, 129), {}),
    ("conv2d", (3, 64, 28, 28), (96, 64, 3, 3), {"padding": 1}),
    ("conv2d", (2, 256, 14, 14), (64, 256, 1, 1), {}),
    ("conv2d", (2, 3, 65, 63), (32, 3, 7, 7), {"stride": 2, "padding": 3, "padding_mode": "reflect"}),
    ("conv2d", (2, 37, 31, 29), (53, 37, 3, 3), {"padding": 1}),
    ("conv2d", (2, 48, 20, 20), (96, 12, 3, 3), {"groups": 4, "padding": "same"}),
    ("conv2d", (2, 40, 30, 30), (40, 1, 5, 5), {"groups": 40, "padding": 2}),
    ("conv3d", (2, 16, 8, 14, 14), (32, 16, 3, 3, 3), {"padding": 1, "padding_mode": "circular"}),
    ("conv_transpose1d", (2, 32, 500), (32, 16, 16), {"stride": 8, "padding": 4}),
    ("conv_transpose2d", (2, 64, 14, 14), (64, 32, 4, 4), {"stride": 2, "padding": 1}),
    ("conv_transpose3d", (2, 16, 4, 7, 7), (16, 8, 3, 3, 3), {"stride": 2, "output_padding": 1}),
]


def ident(value):
    return value if isinstance(value, str) else None


def data(x_shape, w_shape, dtype, layout):
    x, w = testing.he_data(x_shape, w_shape, dtype)
    return (np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout == "NHWC" else x), w


def passes(op, x, w, options):
    """Every pass of the layer as {name: call}."""
    y = getattr(functional, op)(x, w, **options)
    dy = np.random.default_rng(5).standard_normal(y.shape).astype(x.dtype)
    return {
        "forward": lambda: getattr(functional, op)(x, w, **options),
        "input": lambda: getattr(functional, f"{op}_backward_input")(dy, w, x.shape, **options),
        "weight": lambda: getattr(functional, f"{op}_backward_weight")(dy, x, w.shape, **options),
        "bias": lambda: getattr(functional, f"{op}_backward_bias")(dy, layout=options["layout"]),
    }


def assert_same_bits(a, b, what):
    assert a.shape == b.shape
    assert np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}")), f"{what}: bits differ"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("op", "x_shape", "w_shape", "options"), LAYERS, ids=ident)
def test_any_number_of_threads_and_every_run(op, x_shape, w_shape, options, dtype, layout):
    x, w = data(x_shape, w_shape, dtype, layout)
    for name, call in passes(op, x, w, {**options, "layout": layout}).items():
        results = []
        for threads in (*THREADS, 2):  # two threads twice: the tasks fall differently from run to run
            with fastconv.num_threads(threads):
                results.append(call())
        for threads, result in zip((*THREADS, 2), results, strict=True):
            assert_same_bits(result, results[0], f"{name} with {threads} threads")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("op", "x_shape", "w_shape", "options"), LAYERS, ids=ident)
def test_image_alone_or_in_a_batch(op, x_shape, w_shape, options, dtype, layout):
    x, w = data((5, *x_shape[1:]), w_shape, dtype, layout)
    options = {**options, "layout": layout}
    forward, backward = getattr(functional, op), getattr(functional, f"{op}_backward_input")
    y = forward(x, w, **options)
    dy = np.random.default_rng(5).standard_normal(y.shape).astype(dtype)
    dx = backward(dy, w, x.shape, **options)
    for i in (0, 3):
        assert_same_bits(forward(x[i : i + 1], w, **options)[0], y[i], "forward alone")
        assert_same_bits(forward(x[i], w, **options), y[i], "forward unbatched")
        assert_same_bits(backward(dy[i : i + 1], w, (1, *x.shape[1:]), **options)[0], dx[i], "input gradient alone")


# Small images of a batch, whose tiles pass over the taps in the padding: sizes, strides, planes of a volume.
SMALL = [
    ("conv2d", (8, 70, 2, 2), (75, 70, 3, 3), {"padding": 1}),
    ("conv2d", (9, 70, 3, 3), (20, 70, 3, 3), {"padding": 1, "stride": 2}),
    ("conv2d", (5, 130, 2, 3), (33, 130, 5, 3), {"padding": (2, 1)}),
    ("conv2d", (33, 24, 4, 4), (40, 12, 5, 5), {"padding": 2, "groups": 2}),
    ("conv2d", (6, 3, 2, 2), (8, 3, 3, 3), {"padding": 2}),
    ("conv2d", (6, 64, 2, 2), (48, 64, 3, 3), {"padding": 4, "dilation": 3}),
    ("conv3d", (2, 40, 7, 2, 2), (24, 40, 1, 3, 3), {"padding": (0, 1, 1)}),
    ("conv_transpose2d", (7, 40, 2, 2), (40, 36, 3, 3), {"padding": 1}),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("op", "x_shape", "w_shape", "options"), SMALL, ids=ident)
def test_small_images_of_a_batch(op, x_shape, w_shape, options, dtype, layout):
    options = {**options, "layout": layout, "algorithm": "direct"}
    x, w = data(x_shape, w_shape, dtype, layout)
    forward, backward = getattr(functional, op), getattr(functional, f"{op}_backward_input")
    plain_forward, plain_backward = (getattr(reference, f.__name__) for f in (forward, backward))
    dy = np.random.default_rng(5).standard_normal(plain_forward(x, w, **options).shape).astype(dtype)
    broken = w.copy()
    broken[1, 1, ..., 0, 0] = np.inf
    for weight in (w, broken):
        plan = fastconv.plan(op, x, weight, **options)
        y = forward(x, weight, **options)
        with fastconv.num_threads(1):
            fastconv.workspace_info(reset=True)
            dx = backward(dy, weight, x.shape, **options)
            used = fastconv.workspace_info()["peak_call_bytes_per_thread"]
        said = fastconv.explain(backward.__name__, dy, weight, x.shape, **options)
        assert used <= said.decision["workspace_per_thread"]
        with np.errstate(invalid="ignore"):
            expected = plain_forward(x, weight, **options)
        near = 1e-4 if dtype == np.float32 else 1e-12
        if weight is w or not op.startswith("conv_transpose"):
            # An infinite weight meets the padding's zeros.
            np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
            np.testing.assert_allclose(y, expected, rtol=near, atol=near)
        if weight is w:
            np.testing.assert_allclose(dx, plain_backward(dy, w, x.shape, **options), rtol=near, atol=near)
        assert_same_bits(plan(x), y, "plan")
        for threads in THREADS:
            with fastconv.num_threads(threads):
                assert_same_bits(forward(x, weight, **options), y, f"{threads} threads")
        for i in range(0, len(x), 3):
            assert_same_bits(forward(x[i], weight, **options), y[i], "forward alone")
            assert_same_bits(backward(dy[i], weight, x.shape[1:], **options), dx[i], "input gradient alone")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_row_of_a_dense_layer_alone_or_among_others(dtype):
    x, w = testing.he_data((37, 300), (101, 300), dtype)
    y, dx = functional.linear(x, w), functional.linear_backward_input(x @ w.T, w)
    dy = x @ w.T
    for i in (0, 17, 36):
        assert_same_bits(functional.linear(x[i], w), y[i], "row alone")
        assert_same_bits(functional.linear(x[i : i + 2], w)[0], y[i], "row of two")
        assert_same_bits(functional.linear_backward_input(dy[i], w), dx[i], "gradient of a row alone")
    for threads in THREADS:
        with fastconv.num_threads(threads):
            assert_same_bits(functional.linear(x, w), y, f"{threads} threads")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("op", "x_shape", "w_shape", "options"), LAYERS, ids=ident)
def test_plan_gives_the_bits_of_the_plain_call(rng, op, x_shape, w_shape, options, dtype, layout):
    x, w = data(x_shape, w_shape, dtype, layout)
    k = w_shape[1] * options.get("groups", 1) if "transpose" in op else w_shape[0]
    v = rng.standard_normal((4, k)).astype(dtype)
    c = x_shape[1]
    u = rng.standard_normal((2, c)).astype(dtype)
    options = {**options, "layout": layout, "scale": v[1], "shift": v[2], "activation": "silu"}
    options |= {"input_scale": u[0], "input_shift": u[1], "input_activation": "relu"}
    gate = rng.random((x.shape[0], c)).astype(dtype)
    y = getattr(functional, op)(x, w, v[0], input_gate=gate, **options)
    residual = rng.standard_normal(y.shape).astype(dtype)
    y = getattr(functional, op)(x, w, v[0], input_gate=gate, residual=residual, **options)
    plan = fastconv.plan(op, x, w, v[0], **options)
    out = np.empty_like(y)
    for threads in THREADS:
        with fastconv.num_threads(threads):
            assert_same_bits(plan(x, residual=residual, input_gate=gate), y, f"plan, {threads} threads")
            assert plan(x, residual=residual, input_gate=gate, out=out) is out
            assert_same_bits(out, y, f"plan with out, {threads} threads")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_address_does_not_change_the_bits(dtype):
    x, w = testing.he_data((1, 19, 13, 13), (23, 19, 3, 3), dtype)
    y = functional.conv2d(x, w, padding=1)
    for offset in range(1, 17):
        buffer = np.empty(x.size + offset, dtype)
        moved = buffer[offset:].reshape(x.shape)
        moved[...] = x
        out = np.empty(y.size + offset, dtype)[offset:].reshape(y.shape)
        assert_same_bits(functional.conv2d(moved, w, padding=1, out=out), y, f"offset {offset}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("filter_size", [1, 3, 7])
@pytest.mark.parametrize("channels", [3, 8, 32])
def test_strided_input_and_its_dense_copy(channels, filter_size, dtype):
    wide, w = testing.he_data((2, 13, 11, 2 * channels), (24, channels, filter_size, filter_size), dtype)
    x = wide[..., ::2]  # NHWC with a gap after each channel
    options = {"layout": "NHWC", "padding": filter_size // 2}
    y = fastconv.conv2d(x, w, **options)
    assert_same_bits(y, fastconv.conv2d(np.ascontiguousarray(x), w, **options), "dense copy")
    assert_same_bits(y, fastconv.plan("conv2d", x, w, **options)(x), "plan")
