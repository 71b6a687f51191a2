"""Hand-written convolution kernels for NumPy arrays: fastconv.conv2d(x, weight, bias, padding=1) and its relatives.

`fastconv.functional` holds the functions, forward and backward; `fastconv.plan` prepares a layer once,
`fastconv.explain` says how a call is computed, and `fastconv.reference` computes the same in plain NumPy.
`fastconv.nn` has layers and networks, `fastconv.models` architectures, `fastconv.training` trains them, and
`fastconv.data` reads and changes pictures.
"""

from types import ModuleType
from typing import TYPE_CHECKING

from . import _core

if (_reason := _core.isa_environment_error()) is not None:
    raise ImportError(f"fastconv cannot run: {_reason}")

from . import cuda, functional, tuning
from .explanation import Explanation, explain
from .functional.conv import *  # noqa: F403
from .functional.elementwise import *  # noqa: F403
from .functional.inverted import *  # noqa: F403
from .functional.norm import *  # noqa: F403
from .functional.pool import *  # noqa: F403
from .functional.separable import *  # noqa: F403
from .plan import InvertedResidualPlan, Plan, SeparablePlan, plan
from .runtime import (
    available_isas,
    cache_info,
    clear_cache,
    flush_denormals,
    get_isa,
    get_num_threads,
    isa,
    num_threads,
    set_cache_limit,
    set_isa,
    set_num_threads,
    show_config,
    workspace_info,
)
from .tuning import TuneFileError, clear_tune_file, load_tune_file

if TYPE_CHECKING:
    from . import data, models, nn, training

tuning._load_named()

__version__: str = _core.build_info()["version"]

__all__ = [
    "Explanation",
    "InvertedResidualPlan",
    "Plan",
    "SeparablePlan",
    "TuneFileError",
    "available_isas",
    "cache_info",
    "clear_cache",
    "clear_tune_file",
    "cuda",
    "data",
    "explain",
    "flush_denormals",
    "functional",
    "get_isa",
    "get_num_threads",
    "isa",
    "load_tune_file",
    "models",
    "nn",
    "num_threads",
    "plan",
    "set_cache_limit",
    "set_isa",
    "set_num_threads",
    "show_config",
    "training",
    "tuning",
    "workspace_info",
]
__all__ += functional.__all__


def __getattr__(name: str) -> ModuleType:
    # Who calls functions alone does not wait for the import of layers.
    if name in ("data", "models", "nn", "training"):
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
