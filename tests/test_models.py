"""The architectures: published counts, names of weights, outputs and gradients against PyTorch, errors."""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fastconv import models, nn

HERE = Path(__file__).parent

# name: (input of the published figures, parameters, multiply-adds in units of 1e9 as published and their last digit).
# Parameters: torchvision's pages of its models; Xception: R. Cadene's pretrainedmodels; the others by their papers'
# layers. Multiply-adds: torchvision's "GFLOPS"; Xception: timm's table; C3D: MMAction2's.
PUBLISHED = {
    "lenet5": ((1, 1, 32, 32), 61_706, None),
    "alexnet": ((1, 3, 224, 224), 61_100_840, (0.71, 0.01)),
    "vgg11": ((1, 3, 224, 224), 132_863_336, (7.61, 0.01)),
    "vgg16": ((1, 3, 224, 224), 138_357_544, (15.47, 0.01)),
    "vgg19": ((1, 3, 224, 224), 143_667_240, (19.63, 0.01)),
    "googlenet": ((1, 3, 224, 224), 6_624_904, (1.50, 0.01)),
    "resnet18": ((1, 3, 224, 224), 11_689_512, (1.81, 0.01)),
    "resnet50": ((1, 3, 224, 224), 25_557_032, (4.09, 0.01)),
    "densenet121": ((1, 3, 224, 224), 7_978_856, (2.83, 0.01)),
    "xception": ((1, 3, 299, 299), 22_855_952, (8.4, 0.1)),
    "mobilenet_v2": ((1, 3, 224, 224), 3_504_872, (0.30, 0.01)),
    "efficientnet_b0": ((1, 3, 224, 224), 5_288_548, (0.39, 0.01)),
    "unet": ((1, 1, 572, 572), 31_030_658, None),
    "c3d": ((1, 3, 16, 112, 112), 79_991_015, (38.5, 0.1)),
    "conv_autoencoder": ((1, 3, 64, 64), None, None),
}


@pytest.fixture
def weightless(monkeypatch):
    """Parameters have shapes and no memory: all of VGG's would be half a gigabyte."""

    def keep(self, data, requires_grad=True):
        self._grad, self.requires_grad = None, requires_grad
        self._set(np.asarray(data))

    monkeypatch.setattr(nn.Parameter, "__init__", keep)
    monkeypatch.setattr(nn.Parameter, "assign", lambda self, array: None)
    monkeypatch.setattr(models._network, "_normal", lambda source, shape, deviation, dtype: np.zeros(1, dtype))


@pytest.mark.parametrize("name", models.names())
def test_published_counts(name, weightless):
    shape, parameters, macs = PUBLISHED[name]
    found = nn.summary(models.create(name), shape, show=False)
    if parameters is not None:
        assert found.parameters == parameters
    if macs is not None:
        assert abs(found.macs / 1e9 - macs[0]) <= macs[1] / 2 + 1e-9, found.macs


def test_counts_by_hand(weightless):
    """What no page publishes, from the papers' figures."""
    assert nn.summary(models.lenet5(), (1, 1, 32, 32), show=False).macs == sum(
        (28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25, 120 * 16 * 25, 84 * 120, 10 * 84)
    )
    found = nn.summary(models.unet(), (1, 1, 572, 572), show=False)
    assert found.output_shape == (1, 2, 388, 388)
    size, channels, macs = 572, 1, 0
    for level in range(9):
        wide = 64 << min(level, 8 - level)
        if 0 < level < 5:
            size //= 2
        elif level > 4:  # an upward layer, and the skipped channels
            macs += size * size * 2 * wide * wide * 4
            size, channels = 2 * size, 2 * wide
        macs += (size - 2) ** 2 * channels * wide * 9 + (size - 4) ** 2 * wide * wide * 9
        size, channels = size - 4, wide
    assert found.macs == macs + size * size * 64 * 2
    assert nn.summary(models.c3d(101), (1, 3, 16, 112, 112), show=False).parameters == 78_409_573
    w = 32
    convs = (3 * w + 2 * w * w + 8 * w * w) * 9
    assert models.conv_autoencoder().num_parameters() == 2 * convs + (w + 2 * w + 4 * w) + (2 * w + w + 3)
    assert models.googlenet().num_parameters() == 6_624_904


def test_receptive_fields(weightless):
    """As in Araujo et al., "Computing receptive fields of convolutional neural networks" (2019), table 1."""
    for name, layer, field in (
        ("alexnet", "features.12", 195),
        ("vgg16", "features.30", 212),
        ("resnet50", "layer4.2.add", 427),
    ):
        rows = nn.summary(models.create(name), (1, 3, 224, 224), show=False).rows
        assert next(row for row in rows if row.name == layer).receptive_field == (field, field)


def test_names_of_weights(weightless):
    """Those of torchvision and of pretrainedmodels, as they stand in the published files."""
    for name, expected in {
        "alexnet": {"features.10.weight": (256, 256, 3, 3), "classifier.6.bias": (1000,)},
        "vgg11": {"features.18.weight": (512, 512, 3, 3), "classifier.3.weight": (4096, 4096)},
        "vgg16": {"features.28.weight": (512, 512, 3, 3), "classifier.0.weight": (4096, 25088)},
        "vgg19": {"features.34.weight": (512, 512, 3, 3), "classifier.6.weight": (1000, 4096)},
        "googlenet": {
            "conv1.conv.weight": (64, 3, 7, 7),
            "inception3a.branch2.1.bn.running_var": (128,),
            "inception4d.branch3.1.conv.weight": (64, 32, 3, 3),
            "inception5b.branch4.1.conv.weight": (128, 832, 1, 1),
        },
        "resnet18": {"layer2.0.downsample.1.running_mean": (128,), "layer4.1.conv2.weight": (512, 512, 3, 3)},
        "resnet50": {"layer3.5.conv3.weight": (1024, 256, 1, 1), "layer1.0.downsample.0.weight": (256, 64, 1, 1)},
        "densenet121": {
            "features.conv0.weight": (64, 3, 7, 7),
            "features.denseblock3.denselayer24.conv1.weight": (128, 992, 1, 1),
            "features.transition3.conv.weight": (512, 1024, 1, 1),
            "features.norm5.num_batches_tracked": (),
        },
        "xception": {
            "block1.rep.0.conv1.weight": (64, 1, 3, 3),
            "block2.rep.1.pointwise.weight": (256, 128, 1, 1),
            "block12.skipbn.bias": (1024,),
            "block12.rep.4.pointwise.weight": (1024, 728, 1, 1),
            "bn4.weight": (2048,),
        },
        "mobilenet_v2": {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.1.conv.0.0.weight": (32, 1, 3, 3),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "features.17.conv.3.running_mean": (320,),
            "features.18.1.bias": (1280,),
            "classifier.1.weight": (1000, 1280),
        },
        "efficientnet_b0": {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.1.0.block.1.fc1.weight": (8, 32, 1, 1),
            "features.2.0.block.2.fc2.weight": (96, 4, 1, 1),
            "features.4.2.block.3.1.weight": (80,),
            "features.8.0.weight": (1280, 320, 1, 1),
            "classifier.1.bias": (1000,),
        },
    }.items():
        net = models.create(name)
        state = {n: a.shape for n, a in net.state_dict(copy=False).items()}
        assert {n: state.get(n) for n in expected} == expected


# ----------------------------------------------------------------------------------------------------------- numbers

# name: (options of a small form, its input, the same of torch_models).
SMALL = {
    "lenet5": ({}, (2, 1, 32, 32), lambda t: t.LeNet5()),
    "alexnet": ({"width": 1 / 16}, (2, 3, 95, 111), lambda t: t.AlexNet(1 / 16)),
    "vgg11": ({"width": 1 / 32}, (2, 3, 49, 64), lambda t: t.VGG(t.VGG11, 1 / 32)),
    "vgg16": ({"width": 1 / 32}, (2, 3, 35, 64), lambda t: t.VGG(t.VGG16, 1 / 32)),
    "vgg19": ({"width": 1 / 32}, (2, 3, 32, 40), lambda t: t.VGG(t.VGG19, 1 / 32)),
    "googlenet": ({}, (2, 3, 67, 50), lambda t: t.GoogLeNet()),
    "resnet18": ({"width": 16}, (2, 3, 65, 70), lambda t: t.ResNet(t.BasicBlock, (2, 2, 2, 2), 1, 16)),
    "resnet50": ({"width": 8}, (2, 3, 65, 70), lambda t: t.ResNet(t.Bottleneck, (3, 4, 6, 3), 4, 8)),
    "densenet121": ({"growth": 8}, (2, 3, 64, 67), lambda t: t.DenseNet121(8)),
    "xception": ({}, (2, 3, 71, 64), lambda t: t.Xception()),
    "mobilenet_v2": ({}, (2, 3, 64, 50), lambda t: t.MobileNetV2()),
    "efficientnet_b0": ({"stochastic_depth": 0.0}, (2, 3, 64, 50), lambda t: t.EfficientNetB0()),
    "unet": ({"width": 4}, (2, 1, 190, 205), lambda t: t.UNet(4, 0)),
    "unet same": ({"width": 4, "padding": "same"}, (2, 1, 32, 48), lambda t: t.UNet(4, 1)),
    "c3d": ({"width": 1 / 32}, (2, 3, 16, 112, 112), lambda t: t.C3D(1 / 32)),
    "conv_autoencoder": ({"width": 8}, (2, 3, 16, 24), lambda t: t.Autoencoder(8)),
}


def small(name, rng, **more):
    options, shape, _ = SMALL[name]
    options = {**options, **more}
    title = name.split()[0]
    if title not in ("unet", "conv_autoencoder"):
        options["num_classes"] = 10
    net = models.create(title, dtype=np.float64, rng=rng, **options)
    for module in net.modules():
        # Away from their initial values, where a wrong one would not show.
        if getattr(module, "running_mean", None) is not None:
            size = module.running_mean.shape
            module.running_mean, module.running_var = rng.normal(0, 0.1, size), rng.uniform(0.5, 2, size)
            module.weight.assign(rng.uniform(0.5, 1, size))
            module.bias.assign(rng.normal(0, 0.1, size))
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net, rng.standard_normal(shape)


def torch_models():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("torch_models", HERE / "torch_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_near(got, expected, bound, label=""):
    """The largest difference, in units of the largest value."""
    assert got.shape == expected.shape, label
    scale = np.abs(expected).max() if expected.size else 0.0
    assert np.abs(got - expected).max() <= bound * scale, (label, np.abs(got - expected).max() / scale)


@pytest.mark.parametrize("name", SMALL)
def test_against_torch(name, rng):
    """Outputs in eval mode; outputs, all gradients and running statistics in training mode. float64."""
    theirs_of, torch = torch_models(), importlib.import_module("torch")
    net, x = small(name, rng)
    theirs = SMALL[name][2](theirs_of).double()
    theirs.load_state_dict({n: torch.tensor(a) for n, a in net.state_dict().items()}, strict=True)
    tx = torch.tensor(x, requires_grad=True)
    with torch.no_grad():
        assert_near(net.eval()(x), theirs.eval()(tx).numpy(), 1e-13)
    y, ty = net.train()(x), theirs.train()(tx)
    dy = rng.standard_normal(y.shape)
    dx = net.backward(dy)
    ty.backward(torch.tensor(dy))
    # A batch norm over few pixels magnifies roundings: its gradient is a difference of what is nearly the same.
    assert_near(y, ty.detach().numpy(), 1e-11)
    assert_near(dx, tx.grad.numpy(), 1e-10, "input")
    grads = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
    largest = max(np.abs(g).max() for g in grads.values())
    for label, parameter in net.named_parameters():
        # The gradient of a bias before a batch norm is 0 but for roundings: the scale is that of all gradients there.
        assert np.abs(parameter.grad - grads[label]).max() <= 1e-10 * max(np.abs(grads[label]).max(), 1e-3 * largest)
    for label, value in theirs.state_dict().items():
        if "running" in label:
            assert_near(net.state_dict(copy=False)[label], value.numpy(), 1e-11, label)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_by_a_finite_difference(name, rng):
    """Along one direction of all parameters and the input at once, with running statistics."""
    net, x = small(name, rng)
    net.eval()
    with nn.recording():
        y = net(x)
        dy = rng.standard_normal(y.shape)
        dx = net.backward(dy)
    directions = {n: rng.choice([-1.0, 1.0], p.shape) * np.abs(p.data).mean() for n, p in net.named_parameters()}
    along = rng.choice([-1.0, 1.0], x.shape)
    expected = np.sum(dx * along) + sum(np.sum(p.grad * directions[n]) for n, p in net.named_parameters())
    before = {n: p.data for n, p in net.named_parameters()}
    step, values = 1e-7, []
    for sign in (1, -1):
        for n, p in net.named_parameters():
            p.assign(before[n] + sign * step * directions[n])
        values.append(np.sum(dy * net(x + sign * step * along)))
    # Where a maximum or a rectifier changes its mind within the step the difference is a little off.
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RuntimeError, match="no recorded forward"):
        [module.pop_saved() for module in net.modules()]


@pytest.mark.parametrize("name", SMALL)
def test_backward_without_the_input(name, rng):
    """The same gradients of the parameters, and nothing kept; channels last and float32 give near values."""
    net, x = small(name, rng)
    with nn.recording():
        y = net.eval()(x)
        dy = rng.standard_normal(y.shape)
        net.backward(dy)
        expected = {n: p.grad for n, p in net.named_parameters()}
        net.zero_grad()
        net(x)
        assert net.backward(dy, input_grad=False) is None
    for n, p in net.named_parameters():
        np.testing.assert_array_equal(p.grad, expected[n], err_msg=n)
    assert all(not module._saved for module in net.modules())
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    assert_near(net(last), y, 1e-12)
    single = net.astype(np.float32)(x.astype(np.float32))
    assert single.dtype == np.float32
    assert_near(single, y, 1e-4)


def test_a_block_spares_the_gradient_that_nobody_wants(rng, monkeypatch):
    asked, backward = [], nn.Conv2d.backward

    def watched(self, dy, *, input_grad=True):
        asked.append((self.out_channels, input_grad))
        return backward(self, dy, input_grad=input_grad)

    monkeypatch.setattr(nn.Conv2d, "backward", watched)
    row = {"conv1": nn.Conv2d(2, 3, 1), "act": nn.ReLU(), "conv2": nn.Conv2d(3, 4, 1)}
    block = models._network.Shortcut(row, {"skip": nn.Conv2d(2, 4, 1), "bn": nn.BatchNorm2d(4)}, nn.ReLU())
    block.backward(block(rng.standard_normal((2, 2, 3, 3)).astype(np.float32)), input_grad=False)
    assert asked == [(4, False), (4, True), (3, False)]


def test_frozen_features_cost_no_backward(rng):
    net, x = small("mobilenet_v2", rng)
    net.get_submodule("features").freeze()
    net.backward(net(x), input_grad=False)
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {"classifier.1.weight", "classifier.1.bias"}
    assert all(not module._saved for module in net.modules())


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "unet same", "c3d", "lenet5"])
def test_initial_values_keep_the_scale(name, rng):
    options, shape, _ = SMALL[name]
    wide = {"unet same": {"width": 8}, "lenet5": {}}.get(name, {"width": 1 / 8})
    net = models.create(name.split()[0], rng=3, **{**options, **wide}).eval()
    y = net(rng.standard_normal(shape).astype(np.float32))
    assert 0.1 < np.sqrt(np.mean(np.square(y))) < 10


def test_seeds(rng):
    x = rng.standard_normal((1, 3, 16, 16)).astype(np.float32)
    options = {"stochastic_depth": 0.5, "num_classes": 4}
    first, again, other = (models.efficientnet_b0(rng=seed, **options) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.eval()(x), again.eval()(x))
    assert np.any(first(x) != other.eval()(x))
    x = np.repeat(x, 4, axis=0)
    np.testing.assert_array_equal(first.train()(x), again.train()(x))
    double = models.efficientnet_b0(rng=1, dtype=np.float64, **options)
    for a, b in zip(first.parameters(), double.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data.astype(np.float32))


def test_stochastic_depth_drops_images(rng):
    layer = models.efficientnet_b0(2, rng=0).get_submodule("features.6.3.stochastic_depth")
    layer.p = 0.5
    y = layer(np.ones((64, 3, 2, 2), np.float32)).reshape(64, -1)
    assert set(y[:, 0]) == {0.0, 2.0}
    assert np.all(y == y[:, :1])


# -------------------------------------------------------------------------------------------------------------- files


def test_densenet_takes_the_published_names():
    net, other = models.densenet121(2, growth=2, rng=1), models.densenet121(2, growth=2, rng=2)
    old = {}
    for name, value in net.state_dict().items():
        for kind in ("norm", "conv"):
            for number in "12":
                name = name.replace(f".{kind}{number}.", f".{kind}.{number}.") if "denselayer" in name else name
        old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    # And as before PyTorch 0.4.1.
    other.load_state_dict({n: a for n, a in old.items() if not n.endswith("num_batches_tracked")})
    for (name, a), b in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_googlenet_passes_over_the_auxiliary_classifiers():
    net = models.googlenet(3)
    state = net.state_dict()
    net.load_state_dict({**state, "aux1.fc1.weight": np.zeros((1024, 2048)), "aux2.conv.bn.bias": np.zeros(128)})
    with pytest.raises(ValueError, match="unexpected: aux3"):
        net.load_state_dict({**state, "aux3.fc1.weight": np.zeros(2)})


def test_xception_takes_last_linear():
    net = models.xception(2)
    state = {n.replace("fc.", "last_linear."): a for n, a in net.state_dict().items()}
    assert "last_linear.weight" in state
    net.load_state_dict(state)


def test_a_missing_count_of_batches_is_an_error_where_others_are_there():
    net = models.resnet18(2, width=4)
    state = net.state_dict()
    del state["bn1.num_batches_tracked"]
    with pytest.raises(ValueError, match=r"missing: bn1\.num_batches_tracked"):
        net.load_state_dict(state)
    with pytest.raises(TypeError, match="mapping"):
        net.load_state_dict([1])


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "options", "shape", "layer"),
    [
        ("alexnet", {"width": 1 / 32}, (1, 3, 40, 40), r"features.12 \(MaxPool2d\)"),
        ("vgg11", {"width": 1 / 32}, (1, 3, 31, 31), r"features.20 \(MaxPool2d\)"),
        ("densenet121", {"growth": 2}, (2, 3, 28, 28), r"features.transition3.pool \(AvgPool2d\)"),
        ("xception", {}, (1, 3, 6, 6), r"conv2 \(Conv2d\)"),
        ("lenet5", {}, (1, 1, 28, 28), r"c5 \(Conv2d\)"),
        ("unet", {"width": 2}, (1, 1, 100, 100), r"\(Conv2d\)"),
        ("c3d", {"width": 1 / 32}, (1, 3, 16, 64, 64), r"fc6 \(Linear\)"),
        ("resnet18", {"width": 4}, (1, 1, 32, 32), r"conv1 \(Conv2d\)"),
    ],
)
@pytest.mark.parametrize("how", ["call", "training", "summary"])
def test_an_image_of_the_wrong_size_names_the_layer(name, options, shape, layer, how):
    net = models.create(name, **options).train(how == "training")
    with pytest.raises(ValueError, match=layer):
        net(np.zeros(shape, np.float32)) if how != "summary" else nn.summary(net, shape, show=False)


def test_smallest_sizes():
    """What the docstrings promise."""
    for name, options, size in (
        ("alexnet", {"width": 1 / 32}, 63),
        ("vgg11", {"width": 1 / 32}, 32),
        ("googlenet", {}, 31),
        ("densenet121", {"growth": 2}, 29),
        ("xception", {}, 7),
    ):
        net = models.create(name, **options).eval()
        assert nn.summary(net, (1, 3, size, size), show=False).output_shape == (1, 1000)
        with pytest.raises(ValueError, match=r"\((Conv2d|MaxPool2d|AvgPool2d)\)"):
            nn.summary(net, (1, 3, size - 1, size - 1), show=False)
    for name in ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0"):
        assert nn.summary(models.create(name), (1, 3, 1, 1), show=False).output_shape == (1, 1000)


def test_arguments():
    with pytest.raises(ValueError, match=r"name \(='resnet51'\) must be one of lenet5, alexnet"):
        models.create("resnet51")
    with pytest.raises(ValueError, match="width"):
        models.alexnet(width=0.0)
    with pytest.raises(TypeError, match="width"):
        models.vgg11(width="wide")
    with pytest.raises(ValueError, match="padding"):
        models.unet(padding="full")
    with pytest.raises(TypeError, match="dtype"):
        models.lenet5(dtype=np.int32)
    net = models.unet(width=2, padding="same")
    with pytest.raises(ValueError, match="multiples of 16"):
        net(np.zeros((1, 1, 40, 32), np.float32))
    assert models.names() == list(PUBLISHED)


def test_the_table_of_the_docs(weightless):
    """It is what `python -m fastconv.models` prints."""
    from fastconv.models.__main__ import table

    assert table() in (HERE.parent / "docs" / "models.md").read_text()


def test_rooms():
    """Architectures are built from nn alone."""
    for file in (Path(models.__file__).parent).glob("*.py"):
        text = file.read_text()
        assert "functional" not in text.replace("'functional'", ""), file
        assert "_core" not in text, file
