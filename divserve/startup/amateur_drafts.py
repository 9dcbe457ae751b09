"""``--speculative-config '{"method": "amateur", …}'``: the amateur drafts."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from divserve.errors import StartupError

__all__ = ["DRAFTER", "METHOD", "drafts_with_amateur", "is_drafter", "tell_engine"]

METHOD = "amateur"
DRAFTER = "divserve.engine.worker.amateur_drafts.AmateurDrafter"
"""What vLLM's method ``custom_class`` imports in the worker."""


def drafts_with_amateur(given: Any) -> bool:
    """Whether the amateur drafts.

    Args:
        given: vLLM's ``SpeculativeConfig``, or None.
    """
    return given is not None and given.method == "custom_class" and given.model == DRAFTER


def is_drafter(given: Any) -> bool:
    """Whether the amateur drafts.

    Args:
        given: what `tell_engine` leaves in the arguments.
    """
    return given is not None and given.get("model") == DRAFTER


def tell_engine(args: Namespace) -> None:
    """Replaces the method by that of vLLM under which it loads our drafter.

    Args:
        args: the parsed arguments, with ``extras``.

    Raises:
        StartupError: there is no amateur, or the method is asked for with settings that it has not.
    """
    given: dict[str, Any] = args.speculative_config or {}
    if given.get("method") != METHOD:
        return
    if "amateur" not in args.extras.amateurs:
        raise StartupError("--speculative-config with the method amateur needs --amateur")
    tokens = given.get("num_speculative_tokens")
    if set(given) != {"method", "num_speculative_tokens"} or not isinstance(tokens, int):
        raise StartupError(
            "--speculative-config with the method amateur takes num_speculative_tokens, a number, "
            "and nothing else"
        )
    args.speculative_config = {
        "method": "custom_class",
        "model": DRAFTER,
        "num_speculative_tokens": tokens,
    }
