"""Bodies that a validator cannot read are a 400, whatever the validator raises.

pydantic passes on every exception of a validator that is not a ``ValueError`` or an
``AssertionError``, and the server would answer with a 500. vLLM's validators of raw bodies raise
such ones: they call ``.get`` on whatever they find.
"""

from __future__ import annotations

import inspect
import logging
from itertools import islice
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from divserve.errors import ApiError, InvalidRequest
from divserve.http.openai import VLLMError

__all__ = ["install"]

logger = logging.getLogger("vllm.divserve.http")

MOST_FIELDS = 200
"""Fields of a body that are tried one by one; no request type has as many."""
LONGEST_REASON = 200
"""Characters of an exception that are sent: it may quote a whole body."""
TOLD = (ValidationError, ApiError, HTTPException, VLLMError, MemoryError)
"""Exceptions that have a handler of their own."""
INVOCATIONS, INVOCATION_VALIDATORS = "/invocations", "INVOCATION_VALIDATORS"
"""A route of vLLM that validates by itself, and the list of its adapters."""


class ReadBody:
    """A pydantic ``TypeAdapter`` whose validators only fail in ways that are told to the client.

    Args:
        adapter: the adapter, all other attributes of which stay in use.
    """

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def validate_python(self, body: Any, **options: Any) -> Any:
        """The adapter's result.

        Raises:
            ValidationError: the body does not validate.
            InvalidRequest: a validator failed in another way.
        """
        try:
            return self._adapter.validate_python(body, **options)
        except TOLD:
            raise
        except Exception as error:
            param = self._culprit(body, options)
            # Its text may quote the client: a repr has no control characters.
            logger.info("A validator failed on %r: %r", param, error)
            what = "The body cannot be read" if param is None else f"{param}: not a valid value"
            why = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
            raise InvalidRequest(f"{what} ({why})", param=param) from error

    def _culprit(self, body: Any, options: dict[str, Any]) -> str | None:
        """The field of a body on which a validator fails; None if there is not one."""
        fields = dict(islice(body.items(), MOST_FIELDS)) if isinstance(body, dict) else {}
        # Some validators want others too; large ones would be validated once for each field.
        small = {name: _shortened(value) for name, value in fields.items() if _is_small(value)}
        found = None
        for name, value in fields.items():
            others = {k: v for k, v in small.items() if k != name}
            if self._outcome({**others, name: value}, options) == "fails":
                match self._outcome(others, options):
                    case "valid":
                        return str(name)
                    case "told":
                        # Or a required field, without which the validator is not reached.
                        found = found or str(name)
        return found

    def _outcome(self, body: Any, options: dict[str, Any]) -> Literal["valid", "told", "fails"]:
        try:
            self._adapter.validate_python(body, **options)
        except TOLD:
            return "told"
        except Exception:
            return "fails"
        return "valid"


def install(app: FastAPI) -> None:
    """Puts a `ReadBody` around the adapter of every body that `app` validates."""
    for route in app.routes:
        if not isinstance(route, APIRoute):
            continue
        for field in get_flat_dependant(route.dependant).body_params:
            holder: Any = field
            if not isinstance(holder._type_adapter, ReadBody):
                holder._type_adapter = ReadBody(holder._type_adapter)
        if route.path == INVOCATIONS:
            validators = _kept(route.endpoint, INVOCATION_VALIDATORS)
            validators[:] = [(ReadBody(adapter), handler) for adapter, handler in validators]


def _kept(function: Any, name: str) -> Any:
    """The variable `name` that a function, or the one that it decorates, has kept."""
    kept = inspect.getclosurevars(function).nonlocals
    return kept[name] if name in kept else _kept(kept["func"], name)


def _is_small(value: Any) -> bool:
    """Whether a value, or the first one of a list, is neither an object nor a list."""
    first = value[0] if isinstance(value, list) and value else value
    return not isinstance(first, dict | list)


def _shortened(value: Any) -> Any:
    return value[:1] if isinstance(value, list) else value
