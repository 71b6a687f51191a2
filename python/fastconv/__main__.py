"""The command line: `python -m fastconv COMMAND`, or `fastconv COMMAND` where the script is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas between, such as 1,64,56,56")
    return shape


def _one_or_more(text: str) -> int | tuple[int, ...]:
    shape = _shape(text)
    return shape[0] if len(shape) == 1 else shape


def _padding(text: str) -> Any:
    return text if text in ("valid", "same", "same_lower") else _one_or_more(text)


class _Version(argparse.Action):
    """Imports the package only when it is asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, nargs=0)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import fastconv

        print(f"fastconv {fastconv.__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    from fastconv.bench import cli

    parser = argparse.ArgumentParser(prog="fastconv", description="Convolution kernels for NumPy arrays.")
    parser.add_argument("--version", action=_Version, help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    bench = commands.add_parser("bench", help="measure real layers, beside NumPy and every peer that is installed")
    cli.add_arguments(bench)
    bench.set_defaults(run=_bench)

    demo = commands.add_parser("demo", help="run a filter bank over a photograph and draw a contact sheet")
    demo.add_argument("photo", nargs="?", type=Path, help="a picture (default: one that ships in scikit-learn)")
    demo.add_argument("--output", type=Path, default=Path("fastconv-demo.png"), metavar="PNG")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="print build, CPU, instruction sets, threads")
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="test the installation on this machine against the NumPy reference")
    check.add_argument("--op", metavar="NAME", help="only this function and its gradients, such as conv2d")
    check.add_argument("--isa", metavar="NAME", help="only this instruction set")
    check.set_defaults(run=_check)

    explain = commands.add_parser("explain", help="print how a call would be computed")
    explain.add_argument("op", help="conv1d, conv2d, conv3d, conv_transpose1d, ..., linear")
    explain.add_argument("--input", type=_shape, required=True, metavar="N,C,...", help="shape, axes as in --layout")
    explain.add_argument("--weight", type=_shape, required=True, metavar="K,C,...")
    for name, kind in (("stride", _one_or_more), ("padding", _padding), ("dilation", _one_or_more)):
        explain.add_argument(f"--{name}", type=kind)
    explain.add_argument("--output-padding", type=_one_or_more)
    explain.add_argument("--groups", type=int)
    explain.add_argument("--layout")
    explain.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    explain.set_defaults(run=_explain)
    return parser


def _bench(arguments: argparse.Namespace) -> int:
    from fastconv.bench.cli import main as run

    return run(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from fastconv.demo import main as run

    return run(arguments.photo, arguments.output)


def _info(_: argparse.Namespace) -> int:
    import fastconv

    fastconv.show_config()
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from fastconv._check import main as run

    return run(arguments.op, arguments.isa)


def _explain(arguments: argparse.Namespace) -> int:
    import numpy as np

    import fastconv

    names = ("stride", "padding", "dilation", "output_padding", "groups", "layout")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    weight = np.zeros(arguments.weight, arguments.dtype)
    try:
        print(fastconv.explain(arguments.op, arguments.input, weight, **options))
    except (TypeError, ValueError) as error:
        print(f"fastconv explain: {error}", file=sys.stderr)
        return 2
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the result is the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is wrong here, and nothing more can be said.
        sys.stderr.close()
        return 141
    return code


if __name__ == "__main__":
    sys.exit(main())
