"""What every method shares: the guide, the trace switch, and how it describes itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from divserve.decoding.trace import TraceField
from divserve_contract import Program

__all__ = ["Guide", "Method", "Role"]

NaturalGuide = Literal["last_token", "noise"]

Role = Literal["contrast", "filter", "temperature", "switch", "search"]
"""What a method does. A stack has at most one method of each role; see also `Method.alone`."""

CHOICES = ("without", "messages", "prompt", "documents")
_CHOICES = "'without', 'messages', 'prompt' and 'documents'"
LONGEST_MODEL = 256
"""Characters of a model's name in a guide."""
MOST_TEXTS = 64
"""Texts of ``without``: each is one search through the whole prompt."""
_AT_MOST: dict[str, Any] = {"maxItems": MOST_TEXTS}


class Guide(BaseModel):
    """What the second stream sees, and which model reads it.

    Give exactly one of ``without``, ``messages``, ``prompt`` and ``documents``, or ``model`` alone.
    """

    model_config = ConfigDict(extra="forbid")

    without: str | Annotated[list[str], Field(json_schema_extra=_AT_MOST)] | None = Field(
        default=None,
        description="Text that occurs verbatim in the messages or the prompt; the guide is the "
        "same request with it removed wherever it occurs.",
    )
    messages: list[dict[str, Any]] | None = Field(
        default=None, description="The guide's messages in full (chat only)."
    )
    prompt: str | list[int] | None = Field(
        default=None,
        description="The guide's prompt in full: text or token ids (completions only).",
    )
    documents: Literal[True] | None = Field(
        default=None,
        description="The guide is the same chat without its documents: the field 'documents' and "
        'the text parts marked with "name": "document" (chat only).',
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_MODEL,
        description="The served model or one of its LoRA adapters, by name: the guide is read by "
        "it. Alone, the guide is the request's own prompt. By default: the request's model.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Guide:
        given = [name for name in CHOICES if getattr(self, name) is not None]
        if not given and self.model is not None:
            return self
        if len(given) != 1:
            raise PydanticCustomError(
                "guide_choice",
                "give exactly one of {choices}, or 'model' alone (given: {given})",
                {"choices": _CHOICES, "given": ", ".join(given) or "none"},
            )
        if getattr(self, given[0]) in ("", []) or "" in self.texts():
            raise PydanticCustomError("guide_empty", "'{name}' is empty", {"name": given[0]})
        # Not a constraint of the list: the union would report that it is no string.
        if len(self.texts()) > MOST_TEXTS:
            raise PydanticCustomError(
                "guide_long",
                "has {given} texts; the most is {most}",
                {"given": len(self.texts()), "most": MOST_TEXTS},
            )
        return self

    @property
    def of_model_only(self) -> bool:
        """Whether it says which model reads, but not what."""
        return all(getattr(self, name) is None for name in CHOICES)

    def texts(self) -> list[str]:
        """The texts of ``without`` as a list; empty when another field was given."""
        if self.without is None:
            return []
        return [self.without] if isinstance(self.without, str) else self.without


class Method(BaseModel):
    """A decoding method: its parameters, its paper, and its program for the kernel.

    A new method is one subclass in a file of its own, one line in ``divserve.decoding.METHODS`` and
    its tests.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    title: ClassVar[str]
    summary: ClassVar[str]
    """One sentence: what it does for the user."""
    formula: ClassVar[str]
    paper: ClassVar[str]
    url: ClassVar[str]
    needs: ClassVar[str] = "a guide prompt"
    role: ClassVar[Role] = "contrast"
    alone: ClassVar[bool] = False
    """Whether it cannot be combined with other methods."""
    guided: ClassVar[bool] = True
    """Whether it uses a second stream."""
    amateurs: ClassVar[tuple[str, ...]] = ()
    """Models beside the served one whose logits it uses: the second stream, then the third."""
    engines: ClassVar[tuple[str, ...]] = ()
    """What else the server must be started with, by the names of the flags."""
    natural_guide: ClassVar[NaturalGuide | None] = None
    """The guide used when the request has none; None: the request must have one."""
    neutral: ClassVar[Mapping[str, float] | None] = None
    """Parameters with which the answer is the plain answer; None: there are none."""
    reports: ClassVar[tuple[str, ...]]
    """Names of the figures that `report` returns for every token."""

    method: str
    guide: Guide | None = Field(default=None, description="What the second stream sees.")
    trace: TraceField = Field(
        default=None,
        description="Return the statistics of every token.",
        json_schema_extra={"default": False},
    )

    @model_validator(mode="after")
    def _guide_present(self) -> Method:
        if self.guide is not None and not self.guided:
            raise PydanticCustomError("guide_unused", "has no second stream: leave 'guide' out")
        if self.guide is None and self.needs_guide():
            raise PydanticCustomError(
                "guide_missing",
                "needs a guide: give 'guide' with one of {choices}",
                {"choices": _CHOICES},
            )
        return self

    @classmethod
    def needs_guide(cls) -> bool:
        """Whether a request must say what the second stream sees."""
        return cls.guided and cls.natural_guide is None

    @property
    def roles(self) -> frozenset[Role]:
        """The roles that no other method of a stack may have."""
        return frozenset({self.role})

    @property
    def distorts(self) -> bool:
        """Whether its guide is the request with its instruction distorted."""
        return False

    @abstractmethod
    def program(self, temperature: float) -> Program:
        """The kernel's program for these parameters.

        Args:
            temperature: the request's sampling temperature; 0 means greedy.
        """

    @abstractmethod
    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        """The figures of one token under the names of `reports` (entropy and divergences in nats).

        Args:
            statistics: the engine's statistics row by the names of ``STATISTICS``.
            temperature: as in `program`.
        """

    @classmethod
    def parameters(cls) -> dict[str, Any]:
        """The method's own parameters and their defaults, without guide and trace."""
        return {k: f.default for k, f in cls.model_fields.items() if k not in Method.model_fields}
