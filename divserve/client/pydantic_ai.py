"""Pydantic AI: a model whose responses have the account.

``Agent(DivserveModel(…), model_settings={"extra_body": decoding(…)})``.
"""

from __future__ import annotations

from typing import Any

from divserve.client.accounts import plain
from divserve.client.collect import merged

try:
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIStreamedResponse
except ImportError as error:
    raise ImportError(
        "divserve.client.pydantic_ai needs the package pydantic-ai-slim[openai]"
    ) from error

__all__ = ["DivserveModel"]


class DivserveModel(OpenAIChatModel):
    """``OpenAIChatModel`` with the account in ``provider_details["decoding"]`` of a response."""

    def _process_provider_details(self, response: Any) -> Any:
        details = super()._process_provider_details(response)
        account = plain(response.choices[0]).get("decoding")
        return {**(details or {}), "decoding": account} if account else details

    @property
    def _streamed_response_cls(self) -> Any:
        return _Streamed


class _Streamed(OpenAIStreamedResponse):
    """Adds up what the chunks of a stream carry."""

    def _map_provider_details(self, chunk: Any) -> Any:
        details = super()._map_provider_details(chunk)
        account = plain(chunk.choices[0]).get("decoding")
        if not account:
            return details
        known = (self.provider_details or {}).get("decoding", {})
        return {**(details or {}), "decoding": merged(known, account)}
