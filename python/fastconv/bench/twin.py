"""Networks as the peers run them. A worker loads this file by its path: it imports NumPy alone.

`networks` writes a module down as nodes in the order of their calls, with the names of their weights: from that one
list PyTorch gets a module of its own layers, and the sessions a model in ONNX. Batch norms and activations are nodes of
their own: what is fused, a peer fuses itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = Any
Case = dict[str, Any]
Node = dict[str, Any]
Built = tuple[Callable[[], Any], Callable[[], list[Array]]]

KINDS = ("network", "training")
# Of a training step whose result is checked, and of those that are timed: these must leave the weights as they are,
# since gradients that vanish end in denormals.
CHECKED_RATE, TIMED_RATE, MOMENTUM = 0.1, 1e-12, 0.9


def not_applicable(variant: str, case: Case) -> str | None:
    """Why the variant is not asked for the network; None where it is."""
    if variant in ("torch", "torch_cl"):
        return None
    if variant not in ("onnxruntime", "openvino"):
        return "not asked for"
    if case["kind"] == "training":
        return "inference only"
    return None if case["dtype"] == "float32" else "float32 only"


def weights_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The network's state, without the operands of its call."""
    return {name: a for name, a in arrays.items() if name not in ("x", "target")}


# ------------------------------------------------------------------------------------------------------------ PyTorch

_TORCH_ACTIVATIONS = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "silu": "SiLU",
    "hardswish": "Hardswish",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
}
_IN_PLACE = ("relu", "relu6", "silu", "hardswish")


def _torch_layer(torch: Any, node: Node, in_place: bool) -> Any:
    """The layer of a node, on no device where it has weights."""
    nn, op = torch.nn, node["op"]
    if op == "conv":
        k, c, *taps = node["weight_shape"]
        if node["transposed"]:
            k, c = c * node["groups"], k
        else:
            c *= node["groups"]
        kind = getattr(nn, f"Conv{'Transpose' if node['transposed'] else ''}{len(taps)}d")
        extra = {"output_padding": node["output_padding"]} if node["transposed"] else {}
        shape = {name: node[name] for name in ("stride", "padding", "dilation", "groups")}
        return kind(c, k, taps, bias="bias" in node["weights"], device="meta", **shape, **extra)
    if op == "linear":
        k, c = node["weight_shape"]
        return nn.Linear(c, k, bias="bias" in node["weights"], device="meta")
    if op == "batch_norm":
        kind = getattr(nn, f"BatchNorm{node['rank']}d")
        return kind(node["channels"], node["eps"], node["momentum"], affine="weight" in node["weights"], device="meta")
    if op == "activation":
        options = {"inplace": True} if in_place and node["name"] in _IN_PLACE else {}
        return getattr(nn, _TORCH_ACTIVATIONS[node["name"]])(**options)
    if op in ("max_pool", "avg_pool"):
        return getattr(nn, f"{'Max' if op == 'max_pool' else 'Avg'}Pool{node['rank']}d")(**node["options"])
    if op == "adaptive_avg_pool":
        return nn.AdaptiveAvgPool2d(node["output_size"])
    if op == "flatten":
        return nn.Flatten(node["begin"])
    if op == "add":
        return torch.Tensor.add_ if in_place else torch.add
    if op == "multiply":
        return torch.mul
    axis = node["axis"]
    return lambda *x: torch.cat(x, axis)


def torch_module(torch: Any, nodes: list[Node], result: str, weights: Mapping[str, Array]) -> Any:
    """The network in PyTorch's own layers; its parameters and buffers have the names that they have in fastconv.

    As in the models that are published for it, an activation or a sum overwrites what nobody else reads.
    """
    uses: dict[str, int] = {result: 1}
    for node in nodes:
        for name in node["inputs"]:
            uses[name] = uses.get(name, 0) + 1
    layers: list[Any] = []
    named: dict[str, Any] = {}
    # What a layer's gradient reads must stay.
    free = {node["output"] for node in nodes if node["op"] in ("conv", "linear", "batch_norm", "add")}
    for node in nodes:
        first = node["inputs"][0]
        layer = _torch_layer(torch, node, first in free and uses[first] == 1)
        for attribute, name in node.get("weights", {}).items():
            tensor = torch.from_numpy(weights[name])
            setattr(layer, attribute, tensor if attribute.startswith("running_") else torch.nn.Parameter(tensor))
            named[name] = (layer, attribute)
        if node["op"] == "batch_norm":
            layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
        layers.append(layer)
    last = {name: i for i, node in enumerate(nodes) for name in node["inputs"] if name != result}
    steps = [
        (layer, node["inputs"], node["output"], [name for name in dict.fromkeys(node["inputs"]) if last.get(name) == i])
        for i, (layer, node) in enumerate(zip(layers, nodes, strict=True))
    ]

    class Twin(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(layer for layer in layers if isinstance(layer, torch.nn.Module))

        def forward(self, x: Any) -> Any:
            values = {"x": x}
            for layer, inputs, output, dead in steps:
                values[output] = layer(*[values[name] for name in inputs])
                for name in dead:
                    # As a local variable that is bound anew.
                    del values[name]
            return values[result]

        def named(self, name: str) -> Any:
            layer, attribute = named[name]
            return getattr(layer, attribute)

    return Twin()


def torch_operation(torch: Any, case: Case, arrays: dict[str, Array], channels_last: bool) -> Built:
    """PyTorch's call, in one of its two memory formats: a planar array in, an array out."""
    form = torch.contiguous_format
    if channels_last:
        form = torch.channels_last if case["rank"] == 2 else torch.channels_last_3d
    weights = weights_of(arrays)
    if case["kind"] == "training":
        return _torch_training(torch, case, arrays, form)
    module = torch_module(torch, case["nodes"], case["result"], weights).eval().to(memory_format=form)
    x = arrays["x"]

    def call() -> Array:
        return module(torch.from_numpy(x).to(memory_format=form)).contiguous().numpy()

    return call, lambda: [call()]


def _torch_training(torch: Any, case: Case, arrays: dict[str, Array], form: Any) -> Built:
    def fresh(rate: float) -> tuple[Any, Callable[[], Any]]:
        weights = {name: a.copy() for name, a in weights_of(arrays).items()}
        with torch.inference_mode(False):
            module = torch_module(torch, case["nodes"], case["result"], weights).train().to(memory_format=form)
            optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=MOMENTUM)
            criterion = torch.nn.CrossEntropyLoss()

        def step() -> Any:
            with torch.inference_mode(False), torch.enable_grad():
                optimizer.zero_grad()
                x = torch.from_numpy(arrays["x"]).to(memory_format=form)
                loss = criterion(module(x), torch.from_numpy(arrays["target"]))
                loss.backward()
                optimizer.step()
                return loss.detach()

        return module, step

    def result() -> list[Array]:
        module, step = fresh(CHECKED_RATE)
        loss = step()
        gradients = [module.named(name).grad for name in case["gradients"]]
        values = [module.named(name).detach() for name in case["values"]]
        return [loss.reshape(1).numpy(), *(t.contiguous().numpy() for t in (*gradients, *values))]

    return fresh(TIMED_RATE)[1], result


# --------------------------------------------------------------------------------------------------------------- ONNX

_ONNX_ACTIVATIONS = {
    "relu": "Relu",
    "hardswish": "HardSwish",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
}
_ONNX_PLAIN = {"add": "Add", "multiply": "Mul"}


def _onnx_nodes(make: Callable[..., Any], node: Node, extra: dict[str, Array]) -> list[Any]:
    """The nodes of a node; constants of theirs go into extra."""
    op, inputs, output = node["op"], list(node["inputs"]), node["output"]
    names = list(node.get("weights", {}).values())
    if op == "conv":
        attributes = {"strides": node["stride"], "pads": [*node["padding"], *node["padding"]]}
        attributes |= {"dilations": node["dilation"], "group": node["groups"], "kernel_shape": node["weight_shape"][2:]}
        if node["transposed"]:
            attributes["output_padding"] = node["output_padding"]
        return [make("ConvTranspose" if node["transposed"] else "Conv", [*inputs, *names], [output], **attributes)]
    if op == "linear":
        return [make("Gemm", [*inputs, *names], [output], transB=1)]
    if op == "batch_norm":
        scale, shift = f"{output}.scale", f"{output}.shift"
        if "weight" not in node["weights"]:
            extra |= {scale: np.ones(node["channels"], np.float32), shift: np.zeros(node["channels"], np.float32)}
            names = [scale, shift, *names]
        return [make("BatchNormalization", [*inputs, *names], [output], epsilon=node["eps"])]
    if op == "activation":
        name = node["name"]
        if name == "silu":
            gate = f"{output}.gate"
            return [make("Sigmoid", inputs, [gate]), make("Mul", [*inputs, gate], [output])]
        if name == "relu6":
            extra |= {"zero": np.float32(0), "six": np.float32(6)}
            return [make("Clip", [*inputs, "zero", "six"], [output])]
        return [make(_ONNX_ACTIVATIONS[name], inputs, [output])]
    if op in ("max_pool", "avg_pool"):
        o = node["options"]
        attributes = {"kernel_shape": o["kernel_size"], "strides": o["stride"], "ceil_mode": int(o["ceil_mode"])}
        attributes["pads"] = [*o["padding"], *o["padding"]]
        if op == "avg_pool":
            attributes["count_include_pad"] = int(o["count_include_pad"])
        else:
            attributes["dilations"] = o["dilation"]
        return [make("MaxPool" if op == "max_pool" else "AveragePool", inputs, [output], **attributes)]
    if op == "adaptive_avg_pool":
        sizes, wanted = node["input_size"], node["output_size"]
        if set(wanted) == {1}:
            return [make("GlobalAveragePool", inputs, [output])]
        if sizes == wanted:
            return [make("Identity", inputs, [output])]
        if any(n % m for n, m in zip(sizes, wanted, strict=True)):
            raise ValueError(f"ONNX has no windows from {sizes} to {wanted}")
        window = [n // m for n, m in zip(sizes, wanted, strict=True)]
        return [make("AveragePool", inputs, [output], kernel_shape=window, strides=window)]
    if op == "flatten":
        return [make("Flatten", inputs, [output], axis=node["begin"])]
    if op == "concat":
        return [make("Concat", inputs, [output], axis=node["axis"])]
    return [make(_ONNX_PLAIN[op], inputs, [output])]


def onnx_model(onnx: Any, case: Case, arrays: dict[str, Array]) -> tuple[bytes, dict[str, Array]]:
    """The network as an ONNX model, and the arrays that are its inputs."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    extra: dict[str, Array] = {}
    # The result is called y whatever it is called among the nodes.
    renamed = {case["result"]: "y"}
    nodes = []
    for node in case["nodes"]:
        inputs = [renamed.get(name, name) for name in node["inputs"]]
        output = renamed.get(node["output"], node["output"])
        nodes += _onnx_nodes(helper.make_node, node | {"inputs": inputs, "output": output}, extra)
    used = {name for node in case["nodes"] for name in node.get("weights", {}).values()}
    constants = {name: a for name, a in weights_of(arrays).items() if name in used} | extra
    graph = helper.make_graph(
        nodes,
        case["net"],
        [helper.make_tensor_value_info("x", kind, arrays["x"].shape)],
        [helper.make_tensor_value_info("y", kind, case["y_shape"])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString(), {"x": arrays["x"]}
