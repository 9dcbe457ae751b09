"""The answer of ``POST /v1/decoding/score``: scores and traces of texts that have been read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from divserve.api.score_body import ScoreRequest
from divserve.api.score_texts import Asked
from divserve.api.texts import CONTEXT, Decode
from divserve.decoding import EXCLUDED, FIGURES, Read
from divserve.engine.client.read import Found, Sought
from divserve.scores import SCORES, ScoredText, Scoring

__all__ = ["item", "usage"]

Trace = list[dict[str, Any]]

SHOWN = {
    name: name
    for name in (
        "logprob", "rank", "entropy", "varentropy", "guide_logprob", "kl", "jsd",
        "reference_logprob", "cross_entropy",
    )
}  # fmt: skip
"""Figures of the trace, under their names there."""


def item(
    index: int,
    body: ScoreRequest,
    names: Sequence[str],
    scoring: Scoring,
    asked: Asked,
    found: Found,
    lower: Found | None,
    decode: Decode,
) -> dict[str, Any]:
    """The object of one text.

    Args:
        index: of the text.
        body: the request.
        names: of the scores.
        scoring: the server's settings.
        asked: the text.
        found: what the engine has returned of it.
        lower: likewise, of the text in lower case.
        decode: finds the texts of tokens.
    """
    text = ScoredText(
        ScoredText.figures_of(found.read),
        asked.sought.text,
        asked.content.encode(),
        None if lower is None else _plain_loss(lower),
        scoring.log_frequencies,
        body.k,
        body.cap,
    )
    answer: dict[str, Any] = {
        "object": "score",
        "index": index,
        "tokens": len(text.token_ids),
        "scores": {name: _number(SCORES[name].compute(text)) for name in names},
        "larger_means": {name: SCORES[name].larger_means for name in names},
    }
    if body.method is not None:
        answer["excluded"] = int(np.isneginf(text["logprob"]).sum())
    if body.traced:
        answer["trace"] = _trace(body, text, asked, found.read, decode)
    return answer


def usage(asked: Sequence[Asked], found: Sequence[tuple[Found, Found | None]]) -> dict[str, Any]:
    """The tokens of a request."""
    sought = [one for text in asked for one in (text.sought, text.lower) if one is not None]
    prompts = sum(len(one.prompt) + len(one.text) for one in sought)
    guides = sum(len(g) + len(one.text) for one in sought for g in one.spec.guides)
    cached = sum(one.cached_tokens for pair in found for one in pair if one is not None)
    return {
        "prompt_tokens": prompts,
        "guide_prompt_tokens": guides,
        "completion_tokens": 0,
        "total_tokens": prompts,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _plain_loss(found: Found) -> float:
    figures = ScoredText.figures_of(found.read)
    return -float(figures[:, FIGURES.index("own_logprob")].mean())


def _trace(body: ScoreRequest, text: ScoredText, asked: Asked, read: Read, decode: Decode) -> Trace:
    """One entry for each scored token."""
    columns = SHOWN if body.method is None else {**SHOWN, "plain_logprob": "own_logprob"}
    shown = [(name, text[column]) for name, column in columns.items()]
    shown = [(name, column) for name, column in shown if not np.isnan(column).all()]
    before = _before(asked.sought)
    entries: Trace = []
    for place, token in enumerate(decode(text.token_ids, before)):
        entry = {"token": token.text, "token_id": text.token_ids[place], "bytes": token.utf8}
        entry |= {name: _number(float(column[place])) for name, column in shown}
        entry["rank"] = int(text["rank"][place])
        entries.append(entry)
    if body.top_logprobs:
        ids, values = (
            _rows(read.top_ids, np.int32, text),
            _rows(read.top_logprobs, np.float32, text),
        )
        for entry, own, logprobs, ahead in zip(entries, ids, values, before, strict=True):
            entry["top_logprobs"] = _pairs(own, logprobs, ahead, decode)
    if body.logprob_token_ids is not None:
        values = _rows(read.id_logprobs, np.float32, text)
        for entry, own, logprobs in zip(entries, body.logprob_token_ids, values, strict=True):
            entry["logprobs"] = [_number(value) for value in logprobs[: len(own)]]
    return entries


def _rows(packed: bytes, dtype: Any, text: ScoredText) -> list[list[Any]]:
    """A list for each token."""
    rows: list[list[Any]] = np.frombuffer(packed, dtype).reshape(len(text.token_ids), -1).tolist()
    return rows


def _before(sought: Sought) -> list[list[int]]:
    """The tokens before each scored one that its text may depend on."""
    known = [*sought.prompt[-CONTEXT:], *sought.text]
    start = len(known) - len(sought.text)
    return [known[max(0, place - CONTEXT) : place] for place in range(start, len(known))]


def _pairs(
    ids: Sequence[int], logprobs: Sequence[float], before: list[int], decode: Decode
) -> Trace:
    tokens = decode(ids, [before] * len(ids))
    return [
        {"token": token.text, "token_id": own, "bytes": token.utf8, "logprob": _number(value)}
        for token, own, value in zip(tokens, ids, logprobs, strict=True)
    ]


def _number(value: float) -> float | None:
    """A number that JSON can express; null for the rest, and for tokens that are excluded."""
    return value if math.isfinite(value) and value > EXCLUDED else None
