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

__all__ = ["AMATEUR", "ARGUMENTS", "CONFIG", "LOOK_BACK", "Refusal", "refuse"]


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


def _experts_without_gather(config: Any) -> bool:
    if not _shared_experts(config) or not _on_cpu(config):
        return False
    from vllm.distributed.device_communicators.base_device_communicator import (
        DeviceCommunicatorBase,
    )
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    return CpuCommunicator.all_gatherv is DeviceCommunicatorBase.all_gatherv


def _dense_ranks_apart(config: Any) -> bool:
    # vLLM says so itself, but not where it takes --data-parallel-hybrid-lb of one rank for it.
    parallel = config.parallel_config
    several = parallel.data_parallel_size > 1 and parallel.data_parallel_external_lb
    return bool(several and not config.model_config.is_moe)


def _shared_experts(config: Any) -> bool:
    """Whether ranks work together in the experts' layers."""
    return bool(config.model_config.is_moe and config.parallel_config.data_parallel_size > 1)


def _on_cpu(config: Any) -> bool:
    return bool(config.device_config.device_type == "cpu")


def _one_rank_and_several(args: Namespace) -> bool:
    one = args.data_parallel_external_lb or args.data_parallel_rank is not None
    several = args.data_parallel_hybrid_lb or args.data_parallel_start_rank is not None
    return one and several


def _rust_front_end(_: Namespace) -> bool:
    return os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0")


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
        _one_rank_and_several,
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
    Refusal("--scheduler-cls", OWN_ENGINE, lambda a: a.scheduler_cls is not None),
    Refusal("--worker-cls", OWN_ENGINE, lambda a: a.worker_cls != "auto"),
    Refusal("VLLM_USE_RUST_FRONTEND", "that server does not know 'decoding'", _rust_front_end),
)
"""Of the parsed arguments: server modes that bypass the lock-step engine client."""

CONFIG = (
    Refusal(
        "--speculative-config",
        "guide rows take one token a step",
        lambda c: c.speculative_config is not None,
    ),
    Refusal(
        "--kv-transfer-config",
        "a hit in another cache may leave a held row nothing to compute",
        lambda c: c.kv_transfer_config is not None,
    ),
    Refusal(
        "--ec-transfer-config",
        "guided requests take no pictures",
        lambda c: c.ec_transfer_config is not None,
    ),
    Refusal(
        "--pipeline-parallel-size above 1",
        "it is not proven that a group stays in one batch",
        lambda c: c.parallel_config.pipeline_parallel_size > 1,
    ),
    Refusal(
        "--decode-context-parallel-size above 1",
        "vLLM's CPU back end cannot run it, so it is not proven",
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
        _experts_without_gather,
    ),
    Refusal(
        "--data-parallel-external-lb with a dense model",
        "such ranks share nothing: start servers without data-parallel flags, and balance them",
        _dense_ranks_apart,
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
    Refusal(
        "models with recurrent state (hybrid, Mamba)",
        "their block account is not proven",
        lambda c: c.model_config.is_hybrid or c.model_config.is_attention_free,
    ),
)
"""Of vLLM's ``VllmConfig``: modes in which the rows of a group cannot be kept in one step."""

LOOK_BACK = (
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
        _shared_experts,
    ),
    Refusal(
        "multimodal models",
        "their probes would need the pictures again",
        lambda c: c.model_config.is_multimodal_model,
    ),
)
"""Of vLLM's ``VllmConfig``, with ``--look-back``: hidden states cannot be stored and compared."""

AMATEUR = (
    Refusal(
        "--data-parallel-size above 1 with a mixture of experts",
        "it is not proven for ranks that wait for each other in every step",
        lambda asked: _shared_experts(asked.config),
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
)
"""With ``--amateur``; of an object with vLLM's ``config``, and with ``drops``: an amateur is made
from the served model's own layers."""
