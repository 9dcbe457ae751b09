"""What is sent: weighted choices, prompts with a document, and the body of a request."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from divserve.decoding import METHODS, Decoding

__all__ = ["Mix", "Prompts", "body", "decoding", "lengths", "weights"]

PLAIN = "plain"


def weights(text: str) -> dict[str, float]:
    """``cad=2,adacad`` as a dictionary; an omitted weight is 1.

    Raises:
        ValueError: not of this form, or no weight is above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if not name or name in found:
            raise ValueError(f"{text!r}: names must be there, and once")
        found[name] = float(weight or 1)
        if not 0 <= found[name] < float("inf"):
            raise ValueError(f"{text!r}: weights are 0 or above")
    if not any(found.values()):
        raise ValueError(f"{text!r}: no weight is above 0")
    return found


def lengths(text: str) -> dict[tuple[int, int], float]:
    """``16-48=3,64`` as ranges of tokens (both ends included) with their weights."""
    found = {}
    for name, weight in weights(text).items():
        low, _, high = name.partition("-")
        found[int(low), int(high or low)] = weight
        if not 1 <= int(low) <= int(high or low):
            raise ValueError(f"{name!r} is no range of tokens")
    return found


def decoding(kind: str, document: str) -> Any:
    """The ``decoding`` field for a method or several (``adacad+kl_temperature``).

    Raises:
        ValueError: there is no such method, or the methods cannot be combined.
    """
    given = [_method(name, document) for name in kind.split("+")]
    value = given[0] if len(given) == 1 else given
    try:
        TypeAdapter[Any](Decoding).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{kind}: {error.errors()[0]['msg']}") from error
    return value


def _method(name: str, document: str) -> dict[str, Any]:
    if name not in METHODS:
        raise ValueError(f"{name!r} is no method; there are {', '.join(METHODS)}")
    cls = METHODS[name]
    own: dict[str, Any] = {"grounding": document} if "grounding" in cls.model_fields else {}
    return {"method": name, **own, **({"guide": {"without": document}} if cls.guided else {})}


@dataclass(frozen=True)
class Mix:
    """Draws the kind of the next request, and how long its answer may get."""

    guided_share: float
    methods: Mapping[str, float]
    lengths: Mapping[tuple[int, int], float]

    def kinds(self) -> list[str]:
        """Every kind of request that can be drawn."""
        guided = [name for name, weight in self.methods.items() if weight]
        plain = [PLAIN] if self.guided_share < 1 else []
        return plain + (guided if self.guided_share else [])

    def kind(self, rng: random.Random) -> str:
        """``plain`` or a method."""
        if rng.random() >= self.guided_share:
            return PLAIN
        return rng.choices([*self.methods], [*self.methods.values()])[0]

    def max_tokens(self, rng: random.Random) -> int:
        """Drawn uniformly from one of the ranges."""
        low, high = rng.choices([*self.lengths], [*self.lengths.values()])[0]
        return rng.randint(low, high)


class Prompts:
    """Questions with documents: from the file, or notes that contradict what a model knows."""

    def __init__(self, path: Path, notes: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        self._questions = [json.loads(line) for line in lines if line.strip()]
        self._notes = notes

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """A document and a question that it answers."""
        asked = rng.choice(self._questions)
        if document := asked.get("document"):
            return document, asked["question"]
        others = [one for one in self._questions if one is not asked]
        chosen = rng.sample(others, min(self._notes, len(others)))
        notes = [_note(asked, chosen[0] if chosen else asked)]
        notes += [_note(one, one) for one in chosen[1:]]
        # In a different order each time: a prefix cache that held every document would hide the
        # cost of reading them.
        rng.shuffle(notes)
        return "Notes of the archive:\n" + "\n".join(notes), asked["question"]


def _note(asked: Mapping[str, Any], answered: Mapping[str, Any]) -> str:
    return f"- {asked['question']} The answer is {answered['answers'][0]}."


def body(
    model: str,
    kind: str,
    prompt: tuple[str, str],
    max_tokens: int,
    temperature: float,
    ignore_eos: bool,
) -> dict[str, Any]:
    """A streamed chat completion; plain ones get the document too."""
    document, question = prompt
    found: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"{document}\n\n{question}"}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if ignore_eos:
        found["ignore_eos"] = True
    if kind != PLAIN:
        found["decoding"] = decoding(kind, document)
    return found
