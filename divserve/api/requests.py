"""The bodies of the two generation routes: vLLM's, with the typed field ``decoding``.

A body without it (or with null) is a plain request and behaves as in vLLM. With it, serving gives
the request one guide per prompt (`Guided.give_guides`), and ``to_sampling_params`` packs the order
for the engine. Whatever would make vLLM drop or bend that order is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from divserve.decoding import Decoding, Spec
from divserve.engine.group import WIRE_KEY
from divserve.engine.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    has_non_text_content,
)
from divserve.errors import InvalidRequest

__all__ = ["ChatRequest", "CompletionsRequest", "Guided"]

CONFLICTS = {
    "use_beam_search": "beam search ranks whole beams instead of sampling token by token",
    "prompt_embeds": "a guide needs a prompt of tokens",
    "kv_transfer_params": "the guide's keys and values can not be transferred",
    "ec_transfer_params": "multimodal prompts have no guide yet",
    "truncate_prompt_tokens": "prompt and guide would be cut at different places",
}
"""Fields that exclude ``decoding`` when set, and why."""


class Guided(BaseModel):
    """The part that both bodies share."""

    decoding: Decoding | None = Field(
        default=None,
        description="The method to decode with, and its parameters. See /v1/decoding/methods.",
    )

    _guides: Sequence[list[int]] = PrivateAttr(default=())
    _unpacked: Iterator[list[int]] = PrivateAttr(default=iter(()))
    _temperature: float = PrivateAttr(default=1.0)

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Guided:
        if any(key.startswith(WIRE_KEY) for key in getattr(self, "vllm_xargs", None) or ()):
            raise InvalidRequest(
                f"'{WIRE_KEY}…' is reserved: use the field 'decoding'.", param="vllm_xargs"
            )
        if self.decoding is None:
            return self
        for field, why in CONFLICTS.items():
            if getattr(self, field, None):
                raise InvalidRequest(
                    f"decoding cannot be combined with {field}: {why}.", param="decoding"
                )
        self._check_guided()
        return self

    def _check_guided(self) -> None:
        """Raises `InvalidRequest` for what only this route cannot combine with ``decoding``."""

    @property
    def guide_lengths(self) -> list[int]:
        """Tokens of the guide of each prompt."""
        return [len(guide) for guide in self._guides]

    @property
    def sampled_at(self) -> float:
        """The temperature of the final sampling parameters, after the server's defaults."""
        return self._temperature

    def give_guides(self, guides: Sequence[list[int]]) -> None:
        """Sets the guide's token ids, one list per prompt."""
        self._guides = guides
        self._unpacked = iter(guides)

    def _pack(self, params: Any) -> Any:
        """Adds the order for the next prompt to vLLM's sampling parameters, if guided."""
        if self.decoding is None:
            return params
        self._temperature = params.temperature
        spec = Spec(row=self.decoding.row(params.temperature), guide=next(self._unpacked))
        params.extra_args = {**(params.extra_args or {}), WIRE_KEY: spec}
        return params


class ChatRequest(Guided, ChatCompletionRequest):
    """Body of /v1/chat/completions."""

    # vLLM caches the known fields' names on the class; a subclass would find its parent's.
    field_names: ClassVar[set[str] | None] = None

    def to_sampling_params(self, max_tokens: int, default_sampling_params: dict[str, Any]) -> Any:
        """vLLM's parameters; called once per prompt, in the order of the prompts."""
        return self._pack(super().to_sampling_params(max_tokens, default_sampling_params))

    def _check_guided(self) -> None:
        assert self.decoding is not None
        # Validation leaves some lists as iterators that can be read once; here they are read twice.
        for index, message in enumerate(self.messages):
            if not isinstance(message, dict):
                raise InvalidRequest(
                    "decoding takes messages with a 'role' and 'content', not harmony messages.",
                    param=f"messages.{index}",
                )
            content = message.get("content")
            if not isinstance(content, str | list | None):
                message["content"] = list(content)
        guide = self.decoding.guide
        if guide is not None and guide.prompt is not None:
            raise InvalidRequest(
                "Chat takes 'messages' (or 'without') as its guide, not 'prompt'.",
                param="decoding.guide.prompt",
            )
        for param, messages in (
            ("messages", self.messages),
            ("decoding.guide.messages", guide.messages if guide else None),
        ):
            if has_non_text_content(messages):
                raise InvalidRequest(
                    "decoding takes text messages only: remove images, audio and video.",
                    param=param,
                )
        if self.decoding.trace and not self.include_reasoning:
            raise InvalidRequest(
                "A trace would show the reasoning that include_reasoning=false hides.",
                param="decoding.trace",
            )


class CompletionsRequest(Guided, CompletionRequest):
    """Body of /v1/completions."""

    field_names: ClassVar[set[str] | None] = None

    def to_sampling_params(
        self, max_tokens: int, default_sampling_params: dict[str, Any] | None = None
    ) -> Any:
        """vLLM's parameters; called once per prompt, in the order of the prompts."""
        return self._pack(super().to_sampling_params(max_tokens, default_sampling_params))

    def _check_guided(self) -> None:
        assert self.decoding is not None
        guide = self.decoding.guide
        if guide is not None and guide.messages is not None:
            raise InvalidRequest(
                "Completions take 'prompt' (or 'without') as their guide, not 'messages'.",
                param="decoding.guide.messages",
            )
        if self.max_tokens == 0:
            raise InvalidRequest(
                "max_tokens is 0: there is no token to decode.", param="max_tokens"
            )
