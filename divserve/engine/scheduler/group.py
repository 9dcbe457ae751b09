"""A group: one client request (the primary) and the rows that the scheduler makes for it.

Guides run in lock-step with the primary, token by token. A grounding text is only read: its request
ends with its prefill, of which the workers keep one vector, and leaves the group.
"""

from __future__ import annotations

import copy
import time

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request, RequestStatus

from divserve.decoding import Spec
from divserve.engine.order import (
    GroupOrder,
    Order,
    ProbeOrder,
    TextOrder,
    row_order_params,
    without_orders,
)

__all__ = [
    "ADMISSIBLE", "GUIDE_SUFFIX", "Group", "probe", "remaining_tokens",
]  # fmt: skip

GUIDE_SUFFIX = "~guide"
GROUNDING_SUFFIX = "~grounding"
PROBE_SUFFIX = "~look"

ADMISSIBLE = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
"""Statuses of requests that wait for nothing but their place."""


class Group:
    """The members of one guided request; the primary comes first."""

    __slots__ = ("arrived", "grounding", "guides", "looks_back", "members", "primary", "waited")

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
        self.arrived = time.monotonic()
        self.waited: float | None = None
        """Seconds until all members were admitted, until the front end has been told."""

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

    def holds(self, member: Request) -> bool:
        """Whether the member must wait for others before it takes its sampling token."""
        return len(self.members) > 1 and member is not self.grounding

    def armed(self) -> bool:
        """True when all guides run beside the primary, each with just its sampling token left."""
        return (
            len(self.guides) > 0
            and self.grounding is None
            and all(
                m.status == RequestStatus.RUNNING and remaining_tokens(m) == 1 for m in self.members
            )
        )

    def lacks_prefill(self, besides: Request | None = None) -> bool:
        """True when a member that must prefill before the group samples waits to be admitted."""
        return any(
            m.status != RequestStatus.RUNNING and (m.num_tokens > 1 or m is self.grounding)
            for m in self.members
            if m is not besides
        )

    def joinable(self) -> list[Request]:
        """Members of one token that wait while all others are armed; empty if not so.

        Such a member (a guide of one BOS or last-prompt token) has nothing to prefill before its
        sampling token, so it can only be admitted in the very step in which the group samples.
        """
        if len(self.guides) == 0 or self.grounding is not None:
            return []
        waiting = [m for m in self.members if m.status != RequestStatus.RUNNING]
        if not waiting or any(
            m.num_tokens != 1 or m.num_stale_output_tokens or m.status not in ADMISSIBLE
            for m in waiting
        ):
            return []
        rest_armed = all(remaining_tokens(m) == 1 for m in self.members if m not in waiting)
        return waiting if rest_armed else []

    @classmethod
    def create(cls, request: Request, order: Order, max_tokens: int) -> Group:
        """Makes the other rows of ``request`` and marks it as the primary.

        The guides never end by themselves: no EOS, no stop ids, no length below the primary's. The
        primary's sampling parameters are copied first because the children of n > 1 share them.

        Args:
            request: the client's request; its sampling parameters are replaced.
            order: what the front end asks for.
            max_tokens: length cap of the primary and its guides.
        """
        primary, spec = request.request_id, order.spec
        params: SamplingParams = copy.copy(request.sampling_params)
        guide_params = SamplingParams(
            # Greedy beside greedy and random beside random keeps the sampler's fast paths.
            temperature=params.temperature,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        names = [f"{primary}{GUIDE_SUFFIX}{i or ''}" for i in range(len(spec.guides))]
        guides = tuple(
            _twin(request, name, ids, guide_params)
            for name, ids in zip(names, spec.guides, strict=True)
        )
        grounding = _grounding(request, spec) if spec.grounding else None
        row_order = GroupOrder(
            program=spec.program,
            guides=tuple(names),
            temperature_program=spec.temperature_program,
            grounded=grounding is not None,
            amateurs=len(spec.amateurs),
            vocab=order.vocab,
            output=order.output,
            look=spec.look,
        )
        if spec.look is not None and spec.look.greedy:
            # Clear steps are greedy whatever the request says; the candidates of an alarm are drawn
            # from all of their distribution, by a generator that greedy requests do not have.
            params = params.clone()
            params.temperature, params.top_p, params.top_k, params.min_p = 1.0, 1.0, 0, 0.0
        params.max_tokens = max_tokens
        params.extra_args = {
            **(without_orders(params.extra_args) or {}),
            **row_order_params(row_order),
        }
        request.sampling_params = params
        request.max_tokens = max_tokens
        return cls(request, guides, grounding, spec.look is not None)


def probe(primary: Request, index: int, token: int, copied: int) -> Request:
    """A request that reads a candidate for the primary's next token, and ends.

    Args:
        primary: whose text so far it starts from.
        index: of the candidate.
        token: its id.
        copied: first position in the block that it gets a copy of.
    """
    params = SamplingParams(
        temperature=primary.sampling_params.temperature,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        extra_args=row_order_params(ProbeOrder(primary.request_id, index, token, copied)),
    )
    name = f"{primary.request_id}{PROBE_SUFFIX}{index}"
    made = _twin(primary, name, [*primary.all_token_ids, token], params, hashed=False)
    # Those of the primary, instead of hashing its whole text once more for every candidate.
    made.block_hashes = list(primary.block_hashes)
    made._block_hasher = primary._block_hasher
    made.update_block_hashes()
    return made


def remaining_tokens(request: Request) -> int:
    """Tokens the request must feed before its next sample; 0: all known ones are in flight."""
    known = request.num_tokens + request.num_output_placeholders
    return int(known - request.num_computed_tokens)


def _grounding(request: Request, spec: Spec) -> Request:
    """A request that reads the grounding text from its first token on, and ends."""
    order = TextOrder(request.request_id, len(spec.grounding), spec.average)
    params = SamplingParams(
        temperature=request.sampling_params.temperature,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        # The distributions of cached tokens are gone.
        skip_reading_prefix_cache=True,
        extra_args=row_order_params(order),
    )
    return _twin(request, request.request_id + GROUNDING_SUFFIX, spec.grounding, params)


def _twin(
    request: Request,
    request_id: str,
    token_ids: list[int],
    params: SamplingParams,
    hashed: bool = True,
) -> Request:
    """A request of our own that goes where ``request`` goes."""
    return Request(
        request_id=request_id,
        prompt_token_ids=token_ids,
        sampling_params=params,
        pooling_params=None,
        client_index=request.client_index,
        arrival_time=request.arrival_time,
        lora_request=request.lora_request,
        cache_salt=request.cache_salt,
        priority=request.priority,
        block_hasher=request._block_hasher if hashed else None,
    )
