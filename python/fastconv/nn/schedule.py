"""Schedules of the learning rate. `step()`, once an epoch or once a batch, sets "lr" in the optimiser's groups.

The rate of a step is computed from its number and the rates that the groups had at first (PyTorch's closed forms): it
does not drift, and `load_state_dict` needs the number alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .._args import integer
from .optim import Optimizer, _check, steps

__all__ = ["CosineAnnealingLR", "ExponentialLR", "LinearWarmup", "MultiStepLR", "OneCycleLR", "StepLR"]


class _Schedule:
    """Sets the rates of step 0 when it is made.

    Attributes:
        last_step: the number of the step whose rates are set.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer (of type {type(optimizer).__name__}) must be an Optimizer")
        self.optimizer = optimizer
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.last_step = 0
        self._set()

    def _rate(self, base: float, step: int) -> float:
        raise NotImplementedError

    def _set(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self._rate(base, self.last_step)

    def step(self) -> None:
        """Go on to the rates of the next step."""
        self.last_step += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """The rates that are set, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The number of the step and the rates that the groups had at first."""
        return {"last_step": self.last_step, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave, and set the rates.

        Raises:
            ValueError: the number of groups is not that of the optimiser.
        """
        rates = [float(rate) for rate in state["base_lrs"]]
        if len(rates) != len(self.optimizer.param_groups):
            raise ValueError(
                f"state (of {len(rates)} groups) must be of {len(self.optimizer.param_groups)} groups of parameters"
            )
        self.base_lrs, self.last_step = rates, int(state["last_step"])
        self._set()


class StepLR(_Schedule):
    """Multiplies the rate by gamma every step_size steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        _check("gamma", gamma, 0.0)
        self.step_size, self.gamma = steps("step_size", step_size), gamma
        super().__init__(optimizer)

    def _rate(self, base: float, step: int) -> float:
        return float(base * self.gamma ** (step // self.step_size))


class MultiStepLR(_Schedule):
    """Multiplies the rate by gamma at each of the milestones."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        _check("gamma", gamma, 0.0)
        self.milestones, self.gamma = sorted(integer("milestones", m, milestones) for m in milestones), gamma
        super().__init__(optimizer)

    def _rate(self, base: float, step: int) -> float:
        return float(base * self.gamma ** sum(m <= step for m in self.milestones))


class ExponentialLR(_Schedule):
    """Multiplies the rate by gamma every step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        _check("gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(optimizer)

    def _rate(self, base: float, step: int) -> float:
        return float(base * self.gamma**step)


class CosineAnnealingLR(_Schedule):
    """From the first rate to eta_min by half a cosine, in T_max steps, and back.

    Source: Loshchilov and Hutter, arXiv:1608.03983.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        _check("eta_min", eta_min, 0.0)
        self.T_max, self.eta_min = steps("T_max", T_max), eta_min
        super().__init__(optimizer)

    def _rate(self, base: float, step: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2


class LinearWarmup(_Schedule):
    """From start_factor times the first rate up to it in warmup_steps steps, then by `after`'s rule, if one is given.

    `after` is a schedule of the same optimiser, made before this one; its steps begin where the warmup ends.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int, start_factor: float = 1 / 3, after: _Schedule | None = None
    ) -> None:
        _check("start_factor", start_factor, 0.0)
        if after is not None and (not isinstance(after, _Schedule) or after.optimizer is not optimizer):
            raise ValueError(f"after (={after!r}) must be a schedule of the same optimizer")
        self.warmup_steps, self.start_factor, self.after = steps("warmup_steps", warmup_steps), start_factor, after
        if after is not None:
            for group, base in zip(optimizer.param_groups, after.base_lrs, strict=True):
                group["lr"] = base
        super().__init__(optimizer)

    def _rate(self, base: float, step: int) -> float:
        if step < self.warmup_steps:
            return base * (self.start_factor + (1 - self.start_factor) * step / self.warmup_steps)
        return base if self.after is None else self.after._rate(base, step - self.warmup_steps)


class OneCycleLR(_Schedule):
    """From max_lr / div_factor up to max_lr in pct_start of the steps, then down to that over final_div_factor.

    Both by half a cosine (Smith and Topin, arXiv:1708.07120, in PyTorch's form). The momentum stays as it is.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        _check("max_lr", max_lr, 0.0)
        if not 0 < pct_start < 1:
            raise ValueError(f"pct_start (={pct_start}) must be above 0 and below 1")
        for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            _check(name, value, 1.0)
        self.max_lr, self.total_steps, self.pct_start = max_lr, steps("total_steps", total_steps), pct_start
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        super().__init__(optimizer)

    def _rate(self, base: float, step: int) -> float:
        if step >= self.total_steps:
            raise ValueError(f"step {step} must be below total_steps (={self.total_steps})")
        low = self.max_lr / self.div_factor
        peak = self.pct_start * self.total_steps - 1
        last = self.total_steps - 1
        if step <= peak:
            begin, end, share = low, self.max_lr, step / peak if peak else 1.0
        else:
            begin, end, share = self.max_lr, low / self.final_div_factor, (step - peak) / (last - peak)
        return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
