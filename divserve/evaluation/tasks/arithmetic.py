"""Word problems of one and two steps with small numbers."""

from __future__ import annotations

import random
from collections.abc import Callable

from divserve.evaluation.items import Item, Task

__all__ = ["task"]

EACH = 30
SEED = 5
NAMES = ("Anna", "Ben", "Carla", "David", "Eva", "Farid", "Grace", "Hugo", "Iris", "Jonas")
THINGS = ("apples", "pencils", "stamps", "marbles", "books", "coins", "eggs", "tickets")
TEMPLATES: tuple[tuple[str, str, Callable[[int, int, int], int]], ...] = (
    ("add", "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?",
     lambda a, b, c: a + b),
    ("subtract", "{name} has {sum} {thing} and gives {b} of them away. How many {thing} are left?",
     lambda a, b, c: a),
    ("multiply", "{name} has {a} boxes with {c} {thing} in each. How many {thing} are that?",
     lambda a, b, c: a * c),
    ("two steps", "{name} has {a} boxes with {c} {thing} in each and {b} more. How many are that?",
     lambda a, b, c: a * c + b),
)  # fmt: skip
PROMPT = "{problem} Work it out step by step, and end with the number."


def task() -> Task:
    """Thirty problems of each kind."""
    draw = random.Random(SEED)
    items = []
    for kind, text, answer in TEMPLATES:
        for number in range(EACH):
            a, b, c = draw.randint(3, 20), draw.randint(2, 15), draw.randint(2, 9)
            problem = text.format(
                name=draw.choice(NAMES), thing=draw.choice(THINGS), a=a, b=b, c=c, sum=a + b
            )
            items.append(
                Item(
                    id=f"{kind}-{number}",
                    group=kind,
                    messages=[{"role": "user", "content": PROMPT.format(problem=problem)}],
                    document=problem,
                    judge="number",
                    answers=[str(answer(a, b, c))],
                    max_tokens=128,
                )
            )
    return Task(name="arithmetic", items=items)
