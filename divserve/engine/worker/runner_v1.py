"""Hook into model runner V1 (``vllm/v1/worker/gpu_model_runner.py``; CPU and, on request, GPU).

Order of a step: forward → raw logits → **guide** → grammar mask → allowed ids, bias, penalties,
temperature, top-k/p, sampling → **guide row takes the primary's token** → bookkeeping, next inputs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.outputs import SamplerOutput

from divserve.engine.models.hidden_store import store_of
from divserve.engine.models.loader import amateur_logits
from divserve.engine.worker.groups import GroupTable, Plan
from divserve.engine.worker.plan import Looks
from divserve.engine.worker.report import Report, attach

__all__ = ["follow_copies", "install", "looks_of"]


class GuidedRunner:
    """Mixed into the runner's own class by `install`."""

    divserve_groups: GroupTable
    divserve_plan: Plan | None = None

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        self.divserve_groups.observe(scheduler_output)
        follow_copies(self, scheduler_output)
        if not (handed := self.divserve_groups.handed_over()):
            return super()._update_states(scheduler_output)  # type: ignore[misc]
        batch: Any = self.input_batch  # type: ignore[attr-defined]
        add_request = batch.add_request

        def add_with_output(request: Any) -> Any:
            # vLLM starts new requests without output, so penalties, min_tokens and the length of
            # the prompt would take what another engine has decoded for a part of the prompt.
            if not request.output_token_ids:
                request.output_token_ids.extend(handed.get(request.req_id, ()))
            return add_request(request)

        batch.add_request = add_with_output
        try:
            return super()._update_states(scheduler_output)  # type: ignore[misc]
        finally:
            del batch.add_request

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        """Guides the raw logits before anything else of vLLM's sees them."""
        state: Any = self.execute_model_state
        if state is None or state.logits is None:
            return super().sample_tokens(grammar_output)  # type: ignore[misc]
        self._read_groundings(state)
        report = self._guide(state) if len(self.divserve_groups) else None
        hidden = self._hide_idle_generators()
        try:
            output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        finally:
            self.input_batch.generators.update(hidden)  # type: ignore[attr-defined]
            self.divserve_plan = None
        return output if report is None else attach(output, report)

    def _guide(self, state: Any) -> Report | None:
        batch = self.input_batch  # type: ignore[attr-defined]
        num_rows = len(batch.req_ids)
        samples = ~self.discard_request_mask.np[:num_rows]  # type: ignore[attr-defined]
        plan = self.divserve_groups.plan(batch.req_ids, samples)
        if plan is None:
            return None
        guided = self.divserve_groups.guide(
            plan,
            state.logits,
            partial(amateur_logits, self.model, state.sample_hidden_states),  # type: ignore[attr-defined]
            looks_of(self),
        )
        if guided is None:
            return None
        logits, report = guided
        self.execute_model_state = state._replace(logits=logits)
        self.divserve_plan = plan
        return report

    def _read_groundings(self, state: Any) -> None:
        groundings = self.divserve_groups.groundings
        if groundings.reading():
            groundings.read(
                self.input_batch.req_ids,  # type: ignore[attr-defined]
                self.query_start_loc.np,  # type: ignore[attr-defined]
                state.hidden_states,
                self.model.compute_logits,  # type: ignore[attr-defined]
            )

    def _hide_idle_generators(self) -> dict[int, Any]:
        """Takes away the generators of rows whose sample is thrown away (unfinished prefills).

        vLLM would rewind them with ``set_offset``, which CPU generators do not have: the engine
        would die on any chunked prefill of a seeded request. Unused, they need no rewinding.
        """
        generators: dict[int, Any] = self.input_batch.generators  # type: ignore[attr-defined]
        if not generators:
            return {}
        idle = self.discard_request_mask.np  # type: ignore[attr-defined]
        return {row: generators.pop(row) for row in list(generators) if idle[row]}

    def _sample(self, logits: Tensor, spec_decode_metadata: Any) -> SamplerOutput:
        plan = self.divserve_plan
        if plan is None:
            return super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        batch: Any = self.input_batch  # type: ignore[attr-defined]
        metadata = batch.sampling_metadata
        if plan.look is not None and plan.look.temperatures is not None:
            batch.sampling_metadata = _with_temperatures(metadata, *plan.look.temperatures)
        try:
            output = super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        finally:
            batch.sampling_metadata = metadata
        plan.copy_tokens(output.sampled_token_ids)
        return output


def _with_temperatures(metadata: Any, rows: Tensor, values: Tensor) -> Any:
    """vLLM's ``SamplingMetadata`` with the temperatures of some rows replaced."""
    temperature = metadata.temperature.index_copy(0, rows, values)
    return replace(metadata, temperature=temperature, all_random=False)


def follow_copies(runner: Any, scheduler_output: SchedulerOutput) -> None:
    """Has the store of hidden states follow the blocks that vLLM copies in this step."""
    copies: Any = scheduler_output.kv_cache_block_copies
    if copies and (store := store_of(runner.model)) is not None:
        store.copied(copies, runner.kv_cache_config.num_blocks)


def looks_of(runner: Any) -> Looks | None:
    """What looking back needs of a runner; None without a store."""
    store = store_of(runner.model)
    if store is None:
        return None
    return runner.divserve_groups.looks, store, runner.model.compute_logits


def install(runner: Any) -> None:
    """Re-classes a V1 runner so that it guides the rows of groups."""
    cls = type(runner)
    runner.__class__ = type(f"Guided{cls.__name__}", (GuidedRunner, cls), {})
    runner.divserve_groups = GroupTable(runner.model_config.get_vocab_size(), runner.device)
