"""Models for the tests: the networks of the package onnx with drawn weights, and graphs as exporters write them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

LIGHT = (
    "squeezenet",
    "shufflenet",
    "inception_v1",
    "inception_v2",
    "densenet121",
    "resnet50",
    "bvlc_alexnet",
    "zfnet512",
    "vgg19",
)
FLOAT = onnx.TensorProto.FLOAT


def light(name: str, dtype: Any = np.float32) -> onnx.ModelProto:
    """A network of onnx's tests. Its weights are all alike there: here they are He's, its norms near to one.

    The softmax at its end is left out, behind which large errors hide.
    """
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    model = onnx.load(folder / f"light_{name}.onnx")
    graph, rng = model.graph, np.random.default_rng(0)
    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for i, value in enumerate(node.input):
            readers.setdefault(value, []).append((node, i))

    def use(value: str) -> tuple[str, int]:
        node, i = readers[value][0]
        return use(node.output[0]) if node.op_type in ("Reshape", "Unsqueeze", "Transpose") else (node.op_type, i)

    def draw(value: str, shape: Any) -> Any:
        (op, i), r = use(value), rng.standard_normal(shape)
        if op in ("Conv", "Gemm") and i == 1:
            return r * np.sqrt(2 / np.prod(shape[1:]))
        if op == "BatchNormalization":
            return (1 + 0.1 * r, 0.1 * r, 0.1 * r, 1 + 0.5 * r * r)[i - 1]
        return 1 + 0.1 * r if op == "Mul" else 0.1 * r

    weights = {v: draw(v, a.shape) for v, a in initial.items() if a.dtype == np.float32 and v in readers}
    nodes = []
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            weights[node.output[0]] = draw(node.output[0], tuple(initial[node.input[0]]))
        else:
            nodes.append(node)
    if nodes[-1].op_type == "Softmax":
        nodes[-1].op_type = "Identity"
        del nodes[-1].attribute[:]
    shapes = [tensor for tensor in graph.initializer if initial[tensor.name].dtype != np.float32]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    (x,) = [info.name for info in graph.input if info.name not in initial]
    arrays = [numpy_helper.from_array(a.astype(np.float32).astype(dtype), v) for v, a in weights.items()]
    made = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(x, kind, [1, 3, 224, 224])],
        [helper.make_tensor_value_info(graph.output[0].name, kind, None)],
        [*shapes, *arrays],
    )
    # Weights are no inputs from that version of the format on.
    return helper.make_model(made, opset_imports=model.opset_import, ir_version=4)


class Builder:
    """Writes a graph, node by node; arrays become weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, array: Any, name: str | None = None) -> str:
        """A constant."""
        name = name or f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def __call__(self, op: str, *inputs: Any, name: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """A node; its result's name."""
        names = [v if isinstance(v, str) else self.weight(v) for v in inputs]
        results = [f"v{len(self.nodes)}" + (f".{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, results, name=name, **attributes))
        return results[0] if outputs == 1 else results

    def draw(self, *shape: int) -> Any:
        """He's weights."""
        scale = np.sqrt(2 / max(np.prod(shape[1:]), 1))
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def conv(self, x: str, k: int, c: int, r: int = 3, stride: int = 1, groups: int = 1, bias: bool = True) -> str:
        """A layer with padding for its size."""
        operands = [x, self.draw(k, c // groups, r, r), *([self.draw(k) * 0.1] if bias else [])]
        options = {"kernel_shape": [r, r], "strides": [stride] * 2, "pads": [(r - 1) // 2] * 4, "group": groups}
        return str(self("Conv", *operands, **options))

    def norm(self, x: str, c: int) -> str:
        """A batch norm."""
        one = 1 + 0.1 * self.draw(c)
        arrays = (one, 0.1 * self.draw(c), 0.1 * self.draw(c), 1 + 0.1 * np.abs(self.draw(c)))
        return str(self("BatchNormalization", x, *(a.astype(np.float32) for a in arrays)))

    def model(self, *results: str, shape: Any = (1, 8, 16, 16), opset: int = 17, **inputs: Any) -> onnx.ModelProto:
        """The model of the input x, or of those that are named, with their shapes."""
        ports = inputs or {"x": shape}
        graph = helper.make_graph(
            self.nodes,
            "built",
            [helper.make_tensor_value_info(name, FLOAT, size) for name, size in ports.items()],
            [helper.make_tensor_value_info(name, FLOAT, None) for name in results],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def mobile_block() -> onnx.ModelProto:
    """MobileNetV2's block: an expansion, a depthwise and a linear layer, with clips whose bounds are inputs."""
    b = Builder()
    zero, six = b.weight(np.float32(0)), b.weight(np.float32(6))
    y = b("Clip", b.norm(b.conv("x", 32, 8, 1, bias=False), 32), zero, six)
    y = b("Clip", b.norm(b.conv(y, 32, 32, 3, groups=32, bias=False), 32), zero, six)
    return b.model(b("Add", "x", b.norm(b.conv(y, 8, 32, 1, bias=False), 8)))


def squeeze_block() -> onnx.ModelProto:
    """EfficientNet's block: activations as x * sigmoid(x), a gate of the means."""
    b = Builder()

    def silu(v: str) -> str:
        return str(b("Mul", v, b("Sigmoid", v)))

    y = silu(b.norm(b.conv("x", 32, 8, 1, bias=False), 32))
    y = silu(b.norm(b.conv(y, 32, 32, 3, groups=32, bias=False), 32))
    gate = silu(b.conv(b("GlobalAveragePool", y), 4, 32, 1))
    y = b("Mul", y, b("Sigmoid", b.conv(gate, 32, 4, 1)))
    return b.model(b("Add", b.norm(b.conv(y, 8, 32, 1, bias=False), 8), "x"))


def hardswish_block() -> onnx.ModelProto:
    """MobileNetV3's activation, as x * relu6(x + 3) / 6 and as x * hardsigmoid(x)."""
    b = Builder()
    y = b.norm(b.conv("x", 16, 8, bias=False), 16)
    clipped = b("Clip", b("Add", y, np.float32(3)), np.float32(0), np.float32(6))
    y = b.conv(b("Div", b("Mul", y, clipped), np.float32(6)), 16, 16)
    return b.model(b("Mul", b("HardSigmoid", y, alpha=1 / 6, beta=0.5), y))


def unet() -> onnx.ModelProto:
    """Two levels: pooled, resized by sizes computed from a shape, joined."""
    b = Builder()
    top = b("Relu", b.conv("x", 16, 8))
    y = b("Relu", b.conv(b("MaxPool", top, kernel_shape=[2, 2], strides=[2, 2]), 24, 16))
    size = b("Slice", b("Shape", top), np.array([2]), np.array([4]), np.array([0]))
    channels = b("Slice", b("Shape", y), np.array([0]), np.array([2]), np.array([0]))
    y = b("Resize", y, "", "", b("Concat", channels, size, axis=0), mode="nearest", nearest_mode="floor")
    y = b("Relu", b.conv(b("Concat", top, y, axis=1), 16, 40))
    y = b(
        "Resize", y, "", np.array([1, 1, 2, 2], np.float32), mode="linear", coordinate_transformation_mode="half_pixel"
    )
    return b.model(b.conv(y, 3, 16, 1))


def flattened() -> onnx.ModelProto:
    """A head whose shape is computed from the batch, as exporters write x.view(x.size(0), -1)."""
    b = Builder()
    y = b("Relu", b.conv("x", 16, 8, stride=2))
    batch = b("Gather", b("Shape", y), np.array(0), axis=0)
    shape = b("Concat", b("Unsqueeze", batch, np.array([0])), np.array([-1]), axis=0)
    y = b("Dropout", b("Reshape", y, shape))
    y = b("Gemm", y, b.draw(10, 16 * 8 * 8), b.draw(10), transB=1)
    return b.model(b("Softmax", y, axis=-1), shape=("batch", 8, 16, 16))


def attention() -> onnx.ModelProto:
    """A transformer's layer: patches, a norm, heads by transposed products, the error function's GELU."""
    b = Builder()
    y = b("Conv", "x", b.draw(16, 8, 4, 4), b.draw(16), kernel_shape=[4, 4], strides=[4, 4])
    y = b("Transpose", b("Reshape", y, np.array([0, 16, -1])), perm=[0, 2, 1])
    normed = b("LayerNormalization", y, 1 + 0.1 * b.draw(16), 0.1 * b.draw(16))
    heads = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        v = b("Add", b("MatMul", normed, b.draw(16, 16)), b.draw(16))
        heads.append(b("Transpose", b("Reshape", v, np.array([0, 0, 2, 8])), perm=perm))
    weights = b("Softmax", b("Div", b("MatMul", heads[0], heads[1]), np.float32(np.sqrt(8))), axis=-1)
    v = b("Reshape", b("Transpose", b("MatMul", weights, heads[2]), perm=[0, 2, 1, 3]), np.array([0, 0, 16]))
    y = b("Add", b("MatMul", v, b.draw(16, 16)), y)
    h = b("Add", b("MatMul", y, b.draw(16, 32)), b.draw(32))
    erf = b("Add", b("Erf", b("Div", h, np.float32(np.sqrt(2)))), np.float32(1))
    h = b("Mul", b("Mul", h, erf), np.float32(0.5))
    y = b("Add", b("MatMul", h, b.draw(32, 16)), y)
    return b.model(b("ReduceMean", y, axes=[1], keepdims=0))


def several() -> onnx.ModelProto:
    """Two inputs, three outputs, one of them read further on; a split, a padding, a scalar."""
    b = Builder()
    left, right = b("Split", b.conv("x", 16, 8), outputs=2, axis=1)
    padded = b("Pad", b("Relu", left), np.array([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")
    y = b("Conv", padded, b.draw(8, 8, 3, 3), kernel_shape=[3, 3])
    z = b("Add", b("Mul", y, "s"), right)
    return b.model(z, y, b("ReduceMax", z, axes=[2, 3]), x=(1, 8, 16, 16), s=(1, 8, 1, 1))


def drawn(seed: int, count: int = 14) -> onnx.ModelProto:
    """A graph of so many nodes, drawn among those that fusion and the plan of memory treat each in their way."""
    b, rng = Builder(seed), np.random.default_rng(seed)
    images = ["x"]

    def pick() -> str:
        # Mostly what is new: chains are what is fused.
        return images[-1] if rng.random() < 0.6 else str(rng.choice(images))

    def conv() -> str:
        r = int(rng.choice([1, 3]))
        return b.conv(pick(), 8, 8, r, groups=int(rng.choice([1, 1, 2, 8])), bias=bool(rng.integers(2)))

    def transposed() -> str:
        return str(b("ConvTranspose", pick(), b.draw(8, 8, 3, 3), pads=[1, 1, 1, 1]))

    def activation() -> str:
        op = str(rng.choice(["Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Softplus"]))
        return str(b(op, pick()))

    def clip() -> str:
        return str(b("Clip", pick(), np.float32(rng.choice([0, -1])), np.float32(rng.choice([6, 0.5]))))

    def gated() -> str:
        x = pick()
        return str(b("Mul", x, b("Sigmoid", x)))

    def gate() -> str:
        x = pick()
        return str(b("Mul", x, b("Sigmoid", b.conv(b("GlobalAveragePool", x), 8, 8, 1))))

    def scaled() -> str:
        op = str(rng.choice(["Add", "Mul", "Sub", "Div"]))
        shape = ((8, 1, 1), (1, 8, 1, 1), (), (8,), (1, 1, 8, 1))[rng.integers(5)]
        constant = (1 + 0.2 * rng.standard_normal(shape)).astype(np.float32)
        return str(b(op, pick(), constant))

    def both() -> str:
        return str(b(str(rng.choice(["Add", "Mul", "Max", "Sum"])), pick(), pick()))

    def joined() -> str:
        return b.conv(b("Concat", pick(), pick(), axis=1), 8, 16, int(rng.choice([1, 3])))

    def joined_elsewhere() -> str:
        half = b("Slice", b("Concat", pick(), pick(), axis=2), np.array([3]), np.array([11]), np.array([2]))
        return str(b("Identity", half))

    def parts() -> str:
        axis = int(rng.integers(1, 4))
        left, right = b("Split", pick(), outputs=2, axis=axis)
        return str(b("Concat", right, b("Add", left, right), axis=axis))

    def padded() -> str:
        mode = str(rng.choice(["constant", "reflect", "edge"]))
        y = b("Pad", pick(), np.array([0, 0, 1, 1, 0, 0, 1, 1]), mode=mode)
        if rng.integers(2):
            return str(b("Conv", y, b.draw(8, 8, 3, 3)))
        return str(b(str(rng.choice(["AveragePool", "MaxPool"])), y, kernel_shape=[3, 3], strides=[1, 1]))

    def pool() -> str:
        op = str(rng.choice(["AveragePool", "MaxPool"]))
        return str(b(op, pick(), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]))

    def turned() -> str:
        y = b("Transpose", b("Reshape", pick(), np.array([0, 2, 4, 8, 8])), perm=[0, 2, 1, 3, 4])
        return str(b("Reshape", y, np.array([0, 8, 8, 8])))

    def swapped() -> str:
        return str(b("Transpose", pick(), perm=[[0, 1, 3, 2], [0, 2, 1, 3], [0, 3, 1, 2]][rng.integers(3)]))

    def rows() -> str:
        y = b("MatMul", pick(), b.draw(8, 8))
        return str(b("Add", y, b.draw(8)) if rng.integers(2) else b("Softmax", y, axis=-1))

    def resized() -> str:
        y = b("MaxPool", pick(), kernel_shape=[2, 2], strides=[2, 2])
        return str(b("Resize", y, "", np.array([1, 1, 2, 2], np.float32), mode="nearest", nearest_mode="floor"))

    kinds = [conv, conv, conv, transposed, activation, activation, clip, gated, gate, scaled, scaled, both, both]
    kinds += [joined, joined, joined_elsewhere, parts, padded, pool, turned, swapped, rows, resized]
    kinds.append(lambda: b.norm(pick(), 8))
    for _ in range(count):
        made = kinds[rng.integers(len(kinds))]
        images += [made()]
    results = dict.fromkeys([images[-1], *(str(v) for v in rng.choice(images[1:], 2))])
    return b.model(*results, shape=("n", 8, 8, 8))


BUILT = (mobile_block, squeeze_block, hardswish_block, unet, flattened, attention, several)
