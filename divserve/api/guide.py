"""What the second stream reads: turns a method's ``guide`` into a prompt, before any decoding.

A selector names a part of the request to leave out (`divserve.api.select`), ``noise`` distorts the
instruction; ``messages`` and ``prompt`` replace the whole prompt.
vLLM renders the guide, so template, tools and flags are those of the primary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from divserve.api.messages import Message, text_of
from divserve.api.noise import noisy_messages, noisy_prompt
from divserve.api.select import ChatTwin, Twin, chat_twin, twin_prompts
from divserve.decoding import Instructive, Method
from divserve.decoding.guide import SELECTS
from divserve.errors import InvalidRequest, NoDocument
from divserve.http.openai import ChatCompletionMessageParam, VLLMValidationError

__all__ = [
    "Twin", "chat_fields", "check_differs", "checked", "completion_prompt", "known_ids",
    "not_rendered",
]  # fmt: skip

T = TypeVar("T")
Prompt = str | list[str] | list[int] | list[list[int]]


MESSAGES: TypeAdapter[list[Any]] = TypeAdapter(list[ChatCompletionMessageParam])


def known_ids(method: Method, primaries: Sequence[Any]) -> list[list[int]] | None:
    """The guides that need no rendering: the whole prompts, or their last tokens; else None.

    Args:
        method: the method whose guides they are.
        primaries: the request's rendered prompts.
    """
    guide = method.guide
    if guide is not None and guide.of_model_only and not method.distorts:
        return [primary["prompt_token_ids"] for primary in primaries]
    if guide is None and method.natural_guide == "last_token":
        return [primary["prompt_token_ids"][-1:] for primary in primaries]
    return None


def chat_fields(
    messages: Sequence[Message],
    documents: Sequence[dict[str, str]] | None,
    method: Method,
    param: str,
) -> Twin[ChatTwin]:
    """What the guide of a chat request reads.

    Args:
        messages: the request's own.
        documents: likewise.
        method: the method whose guide it is.
        param: its path in the body.

    Raises:
        NoDocument: the request does not have the part that the guide lacks.
        InvalidRequest: nothing else is left, or ``guide.messages`` are not valid messages.
    """
    guide = method.guide
    if guide is None or method.distorts:
        noise = cast(Instructive, method)
        return Twin(ChatTwin(noisy_messages(messages, noise, param), documents))
    if guide.messages is not None:
        return Twin(ChatTwin(_validated(guide.messages, param), None))
    return chat_twin(guide, messages, documents, f"{param}.guide")


def completion_prompt(prompt: Prompt, method: Method, param: str) -> Twin[Prompt]:
    """The guide's prompt of a completion request: one per prompt, or one for all of them.

    Args:
        prompt: the request's own.
        method: the method whose guide it is.
        param: its path in the body.

    Raises:
        NoDocument: a prompt does not have the part that the guide lacks.
        InvalidRequest: the prompt is not text.
    """
    guide = method.guide
    if guide is not None and guide.prompt is not None:
        return Twin(guide.prompt)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts_only = [text for text in prompts if isinstance(text, str)]
    path = _needs_text(method, param)
    if len(texts_only) != len(prompts):
        raise InvalidRequest(
            f"'{path.rpartition('.')[2]}' needs a text prompt: with token ids, give the guide as "
            "'prompt'.",
            param=path,
        )
    if guide is None or method.distorts:
        noise = cast(Instructive, method)
        made = Twin([noisy_prompt(text, noise, param) for text in texts_only])
    else:
        made = twin_prompts(guide, texts_only, f"{param}.guide")
    return Twin(made.read[0], made.by) if isinstance(prompt, str) else Twin(made.read, made.by)


def _needs_text(method: Method, param: str) -> str:
    """The path of the field that needs a text prompt."""
    guide = method.guide
    if guide is None or method.distorts:
        return f"{param}.instruction"
    selects = next((name for name in SELECTS if getattr(guide, name) is not None), "first_of")
    return f"{param}.guide.{selects}"


def check_differs(
    guides: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], param: str
) -> None:
    """Raises `NoDocument` if a guide equals its prompt: the method would have no effect."""
    if any(list(one) == list(other) for one, other in zip(guides, prompts, strict=True)):
        raise NoDocument(
            "Without the part that the guide lacks, the prompt stays the same: a chat template may "
            "leave it out, or put the same text there by itself. Put the document into a user "
            "message.",
            param=param,
        )


def checked(token_ids: Sequence[int], limit: int, param: str) -> list[int]:
    """The guide's token ids, neither empty nor longer than `limit` tokens.

    Raises:
        InvalidRequest: they are empty, or too many.
    """
    if not token_ids:
        raise InvalidRequest("The guide is empty: leave at least one token in it.", param=param)
    if len(token_ids) > limit:
        raise too_long(f"{len(token_ids)} tokens", limit, param)
    return list(token_ids)


def not_rendered(error: VLLMValidationError, limit: int, param: str) -> InvalidRequest:
    """The error for a guide that vLLM's renderer rejected."""
    match error.parameter:
        case "input_tokens":
            return too_long(f"at least {error.value} tokens", limit, param)
        case "input_text":
            return too_long(f"{error.value} characters", limit, param)
    return InvalidRequest(f"The guide can not be rendered: {error.args[0]}", param=param)


def too_long(size: str, limit: int, param: str) -> InvalidRequest:
    """The error for a guide of `size` where `limit` tokens fit."""
    return InvalidRequest(
        f"The guide has {size}; at most {limit} tokens fit. Shorten it.",
        param=param,
        code="context_length_exceeded",
    )


def _validated(messages: list[Message], param: str) -> list[Message]:
    try:
        MESSAGES.validate_python(messages)
        wrong = next((i for i, message in enumerate(messages) if not _well_formed(message)), None)
    except ValidationError as error:
        wrong = int(error.errors()[0]["loc"][0])
    if wrong is not None:
        raise InvalidRequest(
            f"Message {wrong} of the guide is not a chat message: it needs a 'role' and 'content'.",
            param=f"{param}.guide.messages.{wrong}",
        )
    return messages


def _well_formed(message: Message) -> bool:
    """Checks what pydantic leaves out: it does not look into a list of content parts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    texts = all(text_of(part) is not None for part in parts)
    return isinstance(message.get("role"), str) and texts
