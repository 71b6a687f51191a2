"""The pictures of a session: the roofline with every layer on it, speed-ups by family, errors beside speed."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastconv.bench import report
from fastconv.bench.cases import FAMILIES
from fastconv.bench.run import INTEGRATIONS, OURS

Document = dict[str, Any]

# As wide as a telephone's screen, so that the words keep their size there; a wider screen shows several side by side.
_WIDTH = 4.5
_DPI = 200
_MARKS = "os^Dv*Phd<>"
# What is slower than this part of the best peer's speed stands at the edge.
_SLOWEST = 1 / 30


@dataclass(frozen=True)
class Theme:
    """The colours of a page. Pairs of families share a colour, but no mark."""

    name: str
    ink: str
    faint: str
    paper: str
    colours: tuple[str, ...]


# After Okabe and Ito, "Color universal design" (2008), the yellow left out.
LIGHT = Theme(
    "light",
    "#1c1c1e",
    "#c9c9ce",
    "#ffffff",
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"),
)
DARK = Theme(
    "dark",
    "#ececf0",
    "#4a4a50",
    "#17171a",
    ("#4EA8DE", "#FF8C42", "#2FD3A0", "#E59CC7", "#F6C445", "#A5DCFF", "#B79BE0", "#B0B0B0"),
)


@dataclass(frozen=True)
class Picture:
    """A drawing in both themes, as PNG files."""

    name: str
    title: str
    text: str
    """What it shows, for those who do not see it and those who do."""
    png: dict[str, bytes]


def pictures(document: Document, name: str) -> Iterator[Picture]:
    """All pictures of a session; those that would be empty are left out."""
    for ceiling in document["ceilings"]:
        threads = ceiling["threads"]
        end = f"{name}-{threads}t"
        many = f"{threads} thread{'' if threads == 1 else 's'}"
        rows = [row for row in document["rows"] if row["threads"] == threads and row.get("results")]
        drawings: list[tuple[str, str, str, Callable[[Any, Theme], bool], float]] = [
            (
                "roofline",
                f"Roofline, {many}",
                "Every layer by its flops a byte and the speed that is reached, under the FMA peak and two copies: of "
                "the memory, and the fastest that any layer's bytes have. Marks above the peak do fewer "
                "multiplications than are counted (Winograd, FFT).",
                partial(_roofline, rows=rows, ceiling=ceiling),
                1.3,
            ),
            (
                "speedups",
                f"Speed-ups by family, {many}",
                "Geometric means of how many times as fast as each peer fastconv is, both layouts together; right of "
                "the line fastconv is faster.",
                partial(_speedups, rows=rows),
                0.0,
            ),
            (
                "errors",
                f"Errors beside speed, {many}",
                "Every contender of every layer: its largest error in units of eps * conv(|x|, |w|) and its speed as a "
                "multiple of the best peer's (slower than 1/30 at the edge). Right and low is good.",
                partial(_errors, rows=rows),
                1.25,
            ),
        ]
        for kind, title, text, draw, height in drawings:
            if not height:
                families = len({row["family"] for row in rows})
                height = (1.7 + 0.3 * families) / _WIDTH
            png = {theme.name: _drawn(draw, theme, height) for theme in (LIGHT, DARK)}
            if all(png.values()):
                yield Picture(f"{end}-{kind}", title, text, png)


def _drawn(draw: Callable[[Any, Theme], bool], theme: Theme, height: float) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {  # whose type lists every name that matplotlib knows
        "font.size": 10.5,
        "font.family": "DejaVu Sans",
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.ink,
        "axes.facecolor": theme.paper,
        "figure.facecolor": theme.paper,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.5,
        "axes.axisbelow": True,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "savefig.dpi": _DPI,
    }
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(_WIDTH, _WIDTH * height), layout="constrained")
        try:
            if not draw(axes, theme):
                return b""
            file = io.BytesIO()
            # Without the date and the versions, so that the same figures make the same file.
            figure.savefig(file, format="png", metadata={"Software": None})
            return file.getvalue()
        finally:
            pyplot.close(figure)


def _looks(names: list[str], theme: Theme) -> dict[str, dict[str, str]]:
    return {
        name: {
            "color": theme.colours[i % len(theme.colours)],
            "marker": _MARKS[(i // len(theme.colours) + i) % len(_MARKS)],
        }
        for i, name in enumerate(names)
    }


def _legend(axes: Any, columns: int) -> None:
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, handletextpad=0.3)


def _plain(axis: Any) -> None:
    """Powers of ten as numbers, and no names between them."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def _roofline(axes: Any, theme: Theme, rows: list[Any], ceiling: Any) -> bool:
    from matplotlib.ticker import NullFormatter

    points = [(row, result) for row in rows if row["flops"] > 0 for result in row["results"].values()]
    if not points:
        return False
    families = [name for name in FAMILIES if any(row["family"] == name for row, _ in points)]
    looks = _looks(families, theme)
    for family in families:
        mine = [(row["flops"] / row["bytes"], result["gflops"]) for row, result in points if row["family"] == family]
        axes.scatter(*zip(*mine, strict=True), s=16, linewidths=0, alpha=0.8, label=family, **looks[family])
    x = [row["flops"] / row["bytes"] for row, _ in points]
    low, high = min(x) / 1.5, max(x) * 1.5
    for dtype, peak in ceiling["peak"].items():
        if any(row["dtype"] == dtype for row, _ in points):
            dashes = "-" if dtype == "float32" else "-."
            label = f"FMA peak{' f64' if dtype == 'float64' else ''}, {peak / 1e9:.0f} GFLOP/s"
            axes.plot([low, high], [peak / 1e9] * 2, dashes, color=theme.ink, linewidth=1, label=label)
    top = max(ceiling["peak"].values()) / 1e9
    fastest = max(row["copy"] for row, _ in points)
    bottom = min(result["gflops"] for _, result in points) / 1.5
    for rate, name, dashes in ((ceiling["copy"], "memory", "--"), (fastest, "cache", ":")):
        end = min(high, top * 1e9 / rate)
        begin = max(low, bottom * 1e9 / rate)
        if begin < end:
            axes.plot([begin, end], [begin * rate / 1e9, end * rate / 1e9], dashes, color=theme.ink, linewidth=1)
            axes.plot([], [], dashes, color=theme.ink, linewidth=1, label=f"{name}, {rate / 1e9:.0f} GB/s")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, None))
    axes.set_xlabel("flops a byte")
    axes.set_ylabel("GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        _plain(axis)
        axis.set_minor_formatter(NullFormatter())
    _legend(axes, 2)
    return True


def _speedups(axes: Any, theme: Theme, rows: list[Any]) -> bool:
    families = [name for name in FAMILIES if any(row["family"] == name for row in rows)]
    values: dict[str, list[tuple[int, float]]] = {}
    for i, family in enumerate(reversed(families)):
        results = [r for row in rows if row["family"] == family for r in row["results"].values()]
        for peer in report.SHORT:
            mean = report.geometric_mean(r["speedups"][peer] for r in results if peer in r["speedups"])
            if mean is not None and peer != "numpy":
                values.setdefault(peer, []).append((i, mean))
    if not values:
        return False
    looks = _looks([name for name in report.SHORT if name in values], theme)
    for peer, look in looks.items():
        places = values[peer]
        axes.scatter(
            [v for _, v in places],
            [i for i, _ in places],
            s=26,
            linewidths=0,
            alpha=0.9,
            label=report.SHORT[peer],
            **look,
        )
    axes.axvline(1, color=theme.ink, linewidth=1)
    axes.set_yticks(range(len(families)), list(reversed(families)))
    axes.set_ylim(-0.6, len(families) - 0.4)
    axes.set_xscale("log")
    _times(axes, [v for places in values.values() for _, v in places])
    axes.grid(axis="y", linewidth=0.3)
    axes.set_xlabel("times as fast as the peer")
    _legend(axes, 3)
    return True


def _times(axes: Any, values: list[float]) -> None:
    """Round ticks on an axis of ratios."""
    from matplotlib.ticker import NullFormatter, NullLocator

    low, high = min([*values, 1.0]) / 1.1, max([*values, 1.0]) * 1.1
    steps = (1, 2, 5) if high / low < 100 else (1, 3) if high / low < 1000 else (1,)
    ticks = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in steps
        if low <= m * 10.0**e <= high
    ]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _errors(axes: Any, theme: Theme, rows: list[Any]) -> bool:
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        times = {
            name: state["warm"]["median"]
            for name, state in row["contenders"].items()
            if state.get("status") == "ok" and "warm" in state and state.get("error")
        }
        best = min((t for name, t in times.items() if name not in OURS and name != "numpy"), default=None)
        if best is None:
            continue
        for name, t in times.items():
            if name == "numpy" or name in INTEGRATIONS or (name in OURS and f"{name}_plan" in times):
                continue
            group = report.SHORT.get(name, name)
            if name in OURS:
                algorithm = str(row["contenders"][name].get("decision", {}).get("algorithm", "direct"))
                special = algorithm.startswith("winograd") or algorithm == "fft"
                group = f"fastconv {algorithm}" if special else "fastconv"
            groups.setdefault(group, []).append((max(best / t, _SLOWEST), row["contenders"][name]["error"]))
    if not any(name.startswith("fastconv") for name in groups):
        return False
    ours = sorted(name for name in groups if name.startswith("fastconv"))
    theirs = [name for name in report.SHORT.values() if name in groups]
    for name in theirs:
        look = _looks(theirs, theme)[name]
        axes.scatter(*zip(*groups[name], strict=True), s=9, linewidths=0.5, facecolors="none", label=name, alpha=0.7,
                     edgecolors=look["color"], marker=look["marker"])  # fmt: skip
    for name, marker in zip(ours, "o^sDvP", strict=False):
        axes.scatter(
            *zip(*groups[name], strict=True), s=16, linewidths=0, color=theme.ink, marker=marker, label=name, alpha=0.75
        )
    axes.axvline(1, color=theme.ink, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xscale("log")
    _plain(axes.yaxis)
    _times(axes, [x for values in groups.values() for x, _ in values])
    axes.set_xlabel("speed over the best peer's")
    axes.set_ylabel("largest error, eps * conv(|x|, |w|)")
    _legend(axes, 2)
    return True
