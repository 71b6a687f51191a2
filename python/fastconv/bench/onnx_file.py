"""`python -m fastconv bench --onnx FILE`: a model of ONNX, beside ONNX Runtime and OpenVINO where they are installed.

All run in this process, in turn: what is compared is seen under the same load.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.bench.timing import Effort, Sampled
from fastconv.runtime import get_num_threads, set_num_threads

Array = Any
Call = Callable[[], list[Array]]


def inputs_of(ports: list[Any]) -> dict[str, Array]:
    """Drawn inputs of a model: normal, or of integers 0 and 1; a batch that has no size is one.

    Raises:
        ValueError: another axis has no size.
    """
    rng, inputs = np.random.default_rng(0), {}
    for port in ports:
        if port.shape is None or any(not isinstance(n, int) for n in port.shape[1:]):
            raise ValueError(f"--onnx: the input {port.name!r} (shape {port.shape}) must have sizes after the batch")
        shape = [n if isinstance(n, int) else 1 for n in port.shape]
        drawn = rng.standard_normal(shape) if port.dtype.kind == "f" else rng.integers(2, size=shape)
        inputs[port.name] = np.asarray(drawn, port.dtype)
    return inputs


def _peers(path: Path, inputs: dict[str, Array], outputs: list[str], threads: int) -> Iterator[tuple[str, Call | str]]:
    """The other runtimes, or why one is not there."""
    try:
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        yield f"ONNX Runtime {ort.__version__}", lambda: list(session.run(outputs, inputs))
    except ImportError:
        yield "ONNX Runtime", "not installed"
    except Exception as error:  # of its own classes
        yield "ONNX Runtime", str(error).splitlines()[0]
    try:
        ov = importlib.import_module("openvino")
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        settings["INFERENCE_NUM_THREADS"] = str(threads)
        compiled = ov.Core().compile_model(str(path), "CPU", settings)
        request = compiled.create_infer_request()
        for name, a in inputs.items():
            request.set_tensor(name, ov.Tensor(a, shared_memory=True))

        def infer() -> list[Array]:
            request.infer()
            return [np.array(request.get_output_tensor(i).data) for i in range(len(outputs))]

        yield f"OpenVINO {ov.__version__.split('-')[0]}", infer
    except ImportError:
        yield "OpenVINO", "not installed"
    except Exception as error:  # of its own classes
        yield "OpenVINO", str(error).splitlines()[0]


def _measure(calls: dict[str, Call], effort: Effort) -> dict[str, Sampled]:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(effort.rounds):
        for name, call in calls.items():
            # The turn before may have filled the caches.
            call()
            end = time.perf_counter() + effort.seconds
            for i in range(effort.most):
                begin = time.perf_counter()
                if i >= effort.least and begin >= end:
                    break
                call()
                samples[name].append(time.perf_counter() - begin)
    return {name: Sampled.of(found) for name, found in samples.items()}


def _difference(results: list[Array], ours: list[Array]) -> float:
    """The largest, in terms of the largest value."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(results, ours, strict=True)]
    return max(float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)) for a, b in pairs)


def main(path: Path, threads: tuple[int, ...], effort: Effort) -> int:
    """Print a table for each number of threads. 0: fine.

    Raises:
        OSError: the file cannot be read.
        ValueError: the model is not valid, or not supported.
    """
    from fastconv.integrations import onnx as integration

    begin = time.perf_counter()
    prepared = integration.prepare(path)
    inputs = inputs_of(prepared.inputs)
    ours = prepared.run(inputs)
    took, memory = time.perf_counter() - begin, prepared.memory(inputs)
    shapes = ", ".join(f"{name} {'x'.join(map(str, a.shape))}" for name, a in inputs.items())
    print(f"{path.name}: {shapes}; prepared in {took:.2f} s, {memory / 1e6:.1f} MB between the layers")
    before = get_num_threads()
    try:
        for count in threads:
            set_num_threads(count)
            calls: dict[str, Call] = {"fastconv": lambda: prepared.run(inputs)}
            for name, peer in _peers(path, inputs, prepared.outputs, count):
                if isinstance(peer, str):
                    print(f"{name}: {peer}")
                else:
                    calls[name] = peer
            found = _measure(calls, effort)
            first = found["fastconv"].median
            print(f"\n{'threads ' + str(count):24}{'ms':>10}{'of fastconv':>14}{'difference':>14}")
            for name, sampled in found.items():
                apart = "" if name == "fastconv" else f"{_difference(calls[name](), ours):14.1e}"
                print(f"{name:24}{sampled.median * 1e3:10.3f}{sampled.median / first:14.2f}{apart}")
    finally:
        set_num_threads(before)
    return 0
