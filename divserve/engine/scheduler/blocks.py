"""KV blocks: how many exist, how many are free, and how many a step will ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.request import Request

from divserve.engine.scheduler.chunks import Chunk
from divserve.engine.scheduler.group import remaining_tokens

__all__ = ["Blocks", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How the rows of one KV cache group use blocks."""

    size: int
    """Tokens of a block."""
    cap: int | None
    """The most blocks that a row ever holds. Windows and chunks give back the blocks behind them,
    recurrent states those before the last; None: a row keeps all."""
    of_state: int = 0
    """The most new blocks of a row in a step, if they hold recurrent state; else 0."""

    @classmethod
    def of(cls, group: Any, most_steps: int) -> Kind:
        """Reads vLLM's ``SingleTypeKVCacheManager``.

        Args:
            group: the manager of a KV cache group.
            most_steps: steps that are scheduled before the first of them has run, and this one.
        """
        spec, cap = group.kv_cache_spec, group.max_admission_blocks_per_request
        if (mode := getattr(spec, "mamba_cache_mode", None)) is None:
            return cls(group.block_size, cap)
        extra = int(spec.num_speculative_blocks)
        if mode != "align":
            return cls(group.block_size, 1 + extra, 1 + extra)
        extra += int(spec.num_prefill_checkpoint_blocks)
        # Each of these steps may write a state into a new block, from that of the step before. A
        # state in a shared block is copied before it is changed.
        return cls(group.block_size, 1 + most_steps + extra, 2 + extra)

    def held(self, num_tokens: int) -> int:
        """Blocks that a row needs for this many tokens."""
        need = int(cdiv(num_tokens, self.size))
        return need if self.cap is None else min(need, self.cap)

    def most_of_step(self, num_rows: int, budget: int) -> int:
        """An upper bound of the new blocks of a step with so many rows and tokens."""
        if self.of_state:
            return self.of_state * num_rows
        return 2 * num_rows + int(cdiv(budget, self.size))


class Blocks:
    """The KV cache of one engine, counted in blocks.

    Args:
        manager: vLLM's ``KVCacheManager``.
        holds_blocks: whether a waiting request has blocks.
        lookahead: tokens beyond those of a step for which vLLM reserves slots.
        max_model_len: the longest context.
        most_steps: steps that are scheduled before the first of them has run, and this one.
    """

    def __init__(
        self,
        manager: Any,
        holds_blocks: Callable[[Request], bool],
        lookahead: int,
        max_model_len: int,
        most_steps: int,
    ) -> None:
        self._manager = manager
        self.kinds = [
            Kind.of(group, most_steps) for group in manager.coordinator.single_type_managers
        ]
        self._holds_blocks = holds_blocks
        self._lookahead, self._max_model_len = lookahead, max_model_len

    @property
    def watermark(self) -> int:
        """Blocks that vLLM keeps free when it admits a request."""
        return int(self._manager.watermark_blocks)

    def total(self) -> int:
        """Blocks that requests can use at most."""
        return int(self._manager.block_pool.num_gpu_blocks - 1 - self.watermark)

    def free(self) -> int:
        """Blocks that no request holds, including cached ones."""
        return int(self._manager.block_pool.get_num_free_blocks())

    def of_tokens(self, num_tokens: int) -> int:
        """Blocks that one row needs for this many tokens."""
        return sum(kind.held(num_tokens) for kind in self.kinds)

    def missing(self, request: Request) -> int:
        """Blocks that a row needs for all of its tokens beyond those that it has."""
        need = self.of_tokens(request.num_tokens)
        if self._holds_blocks(request):
            managers = self._manager.coordinator.single_type_managers
            need -= sum(len(manager.req_to_blocks[request.request_id]) for manager in managers)
        return max(0, need)

    def cached(self, request: Request, most: int) -> tuple[Any, int, int]:
        """The cached blocks at the start of a request's tokens, at most so many tokens.

        A hit found by vLLM cannot be cut instead: windows, chunks and recurrent states keep only
        the blocks that the end of the hit needs.

        Returns:
            What vLLM's ``get_computed_blocks`` does: the blocks, their number of tokens, and the
            boundary of a longer prefix that some groups lack, or 0.
        """
        found, tokens, more = self._manager.coordinator.find_longest_cache_hit(
            request.block_hashes, most
        )
        return self._manager.create_kv_cache_blocks(found), tokens, more and tokens + more

    def of_entering(self, entering: Sequence[Request]) -> int:
        """Free blocks that vLLM requires to admit all of these requests with one token each."""
        if not entering:
            return 0
        need = sum(
            self.missing(request) if self._holds_blocks(request) else self.of_tokens(1)
            for request in entering
        )
        return need + self.watermark

    def most_of_step(self, num_rows: int, budget: int) -> int:
        """An upper bound of `of_step` that needs no loop over the requests.

        Args:
            num_rows: running rows.
            budget: tokens of the step.
        """
        return sum(kind.most_of_step(num_rows, budget) for kind in self.kinds)

    def of_step(
        self, running: Iterable[Request], held: Iterable[str], budget: int, chunk: Chunk, step: int
    ) -> int:
        """New blocks that vLLM's loop will ask for in this step; may be too high, never too low.

        Args:
            running: requests in the order of the loop.
            held: ids of the requests that stop one token short.
            budget: tokens of the step.
            chunk: how many of them a request gets at most.
            step: number of the step, as vLLM counts them.
        """
        manager, need = self._manager, 0
        for request in running:
            if _is_through(request) or step < request.next_decode_eligible_step:
                # It leaves its share of the budget to those behind it.
                continue
            left = remaining_tokens(request) - (request.request_id in held)
            left += len(request.spec_token_ids)
            tokens = min(left, budget, chunk.at_most)
            if tokens <= 0:
                continue
            budget -= min(tokens, chunk.surely)
            total = request.num_computed_tokens + tokens
            need += manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=min(total + self._lookahead, self._max_model_len),
                new_computed_blocks=manager.empty_kv_cache_blocks.blocks,
                num_encoder_tokens=0,
                total_computed_tokens=request.num_computed_tokens,
                num_local_computed_tokens=request.num_computed_tokens,
                num_tokens_main_model=total,
                prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
            )
        return need


def _is_through(request: Request) -> bool:
    """Whether vLLM's loop skips a request because its last token is in flight."""
    placeholders = request.num_output_placeholders
    least = request.num_computed_tokens + 2 - placeholders
    return bool(placeholders > 0 and least >= request.num_prompt_tokens + request.max_tokens)
