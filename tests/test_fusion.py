"""Fused networks: the same results as the modules, in fewer steps, from one block of memory."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastconv import models, nn


def block(c: int, k: int, r: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU) -> nn.Sequential:
    layers = [nn.Conv2d(c, k, r, stride, r // 2, groups=groups, bias=False), nn.BatchNorm2d(k)]
    return nn.Sequential(*layers, *([act()] if act else []))


def residual() -> nn.Module:
    body = nn.Sequential(block(6, 8), block(8, 12, act=None))
    same = nn.Sequential(block(12, 8, 1), block(8, 12, act=None))
    return nn.Sequential(nn.Residual(body, block(6, 12, 1, act=None), nn.ReLU()), nn.Residual(same, None, nn.ReLU()))


def inverted() -> nn.Module:
    first = nn.Sequential(block(6, 24, 1, act=nn.ReLU6), block(24, 24, 3, 1, 24, nn.ReLU6), block(24, 6, 1, act=None))
    separable = nn.Sequential(block(6, 6, 3, 2, 6), block(6, 10, 1))
    return nn.Sequential(nn.Residual(first), separable)


def squeezed() -> nn.Module:
    body = [block(6, 24, 1, act=nn.SiLU), block(24, 24, 5, 1, 24, nn.SiLU)]
    return nn.Residual(nn.Sequential(*body, nn.SqueezeExcite(24, 3, nn.SiLU()), block(24, 6, 1, act=None)))


def dense() -> nn.Module:
    def layer(c: int) -> nn.Module:
        first = [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 8, 1, bias=False)]
        second = [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1, bias=False)]
        return nn.Concat(nn.Identity(), nn.Sequential(*first, *second))

    ends = [nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 7, 1), nn.AvgPool2d(2)]
    return nn.Sequential(block(6, 6), *(layer(6 + 4 * i) for i in range(3)), *ends)


def fire() -> nn.Module:
    sides = [nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Concat(*sides), nn.MaxPool2d(2), nn.Conv2d(11, 3, 1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.pool = block(6, 8), nn.MaxPool2d(2)
        self.bottom, self.up = block(8, 16), nn.ConvTranspose2d(16, 8, 2, 2)
        self.join = block(16, 5)

    def forward(self, x: Any) -> Any:
        left = self.down(x)
        return self.join(np.concatenate([left, self.up(self.bottom(self.pool(left)))], axis=1))


class Odd(nn.Module):
    """Its forward is more than modules: the part that is runs as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = block(6, 4), nn.Parameter(np.float64(2) * np.ones((1, 4, 1, 1)))

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return np.maximum(y, 0.25) * self.scale.data.astype(y.dtype)


def head() -> nn.Module:
    layers = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 4 * 5, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(block(6, 8), *layers, nn.Linear(20, 7), nn.LogSoftmax(1))


def pooled() -> nn.Module:
    layers = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4), nn.Softmax(-1)]
    return nn.Sequential(nn.Conv2d(6, 9, 3), nn.LeakyReLU(0.2), nn.Clip(None, 2.0), *layers)


# The module, and the steps that are left of it.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "residual": (residual, 5),
    "inverted": (inverted, 2),
    "squeezed": (squeezed, 1),
    "dense": (dense, 1 + 3 * 3 + 2),
    "fire": (fire, 6),
    "U-Net": (UNet, 6),
    "odd": (lambda: nn.Sequential(block(6, 6), Odd()), 2),
    "head": (head, 6),
    "pooled": (pooled, 6),
    "norm alone": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.MaxPool2d(2)), 2),
    "groups and norms": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.GELU()), 3),
    "nothing": (nn.Identity, 0),
}
SHAPE = (6, 8, 10)


def settled(module: nn.Module, dtype: Any = np.float32) -> nn.Module:
    """In eval mode, with running statistics that are not those of a new batch norm."""
    rng = np.random.default_rng(5)
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean = rng.standard_normal(m.num_features)
            m.running_var = rng.uniform(0.5, 2, m.num_features)
            m.weight.assign(rng.uniform(0.5, 2, m.num_features).astype(np.float32))
            m.bias.assign(rng.standard_normal(m.num_features).astype(np.float32))
    return module.astype(dtype).eval()


def image(n: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, *SHAPE)).astype(dtype)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_results_and_steps(name: str, dtype: Any, channels_last: bool) -> None:
    make, steps = NETWORKS[name]
    module = settled(make(), dtype)
    fused = nn.fuse(module, channels_last=channels_last)
    assert len(fused) == steps, str(fused)
    for n in (1, 3):
        x = image(n, dtype)
        kept = x.copy()
        for given in (x, np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1), x[:, :, ::-1, ::-1]):
            expected = module(given)
            got = fused(given)
            assert got.dtype == expected.dtype
            # A norm in an epilogue rounds elsewhere than one of its own.
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=0, atol=64 * np.finfo(dtype).eps * scale)
            assert np.array_equal(fused(given), got)
        np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("name", ["residual", "inverted", "squeezed"])
def test_an_image_without_a_batch(name: str) -> None:
    module = settled(NETWORKS[name][0]())
    x = image(1)
    fused = nn.fuse(module)
    np.testing.assert_array_equal(fused(x[0]), fused(x)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block holds all that is read, whatever it held before, and nothing that is handed out."""
    module = settled(NETWORKS[name][0]())
    x = image(2)
    expected = nn.fuse(module)(x)
    empty = np.empty

    def poisoned(shape: Any, dtype: Any = float, **options: Any) -> np.ndarray:
        block = empty(shape, dtype, **options)
        block.view(np.uint8)[...] = 0xFF  # NaN
        return block

    fused = nn.fuse(module)
    fused.memory(x)
    monkeypatch.setattr(np, "empty", poisoned)
    first = fused(x)
    monkeypatch.undo()
    np.testing.assert_array_equal(first, expected)
    kept = first.copy()
    fused(-x)
    np.testing.assert_array_equal(first, kept)
    assert fused(x) is not first


class Doubled(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * x.dtype.type(2)


class Forward(nn.Module):
    """Some modules under the names a, b, ..., and a forward."""

    def __init__(self, forward: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        for name, m in zip("abc", modules, strict=False):
            self.register_module(name, m)
        self.function = forward

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def in_place(self: Any, x: Any) -> Any:
    y = self.a(x)
    z = y
    y += x
    return z


def unread(self: Any, x: Any) -> Any:
    y = self.a(x)
    self.b(y)
    return y


def image_norm() -> nn.Module:
    norm = nn.BatchNorm1d(6)
    norm.running_mean = np.arange(6, dtype=np.float32)
    return nn.Sequential(nn.Flatten(2), nn.Linear(80, 6), norm, nn.ReLU())


TABLE = np.random.default_rng(8).standard_normal((1, *SHAPE)).astype(np.float32)
AWKWARD: dict[str, Callable[[], nn.Module]] = {
    "a result that nobody reads": lambda: Forward(unread, nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 3)),
    "a class of one's own": lambda: nn.Sequential(Doubled(6, 6, 3), nn.ReLU()),
    "a norm of the first axis of a dense layer": image_norm,
    "views": lambda: nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1), Forward(lambda m, x: x[:, 1:7, ::-1, ::2]), nn.Conv2d(6, 6, 1), nn.ReLU()
    ),
    "a view at the end": lambda: nn.Sequential(nn.Conv2d(6, 8, 1), Forward(lambda m, x: x[:, :4])),
    "reshaped twice": lambda: nn.Sequential(nn.Conv2d(6, 8, 1), nn.Flatten(2), nn.Flatten()),
    "another dtype": lambda: nn.Sequential(
        nn.Conv2d(6, 8, 1), Forward(lambda m, x: x.argmax(1)), Forward(lambda m, x: np.eye(8, dtype="f")[x])
    ),
    "squeeze-excite of a sum": lambda: nn.Sequential(
        nn.Residual(nn.Conv2d(6, 6, 1), None, nn.ReLU()), nn.SqueezeExcite(6, 2), nn.Conv2d(6, 3, 1)
    ),
    "a clip with one bound": lambda: nn.Sequential(nn.Conv2d(6, 4, 1), nn.Clip(None, 0.5)),
    "a sum that broadcasts": lambda: Forward(
        lambda m, x: m.c(m.a(x) + m.b(x)),
        nn.Conv2d(6, 4, 1),
        nn.Sequential(nn.GlobalAvgPool2d(), nn.Conv2d(6, 4, 1)),
        nn.SiLU(),
    ),
    "a norm without statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "a constant": lambda: Forward(lambda m, x: m.a(x) * m.b(TABLE), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)),
    "a change in place": lambda: Forward(in_place, nn.Conv2d(6, 6, 1)),
}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", AWKWARD)
def test_what_is_not_plain(name: str, channels_last: bool) -> None:
    module = AWKWARD[name]().eval()
    fused = nn.fuse(module, channels_last=channels_last)
    x = image(2)
    expected, got = module(x), fused(x)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    kept = got.copy()
    fused(-x)
    np.testing.assert_array_equal(got, kept)


def test_an_optimiser_does_not_reach_a_fused_network() -> None:
    module = settled(residual())
    fused = nn.fuse(module)
    known, other = image(1), image(2)
    expected = fused(known), module(other)
    optimizer = nn.SGD(module.parameters(), lr=0.5)
    for p in module.parameters():
        p.grad = np.ones(p.shape, p.dtype)
    optimizer.step()
    np.testing.assert_array_equal(fused(known), expected[0])
    np.testing.assert_allclose(fused(other), expected[1], rtol=0, atol=1e-5 * np.abs(expected[1]).max())


def test_memory_is_reused() -> None:
    layers = [block(6, 6) for _ in range(8)]
    fused = nn.fuse(settled(nn.Sequential(*layers)))
    x = image(1)
    # Two results at a time, and none of the network's own.
    assert fused.memory(x) == 2 * x.nbytes


def test_joined_results_are_written_where_they_are_joined() -> None:
    fused = nn.fuse(settled(dense()))
    x = image(1)
    features = 18 * 8 * 10 * 4
    inner = 8 * 8 * 10 * 4
    last = 7 * 8 * 10 * 4
    assert fused.memory(x) <= -(-features // 64) * 64 + max(inner, last) + 128


def test_threads() -> None:
    fused = nn.fuse(settled(residual()))
    inputs = [image(1) * (i + 1) for i in range(4)]
    expected = [fused(x) for x in inputs]
    wrong: list[int] = []

    def run(i: int) -> None:
        wrong.extend(i for _ in range(20) if not np.array_equal(fused(inputs[i]), expected[i]))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_parameters_are_read_once() -> None:
    module = settled(residual())
    x = image(1)
    before = module(x)
    fused = nn.fuse(module)
    for parameter in module.parameters():
        parameter.assign(np.zeros(parameter.shape, np.float32))
    np.testing.assert_allclose(fused(x), before, rtol=0, atol=1e-4 * np.abs(before).max())


def test_text() -> None:
    fused = nn.fuse(settled(residual()))
    assert repr(fused) == "<Sequential, fused: 5 steps>"
    lines = str(fused).splitlines()
    assert len(lines) == 5
    assert "residual=" in lines[2]


def test_errors() -> None:
    module = nn.Sequential(nn.Identity(), block(6, 6)).eval()
    module[1].train()
    with pytest.raises(ValueError, match=r"in eval mode \(module.eval\(\)\), but 1 is in training mode"):
        nn.fuse(module)
    with pytest.raises(TypeError, match=r"module \(of type int\) must be a Module"):
        nn.fuse(3)
    with pytest.raises(ValueError, match=r"sides of a sum .* must have one shape"):
        nn.fuse(nn.Residual(nn.GlobalAvgPool2d()).eval())(image(1))
    with pytest.raises(TypeError, match="must give one array to be fused"):
        nn.fuse(Forward(lambda m, x: (x, x)).eval())(image(1))
    fused = nn.fuse(settled(residual()))
    with pytest.raises(TypeError, match=r"x \(of type list\) must be a numpy.ndarray"):
        fused([1.0])
    with pytest.raises(ValueError, match="channels"):
        fused(np.zeros((1, 5, 8, 10), np.float32))
    with pytest.raises(TypeError, match="float64"):
        fused(np.zeros((1, 6, 8, 10), np.float64))


@pytest.mark.parametrize("name", models.names())
def test_all_of_an_architecture_is_followed(name: str) -> None:
    with nn.init.undrawn():
        module = models.create(name, **({"padding": "same"} if name == "unet" else {})).eval()
    text = str(nn.fuse(module))
    assert "call(" not in text
    # Sums are part of the layers before them.
    assert "add(" not in text


def test_a_sum_of_two_inputs() -> None:
    class Block(nn.Module):
        def __init__(self, activation: nn.Module | None) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)
            self.add = nn.Add(activation)

        def forward(self, x: Any) -> Any:
            return self.add(self.conv(x), x)

    x = image(2)
    for activation in (None, nn.ReLU(), nn.SiLU()):
        module = settled(Block(activation))
        fused = nn.fuse(module)
        assert len(fused) == 1, str(fused)
        expected = module(x)
        np.testing.assert_allclose(fused(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_sides_of_a_sum_that_are_not_alike() -> None:
    """Layers that read views as their residuals do so where the network takes any, not where it asks for one shape."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 1))
            self.conv = nn.Conv2d(6, 6, (8, 10))
            self.add = nn.Add()

        def forward(self, x: Any) -> Any:
            return self.add(self.layer(x), self.conv(x))

    with pytest.raises(ValueError, match=r"sides of a sum .* must have one shape"):
        nn.fuse(settled(Block()))(image(2))
