"""Layers and networks: gradients by finite differences and against PyTorch, recording, state, plans, errors."""

import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastconv
from fastconv import nn

F64 = {"dtype": np.float64}


def spread(net, rng):
    """Weights and statistics away from their initial values, where a wrong one would not show."""
    for p in net.parameters():
        p.assign(rng.uniform(0.5, 1.0, p.shape) * rng.choice([-1.0, 1.0], p.shape))
    for module in net.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean = rng.standard_normal(module.running_mean.shape)
            module.running_var = rng.uniform(0.5, 2.0, module.running_var.shape)
    return net


# name: (the layer, x's shape, the same in PyTorch given torch.nn, or None). float64 throughout.
LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1, 2, 2, **F64), (2, 4, 11), lambda t: t.Conv1d(4, 6, 3, 2, 1, 2, 2)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1, **F64), (2, 3, 5, 6), lambda t: t.Conv2d(3, 4, 3, padding=1)),
    "conv2d reflect": (
        lambda: nn.Conv2d(3, 4, (3, 2), 1, (1, 2), 1, 1, False, "reflect", **F64),
        (2, 3, 5, 6),
        lambda t: t.Conv2d(3, 4, (3, 2), 1, (1, 2), 1, 1, False, "reflect"),
    ),
    "conv2d pairs": (lambda: nn.Conv2d(2, 3, 3, padding=((0, 2), 1), **F64), (1, 2, 4, 5), None),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, **F64), (1, 2, 3, 4, 3), lambda t: t.Conv3d(2, 3, 2)),
    "conv_transpose1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, True, 1, **F64),
        (2, 4, 5),
        lambda t: t.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, True, 1),
    ),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, 1, **F64),
        (2, 3, 4, 3),
        lambda t: t.ConvTranspose2d(3, 4, 3, 2, 1, 1),
    ),
    "conv_transpose3d": (
        lambda: nn.ConvTranspose3d(2, 3, 2, 2, bias=False, **F64),
        (1, 2, 2, 3, 2),
        lambda t: t.ConvTranspose3d(2, 3, 2, 2, bias=False),
    ),
    "depthwise": (
        lambda: nn.DepthwiseConv2d(3, 3, 1, 1, multiplier=2, **F64),
        (2, 3, 4, 5),
        lambda t: t.Conv2d(3, 6, 3, 1, 1, groups=3),
    ),
    "separable": (lambda: nn.SeparableConv2d(3, 5, 3, 2, 1, **F64), (2, 3, 6, 5), None),
    "separable multiplier": (lambda: nn.SeparableConv2d(2, 3, 3, multiplier=2, bias=False, **F64), (1, 2, 4, 4), None),
    "linear": (lambda: nn.Linear(5, 4, **F64), (2, 3, 5), lambda t: t.Linear(5, 4)),
    "linear no bias": (lambda: nn.Linear(5, 4, False, **F64), (3, 5), lambda t: t.Linear(5, 4, False)),
    "max_pool1d": (lambda: nn.MaxPool1d(3, 2, 1), (2, 2, 9), lambda t: t.MaxPool1d(3, 2, 1)),
    "max_pool2d": (
        lambda: nn.MaxPool2d(2, ceil_mode=True),
        (2, 2, 5, 7),
        lambda t: t.MaxPool2d(2, ceil_mode=True),
    ),
    "max_pool3d": (lambda: nn.MaxPool3d(2), (1, 2, 4, 4, 2), lambda t: t.MaxPool3d(2)),
    "avg_pool1d": (lambda: nn.AvgPool1d(3), (2, 2, 9), lambda t: t.AvgPool1d(3)),
    "avg_pool2d": (
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        (2, 2, 5, 6),
        lambda t: t.AvgPool2d(3, 2, 1, count_include_pad=False),
    ),
    "avg_pool3d": (lambda: nn.AvgPool3d(2, 1), (1, 2, 3, 4, 3), lambda t: t.AvgPool3d(2, 1)),
    "lp_pool1d": (lambda: nn.LPPool1d(2, 3), (1, 2, 7), lambda t: t.LPPool1d(2, 3)),
    "lp_pool2d": (lambda: nn.LPPool2d(2, 2), (1, 2, 4, 5), lambda t: t.LPPool2d(2, 2)),
    "lp_pool3d": (lambda: nn.LPPool3d(2, 2), (1, 2, 4, 2, 3), lambda t: t.LPPool3d(2, 2)),
    "adaptive_avg1d": (lambda: nn.AdaptiveAvgPool1d(3), (2, 2, 7), lambda t: t.AdaptiveAvgPool1d(3)),
    "adaptive_avg2d": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 2, 5, 7), lambda t: t.AdaptiveAvgPool2d((2, 3))),
    "adaptive_avg3d": (lambda: nn.AdaptiveAvgPool3d(2), (1, 2, 3, 4, 2), lambda t: t.AdaptiveAvgPool3d(2)),
    "adaptive_max1d": (lambda: nn.AdaptiveMaxPool1d(3), (2, 2, 7), lambda t: t.AdaptiveMaxPool1d(3)),
    "adaptive_max2d": (lambda: nn.AdaptiveMaxPool2d(2), (2, 2, 5, 7), lambda t: t.AdaptiveMaxPool2d(2)),
    "adaptive_max3d": (lambda: nn.AdaptiveMaxPool3d(2), (1, 2, 3, 4, 2), lambda t: t.AdaptiveMaxPool3d(2)),
    "global_avg1d": (lambda: nn.GlobalAvgPool1d(), (2, 3, 7), lambda t: t.AdaptiveAvgPool1d(1)),
    "global_avg2d": (lambda: nn.GlobalAvgPool2d(), (2, 3, 4, 5), lambda t: t.AdaptiveAvgPool2d(1)),
    "global_avg2d flat": (lambda: nn.GlobalAvgPool2d(keepdims=False), (2, 3, 4, 5), None),
    "global_avg3d": (lambda: nn.GlobalAvgPool3d(), (2, 3, 2, 3, 2), lambda t: t.AdaptiveAvgPool3d(1)),
    "global_max1d": (lambda: nn.GlobalMaxPool1d(), (2, 3, 7), lambda t: t.AdaptiveMaxPool1d(1)),
    "global_max2d": (lambda: nn.GlobalMaxPool2d(), (2, 3, 4, 5), lambda t: t.AdaptiveMaxPool2d(1)),
    "global_max3d": (lambda: nn.GlobalMaxPool3d(), (2, 3, 2, 3, 2), lambda t: t.AdaptiveMaxPool3d(1)),
    "batch_norm1d": (lambda: nn.BatchNorm1d(3, **F64), (5, 3), lambda t: t.BatchNorm1d(3)),
    "batch_norm1d image": (lambda: nn.BatchNorm1d(3, **F64), (3, 3, 4), lambda t: t.BatchNorm1d(3)),
    "batch_norm2d": (lambda: nn.BatchNorm2d(3, 1e-3, 0.3, **F64), (2, 3, 3, 4), lambda t: t.BatchNorm2d(3, 1e-3, 0.3)),
    "batch_norm2d plain": (
        lambda: nn.BatchNorm2d(3, affine=False, **F64),
        (2, 3, 3, 4),
        lambda t: t.BatchNorm2d(3, affine=False),
    ),
    "batch_norm2d untracked": (
        lambda: nn.BatchNorm2d(3, track_running_stats=False, **F64),
        (2, 3, 3, 4),
        lambda t: t.BatchNorm2d(3, track_running_stats=False),
    ),
    "batch_norm2d mean of all": (
        lambda: nn.BatchNorm2d(3, momentum=None, **F64),
        (2, 3, 3, 4),
        lambda t: t.BatchNorm2d(3, momentum=None),
    ),
    "batch_norm3d": (lambda: nn.BatchNorm3d(2, **F64), (2, 2, 2, 3, 2), lambda t: t.BatchNorm3d(2)),
    "group_norm": (lambda: nn.GroupNorm(2, 4, **F64), (2, 4, 3, 3), lambda t: t.GroupNorm(2, 4)),
    "instance_norm1d": (lambda: nn.InstanceNorm1d(3, **F64), (2, 3, 5), lambda t: t.InstanceNorm1d(3)),
    "instance_norm2d": (
        lambda: nn.InstanceNorm2d(3, affine=True, **F64),
        (2, 3, 3, 3),
        lambda t: t.InstanceNorm2d(3, affine=True),
    ),
    "instance_norm3d": (lambda: nn.InstanceNorm3d(2, **F64), (2, 2, 2, 3, 2), lambda t: t.InstanceNorm3d(2)),
    "layer_norm": (lambda: nn.LayerNorm((3, 4), **F64), (2, 3, 4), lambda t: t.LayerNorm((3, 4))),
    "layer_norm no bias": (lambda: nn.LayerNorm(4, bias=False, **F64), (5, 4), lambda t: t.LayerNorm(4, bias=False)),
    "layer_norm_channels": (lambda: nn.LayerNormChannels(4, **F64), (2, 4, 2, 3), None),
    "local_response_norm": (
        lambda: nn.LocalResponseNorm(3, 0.5, 0.7, 1.5),
        (2, 5, 3, 2),
        lambda t: t.LocalResponseNorm(3, 0.5, 0.7, 1.5),
    ),
    "identity": (lambda: nn.Identity(), (2, 3), lambda t: t.Identity()),
    "relu": (lambda: nn.ReLU(), (2, 3, 4), lambda t: t.ReLU()),
    "relu6": (lambda: nn.ReLU6(), (2, 3, 4), lambda t: t.ReLU6()),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), (2, 3, 4), lambda t: t.LeakyReLU(0.2)),
    "silu": (lambda: nn.SiLU(), (2, 3, 4), lambda t: t.SiLU()),
    "hardswish": (lambda: nn.Hardswish(), (2, 3, 4), lambda t: t.Hardswish()),
    "sigmoid": (lambda: nn.Sigmoid(), (2, 3, 4), lambda t: t.Sigmoid()),
    # PyTorch's gradient has 1 / 6 rounded to float32.
    "hardsigmoid": (lambda: nn.Hardsigmoid(), (2, 3, 4), None),
    "tanh": (lambda: nn.Tanh(), (2, 3, 4), lambda t: t.Tanh()),
    "gelu": (lambda: nn.GELU(), (2, 3, 4), lambda t: t.GELU()),
    "gelu tanh": (lambda: nn.GELU("tanh"), (2, 3, 4), lambda t: t.GELU("tanh")),
    "clip": (lambda: nn.Clip(-0.5, 0.7), (2, 3, 4), lambda t: t.Hardtanh(-0.5, 0.7)),
    "softmax": (lambda: nn.Softmax(1), (2, 3, 4), lambda t: t.Softmax(1)),
    "log_softmax": (lambda: nn.LogSoftmax(), (2, 3, 4), lambda t: t.LogSoftmax(-1)),
    "flatten": (lambda: nn.Flatten(), (2, 3, 4, 2), lambda t: t.Flatten()),
    "flatten some": (lambda: nn.Flatten(0, 1), (2, 3, 4, 2), lambda t: t.Flatten(0, 1)),
    "upsample nearest1d": (lambda: nn.Upsample(7), (2, 2, 3), lambda t: t.Upsample(7)),
    "upsample nearest": (lambda: nn.Upsample(scale_factor=2), (2, 2, 3, 4), lambda t: t.Upsample(scale_factor=2)),
    "upsample nearest odd": (
        lambda: nn.Upsample(scale_factor=(1.7, 0.6)),
        (1, 2, 5, 8),
        lambda t: t.Upsample(scale_factor=(1.7, 0.6)),
    ),
    "upsample nearest3d": (lambda: nn.Upsample((3, 5, 2)), (1, 2, 2, 3, 4), lambda t: t.Upsample((3, 5, 2))),
    "upsample bilinear": (
        lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
        (2, 2, 3, 4),
        lambda t: t.Upsample(scale_factor=2, mode="bilinear"),
    ),
    "upsample bilinear odd": (
        lambda: nn.Upsample(scale_factor=(1.7, 0.6), mode="bilinear"),
        (1, 2, 5, 8),
        lambda t: t.Upsample(scale_factor=(1.7, 0.6), mode="bilinear"),
    ),
    "upsample bilinear size": (
        lambda: nn.Upsample((7, 3), mode="bilinear"),
        (1, 2, 4, 5),
        lambda t: t.Upsample((7, 3), mode="bilinear"),
    ),
    "upsample corners": (
        lambda: nn.Upsample((7, 1), mode="bilinear", align_corners=True),
        (1, 2, 4, 5),
        lambda t: t.Upsample((7, 1), mode="bilinear", align_corners=True),
    ),
    "residual": (lambda: nn.Residual(nn.Conv2d(2, 2, 3, padding=1, **F64)), (1, 2, 3, 4), None),
    "residual relu": (
        lambda: nn.Residual(nn.Linear(3, 4, **F64), nn.Linear(3, 4, **F64), nn.ReLU()),
        (2, 3),
        None,
    ),
    "residual silu": (lambda: nn.Residual(nn.Linear(3, 3, **F64), activation=nn.SiLU()), (2, 3), None),
    "concat": (
        lambda: nn.Concat(nn.Conv2d(2, 3, 1, **F64), nn.Identity(), nn.Sequential(nn.ReLU())),
        (2, 2, 3, 3),
        None,
    ),
    "squeeze_excite": (lambda: nn.SqueezeExcite(4, 2, nn.SiLU(), **F64), (2, 4, 3, 3), None),
    "sequential": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, **F64), nn.BatchNorm2d(3, **F64), nn.ReLU(), nn.Flatten()),
        (2, 2, 5, 4),
        lambda t: t.Sequential(t.Conv2d(2, 3, 3), t.BatchNorm2d(3), t.ReLU(), t.Flatten()),
    ),
    "sequential empty": (lambda: nn.Sequential(), (2, 3), None),
}

CHANNELS_LAST = [name for name, (_, shape, _) in LAYERS.items() if len(shape) in (3, 4, 5)]


def channels_last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def layer(name, seed=0):
    make, shape, torch_make = LAYERS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    return spread(make(), rng), rng.standard_normal(shape), rng, torch_make


def numeric(function, array, dy, step=1e-5):
    """The gradient of sum(dy * function()) with respect to an array, by central differences."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        before = array[index]
        array[index] = before + step
        high = function()
        array[index] = before - step
        low = function()
        array[index] = before
        gradient[index] = np.sum(dy * (high - low)) / (2 * step)
    return gradient


class Assigned:
    """A parameter as an array of which one element at a time is changed."""

    def __init__(self, parameter):
        self.parameter, self.shape = parameter, parameter.shape

    def __getitem__(self, index):
        return float(self.parameter.data[index])

    def __setitem__(self, index, value):
        changed = self.parameter.data.copy()
        changed[index] = value
        self.parameter.assign(changed)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_by_finite_differences(name, training):
    net, x, rng, _ = layer(name)
    net.train(training)

    def run():
        # Running statistics change by a call and must not add up.
        return copy.deepcopy(net)(x).copy()

    with nn.recording():
        y = copy.deepcopy(net)(x)
        dy = rng.standard_normal(y.shape)
        net(x)
        dx = net.backward(dy)
    tolerance = {"rtol": 1e-6, "atol": 1e-7}
    np.testing.assert_allclose(dx, numeric(run, x, dy), **tolerance)
    for label, parameter in net.named_parameters():
        gradient = parameter.grad
        entries = Assigned(parameter)
        expected = np.empty(parameter.shape)
        for index in np.ndindex(parameter.shape):
            before = entries[index]
            entries[index] = before + 1e-5
            high = run()
            entries[index] = before - 1e-5
            low = run()
            entries[index] = before
            expected[index] = np.sum(dy * (high - low)) / 2e-5
        np.testing.assert_allclose(gradient, expected, err_msg=label, **tolerance)
    with pytest.raises(RuntimeError, match="no recorded forward"):
        [module.pop_saved() for module in net.modules()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("name", [name for name, entry in LAYERS.items() if entry[2] is not None])
def test_against_torch(name, last, training):
    torch = pytest.importorskip("torch")
    net, x, rng, torch_make = layer(name)
    if last and x.ndim > 2:
        x = channels_last(x)
    theirs = torch_make(torch.nn).double()
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in net.state_dict().items()})
    net.train(training)
    theirs.train(training)
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(tx)
    dy = rng.standard_normal(ty.shape)
    with nn.recording():
        y = net(x)
        dx = net.backward(dy)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-12, atol=1e-12)
    ty.backward(torch.tensor(dy))
    np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=1e-11, atol=1e-11)
    expected = dict(theirs.named_parameters())
    assert list(expected) == [n for n, _ in net.named_parameters()]
    for label, parameter in net.named_parameters():
        np.testing.assert_allclose(parameter.grad, expected[label].grad.numpy(), rtol=1e-11, atol=1e-11)
    for label, value in theirs.state_dict().items():
        np.testing.assert_allclose(net.state_dict()[label], value.numpy(), rtol=1e-12, atol=1e-12, err_msg=label)


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_memory_order_stays(name):
    """An image whose channels are innermost comes out so, and so does its gradient; the values do not depend on it."""
    net, x, rng, _ = layer(name)
    with nn.recording():
        first = net(x)
        dy = rng.standard_normal(first.shape)
        dx = net.backward(dy)
        y = net(channels_last(x))
        back = net.backward(channels_last(dy) if dy.ndim > 2 else dy)
    # Statistics that run differ by the first call; nothing else does.
    if "batch_norm" not in name:
        np.testing.assert_allclose(y, first, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(back, dx, rtol=1e-12, atol=1e-12)
    moved = "flatten" in name or name in ("linear", "layer_norm", "softmax", "log_softmax", "sequential")
    if y.ndim == x.ndim and not moved:
        assert np.moveaxis(y, 1, -1).flags.c_contiguous
        assert np.moveaxis(back, 1, -1).flags.c_contiguous
    if name in ("flatten", "sequential"):
        assert np.moveaxis(back, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("name", LAYERS)
def test_plans_give_the_bits_of_the_plain_call(name):
    net, x, *_ = layer(name)
    net.eval()
    with nn.recording():
        plain = net(x)
    for _ in range(2):
        np.testing.assert_array_equal(net(x), plain)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_and_its_refusal(name):
    net, x, *_ = layer(name)
    net.astype(np.float32)
    assert {p.dtype for p in net.parameters()} <= {np.dtype(np.float32)}
    y = net(x.astype(np.float32))
    assert y.dtype == np.float32
    assert net.backward(y).dtype == np.float32
    if any(True for _ in net.parameters()):
        with pytest.raises(TypeError, match="float"):
            net(x)
        with pytest.raises(TypeError, match="float"):
            net.eval()(x)


@pytest.mark.parametrize("name", LAYERS)
def test_state_goes_round(name):
    net, x, *_ = layer(name)
    other, *_ = layer(name, seed=1)
    other.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(other.eval()(x), net.eval()(x))
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again(x), net(x))
    assert repr(again) == repr(net)
    assert type(net).__name__ in repr(net)


# -------------------------------------------------------------------------------------------------------- recording


class Thrice(nn.Module):
    """One module used three times in a pass."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(self.body(self.body(x)))

    def backward(self, dy, *, input_grad=True):
        dy = self.body.backward(self.body.backward(dy))
        return self.body.backward(dy, input_grad=input_grad)


def test_a_module_used_three_times(rng):
    body = nn.Sequential(nn.Linear(3, 3, **F64), nn.Tanh())
    net = Thrice(body)
    x = rng.standard_normal((2, 3))
    dy = rng.standard_normal((2, 3))
    net(x)
    dx = net.backward(dy)
    np.testing.assert_allclose(dx, numeric(lambda: net.eval()(x), x, dy), rtol=1e-6, atol=1e-9)
    gradient = body[0].weight.grad.copy()
    copies = [copy.deepcopy(body.train()) for _ in range(3)]
    chain = nn.Sequential(*copies)
    chain.zero_grad()
    chain(x)
    chain.backward(dy)
    np.testing.assert_allclose(sum(c[0].weight.grad for c in copies), gradient, rtol=1e-12)


def test_what_is_skipped_is_dropped(rng):
    """A module that a skipped branch shares with one that learns gives back the right record."""
    shared = nn.Tanh()
    frozen = nn.Sequential(nn.Linear(3, 3, **F64).freeze(), shared)
    learning = nn.Sequential(nn.Linear(3, 3, **F64), shared)
    x = rng.standard_normal((2, 3))
    for net in (
        nn.Concat(learning, frozen),
        nn.Residual(learning, frozen),
        nn.Residual(frozen, learning),
        nn.Sequential(frozen, learning),
    ):
        net(x)
        dy = rng.standard_normal(net(x).shape)
        net.zero_grad()
        net.backward(dy)
        expected = learning[0].weight.grad
        net.zero_grad()
        net(x)
        assert net.backward(dy, input_grad=False) is None
        np.testing.assert_array_equal(learning[0].weight.grad, expected)
        assert all(not module._saved for module in net.modules())


@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.SiLU])
def test_add(activation, rng):
    net = nn.Add(None if activation is None else activation())
    x, y = rng.standard_normal((2, 2, 3, 4))
    dz = rng.standard_normal(x.shape)
    z = net(x, y)
    alone = (activation or nn.Identity)()
    np.testing.assert_array_equal(z, alone(x + y))
    np.testing.assert_array_equal(net.backward(dz), alone.backward(dz))
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 3\)"):
        net(x, y[:, :, 0])
    assert not net._saved


def test_undrawn():
    before = nn.default_generator().bit_generator.state
    with nn.init.undrawn():
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 4, dtype=np.float64))
    np.testing.assert_equal(nn.default_generator().bit_generator.state, before)
    assert not any(np.any(net[i].weight.data) or np.any(net[i].bias.data) for i in (0, 2))
    assert net[0].weight.data.flags.c_contiguous
    assert np.all(net[1].weight.data == 1)
    assert net[2].weight.dtype == np.float64
    net[0].weight.assign(np.ones((3, 2, 3, 3), np.float32))
    assert np.any(nn.Linear(2, 2).weight.data)


def test_concat_of_names(rng):
    net = nn.Concat({"same": nn.Identity(), "linear": nn.Linear(3, 2, **F64)})
    assert list(net.state_dict()) == ["linear.weight", "linear.bias"]
    assert net(rng.standard_normal((2, 3))).shape == (2, 5)


def test_frozen_layers_cost_no_backward(rng):
    class Loud(nn.Linear):
        def backward(self, dy, *, input_grad=True):
            calls.append((self.in_features, input_grad))
            return super().backward(dy, input_grad=input_grad)

    net = nn.Sequential(nn.Sequential(Loud(2, 3), nn.ReLU(), Loud(3, 4)), nn.ReLU(), Loud(4, 5), nn.ReLU(), Loud(5, 6))
    x = rng.standard_normal((3, 2)).astype(np.float32)
    calls = []
    y = net(x)
    assert net.backward(y).shape == x.shape
    assert calls == [(5, True), (4, True), (3, True), (2, True)]
    calls = []
    net(x)
    assert net.backward(y, input_grad=False) is None
    assert calls == [(5, True), (4, True), (3, True), (2, False)]
    calls = []
    net[0].freeze()
    net.zero_grad()
    net(x)
    net.backward(y, input_grad=False)
    assert calls == [(5, True), (4, False)]
    assert [name for name, p in net.named_parameters() if p.grad is None] == [
        "0.0.weight",
        "0.0.bias",
        "0.2.weight",
        "0.2.bias",
    ]
    assert net.num_parameters() - net.num_parameters(trainable=True) == net[0].num_parameters() == 25
    calls = []
    net(x)
    assert net.backward(y).shape == x.shape  # through the frozen ones, where the input's gradient is wanted
    assert net[0][0].weight.grad is None
    assert not net.freeze().num_parameters(trainable=True)
    calls = []
    net(x)
    assert net.backward(y, input_grad=False) is None
    assert calls == []
    net.freeze(False)
    assert net.num_parameters(trainable=True) == net.num_parameters()
    assert net.requires_grad_(False).num_parameters(trainable=True) == 0


def test_when_a_call_records(rng):
    net = nn.Sequential(nn.Linear(3, 3, **F64), nn.BatchNorm1d(3, **F64), nn.Tanh())
    x = rng.standard_normal((4, 3))
    assert not nn.is_recording()

    def records():
        return [len(module._saved) for module in net]

    net(x)
    assert records() == [1, 1, 1]
    net(x)
    assert records() == [1, 1, 1]  # the first call's are gone
    net.eval()(x)
    assert records() == [1, 1, 1]  # an evaluation in between does no harm
    net.train().backward(x)
    assert records() == [0, 0, 0]
    with pytest.raises(RuntimeError, match=r"Sequential.backward has no recorded forward call"):
        net.backward(x)
    net.eval()(x)
    assert records() == [0, 0, 0]
    with nn.recording():
        net(x)
        assert records() == [1, 1, 1]
        with nn.recording(False):
            net.train()(x)
        net.eval()
    net.backward(x)
    net.train()
    with nn.recording(False):
        net(x)
    assert records() == [0, 0, 0]
    net[1].eval()  # frozen statistics inside a network that trains
    before = net[1].running_mean.copy()
    net(x)
    assert records() == [1, 1, 1]
    np.testing.assert_array_equal(net[1].running_mean, before)
    assert net[1].num_batches_tracked == 4
    net[1](x)  # an outermost call of its own, in eval mode
    assert records() == [1, 1, 1]
    assert net.forward(x).shape == x.shape  # no call: nothing is decided, nothing is kept
    assert records() == [1, 1, 1]


def test_a_pass_that_fails_leaves_nothing(rng):
    net = nn.Sequential(nn.ReLU(), nn.Linear(3, 3, **F64))
    with pytest.raises(ValueError, match="x"):
        net(rng.standard_normal((2, 4)))
    assert not net[0]._saved
    assert not nn.is_recording()
    net(rng.standard_normal((2, 3)))
    assert len(net._saved) == 1


def test_threads_decide_for_themselves(rng):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    x = rng.standard_normal((16, 3, 8, 8)).astype(np.float32)
    expected = net(x)
    faults = []

    def run():
        for _ in range(20):
            faults.extend(["differs"] * (nn.is_recording() or not np.array_equal(net(x), expected)))

    workers = [threading.Thread(target=run) for _ in range(4)]
    with nn.recording():
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not faults
    assert all(not module._saved for module in net.modules())


def test_gradients_add_up(rng):
    for name in ("conv2d", "linear", "batch_norm2d", "separable", "conv_transpose2d", "group_norm"):
        net, x, *_ = layer(name)
        y = net(x)
        net.backward(y)
        once = {n: p.grad.copy() for n, p in net.named_parameters()}
        net(x)
        net.backward(y)
        for label, p in net.named_parameters():
            np.testing.assert_allclose(p.grad, 2 * once[label], rtol=1e-11, atol=1e-11)
        net.zero_grad()
        assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["conv2d", "linear", "batch_norm2d", "separable", "group_norm"])
def test_parameters_that_changed_are_noticed(name):
    net, x, *_ = layer(name)
    y = net(x)
    parameter = next(iter(net.parameters()))
    parameter.assign(parameter.data)
    with pytest.raises(RuntimeError, match="weight was changed after the forward call"):
        net.backward(y)


# ------------------------------------------------------------------------------------------------------------ plans


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "conv_transpose2d", "depthwise", "separable", "linear"])
def test_plans_are_held_and_dropped(name):
    net, x, *_ = layer(name)
    if name == "depthwise":
        net = nn.DepthwiseConv2d(3, 3, **F64)
    net.eval()
    first = net(x)
    held = net._plans[1]
    (plan,) = held.values()
    net(x)
    assert list(net._plans[1].values()) == [plan]
    weight = next(iter(net.parameters()))
    weight.assign(weight.data * 2)
    second = net(x)
    assert net._plans[1] is not held
    assert not np.array_equal(first, second)
    with nn.recording():
        np.testing.assert_array_equal(net(x), second)
    with nn.recording():
        net(x)
        net.backward(second)
    nn.SGD(net.parameters(), 0.1).step()
    third = net(x)
    with nn.recording():
        np.testing.assert_array_equal(net(x), third)
    assert not np.array_equal(third, second)
    assert copy.deepcopy(net)._plans == ((), {})


def test_plans_are_few(rng):
    net = nn.Conv2d(2, 3, 3).eval()
    for size in range(4, 16):
        x = rng.standard_normal((1, 2, size, size)).astype(np.float32)
        with nn.recording():
            expected = net(x)
        np.testing.assert_array_equal(net(x), expected)
    assert len(net._plans[1]) == 8
    net(x[:, :, :, ::2])
    net(np.concatenate([x, x]))
    assert len(net._plans[1]) == 8
    for isa in fastconv.available_isas():
        before = fastconv.get_isa()
        fastconv.set_isa(isa)
        try:
            with nn.recording():
                expected = net(x)
            np.testing.assert_array_equal(net(x), expected)
        finally:
            fastconv.set_isa(before)
    assert net(x[:0]).shape == (0, 3, 13, 13)
    assert net(x[0]).shape == (3, 13, 13)


# ---------------------------------------------------------------------------------------------- parameters, modules


def test_parameters():
    source = np.arange(6.0).reshape(2, 3).T
    p = nn.Parameter(source)
    source[0, 0] = 9
    assert p.data[0, 0] == 0
    assert p.data.flags.c_contiguous
    assert (p.shape, p.dtype, p.ndim, p.size) == ((3, 2), np.float64, 2, 6)
    with pytest.raises(ValueError, match="read-only"):
        p.data[0, 0] = 1
    with pytest.raises(AttributeError):
        p.data = source
    before, version = p.data, p.version
    p.assign(np.ones((3, 2)))
    assert p.version > version
    assert before[2, 1] == 5
    np.testing.assert_array_equal(np.asarray(p), np.ones((3, 2)))
    np.testing.assert_array_equal(np.matmul(p, np.ones(2)), [2, 2, 2])
    with pytest.raises(TypeError, match=r"array \(dtype float32\) must have the parameter's dtype, float64"):
        p.assign(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"array \(shape \(2, 3\)\) must have the parameter's shape, \(3, 2\)"):
        p.assign(np.ones((2, 3)))
    with pytest.raises(TypeError, match=r"data \(dtype int64\)"):
        nn.Parameter([1, 2])
    with pytest.raises(TypeError, match=r"grad \(dtype float32\)"):
        p.grad = np.ones((3, 2), np.float32)
    with pytest.raises(TypeError, match=r"grad \(list\)"):
        p.grad = [1.0]
    with pytest.raises(ValueError, match=r"grad \(shape \(2,\)\)"):
        p.grad = np.ones(2)
    with pytest.raises(ValueError, match="writable"):
        p.grad = np.broadcast_to(1.0, (3, 2))
    p.grad = np.ones((3, 2))
    again = pickle.loads(pickle.dumps(p))
    np.testing.assert_array_equal(again.grad, p.grad)
    again.assign(np.zeros((3, 2)))
    assert p.data.all()
    assert "requires_grad=False" in repr(nn.Parameter(np.zeros(2), requires_grad=False))


def test_attributes_register_themselves():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(np.zeros(2))
            self.inner = nn.Linear(2, 3)
            self.register_buffer("seen", np.zeros((), np.int64))
            self.register_buffer("none", None)
            self.number = 3

    net = Net()
    assert list(net.state_dict()) == ["w", "seen", "inner.weight", "inner.bias"]
    assert [name for name, _ in net.named_parameters()] == ["w", "inner.weight", "inner.bias"]
    assert [name for name, _ in net.named_buffers()] == ["seen"]
    assert len(list(net.buffers())) == 1
    assert [name for name, _ in net.named_modules()] == ["", "inner"]
    assert [name for name, _ in net.named_children()] == ["inner"]
    assert net.get_submodule("inner") is net.inner
    assert net.get_submodule("") is net
    with pytest.raises(ValueError, match=r"target \(='inner.x'\)"):
        net.get_submodule("inner.x")
    net.seen = np.array(4)
    assert net.state_dict()["seen"] == 4
    with pytest.raises(TypeError, match=r"w is a parameter: w.assign"):
        net.w = np.zeros(2)
    with pytest.raises(TypeError, match="inner is a module"):
        net.inner = 3
    net.inner = nn.ReLU()
    assert list(net.state_dict()) == ["w", "seen"]
    net.inner = None
    assert net.inner is None
    assert list(net.modules()) == [net]
    net.w = None
    assert list(net.state_dict()) == ["seen"]
    del net.seen
    assert not net.state_dict()
    with pytest.raises(AttributeError):
        net.seen  # noqa: B018
    for name, words in (("a.b", "no dot"), ("", "not empty"), ("forward", "already")):
        with pytest.raises(ValueError, match=words):
            net.register_buffer(name, None)
    with pytest.raises(TypeError, match="must be a Parameter or None"):
        net.register_parameter("p", np.zeros(2))
    with pytest.raises(TypeError, match="must be a Module or None"):
        net.add_module("m", np.zeros(2))

    class Late(nn.Module):
        def __init__(self):
            self.w = nn.Parameter(np.zeros(2))

    with pytest.raises(AttributeError, match=r"must call super\(\).__init__\(\)"):
        Late()
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(3)
    with pytest.raises(NotImplementedError, match="Module has no backward"):
        nn.Module().backward(3)


def test_shared_parameters_count_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert net.num_parameters() == 15
    assert len(net.state_dict()) == 4
    net = nn.Sequential(net[0], net[0])
    assert len(list(net.modules())) == 2
    seen = []
    net.apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Linear", "Linear", "Sequential"]


def test_state_dicts_and_their_refusals():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    state = net.state_dict()
    assert list(state) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    state["0.bias"][:] = 7
    assert not (net[0].bias.data == 7).any()
    views = net.state_dict(copy=False)
    assert np.shares_memory(views["0.weight"], net[0].weight.data)
    assert not any(value.flags.writeable for value in views.values())
    bad = {**state, "0.bias": np.zeros(4), "2.weight": 1, "1.bias": np.ones(3)}
    del bad["0.weight"], bad["1.weight"]
    with pytest.raises(ValueError, match="does not fit Sequential") as caught:
        net.load_state_dict(bad)
    for words in (
        "missing: 0.weight, 1.weight",
        "unexpected: 2.weight",
        "of the wrong shape: 0.bias (shape (4,), expected (3,))",
    ):
        assert words in str(caught.value)
    assert not net[1].bias.data.any()
    with pytest.raises(ValueError, match="of the wrong shape"):
        net.load_state_dict(bad, strict=False)
    assert not net[1].bias.data.any()
    del bad["0.bias"]
    net.load_state_dict(bad, strict=False)
    assert net[1].bias.data.all()
    assert net[1].bias.dtype == np.float32  # the module's
    with pytest.raises(TypeError, match=r"state\['1.num_batches_tracked'\] \(dtype float64\)"):
        net.load_state_dict({**state, "1.num_batches_tracked": np.array(1.0)})
    with pytest.raises(TypeError, match=r"state\['0.weight'\].*numbers"):
        net.load_state_dict({**state, "0.weight": "words"})
    with pytest.raises(TypeError, match=r"state \(of type list\)"):
        net.load_state_dict([])


def test_astype():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net[0].weight.grad = np.zeros((3, 2), np.float32)
    assert net.astype(np.float64) is net
    assert {value.dtype for name, value in net.state_dict().items() if "tracked" not in name} == {np.dtype(np.float64)}
    assert net.state_dict()["1.num_batches_tracked"].dtype == np.int64
    assert net[0].weight.grad is None
    for dtype in (np.float16, np.int32, "words", None):
        with pytest.raises(TypeError, match=r"dtype .* must be float32 or float64"):
            net.astype(dtype)


def test_seeds_decide_the_initial_values():
    def values(rng):
        return nn.Conv2d(3, 4, 3, rng=rng).weight.data

    np.testing.assert_array_equal(values(5), values(5))
    assert not np.array_equal(values(5), values(6))
    nn.manual_seed(5)
    first = values(None)
    assert not np.array_equal(first, values(None))
    np.testing.assert_array_equal(first, values(5))
    generator = np.random.Generator(np.random.Philox(5))
    np.testing.assert_array_equal(first, values(generator))
    nn.manual_seed(5)
    bound = 1 / np.sqrt(27)
    assert 0.9 * bound < np.abs(first).max() < bound
    large = nn.Parameter(np.zeros((200, 100, 3, 3)))
    for draw, std in (
        (nn.init.kaiming_normal_, np.sqrt(2 / 900)),
        (nn.init.kaiming_uniform_, np.sqrt(2 / 900)),
        (nn.init.xavier_normal_, np.sqrt(2 / 2700)),
        (nn.init.xavier_uniform_, np.sqrt(2 / 2700)),
        (nn.init.normal_, 1.0),
    ):
        draw(large)
        assert large.data.std() == pytest.approx(std, rel=0.02)
        assert abs(large.data.mean()) < 0.02 * std
    nn.init.kaiming_normal_(large, mode="fan_out", nonlinearity="relu", rng=1)
    assert large.data.std() == pytest.approx(np.sqrt(2 / 1800), rel=0.02)
    nn.init.uniform_(large, 2, 3)
    assert 2 <= large.data.min() <= large.data.max() <= 3
    nn.init.constant_(large, 0.5)
    assert (large.data == 0.5).all()
    for kind, words, call in (
        (ValueError, "at least 2 dimensions", lambda: nn.init.kaiming_normal_(nn.Parameter(np.zeros(3)))),
        (ValueError, "mode", lambda: nn.init.kaiming_normal_(large, mode="fan")),
        (ValueError, "nonlinearity", lambda: nn.init.kaiming_normal_(large, nonlinearity="gelu")),
        (TypeError, r"rng \(='x'\)", lambda: nn.Linear(2, 2, rng="x")),
        (ValueError, r"seed \(=-1\)", lambda: nn.manual_seed(-1)),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_dropout(rng):
    x = rng.uniform(1, 2, (4, 50, 6, 7)).astype(np.float32)
    layer = nn.Dropout(0.3, seed=1)
    y = layer(x)
    dropped = y == 0
    assert dropped.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(y[~dropped], x[~dropped] / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(layer.backward(x), y)
    np.testing.assert_array_equal(nn.Dropout(0.3, seed=1)(channels_last(x)), y)
    state = layer.random_state()
    second = layer(x)
    assert not np.array_equal(second, y)
    layer.set_random_state(state)
    np.testing.assert_array_equal(layer(x), second)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer))(x), copy.deepcopy(layer)(x))
    assert layer.eval()(x) is x
    assert nn.Dropout(0)(x) is x
    assert not nn.Dropout(1)(x).any()
    planes = nn.Dropout2d(0.4, seed=2)(x)
    assert ((planes == 0).all((2, 3)) | (planes != 0).all((2, 3))).all()
    assert 0.3 < (planes == 0).mean() < 0.5
    nn.manual_seed(1)
    first = nn.Dropout()(x)
    nn.manual_seed(1)
    np.testing.assert_array_equal(nn.Dropout()(x), first)
    net = nn.Sequential(nn.ReLU(), nn.Dropout())
    assert list(net.random_state()) == ["1"]
    with pytest.raises(ValueError, match=r"states \(of \[\]\) must have the names \['1'\]"):
        net.set_random_state({})
    for kind, words, call in (
        (ValueError, r"p \(=1.5\)", lambda: nn.Dropout(1.5)),
        (TypeError, r"p \(='x'\)", lambda: nn.Dropout("x")),
        (ValueError, r"seed \(=-1\)", lambda: nn.Dropout(seed=-1)),
        (TypeError, r"x \(of type list\)", lambda: nn.Dropout()([1.0])),
        (ValueError, "at least 3 dimensions", lambda: nn.Dropout2d()(x[0, 0])),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_containers():
    net = nn.Sequential(nn.ReLU(), nn.Tanh())
    net.append(nn.SiLU()).extend([nn.Sigmoid()])
    assert len(net) == 4
    assert [type(module).__name__ for module in net] == ["ReLU", "Tanh", "SiLU", "Sigmoid"]
    assert len(net[1:3]) == 2
    assert net[-1] is net[3]
    net[0] = nn.Identity()
    assert isinstance(net[0], nn.Identity)
    named = nn.Sequential({"conv": nn.Conv2d(2, 3, 3), "act": nn.ReLU()})
    assert list(named.state_dict()) == ["conv.weight", "conv.bias"]
    assert isinstance(named.conv, nn.Conv2d)
    below = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert list(below.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert len(below[:1]) == 1
    table = nn.ModuleDict({"a": nn.Linear(2, 2)})
    table["b"] = nn.ReLU()
    table["b"] = nn.Tanh()
    assert list(table) == list(table.keys()) == ["a", "b"]
    assert "a" in table
    assert len(table) == len(table.values()) == len(table.items()) == 2
    assert isinstance(table["b"], nn.Tanh)
    x = np.zeros((2, 3))
    for kind, words, call in (
        (TypeError, r"modules\[1\] \(of type int\)", lambda: nn.Sequential(nn.ReLU(), 3)),
        (IndexError, r"index \(=9\)", lambda: net[9]),
        (TypeError, "must be a Module", lambda: net.__setitem__(0, 3)),
        (KeyError, "c", lambda: table["c"]),
        (TypeError, r"body \(of type NoneType\)", lambda: nn.Residual(None)),
        (TypeError, r"activation \(of type str\)", lambda: nn.Residual(nn.ReLU(), None, "relu")),
        (ValueError, "at least one", lambda: nn.Concat()),
        (TypeError, r"branches\[0\] \(of type int\)", lambda: nn.Concat(3)),
        (ValueError, r"body's result \(shape \(2, 4\)\)", lambda: nn.Residual(nn.Linear(3, 4, **F64))(x)),
    ):
        with pytest.raises(kind, match=words):
            call()


@pytest.mark.parametrize(
    ("kind", "words", "call"),
    [
        (ValueError, r"groups \(=3\) must divide in_channels \(=32\)", lambda: nn.Conv2d(32, 6, 3, groups=3)),
        (ValueError, r"groups \(=3\) must divide out_channels \(=4\)", lambda: nn.Conv2d(3, 4, 3, groups=3)),
        (ValueError, r"in_channels \(=0\) must be at least 1", lambda: nn.Conv2d(0, 4, 3)),
        (TypeError, r"out_channels \(=1.5\) must be an integer", lambda: nn.Conv2d(1, 1.5, 3)),
        (ValueError, r"kernel_size \(=0\) must be at least 1", lambda: nn.Conv2d(1, 1, 0)),
        (ValueError, r"kernel_size \(=\(3, 3, 3\)\)", lambda: nn.Conv2d(1, 1, (3, 3, 3))),
        (TypeError, r"kernel_size \(='x'\)", lambda: nn.Conv2d(1, 1, "x")),
        (ValueError, r"stride \(=0\) must be at least 1", lambda: nn.Conv1d(1, 1, 1, 0)),
        (ValueError, r"padding \(='some'\)", lambda: nn.Conv2d(1, 1, 3, padding="some")),
        (ValueError, r"padding_mode \(='mirror'\)", lambda: nn.Conv2d(1, 1, 3, padding_mode="mirror")),
        (ValueError, r"output_padding \(=2\) must be smaller", lambda: nn.ConvTranspose2d(1, 1, 3, 2, 0, 2)),
        (TypeError, "dtype .* must be float32 or float64", lambda: nn.Conv2d(1, 1, 3, dtype=np.float16)),
        (ValueError, r"multiplier \(=0\)", lambda: nn.DepthwiseConv2d(3, 3, multiplier=0)),
        (ValueError, r"in_features \(=-1\)", lambda: nn.Linear(-1, 3)),
        (ValueError, r"kernel_size \(=0\)", lambda: nn.MaxPool2d(0)),
        (ValueError, "output_size", lambda: nn.AdaptiveAvgPool2d((1, 2, 3))),
        (TypeError, r"keepdims \(=1\)", lambda: nn.GlobalAvgPool2d(1)),
        (ValueError, r"momentum \(=2\)", lambda: nn.BatchNorm2d(3, momentum=2)),
        (ValueError, r"eps \(=-1\)", lambda: nn.BatchNorm2d(3, eps=-1)),
        (TypeError, r"eps \(='x'\)", lambda: nn.LayerNorm(3, "x")),
        (ValueError, r"num_groups \(=2\) must divide num_channels \(=3\)", lambda: nn.GroupNorm(2, 3)),
        (ValueError, r"must have 4 dimensions in BatchNorm2d", lambda: nn.BatchNorm2d(3)(np.zeros((2, 3), np.float32))),
        (ValueError, "4 dimensions and 3 channels", lambda: nn.InstanceNorm2d(3)(np.zeros((2, 4, 3, 3), np.float32))),
        (ValueError, r"approximate \(='erf'\)", lambda: nn.GELU("erf")),
        (ValueError, "exactly one of size", lambda: nn.Upsample()),
        (ValueError, r"mode \(='cubic'\)", lambda: nn.Upsample(2, mode="cubic")),
        (ValueError, "align_corners", lambda: nn.Upsample(2, align_corners=True)),
        (ValueError, r"scale_factor \(=0\)", lambda: nn.Upsample(scale_factor=0)),
        (ValueError, "must have 4 dimensions", lambda: nn.Upsample(2, mode="bilinear")(np.zeros((1, 2, 3)))),
        (ValueError, "2 spatial axes", lambda: nn.Upsample((2, 2, 2))(np.zeros((1, 2, 3, 3)))),
        (ValueError, "must leave elements", lambda: nn.Upsample(scale_factor=0.1)(np.zeros((1, 2, 3)))),
        (TypeError, r"x \(of type int\)", lambda: nn.Upsample(2)(3)),
        (ValueError, r"start_dim \(=3\)", lambda: nn.Flatten(3)(np.zeros((2, 3)))),
        (ValueError, r"squeeze_channels \(=0\)", lambda: nn.SqueezeExcite(3, 0)),
        (AttributeError, "no attribute 'mn'", lambda: fastconv.mn),
    ],
)
def test_errors(kind, words, call):
    with pytest.raises(kind, match=words):
        call()


def test_every_layer_is_tested():
    """Each module that `nn` exports is in the table above, or in a test of its own."""
    made = {type(module) for make, _, _ in LAYERS.values() for module in make().modules()}
    apart = {nn.Module, nn.Add, nn.ModuleList, nn.ModuleDict, nn.Dropout, nn.Dropout2d}
    exported = {getattr(nn, name) for name in nn.__all__}
    layers = {entry for entry in exported if isinstance(entry, type) and issubclass(entry, nn.Module)}
    assert layers <= made | apart


def test_nn_is_imported_when_it_is_asked_for():
    code = """
import sys, fastconv
assert "fastconv.nn" not in sys.modules
assert fastconv.nn.ReLU
assert not {"torch", "safetensors"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
