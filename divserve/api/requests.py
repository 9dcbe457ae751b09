"""The bodies of the two generation routes: vLLM's, with the typed field ``decoding``.

A body without it (or with null) is a plain request and behaves as in vLLM. With it, serving gives
the request the guides of every prompt (`Guided.give_guides`), and ``to_sampling_params`` packs the
order for the engine. Whatever would make vLLM drop or distort that order is rejected here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from divserve.api.conflicts import refuse_beside_small, refuse_conflicts, refuse_no_prompt
from divserve.api.record import Record
from divserve.decoding import Adapter, Decoding, Guide, Method, Spec, Stack
from divserve.engine.order import RESERVED_PREFIX, OnSmall, with_spec
from divserve.errors import InvalidRequest
from divserve.http.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    has_non_text_content,
)

__all__ = ["LONGEST_NAME", "ChatRequest", "CompletionsRequest", "Guided"]

LONGEST_NAME = 128
"""Characters of a model's name that metrics and logs keep."""
PLAIN = "plain"
"""What metrics and logs call a request without a method."""

Guides = Sequence[list[int] | None]
"""Token ids of the guide of each method of a stack; None for a method without a guide."""


class Guided(BaseModel):
    """The part that both bodies share."""

    decoding: Decoding | None = Field(
        default=None,
        description="The method to decode with, and its parameters. See /v1/decoding/methods.",
    )

    _guides: Sequence[Guides] = PrivateAttr(default=())
    _unpacked: Iterator[Guides] = PrivateAttr(default=iter(()))
    _grounding: list[int] = PrivateAttr(default_factory=list)
    _adapters: Mapping[str, Adapter | None] = PrivateAttr(default_factory=dict)
    _temperature: float = PrivateAttr(default=1.0)
    _alias: str | None = PrivateAttr(default=None)
    _small: bool = PrivateAttr(default=False)
    _record: Record = PrivateAttr(default_factory=Record)

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Guided:
        if any(key.startswith(RESERVED_PREFIX) for key in getattr(self, "vllm_xargs", None) or ()):
            raise InvalidRequest(
                f"'{RESERVED_PREFIX}…' is reserved: use the field 'decoding'.", param="vllm_xargs"
            )
        refuse_no_prompt(self)
        if self.decoding is not None:
            self._check_decoding()
        return self

    def _check_decoding(self) -> None:
        refuse_conflicts(self, moves=Stack(self.methods).switches)
        self._check_guided()

    def _unfold(self) -> None:
        """Turns what can be read only once into lists."""

    def _check_guided(self) -> None:
        """Raises `InvalidRequest` for conflicts with ``decoding`` that only this route has."""

    @property
    def methods(self) -> list[Method]:
        """The methods in the order of the body; none for a plain request."""
        if self.decoding is None:
            return []
        return [*self.decoding] if isinstance(self.decoding, list) else [self.decoding]

    @property
    def stack(self) -> Stack | None:
        """The methods in the order of application; None for a plain request."""
        return None if self.decoding is None else Stack(self.decoding)

    @property
    def sampled_at(self) -> float:
        """The temperature of the final sampling parameters, with the server's defaults applied."""
        return self._temperature

    @property
    def record(self) -> Record:
        """The account of the HTTP request."""
        return self._record

    def keep(self, record: Record, with_prompt: bool) -> None:
        """Starts recording the request in `record`, beginning with what was asked for."""
        self._record = record
        stack = self.stack
        record.method = PLAIN if stack is None else stack.name
        # Neither the existence of the model nor the length of its name has been checked.
        record.model = self.answered_as(getattr(self, "model", None) or "")[:LONGEST_NAME] or None
        record.streams, record.completion_tokens = bool(getattr(self, "stream", False)), 0
        if with_prompt:
            self._unfold()
            record.prompt = getattr(self, "messages", None) or getattr(self, "prompt", None)

    def decode_with(self, preset: Any) -> None:
        """Sets the field ``decoding`` of a request that has none.

        Args:
            preset: a value that has been validated by itself.

        Raises:
            InvalidRequest: it cannot be combined with the rest of the request.
        """
        self.decoding = preset
        self._check_decoding()

    def answer_as(self, alias: str) -> None:
        """Makes the answer name this model."""
        self._alias = alias

    def decode_on_small(self) -> None:
        """Sends the request to the small model's engine.

        Raises:
            InvalidRequest: its method requires more than that model.
        """
        for method in self.methods:
            if method.amateurs or method.engines:
                raise InvalidRequest(
                    f"{method.method} needs more than the small model: name the served one.",
                    param="model",
                )
        refuse_beside_small(self)
        self._small = True

    def answered_as(self, model: str) -> str:
        """The model name of the answer, where vLLM would put ``model``."""
        return self._alias or model

    def param_of(self, method: Method) -> str:
        """The path of a method in the body: ``decoding``, or ``decoding.0`` in a list."""
        if not isinstance(self.decoding, list):
            return "decoding"
        return f"decoding.{next(i for i, m in enumerate(self.methods) if m is method)}"

    def guides(self) -> Iterator[tuple[str, Guide]]:
        """The guides given in the body, with their paths."""
        for method in self.methods:
            if method.guide is not None:
                yield f"{self.param_of(method)}.guide", method.guide

    def give_guides(self, guides: Sequence[Guides], grounding: Sequence[int] = ()) -> None:
        """Sets the guides of each prompt: token ids for each method of the stack, or None.

        Args:
            guides: one entry per prompt.
            grounding: token ids of the grounding text.
        """
        self._guides = guides
        self._unpacked = iter(guides)
        self._grounding = list(grounding)

    def give_adapters(self, adapters: Mapping[str, Adapter | None]) -> None:
        """Sets what each ``guide.model`` stands for; None: the request's own model."""
        self._adapters = adapters

    def _adapters_of(self) -> list[Adapter | None]:
        """By method of the stack: the adapter of its guide; None: the request's own."""
        guides = [method.guide for method in cast(Stack, self.stack).methods]
        names = [None if guide is None else guide.model for guide in guides]
        return [None if name is None else self._adapters[name] for name in names]

    def side_tokens(self, prompt: int) -> int:
        """Number of tokens read beside the prompt of this index."""
        return sum(map(len, self._order(self._guides[prompt]).texts))

    def has_two_seconds(self, prompt: int) -> bool:
        """Whether the prompt of this index is compared with two different streams."""
        return cast(Stack, self.stack).two_seconds(self._guides[prompt], self._adapters_of())

    def spec_of(self, prompt: int) -> Spec:
        """The order for the engine of the prompt of this index, once it has its guides."""
        return self._order(self._guides[prompt])

    def _order(self, guides: Guides) -> Spec:
        stack, adapters = cast(Stack, self.stack), self._adapters_of()
        return stack.spec(self._temperature, guides, self._grounding, adapters)

    def _pack(self, params: Any) -> Any:
        """Adds the order for the next prompt to vLLM's sampling parameters, if guided."""
        if self.decoding is None:
            if self._small:
                with_spec(params, OnSmall(None))
            return params
        self._temperature = params.temperature
        # vLLM scores the prompt of a chat with `echo` unasked; the numbers would be the plain ones.
        params.prompt_logprobs = None
        spec = self._order(next(self._unpacked))
        order = OnSmall(spec) if self._small else spec
        with_spec(params, order)
        return params


class ChatRequest(Guided, ChatCompletionRequest):
    """Body of /v1/chat/completions."""

    # vLLM caches the names of the known fields on the class; a subclass would find its parent's.
    field_names: ClassVar[set[str] | None] = None

    def to_sampling_params(self, max_tokens: int, default_sampling_params: dict[str, Any]) -> Any:
        """vLLM's parameters; called once per prompt, in the order of the prompts."""
        return self._pack(super().to_sampling_params(max_tokens, default_sampling_params))

    def _unfold(self) -> None:
        # Validation leaves some lists of parts as iterators.
        for message in self.messages:
            if isinstance(message, dict):
                content = message.get("content")
                if not isinstance(content, str | list | None):
                    message["content"] = list(content)

    def _check_guided(self) -> None:
        self._unfold()
        for index, message in enumerate(self.messages):
            if not isinstance(message, dict):
                raise InvalidRequest(
                    "decoding takes messages with a 'role' and 'content', not harmony messages.",
                    param=f"messages.{index}",
                )
        texts = [("messages", self.messages)]
        for param, guide in self.guides():
            if guide.prompt is not None:
                raise InvalidRequest(
                    "Chat takes 'messages' (or 'without') as its guide, not 'prompt'.",
                    param=f"{param}.prompt",
                )
            texts.append((f"{param}.messages", guide.messages or []))
        for param, messages in texts:
            if has_non_text_content(messages):
                raise InvalidRequest(
                    "decoding takes text messages only: remove images, audio and video.",
                    param=param,
                )
        for method in self.methods:
            if method.trace and not self.include_reasoning:
                raise InvalidRequest(
                    "A trace would show the reasoning that include_reasoning=false hides.",
                    param=f"{self.param_of(method)}.trace",
                )


class CompletionsRequest(Guided, CompletionRequest):
    """Body of /v1/completions."""

    field_names: ClassVar[set[str] | None] = None

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
            for field in ("messages", "documents"):
                if getattr(guide, field) is not None:
                    raise InvalidRequest(
                        f"Completions take 'prompt' (or 'without') as their guide, not '{field}'.",
                        param=f"{param}.{field}",
                    )
        if self.max_tokens == 0:
            raise InvalidRequest(
                "max_tokens is 0: there is no token to decode.", param="max_tokens"
            )
