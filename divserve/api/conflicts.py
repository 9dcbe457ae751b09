"""What ``decoding`` cannot be combined with, and why."""

from __future__ import annotations

from typing import Any

from divserve.errors import InvalidRequest
from divserve.http.openai import has_non_text_content

__all__ = ["refuse_beside_small", "refuse_conflicts"]

CONFLICTS = {
    "use_beam_search": "beam search ranks whole beams instead of sampling token by token",
    "prompt_embeds": "a guide needs a prompt of tokens",
    "kv_transfer_params": "the guide's keys and values can not be transferred",
    "ec_transfer_params": "multimodal prompts have no guide yet",
    "truncate_prompt_tokens": "prompt and guide would be cut at different places",
}
"""Fields that exclude ``decoding`` when set, and why."""

READS_THE_PROMPT = ("prompt_logprobs", "echo")
"""Fields that return log-probs of the prompt, or the prompt itself."""


def refuse_conflicts(body: Any, moves: bool) -> None:
    """Raises `InvalidRequest` for fields that would drop or distort the order of a guided body.

    Args:
        body: of either route.
        moves: whether the answer moves between two models.
    """
    for field, why in CONFLICTS.items():
        if getattr(body, field, None):
            raise InvalidRequest(
                f"decoding cannot be combined with {field}: {why}.", param="decoding"
            )
    for field in READS_THE_PROMPT if moves else ():
        value = getattr(body, field, None)
        # 0 is a value: prompt_logprobs 0 asks for the log-probs of the prompt's own tokens.
        if value is not None and value is not False:
            raise InvalidRequest(
                f"entropy_switch cannot be combined with {field}: two models read the prompt.",
                param=field,
            )


def refuse_beside_small(body: Any) -> None:
    """Raises `InvalidRequest` for what this front end cannot send to the small model's engine.

    Beam search would go to the large engine; embeddings and pictures are made for the large model.
    """
    for field in ("use_beam_search", "prompt_embeds"):
        if getattr(body, field, None):
            raise InvalidRequest(f"The small model takes no {field}.", param=field)
    if has_non_text_content(getattr(body, "messages", None) or []):
        raise InvalidRequest("The small model takes text messages only.", param="messages")
