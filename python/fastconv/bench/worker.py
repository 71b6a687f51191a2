"""One contender of the benchmark in a process of its own: `python worker.py NAME READ_FD WRITE_FD THREADS CORES`.

It runs by its path, in the interpreter of the contender, with that contender and NumPy alone: nothing of fastconv is
imported here, except by the two contenders that are fastconv itself (its kernels, and its NumPy reference). What is not
a convolution or a dense layer stands in files beside this one, which are loaded by their paths too: `calls`, `rivals`
and, for whole networks, `twin`.

A message is eight bytes of length, a JSON header, then the raw bytes of the arrays that the header lists. Arrays that
cross the pipe have axes (N, C, ...) whatever the contender computes in.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import io
import json
import math
import os
import resource
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = Any
Case = dict[str, Any]


def _beside(name: str) -> Any:
    """A file of this folder as a module, which no import of a contender can meet."""
    spec = importlib.util.spec_from_file_location(f"fastconv_bench_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


calls: Any = _beside("calls")
rivals: Any = _beside("rivals")
twin: Any = _beside("twin")

# How a contender takes weights: a "function" as plain arrays at every call, a "plan" has prepared them before.
FORMS = {
    "numpy": "function",
    "torch": "function",
    "torch_cl": "function",
    "jax": "function",
    "onnxruntime": "plan",
    "openvino": "plan",
    "ncnn": "plan",
    "ncnn_direct": "plan",
    "xnnpack": "plan",
}
# The processes, and the variants that each of them times.
WORKERS = {
    "numpy": ("numpy",),
    "torch": ("torch", "torch_cl"),
    "jax": ("jax",),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "ncnn": ("ncnn", "ncnn_direct"),
    "tensorflow": ("xnnpack",),
}
# A sample of a very short call is the mean over as many calls as fill this time: reading the clock must not count.
_SAMPLE_SECONDS = 40e-6


def _maker(case: Case) -> Any:
    """The file that knows how the peers do an operation or a network."""
    return twin if case["kind"] in twin.KINDS else rivals


def form_of(variant: str, case: Case) -> str:
    """How the variant takes weights. In a network all keep theirs, and are compared with the fused one."""
    return "plan" if case.get("kind") == "network" else FORMS[variant]


def not_applicable(variant: str, case: Case) -> str | None:
    """Why the variant has no such operation, or None. Known without the peer, since a missing peer is reported."""
    if "kind" in case:
        reason: str | None = _maker(case).not_applicable(variant, case)
        return reason
    op, backward, groups, n = case["op"], case["direction"] == "backward", case["groups"], case["n"]
    rank, transposed = case["rank"], op.startswith("conv_transpose")
    float32 = case["dtype"] == "float32"
    if variant in ("numpy", "torch", "jax"):
        return None
    if variant == "torch_cl":
        return "no channels-last format for this rank" if rank < 2 else None
    if backward:
        return "inference only"
    if not float32:
        return "float32 only"
    if variant in ("onnxruntime", "openvino"):
        return None
    if variant == "xnnpack":
        if rank == 3:
            return "no 3-D kernels"
        if transposed:
            crops = case["padding"] if any(case["padding"]) else None
            same = all(
                o == i * s and 2 * p == d * (k - 1) + 1 - s
                for o, i, s, p, d, k in zip(
                    case["out_size"],
                    case["size"],
                    case["stride"],
                    case["padding"],
                    case["dilation"],
                    case["kernel"],
                    strict=True,
                )
            )
            if (
                groups > 1
                or any(d > 1 for d in case["dilation"])
                or any(case["output_padding"])
                or (crops and not same)
            ):
                return "no such transposed convolution in TensorFlow Lite"
        return None
    if variant in ("ncnn", "ncnn_direct"):
        if rank == 3:
            return "naive 3-D kernels only"
        if op != "linear" and n != 1:
            return "one image a call"
        if variant == "ncnn_direct" and (
            set(case["kernel"]) != {3} or set(case["stride"]) != {1} or groups > 1 or rank != 2
        ):
            return "same as with Winograd"
        return None
    return "unknown peer"


class Unsupported(Exception):
    """The contender refuses the operation."""


def _needed(name: str) -> Any:
    """A framework that a form of fastconv's takes models of."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unsupported(f"{name} is not installed beside fastconv") from None


class Variant:
    """A prepared call, how its result is read, and what must outlive it: some peers borrow the memory of an array."""

    def __init__(
        self,
        call: Callable[[], Any],
        result: Callable[[], list[Array]],
        about: dict[str, Any] | None = None,
        keep: tuple[Any, ...] = (),
    ) -> None:
        self.call = call
        self.result = result
        self.about = about or {}
        self.keep = keep


def _version(*names: str) -> dict[str, str]:
    return {name: str(getattr(importlib.import_module(name), "__version__", "?")) for name in names}


def _last(a: Array) -> Array:
    """Axes (N, C, ...) to (N, ..., C), contiguous."""
    return np.ascontiguousarray(np.moveaxis(a, 1, -1))


def _first(a: Array) -> Array:
    """Axes (N, ..., C) to (N, C, ...)."""
    return np.moveaxis(np.asarray(a), -1, 1)


Makers = Iterator[tuple[str, Callable[[], Variant]]]


class Contender:
    """What a peer must offer."""

    modules: tuple[str, ...] = ()

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.settings: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        return _version(*self.modules)

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        raise NotImplementedError

    def extra(self, name: str, arguments: dict[str, Any]) -> Any:
        raise ValueError(f"no command {name!r}")


# ---------------------------------------------------------------------------------------- fastconv and its reference


def _options(case: Case) -> dict[str, Any]:
    if case["op"] == "linear":
        return {}
    options = {k: tuple(case[k]) for k in ("stride", "padding", "dilation")} | {"groups": case["groups"]}
    if case["op"].startswith("conv_transpose"):
        options["output_padding"] = tuple(case["output_padding"])
    return options


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


_FILTERS = ("dw", "pw", "we")


def _turned(case: Case, last: bool) -> list[Any]:
    """The arguments of an operation for the layout: shapes and axes of images turned, too."""
    arguments, rank = list(case["arguments"]), len(case["x_shape"])
    if not last:
        return arguments
    turned = []
    for a in arguments:
        if isinstance(a, list) and len(a) == rank and a == list(case["x_shape"]):
            a = [a[0], *a[2:], a[1]]
        elif "softmax" in case["op"] and a == 1:
            a = -1
        turned.append(a)
    return turned


class FastConv(Contender):
    modules = ("fastconv",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.module: Any = importlib.import_module("fastconv")
        self.measure: Any = importlib.import_module("fastconv._measure")
        self.module.set_num_threads(threads)
        self.settings = {"isa": str(self.module.get_isa()), "plan": "weights packed before, out= given"}

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        if case.get("kind") in twin.KINDS:
            yield from self._network(case, arrays)
            return
        for layout in case["layouts"]:
            yield from self._layout(case, arrays, layout)

    def _network(self, case: Case, arrays: dict[str, Array]) -> Makers:
        nn, models = (importlib.import_module(f"fastconv.{name}") for name in ("nn", "models"))
        networks = importlib.import_module("fastconv.bench.networks")
        x = arrays["x"]

        def created() -> Any:
            with nn.init.undrawn():
                network = models.create(case["net"], dtype=case["dtype"], **case["create"])
            network.load_state_dict(twin.weights_of(arrays))
            return network.eval()

        def layers() -> Variant:
            network = created()
            return Variant(lambda: network(x), lambda: [np.ascontiguousarray(network(x))])

        def fused() -> Variant:
            network = nn.fuse(created())
            about = {"steps": len(network), "memory": network.memory(x)}
            return Variant(lambda: network(x), lambda: [np.ascontiguousarray(network(x))], about)

        def converted() -> Variant:
            torch = _needed("torch")
            torch.set_num_threads(self.threads)
            integration = importlib.import_module("fastconv.integrations.torch")
            module = twin.torch_module(torch, case["nodes"], case["result"], twin.weights_of(arrays)).eval()
            network = integration.convert(module, inplace=True)

            def call() -> Array:
                with torch.inference_mode():
                    return network(torch.from_numpy(x)).numpy()

            return Variant(call, lambda: [call()], {"report": str(integration.report(network))[:500]})

        def imported() -> Variant:
            onnx = _needed("onnx")
            model, inputs = twin.onnx_model(onnx, case, arrays)
            prepared = importlib.import_module("fastconv.integrations.onnx").prepare(model)
            held = [inputs["x"]]
            return Variant(lambda: prepared.run(held), lambda: list(prepared.run(held)))

        def training() -> Variant:
            target = arrays["target"]
            step = networks.training_step(created(), twin.TIMED_RATE)

            def result() -> list[Array]:
                network = created()
                loss = networks.training_step(network, twin.CHECKED_RATE)(x, target)
                found: list[Array] = networks.watched(network, loss, case["gradients"], case["values"])
                return found

            return Variant(lambda: step(x, target), result)

        if case["kind"] == "training":
            yield "fastconv", training
        else:
            yield "fastconv", layers
            yield "fastconv_plan", fused
            yield "fastconv_convert", converted
            yield "fastconv_onnx", imported

    def _operation(self, case: Case, arrays: dict[str, Array], layout: str) -> Makers:
        f, op, options, rank = self.module, case["op"], _tuples(case["options"]), len(case["x_shape"])
        last = layout == "NHWC" and case["image"]
        if case["kind"] != "elementwise" and case["forward"] != "layer_norm":
            options["layout"] = layout
        operands = {k: _last(a) if last and a.ndim == rank and k not in _FILTERS else a for k, a in arrays.items()}
        arguments = calls.arguments_of(_turned(case, last), operands)

        def back(values: Any) -> list[Array]:
            return [_first(a) if last and a.ndim == rank and i not in weights else a for i, a in enumerate(values)]

        # The gradients of filters have as many axes as an image.
        weights = (1, 2) if case["kind"] == "separable" and case["direction"] == "backward" else ()

        def function() -> Variant:
            call = getattr(f, op)
            return Variant(
                lambda: call(*arguments, **options), lambda: back(calls.results_of(call(*arguments, **options)))
            )

        def into() -> Variant:
            if case["kind"] == "separable":
                return planned()
            call = getattr(f, op)
            y = calls.results_of(call(*arguments, **options))[0]

            def result() -> list[Array]:
                y.fill(np.nan)
                return back(calls.results_of(call(*arguments, **options, out=y)))

            return Variant(lambda: call(*arguments, **options, out=y), result)

        def planned() -> Variant:
            prepared = f.plan(op, *arguments, **options)
            y = prepared(arguments[0])
            about = {"packed_bytes": prepared.packed_bytes, "workspace_bytes": prepared.workspace_bytes}

            def result() -> list[Array]:
                y.fill(np.nan)
                return back([prepared(arguments[0], out=y)])

            return Variant(lambda: prepared(arguments[0], out=y), result, about)

        name = "fastconv_nhwc" if layout == "NHWC" else "fastconv"
        yield name, function
        if case["direction"] == "forward":
            yield f"{name}_plan", into

    def _layout(self, case: Case, arrays: dict[str, Array], layout: str) -> Makers:
        if "kind" in case:
            yield from self._operation(case, arrays, layout)
            return
        f, op, options = self.module, case["op"], _options(case)
        last = layout == "NHWC" and op != "linear"
        turn: Callable[[Array], Array] = _last if last else np.ascontiguousarray
        back: Callable[[Array], Array] = _first if last else np.asarray
        if op != "linear":
            options["layout"] = layout
        x, w = turn(arrays["x"]), arrays["w"]

        def backward() -> Variant:
            whole, dy = getattr(f, f"{op}_backward"), turn(arrays["dy"])

            def call() -> Any:
                return whole(dy, x, w, needs=("input", "weight"), **options)

            def result() -> list[Array]:
                gradients = call()
                return [back(gradients.input), np.asarray(gradients.weight)]

            return Variant(call, result)

        def function() -> Variant:
            call = getattr(f, op)
            return Variant(lambda: call(x, w, **options), lambda: [back(call(x, w, **options))])

        def plan() -> Variant:
            prepared = f.plan(op, x, w, **options)
            y = prepared(x)
            decision = {k: v for k, v in dict(prepared.decision).items() if isinstance(v, str | int | float | bool)}
            about = {"decision": decision, "packed_bytes": prepared.packed_bytes}
            about["workspace_bytes"] = prepared.workspace_bytes

            def result() -> list[Array]:
                y.fill(np.nan)
                return [back(prepared(x, out=y))]

            return Variant(lambda: prepared(x, out=y), result, about)

        name = "fastconv_nhwc" if layout == "NHWC" else "fastconv"
        if case["direction"] == "backward":
            yield name, backward
        else:
            yield name, function
            yield f"{name}_plan", plan

    def extra(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "peak":
            measure = self.measure.measure_fma_peak
            return measure(arguments["dtype"], threads=self.threads, seconds=arguments["seconds"])
        if name == "copy":
            return self.measure.measure_copy_bandwidth(arguments["bytes"], seconds=arguments["seconds"])
        if name == "empty":
            # What a call into the compiled module costs when it does nothing.
            call = self.module.get_num_threads
            call()
            return statistics.median(_samples(call, 0.01, 5, 200)[0])
        return super().extra(name, arguments)


class Reference(Contender):
    modules = ("numpy",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.module: Any = importlib.import_module("fastconv.reference")
        self.settings = {"form": "fastconv.reference", "BLAS threads": threads}

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        if "kind" in case:
            yield "numpy", lambda: self._operation(case, arrays)
            return
        f, op, options, x, w = self.module, case["op"], _options(case), arrays["x"], arrays["w"]

        def make() -> Variant:
            if case["direction"] == "backward":
                whole = getattr(f, f"{op}_backward")

                def call() -> Any:
                    return whole(arrays["dy"], x, w, needs=("input", "weight"), **options)

                return Variant(call, lambda: list(call()[:2]))
            forward = getattr(f, op)
            return Variant(lambda: forward(x, w, **options), lambda: [forward(x, w, **options)])

        yield "numpy", make

    def _operation(self, case: Case, arrays: dict[str, Array]) -> Variant:
        call, options = getattr(self.module, case["op"]), _tuples(case["options"])
        arguments = calls.arguments_of(case["arguments"], arrays)
        return Variant(lambda: call(*arguments, **options), lambda: calls.results_of(call(*arguments, **options)))


# ---------------------------------------------------------------------------------------------------- plain functions


class Torch(Contender):
    modules = ("torch",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        with contextlib.suppress(RuntimeError):
            self.torch.set_num_interop_threads(1)
        # For good: no call is to record anything. The mode ends with the object that has set it.
        self.mode = self.torch.inference_mode()
        self.mode.__enter__()
        self.settings = {
            "mode": "inference_mode; gradients by aten's own functions, of norms and separable layers by autograd",
            "oneDNN": bool(self.torch.backends.mkldnn.is_available()),
            "cpu_capability": str(self.torch.backends.cpu.get_cpu_capability()),
        }

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        if "kind" in case:
            for name in ("torch", "torch_cl"):
                if not_applicable(name, case) is None:
                    yield name, lambda name=name: self._operation(case, arrays, name == "torch_cl")  # type: ignore[misc]
            return
        torch, op, rank = self.torch, case["op"], case["rank"]
        formats = {"torch": torch.contiguous_format}
        if rank >= 2:
            formats["torch_cl"] = torch.channels_last if rank == 2 else torch.channels_last_3d

        def make(form: Any) -> Variant:
            def tensor(name: str) -> Any:
                return torch.from_numpy(arrays[name]).to(memory_format=form)

            x, w = tensor("x"), tensor("w")
            if op == "linear":
                if case["direction"] == "backward":
                    dy = tensor("dy")

                    def gradients() -> Any:
                        return torch.mm(dy, w), torch.mm(dy.t(), x)

                    return Variant(gradients, lambda: [a.numpy() for a in gradients()])
                call = torch.nn.functional.linear
                return Variant(lambda: call(x, w), lambda: [call(x, w).numpy()])
            options = _options(case)
            if case["direction"] == "backward":
                dy, extra = tensor("dy"), list(options.get("output_padding", [0] * rank))
                whole = torch.ops.aten.convolution_backward
                fixed = (list(options["stride"]), list(options["padding"]), list(options["dilation"]))
                rest = (op.startswith("conv_transpose"), extra, case["groups"], [True, True, False])

                def backward() -> Any:
                    return whole(dy, x, w, None, *fixed, *rest)

                return Variant(backward, lambda: [a.contiguous().numpy() for a in backward()[:2]])
            call = getattr(torch.nn.functional, op)
            return Variant(
                lambda: call(x, w, None, **options), lambda: [call(x, w, None, **options).contiguous().numpy()]
            )

        for name, form in formats.items():
            yield name, lambda form=form: make(form)  # type: ignore[misc]

    def _operation(self, case: Case, arrays: dict[str, Array], channels_last: bool) -> Variant:
        return Variant(*_maker(case).torch_operation(self.torch, case, arrays, channels_last))


class Jax(Contender):
    modules = ("jax", "jaxlib")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.jax: Any = importlib.import_module("jax")
        self.jax.config.update("jax_platforms", "cpu")
        self.jax.config.update("jax_enable_x64", True)
        self.settings = {"form": "jit, compiled ahead, channels last", "precision": "highest"}

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        if "kind" in case:
            yield "jax", lambda: Variant(*rivals.jax_operation(self.jax, case, arrays))
            return
        jax, rank, groups = self.jax, case["rank"], case["groups"]
        transposed = case["op"].startswith("conv_transpose")
        taps = tuple(range(2, 2 + rank))

        def forward_weight(w: Array) -> Array:
            """(K, C/groups, taps) or, transposed, (C, K/groups, taps) to (taps, C/groups, K)."""
            if transposed:
                w = np.flip(w, taps)
                c, k = w.shape[0] // groups, w.shape[1]
                w = w.reshape(groups, c, k, *w.shape[2:]).swapaxes(1, 2).reshape(groups * k, c, *w.shape[2:])
            return np.ascontiguousarray(np.moveaxis(w, (0, 1), (-1, -2)))

        def original_weight(w: Array) -> Array:
            w = np.moveaxis(np.asarray(w), (-1, -2), (0, 1))
            if transposed:
                k, c = w.shape[0] // groups, w.shape[1]
                w = w.reshape(groups, k, c, *w.shape[2:]).swapaxes(1, 2).reshape(groups * c, k, *w.shape[2:])
                w = np.flip(w, taps)
            return w

        def make() -> Variant:
            put = jax.device_put
            if case["op"] == "linear":
                # JAX's own dense layers hold (C, K); it would transpose (K, C) at every call.
                x, w = put(arrays["x"]), put(np.ascontiguousarray(arrays["w"].T))

                def apply(x: Any, w: Any) -> Any:
                    return jax.numpy.matmul(x, w, precision="highest")

                turn: Callable[[Array], Array] = np.asarray
                turn_weight: Callable[[Array], Array] = np.transpose
            else:
                letters = "DHW"[-rank:]
                numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
                pads = [(p, p) for p in case["padding"]]
                steps: dict[str, Any] = {"window_strides": case["stride"]}
                if transposed:
                    reach = [d * (k - 1) for d, k in zip(case["dilation"], case["kernel"], strict=True)]
                    pads = [
                        (e - p, e - p + o)
                        for e, p, o in zip(reach, case["padding"], case["output_padding"], strict=True)
                    ]
                    steps = {"window_strides": (1,) * rank, "lhs_dilation": case["stride"]}
                x, w = put(_last(arrays["x"])), put(forward_weight(arrays["w"]))

                def apply(x: Any, w: Any) -> Any:
                    return jax.lax.conv_general_dilated(
                        x,
                        w,
                        padding=pads,
                        rhs_dilation=case["dilation"],
                        dimension_numbers=numbers,
                        feature_group_count=groups,
                        precision="highest",
                        **steps,
                    )

                turn, turn_weight = _first, original_weight
            if case["direction"] == "backward":
                dy = put(arrays["dy"] if case["op"] == "linear" else _last(arrays["dy"]))

                def pull(dy: Any, x: Any, w: Any) -> Any:
                    return jax.vjp(apply, x, w)[1](dy)

                compiled = jax.jit(pull).lower(dy, x, w).compile()

                def backward() -> Any:
                    return jax.block_until_ready(compiled(dy, x, w))

                def gradients() -> list[Array]:
                    dx, dw = backward()
                    return [turn(dx), turn_weight(dw)]

                return Variant(backward, gradients)
            forward = jax.jit(apply).lower(x, w).compile()
            return Variant(lambda: forward(x, w).block_until_ready(), lambda: [turn(forward(x, w))])

        yield "jax", make


# ----------------------------------------------------------------------------------------------- sessions with weights


class OnnxRuntime(Contender):
    modules = ("onnxruntime", "onnx")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.onnx: Any = importlib.import_module("onnx")
        self.ort: Any = importlib.import_module("onnxruntime")
        self.settings = {"provider": "CPU", "optimisation": "all", "io_binding": True, "intra_op_threads": threads}

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        if "kind" in case:
            yield "onnxruntime", lambda: self._operation(case, arrays)
            return
        onnx = self.onnx
        helper, kinds = onnx.helper, onnx.TensorProto

        def make() -> Variant:
            op, w = case["op"], arrays["w"]
            if op == "linear":
                w = np.ascontiguousarray(w.T)
                node = helper.make_node("MatMul", ["x", "w"], ["y"])
            else:
                attributes = {
                    "kernel_shape": case["kernel"],
                    "strides": case["stride"],
                    "dilations": case["dilation"],
                    "pads": [*case["padding"], *case["padding"]],
                    "group": case["groups"],
                }
                kind = "Conv"
                if op.startswith("conv_transpose"):
                    kind, attributes["output_padding"] = "ConvTranspose", case["output_padding"]
                node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
            graph = helper.make_graph(
                [node],
                "layer",
                [helper.make_tensor_value_info("x", kinds.FLOAT, arrays["x"].shape)],
                [helper.make_tensor_value_info("y", kinds.FLOAT, case["y_shape"])],
                [onnx.numpy_helper.from_array(w, "w")],
            )
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
            return self._session(model.SerializeToString(), {"x": arrays["x"]}, case["y_shape"])

        yield "onnxruntime", make

    def _operation(self, case: Case, arrays: dict[str, Array]) -> Variant:
        model, inputs = _maker(case).onnx_model(self.onnx, case, arrays)
        return self._session(model, inputs, case["y_shape"])

    def _session(self, model: bytes, inputs: dict[str, Array], y_shape: list[int]) -> Variant:
        ort = self.ort
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        values = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in inputs.items()}
        y = ort.OrtValue.ortvalue_from_shape_and_type(y_shape, np.float32)
        binding = session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("y", y)

        def call() -> None:
            session.run_with_iobinding(binding)

        def result() -> list[Array]:
            call()
            return [y.numpy()]

        return Variant(call, result, keep=(inputs, values, y))


class OpenVino(Contender):
    modules = ("openvino",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.ov: Any = importlib.import_module("openvino")
        self.ops: Any = importlib.import_module("openvino.opset13")
        self.core = self.ov.Core()
        self.settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
        }

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        if "kind" in case:
            yield "openvino", lambda: self._operation(case, arrays)
            return
        ov, ops = self.ov, self.ops

        def make() -> Variant:
            op, w, groups = case["op"], arrays["w"], case["groups"]
            x = ops.parameter(list(arrays["x"].shape), np.float32)
            if op == "linear":
                y = ops.matmul(x, ops.constant(w), False, True)
            else:
                pads, weight = list(case["padding"]), w
                if groups > 1:
                    weight = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
                if op.startswith("conv_transpose"):
                    build = ops.group_convolution_backprop_data if groups > 1 else ops.convolution_backprop_data
                    y = build(
                        x,
                        ops.constant(weight),
                        strides=list(case["stride"]),
                        pads_begin=pads,
                        pads_end=pads,
                        dilations=list(case["dilation"]),
                        output_padding=list(case["output_padding"]),
                    )
                else:
                    build = ops.group_convolution if groups > 1 else ops.convolution
                    y = build(x, ops.constant(weight), list(case["stride"]), pads, pads, list(case["dilation"]))
            return self._request(ov.Model([y], [x], "layer"), [arrays["x"]])

        yield "openvino", make

    def _operation(self, case: Case, arrays: dict[str, Array]) -> Variant:
        try:
            onnx = importlib.import_module("onnx")
        except ImportError as error:
            raise Unsupported("its operations are read from ONNX, which is not installed") from error
        model, inputs = _maker(case).onnx_model(onnx, case, arrays)
        return self._request(self.core.read_model(io.BytesIO(model)), list(inputs.values()))

    def _request(self, model: Any, inputs: list[Array]) -> Variant:
        compiled = self.core.compile_model(model, "CPU", self.settings)
        request = compiled.create_infer_request()
        for i, a in enumerate(inputs):
            request.set_input_tensor(i, self.ov.Tensor(a, shared_memory=True))

        def call() -> None:
            request.infer()

        def result() -> list[Array]:
            call()
            return [np.array(request.get_output_tensor().data)]

        return Variant(call, result, keep=(inputs, compiled))


class Ncnn(Contender):
    modules = ("ncnn",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.ncnn: Any = importlib.import_module("ncnn")
        self.settings = {"num_threads": threads, "packing_layout": True, "fp16_bf16_int8": False, "vulkan": False}

    def _net(self, case: Case, w: Array, winograd: bool, directory: Path) -> Any:
        op, groups = case["op"], case["groups"]
        if op == "linear":
            text = f"InnerProduct op 1 1 in out 0={w.shape[0]} 1=0 2={w.size}"
        else:
            outputs = case["k"]
            text = f"0={outputs} 1={case['kernel'][-1]} 2={case['dilation'][-1]} 3={case['stride'][-1]} "
            text += f"4={case['padding'][-1]} 5=0 6={w.size}"
            if len(case["kernel"]) == 2:
                text += (
                    f" 11={case['kernel'][0]} 12={case['dilation'][0]} 13={case['stride'][0]} 14={case['padding'][0]}"
                )
            kind = "Convolution"
            if op.startswith("conv_transpose"):
                kind = "Deconvolution"
                extra = case["output_padding"]
                text += f" 18={extra[-1]}" + (f" 19={extra[0]}" if len(extra) == 2 else "")
                # ncnn keeps the outputs first, as in a plain convolution.
                c, k = w.shape[0] // groups, w.shape[1]
                w = w.reshape(groups, c, k, *w.shape[2:]).swapaxes(1, 2)
            if groups > 1:
                kind += "DepthWise"
                text += f" 7={groups}"
            if case["rank"] == 1:
                kind += "1D"
            text = f"{kind} op 1 1 in out {text}"
        return self._loaded(text, 1, [w], winograd, directory)

    def _loaded(self, text: str, layers: int, weights: list[Array], winograd: bool, directory: Path) -> Any:
        """A net of `layers` layers from the blob "in" to the blob "out"."""
        net = self.ncnn.Net()
        option = net.opt
        option.num_threads = self.threads
        option.use_vulkan_compute = False
        option.use_packing_layout = True
        option.use_winograd_convolution = winograd
        for size in ("23", "43", "63"):
            setattr(option, f"use_winograd{size}_convolution", winograd)
        for name in dir(option):
            if name.startswith(("use_fp16", "use_bf16", "use_int8")):
                setattr(option, name, False)
        net.opt = option
        parameters, data = directory / "layer.param", directory / "layer.bin"
        parameters.write_text(f"7767517\n{layers + 1} {layers + 1}\nInput in 0 1 in\n{text}\n")
        data.write_bytes(
            b"".join(struct.pack("<I", 0) + np.ascontiguousarray(w, np.float32).tobytes() for w in weights)
        )
        if net.load_param(str(parameters)) or net.load_model(str(data)):
            raise Unsupported("ncnn cannot load the layer")
        return net

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        if "kind" in case:
            yield "ncnn", lambda: self._operation(case, arrays, directory)
            return

        def make(winograd: bool) -> Variant:
            net = self._net(case, arrays["w"], winograd, directory)
            source = arrays["x"] if case["op"] == "linear" else arrays["x"][0]
            if case["op"] == "linear" and len(source) == 1:
                source = source[0]
            return self._extracting(net, source, case["y_shape"])

        yield "ncnn", lambda: make(True)
        yield "ncnn_direct", lambda: make(False)

    def _operation(self, case: Case, arrays: dict[str, Array], directory: Path) -> Variant:
        text, layers, weights = rivals.ncnn_layers(case, arrays)
        net = self._loaded(text, layers, weights, True, directory)
        return self._extracting(net, arrays["x"][0], case["y_shape"])

    def _extracting(self, net: Any, source: Array, y_shape: list[int]) -> Variant:
        # Aligned channels, as ncnn itself would hold them.
        mat = self.ncnn.Mat(np.ascontiguousarray(source)).clone()

        def call() -> Any:
            extractor = net.create_extractor()
            extractor.input("in", mat)
            status, out = extractor.extract("out")
            if status:
                raise Unsupported(f"ncnn returned {status}")
            return out

        return Variant(call, lambda: [np.array(call()).reshape(y_shape)])


class TensorFlowLite(Contender):
    modules = ("tensorflow",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        self.tf: Any = importlib.import_module("tensorflow")
        self.settings = {
            "interpreter": "TensorFlow Lite with the XNNPACK delegate",
            "num_threads": threads,
            "padding": "SAME where it is the same, else the input is padded before the clock starts",
        }

    def build(self, case: Case, arrays: dict[str, Array], directory: Path) -> Makers:
        if "kind" in case:
            yield "xnnpack", lambda: self._operation(case, arrays)
            return
        tf = self.tf

        def make() -> Variant:
            w, x, groups, transposed = arrays["w"], arrays["x"], case["groups"], case["op"].startswith("conv_transpose")
            if case["op"] == "linear":

                def apply(v: Any) -> Any:
                    return tf.matmul(v, tf.constant(w), transpose_b=True)

                squeeze = False
            else:
                # A 1-D layer is a row: TensorFlow Lite has 2-D kernels alone.
                squeeze = case["rank"] == 1
                grow = (lambda v: [1, *v]) if squeeze else list
                if squeeze:
                    x, w = x[:, :, None, :], w[:, :, None, :]
                x = _last(x)
                stride, dilation = grow(case["stride"]), grow(case["dilation"])
                pad = [0, *case["padding"]] if squeeze else list(case["padding"])
                size, kernel = x.shape[1:3], w.shape[2:]
                out = [1, *case["out_size"]] if squeeze else list(case["out_size"])
                if transposed:
                    shape = [case["n"], *out, case["k"]]
                    mode = "SAME" if any(pad) or out == [i * s for i, s in zip(size, stride, strict=True)] else "VALID"
                    tw = np.ascontiguousarray(w.transpose(2, 3, 1, 0))

                    def apply(v: Any) -> Any:
                        return tf.nn.conv2d_transpose(v, tw, shape, stride, mode)

                else:
                    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
                    total = [max((-(-i // s) - 1) * s + e - i, 0) for i, s, e in zip(size, stride, reach, strict=True)]
                    same = [2 * p for p in pad] == total and all(t % 2 == 0 for t in total)
                    if not same:
                        x = np.pad(x, [(0, 0), *((p, p) for p in pad), (0, 0)])
                    mode = "SAME" if same else "VALID"
                    if groups > 1 and groups == case["c"]:
                        # (K, 1, R, S) to (R, S, C, multiplier).
                        multiplier = case["k"] // groups
                        dw = w.reshape(groups, multiplier, *kernel).transpose(2, 3, 0, 1)
                        dw = np.ascontiguousarray(dw)

                        def apply(v: Any) -> Any:
                            return tf.nn.depthwise_conv2d(v, dw, [1, *stride, 1], mode, dilations=dilation)

                    else:
                        fw = np.ascontiguousarray(w.transpose(2, 3, 1, 0))

                        def apply(v: Any) -> Any:
                            return tf.nn.conv2d(v, fw, stride, mode, dilations=dilation)

            return self._interpreter(apply, [x], squeeze, case["op"] != "linear")

        yield "xnnpack", make

    def _operation(self, case: Case, arrays: dict[str, Array]) -> Variant:
        apply, inputs = rivals.lite_function(self.tf, case, arrays)
        return self._interpreter(apply, inputs, False, case["image"])

    def _interpreter(self, apply: Callable[..., Any], inputs: list[Array], squeeze: bool, channels: bool) -> Variant:
        """The function in the interpreter, which the delegate must take as a whole. `channels`: they are last."""
        tf, module = self.tf, self.tf.Module()
        module.f = tf.function(apply, input_signature=[tf.TensorSpec(x.shape, tf.float32) for x in inputs])
        converter = tf.lite.TFLiteConverter.from_concrete_functions([module.f.get_concrete_function()], module)
        interpreter = tf.lite.Interpreter(model_content=converter.convert(), num_threads=self.threads)
        interpreter.allocate_tensors()
        nodes = [d["op_name"] for d in interpreter._get_ops_details()]
        if nodes.count("DELEGATE") != 1:
            raise Unsupported(f"the XNNPACK delegate does not take the layer ({', '.join(nodes)})")
        for detail, x in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(detail["index"], x)
        y = interpreter.get_output_details()[0]["index"]

        def result() -> list[Array]:
            interpreter.invoke()
            value = interpreter.get_tensor(y)
            if channels:
                value = _first(value)
            return [value[:, :, 0, :] if squeeze else value]

        return Variant(interpreter.invoke, result)


CONTENDERS: dict[str, type[Contender]] = {
    "fastconv": FastConv,
    "numpy": Reference,
    "torch": Torch,
    "jax": Jax,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ncnn": Ncnn,
    "tensorflow": TensorFlowLite,
}


# ------------------------------------------------------------------------------------------------------------- timing


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _undisturbed(samples: list[tuple[float, bool]], least: int) -> tuple[list[float], int]:
    """The samples during which no other process took the core; all, and how many it did, where those are too few."""
    clean = [t for t, disturbed in samples if not disturbed]
    return (clean, 0) if len(clean) >= least else ([t for t, _ in samples], len(samples) - len(clean))


def _samples(call: Callable[[], Any], seconds: float, least: int, most: int) -> tuple[list[float], int]:
    """Warm times of one call, in seconds: at least `least` of them, then more until the time is used up.

    A call longer than the whole time is one sample by itself: what it finds in the caches no longer matters.
    Where the machine is busy, sampling goes on for up to three times as long to find samples that no other process has
    disturbed. The second result says how many of those returned are not of that kind.
    """
    clock = time.perf_counter
    before, begin = _preemptions(), clock()
    call()
    once = clock() - begin
    if once > seconds:
        return [once], int(_preemptions() != before)
    begin = clock()
    call()
    once = clock() - begin
    inner = max(1, min(10_000, math.ceil(_SAMPLE_SECONDS / max(once, 1e-9)))) if once < _SAMPLE_SECONDS else 1
    rounds = range(inner)
    samples: list[tuple[float, bool]] = []
    clean, stop = 0, clock() + seconds
    while len(samples) < most:
        before, begin = _preemptions(), clock()
        for _ in rounds:
            call()
        end = clock()
        disturbed = _preemptions() != before
        clean += not disturbed
        samples.append(((end - begin) / inner, disturbed))
        if len(samples) >= least and (end > stop + 2 * seconds or (end > stop and clean >= least)):
            break
    return _undisturbed(samples, least)


def _cold_samples(call: Callable[[], Any], sweep: Array, count: int) -> tuple[list[float], int]:
    """Times of single calls, each after a walk through more memory than the caches hold."""
    clock = time.perf_counter
    samples: list[tuple[float, bool]] = []
    for i in range(count):
        # Values stay near one: neither zeros nor denormals, which some machines add faster or slower.
        np.multiply(sweep, 1.0009765625 if i % 2 else 0.9990243902439024, out=sweep)
        before, begin = _preemptions(), clock()
        call()
        end = clock()
        samples.append((end - begin, _preemptions() != before))
    return _undisturbed(samples, 1)


# -------------------------------------------------------------------------------------------------------- the protocol


def send(stream: IO[bytes], header: dict[str, Any], arrays: dict[str, Array] | None = None) -> None:
    """Write one message."""
    arrays = {name: np.ascontiguousarray(a) for name, a in (arrays or {}).items()}
    header = header | {"arrays": [[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()]}
    text = json.dumps(header).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    for a in arrays.values():
        stream.write(a.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read one message; EOFError where the other side has gone."""
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise EOFError
    header = json.loads(_exactly(stream, struct.unpack("<Q", prefix)[0]))
    arrays = {}
    for name, dtype, shape in header.pop("arrays"):
        a = np.empty(shape, np.dtype(dtype))
        view = memoryview(a.reshape(-1).view(np.uint8).data)
        done = 0
        while done < len(view):
            got = stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise EOFError
            done += got
        arrays[name] = a
    return header, arrays


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


class Server:
    """Answers the commands of the benchmark until the pipe closes."""

    def __init__(self, name: str, threads: int) -> None:
        self.contender = CONTENDERS[name](threads)
        self.variants: dict[str, Variant] = {}
        self.sweep: Array = np.ones(1)
        self.directory = Path(tempfile.mkdtemp())

    def hello(self, _: dict[str, Any], __: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"versions": self.contender.versions(), "settings": self.contender.settings}, {}

    def prepare(self, message: dict[str, Any], arrays: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        """Build every variant that has the operation; results go back to be checked."""
        self.variants.clear()
        gc.collect()
        case, wanted = message["case"], message.get("variants")
        states: dict[str, Any] = {}
        results: dict[str, Array] = {}
        for name, make in self.contender.build(case, arrays, self.directory):
            if wanted is not None and name not in wanted:
                continue
            try:
                variant = make()
                for i, a in enumerate(variant.result()):
                    results[f"{name}/{i}"] = a
            except Unsupported as error:
                states[name] = {"status": "unsupported", "reason": str(error)}
            except Exception as error:
                states[name] = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
            else:
                self.variants[name] = variant
                states[name] = {"status": "ok", **variant.about}
        return {"variants": states}, results

    def time(self, message: dict[str, Any], _: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        call = self.variants[message["variant"]].call
        gc.disable()
        try:
            samples, disturbed = _samples(call, message["seconds"], message["least"], message["most"])
        finally:
            gc.enable()
        return {"samples": samples, "disturbed": disturbed}, {}

    def cold(self, message: dict[str, Any], _: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.sweep.nbytes != message["bytes"]:
            self.sweep = np.ones(message["bytes"] // 4, np.float32)
        gc.disable()
        try:
            samples, disturbed = _cold_samples(self.variants[message["variant"]].call, self.sweep, message["count"])
        finally:
            gc.enable()
        return {"samples": samples, "disturbed": disturbed}, {}

    def extra(self, message: dict[str, Any], _: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"value": self.contender.extra(message["name"], message["arguments"])}, {}

    def drop(self, _: dict[str, Any], __: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        self.variants.clear()
        gc.collect()
        return {}, {}


def main() -> int:
    """Serve one contender."""
    name, reading, writing, threads, cores = sys.argv[1:6]
    # A stopped process outlives a parent that is killed, unless the kernel is asked to end it.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before the imports: libraries size their pools by the affinity that they find.
    os.sched_setaffinity(0, {int(c) for c in cores.split(",")})
    here = str(Path(__file__).resolve().parent)
    # The neighbours of this file are no modules of the contender's.
    sys.path[:] = [p for p in sys.path if str(Path(p or ".").resolve()) != here]
    with open(int(reading), "rb") as requests, open(int(writing), "wb") as answers:
        try:
            server = Server(name, int(threads))
        except ImportError as error:
            send(answers, {"missing": str(error)})
            return 0
        except Exception as error:
            send(answers, {"error": f"{type(error).__name__}: {error}"})
            return 1
        send(answers, {"ready": True})
        while True:
            try:
                message, arrays = receive(requests)
            except EOFError:
                return 0
            try:
                header, results = getattr(server, message["command"])(message, arrays)
            except Exception as error:
                header, results = {"error": f"{type(error).__name__}: {error}"}, {}
            send(answers, header, results)


if __name__ == "__main__":
    sys.exit(main())
