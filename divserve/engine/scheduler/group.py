"""A group: one client request (the primary) and the rows that the scheduler makes for it.

Guides run in lock-step with the primary, token by token. A grounding text is only read: the workers
keep one vector of it, and its request ends with its prefill and leaves the group.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.request import Request, RequestStatus

from divserve.engine.order import Order
from divserve.engine.scheduler.members import made_for

__all__ = ["ADMISSIBLE", "BLOCKED", "Group", "is_admissible", "is_placed", "remaining_tokens"]

ADMISSIBLE = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
"""Statuses of requests that only wait to be admitted."""


BLOCKED = (
    RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR,
    RequestStatus.WAITING_FOR_STREAMING_REQ,
)
"""Statuses of requests that wait for something else before they can have memory."""


class Group:
    """The members of one guided request; the primary comes first."""

    __slots__ = (
        "arrived", "grounding", "guides", "looks_back", "members", "name", "of_prompt", "primary",
        "scored", "several", "waited",
    )  # fmt: skip

    def __init__(
        self,
        primary: Request,
        guides: tuple[Request, ...],
        grounding: Request | None,
        looks_back: bool = False,
        scored: int = 0,
    ) -> None:
        self.looks_back = looks_back
        self.scored = scored
        """How many tokens at the end of all prompts are scored."""
        self.primary = primary
        self.name: str = primary.request_id
        self.guides = guides
        self.grounding: Request | None = grounding
        """The request that reads the grounding text, until it has been read."""
        self.members = (primary, *guides, *(() if grounding is None else (grounding,)))
        self.several = len(self.members) > 1
        """Whether it has ever had more than one member."""
        self.arrived = time.monotonic()
        self.waited: float | None = None
        """Seconds until all members were admitted; None before that, and after it was reported."""
        self.of_prompt: tuple[Any, Any] | None = None
        """Log-probs of the prompt (vLLM's ``LogprobsTensors``, and those of chosen ids), if the
        token with which they came was taken back: they go out with the next one."""

    @classmethod
    def create(cls, request: Request, order: Order, max_tokens: int) -> Group:
        """Makes the other rows of ``request`` and replaces its sampling parameters.

        Args:
            request: the client's request.
            order: what the front end asks for.
            max_tokens: length cap of the primary and its guides.
        """
        guides, grounding = made_for(request, order, max_tokens)
        reading = order.spec.reading
        scored = 0 if reading is None else reading.tokens
        return cls(request, guides, grounding, order.spec.look is not None, scored)

    def drop_grounding(self) -> None:
        """The grounding text has been read."""
        self.grounding = None
        self.members = (self.primary, *self.guides)

    def most_cached(self, member: Request, held: bool) -> int:
        """How many tokens of a member may come from the prefix cache.

        The logits before the first scored token are needed, and a held token must not be the only
        one left to compute.
        """
        if self.scored and member is not self.grounding:
            return int(member.num_prompt_tokens) - self.scored - 1
        return int(member.num_tokens) - (2 if held else 1)

    def running(self) -> int:
        """How many members are in the running list."""
        return sum(m.status == RequestStatus.RUNNING for m in self.members)

    def placed(self) -> int:
        """How many members have memory."""
        return sum(map(is_placed, self.members))

    def reads(self, request_id: str) -> bool:
        """Whether this is the request that reads the grounding text."""
        return self.grounding is not None and bool(self.grounding.request_id == request_id)

    def waits_for_others(self, member: Request) -> bool:
        """Whether the member may only take its sampling token together with others."""
        return len(self.members) > 1 and member is not self.grounding

    def ready(self) -> bool:
        """Whether all members run, each with only its sampling token left."""
        return self.grounding is None and all(
            m.status == RequestStatus.RUNNING and remaining_tokens(m) == 1 for m in self.members
        )

    def lacks_prefill(self, besides: Request | None = None) -> bool:
        """Whether a member that must prefill before the group samples has yet to get memory."""
        return any(
            not is_placed(m) and (m.num_tokens > 1 or m is self.grounding)
            for m in self.members
            if m is not besides
        )

    def joinable(self) -> list[Request]:
        """Members with one token left that wait while all others are ready; else empty.

        Such a member (a guide that is only a BOS or the last prompt token, or a text that a KV
        connector has loaded) has nothing to prefill before its sampling token, so it can only be
        admitted in the step in which its group samples.
        """
        if self.grounding is not None:
            return []
        waiting = [m for m in self.members if m.status != RequestStatus.RUNNING]
        if not waiting or any(remaining_tokens(m) != 1 or not is_admissible(m) for m in waiting):
            return []
        rest_ready = all(remaining_tokens(m) == 1 for m in self.members if m not in waiting)
        return waiting if rest_ready else []


def is_admissible(request: Request) -> bool:
    """Whether a request only waits to be admitted, with no stale output in flight."""
    return bool(request.status in ADMISSIBLE and not request.num_stale_output_tokens)


def is_placed(request: Request) -> bool:
    """Whether a request has KV blocks: it runs, or they are being loaded or have been."""
    return bool(
        request.status in (RequestStatus.RUNNING, RequestStatus.WAITING_FOR_REMOTE_KVS)
        or request.num_computed_tokens > 0
    )


def remaining_tokens(request: Request) -> int:
    """Tokens that a request must process before its next sample; 0: all are in flight."""
    known = request.num_tokens + request.num_output_placeholders
    return int(known - request.num_computed_tokens)
