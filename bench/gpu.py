"""Everything that wants a GPU, in one command: `python bench/gpu.py`.

Builds `_cuda` for the GPU at hand, runs `pytest -m gpu` (every op, dtype and layout against float64), compute-sanitizer
on a small part of it where the machine has one, then times the families below beside PyTorch in the same run, and
writes bench/results/<gpu>-<family or all>.json. It prints the worst rows first. `--family pool` runs one family alone,
`--skip-tests` only times, `--report` writes the tables of docs/gpu.md and README from the results. Nothing is fetched.

Times are medians over CUDA events of replayed graphs of calls, on operands that rotate through more memory than the L2
cache holds; a result is compared with PyTorch's before it is timed. "share" is the least traffic of the call over its
time, as a part of the copy bandwidth that was measured in the same run. What PyTorch lacks is named and has no ratio.

The whole takes less than eight minutes, by estimate seven: the build 100 s of 16 cores, the tests 80 s (they are
stopped after 150), the sanitizer at most 40, and each family what FAMILIES gives it, 210 s together; what the time does
not reach is listed, and `--family` gets it. Tests that fail are said at the end; what can be measured is measured.

`--rehearse` goes the same way without a GPU: tiny operands, the kernels on fibers of the host, PyTorch on the CPU where
it is installed. Its times mean nothing, and it writes no results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
# Seconds that a family may take, of all dtypes and layouts.
FAMILIES = {
    "depthwise": 40,
    "depthwise backward": 25,
    "pool": 30,
    "pool backward": 10,
    "norm": 20,
    "elementwise": 12,
    "separable": 8,
    "other": 20,
    "dense": 45,
}
DTYPES = ("float32", "float16", "bfloat16")
# The most that two right results differ by, in the Euclidean norm: cuDNN may take Winograd's way in float32.
LIMITS = {"float32": 5e-5, "float16": 5e-3, "bfloat16": 3e-2}
BEGIN, END = "<!-- gpu-results:begin -->", "<!-- gpu-results:end -->"


# ---------------------------------------------------------------------------------------------------- build and tests


def build(folder: Path) -> Path:
    """Build the package with `_cuda` for this GPU alone; returns the folder to import from."""
    import pybind11
    import torch

    major, minor = torch.cuda.get_device_capability()
    architecture = "90a-real" if (major, minor) == (9, 0) else f"{major}{minor}-real"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "FASTCONV_CUDA": "ON",
        "FASTCONV_CUDA_ARCHITECTURES": architecture,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    defines = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(folder), *generator, *defines], check=True)
    subprocess.run(["cmake", "--build", str(folder), "-j", str(os.cpu_count() or 1)], check=True)
    package = folder / "site" / "fastconv"
    shutil.copytree(ROOT / "python" / "fastconv", package, dirs_exist_ok=True)
    # _testing too: a test of the CPU's refusals asks it.
    for pattern in ("_core*.so", "_cuda*.so", "_testing*.so"):
        for module in folder.glob(pattern):
            shutil.copy(module, package)
    return package.parent


def has(name: str) -> bool:
    """Whether a module of that name is installed."""
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test(site: Path) -> dict[str, str]:
    """The tests on the GPU, and a small part of them under compute-sanitizer: what became of each."""
    if missing := [name for name in ("pytest", "hypothesis") if not has(name)]:
        return {"pytest -m gpu": f"not run: {' and '.join(missing)} not installed"}
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    # Warnings of other versions than CI's are no failures of a kernel.
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "-W", "default"]
    if not has("pytest_timeout"):
        pytest += ["-o", "timeout=0", "-W", "ignore::pytest.PytestConfigWarning"]
    files = sorted(str(p) for p in (ROOT / "tests").glob("test_cuda_*.py"))
    found = {"pytest -m gpu": run([*pytest, "--maxfail", "20", *files], environment, 150)}
    if (sanitizer := shutil.which("compute-sanitizer")) is None:
        return {**found, "compute-sanitizer": "not on this machine"}
    small = [str(ROOT / "tests" / "test_cuda_gpu.py"), "-k", "float32 and NHWC"]
    words = {"passed": "clean", "ended with 9": "errors found", "ended with 1": "not served here, or a test failed"}
    ended = run([sanitizer, "--error-exitcode", "9", *pytest, *small], environment, 40)
    return {**found, "compute-sanitizer": words.get(ended, ended)}


def run(command: Sequence[str], environment: dict[str, str], limit: float) -> str:
    """How a command ended."""
    try:
        code = subprocess.run(command, env=environment, cwd=ROOT, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s without an error"
    return "passed" if code == 0 else f"ended with {code}"


# ----------------------------------------------------------------------------------------------------------- machines


class Gpu:
    """The device: operands are PyTorch's tensors, for both sides."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        torch.backends.cudnn.benchmark = True
        self.generator = torch.Generator("cuda").manual_seed(0)
        self.copies = 180 << 20  # three times the L2 cache of an H200
        self.scale = 1

    def describe(self) -> dict[str, Any]:
        """What the results were measured on."""
        torch = self.torch
        return {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def operand(self, shape: Sequence[int], dtype: str, last: bool) -> Any:
        """Random values; `last`: an image, whose channels are innermost in memory."""
        made = self.torch.randn(tuple(shape), device="cuda", generator=self.generator)
        made = made.to(getattr(self.torch, dtype))
        return made.movedim(1, -1).contiguous().movedim(-1, 1) if last else made

    def ours(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """The operands as our call takes them."""
        return tuple(operands)

    def theirs(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """The operands as PyTorch's call takes them."""
        return tuple(operands)

    def error(self, a: Any, b: Any) -> float:
        """The relative difference of two results in the Euclidean norm."""
        a, b = a.float(), b.float()
        return float((a - b).norm() / b.norm().clamp_min(1e-30))

    def seconds(self, calls: Sequence[Callable[[], Any]], budget: float = 0.08) -> float:
        """The median time of a call; each round goes through all operands, as one graph where they can be captured."""
        torch = self.torch

        def once() -> None:
            for call in calls:
                call()

        once()
        torch.cuda.synchronize()
        again = self.captured(once) or once
        begin, times = time.perf_counter(), []
        while len(times) < 5 or (time.perf_counter() - begin < budget and len(times) < 100):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            again()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000 / len(calls))
        return statistics.median(times)

    def captured(self, calls: Callable[[], None]) -> Callable[[], None] | None:
        """The replay of a graph of the calls: small layers are then not timed by Python; None where there is none."""
        try:
            graph = self.torch.cuda.CUDAGraph()
            with self.torch.cuda.graph(graph):
                calls()
            graph.replay()
            self.torch.cuda.synchronize()
        except (RuntimeError, AssertionError, AttributeError):
            return None
        return graph.replay  # type: ignore[no-any-return]

    def copy_bandwidth(self) -> float:
        """Bytes a second, read plus written, of a large copy."""
        torch = self.torch
        pairs = [(torch.empty(1 << 28, device="cuda"), torch.empty(1 << 28, device="cuda")) for _ in range(2)]
        calls = [lambda a=a, b=b: b.copy_(a) for a, b in pairs]
        return 2 * (1 << 30) / self.seconds(calls, 0.3)


class Rehearsal:
    """The kernels on fibers of the host, and PyTorch on the CPU where it is installed: to try this program."""

    def __init__(self) -> None:
        import numpy as np

        self.np, self.rng = np, np.random.default_rng(0)
        self.torch: Any = None
        if has("torch"):
            import torch

            self.torch = torch
        self.copies = 0
        self.scale = 0

    def describe(self) -> dict[str, Any]:
        """What this is."""
        return {"gpu": "rehearsal", "torch": getattr(self.torch, "__version__", None), "cuda": None, "cudnn": None}

    def operand(self, shape: Sequence[int], dtype: str, last: bool) -> Any:
        """A host array and its dtype."""
        made = self.rng.standard_normal(tuple(shape), self.np.float32)
        if last:
            made = self.np.moveaxis(self.np.ascontiguousarray(self.np.moveaxis(made, 1, -1)), -1, 1)
        return made, dtype

    def ours(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """The operands on the host build's device."""
        from fastconv import cuda

        return tuple(cuda.to_device(a, dtype=dtype) for a, dtype in operands)

    def theirs(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """The operands as tensors on the CPU."""
        return tuple(self.torch.from_numpy(a).to(getattr(self.torch, dtype)) for a, dtype in operands)

    def error(self, a: Any, b: Any) -> float:
        """As on the GPU."""
        from fastconv import cuda

        wide = cuda.to_host(a).astype(self.np.float64)
        other = b.double().numpy()
        return float(self.np.linalg.norm(wide - other) / max(self.np.linalg.norm(other), 1e-30))

    def seconds(self, calls: Sequence[Callable[[], Any]]) -> float:
        """One round."""
        begin = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - begin) / len(calls)

    def copy_bandwidth(self) -> float:
        """None is measured."""
        return 1e9


# --------------------------------------------------------------------------------------------------------------- rows


class Row(NamedTuple):
    """A call of a family: operands by their shapes (images in the row's layout), our call, theirs, what is moved."""

    name: str
    images: tuple[tuple[int, ...], ...]
    others: tuple[tuple[int, ...], ...]
    ours: Callable[..., Any]
    theirs: Callable[..., Any] | None
    moved: float


def out(n: int, k: int, s: int, p: int, d: int = 1) -> int:
    """The size of a window's output."""
    return (n + 2 * p - d * (k - 1) - 1) // s + 1


def rows(machine: Gpu | Rehearsal, family: str) -> Iterator[Row]:
    """The rows of a family. `scale` is 0 in a rehearsal: every size is then a small one of the same kind."""
    import fastconv

    f, torch, big = fastconv.functional, machine.torch, machine.scale
    F = torch.nn.functional if torch is not None else None
    aten = torch.ops.aten if torch is not None else None
    size = math.prod

    def of(real: int, small: int) -> int:
        return real if big else small

    N = of(64, 1)

    def depthwise() -> Iterator[tuple[str, int, tuple[int, ...], tuple[int, ...], int, int, tuple[int, ...]]]:
        # name, channels, image, kernel, stride, dilation, padding
        for c, h, k, s, d in (
            (32, 112, 3, 1, 1),
            (144, 112, 3, 2, 1),
            (240, 28, 5, 1, 1),
            (512, 14, 3, 1, 1),
            (96, 56, 7, 1, 1),
            (768, 7, 7, 1, 1),
            (128, 56, 3, 1, 2),
        ):
            e = of(h, 7)
            yield f"{k}x{k} s{s} d{d} {c}@{h}", of(c, 16), (e, e), (k, k), s, d, (d * (k // 2),) * 2
        e = of(112, 7)
        yield "3x7 64@112", of(64, 16), (e, e), (3, 7), 1, 1, (1, 3)
        yield "1-D 31 256@4096", of(256, 16), (of(4096, 40),), (31,), 1, 1, (15,)
        yield "3-D 3x3x3 64@16x28x28", of(64, 16), (of(16, 4), of(28, 5), of(28, 5)), (3, 3, 3), 1, 1, (1, 1, 1)

    if family in ("depthwise", "depthwise backward"):
        for name, c, image, kernel, s, d, p in depthwise():
            rank = len(image)
            n = max(1, N // 4) if name.startswith("3-D") else N
            x = (n, c, *image)
            y = (n, c, *(out(a, k, s, q, d) for a, k, q in zip(image, kernel, p, strict=True)))
            options = {"stride": s, "padding": p, "dilation": d}
            if family == "depthwise":
                yield Row(
                    name,
                    (x,),
                    ((c, 1, *kernel),),
                    lambda x, w, r=rank, o=options: getattr(f, f"conv{r}d")(x, w, groups=w.shape[0], **o),
                    F and (lambda x, w, r=rank, o=options: getattr(F, f"conv{r}d")(x, w, groups=w.shape[0], **o)),
                    size(x) + size(y),
                )
            else:
                yield Row(
                    f"dx dw db {name}",
                    (y, x),
                    ((c, 1, *kernel),),
                    lambda g, x, w, r=rank, o=options: getattr(f, f"conv{r}d_backward")(
                        g, x, w, groups=w.shape[0], **o
                    ),
                    F
                    and (
                        lambda g, x, w, r=rank, s=s, p=p, d=d: aten.convolution_backward(
                            g, x, w, [w.shape[0]], [s] * r, p, [d] * r, False, [0] * r, w.shape[0], [True] * 3
                        )
                    ),
                    2 * size(x) + size(y),
                )
    if family == "pool":
        for rank, c, image, k, s, p in (
            (2, 64, 112, 2, 2, 0),
            (2, 64, 112, 3, 2, 1),
            (2, 64, 112, 3, 1, 1),
            (2, 64, 112, 4, 1, 0),
            (1, 64, 8192, 3, 2, 1),
            (3, 32, 28, 2, 2, 0),
        ):
            e = of(image, 8)
            x = (N if rank < 3 else max(1, N // 4), of(c, 16), *(e,) * rank)
            y = (*x[:2], *(out(e, k, s, p),) * rank)
            for kind in ("max", "avg"):
                if kind == "avg" and k == 4:
                    continue
                yield Row(
                    f"{kind} {rank}-D {k} s{s}",
                    (x,),
                    (),
                    lambda x, a=kind, r=rank, k=k, s=s, p=p: getattr(f, f"{a}_pool{r}d")(x, k, stride=s, padding=p),
                    F and (lambda x, a=kind, r=rank, k=k, s=s, p=p: getattr(F, f"{a}_pool{r}d")(x, k, s, p)),
                    size(x) + size(y),
                )
        x = (N, of(256, 16), of(56, 17), of(56, 17))
        yield Row(
            "global average",
            (x,),
            (),
            f.global_avg_pool2d,
            F and (lambda x: F.adaptive_avg_pool2d(x, 1)),
            size(x),
        )
    if family == "pool backward":
        for k, s, p in ((2, 2, 0), (3, 2, 1)):
            e = of(112, 8)
            x = (N, of(64, 16), e, e)
            y = (*x[:2], *(out(e, k, s, p),) * 2)
            indices: dict[int, Any] = {}

            def max_gradient(g: Any, x: Any, k: int = k, s: int = s, p: int = p, at: Any = indices) -> Any:
                if id(x) not in at:
                    at[id(x)] = (F.max_pool2d(x, k, s, p, return_indices=True)[1], x)  # x: its id stays its own
                return aten.max_pool2d_with_indices_backward(g, x, [k, k], [s, s], [p, p], [1, 1], False, at[id(x)][0])

            yield Row(
                f"max {k} s{s}",
                (y, x),
                (),
                lambda g, x, k=k, s=s, p=p: f.max_pool2d_backward(g, x, k, stride=s, padding=p),
                F and max_gradient,
                2 * size(x) + size(y),
            )
            yield Row(
                f"avg {k} s{s}",
                (y, x),
                (),
                lambda g, x, k=k, s=s, p=p: f.avg_pool2d_backward(g, x.shape, k, stride=s, padding=p),
                F
                and (
                    lambda g, x, k=k, s=s, p=p: aten.avg_pool2d_backward(
                        g, x, [k, k], [s, s], [p, p], False, True, None
                    )
                ),
                size(x) + size(y),
            )
    if family == "norm":
        c, e = of(64, 16), of(112, 6)
        x = (N, c, e, e)
        yield Row(
            "batch norm training",
            (x,),
            ((c,), (c,)),
            lambda x, w, b: f.batch_norm(x, None, None, w, b, training=True),
            F and (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True)),
            3 * size(x),
        )
        yield Row(
            "batch norm training + relu + residual",
            (x, x),
            ((c,), (c,)),
            lambda x, r, w, b: f.batch_norm(x, None, None, w, b, training=True, residual=r, activation="relu"),
            F and (lambda x, r, w, b: torch.relu(F.batch_norm(x, None, None, w, b, training=True) + r)),
            4 * size(x),
        )
        yield Row(
            "batch norm inference + relu",
            (x,),
            ((c,), (c,)),
            lambda x, m, v: f.batch_norm(x, m, f.add(f.relu(v), f.relu(v)), activation="relu", eps=1.0),
            F and (lambda x, m, v: torch.relu(F.batch_norm(x, m, torch.relu(v) * 2, eps=1.0))),
            2 * size(x),
        )
        stats: dict[int, Any] = {}

        def norm_gradient(g: Any, x: Any, w: Any, at: Any = stats) -> Any:
            if id(x) not in at:
                _, mean, inv = f.batch_norm_train(x, None, None)
                at[id(x)] = (mean, inv, x)
            return f.batch_norm_backward(g, x, w, *at[id(x)][:2])

        their_stats: dict[int, Any] = {}

        def their_gradient(g: Any, x: Any, w: Any, at: Any = their_stats) -> Any:
            if id(x) not in at:
                _, mean, inv = aten.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)
                at[id(x)] = (mean, inv, x)
            mean, inv = at[id(x)][:2]
            return aten.native_batch_norm_backward(g, x, w, None, None, mean, inv, True, 1e-5, [True] * 3)

        yield Row("batch norm backward", (x, x), ((c,),), norm_gradient, F and their_gradient, 5 * size(x))
        groups = of(32, 4)
        yield Row(
            "group norm",
            (x,),
            (),
            lambda x, g=groups: f.group_norm(x, g),
            F and (lambda x, g=groups: F.group_norm(x, g)),
            3 * size(x),
        )
    if family == "elementwise":
        x = (N, of(64, 16), of(112, 6), of(112, 6))
        for name in ("relu", "silu", "gelu"):
            yield Row(name, (x,), (), getattr(f, name), F and getattr(F, name), 2 * size(x))
        yield Row(
            "add + relu",
            (x, x),
            (),
            lambda a, b: f.add(a, b, activation="relu"),
            F and (lambda a, b: F.relu(a + b)),
            3 * size(x),
        )
        yield Row(
            "softmax of channels", (x,), (), lambda x: f.softmax(x, 1), F and (lambda x: F.softmax(x, 1)), 2 * size(x)
        )
    if family == "separable":
        for c, k, e in ((64, 128, 56), (256, 256, 28)):
            name = f"3x3 + 1x1 {c}->{k}@{e}"
            c, k, e = of(c, 8), of(k, 9), of(e, 6)
            yield Row(
                name,
                ((N, c, e, e),),
                ((c, 1, 3, 3), (k, c, 1, 1)),
                lambda x, u, p: f.separable_conv2d(x, u, p, padding=1),
                F and (lambda x, u, p: F.conv2d(F.conv2d(x, u, padding=1, groups=u.shape[0]), p)),
                N * (c + k) * e * e,
            )
    if family == "other":
        n, e = of(16, 1), of(56, 6)
        c = of(64, 12)
        yield Row(
            "transposed 2x2 s2",
            ((n, c, e, e),),
            ((c, c, 2, 2),),
            lambda x, w, **o: f.conv_transpose2d(x, w, stride=2, **o),
            F and (lambda x, w: F.conv_transpose2d(x, w, stride=2)),
            n * c * e * e * 5,
        )
        yield Row(
            "transposed 3-D 2 s2",
            ((n, c // 4, 8, e // 2, e // 2),),
            ((c // 4, c // 4, 2, 2, 2),),
            lambda x, w, **o: f.conv_transpose3d(x, w, stride=2, **o),
            F and (lambda x, w: F.conv_transpose3d(x, w, stride=2)),
            n * c * 2 * e * e / 4 * 9,
        )
        yield Row(
            "grouped 3x3 g4",
            ((n, c, e, e),),
            ((c, c // 4, 3, 3),),
            lambda x, w, **o: f.conv2d(x, w, padding=1, groups=4, **o),
            F and (lambda x, w: F.conv2d(x, w, padding=1, groups=4)),
            n * c * e * e * 2,
        )
        yield Row(
            "1-D 3",
            ((n, c, e * e),),
            ((c, c, 3),),
            lambda x, w, **o: f.conv1d(x, w, padding=1, **o),
            F and (lambda x, w: F.conv1d(x, w, padding=1)),
            n * c * e * e * 2,
        )
        yield Row(
            "3-D 3 of 3 channels",
            ((n, 3, 8, e, e),),
            ((16, 3, 3, 3, 3),),
            lambda x, w, **o: f.conv3d(x, w, padding=1, **o),
            F and (lambda x, w: F.conv3d(x, w, padding=1)),
            n * 19 * 8 * e * e,
        )
    if family == "dense":
        n = of(32, 1)
        for c, h, o, k, s in ((64, 56, 64, 3, 1), (64, 56, 256, 1, 1), (3, 224, 64, 7, 2), (512, 7, 512, 3, 1)):
            name, p = f"{k}x{k} s{s} {c}->{o}@{h}", k // 2
            # The first rehearses the tensor cores, which small layers do not take.
            c, h, o = of(c, min(c, 32 if s == 1 and c == 64 == o else 8)), of(h, 7), of(o, 33 if c == 64 == o else 9)
            e = out(h, k, s, p)
            x, y, w = (n, c, h, h), (n, o, e, e), (o, c, k, k)
            moved = size(x) + size(y)
            yield Row(
                f"y {name}",
                (x,),
                (w,),
                lambda x, w, s=s, p=p, **o: f.conv2d(x, w, stride=s, padding=p, **o),
                F and (lambda x, w, s=s, p=p: F.conv2d(x, w, None, s, p)),
                moved,
            )
            for which, mask in (("input", [True, False, False]), ("weight", [False, True, False])):
                yield Row(
                    f"{'dx' if which == 'input' else 'dw'} {name}",
                    (y, x),
                    (w,),
                    lambda g, x, w, s=s, p=p, a=which, **o: (
                        f.conv2d_backward_input(g, w, x.shape, stride=s, padding=p, **o)
                        if a == "input"
                        else f.conv2d_backward_weight(g, x, w.shape, stride=s, padding=p, **o)
                    ),
                    F
                    and (
                        lambda g, x, w, s=s, p=p, m=mask: next(
                            a
                            for a in aten.convolution_backward(
                                g, x, w, None, [s, s], [p, p], [1, 1], False, [0, 0], 1, m
                            )
                            if a is not None
                        )
                    ),
                    moved,
                )


# ------------------------------------------------------------------------------------------------------------ measure


def results_of(value: Any) -> list[Any]:
    """The arrays of a result."""
    return [a for a in value if a is not None] if isinstance(value, tuple) else [value]


# By what products a float32 layer goes, and whether PyTorch's then goes by TF32.
PRECISIONS = {"strict": ("float32", False), "tf32x3": ("float32 by tf32x3", False), "tf32": ("tf32 (both)", True)}


def measure_row(
    machine: Gpu | Rehearsal, row: Row, dtype: str, last: bool, precision: str, bandwidth: float
) -> dict[str, Any]:
    """One row: compared, then timed. `note` says why there is no ratio."""
    name, tf32 = PRECISIONS[precision]
    options = {} if precision == "strict" else {"precision": precision}
    result: dict[str, Any] = {"name": row.name, "dtype": name if options else dtype}
    result["layout"] = "channels_last" if last else "NCHW"

    def make() -> list[Any]:
        images = [machine.operand(shape, dtype, last) for shape in row.images]
        return images + [machine.operand(shape, dtype, False) for shape in row.others]

    item = 4 if dtype == "float32" else 2
    first = make()
    bytes_of = item * sum(math.prod(shape) for shape in row.images)
    operands = [first, *(make() for _ in range(min(15, machine.copies // bytes_of)))]
    ours = [machine.ours(o) for o in operands]
    mine = row.ours(*ours[0], **options)
    theirs: list[Any] = []
    if machine.torch is not None:
        torch = machine.torch
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    if row.theirs is None:
        result["note"] = "PyTorch is not installed"
    else:
        try:
            theirs = [machine.theirs(o) for o in operands]
            expected = row.theirs(*theirs[0])
        except (RuntimeError, AttributeError, NotImplementedError, TypeError) as error:
            theirs, result["note"] = [], f"PyTorch: {str(error).strip().splitlines()[0][:100]}"
    result["right"] = True
    if theirs:
        pairs = list(zip(results_of(mine), results_of(expected), strict=False))
        result["error"] = max(machine.error(a, b) for a, b in pairs)
        limit = 2e-3 if tf32 else LIMITS[dtype]
        # NaN is wrong.
        result["right"] = result["error"] <= limit
    if not result["right"]:
        return result
    result["us"] = 1e6 * machine.seconds([lambda o=o: row.ours(*o, **options) for o in ours])
    result["share"] = item * row.moved / (result["us"] * 1e-6) / bandwidth
    if theirs:
        result["torch_us"] = 1e6 * machine.seconds([lambda o=o: row.theirs(*o) for o in theirs])
        result["ratio"] = result["torch_us"] / result["us"]
    return result


def measure(machine: Gpu | Rehearsal, families: Sequence[str]) -> dict[str, Any]:
    """All rows of the families, as far as their time goes."""
    import fastconv

    bandwidth = machine.copy_bandwidth()
    measured: list[dict[str, Any]] = []
    for family in families:
        begin = time.perf_counter()
        # The dtypes and layouts of a row follow each other, so that a family cut short has whole rows.
        for row in rows(machine, family):
            for dtype in DTYPES:
                for last in (False, True):
                    if isinstance(machine, Gpu) and time.perf_counter() - begin > FAMILIES[family]:
                        measured.append(
                            {
                                "family": family,
                                "name": row.name,
                                "dtype": dtype,
                                "layout": "channels_last" if last else "NCHW",
                                "right": True,
                                "note": f"not reached in {FAMILIES[family]} s",
                            }
                        )
                        continue
                    several = dtype == "float32" and family in ("dense", "other")
                    for precision in PRECISIONS if several else ("strict",):
                        try:
                            result = measure_row(machine, row, dtype, last, precision, bandwidth)
                        except Exception as error:  # a row's failure is a result: the rest is measured all the same
                            result = {
                                "name": row.name,
                                "dtype": PRECISIONS[precision][0] if several else dtype,
                                "layout": "channels_last" if last else "NCHW",
                                "right": False,
                                "note": f"{type(error).__name__}: {str(error)[:200]}",
                            }
                        measured.append({"family": family, **result})
        print(f"{family}: {time.perf_counter() - begin:.0f} s", flush=True)
    return {
        "schema": "fastconv-gpu-1",
        **machine.describe(),
        "fastconv": fastconv.__version__,
        "copy_bandwidth": bandwidth,
        "rows": measured,
    }


def show(results: dict[str, Any]) -> None:
    """The rows, the worst first: wrong ones, then by the ratio to PyTorch, then those without one."""

    def key(row: dict[str, Any]) -> tuple[int, float]:
        if not row["right"]:
            return 0, 0.0
        return (1, row["ratio"]) if "ratio" in row else (2, row.get("share", 9.0))

    for row in sorted(results["rows"], key=key):
        what = f"{row['family']:<19}{row['name']:<38}{row['dtype']:<26}{row['layout']:<14}"
        if not row["right"]:
            print(f"{what}WRONG by {row['error']:.1e}" if "error" in row else f"{what}FAILED: {row['note']}")
            continue
        parts = [f"{row['us']:9.1f} us  {row['share']:.2f} of a copy"] if "us" in row else []
        parts += [f"{row['ratio']:6.2f}x PyTorch"] if "ratio" in row else []
        parts += [row["note"]] if "note" in row else []
        print(what + "  ".join(parts))


# ------------------------------------------------------------------------------------------------------------- report


def documents(directory: Path) -> list[dict[str, Any]]:
    """The results of GPUs in a folder; `all` gives way to what has a file of its own family."""
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("h200-*.json"))]
    return [d for d in found if d.get("schema") == "fastconv-gpu-1"]


def tables(results: Sequence[dict[str, Any]], detailed: bool) -> str:
    """Markdown: a line a family, dtype and layout."""
    if not results:
        return "Not yet measured: the kernels have run on the host build alone.\n"
    lines: list[str] = []
    for document in results:
        lines += [
            f"{document['gpu']}, PyTorch {document['torch']}, CUDA {document['cuda']}, cuDNN {document['cudnn']}; "
            f"a copy moves {document['copy_bandwidth'] / 1e12:.2f} TB/s (read and written). Ratios are PyTorch's time "
            "over ours, geometric means with the worst row; shares are of the copy's bandwidth.",
            "",
            "| family | dtype | layout | rows | times as fast as PyTorch (worst) | share of a copy (worst) |",
            "|---|---|---|---:|---:|---:|",
        ]
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in document["rows"]:
            if "us" not in row:
                continue
            groups.setdefault((row["family"], row["dtype"], row["layout"]), []).append(row)
        if not detailed:
            joined: dict[tuple[str, ...], list[dict[str, Any]]] = {}
            for (family, _, _), found in groups.items():
                joined.setdefault((family, "all", "both"), []).extend(found)
            groups = joined
        for name, found in groups.items():
            ratios = [r["ratio"] for r in found if "ratio" in r]
            shares = [r["share"] for r in found]
            against = f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "-"
            share = f"{statistics.geometric_mean(shares):.0%} ({min(shares):.0%})"
            lines.append(f"| {' | '.join(name)} | {len(found)} | {against} | {share} |")
        notes = [f"{r['family']} {r['name']}" for r in document["rows"] if not r["right"]]
        lines += ["", f"Wrong: {', '.join(notes)}."] if notes else []
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def report(directory: Path = RESULTS, docs: Path = ROOT / "docs" / "gpu.md", readme: Path = ROOT / "README.md") -> bool:
    """Write the tables between the marks of docs/gpu.md and README; True where a file has changed."""
    changed = False
    for path, detailed in ((docs, True), (readme, False)):
        text = path.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.find(END) < text.find(BEGIN):
            raise ValueError(f"{path}: needs one {BEGIN} and, after it, {END}")
        body = f"{BEGIN}\n{tables(documents(directory), detailed)}{END}"
        new = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _, body=body: body, text, flags=re.S)
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed = True
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, test, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, help="one family alone")
    parser.add_argument("--skip-tests", action="store_true", help="only build and time")
    parser.add_argument("--build", type=Path, help="where to build, to build less the next time")
    parser.add_argument("--output", type=Path, help="where the results go, in place of bench/results")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the host build; no results are written")
    parser.add_argument("--report", action="store_true", help="write the tables from bench/results and stop")
    options = parser.parse_args(arguments)
    families = (options.family,) if options.family else tuple(FAMILIES)
    if options.report:
        print("written" if report(options.output or RESULTS) else "nothing has changed")
        return
    if options.rehearse:
        os.environ["FASTCONV_CUDA_MODULE"] = os.environ.get("FASTCONV_CUDA_HOST_MODULE", "_cuda_host")
        results = measure(Rehearsal(), families)
        show(results)
    else:
        begin = time.perf_counter()
        site = build(options.build or Path(tempfile.mkdtemp(prefix="fastconv-gpu-")))
        print(f"build: {time.perf_counter() - begin:.0f} s", flush=True)
        tests: dict[str, str] = {}
        if not options.skip_tests:
            begin = time.perf_counter()
            tests = test(site)
            print(f"tests: {time.perf_counter() - begin:.0f} s", flush=True)
        sys.path.insert(0, str(site))
        results = {**measure(Gpu(), families), "tests": tests}
        slug = "h200" if "H200" in results["gpu"] else results["gpu"].lower().replace(" ", "-")
        name = options.family.replace(" ", "-") if options.family else "all"
        target = (options.output or RESULTS) / f"{slug}-{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(results, indent=1) + "\n")
        show(results)
        print(f"{results['gpu']}: a copy moves {results['copy_bandwidth'] / 1e12:.2f} TB/s; {target}")
        for name, ended in tests.items():
            print(f"{name}: {ended}")
        if any(ended.startswith("ended") or ended == "errors found" for ended in tests.values()):
            raise SystemExit(1)
    if not all(row["right"] for row in results["rows"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
