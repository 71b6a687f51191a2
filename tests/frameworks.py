"""The frameworks that tests of the integrations need: each is skipped by name where it is not installed.

In CI that would hide what does not run: where FASTCONV_CI_FRAMEWORKS lists a framework (torch,jax), its absence fails.
"""

import importlib
import importlib.util
import os
from typing import Any

import pytest


def require(name: str) -> Any:
    """The module, or a skip by its name; a failure where FASTCONV_CI_FRAMEWORKS lists it."""
    if importlib.util.find_spec(name) is None:
        if name in os.environ.get("FASTCONV_CI_FRAMEWORKS", "").split(","):
            pytest.fail(f"{name} is not installed, and FASTCONV_CI_FRAMEWORKS lists it")
        pytest.skip(f"needs {name}", allow_module_level=True)
    return importlib.import_module(name)
