"""What the second stream sees: from ``decoding.guide`` to a prompt, before any token is generated.

``without`` removes text wherever it stands verbatim; ``messages`` and ``prompt`` replace the prompt
as a whole. Rendering itself is vLLM's, so template, tools and flags are those of the primary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from divserve.decoding import Guide
from divserve.engine.openai import ChatCompletionMessageParam, VLLMValidationError
from divserve.errors import InvalidRequest

__all__ = ["chat_fields", "checked", "completion_prompt", "not_rendered"]

Message = dict[str, Any]
Prompt = str | list[str] | list[int] | list[list[int]]

MESSAGES: TypeAdapter[list[Any]] = TypeAdapter(list[ChatCompletionMessageParam])


def chat_fields(
    messages: Sequence[Message], documents: Sequence[dict[str, str]] | None, guide: Guide
) -> dict[str, Any]:
    """The fields of a chat request in which its guide differs: ``messages`` and ``documents``.

    Raises:
        InvalidRequest: a text to remove stands nowhere, or ``guide.messages`` are no messages.
    """
    if guide.messages is not None:
        return {"messages": _validated(guide.messages), "documents": None}
    places = [text for message in messages for text in _texts_of(message.get("content"))]
    places += [text for document in documents or () for text in document.values()]
    texts = guide.texts()
    _check_found(texts, places, guide, "the messages")
    pattern = _pattern(texts)
    return {
        "messages": [_shortened(pattern, message) for message in messages],
        "documents": documents
        and [{k: pattern.sub("", text) for k, text in one.items()} for one in documents],
    }


def completion_prompt(prompt: Prompt, guide: Guide) -> Prompt:
    """The guide's prompt of a completion request: one per prompt, or one for all of them.

    Raises:
        InvalidRequest: the prompt is not text, or a text to remove stands nowhere.
    """
    if guide.prompt is not None:
        return guide.prompt
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts_only = [text for text in prompts if isinstance(text, str)]
    if len(texts_only) != len(prompts):
        raise InvalidRequest(
            "'without' needs a text prompt: with token ids, give the guide as 'prompt'.",
            param="decoding.guide.without",
        )
    texts = guide.texts()
    _check_found(texts, texts_only, guide, "the prompt")
    pattern = _pattern(texts)
    for number, text in enumerate(texts_only):
        if not pattern.search(text):
            raise InvalidRequest(
                f"None of the texts occurs in prompt {number}: every prompt needs its own guide.",
                param="decoding.guide.without",
            )
    shortened = [pattern.sub("", text) for text in texts_only]
    return shortened[0] if isinstance(prompt, str) else shortened


def checked(token_ids: Sequence[int], limit: int) -> list[int]:
    """The guide's token ids, neither empty nor longer than `limit` tokens.

    Raises:
        InvalidRequest: they are.
    """
    if not token_ids:
        raise InvalidRequest(
            "The guide is empty: leave at least one token in it.", param="decoding.guide"
        )
    if len(token_ids) > limit:
        raise too_long(f"{len(token_ids)} tokens", limit)
    return list(token_ids)


def not_rendered(
    error: VLLMValidationError, limit: int, param: str = "decoding.guide"
) -> InvalidRequest:
    """The error of a guide that vLLM's renderer refused."""
    match error.parameter:
        case "input_tokens":
            return too_long(f"at least {error.value} tokens", limit)
        case "input_text":
            return too_long(f"{error.value} characters", limit)
    return InvalidRequest(f"The guide can not be rendered: {error.args[0]}", param=param)


def too_long(size: str, limit: int) -> InvalidRequest:
    """The error of a guide of `size` where `limit` tokens fit."""
    return InvalidRequest(
        f"The guide has {size}; at most {limit} tokens fit. Shorten it.",
        param="decoding.guide",
        code="context_length_exceeded",
    )


def _pattern(texts: Sequence[str]) -> re.Pattern[str]:
    """Finds any of `texts`, the longest first, so that none destroys a longer one it is part of."""
    return re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True)))


def _texts_of(content: Any) -> list[str]:
    """The texts of a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        return [content]
    return [text for part in content or () if (text := _text_of(part)) is not None]


def _text_of(part: Any) -> str | None:
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else None


def _shortened(pattern: re.Pattern[str], message: Message) -> Message:
    """The message without what `pattern` finds in its content."""
    content = message.get("content")
    if content is None:
        return message
    if isinstance(content, str):
        return {**message, "content": pattern.sub("", content)}
    return {**message, "content": [_shortened_part(pattern, part) for part in content]}


def _shortened_part(pattern: re.Pattern[str], part: Any) -> Any:
    text = _text_of(part)
    if text is None:
        return part
    shorter = pattern.sub("", text)
    return shorter if isinstance(part, str) else {**part, "text": shorter}


def _check_found(texts: Sequence[str], places: Sequence[str], guide: Guide, where: str) -> None:
    for index, text in enumerate(texts):
        if not any(text in place for place in places):
            raise InvalidRequest(
                f"The text to leave out does not occur in {where}: give it exactly as it stands "
                f"there, with the same spaces and line breaks ({_excerpt(text)}).",
                param="decoding.guide.without"
                + (f".{index}" if isinstance(guide.without, list) else ""),
            )


def _excerpt(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}…"


def _validated(messages: list[Message]) -> list[Message]:
    try:
        MESSAGES.validate_python(messages)
        wrong = next((i for i, message in enumerate(messages) if not _well_formed(message)), None)
    except ValidationError as error:
        wrong = int(error.errors()[0]["loc"][0])
    if wrong is not None:
        raise InvalidRequest(
            f"Message {wrong} of the guide is not a chat message: it needs a 'role' and 'content'.",
            param=f"decoding.guide.messages.{wrong}",
        )
    return messages


def _well_formed(message: Message) -> bool:
    """What pydantic leaves open: it does not look into a list of content parts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    texts = all(_text_of(part) is not None for part in parts)
    return isinstance(message.get("role"), str) and texts
