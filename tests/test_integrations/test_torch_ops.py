"""PyTorch operators: values, memory orders, gradients of two orders, `opcheck`, `torch.compile`, vmap, autocast."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from ..frameworks import require

torch = require("torch")
F = torch.nn.functional

from fastconv.integrations.torch import _register, ops  # noqa: E402, after the skip


class Case(NamedTuple):
    """A function of `ops`, what it is called with, and whether PyTorch has one of that name."""

    name: str
    shapes: tuple[tuple[int, ...] | None, ...]
    options: dict[str, Any] = {}  # noqa: RUF012, a tuple's
    expected: Callable[..., Any] | None = None

    def __str__(self) -> str:
        words = "-".join(f"{k}={v}" for k, v in self.options.items()).replace(" ", "")
        return f"{self.name}-{'x'.join(map(str, self.shapes[0] or ()))}-{words}"

    def tensors(self, dtype: Any = None, seed: int = 0, channels_last: bool = False) -> list[Any]:
        rng = np.random.default_rng(seed)
        made = [
            None if shape is None else torch.from_numpy(rng.standard_normal(shape)).to(dtype or torch.float64)
            for shape in self.shapes
        ]
        if channels_last:
            made[0] = lasted(made[0])
        if "lp_pool" in self.name:
            made[0] = made[0].abs() + 0.1
        return made

    def __call__(self, *tensors: Any) -> Any:
        return getattr(ops, self.name)(*tensors, **self.options)

    def reference(self, *tensors: Any) -> Any:
        return (self.expected or getattr(F, self.name))(*tensors, **self.options)


def lasted(x: Any) -> Any:
    """The same numbers, the channels innermost in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def separable(x: Any, dw: Any, pw: Any, b: Any = None, *, depthwise_bias: Any = None, **options: Any) -> Any:
    rank = dw.dim() - 2
    conv = getattr(F, f"conv{rank}d")
    return conv(conv(x, dw, depthwise_bias, groups=x.shape[1], **options), pw, b)


def separable_biased(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, dw, pw, b, d, **options: function(x, dw, pw, b, depthwise_bias=d, **options)


def padded(rank: int, mode: str) -> Callable[..., Any]:
    def reference(x: Any, w: Any, b: Any, padding: int, padding_mode: str) -> Any:
        return getattr(F, f"conv{rank}d")(F.pad(x, (padding,) * 2 * rank, mode=mode), w, b)

    return reference


def uneven(x: Any, w: Any, b: Any, padding: Any) -> Any:
    (top, bottom), (left, right) = padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, b)


def same(x: Any, w: Any, b: Any, stride: int, padding: str) -> Any:
    sides: list[int] = []
    for size, r in zip(x.shape[:1:-1], w.shape[:1:-1], strict=True):
        total = max((-(-size // stride) - 1) * stride + r - size, 0)
        sides += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, sides), w, b, stride=stride)


X1, X2, X3 = (2, 4, 9), (2, 4, 7, 6), (2, 4, 5, 4, 6)
CASES = [
    Case("conv1d", (X1, (6, 4, 3), (6,)), {"stride": 2, "padding": 1}),
    Case("conv1d", ((4, 9), (6, 2, 3), None), {"groups": 2, "dilation": 2}),
    Case("conv2d", (X2, (6, 4, 3, 3), (6,)), {"stride": (2, 1), "padding": (1, 0)}),
    Case("conv2d", (X2, (4, 1, 3, 3), (4,)), {"groups": 4, "padding": 1}),
    Case("conv2d", (X2, (6, 4, 3, 5), None), {"padding": "same"}),
    Case("conv2d", (X2, (6, 4, 2, 4), None), {"padding": "same", "stride": 1}, same),
    Case("conv2d", (X2, (6, 4, 3, 2), (6,)), {"padding": "same", "stride": 2}, same),
    Case("conv2d", (X2, (6, 4, 3, 2), (6,)), {"padding": ((1, 0), (2, 1))}, uneven),
    Case("conv2d", (X2, (6, 4, 1, 1), (6,))),
    Case("conv2d", ((4, 7, 6), (6, 4, 3, 3), (6,)), {"dilation": 2}),
    *(
        Case("conv2d", (X2, (6, 4, 3, 3), (6,)), {"padding": 1, "padding_mode": mode}, padded(2, mode))
        for mode in ("reflect", "replicate", "circular")
    ),
    Case("conv3d", (X3, (6, 4, 3, 2, 3), (6,)), {"padding": 1, "stride": (1, 2, 1)}),
    Case("conv_transpose1d", (X1, (4, 3, 3), (6,)), {"stride": 2, "output_padding": 1, "groups": 2}),
    Case("conv_transpose2d", (X2, (4, 6, 3, 3), (6,)), {"stride": 2, "padding": 1, "output_padding": (1, 0)}),
    Case("conv_transpose2d", ((4, 7, 6), (4, 6, 3, 3), None), {"dilation": 2}),
    Case("conv_transpose3d", (X3, (4, 6, 2, 3, 2), (6,)), {"stride": (1, 2, 2)}),
    Case("separable_conv1d", (X1, (4, 1, 3), (6, 4, 1), (6,)), {"padding": 1}, separable),
    Case("separable_conv2d", (X2, (4, 1, 3, 3), (6, 4, 1, 1), (6,)), {"stride": 2, "padding": 1}, separable),
    Case("separable_conv2d", (X2, (8, 1, 3, 3), (6, 8, 1, 1), None), {}, separable),
    Case("max_pool1d", (X1,), {"kernel_size": 3, "padding": 1}),
    Case("max_pool2d", (X2,), {"kernel_size": 3, "stride": 2, "padding": 1}),
    Case("max_pool2d", (X2,), {"kernel_size": (2, 3), "stride": 2, "dilation": (1, 2), "ceil_mode": True}),
    Case("max_pool2d", ((4, 7, 6),), {"kernel_size": 2, "return_indices": True}),
    Case("max_pool3d", (X3,), {"kernel_size": 2, "stride": (1, 2, 2), "return_indices": True}),
    Case("avg_pool1d", (X1,), {"kernel_size": 2}),
    Case("avg_pool2d", (X2,), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    Case("avg_pool2d", (X2,), {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
    Case("avg_pool2d", ((4, 7, 6),), {"kernel_size": (3, 2), "divisor_override": 5}),
    Case("avg_pool3d", (X3,), {"kernel_size": 2}),
    Case("adaptive_avg_pool1d", (X1,), {"output_size": 4}),
    Case("adaptive_avg_pool2d", (X2,), {"output_size": (3, None)}),
    Case("adaptive_avg_pool3d", (X3,), {"output_size": 1}),
    Case("adaptive_max_pool1d", (X1,), {"output_size": 4}),
    Case("adaptive_max_pool2d", (X2,), {"output_size": (3, 2), "return_indices": True}),
    Case("adaptive_max_pool3d", ((4, 5, 4, 6),), {"output_size": (2, None, 3)}),
    Case("lp_pool1d", (X1,), {"norm_type": 3, "kernel_size": 3}),
    Case("lp_pool2d", (X2,), {"norm_type": 2.0, "kernel_size": 2, "stride": 3, "ceil_mode": True}),
    Case("lp_pool3d", (X3,), {"norm_type": 1, "kernel_size": 2}),
]
NORMS = [(2, 4), (2, 4, 9), (2, 4, 7, 6), (2, 4, 3, 4, 5)]


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def close(ours: Any, theirs: Any) -> None:
    assert len(parts(ours)) == len(parts(theirs))
    for a, b in zip(parts(ours), parts(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, check_stride=False)


def leaves(tensors: list[Any]) -> list[Any]:
    return [None if t is None else t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]


def test_every_function_has_a_case() -> None:
    assert {case.name for case in CASES} | {"batch_norm"} == set(ops.__all__)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(case: Case) -> None:
    for channels_last in (False, True):
        if channels_last and len(case.shapes[0] or ()) < 3:
            continue
        ours, theirs = (leaves(case.tensors(channels_last=channels_last)) for _ in range(2))
        y, expected = case(*ours), case.reference(*theirs)
        close(y, expected)
        dy = torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(parts(y)[0].shape)))
        for result in (y, expected):
            parts(result)[0].backward(dy)
        for a, b in zip(ours, theirs, strict=True):
            if a is not None:
                close(a.grad, b.grad)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case: Case) -> None:
    given = [t for t in case.tensors() if t is not None]
    present = [t is not None for t in case.shapes]

    def call(*tensors: Any) -> Any:
        rest = iter(tensors)
        return parts(case(*(next(rest) if p else None for p in present)))[0]

    tensors = leaves(given)
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


def test_separable_with_a_bias_in_the_middle() -> None:
    case = Case("separable_conv2d", (X2, (4, 1, 3, 3), (6, 4, 1, 1), (6,), (4,)), {"padding": 1})
    ours, theirs = (leaves(case.tensors()) for _ in range(2))
    y = separable_biased(ops.separable_conv2d)(*ours, padding=1)
    expected = separable_biased(separable)(*theirs, padding=1)
    close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        close(a.grad, b.grad)
    assert torch.autograd.gradgradcheck(separable_biased(ops.separable_conv2d), leaves(case.tensors()), fast_mode=True)


# ------------------------------------------------------------------------------------------------ batch norm


def norm_tensors(shape: tuple[int, ...]) -> list[Any]:
    x, w, b = Case("", (shape, (4,), (4,))).tensors()
    return [x, torch.linspace(-1, 1, 4, dtype=x.dtype), torch.linspace(0.5, 2, 4, dtype=x.dtype), w, b]


@pytest.mark.parametrize("shape", NORMS, ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm(shape: tuple[int, ...], training: bool, affine: bool) -> None:
    for order in (lambda x: x, lasted, lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)):
        results = []
        for function in (ops.batch_norm, F.batch_norm):
            x, mean, var, w, b = norm_tensors(shape)
            x, w, b = leaves([order(x), w, b])
            y = function(x, mean, var, *((w, b) if affine else ()), training=training, momentum=0.3, eps=1e-3)
            (y * y.detach().cos()).sum().backward()
            results.append((y, mean, var, x.grad, *((w.grad, b.grad) if affine else ())))
        close(*results)
    x, mean, var, w, b = norm_tensors(shape)
    vectors = (w, b) if affine else ()

    def call(x: Any, *vectors: Any) -> Any:
        return ops.batch_norm(x, mean.clone(), var.clone(), *vectors, training=training)

    assert torch.autograd.gradcheck(call, leaves([x, *vectors]), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves([x, *vectors]), fast_mode=True)


def test_batch_norm_without_running_statistics() -> None:
    x, _, _, w, b = norm_tensors(X2)
    close(ops.batch_norm(x, None, None, w, b, True), F.batch_norm(x, None, None, w, b, True))
    with pytest.raises(ValueError, match="running_mean and running_var"):
        ops.batch_norm(x, None, None, w, b)


# ------------------------------------------------------------------------------------------------ what PyTorch checks


def calls() -> Iterator[tuple[str, Callable[[], tuple[Any, tuple[Any, ...]]]]]:
    """Every operator with arguments: (name, what makes them)."""
    o = torch.ops.fastconv

    def r(*shape: int, seed: int = 0, grad: bool = True) -> Any:
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
        return x.requires_grad_() if grad else x

    two, one, pool = [1, 1], [1], ([3, 3], [2, 2], [1, 1], [1, 1], True)
    conv = ([2, 1], [1, 0], two, 2, "zeros")
    yield "conv", lambda: (o.conv, (r(2, 4, 7, 6), r(6, 2, 3, 3, seed=1), r(6, seed=2), *conv))
    yield "conv", lambda: (o.conv, (lasted(r(2, 4, 7, 6)), r(6, 4, 3, 3), None, two, [1, 0, 2, 1], two, 1, "reflect"))
    yield "conv", lambda: (o.conv, (r(4, 7, grad=False), r(6, 4, 3), None, one, one, one, 1, "circular"))
    dy = lambda: r(2, 6, 4, 4, seed=3)  # noqa: E731
    yield (
        "conv_backward",
        lambda: (
            o.conv_backward,
            (dy(), r(2, 4, 7, 6), r(6, 2, 3, 3, seed=1), *conv, [True, True, True]),
        ),
    )
    yield (
        "conv_backward",
        lambda: (
            o.conv_backward,
            (lasted(dy()), r(2, 4, 7, 6), r(6, 2, 3, 3, seed=1), *conv, [False, True, False]),
        ),
    )
    transpose = ([2, 2], [1, 1], [1, 0], 1, two)
    yield "conv_transpose", lambda: (o.conv_transpose, (r(2, 4, 5, 6), r(4, 6, 3, 3), r(6), *transpose))
    yield (
        "conv_transpose_backward",
        lambda: (
            o.conv_transpose_backward,
            (r(2, 6, 10, 11), r(2, 4, 5, 6), r(4, 6, 3, 3), *transpose, [True, True, False]),
        ),
    )
    yield (
        "separable_conv",
        lambda: (
            o.separable_conv,
            (r(2, 4, 7, 6), r(4, 1, 3, 3), r(4), r(6, 4, 1, 1), r(6), two, two, two, "zeros"),
        ),
    )
    for x in (lambda: r(2, 4, 7, 6), lambda: lasted(r(2, 4, 7, 6)), lambda: r(4, 7, 6)):
        yield "max_pool", lambda x=x: (o.max_pool, (x(), *pool))
        yield "max_pool_with_indices", lambda x=x: (o.max_pool_with_indices, (x(), *pool))
        yield "avg_pool", lambda x=x: (o.avg_pool, (x(), *pool[:3], True, False, None))
        yield "adaptive_avg_pool", lambda x=x: (o.adaptive_avg_pool, (x(), [3, 2]))
        yield "adaptive_max_pool", lambda x=x: (o.adaptive_max_pool, (x(), [3, 2]))
    x, shape = (lambda: r(2, 4, 7, 6, grad=False)), [2, 4, 7, 6]
    yield "max_pool_backward", lambda: (o.max_pool_backward, (r(2, 4, 4, 4), x(), *pool))

    def by_indices() -> tuple[Any, ...]:
        y, indices = o.max_pool_with_indices(x(), *pool)
        return o.max_pool_with_indices_backward, (r(*y.shape), indices, shape, *pool)

    def by_adaptive_indices() -> tuple[Any, ...]:
        y, indices = o.adaptive_max_pool(x(), [3, 2])
        return o.adaptive_max_pool_backward, (r(*y.shape), indices, shape, 2)

    yield "max_pool_with_indices_backward", by_indices
    yield "adaptive_max_pool_backward", by_adaptive_indices
    yield "avg_pool_backward", lambda: (o.avg_pool_backward, (r(2, 4, 4, 4), shape, *pool[:3], True, True, None))
    yield "adaptive_avg_pool_backward", lambda: (o.adaptive_avg_pool_backward, (r(2, 4, 3, 2), shape, 2))
    positive = lambda: (x().abs() + 0.1).requires_grad_()  # noqa: E731
    yield "lp_pool", lambda: (o.lp_pool, (positive(), 2.0, [2, 2], [2, 2], False))
    yield (
        "lp_pool_backward",
        lambda: (
            o.lp_pool_backward,
            (r(2, 4, 3, 3, grad=False), positive().detach(), 2.0, [2, 2], [2, 2], False),
        ),
    )
    vector = lambda seed=0: r(4, seed=seed)  # noqa: E731
    positive_vector = lambda: r(4, grad=False).abs() + 0.1  # noqa: E731
    for x4 in (lambda: r(2, 4, 7, 6), lambda: lasted(r(2, 4, 7, 6)), lambda: r(2, 4, 7, 6).transpose(2, 3)):
        yield (
            "batch_norm",
            lambda x4=x4: (
                o.batch_norm,
                (x4(), r(4, grad=False), positive_vector(), vector(1), vector(2), 1e-5),
            ),
        )
        yield "batch_norm_train", lambda x4=x4: (o.batch_norm_train, (x4(), vector(1), None, 1e-5))
        yield (
            "batch_norm_backward",
            lambda x4=x4: (
                o.batch_norm_backward,
                (
                    r(*x4().shape, grad=False),
                    x4().detach(),
                    vector(1).detach(),
                    r(4, grad=False),
                    positive_vector(),
                    True,
                    [True, True, True],
                ),
            ),
        )


CALLS = list(calls())


def test_every_operator_is_checked() -> None:
    defined = {name.partition("::")[2].partition(".")[0] for name in _register.library._op_defs}
    assert {name for name, _ in CALLS} == defined


@pytest.mark.parametrize(("name", "make"), CALLS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CALLS)])
def test_opcheck(name: str, make: Callable[[], tuple[Any, tuple[Any, ...]]]) -> None:
    op, args = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, on its way
        torch.library.opcheck(op.default, args)


@pytest.mark.parametrize(("name", "make"), CALLS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CALLS)])
def test_kernels_of_cuda_tensors(name: str, make: Callable[[], tuple[Any, tuple[Any, ...]]]) -> None:
    # They give tensors to `fastconv.functional` as they are, which takes those of the host as well.
    op, args = make()
    with torch.no_grad():
        ours, host = _register.cuda_kernels[name](*args), op(*args)
    for a, b in zip(*(r if isinstance(r, (tuple, list)) else (r,) for r in (ours, host)), strict=True):
        assert type(a) is torch.Tensor
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


# ------------------------------------------------------------------------------------------------ torch.compile


class Small(torch.nn.Module):
    """One of each, forward and backward."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.conv = layers.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = layers.BatchNorm2d(8)
        self.depthwise = layers.Conv2d(8, 8, 3, padding="same", groups=8, bias=False)
        self.pool = layers.MaxPool2d(2)
        self.up = layers.ConvTranspose2d(8, 6, 2, stride=2)
        self.average = layers.AvgPool2d(3, 2, 1)
        self.last = layers.AdaptiveAvgPool2d(1)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.average(self.up(self.pool(self.depthwise(x))))
        return self.head(self.last(x).flatten(1))


def small(layers: Any) -> Any:
    torch.manual_seed(0)
    return Small(layers).double()


def images(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(5).standard_normal(shape or (4, 3, 12, 10)))


def trained(net: Any, run: Callable[[Any], Any]) -> tuple[Any, ...]:
    """What a step leaves: the result, the gradients, the running statistics."""
    x = images().requires_grad_()
    y = run(x)
    y.square().sum().backward()
    return (y, x.grad, *(p.grad for p in net.parameters()), *net.buffers())


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, on its way
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(backend: str) -> None:
    from fastconv.integrations.torch import modules

    torch._dynamo.reset()
    net, eager, theirs = small(modules), small(modules), small(torch.nn)
    run = torch.compile(net, backend=backend, fullgraph=True)
    for ours, plain, expected in zip(trained(net, run), trained(eager, eager), trained(theirs, theirs), strict=True):
        close(ours, plain)
        close(ours, expected.to(ours.dtype))
    net.eval()
    eager.eval()
    with torch.no_grad():
        close(run(images()), eager(images()))
        last = images().contiguous(memory_format=torch.channels_last)
        close(run(last), eager(last))
        close(run(images(7, 3, 9, 16)), eager(images(7, 3, 9, 16)))  # a dynamic shape


@pytest.mark.filterwarnings("ignore")
def test_export() -> None:
    from fastconv.integrations.torch import modules

    net = small(modules).eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (images(),), dynamic_shapes=({0: batch},))
    assert "fastconv.conv.default" in str(program.graph)
    x = images(5, 3, 12, 10)
    close(program.module()(x), net(x))


# ------------------------------------------------------------------------------------------------ torch.func


@pytest.mark.parametrize("case", [c for c in CASES if None not in c.shapes], ids=str)
def test_vmap(case: Case) -> None:
    first, *rest = case.tensors()
    many = torch.stack([first, first.flip(-1), -first.abs() if "lp" not in case.name else first * 2], dim=1)
    one = torch.func.vmap(case, in_dims=(1, *(None for _ in rest)))(many, *rest)
    close(one, tuple(map(torch.stack, zip(*(parts(case(x, *rest)) for x in many.unbind(1)), strict=True))))
    if rest:  # operands that differ as well
        pairs = [torch.stack([r, r * 2, r - 1]) for r in rest]
        one = torch.func.vmap(case)(many.transpose(0, 1), *pairs)
        close(one, torch.stack([case(x, *p) for x, *p in zip(many.unbind(1), *pairs, strict=True)]))


def test_vmap_of_the_operators_themselves() -> None:
    # The functions take another way when a transform is active.
    x, w, b = Case("", ((3, *X2), (3, 6, 4, 3, 3), (6,))).tensors()
    options = ([1, 1], [1, 1], [1, 1], 1, "zeros")
    op = torch.ops.fastconv.conv.default
    one = torch.func.vmap(lambda x, w: op(x, w, b, *options))(x, w)
    close(one, torch.stack([op(a, c, b, *options) for a, c in zip(x, w, strict=True)]))
    one = torch.func.vmap(lambda x: op(x, w[0], b, *options))(x)
    close(one, torch.stack([op(a, w[0], b, *options) for a in x]))
    pool = torch.ops.fastconv.max_pool_with_indices.default
    pair = torch.func.vmap(lambda x: pool(x, [2, 2], [2, 2], [0, 0], [1, 1], False), in_dims=1)(x)
    close(
        pair,
        tuple(
            map(torch.stack, zip(*(pool(a, [2, 2], [2, 2], [0, 0], [1, 1], False) for a in x.unbind(1)), strict=True))
        ),
    )


def test_gradients_of_every_sample() -> None:
    x, w, b = Case("conv2d", ((5, 4, 7, 6), (6, 4, 3, 3), (6,))).tensors()

    def loss(conv: Any) -> Callable[..., Any]:
        return lambda w, b, x: conv(x, w, b, padding=1).square().sum()

    ours, theirs = (
        torch.func.vmap(torch.func.grad(loss(c), argnums=(0, 1)), in_dims=(None, None, 0))(w, b, x)
        for c in (ops.conv2d, F.conv2d)
    )
    close(ours, theirs)
    ours, theirs = (
        torch.func.jacrev(torch.func.grad(loss(c)))(w[:, :, :2, :2], b, x[0]) for c in (ops.conv2d, F.conv2d)
    )
    close(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # PyTorch's own, on its way
def test_forward_mode_is_refused() -> None:
    x, w = Case("", (X2, (6, 4, 3, 3))).tensors()
    with pytest.raises(RuntimeError, match="forward"):
        torch.func.jvp(lambda x: ops.conv2d(x, w), (x,), (x,))


# ------------------------------------------------------------------------------------------------ autocast


def test_autocast_computes_in_float32() -> None:
    x, w, b = Case("", (X2, (6, 4, 3, 3), (6,))).tensors(torch.float32)
    weight = w.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d(x.bfloat16(), weight, b)
        assert y.dtype is torch.float32
        close(y, ops.conv2d(x.bfloat16().float(), w, b))
        for name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"):
            assert getattr(ops, name)(x.bfloat16(), 2).dtype is torch.float32
        mean, var = torch.zeros(4), torch.ones(4)
        assert ops.batch_norm(x.bfloat16(), mean, var, training=True).dtype is torch.float32
        assert ops.conv2d(x.double(), w.double()).dtype is torch.float64
    y.sum().backward()
    assert weight.grad.dtype is torch.float32
    with pytest.raises(TypeError, match=r"x \(dtype bfloat16\) must have dtype float32 or float64"):
        ops.conv2d(x.bfloat16(), w.bfloat16())


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, on its way
def test_autocast_when_compiled() -> None:
    from fastconv.integrations.torch import modules

    torch._dynamo.reset()
    net = small(modules).float()
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        x = images().float()
        expected, y = small(modules).float()(x), run(x)
        assert y.dtype is torch.bfloat16  # of the dense layer, which is PyTorch's
        torch.testing.assert_close(y, expected)
        y.float().sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}


def test_gradients_of_every_sample_of_a_network() -> None:
    from fastconv.integrations.torch import modules

    results = []
    for layers in (modules, torch.nn):
        net = small(layers).eval()
        weights = {name: p.detach() for name, p in net.named_parameters()}

        def loss(weights: Any, x: Any, net: Any = net) -> Any:
            return torch.func.functional_call(net, weights, (x[None],)).square().sum()

        results.append(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, images()))
    for name, ours in results[0].items():
        close(ours, results[1][name])


# ------------------------------------------------------------------------------------------------ errors, memory


def test_errors_name_the_argument() -> None:
    x, w, b = Case("", (X2, (6, 4, 3, 3), (6,))).tensors()
    with pytest.raises(ValueError, match=r"weight \(shape \(6, 4, 3, 3\)\) must have in_channels / groups"):
        ops.conv2d(x[:, :3], w)
    with pytest.raises(ValueError, match=r"bias"):
        ops.conv2d(x, w, b[:3])
    with pytest.raises(TypeError, match="weight"):
        ops.conv2d(x, w.float())
    with pytest.raises(ValueError, match="padding"):
        ops.conv2d(x, w, padding="some")
    with pytest.raises(ValueError, match=r"weight \(of 0 spatial dimensions\) must be of one of 1, 2, 3"):
        torch.ops.fastconv.conv(x, w[:, :, 0, 0], None, [1], [0], [1], 1, "zeros")
    with pytest.raises(ValueError, match="must have 4 channels"):  # without computing
        ops.conv2d(x[:, :3].to("meta"), w.to("meta"))
    mean, dy = torch.zeros(4, dtype=x.dtype), x.clone().requires_grad_()
    dx = torch.ops.fastconv.batch_norm_backward(dy, x, None, mean, mean, True, [True] * 3)[0]
    with pytest.raises(RuntimeError, match="must not be differentiated"):
        dx.sum().backward()


def test_meta_tensors() -> None:
    x, w = torch.empty(2, 4, 7, 6, device="meta"), torch.empty(6, 4, 3, 3, device="meta")
    y = ops.conv2d(x.contiguous(memory_format=torch.channels_last), w, stride=2)
    assert y.device.type == "meta"
    assert y.shape == (2, 6, 3, 2)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_keep_the_order_and_share_nothing(case: Case) -> None:
    if len(case.shapes[0] or ()) != 4 or "3d" in case.name:
        return
    tensors = case.tensors(channels_last=True)
    y = parts(case(*tensors))[0]
    assert y.is_contiguous(memory_format=torch.channels_last)
    places = {t.untyped_storage().data_ptr() for t in tensors if t is not None}
    assert y.untyped_storage().data_ptr() not in places
    one = ops.max_pool2d(tensors[0], 1)
    assert one.data_ptr() != tensors[0].data_ptr()


# ------------------------------------------------------------------------------------------------ modules


def test_modules_are_drop_in() -> None:
    from fastconv.integrations.torch import modules

    net, theirs = small(modules), small(torch.nn)
    assert repr(net) == repr(theirs)
    assert list(net.state_dict()) == list(theirs.state_dict())
    net.load_state_dict(theirs.state_dict())
    for ours, expected in zip(trained(net, net), trained(theirs, theirs), strict=True):
        close(ours, expected)
    for name in modules.__all__:
        if not name.startswith("Separable"):
            assert issubclass(getattr(modules, name), getattr(torch.nn, name))


MODULES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    *(
        (f"Conv{d}d", (4, 6, 3), {"stride": 2, "padding": 1, "padding_mode": "circular"}, X)
        for d, X in enumerate((X1, X2, X3), 1)
    ),
    *(
        (f"ConvTranspose{d}d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}, X)
        for d, X in enumerate((X1, X2, X3), 1)
    ),
    *(
        (f"{kind}Pool{d}d", (2,), {"ceil_mode": True}, X)
        for kind in ("Max", "Avg")
        for d, X in enumerate((X1, X2, X3), 1)
    ),
    *((f"Adaptive{kind}Pool{d}d", (2,), {}, X) for kind in ("Max", "Avg") for d, X in enumerate((X1, X2, X3), 1)),
    *((f"LPPool{d}d", (2, 2), {}, X) for d, X in enumerate((X1, X2, X3), 1)),
    *(
        (f"BatchNorm{d}d", (4,), options, X)
        for options in ({}, {"momentum": None}, {"track_running_stats": False})
        for d, X in enumerate((X1, X2, X3), 1)
    ),
]


@pytest.mark.parametrize(("name", "args", "options", "shape"), MODULES, ids=lambda v: str(v).replace(" ", ""))
def test_modules_compute_what_pytorchs_do(
    name: str, args: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    from fastconv.integrations.torch import modules

    nets = []
    for layers in (modules, torch.nn):
        torch.manual_seed(0)
        nets.append(getattr(layers, name)(*args, **options).double())
    for mode in (True, True, False):
        x = images(*shape)
        close(*(net.train(mode)(x) for net in nets))
    for ours, theirs in zip(nets[0].state_dict().items(), nets[1].state_dict().items(), strict=True):
        assert ours[0] == theirs[0]
        close(ours[1], theirs[1])
    if "Transpose" in name:
        size = [2 * n for n in shape[2:]]
        close(*(net(images(*shape), output_size=size) for net in nets))
    if "Max" in name:
        for net in nets:
            net.return_indices = True
        close(*(net(images(*shape)) for net in nets))


def test_separable_modules() -> None:
    from fastconv.integrations.torch import modules

    for module, shape in ((modules.SeparableConv1d, X1), (modules.SeparableConv2d, X2)):
        net = module(4, 6, 3, 2, 1, depth_multiplier=2, depthwise_bias=True).double()
        x = images(*shape)
        close(net(x), net.pointwise(net.depthwise(x)))
        assert list(net.state_dict()) == [
            f"{half}.{v}" for half in ("depthwise", "pointwise") for v in ("weight", "bias")
        ]


def test_modules_are_copied_traced_and_wrapped() -> None:
    import copy
    import pickle

    from fastconv.integrations.torch import modules

    net = small(modules).eval()
    x = images()
    y = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.fx.symbolic_trace(net)):
        close(other(x), y)
    normed = torch.nn.utils.parametrizations.weight_norm(modules.Conv2d(3, 8, 3).double())
    normed(x).sum().backward()
    assert normed.parametrizations.weight.original0.grad is not None
    a, b = (x.clone().requires_grad_() for _ in range(2))
    torch.utils.checkpoint.checkpoint(net, a, use_reentrant=False).sum().backward()
    net(b).sum().backward()
    close(a.grad, b.grad)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "lp_pool2d"])
def test_no_images(name: str) -> None:
    case = next(c for c in CASES if c.name == name and len(c.shapes[0] or ()) == 4)
    x, *rest = leaves([t for t in case.tensors() if t is not None])
    y = parts(case(x[:0], *rest))[0]
    assert y.shape == parts(case.reference(x[:0], *rest))[0].shape
    y.sum().backward()
    assert all(not t.grad.any() for t in (x, *rest))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradients_of_cut_windows_are_those_of_gradients_of_gradients(rank: int, power: float) -> None:
    """A last window that ceil_mode cuts is rescaled, in gradients that can be differentiated as in others."""
    x = torch.rand(2, 3, *(8, 6, 7)[:rank], generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    for size, step in ((3, 3), (3, 2), (2, 5)):
        a, b, c = (x.clone().requires_grad_() for _ in range(3))
        name = f"lp_pool{rank}d"
        y = getattr(ops, name)(a, power, size, step, True)
        theirs = getattr(torch.nn.functional, name)(b, power, size, step, True)
        close(y, theirs)
        (da,) = torch.autograd.grad((y**2).sum(), a, create_graph=True)
        (db,) = torch.autograd.grad((theirs**2).sum(), b, create_graph=True)
        (plain,) = torch.autograd.grad((getattr(ops, name)(c, power, size, step, True) ** 2).sum(), c)
        close(da, db)
        close(da, plain)
        close(*(torch.autograd.grad((d**3).sum(), v)[0] for d, v in ((da, a), (db, b))))


def test_saved_tensors_that_are_overwritten_are_seen() -> None:
    x, w = leaves(Case("", (X2, (6, 4, 3, 3))).tensors())
    z = x * 1
    y = ops.conv2d(z, w)
    z += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_without_pytorch() -> None:
    import subprocess
    import sys

    program = (
        "import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a);"
        "import fastconv.integrations; import fastconv.integrations.torch"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode
    assert "ImportError: fastconv.integrations.torch needs PyTorch" in run.stderr
