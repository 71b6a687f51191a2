"""Arrays of other libraries in the host's memory, in every function: the same bits, memory, order and kind."""

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import functional

from ..frameworks import require

SHAPES = {1: (2, 4, 9), 2: (2, 4, 9, 8), 3: (2, 4, 6, 5, 7)}
FUNCTIONS = [name for name in functional.__all__ if not inspect.isclass(getattr(functional, name))]


def data(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


# ------------------------------------------------------------------------------------------------ a call of each


def _rank(name: str) -> int:
    return next((int(c) for c in name if c.isdigit()), 2)


def _convolution(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rank, transposed = _rank(name), "transpose" in name
    x, w = data(*SHAPES[rank]), data(*((4, 6) if transposed else (6, 4)), *(3,) * rank, seed=1)
    options = {"padding": 1, "stride": 2}
    forward = getattr(functional, name.partition("_backward")[0])
    dy = data(*forward(x, w, **options).shape, seed=2)
    if name.endswith("_backward"):
        return (dy, x, w), options
    if name.endswith("_input"):
        return (dy, w, x.shape), options
    if name.endswith("_weight"):
        return (dy, x, w.shape), options
    if name.endswith("_bias"):
        return (dy,), {}
    more = {"scale": data(6, seed=3), "residual": dy, "activation": "relu", "input_gate": data(2, 4, seed=4)}
    return (x, w, data(6, seed=5)), {**options, **more}


def _pooling(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rank, kind = _rank(name), name.partition("_pool")[0]
    x = data(*SHAPES[rank])
    if name.startswith("max_unpool"):
        y, indices = getattr(functional, f"max_pool{rank}d")(x, 2, return_indices=True)
        return ((x, indices), {}) if name.endswith("_backward") else ((y, indices, 2), {"output_size": x.shape[2:]})
    sizes: dict[str, tuple[Any, ...]] = {"adaptive_avg": (3,), "adaptive_max": (3,), "lp": (2.0, 2)}
    given = sizes.get(kind, () if kind.startswith("global") else (2,))
    options: dict[str, Any] = {"keepdims": False} if kind.startswith("global") else {}
    if not name.endswith("_backward"):
        return (x, *given), {**options, **({"return_indices": True} if kind.endswith("max") and not options else {})}
    dy = data(*getattr(functional, name.removesuffix("_backward"))(x, *given, **options).shape, seed=2)
    rest = given if kind in ("max", "avg", "lp") else ()
    return (dy, x.shape if kind.endswith("avg") else x, *rest), options


def _norm(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, dy, w = data(2, 4, 9, 8), data(2, 4, 9, 8, seed=1), data(4, seed=2)
    plain = name.removesuffix("_backward")
    if plain.startswith("batch_norm"):
        if name.endswith("_backward"):
            return (dy, x, w, data(4, seed=3), np.abs(data(4, seed=4))), {}
        return (x, data(4, seed=3), np.abs(data(4, seed=4)), w, data(4, seed=5)), {}
    given: dict[str, tuple[Any, ...]] = {
        "group_norm": (2, w),
        "layer_norm": ((8,), data(8)),
        "local_response_norm": (3,),
    }
    return ((dy, x) if name.endswith("_backward") else (x,)) + given.get(plain, (w,)), {}


def _layers(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inverted = name.startswith("inverted")
    rank = 2 if inverted else _rank(name)
    taps, ones = (3,) * rank, (1,) * rank
    weights = (data(4, 1, *taps, seed=1), data(6, 4, *ones, seed=2))
    if inverted:
        weights = (data(8, 4, 1, 1), data(8, 1, 3, 3, seed=1), data(6, 8, 1, 1, seed=2))
    x = data(*SHAPES[rank])
    if name.endswith("_backward"):
        dy = data(*getattr(functional, name.removesuffix("_backward"))(x, *weights, padding=1).shape, seed=3)
        return (dy, x, *weights), {"padding": 1}
    squeeze = {"se_reduce_weight": data(2, 8, 1, 1), "se_expand_weight": data(8, 2, 1, 1)} if inverted else {}
    return (x, *weights, data(6)), {"padding": 1, "activation": "relu", **squeeze}


def call_of(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of NumPy for a function; a new function of `functional` must find its family here."""
    if name.startswith("linear"):
        x, w, dy = data(2, 3, 4), data(5, 4, seed=1), data(2, 3, 5, seed=2)
        parts = {"": (x, w, data(5)), "_backward": (dy, x, w), "_backward_input": (dy, w), "_backward_weight": (dy, x)}
        return parts.get(name.removeprefix("linear"), (dy,)), {}
    if name.startswith(("separable", "inverted")):
        return _layers(name)
    if name.startswith("conv"):
        return _convolution(name)
    if "pool" in name:
        return _pooling(name)
    if "norm" in name:
        return _norm(name)
    given: tuple[Any, ...] = (-1.0, 1.0) if name.startswith("clip") else ()
    return (
        data(2, 4, 9),
        *((data(2, 4, 9, seed=1),) if name.endswith("_backward") or name == "add" else ()),
        *given,
    ), {}


# ------------------------------------------------------------------------------------------------ the libraries


class Exporter:
    """An array of a library that is not known: it has __dlpack__, and neither a shape nor indices."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def _torch(a: np.ndarray) -> Any:
    return require("torch").from_numpy(a)


def _jax(a: np.ndarray) -> Any:
    return require("jax").numpy.asarray(a)


KINDS: dict[str, Callable[[np.ndarray], Any]] = {"torch": _torch, "jax": _jax, "dlpack": Exporter}


def kind_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "numpy"
    return next(n for n in ("torch", "jax") if type(value).__module__.startswith(n))


def converted(value: Any, convert: Callable[[np.ndarray], Any]) -> Any:
    """A copy of each array of an argument, of another kind."""
    if isinstance(value, np.ndarray):
        return convert(value.copy())
    return {k: converted(v, convert) for k, v in value.items()} if isinstance(value, dict) else value


def flat(result: Any) -> list[Any]:
    return [r for r in (result if isinstance(result, tuple) else (result,)) if r is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function(name: str, kind: str) -> None:
    operands, options = call_of(name)
    if kind == "jax" and any(isinstance(a, np.ndarray) and a.dtype == np.int64 for a in operands):
        pytest.skip("JAX has no int64 unless jax_enable_x64 is set")
    if kind == "jax" and name in ("batch_norm_train",):
        operands = (operands[0], None, None, *operands[3:])  # immutable: no running statistics
    function = getattr(functional, name)
    theirs = function(*(converted(a, KINDS[kind]) for a in operands), **converted(options, KINDS[kind]))
    ours = function(*(converted(a, np.asarray) for a in operands), **converted(options, np.asarray))
    assert type(theirs) is type(ours) or not isinstance(ours, tuple)
    results = list(zip(flat(theirs), flat(ours), strict=True))
    assert results
    for given, expected in results:
        if not (kind == "jax" and expected.dtype == np.int64):
            assert kind_of(given) == ("numpy" if kind == "dlpack" else kind)
        seen = np.asarray(given)
        assert seen.dtype == expected.dtype
        np.testing.assert_array_equal(seen, expected)
        assert seen.strides == expected.strides or 1 in seen.shape


# ------------------------------------------------------------------------------------------------ memory

X, W = data(2, 4, 9, 8), data(6, 4, 3, 3, seed=1)


def test_channels_last_tensors_stay_so() -> None:
    torch = require("torch")
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    y = fastconv.conv2d(x.to(memory_format=torch.channels_last), w)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert fastconv.conv2d(x, w).is_contiguous()
    # The kernels of that order, not those of NCHW on a copy.
    ours = X.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    last = fastconv.explain("conv2d", x.to(memory_format=torch.channels_last), w).decision
    assert last == fastconv.explain("conv2d", ours, W).decision
    assert last != fastconv.explain("conv2d", x, w).decision


def test_strides_are_read_in_place() -> None:
    torch = require("torch")
    wide = data(4, 8, 9, 8)
    x = torch.from_numpy(wide)[::2, ::2]
    np.testing.assert_array_equal(fastconv.conv2d(x, torch.from_numpy(W)), fastconv.conv2d(wide[::2, ::2], W))


def test_results_are_memory_of_the_output_cache() -> None:
    torch, jax = require("torch"), require("jax")
    for make in (torch.from_numpy, jax.numpy.asarray):
        y = fastconv.conv2d(make(X), make(W))
        fastconv.clear_cache()
        before = fastconv.cache_info()
        kept = np.asarray(y).copy()
        np.testing.assert_array_equal(np.asarray(y), kept)
        del y
        assert fastconv.cache_info() != before  # nothing was copied on the way out: its block has come back


@pytest.mark.parametrize("strided", [False, True])  # a call, and one that takes a detour
@pytest.mark.parametrize("train", [False, True])
def test_running_statistics_that_are_written_are_known_to_be(train: bool, strided: bool) -> None:
    """So autograd refuses a backward pass that has saved what they were before."""
    torch = require("torch")
    x = torch.from_numpy(X.copy())
    if strided:
        x = torch.stack([x, x], -1)[..., 0]
    mean, var = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    fastconv.batch_norm(x, mean, var)
    assert mean._version == var._version == 0
    factor = torch.ones(x.shape[1], requires_grad=True)
    loss = (factor * mean).sum()
    if train:
        fastconv.batch_norm_train(x, mean, var)
    else:
        fastconv.batch_norm(x, mean, var, training=True)
    assert mean.any()
    assert min(mean._version, var._version) > 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_results_do_not_alias_what_they_were_computed_from() -> None:
    torch = require("torch")
    x = torch.from_numpy(X.copy())
    y = fastconv.add(x, torch.zeros_like(x))
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


# ------------------------------------------------------------------------------------------------ out


def test_out_is_written_in_place() -> None:
    torch = require("torch")
    out = torch.empty(2, 6, 7, 6)
    version = out._version
    assert fastconv.conv2d(torch.from_numpy(X), torch.from_numpy(W), out=out) is out
    np.testing.assert_array_equal(out, fastconv.conv2d(X, W))
    assert out._version > version
    # Of another kind than x, too.
    ours = np.empty((2, 6, 7, 6), np.float32)
    assert fastconv.conv2d(torch.from_numpy(X), W, out=ours) is ours
    assert fastconv.conv2d(X, W, out=out) is out
    x = torch.from_numpy(X.copy())
    assert fastconv.relu(x, out=x) is x
    np.testing.assert_array_equal(x, np.maximum(X, 0))
    out = torch.empty(6, 2, 3).permute(1, 2, 0)  # of strides that take a detour
    rows = torch.from_numpy(data(2, 3, 4))
    assert fastconv.linear(rows, torch.from_numpy(W[:, :, 0, 0]), out=out) is out
    np.testing.assert_array_equal(out, fastconv.linear(rows.numpy(), W[:, :, 0, 0]))


def test_gradients_are_added_in_place() -> None:
    torch = require("torch")
    dy = data(2, 6, 7, 6)
    into = {"weight": torch.ones(6, 4, 3, 3), "bias": np.ones(6, np.float32)}
    given = fastconv.conv2d_backward(torch.from_numpy(dy), X, W, needs=("weight", "bias"), accumulate=into)
    assert given.weight is into["weight"]
    assert given.bias is into["bias"]
    np.testing.assert_allclose(given.weight, 1 + fastconv.conv2d_backward_weight(dy, X, W.shape), rtol=1e-6)


def test_overwriting_what_autograd_has_saved_is_seen() -> None:
    torch = require("torch")
    p = torch.ones(2, 4, 9, 8, requires_grad=True)
    q = torch.from_numpy(X.copy())
    loss = (p * q).sum()
    fastconv.relu(q, out=q)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_read_only_arrays_are_no_out() -> None:
    jax = require("jax")
    fixed = np.empty((2, 6, 7, 6), np.float32)
    fixed.flags.writeable = False
    for out in (jax.numpy.zeros((2, 6, 7, 6)), Exporter(fixed)):
        with pytest.raises(ValueError, match=r"out \(read-only\) must be writable"):
            fastconv.conv2d(X, W, out=out)
    free = np.empty((2, 6, 7, 6), np.float32)
    out = Exporter(free)
    assert fastconv.conv2d(Exporter(X), W, out=out) is out
    np.testing.assert_array_equal(free, fastconv.conv2d(X, W))


# ------------------------------------------------------------------------------------------------ mixtures


def test_the_first_array_decides_the_kind() -> None:
    torch = require("torch")
    assert kind_of(fastconv.conv2d(torch.from_numpy(X), W)) == "torch"
    assert kind_of(fastconv.conv2d(X, torch.from_numpy(W))) == "numpy"
    assert kind_of(fastconv.linear(X, torch.from_numpy(data(5, 8)))) == "numpy"
    assert kind_of(fastconv.linear(torch.from_numpy(X), data(5, 8))) == "torch"
    assert kind_of(fastconv.conv2d(Exporter(X), torch.from_numpy(W))) == "numpy"
    dy = data(2, 4, 9, 8)
    for first, second in ((torch.from_numpy(dy), X), (dy, torch.from_numpy(X))):
        expected = "torch" if first is not dy else "numpy"
        assert kind_of(fastconv.local_response_norm_backward(first, second, 3)) == expected
        for gradient in fastconv.conv2d_backward(first, second, data(4, 4, 1, 1)):
            assert kind_of(gradient) == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: fastconv.conv2d(x, w),
        lambda x, w: fastconv.linear(x, w[0, 0]),
        lambda x, w: fastconv.conv2d_backward(x, x, w),
        lambda x, w: fastconv.add(x, w),
        lambda x, w: fastconv.max_pool2d(x, 2, out=w),
    ],
)
def test_two_libraries_do_not_mix(call: Callable[[Any, Any], Any]) -> None:
    torch, jax = require("torch"), require("jax")
    with pytest.raises(TypeError, match=r"\(a jax.Array\) must be of the library of \w+, which is a torch.Tensor"):
        call(torch.from_numpy(X), jax.numpy.asarray(W))


# ------------------------------------------------------------------------------------------------ refusals


def refused(call: Callable[[], Any], error: type[Exception], *fragments: str) -> None:
    with pytest.raises(error) as caught:
        call()
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_errors_are_those_of_numpy_arrays() -> None:
    torch = require("torch")
    for bad in ((X[:, :3], W), (X[0, 0], W), (X, W.astype(np.float64)), (X.astype(np.int32), W)):
        with pytest.raises((TypeError, ValueError)) as ours:
            fastconv.conv2d(*bad)
        refused(lambda bad=bad: fastconv.conv2d(*map(torch.from_numpy, bad)), type(ours.value), str(ours.value))
    with pytest.raises(ValueError, match="weight") as ours:
        fastconv.linear(X, W[:, :, 0, 0])
    refused(lambda: fastconv.linear(*map(torch.from_numpy, (X, W[:, :, 0, 0]))), ValueError, str(ours.value))


def test_tensors_that_require_grad() -> None:
    torch = require("torch")
    x, w = torch.from_numpy(X), torch.nn.Parameter(torch.from_numpy(W))
    refused(lambda: fastconv.conv2d(x, w), TypeError, "weight (a tensor that requires grad) must be detached")
    refused(lambda: fastconv.linear(x, w[:, 0, 0]), TypeError, "weight (a tensor that requires grad)")
    refused(lambda: fastconv.conv2d_backward(x, x, w), TypeError, "weight (a tensor that requires grad)")
    refused(lambda: fastconv.plan("conv2d", x, w), TypeError, "weight (a tensor that requires grad)")
    with torch.no_grad():
        y = fastconv.conv2d(x, w)
    assert type(y) is torch.Tensor
    assert not y.requires_grad
    np.testing.assert_array_equal(y, fastconv.conv2d(X, W))


def test_dtypes_that_no_kernel_of_the_host_has() -> None:
    torch, jax = require("torch"), require("jax")
    half, ours = torch.from_numpy(X).bfloat16(), jax.numpy.asarray(X).astype("bfloat16")
    for x in (half, ours, np.asarray(ours)):
        refused(lambda x=x: fastconv.conv2d(x, W), TypeError, "x (dtype bfloat16) must have dtype float32 or float64")
        refused(lambda x=x: fastconv.max_pool2d(x, 2), TypeError, "x (dtype bfloat16) must have dtype")
    eight = torch.from_numpy(X).to(torch.float8_e4m3fn)
    refused(lambda: fastconv.conv2d(eight, W), TypeError, "x (dtype float8_e4m3fn, layout strided) must be")


def test_what_has_no_elements_to_read() -> None:
    torch, jax = require("torch"), require("jax")
    refused(lambda: fastconv.relu(torch.empty(2, device="meta")), TypeError, "x (on meta) must be in the host's")
    refused(lambda: fastconv.relu(torch.eye(2).to_sparse()), TypeError, "layout sparse_coo) must be a dense tensor")
    refused(lambda: jax.jit(fastconv.relu)(X), TypeError, "x (of type", "traced by JAX")
    gone = jax.numpy.ones(3)
    gone.delete()
    refused(lambda: fastconv.relu(gone), TypeError, "cannot be read where it lies")
    refused(lambda: torch.func.vmap(fastconv.relu)(torch.ones(2, 3)), TypeError, "x (")


# ------------------------------------------------------------------------------------------------ plans


def test_plans_take_them() -> None:
    torch, jax = require("torch"), require("jax")
    b = data(6)
    expected = fastconv.conv2d(X, W, b, padding=1)
    for make in (torch.from_numpy, jax.numpy.asarray, Exporter):
        plan = fastconv.plan("conv2d", make(X), make(W), make(b), padding=1)
        np.testing.assert_array_equal(plan(X), expected)
        y = plan(make(X))
        assert kind_of(y) == ("numpy" if make is Exporter else kind_of(make(X)))
        np.testing.assert_array_equal(np.asarray(y), expected)
    out = torch.empty(expected.shape)
    assert plan(torch.from_numpy(X), out=out) is out
    refused(lambda: plan(torch.from_numpy(X[:, :, :5])), ValueError, "x (shape (2, 4, 5, 8))")
    dense = fastconv.plan("linear", X.shape, torch.from_numpy(data(5, 8)))
    np.testing.assert_array_equal(dense(torch.from_numpy(X)), fastconv.linear(X, data(5, 8)))
    pair = (data(4, 1, 3, 3), data(6, 4, 1, 1))
    separable = fastconv.plan("separable_conv2d", X, *map(torch.from_numpy, pair))
    np.testing.assert_array_equal(separable(torch.from_numpy(X)), fastconv.separable_conv2d(X, *pair))


def test_networks_take_them() -> None:
    torch = require("torch")
    from fastconv import nn

    net = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 3)
    )
    for mode in (net.train, net.eval):
        mode()
        expected, y = net(X), net(torch.from_numpy(X))
        assert type(y) is torch.Tensor
        np.testing.assert_array_equal(y, expected)
    refused(lambda: net(torch.from_numpy(X).requires_grad_()), TypeError, "x (a tensor that requires grad)")
    refused(lambda: nn.Flatten()(torch.from_numpy(X).requires_grad_()), TypeError, "x (a tensor that requires grad)")


def test_nothing_is_imported_for_them() -> None:
    import subprocess
    import sys

    # What is installed is not loaded by `import fastconv`, nor by its calls.
    program = (
        "import sys, numpy, fastconv, fastconv.nn; fastconv.relu(numpy.ones(3, 'f4'));"
        "print([m for m in ('torch', 'jax', 'onnx', 'cupy', 'keras') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_missing_framework_is_skipped_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "no_such_framework"
    assert importlib.util.find_spec(name) is None
    monkeypatch.delenv("FASTCONV_CI_FRAMEWORKS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"needs {name}"):
        require(name)
    monkeypatch.setenv("FASTCONV_CI_FRAMEWORKS", f"torch,{name}")
    with pytest.raises(pytest.fail.Exception, match="FASTCONV_CI_FRAMEWORKS lists it"):
        require(name)
