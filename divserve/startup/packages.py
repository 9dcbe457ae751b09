"""Names the package that a model's class imports, if it is not installed.

vLLM only says that the model could not be inspected, or that its engine did not start. Some text
models import what they need for pictures only, such as torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

from divserve.errors import StartupError

__all__ = ["check_packages", "naming_what_is_missing"]


@contextmanager
def naming_what_is_missing(model: str, architectures: Sequence[str]) -> Iterator[None]:
    """Raises `StartupError` in place of a failure if a package is missing.

    Args:
        model: for the message.
        architectures: names of the model's classes.
    """
    try:
        yield
    except (RuntimeError, ValueError):
        check_packages(model, architectures)
        raise


def check_packages(model: str, architectures: Sequence[str]) -> None:
    """Raises `StartupError` if a package is missing; arguments as above."""
    if (package := _missing(architectures)) is not None:
        raise StartupError(
            f"{model} needs {package}, which is not installed: pip install '{_wanted(package)}'"
        )


def _missing(architectures: Sequence[str]) -> str | None:
    """The package that the first of these classes cannot import; None if all can be."""
    from vllm.model_executor.models.registry import ModelRegistry

    for name in architectures:
        try:
            if (entry := ModelRegistry.models.get(name)) is not None:
                entry.load_model_cls()
        except ModuleNotFoundError as error:
            return (error.name or "").partition(".")[0] or None
    return None


def _wanted(package: str) -> str:
    """What to install: torchvision has to fit torch."""
    if package != "torchvision":
        return package
    minor = int(metadata.version("torch").split(".")[1])
    return f"torchvision==0.{minor + 15}.*"
