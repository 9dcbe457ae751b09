"""What the bodies of all guided routes share: the typed field ``decoding``.

A body without it (or with null) is a plain request and behaves as in vLLM. With it, serving gives
the request the guides of every prompt (`Guided.give_guides`), and ``to_sampling_params`` packs the
order for the engine. Whatever would make vLLM drop or distort that order is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from divserve.api.conflicts import refuse_beside_small, refuse_conflicts, refuse_no_prompt
from divserve.api.record import Record
from divserve.decoding import Adapter, Decoding, Guide, Method, PresetRef, Reading, Spec, Stack
from divserve.engine.order import RESERVED_PREFIX, OnSmall, with_spec
from divserve.errors import InvalidRequest

__all__ = ["LONGEST_NAME", "Guided"]

LONGEST_NAME = 128
"""Characters of a model's name that metrics and logs keep."""
PLAIN = "plain"
"""What metrics and logs call a request without a method."""

Guides = Sequence[list[int] | None]
"""Token ids of the guide of each method of a stack; None for a method without a guide."""


class Guided(BaseModel):
    """The part that the bodies of all guided routes share."""

    prompt_field: ClassVar[str] = "messages"
    """The field that the prompts come from."""
    length_fields: ClassVar[tuple[str, ...]] = ("max_completion_tokens", "max_tokens")
    """The fields that limit the tokens of an answer; the first one that is set applies."""

    decoding: Decoding | None = Field(
        default=None,
        description="The method to decode with and its parameters, a list of them, or a preset's "
        "name. See /v1/decoding/methods and /v1/decoding/presets.",
    )

    _guides: Sequence[Guides] = PrivateAttr(default=())
    _unpacked: Iterator[Guides] = PrivateAttr(default=iter(()))
    _found_by: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _reason: str | None = PrivateAttr(default=None)
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
        if self.methods:
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
        if self.decoding is None or isinstance(self.decoding, PresetRef):
            return []
        return [*self.decoding] if isinstance(self.decoding, list) else [self.decoding]

    @property
    def stack(self) -> Stack | None:
        """The methods in the order of application; None for a plain request."""
        return Stack(self.methods) if self.methods else None

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
            record.prompt = _shown(getattr(self, self.prompt_field))

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
        refuse_beside_small(self, self.prompt_field)
        self._small = True

    def answered_as(self, model: str) -> str:
        """The model name of the answer, where vLLM would put ``model``."""
        return self._alias or model

    def param_of(self, method: Method) -> str:
        """The path of a method in the body: ``decoding``, or ``decoding.0`` in a list."""
        if not isinstance(self.decoding, list):
            return "decoding"
        return f"decoding.{next(i for i, m in enumerate(self.methods) if m is method)}"

    @property
    def prompts(self) -> int:
        """Number of prompts that are answered."""
        return 1

    @property
    def longest(self) -> int | None:
        """The most tokens of one answer; None if the request does not limit them."""
        given = (getattr(self, field, None) for field in self.length_fields)
        return next((number for number in given if number is not None), None)

    def guide_with(self, param: str, guide: Guide) -> None:
        """Gives the method whose guide has this path in the body another guide."""
        made: Any = [
            method.model_copy(update={"guide": guide})
            if f"{self.param_of(method)}.guide" == param
            else method
            for method in self.methods
        ]
        self.decoding = made if isinstance(self.decoding, list) else made[0]

    def guides(self) -> Iterator[tuple[str, Guide]]:
        """The guides given in the body, with their paths."""
        for method in self.methods:
            if method.guide is not None:
                yield f"{self.param_of(method)}.guide", method.guide

    def give_guides(
        self,
        guides: Sequence[Guides],
        grounding: Sequence[int] = (),
        found_by: Mapping[str, str] | None = None,
    ) -> None:
        """Sets the guides of each prompt: token ids for each method of the stack, or None.

        Args:
            guides: one entry per prompt.
            grounding: token ids of the grounding text.
            found_by: by method, the selector that found the part which its guide lacks.
        """
        self._found_by = found_by or {}
        self._guides = guides
        self._unpacked = iter(guides)
        self._grounding = list(grounding)

    def decode_plainly(self, reason: str) -> None:
        """Decodes without the methods; the account says why."""
        self._reason = reason
        self._record.method = PLAIN

    @property
    def reason(self) -> str | None:
        """Why the request is decoded without its methods; None if it is not."""
        return self._reason

    @property
    def found_by(self) -> Mapping[str, str]:
        """By method, the selector that found the part which its guide lacks."""
        return self._found_by

    def give_adapters(self, adapters: Mapping[str, Adapter | None]) -> None:
        """Sets what each ``guide.model`` stands for; None: the request's own model."""
        self._adapters = adapters

    def _adapters_of(self) -> list[Adapter | None]:
        """By method of the stack: the adapter of its guide; None: the request's own."""
        return [self._adapter_of(method) for method in cast(Stack, self.stack).methods]

    def _adapter_of(self, method: Method) -> Adapter | None:
        name = None if method.guide is None else method.guide.model
        return None if name is None else self._adapters[name]

    def read_by_another(self, method: Method) -> bool:
        """Whether another model than the request's own reads the guide of this method."""
        return self._adapter_of(method) is not None

    def side_tokens(self, prompt: int) -> int:
        """Number of tokens read beside the prompt of this index."""
        if self._reason is not None:
            return 0
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

    def _next_reading(self) -> Reading | None:
        """What is scored of the next prompt; None: nothing."""
        return None

    def _pack(self, params: Any) -> Any:
        """Adds the order for the next prompt to vLLM's sampling parameters, if guided."""
        if self.decoding is None or self._reason is not None:
            if self._small:
                with_spec(params, OnSmall(None))
            return params
        self._temperature = params.temperature
        # vLLM scores the prompt of a chat with `echo` unasked; the numbers would be the plain ones.
        params.prompt_logprobs = None
        spec = replace(self._order(next(self._unpacked)), reading=self._next_reading())
        order = OnSmall(spec) if self._small else spec
        with_spec(params, order)
        return params


def _shown(prompt: Any) -> Any:
    """A prompt as it was sent, for a log."""
    if isinstance(prompt, list):
        return [_shown(one) for one in prompt]
    return prompt.model_dump(exclude_none=True) if isinstance(prompt, BaseModel) else prompt
