"""Engines, or parts of one, without HTTP: ``--headless`` on every host but the head.

As in vLLM's own ``run_headless``, with our scheduler and workers. The host ends with the head, and
the head with each of its hosts (`divserve.startup.hosts`).
"""

from __future__ import annotations

import logging
import os
import signal
from argparse import Namespace
from typing import Any

from divserve.startup import leaving
from divserve.startup.engines import configured
from divserve.startup.hosts import Link

__all__ = ["run", "watch"]

logger = logging.getLogger("vllm.divserve")

STOP_S = 10.0
"""Longest wait for engines to stop; the head has drained them."""
OVERHEAD_S = 15.0
LOST = 1
"""The exit code when an engine of this host has died."""


def run(args: Namespace) -> int:
    """Runs the engines of this host until the head stops, a signal comes or one of them dies.

    Args:
        args: the parsed arguments.

    Returns:
        The exit code: 0 after a signal or the end of the head, else `LOST`.

    Raises:
        StartupError: vLLM or divserve rejects the configuration, or the head has another one.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = configured(engine_args, headless=True)
    args.extras.install(config)
    link = Link.connect(config, args.extras)
    if config.parallel_config.node_rank_within_dp > 0:
        return watch(_Parts(config), link)
    return watch(_engines(config, log_stats=not engine_args.disable_log_stats), link)


def watch(engines: Any, link: Link) -> int:
    """Waits for what ends this host, and stops its engines.

    Args:
        engines: vLLM's manager of their processes, or `_Parts`.
        link: to the head.

    Returns:
        The exit code.
    """
    end = _End()
    end.take_signals()
    link.watch(end.with_head)
    try:
        engines.monitor_engine_liveness()
    except SystemExit:
        logger.info("Headless: stopping")
    finally:
        end.has_begun()
        leaving.LastResort().within(STOP_S + OVERHEAD_S)
        engines.shutdown(timeout=STOP_S)
    return end.code


def _engines(config: Any, log_stats: bool) -> Any:
    """Starts whole engines: the data-parallel ranks of this host."""
    from vllm.utils.network_utils import get_tcp_uri
    from vllm.v1.engine.utils import CoreEngineProcManager
    from vllm.v1.executor import Executor

    parallel = config.parallel_config
    return CoreEngineProcManager(
        local_engine_count=parallel.data_parallel_size_local,
        start_index=parallel.data_parallel_rank,
        local_start_index=0,
        vllm_config=config,
        local_client=False,
        handshake_address=get_tcp_uri(
            parallel.data_parallel_master_ip, parallel.data_parallel_rpc_port
        ),
        executor_class=Executor.get_class(config),
        log_stats=log_stats,
    )


class _Parts:
    """This host's workers of an engine whose scheduler is on the head (``--nnodes``)."""

    def __init__(self, config: Any) -> None:
        from vllm.v1.executor.multiproc_executor import MultiprocExecutor

        self._executor = MultiprocExecutor(config, monitor_workers=False)

    def monitor_engine_liveness(self) -> None:
        """Waits until a worker has died."""
        self._executor.start_worker_monitor(inline=True)

    def shutdown(self, timeout: float) -> None:
        """Ends the workers."""
        del timeout
        self._executor.shutdown()


class _End:
    """What ends this host, and with which exit code."""

    def __init__(self) -> None:
        self.code = LOST
        self._begun = False

    def take_signals(self) -> None:
        """From now on a signal stops the engines; until then it leaves at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def with_head(self) -> None:
        """The head has ended."""
        logger.info("Headless: the head has ended")
        os.kill(os.getpid(), signal.SIGTERM)

    def has_begun(self) -> None:
        """From now on signals change nothing: there is a deadline already."""
        self._begun = True

    def _on_signal(self, *_: object) -> None:
        if not self._begun:
            self._begun, self.code = True, 0
            raise SystemExit
