"""Models as they are read: plain lists, NumPy arrays, and nothing of a file taken on trust."""

from __future__ import annotations

import graphlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.inliner
import onnx.numpy_helper

from ..._args import Array

# Later operators may mean something else by the same name.
NEWEST_OPERATORS = 28
# Bytes of a weight that is worth taking out of the model.
_LARGE = 1 << 12
# A message of protobuf ends here; larger models keep their weights beside them.
_MOST_BYTES = 2**31 - 1
# Nodes that the calls of a model's own functions may come to: hostile models ask for any number by a few lines.
_MOST_EXPANDED = 2**15

Model: Any = onnx.ModelProto


@dataclass(frozen=True, slots=True)
class Port:
    """An input of the model; a dimension is a number, or the name of one that the caller chooses (None: nameless)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


@dataclass(eq=False, slots=True)
class Step:
    """A node of the model."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    version: int
    """Of the operators that the model goes by."""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self.attributes.get(name, default)

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}"


@dataclass(eq=False, slots=True)
class Source:
    """A model: its nodes in an order in which they can run, its weights, and what goes in and comes out."""

    name: str
    inputs: list[Port]
    outputs: list[str]
    constants: dict[str, Array]
    steps: list[Step]
    version: int
    unsupported: list[str] = field(default_factory=list)
    """What no operator stands for, and where."""


def read(model: object) -> Source:
    """A model from a path, the bytes of a file, or a ModelProto.

    Raises:
        OSError: the file cannot be read.
        TypeError: model is none of these.
        ValueError: it is no valid model, or its weights lie outside the model's folder.
    """
    folder: Path | None = None
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        folder, model = path.parent, path.read_bytes()
    if isinstance(model, (bytes, bytearray, memoryview)):
        proto = Model()
        try:
            proto.ParseFromString(bytes(model))
        except Exception as error:  # of protobuf, whose class differs from one release to the next
            raise ValueError(f"model (of {len(model)} bytes) must be an ONNX file: {error}") from None
    elif isinstance(model, Model):
        proto = Model()
        proto.CopyFrom(model)
    else:
        raise TypeError(f"model (of type {type(model).__name__}) must be a path, bytes or an onnx.ModelProto")
    if not proto.HasField("graph") or not proto.graph.output:
        raise ValueError("model must hold a graph with an output: it is empty or cut short")
    weights = _weights(proto, folder)
    _check(proto)
    if proto.functions:
        _check_functions(proto)
        proto = onnx.inliner.inline_local_functions(proto)
    return _source(proto, weights)


def _check(proto: Any) -> None:
    for info in proto.graph.output:
        # A shape may be left out by whoever writes the model; the checker wants one.
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    try:
        if proto.ByteSize() < _MOST_BYTES:
            onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"model is not valid: {str(error).strip().splitlines()[0]}") from None


def _identity(f: Any, name: str) -> tuple[str, str, str]:
    """What a call names a function by."""
    return f.domain if f.domain != "ai.onnx" else "", name, getattr(f, "overload", "")


def _check_functions(proto: Any) -> None:
    """See to it that what the calls of functions come to can be written out."""

    def called(nodes: Iterable[Any]) -> Counter[Any]:
        """How often each operator is called, in the graphs of control flow as well."""
        found: Counter[Any] = Counter()
        left = list(nodes)
        while left:
            node = left.pop()
            found[_identity(node, node.op_type)] += 1
            for a in node.attribute:
                for graph in (a.g, *a.graphs):
                    left.extend(graph.node)
        return found

    functions = {_identity(f, f.name): called(f.node) for f in proto.functions}
    sizes: dict[Any, int] = {}
    try:
        order = list(graphlib.TopologicalSorter(functions).static_order())
    except graphlib.CycleError:
        raise ValueError("model is not valid: functions must not call themselves") from None
    for f in order:
        if f in functions:
            size = sum(count * sizes.get(g, 1) for g, count in functions[f].items())
            sizes[f] = min(size, _MOST_EXPANDED + 1)
    expanded = sum(count * sizes[f] for f, count in called(proto.graph.node).items() if f in sizes)
    if expanded > _MOST_EXPANDED:
        raise ValueError(f"the calls of the model's functions must come to at most {_MOST_EXPANDED} nodes")


# ------------------------------------------------------------------------------------------------------------ weights


def _weights(proto: Any, folder: Path | None) -> dict[str, Array]:
    """The initializers. Those that lie in other files, and large ones, are taken out of the model, which is checked
    without them: the checker writes it to memory first, and fails on those of other files.
    """
    weights: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            raise ValueError(f"the weight {tensor.name!r} is there twice")
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        weights[tensor.name] = _external(tensor, folder) if outside else array_of(tensor)
        if outside or weights[tensor.name].nbytes > _LARGE:
            # What is left of it is a tensor of its type with nothing in it.
            name, kind = tensor.name, tensor.data_type
            tensor.Clear()
            tensor.name, tensor.data_type = name, kind
            tensor.dims.append(0)
    return weights


def array_of(tensor: Any) -> Array:
    """The values of a TensorProto.

    Raises:
        ValueError: its data does not fit its shape or type.
    """
    what = f"the tensor {tensor.name!r}" if tensor.name else "a tensor"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError(f"{what} must be a weight of the main graph to lie in a file of its own")
    try:
        array: Array = np.asarray(onnx.numpy_helper.to_array(tensor))
        if array.shape != tuple(tensor.dims):
            raise ValueError(f"it has the shape {array.shape}")
    except Exception as error:
        raise ValueError(f"{what} (shape {tuple(tensor.dims)}) must hold what its shape says: {error}") from None
    return array


def _external(tensor: Any, folder: Path | None) -> Array:
    """A weight that lies in a file of the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = entries.get("location", "")
    if folder is None:
        raise ValueError(f"the weight {tensor.name!r} lies in the file {where!r}: give the model as a path")
    home = folder.resolve()
    path = (home / where).resolve()
    if not where or Path(where).is_absolute() or not path.is_relative_to(home) or not path.is_file():
        raise ValueError(f"the weight {tensor.name!r} lies in {where!r}, which must be a file in the model's folder")
    dtype, shape = _dtype(tensor.data_type, f"the weight {tensor.name!r}"), tuple(tensor.dims)
    try:
        offset = int(entries.get("offset") or 0)
        count = math.prod(shape) if min(shape, default=0) >= 0 else -1
        length = int(entries.get("length") or count * dtype.itemsize)
    except ValueError:
        offset = length = count = -1
    if offset < 0 or count < 0 or length != count * dtype.itemsize or offset + length > path.stat().st_size:
        raise ValueError(f"the weight {tensor.name!r} (shape {shape}) must lie within {where!r}, with all its bytes")
    if not count:
        return np.zeros(shape, dtype)
    return np.fromfile(path, dtype, count, offset=offset).reshape(shape)


def _dtype(code: int, what: str) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{what} has a type that does not exist (={code})") from None
    return dtype


# -------------------------------------------------------------------------------------------------------------- nodes


def _value(attribute: Any) -> Any:
    """An attribute in Python's types; graphs and other things that no operator takes as they are."""
    kinds: dict[int, Callable[[], Any]] = {
        onnx.AttributeProto.FLOAT: lambda: attribute.f,
        onnx.AttributeProto.INT: lambda: attribute.i,
        onnx.AttributeProto.STRING: lambda: attribute.s.decode("utf-8", "replace"),
        onnx.AttributeProto.TENSOR: lambda: array_of(attribute.t),
        onnx.AttributeProto.FLOATS: lambda: tuple(attribute.floats),
        onnx.AttributeProto.INTS: lambda: tuple(attribute.ints),
        onnx.AttributeProto.STRINGS: lambda: tuple(s.decode("utf-8", "replace") for s in attribute.strings),
    }
    return kinds.get(attribute.type, lambda: attribute)()


def _port(info: Any) -> Port | str:
    """An input, or what is wrong with it."""
    if not info.type.HasField("tensor_type"):
        return f"the input {info.name!r}, which is no tensor"
    tensor = info.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        dims = tensor.shape.dim
        # Some write -1 for a size that is not known.
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None) for d in dims
        )
    dtype = _dtype(tensor.elem_type, f"the input {info.name!r}")
    if dtype.kind not in "biuf" or dtype.isbuiltin != 1:
        return f"the input {info.name!r} of type {onnx.TensorProto.DataType.Name(tensor.elem_type)}"
    return Port(info.name, dtype, shape)


def _source(proto: Any, weights: dict[str, Array]) -> Source:
    graph = proto.graph
    versions = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    version = versions.get("ai.onnx", 1)
    unsupported = [f"the sparse weight {t.values.name!r}" for t in graph.sparse_initializer]
    if version > NEWEST_OPERATORS:
        unsupported.append(f"operators of the set {version} (the newest known is {NEWEST_OPERATORS})")
    inputs = []
    for info in graph.input:
        if info.name in weights:
            continue
        port = _port(info)
        if isinstance(port, str):
            unsupported.append(port)
        else:
            inputs.append(port)
    steps = []
    for i, node in enumerate(graph.node):
        name = node.name or (next((v for v in node.output if v), f"#{i}"))
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        attributes = {a.name: _value(a) for a in node.attribute}
        steps.append(Step(op, name, list(node.input), list(node.output), attributes, version))
    outputs = [info.name for info in graph.output]
    return Source(graph.name, inputs, outputs, weights, steps, version, unsupported)
