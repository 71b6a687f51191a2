"""Models that run: a network for each shape of the inputs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx.backend.base import BackendRep

from ..._args import Array
from ..._graph import Network
from .load import Port, Source, read
from .lower import Form, Lowering, NeedsValues, UnsupportedModel, unsupported

# As many shapes are kept as _graph keeps of its own.
_MOST_NETWORKS = 4


# Its run is typed to give a tuple.
_BackendRep: Any = BackendRep


class PreparedModel(_BackendRep):  # type: ignore[misc]
    """What `prepare` makes of a model: `run(inputs)` computes it.

    Constants are folded, layers fused and their weights packed, and all results in between lie in one block of memory,
    for each shape of the inputs; the last four are kept. Several threads may call it at once.

    Attributes:
        inputs: name, dtype and shape of each input.
        outputs: the names of the outputs.
    """

    def __init__(self, source: Source) -> None:
        if nodes := unsupported(source):
            raise UnsupportedModel(nodes)
        self.inputs: list[Port] = source.inputs
        self.outputs: list[str] = source.outputs
        self._source = source
        # The inputs on whose values shapes depend: a network is for these values.
        self._by_value: frozenset[str] = frozenset()
        self._networks: dict[Any, Network] = {}
        self._lock = threading.Lock()
        if all(port.shape is not None and all(isinstance(n, int) for n in port.shape) for port in self.inputs):
            arrays: list[Array] = [
                np.zeros([n for n in port.shape or () if isinstance(n, int)], port.dtype) for port in self.inputs
            ]
            try:
                self._lower({port.name: x for port, x in zip(self.inputs, arrays, strict=True)}, known=False)
            except NeedsValues:
                return
            with np.errstate(all="ignore"):
                self._network(arrays).prepare(*arrays)

    def _lower(self, arrays: Mapping[str, Array], known: bool = True) -> Network:
        forms = {name: Form(x.shape, x.dtype) for name, x in arrays.items()}
        while True:
            try:
                values = {name: arrays[name].copy() for name in self._by_value}
                return Network(Lowering(self._source, forms, values).graph)
            except NeedsValues as needed:
                if not known:
                    raise
                self._by_value |= needed.names

    def _network(self, inputs: Sequence[Array]) -> Network:
        arrays = {port.name: x for port, x in zip(self.inputs, inputs, strict=True)}

        def key() -> Any:
            values = [arrays[name].tobytes() for name in sorted(self._by_value)]
            return tuple([(x.shape, x.dtype) for x in inputs]), tuple(values)

        with self._lock:
            found = self._networks.pop(key(), None)
            if found is None:
                found = self._lower(arrays)
                while len(self._networks) >= _MOST_NETWORKS:
                    del self._networks[next(iter(self._networks))]
            # What shapes depend on may be known only now.
            self._networks[key()] = found
        return found

    def _arrays(self, inputs: object) -> list[Array]:
        """The inputs in their order, checked."""
        names = [port.name for port in self.inputs]
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if isinstance(inputs, Mapping):
            if set(inputs) != set(names):
                raise ValueError(f"inputs (of the names {sorted(inputs)}) must have those of the model, {names}")
            inputs = [inputs[name] for name in names]
        if not isinstance(inputs, (list, tuple)):
            raise TypeError(f"inputs (of type {type(inputs).__name__}) must be a list of arrays, or a dict by name")
        if len(inputs) != len(names):
            raise ValueError(f"inputs (={len(inputs)} arrays) must be one for each of {names}")
        arrays: list[Array] = []
        sizes: dict[str, int] = {}
        for port, x in zip(self.inputs, inputs, strict=True):
            if not isinstance(x, (np.ndarray, np.generic)):
                raise TypeError(f"{port.name} (of type {type(x).__name__}) must be a numpy.ndarray")
            array = np.asarray(x)
            if array.dtype != port.dtype:
                raise TypeError(f"{port.name} (dtype {array.dtype}) must have dtype {port.dtype}, as the model says")
            if port.shape is not None:
                fits = len(port.shape) == array.ndim
                for n, size in zip(port.shape, array.shape, strict=False):
                    wanted = sizes.setdefault(n, size) if isinstance(n, str) else n
                    fits = fits and wanted in (None, size)
                if not fits:
                    shape = ", ".join("any" if n is None else str(n) for n in port.shape)
                    raise ValueError(f"{port.name} (shape {array.shape}) must have the shape ({shape}) of the model")
            arrays.append(array)
        return arrays

    def run(self, inputs: Any, **kwargs: Any) -> list[Array]:
        """Compute the outputs.

        Args:
            inputs: an array an input, in the order of the model's, a dict of them by name, or the only one; with the
                dtypes and, where the model fixes them, the shapes that the model says.
            kwargs: none; there for the interface.

        Returns:
            An array an output, in C order.

        Raises:
            TypeError: an input is no NumPy array, or of another dtype.
            ValueError: an input has another shape, or a node cannot take what it gets.
        """
        if kwargs:
            raise TypeError(f"run takes no option {next(iter(kwargs))!r}")
        arrays = self._arrays(inputs)
        return self._network(arrays).run(*arrays, contiguous=True)

    def memory(self, inputs: Any) -> int:
        """Bytes of the block in which the results in between lie; calls at the same time have one each."""
        arrays = self._arrays(inputs)
        return self._network(arrays).prepare(*arrays).bytes

    def describe(self, inputs: Any) -> str:
        """The steps that inputs of these shapes take, a line each."""
        return self._network(self._arrays(inputs)).describe()

    def __repr__(self) -> str:
        return f"<{self._source.name or 'model'}: {len(self._source.steps)} nodes>"


def prepare(model: object) -> PreparedModel:
    """Make a model ready to run.

    A model whose inputs have fixed shapes is fused, and its weights are packed, here; another one at the first call
    with each shape.

    Args:
        model: a path, the bytes of a file, or an onnx.ModelProto; weights may lie in other files of the model's folder.

    Raises:
        OSError: a file cannot be read.
        TypeError: model is none of these.
        UnsupportedModel: a ValueError that names each node which is not supported.
        ValueError: the model is not valid.
    """
    return PreparedModel(read(model))
