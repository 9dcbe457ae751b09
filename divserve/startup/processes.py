"""Several API processes in front of the engines: ``--api-server-count``.

As in vLLM's own ``run_multi_api_server``: the parent starts the engines (one per data-parallel rank
of this host, ours, with the lock-step scheduler), vLLM's coordinator of several ranks, and the API
processes, which share the listening socket, and watches them all. Each API process is a client of
every rank. It has its own `GuidedClient` and ledger, and its own tickets, because an engine sends
the reports of a request to the process that it came from. Answers that move between two engines
need one process that is the client of both, so ``--small`` is rejected here
(`divserve.startup.refused`).

Metrics: each process writes to a folder that all of them share (prometheus-client's multiprocess
mode), and the process that answers ``/metrics`` adds them up.
"""

from __future__ import annotations

import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing import connection
from typing import Any

from divserve.startup import leaving
from divserve.startup.engines import configured, end_engines
from divserve.startup.hosts import heading
from divserve.startup.packages import naming_what_is_missing

__all__ = ["Worker", "serve_many"]

Worker = Callable[[str, Any, Namespace, dict[str, Any]], Coroutine[Any, Any, int]]
"""Serves in one process: address, socket, arguments, and how to reach the engine."""

CLOSE_S = 10.0
"""Longest wait, after the time to finish requests, for processes to end their streams and close."""
LINGER_MS = 4000
"""Longest wait for a message to be taken, as in vLLM's engines."""
OVERHEAD_S = 15.0
"""Longest time for the processes to be gone after that; vLLM kills them when theirs is up."""


def serve_many(args: Namespace, address: str, sock: Any, worker: Worker) -> None:
    """Runs the engines and the API processes until a signal comes or one of them dies.

    Args:
        args: the parsed arguments.
        address: the socket's address, for people to read.
        sock: shared by all processes.
        worker: run in each of them; a module-level function, because it is pickled.

    Raises:
        StartupError: vLLM or divserve rejects the configuration.
        RuntimeError: a process has died.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.utils import bind_engine_zmq_listeners, launch_core_engines
    from vllm.v1.executor import Executor
    from vllm.v1.metrics.prometheus import setup_multiprocess_prometheus
    from vllm.v1.utils import APIServerProcessManager, wait_for_completion_or_failure

    setup_multiprocess_prometheus()
    stopping = _Stop(passes_on_reload=args.edges.api_key_file is not None)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args._api_process_count = args.api_server_count
    engine_args._api_process_rank = -1
    config = configured(engine_args)
    args.extras.install(config)
    nodes = ExitStack()
    head = nodes.enter_context(heading(config, args.extras))
    listeners = bind_engine_zmq_listeners(config, args.api_server_count)
    log_stats = not engine_args.disable_log_stats
    model = config.model_config
    with (
        naming_what_is_missing(model.model, model.architectures),
        launch_core_engines(
            config, Executor.get_class(config), log_stats, listeners.addresses
        ) as launched,
    ):
        servers = APIServerProcessManager(
            listen_address=address,
            sock=sock,
            args=args,
            num_servers=args.api_server_count,
            input_listeners=listeners.inputs,
            output_listeners=listeners.outputs,
            stats_update_address=launched.addresses.frontend_stats_publish_address,
            target_server_fn=partial(_run, worker),
            tensor_queue=launched.tensor_queue,
        )
        # If an API process fails to start, the engine's start is aborted too.
        launched.watched_frontend_processes = servers.processes
    engines, coordinator = launched.engine_manager, launched.coordinator
    watched = _Engines(engines, launched.addresses.outputs) if engines else None
    last_resort = leaving.LastResort()
    try:
        stopping.take_signals(servers.processes)
        if head is not None:
            head.watch(partial(end_engines, engines))
        wait_for_completion_or_failure(
            api_server_manager=servers, engine_manager=watched, coordinator=coordinator
        )
    finally:
        # After a signal they may finish their requests; without one, a process has died.
        deadline = stopping.deadline(args.edges.drain_timeout)
        last_resort.within((_left(deadline) or 0.0) + OVERHEAD_S)
        with ExitStack() as last_first:
            last_first.push(nodes)
            for processes in (coordinator, engines, servers):
                if processes is not None:
                    last_first.callback(_end, processes, deadline)


class _Engines:
    """Watches the engines for ``wait_for_completion_or_failure``, in place of vLLM's manager.

    vLLM's ends all other ranks first when one dies, and these end their requests as if clients had
    aborted them; and the API processes never hear of an engine that was killed. Here they are told
    in the words of a dying engine, end their requests with its error, and exit.

    Args:
        manager: vLLM's.
        outputs: where the API processes receive the engines' outputs.
    """

    def __init__(self, manager: Any, outputs: Sequence[str]) -> None:
        self.failed_proc_name: str | None = None
        self._processes, self._outputs = manager.processes, outputs

    def monitor_engine_liveness(self) -> None:
        """Waits until an engine dies and the API processes have had time to exit."""
        sentinels = {process.sentinel: process.name for process in self._processes}
        died = connection.wait([*sentinels])
        self._tell()
        self.failed_proc_name = sentinels[died[0]]
        time.sleep(CLOSE_S)

    def _tell(self) -> None:
        import zmq
        from vllm.utils.network_utils import make_zmq_socket
        from vllm.v1.engine.core import EngineCoreProc

        with zmq.Context() as context:
            for address in self._outputs:
                with make_zmq_socket(context, address, zmq.PUSH, linger=LINGER_MS) as socket:
                    socket.send(EngineCoreProc.ENGINE_CORE_DEAD)


class _Stop:
    """Handles the parent's signals: the first one ends the wait, a second one shortens the drain.

    Until the engine runs, a signal ends all processes at once (`divserve.startup.leaving`).

    Args:
        passes_on_reload: whether SIGHUP is passed on to the API processes, which reload their keys.
    """

    def __init__(self, passes_on_reload: bool) -> None:
        self._asked = False
        self._processes: Sequence[Any] = ()
        if passes_on_reload:
            signal.signal(signal.SIGHUP, self._pass_on)

    def take_signals(self, processes: Sequence[Any]) -> None:
        """From now on a signal stops these API processes, then the engine."""
        self._processes = processes
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: object) -> None:
        if self._asked:
            self._pass_on(signal.SIGTERM)
            return
        self._asked = True
        raise SystemExit

    def _pass_on(self, number: int, *_: object) -> None:
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def deadline(self, timeout: float) -> float | None:
        """When the processes must have exited; None if no signal has come."""
        return time.monotonic() + timeout + CLOSE_S if self._asked else None


def _end(processes: Any, deadline: float | None) -> None:
    """Ends the processes of one of vLLM's managers, which kills them when their time is up."""
    processes.shutdown(timeout=_left(deadline))


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def _run(
    worker: Worker, address: str, sock: Any, args: Namespace, client_config: dict[str, Any]
) -> None:
    """The main function of an API process."""
    leaving.on_signals()

    import uvloop
    from vllm.logger import configure_logging
    from vllm.utils.system_utils import decorate_logs, set_process_title

    configure_logging(args.logging_config)
    set_process_title("APIServer", str(client_config["client_index"]))
    decorate_logs()
    raise SystemExit(uvloop.run(worker(address, sock, args, client_config)))
