"""Whether an answer is right: by the words in it, its number, or the tests that its code passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from divserve.evaluation.items import Item
from divserve.evaluation.sandbox import passes

__all__ = ["judged", "normal"]

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
ARTICLES = re.compile(r"\b(a|an|the)\b")
CODE = re.compile(r"```(?:python)?\n(.*?)(?:```|\Z)", re.DOTALL)


def normal(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces (as SQuAD's evaluation)."""
    plain = re.sub(r"[^\w\s]", "", text.lower())
    return " ".join(ARTICLES.sub(" ", plain).split())


def judged(item: Item, text: str) -> bool | None:
    """Whether `text` answers the item; None where nothing is judged. May run code (`sandbox`)."""
    judge = JUDGES[item.judge]
    return None if judge is None else judge(item, text)


def _contains(item: Item, text: str) -> bool:
    """A right answer stands in the text, and no wrong one before it."""
    right, wrong = _first(item.answers, text), _first(item.others, text)
    return right is not None and (wrong is None or right < wrong)


def _first(phrases: Sequence[str], text: str) -> int | None:
    """Where the first of the phrases begins, as whole words; None if none stands there."""
    padded = f" {normal(text)} "
    found = [at for one in phrases if (at := padded.find(f" {normal(one)} ")) >= 0]
    return min(found, default=None)


def _exact(item: Item, text: str) -> bool:
    return normal(text) in map(normal, item.answers)


def _number(item: Item, text: str) -> bool:
    """The last number of the text is the right one."""
    found = NUMBER.findall(text)
    return bool(found) and float(found[-1].replace(",", "")) in map(float, item.answers)


def _python(item: Item, text: str) -> bool:
    """The answer's first block of code, or all of it, passes the tests."""
    block = CODE.search(text)
    return passes(block.group(1) if block else text, item.tests)


JUDGES: dict[str, Callable[[Item, str], bool] | None] = {
    "contains": _contains,
    "exact": _exact,
    "number": _number,
    "python": _python,
    "none": None,
}
