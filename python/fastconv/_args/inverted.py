"""Rules and messages of the inverted residuals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _core, _device
from . import (
    Activation,
    Array,
    Ints,
    Padding,
    Shape,
    _activation,
    _activation_parts,
    _check_array,
    _check_arrays,
    _check_geometry,
    _check_image_rank,
    _check_out,
    _check_shape,
    _check_vector,
    _first_error,
    _join,
    _split,
    conv_spec,
)

shape_of = _device.shape_of

VECTORS = (
    "expand_bias",
    "expand_scale",
    "expand_shift",
    "depthwise_bias",
    "depthwise_scale",
    "depthwise_shift",
    "bias",
    "scale",
    "shift",
)
SQUEEZE = ("se_reduce_weight", "se_reduce_bias", "se_expand_weight", "se_expand_bias")


def _channels(x: object, expand_weight: object, layout: object) -> int:
    """The channels of the depthwise layer; 1 where there are none to count: the call is going to be refused."""
    image = _device.shape_of(x)
    if (weight := _device.shape_of(expand_weight)) is not None:
        shape, axis = weight, 0
    elif image is not None and len(image) in (3, 4):
        shape, axis = image, len(image) - (1 if isinstance(layout, str) and layout.endswith("C") else 3)
    else:
        return 1
    return max(1, shape[axis]) if shape else 1


def specs(
    x: object,
    expand_weight: object,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    padding_mode: str,
    layout: str,
    expand_activation: Activation,
    depthwise_activation: Activation,
    activation: Activation,
) -> tuple[_core.ConvSpec, _core.ConvSpec]:
    """The options of the depthwise layer, whose input activation is that of the expansion, and of the projection."""
    groups = _channels(x, expand_weight, layout)
    options = (2, False, stride, padding, 0, dilation, groups, padding_mode, layout, "auto")
    try:
        spec = conv_spec(*options, depthwise_activation, expand_activation)
    except (TypeError, ValueError):
        # Said with the names that the user knows.
        check_activation("expand_activation", expand_activation)
        check_activation("depthwise_activation", depthwise_activation)
        raise
    return spec, conv_spec(2, False, 1, 0, 0, 1, 1, "zeros", layout, "auto", activation, None)


def _depthwise(
    spec: _core.ConvSpec, geometry: Mapping[str, Any], activation: Activation, input_activation: Activation
) -> _core.ConvSpec:
    stride, padding, dilation = geometry["stride"], geometry["padding"], geometry["dilation"]
    mode, layout = geometry["padding_mode"], geometry["layout"]
    return conv_spec(
        2, False, stride, padding, 0, dilation, spec.groups, mode, layout, "auto", activation, input_activation
    )


def separable_spec(
    spec: _core.ConvSpec, geometry: Mapping[str, Any], depthwise_activation: Activation, activation: Activation
) -> _core.ConvSpec:
    """The options of a layer without an expansion: see `separable.spec`."""
    return _depthwise(spec, geometry, activation, depthwise_activation)


def depthwise_spec(spec: _core.ConvSpec, geometry: Mapping[str, Any], activation: Activation) -> _core.ConvSpec:
    """The options of the depthwise layer alone."""
    return _depthwise(spec, geometry, activation, None)


def check_activation(name: str, value: Activation) -> None:
    """ValueError or TypeError unless it is one."""
    if value is not None:
        _activation(name, _activation_parts(name, value))


def _check_pointwise(name: str, shape: Shape, inputs: int, outputs: int | None = None) -> int:
    """The output channels of a 1x1 weight."""
    first = "out_channels" if outputs is None else str(outputs)
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != (inputs, 1, 1) or shape[0] != (outputs or shape[0]):
        raise ValueError(f"{name} (shape {shape}) must have shape ({first}, {inputs}, 1, 1)")
    return shape[0]


def check(options: _core.ConvSpec, arrays: Mapping[str, object]) -> Shape:
    """All checks of a forward pass; returns the shape of its result."""
    given = {name: value for name, value in arrays.items() if value is not None}
    for name in ("x", "depthwise_weight", "project_weight"):
        given[name] = _check_array(name, arrays[name])
    a = _check_arrays(given)
    x, depthwise = a["x"], a["depthwise_weight"].shape
    _check_image_rank("x", x.shape, options)
    batch, channels, pixels = _split(x.shape, options)
    if channels < 1:
        raise ValueError(f"in_channels (={channels}) must be at least 1")
    expanded = channels
    if "expand_weight" in a:
        expanded = _check_pointwise("expand_weight", a["expand_weight"].shape, channels)
    if len(depthwise) != 4 or depthwise[:2] != (expanded, 1):
        raise ValueError(
            f"depthwise_weight (shape {depthwise}) must have 4 dimensions, ({expanded}, 1, ...): one filter for each "
            f"channel of {'the expansion' if 'expand_weight' in a else 'x'}"
        )
    middle = _check_geometry(options, "x", _join(batch, expanded, pixels, options), depthwise)
    outputs = _check_pointwise("project_weight", a["project_weight"].shape, expanded)
    _, _, sizes = _split(middle, options)
    shape = _join(batch, outputs, sizes, options)
    for name in ("expand_bias", "expand_scale", "expand_shift"):
        if name in a and "expand_weight" not in a:
            raise ValueError(f"{name} (shape {a[name].shape}) must be None where expand_weight is")
        _check_vector(name, a, expanded, "expanded")
    for name in ("depthwise_bias", "depthwise_scale", "depthwise_shift"):
        _check_vector(name, a, expanded, "expanded")
    for name in ("bias", "scale", "shift"):
        _check_vector(name, a, outputs, "output")
    _check_squeeze(a, expanded)
    if "residual" in a:
        _check_shape("residual", a["residual"].shape, shape, "that of the output")
    if "out" in a:
        _check_out(a["out"], shape, a)
    return shape


def _check_squeeze(a: Mapping[str, Array], expanded: int) -> None:
    if "se_reduce_weight" not in a:
        for name in SQUEEZE:
            if name in a:
                raise ValueError(f"{name} (shape {a[name].shape}) must be None where se_reduce_weight is")
        return
    reduced = _check_pointwise("se_reduce_weight", a["se_reduce_weight"].shape, expanded)
    if "se_expand_weight" not in a:
        raise ValueError("se_expand_weight (=None) must be given where se_reduce_weight is")
    _check_pointwise("se_expand_weight", a["se_expand_weight"].shape, reduced, expanded)
    _check_vector("se_reduce_bias", a, reduced, "squeezed")
    _check_vector("se_expand_bias", a, expanded, "expanded")


def check_planned(options: _core.ConvSpec, arrays: Mapping[str, object], planned: Shape) -> Shape:
    """The checks of a plan's call: also that x has the shape that the plan was made for."""
    x = _check_array("x", arrays["x"])
    if x.ndim in (3, 4) and x.shape[-3:] != planned[-3:]:
        raise ValueError(f"x (shape {x.shape}) must have the shape of the plan, {planned}, but for N")
    return check(options, arrays)


def error(
    refusal: _core.Refused, options: _core.ConvSpec, arrays: Mapping[str, Array | None], planned: Shape | None = None
) -> Exception:
    """Why `_core` refused an inverted residual, or the plan of one."""

    def checks() -> Shape:
        return check(options, arrays) if planned is None else check_planned(options, arrays, planned)

    return _first_error(refusal, checks, arrays["x"], "inverted_residual")


def check_backward(options: _core.ConvSpec, dy: object, arrays: Mapping[str, object]) -> None:
    """The checks of the forward pass and that dy has the shape of its result."""
    shape = check(options, arrays)
    given = _check_arrays({"dy": _check_array("dy", dy), "x": arrays["x"]})
    _check_shape("dy", given["dy"].shape, shape, "that of the output")


def shape_of_expansion(x: Array, expand_weight: Array, options: _core.ConvSpec) -> Array:
    """An array of the expansion's shape and dtype, without memory of its own."""
    batch, _, pixels = _split(x.shape, options)
    shape = _join(batch, expand_weight.shape[0], pixels, options)
    return np.broadcast_to(np.zeros((), x.dtype), shape)


def as_pixel(vector: Array, layout: str) -> Array:
    """(N, E), or (E,), as an image of one pixel."""
    batch, channels = vector.shape[:-1], vector.shape[-1]
    return vector.reshape(*batch, 1, 1, channels) if layout.endswith("C") else vector.reshape(*batch, channels, 1, 1)
