"""A model of PyTorch that was not written for fastconv: converted, timed, trained on, and timed again.

Needs PyTorch, which fastconv itself does not.
"""

import statistics
import time

import torch
from torch import nn

import fastconv
from fastconv.integrations.torch import convert, report


class Block(nn.Module):
    """An inverted residual, as it is written in a hundred repositories."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU())
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.norm = nn.BatchNorm2d(wide)
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X of (N, C, H, W), and what the block adds to it."""
        y = torch.nn.functional.silu(self.norm(self.depthwise(self.expand(x))))
        return x + self.project(y)


def network() -> nn.Module:
    """Ten classes from images (N, 3, H, W)."""
    stem = [nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.SiLU()]
    return nn.Sequential(
        *stem, Block(32, 128), Block(32, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


def milliseconds(models: list[nn.Module], x: torch.Tensor, turns: int) -> list[float]:
    """The median time of a call of each, in turn."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(turns):
            for model, found in zip(models, times, strict=True):
                begin = time.perf_counter()
                model(x)
                found.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(found) for found in times]


def main(turns: int = 30, steps: int = 3) -> None:
    """Convert, compare, train, compare again."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    fastconv.set_num_threads(1)
    model, x = network().eval(), torch.randn(1, 3, 160, 160)
    converted = convert(model)
    for when in ("as it began", "trained"):
        with torch.inference_mode():
            difference = (converted(x) - model(x)).abs().max().item()
        theirs, ours = milliseconds([model, converted], x, turns)
        print(f"{when}: PyTorch {theirs:.2f} ms, converted {ours:.2f} ms, difference {difference:.1e}")
        assert difference < 1e-4
        if when == "trained":
            break
        print(report(converted))
        # Training is PyTorch's; the networks follow the weights.
        optimizer = torch.optim.SGD(converted.parameters(), lr=0.05)
        converted.train()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(converted(torch.randn(8, 3, 64, 64)), torch.randint(10, (8,)))
            loss.backward()
            optimizer.step()
        converted.eval()
        model.load_state_dict(converted.state_dict())


if __name__ == "__main__":
    main()
