"""A teacher in memory, and the settings of a run that takes a second."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from divserve.distill import teacher
from divserve.distill.display import Display
from divserve.distill.settings import Settings
from divserve.distill.teacher import Teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def big(tiny: Path) -> Teacher:
    """The two-layer random model, without a tokenizer, with an untied head."""
    return teacher.load(tiny, CPU)


@pytest.fixture(scope="session")
def spoken(tiny_with_tokenizer: Path) -> Teacher:
    """The same with SmolLM2's vocabulary, tokenizer and chat template."""
    return teacher.load(tiny_with_tokenizer, CPU)


@pytest.fixture
def short(tiny: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a short run into ``tmp_path / "out"``; keywords override them."""
    settings = Settings(
        tiny,
        layers=1,
        out=tmp_path / "out",
        tokens=1500,
        self_prompts=40,
        batch=4,
        length=12,
        lr=3e-3,
        device="cpu",
    )

    def make(**changes: Any) -> Settings:
        return dataclasses.replace(settings, **changes)

    return make


@pytest.fixture
def display() -> Display:
    """A display without output."""
    return Display(Console(file=io.StringIO()))
