"""`convert`: PyTorch modules that compute with fastconv.

A converted module stays what it is: its class, its parameters and buffers, its children, hooks and state dict are
untouched; only `forward` is replaced, on the object. In eval mode and without gradients it runs a fused network of the
package; in training its own forward, single layers by the operators of `ops` where those are faster (`_training`).

The network is made at the first call with tensors of a shape: the forward is followed with tensors that have no numbers
(`_lower`), batch norms, activations and sums become part of the layers before them, weights are packed. What cannot be
followed runs as it is, and its children are tried in turn: so the largest parts that can be become one network each.

A network is made anew when a parameter or buffer has changed (`load_state_dict`, an optimiser's step, `.to`), or a
module was replaced, got a hook, or changed its mode. Not seen are changes that PyTorch does not count, through `.data`
or through NumPy, and those of a module's other attributes. `refresh` forgets all networks.
"""

from __future__ import annotations

import copy
import functools
import importlib
import sys
import threading
import weakref
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

from ..._graph import Network, Unsupported
from . import _lower, _training

torch: Any = importlib.import_module("torch")
_nn: Any = torch.nn
_hooks: Any = importlib.import_module("torch.nn.modules.module")

__all__ = ["Entry", "Report", "convert", "refresh", "report"]

_LAYERS = tuple(
    getattr(_nn, f"{name}{rank}d")
    for name in (
        *("Conv", "ConvTranspose", "BatchNorm", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"),
        *("InstanceNorm", "LPPool"),
    )
    for rank in (1, 2, 3)
    if hasattr(_nn, f"{name}{rank}d")
)
_WRAPPERS = ("torch.nn.parallel.", "torch.distributed.")
_SHAPES = 4  # that a module keeps networks for
_CHANGES = 8  # that a module may make, of fewer calls each, before it is left alone for a while
_tracing = threading.RLock()  # a trace looks at, and restores, what belongs to all threads
_version = attrgetter("_version")
_inferred = torch.Tensor.is_inference
_mode = itemgetter("training")
_forward = itemgetter("forward")
_recording = attrgetter("requires_grad")
_pointer = torch.Tensor.data_ptr


# transformers collects what inner modules give by hooks that do nothing where that is not asked for.
_COLLECTOR = "transformers.utils.output_capturing"


def _collecting() -> bool:
    collector = getattr(sys.modules.get(_COLLECTOR), "_active_collector", None)
    return collector is not None and bool(collector.get())


_OF_ONE_MODE = frozenset(
    f"torch.nn.modules.{name}"
    for name in ("container", "conv", "flatten", "linear", "normalization", "padding", "pooling", "upsampling")
)
_ACTIVATIONS = ("ReLU", "ReLU6", "SiLU", "GELU", "Hardswish", "Hardsigmoid", "Sigmoid", "Tanh", "LeakyReLU")


def _of_one_mode(module: Any) -> bool:
    """Whether a module does the same in training."""
    kind = type(module)
    return kind.__module__ in _OF_ONE_MODE or (
        kind.__module__ == "torch.nn.modules.activation" and kind.__name__ in _ACTIVATIONS
    )


_watches: weakref.WeakSet[_Watch] = weakref.WeakSet()


@functools.cache
def _follow_optimizers() -> None:
    """Hear of all steps: those of fused optimisers change parameters without a count."""

    def stepped(optimizer: Any, *_: Any) -> None:
        updated = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        for watch in list(_watches):
            watch.stepped |= not updated.isdisjoint(watch.own)

    importlib.import_module("torch.optim.optimizer").register_optimizer_step_post_hook(stepped)


class _Watch:
    """Whether a module still is what it was.

    The check runs at each call, when what it looks at has left the caches: it looks at no more than it must.

    Attributes:
        stepped: whether an optimiser has updated a parameter since.
        own: the ids of the parameters and buffers.
    """

    def __init__(self, module: Any) -> None:
        self.modules = list(module.modules())
        named = [d for m in self.modules for d in (m._parameters, m._buffers, m._modules)]
        self._dicts = [d for d in named if d]
        self._entries = self._found()
        own = [*module.parameters(), *module.buffers()]
        if any(map(_inferred, own)):
            raise Unsupported("weights made in inference mode, whose changes cannot be seen")
        self._tensors = list({id(t): t for t in own}.values())
        self.own = frozenset(map(id, self._tensors))
        self.stepped = False
        _follow_optimizers()
        _watches.add(self)
        self._versions = list(map(_version, self._tensors))
        self._pointers = list(map(_pointer, self._tensors))
        self._states = [m.__dict__ for m in self.modules if not _of_one_mode(m)]
        self._modes = self._found_modes()
        # Those of the module itself run around its forward.
        inner = self.modules[1:]
        self._tables = [d for m in inner for d in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooks = self._found_hooks()
        self._inner, self._kinds = inner, list(map(type, inner))
        # Of those without a forward of their own, what gets one gets longer.
        self._converted = [m.__dict__ for m in inner if "forward" in m.__dict__]
        self._forwards = list(map(_forward, self._converted))
        self._others = [m.__dict__ for m in inner if "forward" not in m.__dict__]
        self._lengths = list(map(len, self._others))

    def _found(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._dicts)))

    def _found_modes(self) -> list[bool]:
        return list(map(_mode, self._states))

    def _found_hooks(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, filter(None, self._tables))))

    def _same_forwards(self) -> bool:
        try:
            return list(map(_forward, self._converted)) == self._forwards
        except KeyError:
            return False

    def hooked(self) -> bool:
        """Whether a module below has hooks other than those that can be passed over."""
        return any(getattr(h, "__module__", None) != _COLLECTOR for h in self._hooks)

    def collected(self) -> bool:
        """Whether what a module below gives is wanted now beside the result."""
        return bool(self._hooks) and _collecting()

    def same(self) -> bool:
        """Whether nothing has changed since."""
        entries = self._found()
        return (
            not self.stepped
            and len(entries) == len(self._entries)
            and all(map(is_, entries, self._entries))
            and list(map(_version, self._tensors)) == self._versions
            and list(map(_pointer, self._tensors)) == self._pointers
            and self._found_hooks() == self._hooks
            and self._found_modes() == self._modes
            and list(map(type, self._inner)) == self._kinds
            and list(map(len, self._others)) == self._lengths
            and self._same_forwards()
        )

    def needs_gradient(self) -> bool:
        """Whether a parameter is to get a gradient."""
        return any(map(_recording, self._tensors))

    def others(self, constants: list[Any]) -> list[Any]:
        """Those that are no parameters or buffers of the module."""
        return [t for t in constants if id(t) not in self.own]


class _Run:
    """A call's network."""

    def __init__(self, lowered: _lower.Lowered, tensors: list[Any], others: list[Any]) -> None:
        # Tensors that are no parameters. What a forward computes of weights in inference mode has no versions, and
        # goes with the weights.
        self._others = [t for t in others if not t.is_inference()]
        self._versions = list(map(_version, self._others))
        arrays = _arrays(tensors)
        # One layer does not pay for another memory order, there and back.
        layers = sum(node.op == "conv" for node in lowered.graph.nodes)
        self.network = Network(lowered.graph, channels_last=layers > 1 or not all(a.flags.c_contiguous for a in arrays))
        self._prepared = self.network.prepare(*arrays)
        self._contiguous, self._results = lowered.contiguous, lowered.results

    def same(self) -> bool:
        """Whether other tensors than parameters are what they were."""
        return not self._others or list(map(_version, self._others)) == self._versions

    def needs_gradient(self) -> bool:
        """Whether one of those is to get a gradient."""
        return any(map(_recording, self._others))

    def __call__(self, tensors: list[Any]) -> Any:
        return self._results([torch.from_numpy(y) for y in self._prepared(_arrays(tensors), self._contiguous)])


def _arrays(tensors: list[Any]) -> list[Any]:
    return [t.detach().numpy() if t.requires_grad else t.numpy() for t in tensors]


def _ordinary() -> bool:
    """Whether PyTorch computes now, and does not compile, trace, transform or record."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or _hooks._global_forward_hooks
        or _hooks._global_forward_pre_hooks
    )


def _unfit(tensors: list[Any]) -> str | None:
    """Why tensors cannot be handed over."""
    for t in tensors:
        if type(t) not in (torch.Tensor, _nn.Parameter):
            return f"an input of type {type(t).__name__}"
        if t.device.type != "cpu" or t.layout is not torch.strided:
            return f"an input on {t.device}" if t.device.type != "cpu" else f"an input of {t.layout}"
        if t.dtype not in _lower._DTYPES:
            return f"an input of {t.dtype}"
        if t.is_neg() or t.numel() == 0:
            return "an input that is empty or negated"
    return None


class _Forward:
    """The forward of a converted module.

    Attributes:
        original: the module's own.
        runs: by what a call is given: its network, or why there is none.
        passed: why the last call without a network had none.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self._become()

    def _become(self) -> None:
        """Begin with the class that the module has now."""
        self._kind = type(self.module)
        self._changes = self._rest = 0
        self._layer = _training.layer(self.module)
        self.original = functools.partial(self._kind.forward, self.module)
        self.forget()
        functools.update_wrapper(self, self.original.func)
        del self.__dict__["__wrapped__"]

    def forget(self) -> None:
        """Drop all networks, and what was found out."""
        self.runs: dict[Any, _Run | str] = {}
        self._watch: _Watch | None = None
        self.passed = ""
        self._met: dict[Any, None] = {}
        self._looks = self._uses = 0
        self._trained = False  # statistics may have changed, which are not all counted

    def rested(self) -> None:
        """Begin anew with a module that kept changing."""
        self._changes = self._rest = 0

    def networks(self) -> list[_Run]:
        """Those that still hold."""
        watch = self._watch
        holds = watch is not None and watch.same()
        return [run for run in list(self.runs.values()) if isinstance(run, _Run)] if holds else []

    @property
    def __signature__(self) -> Any:
        return importlib.import_module("inspect").signature(functools.partial(self.original.func, self.module))

    @property
    def __code__(self) -> Any:
        return self.original.func.__code__

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"])  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if type(self.module) is not self._kind:
            self._become()
        if self.module.training:
            self._trained = True
            return self._recorded(args, kwargs)
        if self._rest:
            self._rest -= 1
            return self._recorded(args, kwargs)
        if not _ordinary():
            return self.original(*args, **kwargs)
        found: list[Any] = []
        if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            shape = None
            found.append(args[0])
        else:
            try:
                shape = _lower._flat((args, kwargs), found)
            except Unsupported as reason:
                self.passed = str(reason)
                return self.original(*args, **kwargs)
        if not found or type(found[0]) is _lower.Traced:
            return self.original(*args, **kwargs)
        key = shape, tuple([(t.shape, t.stride(), t.dtype, type(t)) for t in found])
        run = self.runs.get(key)
        if isinstance(run, str):
            # Looked at again for changes, ever more seldom.
            self._looks += 1
            if self._looks & (self._looks - 1):
                return self.original(*args, **kwargs)
        if not isinstance(run, _Run) or not self._usable(run, found):
            run = self._find(key, args, kwargs, found)
        if run is None:
            return self._recorded(args, kwargs)
        self._uses += 1
        return run(found)

    def _recorded(self, args: Any, kwargs: Any) -> Any:
        """What the module's own forward gives; while gradients are recorded by the operators, where they are faster."""
        if self._layer is not None and len(args) == 1 and not kwargs and torch.is_grad_enabled() and _ordinary():
            y = self._layer(args[0])
            if y is not None:
                return y
        return self.original(*args, **kwargs)

    def _usable(self, run: _Run, tensors: list[Any]) -> bool:
        """Whether a network still holds, and no gradient is asked for."""
        watch = self._watch
        if watch is None or self._trained or not (watch.same() and run.same()) or watch.collected():
            return False
        if not torch.is_grad_enabled():
            return True
        return not (watch.needs_gradient() or run.needs_gradient() or any(map(_recording, tensors)))

    def _find(self, key: Any, args: Any, kwargs: Any, tensors: list[Any]) -> _Run | None:
        """The network of a call, made where there is none yet."""
        reason = _unfit(tensors)
        if reason is None and torch.is_grad_enabled():
            wanted = chain(tensors, self.module.parameters(), self.module.buffers())
            if any(t.requires_grad for t in wanted):
                reason = "gradients are asked for"
        if reason is not None:
            self.passed = reason
            return None
        with _tracing:
            if self._watch is not None and (self._trained or not self._watch.same()):
                self._changes = 0 if self._uses >= _CHANGES else self._changes + 1
                self.forget()
                if self._changes > _CHANGES:
                    # A module that keeps changing is left alone, ever longer.
                    self._rest = min(2 ** (self._changes - _CHANGES), 256)
                    self.passed = "it keeps changing"
                    return None
            if self._watch is not None and self._watch.collected():
                return None
            run = self.runs.get(key)
            if isinstance(run, str) and self._watch is not None:
                return None
            if isinstance(run, _Run):
                if run.same():
                    return None if torch.is_grad_enabled() and run.needs_gradient() else run
                del self.runs[key]
            networks = [k for k, v in self.runs.items() if isinstance(v, _Run)]
            if len(networks) >= _SHAPES and key not in self._met:
                # Of shapes that keep changing, only what comes again is worth a network.
                self._met[key] = None
                while len(self._met) > 4 * _SHAPES:
                    del self._met[next(iter(self._met))]
                return None
            traced: list[Any] = []
            try:
                made: _Run | str = self._make(args, kwargs, tensors, traced)
            except Exception as problem:
                made = str(problem).partition("\n")[0] or type(problem).__name__
            if _lower.release(traced) and isinstance(made, _Run):
                made = "a forward that keeps what it computes"
            if isinstance(made, _Run) and len(networks) >= _SHAPES:
                del self.runs[networks[0]]
            elif len(self.runs) >= 16 * _SHAPES:
                self.runs.clear()
            self.runs[key] = made
            if isinstance(made, _Run):
                return made
            self.passed = made
            return None

    def _make(self, args: Any, kwargs: Any, tensors: list[Any], traced: list[Any]) -> _Run:
        # Watched before it is looked at: a change meanwhile is seen at the next call.
        watch = _Watch(self.module)
        self._watch = self._watch or watch
        if watch.hooked():
            raise Unsupported("a module in it has hooks")
        for m in watch.modules:
            own = m.__dict__.get("forward")
            if own is not None and not isinstance(own, _Forward):
                raise Unsupported(f"the forward of a {type(m).__name__} in it is replaced")
            if _parametrized(m):
                raise Unsupported("a module in it has a parametrisation")
        state = _State(watch.modules)
        try:
            lowered = _lower.trace(self.original, args, kwargs, traced)
            if state.settles():
                # What it notes at its first call, it finds at the next.
                between = _State(watch.modules)
                lowered = _lower.trace(self.original, args, kwargs, traced)
                if between.changed():
                    raise Unsupported(_CHANGING)
            elif state.changed():
                raise Unsupported(_CHANGING)
            if state.drawn():
                raise Unsupported("a forward that draws random numbers")
        except BaseException:
            state.restore()
            raise
        if not any(node.op in _WORTH for node in lowered.graph.nodes):
            raise Unsupported("nothing in it is faster here")
        if lowered.nanoseconds < _LEAST:
            raise Unsupported("it is too small for what a call of a network costs")
        others = watch.others(lowered.constants)
        if torch.is_grad_enabled() and any(map(_recording, others)):
            raise Unsupported("gradients are asked for")
        run = _Run(lowered, tensors, others)
        if not watch.same():
            raise Unsupported("it changed meanwhile")
        return run


_CHANGING = "a forward that changes its module"


class _State:
    """What a trace must leave as it was."""

    def __init__(self, modules: list[Any]) -> None:
        tables = [m.__dict__ for m in modules]
        tables += [d for t in tables for d in t.values() if isinstance(d, dict)]
        self._tables = [(d, dict(d)) for d in tables]
        self._lists = [(v, list(v)) for t in tables for v in t.values() if isinstance(v, list)]
        buffers = {id(b): b for m in modules for b in m._buffers.values() if b is not None}
        self._buffers = [(b, b._version, b.detach().clone()) for b in buffers.values() if not b.is_inference()]
        self._seed = torch.get_rng_state()

    def _different(self) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
        return [(d, kept) for d, kept in self._tables if not _alike(d, kept)]

    def changed(self) -> bool:
        """Whether an attribute, parameter, child or hook has."""
        return bool(self._different()) or self._altered()

    def _altered(self) -> bool:
        """Whether the content of a list or buffer has changed."""
        return any(b._version != version for b, version, _ in self._buffers) or any(
            len(v) != len(kept) or not all(map(is_, v, kept)) for v, kept in self._lists
        )

    def settles(self) -> bool:
        """Whether all that has changed are plain attributes, such as a forward may set once for its kind of input."""
        found = self._different()
        return (
            bool(found)
            and not self._altered()
            and all(
                "_parameters" in d and all(_plain(v) for k, v in d.items() if v is not kept.get(k)) for d, kept in found
            )
        )

    def drawn(self) -> bool:
        """Whether random numbers were."""
        return not torch.equal(self._seed, torch.get_rng_state())

    def restore(self) -> None:
        """All as it was."""
        for d, kept in self._different():
            d.clear()
            d.update(kept)
        for v, content in self._lists:
            v[:] = content
        for b, version, before in self._buffers:
            if b._version != version:
                b.detach().copy_(before)
        if self.drawn():
            torch.set_rng_state(self._seed)


def _plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


# Nodes that make a network worth its call, if PyTorch takes about so long for it.
_WORTH = ("conv", "pool", "affine")
_LEAST = 40_000


def _alike(d: dict[Any, Any], kept: dict[Any, Any]) -> bool:
    return d.keys() == kept.keys() and all(
        v is w or (_plain(v) and _plain(w) and v == w) for v, w in zip(d.values(), kept.values(), strict=True)
    )


def _parametrized(module: Any) -> bool:
    return "parametrizations" in module._modules


@dataclass(frozen=True)
class Entry:
    """What became of a module.

    Attributes:
        name: as `named_modules` says; "" is the model itself.
        kind: the name of its class.
        state: "network" (it runs as one network of fastconv), "part" (of the network of a module that it is in),
            "left" (it ran as it was, though modules in it may not) or "waiting" (for a call in eval mode).
        reason: why it was left, or what the network is.
    """

    name: str
    kind: str
    state: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What became of the modules of a converted model, for the calls so far: see `report`."""

    entries: tuple[Entry, ...]

    @property
    def networks(self) -> tuple[Entry, ...]:
        """The modules that run as one network each."""
        return tuple(e for e in self.entries if e.state == "network")

    @property
    def left(self) -> tuple[Entry, ...]:
        """The modules that run as they were, though they hold layers that fastconv has."""
        return tuple(e for e in self.entries if e.state == "left")

    def __str__(self) -> str:
        shown = [e for e in self.entries if e.state != "part"]
        parts = len(self.entries) - len(shown)
        lines = [f"{e.state:<8}{e.name or '(the model)'} ({e.kind})" + f": {e.reason}" * bool(e.reason) for e in shown]
        return "\n".join([*lines, f"{parts} modules are parts of these networks"] if parts else lines)


def _plain_forward(module: Any) -> str | None:
    """Why the forward of a module is not to be replaced; an empty reason if it has none of its own."""
    if type(module).forward is _nn.Module.forward:
        return ""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript"
    if type(module).__module__.startswith(_WRAPPERS):
        return "it stands for the module in it"
    own = module.__dict__.get("forward")
    if own is not None and not isinstance(own, _Forward):
        return "its forward is replaced"
    return None


def convert(model: Any, inplace: bool = False) -> Any:
    """A model whose convolutions, poolings and norms, and in inference what lies between them, run in fastconv.

    In eval mode, where no gradient is asked for (`torch.no_grad`, `torch.inference_mode`, or no parameter requires
    one), the largest parts of the model that can be followed run as one fused network each, prepared when a shape is
    first met; `report` says which, and why others are left. While gradients are recorded, single layers run by the
    operators of this package where those are faster. Under autocast, `torch.compile` or `torch.export`, on other
    devices, and for other dtypes than float32 and float64 the modules run as they are.

    The modules stay what they are: their classes, parameters, buffers, names and state dicts do not change, and
    `train`, `to`, `load_state_dict`, optimisers and `copy.deepcopy` work. A change of weights that PyTorch counts,
    or an optimiser makes, is noticed at the next call; one through `.data` in place or through NumPy, of statistics by
    other means than their layer, and of a module's other attributes, is not: call `refresh` then.

    Results agree with PyTorch's up to rounding; they lie in memory as PyTorch's (channels-last for channels-last).

    Args:
        model: a `torch.nn.Module`.
        inplace: whether to convert the model itself and not a copy of it.

    Returns:
        The model, or a copy of it.

    Raises:
        TypeError: model is no `torch.nn.Module`.
    """
    if not isinstance(model, _nn.Module):
        raise TypeError(f"model (of type {type(model).__name__}) must be a torch.nn.Module")
    if not inplace:
        model = copy.deepcopy(model)
    for module in model.modules():
        if _plain_forward(module) is None and any(isinstance(m, _LAYERS) for m in module.modules()):
            module.__dict__["forward"] = _Forward(module)
    return model


def refresh(model: Any) -> None:
    """Forget the networks of a converted model; they are made anew when it is called.

    Needed only after a change that a call does not look for: of `parameter.data` in place, through an array that shares
    the parameter's memory, or of an attribute of a module (a stride, a flag, an entry of a configuration).

    Args:
        model: what `convert` gave.

    Raises:
        TypeError: model is no `torch.nn.Module`.
    """
    if not isinstance(model, _nn.Module):
        raise TypeError(f"model (of type {type(model).__name__}) must be a torch.nn.Module")
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, _Forward):
            forward.forget()
            forward.rested()


def report(model: Any) -> Report:
    """What became of the modules of a converted model in the calls so far.

    Args:
        model: what `convert` gave.

    Returns:
        A `Report`; printed, it has a line for each module that is a network of its own, or is left though it holds
        layers that fastconv has.

    Raises:
        TypeError: model is no `torch.nn.Module`.
    """
    if not isinstance(model, _nn.Module):
        raise TypeError(f"model (of type {type(model).__name__}) must be a torch.nn.Module")
    entries: list[Entry] = []
    inside: set[int] = set()
    for name, module in model.named_modules():
        kind, forward = type(module).__name__, module.__dict__.get("forward")
        if id(module) in inside:
            entries.append(Entry(name, kind, "part", ""))
            continue
        if not isinstance(forward, _Forward):
            why = _plain_forward(module)
            if why and any(isinstance(m, _LAYERS) for m in module.modules()):
                entries.append(Entry(name, kind, "left", why))
            continue
        networks = forward.networks()
        if networks:
            steps = len(networks[-1].network.graph.nodes)
            entries.append(Entry(name, kind, "network", f"{steps} step{'s' * (steps != 1)}"))
            inside.update(map(id, module.modules()))
        elif forward.passed:
            entries.append(Entry(name, kind, "left", forward.passed))
        else:
            entries.append(Entry(name, kind, "waiting", ""))
    return Report(tuple(entries))
