"""Guided batches of chats on top of vLLM's serving class: each conversation is one guided chat."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast

from divserve.api.bodies import BatchRequest
from divserve.api.chat import GuidedChat
from divserve.api.cut import beside_loop, found
from divserve.api.messages import texts_of
from divserve.api.report import ChoiceReport
from divserve.api.requests import ChatRequest
from divserve.api.serving import answered_as, is_guided
from divserve.errors import InvalidRequest
from divserve.http.openai import ErrorResponse, OpenAIServingChatBatch

__all__ = ["GuidedBatch"]


class GuidedBatch(GuidedChat, OpenAIServingChatBatch):
    """Renders a guide for every conversation, and adds the account to every choice."""

    async def render_batch_chat_request(self, request: Any) -> Any:
        """vLLM's rendering; the guides of a guided request are given to its chats.

        Raises:
            InvalidRequest: a guide cannot be made as asked.
        """
        rendered = await super().render_batch_chat_request(request)
        if not is_guided(request) or isinstance(rendered, ErrorResponse):
            return rendered
        chats, _, engine_inputs = rendered
        # vLLM's reasoning parsers change the chats that they render.
        fresh = [request.to_chat_completion_request(messages) for messages in request.messages]
        texts = [texts_in(chat) for chat in fresh]
        work = partial(_share_texts, request, fresh, texts)
        await beside_loop((text for some in texts for text in some), work)
        for chat, source, engine_input in zip(chats, fresh, engine_inputs, strict=True):
            chat.decoding = source.decoding
            await self._give_guides(chat, source, [engine_input], "messages")
        request.record.guide_tokens = sum(chat.side_tokens(0) for chat in chats)
        request.answer_with(chats)
        return rendered

    async def chat_completion_full_generator_batch(
        self,
        request: Any,
        generators: list[Any],
        request_id: str,
        model_name: str,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """vLLM's answer, with the account in every choice."""
        reports: list[ChoiceReport | None] = [None] * len(generators)
        if is_guided(request):
            reports = [self._choice_report(chat, 0) for chat in request.chats]
        if isinstance(request, BatchRequest):
            request.record.answer_id = request_id
            generators = [
                _recorded(request, prompt, results, report)
                for prompt, (results, report) in enumerate(zip(generators, reports, strict=True))
            ]
        response = await super().chat_completion_full_generator_batch(
            request, generators, request_id, answered_as(request, model_name), *args, **kwargs
        )
        if not isinstance(response, ErrorResponse):
            for choice in response.choices:
                if (report := reports[choice.index]) is not None:
                    choice.decoding = report.summary()
        return response


def texts_in(chat: ChatRequest) -> list[str]:
    """The texts of a conversation."""
    messages = cast(list[dict[str, Any]], chat.messages)
    return [text for message in messages for text in texts_of(message.get("content"))]


def _share_texts(
    request: BatchRequest, chats: Sequence[ChatRequest], places: Sequence[Sequence[str]]
) -> None:
    """Leaves each chat those of the texts of ``guide.without`` that occur in its conversation.

    A list has the documents of all conversations. A text alone is that of every conversation.

    Args:
        request: the batch.
        chats: one for each conversation.
        places: the texts of each.

    Raises:
        InvalidRequest: a text occurs nowhere, or a conversation has none of them and is not to be
            decoded plainly then.
    """
    for param, guide in request.guides():
        if not isinstance(guide.without, list):
            continue
        strict = guide.if_missing == "refuse"
        path = f"{param}.without"
        nowhere = set(range(len(guide.without)))
        for number, (chat, texts) in enumerate(zip(chats, places, strict=True)):
            here = [i for i, text in enumerate(guide.without) if found(text, texts)]
            if not here and strict:
                raise InvalidRequest(
                    f"None of the texts occurs in conversation {number}: each needs its own guide.",
                    param=path,
                )
            nowhere.difference_update(here)
            own = guide.model_copy(update={"without": [guide.without[i] for i in here]})
            # With none of its own, a conversation keeps all: its guide finds out that they lack.
            chat.guide_with(param, own if here else guide)
        if nowhere and strict:
            raise InvalidRequest(
                "The text to leave out does not occur in any conversation: give it exactly as it "
                "stands there.",
                param=f"{path}.{min(nowhere)}",
            )


async def _recorded(
    request: BatchRequest,
    prompt: int,
    results: AsyncGenerator[Any, None],
    report: ChoiceReport | None,
) -> AsyncGenerator[Any, None]:
    """The results of the conversation of this index, recorded one by one."""
    async with aclosing(results):
        async for result in results:
            request.record.note(prompt, result)
            if report is not None:
                report.add(result.outputs[0])
            yield result
