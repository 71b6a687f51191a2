"""Runs convolutions whose operands touch forbidden pages; test_guards.py starts it once an ISA."""

import itertools
import sys

import numpy as np

from fastconv import functional, testing

OPS = [f"{family}{d}d" for family in ("conv", "conv_transpose") for d in (1, 2, 3)]
GRADIENTS = ("", "_backward_input", "_backward_weight", "_backward_bias")


def run(case: testing.Case, where: str) -> None:
    """Calls the function on copies that end at a forbidden page, with an output that does too."""

    def guard(value):
        # Operands with gaps or repeated elements lose them in a copy: those are the guarded buffers' part.
        return testing.page_guarded(value, where) if isinstance(value, np.ndarray) else value

    # What `call` makes an output from; a page-guarded array takes the place of its copy.
    out = testing.page_guarded(testing.as_memory(case.initial["out"], case.out_memory or "contiguous"), where)
    options = {k: guard(v) for k, v in case.options.items()}
    result = getattr(functional, case.op)(*(guard(a) for a in case.arrays), **{**options, "out": out})
    case.check(result)


def main(where: str) -> None:
    for op in [o + g for o in (*OPS, "linear") for g in GRADIENTS]:
        table = testing.option_table(op, functional)
        table["x_memory"] = ("contiguous", "reordered")
        for i, choice in enumerate(testing.all_pairs(table, seed=2)[:60]):
            print(op, choice, flush=True)
            run(testing.make_case(op, choice, seed=i), where)
    # Every remainder of channels and pixels against the vectors and tiles.
    for layout, dtype in itertools.product(("NCL", "NLC"), (np.float32, np.float64)):
        for c, k, pixels in itertools.product((1, 3, 8, 17), (1, 2, 7, 9, 16, 23), (1, 3, 6, 8, 15, 17)):
            print("conv1d sweep", layout, dtype.__name__, c, k, pixels, flush=True)
            x_shape, y_shape = (
                ((2, c, pixels + 2), (2, k, pixels)) if layout == "NCL" else ((2, pixels + 2, c), (2, pixels, k))
            )
            x, w = testing.integer_data(x_shape, dtype), testing.integer_data((k, c, 3), dtype)
            dy, o = testing.integer_data(y_shape, dtype), {"layout": layout}
            run(testing.Case("conv1d", (x, w), o, None, {"out": dy}), where)
            run(testing.Case("conv1d_backward_input", (dy, w, x_shape), o, None, {"out": x}), where)
            run(testing.Case("conv1d_backward_weight", (dy, x, w.shape), o, None, {"out": w}), where)
            run(testing.Case("conv1d_backward_bias", (dy,), o, None, {"out": w[:, 0, 0]}), where)
    # Depthwise layers, whose kernels read the image where it lies: every remainder of channels and of columns.
    for layout, dtype in itertools.product(("NCHW", "NHWC"), (np.float32, np.float64)):
        filters = ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (4, 3))
        for c, columns, (r, stride) in itertools.product((1, 3, 9, 17), (7, 8, 9, 17, 34), filters):
            print("conv2d depthwise sweep", layout, dtype.__name__, c, columns, r, stride, flush=True)
            x_shape = (2, c, 8, columns) if layout == "NCHW" else (2, 8, columns, c)
            o = {"layout": layout, "groups": c, "stride": stride, "padding": columns % 3}
            x, w = testing.integer_data(x_shape, dtype), testing.integer_data((c, 1, r, r), dtype)
            y = functional.conv2d(x, w, **o)
            dy = testing.integer_data(y.shape, dtype)
            run(testing.Case("conv2d", (x, w), o, None, {"out": dy}), where)
            run(testing.Case("conv2d_backward_input", (dy, w, x_shape), o, None, {"out": x}), where)
            run(testing.Case("conv2d_backward_weight", (dy, x, w.shape), o, None, {"out": w}), where)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
