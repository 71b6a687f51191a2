"""Training of a classifier: epochs, a schedule, early stopping, checkpoints from which it goes on to the same bits.

    optimizer = nn.AdamW(net.parameters(), lr=3e-3)
    result = training.fit(net, optimizer, (images, labels), (held_out_images, held_out_labels), epochs=30, patience=8,
                          augment=data.Augment(shift=1, rotation=10), checkpoint="run.npz", resume=True)

Nothing is printed: a `Callback` sees what happens. The seed decides every bit of the result, for any number of threads:
batches are drawn from a generator of the seed's, sums have one order, and the kernels' bits depend on neither.

A checkpoint is one .npz or .safetensors file that `nn.load` reads: weights and buffers as they are and at their best,
the optimiser's state, and, as text in an array of bytes, everything else: the schedule's step, the states of all
generators, the history, the caller's notes. It is not trusted: nothing in it is run.
"""

from __future__ import annotations

import json
import math
import operator
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from . import data, nn
from ._args import Array, integer

__all__ = ["Callback", "Epoch", "Result", "class_activation_map", "evaluate", "fit", "predict", "read_checkpoint"]

Pair = tuple[Array, Array]

_FORMAT = 1
_EVALUATION_BATCH = 256


class Schedule(Protocol):
    """What `fit` asks of a schedule: those of `nn` have it."""

    def step(self) -> None:
        """Set the rates of the next step."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: means over images; those of training while the weights change, with augmentation.

    Attributes:
        number: from 1.
        lr: the first group's rate at the epoch's end.
        loss, accuracy: on the training data.
        held_out_loss, held_out_accuracy: in eval mode after the epoch; None without held-out data.
    """

    number: int
    lr: float
    loss: float
    accuracy: float
    held_out_loss: float | None = None
    held_out_accuracy: float | None = None


@dataclass(frozen=True)
class Result:
    """What `fit` did.

    Attributes:
        history: all epochs, those before a checkpoint among them.
        best: the epoch whose weights the network has: that of the least held-out loss, or without held-out data the
            last one; None where no epoch ran.
        stopped: "patience" where the held-out loss had not fallen for so long, else "epochs".
    """

    history: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    stopped: Literal["epochs", "patience"] = "epochs"


class Callback:
    """What `fit` calls; each method may be overridden, and does nothing by itself. An exception ends the training."""

    def on_epoch_begin(self, number: int, batches: int) -> None:
        """Epoch `number`, from 1, begins; it has so many batches."""

    def on_batch_end(self, number: int, loss: float, accuracy: float) -> None:
        """Batch `number` of the epoch, from 1, is done; the means are of the epoch's images so far."""

    def on_epoch_end(self, epoch: Epoch) -> None:
        """The epoch is done, and the checkpoint, if there is one, written."""


# ---------------------------------------------------------------------------------------------------------- evaluation


def predict(net: nn.Module, images: Array, batch_size: int = _EVALUATION_BATCH) -> Array:
    """What net computes of images (N, ...) in eval mode, in batches, joined; net's modes are as before afterwards.

    Raises:
        ValueError: there is no image, or batch_size is below 1.
    """
    if not len(images):
        raise ValueError(f"images (shape {images.shape}) must not be empty")
    if integer("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size (={batch_size}) must be at least 1")
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        parts = [net(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    finally:
        for module, mode in modes:
            module.training = mode
    return np.concatenate(parts)


def evaluate(net: nn.Module, pair: Pair, loss: Any = None, batch_size: int = _EVALUATION_BATCH) -> tuple[float, float]:
    """The mean loss and the accuracy of net on (images, labels), in eval mode.

    Args:
        net: images to logits (N, C, ...).
        pair: images and labels (N, ...), integers.
        loss: a loss of the mean; None is `nn.CrossEntropyLoss()`.
        batch_size: images at a time: memory alone depends on it.

    Raises:
        ValueError: the lengths differ, there is no image, or as net and loss.
    """
    images, labels = _pair("pair", pair)
    logits = predict(net, images, batch_size)
    return float((nn.CrossEntropyLoss() if loss is None else loss)(logits, labels)), _share(logits, labels)


def _share(logits: Array, labels: Array) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def class_activation_map(features: Array, weight: Array, labels: Array) -> Array:
    """How much each place of the last maps speaks for a class, where a global mean and a dense layer end the network.

    map[n, i, j] = sum over k of weight[labels[n], k] * features[n, k, i, j]; its mean is the class's logit without the
    bias.

    Args:
        features: (N, K, H, W), what the global mean reads.
        weight: (C, K), of the dense layer.
        labels: (N,), integers: the class of each image's map.

    Returns:
        (N, H, W).

    Raises:
        ValueError: the shapes do not fit.

    Source: Zhou et al., "Learning deep features for discriminative localization", arXiv:1512.04150.
    """
    if features.ndim != 4 or weight.ndim != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight (shape {weight.shape}) must be (C, K) for features (N, K, H, W), which have shape {features.shape}"
        )
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels (shape {labels.shape}) must be ({len(features)},), one for each image")
    result: Array = np.sum(weight[labels][:, :, np.newaxis, np.newaxis] * features, axis=1)
    return result


# --------------------------------------------------------------------------------------------------------- checkpoints


def _plain(value: Any) -> Any:
    """What JSON can hold of states: arrays of generators as lists under their dtype."""
    if isinstance(value, np.ndarray):
        return {"__dtype__": str(value.dtype), "values": value.tolist()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"the state (with a value of type {type(value).__name__}) must be arrays and what JSON holds")


def _revived(value: dict[str, Any]) -> Any:
    if value.keys() != {"__dtype__", "values"}:
        return value
    dtype = np.dtype(value["__dtype__"])
    if dtype.kind not in "iuf":  # a string's dtype could ask for any amount of memory
        raise ValueError(f"dtype (={dtype}) must be one of numbers")
    return np.array(value["values"], dtype)


@dataclass
class _Run:
    """What a checkpoint holds: what changes in an epoch, and the rules, which are the same where it goes on."""

    net: nn.Module
    optimizer: nn.Optimizer
    schedule: Schedule | None
    rng: np.random.Generator
    rules: dict[str, Any]
    history: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    best_state: dict[str, Array] = field(default_factory=dict)

    def capture(self) -> dict[str, Array]:
        """Everything as arrays by name; those of the network are its own."""
        arrays = {f"net/{name}": array for name, array in self.net.state_dict(copy=False).items()}
        arrays |= {f"best/{name}": array for name, array in self.best_state.items()}
        optimizer = self.optimizer.state_dict()
        numbers: dict[str, dict[str, Any]] = {}
        for index, entries in optimizer["state"].items():
            numbers[str(index)] = {}
            for name, value in entries.items():
                if isinstance(value, np.ndarray):
                    arrays[f"optimizer/{index}/{name}"] = value
                else:
                    numbers[str(index)][name] = value
        meta = {
            "format": _FORMAT,
            "rules": self.rules,
            "optimizer": {"state": numbers, "param_groups": optimizer["param_groups"]},
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "rng": dict(self.rng.bit_generator.state),
            "net_rng": self.net.random_state(),
            "history": [asdict(epoch) for epoch in self.history],
            "best": None if self.best is None else self.best.number,
        }
        arrays["meta"] = np.frombuffer(json.dumps(meta, default=_plain).encode(), np.uint8)
        return arrays

    def restore(self, arrays: Mapping[str, Array], file: Path) -> None:
        """Take what `capture` gave. What does not fit is a ValueError that names the file, and nothing is changed."""
        rules = _meta(arrays, file)["rules"]
        wrong = [
            f"{name} (={self.rules.get(name)!r}) must be {rules.get(name)!r}"
            for name in sorted({*self.rules, *rules})
            if self.rules.get(name) != rules.get(name)
        ]
        if wrong:
            raise ValueError(f"{file}: to go on, {', '.join(wrong)}, as in the checkpoint")
        before = {name: array.copy() for name, array in self.capture().items()}
        try:
            self._apply(arrays, file)
        except Exception as error:  # whatever a part that does not fit raises
            self._apply(before, file)
            text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{file}: does not fit this training: {text}") from None

    def _apply(self, arrays: Mapping[str, Array], file: Path) -> None:
        meta = _meta(arrays, file)
        parts: dict[str, dict[str, Array]] = {"net": {}, "best": {}, "optimizer": {}, "meta": {}}
        for name, array in arrays.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = array
        self.net.load_state_dict(parts["net"])
        state: dict[str, dict[str, Any]] = {i: dict(entries) for i, entries in meta["optimizer"]["state"].items()}
        for name, array in parts["optimizer"].items():
            index, _, slot = name.partition("/")
            state[index][slot] = array
        groups = [
            # JSON has lists alone, options are tuples.
            {n: tuple(v) if isinstance(v, list) and n != "params" else v for n, v in group.items()}
            for group in meta["optimizer"]["param_groups"]
        ]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.schedule is not None:
            self.schedule.load_state_dict(meta["schedule"])
        self.rng.bit_generator.state = meta["rng"]
        self.net.set_random_state(meta["net_rng"])
        self.history = [Epoch(**entry) for entry in meta["history"]]
        self.best = None if meta["best"] is None else self.history[meta["best"] - 1]
        self.best_state = parts["best"]
        if self.best is not None:
            shapes = ({n: a.shape for n, a in parts[kind].items()} for kind in ("net", "best"))
            if operator.ne(*shapes):
                raise ValueError("the best weights must have the names and shapes of the network's")


def _meta(arrays: Mapping[str, Array], file: Path) -> dict[str, Any]:
    try:
        meta = json.loads(arrays["meta"].astype(np.uint8).tobytes(), object_hook=_revived)
        known: bool = meta["format"] == _FORMAT and isinstance(meta["rules"], dict)
    except Exception:  # whatever the bytes are
        known = False
    if not known:
        raise ValueError(f"{file}: must be a checkpoint of fastconv.training, format {_FORMAT}")
    return dict(meta)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Array], Result, dict[str, Any]]:
    """The best weights and buffers in a checkpoint, for `Module.load_state_dict`, what was done, and the notes.

    Without held-out data the weights are the last ones.

    Raises:
        OSError, ImportError: as `nn.load`.
        ValueError: the file is damaged or no checkpoint.
    """
    file = Path(path)
    arrays = nn.load(file)
    meta = _meta(arrays, file)
    kind = "best/" if any(name.startswith("best/") for name in arrays) else "net/"
    state = {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
    try:
        history = [Epoch(**entry) for entry in meta["history"]]
        best = history[-1] if history else None
        if meta["best"] is not None:
            best = history[meta["best"] - 1]
        return state, Result(history, best), dict(meta["rules"]["notes"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{file}: must be a checkpoint of fastconv.training: {error}") from None


# ------------------------------------------------------------------------------------------------------------ training


def _pair(name: str, pair: Pair) -> Pair:
    images, labels = pair
    if len(images) != len(labels):
        raise ValueError(f"{name} (lengths {len(images)} and {len(labels)}) must have one label for each image")
    if not len(images):
        raise ValueError(f"{name} must not be empty")
    return images, labels


def _at_least(name: str, value: int, low: int) -> int:
    number = integer(name, value)
    if number < low:
        raise ValueError(f"{name} (={number}) must be at least {low}")
    return number


def _checksum(pair: Pair | None) -> int | None:
    """One of arrays, their shapes and dtypes."""
    value = None
    for array in pair or ():
        value = zlib.crc32(f"{array.shape}{array.dtype}".encode(), value or 0)
        value = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, value)
    return value


def _train_mode(net: nn.Module) -> None:
    """Training mode, but for modules all of whose parameters are frozen: their batch norms keep their statistics."""
    net.train()
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def fit(
    net: nn.Module,
    optimizer: nn.Optimizer,
    train: Pair,
    held_out: Pair | None = None,
    *,
    epochs: int,
    loss: Any = None,
    batch_size: int = 64,
    augment: data.Augment | None = None,
    schedule: Schedule | None = None,
    schedule_per: Literal["batch", "epoch"] = "batch",
    seed: int = 0,
    patience: int | None = None,
    clip_norm: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    notes: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] | Iterable[Callback] = (),
) -> Result:
    """Train net, and leave it in eval mode with its best weights.

    Modules whose parameters are all frozen (`Module.freeze`) run in eval mode meanwhile: their batch norms keep their
    statistics, their dropout drops nothing.

    Args:
        net: images to logits (N, C).
        optimizer: of net's parameters.
        train: images (N, ...), float32 or float64, and labels (N,), integers.
        held_out: the same, for early stopping and the choice of the best weights, those of the least loss. An honest
            accuracy is that on images which are in neither.
        epochs: how many there are in all, those before the checkpoint among them.
        loss: a loss of `nn`, of the mean; None is `nn.CrossEntropyLoss()`. The held-out loss is by it, too.
        batch_size: images in a batch; the last one of an epoch may be smaller.
        augment: changes of the training images.
        schedule: of optimizer; `step` is called before each batch or epoch, but not before the first one.
        schedule_per: which of the two.
        seed: of the order of the images, and of augment; not negative.
        patience: end after so many epochs without a lower held-out loss; None: never.
        clip_norm: `nn.clip_grad_norm`'s max_norm; None: gradients stay as they are.
        checkpoint: a .npz or .safetensors file, written after every epoch: beside its place and then moved there, so
            that there is a whole one at any time.
        resume: go on from the checkpoint if it is there. The result is, to the bit, that of a training that was not
            interrupted, if net, optimizer and schedule are made in the same way. Without it the file is written over.
        notes: what the checkpoint is to hold besides: what JSON holds, such as the seed of a data split. Where training
            goes on they must be the same, as all arguments but epochs and patience must.
        callbacks: are told of every epoch and batch.

    Raises:
        ValueError: an argument breaks a rule, which the message names; the checkpoint is damaged or of another
            training, and nothing is changed.
        TypeError: notes hold what JSON does not.
        FloatingPointError: the loss of a batch is not finite. The last checkpoint is kept.
    """
    images, labels = _pair("train", train)
    if held_out is not None:
        held_out = _pair("held_out", held_out)
    _at_least("epochs", epochs, 0)
    _at_least("batch_size", batch_size, 1)
    if patience is not None:
        _at_least("patience", patience, 1)
        if held_out is None:
            raise ValueError(f"patience (={patience}) needs held_out: it waits for a lower held-out loss")
    if schedule_per not in ("batch", "epoch"):
        raise ValueError(f"schedule_per (={schedule_per!r}) must be 'batch' or 'epoch'")
    if resume and checkpoint is None:
        raise ValueError("resume (=True) needs checkpoint: the file to go on from")
    if getattr(loss, "reduction", "mean") != "mean":
        raise ValueError(f"loss (={loss!r}) must have reduction='mean'")
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None and file.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"checkpoint (={os.fspath(file)!r}) must end in .npz or .safetensors")
    loss = nn.CrossEntropyLoss() if loss is None else loss
    per_batch = schedule_per == "batch"
    run = _Run(
        net,
        optimizer,
        schedule,
        np.random.default_rng(_at_least("seed", seed, 0)),
        rules={
            "optimizer": type(optimizer).__name__,
            "schedule": None if schedule is None else type(schedule).__name__,
            "schedule_per": schedule_per,
            "loss": repr(loss),
            "batch_size": int(batch_size),
            "augment": None if augment is None else {n: float(v) for n, v in asdict(augment).items()},
            "seed": int(seed),
            "clip_norm": None if clip_norm is None else float(clip_norm),
            "frozen": [name for name, parameter in net.named_parameters() if not parameter.requires_grad],
            "checksums of the data": [_checksum((images, labels)), _checksum(held_out)],
            # As they come back: tuples are lists in JSON.
            "notes": json.loads(json.dumps(dict(notes or {}))),
        },
    )
    if resume and file is not None and file.exists():
        run.restore(nn.load(file), file)
    callbacks = list(callbacks)
    batches = -(-len(images) // batch_size)

    def impatient() -> bool:
        waited = len(run.history) - (0 if run.best is None else run.best.number)
        return patience is not None and waited >= patience

    while len(run.history) < epochs and not impatient():
        number = len(run.history) + 1
        for callback in callbacks:
            callback.on_epoch_begin(number, batches)
        _train_mode(net)
        total, right, seen, judged = 0.0, 0, 0, 0
        if schedule is not None and not per_batch and number > 1:
            schedule.step()
        pairs = data.batches(images, labels, batch_size, rng=run.rng, augment=augment)
        for batch, (x, y) in enumerate(pairs, 1):
            # Before the next batch, not after the last one: whether there is a next one does not matter then.
            if schedule is not None and per_batch and (number, batch) != (1, 1):
                schedule.step()
            logits = net(x)
            value = float(loss(logits, y))
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss (={value}) of batch {batch} in epoch {number} is not finite: a lower rate may help"
                )
            optimizer.zero_grad()
            net.backward(loss.backward(), input_grad=False)
            if clip_norm is not None:
                nn.clip_grad_norm(net.parameters(), clip_norm)
            optimizer.step()
            total, seen = total + value * len(x), seen + len(x)
            right, judged = right + int(np.sum(np.argmax(logits, axis=1) == y)), judged + y.size
            for callback in callbacks:
                callback.on_batch_end(batch, total / seen, right / judged)
        optimizer.zero_grad()
        other: tuple[float, float] | tuple[None, None] = (None, None)
        if held_out is not None:
            other = evaluate(net, held_out, loss)
        epoch = Epoch(number, float(optimizer.param_groups[0]["lr"]), total / seen, right / judged, *other)
        run.history.append(epoch)
        least = math.inf if run.best is None or run.best.held_out_loss is None else run.best.held_out_loss
        if epoch.held_out_loss is not None and epoch.held_out_loss < least:
            run.best, run.best_state = epoch, net.state_dict()
        if file is not None:
            nn.save(run.capture(), file)
        for callback in callbacks:
            callback.on_epoch_end(epoch)
    if run.best is not None:
        net.load_state_dict(run.best_state)
    net.eval()
    best = run.best if run.best is not None or not run.history else run.history[-1]
    return Result(run.history, best, "patience" if len(run.history) < epochs else "epochs")
