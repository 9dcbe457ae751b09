"""Speculative contrastive decoding: the amateur beside the served model also drafts.

The scheduler is given placeholders. It decides how many of them a step verifies, and makes room for
that many tokens in the KV cache. At the beginning of the step the amateur runs alone, once for each
draft token, and the placeholders become its most likely tokens; then the forward of all models
verifies them as it verifies other drafts. So what the amateur computes for its drafts goes into
slots that this forward writes again, and takes no slots of its own; and drafts that are not
verified are never made. The time of a step with drafts includes that of making them, so that the
governor (`divserve.engine.scheduler.governor`) weighs both.

A draft is the most likely token, never a drawn one: to verify it as a certain draft is exact for
requests that sample, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from divserve.engine.models.loader import Drafting, drafting_amateur

__all__ = ["PLACEHOLDER", "AmateurDrafter"]

PLACEHOLDER = -1
"""A draft token that is not known yet, as vLLM marks it."""


@dataclass(frozen=True)
class _Table:
    """The KV blocks of the rows that draft, in one KV cache group."""

    groups: list[tuple[Any, list[str]]]
    """vLLM's ``AttentionGroup`` of some of the amateur's layers, and these layers' names."""
    blocks: Tensor
    """``[B, blocks of a row] int32``."""
    block_size: int

    def slots(self, positions: Tensor) -> Tensor:
        """``[N] int64``: where the first N rows write the keys of these positions ``[N] int64``."""
        blocks = self.blocks[: len(positions)].gather(1, (positions // self.block_size)[:, None])
        return blocks[:, 0].long() * self.block_size + positions % self.block_size


class AmateurDrafter:
    """vLLM's drafter of the method ``custom_class``.

    Args:
        vllm_config: of the engine.
    """

    def __init__(self, vllm_config: Any) -> None:
        self._config = vllm_config
        self._most: int = vllm_config.speculative_config.num_speculative_tokens
        self._amateur: Drafting | None = None

    def load_model(self, served: nn.Module) -> None:
        """The amateur is there already, beside the served model."""
        self._amateur = drafting_amateur(served)

    def propose(self, sampled: Sequence[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        """Placeholders for the rows that have taken a token.

        Args:
            sampled: the tokens that each row has taken.
        """
        return [[PLACEHOLDER] * self._most if taken else [] for taken in sampled]

    def fill(
        self,
        runner: Any,
        scheduled: Mapping[str, list[int]],
        primary_of: Callable[[str], str | None],
    ) -> None:
        """Replaces the placeholders of a step in the runner's batch.

        Args:
            runner: vLLM's; its batch is that of the step.
            scheduled: the step's placeholders by request id.
            primary_of: the primary of a guide, whose drafts it takes; None for other requests.
        """
        batch = runner.input_batch
        owners = sorted(
            (name for name in scheduled if primary_of(name) is None),
            key=lambda name: -len(scheduled[name]),
        )
        if not owners:
            return
        rows = np.array([batch.req_id_to_index[name] for name in owners])
        lengths = np.array([len(scheduled[name]) for name in owners])
        made = dict(zip(owners, self._draft(runner, rows, lengths).tolist(), strict=True))
        for name, places in scheduled.items():
            row, drafts = batch.req_id_to_index[name], made[primary_of(name) or name]
            known, count = batch.num_tokens_no_spec[row], len(places)
            batch.token_ids_cpu[row, known : known + count] = drafts[:count]
            # Penalties count the drafts.
            batch.spec_token_ids[row][:] = drafts[:count]

    def _draft(self, runner: Any, rows: np.ndarray, lengths: np.ndarray) -> Tensor:
        """The most likely tokens.

        Args:
            runner: vLLM's.
            rows: ``[B] int64``.
            lengths: ``[B] int64``: how many each row needs; the longest first.

        Returns:
            ``[B, longest] int64`` on the host; 0 beyond a row's length.
        """
        batch, device = runner.input_batch, runner.device
        last = batch.num_tokens_no_spec[rows].astype(np.int64) - 1
        positions = torch.from_numpy(last).to(device)
        tokens = torch.from_numpy(batch.token_ids_cpu[rows, last]).to(device)
        tables = self._tables(runner, rows)
        drafts = torch.zeros((len(rows), int(lengths[0])), dtype=torch.int64, device=device)
        for place in range(int(lengths[0])):
            count = int((lengths > place).sum())
            longest = int(last[:count].max()) + place + 1
            found = self._step(tables, tokens[:count], positions[:count] + place, longest)
            drafts[:count, place] = found
            # Of the type of the runner's ids: compiled models would be compiled again for another.
            tokens = found.int()
        return drafts.cpu()

    def _tables(self, runner: Any, rows: np.ndarray) -> list[_Table]:
        """The blocks of these rows, in each KV cache group with layers of the amateur."""
        layers, found = self._drafting.layers, []
        for place, groups in enumerate(runner.attn_groups):
            own = [(g, [name for name in g.layer_names if name in layers]) for g in groups]
            if own := [(group, names) for group, names in own if names]:
                table = runner.input_batch.block_table[place]
                blocks = torch.from_numpy(table.block_table.np[rows]).to(runner.device)
                found.append(_Table(own, blocks, table.block_size))
        return found

    def _step(
        self, tables: list[_Table], tokens: Tensor, positions: Tensor, longest: int
    ) -> Tensor:
        """The most likely tokens ``[N] int64`` after these.

        Args:
            tables: of the rows; the first N are meant.
            tokens: ``[N] int32``: one of each row.
            positions: ``[N] int64``: theirs.
            longest: tokens of the longest row, these included.
        """
        attention: dict[str, Any] = {}
        slots: dict[str, Tensor] = {}
        for table in tables:
            mapping = table.slots(positions)
            common = _one_token_each(table.blocks, mapping, positions, longest)
            for group, names in table.groups:
                attention |= dict.fromkeys(names, group.build_metadata(common))
                slots |= dict.fromkeys(names, mapping)
        with set_forward_context(
            attention, self._config, num_tokens=len(tokens), slot_mapping=slots
        ):
            return self._drafting.next_tokens(tokens, positions)

    @property
    def _drafting(self) -> Drafting:
        if self._amateur is None:
            raise RuntimeError("the amateur is not loaded")
        return self._amateur


def _one_token_each(
    blocks: Tensor, slots: Tensor, positions: Tensor, longest: int
) -> CommonAttentionMetadata:
    """What vLLM's attention needs to know of rows with one token each.

    Args:
        blocks: ``[B, blocks of a row] int32``; the first N rows are meant.
        slots: ``[N] int64``: where the keys of these tokens are written.
        positions: ``[N] int64``: of the tokens.
        longest: tokens of the longest row.
    """
    count = len(positions)
    starts = torch.arange(count + 1, dtype=torch.int32)
    lengths = (positions + 1).int()
    return CommonAttentionMetadata(
        query_start_loc=starts.to(positions.device),
        query_start_loc_cpu=starts,
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=torch.full((count,), longest, dtype=torch.int32),
        num_reqs=count,
        num_actual_tokens=count,
        max_query_len=1,
        max_seq_len=longest,
        block_table_tensor=blocks[:count],
        slot_mapping=slots,
        positions=positions,
        is_prefilling=torch.zeros(count, dtype=torch.bool),
    )
