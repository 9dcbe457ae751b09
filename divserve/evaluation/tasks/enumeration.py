"""One member of a small closed set, asked for many times: how evenly sampling covers the set."""

from __future__ import annotations

from divserve.evaluation.items import Item, Task

__all__ = ["task"]

TIMES = 20
SETS = {
    "day": ("a day of the week", "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "season": ("a season of the year", "spring summer autumn fall winter"),
    "planet": (
        "a planet of our solar system",
        "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    ),
    "colour": (
        "a colour of the rainbow",
        "red orange yellow green blue indigo violet purple",
    ),
    "continent": (
        "a continent",
        "Africa Antarctica Asia Europe Australia Oceania America",
    ),
    "digit": ("an even number below ten", "2 4 6 8 two four six eight"),
}
PROMPT = "Name {what} at random. Answer with one word."


def task() -> Task:
    """Twenty items for each set, which differ by their seeds only."""
    return Task(
        name="enumeration",
        greedy=False,
        items=[
            Item(
                id=f"{name}-{number}",
                group=name,
                messages=[{"role": "user", "content": PROMPT.format(what=what)}],
                answers=members.split(),
                max_tokens=8,
            )
            for name, (what, members) in SETS.items()
            for number in range(TIMES)
        ],
    )
