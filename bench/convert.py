"""Models of transformers beside themselves after `fastconv.integrations.torch.convert`.

    python bench/convert.py [NAME ...] [--turns 21] [--threads 1] [--size 224] [--json FILE]

Weights are random, made from the models' own configurations; statistics of batch norms are drawn, so that no layer is
without effect. Of each model:

    nchw, last  PyTorch's time in ms, in either memory order
    converted   that of the converted model, called with an image as it comes (nchw)
    ratio       the better of PyTorch's two over it
    error       the largest difference to the model in float64, over its largest result; beside it PyTorch's own
    parts       networks that the model became, and modules that hold convolutions and were left

All take turns, call by call, so that what else the machine does meets all alike; a time is the median. A result whose
error passes four times PyTorch's own plus 1e-6 is not timed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

import fastconv
from fastconv.integrations.torch import convert, report

SIZED = {"image_size": 224}
B0 = {**SIZED, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
# name: (the model's class, its configuration's, what of that is not as it comes).
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet-50": ("ResNetForImageClassification", "ResNetConfig", {}),
    "mobilenet-v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {}),
    "efficientnet-b0": ("EfficientNetForImageClassification", "EfficientNetConfig", B0),
    "convnext-t": ("ConvNextForImageClassification", "ConvNextConfig", {}),
    "swin-t": ("SwinForImageClassification", "SwinConfig", {}),
    "vit-b16": ("ViTForImageClassification", "ViTConfig", {}),
    "dinov2-b14": ("Dinov2ForImageClassification", "Dinov2Config", SIZED),
    "segformer-b0": ("SegformerForSemanticSegmentation", "SegformerConfig", {}),
    "yolos": ("YolosForObjectDetection", "YolosConfig", {"image_size": [224, 224]}),
}


def create(name: str) -> nn.Module:
    """The model in eval mode."""
    with warnings.catch_warnings(action="ignore"):
        transformers: Any = __import__("transformers")
        kind, config, options = MODELS[name]
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**options))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for array, draw in ((m.running_mean, "normal_"), (m.bias.data, "normal_")):
                getattr(array, draw)(0, 0.1)
            for array in (m.running_var, m.weight.data):
                array.uniform_(0.5, 1.5)
    return model.eval()


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The first of what the model gives."""
    return model(x).logits  # type: ignore[no-any-return]


def medians(calls: list[Callable[[], Any]], turns: int) -> list[float]:
    """Milliseconds a call."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(turns):
        for call, found in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(found) for found in times]


def measure(name: str, size: int, turns: int) -> dict[str, Any]:
    """A row."""
    model = create(name)
    x = torch.randn(1, 3, size, size)
    converted = convert(model)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = logits(copy.deepcopy(model).double(), x.double())
        found = [logits(m, x) for m in (model, converted)]
        theirs, ours = (((y - exact).abs().max() / exact.abs().max()).item() for y in found)
        if not ours <= 4 * theirs + 1e-6:
            raise AssertionError(f"{name}: error {ours:.1e}, PyTorch's {theirs:.1e}")
        calls = [lambda: model(x), lambda: last(x_last), lambda: converted(x)]
        medians(calls, 2)
        nchw, channels_last, own = medians(calls, turns)
    told = report(converted)
    return {
        "model": name,
        "nchw": nchw,
        "last": channels_last,
        "converted": own,
        "ratio": min(nchw, channels_last) / own,
        "error": ours,
        "error_torch": theirs,
        "networks": len(told.networks),
        "left": len(told.left),
    }


def main() -> None:
    """Print the table; write it where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        parser.error(f"NAME (= {unknown[0]}) must be one of {', '.join(MODELS)}")
    torch.set_num_threads(options.threads)
    fastconv.set_num_threads(options.threads)
    print(f"{'model':<16}{'nchw':>8}{'last':>8}{'converted':>11}{'ratio':>7}{'error':>9}{'PyTorch':>9}  parts")
    rows = []
    for name in options.names or MODELS:
        row = measure(name, options.size, options.turns)
        rows.append(row)
        times = f"{row['nchw']:8.1f}{row['last']:8.1f}{row['converted']:11.1f}{row['ratio']:7.2f}"
        errors = f"{row['error']:9.1e}{row['error_torch']:9.1e}"
        print(f"{name:<16}{times}{errors}  {row['networks']} and {row['left']} left", flush=True)
    if options.json:
        settings = {
            "torch": torch.__version__,
            "threads": options.threads,
            "size": options.size,
            "turns": options.turns,
        }
        options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
