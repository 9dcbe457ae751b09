"""Which field of the body an error of vLLM's is about, in the words of the route.

vLLM turns the bodies of several routes into one inner request and checks that: its errors name
inner fields that the client did not send, or none at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from divserve.http.paths import COUNT_TOKENS, MESSAGES, RESPONSES

__all__ = ["named"]

OF_MESSAGES = {"max_completion_tokens": "max_tokens", "stop": "stop_sequences"}
FIELDS: Mapping[str, Mapping[str, str]] = {
    RESPONSES: {
        "max_tokens": "max_output_tokens",
        "messages": "input",
        "response_id": "previous_response_id",
    },
    MESSAGES: OF_MESSAGES,
    COUNT_TOKENS: OF_MESSAGES,
}
"""By route: vLLM's inner fields, and what the body calls them."""

BEGINS = re.compile(r"([a-z_]+)(?==| must | cannot )")
"""How a message begins that is about a field."""
CHECKED = frozenset({
    "frequency_penalty", "logprobs", "max_tokens", "min_p", "min_tokens", "presence_penalty",
    "repetition_penalty", "stop", "temperature", "tool_choice", "top_k", "top_p",
})  # fmt: skip
"""Fields that vLLM checks behind the route."""
EMPTY = "Cannot apply chat template to an empty conversation"


def named(error: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The error, with ``param`` as the field is called in the body.

    Args:
        error: an error object in OpenAI's shape.
        path: of the route.
    """
    message, param = str(error["message"]), error["param"]
    if param is None:
        begins = BEGINS.match(message)
        if begins is not None and begins[1] in CHECKED:
            param = begins[1]
        elif message.startswith(EMPTY):
            param = "messages"
    if (own := FIELDS.get(path, {}).get(param)) is not None:
        message = re.sub(rf"\b{param}(?=[=,)]| must | cannot )", own, message)
        return {**error, "message": message, "param": own}
    return {**error, "param": param}
