"""What is not supported with the extras of the served model."""

from __future__ import annotations

from divserve.startup import connectors, ranks
from divserve.startup.refused.refusal import Refusal, is_recurrent

__all__ = ["AMATEUR", "LOOK_BACK", "RECURRENT"]

LOOK_BACK = (
    Refusal(
        "--speculative-config",
        "an alarm takes a token back, and with it the drafts that follow",
        lambda c: c.speculative_config is not None,
    ),
    Refusal(
        "--kv-transfer-config",
        "hidden states do not travel with the keys and values of every connector",
        connectors.transfers,
    ),
    Refusal(
        "--pipeline-parallel-size above 1",
        "every stage would keep a store, but only the last one has the hidden states",
        lambda c: c.parallel_config.pipeline_parallel_size > 1,
    ),
    Refusal(
        "--tensor-parallel-size above 1",
        "each rank has only a part of the head",
        lambda c: c.parallel_config.tensor_parallel_size > 1,
    ),
    Refusal(
        "--enable-lora",
        "adapters may change the head",
        lambda c: c.lora_config is not None,
    ),
    Refusal(
        "--kv-cache-dtype other than auto",
        "hidden states are stored in the model's own dtype",
        lambda c: c.cache_config.cache_dtype != "auto",
    ),
    Refusal(
        "--no-enable-prefix-caching",
        "probes share the request's blocks",
        lambda c: not c.cache_config.enable_prefix_caching,
    ),
    Refusal(
        "models with sliding-window layers",
        "hidden states would be dropped with the window's blocks",
        lambda c: c.model_config.get_sliding_window() is not None,
    ),
    Refusal(
        "models with chunked attention",
        "hidden states would be dropped with the chunk's blocks",
        lambda c: c.model_config.attention_chunk_size is not None,
    ),
    Refusal(
        "--data-parallel-size above 1 with a mixture of experts",
        "it is not proven for ranks that wait for each other in every step",
        ranks.shared_experts,
    ),
    Refusal(
        "models with recurrent state (hybrid, Mamba)",
        "a probe cannot start from its request's state, which is overwritten in place",
        lambda c: is_recurrent(c.model_config),
    ),
    Refusal(
        "multimodal models",
        "their probes would need the pictures again",
        lambda c: c.model_config.is_multimodal_model,
    ),
)
"""Of vLLM's ``VllmConfig``, with ``--look-back``: hidden states cannot be stored and compared."""

RECURRENT = Refusal(
    "models with recurrent state (hybrid, Mamba)",
    "vLLM chooses the size of blocks for the states of one model",
    lambda asked: is_recurrent(asked.config.model_config),
)
"""The served model or its amateur."""

AMATEUR = (
    Refusal(
        "--kv-transfer-config",
        "stores know only the served model's name, and would mix up what amateurs have computed",
        lambda asked: connectors.transfers(asked.config),
    ),
    Refusal(
        "--data-parallel-size above 1 with a mixture of experts",
        "it is not proven for ranks that wait for each other in every step",
        lambda asked: ranks.shared_experts(asked.config),
    ),
    Refusal(
        "--pipeline-parallel-size above 1",
        "the states of an amateur are not passed from stage to stage",
        lambda asked: asked.config.parallel_config.pipeline_parallel_size > 1,
    ),
    Refusal(
        "multimodal models",
        "vLLM feeds them embeddings, and an amateur reads token ids",
        lambda asked: asked.config.model_config.is_multimodal_model,
    ),
    Refusal(
        "--enable-prompt-embeds",
        "an amateur reads token ids",
        lambda asked: asked.config.model_config.enable_prompt_embeds,
    ),
    Refusal(
        "--enable-lora with drop:N",
        "the adapter would reach only some of the modules that both models share",
        lambda asked: asked.config.lora_config is not None and asked.drops,
    ),
    RECURRENT,
)
"""With ``--amateur``; of an object with vLLM's ``config``, and with ``drops``: an amateur is made
from the served model's own layers."""
