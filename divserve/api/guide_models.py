"""``guide.model``: the model that reads a guide, one of the served model and its LoRA adapters."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request

from divserve.api.guided import Guided
from divserve.decoding import BASE, Adapter
from divserve.errors import InvalidRequest, NotFound

__all__ = ["resolve"]


def resolve(request: Guided, raw_request: Request) -> None:
    """Gives the request the adapters that its guides name.

    Raises:
        NotFound: there is no such model.
        InvalidRequest: the name is an alias, or the request goes to the small model.
    """
    given = [(guide.model, f"{path}.model") for path, guide in request.guides()]
    named = [(model, param) for model, param in given if model is not None]
    if not named:
        return
    state = raw_request.app.state
    served = state.openai_serving_models
    asked: str | None = getattr(request, "model", None)
    if asked in state.small_aliases:
        raise InvalidRequest(
            "The small model has no adapters: leave 'guide.model' out, or name the served model "
            "in 'model'.",
            param=named[0][1],
        )
    own = _adapter(served, asked) if asked else BASE
    found: dict[str, Adapter | None] = {}
    for model, param in named:
        _refuse_alias(model, param, state)
        adapter = _adapter(served, model)
        if adapter is None:
            raise NotFound(f"The model {model!r} does not exist.", param=param)
        found[model] = None if adapter == own else adapter
    request.give_adapters(found)


def _adapter(served: Any, model: str) -> Adapter | None:
    """The adapter of this name, or `BASE`; None for an unknown model.

    Args:
        served: vLLM's ``OpenAIServingModels``.
        model: the name.
    """
    if (adapter := served.lora_requests.get(model)) is not None:
        return tuple(msgspec.to_builtins(adapter))
    return BASE if served.is_base_model(model) else None


def _refuse_alias(model: str, param: str, state: Any) -> None:
    """Raises `InvalidRequest` for names that stand for more than an adapter."""
    if model in state.preset_of_alias:
        raise InvalidRequest(
            f"{model!r} stands for a preset: name the model without '@…'.", param=param
        )
    if model in state.small_aliases:
        raise InvalidRequest(
            f"{model!r} runs in an engine of its own: a guide is read by the served model or one "
            "of its adapters. 'contrastive' compares with another model (--amateur).",
            param=param,
        )
