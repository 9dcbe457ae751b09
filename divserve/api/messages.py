"""The texts of chat messages: a content is a string or a list of parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Message", "edited_all", "text_of", "texts_of"]

Message = dict[str, Any]


def texts_of(content: Any) -> list[str]:
    """The texts of a message's content."""
    if isinstance(content, str):
        return [content]
    return [text for part in content or () if (text := text_of(part)) is not None]


def text_of(part: Any) -> str | None:
    """The text of a content part; None if it is not a text part."""
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else None


def edited_all(messages: Sequence[Message], texts: Sequence[str]) -> list[Message]:
    """The messages with other texts.

    Args:
        messages: chat messages.
        texts: one for each that `texts_of` finds in all of them, in its order.
    """
    others = iter(texts)
    return [_edited(message, others) for message in messages]


def _edited(message: Message, texts: Iterator[str]) -> Message:
    content = message.get("content")
    if content is None:
        return message
    if isinstance(content, str):
        return {**message, "content": next(texts)}
    return {**message, "content": [_edited_part(part, texts) for part in content]}


def _edited_part(part: Any, texts: Iterator[str]) -> Any:
    if text_of(part) is None:
        return part
    return next(texts) if isinstance(part, str) else {**part, "text": next(texts)}
