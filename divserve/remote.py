"""A running server, as the commands that work through its HTTP API see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openai

from divserve.errors import StartupError

__all__ = ["Remote", "told"]


class Remote:
    """A server of divserve, by its address.

    Args:
        url: without ``/v1``.
        key: None if it asks for none.
        retries: of the ``openai`` client, which waits as long as the server says.
        timeout_s: of one request.
    """

    def __init__(self, url: str, key: str | None, retries: int, timeout_s: float = 600) -> None:
        self.url = url
        self._client = openai.AsyncOpenAI(
            base_url=f"{url.rstrip('/')}/v1", api_key=key or "none", max_retries=retries,
            timeout=timeout_s,
        )  # fmt: skip

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()

    async def model(self) -> str:
        """The name of the first served model.

        Raises:
            StartupError: the server does not tell it.
        """
        try:
            return (await self._client.models.list()).data[0].id
        except openai.APIError as error:
            raise StartupError(f"{self.url} does not list models: {told(error)}") from None

    async def listed(self, path: str, what: str, name: str) -> dict[str, dict[str, Any]]:
        """The entries of a list of the server's own.

        Args:
            path: below ``/v1``.
            what: the entries, in words.
            name: the entries' field by which they are returned.

        Raises:
            StartupError: nothing that is divserve answers there.
        """
        try:
            found: Any = await self._client.get(path, cast_to=object)
            return {entry[name]: entry for entry in found["data"]}
        except openai.APIError as error:
            raise StartupError(f"{self.url} does not list {what}: {told(error)}") from None
        except (KeyError, TypeError):
            raise StartupError(f"{self.url} does not list {what}: is it divserve?") from None


def told(error: openai.APIError) -> str:
    """What the server said, in one line; what the client says if it said nothing."""
    body = error.body
    message = body.get("message") if isinstance(body, Mapping) else None
    return " ".join(str(message or error.message).split())
