"""`python -m fastconv bench`: arguments, progress, output."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastconv.bench.timing import Effort

if TYPE_CHECKING:
    from fastconv.bench.cases import Case

NEEDS_EXTRA = 'the benchmark needs {name}: pip install "fastconv[bench]"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    choice = parser.add_argument_group("what to measure (default: a quick subset of real layers)")
    choice.add_argument("--net", metavar="NAME", help="every layer of a network, such as resnet50, and the whole")
    choice.add_argument("--all", action="store_true", help="every layer of every table, every network")
    choice.add_argument(
        "--seeded",
        metavar="N",
        type=int,
        nargs="?",
        const=200,
        help="N layers (default: %(const)s) that no table holds, the same in every run; with --net or --all besides",
    )
    choice.add_argument(
        "--op",
        metavar="OP[,OP...]",
        help="conv1d, conv2d, conv3d, conv_transpose, depthwise, linear, backward, separable, pool, batch_norm, norm, "
        "elementwise, network, training, all",
    )
    choice.add_argument("--onnx", metavar="FILE", type=Path, help="this model alone, beside ONNX Runtime and OpenVINO")
    choice.add_argument("--filter", metavar="REGEX", help="only layers whose name matches")
    choice.add_argument("--family", metavar="NAME", help="only this family, such as 1x1 (memory-bound is found later)")
    choice.add_argument("--layout", choices=("NCHW", "NHWC", "both"), default="both")
    choice.add_argument("--dtype", choices=("float32", "float64"))
    choice.add_argument("--threads", default="1", metavar="N[,N...]", help="thread counts, one run each (default: 1)")
    choice.add_argument("--isa", choices=("portable", "avx2", "avx512"), help="hold fastconv (avx2: and peers) to it")
    choice.add_argument(
        "--max-gflop", type=float, default=40.0, metavar="G", help="leave out larger layers (default: 40)"
    )
    choice.add_argument("--list", action="store_true", help="print the layers and stop")
    other = parser.add_argument_group("peers")
    other.add_argument(
        "--peers", default="all", metavar="LIST", help="all (default), none, or names with commas between"
    )
    other.add_argument(
        "--peer-python",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="the interpreter that has a peer installed (also FASTCONV_BENCH_PYTHON and FASTCONV_BENCH_PYTHON_<NAME>)",
    )
    effort = parser.add_argument_group("effort")
    effort.add_argument(
        "--rounds", type=int, default=Effort.rounds, help="turns of every contender (default: %(default)s)"
    )
    effort.add_argument("--seconds", type=float, default=Effort.seconds, help="a turn (default: %(default)s)")
    effort.add_argument("--no-cold", action="store_true", help="no calls with cold caches")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", type=Path, help="write everything measured to this file")
    output.add_argument("--show", metavar="FILE", type=Path, help="print the tables of an earlier --json file and stop")
    output.add_argument(
        "--report",
        metavar="DIR",
        type=Path,
        nargs="?",
        const=Path(),
        help="write the README's results from the JSON files and, where DIR is given, a page with pictures to it; stop",
    )
    output.add_argument("--readme", type=Path, default=Path("README.md"), help=argparse.SUPPRESS)
    output.add_argument("--design", type=Path, default=Path("docs/design.md"), help=argparse.SUPPRESS)
    output.add_argument("--results", type=Path, default=Path("bench/results"), help=argparse.SUPPRESS)


def _threads(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ValueError(f"--threads (={text!r}) must be positive numbers with commas between")
    return tuple(dict.fromkeys(counts))


def _effort(arguments: argparse.Namespace) -> Effort:
    if arguments.rounds < 1 or not arguments.seconds > 0:
        raise ValueError("--rounds and --seconds must be positive")
    return replace(Effort(), rounds=arguments.rounds, seconds=arguments.seconds)


def _pythons(given: list[str]) -> dict[str, str]:
    from fastconv.bench.worker import WORKERS

    pythons = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = "all", text
        if name != "all" and name not in WORKERS:
            raise ValueError(f"--peer-python (={text!r}) must name one of {', '.join(WORKERS)}")
        pythons[name] = path
    return pythons


def _layers(arguments: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    from fastconv.bench import cases

    if arguments.seeded is not None and arguments.seeded < 1:
        raise ValueError(f"--seeded (={arguments.seeded}) must be positive")
    layers, large = cases.select(
        net=arguments.net,
        everything=arguments.all,
        drawn=arguments.seeded,
        op=arguments.op,
        dtype=arguments.dtype,
        max_gflop=arguments.max_gflop,
    )
    if arguments.filter:
        try:
            pattern = re.compile(arguments.filter)
        except re.error as error:
            raise ValueError(f"--filter (={arguments.filter!r}) must be a regular expression: {error}") from error
        layers = [v for v in layers if pattern.search(v.id)]
        large = [v for v in large if pattern.search(v.id)]
    if arguments.family:
        if arguments.family not in cases.FAMILIES:
            raise ValueError(f"--family (={arguments.family!r}) must be one of {', '.join(cases.FAMILIES)}")
        layers = [v for v in layers if v.family(False) == arguments.family]
    if not layers:
        raise ValueError("no layer is left to measure")
    return layers, large


def main(arguments: argparse.Namespace) -> int:
    """Run the command. 0: fine; 1: a result of fastconv was wrong; 2: bad arguments; 130: interrupted."""
    try:
        return _main(arguments)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("rich", "sklearn", "PIL", "matplotlib"):
            print(NEEDS_EXTRA.format(name=error.name.split(".")[0]), file=sys.stderr)
            return 2
        if error.name == "onnx":
            print('models of ONNX need onnx: pip install "fastconv[onnx]"', file=sys.stderr)
            return 2
        raise
    except ValueError as error:
        print(f"fastconv bench: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fastconv bench: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2


def _main(arguments: argparse.Namespace) -> int:
    from fastconv.bench import report

    if arguments.report is not None:
        return _report(arguments)
    if arguments.onnx is not None:
        from fastconv.bench import onnx_file

        return onnx_file.main(arguments.onnx, _threads(arguments.threads), _effort(arguments))
    import rich.console

    wide = rich.console.Console(width=None if sys.stdout.isatty() else 190)
    if arguments.show:
        report.show(report.read(arguments.show), wide)
        return 0

    from fastconv.bench import peers, run, timing

    layers, large = _layers(arguments)
    if arguments.list:
        for layer in layers:
            cost = f"{layer.flops / 1e6:10.1f} MFLOP" if layer.flops else f"{layer.bytes / 1e6:10.2f} MB"
            print(f"{layer.id:50} {layer.describe():36} {cost}")
        return 0
    threads = _threads(arguments.threads)
    for count in threads:
        timing.choose_cores(count)
    effort = _effort(arguments)
    given = {"all": list(peers.WORKERS), "none": []}.get(arguments.peers)
    rivals = peers.known(arguments.peers.split(",")) if given is None else given
    options = run.Options(
        threads=threads,
        layouts=("NCHW", "NHWC") if arguments.layout == "both" else (arguments.layout,),
        isa=arguments.isa,
        # NumPy is the baseline of every row, whatever the rivals.
        workers=tuple(dict.fromkeys(["numpy", *rivals])),
        pythons=_pythons(arguments.peer_python),
        effort=replace(effort, cold=0) if arguments.no_cold else effort,
        command=_command(arguments),
    )
    if arguments.json is not None:
        # Better now than after half an hour.
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        with arguments.json.open("a"):
            pass
    if large:
        text = ", ".join(v.id for v in large)
        print(f"left out, above {arguments.max_gflop:g} GFLOP (--max-gflop): {text}", file=sys.stderr)
    try:
        document = _measure(layers, options)
    except peers.PeerError as error:
        print(f"fastconv bench: {error}", file=sys.stderr)
        return 1
    if arguments.json is not None:
        report.write(document, arguments.json)
    report.show(document, wide)
    if document["interrupted"]:
        return 130
    return 1 if any(name.startswith("fastconv") for _, name, _ in run.failures(document)) else 0


def _report(arguments: argparse.Namespace) -> int:
    from fastconv.bench import report

    # A directory that has no README, as beside an installed package, may still have results to draw.
    choices = report.choices(arguments.results)
    if arguments.report == Path() or arguments.readme.exists():
        changed = report.rewrite_readme(arguments.readme, arguments.results)
        print(f"{arguments.readme}: {'results written' if changed else 'up to date'}")
        if arguments.design.exists():
            inner = report.choice_markdown(choices)
            changed = report.rewrite(arguments.design, report.CHOICE_BEGIN, report.CHOICE_END, inner)
            print(f"{arguments.design}: {'figures written' if changed else 'up to date'}")
    if arguments.report != Path():
        from fastconv.bench import page

        documents = report.sessions(arguments.results)
        if not documents and not choices:
            raise ValueError(f"{arguments.results}: no results to draw")
        count = page.write(arguments.report, documents, choices)
        print(f"{arguments.report / 'index.html'}: {len(documents)} sessions, {count} pictures beside it")
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """The options that differ from the defaults, without the paths of this machine."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parts = []
    for name, value in sorted(vars(arguments).items()):
        paths = ("json", "show", "readme", "design", "results", "peer_python", "run", "command")
        if name in paths or value in (None, False) or value == parser.get_default(name):
            continue
        parts.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return " ".join(["bench", *parts])


def _measure(layers: list[Case], options: Any) -> dict[str, Any]:
    import rich.console
    import rich.progress

    from fastconv.bench import run
    from fastconv.bench.report import duration

    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    # No thread of its own that refreshes: it would wake up in the middle of a measurement.
    with rich.progress.Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(what: str, done: int, total: int, row: dict[str, Any] | None) -> None:
            if console.is_terminal:
                progress.update(task, description=what, completed=done, total=total, refresh=True)
            elif row is not None:
                times = [
                    f"{name} {duration(state['warm']['median'])}"
                    for name, state in row["contenders"].items()
                    if "warm" in state
                ]
                states = [(name, state["status"]) for name, state in row["contenders"].items()]
                wrong = [f"{name} {status}" for name, status in states if status in ("wrong", "failed")]
                print(f"[{done}/{total}] {what}: {', '.join(times + wrong)}", file=sys.stderr, flush=True)
            elif done == 0:
                print(what, file=sys.stderr, flush=True)

        document = run.run(layers, options, tell)
    return document
