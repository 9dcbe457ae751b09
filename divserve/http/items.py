"""How many things a parsed body holds, whatever they are: counted before they are validated.

Validation holds Python's global lock, in a thread too, and takes up to two milliseconds for an item
that is not valid: a body of many items would stop the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from divserve.errors import InvalidRequest
from divserve.http.fields import FieldLimits, too_much
from divserve.http.openai import ResponsesRequest

__all__ = ["check_input", "check_items"]

CONVERSATIONS = ("messages", "input")
TOKENS = (
    "prompt", "prompt_token_ids", "token_ids", "tokens", "input", "answer", "logprob_token_ids",
)  # fmt: skip
"""Fields of token ids, which are cheap and may be as many as a context has."""
BYTES_PER_VALUE = 2
"""The fewest bytes of a JSON value, with its comma."""


def check_items(body: Any, size: int, limits: FieldLimits) -> None:
    """Raises `InvalidRequest` for more messages, parts, tools or values than the limits.

    Args:
        body: a parsed JSON text.
        size: of the text, in bytes.
        limits: the maximum of each.
    """
    if size > BYTES_PER_VALUE * limits.max_json_values:
        _check_values(body, limits.max_json_values)
    if not isinstance(body, dict):
        return
    messages, parts = 0, _elements(body.get("system"))
    for param, conversation in _conversations(body):
        messages += len(conversation)
        parts += sum(map(_elements, conversation))
        if messages > limits.max_messages:
            raise too_much(param, f"has {messages} messages", limits.max_messages, "--max-messages")
        if parts > limits.max_parts:
            raise too_much(param, f"has {parts} content parts", limits.max_parts, "--max-parts")
    if (tools := _tools(body.get("tools"))) > limits.max_tools:
        raise too_much("tools", f"has {tools} tools", limits.max_tools, "--max-tools")


def check_input(value: Any) -> None:
    """Raises `InvalidRequest` for the first item of ``input`` that vLLM's Responses do not take.

    Their items are of 25 types, and pydantic reports what is missing for each: validated together,
    a thousand wrong ones of three bytes each are a quarter of a million errors.

    Args:
        value: of the field.
    """
    for index, item in enumerate(value if isinstance(value, list) else ()):
        try:
            ResponsesRequest.model_validate({"input": [item]})
        except ValidationError:
            raise InvalidRequest(
                f"input.{index}: none of the items that this route takes", param=f"input.{index}"
            ) from None
        except Exception:
            # A validator failed in another way: the route reports it.
            return


def _conversations(body: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The lists of messages of a request and of its guides, with their paths in the body."""
    for field in CONVERSATIONS:
        if isinstance(value := body.get(field), list) and not _are_tokens(value):
            # A batch is a list of conversations.
            yield field, [m for one in value for m in (one if isinstance(one, list) else [one])]
    for path, guide in _guides(body):
        if isinstance(guide, dict) and isinstance(messages := guide.get("messages"), list):
            yield f"{path}.messages", messages


def _guides(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of all fields ``guide``, with their paths in the body."""
    yield "guide", body.get("guide")
    for field in ("decoding", "method"):
        given = body.get(field)
        for index, method in enumerate(given if isinstance(given, list) else [given]):
            place = f".{index}" if isinstance(given, list) else ""
            yield f"{field}{place}.guide", method.get("guide") if isinstance(method, dict) else None


def _tools(value: Any) -> int:
    """The tools of a list, with those of its namespaces."""
    if not isinstance(value, list):
        return 0
    spaces = (tool.get("tools") for tool in value if isinstance(tool, dict))
    return len(value) + sum(len(tools) for tools in spaces if isinstance(tools, list))


def _elements(value: Any) -> int:
    """Elements of all lists inside a value: parts of a content, tool calls, parts of a part."""
    count, rest = 0, [value]
    while rest:
        inner = rest.pop()
        if isinstance(inner, list):
            count += len(inner)
            rest += inner
        elif isinstance(inner, dict):
            rest += inner.values()
    return count


def _check_values(body: Any, most: int) -> None:
    """Raises `InvalidRequest` for a body with more values than `most`, token ids left out."""
    count, rest = 0, [body] if isinstance(body, dict | list) else []
    while rest:
        inner = rest.pop()
        values = inner
        if isinstance(inner, dict):
            values = [v for k, v in inner.items() if k not in TOKENS or not _are_tokens(v)]
        count += len(values)
        if count > most:
            raise InvalidRequest(
                f"The body has more than {most} JSON values: send less, or start the server with a "
                "larger --max-json-values."
            )
        rest += [value for value in values if isinstance(value, dict | list)]


def _are_tokens(value: Any) -> bool:
    """Whether a value is one or several lists of token ids."""
    if not isinstance(value, list):
        return False
    return _is_tokens(value) or all(isinstance(one, list) and _is_tokens(one) for one in value)


def _is_tokens(value: list[Any]) -> bool:
    return set(map(type, value)) == {int}
