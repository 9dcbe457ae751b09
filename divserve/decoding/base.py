"""What every method shares: the guide, the trace switch, and how it describes itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from divserve.decoding.guide import CHOICES, Guide, quoted
from divserve.decoding.trace import TraceField
from divserve_contract import Program

__all__ = ["Method", "Role"]

NaturalGuide = Literal["last_token", "noise"]

Role = Literal["contrast", "filter", "temperature", "switch", "search"]
"""What a method does. A stack has at most one method of each role; see also `Method.alone`."""


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
                {"choices": quoted(CHOICES)},
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
