"""`python -m fastconv explain`: arguments and output."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

_OPS = {
    "conv": "conv{rank}d",
    "depthwise": "conv{rank}d",
    "transposed": "conv_transpose{rank}d",
    "backward-input": "conv{rank}d_backward_input",
    "backward-weight": "conv{rank}d_backward_weight",
    "transposed-backward-input": "conv_transpose{rank}d_backward_input",
    "transposed-backward-weight": "conv_transpose{rank}d_backward_weight",
}
_OPTIONS = ("stride", "padding", "dilation", "output_padding", "groups", "layout", "algorithm", "max_error")


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with x or commas between, such as 1x64x56x56")
    return shape


def _one_or_more(text: str) -> int | tuple[int, ...]:
    shape = _shape(text)
    return shape[0] if len(shape) == 1 else shape


def _padding(text: str) -> Any:
    return text if text in ("valid", "same", "same_lower") else _one_or_more(text)


def add_layer(parser: argparse.ArgumentParser, required: bool) -> None:
    """The options that describe a layer, for `explain` and `tune`."""
    parser.add_argument(
        "--conv", "--input", dest="input", type=_shape, required=required, metavar="NxCx...", help="the shape of x"
    )
    parser.add_argument("--weight", type=_shape, required=required, metavar="KxCx...", help="the shape of the weight")
    parser.add_argument("--op", dest="kind", choices=_OPS, default="conv", help="default: conv")
    for name, kind in (("stride", _one_or_more), ("padding", _padding), ("dilation", _one_or_more)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--output-padding", type=_one_or_more)
    parser.add_argument("--groups", type=int)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("op", nargs="?", help="a function, such as conv2d or linear, in place of --op")
    add_layer(parser, required=True)
    parser.add_argument("--layout", help="the axes of the input's shape: NCHW (default) or NHWC")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--algorithm", choices=("auto", "direct", "winograd2", "winograd4", "fft"))
    parser.add_argument("--max-error", type=float, metavar="C", help="admit algorithms of this error bound at most")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--isa", metavar="NAME", help="portable, avx2 or avx512")
    parser.add_argument("--measure", action="store_true", help="run it, and say what share of the roofline it reaches")
    parser.add_argument(
        "--form", choices=("plan", "plain"), help="what --measure runs (default: a plan; gradients plain)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def operands_of(arguments: argparse.Namespace, dtype: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The function, its operands (a weight, or dy, as an array of the dtype) and its options."""
    import numpy as np

    import fastconv

    names = [name for name in _OPTIONS if getattr(arguments, name, None) is not None]
    options = {name: getattr(arguments, name) for name in names}
    shape, weight = arguments.input, arguments.weight
    rank = max(1, min(3, len(weight) - 2))
    op = getattr(arguments, "op", None) or _OPS[arguments.kind].format(rank=rank)
    if arguments.kind == "depthwise" and "groups" not in options:
        channels = -1 if str(options.get("layout", "NCHW")).endswith("C") else -rank - 1
        options["groups"] = shape[channels] if len(shape) > rank else 1

    def like(of: tuple[int, ...]) -> Any:
        return np.broadcast_to(np.zeros((), dtype), of)

    base, backward, which = op.partition("_backward_")
    if not backward:
        return op, (shape, like(weight)), options
    forward = {name: value for name, value in options.items() if name not in ("algorithm", "max_error")}
    dy = like(fastconv.explain(base, shape, like(weight), **forward).shapes["y"])
    if base == "linear":
        return op, (dy, weight if which == "input" else shape), options
    if which == "input":
        return op, (dy, weight, shape), options
    return op, (dy, shape, weight), {n: v for n, v in options.items() if n not in ("algorithm", "max_error")}


def main(arguments: argparse.Namespace) -> int:
    """Run the command. 0: fine; 2: bad arguments."""
    import fastconv

    try:
        with contextlib.ExitStack() as scope:
            if arguments.isa is not None:
                scope.enter_context(fastconv.isa(arguments.isa))
            if arguments.threads is not None:
                scope.enter_context(fastconv.num_threads(arguments.threads))
            op, operands, options = operands_of(arguments, arguments.dtype)
            measure = None
            if arguments.measure or arguments.form:
                measure = arguments.form or ("plain" if "_backward" in op else "plan")
            # Zeros without memory are a shape with a dtype: what is measured has data of its own.
            shapes = [tuple(a.shape) if measure and hasattr(a, "shape") else a for a in operands]
            if measure and arguments.dtype != "float32":
                import numpy as np

                shapes[0] = np.random.default_rng(0).standard_normal(shapes[0]).astype(arguments.dtype)
                shapes[1] = np.random.default_rng(1).standard_normal(shapes[1]).astype(arguments.dtype)
            explanation = fastconv.explain(op, *shapes, measure=measure, **options)
    except (TypeError, ValueError) as error:
        print(f"fastconv explain: {error}", file=sys.stderr)
        return 2
    print(json.dumps(explanation.as_dict(), indent=1) if arguments.json else explanation)
    return 0
