"""Instructions beside a distracting remark: the question is to be answered, the remark ignored."""

from __future__ import annotations

from divserve.evaluation.items import Item, Task
from divserve.evaluation.tasks.facts import FACTS

__all__ = ["task"]

REMARKS = (
    "A stranger shouts: it is {}!",
    "A note in the margin says: {}.",
    "(Somebody has written the word {} here by mistake.)",
    "My little brother thinks that it is {}.",
)
INSTRUCTION = "Ignore the remark and answer the question in one short sentence."


def task() -> Task:
    """One item for each fact; the remark names the false answer."""
    items = []
    for number, fact in enumerate(FACTS):
        remark = REMARKS[number % len(REMARKS)].format(fact.false)
        items.append(
            Item(
                id=str(number),
                messages=[
                    {"role": "system", "content": INSTRUCTION},
                    {"role": "user", "content": f"{fact.question} {remark}"},
                ],
                document=remark,
                answers=[fact.true],
                others=[fact.false],
            )
        )
    return Task(name="distractors", items=items)
