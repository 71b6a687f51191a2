"""A small residual network for inference: every layer is a plan, and its buffers are used again.

A plan packs its weights once. Called with `out` it allocates no array, and it gives the bits of the plain function.
"""

import numpy as np

import fastconv


class Block:
    """Two 3x3 convolutions with folded batch norms: y = relu(x + conv(relu(conv(x))))."""

    def __init__(self, rng: np.random.Generator, channels: int, size: int) -> None:
        deviation = np.sqrt(2 / (9 * channels))
        shape = (1, channels, size, size)
        self.weights = [
            (deviation * rng.standard_normal((channels, channels, 3, 3))).astype(np.float32) for _ in range(2)
        ]
        self.scales = [rng.uniform(0.5, 1, channels).astype(np.float32) for _ in range(2)]
        self.plans = [
            fastconv.plan("conv2d", shape, w, scale=s, padding=1, activation="relu")
            for w, s in zip(self.weights, self.scales, strict=True)
        ]
        self.buffers = [np.empty(shape, np.float32) for _ in range(2)]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the block; the result is the block's own buffer and lasts until the next call."""
        hidden = self.plans[0](x, out=self.buffers[0])
        return self.plans[1](hidden, residual=x, out=self.buffers[1])

    def plain(self, x: np.ndarray) -> np.ndarray:
        """The same by plain calls."""
        options = {"padding": 1, "activation": "relu"}
        hidden = fastconv.conv2d(x, self.weights[0], scale=self.scales[0], **options)
        return fastconv.conv2d(hidden, self.weights[1], scale=self.scales[1], residual=x, **options)


def main() -> None:
    """Run the network by plans and by plain calls, on one thread and on all."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 3, 64, 64), dtype=np.float32)
    stem = fastconv.plan(
        "conv2d", image, (0.2 * rng.standard_normal((32, 3, 7, 7))).astype(np.float32), stride=2, padding=3
    )
    blocks = [Block(rng, 32, 32) for _ in range(3)]
    head = fastconv.plan("linear", (1, 32), rng.standard_normal((10, 32)).astype(np.float32), np.zeros(10, np.float32))

    def network(planned: bool) -> np.ndarray:
        x = stem(image)
        for block in blocks:
            x = block(x) if planned else block.plain(x)
        return head(x.mean(axis=(2, 3)))

    scores = network(planned=True)
    assert np.array_equal(scores, network(planned=False))
    with fastconv.num_threads(1):
        assert np.array_equal(scores, network(planned=True))
    print("scores", np.array2string(scores[0], precision=3))
    print(stem)
    print(blocks[0].plans[0])
    print(f"packed weights of a block: {sum(plan.packed_bytes for plan in blocks[0].plans)} bytes")


if __name__ == "__main__":
    main()
