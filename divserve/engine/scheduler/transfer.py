"""KV transfer: what a connector may load for the rows of a group, and what becomes of it.

vLLM asks its KV connector for every request that is about to be admitted. A load is either
*synchronous* (the row runs in the same step) or *asynchronous*: the request then waits with its
blocks (``WAITING_FOR_REMOTE_KVS``), and is admitted in a later step. A member with blocks counts as
placed, as if it ran:

- A member that loads all but its last token joins its group, like a one-token guide.
- A synchronous load must leave a held member a token to compute before the held one.
- Nothing is loaded for a member that samples in the step of its admission. (Nor for a grounding
  text, which vLLM sees to: it reads no cache.)
- If a load fails, its whole group starts over without the connector, or ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vllm.v1.request import Request, RequestStatus

from divserve.engine.faults import NOT_LOADED
from divserve.engine.scheduler.alarms import Alarms
from divserve.engine.scheduler.endings import Endings
from divserve.engine.scheduler.group import ADMISSIBLE, is_placed
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Host, Unit

__all__ = ["Transfer"]

Matched = tuple[int | None, bool]
"""A connector's answer: how many tokens beyond the local ones it can load (None: ask again later),
and whether asynchronously."""


class Transfer:
    """The KV connector of a scheduler, as far as groups are concerned; without one it does nothing.

    Args:
        host: the scheduler.
        groups: all groups.
        alarms: requests that wait with blocks that were not loaded.
        endings: is told about groups that fail.
    """

    def __init__(self, host: Host, groups: Groups, alarms: Alarms, endings: Endings) -> None:
        self._host, self._groups = host, groups
        self._alarms, self._endings = alarms, endings
        self._broken: set[str] = set()
        """Requests whose load has failed: they compute their tokens."""
        self.is_on = host.connector is not None
        if self.is_on:
            self._ask: Callable[[Request, int], Matched] = host.connector.get_num_new_matched_tokens
            host.connector.get_num_new_matched_tokens = self.matched

    def __len__(self) -> int:
        return len(self._broken)

    def matched(self, request: Request, local: int) -> Matched:
        """vLLM asks how much of a request the connector can load.

        Args:
            request: about to be admitted.
            local: tokens in the local cache, in whole blocks.
        """
        # Connectors keep an account of who asked, so they are asked even if nothing may be loaded.
        tokens, waits = self._ask(request, local)
        request_id = request.request_id
        group = self._groups.get(request_id)
        if request_id in self._broken or self._alarms.of_probe(request_id) is not None:
            return 0, False
        if group is not None:
            is_held = request_id in self._groups.held
            if group.waits_for_others(request) and not is_held:
                return 0, False
            if is_held and tokens and not waits and local + tokens >= request.num_tokens - 1:
                return 0, False
        # vLLM's example connector counts below a local hit that is longer than its own.
        return (None, False) if tokens is None else (max(0, tokens), waits and tokens > 0)

    def most_of_whole(self, most: int) -> int:
        """Longest member of a group that may be admitted and sampled in one step.

        Longer ones may have to wait for a load.

        Args:
            most: without a connector.
        """
        return min(most, self._host.block_size) if self.is_on else most

    def reserved(self) -> int:
        """Blocks that unfinished prefills and loads have yet to take."""
        return int(self._host._inflight_prefill_reserved_blocks()) if self.is_on else 0

    def coming(self) -> int:
        """Freed blocks that can be used only when the steps in flight have run."""
        return sum(len(blocks) for _, blocks in self._host.deferred_frees) if self.is_on else 0

    def is_loaded(self, request: Request) -> bool:
        """Whether a request has been loaded and waits to be admitted."""
        is_waiting = request.status in ADMISSIBLE and request.num_computed_tokens > 0
        return self.is_on and is_waiting and not self._alarms.waits(request.request_id)

    def is_loading(self, request: Request) -> bool:
        """Whether a request cannot be admitted in this step because of its load."""
        return (
            self.is_on
            and request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
            and request.request_id not in self._host.finished_recving_kv_req_ids
        )

    def waiting_units(self) -> list[Unit]:
        """The units of the loaded requests; empty while any request is being loaded."""
        waiting = [*self._host.kv_holding_waiting] if self.is_on else []
        if any(map(self.is_loading, waiting)):
            return []
        return self._groups.units(filter(self.is_loaded, waiting))

    def line_up(self) -> None:
        """Puts requests that have lost their blocks by a failed load behind those that have some.

        vLLM leaves them where they are, stops there if they do not fit, and goes on reserving
        blocks for them.
        """
        if not self.is_on:
            return
        host = self._host
        host._inflight_prefills.intersection_update(filter(is_placed, [*host._inflight_prefills]))
        lost = [request for request in host.kv_holding_waiting if not is_placed(request)]
        host.kv_holding_waiting.remove_requests(lost)
        for request in reversed(lost):
            host.waiting.prepend_request(request)

    def holds(self) -> bool:
        """Whether requests wait with blocks for or after a load."""
        waiting = self._host.kv_holding_waiting if self.is_on else ()
        return any(not self._alarms.waits(request.request_id) for request in waiting)

    def give_up(self, request: Request) -> None:
        """Frees the blocks of a loaded request, which waits again from its first token on."""
        host = self._host
        host.free_blocks(request)
        request.num_computed_tokens = 0
        host._inflight_prefills.discard(request)
        host.kv_holding_waiting.remove_requests([request])
        host.waiting.prepend_request(request)

    def give_up_loaded(self) -> None:
        """Does so with every loaded request."""
        for request in filter(self.is_loaded, [*self._host.kv_holding_waiting]):
            self.give_up(request)

    def blocks_from(self, invalid: set[int]) -> dict[str, list[int]]:
        """Blocks of the running requests from their first invalid block on, by request id.

        Args:
            invalid: ids of the blocks that could not be loaded. There is one KV cache group.
        """
        found = {}
        for request in self._host.running:
            (ids,) = self._host.kv_cache_manager.get_block_ids(request.request_id)
            first = next((i for i, block in enumerate(ids) if block in invalid), len(ids))
            found[request.request_id] = ids[first:]
        return found

    def start_over(self, failed: Iterable[str], blocks: dict[str, list[int]]) -> None:
        """Running requests whose load has failed start over, and so do their groups.

        vLLM would let them go on from the first bad block. But the next step may already be on its
        way, with a token that comes from it.

        Args:
            failed: their ids.
            blocks: of `blocks_from`.
        """
        host = self._host
        requests = [host.requests[request_id] for request_id in failed]
        host.kv_cache_manager.evict_blocks(
            {block for request in requests for block in blocks[request.request_id]}
        )
        self._broken.update(request.request_id for request in requests)
        for unit in self._groups.units(requests):
            host.preempt(unit, drop_stale=True)

    def fail(self, failed: Iterable[str]) -> list[str]:
        """Notes the groups of requests that fail because their load has; returns their names."""
        groups = filter(None, map(self._groups.get, failed))
        names = [*dict.fromkeys(group.name for group in groups)]
        self._endings.failed.update(dict.fromkeys(names, NOT_LOADED))
        return names

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._broken.discard(request_id)
