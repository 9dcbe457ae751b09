"""The accounts of an answer, from whatever object the client made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Account", "Token", "accounts", "plain"]


class Token(BaseModel):
    """The statistics of one token; figures of the method are further fields (nats)."""

    model_config = ConfigDict(extra="allow")

    token: str
    token_id: int
    bytes: list[int] = []
    top: dict[str, list[dict[str, Any]]] | None = None
    """The likeliest tokens of each stream, if they were asked for."""

    def figure(self, name: str) -> float | None:
        """A figure by its name, such as ``kl``; None if it is not there."""
        found: float | None = (self.model_extra or {}).get(name)
        return found


class Account(BaseModel):
    """What was done to one answer. Fields that this version does not know are kept."""

    model_config = ConfigDict(extra="allow")

    method: str
    applied_steps: int
    guide_prompt_tokens: int = 0
    mean: dict[str, float | None] = {}
    trace: list[Token] = []
    guides: dict[str, str] = {}
    """By method: the selector that found what the guide lacks."""
    reason: str | None = None
    """Why nothing was applied; None if the method was."""


def accounts(response: Any) -> list[Account | None]:
    """The account of each choice, in their order; None for plain ones.

    Args:
        response: a chat or text completion, a response or a message: an object of a client (any
            with ``model_dump``), or its JSON.
    """
    body = plain(response)
    found = body.get("choices", [body])
    return [_account(one.get("decoding")) for one in found]


def plain(value: Any) -> Mapping[str, Any]:
    """An object of a client as JSON.

    Raises:
        TypeError: it is neither a mapping nor has ``model_dump``.
    """
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"{type(value).__name__} is no answer of a client that keeps its JSON")
    # Clients' types do not list every value that servers send.
    found: Mapping[str, Any] = dump(warnings=False)
    return found


def _account(value: Any) -> Account | None:
    return None if value is None else Account.model_validate(value)
