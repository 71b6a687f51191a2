"""PyTorch operators over fastconv's kernels: gradients, `torch.compile`, `torch.func`, autocast.

The functions here have the names and arguments of `torch.nn.functional`'s, and give the same up to rounding. Each is a
call of an operator in the namespace `torch.ops.fastconv`, of tensors of float32 and float64 in the host's memory or on
a CUDA device (there of float16 and bfloat16 as well). Errors call the arguments as `fastconv.functional` does: x is the
input.

- **Memory.** Strides are read in place. A result is channels_last where its input is, and shares no memory with it.
- **Gradients** of every order: the gradients of convolutions and poolings are operators themselves, those of batch norm
  and Lp pooling are computed by PyTorch's own functions where gradients of gradients are asked for. There is no forward
  mode.
- **Maxima** keep no indices for their gradient unless they return them: it looks for them again.
- **Autocast** computes in float32 on the host, which has no kernels of lower precision; on CUDA convolutions take the
  type that autocast names, batch norm float32.
- **vmap** folds the mapped axis of the input into the batch; where other operands are mapped too it calls in a loop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import functional as F
from ._register import from_numpy, operator, saved, tensors, view

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "separable_conv1d",
    "separable_conv2d",
]

Ints = int | Sequence[int]


class _ByRank(dict[int, Callable[..., Any]]):
    """The functions of `functional` whose name has the number of spatial dimensions in the place of {}."""

    def __init__(self, name: str, argument: str, ranks: Sequence[int] = (1, 2, 3)) -> None:
        super().__init__({rank: getattr(F, name.format(rank)) for rank in ranks})
        self.argument = argument

    def __missing__(self, rank: int) -> Callable[..., Any]:
        known = ", ".join(map(str, self))
        raise ValueError(f"{self.argument} (of {rank} spatial dimensions) must be of one of {known} spatial dimensions")


# ------------------------------------------------------------------------------------------------------------- results


def _packed(x: Tensor, shape: Sequence[int], order: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor like x of that shape, its axes in memory in that order."""
    strides, step = [1] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step = step * shape[axis]
    return x.new_empty_strided(tuple(shape), strides, dtype=dtype)


def _is_packed(x: Tensor, axes: Sequence[int]) -> bool:
    expect = 1
    for axis in reversed(axes):
        if x.shape[axis] != 1:
            if x.stride(axis) != expect:
                return False
            expect = expect * x.shape[axis]
    return True


def _image(like: Tensor, rank: int, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A result of `functional`: channels_last where its first operand is one, and is not contiguous as well."""
    first = like.dim() - rank  # of the pixels' axes
    pixels = list(range(first, like.dim()))
    if _is_packed(like, [*pixels, first - 1]) and not _is_packed(like, [first - 1, *pixels]):
        return _packed(like, shape, [*range(first - 1), *pixels, first - 1], dtype)
    return _packed(like, shape, range(like.dim()), dtype)


def _check_image(x: Tensor, rank: int, name: str = "x") -> None:
    if x.dim() not in (rank + 1, rank + 2):
        raise ValueError(
            f"{name} (shape {tuple(x.shape)}) must have {rank + 2} dimensions, or {rank + 1} without the batch"
        )


def _tuple(value: Ints, rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * rank if len(value) == 1 else tuple(value)


def _sides(padding: Sequence[int], rank: int) -> tuple[Any, ...]:
    """The padding as `functional` takes it: rank entries for both sides, or twice as many, before and after in turn."""
    entries = tuple(padding)
    return entries if len(entries) <= rank else tuple(zip(entries[::2], entries[1::2], strict=True))


def _total(padding: Sequence[int], axis: int, rank: int) -> int:
    if len(padding) > rank:
        return padding[2 * axis] + padding[2 * axis + 1]
    return 2 * padding[axis]


# -------------------------------------------------------------------------------------------------------- convolutions

_CONV, _CONV_BACKWARD = (_ByRank(f"conv{{}}d{b}", "weight") for b in ("", "_backward"))
_TRANSPOSE, _TRANSPOSE_BACKWARD = (_ByRank(f"conv_transpose{{}}d{b}", "weight") for b in ("", "_backward"))
_NEEDS = ("input", "weight", "bias")


def _conv(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> Any:
    rank = weight.ndim - 2
    return _CONV[rank](
        x,
        weight,
        bias,
        stride=tuple(stride),
        padding=_sides(padding, rank),
        dilation=tuple(dilation),
        groups=groups,
        padding_mode=padding_mode,
    )


def _conv_host(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Any:
    return from_numpy(_conv(view(x), view(weight), None if bias is None else view(bias), *options))


def _conv_shape(x: Tensor, weight: Tensor, transposed: bool, groups: int, sizes: Sequence[int]) -> list[int]:
    rank = weight.dim() - 2
    if rank not in _CONV:
        raise ValueError(f"weight (shape {tuple(weight.shape)}) must have 3, 4 or 5 dimensions")
    _check_image(x, rank)
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    if x.shape[-rank - 1] != channels:
        raise ValueError(
            f"x (shape {tuple(x.shape)}) must have {channels} channels, by weight (shape {tuple(weight.shape)}) and "
            f"groups (={groups})"
        )
    return [*x.shape[: -rank - 1], weight.shape[1] * groups if transposed else weight.shape[0], *sizes]


def _conv_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    rank = weight.dim() - 2
    sizes = [
        (x.shape[i - rank] + _total(padding, i, rank) - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(rank)
    ]
    return _image(x, rank, _conv_shape(x, weight, False, groups, sizes))


def _transpose(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Any:
    rank = weight.ndim - 2
    return _TRANSPOSE[rank](
        x,
        weight,
        bias,
        stride=tuple(stride),
        padding=_sides(padding, rank),
        output_padding=tuple(output_padding),
        groups=groups,
        dilation=tuple(dilation),
    )


def _transpose_host(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Any:
    return from_numpy(_transpose(view(x), view(weight), None if bias is None else view(bias), *options))


def _transpose_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Tensor:
    rank = weight.dim() - 2
    sizes = [
        (x.shape[i - rank] - 1) * stride[i]
        + dilation[i] * (weight.shape[2 + i] - 1)
        + 1
        + output_padding[i]
        - _total(padding, i, rank)
        for i in range(rank)
    ]
    return _image(x, rank, _conv_shape(x, weight, True, groups, sizes))


def _named(needs: Sequence[bool]) -> tuple[str, ...]:
    return tuple(name for name, wanted in zip(_NEEDS, needs, strict=True) if wanted)


def _conv_gradients(
    dy: Any,
    x: Any,
    weight: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    needs: Sequence[bool],
) -> list[Any]:
    rank = weight.ndim - 2
    gradients = _CONV_BACKWARD[rank](
        dy,
        x,
        weight,
        needs=_named(needs),
        stride=tuple(stride),
        padding=_sides(padding, rank),
        dilation=tuple(dilation),
        groups=groups,
        padding_mode=padding_mode,
    )
    return [g for g in gradients if g is not None]


def _transpose_gradients(
    dy: Any,
    x: Any,
    weight: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    needs: Sequence[bool],
) -> list[Any]:
    rank = weight.ndim - 2
    gradients = _TRANSPOSE_BACKWARD[rank](
        dy,
        x,
        weight,
        needs=_named(needs),
        stride=tuple(stride),
        padding=_sides(padding, rank),
        output_padding=tuple(output_padding),
        groups=groups,
        dilation=tuple(dilation),
    )
    return [g for g in gradients if g is not None]


def _gradients_fake(dy: Tensor, x: Tensor, weight: Tensor, *options: Any) -> list[Tensor]:
    rank, needs = weight.dim() - 2, options[-1]
    made = [
        _image(dy, rank, x.shape) if needs[0] else None,
        _packed(weight, weight.shape, range(weight.dim())) if needs[1] else None,
        dy.new_empty((dy.shape[-rank - 1],)) if needs[2] else None,
    ]
    return [m for m in made if m is not None]


def _spread(given: Sequence[Any], needs: Sequence[bool]) -> list[Any]:
    """What an operator of gradients gave, with None in the place of those that were not asked for."""
    rest = iter(given)
    return [next(rest) if wanted else None for wanted in needs]


def _conv_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    saved(ctx, inputs[:2], inputs[3:])


def _gradients_save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    saved(ctx, inputs[:3], inputs[3:])


def _sum(*terms: Tensor | None) -> Tensor | None:
    given = [t for t in terms if t is not None]
    return sum(given[1:], start=given[0]) if given else None


def _define_conv(name: str, options: str, **functions: Any) -> tuple[Any, Any]:
    """A convolution and the operator of its gradients.

    y is linear in x and in the weight, and so is every gradient in its operands: the gradients of gradients are calls
    of the same two operators.
    """

    def backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        nothing = (None,) * len(ctx.options)
        needs = list(ctx.needs_input_grad[:3])
        if dy is None:
            return (None, None, None, *nothing)
        return (*_spread(gradients(dy, x, weight, *ctx.options, needs), needs), *nothing)

    def gradients_backward(ctx: Any, given: Sequence[Tensor | None]) -> tuple[Any, ...]:
        dy, x, weight = ctx.saved_tensors
        *rest, needs = ctx.options
        dx, dw, db = _spread(given, needs)
        to_dy = to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            columns = None if db is None else db.reshape((-1,) + (1,) * (weight.dim() - 2)).expand_as(dy)
            to_dy = _sum(
                None if dx is None else forward(dx, weight, None, *rest),
                None if dw is None else forward(x, dw, None, *rest),
                columns,
            )
        if ctx.needs_input_grad[1] and dw is not None:
            (to_x,) = gradients(dy, x, dw, *rest, [True, False, False])
        if ctx.needs_input_grad[2] and dx is not None:
            (to_weight,) = gradients(dy, dx, weight, *rest, [False, True, False])
        return (to_dy, to_x, to_weight, *((None,) * len(ctx.options)))

    forward = operator(
        f"{name}(Tensor x, Tensor weight, Tensor? bias, {options}) -> Tensor",
        kernel=functions["kernel"],
        host=functions["host"],
        fake=functions["fake"],
        save=_conv_save,
        backward=backward,
        folds=lambda x, weight, *rest: int(weight.dim()) - 2,
        lower=True,
    )
    gradients = operator(
        f"{name}_backward(Tensor dy, Tensor x, Tensor weight, {options}, bool[] needs) -> Tensor[]",
        kernel=functions["gradients"],
        fake=_gradients_fake,
        save=_gradients_save,
        backward=gradients_backward,
        lower=True,
    )
    return forward, gradients


_conv_op, _conv_gradients_op = _define_conv(
    "conv",
    "int[] stride, int[] padding, int[] dilation, int groups, str padding_mode",
    kernel=_conv,
    host=_conv_host,
    fake=_conv_fake,
    gradients=_conv_gradients,
)
_transpose_op, _ = _define_conv(
    "conv_transpose",
    "int[] stride, int[] padding, int[] output_padding, int groups, int[] dilation",
    kernel=_transpose,
    host=_transpose_host,
    fake=_transpose_fake,
    gradients=_transpose_gradients,
)


def _padding(padding: Any, x: Tensor, weight: Tensor, stride: Ints, dilation: Ints, rank: int) -> tuple[int, ...]:
    """Padding as the operators take it: an entry a dimension, or two."""
    if isinstance(padding, int):
        return (padding,) * rank
    if not isinstance(padding, str):
        entries = tuple(padding)
        if entries and not isinstance(entries[0], int):  # (before, after) of every dimension
            return tuple(side for pair in entries for side in pair)
        return _tuple(entries, rank)
    if padding == "valid":
        return (0,) * rank
    if padding not in ("same", "same_lower"):
        raise ValueError(f"padding (={padding!r}) must be 'valid', 'same', 'same_lower', or integers")
    steps, gaps, sides = _tuple(stride, rank), _tuple(dilation, rank), []
    for i in range(rank):
        reach, size = gaps[i] * (weight.shape[2 + i] - 1) + 1, x.shape[i - rank]
        total = reach - 1 if steps[i] == 1 else max((-(-size // steps[i]) - 1) * steps[i] + reach - size, 0)
        sides += [total // 2, total - total // 2] if padding == "same" else [total - total // 2, total // 2]
    return tuple(sides)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """1-D convolution, as `torch.nn.functional.conv1d`: see `conv2d`."""
    sides = _padding(padding, input, weight, stride, dilation, 1)
    y: Tensor = _conv_op(input, weight, bias, _tuple(stride, 1), sides, _tuple(dilation, 1), groups, padding_mode)
    return y


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """2-D convolution, depthwise where groups is the number of channels, as `torch.nn.functional.conv2d`.

    Args:
        input: (N, C, H, W), or (C, H, W).
        weight: (K, C / groups, R, S).
        bias: (K,).
        stride: an int, or one a dimension.
        padding: likewise; or a (before, after) pair a dimension, "valid", "same" (of any stride: P = ceil(H / stride),
            the odd one at the end) or "same_lower" (at the beginning).
        dilation: as stride.
        groups: divides both channel counts.
        padding_mode: "zeros", "reflect", "replicate" or "circular", read by the kernel, not by a padded copy.

    Returns:
        (N, K, P, Q), channels_last where input is.

    Raises:
        TypeError, ValueError: as `fastconv.conv2d`.
    """
    sides = _padding(padding, input, weight, stride, dilation, 2)
    y: Tensor = _conv_op(input, weight, bias, _tuple(stride, 2), sides, _tuple(dilation, 2), groups, padding_mode)
    return y


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """3-D convolution, as `torch.nn.functional.conv3d`: see `conv2d`."""
    sides = _padding(padding, input, weight, stride, dilation, 3)
    y: Tensor = _conv_op(input, weight, bias, _tuple(stride, 3), sides, _tuple(dilation, 3), groups, padding_mode)
    return y


def _transposed(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
) -> Tensor:
    sides = _padding(padding, input, weight, stride, dilation, rank)
    extra = _tuple(output_padding, rank)
    y: Tensor = _transpose_op(input, weight, bias, _tuple(stride, rank), sides, extra, groups, _tuple(dilation, rank))
    return y


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """1-D transposed convolution, as `torch.nn.functional.conv_transpose1d`: see `conv_transpose2d`."""
    return _transposed(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """2-D transposed convolution, as `torch.nn.functional.conv_transpose2d`.

    Args:
        input: (N, C, H, W), or (C, H, W).
        weight: (C, K / groups, R, S).
        bias: (K,).
        stride: an int, or one a dimension.
        padding: likewise; crops the output.
        output_padding: likewise; extra length of the output, smaller than stride or dilation.
        groups: divides both channel counts.
        dilation: as stride.

    Returns:
        (N, K, P, Q), P = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1.

    Raises:
        TypeError, ValueError: as `fastconv.conv_transpose2d`.
    """
    return _transposed(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """3-D transposed convolution, as `torch.nn.functional.conv_transpose3d`: see `conv_transpose2d`."""
    return _transposed(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


# ------------------------------------------------------------------------------------------------ depthwise-separable

_SEPARABLE = _ByRank("separable_conv{}d", "depthwise_weight", (1, 2))


def _separable(
    x: Any,
    depthwise_weight: Any,
    depthwise_bias: Any,
    pointwise_weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
) -> Any:
    rank = depthwise_weight.ndim - 2
    return _SEPARABLE[rank](
        x,
        depthwise_weight,
        pointwise_weight,
        bias,
        depthwise_bias=depthwise_bias,
        stride=tuple(stride),
        padding=_sides(padding, rank),
        dilation=tuple(dilation),
        padding_mode=padding_mode,
    )


def _separable_host(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    *options: Any,
) -> Any:
    weights = view(depthwise_weight), None if depthwise_bias is None else view(depthwise_bias), view(pointwise_weight)
    return from_numpy(_separable(view(x), *weights, None if bias is None else view(bias), *options))


def _separable_fake(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
) -> Tensor:
    rank = depthwise_weight.dim() - 2
    u = _conv_fake(x, depthwise_weight, None, stride, padding, dilation, x.shape[-rank - 1], padding_mode)
    shape = list(u.shape)
    shape[-rank - 1] = pointwise_weight.shape[0]
    return _image(x, rank, shape)


def _separable_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    saved(ctx, inputs[:4], inputs[5:])


def _separable_backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    x, depthwise, depthwise_bias, pointwise = ctx.saved_tensors
    if dy is None:
        return (None,) * 9
    rank = depthwise.dim() - 2
    stride, padding, dilation, padding_mode = ctx.options
    first = (stride, padding, dilation, x.shape[-rank - 1], padding_mode)
    second = ([1] * rank, [0] * rank, [1] * rank, 1, "zeros")
    wanted = ctx.needs_input_grad
    inner = [wanted[0], wanted[1], wanted[2]]
    outer = [any(inner), wanted[3], wanted[4]]
    # The intermediate is computed again rather than kept.
    u = _conv_op(x, depthwise, depthwise_bias, *first)
    du, dp, db = _spread(_conv_gradients_op(dy, u, pointwise, *second, outer), outer)
    dx = dw = dwb = None
    if outer[0]:
        dx, dw, dwb = _spread(_conv_gradients_op(du, x, depthwise, *first, inner), inner)
    return (dx, dw, dwb, dp, db, None, None, None, None)


_separable_op = operator(
    "separable_conv(Tensor x, Tensor depthwise_weight, Tensor? depthwise_bias, Tensor pointwise_weight, Tensor? bias, "
    "int[] stride, int[] padding, int[] dilation, str padding_mode) -> Tensor",
    kernel=_separable,
    host=_separable_host,
    fake=_separable_fake,
    save=_separable_save,
    backward=_separable_backward,
    folds=lambda x, weight, *rest: int(weight.dim()) - 2,
    lower=True,
)


def separable_conv1d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    *,
    depthwise_bias: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    """1-D depthwise-separable convolution: see `separable_conv2d`."""
    sides = _padding(padding, input, depthwise_weight, stride, dilation, 1)
    options = (_tuple(stride, 1), sides, _tuple(dilation, 1), padding_mode)
    y: Tensor = _separable_op(input, depthwise_weight, depthwise_bias, pointwise_weight, bias, *options)
    return y


def separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    *,
    depthwise_bias: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    """2-D depthwise-separable convolution in one pass: a filter for each channel, then a product over the channels.

    Args:
        input: (N, C, H, W), or (C, H, W).
        depthwise_weight: (C * multiplier, 1, R, S).
        pointwise_weight: (K, C * multiplier, 1, 1).
        bias: (K,).
        stride: of the depthwise half, as in `conv2d`; and so padding, dilation and padding_mode.
        padding: see stride.
        dilation: see stride.
        depthwise_bias: (C * multiplier,).
        padding_mode: see stride.

    Returns:
        (N, K, P, Q): the bits of the two convolutions one after the other.

    Raises:
        TypeError, ValueError: as `fastconv.separable_conv2d`.
    """
    sides = _padding(padding, input, depthwise_weight, stride, dilation, 2)
    options = (_tuple(stride, 2), sides, _tuple(dilation, 2), padding_mode)
    y: Tensor = _separable_op(input, depthwise_weight, depthwise_bias, pointwise_weight, bias, *options)
    return y


# ------------------------------------------------------------------------------------------------------------- pooling

_MAX, _MAX_BACKWARD = (_ByRank(f"max_pool{{}}d{b}", "kernel_size") for b in ("", "_backward"))
_AVG, _AVG_BACKWARD = (_ByRank(f"avg_pool{{}}d{b}", "kernel_size") for b in ("", "_backward"))
_LP, _LP_BACKWARD = (_ByRank(f"lp_pool{{}}d{b}", "kernel_size") for b in ("", "_backward"))
_ADAPTIVE_AVG, _ADAPTIVE_AVG_BACKWARD = (
    _ByRank(f"adaptive_avg_pool{{}}d{b}", "output_size") for b in ("", "_backward")
)
_ADAPTIVE_MAX, _ADAPTIVE_MAX_BACKWARD = (
    _ByRank(f"adaptive_max_pool{{}}d{b}", "output_size") for b in ("", "_backward")
)

_WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode"


def _pooled(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """The shape of the result, PyTorch's way: a window that begins in the padding at the end does not count."""
    rank = len(kernel_size)
    _check_image(x, rank)
    shape = list(x.shape)
    for i in range(rank):
        size = x.shape[i - rank]
        reach = size + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1
        count = -(-reach // stride[i]) + 1 if ceil_mode else reach // stride[i] + 1
        if ceil_mode and (count - 1) * stride[i] >= size + padding[i]:
            count = count - 1
        shape[i - rank] = count
    return shape


def _max_pool(
    x: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    return_indices: bool = False,
) -> Any:
    return _MAX[len(kernel_size)](
        x,
        tuple(kernel_size),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        ceil_mode=ceil_mode,
        return_indices=return_indices,
    )


def _max_pool_gradient(
    dy: Any,
    x: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Any = None,
) -> Any:
    return _MAX_BACKWARD[len(kernel_size)](
        dy,
        x,
        tuple(kernel_size),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        ceil_mode=ceil_mode,
        indices=indices,
    )


def _max_pool_scatter(dy: Any, indices: Any, input_shape: Sequence[int], *window: Any) -> Any:
    kernel_size, stride, padding, dilation, ceil_mode = window
    return _max_pool_gradient(dy, tuple(input_shape), kernel_size, stride, padding, dilation, ceil_mode, indices)


def _gathered(dx: Tensor, indices: Tensor, rank: int) -> Tensor:
    """What each maximum has in dx: the gradient of a max pooling's gradient."""
    return dx.flatten(-rank).gather(-1, indices.flatten(-rank)).view_as(indices)


def _max_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    saved(ctx, inputs[:1], inputs[1:])


def _max_backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    return (None if dy is None else _max_gradient_op(dy, x, *ctx.options), None, None, None, None, None)


def _max_gradient_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    saved(ctx, inputs[1:2], inputs[2:])


def _max_gradient_backward(ctx: Any, dx: Tensor | None) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    if dx is None:
        return (None,) * 7
    indices = _max_indices_op(x.detach(), *ctx.options)[1]
    return (_gathered(dx, indices, len(ctx.options[0])), None, None, None, None, None, None)


_max_op = operator(
    f"max_pool(Tensor x, {_WINDOW}) -> Tensor",
    kernel=_max_pool,
    host=lambda x, *options: from_numpy(_max_pool(view(x), *options)),
    fake=lambda x, *options: _image(x, len(options[0]), _pooled(x, *options)),
    save=_max_save,
    backward=_max_backward,
    folds=lambda x, kernel_size, *rest: len(kernel_size),
)
_max_gradient_op = operator(
    f"max_pool_backward(Tensor dy, Tensor x, {_WINDOW}) -> Tensor",
    kernel=_max_pool_gradient,
    fake=lambda dy, x, *options: _image(dy, len(options[0]), x.shape),
    save=_max_gradient_save,
    backward=_max_gradient_backward,
)


def _max_indices_fake(x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    rank, shape = len(options[0]), _pooled(x, *options)
    return _image(x, rank, shape), _image(x, rank, shape, torch.int64)


def _indices_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.shape = inputs[0].shape
    saved(ctx, output[1:], inputs[1:])
    ctx.mark_non_differentiable(output[1])


def _max_indices_backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    dx = None if dy is None else _max_indices_gradient_op(dy, indices, ctx.shape, *ctx.options)
    return (dx, None, None, None, None, None)


def _by_indices_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    saved(ctx, inputs[1:2], inputs[3:])


def _by_indices_backward(ctx: Any, dx: Tensor | None) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    spatial = ctx.options[0]  # their number, or what has an entry for each
    rank = spatial if isinstance(spatial, int) else len(spatial)
    return (None if dx is None else _gathered(dx, indices, rank), *((None,) * (2 + len(ctx.options))))


_max_indices_op = operator(
    f"max_pool_with_indices(Tensor x, {_WINDOW}) -> (Tensor, Tensor)",
    kernel=functools.partial(_max_pool, return_indices=True),
    fake=_max_indices_fake,
    save=_indices_save,
    backward=_max_indices_backward,
    folds=lambda x, kernel_size, *rest: len(kernel_size),
)
_max_indices_gradient_op = operator(
    f"max_pool_with_indices_backward(Tensor dy, Tensor indices, SymInt[] input_shape, {_WINDOW}) -> Tensor",
    kernel=_max_pool_scatter,
    fake=lambda dy, indices, shape, *options: _image(dy, len(options[0]), shape),
    save=_by_indices_save,
    backward=_by_indices_backward,
)


def _avg_pool(
    x: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    return _AVG[len(kernel_size)](
        x,
        tuple(kernel_size),
        stride=tuple(stride),
        padding=tuple(padding),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )


def _avg_pool_gradient(
    dy: Any,
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    return _AVG_BACKWARD[len(kernel_size)](
        dy,
        tuple(input_shape),
        tuple(kernel_size),
        stride=tuple(stride),
        padding=tuple(padding),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )


def _avg_fake(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool, *rest: Any
) -> Tensor:
    rank = len(kernel_size)
    return _image(x, rank, _pooled(x, kernel_size, stride, padding, (1,) * rank, ceil_mode))


def _shape_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape
    saved(ctx, (), inputs[1:])


def _avg_backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    dx = None if dy is None else _avg_gradient_op(dy, ctx.shape, *ctx.options)
    return (dx, *((None,) * len(ctx.options)))


def _linear_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    saved(ctx, (), inputs[2:])


def _avg_gradient_backward(ctx: Any, dx: Tensor | None) -> tuple[Any, ...]:
    to_dy = None if dx is None else _avg_op(dx, *ctx.options)
    return (to_dy, None, *((None,) * len(ctx.options)))


_AVG_OPTIONS = (
    "int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, int? divisor_override"
)
_avg_op = operator(
    f"avg_pool(Tensor x, {_AVG_OPTIONS}) -> Tensor",
    kernel=_avg_pool,
    host=lambda x, *options: from_numpy(_avg_pool(view(x), *options)),
    fake=_avg_fake,
    save=_shape_save,
    backward=_avg_backward,
    folds=lambda x, kernel_size, *rest: len(kernel_size),
)
_avg_gradient_op = operator(
    f"avg_pool_backward(Tensor dy, SymInt[] input_shape, {_AVG_OPTIONS}) -> Tensor",
    kernel=_avg_pool_gradient,
    fake=lambda dy, shape, kernel_size, *rest: _image(dy, len(kernel_size), shape),
    save=_linear_save,
    backward=_avg_gradient_backward,
)


def _adaptive_fake(x: Tensor, output_size: Sequence[int]) -> Tensor:
    _check_image(x, len(output_size))
    return _image(x, len(output_size), [*x.shape[: -len(output_size)], *output_size])


def _adaptive_backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    return (None if dy is None else _adaptive_gradient_op(dy, ctx.shape, len(ctx.options[0])), None)


def _adaptive_gradient_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    saved(ctx, (), [inputs[0].shape[-inputs[2] :]])


def _adaptive_gradient_backward(ctx: Any, dx: Tensor | None) -> tuple[Any, ...]:
    return (None if dx is None else _adaptive_op(dx, ctx.options[0]), None, None)


_adaptive_op = operator(
    "adaptive_avg_pool(Tensor x, SymInt[] output_size) -> Tensor",
    kernel=lambda x, size: _ADAPTIVE_AVG[len(size)](x, tuple(size)),
    host=lambda x, size: from_numpy(_ADAPTIVE_AVG[len(size)](view(x), tuple(size))),
    fake=_adaptive_fake,
    save=_shape_save,
    backward=_adaptive_backward,
    folds=lambda x, output_size: len(output_size),
)
_adaptive_gradient_op = operator(
    "adaptive_avg_pool_backward(Tensor dy, SymInt[] input_shape, int spatial) -> Tensor",
    kernel=lambda dy, shape, spatial: _ADAPTIVE_AVG_BACKWARD[spatial](dy, tuple(shape)),
    fake=lambda dy, shape, spatial: _image(dy, spatial, shape),
    save=_adaptive_gradient_save,
    backward=_adaptive_gradient_backward,
)


def _adaptive_max_fake(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    rank, shape = len(output_size), [*x.shape[: -len(output_size)], *output_size]
    return _adaptive_fake(x, output_size), _image(x, rank, shape, torch.int64)


def _adaptive_max_backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    dx = None if dy is None else _adaptive_max_gradient_op(dy, indices, ctx.shape, len(ctx.options[0]))
    return (dx, None)


_adaptive_max_op = operator(
    "adaptive_max_pool(Tensor x, SymInt[] output_size) -> (Tensor, Tensor)",
    kernel=lambda x, size: _ADAPTIVE_MAX[len(size)](x, tuple(size), return_indices=True),
    fake=_adaptive_max_fake,
    save=_indices_save,
    backward=_adaptive_max_backward,
    folds=lambda x, output_size: len(output_size),
)
_adaptive_max_gradient_op = operator(
    "adaptive_max_pool_backward(Tensor dy, Tensor indices, SymInt[] input_shape, int spatial) -> Tensor",
    kernel=lambda dy, indices, shape, spatial: _ADAPTIVE_MAX_BACKWARD[spatial](dy, tuple(shape), indices=indices),
    fake=lambda dy, indices, shape, spatial: _image(dy, spatial, shape),
    save=_by_indices_save,
    backward=_by_indices_backward,
)


def _lp_pool(x: Any, norm_type: float, kernel_size: Sequence[int], stride: Sequence[int], ceil_mode: bool) -> Any:
    return _LP[len(kernel_size)](x, norm_type, tuple(kernel_size), stride=tuple(stride), ceil_mode=ceil_mode)


def _lp_pool_gradient(
    dy: Any, x: Any, norm_type: float, kernel_size: Sequence[int], stride: Sequence[int], ceil_mode: bool
) -> Any:
    return _LP_BACKWARD[len(kernel_size)](
        dy, x, norm_type, tuple(kernel_size), stride=tuple(stride), ceil_mode=ceil_mode
    )


def _lp_fake(x: Tensor, norm_type: float, kernel_size: Sequence[int], stride: Sequence[int], ceil_mode: bool) -> Tensor:
    rank = len(kernel_size)
    return _image(x, rank, _pooled(x, kernel_size, stride, (0,) * rank, (1,) * rank, ceil_mode))


def _lp_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    saved(ctx, (inputs[0], output), inputs[1:])


def _lp_backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    x, y = ctx.saved_tensors
    if dy is None:
        return (None,) * 5
    if not torch.is_grad_enabled():
        return (_lp_gradient_op(dy, x, *ctx.options), None, None, None, None)
    # The same of differentiable calls. A window's sum is its mean times the size of a whole one, as in the kernel: what
    # is left of a last window that ceil_mode cuts counts for more.
    power, kernel_size, stride, ceil_mode = ctx.options
    factor = torch.where(y == 0, torch.zeros_like(y), dy * y.pow(1 - power)) * math.prod(kernel_size)
    means = _avg_gradient_op(factor, x.shape, kernel_size, stride, [0] * len(stride), ceil_mode, True, None)
    return (means * _power(x, power - 1), None, None, None, None)


def _power(x: Tensor, power: float) -> Tensor:
    return torch.ones_like(x) if power == 0 else x.pow(power)


def _no_gradient(name: str, through: str) -> Callable[..., Any]:
    def backward(ctx: Any, *given: Any) -> Any:
        raise RuntimeError(f"fastconv::{name} must not be differentiated; {through} with create_graph=True can be")

    return backward


def _nothing_saved(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


_LP_OPTIONS = "float norm_type, int[] kernel_size, int[] stride, bool ceil_mode"
_lp_op = operator(
    f"lp_pool(Tensor x, {_LP_OPTIONS}) -> Tensor",
    kernel=_lp_pool,
    fake=_lp_fake,
    save=_lp_save,
    backward=_lp_backward,
    folds=lambda x, norm_type, kernel_size, *rest: len(kernel_size),
)
_lp_gradient_op = operator(
    f"lp_pool_backward(Tensor dy, Tensor x, {_LP_OPTIONS}) -> Tensor",
    kernel=_lp_pool_gradient,
    fake=lambda dy, x, norm_type, kernel_size, *rest: _image(dy, len(kernel_size), x.shape),
    save=_nothing_saved,
    backward=_no_gradient("lp_pool_backward", "a gradient of fastconv::lp_pool"),
)


def _window(kernel_size: Ints, stride: Ints | None, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = _tuple(kernel_size, rank)
    # PyTorch takes an empty stride for none.
    return sizes, sizes if stride is None or stride == () or stride == [] else _tuple(stride, rank)


def _max(
    rank: int,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    op = _max_indices_op if return_indices else _max_op
    return op(input, *_window(kernel_size, stride, rank), _tuple(padding, rank), _tuple(dilation, rank), ceil_mode)


def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """1-D max pooling, as `torch.nn.functional.max_pool1d`: see `max_pool2d`."""
    return _max(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """2-D max pooling, as `torch.nn.functional.max_pool2d`.

    Args:
        input: (N, C, H, W), or (C, H, W).
        kernel_size: of the window: an int, or one a dimension.
        stride: likewise; None: kernel_size.
        padding: likewise, of minus infinity.
        dilation: likewise.
        ceil_mode: whether a last, partial window counts.
        return_indices: give (y, indices), the indices int64 and flat in the image of a channel.

    Returns:
        (N, C, P, Q), or the pair.

    Raises:
        TypeError, ValueError: as `fastconv.max_pool2d`.
    """
    return _max(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """3-D max pooling, as `torch.nn.functional.max_pool3d`: see `max_pool2d`."""
    return _max(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _average(
    rank: int,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    sizes, steps = _window(kernel_size, stride, rank)
    y: Tensor = _avg_op(input, sizes, steps, _tuple(padding, rank), ceil_mode, count_include_pad, divisor_override)
    return y


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """1-D average pooling, as `torch.nn.functional.avg_pool1d`: see `avg_pool2d`."""
    return _average(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """2-D average pooling, as `torch.nn.functional.avg_pool2d`.

    Args:
        input: (N, C, H, W), or (C, H, W).
        kernel_size: of the window: an int, or one a dimension.
        stride: likewise; None: kernel_size.
        padding: likewise, of zeros.
        ceil_mode: whether a last, partial window counts.
        count_include_pad: whether the divisor counts the padding.
        divisor_override: the divisor.

    Returns:
        (N, C, P, Q).

    Raises:
        TypeError, ValueError: as `fastconv.avg_pool2d`.
    """
    return _average(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """3-D average pooling, as `torch.nn.functional.avg_pool3d`: see `avg_pool2d`."""
    return _average(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _lp(rank: int, input: Tensor, norm_type: float, kernel_size: Ints, stride: Ints | None, ceil_mode: bool) -> Tensor:
    y: Tensor = _lp_op(input, float(norm_type), *_window(kernel_size, stride, rank), ceil_mode)
    return y


def lp_pool1d(
    input: Tensor, norm_type: float, kernel_size: Ints, stride: Ints | None = None, ceil_mode: bool = False
) -> Tensor:
    """1-D power-average pooling, as `torch.nn.functional.lp_pool1d`: see `lp_pool2d`."""
    return _lp(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor, norm_type: float, kernel_size: Ints, stride: Ints | None = None, ceil_mode: bool = False
) -> Tensor:
    """2-D power-average pooling, as `torch.nn.functional.lp_pool2d`.

    A sum of powers that is negative, which PyTorch takes for 0, has no root: NaN.

    Args:
        input: (N, C, H, W), or (C, H, W).
        norm_type: the power.
        kernel_size: of the window: an int, or one a dimension.
        stride: likewise; None: kernel_size.
        ceil_mode: whether a last, partial window counts.

    Returns:
        (N, C, P, Q).

    Raises:
        TypeError, ValueError: as `fastconv.lp_pool2d`.
    """
    return _lp(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor, norm_type: float, kernel_size: Ints, stride: Ints | None = None, ceil_mode: bool = False
) -> Tensor:
    """3-D power-average pooling, as `torch.nn.functional.lp_pool3d`: see `lp_pool2d`."""
    return _lp(3, input, norm_type, kernel_size, stride, ceil_mode)


def _output_size(input: Tensor, output_size: Any, rank: int) -> tuple[Any, ...]:
    """Its entries; None, alone or in a dimension, stands for the size of the input."""
    sizes = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size,)
    sizes = sizes * rank if len(sizes) == 1 else sizes
    return tuple(input.shape[i - len(sizes)] if size is None else size for i, size in enumerate(sizes))


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """1-D adaptive average pooling, as `torch.nn.functional.adaptive_avg_pool1d`: see `adaptive_avg_pool2d`."""
    y: Tensor = _adaptive_op(input, _output_size(input, output_size, 1))
    return y


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """2-D adaptive average pooling of input (N, C, H, W) to output_size, as `torch.nn.functional.adaptive_avg_pool2d`.

    output_size is an int, or one a dimension; None is the size of the input. The result is (N, C, P, Q).
    """
    y: Tensor = _adaptive_op(input, _output_size(input, output_size, 2))
    return y


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """3-D adaptive average pooling, as `torch.nn.functional.adaptive_avg_pool3d`: see `adaptive_avg_pool2d`."""
    y: Tensor = _adaptive_op(input, _output_size(input, output_size, 3))
    return y


def _adaptive_max(rank: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    y, indices = _adaptive_max_op(input, _output_size(input, output_size, rank))
    return (y, indices) if return_indices else y


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """1-D adaptive max pooling, as `torch.nn.functional.adaptive_max_pool1d`: see `adaptive_max_pool2d`."""
    return _adaptive_max(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """2-D adaptive max pooling, as `torch.nn.functional.adaptive_max_pool2d`.

    output_size as in `adaptive_avg_pool2d`, return_indices as in `max_pool2d`.
    """
    return _adaptive_max(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """3-D adaptive max pooling, as `torch.nn.functional.adaptive_max_pool3d`: see `adaptive_max_pool2d`."""
    return _adaptive_max(3, input, output_size, return_indices)


# ---------------------------------------------------------------------------------------------------------- batch norm


def _plain(x: Tensor, like: Tensor | None = None) -> Tensor:
    """x, or a copy of it where it is neither contiguous nor channels_last: in the order of `like`, if that is given."""
    for form in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        rank = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(form, x.dim())
        if rank == x.dim() and (x if like is None else like).is_contiguous(memory_format=form):
            return x.contiguous(memory_format=form)
    return x.contiguous()


def _normalised(x: Tensor, like: Tensor) -> Tensor:
    """An empty result, in the order of `like`, which is `_plain`."""
    if not like.is_contiguous():
        return _packed(x, like.shape, [0, *range(2, like.dim()), 1])
    return _packed(x, like.shape, range(like.dim()))


def _normalise(x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float) -> Any:
    plain: Any = _plain(x)
    return F.batch_norm(plain, running_mean, running_var, weight, bias, eps=eps)


def _normalise_host(
    x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    operands: Any = (None if v is None else view(v) for v in (_plain(x), running_mean, running_var, weight, bias))
    y: Tensor = from_numpy(F.batch_norm(*operands, eps=eps))
    return y


def _train(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    x = _plain(x)
    # What goes into running averages that take the batch's statistics alone are these.
    mean, var = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    if x.device.type == "cpu":
        views: Any = (None if v is None else view(v) for v in (x, mean, var, weight, bias))
        y, _, inv_std = tensors(tuple(F.batch_norm_train(*views, momentum=1.0, eps=eps)))
    else:
        y, _, inv_std = F.batch_norm_train(x, mean, var, weight, bias, momentum=1.0, eps=eps)
    return y, mean, var, inv_std


def _train_fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    return _normalised(x, _plain(x)), *(x.new_empty((x.shape[1],)) for _ in range(3))


def _norm_gradients(
    dy: Any, x: Any, weight: Any, mean: Any, inv_std: Any, training: bool, needs: Sequence[bool]
) -> list[Any]:
    x = _plain(x)
    operands = [_plain(dy, x), x, weight, mean, inv_std]
    host = x.device.type == "cpu"
    if host:
        operands = [None if v is None else view(v) for v in operands]
    gradients = F.batch_norm_backward(*operands, training=training, needs=_named(needs))
    given = [g for g in gradients if g is not None]
    return [from_numpy(g) for g in given] if host else given


def _norm_gradients_fake(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inv_std: Tensor, training: bool, needs: Sequence[bool]
) -> list[Tensor]:
    made = [_normalised(x, _plain(x)) if needs[0] else None]
    made += [x.new_empty((x.shape[1],)) if wanted else None for wanted in needs[1:]]
    return [m for m in made if m is not None]


def _norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    eps: float | None,
    needs: Sequence[bool],
) -> list[Any]:
    """The gradients of x, weight and bias; eps: of the batch's own statistics."""
    if not torch.is_grad_enabled():
        return _spread(_norm_gradients_op(dy, x, weight, mean, inv_std, eps is not None, needs), needs)
    # Gradients of gradients are asked for: the formulas of `fastconv.functional.norm`, of PyTorch's functions.
    axes, shape = [0, *range(2, x.dim())], [-1] + [1] * (x.dim() - 2)
    if eps is not None:
        mean = x.mean(axes)
        inv_std = ((x - mean.view(shape)).square().mean(axes) + eps).rsqrt()
    xhat = (x - mean.view(shape)) * inv_std.view(shape)
    g = dy if weight is None else dy * weight.view(shape)
    if eps is None:
        dx = g * inv_std.view(shape)
    else:
        dx = (g - g.mean(axes, True) - xhat * (g * xhat).mean(axes, True)) * inv_std.view(shape)
    return [v if wanted else None for v, wanted in zip((dx, (dy * xhat).sum(axes), dy.sum(axes)), needs, strict=True)]


def _normalise_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, var, weight, _, eps = inputs
    saved(ctx, (x, mean, var, weight), (eps,))


def _normalise_backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    x, mean, var, weight = ctx.saved_tensors
    if dy is None:
        return (None,) * 6
    needs = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
    dx, dw, db = _norm_backward(dy, x, weight, mean, (var + ctx.options[0]).rsqrt(), None, needs)
    return (dx, None, None, dw, db, None)


def _train_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, eps = inputs
    saved(ctx, (x, weight, output[1], output[3]), (eps,))
    ctx.mark_non_differentiable(*output[1:])


def _train_backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    x, weight, mean, inv_std = ctx.saved_tensors
    if dy is None:
        return (None,) * 4
    needs = list(ctx.needs_input_grad[:3])
    return (*_norm_backward(dy, x, weight, mean, inv_std, ctx.options[0], needs), None)


_normalise_op = operator(
    "batch_norm(Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    kernel=_normalise,
    host=_normalise_host,
    fake=lambda x, *rest: _normalised(x, _plain(x)),
    save=_normalise_save,
    backward=_normalise_backward,
)
_train_op = operator(
    "batch_norm_train(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    kernel=_train,
    host=_train,
    fake=_train_fake,
    save=_train_save,
    backward=_train_backward,
)
_norm_gradients_op = operator(
    "batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor inv_std, bool training, "
    "bool[] needs) -> Tensor[]",
    kernel=_norm_gradients,
    host=_norm_gradients,
    fake=_norm_gradients_fake,
    save=_nothing_saved,
    backward=_no_gradient("batch_norm_backward", "a gradient of batch_norm"),
)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm, as `torch.nn.functional.batch_norm`.

    Args:
        input: (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W); copied unless it is contiguous or channels_last.
        running_mean: (C,); with training=True it may be None, and is updated in place where it is not.
        running_var: as running_mean.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        training: whether to normalise by the batch's statistics.
        momentum: the weight of the batch in the running ones.
        eps: added to the variance.

    Returns:
        The shape of input, channels_last where that is.

    Raises:
        TypeError, ValueError: as `fastconv.batch_norm`.
    """
    y: Tensor
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("running_mean and running_var (=None) must be given unless training is True")
        y = _normalise_op(input, running_mean, running_var, weight, bias, eps)
        return y
    y, mean, var, _ = _train_op(input, weight, bias, eps)
    with torch.no_grad():
        for running, batch in ((running_mean, mean), (running_var, var)):
            if running is not None:
                running.lerp_(batch.to(running.dtype), momentum)
    return y
