"""What ``decoding`` cannot be combined with, and why."""

from __future__ import annotations

from typing import Any

from divserve.errors import InvalidRequest
from divserve.http.openai import has_non_text_content

__all__ = ["refuse_beside_small", "refuse_conflicts", "refuse_echo", "refuse_no_prompt"]

CONFLICTS = {
    "use_beam_search": "beam search ranks whole beams instead of sampling token by token",
    "prompt_embeds": "a guide needs a prompt of tokens",
    "kv_transfer_params": "they name the keys and values of the prompt, not those of its guide",
    "ec_transfer_params": "multimodal prompts have no guide yet",
    "truncate_prompt_tokens": "prompt and guide would be cut at different places",
}
"""Fields that exclude ``decoding`` when set, and why."""

READS_THE_PROMPT = ("prompt_logprobs", "echo")
"""Fields that return log-probs of the prompt, or the prompt itself."""


def refuse_no_prompt(body: Any) -> None:
    """Raises `InvalidRequest` if nothing of the prompt would be left."""
    if getattr(body, "truncate_prompt_tokens", None) == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens is 0: no token of the prompt would be left. -1 keeps as many "
            "as the model takes.",
            param="truncate_prompt_tokens",
        )


def refuse_conflicts(body: Any, moves: bool) -> None:
    """Raises `InvalidRequest` for fields that would drop or distort the order of a guided body.

    Args:
        body: of a guided route.
        moves: whether the answer moves between two models.
    """
    for field, why in CONFLICTS.items():
        if getattr(body, field, None):
            raise InvalidRequest(
                f"decoding cannot be combined with {field}: {why}.", param="decoding"
            )
    for field in READS_THE_PROMPT if moves else ():
        if _asked(body, field):
            raise InvalidRequest(
                f"entropy_switch cannot be combined with {field}: two models read the prompt.",
                param=field,
            )
    if _asked(body, "prompt_logprobs"):
        raise InvalidRequest(
            "decoding cannot be combined with prompt_logprobs: they would be those of the plain "
            "model, without the method. On /v1/completions echo with logprobs returns those of the "
            "method; /v1/decoding/score scores answers behind a prompt or a chat.",
            param="prompt_logprobs",
        )


def refuse_echo(body: Any) -> None:
    """Raises `InvalidRequest` for a chat that asks for log-probs and repeats its last message.

    vLLM would add those of the prompt, which are the plain model's.
    """
    if _asked(body, "echo") and _asked(body, "logprobs"):
        raise InvalidRequest(
            "decoding cannot be combined with echo and logprobs in a chat: /v1/decoding/score "
            "scores answers behind a chat. Leave one of them out.",
            param="echo",
        )


def _asked(body: Any, field: str) -> bool:
    """Whether a field is set. 0 is a value: it asks for the log-probs of the tokens alone."""
    value = getattr(body, field, None)
    return value is not None and value is not False


def refuse_beside_small(body: Any, prompt: str) -> None:
    """Raises `InvalidRequest` for what this front end cannot send to the small model's engine.

    Beam search would go to the large engine; embeddings and pictures are made for the large model.

    Args:
        body: of any guided route.
        prompt: the field of its messages or prompts.
    """
    for field in ("use_beam_search", "prompt_embeds"):
        if getattr(body, field, None):
            raise InvalidRequest(f"The small model takes no {field}.", param=field)
    if has_non_text_content(getattr(body, prompt)):
        raise InvalidRequest("The small model takes text messages only.", param=prompt)
