"""The bodies of the other guided routes: vLLM's, with the typed field ``decoding``.

A body of responses becomes one request of the engine. Those of messages and of batches become chat
requests (`ChatRequest.take`), which meet the checks of chats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

from pydantic import PrivateAttr, ValidationError, model_validator

from divserve.api import anthropic_documents
from divserve.api.guided import Guided
from divserve.api.report import ChoiceReport
from divserve.api.requests import ChatRequest, check_chat, unfold
from divserve.decoding import Stack
from divserve.errors import InvalidRequest
from divserve.http.errors import invalid_body
from divserve.http.openai import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
    BatchChatCompletionRequest,
    ResponsesRequest,
)

__all__ = ["BatchRequest", "CountRequest", "GuidedResponsesRequest", "MessagesRequest"]


class GuidedResponsesRequest(Guided, ResponsesRequest):
    """Body of /v1/responses."""

    field_names: ClassVar[set[str] | None] = None
    prompt_field: ClassVar[str] = "input"
    length_fields: ClassVar[tuple[str, ...]] = ("max_output_tokens",)

    _report: ChoiceReport | None = PrivateAttr(default=None)
    _sent: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    def to_sampling_params(
        self, default_max_tokens: int, default_sampling_params: dict[str, Any] | None = None
    ) -> Any:
        """vLLM's parameters, with the order for the engine."""
        return self._pack(super().to_sampling_params(default_max_tokens, default_sampling_params))

    def _unfold(self) -> None:
        body: Any = self
        body.input = unfolded(body.input)

    def _check_guided(self) -> None:
        self._unfold()
        if self.truncation != "disabled":
            raise InvalidRequest(
                "decoding cannot be combined with truncation: prompt and guide would be cut at "
                "different places. Leave it out, or set it to 'disabled'.",
                param="truncation",
            )
        check_chat(self, list(_contents(self.input)), self.include_reasoning)

    @property
    def report(self) -> ChoiceReport | None:
        """The account of the answer, once it has begun; None for a plain request."""
        return self._report

    def report_in(self, report: ChoiceReport) -> None:
        """Sets the account of the answer."""
        self._report = report

    def take_trace(self) -> list[dict[str, Any]]:
        """The trace entries that the next event of a stream is to carry."""
        if self._report is None or not cast(Stack, self.stack).trace_by_token:
            return []
        taken = self._report.take_trace()
        self._sent += taken
        return taken

    def account(self) -> dict[str, Any]:
        """The account of an answer that has ended, with the whole trace: that of events, too."""
        summary = cast(ChoiceReport, self._report).summary()
        if "trace" in summary:
            summary["trace"] = self._sent + summary["trace"]
        return summary


def unfolded(value: Any) -> Any:
    """A value with lists in place of what can be read only once: validation leaves iterators."""
    if isinstance(value, dict):
        return {name: unfolded(one) for name, one in value.items()}
    if isinstance(value, list | Iterator):
        return [unfolded(one) for one in value]
    return value


def _contents(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every item of ``input`` as a message, as far as it may have pictures."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, Mapping):
            for field in ("content", "output"):
                if isinstance(content := item.get(field), list):
                    yield {"content": content}


class MessagesRequest(Guided, AnthropicMessagesRequest):
    """Body of /v1/messages."""

    length_fields: ClassVar[tuple[str, ...]] = ("max_tokens",)

    @model_validator(mode="before")
    @classmethod
    def _with_documents(cls, body: Any) -> Any:
        return anthropic_documents.as_text(body)


class CountRequest(AnthropicCountTokensRequest):
    """Body of /v1/messages/count_tokens."""

    @model_validator(mode="before")
    @classmethod
    def _with_documents(cls, body: Any) -> Any:
        return anthropic_documents.as_text(body)


class BatchRequest(Guided, BatchChatCompletionRequest):
    """Body of /v1/chat/completions/batch: several conversations, each with one answer."""

    field_names: ClassVar[set[str] | None] = None

    _chats: Sequence[ChatRequest] = PrivateAttr(default=())

    @property
    def prompts(self) -> int:
        """Number of conversations."""
        return len(self.messages)

    @property
    def chats(self) -> Sequence[ChatRequest]:
        """The chats that `answer_with` was given."""
        return self._chats

    def answer_with(self, chats: Sequence[ChatRequest]) -> None:
        """Sets the chats that are answered, one for each conversation."""
        self._chats = chats

    def to_chat_completion_request(self, messages: list[Any]) -> ChatRequest:
        """The chat of one conversation.

        Raises:
            InvalidRequest: it cannot be decoded as asked.
        """
        unfold(messages)
        fields = self.model_dump(exclude={"messages", "decoding"}, exclude_none=True)
        try:
            chat = ChatRequest.model_validate({**fields, "messages": messages})
        except ValidationError as error:
            raise invalid_body(error.errors()) from None
        chat.take(self)
        return chat

    def _unfold(self) -> None:
        for messages in self.messages:
            unfold(messages)
