"""Texts that are taken out of a request: against a plain oracle, and the work for hostile ones."""

from __future__ import annotations

import asyncio
import re
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divserve.api.cut import LARGE, MOST_FOUND, beside_loop, found, removed, replaced
from divserve.errors import InvalidRequest

SIZE = 300_000
"""Characters of the places in which hostile texts are searched."""
MOST_WORK = 100
"""How many times the CPU time of a benign request a hostile one of the same size may take; a
regular expression of its texts took thousands."""


def plainly(texts: list[str], place: str) -> str:
    """What no occurrence of a text covers, character by character."""
    covered: set[int] = set()
    for text in texts:
        for start in range(len(place)):
            if place.startswith(text, start):
                covered.update(range(start, start + len(text)))
    return "".join(char for at, char in enumerate(place) if at not in covered)


WORDS = st.text("ab", min_size=1, max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(st.text("abc", max_size=30)))
def test_every_covered_character_goes(texts: list[str], places: list[str]) -> None:
    left, missing = removed(texts, places, "without")
    assert left == [plainly(texts, place) for place in places]
    assert missing == [i for i, text in enumerate(texts) if not any(text in p for p in places)]
    assert found(texts[0], places) == (0 not in missing)


@pytest.mark.parametrize(
    ("texts", "place", "left"),
    [
        (["foo bar", "bar baz"], "one foo bar baz two", "one  two"),
        (["aa"], "xaaax", "xx"),
        (["aba"], "ababa-aba", "-"),
        (["abcab"], "abcabcab abcabab", " ab"),
        (["a", "a"], "banana", "bnn"),
    ],
)
def test_overlaps_leave_no_remainder(texts: list[str], place: str, left: str) -> None:
    assert removed(texts, [place], "without") == ([left], [])


def test_no_text_is_found_across_two_places() -> None:
    assert removed(["ab"], ["a", "b", "ab"], "without") == (["a", "b", ""], [])
    assert replaced("ab", "c", ["a", "b", "abab"], "instruction") == ["a", "b", "cc"]
    assert removed(["ab"], [], "without") == ([], [0])
    assert replaced("ab", "c", [], "instruction") == []


def test_the_number_of_occurrences_is_bounded() -> None:
    """A short instruction with a long replacement would make a body many times as large."""
    fits, beyond = ["a-" * MOST_FOUND], ["a-" * MOST_FOUND + "a"]
    assert removed(["a"], fits, "x")[0] == ["-" * MOST_FOUND]
    assert replaced("a", "", fits, "x") == ["-" * MOST_FOUND]
    for refused in (lambda: removed(["a"], beyond, "x"), lambda: replaced("a", "", beyond, "x")):
        with pytest.raises(InvalidRequest, match="occurs more than 65536 times") as error:
            refused()
        assert error.value.param == "x"


def work(texts: list[str], places: list[str]) -> float:
    """Seconds of CPU time for one request, the best of three."""
    took = []
    for _ in range(3):
        start = time.thread_time()
        removed(texts, places, "without")
        took.append(time.thread_time() - start)
    return min(took)


HOSTILE = {
    "spaces before an x": ([" " * k + "x" for k in range(1, 65)], [" " * SIZE + "x" * 65]),
    "runs of a": (["a" * k for k in range(1, 65)], ["a" * SIZE]),
    "long runs of a": (["a" * k for k in range(SIZE // 128, SIZE // 128 + 64)], ["a" * SIZE]),
    "one document repeated": (
        ["lorem ipsum " * 300 + str(k) for k in range(60)],
        ["lorem ipsum " * (SIZE // 12)],
    ),
    "a different middle": (["a" * 300 + "b" + "a" * k for k in range(1, 65)], ["a" * SIZE]),
    "in many parts": (
        ["a" * 40 + "b" + "a" * k for k in range(1, 50)],
        ["a" * 20_000] * (SIZE // 20_000),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_makes_much_work(name: str) -> None:
    benign = [f"The document number {k} says so." for k in range(64)]
    usual = work(benign, ["The quick brown fox jumps over the lazy dog. " * (SIZE // 45)])
    assert work(*HOSTILE[name]) < MOST_WORK * usual


def test_no_text_is_kept() -> None:
    """The cache of `re` held the documents of 512 requests."""
    before = len(re._cache)  # type: ignore[attr-defined]
    for number in range(20):
        removed([f"document {number}"], [f"a document {number}."], "without")
    assert len(re._cache) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(("size", "beside"), [(LARGE, False), (LARGE + 1, True)])
def test_large_work_is_done_beside_the_loop(size: int, beside: bool) -> None:
    async def test() -> None:
        worker = await beside_loop(["a" * size], threading.get_ident)
        assert (worker != threading.get_ident()) == beside

    asyncio.run(test())
