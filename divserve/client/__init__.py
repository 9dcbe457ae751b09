"""Helpers for Python clients: build the field ``decoding``, and read what comes back.

They need pydantic alone and send nothing: the ``openai`` client, or another, stays the user's own.
"""

from __future__ import annotations

from divserve.client.accounts import Account, Token, accounts
from divserve.client.build import decoding, preset, with_document
from divserve.client.collect import Collected, Collector, acollect, collect

__all__ = [
    "Account", "Collected", "Collector", "Token", "accounts", "acollect", "collect", "decoding",
    "preset", "with_document",
]  # fmt: skip
