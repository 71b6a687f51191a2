"""`python -m fastconv.integrations.onnx` prints the tables of docs/onnx.md, from the operators themselves."""

from __future__ import annotations

from .lower import lowered
from .operators import OPERATORS


def tables() -> str:
    """The operators that are supported, and what of some is left out, in Markdown."""
    nodes = sorted(lowered() & set(OPERATORS))
    calls = sorted(set(OPERATORS) - set(nodes))
    lines = ["| Operators | How they run |", "|---|---|"]
    lines.append(f"| {', '.join(nodes)} | as nodes of the graph: fused, planned, folded or views |")
    lines.append(f"| {', '.join(calls)} | by themselves, by fastconv's functions or NumPy's |")
    lines += ["", "| Operator | What of it |", "|---|---|"]
    lines += [f"| {name} | {OPERATORS[name].note} |" for name in sorted(OPERATORS) if OPERATORS[name].note]
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
