"""What may go wrong with one request without ending the others, and how it is kept to that one.

An exception in a hook of ours would end vLLM's engine, and every request with it. So a hook leaves
out what it failed at: without a report of the worker, the scheduler ends the request (`LOST`).
"""

from __future__ import annotations

import logging

__all__ = ["LOST", "NOT_NUMBERS", "Contained"]

LOST = "lock-step lost: a token was sampled without its guide; the request was stopped"
NOT_NUMBERS = "the logits of a step are not numbers (NaN); the request was stopped"

logger = logging.getLogger("vllm.divserve")


class Contained:
    """A context that logs an exception instead of passing it on to the engine.

    Args:
        what: is done in it.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, Exception):
            return False
        note = "%s failed: the requests concerned end with an error"
        logger.error(note, self.what, exc_info=error)
        return True
