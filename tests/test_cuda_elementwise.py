"""Functions of single elements on devices, against the reference in float64."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv import cuda, functional, reference

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# What a result below the normal numbers is rounded to.
LEAST = {"float32": 2.0**-149, "float64": 2.0**-1074, "float16": 2.0**-24, "bfloat16": 2.0**-133}
# name, further arguments; whether the gradient wants the result.
FUNCTIONS = [
    ("relu", (), False),
    ("relu6", (), False),
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
]


def on_device(x, dtype):
    """The array there, and what it holds there in float64."""
    d = cuda.to_device(x, dtype=dtype)
    return d, cuda.to_host(d).astype(np.float64)


def assert_close(y, expected, dtype, scale=None, factor=1.0):
    """Rounded once to the dtype, after `factor` roundings of the accumulator's on values of size `scale`."""
    y = cuda.to_host(y).astype(np.float64)
    wide = EPS["float64" if dtype == "float64" else "float32"]
    scale = np.abs(expected) if scale is None else scale
    bound = EPS[dtype] / 2 * np.abs(expected) + LEAST[dtype] + 8 * factor * wide * scale
    assert y.shape == expected.shape
    wrong = ~((np.abs(y - expected) <= bound) | (np.isnan(y) & np.isnan(expected)) | (y == expected))
    assert not wrong.any(), (y[wrong][:4], expected[wrong][:4])


# Whole blocks, tails of every length within a vector, single elements.
SIZES = (1, 7, 8, 9, 255, 2048, 4096 + 3, 3 * 8192 + 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "args", "by_result"), FUNCTIONS)
def test_forward_and_backward(device, name, args, by_result, dtype, rng):
    for n in SIZES[: 3 if by_result else None]:
        x, wide = on_device(np.concatenate([rng.normal(0, 3, n), [0, 6, 3, -3, -0.0]])[-n - 3 :], dtype)
        y = getattr(functional, name)(x, *args)
        expected = getattr(reference, name)(wide, *args)
        assert_close(y, expected, dtype, np.abs(wide) + np.abs(expected), factor=4)
        dy, wide_dy = on_device(rng.standard_normal(x.shape), dtype)
        at, wide_at = (y, cuda.to_host(y).astype(np.float64)) if by_result else (x, wide)
        dx = getattr(functional, f"{name}_backward")(dy, at, *args)
        assert_close(dx, getattr(reference, f"{name}_backward")(wide_dy, wide_at, *args), dtype, 4 * np.abs(wide_dy), 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add(device, dtype, rng):
    for n, activation in itertools.product(SIZES, (None, "relu")):
        (x, wide_x), (y, wide_y) = (on_device(rng.standard_normal(n), dtype) for _ in range(2))
        expected = reference.add(wide_x, wide_y, activation=activation)
        assert_close(functional.add(x, y, activation=activation), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(device, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 65504, -65504, 1e-7])
    d, wide = on_device(x, dtype)
    for name, args, _ in FUNCTIONS:
        with np.errstate(invalid="ignore", over="ignore"):
            expected = getattr(reference, name)(wide, *args)
        y = cuda.to_host(getattr(functional, name)(d, *args)).astype(np.float64)
        assert np.array_equal(np.isnan(y[:1]), [True]), name
        finite = np.isfinite(expected) & np.isfinite(wide)
        np.testing.assert_allclose(y[finite], expected[finite], rtol=EPS[dtype] * 4, atol=1e-6, err_msg=name)


def test_no_element_is_left_or_touched_beyond(device, rng):
    # The result's memory holds NaN before; a slice's neighbours stay as they were.
    for n in range(1, 70):
        x = rng.standard_normal(n).astype(np.float32)
        whole = cuda.to_device(np.full(n + 8, -7, np.float32))
        functional.relu(cuda.to_device(x), out=whole[4 : n + 4])
        got = cuda.to_host(whole)
        np.testing.assert_array_equal(got[4 : n + 4], np.maximum(x, 0))
        assert (got[:4] == -7).all()
        assert (got[n + 4 :] == -7).all()


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    steps=st.lists(st.sampled_from([1, 1, 2, -1]), min_size=5, max_size=5),
    dtype=st.sampled_from(DTYPES),
)
def test_any_strides(device, shape, order, steps, dtype):
    rng = np.random.default_rng(len(shape))

    def operand():
        axes = list(range(len(shape)))
        order.shuffle(axes)
        wide = [shape[a] * abs(steps[a]) for a in axes]
        whole = cuda.to_device(rng.standard_normal(wide), dtype=dtype)
        base = whole[tuple(slice(None, None, steps[a]) for a in axes)]
        inverse = np.argsort(axes)
        place = cuda.DeviceArray(
            base._memory,
            base.pointer,
            base.dtype,
            tuple(base.shape[i] for i in inverse),
            tuple(base.strides[i] for i in inverse),
        )
        return place, cuda.to_host(place).astype(np.float64)

    (x, wide_x), (y, wide_y) = operand(), operand()
    assert x.shape == tuple(shape)
    out, _ = operand()
    assert functional.add(x, y, out=out) is out
    assert_close(out, wide_x + wide_y, dtype)
    assert_close(functional.relu_backward(x, y), reference.relu_backward(wide_x, wide_y), dtype)
    assert_close(functional.silu(x), reference.silu(wide_x), dtype, np.abs(wide_x), 4)


def test_the_batch_changes_no_bit(device, rng):
    x = rng.standard_normal((5, 3, 7)).astype(np.float32)
    whole = cuda.to_host(functional.gelu(cuda.to_device(x)))
    for i in range(5):
        alone = cuda.to_host(functional.gelu(cuda.to_device(x[i])))
        assert np.array_equal(whole[i].view(np.uint32), alone.view(np.uint32))


def test_torch_tensors(device):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs PyTorch with a CUDA device")
    x = torch.randn(2, 8, 5, 5, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = functional.relu(x)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == x.dtype
    assert y.stride() == x.stride()
    assert torch.equal(y, torch.relu(x))
