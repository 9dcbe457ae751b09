"""Speculative decoding whose drafts cannot be shared by the rows of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from divserve.startup.amateur_drafts import drafts_with_amateur
from divserve.startup.refused.refusal import Refusal, is_recurrent

__all__ = ["DRAFTS"]

MOST = 128
"""`vllm.v1.sample.rejection_sampler.MAX_SPEC_LEN`, which every step with drafts asserts."""
DRAFTERS = ("ngram", "ngram_gpu", "suffix", "custom_class")


def _drafting(name: str, why: str, also: Callable[[Any], bool]) -> Refusal:
    """A mode of the configuration that is refused beside drafts."""
    return Refusal(name, why, lambda c: c.speculative_config is not None and also(c))


DRAFTS = (
    _drafting(
        "--speculative-config with a method other than amateur, ngram and suffix",
        "its drafter reads the hidden states or the cache of one row",
        lambda c: c.speculative_config.method not in DRAFTERS,
    ),
    _drafting(
        "--speculative-config with ngram_gpu and Model Runner V1",
        "it shortens the drafts of each row by itself there; ngram does not",
        lambda c: c.speculative_config.method == "ngram_gpu" and not c.use_v2_model_runner,
    ),
    _drafting(
        "--speculative-config with pipelines, KV transfer or recurrent state",
        "it is not proven that a rejected draft leaves nothing behind there",
        lambda c: (
            c.parallel_config.pipeline_parallel_size > 1
            or c.kv_transfer_config is not None
            or is_recurrent(c.model_config)
        ),
    ),
    _drafting(
        "--speculative-config with the method amateur and tensor or data parallelism, LoRA or "
        "Model Runner V2",
        "the amateur's runs beside the others are not proven there",
        lambda c: (
            drafts_with_amateur(c.speculative_config)
            and (
                c.parallel_config.tensor_parallel_size > 1
                or c.parallel_config.data_parallel_size > 1
                or c.lora_config is not None
                or c.use_v2_model_runner
            )
        ),
    ),
    _drafting(
        "--speculative-config with num_speculative_tokens above 128",
        "vLLM does not verify more at once",
        lambda c: c.speculative_config.num_speculative_tokens > MOST,
    ),
    _drafting(
        "--speculative-config with --logits-processors",
        "vLLM does not support it",
        lambda c: bool(c.model_config.logits_processors),
    ),
)
"""Of ``--speculative-config``."""
