"""A small network learns handwritten digits, and is judged by images that it has never seen.

Needs scikit-learn, in which the digits ship: pip install "fastconv[train]". `python -m fastconv train` does the same
with a progress bar, checkpoints and a picture of what was learned.
"""

import time

import numpy as np

import fastconv
from fastconv import data, nn, training


def network(rng: np.random.Generator) -> nn.Sequential:
    """Four 3x3 convolutions with batch norms, halved once; a mean over all places and a dense layer end it."""
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(after), nn.ReLU()]
        if (before, after) == (32, 32):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.GlobalAvgPool2d(keepdims=False), nn.Linear(64, 10, rng=rng))


class Print(training.Callback):
    """A line for each epoch."""

    def on_epoch_end(self, epoch: training.Epoch) -> None:
        """Print it."""
        print(
            f"epoch {epoch.number:2}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.2%}  "
            f"held out: loss {epoch.held_out_loss:.4f}  accuracy {epoch.held_out_accuracy:.2%}"
        )


def main(epochs: int = 30, seed: int = 0) -> float:
    """Train, and give the share of the test's images that are right."""
    images, labels = data.digits()
    # A fifth for the test; an eighth of the rest decides which epoch's weights are kept, and when to stop.
    test, rest = data.stratified_split(labels, 0.2, seed)
    held_out, train = (rest[part] for part in data.stratified_split(labels[rest], 0.125, seed))

    net = network(np.random.default_rng(seed))
    optimizer = nn.AdamW(net.parameters(), lr=3e-3)
    steps = epochs * -(-len(train) // 64)
    begin = time.perf_counter()
    result = training.fit(
        net,
        optimizer,
        (images[train], labels[train]),
        (images[held_out], labels[held_out]),
        epochs=epochs,
        batch_size=64,
        augment=data.Augment(shift=1, rotation=12, zoom=0.12, noise=0.05),  # a mirrored digit is none: no flips
        schedule=nn.OneCycleLR(optimizer, 3e-3, steps),
        patience=10,
        seed=seed,
        callbacks=[Print()],
    )
    seconds = time.perf_counter() - begin
    assert result.best is not None
    print(f"{seconds:.1f} s on {fastconv.get_num_threads()} thread(s); the weights of epoch {result.best.number}")

    # For use: norms and activations inside the convolutions, every layer planned.
    found = nn.fuse(net)(images[test]).argmax(axis=1)
    right = float(np.mean(found == labels[test]))
    print(f"test: {right:.2%} of {len(test)} right")
    for index in test[found != labels[test]]:
        print(f"  image {index} is a {labels[index]}, taken for a {found[test == index][0]}")
    return right


if __name__ == "__main__":
    main()
