"""Fixtures that every test file shares."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fastconv

# The same examples in every run, so that a failure is a change of the code; `slow` tests draw fresh ones.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")


@pytest.fixture(params=fastconv.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set that this CPU has."""
    before = fastconv.get_isa()
    fastconv.set_isa(request.param)
    yield request.param
    fastconv.set_isa(before)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name: the same data in every run and in any order of the tests."""
    return np.random.default_rng(list(request.node.name.encode()))
