"""The report as one self-contained HTML page, with its pictures beside it as PNG files."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastconv.bench import report
from fastconv.bench.figures import Picture, pictures

Document = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --faint: #6e6e73; --line: #d5d5da; --paper: #fff; --tint: #f4f4f6;
        --good: #0a7d3c; --bad: #c0271d; --shade: #0003; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --faint: #a1a1a8; --line: #3a3a40; --paper: #17171a; --tint: #222226; --good: #4cc38a;
          --bad: #ff7b72; --shade: #fff3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 84rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; }
code { font-size: .875em; }
p, li { max-width: 48rem; } .faint { color: var(--faint); font-size: .875rem; }
nav ul { padding-left: 1.2rem; } a { color: inherit; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem;
            align-items: start; }
figure { margin: 0; } figure img { width: 100%; max-width: 34rem; height: auto; display: block; }
figcaption { color: var(--faint); font-size: .875rem; } figcaption b { color: var(--ink); }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: .4rem; }
.scroll { background: linear-gradient(to right, var(--paper) 30%, transparent),
          linear-gradient(to left, var(--paper) 30%, transparent) right,
          linear-gradient(to right, var(--shade), transparent),
          linear-gradient(to left, var(--shade), transparent) right;
          background-repeat: no-repeat; background-size: 3rem 100%, 3rem 100%, .6rem 100%, .6rem 100%;
          background-attachment: local, local, scroll, scroll; }
.scroll:focus-visible { outline: 2px solid currentColor; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--tint); font-weight: 600; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
th:first-child { background: var(--tint); } td.text, th.text { text-align: left; }
.good { color: var(--good); } .bad { color: var(--bad); } summary { cursor: pointer; margin: .75rem 0; }
@media (max-width: 40rem) { body { padding: .75rem; } th, td { padding: .25rem .4rem; }
  td:first-child, th:first-child { white-space: normal; min-width: 6.5rem; max-width: 9rem; } }
"""


def write(directory: Path, documents: Sequence[tuple[str, Document]], choices: Sequence[tuple[str, Document]]) -> int:
    """Write index.html and the pictures of (name, session) and (name, account of the choice); returns their number."""
    directory.mkdir(parents=True, exist_ok=True)
    parts, drawn = [], 0
    for name, document in documents:
        mine = list(pictures(document, name))
        for picture in mine:
            for theme, data in picture.png.items():
                (directory / f"{picture.name}{'' if theme == 'light' else '-dark'}.png").write_bytes(data)
                drawn += 1
        parts.append(_session(name, document, mine))
    contents = "".join(f'<li><a href="#{_e(name)}">{_title(document)}</a></li>' for name, document in documents)
    if choices:
        contents += '<li><a href="#choice">The choice among algorithms</a></li>'
        parts.append(_choices(choices))
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>fastconv: results</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>
<h1>fastconv: results</h1>
<p>Every contender runs in a process of its own, pinned to the same cores, in turn; results are checked before they are
timed. Plain functions are compared with the plain call, sessions that keep prepared weights with a plan.</p>
<nav><ul>{contents}</ul></nav>
{"".join(parts)}
</body></html>
"""
    temporary = directory / "index.html.part"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(directory / "index.html")
    return drawn


def _e(text: object) -> str:
    return html.escape(str(text))


def _title(document: Document) -> str:
    """As HTML."""
    isa = document["ceilings"][0]["isa"] if document["ceilings"] else ""
    threads = "/".join(str(c["threads"]) for c in document["ceilings"])
    machine = f"{document['machine']['cpu']}, {isa}, {threads} thread{'' if threads == '1' else 's'}"
    # A line may break after a comma of a list of names.
    return f"{_e(machine)}: <code>{_e(document['command']).replace(',', ',<wbr>')}</code>"


def _picture(picture: Picture) -> str:
    sources = {theme: "data:image/png;base64," + base64.b64encode(d).decode() for theme, d in picture.png.items()}
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{sources["dark"]}">'
        f'<img src="{sources["light"]}" alt="{_e(picture.title)}: {_e(picture.text)}"></picture>'
        f"<figcaption><b>{_e(picture.title)}.</b> {_e(picture.text)}</figcaption></figure>"
    )


def _session(name: str, document: Document, drawn: Sequence[Picture]) -> str:
    notes = " ".join(f"{line}." for line in report.notes(document))
    machine = document["machine"]
    about = f"{machine['cores']} cores{', a virtual machine' if machine['virtual_machine'] else ''}; "
    about += f"{document['created'][:10]}; fastconv {document['fastconv']}, {report._versions(document)}. {notes}"
    return (
        f'<section><h2 id="{_e(name)}">{_title(document)}</h2><p class="faint">{_e(about)}</p>'
        f'<div class="pictures">{"".join(_picture(p) for p in drawn)}</div>'
        f"{_summary(document)}<details><summary>Every layer</summary>{_layers(document)}</details></section>"
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A table that scrolls by itself; the first `texts` columns are words. Cells are HTML."""

    def cells(tag: str, values: Sequence[str]) -> str:
        kinds = ['class="text"' if i < texts else "" for i in range(len(values))]
        return "".join(f"<{tag} {kind}>{value}</{tag}>" for value, kind in zip(values, kinds, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_e(title)}"><table>'
        f"<thead><tr>{cells('th', [_e(h) for h in head])}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _coloured(value: float | None, mark: str = "") -> str:
    if value is None:
        return "-"
    kind = "bad" if value < 1 else "good" if value >= 1.1 else ""
    return f'<span class="{kind}">{report.ratio(value)}{mark}</span>'


def _summary(document: Document) -> str:
    entries = report.summary(document)
    peers = [n for n in report.peers_of(document) if n not in ("numpy", "ncnn_direct")]
    head = ["family", "layout", "threads", "layers", "share of bound", "worst"]
    head += [report.SHORT[n] for n in ("numpy", *peers)] + (["best peer", "worst"] if peers else [])
    rows = []
    for e in entries:
        row = [_e(e["family"]), e["layout"] if e["family"] != "linear" else "", str(e["threads"]), str(e["layers"])]
        row += [f"{e['share']:.0%}", f"{e['worst_share']:.0%}"]
        row += [_coloured(e["speedups"].get(n)) for n in ("numpy", *peers)]
        if peers:
            row += [_coloured(e["best_peer"], "" if e["complete"] else "?")]
            row += [_coloured(e["worst_peer"][0] if e["worst_peer"] else None)]
        rows.append(row)
    return _table("Geometric means by family", head, rows, 2)


def _layers(document: Document) -> str:
    rows = []
    for row, layout, result in report.results(document):
        best = result["best_peer"]
        contender = row["contenders"].get("fastconv" if layout == "NCHW" else "fastconv_nhwc", {})
        algorithm = contender.get("decision", {}).get("algorithm", "")
        intensity = f"{row['flops'] / row['bytes']:.1f}" if row["flops"] else "-"
        rows.append(
            [
                _e(row["id"]),
                _e(row["shape"]),
                layout if row["op"] != "linear" else "",
                _e(algorithm),
                str(row["threads"]),
                report.duration(result["time"]),
                intensity,
                f"{result['gflops']:.1f}" if row["flops"] else "-",
                f"{result['share_of_roofline']:.0%}",
                f"{contender.get('error', 0):.2g}" if contender.get("error") is not None else "-",
                f"{_e(report.SHORT[best['name']])} {_coloured(best['ratio'])}" if best else "-",
            ]
        )
    head = ["layer", "shape", "layout", "algorithm", "threads", "time", "flops a byte", "GFLOP/s", "share of bound"]
    return _table("Every layer", [*head, "error, eps", "best peer"], rows, 4)


def _choices(choices: Sequence[tuple[str, Document]]) -> str:
    rows = [[_e(cell) for cell in row] for row in report.choice_rows(choices)]
    return (
        '<section><h2 id="choice">The choice among algorithms</h2><p>How often the model of costs takes a way that is '
        "within 5 % of the fastest one measured, and what it costs where it does not.</p>"
        f"{_table('The choice', report.CHOICE_HEAD, rows, 3)}</section>"
    )
