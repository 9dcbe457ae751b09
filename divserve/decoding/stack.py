"""A stack: the methods of one request, in the order in which they are applied.

1. the contrast (cad … uscd) combines the streams' raw logits;
2. the candidate filter drops tokens according to the primary's raw distribution;
3. the temperature method divides by its factor, computed from the raw streams;

then come vLLM's grammar, penalties, temperature, top-k and top-p. The order of a list therefore
does not matter. All methods of a stack are one program of the kernel, and methods with equal guides
share one stream; only a temperature method with a guide of its own needs a second program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, zip_longest
from typing import Any

from pydantic_core import PydanticCustomError

from divserve.decoding.base import Method
from divserve.decoding.entropy_switch import EntropySwitch
from divserve.decoding.look_back import LookBack
from divserve.decoding.spec import Adapter, Spec
from divserve.decoding.vdgd import Vdgd
from divserve_contract import STATISTICS, Form, Program

__all__ = ["Stack", "share_guide"]

ORDER = ("contrast", "filter", "temperature", "switch", "search")

OF_GUIDE = ("kl", "jsd")
"""Figures that depend on the guide: reported under the method's name when a stack has two."""


class Stack:
    """One or more methods that are applied together.

    Raises:
        PydanticCustomError: two of them clash.
    """

    def __init__(self, methods: Method | Sequence[Method]) -> None:
        given = [methods] if isinstance(methods, Method) else list(methods)
        for one, other in combinations(given, 2):
            _check_pair(one, other)
        self.methods = tuple(sorted(given, key=lambda m: ORDER.index(m.role)))

    @property
    def name(self) -> str:
        """The methods' names in the order of application: ``adacad+kl_temperature``."""
        return "+".join(m.method for m in self.methods)

    @property
    def guide_models(self) -> dict[str, str]:
        """By method: the model that its guide asks for, where it asks for one."""
        named = ((m.method, m.guide.model) for m in self.methods if m.guide is not None)
        return {method: model for method, model in named if model is not None}

    @property
    def trace(self) -> bool:
        """Whether one of them asks for a trace."""
        return any(m.trace is not None for m in self.methods)

    @property
    def trace_by_token(self) -> bool:
        """Whether each chunk of a stream carries its tokens' trace entries; "final" precedes."""
        asked = [m.trace for m in self.methods if m.trace is not None]
        return bool(asked) and all(trace.at == "token" for trace in asked)

    @property
    def top(self) -> int:
        """How many of the likeliest tokens of each stream the trace has: the most asked for."""
        return max((m.trace.top or 0 for m in self.methods if m.trace is not None), default=0)

    def streams(self, two_seconds: bool) -> tuple[str, ...]:
        """Names of the distributions whose likeliest tokens a trace has, in the order of `Top`.

        Args:
            two_seconds: what the method of this name says of the prompt.
        """
        guided = [method.method for method in self.methods if method.guided]
        of_contrast = ["guide"] if guided and not (two_seconds and self.amateurs) else []
        of_temperature = [f"{guided[-1]}.guide"] if two_seconds else []
        return ("primary", *of_contrast, *of_temperature, *self.amateurs, "guided")

    @property
    def switches(self) -> bool:
        """Whether the request moves between two models."""
        return isinstance(self.methods[0], EntropySwitch)

    @property
    def look_back(self) -> LookBack | None:
        """The method that compares with earlier steps, if there is one."""
        first = self.methods[0]
        return first if isinstance(first, LookBack) else None

    @property
    def grounded(self) -> Vdgd | None:
        """The method that reads a grounding text, if there is one."""
        return next((m for m in self.methods if isinstance(m, Vdgd)), None)

    @property
    def scores_texts(self) -> bool:
        """Whether a given text has log-probs: they need no earlier step and no text read first."""
        return not (self.look_back or self.switches or self.grounded)

    def spec(
        self,
        temperature: float,
        guides: Sequence[list[int] | None],
        grounding: Sequence[int] = (),
        adapters: Sequence[Adapter | None] = (),
    ) -> Spec:
        """The order for the engine.

        Args:
            temperature: the request's sampling temperature; 0 means greedy.
            guides: token ids of each method's guide; None for methods without one.
            grounding: token ids of the grounding text.
            adapters: the adapter of each method's guide, None for the request's own; empty if all
                are.
        """
        programs = [method.program(temperature) for method in self.methods]
        own = _streams(guides, adapters)
        of_second_guide = None
        if self.two_seconds(guides, adapters):
            of_second_guide = programs.pop()._replace(form=float(Form.OBSERVE))
        distinct = own[:1] if of_second_guide is None or self.amateurs else [own[0], own[-1]]
        grounded = self.grounded
        switching, looking = self.methods[0], self.look_back
        return Spec(
            program=_merged(programs),
            guides=[ids for ids, _ in distinct],
            temperature_program=of_second_guide,
            grounding=list(grounding),
            average=grounded is not None and grounded.reduce == "avg",
            amateurs=self.amateurs,
            switch=switching.switch() if isinstance(switching, EntropySwitch) else None,
            look=None if looking is None else looking.look(temperature),
            top=self.top,
            adapters=tuple(adapter for _, adapter in distinct) if set(adapters) - {None} else (),
        )

    @property
    def amateurs(self) -> tuple[str, ...]:
        """Models beside the served one whose logits are the second and the third stream."""
        return next((m.amateurs for m in self.methods if m.amateurs), ())

    def two_seconds(
        self, guides: Sequence[list[int] | None], adapters: Sequence[Adapter | None] = ()
    ) -> bool:
        """Whether the methods use two different second streams.

        Args:
            guides: token ids of each method's guide; None for methods without one.
            adapters: as in `spec`.
        """
        own = _streams(guides, adapters)
        return len(own) > 0 and (len(self.amateurs) > 0 or own[0] != own[-1])

    def reports(self, two_seconds: bool) -> tuple[str, ...]:
        """Names of the figures of a token."""
        figures = dict.fromkeys((*STATISTICS, "kl_min", "alarm"), 0.0)
        return tuple(self._figures(figures, figures if two_seconds else None, 0.0))

    def report(self, row: Sequence[float], temperature: float) -> dict[str, float]:
        """The figures of one token from its statistics row (a second row follows, if any)."""
        size = len(STATISTICS)
        main = dict(zip(STATISTICS, row[:size], strict=True))
        if self.look_back is not None:
            return self._figures(main | LookBack.statistics(row[size:]), None, temperature)
        second = dict(zip(STATISTICS, row[size:], strict=True)) if len(row) > size else None
        return self._figures(main, second, temperature)

    def details(self, row: Sequence[float]) -> dict[str, Any]:
        """Details of a token that only the trace has, from its statistics row."""
        return LookBack.details(row[len(STATISTICS) :]) if self.look_back is not None else {}

    def _figures(
        self, main: Mapping[str, float], second: Mapping[str, float] | None, temperature: float
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        for method in self.methods:
            if second is not None and method is self.methods[-1]:
                figures = method.report(second, temperature)
                found |= {
                    f"{method.method}.{k}" if k in OF_GUIDE else k: v for k, v in figures.items()
                }
            else:
                found |= method.report(main, temperature)
        return found


def _streams(
    guides: Sequence[list[int] | None], adapters: Sequence[Adapter | None]
) -> list[tuple[list[int], Adapter | None]]:
    """What each guide reads, and with which adapter."""
    pairs = zip_longest(guides, adapters)
    return [(ids, adapter) for ids, adapter in pairs if ids is not None]


def share_guide(methods: Any, needs_guide: Mapping[str, bool]) -> Any:
    """The method bodies, where those that lack a required guide get the first one given.

    Args:
        methods: the list as the client sent it; anything else is returned unchanged.
        needs_guide: by method name, whether a guide must be given.
    """
    if not isinstance(methods, list | tuple):
        return methods
    given = [m.get("guide") for m in methods if isinstance(m, Mapping)]
    first = next((guide for guide in given if guide is not None), None)
    if first is None:
        return methods
    return [
        {**m, "guide": first}
        if isinstance(m, Mapping) and m.get("guide") is None and _needs(m, needs_guide)
        else m
        for m in methods
    ]


def _needs(body: Mapping[str, Any], needs_guide: Mapping[str, bool]) -> bool:
    name = body.get("method")
    return isinstance(name, str) and needs_guide.get(name, False)


def _merged(rows: Sequence[Program]) -> Program:
    """One program for all methods: those that may be stacked change different fields."""
    neutral = Program()
    changed = {
        name: value
        for row in rows
        for name, value in row._asdict().items()
        if value != getattr(neutral, name)
    }
    return neutral._replace(**changed)


def _check_pair(one: Method, other: Method) -> None:
    """Raises `PydanticCustomError` when two methods cannot be stacked."""
    names = {"one": one.method, "other": other.method}
    if alone := next((m.method for m in (one, other) if m.alone), None):
        raise PydanticCustomError(
            "methods_clash",
            "'{one}' and '{other}' clash: {alone} takes no other method beside it",
            {**names, "alone": alone},
        )
    grounded, rest = (one, other) if isinstance(one, Vdgd) else (other, one)
    if isinstance(grounded, Vdgd) and rest.role == "contrast":
        if grounded.score == "replace":
            raise PydanticCustomError(
                "methods_clash",
                "'{one}' and '{other}' clash: vdgd replaces the logits that the contrast makes; "
                "set its 'score' to 'subtract'",
                names,
            )
        if rest.amateurs:
            raise PydanticCustomError(
                "methods_clash",
                "'{one}' and '{other}' clash: a grounding text cannot be added to a contrast of "
                "models",
                names,
            )
        if rest.program(1.0).form != Form.LINEAR:
            raise PydanticCustomError(
                "methods_clash",
                "'{one}' and '{other}' clash: a grounding text can only be added to a contrast of "
                "logits (cad, adacad, cfg, instructive, linear_alignment)",
                names,
            )
    for role in ORDER:
        if role in one.roles and role in other.roles:
            raise PydanticCustomError(
                "methods_clash",
                "'{one}' and '{other}' clash: a stack has at most one {role}",
                {**names, "role": ROLES[role]},
            )


ROLES = {
    "contrast": "contrast",
    "filter": "candidate filter",
    "temperature": "temperature method",
}
