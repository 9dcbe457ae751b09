"""The texts of chat messages: a content is a string or a list of parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Message", "edited", "text_of", "texts_of"]

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


def edited(edit: Callable[[str], str], message: Message) -> Message:
    """The message with `edit` applied to every text of its content."""
    content = message.get("content")
    if content is None:
        return message
    if isinstance(content, str):
        return {**message, "content": edit(content)}
    return {**message, "content": [_edited_part(edit, part) for part in content]}


def _edited_part(edit: Callable[[str], str], part: Any) -> Any:
    text = text_of(part)
    if text is None:
        return part
    return edit(text) if isinstance(part, str) else {**part, "text": edit(text)}
