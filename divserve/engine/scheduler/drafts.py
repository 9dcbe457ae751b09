"""Draft tokens of groups: every member reads those of its primary, at the same positions.

A draft token is accepted by the guided distribution before it, so all rows of a group must have
been given the same drafts. vLLM's drafter proposes some for every row; here those of the guides are
replaced. vLLM would then shorten a row's drafts by itself where the budget of the step, the context
or the KV cache ends; so they are shortened before, for all members alike. Those of all requests are
shortened further to what pays (`divserve.engine.scheduler.governor`).
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm.sampling_params import SamplingType
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from divserve.engine.scheduler.chunks import Chunk
from divserve.engine.scheduler.governor import Governor, Proposal
from divserve.engine.scheduler.group import Group
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Host

__all__ = ["Drafts"]


class Drafts:
    """The draft tokens of groups.

    Args:
        host: the scheduler.
        groups: all groups.
        max_model_len: the longest context.
        governor: chooses how many are verified; None: as many as fit.
    """

    def __init__(
        self, host: Host, groups: Groups, max_model_len: int, governor: Governor | None = None
    ) -> None:
        self._host, self._groups, self._max_model_len = host, groups, max_model_len
        self.governor = governor

    def share(self, request_ids: Iterable[str]) -> None:
        """The drafter has proposed tokens for these requests: guides take their primary's."""
        for request_id in request_ids:
            group = self._groups.get(request_id)
            if group is not None and group.name == request_id:
                _set(group, group.primary.spec_token_ids)

    def trim(self, entering: int) -> None:
        """Shortens the drafts of all members alike to what fits into the step.

        Args:
            entering: requests for which a token of the step is set aside.
        """
        host = self._host
        ready = list(self._groups.ready.values())
        left = host.max_num_scheduled_tokens - entering - sum(len(g.members) for g in ready)
        longest = Chunk.of(host).surely - 1
        for group in ready:
            drafts = group.primary.spec_token_ids
            if not drafts and not any(m.spec_token_ids for m in group.guides):
                continue
            read = max(member.num_computed_tokens for member in group.members)
            # A row with drafts samples one token more than it has drafts.
            room = min(longest, self._max_model_len - read - 2, left // len(group.members))
            together = all(m.status == RequestStatus.RUNNING for m in group.members)
            drafts = drafts[: max(0, room if together else 0)]
            left -= len(drafts) * len(group.members)
            _set(group, drafts)

    def govern(self) -> None:
        """Shortens the drafts of all running requests to what pays."""
        running = self._host.running
        if self.governor is None or not any(request.spec_token_ids for request in running):
            return
        units = [(r, self._groups.get(r.request_id)) for r in running if not r.is_prefill_chunk]
        # A group is represented by its primary, and its rows sample only when it is ready.
        units = [
            (request, group)
            for request, group in units
            if group is None
            or (group.name == request.request_id and group.name not in self._groups.held)
        ]
        for request, group in units:
            if request.spec_token_ids and _has_seed(request):
                # How many random numbers a step takes depends on its drafts, and these on time.
                _cut(request, group, 0)
        owners = [(request, group) for request, group in units if request.spec_token_ids]
        proposals = [
            Proposal(request.request_id, len(group.members) if group else 1, request.spec_token_ids)
            for request, group in owners
        ]
        lengths = self.governor.choose(proposals, len(units), len(running))
        for (request, group), length in zip(owners, lengths, strict=True):
            if length < len(request.spec_token_ids):
                _cut(request, group, length)

    def scheduled(self, output: SchedulerOutput) -> None:
        """A step has been scheduled."""
        if self.governor is not None:
            self.governor.scheduled(output)

    def ran(self, output: SchedulerOutput, made: ModelRunnerOutput) -> None:
        """A step has run."""
        if self.governor is not None:
            self.governor.ran(output, made)

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        if self.governor is not None:
            self.governor.forget(request_id)

    def drop(self) -> bool:
        """Drops the drafts of all running requests; returns whether there were any."""
        found = [request for request in self._host.running if request.spec_token_ids]
        for request in found:
            request.spec_token_ids = []
        return bool(found)


def _cut(request: Request, group: Group | None, length: int) -> None:
    drafts = request.spec_token_ids[:length]
    if group is None:
        # A new list: under asynchronous scheduling all requests have the same one.
        request.spec_token_ids = drafts
    else:
        _set(group, drafts)


def _has_seed(request: Request) -> bool:
    """Whether the same request must be given the same tokens again, although it samples."""
    params = request.sampling_params
    return params is not None and params.sampling_type == SamplingType.RANDOM_SEED


def _set(group: Group, drafts: list[int]) -> None:
    for member in (group.primary, *group.guides):
        # A list of its own: vLLM's scheduler changes some in place.
        member.spec_token_ids = list(drafts)
