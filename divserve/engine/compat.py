"""What differs between versions of vLLM: 0.32, which divserve requires, and 0.33 as far as read.

Only names that have moved need code here. Every other known difference is handled where it occurs,
in a way that works with both versions; ``docs/seams.md`` says where.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["MOVED", "moved"]

_CLI_ARGS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.common.cli_args")

MOVED: dict[str, tuple[str, ...]] = {
    "make_arg_parser": _CLI_ARGS,
    "validate_parsed_serve_args": _CLI_ARGS,
    # Newer versions have the older module too, but without the name.
    "cli_env_setup": (
        "vllm.entrypoints.common.startup",
        "vllm.entrypoints.serve.utils.api_utils",
    ),
}
"""The modules that may define each name, in the order in which they are tried."""


def moved(name: str) -> Any:
    """A name of `MOVED`, from the first of its modules that this version of vLLM has.

    Raises:
        ImportError: this version has none of them.
    """
    for module in MOVED[name]:
        if _exists(module):
            return getattr(import_module(module), name)
    raise ImportError(f"vLLM has no {name} in {' or '.join(MOVED[name])}")


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Its parent package does not exist either.
        return False
