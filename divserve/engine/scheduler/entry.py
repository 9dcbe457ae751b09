"""Who enters, samples and is preempted in a step, decided before vLLM's own loops run.

vLLM walks over the running list, then over the lines of those that wait. So what is decided here is
said by their order: the members of ready groups stand at the front of the running list, side by
side, and those that enter in this step at the head of a line, with tokens set aside for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import Request

from divserve.engine.scheduler.admission import Admission, Left
from divserve.engine.scheduler.alarms import Alarms
from divserve.engine.scheduler.blocks import Blocks
from divserve.engine.scheduler.group import ADMISSIBLE, Group, remaining_tokens
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Host
from divserve.engine.scheduler.preflight import Preflight

__all__ = ["Entry"]


class Entry:
    """The order of one step.

    Args:
        host: the scheduler.
        groups: all groups.
        blocks: the KV cache.
        admission: which of those that wait may come in.
        preflight: preempts where blocks run out.
        alarms: requests that wait for their probes.
    """

    def __init__(
        self,
        host: Host,
        groups: Groups,
        blocks: Blocks,
        admission: Admission,
        preflight: Preflight,
        alarms: Alarms,
    ) -> None:
        self._host, self._groups, self._blocks = host, groups, blocks
        self._admission, self._preflight, self._alarms = admission, preflight, alarms
        self._entering: set[str] = set()
        self._budget = 0
        self._released: list[Group] = []
        self.looking: list[Request] = []
        """Probes, and requests that take a candidate, that enter in this step."""
        self._pause = PauseState.UNPAUSED
        self._lines: tuple[Any, Any] = (None, None)

    def begin(self, throttle_prefills: bool) -> None:
        """Prepares the lists for vLLM's loops.

        Args:
            throttle_prefills: vLLM may put prefills off in this step.
        """
        host = self._host
        self._pause, self._lines = host._pause_state, (host.waiting, host.kv_holding_waiting)
        self._keep_one_partial()
        rows = self._free_rows()
        is_open = host._pause_state == PauseState.UNPAUSED and not self._others_hold_blocks()
        joining = self._admission.joining(rows) if is_open else []
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
        self._line_up(joining, looking)
        whole = self._whole() if is_open and not throttle_prefills else []
        self._released, self.looking = joining + whole, looking
        front = self._groups.front()
        if host.running[: len(front)] != front:
            first = {request.request_id for request in front}
            host.running = front + [r for r in host.running if r.request_id not in first]

    def end(self) -> None:
        """Puts the lines back after vLLM's loops, whatever has become of them."""
        host = self._host
        host._pause_state, self._entering = self._pause, set()
        for ours, theirs in zip((host.waiting, host.kv_holding_waiting), self._lines, strict=True):
            if ours is not theirs:
                for request in ours:
                    theirs.add_request(request)
        host.waiting, host.kv_holding_waiting = self._lines
        for group in self._released:
            if group.running() < len(group.members):
                # vLLM has not admitted it after all.
                self._groups.withdraw(group)

    def is_entering(self, request_id: str) -> bool:
        """Whether a place has been set aside for a request in this step."""
        return request_id in self._entering

    def granted(self, request_id: str, tokens: int) -> int:
        """How many of so many tokens a row may have beside those that are set aside."""
        if self._entering and request_id not in self._entering:
            tokens = min(tokens, self._budget)
            self._budget -= tokens
        return tokens

    def _free_rows(self) -> int:
        """How many requests can be admitted beside those that run."""
        host = self._host
        running = len(host.running) + host.num_waiting_for_streaming_input
        return host.max_num_active_reqs - running

    def _others_hold_blocks(self) -> bool:
        """Whether requests that are not ours wait with their blocks: they would come in first."""
        holding = self._host.kv_holding_waiting
        return any(not self._alarms.waits(request.request_id) for request in holding)

    def _keep_one_partial(self) -> None:
        """Keeps the oldest partly admitted group; two could wait for each other for ever.

        In a pause that waits for what runs it keeps none.
        """
        host, entering = self._host, [*self._groups.entering.values()]
        if host._pause_state == PauseState.PAUSED_NEW:
            for group in entering:
                if any(m.status in ADMISSIBLE for m in group.members):
                    host.preempt(group.members)
        partial = sorted(
            (group for group in entering if group.running() and group.lacks_prefill()),
            key=lambda group: self._preflight.eviction_key(group.members),
        )
        for group in partial[1:]:
            host.preempt(group.members)
        self._admission.partial = partial[0] if partial else None

    def _line_up(self, joining: list[Group], looking: list[Request]) -> None:
        """Puts those that enter at the heads of the lines, and sets tokens aside for them."""
        first = [m for g in joining for m in g.members if m.status in ADMISSIBLE]
        if first or looking:
            self._entering = {m.request_id for m in (*first, *looking)}
            self._budget = self._host.max_num_scheduled_tokens - len(self._entering)
        if looking:
            self._alarms.line_up(looking)
        self._put_first(first or self._overtaken())

    def _put_first(self, members: list[Request]) -> None:
        """Puts waiting members at the head of the line for this step."""
        host = self._host
        if not members:
            return
        host.waiting.remove_requests(members)
        if host.policy == SchedulingPolicy.PRIORITY:
            # A priority queue has no head to put them at: for this step they are the whole line.
            host.waiting = create_request_queue(SchedulingPolicy.FCFS)
        for member in reversed(members):
            host.waiting.prepend_request(member)

    def _overtaken(self) -> list[Request]:
        """Members that the half-admitted group still lacks, if more urgent requests may overtake.

        The admitted ones hold memory until the others are in; a request in front of them that needs
        this memory would wait for ever.
        """
        partial = self._admission.partial
        if self._host.policy != SchedulingPolicy.PRIORITY or partial is None:
            return []
        return [m for m in partial.members if m.status in ADMISSIBLE]

    def _whole(self) -> list[Group]:
        """Releases the groups that vLLM will admit as a whole in this step; they sample at once."""
        host = self._host
        by_priority = host.policy == SchedulingPolicy.PRIORITY
        if self._admission.partial is not None or not host.waiting:
            return []
        if self._free_rows() - len(self._entering) < 2 or (by_priority and self._entering):
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
        """Those that wait behind the ones that enter; by priority only the group at the head."""
        host = self._host
        if host.policy != SchedulingPolicy.PRIORITY:
            return (r for r in host.waiting if r.request_id not in self._entering)
        head = self._groups.get(host.waiting.peek_request().request_id)
        return () if head is None else head.members

    def _left(self, exact: bool) -> Left:
        """What running requests and those that enter leave of this step; at least this much.

        Args:
            exact: counts the blocks of each running request.
        """
        host = self._host
        budget, running = host.max_num_scheduled_tokens, len(host.running)
        entering = len(self._entering)
        prefills = sum(map(remaining_tokens, host._inflight_prefills))
        if exact:
            blocks = self._preflight.left()
        else:
            blocks = self._blocks.free() - self._blocks.most_of_step(running, budget)
        blocks -= self._blocks.watermark + self._blocks.of_tokens(1) * entering
        left = Left(self._free_rows() - entering, budget - entering - running - prefills, blocks)
        if host.lora_config:
            left.max_loras = host.lora_config.max_loras
            left.loras = {r.lora_request.lora_int_id for r in host.running if r.lora_request}
        return left
