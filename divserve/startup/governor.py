"""The flag of the draft governor, and how the engine is told of it and of a drafting amateur."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from typing import Any

from divserve.startup import amateur_drafts

__all__ = ["add_flags", "tell_engine"]


def add_flags(parser: ArgumentParser) -> None:
    """Adds ``--[no-]draft-governor`` to the parser of ``divserve serve``."""
    group: Any = parser.add_argument_group("divserve: speculative decoding")
    group.add_argument(
        "--draft-governor",
        action=BooleanOptionalAction,
        default=True,
        help="With --speculative-config: verify those of the proposed draft tokens that are "
        "expected to save time; without the governor all of them, as vLLM does.",
    )


def tell_engine(args: Namespace) -> None:
    """Puts the flag where the scheduler, in another process, finds it; resolves the drafter.

    Raises:
        StartupError: of `divserve.startup.amateur_drafts.tell_engine`.
    """
    amateur_drafts.tell_engine(args)
    if not args.draft_governor:
        from divserve.engine.scheduler.governor import OPTION

        args.additional_config = {**(args.additional_config or {}), OPTION: False}
