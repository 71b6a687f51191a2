"""The processes that run with AddressSanitizer and UBSan; the long one of them beside all other tests."""

import os
import subprocess
import sys
from pathlib import Path

import fastconv

ALL_KERNELS = "test_kernels_under_the_sanitizers"
_ROOT = Path(__file__).parents[1]


def _runtime_of(compiler: str, name: str) -> Path | None:
    try:
        path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = Path(path.stdout.strip())
    return found if found.is_absolute() and found.exists() else None


def environment() -> dict[str, str] | str:
    """What a process needs that has AddressSanitizer's runtime and takes the sanitized module; else what is missing."""
    if "FASTCONV_CUDA_HOST_MODULE" in os.environ:
        return "runs in it"
    package = Path(fastconv.__file__).parent
    # The interceptor of exceptions wants the C++ library to be there when it starts.
    runtimes = [_runtime_of("g++", name) for name in ("libasan.so", "libstdc++.so")]
    if None in runtimes or not list(package.glob("_cuda_host_sanitized*.so")):
        return "needs g++'s libasan and the module _cuda_host_sanitized (FASTCONV_CUDA_HOST=ON)"
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(map(str, runtimes)),
        # Python's own blocks are not returned at its end.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "FASTCONV_CUDA_HOST_MODULE": "_cuda_host_sanitized",
        "FASTCONV_NUM_THREADS": "1",
        # As this process found it, installed or not.
        "PYTHONPATH": str(package.parent),
    }


class Background:
    """The tests of all kernels in a sanitized process: it starts at once, and takes what others leave of the cores."""

    def __init__(self, env: dict[str, str]) -> None:
        # test_cuda_gpu has no kernel of its own.
        others = ("test_cuda_host.py", "test_cuda_codegen.py", "test_cuda_bench.py", "test_cuda_gpu.py")
        tests = sorted(str(p) for p in Path(__file__).parent.glob("test_cuda_*.py") if p.name not in others)
        command = ["nice", "-n", "19", sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        self.process = subprocess.Popen(
            [*command, "-m", "not gpu and not slow", *tests],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=_ROOT,
            text=True,
        )

    def finish(self) -> tuple[int, str]:
        """Waits for its end: the exit status, and what it printed."""
        output, _ = self.process.communicate()
        return self.process.returncode, output

    def stop(self) -> None:
        """Ends it, if it runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
