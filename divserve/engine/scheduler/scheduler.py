"""The lock-step scheduler: a guided token is sampled only in a step that holds its whole group.

One subclass of vLLM's scheduler, with its methods in the order in which vLLM calls them in the life
of a request. Each uses the objects that own the state:

=============  =====================================================
`Groups`       all groups, and which of them sample
`Adapters`     which LoRA adapters are in use
`Admission`    which waiting members may be admitted
`Entry`        which requests are admitted, sampled or preempted
`Preflight`    KV blocks for the step; preemption in whole groups
`Drafts`       draft tokens, the same for all rows of a group, as many as pay
`Alarms`       look-back: requests that wait for their probes
`Transfer`     what a KV connector may load for a group
`SwitchRules`  when an answer moves to the other engine
`Reports`      which tokens may be sent, and what is sent with them
`Endings`      ends the groups of members that have ended
`Figures`      what only the scheduler can measure
=============  =====================================================

Members of ready groups take their sampling token in every step; all other members are held one
token short. The workers' report of a guided token travels to the front end with that token. A token
without a report, or from logits with NaN, ends its request with an error.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from divserve.engine.faults import LOST
from divserve.engine.order import Order, set_chosen
from divserve.engine.scheduler.adapters import Adapters
from divserve.engine.scheduler.admission import Admission, Verdict
from divserve.engine.scheduler.alarms import Alarms
from divserve.engine.scheduler.blocks import Blocks
from divserve.engine.scheduler.drafts import Drafts
from divserve.engine.scheduler.endings import Endings
from divserve.engine.scheduler.entry import Entry
from divserve.engine.scheduler.figures import Figures
from divserve.engine.scheduler.governor import OPTION, Governor
from divserve.engine.scheduler.group import Group
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Unit
from divserve.engine.scheduler.parent import end_with_parent
from divserve.engine.scheduler.preflight import Preflight
from divserve.engine.scheduler.reports import Reports
from divserve.engine.scheduler.switch_rules import SwitchRules
from divserve.engine.scheduler.transfer import Transfer

__all__ = ["LOST", "AsyncLockstepScheduler", "LockstepScheduler"]


class LockstepScheduler(Scheduler):
    """For synchronous scheduling."""

    running: list[Request]
    waiting: Any
    kv_holding_waiting: Any
    _pause_state: PauseState
    dynamic_sd_lookup: list[int] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups, self.figures, self.switch_rules = Groups(), Figures(), SwitchRules()
        self.blocks = Blocks(
            self.kv_cache_manager,
            self._holds_kv_blocks,
            self.num_lookahead_tokens,
            self.max_model_len,
            self.vllm_config.max_concurrent_batches,
        )
        self.adapters = Adapters(self, self.groups)
        self.alarms = Alarms(self, self.blocks)
        self.endings = Endings(self, self.groups, self.figures)
        self.transfer = Transfer(self, self.groups, self.alarms, self.endings)
        self.admission = Admission(
            self.groups,
            self.blocks,
            self.adapters,
            self.max_num_active_reqs,
            self.max_model_len,
            self.transfer.reserved,
        )
        self.drafts = Drafts(self, self.groups, self.max_model_len, self._governor())
        self.preflight = Preflight(
            self, self.groups, self.blocks, self.alarms, self.transfer, self.drafts
        )
        self.entry = Entry(
            self,
            self.groups,
            self.blocks,
            self.admission,
            self.preflight,
            self.alarms,
            self.drafts,
            self.adapters,
            self.transfer,
        )
        if self.num_spec_tokens and self.dynamic_sd_lookup is None:
            # Otherwise vLLM gives a row that enters with one token made-up drafts, or rather admits
            # nobody; a row that joins its group has room for one token.
            self.dynamic_sd_lookup = [self.num_spec_tokens] * (self.max_num_active_reqs + 1)
        self.reports = Reports(
            self.groups, self.alarms, self.endings, self.figures, self.switch_rules
        )
        # Kept as attributes because they are looked up for every row in every step.
        self._held, self._entering = self.groups.held, self.entry.entering
        self._updating = False
        end_with_parent()

    def _governor(self) -> Governor | None:
        options = self.vllm_config.additional_config
        wanted = not isinstance(options, dict) or options.get(OPTION, True)
        return Governor() if wanted and self.num_spec_tokens else None

    # A request arrives.

    def add_request(self, request: Request) -> None:
        """Adds a request and the other rows of its group. Must not raise: that ends the engine."""
        order = Order.of(request.sampling_params)
        if order is None or request.request_id in self.requests:
            super().add_request(request)
            return
        if order.output:
            self.switch_rules.resume(request, order)
        max_tokens = min(request.max_tokens, self.admission.longest_output(request, order))
        if why := self.admission.refusal(request, order, max_tokens):
            super().add_request(request)
            self.endings.failed[request.request_id] = why
            return
        group = Group.create(request, order, max_tokens)
        for member in group.members:
            super().add_request(member)
        self.groups.add(group)
        self.figures.add(group)
        if order.spec.switch is not None:
            self.switch_rules.add(request.request_id, order.spec.switch)
            # vLLM calls it for every row of every step, so it is installed only when needed.
            self._update_request_with_output = self._update_and_ask_rules
        if order.output and self.policy == SchedulingPolicy.FCFS:
            # Its client is already reading; the priority policy goes by arrival time anyway.
            self.waiting.remove_requests([request])
            self.waiting.prepend_request(request)

    # A step is made.

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedules one step. Without groups it is vLLM's own."""
        if not len(self.groups):
            self.drafts.govern()
            output = super().schedule(throttle_prefills)
            self.drafts.scheduled(output)
            return output
        self.entry.begin(throttle_prefills)
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self.entry.end()
        self.drafts.scheduled(output)
        admitted = [new.req_id for new in output.scheduled_new_reqs]
        admitted += output.scheduled_cached_reqs.resumed_req_ids
        self.figures.admitted(self.groups.admitted(admitted))
        if chosen := self.alarms.chosen(self.entry.looking, output.num_scheduled_tokens):
            set_chosen(output, chosen)
        self.reports.expect(output)
        return output

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """vLLM asks whether the request at the head of a queue may be admitted."""
        request_id = request.request_id
        if request_id in self.endings.failed:
            return False
        if self.alarms.waits(request_id) or self.alarms.of_probe(request_id) is not None:
            return request_id in self.entry.entering
        if not super()._handle_blocked_waiting_request(request):
            return False
        if why := self.switch_rules.why_refused(request, self.structured_output_manager):
            self.endings.failed[request_id] = why
            return False
        group = self.groups.get(request_id)
        if request_id in self.entry.entering:
            return True
        if group is None:
            return self.adapters.admits((request,))
        verdict = self.admission.verdict(request, group, len(self.running))
        if verdict is Verdict.STOP:
            self._pause_state = PauseState.PAUSED_NEW
        return verdict is Verdict.ADMIT

    def _get_local_prefix_cache_hit(
        self, request: Request, *args: Any, **kwargs: Any
    ) -> tuple[Any, int, int, bool]:
        """vLLM asks for the cached blocks of a request that it is about to admit."""
        alarm = self.alarms.of_probe(request.request_id)
        if alarm is not None:
            held = self.kv_cache_manager.get_blocks(alarm.primary.request_id).blocks
            blocks = KVCacheBlocks(self.alarms.blocks_of(request, held))
            return blocks, request.num_tokens - 1, 0, False
        blocks, cached, boundary, diverged = super()._get_local_prefix_cache_hit(
            request, *args, **kwargs
        )
        group = self.groups.get(request.request_id) if cached else None
        if group is not None:
            most = group.most_cached(request, request.request_id in self.groups.held)
            if cached > most:
                blocks, cached, boundary = self.blocks.cached(request, most)
        return blocks, cached, boundary, diverged

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """vLLM's last chance to change the size of a chunk; 0 skips a running request.

        Called for every row in every step, so vLLM's rule is repeated here instead of called: it
        only rounds chunks for a kind of speculative decoding that is rejected at start-up.
        """
        tokens = max(0, num_new_tokens)
        if request.request_id in self._held:
            known = request.num_tokens + request.num_output_placeholders
            tokens = max(0, min(tokens, known - num_computed_tokens - 1))
        if self._entering and request.request_id not in self._entering:
            tokens = self.entry.granted(tokens)
        return tokens

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """vLLM preempts a request, which will start over from its prompt."""
        self.alarms.call_off(request.request_id)
        super()._preempt_request(request, *args, **kwargs)
        if (group := self.groups.get(request.request_id)) is not None:
            self.groups.withdraw(group)

    # The step has run.

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """vLLM's update; guide rows have no output, and primaries' outputs carry statistics."""
        self.drafts.ran(scheduler_output, model_runner_output)
        alarmed = self.reports.read(scheduler_output, model_runner_output)
        if self.endings.failed:
            # A set in vLLM 0.32, a dict from 0.33 on.
            self.grammar_compile_error_reqs.update(dict.fromkeys(self.endings.failed))
        self._updating = True
        try:
            outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
                scheduler_output, model_runner_output
            )
        finally:
            self._updating = False
        if len(self.groups) or self.endings.failed:
            for step in outputs.values():
                step.outputs = self.reports.put_on(step.outputs)
        if alarmed:
            # A request that started over may have left probes with the ids that new ones get.
            self.alarms.end_unwanted()
        for request, candidates in alarmed:
            self.alarms.wait(request, candidates)
        self._settle(outputs)
        return outputs

    def _update_and_ask_rules(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """vLLM appends a request's tokens and asks whether it ends; a switch also ends it."""
        found = self.reports.statistics.get(request.request_id, [])
        count = self.switch_rules.observe(request.request_id, found[: len(new_token_ids)])
        if count is not None:
            # The other model goes on behind this token.
            del new_token_ids[count:]
        taken, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if count is not None and not stopped:
            self.switch_rules.switch(request.request_id)
            request.status = RequestStatus.FINISHED_STOPPED
            stopped = True
        return taken, stopped

    def make_spec_decoding_stats(self, stats: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM counts a request's drafts; those of a guide are its primary's."""
        group = self.groups.get(kwargs["request_id"])
        if group is not None and group.name != kwargs["request_id"]:
            return stats
        return super().make_spec_decoding_stats(stats, *args, **kwargs)

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """vLLM notes the drafts for the next step, as far as the primaries' grammars accept."""
        super().update_draft_token_ids(draft_token_ids)
        if len(self.groups):
            self.drafts.share(draft_token_ids.req_ids)

    def _handle_invalid_blocks(
        self, invalid_block_ids: set[int], num_scheduled_tokens: dict[str, int]
    ) -> set[str]:
        """Blocks could not be loaded; vLLM gives the running requests, or all that are to end."""
        one = len(self.kv_cache_config.kv_cache_groups) == 1
        blocks = self.transfer.blocks_from(invalid_block_ids) if one else {}
        failed: set[str] = super()._handle_invalid_blocks(invalid_block_ids, num_scheduled_tokens)
        if self.recompute_kv_load_failures:
            self.transfer.start_over(failed, blocks)
        else:
            self._fail_groups(failed)
        return failed

    def _handle_failed_recving(self, failed_req_ids: set[str]) -> set[str]:
        """Requests could not be loaded; vLLM gives those that are to end."""
        failed: set[str] = super()._handle_failed_recving(failed_req_ids)
        self._fail_groups(failed)
        return failed

    def _fail_groups(self, failed: set[str]) -> None:
        """Ends the groups of these requests in this update."""
        # A set in vLLM 0.32, a dict from 0.33 on.
        self.grammar_compile_error_reqs.update(dict.fromkeys(self.transfer.fail(failed)))

    # A request ends.

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """vLLM frees the resources of a request that has ended."""
        request_id = request.request_id
        self.alarms.call_off(request_id)
        self.switch_rules.forget(request_id)
        self.drafts.forget(request_id)
        self.transfer.forget(request_id)
        if not self.switch_rules:
            self.__dict__.pop("_update_request_with_output", None)
        is_ours = self._is_ours(request)
        if (group := self.groups.get(request_id)) is not None:
            self.endings.note(request, group)
        freed = super()._free_request(request, *args, **kwargs)
        if is_ours and self.finished_req_ids_dict is not None:
            # The front end does not know it.
            self.finished_req_ids_dict[request.client_index].discard(request_id)
        return freed

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Ends requests from outside; a group ends as a whole, and only its primary is returned."""
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        wanted = list(self.requests if request_ids is None else request_ids)
        finished: list[Request] = super().finish_requests(wanted, finished_status)
        theirs = [request for request in finished if not self._is_ours(request)]
        if not self._updating:
            for request_id in wanted:
                self.endings.failed.pop(request_id, None)
            self._settle(None)
        return theirs

    def _is_ours(self, request: Request) -> bool:
        """Whether the scheduler itself has made a request."""
        group = self.groups.get(request.request_id)
        if group is not None:
            return group.primary is not request
        return self.alarms.of_probe(request.request_id) is not None

    def _settle(self, outputs: dict[int, EngineCoreOutputs] | None) -> None:
        self.alarms.end_unwanted()
        self.endings.settle(outputs)

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """vLLM's own only preempts running requests, so first frees the blocks of waiting ones."""
        if reset_running_requests:
            self.alarms.give_up_waiting()
            self.transfer.give_up_loaded()
        return bool(super().reset_prefix_cache(reset_running_requests, reset_connector))

    # What the objects use (`Host`).

    def add_row(self, request: Request) -> None:
        """Adds a request of our own as vLLM does."""
        super().add_request(request)

    def end_rows(self, request_ids: Iterable[str], status: RequestStatus) -> None:
        """Ends requests as vLLM ends those that a client aborts."""
        if names := list(request_ids):
            super().finish_requests(names, status)

    def preempt(self, unit: Unit, drop_stale: bool = False) -> None:
        """Takes the memory of all members of a unit, but for what is being loaded."""
        now, drop = time.monotonic(), drop_stale or self.requires_kv_delivery
        for member in reversed(tuple(unit)):
            if member.status == RequestStatus.RUNNING:
                self.running.remove(member)
                self._preempt_request(member, now, drop_stale_output=drop)
            elif self.transfer.is_loaded(member):
                self.transfer.give_up(member)

    def free_blocks(self, request: Request) -> None:
        """Frees the KV blocks of a request that waits with them."""
        self._free_request_blocks(request)


class AsyncLockstepScheduler(LockstepScheduler, AsyncScheduler):
    """For asynchronous scheduling (one step scheduled while the last still runs)."""
