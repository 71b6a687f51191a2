"""Dense convolution on tensor cores, in all its products, against the reference in float64."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv
from fastconv import cuda, functional, reference

from .cuda_layers import LAYOUTS, assert_close, on_device, side

# What is multiplied: the dtype of the arrays and the precision that is asked for.
MATHS = {
    "float16": ("float16", "strict"),
    "bfloat16": ("bfloat16", "strict"),
    "tf32": ("float32", "tf32"),
    "tf32x3": ("float32", "tf32x3"),
}
EPS = 2.0**-23
# Element by element, of conv(|x|, |w|): two operands rounded to 11 bits; two parts of 22 bits, and the product of the
# small parts that is left out. To either come the sums' own roundings, of which the tests admit 4.
CONSTANT = {"tf32": 2.0**-10 + 4 * EPS, "tf32x3": 3 * 2.0**-22 + 4 * EPS}
# ||out - ref|| / ||ref||: half a unit in the last place, of the result alone.
NORM = {"float16": 2.0**-11, "bfloat16": 2.0**-8}

# name, in and out channels, groups, image, kernel, options. Sides of whole vectors of channels are copied where they
# are innermost, others gathered.
LAYERS = [
    ("plain", 32, 40, 1, (7, 9), 3, {"padding": 1}),
    ("odd", 19, 70, 1, (9, 11), 3, {"padding": (1, 2), "stride": (1, 2)}),
    ("pointwise", 72, 65, 1, (8, 9), 1, {}),
    ("dilated", 32, 33, 1, (11, 12), 3, {"dilation": (2, 3), "padding": (2, 3)}),
    ("grouped", 96, 51, 3, (8, 7), 3, {"padding": ((0, 1), (2, 1))}),
    ("same", 32, 32, 1, (9, 8), 4, {"stride": 2, "padding": "same"}),
    ("few", 3, 64, 1, (23, 21), 7, {"stride": 2, "padding": 3}),
    ("reflect", 24, 48, 1, (7, 6), 3, {"padding": 2, "padding_mode": "reflect"}),
    ("replicate", 33, 32, 1, (11, 12), 3, {"padding": 3, "padding_mode": "replicate", "stride": 2}),
    ("circular", 32, 32, 1, (7, 6), 3, {"padding": 2, "padding_mode": "circular"}),
    ("line", 48, 56, 1, (63,), 5, {"stride": 2, "padding": 3}),
    ("volume", 16, 24, 1, (4, 5, 6), 3, {"padding": 1}),
]
TRANSPOSED = [
    ("plain", 32, 40, 1, (6, 7), 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    ("odd", 33, 70, 1, (9, 8), 2, {"stride": 2}),
    ("gaps", 40, 48, 1, (13, 12), (3, 1), {"stride": (2, 3)}),
    ("grouped", 64, 48, 2, (9, 8), 3, {"stride": (1, 2), "dilation": (1, 2)}),
    ("even", 48, 40, 1, (7, 8), 3, {"stride": 4, "dilation": 2, "padding": 1}),
    ("line", 48, 40, 1, (41,), 5, {"stride": 3}),
    ("volume", 32, 32, 1, (3, 4, 4), 2, {"stride": 2}),
]


def took(device, kernel):
    """Whether one was launched, since the last call, whose arguments are a tensor-core kernel's; a GPU does not say."""
    if not hasattr(device, "take_launches"):
        return True
    return any(kernel in launch for launch in device.take_launches())


# The types that kernels are known by: mma_tiles and pack_filters take a Walk, mma_weights two dividers after the shape.
TILES, WEIGHTS = "Walk", "ConvShape, Divider, Divider"


def assert_within(math, y, exact, scale, what=""):
    """The bounds of docs/numerics.md: element by element, and of 16-bit results in norm, too."""
    if math in NORM:
        assert_close(y, exact, MATHS[math][0], scale, what)
        error = cuda.to_host(y).astype(np.float64) - exact
        assert np.linalg.norm(error) <= NORM[math] * np.linalg.norm(exact), what
        return
    error = np.abs(cuda.to_host(y).astype(np.float64) - exact)
    assert (error <= CONSTANT[math] * (scale + 2.0**-100)).all(), (what, (error / scale).max() / EPS)


def operands(rng, layer, transposed, last, dtype):
    _, channels, outputs, groups, size, kernel, options = layer
    rank = len(size)
    taps = kernel if isinstance(kernel, tuple) else (kernel,) * rank
    shape = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    x = on_device(side(rng, 2, channels, size, last), dtype)
    w = on_device(rng.standard_normal((*shape, *taps)), dtype)
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    return name, {**options, "groups": groups, "layout": LAYOUTS[rank][last]}, x, w


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize(
    ("transposed", "layer"),
    [(False, layer) for layer in LAYERS] + [(True, layer) for layer in TRANSPOSED],
    ids=lambda value: value[0] if isinstance(value, tuple) else ("conv_transpose" if value else "conv"),
)
def test_layers(device, transposed, layer, math, rng):
    dtype, precision = MATHS[math]
    for last in (False, True):
        name, how, (x, wide_x), (w, wide_w) = operands(rng, layer, transposed, last, dtype)
        took(device, TILES)
        y = getattr(functional, name)(x, w, precision=precision, **how)
        assert took(device, TILES)
        exact = getattr(reference, name)(wide_x, wide_w, **how)
        scale = getattr(reference, name)(np.abs(wide_x), np.abs(wide_w), **how)
        assert_within(math, y, exact, scale, "y")
        dy, wide_dy = on_device(rng.standard_normal(exact.shape), dtype)
        backward = getattr(reference, f"{name}_backward")
        exact = backward(wide_dy, wide_x, wide_w, needs=("input", "weight"), **how)
        scale = backward(np.abs(wide_dy), np.abs(wide_x), np.abs(wide_w), needs=("input", "weight"), **how)
        dx = getattr(functional, f"{name}_backward_input")(dy, w, x.shape, precision=precision, **how)
        # Pixels that padding repeats have sums of their own, on the CUDA cores.
        folds = how.get("padding_mode", "zeros") != "zeros"
        thin = layer[1] // how["groups"] < 16
        assert took(device, TILES) == ((not folds and not thin) or not hasattr(device, "take_launches"))
        assert_within(math, dx, exact.input, scale.input, "dx")
        dw = getattr(functional, f"{name}_backward_weight")(dy, x, w.shape, precision=precision, **how)
        assert took(device, WEIGHTS)
        assert_within(math, dw, exact.weight, scale.weight, "dw")


@settings(max_examples=80)
@given(
    math=st.sampled_from(list(MATHS)),
    rank=st.integers(1, 3),
    transposed=st.booleans(),
    last=st.booleans(),
    groups=st.sampled_from([1, 1, 2]),
    inputs=st.sampled_from([16, 17, 24, 32]),
    outputs=st.sampled_from([16, 18, 40, 66]),
    size=st.lists(st.integers(2, 6), min_size=3, max_size=3),
    kernel=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    stride=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    dilation=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    padding=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
    batch=st.integers(1, 2),
    step=st.sampled_from([1, 2, -1]),
)
def test_any_layer(
    device,
    math,
    rank,
    transposed,
    last,
    groups,
    inputs,
    outputs,
    size,
    kernel,
    stride,
    dilation,
    padding,
    mode,
    batch,
    step,
):
    dtype, precision = MATHS[math]
    rng = np.random.default_rng(inputs)
    # As many pixels in any rank.
    size = tuple(n * (40, 3, 1)[rank - 1] for n in size[:rank])
    kernel, stride, dilation = (tuple(v[:rank]) for v in (kernel, stride, dilation))
    pairs = tuple((padding[i], padding[3 + i]) for i in range(rank))
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    how = {"stride": stride, "dilation": dilation, "padding": pairs, "groups": groups, "layout": LAYOUTS[rank][last]}
    if not transposed:
        how["padding_mode"] = mode
    whole = cuda.to_device(side(rng, batch, inputs * groups, [n * abs(step) for n in size], last), dtype=dtype)
    taken = (slice(None, None, step),) * rank
    x = whole[(slice(None), *taken)] if last else whole[(slice(None), slice(None), *taken)]
    wide_x = cuda.to_host(x).astype(np.float64)
    shape = (inputs * groups, outputs) if transposed else (outputs * groups, inputs)
    w, wide_w = on_device(rng.standard_normal((*shape, *kernel)), dtype)
    try:
        expected = getattr(functional, name)(wide_x, wide_w, **how)
    except ValueError:
        return
    scale = getattr(functional, name)(np.abs(wide_x), np.abs(wide_w), algorithm="direct", **how)
    assert_within(math, getattr(functional, name)(x, w, precision=precision, **how), expected, scale, "y")
    dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
    got = getattr(functional, f"{name}_backward")(dy, x, w, precision=precision, **how)
    exact = getattr(functional, f"{name}_backward")(wide_dy, wide_x, wide_w, **how)
    scales = getattr(functional, f"{name}_backward")(np.abs(wide_dy), np.abs(wide_x), np.abs(wide_w), **how)
    for field in ("input", "weight"):
        assert_within(math, getattr(got, field), getattr(exact, field), getattr(scales, field), field)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("last", [False, True])
def test_prologue_and_epilogue(device, last, math, rng):
    dtype, precision = MATHS[math]
    layout = LAYOUTS[2][last]
    for transposed, prologue in ((False, False), (False, True), (True, True)):
        x, wide_x = on_device(side(rng, 2, 24, (9, 10), last), dtype)
        w, wide_w = on_device(rng.standard_normal((24, 36, 3, 3) if transposed else (36, 24, 3, 3)), dtype)
        r, wide_r = on_device(side(rng, 2, 36, (9, 10), last), dtype)
        named = {name: on_device(rng.standard_normal(36), dtype) for name in ("bias", "scale", "shift")}
        options = {"padding": 1, "layout": layout, "activation": "silu"}
        wide_options = dict(options)
        if prologue:
            before = {name: on_device(rng.standard_normal(24), dtype) for name in ("input_scale", "input_shift")}
            before["input_gate"] = on_device(rng.standard_normal((2, 24)), dtype)
            options |= {name: a for name, (a, _) in before.items()} | {"input_activation": "relu"}
            scale, shift, gate = (wide for _, wide in before.values())
            across = (None, None, None, slice(None)) if last else (None, slice(None), None, None)
            per_image = (slice(None), None, None) if last else (slice(None), slice(None), None, None)
            wide_x = np.maximum(wide_x * scale[across] + shift[across], 0) * gate[per_image]
            # The products take it in their dtype.
            wide_x = cuda.to_host(cuda.to_device(wide_x, dtype=dtype)).astype(np.float64)
        name = "conv_transpose2d" if transposed else "conv2d"
        took(device, TILES)
        y = getattr(functional, name)(
            x, w, residual=r, precision=precision, **{n: v[0] for n, v in named.items()}, **options
        )
        assert took(device, TILES)
        exact = getattr(reference, name)(
            wide_x, wide_w, residual=wide_r, **{n: v[1] for n, v in named.items()}, **wide_options
        )
        # Sums of up to 200 in magnitude, times scale, and the inputs' roundings beside the result's.
        wide = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "tf32": 2.0**-10, "tf32x3": 2.0**-20}[math]
        error = cuda.to_host(y).astype(np.float64) - exact
        assert np.abs(error).max() <= wide * 400
        assert np.linalg.norm(error) <= wide * np.linalg.norm(exact)


def test_precision_is_what_is_asked_for(device, rng):
    x, wide_x = on_device(side(rng, 1, 64, (8, 8), True), "float32")
    w, wide_w = on_device(rng.standard_normal((32, 64, 3, 3)), "float32")
    exact = reference.conv2d(wide_x, wide_w, layout="NHWC")
    scale = reference.conv2d(np.abs(wide_x), np.abs(wide_w), layout="NHWC")
    error = {}
    for precision in ("strict", "tf32x3", "tf32"):
        took(device, TILES)
        y = cuda.to_host(functional.conv2d(x, w, layout="NHWC", precision=precision))
        assert took(device, TILES) == (precision != "strict" or not hasattr(device, "take_launches"))
        error[precision] = (np.abs(y - exact) / scale).max() / EPS
    # TF32 is much coarser than its three parts, which are near to float32.
    assert error["strict"] < 4
    assert error["tf32x3"] < 8
    assert 64 < error["tf32"] < 2.0**13
    with pytest.raises(ValueError, match=r"precision .*must be one of 'strict', 'tf32x3', 'tf32'"):
        functional.conv2d(x, w, layout="NHWC", precision="half")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_cuda_cores_keep_what_is_theirs(device, dtype, rng):
    """float64, small products, and float32 where nothing else is asked for."""
    how = {"precision": "tf32", "layout": "NHWC"}
    small = [("small", 16, 16, 8), ("thin", 64, 12, 8), ("grouped", 64, 64, 8)]
    for name, channels, outputs, size in small + [("wide", 64, 64, 8)] * (dtype == "float64"):
        groups = 8 if name == "grouped" else 1
        x, wide_x = on_device(side(rng, 1, channels, (size, size), True), dtype)
        w, wide_w = on_device(rng.standard_normal((outputs, channels // groups, 1, 1)), dtype)
        took(device, TILES)
        y = functional.conv2d(x, w, groups=groups, **how)
        assert not took(device, TILES) or not hasattr(device, "take_launches")
        assert_close(y, reference.conv2d(wide_x, wide_w, groups=groups, layout="NHWC"), dtype, 60, name)


@pytest.mark.parametrize("math", MATHS)
def test_no_bit_depends_on_batch_layout_or_address(device, math, rng):
    dtype, precision = MATHS[math]
    # 7 images fill enough large tiles, one does not.
    values = rng.standard_normal((7, 31, 31, 16)).astype(np.float32)
    w = cuda.to_device(rng.standard_normal((132, 16, 1, 1)).astype(np.float32), dtype=dtype)

    def run(x, layout="NHWC"):
        return cuda.to_host(functional.conv2d(x, w, layout=layout, precision=precision))

    whole = run(cuda.to_device(values, dtype=dtype))
    if hasattr(device, "take_most_shared"):
        assert (device.take_most_shared() > 65536) == (math != "tf32x3")
    alone = run(cuda.to_device(values[2:3], dtype=dtype))
    if hasattr(device, "take_most_shared"):
        assert device.take_most_shared() < 65536
    np.testing.assert_array_equal(alone[0], whole[2])
    planar = run(cuda.to_device(np.ascontiguousarray(values[2:3].transpose(0, 3, 1, 2)), dtype=dtype), "NCHW")
    np.testing.assert_array_equal(planar[0].transpose(1, 2, 0), whole[2])
    # Channels 1 to 16 of 17: no vector lies at a multiple of 16 bytes.
    padded = np.concatenate([values[2:3, ..., :1], values[2:3]], axis=-1)
    np.testing.assert_array_equal(run(cuda.to_device(padded, dtype=dtype)[..., 1:])[0], whole[2])
    # Backwards in memory: offsets are negative, by either way of bringing operands, and with a prologue.
    back = cuda.to_device(np.ascontiguousarray(values[2:3, ::-1, ::-1]), dtype=dtype)[:, ::-1, ::-1]
    odd = cuda.to_device(np.ascontiguousarray(padded[:, ::-1, ::-1]), dtype=dtype)[:, ::-1, ::-1, 1:]
    scale = cuda.to_device(rng.standard_normal(16), dtype=dtype)

    def prepared(x):
        return cuda.to_host(functional.conv2d(x, w, layout="NHWC", precision=precision, input_scale=scale))

    for x in (back, odd):
        np.testing.assert_array_equal(run(x)[0], whole[2])
        np.testing.assert_array_equal(prepared(x), prepared(cuda.to_device(values[2:3], dtype=dtype)))


@pytest.mark.parametrize("math", MATHS)
def test_accumulation_and_out(device, math, rng):
    dtype, precision = MATHS[math]
    for last in (False, True):
        how = {"layout": LAYOUTS[2][last], "precision": precision}
        x, wide_x = on_device(side(rng, 1, 32, (9, 8), last), dtype)
        w, wide_w = on_device(rng.standard_normal((48, 32, 3, 3)), dtype)
        dy, wide_dy = on_device(side(rng, 1, 48, (7, 6), last), dtype)
        for op, arguments, wide in (
            ("input", (dy, w, x.shape), (wide_dy, wide_w, x.shape)),
            ("weight", (dy, x, w.shape), (wide_dy, wide_x, w.shape)),
        ):
            out, before = on_device(rng.standard_normal(arguments[2]), dtype)
            f, r = (getattr(m, f"conv2d_backward_{op}") for m in (functional, reference))
            assert f(*arguments, accumulate=True, out=out, **how) is out
            scale = r(*(np.abs(a) if isinstance(a, np.ndarray) else a for a in wide), layout=how["layout"])
            assert_within(math, out, before + r(*wide, layout=how["layout"]), scale + np.abs(before), op)
        # Every other channel and column of a larger array, whose rest stays as it is.
        shape = (1, 7, 12, 96) if last else (1, 96, 7, 12)
        target, before = on_device(rng.standard_normal(shape), dtype)
        taken = (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2))
        taken = taken if last else (slice(None), slice(None, None, 2), slice(None), slice(None, None, 2))
        functional.conv2d(x, w, out=target[taken], **how)
        got = cuda.to_host(target).astype(np.float64)
        scale = reference.conv2d(np.abs(wide_x), np.abs(wide_w), layout=how["layout"])
        exact = reference.conv2d(wide_x, wide_w, layout=how["layout"])
        assert_within(math, cuda.to_device(got[taken], dtype=dtype), exact, scale)
        got[taken] = before[taken]
        np.testing.assert_array_equal(got, before)


@pytest.mark.parametrize("math", MATHS)
def test_what_is_not_finite_stays_where_it_is(device, math, rng):
    dtype, precision = MATHS[math]
    values = side(rng, 1, 32, (9, 9), True)
    values[0, 4, 4, 7], values[0, 0, 0, 31] = np.inf, np.nan
    x, _ = on_device(values, dtype)
    w, _ = on_device(rng.standard_normal((40, 32, 3, 3)), dtype)
    y = cuda.to_host(functional.conv2d(x, w, padding=1, layout="NHWC", precision=precision)).astype(np.float64)
    met = np.zeros((9, 9), bool)
    met[3:6, 3:6] = met[:2, :2] = True
    assert np.isfinite(y[0, ~met]).all()
    assert not np.isfinite(y[0, met]).any()
    assert np.isnan(y[0, :2, :2]).all()
    # An infinity stays one, but for tf32x3, whose second part of it is none.
    assert np.isinf(y[0, 3:6, 3:6]).all() == (math != "tf32x3")


def test_weight_gradients_in_pieces(device, rng):
    # More pixels than a piece has; the last piece is short. The same bits from any run.
    x, wide_x = on_device(side(rng, 1, 44, (60, 90), True), "float16")
    dy, wide_dy = on_device(side(rng, 1, 47, (60, 90), True), "float16")
    w = (47, 44, 1, 1)
    got = functional.conv2d_backward_weight(dy, x, w, layout="NHWC")
    exact = reference.conv2d_backward_weight(wide_dy, wide_x, w, layout="NHWC")
    scale = reference.conv2d_backward_weight(np.abs(wide_dy), np.abs(wide_x), w, layout="NHWC")
    assert_within("float16", got, exact, scale)
    again = functional.conv2d_backward_weight(dy, x, w, layout="NHWC")
    np.testing.assert_array_equal(cuda.to_host(got), cuda.to_host(again))


@pytest.mark.parametrize("rows", [1, 200])
def test_dense_layers_of_any_batch(device, rows, rng):
    """One row or many: the same products, and the same bits of a row."""
    x, wide_x = on_device(rng.standard_normal((200, 48)), "bfloat16")
    w, wide_w = on_device(rng.standard_normal((56, 48)), "bfloat16")
    b, wide_b = on_device(rng.standard_normal(56), "bfloat16")
    whole = cuda.to_host(functional.linear(x, w, b))
    took(device, TILES)
    y = functional.linear(x[:rows], w, b)
    assert took(device, TILES)
    np.testing.assert_array_equal(cuda.to_host(y), whole[:rows])
    scale = reference.linear(np.abs(wide_x[:rows]), np.abs(wide_w), np.abs(wide_b))
    assert_within("bfloat16", y, reference.linear(wide_x[:rows], wide_w, wide_b), scale)


def test_separable_layers_leave_room_for_their_stages(device, rng):
    """The pointwise half packs its weights behind the image between."""
    for last in (False, True):
        x, wide_x = on_device(side(rng, 2, 32, (20, 21), last), "float16")
        u, wide_u = on_device(rng.standard_normal((32, 1, 3, 3)), "float16")
        p, wide_p = on_device(rng.standard_normal((80, 32, 1, 1)), "float16")
        options = {"padding": 1, "layout": LAYOUTS[2][last]}
        took(device, TILES)
        y = functional.separable_conv2d(x, u, p, **options)
        assert took(device, TILES)
        expected = reference.separable_conv2d(wide_x, wide_u, wide_p, **options)
        assert_close(y, expected, "float16", 60 * 2.0**13)


@pytest.mark.parametrize("name", ["conv2d", "conv2d_backward_input", "conv2d_backward_weight"])
def test_explain_tells_what_runs(device, name, rng):
    """The role, the tile and the packed weights are those of the call, in every dtype and precision."""
    if not hasattr(device, "take_launches"):
        pytest.skip("a GPU does not say what it launched")
    cases = [(math, dtype, precision, 96) for math, (dtype, precision) in MATHS.items()]
    cases += [("strict", "float32", "strict", 96), ("double", "float64", "tf32", 96), ("small", "float16", "strict", 4)]
    for math, dtype, precision, outputs in cases:
        x = cuda.to_device(rng.standard_normal((2, 32, 8, 8)), dtype=dtype)
        w = cuda.to_device(rng.standard_normal((outputs, 32, 3, 3)), dtype=dtype)
        dy = cuda.to_device(rng.standard_normal((2, outputs, 6, 6)), dtype=dtype)
        operands = {"conv2d": (x, w), "conv2d_backward_input": (dy, w, x.shape)}.get(name, (dy, x, w.shape))
        e = fastconv.explain(name, *operands, precision=precision)
        device.take_launches()
        getattr(functional, name)(*operands, precision=precision)
        launched = any(kernel in launch for launch in device.take_launches() for kernel in (TILES, WEIGHTS))
        assert launched == (math in MATHS)
        assert e.decision["isa"] == "cuda"
        role = "tensor cores" if math not in ("tf32", "tf32x3") else f"tensor cores, {math}"
        assert e.decision["role"] == role if math in MATHS else e.decision["role"].startswith("CUDA cores")
        reason = {"strict": "precision is strict", "double": "not of float64", "small": "the product is small"}
        assert reason.get(math, "CUDA cores: ") in e.decision["passed_over"]
        assert e.as_dict()["dtype"] == dtype
        size = e.decision["tile_rows"]
        assert size == 64 or math == "small"
        assert f"{dtype}\n  algorithm   direct on a CUDA device, {e.decision['role']}, tile {size} x" in str(e)
        if launched and not name.endswith("weight"):
            columns, terms = (128, 9 * 32) if name == "conv2d" else (64, 9 * 96)
            assert e.decision["packed_weight_bytes"] == columns * terms * (2 if math in NORM else 4)


def test_explain_of_other_calls(device, rng):
    x, w = cuda.to_device(np.ones((1, 16, 80, 80), np.float32)), cuda.to_device(np.ones((130, 16, 1, 1), np.float32))
    assert fastconv.explain("conv2d", x, w, precision="tf32").decision["tile_rows"] == 128
    assert fastconv.explain("conv2d", x, w, precision="tf32x3").decision["tile_rows"] == 64
    d = fastconv.explain("conv2d", x, cuda.to_device(np.ones((16, 1, 3, 3), np.float32)), groups=16).decision
    assert d["algorithm"] == "depthwise"
    for call, error, words in (
        (lambda: fastconv.explain("conv2d", x, w, algorithm="fft"), ValueError, "is not served on a CUDA device"),
        (lambda: fastconv.explain("conv2d", x, cuda.to_host(w)), TypeError, r"weight \(on the host\) must be on"),
        (lambda: fastconv.explain("conv2d", x, w, measure="plain"), RuntimeError, r"explain\(measure=...\) does not"),
        (lambda: fastconv.explain("linear", x, w), RuntimeError, r"explain\('linear'\) does not serve"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_one_channel_and_many_outputs(device, rng):
    """No depthwise layer, though it has one channel a group; 16 to 32 outputs are one."""
    for outputs in (24, 48):
        x, wide_x = on_device(side(rng, 2, 1, (30, 28), False), "float16")
        w, wide_w = on_device(rng.standard_normal((outputs, 1, 7, 7)), "float16")
        took(device, TILES)
        y = functional.conv2d(x, w, padding=3)
        assert took(device, TILES) == (outputs == 48 or not hasattr(device, "take_launches"))
        assert_within("float16", y, reference.conv2d(wide_x, wide_w, padding=3), 60)
        dy, wide_dy = on_device(rng.standard_normal((2, outputs, 30, 28)), "float16")
        dw = functional.conv2d_backward_weight(dy, x, w.shape, padding=3)
        exact = reference.conv2d_backward_weight(wide_dy, wide_x, w.shape, padding=3)
        assert_close(dw, exact, "float16", 2000)


def test_the_cpu_takes_any_precision(rng):
    x, w = rng.standard_normal((1, 16, 9, 9)).astype(np.float32), rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    strict = functional.conv2d(x, w)
    for precision, f in itertools.product(("strict", "tf32x3", "tf32"), (functional.conv2d, reference.conv2d)):
        y = f(x, w, precision=precision)
        if f is functional.conv2d:
            np.testing.assert_array_equal(y, strict)
        else:
            np.testing.assert_allclose(y, strict, rtol=1e-4, atol=1e-4)
