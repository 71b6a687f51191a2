"""Writes activation_tables.h: the piecewise polynomials of activation.inl.h, fitted here.

    python csrc/kernels/activation_tables.py | clang-format > csrc/kernels/activation_tables.h

Each piece is fitted in double by least squares on Chebyshev nodes, reweighted until the largest error is as small as it
gets (Lawson). Its coefficients are rounded to float from the constant on, and those that follow are fitted again, so
that they make up for what was rounded away.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
EPS = 2.0**-23
ENTRIES = 16


def fit(f: Callable[[Array], Array], low: float, high: float, center: float, degree: int, relative: bool, fixed=()):
    """Coefficients of (x - center)^j, of which `fixed` are given, and their largest error in eps."""
    fixed = dict(fixed)
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    y, reach = f(x), max(high - center, center - low)
    weight = 1 / np.abs(y) if relative else np.ones_like(y)
    power = {j: ((x - center) / reach) ** j * weight for j in range(degree + 1)}
    target = y * weight - sum(c * reach**j * power[j] for j, c in fixed.items())
    free = [j for j in power if j not in fixed]
    if not free:
        return fixed, np.abs(target).max() / EPS
    a, share, best = np.stack([power[j] for j in free], 1), np.ones_like(x), None
    for _ in range(60):
        root = np.sqrt(share)
        c = np.linalg.lstsq(a * root[:, None], target * root, rcond=None)[0]
        error = np.abs(a @ c - target)
        if best is None or error.max() < best[0]:
            best = error.max(), c
        share *= error / max(error.max(), 1e-300) + 1e-3
        share /= share.max()
    return fixed | {j: c / reach**j for j, c in zip(free, best[1], strict=True)}, best[0] / EPS


def rounded(*args, fixed=()):
    fixed = dict(fixed)
    for j in range(args[4] + 1):
        if j not in fixed:
            fixed[j] = float(np.float32(fit(*args, fixed=fixed)[0][j]))
    return fit(*args, fixed=fixed)


def tail(y: Array) -> Array:
    return np.array([math.erfc(v) for v in y / math.sqrt(2)]) / 2


def mills(y: Array) -> Array:
    # Below 26 erfc is normal.
    return tail(y) * np.exp(y * y / 2)


def silu_slope(y: Array) -> Array:
    s = 1 / (1 + np.exp(-y))
    return s * (1 + y * (1 - s)) - 0.5


def gelu_slope(y: Array) -> Array:
    return 0.5 - tail(y) + y * np.exp(-y * y / 2) / math.sqrt(2 * math.pi)


def number(c: float, unused: bool = False) -> str:
    return "0" if unused or c == 0 else f"{np.float32(c)!s}f" if "." in str(np.float32(c)) else f"{np.float32(c)!s}.0f"


def table(name: str, comment: str, f, degree: int, relative: bool, pieces, centers: bool = False) -> None:
    """`pieces`: entry -> (low, high, center, fixed coefficients)."""
    rows, worst = np.zeros((degree + 1, ENTRIES)), 0.0
    for entry, (low, high, center, fixed) in pieces.items():
        c, error = rounded(f, low, high, center, degree, relative, fixed=fixed)
        rows[:, entry] = [c[j] for j in range(degree + 1)]
        worst = max(worst, error)
    kind = "relative" if relative else "absolute"
    print(f"// {comment} The largest {kind} error of a piece is {worst:.2f} eps.")
    print(f"alignas(64) constexpr float {name}[{degree + 1}][{ENTRIES}] = {{")
    for row in rows:
        print("{" + ", ".join(number(c) for c in row) + "},")
    print("};")
    if centers:
        rows = np.zeros(ENTRIES)
        rows[list(pieces)] = [center for _, _, center, _ in pieces.values()]
        print(f"alignas(64) constexpr float {name}Centers[{ENTRIES}] = {{{', '.join(number(c) for c in rows)}}};")
    print()


def uniform(step: float, entries):
    """Pieces about the multiples of step, in the entries that the low bits of the multiple name."""
    return {
        n % ENTRIES: (
            max(0.0, (n - 0.5) * step),
            (n + 0.5) * step,
            n * step,
            {},
        )
        for n in entries
    }


def by_exponent(offset: float, bits: int, most: float, fixed=(), first: float = 0.0):
    """Pieces of x + offset between the numbers of so many bits of the mantissa, about their lower ends.

    From x = first to most; `fixed` are coefficients of the first one.
    """
    pieces, w = {}, first + offset
    while w - offset < most:
        width = 2.0 ** (math.floor(math.log2(w)) - bits)
        entry = (int(np.float32(w).view(np.uint32)) >> (23 - bits)) % ENTRIES
        assert entry not in pieces
        pieces[entry] = (w - offset, w - offset + width, w - offset, {} if pieces else dict(fixed))
        w += width
    return pieces


def powers(name: str, entries: int, degree: int, fixed) -> None:
    """2^(i / entries) * 2^64 as integers, less what i << shift adds for the fraction, and the polynomial beside it."""
    reach = math.log(2) / entries / 2 * 1.001
    c, error = rounded(np.exp, -reach, reach, 0.0, degree, True, fixed=fixed)
    shift = 23 - int(math.log2(entries))
    bits = np.float32(2.0 ** (np.arange(entries) / entries + 64)).view(np.uint32) - (np.arange(entries) << shift)
    print(f"// 2^(64 + i / {entries}), less i << {shift}; e^r for |r| <= ln(2) / {2 * entries}: {error:.2f} eps.")
    print(f"alignas(64) constexpr uint32_t {name}[{entries}] = {{{', '.join(f'{b:#x}' for b in bits.tolist())}}};")
    print(f"constexpr float {name}Terms[{degree + 1}] = {{{', '.join(number(c[j]) for j in range(degree + 1))}}};\n")


def main() -> None:
    print("// Written by activation_tables.py: coefficient j of piece i is [j][i].")
    print("#pragma once\n#include <stdint.h>\n\nnamespace fastconv::FASTCONV_ISA_NS {\nnamespace {\n")
    table("kTanh", "tanh(y), by the bits of y + 5/8.", np.tanh, 5, True, by_exponent(0.625, 2, 9.3, {0: 0.0}), True)
    table("kNormalTail", "erfc((i / 4 + d) / sqrt 2) / 2.", tail, 6, True, uniform(0.25, range(16)))
    table(
        "kMills",
        "erfc(y / sqrt 2) / 2 * e^(y^2 / 2), by the bits of y.",
        mills,
        5,
        True,
        by_exponent(0, 2, 15, first=3.5),
    )
    table("kSiluSlope", "silu'(x) - 1/2, by the bits of x + 3/2.", silu_slope, 5, False, by_exponent(1.5, 2, 22))
    table("kGeluSlope", "gelu'(i / 2 + d) - 1/2.", gelu_slope, 6, False, uniform(0.5, range(16)))
    powers("kPower16", 16, 3, {0: 1.0})
    powers("kPower8", 8, 3, {0: 1.0})
    print("}  // namespace\n}  // namespace fastconv::FASTCONV_ISA_NS")


if __name__ == "__main__":
    main()
