"""What is compared: plain decoding, methods, and the two controls of a sampled method.

A contrast's gain is often only that of its mask or of its colder sampling (arXiv:2504.10020,
2607.25196). So a method that is sampled is also compared with plain decoding under its mask, and
with plain decoding at the temperature that has the method's mean entropy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divserve.errors import StartupError
from divserve.evaluation.items import Item

__all__ = ["PLAIN", "Arm", "Listed", "colder", "given", "masked", "of_method", "plain"]

PLAIN = "plain"
MASKS = {
    "contrastive": ("alpha", "min_p"),
    "dexperts": ("filter_p", "top_p"),
    "linear_alignment": ("nucleus", "top_p"),
    "vdgd": ("candidate_top_p", "top_p"),
}
"""By method: the parameter of its mask, and the sampling parameter that masks the same tokens.

The plausibility line p ≥ alpha·max p is min-p. The nucleus of a method may be taken at another
temperature than the sampling; the control takes it at the latter.
"""


@dataclass(frozen=True, slots=True)
class Listed:
    """What the evaluation needs of an entry of /v1/decoding/methods."""

    available: bool
    guide_required: bool
    defaults: Mapping[str, Any]
    grounding: bool
    """Whether it reads a grounding text."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Listed:
        """From the entry's JSON."""
        fields = entry["parameters"]["properties"]
        return cls(
            available=entry["available"],
            guide_required=entry["guide_required"],
            defaults={name: one["default"] for name, one in fields.items() if "default" in one},
            grounding="grounding" in fields,
        )


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode every item of a task."""

    name: str
    decoding: tuple[Mapping[str, Any], ...] = ()
    """Methods without their guides; empty: plain decoding."""
    temperature: float = 0.0
    sampling: Mapping[str, float] = field(default_factory=dict)
    """More parameters of the request."""
    control_of: str | None = None
    """The arm whose control this is."""

    @property
    def sampled(self) -> bool:
        """Whether its answers depend on the seed."""
        return self.temperature > 0

    def decoding_of(self, item: Item, listed: Mapping[str, Listed]) -> list[dict[str, Any]] | None:
        """The request's field ``decoding``; None where a guide is needed and nothing can be left
        out: such an item is decoded plainly, and the report counts it."""
        made = [_with_document(dict(one), item, listed[one["method"]]) for one in self.decoding]
        whole = [one for one in made if one is not None]
        return whole if whole and len(whole) == len(made) else None


def _with_document(body: dict[str, Any], item: Item, listed: Listed) -> dict[str, Any] | None:
    for name, value in (("guide", {"without": item.document}), ("grounding", item.document)):
        needed = listed.guide_required if name == "guide" else listed.grounding
        if needed and name not in body:
            if item.document is None:
                return None
            body[name] = value
    return body


def plain(temperature: float) -> Arm:
    """Plain decoding; ``plain`` when greedy."""
    return Arm(_named(PLAIN, temperature), temperature=temperature)


def of_method(name: str, decoding: Sequence[Mapping[str, Any]], temperature: float) -> Arm:
    """A method, or a stack of them."""
    return Arm(_named(name, temperature), tuple(decoding), temperature)


def masked(arm: Arm, listed: Mapping[str, Listed]) -> Arm | None:
    """Plain decoding under the mask of a method; None if it has none."""
    sampling: dict[str, float] = {}
    for one in arm.decoding:
        if one["method"] in MASKS:
            parameter, name = MASKS[one["method"]]
            sampling[name] = one.get(parameter, listed[one["method"]].defaults[parameter])
    if not sampling:
        return None
    told = ", ".join(f"{name} {value:g}" for name, value in sampling.items())
    name = f"plain with the mask of {arm.name} ({told})"
    return Arm(name, (), arm.temperature, sampling, control_of=arm.name)


def colder(arm: Arm, temperature: float) -> Arm:
    """Plain decoding at the temperature at which it has the mean entropy of a method."""
    name = f"plain at the entropy of {arm.name} (temperature {temperature:.2f})"
    return Arm(name, (), temperature, control_of=arm.name)


def given(texts: Sequence[str], listed: Mapping[str, Listed]) -> dict[str, list[dict[str, Any]]]:
    """The methods of the command line by name: ``NAME``, ``NAME=JSON`` or ``NAME=FILE.json``.

    Raises:
        StartupError: one is unknown to the server, or is not JSON.
    """
    made: dict[str, list[dict[str, Any]]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        body = _read(name, value) if equals else {"method": name}
        stack = body if isinstance(body, list) else [body]
        for one in stack:
            method = str(one.get("method")) if isinstance(one, dict) else ""
            if method not in listed:
                raise StartupError(f"--method {name}: the server has no method {method!r}")
            if not listed[method].available:
                raise StartupError(f"--method {name}: this server was started without {method}")
        if name in made or name == PLAIN:
            raise StartupError(f"--method {name}: give every method a name of its own")
        made[name] = stack
    return made


def _read(name: str, value: str) -> Any:
    try:
        text = value if value.lstrip().startswith(("{", "[")) else Path(value).read_text()
        return json.loads(text)
    except OSError as error:
        raise StartupError(f"--method {name}: cannot read {value}: {error.strerror}") from None
    except ValueError as error:
        raise StartupError(f"--method {name}: not JSON: {error}") from None


def _named(name: str, temperature: float) -> str:
    return name if temperature == 0 else f"{name} at {temperature:g}"
