"""Depthwise layers by tiles: every form, against the reference in float64; all gradients in one pass."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv import _args, _core, cuda, functional, reference

from .cuda_layers import DTYPES, LAYOUTS, assert_close, on_device, side


def launched(device):
    """The first argument's type of every kernel launched since this was last asked: the kernel is known by it.

    None on a GPU, which does not tell.
    """
    if not hasattr(device, "take_launches"):
        return None
    found = [re.search(r"P = \{(?:\w+::|\{anonymous\}::)*(\w+)", name) for name in device.take_launches()]
    return [match[1] for match in found]


def assert_launched(device, forward, backward):
    """Kernels by tiles, this often, and none else that knows a layer."""
    kernels = launched(device)
    if kernels is not None:
        counts = [kernels.count(n) for n in ("DepthwiseForward", "DepthwiseBackward", "ConvShape", "Pixels")]
        assert counts == [forward, backward, 0, 0], kernels


def spec_of(rank, transposed, groups, layout, how):
    names = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "padding_mode": "zeros"}
    stride, padding, output_padding, dilation, mode = (how.get(n, v) for n, v in names.items())
    return _args.conv_spec(
        rank, transposed, stride, padding, output_padding, dilation, groups, mode, layout, "auto", None, None
    )


def check(
    device, rng, dtype, last, channels, size, kernel, batch=2, *, multiples=1, transposed=False, tiled=True, **options
):
    """One layer, forward and backward, and by which kernels; `tiled` None: by any."""
    rank = len(size)
    how = {**options, "groups": channels, "layout": LAYOUTS[rank][last]}
    forward = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    x, wide_x = on_device(side(rng, batch, channels, size, last), dtype)
    shape = (channels, multiples) if transposed else (channels * multiples, 1)
    w, wide_w = on_device(rng.standard_normal((*shape, *kernel)), dtype)
    b, wide_b = on_device(rng.standard_normal(channels * multiples), dtype)
    expected = getattr(reference, forward)(wide_x, wide_w, wide_b, **how)
    scale = getattr(reference, forward)(np.abs(wide_x), np.abs(wide_w), np.abs(wide_b), **how)
    launched(device)
    y = getattr(functional, forward)(x, w, b, **how)
    if tiled is not None:
        assert_launched(device, 1, 0)
    assert_close(y, expected, dtype, scale, "y")
    dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
    backward = getattr(reference, f"{forward}_backward")
    exact = backward(wide_dy, wide_x, wide_w, **how)
    scales = backward(np.abs(wide_dy), np.abs(wide_x), np.abs(wide_w), **how)
    spec = spec_of(rank, transposed, channels, how["layout"], how)
    shared = _core.conv_backward(spec, dy, x, w, True, True, True, None, None, None)
    if tiled is not None:
        assert (shared is not None) == (multiples == 1 or not transposed)
        assert_launched(device, 0, 1 if shared else 0)
    got = getattr(functional, f"{forward}_backward")(dy, x, w, **how)
    for i, name in enumerate(("input", "weight", "bias")):
        assert_close(got[i], exact[i], dtype, scales[i], name)
        if shared:
            np.testing.assert_array_equal(cuda.to_host(shared[i]), cuda.to_host(got[i]))
    launched(device)
    # Each alone, by the same kernel; dx has the same bits.
    dx = getattr(functional, f"{forward}_backward_input")(dy, w, x.shape, **how)
    dw = getattr(functional, f"{forward}_backward_weight")(dy, x, w.shape, **how)
    if tiled is not None:
        assert_launched(device, 0, 2)
    assert_close(dw, exact[1], dtype, scales[1], "dw alone")
    np.testing.assert_array_equal(cuda.to_host(dx), cuda.to_host(got.input))


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("taps", [1, 2, 3, 5, 7])
def test_filters(device, taps, dtype, last, rng):
    # More columns than a tile has, tails of strips; channels of several groups of lanes, the last one short.
    for stride in (1, 2, 3):
        padding = taps // 2
        check(device, rng, dtype, last, 24, (9, 21), (taps, taps), stride=stride, padding=padding)


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ranks_and_dilations(device, dtype, last, rng):
    check(device, rng, dtype, last, 16, (70,), (31,), padding=15)
    check(device, rng, dtype, last, 8, (1100,), (3,), padding=1)
    check(device, rng, dtype, last, 8, (40,), (5,), padding=4, dilation=2, stride=3)
    check(device, rng, dtype, last, 16, (9, 10), (3, 7), padding=(1, 3))
    check(device, rng, dtype, last, 16, (9, 10), (3, 3), padding=((0, 1), (2, 0)), dilation=(1, 2))
    check(device, rng, dtype, last, 8, (19, 18), (3, 3), padding=6, dilation=6)
    check(device, rng, dtype, last, 8, (5, 6, 7), (3, 3, 3), padding=1)
    check(device, rng, dtype, last, 8, (5, 6, 7), (2, 3, 1), stride=(2, 1, 2), padding=(1, 0, 0))
    check(device, rng, dtype, last, 8, (6, 35), (4, 4), stride=4)
    # Many small planes in a block.
    check(device, rng, dtype, False, 37, (3, 3), (3, 3), padding=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 7, 9, 37])
def test_channels_that_no_vector_divides(device, channels, dtype, rng):
    # Fewer than half a vector's go by planes, more by vectors with a tail.
    check(device, rng, dtype, True, channels, (9, 11), (3, 3), padding=1)
    check(device, rng, dtype, True, channels, (6, 7), (5, 2), stride=2, padding=(2, 0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_views(device, dtype, rng):
    # Channels that begin between vectors, and every second column.
    for last, taps in itertools.product((False, True), (3, 4)):
        whole, wide = on_device(side(rng, 2, 18, (8, 14), last), dtype)
        of = (Ellipsis, slice(None, None, 2), slice(1, 17)) if last else (slice(None), slice(1, 17), Ellipsis)
        x, wide_x = whole[of], wide[of]
        w, wide_w = on_device(rng.standard_normal((16, 1, taps, taps)), dtype)
        how = {"padding": 1, "groups": 16, "layout": LAYOUTS[2][last]}
        expected = reference.conv2d(wide_x, wide_w, **how)
        n, p, q = (expected.shape[i] for i in ((0, 1, 2) if last else (0, 2, 3)))
        space = cuda.empty((n, p, 2 * q, 18) if last else (n, 18, p, 2 * q), dtype)
        out = space[of if last else (slice(None), slice(1, 17), slice(None), slice(None, None, 2))]
        for into in (None, out):
            launched(device)
            y = functional.conv2d(x, w, out=into, **how)
            assert_launched(device, 1, 0)
            assert_close(y, expected, dtype, 60)
        dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
        exact = reference.conv2d_backward(wide_dy, wide_x, wide_w, **how)
        launched(device)
        got = functional.conv2d_backward(dy, x, w, **how)
        assert_launched(device, 0, 1)
        for name in ("input", "weight", "bias"):
            assert_close(getattr(got, name), getattr(exact, name), dtype, 300, name)


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_of_pixels(device, mode, dtype, last, rng):
    how = {"padding_mode": mode}
    for taps, padding, stride in ((3, 1, 1), (5, ((2, 1), (0, 4)), 1), (4, 3, 2), (7, 3, 1), (3, 2, 3)):
        check(device, rng, dtype, last, 8, (9, 21), (taps, taps), padding=padding, stride=stride, **how)
    # As much padding as there may be: an element with places on both sides, and in several tiles.
    most = {"reflect": 4, "replicate": 7, "circular": 5}[mode]
    check(device, rng, dtype, last, 8, (5, 5), (3, 3), padding=most, **how)
    check(device, rng, dtype, last, 9, (70,), (31,), padding=15, **how)
    check(device, rng, dtype, last, 4, (3, 4, 5), (3, 2, 3), padding=1, dilation=(1, 2, 1), **how)
    if mode != "reflect":
        check(device, rng, dtype, last, 8, (1, 3), (3, 3), padding=1, **how)


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_padding_beyond_the_filter(device, dtype, last, rng):
    check(device, rng, dtype, last, 8, (5, 6), (3, 3), padding=4)
    check(device, rng, dtype, last, 8, (5, 18), (1, 1), padding=((0, 3), (6, 0)))
    check(device, rng, dtype, last, 8, (4, 20), (2, 3), padding=((1, 9), (3, 5)), stride=(1, 3))
    check(device, rng, dtype, last, 6, (7,), (4,), padding=11, dilation=2)


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
def test_more_taps_than_threads_have_sums(device, last, rng):
    check(device, rng, "float32", last, 3, (20, 18), (33, 33), padding=16, batch=1)
    check(device, rng, "float16", last, 9, (40,), (1100,), padding=540, batch=1)
    # Rows of filters rather than taps.
    check(device, rng, "float32", last, 4, (8, 7, 6), (7, 7, 7), padding=3, batch=1, multiples=7)


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiples", [2, 3, 8])
def test_several_outputs_a_channel(device, multiples, dtype, last, rng):
    how = {"multiples": multiples}
    check(device, rng, dtype, last, 16, (9, 10), (3, 3), padding=1, **how)
    check(device, rng, dtype, last, 5, (8, 13), (5, 5), padding=2, stride=2, **how)
    check(device, rng, dtype, last, 1, (12, 11), (4, 3), padding=1, dilation=2, **how)
    check(device, rng, dtype, last, 8, (6, 7), (3, 3), padding=2, padding_mode="reflect", **how)


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
def test_the_most_outputs_a_channel(device, last, rng):
    check(device, rng, "float32", last, 6, (6, 5), (3, 3), padding=1, multiples=32)
    check(device, rng, "float16", last, 24, (4, 5), (1, 1), multiples=17)


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiples", [1, 3])
def test_transposed(device, multiples, dtype, last, rng):
    how = {"transposed": True, "multiples": multiples}
    check(device, rng, dtype, last, 16, (9, 10), (4, 4), stride=2, padding=1, **how)
    check(device, rng, dtype, last, 5, (5, 7), (3, 3), stride=2, padding=1, output_padding=1, **how)
    check(device, rng, dtype, last, 8, (6, 19), (3, 5), padding=(1, 2), dilation=(2, 1), **how)
    # Pixels between windows, and windows in the padding alone.
    check(device, rng, dtype, last, 8, (5, 9), (2, 1), stride=(3, 4), output_padding=(2, 3), **how)
    check(device, rng, dtype, last, 8, (7, 8), (3, 2), stride=2, padding=4, **how)
    check(device, rng, dtype, last, 8, (13, 12), (3, 3), stride=2, padding="same", **how)
    check(device, rng, dtype, last, 8, (30,), (5,), stride=3, **how)
    check(device, rng, dtype, last, 8, (3, 2, 4), (2, 3, 2), stride=2, **how)


def test_what_goes_by_other_kernels(device, rng):
    def kernels(call):
        launched(device)
        result = call()
        kernels = launched(device)
        if kernels is not None:
            assert "ConvShape" in kernels
            assert not {"DepthwiseForward", "DepthwiseBackward"} & {*kernels}
        return result

    x, wide_x = on_device(rng.standard_normal((1, 4, 5, 6)), "float32")
    w, wide_w = on_device(rng.standard_normal((4, 1, 3, 3)), "float32")
    # A prologue.
    y = kernels(lambda: functional.conv2d(x, w, groups=4, input_activation="relu"))
    assert_close(y, reference.conv2d(wide_x, wide_w, groups=4, input_activation="relu"), "float32", 60)
    # More outputs a channel than tiles serve, and a filter that reaches beyond what shared memory has room for.
    for channels, multiples, size, dilation in ((2, 33, 9, 1), (1, 1, 155, 76)):
        x, wide_x = on_device(rng.standard_normal((1, channels, size, size)), "float32")
        w, wide_w = on_device(rng.standard_normal((channels * multiples, 1, 3, 3)), "float32")
        options = {"groups": channels, "dilation": dilation}
        y = kernels(lambda x=x, w=w, o=options: functional.conv2d(x, w, **o))
        expected = reference.conv2d(wide_x, wide_w, **options)
        assert_close(y, expected, "float32", 9)
        dy, wide_dy = on_device(rng.standard_normal(expected.shape), "float32")
        got = kernels(lambda x=x, w=w, o=options, dy=dy: functional.conv2d_backward(dy, x, w, **o))
        exact = reference.conv2d_backward(wide_dy, wide_x, wide_w, **options)
        for name in ("input", "weight", "bias"):
            assert_close(getattr(got, name), getattr(exact, name), "float32", 81, name)
    d = cuda.to_device(rng.standard_normal((1, 4, 5, 5)).astype(np.float32))
    w = cuda.to_device(rng.standard_normal((4, 4, 3, 3)).astype(np.float32))
    spec = spec_of(2, False, 1, "NCHW", {"padding": 1})
    assert _core.conv_backward(spec, d, d, w, True, True, True, None, None, None) is None
    host = [cuda.to_host(a) for a in (d, d, w)]
    assert _core.conv_backward(spec, *host, True, True, True, None, None, None) is None


# Channels, multiples, whether transposed, and the padding's mode.
@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize(
    ("channels", "multiples", "transposed", "mode"),
    [
        (16, 1, False, "zeros"),
        (9, 1, False, "zeros"),
        (8, 2, False, "zeros"),
        (8, 1, True, "zeros"),
        (5, 1, True, "zeros"),
        (8, 1, False, "reflect"),
        (13, 2, False, "circular"),
    ],
)
def test_epilogue_and_accumulation(device, channels, multiples, transposed, mode, last, rng):
    outputs = channels * multiples
    forward = "conv_transpose2d" if transposed else "conv2d"
    for dtype, taps in itertools.product(("float32", "bfloat16"), (3, 5, 4)):
        size = (7, 10)
        how = {"padding": 1, "groups": channels, "layout": LAYOUTS[2][last]}
        if mode != "zeros":
            how["padding_mode"] = mode
        x, wide_x = on_device(side(rng, 2, channels, size, last), dtype)
        w, wide_w = on_device(
            rng.standard_normal((channels, multiples, taps, taps) if transposed else (outputs, 1, taps, taps)), dtype
        )
        vectors = {n: on_device(rng.standard_normal(outputs), dtype) for n in ("bias", "scale", "shift")}
        shape = getattr(reference, forward)(wide_x, wide_w, **how).shape
        r, wide_r = on_device(rng.standard_normal(shape), dtype)
        launched(device)
        y = getattr(functional, forward)(
            x, w, residual=r, activation="silu", **{n: v[0] for n, v in vectors.items()}, **how
        )
        assert_launched(device, 1, 0)
        exact = getattr(reference, forward)(
            wide_x, wide_w, residual=wide_r, activation="silu", **{n: v[1] for n, v in vectors.items()}, **how
        )
        assert_close(y, exact, dtype, 60)
        backward = getattr(functional, f"{forward}_backward")
        dy, wide_dy = on_device(rng.standard_normal(shape), dtype)
        into = {
            n: on_device(rng.standard_normal(s), dtype)
            for n, s in (("input", x.shape), ("weight", w.shape), ("bias", (outputs,)))
        }
        got = backward(dy, x, w, accumulate={n: v[0] for n, v in into.items()}, **how)
        assert_launched(device, 0, 1)
        exact = getattr(reference, f"{forward}_backward")(wide_dy, wide_x, wide_w, **how)
        for name in ("input", "weight", "bias"):
            assert getattr(got, name) is into[name][0]
            assert_close(getattr(got, name), getattr(exact, name) + into[name][1], dtype, 300, name)
        for needs in (("weight",), ("bias",), ("input", "bias")):
            some = backward(dy, x, w, needs=needs, **how)
            assert_launched(device, 0, 1)
            for name in ("input", "weight", "bias"):
                part = getattr(some, name)
                assert (part is None) == (name not in needs)
                if part is not None:
                    assert_close(part, getattr(exact, name), dtype, 300, name)


@settings(max_examples=120)
@given(
    rank=st.integers(1, 3),
    last=st.booleans(),
    transposed=st.booleans(),
    dtype=st.sampled_from(["float32", "float16"]),
    channels=st.sampled_from([1, 3, 7, 8, 13, 16, 24]),
    multiples=st.sampled_from([1, 1, 1, 2, 5]),
    size=st.lists(st.integers(1, 20), min_size=3, max_size=3),
    kernel=st.lists(st.sampled_from([1, 2, 3, 4, 5, 7]), min_size=3, max_size=3),
    stride=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    dilation=st.lists(st.sampled_from([1, 1, 2, 3]), min_size=3, max_size=3),
    padding=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=3, max_size=3),
    mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
    batch=st.integers(1, 3),
)
def test_any_layer(
    device, rank, last, transposed, dtype, channels, multiples, size, kernel, stride, dilation, padding, mode, batch
):
    rng = np.random.default_rng(channels)
    size = tuple(min(n, 6) if rank == 3 else n for n in size[:rank])
    kernel, stride, dilation, padding = (tuple(v[:rank]) for v in (kernel, stride, dilation, padding))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    if transposed:
        if any((n - 1) * s + r + 1 <= sum(p) for n, s, r, p in zip(size, stride, reach, padding, strict=True)):
            return
    else:
        most = [{"reflect": n - 1, "circular": n}.get(mode, 8) for n in size]
        padding = tuple((min(a, m), min(b, m)) for (a, b), m in zip(padding, most, strict=True))
        options |= {"padding": padding, "padding_mode": mode}
        if any(n + sum(p) < r + 1 for n, p, r in zip(size, padding, reach, strict=True)):
            return
    check(
        device, rng, dtype, last, channels, size, kernel, batch, multiples=multiples, transposed=transposed, **options
    )


# Channels, multiples, the padding and its mode.
FORMS = [(8, 1, 1, "zeros"), (9, 1, 1, "zeros"), (8, 2, 1, "zeros"), (8, 1, 2, "reflect"), (8, 1, 4, "zeros")]


@pytest.mark.parametrize(("channels", "multiples", "padding", "mode"), FORMS)
def test_the_batch_changes_no_bit(device, channels, multiples, padding, mode, rng):
    for last in (False, True):
        x = side(rng, 3, channels, (19, 18), last).astype(np.float32)
        w = cuda.to_device(rng.standard_normal((channels * multiples, 1, 3, 3)).astype(np.float32))
        how = {"padding": padding, "padding_mode": mode, "groups": channels, "layout": LAYOUTS[2][last]}

        def run(a, g, w=w, how=how):
            a = cuda.to_device(a)
            y = functional.conv2d(a, w, **how)
            g = y if g is None else cuda.to_device(g)
            return [cuda.to_host(v) for v in (y, functional.conv2d_backward(g, a, w, **how)[0])]

        whole = run(x, None)
        for i in range(3):
            for one, all_of in zip(run(x[i : i + 1], whole[0][i : i + 1]), whole, strict=True):
                np.testing.assert_array_equal(one[0], all_of[i])


@pytest.mark.parametrize(("channels", "multiples", "padding", "mode"), FORMS)
def test_the_order_of_threads_changes_no_bit(device, channels, multiples, padding, mode, rng):
    if not hasattr(device, "set_seed"):
        pytest.skip("needs the module _cuda_host")
    x = cuda.to_device(rng.standard_normal((2, channels, 19, 18)).astype(np.float32))
    w = cuda.to_device(rng.standard_normal((channels * multiples, 1, 3, 3)).astype(np.float32))
    how = {"padding": padding, "padding_mode": mode, "groups": channels}
    found = []
    for seed in range(4):
        device.set_seed(seed)
        y = functional.conv2d(x, w, **how)
        found.append([cuda.to_host(a) for a in (y, *functional.conv2d_backward(y, x, w, **how))])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
