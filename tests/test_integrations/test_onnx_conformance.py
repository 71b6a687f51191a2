"""ONNX's own tests of a backend: every case of what fastconv computes runs and passes, and is counted."""

import re
import unittest
import warnings
from functools import cache
from typing import Any

import pytest

from ..frameworks import require

onnx = require("onnx")

# How many there are at least: a case that is skipped, or no longer found, must be seen.
CASES = {
    ("Node", "(basic_)?conv_"): 6,
    ("Node", "convtranspose"): 11,
    ("Node", "(max|average|lp)pool"): 47,
    ("Node", "global(average|max)pool"): 4,
    ("Node", "batchnorm_"): 4,
    ("Node", "(constant|edge|reflect|wrap)_pad"): 6,
    ("Node", "relu"): 2,
    ("Node", "clip"): 24,
    ("PyTorchConverted", "Conv"): 28,
    ("PyTorchConverted", "BatchNorm"): 5,
    ("PyTorchConverted", "(Max|Avg)Pool"): 15,
}
# Of all others. ONNX's reference takes a scaled length that is no whole number for align_corners; ONNX Runtime and
# PyTorch take the length of the result, and so does fastconv. The rest are dropout in training and 16-bit layers, which
# are refused when the values and types of their inputs are known.
KNOWN = {
    "test_resize_downsample_scales_cubic_align_corners_cpu",
    "test_resize_downsample_scales_linear_align_corners_cpu",
    "test_causal_conv_with_state_fp16_expanded_cpu",
    "test_causal_conv_with_state_silu_fp16_expanded_cpu",
    "test_training_dropout_cpu",
    "test_training_dropout_default_cpu",
    "test_training_dropout_default_mask_cpu",
    "test_training_dropout_mask_cpu",
}


@cache
def suites() -> dict[str, Any]:
    """The cases by kind; what is not supported is skipped."""
    import onnx.backend.test

    from fastconv.integrations import onnx as integration

    class Backend(integration.Backend):
        @classmethod
        def prepare(cls, model: Any, device: str = "CPU", **options: Any) -> Any:
            # BackendIsNotSupposedToImplementIt would count as passed.
            try:
                return super().prepare(model, device)
            except integration.UnsupportedModel as error:
                raise unittest.SkipTest(str(error)) from None

    with warnings.catch_warnings():
        # Of the making of the cases.
        warnings.simplefilter("ignore")
        made: dict[str, Any] = onnx.backend.test.BackendTest(Backend, __name__).test_cases
    return made


def run(kind: str, pattern: str) -> tuple[int, list[str], dict[str, str]]:
    """How many passed, which were skipped, which failed and why."""
    passed, skipped, failed = 0, [], {}
    for case in unittest.defaultTestLoader.loadTestsFromTestCase(suites()[f"OnnxBackend{kind}ModelTest"]):
        name = case.id().rpartition(".")[2]
        if not name.endswith("_cpu") or not re.match(f"test_{pattern}", name):
            continue
        result = unittest.TestResult()
        case.run(result)
        if result.skipped:
            skipped.append(f"{name}: {result.skipped[0][1]}")
        elif result.wasSuccessful():
            passed += 1
        else:
            failed[name] = [*result.failures, *result.errors][0][1]
    return passed, skipped, failed


@pytest.mark.parametrize(("kind", "pattern"), CASES, ids=[f"{kind}-{pattern}" for kind, pattern in CASES])
def test_cases_of_layers_run_and_pass(kind: str, pattern: str) -> None:
    passed, skipped, failed = run(kind, pattern)
    assert not failed, "\n".join(failed.values())
    assert not skipped, skipped
    assert passed >= CASES[kind, pattern]


def test_the_count_is_that_of_the_plan() -> None:
    assert sum(CASES.values()) >= 124


@pytest.mark.slow
def test_every_case_passes_or_is_refused_by_name() -> None:
    counts = {kind: run(kind, "") for kind in ("Node", "Simple", "PyTorchConverted", "PyTorchOperator", "Real")}
    assert {name for _, _, failed in counts.values() for name in failed} <= KNOWN
    passed = {kind: count for kind, (count, _, _) in counts.items()}
    assert passed["Node"] >= 1130
    assert passed["PyTorchConverted"] >= 82
    assert passed["PyTorchOperator"] >= 35
    assert passed["Real"] >= 9
