"""Document against memory: what a model does with a document that says something else.

Four groups about each fact: the document contradicts what is known and is to be followed; there is
none; it is about something else; it is known to be wrong and the truth is asked for. A method that
follows documents should win the first and not lose the others.
"""

from __future__ import annotations

from divserve.evaluation.items import Item, Task
from divserve.evaluation.tasks.facts import FACTS, Fact

__all__ = ["task"]

FOLLOW = (
    "Answer in one sentence, using this document.\n\nDocument: {document}\n\nQuestion: {question}"
)
DISTRUST = (
    "This text is known to be false. Do not use it.\n\nText: {document}\n\n"
    "Answer in one sentence from what you know. Question: {question}"
)
PLACES = ("survey", "yearbook", "almanac", "handbook", "encyclopedia")


def task() -> Task:
    """Four items for each of the hundred facts."""
    items = []
    for number, fact in enumerate(FACTS):
        other = FACTS[(number + 7) % len(FACTS)]
        items += [
            _item(number, "document", FOLLOW, fact, fact.false, [fact.true], _text(number, fact)),
            Item(
                id=f"{number}-none",
                group="no document",
                messages=_chat(f"Answer in one sentence. Question: {fact.question}"),
                answers=[fact.true],
                others=[fact.false],
            ),
            _item(
                number, "irrelevant document", FOLLOW, fact, fact.true, [fact.false],
                _text(number, other),
            ),
            _item(
                number, "wrong document", DISTRUST, fact, fact.true, [fact.false],
                _text(number, fact),
            ),
        ]  # fmt: skip
    return Task(name="conflict", items=items)


def _item(
    number: int, group: str, prompt: str, fact: Fact, right: str, wrong: list[str], document: str
) -> Item:
    return Item(
        id=f"{number}-{group.split()[0]}",
        group=group,
        messages=_chat(prompt.format(document=document, question=fact.question)),
        document=document,
        answers=[right],
        others=wrong,
    )


def _text(number: int, fact: Fact) -> str:
    said = fact.statement.format(fact.false)
    place = PLACES[number % len(PLACES)]
    return f"According to the {1990 + number % 30} {place}, much has changed. {said}"


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
