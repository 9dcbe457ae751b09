"""Guided responses on top of vLLM's serving class, and errors that say what happened.

One response is one answer of the engine: its account covers the tokens of all its items, reasoning
and function calls included. It is in the response, and without the trace in each message item:

    {"object": "response", "decoding": {…}, "output": [{"type": "message", "decoding": {…}, …}, …]}

In a stream the event ``response.completed`` has that response. The events that add to an item
(``….delta``) have the trace entries of the tokens since the last one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from copy import deepcopy
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from openai.types.responses import ResponseErrorEvent

from divserve.api.bodies import GuidedResponsesRequest
from divserve.api.cut import beside_loop
from divserve.api.guide import Twin, chat_fields, known_ids
from divserve.api.messages import texts_of
from divserve.api.serving import GuidedServing, answered_as, is_guided, record_of
from divserve.decoding import Method
from divserve.errors import ApiError, InvalidRequest
from divserve.http.errors import error_body
from divserve.http.foreign import foreign_body, status_of
from divserve.http.openai import (
    ErrorResponse,
    OpenAIServingResponses,
    construct_tool_dicts,
    create_error_response,
    has_non_text_content,
)

__all__ = ["GuidedResponses", "readable"]

logger = logging.getLogger("vllm.divserve.api")

P = ParamSpec("P")
R = TypeVar("R")
Events = AsyncGenerator[Any, None]


def readable(render: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Raises `InvalidRequest` where `render` fails in a way that vLLM treats as a server error.

    vLLM validates the body loosely and then reads parts that an item may not have (a refusal has no
    ``text``).
    """

    @wraps(render)
    async def rendered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await render(*args, **kwargs)
        except (TypeError, LookupError, AttributeError, AssertionError) as error:
            raise InvalidRequest(
                f"The input cannot be read: {type(error).__name__}: {error}", param="input"
            ) from error

    return rendered


class Source(NamedTuple):
    """What guides are made from; no renderer has changed it."""

    request: GuidedResponsesRequest
    messages: list[dict[str, Any]]
    """The whole conversation as chat messages, with stored responses before it."""


class GuidedResponses(GuidedServing, OpenAIServingResponses):
    """Renders the guide besides the input, and adds the account to the response."""

    async def create_responses(self, request: Any, raw_request: Any = None) -> Any:
        """vLLM's response or events.

        Raises:
            InvalidRequest: the answer would be generated after the response (a drain would not wait
                for it), or cannot be decoded as asked.
        """
        if request.background:
            raise InvalidRequest(
                "This server makes no answers in the background: leave 'background' out.",
                param="background",
            )
        answer = await super().create_responses(request, raw_request)
        if is_guided(request) and isinstance(answer, AsyncGenerator):
            # Until the first event has been read an error can be an HTTP response.
            return _going_on(await anext(answer), answer)
        return answer

    async def _render_resolved_response_inputs(
        self, request: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """vLLM's rendering; the guides of a guided request are given to it."""
        guided = is_guided(request)
        # vLLM's tool and reasoning parsers change the request they render.
        fresh = deepcopy(request) if guided else None
        if guided and self.use_harmony:
            raise InvalidRequest(
                "decoding does not support this model's responses: use /v1/chat/completions.",
                param="decoding",
            )
        rendered = await super()._render_resolved_response_inputs(request, *args, **kwargs)
        if fresh is not None and not isinstance(rendered, ErrorResponse):
            if has_non_text_content(rendered.messages):
                raise InvalidRequest(
                    "decoding takes text only, and a stored response has more.",
                    param="previous_response_id",
                )
            source = Source(fresh, deepcopy(rendered.messages))
            await self._give_guides(request, source, [rendered.engine_input], "input")
        return rendered

    async def _guides_of(
        self, source: Any, method: Method, param: str, primaries: Sequence[Any]
    ) -> Twin[list[list[int]]]:
        if (known := known_ids(method, primaries)) is not None:
            return Twin(known)
        # Each twin is rendered once, so that none sees what rendering has changed in another.
        source = deepcopy(source)
        texts = [text for one in source.messages for text in texts_of(one.get("content"))]
        made = await beside_loop(texts, partial(chat_fields, source.messages, None, method, param))
        twin = source.request.model_copy(update={"max_output_tokens": None})
        guides = await self._render_guides(
            f"{param}.guide", lambda: self._render_twin(twin, made.read.messages)
        )
        return Twin(guides, made.by)

    async def _render_twin(self, twin: Any, messages: list[Any]) -> Sequence[Any]:
        """The engine inputs of other messages in the same response."""
        renderer = self.online_renderer
        _, engine_inputs = await renderer.preprocess_chat(
            twin,
            messages,
            default_template=renderer.chat_template,
            default_template_content_format=renderer.chat_template_content_format,
            default_template_kwargs=renderer.effective_chat_template_kwargs(twin),
            tool_dicts=construct_tool_dicts(
                twin.tools,
                twin.tool_choice,
                exclude_tools_when_tool_choice_none=renderer.exclude_tools_when_tool_choice_none,
            ),
            parser=renderer.parser,
        )
        found: Sequence[Any] = engine_inputs
        return found

    async def responses_full_generator(
        self,
        request: Any,
        sampling_params: Any,
        result_generator: Events,
        context: Any,
        model_name: str,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """vLLM's response, with the account. Of a stream, too: there the results have been read."""
        response = await super().responses_full_generator(
            request,
            sampling_params,
            self._recorded(request, result_generator),
            context,
            answered_as(request, model_name),
            *args,
            **kwargs,
        )
        if is_guided(request) and not isinstance(response, ErrorResponse):
            response.decoding = account = request.account()
            short = {name: value for name, value in account.items() if name != "trace"}
            for item in response.output:
                if item.type == "message":
                    item.decoding = short
        return response

    async def responses_stream_generator(
        self,
        request: Any,
        sampling_params: Any,
        result_generator: Events,
        context: Any,
        model_name: str,
        *args: Any,
        **kwargs: Any,
    ) -> Events:
        """vLLM's events, with the entries of a trace; a stream that fails ends with an error event,
        as OpenAI does. A guided one raises what fails before its first token."""
        sent, guided = 0, is_guided(request)
        results = self._recorded(request, result_generator)
        try:
            if guided:
                results = _going_on(await anext(results), results)
            events = super().responses_stream_generator(
                request,
                sampling_params,
                results,
                context,
                answered_as(request, model_name),
                *args,
                **kwargs,
            )
            async with aclosing(results), aclosing(events):
                async for event in events:
                    entries = request.take_trace() if _takes_entries(guided, event) else None
                    if entries:
                        event.decoding = {"trace": entries}
                    yield event
                    sent += 1
        except Exception as failure:
            if guided and not sent:
                raise
            yield _error_event(failure, sent)

    async def _recorded(self, request: Any, contexts: Events) -> Events:
        """vLLM's contexts, each with one more result, which is recorded."""
        record = record_of(request)
        if record is not None:
            record.answer_id = request.request_id
        async with aclosing(contexts):
            async for context in contexts:
                result: Any = getattr(context, "last_output", None)
                if record is not None and result is not None:
                    record.note(0, result)
                if is_guided(request):
                    if request.report is None:
                        request.report_in(self._choice_report(request, 0))
                    request.report.add(result.outputs[0])
                yield context


def _takes_entries(guided: bool, event: Any) -> bool:
    """Whether an event carries tokens of a guided answer."""
    return guided and event.type.endswith(".delta")


async def _going_on(first: Any, rest: AsyncGenerator[Any, None]) -> Events:
    """What has been read, then what follows."""
    async with aclosing(rest):
        yield first
        async for one in rest:
            yield one


def _error_event(failure: Exception, number: int) -> ResponseErrorEvent:
    """The event of an error that ends a stream after so many events."""
    error = _error_object(failure)
    if status_of(error) >= 500 and not isinstance(failure, ApiError):
        logger.error("A stream of /v1/responses failed", exc_info=failure)
    told = {name: error[name] for name in ("code", "message", "param")}
    return ResponseErrorEvent(type="error", sequence_number=number, **told)


def _error_object(error: Exception) -> dict[str, Any]:
    """The error in OpenAI's shape; vLLM knows which of its own exceptions are client errors."""
    if isinstance(error, ApiError):
        body = error_body(error)
    else:
        body = create_error_response(error).model_dump()
        body = foreign_body(body["error"]["code"], body)[1]
    found: dict[str, Any] = body["error"]
    return found
