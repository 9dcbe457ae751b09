"""Builds what goes into ``extra_body``, checked as the server checks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import TypeAdapter

from divserve.decoding import METHODS, Decoding, Method

__all__ = ["Prompted", "decoding", "preset", "with_document"]

Body = dict[str, Any]
OneMethod = str | Mapping[str, Any] | Method
Trace = bool | Literal["final"] | Mapping[str, Any]

ADAPTER: TypeAdapter[Any] = TypeAdapter(Decoding)


@dataclass(frozen=True, slots=True)
class Prompted:
    """A question about a document: ``create(**prompted, …)`` takes it as it is."""

    messages: list[dict[str, str]]
    extra_body: Body

    def keys(self) -> tuple[str, ...]:
        """Makes it unpack with ``**``."""
        return ("messages", "extra_body")

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)


def decoding(
    methods: OneMethod | Sequence[OneMethod],
    *,
    guide: Mapping[str, Any] | None = None,
    trace: Trace = False,
    **parameters: Any,
) -> Body:
    """``extra_body`` that decodes with a method, or with several.

    Args:
        methods: a name (``"cad"``), an object of `Method` or its fields, or a list of these.
        guide: what the second stream sees, for each method that has no guide and needs one.
        trace: whether the statistics of every token come back, and when.
        parameters: of the method, if it is one.

    Raises:
        pydantic.ValidationError: the server would refuse it.
        TypeError: parameters beside several methods.
    """
    one = methods if isinstance(methods, str | Mapping | Method) else None
    if one is None and parameters:
        raise TypeError(f"{', '.join(parameters)}: give parameters within each of several methods")
    given = cast(Sequence[OneMethod], methods) if one is None else [one]
    bodies = [_body(method) for method in given]
    bodies[0] |= parameters
    if trace is not False:
        bodies[0]["trace"] = trace
    if guide is not None:
        bodies = _with_guide(bodies, guide)
    value: Any = bodies if one is None else bodies[0]
    ADAPTER.validate_python(value)
    return {"decoding": value}


def preset(
    name: str = "faithful",
    *,
    context_weight: float | Literal["auto"] | None = None,
    guide: Mapping[str, Any] | None = None,
    trace: Trace = False,
) -> Body:
    """``extra_body`` that decodes with a preset of the server.

    Args:
        name: one of ``GET /v1/decoding/presets``.
        context_weight: how much the document counts, 0 to 2, or "auto".
        guide: what the second stream sees, instead of the preset's guides.
        trace: as in `decoding`.

    Raises:
        pydantic.ValidationError: the server would refuse it. (It may not have the preset.)
    """
    value: Body = {"preset": name}
    if context_weight is not None:
        value["context_weight"] = context_weight
    if guide is not None:
        value["guide"] = dict(guide)
    if trace is not False:
        value["trace"] = trace
    ADAPTER.validate_python(value)
    return {"decoding": value}


def with_document(
    document: str,
    question: str,
    methods: OneMethod | Sequence[OneMethod] = "adacad",
    *,
    system: str | None = None,
    trace: Trace = False,
    **parameters: Any,
) -> Prompted:
    """A question about a document, whose guide lacks the document.

    Args:
        document: stands before the question in one message of the user.
        question: what is asked.
        methods: as in `decoding`.
        system: a system message; the guide has it too.
        trace: as in `decoding`.
        parameters: of the method, if it is one.
    """
    text = f"{document}\n\n"
    first = [] if system is None else [{"role": "system", "content": system}]
    messages = [*first, {"role": "user", "content": f"{text}{question}"}]
    guide = {"without": text}
    return Prompted(messages, decoding(methods, guide=guide, trace=trace, **parameters))


def _body(method: OneMethod) -> Body:
    if isinstance(method, str):
        return {"method": method}
    if isinstance(method, Method):
        return method.model_dump(exclude_unset=True)
    return dict(method)


def _with_guide(bodies: list[Body], guide: Mapping[str, Any]) -> list[Body]:
    """The guide in the first method that may have it; the others take it from there."""
    takes = [
        place
        for place, body in enumerate(bodies)
        if "guide" not in body and getattr(METHODS.get(body.get("method", "")), "guided", True)
    ]
    return [
        {**body, "guide": dict(guide)} if place in takes[:1] else body
        for place, body in enumerate(bodies)
    ]
