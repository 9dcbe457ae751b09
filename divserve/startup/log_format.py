"""The flags of the request log, and what they mean for vLLM's own lines."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import Any

__all__ = ["add_flags", "have_vllm_join"]


def add_flags(parser: ArgumentParser) -> None:
    """Adds the flags to the parser of ``divserve serve``."""
    group: Any = parser.add_argument_group("divserve: request log")
    group.add_argument(
        "--log-format",
        choices=("json", "console"),
        help="Write one line per request instead of uvicorn's access log. With json the lines of "
        "vLLM and uvicorn are JSON too.",
    )
    group.add_argument(
        "--log-prompts",
        action="store_true",
        help="Include the prompts in these lines. They may be confidential.",
    )


def have_vllm_join(args: Namespace) -> None:
    """Makes vLLM and uvicorn log JSON like our own lines, unless their format was set."""
    if args.log_format != "json":
        return
    from vllm.config.logging import LoggingConfig

    config = getattr(args, "logging_config", None) or LoggingConfig()
    args.logging_config = replace(config, formatter="json")
