"""Convolutions with their weights: see `fastconv.functional.conv` and `separable` for the formulas.

x is (N, C, L), (N, C, H, W) or (N, C, D, H, W), or without N; its strides choose the kernel, and the result is
channels-last in memory where x is. Names, arguments, defaults and initial distributions are PyTorch's; `padding` takes
what functional takes. `rng` draws the initial values: a seed, a numpy.random.Generator, or None for that of
`nn.manual_seed`.

In eval mode a layer holds plans (`fastconv.plan`), by the input's shape and strides, for the last eight of them; a
change of a parameter drops them. They give the bits of the plain call.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .. import _args, functional, runtime
from .._args import Array, Ints, Padding
from ..plan import Plan, plan
from . import init
from .init import Rng
from .module import Module, Parameter, float_dtype, gradients, is_recording, stale

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DepthwiseConv2d",
    "SeparableConv2d",
]

_PLANS = 8
_lock = threading.Lock()


class Planned(Module):
    """A layer that holds plans for calls that are not recorded."""

    _plans: tuple[tuple[int, ...], dict[Any, Plan]]

    def __init__(self) -> None:
        super().__init__()
        self._plans = ((), {})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_plans": ((), {})}

    def _plan(self, versions: tuple[int, ...], key: Any, make: Callable[[], Plan]) -> Plan:
        """The plan of that key, made of parameters of these versions."""
        with _lock:
            held, plans = self._plans
            if held != versions:
                plans = {}
                self._plans = versions, plans
            found = plans.pop(key, None)
            if found is not None:
                plans[key] = found
                return found
        made = make()
        with _lock:
            if self._plans[1] is plans:
                plans[key] = made
                if len(plans) > _PLANS:
                    del plans[next(iter(plans))]
        return made


def _tuple(name: str, value: Ints, rank: int, minimum: int) -> tuple[int, ...]:
    entries: Any = (value,) * rank if isinstance(value, (int, np.integer)) else value
    try:
        checked = tuple(_args.integer(name, entry, value) for entry in entries)
    except TypeError:
        raise TypeError(f"{name} (={value!r}) must be one integer or have one entry a dimension") from None
    if len(checked) != rank:
        raise ValueError(f"{name} (={value}) must be one integer or have one entry for each of the {rank} dimensions")
    for entry in checked:
        if entry < minimum:
            raise ValueError(f"{name} (={value}) must be at least {minimum}")
    return checked


def count(name: str, value: object) -> int:
    """An integer of at least 1."""
    number = _args.integer(name, value)
    if number < 1:
        raise ValueError(f"{name} (={number}) must be at least 1")
    return number


def _padding(padding: Padding, rank: int) -> str | tuple[int | tuple[int, int], ...]:
    if isinstance(padding, str):
        return padding
    if isinstance(padding, (int, np.integer)):
        return (int(padding),) * rank
    entries: list[int | tuple[int, int]] = []
    for entry in padding:
        if isinstance(entry, (int, np.integer)):
            entries.append(int(entry))
        else:
            before, after = entry
            entries.append((int(before), int(after)))
    return tuple(entries)


class _Conv(Planned):
    _rank: ClassVar[int]
    _transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints,
        padding: Padding,
        output_padding: Ints,
        dilation: Ints,
        groups: int,
        bias: bool,
        padding_mode: str,
        dtype: npt.DTypeLike,
        rng: Rng,
    ) -> None:
        super().__init__()
        rank, wanted = self._rank, float_dtype(dtype)
        self.in_channels, self.out_channels = count("in_channels", in_channels), count("out_channels", out_channels)
        self.kernel_size = _tuple("kernel_size", kernel_size, rank, 1)
        # All rules on options by themselves, in the words of a call.
        _args.conv_spec(
            rank,
            self._transposed,
            stride,
            padding,
            output_padding,
            dilation,
            groups,
            padding_mode,
            "NCHW",
            "auto",
            None,
            None,
        )
        self.stride = _tuple("stride", stride, rank, 1)
        self.padding = _padding(padding, rank)
        self.output_padding = _tuple("output_padding", output_padding, rank, 0)
        self.dilation = _tuple("dilation", dilation, rank, 1)
        self.groups = count("groups", groups)
        self.padding_mode = padding_mode
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"groups (={self.groups}) must divide {name} (={channels})")
        first, second = self.out_channels, self.in_channels
        if self._transposed:
            first, second = second, first
        shape = (first, second // self.groups, *self.kernel_size)
        source = init.generator(rng)
        # PyTorch's: kaiming_uniform with a = sqrt(5) is +-1 / sqrt(fan_in), for the bias as for the weight.
        bound = 1.0 / math.sqrt(init.fan(shape))
        self.weight = Parameter(init.uniform(source, bound, shape, wanted))
        self.bias: Parameter | None
        self.register_parameter(
            "bias", Parameter(init.uniform(source, bound, (self.out_channels,), wanted)) if bias else None
        )

    def _options(self) -> dict[str, Any]:
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        if self._transposed:
            return {**options, "output_padding": self.output_padding}
        return {**options, "padding_mode": self.padding_mode}

    @property
    def _op(self) -> str:
        return f"conv{'_transpose' if self._transposed else ''}{self._rank}d"

    def forward(self, x: Array) -> Array:
        """Convolve x (N, C, ...), or without N.

        Raises:
            ValueError, TypeError: as the function of `fastconv.functional`.
        """
        weight, bias = self.weight, self.bias
        b = None if bias is None else bias.data
        rank = self._rank
        if is_recording() or self.training or not isinstance(x, np.ndarray) or x.ndim <= rank or not x.size:
            y: Array = getattr(functional, self._op)(x, weight.data, b, **self._options())
            self.save_for_backward((x, weight.version))
            return y
        key = (
            x.shape[-rank - 1 :],
            x.strides[-rank - 1 :],
            x.dtype,
            runtime.get_isa(),
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )
        versions = (weight.version, -1 if bias is None else bias.version)
        return self._plan(versions, key, lambda: plan(self._op, x, weight.data, b, **self._options()))(x)

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        x, version = self.pop_saved()
        if input_grad:
            stale(self, (version,), (self.weight,))
        function = getattr(functional, f"{self._op}_backward")
        return gradients(function, dy, x, self.weight, self.bias, input_grad, **self._options())

    def extra_repr(self) -> str:
        """As in PyTorch: what is not the default."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding != (0,) * self._rank:
            parts.append(f"padding={self.padding!r}")
        if self.output_padding != (0,) * self._rank:
            parts.append(f"output_padding={self.output_padding}")
        if self.dilation != (1,) * self._rank:
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode!r}")
        return ", ".join(parts)


class _Plain(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            0,
            dilation,
            groups,
            bias,
            padding_mode,
            dtype,
            rng,
        )


class _Transposed(_Conv):
    _transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            dilation,
            groups,
            bias,
            "zeros",
            dtype,
            rng,
        )


class Conv1d(_Plain):
    """1-D convolution: `conv1d`. Its arguments are those of `Conv2d`; weight (K, C/groups, R)."""

    _rank = 1


class Conv2d(_Plain):
    """2-D convolution: `conv2d`.

    Args:
        in_channels: C, channels of x.
        out_channels: K, channels of the result.
        kernel_size: an int or (R, S).
        stride: an int or one a dimension.
        padding: an int, one or a (before, after) pair a dimension, "valid", "same" or "same_lower".
        dilation: an int or one a dimension.
        groups: divides both channel counts.
        bias: whether there is one.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        dtype: float32 or float64.
        rng: where the initial values come from.

    Attributes:
        weight: (K, C/groups, R, S).
        bias: (K,), or None.

    Raises:
        ValueError, TypeError: an argument breaks a rule, which the message names.
    """

    _rank = 2


class Conv3d(_Plain):
    """3-D convolution: `conv3d`. Its arguments are those of `Conv2d`; weight (K, C/groups, T, R, S)."""

    _rank = 3


class ConvTranspose1d(_Transposed):
    """1-D transposed convolution: `conv_transpose1d`. Its arguments are those of `ConvTranspose2d`."""

    _rank = 1


class ConvTranspose2d(_Transposed):
    """2-D transposed convolution: `conv_transpose2d`.

    The arguments are those of `Conv2d`, in PyTorch's order (output_padding, groups, bias, dilation), with
    output_padding: extra length of the result, smaller than stride or dilation. weight is (C, K/groups, R, S).
    """

    _rank = 2


class ConvTranspose3d(_Transposed):
    """3-D transposed convolution: `conv_transpose3d`. Its arguments are those of `ConvTranspose2d`."""

    _rank = 3


class DepthwiseConv2d(Conv2d):
    """A `Conv2d` with a group a channel: `multiplier` filters for each of them. weight (C * multiplier, 1, R, S)."""

    def __init__(
        self,
        in_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        channels, multiplier = count("in_channels", in_channels), count("multiplier", multiplier)
        super().__init__(
            channels,
            channels * multiplier,
            kernel_size,
            stride,
            padding,
            dilation,
            channels,
            bias,
            padding_mode,
            dtype=dtype,
            rng=rng,
        )


class SeparableConv2d(Planned):
    """A depthwise and a pointwise convolution in one pass over memory: `separable_conv2d`.

    The arguments are those of `Conv2d`, of the depthwise half but for out_channels and bias, and the depthwise half's
    multiplier. Its two modules hold the weights: depthwise.weight (C * multiplier, 1, R, S), pointwise.weight
    (K, C * multiplier, 1, 1), pointwise.bias (K,).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__()
        source = init.generator(rng)
        self.depthwise = DepthwiseConv2d(
            in_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            multiplier,
            False,
            padding_mode,
            dtype=dtype,
            rng=source,
        )
        self.pointwise = Conv2d(self.depthwise.out_channels, out_channels, 1, bias=bias, dtype=dtype, rng=source)

    def _options(self) -> dict[str, Any]:
        options = self.depthwise._options()
        del options["groups"]
        return options

    def forward(self, x: Array) -> Array:
        """Convolve x (N, C, H, W), or without N.

        Raises:
            ValueError, TypeError: as `fastconv.functional.separable_conv2d`.
        """
        first, second, bias = self.depthwise.weight, self.pointwise.weight, self.pointwise.bias
        options = self._options()
        operands = (first.data, second.data, None if bias is None else bias.data)
        whole = self.depthwise.out_channels == self.depthwise.in_channels  # plans take no multiplier
        plain = is_recording() or self.training or not whole
        if plain or not isinstance(x, np.ndarray) or x.ndim < 3 or not x.size:
            y = functional.separable_conv2d(x, *operands, **options)
            self.save_for_backward((x, first.version, second.version))
            return y
        key = (x.shape[-3:], x.strides[-3:], x.dtype, runtime.get_isa(), *options.values())
        versions = (first.version, second.version, -1 if bias is None else bias.version)
        return self._plan(versions, key, lambda: plan("separable_conv2d", x, *operands, **options))(x)

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        x, *versions = self.pop_saved()
        first, second = self.depthwise.weight, self.pointwise.weight
        stale(self, versions, (first, second))
        parameters = {"depthwise_weight": first, "pointwise_weight": second, "bias": self.pointwise.bias}
        wanted = {name: p for name, p in parameters.items() if p is not None and p.requires_grad}
        needs = (*(("input",) if input_grad else ()), *wanted)
        if not needs:
            return None
        result = functional.separable_conv2d_backward(dy, x, first.data, second.data, needs=needs, **self._options())
        for name, parameter in wanted.items():
            parameter._accumulate(getattr(result, name))
        return result.input
