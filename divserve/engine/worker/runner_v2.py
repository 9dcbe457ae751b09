"""Hook into model runner V2 (``vllm/v1/worker/gpu/model_runner.py``; vLLM's default on NVIDIA).

`sample` computes the logits, masks them by the grammar and samples; both ends of it are wrapped:
``compute_logits`` guides the raw logits, and the guide row's token is replaced before the runner
broadcasts, copies to the host and writes its per-slot token history.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput

from divserve.engine.models.loader import amateur_logits
from divserve.engine.worker.groups import GroupTable, Plan
from divserve.engine.worker.look_step import LookStep
from divserve.engine.worker.report import Report, attach
from divserve.engine.worker.runner_v1 import follow_copies, looks_of

__all__ = ["install"]


class GuidedRunnerV2:
    """Mixed into the runner's own class by `install`."""

    divserve_groups: GroupTable
    divserve_report: Report | None = None

    def add_requests(self, scheduler_output: SchedulerOutput) -> None:
        """Called once a step; preempted requests come back here as new ones."""
        self.divserve_groups.observe(scheduler_output)
        follow_copies(self, scheduler_output)
        super().add_requests(scheduler_output)  # type: ignore[misc]

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        """Attaches the report of the step to its output."""
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        report, self.divserve_report = self.divserve_report, None
        return output if report is None or output is None else attach(output, report)

    def sample(self, hidden_states: Tensor, input_batch: Any, grammar_output: Any) -> Any:
        """Samples with guided logits; the guide rows get their primaries' tokens."""
        self._read_groundings(hidden_states, input_batch)
        plan = self._plan(input_batch) if len(self.divserve_groups) else None
        if plan is None:
            return super().sample(hidden_states, input_batch, grammar_output)  # type: ignore[misc]
        model: Any = self.model  # type: ignore[attr-defined]
        compute_logits, looks = model.compute_logits, looks_of(self)

        def guided_logits(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            logits: Tensor = compute_logits(hidden_states, *args, **kwargs)
            amateurs = partial(amateur_logits, model, hidden_states)
            guided = self.divserve_groups.guide(plan, logits, amateurs, looks)
            if guided is not None:
                logits, self.divserve_report = guided
            return logits

        model.compute_logits = guided_logits
        own = self._set_temperatures(plan.look, input_batch)
        try:
            sampled = super().sample(hidden_states, input_batch, grammar_output)  # type: ignore[misc]
        finally:
            del model.compute_logits
            if own is not None:
                # Before the next step vLLM copies all of them to the device.
                self.sampler.sampling_states.temperature.np[:] = own  # type: ignore[attr-defined]
        plan.copy_tokens(sampled[0].sampled_token_ids)
        return sampled

    def _set_temperatures(self, look: LookStep | None, input_batch: Any) -> np.ndarray | None:
        """Sets those of the rows that look back; returns all as they were, None if none changed."""
        if look is None or look.temperatures is None:
            return None
        state = self.sampler.sampling_states.temperature  # type: ignore[attr-defined]
        own: np.ndarray = state.np.copy()
        rows, values = look.host_temperatures
        state.np[input_batch.idx_mapping_np[list(rows)]] = values
        # Not by `copy_to_uva`: there is one buffer for each step under way, and this step has taken
        # its own, so that the next one would write into what this one still reads.
        device_rows, device_values = look.temperatures
        slots = input_batch.idx_mapping.index_select(0, device_rows).long()
        state.gpu = state.gpu.index_copy(0, slots, device_values)
        return own

    def _read_groundings(self, hidden_states: Tensor, input_batch: Any) -> None:
        groundings = self.divserve_groups.groundings
        if groundings.reading():
            groundings.read(
                input_batch.req_ids,
                input_batch.query_start_loc_np,
                hidden_states,
                self.model.compute_logits,  # type: ignore[attr-defined]
            )

    def _plan(self, input_batch: Any) -> Plan | None:
        num_rows = len(input_batch.req_ids)
        lengths = input_batch.seq_lens_cpu_upper_bound.numpy()[:num_rows]
        samples = lengths >= input_batch.prefill_len_np[:num_rows]
        return self.divserve_groups.plan(input_batch.req_ids, samples)


def install(runner: Any) -> None:
    """Re-classes a V2 runner so that it guides the rows of groups."""
    cls = type(runner)
    runner.__class__ = type(f"Guided{cls.__name__}", (GuidedRunnerV2, cls), {})
    runner.divserve_groups = GroupTable(runner.model_config.get_vocab_size(), runner.device)
