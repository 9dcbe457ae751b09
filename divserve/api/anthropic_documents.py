"""Document blocks of Anthropic's messages, which vLLM does not take: those of text are read.

{"type": "document", "title": "…", "context": "…",
 "source": {"type": "text", "media_type": "text/plain", "data": "…"}}

becomes a text block with the name ``document``, which is what a guide without the documents leaves
out. Its text is title, context and data, each on lines of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from divserve.api.documents import MARK
from divserve.errors import InvalidRequest

__all__ = ["as_text", "marked"]

TAKEN = ("text", "content")
"""The types of sources that are text."""


def as_text(body: Any) -> Any:
    """The body with text blocks in place of its document blocks; the same one if it has none.

    Args:
        body: one that has not been validated.

    Raises:
        InvalidRequest: a document is no text.
    """
    messages = body.get("messages") if isinstance(body, Mapping) else None
    if not isinstance(messages, list):
        return body
    read = [_read(message, f"messages.{index}") for index, message in enumerate(messages)]
    return {**body, "messages": read}


def marked(text: str) -> dict[str, str]:
    """The content part of a document in a chat."""
    return {"type": "text", "text": text, "name": MARK}


def _read(message: Any, param: str) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return message
    blocks = [_block(block, f"{param}.content.{i}") for i, block in enumerate(content)]
    return {**message, "content": blocks}


def _block(block: Any, param: str) -> Any:
    if not isinstance(block, Mapping):
        return block
    inner = block.get("content")
    if block.get("type") == "tool_result" and isinstance(inner, list):
        for index, one in enumerate(inner):
            if isinstance(one, Mapping) and one.get("type") == "document":
                raise InvalidRequest(
                    "A tool's result takes text, no document blocks: send its text.",
                    param=f"{param}.content.{index}.type",
                )
    if block.get("type") != "document":
        return block
    if (block.get("citations") or {}) not in ({}, {"enabled": False}):
        raise InvalidRequest(
            "This server makes no citations: leave 'citations' out.", param=f"{param}.citations"
        )
    texts = [_text(block.get("source"), param)]
    for field in ("context", "title"):
        if not isinstance(text := block.get(field) or "", str):
            raise InvalidRequest("Input should be a text.", param=f"{param}.{field}")
        texts.insert(0, text)
    return marked("\n".join(filter(None, texts)))


def _text(source: Any, param: str) -> str:
    """The text of a document's source.

    Raises:
        InvalidRequest: it has none.
    """
    kind = source.get("type") if isinstance(source, Mapping) else None
    if kind not in TAKEN:
        raise InvalidRequest(
            "A document is taken as text only, in a source of type 'text' or 'content': extract "
            "the text of PDFs, files and URLs first.",
            param=f"{param}.source.type" if kind else f"{param}.source",
        )
    field = "data" if kind == "text" else "content"
    given = source.get(field)
    blocks = given if isinstance(given, list) else [given]
    texts: list[Any] = [b.get("text") if isinstance(b, Mapping) else b for b in blocks]
    wanted = all(isinstance(text, str) for text in texts) and "".join(map(str, texts)).strip()
    if not wanted or (kind == "text" and not isinstance(given, str)):
        raise InvalidRequest(
            f"The document has no text in '{field}'.", param=f"{param}.source.{field}"
        )
    return "\n".join(texts)
