"""Where and how long to measure: cores to pin to, caches to leave, and what a list of samples says."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CPUS = Path("/sys/devices/system/cpu")
# More than this is not swept between cold calls: it would take longer than most of them.
_MAX_SWEEP = 256 << 20


@dataclass(frozen=True)
class Effort:
    """How much time a measurement takes."""

    rounds: int = 5
    """Contenders are driven in turn this many times."""
    seconds: float = 0.03
    """Of each contender in each round."""
    least: int = 3
    """Samples in a round, however long they take."""
    most: int = 400
    cold: int = 2
    """Calls with cold caches in each round."""
    slow_seconds: float = 0.5
    """Where one call takes longer than this, two rounds of one sample must do."""


@dataclass(frozen=True)
class Sampled:
    """Samples of one contender, in seconds a call."""

    median: float
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""
    best: float
    worst: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Sampled:
        """The order statistics of some samples."""
        ordered = sorted(samples)
        low, _, high = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else (ordered[0],) * 3
        return cls(statistics.median(ordered), low, high, ordered[0], ordered[-1], len(ordered))

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        return asdict(self)


def allowed_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def choose_cores(threads: int) -> list[int]:
    """Cores to pin `threads` threads to: one a physical core while they last, the highest first.

    The lowest cores answer most interrupts.
    """
    cores = allowed_cores()
    if threads > len(cores):
        raise ValueError(f"--threads (={threads}) must be at most {len(cores)}, the cores of this process")
    firsts: list[int] = []
    rest: list[int] = []
    taken: set[int] = set()
    for core in reversed(cores):
        (rest if core in taken else firsts).append(core)
        taken |= _siblings(core)
    return sorted((firsts + rest)[:threads])


def _siblings(core: int) -> set[int]:
    text = _read(_CPUS / f"cpu{core}" / "topology" / "thread_siblings_list")
    siblings = {core}
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        siblings |= set(range(int(first), int(last or first) + 1))
    return siblings


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def cache_bytes(core: int = 0) -> dict[str, int]:
    """The data caches that a core sees, such as {"L1": 32768, "L2": 524288, "L3": 33554432}."""
    sizes: dict[str, int] = {}
    for index in sorted((_CPUS / f"cpu{core}" / "cache").glob("index*")):
        if _read(index / "type") in ("Data", "Unified"):
            found = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size"))
            if found:
                sizes["L" + _read(index / "level")] = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]
    return sizes


def sweep_bytes() -> int:
    """How much memory to walk through so that the caches hold nothing of the layer."""
    return min(max(2 * max(cache_bytes().values(), default=0), 32 << 20), _MAX_SWEEP)


def machine() -> dict[str, Any]:
    """What the figures depend on: CPU, caches, cores, kernel, clock governor."""
    text = _read(Path("/proc/cpuinfo"))

    def field(name: str) -> str:
        found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
        return found[1].strip() if found else ""

    meminfo = re.search(r"MemTotal:\s*(\d+) kB", _read(Path("/proc/meminfo")))
    return {
        "cpu": field("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": "/".join(filter(None, (field("cpu family"), field("model"), field("stepping")))),
        "architecture": platform.machine(),
        "cores": len(allowed_cores()),
        "virtual_machine": "hypervisor" in field("flags").split(),
        "caches": cache_bytes(),
        "memory_bytes": int(meminfo[1]) * 1024 if meminfo else None,
        "kernel": platform.release(),
        "governor": _read(_CPUS / "cpu0" / "cpufreq" / "scaling_governor") or None,
        "python": platform.python_version(),
        "load_average": [round(v, 2) for v in os.getloadavg()],
    }
