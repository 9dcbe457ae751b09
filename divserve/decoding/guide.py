"""The field ``guide`` of a method: what the second stream sees, and which model reads it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["CHOICES", "SELECTS", "Guide", "Selector", "quoted"]

SELECTS = ("without", "documents", "between", "role", "message")
"""Fields that name a part of the request which the guide lacks."""
CHOICES = ("without", "messages", "prompt", "documents", "between", "role", "message", "first_of")
LONGEST_MODEL = 256
"""Characters of a model's name in a guide."""
MOST_TEXTS = 64
"""Texts of ``without``: each is one search through the whole prompt."""
MOST_PAIRS = 16
LONGEST_MARKER = 256
MOST_SELECTORS = 8
_AT_MOST: dict[str, Any] = {"maxItems": MOST_TEXTS}

Marker = Annotated[str, Field(min_length=1, max_length=LONGEST_MARKER)]
Pair = tuple[Marker, Marker]


def quoted(names: tuple[str, ...]) -> str:
    """The names in a sentence: 'a', 'b' and 'c'."""
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} and {last}"


def _pairs(value: Any) -> Any:
    """One pair of markers as a list of one; pydantic would call a pair a tuple."""
    if not isinstance(value, list | tuple):
        return value
    pairs = [value] if any(isinstance(one, str) for one in value) else value
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise PydanticCustomError(
                "markers_pair",
                "pair {number} is not an opening and a closing marker, such as {example}",
                {"number": number, "example": '["<document>", "</document>"]'},
            )
    return pairs


class Selector(BaseModel):
    """Names a part of the request: the guide is the same request without it.

    Give exactly one of ``without``, ``documents``, ``between``, ``role`` and ``message``.
    """

    model_config = ConfigDict(extra="forbid")

    choices: ClassVar[tuple[str, ...]] = SELECTS

    without: str | Annotated[list[str], Field(json_schema_extra=_AT_MOST)] | None = Field(
        default=None,
        description="Text that occurs verbatim in the messages or the prompt; the guide is the "
        "same request with it removed wherever it occurs.",
    )
    documents: Literal[True] | None = Field(
        default=None,
        description="The guide is the same chat without its documents: the field 'documents' and "
        'the text parts marked with "name": "document" (chat only).',
    )
    between: Annotated[
        list[Pair] | None, BeforeValidator(_pairs, json_schema_input_type=Pair | list[Pair] | None)
    ] = Field(
        default=None,
        min_length=1,
        max_length=MOST_PAIRS,
        description="An opening and a closing marker, or a list of such pairs: the guide lacks "
        "what stands between them, and the markers themselves.",
    )
    role: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="The guide lacks the messages of this role (chat only).",
    )
    message: Annotated[int, Field(strict=True, ge=-(10**6), le=10**6)] | None = Field(
        default=None,
        description="The guide lacks the message of this index; -1 is the last (chat only).",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Selector:
        given = [name for name in self.choices if getattr(self, name) is not None]
        if len(given) != 1 and not self._may_have(given):
            raise PydanticCustomError(
                "guide_choice",
                "give exactly one of {choices} (given: {given})",
                {"choices": self._told(), "given": ", ".join(given) or "none"},
            )
        if (given and getattr(self, given[0]) in ("", [])) or "" in self.texts():
            raise PydanticCustomError("guide_empty", "'{name}' is empty", {"name": given[0]})
        # Not a constraint of the list: the union would report that it is no string.
        if len(self.texts()) > MOST_TEXTS:
            raise PydanticCustomError(
                "guide_long",
                "has {given} texts; the most is {most}",
                {"given": len(self.texts()), "most": MOST_TEXTS},
            )
        if any(opening == closing for opening, closing in self.between or ()):
            raise PydanticCustomError("markers_equal", "an opening and its closing marker differ")
        return self

    def _may_have(self, given: list[str]) -> bool:
        return False

    @classmethod
    def _told(cls) -> str:
        return quoted(cls.choices)

    def texts(self) -> list[str]:
        """The texts of ``without`` as a list; empty when another field was given."""
        if self.without is None:
            return []
        return [self.without] if isinstance(self.without, str) else self.without


class Guide(Selector):
    """What the second stream sees, and which model reads it.

    Give exactly one of ``without``, ``messages``, ``prompt``, ``documents``, ``between``, ``role``,
    ``message`` and ``first_of``, or ``model`` alone.
    """

    choices: ClassVar[tuple[str, ...]] = CHOICES

    messages: list[dict[str, Any]] | None = Field(
        default=None, description="The guide's messages in full (chat only)."
    )
    prompt: str | list[int] | None = Field(
        default=None,
        description="The guide's prompt in full: text or token ids (completions only).",
    )
    first_of: list[Selector] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_SELECTORS,
        description="Parts that the request may have: the guide lacks the first that it has.",
    )
    if_missing: Literal["refuse", "plain"] = Field(
        default="refuse",
        description="If the request does not have the part: reject it, or decode it plainly and "
        "say so in the account.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_MODEL,
        description="The served model or one of its LoRA adapters, by name: the guide is read by "
        "it. Alone, the guide is the request's own prompt. By default: the request's model.",
    )

    @model_validator(mode="after")
    def _can_miss(self) -> Guide:
        if self.if_missing == "plain" and not self.selectors:
            raise PydanticCustomError(
                "nothing_missing",
                "'if_missing' goes with {choices}: nothing else can be missing",
                {"choices": quoted((*SELECTS, "first_of"))},
            )
        return self

    def _may_have(self, given: list[str]) -> bool:
        return not given and self.model is not None

    @classmethod
    def _told(cls) -> str:
        return f"{quoted(cls.choices)}, or 'model' alone"

    @property
    def of_model_only(self) -> bool:
        """Whether it says which model reads, but not what."""
        return all(getattr(self, name) is None for name in CHOICES)

    @property
    def selectors(self) -> list[Selector]:
        """The parts to look for, in their order; empty for a guide that is given in full."""
        if self.first_of is not None:
            return self.first_of
        return [self] if any(getattr(self, name) is not None for name in SELECTS) else []
