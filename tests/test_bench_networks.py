"""The benchmark's whole networks and training step: what the peers are told, and the checks before the clock starts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import models, nn
from fastconv.bench import cases, networks, report, run, timing, twin, worker
from fastconv.bench.networks import Network

ALL = networks.everything()
QUICK = timing.Effort(rounds=1, seconds=0.001, least=2, most=3, cold=0)


def tiny(net: str, *size: int, c: int = 3, kind: Any = "network", n: int = 1, **options: Any) -> Network:
    return Network(kind, net, kind, (n, c, *size), 1_000_000, 1000, tuple(options.items()))


# Every architecture, as small as it can be.
TINY = (
    tiny("lenet5", 32, 32, c=1),
    tiny("alexnet", 224, 224, width=0.03, num_classes=5),
    tiny("vgg11", 224, 224, width=0.02, num_classes=5),
    tiny("vgg16", 224, 224, width=0.02, num_classes=5),
    tiny("vgg19", 224, 224, width=0.02, num_classes=5),
    tiny("googlenet", 64, 64, num_classes=5),
    tiny("resnet18", 32, 32, width=4, num_classes=5),
    tiny("resnet50", 32, 32, width=4, num_classes=5),
    tiny("densenet121", 32, 32, growth=4, num_classes=5),
    tiny("xception", 71, 71, num_classes=5),
    tiny("mobilenet_v2", 64, 64, num_classes=5),
    tiny("efficientnet_b0", 64, 64, num_classes=5),
    tiny("unet", 32, 32, c=1, width=4, padding="same"),
    tiny("c3d", 16, 112, 112, width=0.03, num_classes=5),
    tiny("conv_autoencoder", 32, 24, width=4),
)
TRAINING = tiny("resnet18", 32, 32, kind="training", n=4, width=8, num_classes=7)
BY_NET = {v.net: v for v in TINY}


def told(network: Network) -> dict[str, Any]:
    """The case as it crosses the pipe."""
    case: dict[str, Any] = json.loads(json.dumps(network.as_dict(("NCHW", "NHWC"))))
    return case


@cache
def described(network: Network) -> tuple[dict[str, Any], dict[str, Any], networks.Expected]:
    arrays, _ = cases.data(network)
    return told(network), arrays, networks.Expected(network, arrays)


# --------------------------------------------------------------------------------------------------------------- cases


def test_every_architecture_is_a_case() -> None:
    assert {v.net for v in ALL} == set(models.names()) == {v.net for v in TINY}
    assert len({v.id for v in ALL}) == len(ALL)
    assert {v.kind for v in ALL} == set(networks.KINDS)
    assert {v.family(True) for v in ALL} <= set(cases.FAMILIES)


def test_costs_are_those_of_the_summary() -> None:
    for network in ALL:
        with nn.init.undrawn():
            made = models.create(network.net, **dict(network.options))
        found = nn.summary(made, network.shape, show=False)
        assert (found.macs, found.parameters) == (network.macs, network.parameters), network.id
    inference, training = (next(v for v in ALL if v.id == f"resnet18/{kind}") for kind in networks.KINDS)
    assert inference.flops == 2 * inference.macs
    assert training.flops == 6 * training.macs
    assert inference.bytes == 4 * (inference.parameters + 3 * 224 * 224)


def test_choices() -> None:
    def chosen(**options: Any) -> list[str]:
        return [v.id for v in cases.select(**options)[0]]

    usual = chosen(op="network")
    assert "vgg16/network" in usual
    assert "vgg19/network" not in usual
    assert [v.id for v in cases.select(op="network")[1]] == ["c3d/network"]
    assert chosen(op="network", net="vgg19") == ["vgg19/network"]
    assert chosen(op="network", net="resnet50") == ["resnet50/network"]
    assert "resnet50/network" in chosen(net="resnet50")
    assert chosen(op="training") == ["resnet18/training"]
    assert chosen(op="network,training", net="resnet18") == ["resnet18/network", "resnet18/training"]
    assert {v.id for v in cases.select()[0] if isinstance(v, Network)} == {
        "resnet18/network",
        "mobilenet_v2/network",
        "resnet18/training",
    }
    assert "vgg11/network" in chosen(everything=True, op="network")
    assert chosen(op="training", dtype="float64") == ["resnet18/training/float64"]
    assert "lenet5" in cases.networks()


def test_what_peers_are_not_asked_for() -> None:
    case, training = {"kind": "network", "dtype": "float32"}, {"kind": "training", "dtype": "float32"}
    for variant in worker.FORMS:
        asked = variant in ("torch", "torch_cl", "onnxruntime", "openvino")
        assert (worker.not_applicable(variant, case) is None) is asked
        assert (worker.not_applicable(variant, training) is None) is variant.startswith("torch")
        assert worker.form_of(variant, case) == "plan"
        assert worker.form_of(variant, training) == worker.FORMS[variant]
    assert worker.not_applicable("openvino", {"kind": "network", "dtype": "float64"}) == "float32 only"


# ------------------------------------------------------------------------------------------------------ what is told


def test_data_is_repeatable_and_every_weight_is_told() -> None:
    case, arrays, _ = described(BY_NET["resnet18"])
    networks._made_of.cache_clear()
    again, _ = cases.data(BY_NET["resnet18"])
    assert list(again) == list(arrays)
    for name, a in arrays.items():
        np.testing.assert_array_equal(again[name], a)
        # A weight of one or a mean of zero could be left out unseen.
        assert np.ptp(a) > 0 or a.size == 1 or name == "fc.bias", name
    named = [name for node in case["nodes"] for name in node.get("weights", {}).values()]
    assert sorted(named) == sorted(set(arrays) - {"x"})


def test_modules_that_no_peer_is_told_of() -> None:
    x = np.ones((1, 4, 8, 8), np.float32)
    for layer in (
        nn.GELU(),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 2, padding="same"),
        nn.GlobalAvgPool2d(keepdims=False),
        nn.LPPool2d(2, 2),
    ):
        with pytest.raises(ValueError, match="must"):
            networks.nodes_of(nn.Sequential(layer).eval(), x)


def test_separable_and_squeezed_layers_are_told() -> None:
    rows = nn.Sequential(nn.SeparableConv2d(4, 6, 3), nn.Residual(nn.SqueezeExcite(6, 2)), nn.Identity()).eval()
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 9)).astype(np.float32)
    nodes, result, y = networks.nodes_of(rows, x)
    ops = ["conv", "conv", "adaptive_avg_pool", "conv", "activation", "conv", "activation", "multiply", "add"]
    assert [node["op"] for node in nodes] == ops
    torch = pytest.importorskip("torch")
    module = twin.torch_module(torch, nodes, result, {name: p.data.copy() for name, p in rows.named_parameters()})
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), y, rtol=0, atol=2e-6 * np.abs(y).max())


# -------------------------------------------------------------------------------------------------------- contenders


@pytest.mark.parametrize("network", [*TINY, TRAINING], ids=lambda v: v.id)
def test_fastconv_agrees_with_float64(network: Network, tmp_path: Path) -> None:
    case, arrays, expected = described(network)
    makers = dict(worker.FastConv(1).build(case, arrays, tmp_path))
    forms = ["fastconv", "fastconv_plan", *run.INTEGRATIONS]
    assert list(makers) == (["fastconv"] if network.kind == "training" else forms)
    needs = {"fastconv_convert": "torch", "fastconv_onnx": "onnx"}
    there = [name for name in makers if name not in needs or importlib.util.find_spec(needs[name])]
    for name in makers.keys() - there:
        with pytest.raises(worker.Unsupported, match=f"{needs[name]} is not installed"):
            makers[name]()
    for name in there:
        variant = makers[name]()
        assert expected.check(variant.result(), ours=True) < (10_000 if network.kind == "training" else 50)
        variant.call()
        # What is timed leaves no trace in what is checked.
        expected.check(variant.result(), ours=True)


@pytest.mark.parametrize("network", [*TINY, TRAINING], ids=lambda v: v.id)
@pytest.mark.parametrize("last", [False, True])
def test_pytorch_does_the_same(network: Network, last: bool) -> None:
    torch = pytest.importorskip("torch")
    case, arrays, expected = described(network)
    with torch.inference_mode():
        call, result = twin.torch_operation(torch, case, arrays, last)
        call()
        assert expected.check(result(), ours=False) < (10_000 if network.kind == "training" else 50)


@pytest.mark.parametrize("network", TINY, ids=lambda v: v.id)
def test_onnx_says_the_same(network: Network) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx.reference")
    case, arrays, expected = described(network)
    model, inputs = twin.onnx_model(onnx, case, arrays)
    loaded = onnx.load_from_string(model)
    onnx.checker.check_model(loaded, full_check=True)
    if network.net not in ("lenet5", "resnet18", "conv_autoencoder"):
        return  # the evaluator takes seconds
    expected.check(onnx.reference.ReferenceEvaluator(loaded).run(None, inputs), ours=False)


def test_a_timed_step_leaves_the_weights(tmp_path: Path) -> None:
    made = networks._created(TRAINING)
    before = made.conv1.weight.data.copy()
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal(TRAINING.shape).astype(np.float32), np.array([0, 1, 2, 3])
    step = networks.training_step(made, twin.TIMED_RATE)
    first = step(x, target)
    losses = [step(x, target) for _ in range(5)]
    assert losses == pytest.approx([first] * 5, rel=1e-5)
    np.testing.assert_allclose(made.conv1.weight.data, before, rtol=0, atol=1e-6)


def test_dropout_cannot_be_compared_in_training() -> None:
    with pytest.raises(ValueError, match="alexnet must have no dropout"):
        cases.data(tiny("alexnet", 63, 63, kind="training", width=0.02))


# ------------------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize("network", [BY_NET["resnet18"], BY_NET["unet"], TRAINING], ids=lambda v: v.id)
def test_lower_precisions_are_refused(network: Network, tmp_path: Path) -> None:
    case, arrays, expected = described(network)

    def result(mask: int) -> Any:
        cut = {name: (a.view(np.uint32) & np.uint32(mask)).view(np.float32) for name, a in arrays.items() if a.ndim > 1}
        _, make = next(iter(worker.FastConv(1).build(case, arrays | cut, tmp_path)))
        return make().result()

    expected.check(result(0xFFFFFFFF), ours=False)
    # Operands alone of TF32 and bfloat16.
    for mask in (0xFFFFE000, 0xFFFF0000):
        with pytest.raises(run.WrongResult):
            expected.check(result(mask), ours=False)


def test_a_wrong_result_is_refused() -> None:
    _, _, expected = described(TRAINING)
    right = [a.astype(np.float32) for a in expected.results]
    assert expected.check(right, ours=True) < 1
    assert len(right) == 1 + 3 + 5
    for i, a in enumerate(right):
        broken = a.copy()
        broken.flat[-1] += 1e-2 * np.abs(a).max()
        for value in (broken, a[..., None], a.astype(np.float64), np.full_like(a, np.nan)):
            with pytest.raises(run.WrongResult):
                expected.check([*right[:i], value, *right[i + 1 :]], ours=False)


# ----------------------------------------------------------------------------------------------------------- sessions


def test_a_session(tmp_path: Path) -> None:
    has_torch = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0
    workers = ("numpy", "torch") if has_torch else ("numpy",)
    small = [BY_NET["conv_autoencoder"], replace(TRAINING, name="step")]
    document = run.run(small, run.Options(workers=workers, effort=QUICK), lambda *_: None)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert run.failures(document) == []
    whole, step = document["rows"]
    assert (whole["family"], step["family"]) == networks.KINDS
    assert (whole["id"], step["id"]) == ("conv_autoencoder/network", "resnet18/step")
    assert "nodes" not in whole
    assert "numpy" not in whole["contenders"]
    assert whole["contenders"]["onnxruntime"] == {"status": "not run", "form": "plan"}
    assert whole["contenders"]["fastconv_plan"]["memory"] > 0
    (result,) = whole["results"].values()
    assert result["time"] == result["plan_time"]
    assert result["share_of_peak"] > 0
    (trained,) = step["results"].values()
    assert trained["plan_time"] is None
    text = report.markdown([document])
    assert "| conv_autoencoder | 1x3x32x24 | 1.0 | 1 |" in text
    assert "| resnet18, training step | 4x3x32x32 | 1.0 | 1 |" in text
    if has_torch:
        theirs = whole["contenders"]["torch"]["warm"]["median"]
        assert result["speedups"]["torch"] == theirs / result["plan_time"]
        assert trained["speedups"]["torch_cl"] > 0
        assert "Training steps, 1 thread, over PyTorch in its better memory order" in text
        assert not result["best_peer"]["complete"]


def test_gains_over_the_better_of_two_peers() -> None:
    def row(net: str, family: str, through: dict[str, float] | None = None, **speedups: float) -> dict[str, Any]:
        result = {"time": 3.0, "through": through or {}, "speedups": speedups}
        return {"net": net, "family": family, "threads": 1, "results": {"NCHW": result}}

    rows = [
        row("a", "network", {"fastconv_onnx": 4.0}, onnxruntime=2.0, openvino=1.0, torch=5.0, torch_cl=4.0),
        row("b", "network", onnxruntime=4.0, openvino=9.0),
        # One of them was not measured: the better one is not known.
        row("c", "network", onnxruntime=0.5),
        row("a", "training", torch=1.5, torch_cl=3.0),
        row("a", "pool", torch=0.1, torch_cl=0.1),
    ]
    found = dict(report.better_of({"settings": {"threads": [1]}, "rows": rows}))
    assert found == {
        "Whole networks, 1 thread, over the better of ONNX Runtime and OpenVINO": "2.00 in the geometric mean of 2, "
        "worst 1.00 (a)",
        "Whole networks through ONNX, 1 thread, over the better of ONNX Runtime and OpenVINO": "0.75 in the geometric "
        "mean of 1, worst 0.75 (a)",
        "Whole networks, 1 thread, over PyTorch in its better memory order": "4.00 in the geometric mean of 1, worst "
        "4.00 (a)",
        "Whole networks through ONNX, 1 thread, over PyTorch in its better memory order": "3.00 in the geometric mean "
        "of 1, worst 3.00 (a)",
        "Training steps, 1 thread, over PyTorch in its better memory order": "1.50 in the geometric mean of 1, worst "
        "1.50 (a)",
    }


def test_pytorch_stays_in_inference_mode() -> None:
    pytest.importorskip("torch")
    code = "from fastconv.bench import worker; c = worker.Torch(1); assert c.torch.is_inference_mode_enabled()"
    subprocess.run([sys.executable, "-c", code], check=True)
