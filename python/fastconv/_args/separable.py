"""Rules and messages of the depthwise-separable layers."""

from __future__ import annotations

from collections.abc import Mapping

from .. import _core, _device
from . import (
    Activation,
    Array,
    Ints,
    Padding,
    Shape,
    _check_array,
    _check_arrays,
    _check_geometry,
    _check_image_rank,
    _check_out,
    _check_shape,
    _check_vector,
    _first_error,
    _split,
    conv_spec,
)


def spec(
    rank: int,
    x: object,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    padding_mode: str,
    layout: str,
    depthwise_activation: Activation,
    activation: Activation,
) -> _core.ConvSpec:
    """The options as those of the depthwise half; its input activation is the one between the halves.

    The groups are the channels of x; where that has none to count, the call is going to be refused.
    """
    groups = 1
    shape = _device.shape_of(x)
    if shape is not None and len(shape) in (rank + 1, rank + 2):
        last = isinstance(layout, str) and layout.endswith("C")
        groups = max(1, shape[-1 if last else len(shape) - rank - 1])
    return conv_spec(
        rank,
        False,
        stride,
        padding,
        0,
        dilation,
        groups,
        padding_mode,
        layout,
        "auto",
        activation,
        depthwise_activation,
    )


def check(options: _core.ConvSpec, arrays: Mapping[str, object]) -> Shape:
    """All checks of a forward pass; returns the shape of its result."""
    for name in ("x", "depthwise_weight", "pointwise_weight"):
        _check_array(name, arrays[name])
    a = _check_arrays(arrays)
    x, depthwise, pointwise = a["x"], a["depthwise_weight"].shape, a["pointwise_weight"].shape
    rank = options.spatial
    _check_image_rank("x", x.shape, options)
    channels = _split(x.shape, options)[1]
    if channels < 1:
        raise ValueError(f"in_channels (={channels}) must be at least 1")
    if len(depthwise) != rank + 2 or depthwise[1] != 1 or depthwise[0] < 1 or depthwise[0] % channels:
        raise ValueError(
            f"depthwise_weight (shape {depthwise}) must have {rank + 2} dimensions, (in_channels * multiplier, 1, ...) "
            f"with in_channels (={channels})"
        )
    middle = _check_geometry(options, "x", x.shape, depthwise)
    if len(pointwise) != rank + 2 or pointwise[1] != depthwise[0] or any(n != 1 for n in pointwise[2:]):
        raise ValueError(
            f"pointwise_weight (shape {pointwise}) must have shape (out_channels, {depthwise[0]}{', 1' * rank})"
        )
    if pointwise[0] < 1:
        raise ValueError(f"pointwise_weight (shape {pointwise}) must have at least one entry in every dimension")
    axis = len(middle) - 1 if options.channels_last else len(middle) - rank - 1
    shape = (*middle[:axis], pointwise[0], *middle[axis + 1 :])
    for name in ("depthwise_bias", "depthwise_scale", "depthwise_shift"):
        _check_vector(name, a, depthwise[0], "intermediate")
    for name in ("bias", "scale", "shift"):
        _check_vector(name, a, pointwise[0], "output")
    if "residual" in a:
        _check_shape("residual", a["residual"].shape, shape, "that of the output")
    if "out" in a:
        _check_out(a["out"], shape, a)
    return shape


def error(refusal: _core.Refused, options: _core.ConvSpec, arrays: Mapping[str, Array | None]) -> Exception:
    """Why `_core` refused a separable layer."""
    what = f"separable_conv{options.spatial}d"
    return _first_error(refusal, lambda: check(options, arrays), arrays["x"], what)


def check_backward(
    options: _core.ConvSpec, dy: object, x: object, depthwise_weight: object, pointwise_weight: object
) -> None:
    """The checks of the forward pass and that dy has the shape of its result."""
    operands = {"x": x, "depthwise_weight": depthwise_weight, "pointwise_weight": pointwise_weight}
    shape = check(options, operands)
    given = _check_arrays({"dy": _check_array("dy", dy), **operands})
    _check_shape("dy", given["dy"].shape, shape, "that of the output")
