"""Layers and networks on `fastconv.functional`, and what trains them: losses, optimisers, schedules, weight files.

    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.GlobalAvgPool2d(keepdims=False), nn.Linear(8, 10))
    loss, optimizer = nn.CrossEntropyLoss(), nn.SGD(net.parameters(), lr=0.1, momentum=0.9)

    value = loss(net(x), target)
    net.backward(loss.backward(), input_grad=False)
    optimizer.step()
    optimizer.zero_grad()

There is no tape: `nn.module` says when a call keeps what its gradient needs. Arrays have PyTorch's axes, (N, C, ...),
and modules, arguments and weights PyTorch's names; the strides of x choose the kernels. Training gives the same bits
for the same seeds, with any number of threads.
"""

from . import (
    activation,
    container,
    conv,
    dropout,
    fusion,
    init,
    linear,
    loss,
    module,
    norm,
    optim,
    pool,
    reshape,
    schedule,
    squeeze,
    weights,
)
from ._summary import Summary, SummaryRow, summary
from .activation import *  # noqa: F403
from .container import *  # noqa: F403
from .conv import *  # noqa: F403
from .dropout import *  # noqa: F403
from .fusion import *  # noqa: F403
from .init import default_generator, manual_seed
from .linear import *  # noqa: F403
from .loss import *  # noqa: F403
from .module import *  # noqa: F403
from .norm import *  # noqa: F403
from .optim import *  # noqa: F403
from .pool import *  # noqa: F403
from .reshape import *  # noqa: F403
from .schedule import *  # noqa: F403
from .squeeze import *  # noqa: F403
from .weights import *  # noqa: F403

__all__ = ["Summary", "SummaryRow", "default_generator", "init", "manual_seed", "summary"]
for _room in (
    activation,
    container,
    conv,
    dropout,
    fusion,
    linear,
    loss,
    module,
    norm,
    optim,
    pool,
    reshape,
    schedule,
    squeeze,
    weights,
):
    __all__ += _room.__all__
