"""Modules made of modules: in a row, around a shortcut, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .. import functional
from .._args import Array
from .activation import ReLU
from .module import Module, discard, is_recording, journal, journal_mark, learns

__all__ = ["Add", "Concat", "ModuleDict", "ModuleList", "Residual", "Sequential"]


class _Numbered(Module):
    """Modules under the names "0", "1", ..."""

    def _children(self) -> list[Module]:
        return [module for module in self._modules.values() if module is not None]

    def append(self, module: Module) -> Any:
        """Add a module at the end, under the next number."""
        self.register_module(str(len(self._modules)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._children())

    def __getitem__(self, index: int | slice) -> Any:
        children = self._children()
        if isinstance(index, slice):
            return type(self)(*children[index])
        if not -len(children) <= index < len(children):
            raise IndexError(f"index (={index}) must be one of {len(children)} modules")
        return children[index]

    def __setitem__(self, index: int, module: Module) -> None:
        names = list(self._modules)
        if not -len(names) <= index < len(names):
            raise IndexError(f"index (={index}) must be one of {len(names)} modules")
        if not isinstance(module, Module):
            raise TypeError(f"module (of type {type(module).__name__}) must be a Module")
        setattr(self, names[index], module)


class Sequential(_Numbered):
    """Modules that run one after the other, or a mapping of names to them.

    Its backward pass ends at the first module that learns where the input's gradient is not wanted, and computes
    nothing in frozen modules before that.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.register_module(name, module)
            return
        for number, entry in enumerate(modules):
            if not isinstance(entry, Module):
                raise TypeError(f"modules[{number}] (of type {type(entry).__name__}) must be a Module")
            self.register_module(str(number), entry)

    def forward(self, x: Any) -> Any:
        """Run the modules on x."""
        marks = [journal_mark()]
        for module in self._children():
            x = module(x)
            marks.append(journal_mark())
        if is_recording():
            self.save_for_backward((journal(), marks))
        return x

    def backward(self, dy: Any, *, input_grad: bool = True) -> Any:
        """See `Module.backward`."""
        record, marks = self.pop_saved()
        children = self._children()
        first = 0
        if not input_grad:
            first = next((i for i, module in enumerate(children) if learns(module)), len(children))
        for i in range(len(children) - 1, first - 1, -1):
            dy = children[i].backward(dy, input_grad=input_grad or i > first)
        discard(record, marks[0], marks[first])
        return dy if input_grad else None


class ModuleList(_Numbered):
    """Modules in a list, for a module of one's own that runs them."""

    def __init__(self, modules: Iterable[Module] = (), *more: Module) -> None:
        super().__init__()
        self.extend((modules, *more) if isinstance(modules, Module) else modules)


class ModuleDict(Module):
    """Modules by name, for a module of one's own that runs them."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        for name, module in (modules or {}).items():
            self.register_module(name, module)

    def __getitem__(self, name: str) -> Module:
        module = self._modules.get(name)
        if module is None:
            raise KeyError(name)
        return module

    def __setitem__(self, name: str, module: Module) -> None:
        if name in self._modules:
            setattr(self, name, module)
        else:
            self.register_module(name, module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._modules.keys()

    def values(self) -> Iterable[Module]:
        """The modules."""
        return [module for _, module in self.named_children()]

    def items(self) -> Iterable[tuple[str, Module]]:
        """Names and modules."""
        return list(self.named_children())


class Residual(Module):
    """activation(body(x) + shortcut(x)), where the shortcut is x itself if it is None (He et al., arXiv:1512.03385).

    Args:
        body: a module whose result has the shortcut's shape.
        shortcut: a module, or None for the identity.
        activation: a module, or None. A `ReLU` is applied in the pass that adds.
    """

    def __init__(self, body: Module, shortcut: Module | None = None, activation: Module | None = None) -> None:
        super().__init__()
        for name, module in (("body", body), ("shortcut", shortcut), ("activation", activation)):
            if not isinstance(module, Module) and not (module is None and name != "body"):
                raise TypeError(f"{name} (of type {type(module).__name__}) must be a Module")
        self.body = body
        self.shortcut: Module | None
        self.activation: Module | None
        self.register_module("shortcut", shortcut)
        self.register_module("activation", activation)

    def forward(self, x: Array) -> Array:
        """Run body and shortcut on x.

        Raises:
            ValueError: the shapes of their results differ.
        """
        marks = [journal_mark()]
        y: Array = self.body(x)
        marks.append(journal_mark())
        r = x if self.shortcut is None else self.shortcut(x)
        marks.append(journal_mark())
        if y.shape != r.shape:
            raise ValueError(f"body's result (shape {y.shape}) must have the shape of the shortcut's, {r.shape}")
        fused = type(self.activation) is ReLU
        y = functional.add(y, r, activation="relu" if fused else None)
        if self.activation is not None and not fused:
            y = self.activation(y)
        if is_recording():
            self.save_for_backward((journal(), marks, y if fused else None))
        return y

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        record, marks, y = self.pop_saved()
        if y is not None:
            dy = functional.relu_backward(dy, y)
        elif self.activation is not None:
            dy = self.activation.backward(dy)
        # In the opposite order of the calls, since a module may be in both.
        dx = dy
        if self.shortcut is not None:
            if input_grad or learns(self.shortcut):
                dx = self.shortcut.backward(dy, input_grad=input_grad)
            else:
                discard(record, marks[1], marks[2])
        if not input_grad and not learns(self.body):
            discard(record, marks[0], marks[1])
            return None
        dy = self.body.backward(dy, input_grad=input_grad)
        return functional.add(dy, dx) if input_grad else None


class Add(Module):
    """activation(x + y): the end of a residual block, in a module of one's own that has names of its own for the rest.

    Args:
        activation: a module, or None. A `ReLU` is applied in the pass that adds.
    """

    def __init__(self, activation: Module | None = None) -> None:
        super().__init__()
        self.activation: Module | None
        self.register_module("activation", activation)

    def forward(self, x: Array, y: Array) -> Array:
        """Add x and y.

        Raises:
            ValueError: their shapes differ.
        """
        if x.shape != y.shape:
            raise ValueError(f"x (shape {x.shape}) must have the shape of y, {y.shape}")
        fused = type(self.activation) is ReLU
        z: Array = functional.add(x, y, activation="relu" if fused else None)
        if self.activation is not None and not fused:
            z = self.activation(z)
        self.save_for_backward(z if fused else None)
        return z

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """The gradient with respect to x, which is that with respect to y, too."""
        z = self.pop_saved()
        if z is not None:
            return functional.relu_backward(dy, z)
        if self.activation is not None:
            dx: Array | None = self.activation.backward(dy, input_grad=input_grad)
            return dx
        return dy


class Concat(Module):
    """Modules side by side on one x, their results joined along an axis (by default channels).

    `Concat(Identity(), f)` is a step of DenseNet, `Concat(a, b, c)` one of Inception. They are named "0", "1", ..., or
    as in a mapping of names to them.
    """

    def __init__(self, *branches: Module | Mapping[str, Module], axis: int = 1) -> None:
        super().__init__()
        if not branches:
            raise ValueError("branches must be at least one module")
        self.axis = axis
        if len(branches) == 1 and isinstance(branches[0], Mapping):
            for name, module in branches[0].items():
                self.register_module(name, module)
            return
        for number, branch in enumerate(branches):
            if not isinstance(branch, Module):
                raise TypeError(f"branches[{number}] (of type {type(branch).__name__}) must be a Module")
            self.register_module(str(number), branch)

    @property
    def branches(self) -> list[Module]:
        """The modules."""
        return list(self.children())

    def forward(self, x: Array) -> Array:
        """Run the branches on x.

        Raises:
            ValueError: the shapes of the results differ in another axis.
        """
        marks, results = [journal_mark()], []
        for branch in self._modules.values():
            assert branch is not None
            results.append(branch(x))
            marks.append(journal_mark())
        if is_recording():
            sizes = [result.shape[self.axis] for result in results]
            self.save_for_backward((journal(), marks, np.cumsum(sizes)[:-1]))
        return np.concatenate(results, axis=self.axis)

    def backward(self, dy: Array, *, input_grad: bool = True) -> Array | None:
        """See `Module.backward`."""
        record, marks, ends = self.pop_saved()
        # Copied once here, where functions of elements and norms would copy each, and to C order.
        parts = [part.copy(order="K") for part in np.split(dy, ends, axis=self.axis)]
        dx: Array | None = None
        branches = self.branches
        for i in range(len(branches) - 1, -1, -1):
            if input_grad or learns(branches[i]):
                part = branches[i].backward(parts[i], input_grad=input_grad)
                if input_grad:
                    dx = part if dx is None else functional.add(dx, part)
            else:
                discard(record, marks[i], marks[i + 1])
        return dx

    def extra_repr(self) -> str:
        """The axis."""
        return f"axis={self.axis}"
