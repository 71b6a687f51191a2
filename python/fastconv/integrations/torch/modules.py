"""PyTorch modules over fastconv's operators: those of `torch.nn`, by the same names and constructors.

Each is a subclass of its namesake: the same parameters, state dict, initialisation and `repr`, and `isinstance` holds.
What they compute is `ops`'. Convolutions read their padding, of every mode, where it is, without a padded copy.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from . import ops

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
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "SeparableConv1d",
    "SeparableConv2d",
]


# -------------------------------------------------------------------------------------------------------- convolutions


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d`, computed by `fastconv::conv`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return ops.conv1d(input, weight, bias, *options, padding_mode=self.padding_mode)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, computed by `fastconv::conv`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return ops.conv2d(input, weight, bias, *options, padding_mode=self.padding_mode)


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d`, computed by `fastconv::conv`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return ops.conv3d(input, weight, bias, *options, padding_mode=self.padding_mode)


def _transposed(module: Any, function: Any, rank: int, input: Tensor, output_size: Any) -> Tensor:
    extra = module.output_padding
    if output_size is not None:
        sizes = (module.stride, module.padding, module.kernel_size)
        extra = module._output_padding(input, output_size, *sizes, rank, module.dilation)
    options = (module.stride, module.padding, extra, module.groups, module.dilation)
    y: Tensor = function(input, module.weight, module.bias, *options)
    return y


class ConvTranspose1d(nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d`, computed by `fastconv::conv_transpose`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As `torch.nn.ConvTranspose1d.forward`."""
        return _transposed(self, ops.conv_transpose1d, 1, input, output_size)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, computed by `fastconv::conv_transpose`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As `torch.nn.ConvTranspose2d.forward`."""
        return _transposed(self, ops.conv_transpose2d, 2, input, output_size)


class ConvTranspose3d(nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d`, computed by `fastconv::conv_transpose`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As `torch.nn.ConvTranspose3d.forward`."""
        return _transposed(self, ops.conv_transpose3d, 3, input, output_size)


class _SeparableConv(nn.Module):
    """A depthwise and a pointwise convolution, run as one: the intermediate never reaches memory."""

    depthwise: Any
    pointwise: Any

    def _make(
        self,
        conv: Any,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        depth_multiplier: int,
        bias: bool,
        depthwise_bias: bool,
        options: dict[str, Any],
        factory: dict[str, Any],
    ) -> None:
        middle = in_channels * depth_multiplier
        self.depthwise = conv(
            in_channels, middle, kernel_size, groups=in_channels, bias=depthwise_bias, **options, **factory
        )
        self.pointwise = conv(middle, out_channels, 1, bias=bias, **factory)

    def _run(self, function: Any, input: Tensor) -> Tensor:
        d, p = self.depthwise, self.pointwise
        y: Tensor = function(
            input,
            d.weight,
            p.weight,
            p.bias,
            d.stride,
            d.padding,
            d.dilation,
            depthwise_bias=d.bias,
            padding_mode=d.padding_mode,
        )
        return y


class SeparableConv1d(_SeparableConv):
    """1-D depthwise-separable convolution: see `SeparableConv2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        depth_multiplier: int = 1,
        depthwise_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
        factory = {"device": device, "dtype": dtype}
        sizes = (in_channels, out_channels, kernel_size, depth_multiplier)
        self._make(Conv1d, *sizes, bias, depthwise_bias, options, factory)

    def forward(self, input: Tensor) -> Tensor:
        """Of input (N, C, L)."""
        return self._run(ops.separable_conv1d, input)


class SeparableConv2d(_SeparableConv):
    """2-D depthwise-separable convolution, by `fastconv::separable_conv`.

    Its children `depthwise` and `pointwise` are convolutions that hold the parameters, and may be called alone; the
    call of the module reads their parameters and options only.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: of the depthwise half, and so stride, padding, dilation and padding_mode.
        stride: see kernel_size.
        padding: see kernel_size.
        dilation: see kernel_size.
        bias: whether the pointwise half has one.
        padding_mode: see kernel_size.
        depth_multiplier: channels of the intermediate for each of the input.
        depthwise_bias: whether the depthwise half has a bias.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        depth_multiplier: int = 1,
        depthwise_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
        factory = {"device": device, "dtype": dtype}
        sizes = (in_channels, out_channels, kernel_size, depth_multiplier)
        self._make(Conv2d, *sizes, bias, depthwise_bias, options, factory)

    def forward(self, input: Tensor) -> Tensor:
        """Of input (N, C, H, W)."""
        return self._run(ops.separable_conv2d, input)


# ------------------------------------------------------------------------------------------------------------- pooling


def _max(module: Any, function: Any, input: Tensor) -> Any:
    options = (module.stride, module.padding, module.dilation, module.ceil_mode, module.return_indices)
    return function(input, module.kernel_size, *options)


class MaxPool1d(nn.MaxPool1d):
    """`torch.nn.MaxPool1d`, computed by `fastconv::max_pool`."""

    def forward(self, input: Tensor) -> Any:
        """As `torch.nn.MaxPool1d.forward`."""
        return _max(self, ops.max_pool1d, input)


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, computed by `fastconv::max_pool`."""

    def forward(self, input: Tensor) -> Any:
        """As `torch.nn.MaxPool2d.forward`."""
        return _max(self, ops.max_pool2d, input)


class MaxPool3d(nn.MaxPool3d):
    """`torch.nn.MaxPool3d`, computed by `fastconv::max_pool`."""

    def forward(self, input: Tensor) -> Any:
        """As `torch.nn.MaxPool3d.forward`."""
        return _max(self, ops.max_pool3d, input)


class AvgPool1d(nn.AvgPool1d):
    """`torch.nn.AvgPool1d`, computed by `fastconv::avg_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.AvgPool1d.forward`."""
        options = (self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        return ops.avg_pool1d(input, self.kernel_size, *options)


class AvgPool2d(nn.AvgPool2d):
    """`torch.nn.AvgPool2d`, computed by `fastconv::avg_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.AvgPool2d.forward`."""
        options = (self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override)
        return ops.avg_pool2d(input, self.kernel_size, *options)


class AvgPool3d(nn.AvgPool3d):
    """`torch.nn.AvgPool3d`, computed by `fastconv::avg_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.AvgPool3d.forward`."""
        options = (self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override)
        return ops.avg_pool3d(input, self.kernel_size, *options)


class LPPool1d(nn.LPPool1d):
    """`torch.nn.LPPool1d`, computed by `fastconv::lp_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.LPPool1d.forward`."""
        return ops.lp_pool1d(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(nn.LPPool2d):
    """`torch.nn.LPPool2d`, computed by `fastconv::lp_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.LPPool2d.forward`."""
        return ops.lp_pool2d(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(nn.LPPool3d):
    """`torch.nn.LPPool3d`, computed by `fastconv::lp_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.LPPool3d.forward`."""
        return ops.lp_pool3d(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)


class AdaptiveAvgPool1d(nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d`, computed by `fastconv::adaptive_avg_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.AdaptiveAvgPool1d.forward`."""
        return ops.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d`, computed by `fastconv::adaptive_avg_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.AdaptiveAvgPool2d.forward`."""
        return ops.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(nn.AdaptiveAvgPool3d):
    """`torch.nn.AdaptiveAvgPool3d`, computed by `fastconv::adaptive_avg_pool`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.AdaptiveAvgPool3d.forward`."""
        return ops.adaptive_avg_pool3d(input, self.output_size)


class AdaptiveMaxPool1d(nn.AdaptiveMaxPool1d):
    """`torch.nn.AdaptiveMaxPool1d`, computed by `fastconv::adaptive_max_pool`."""

    def forward(self, input: Tensor) -> Any:
        """As `torch.nn.AdaptiveMaxPool1d.forward`."""
        return ops.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d`, computed by `fastconv::adaptive_max_pool`."""

    def forward(self, input: Tensor) -> Any:
        """As `torch.nn.AdaptiveMaxPool2d.forward`."""
        return ops.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(nn.AdaptiveMaxPool3d):
    """`torch.nn.AdaptiveMaxPool3d`, computed by `fastconv::adaptive_max_pool`."""

    def forward(self, input: Tensor) -> Any:
        """As `torch.nn.AdaptiveMaxPool3d.forward`."""
        return ops.adaptive_max_pool3d(input, self.output_size, self.return_indices)


# ---------------------------------------------------------------------------------------------------------- batch norm


def _normalised(module: Any, input: Any) -> Tensor:
    """What `torch.nn.BatchNorm*.forward` does about its buffers, around the operator."""
    if not isinstance(input, fx.Proxy):  # of a symbolic trace, which has no dimensions yet
        module._check_input_dim(input)
    factor = 0.0 if module.momentum is None else module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # a cumulative average
            factor = 1.0 / float(module.num_batches_tracked)
    batch = module.training or (module.running_mean is None and module.running_var is None)
    running = not module.training or module.track_running_stats
    return ops.batch_norm(
        input,
        module.running_mean if running else None,
        module.running_var if running else None,
        module.weight,
        module.bias,
        batch,
        factor,
        module.eps,
    )


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by `fastconv::batch_norm` and `fastconv::batch_norm_train`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.BatchNorm1d.forward`."""
        return _normalised(self, input)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by `fastconv::batch_norm` and `fastconv::batch_norm_train`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.BatchNorm2d.forward`."""
        return _normalised(self, input)


class BatchNorm3d(nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by `fastconv::batch_norm` and `fastconv::batch_norm_train`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.BatchNorm3d.forward`."""
        return _normalised(self, input)
