"""What the benchmark of speculation asks for: five tasks over short documents and small files."""

from __future__ import annotations

import random
from enum import StrEnum
from textwrap import dedent
from typing import Any

from tests.support.engine import random_prompt

__all__ = ["Task", "prompts", "random_prompts"]


class Task(StrEnum):
    """From answers that are all document to answers that have nothing of it."""

    COPY = "copying"
    ANSWER = "extractive questions"
    EDIT = "code edit"
    SUMMARY = "summary"
    WRITE = "open writing"


DOCUMENTS = (
    (
        """
        The Kestrel lighthouse stands on the rocks west of Port Anselm. It was built in
        1871 from grey granite that was cut on the island of Orra and carried over by
        sail. The tower is 38 metres high and has 164 steps. Its lamp burned oil until
        1929, when a generator was installed in the keeper's yard. The last keeper, Tomas
        Reidel, left the house in 1983, and the light has been controlled from the harbour
        office since then. On clear nights it can be seen from a distance of 22 sea miles.
        Visitors may climb the tower on Sundays from May to September, but the gallery
        stays closed in strong wind.
        """,
        "Who was the last keeper?",
    ),
    (
        """
        Brine shrimp live in salt lakes in which hardly any other animal survives. They
        swim on their backs and filter algae out of the water with eleven pairs of legs.
        In spring the females carry live young, but when the lake begins to dry out they
        lay eggs with a thick shell. Such eggs rest in the mud for years without water and
        hatch within two days after rain. At Lake Sorrel about four million flamingos and
        grebes feed on the shrimp every autumn. Since the river was diverted in 1958, the
        lake has lost a third of its area, and its salt content has risen from nine to
        sixteen percent.
        """,
        "What happens to the eggs after rain?",
    ),
    (
        """
        Members of the Linden Street library may borrow up to twelve books and four films
        at once. Books are lent for four weeks and films for one week. A loan can be
        extended twice by telephone or at the front desk, unless someone else has reserved
        the item. For every day of delay a fee of twenty cents is charged for each item,
        but no more than the price of a new copy. The reading room is open on weekdays
        from nine to eight, and the archive in the basement only on Wednesday afternoons.
        Maps and newspapers printed before 1900 may not be copied, but they may be
        photographed without a flash.
        """,
        "When is the archive open?",
    ),
    (
        """
        The committee examined the collapse of the grain silo at Varrow on 17 August 2004.
        It found that three of the eight anchor bolts on the north side had been cut
        during the repair of a conveyor in the spring and had never been replaced.
        Inspectors had noted the gap in June, but their letter was sent to the former
        owner of the farm. On the day of the accident the silo held 610 tonnes of wheat,
        which is less than its limit of 700 tonnes. A gust of 94 kilometres per hour was
        enough to tilt it. Nobody was hurt, because the crew had gone to lunch ten minutes
        earlier.
        """,
        "How many tonnes of wheat did the silo hold?",
    ),
    (
        """
        To repair a punctured tyre, turn the bicycle upside down and take out the wheel.
        Let all the air escape and lift one side of the tyre over the rim with two plastic
        levers. Pull out the tube, pump it up and hold it under water: bubbles show where
        the hole is. Dry the tube, roughen the place with sandpaper and spread a thin
        layer of glue on it. Wait for five minutes before you press the patch on. Then
        feel along the inside of the tyre for glass or thorns, put the tube back, and work
        the tyre onto the rim with your thumbs. Pump it to the pressure that is printed on
        its side.
        """,
        "How long should you wait before you press the patch on?",
    ),
    (
        """
        Elena Marchetti opened her first bakery in Trieste in 1934 with money that she had
        earned as a cook on the ships to Alexandria. Her almond bread became known because
        it stayed fresh for three weeks, so that sailors took it along on long journeys.
        During the war she baked for the hospital and was paid in flour. In 1951 she moved
        to a larger house near the fish market and employed nineteen people. She never
        wrote her recipe down. After her death in 1972 her nephew Carlo found that she had
        always added a spoon of sea water to the dough, and he told a newspaper about it.
        """,
        "What had she always added to the dough?",
    ),
    (
        """
        The Halvorsen night train leaves Bergmark at 21:15 and reaches the coast at 6:40
        the next morning. It has four sleeping cars, two cars with seats and a dining car
        that closes at midnight. A bed in a compartment for two costs 780 crowns, and
        children under six travel free of charge if they share a bed. Bicycles must be
        booked three days in advance. In winter the train stops at Tind for twenty
        minutes, because a second engine is added for the climb over the pass. Passengers
        for the ferry to Sund should sit in the last two cars, which are taken directly to
        the harbour.
        """,
        "Why does the train stop at Tind in winter?",
    ),
    (
        """
        Researchers at the Calder Institute have followed 412 apple trees of nine kinds
        since 1996. Trees on the northern slope bloomed eight days earlier at the end of
        the study than at its beginning, and those in the valley eleven days earlier. Late
        frost destroyed more than half of the flowers in 2007, 2011 and 2017. The old kind
        called Winter Amber suffered least, since its buds open slowly. The authors advise
        growers to plant it along the lower edge of an orchard, where cold air gathers in
        the night. They also write that two hives of bees for each hectare raised the
        harvest by a fifth.
        """,
        "Why did Winter Amber suffer least?",
    ),
)
"""Documents and a question that a sentence of each answers."""

FILES = (
    (
        """
        def read_scores(path):
            # One name and score a line.
            scores = {}
            with open(path) as lines:
                for line in lines:
                    name, score = line.strip().split(",")
                    scores[name] = int(score)
            return scores


        def best(scores, count=3):
            ordered = sorted(scores, key=scores.get, reverse=True)
            return ordered[:count]


        if __name__ == "__main__":
            for name in best(read_scores("scores.txt")):
                print(name)
        """,
        "Rename the function best to leaders.",
    ),
    (
        """
        class Account:
            def __init__(self, owner, balance=0):
                self.owner = owner
                self.balance = balance
                self.history = []

            def deposit(self, amount):
                if amount <= 0:
                    raise ValueError("amount must be positive")
                self.balance += amount
                self.history.append(("deposit", amount))

            def withdraw(self, amount):
                if amount > self.balance:
                    raise ValueError("not enough money")
                self.balance -= amount
                self.history.append(("withdraw", amount))
        """,
        "Rename the attribute history to entries.",
    ),
    (
        """
        import math


        def distance(a, b):
            dx, dy = a[0] - b[0], a[1] - b[1]
            return math.sqrt(dx * dx + dy * dy)


        def length(points):
            total = 0.0
            for first, second in zip(points, points[1:]):
                total += distance(first, second)
            return total


        def centre(points):
            x = sum(p[0] for p in points) / len(points)
            y = sum(p[1] for p in points) / len(points)
            return x, y
        """,
        "Use math.hypot in the function distance.",
    ),
    (
        """
        from collections import Counter


        def words(text):
            cleaned = "".join(c if c.isalpha() else " " for c in text)
            return cleaned.lower().split()


        def frequent(text, count=10):
            found = Counter(words(text))
            return found.most_common(count)


        def report(path):
            with open(path) as file:
                text = file.read()
            for word, times in frequent(text):
                print(f"{word:<20}{times:>6}")
        """,
        "Change the default of count from 10 to 25.",
    ),
)
"""Files and a change to each."""

INSTRUCTIONS = {
    Task.COPY: "Repeat the text above exactly, word for word.",
    Task.ANSWER: "{} Answer with the exact sentence from the text.",
    Task.EDIT: "{} Print the whole file after the change, and nothing else.",
    Task.SUMMARY: "Summarize the text above in two sentences, in your own words.",
    Task.WRITE: "Write a short story about a child who finds an unusual stone.",
}


def prompts(
    tokenizer: Any, task: Task, count: int, number: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts, and of their guides, which lack the document.

    Args:
        tokenizer: with a chat template.
        task: what is asked for.
        count: number of requests; they share documents where there are not enough of these.
        number: of the round, each of which begins with another document.
    """

    def ids(content: str) -> list[int]:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    texts, found = FILES if task is Task.EDIT else DOCUMENTS, []
    for i in range(count):
        text, detail = texts[(number * count + i) % len(texts)]
        text = dedent(text).strip()
        if task is not Task.EDIT:
            text = text.replace("\n", " ")
        asked = INSTRUCTIONS[task].format(detail)
        found.append((ids(f"{text}\n\n{asked}"), ids(asked)))
    return found


def random_prompts(vocab: int, count: int, number: int) -> list[tuple[list[int], list[int]]]:
    """The same for a model without a tokenizer: a random document between random tokens."""
    rng, found = random.Random(number), []
    for _ in range(count):
        before, document, after = (random_prompt(rng, n, vocab) for n in (8, 96, 12))
        found.append(([*before, *document, *after], [*before, *after]))
    return found
