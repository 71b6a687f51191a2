"""Models of ONNX: the results of other runtimes and of float64, what is fused, what is refused and how."""

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import nn
from fastconv.__main__ import main

from ..frameworks import require
from ..test_bench_networks import TINY, described

onnx = require("onnx")

from onnx import helper  # noqa: E402 - after the skip

from fastconv.bench import networks, twin  # noqa: E402
from fastconv.integrations import onnx as integration  # noqa: E402
from fastconv.integrations.onnx import load  # noqa: E402
from fastconv.integrations.onnx.operators import OPERATORS  # noqa: E402

from . import onnx_models  # noqa: E402
from .onnx_models import BUILT, LIGHT, Builder, light  # noqa: E402


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def runtime(model: Any, inputs: dict[str, Any]) -> list[np.ndarray]:
    """ONNX Runtime's outputs."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def error(y: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in terms of the largest value."""
    assert y.shape == expected.shape
    return float(np.abs(y.astype(np.float64) - expected).max() / np.abs(expected).max())


# ------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", [v if v in LIGHT[:2] else pytest.param(v, marks=pytest.mark.slow) for v in LIGHT])
def test_light_networks(name: str) -> None:
    # Their sums have up to 25088 terms, a hundred layers: what is seen is below 1e-6 of the largest logit.
    model, x = light(name), image(1, 3, 224, 224)
    (y,) = integration.prepare(model).run([x])
    (y64,) = integration.prepare(light(name, np.float64)).run([x.astype(np.float64)])
    assert y.dtype == np.float32
    assert y64.dtype == np.float64
    assert y64.std() > 0.01
    assert error(y, y64) < 2e-6
    names = {tensor.name for tensor in model.graph.initializer}
    (entry,) = [info.name for info in model.graph.input if info.name not in names]
    (theirs,) = runtime(model, {entry: x})
    assert error(y, theirs) < 2e-6


@pytest.mark.parametrize("network", [v for v in TINY if v.net != "xception"], ids=lambda v: v.net)
def test_models_through_their_twins(network: networks.Network) -> None:
    """A network of fastconv.models, written as ONNX, gives what it gives by nn.fuse, in no more steps."""
    case, arrays, expected = described(network)
    model, inputs = twin.onnx_model(onnx, case, arrays)
    prepared = integration.prepare(model)
    (y,) = prepared.run(inputs)
    expected.check([y], True)
    fused = nn.fuse(networks._created(network))
    assert len(prepared.describe(inputs).splitlines()) <= len(fused)
    assert prepared.memory(inputs) <= 1.1 * fused.memory(inputs["x"])


EXPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "MobileNetV2": ("MobileNetV2Model", {"depth_multiplier": 0.35}),
    "Segformer": (
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
        | {"decoder_hidden_size": 32},
    ),
    "ResNet": ("ResNetModel", {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}),
    "ConvNext": ("ConvNextModel", {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}),
    "Swin": ("SwinModel", {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}),
    "ViT": (
        "ViTModel",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        | {"image_size": 64},
    ),
    "RegNet": (
        "RegNetModel",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1], "groups_width": 16},
    ),
    "MobileViT": ("MobileViTModel", {"image_size": 64, "patch_size": 2}),
    "PoolFormer": ("PoolFormerModel", {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [v if v in ("MobileNetV2", "Segformer") else pytest.param(v, marks=pytest.mark.slow) for v in EXPORTED]
)
def test_models_as_pytorch_exports_them(name: str) -> None:
    """Networks of transformers, for any batch: their graphs are full of shapes that are computed."""
    torch, transformers = require("torch"), require("transformers")
    kind, options = EXPORTED[name]
    torch.manual_seed(0)
    network = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**options)).eval()
    for m in network.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)

    class Tensors(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            return tuple(v for v in self.network(pixel_values=x).to_tuple() if isinstance(v, torch.Tensor))

    module, file = Tensors().eval(), io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(
            module, (torch.zeros(2, 3, 64, 64),), file, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )  # fmt: skip
    prepared = integration.prepare(file.getvalue())
    for n in (2, 1):
        x = image(n, 3, 64, 64)
        with torch.no_grad():
            expected = module(torch.from_numpy(x))
        for y, theirs in zip(prepared.run(x), expected, strict=True):
            assert error(y, theirs.numpy()) < 1e-5
    if name == "MobileNetV2":
        # From more than a thousand nodes.
        assert len(prepared.describe(x).splitlines()) < 25


# ---------------------------------------------------------------------------------------------------- graphs as written


@pytest.mark.parametrize("build", BUILT, ids=lambda build: build.__name__)
@pytest.mark.parametrize("n", [1, 3])
def test_built_graphs(build: Any, n: int) -> None:
    model = build()
    for info in model.graph.input:
        info.type.tensor_type.shape.dim[0].dim_value = n
    prepared = integration.prepare(model)
    inputs = {port.name: image(*port.shape, seed=i) for i, port in enumerate(prepared.inputs)}
    expected = runtime(model, inputs)
    for _ in range(2):
        results = prepared.run(inputs)
        assert len(results) == len(expected)
        for y, theirs in zip(results, expected, strict=True):
            assert y.flags.c_contiguous
            assert error(y, theirs) < 3e-6


def steps(model: Any, *inputs: np.ndarray) -> list[str]:
    """The operations that a model comes to."""
    lines = integration.prepare(model).describe(list(inputs)).splitlines()
    return [line.split("= ")[1].split("(")[0] for line in lines]


def test_what_is_fused() -> None:
    x = image(1, 8, 16, 16)
    assert steps(onnx_models.mobile_block(), x) == ["inverted"]
    assert steps(onnx_models.squeeze_block(), x) == ["inverted"]
    assert steps(onnx_models.hardswish_block(), x) == ["conv", "conv"]
    assert steps(onnx_models.flattened(), x) == ["conv", "flatten", "linear", "call"]
    gelu = [line for line in integration.prepare(onnx_models.attention()).describe(x).splitlines() if "gelu" in line]
    assert len(gelu) == 1
    assert "linear" in gelu[0]


def test_scales_fold_into_the_layer_before_them() -> None:
    b = Builder()
    y = b("Mul", b.norm(b.conv("x", 16, 8, bias=False), 16), 1 + 0.1 * b.draw(16, 1, 1))
    y = b("Relu", b("Sub", b("Add", y, b.draw(1, 16, 1, 1)), np.float32(0.25)))
    model, x = b.model(y), image(1, 8, 16, 16)
    assert steps(model, x) == ["conv"]
    assert error(integration.prepare(model).run(x)[0], runtime(model, {"x": x})[0]) < 2e-6


def test_a_constant_of_the_last_axis_is_no_constant_of_the_channels() -> None:
    b = Builder()
    model = b.model(b("Add", b("MatMul", "x", b.draw(6, 6)), b.draw(6, 1)), shape=(2, 6, 6))
    x = image(2, 6, 6)
    assert error(integration.prepare(model).run(x)[0], runtime(model, {"x": x})[0]) < 1e-6


def gated(how: str, one: Any) -> Any:
    """An activation as exporters write it, with numbers of any shape."""
    b = Builder()
    if how == "gelu":
        erf = b("Erf", b("Div", "x", one(2**0.5)))
        return b, b("Mul", b("Mul", "x", b("Add", erf, one(1))), one(0.5))
    if how == "hardswish":
        clipped = b("Clip", b("Add", "x", one(3)), np.float32(0), np.float32(6))
        return b, b("Div", b("Mul", "x", clipped), one(6))
    return b, b("Mul", b("Mul", "x", b("Sigmoid", "x")), one(1))


@pytest.mark.parametrize("how", ["gelu", "hardswish", "silu"])
def test_numbers_of_more_axes_than_the_image_give_it_more(how: str) -> None:
    for rank, fused in ((0, True), (2, True), (3, False)):
        b, y = gated(how, lambda v, rank=rank: np.full((1,) * rank, v, np.float32))
        model, x = b.model(y, shape=(2, 5)), image(2, 5)
        prepared = integration.prepare(model)
        assert (steps(model, x) == ["activation"]) is fused
        assert error(prepared.run(x)[0], runtime(model, {"x": x})[0]) < 2e-6


def addable(layer: str, b: Builder) -> tuple[str, str, tuple[int, ...]]:
    """A layer of 16 channels; what it comes to, and the shape of one image of its result."""
    if layer == "separable":
        return b.conv(b.conv("x", 8, 8, groups=8), 16, 8, 1), layer, (16, 12, 12)
    if layer == "inverted":
        wide = b("Relu", b.conv("x", 16, 8, 1))
        return b.conv(b("Relu", b.conv(wide, 16, 16, groups=16)), 16, 16, 1), layer, (16, 12, 12)
    if layer == "conv_transpose":
        return b("ConvTranspose", "x", b.draw(8, 16, 2, 2), strides=[2, 2]), "conv", (16, 24, 24)
    if layer == "depthwise":
        return b.conv("x", 16, 8, groups=8), "conv", (16, 12, 12)
    return b.conv("x", 16, 8, int(layer[-1])), "conv", (16, 12, 12)


@pytest.mark.parametrize("layer", ["conv1", "conv3", "conv7", "depthwise", "conv_transpose", "separable", "inverted"])
@pytest.mark.parametrize("n", [1, 2])
def test_constants_that_are_added_to_a_layer(layer: str, n: int) -> None:
    """Of any shape that broadcasts: part of the layer, unless the sum has more axes or images than its result."""
    c, h, w = addable(layer, Builder())[2]
    shapes: list[tuple[int, ...]] = [(c, h, w), (1, c, h, w), (n, c, h, w), (h, w), (w,), (1, h, 1), (c, h, 1), (1, w)]
    larger: list[tuple[int, ...]] = [(1, 1, c, h, w), (1, 1, 1, h, w), (2, 1, c, h, w), *([(3, c, h, w)] * (n == 1))]
    x = image(n, 8, 12, 12)
    for shape in (*shapes, *larger):
        for first in (True, False):
            b = Builder()
            y, op, _ = addable(layer, b)
            constant = b.draw(*shape[-3:]) if shape[0] == 1 else b.draw(*shape)
            sides = (y, constant.reshape(shape)) if first else (constant.reshape(shape), y)
            model = b.model(b("Relu", b("Add", *sides)), shape=(n, 8, 12, 12))
            prepared = integration.prepare(model)
            assert steps(model, x) in (["constant", op], [op])
            for _ in range(2):
                assert error(prepared.run(x)[0], runtime(model, {"x": x})[0]) < 2e-6


def test_a_number_folds_into_the_dense_layer_behind_views() -> None:
    """As attention divides its queries; not where somebody else reads the layer, or what is between."""

    def graph(read_twice: bool) -> Any:
        b = Builder()
        y = b("Add", b("MatMul", "x", b.draw(6, 8)), b.draw(8))
        heads = b("Transpose", b("Reshape", y, np.array([0, 0, 2, 4])), perm=[0, 2, 1, 3])
        scaled = b("Div", heads, np.float32(3))
        return b.model(b("MatMul", scaled, b.draw(4, 5)), *([y] if read_twice else []), shape=(2, 6, 6))

    x = image(2, 6, 6)
    assert steps(graph(False), x) == ["linear", "reshape", "view", "linear"]
    assert steps(graph(True), x) == ["linear", "reshape", "view", "constant", "call", "linear"]
    for twice in (False, True):
        model = graph(twice)
        for y, theirs in zip(integration.prepare(model).run(x), runtime(model, {"x": x}), strict=True):
            assert error(y, theirs) < 1e-6


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size", [(9, 14), (64, 50), (5, 3)])
@pytest.mark.parametrize("way", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
def test_resized_images(mode: str, size: tuple[int, int], way: str) -> None:
    """Of few pixels, which are products of matrices, and of many; of an image as it came in and of a layer's."""
    b = Builder()
    options = {"mode": mode, "coordinate_transformation_mode": way, "nearest_mode": "floor"}
    sizes = np.array([1, 4, *size])
    model = b.model(
        b("Resize", "x", "", "", sizes, **options),
        b("Resize", b.conv("x", 4, 4), "", "", sizes, **options),
        b("Resize", "x", "", np.array([1, 1, 2, 3], np.float32), **options),
        shape=(1, 4, 8, 60),
    )
    x = image(1, 4, 8, 60)
    results = zip(integration.prepare(model).run(x), eager(model, x), runtime(model, {"x": x}), strict=True)
    for y, y64, theirs in results:
        assert error(y, y64) < 1e-6
        # Which computes places in float32.
        assert error(y, theirs) < 1e-5


def test_a_padding_is_part_of_the_pool_after_it() -> None:
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    for op, fill in (("AveragePool", 0.0), ("MaxPool", -np.inf)):
        b = Builder()
        y = b("Pad", "x", pads, np.float32(fill))
        model, x = b.model(b(op, y, kernel_shape=[3, 3], strides=[2, 2])), image(1, 8, 16, 16)
        assert steps(model, x) == ["pool"]
        assert error(integration.prepare(model).run(x)[0], runtime(model, {"x": x})[0]) < 1e-6


def test_a_view_of_the_input_is_handed_out_as_it_was() -> None:
    """The input lies in the block, where its place serves again for whatever comes after its last reader."""
    b = Builder()
    look = b("Transpose", "x", perm=[0, 2, 1, 3])
    y = b("Relu", "x")
    for _ in range(4):
        y = b.conv(y, 8, 8)
    model, x = b.model(y, look, shape=(1, 8, 8, 8)), image(1, 8, 8, 8)
    assert np.array_equal(integration.prepare(model).run(x)[1], x.transpose(0, 2, 1, 3))


def eager(model: Any, x: np.ndarray) -> list[np.ndarray]:
    """The model's nodes one after the other, in float64: nothing is fused, nor in anybody's place."""
    source = load.read(model.SerializeToString())
    double = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in source.constants.items()}
    values: dict[str, Any] = {**double, "x": x.astype(np.float64), "": None}
    for step in source.steps:
        results = OPERATORS[step.op].compute(step, *(values[name] for name in step.inputs))
        values |= zip(step.outputs, results if isinstance(results, tuple) else (results,), strict=True)
    return [values[name] for name in source.outputs]


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_drawn_graphs(first: int) -> None:
    for seed in range(first, first + 20):
        model = onnx_models.drawn(seed)
        prepared = integration.prepare(model)
        for n in (2, 1):
            x = image(n, 8, 8, 8, seed=seed)
            expected = eager(model, x)
            for _ in range(2):
                for y, y64 in zip(prepared.run(x), expected, strict=True):
                    assert error(y, y64) < 2e-5, (seed, n, prepared.describe(x))


@pytest.mark.parametrize("op", ["Slice", "Split", "Gather", "Transpose", "Squeeze"])
def test_views_of_what_is_joined(op: str) -> None:
    """A value that is written where it is joined lies there with gaps, and is looked at besides."""
    b = Builder()
    left, right = b.conv("x", 8, 8), b.conv("x", 8, 8)
    looks = {
        "Slice": lambda: b("Slice", left, np.array([1, 2]), np.array([6, 9]), np.array([1, 2])),
        "Split": lambda: b("Split", left, outputs=2, axis=1)[1],
        "Gather": lambda: b("Gather", left, np.array(3), axis=1),
        "Transpose": lambda: b("Transpose", left, perm=[0, 1, 3, 2]),
        "Squeeze": lambda: b("Squeeze", left, np.array([0])),
    }
    look = looks[op]()
    joined = b("Relu", b("Concat", left, right, axis=1))
    model = b.model(b("Neg", look), b.conv(joined, 4, 16))
    x = image(1, 8, 16, 16)
    for y, theirs in zip(integration.prepare(model).run(x), runtime(model, {"x": x}), strict=True):
        assert error(y, theirs) < 2e-6


def test_any_batch_of_one_model() -> None:
    model = onnx_models.flattened()
    prepared = integration.prepare(model)
    assert prepared.inputs[0].shape == ("batch", 8, 16, 16)
    for n in (1, 4, 2, 1, 7, 3):
        x = image(n, 8, 16, 16)
        assert error(prepared.run([x])[0], runtime(model, {"x": x})[0]) < 2e-6
    assert prepared.memory(image(4, 8, 16, 16)) > prepared.memory(image(1, 8, 16, 16)) > 0


def test_a_size_of_minus_one_is_any() -> None:
    model = onnx_models.flattened()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    prepared = integration.prepare(model)
    assert prepared.inputs[0].shape == (None, 8, 16, 16)
    assert [prepared.run(image(n, 8, 16, 16))[0].shape for n in (2, 3)] == [(2, 10), (3, 10)]


def test_shapes_that_are_inputs() -> None:
    b = Builder()
    graph = b.model(b("Reshape", "x", "shape"), shape=(2, 6)).graph
    graph.input.append(helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, ["n"]))
    prepared = integration.prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = image(2, 6)
    for shape in ((3, 4), (12,), (3, 4), (2, 2, 3)):
        assert np.array_equal(prepared.run([x, np.array(shape)])[0], x.reshape(shape))


def test_outputs_are_the_callers() -> None:
    """Neither weights, nor inputs, nor results of other calls are handed out."""
    b = Builder()
    weight = b.weight(np.arange(4, dtype=np.float32))
    y = b("Relu", "x")
    model = b.model("x", weight, y, b("Reshape", y, np.array([-1])), shape=(1, 4))
    x = image(1, 4)
    prepared, before = integration.prepare(model), x.copy()
    first = prepared.run(x)
    copies = [v.copy() for v in first]
    for v in first:
        v += 1
    assert np.array_equal(x, before)
    for v, copy in zip(prepared.run(x), copies, strict=True):
        assert np.array_equal(v, copy)


def test_several_threads_at_once() -> None:
    prepared = integration.prepare(onnx_models.unet())
    xs = [image(1, 8, 16, 16, seed=i) for i in range(4)]
    expected = [prepared.run(x)[0] for x in xs]
    wrong: list[int] = []

    def call(i: int) -> None:
        wrong.extend(i for _ in range(20) if not np.array_equal(prepared.run(xs[i])[0], expected[i]))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ------------------------------------------------------------------------------------------------------ what is refused


def test_all_that_is_not_supported_is_named_before_anything_runs() -> None:
    b = Builder()
    y = b("LSTM", "x", b.draw(1, 32, 4), b.draw(1, 32, 8), name="memory", hidden_size=8)
    y = b("Resize", b("NonMaxSuppression", y, y, name="boxes"), name="small", antialias=1)
    y = b("Relu", y, name="fine")
    with pytest.raises(integration.UnsupportedModel) as refusal:
        integration.prepare(b.model(y, shape=(1, 2, 4), opset=18))
    assert refusal.value.nodes == ["LSTM 'memory'", "NonMaxSuppression 'boxes'", "Resize 'small' with antialias"]
    assert all(node in str(refusal.value) for node in refusal.value.nodes)
    assert not integration.is_compatible(b.model(y, shape=(1, 2, 4), opset=18))


def test_a_node_of_another_domain_is_named() -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft", name="act")
    ports = [helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, [1]) for v in ("x", "y")]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    with pytest.raises(ValueError, match=r"com\.microsoft\.Gelu 'act'"):
        integration.prepare(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def test_a_node_that_does_not_fit_is_named() -> None:
    b = Builder()
    model = b.model(b("Conv", "x", b.draw(4, 7, 3, 3), name="first"))
    with pytest.raises(ValueError, match=r"Conv 'first'.*in_channels"):
        integration.prepare(model)


def test_wrong_inputs() -> None:
    prepared = integration.prepare(onnx_models.flattened())
    x = image(2, 8, 16, 16)
    with pytest.raises(TypeError, match=r"x \(dtype float64\) must have dtype float32"):
        prepared.run([x.astype(np.float64)])
    with pytest.raises(ValueError, match=r"x \(shape \(2, 8, 16\)\) must have the shape \(batch, 8, 16, 16\)"):
        prepared.run([x[..., 0]])
    with pytest.raises(ValueError, match="one for each of"):
        prepared.run([x, x])
    with pytest.raises(ValueError, match="must have those of the model"):
        prepared.run({"y": x})
    with pytest.raises(TypeError, match="must be a list of arrays"):
        prepared.run(3)
    with pytest.raises(TypeError, match=r"must be a numpy\.ndarray"):
        prepared.run([[1.0]])
    with pytest.raises(TypeError, match="takes no option"):
        prepared.run([x], fast=True)


@pytest.mark.parametrize("model", [b"", b"\x00" * 40, b"not a model at all", b"\x08\x07"])
def test_bytes_that_are_no_model(model: bytes) -> None:
    with pytest.raises(ValueError, match="model"):
        integration.prepare(model)


def test_models_that_are_cut_short_or_changed() -> None:
    """Each is refused by a ValueError, or is a model all the same: nothing else is raised, nothing crashes."""
    data = onnx_models.squeeze_block().SerializeToString()
    rng = np.random.default_rng(0)
    damaged = [data[:n] for n in range(1, len(data), 97)]
    for _ in range(150):
        copy = bytearray(data)
        for place in rng.integers(len(copy), size=3):
            copy[place] = rng.integers(256)
        damaged.append(bytes(copy))
    refused = 0
    for model in damaged:
        try:
            integration.prepare(model)
        except ValueError:
            refused += 1
    assert refused > len(damaged) // 3


def functions(calls: int, depth: int) -> Any:
    """A model whose one node comes to calls ** depth of them."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = []
    for i in range(depth + 1):
        nodes = [helper.make_node(f"F{i + 1}", [f"t{k}"], [f"t{k + 1}"], domain="own") for k in range(calls)]
        nodes = nodes if i < depth else [helper.make_node("Relu", ["t0"], [f"t{calls}"])]
        made.append(helper.make_function("own", f"F{i}", ["t0"], [f"t{calls}"], nodes, opsets))
    ports = [helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, [2, 3]) for v in ("x", "y")]
    graph = helper.make_graph([helper.make_node("F0", ["x"], ["y"], domain="own")], "calls", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=opsets, functions=made, ir_version=9)


def test_calls_of_functions_are_written_out_up_to_a_number_of_nodes() -> None:
    x = image(2, 3)
    np.testing.assert_array_equal(integration.prepare(functions(3, 3)).run(x)[0], np.maximum(x, 0))
    for depth in (5, 9, 40):
        with pytest.raises(ValueError, match="must come to at most 32768 nodes"):
            integration.prepare(functions(10, depth))


@pytest.mark.parametrize("how", ["Concat", "Add", "MatMul", "Tile", "EyeLike", "MaxUnpool", "Gather", "Expand"])
def test_constants_are_not_folded_to_more_than_is_admitted(how: str) -> None:
    """Refused before memory is asked for."""
    b = Builder()
    many = b("Expand", np.float32([1]), np.array([2**20]))
    if how == "Concat":
        y = b("Expand", np.float32([1]), np.array([2**27]))
        y = b("Concat", y, y, axis=0)
    elif how == "Tile":  # empty, and large before it is
        y = b("Tile", np.ones((1, 1), np.float32), np.array([2**40, 0]))
    elif how == "EyeLike":
        y = b("EyeLike", b("Expand", np.ones((1, 1), np.float32), np.array([2**15, 2**15])))
    elif how == "MaxUnpool":
        options = {"kernel_shape": [2**16] * 2, "strides": [2**16] * 2}
        y = b("MaxUnpool", np.ones((1, 1, 2, 2), np.float32), np.zeros((1, 1, 2, 2), np.int64), **options)
    elif how == "Gather":
        y = b("Gather", b("Unsqueeze", many, np.array([0])), b("ConstantOfShape", np.array([2**10])))
        b.nodes[-2].attribute.append(
            helper.make_attribute("value", helper.make_tensor("v", onnx.TensorProto.INT64, [1], [0]))
        )
    elif how == "Expand":  # each is admitted, all are not
        y = b("Expand", np.float32([1]), np.array([2**27]))
        for _ in range(3):
            y = b("Neg", b("Expand", y, np.array([2**27])))
    else:
        y = b(how, b("Unsqueeze", many, np.array([1])), b("Unsqueeze", many, np.array([0])))
    model = b.model(b("Add", "x", b("ReduceSum", y)), shape=(2, 5))
    with pytest.raises(
        ValueError, match=r"must (not )?.*elements" if how in ("Expand", "EyeLike") else rf"{how} .*elements"
    ):
        integration.prepare(model)


def test_no_more_are_the_largest_than_there_are() -> None:
    for k in (-1, 6):
        b = Builder()
        values, _ = b("TopK", "x", np.array([k]), outputs=2)
        with pytest.raises(ValueError, match=r"TopK .*k \(=-?\d\) must be from 0 to"):
            integration.prepare(b.model(values, shape=(2, 5)))


def test_no_model() -> None:
    with pytest.raises(TypeError, match=r"must be a path, bytes or an onnx\.ModelProto"):
        integration.prepare(3)
    with pytest.raises(FileNotFoundError):
        integration.prepare("/nowhere/model.onnx")


def outside(folder: Path, location: str, **more: str) -> Path:
    """A model whose weight lies in another file."""
    b = Builder()
    model = b.model(b("Mul", "x", b.weight(np.arange(8, dtype=np.float32), "weight")), shape=(1, 8))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16) + np.arange(8, dtype=np.float32).tobytes())
    path = outside(tmp_path, "weights.bin", offset="16", length="32")
    x = image(1, 8)
    assert np.array_equal(integration.prepare(path).run(x)[0], x * np.arange(8, dtype=np.float32))
    with pytest.raises(ValueError, match="give the model as a path"):
        integration.prepare(path.read_bytes())


@pytest.mark.parametrize(
    ("location", "more"),
    [
        ("../secret.bin", {}),
        ("", {}),
        ("missing.bin", {}),
        ("link.bin", {}),
        ("weights.bin", {"offset": "8"}),
        ("weights.bin", {"offset": "-8"}),
        ("weights.bin", {"length": "4"}),
        ("weights.bin", {"offset": "many"}),
    ],
)
def test_weights_that_lie_elsewhere(tmp_path: Path, location: str, more: dict[str, str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tmp_path / "secret.bin", folder / "weights.bin"):
        path.write_bytes(bytes(32))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ValueError, match="the weight 'weight'"):
        integration.prepare(outside(folder, location, **more))
    with pytest.raises(ValueError, match="must be a file in the model's folder"):
        integration.prepare(outside(folder, str(tmp_path / "secret.bin")))


# -------------------------------------------------------------------------------------------------------- the interface


def test_the_backend_runs_a_node() -> None:
    node = helper.make_node("Conv", ["x", "w", ""], ["y"], pads=[1, 1, 1, 1])
    x, w = image(1, 4, 5, 5), image(3, 4, 3, 3)
    (y,) = integration.run_node(node, [x, w])
    (z,) = integration.run_node(node, {"x": x, "w": w})
    assert y.shape == (1, 3, 5, 5)
    assert np.array_equal(y, z)
    with pytest.raises(ValueError, match="one for each"):
        integration.run_node(node, [x])


def test_the_backend_runs_on_the_cpu() -> None:
    assert integration.supports_device("CPU")
    assert not integration.supports_device("CUDA:0")
    with pytest.raises(ValueError, match="device"):
        integration.run_model(onnx_models.unet(), [image(1, 8, 16, 16)], device="CUDA")
    (y,) = integration.run_model(onnx_models.unet(), [image(1, 8, 16, 16)])
    assert y.shape == (1, 3, 32, 32)


def test_the_page_lists_the_operators() -> None:
    from fastconv.integrations.onnx.__main__ import tables

    page = Path(__file__).parents[2] / "docs" / "onnx.md"
    assert tables() in page.read_text(encoding="utf-8"), "python -m fastconv.integrations.onnx prints what it must hold"


def test_import_of_the_package_imports_no_onnx() -> None:
    code = "import sys, fastconv.integrations; sys.exit(any(name.split('.')[0] == 'onnx' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a model of two inputs and three outputs, and its inputs."""
    (tmp_path / "model.onnx").write_bytes(onnx_models.several().SerializeToString())
    np.save(tmp_path / "x.npy", image(1, 8, 16, 16))
    np.save(tmp_path / "s.npy", image(1, 8, 1, 1))
    return tmp_path


def test_run(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x, s = (str(written / name) for name in ("model.onnx", "x.npy", "s.npy"))
    expected = integration.prepare(model).run([np.load(x), np.load(s)])
    for given in ((x, s), (f"s={s}", f"x={x}"), (f"s={s}", x)):
        arguments = [v for name in given for v in ("--input", name)]
        output = written / "y.npz"
        assert main(["run", model, *arguments, "--output", str(output), "--steps"]) == 0
        with np.load(output) as found:
            names = integration.prepare(model).outputs
            for name, y in zip(names, expected, strict=True):
                assert np.array_equal(found[name], y)
        text = capsys.readouterr().out
        assert "peak memory between the layers: " in text
        assert "float32 (1, 8, 16, 16)" in text
        assert "conv(" in text


def test_run_of_one_output(tmp_path: Path) -> None:
    model = onnx_models.unet()
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    np.save(tmp_path / "x.npy", image(1, 8, 16, 16))
    arguments = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
    assert main(["run", str(tmp_path / "model.onnx"), *arguments]) == 0
    y = np.load(tmp_path / "y.npy")
    assert np.array_equal(y, integration.prepare(model).run(image(1, 8, 16, 16))[0])


def test_run_says_what_is_wrong(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x, s = (str(written / name) for name in ("model.onnx", "x.npy", "s.npy"))

    def refused(*arguments: str) -> str:
        assert main(["run", *arguments]) == 2
        return capsys.readouterr().err

    assert "must be given for s, too" in refused(model, "--input", x)
    assert "must be one of x, s, each once" in refused(model, "--input", x, "--input", s, "--input", s)
    assert "must be an .npy file" in refused(model, "--input", x, "--input", model)
    assert "must end in .npz for the 3 outputs" in refused(model, "--input", x, "--input", s, "--output", "y.npy")
    assert "must end in .npy or .npz" in refused(model, "--output", "y.txt")
    assert "must have the shape" in refused(model, "--input", s, "--input", x)
    assert "must be an ONNX file" in refused(x)
    assert "No such file" in refused("nowhere.onnx")
    b = Builder()
    (written / "other.onnx").write_bytes(b.model(b("NonZero", b("Det", "x", name="area"))).SerializeToString())
    assert "Det 'area'" in refused(str(written / "other.onnx"), "--input", x)


# JAX warns of every fork once it has been imported, by other tests.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*_at_fork:pytest.PytestUnraisableExceptionWarning")
def test_bench_of_a_model(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--rounds", "1", "--seconds", "0.001"]
    assert main(["bench", "--onnx", str(written / "model.onnx"), *quick]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "MB between the layers" in lines[0]
    rows = {line[:24].strip(): line[24:].split() for line in lines[1:] if line}
    assert float(rows["fastconv"][1]) == 1
    for name, row in rows.items():
        if name.startswith(("ONNX Runtime 1", "OpenVINO 2")):
            assert float(row[2]) < 1e-5, name
    assert main(["bench", "--onnx", str(written / "x.npy"), *quick]) == 2
    assert "must be an ONNX file" in capsys.readouterr().err


def test_without_onnx_the_command_says_what_is_missing() -> None:
    code = """
import sys
sys.modules["onnx"] = None
from fastconv.__main__ import main
assert main(["run", "model.onnx"]) == 2
assert main(["bench", "--onnx", "model.onnx"]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('pip install "fastconv[onnx]"') == 2
