"""`python -m fastconv run`: a model of ONNX on arrays from files."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ._args import Array

NEEDS_EXTRA = 'models of ONNX need onnx: pip install "fastconv[onnx]"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", type=Path, help="an .onnx file")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="an .npy file, once for each input of the model, in their order or by their names",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the result goes: .npy, or .npz with all outputs by name"
    )
    parser.add_argument("--steps", action="store_true", help="print what the model was fused to")
    parser.add_argument("--threads", type=int, metavar="N", help="how many threads compute")


def _inputs(given: list[str], names: list[str]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    left = list(names)
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or name not in names:
            # A path may have that sign in it.
            name, path = (left[0] if left else ""), text
        if name not in left:
            raise ValueError(f"--input (={text!r}) must be one of {', '.join(names) or 'none'}, each once")
        left.remove(name)
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            array = None
        if not isinstance(array, np.ndarray):
            raise ValueError(f"--input (={path!r}) must be an .npy file of numbers")
        arrays[name] = array
    if left:
        raise ValueError(f"--input must be given for {', '.join(left)}, too")
    return arrays


def _run(arguments: argparse.Namespace) -> int:
    from . import runtime
    from .integrations import onnx

    if arguments.output is not None and arguments.output.suffix not in (".npy", ".npz"):
        raise ValueError(f"--output (={str(arguments.output)!r}) must end in .npy or .npz")
    if arguments.threads is not None:
        runtime.set_num_threads(arguments.threads)
    begin = time.perf_counter()
    model = onnx.prepare(arguments.model)
    inputs = _inputs(arguments.input, [port.name for port in model.inputs])
    if arguments.output is not None and arguments.output.suffix == ".npy" and len(model.outputs) > 1:
        raise ValueError(f"--output must end in .npz for the {len(model.outputs)} outputs of the model")
    memory = model.memory(inputs)
    prepared = time.perf_counter()
    results = model.run(inputs)
    end = time.perf_counter()
    if arguments.steps:
        print(model.describe(inputs))
    for name, y in zip(model.outputs, results, strict=True):
        span = f", from {y.min():.6g} to {y.max():.6g}" if y.size and y.dtype.kind in "fiu" else ""
        print(f"{name}: {y.dtype} {y.shape}{span}")
    print(f"prepared in {prepared - begin:.2f} s, run in {(end - prepared) * 1e3:.2f} ms")
    print(f"peak memory between the layers: {memory / 1e6:.2f} MB")
    if arguments.output is not None and arguments.output.suffix == ".npy":
        np.save(arguments.output, results[0])
    elif arguments.output is not None:
        named: dict[str, Any] = dict(zip(model.outputs, results, strict=True))
        np.savez(arguments.output, **named)
    return 0


def main(arguments: argparse.Namespace) -> int:
    """Run the command. 0: fine; 2: the model or an input cannot be taken."""
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "onnx":
            print(NEEDS_EXTRA, file=sys.stderr)
            return 2
        raise
    except (ValueError, TypeError) as error:
        print(f"fastconv run: {error}", file=sys.stderr)
    except OSError as error:
        print(f"fastconv run: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
    return 2
