"""Normalisation and softmax on devices, against the reference in float64."""

import itertools

import numpy as np
import pytest

from fastconv import cuda, functional, reference

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# (N, C, ...): single pixels and channels; tails of vectors; rows of 32 and of 256 threads; sets of several pieces.
SHAPES = [(16, 33), (2, 6, 5), (3, 1, 70), (2, 24, 3, 7), (2, 40, 5, 11), (1, 4, 30, 37), (2, 6, 3, 2, 4), (2, 8, 4, 4)]
KINDS = ("group_norm", "instance_norm", "layer_norm", "layer_norm_channels")


def on_device(x, dtype):
    d = cuda.to_device(x, dtype=dtype)
    return d, cuda.to_host(d).astype(np.float64)


def assert_close(y, expected, dtype, scale, what=""):
    """Rounded once to the dtype, after some roundings of the accumulator on values of `scale`."""
    if y is None:
        assert expected is None
        return
    y = cuda.to_host(y).astype(np.float64)
    wide = EPS["float64" if dtype == "float64" else "float32"]
    bound = EPS[dtype] * 0.51 * np.abs(expected) + 32 * wide * scale + 2.0**-24 * (dtype == "float16")
    assert y.shape == expected.shape
    wrong = ~((np.abs(y - expected) <= bound) | (np.isnan(y) & np.isnan(expected)))
    assert not wrong.any(), (what, y[wrong][:4], expected[wrong][:4])


def image(rng, shape, layout, mean=0.5):
    x = mean + rng.standard_normal(shape)
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout == "NHWC" else x


def layout_of(layout, ndim):
    return {3: {"NCHW": "NCL", "NHWC": "NLC"}, 5: {"NCHW": "NCDHW", "NHWC": "NDHWC"}}.get(ndim, {}).get(layout, layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", KINDS)
def test_forward_and_backward(device, name, layout, dtype, rng):
    for shape, affine in itertools.product(SHAPES, (True, False)):
        if len(shape) == 2 and name in ("instance_norm", "layer_norm_channels"):
            continue
        options = {"layout": layout_of(layout, len(shape))} if name != "layer_norm" else {}
        x, wide_x = on_device(image(rng, shape, layout if options else "NCHW"), dtype)
        extra, length = (), shape[1]
        if name == "group_norm":
            extra = (2 if shape[1] % 2 == 0 else 1,)
        if name == "layer_norm":
            extra, length = ((shape[-1],),), shape[-1]
        w, wide_w = on_device(1 + rng.standard_normal(length) / 4, dtype) if affine else (None, None)
        b, wide_b = on_device(rng.standard_normal(length), dtype) if affine else (None, None)
        y = getattr(functional, name)(x, *extra, w, b, activation="relu", **options)
        expected = getattr(reference, name)(wide_x, *extra, wide_w, wide_b, activation="relu", **options)
        assert_close(y, expected, dtype, 8, "y")
        dy, wide_dy = on_device(rng.standard_normal(wide_x.shape), dtype)
        got = getattr(functional, f"{name}_backward")(dy, x, *extra, w, **options)
        exact = getattr(reference, f"{name}_backward")(wide_dy, wide_x, *extra, wide_w, **options)
        count = wide_x.size / length
        # A set of two values or so has a tiny deviation now and then, which magnifies all roundings.
        deviation = max(1.0, np.abs(exact.input).max())
        assert_close(got.input, exact.input, dtype, 8 * deviation, "dx")
        assert_close(got.weight, exact.weight, dtype, 8 * np.sqrt(count), "dw")
        assert_close(got.bias, exact.bias, dtype, 8 * np.sqrt(count), "db")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_batch_norm(device, layout, dtype, rng):
    for shape in SHAPES:
        options = {"layout": layout_of(layout, len(shape))}
        C = shape[1]
        x, wide_x = on_device(image(rng, shape, layout), dtype)
        r, wide_r = on_device(image(rng, shape, layout), dtype)
        (w, wide_w), (b, wide_b) = (on_device(1 + rng.standard_normal(C) / 4, dtype) for _ in range(2))
        mean, wide_mean = on_device(rng.standard_normal(C), dtype)
        var, wide_var = on_device(1 + rng.random(C), dtype)
        arguments = (wide_x, wide_mean, wide_var, wide_w, wide_b)
        y = functional.batch_norm(x, mean, var, w, b, residual=r, activation="silu", **options)
        expected = reference.batch_norm(*arguments, residual=wide_r, activation="silu", **options)
        assert_close(y, expected, dtype, 8, "inference")
        running = wide_mean.copy(), wide_var.copy()
        got = functional.batch_norm_train(x, mean, var, w, b, residual=r, activation="relu", **options)
        exact = reference.batch_norm_train(
            wide_x, *running, wide_w, wide_b, residual=wide_r, activation="relu", **options
        )
        for part, field in zip(got, exact, strict=True):
            assert_close(part, field, dtype, 8, "training")
        assert_close(mean, running[0], dtype, 4, "running mean")
        assert_close(var, running[1], dtype, 4, "running variance")
        dy, wide_dy = on_device(rng.standard_normal(wide_x.shape), dtype)
        # The statistics that the gradient is given are rounded ones.
        given = [cuda.to_host(a).astype(np.float64) for a in (got.mean, got.inv_std)]
        wide_y = cuda.to_host(got.output if hasattr(got, "output") else got[0]).astype(np.float64)
        for training, act in itertools.product((True, False), (None, "relu")):
            how = {"training": training, "activation": act, **options}
            dx = functional.batch_norm_backward(dy, x, w, got.mean, got.inv_std, y=got[0] if act else None, **how)
            exact_dx = reference.batch_norm_backward(wide_dy, wide_x, wide_w, *given, y=wide_y if act else None, **how)
            count = wide_x.size / C
            loose = EPS[dtype] / EPS["float64" if dtype == "float64" else "float32"] / 8
            scale = 8 * max(1.0, np.abs(exact_dx.input).max()) * max(1, loose if training else 1)
            assert_close(dx.input, exact_dx.input, dtype, scale, "dx")
            assert_close(dx.weight, exact_dx.weight, dtype, 8 * np.sqrt(count) * max(1, loose), "dw")
            assert_close(dx.bias, exact_dx.bias, dtype, 8 * np.sqrt(count), "db")


def test_sets_of_several_pieces(device, rng):
    # 20000 elements by rows are three pieces, by lanes forty; the mean is far from zero.
    for shape, layout in (((2, 3, 100, 100), "NCHW"), ((2, 34, 30, 30), "NHWC")):
        x, wide = on_device(image(rng, shape, layout, mean=300), "float32")
        y = functional.batch_norm_train(x, layout=layout)
        exact = reference.batch_norm_train(wide, layout=layout)
        assert_close(y[0], exact[0], "float32", 8)
        assert_close(y[1], exact[1], "float32", 1)
    x, wide = on_device(image(rng, (2, 2, 90, 100), "NCHW", mean=300), "float32")
    assert_close(functional.group_norm(x, 1), reference.group_norm(wide, 1), "float32", 8)
    got = functional.group_norm_backward(x, x, 1)
    exact = reference.group_norm_backward(wide, wide, 1)
    assert_close(got.weight, exact.weight, "float32", 300 * 90 * 10)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_memory_orders_are_copied(device, dtype, rng):
    whole = cuda.to_device(rng.standard_normal((2, 6, 8, 10)), dtype=dtype)
    d = whole[:, :, ::2, ::-1]
    wide = cuda.to_host(d).astype(np.float64)
    assert_close(functional.group_norm(d, 3), reference.group_norm(wide, 3), dtype, 8)
    out = cuda.empty(d.shape, dtype)
    assert functional.group_norm(d, 3, out=out) is out
    assert_close(out, reference.group_norm(wide, 3), dtype, 8)
    got, exact = functional.instance_norm_backward(d, d), reference.instance_norm_backward(wide, wide)
    assert_close(got.input, exact.input, dtype, 8)
    assert_close(functional.softmax(d, 1), reference.softmax(wide, 1), dtype, 1)
    assert functional.softmax(d, 1, out=out) is out
    assert_close(out, reference.softmax(wide, 1), dtype, 1)
    assert_close(functional.local_response_norm(d, 3), reference.local_response_norm(wide, 3), dtype, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_local_response_norm(device, layout, dtype, rng):
    for size in (1, 2, 5, 9):
        x, wide = on_device(image(rng, (2, 7, 3, 5), layout), dtype)
        dy, wide_dy = on_device(image(rng, (2, 7, 3, 5), layout), dtype)
        arguments = (size, 0.5, 0.75, 2.0)
        y, expected = (
            m.local_response_norm(a, *arguments, layout=layout) for m, a in ((functional, x), (reference, wide))
        )
        assert_close(y, expected, dtype, 4)
        dx = functional.local_response_norm_backward(dy, x, *arguments, layout=layout)
        expected = reference.local_response_norm_backward(wide_dy, wide, *arguments, layout=layout)
        assert_close(dx, expected, dtype, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(device, name, dtype, rng):
    for shape, axis in (
        ((5, 7, 33), 0),
        ((5, 7, 33), 1),
        ((5, 7, 33), 2),
        ((3, 1, 2), 1),
        ((9, 1025), 1),
        ((4, 2100), -1),
    ):
        x, wide = on_device(rng.normal(0, 3, shape), dtype)
        dy, wide_dy = on_device(rng.standard_normal(shape), dtype)
        y, expected = getattr(functional, name)(x, axis), getattr(reference, name)(wide, axis)
        assert_close(y, expected, dtype, 20 if name == "log_softmax" else np.ptp(wide) * expected + 2.0**-126)
        wide_y = cuda.to_host(y).astype(np.float64)
        dx = getattr(functional, f"{name}_backward")(dy, y, axis)
        exact = getattr(reference, f"{name}_backward")(wide_dy, wide_y, axis)
        assert_close(dx, exact, dtype, 8 * (1 + np.abs(wide_dy).sum(axis, keepdims=True) * np.ones(shape)))


def test_softmax_of_special_values(device):
    for shape in ((1, 5), (5, 1), (5, 3)):
        for values in ([np.inf, 0, 1, 2, 3], [np.nan, 0, 1, 2, 3], [0, 1, np.nan, 2, 3], [-np.inf] * 5):
            axis = 1 if shape == (1, 5) else 0
            x = np.broadcast_to(np.array(values, np.float32).reshape(1 if axis else -1, -1 if axis else 1), shape)
            assert np.isnan(cuda.to_host(functional.softmax(cuda.to_device(x), axis))).all()
        x = np.array([-np.inf, 0, 0, -1e30, -np.inf], np.float32)
        x = np.broadcast_to(x.reshape(1 if axis else -1, -1 if axis else 1), shape)
        np.testing.assert_array_equal(
            cuda.to_host(functional.softmax(cuda.to_device(x), axis)), np.where(x == 0, 0.5, 0)
        )


def test_the_batch_changes_no_bit(device, rng):
    x = rng.standard_normal((3, 6, 40, 60)).astype(np.float32)
    for f in (
        lambda a: functional.group_norm(a, 2),
        functional.layer_norm_channels,
        lambda a: functional.layer_norm(a, 60),
        lambda a: functional.softmax(a, 1),
        lambda a: functional.softmax(a, 3),
    ):
        whole = cuda.to_host(f(cuda.to_device(x)))
        for i in range(3):
            np.testing.assert_array_equal(cuda.to_host(f(cuda.to_device(x[i : i + 1])))[0], whole[i])


def test_refusals(device, rng):
    d = cuda.to_device(rng.standard_normal((2, 6, 4, 4)).astype(np.float32))
    host = np.ones(6, np.float32)
    with pytest.raises(TypeError, match=r"weight \(on the host\) must be on the device of x, cuda:0"):
        functional.group_norm(d, 2, host)
    with pytest.raises(ValueError, match="num_groups"):
        functional.group_norm(d, 4)
    with pytest.raises(ValueError, match="must end in normalized_shape"):
        functional.layer_norm(d, 5)
    with pytest.raises(ValueError, match=r"weight \(shape \(5,\)\)"):
        functional.layer_norm(d, 4, cuda.empty(5))
    with pytest.raises(ValueError, match="layout"):
        functional.batch_norm(d, None, None, training=True, layout="NCL")
