"""Which requests are admitted, sampled or preempted in a step, decided before vLLM's loops run.

vLLM walks over the running list, then over the queues of waiting requests. So decisions are passed
on through their order: members of ready groups are at the front of the running list, side by side,
and requests to be admitted in this step are at the head of a queue, with tokens set aside for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import Request

from divserve.engine.scheduler.adapters import Adapters
from divserve.engine.scheduler.admission import Admission, Left
from divserve.engine.scheduler.alarms import Alarms
from divserve.engine.scheduler.blocks import Blocks
from divserve.engine.scheduler.chunks import Chunk
from divserve.engine.scheduler.drafts import Drafts
from divserve.engine.scheduler.group import ADMISSIBLE, Group, is_placed, remaining_tokens
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Host
from divserve.engine.scheduler.preflight import Preflight
from divserve.engine.scheduler.transfer import Transfer

__all__ = ["Entry"]


class Entry:
    """Orders vLLM's lists for one step.

    Args:
        host: the scheduler.
        groups: all groups.
        blocks: the KV cache.
        admission: decides which waiting members may be admitted.
        preflight: preempts if blocks run out.
        alarms: requests that wait for their probes.
        drafts: the draft tokens of groups.
        adapters: the LoRA adapters in use.
        transfer: requests that wait for or after a load.
    """

    def __init__(
        self,
        host: Host,
        groups: Groups,
        blocks: Blocks,
        admission: Admission,
        preflight: Preflight,
        alarms: Alarms,
        drafts: Drafts,
        adapters: Adapters,
        transfer: Transfer,
    ) -> None:
        self._host, self._groups, self._blocks = host, groups, blocks
        self._admission, self._preflight, self._alarms = admission, preflight, alarms
        self._drafts, self._adapters, self._transfer = drafts, adapters, transfer
        self.entering: set[str] = set()
        """Requests with a token set aside in this step; always the same set object."""
        self._budget = 0
        self._released: list[Group] = []
        self.looking: list[Request] = []
        """Probes, and requests that take a candidate, to be admitted in this step."""
        self._pause = PauseState.UNPAUSED
        self._lines: tuple[Any, Any] = (None, None)

    def begin(self, throttle_prefills: bool) -> None:
        """Prepares the lists for vLLM's loops.

        Args:
            throttle_prefills: vLLM may postpone prefills in this step (data-parallel ranks make
                them in the same steps). To vLLM a row of one token is no prefill, but its group
                is put off with its last tokens, so nobody joins it.
        """
        host = self._host
        self._pause, self._lines = host._pause_state, (host.waiting, host.kv_holding_waiting)
        self._adapters.begin()
        self._keep_one_partial()
        self._transfer.line_up()
        self._preflight.unstall()
        rows = self._free_rows()
        is_open = host._pause_state == PauseState.UNPAUSED and not throttle_prefills
        others = self._others_hold_blocks()
        joining = self._admission.joining(rows) if is_open and self._may_join(others) else []
        rows -= sum(len(group.members) - group.running() for group in joining)
        looking = self._alarms.enter(rows)
        for group in joining:
            self._groups.release(group)
        self._groups.find_ready()
        if self._preflight.secure(joining, looking):
            for group in joining:
                self._groups.withdraw(group)
            joining, looking, is_open = [], [], False
            if host._pause_state == PauseState.UNPAUSED:
                # As in vLLM: a step that preempted admits nobody.
                host._pause_state = PauseState.PAUSED_NEW
        if self._preflight.must_wait():
            host._pause_state, is_open = PauseState.PAUSED_ALL, False
        self._line_up(joining, looking)
        if host.num_spec_tokens:
            self._drafts.trim(len(self.entering))
            self._drafts.govern()
        whole = self._whole() if is_open and not others else []
        self._released, self.looking = joining + whole, looking
        front = self._groups.front()
        if host.running[: len(front)] != front:
            first = {request.request_id for request in front}
            host.running = front + [r for r in host.running if r.request_id not in first]

    def end(self) -> None:
        """Restores the queues after vLLM's loops, whether or not these have succeeded."""
        host = self._host
        host._pause_state = self._pause
        self.entering.clear()
        for ours, theirs in zip((host.waiting, host.kv_holding_waiting), self._lines, strict=True):
            if ours is not theirs:
                for request in ours:
                    theirs.add_request(request)
        host.waiting, host.kv_holding_waiting = self._lines
        for group in self._released:
            if group.running() < len(group.members):
                # vLLM has not admitted it after all.
                self._groups.withdraw(group)

    def granted(self, tokens: int) -> int:
        """How many of the requested tokens a row may have without those that are set aside."""
        tokens = min(tokens, self._budget)
        self._budget -= tokens
        return tokens

    def _free_rows(self) -> int:
        """How many requests can be admitted beside the running ones."""
        host = self._host
        running = len(host.running) + host.num_waiting_for_streaming_input
        return host.max_num_active_reqs - running

    def _others_hold_blocks(self) -> bool:
        """Whether other requests wait with their blocks; vLLM would admit these first."""
        return any(
            not (self._alarms.waits(request.request_id) or self._transfer.is_loading(request))
            for request in self._host.kv_holding_waiting
        )

    def _may_join(self, others: bool) -> bool:
        """Whether one-token members can be admitted before all others.

        Args:
            others: whether other requests wait with their blocks.
        """
        return self._transfer.is_on or not others

    def _keep_one_partial(self) -> None:
        """Keeps only the oldest partly admitted group: two could wait for each other forever.

        In a pause that waits for running requests it keeps none.
        """
        host, entering = self._host, [*self._groups.entering.values()]
        if host._pause_state == PauseState.PAUSED_NEW:
            for group in entering:
                if any(m.status in ADMISSIBLE for m in group.members):
                    host.preempt(group.members)
        partial = sorted(
            (group for group in entering if group.placed() and group.lacks_prefill()),
            key=lambda group: self._preflight.eviction_key(group.members),
        )
        for group in partial[1:]:
            host.preempt(group.members)
        self._admission.partial = partial[0] if partial else None

    def _line_up(self, joining: list[Group], looking: list[Request]) -> None:
        """Puts requests to be admitted at the head of the queues and sets tokens aside for them."""
        first = [m for g in joining for m in g.members if m.status in ADMISSIBLE]
        if first or looking:
            self.entering.update(m.request_id for m in (*first, *looking))
            self._budget = self._host.max_num_scheduled_tokens - len(self.entering)
        if looking:
            self._alarms.line_up(looking)
        if self._transfer.is_on and first:
            # Some of them have blocks, and others that have blocks must not get before them.
            self._alarms.line_up(first)
        else:
            self._put_first(first or self._overtaken())

    def _put_first(self, members: list[Request]) -> None:
        """Puts waiting members at the head of the queue for this step."""
        host = self._host
        if not members:
            return
        host.waiting.remove_requests(members)
        if host.policy == SchedulingPolicy.PRIORITY:
            # One cannot put them at the head of a priority queue: for this step they are all of it.
            host.waiting = create_request_queue(SchedulingPolicy.FCFS)
        for member in reversed(members):
            host.waiting.prepend_request(member)

    def _overtaken(self) -> list[Request]:
        """Members that the partly admitted group still lacks, if more urgent requests may overtake.

        Its admitted members hold memory until the others are admitted. A request ahead of them that
        needs this memory would wait forever.
        """
        partial = self._admission.partial
        if self._host.policy != SchedulingPolicy.PRIORITY or partial is None:
            return []
        return [m for m in partial.members if m.status in ADMISSIBLE and not is_placed(m)]

    def _whole(self) -> list[Group]:
        """Releases the groups that vLLM will admit as a whole in this step; they sample at once."""
        host = self._host
        by_priority = host.policy == SchedulingPolicy.PRIORITY
        if self._admission.partial is not None or not host.waiting:
            return []
        if self._free_rows() - len(self.entering) < 2 or (by_priority and self.entering):
            return []
        found: list[Group] = []
        for exact in (False, True):
            left = self._left(exact)
            found = self._admission.whole(self._line(), left)
            if found or left.blocks >= 0:
                break
        for group in found:
            if by_priority:
                self._put_first([*group.members])
            self._groups.release(group)
        return found

    def _line(self) -> Iterable[Request]:
        """Waiting requests that are not yet entering; by priority, only the group at the head."""
        host = self._host
        if host.policy != SchedulingPolicy.PRIORITY:
            return (r for r in host.waiting if r.request_id not in self.entering)
        head = self._groups.get(host.waiting.peek_request().request_id)
        return () if head is None else head.members

    def _left(self, exact: bool) -> Left:
        """A lower bound of what running and entering requests leave of this step.

        Args:
            exact: whether to count the blocks of each running request.
        """
        host = self._host
        budget, running = host.max_num_scheduled_tokens, len(host.running)
        entering = len(self.entering)
        prefills = sum(map(remaining_tokens, host._inflight_prefills))
        if exact:
            blocks = self._preflight.left()
        else:
            blocks = self._blocks.free() - self._blocks.most_of_step(running, budget)
        blocks -= self._blocks.watermark + self._blocks.of_tokens(1) * entering
        tokens = budget - entering - running - prefills
        if host.num_spec_tokens:
            tokens -= sum(len(request.spec_token_ids) for request in host.running)
        longest = self._transfer.most_of_whole(Chunk.of(host).whole)
        left = Left(self._free_rows() - entering, tokens, blocks, longest)
        if self._adapters.most:
            left.max_loras, left.loras = self._adapters.most, self._adapters.used()
        return left
