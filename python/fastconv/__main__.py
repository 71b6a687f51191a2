"""The command line: `python -m fastconv COMMAND`, or `fastconv COMMAND` where the script is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class _Version(argparse.Action):
    """Imports the package only when it is asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, nargs=0)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import fastconv

        print(f"fastconv {fastconv.__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    from fastconv import _explain, _predict, _run, _train
    from fastconv.bench import cli, tune

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
    _explain.add_arguments(explain)
    explain.set_defaults(run=_explain.main)

    predict = commands.add_parser("predict", help="classify a photograph by a network and a file of its weights")
    _predict.add_arguments(predict)
    predict.set_defaults(run=_predict.main)

    runner = commands.add_parser("run", help="compute a model of ONNX for inputs from files")
    _run.add_arguments(runner)
    runner.set_defaults(run=_run.main)

    tuner = commands.add_parser("tune", help="measure which algorithm is the fastest, and write it to a file")
    tune.add_arguments(tuner)
    tuner.set_defaults(run=tune.main)

    train = commands.add_parser("train", help="train a small network on handwritten digits, and draw what it learned")
    _train.add_arguments(train)
    train.set_defaults(run=_train.main)
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
