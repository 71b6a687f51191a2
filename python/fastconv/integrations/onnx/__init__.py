"""ONNX models on fastconv's kernels: `prepare(model).run([x])`.

    import fastconv.integrations.onnx as backend

    model = backend.prepare("resnet50.onnx")
    (y,) = model.run([x])

The module is a backend of ONNX, too (`onnx.backend.base`): `prepare`, `run_model`, `run_node`, `supports_device`, and
the class `Backend`. What is supported is in docs/onnx.md.
"""

from __future__ import annotations

from .backend import Backend, is_compatible, run_model, run_node, supports_device
from .load import Port
from .lower import UnsupportedModel
from .model import PreparedModel, prepare

__all__ = [
    "Backend",
    "Port",
    "PreparedModel",
    "UnsupportedModel",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]
