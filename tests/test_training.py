"""`fit`: what it learns, checkpoints that go on to the same bits, early stopping, interruptions, frozen layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import data, nn, training

Pair = tuple[np.ndarray, np.ndarray]


def stripes(count: int, seed: int, size: int = 8) -> Pair:
    """Rows, columns and chequers in noise: what a mean over places tells apart only after a convolution."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    row, column = np.indices((size, size)) // 2
    patterns = np.stack([row % 2, column % 2, (row + column) % 2]).astype(np.float32)
    images = patterns[labels][:, np.newaxis] + rng.normal(0, 0.4, (count, 1, size, size)).astype(np.float32)
    return images, labels


TRAIN, HELD_OUT = stripes(192, 0), stripes(48, 1)
AUGMENT = data.Augment(shift=1, rotation=5, noise=0.05)


def network(width: int = 6) -> nn.Sequential:
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False, rng=rng),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 8, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.GlobalAvgPool2d(keepdims=False),
        nn.Dropout(0.1, seed=4),
        nn.Linear(8, 3, rng=rng),
    )


def adamw(net: nn.Module) -> tuple[nn.Optimizer, dict[str, Any]]:
    optimizer = nn.AdamW(net.parameters(), lr=0.05)
    return optimizer, {"schedule": nn.OneCycleLR(optimizer, 0.05, 6 * 6)}


def sgd(net: nn.Module) -> tuple[nn.Optimizer, dict[str, Any]]:
    layers = list(net.parameters())
    groups = [{"params": layers[:3]}, {"params": layers[3:], "lr": 0.01}]
    optimizer = nn.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3)
    return optimizer, {"schedule": nn.StepLR(optimizer, 2, 0.5), "schedule_per": "epoch", "clip_norm": 1.0}


def plain(net: nn.Module) -> tuple[nn.Optimizer, dict[str, Any]]:
    return nn.SGD(net.parameters(), lr=0.05), {}


Recipe = Callable[[nn.Module], tuple[nn.Optimizer, dict[str, Any]]]


def run(file: Path | None = None, recipe: Recipe = adamw, epochs: int = 6, **options: Any) -> training.Result:
    """A training made anew, as in another process."""
    net = options.pop("net", None) or network()
    optimizer, extra = recipe(net)
    options = {"batch_size": 32, "augment": AUGMENT, **extra, "epochs": epochs, "checkpoint": file, **options}
    return training.fit(net, optimizer, options.pop("train", TRAIN), options.pop("held_out", HELD_OUT), **options)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


# ------------------------------------------------------------------------------------------------------------ learning


def test_fit_learns() -> None:
    net = network()
    before = training.evaluate(net, HELD_OUT)
    result = run(net=net)
    assert before[1] < 0.6
    assert result.stopped == "epochs"
    assert [epoch.number for epoch in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    best = min(result.history, key=lambda epoch: epoch.held_out_loss)
    assert result.best == best
    assert best.held_out_accuracy > 0.95
    # The network has the best weights, is in eval mode, and holds no gradients.
    assert training.evaluate(net, HELD_OUT) == (best.held_out_loss, best.held_out_accuracy)
    assert not any(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    # Another draw of the same kind.
    assert training.evaluate(net, stripes(200, 2))[1] > 0.9


def test_the_seed_decides() -> None:
    results = [run(epochs=2, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0].history[0].loss != results[2].history[0].loss


def test_without_held_out_data(tmp_path: Path) -> None:
    result = run(tmp_path / "run.npz", epochs=2, held_out=None)
    assert result.best == result.history[-1]
    assert result.best.held_out_loss is None
    state, again, _ = training.read_checkpoint(tmp_path / "run.npz")
    assert again.history == result.history
    net = network()
    net.load_state_dict(state)
    whole = network()
    run(net=whole, epochs=2, held_out=None)
    assert same(net.state_dict(), whole.state_dict())


def test_losses_are_those_of_a_loop_by_hand() -> None:
    """An epoch without augmentation, written out."""
    net, other = network(), network()
    history = run(net=net, recipe=plain, epochs=2, augment=None).history
    optimizer, criterion = nn.SGD(other.parameters(), lr=0.05), nn.CrossEntropyLoss()
    rng = np.random.default_rng(0)
    for epoch in history:
        other.train()
        total, right = 0.0, 0
        order = rng.permutation(len(TRAIN[0]))
        for start in range(0, len(order), 32):
            x, y = (part[order[start : start + 32]] for part in TRAIN)
            logits = other(x)
            total += criterion(logits, y) * len(x)
            right += int(np.sum(logits.argmax(1) == y))
            other.backward(criterion.backward())
            optimizer.step()
            optimizer.zero_grad()
        assert (epoch.loss, epoch.accuracy, epoch.lr) == (total / 192, right / 192, 0.05)
        assert training.evaluate(other, HELD_OUT) == (epoch.held_out_loss, epoch.held_out_accuracy)


def test_callbacks() -> None:
    calls: list[Any] = []

    class Log(training.Callback):
        def on_epoch_begin(self, number: int, batches: int) -> None:
            calls.append(("begin", number, batches))

        def on_batch_end(self, number: int, loss: float, accuracy: float) -> None:
            calls.append((number, loss, accuracy))

        def on_epoch_end(self, epoch: training.Epoch) -> None:
            calls.append(epoch)

    result = run(epochs=2, batch_size=80, schedule=None, callbacks=[Log()])
    names = [call[0] if isinstance(call, tuple) else call.number for call in calls]
    assert names == ["begin", 1, 2, 3, 1, "begin", 1, 2, 3, 2]
    assert calls[0] == ("begin", 1, 3)
    assert [calls[4], calls[9]] == result.history
    assert calls[3][1:] == (result.history[0].loss, result.history[0].accuracy)


def test_schedules_step_before_all_batches_but_the_first() -> None:
    rates = [epoch.lr for epoch in run(recipe=sgd, epochs=5).history]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.025, 0.025, 0.0125])
    # All steps of the cycle are taken, and not one more, which would be refused.
    last = run(epochs=6).history[-1].lr
    assert last == pytest.approx(0.05 / 25 / 1e4)


# --------------------------------------------------------------------------------------------------------- checkpoints


class Interrupt(training.Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.place, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, number: int, batches: int) -> None:
        self.epoch = number

    def on_batch_end(self, number: int, loss: float, accuracy: float) -> None:
        if (self.epoch, number) == self.place:
            raise KeyboardInterrupt


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("recipe", [adamw, sgd, plain])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_resume_gives_the_bits(suffix: str, recipe: Recipe, threads: int, tmp_path: Path) -> None:
    """Weights, statistics, optimiser, generators, history: the files are the same."""
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    with fastconv.num_threads(threads):
        nets = [network() for _ in range(2)]
        result = run(whole, recipe, net=nets[0])
        run(parts, recipe, epochs=2)
        run(parts, recipe, epochs=3, resume=True)
        with pytest.raises(KeyboardInterrupt):
            run(parts, recipe, resume=True, callbacks=[Interrupt(5, 2)])
        resumed = run(parts, recipe, net=nets[1], resume=True)
    assert resumed == result
    assert same(nets[0].state_dict(), nets[1].state_dict())
    assert same(nn.load(whole), nn.load(parts))
    assert whole.read_bytes() == parts.read_bytes()


def test_threads_do_not_change_the_bits(tmp_path: Path) -> None:
    """Layers with work for several: on one, on two, and interrupted on one to go on with two."""
    train, held_out = stripes(64, 0, 28), stripes(32, 1, 28)
    x, w = np.zeros((32, 32, 14, 14), np.float32), np.zeros((8, 32, 3, 3), np.float32)
    with fastconv.num_threads(2):
        assert fastconv.explain("conv2d", x, w, padding=1).blocks > 1
    files = [tmp_path / f"{name}.npz" for name in ("one", "two", "both")]
    for file, (first, second) in zip(files, ((1, 1), (2, 2), (1, 2)), strict=True):
        with fastconv.num_threads(first):
            run(file, epochs=1, net=network(32), train=train, held_out=held_out)
        with fastconv.num_threads(second):
            run(file, epochs=2, net=network(32), train=train, held_out=held_out, resume=True)
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


def test_interrupted_training_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    file, wanted = tmp_path / "run.npz", tmp_path / "wanted.npz"
    run(wanted, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        run(file, callbacks=[Interrupt(3, 2)])
    assert file.read_bytes() == wanted.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "none.npz", callbacks=[Interrupt(1, 1)])
    # Nothing else is left in the folder.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.npz", "wanted.npz"]


def test_interrupted_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.npz"
    run(file, epochs=1)
    before = file.read_bytes()
    write = np.lib.format.write_array

    def interrupted(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(file, epochs=2, resume=True)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    file, wanted = tmp_path / "run.npz", tmp_path / "wanted.npz"
    run(wanted, plain, epochs=1)

    class Spoil(training.Callback):
        def on_epoch_end(self, epoch: training.Epoch) -> None:
            net[-1].weight.assign(np.full(net[-1].weight.shape, np.nan, np.float32))

    net = network()
    with pytest.raises(FloatingPointError, match=r"the loss \(=nan\) of batch 1 in epoch 2 is not finite"):
        run(file, plain, net=net, callbacks=[Spoil()])
    assert file.read_bytes() == wanted.read_bytes()


def test_without_resume_the_file_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    run(file, epochs=2)
    assert len(run(file, epochs=1).history) == 1
    assert len(training.read_checkpoint(file)[1].history) == 1
    # And resume without a file begins.
    assert run(tmp_path / "other.npz", epochs=1, resume=True) == run(epochs=1)


def test_a_finished_training_is_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    nets = [network() for _ in range(2)]
    result = run(file, epochs=3, net=nets[0])
    before = file.read_bytes()
    assert run(file, epochs=3, net=nets[1], resume=True) == result
    assert same(nets[0].state_dict(), nets[1].state_dict())
    assert file.read_bytes() == before


def test_read_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    notes = {"split_seed": 3, "sizes": (1, 2)}
    trained = network()
    result = run(file, epochs=3, net=trained, notes=notes)
    state, found, kept = training.read_checkpoint(file)
    net = network()
    net.load_state_dict(state)
    assert same(net.state_dict(), trained.state_dict())
    assert (found.history, found.best) == (result.history, result.best)
    assert kept == {"split_seed": 3, "sizes": [1, 2]}
    # Tuples in notes, which come back as lists, are the same notes.
    assert len(run(file, epochs=4, notes=notes, resume=True).history) == 4


def refused(file: Path, message: str, recipe: Recipe = adamw, **options: Any) -> None:
    """It goes by the file's name and the rule, and nothing has changed."""
    net = options.pop("net", None) or network()
    optimizer, extra = recipe(net)
    schedule = extra.get("schedule")

    def state() -> str:
        # The optimiser is a fresh one, without arrays.
        return repr([optimizer.state_dict(), net.random_state(), schedule and schedule.state_dict()])

    before = net.state_dict(), state()
    content = file.read_bytes()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        run(file, lambda _: (optimizer, extra), net=net, resume=True, **options)
    assert str(file) in str(error.value)
    assert message in str(error.value)
    assert same(before[0], net.state_dict())
    assert before[1] == state()
    assert file.read_bytes() == content


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_checkpoint_that_is_cut_off_is_refused(suffix: str, tmp_path: Path) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    file = tmp_path / f"run{suffix}"
    run(file, epochs=1)
    content = file.read_bytes()
    for length in (0, 1, 10, 100, len(content) // 3, len(content) // 2, len(content) - 30, len(content) - 1):
        file.write_bytes(content[:length])
        refused(file, file.name)
        with pytest.raises(ValueError, match=file.name):
            training.read_checkpoint(file)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.npz"
    nn.save(network(), file)
    refused(file, "must be a checkpoint of fastconv.training, format 1")
    with pytest.raises(ValueError, match=r"weights\.npz: must be a checkpoint of fastconv\.training, format 1"):
        training.read_checkpoint(file)
    file.write_text("no archive")
    refused(file, file.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed (=1) must be 0"),
        ({"batch_size": 48}, "batch_size (=48) must be 32"),
        ({"augment": None}, "augment (=None) must be {'horizontal_flip': 0.0"),
        ({"notes": {"split_seed": 1}}, "notes (={'split_seed': 1}) must be {}"),
        ({"recipe": plain}, "optimizer (='SGD') must be 'AdamW'"),
        ({"schedule": None}, "schedule (=None) must be 'OneCycleLR'"),
        ({"loss": nn.CrossEntropyLoss(0.1)}, "loss (="),
        ({"clip_norm": 2.0}, "clip_norm (=2.0) must be None"),
        ({"train": stripes(192, 5)}, "checksums of the data"),
        ({"held_out": None}, "checksums of the data"),
        ({"net": network().astype(np.float64)}, "does not fit this training"),
        ({"net": network(7)}, "does not fit this training"),
        ({"net": network()[:5]}, "does not fit this training"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    run(file, epochs=1)
    refused(file, message, **change)


def test_a_checkpoint_with_other_frozen_layers_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    run(file, epochs=1)
    net = network()
    net[0].freeze()
    refused(file, "frozen (=['0.weight']) must be []", net=net)


def drop(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
        del (arrays if name in arrays else meta)[name]

    return change


def put(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
        target = arrays if isinstance(value, np.ndarray) else meta
        target[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(drop(name) for name in ("net/0.weight", "best/8.bias", "rng", "net_rng", "optimizer", "schedule", "history")),
        put("format", 2),
        put("rules", []),
        put("best", 7),
        put("history", [{"number": 1}]),
        put("rng", {"bit_generator": "MT19937"}),
        put("net_rng", {"0": {}}),
        put("schedule", {}),
        put("net/0.weight", np.zeros((6, 1, 3, 4), np.float32)),
        put("best/8.bias", np.zeros(4, np.float32)),
        put("optimizer/0/exp_avg", np.zeros((6, 1, 3, 4), np.float32)),
        put("optimizer/99/exp_avg", np.zeros(3, np.float32)),
        put("optimizer/0/other", np.zeros((6, 1, 3, 3), np.float32)),
        put("strange", np.zeros(3)),
        put("net_rng", {"__dtype__": "U1000000000", "values": [""]}),
        put("meta", np.frombuffer(b'{"format": 1, ', np.uint8)),
    ],
)
def test_a_damaged_checkpoint_changes_nothing(
    change: Callable[[dict[str, Any], dict[str, Any]], None], tmp_path: Path
) -> None:
    file = tmp_path / "run.npz"
    run(file, epochs=1)
    arrays = nn.load(file)
    meta = json.loads(arrays.pop("meta").tobytes())
    change(arrays, meta)
    arrays.setdefault("meta", np.frombuffer(json.dumps(meta).encode(), np.uint8))
    nn.save(arrays, file)
    refused(file, file.name)


def test_no_text_of_a_checkpoint_becomes_an_array(tmp_path: Path) -> None:
    """A string's dtype could ask for any amount of memory."""
    file = tmp_path / "run.npz"
    run(file, epochs=1)
    arrays = nn.load(file)
    meta = json.loads(arrays["meta"].tobytes())
    meta["net_rng"] = {"__dtype__": "U10000", "values": [""]}
    nn.save({**arrays, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}, file)
    with pytest.raises(ValueError, match=r"run\.npz: must be a checkpoint"):
        training.read_checkpoint(file)


# ------------------------------------------------------------------------------------------------------ early stopping


def test_early_stopping_restores_the_best(tmp_path: Path) -> None:
    """Held-out labels that contradict the training's: the longer it learns, the worse they are met."""
    file = tmp_path / "run.npz"
    contrary = (HELD_OUT[0], (HELD_OUT[1] + 1) % 3)
    net = network()
    result = run(file, plain, epochs=30, net=net, held_out=contrary, patience=2)
    losses = [epoch.held_out_loss for epoch in result.history]
    assert result.stopped == "patience"
    assert len(losses) == result.best.number + 2 < 30
    assert losses[result.best.number - 1] == min(losses) < losses[-1]
    assert training.evaluate(net, contrary) == (result.best.held_out_loss, result.best.held_out_accuracy)
    # As if it had ended with that epoch; nothing of the later ones is left.
    short = network()
    run(None, plain, epochs=result.best.number, net=short, held_out=contrary)
    assert same(net.state_dict(), short.state_dict())
    # The checkpoint knows that it is over, and goes on where more patience is given, from the last weights.
    assert run(file, plain, epochs=30, held_out=contrary, patience=2, resume=True) == result
    more = run(file, plain, epochs=30, held_out=contrary, patience=3, resume=True)
    assert more == run(None, plain, epochs=30, held_out=contrary, patience=3)
    assert len(more.history) > len(losses)


# ------------------------------------------------------------------------------------------------------- frozen layers


def test_frozen_layers_keep_their_bits() -> None:
    net = network()
    run(net=net, epochs=1)
    for layer in net[:4]:
        layer.freeze()
    before = net.state_dict()

    def decays(net: nn.Module) -> tuple[nn.Optimizer, dict[str, Any]]:
        return nn.AdamW(net.parameters(), lr=0.02, weight_decay=0.1), {}

    run(recipe=decays, net=net, epochs=2)
    after = net.state_dict()
    frozen = {name for name in before if name[0] in "01"}
    assert {"0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"} == frozen
    for name in before:
        assert (before[name].tobytes() == after[name].tobytes()) == (name in frozen), name
    for layer in net[:4]:
        layer.freeze(False)
    run(recipe=decays, net=net, epochs=2)
    assert all(after[name].tobytes() != array.tobytes() for name, array in net.state_dict().items())


# ----------------------------------------------------------------------------------------------- evaluation, arguments


def test_predict_keeps_modes_and_takes_any_batch() -> None:
    net = network().train()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    logits = training.predict(net, HELD_OUT[0])
    assert modes == [module.training for module in net.modules()]
    for size in (1, 7, 48, 1000):
        np.testing.assert_array_equal(training.predict(net, HELD_OUT[0], size), logits)
    loss, accuracy = training.evaluate(net, HELD_OUT)
    assert loss == nn.CrossEntropyLoss()(logits, HELD_OUT[1])
    assert accuracy == np.mean(logits.argmax(1) == HELD_OUT[1])
    assert training.evaluate(net, HELD_OUT, nn.CrossEntropyLoss(0.3))[0] != loss
    with pytest.raises(ValueError, match=r"x|shape"):
        training.predict(net, HELD_OUT[0][:, :, :0])
    assert modes == [module.training for module in net.modules()]


def test_class_activation_map(rng: np.random.Generator) -> None:
    features, weight = rng.standard_normal((4, 5, 3, 2)), rng.standard_normal((6, 5))
    labels = np.array([5, 0, 2, 2])
    maps = training.class_activation_map(features, weight, labels)
    np.testing.assert_allclose(maps, np.einsum("nk,nkij->nij", weight[labels], features), rtol=1e-12)
    logits = features.mean((2, 3)) @ weight.T
    np.testing.assert_allclose(maps.mean((1, 2)), logits[np.arange(4), labels], rtol=1e-12)
    with pytest.raises(ValueError, match=r"weight \(shape \(6, 4\)\) must be \(C, K\)"):
        training.class_activation_map(features, weight[:, :4], labels)
    with pytest.raises(ValueError, match=r"labels \(shape \(3,\)\) must be \(4,\)"):
        training.class_activation_map(features, weight, labels[:3])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": -1}, ValueError, r"epochs \(=-1\) must be at least 0"),
        ({"batch_size": 0}, ValueError, r"batch_size \(=0\) must be at least 1"),
        ({"patience": 0}, ValueError, r"patience \(=0\) must be at least 1"),
        ({"patience": 2, "held_out": None}, ValueError, r"patience \(=2\) needs held_out"),
        ({"seed": -1}, ValueError, r"seed \(=-1\) must be at least 0"),
        ({"schedule_per": "step"}, ValueError, r"schedule_per \(='step'\) must be 'batch' or 'epoch'"),
        ({"resume": True}, ValueError, r"resume \(=True\) needs checkpoint"),
        ({"file": Path("run.pt")}, ValueError, r"checkpoint \(='run.pt'\) must end in .npz or .safetensors"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "must have reduction='mean'"),
        ({"train": (TRAIN[0], TRAIN[1][:5])}, ValueError, r"train \(lengths 192 and 5\) must have one label"),
        ({"held_out": (TRAIN[0][:0], TRAIN[1][:0])}, ValueError, "held_out must not be empty"),
        ({"notes": {"seed": object()}}, TypeError, "JSON"),
    ],
)
def test_fit_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    net = network()
    before = net.state_dict()
    with pytest.raises(error, match=message):
        run(net=net, **options)
    assert same(before, net.state_dict())


def test_no_epoch() -> None:
    net = network()
    before = net.state_dict()
    assert run(net=net, epochs=0) == training.Result([], None, "epochs")
    assert same(before, net.state_dict())
