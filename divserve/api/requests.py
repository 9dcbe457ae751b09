"""The bodies of chat and text completions: vLLM's, with the typed field ``decoding``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

from pydantic import PrivateAttr, model_validator

from divserve.api.conflicts import refuse_echo
from divserve.api.echo import reading_of
from divserve.api.guided import Guided
from divserve.decoding import Reading, Stack
from divserve.errors import InvalidRequest
from divserve.http.fields import TEXTS, prompts_in
from divserve.http.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    has_non_text_content,
)

__all__ = ["ChatRequest", "CompletionsRequest", "check_chat", "unfold"]


def unfold(messages: Sequence[Any]) -> None:
    """Turns the contents that can be read only once into lists: validation leaves iterators."""
    for message in messages:
        if isinstance(message, dict):
            content = message.get("content")
            if not isinstance(content, str | list | None):
                message["content"] = list(content)


class ChatRequest(Guided, ChatCompletionRequest):
    """Body of /v1/chat/completions."""

    # vLLM caches the names of the known fields on the class; a subclass would find its parent's.
    field_names: ClassVar[set[str] | None] = None

    def to_sampling_params(self, max_tokens: int, default_sampling_params: dict[str, Any]) -> Any:
        """vLLM's parameters; called once per prompt, in the order of the prompts."""
        return self._pack(super().to_sampling_params(max_tokens, default_sampling_params))

    def take(self, origin: Guided) -> None:
        """Makes the request one of a body of another route, decoded and recorded like it.

        Args:
            origin: a body that has been accepted.

        Raises:
            InvalidRequest: its method cannot be combined with what this request asks for.
        """
        self.decoding, self._record = origin.decoding, origin._record
        self._alias, self._adapters = origin._alias, origin._adapters
        if origin._small:
            self.decode_on_small()
        if self.decoding is not None:
            self._check_decoding()

    def _unfold(self) -> None:
        unfold(self.messages)

    def _check_guided(self) -> None:
        self._unfold()
        for index, message in enumerate(self.messages):
            if not isinstance(message, dict):
                raise InvalidRequest(
                    "decoding takes messages with a 'role' and 'content', not harmony messages.",
                    param=f"messages.{index}",
                )
        check_chat(self, self.messages, self.include_reasoning)


def check_chat(request: Guided, messages: Sequence[Any], include_reasoning: bool) -> None:
    """Raises `InvalidRequest` for what no guided chat takes, on whatever route.

    Args:
        request: the body.
        messages: its messages.
        include_reasoning: whether the answer shows all of its tokens.
    """
    refuse_echo(request)
    texts = [(request.prompt_field, messages)]
    for param, guide in request.guides():
        if guide.prompt is not None:
            raise InvalidRequest(
                "Chat takes 'messages' (or 'without') as its guide, not 'prompt'.",
                param=f"{param}.prompt",
            )
        texts.append((f"{param}.messages", guide.messages or []))
    for param, some in texts:
        if has_non_text_content(some):
            raise InvalidRequest(
                "decoding takes text messages only: remove images, audio and video.",
                param=param,
            )
    for method in request.methods:
        if method.trace and not include_reasoning:
            raise InvalidRequest(
                "A trace would show the reasoning that include_reasoning=false hides.",
                param=f"{request.param_of(method)}.trace",
            )


class CompletionsRequest(Guided, CompletionRequest):
    """Body of /v1/completions."""

    field_names: ClassVar[set[str] | None] = None
    prompt_field: ClassVar[str] = "prompt"

    _readings: Sequence[Reading | None] = PrivateAttr(default=())
    _unread: Iterator[Reading | None] = PrivateAttr(default=iter(()))

    @property
    def prompts(self) -> int:
        """Number of texts, lists of token ids and embeddings."""
        return max(sum(prompts_in(getattr(self, field, None)) for field in TEXTS), 1)

    def to_sampling_params(
        self, max_tokens: int, default_sampling_params: dict[str, Any] | None = None
    ) -> Any:
        """vLLM's parameters; called once per prompt, in the order of the prompts."""
        return self._pack(super().to_sampling_params(max_tokens, default_sampling_params))

    @model_validator(mode="after")
    def _refuse_best_of(self) -> CompletionsRequest:
        """vLLM ignores ``best_of``; as many as ``n`` is what it does anyway."""
        if getattr(self, "best_of", None) not in (None, self.n or 1):
            raise InvalidRequest(
                "best_of is not supported: send n alone, and choose among its answers.",
                param="best_of",
            )
        return self

    def _check_guided(self) -> None:
        for param, guide in self.guides():
            for field in ("messages", "documents", "role", "message"):
                if getattr(guide, field) is not None:
                    raise InvalidRequest(
                        "Completions take 'prompt', 'without' or 'between' as their guide, not "
                        f"'{field}'.",
                        param=f"{param}.{field}",
                    )
        if self.scores_prompt:
            self._check_echo()
        elif self.max_tokens == 0:
            raise InvalidRequest(
                "max_tokens is 0: there is no token to decode.", param="max_tokens"
            )

    @property
    def readings(self) -> Sequence[Reading | None]:
        """What is scored of each prompt; None: it is a single token; empty: nothing of any."""
        return self._readings

    def _next_reading(self) -> Reading | None:
        return next(self._unread, None)

    @property
    def scores_prompt(self) -> bool:
        """Whether it asks for the log-probs of the prompt's own tokens."""
        return bool(self.echo) and self.logprobs is not None

    def _check_echo(self) -> None:
        stack = Stack(self.methods)
        if not stack.scores_texts:
            raise InvalidRequest(
                f"{stack.name} depends on earlier steps or on a text that is read first: it has no "
                "log-probs of a prompt. Leave out echo or logprobs.",
                param="echo",
            )
        if cast(int, self.logprobs) < 0:
            raise InvalidRequest(
                "With decoding and echo, logprobs is a number of likeliest tokens, not -1.",
                param="logprobs",
            )

    def score_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Has the prompts scored, once the request has its guides.

        Args:
            prompts: token ids.

        Raises:
            InvalidRequest: nothing of a prompt can be scored.
        """
        guided = next((method for method in self.methods if method.guided), None)
        param = "echo" if guided is None else f"{self.param_of(guided)}.guide"
        top = cast(int, self.logprobs)
        self._readings = [
            reading_of(ids, self.spec_of(place).guides, top, param)
            for place, ids in enumerate(prompts)
        ]
        self._unread = iter(self._readings)
