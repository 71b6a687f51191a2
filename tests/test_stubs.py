"""The faces agree: stub and module, functional and reference, names and __all__."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import fastconv
from fastconv import _core, functional, reference

_SPEC = importlib.util.find_spec("fastconv")
assert _SPEC is not None
assert _SPEC.origin is not None
_STUB = ast.parse((Path(_SPEC.origin).parent / "_core.pyi").read_text())


def _public(names: object) -> set[str]:
    return {name for name in names if not name.startswith("_")}  # type: ignore[attr-defined]


def _stub_classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _STUB.body if isinstance(node, ast.ClassDef)}


def test_stub_has_the_module_s_names() -> None:
    functions = {node.name for node in _STUB.body if isinstance(node, ast.FunctionDef)}
    assert functions | set(_stub_classes()) == _public(vars(_core))


@pytest.mark.parametrize("name", ["ConvSpec", "ConvPlan", "SeparablePlan", "InvertedPlan", "PoolSpec", "NormSpec"])
def test_stub_has_the_classes_members(name: str) -> None:
    members = {node.name for node in _stub_classes()[name].body if isinstance(node, ast.FunctionDef)}
    assert _public(members) == _public(vars(getattr(_core, name)))


def test_stub_has_the_number_of_arguments() -> None:
    """The functions of bind_conv.cc take exactly as many positional arguments as the stub says."""
    checked = 0
    for node in _STUB.body:
        if isinstance(node, ast.FunctionDef) and node.args.posonlyargs:
            with pytest.raises(TypeError, match=f"expected {len(node.args.posonlyargs)} positional arguments, got 0"):
                getattr(_core, node.name)()
            checked += 1
    assert checked >= 7


def test_stub_has_the_pybind_arguments() -> None:
    members = [(_core, node) for node in _STUB.body]
    for name in ("ConvSpec", "NormSpec"):
        members += [(getattr(_core, name), node) for node in _stub_classes()[name].body]
    for owner, node in members:
        if not isinstance(node, ast.FunctionDef) or node.args.posonlyargs or node.decorator_list:
            continue
        doc = getattr(owner, node.name).__doc__
        shown = doc[doc.index("(") + 1 : doc.index(") ->")]
        names = [part.split(":")[0].strip() for part in shown.split(", ") if ":" in part]
        assert [a.arg for a in node.args.args if a.arg != "self"] == [n for n in names if n != "self"], node.name


def _functions(module: ModuleType) -> set[str]:
    return {name for name in module.__all__ if inspect.isfunction(getattr(module, name)) and name != "activate"}


def test_functional_and_reference_have_the_same_names() -> None:
    assert _functions(functional) == _functions(reference)
    classes = {name for name in functional.__all__ if inspect.isclass(getattr(functional, name))}
    assert set(functional.__all__) == _functions(functional) | classes
    for name in classes:
        assert getattr(functional, name)._fields == getattr(reference, name)._fields


@pytest.mark.parametrize("name", sorted(_functions(functional)))
def test_functional_and_reference_have_the_same_signatures(name: str) -> None:
    assert inspect.signature(getattr(functional, name)) == inspect.signature(getattr(reference, name))


@pytest.mark.parametrize("name", functional.__all__)
def test_every_function_has_a_docstring(name: str) -> None:
    assert getattr(functional, name).__doc__


def test_public_names() -> None:
    assert len(set(fastconv.__all__)) == len(fastconv.__all__)
    for name in fastconv.__all__:
        assert hasattr(fastconv, name), name
    assert set(functional.__all__) < set(fastconv.__all__)
    assert fastconv.__version__
