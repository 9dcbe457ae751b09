"""Faults of one request, which must not end the others.

An exception in one of our hooks would end vLLM's engine, and every request with it. So a hook
catches and logs it, and skips what failed: without a report from the workers, the scheduler ends
the request (`LOST`).
"""

from __future__ import annotations

import logging

__all__ = ["LOST", "NOT_LOADED", "NOT_NUMBERS", "log_fault", "logger"]

LOST = "lock-step lost: a token was sampled without its guide; the request was stopped"
NOT_NUMBERS = "the logits of a step are not numbers (NaN); the request was stopped"
NOT_LOADED = "the KV connector could not load the prompt's or the guide's keys and values"

logger = logging.getLogger("vllm.divserve")


def log_fault(what: str, error: Exception) -> None:
    """Logs that ``what`` has failed."""
    note = "%s failed: the requests concerned end with an error"
    logger.error(note, what, exc_info=error)
