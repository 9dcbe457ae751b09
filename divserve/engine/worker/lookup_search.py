"""Finds drafts in a request's own tokens: what followed when its last tokens occurred before."""

from __future__ import annotations

from typing import Any

import numpy as np

from divserve_kernels.numba_jit import compiled

__all__ = ["prepare", "search"]


@compiled()
def _longest(tokens: Any, size: int, floor: int, first: int, last: int, most: int) -> Any:
    """The longest match of the last tokens, and the most recent one of equal length.

    Args:
        tokens: ``[L] int32``, of which ``size`` are known.
        floor: no match begins before this place.
        first, last: places that may follow a match.
        most: longest match.

    Returns:
        Its length, 0 if there is none, and the place after it.
    """
    best, place = 0, -1
    for end in range(last, first - 1, -1):
        room = min(most, end - floor)
        length = 0
        while length < room and tokens[end - 1 - length] == tokens[size - 1 - length]:
            length += 1
        if length > best:
            best, place = length, end
            if best == most:
                break
    return best, place


@compiled()
def search(
    token_ids: Any, lengths: Any, rows: Any, texts: Any, shortest: int, longest: int,
    drafts: Any, counts: Any,
) -> None:  # fmt: skip
    """Writes the drafts of some rows: from the document, else the prompt, else the answer.

    A draft from the prompt ends with the prompt. It has a token less than there is room for, for
    each token that the match is shorter than the longest.

    Args:
        token_ids: ``[R, L] int32``: tokens of each row of the batch.
        lengths: ``[R] int32``: how many of them are known.
        rows: ``[G] int64``: the rows.
        texts: ``[G, 3] int64``: where the document begins and ends, and where the prompt ends.
        shortest, longest: fewest and most tokens of a match, at least 1.
        drafts: ``[G, k] int32``: is written.
        counts: ``[G] int64``: is written with the number of drafts of each row.
    """
    width = drafts.shape[1]
    for i in range(len(rows)):
        tokens, size = token_ids[rows[i]], lengths[rows[i]]
        begin, end, prompt = texts[i, 0], texts[i, 1], texts[i, 2]
        prompt = min(prompt, size)
        # A match of all known tokens ends where nothing follows.
        found, place = _longest(
            tokens, size, begin, begin + shortest, min(end, prompt - 1), longest
        )
        stop = prompt
        if found < shortest:
            found, place = _longest(tokens, size, 0, shortest, prompt - 1, longest)
        if found < shortest:
            found, place = _longest(tokens, size, 0, max(prompt, shortest), size - 1, longest)
            stop = size
        # Each token that a match lacks takes a draft, which tells the governor how good it is.
        most = max(1, width - (longest - found))
        count = min(most, stop - place) if found >= shortest else 0
        for j in range(count):
            drafts[i, j] = tokens[place + j]
        counts[i] = count


def prepare(token_ids: np.ndarray, lengths: np.ndarray) -> None:
    """Compiles the search for the types of the runner's tables, or reads it from the cache."""
    rows, texts = np.empty(0, np.int64), np.empty((0, 3), np.int64)
    search(token_ids, lengths, rows, texts, 1, 2, np.empty((0, 2), np.int32), rows.copy())
