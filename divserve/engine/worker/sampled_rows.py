"""Leaves guide rows out of sampling: they take their primary's token, whatever they would draw.

The rows that are sampled are copied, so it pays where sampling does more with a row than read it
once: penalties, masks, temperatures, top-k and top-p, logprobs. A plain draw over all rows moves
fewer bytes than the copy does, and is left to vLLM (`bench.sampling`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)

from divserve.engine.worker.staging import Staging
from divserve_kernels import ABSENT

__all__ = ["SampledRows", "batch_of", "metadata_of", "of_all_rows", "worth_it_v1", "worth_it_v2"]

T = TypeVar("T")
PENALTIES = (
    "prompt_token_ids", "frequency_penalties", "presence_penalties", "repetition_penalties",
)  # fmt: skip
BUILT_IN: dict[type, str] = {
    MinPLogitsProcessor: "min_p_count",
    LogitBiasLogitsProcessor: "biases",
    MinTokensLogitsProcessor: "min_toks",
}
"""What is empty or 0 while a logits processor of vLLM's own does nothing."""


@dataclass(frozen=True, slots=True)
class SampledRows:
    """The K of R rows that are sampled."""

    host: np.ndarray
    """``[K] int64``."""
    rows: Tensor
    """``[K] int64`` on the device: the same."""
    places: np.ndarray
    """``[R] int64``: the place of each row among the sampled ones; `ABSENT` if it is left out."""
    source: Tensor
    """``[R] int64`` on the device: the place whose token a row gets, its own or its primary's."""

    @classmethod
    def without(
        cls, guides: np.ndarray, primaries: np.ndarray, rows: int, staging: Staging
    ) -> Self:
        """All of ``rows`` rows but the guides ``[N] int64``, which follow ``primaries`` ``[N]``."""
        left = np.ones(rows, np.bool_)
        left[guides] = False
        host = np.flatnonzero(left)
        places = np.full(rows, ABSENT)
        places[host] = np.arange(len(host))
        source = places.copy()
        source[guides] = places[primaries]
        return cls(host, staging.put(host), places, staging.put(source))

    def by_place(self, values: Mapping[int, T]) -> dict[int, T]:
        """What belongs to sampled rows, by their places instead of their rows."""
        places = ((int(self.places[row]), value) for row, value in values.items())
        return {place: value for place, value in places if place != ABSENT}


# Model Runner V1: the sampler gets logits and metadata, both by row.


def worth_it_v1(metadata: Any) -> bool:
    """Whether leaving rows out saves anything, and vLLM's logits processors allow it.

    Args:
        metadata: vLLM's ``SamplingMetadata``.
    """
    if metadata.all_greedy and metadata.no_penalties and metadata.max_num_logprobs is None:
        return False
    holder = metadata.thinking_budget_state_holder
    return (
        metadata.max_num_logprobs != -1
        and not (holder is not None and holder.has_tracked_requests())
        and not any(map(_active, metadata.logitsprocs.all))
    )


def _active(processor: Any) -> bool:
    """Whether a logits processor, whose state is by row of the whole batch, would do anything."""
    state = BUILT_IN.get(type(processor))
    # Nothing is known of a user's own, which may be a subclass of vLLM's or name its state alike.
    return state is None or bool(getattr(processor, state))


def metadata_of(metadata: Any, kept: SampledRows) -> Any:
    """vLLM's ``SamplingMetadata`` of the sampled rows."""

    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.index_select(0, kept.rows)

    def each(values: list[Any] | None) -> list[Any] | None:
        return [values[row] for row in kept.host] if values else values

    def by_place(values: dict[int, Any] | None) -> dict[int, Any] | None:
        return kept.by_place(values) if values else values

    penalties = () if metadata.no_penalties else PENALTIES
    return replace(
        metadata,
        temperature=of(metadata.temperature),
        top_p=of(metadata.top_p),
        top_k=of(metadata.top_k),
        output_token_ids=each(metadata.output_token_ids),
        spec_token_ids=each(metadata.spec_token_ids),
        allowed_token_ids_mask=of(metadata.allowed_token_ids_mask),
        bad_words_token_ids=by_place(metadata.bad_words_token_ids),
        logprob_token_ids=by_place(metadata.logprob_token_ids),
        **{name: of(getattr(metadata, name)) for name in penalties},
    )


# Model Runner V2: all state is by slot, and the batch names the slots of the rows.


def worth_it_v2(sampler: Any, batch: Any) -> bool:
    """Whether leaving rows out saves anything.

    Args:
        sampler: vLLM's sampler.
        batch: vLLM's ``InputBatch``.
    """
    if sampler.return_sampling_mask or batch.num_draft_tokens:
        return False
    slots, states = batch.idx_mapping_np, sampler.sampling_states
    return bool(
        (states.top_k.np[slots] != states.vocab_size).any()
        or (states.top_p.np[slots] != 1).any()
        or sampler.penalties_state.use_penalty[slots].any()
        or sampler.get_logprobs_dims(slots) is not None
    )


def batch_of(batch: Any, kept: SampledRows) -> Any:
    """vLLM's ``InputBatch`` of the sampled rows, as far as the sampler reads it.

    Each row has one logit: the logits of the sampled ones are counted one by one as well.
    """
    count = len(kept.host)
    slots = batch.idx_mapping.index_select(0, kept.rows)
    return replace(
        batch,
        num_reqs=count,
        idx_mapping=slots,
        idx_mapping_np=batch.idx_mapping_np[kept.host],
        expanded_idx_mapping=slots,
        expanded_local_pos=batch.expanded_local_pos[:count],
        logits_indices=batch.logits_indices.index_select(0, kept.rows),
        seq_lens=batch.seq_lens.index_select(0, kept.rows),
        seq_lens_cpu_upper_bound=batch.seq_lens_cpu_upper_bound[kept.host],
        cu_num_logits=batch.cu_num_logits[: count + 1],
        cu_num_logits_np=batch.cu_num_logits_np[: count + 1],
    )


# Both.


def of_all_rows(output: Any, kept: SampledRows) -> Any:
    """vLLM's ``SamplerOutput`` of all rows, from that of the sampled ones."""

    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.index_select(0, kept.source)

    found = {
        name: of(getattr(output, name))
        for name in ("sampled_token_ids", "num_nans", "num_sampled", "num_rejected")
        if hasattr(output, name)
    }
    if (logprobs := output.logprobs_tensors) is not None:
        found["logprobs_tensors"] = LogprobsTensors(*map(of, logprobs[:3]), *logprobs[3:])
    return replace(output, **found)
