"""A network that knows the digits 0 to 4 learns 5 to 9: first a new head alone, then the upper layers with it.

Frozen layers cost no backward pass and keep their bits, those of the norms' statistics among them. What is shown is the
way, not a gain: images as small as these are learned as well from nothing.

Needs scikit-learn, in which the digits ship: pip install "fastconv[train]".
"""

import time

import numpy as np

from fastconv import data, nn, training

BATCH = 64


def block(before: int, after: int, rng: np.random.Generator) -> nn.Sequential:
    """A 3x3 convolution, its norm and activation."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(after), nn.ReLU())


def head(rng: np.random.Generator) -> nn.Sequential:
    """From the base's maps, 48 of 4x4, to five classes."""
    return nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 5, rng=rng))


def unchanged(before: dict[str, np.ndarray], module: nn.Module) -> list[str]:
    """The names of the arrays that have kept their bits."""
    return [name for name, array in module.state_dict().items() if np.array_equal(before[name], array)]


def main(base_epochs: int = 12, head_epochs: int = 20, top_epochs: int = 20) -> dict[str, float]:
    """Learn a base, a head and the top; gives the accuracies on images that were in no training."""
    images, labels = data.digits()
    test, train = data.stratified_split(labels, 0.3, seed=0)
    rng = np.random.default_rng(0)
    base = nn.Sequential(block(1, 24, rng), block(24, 24, rng), nn.MaxPool2d(2), block(24, 48, rng), block(48, 48, rng))
    accuracy: dict[str, float] = {}

    def learn(name: str, net: nn.Module, rates: list[tuple[nn.Module, float]], digits: range, epochs: int) -> None:
        """Train the modules at their rates, which fall to 0 by a cosine, and judge the network."""
        own, others = (part[np.isin(labels[part], digits)] for part in (train, test))
        optimizer = nn.AdamW([{"params": module.parameters(), "lr": rate} for module, rate in rates])
        begin = time.perf_counter()
        training.fit(
            net,
            optimizer,
            (images[own], labels[own] - digits[0]),
            epochs=epochs,
            batch_size=BATCH,
            augment=data.Augment(shift=1, rotation=12, zoom=0.12, noise=0.05),
            schedule=nn.CosineAnnealingLR(optimizer, epochs * -(-len(own) // BATCH)),
        )
        took = (time.perf_counter() - begin) / max(epochs, 1)
        accuracy[name] = training.evaluate(net, (images[others], labels[others] - digits[0]))[1]
        print(f"{name:<32} {accuracy[name]:7.2%} of {len(others)} test images; {1000 * took:.0f} ms an epoch")

    net = nn.Sequential(base, head(rng))
    learn("0 to 4: all layers", net, [(net, 3e-3)], range(5), base_epochs)

    base.freeze()
    before = base.state_dict()
    net = nn.Sequential(base, head(rng))
    learn("5 to 9: a new head alone", net, [(net[-1], 1e-2)], range(5, 10), head_epochs)
    assert unchanged(before, base) == list(before)

    top = base[-1]
    top.freeze(False)
    learn("5 to 9: the last block with it", net, [(top, 1e-3), (net[-1], 3e-3)], range(5, 10), top_epochs)
    kept = unchanged(before, base)
    assert kept == [name for name in before if not name.startswith("4.")]
    print(f"{len(kept)} of the base's {len(before)} arrays have kept their bits: all but the last block's")
    return accuracy


if __name__ == "__main__":
    main()
