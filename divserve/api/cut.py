"""Finds texts in many places at once: removes them, or puts another text in their place.

The work grows with the size of texts and places, whatever they are: `str.find` searches a long text
in linear time, where the alternatives of a regular expression are tried at every position, and a
text that overlaps itself (``aa`` in ``aaaa…``) is followed by its period instead of found anew at
every character. Nothing is kept after the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from divserve.errors import InvalidRequest

__all__ = ["MOST_FOUND", "beside_loop", "excerpt", "found", "removed", "replaced"]

T = TypeVar("T")

LARGE = 65_536
"""Characters from which the work is done in a thread, so that the event loop goes on."""
MOST_FOUND = 65_536
"""Occurrences of all texts of a request, a run of them counting once; no document has as many."""

BETWEEN = "\ud800"
"""Between two places: half a surrogate pair, which no body has (`divserve.edges.body`)."""
BLOCK = 4096
"""Characters that are compared at once along a run."""

Span = tuple[int, int]


async def beside_loop(places: Iterable[str], work: Callable[[], T]) -> T:
    """The result of `work`, which reads these places: in a thread if they are large."""
    return await asyncio.to_thread(work) if sum(map(len, places)) > LARGE else work()


def excerpt(text: str) -> str:
    """A text that a client has sent, as messages show it: at most its first 57 characters."""
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}…"


def found(text: str, places: Sequence[str]) -> bool:
    """Whether the text occurs in one of the places."""
    return text in BETWEEN.join(places)


def removed(texts: Sequence[str], places: Sequence[str], param: str) -> tuple[list[str], list[int]]:
    """The places without every character that belongs to an occurrence of one of the texts.

    Args:
        texts: what to remove; occurrences may overlap each other and themselves.
        places: where to remove it.
        param: the field that names the texts.

    Returns:
        The places in their order, and the indices of the texts that occur nowhere.

    Raises:
        InvalidRequest: the texts occur more than `MOST_FOUND` times.
    """
    whole = BETWEEN.join(places)
    spans: list[Span] = []
    missing = []
    for index, text in enumerate(texts):
        before = len(spans)
        for span in _runs(text, whole):
            spans.append(span)
            _check_number(len(spans), param)
        if len(spans) == before:
            missing.append(index)
    kept, end = [], 0
    for start, stop in sorted(spans):
        kept.append(whole[end:start])
        end = max(end, stop)
    kept.append(whole[end:])
    return "".join(kept).split(BETWEEN) if places else [], missing


def replaced(text: str, new: str, places: Sequence[str], param: str) -> list[str]:
    """The places with `new` for every occurrence of `text`, from left to right.

    Raises:
        InvalidRequest: the text occurs more than `MOST_FOUND` times: the result would be many times
            as large as the body.
    """
    whole = BETWEEN.join(places)
    _check_number(whole.count(text), param)
    return whole.replace(text, new).split(BETWEEN) if places else []


def _runs(text: str, whole: str) -> Iterator[Span]:
    """Start and end of the occurrences, in order; a run of them with one period comes as one."""
    start, size = whole.find(text), len(text)
    while start >= 0:
        following = whole.find(text, start + 1)
        end, period = start + size, following - start
        if 0 < period <= size:
            # Every occurrence up to the end of the run is whole periods after the first one.
            unit = text[-period:]
            for times in (1 + BLOCK // period, 1):
                block = unit * times
                while whole.startswith(block, end):
                    end += len(block)
            following = whole.find(text, end - size + 1)
        yield start, end
        start = following


def _check_number(occurrences: int, param: str) -> None:
    if occurrences > MOST_FOUND:
        raise InvalidRequest(
            f"The text occurs more than {MOST_FOUND} times: give a longer one.", param=param
        )
