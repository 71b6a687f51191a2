"""Inverted residuals, forward and backward: a 1x1 expansion, a filter for each channel, a 1x1 projection.

    e = expand_activation(expand_scale * (conv(x, expand_weight) + expand_bias) + expand_shift)
    u = depthwise_activation(depthwise_scale * (conv(e, depthwise_weight) + depthwise_bias) + depthwise_shift)
    y = activation(scale * (conv(u, project_weight) + bias) + shift + residual)

e exists some rows at a time, in the cache, and u a block of pixels at a time; the bits are those of three calls. With
squeeze-excite u is kept once, and the projection reads it multiplied by

    g = se_gate(conv(se_activation(conv(mean of u over its pixels, se_reduce_weight) + se_reduce_bias),
                     se_expand_weight) + se_expand_bias)

The gradients are those of the plain layer, without vectors, activations and squeeze-excite; they compute e and u again.

Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", arXiv:1801.04381; squeeze-excite: Hu
et al., arXiv:1709.01507, here as in Tan and Le, "EfficientNet", arXiv:1905.11946. The options are those of `conv2d`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _core, _foreign, _verbose
from .._args import Activation, Array, Ints, Padding
from .._args import inverted as _args
from . import conv, pool, separable

if TYPE_CHECKING or not _verbose.enabled:
    from .. import _core as _calls
else:
    from .._verbose import calls as _calls

__all__ = [
    "InvertedResidualGradients",
    "inverted_residual",
    "inverted_residual_backward",
]


class InvertedResidualGradients(NamedTuple):
    """The gradients of an inverted residual; None where one was not asked for."""

    input: Array | None
    expand_weight: Array | None
    depthwise_weight: Array | None
    project_weight: Array | None
    bias: Array | None


def _forward(
    spec: _core.ConvSpec,
    project_spec: _core.ConvSpec,
    arrays: Mapping[str, Any],
    depthwise_activation: Activation,
    activation: Activation,
    options: Mapping[str, Any],
) -> Array:
    """A layer without squeeze-excite: without an expansion it is a separable one."""
    operands = arrays.values()
    if arrays["expand_weight"] is not None:
        x, expand, depthwise, project, *rest = operands
        y: Array = _calls.inverted_forward(spec, project_spec, x, expand, depthwise, project, *rest)
        return y
    if any(arrays[f"expand_{name}"] is not None for name in ("bias", "scale", "shift")):
        raise _core.Refused("bad_shape")
    if (_args.shape_of(arrays["depthwise_weight"]) or (0,))[:1] != (spec.groups,):
        raise _core.Refused("bad_shape")
    x, _, depthwise, project, _, _, _, *rest = operands
    both = _args.separable_spec(spec, options, depthwise_activation, activation)
    return _calls.separable_forward(both, x, depthwise, project, *rest)


def _gate(mean: Array, squeeze: Sequence[Any], activation: Activation, gate: Activation, layout: str) -> Array:
    """The scale of each image and channel, (N, E) as the mean, or (E,) without the batch."""
    reduce_weight, reduce_bias, expand_weight, expand_bias = squeeze
    pixel = _args.as_pixel(mean, layout)
    hidden = conv.conv2d(pixel, reduce_weight, reduce_bias, layout=layout, activation=activation)
    return conv.conv2d(hidden, expand_weight, expand_bias, layout=layout, activation=gate).reshape(mean.shape)


def inverted_residual(
    x: Array,
    expand_weight: Array | None,
    depthwise_weight: Array,
    project_weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    expand_bias: Array | None = None,
    expand_scale: Array | None = None,
    expand_shift: Array | None = None,
    expand_activation: Activation = None,
    depthwise_bias: Array | None = None,
    depthwise_scale: Array | None = None,
    depthwise_shift: Array | None = None,
    depthwise_activation: Activation = None,
    se_reduce_weight: Array | None = None,
    se_reduce_bias: Array | None = None,
    se_expand_weight: Array | None = None,
    se_expand_bias: Array | None = None,
    se_activation: Activation = "relu",
    se_gate: Activation = "sigmoid",
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """An inverted residual (the block of MobileNetV2, MobileNetV3 and EfficientNet) in one call.

    See the module's text for the formula. The identity is the caller's: residual=x where stride is 1 and K is C. Batch
    norms are folded into a scale and a shift.

    Args:
        x: (N, C, H, W), or (C, H, W) without the batch; with layout "NHWC" (N, H, W, C).
        expand_weight: (E, C, 1, 1). None: there is no expansion, E is C, and the layer is `separable_conv2d`.
        depthwise_weight: (E, 1, R, S).
        project_weight: (K, E, 1, 1).
        bias: (K,).
        stride: of the depthwise layer.
        padding: of the depthwise layer. Zeros are those of the expanded tensor, after its activation.
        dilation: of the depthwise layer.
        padding_mode: of the depthwise layer. With a mode other than "zeros" the expansion is made as a whole, image
            by image.
        layout: the axes of x, the result and residual.
        expand_bias: (E,), added to the expansion.
        expand_scale: (E,), multiplies that.
        expand_shift: (E,), added to that.
        expand_activation: applied to the expansion.
        depthwise_bias: (E,), added to the depthwise layer.
        depthwise_scale: (E,), multiplies that.
        depthwise_shift: (E,), added to that.
        depthwise_activation: applied to the depthwise layer.
        se_reduce_weight: (R, E, 1, 1): squeeze-excite. The depthwise layer's result is then kept as a whole.
        se_reduce_bias: (R,).
        se_expand_weight: (E, R, 1, 1).
        se_expand_bias: (E,).
        se_activation: between the two layers of squeeze-excite.
        se_gate: after them.
        scale: (K,), multiplies the projection and its bias.
        shift: (K,), added to that.
        residual: the shape of the result, added before the activation.
        activation: applied last.
        out: where the result is written.

    Returns:
        (N, K, P, Q) in the axes of layout, or without the batch.

    Raises:
        ValueError, TypeError, MemoryError: as `conv2d`.
    """
    spec, project_spec = _args.specs(
        x,
        expand_weight,
        stride,
        padding,
        dilation,
        padding_mode,
        layout,
        expand_activation,
        depthwise_activation,
        activation,
    )
    arrays = {
        "x": x,
        "expand_weight": expand_weight,
        "depthwise_weight": depthwise_weight,
        "project_weight": project_weight,
        "expand_bias": expand_bias,
        "expand_scale": expand_scale,
        "expand_shift": expand_shift,
        "depthwise_bias": depthwise_bias,
        "depthwise_scale": depthwise_scale,
        "depthwise_shift": depthwise_shift,
        "bias": bias,
        "scale": scale,
        "shift": shift,
        "residual": residual,
        "out": out,
    }
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "padding_mode": padding_mode,
        "layout": layout,
    }
    squeeze = (se_reduce_weight, se_reduce_bias, se_expand_weight, se_expand_bias)
    if all(a is None for a in squeeze):
        try:
            return _forward(spec, project_spec, arrays, depthwise_activation, activation, options)
        except _core.Refused as refusal:
            raise _args.error(refusal, spec, arrays) from None
    if _foreign.any_of((*arrays.values(), *squeeze)):
        activations: dict[str, Any] = {
            "expand_activation": expand_activation,
            "depthwise_activation": depthwise_activation,
            "se_activation": se_activation,
            "se_gate": se_gate,
            "activation": activation,
        }
        weights: dict[str, Any] = {**arrays, **dict(zip(_args.SQUEEZE, squeeze, strict=True))}
        return _foreign.on_views(inverted_residual, **weights, **options, **activations)
    _args.check_activation("se_activation", se_activation)
    _args.check_activation("se_gate", se_gate)
    # Several calls: all is checked before the first.
    _args.check(spec, {**arrays, **dict(zip(_args.SQUEEZE, squeeze, strict=True))})
    if expand_weight is None:
        u = conv.conv2d(
            x,
            depthwise_weight,
            depthwise_bias,
            groups=spec.groups,
            scale=depthwise_scale,
            shift=depthwise_shift,
            activation=depthwise_activation,
            **options,
        )
        mean = pool.global_avg_pool2d(u, keepdims=False, layout=layout)
    else:
        first = (expand_bias, expand_scale, expand_shift, depthwise_bias, depthwise_scale, depthwise_shift)
        try:
            u, mean = _calls.inverted_forward(
                spec, project_spec, x, expand_weight, depthwise_weight, None, *first, None, None, None, None, None
            )
        except _core.Refused as refusal:
            raise _args.error(refusal, spec, arrays) from None
    return conv.conv2d(
        u,
        project_weight,
        bias,
        layout=layout,
        scale=scale,
        shift=shift,
        residual=residual,
        activation=activation,
        input_gate=_gate(mean, squeeze, se_activation, se_gate, layout),
        out=out,
    )


def inverted_residual_backward(
    dy: Array,
    x: Array,
    expand_weight: Array | None,
    depthwise_weight: Array,
    project_weight: Array,
    *,
    needs: Sequence[str] = ("input", "expand_weight", "depthwise_weight", "project_weight", "bias"),
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> InvertedResidualGradients:
    """The gradients of the plain layer, given dy = dL/dy.

    The expansion is computed again where the gradient of depthwise_weight or project_weight is wanted, the depthwise
    layer's result where that of project_weight is; both are then kept as a whole. The gradient of the residual is dy.

    Args:
        dy: (N, K, P, Q) in the axes of layout.
        x: as in `inverted_residual`.
        expand_weight: (E, C, 1, 1), or None.
        depthwise_weight: (E, 1, R, S).
        project_weight: (K, E, 1, 1).
        needs: which gradients to compute.
        stride: as in the forward pass.
        padding: as in the forward pass.
        dilation: as in the forward pass.
        padding_mode: as in the forward pass.
        layout: the axes of dy and x.

    Returns:
        InvertedResidualGradients, None for each that was not asked for, and for expand_weight where that is None.

    Raises:
        ValueError, TypeError, MemoryError: as the gradients of `conv2d`.
    """
    if isinstance(needs, str) or not set(needs) <= set(InvertedResidualGradients._fields):
        raise ValueError(f"needs (={needs!r}) must name some of {', '.join(InvertedResidualGradients._fields)}")
    if _foreign.any_of((dy, x, expand_weight, depthwise_weight, project_weight)):
        geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        return _foreign.on_views(
            inverted_residual_backward,
            dy,
            x,
            expand_weight,
            depthwise_weight,
            project_weight,
            needs=needs,
            **geometry,
            padding_mode=padding_mode,
            layout=layout,
        )
    spec, _ = _args.specs(x, expand_weight, stride, padding, dilation, padding_mode, layout, None, None, None)
    weights = {
        "expand_weight": expand_weight,
        "depthwise_weight": depthwise_weight,
        "project_weight": project_weight,
    }
    _args.check_backward(spec, dy, {"x": x, **weights})
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "padding_mode": padding_mode,
        "layout": layout,
    }
    e, inner = x, set(needs)
    if expand_weight is not None:
        inner -= {"expand_weight"}
        if "input" in needs or "expand_weight" in needs:
            inner |= {"input"}
        if "depthwise_weight" in needs or "project_weight" in needs:
            e = conv.conv2d(x, expand_weight, layout=layout)
        else:
            # Only its shape is read.
            e = _args.shape_of_expansion(x, expand_weight, spec)
    rest = separable.separable_conv2d_backward(
        dy,
        e,
        depthwise_weight,
        project_weight,
        needs=tuple(
            {"project_weight": "pointwise_weight"}.get(name, name) for name in sorted(inner - {"expand_weight"})
        ),
        **options,
    )
    dx, dw = rest.input, None
    if expand_weight is not None and rest.input is not None:
        de = rest.input
        dx = conv.conv2d_backward_input(de, expand_weight, x.shape, layout=layout) if "input" in needs else None
        if "expand_weight" in needs:
            dw = conv.conv2d_backward_weight(de, x, expand_weight.shape, layout=layout)
    return InvertedResidualGradients(dx, dw, rest.depthwise_weight, rest.pointwise_weight, rest.bias)
