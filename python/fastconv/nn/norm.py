"""Normalisation: see `fastconv.functional.norm` for the formulas. Names, defaults and conventions are PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .. import functional
from .._args import Array
from .._args import norm as _norm
from .conv import count
from .module import Module, Parameter, float_dtype, is_recording, stale

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNormChannels",
    "LocalResponseNorm",
]


class _Affine(Module):
    """A norm with a weight and a bias, or None for them."""

    weight: Parameter | None
    bias: Parameter | None
    eps: float

    def _set_affine(self, shape: tuple[int, ...], weight: bool, bias: bool, eps: float, dtype: npt.DTypeLike) -> None:
        wanted = float_dtype(dtype)
        if isinstance(eps, bool) or not isinstance(eps, (int, float, np.floating)):
            raise TypeError(f"eps (={eps!r}) must be a number")
        if not eps >= 0:
            raise ValueError(f"eps (={eps}) must not be negative")
        self.eps = float(eps)
        self.register_parameter("weight", Parameter(np.ones(shape, wanted)) if weight else None)
        self.register_parameter("bias", Parameter(np.zeros(shape, wanted)) if bias else None)

    def _operands(self) -> tuple[Array | None, Array | None]:
        weight, bias = self.weight, self.bias
        return None if weight is None else weight.data, None if bias is None else bias.data

    def _keep_version(self) -> int:
        return -1 if self.weight is None else self.weight.version

    def _needs(self, version: int, input_grad: bool) -> tuple[str, ...]:
        if input_grad and self.weight is not None:
            stale(self, (version,), (self.weight,))
        parameters = {"weight": self.weight, "bias": self.bias}
        wanted = (name for name, p in parameters.items() if p is not None and p.requires_grad)
        return (*(("input",) if input_grad else ()), *wanted)

    def _take(self, result: functional.norm.NormGradients) -> Array | None:
        for parameter, gradient in ((self.weight, result.weight), (self.bias, result.bias)):
            if parameter is not None and gradient is not None:
                parameter._accumulate(gradient)
        return result.input


class _BatchNorm(_Affine):
    _ndims: ClassVar[tuple[int, ...]]
    running_mean: Array | None
    running_var: Array | None
    num_batches_tracked: Array | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.num_features = count("num_features", num_features)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum (={momentum}) must be None or from 0 to 1")
        self.momentum, self.affine, self.track_running_stats = momentum, affine, track_running_stats
        self._set_affine((self.num_features,), affine, affine, eps, dtype)
        wanted = float_dtype(dtype)
        self.register_buffer("running_mean", np.zeros(num_features, wanted) if track_running_stats else None)
        self.register_buffer("running_var", np.ones(num_features, wanted) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if track_running_stats else None)

    def forward(self, x: Array) -> Array:
        """Normalise x (N, C, ...): by the batch's statistics in training mode, or where none are tracked.

        Raises:
            ValueError, TypeError: as `fastconv.functional.batch_norm`; the number of dimensions is not the layer's.
        """
        if isinstance(x, np.ndarray) and x.ndim not in self._ndims:
            ranks = " or ".join(map(str, self._ndims))
            raise ValueError(f"x (shape {x.shape}) must have {ranks} dimensions in {type(self).__name__}")
        weight, bias = self._operands()
        mean, var = self.running_mean, self.running_var
        if self.training or mean is None or var is None:
            batches, factor = self.num_batches_tracked, self.momentum
            if not self.training or batches is None:
                mean = var = None
            elif factor is None:
                factor = 1.0 / (int(batches) + 1)
            result = functional.batch_norm_train(
                x, mean, var, weight, bias, momentum=0.1 if factor is None else factor, eps=self.eps
            )
            if self.training and batches is not None:
                batches += 1
            self.save_for_backward((x, result.mean, result.inv_std, True, self._keep_version()))
            return result.y
        y = functional.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        if is_recording():
            inv_std = (1.0 / np.sqrt(var.astype(np.float64) + self.eps)).astype(var.dtype)
            self.save_for_backward((x, mean.copy(), inv_std, False, self._keep_version()))
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        x, mean, inv_std, training, version = self.pop_saved()
        needs = self._needs(version, input_grad)
        if not needs:
            return None
        weight, _ = self._operands()
        return self._take(functional.batch_norm_backward(dy, x, weight, mean, inv_std, training=training, needs=needs))

    def extra_repr(self) -> str:
        """As in PyTorch."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """`batch_norm` of x (N, C) or (N, C, L). Its arguments are those of `BatchNorm2d`."""

    _ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """`batch_norm` of x (N, C, H, W).

    Args:
        num_features: C.
        eps: is added to the variance.
        momentum: running = (1 - momentum) * running + momentum * batch; None: the mean over all batches so far.
        affine: whether there are weight and bias.
        track_running_stats: whether there are running statistics; without them the batch's serve in eval mode, too.
        dtype: float32 or float64.

    Attributes:
        weight, bias: (C,), or None.
        running_mean, running_var: buffers, (C,), or None.
        num_batches_tracked: a buffer, int64, or None.
    """

    _ndims = (4,)


class BatchNorm3d(_BatchNorm):
    """`batch_norm` of x (N, C, D, H, W). Its arguments are those of `BatchNorm2d`."""

    _ndims = (5,)


class _Direct(_Affine):
    """A norm whose gradient computes the statistics again."""

    _name: ClassVar[str]

    def _arguments(self) -> tuple[Any, ...]:
        return ()

    def _check(self, x: Array) -> None:
        """Rules of the layer beyond the function's."""

    def forward(self, x: Array) -> Array:
        """Normalise x.

        Raises:
            ValueError, TypeError: as the function of `fastconv.functional`.
        """
        self._check(x)
        y: Array = getattr(functional, self._name)(x, *self._arguments(), *self._operands(), self.eps)
        self.save_for_backward((x, self._keep_version()))
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        x, version = self.pop_saved()
        needs = self._needs(version, input_grad)
        if not needs:
            return None
        function = getattr(functional, f"{self._name}_backward")
        weight, _ = self._operands()
        return self._take(function(dy, x, *self._arguments(), weight, self.eps, needs=needs))


class GroupNorm(_Direct):
    """`group_norm` of x (N, C, ...): num_groups divides C = num_channels."""

    _name = "group_norm"

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.num_groups, self.num_channels = count("num_groups", num_groups), count("num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ValueError(f"num_groups (={num_groups}) must divide num_channels (={num_channels})")
        self.affine = affine
        self._set_affine((self.num_channels,), affine, affine, eps, dtype)

    def _arguments(self) -> tuple[Any, ...]:
        return (self.num_groups,)

    def extra_repr(self) -> str:
        """As in PyTorch."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class _InstanceNorm(_Direct):
    _name = "instance_norm"
    _ndim: ClassVar[int]

    def __init__(
        self, num_features: int, eps: float = 1e-5, affine: bool = False, *, dtype: npt.DTypeLike = np.float32
    ) -> None:
        super().__init__()
        self.num_features, self.affine = count("num_features", num_features), affine
        self._set_affine((self.num_features,), affine, affine, eps, dtype)

    def _check(self, x: Array) -> None:
        if isinstance(x, np.ndarray) and (x.ndim != self._ndim or x.shape[1] != self.num_features):
            raise ValueError(
                f"x (shape {x.shape}) must have {self._ndim} dimensions and {self.num_features} channels "
                f"in {type(self).__name__}"
            )

    def extra_repr(self) -> str:
        """As in PyTorch."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


class InstanceNorm1d(_InstanceNorm):
    """`instance_norm` of x (N, C, L), without running statistics."""

    _ndim = 3


class InstanceNorm2d(_InstanceNorm):
    """`instance_norm` of x (N, C, H, W), without running statistics."""

    _ndim = 4


class InstanceNorm3d(_InstanceNorm):
    """`instance_norm` of x (N, C, D, H, W), without running statistics."""

    _ndim = 5


class LayerNorm(_Direct):
    """`layer_norm` over the trailing axes of x, of the shape normalized_shape, which weight and bias have."""

    _name = "layer_norm"

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.normalized_shape = tuple(_norm.trailing_shape(normalized_shape))
        self.elementwise_affine = elementwise_affine
        self._set_affine(self.normalized_shape, elementwise_affine, elementwise_affine and bias, eps, dtype)

    def _arguments(self) -> tuple[Any, ...]:
        return (self.normalized_shape,)

    def extra_repr(self) -> str:
        """As in PyTorch."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class LayerNormChannels(_Direct):
    """`layer_norm_channels`: over the channels of each pixel of x (N, C, ...), as in ConvNeXt."""

    _name = "layer_norm_channels"

    def __init__(
        self, num_channels: int, eps: float = 1e-6, affine: bool = True, *, dtype: npt.DTypeLike = np.float32
    ) -> None:
        super().__init__()
        self.num_channels, self.affine = count("num_channels", num_channels), affine
        self._set_affine((self.num_channels,), affine, affine, eps, dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"


class LocalResponseNorm(Module):
    """`local_response_norm` over `size` neighbouring channels: x / (k + alpha / size * sum of x^2)^beta."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = count("size", size), alpha, beta, k

    def forward(self, x: Array) -> Array:
        """Normalise x (N, C, ...).

        Raises:
            ValueError, TypeError: as `fastconv.functional.local_response_norm`.
        """
        y = functional.local_response_norm(x, self.size, self.alpha, self.beta, self.k)
        self.save_for_backward(x)
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        x = self.pop_saved()
        if not input_grad:
            return None
        return functional.local_response_norm_backward(dy, x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """As in PyTorch."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
