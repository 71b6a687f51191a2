"""A session: every layer is prepared by every contender, checked, then timed in turn."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastconv
from fastconv import testing
from fastconv.bench import cases, networks, operations, peers, timing
from fastconv.bench.cases import Array, Case, Layer
from fastconv.bench.networks import Network
from fastconv.bench.operations import Operation, WrongResult
from fastconv.bench.worker import FORMS, WORKERS, form_of, not_applicable

SCHEMA = 1
# Networks that other libraries describe, run by fastconv.
INTEGRATIONS = {"fastconv_convert": "convert", "fastconv_onnx": "ONNX"}
# fastconv's own calls: the plain function and the plan, for each layout.
OURS = ("fastconv", "fastconv_plan", "fastconv_nhwc", "fastconv_nhwc_plan", *INTEGRATIONS)
# Pixels are alike over wide areas, so that sums grow before they cancel: they meet more rounding than seeded data does.
_CONSTANT, _PICTURE_CONSTANT = 4.0, 16.0
# A peer may use Winograd's algorithm, whose error is a few times larger. A lower precision's is a hundred times larger.
_PEER_RMS = 8.0
_PEER_MAX = 64.0

# Of a case, what a row does without.
_FOR_WORKERS = ("layouts", "rank", "y_shape", "forward", "nodes", "result", "gradients", "values")

Row = dict[str, Any]
Document = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What a session measures."""

    threads: tuple[int, ...] = (1,)
    layouts: tuple[str, ...] = ("NCHW", "NHWC")
    isa: str | None = None
    workers: tuple[str, ...] = tuple(WORKERS)
    pythons: Mapping[str, str] = field(default_factory=dict)
    effort: timing.Effort = field(default_factory=timing.Effort)
    command: str = ""


class Expected:
    """The oracle's results for a layer, and the tests that a contender must pass before it is timed."""

    def __init__(self, layer: Layer, arrays: Mapping[str, Array]) -> None:
        x, w = arrays["x"], arrays["w"]
        options = layer.options() | {"constant": 1.0}
        self.constant = _PICTURE_CONSTANT if layer.photograph else _CONSTANT
        if layer.direction == "backward":
            dy = arrays["dy"]
            shapes: tuple[tuple[Any, ...], ...] = ((), ()) if layer.op == "linear" else ((x.shape,), (w.shape,))
            self.results = [
                testing.reference_with_bound(f"{layer.op}_backward_input", dy, w, *shapes[0], **options),
                testing.reference_with_bound(f"{layer.op}_backward_weight", dy, x, *shapes[1], **options),
            ]
        else:
            self.results = [testing.reference_with_bound(layer.op, x, w, **options)]
        self.dtype = np.dtype(layer.dtype)

    def check(self, results: Sequence[Array], ours: bool) -> float:
        """The largest error in units of eps * conv(|x|, |w|); WrongResult where it is too large."""
        if len(results) != len(self.results):
            raise WrongResult(f"{len(results)} results instead of {len(self.results)}")
        worst = 0.0
        for y, (value, bound) in zip(results, self.results, strict=True):
            if y.shape != value.shape:
                raise WrongResult(f"shape {y.shape} instead of {value.shape}")
            if y.dtype != self.dtype:
                raise WrongResult(f"dtype {y.dtype} instead of {self.dtype}")
            error = np.abs(y - value)
            # A NaN is an error without measure.
            relative = float(np.max(error / bound, initial=0.0)) if np.isfinite(error).all() else float("inf")
            worst = max(worst, relative)
            if ours:
                limit = self.constant * testing.oracle_factor(self.dtype) * bound
                wrong = testing.too_far(error / limit, testing.stray_factor(y.size, self.constant))
            else:
                # Errors of transforms spread over a tile: the largest bound counts for every element.
                rms = float(np.sqrt(np.mean(np.square(error)) / np.mean(np.square(bound))))
                wrong = not (rms <= _PEER_RMS and float(error.max(initial=0.0)) <= _PEER_MAX * float(bound.max()))
            if wrong:
                raise WrongResult(f"the error is {relative:.3g} times eps * conv(|x|, |w|)")
        return worst


def oracle(case: Case, arrays: Mapping[str, Array]) -> Expected | operations.Expected:
    """What the results of a case are checked against."""
    if isinstance(case, Network):
        return networks.Expected(case, arrays)
    return operations.Expected(case, arrays) if isinstance(case, Operation) else Expected(case, arrays)


class Session:
    """The workers of one thread count, driven in turn."""

    def __init__(self, options: Options, threads: int) -> None:
        self.options, self.threads = options, threads
        cores = tuple(timing.choose_cores(threads))
        self.scratch = tempfile.TemporaryDirectory(prefix="fastconv-bench-")
        self.settings = peers.Settings(threads, cores, options.isa, options.pythons, self.scratch.name)
        try:
            self.workers = peers.start(("fastconv", *options.workers), self.settings)
        except BaseException:
            self.scratch.cleanup()
            raise
        ours = self.workers["fastconv"]
        if not ours.usable:
            self.close()
            raise peers.PeerError(f"fastconv itself cannot run: {ours.error or ours.missing}")
        self.isa = str(ours.settings["isa"])
        self.peaks: dict[str, float] = {}
        self.empty = self._extra("empty")
        self.copy = float(self._extra("copy", bytes=2 * timing.sweep_bytes(), seconds=0.3))

    def _extra(self, name: str, **arguments: Any) -> Any:
        return self.workers["fastconv"].ask({"command": "extra", "name": name, "arguments": arguments})[0]["value"]

    def peak(self, dtype: str, seconds: float) -> float:
        """Measure the FMA peak once more; the session keeps the highest."""
        now = float(self._extra("peak", dtype=dtype, seconds=seconds))
        self.peaks[dtype] = max(self.peaks.get(dtype, 0.0), now)
        return now

    def measure(self, layer: Case) -> Row:
        """One row: prepare, check, time in turn."""
        arrays, source = cases.data(layer)
        expected = oracle(layer, arrays)
        case = layer.as_dict(self.options.layouts)
        contenders: dict[str, dict[str, Any]] = {}
        ready: list[tuple[peers.Worker, str]] = []
        for name in ("fastconv", *WORKERS):
            worker = self.workers.get(name)
            if worker is None:
                for variant in WORKERS[name]:
                    if not_applicable(variant, case) is None:
                        contenders[variant] = {"status": "not run", "form": form_of(variant, case)}
                continue
            ready += self._prepare(worker, case, arrays, expected, contenders)
        samples = self._time(ready, contenders)
        for name, (warm, cold) in samples.items():
            if warm:
                contenders[name]["warm"] = timing.Sampled.of(warm).as_dict()
            if cold:
                contenders[name]["cold"] = timing.Sampled.of(cold).as_dict()
        row: Row = {
            "id": layer.id,
            "net": layer.net,
            "layer": layer.name,
            "shape": layer.describe(),
            "group": None if isinstance(layer, Layer) else layer.family(False),
            **{k: v for k, v in case.items() if k not in _FOR_WORKERS},
            "threads": self.threads,
            "isa": self.isa,
            "data": source,
            "flops": layer.flops,
            "bytes": layer.bytes,
            "tile_only": layer.tile_only,
            "empty_call": self.empty,
            "peak_now": self.peak(layer.dtype, 0.02),
            "copy": float(self._extra("copy", bytes=layer.bytes, seconds=0.03)),
            "contenders": contenders,
        }
        for worker in {id(w): w for w, _ in ready}.values():
            if worker.usable:
                worker.ask({"command": "drop"})
        return row

    def _prepare(
        self,
        worker: peers.Worker,
        case: dict[str, Any],
        arrays: Mapping[str, Array],
        expected: Expected | operations.Expected,
        contenders: dict[str, dict[str, Any]],
    ) -> list[tuple[peers.Worker, str]]:
        ours = worker.name == "fastconv"
        wanted = None if ours else [v for v in worker.variants if not_applicable(v, case) is None]
        if wanted == []:
            return []
        for variant in wanted or ():
            if worker.missing is not None:
                contenders[variant] = {"status": "missing", "reason": worker.missing, "form": form_of(variant, case)}
            elif worker.error is not None:
                contenders[variant] = {"status": "failed", "reason": worker.error, "form": form_of(variant, case)}
        if not worker.usable:
            return []
        try:
            header, results = worker.ask({"command": "prepare", "case": case, "variants": wanted}, arrays)
        except peers.PeerError as error:
            for variant in wanted or ("fastconv",):
                form = "function" if ours else form_of(variant, case)
                contenders[variant] = {"status": "failed", "reason": str(error), "form": form}
            return []
        ready = []
        for variant, state in header["variants"].items():
            prepared = variant.endswith("_plan") or variant in INTEGRATIONS
            form = ("plan" if prepared else "function") if ours else form_of(variant, case)
            contenders[variant] = state | {"form": form}
            if state["status"] != "ok":
                continue
            mine = [results[key] for key in sorted(k for k in results if k.rsplit("/", 1)[0] == variant)]
            try:
                contenders[variant]["error"] = expected.check(mine, ours)
            except WrongResult as error:
                contenders[variant] |= {"status": "wrong", "reason": str(error)}
            else:
                ready.append((worker, variant))
        return ready

    def _time(
        self, ready: list[tuple[peers.Worker, str]], contenders: dict[str, dict[str, Any]]
    ) -> dict[str, tuple[list[float], list[float]]]:
        effort = self.options.effort
        samples: dict[str, tuple[list[float], list[float]]] = {variant: ([], []) for _, variant in ready}
        limits = {"seconds": effort.seconds, "least": effort.least, "most": effort.most}
        sweep = timing.sweep_bytes()
        for turn in range(effort.rounds):
            # Another neighbour each time: what one contender leaves behind must not always meet the same one.
            for worker, variant in ready[turn % len(ready) :] + ready[: turn % len(ready)] if ready else ():
                warm, cold = samples[variant]
                slow = bool(warm) and warm[0] > effort.slow_seconds
                if contenders[variant]["status"] != "ok" or (slow and len(warm) >= 2):
                    continue
                try:
                    answer = worker.ask({"command": "time", "variant": variant, **limits})[0]
                    warm += answer["samples"]
                    state = contenders[variant]
                    state["disturbed"] = state.get("disturbed", 0) + bool(answer["disturbed"])
                    if effort.cold and not slow:
                        ask = {"command": "cold", "variant": variant, "bytes": sweep, "count": effort.cold}
                        cold += worker.ask(ask)[0]["samples"]
                except peers.PeerError as error:
                    contenders[variant] |= {"status": "failed", "reason": str(error)}
        return samples

    def about(self) -> dict[str, Any]:
        """The versions and settings of the workers."""
        return {
            name: {
                "status": "ok" if w.usable else "missing" if w.missing is not None else "failed",
                "reason": w.missing or w.error,
                "versions": w.versions,
                "settings": w.settings,
            }
            for name, w in self.workers.items()
        }

    def ceiling(self) -> dict[str, Any]:
        """What this machine can do, as this session has seen it."""
        return {
            "threads": self.threads,
            "isa": self.isa,
            "cores": list(self.settings.cores),
            "fma_loop": dict(self.peaks),
            "copy": self.copy,
            "empty_call": self.empty,
        }

    def close(self) -> None:
        """End the workers."""
        peers.close(self.workers.values())
        self.scratch.cleanup()


def run(layers: Sequence[Case], options: Options, tell: Callable[[str, int, int, Row | None], None]) -> Document:
    """Measure the layers for every thread count. After Ctrl-C the document holds the rows so far, and says so.

    `tell(what, done, total, row)` is called before each measurement and, with its row, after it.
    """
    document: Document = {
        "schema": SCHEMA,
        "fastconv": fastconv.__version__,
        "numpy": np.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": options.command,
        "machine": timing.machine(),
        "settings": {
            "threads": list(options.threads),
            "layouts": list(options.layouts),
            "isa": options.isa,
            "rounds": options.effort.rounds,
            "seconds_a_round": options.effort.seconds,
            "cold_sweep_bytes": timing.sweep_bytes() if options.effort.cold else 0,
        },
        "peers": {},
        "ceilings": [],
        "rows": [],
        "interrupted": False,
    }
    total, done = len(layers) * len(options.threads), 0
    try:
        for threads in options.threads:
            tell(f"starting the contenders, {threads} thread{'s' if threads > 1 else ''}", done, total, None)
            session = Session(options, threads)
            try:
                for dtype in sorted({layer.dtype for layer in layers}):
                    session.peak(dtype, 0.3)
                for layer in layers:
                    tell(layer.id, done, total, None)
                    row = session.measure(layer)
                    document["rows"].append(row)
                    done += 1
                    tell(layer.id, done, total, row)
            finally:
                document["peers"] |= session.about()
                document["ceilings"].append(session.ceiling())
                session.close()
    except KeyboardInterrupt:
        document["interrupted"] = True
    derive(document)
    return document


# ------------------------------------------------------------------------------------------------- what follows from it


def derive(document: Document) -> None:
    """Add to ceilings and rows what follows from the measurements: peaks, shares, bounds, ratios."""
    for ceiling in document["ceilings"]:
        peaks = dict(ceiling["fma_loop"])
        for row in document["rows"]:
            # A tile that beats the loop is the better measurement of the peak; padded taps are counted but not done,
            # nor are all products where a plan says that it goes by another algorithm.
            if row["threads"] == ceiling["threads"] and row["tile_only"] and not _saves_flops(row):
                for name in OURS:
                    warm = row["contenders"].get(name, {}).get("warm")
                    if warm:
                        peaks[row["dtype"]] = max(peaks[row["dtype"]], row["flops"] / warm["median"])
        ceiling["peak"] = peaks
        for row in document["rows"]:
            if row["threads"] == ceiling["threads"]:
                _derive_row(row, peaks[row["dtype"]])


def _saves_flops(row: Row) -> bool:
    decisions = [row["contenders"].get(name, {}).get("decision", {}) for name in OURS]
    return any(str(decision.get("algorithm", "direct")).startswith(("winograd", "fft")) for decision in decisions)


def _derive_row(row: Row, peak: float) -> None:
    compute, memory = row["flops"] / peak, row["bytes"] / row["copy"]
    row["peak"] = peak
    row["memory_bound"] = memory > compute
    row["family"] = row.get("group") or _layer_of(row).family(row["memory_bound"])
    row["results"] = {}
    for layout, name in (("NCHW", "fastconv"), ("NHWC", "fastconv_nhwc")):
        function = _median(row, name)
        if function is None:
            continue
        plan = _median(row, f"{name}_plan")
        best = plan if plan is not None else function
        speedups: dict[str, float] = {}
        cold: dict[str, float] = {}
        absent: list[str] = []
        for peer, form in FORMS.items():
            state = row["contenders"].get(peer)
            if state is None:
                continue
            mine = f"{name}_plan" if state.get("form", form) == "plan" else name
            for ratios, kind in ((speedups, "warm"), (cold, "cold")):
                theirs, ours = _median(row, peer, kind), _median(row, mine, kind)
                if theirs is not None and ours is not None:
                    ratios[peer] = theirs / ours
            if peer not in speedups and peer != "numpy" and state["status"] != "unsupported":
                absent.append(peer)
        row["results"][layout] = {
            "time": best,
            "function_time": function,
            "plan_time": plan,
            "cold_time": _median(row, f"{name}_plan" if plan is not None else name, "cold"),
            "through": {through: t for through in INTEGRATIONS if (t := _median(row, through)) is not None},
            "gflops": row["flops"] / best / 1e9,
            "share_of_peak": compute / best,
            "share_of_copy": memory / best,
            "share_of_roofline": max(compute, memory) / best,
            "speedups": speedups,
            "best_peer": _best(speedups, absent),
            "cold_best_peer": _best(cold, absent),
        }


def _layer_of(row: Row) -> Layer:
    names = ("size", "kernel", "stride", "padding", "dilation", "output_padding")
    values: Row = {name: tuple(row[name]) for name in names}
    values |= {name: row[name] for name in ("op", "net", "n", "c", "k", "groups", "direction", "dtype")}
    return Layer(name=row["layer"], **values)


def _median(row: Row, name: str, kind: str = "warm") -> float | None:
    state = row["contenders"].get(name, {})
    if state.get("status") != "ok" or kind not in state:
        return None
    return float(state[kind]["median"])


def _best(ratios: Mapping[str, float], absent: Iterable[str]) -> dict[str, Any] | None:
    """The peer that leaves the least advantage; incomplete where one that has the operation was not measured."""
    rivals = {name: ratio for name, ratio in ratios.items() if name != "numpy"}
    if not rivals:
        return None
    name = min(rivals, key=lambda key: rivals[key])
    return {"name": name, "ratio": rivals[name], "complete": not list(absent), "absent": list(absent)}


def failures(document: Document) -> list[tuple[str, str, str]]:
    """(row, contender, reason) of every contender that gave a wrong result or failed."""
    return [
        (row["id"], name, f"{state['status']}: {state.get('reason', '')}")
        for row in document["rows"]
        for name, state in row["contenders"].items()
        if state["status"] in ("wrong", "failed")
    ]
