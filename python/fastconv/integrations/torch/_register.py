"""How an operator of `ops` is registered with PyTorch, with all that PyTorch may ask of it.

An operator is `torch.library.Library.impl` of a Python function: the cheapest registration that needs no build against
PyTorch (bench/torch_overhead.py measures it). Its gradient is a kernel of the key Autograd; torch.func, whose
transforms do not take such gradients, is given a `torch.autograd.Function` of the same functions instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_Library: Any = torch.library.Library
library = _Library("fastconv", "DEF")
from_numpy = torch.from_numpy
cuda_kernels: dict[str, Callable[..., Any]] = {}  # by the operator's name, for the tests: which have no CUDA device

_ops: Any = torch.ops.fastconv
_transforming = torch._C._are_functorch_transforms_active
_below_autograd: Any = torch._C._AutoDispatchBelowAutograd
_after_autograd = torch._C._after_autograd_keyset
_requires_grad: Any = torch._C._any_requires_grad
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def view(value: Any) -> Any:
    """A tensor as a NumPy array; where there is none the tensor, of which `functional` says what is wrong with it."""
    try:
        return value.numpy()
    except (TypeError, RuntimeError):
        return value


def tensors(result: Any) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)(from_numpy(r) for r in result)
    return from_numpy(result)


def on_host(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of NumPy arrays as one of tensors."""

    def call(*args: Any) -> Any:
        return tensors(kernel(*(view(a) if isinstance(a, Tensor) else a for a in args)))

    return call


def _autocast_cuda(name: str, lower: bool) -> Callable[..., Any]:
    """In the type that autocast names, or in float32."""
    inner = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def call(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype("cuda") if lower else torch.float32
        with torch._C._ExcludeDispatchKeyGuard(inner):
            cast = (
                a.to(dtype)
                if isinstance(a, Tensor) and a.is_cuda and a.dtype in _FLOATS and a.dtype is not dtype
                else a
                for a in args
            )
            return getattr(_ops, name).default(*cast)

    return call


def _vmap(op: Callable[..., Any], folds: Callable[..., int] | None) -> Callable[..., Any]:
    """The operator with a mapped axis.

    `folds` tells the spatial dimensions of the first operand: where that alone is mapped, and has a batch already, the
    mapped axis joins it; where it has none the axis becomes the batch.
    """

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        mapped = [isinstance(a, Tensor) and d is not None for a, d in zip(args, in_dims, strict=True)]
        if folds is not None and mapped[0] and not any(mapped[1:]):
            x = args[0].movedim(in_dims[0], 0)
            batched = x.dim() - 3 == folds(*args)
            y = op(x.flatten(0, 1) if batched else x, *args[1:])
            split = [r.unflatten(0, x.shape[:2]) if batched else r for r in (y if isinstance(y, tuple) else (y,))]
            return (tuple(split), (0,) * len(split)) if isinstance(y, tuple) else (split[0], 0)
        results = [
            op(*(a.select(d, i) if m else a for a, d, m in zip(args, in_dims, mapped, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    return rule


def operator(
    schema: str,
    *,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
    host: Callable[..., Any] | None = None,
    folds: Callable[..., int] | None = None,
    lower: bool = False,
) -> Any:
    """Define an operator, with all that PyTorch may ask of it.

    Args:
        schema: as PyTorch writes it.
        kernel: of tensors on CUDA, and of NumPy arrays.
        fake: makes the results without computing them.
        save: (ctx, inputs, output), before the gradient.
        backward: (ctx, *dy), the gradient of every argument.
        host: of tensors in the host's memory, where a faster one than the kernel over views is worth it.
        folds: see `_vmap`.
        lower: whether autocast on CUDA takes its lower precision.
    """
    name = schema.partition("(")[0]
    qualified = f"fastconv::{name}"
    library.define(schema)
    op = getattr(_ops, name).default
    lists = schema.endswith("[]")

    class Transformed(torch.autograd.Function):
        """For torch.func, whose transforms take no gradient that is registered with an operator."""

        @staticmethod
        def forward(*args: Any) -> Any:
            result = op(*args)
            return tuple(result) if lists else result

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *dy: Any) -> Any:
            return backward(ctx, dy) if lists else backward(ctx, *dy)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return mapped(info, in_dims, *args)

    class Recorded(torch.autograd.Function):
        """What `torch.library.register_autograd` makes, for two thirds of its time: no schema here has defaults."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *args_, keys = args
            with _below_autograd():
                result = op.redispatch(keys & _after_autograd, *args_)
            save(ctx, tuple(args_), result)
            return tuple(result) if lists else result

        @staticmethod
        def backward(ctx: Any, *dy: Any) -> Any:
            return (*(backward(ctx, dy) if lists else backward(ctx, *dy)), None)

    transformed: Any = Transformed.apply
    recorded: Any = Recorded.apply

    def record(keys: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and _requires_grad(*args):
            result = recorded(*args, keys)
            return list(result) if lists else result
        with _below_autograd():
            return op.redispatch(keys & _after_autograd, *args)

    def call(*args: Any) -> Any:
        if _transforming():
            return transformed(*args)
        return op(*args)

    mapped = _vmap(call, folds)
    library.impl(name, host or on_host(kernel), "CPU")
    library.impl(name, kernel, "CUDA")
    cuda_kernels[name] = kernel
    torch.library.register_fake(qualified, fake, lib=library)
    library.impl(name, record, "Autograd", with_keyset=True)
    torch.library.register_vmap(qualified, _vmap(op, folds), lib=library)
    torch.library.register_autocast(qualified, "cpu", torch.float32, lib=library)
    library.impl(name, _autocast_cuda(name, lower), "AutocastCUDA")
    return call


def saved(ctx: Any, tensors: Sequence[Tensor | None], options: Sequence[Any]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.options = tuple(options)
    ctx.set_materialize_grads(False)
