"""What the front end refuses before the scheduler, which counts exactly, can."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from divserve.engine.client.capacity import Capacity
from divserve.errors import InvalidRequest


def sized(tokens: int | None, ranks: int = 1) -> Capacity:
    """Ranks of 9 usable blocks of 32 tokens each; vLLM says how many tokens these hold."""
    cache = SimpleNamespace(num_gpu_blocks=10 * ranks, block_size=32, kv_cache_size_tokens=tokens)
    return Capacity(
        SimpleNamespace(
            cache_config=cache,
            model_config=SimpleNamespace(max_model_len=1024),
            scheduler_config=SimpleNamespace(max_num_seqs=4),
        ),
        ranks,
    )


@pytest.mark.parametrize("tokens", [None, 288], ids=["not known", "without windows"])
def test_a_pair_has_to_fit_into_the_cache(tokens: int | None) -> None:
    sized(tokens).check(150, [100])
    with pytest.raises(InvalidRequest, match=r"do not fit in the KV cache together \(288 tokens\)"):
        sized(tokens).check(150, [130])


def test_windows_hold_more_tokens_than_blocks() -> None:
    """Blocks behind a window are given back, so a longer pair runs in the same memory."""
    sized(2048).check(900, [900])
    assert sized(2048).max_guide_tokens == 1023
    with pytest.raises(InvalidRequest, match="2048 tokens"):
        sized(2048).check(1020, [1020, 100])


def test_a_group_has_to_fit_into_the_rows() -> None:
    with pytest.raises(InvalidRequest, match=r"needs 5 rows.*--max-num-seqs 4"):
        sized(None).check(8, [8] * 4)


def test_a_request_has_to_fit_one_rank() -> None:
    """vLLM adds up the blocks of all ranks."""
    ranks = sized(288, ranks=3)
    ranks.check(150, [100])
    assert ranks.max_guide_tokens == sized(288).max_guide_tokens
    with pytest.raises(InvalidRequest, match=r"do not fit in the KV cache together \(288 tokens\)"):
        ranks.check(150, [130])
    with pytest.raises(InvalidRequest, match=r"needs 5 rows.*--max-num-seqs 4"):
        ranks.check(8, [8] * 4)
    assert ranks.max_rows == 12
