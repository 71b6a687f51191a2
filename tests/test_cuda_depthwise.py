"""Depthwise layers by tiles: every form, against the reference in float64; all gradients in one pass."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv import _args, _core, cuda, functional, reference

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
LAYOUTS = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}


def on_device(x, dtype):
    d = cuda.to_device(x, dtype=dtype)
    return d, cuda.to_host(d).astype(np.float64)


def assert_close(y, expected, dtype, scale, what=""):
    y = cuda.to_host(y).astype(np.float64)
    wide = EPS["float64" if dtype == "float64" else "float32"]
    bound = EPS[dtype] * 0.51 * np.abs(expected) + 8 * wide * (scale + 1) + 2.0**-24 * (dtype == "float16")
    assert y.shape == expected.shape
    wrong = ~(np.abs(y - expected) <= bound)
    assert not wrong.any(), (what, np.argwhere(wrong)[:4], y[wrong][:4], expected[wrong][:4])


def spec_of(rank, stride, padding, dilation, groups, layout):
    return _args.conv_spec(rank, False, stride, padding, 0, dilation, groups, "zeros", layout, "auto", None, None)


def check(rng, dtype, last, channels, size, kernel, batch=2, one_pass=True, **options):
    rank = len(size)
    layout = LAYOUTS[rank][last]
    shape = (batch, *size, channels) if last else (batch, channels, *size)
    how = {**options, "groups": channels, "layout": layout}
    x, wide_x = on_device(rng.standard_normal(shape), dtype)
    w, wide_w = on_device(rng.standard_normal((channels, 1, *kernel)), dtype)
    b, wide_b = on_device(rng.standard_normal(channels), dtype)
    forward, backward = f"conv{rank}d", f"conv{rank}d_backward"
    expected = getattr(reference, forward)(wide_x, wide_w, wide_b, **how)
    scale = getattr(reference, forward)(np.abs(wide_x), np.abs(wide_w), np.abs(wide_b), **how)
    assert_close(getattr(functional, forward)(x, w, b, **how), expected, dtype, scale, "y")
    dy, wide_dy = on_device(rng.standard_normal(expected.shape), dtype)
    exact = getattr(reference, backward)(wide_dy, wide_x, wide_w, **how)
    scales = getattr(reference, backward)(np.abs(wide_dy), np.abs(wide_x), np.abs(wide_w), **how)
    spec = spec_of(
        rank, *(options.get(n, v) for n, v in (("stride", 1), ("padding", 0), ("dilation", 1))), channels, layout
    )
    shared = _core.conv_backward(spec, dy, x, w, True, True, True, None, None, None)
    if one_pass is not None:
        assert (shared is not None) == one_pass
    got = getattr(functional, backward)(dy, x, w, **how)
    for i, name in enumerate(("input", "weight", "bias")):
        assert_close(got[i], exact[i], dtype, scales[i], name)
        if shared:
            np.testing.assert_array_equal(cuda.to_host(shared[i]), cuda.to_host(got[i]))
    # Each alone, by kernels of its own where the pass is not shared; dx has the same bits.
    dx = getattr(functional, f"{backward}_input")(dy, w, x.shape, **how)
    dw = getattr(functional, f"{backward}_weight")(dy, x, w.shape, **how)
    assert_close(dw, exact[1], dtype, scales[1], "dw alone")
    np.testing.assert_array_equal(cuda.to_host(dx), cuda.to_host(got.input))


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("taps", [1, 2, 3, 5, 7])
def test_filters(device, taps, dtype, last, rng):
    # More columns than a tile has, tails of strips; channels of several groups of lanes, the last one short.
    for stride in (1, 2, 3):
        padding = taps // 2
        check(rng, dtype, last, 24, (9, 21), (taps, taps), stride=stride, padding=padding)


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ranks_and_dilations(device, dtype, last, rng):
    check(rng, dtype, last, 16, (70,), (31,), padding=15)
    check(rng, dtype, last, 8, (1100,), (3,), padding=1)
    check(rng, dtype, last, 8, (40,), (5,), padding=4, dilation=2, stride=3)
    check(rng, dtype, last, 16, (9, 10), (3, 7), padding=(1, 3))
    check(rng, dtype, last, 16, (9, 10), (3, 3), padding=((0, 1), (2, 0)), dilation=(1, 2))
    check(rng, dtype, last, 8, (19, 18), (3, 3), padding=6, dilation=6)
    check(rng, dtype, last, 8, (5, 6, 7), (3, 3, 3), padding=1)
    check(rng, dtype, last, 8, (5, 6, 7), (2, 3, 1), stride=(2, 1, 2), padding=(1, 0, 0))
    check(rng, dtype, last, 8, (6, 35), (4, 4), stride=4)
    # Many small planes in a block, and channels that no vector divides.
    check(rng, dtype, False, 37, (3, 3), (3, 3), padding=1)
    check(rng, dtype, True, 37, (3, 5), (3, 3), padding=1, one_pass=False)


def test_what_has_no_shared_pass(device, rng):
    # Padding beyond the filter: some outputs read nothing, and no tile has them.
    check(rng, "float32", True, 8, (5, 6), (3, 3), padding=4, one_pass=False)
    # More taps than the sums of a block have threads.
    check(rng, "float32", False, 1, (60, 50), (33, 33), padding=16, one_pass=False)
    d = cuda.to_device(rng.standard_normal((1, 4, 5, 5)).astype(np.float32))
    w = cuda.to_device(rng.standard_normal((4, 4, 3, 3)).astype(np.float32))
    spec = spec_of(2, 1, 1, 1, 1, "NCHW")
    assert _core.conv_backward(spec, d, d, w, True, True, True, None, None, None) is None
    host = [cuda.to_host(a) for a in (d, d, w)]
    assert _core.conv_backward(spec, *host, True, True, True, None, None, None) is None


@pytest.mark.parametrize("last", [False, True], ids=["planar", "inner"])
def test_epilogue_and_accumulation(device, last, rng):
    layout, shape = LAYOUTS[2][last], (2, 9, 10, 16) if last else (2, 16, 9, 10)
    for dtype, taps in itertools.product(("float32", "bfloat16"), (3, 5, 4)):
        x, wide_x = on_device(rng.standard_normal(shape), dtype)
        w, wide_w = on_device(rng.standard_normal((16, 1, taps, taps)), dtype)
        vectors = {n: on_device(rng.standard_normal(16), dtype) for n in ("bias", "scale", "shift")}
        how = {"padding": "same", "groups": 16, "layout": layout, "activation": "silu"}
        r, wide_r = on_device(rng.standard_normal(shape), dtype)
        y = functional.conv2d(x, w, residual=r, **{n: v[0] for n, v in vectors.items()}, **how)
        exact = reference.conv2d(wide_x, wide_w, residual=wide_r, **{n: v[1] for n, v in vectors.items()}, **how)
        assert_close(y, exact, dtype, 60)
        del how["activation"]
        dy, wide_dy = on_device(rng.standard_normal(shape), dtype)
        into = {
            n: on_device(rng.standard_normal(s), dtype)
            for n, s in (("input", shape), ("weight", w.shape), ("bias", (16,)))
        }
        got = functional.conv2d_backward(dy, x, w, accumulate={n: v[0] for n, v in into.items()}, **how)
        exact = reference.conv2d_backward(wide_dy, wide_x, wide_w, **how)
        for name in ("input", "weight", "bias"):
            assert getattr(got, name) is into[name][0]
            assert_close(getattr(got, name), getattr(exact, name) + into[name][1], dtype, 300, name)
        for needs in (("weight",), ("bias",), ("input", "bias")):
            some = functional.conv2d_backward(dy, x, w, needs=needs, **how)
            for name in ("input", "weight", "bias"):
                part = getattr(some, name)
                assert (part is None) == (name not in needs)
                if part is not None:
                    assert_close(part, getattr(exact, name), dtype, 300, name)


@settings(max_examples=60)
@given(
    rank=st.integers(1, 3),
    last=st.booleans(),
    dtype=st.sampled_from(["float32", "float16"]),
    vectors=st.integers(1, 3),
    size=st.lists(st.integers(1, 20), min_size=3, max_size=3),
    kernel=st.lists(st.sampled_from([1, 2, 3, 4, 5, 7]), min_size=3, max_size=3),
    stride=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    dilation=st.lists(st.sampled_from([1, 1, 2, 3]), min_size=3, max_size=3),
    share=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=3),
    batch=st.integers(1, 3),
)
def test_any_layer(device, rank, last, dtype, vectors, size, kernel, stride, dilation, share, batch):
    rng = np.random.default_rng(vectors)
    size = tuple(min(n, 6) if rank == 3 else n for n in size[:rank])
    kernel, stride, dilation = (tuple(v[:rank]) for v in (kernel, stride, dilation))
    # No more padding than the filter has, so that there is one pass.
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple((a * r // 4, b * r // 4) for (a, b), r in zip(share, reach, strict=False))
    if any(n + sum(p) < r + 1 for n, p, r in zip(size, padding, reach, strict=True)):
        return
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    # Sides of one pixel may have none.
    check(rng, dtype, last, 8 * vectors, size, kernel, batch=batch, one_pass=None, **options)


def test_the_batch_changes_no_bit(device, rng):
    for last in (False, True):
        shape = (3, 19, 18, 8) if last else (3, 8, 19, 18)
        x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        w = cuda.to_device(rng.standard_normal((8, 1, 3, 3)).astype(np.float32))
        how = {"padding": 1, "groups": 8, "layout": LAYOUTS[2][last]}

        def run(a, g, w=w, how=how):
            a, g = cuda.to_device(a), cuda.to_device(g)
            return [
                cuda.to_host(v) for v in (functional.conv2d(a, w, **how), functional.conv2d_backward(g, a, w, **how)[0])
            ]

        whole = run(x, dy)
        for i in range(3):
            for one, all_of in zip(run(x[i : i + 1], dy[i : i + 1]), whole, strict=True):
                np.testing.assert_array_equal(one[0], all_of[i])


def test_the_order_of_threads_changes_no_bit(device, rng):
    if not hasattr(device, "set_seed"):
        pytest.skip("needs the module _cuda_host")
    x = cuda.to_device(rng.standard_normal((2, 16, 19, 18)).astype(np.float32))
    w = cuda.to_device(rng.standard_normal((16, 1, 3, 3)).astype(np.float32))
    found = []
    for seed in range(4):
        device.set_seed(seed)
        found.append([cuda.to_host(a) for a in functional.conv2d_backward(x, x, w, padding=1, groups=16)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
