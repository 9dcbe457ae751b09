"""Hook into model runner V1 (``vllm/v1/worker/gpu_model_runner.py``; CPU and, on request, GPU).

Order of a step: forward → raw logits → **guide** → grammar mask → allowed ids, bias, penalties,
temperature, top-k/p, sampling → **guide row takes the primary's token** → bookkeeping, next inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.outputs import SamplerOutput

from divserve.engine.models.hidden_store import store_of
from divserve.engine.worker.amateur_drafts import AmateurDrafter
from divserve.engine.worker.forward import Forward
from divserve.engine.worker.guidance import GuidanceStages
from divserve.engine.worker.look_back import Temperatures
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.report import PendingGuidance, attach
from divserve.engine.worker.sampled_rows import SampledRows, metadata_of, of_all_rows, worth_it_v1

__all__ = ["follow_copies", "install"]


class GuidedRunner:
    """Mixed into the runner's own class by `install`."""

    divserve_stages: GuidanceStages
    divserve_placed: bool = False
    """Whether this step has a layout; the same on all ranks, even where guiding it has failed."""
    divserve_lookup: tuple[int, int] | None = None
    """Fewest and most tokens of a match, if primaries get drafts from `Lookup`."""
    divserve_amateur_drafter: AmateurDrafter | None = None
    """What fills in the drafts of a step, if the amateur makes them."""
    divserve_fewer: tuple[Any, SampledRows | None, Any] = (None, None, None)
    """vLLM's metadata, the sampled rows, and the metadata of these, while both stay the same."""

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        self.divserve_stages.observe(scheduler_output)
        follow_copies(self, scheduler_output)
        found = self._update_batch(scheduler_output)
        if (drafter := self.divserve_amateur_drafter) is not None:
            # Only now are the rows and the blocks those of this step.
            drafts = scheduler_output.scheduled_spec_decode_tokens
            drafter.fill(self, drafts, self.divserve_stages.primary_of)
        return found

    def _update_batch(self, scheduler_output: SchedulerOutput) -> Any:
        if not (handed := self.divserve_stages.handed_over()):
            return super()._update_states(scheduler_output)  # type: ignore[misc]
        batch: Any = self.input_batch  # type: ignore[attr-defined]
        add_request = batch.add_request

        def add_with_output(request: Any) -> Any:
            # vLLM starts new requests without output. Penalties, min_tokens and the length of the
            # prompt would then treat what another engine has decoded as part of the prompt.
            if not request.output_token_ids:
                request.output_token_ids.extend(handed.get(request.req_id, ()))
            return add_request(request)

        batch.add_request = add_with_output
        try:
            return super()._update_states(scheduler_output)  # type: ignore[misc]
        finally:
            del batch.add_request

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        """Guides the raw logits before vLLM does anything else with them."""
        state: Any = self.execute_model_state
        if state is None or state.logits is None:
            return super().sample_tokens(grammar_output)  # type: ignore[misc]
        stages = self.divserve_stages
        model: Any = self.model  # type: ignore[attr-defined]
        stages.read_texts(
            self.input_batch.req_ids,  # type: ignore[attr-defined]
            self.query_start_loc.np,  # type: ignore[attr-defined]
            Forward(model, model.compute_logits, state.hidden_states),
        )
        pending = self._guide(state) if len(stages) else None
        hidden = self._hide_idle_generators()
        try:
            output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        finally:
            self.input_batch.generators.update(hidden)  # type: ignore[attr-defined]
            self.divserve_placed = False
        return output if pending is None else attach(output, pending)

    def _guide(self, state: Any) -> PendingGuidance | None:
        stages, batch = self.divserve_stages, self.input_batch  # type: ignore[attr-defined]
        samples = ~self.discard_request_mask.np[: len(batch.req_ids)]  # type: ignore[attr-defined]
        if not stages.place(batch.req_ids, samples, _drafts(state.spec_decode_metadata)):
            return None
        self.divserve_placed = True
        model: Any = self.model  # type: ignore[attr-defined]
        forward = Forward(model, model.compute_logits, state.sample_hidden_states)
        if (found := stages.guide(state.logits, forward)) is None:
            return None
        logits, pending = found
        self.execute_model_state = state._replace(logits=logits)
        return pending

    def propose_draft_token_ids(
        self, scheduler_output: SchedulerOutput, sampled_token_ids: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Drafts that stay on the device are shared here; of others the scheduler is told.

        Where vLLM's drafter works on the host, it is not asked for guides and probes; with n-gram
        look-up the primaries get drafts of ours.
        """
        if not self.divserve_placed:
            return super().propose_draft_token_ids(  # type: ignore[misc]
                scheduler_output, sampled_token_ids, *args, **kwargs
            )
        stages, lengths = self.divserve_stages, self.divserve_lookup
        sampled, on_host = sampled_token_ids, isinstance(sampled_token_ids, list)
        if on_host:
            sampled = stages.lookup.withheld(sampled_token_ids, primaries=lengths is not None)
        drafts = super().propose_draft_token_ids(  # type: ignore[misc]
            scheduler_output, sampled, *args, **kwargs
        )
        if isinstance(drafts, Tensor):
            stages.copy_tokens(drafts)
        elif lengths is not None:
            batch: Any = self.input_batch  # type: ignore[attr-defined]
            most = scheduler_output.num_spec_tokens_to_schedule
            known = batch.token_ids_cpu, batch.num_tokens_no_spec
            own = stages.lookup.propose(sampled_token_ids, *known, lengths, most)
            for row, tokens in own.items():
                drafts[row] = tokens
        return drafts

    def _hide_idle_generators(self) -> dict[int, Any]:
        """Removes the generators of rows whose sample is discarded (unfinished prefills).

        vLLM would rewind them with ``set_offset``, which CPU generators do not have: any chunked
        prefill of a seeded request would end the engine. If unused, they need no rewinding.
        """
        generators: dict[int, Any] = self.input_batch.generators  # type: ignore[attr-defined]
        if not generators:
            return {}
        idle = self.discard_request_mask.np  # type: ignore[attr-defined]
        return {row: generators.pop(row) for row in list(generators) if idle[row]}

    def _sample(self, logits: Tensor, spec_decode_metadata: Any) -> SamplerOutput:
        if spec_decode_metadata is not None and not any(spec_decode_metadata.num_draft_tokens):
            # vLLM would verify nothing, at some cost; top-k without a single draft is an error.
            spec_decode_metadata = None
        # Also if guiding has failed: draws without a seed share a generator, which must advance by
        # the same number of rows on all ranks, or plain requests would differ from then on.
        if not self.divserve_placed:
            return super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        self.divserve_stages.sampled_from(logits)
        batch: Any = self.input_batch  # type: ignore[attr-defined]
        metadata, own = batch.sampling_metadata, self.divserve_stages.temperatures
        kept = self.divserve_stages.sampled_rows
        given = metadata if own is None else _with_temperatures(metadata, own)
        if kept is not None and worth_it_v1(metadata):
            return self._sample_some(logits, metadata, given, kept)
        batch.sampling_metadata = given
        try:
            output = super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        finally:
            batch.sampling_metadata = metadata
        self.divserve_stages.copy_tokens(output.sampled_token_ids)
        return output

    def _sample_some(
        self, logits: Tensor, metadata: Any, given: Any, kept: SampledRows
    ) -> SamplerOutput:
        """What vLLM's ``_sample`` does without drafts, for the rows that are sampled."""
        batch: Any = self.input_batch  # type: ignore[attr-defined]
        batch.update_async_output_token_ids()
        before, rows, _ = self.divserve_fewer
        if before is not metadata or rows is not kept:
            self.divserve_fewer = (metadata, kept, metadata_of(metadata, kept))
        fewer = self.divserve_fewer[2]
        if given is not metadata:
            temperature = given.temperature.index_select(0, kept.rows)
            fewer = replace(fewer, temperature=temperature, all_random=False)
        if metadata.generators:
            # Those of rows that do not sample are hidden in this step alone.
            fewer = replace(fewer, generators=kept.by_place(metadata.generators))
        some = logits.index_select(0, kept.rows)
        sampler: Any = self.sampler  # type: ignore[attr-defined]
        return of_all_rows(sampler(logits=some, sampling_metadata=fewer), kept)


def _drafts(metadata: Any) -> np.ndarray | None:
    """``[R] int64``: draft tokens of each row; None if no row has any.

    Args:
        metadata: vLLM's ``SpecDecodeMetadata``.
    """
    return None if metadata is None else np.array(metadata.num_draft_tokens, np.int64)


def _with_temperatures(metadata: Any, own: Temperatures) -> Any:
    """vLLM's ``SamplingMetadata`` with the temperatures of some rows replaced."""
    temperature = metadata.temperature.index_copy(0, own.rows, own.values)
    return replace(metadata, temperature=temperature, all_random=False)


def follow_copies(runner: Any, scheduler_output: SchedulerOutput) -> None:
    """Tells the hidden store about the blocks that vLLM copies in this step."""
    copies: Any = scheduler_output.kv_cache_block_copies
    if copies and (store := store_of(runner.model)) is not None:
        store.copied(copies, runner.kv_cache_config.num_blocks)


def _lookup_of(runner: Any) -> tuple[int, int] | None:
    """`GuidedRunner.divserve_lookup` by the configuration; compiles what looks up."""
    config: Any = runner.speculative_config
    if config is None or config.method != "ngram":
        return None
    # numba takes a second to import.
    from divserve.engine.worker.lookup_search import prepare

    lengths, token_ids = runner.input_batch.num_tokens_no_spec, runner.input_batch.token_ids_cpu
    prepare(token_ids, lengths)
    # vLLM asks for drafts of rows without tokens at start-up, which compiles nothing: the first
    # step that drafts would take seconds.
    runner.drafter.propose(config.num_speculative_tokens, [[0]], lengths, token_ids)
    return config.prompt_lookup_min, config.prompt_lookup_max


def install(runner: Any) -> None:
    """Re-classes a V1 runner so that it guides the rows of groups."""
    cls = type(runner)
    runner.__class__ = type(f"Guided{cls.__name__}", (GuidedRunner, cls), {})
    vocab = runner.model_config.get_vocab_size()
    runner.divserve_stages = GuidanceStages(vocab, runner.device, Ranks.of_logits())
    runner.divserve_lookup = _lookup_of(runner)
    drafter = getattr(runner, "drafter", None)
    if isinstance(drafter, AmateurDrafter):
        runner.divserve_amateur_drafter = drafter
