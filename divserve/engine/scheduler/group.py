"""A group: one client request (the primary) and the rows that the scheduler makes for it.

Guides run in lock-step with the primary, token by token. A grounding text is only read: its request
ends with its prefill, of which the workers keep one vector, and leaves the group.
"""

from __future__ import annotations

import time

from vllm.v1.request import Request, RequestStatus

from divserve.engine.order import Order
from divserve.engine.scheduler.members import made_for

__all__ = ["ADMISSIBLE", "BLOCKED", "Group", "is_admissible", "remaining_tokens"]

ADMISSIBLE = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
"""Statuses of requests that wait for nothing but their place."""


BLOCKED = (
    RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR,
    RequestStatus.WAITING_FOR_REMOTE_KVS,
    RequestStatus.WAITING_FOR_STREAMING_REQ,
)
"""Statuses of requests that wait for something else first."""


class Group:
    """The members of one guided request; the primary comes first."""

    __slots__ = (
        "arrived", "grounding", "guides", "looks_back", "members", "primary", "several", "waited",
    )  # fmt: skip

    def __init__(
        self,
        primary: Request,
        guides: tuple[Request, ...],
        grounding: Request | None,
        looks_back: bool = False,
    ) -> None:
        self.looks_back = looks_back
        self.primary = primary
        self.guides = guides
        self.grounding: Request | None = grounding
        """The request that reads the grounding text, until it has."""
        self.members = (primary, *guides, *(() if grounding is None else (grounding,)))
        self.several = len(self.members) > 1
        """Whether it has ever had more than one member."""
        self.arrived = time.monotonic()
        self.waited: float | None = None
        """Seconds until all members were admitted, until the front end has been told."""

    @classmethod
    def create(cls, request: Request, order: Order, max_tokens: int) -> Group:
        """Makes the other rows of ``request``, whose sampling parameters are replaced.

        Args:
            request: the client's request.
            order: what the front end asks for.
            max_tokens: length cap of the primary and its guides.
        """
        guides, grounding = made_for(request, order, max_tokens)
        return cls(request, guides, grounding, order.spec.look is not None)

    @property
    def name(self) -> str:
        """The primary's request id."""
        return str(self.primary.request_id)

    def drop_grounding(self) -> None:
        """The grounding text has been read."""
        self.grounding = None
        self.members = (self.primary, *self.guides)

    def running(self) -> int:
        """How many members hold a place in the running list."""
        return sum(m.status == RequestStatus.RUNNING for m in self.members)

    def reads(self, request_id: str) -> bool:
        """Whether this is the request that reads the grounding text."""
        return self.grounding is not None and bool(self.grounding.request_id == request_id)

    def waits_for_others(self, member: Request) -> bool:
        """Whether the member may take its sampling token only beside others."""
        return len(self.members) > 1 and member is not self.grounding

    def ready(self) -> bool:
        """True when all members run, each with just its sampling token left."""
        return self.grounding is None and all(
            m.status == RequestStatus.RUNNING and remaining_tokens(m) == 1 for m in self.members
        )

    def lacks_prefill(self, besides: Request | None = None) -> bool:
        """True when a member that must prefill before the group samples waits to be admitted."""
        return any(
            m.status != RequestStatus.RUNNING and (m.num_tokens > 1 or m is self.grounding)
            for m in self.members
            if m is not besides
        )

    def joinable(self) -> list[Request]:
        """Members of one token that wait while all others are ready; empty if not so.

        Such a member (a guide of one BOS or last-prompt token) has nothing to prefill before its
        sampling token, so it can only be admitted in the very step in which the group samples.
        """
        if self.grounding is not None:
            return []
        waiting = [m for m in self.members if m.status != RequestStatus.RUNNING]
        if not waiting or any(m.num_tokens != 1 or not is_admissible(m) for m in waiting):
            return []
        rest_ready = all(remaining_tokens(m) == 1 for m in self.members if m not in waiting)
        return waiting if rest_ready else []

    def is_untouched(self) -> bool:
        """Whether all members can be admitted now and none is yet."""
        return all(map(is_admissible, self.members))


def is_admissible(request: Request) -> bool:
    """Whether a request waits for nothing but its place, and nothing of it is on its way."""
    return bool(request.status in ADMISSIBLE and not request.num_stale_output_tokens)


def remaining_tokens(request: Request) -> int:
    """Tokens the request must feed before its next sample; 0: all known ones are in flight."""
    known = request.num_tokens + request.num_output_placeholders
    return int(known - request.num_computed_tokens)
