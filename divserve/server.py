"""The application: vLLM's OpenAI app with guided decoding installed."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware

from divserve import playground
from divserve.api import extras, instrumentation, presets, routes
from divserve.api.anthropic import GuidedMessages
from divserve.api.batch import GuidedBatch
from divserve.api.chat import GuidedChat
from divserve.api.completions import GuidedCompletions
from divserve.api.refuse import RefuseDecoding
from divserve.api.responses import GuidedResponses, readable
from divserve.batches import routes as batches
from divserve.edges import stack as edges
from divserve.http import bodies, errors, openai

if TYPE_CHECKING:
    from divserve.engine.client.guided import GuidedClient

__all__ = ["build_app"]


async def build_app(client: GuidedClient, args: Namespace) -> FastAPI:
    """The app that serves `client`.

    Args:
        client: the engine.
        args: vLLM's parsed server arguments.
    """
    tasks = await client.get_supported_tasks()
    app: FastAPI = openai.build_app(args, tasks, client.model_config)
    routes.install(app)
    errors.install(app)
    bodies.install(app)
    if not args.edges.no_playground:
        playground.install(app)
    keys = openai.take_api_keys(app, args)
    edges.install(app, args.edges, keys, client.capacity.max_rows)
    # The last one is the innermost: it is behind the limits, so it only reads bounded bodies.
    aliases = {*presets.aliases_of(args), *extras.aliases_of(args)}
    app.user_middleware.append(Middleware(RefuseDecoding, aliases=aliases))
    instrumentation.install(app, _sinks(args))
    app.state.log_prompts = args.log_prompts
    app.state.scoring = args.scoring
    # vLLM has built the stack already; without one, Starlette builds it at the first request.
    app.middleware_stack = None
    await openai.init_app_state(client, app.state, args, tasks)
    presets.install(app, args)
    extras.install(app, args)
    renderer = app.state.online_renderer
    renderer.render_responses = readable(renderer.render_responses)
    batches.install(app, args)
    _guide(app)
    return app


def _sinks(args: Namespace) -> list[instrumentation.Sink]:
    """The consumers of the data of every request; each is imported only if a flag asks for it."""
    sinks: list[instrumentation.Sink] = []
    if args.log_format is not None:
        from divserve.api.request_log import request_log

        sinks.append(request_log(args.log_format))
    if args.otlp_traces_endpoint is not None:
        from divserve.api.spans import span_sink

        sinks.append(span_sink())
    return sinks


def _guide(app: FastAPI) -> None:
    """Re-classes vLLM's serving objects as guided ones: vLLM builds them with many arguments."""
    app.state.openai_serving_chat.__class__ = GuidedChat
    app.state.openai_serving_completion.__class__ = GuidedCompletions
    app.state.openai_serving_responses.__class__ = GuidedResponses
    app.state.openai_serving_chat_batch.__class__ = GuidedBatch
    if app.state.anthropic_serving_messages is not None:
        app.state.anthropic_serving_messages.__class__ = GuidedMessages
