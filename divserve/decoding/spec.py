"""What the methods of one request ask of the engine: programs, and texts to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from divserve.decoding.look import Look
from divserve.decoding.reading import Reading
from divserve.decoding.switch import Switch
from divserve_contract import Program

__all__ = ["BASE", "Adapter", "Spec", "Top"]

Adapter = tuple[Any, ...]
"""A LoRA adapter: the fields of vLLM's ``LoRARequest`` in their order; `BASE`: none."""
BASE: Adapter = ()
"""The served model without an adapter."""

Top = tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
"""The likeliest tokens of each stream at one position, and their log-probs (nats): of the primary,
the guides, the amateurs, and the guided distribution (`Stack.streams`)."""


@dataclass(frozen=True, slots=True)
class Spec:
    """The decoding of one request, in plain types only, so that any encoder can serialize it."""

    program: Program
    guides: list[list[int]] = field(default_factory=list)
    """Prompt token ids of the guides, none of them empty: first the guide of ``program``, then that
    of ``temperature_program``."""
    temperature_program: Program | None = None
    """A program whose temperature factor comes from the second guide, or None."""
    grounding: list[int] = field(default_factory=list)
    """Token ids of a text whose reduced distributions are the third stream; empty: no such text."""
    average: bool = False
    """Whether they are reduced to the mean of their log-probs instead of the maximum."""
    amateurs: tuple[str, ...] = ()
    """Models whose logits are the second and the third stream of ``program``; the guides are then
    for ``temperature_program`` only."""
    switch: Switch | None = None
    """How the request moves between a small and a large engine; None: it does not move."""
    look: Look | None = None
    """How the request looks back at its own steps; None: it does not look back."""
    reading: Reading | None = None
    """The end of all prompts is scored; None: it is not."""
    adapters: tuple[Adapter | None, ...] = ()
    """The adapter of each guide, None where it is the request's own; empty: it is for all."""

    top: int = 0
    """How many of the likeliest tokens of each stream are reported with a token."""

    @property
    def texts(self) -> list[list[int]]:
        """Everything that is read beside the prompt: the guides, then the grounding text."""
        return [*self.guides, *([self.grounding] if self.grounding else [])]

    def adapter(self, guide: int) -> Adapter | None:
        """The adapter of the guide of this index; None: the request's own."""
        return self.adapters[guide] if self.adapters else None
