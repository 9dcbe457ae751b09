"""A package that a model's class imports, and that is not installed, is named at the start."""

from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.errors import StartupError
from divserve.startup import engines
from divserve.startup.packages import naming_what_is_missing

TORCHVISION = (
    r"qwen needs torchvision, which is not installed: pip install 'torchvision==0\.28\.\*'"
)


class Entry:
    """A model's entry in vLLM's registry."""

    def __init__(self, package: str | None) -> None:
        self._package = package

    def load_model_cls(self) -> None:
        """Imports the class."""
        if self._package is not None:
            raise ModuleNotFoundError(f"No module named '{self._package}'", name=self._package)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    known = {
        "Qwen": Entry("torchvision.transforms"), "Llama": Entry(None), "Other": Entry("mamba_ssm"),
    }  # fmt: skip
    monkeypatch.setattr(ModelRegistry, "models", known)
    monkeypatch.setattr(metadata, "version", lambda _: "2.13.0+cpu")


@pytest.mark.parametrize("error", [RuntimeError("Engine core initialization failed"), ValueError()])
def test_an_engine_that_does_not_start(error: Exception) -> None:
    with pytest.raises(StartupError, match=TORCHVISION), naming_what_is_missing("qwen", ["Qwen"]):
        raise error
    wanted = "other needs mamba_ssm, which is not installed: pip install 'mamba_ssm'"
    with pytest.raises(StartupError, match=wanted), naming_what_is_missing("other", ["Other"]):
        raise error


@pytest.mark.parametrize("architectures", [[], ["Llama"], ["Unknown"]])
def test_other_failures_stay_what_they_are(architectures: list[str]) -> None:
    error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError) as raised, naming_what_is_missing("llama", architectures):
        raise error
    assert raised.value is error


def test_a_model_that_cannot_be_inspected() -> None:
    def create_engine_config(**_: Any) -> Any:
        raise ValueError("Model architectures ['Qwen'] failed to be inspected.")

    args: Any = SimpleNamespace(
        model="qwen", dtype="bfloat16", create_engine_config=create_engine_config
    )
    with pytest.raises(StartupError, match=TORCHVISION):
        engines.configured(args)


def test_a_package_that_a_flag_needs() -> None:
    """Such as that of ``--speculative-config '{"method": "suffix"}'``."""

    def create_engine_config(**_: Any) -> Any:
        raise ImportError("Arctic Inference is required for suffix decoding.")

    args: Any = SimpleNamespace(
        model="llama", dtype="bfloat16", create_engine_config=create_engine_config
    )
    with pytest.raises(StartupError, match="configuration: Arctic Inference is required"):
        engines.configured(args)
