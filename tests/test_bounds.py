"""The proven bound that `explain` returns, on data whose roundings all point one way."""

from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import functional, reference

pytestmark = pytest.mark.usefixtures("isa")


def largest_error(op: str, operands: list[Any], **options: Any) -> tuple[float, float, float]:
    """(the largest error of constant data in units of eps * conv(|x|, |w|), the proven bound of it, terms of a piece).

    Two shapes of arrays come first. A chain that adds one product over and over rounds to the same side until its sum
    reaches the next power of two: of n terms, about n / 8 units may gather.
    """
    decision = fastconv.explain(op, *operands, **options).decision
    worst = 0.0
    for value in (0.7, 0.9, 1.1, 1.3):
        arrays = [np.full(shape, value, np.float32) for shape in operands[:2]]
        exact = getattr(reference, op)(*(a.astype(np.float64) for a in arrays), *operands[2:], **options)
        error = np.abs(getattr(functional, op)(*arrays, *operands[2:], **options) - exact)
        assert (exact > 0).all()
        worst = max(worst, float(np.max(error / (np.finfo(np.float32).eps * exact))))
    return worst, decision["error_bound"], decision["reduction_block"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_forward(layout: str) -> None:
    x = (1, 300, 5, 5) if layout == "NCHW" else (1, 5, 5, 300)
    worst, proven, terms = largest_error("conv2d", [x, (40, 300, 3, 3)], padding=1, layout=layout)
    assert terms / 20 < worst <= proven


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_weight_gradient_sums_over_pixels(layout: str, kernel: int) -> None:
    x = (3, 16, 40, 40) if layout == "NCHW" else (3, 40, 40, 16)
    operands = [x, x, (16, 16, kernel, kernel)]
    options = {"padding": kernel // 2, "layout": layout, "algorithm": "direct"}
    worst, proven, terms = largest_error("conv2d_backward_weight", operands, **options)
    assert terms / 20 < worst <= proven < 3 * 40 * 40


@pytest.mark.parametrize(
    ("mode", "size", "pad", "copies"),
    [
        ("reflect", (120,), [(100, 90)], 2),
        ("circular", (120,), [(100, 90)], 2),
        ("replicate", (120,), [(100, 90)], 100),
        ("reflect", (9, 8), [(6, 7), (5, 5)], 3 * 3 - 1),
        ("circular", (9, 8), [(6, 7), (5, 5)], 3 * 3 - 1),
        ("replicate", (9, 8), [(6, 7), (5, 4)], 8 * 6 - 1),
    ],
)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2)])
def test_input_gradient_adds_the_folded_frame(
    mode: str, size: tuple[int, ...], pad: list[tuple[int, int]], copies: int, kernel: int, stride: int
) -> None:
    rank = len(size)
    out = tuple((n + sum(p) - kernel) // stride + 1 for n, p in zip(size, pad, strict=True))
    operands = [(1, 2, *out), (2, 2, *(kernel,) * rank), (1, 2, *size)]
    options = {"stride": stride, "padding": pad, "padding_mode": mode}
    worst, proven, _ = largest_error(f"conv{rank}d_backward_input", operands, **options)
    assert worst <= proven
    plain = fastconv.explain(f"conv{rank}d_backward_input", *operands, **{**options, "padding_mode": "zeros"})
    assert proven >= plain.decision["error_bound"] + copies


def test_input_gradient_of_many_copies_exceeds_its_own_chain() -> None:
    """Without the frame in the count, the bound would be wrong here."""
    options = {"padding": [(100, 90)], "padding_mode": "replicate"}
    operands = [(1, 2, 310), (2, 2, 1), (1, 2, 120)]
    worst, proven, _ = largest_error("conv1d_backward_input", operands, **options)
    assert 2 + 1 + 4 + 1 < worst <= proven
