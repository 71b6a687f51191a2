"""What a session found: tables in the terminal, a JSON file, and the results in the README."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastconv.bench.cases import FAMILIES
from fastconv.bench.peers import FORMS, TITLES, WORKERS
from fastconv.bench.run import INTEGRATIONS
from fastconv.bench.twin import KINDS

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
Document = dict[str, Any]

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
CHOICE_BEGIN, CHOICE_END = "<!-- choice:begin -->", "<!-- choice:end -->"
# Accounts of the choice lie beside the sessions.
CHOICE_FILES = "choice-*.json"
GPU_FILES = "h200-*.json"  # of bench/gpu.py, which has its own tables
CHOICE_SCHEMA = "choice 1"
SHORT = {
    "numpy": "NumPy",
    "torch": "torch",
    "torch_cl": "torch CL",
    "jax": "JAX",
    "onnxruntime": "ORT",
    "openvino": "OpenVINO",
    "ncnn": "ncnn",
    "ncnn_direct": "ncnn direct",
    "xnnpack": "XNNPACK",
}
# A second thread is worth its start only from here on.
SCALING_FLOP = 50e6


def geometric_mean(values: Iterable[float]) -> float | None:
    """The geometric mean, or None of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def results(document: Document) -> Iterator[tuple[Row, str, dict[str, Any]]]:
    """(row, layout, result) of everything that was measured."""
    for row in document["rows"]:
        for layout, result in row.get("results", {}).items():
            yield row, layout, result


def peers_of(document: Document) -> list[str]:
    """The variants that have been timed in some row, in the order of the tables."""
    timed = {name for _, _, result in results(document) for name in result["speedups"]}
    return [name for name in FORMS if name in timed]


def summary(document: Document) -> list[dict[str, Any]]:
    """One entry a family, thread count and layout: geometric means, and the worst layer of each."""
    groups: dict[tuple[str, int, str], list[tuple[Row, dict[str, Any]]]] = {}
    for row, layout, result in results(document):
        groups.setdefault((row["family"], row["threads"], layout), []).append((row, result))
    order = {name: i for i, name in enumerate(FAMILIES)}
    entries = []
    for (family, threads, layout), members in sorted(
        groups.items(), key=lambda item: (order.get(item[0][0], len(order)), *item[0][1:])
    ):
        entry: dict[str, Any] = {"family": family, "threads": threads, "layout": layout, "layers": len(members)}
        shares = [(result["share_of_roofline"], row["id"]) for row, result in members]
        entry["share"], (entry["worst_share"], entry["worst_share_layer"]) = (
            geometric_mean(s for s, _ in shares),
            min(shares),
        )
        best = [(result["best_peer"], row["id"]) for row, result in members if result["best_peer"]]
        entry["best_peer"] = geometric_mean(b["ratio"] for b, _ in best)
        entry["worst_peer"] = min(((b["ratio"], b["name"], name) for b, name in best), default=None)
        entry["complete"] = len(best) == len(members) and all(b["complete"] for b, _ in best)
        cold = [result["cold_best_peer"]["ratio"] for _, result in members if result["cold_best_peer"]]
        entry["cold_best_peer"] = geometric_mean(cold)
        entry["speedups"] = {}
        for name in FORMS:
            ratios = [result["speedups"][name] for _, result in members if name in result["speedups"]]
            if ratios:
                entry["speedups"][name] = geometric_mean(ratios)
        entries.append(entry)
    return entries


def scaling(document: Document) -> list[tuple[str, str, int, float]]:
    """(row, layout, threads, speed-up over one thread) of compute-bound rows that are worth more than one thread."""
    single = {(row["id"], layout): result for row, layout, result in results(document) if row["threads"] == 1}
    return [
        (row["id"], layout, row["threads"], single[row["id"], layout]["time"] / result["time"])
        for row, layout, result in results(document)
        if row["threads"] > 1
        and (row["id"], layout) in single
        and not row["memory_bound"]
        and row["flops"] > SCALING_FLOP
    ]


# Of which family, over the best of which peers, in words.
_BETTER = (
    ("network", ("onnxruntime", "openvino"), "the better of ONNX Runtime and OpenVINO"),
    ("network", ("torch", "torch_cl"), "PyTorch in its better memory order"),
    ("training", ("torch", "torch_cl"), "PyTorch in its better memory order"),
)
_MANY = {"network": "Whole networks", "training": "Training steps"}


def better_of(document: Document) -> Iterator[tuple[str, str]]:
    """What whole networks gain over the best of some peers, where all of these were measured."""
    for family, names, words in _BETTER:
        for threads in document["settings"]["threads"]:
            values = [
                (min(result["speedups"][name] for name in names), row["net"], result)
                for row, _, result in results(document)
                if row["family"] == family and row["threads"] == threads and set(names) <= set(result["speedups"])
            ]
            if not values:
                continue
            many = f"{threads} thread{'' if threads == 1 else 's'}"
            yield f"{_MANY[family]}, {many}, over {words}", _mean_and_worst([v[:2] for v in values])
            for name, through in INTEGRATIONS.items():
                by = [
                    (v * result["time"] / result["through"][name], net)
                    for v, net, result in values
                    if name in result.get("through", {})
                ]
                if by:
                    yield f"{_MANY[family]} through {through}, {many}, over {words}", _mean_and_worst(by)


def _mean_and_worst(values: Sequence[tuple[float, str]]) -> str:
    mean, (worst, where) = geometric_mean(v for v, _ in values), min(values)
    return f"{ratio(mean)} in the geometric mean of {len(values)}, worst {ratio(worst)} ({where})"


# ----------------------------------------------------------------------------------------------------------- terminal


def duration(seconds: float | None) -> str:
    """Three digits and a unit."""
    if seconds is None:
        return ""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{_digits(seconds * factor)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def ratio(value: float | None) -> str:
    """A speed-up, three digits."""
    return "" if value is None else _digits(value)


def _coloured(value: float | None, mark: str = "") -> str:
    if value is None:
        return "[dim]-[/]"
    style = "red" if value < 1 else "green" if value >= 1.1 else "yellow"
    return f"[{style}]{ratio(value)}{mark}[/]"


def _worst_first(item: tuple[Row, str, dict[str, Any]]) -> tuple[float, float]:
    best = item[2]["best_peer"]
    return (best["ratio"] if best else math.inf, item[2]["share_of_roofline"])


def show(document: Document, console: Console) -> None:
    """Print every table."""
    from rich.table import Table
    from rich.text import Text

    names = peers_of(document)
    everything = list(results(document))
    many_threads = len(document["settings"]["threads"]) > 1
    for family in FAMILIES:
        members = sorted((m for m in everything if m[0]["family"] == family), key=_worst_first)
        if not members:
            continue
        table = Table(title=f"{family}: worst first", title_justify="left", header_style="bold", pad_edge=False)
        table.add_column("layer", overflow="fold", min_width=12)
        table.add_column("shape", overflow="fold", min_width=14)
        table.add_column("layout")
        if many_threads:
            table.add_column("thr", justify="right")
        rates = ("plan - empty", "call - empty") if family == "tiny" else ("GFLOP/s", "of bound")
        for title in ("time", "cold", *rates):
            table.add_column(title, justify="right", no_wrap=True)
        for name in names:
            table.add_column(SHORT[name], justify="right")
        if names:
            table.add_column("best peer", justify="right", no_wrap=True)
        for row, layout, result in members:
            bound = "copy" if row["memory_bound"] else "peak"
            cells = [row["id"], row["shape"], layout if row["op"] != "linear" else ""]
            if many_threads:
                cells.append(str(row["threads"]))
            rate = f"{row['bytes'] / result['time'] / 1e9:.1f} GB/s" if row["memory_bound"] else ""
            cells += [duration(result["time"]), duration(result["cold_time"])]
            if family == "tiny":
                cells += [
                    duration(max(t - row["empty_call"], 0)) if t is not None else "-"
                    for t in (result["plan_time"], result["function_time"])
                ]
            else:
                cells += [rate or _digits(result["gflops"]), f"{result['share_of_roofline']:.0%} {bound}"]
            for name in names:
                speed = result["speedups"].get(name)
                state = row["contenders"].get(name, {}).get("status")
                cells.append("[red]wrong[/]" if state == "wrong" else _coloured(speed))
            if names:
                best = result["best_peer"]
                mark = "?" if best and not best["complete"] else ""
                cells.append(f"{SHORT[best['name']]} {_coloured(best['ratio'], mark)}" if best else "-")
            table.add_row(*cells)
        console.print(table)
        console.print()
    _show_summary(document, console)
    for name, ratio_of in (*_scaling_means(document), *better_of(document)):
        console.print(Text(f"{name}: {ratio_of}"))
    _show_notes(document, console)


def _scaling_means(document: Document) -> Iterator[tuple[str, str]]:
    found = scaling(document)
    for threads in sorted({t for *_, t, _ in found}):
        values = [(speed, name) for name, _, t, speed in found if t == threads]
        mean, (worst, where) = geometric_mean(v for v, _ in values), min(values)
        yield (
            f"{threads} threads over one, compute-bound layers above {SCALING_FLOP / 1e6:.0f} MFLOP",
            f"{ratio(mean)} in the geometric mean of {len(values)}, worst {ratio(worst)} ({where})",
        )


def _show_summary(document: Document, console: Console) -> None:
    from rich.table import Table

    entries = summary(document)
    if not entries:
        return
    names = peers_of(document)
    table = Table(title="Geometric means by family", title_justify="left", header_style="bold", pad_edge=False)
    for title in ("family", "layout"):
        table.add_column(title)
    for title in ("thr", "layers", "of bound", "worst"):
        table.add_column(title, justify="right")
    for name in names:
        table.add_column(SHORT[name], justify="right")
    if names:
        for title in ("best peer", "cold", "worst"):
            table.add_column(title, justify="right")
    for e in entries:
        cells = [e["family"], e["layout"], str(e["threads"]), str(e["layers"])]
        cells += [f"{e['share']:.0%}", f"{e['worst_share']:.0%}"]
        cells += [_coloured(e["speedups"].get(name)) for name in names]
        if names:
            mark = "" if e["complete"] else "?"
            worst = e["worst_peer"]
            cells += [_coloured(e["best_peer"], mark), _coloured(e["cold_best_peer"], mark)]
            cells.append(_coloured(worst[0], mark) if worst else "-")
        table.add_row(*cells)
    console.print(table)


def notes(document: Document) -> list[str]:
    """What a reader must know beside the tables."""
    lines = []
    for ceiling in document["ceilings"]:
        peaks = ", ".join(f"{dtype} {peak / 1e9:.1f} GFLOP/s" for dtype, peak in ceiling.get("peak", {}).items())
        text = f"{ceiling['threads']} thread(s) on {ceiling['isa']}: FMA peak {peaks}"
        text += f"; copy {ceiling['copy'] / 1e9:.1f} GB/s"
        text += f"; an empty call takes {duration(ceiling['empty_call'])}"
        lines.append(text)
    absent = [f"{name} ({about['reason']})" for name, about in document["peers"].items() if about["status"] != "ok"]
    absent += [f"{name} (not asked for)" for name in WORKERS if document["peers"] and name not in document["peers"]]
    if absent:
        lines.append("Missing peers, so that best peer is incomplete (marked ?): " + "; ".join(absent))
    if any("photograph" not in row["data"] and _wants_picture(row) for row in document["rows"]):
        lines.append("No photographs (scikit-learn or Pillow is missing): first layers had random inputs")
    turns = [state for row in document["rows"] for state in row["contenders"].values() if "warm" in state]
    disturbed = sum(bool(state.get("disturbed")) for state in turns)
    if disturbed > len(turns) / 10:
        lines.append(
            f"Other processes took the core during {disturbed} of {len(turns)} measurements: a quiet machine says more"
        )
    if any(row["family"] in KINDS for row in document["rows"]):
        lines.append(
            "Whole networks have seeded weights; all take and give planar arrays, and peers are compared with the "
            "module after nn.fuse, of a training step with the module itself; errors are against float64"
        )
    groups = {row["group"] for row in document["rows"] if row.get("group")} - set(KINDS)
    if any(not group.startswith(("separable", "pool")) for group in groups):
        lines.append(
            "ncnn is asked for separable layers and pooling alone, XNNPACK for those and elementwise functions"
        )
    if any(result["share_of_roofline"] > 1.1 for row in document["rows"] for result in row["results"].values()):
        lines.append(
            "Work is that of the definition: Winograd's filtering, the FFT and whatever passes over zeros of the "
            "padding do less, and their share of the bound may be above 100 %"
        )
    if document["interrupted"]:
        lines.append("Interrupted: these are the rows up to then")
    return lines


def _wants_picture(row: Row) -> bool:
    return bool(row["op"] == "conv2d" and row["c"] == 3 and min(row["size"]) >= 64)


def _show_notes(document: Document, console: Console) -> None:
    from rich.text import Text

    from fastconv.bench.run import failures

    console.print(
        Text(
            "Time is a plan's or fused network's (a gradient's: the plain call's) with warm caches, and beside it with "
            "cold ones. Ratios above 1 mean that fastconv is faster: plain functions against the plain call, sessions "
            "that keep prepared weights against the plan. NumPy is fastconv.reference."
        )
    )
    for line in notes(document):
        console.print(Text(line))
    for row, name, reason in failures(document):
        console.print(Text(f"{row}: {TITLES.get(name, name)}: {reason}", style="red"))


# --------------------------------------------------------------------------------------------------------------- JSON


def write(document: Document, path: Path) -> None:
    """The whole session, with the machine, the versions and the settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    # A reader finds the old file or the new one, never half of one.
    temporary.replace(path)


def read(path: Path) -> Document:
    """A file that `write` has written; ValueError where it is something else."""
    from fastconv.bench.run import SCHEMA

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not a result of this version's benchmark (schema {SCHEMA})")
    return document


# ------------------------------------------------------------------------------------------------------------- README


def markdown(documents: Sequence[Document]) -> str:
    """The results as they stand in the README: one section a file."""
    if not documents:
        return "No results yet: run `python -m fastconv bench --json bench/results/NAME.json`."
    parts = []
    for document in documents:
        machine = document["machine"]
        isa = document["ceilings"][0]["isa"] if document["ceilings"] else ""
        threads = "/".join(str(c["threads"]) for c in document["ceilings"])
        plural = "thread" if threads == "1" else "threads"
        virtual = ", a virtual machine" if machine["virtual_machine"] else ""
        parts.append(f"### {machine['cpu']}, {isa}, {threads} {plural}: `{document['command']}`\n")
        entries = summary(document)
        names = [n for n in peers_of(document) if n not in ("numpy", "ncnn_direct")]
        head = ["family", "layout", "threads", "layers", "share of bound (worst)", "NumPy", *(SHORT[n] for n in names)]
        head.append("best peer (worst)")
        lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
        for e in entries:
            mark = "" if e["complete"] else "?"
            worst = e["worst_peer"]
            best = f"**{ratio(e['best_peer'])}{mark}** ({ratio(worst[0])})" if worst else "-"
            cells = [
                e["family"],
                e["layout"] if e["family"] != "linear" else "",
                str(e["threads"]),
                str(e["layers"]),
                f"{e['share']:.0%} ({e['worst_share']:.0%})",
                *(ratio(e["speedups"].get(n)) or "-" for n in ("numpy", *names)),
                best,
            ]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
        parts += _network_rows(document, names)
        parts += [f"{name}: {value}.\n" for name, value in (*_scaling_means(document), *better_of(document))]
        parts.append(
            f"{machine['cores']} cores{virtual}; {document['created'][:10]}; fastconv {document['fastconv']}, "
            + _versions(document)
            + ". "
            + " ".join(f"{line}." for line in notes(document))
            + "\n"
        )
    parts.append(
        "Figures are geometric means. Share of bound: of the FMA peak measured in the same session or, where the "
        "program finds a layer memory-bound, of a copy of the same bytes. The other columns are speed-ups over that "
        "library, pinned to the same cores, in the same run: over PyTorch and JAX by the plain function, over the "
        "others, which keep prepared weights, by a plan. Best peer: over the best of them, layer by layer."
    )
    return "\n".join(parts).rstrip() + "\n"


def _network_rows(document: Document, names: Sequence[str]) -> list[str]:
    """A table of one line a network, or nothing."""
    members = [(row, result) for row, _, result in results(document) if row["family"] in KINDS]
    names = [name for name in names if any(name in result["speedups"] for _, result in members)]
    through = [name for name in INTEGRATIONS if any(name in result.get("through", {}) for _, result in members)]
    head = ["network", "input", "M MACs", "threads", "time", *(f"through {INTEGRATIONS[n]}" for n in through)]
    head += ["GFLOP/s (of peak)", *(SHORT[n] for n in names), "best"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row, result in members:
        best = result["best_peer"]
        cells = [
            row["net"] + (", training step" if row["family"] == "training" else ""),
            "x".join(map(str, row["x_shape"])),
            f"{row['macs'] / 1e6:,.1f}",
            str(row["threads"]),
            duration(result["time"]),
            *(duration(result.get("through", {}).get(n)) or "-" for n in through),
            f"{_digits(result['gflops'])} ({result['share_of_peak']:.0%})",
            *(ratio(result["speedups"].get(n)) or "-" for n in names),
            f"{SHORT[best['name']]} **{ratio(best['ratio'])}{'' if best['complete'] else '?'}**" if best else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return ["\n".join(lines) + "\n"] if members else []


def _versions(document: Document) -> str:
    found: dict[str, str] = {"NumPy": document["numpy"]}
    titles = {"torch": "PyTorch", "jax": "JAX", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    titles |= {"ncnn": "ncnn", "tensorflow": "TensorFlow"}
    for about in document["peers"].values():
        for name, version in about["versions"].items():
            if name in titles:
                # OpenVINO's version goes on with the name of its build.
                found[titles[name]] = version.split("-")[0]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def sessions(directory: Path) -> list[tuple[str, Document]]:
    """(name, session) of every file of the directory that holds one."""
    paths = sorted(set(directory.glob("*.json")) - set(directory.glob(CHOICE_FILES)) - set(directory.glob(GPU_FILES)))
    return [(path.stem, read(path)) for path in paths]


def choices(directory: Path) -> list[tuple[str, Document]]:
    """(name, account of the choice) of every file of the directory that holds one."""
    found = []
    for path in sorted(directory.glob(CHOICE_FILES)):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        if not isinstance(document, dict) or document.get("schema") != CHOICE_SCHEMA:
            raise ValueError(f"{path}: not an account of the choice (schema {CHOICE_SCHEMA!r})")
        found.append((path.stem, document))
    return found


CHOICE_HEAD = ("layers", "machine", "what", "with a choice", "near", "near of all", "95th percentile", "worst")
# Of the command that an account is from: the layers that it is of.
_CHOSEN = {"all": "tables", "net": "{}", "seeded": "seeded {}", "seed": "seed {}", "max-gflop": "up to {} GFLOP"}
_CHOSEN |= {"dtype": "{}", "direction": "{}", "layout": "{}"}


def _chosen(command: str) -> str:
    """What was measured, in a few words."""
    options = [part.split(maxsplit=1) for part in f" {command}".split(" --")[1:]]
    named = {name: value[0].strip() if value else "" for name, *value in options}
    return ", ".join(words.format(named[name]) for name, words in _CHOSEN.items() if name in named)


CHOICE_TITLES = {
    "layer": "plan and plain call",
    "algorithms": "of these with Winograd or FFT",
    "plan": "plans by themselves",
    "plain": "plain calls by themselves",
}


def choice_rows(documents: Sequence[tuple[str, Document]]) -> Iterator[list[str]]:
    """The cells of a table under CHOICE_HEAD."""
    for _, document in documents:
        s = document["summary"]
        machine = f"{document['machine']['cpu']}, {document['isa']}, {document['threads']}t"
        for key, title in CHOICE_TITLES.items():
            if key not in s:
                continue
            v = s[key]
            whole = f"{v['of_all']:.1%}" if "of_all" in v else ""
            cost = [f"+{v[name] - 1:.0%}" for name in ("p95", "worst")]
            yield [_chosen(document["command"]), machine, title, str(v["measured"]), f"{v['near']:.1%}",
                   whole, *cost]  # fmt: skip


def choice_markdown(documents: Sequence[tuple[str, Document]]) -> str:
    """The account of the choice as it stands in the docs."""
    if not documents:
        return "Not measured yet: `python -m fastconv tune --all --report bench/results/choice-NAME.json`.\n"
    lines = ["| " + " | ".join(CHOICE_HEAD) + " |", "|---|---|---|" + "---:|" * (len(CHOICE_HEAD) - 3)]
    lines += ["| " + " | ".join(row) + " |" for row in choice_rows(documents)]
    left = [f"{_chosen(d['command'])}: {len(d['left_out'])}" for _, d in documents if d["left_out"]]
    lines.append("")
    text = (
        "Near: within 5 % of the fastest way, of the layers (in a memory order) that have a choice, and of all. The "
        "last two columns: what the model's choice takes more than the fastest way."
    )
    if left:
        text += f" Layers left out for their size: {'; '.join(left)}."
    return "\n".join([*lines, text]) + "\n"


def rewrite_readme(readme: Path, directory: Path) -> bool:
    """Put the results of directory/*.json between the README's marks. True where the file has changed."""
    return rewrite(readme, BEGIN, END, markdown([document for _, document in sessions(directory)]))


def rewrite(path: Path, begin: str, end: str, inner: str) -> bool:
    """Put a text between two marks of a file. True where the file has changed."""
    text = path.read_text(encoding="utf-8")
    if len(re.findall(re.escape(begin), text)) != 1 or text.find(end) < text.find(begin):
        raise ValueError(f"{path}: needs one {begin} and, after it, {end}")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    new = f"{before}{begin}\n{inner}{end}{after}"
    if new == text:
        return False
    path.write_text(new, encoding="utf-8")
    return True
