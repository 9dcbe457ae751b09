"""The errors of requests that are cut off because the server or an engine stops."""

from __future__ import annotations

from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine.exceptions import EngineDeadError

from divserve.errors import Unavailable

__all__ = ["EngineStopped", "ShuttingDown"]


class ShuttingDown(Unavailable, GracefulHTTPError):
    """The server ended the request. vLLM only passes on errors of its own base class."""

    def __init__(self) -> None:
        GracefulHTTPError.__init__(
            self, "The server is shutting down.", HTTPStatus.SERVICE_UNAVAILABLE
        )
        self.param = None
        self.code = "shutting_down"
        self.retry_after_s = 5.0


class EngineStopped(Unavailable, EngineDeadError):
    """The engine has died. vLLM's own error is a 500, and all requests raise the same object."""

    retry_after_s = 5.0

    def __init__(self) -> None:
        Unavailable.__init__(self, "The engine has stopped; the server is about to leave.")
