"""Models shared by the whole run."""

from __future__ import annotations

import os

# Tiny models gain nothing from a second thread and lose much when the machine is busy; set before
# torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import models
from tests.support.hf import Reference

# Seconds are not asserted: a busy machine would fail.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


LONG = ("smollm2", "e2e", "engine", "kernels")
"""Folders whose files take minutes: these first, or one worker ends long after the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=place)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="long versions of chaos and fuzz tests")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the long versions are asked for."""
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
