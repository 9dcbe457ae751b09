"""What may go wrong with one request without ending the others, and how it is kept to that one.

An exception in a hook of ours would end vLLM's engine, and every request with it. So a hook catches
it, logs it and leaves out what it failed at: without a report of the workers, the scheduler ends
the request (`LOST`).
"""

from __future__ import annotations

import logging

__all__ = ["LOST", "NOT_NUMBERS", "log_fault"]

LOST = "lock-step lost: a token was sampled without its guide; the request was stopped"
NOT_NUMBERS = "the logits of a step are not numbers (NaN); the request was stopped"

logger = logging.getLogger("vllm.divserve")


def log_fault(what: str, error: Exception) -> None:
    """Logs that ``what`` has failed."""
    note = "%s failed: the requests concerned end with an error"
    logger.error(note, what, exc_info=error)
