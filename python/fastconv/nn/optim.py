"""Optimisers: SGD with momentum, Adam and AdamW, as PyTorch's.

An optimiser changes parameters in place, an array at a time and without threads, so that its bits depend on nothing but
its inputs. Parameters without a gradient, and those that are frozen, are passed over.

Sources: Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013), in PyTorch's
form; Kingma and Ba, arXiv:1412.6980; Loshchilov and Hutter, arXiv:1711.05101.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from .._args import Array, integer
from .module import Parameter, as_array

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm"]

Parameters = Iterable[Parameter] | Iterable[Mapping[str, Any]]


def _check(name: str, value: object, low: float, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} (={value!r}) must be a number")
    if not low <= value < high:
        bound = f"at least {low}" if high == math.inf else f"from {low} to below {high}"
        raise ValueError(f"{name} (={value}) must be {bound}")


# Elements of a piece, of which the second-level cache holds what an update reads and writes.
_PIECE = 1 << 15


def _pieces(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same pieces of all arrays, one after the other: what is done to a piece passes over memory once."""
    if arrays[0].size <= _PIECE or not all(a.flags.c_contiguous for a in arrays):
        yield arrays
        return
    flat = [a.reshape(-1) for a in arrays]
    for begin in range(0, arrays[0].size, _PIECE):
        yield tuple([a[begin : begin + _PIECE] for a in flat])


class Optimizer:
    """What the optimisers share: groups of parameters with options of their own, and state for each parameter.

    Attributes:
        param_groups: dicts of "params" and the options, as "lr"; schedules change "lr" there.
    """

    _slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        if isinstance(params, Parameter):
            raise TypeError("params (a Parameter) must be an iterable of parameters, or of dicts with 'params'")
        given = list(params)
        if not given:
            raise ValueError("params must not be empty")
        self._state: dict[int, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = []
        self.defaults = defaults
        groups = given if isinstance(given[0], Mapping) else [{"params": given}]
        for group in groups:
            if not isinstance(group, Mapping) or "params" not in group:
                raise TypeError(f"params (with an entry of type {type(group).__name__}) must be parameters or dicts")
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with options of their own; those that are not given are the optimiser's.

        Raises:
            TypeError: an entry of "params" is no Parameter.
            ValueError: a parameter is there already, or an option is not known or out of its range.
        """
        params = [group["params"]] if isinstance(group["params"], Parameter) else list(group["params"])
        unknown = [name for name in group if name != "params" and name not in self.defaults]
        if unknown:
            raise ValueError(f"group (with {', '.join(map(repr, unknown))}) must have options of {list(self.defaults)}")
        seen = {id(p) for g in self.param_groups for p in g["params"]}
        for p in params:
            if not isinstance(p, Parameter):
                raise TypeError(f"params (with an entry of type {type(p).__name__}) must be Parameters")
            if id(p) in seen:
                raise ValueError(f"params must hold each parameter once: that of shape {p.shape} comes twice")
            seen.add(id(p))
        entry = {"params": params, **self.defaults, **{n: v for n, v in group.items() if n != "params"}}
        self._check_group(entry)
        self.param_groups.append(entry)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _update(self, p: Parameter, gradient: Array, group: Mapping[str, Any], state: dict[str, Any]) -> None:
        raise NotImplementedError

    def step(self) -> None:
        """Change every parameter by its gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.requires_grad:
                    self._update(p, p.grad, group, self._state.setdefault(id(p), {}))

    def zero_grad(self) -> None:
        """Set the gradients of all its parameters to None."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Copies of options and state, arrays and numbers, by the parameters' order: a checkpoint, exact to the bit."""
        order = [p for group in self.param_groups for p in group["params"]]
        groups, start = [], 0
        for group in self.param_groups:
            options = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
            groups.append({**options, "params": list(range(start, start + len(group["params"])))})
            start += len(group["params"])
        state = {i: copy.deepcopy(self._state[id(p)]) for i, p in enumerate(order) if id(p) in self._state}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave, for the same parameters in the same order; nothing changes where it refuses.

        Raises:
            ValueError: groups or shapes are not those of this optimiser.
        """
        if not isinstance(state, Mapping) or not {"state", "param_groups"} <= set(state):
            raise ValueError("state must be a mapping with 'state' and 'param_groups'")
        groups = state["param_groups"]
        sizes = [len(group["params"]) for group in groups]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise ValueError(f"state (with groups of {sizes} parameters) must have groups of {own}")
        order = [p for group in self.param_groups for p in group["params"]]
        loaded: dict[int, dict[str, Any]] = {}
        for key, entries in state["state"].items():
            index = int(key)
            if not 0 <= index < len(order):
                raise ValueError(f"state (with the parameter {index}) must be of {len(order)} parameters")
            entry: dict[str, Any] = {}
            for name, value in entries.items():
                if name != "step" and name not in self._slots:
                    raise ValueError(f"state[{index}] (with {name!r}) must have entries of {('step', *self._slots)}")
                if name == "step":
                    entry[name] = int(value)
                    continue
                array = as_array(value, f"state[{index}][{name!r}]")
                if array.shape != order[index].shape or array.dtype != order[index].dtype:
                    raise ValueError(
                        f"state[{index}][{name!r}] (shape {array.shape}, {array.dtype}) must be like its parameter, "
                        f"{order[index].shape}, {order[index].dtype}"
                    )
                entry[name] = array.copy()
            loaded[id(order[index])] = entry
        fresh = []
        for group, given in zip(self.param_groups, groups, strict=True):
            unknown = [name for name in given if name not in (*self.defaults, "params")]
            if unknown:
                raise ValueError(f"state (with {', '.join(map(repr, unknown))}) must have options of this optimiser")
            options = {n: copy.deepcopy(v) for n, v in given.items() if n != "params"}
            entry = {**group, **options}
            self._check_group(entry)
            fresh.append(entry)
        for group, entry in zip(self.param_groups, fresh, strict=True):
            group.update(entry)
        self._state = loaded

    def __repr__(self) -> str:
        groups = "; ".join(
            ", ".join([f"{len(group['params'])} parameters", *(f"{n}={group[n]!r}" for n in self.defaults)])
            for group in self.param_groups
        )
        return f"{type(self).__name__}({groups})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and weight decay.

    g = grad + weight_decay * p; v = momentum * v + (1 - dampening) * g, v = g at first; p -= lr * v, or with nesterov
    lr * (g + momentum * v).

    Args:
        params: parameters, or dicts of "params" and options.
        lr: not negative.
        momentum: not negative.
        dampening: not negative.
        weight_decay: not negative.
        nesterov: needs momentum and no dampening.
    """

    _slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, {**options, "weight_decay": weight_decay, "nesterov": nesterov})

    def _check_group(self, group: Mapping[str, Any]) -> None:
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            _check(name, group[name], 0.0)
        if group["nesterov"] and (not group["momentum"] or group["dampening"]):
            both = f"momentum (={group['momentum']}) above 0 and no dampening (={group['dampening']})"
            raise ValueError(f"nesterov (=True) needs {both}")

    def _update(self, p: Parameter, gradient: Array, group: Mapping[str, Any], state: dict[str, Any]) -> None:
        lr, momentum, fresh = float(group["lr"]), float(group["momentum"]), 1 - group["dampening"]
        first = "momentum_buffer" not in state
        operands = [p._writable(), gradient]
        if momentum:
            if first:
                state["momentum_buffer"] = np.empty(gradient.shape, gradient.dtype)
            operands.append(state["momentum_buffer"])
        for values, g, *held in _pieces(*operands):
            if group["weight_decay"]:
                g = g + group["weight_decay"] * values
            if momentum:
                buffer = held[0]
                if first:
                    buffer[...] = g
                else:
                    buffer *= momentum
                    buffer += g if fresh == 1 else fresh * g
                g = g + momentum * buffer if group["nesterov"] else buffer
            values -= lr * g


class Adam(Optimizer):
    """Adam, whose weight decay is part of the gradient.

    m = b1 * m + (1 - b1) * g; v = b2 * v + (1 - b2) * g^2; p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps).

    Args:
        params: parameters, or dicts of "params" and options.
        lr: not negative.
        betas: (b1, b2), each from 0 to below 1.
        eps: not negative.
        weight_decay: not negative.
    """

    _slots = ("exp_avg", "exp_avg_sq")
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def _check_group(self, group: Mapping[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            _check(name, group[name], 0.0)
        if len(group["betas"]) != 2:
            raise ValueError(f"betas (={group['betas']}) must be two numbers")
        for beta in group["betas"]:
            _check("betas", beta, 0.0, 1.0)

    def _update(self, p: Parameter, gradient: Array, group: Mapping[str, Any], state: dict[str, Any]) -> None:
        whole, lr, (b1, b2) = p._writable(), float(group["lr"]), group["betas"]
        if not state:
            state.update(step=0, exp_avg=np.zeros_like(whole), exp_avg_sq=np.zeros_like(whole))
        state["step"] += 1
        for values, g, mean, square in _pieces(whole, gradient, state["exp_avg"], state["exp_avg_sq"]):
            if group["weight_decay"]:
                if self._decoupled:
                    values *= 1 - lr * group["weight_decay"]
                else:
                    g = g + group["weight_decay"] * values
            mean *= b1
            mean += (1 - b1) * g
            square *= b2
            square += (1 - b2) * (g * g)
            below = np.sqrt(square, out=np.empty_like(square))
            below /= math.sqrt(1 - b2 ** state["step"])
            below += group["eps"]
            np.divide(mean, below, out=below)
            below *= lr / (1 - b1 ** state["step"])
            values -= below


class AdamW(Adam):
    """Adam, whose weight decay shrinks the parameter itself: p *= 1 - lr * weight_decay. Arguments as `Adam`."""

    _decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients so that their common 2-norm is at most max_norm; gives the norm before.

    The factor is max_norm / (norm + 1e-6) where that is below 1, as PyTorch's. A norm that is not finite scales all
    gradients to NaN or zeros; look at what is given back.
    """
    _check("max_norm", max_norm, 0.0)
    held = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(np.sum(np.square(gradient, dtype=np.float64))) for gradient in held))
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:
        for gradient in held:
            gradient *= gradient.dtype.type(factor)
    return norm


def steps(name: str, value: object) -> int:
    """A number of steps, at least 1."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name} (={number}) must be at least 1")
    return number
