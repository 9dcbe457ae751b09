"""What does not start: modes of vLLM in which guided decoding would be wrong, each with its reason.

``docs/models.md`` lists these tables, and a test triggers every row.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from divserve.errors import StartupError
from divserve.startup import connectors, ranks

__all__ = ["AMATEUR", "ARGUMENTS", "CONFIG", "LOOK_BACK", "RECURRENT", "Refusal", "refuse"]


@dataclass(frozen=True)
class Refusal:
    """A mode that is refused."""

    name: str
    why: str
    given: Callable[[Any], bool]
    """Whether the mode is asked for."""


def refuse(table: Sequence[Refusal], asked: Any, where: str = " by divserve") -> None:
    """Raises `StartupError` with the name and reason of each refused mode that is asked for.

    Args:
        table: the modes.
        asked: what each ``Refusal.given`` takes.
        where: with or by what they are not supported.
    """
    if found := [f"{mode.name} ({mode.why})" for mode in table if mode.given(asked)]:
        raise StartupError(f"not supported{where}: {', '.join(found)}")


def _several_processes_move_answers(args: Namespace) -> bool:
    return (args.api_server_count or 1) > 1 and args.small is not None


def _rust_front_end(_: Namespace) -> bool:
    return os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0")


def _is_recurrent(model: Any) -> bool:
    """Whether rows have a recurrent state, alone or beside attention."""
    return bool(model.is_hybrid or model.is_attention_free)


def _speculates_with_more(config: Any) -> bool:
    more = (
        config.parallel_config.pipeline_parallel_size > 1
        or config.kv_transfer_config is not None
        or _is_recurrent(config.model_config)
    )
    return config.speculative_config is not None and more


OWN_ENGINE = "it would replace divserve's own"

ARGUMENTS = (
    Refusal(
        "--headless with --api-server-count",
        "the head serves HTTP",
        lambda a: a.headless and a.api_server_count is not None,
    ),
    Refusal(
        "--headless with --small",
        "the small model's engine runs on the head",
        lambda a: a.headless and a.small is not None,
    ),
    Refusal(
        "--distributed-executor-backend ray",
        "vLLM's CPU back end cannot run it, so it is not proven",
        lambda a: a.distributed_executor_backend == "ray",
    ),
    Refusal("--grpc", "that server does not know 'decoding'", lambda a: a.grpc),
    Refusal(
        "--api-server-count above 1 with --small",
        "one process must be the client of both engines between which answers move",
        _several_processes_move_answers,
    ),
    Refusal(
        "--data-parallel-size above 1 with --small",
        "it is not proven that an answer moves between ranks",
        lambda a: a.data_parallel_size > 1 and a.small is not None,
    ),
    Refusal(
        "--data-parallel-rank with --data-parallel-start-rank or --data-parallel-hybrid-lb",
        "a server has either one rank or several",
        ranks.one_rank_and_several,
    ),
    Refusal(
        "--data-parallel-multi-port-external-lb",
        "it starts servers of vLLM's own",
        lambda a: a.data_parallel_multi_port_external_lb,
    ),
    Refusal(
        "--data-parallel-backend ray",
        "it is not proven with engines that are Ray actors",
        lambda a: a.data_parallel_backend == "ray",
    ),
    Refusal(
        "--enable-elastic-ep",
        "it is not proven with ranks that come and go",
        lambda a: a.enable_elastic_ep,
    ),
    Refusal(
        "--enable-fault-tolerance",
        "it is not proven with ranks that come and go",
        lambda a: a.enable_fault_tolerance,
    ),
    Refusal(
        "--distributed-executor-backend external_launcher",
        "every rank would be a server of its own",
        lambda a: a.distributed_executor_backend == "external_launcher",
    ),
    Refusal(
        "--kv-transfer-config or --kv-offloading-size with --small",
        "a connector would take both engines for one",
        lambda a: a.small is not None and bool(a.kv_transfer_config or a.kv_offloading_size),
    ),
    Refusal("--scheduler-cls", OWN_ENGINE, lambda a: a.scheduler_cls is not None),
    Refusal("--worker-cls", OWN_ENGINE, lambda a: a.worker_cls != "auto"),
    Refusal("VLLM_USE_RUST_FRONTEND", "that server does not know 'decoding'", _rust_front_end),
)
"""Of the parsed arguments: server modes that bypass the lock-step engine client."""

DRAFTERS = ("ngram", "ngram_gpu", "suffix", "custom_class")

KV_TRANSFER = (
    Refusal(
        "ExampleConnector",
        "it stores a prompt that is read in chunks before it has been read",
        connectors.gives("ExampleConnector"),
    ),
    Refusal(
        "DecodeBenchConnector",
        "it makes keys and values up",
        connectors.gives("DecodeBenchConnector"),
    ),
    Refusal(
        "ExampleHiddenStatesConnector",
        "it delivers hidden states, not keys and values",
        connectors.gives("ExampleHiddenStatesConnector"),
    ),
    Refusal(
        "MoRIIOConnector",
        "it loads every prompt from an instance that has not read the guide",
        connectors.gives("MoRIIOConnector"),
    ),
    Refusal(
        "LMCacheMPConnector (also --kv-offloading-backend lmcache)",
        "its list of a request's blocks only grows, but a group that starts over gets others",
        connectors.gives("LMCacheMPConnector"),
    ),
    Refusal(
        "HF3FSKVConnector",
        "it plans a load before vLLM has taken its offer, which may be less",
        connectors.gives("HF3FSKVConnector"),
    ),
    Refusal(
        "FlexKVConnectorV1, HiSparseConnector and MooncakeStoreConnector",
        "it is not proven that they load nothing where nothing may be loaded",
        connectors.gives("FlexKVConnectorV1", "HiSparseConnector", "MooncakeStoreConnector"),
    ),
    Refusal(
        "--kv-transfer-config with windows, chunked attention or recurrent state",
        "not proven: there a load brings only what its end needs",
        connectors.several_kinds_of_cache,
    ),
    Refusal(
        "--kv-transfer-config with --enable-lora",
        "not every store tells adapters apart",
        connectors.adapters,
    ),
    Refusal(
        "--kv-transfer-config with pipeline or data parallelism",
        "it is not proven with a connector for each stage or rank",
        connectors.several_ranks,
    ),
)
"""Of ``--kv-transfer-config``, among the following ones."""

CONFIG = (
    Refusal(
        "--speculative-config with a method other than ngram and suffix",
        "its drafter reads the hidden states or the cache of one row",
        lambda c: c.speculative_config is not None and c.speculative_config.method not in DRAFTERS,
    ),
    Refusal(
        "--speculative-config with pipelines, KV transfer or recurrent state",
        "it is not proven that a rejected draft leaves nothing behind there",
        _speculates_with_more,
    ),
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
        lambda c: _is_recurrent(c.model_config),
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
    lambda asked: _is_recurrent(asked.config.model_config),
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
