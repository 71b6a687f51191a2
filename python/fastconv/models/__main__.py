"""`python -m fastconv.models` prints the table of docs/models.md."""

from __future__ import annotations

from .. import nn
from . import create, names

# Of the published figures, where they are not for (1, 3, 224, 224).
_INPUTS = {
    "lenet5": (1, 1, 32, 32),
    "xception": (1, 3, 299, 299),
    "unet": (1, 1, 572, 572),
    "c3d": (1, 3, 16, 112, 112),
}
_NAMES = {
    **dict.fromkeys(("lenet5", "unet", "conv_autoencoder"), "our own"),
    "xception": "pretrainedmodels",
    "c3d": "the usual ports",
}


def table() -> str:
    """Parameters, multiply-adds and more of every network at its paper's size, in Markdown."""
    lines = [
        "| name | input | output | parameters | MACs | receptive field | activations | names of weights |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for name in names():
        with nn.init.undrawn():
            found = nn.summary(create(name), _INPUTS.get(name, (1, 3, 224, 224)), show=False)
        field = found.rows[-1].receptive_field
        cells = (
            f"`{name}`",
            "x".join(map(str, found.input_shape)),
            "x".join(map(str, found.output_shape)),
            f"{found.parameters:,}",
            f"{found.macs / 1e6:,.1f} M" if found.macs < 1e8 else f"{found.macs / 1e9:,.2f} G",
            str(field[0]) if len(set(field)) == 1 else "x".join(map(str, field)),
            f"{found.peak_bytes / 1e6:,.1f} MB",
            _NAMES.get(name, "torchvision"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
