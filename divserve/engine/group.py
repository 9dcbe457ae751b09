"""A group: one client request (the primary) and the guide row that the scheduler makes for it."""

from __future__ import annotations

import copy
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request, RequestStatus

from divserve.decoding import Spec

__all__ = ["ADMISSIBLE", "GUIDE_SUFFIX", "PAIR_KEY", "WIRE_KEY", "Group", "remaining_tokens"]

WIRE_KEY = "divserve"
"""Key in ``SamplingParams.extra_args`` (order from the front end) and in ``kv_transfer_params``
(report to the front end)."""
PAIR_KEY = "divserve_pair"
"""Key in the guide's ``extra_args`` that tells the workers of the pair."""
GUIDE_SUFFIX = "~guide"

ADMISSIBLE = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
"""Statuses of requests that wait for nothing but their place."""


class Group:
    """The members of one guided request; the primary comes first."""

    __slots__ = ("guide", "members", "primary")

    def __init__(self, primary: Request, guide: Request) -> None:
        self.primary = primary
        self.guide = guide
        self.members = (primary, guide)

    def running(self) -> int:
        """How many members hold a place in the running list."""
        return sum(m.status == RequestStatus.RUNNING for m in self.members)

    def armed(self) -> bool:
        """True when every member runs and has exactly its sampling token left to feed."""
        return all(
            m.status == RequestStatus.RUNNING and remaining_tokens(m) == 1 for m in self.members
        )

    def lacks_prefill(self) -> bool:
        """True when a member of more than one token still waits to be admitted."""
        return any(m.status != RequestStatus.RUNNING and m.num_tokens > 1 for m in self.members)

    def joinable(self) -> list[Request]:
        """Members of one token that wait while all others are armed; empty if not so.

        Such a member (a guide of one BOS or last-prompt token) has nothing to prefill before its
        sampling token, so it can only be admitted in the very step in which the group samples.
        """
        waiting = [m for m in self.members if m.status != RequestStatus.RUNNING]
        if not waiting or any(
            m.num_tokens != 1 or m.num_stale_output_tokens or m.status not in ADMISSIBLE
            for m in waiting
        ):
            return []
        rest_armed = all(remaining_tokens(m) == 1 for m in self.members if m not in waiting)
        return waiting if rest_armed else []

    @classmethod
    def create(cls, request: Request, spec: Spec, max_tokens: int) -> Group:
        """Makes the guide row of ``request`` and marks both as a pair.

        The guide never ends by itself: no EOS, no stop ids, no length below the primary's. The
        primary's sampling parameters are copied first because the children of n > 1 share them.

        Args:
            request: the client's request; its sampling parameters are replaced.
            spec: its decoding order.
            max_tokens: length cap of both rows.
        """
        guide_id = request.request_id + GUIDE_SUFFIX
        params: SamplingParams = copy.copy(request.sampling_params)
        params.max_tokens = max_tokens
        params.extra_args = _without_order(params.extra_args)
        request.sampling_params = params
        request.max_tokens = max_tokens
        guide = Request(
            request_id=guide_id,
            prompt_token_ids=spec.guide,
            sampling_params=SamplingParams(
                # Greedy beside greedy and random beside random keeps the sampler's fast paths.
                temperature=params.temperature,
                max_tokens=max_tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args={PAIR_KEY: {"primary": request.request_id, "row": list(spec.row)}},
            ),
            pooling_params=None,
            client_index=request.client_index,
            arrival_time=request.arrival_time,
            lora_request=request.lora_request,
            cache_salt=request.cache_salt,
            priority=request.priority,
            block_hasher=request._block_hasher,
        )
        return cls(request, guide)


def remaining_tokens(request: Request) -> int:
    """Tokens the request must feed before its next sample; 0: all known ones are in flight."""
    known = request.num_tokens + request.num_output_placeholders
    return int(known - request.num_computed_tokens)


def _without_order(extra_args: dict[str, Any] | None) -> dict[str, Any] | None:
    return {k: v for k, v in (extra_args or {}).items() if k != WIRE_KEY} or None
