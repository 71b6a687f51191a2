"""`python -m fastconv explain`: arguments and output."""

from __future__ import annotations

import argparse
import contextlib
import inspect
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
_WEIGHTS = ("expand_weight", "depthwise_weight", "pointwise_weight", "project_weight")
_LAYER_OPTIONS = (
    *("stride", "padding", "dilation", "layout", *_WEIGHTS, "weight", "kernel_size", "output_size", "normalized_shape"),
    *("size", "axis", "norm_type", "activation", "ceil_mode", "return_indices", "training"),
)
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
    parser.add_argument("--weight", type=_shape, metavar="KxCx...", help="the shape of the weight")
    parser.add_argument("--op", dest="kind", choices=_OPS, default="conv", help="default: conv")
    for name, kind in (("stride", _one_or_more), ("padding", _padding), ("dilation", _one_or_more)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--output-padding", type=_one_or_more)
    parser.add_argument("--groups", type=int)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "op", nargs="?", help="a function, such as linear, separable_conv2d, max_pool2d_backward or batch_norm"
    )
    add_layer(parser, required=True)
    others = parser.add_argument_group("functions other than convolutions")
    for name in _WEIGHTS:
        others.add_argument(f"--{name.removesuffix('_weight')}", dest=name, type=_shape, metavar="KxCx...")
    for name in ("kernel_size", "output_size", "normalized_shape"):
        others.add_argument(f"--{name.replace('_', '-')}", type=_one_or_more)
    for name in ("size", "axis"):
        others.add_argument(f"--{name}", type=int)
    others.add_argument("--norm-type", type=float)
    others.add_argument("--activation")
    others.add_argument("--ceil-mode", action="store_true", default=None)
    others.add_argument("--return-indices", action="store_true", default=None)
    others.add_argument("--training", action="store_true", default=None, help="batch_norm: by the batch's statistics")
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


def layer_options_of(op: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a function other than a convolution, shapes for arrays."""
    import numpy as np

    import fastconv
    from fastconv import _decide, functional

    x = arguments.input
    channel = -1 if str(arguments.layout or "NCHW").endswith("C") else 1
    vector = x[channel : channel + 1 or None] if len(x) > 1 else ()
    values: dict[str, Any] = {name: getattr(arguments, name) for name in _LAYER_OPTIONS}
    values |= {"x": x, "input_shape": x, "num_groups": arguments.groups}
    values |= {"mean": vector, "inv_std": vector}
    if not arguments.training:
        values |= {"running_mean": vector, "running_var": vector}
    if op == "add":
        values["y"] = x
    forward = op.removesuffix("_backward")
    if forward.startswith("max_unpool"):
        values |= {"dy": x, "indices": x}
    elif forward != op:
        result = fastconv.explain(forward, **layer_options_of(forward, arguments)).shapes["y"]
        values |= {"dy": result, "y": result}
        if "batch_norm" in op:
            del values["y"]
    chosen: dict[str, Any] = {}
    for name, parameter in inspect.signature(getattr(functional, op)).parameters.items():
        if values.get(name) is not None:
            chosen[name] = values[name]
        elif parameter.default is parameter.empty and name not in ("weight", "expand_weight", "running_mean"):
            if name != "running_var":
                raise ValueError(f"{op} needs --{name.removesuffix('_weight').replace('_', '-')}")
            chosen[name] = None
        elif parameter.default is parameter.empty:
            chosen[name] = None
    unused = [n for n in _LAYER_OPTIONS if getattr(arguments, n) is not None and n not in chosen and n != "layout"]
    if unused and forward == op:
        raise TypeError(f"{op} takes no --{unused[0].replace('_', '-')}")
    if arguments.dtype != "float32":
        name = next(iter(n for n in chosen if n in ("x", "dy")))
        shape, dtype = chosen[name], np.dtype(arguments.dtype)
        measured = arguments.measure or arguments.form
        chosen[name] = (
            np.random.default_rng(0).standard_normal(shape).astype(dtype)
            if measured
            else _decide.stand_in(shape, dtype)
        )
    return chosen


def _convolution(arguments: argparse.Namespace) -> tuple[str, tuple[Any, ...], dict[str, Any], bool]:
    """A convolution's function, operands and options, and whether there are plans of it."""
    import numpy as np

    if arguments.weight is None:
        raise ValueError(f"{arguments.op or arguments.kind} needs --weight")
    op, operands, options = operands_of(arguments, arguments.dtype)
    # Zeros without memory are a shape with a dtype: what is measured has data of its own.
    if arguments.measure or arguments.form:
        operands = tuple(tuple(a.shape) if hasattr(a, "shape") else a for a in operands)
        if arguments.dtype != "float32":
            data = [
                np.random.default_rng(i).standard_normal(a).astype(arguments.dtype) for i, a in enumerate(operands[:2])
            ]
            operands = (*data, *operands[2:])
    return op, operands, options, "_backward" not in op


def main(arguments: argparse.Namespace) -> int:
    """Run the command. 0: fine; 2: bad arguments."""
    import fastconv
    from fastconv.explanation import _LAYER_OPS

    try:
        with contextlib.ExitStack() as scope:
            if arguments.isa is not None:
                scope.enter_context(fastconv.isa(arguments.isa))
            if arguments.threads is not None:
                scope.enter_context(fastconv.num_threads(arguments.threads))
            if arguments.op in _LAYER_OPS:
                op, operands = arguments.op, ()
                options = layer_options_of(op, arguments)
                planned = op.startswith(("separable_", "inverted_"))
            else:
                op, operands, options, planned = _convolution(arguments)
            measure = None
            if arguments.measure or arguments.form:
                measure = arguments.form or ("plan" if planned else "plain")
            explanation = fastconv.explain(op, *operands, measure=measure, **options)
    except (TypeError, ValueError) as error:
        print(f"fastconv explain: {error}", file=sys.stderr)
        return 2
    print(json.dumps(explanation.as_dict(), indent=1) if arguments.json else explanation)
    return 0
