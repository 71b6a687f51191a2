"""Pooling: see `fastconv.functional.pool` for the formulas and the options.

x is (N, C, L), (N, C, H, W) or (N, C, D, H, W), or without N. The gradient of a maximum looks for it again in x: what
is kept is x, which the layer before has kept already, and no indices.
"""

from __future__ import annotations

from typing import Any, ClassVar

from .. import functional
from .._args import Array, Ints, Padding
from .._args import pool as _pool
from .._args.pool import CeilMode, OutputSize
from .conv import _padding, _tuple
from .module import Module, empty_in_order, memory_order

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "GlobalAvgPool1d",
    "GlobalAvgPool2d",
    "GlobalAvgPool3d",
    "GlobalMaxPool1d",
    "GlobalMaxPool2d",
    "GlobalMaxPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
]


class _Pool(Module):
    _rank: ClassVar[int]
    _name: ClassVar[str]
    # What the gradient reads: x, or its shape alone.
    _reads_x: ClassVar[bool] = False

    def _arguments(self) -> tuple[Any, ...]:
        """What functional takes after x."""
        return ()

    def _options(self) -> dict[str, Any]:
        return {}

    def _backward_arguments(self) -> tuple[Any, ...]:
        return self._arguments()

    def forward(self, x: Array) -> Array:
        """Pool x (N, C, ...), or without N.

        Raises:
            ValueError, TypeError: as the function of `fastconv.functional`.
        """
        y: Array = getattr(functional, f"{self._name}{self._rank}d")(x, *self._arguments(), **self._options())
        self.save_for_backward((x if self._reads_x else x.shape, None if x.flags.c_contiguous else memory_order(x)))
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        saved, order = self.pop_saved()
        if not input_grad:
            return None
        options = self._options()
        if order is not None and dy.flags.c_contiguous:
            # A dy of one pixel reads as any order: the layers below want x's.
            options["out"] = empty_in_order(saved.shape if self._reads_x else saved, order, dy.dtype)
        function = getattr(functional, f"{self._name}{self._rank}d_backward")
        dx: Array = function(dy, saved, *self._backward_arguments(), **options)
        return dx

    def extra_repr(self) -> str:
        """Arguments and options."""
        shown = {name: value for name, value in self.__dict__.items() if name[0] != "_" and name != "training"}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class _Window(_Pool):
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    ceil_mode: CeilMode

    def _set_window(self, kernel_size: Ints, stride: Ints | None, ceil_mode: CeilMode) -> None:
        self.kernel_size = _tuple("kernel_size", kernel_size, self._rank, 1)
        self.stride = self.kernel_size if stride is None else _tuple("stride", stride, self._rank, 1)
        self.ceil_mode = ceil_mode


class _Max(_Window):
    _name, _reads_x = "max_pool", True

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        dilation: Ints = 1,
        *,
        ceil_mode: CeilMode = False,
    ) -> None:
        super().__init__()
        rank = self._rank
        _pool.spec(rank, _pool.MAX, kernel_size, stride, padding, dilation, ceil_mode, True, None, 2.0, "NCHW")
        self._set_window(kernel_size, stride, ceil_mode)
        self.padding = _padding(padding, rank)
        self.dilation = _tuple("dilation", dilation, rank, 1)

    def _arguments(self) -> tuple[Any, ...]:
        return (self.kernel_size,)

    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }


class MaxPool1d(_Max):
    """`max_pool1d`; stride None is kernel_size."""

    _rank = 1


class MaxPool2d(_Max):
    """`max_pool2d`; stride None is kernel_size."""

    _rank = 2


class MaxPool3d(_Max):
    """`max_pool3d`; stride None is kernel_size."""

    _rank = 3


class _Average(_Window):
    _name = "avg_pool"

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        ceil_mode: CeilMode = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        rank, counts = self._rank, (count_include_pad, divisor_override)
        _pool.spec(rank, _pool.AVERAGE, kernel_size, stride, padding, 1, ceil_mode, *counts, 2.0, "NCHW")
        self._set_window(kernel_size, stride, ceil_mode)
        self.padding = _padding(padding, rank)
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def _arguments(self) -> tuple[Any, ...]:
        return (self.kernel_size,)

    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
        }


class AvgPool1d(_Average):
    """`avg_pool1d`; stride None is kernel_size."""

    _rank = 1


class AvgPool2d(_Average):
    """`avg_pool2d`; stride None is kernel_size."""

    _rank = 2


class AvgPool3d(_Average):
    """`avg_pool3d`; stride None is kernel_size."""

    _rank = 3


class _LP(_Window):
    _name, _reads_x = "lp_pool", True

    def __init__(
        self, norm_type: float, kernel_size: Ints, stride: Ints | None = None, ceil_mode: CeilMode = False
    ) -> None:
        super().__init__()
        _pool.spec(self._rank, _pool.LP, kernel_size, stride, 0, 1, ceil_mode, True, None, norm_type, "NCHW")
        self.norm_type = norm_type
        self._set_window(kernel_size, stride, ceil_mode)

    def _arguments(self) -> tuple[Any, ...]:
        return (self.norm_type, self.kernel_size)

    def _options(self) -> dict[str, Any]:
        return {"stride": self.stride, "ceil_mode": self.ceil_mode}


class LPPool1d(_LP):
    """`lp_pool1d`; stride None is kernel_size."""

    _rank = 1


class LPPool2d(_LP):
    """`lp_pool2d`; stride None is kernel_size."""

    _rank = 2


class LPPool3d(_LP):
    """`lp_pool3d`; stride None is kernel_size."""

    _rank = 3


class _Adaptive(_Pool):
    def __init__(self, output_size: OutputSize) -> None:
        super().__init__()
        kind = _pool.MAX if self._reads_x else _pool.AVERAGE
        _pool.adaptive_spec(self._rank, kind, output_size, "NCHW")
        self.output_size = output_size

    def _arguments(self) -> tuple[Any, ...]:
        return (self.output_size,)

    def _backward_arguments(self) -> tuple[Any, ...]:
        return ()  # dy has the size


class AdaptiveAvgPool1d(_Adaptive):
    """`adaptive_avg_pool1d`: average pooling to output_size."""

    _rank, _name = 1, "adaptive_avg_pool"


class AdaptiveAvgPool2d(_Adaptive):
    """`adaptive_avg_pool2d`: average pooling to output_size."""

    _rank, _name = 2, "adaptive_avg_pool"


class AdaptiveAvgPool3d(_Adaptive):
    """`adaptive_avg_pool3d`: average pooling to output_size."""

    _rank, _name = 3, "adaptive_avg_pool"


class AdaptiveMaxPool1d(_Adaptive):
    """`adaptive_max_pool1d`: max pooling to output_size."""

    _rank, _name, _reads_x = 1, "adaptive_max_pool", True


class AdaptiveMaxPool2d(_Adaptive):
    """`adaptive_max_pool2d`: max pooling to output_size."""

    _rank, _name, _reads_x = 2, "adaptive_max_pool", True


class AdaptiveMaxPool3d(_Adaptive):
    """`adaptive_max_pool3d`: max pooling to output_size."""

    _rank, _name, _reads_x = 3, "adaptive_max_pool", True


class _Global(_Pool):
    def __init__(self, keepdims: bool = True) -> None:
        super().__init__()
        if not isinstance(keepdims, bool):
            raise TypeError(f"keepdims (={keepdims!r}) must be a bool")
        self.keepdims = keepdims

    def _options(self) -> dict[str, Any]:
        return {"keepdims": self.keepdims}


class GlobalAvgPool1d(_Global):
    """`global_avg_pool1d`: the mean of each image and channel, (N, C, 1), or (N, C) without keepdims."""

    _rank, _name = 1, "global_avg_pool"


class GlobalAvgPool2d(_Global):
    """`global_avg_pool2d`: the mean of each image and channel, (N, C, 1, 1), or (N, C) without keepdims."""

    _rank, _name = 2, "global_avg_pool"


class GlobalAvgPool3d(_Global):
    """`global_avg_pool3d`: the mean of each image and channel, (N, C, 1, 1, 1), or (N, C) without keepdims."""

    _rank, _name = 3, "global_avg_pool"


class GlobalMaxPool1d(_Global):
    """`global_max_pool1d`: the maximum of each image and channel, (N, C, 1), or (N, C) without keepdims."""

    _rank, _name, _reads_x = 1, "global_max_pool", True


class GlobalMaxPool2d(_Global):
    """`global_max_pool2d`: the maximum of each image and channel, (N, C, 1, 1), or (N, C) without keepdims."""

    _rank, _name, _reads_x = 2, "global_max_pool", True


class GlobalMaxPool3d(_Global):
    """`global_max_pool3d`: the maximum of each image and channel, (N, C, 1, 1, 1), or (N, C) without keepdims."""

    _rank, _name, _reads_x = 3, "global_max_pool", True
