"""The text of single tokens, as vLLM's logprobs show it.

A token that ends within a character has no text of its own: the last token of the character has all
of it, which takes the tokens before it to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from divserve.http.openai import LogprobsProcessor, decode_token_ids, format_token_id_placeholder

__all__ = ["CONTEXT", "Decode", "Token", "as_ids", "decoder", "undecoded"]

CONTEXT = 4
"""Tokens before a token that its text may depend on: as many as a character has bytes."""
MOST_KEPT = 1 << 16
"""Texts of tokens that are kept, some 10 MB."""
CUT = "\N{REPLACEMENT CHARACTER}"


class Token(NamedTuple):
    """What a trace shows of a token."""

    text: str
    utf8: list[int] | None
    """The bytes of the text; None without a tokenizer."""


Decode = Callable[[Sequence[int], Sequence[Sequence[int]]], list[Token]]
"""Converts token ids, and for each the up to `CONTEXT` ids before it."""


def decoder(tokenizer: Any) -> Decode:
    """Returns the function that finds the texts.

    Args:
        tokenizer: vLLM's.
    """
    text_of = _text_of(tokenizer)
    corrector = LogprobsProcessor(
        tokenizer=tokenizer,
        logprobs=None,
        prompt_logprobs=None,
        cumulative_logprob=None,
        num_logprobs=None,
        num_prompt_logprobs=None,
    )

    def decode(token_ids: Sequence[int], before: Sequence[Sequence[int]]) -> list[Token]:
        texts = [text_of(token_id) for token_id in token_ids]
        for i, text in enumerate(texts):
            if text.endswith(CUT):
                (texts[i],) = corrector._verify_tokens([text], [token_ids[i]], list(before[i]))
        return [Token(text, list(text.encode(errors="replace"))) for text in texts]

    return decode


@lru_cache(maxsize=1)
def _text_of(tokenizer: Any) -> Callable[[int], str]:
    """Finds the text of a token by itself; kept, because the same ones come again and again."""

    @lru_cache(maxsize=MOST_KEPT)
    def text_of(token_id: int) -> str:
        ((text, _),) = decode_token_ids([token_id], tokenizer)
        return str(text)

    return text_of


def as_ids(decode: Decode) -> Decode:
    """The same bytes with ids in place of texts (``return_tokens_as_token_ids``)."""

    def decoded(token_ids: Sequence[int], before: Sequence[Sequence[int]]) -> list[Token]:
        found = zip(token_ids, decode(token_ids, before), strict=True)
        return [Token(format_token_id_placeholder(number), token.utf8) for number, token in found]

    return decoded


def undecoded(token_ids: Sequence[int], before: Sequence[Sequence[int]]) -> list[Token]:
    """Ids in place of texts, where there is no tokenizer."""
    return [Token(format_token_id_placeholder(number), None) for number in token_ids]
