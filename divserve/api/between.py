"""Removes what stands between markers, and the markers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from divserve.api.cut import MOST_FOUND, excerpt
from divserve.errors import InvalidRequest, NoDocument

__all__ = ["without_between"]

SHOWN = 2
"""Pairs of markers that a message names."""

Span = tuple[int, int]


def without_between(
    pairs: Sequence[tuple[str, str]], places: Sequence[str], param: str
) -> list[str]:
    """The places without their documents, markers included.

    A document begins behind an opening marker and ends at the next closing one of the same pair,
    in the same place. The work grows with the places and the number of pairs.

    Args:
        pairs: opening and closing markers.
        places: the texts that may have documents.
        param: the field that names the markers.

    Raises:
        NoDocument: no place has a document that is more than white space.
        InvalidRequest: an opening marker has no closing one behind it, or there are more than
            `MOST_FOUND` documents.
    """
    left, documents, says = [], 0, False
    for place in places:
        spans: list[Span] = []
        for opening, closing in pairs:
            for start, stop in _spans(opening, closing, place, param):
                spans.append((start, stop))
                # While they are found: collecting the spans of a large text takes gigabytes.
                if documents + len(spans) > MOST_FOUND:
                    raise InvalidRequest(
                        f"There are more than {MOST_FOUND} documents.", param=param
                    )
                says = says or bool(place[start + len(opening) : stop - len(closing)].strip())
        documents += len(spans)
        left.append(_cut(place, sorted(spans)))
    if not says:
        raise NoDocument(f"There is no text between {_names(pairs)}.", param=param)
    return left


def _names(pairs: Sequence[tuple[str, str]]) -> str:
    """The first pairs: each choice of an answer may have to say it."""
    shown = [f"{excerpt(opening)} and {excerpt(closing)}" for opening, closing in pairs[:SHOWN]]
    return " or ".join(shown) + (" or other markers" if len(pairs) > SHOWN else "")


def _cut(place: str, spans: Sequence[Span]) -> str:
    kept, end = [], 0
    for start, stop in spans:
        kept.append(place[end : max(start, end)])
        end = max(end, stop)
    return "".join([*kept, place[end:]])


def _spans(opening: str, closing: str, place: str, param: str) -> Iterator[Span]:
    """Start and end of the documents of one pair, markers included."""
    start = place.find(opening)
    while start >= 0:
        end = place.find(closing, start + len(opening))
        if end < 0:
            raise InvalidRequest(
                f"{excerpt(opening)} has no {excerpt(closing)} behind it in the same text.",
                param=param,
            )
        yield start, end + len(closing)
        start = place.find(opening, end + len(closing))
