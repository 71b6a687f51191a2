"""The processes that are measured: one a contender, started once, stopped while another one runs."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastconv.bench.worker import FORMS, WORKERS, Array, receive, send

__all__ = ["FORMS", "TITLES", "WORKERS", "PeerError", "Settings", "Worker", "interpreter", "start"]

TITLES = {
    "fastconv": "fastconv",
    "numpy": "NumPy reference",
    "torch": "PyTorch",
    "torch_cl": "PyTorch channels_last",
    "jax": "JAX",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO f32",
    "ncnn": "ncnn (Winograd)",
    "ncnn_direct": "ncnn (direct)",
    "xnnpack": "TensorFlow Lite XNNPACK",
}
_WORKER = Path(__file__).with_name("worker.py")
# An import of TensorFlow from a cold disk, or a naive layer of 40 GFLOP, takes this long; a hang takes longer.
_PATIENCE = 300.0
# What holds a library to AVX2; those without a switch are reported as not held.
_HOLD_AVX2: dict[str, dict[str, str]] = {
    "fastconv": {"FASTCONV_ISA": "avx2"},
    "numpy": {"OPENBLAS_CORETYPE": "Haswell"},
    "torch": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "jax": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    "onnxruntime": {},
    "openvino": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "ncnn": {},
    "tensorflow": {},
}


class PeerError(Exception):
    """A worker has gone, hangs, or reports an error."""


@dataclass(frozen=True)
class Settings:
    """What every worker of a run shares."""

    threads: int
    cores: tuple[int, ...]
    isa: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)
    """Interpreters by worker; the key "all" serves those that have none of their own."""
    scratch: str = ""
    """A directory for their temporary files. They are killed in the end and remove nothing themselves."""


def interpreter(name: str, settings: Settings) -> str:
    """The interpreter of a worker: given on the command line, or in FASTCONV_BENCH_PYTHON_<NAME>, or this one."""
    if name in ("fastconv", "numpy"):
        return sys.executable
    return (
        settings.pythons.get(name)
        or os.environ.get(f"FASTCONV_BENCH_PYTHON_{name.upper()}")
        or settings.pythons.get("all")
        or os.environ.get("FASTCONV_BENCH_PYTHON")
        or sys.executable
    )


def _environment(name: str, settings: Settings, foreign: bool) -> dict[str, str]:
    env = dict(os.environ)
    if foreign:
        # The other interpreter must find its own packages, not those of this one.
        for key in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            env.pop(key, None)
    threads = str(settings.threads)
    for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTCONV_NUM_THREADS", "NPROC"):
        env[key] = threads
    env["FASTCONV_VERBOSE"] = "0"
    if settings.scratch:
        env["TMPDIR"] = settings.scratch
    env["TF_CPP_MIN_LOG_LEVEL"] = "3"
    env["PYTHONWARNINGS"] = "ignore"
    if settings.isa is not None:
        env["FASTCONV_ISA"] = settings.isa
    if settings.isa == "avx2":
        env |= _HOLD_AVX2[name]
    return env


class Worker:
    """One contender's process, and its end of the pipes."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.variants: tuple[str, ...] = WORKERS.get(name, ())
        self.missing: str | None = None
        self.error: str | None = None
        self.versions: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        python = interpreter(name, settings)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        requests_read, requests_write = os.pipe()
        answers_read, answers_write = os.pipe()
        command = [python, str(_WORKER), name, str(requests_read), str(answers_write), str(settings.threads)]
        command.append(",".join(str(c) for c in settings.cores))
        try:
            self._process = subprocess.Popen(
                command,
                env=_environment(name, settings, python != sys.executable),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(requests_read, answers_write),
                # Ctrl-C is the benchmark's business: it ends its workers in order.
                start_new_session=True,
            )
        except OSError as error:
            os.close(requests_write)
            os.close(answers_read)
            raise PeerError(f"{name}: cannot start {Path(python).name}: {error.strerror}") from error
        finally:
            os.close(requests_read)
            os.close(answers_write)
        self._requests: IO[bytes] = open(requests_write, "wb")  # noqa: SIM115
        self._answers: IO[bytes] = open(answers_read, "rb")  # noqa: SIM115
        if settings.isa == "avx2" and name not in ("fastconv", "numpy"):
            self.settings["held_to_avx2"] = bool(_HOLD_AVX2[name])

    def greet(self) -> None:
        """Wait until the library is imported, learn its versions, and stop the process."""
        try:
            header, _ = self._receive()
            if "missing" in header:
                self.missing = str(header["missing"])
            elif "error" in header:
                self.error = str(header["error"])
            else:
                header, _ = self._exchange({"command": "hello"})
                self.versions, self.settings = header["versions"], header["settings"] | self.settings
        except PeerError as error:
            self.error = str(error)
        if self.usable:
            self._signal(signal.SIGSTOP)
        else:
            self.close()

    @property
    def usable(self) -> bool:
        """Whether it can be asked anything."""
        return self.missing is None and self.error is None

    def ask(
        self, message: dict[str, Any], arrays: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Let the process run for one command. PeerError where it fails; after a hang or a crash it is gone."""
        if not self.usable:
            raise PeerError(self.error or self.missing or "gone")
        self._signal(signal.SIGCONT)
        try:
            header, results = self._exchange(message, arrays)
        except PeerError as error:
            self.error = str(error)
            self.close()
            raise
        self._signal(signal.SIGSTOP)
        if "error" in header:
            raise PeerError(f"{self.name}: {header['error']}")
        return header, results

    def _exchange(
        self, message: dict[str, Any], arrays: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        try:
            send(self._requests, message, dict(arrays or {}))
        except (BrokenPipeError, ValueError) as error:
            raise PeerError(self._epitaph()) from error
        return self._receive()

    def _receive(self) -> tuple[dict[str, Any], dict[str, Array]]:
        # A message is small or follows its first byte at once: waiting for that byte is enough.
        ready, _, _ = select.select([self._answers], [], [], _PATIENCE)
        if not ready:
            raise PeerError(f"{self.name}: no answer in {_PATIENCE:.0f} s")
        try:
            return receive(self._answers)
        except EOFError as error:
            raise PeerError(self._epitaph()) from error

    def _epitaph(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        code = self._process.returncode
        return f"{self.name}: the process ended ({code})" + (f": {lines[-1]}" if lines else "")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def close(self) -> None:
        """End the process."""
        for stream in (self._requests, self._answers, self._log):
            with contextlib.suppress(OSError):
                stream.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def start(names: Iterable[str], settings: Settings) -> dict[str, Worker]:
    """Start all of them side by side, since imports take seconds, and greet them one by one."""
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            workers[name] = Worker(name, settings)
        for worker in workers.values():
            worker.greet()
    except BaseException:
        close(workers.values())
        raise
    return workers


def close(workers: Iterable[Worker]) -> None:
    """End them all."""
    for worker in workers:
        worker.close()


def settle(seconds: float = 0.001) -> None:
    """Let a stopped process leave its core before the next one starts."""
    time.sleep(seconds)


def known(names: Sequence[str]) -> list[str]:
    """The worker names, checked; a variant's name stands for its worker."""
    owners = {variant: name for name, variants in WORKERS.items() for variant in variants}
    result: list[str] = []
    for name in names:
        owner = name if name in WORKERS else owners.get(name)
        if owner is None:
            raise ValueError(f"--peers (={name!r}) must be among {', '.join(WORKERS)}")
        if owner not in result:
            result.append(owner)
    return result
