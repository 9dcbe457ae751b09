"""Engine modes, by vLLM's ``VllmConfig``, in which a group cannot be kept in one step."""

from __future__ import annotations

from divserve.startup import ranks
from divserve.startup.refused.drafts import DRAFTS
from divserve.startup.refused.refusal import Refusal
from divserve.startup.refused.transfer import KV_TRANSFER

__all__ = ["CONFIG"]

CONFIG = (
    *DRAFTS,
    *KV_TRANSFER,
    Refusal(
        "--ec-transfer-config",
        "guided requests take no pictures",
        lambda c: c.ec_transfer_config is not None,
    ),
    Refusal(
        "--pipeline-parallel-size above 1 with --async-scheduling and Model Runner V1",
        "vLLM does not support it",
        lambda c: (
            c.parallel_config.pipeline_parallel_size > 1
            and c.scheduler_config.async_scheduling
            and not c.use_v2_model_runner
        ),
    ),
    Refusal(
        "--decode-context-parallel-size above 1",
        "not proven: vLLM's attention on CPU does not return the log-sum-exps that it needs",
        lambda c: c.parallel_config.decode_context_parallel_size > 1,
    ),
    Refusal(
        "--prefill-context-parallel-size above 1",
        "vLLM's CPU back end cannot run it, so it is not proven",
        lambda c: c.parallel_config.prefill_context_parallel_size > 1,
    ),
    Refusal(
        "batch-sharded sampling",
        "the rows of a group may be sampled on different ranks",
        lambda c: getattr(c.parallel_config, "enable_batch_sharded_sampling", False),
    ),
    Refusal(
        "--data-parallel-size above 1 with a mixture of experts on CPU",
        "vLLM's CPU back end lacks all_gatherv, which gathers the ranks' tokens",
        ranks.experts_without_gather,
    ),
    Refusal(
        "--data-parallel-external-lb with a dense model",
        "such ranks share nothing: start servers without data-parallel flags, and balance them",
        ranks.dense_ranks_apart,
    ),
    Refusal(
        "--enable-dbo and --ubatch-size",
        "vLLM's CPU back end cannot run it, so it is not proven",
        lambda c: c.parallel_config.enable_dbo or c.parallel_config.ubatch_size > 1,
    ),
    Refusal(
        "--no-enable-chunked-prefill",
        "a row cannot be held one token short of its prompt's end",
        lambda c: not c.scheduler_config.enable_chunked_prefill,
    ),
    Refusal(
        "--max-num-seqs below 2",
        "a guided request has at least two rows",
        lambda c: c.scheduler_config.max_num_seqs < 2,
    ),
    Refusal(
        "--max-num-batched-tokens below --max-num-seqs",
        "a step could end within a group",
        lambda c: c.scheduler_config.max_num_batched_tokens < c.scheduler_config.max_num_seqs,
    ),
    Refusal(
        "--kv-sharing-fast-prefill",
        "it leaves out the hidden states of prompts",
        lambda c: c.cache_config.kv_sharing_fast_prefill,
    ),
    Refusal(
        "--runner other than generate",
        "such models do not decode",
        lambda c: c.model_config.runner_type != "generate",
    ),
    Refusal(
        "encoder-decoder models",
        "a guide has no encoder input of its own",
        lambda c: c.model_config.is_encoder_decoder,
    ),
)
"""Of vLLM's ``VllmConfig``: modes in which the rows of a group cannot be kept in one step."""
