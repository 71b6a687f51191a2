"""Functions of single elements and softmax against the reference, their gradients and their memory."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = (np.float32, np.float64)
# name, further arguments; whether the gradient wants the result.
FUNCTIONS = [
    ("relu", (), False),
    ("relu6", (), False),
    ("leaky_relu", (), False),
    ("leaky_relu", (0.2,), False),
    ("silu", (), False),
    ("hardswish", (), False),
    ("sigmoid", (), True),
    ("hardsigmoid", (), False),
    ("tanh", (), True),
    ("gelu", (), False),
    ("gelu", ("tanh",), False),
    ("clip", (-0.5, 1.25), False),
    ("clip", (None, 0.75), False),
    ("clip", (-1,), False),
]
# Of dy * act', in eps * |dy|: the worst of 100000 normal numbers was 2.1 (gelu_tanh).
BACKWARD_BOUND = 3


def assert_same_bits(a, b, what=""):
    assert a.shape == b.shape
    assert np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}")), f"{what}: bits differ"


def wider(x):
    return x.astype(np.longdouble if x.dtype == np.float64 else np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "args", "_"), FUNCTIONS)
def test_forward_matches_the_reference(name, args, _, dtype, rng):
    x = np.concatenate([rng.normal(0, 3, 3001), np.linspace(-12, 12, 97)]).astype(dtype)
    y, expected = (getattr(m, name)(a, *args) for m, a in ((functional, x), (reference, x.astype(np.float64))))
    # The tails of gelu_tanh magnify the rounding of their argument; test_kernels has the sharp bounds.
    np.testing.assert_allclose(y, expected, rtol=16 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "args", "by_result"), FUNCTIONS)
def test_backward_matches_the_reference(name, args, by_result, dtype, rng):
    x = np.concatenate([rng.normal(0, 3, 3001), np.linspace(-12, 12, 97), [0, 6, 3, -3]]).astype(dtype)
    dy = rng.standard_normal(x.size).astype(dtype)
    at = getattr(functional, name)(x, *args) if by_result else x
    backward = f"{name}_backward"
    result = getattr(functional, backward)(dy, at, *args)
    expected = getattr(reference, backward)(wider(dy), wider(at), *args)
    assert np.all(np.abs(result - expected) <= BACKWARD_BOUND * np.finfo(dtype).eps * np.abs(dy))


@pytest.mark.parametrize(("name", "args", "by_result"), FUNCTIONS)
def test_finite_differences(name, args, by_result):
    # Away from the bends.
    x = np.array(
        [v for v in np.linspace(-5, 5.03, 301) if min(abs(v - k) for k in (-3, -1, -0.5, 0, 0.75, 1.25, 3)) > 1e-3]
    )
    h = 1e-6
    f = getattr(functional, name)
    slope = (f(x + h, *args) - f(x - h, *args)) / (2 * h)
    at = f(x, *args) if by_result else x
    np.testing.assert_allclose(getattr(functional, f"{name}_backward")(np.ones_like(x), at, *args), slope, atol=1e-8)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_matches_the_reference(name, dtype, axis, rng):
    eps = np.finfo(dtype).eps
    for shape in ((5, 7, 33), (3, 1, 2), (2, 100, 70), (1, 3, 1025)):
        x = rng.normal(0, 4, shape).astype(dtype)
        dy = rng.standard_normal(shape).astype(dtype)
        y, expected = getattr(functional, name)(x, axis), getattr(reference, name)(wider(x), axis)
        if name == "softmax":
            # x - max rounds by half an eps of itself, and exp makes a relative error of it.
            assert np.all(np.abs(y - expected) <= (6 + np.ptp(x) / 2) * eps * expected + np.finfo(dtype).tiny)
        else:
            assert np.all(np.abs(y - expected) <= 4 * eps * (np.ptp(x) + 2))
        dx = getattr(functional, f"{name}_backward")(dy, y, axis)
        exact = getattr(reference, f"{name}_backward")(wider(dy), wider(y), axis)
        terms = (np.abs(dy) * (np.exp(y) if name == "log_softmax" else y)).sum(axis, keepdims=True)
        if name == "log_softmax":
            terms = np.exp(y) * np.abs(dy).sum(axis, keepdims=True) * (1 + np.abs(y) / 4)
        assert np.all(np.abs(dx - exact) <= 8 * eps * (np.abs(dy) + terms))


def test_softmax_of_special_values():
    for axis, shape in ((1, (1, 5)), (0, (5, 1)), (0, (5, 3))):
        for values in ([np.inf, 0, 1, 2, 3], [np.nan, 0, 1, 2, 3], [0, 1, np.nan, 2, 3], [-np.inf] * 5):
            x = np.broadcast_to(np.array(values).reshape(shape[0] if axis == 0 else 1, -1), shape).copy()
            assert np.isnan(functional.softmax(x, axis)).all()
            assert np.isnan(functional.log_softmax(x, axis)).all()
        x = np.array([-np.inf, 0, 0, -1e30, -np.inf])
        x = np.broadcast_to(x.reshape(shape[0] if axis == 0 else 1, -1), shape).copy()
        np.testing.assert_array_equal(functional.softmax(x, axis), np.where(x == 0, 0.5, 0))
    x = np.array([[1e4, 1e4 - 1, 0]], np.float32)
    np.testing.assert_allclose(functional.log_softmax(x)[0, 2], -1e4 - np.log1p(np.exp(-1)), rtol=1e-7)


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_softmax_properties(shape, order, seed, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    axes = list(range(len(shape)))
    order.shuffle(axes)
    # Any order of the axes in memory.
    x = np.random.default_rng(seed).normal(0, 3, [shape[a] for a in axes]).transpose(np.argsort(axes))
    y = functional.softmax(x, axis)
    np.testing.assert_allclose(y.sum(axis), 1, rtol=1e-14)
    np.testing.assert_allclose(functional.log_softmax(x, axis), np.log(y), rtol=1e-9, atol=1e-13)
    assert_same_bits(np.ascontiguousarray(y.argmax(axis)), np.ascontiguousarray(x.argmax(axis)))
    dx = functional.softmax_backward(x * x, y, axis)
    np.testing.assert_allclose(dx.sum(axis), 0, atol=1e-13 * (1 + (x * x).max()))
    for a, b in ((x, y), (x, dx)):
        assert [s for s, n in zip(a.strides, shape, strict=True) if n > 1] == [
            s for s, n in zip(b.strides, shape, strict=True) if n > 1
        ]


def calls(x, dy, out=lambda: None):
    """Every function once, by name."""
    for name, args, _ in FUNCTIONS:
        yield name, getattr(functional, name)(x, *args, out=out())
        yield f"{name}_backward", getattr(functional, f"{name}_backward")(dy, x, *args, out=out())
    for activation in (None, "relu", "silu"):
        yield "add", functional.add(x, dy, activation=activation, out=out())
    for axis, name in itertools.product(range(x.ndim), ("softmax", "log_softmax")):
        yield name, getattr(functional, name)(x, axis, out=out())
        yield f"{name}_backward", getattr(functional, f"{name}_backward")(dy, x, axis, out=out())


def test_add(rng):
    x, y = rng.standard_normal((2, 3, 70, 5)).astype(np.float32)
    for activation in testing.ACTIVATIONS:
        expected = reference.add(x.astype(np.float64), y.astype(np.float64), activation=activation)
        np.testing.assert_allclose(functional.add(x, y, activation=activation), expected, rtol=1e-6, atol=2e-6)
    assert_same_bits(functional.add(x, y), x + y)


@pytest.mark.parametrize("kind", ["contiguous", "reordered", "strided", "negative", "broadcast"])
def test_any_strides(kind, rng):
    x, dy = (testing.as_memory(a, kind) for a in rng.standard_normal((2, 3, 5, 6, 7)).astype(np.float32))
    plain = calls(np.ascontiguousarray(x), np.ascontiguousarray(dy))
    odd = testing.as_memory(np.zeros_like(x), "strided")
    ways = [calls(x, dy), calls(x, dy, lambda: np.zeros_like(x)), calls(x, dy, lambda: odd)]
    for (name, expected), *results in zip(plain, *ways, strict=True):
        for _, result in results:
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_results_lie_as_x_does(rng):
    x = rng.standard_normal((3, 5, 6, 7))
    for axes in itertools.permutations(range(4)):
        view = x.transpose(axes)
        for name, result in calls(view, view):
            assert result.strides == view.strides, name


def test_in_place(rng):
    x, dy = rng.standard_normal((2, 4, 9, 31)).astype(np.float32)
    expected = list(calls(x, dy))
    for index, (name, value) in enumerate(expected):
        if name.endswith("_backward") or name == "add":
            continue
        own = x.copy()
        result = dict(enumerate(calls_of_one(own, index)))[0]
        assert result is own, name
        assert_same_bits(own, value, name)
    for over in (0, 1):
        operands = [x.copy(), dy.copy()]
        assert functional.add(*operands, out=operands[over]) is operands[over]
        assert_same_bits(operands[over], x + dy)
        operands = [dy.copy(), x.copy()]
        functional.silu_backward(*operands, out=operands[over])
        assert_same_bits(operands[over], functional.silu_backward(dy, x))
        operands = [dy.copy(), x.copy()]
        functional.softmax_backward(*operands, out=operands[over])
        assert_same_bits(operands[over], functional.softmax_backward(dy, x))


def calls_of_one(own, index):
    """The call of that index in `calls`, written over its operand."""
    names = [name for pair in FUNCTIONS for name in (pair, None)]
    if index < len(names):
        name, args, _ = names[index]
        yield getattr(functional, name)(own, *args, out=own)
    else:
        rest = index - len(names) - 3
        yield getattr(functional, ("softmax", "log_softmax")[rest // 2 % 2])(own, rest // 4, out=own)


def test_bits_do_not_depend_on_threads_or_address(rng):
    x, dy = rng.standard_normal((2, 7, 211, 300)).astype(np.float32)
    expected = list(calls(x, dy))
    for threads in (2, 3, 7):
        with fastconv.num_threads(threads):
            for (name, value), (_, result) in zip(expected, calls(x, dy), strict=True):
                assert_same_bits(result, value, f"{name}, {threads} threads")
    part, gradient = x[0, :9, :37].copy(), dy[0, :9, :37].copy()
    expected = list(calls(part, gradient))
    for offset in (1, 5, 16):
        moved, other = (np.empty(part.size + offset, np.float32)[offset:].reshape(part.shape) for _ in range(2))
        moved[...], other[...] = part, gradient
        for (name, value), (_, result) in zip(expected, calls(moved, other), strict=True):
            assert_same_bits(result, value, f"{name}, offset {offset}")


def test_guarded_buffers(rng):
    for shape in ((5,), (3, 17), (2, 33, 16), (4, 5, 3)):
        x, dy = (testing.guarded(shape, values=v) for v in rng.standard_normal((2, *shape)).astype(np.float32))
        expected = list(calls(x.array.copy(), dy.array.copy()))
        outs = []

        def out(shape=shape, outs=outs):
            outs.append(testing.guarded(shape))
            return outs[-1].array

        for (name, value), (_, result) in zip(expected, calls(x.array, dy.array, out), strict=True):
            assert_same_bits(np.ascontiguousarray(result), value, name)
        for g in outs:
            g.check()
        x.check(unchanged=True), dy.check(unchanged=True)


def test_large_results_are_streamed_past_the_caches(rng):
    n = (fastconv._core.cache_sizes()["l3"] >> 2) + 1001
    x = rng.standard_normal(n).astype(np.float32)
    assert_same_bits(functional.relu(x), np.maximum(x, 0))
    assert_same_bits(functional.add(x[1:], x[:-1]), x[1:] + x[:-1])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_empty_arrays_and_scalars(shape):
    x = np.full(shape, -1, np.float32)
    assert functional.relu(x).shape == shape
    np.testing.assert_array_equal(functional.add(x, x), x + x)
    np.testing.assert_array_equal(functional.relu_backward(x, x), np.zeros(shape))
    if shape:
        assert functional.softmax(x).shape == shape


def test_against_torch(rng):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    # Among others exactly at the bends.
    x = np.concatenate([rng.normal(0, 3, 500), [-3, 3, 0, -0.0, 6, 0.5, -0.5]]).astype(np.float32)
    dy = rng.standard_normal(x.size).astype(np.float32)
    pairs = [
        ("relu", (), torch.relu),
        ("relu6", (), f.relu6),
        ("leaky_relu", (), f.leaky_relu),
        ("silu", (), f.silu),
        ("hardswish", (), f.hardswish),
        ("sigmoid", (), torch.sigmoid),
        ("hardsigmoid", (), f.hardsigmoid),
        ("tanh", (), torch.tanh),
        ("gelu", (), f.gelu),
        ("gelu", ("tanh",), lambda t: f.gelu(t, approximate="tanh")),
        ("clip", (-0.5, 0.5), lambda t: torch.clip(t, -0.5, 0.5)),
        ("softmax", (), lambda t: torch.softmax(t, -1)),
        ("log_softmax", (), lambda t: torch.log_softmax(t, -1)),
    ]
    for name, args, theirs in pairs:
        t = torch.from_numpy(x.copy()).requires_grad_(True)
        expected = theirs(t)
        y = getattr(functional, name)(x, *args)
        np.testing.assert_allclose(y, expected.detach(), rtol=2e-6, atol=2e-6, err_msg=name)
        expected.backward(torch.from_numpy(dy))
        at = y if name in ("sigmoid", "tanh", "softmax", "log_softmax") else x
        dx = getattr(functional, f"{name}_backward")(dy, at, *args)
        np.testing.assert_allclose(dx, t.grad, rtol=1e-5, atol=1e-5, err_msg=name)


X = np.ones((3, 4), np.float32)
FIXED = X.copy()
FIXED.flags.writeable = False
BUFFER = np.zeros(20, np.float32)
BAD = [
    (lambda f: f.relu([1.0]), TypeError, "x is of type list and must be a numpy.ndarray"),
    (lambda f: f.relu(None), TypeError, "x (=None) must be a numpy.ndarray"),
    (lambda f: f.relu(X.astype(int)), TypeError, "x (dtype int64) must have dtype float32 or float64"),
    (lambda f: f.relu(np.ones((1,) * 6)), ValueError, "must have at most 5 dimensions"),
    (lambda f: f.relu(X, out=X[:2]), ValueError, "out (shape (2, 4)) must have shape (3, 4)"),
    (lambda f: f.relu(X, out=FIXED), ValueError, "out (read-only) must be writable"),
    (lambda f: f.relu(FIXED, out=FIXED), ValueError, "out (read-only) must be writable"),
    (lambda f: f.relu(BUFFER[:16], out=BUFFER[4:]), ValueError, "must not overlap x"),
    (lambda f: f.add(X, BUFFER[:12].reshape(3, 4), out=BUFFER[2:14].reshape(3, 4)), ValueError, "must not overlap y"),
    (lambda f: f.relu_backward(X, X[:2]), ValueError, "x (shape (2, 4)) must have shape (3, 4): that of dy"),
    (lambda f: f.relu_backward(X, X.astype(float)), TypeError, "x (dtype float64) must have the dtype of dy"),
    (lambda f: f.sigmoid_backward(X, X[:2]), ValueError, "y (shape (2, 4))"),
    (lambda f: f.add(X, X[:2]), ValueError, "y (shape (2, 4)) must have shape (3, 4): that of x"),
    (lambda f: f.add(X, X, activation="swish"), ValueError, "activation (='swish') must be one of"),
    (lambda f: f.clip(X), ValueError, "min (=None) or max (=None) must be a number"),
    (lambda f: f.clip(X, 2, 1), ValueError, "min (=2) must be at most max (=1)"),
    (lambda f: f.clip(X, "0"), TypeError, "min (='0') must be a number"),
    (lambda f: f.leaky_relu(X, np.inf), ValueError, "negative_slope (=inf) must be finite"),
    (lambda f: f.gelu(X, "erf"), ValueError, "approximate (='erf') must be one of 'none', 'tanh'"),
    (lambda f: f.softmax(X, 2), ValueError, "axis (=2) must be from -2 to 1"),
    (lambda f: f.softmax(X, 1.0), TypeError, "axis (=1.0) must be an integer"),
    (lambda f: f.softmax([1.0], 0), TypeError, "x is of type list"),
    (lambda f: f.log_softmax_backward(X, X[:2]), ValueError, "y (shape (2, 4))"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=re.escape(message)):
        call(functional)
