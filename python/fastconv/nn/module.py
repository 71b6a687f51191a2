"""Parameters and modules: what a layer holds, what its backward pass needs, and when that is kept.

**Recording.** There is no tape. While a call records, every module pushes what its gradient needs on a stack of its own
(`save_for_backward`), and `backward` takes it from there (`pop_saved`): a module that is used three times in a forward
pass is right where the backward pass goes the other way round. Whether a call records is decided by the *outermost*
module called: it records in training mode, or inside `recording()`. So a batch norm in eval mode inside a network in
training mode records, and a network in eval mode keeps nothing. An outermost call that records first clears the stacks
of all modules below it; one that does not leaves them, so that an evaluation between forward and backward does no harm.

What is saved are the arrays themselves, not copies: do not change an input in place before its backward pass.

A network may be called with arrays of other libraries (docs/interop.md): what is saved are NumPy views of them, and
`backward` takes NumPy arrays.

The decision belongs to a thread. Several threads may call a network in eval mode at once; in training one at a time.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .._args import Array, any_foreign, on_views

__all__ = ["Module", "Parameter", "is_recording", "recording"]

_versions = itertools.count()

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def float_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype, which must be float32 or float64."""
    try:
        value = np.dtype(dtype)
    except TypeError:
        value = np.dtype(object)
    if dtype is None or value not in DTYPES:  # NumPy takes None for float64
        raise TypeError(f"dtype (={dtype!r}) must be float32 or float64")
    return value


def as_array(value: object, name: str) -> Array:
    """An array for anything like one; of a framework's tensor its host memory, without importing the framework."""
    if isinstance(value, Parameter):
        return value.data
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    detach = getattr(value, "detach", None)
    if callable(detach):
        value = detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{name} (of type {type(value).__name__}) must be an array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} (of type {type(value).__name__}, dtype {array.dtype}) must be an array of numbers")
    return array


def memory_order(x: Array) -> tuple[int, ...]:
    """The axes of x from the outermost in memory to the innermost."""
    return tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])))


def empty_in_order(shape: Sequence[int], order: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An array whose axes lie in memory in that order."""
    return np.empty([shape[axis] for axis in order], dtype).transpose(np.argsort(order))


# ------------------------------------------------------------------------------------------------------- recording


class _State(threading.local):
    """What a thread's outermost call decided: None outside of every call."""

    def __init__(self) -> None:
        self.active: bool | None = None
        self.asked: bool | None = None
        # What takes the place of every call while a module is lowered to a graph.
        self.tracer: Callable[..., Any] | None = None
        # The modules in the order in which they saved, for a container that skips some of them on the way back.
        self.journal: list[Module] = []


_state = _State()
_array = np.ndarray  # found sooner than as an attribute


def is_recording() -> bool:
    """Whether the call that is running keeps what backward passes need."""
    return bool(_state.active)


@contextmanager
def recording(mode: bool = True) -> Iterator[None]:
    """Calls of this thread's outermost modules record inside the block, or with False do not, in whatever mode."""
    before = _state.asked
    _state.asked = mode
    try:
        yield
    finally:
        _state.asked = before


# ------------------------------------------------------------------------------------------------------- parameters


class Parameter:
    """An array that training changes.

    Its memory is its own, C-contiguous, and read-only to everyone else: `assign` and the optimisers change it, and each
    change raises `version`, which drops the plans that layers made of it.

    Args:
        data: float32 or float64; copied.
        requires_grad: whether backward passes compute its gradient and optimisers change it.

    Attributes:
        grad: None, or the gradients that backward passes have added up, of data's shape and dtype.
        requires_grad: as above.
        version: rises with each change; no two parameters ever share one.

    Raises:
        TypeError: data is no array of float32 or float64.
    """

    __slots__ = ("__weakref__", "_data", "_grad", "_shared", "_view", "requires_grad", "version")

    def __init__(self, data: npt.ArrayLike, requires_grad: bool = True) -> None:
        array = as_array(data, "data")
        if array.dtype not in DTYPES:
            raise TypeError(f"data (dtype {array.dtype}) must be float32 or float64")
        self._grad: Array | None = None
        self.requires_grad = requires_grad
        self._set(np.array(array, order="C"))

    def _set(self, array: Array) -> None:
        view = array.view()
        view.flags.writeable = False
        self._data, self._view, self._shared = array, view, False
        self.version = next(_versions)

    def __getstate__(self) -> tuple[Array, Array | None, bool]:
        return self._data, self._grad, self.requires_grad

    def __setstate__(self, state: tuple[Array, Array | None, bool]) -> None:
        data, self._grad, self.requires_grad = state
        self._set(data)

    @property
    def data(self) -> Array:
        """The values, read-only."""
        return self._view

    @property
    def grad(self) -> Array | None:
        """The sum of the gradients since it was None, or None."""
        return self._grad

    @grad.setter
    def grad(self, value: Array | None) -> None:
        if value is not None:
            if not isinstance(value, np.ndarray) or value.dtype != self.dtype:
                kind = f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
                raise TypeError(f"grad ({kind}) must be None or a numpy.ndarray of {self.dtype}, as data")
            if value.shape != self.shape:
                raise ValueError(f"grad (shape {value.shape}) must have the shape of data, {self.shape}")
            if not value.flags.writeable:
                raise ValueError("grad must be writable: gradients are added to it")
        self._grad = value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of data."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of data."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions of data."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of elements of data."""
        return self._data.size

    def assign(self, array: npt.ArrayLike) -> None:
        """Take a copy of the array's values. Views that were handed out before keep the old ones.

        Raises:
            TypeError: the dtype is not that of data: nothing is converted silently.
            ValueError: the shape is not that of data.
        """
        values = as_array(array, "array")
        if values.dtype != self.dtype:
            raise TypeError(f"array (dtype {values.dtype}) must have the parameter's dtype, {self.dtype}")
        if values.shape != self.shape:
            raise ValueError(f"array (shape {values.shape}) must have the parameter's shape, {self.shape}")
        self._set(np.array(values, order="C"))

    def share(self) -> Array:
        """The values of now, read-only and without a copy: a later update in place makes one first."""
        self._shared = True
        return self._view

    def _writable(self) -> Array:
        """The values for an update in place, which this call announces."""
        if self._shared:
            self._set(self._data.copy())
        self.version = next(_versions)
        return self._data

    def _astype(self, dtype: np.dtype[Any]) -> None:
        if dtype != self.dtype:
            self._set(self._data.astype(dtype))
            self._grad = None

    def _accumulate(self, gradient: Array) -> None:
        """Add a gradient, whose memory the parameter may keep."""
        if self._grad is None:
            self._grad = gradient
        else:
            self._grad += gradient

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self._view, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        frozen = "" if self.requires_grad else ", requires_grad=False"
        return f"Parameter({np.array2string(self._view, threshold=20)}, dtype={self.dtype}{frozen})"


# ---------------------------------------------------------------------------------------------------------- modules


class Module:
    """A layer or a network: parameters, buffers (arrays that training changes without a gradient) and modules below.

    What is assigned to an attribute registers itself: a `Parameter` or a `Module` under the attribute's name, in the
    order of assignment. A layer of one's own defines `forward`, and `backward` for training:

        class Block(nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.conv = nn.Conv2d(channels, channels, 3, padding=1)
                self.act = nn.ReLU()

            def forward(self, x):
                return self.act(self.conv(x))

            def backward(self, dy, *, input_grad=True):
                return self.conv.backward(self.act.backward(dy), input_grad=input_grad)

    Attributes:
        training: whether batch norm takes the batch's statistics, dropout drops, and an outermost call records.
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Array | None]
    _modules: dict[str, Module | None]
    _saved: list[Any]

    def __init__(self) -> None:
        for name, value in {"_parameters": {}, "_buffers": {}, "_modules": {}, "_saved": [], "training": True}.items():
            object.__setattr__(self, name, value)

    # -- attributes

    def __setattr__(self, name: str, value: Any) -> None:
        if "_modules" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}.__init__ must call super().__init__() before it sets {name}")
        table: dict[str, Any]
        if isinstance(value, Parameter) or (value is None and name in self._parameters):
            table = self._parameters
        elif isinstance(value, Module) or (value is None and name in self._modules):
            table = self._modules
        elif name in self._parameters:
            raise TypeError(f"{name} is a parameter: {name}.assign(array) changes its values")
        elif name in self._modules:
            raise TypeError(f"{name} is a module: it takes a Module or None, not {type(value).__name__}")
        elif name in self._buffers:
            table, value = self._buffers, self._checked_buffer(name, value)
        else:
            object.__setattr__(self, name, value)
            return
        self._keep(table, name, value)

    def _keep(self, table: dict[str, Any], name: str, value: object) -> None:
        """Enter a value in a table, which tells the order, and as an attribute, which is found without a search."""
        others: tuple[dict[str, Any], ...] = (self._parameters, self._modules, self._buffers)
        for other in others:
            if other is not table:
                other.pop(name, None)
        table[name] = value
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        tables: tuple[dict[str, Any], ...] = (self._parameters, self._modules, self._buffers)
        for table in tables:
            table.pop(name, None)
        object.__delattr__(self, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_saved": []}

    def _checked_buffer(self, name: str, value: object) -> Array | None:
        return None if value is None else np.array(as_array(value, name), order="C")

    def register_buffer(self, name: str, value: npt.ArrayLike | None) -> None:
        """Keep an array that is part of the state but no parameter, or None for one that is left out; copied."""
        self._check_name(name)
        self._keep(self._buffers, name, self._checked_buffer(name, value))

    def register_parameter(self, name: str, value: Parameter | None) -> None:
        """Keep a parameter, or None for one that is left out, as a layer's bias."""
        self._check_name(name)
        if value is not None and not isinstance(value, Parameter):
            raise TypeError(f"{name} (of type {type(value).__name__}) must be a Parameter or None")
        self._keep(self._parameters, name, value)

    def register_module(self, name: str, value: Module | None) -> None:
        """Keep a module under a name that need not be that of an attribute."""
        self._check_name(name)
        if value is not None and not isinstance(value, Module):
            raise TypeError(f"{name} (of type {type(value).__name__}) must be a Module or None")
        self._keep(self._modules, name, value)

    add_module = register_module

    def _check_name(self, name: str) -> None:
        if "_modules" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}.__init__ must call super().__init__() before it sets {name}")
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"name (={name!r}) must be a string that is not empty and has no dot")
        if hasattr(self, name):
            raise ValueError(f"name (={name!r}) must not be an attribute of {type(self).__name__} already")

    # -- calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`. The outermost call decides whether it is recorded: the module's text says how."""
        if _state.tracer is not None:
            return _state.tracer(self, *args, **kwargs)
        if _state.active is not None:
            return self.forward(*args, **kwargs)
        if args and type(args[0]) is not _array and any_foreign(args):
            return self._call_on_views(*args, **kwargs)
        record = self.training if _state.asked is None else _state.asked
        if record:
            for module in self.modules():
                module._saved.clear()
            _state.journal = []
        _state.active = record
        try:
            return self.forward(*args, **kwargs)
        except BaseException:
            if record:  # a pass that ended half-way has no backward
                for module in self.modules():
                    module._saved.clear()
            raise
        finally:
            _state.active = None
            _state.journal = []

    def _call_on_views(self, *args: Any, **kwargs: Any) -> Any:
        """The outermost call of arrays of other libraries: all inside of it is NumPy's, the result of their kind."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return self(*args, **kwargs)

        call.__signature__ = inspect.signature(self.forward)  # type: ignore[attr-defined] # the names of errors
        return on_views(call, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes. It is run by calling the module."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Any, *, input_grad: bool = True) -> Any:
        """The gradient with respect to the input of the last recorded call that has had none.

        The gradients of parameters are added to their `grad`.

        Args:
            dy: the gradient with respect to the result.
            input_grad: whether that of the input is wanted; without it nothing below the first layer that learns is
                computed, and None returned.

        Raises:
            RuntimeError: there is no such call, or a parameter has been changed since.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def save_for_backward(self, value: Any) -> None:
        """Push what `backward` needs, if the running call records."""
        if _state.active:
            self._saved.append(value)
            _state.journal.append(self)

    def pop_saved(self) -> Any:
        """Pop what the last recorded forward call saved.

        Raises:
            RuntimeError: nothing is left.
        """
        if not self._saved:
            raise RuntimeError(
                f"{type(self).__name__}.backward has no recorded forward call: the outermost module must be in "
                "training mode or inside nn.recording(), and each call has one backward pass"
            )
        return self._saved.pop()

    # -- what is below

    def _named_below(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module._named_below(f"{prefix}.{name}" if prefix else name, seen)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """The module and all below with their names, each once."""
        yield from self._named_below(prefix, set())

    def modules(self) -> Iterator[Module]:
        """The module and all below, each once."""
        for _, module in self._named_below("", set()):
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below with their names."""
        for name, module in self._modules.items():
            if module is not None:
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly below."""
        for _, module in self.named_children():
            yield module

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """All parameters with their names, each once."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix):
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{name}" if path else name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """All buffers with their names: the arrays themselves, which the module may change."""
        for path, module in self.named_modules(prefix):
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    yield f"{path}.{name}" if path else name, buffer

    def buffers(self) -> Iterator[Array]:
        """All buffers."""
        for _, buffer in self.named_buffers():
            yield buffer

    def get_submodule(self, target: str) -> Module:
        """The module of that dotted name; "" is this one."""
        module: Module = self
        for name in target.split(".") if target else ():
            below = module._modules.get(name)
            if below is None:
                raise ValueError(f"target (={target!r}) must name a module: {type(module).__name__} has no {name!r}")
            module = below
        return module

    def num_parameters(self, trainable: bool = False) -> int:
        """The number of elements of all parameters, or of those that require a gradient."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable)

    # -- modes

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of this module and all below."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Leave the training mode: `train(False)`."""
        return self.train(False)

    def freeze(self, flag: bool = True) -> Self:
        """Set whether the parameters of this module and all below stay as they are.

        No gradients are computed for them. Batch norm goes on updating its running statistics unless it is in eval
        mode, too.
        """
        for parameter in self.parameters():
            parameter.requires_grad = not flag
        return self

    def requires_grad_(self, flag: bool = True) -> Self:
        """As in PyTorch: `freeze(not flag)`."""
        return self.freeze(not flag)

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def astype(self, dtype: npt.DTypeLike) -> Self:
        """Convert parameters and floating-point buffers, in place, to float32 or float64; gradients are dropped.

        Raises:
            TypeError: any other dtype.
        """
        wanted = float_dtype(dtype)
        for parameter in self.parameters():
            parameter._astype(wanted)
        for module in self.modules():
            module._saved.clear()
            for name, buffer in list(module._buffers.items()):
                if buffer is not None and buffer.dtype.kind == "f":
                    module._keep(module._buffers, name, buffer.astype(wanted))
        return self

    def apply(self, function: Callable[[Module], object]) -> Self:
        """Call a function with every module below and then with this one."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    # -- state

    def _entries(self) -> Iterator[tuple[str, Parameter | tuple[Module, str]]]:
        """Parameters and buffers under every name that they have, in PyTorch's order."""
        for path, module in self._named_below("", None):
            dot = f"{path}." if path else ""
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    yield dot + name, parameter
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    yield dot + name, (module, name)

    def state_dict(self, *, copy: bool = True) -> dict[str, Array]:
        """Parameters and buffers by name, with PyTorch's names.

        Args:
            copy: copies; else read-only views, which later training changes.
        """
        state = {}
        for name, entry in self._entries():
            array = entry.data if isinstance(entry, Parameter) else entry[0]._buffers[entry[1]]
            assert array is not None
            if not copy:
                array = array.view()
                array.flags.writeable = False
            state[name] = array.copy() if copy else array
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take parameters and buffers from arrays by name; nothing is changed where it refuses.

        Args:
            state: arrays or what NumPy makes arrays of; tensors with `detach` come by `detach().cpu().numpy()`.
                Values are converted to the module's dtype where both are floating point.
            strict: refuse missing and unexpected names; else they are passed over. Shapes must fit in any case.

        Raises:
            TypeError: state is no mapping, or a value is no array of the kind of what it is for.
            ValueError: all names that are missing, unexpected or of the wrong shape.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state (of type {type(state).__name__}) must be a mapping of names to arrays")
        entries = dict(self._entries())
        missing = [name for name in entries if name not in state]
        unexpected = [str(name) for name in state if name not in entries]
        shapes, values = [], {}
        for name, entry in entries.items():
            if name not in state:
                continue
            value = as_array(state[name], f"state[{name!r}]")
            target = entry.data if isinstance(entry, Parameter) else entry[0]._buffers[entry[1]]
            assert target is not None
            if value.shape != target.shape:
                shapes.append(f"{name} (shape {value.shape}, expected {target.shape})")
            elif (value.dtype.kind == "f") != (target.dtype.kind == "f"):
                raise TypeError(f"state[{name!r}] (dtype {value.dtype}) must have a dtype like {target.dtype}")
            else:
                values[name] = value.astype(target.dtype)
        faults = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("missing", missing if strict else []),
                ("unexpected", unexpected if strict else []),
                ("of the wrong shape", shapes),
            )
            if names
        ]
        if faults:
            raise ValueError(f"state does not fit {type(self).__name__}: {'; '.join(faults)}")
        for name, value in values.items():
            entry = entries[name]
            if isinstance(entry, Parameter):
                entry.assign(value)
            else:
                entry[0]._keep(entry[0]._buffers, entry[1], value)

    def _random_state(self) -> dict[str, Any] | None:
        """The state of the module's own generator, if it has one."""
        return None

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def random_state(self) -> dict[str, dict[str, Any]]:
        """The states of the generators (of `Dropout`) by the names of their modules, for a checkpoint."""
        states = ((name, module._random_state()) for name, module in self.named_modules())
        return {name: state for name, state in states if state is not None}

    def set_random_state(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Set the generators to what `random_state` returned.

        Raises:
            ValueError: the names are not those of the modules that have generators.
        """
        own = {name: module for name, module in self.named_modules() if module._random_state() is not None}
        if set(own) != set(states):
            raise ValueError(f"states (of {sorted(states)}) must have the names {sorted(own)}")
        for name, module in own.items():
            module._set_random_state(states[name])

    # -- text

    def extra_repr(self) -> str:
        """What stands between the parentheses of the module's text."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self._modules.items()]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return f"{type(self).__name__}({extra}\n  " + "\n  ".join(lines) + "\n)"


# ------------------------------------------------------------------------------------- for the modules of this package


@contextmanager
def tracing(tracer: Callable[..., Any]) -> Iterator[None]:
    """Calls of this thread's modules go to tracer(module, *args, **kwargs) inside the block."""
    before = _state.tracer
    _state.tracer = tracer
    try:
        yield
    finally:
        _state.tracer = before


def journal_mark() -> int:
    """A place in the record of the running call."""
    return len(_state.journal)


def journal() -> list[Module]:
    """The record of the running call: the modules in the order in which they saved."""
    return _state.journal


def discard(record: Sequence[Module], begin: int, end: int) -> None:
    """Drop what the calls between two marks saved, where their backward pass is not wanted.

    What was saved later must be gone already, as it is when backward goes the other way round.
    """
    for module in reversed(record[begin:end]):
        module.pop_saved()


def learns(module: Module) -> bool:
    """Whether a parameter of the module or below wants a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


def stale(module: Module, versions: Sequence[int], parameters: Sequence[Parameter]) -> None:
    """Raise where a parameter that the gradient reads is not the one that the forward pass read."""
    for version, parameter in zip(versions, parameters, strict=True):
        if parameter.version != version:
            name = next((n for n, p in module.named_parameters() if p is parameter), "a parameter")
            raise RuntimeError(
                f"{type(module).__name__}.backward: {name} was changed after the forward call that was recorded"
            )


def gradients(
    function: Callable[..., Any],
    dy: Array,
    x: Array,
    weight: Parameter,
    bias: Parameter | None,
    input_grad: bool,
    **options: Any,
) -> Array | None:
    """Call functional.<op>_backward for what is wanted, adding to the gradients that are there; the input's or None."""
    parameters = {"weight": weight, "bias": bias}
    wanted = {n: p for n, p in parameters.items() if p is not None and p.requires_grad}
    needs = (*(("input",) if input_grad else ()), *wanted)
    if not needs:
        return None
    into = {name: p.grad for name, p in wanted.items() if p.grad is not None}
    result = function(dy, x, weight.data, needs=needs, accumulate=into or None, **options)
    for name, parameter in wanted.items():
        if name not in into:
            parameter.grad = getattr(result, name)
    gradient: Array | None = result.input
    return gradient
