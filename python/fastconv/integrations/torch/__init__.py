"""fastconv inside PyTorch: functions (`ops`) and modules (`modules`) by the names of PyTorch's own, and `convert`.

The first two are registered operators: they take part in autograd, `torch.compile`, `torch.func` and autocast, on
tensors in the host's memory and on CUDA devices. `convert` makes whole models, of whoever's modules, run as fused
networks in inference. `fastconv.functional` takes tensors as well, without any of that.
"""

import importlib.util

if importlib.util.find_spec("torch") is None:
    raise ImportError("fastconv.integrations.torch needs PyTorch, which is not installed: pip install torch")

from . import modules, ops
from .convert import Entry, Report, convert, refresh, report
from .modules import *  # noqa: F403
from .ops import *  # noqa: F403

__all__: list[str] = ["Entry", "Report", "convert", "modules", "ops", "refresh", "report"]
__all__ += modules.__all__
__all__ += ops.__all__
