"""``echo`` with ``logprobs``: the log-probs of a prompt's own tokens under a method.

They are found for the tokens at the end of the prompt that all guides share: only there do both
streams stand before the same token. In front of them are nulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divserve.api.texts import CONTEXT, Decode
from divserve.decoding import FIGURES, Read, Reading
from divserve.errors import DecodingFailed, InvalidRequest
from divserve.http.openai import Logprob

__all__ = ["log_probs_of", "reading_of", "shared_end"]

LogProbs = list[dict[int, Any] | None]
"""As vLLM's ``prompt_logprobs``: for each token of the prompt its own ``Logprob``, then those of
the likeliest tokens, by token id; None where there are none."""


def shared_end(prompt: Sequence[int], guides: Sequence[Sequence[int]]) -> int:
    """How many tokens at the end of a prompt can be scored: all guides have them, behind others."""
    most = min(map(len, (prompt, *guides))) - 1
    ends = zip(*(reversed(ids) for ids in (prompt, *guides)), strict=False)
    differ = (place for place, tokens in enumerate(ends) if len(set(tokens)) > 1)
    return min(most, next(differ, most))


def reading_of(
    prompt: Sequence[int], guides: Sequence[Sequence[int]], top: int, param: str
) -> Reading | None:
    """What is scored of a prompt; None if it is a single token.

    Args:
        prompt: token ids.
        guides: those of its guides.
        top: how many of the likeliest tokens are returned for each position.
        param: the path of the guide in the body.

    Raises:
        InvalidRequest: prompt and guides share no end.
    """
    if len(prompt) == 1:
        return None
    tokens = shared_end(prompt, guides)
    if tokens == 0:
        raise InvalidRequest(
            "echo with logprobs returns the log-probs of the tokens at the end of the prompt that "
            "its guide ends in too, behind others; there are none. Use a guide that leaves out a "
            "part before them ('without', 'between'), or leave out echo or logprobs.",
            param=param,
        )
    return Reading(tokens, top, guided=True)


def log_probs_of(prompt: Sequence[int], read: Read | None, top: int, decode: Decode) -> LogProbs:
    """The log-probs of a prompt's tokens.

    Args:
        prompt: token ids.
        read: what the engine has found of its end.
        top: how many of the likeliest tokens it has returned for each position.
        decode: finds the texts of tokens.

    Raises:
        DecodingFailed: it has found nothing.
    """
    if len(prompt) == 1:
        return [None]
    if read is None:
        raise DecodingFailed("the engine returned no log-probs of the prompt; retry the request")
    figures = np.frombuffer(read.figures, np.float32).reshape(-1, len(FIGURES))
    own = figures[:, [FIGURES.index("logprob"), FIGURES.index("rank")]].tolist()
    ids = np.frombuffer(read.top_ids, np.int32).reshape(len(own), top).tolist()
    values = np.frombuffer(read.top_logprobs, np.float32).reshape(len(own), top).tolist()
    start = len(prompt) - len(own)
    found: LogProbs = [None] * start
    for place, (logprob, rank) in enumerate(own):
        here = start + place
        # Its own number comes first, also if it is among the likeliest: there it may be rounded
        # differently, and clients compare the two.
        entries = {prompt[here]: (logprob, int(rank))}
        for k, (token, value) in enumerate(zip(ids[place], values[place], strict=True), 1):
            entries.setdefault(token, (value, k))
        found.append(_with_texts(entries, prompt[max(0, here - CONTEXT) : here], decode))
    return found


def _with_texts(
    entries: dict[int, tuple[float, int]], before: Sequence[int], decode: Decode
) -> dict[int, Any]:
    texts = decode([*entries], [before] * len(entries))
    pairs = zip(entries.items(), texts, strict=True)
    return {token: Logprob(value, rank, text.text) for (token, (value, rank)), text in pairs}
