"""Every op of `functional` on devices, by dtype and layout, against the reference in float64.

One small call an op and gradient: the families' own files have the edges. On a GPU (`pytest -m gpu`) and, by the same
bodies, on the kernels' host build. An op that has no case here fails the first test.
"""

import numpy as np
import pytest

from fastconv import cuda, functional, reference

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
LAYOUTS = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}
SIZES = {1: (11,), 2: (7, 6), 3: (4, 5, 6)}
EVEN = {1: (10,), 2: (8, 6), 3: (4, 6, 6)}
LAST = pytest.mark.parametrize("last", [False, True], ids=["NCHW", "NHWC"])
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES)


class Draw:
    """Random operands: on the device, and what they hold there in float64."""

    def __init__(self, rng, dtype, last):
        self.rng, self.dtype, self.last = rng, dtype, last

    def __call__(self, *shape, positive=False):
        values = self.rng.standard_normal(shape)
        d = cuda.to_device(np.abs(values) + 0.25 if positive else values, dtype=self.dtype)
        return d, cuda.to_host(d).astype(np.float64)

    def image(self, rank, channels, size=None, batch=2):
        size = SIZES[rank] if size is None else size
        return self(batch, *size, channels) if self.last else self(batch, channels, *size)


def both(name, *operands, **options):
    """The call on the device and the reference's on what the operands hold."""

    def pick(value, i):
        return value[i] if isinstance(value, tuple) and len(value) == 2 and hasattr(value[0], "pointer") else value

    ours, exact = (
        getattr(module, name)(*(pick(v, i) for v in operands), **{k: pick(v, i) for k, v in options.items()})
        for i, module in ((0, functional), (1, reference))
    )
    return ours, exact


def parts_of(value):
    return [v for v in value if v is not None] if isinstance(value, tuple) else [value]


def assert_close(result, dtype, roundings=24.0):
    """Each result rounded once to the dtype, after some roundings of its accumulator at the size of the largest."""
    for ours, exact in zip(*map(parts_of, result), strict=True):
        y = cuda.to_host(ours)
        assert y.shape == exact.shape
        if exact.dtype.kind in "iu":
            np.testing.assert_array_equal(y, exact)
            continue
        wide = EPS["float64" if dtype == "float64" else "float32"]
        most = np.abs(exact[np.isfinite(exact)]).max(initial=1.0)
        bound = 0.51 * EPS[dtype] * np.abs(exact) + roundings * wide * most + 2.0**-24 * (dtype == "float16")
        wrong = ~(np.abs(y.astype(np.float64) - exact) <= bound)
        assert not wrong.any(), (y[wrong][:4], exact[wrong][:4])


# What each test calls, by the names of `functional`.
CASES = {
    "conv": [
        f"{kind}{rank}d{suffix}"
        for kind in ("conv", "conv_transpose")
        for rank in (1, 2, 3)
        for suffix in ("", "_backward", "_backward_input", "_backward_weight", "_backward_bias")
    ],
    "linear": [f"linear{s}" for s in ("", "_backward", "_backward_input", "_backward_weight", "_backward_bias")],
    "layers": [
        f"{name}{s}"
        for name in ("separable_conv1d", "separable_conv2d", "inverted_residual")
        for s in ("", "_backward")
    ],
    "pool": [
        f"{kind}_pool{rank}d{suffix}"
        for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg", "global_max", "global_avg")
        for rank in (1, 2, 3)
        for suffix in ("", "_backward")
    ],
    "unpool": [f"max_unpool{rank}d{suffix}" for rank in (1, 2, 3) for suffix in ("", "_backward")],
    "norm": [
        f"{kind}{suffix}"
        for kind in ("group_norm", "instance_norm", "layer_norm", "layer_norm_channels", "local_response_norm")
        for suffix in ("", "_backward")
    ],
    "batch_norm": ["batch_norm", "batch_norm_train", "batch_norm_backward"],
    "softmax": [f"{kind}{suffix}" for kind in ("softmax", "log_softmax") for suffix in ("", "_backward")],
    "elementwise": [
        f"{name}{suffix}"
        for name in (
            "relu",
            "relu6",
            "leaky_relu",
            "silu",
            "hardswish",
            "sigmoid",
            "hardsigmoid",
            "tanh",
            "gelu",
            "clip",
        )
        for suffix in ("", "_backward")
    ],
    "add": ["add"],
}


def test_every_op_has_a_case():
    named = {name for names in CASES.values() for name in names}
    ops = {name for name in functional.__all__ if name[0].islower()}
    assert ops - named == set(), "not tested on devices"
    # A rule that makes a name which the library lacks tests nothing by it.
    assert {n for n in named - ops if hasattr(reference, n)} == set()


@ALL_DTYPES
@LAST
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["dense", "depthwise", "grouped", "transposed"])
def test_convolution(device, kind, rank, last, dtype, rng):
    draw = Draw(rng, dtype, last)
    channels, outputs, groups = {"depthwise": (16, 16, 16), "grouped": (6, 9, 3)}.get(kind, (6, 10, 1))
    name = f"conv_transpose{rank}d" if kind == "transposed" else f"conv{rank}d"
    options = {"stride": 2 if kind != "depthwise" else 1, "padding": 1, "groups": groups, "layout": LAYOUTS[rank][last]}
    x = draw.image(rank, channels)
    pair = (channels, outputs // groups) if kind == "transposed" else (outputs, channels // groups)
    w, b = draw(*pair, *(3,) * rank), draw(outputs)
    y = both(name, x, w, b, **options)
    assert_close(y, dtype)
    dy = draw(*y[1].shape)
    assert_close(both(f"{name}_backward", dy, x, w, **options), dtype)
    assert_close(both(f"{name}_backward_input", dy, w, x[1].shape, **options), dtype)
    assert_close(both(f"{name}_backward_weight", dy, x, w[1].shape, **options), dtype)
    assert_close(both(f"{name}_backward_bias", dy, layout=options["layout"]), dtype)


@ALL_DTYPES
def test_linear(device, dtype, rng):
    draw = Draw(rng, dtype, False)
    x, w, b, dy = draw(5, 9), draw(11, 9), draw(11), draw(5, 11)
    assert_close(both("linear", x, w, b), dtype)
    assert_close(both("linear_backward", dy, x, w), dtype)
    assert_close(both("linear_backward_input", dy, w), dtype)
    assert_close(both("linear_backward_weight", dy, x), dtype)
    assert_close(both("linear_backward_bias", dy), dtype)


@ALL_DTYPES
@LAST
def test_layers_of_several_stages(device, last, dtype, rng):
    draw = Draw(rng, dtype, last)
    # What lies between the stages is rounded to the dtype.
    loose = 24 * EPS[dtype] / EPS["float64" if dtype == "float64" else "float32"]
    for rank in (1, 2):
        x, u, p = draw.image(rank, 8), draw(8, 1, *(3,) * rank), draw(9, 8, *(1,) * rank)
        options = {"padding": 1, "layout": LAYOUTS[rank][last]}
        y = both(f"separable_conv{rank}d", x, u, p, **options)
        assert_close(y, dtype, loose)
        assert_close(both(f"separable_conv{rank}d_backward", draw(*y[1].shape), x, u, p, **options), dtype, loose)
    x = draw.image(2, 8)
    weights = {"expand_weight": draw(16, 8, 1, 1), "depthwise_weight": draw(16, 1, 3, 3)}
    weights["project_weight"] = draw(8, 16, 1, 1)
    result = both("inverted_residual", x, residual=x, padding=1, layout=LAYOUTS[2][last], **weights)
    assert_close(result, dtype, 8 * loose)
    dy = draw(*result[1].shape)
    gradients = both("inverted_residual_backward", dy, x, *weights.values(), padding=1, layout=LAYOUTS[2][last])
    assert_close(gradients, dtype, 8 * loose)


@ALL_DTYPES
@LAST
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pooling(device, rank, last, dtype, rng):
    draw = Draw(rng, dtype, last)
    options = {"layout": LAYOUTS[rank][last]}
    x = draw.image(rank, 8)
    for name, arguments in (
        ("max_pool", (3,)),
        ("avg_pool", (3,)),
        ("lp_pool", (2.0, 3)),
        ("adaptive_max_pool", (2,)),
        ("adaptive_avg_pool", (2,)),
        ("global_max_pool", ()),
        ("global_avg_pool", ()),
    ):
        op = f"{name}{rank}d"
        more = {"stride": 2} if arguments and not name.startswith("adaptive") else {}
        of = draw.image(rank, 8) if name != "lp_pool" else (lambda d: d)(draw(*x[1].shape, positive=True))
        y = both(op, of, *arguments, **more, **options)
        assert_close(y, dtype)
        if not hasattr(functional, f"{op}_backward"):
            continue
        dy = draw(*y[1].shape)
        shaped = of[1].shape if name.endswith("avg_pool") else of
        extra = () if name.startswith(("adaptive", "global")) else arguments
        assert_close(both(f"{op}_backward", dy, shaped, *extra, **more, **options), dtype)


@ALL_DTYPES
@LAST
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling(device, rank, last, dtype, rng):
    draw = Draw(rng, dtype, last)
    x, layout = draw.image(rank, 8, EVEN[rank]), LAYOUTS[rank][last]
    (y, indices), (exact, places) = both(f"max_pool{rank}d", x, 2, return_indices=True, layout=layout)
    assert_close(((y, indices), (exact, places)), dtype)
    pair = (indices, places)
    up = both(f"max_unpool{rank}d", (y, cuda.to_host(y).astype(np.float64)), pair, 2, layout=layout)
    assert_close(up, dtype)
    assert_close(both(f"max_unpool{rank}d_backward", draw(*up[1].shape), pair, layout=layout), dtype)


@ALL_DTYPES
@LAST
def test_norms(device, last, dtype, rng):
    draw = Draw(rng, dtype, last)
    for rank in (1, 2, 3):
        options = {"layout": LAYOUTS[rank][last]}
        x, w, b = draw.image(rank, 8), draw(8), draw(8)
        dy = draw(*x[1].shape)
        for name, extra in (("group_norm", (2,)), ("instance_norm", ()), ("layer_norm_channels", ())):
            assert_close(both(name, x, *extra, w, b, **options), dtype, 64)
            assert_close(both(f"{name}_backward", dy, x, *extra, w, **options), dtype, 256)
        assert_close(both("local_response_norm", x, 3, **options), dtype, 64)
        assert_close(both("local_response_norm_backward", dy, x, 3, **options), dtype, 64)
    x, dy, w = draw(6, 10), draw(6, 10), draw(10)
    assert_close(both("layer_norm", x, 10, w), dtype, 64)
    assert_close(both("layer_norm_backward", dy, x, 10, w), dtype, 256)


@ALL_DTYPES
@LAST
def test_batch_norm(device, last, dtype, rng):
    draw = Draw(rng, dtype, last)
    for rank in (1, 2, 3):
        options = {"layout": LAYOUTS[rank][last]}
        x, w, b, mean, var = draw.image(rank, 8), draw(8), draw(8), draw(8), draw(8, positive=True)
        assert_close(both("batch_norm", x, mean, var, w, b, activation="relu", **options), dtype, 64)
        ours, exact = both("batch_norm_train", x, None, None, w, b, **options)
        assert_close((ours, exact), dtype, 64)
        # The gradient is given what the forward pass left, rounded as it is.
        given = [(a, cuda.to_host(a).astype(np.float64)) for a in (ours.mean, ours.inv_std)]
        dy = draw(*x[1].shape)
        assert_close(
            both("batch_norm_backward", dy, x, w, *given, **options), dtype, 256 * max(1, EPS[dtype] * 2.0**20)
        )


@ALL_DTYPES
@LAST
def test_softmax(device, last, dtype, rng):
    draw = Draw(rng, dtype, last)
    for name in ("softmax", "log_softmax"):
        x = draw.image(2, 9)
        for axis in (1, -1):
            y = both(name, x, axis)
            assert_close(y, dtype)
            at = (y[0], cuda.to_host(y[0]).astype(np.float64))
            assert_close(both(f"{name}_backward", draw(*x[1].shape), at, axis), dtype, 64)


@ALL_DTYPES
@LAST
def test_elementwise(device, last, dtype, rng):
    draw = Draw(rng, dtype, last)
    x, dy = draw.image(2, 5), draw.image(2, 5)
    for name in dict.fromkeys(n.removesuffix("_backward") for n in CASES["elementwise"]):
        extra = (-0.5, 1.25) if name == "clip" else ()
        y = both(name, x, *extra)
        assert_close(y, dtype)
        at = (y[0], cuda.to_host(y[0]).astype(np.float64)) if name in ("sigmoid", "tanh") else x
        assert_close(both(f"{name}_backward", dy, at, *extra), dtype)
    assert_close(both("add", x, dy, activation="relu"), dtype)


def test_a_call_in_a_graph(device):
    torch = pytest.importorskip("torch")
    if "host" in device.build_info()["architectures"] or not torch.cuda.is_available():
        pytest.skip("needs PyTorch with a CUDA device")
    x = torch.randn(2, 8, 9, 9, device="cuda")
    w = torch.randn(8, 1, 3, 3, device="cuda")
    calls = (
        lambda: functional.conv2d_backward(x, x, w, padding=1, groups=8).weight,
        lambda: functional.batch_norm(x, None, None, training=True),
        lambda: functional.max_pool2d(x, 3, stride=2, padding=1),
    )
    for call in calls:
        expected = call().clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(result, expected)
