"""An application behind a real socket, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn

from divserve.edges.slow_readers import protocol


@contextmanager
def listening(
    app: Any, send_timeout: float = 60, buffer: int = 0, lifespan: Literal["on", "off"] = "off"
) -> Iterator[tuple[str, int]]:
    """Host and port of a server of `app`.

    Args:
        app: an ASGI application.
        send_timeout: seconds for which a client may read too little.
        buffer: bytes that the kernel keeps for each connection, if it is to be few.
        lifespan: whether the application is told of its start and its end.
    """
    with socket.socket() as listener:
        if buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        http = protocol(send_timeout)
        config = uvicorn.Config(app, http=http, log_level="critical", ws="none", lifespan=lifespan)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)
