"""Normalisation against the reference in float64, its gradients, and what must not change its bits."""

import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

# (N, C, ...): every rank; planes and pixels shorter and longer than a vector, a piece and a task; single channels.
SHAPES = [
    (16, 33),
    (300, 8),
    (2, 6, 5),
    (3, 1, 700),
    (2, 24, 7, 7),
    (2, 40, 13, 11),
    (1, 4, 100, 97),
    (2, 6, 3, 5, 4),
]
LARGE = [(2, 2, 1100, 1000), (3, 64, 150, 150)]
FORWARD = ("batch_norm", "batch_norm_train", "group_norm", "instance_norm", "layer_norm", "layer_norm_channels")
DTYPES = (np.float32, np.float64)


def double(value):
    if isinstance(value, np.ndarray):
        return value.astype(np.float64)
    return tuple(map(double, value)) if isinstance(value, tuple) else value


def wider(value):
    """For an oracle whose own errors do not count."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float64 if value.dtype == np.float32 else np.longdouble)
    return tuple(map(wider, value)) if isinstance(value, tuple) else value


def last_axis(x, layout):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout == "NHWC" else x


class Call:
    """The operands of one norm and of its gradient, as arguments of functional and reference."""

    def __init__(self, op, shape, dtype, layout, seed=0, mean=0.5, affine=True):
        rng = np.random.default_rng(seed)
        self.op = op
        self.x = last_axis((mean + rng.standard_normal(shape)).astype(dtype), layout)
        self.dy = last_axis(rng.standard_normal(shape).astype(dtype), layout)
        channels = shape[1]
        vector = self.x.shape[-1:] if op == "layer_norm" else (channels,)
        normal = (0.5 + rng.random((2, *vector))).astype(dtype)
        self.weight, self.bias = normal if affine else (None, None)
        self.options = {} if op == "layer_norm" else {"layout": layout}
        self.positional = ()
        if op == "group_norm":
            self.positional = (2 if channels % 2 == 0 else 1,)
        elif op == "layer_norm":
            self.positional = (vector,)
        elif op.startswith("batch"):
            self.positional = (rng.standard_normal(channels).astype(dtype), rng.random(channels).astype(dtype) + 0.5)

    def forward(self, module, convert=lambda a: a, **options):
        # The running statistics are updated.
        positional = [convert(a.copy()) if isinstance(a, np.ndarray) else a for a in self.positional]
        args = [convert(self.x), *positional, convert(self.weight), convert(self.bias)]
        result = getattr(module, self.op)(*args, **self.options, **options)
        return (*result, *args[1:3]) if self.op == "batch_norm_train" else result

    def backward(self, module, convert=lambda a: a, **options):
        dy, x, weight = map(convert, (self.dy, self.x, self.weight))
        if self.op.startswith("batch"):
            mean, variance = map(convert, self.positional)
            if training := self.op == "batch_norm_train":
                _, mean, inv = module.batch_norm_train(x, **self.options)
            else:
                inv = 1 / np.sqrt(variance + variance.dtype.type(1e-5))
            args = (dy, x, weight, mean, inv)
            options["training"] = training
            name = "batch_norm"
        else:
            args, name = (dy, x, *self.positional, weight), self.op
        return getattr(module, f"{name}_backward")(*args, **self.options, **options)


def assert_near(result, expected, scale, eps, constant, what):
    assert result.shape == expected.shape, what
    error = np.abs(result - expected)
    worst = float(np.max(error / (scale + np.finfo(result.dtype).tiny), initial=0)) / eps
    assert worst <= constant, f"{what}: {worst:.3g} eps of the terms' size"


def amplification(call):
    """The largest 1 / sqrt(var + eps), which errors of x - mean grow by: in a set of few values it may be large."""
    x = np.moveaxis(call.x, -1, 1) if call.options.get("layout") == "NHWC" else call.x
    if call.op.startswith("batch"):
        variance = x.var((0, *range(2, x.ndim))) if call.op == "batch_norm_train" else call.positional[1]
    elif call.op == "layer_norm":
        variance = x.var(-1)
    elif call.op == "layer_norm_channels":
        variance = x.var(1)
    else:
        groups = call.positional[0] if call.op == "group_norm" else x.shape[1]
        variance = x.reshape(len(x), groups, -1).var(-1)
    return float(np.max(1 / np.sqrt(variance + 1e-5)))


def term_size(call, expected):
    """What y's rounding errors are measured by: |xhat * weight| + |bias| + |y|, at least 2.

    In float32 the mean is as good as exact. In float64 it is rounded as x is, and |mean| / deviation counts.
    """
    size = np.abs(expected) + 2.0
    return size if call.x.dtype == np.float32 else size + float(np.abs(call.x).mean()) * amplification(call)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", FORWARD)
def test_forward_matches_the_reference(op, dtype, layout):
    eps = float(np.finfo(dtype).eps)
    for shape, affine in itertools.product(SHAPES, (True, False)):
        call = Call(op, shape, dtype, layout, affine=affine)
        expected, result = call.forward(reference, wider), call.forward(functional)
        if op != "batch_norm_train":
            expected, result = (expected,), (result,)
        for value, want in zip(result, expected, strict=True):
            assert_near(value, want, term_size(call, want), eps, 4, f"{op} {shape} {layout}")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", FORWARD)
def test_backward_matches_the_reference(op, dtype, layout):
    eps = float(np.finfo(dtype).eps)
    for shape, affine in itertools.product(SHAPES, (True, False)):
        call = Call(op, shape, dtype, layout, affine=affine)
        expected, result = call.backward(reference, wider), call.backward(functional)
        axis = shape[1] if op != "layer_norm" else call.x.shape[-1]
        terms = call.x.size // axis
        # |g| + mean |g| + |xhat| * mean |g * xhat| is below 12 or so. A statistic of few values may have hardly any
        # deviation: then errors grow, up to 316 times, which is 1 / sqrt(eps).
        grown = amplification(call)
        for value, want, size in zip(
            result, expected, (12 * grown * max(1, grown / 2), 2 * terms * grown, 2 * terms), strict=True
        ):
            assert_near(value, want, np.abs(want) + size, eps, 4, f"{op}_backward {shape} {layout}")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", LARGE)
def test_large_sets_are_summed_in_several_tasks(shape, layout, rng):
    # Of the AVX2 and portable kernels one layout each would do; the two largest shapes take about a second each.
    for op in ("batch_norm_train", "group_norm"):
        call = Call(op, shape, np.float32, layout, mean=100)
        result, expected = call.forward(functional), call.forward(reference, double)
        if op == "group_norm":
            result, expected = (result,), (expected,)
        for value, want in zip(result, expected, strict=True):
            np.testing.assert_allclose(value, want, rtol=3e-5, atol=3e-5)
        with fastconv.num_threads(3):
            again = call.forward(functional)
        assert_same_bits(again[0] if isinstance(again, tuple) else again, result[0], op)
        gradients = call.backward(functional), call.backward(reference, double)
        for value, want in zip(*gradients, strict=True):
            np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("activation", [None, "relu", "relu6", ("clip", -0.5, 0.75), "silu", ("leaky_relu", 0.2)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("op", FORWARD)
def test_activation_and_residual(op, residual, activation):
    if residual and not op.startswith("batch"):
        pytest.skip("has no residual")
    for layout, shape in itertools.product(("NCHW", "NHWC"), [(2, 24, 7, 7), (9, 21)]):
        call = Call(op, shape, np.float32, layout)
        options = {"activation": activation}
        wide = dict(options)
        if residual:
            options["residual"], wide["residual"] = call.dy, call.dy.astype(np.float64)
        result, expected = call.forward(functional, **options), call.forward(reference, double, **wide)
        if op == "batch_norm_train":
            result, expected = result[0], expected[0]
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_statistics_survive_a_large_mean(layout, rng):
    x = last_axis((1e4 + 1e-2 * rng.standard_normal((4, 24, 40, 40))).astype(np.float32), layout)
    axes = (0, 2, 3) if layout == "NCHW" else (0, 1, 2)
    wide = x.astype(np.float64)
    running = np.zeros(24, np.float32), np.ones(24, np.float32)
    y, mean, inv = functional.batch_norm_train(x, *running, momentum=1, layout=layout)
    expected = reference.batch_norm_train(wide, layout=layout)
    np.testing.assert_allclose(mean, wide.mean(axes), rtol=6e-8)
    np.testing.assert_allclose(inv, expected.inv_std, rtol=3e-7)
    np.testing.assert_allclose(running[1], wide.var(axes, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(y, expected.y, rtol=1e-6, atol=1e-6)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    result = functional.batch_norm_backward(dy, x, None, mean, inv, layout=layout)
    exact = reference.batch_norm_backward(
        dy.astype(float), wide, None, wide.mean(axes), expected.inv_std, layout=layout
    )
    for value, want in zip(result, exact, strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    for op in ("instance_norm", "layer_norm_channels"):
        result = getattr(functional, op)(x, layout=layout)
        exact = getattr(reference, op)(wide, layout=layout)
        np.testing.assert_allclose(result, exact, rtol=2e-6, atol=2e-6)
        value = getattr(functional, f"{op}_backward")(dy, x, layout=layout).input
        want = getattr(reference, f"{op}_backward")(dy.astype(float), wide, layout=layout).input
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=3e-6 * np.abs(want).max())


def test_one_channel_far_from_its_first_values():
    """Pieces far apart, so that sums about the first piece's mean alone would have lost the others' digits."""
    x = np.zeros((2, 1, 300, 300), np.float32)
    x[1] = 1e4 + np.random.default_rng(0).standard_normal((300, 300)) / 8
    for y in (functional.batch_norm_train(x), functional.batch_norm_train(last_axis(x, "NHWC"), layout="NHWC")):
        wide = x.astype(np.float64)
        np.testing.assert_allclose(y.mean, wide.mean((0, 2, 3)), rtol=1e-7)
        np.testing.assert_allclose(y.inv_std, 1 / np.sqrt(wide.var() + 1e-5), rtol=1e-6)


def test_running_statistics_and_their_conventions(rng):
    x = rng.standard_normal((5, 3, 4)).astype(np.float64)
    for convention, variance, momentum in itertools.product(("torch", "keras"), ("unbiased", "biased"), (0, 0.25, 1)):
        start = rng.standard_normal(3), rng.random(3)
        mean, var = (a.copy() for a in start)
        options = {"momentum": momentum, "momentum_convention": convention, "running_variance": variance}
        functional.batch_norm(x, mean, var, training=True, **options)
        share = momentum if convention == "torch" else 1 - momentum
        ddof = variance == "unbiased"
        np.testing.assert_allclose(mean, (1 - share) * start[0] + share * x.mean((0, 2)), rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(var, (1 - share) * start[1] + share * x.var((0, 2), ddof=ddof), rtol=1e-13)
    only = np.zeros(3)
    functional.batch_norm(x, only, None, training=True)
    assert only.any()


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("op", FORWARD)
def test_finite_differences(op, layout, rng):
    call = Call(op, (3, 4, 3, 5), np.float64, layout)
    gradients = call.backward(functional)

    def loss():
        y = call.forward(functional)
        return float(np.sum((y[0] if op == "batch_norm_train" else y) * call.dy))

    h = 1e-6
    for name, gradient in zip(("x", "weight", "bias"), gradients, strict=True):
        array = getattr(call, name)
        direction = rng.standard_normal(array.shape)
        array += h * direction
        above = loss()
        array -= 2 * h * direction
        below = loss()
        array += h * direction
        slope = np.sum(gradient * direction)
        assert abs((above - below) / (2 * h) - slope) < 1e-6 * (1 + abs(slope)), name


@pytest.mark.parametrize("op", FORWARD)
def test_needs(op):
    call = Call(op, (3, 8, 5, 5), np.float32, "NCHW")
    whole = call.backward(functional)
    for needs in (("input",), ("weight",), ("bias", "weight"), ("input", "bias"), ()):
        part = call.backward(functional, needs=needs)
        for name, value, all_of in zip(("input", "weight", "bias"), part, whole, strict=True):
            if name in needs:
                assert_same_bits(value, all_of, name)
            else:
                assert value is None


@pytest.mark.parametrize("activation", ["relu", "relu6", ("clip", -0.5, 0.75)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("training", [True, False])
def test_gradient_through_the_activation(training, layout, activation):
    for shape in ((3, 20, 6, 7), (2, 3, 70, 90)):
        call = Call("batch_norm_train", shape, np.float32, layout)
        y, mean, inv = functional.batch_norm_train(
            call.x, None, None, call.weight, call.bias, activation=activation, layout=layout
        )
        options = {"training": training, "layout": layout}
        args = call.dy, call.x, call.weight, mean, inv
        fused = functional.batch_norm_backward(*args, y=y, activation=activation, **options)
        lower, upper = {"relu": (0, np.inf), "relu6": (0, 6)}.get(activation, activation[1:])
        dy = np.where((y <= lower) | (y >= upper), np.float32(0), call.dy)
        apart = functional.batch_norm_backward(dy, *args[1:], **options)
        for a, b in zip(fused, apart, strict=True):
            assert_same_bits(a, b, "fused")


# ----------------------------------------------------------------------------------------------------------------- bits


def assert_same_bits(a, b, what):
    assert a.shape == b.shape
    assert np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}")), f"{what}: bits differ"


def flat(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", FORWARD)
def test_any_number_of_threads_and_every_run(op, dtype, layout):
    for shape in ((6, 64, 28, 28), (5, 37, 61, 59), (2000, 48)):
        call = Call(op, shape, dtype, layout)
        for run in (call.forward, call.backward):
            first = None
            for threads in (1, 2, 3, 7, 2):
                with fastconv.num_threads(threads):
                    result = flat(run(functional))
                first = first or result
                for a, b in zip(result, first, strict=True):
                    assert_same_bits(a, b, f"{threads} threads")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [op for op in FORWARD if op != "batch_norm_train"])
def test_image_alone_or_in_a_batch(op, dtype, layout):
    for shape in ((5, 24, 13, 11), (3, 130, 7, 7), (4, 3, 90, 80)):
        call = Call(op, shape, dtype, layout)
        y, dx = call.forward(functional), call.backward(functional).input
        for i in (0, 2):
            alone = Call(op, shape, dtype, layout)
            alone.x, alone.dy = call.x[i : i + 1], call.dy[i : i + 1]
            assert_same_bits(alone.forward(functional)[0], y[i], "forward alone")
            assert_same_bits(alone.backward(functional).input[0], dx[i], "gradient alone")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("op", FORWARD)
def test_address_and_out(op, layout):
    call = Call(op, (2, 19, 9, 9), np.float32, layout)
    y, dx = flat(call.forward(functional))[0], call.backward(functional).input
    for offset in range(1, 17):
        out, into = (np.empty(y.size + offset, np.float32)[offset:].reshape(y.shape) for _ in range(2))
        result = flat(call.forward(functional, out=out))[0]
        assert result is out
        assert_same_bits(out, y, "forward")
        assert call.backward(functional, out=into).input is into
        assert_same_bits(into, dx, "backward")


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", ["contiguous", "reordered", "reordered_last", "strided", "negative", "broadcast"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("op", FORWARD)
def test_any_strides(op, layout, kind):
    for shape in ((3, 12, 7, 5), (7, 16), (2, 5, 9)):
        call = Call(op, shape, np.float64, layout)
        for name in ("x", "dy"):
            array = testing.as_memory(getattr(call, name), kind)
            setattr(call, name, array)
        # A constant row's deviation is 0, and what is left of it rounding.
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if kind == "broadcast" else {"rtol": 1e-10, "atol": 1e-11}
        expected = flat(call.forward(reference))
        for value, want in zip(flat(call.forward(functional)), expected, strict=True):
            np.testing.assert_allclose(value, want, **tolerance)
        out = testing.as_memory(np.zeros(call.x.shape), "strided")
        np.testing.assert_allclose(flat(call.forward(functional, out=out))[0], expected[0], **tolerance)
        if kind == "broadcast":
            continue
        into = testing.as_memory(np.zeros(call.x.shape), "strided")
        for out in (None, into):
            for value, want in zip(call.backward(functional, out=out), call.backward(reference), strict=True):
                np.testing.assert_allclose(value, want, **tolerance)


@pytest.mark.parametrize("op", FORWARD)
def test_results_lie_as_x_does(op):
    if op == "layer_norm":
        pytest.skip("has no channels")
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 4)).astype(np.float32)
    for layout, lay in itertools.product(("NCHW", "NHWC"), (False, True)):
        call = Call(op, x.shape, np.float32, layout)
        # Channels innermost in memory, whatever the axes are called.
        axis = 1 if layout == "NCHW" else 3
        if lay:
            call.x = np.moveaxis(np.ascontiguousarray(np.moveaxis(call.x, axis, -1)), -1, axis)
            call.dy = np.moveaxis(np.ascontiguousarray(np.moveaxis(call.dy, axis, -1)), -1, axis)
        else:
            call.x = np.moveaxis(np.ascontiguousarray(np.moveaxis(call.x, axis, 1)), 1, axis)
            call.dy = np.moveaxis(np.ascontiguousarray(np.moveaxis(call.dy, axis, 1)), 1, axis)
        assert flat(call.forward(functional))[0].strides == call.x.strides
        assert call.backward(functional).input.strides == call.x.strides


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("op", FORWARD)
def test_guarded_buffers(op, layout):
    for shape in ((2, 19, 5, 7), (3, 16, 4, 4), (5, 37)):
        call = Call(op, shape, np.float32, layout)
        plain = flat(call.forward(functional)), call.backward(functional)
        guards = []

        def guard(array, guards=guards):
            guards.append(testing.guarded_copy(array))
            return guards[-1].array

        call.x, call.dy, call.weight, call.bias = map(guard, (call.x, call.dy, call.weight, call.bias))
        out, into = testing.guarded(call.x.shape), testing.guarded(call.x.shape)
        results = flat(call.forward(functional, out=out.array)), call.backward(functional, out=into.array)
        for result, expected in zip(results, plain, strict=True):
            for a, b in zip(result, expected, strict=True):
                assert_same_bits(a, b, op)
        out.check(), into.check()
        for g in guards:
            g.check(unchanged=True)


CHILD = """
import itertools, sys
import numpy as np
import fastconv
from fastconv.testing import page_guarded as page
where = sys.argv[1]
rng = np.random.default_rng(0)
for shape, layout in itertools.product([(2, 19, 5, 7), (3, 16, 4, 4), (5, 37)], ("NCHW", "NHWC")):
    x = rng.standard_normal(shape).astype(np.float32)
    if layout == "NHWC":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    c, last = shape[1], x.shape[-1]
    x, dy, out = page(x, where), page(x, where), page(x, where)
    v = [page(np.full(c, 1 + i, np.float32), where) for i in range(4)]
    w = page(np.ones(last, np.float32), where)
    print(shape, layout, flush=True)
    o = {"layout": layout}
    fastconv.batch_norm(x, *v, residual=dy, activation="relu", out=out, **o)
    fastconv.batch_norm(x, *v, training=True, out=out, **o)
    fastconv.batch_norm_backward(dy, x, *v[:3], y=x, activation="relu", out=out, **o)
    fastconv.group_norm(x, 1, *v[:2], out=out, **o)
    fastconv.group_norm_backward(dy, x, 1, v[0], out=out, **o)
    fastconv.layer_norm_channels(x, *v[:2], out=out, **o)
    fastconv.layer_norm_channels_backward(dy, x, v[0], out=out, **o)
    fastconv.layer_norm(x, last, w, w, out=out)
    fastconv.layer_norm_backward(dy, x, last, w, out=out)
    for axis in range(x.ndim):
        fastconv.softmax(x, axis, out=out)
        fastconv.log_softmax_backward(dy, x, axis, out=out)
    fastconv.gelu(x, out=out), fastconv.silu_backward(dy, x, out=out), fastconv.add(x, dy, out=out)
print("done")
"""


@pytest.mark.parametrize("where", ["after", "before"])
def test_no_access_beyond_a_page(isa, where):
    process = subprocess.run(
        [sys.executable, "-c", CHILD, where],
        env={**os.environ, "FASTCONV_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode != -signal.SIGSEGV, f"access beyond an operand in {process.stdout.splitlines()[-1:]}"
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "done"


# ------------------------------------------------------------------------------------------------------- special values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("op", FORWARD)
def test_nan_and_infinity_go_where_they_do_in_the_reference(op, layout, value):
    call = Call(op, (2, 12, 5, 6), np.float64, layout)
    call.x[0, 1, 2, 3] = value
    with np.errstate(invalid="ignore"):
        expected, result = flat(call.forward(reference)), flat(call.forward(functional))
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", FORWARD)
def test_empty_arrays(op):
    for shape in ((0, 4, 3, 3), (2, 4, 0, 3)):
        call = Call(op, shape, np.float32, "NCHW")
        if op == "layer_norm":
            call.positional, call.weight, call.bias = ((3,),), None, None
        if op == "batch_norm_train":
            with pytest.raises(ValueError, match="at least 2 values a channel"):
                call.forward(functional)
            continue
        assert call.forward(functional).shape == shape
        dx, dw, db = call.backward(functional)
        assert dx.shape == shape
        assert not dw.any()
        assert not db.any()


# ----------------------------------------------------------------------------------------------------------- properties


@given(
    n=st.integers(1, 4),
    groups=st.integers(1, 5),
    width=st.integers(1, 20),
    size=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    seed=st.integers(0, 1000),
)
def test_group_norm_has_mean_0_and_deviation_1(n, groups, width, size, layout, seed):
    shape = (n, groups * width, *size)
    x = np.random.default_rng(seed).normal(3, 2, shape)
    y = functional.group_norm(last_axis(x, layout), groups, eps=0, layout=layout)
    y = (np.moveaxis(y, -1, 1) if layout == "NHWC" else y).reshape(n, groups, -1)
    if y.shape[-1] > 1:
        np.testing.assert_allclose(y.mean(-1), 0, atol=1e-8)
        np.testing.assert_allclose(y.var(-1), 1, rtol=1e-8)
    # A norm does not see a shift, and the gradient with respect to x sums to nothing over a group.
    dy = np.random.default_rng(seed + 1).normal(size=shape)
    dx = functional.group_norm_backward(last_axis(dy, layout), last_axis(x, layout), groups, layout=layout).input
    dx = (np.moveaxis(dx, -1, 1) if layout == "NHWC" else dx).reshape(n, groups, -1)
    np.testing.assert_allclose(dx.sum(-1), 0, atol=1e-8 * (1 + np.abs(dx).max()) * dx.shape[-1])


def test_bias_gradient_is_exact_on_integers():
    dy = testing.integer_data((7, 21, 33, 31))
    x = np.random.default_rng(0).standard_normal(dy.shape).astype(np.float32)
    mean = inv = np.ones(21, np.float32)
    expected = dy.sum((0, 2, 3), dtype=np.float64)
    for layout in ("NCHW", "NHWC"):
        a, b = last_axis(dy, layout), last_axis(x, layout)
        for result in (
            functional.batch_norm_backward(a, b, None, mean, inv, layout=layout),
            functional.group_norm_backward(a, b, 3, layout=layout),
            functional.layer_norm_channels_backward(a, b, layout=layout),
        ):
            np.testing.assert_array_equal(result.bias, expected)


# ------------------------------------------------------------------------------------------------ local response norm


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_local_response_norm(dtype, layout, rng):
    eps = np.finfo(dtype).eps
    for shape, size, beta in itertools.product([(2, 7, 5), (1, 3, 9, 8), (2, 70, 11, 7)], (1, 2, 5, 8), (0.75, 1.3)):
        x, dy = (last_axis(a, layout) for a in rng.standard_normal((2, *shape)).astype(dtype))
        options = {"size": size, "alpha": 0.4, "beta": beta, "k": 1.5, "layout": layout}
        y, dx = (
            functional.local_response_norm(x, **options),
            functional.local_response_norm_backward(dy, x, **options),
        )
        wide = [wider(a) for a in (x, dy)]
        # beta times the error of d, which has size terms of one sign; pow of 1.3 has its own.
        bound = (8 + size) * eps
        np.testing.assert_allclose(y, reference.local_response_norm(wide[0], **options), rtol=float(bound))
        exact = reference.local_response_norm_backward(wide[1], wide[0], **options)
        assert np.all(np.abs(dx - exact) <= bound * (np.abs(dy) + 4))
        for threads in (1, 3):
            with fastconv.num_threads(threads):
                out = testing.guarded(x.shape, dtype)
                assert functional.local_response_norm(x, **options, out=out.array) is out.array
                assert_same_bits(out.array, y, "threads")
                out.check()
        assert_same_bits(functional.local_response_norm(x[:1], **options), y[:1], "alone")
        for kind in ("strided", "negative"):
            odd = [testing.as_memory(a, kind) for a in (x, dy)]
            into = testing.as_memory(np.zeros_like(x), "strided")
            assert_same_bits(functional.local_response_norm(odd[0], **options), y, kind)
            functional.local_response_norm_backward(odd[1], odd[0], **options, out=into)
            assert_same_bits(np.ascontiguousarray(into), dx, kind)


def test_local_response_norm_finite_differences(rng):
    x, dy, direction = rng.standard_normal((3, 2, 9, 4, 3))
    options = {"size": 4, "alpha": 0.7, "k": 0.9}
    slope = np.sum(functional.local_response_norm_backward(dy, x, **options) * direction)
    above, below = (np.sum(functional.local_response_norm(x + h * direction, **options) * dy) for h in (1e-6, -1e-6))
    assert abs((above - below) / 2e-6 - slope) < 1e-7 * (1 + abs(slope))


# ---------------------------------------------------------------------------------------------------------------- torch


def test_against_torch(rng):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x = rng.standard_normal((3, 12, 6, 5)).astype(np.float32)
    w, b, mean = rng.standard_normal((3, 12)).astype(np.float32)
    var = rng.random(12).astype(np.float32) + 0.5
    t, tw, tb, tm, tv = (torch.from_numpy(a.copy()) for a in (x, w, b, mean, var))
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(functional.batch_norm(x, mean, var, w, b), f.batch_norm(t, tm, tv, tw, tb), **close)
    y = functional.batch_norm(x, mean, var, w, b, training=True)
    np.testing.assert_allclose(y, f.batch_norm(t, tm, tv, tw, tb, training=True), **close)
    np.testing.assert_allclose(mean, tm, **close)
    np.testing.assert_allclose(var, tv, **close)
    np.testing.assert_allclose(functional.group_norm(x, 4, w, b), f.group_norm(t, 4, tw, tb), **close)
    np.testing.assert_allclose(functional.instance_norm(x, w, b), f.instance_norm(t, weight=tw, bias=tb), **close)
    v = rng.standard_normal((2, 6, 5)).astype(np.float32)
    expected = f.layer_norm(t, (6, 5), *map(torch.from_numpy, v))
    np.testing.assert_allclose(functional.layer_norm(x, (6, 5), *v), expected, **close)
    np.testing.assert_allclose(functional.local_response_norm(x, 5, 0.1), f.local_response_norm(t, 5, 0.1), **close)
    t.requires_grad_(True)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    f.group_norm(t, 4, tw, tb).backward(torch.from_numpy(dy))
    np.testing.assert_allclose(functional.group_norm_backward(dy, x, 4, w).input, t.grad, **close)


# ------------------------------------------------------------------------------------------------------------ bad input

X = np.zeros((2, 6, 4, 4), np.float32)
V = np.ones(6, np.float32)
READ_ONLY = np.zeros_like(X)
READ_ONLY.flags.writeable = False
BAD = [
    (lambda f: f.batch_norm(X, None, V), ValueError, r"running_mean \(=None\) must be given, or training=True"),
    (lambda f: f.batch_norm([1.0], V, V), TypeError, r"x is of type list"),
    (
        lambda f: f.batch_norm(X, V, V.astype(float)),
        TypeError,
        r"running_var \(dtype float64\) must have the dtype of x",
    ),
    (lambda f: f.batch_norm(X, V, V[:5]), ValueError, r"running_var \(shape \(5,\)\) must have shape \(6,\)"),
    (lambda f: f.batch_norm(X, V, V, V[:5]), ValueError, r"weight \(shape \(5,\)\) must have shape \(6,\)"),
    (lambda f: f.batch_norm(X, V, V, residual=X[:1]), ValueError, r"residual \(shape \(1, 6, 4, 4\)\)"),
    (
        lambda f: f.batch_norm(X, V, V, layout="NHWC"),
        ValueError,
        r"running_mean \(shape \(6,\)\) must have shape \(4,\)",
    ),
    (lambda f: f.batch_norm(X, V, V, layout="NCL"), ValueError, r"layout \(='NCL'\) must be one of 'NCHW', 'NHWC'"),
    (lambda f: f.batch_norm(X, V, V, eps=-1), ValueError, r"eps \(=-1\) must be at least 0"),
    (lambda f: f.batch_norm(X, V, V, eps="1"), TypeError, r"eps \(='1'\) must be a number"),
    (lambda f: f.batch_norm(X, V, V, momentum=2), ValueError, r"momentum \(=2\) must be from 0 to 1"),
    (lambda f: f.batch_norm(X, V, V, momentum_convention="tf"), ValueError, r"momentum_convention \(='tf'\)"),
    (lambda f: f.batch_norm(X, V, V, running_variance="no"), ValueError, r"running_variance \(='no'\)"),
    (lambda f: f.batch_norm(X, V, V, training=1), TypeError, r"training \(=1\) must be True or False"),
    (lambda f: f.batch_norm(X, V, V, activation="swish"), ValueError, r"activation \(='swish'\)"),
    (lambda f: f.batch_norm(X, V, V, out=X[:1]), ValueError, r"out \(shape \(1, 6, 4, 4\)\)"),
    (lambda f: f.batch_norm(X, V, V, out=X), ValueError, r"out .* must not overlap x"),
    (lambda f: f.batch_norm(X, V, V, out=READ_ONLY), ValueError, r"out \(read-only\) must be writable"),
    (lambda f: f.batch_norm(X[0, 0, 0], V, V), ValueError, r"x \(shape \(4,\)\) must have 2 to 5 dimensions"),
    (lambda f: f.batch_norm(X[:, :0], V[:0], V[:0]), ValueError, r"at least 1 channel"),
    (lambda f: f.batch_norm_train(X, V, V), ValueError, r"running_mean .* must not overlap running_var"),
    (lambda f: f.batch_norm_train(X[:1, :, :1, :1]), ValueError, r"at least 2 values a channel in training, not 1"),
    (lambda f: f.batch_norm_backward(X, X[:1], V, V, V), ValueError, r"dy \(shape .* must have shape \(1, 6, 4, 4\)"),
    (lambda f: f.batch_norm_backward(X, X, V, None, V), TypeError, r"mean"),
    (lambda f: f.batch_norm_backward(X, X, V, V, V, needs=("w",)), ValueError, r"needs \(=\('w',\)\)"),
    (lambda f: f.batch_norm_backward(X, X, V, V, V, needs=("bias",), out=X), ValueError, r"out .* needs 'input'"),
    (lambda f: f.batch_norm_backward(X, X, V, V, V, y=X), ValueError, r"y is of use with an activation only"),
    (lambda f: f.batch_norm_backward(X, X, V, V, V, activation="relu"), ValueError, r"activation .* needs y"),
    (lambda f: f.batch_norm_backward(X, X, V, V, V, y=X, activation="silu"), ValueError, r"must be None, 'relu'"),
    (lambda f: f.group_norm(X, 4), ValueError, r"num_groups \(=4\) must divide the channels \(=6\) of x"),
    (lambda f: f.group_norm(X, 0), ValueError, r"num_groups \(=0\) must be at least 1"),
    (lambda f: f.group_norm(X, 2.0), TypeError, r"num_groups \(=2.0\) must be an integer"),
    (lambda f: f.layer_norm(X, 5), ValueError, r"x \(shape .*\) must end in normalized_shape \(=\(5,\)\)"),
    (lambda f: f.layer_norm(X, ()), ValueError, r"normalized_shape \(=\(\)\)"),
    (lambda f: f.layer_norm(X, (4, 4), V), ValueError, r"weight \(shape \(6,\)\) must have shape \(4, 4\)"),
    (lambda f: f.layer_norm(X, "4"), TypeError, r"normalized_shape \(='4'\) must be an integer"),
    (lambda f: f.layer_norm_backward(X, X[:1], 4), ValueError, r"dy \(shape"),
    (lambda f: f.local_response_norm(X, 0), ValueError, r"size \(=0\) must be at least 1"),
    (lambda f: f.local_response_norm(X, 5, beta=None), TypeError, r"beta \(=None\) must be a number"),
    (lambda f: f.local_response_norm(V, 5), ValueError, r"x \(shape \(6,\)\) must have 3 to 5 dimensions"),
    (lambda f: f.local_response_norm_backward(X[:1], X, 5), ValueError, r"dy \(shape"),
    (lambda f: f.local_response_norm_backward(None, X, 5), TypeError, r"dy is of type NoneType"),
    (lambda f: f.instance_norm(X, V[:2]), ValueError, r"weight \(shape \(2,\)\)"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call(functional)


def test_a_refused_call_updates_nothing():
    mean, var = np.zeros(6, np.float32), np.ones(6, np.float32)
    with pytest.raises(ValueError, match="must not overlap"):
        functional.batch_norm(X, mean, var, training=True, out=X)
    assert not mean.any()
    assert (var == 1).all()
