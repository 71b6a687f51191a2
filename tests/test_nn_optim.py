"""Losses, optimisers and schedules: finite differences, PyTorch's numbers, checkpoints, bits, errors."""

import copy
import math
import pickle

import numpy as np
import pytest

import fastconv
from fastconv import nn


def classes(rng, shape=(5, 4), dtype=np.float64):
    return rng.standard_normal(shape).astype(dtype), rng.integers(0, shape[1], (shape[0], *shape[2:]))


def probabilities(rng, shape=(3, 2, 4), dtype=np.float64):
    return (2 * rng.standard_normal(shape)).astype(dtype), rng.random(shape).astype(dtype)


WEIGHT = np.array([0.5, 2.0, 0.0, 1.5])

# name: (the loss for a reduction, its data, the same in PyTorch).
LOSSES = {
    "cross_entropy": (
        lambda r: nn.CrossEntropyLoss(reduction=r),
        classes,
        lambda t, r: t.CrossEntropyLoss(reduction=r),
    ),
    "cross_entropy smooth": (
        lambda r: nn.CrossEntropyLoss(0.2, WEIGHT, r),
        lambda rng: classes(rng, (6, 4, 3)),
        lambda t, r: t.CrossEntropyLoss(weight(WEIGHT), label_smoothing=0.2, reduction=r),
    ),
    "cross_entropy ignored": (
        lambda r: nn.CrossEntropyLoss(0.1, reduction=r, ignore_index=1),
        lambda rng: classes(rng, (9, 3)),
        lambda t, r: t.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1, reduction=r),
    ),
    "mse": (lambda r: nn.MSELoss(r), probabilities, lambda t, r: t.MSELoss(reduction=r)),
    "bce": (lambda r: nn.BCEWithLogitsLoss(None, r), probabilities, lambda t, r: t.BCEWithLogitsLoss(reduction=r)),
    "bce weighted": (
        lambda r: nn.BCEWithLogitsLoss(WEIGHT, r),
        probabilities,
        lambda t, r: t.BCEWithLogitsLoss(pos_weight=weight(WEIGHT), reduction=r),
    ),
    "dice": (lambda r: nn.DiceLoss(0.5, r), probabilities, None),
}


def weight(values):
    return pytest.importorskip("torch").tensor(values)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradients(name, reduction, rng):
    make, data, _ = LOSSES[name]
    loss = make(reduction)
    x, target = data(rng)
    value = loss(x, target)
    dloss = rng.standard_normal(np.shape(value)) if reduction == "none" else 1.7
    dx = loss.backward(dloss)
    expected = np.empty_like(x)
    for index in np.ndindex(x.shape):
        before = x[index]
        x[index] = before + 1e-5
        high = loss(x, target)
        x[index] = before - 1e-5
        low = loss(x, target)
        x[index] = before
        expected[index] = np.sum(dloss * (np.asarray(high) - low)) / 2e-5
    np.testing.assert_allclose(dx, expected, rtol=1e-6, atol=1e-9)
    assert dx.dtype == x.dtype
    # The other dtype rounds the same numbers.
    narrow = x.astype(np.float32), target if target.dtype.kind == "i" else target.astype(np.float32)
    np.testing.assert_allclose(loss(*narrow), value, rtol=1e-4, atol=1e-5)
    assert loss.backward().dtype == np.float32


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if entry[2]])
def test_losses_against_torch(name, reduction, rng):
    torch = pytest.importorskip("torch")
    make, data, torch_make = LOSSES[name]
    loss = make(reduction)
    x, target = data(rng)
    tx = torch.tensor(x, requires_grad=True)
    theirs = torch_make(torch.nn, reduction)(tx, torch.tensor(target))
    theirs.sum().backward()
    np.testing.assert_allclose(loss(x, target), theirs.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(loss.backward(), tx.grad.numpy(), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_of_large_logits_are_finite(dtype):
    x = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    for loss, target in (
        (nn.CrossEntropyLoss(0.1), np.array([1, 1])),
        (nn.BCEWithLogitsLoss(3.0), np.array([[0, 1], [1, 1]], dtype)),
        (nn.DiceLoss(0.0), np.array([[0, 1], [1, 1]], dtype)),
    ):
        assert math.isfinite(loss(x, target))
        assert np.isfinite(loss.backward()).all()
    loss = nn.CrossEntropyLoss()
    assert loss(x, np.array([1, 1])) == 1e4
    np.testing.assert_array_equal(loss.backward(), [[0.5, -0.5], [0, 0]])


def test_loss_errors():
    x, t = np.zeros((2, 3)), np.array([0, 1])
    cases = [
        (ValueError, r"reduction \(='max'\)", lambda: nn.MSELoss("max")),
        (ValueError, r"label_smoothing \(=2\)", lambda: nn.CrossEntropyLoss(2)),
        (ValueError, r"smooth \(=-1\)", lambda: nn.DiceLoss(-1)),
        (ValueError, "not negative", lambda: nn.CrossEntropyLoss(weight=[1.0, -1.0])),
        (ValueError, "each of the 3 classes", lambda: nn.CrossEntropyLoss(weight=[1.0, 1.0])(x, t)),
        (ValueError, r"target \(with the class 3\)", lambda: nn.CrossEntropyLoss()(x, np.array([0, 3]))),
        (ValueError, r"target \(with the class -1\)", lambda: nn.CrossEntropyLoss()(x, np.array([0, -1]))),
        (ValueError, r"target \(shape \(3,\)\)", lambda: nn.CrossEntropyLoss()(x, np.array([0, 1, 2]))),
        (ValueError, "element that counts", lambda: nn.CrossEntropyLoss()(x, np.array([-100, -100]))),
        (TypeError, "integers: the classes", lambda: nn.CrossEntropyLoss()(x, np.zeros(2))),
        (TypeError, r"logits \(of type list\)", lambda: nn.CrossEntropyLoss()([[1.0]], t)),
        (TypeError, r"prediction \(dtype int64\)", lambda: nn.MSELoss()(np.zeros(2, int), np.zeros(2))),
        (TypeError, r"target \(dtype float32\)", lambda: nn.MSELoss()(x, x.astype(np.float32))),
        (ValueError, r"target \(shape \(3, 2\)\)", lambda: nn.BCEWithLogitsLoss()(x, x.T)),
        (ValueError, r"pos_weight \(shape \(2,\)\)", lambda: nn.BCEWithLogitsLoss([1.0, 2.0])(x, x)),
        (ValueError, "at least 2 dimensions", lambda: nn.DiceLoss()(x[0], x[0])),
        (RuntimeError, "MSELoss.backward has no call", lambda: nn.MSELoss().backward()),
    ]
    for kind, words, call in cases:
        with pytest.raises(kind, match=words):
            call()
    loss = nn.MSELoss()
    loss(x, x)
    loss.backward()
    with pytest.raises(RuntimeError, match="had its backward already"):
        loss.backward()
    assert repr(loss) == "MSELoss(reduction='mean')"


# ------------------------------------------------------------------------------------------------------- optimisers

OPTIMIZERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}),
    "adam": ("Adam", {"lr": 0.05, "weight_decay": 0.1}),
    "adam betas": ("Adam", {"lr": 0.05, "betas": (0.7, 0.8), "eps": 1e-3}),
    "adamw": ("AdamW", {"lr": 0.05}),
}


def parameters(rng):
    return [nn.Parameter(rng.standard_normal(shape)) for shape in ((3, 4), (5,), ())]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_against_torch(name, rng):
    torch = pytest.importorskip("torch")
    kind, options = OPTIMIZERS[name]
    ours = parameters(rng)
    theirs = [torch.tensor(p.data.copy(), requires_grad=True) for p in ours]
    other = {"lr": 0.01, "weight_decay": 0.2}
    optimizer = getattr(nn, kind)([{"params": ours[:2]}, {"params": ours[2:], **other}], **options)
    reference = getattr(torch.optim, kind)([{"params": theirs[:2]}, {"params": theirs[2:], **other}], **options)
    for step in range(20):
        for p, t in zip(ours, theirs, strict=True):
            gradient = rng.standard_normal(p.shape)
            p.grad = None if step == 4 and p.ndim == 1 else np.array(gradient)
            t.grad = None if p.grad is None else torch.tensor(gradient)
        optimizer.step()
        reference.step()
        for p, t in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_checkpoints_are_exact(name, dtype, rng):
    kind, options = OPTIMIZERS[name]
    gradients = rng.standard_normal((10, 6)).astype(dtype)
    first = nn.Parameter(rng.standard_normal(6).astype(dtype))
    optimizer = getattr(nn, kind)([first], **options)
    second = saved = None
    for i, gradient in enumerate(gradients):
        if i == 5:
            second = nn.Parameter(first.data)
            saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
        first.grad = gradient.copy()
        optimizer.step()
    again = getattr(nn, kind)([second], lr=77.0)
    again.load_state_dict(saved)
    for gradient in gradients[5:]:
        second.grad = gradient.copy()
        again.step()
    np.testing.assert_array_equal(second.data, first.data)
    assert first.data.dtype == dtype
    assert repr(again) == repr(optimizer)


def test_steps_skip_what_is_frozen_and_drop_plans(rng):
    p, q = parameters(rng)[:2]
    before, versions = (p.data.copy(), q.data.copy()), (p.version, q.version)
    q.requires_grad = False
    p.grad, q.grad = np.ones(p.shape), np.ones(q.shape)
    optimizer = nn.SGD([p, q], 0.5)
    optimizer.step()
    np.testing.assert_array_equal(p.data, before[0] - 0.5)
    np.testing.assert_array_equal(q.data, before[1])
    assert p.version > versions[0]
    assert q.version == versions[1]
    optimizer.zero_grad()
    assert p.grad is None
    assert q.grad is None
    assert not p.data.flags.writeable


def test_clip_grad_norm(rng):
    ours = parameters(rng)
    for p in ours:
        p.grad = np.array(rng.standard_normal(p.shape))
    gradients = [p.grad.copy() for p in ours]
    norm = math.sqrt(sum(np.sum(g * g) for g in gradients))
    assert nn.clip_grad_norm(ours, 1e9) == pytest.approx(norm, rel=1e-14)
    np.testing.assert_array_equal(ours[0].grad, gradients[0])
    nn.clip_grad_norm(ours, 0.5)
    for p, g in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(p.grad, g * 0.5 / (norm + 1e-6), rtol=1e-14)
    torch = pytest.importorskip("torch")
    theirs = [torch.tensor(g) for g in gradients]
    for t, g in zip(theirs, gradients, strict=True):
        t.grad = torch.tensor(g)
    torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    for p, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad, t.grad.numpy(), rtol=1e-12)


def test_optimizer_errors(rng):
    p, q, _ = parameters(rng)
    adam = nn.Adam([p, q])
    p.grad = np.ones(p.shape)
    adam.step()
    good = adam.state_dict()

    def changed(change):
        state = copy.deepcopy(good)
        change(state)
        return lambda: adam.load_state_dict(state)

    cases = [
        (ValueError, "params must not be empty", lambda: nn.SGD([])),
        (TypeError, "iterable of parameters", lambda: nn.SGD(p)),
        (TypeError, "of type ndarray", lambda: nn.SGD([p.data])),
        (ValueError, "comes twice", lambda: nn.SGD([p, p])),
        (ValueError, "with 'rate'", lambda: nn.SGD([{"params": [p], "rate": 1}])),
        (ValueError, r"lr \(=-1\) must be at least 0", lambda: nn.SGD([p], -1)),
        (ValueError, r"lr \(=nan\)", lambda: nn.SGD([p], math.nan)),
        (TypeError, r"lr \(='x'\)", lambda: nn.SGD([p], "x")),
        (ValueError, r"nesterov .*momentum \(=0.0\)", lambda: nn.SGD([p], 0.1, nesterov=True)),
        (ValueError, r"betas \(=1.0\)", lambda: nn.Adam([p], betas=(0.9, 1.0))),
        (ValueError, r"groups of \[1\]", changed(lambda s: s["param_groups"][0].update(params=[0]))),
        (ValueError, "with the parameter 7", changed(lambda s: s["state"].update({7: {}}))),
        (ValueError, r"shape \(2,\)", changed(lambda s: s["state"][0].update(exp_avg=np.zeros(2)))),
        (ValueError, "float32", changed(lambda s: s["state"][0].update(exp_avg=np.zeros((3, 4), np.float32)))),
        (ValueError, "with 'other'", changed(lambda s: s["state"][0].update(other=1))),
        (ValueError, r"lr \(=-1\)", changed(lambda s: s["param_groups"][0].update(lr=-1))),
        (ValueError, "with 'warm'", changed(lambda s: s["param_groups"][0].update(warm=1))),
        (ValueError, "'state' and 'param_groups'", lambda: adam.load_state_dict({})),
        (ValueError, "max_norm", lambda: nn.clip_grad_norm([p], -1)),
    ]
    for kind, words, call in cases:
        with pytest.raises(kind, match=words):
            call()
    assert pickle.dumps(adam.state_dict()) == pickle.dumps(good)


# -------------------------------------------------------------------------------------------------------- schedules

SCHEDULES = {
    "step": (lambda o: nn.StepLR(o, 3, 0.5), lambda s, o: s.StepLR(o, 3, 0.5)),
    "multi": (lambda o: nn.MultiStepLR(o, [7, 2], 0.3), lambda s, o: s.MultiStepLR(o, [2, 7], 0.3)),
    "exponential": (lambda o: nn.ExponentialLR(o, 0.8), lambda s, o: s.ExponentialLR(o, 0.8)),
    "cosine": (lambda o: nn.CosineAnnealingLR(o, 12, 0.01), lambda s, o: s.CosineAnnealingLR(o, 12, 0.01)),
    "warmup": (lambda o: nn.LinearWarmup(o, 5, 0.2), lambda s, o: s.LinearLR(o, 0.2, 1.0, 5)),
    "one cycle": (
        lambda o: nn.OneCycleLR(o, 0.7, 13, 0.4, 10.0, 100.0),
        lambda s, o: s.OneCycleLR(o, 0.7, 13, pct_start=0.4, div_factor=10, final_div_factor=100, cycle_momentum=False),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, rng):
    make, torch_make = SCHEDULES[name]
    a, b, _ = parameters(rng)
    groups = [{"params": [a]}, {"params": [b], "lr": 0.05}]
    optimizer = nn.SGD(groups, 0.3)
    schedule = make(optimizer)
    rates = [schedule.get_last_lr()]
    for _ in range(12):
        schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert len({tuple(pair) for pair in rates}) > 2
    other = nn.SGD([{"params": [nn.Parameter(a)]}, {"params": [nn.Parameter(b)], "lr": 0.9}], 0.9)
    again = make(other)
    again.load_state_dict(schedule.state_dict())
    assert again.get_last_lr() == rates[-1]
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD(
        [
            {"params": [torch.zeros(1, requires_grad=True)]},
            {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.05},
        ],
        0.3,
    )
    reference = torch_make(torch.optim.lr_scheduler, theirs)
    for pair in rates:
        np.testing.assert_allclose(pair, [group["lr"] for group in theirs.param_groups], rtol=1e-12)
        theirs.step()
        reference.step() if pair is not rates[-1] else None


def test_warmup_goes_over_to_another_schedule(rng):
    optimizer = nn.SGD(parameters(rng), 0.4)
    after = nn.ExponentialLR(optimizer, 0.5)
    schedule = nn.LinearWarmup(optimizer, 2, 0.5, after)
    rates = []
    for _ in range(5):
        rates += schedule.get_last_lr()
        schedule.step()
    np.testing.assert_allclose(rates, [0.2, 0.3, 0.4, 0.2, 0.1], rtol=1e-15)


def test_schedule_errors(rng):
    optimizer = nn.SGD(parameters(rng), 0.4)
    cases = [
        (TypeError, "must be an Optimizer", lambda: nn.StepLR(3, 1)),
        (ValueError, r"step_size \(=0\)", lambda: nn.StepLR(optimizer, 0)),
        (ValueError, r"gamma \(=-1\)", lambda: nn.ExponentialLR(optimizer, -1)),
        (ValueError, r"pct_start \(=1\)", lambda: nn.OneCycleLR(optimizer, 1.0, 5, 1)),
        (ValueError, r"after \(=3\)", lambda: nn.LinearWarmup(optimizer, 5, after=3)),
        (ValueError, "of 1 groups", lambda: nn.StepLR(optimizer, 1).load_state_dict({"base_lrs": [], "last_step": 1})),
    ]
    for kind, words, call in cases:
        with pytest.raises(kind, match=words):
            call()
    schedule = nn.OneCycleLR(optimizer, 1.0, 2)
    schedule.step()
    with pytest.raises(ValueError, match="below total_steps"):
        schedule.step()


# --------------------------------------------------------------------------------------------------------- training


def train(threads, steps=6, checkpoint=None):
    """A small network of every kind of layer that has randomness or sums over a batch; gives all bits of the end."""
    with fastconv.num_threads(threads):
        nn.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Residual(nn.Sequential(nn.SeparableConv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16)), None, nn.ReLU()),
            nn.SqueezeExcite(16, 4),
            nn.Dropout2d(0.2),
            nn.GlobalAvgPool2d(keepdims=False),
            nn.Dropout(0.3),
            nn.Linear(16, 5),
        )
        optimizer = nn.AdamW(net.parameters(), 1e-2)
        schedule = nn.CosineAnnealingLR(optimizer, 10)
        loss = nn.CrossEntropyLoss(0.1)
        rng = np.random.default_rng(0)
        batches = [(rng.standard_normal((8, 3, 24, 24), dtype=np.float32), rng.integers(0, 5, 8)) for _ in range(6)]
        start, values, middle = 0, [], None
        if checkpoint is not None:
            start = checkpoint["step"]
            net.load_state_dict(checkpoint["net"])
            net.set_random_state(checkpoint["random"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            schedule.load_state_dict(checkpoint["schedule"])
        for i, (x, target) in enumerate(batches[start:steps], start):
            if i == 3:
                middle = pickle.dumps(
                    {
                        "step": i,
                        "net": net.state_dict(),
                        "random": net.random_state(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                    }
                )
            values.append(loss(net(x), target))
            net.backward(loss.backward(), input_grad=False)
            nn.clip_grad_norm(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return net.state_dict(), values, middle


def test_training_gives_the_same_bits():
    """For one thread and two, from run to run, and from a checkpoint."""
    state, values, middle = train(1)
    for again, losses, _ in (train(2), train(1)):
        assert losses == values
        for name, value in state.items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)
    resumed, losses, _ = train(2, checkpoint=pickle.loads(middle))
    assert losses == values[3:]
    for name, value in state.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_training_learns(rng):
    nn.manual_seed(0)
    x = rng.standard_normal((128, 1, 8, 8)).astype(np.float32)
    target = (x[:, 0, :4, :4].sum((1, 2)) > 0).astype(int)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    loss, optimizer = nn.CrossEntropyLoss(), nn.SGD(net.parameters(), 0.1, 0.9)
    for _ in range(20):
        value = loss(net(x), target)
        net.backward(loss.backward(), input_grad=False)
        optimizer.step()
        optimizer.zero_grad()
    assert value < 0.05
    assert np.mean(net.eval()(x).argmax(1) == target) > 0.97
