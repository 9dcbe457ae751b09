"""Extractive questions: each answer is a few words of a short report about invented things."""

from __future__ import annotations

import random

from divserve.evaluation.items import Item, Task

__all__ = ["task"]

REPORTS = 50
SEED = 11
PLACES = (
    "Varrow", "Tind", "Orra", "Bergmark", "Calder", "Sorrel", "Linden", "Anselm", "Marstow",
    "Eldby", "Quill", "Hesper",
)  # fmt: skip
PEOPLE = (
    "Tomas Reidel", "Elena Marchetti", "Ingrid Falk", "Samuel Oduya", "Mei Tanaka", "Pavel Horak",
    "Rosa Almeida", "Jonas Brandt", "Amina Yusuf", "Peter Lund",
)  # fmt: skip
THINGS = (
    "lighthouse",
    "bridge",
    "library",
    "mill",
    "observatory",
    "theatre",
    "ferry",
    "greenhouse",
)
STUFF = ("granite", "oak", "brick", "iron", "limestone", "cedar")
REASONS = ("a storm", "a fire", "a flood", "an earthquake", "a dispute about its cost")
TEXT = (
    "The {thing} of {place} was opened in {year} and is built of {stuff}. It was designed by "
    "{person}, who also lived there for {lived} years. {closer} closed it in {closed} after "
    "{reason}. Today {visitors} people visit it every year, and a ticket costs {price} crowns."
)
QUESTIONS = (
    ("In which year was the {thing} opened?", "year"),
    ("What is the {thing} built of?", "stuff"),
    ("Who designed the {thing}?", "person"),
    ("Who closed the {thing}?", "closer"),
    ("How many people visit the {thing} every year?", "visitors"),
    ("How many crowns does a ticket cost?", "price"),
)


def task() -> Task:
    """Three questions about each of the reports."""
    draw = random.Random(SEED)
    items = []
    for number in range(REPORTS):
        person, closer = draw.sample(PEOPLE, 2)
        slots = {
            "thing": draw.choice(THINGS), "place": draw.choice(PLACES), "stuff": draw.choice(STUFF),
            "person": person, "closer": closer, "reason": draw.choice(REASONS),
            "year": draw.randint(1840, 1930), "closed": draw.randint(1940, 2005),
            "lived": draw.randint(3, 30), "visitors": draw.randint(12, 98) * 100,
            "price": draw.randint(5, 95),
        }  # fmt: skip
        text = TEXT.format(**slots)
        for question, slot in draw.sample(QUESTIONS, 3):
            asked = question.format(**slots)
            prompt = f"{text}\n\nAnswer from the text, in a few words. {asked}"
            answer = str(slots[slot])
            right = [answer, f"{slots[slot]:,}"] if isinstance(slots[slot], int) else [answer]
            items.append(
                Item(
                    id=f"{number}-{slot}",
                    group=slot,
                    messages=[{"role": "user", "content": prompt}],
                    document=text,
                    answers=right,
                )
            )
    return Task(name="extractive", items=items)
