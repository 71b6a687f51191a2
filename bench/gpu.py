"""Everything that wants a GPU, in one command: `python bench/gpu.py`.

Builds `_cuda` for the GPU at hand, runs `pytest -m gpu` (every op, dtype and layout against float64), compute-sanitizer
on a small part of it where the machine has one, then times the families below beside PyTorch in the same run, and
writes bench/results/<gpu>-<name>.json. It prints the worst rows first. `--family pool` runs one family alone,
`--skip-tests` only times.

Times are medians over CUDA events of calls on operands that rotate through more memory than the L2 cache holds; a
result is compared with PyTorch's before it is timed. "share" is the least traffic of the call over its time, as a part
of the copy bandwidth that was measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("elementwise", "pool", "norm", "depthwise", "conv")


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
    for module in folder.glob("_c*.so"):
        shutil.copy(module, package)
    return package.parent


def test(site: Path) -> None:
    """The tests on the GPU, and a small part of them under compute-sanitizer."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", str(ROOT / "tests")]
    subprocess.run(pytest, env=environment, cwd=ROOT, check=True)
    if (sanitizer := shutil.which("compute-sanitizer")) is None:
        print("compute-sanitizer: not on this machine")
        return
    small = [*pytest[:-1], str(ROOT / "tests" / "test_cuda_norm.py"), "-k", "refusals or batch_changes or special"]
    done = subprocess.run([sanitizer, "--error-exitcode", "9", *small], env=environment, cwd=ROOT)
    print("compute-sanitizer:", {0: "clean", 9: "errors found"}.get(done.returncode, f"ended with {done.returncode}"))
    if done.returncode == 9:
        raise SystemExit(9)


# ------------------------------------------------------------------------------------------------------------- timing


def seconds(torch: Any, calls: list[Callable[[], Any]], budget: float = 0.3) -> float:
    """The median time of a call; each round goes through all operands."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    begin, times = time.perf_counter(), []
    while len(times) < 7 or (time.perf_counter() - begin < budget and len(times) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / len(calls))
    return statistics.median(times)


def copy_bandwidth(torch: Any) -> float:
    """Bytes a second, read plus written, of a large copy."""
    pairs = [(torch.empty(1 << 28, device="cuda"), torch.empty(1 << 28, device="cuda")) for _ in range(2)]
    return 2 * (1 << 30) / seconds(torch, [lambda a=a, b=b: b.copy_(a) for a, b in pairs])


Row = tuple[str, Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any], float]


def rows(torch: Any, fastconv: Any, family: str, dtype: Any, last: bool) -> Iterator[Row]:
    """(name, make operands, our call, PyTorch's call, streams of the operand that the call has to move)."""
    f, F = fastconv.functional, torch.nn.functional
    order = torch.channels_last if last else torch.contiguous_format

    def image(n: int, c: int, h: int) -> Callable[[Any], Any]:
        return lambda g: (torch.randn(n, c, h, h, device="cuda", generator=g).to(dtype).to(memory_format=order),)

    def weighted(n: int, c: int, h: int, shape: tuple[int, ...]) -> Callable[[Any], Any]:
        def make(g: Any) -> Any:
            w = torch.randn(shape, device="cuda", generator=g).to(dtype)
            return (*image(n, c, h)(g), w)

        return make

    if family == "elementwise":
        for name in ("relu", "silu", "gelu"):
            yield name, image(64, 64, 112), getattr(f, name), getattr(F, name), 2
        yield "softmax channels", image(64, 64, 112), lambda x: f.softmax(x, 1), lambda x: F.softmax(x, 1), 2
    if family == "pool":
        for k, s, p in ((2, 2, 0), (3, 2, 1), (3, 1, 1)):
            moved = 1 + 1 / (s * s)
            yield (
                f"max {k}x{k} s{s}",
                image(64, 64, 112),
                lambda x, k=k, s=s, p=p: f.max_pool2d(x, k, stride=s, padding=p),
                lambda x, k=k, s=s, p=p: F.max_pool2d(x, k, s, p),
                moved,
            )
            yield (
                f"average {k}x{k} s{s}",
                image(64, 64, 112),
                lambda x, k=k, s=s, p=p: f.avg_pool2d(x, k, stride=s, padding=p),
                lambda x, k=k, s=s, p=p: F.avg_pool2d(x, k, s, p),
                moved,
            )
        yield "global average", image(64, 256, 56), f.global_avg_pool2d, lambda x: F.adaptive_avg_pool2d(x, 1), 1
    if family == "norm":
        yield (
            "batch norm training",
            image(64, 64, 112),
            lambda x: f.batch_norm(x, None, None, training=True),
            lambda x: F.batch_norm(x, None, None, training=True),
            3,
        )
        yield "group norm", image(64, 64, 112), lambda x: f.group_norm(x, 32), lambda x: F.group_norm(x, 32), 3
    if family == "depthwise":
        for c, h, k, s in ((32, 112, 3, 1), (144, 112, 3, 2), (240, 28, 5, 1), (96, 56, 7, 1)):
            yield (
                f"{k}x{k} s{s} {c}@{h}",
                weighted(64, c, h, (c, 1, k, k)),
                lambda x, w, s=s, k=k: f.conv2d(x, w, stride=s, padding=k // 2, groups=w.shape[0]),
                lambda x, w, s=s, k=k: F.conv2d(x, w, None, s, k // 2, 1, w.shape[0]),
                1 + 1 / (s * s),
            )
    if family == "conv":
        for c, h, o, k, s in ((64, 56, 64, 3, 1), (64, 56, 256, 1, 1), (3, 224, 64, 7, 2), (512, 7, 512, 3, 1)):
            yield (
                f"{k}x{k} s{s} {c}->{o}@{h}",
                weighted(32, c, h, (o, c, k, k)),
                lambda x, w, s=s, k=k: f.conv2d(x, w, stride=s, padding=k // 2),
                lambda x, w, s=s, k=k: F.conv2d(x, w, None, s, k // 2),
                1 + o / c / (s * s),
            )


def measure(families: tuple[str, ...]) -> dict[str, Any]:
    """All rows of the families."""
    import torch

    import fastconv

    torch.backends.cudnn.benchmark = True
    bandwidth = copy_bandwidth(torch)
    results = []
    for family in families:
        for dtype_name in ("float32", "float16", "bfloat16"):
            for last in (False, True):
                for name, make, ours, theirs, streams in rows(
                    torch, fastconv, family, getattr(torch, dtype_name), last
                ):
                    generator = torch.Generator("cuda").manual_seed(0)
                    first = make(generator)
                    bytes_of = first[0].numel() * first[0].element_size()
                    # Three times the L2 cache of an H200, or once.
                    operands = [first, *(make(generator) for _ in range(max(0, (180 << 20) // bytes_of)))]
                    for tf32 in (False, True) if dtype_name == "float32" and family == "conv" else (False,):
                        torch.backends.cudnn.allow_tf32 = tf32
                        a, b = ours(*first).float(), theirs(*first).float()
                        error = float((a - b).norm() / b.norm())
                        limit = {"float32": 1e-3 if tf32 else 1e-5, "float16": 5e-3, "bfloat16": 3e-2}[dtype_name]
                        row: dict[str, Any] = {
                            "family": family,
                            "name": name,
                            "dtype": dtype_name + (" (PyTorch: TF32)" if tf32 else ""),
                            "layout": "channels_last" if last else "NCHW",
                            "error": error,
                            "right": error <= limit,
                        }
                        if row["right"]:
                            row["us"] = 1e6 * seconds(torch, [lambda o=o, f=ours: f(*o) for o in operands])
                            row["torch_us"] = 1e6 * seconds(torch, [lambda o=o, f=theirs: f(*o) for o in operands])
                            row["ratio"] = row["torch_us"] / row["us"]
                            row["share"] = streams * bytes_of / (row["us"] * 1e-6) / bandwidth
                        results.append(row)
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "fastconv": fastconv.__version__,
        "copy_bandwidth": bandwidth,
        "rows": results,
    }


def main() -> None:
    """Build, test, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, help="one family alone")
    parser.add_argument("--skip-tests", action="store_true", help="only build and time")
    parser.add_argument("--build", type=Path, help="where to build, to build less the next time")
    parser.add_argument("--output", type=Path, help="where the results go, in place of bench/results")
    options = parser.parse_args()
    site = build(options.build or Path(tempfile.mkdtemp(prefix="fastconv-gpu-")))
    if not options.skip_tests:
        test(site)
    sys.path.insert(0, str(site))
    results = measure((options.family,) if options.family else FAMILIES)
    slug = "h200" if "H200" in results["gpu"] else results["gpu"].lower().replace(" ", "-")
    target = (options.output or ROOT / "bench" / "results") / f"{slug}-{options.family or 'all'}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{results['gpu']}: a copy moves {results['copy_bandwidth'] / 1e12:.2f} TB/s; {target}")
    for row in sorted(results["rows"], key=lambda r: r.get("ratio", 0)):
        what = f"{row['family']:<12}{row['name']:<22}{row['dtype']:<26}{row['layout']:<14}"
        shown = (
            f"{row['us']:9.1f} us  {row['ratio']:6.2f}x PyTorch  {row['share']:.2f} of a copy" if row["right"] else ""
        )
        print(what + (shown or f"WRONG by {row['error']:.1e}"))
    if not all(row["right"] for row in results["rows"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
