"""Models shared by the whole run, and the order in which files are run."""

from __future__ import annotations

import os

# Set before torch is imported, for this process and those that tests start. Tiny models gain
# nothing from a second thread. Waiting OpenMP threads must sleep: on cores shared with other tests,
# spinning would take more time than all computations.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# vLLM's attention in float32 on a GPU, which would round to TF32 and be no reference.
os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import durations, limit, models, sharing
from tests.support.hf import Reference
from tests.support.platform import ON_GPU

# Times are not asserted: a busy machine would fail.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


LIMIT_S, LONG_LIMIT_S = 200, 400
"""Seconds of a test for GPUs on one, longer than those of the processes that it starts: a launch
that hangs must not hold a GPU that is had for minutes. pytest-xdist goes on with another worker."""
STANDARD_ERROR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if ON_GPU:
        # What vLLM and torch warn of on CUDA is not known yet; it should not end a test.
        config.addinivalue_line("filterwarnings", "default")
        # pytest does not capture yet.
        config.stash[STANDARD_ERROR] = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    if not ON_GPU or item.get_closest_marker("gpu") is None:
        return (yield)
    seconds = LONG_LIMIT_S if item.get_closest_marker("long") else LIMIT_S
    with limit.bounded(seconds, item.config.stash[STANDARD_ERROR]):
        return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="long versions of chaos and fuzz tests")
    parser.addoption("--times", metavar="FILE", help="write seconds of files and tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs long files first; otherwise one worker ends long after the other."""
    items.sort(key=lambda item: sharing.place(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker gets whole files; files that use the same server go to the same worker."""
    return sharing.scheduler(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    report.cpu = durations.spent()
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if path := config.getoption("--times"):
        durations.write(Path(path), terminalreporter.stats)


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the long versions are requested."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a vocabulary of 512 and no tokenizer."""
    return models.make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with SmolLM2's vocabulary and tokenizer."""
    return models.make_tiny(tmp_path_factory.mktemp("tiny49k"), vocab_size=49152)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as ``make setup`` prepares it."""
    from divserve.models import prepare

    if not (models.SMOLLM2 / "config.json").exists():
        prepare(models.SMOLLM2)
    return models.SMOLLM2


@pytest.fixture(scope="session")
def tiny_reference(tiny: Path) -> Reference:
    """Hugging Face float32 of the tiny model."""
    return Reference(tiny)
