"""Guided chat completions on top of vLLM's serving class. Plain requests pass through untouched."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from copy import copy
from functools import partial
from typing import Any

from divserve.api.cut import beside_loop
from divserve.api.documents import check_documents_rendered
from divserve.api.guide import Twin, chat_fields, known_ids
from divserve.api.messages import texts_of
from divserve.api.requests import ChatRequest
from divserve.api.serving import GuidedServing, answered_as, is_guided, noted
from divserve.api.stream import Stream, StreamReport, reported
from divserve.decoding import Method
from divserve.http.openai import ErrorResponse, OpenAIServingChat

__all__ = ["GuidedChat"]


class GuidedChat(GuidedServing, OpenAIServingChat):
    """Renders the guide besides the prompt, and adds the account to every choice."""

    async def render_chat_request(self, request: Any) -> Any:
        """vLLM's rendering; the guides of a guided request are given to it.

        Raises:
            InvalidRequest: the guide cannot be made as asked.
        """
        if not is_guided(request):
            return await super().render_chat_request(request)
        # vLLM's tool and reasoning parsers change the request they render.
        fresh = request.model_copy(deep=True)
        rendered = await super().render_chat_request(request)
        if isinstance(rendered, ErrorResponse):
            return rendered
        await self._give_guides(request, fresh, rendered[1], "messages")
        return rendered

    async def _guides_of(
        self, source: Any, method: Method, param: str, primaries: Sequence[Any]
    ) -> Twin[list[list[int]]]:
        if (known := known_ids(method, primaries)) is not None:
            return Twin(known)
        # Each twin is rendered once, so that none sees what rendering has changed in another.
        source = source.model_copy(deep=True)
        texts = [text for one in source.messages for text in texts_of(one.get("content"))]
        texts += [text for one in source.documents or () for text in one.values()]
        work = partial(chat_fields, source.messages, source.documents, method, param)
        made = await beside_loop(texts, work)
        fields = {"messages": made.read.messages, "documents": made.read.documents}
        twin = source.model_copy(
            update={**fields, "max_tokens": None, "max_completion_tokens": None}
        )
        guides = await self._render_guides(f"{param}.guide", lambda: self._render_twin(twin))
        if made.by == "documents":
            check_documents_rendered(source, guides[0], primaries[0]["prompt_token_ids"], param)
        return Twin(guides, made.by)

    async def chat_completion_full_generator(
        self,
        request: Any,
        results: AsyncIterator[Any],
        request_id: str,
        model: str,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """vLLM's answer, with the account in every choice."""
        generate = super().chat_completion_full_generator
        results = noted(request, results, request_id)
        if not is_guided(request):
            name = answered_as(request, model)
            return await generate(request, results, request_id, name, *args, **kwargs)
        reports = {}

        async def recorded() -> AsyncIterator[Any]:
            async for result in results:
                for output in result.outputs:
                    reports[output.index] = self._choice_report(request, 0)
                    reports[output.index].add(output)
                yield result

        name = request.answered_as(model)
        response = await generate(request, recorded(), request_id, name, *args, **kwargs)
        if not isinstance(response, ErrorResponse):
            for choice in response.choices:
                choice.decoding = reports[choice.index].summary()
        return response

    def chat_completion_stream_generator(
        self,
        request: Any,
        results: AsyncIterator[Any],
        request_id: str,
        model: str,
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """vLLM's events; those of a guided request carry the account."""
        generate: Stream = super().chat_completion_stream_generator
        results = noted(request, results, request_id)
        if not is_guided(request):
            name = answered_as(request, model)
            return generate(request, results, request_id, name, *args, **kwargs)
        report = self._stream_report(request)
        recorded = _recorded(results, report)
        name = request.answered_as(model)
        events = generate(request, recorded, request_id, name, *args, **kwargs)
        return reported(events, recorded, report)

    async def _render_twin(self, twin: ChatRequest) -> Sequence[Any] | ErrorResponse:
        rendered = await self.online_renderer.render_chat(twin)
        return rendered if isinstance(rendered, ErrorResponse) else rendered[1]


async def _recorded(results: AsyncIterator[Any], report: StreamReport) -> AsyncGenerator[Any, None]:
    """The results, recorded one by one.

    The first result is preceded by a copy without outputs: for it vLLM sends the chunks that open
    the choices, which carry no token.
    """
    opened = False
    async for result in results:
        if not opened:
            opening = copy(result)
            opening.outputs = []
            yield opening
            opened = True
        report.record(0, result.outputs)
        yield result
