"""Facts that small models know, each with a false answer of the same kind."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FACTS", "Fact"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A question with its answer."""

    question: str
    statement: str
    """With ``{}`` for the answer."""
    true: str
    false: str


CAPITALS = """
France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing, Russia Moscow,
Greece Athens, Egypt Cairo, Portugal Lisbon, Austria Vienna, Hungary Budapest, Poland Warsaw,
Ireland Dublin, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Cuba Havana,
Belgium Brussels, Canada Ottawa, Australia Canberra, Thailand Bangkok, Iraq Baghdad, Iran Tehran,
Turkey Ankara, Peru Lima, Chile Santiago, Kenya Nairobi, Ukraine Kyiv, Romania Bucharest,
Bulgaria Sofia, Serbia Belgrade, Croatia Zagreb, Vietnam Hanoi, Indonesia Jakarta,
Philippines Manila, Lebanon Beirut, Syria Damascus, Nepal Kathmandu
"""
LANGUAGES = """
Brazil Portuguese, Mexico Spanish, Austria German, Egypt Arabic, Iran Persian, Israel Hebrew,
Japan Japanese, Greece Greek, Poland Polish, Sweden Swedish, Italy Italian, Turkey Turkish
"""
CONTINENTS = """
Kenya Africa, Japan Asia, Brazil America, France Europe, India Asia, Egypt Africa, Poland Europe,
Nigeria Africa, Vietnam Asia, Norway Europe, Ghana Africa, Thailand Asia
"""
AUTHORS = """
Hamlet Shakespeare, Emma Austen, Ulysses Joyce, Dracula Stoker, Frankenstein Shelley,
Don_Quixote Cervantes, War_and_Peace Tolstoy, Oliver_Twist Dickens, The_Odyssey Homer,
The_Hobbit Tolkien, Faust Goethe, Moby_Dick Melville
"""
SYMBOLS = """
gold Au, silver Ag, iron Fe, sodium Na, potassium K, lead Pb, tin Sn, copper Cu, mercury Hg,
helium He, oxygen O, carbon C
"""
COLOURS = """
a_banana yellow, grass green, snow white, coal black, a_ripe_tomato red, the_sky blue,
a_carrot orange, milk white, a_lemon yellow, blood red, a_frog green, chocolate brown
"""


def _facts(pairs: str, question: str, statement: str) -> list[Fact]:
    """Each answer's false one is that of a later pair, three places on, that differs."""
    split = [pair.split() for pair in pairs.replace("\n", " ").split(",")]
    known = [(name.replace("_", " "), answer) for name, answer in split]
    facts = []
    for place, (name, true) in enumerate(known):
        later = (known[(place + step) % len(known)][1] for step in range(3, len(known)))
        false = next(answer for answer in later if answer != true)
        facts.append(Fact(question.format(name), statement.format(name=name, it="{}"), true, false))
    return facts


FACTS = (
    *_facts(CAPITALS, "What is the capital of {}?", "The capital of {name} is {it}."),
    *_facts(LANGUAGES, "Which language do most people in {} speak?",
            "Most people in {name} speak {it}."),
    *_facts(CONTINENTS, "On which continent is {}?", "{name} is a country in {it}."),
    *_facts(AUTHORS, "Who wrote {}?", "{name} was written by {it}."),
    *_facts(SYMBOLS, "What is the chemical symbol of {}?",
            "The chemical symbol of {name} is {it}."),
    *_facts(COLOURS, "What colour is {}?", "The colour of {name} is {it}."),
)  # fmt: skip
