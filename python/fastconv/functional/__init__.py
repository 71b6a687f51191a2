"""Pure functions on arrays, forward and backward: convolution and the dense layer (`conv`),
depthwise-separable layers (`separable`), inverted residuals (`inverted`), pooling (`pool`), normalisation (`norm`),
functions of single elements and softmax (`elementwise`).

**Arrays** are `numpy.ndarray` of float32 or float64, in native byte order, and all of one dtype in a call. Any strides
are read in place; nothing is copied or converted. The result is a new array, channels-last in memory where the first
operand is (C-contiguous where that reads both ways), or `out` where it is given: it must have the result's shape and
dtype, be writable and not overlap what is read. A call that raises has not written to `out`;
only one that is interrupted (KeyboardInterrupt) leaves it unspecified.

Where a function says `numpy.ndarray` it takes tensors of PyTorch, arrays of JAX and whatever has `__dlpack__` as well,
in the host's memory or on a CUDA device (`fastconv.cuda`), and reads them where they are. The first array among the
arguments decides what the results are: of PyTorch's a `torch.Tensor`, of JAX's a `jax.Array`, of any other library in
the host's memory a `numpy.ndarray`. NumPy arrays go with those of one other library. A tensor that requires grad is
refused while gradients are recorded; JAX's arrays cannot be `out`. docs/interop.md has the rest.

**Errors**: TypeError for types and dtypes, ValueError for values and shapes, MemoryError where the result does not fit;
each names the argument, its value and the rule.
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
