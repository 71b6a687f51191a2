"""`convert`: models of PyTorch that nobody wrote for it give what they gave, and stay what they were."""

import copy
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

import fastconv

from ..frameworks import require

torch = require("torch")

from fastconv.integrations.torch import convert, refresh, report  # noqa: E402 - without torch there is none

# The module; of the same name in the package is its function.
MODULE = sys.modules[convert.__module__]
TRAINING = sys.modules[convert.__module__.replace("convert", "_training")]
nn, functional = torch.nn, torch.nn.functional
TESTS = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """The models of these tests are small, and would be left for that."""
    monkeypatch.setattr(MODULE, "_LEAST", 0)


def load_file(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, TESTS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_models():
    return load_file("torch_models.py")


def settle(model, seed=0):
    """Weights and statistics such as training leaves, so that no layer is without effect."""
    torch.manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            if m.weight is not None:
                m.weight.data.uniform_(0.5, 1.5)
                m.bias.data.normal_(0, 0.1)
    return model.eval()


def tensors(value):
    """The tensors of what a model gives."""
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def check(model, *args, whole=True, **kwargs):
    """Converts a model in eval mode, and holds what it gives against PyTorch's in float64; the converted model.

    An error may be four times that of PyTorch in float32, and a few roundings where that has none; in float64 the
    truth has the roundings of a whole network itself.
    """
    converted = convert(model)
    with torch.no_grad():
        expected = tensors(model(*args, **kwargs))
        found = tensors(converted(*args, **kwargs))
        again = tensors(converted(*args, **kwargs))
        exact = copy.deepcopy(model).double()
        wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        truth = tensors(exact(*wide, **kwargs))
    assert len(found) == len(expected) > 0
    for y, same, theirs, y64 in zip(found, again, expected, truth, strict=True):
        assert y.shape == theirs.shape
        assert y.dtype == theirs.dtype
        assert torch.equal(y, same)
        size = y64.abs().max()
        few = 8 if y.dtype == torch.float32 else 64
        slack = 4 * (theirs - y64).abs().max() + few * torch.finfo(y.dtype).eps * size
        assert (y - y64).abs().max() <= slack
        assert size > 0
    states = [entry.state for entry in report(converted).entries]
    assert "network" in states
    if whole:
        assert states[0] == "network", str(report(converted))
    return converted


# ------------------------------------------------------------------------------------------------------- networks

SMALL = {
    "lenet5": (lambda t: t.LeNet5(), (2, 1, 32, 32)),
    "alexnet": (lambda t: t.AlexNet(1 / 16), (2, 3, 95, 111)),
    "vgg11": (lambda t: t.VGG(t.VGG11, 1 / 32), (2, 3, 49, 64)),
    "vgg16": (lambda t: t.VGG(t.VGG16, 1 / 32), (2, 3, 35, 64)),
    "vgg19": (lambda t: t.VGG(t.VGG19, 1 / 32), (2, 3, 32, 40)),
    "googlenet": (lambda t: t.GoogLeNet(), (2, 3, 67, 50)),
    "resnet18": (lambda t: t.ResNet(t.BasicBlock, (2, 2, 2, 2), 1, 16), (2, 3, 65, 70)),
    "resnet50": (lambda t: t.ResNet(t.Bottleneck, (3, 4, 6, 3), 4, 8), (2, 3, 65, 70)),
    "densenet121": (lambda t: t.DenseNet121(8), (2, 3, 64, 67)),
    "xception": (lambda t: t.Xception(), (1, 3, 71, 64)),
    "mobilenet_v2": (lambda t: t.MobileNetV2(), (2, 3, 64, 50)),
    "efficientnet_b0": (lambda t: t.EfficientNetB0(), (2, 3, 64, 50)),
    "unet": (lambda t: t.UNet(4, 0), (1, 1, 190, 205)),
    "unet same": (lambda t: t.UNet(4, 1), (2, 1, 32, 48)),
    "c3d": (lambda t: t.C3D(1 / 32), (1, 3, 16, 112, 112)),
    "conv_autoencoder": (lambda t: t.Autoencoder(8), (2, 3, 32, 24)),
}
# What must be fused: nodes that must not be left, and how many there may be at most.
FUSED = {
    "resnet18": ({"affine", "activation", "add"}, 23),
    "resnet50": ({"affine", "activation", "add"}, 56),
    "mobilenet_v2": ({"affine", "activation", "add"}, 21),
    "efficientnet_b0": ({"affine", "activation", "add", "gate", "multiply"}, 20),
    "googlenet": ({"affine", "activation"}, 81),
    "unet same": ({"activation"}, 31),
}


def network(converted):
    """The network of a model that is one."""
    (run,) = converted.forward.runs.values()
    return run.network


@pytest.mark.parametrize("name", SMALL)
def test_architectures(name):
    make, shape = SMALL[name]
    model = settle(make(torch_models()))
    converted = check(model, torch.randn(shape))
    if name in FUSED:
        gone, steps = FUSED[name]
        nodes = network(converted).graph.nodes
        assert not gone & {node.op for node in nodes}, network(converted).describe()
        assert len(nodes) <= steps


def transformers_models():
    """Small forms of models whose code was not written for this."""
    require("transformers")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers as t

        widths = {"embedding_size": 8, "hidden_sizes": [16, 32, 64], "depths": [2, 1, 1]}
        vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        vit |= {"image_size": 64, "patch_size": 8}
        swin = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
        seg = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "decoder_hidden_size": 32}
        yolos = vit | {"image_size": [64, 64], "num_detection_tokens": 5}
        convnext = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
        efficient = {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320}
        return {
            "ResNet": (t.ResNetForImageClassification, t.ResNetConfig(layer_type="bottleneck", **widths)),
            "ResNet basic": (t.ResNetForImageClassification, t.ResNetConfig(layer_type="basic", **widths)),
            "MobileNetV2": (t.MobileNetV2ForImageClassification, t.MobileNetV2Config(depth_multiplier=0.35)),
            "MobileNetV2 same": (
                t.MobileNetV2ForImageClassification,
                t.MobileNetV2Config(depth_multiplier=0.35, tf_padding=True),
            ),
            "EfficientNet": (t.EfficientNetForImageClassification, t.EfficientNetConfig(**efficient)),
            "ConvNeXt": (t.ConvNextForImageClassification, t.ConvNextConfig(**convnext)),
            "Swin": (t.SwinForImageClassification, t.SwinConfig(**swin)),
            "ViT": (t.ViTForImageClassification, t.ViTConfig(**vit)),
            "DINOv2": (t.Dinov2ForImageClassification, t.Dinov2Config(**vit)),
            "SegFormer": (t.SegformerForSemanticSegmentation, t.SegformerConfig(**seg)),
            "YOLOS": (t.YolosForObjectDetection, t.YolosConfig(**yolos)),
            "BiT": (
                t.BitForImageClassification,
                t.BitConfig(embedding_size=16, num_groups=4, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 1, 1]),
            ),
        }


TRANSFORMERS = (
    *("ResNet", "ResNet basic", "MobileNetV2", "MobileNetV2 same", "EfficientNet", "ConvNeXt", "Swin", "ViT", "DINOv2"),
    *("SegFormer", "YOLOS", "BiT"),
)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    make, config = transformers_models()[name]
    torch.manual_seed(0)
    model = settle(make(config))
    x = torch.randn(2, 3, 64, 64)
    check(model, x)


BENCH = load_file("../bench/convert.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCH.MODELS)
def test_full_size(name):
    """Those that bench/convert.py measures, each one network."""
    require("transformers")
    row = BENCH.measure(name, 224, 1)
    assert (row["networks"], row["left"]) == (1, 0)


def test_example(capsys):
    before = fastconv.get_num_threads(), torch.get_num_threads()
    try:
        load_file("../examples/convert_pytorch.py").main(2, 1)
    finally:
        fastconv.set_num_threads(before[0])
        torch.set_num_threads(before[1])
    assert "network (the model)" in capsys.readouterr().out


def test_outputs_that_transformers_collects():
    """Hidden states come by hooks, which do nothing where they are not asked for."""
    make, config = transformers_models()["ConvNeXt"]
    model = settle(make(config))
    converted = convert(model)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for wanted in (False, True, False, True):
            expected = model(x, output_hidden_states=wanted)
            found = converted(x, output_hidden_states=wanted)
            assert list(expected) == list(found)
            assert len(tensors(expected)) == len(tensors(found))
            for y, theirs in zip(tensors(found), tensors(expected), strict=True):
                torch.testing.assert_close(y, theirs, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------- what is done


class Block(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.f = f

    def forward(self, x):
        return self.f(self, x)


def inplace(m, x):
    y = m.norm(m.conv(x))
    y += x
    z = y
    z.relu_()
    return y.mul_(2) - z.sigmoid()


def image_last(m, x):
    y = m.conv(x).permute(0, 2, 3, 1)
    y = functional.layer_norm(y, (16,), m.norm.weight, m.norm.bias)
    y = functional.linear(y, m.conv.weight[:, :, 0, 0].contiguous())
    return x + functional.gelu(y).permute(0, 3, 1, 2)


def squeeze(m, x):
    y = functional.silu(m.conv(x))
    gate = torch.sigmoid(y.mean((2, 3), keepdim=True))
    return y * gate + y * torch.sigmoid(y)


def branches(m, x):
    a, b = m.conv(x).chunk(2, 1)
    c = torch.cat([b, a.exp(), x[:, 4:8, ::1]], 1)
    return {"a": a, "c": [c, (c.flatten(1), 3, None)], "sizes": tuple(c.shape)}


def shuffle(m, x):
    n, c, h, w = x.size()
    y = m.norm(m.conv(x)).view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
    return torch.nn.functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)


def padded(m, x):
    y = functional.conv2d(functional.pad(x, (1, 2, 0, 3)), m.conv.weight, m.conv.bias, stride=2)
    y = functional.pad(y, (1, 1, 1, 1), mode="reflect")
    y = functional.conv2d(y, m.conv.weight, padding="same", dilation=2)
    return functional.pad(y, (-1, -1, 0, -2)) + 1


def standardized(m, x):
    w = m.conv.weight
    return functional.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True), m.conv.bias)


def attention(m, x):
    y = m.conv(x).flatten(2).transpose(1, 2)
    q, k, v = (t.view(t.shape[0], -1, 4, 4).transpose(1, 2) for t in (y, y + 1, 2 - y))
    y = functional.scaled_dot_product_attention(q, k, v)
    z = torch.softmax(q @ k.transpose(-2, -1) / 4, -1) @ v
    return (y + z).transpose(1, 2).reshape(x.shape[0], -1, 16) - (1 - y.mean())


def pooled(m, x):
    y = functional.max_pool2d(m.conv(x), 3, 2, 1, ceil_mode=True)
    y = functional.avg_pool2d(y, 2, 1, 1, count_include_pad=False)
    return functional.adaptive_max_pool2d(functional.adaptive_avg_pool2d(y, (5, 4)), 1), functional.lp_pool2d(y, 2, 2)


def beyond(m, x):
    y = m.conv(x)
    return functional.avg_pool2d(y, 64, ceil_mode=True), functional.max_pool2d(y, (64, 40), ceil_mode=True)


def made(m, x):
    y = torch.cat([m.conv(x), torch.zeros_like(x), x.new_full((2, 1, 20, 18), 0.5)], 1)
    a, b = y[:, :2].unbind(1)
    return torch.stack([a, b.expand_as(a)], 1) + torch.ones_like(a)[:, None], y.movedim(1, -1)


FORWARDS = (made, inplace, image_last, squeeze, branches, shuffle, padded, standardized, attention, pooled, beyond)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("f", FORWARDS, ids=lambda f: f.__name__)
def test_forwards(f, last):
    model = settle(Block(f))
    x = torch.randn(2, 16, 20, 18)
    check(model, x.to(memory_format=torch.channels_last) if last else x)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_ranks(rank, dtype):
    """Each layer in one, two and three dimensions, transposed ones and modes of padding among them."""
    conv, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    model = nn.Sequential(
        conv(6, 8, 3, stride=2, padding=1, padding_mode="circular"),
        norm(8),
        nn.LeakyReLU(0.2),
        conv(8, 8, 3, groups=4, bias=False),
        nn.Hardswish(),
        getattr(nn, f"ConvTranspose{rank}d")(8, 6, 3, stride=2, output_padding=1),
        nn.InstanceNorm1d(6) if rank == 1 else getattr(nn, f"InstanceNorm{rank}d")(6, affine=True),
        getattr(nn, f"AvgPool{rank}d")(2),
        nn.Dropout(),
        nn.GroupNorm(3, 6),
        getattr(nn, f"MaxPool{rank}d")(2, 1, 1),
        nn.Flatten(2),
    )
    check(settle(model).to(dtype), torch.randn(2, 6, *(24, 17, 13)[:rank], dtype=dtype))


def test_memory_order():
    """As PyTorch's: C order for C order, channels-last for channels-last, whatever the network does inside."""
    model = settle(nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3)))
    converted, x = convert(model), torch.randn(2, 8, 20, 24)
    with torch.inference_mode():
        assert converted(x).is_contiguous()
        y = converted(x.to(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert not y.is_contiguous()
        strided = torch.randn(20, 8, 24, 2).permute(3, 1, 0, 2)
        torch.testing.assert_close(converted(strided), model(strided), rtol=1e-5, atol=1e-5)
        assert len(converted.forward.runs) == 3


@pytest.mark.parametrize(
    "f",
    [
        lambda m, y: functional.group_norm(y, 4),
        lambda m, y: functional.pixel_shuffle(y, 2),
        lambda m, y: functional.pixel_unshuffle(y, 2),
        lambda m, y: functional.relu(y).contiguous(),
        lambda m, y: functional.pad(y, (1, 1, 1, 1)),
    ],
    ids=["group_norm", "pixel_shuffle", "pixel_unshuffle", "contiguous", "pad"],
)
def test_memory_order_of_functions(f):
    model = Odd(f).eval()
    converted = convert(model)
    for x in (X, X.contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            assert converted(x).stride() == model(x).stride()
        assert report(converted).entries[0].state == "network"


def test_inference_mode():
    """As without gradients; weights made in it have no versions, and are left."""
    model, x = settle(Block(standardized)), torch.randn(2, 16, 20, 18)
    converted = convert(model)
    with torch.inference_mode():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-5)
        assert report(converted).entries[0].state == "network"
        unseen = convert(settle(Block(standardized)))
        unseen(x)
    assert report(unseen).entries[0].reason == "weights made in inference mode, whose changes cannot be seen"
    with torch.no_grad():
        for m in (model, converted):
            m.conv.weight += torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-5)


def test_results_are_the_callers():
    """A result is nobody else's memory: not the input's, not a parameter's, not the next call's."""
    model = settle(nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten()))
    converted = convert(model)
    x = torch.randn(2, 8, 20, 24)
    with torch.no_grad():
        first = converted(x)
        kept = first.clone()
        second = converted(x + 1)
        assert torch.equal(first, kept)
        first.zero_()
        assert not torch.equal(second, first)
        assert torch.equal(converted(x), kept)


CLONES = {
    "clone": lambda y: (y, y.clone()),
    "view": lambda y: (y.flatten(1).clone(), y, y.clone().permute(0, 2, 3, 1)),
    "expand": lambda y: [y[:1].expand(2, -1, -1, -1).clone(), y],
    "contiguous": lambda y: [y, y.clone().contiguous(), y.contiguous()],
    "pad": lambda y: {"y": y, "padded": functional.pad(y, (0, 0))},
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", CLONES)
def test_clones(name, last):
    """Results share memory only where PyTorch's do."""
    model = Odd(lambda m, y: CLONES[name](functional.relu(y))).eval()
    x = X.contiguous(memory_format=torch.channels_last) if last else X
    converted = check(model, x)
    for _ in range(2):
        with torch.no_grad():
            expected, found = tensors(model(x)), tensors(converted(x))
        for i, (y, theirs) in enumerate(zip(found, expected, strict=True)):
            y.fill_(i + 1)
            theirs.fill_(i + 1)
        for y, theirs in zip(found, expected, strict=True):
            assert torch.equal(y, theirs)


# -------------------------------------------------------------------------------------------- what it stays to be


def small(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16)]
    return settle(nn.Sequential(*layers, nn.Sequential(nn.Conv2d(16, 12, 1), nn.BatchNorm2d(12))), seed)


X = torch.randn(2, 8, 24, 24, generator=torch.Generator().manual_seed(5))


def same(model, converted, x=X):
    """Whether a converted model gives what another gives, and by a network."""
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-5)
    return report(converted).entries[0].state == "network"


def test_modules_stay():
    model = small()
    converted = convert(model)
    assert same(model, converted)
    assert list(converted.state_dict()) == list(model.state_dict())
    pairs = list(zip(converted.named_modules(), model.named_modules(), strict=True))
    assert all(name == other and type(m) is type(n) and m is not n for (name, m), (other, n) in pairs)
    assert "forward" not in model.__dict__
    assert repr(converted) == repr(model)
    assert convert(model, inplace=True) is model
    assert same(small(), model)
    assert convert(model, inplace=True) is model
    assert same(small(), model)


def test_copies():
    """Copies are converted, and are their own."""
    model = small()
    converted = convert(model)
    assert same(model, converted)
    stream = io.BytesIO()
    torch.save(converted, stream)
    stream.seek(0)
    others = [
        copy.deepcopy(converted),
        pickle.loads(pickle.dumps(converted)),
        torch.load(stream, weights_only=False),
    ]
    for other in others:
        assert other.forward.module is other
        assert report(other).entries[0].state == "waiting"
        assert same(model, other)
        with torch.no_grad():
            other[0].weight.zero_()
        assert same(model, converted)
        assert not torch.equal(other(X), model(X))


def test_shallow_copies():
    """They run the forward of what they were copied from, until they are converted."""
    converted = convert(Odd(lambda m, y: y * m.calls).eval())
    converted.calls = 1
    shallow = convert(copy.copy(converted), inplace=True)
    shallow.calls = 10
    with torch.no_grad():
        torch.testing.assert_close(shallow(X), converted(X) * 10)
    assert shallow.forward.module is shallow
    assert converted.forward.module is converted


def rescale(model):
    with torch.no_grad():
        model[0].weight.mul_(1.5)


def load(model):
    model.load_state_dict(small(seed=3).state_dict())


def step(model):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(X).square().mean().backward()
    optimizer.step()
    model.eval()


def fused_step(model):
    """An optimiser that changes parameters without a count, and without a change of mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        model(X).square().mean().backward()
    optimizer.step()


def wrap(model):
    own = model[0].forward
    model[0].forward = lambda x: own(x) * 2


def wrap_activation(model):
    model[2].forward = lambda x: x.clamp(0, 0.5)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def reclass(model):
    model[0].__class__ = Doubled


def unconvert(model):
    model[0].__dict__.pop("forward", None)
    model[0].__class__ = Doubled


def assign(model):
    model[3].weight.data = model[3].weight.data * 2


def replace(model):
    model[4][0] = nn.Conv2d(16, 12, 1, bias=False)
    model[4][0].weight.data.fill_(0.1)


def renew(model):
    model[0].weight = nn.Parameter(model[0].weight.detach() + 1)


def drop(model):
    model[4] = nn.Identity()


def recompute(model):
    """Statistics anew, in train mode, without a gradient."""
    model.train()
    with torch.no_grad():
        model(X)
    model.eval()


CHANGES = (rescale, load, step, fused_step, assign, replace, renew, drop, recompute, reclass, unconvert)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changes_are_noticed(change):
    model = small()
    converted = convert(model)
    with torch.no_grad():
        before = converted(X)
    assert same(model, converted)
    for m in (model, converted):
        change(m)
    assert same(model, converted)
    with torch.no_grad():
        after = converted(X)
    assert before.shape != after.shape or not torch.allclose(before, after, rtol=1e-3)


def test_a_forward_replaced_later():
    """A tracer's, say, around one that was converted; and its end."""
    model = small()
    converted = convert(model)
    assert same(model, converted)
    for change, kind in ((wrap_activation, "ReLU"), (wrap, "Conv2d")):
        own = model[0].forward, converted[0].forward
        for m in (model, converted):
            change(m)
        assert not same(model, converted)
        assert report(converted).entries[0].reason == f"the forward of a {kind} in it is replaced"
        model[0].forward, converted[0].forward = own
        for m in (model, converted):
            m[2].__dict__.pop("forward", None)
        refresh(converted)
        assert same(model, converted)


def test_optimizers_of_other_models():
    """Their steps are no reason to make a network anew, even where they hold a parameter that gets no gradient."""
    model = small()
    converted = convert(model)
    assert same(model, converted)
    made = network(converted)
    other = nn.Linear(3, 3)
    optimizer = torch.optim.Adam([*other.parameters(), *converted.parameters()], fused=True)
    for _ in range(3):
        other(torch.randn(2, 3)).sum().backward()
        optimizer.step()
        assert same(model, converted)
    assert network(converted) is made


def test_weights_of_inference_mode():
    """They have no count of their changes: left as it is, while they are there."""
    model = small()
    converted = convert(model)
    assert same(model, converted)
    kept = converted[3].weight
    for m in (model, converted):
        with torch.inference_mode():
            m[3].weight = nn.Parameter(torch.ones(16, 1, 3, 3), requires_grad=False)
    for _ in range(4):
        assert not same(model, converted)
    assert "inference mode" in report(converted).entries[0].reason
    model[3].weight = converted[3].weight = kept
    with torch.no_grad():
        for _ in range(9):
            converted(X)
    assert same(model, converted)


def test_tensors_that_are_no_parameters():
    """Their changes, and gradients, are noticed as well."""
    model = Odd(lambda m, y: y + m.offset).eval().requires_grad_(False)
    converted = convert(model)
    assert same(model, converted)
    for m in (model, converted):
        m.offset += 1
    assert same(model, converted)
    converted.offset.requires_grad_()
    converted(X).sum().backward()
    assert converted.offset.grad is not None
    assert same(model, converted)


def test_refresh():
    """What PyTorch does not count is seen when one says so."""
    model = small()
    converted = convert(model)
    assert same(model, converted)
    for m in (model, converted):
        m[0].weight.detach().numpy()[:] += 1
        m[3].padding = (1, 2)
    refresh(converted)
    assert same(model, converted)


def test_a_mode_of_its_own():
    """Dropout switched on alone draws, in a model in eval mode."""
    model = settle(nn.Sequential(nn.Conv2d(8, 16, 3), nn.Dropout(), nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU())))
    converted = convert(model)
    assert same(model, converted)
    converted[1].train()
    with torch.no_grad():
        assert not torch.equal(converted(X), converted(X))
    assert report(converted).entries[0].reason == "dropout in training mode"
    assert [entry.name for entry in report(converted).networks] == ["0", "2"]
    converted[1].eval()
    assert same(model, converted)


def test_dtypes_come_and_go():
    converted = convert(small())
    with torch.no_grad():
        y = converted(X)
        z = converted.double()(X.double())
        assert z.dtype == torch.float64
        assert report(converted).entries[0].state == "network"
        torch.testing.assert_close(y, z.float(), rtol=1e-5, atol=1e-5)
        assert converted.bfloat16()(X.bfloat16()).dtype == torch.bfloat16
    first = report(converted).entries[0]
    assert (first.state, first.reason) == ("left", "an input of torch.bfloat16")


def test_a_state_that_keeps_changing():
    """It is not worth networks, until it stays."""
    model = small()
    converted = convert(model)
    weights = [w + 0.1 * i for i, w in enumerate([converted[0].weight.detach()] * 12)]
    made = 0
    with torch.no_grad():
        for w in weights:
            y = torch.func.functional_call(converted, {"0.weight": w}, (X,))
            torch.testing.assert_close(
                y, torch.func.functional_call(model, {"0.weight": w}, (X,)), rtol=1e-4, atol=1e-4
            )
            made += report(converted).entries[0].state == "network"
    assert made <= 9
    assert any(same(model, converted) for _ in range(300))
    refresh(converted)
    assert same(model, converted)


def test_many_shapes():
    """The networks of a few shapes are kept, whatever comes."""
    converted, model = convert(small()), small()
    with torch.no_grad():
        for i in (*range(20, 40), *range(20, 40)):
            x = X[:, :, :i, :] if i <= 24 else torch.randn(1, 8, i, 24)
            torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-5)
    assert len(report(converted).networks) == 1
    assert len(converted.forward.runs) <= 5


# ------------------------------------------------------------------------------------------------- what is left


def left(model, x=X):
    """The reasons for what a converted model leaves; its numbers are PyTorch's."""
    converted = convert(model)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-5)
    return {entry.name: entry.reason for entry in report(converted).left}, converted


def test_hooks():
    """They are called, and what is around them is left; the rest is not."""
    model, calls = small(), []
    model[1].register_forward_hook(lambda m, args, y: calls.append(type(y)))
    reasons, converted = left(model)
    assert reasons == {"": "a module in it has hooks"}
    assert {entry.name for entry in report(converted).networks} >= {"0", "1", "4"}
    assert calls == [torch.Tensor, torch.Tensor]
    converted[4][0].register_forward_pre_hook(lambda m, args: calls.append("later"))
    with torch.no_grad():
        converted(X)
    assert calls[2:] == [torch.Tensor, "later"]


def test_parametrisations():
    model = small()
    torch.nn.utils.parametrizations.weight_norm(model[0])
    reasons, _ = left(model)
    assert reasons[""] == "a module in it has a parametrisation"
    assert "4" not in reasons


def test_forwards_that_are_replaced():
    model = small()
    convolve = model[0].forward
    model[0].forward = lambda x: convolve(x) * 2
    converted = convert(model)
    with torch.no_grad():
        converted(X)
    reasons = {entry.name: entry.reason for entry in report(converted).left}
    assert reasons == {"": "the forward of a Conv2d in it is replaced", "0": "its forward is replaced"}


class Standardized(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Same(nn.Conv2d):
    def forward(self, x):
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class Loud(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else super().forward(-x)


@pytest.mark.parametrize("kind", [Standardized, Same])
def test_subclasses(kind):
    """They are what their own forward does."""
    check(settle(nn.Sequential(kind(8, 8, 3), nn.BatchNorm2d(8))), X)


def test_numbers_that_decide():
    """A forward that looks at numbers runs as it is, and what it calls is one network each."""
    for sign in (1, -1):
        model = settle(
            nn.Sequential(Loud(8, 16, 3), nn.BatchNorm2d(16), nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU()))
        )
        reasons, converted = left(model, X + sign)
        assert reasons == {"": "the function gt", "0": "the function gt"}
        assert [entry.name for entry in report(converted).networks] == ["1", "2"]


class Odd(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.conv, self.calls, self.f = nn.Conv2d(8, 16, 3), 0, f
        self.register_buffer("seen", torch.zeros(()))
        self.found, self.offset = [], torch.ones(16, 1, 1)

    def forward(self, x):
        return self.f(self, self.conv(x))


def counts(m, y):
    m.calls += 1
    return y


def tallies(m, y):
    m.seen.add_(1)
    return y


def lists(m, y):
    m.found.append(y)
    return y


def draws(m, y):
    return y + torch.rand(())


def keeps(m, y):
    m.kept = y
    return y


def numbers(m, y):
    return y.numpy()


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (counts, "a forward that changes its module"),
        (keeps, "a forward that changes its module"),
        (lists, "a forward that changes its module"),
        (tallies, "a forward that changes its module"),
        (draws, "a forward that draws random numbers"),
        (numbers, "the function numpy"),
    ],
)
def test_what_cannot_be_followed(f, reason):
    model = Odd(f).eval()
    converted = convert(model)
    with torch.no_grad():
        for turn in (1, 2, 3):
            torch.manual_seed(turn)
            expected = model(X)
            torch.manual_seed(turn)
            found = converted(X)
            assert converted.calls == model.calls
            assert torch.equal(converted.seen, model.seen)
            assert list(map(type, converted.found)) == [torch.Tensor] * len(model.found)
            assert type(found) is type(expected)
            torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-5, atol=1e-5)
    assert [(e.name, e.state, e.reason) for e in report(converted).entries[:1]] == [("", "left", reason)]
    assert [e.name for e in report(converted).networks] == ["conv"]


class Filled(nn.Module):
    """Its forward hands on what it computes by a list or a dict of the caller's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3)

    def forward(self, x, into):
        y = self.conv(x)
        if isinstance(into, dict):
            into["y"] = y
        else:
            into.append(y)
        return y + 1


@pytest.mark.parametrize("kind", [list, dict])
def test_arguments_that_are_filled(kind):
    converted = convert(Filled().eval())
    with torch.no_grad():
        for _ in range(3):
            into = kind()
            y = converted(X, into)
            (kept,) = into.values() if kind is dict else into
            assert torch.equal(kept + 1, y)
    assert report(converted).entries[0].reason == "a forward that changes its arguments"
    assert [e.name for e in report(converted).networks] == ["conv"]


@pytest.mark.parametrize("fails", [False, True])
def test_tensors_that_are_kept(fails):
    """A forward that keeps tensors where nobody looks keeps PyTorch's, and those of each call."""
    kept, tied, other = [], {}, Exception()

    def forward(m, y):
        kept.append(y)
        if not hasattr(other, "y"):
            other.y = y
        tied["y"] = (y, [y])
        return y.clamp(min=y.max().item()) if fails else y

    model = Odd(forward).eval()
    converted = convert(model)
    with torch.no_grad():
        for turn in (1, 2, 3):
            converted(X)
            assert len(kept) == turn
            assert list(map(type, [*kept, tied["y"][0], *tied["y"][1], other.y])) == [torch.Tensor] * (turn + 3)
    if not fails:
        assert report(converted).entries[0].reason == "a forward that keeps what it computes"
    assert [e.name for e in report(converted).networks] == ["conv"]


def notes(m, y):
    m.width = y.shape[-1]
    m.kept = (m.width, "wide")
    return y[..., : m.width - 1]


def test_a_forward_that_settles():
    """What it notes of its kind of input is noted, and does not keep it from being followed."""
    model = Odd(notes).eval()
    converted = convert(model)
    assert same(model, converted)
    assert converted.width == 22
    assert converted.kept == (22, "wide")


def test_modes():
    """Autocast, compilation, tracing, vmap and gradients are PyTorch's."""
    model = small()
    converted = convert(model)
    for p in converted.parameters():
        p.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(converted(X), model(X))
        assert converted(X).dtype == torch.bfloat16
    x = X.clone().requires_grad_()
    converted(x).sum().backward()
    assert x.grad is not None
    assert report(converted).entries[0].reason == "gradients are asked for"
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(converted)(X[None]), torch.func.vmap(model)(X[None]))
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            assert torch.equal(torch.jit.trace(converted, X, check_trace=False)(X), model(X))
        compiled = torch.compile(converted, backend="eager", fullgraph=True)
        assert torch.equal(compiled(X), model(X))
        assert torch.equal(torch.export.export(converted, (X,)).module()(X), model(X))
        assert not report(converted).networks
        torch.testing.assert_close(torch.fx.symbolic_trace(converted)(X), model(X), rtol=1e-5, atol=1e-5)
        assert same(model, converted)


def gradients(model, x):
    for p in model.parameters():
        p.grad = None
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    model(x).square().mean().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_gradients(last, monkeypatch):
    """In training, and in eval mode where a parameter wants one: by the operators, where they are a gain."""
    called = []
    for kind, (run, own) in list(TRAINING._LAYERS.items()):

        def noted(own, module, x, run=run):
            y = run(own, module, x)
            called.append((type(module).__name__, y is not None))
            return y

        monkeypatch.setitem(TRAINING._LAYERS, kind, (noted, own))
    for name in ("_DENSE", "_DEPTHWISE", "_ELEMENTS"):
        monkeypatch.setattr(TRAINING, name, 0)
    layers = [nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(16, 16, 3, stride=2, groups=16), nn.AvgPool2d(2), nn.Flatten(2), nn.Conv1d(16, 8, 3)]
    layers += [nn.Conv2d(1, 4, 3, padding="same"), nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, 1))]
    model = settle(nn.Sequential(*layers[:8], nn.Unflatten(1, (1, 8)), *layers[8:]))
    converted, x = convert(model), X.contiguous(memory_format=torch.channels_last) if last else X
    for training in (True, False):
        called.clear()
        model.train(training)
        converted.train(training)
        for found, expected in zip(gradients(converted, x), gradients(model, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(converted.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)
        taken = {(name, y) for name, y in called}
        assert {("Conv2d", True), ("Conv1d", True)} <= taken
        assert ("BatchNorm2d", training and not last) in taken
        assert ("MaxPool2d", not last) in taken
        assert ("Conv2d", False) in taken or not last
    assert report(converted).entries[0].reason == "gradients are asked for"


@pytest.mark.parametrize("kind", [nn.MaxPool2d, nn.AvgPool2d])
def test_windows_larger_than_the_image(kind):
    """PyTorch takes them in ceil mode."""
    options = {"dilation": 2} if kind is nn.MaxPool2d else {}
    window = 4 if options else 7
    model = nn.Sequential(kind(window, 3, 1 if not options else 0, ceil_mode=True, **options))
    x = torch.randn(64, 64, 6 if options else 4, 9)
    converted = convert(model)
    assert torch.equal(model(x), converted(x))
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(x), model.eval()(x))


def test_small_layers_train_as_they_are():
    model = small()
    converted = convert(model)
    for found, expected in zip(gradients(converted, X[:1, :, :9]), gradients(model, X[:1, :, :9]), strict=True):
        assert torch.equal(found, expected)


def test_wrong_arguments():
    for f in (convert, refresh, report):
        with pytest.raises(TypeError, match=r"model \(of type str\) must be a torch\.nn\.Module"):
            f("model")
    converted = convert(small())
    with torch.no_grad(), pytest.raises(RuntimeError, match="expected input"):
        converted(X[:, :5])
    with torch.no_grad(), pytest.raises(TypeError):
        converted()


def test_threads():
    """Calls from several threads, the first ones among them, give what one gives."""
    model = small()
    converted = convert(model)
    with torch.no_grad():
        expected = model(X)
    found, barrier = [], threading.Barrier(4)

    def run():
        barrier.wait()
        with torch.no_grad():
            found.extend([converted(X) for _ in range(5)])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for y in found:
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_too_small(monkeypatch):
    """A call of a network costs more than a layer of a few pixels."""
    monkeypatch.undo()
    reasons, _ = left(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)).eval(), torch.randn(1, 3, 9, 9))
    assert set(reasons.values()) == {"it is too small for what a call of a network costs"}
    assert list(reasons) == ["", "0", "1"]
    check(settle(nn.Sequential(nn.Conv2d(32, 32, 3), nn.MaxPool2d(2))), torch.randn(1, 32, 40, 40))


def test_report():
    model = nn.Sequential(small(), nn.Conv2d(12, 12, 1), nn.Upsample(scale_factor=2))
    model.append(nn.Sequential(nn.Linear(44, 3), nn.Tanh()))
    model[0][1].register_forward_hook(lambda *_: None)
    converted = convert(model.eval())
    assert [e.state for e in report(converted).entries if e.name in ("", "0", "1")] == ["waiting"] * 3
    with torch.no_grad():
        converted(X)
    assert str(report(converted)).splitlines() == [
        "left    (the model) (Sequential): a module in it has hooks",
        "left    0 (Sequential): a module in it has hooks",
        "network 0.0 (Conv2d): 1 step",
        "network 0.1 (BatchNorm2d): 1 step",
        "network 0.3 (Conv2d): 1 step",
        "network 0.4 (Sequential): 1 step",
        "network 1 (Conv2d): 1 step",
        "2 modules are parts of these networks",
    ]


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_training(optimizer):
    """A converted model trains as one that is not, and its networks follow."""
    losses = []
    for model in (small(), convert(small())):
        step, found = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01), []
        for _ in range(4):
            model.train()
            loss = model(X).square().mean()
            step.zero_grad()
            loss.backward()
            step.step()
            model.eval()
            with torch.no_grad():
                found += [loss.item(), model(X).square().mean().item()]
        losses.append(found)
    assert losses[0][-1] != losses[0][1]
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-5, atol=1e-6)


def test_data_parallel(tmp_path):
    """Two processes that share each batch see the losses, and reach the model, of one that has it whole."""
    script = TESTS / "children" / "data_parallel.py"

    def start(rank, world):
        command = [sys.executable, "-W", "ignore", str(script), str(rank), str(world), str(tmp_path / "meeting")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    processes = [start(0, 2), start(1, 2)]
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found.append(json.loads(out))
    found.append(load_file("children/data_parallel.py").train())
    first, second, alone = found
    means = (torch.tensor(first["losses"]) + torch.tensor(second["losses"])) / 2
    torch.testing.assert_close(means, torch.tensor(alone["losses"]), rtol=1e-5, atol=1e-6)
    assert alone["losses"][-1] != alone["losses"][0]
    assert first["seen"] == second["seen"]
    torch.testing.assert_close(torch.tensor(first["seen"]), torch.tensor(alone["seen"]), rtol=1e-4, atol=1e-5)
    assert all(process["states"] == ["network"] for process in found)
