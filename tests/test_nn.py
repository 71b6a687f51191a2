"""Layers and networks: gradients by finite differences and against PyTorch, recording, state, plans, errors."""

import copy
import pickle

import numpy as np
import pytest

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
