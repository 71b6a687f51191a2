"""The oracle itself, against loops that follow the definition and against PyTorch where it is installed."""

import importlib
import inspect
import itertools

import numpy as np
import pytest

from fastconv import functional, reference, testing

MODES = ("zeros", "reflect", "replicate", "circular")
RANKS = (1, 2, 3)
SIZE, KERNEL = (6, 5, 7), (3, 2, 3)


def functions(module):
    return {
        name: f
        for name, f in vars(module).items()
        if name.startswith(("conv", "linear")) and callable(f) and not inspect.isclass(f)
    }


def test_same_names_and_signatures_as_functional():
    def shape(f):
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    ours, theirs = functions(reference), functions(functional)
    assert len(ours) == 35
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert shape(ours[name]) == shape(theirs[name]), name


def source(i, n, mode):
    """Which element position i of the padded input shows; None is a zero."""
    if 0 <= i < n:
        return i
    match mode:
        case "zeros":
            return None
        case "reflect":
            return -i if i < 0 else 2 * (n - 1) - i
        case "replicate":
            return 0 if i < 0 else n - 1
        case "circular":
            return i % n


def loops(x, w, small, stride, dilation, before, groups, mode):
    """y, and every (output, input, weight) index triple with a product."""
    rank, per_group, k = x.ndim - 2, w.shape[1], w.shape[0]
    triples = []
    for n, o, p in itertools.product(range(x.shape[0]), range(k), np.ndindex(*small)):
        for c, r in itertools.product(range(per_group), np.ndindex(*w.shape[2:])):
            at = [p[i] * stride[i] + r[i] * dilation[i] - before[i] for i in range(rank)]
            at = [source(a, m, mode) for a, m in zip(at, x.shape[2:], strict=True)]
            if None not in at:
                triples.append(((n, o, *p), (n, o // (k // groups) * per_group + c, *at), (o, c, *r)))
    return triples


def product(triples, shape, to, a, b, a_at, b_at):
    out = np.zeros(shape)
    for t in triples:
        out[t[to]] += a[t[a_at]] * b[t[b_at]]
    return out


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 1), (3, 2, 3)])
def test_convolution_against_loops(rng, rank, mode, stride, dilation, groups):
    size, kernel = SIZE[:rank], KERNEL[:rank]
    before, after = (1, 2, 0)[:rank], (2, 1, 1)[:rank]
    x = testing.integer_data((2, groups * 2, *size), np.float64, seed=1)
    w = testing.integer_data((groups * 2, 2, *kernel), np.float64, seed=2)
    reach = [dilation * (k - 1) + 1 for k in kernel]
    small = [(n + b + a - e) // stride + 1 for n, b, a, e in zip(size, before, after, reach, strict=True)]
    triples = loops(x, w, small, (stride,) * rank, (dilation,) * rank, before, groups, mode)
    dy = testing.integer_data((2, groups * 2, *small), np.float64, seed=3)
    options = {
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "padding": tuple(zip(before, after, strict=True)),
        "padding_mode": mode,
    }
    y = getattr(reference, f"conv{rank}d")(x, w, **options)
    gradients = getattr(reference, f"conv{rank}d_backward")(dy, x, w, **options)
    np.testing.assert_array_equal(y, product(triples, dy.shape, 0, x, w, 1, 2))
    np.testing.assert_array_equal(gradients.input, product(triples, x.shape, 1, dy, w, 0, 2))
    np.testing.assert_array_equal(gradients.weight, product(triples, w.shape, 2, dy, x, 0, 1))
    np.testing.assert_array_equal(gradients.bias, dy.sum((0, *range(2, rank + 2))))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "extra"), [(1, 1, 1, 0), (2, 1, 2, 1), (1, 2, 1, 1), (3, 2, 2, 2)]
)
def test_transposed_against_loops(rank, stride, dilation, groups, extra):
    size, kernel = (3, 2, 3)[:rank], KERNEL[:rank]
    before, after = (1, 0, 2)[:rank], (0, 1, 1)[:rank]
    x = testing.integer_data((2, groups * 2, *size), np.float64, seed=1)
    w = testing.integer_data((groups * 2, 3, *kernel), np.float64, seed=2)
    reach = [dilation * (k - 1) + 1 for k in kernel]
    sizes = zip(size, reach, before, after, strict=True)
    large = [(n - 1) * stride + e + extra - b - a for n, e, b, a in sizes]
    y = np.zeros((2, groups * 3, *large))
    # The transposed layer is the adjoint of the convolution from y to x with the same weight.
    triples = loops(y, w, size, (stride,) * rank, (dilation,) * rank, before, groups, "zeros")
    dy = testing.integer_data(y.shape, np.float64, seed=3)
    options = {"stride": stride, "dilation": dilation, "groups": groups, "output_padding": extra}
    options["padding"] = tuple(zip(before, after, strict=True))
    y = getattr(reference, f"conv_transpose{rank}d")(x, w, **options)
    gradients = getattr(reference, f"conv_transpose{rank}d_backward")(dy, x, w, **options)
    np.testing.assert_array_equal(y, product(triples, dy.shape, 1, x, w, 0, 2))
    np.testing.assert_array_equal(gradients.input, product(triples, x.shape, 0, dy, w, 1, 2))
    np.testing.assert_array_equal(gradients.weight, product(triples, w.shape, 2, x, dy, 0, 1))
    np.testing.assert_array_equal(gradients.bias, dy.sum((0, *range(2, rank + 2))))


@pytest.mark.parametrize(
    ("n", "stride", "k", "dilation"), [*itertools.product((5, 8), (1, 2, 3), (1, 2, 3, 4), (1, 2))]
)
def test_same_padding(n, stride, k, dilation):
    x = testing.integer_data((1, 2, n), np.float64)
    w = testing.integer_data((3, 2, k), np.float64, seed=1)
    size = -(-n // stride)
    total = max((size - 1) * stride + dilation * (k - 1) + 1 - n, 0)
    for name, before in (("same", total // 2), ("same_lower", total - total // 2)):
        y = reference.conv1d(x, w, stride=stride, dilation=dilation, padding=name)
        pads = ((before, total - before),)
        assert y.shape == (1, 3, size)
        np.testing.assert_array_equal(y, reference.conv1d(x, w, stride=stride, dilation=dilation, padding=pads))


@pytest.mark.parametrize(("stride", "k", "dilation"), [*itertools.product((1, 2, 3), (1, 2, 3, 4), (1, 2))])
def test_same_padding_transposed_is_the_adjoint_of_same(stride, k, dilation):
    # TensorFlow defines it so: the input gradient of a "same" convolution whose input has size * stride elements.
    x = testing.integer_data((2, 3, 5), np.float64)
    w = testing.integer_data((3, 2, k), np.float64, seed=1)
    for name in ("same", "same_lower"):
        y = reference.conv_transpose1d(x, w, stride=stride, dilation=dilation, padding=name)
        expected = reference.conv1d_backward_input(
            x, w, (2, 2, 5 * stride), stride=stride, dilation=dilation, padding=name
        )
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("transposed", [False, True])
def test_layouts_and_batch_axis_agree(rng, rank, transposed):
    op = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    x, w = rng.standard_normal((2, 4, *SIZE[:rank])), rng.standard_normal((4, 2, *KERNEL[:rank]))
    options = {"padding": 1, "stride": 2, "groups": 2}
    y = getattr(reference, op)(x, w, **options)
    dy = rng.standard_normal(y.shape)
    gradients = getattr(reference, f"{op}_backward")(dy, x, w, **options)

    def last(a):
        return np.ascontiguousarray(np.moveaxis(a, 1, -1))

    # The two layouts sum in a different order.
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(getattr(reference, op)(last(x), w, layout="NHWC", **options), last(y), **close)
    other = getattr(reference, f"{op}_backward")(last(dy), last(x), w, layout="NHWC", **options)
    np.testing.assert_allclose(other.input, last(gradients.input), **close)
    np.testing.assert_allclose(other.weight, gradients.weight, **close)
    np.testing.assert_allclose(other.bias, gradients.bias, **close)
    np.testing.assert_allclose(getattr(reference, op)(x[1], w, **options), y[1], **close)
    one = getattr(reference, f"{op}_backward")(dy[1], x[1], w, **options)
    np.testing.assert_allclose(one.input, gradients.input[1], **close)
    assert getattr(reference, op)(x[:0], w, **options).shape == (0, *y.shape[1:])


def test_blocks_give_the_same_as_one_product(rng, monkeypatch):
    x, w = rng.standard_normal((3, 4, 9, 8)), rng.standard_normal((6, 4, 3, 3))
    y, dy = reference.conv2d(x, w, padding=1), rng.standard_normal((3, 6, 9, 8))
    dw = reference.conv2d_backward_weight(dy, x, w.shape, padding=1)
    for limit in (1, 10_000, 50_000):  # a row, some rows, some images at a time
        monkeypatch.setattr(reference.conv, "_COLUMN_BYTES", limit)
        np.testing.assert_allclose(reference.conv2d(x, w, padding=1), y, rtol=1e-12, atol=1e-12)
        blocked = reference.conv2d_backward_weight(dy, x, w.shape, padding=1)
        np.testing.assert_allclose(blocked, dw, rtol=1e-12, atol=1e-12)


def test_prologue_epilogue_out_and_accumulate(rng):
    x, w = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((4, 3, 3, 3))
    v = {name: rng.standard_normal(4) for name in ("bias", "scale", "shift")}
    u = {name: rng.standard_normal(3) for name in ("input_scale", "input_shift")}
    gate, residual = rng.random((2, 3)), rng.standard_normal((2, 4, 6, 5))
    read = gate[:, :, None, None] * np.maximum(u["input_scale"][:, None, None] * x + u["input_shift"][:, None, None], 0)
    conv = reference.conv2d(read, w, padding=1)
    z = v["scale"][:, None, None] * (conv + v["bias"][:, None, None]) + v["shift"][:, None, None] + residual
    out = np.empty_like(residual)
    y = reference.conv2d(
        x, w, **v, **u, padding=1, input_activation="relu", input_gate=gate, residual=residual,
        activation=("clip", -1, 1), out=out,
    )  # fmt: skip
    assert y is out
    np.testing.assert_allclose(y, np.clip(z, -1, 1), rtol=1e-12, atol=1e-12)
    into = np.ones(4)
    assert reference.conv2d_backward_bias(y, accumulate=True, out=into) is into
    np.testing.assert_allclose(into, 1 + y.sum((0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", testing.ACTIVATIONS, ids=str)
def test_activation_keeps_dtype(activation, dtype):
    assert reference.activate(np.linspace(-9, 9, 50, dtype=dtype), activation).dtype == dtype


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ValueError, lambda x, w: reference.conv2d(x, w, groups=2)),
        (ValueError, lambda x, w: reference.conv2d(x, w[:, :2])),
        (ValueError, lambda x, w: reference.conv2d(x[0, 0], w)),
        (ValueError, lambda x, w: reference.conv2d(x, w, dilation=5)),
        (ValueError, lambda x, w: reference.conv2d(x, w, padding=7, padding_mode="reflect")),
        (ValueError, lambda x, w: reference.conv2d(x, w, activation="swoosh")),
        (ValueError, lambda x, w: reference.conv_transpose2d(x, np.moveaxis(w, 0, 1), output_padding=1)),
        (ValueError, lambda x, w: reference.conv2d(x, w, out=np.empty((1, 4, 5, 6)))),
        (TypeError, lambda x, w: reference.conv2d(x, w.astype(np.float32))),
        (TypeError, lambda x, w: reference.conv2d(x.astype(int), w.astype(int))),
    ],
)
def test_refuses(error, call):
    with pytest.raises(error):
        call(np.ones((1, 3, 7, 7)), np.ones((4, 3, 3, 3)))


# -------------------------------------------------------------------------------------------------------- PyTorch


@pytest.fixture(scope="module")
def torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    return importlib.import_module("torch")


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transposed", [False, True])
def test_against_torch(rng, torch, rank, mode, transposed):
    if transposed and mode != "zeros":
        pytest.skip("transposed convolution pads with zeros")
    op = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    for stride, dilation, groups, pad in itertools.product((1, 2), (1, 2), (1, 2), (0, 2)):
        x, b = rng.standard_normal((2, 4, 9, 8, 7)[: rank + 2]), rng.standard_normal(6)
        shape = (4, 6 // groups) if transposed else (6, 4 // groups)
        w = rng.standard_normal((*shape, *KERNEL[:rank]))
        options = {"stride": stride, "dilation": dilation, "groups": groups}
        tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
        if transposed:
            options["output_padding"] = max(stride, dilation) - 1
            ty = getattr(torch.nn.functional, op)(tx, tw, tb, padding=pad, **options)
        else:
            padded = torch.nn.functional.pad(tx, [pad] * 2 * rank, mode={"zeros": "constant"}.get(mode, mode))
            ty = getattr(torch.nn.functional, op)(padded, tw, tb, **options)
        dy = rng.standard_normal(ty.shape)
        ty.backward(torch.tensor(dy))
        options["padding"] = pad
        if not transposed:
            options["padding_mode"] = mode
        y = getattr(reference, op)(x, w, b, **options)
        gradients = getattr(reference, f"{op}_backward")(dy, x, w, **options)
        for ours, theirs in zip((y, *gradients), (ty, tx.grad, tw.grad, tb.grad), strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-11, atol=1e-11)


def test_activations_against_torch(torch):
    f = torch.nn.functional
    theirs = {
        "relu": f.relu,
        "relu6": f.relu6,
        "leaky_relu": f.leaky_relu,
        "silu": f.silu,
        "hardswish": f.hardswish,
        "sigmoid": torch.sigmoid,
        "hardsigmoid": f.hardsigmoid,
        "tanh": torch.tanh,
        "gelu": f.gelu,
        "gelu_tanh": lambda t: f.gelu(t, approximate="tanh"),
    }
    x = np.linspace(-9, 9, 1001)
    assert set(theirs) == {a for a in testing.ACTIVATIONS if isinstance(a, str)}
    for name, function in theirs.items():
        expected = function(torch.tensor(x)).numpy()
        np.testing.assert_allclose(reference.activate(x, name), expected, rtol=1e-12, atol=1e-14, err_msg=name)
