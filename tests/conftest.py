"""Fixtures that every test file shares."""

import os
import zlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fastconv
from fastconv import cuda

from . import sanitizers

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


_BACKGROUND = pytest.StashKey[sanitizers.Background]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The test of the sanitized kernels comes last."""
    items.sort(key=lambda item: item.name == sanitizers.ALL_KERNELS)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What it waits for takes minutes of one core, and begins now."""
    if session.config.option.collectonly or not session.items or session.items[-1].name != sanitizers.ALL_KERNELS:
        return
    environment = sanitizers.environment()
    if not isinstance(environment, str):
        session.config.stash[_BACKGROUND] = sanitizers.Background(environment)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing goes on after the tests."""
    started = config.stash.get(_BACKGROUND, None)
    if started is not None:
        started.stop()


@pytest.fixture
def background(request: pytest.FixtureRequest) -> sanitizers.Background:
    """The sanitized tests, which began with the session."""
    started = request.config.stash.get(_BACKGROUND, None)
    if started is None:
        pytest.skip(str(sanitizers.environment()))
    return started


# The kernels on fibers of the host, and the module for GPUs, which is skipped where it or its device is not there.
_MODULES = ["_cuda_host", pytest.param("_cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=_MODULES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Runs the test on the kernels' host build, and on a GPU where there is one (pytest -m gpu runs that alone)."""
    name = request.param
    if name == "_cuda_host":
        # The sanitized twin, where a process was started for it.
        name = os.environ.get("FASTCONV_CUDA_HOST_MODULE", name)
    monkeypatch.setenv("FASTCONV_CUDA_MODULE", name)
    cuda._load.cache_clear()
    cuda._check_capability.cache_clear()
    module = cuda._load()
    if isinstance(module, str) or not cuda.is_available():
        pytest.skip("needs the module _cuda_host (FASTCONV_CUDA_HOST=ON)" if "host" in name else cuda._unavailable())
    if "host" in name:
        # Another order of blocks and threads in every test, the same in every run.
        module.set_seed(zlib.crc32(request.node.name.encode()))
    yield module
    cuda._load.cache_clear()
    cuda._check_capability.cache_clear()
