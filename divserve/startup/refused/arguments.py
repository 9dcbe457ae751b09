"""Server modes, by the parsed arguments, that bypass the lock-step engine client."""

from __future__ import annotations

import os
from argparse import Namespace

from divserve.startup import ranks
from divserve.startup.refused.refusal import Refusal

__all__ = ["ARGUMENTS"]


def _several_processes_move_answers(args: Namespace) -> bool:
    return (args.api_server_count or 1) > 1 and args.small is not None


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
