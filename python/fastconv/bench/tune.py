"""`python -m fastconv tune`: arguments, progress, the file."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastconv import _explain

if TYPE_CHECKING:
    from fastconv.bench.cases import Layer

DEFAULT = Path("fastconv.tune")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    choice = parser.add_argument_group("what to measure")
    choice.add_argument("--net", metavar="NAME", help="the layers of a network, such as resnet50")
    choice.add_argument("--all", action="store_true", help="the layers of every table")
    choice.add_argument("--seeded", metavar="N", type=int, nargs="?", const=200, help="layers that no table holds")
    choice.add_argument("--seed", type=int, metavar="SEED", help="of these; default: the benchmark's own")
    layer = parser.add_argument_group("or one layer")
    _explain.add_layer(layer, required=False)  # type: ignore[arg-type]
    how = parser.add_argument_group("how")
    how.add_argument("--layout", choices=("NCHW", "NHWC", "both"), default="both", help="of a layer: of --conv, too")
    how.add_argument("--dtype", choices=("float32", "float64"))
    how.add_argument("--direction", choices=("forward", "backward", "both"), default="forward")
    how.add_argument("--threads", type=int, default=1, metavar="N")
    how.add_argument("--isa", metavar="NAME", help="portable, avx2 or avx512")
    how.add_argument("--max-gflop", type=float, default=4.0, metavar="G", help="leave out larger layers (default: 4)")
    how.add_argument("--rounds", type=int, default=7, help="turns of every candidate (default: 7)")
    how.add_argument("--seconds", type=float, default=0.005, help="a turn (default: 0.005)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, default=None, metavar="FILE", help=f"default: {DEFAULT}; what it holds is kept"
    )
    output.add_argument("--merge", type=Path, action="append", default=[], metavar="FILE", help="add its lines first")
    output.add_argument(
        "--report", type=Path, metavar="JSON", help="write how well the model chooses to this file, and no tune file"
    )


def _layers(arguments: argparse.Namespace) -> tuple[list[Layer], list[Layer]]:
    from fastconv.bench import cases

    if (arguments.input is None) != (arguments.weight is None):
        raise ValueError("--conv and --weight go together")
    if arguments.input is not None:
        if arguments.net or arguments.all or arguments.seeded:
            raise ValueError("--conv is one layer: without --net, --all and --seeded")
        return [_one(arguments)], []
    if not (arguments.net or arguments.all or arguments.seeded or arguments.merge):
        raise ValueError("nothing to measure: --net, --all, --seeded or --conv with --weight")
    if not (arguments.net or arguments.all or arguments.seeded):
        return [], []
    chosen, large = (
        _drawn(arguments)
        if arguments.seed is not None
        else cases.select(
            net=arguments.net,
            everything=arguments.all,
            drawn=arguments.seeded,
            dtype=arguments.dtype,
            max_gflop=arguments.max_gflop,
        )
    )
    layers = [v for v in chosen if isinstance(v, cases.Layer) and v.op != "linear"]
    if arguments.direction != "forward":
        backward = [replace(v, direction="backward") for v in layers if v.direction == "forward"]
        layers = backward if arguments.direction == "backward" else layers + backward
    return layers, [v for v in large if isinstance(v, cases.Layer)]


def _drawn(arguments: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Layers of another seed, as `cases.select` gives the benchmark's."""
    from fastconv.bench import cases

    if not arguments.seeded or arguments.net or arguments.all:
        raise ValueError("--seed belongs to --seeded alone")
    drawn = cases.seeded(arguments.seeded, arguments.seed)
    limit = arguments.max_gflop * 1e9
    return [v for v in drawn if v.flops <= limit], [v for v in drawn if v.flops > limit]


def _one(arguments: argparse.Namespace) -> Layer:
    """--conv as a layer: its input is channels first whatever the layouts to measure are."""
    import numpy as np

    import fastconv
    from fastconv.bench.cases import Layer

    op, _, options = _explain.operands_of(argparse.Namespace(**vars(arguments) | {"layout": None}), "float32")
    base, backward, which = op.partition("_backward_")
    if which == "weight":
        raise ValueError("--op (='backward-weight') has no candidates: its forms are chosen by a rule")
    x, w = arguments.input, arguments.weight
    rank = len(w) - 2
    # Everything about the layer that can be wrong is said here.
    fastconv.explain(base, x, np.broadcast_to(np.zeros((), np.float32), w), **options)
    if len(x) == rank + 1:
        x = (1, *x)

    def each(name: str, default: int) -> tuple[int, ...]:
        value = options.get(name, default)
        if isinstance(value, str):
            raise ValueError(f"--{name} (={value!r}) must be numbers here")
        return tuple(value) if isinstance(value, tuple) else (value,) * rank

    groups = options.get("groups", 1)
    return Layer(
        base,
        "given",
        "x".join(map(str, x)),
        x[0],
        x[1],
        w[1] * groups if base.startswith("conv_transpose") else w[0],
        x[2:],
        w[2:],
        each("stride", 1),
        each("padding", 0),
        each("dilation", 1),
        each("output_padding", 0),
        groups,
        "backward" if backward else "forward",
        arguments.dtype or "float32",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the command. 0: fine; 2: bad arguments; 130: interrupted, with what was measured written."""
    try:
        return _main(arguments)
    except ValueError as error:
        print(f"fastconv tune: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fastconv tune: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2


def _main(arguments: argparse.Namespace) -> int:
    import fastconv
    from fastconv import tuning
    from fastconv.bench import choice, timing

    if arguments.rounds < 1 or not arguments.seconds > 0 or not arguments.max_gflop > 0:
        raise ValueError("--rounds, --seconds and --max-gflop must be positive")
    layers, large = _layers(arguments)
    if arguments.threads < 1:
        raise ValueError(f"--threads (={arguments.threads}) must be positive")
    timing.choose_cores(arguments.threads)
    isa = fastconv.isa(arguments.isa or fastconv.get_isa())
    output = arguments.output or DEFAULT
    entries: list[tuning.Entry] = []
    if arguments.report is None:
        known = [output] if output.exists() else []
        for path in (*known, *arguments.merge):
            entries += tuning.read_tune_file(path)
    # Whether it can be written is better known now than after half an hour.
    if arguments.report is None:
        tuning.write_tune_file(output, entries)
    else:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        with arguments.report.open("a"):
            pass
    effort = choice.Effort(arguments.rounds, arguments.seconds)
    layouts = ("NCHW", "NHWC") if arguments.layout == "both" else (arguments.layout,)
    with contextlib.ExitStack() as scope:
        scope.enter_context(isa)
        # What is measured is the model and its candidates, whatever file is in use.
        scope.enter_context(tuning.model_alone())
        scope.enter_context(choice.pinned(arguments.threads))
        rows, interrupted = _measure(layers, layouts, effort, arguments.threads, entries)
        name = fastconv.get_isa()
    if large:
        text = ", ".join(v.id for v in large)
        print(f"left out, above {arguments.max_gflop:g} GFLOP (--max-gflop): {text}", file=sys.stderr)
    if arguments.report is not None:
        document = choice.document(rows, name, arguments.threads, _command(arguments), [v.id for v in large], effort)
        # A row a line: a file of hundreds of rows that can be read, and compared line by line.
        rows_text = ",\n".join(json.dumps(row, allow_nan=False) for row in document.pop("rows"))
        head = json.dumps(document, indent=1, allow_nan=False).removesuffix("\n}")
        arguments.report.write_text(f'{head},\n "rows": [\n{rows_text}\n]}}\n', encoding="ascii")
        print(describe(document))
    else:
        tuning.write_tune_file(output, entries)
        print(f"{output}: {len({entry.key for entry in entries})} products")
    return 130 if interrupted else 0


def _measure(
    layers: Sequence[Layer], layouts: Sequence[str], effort: Any, threads: int, entries: list[Any]
) -> tuple[list[dict[str, Any]], bool]:
    from fastconv import tuning
    from fastconv.bench import choice

    rows: list[dict[str, Any]] = []
    try:
        for i, layer in enumerate(layers):
            # Neither memory order is another one where nothing is next to a channel.
            for layout in layouts:
                row = choice.measure(layer, layout, effort)
                rows.append(row)
                if row["times"]:
                    op, operands, options = choice.call_of(layer, layout)
                    products = [c.product for c in tuning.products(op, *operands, **options)]
                    entries += choice.entries_of(row, products, threads)
                print(f"[{i + 1}/{len(layers)}] {_line(row)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        return rows, True
    return rows, False


def _line(row: dict[str, Any]) -> str:
    from fastconv.bench import choice

    head = f"{row['id']} {row['shape']} {row['layout']}"
    if not row["times"]:
        return f"{head}: no choice"
    best = choice.best_way(row)
    times = ", ".join(f"{way} {1e6 * choice.score(forms):.4g}" for way, forms in row["times"].items())
    return f"{head}: {times} us; {best}" + ("" if best == row["taken"] else f", the model {row['taken']}")


def describe(document: dict[str, Any]) -> str:
    """The account of the model in a few lines."""
    from fastconv.bench.report import CHOICE_TITLES

    s = document["summary"]
    lines = [f"{s['with_a_choice']} of {s['layers']} layers have a choice, {document['threads']} thread(s)"]
    for key, title in CHOICE_TITLES.items():
        if key in s:
            v = s[key]
            lines.append(
                f"{title}: {v['near']:.1%} of {v['measured']} within 5 % of the best; a wrong pick costs up to "
                f"{math.expm1(math.log(v['p95'])):.0%} at the 95th percentile, {v['worst'] - 1:.0%} at worst"
            )
    return "\n".join(lines)


def _command(arguments: argparse.Namespace) -> str:
    """The options that say what was measured, without paths."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parts = []
    for name, value in sorted(vars(arguments).items()):
        if name in ("output", "report", "merge", "run", "command") or value in (None, False):
            continue
        if value != parser.get_default(name):
            parts.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return " ".join(["tune", *parts])
