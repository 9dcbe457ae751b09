"""What a method hands to the engine: a program for the kernel, and what the guides read.

Every method is a program of the one operation in ``divserve_kernels`` (formulas there), so rows of
different methods go through the same call. Programs and statistics are those of
``divserve_contract``, which the kernels import as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from divserve.decoding.look import Look
from divserve.decoding.switch import Switch
from divserve_contract import STATISTICS, Form, Program

__all__ = ["STATISTICS", "Form", "Program", "Spec"]


@dataclass(frozen=True, slots=True)
class Spec:
    """The order that travels with one request to the engine (plain types: it serialises)."""

    row: Program
    guides: list[list[int]] = field(default_factory=list)
    """Prompt token ids of the guide streams, none of them empty: first the guide of ``row``, then
    that of ``cooling``."""
    cooling: Program | None = None
    """A program whose temperature factor comes from the second guide; None: there is none."""
    grounding: list[int] = field(default_factory=list)
    """Token ids of a text whose distributions, reduced, are the third stream; empty: none."""
    average: bool = False
    """Whether they are reduced to the mean of their log-probs instead of the maximum."""
    amateurs: tuple[str, ...] = ()
    """Models whose logits are the second stream of ``row``, and the third; the guides are then for
    ``cooling`` alone."""
    switch: Switch | None = None
    """How the request moves between a small and a large engine; None: it stays where it is."""
    look: Look | None = None
    """How the request looks back at its own steps; None: it does not."""

    def to_wire(self) -> dict[str, Any]:
        """Returns a dict of plain lists for ``SamplingParams.extra_args``."""
        return {
            "row": list(self.row),
            "guides": self.guides,
            "cooling": None if self.cooling is None else list(self.cooling),
            "grounding": self.grounding,
            "average": self.average,
            "amateurs": list(self.amateurs),
            "switch": None if self.switch is None else self.switch.to_wire(),
            "look": None if self.look is None else self.look.to_wire(),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Spec:
        """Inverse of `to_wire`."""
        row: Sequence[float] = wire["row"]
        cooling: Sequence[float] | None = wire["cooling"]
        return cls(
            row=Program(*row),
            guides=[list(guide) for guide in wire["guides"]],
            cooling=None if cooling is None else Program(*cooling),
            grounding=list(wire["grounding"]),
            average=wire["average"],
            amateurs=tuple(wire["amateurs"]),
            switch=None if wire["switch"] is None else Switch.from_wire(wire["switch"]),
            look=None if wire["look"] is None else Look.from_wire(wire["look"]),
        )

    @property
    def streams(self) -> list[list[int]]:
        """Everything that is read beside the prompt: the guides, then the grounding text."""
        return [*self.guides, *([self.grounding] if self.grounding else [])]
