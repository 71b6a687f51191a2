"""The benchmark's pooling, norms, elementwise functions and separable layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv.bench import cases, operations, rivals, run, timing, worker
from fastconv.bench.operations import Operation

ALL = operations.everything()
# Of each operation and direction the smallest: what is tested is how it is called.
SMALL = tuple({v.op: v for v in sorted(ALL, key=lambda v: -v.bytes)}.values())


def told(operation: Operation) -> dict[str, Any]:
    """The case as it crosses the pipe."""
    case: dict[str, Any] = json.loads(json.dumps(operation.as_dict(("NCHW", "NHWC"))))
    return case


def results(contender: worker.Contender, operation: Operation, tmp_path: Path) -> dict[str, list[Any]]:
    arrays, _ = cases.data(operation)
    return {name: make().result() for name, make in contender.build(told(operation), arrays, tmp_path)}


def test_every_operation_has_its_own_name() -> None:
    names = [v.id for v in ALL]
    assert len(set(names)) == len(names)
    assert {v.kind for v in ALL} == set(operations.KINDS)
    assert {v.family(True) for v in ALL} <= set(cases.FAMILIES)


def test_choices() -> None:
    assert {v.kind for v in cases.select(op="pool,batch_norm")[0] if isinstance(v, Operation)} == {"pool", "batch_norm"}
    both = cases.select(op="depthwise,separable")[0]
    assert any(v.depthwise for v in both)
    assert any(isinstance(v, Operation) and v.kind == "separable" for v in both)
    assert {v.net for v in cases.select(net="vgg16", op="pool")[0]} == {"vgg16"}
    assert {v.dtype for v in cases.select(op="norm", dtype="float64")[0]} == {"float64"}
    assert {v.kind for v in cases.select()[0] if isinstance(v, Operation)} == set(operations.KINDS)
    with pytest.raises(ValueError, match=r"--op \(='pol'\) must be of"):
        cases.select(op="pool,pol")


def test_sizes_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {v.id: v for v in ALL}
    pool = found["resnet50/maxpool"]
    assert pool.as_dict(("NCHW",))["y_shape"] == [1, 64, 56, 56]
    assert pool.bytes == 4 * 64 * (112 * 112 + 56 * 56)
    assert found["resnet50/maxpool/backward"].bytes == 4 * 64 * (2 * 112 * 112 + 56 * 56)
    assert found["resnet50/gap/backward"].bytes == 4 * 2048 * (49 + 1)
    block = found["mobilenet_v1/block2"]
    assert block.as_dict(("NCHW",))["y_shape"] == [1, 128, 56, 56]
    assert block.flops == 2 * 56 * 56 * (64 * 9 + 64 * 128)
    train = found["resnet50/train 64@56 n8"]
    monkeypatch.setattr(timing, "cache_bytes", lambda: {"L2": 1 << 20})
    assert train.bytes == 3 * 4 * 8 * 64 * 56 * 56
    monkeypatch.setattr(timing, "cache_bytes", lambda: {"L2": 4 << 20})
    assert train.bytes == 2 * 4 * 8 * 64 * 56 * 56


def test_data_is_repeatable_and_neither_zero_nor_denormal() -> None:
    for operation in SMALL:
        arrays, _ = cases.data(operation)
        again, _ = cases.data(operation)
        for name, a in arrays.items():
            assert np.array_equal(a, again[name])
            assert np.abs(a).min() > (0 if name == "y" else 1e-6), (operation.id, name)


@pytest.mark.parametrize("operation", SMALL, ids=lambda v: v.op)
def test_both_layouts_agree_with_the_reference(operation: Operation, tmp_path: Path) -> None:
    arrays, _ = cases.data(operation)
    expected = operations.Expected(operation, arrays)
    found = results(worker.FastConv(1), operation, tmp_path)
    forms = 2 if operation.direction == "forward" else 1
    assert len(found) == forms * (2 if operation.image else 1)
    for name, mine in found.items():
        assert expected.check(mine, ours=True) < 64, name
    assert expected.check(results(worker.Reference(1), operation, tmp_path)["numpy"], ours=False) < 64


@pytest.mark.parametrize("operation", SMALL, ids=lambda v: v.op)
def test_pytorch_does_the_same(operation: Operation, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    arrays, _ = cases.data(operation)
    expected = operations.Expected(operation, arrays)
    for last in (False, True):
        if last and rivals.not_applicable("torch_cl", told(operation)):
            continue
        if last and operation.op == "instance_norm_backward":
            # PyTorch 2.13's is wrong for channels_last: the benchmark says so.
            continue
        _, result = rivals.torch_operation(torch, told(operation), arrays, last)
        expected.check(result(), ours=False)


def test_a_wrong_result_is_refused() -> None:
    operation = next(v for v in SMALL if v.op == "layer_norm_backward")
    arrays, _ = cases.data(operation)
    expected = operations.Expected(operation, arrays)
    right = [a.astype(np.float32) for a in expected.results]
    assert expected.check(right, ours=True) < 1

    def one(a: Any, value: float) -> Any:
        a = a.copy()
        a.flat[7] += value
        return a

    for last in (
        one(right[-1], 0.01),
        one(right[-1], np.nan),
        right[-1][:-1],
        right[-1].astype(np.float64),
    ):
        with pytest.raises(run.WrongResult):
            expected.check([*right[:-1], last], ours=True)
    with pytest.raises(run.WrongResult):
        expected.check(right[:-1], ours=True)
    # What bfloat16 would give.
    rough = (right[0].view(np.uint32) & 0xFFFF0000).view(np.float32)
    with pytest.raises(run.WrongResult):
        expected.check([rough], ours=False)


def test_a_session(tmp_path: Path) -> None:
    operation = replace(next(v for v in SMALL if v.op == "max_pool2d"), net="test", name="pool")
    effort = timing.Effort(rounds=1, seconds=0.001, cold=0)
    document = run.run([operation], run.Options(workers=("numpy",), effort=effort), lambda *_: None)
    (row,) = document["rows"]
    assert row["family"] == "pool"
    assert row["memory_bound"]
    assert row["results"]["NHWC"]["share_of_copy"] > 0
    assert row["results"]["NCHW"]["speedups"]["numpy"] > 0
    assert json.loads(json.dumps(document)) == document


def test_what_peers_have_no_operation_for() -> None:
    found = {v.op: told(v) for v in SMALL}
    assert rivals.not_applicable("onnxruntime", found["max_pool2d"]) is None
    assert rivals.not_applicable("onnxruntime", found["max_pool2d_backward"]) == "inference only"
    assert rivals.not_applicable("openvino", found["batch_norm_train"]) == "inference only"
    assert rivals.not_applicable("torch_cl", found["layer_norm"]) == "no channels-last format for this rank"
    assert rivals.not_applicable("xnnpack", found["group_norm"]) == "no such kernel"
    assert rivals.not_applicable("ncnn", found["separable_conv2d"]) is None
    for case in found.values():
        for variant in worker.FORMS:
            assert worker.not_applicable(variant, case) == rivals.not_applicable(variant, case)
