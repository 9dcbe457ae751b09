"""The guide without the documents: those of the field ``documents`` and marked text parts.

{"role": "user", "content": [{"type": "text", "name": "document", "text": "…"},
                             {"type": "text", "text": "What does it say?"}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from divserve.api.messages import Message
from divserve.errors import InvalidRequest, NoDocument

__all__ = ["check_documents_rendered", "without_documents"]

MARK = "document"


def without_documents(messages: Sequence[Message], has_field: bool, param: str) -> list[Message]:
    """The messages without their marked parts; messages that have nothing else are left out.

    Args:
        messages: of the request.
        has_field: whether it also has ``documents``.
        param: the field that asks for it.

    Raises:
        NoDocument: there is no document.
    """
    if not has_field and not any(_is_marked(part) for m in messages for part in _parts(m)):
        raise NoDocument(
            "The request has no document: mark a text part of a message with "
            '"name": "document", or send \'documents\'.',
            param=param,
        )
    return [short for message in messages if (short := _without_marked(message)) is not None]


def check_documents_rendered(
    source: Any, guide: Sequence[int], prompt: Sequence[int], param: str
) -> None:
    """Raises `InvalidRequest` if the guide equals the prompt: the template ignores
    ``documents``."""
    if source.documents and list(guide) == list(prompt):
        raise InvalidRequest(
            "This model's chat template does not render 'documents': put the text into a part of a "
            'message, marked with "name": "document".',
            param=f"{param}.guide.documents",
        )


def _parts(message: Message) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else ()


def _is_marked(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("name") == MARK


def _without_marked(message: Message) -> Message | None:
    parts = _parts(message)
    rest = [part for part in parts if not _is_marked(part)]
    if len(rest) == len(parts):
        return message
    return {**message, "content": rest} if rest else None
