"""The request without the part that a guide names: the second stream's messages or prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from divserve.api.between import without_between
from divserve.api.cut import excerpt, removed
from divserve.api.documents import without_documents
from divserve.api.messages import Message, edited_all, texts_of
from divserve.decoding import Guide, Selector
from divserve.errors import InvalidRequest, NoDocument

__all__ = ["ChatTwin", "Twin", "chat_twin", "twin_prompts"]

T = TypeVar("T")
Documents = Sequence[dict[str, str]] | None
"""The field ``documents`` of a chat."""
ONLY_CHAT = ("documents", "role", "message")
"""Parts that a text prompt does not have."""


@dataclass(frozen=True, slots=True)
class Twin(Generic[T]):
    """What a guide reads."""

    read: T
    by: str | None = None
    """The part of the request that it lacks: a selector's field, or ``marked`` for text parts that
    are marked as documents; None for a guide that lacks none."""


@dataclass(frozen=True, slots=True)
class ChatTwin:
    """The fields in which the guide of a chat differs."""

    messages: list[Message]
    documents: Documents


def chat_twin(
    guide: Guide,
    messages: Sequence[Message],
    documents: Documents,
    param: str,
) -> Twin[ChatTwin]:
    """The chat without the part that the guide names.

    Args:
        guide: one with selectors.
        messages: the request's own.
        documents: likewise.
        param: the guide's path in the body.

    Raises:
        NoDocument: the chat does not have it.
        InvalidRequest: nothing else is left, or the part is not well formed.
    """

    def one(selector: Selector, path: str) -> Twin[ChatTwin]:
        found = _without(selector, messages, documents, path)
        if not found.read.messages:
            raise InvalidRequest(
                "Nothing is left for the guide: the messages need a part besides the one "
                "that it lacks.",
                param="messages",
            )
        return found

    return _first(guide, param, one)


def twin_prompts(guide: Guide, prompts: Sequence[str], param: str) -> Twin[list[str]]:
    """The prompts, each without the part that the guide names; errors as in `chat_twin`.

    Raises:
        NoDocument: a prompt does not have it.
    """

    def one(selector: Selector, path: str) -> Twin[list[str]]:
        if name := next((n for n in ONLY_CHAT if getattr(selector, n) is not None), None):
            raise NoDocument(f"A text prompt has no '{name}'.", param=f"{path}.{name}")
        if selector.between is not None:
            field = f"{path}.between"
            left = [_of_each([p], selector.between, field, i) for i, p in enumerate(prompts)]
            return Twin(left, "between")
        shortened = _without_texts(selector, prompts, "the prompt", path)
        for number, text in enumerate(prompts):
            if len(text) == len(shortened[number]):
                raise NoDocument(
                    f"None of the texts occurs in prompt {number}: every prompt needs its own "
                    "guide.",
                    param=f"{path}.without",
                )
        return Twin(shortened, "without")

    return _first(guide, param, one)


def _of_each(place: list[str], pairs: Sequence[tuple[str, str]], param: str, number: int) -> str:
    try:
        return without_between(pairs, place, param)[0]
    except NoDocument as error:
        raise NoDocument(f"Prompt {number}: {error.message}", param=param) from None


def _first(guide: Guide, param: str, one: Callable[[Selector, str], Twin[T]]) -> Twin[T]:
    """What the first selector finds that finds anything."""
    if guide.first_of is None:
        return one(guide, param)
    missed = []
    for index, selector in enumerate(guide.first_of):
        try:
            return one(selector, f"{param}.first_of.{index}")
        except NoDocument as error:
            missed.append(error.message)
    raise NoDocument(f"No document was found. {' '.join(missed)}", param=f"{param}.first_of")


def _without(
    selector: Selector,
    messages: Sequence[Message],
    documents: Documents,
    param: str,
) -> Twin[ChatTwin]:
    if selector.role is not None:
        return _without_role(selector.role, messages, documents, f"{param}.role")
    if selector.message is not None:
        return _without_message(selector.message, messages, documents, f"{param}.message")
    if selector.documents:
        left = without_documents(messages, bool(documents), f"{param}.documents")
        return Twin(ChatTwin(left, None), "documents" if documents else "marked")
    places = [text for message in messages for text in texts_of(message.get("content"))]
    own = len(places)
    places += [text for document in documents or () for text in document.values()]
    if selector.between is not None:
        by, rest = "between", without_between(selector.between, places, f"{param}.between")
    else:
        by, rest = "without", _without_texts(selector, places, "the messages", param)
    of_documents = iter(rest[own:])
    shorter = documents and [{key: next(of_documents) for key in one} for one in documents]
    return Twin(ChatTwin(edited_all(messages, rest[:own]), shorter), by)


def _without_role(
    role: str, messages: Sequence[Message], documents: Documents, param: str
) -> Twin[ChatTwin]:
    left = [message for message in messages if message.get("role") != role]
    if len(left) == len(messages):
        raise NoDocument(f"There is no message of the role '{role}'.", param=param)
    return Twin(ChatTwin(left, documents), "role")


def _without_message(
    index: int, messages: Sequence[Message], documents: Documents, param: str
) -> Twin[ChatTwin]:
    size = len(messages)
    if not -size <= index < size:
        raise NoDocument(f"There is no message {index}: there are {size}.", param=param)
    left = [message for place, message in enumerate(messages) if place != index % size]
    return Twin(ChatTwin(left, documents), "message")


def _without_texts(selector: Selector, places: Sequence[str], where: str, param: str) -> list[str]:
    """The places without any character of an occurrence of the selector's texts.

    Raises:
        NoDocument: a text does not occur.
        InvalidRequest: they occur too often.
    """
    path = f"{param}.without"
    left, missing = removed(selector.texts(), places, path)
    if missing:
        index = missing[0]
        raise NoDocument(
            f"The text to leave out does not occur in {where}: give it exactly as it stands "
            f"there, with the same spaces and line breaks ({excerpt(selector.texts()[index])}).",
            param=f"{path}.{index}" if isinstance(selector.without, list) else path,
        )
    return left
