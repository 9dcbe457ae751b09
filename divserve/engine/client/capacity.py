"""What fits into an engine: rows, and tokens of a prompt and its guides together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.utils.math_utils import cdiv

from divserve.errors import InvalidRequest

__all__ = ["Capacity"]


class Capacity:
    """The sizes of an engine, or of several data-parallel ranks: a request has to fit one of them.

    Args:
        config: its ``VllmConfig``; the ranks have written the size of their KV cache there.
        ranks: number of them.
    """

    def __init__(self, config: Any, ranks: int = 1) -> None:
        self._config, self._ranks = config, ranks

    @property
    def max_rows(self) -> int:
        """Rows that all ranks of the served model's engine run at a time."""
        return self._rows_of_rank() * self._ranks

    def _rows_of_rank(self) -> int:
        return int(self._config.scheduler_config.max_num_seqs)

    @property
    def max_guide_tokens(self) -> int:
        """Longest guide prompt (tokens) that leaves room for one token of answer."""
        config = self._config
        context = int(config.model_config.max_model_len) - 1
        return min(context, self._cache_tokens() - 2)

    def _cache_tokens(self) -> int:
        """Tokens that the whole KV cache of a rank holds at most.

        vLLM's own count is the larger one for models whose windows give back blocks. It is exact
        for prompts of the longest context; shorter ones need more blocks per token, so what does
        not fit by this count does not fit at all. The scheduler counts exactly. vLLM adds up the
        blocks of all ranks; their caches are of one size, or nearly so on GPUs.
        """
        cache = self._config.cache_config
        blocks = (cache.num_gpu_blocks or 1) // self._ranks
        whole = int((blocks - 1) * cache.block_size)
        return max(whole, cache.kv_cache_size_tokens or 0)

    def check(self, prompt_tokens: int, texts: Sequence[int]) -> None:
        """Raises `InvalidRequest` when a prompt and its guides can never run together.

        Args:
            prompt_tokens: length of the prompt.
            texts: lengths of its guides and its grounding text.
        """
        block = int(self._config.cache_config.block_size)
        need = sum(cdiv(n + 1, block) * block for n in (prompt_tokens, *texts))
        if need > self._cache_tokens():
            raise InvalidRequest(
                f"the prompt ({prompt_tokens} tokens) and its guide ({sum(texts)} tokens) do not "
                f"fit in the KV cache together ({self._cache_tokens()} tokens): shorten them, or "
                "start the server with a larger KV cache",
                param="decoding.guide",
                code="context_length_exceeded",
            )
        if 1 + len(texts) > self._rows_of_rank():
            raise InvalidRequest(
                f"this request needs {1 + len(texts)} rows; the server was started with "
                f"--max-num-seqs {self._rows_of_rank()}",
                param="decoding",
            )
