"""Forward passes: every pair of options against the reference, exactness on integers, memory orders, edge shapes."""

import itertools

import numpy as np
import pytest

import fastconv
from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

CONVOLUTIONS = [f"conv{d}d" for d in (1, 2, 3)]
TRANSPOSED = [f"conv_transpose{d}d" for d in (1, 2, 3)]
DTYPES = (np.float32, np.float64)


def run_cases(op):
    """Runs every case of the table and reports the failures together."""
    failures, count = [], 0
    for i, choice in enumerate(testing.all_pairs(testing.option_table(op, functional))):
        count += 1
        case = testing.make_case(op, choice, seed=i)
        try:
            case.check(case.call(functional))
        except Exception as e:
            failures.append(f"{choice}\n    {type(e).__name__}: {e}")
    assert count > 10
    assert not failures, f"{len(failures)} of {count} cases fail:\n" + "\n".join(failures[:5])


@pytest.mark.parametrize("op", [*CONVOLUTIONS, *TRANSPOSED, "linear"])
def test_all_pairs_of_options(op):
    run_cases(op)


# (channels, size, output channels, kernel, stride, padding, dilation, groups): full tiles and tails of every kind, a
# reduction longer than one block, and the small images and odd channel counts of real networks.
SHAPES = [
    (3, 32, 16, 7, 2, 3, 1, 1),
    (37, 15, 53, 3, 1, 1, 1, 1),
    (53, 14, 37, 1, 1, 0, 1, 1),
    (64, 14, 96, 1, 1, 0, 1, 1),
    (300, 7, 48, 3, 1, 1, 1, 1),
    (1100, 4, 24, 1, 1, 0, 1, 1),
    (16, 28, 130, 5, 2, 2, 1, 1),
    (24, 20, 40, 3, 1, 2, 2, 2),
    (32, 9, 32, 3, 1, 1, 1, 32),
    (48, 13, 96, 3, 2, 1, 1, 12),
    (8, 2, 200, 2, 1, 0, 1, 1),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_on_integers(shape, dtype, layout):
    c, n, k, r, stride, padding, dilation, groups = shape
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "layout": layout}
    axes = (2, n, n + 1, c) if layout == "NHWC" else (2, c, n, n + 1)
    x, b = testing.integer_data(axes, dtype, seed=1), testing.integer_data((k,), dtype, seed=3)
    w = testing.integer_data((k, c // groups, r, r), dtype, seed=2)
    options["algorithm"] = "direct"
    np.testing.assert_array_equal(functional.conv2d(x, w, b, **options), reference.conv2d(x, w, b, **options))
    w = testing.integer_data((c, k // groups, r, r), dtype, seed=2)
    expected = reference.conv_transpose2d(x, w, b, **options)
    np.testing.assert_array_equal(functional.conv_transpose2d(x, w, b, **options), expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("r", "stride", "dilation"), [(3, 1, 6), (3, 1, 13), (5, 1, 4), (3, 2, 12), (3, 1, 30)])
def test_large_dilations_are_exact(r, stride, dilation, dtype, layout):
    # Pixels whose columns meet the same taps come together, so that tiles pass over taps in the padding.
    options = {"stride": stride, "padding": r // 2 * dilation, "dilation": dilation, "layout": layout}
    axes = (2, 19, 27, 24) if layout == "NHWC" else (2, 24, 19, 27)
    x, b = testing.integer_data(axes, dtype, seed=1), testing.integer_data((40,), dtype, seed=3)
    w = testing.integer_data((40, 24, r, r), dtype, seed=2)
    expected = reference.conv2d(x, w, b, **options)
    residual = testing.integer_data(expected.shape, dtype, seed=4)
    np.testing.assert_array_equal(functional.conv2d(x, w, b, **options), expected)
    plan = fastconv.plan("conv2d", x, w, b, **options)
    np.testing.assert_array_equal(plan(x), expected)
    y = functional.conv2d(x, w, b, residual=residual, activation="relu", **options)
    np.testing.assert_array_equal(y, np.maximum(expected + residual, 0))
    mapped = functional.conv2d(x, w, b, input_activation="relu", **options)
    np.testing.assert_array_equal(mapped, reference.conv2d(x, w, b, input_activation="relu", **options))
    dx = functional.conv2d_backward_input(residual, w, x.shape, **options)
    np.testing.assert_array_equal(dx, reference.conv2d_backward_input(residual, w, x.shape, **options))


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tail_is_exact(dtype, layout):
    # All remainders of output channels, pixels and reduction length against any register tile up to 48 wide.
    last = layout == "NLC"
    for k, pixels in itertools.product((*range(1, 34), 47, 48, 49), (1, 2, 3, 5, 6, 7, 13, 14, 15, 16, 17, 31, 33, 49)):
        c, r = 1 + (k + pixels) % 5, 1 + pixels % 3
        size = pixels + r - 1
        x = testing.integer_data((1, size, c) if last else (1, c, size), dtype, seed=k)
        w = testing.integer_data((k, c, r), dtype, seed=pixels)
        y = functional.conv1d(x, w, layout=layout)
        np.testing.assert_array_equal(y, reference.conv1d(x, w, layout=layout), err_msg=f"k={k} pixels={pixels} c={c}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_reduction_length_is_exact(dtype):
    for c in (*range(1, 20), 31, 32, 33, 63, 65, 127, 129, 255, 256, 257, 511, 513, 1025, 2049):
        x, w = testing.integer_data((5, c), dtype, seed=c, limit=2), testing.integer_data((19, c), dtype, limit=2)
        np.testing.assert_array_equal(functional.linear(x, w), x @ w.T, err_msg=f"c={c}")
        y = functional.conv2d(x.reshape(5, c, 1, 1), w.reshape(19, c, 1, 1))
        np.testing.assert_array_equal(y[..., 0, 0], x @ w.T, err_msg=f"c={c}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["contiguous", "reordered", "strided", "negative", "broadcast"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_any_memory_order_of_every_operand(dtype, kind, layout):
    shape = (2, 9, 11, 20) if layout == "NHWC" else (2, 20, 9, 11)
    order = "reordered_last" if kind == "reordered" and layout == "NHWC" else kind
    x = testing.as_memory(testing.integer_data(shape, dtype, seed=1), order)
    w = testing.as_memory(testing.integer_data((24, 20, 3, 3), dtype, seed=2), kind)
    out_shape = (2, 9, 11, 24) if layout == "NHWC" else (2, 24, 9, 11)
    residual = testing.as_memory(testing.integer_data(out_shape, dtype, seed=3), order)
    wide = testing.integer_data((7, 96), dtype, seed=4)
    bias, scale, shift = wide[3, ::4], wide[2, 23::-1], np.broadcast_to(wide[0, :1], (24,))
    options = {"padding": 1, "layout": layout, "scale": scale, "shift": shift, "residual": residual}
    y = functional.conv2d(x, w, bias, **options)
    np.testing.assert_array_equal(y, reference.conv2d(x, w, bias, **options))
    if kind != "broadcast":
        out = testing.as_memory(np.zeros(out_shape, dtype), order)
        assert functional.conv2d(x, w, bias, out=out, **options) is out
        np.testing.assert_array_equal(out, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_follows_the_memory_order_of_the_input(dtype):
    x, w = testing.integer_data((2, 8, 6, 5), dtype), testing.integer_data((7, 8, 3, 3), dtype)
    last = testing.as_memory(x, "reordered")
    plain, followed = functional.conv2d(x, w), functional.conv2d(last, w)
    assert plain.flags.c_contiguous
    assert np.moveaxis(followed, 1, -1).flags.c_contiguous
    np.testing.assert_array_equal(plain, followed)
    assert functional.conv2d(np.moveaxis(last, 1, -1), w, layout="NHWC").flags.c_contiguous
    # With one channel or one pixel both orders are the same bytes: then the output is C-contiguous.
    assert functional.conv2d(testing.as_memory(x[:, :1], "reordered"), w[:, :1]).flags.c_contiguous
    one = functional.conv2d(testing.as_memory(x[:, :, :1, :1], "reordered"), w[:, :, :1, :1])
    assert one.flags.c_contiguous


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", testing.ACTIVATIONS, ids=str)
def test_activation_on_both_sides(rng, activation, dtype):
    # A wide range of arguments: the tails of the exponentials and both sides of every kink.
    x = np.concatenate([np.linspace(-30, 30, 997), [-120.0, -90, -0.0, 0, 90, 120]]).astype(dtype).reshape(1, 1, -1)
    one = np.ones((1, 1, 1), dtype)
    y = functional.conv1d(x, one, activation=activation)
    testing.assert_close_to_reference(y, "conv1d", x, one, activation=activation)
    y = functional.conv1d(x, one, input_activation=activation)
    testing.assert_close_to_reference(y, "conv1d", x, one, input_activation=activation)
    for layout, shape in (("NCHW", (2, 19, 7, 9)), ("NHWC", (2, 7, 9, 19))):
        x = rng.standard_normal(shape).astype(dtype)
        w = (rng.standard_normal((21, 19, 3, 3)) / 10).astype(dtype)
        v = rng.standard_normal((5, 21)).astype(dtype)
        options = {"layout": layout, "padding": 1, "scale": v[1], "shift": v[2], "activation": activation}
        options |= {"input_scale": v[3, :19], "input_shift": v[4, :19], "input_activation": activation}
        options["input_gate"] = rng.random((2, 19)).astype(dtype)
        options["residual"] = rng.standard_normal((2, 21, 7, 9) if layout == "NCHW" else (2, 7, 9, 21)).astype(dtype)
        y = functional.conv2d(x, w, v[0], **options)
        testing.assert_close_to_reference(y, "conv2d", x, w, v[0], **options)


def test_zero_padding_comes_after_the_prologue():
    # act(0 * scale + shift) would be 3 at the border: it must be 0 there.
    x, w = np.zeros((1, 2, 4, 4), np.float32), np.ones((1, 2, 3, 3), np.float32)
    y = functional.conv2d(x, w, padding=1, input_shift=np.full(2, 3, np.float32), input_activation="relu")
    assert y[0, 0].tolist() == [[24, 36, 36, 24], [36, 54, 54, 36], [36, 54, 54, 36], [24, 36, 36, 24]]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_unbatched_and_empty_batch(rng, rank, transposed, layout):
    op = getattr(functional, f"conv_transpose{rank}d" if transposed else f"conv{rank}d")
    size = (6, 5, 4)[:rank]
    x = rng.standard_normal((3, *size, 4) if layout == "NHWC" else (3, 4, *size)).astype(np.float32)
    w = rng.standard_normal((4, 4, 3, 3, 3)[: rank + 2]).astype(np.float32)
    y = op(x, w, padding=1, stride=2, layout=layout)
    for i in range(3):
        one = op(x[i], w, padding=1, stride=2, layout=layout)
        assert one.shape == y.shape[1:]
        np.testing.assert_array_equal(one, y[i])
    empty = op(x[:0], w, padding=1, stride=2, layout=layout)
    assert empty.shape == (0, *y.shape[1:])
    assert empty.dtype == np.float32


def test_linear_takes_any_leading_axes(rng):
    w, b = rng.standard_normal((9, 7)).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    for lead in ((), (1,), (5,), (2, 3), (2, 1, 4), (0,), (2, 0)):
        x = rng.standard_normal((*lead, 7)).astype(np.float32)
        y = functional.linear(x, w, b, activation="relu")
        assert y.shape == (*lead, 9)
        testing.assert_close_to_reference(y, "linear", x, w, b, activation="relu")


def test_one_dimensional_kernels_larger_than_the_image(rng):
    # A long filter over a short, widely padded signal: more taps than pixels.
    x, w = rng.standard_normal((2, 3, 17)).astype(np.float32), rng.standard_normal((4, 3, 101)).astype(np.float32)
    y = functional.conv1d(x, w, padding=60)
    testing.assert_close_to_reference(y, "conv1d", x, w, padding=60)


def test_out_may_not_be_written_by_a_refused_call(rng):
    x, w = rng.standard_normal((1, 3, 6, 6)), rng.standard_normal((4, 3, 3, 3))
    out = np.full((1, 4, 4, 4), 7.0)
    with pytest.raises(ValueError, match="groups"):
        functional.conv2d(x, w, groups=2, out=out)
    with pytest.raises(ValueError, match="out"):
        functional.conv2d(x, w, padding=1, out=out)
    assert (out == 7).all()
