"""Check the gradients of a convolution against central differences, in float64.

The loss is L = sum(y * target), so that dL/dy is `target`. Convolution is linear in its input and in its weight: the
differences are exact but for rounding.
"""

import numpy as np

import fastconv


def difference(loss, array: np.ndarray, at: tuple[int, ...], step: float = 0.5) -> float:
    """dL/d(array[at]) by moving that element up and down."""
    kept = array[at]
    array[at] = kept + step
    up = loss()
    array[at] = kept - step
    down = loss()
    array[at] = kept
    return (up - down) / (2 * step)


def main() -> None:
    """Compare some elements of every gradient, for a plain, a strided and a folded layer."""
    rng = np.random.default_rng(0)
    cases = {
        "padding 1": {"padding": 1},
        "stride 2, dilation 2, groups 2": {"stride": 2, "dilation": 2, "padding": 2, "groups": 2},
        "reflect padding": {"padding": (2, 1), "padding_mode": "reflect"},
        "channels last": {"padding": "same", "layout": "NHWC"},
    }
    for name, options in cases.items():
        channels_last = options.get("layout") == "NHWC"
        x = rng.standard_normal((2, 9, 10, 6) if channels_last else (2, 6, 9, 10))
        weight = rng.standard_normal((8, 6 // options.get("groups", 1), 3, 3))
        bias = rng.standard_normal(8)
        target = rng.standard_normal(fastconv.conv2d(x, weight, bias, **options).shape)

        def loss(x=x, weight=weight, bias=bias, target=target, options=options) -> float:
            return float(np.sum(fastconv.conv2d(x, weight, bias, **options) * target))

        gradients = fastconv.conv2d_backward(target, x, weight, **options)
        worst = 0.0
        for operand, gradient in zip((x, weight, bias), gradients, strict=True):
            for _ in range(20):
                at = tuple(int(rng.integers(n)) for n in operand.shape)
                worst = max(worst, abs(difference(loss, operand, at) - gradient[at]))
        assert worst < 1e-10, f"{name}: off by {worst}"
        print(f"{name:32} largest deviation {worst:.1e}")


if __name__ == "__main__":
    main()
