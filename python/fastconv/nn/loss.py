"""Losses: the value of a batch, and its gradient.

    value = loss(prediction, target)
    net.backward(loss.backward(), input_grad=False)

With reduction "mean" or "sum" the value is a float, with "none" an array; `backward` then takes the gradient of each
of its elements, by default 1. Sums are NumPy's, in float64: they do not depend on threads. Names and conventions are
PyTorch's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import functional
from .._args import Array
from .module import DTYPES, as_array

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "DiceLoss", "MSELoss"]


class _Loss:
    """A loss. Each call is followed by one `backward`, or by none."""

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction (={reduction!r}) must be 'mean', 'sum' or 'none'")
        self.reduction = reduction
        self._saved: Any = None

    def _take(self) -> Any:
        if self._saved is None:
            raise RuntimeError(f"{type(self).__name__}.backward has no call before it, or had its backward already")
        saved, self._saved = self._saved, None
        return saved

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.__dict__.items() if name[0] != "_"}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _float(name: str, value: object) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} (of type {type(value).__name__}) must be a numpy.ndarray")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} (dtype {value.dtype}) must be float32 or float64")
    return value


def _like(name: str, value: object, other_name: str, other: Array) -> Array:
    array = _float(name, value)
    if array.dtype != other.dtype:
        raise TypeError(f"{name} (dtype {array.dtype}) must have the dtype of {other_name}, {other.dtype}")
    if array.shape != other.shape:
        raise ValueError(f"{name} (shape {array.shape}) must have the shape of {other_name}, {other.shape}")
    return array


def _total(values: Array) -> float:
    return float(np.sum(values, dtype=np.float64))


class CrossEntropyLoss(_Loss):
    """Softmax and the negative logarithm of the target's probability.

    loss = -weight[t] * log_softmax(logits)[t], with label_smoothing e (1 - e) times that plus e / C times the sum over
    the classes c of -weight[c] * log_softmax(logits)[c]; the mean divides by the sum of weight[t]
    (Szegedy et al., arXiv:1512.00567, section 7).

    Args:
        label_smoothing: from 0 to 1.
        weight: (C,), of each class; None is ones.
        reduction: "mean", "sum" or "none".
        ignore_index: a target that does not count.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        weight: npt.ArrayLike | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing (={label_smoothing}) must be from 0 to 1")
        self.label_smoothing = label_smoothing
        self.weight = None if weight is None else np.array(as_array(weight, "weight"), np.float64)
        if self.weight is not None and (self.weight.ndim != 1 or not np.all(self.weight >= 0)):
            raise ValueError(f"weight (shape {self.weight.shape}) must be one number a class, not negative")
        self.ignore_index = ignore_index

    def __call__(self, logits: Array, target: Array) -> Any:
        """Compare logits (N, C), or (N, C, ...), with classes (N,), or (N, ...), integers from 0 to C - 1.

        Raises:
            TypeError: logits is no array of float32 or float64, or target none of integers.
            ValueError: the shapes do not fit, a class is out of range, or no element counts.
        """
        logits = _float("logits", logits)
        target = as_array(target, "target")
        if target.dtype.kind not in "iu":
            raise TypeError(f"target (dtype {target.dtype}) must be integers: the classes")
        if logits.ndim < 2 or target.shape != (logits.shape[0], *logits.shape[2:]):
            raise ValueError(
                f"target (shape {target.shape}) must have the shape of logits, {logits.shape}, without the second axis"
            )
        classes = logits.shape[1]
        if self.weight is not None and self.weight.shape != (classes,):
            raise ValueError(f"weight (shape {self.weight.shape}) must have an entry for each of the {classes} classes")
        counts = target != self.ignore_index
        chosen = np.where(counts, target, 0).astype(np.intp)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < classes):
            wrong = chosen[(chosen < 0) | (chosen >= classes)].flat[0]
            raise ValueError(f"target (with the class {wrong}) must be from 0 to {classes - 1}, or {self.ignore_index}")
        log_p = functional.log_softmax(logits, 1)
        # What each logarithm is multiplied by, (N, C, ...).
        class_weight = np.ones(classes) if self.weight is None else self.weight
        shares = np.zeros(logits.shape, np.float64)
        element = np.where(counts, class_weight[chosen], 0.0)
        e = self.label_smoothing
        np.put_along_axis(shares, np.expand_dims(chosen, 1), np.expand_dims((1 - e) * element, 1), 1)
        if e:
            across = class_weight.reshape(1, -1, *(1 for _ in logits.shape[2:]))
            shares += (e / classes) * across * np.expand_dims(counts, 1)
        losses = -np.sum(np.where(shares == 0, 0.0, shares * log_p), axis=1)
        divisor = 1.0
        if self.reduction == "mean":
            divisor = float(np.sum(element))
            if divisor == 0:
                raise ValueError("target must have an element that counts where reduction is 'mean'")
        self._saved = log_p, shares, divisor
        if self.reduction == "none":
            return losses.astype(logits.dtype)
        return float(np.sum(losses)) / divisor

    def backward(self, dloss: Array | float = 1.0) -> Array:
        """The gradient with respect to logits; dloss, of the value's shape, is the gradient of the value."""
        log_p, shares, divisor = self._take()
        d = np.asarray(dloss, np.float64)
        if self.reduction == "none" and d.ndim:
            d = np.expand_dims(d, 1)
        # (sum of shares) * softmax - shares, times d / divisor.
        dx: Array = np.multiply(np.exp(log_p), np.sum(shares, axis=1, keepdims=True), out=np.empty(log_p.shape))
        dx -= shares
        dx *= d / divisor
        return dx.astype(log_p.dtype)


class MSELoss(_Loss):
    """The squared difference, (prediction - target)^2."""

    def __call__(self, prediction: Array, target: Array) -> Any:
        """Compare two arrays of one shape and dtype.

        Raises:
            TypeError, ValueError: they are not.
        """
        prediction = _float("prediction", prediction)
        difference = prediction - _like("target", target, "prediction", prediction)
        self._saved = (difference,)
        if self.reduction == "none":
            return difference * difference
        total = _total(np.square(difference, dtype=np.float64))
        return total / difference.size if self.reduction == "mean" else total

    def backward(self, dloss: Array | float = 1.0) -> Array:
        """The gradient with respect to prediction."""
        (difference,) = self._take()
        factor = 2.0 / difference.size if self.reduction == "mean" else 2.0
        dx: Array = difference * np.asarray(dloss * np.float64(factor)).astype(difference.dtype)
        return dx


class BCEWithLogitsLoss(_Loss):
    """-(pos_weight * t * log(sigmoid(x)) + (1 - t) * log(1 - sigmoid(x))), computed without overflow.

    Args:
        pos_weight: a number, or an array that broadcasts to x; None is 1.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, pos_weight: npt.ArrayLike | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.pos_weight = None if pos_weight is None else np.array(as_array(pos_weight, "pos_weight"), np.float64)

    def __call__(self, logits: Array, target: Array) -> Any:
        """Compare logits with probabilities of the same shape and dtype.

        Raises:
            TypeError, ValueError: they are not, or pos_weight does not broadcast to them.
        """
        logits = _float("logits", logits)
        target = _like("target", target, "logits", logits)
        x, t = logits.astype(np.float64), target.astype(np.float64)
        positive = 1.0 if self.pos_weight is None else self.pos_weight
        try:
            scale = np.broadcast_to(1 + (positive - 1) * t, x.shape)
        except ValueError:
            raise ValueError(
                f"pos_weight (shape {np.shape(positive)}) must broadcast to the shape of logits, {x.shape}"
            ) from None
        # log(1 + exp(-x)) = max(-x, 0) + log1p(exp(-|x|))
        losses = (1 - t) * x + scale * (np.maximum(-x, 0) + np.log1p(np.exp(-np.abs(x))))
        self._saved = x, t, scale, logits.dtype
        if self.reduction == "none":
            return losses.astype(logits.dtype)
        total = _total(losses)
        return total / x.size if self.reduction == "mean" else total

    def backward(self, dloss: Array | float = 1.0) -> Array:
        """The gradient with respect to logits."""
        x, t, scale, dtype = self._take()
        small = np.exp(-np.abs(x))
        complement = np.where(x >= 0, small, 1.0) / (1 + small)  # 1 - sigmoid(x)
        dx: Array = ((1 - t) - scale * complement) * (dloss / (x.size if self.reduction == "mean" else 1))
        return dx.astype(dtype)


class DiceLoss(_Loss):
    """1 - (2 * sum of p * t + smooth) / (sum of p + sum of t + smooth), p = sigmoid(logits), a value an image.

    Sums are over all axes but the first. Source: Milletari, Navab and Ahmadi, "V-Net", arXiv:1606.04797, with plain
    sums below, and smooth against empty masks.
    """

    def __init__(self, smooth: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if not 0 <= smooth < math.inf:
            raise ValueError(f"smooth (={smooth}) must not be negative")
        self.smooth = smooth

    def __call__(self, logits: Array, target: Array) -> Any:
        """Compare logits (N, ...) with masks of the same shape and dtype.

        Raises:
            TypeError, ValueError: they are not.
        """
        logits = _float("logits", logits)
        target = _like("target", target, "logits", logits)
        if logits.ndim < 2:
            raise ValueError(f"logits (shape {logits.shape}) must have at least 2 dimensions: (N, ...)")
        axes = tuple(range(1, logits.ndim))
        p, t = functional.sigmoid(logits).astype(np.float64), target.astype(np.float64)
        both = 2 * np.sum(p * t, axis=axes, keepdims=True) + self.smooth
        all_of = np.sum(p, axis=axes, keepdims=True) + np.sum(t, axis=axes, keepdims=True) + self.smooth
        losses = 1 - (both / all_of).reshape(-1)
        self._saved = p, t, both, all_of, logits.dtype
        if self.reduction == "none":
            return losses.astype(logits.dtype)
        total = _total(losses)
        return total / len(losses) if self.reduction == "mean" else total

    def backward(self, dloss: Array | float = 1.0) -> Array:
        """The gradient with respect to logits."""
        p, t, both, all_of, dtype = self._take()
        d = np.asarray(dloss, np.float64)
        if d.ndim:
            d = d.reshape(all_of.shape)
        if self.reduction == "mean":
            d = d / len(p)
        dx: Array = (both / all_of - 2 * t) / all_of * p * (1 - p) * d
        return dx.astype(dtype)
