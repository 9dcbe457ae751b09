"""Asks the server: one request for each line, through the ``openai`` client."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import openai

from divserve.errors import StartupError
from divserve.remote import Remote, told

__all__ = ["Refused", "Server"]

RETRIES = 4
"""Of the ``openai`` client, after errors of the connection and of the server."""
PATIENCE_S = 600.0
"""Longest time for which a server that has no room is asked again for one line."""
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
OF_THE_LINE = (
    HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.INTERNAL_SERVER_ERROR,
)  # fmt: skip
"""Statuses after which the other lines may still succeed."""


class Refused(Exception):
    """The server refused a line, and will again.

    Args:
        error: ``message``, and ``param`` and ``code`` where the server names them.
    """

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = dict(error)


class Server(Remote):
    """A server that scores texts: see `Remote`."""

    def __init__(self, url: str, key: str | None, timeout_s: float = 600) -> None:
        super().__init__(url, key, RETRIES, timeout_s)

    async def scores(self) -> dict[str, dict[str, Any]]:
        """What ``GET /v1/decoding/scores`` tells of each score, by name.

        Raises:
            StartupError: nothing that is divserve answers there.
        """
        return await self.listed("/decoding/scores", "scores", "score")

    async def score(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request; waits while the server has no room.

        Raises:
            Refused: this request cannot be answered.
            StartupError: the server is gone, or would refuse the others too.
        """
        begin = time.monotonic()
        while True:
            try:
                answer: Any = await self._client.post("/decoding/score", body=body, cast_to=object)
                return dict(answer)
            except openai.APIStatusError as error:
                wait = _wait(error)
                if wait is None or time.monotonic() - begin + wait > PATIENCE_S:
                    raise self._final(error) from None
                await asyncio.sleep(wait)
            except openai.APIError as error:
                raise self._gone(error) from None

    def _final(self, error: openai.APIStatusError) -> Exception:
        if error.status_code not in OF_THE_LINE:
            return self._gone(error)
        body = error.body if isinstance(error.body, Mapping) else {}
        known = {name: body[name] for name in ("param", "code") if body.get(name) is not None}
        return Refused({"message": told(error), **known})

    def _gone(self, error: openai.APIError) -> StartupError:
        return StartupError(f"{self.url}: {told(error)} The same command goes on from here.")


def _wait(error: openai.APIStatusError) -> float | None:
    """Seconds after which a busy server wants to be asked again; None if it names none."""
    if error.status_code not in BUSY:
        return None
    try:
        wait = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(wait, 0.1) if math.isfinite(wait) else None
