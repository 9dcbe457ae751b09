"""Hook into model runner V2 (``vllm/v1/worker/gpu/model_runner.py``; vLLM's default on NVIDIA).

`sample` computes the logits, applies the grammar mask and samples. It is wrapped at both ends:
``compute_logits`` guides the raw logits, and the guide rows' tokens are replaced before the runner
broadcasts them, copies them to the host and writes its per-slot token history.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput

from divserve.engine.worker.forward import Forward
from divserve.engine.worker.guidance import GuidanceStages
from divserve.engine.worker.look_back import Temperatures
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.report import PendingGuidance, attach
from divserve.engine.worker.runner_v1 import follow_copies
from divserve.engine.worker.sampled_rows import batch_of, of_all_rows, worth_it_v2

__all__ = ["install"]


class GuidedRunnerV2:
    """Mixed into the runner's own class by `install`."""

    sampler: Any
    rejection_sampler: Any
    divserve_stages: GuidanceStages
    divserve_pending: PendingGuidance | None = None
    divserve_placed: bool = False
    """Whether this step has a layout."""

    def add_requests(self, scheduler_output: SchedulerOutput) -> None:
        """Called once per step; preempted requests come back here as new ones."""
        self.divserve_stages.observe(scheduler_output)
        follow_copies(self, scheduler_output)
        super().add_requests(scheduler_output)  # type: ignore[misc]

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        """Attaches the guidance of the step to its output."""
        self.divserve_placed = False
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        pending, self.divserve_pending = self.divserve_pending, None
        return output if pending is None or output is None else attach(output, pending)

    def sample(self, hidden_states: Tensor, input_batch: Any, grammar_output: Any) -> Any:
        """Samples from guided logits; the guide rows get their primaries' tokens."""
        stages, model = self.divserve_stages, self.model  # type: ignore[attr-defined]
        head = model.compute_logits
        req_ids, starts = input_batch.req_ids, input_batch.query_start_loc_np
        stages.read_texts(req_ids, starts, Forward(model, head, hidden_states))
        drafts = input_batch.num_draft_tokens_per_req
        if not len(stages) or not stages.place(req_ids, _samples(input_batch), drafts):
            return super().sample(hidden_states, input_batch, grammar_output)  # type: ignore[misc]

        def guided_logits(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            logits: Tensor = head(hidden_states, *args, **kwargs)
            found = stages.guide(logits, Forward(model, head, hidden_states))
            if found is not None:
                logits, self.divserve_pending = found
            return logits

        sampler = self.sampler

        def sample_some(logits: Tensor, batch: Any) -> Any:
            kept = stages.sampled_rows
            stages.sampled_from(logits)
            # Also if guiding has failed: FlashInfer's draws share a generator, which must advance
            # by the same number of rows on all ranks, or plain requests would differ from then on.
            if kept is None or not worth_it_v2(sampler, batch):
                return sampler(logits, batch)
            some = logits.index_select(0, kept.rows)
            return of_all_rows(sampler(some, batch_of(batch, kept)), kept)

        rejection = self.rejection_sampler

        def verify(logits: Tensor, *args: Any, **kwargs: Any) -> Any:
            stages.sampled_from(logits)
            return rejection(logits, *args, **kwargs)

        self.divserve_placed = True
        before = self._set_temperatures(stages.temperatures, input_batch)
        model.compute_logits, self.sampler = guided_logits, sample_some
        if rejection is not None:
            self.rejection_sampler = verify
        try:
            sampled = super().sample(hidden_states, input_batch, grammar_output)  # type: ignore[misc]
        finally:
            del model.compute_logits
            self.sampler, self.rejection_sampler = sampler, rejection
            if before is not None:
                # vLLM copies all of them to the device before the next step.
                sampler.sampling_states.temperature.np[:] = before
        output, *counts = sampled
        for of_rows in (output.sampled_token_ids, *counts):
            stages.copy_tokens(of_rows)
        return sampled

    def divserve_share(self, drafts: Tensor) -> Tensor:
        """Gives guides the drafts ``[R, D]`` of their primaries, in place."""
        if self.divserve_placed:
            self.divserve_stages.copy_tokens(drafts)
        return drafts

    def _set_temperatures(self, own: Temperatures | None, input_batch: Any) -> np.ndarray | None:
        """Sets those of rows that look back; returns all previous ones, or None if none change."""
        if own is None:
            return None
        state = self.sampler.sampling_states.temperature
        before: np.ndarray = state.np.copy()
        state.np[input_batch.idx_mapping_np[own.host_rows]] = own.host_values
        # Not with `copy_to_uva`: there is one buffer for each step in flight, and this step has
        # already used its own; another copy would make the next step overwrite a buffer in use.
        slots = input_batch.idx_mapping.index_select(0, own.rows).long()
        state.gpu = state.gpu.index_copy(0, slots, own.values)
        return before


def _samples(input_batch: Any) -> np.ndarray:
    """``[R] bool``: which rows take a token in this step."""
    count = len(input_batch.req_ids)
    lengths: np.ndarray = input_batch.seq_lens_cpu_upper_bound.numpy()[:count]
    samples: np.ndarray = lengths >= input_batch.prefill_len_np[:count]
    return samples


def install(runner: Any) -> None:
    """Re-classes a V2 runner so that it guides the rows of groups."""
    cls = type(runner)
    runner.__class__ = type(f"Guided{cls.__name__}", (GuidedRunnerV2, cls), {})
    vocab = runner.model_config.get_vocab_size()
    runner.divserve_stages = GuidanceStages(vocab, runner.device, Ranks.of_logits())
    if (speculator := getattr(runner, "speculator", None)) is not None:
        propose = speculator.propose
        speculator.propose = lambda *args, **named: runner.divserve_share(propose(*args, **named))
