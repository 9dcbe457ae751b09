"""Presets by name, in ``decoding`` or behind a model alias: ``MODEL@NAME`` decodes with NAME."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import ValidationError

from divserve.api.guided import LONGEST_NAME, Guided
from divserve.decoding import PresetRef
from divserve.decoding.presets import DEFAULT, expanded, validated
from divserve.errors import InvalidRequest
from divserve.http.openai import BaseModelPath

__all__ = ["aliases_of", "install", "preset_named", "with_preset"]

T = TypeVar("T", bound=Guided)

ITSELF = ("There is no preset", "The preset ")
"""How errors begin that are about a preset as a whole."""
GUIDE = re.compile(r"decoding(\.\d+)?\.guide(?=\.|$)")
"""The path of a method's guide."""


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
    """The request with its methods: those of the preset that its ``decoding`` or its model names.

    A ``decoding`` of its own takes precedence over the model's preset.

    Raises:
        InvalidRequest: there is no such preset, or it cannot be combined with the rest of the
            request.
    """
    state = raw_request.app.state
    alias = _alias(request, raw_request)
    ref = request.decoding
    if isinstance(ref, PresetRef):
        request.decode_with(_resolved(ref, alias, state.presets))
    elif alias is not None and "decoding" not in request.model_fields_set:
        # The rest of the body has been validated.
        request.decode_with(validated(state.preset_of_alias[alias]))
    if alias is not None:
        request.answer_as(alias)
    return request


@contextmanager
def preset_named(request: Guided, raw_request: Request) -> Iterator[None]:
    """Makes an error in the ``decoding`` of a preset say that the client did not send it."""
    ref, alias = request.decoding, _alias(request, raw_request)
    told = None
    if isinstance(ref, PresetRef):
        told = f"The preset {_name(ref, alias)}: "
    elif alias is not None and "decoding" not in request.model_fields_set:
        told = f"The preset of {alias}: "
    try:
        yield
    except InvalidRequest as error:
        own = GUIDE.match(error.param or "")
        if isinstance(ref, PresetRef) and ref.guide is not None and own:
            # It stands beside the preset's name, whichever of the methods takes it.
            error.param = f"decoding.guide{(error.param or '')[own.end() :]}"
        elif told is not None and _of_preset(error):
            error.message = told + error.message
        raise


def _of_preset(error: InvalidRequest) -> bool:
    """Whether an error is about what a preset says, and does not tell so itself."""
    path = error.param or ""
    return path.startswith("decoding") and not error.message.startswith(ITSELF)


def _alias(request: Guided, raw_request: Request) -> str | None:
    """The request's model, if it is an alias of a preset."""
    model: str | None = getattr(request, "model", None)
    return model if model in raw_request.app.state.preset_of_alias else None


def _name(ref: PresetRef, alias: str | None) -> str:
    """The name of the preset that is meant."""
    return ref.preset or (alias.rpartition("@")[2] if alias is not None else DEFAULT)


def _resolved(ref: PresetRef, alias: str | None, presets: Mapping[str, Any]) -> Any:
    """The methods that a reference stands for."""
    name = _name(ref, alias)
    if name not in presets:
        raise InvalidRequest(
            f"There is no preset {name[:LONGEST_NAME]!r}: the presets are {', '.join(presets)}. "
            'A method is an object, such as {"method": "cfg"}.',
            param="decoding.preset",
        )
    try:
        return validated(expanded(ref.model_copy(update={"preset": name}), presets))
    except ValidationError as error:
        raise InvalidRequest(
            f"The preset {name} cannot be changed like this: {error.errors()[0]['msg']}",
            param=f"decoding.{'guide' if ref.context_weight is None else 'context_weight'}",
        ) from None
