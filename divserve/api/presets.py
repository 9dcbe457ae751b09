"""Presets behind model aliases: ``MODEL@NAME`` decodes with the preset of that name."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request

from divserve.api.requests import Guided
from divserve.decoding.presets import ADAPTER
from divserve.errors import InvalidRequest
from divserve.http.openai import BaseModelPath

__all__ = ["aliases_of", "install", "preset_named", "with_preset"]

T = TypeVar("T", bound=Guided)


def aliases_of(args: Namespace) -> dict[str, Any]:
    """The presets of a server by model alias: one alias per served name and preset."""
    served = args.served_model_name or [args.model]
    return {f"{model}@{name}": value for model in served for name, value in args.decodings.items()}


def install(app: FastAPI, args: Namespace) -> None:
    """Adds the aliases to the models of `app`, which are listed at /v1/models."""
    aliases = aliases_of(args)
    models = app.state.openai_serving_models.base_model_paths
    models += [BaseModelPath(name=alias, model_path=args.model) for alias in aliases]
    app.state.presets = args.decodings
    app.state.preset_of_alias = aliases


async def with_preset(request: T, raw_request: Request) -> T:
    """The request, with the preset that its model names unless it has its own ``decoding``.

    Raises:
        InvalidRequest: the preset cannot be combined with the rest of the request.
    """
    alias: str | None = getattr(request, "model", None)
    preset = raw_request.app.state.preset_of_alias.get(alias)
    if preset is None or alias is None:
        return request
    if "decoding" not in request.model_fields_set:
        try:
            # The rest of the body has been validated.
            request.decode_with(ADAPTER.validate_python(preset))
        except InvalidRequest as error:
            raise InvalidRequest(
                f"The preset of {alias}: {error.message}", param=error.param, code=error.code
            ) from None
    request.answer_as(alias)
    return request


@contextmanager
def preset_named(request: Guided, raw_request: Request) -> Iterator[None]:
    """Makes an error in the ``decoding`` of a preset say that the client did not send it."""
    model = getattr(request, "model", None)
    given = "decoding" in request.model_fields_set
    try:
        yield
    except InvalidRequest as error:
        of_preset = not given and model in raw_request.app.state.preset_of_alias
        if of_preset and (error.param or "").startswith("decoding"):
            told = f"The preset of {model}: "
            error.message = told + error.message.removeprefix(told)
        raise
