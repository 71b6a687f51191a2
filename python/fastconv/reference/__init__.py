"""The functions of `fastconv.functional` in plain NumPy: the same names, signatures and defaults.

In float64 they are the oracle of the tests, in float32 the baseline of the benchmark.
"""

from . import conv, elementwise, inverted, norm, pool, separable
from .conv import *  # noqa: F403
from .elementwise import *  # noqa: F403
from .inverted import *  # noqa: F403
from .norm import *  # noqa: F403
from .pool import *  # noqa: F403
from .separable import *  # noqa: F403

__all__: list[str] = []
__all__ += conv.__all__
__all__ += elementwise.__all__
__all__ += inverted.__all__
__all__ += norm.__all__
__all__ += pool.__all__
__all__ += separable.__all__
