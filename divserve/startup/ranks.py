"""Data-parallel ranks: how many a command starts, and what is asked of them.

`divserve.startup.refused` says why some of it is refused.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

__all__ = [
    "dense_ranks_apart", "experts_without_gather", "here", "one_rank_and_several", "shared_experts",
]  # fmt: skip


def here(args: Namespace) -> int:
    """Ranks that this command starts: each is a process with a part of the model, or all of it."""
    is_external = args.data_parallel_external_lb or args.data_parallel_rank is not None
    engines = 1 if is_external else args.data_parallel_size_local or args.data_parallel_size
    return int(engines * args.tensor_parallel_size * args.pipeline_parallel_size)


def one_rank_and_several(args: Namespace) -> bool:
    """Whether two ways of sharing ranks between servers are asked for."""
    one = args.data_parallel_external_lb or args.data_parallel_rank is not None
    several = args.data_parallel_hybrid_lb or args.data_parallel_start_rank is not None
    return one and several


def experts_without_gather(config: Any) -> bool:
    """Whether ranks would have to gather tokens where vLLM cannot."""
    if not shared_experts(config) or not _on_cpu(config):
        return False
    from vllm.distributed.device_communicators.base_device_communicator import (
        DeviceCommunicatorBase,
    )
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    return CpuCommunicator.all_gatherv is DeviceCommunicatorBase.all_gatherv


def dense_ranks_apart(config: Any) -> bool:
    """Whether a server would have one of several ranks of a dense model."""
    # vLLM says so itself, but not where it takes --data-parallel-hybrid-lb of one rank for it.
    parallel = config.parallel_config
    several = parallel.data_parallel_size > 1 and parallel.data_parallel_external_lb
    return bool(several and not config.model_config.is_moe)


def shared_experts(config: Any) -> bool:
    """Whether ranks work together in the experts' layers."""
    return bool(config.model_config.is_moe and config.parallel_config.data_parallel_size > 1)


def _on_cpu(config: Any) -> bool:
    return bool(config.device_config.device_type == "cpu")
