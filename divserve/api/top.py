"""The likeliest tokens of each stream, as a trace shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from divserve.api.texts import Decode
from divserve.decoding.spec import Top

__all__ = ["rendered"]


def rendered(
    tops: Sequence[Top], names: Sequence[str], before: Sequence[Sequence[int]], decode: Decode
) -> list[dict[str, list[dict[str, Any]]]]:
    """For each token: by stream, its likeliest tokens and their log-probs (nats).

    Args:
        tops: what the engine has reported, by token.
        names: of the streams.
        before: for each token, the ids before it on which a text may depend.
        decode: finds the texts.
    """
    # At once, and each token of a position only once: streams mostly have the same ones.
    wanted = [sorted({token for ids, _ in top for token in ids}) for top in tops]
    ids = [token for own in wanted for token in own]
    contexts = [context for own, context in zip(wanted, before, strict=True) for _ in own]
    found = iter(decode(ids, contexts))
    texts = [{token: next(found).text for token in own} for own in wanted]
    return [
        {
            name: [
                {"token": text[token], "logprob": round(logprob, 6)}
                for token, logprob in zip(*stream, strict=True)
            ]
            for name, stream in zip(names, top, strict=True)
        }
        for top, text in zip(tops, texts, strict=True)
    ]
