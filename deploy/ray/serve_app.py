"""A Ray Serve application: replicas that each run a divserve engine and its HTTP application.

Ray Serve places, scales, restarts and drains the replicas and distributes the requests among them.
A request and its guides are one HTTP request, so they always stay on one replica, and each replica
answers exactly as `divserve serve` does: `build` takes the same flags.

    serve run deploy.ray.serve_app:build argv='["MODEL"]'
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from prometheus_client import start_http_server
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from deploy.ray.routing import Call, Front, PrefixRouter, answered

__all__ = ["Engine", "Options", "build"]

logger = logging.getLogger("ray.serve")

METRICS_PORTS = 32
"""Number of ports that replicas on one node try, starting at `Options.metrics_port`."""


class Options(BaseModel):
    """The application's ``args`` in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    argv: list[str] = Field(min_length=1)
    """What follows ``divserve serve``: a model and flags."""
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    """Scales between `replicas` and this many; None keeps `replicas`."""
    target_requests: float = Field(16, gt=0)
    """Requests in progress per replica that autoscaling aims for."""
    max_requests: int = Field(4096, ge=1)
    """Requests that a replica takes at once; Ray Serve holds the others back. It must exceed the
    replica's rows plus ``--max-queue``; otherwise its queue is never full and rejects nothing."""
    max_queued: int = Field(-1, ge=-1)
    """Requests that each proxy holds back before it answers 503; -1 for no limit."""
    by_prefix: bool = False
    """Sends requests whose prompts begin alike to the same replica (`deploy.ray.routing`)."""
    fronts: int = Field(1, ge=1)
    """With `by_prefix`: processes that read the requests. Each knows only what went through it."""
    most_ahead: int = Field(8, ge=0)
    """With `by_prefix`: requests that a replica may have more than the least busy one and still be
    preferred."""
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    """GPUs of a replica, all on one node: tensor times data parallel size in `argv`."""
    drain_timeout_s: float = Field(30, ge=0)
    """Longest wait for the requests of a replica that is being stopped."""
    metrics_port: int = Field(0, ge=0, le=65_535 - METRICS_PORTS)
    """Port of each replica's own /metrics (the next free one if it is taken); 0 for none."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the replicas."""

    @field_validator("argv", "environment", mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        """``serve run`` passes what follows ``argv=`` as a string."""
        return json.loads(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _in_order(self) -> Options:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is less than replicas")
        return self


class Engine:
    """A replica: one engine and the application that serves it."""

    async def __init__(self, options: Options) -> None:  # type: ignore[misc]
        """Starts the engine; Ray Serve sends no requests before this is done."""
        from divserve.errors import StartupError
        from divserve.startup import launch

        # Sets the environment that vLLM reads when it is imported, so it comes first.
        args = launch.parse(options.argv)

        if (args.api_server_count or 1) > 1:
            raise StartupError("--api-server-count: Ray Serve starts more replicas instead")
        if args.batches.batch_dir is not None:
            raise StartupError("--batch-dir: replicas of Ray Serve run no batches")
        ranks_here = args.data_parallel_size_local or args.data_parallel_size
        if args.headless or args.nnodes > 1 or ranks_here < args.data_parallel_size:
            raise StartupError("a replica of Ray Serve runs on one node")

        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.reasoning import ReasoningParserManager
        from vllm.tool_parsers import ToolParserManager

        from divserve.server import build_app
        from divserve.startup.engines import guided_engine

        if args.tool_parser_plugin:
            ToolParserManager.import_tool_parser(args.tool_parser_plugin)
        if args.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
        self._running = AsyncExitStack()
        engine = guided_engine(
            AsyncEngineArgs.from_cli_args(args), args.extras, timeout_s=args.engine_timeout
        )
        self._client = await self._running.enter_async_context(engine)
        self._app = await build_app(self._client, args)
        if options.metrics_port:
            logger.info("metrics of this replica on port %d", _serve_metrics(options.metrics_port))

    def __serve_build_asgi_app__(self) -> Any:
        """The application, which Ray Serve asks for once the engine runs."""
        return self._app

    async def answer(self, call: Call) -> AsyncIterator[list[dict[str, Any]]]:
        """Answers a request that `deploy.ray.routing.Front` has read."""
        async for replies in answered(self._app, call):
            yield replies

    async def check_health(self) -> None:
        """Raises once an engine has died; Ray Serve then replaces this replica."""
        from divserve.api.extras import tell_health

        # The replica's own /metrics is not the application's route, which would update the gauge.
        tell_health(self._client)
        dead = [name for name, lives in self._client.health().items() if not lives]
        if dead:
            raise RuntimeError(f"engine lost: {', '.join(dead)}")

    async def __del__(self) -> None:
        """Stops the engine after the last request or after `Options.drain_timeout_s`."""
        # Ray Serve also calls this for a replica whose __init__ failed.
        if hasattr(self, "_running"):
            await self._running.aclose()


def build(args: Options | dict[str, Any]) -> Application:
    """The application of a Serve config or of ``serve run``.

    Args:
        args: `Options`, or their fields.
    """
    options = Options.model_validate(args)
    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": options.target_requests,
            }
        }
    engine = Engine if options.by_prefix else serve.ingress()(Engine)
    deployment = serve.deployment(engine).options(
        name="divserve",
        **scaling,
        max_ongoing_requests=options.max_requests,
        max_queued_requests=options.max_queued,
        graceful_shutdown_timeout_s=options.drain_timeout_s,
        ray_actor_options={
            "num_cpus": options.cpus,
            "num_gpus": options.gpus,
            "runtime_env": {"env_vars": options.environment},
        },
    )
    if not options.by_prefix:
        return _bound(deployment, options)
    router = RequestRouterConfig(
        request_router_class=PrefixRouter,
        request_router_kwargs={"most_ahead": options.most_ahead},
    )
    replicas = _bound(deployment.options(request_router_config=router), options)
    front: Any = Front
    return _bound(
        front.options(
            num_replicas=options.fronts,
            max_ongoing_requests=options.max_requests,
            max_queued_requests=options.max_queued,
            graceful_shutdown_timeout_s=options.drain_timeout_s,
        ),
        options.argv,
        replicas,
    )


def _bound(deployment: Any, *args: Any) -> Application:
    application: Application = deployment.bind(*args)
    return application


def _serve_metrics(first: int) -> int:
    """Serves this process's metrics on the first free port from `first` up; returns the port."""
    for port in range(first, first + METRICS_PORTS):
        try:
            start_http_server(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return port
    raise RuntimeError(f"no free port for metrics from {first} to {first + METRICS_PORTS - 1}")
