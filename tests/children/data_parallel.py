"""One of several processes that train a converted model together: prints its losses, then what the model gives.

Arguments: the rank, the number of processes, a file where they meet.
"""

import json
import sys

import torch
from torch import distributed, nn

from fastconv.integrations.torch import convert, report

STEPS = 4


def network():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 32, 5, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, groups=32), nn.ReLU()]
    return nn.Sequential(*body, nn.Conv2d(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


def train(rank=0, world=1):
    """Losses of each step on this process's share of the batch; the whole batch's results after the last."""
    model = convert(network())
    trained = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    draws = torch.Generator().manual_seed(1)
    losses, states = [], set()
    for _ in range(STEPS):
        x, labels = torch.randn(8, 3, 64, 64, generator=draws), torch.randint(5, (8,), generator=draws)
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        trained.train()
        loss = nn.functional.cross_entropy(trained(x[mine]), labels[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        trained.eval()
        with torch.no_grad():
            seen = trained(x)
        states.add(report(model).entries[0].state)
    return {"losses": losses, "seen": seen.tolist(), "states": sorted(states)}


def main():
    torch.set_num_threads(1)
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    distributed.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world)
    print(json.dumps(train(rank, world)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
