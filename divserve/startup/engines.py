"""Starts the engines: vLLM's, with the lock-step scheduler and the guided workers inside."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

from divserve.engine.client.watchdog import watching
from divserve.errors import StartupError, one_line
from divserve.startup import checks, cpu, leaving
from divserve.startup.extras import Extras
from divserve.startup.hosts import heading
from divserve.startup.packages import check_packages, naming_what_is_missing

__all__ = ["configured", "end_engines", "guided_engine", "install"]


def install(config: Any) -> None:
    """Puts the lock-step scheduler and the guided worker into a resolved ``VllmConfig``.

    Raises:
        StartupError: a mode of the configuration is not supported.
    """
    checks.check_config(config)

    from divserve.engine.scheduler import scheduler
    from divserve.engine.worker import worker

    asynchronous = config.scheduler_config.async_scheduling
    config.scheduler_config.scheduler_cls = (
        scheduler.AsyncLockstepScheduler if asynchronous else scheduler.LockstepScheduler
    )
    guided = {
        "vllm.v1.worker.cpu_worker.CPUWorker": worker.GuidedCPUWorker,
        "vllm.v1.worker.gpu_worker.Worker": worker.GuidedGPUWorker,
    }
    stock = config.parallel_config.worker_cls
    if stock not in guided:
        raise StartupError(f"divserve runs on CPU and NVIDIA GPUs; this platform uses {stock}")
    cls = guided[stock]
    config.parallel_config.worker_cls = f"{cls.__module__}.{cls.__qualname__}"


@asynccontextmanager
async def guided_engine(
    engine_args: Any,
    extras: Extras | None = None,
    client_config: dict[str, Any] | None = None,
    timeout_s: float = 0.0,
) -> AsyncIterator[Any]:
    """A running engine behind a `divserve.engine.client.guided.GuidedClient`.

    Args:
        engine_args: vLLM's ``AsyncEngineArgs``.
        extras: models beside the served one; a small one runs in a second engine.
        client_config: how to reach an engine that runs already (`divserve.startup.processes`).
        timeout_s: longest silence of an engine that has requests; 0: no limit.

    Raises:
        StartupError: vLLM or divserve rejects the configuration, or there is no such model.
    """
    from divserve.engine.client.guided import GuidedClient

    extras = extras or Extras()
    connection = _connection(engine_args, client_config)
    config = configured(engine_args)
    extras.install(config)
    with ExitStack() as started:
        head = None
        if client_config is None:
            head = started.enter_context(heading(config, extras))
        small = None
        if extras.small is not None:
            small = _small_engine(engine_args, config, extras)
            started.callback(small.shutdown)
        # vLLM exposes the metrics of the engine that was created last.
        client = GuidedClient(_engine(engine_args, config, **connection), extras.names)
        started.callback(client.shutdown, timeout=config.shutdown_timeout)
        if small is not None:
            client.attach_small(GuidedClient(small))
        if head is not None:
            head.watch(partial(end_engines, client.inner.engine_core.resources.engine_manager))
        await client.inner.reset_mm_cache()
        started.enter_context(watching(client, timeout_s))
        yield client


def end_engines(manager: Any) -> None:
    """Kills the engines of this host, or leaves if it has none: some on another host are lost.

    Args:
        manager: vLLM's manager of their processes, or None.
    """
    from vllm.utils.system_utils import kill_process_tree

    processes = getattr(manager, "processes", ())
    for process in processes:
        kill_process_tree(process.pid)
    if not processes:
        leaving.leave(leaving.STUCK)


def _connection(engine_args: Any, client_config: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments that make ``AsyncLLM`` one of several clients of an engine; empty if alone."""
    if client_config is None:
        return {}
    addresses = dict(client_config)
    found = {name: addresses.pop(name) for name in ("client_count", "client_index")}
    engine_args._api_process_count = found["client_count"]
    engine_args._api_process_rank = found["client_index"]
    return {"client_addresses": addresses, **found}


def configured(engine_args: Any, headless: bool = False) -> Any:
    """The resolved ``VllmConfig``, with the lock-step engine in it.

    Args:
        engine_args: vLLM's ``AsyncEngineArgs``.
        headless: whether another host serves HTTP.

    Raises:
        StartupError: vLLM or divserve rejects the configuration.
    """
    from vllm.usage.usage_lib import UsageContext

    usage = UsageContext.OPENAI_API_SERVER
    engine_args = cpu.with_working_dtype(engine_args)
    try:
        config = engine_args.create_engine_config(usage_context=usage, headless=headless)
    except (ImportError, OSError, ValueError) as error:
        # An import error names a package that the configuration needs.
        refused = one_line(error)
        check_packages(engine_args.model, re.findall(r"'(\w+)'", refused))
        raise StartupError(f"vLLM refuses the configuration: {refused}") from error
    install(config)
    return config


def _engine(engine_args: Any, config: Any, **options: Any) -> Any:
    """Starts vLLM's ``AsyncLLM`` with a configuration."""
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    model = config.model_config
    with naming_what_is_missing(model.model, model.architectures):
        return AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            aggregate_engine_logging=engine_args.aggregate_engine_logging,
            **{"disable_log_stats": engine_args.disable_log_stats, **options},
        )


def _small_engine(engine_args: Any, large: Any, extras: Extras) -> Any:
    """Starts the small model's engine beside the one that ``large`` configures.

    Raises:
        StartupError: it has a shorter context or another tokenizer.
    """
    from divserve.engine.client.small_stats import SmallEngineStats

    args = extras.small_arguments(engine_args, large.model_config.served_model_name)
    args.max_model_len = large.model_config.max_model_len
    config = configured(args)
    extras.check_small(large.model_config, config.model_config)
    extras.split_memory(large, config)
    return _engine(args, config, disable_log_stats=True, stat_loggers=[SmallEngineStats])
