"""`nn.summary`: shapes against real passes, parameters, multiply-adds, receptive fields and memory by hand."""

import sys

import numpy as np
import pytest

from fastconv import models, nn


def quiet(model, shape, **options):
    return nn.summary(model, shape, show=False, **options)


def fields(model, shape):
    return [row.receptive_field for row in quiet(model, shape).rows]


class Recorded(nn.Module):
    """Notes the shape of what it is given."""

    def __init__(self, notes):
        super().__init__()
        self.notes = notes

    def forward(self, x):
        self.notes.append(x.shape)
        return x


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1, 2, 2), (2, 4, 11)),
    "conv2d pairs": (lambda: nn.Conv2d(2, 3, 3, padding=((0, 2), 1)), (1, 2, 4, 5)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, 3, 2, "same"), (1, 2, 5, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 3)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2), (2, 4, 4, 3)),
    "separable": (lambda: nn.SeparableConv2d(3, 5, 3, 2, 1), (2, 3, 6, 5)),
    "linear": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "max_pool": (lambda: nn.MaxPool2d(2, ceil_mode=True), (2, 2, 5, 7)),
    "global flat": (lambda: nn.GlobalAvgPool2d(keepdims=False), (2, 3, 4, 5)),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 2, 5, 7)),
    "upsample": (lambda: nn.Upsample(scale_factor=(1.7, 0.6)), (1, 2, 5, 8)),
    "batch_norm": (lambda: nn.BatchNorm2d(3), (2, 3, 3, 4)),
    "layer_norm": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer_norm_channels": (lambda: nn.LayerNormChannels(3), (2, 3, 4, 4)),
    "local_response_norm": (lambda: nn.LocalResponseNorm(3), (2, 5, 3, 2)),
    "flatten some": (lambda: nn.Flatten(0, 1), (2, 3, 4, 2)),
    "dropout": (lambda: nn.Dropout(0.5), (2, 3)),
    "softmax": (lambda: nn.Softmax(1), (2, 3, 4)),
    "squeeze_excite": (lambda: nn.SqueezeExcite(4, 2), (2, 4, 3, 3)),
    "residual": (lambda: nn.Residual(nn.Conv2d(2, 2, 3, padding=1), None, nn.SiLU()), (1, 2, 3, 4)),
    "concat": (lambda: nn.Concat(nn.Conv2d(2, 3, 1), nn.Identity()), (2, 2, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_those_of_a_call(name):
    make, shape = LAYERS[name]
    net = make()
    y = net.eval()(np.zeros(shape, np.float32))
    found = quiet(net, shape)
    assert found.output_shape == y.shape
    assert found.rows[-1].output_shape[0] == y.shape[0]
    assert sum(row.parameters for row in found.rows) == found.parameters == net.num_parameters()


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "densenet121", "efficientnet_b0", "xception"])
def test_shapes_of_networks_are_those_of_a_call(name):
    """Each layer's, in the order of the calls."""
    shape, seen = (2, 3, 64, 50), []
    net = models.create(name, num_classes=7, rng=0).eval()

    def watch(module, label):
        forward = module.forward

        def watched(*args):
            y = forward(*args)
            seen.append((label, y.shape))
            return y

        object.__setattr__(module, "forward", watched)

    rows = [(row.name, row.output_shape) for row in quiet(net, shape).rows]
    for label, module in net.named_modules():
        watch(module, label)
    net(np.zeros(shape, np.float32))
    names = {label for label, _ in rows}
    assert [entry for entry in seen if entry[0] in names] == rows


def test_multiply_adds_by_hand():
    for module, shape, macs in (
        (nn.Conv2d(4, 6, (3, 2), 2, groups=2), (3, 4, 9, 8), 3 * 6 * 4 * 4 * 2 * 3 * 2),
        (nn.Conv1d(2, 3, 3, padding=1), (1, 2, 10), 10 * 3 * 2 * 3),
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
        (nn.Linear(5, 4), (2, 3, 5), 6 * 20),
        (nn.SeparableConv2d(3, 5, 3, padding=1), (1, 3, 4, 4), 16 * 3 * 9 + 16 * 3 * 5),
        (nn.SqueezeExcite(8, 2), (2, 8, 4, 4), 2 * 2 * 16),
        (nn.BatchNorm2d(3), (1, 3, 4, 4), 0),
    ):
        assert quiet(module, shape).macs == macs


def test_receptive_fields_by_hand():
    row = nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.ReLU(), nn.Conv2d(1, 1, (3, 1), dilation=2), nn.MaxPool2d(2))
    assert fields(row, (1, 1, 40, 40)) == [(3, 3), (3, 3), (11, 3), (13, 5)]
    # The larger one of two paths; what follows has its distance.
    net = nn.Sequential(nn.Concat(nn.Conv2d(1, 1, 5, padding=2), nn.Conv2d(1, 1, 3, padding=1)), nn.Conv2d(2, 1, 3))
    assert fields(net, (1, 1, 9, 9)) == [(5, 5), (3, 3), (7, 7)]
    net = nn.Sequential(nn.Residual(nn.Conv2d(1, 1, 3, padding=1)), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(1, 1))
    assert fields(net, (1, 1, 8, 6)) == [(3, 3), (10, 8), (10, 8), (10, 8)]
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(24, 1))
    assert fields(net, (1, 1, 8, 6)) == [(3, 3), (8, 6), (8, 6)]
    net = nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.ConvTranspose2d(1, 1, 2, 2), nn.Conv2d(1, 1, 3))
    assert fields(net, (1, 1, 8, 8)) == [(2, 2), (2, 2), (4, 4)]
    net = nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"))
    assert fields(net, (1, 1, 8, 8)) == [(2, 2), (4, 4)]
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d(3))
    assert fields(net, (1, 1, 8, 8)) == [(2, 2), (2, 2), (6, 6)]


def test_what_a_module_makes_itself_has_the_field_of_what_it_has_seen():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SqueezeExcite(4, 2), nn.Conv2d(4, 1, 3))
    assert fields(net, (1, 1, 9, 9)) == [(3, 3)] * 5 + [(5, 5)]


def test_a_receptive_field_is_what_changes_the_result(rng):
    """The pixels of the image that a pixel of the result depends on, found by changing them."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, padding=1, rng=1),
        nn.Residual(nn.Conv2d(2, 2, 3, padding=1, rng=2), nn.Conv2d(2, 2, 1, rng=3)),
        nn.AvgPool2d(3, 2),
        nn.Conv2d(2, 1, (2, 1), rng=4),
    ).eval()
    x = rng.standard_normal((1, 1, 64, 64)).astype(np.float32)
    y = net(x)[0, 0]
    middle = tuple(size // 2 for size in y.shape)
    changed = np.zeros((64, 64), bool)
    for row, column in np.ndindex(64, 64):
        other = x.copy()
        other[0, 0, row, column] += 10
        changed[row, column] = net(other)[(0, 0, *middle)] != y[middle]
    extent = tuple(int(np.ptp(np.nonzero(changed)[axis])) + 1 for axis in (0, 1))
    assert fields(net, x.shape)[-1] == extent


def test_memory_by_hand():
    row = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    # The image, which the call holds, and the results of convolution and ReLU: 64, 128 and 128 numbers.
    assert quiet(row, (1, 1, 8, 8)).peak_bytes == 4 * (64 + 128 + 128)
    assert quiet(row, (1, 1, 8, 8), dtype=np.float64).peak_bytes == 8 * (64 + 128 + 128)
    # The image, what is added to it, and the sum.
    assert quiet(nn.Residual(nn.Conv2d(2, 2, 3, padding=1)), (1, 2, 8, 8)).peak_bytes == 4 * 3 * 128
    # The image twice (it is a branch), another branch, and both together.
    net = nn.Concat(nn.Identity(), nn.Conv2d(2, 4, 1))
    assert quiet(net, (1, 2, 8, 8)).peak_bytes == 4 * (128 + 256 + 384)
    # A view costs nothing.
    assert quiet(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Identity()), (1, 2, 8, 8)).peak_bytes == 4 * 128
    chain = nn.Sequential(*(nn.ReLU() for _ in range(5)))
    assert quiet(chain, (1, 2, 8, 8)).peak_bytes == 4 * 3 * 128


def test_parameters_count_once():
    shared = nn.Linear(3, 3)
    found = quiet(nn.Sequential(shared, nn.Tanh(), shared), (2, 3))
    assert [row.parameters for row in found.rows] == [12, 0, 0]
    assert found.parameters == 12
    assert found.macs == 2 * 18
    assert quiet(shared.freeze(), (2, 3)).trainable == 0
    assert found.parameter_bytes == 48


def test_a_module_of_ones_own_runs():
    notes = []
    net = nn.Sequential(nn.Conv2d(1, 2, 3), Recorded(notes), nn.ReLU())
    assert [row.type for row in quiet(net, (1, 1, 6, 6)).rows] == ["Conv2d", "Recorded", "ReLU"]
    assert notes == [(1, 2, 4, 4)]

    class Doubled(nn.Conv2d):
        def forward(self, x):
            return np.repeat(super().forward(x), 2, axis=1)

    assert quiet(Doubled(1, 2, 3), (1, 1, 6, 6)).output_shape == (1, 4, 4, 4)


def test_the_network_is_left_as_it_is():
    net = models.resnet18(3, width=4, rng=0)
    before, mode = net.state_dict(), net.training
    x = np.ones((2, 3, 32, 32), np.float32)
    y = net(x)
    quiet(net, x)
    # A recorded call still has its backward pass, and statistics are the call's own.
    net.backward(y)
    after = net.state_dict()
    assert int(after["bn1.num_batches_tracked"]) == int(before["bn1.num_batches_tracked"]) + 1
    assert net.training == mode
    assert all("forward" not in module.__dict__ for module in net.modules())


def test_text(capsys, monkeypatch):
    net = nn.Sequential({"conv": nn.Conv2d(1, 2, 3), "act": nn.ReLU()})
    monkeypatch.setitem(sys.modules, "rich.console", None)
    found = nn.summary(net, (1, 1, 6, 6))
    plain = capsys.readouterr().out
    assert plain == f"{found}\n"
    assert plain.splitlines()[2].split() == ["conv", "Conv2d", "1x2x4x4", "20", "288", "3"]
    assert "parameters  20 (20 trainable), 0.0 MB" in plain
    assert "MACs        288" in plain
    monkeypatch.undo()
    pytest.importorskip("rich")
    found.print()
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:3]] == [
        line.split() for line in plain.splitlines()[2:4]
    ]


def test_errors():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="channels"):
        quiet(net[0], (1, 2, 6, 6))
    with pytest.raises(ValueError, match="3"):
        quiet(net[:2], (1, 1, 6, 6))
    with pytest.raises(ValueError, match=r"in_features \(=4\)"):
        quiet(net[3], (1, 5))
    with pytest.raises(ValueError, match="positive"):
        quiet(net, (1, 0, 6))
    with pytest.raises(TypeError, match="shape"):
        quiet(net, "large")
    with pytest.raises(TypeError, match="Module"):
        quiet(3, (1, 1))
