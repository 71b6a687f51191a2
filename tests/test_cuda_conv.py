"""Convolution on devices, in all its products, against the reference in float64."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv import cuda, functional, reference

from .cuda_layers import DTYPES, LAYOUTS, assert_close, on_device, side

# name, in and out channels, groups, image, kernel, options
LAYERS = [
    ("plain", 3, 5, 1, (7, 9), 3, {"padding": 1}),
    # Several tiles of pixels and channels, and tails of both; more than one run of terms.
    ("tiles", 19, 70, 1, (9, 11), 3, {"stride": 2, "padding": 1}),
    ("pointwise", 33, 65, 1, (5, 7), 1, {}),
    ("dilated", 6, 9, 1, (11, 12), 3, {"dilation": (2, 3), "padding": (2, 3)}),
    ("grouped", 18, 27, 3, (8, 7), 3, {"padding": ((0, 1), (2, 1))}),
    ("depthwise", 10, 10, 10, (9, 8), 3, {"padding": 1}),
    ("multiplier", 4, 8, 4, (9, 8), 5, {"stride": 2, "padding": 2}),
    ("same", 4, 9, 1, (9, 8), 4, {"stride": 2, "padding": "same"}),
    ("reflect", 5, 9, 1, (7, 6), 3, {"padding": 2, "padding_mode": "reflect"}),
    ("replicate", 9, 10, 1, (5, 6), 3, {"padding": 3, "padding_mode": "replicate", "stride": 2}),
    ("circular", 6, 6, 6, (5, 6), 3, {"padding": 2, "padding_mode": "circular"}),
    ("line", 5, 9, 1, (23,), 5, {"stride": 2, "padding": 3}),
    ("volume", 3, 9, 1, (4, 5, 6), 3, {"padding": 1}),
    ("thin volume", 8, 8, 8, (4, 5, 6), 3, {"padding": 1, "stride": (1, 2, 1)}),
]
TRANSPOSED = [
    ("plain", 5, 9, 1, (5, 6), 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    ("tiles", 20, 33, 1, (6, 5), 2, {"stride": 2}),
    ("grouped", 18, 18, 2, (5, 4), 3, {"stride": (1, 2), "dilation": 2}),
    ("depthwise", 6, 6, 6, (5, 4), 4, {"stride": 2, "padding": 1}),
    ("line", 9, 4, 1, (11,), 5, {"stride": 3}),
    ("volume", 4, 9, 1, (3, 2, 4), 2, {"stride": 2}),
]


def magnitudes(forward, x, w, **options):
    return forward(np.abs(x), np.abs(w), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("transposed", "layer"),
    [(False, layer) for layer in LAYERS] + [(True, layer) for layer in TRANSPOSED],
    ids=lambda value: value[0] if isinstance(value, tuple) else ("conv_transpose" if value else "conv"),
)
def test_layers(device, transposed, layer, dtype, rng):
    _, channels, outputs, groups, size, kernel, options = layer
    rank = len(size)
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    shape = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    for last in (False, True):
        how = {**options, "groups": groups, "layout": LAYOUTS[rank][last]}
        x, wide_x = on_device(side(rng, 2, channels, size, last), dtype)
        w, wide_w = on_device(rng.standard_normal((*shape, *(kernel,) * rank)), dtype)
        b, wide_b = on_device(rng.standard_normal(outputs), dtype)
        y = getattr(functional, name)(x, w, b, **how)
        expected = getattr(reference, name)(wide_x, wide_w, wide_b, **how)
        scale = getattr(reference, name)(np.abs(wide_x), np.abs(wide_w), np.abs(wide_b), **how)
        assert_close(y, expected, dtype, scale, "y")
        assert cuda.to_host(y).flags.c_contiguous
        dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
        got = getattr(functional, f"{name}_backward")(dy, x, w, **how)
        backward = getattr(reference, f"{name}_backward")
        exact = backward(wide_dy, wide_x, wide_w, **how)
        scales = backward(np.abs(wide_dy), np.abs(wide_x), np.abs(wide_w), **how)
        for field in ("input", "weight", "bias"):
            assert_close(getattr(got, field), getattr(exact, field), dtype, getattr(scales, field), field)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 9])
def test_prologue_and_epilogue(device, groups, dtype, rng):
    for last, transposed in itertools.product((False, True), (False, True)):
        layout = LAYOUTS[2][last]
        x, wide_x = on_device(side(rng, 2, 9, (6, 5), last), dtype)
        shape = (9, 18 // groups, 3, 3) if transposed else (18, 9 // groups, 3, 3)
        w, wide_w = on_device(rng.standard_normal(shape), dtype)
        names = {"bias": 18, "scale": 18, "shift": 18}
        vectors = {name: on_device(rng.standard_normal(n), dtype) for name, n in names.items()}
        if not transposed:
            vectors |= {name: on_device(rng.standard_normal(9), dtype) for name in ("input_scale", "input_shift")}
            vectors["input_gate"] = on_device(rng.standard_normal((2, 9)), dtype)
        options = {"padding": 1, "groups": groups, "layout": layout, "activation": "relu6"}
        if not transposed:
            options["input_activation"] = "relu"
        name = "conv_transpose2d" if transposed else "conv2d"
        r, wide_r = on_device(side(rng, 2, 18, (6, 5), last), dtype)
        y = getattr(functional, name)(x, w, residual=r, **{n: v[0] for n, v in vectors.items()}, **options)
        exact = getattr(reference, name)(
            wide_x, wide_w, residual=wide_r, **{n: v[1] for n, v in vectors.items()}, **options
        )
        assert_close(y, exact, dtype, 400, name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_accumulation_and_out(device, dtype, rng):
    for groups in (1, 8):
        x, wide_x = on_device(side(rng, 2, 8, (6, 5), False), dtype)
        w, wide_w = on_device(rng.standard_normal((8, 8 // groups, 3, 3)), dtype)
        dy, wide_dy = on_device(side(rng, 2, 8, (4, 3), False), dtype)
        for op, arguments, wide in (
            ("input", (dy, w, x.shape), (wide_dy, wide_w, x.shape)),
            ("weight", (dy, x, w.shape), (wide_dy, wide_x, w.shape)),
        ):
            out, before = on_device(rng.standard_normal(arguments[2]), dtype)
            f, r = (getattr(m, f"conv2d_backward_{op}") for m in (functional, reference))
            assert f(*arguments, groups=groups, accumulate=True, out=out) is out
            assert_close(out, before + r(*wide, groups=groups), dtype, 200, op)
        out, before = on_device(rng.standard_normal(8), dtype)
        functional.conv2d_backward_bias(dy, accumulate=True, out=out)
        assert_close(out, before + reference.conv2d_backward_bias(wide_dy), dtype, 200)
        strided = cuda.empty((2, 16, 4, 6), dtype)[:, ::2, :, ::2]
        assert functional.conv2d(x, w, groups=groups, out=strided) is strided
        assert_close(strided, reference.conv2d(wide_x, wide_w, groups=groups), dtype, 200)


def test_weight_gradients_in_pieces(device, rng):
    # More pixels than a piece has, by either path; the last piece is short.
    for groups in (1, 2):
        x, wide_x = on_device(side(rng, 1, 16 if groups == 1 else 2, (150, 120), False), "float32")
        w = (9, 16, 1, 1) if groups == 1 else (2, 1, 1, 1)
        dy, wide_dy = on_device(side(rng, 1, w[0], (150, 120), False), "float32")
        got = functional.conv2d_backward_weight(dy, x, w, groups=groups)
        exact = reference.conv2d_backward_weight(wide_dy, wide_x, w, groups=groups)
        scale = reference.conv2d_backward_weight(np.abs(wide_dy), np.abs(wide_x), w, groups=groups)
        assert_close(got, exact, "float32", scale)


@settings(max_examples=60)
@given(
    rank=st.integers(1, 3),
    transposed=st.booleans(),
    last=st.booleans(),
    groups=st.sampled_from([1, 1, 2, 3]),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 9),
    size=st.lists(st.integers(1, 7), min_size=3, max_size=3),
    kernel=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    stride=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    dilation=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    padding=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
    batch=st.integers(0, 2),
    step=st.sampled_from([1, 2, -1]),
)
def test_any_layer(
    device, rank, transposed, last, groups, inputs, outputs, size, kernel, stride, dilation, padding, mode, batch, step
):
    rng = np.random.default_rng(inputs)
    size, kernel, stride, dilation = (tuple(v[:rank]) for v in (size, kernel, stride, dilation))
    pairs = tuple((padding[i], padding[3 + i]) for i in range(rank))
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    options = {
        "stride": stride,
        "dilation": dilation,
        "padding": pairs,
        "groups": groups,
        "layout": LAYOUTS[rank][last],
    }
    if not transposed:
        options["padding_mode"] = mode
    whole = cuda.to_device(side(rng, batch, inputs * groups, [n * abs(step) for n in size], last).astype(np.float32))
    taken = (slice(None, None, step),) * rank
    x = whole[(slice(None), *taken)] if last else whole[(slice(None), slice(None), *taken)]
    wide_x = cuda.to_host(x).astype(np.float64)
    shape = (inputs * groups, outputs) if transposed else (outputs * groups, inputs)
    w, wide_w = on_device(rng.standard_normal((*shape, *kernel)), "float32")
    # What the CPU refuses is refused here, in the same words.
    words = None
    try:
        expected = getattr(functional, name)(wide_x, wide_w, **options)
    except ValueError as error:
        words = re.escape(str(error))
    if words is not None:
        with pytest.raises(ValueError, match=words):
            getattr(functional, name)(x, w, **options)
        return
    assert_close(getattr(functional, name)(x, w, **options), expected, "float32", 200)
    dy, wide_dy = on_device(rng.standard_normal(expected.shape), "float32")
    got = getattr(functional, f"{name}_backward")(dy, x, w, **options)
    exact = getattr(functional, f"{name}_backward")(wide_dy, wide_x, wide_w, **options)
    for a, b in zip(got, exact, strict=True):
        assert_close(a, b, "float32", 200)


def test_the_batch_changes_no_bit(device, rng):
    x = rng.standard_normal((3, 18, 9, 8)).astype(np.float32)
    for groups in (1, 18):
        w = cuda.to_device(rng.standard_normal((18, 18 // groups, 3, 3)).astype(np.float32))
        whole = cuda.to_host(functional.conv2d(cuda.to_device(x), w, groups=groups))
        for i in range(3):
            alone = functional.conv2d(cuda.to_device(x[i : i + 1]), w, groups=groups)
            np.testing.assert_array_equal(cuda.to_host(alone)[0], whole[i])


def test_linear(device, rng):
    for dtype, shape in itertools.product(("float32", "bfloat16"), ((5, 7), (7,), (2, 3, 7), (0, 7))):
        x, wide_x = on_device(rng.standard_normal(shape), dtype)
        w, wide_w = on_device(rng.standard_normal((11, 7)), dtype)
        b, wide_b = on_device(rng.standard_normal(11), dtype)
        y, expected = (
            functional.linear(x, w, b, activation="relu"),
            reference.linear(wide_x, wide_w, wide_b, activation="relu"),
        )
        assert_close(y, expected, dtype, 30)
        dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
        got, exact = functional.linear_backward(dy, x, w), reference.linear_backward(wide_dy, wide_x, wide_w)
        for a, e in zip(got, exact, strict=True):
            assert_close(a, e, dtype, 30)


def test_refusals(device, rng):
    x = cuda.to_device(side(rng, 1, 4, (6, 6), False).astype(np.float32))
    w = cuda.to_device(rng.standard_normal((8, 4, 3, 3)).astype(np.float32))
    for call, error, message in (
        (
            lambda: functional.conv2d(x, cuda.to_host(w)),
            TypeError,
            r"weight \(on the host\) must be on the device of x",
        ),
        (lambda: functional.conv2d(x, w, groups=3), ValueError, r"groups \(=3\) must divide in_channels \(=4\)"),
        (lambda: functional.conv2d(x, w, np.ones(8, np.float32)), TypeError, r"bias \(on the host\) must be on"),
        (lambda: functional.conv2d(x, w, cuda.empty(7)), ValueError, r"bias \(shape \(7,\)\)"),
        (lambda: functional.conv2d(x, cuda.to_device(cuda.to_host(w), dtype="float16")), TypeError, "dtype float16"),
        (lambda: functional.conv2d(x, w, algorithm="fft"), ValueError, "algorithm .* is not served on a CUDA device"),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_separable(device, dtype, rng):
    for last, multiplier in itertools.product((False, True), (1, 2)):
        x, wide_x = on_device(side(rng, 2, 6, (7, 8), last), dtype)
        u, wide_u = on_device(rng.standard_normal((6 * multiplier, 1, 3, 3)), dtype)
        p, wide_p = on_device(rng.standard_normal((9, 6 * multiplier, 1, 1)), dtype)
        b, wide_b = on_device(rng.standard_normal(9), dtype)
        options = {"stride": 2, "padding": 1, "layout": LAYOUTS[2][last], "depthwise_activation": "relu"}
        y = functional.separable_conv2d(x, u, p, bias=b, **options)
        expected = reference.separable_conv2d(wide_x, wide_u, wide_p, bias=wide_b, **options)
        # The intermediate is rounded to the dtype.
        assert_close(y, expected, dtype, 40 if dtype == "float32" else 40 * 2.0**13)


@pytest.mark.parametrize("expands", [True, False])
@pytest.mark.parametrize("squeezes", [True, False])
def test_inverted_residual(device, expands, squeezes, rng):
    for last in (False, True):
        x, wide_x = on_device(side(rng, 2, 6, (7, 8), last), "float32")
        E = 12 if expands else 6
        shapes = {
            "expand_weight": (12, 6, 1, 1) if expands else None,
            "depthwise_weight": (E, 1, 3, 3),
            "project_weight": (6, E, 1, 1),
        }
        if squeezes:
            shapes |= {"se_reduce_weight": (3, E, 1, 1), "se_reduce_bias": (3,)}
            shapes |= {"se_expand_weight": (E, 3, 1, 1), "se_expand_bias": (E,)}
        both = {
            name: (None, None) if shape is None else on_device(rng.standard_normal(shape), "float32")
            for name, shape in shapes.items()
        }
        options = {"padding": 1, "layout": LAYOUTS[2][last]}
        y = functional.inverted_residual(x, residual=x, **{n: v[0] for n, v in both.items()}, **options)
        exact = reference.inverted_residual(wide_x, residual=wide_x, **{n: v[1] for n, v in both.items()}, **options)
        assert_close(y, exact, "float32", 2000)
