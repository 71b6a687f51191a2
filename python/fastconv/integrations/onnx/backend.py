"""The interface that ONNX asks of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.backend.base
import onnx.helper

from ..._args import Array
from .load import read
from .lower import unsupported
from .model import PreparedModel
from .model import prepare as _prepare


def _check_device(device: str) -> None:
    if not Backend.supports_device(device):
        raise ValueError(f"device (={device!r}) must be 'CPU'")


# Its methods are typed to give tuples.
_Backend: Any = onnx.backend.base.Backend


class Backend(_Backend):  # type: ignore[misc]
    """fastconv as a backend of ONNX."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether all nodes of a model are supported."""
        return cls.supports_device(device) and not unsupported(read(model))

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """See `fastconv.integrations.onnx.prepare`."""
        _check_device(device)
        return _prepare(model)

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> list[Array]:
        """Prepare a model and run it once."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(
        cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Sequence[Any] | None = None, **kwargs: Any
    ) -> list[Array]:
        """Run a single node.

        Args:
            node: an onnx.NodeProto.
            inputs: an array an input, or a dict of them by name; absent inputs of the node have none.
            device: "CPU".
            outputs_info: not used.
            kwargs: `opset_version`, of the operators; the newest unless given.
        """
        names = [name for name in dict.fromkeys(node.input) if name]
        given = [inputs[name] for name in names] if isinstance(inputs, dict) else list(inputs)
        arrays = [np.asarray(x) for x in given]
        if len(arrays) != len(names):
            raise ValueError(f"inputs (={len(arrays)} arrays) must be one for each of {names}")
        infos = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, arrays, strict=True)
        ]
        # Of an output the name alone matters.
        results = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        for info in results:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph([node], "node", infos, results)
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        opset = onnx.helper.make_opsetid("", version)
        return cls.run_model(onnx.helper.make_model(graph, opset_imports=[opset]), arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run there: on the CPU."""
        return device.split(":")[0].upper() == "CPU"


prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
is_compatible = Backend.is_compatible
