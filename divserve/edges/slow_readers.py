"""A client that does not read its answer is cut off, so that it holds no rows of the queue.

uvicorn makes an application wait while a client reads more slowly than it is answered, for ever if
need be. Here such a connection is closed when too little of it was read; to the application the
client has then left, which ends its request in the engine.
"""

from __future__ import annotations

import logging
from asyncio import TimerHandle
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["protocol"]

logger = logging.getLogger("vllm.divserve.edges")

LEAST_BYTES = 65_536
"""What a client must read within the timeout: as much as uvicorn lets wait."""


def protocol(timeout_s: float) -> type[HttpToolsProtocol]:
    """The class of uvicorn's connections, for its option ``http``.

    Args:
        timeout_s: seconds in which a client must read `LEAST_BYTES` while an answer waits for it,
            or all that waits.
    """
    return type("Connection", (_Connection,), {"timeout_s": timeout_s})


class _Connection(HttpToolsProtocol):
    timeout_s: ClassVar[float]
    _watch: TimerHandle | None = None

    def pause_writing(self) -> None:
        """Called when more waits to be read than uvicorn allows."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """Called when most of it has been read."""
        super().resume_writing()
        self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection has ended, for whatever reason."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        waits = self.transport.get_write_buffer_size()
        self._watch = self.loop.call_later(self.timeout_s, self._check, waits)

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _check(self, waited: int) -> None:
        if waited - self.transport.get_write_buffer_size() >= LEAST_BYTES:
            self._wait()
            return
        logger.info(
            "A client reads nothing for %g s (--send-timeout): its connection is closed",
            self.timeout_s,
        )
        # Closing would wait until it has read the rest.
        self.transport.abort()
