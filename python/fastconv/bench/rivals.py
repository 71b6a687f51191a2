"""How the peers do what `operations` describes. A worker loads this file by its path: it imports NumPy alone.

Each builder is told the case and its arrays, channels first, and gives back a call and a function that returns the
results, channels first. A gradient is asked of PyTorch by the kernel's own function where there is one (pooling, batch
norm, activations), else by autograd over a graph that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
Case = dict[str, Any]
Built = tuple[Callable[[], Any], Callable[[], list[Array]]]

_ONNX = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "hardswish": "HardSwish",
    "gelu": "Gelu",
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "add": "Add",
}
_LITE = ("relu", "relu6", "silu", "hardswish", "sigmoid", "tanh", "gelu", "add", "softmax", "log_softmax")


def not_applicable(variant: str, case: Case) -> str | None:
    """Why the variant has no such operation, or is not asked for it; None where it is."""
    op, kind, rank, image = case["op"], case["kind"], case["rank"], case["image"]
    if variant in ("numpy", "torch", "jax"):
        return None
    if variant == "torch_cl":
        return None if image and rank >= 2 else "no channels-last format for this rank"
    if case["direction"] == "backward" or op == "batch_norm_train":
        return "inference only"
    if case["dtype"] != "float32":
        return "float32 only"
    if variant in ("onnxruntime", "openvino"):
        return "no such operation" if op == "layer_norm_channels" else None
    if variant == "xnnpack":
        if (kind == "pool" and rank == 2) or kind == "separable" or op in _LITE:
            return None
        return "no such kernel"
    if variant == "ncnn" and (kind == "separable" or (kind == "pool" and rank == 2)) and case["n"] == 1:
        return None
    return "not asked for" if variant == "ncnn" else "same as with Winograd"


def _pads(case: Case) -> list[tuple[int, int]]:
    return [(p, p) for p in case["options"]["padding"]]


def last(a: Array) -> Array:
    """Axes (N, C, ...) to (N, ..., C), contiguous."""
    return np.ascontiguousarray(np.moveaxis(a, 1, -1))


def first(a: Array) -> Array:
    """Axes (N, ..., C) to (N, C, ...)."""
    return np.moveaxis(np.asarray(a), -1, 1)


# ------------------------------------------------------------------------------------------------------------ PyTorch


def _torch_forward(torch: Any, case: Case, t: dict[str, Any], x: Any) -> Any:
    functional, op, options, arguments = torch.nn.functional, case["op"], case["options"], case["arguments"]
    forward, rank = case["forward"], case["rank"]
    weight, bias = t.get("weight"), t.get("bias")
    if case["kind"] == "separable":
        u = functional.conv2d(x, t["we"]) if "we" in t else x
        return functional.conv2d(functional.conv2d(u, t["dw"], groups=t["dw"].shape[0], **options), t["pw"])
    if forward.startswith("global_avg"):
        return getattr(functional, f"adaptive_avg_pool{rank}d")(x, 1)
    if case["kind"] == "pool":
        return getattr(functional, forward)(x, arguments[-1], **options)
    if forward == "batch_norm":
        return functional.batch_norm(x, t["mean"], t["var"], weight, bias, training=op.endswith("_train"))
    if forward == "group_norm":
        groups = next(a for a in arguments if isinstance(a, int))
        return functional.group_norm(x, groups, weight, bias)
    if forward == "instance_norm":
        return functional.instance_norm(x, weight=weight, bias=bias)
    if forward == "layer_norm":
        return functional.layer_norm(x, (case["x_shape"][-1],), weight, bias)
    if forward == "layer_norm_channels":
        return functional.layer_norm(x.movedim(1, -1), (case["c"],), weight, bias).movedim(-1, 1)
    if forward == "local_response_norm":
        return functional.local_response_norm(x, arguments[-1])
    if forward == "add":
        return torch.add(x, t["other"])
    if forward in ("softmax", "log_softmax"):
        return getattr(functional, forward)(x, arguments[-1])
    return getattr(torch if forward in ("sigmoid", "tanh") else functional, forward)(x)


def _torch_backward(torch: Any, case: Case, t: dict[str, Any]) -> Callable[[], Any] | None:
    aten, forward, options, arguments = torch.ops.aten, case["forward"], case["options"], case["arguments"]
    dy, x = t["dy"], t.get("x")
    if forward == "max_pool2d":
        window = (arguments[-1], options["stride"], options["padding"], [1, 1], False)
        _, indices = aten.max_pool2d_with_indices(x, *window)
        return lambda: aten.max_pool2d_with_indices_backward(dy, x, *window, indices)
    if forward == "avg_pool2d":
        x = torch.zeros(case["x_shape"]).to(memory_format=t["format"])
        mean = (arguments[-1], options["stride"], options["padding"], False, True, None)
        return lambda: aten.avg_pool2d_backward(dy, x, *mean)
    if forward == "global_avg_pool2d":
        x = torch.zeros(case["x_shape"]).to(memory_format=t["format"])
        return lambda: aten._adaptive_avg_pool2d_backward(dy, x)
    if forward == "batch_norm":
        rest = (t["weight"], None, None, t["mean"], t["inv_std"], True, 1e-5, [True, True, True])
        return lambda: aten.native_batch_norm_backward(dy, x, *rest)
    if forward == "relu":
        return lambda: aten.threshold_backward(dy, x, 0)
    if forward in ("silu", "gelu"):
        return lambda: getattr(aten, f"{forward}_backward")(dy, x)
    if forward == "softmax":
        y = t["y"]
        return lambda: aten._softmax_backward_data(dy, y, arguments[-1], y.dtype)
    return None


def torch_operation(torch: Any, case: Case, arrays: dict[str, Array], channels_last: bool) -> Built:
    """PyTorch's call, in one of its two memory formats."""
    form = torch.contiguous_format
    if channels_last:
        form = torch.channels_last if case["rank"] == 2 else torch.channels_last_3d

    def tensor(a: Array) -> Any:
        return torch.from_numpy(a).to(memory_format=form if a.ndim == case["rank"] + 2 else torch.contiguous_format)

    def numpy(values: Any) -> list[Array]:
        values = values if isinstance(values, list | tuple) else (values,)
        return [v.detach().contiguous().numpy() for v in values]

    def operands() -> dict[str, Any]:
        return {name: tensor(a) for name, a in arrays.items()} | {"format": form}

    t = operands()
    if case["direction"] == "forward":
        return lambda: _torch_forward(torch, case, t, t["x"]), lambda: numpy(_torch_forward(torch, case, t, t["x"]))
    direct = _torch_backward(torch, case, t)
    if direct is not None:
        return direct, lambda: numpy(direct())
    with torch.inference_mode(False), torch.enable_grad():
        t = operands()
        leaves: dict[str, Any] = {name: t[name].requires_grad_() for name in ("x", "dw", "pw", "weight") if name in t}
        if "weight" in t:
            leaves["bias"] = t["bias"] = torch.zeros_like(t["weight"]).requires_grad_()
        y = _torch_forward(torch, case, t, t["x"])

    def backward() -> Any:
        with torch.inference_mode(False):
            return torch.autograd.grad(y, list(leaves.values()), t["dy"], retain_graph=True)

    return backward, lambda: numpy(backward())


# ---------------------------------------------------------------------------------------------------------------- JAX


def _jax_forward(jax: Any, case: Case, t: dict[str, Any]) -> Any:
    np_, lax, options, arguments = jax.numpy, jax.lax, case["options"], case["arguments"]
    forward, rank, x = str(case["forward"]), case["rank"], t["x"]
    axis = x.ndim - 1
    if case["kind"] == "separable":
        numbers = ("NHWC", "HWIO", "NHWC")

        def product(u: Any, w: Any) -> Any:
            return lax.conv_general_dilated(u, w, (1, 1), "VALID", dimension_numbers=numbers, precision="highest")

        u = lax.conv_general_dilated(
            product(x, t["we"]) if "we" in t else x,
            t["dw"],
            options["stride"],
            _pads(case),
            dimension_numbers=numbers,
            feature_group_count=t["dw"].shape[-1],
            precision="highest",
        )
        return product(u, t["pw"])
    if forward.startswith("global_avg"):
        return x.mean(tuple(range(1, 1 + rank)), keepdims=True)
    if case["kind"] == "pool":
        window, steps = (1, *arguments[-1], 1), (1, *options["stride"], 1)
        pads = ((0, 0), *_pads(case), (0, 0))
        if forward.startswith("max"):
            return lax.reduce_window(x, -np_.inf, lax.max, window, steps, pads)
        return lax.reduce_window(x, 0.0, lax.add, window, steps, pads) / math.prod(arguments[-1])

    def normalised(axes: tuple[int, ...], x: Any = x) -> Any:
        mean = x.mean(axes, keepdims=True)
        return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5)

    weight, bias = t.get("weight"), t.get("bias", 0.0)
    pixels = tuple(range(1, axis))
    if case["op"] == "batch_norm":
        return (x - t["mean"]) * (lax.rsqrt(t["var"] + 1e-5) * weight) + bias
    if forward == "batch_norm":
        return normalised((0, *pixels)) * weight + bias
    if forward == "group_norm":
        groups = next(a for a in arguments if isinstance(a, int))
        split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
        return normalised((*pixels, axis + 1), split).reshape(x.shape) * weight + bias
    if forward == "instance_norm":
        return normalised(pixels) * weight + bias
    if forward in ("layer_norm", "layer_norm_channels"):
        return normalised((axis,)) * weight + bias
    if forward == "local_response_norm":
        size = arguments[-1]
        pads = (*((0, 0),) * axis, (size // 2, (size - 1) // 2))
        sums = lax.reduce_window(x * x, 0.0, lax.add, (*(1,) * axis, size), (1,) * (axis + 1), pads)
        return x * (1 + 1e-4 / size * sums) ** -0.75
    if forward == "add":
        return x + t["other"]
    if forward in ("softmax", "log_softmax"):
        return getattr(jax.nn, forward)(x, axis=arguments[-1])
    if forward == "gelu":
        return jax.nn.gelu(x, approximate=False)
    return np_.tanh(x) if forward == "tanh" else getattr(jax.nn, "hard_swish" if forward == "hardswish" else forward)(x)


def jax_operation(jax: Any, case: Case, arrays: dict[str, Array]) -> Built:
    """JAX's call, compiled ahead, channels last."""
    image = case["image"]

    def turned(name: str, a: Array) -> Any:
        if name in ("dw", "pw", "we"):
            return jax.device_put(np.ascontiguousarray(a.transpose(2, 3, 1, 0)))
        return jax.device_put(last(a) if image and a.ndim == len(case["x_shape"]) else a)

    def back(name: str, a: Any) -> Array:
        a = np.asarray(a)
        if name in ("dw", "pw"):
            return np.ascontiguousarray(a.transpose(3, 2, 0, 1))
        return first(a) if image and a.ndim == len(case["x_shape"]) else a

    t = {name: turned(name, a) for name, a in arrays.items()}
    if case["direction"] == "forward":
        forward = jax.jit(lambda t: _jax_forward(jax, case, t)).lower(t).compile()
        return lambda: forward(t).block_until_ready(), lambda: [back("y", forward(t))]
    names: list[str] = [name for name in ("x", "dw", "pw", "weight") if name in t]
    if "weight" in t:
        t["bias"] = jax.numpy.zeros_like(t["weight"])
        names.append("bias")
    if "y" in t:

        def pull(t: Any) -> Any:
            y, dy = t["y"], t["dy"]
            return [y * (dy - (y * dy).sum(case["arguments"][-1], keepdims=True))]

        names = ["x"]
    else:
        if "x" not in t:
            t["x"] = jax.numpy.zeros([case["x_shape"][0], *case["x_shape"][2:], case["x_shape"][1]], t["dy"].dtype)
            names = ["x"]

        def pull(t: Any) -> Any:
            leaves = [t[name] for name in names]

            def apply(*values: Any) -> Any:
                return _jax_forward(jax, case, t | dict(zip(names, values, strict=True)))

            return jax.vjp(apply, *leaves)[1](t["dy"])

    compiled = jax.jit(pull).lower(t).compile()
    return (
        lambda: jax.block_until_ready(compiled(t)),
        lambda: [back(name, a) for name, a in zip(names, compiled(t), strict=True)],
    )


# --------------------------------------------------------------------------------------------------------------- ONNX


def onnx_model(onnx: Any, case: Case, arrays: dict[str, Array]) -> tuple[bytes, dict[str, Array]]:
    """The operation as an ONNX model, and the arrays that are its inputs."""
    helper, op, options, arguments = onnx.helper, case["op"], case["options"], case["arguments"]
    node = helper.make_node
    inputs: dict[str, Array] = {name: arrays[name] for name in ("x", "other") if name in arrays}
    weights = {name: a for name, a in arrays.items() if name not in inputs}
    if case["kind"] == "separable":
        pads = [*options["padding"], *options["padding"]]
        kernel = list(weights["dw"].shape[2:])
        shape: dict[str, Any] = {"kernel_shape": kernel, "strides": options["stride"], "pads": pads}
        nodes = [node("Conv", ["x", "we"], ["e"])] if "we" in weights else []
        before, channels = "e" if nodes else "x", weights["dw"].shape[0]
        nodes += [node("Conv", [before, "dw"], ["u"], group=channels, **shape), node("Conv", ["u", "pw"], ["y"])]
    elif op.startswith("global_avg"):
        nodes = [node("GlobalAveragePool", ["x"], ["y"])]
    elif case["kind"] == "pool":
        shape = {"kernel_shape": arguments[-1], "strides": options["stride"]}
        shape["pads"] = [*options["padding"], *options["padding"]]
        maximum = op.startswith("max")
        extra = {} if maximum else {"count_include_pad": 1}
        nodes = [node("MaxPool" if maximum else "AveragePool", ["x"], ["y"], **shape, **extra)]
    elif op == "batch_norm":
        nodes = [node("BatchNormalization", ["x", "weight", "bias", "mean", "var"], ["y"], epsilon=1e-5)]
    elif op == "group_norm":
        nodes = [node("GroupNormalization", ["x", "weight", "bias"], ["y"], epsilon=1e-5, num_groups=arguments[1])]
    elif op == "instance_norm":
        nodes = [node("InstanceNormalization", ["x", "weight", "bias"], ["y"], epsilon=1e-5)]
    elif op == "layer_norm":
        nodes = [node("LayerNormalization", ["x", "weight", "bias"], ["y"], epsilon=1e-5, axis=-1)]
    elif op == "local_response_norm":
        nodes = [node("LRN", ["x"], ["y"], size=arguments[-1], alpha=1e-4, beta=0.75, bias=1.0)]
    elif op == "silu":
        nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])]
    elif op == "relu6":
        weights = {"low": np.float32(0), "high": np.float32(6)}
        nodes = [node("Clip", ["x", "low", "high"], ["y"])]
    else:
        axis = {"axis": arguments[-1]} if "softmax" in op else {}
        nodes = [node(_ONNX[op], list(inputs), ["y"], **axis)]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "operation",
        [helper.make_tensor_value_info(name, kind, a.shape) for name, a in inputs.items()],
        [helper.make_tensor_value_info("y", kind, case["y_shape"])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString(), inputs


# ---------------------------------------------------------------------------------------------------- TensorFlow Lite


def lite_function(tf: Any, case: Case, arrays: dict[str, Array]) -> tuple[Callable[..., Any], list[Array]]:
    """A function for TensorFlow's tracer, and its inputs.

    Images are padded before the clock starts where "SAME" would not do alike.
    """
    op, options, arguments, x = case["op"], case["options"], case["arguments"], arrays["x"]
    if case["image"]:
        x = last(x)
    if case["kind"] in ("pool", "separable") and "padding" in options:
        kernel = arguments[-1] if case["kind"] == "pool" else arrays["dw"].shape[2:]
        total = [
            max((-(-i // s) - 1) * s + r - i, 0)
            for i, s, r in zip(x.shape[1:3], options["stride"], kernel, strict=True)
        ]
        same = [2 * p for p in options["padding"]] == total and op != "avg_pool2d"
        expand = np.ascontiguousarray(arrays["we"].transpose(2, 3, 1, 0)) if "we" in arrays else None
        if expand is not None and not same:
            # What pads the expansion cannot be done beforehand.
            pads = [[0, 0], *([p, p] for p in options["padding"]), [0, 0]]
            dw, pw = (
                np.ascontiguousarray(arrays[n].transpose(t)) for n, t in (("dw", (2, 3, 0, 1)), ("pw", (2, 3, 1, 0)))
            )

            def padded(v: Any) -> Any:
                u = tf.pad(tf.nn.conv2d(v, expand, 1, "VALID"), pads)
                return tf.nn.conv2d(tf.nn.depthwise_conv2d(u, dw, [1, *options["stride"], 1], "VALID"), pw, 1, "VALID")

            return padded, [x]
        if not same:
            value = -np.inf if op == "max_pool2d" else 0.0
            x = np.pad(x, [(0, 0), *_pads(case), (0, 0)], constant_values=value)
        mode, steps = "SAME" if same and any(total) else "VALID", options["stride"]
        if case["kind"] == "pool":
            pool = tf.nn.max_pool2d if op == "max_pool2d" else tf.nn.avg_pool2d
            return lambda v: pool(v, list(arguments[-1]), list(steps), mode), [x]
        dw = np.ascontiguousarray(arrays["dw"].transpose(2, 3, 0, 1))
        pw = np.ascontiguousarray(arrays["pw"].transpose(2, 3, 1, 0))

        def separable(v: Any) -> Any:
            v = v if expand is None else tf.nn.conv2d(v, expand, 1, "VALID")
            return tf.nn.conv2d(tf.nn.depthwise_conv2d(v, dw, [1, *steps, 1], mode), pw, 1, "VALID")

        return separable, [x]
    if op == "global_avg_pool2d":
        return lambda v: tf.reduce_mean(v, [1, 2], keepdims=True), [x]
    if op == "add":
        return lambda v, w: v + w, [x, arrays["other"]]
    plain: dict[str, Callable[[Any], Any]] = {
        "relu": tf.nn.relu,
        "relu6": tf.nn.relu6,
        "sigmoid": tf.nn.sigmoid,
        "tanh": tf.nn.tanh,
        "gelu": lambda v: tf.nn.gelu(v, approximate=False),
        "silu": lambda v: v * tf.nn.sigmoid(v),
        "hardswish": lambda v: v * tf.nn.relu6(v + 3.0) * (1 / 6),
        "softmax": tf.nn.softmax,
        "log_softmax": tf.nn.log_softmax,
    }
    return plain[op], [x]


# --------------------------------------------------------------------------------------------------------------- ncnn


def ncnn_layers(case: Case, arrays: dict[str, Array]) -> tuple[str, int, list[Array]]:
    """The layers between the blobs "in" and "out" as ncnn's text, their number, and the weights in order."""
    options = case["options"]
    if case["kind"] == "separable":
        c, k = arrays["dw"].shape[0], case["y_shape"][1]
        _, _, r, s = arrays["dw"].shape
        (sh, sw), (ph, pw) = options["stride"], options["padding"]
        window = f"1={s} 11={r} 3={sw} 13={sh} 4={pw} 14={ph}"
        names, before, text = ["dw", "pw"], "in", ""
        if "we" in arrays:
            names, before = ["we", *names], "wide"
            text = f"Convolution we 1 1 in wide 0={c} 1=1 5=0 6={arrays['we'].size}\n"
        text += f"ConvolutionDepthWise dw 1 1 {before} mid 0={c} {window} 5=0 6={arrays['dw'].size} 7={c}\n"
        text += f"Convolution pw 1 1 mid out 0={k} 1=1 5=0 6={arrays['pw'].size}"
        return text, len(names), [arrays[name] for name in names]
    if case["op"].startswith("global_avg"):
        return "Pooling pool 1 1 in out 0=1 4=1", 1, []
    (r, s), (sh, sw), (ph, pw) = case["arguments"][-1], options["stride"], options["padding"]
    kind = 0 if case["op"].startswith("max") else 1
    text = f"Pooling pool 1 1 in out 0={kind} 1={s} 11={r} 2={sw} 12={sh} 3={pw} 13={ph} 14={pw} 15={ph} 5=1 6=1"
    return text, 1, []
