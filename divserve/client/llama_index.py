"""LlamaIndex: the accounts of its chat responses.

``OpenAILike(…, additional_kwargs={"extra_body": decoding(…)})``. Its responses keep what the
``openai`` client made of the answer in ``raw``, and so do the chunks of a stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from divserve.client.accounts import Account, accounts
from divserve.client.collect import Collected, collect

__all__ = ["account", "collected"]


def account(response: Any) -> Account | None:
    """The account of a ``ChatResponse`` or ``CompletionResponse``; None for a plain answer."""
    return accounts(response.raw)[0]


def collected(responses: Iterable[Any]) -> Collected:
    """Reads the generator of ``stream_chat`` or ``stream_complete`` to its end."""
    return collect(response.raw for response in responses)
